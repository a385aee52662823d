# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Proving that the unified tables are what the legacy tables call for (the contract, section 5)."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, field
from typing import Any, Callable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema, read_schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, describe, psycopg2, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies, parse_mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma, compose
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import Sync, SyncOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_base import Derivation, Image, Look
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_belongings import Belongings
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_compare import Comparer, Comparison
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_explain import Explained, Explainer
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_people import People
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_reverse import HELD, NOT_CARRIED, Reverse, ReverseDerivation
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_rules import Rule, Rules
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_sessions import (
    SNAPSHOT,
    Failure,
    Sessions,
    attempt,
    sharing_snapshot,
)

#: How long and with what a verification of its own may work; inside a copy the copy's settings hold.
_SETTINGS = {
    "search_path": "pg_catalog",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "extra_float_digits": "1",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "work_mem": "64MB",
    "jit": "off",
    # Rows that a policy would hide are an error, not rows that are not there.
    "row_security": "off",
}


_STARTED_AT = """
SELECT to_char((started_at AT TIME ZONE 'UTC')::timestamp(3), 'YYYY-MM-DD HH24:MI:SS.MS') FROM unified_user_journal.run WHERE id = %s
"""

_SYNC = """
SELECT to_char((since AT TIME ZONE 'UTC')::timestamp(3), 'YYYY-MM-DD HH24:MI:SS.MS') AS since, direction, direction <> 'forward' AS both_ways,
       cardinality(triggers) AS triggers, ARRAY(
           SELECT w.name FROM unnest(triggers) AS w (name) WHERE NOT EXISTS (
               SELECT FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid
               WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s) AND c.relname || '.' || t.tgname = w.name AND t.tgenabled = 'A')
           ORDER BY 1) AS missing
FROM unified_user_journal.sync
"""

_NEXT_STEPS = {
    "run": "Run playbooks/migrate.yml: it migrates the data, or goes on where it was left",
    "sync": (
        "Make the triggers again with playbooks/sync.yml, then run verify.yml again: before cut-over what they missed is carried then,"
        " later it shows as differences"
    ),
    "settings": "Set these variables as they were in the run; other rows would be called for under others",
}
#: What is proven: that the unified side is what the legacy side calls for, or that the legacy side holds all it can of the unified side.
FORWARD, REVERSE = "forward", "reverse"

_LOOK_REVERSE = (
    "Compare the rows named on both sides, write to the legacy side what it lacks, or put right what kept a check from running, and verify again"
)
_LOOK = (
    "Compare the rows named on both sides, or put right what kept a check from running, and verify again."
    " playbooks/rollback.yml with -e rollback_mode=abort empties the unified tables for a new run"
)


#: The equations between the totals: total -> what it is the sum of, by sign (the contract, sections 2 and 3). Each total is that
#: of the image of this name.
_EQUATIONS = {
    "users": {"identities": 1, "guests": 1},
    "role_assignments": {"roles": 1},
    "ownerships": {"owned_studios": 1},
    "accounts": {"legacy_accounts": 1, "accounts_left": -1},
    "sessions": {"legacy_sessions": 1, "sessions_left": -1},
    "bookings": {"legacy_bookings": 1, "quarantined": -1},
    "favourites": {"legacy_favourites": 1, "favourites_left": -1},
    "identity_map": {"owners": 1, "customers": 1, "guests": 1},
    "quarantine": {"unresolvable": 1},
}

#: What is shown of the totals, in the migration guide's terms.
_TOTALS = (
    "owners", "customers", "identities", "joined_identities", "guests", "users", "role_assignments", "ownerships", "bookings", "quarantined",
    "favourites", "favourites_left", "accounts", "accounts_left", "sessions", "sessions_left",
)


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        name: stable name, snake_case.
        expected: what must be, mostly a number of rows.
        actual: what is.
        differing: how many rows are not as they must be; None when the check could not run.
        samples: keys of a few of them, e-mails masked.
        detail: one clause on what differs, or why the check could not run; empty when there is nothing to say.
        passed: whether it ran and found nothing.
    """

    name: str
    expected: Any
    actual: Any
    differing: int | None
    samples: list[str] = field(default_factory=list)
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the check ran and found no difference."""
        return self.differing == 0

    def as_dict(self) -> dict[str, Any]:
        """Return the check as a module returns it."""
        return {**asdict(self), "passed": self.passed}


