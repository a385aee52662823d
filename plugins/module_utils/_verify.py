# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Proving that the unified tables are what the legacy tables call for (the contract, section 5)."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Iterator

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema, read_schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, describe, psycopg2, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies, parse_mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import compose
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_compare import Comparer, Comparison
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_images import Image, Images
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_rules import REFERENCES, Rule, Rules

#: How long and with what a verification of its own may work; inside a copy the copy's settings hold.
_SETTINGS = {
    "search_path": "pg_catalog",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "extra_float_digits": "1",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "work_mem": "64MB",
    "max_parallel_workers_per_gather": "4",
    "jit": "off",
}


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
    """Every check, and the totals in the migration guide's terms."""

    checks: list[Check] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether there are checks and every one of them passed: no check is not a pass."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Return the verification as a module returns it."""
        return {"passed": self.passed, "checks": [check.as_dict() for check in self.checks], "totals": self.totals}

    def require(self) -> Verification:
        """Return this verification if it passed.

        Raises:
            UnifiedUserError: names the checks that failed, with their counts.
        """
        if self.passed:
            return self
        failed = [check for check in self.checks if not check.passed]
        causes = "; ".join(
            f"{check.name}: {check.detail or f'{check.differing} differ'}" + (f", such as {', '.join(check.samples[:2])}" if check.samples else "")
            for check in failed
        )
        raise UnifiedUserError(
            "verify the data",
            f"{len(failed)} of {len(self.checks)} checks failed: {causes}" if self.checks else "no check was run",
            "Look at the rows named in the checks; playbooks/rollback.yml with rollback_mode=abort empties the unified tables for a new run",
            **self.as_dict(),
        )


