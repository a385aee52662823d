# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Preflight's questions about who is at work: earlier and other runs, sessions, transactions, prepared transactions."""

from __future__ import annotations

from typing import Any, Iterable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _deferral, _journal, _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._findings import BLOCKER, INFO, WARNING, Finding
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight_context import Context, Options, Probe, and_more
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma

# A table lock of one of these modes keeps neither readers nor the copy's SHARE ROW EXCLUSIVE waiting.
_HARMLESS_LOCKS = ["AccessShareLock", "RowShareLock"]

_LONG = """
SELECT a.pid, coalesce(nullif(a.application_name, ''), a.backend_type) AS application, coalesce(a.state, 'active') AS state,
       extract(epoch FROM clock_timestamp() - a.xact_start)::int AS age,
       ARRAY(SELECT DISTINCT c.relname::text FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
             WHERE l.pid = a.pid AND l.granted AND l.mode <> ALL (%(harmless)s) AND c.relname = ANY (%(tables)s)
               AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s) ORDER BY 1) AS locked
FROM pg_stat_activity AS a
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
  AND clock_timestamp() - a.xact_start > make_interval(secs => %(seconds)s)
ORDER BY a.xact_start
"""

_PREPARED = """
SELECT p.gid, p.owner::text AS owner, extract(epoch FROM clock_timestamp() - p.prepared)::int AS age,
       ARRAY(SELECT DISTINCT c.relname::text FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
             JOIN pg_locks AS own ON own.virtualtransaction = l.virtualtransaction AND own.pid IS NULL
             WHERE l.pid IS NULL AND own.transactionid = p.transaction AND l.mode <> ALL (%(harmless)s) AND c.relname = ANY (%(tables)s)
               AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s) ORDER BY 1) AS locked
FROM pg_prepared_xacts AS p
WHERE p.database = current_database()
ORDER BY p.prepared
"""

_SESSIONS = """
SELECT coalesce(nullif(application_name, ''), 'unnamed') AS application, usename::text AS role, coalesce(state, 'hidden') AS state,
       count(*) AS sessions
FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename IS NOT NULL
  AND coalesce(backend_type, 'client backend') = 'client backend'
GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3
"""


def read_run(database: Database) -> tuple[dict[str, Any] | None, frozenset]:
    """Return the journal's current run, or None, and the names of what an interrupted run has taken down."""
    if not _journal.exists(database):
        return None, frozenset()
    down = frozenset(item["name"] for item in _deferral.recorded(database))
    return _journal.current_run(database), down


def is_finished(run: dict[str, Any] | None) -> bool:
    """Whether the journal knows a finished run: then nothing will be copied any more."""
    return bool(run) and run["state"] == "finished"


def judge_finished_run(run: dict[str, Any], options: Options) -> list[Finding]:
    """Say that the data has been migrated, and whether the settings are those that it was migrated with.

    Args:
        run: the journal's finished run.
        options: of this look.
    """
    found = [Finding(
        "already_migrated", INFO, 1, f"this database was migrated by run {run['id']}, finished at {run['finished_at']:%Y-%m-%d %H:%M:%S %Z}",
        "Nothing is left to copy: ansible-playbook verify.yml proves it again, ansible-playbook rollback.yml takes it back",
    )]
    return [*found, *_changed_settings(run, options, "the finished migration was made with other settings")]


def _changed_settings(run: dict[str, Any], options: Options, detail: str) -> Iterable[Finding]:
    changed = _journal.changed_settings(run, _journal.settings_of(options.schema, options.policies, options.mapping))
    if changed:
        yield Finding(
            "settings_changed", BLOCKER, len(changed), detail,
            "Set " + ", ".join(f"unified_user_{name}" for name in changed) + " as they were, or ansible-playbook rollback.yml -e rollback_mode=abort",
            changed[: options.sample_size],
        )


def _runs(context: Context) -> Iterable[Finding]:
    """Another run that holds the lock, one that was interrupted, and a schema of the journal's name that is not ours."""
    row = context.database.row(
        "SELECT n.oid IS NOT NULL AS schema, to_regclass('unified_user_journal.run') IS NOT NULL AS journal"
        " FROM (VALUES (%s)) AS v (name) LEFT JOIN pg_namespace AS n ON n.nspname = v.name", (_journal.SCHEMA,)
    )
    if row["schema"] and not row["journal"]:
        yield Finding("journal_schema_taken", BLOCKER, 1, f"there is a schema {_journal.SCHEMA} that this collection did not make",
                      f"ALTER SCHEMA {_journal.SCHEMA} RENAME TO {_journal.SCHEMA}_old", [_journal.SCHEMA])
    holders = context.database.rows(
        "SELECT a.pid, coalesce(nullif(a.application_name, ''), a.backend_type) AS application, a.backend_start::timestamptz(0)::text AS since"
        " FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND l.classid = (%(key)s::bigint >> 32)::oid AND l.objid = (%(key)s::bigint & 4294967295)::oid", {"key": _journal.LOCK_KEY}
    )
    yield from context.found(
        "run_under_way", BLOCKER, [f"pid {row['pid']} ({row['application']}, since {row['since']})" for row in holders],
        "another run holds the migration lock",
        "Wait for it; if its client is gone, " + and_more([f"SELECT pg_terminate_backend({row['pid']})" for row in holders]),
    )
    if holders:
        return
    if context.run:
        yield Finding("run_interrupted", INFO, 1, f"run {context.run['id']} was interrupted; the next run goes on with it",
                      "ansible-playbook migrate.yml goes on, ansible-playbook rollback.yml -e rollback_mode=abort takes it back")
        yield from _changed_settings(context.run, context.options, "the interrupted migration was begun with other settings")
    yield from context.found(
        "taken_down", INFO, sorted(context.taken_down), "indexes and foreign keys that an interrupted run took down; the next run puts them back",
        "ansible-playbook migrate.yml goes on, ansible-playbook rollback.yml -e rollback_mode=abort puts them back",
    )