@dataclass
class Verification:
    """Every check, and the totals in the migration guide's terms.

    Attributes:
        checks: in the order they ran.
        totals: by name.
        not_representable: in reverse, the rows of which only the unified side holds something, by kind; else None.
        not_carried: in reverse, credentials that only the legacy side holds, and what is in quarantine, by kind.
    """

    checks: list[Check] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    not_representable: dict[str, int] | None = None
    not_carried: dict[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether there are checks and every one of them passed: no check is not a pass."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Return the verification as a module returns it."""
        found = {"passed": self.passed, "checks": [check.as_dict() for check in self.checks], "totals": self.totals}
        if self.not_representable is not None:
            for name in ("not_representable", "not_carried"):
                found[name] = dict(sorted(getattr(self, name).items()))
        return found

    def require(self, **details) -> Verification:
        """Return this verification if it passed.

        Args:
            details: what the error carries beside the checks and totals.

        Raises:
            UnifiedUserError: names the checks that failed, with their counts.
        """
        if self.passed:
            return self
        failed = [check for check in self.checks if not check.passed]
        look = _LOOK if self.not_representable is None else _LOOK_REVERSE
        causes = "; ".join(
            f"{check.name}: {check.detail or f'{check.actual} instead of {check.expected}'}"
            + (f" [{', '.join(check.samples[:2])}]" if check.samples else "")
            for check in failed
        )
        raise UnifiedUserError(
            "verify the data",
            f"{len(failed)} of {len(self.checks)} checks failed: {causes}" if self.checks else "no check was run",
            next((step for name, step in _NEXT_STEPS.items() if any(check.name == name for check in failed)), look),
            **{**self.as_dict(), **details},
        )


class _Verifier:
    """Runs the checks of one verification."""

    def __init__(self, sessions: Sessions, schema: Schema, policies: Policies, sample_size: int, mask_pii: bool, cutover_at: str | None) -> None:
        self.sessions = sessions
        self.database = sessions.first
        self.schema = schema
        self.policies = policies
        self.sample_size = sample_size
        self.mask_pii = mask_pii
        self.cutover_at = cutover_at
        self.result = Verification()
        self.comparisons: dict[str, Comparison] = {}

    def _answered(self, names: tuple[str, ...], answer: Any) -> bool:
        """Return whether a question has been answered; where it has not, the checks that lean on it have failed, once each."""
        if isinstance(answer, Failure):
            broken = self._broken()
            self.result.checks += [Check(name, None, None, None, [], f"it could not run: {answer.reason}") for name in names if name not in broken]
        return not isinstance(answer, Failure)

    def _broken(self) -> set[str]:
        return {check.name for check in self.result.checks if check.differing is None}

    def run(self, finished: bool, mapping: dict | None) -> Verification:
        """Run everything. See ``verify`` and ``verify_database``."""
        run = attempt(self.database, lambda unused: self._current_run(finished))
        if not self._answered(("run",), run) or not run or not self._same_settings(run, mapping):
            return self.result
        looks, rules, comparer = self._means(run["started"], self._sync(run["mapping"] if mapping is None else mapping))
        # Rows of derived tables are guessed far too few; a nested loop over what was taken for 200 rows would not end.
        with self.sessions.setting("enable_nestloop", "off"):
            self._check_everything(looks, rules, comparer)
        return self.result

    def _means(self, started: str, sync: dict[str, Any]) -> tuple[list[Look], Rules, Comparer]:
        """Return what to compare, what must not be, and who compares."""
        derivation = Derivation(
            self.schema, self.policies, started, self.cutover_at, self.mask_pii, sync["since"], sync["both_ways"], _journal.knows_parted(self.database)
        )
        return [*People(derivation).looks(), *Belongings(derivation).looks()], Rules(derivation), Comparer(self.sample_size)

    def _sync(self, mapping: dict) -> dict[str, Any]:
        """Return how the sync is; while it is on, every trigger of it must be there, fire whoever writes, and know the columns of today."""
        sync = self.database.row(_SYNC, (self.schema.name,))
        if not sync:
            return {"since": None, "both_ways": False, "direction": None}
        missing = sync["missing"]
        detail = f"not there or not enabled always: {', '.join(missing)}" if missing else ""
        found = sync["triggers"] - len(missing)
        if not missing and Sync(self.database, SyncOptions(self.schema.name, mapping, self.policies)).outdated():
            found, detail = 0, "made for other columns than there are now, or by another version of the collection"
        self.result.checks.append(Check("sync", sync["triggers"], found, sync["triggers"] - found, missing[: self.sample_size], detail))
        return sync

    def _check_everything(self, looks: list[Look], rules: Rules, comparer: Comparer) -> None:
        """Ask everything that needs no other answer, from whichever session is free; then conclude check by check."""
        images = list({image.name: image for look in looks for group in look.groups for image, _part in group}.values())
        ruled = rules.all()
        found = self.sessions.ask({
            **{("look", number): functools.partial(comparer.count, look=look) for number, look in enumerate(looks)},
            **{("orphans", child): functools.partial(self._orphans_of, rules=rules, child=child) for child in rules.children()},
            **{("rule", rule.names): functools.partial(self._broken_by, rule=rule) for rule in ruled},
            **{("rows", image.name): functools.partial(comparer.count_rows, image=image) for image in images},
            ("totals", None): lambda database: database.row(rules.totals()),
        })  # fmt: skip
        for number, look in enumerate(looks):
            if self._answered(look.names, found["look", number]):
                comparer.add(look, found["look", number])
        for image in images:
            actual = found["rows", image.name]
            if image.name not in self._broken() and self._answered((image.name,), actual):
                comparison = attempt(self.database, functools.partial(comparer.conclude, image=image, actual=actual))
                if self._answered((image.name,), comparison):
                    self._compared(image, comparison)
        if all(self._answered(("orphans",), found["orphans", child]) for child in rules.children()):
            self._orphans([orphan for child in rules.children() for orphan in found["orphans", child]])
        for rule in ruled:
            answer = found["rule", rule.names]
            if self._answered(rule.names, answer):
                self.result.checks += [Check(name, 0, count, count, samples) for name, (count, samples) in answer.items()]
        totals = found["totals", None]
        if self._answered(("totals",), totals):
            self._totals(totals, comparer)

    def _current_run(self, finished: bool) -> dict[str, Any] | None:
        run = _journal.current_run(self.database)
        state = run["state"] if run else "none"
        if state == "finished" or (run and not finished):
            run["started"] = self.database.value(_STARTED_AT, (run["id"],))
            self.result.checks.append(Check("run", "finished" if finished else state, state, 0))
            return run
        detail = "this database has not been migrated: the journal has no run" if not run else "the run is under way or was interrupted"
        self.result.checks.append(Check("run", "finished", state, 1, [], detail))
        return None

    def _same_settings(self, run: dict[str, Any], mapping: dict | None) -> bool:
        """Check that the options are those of the run: under others, other rows would be called for."""
        ours = _journal.settings_of(self.schema.name, self.policies, run["mapping"] if mapping is None else mapping)
        theirs = _journal.run_settings(run)
        names = _journal.changed_settings(run, ours)
        detail = "; ".join(f"{name} is {ours.get(name)} here and was {theirs.get(name)} in the run" for name in names)
        self.result.checks.append(Check("settings", len(theirs), len(theirs) - len(names), len(names), names[: self.sample_size], detail))
        return not names

    def _compared(self, image: Image, found: Comparison) -> None:
        self.comparisons[image.name] = found
        parts = [f"{count} {kind}" for kind, count in (("missing", found.missing), ("unexpected", found.unexpected)) if count]
        if found.different:
            columns = ", ".join(f"{name} {rows}" for name, rows in found.columns.items())
            parts.append(f"{found.different} different" + (f" ({columns})" if columns else ""))
        if image.ignored:
            parts.append(f"not compared where no row gives a value, as the default is computed: {', '.join(image.ignored)}")
        if found.born_after:
            parts.append(f"{found.born_after} born after cut-over")
        if found.changed_since:
            parts.append(f"{found.changed_since} changed since cut-over")
        self.result.checks.append(Check(image.name, found.expected, found.actual, found.differing, found.samples, "; ".join(parts)))

    def _orphans_of(self, database: Database, rules: Rules, child: str) -> list[tuple[str, int, list[str]]]:
        """Return table and column, how many of its rows point nowhere, and names of some, where there are any."""
        select, columns = rules.orphans(child)
        counts = database.row(select) if columns else {}
        table, names = self.schema[child].name, self.schema[child].names
        return [
            (f"{table}.{names[column]}", counts[column],
             [f"{table} {label} ({names[column]})" for label in self._labels(database, rules.orphaned(child, column))])
            for column in columns if counts[column]
        ]  # fmt: skip

    def _orphans(self, orphans: list[tuple[str, int, list[str]]]) -> None:
        total = sum(count for unused, count, samples in orphans)
        detail = ", ".join(f"{name} {count}" for name, count, samples in orphans)
        samples = [sample for unused, count, samples in orphans for sample in samples]
        self.result.checks.append(Check("orphans", 0, total, total, samples[: self.sample_size], detail))
        self.result.totals["orphans"] = total

    def _broken_by(self, database: Database, rule: Rule) -> dict[str, tuple[int, list[str]]]:
        """Return how many rows break each part of a rule, and names of some."""
        counts = [compose("count(*) FILTER (WHERE v.{name}) AS {name}", {"name": sql.Identifier(name)}) for name in rule.names]
        found = database.row(compose("SELECT {counts} FROM ({rows}) AS v", {"counts": comma(counts), "rows": rule.rows}))
        broken = {
            name: compose("SELECT v.label FROM ({rows}) AS v WHERE v.{name}", {"rows": rule.rows, "name": sql.Identifier(name)}) for name in rule.names
        }
        return {name: (count, self._labels(database, broken[name]) if count else []) for name, count in found.items()}

    def _labels(self, database: Database, select) -> list[str]:
        parts = {"select": select, "limit": sql.Literal(self.sample_size)}
        labels = compose("SELECT coalesce(v.label, 'NULL') AS label FROM ({select}) AS v ORDER BY 1 LIMIT {limit}", parts)
        return [row["label"] for row in database.rows(labels)]

    def _totals(self, counted: dict[str, int], comparer: Comparer) -> None:
        compared = self.comparisons
        for name, legacy in (("accounts", "legacy_accounts"), ("sessions", "legacy_sessions"), ("favourites", "legacy_favourites")):
            if name in compared:
                counted[f"{name}_left"] = counted[legacy] - compared[name].expected
        if "users" in compared:
            alone, joined, guests = (comparer.expected["users", part] for part in ("alone", "together", "guests"))
            counted.update(identities=alone + joined, joined_identities=joined, guests=guests)
        if "quarantine" in compared:
            counted.update(unresolvable=compared["quarantine"].expected, quarantined=compared["quarantine"].actual)
        for name, terms in _EQUATIONS.items():
            if name not in compared or not counted.keys() >= terms.keys():
                self.result.checks.append(Check(f"total_{name}", None, None, None, [], "it could not run: what it is the sum of could not be compared"))
                continue
            expected = sum(sign * counted[term] for term, sign in terms.items()) + compared[name].born_after
            self.result.checks.append(Check(f"total_{name}", expected, compared[name].actual, abs(expected - compared[name].actual)))
        counted.update({name: comparison.actual for name, comparison in compared.items()})
        self.result.totals.update({name: counted[name] for name in _TOTALS if name in counted})
        if self.cutover_at is not None:
            self.result.totals["born_after_cutover"] = sum(comparison.born_after for comparison in compared.values())
            self.result.totals["changed_since_cutover"] = sum(comparison.changed_since for comparison in compared.values())


class _ReverseVerifier(_Verifier):
    """Runs the checks of one verification in the other direction."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.result.not_representable = {}

    def _means(self, started: str, sync: dict[str, Any]) -> tuple[list[Look], Rules, Comparer]:
        derivation = ReverseDerivation(
            self.schema, self.policies, started, None, self.mask_pii, sync["since"], True, _journal.knows_parted(self.database)
        )
        reverse = Reverse(derivation)
        return reverse.looks(), reverse.rules, Explainer(self.sample_size, reverse.excuses())

    def _sync(self, mapping: dict) -> dict[str, Any]:
        sync = super()._sync(mapping)
        off = not sync["both_ways"]
        detail = "what the unified side writes is not carried to the legacy side" if off else ""
        self.result.checks.append(Check("sync_direction", "both or reverse", sync["direction"] or "none", int(off), [], detail))
        return sync

    def _hold(self, kinds: dict[str, int]) -> None:
        for kind, rows in kinds.items():
            held = self.result.not_carried if kind in NOT_CARRIED else self.result.not_representable
            if rows:
                held[kind] = held.get(kind, 0) + rows

    def _compared(self, image: Image, found: Explained) -> None:
        super()._compared(image, found)
        self._hold(found.held)

    def _totals(self, counted: dict[str, int], comparer: Comparer) -> None:
        self._hold({kind: counted.pop(kind) for kind in HELD if kind in counted})
        if "users" in self.comparisons:
            alone, joined, guests = (comparer.expected["users", part] for part in ("alone", "together", "guests"))
            counted.update(identities=alone + joined, joined_identities=joined, guests=guests)
        counted.update({name: comparison.actual for name, comparison in self.comparisons.items()})
        self.result.totals.update({name: counted[name] for name in _TOTALS if name in counted})


_VERIFIERS = {FORWARD: _Verifier, REVERSE: _ReverseVerifier}


def verify(database: Database, schema: Schema, policies: Policies, sample_size: int = 5, mask_pii: bool = True) -> Verification:
    """Verify inside the transaction that is open, with its snapshot and its settings. Runs SELECTs and savepoints only.

    The caller vouches for the journal's current run: it may be the one under way.

    Args:
        database: a session with an open transaction, ``search_path`` without the application's schema, time zone UTC.
        schema: the resolved tables.
        policies: the operator's decisions.
        sample_size: how many samples a check shows at most.
        mask_pii: whether e-mails in samples are masked.

    Returns:
        The verification, passed or not.

    Raises:
        UnifiedUserError: tables or columns are missing.
    """
    schema.require()
    return _Verifier(Sessions(database), schema, policies, sample_size, mask_pii, None).run(finished=False, mapping=None)


def verify_database(
    database: Database,
    schema: str = "public",
    mapping: dict | None = None,
    policies: Policies | None = None,
    sample_size: int = 5,
    mask_pii: bool = True,
    cutover_at: str | None = None,
    connect: Callable[[], Database] | None = None,
    finished: bool = True,
    direction: str = FORWARD,
) -> Verification:
    """Verify a migrated database, or a replica of one, in a read-only transaction with one snapshot.

    Args:
        database: an open session without a transaction.
        schema: database schema of the application's tables.
        mapping: the operator's overriding names, or None.
        policies: the operator's decisions; the contract's defaults when None.
        sample_size: how many samples a check shows at most.
        mask_pii: whether e-mails in samples are masked.
        cutover_at: when the application moved to the unified tables, UTC, as PostgreSQL reads a timestamp. Rows without a source
            that were born since, and rows changed since whose source is older, are counted apart and are no differences.
        connect: opens another session to the same database as the same role, so that two verify at once, on one snapshot. None, or
            where no other is to be had: one verifies.
        finished: whether the journal's current run must be; else the caller vouches for the one under way.
        direction: ``forward`` proves that the unified side is what the legacy side calls for, ``reverse`` that the legacy side holds
            all that it can hold of the unified side, while the sync carries what is written there.

    Returns:
        The verification, passed or not.

    Raises:
        UnifiedUserError: tables or columns are missing, or the mapping or the time cannot be read.
    """
    names = parse_mapping(mapping)
    if direction == REVERSE and cutover_at is not None:
        raise UnifiedUserError("verify the data", "in reverse a cut-over excuses nothing", "Leave cutover_at out, or verify forward")
    with database.transaction(SNAPSHOT):
        for name, value in _SETTINGS.items():
            database.value("SELECT set_config(%s, %s, true)", (name, value))
        resolved = read_schema(database, schema, names)
        resolved.require()
        moment = _read_moment(database, cutover_at)
        with sharing_snapshot(database, connect, _SETTINGS) as sessions:
            verifier = _VERIFIERS[direction](sessions, resolved, policies or Policies(), sample_size, mask_pii, moment)
            return verifier.run(finished, mapping or {})


def _read_moment(database: Database, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return database.value("SELECT to_char(%s::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS')", (text,))
    except psycopg2.DataError as error:
        raise UnifiedUserError(
            "read cutover_at", describe(error), "Write it in UTC as in 2026-01-31 04:00:00"
        ) from error
