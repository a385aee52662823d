# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The online copy of random databases, judged by the oracle: alone, and while an application writes and runs are cut short.

The databases are the same in every run. ``--hypothesis-seed=N`` draws others, and ``UNIFIED_USER_STRESS_HISTORIES=N`` more.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time

import psycopg2
import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._online import OnlineCopy, OnlineOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._throttle import Limits
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy
from hypothesis import given, seed

from tests.integration import test_sync_histories as sync_histories
from tests.integration.subject import differing_counts
from tests.integration.sync_subject import SyncSubject
from tests.integration.test_sync_histories import DATABASES, EXAMPLES, check, drawn_examples, scripts, several_times, write_at_once
from tests.oracle.database import compare, compare_legacy
from tests.oracle.model import project
from tests.oracle.strategies import legacy_databases

batch_seed = sync_histories.batch_seed


@pytest.fixture(scope="module", params=DATABASES, ids=lambda database: f"{database[0].name}-{database[1]}")
def shape_and_naming(request):
    return request.param


class OnlineSubject(SyncSubject):
    """A database that is migrated online."""

    policies = None

    def begin(self, legacy, policies) -> None:
        """Start over with a legacy database that nobody has migrated; whatever state the last run was left in, an abort undoes it."""
        if self.policies is not None:
            with self.session() as database:
                AtomicCopy(database, self.options(self.policies)).undo()
            assert self.is_untouched()
        self.write(legacy)
        self.policies = policies

    def online(self, **options) -> dict:
        """Run the online copy once, with batches so small that there are several."""
        chosen = OnlineOptions(**{"owner": "test", "batch_keys": 3, "limits": Limits(replica_lag=0), **options})
        database = self.connect_as_module()
        try:
            return OnlineCopy(database, self.options(self.policies), chosen, self.connect_as_module).run()
        finally:
            database.close()

    def run_state(self) -> str | None:
        """What has become of the run; None when none was begun."""
        with self.session() as database:
            run = _journal.current_run(database)
            return run and run["state"]

    def quarantined(self) -> int:
        """How many rows are in quarantine."""
        with self.session() as database:
            return _journal.count_quarantine(database)


@pytest.fixture(scope="module")
def subject(cluster, shape_and_naming):
    """One database for all examples of its kind: each starts it over."""
    with contextlib.closing(OnlineSubject(cluster, f"online_{os.getpid()}", *shape_and_naming)) as made:
        yield made


def test_the_online_copy_is_what_the_oracle_says(subject, shape_and_naming, batch_seed):
    shape, _naming = shape_and_naming

    @seed(batch_seed)
    @EXAMPLES
    @given(legacy_databases("legal", shape))
    def one(case):
        subject.begin(case.legacy, case.policies)
        result = subject.online(workers=1 + batch_seed % 3)
        # A batch that left something out would be made good by the repair, and nobody would see.
        assert not [note for note in result["notes"] if "looked at again" in note]
        expected = project(case.legacy, case.policies, subject.started_at())
        assert compare(expected, subject.unified(), shape) == []
        assert differing_counts(result, expected) == []
        assert compare_legacy(case.legacy, subject.legacy()) == []
        assert result["changed"] and result["finished"] and subject.failed_checks(case.policies) == {}
        assert subject.status()["direction"] == "forward" and not subject.status()["missing"]
        again = subject.online()
        assert not again["changed"] and again["finished"]

    one()


def interrupt(subject, chance: random.Random) -> None:
    """End a session of the run's, or none, at a random moment."""
    time.sleep(chance.uniform(0, 0.3))
    with contextlib.suppress(psycopg2.Error):
        subject.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'unified_user'"
            " AND random() < 0.5"
        )


def test_writers_while_it_runs_and_its_sessions_are_ended(subject, shape_and_naming, batch_seed):
    def judge(example):
        subject.begin(example.case.legacy, example.case.policies)
        chance = random.Random(batch_seed)
        outcome: list = []

        def migrate():
            try:
                outcome.append(subject.online(workers=chance.choice((1, 2))))
            except (UnifiedUserError, psycopg2.Error) as error:
                outcome.append(error)

        run = threading.Thread(target=migrate, daemon=True)
        run.start()
        cut = threading.Thread(target=interrupt, args=(subject, chance), daemon=True)
        cut.start()
        refused = write_at_once(subject, example.histories)
        cut.join(60)
        run.join(120)
        assert not run.is_alive(), "the run does not come to an end"
        if not isinstance(outcome[0], dict):
            # The same command again.
            migrate()
        if subject.run_state() is None:
            # The writers were there first with what a migration refuses.
            left = [] if subject.is_untouched() else ["left something behind"]
            return refused + left + ([] if "findings" in getattr(outcome[-1], "details", {}) else [f"refused with: {outcome[-1]!r}"])
        subject.start_of_run = subject.started_at()
        # Quarantined people fail the verification: that is for an operator to settle. Everything else ends well.
        settled = isinstance(outcome[-1], dict) or (subject.quarantined() and str(outcome[-1]).startswith("Failed to verify the data"))
        found = [] if settled else [f"the run ended with: {outcome[-1]}"]
        return refused + found + subject.forward_differences(subject.state())

    for example in drawn_examples(scripts("legacy", shape_and_naming[0]), batch_seed):
        check(several_times(judge), example)