def _sessions(context: Context) -> Iterable[Finding]:
    rows = context.database.rows(_SESSIONS)
    hidden = sum(row["sessions"] for row in rows if row["state"] == "hidden")
    if hidden:
        yield Finding("sessions_hidden", WARNING, hidden, "sessions whose state and transactions this role may not see",
                      f"GRANT pg_read_all_stats TO {context.quoted(context.server['role'])}",
                      [f"{row['role']}: {row['sessions']}" for row in rows if row["state"] == "hidden"][: context.options.sample_size])
    if rows:
        yield Finding("sessions", INFO, sum(row["sessions"] for row in rows), "other sessions in this database; their writes wait while the copy runs",
                      "Choose a quiet time, or stop the application for the copy: pm2 stop <process>",
                      [f"{row['application']} as {row['role']}: {row['sessions']} {row['state']}" for row in rows][: context.options.sample_size])


def _long_transactions(context: Context) -> Iterable[Finding]:
    rows = context.database.rows(
        _LONG, {**context.scope(), "harmless": _HARMLESS_LOCKS, "seconds": context.options.max_transaction_seconds}
    )
    yield from context.found(
        "long_transactions", WARNING,
        [f"pid {row['pid']} ({row['application']}, {row['state']}, {row['age']} s{_held(row['locked'])})" for row in rows],
        f"transactions open for more than {context.options.max_transaction_seconds:g} s; the copy waits for those that lock its tables, and gives up",
        "Let them finish, or " + and_more([f"SELECT pg_terminate_backend({row['pid']})" for row in rows]),
    )


def _prepared_transactions(context: Context) -> Iterable[Finding]:
    rows = context.database.rows(_PREPARED, {**context.scope(), "harmless": _HARMLESS_LOCKS})
    for name, severity, chosen, detail in (
        ("prepared_transactions_locking", BLOCKER, [row for row in rows if row["locked"]],
         "prepared transactions that lock tables of the migration and end only when somebody ends them"),
        ("prepared_transactions", WARNING, [row for row in rows if not row["locked"]],
         "prepared transactions that nobody has ended; they hold back VACUUM"),
    ):
        yield from context.found(
            name, severity, [f"{row['gid']} (of {row['owner']}, {row['age']} s{_held(row['locked'])})" for row in chosen], detail,
            "COMMIT PREPARED or ROLLBACK PREPARED each of SELECT gid FROM pg_prepared_xacts, as its transaction manager would",
        )


def _held(tables: list[str]) -> str:
    return f", locks {', '.join(tables)}" if tables else ""


def _rows_of_nobody(context: Context) -> Iterable[Finding]:
    """Rows in unified tables that were there before any run of ours: one that was interrupted, or the sync it has turned on, may have made some."""
    present = [name for name in _mapping.UNIFIED_TABLES if context.schema[name].exists]
    if not present:
        return
    counts = context.database.row(context.schema.compose("SELECT {counts}", counts=comma(
        context.schema.compose("(SELECT count(*) FROM {unified}) AS {name}", unified=name, name=sql.Identifier(name)) for name in present
    )))
    for name, severity, beside, detail in (
        ("rows_of_nobody", BLOCKER, False, "unified tables hold rows that no run of this collection made"),
        ("rows_before_start", WARNING, True, "tables that should start empty hold rows; taking the migration back would remove them"),
    ):
        # Children before their parents, so that the statements of the hint work in the order they stand in.
        filled = [table for table in reversed(present) if counts[table] and _mapping.TABLES[table].starts_empty == beside and (beside or not context.run)]
        emptying = [context.statement("DELETE FROM {}", (context.schema.name, context.schema[table].name)) for table in filled]
        yield from context.found(
            name, severity, [f"{context.schema[table].name}: {counts[table]}" for table in filled], detail,
            "Look where they come from. To empty them: " + and_more(emptying),
        )


PROBES = (
    Probe("other runs of the migration", _runs),
    Probe("other sessions", _sessions, WARNING),
    Probe("long transactions", _long_transactions, WARNING),
    Probe("prepared transactions", _prepared_transactions),
    Probe("rows in the unified tables", _rows_of_nobody),
)
