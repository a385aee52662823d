# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Preflight: everything that could stop or spoil the migration, found before anything is touched. It only reads."""

from __future__ import annotations

import time
from typing import Any, Iterable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import (
    _preflight_activity,
    _preflight_constraints,
    _preflight_privileges,
    _preflight_resources,
    _preflight_server,
    _preflight_tables,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema, read_schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, connect, describe, psycopg2, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._findings import BLOCKER, SEVERITIES, DataFindings, Finding, blocked
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import TABLES, parse_mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight_context import Context, Options, Probe
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._projection import Projection

_SETTINGS = [
    "autovacuum", "data_directory", "default_transaction_read_only", "idle_in_transaction_session_timeout", "max_connections",
    "max_locks_per_transaction", "max_prepared_transactions", "reserved_connections", "session_replication_role", "statement_timeout",
    "superuser_reserved_connections", "synchronous_commit", "synchronous_standby_names", "track_counts", "transaction_timeout",
]


def _rows(context: Context) -> Iterable[Finding]:
    """Ask the rows themselves (the contract, sections 1 to 3), once their tables and columns are known."""
    unified_pending = _preflight_tables.unified_is_missing(context)
    unreadable = [
        problem for problem in context.schema.problems
        if problem.severity == BLOCKER and not (unified_pending and not problem.column and context.is_unified(problem.table))
    ]
    if unreadable:
        yield Finding("rows_not_asked", BLOCKER, len(unreadable), "the rows were not looked at, because tables or columns are missing",
                      "Set unified_user_mapping or unified_user_schema, or run the role schema_deploy, then run preflight again")
        return
    projection = Projection(context.schema, context.options.policies, sql.SQL("now()"))
    yield from DataFindings(context.database, projection, context.options.sample_size, context.options.mask_pii).collect()


PROBES: tuple[Probe, ...] = (
    *_preflight_server.PROBES,
    *_preflight_activity.PROBES,
    *_preflight_tables.PROBES,
    *_preflight_constraints.PROBES,
    *_preflight_privileges.PROBES,
    Probe("the rows of the legacy tables", _rows),
    *_preflight_resources.PROBES,
)


class Preflight:
    """One preflight of one database.

    Args:
        parameters: module parameters: connection options and those of `Options`.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.parameters = parameters
        self.options = Options.from_parameters(parameters)
        self.names = parse_mapping(self.options.mapping)

    def run(self) -> dict[str, Any]:
        """Look, and return what was found.

        Returns:
            ``findings`` (blockers first), ``blocked``, ``estimates``, ``server``, ``duration_ms``, ``executed_queries``.

        Raises:
            UnifiedUserError: the database cannot be reached, or the mapping is wrong.
        """
        started = time.monotonic()
        database = connect(self.parameters)
        try:
            server = _preflight_server.server_facts(database, self.parameters)
            with database.transaction("ISOLATION LEVEL REPEATABLE READ, READ ONLY"):
                context = self._prepare(database, server)
                findings = self._look(context)
        finally:
            database.close()
        findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
        return {
            "changed": False,
            "blocked": blocked(findings),
            "findings": [finding.as_dict() for finding in findings],
            "estimates": {"rows": None, "bytes": None, "seconds": None, "tables": {}, "bytes_for": {}, **context.estimates},
            "server": context.server,
            "duration_ms": round((time.monotonic() - started) * 1000),
            "executed_queries": database.executed_queries,
        }

    def _prepare(self, database: Database, server: dict[str, Any]) -> Context:
        # A table that somebody else has locked must not keep preflight waiting.
        database.value("SELECT set_config('lock_timeout', %s, true)", (f"{self.options.lock_timeout}ms",))
        database.execute(
            "SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN ('statement_timeout', 'transaction_timeout')"
        )
        # The defaults of sessions like this one, not what the lines above have set.
        settings = database.rows("SELECT name, reset_val FROM pg_settings WHERE name = ANY (%s)", (_SETTINGS,))
        schema = self._read_schema(database)
        return Context(database, self.options, server, {row["name"]: row["reset_val"] for row in settings}, schema)

    def _read_schema(self, database: Database) -> Schema:
        database.execute("SAVEPOINT catalogue")
        try:
            return read_schema(database, self.options.schema, self.names)
        except psycopg2.errors.LockNotAvailable as error:
            database.execute("ROLLBACK TO SAVEPOINT catalogue")
            tables = [sql.Identifier(self.options.schema, self.names.table(name)).as_string(database.connection) for name in TABLES]
            holders = database.lock_holders(tables)
            raise UnifiedUserError(
                f"read the columns of schema {self.options.schema}", f"another session has a table locked: {'; '.join(holders)}",
                "Let that session finish or end it with pg_terminate_backend(pid), then run preflight again", blockers=holders,
            ) from error

    def _look(self, context: Context) -> list[Finding]:
        def read_run(context: Context) -> list[Finding]:
            context.run, context.taken_down = _preflight_activity.read_run(context.database)
            return []

        findings = self._ask(context, Probe("the journal", read_run))
        if _preflight_activity.is_finished(context.run):
            return findings + _preflight_activity.judge_finished_run(context.run, context.options)
        for probe in PROBES:
            findings += self._ask(context, probe)
        return findings

    def _ask(self, context: Context, probe: Probe) -> list[Finding]:
        """Ask one question in a savepoint. One that cannot be answered is a finding: what could not be seen has not passed."""
        database = context.database
        database.execute("SAVEPOINT probe")
        try:
            found = list(probe.look(context))
        except psycopg2.Error as error:
            if database.connection.closed:
                raise
            database.execute("ROLLBACK TO SAVEPOINT probe")
            found = [self._blind(context, probe, error)]
        database.execute("RELEASE SAVEPOINT probe")
        return found

    def _blind(self, context: Context, probe: Probe, error) -> Finding:
        cause, hint, holders = describe(error), "Put the cause right and run preflight again", []
        if error.pgcode == psycopg2.errorcodes.LOCK_NOT_AVAILABLE:
            tables = [context.table(relation.name) for relation in context.relations()]
            holders = context.database.lock_holders(tables)
            cause = "another session has a table locked"
            hint = "Let that session finish, or SELECT pg_terminate_backend(pid), then run preflight again"
        elif error.pgcode == psycopg2.errorcodes.INSUFFICIENT_PRIVILEGE:
            hint = "Run the GRANT that the finding privilege_… names, or set unified_user_session_role to the owner of the tables"
        return Finding("probe_failed", probe.if_blind, 1, f"could not look at {probe.subject}: {cause}", hint, holders)


def run_preflight(parameters: dict[str, Any]) -> dict[str, Any]:
    """Look at a database before its migration.

    Args:
        parameters: module parameters, with ``fail_on_blocker``.

    Returns:
        See `Preflight.run`.

    Raises:
        UnifiedUserError: as `Preflight.run`, and for blockers if ``fail_on_blocker`` is set; carries the whole result.
    """
    result = Preflight(parameters).run()
    if result["blocked"] and parameters["fail_on_blocker"]:
        blockers = [finding for finding in result["findings"] if finding["severity"] == BLOCKER]
        raise UnifiedUserError(
            "pass preflight",
            "; ".join(f"{finding['detail']} ({finding['count']})" for finding in blockers),
            " ".join(dict.fromkeys(finding["hint"].rstrip(".") + "." for finding in blockers)),
            **result,
        )
    return result