class _Verifier:
    """Runs the checks of one verification, each in a savepoint of its own."""

    def __init__(self, database: Database, schema: Schema, policies: Policies, sample_size: int, mask_pii: bool, cutover_at: str | None) -> None:
        self.database = database
        self.schema = schema
        self.policies = policies
        self.sample_size = sample_size
        self.mask_pii = mask_pii
        self.cutover_at = cutover_at
        self.result = Verification()
        self.comparisons: dict[str, Comparison] = {}

    @contextlib.contextmanager
    def _attempt(self, name: str) -> Iterator[None]:
        """Make an SQL error in the block the failure of that check alone."""
        self.database.execute("SAVEPOINT verification")
        try:
            yield
        except psycopg2.Error as error:
            if self.database.connection.closed:
                raise
            self.database.execute("ROLLBACK TO SAVEPOINT verification")
            self.result.checks.append(Check(name, None, None, None, [], f"it could not run: {describe(error)}"))
        self.database.execute("RELEASE SAVEPOINT verification")

    def run(self, finished: bool, mapping: dict | None) -> Verification:
        """Run everything. See ``verify`` and ``verify_database``."""
        run = None
        with self._attempt("run"):
            run = self._current_run(finished)
        if not run or not self._same_settings(run, mapping):
            return self.result
        images = Images(self.schema, self.policies, run["started"], self.cutover_at, self.mask_pii)
        comparer, rules = Comparer(self.database, self.sample_size), Rules(images)
        for image in images.all():
            with self._attempt(image.name):
                self._compare(comparer, image)
        with self._attempt("orphans"):
            self._orphans(rules)
        for rule in rules.all():
            with self._attempt(rule.name):
                self._rule(rule)
        with self._attempt("totals"):
            self._totals(rules)
        return self.result

    def _current_run(self, finished: bool) -> dict[str, Any] | None:
        run = _journal.current_run(self.database)
        state = run["state"] if run else "none"
        if state == "finished" or (run and not finished):
            run["started"] = self.database.value(
                "SELECT to_char((started_at AT TIME ZONE 'UTC')::timestamp(3), 'YYYY-MM-DD HH24:MI:SS.MS')"
                f" FROM {_journal.SCHEMA}.run WHERE id = {int(run['id'])}"
            )
            self.result.checks.append(Check("run", "finished" if finished else state, state, 0))
            return run
        detail = "this database has not been migrated: the journal has no run" if not run else "the run is under way or was interrupted"
        self.result.checks.append(Check("run", "finished", state, 1, [], detail))
        return None

    def _same_settings(self, run: dict[str, Any], mapping: dict | None) -> bool:
        """Check that the options are those of the run: under others, other rows would be called for."""
        ours = {**asdict(self.policies), "schema": self.schema.name}
        theirs = {**run["policies"], "schema": run["application_schema"]}
        if mapping is not None:
            ours["mapping"], theirs["mapping"] = mapping, run["mapping"]
        names = sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
        detail = "; ".join(f"{name} is {ours.get(name)} here and was {theirs.get(name)} in the run" for name in names)
        self.result.checks.append(Check("settings", len(theirs), len(theirs) - len(names), len(names), names[: self.sample_size], detail))
        return not names

    def _compare(self, comparer: Comparer, image: Image) -> None:
        found = self.comparisons[image.name] = comparer.compare(image)
        parts = [f"{count} {kind}" for kind, count in (("missing", found.missing), ("unexpected", found.unexpected)) if count]
        if found.different:
            columns = ", ".join(f"{name} {rows}" for name, rows in found.columns.items())
            parts.append(f"{found.different} different" + (f" ({columns})" if columns else ""))
        if image.ignored:
            parts.append(f"not compared, as the default is not a constant: {', '.join(image.ignored)}")
        if found.born_after:
            parts.append(f"{found.born_after} born after cut-over")
        if found.changed_since:
            parts.append(f"{found.changed_since} changed since cut-over")
        self.result.checks.append(Check(image.name, found.expected, found.actual, found.differing, found.samples, "; ".join(parts)))

    def _orphans(self, rules: Rules) -> None:
        counts: dict[tuple[str, str], int] = {}
        for child in dict.fromkeys(reference[0] for reference in REFERENCES):
            if self.schema[child].exists:
                select, columns = rules.orphans(child)
                row = self.database.row(select) if columns else {}
                counts.update({(child, column): row[column] for column in columns})
        broken = {reference: count for reference, count in counts.items() if count}
        samples: list[str] = []
        for child, column in broken:
            labels = self._labels(rules.orphaned(child, column))
            samples += [f"{self.schema[child].name} {label} ({self.schema[child].names[column]})" for label in labels]
        total = sum(broken.values())
        detail = ", ".join(f"{self.schema[child].name}.{self.schema[child].names[column]} {count}" for (child, column), count in broken.items())
        self.result.checks.append(Check("orphans", 0, total, total, samples[: self.sample_size], detail))
        self.result.totals["orphans"] = total

    def _rule(self, rule: Rule) -> None:
        count = self.database.value(compose("SELECT count(*) FROM ({violations}) AS v", {"violations": rule.violations}))
        self.result.checks.append(Check(rule.name, 0, count, count, self._labels(rule.violations) if count else []))

    def _labels(self, select) -> list[str]:
        parts = {"select": select, "limit": sql.Literal(self.sample_size)}
        return [row["label"] for row in self.database.rows(compose("SELECT v.label FROM ({select}) AS v ORDER BY 1 LIMIT {limit}", parts))]

    def _totals(self, rules: Rules) -> None:
        counted = self.database.row(rules.totals())

        def born(name: str) -> int:
            return self.comparisons[name].born_after if name in self.comparisons else 0

        for name, expected, actual in (
            ("users", counted["identities"] + counted["guests"] + born("users"), counted["users"]),
            (
                "role_assignments",
                counted["owner_identities"] + counted["customer_identities"] + counted["guests"] + born("role_assignments"),
                counted["user_role_assignments"],
            ),
            ("ownerships", counted["owned_studios"] + born("ownerships"), counted["studio_ownership"]),
            ("bookings", counted["bookings"] + born("bookings"), counted["new_bookings"] + counted["quarantine"]),
            ("quarantine", counted["unresolvable"], counted["quarantine"]),
            ("accounts", counted["accounts"] - counted["accounts_not_carried"] + born("accounts"), counted["new_accounts"]),
            ("sessions", counted["sessions"] - counted["sessions_not_carried"] + born("sessions"), counted["new_sessions"]),
            ("favourites", counted["_CustomerFavorites"] - counted["shared_favourites"] + born("favourites"), counted["_UserFavorites"]),
            ("identity_map", counted["studio_owners"] + counted["customers"] + counted["guests"], counted["identity_map"]),
        ):
            difference = abs(expected - actual)
            self.result.checks.append(Check(f"total_{name}", expected, actual, difference))
        self.result.totals.update(
            owners=counted["studio_owners"], customers=counted["customers"], identities=counted["identities"],
            joined_identities=counted["joined_identities"], guests=counted["guests"], users=counted["users"],
            role_assignments=counted["user_role_assignments"], ownerships=counted["studio_ownership"], bookings=counted["new_bookings"],
            quarantined=counted["quarantine"], favourites=counted["_UserFavorites"], accounts=counted["new_accounts"],
            accounts_not_carried=counted["accounts_not_carried"], sessions=counted["new_sessions"],
            sessions_not_carried=counted["sessions_not_carried"],
        )
        if self.cutover_at is not None:
            self.result.totals["born_after_cutover"] = sum(found.born_after for found in self.comparisons.values())
            self.result.totals["changed_since_cutover"] = sum(found.changed_since for found in self.comparisons.values())


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
    return _Verifier(database, schema, policies, sample_size, mask_pii, None).run(finished=False, mapping=None)


def verify_database(
    database: Database,
    schema: str = "public",
    mapping: dict | None = None,
    policies: Policies | None = None,
    sample_size: int = 5,
    mask_pii: bool = True,
    cutover_at: str | None = None,
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

    Returns:
        The verification, passed or not.

    Raises:
        UnifiedUserError: tables or columns are missing, or the mapping or the time cannot be read.
    """
    names = parse_mapping(mapping)
    with database.transaction("ISOLATION LEVEL REPEATABLE READ, READ ONLY"):
        for name, value in _SETTINGS.items():
            database.value("SELECT set_config(%s, %s, true)", (name, value))
        resolved = read_schema(database, schema, names)
        resolved.require()
        moment = _read_moment(database, cutover_at)
        return _Verifier(database, resolved, policies or Policies(), sample_size, mask_pii, moment).run(finished=True, mapping=mapping or {})


def _read_moment(database: Database, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return database.value("SELECT to_char(%s::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS')", (text,))
    except psycopg2.DataError as error:
        raise UnifiedUserError(
            "read cutover_at", describe(error), "Write it in UTC as in 2026-01-31 04:00:00"
        ) from error
