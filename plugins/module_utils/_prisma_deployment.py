# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Applying Prisma's migrations: each with its record in one transaction, under the lock that the Prisma CLI takes."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal, _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import (
    Database,
    describe,
    psycopg2,
    sql,
    with_lock_retries,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma import (
    Diagnosis,
    Migration,
    Options,
    and_more,
    diagnose,
    read_definitions,
    read_migrations,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma_objects import find_remains
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql_script import Statement

#: The key of Prisma Migrate's advisory lock: whoever applies migrations holds it.
ADVISORY_LOCK = 72707369

_CREATE_HISTORY = """
CREATE TABLE {history} (
    id                  VARCHAR(36) PRIMARY KEY NOT NULL,
    checksum            VARCHAR(64) NOT NULL,
    finished_at         TIMESTAMPTZ,
    migration_name      VARCHAR(255) NOT NULL,
    logs                TEXT,
    rolled_back_at      TIMESTAMPTZ,
    started_at          TIMESTAMPTZ NOT NULL DEFAULT now(),
    applied_steps_count INTEGER NOT NULL DEFAULT 0
)
"""

_SESSIONS = """
SELECT a.pid, coalesce(nullif(a.application_name, ''), a.backend_type, 'unknown') AS application, coalesce(a.state, 'active') AS state,
       coalesce(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.state_change))::int, 0) AS age
FROM pg_catalog.pg_stat_activity AS a
WHERE {condition}
ORDER BY a.xact_start, a.pid
"""

_HOLDS_ADVISORY_LOCK = """
a.pid IN (SELECT l.pid FROM pg_catalog.pg_locks AS l
          WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.classid = 0 AND l.objid = %s
            AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
"""

#: What stands between quotation marks, straight, German, French or English ones.
_QUOTED = re.compile(r"[\"\u201e\u201c\u00ab\u201a\u2018].*[\"\u201c\u201d\u00bb\u2019]")


@dataclass
class Deployment:
    """Applies what is pending.

    Args:
        database: the session that applies.
        options: how.
        connect: opens a second session, which watches whom the first one waits for.
    """

    database: Database
    options: Options
    connect: Callable[[], Database]
    applied: list[str] = field(default_factory=list)

    def plan(self) -> Diagnosis:
        """Check all that can be known beforehand, with SELECTs alone.

        Raises:
            UnifiedUserError: the migrations cannot be read or applied, or the database refuses them.
        """
        diagnosis = examine(self.database, self.options)
        diagnosis.refuse(self.options)
        for migration in diagnosis.pending:
            migration.statements()
        return diagnosis

    def run(self) -> Diagnosis:
        """Apply every pending migration, each with its record in one transaction, under Prisma's lock.

        Returns:
            How the database stood before.

        Raises:
            UnifiedUserError: as ``plan``; another deploy holds the lock; a statement failed; a lock was not to be had. What was
                applied before stays and is in the error's details.
        """
        with advisory_lock(self.database, self.options.advisory_lock_seconds):
            diagnosis = self.plan()
            if diagnosis.pending:
                try:
                    self._apply_all(diagnosis)
                except UnifiedUserError as error:
                    error.details.update(applied=self.applied, changed=bool(self.applied))
                    raise
        return diagnosis

    def _apply_all(self, diagnosis: Diagnosis) -> None:
        with contextlib.closing(_Watch(self.connect(), self.database.connection.info.backend_pid)) as watch:
            for migration in diagnosis.pending:
                has_history = diagnosis.has_history or bool(self.applied)
                with_lock_retries(
                    lambda migration=migration, has_history=has_history: self._apply(migration, has_history),
                    f"apply migration {migration.name}",
                    self.database,
                    watch.blockers,
                    self.options.lock_retry_seconds,
                )
                self.applied.append(migration.name)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """One transaction, undone soon after our death, and without a trace in the session's settings."""
        try:
            with self.database.transaction():
                settings = {
                    "lock_timeout": f"{self.options.lock_timeout}ms",
                    # Scripts are split and written for this; a database may have another default.
                    "standard_conforming_strings": "on",
                    # Without it the server would finish an hour's statement for a client that was killed.
                    "client_connection_check_interval": "1s",
                }
                for name, value in settings.items():
                    self.database.execute("SELECT set_config(name, %s, true) FROM pg_catalog.pg_settings WHERE name = %s", (value, name))
                yield
        finally:
            # A script may have left settings to the session with SET. A lost connection reports itself elsewhere.
            with contextlib.suppress(psycopg2.Error):
                self.database.execute("RESET ALL")

    def _apply(self, migration: Migration, has_history: bool) -> None:
        with self._transaction():
            started = self.database.value("SELECT clock_timestamp()")
            if not has_history:
                create_history(self.database, self.options)
            before = self._definitions()
            self.database.execute(sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(self.options.schema)))
            self._run_script(migration)
            self._require_additions_only(migration, before)
            self._record(migration, started)

    def _record(self, migration: Migration, started: Any) -> None:
        # A percent sign in the schema's name would be taken for a placeholder.
        history = sql.SQL(self.options.history.as_string(self.database.connection).replace("%", "%%"))
        self.database.execute(
            sql.SQL(
                "INSERT INTO {} (id, checksum, migration_name, started_at, finished_at, applied_steps_count)"
                " VALUES (%s, %s, %s, date_trunc('milliseconds', %s), date_trunc('milliseconds', clock_timestamp()), 1)"
            ).format(history),
            (str(uuid.uuid4()), migration.checksum, migration.name, started),
        )

    def _run_script(self, migration: Migration) -> None:
        statements = migration.statements()
        # The script itself is in the release; its text may hold what belongs into no output.
        self.database.executed_queries.append(f"-- {migration.name}/migration.sql: {len(statements)} statements")
        for statement in statements:
            try:
                with contextlib.closing(self.database.connection.cursor()) as cursor:
                    cursor.execute(statement.text)
            except psycopg2.Error as error:
                if error.pgcode in (psycopg2.errorcodes.LOCK_NOT_AVAILABLE, psycopg2.errorcodes.DEADLOCK_DETECTED):
                    raise
                raise UnifiedUserError(
                    f"apply migration {migration.name}",
                    f"statement {statement.number} ({statement.kind}, line {_line(statement, error)}) failed: {explain(error)}",
                    "Nothing of this migration was kept. Correct the migration or what it met in the database, then run the same command again",
                    failed_statement={"migration": migration.name, "statement": statement.number, "line": _line(statement, error), "sqlstate": error.pgcode},
                ) from error

    def _definitions(self) -> dict[tuple[str, str], str]:
        """What the tables that the data migration reads are made of; nothing where it is over or not this migration's matter."""
        if self.options.unified_model is None or _journal.describe(self.database)["finished"]:
            return {}
        tables = [self.options.unified_model.table(name) for name in _mapping.SOURCES]
        return read_definitions(self.database, self.options.schema, tables, chosen=True)

    def _require_additions_only(self, migration: Migration, before: dict[tuple[str, str], str]) -> None:
        """From the migration on that brings the unified tables, the tables to be read must stay as they are (the contract, section 1)."""
        if not before or missing_tables(self.database, self.options):
            return
        after = self._definitions()
        tables = {table for table, _part in before}
        changed = sorted(
            f"{part} of {table}" for table, part in before.keys() | after.keys() if table in tables and before.get((table, part)) != after.get((table, part))
        )
        if changed:
            raise UnifiedUserError(
                f"apply migration {migration.name}",
                f"it changes what the data migration reads: {', '.join(changed[:5])}{_more_parts(changed)}",
                "Nothing of it was kept. Deploy a release whose migrations only add the unified tables, and this one after the data is migrated",
                changed_parts=changed,
            )


def _more_parts(parts: list[str]) -> str:
    return f" and {len(parts) - 5} more" if len(parts) > 5 else ""


def missing_tables(database: Database, options: Options) -> list[str]:
    """Return the names of the unified tables that the data migration fills and that are not there."""
    if options.unified_model is None:
        return []
    names = [options.unified_model.table(name) for name in _mapping.FILLED]
    return [
        row["name"]
        for row in database.rows("SELECT name FROM unnest(%s) AS name WHERE to_regclass(format('%%I.%%I', %s, name)) IS NULL", (names, options.schema))
    ]


def explain(error) -> str:
    """Say why a statement failed in PostgreSQL's words, without the values that some of them repeat."""
    code = error.pgcode or ""
    # The source's name is the same in every language of the messages.
    if error.diag.source_function in ("exec_stmt_raise", "exec_stmt_assert"):
        return f"it raised an exception of its own, whose text is in the server's log ({code})"
    message = describe(error)
    # Data exceptions quote the value that was wrong, each language in its own marks.
    return _QUOTED.sub('"..."', message) if code.startswith("22") else message


def _line(statement: Statement, error) -> int:
    """The line that the server points at, else the one that the statement begins in."""
    position = error.diag.statement_position
    return statement.line + (statement.text.count("\n", 0, int(position)) if position else 0)


def _sessions(database: Database, condition: str, parameters: tuple) -> list[str]:
    """Describe sessions: process id, application, state and age, oldest first; never their queries."""
    rows = database.rows(_SESSIONS.replace("{condition}", condition), parameters)
    return [f"pid {row['pid']} ({row['application']}, {row['state']} for {row['age']} s)" for row in rows]


def create_history(database: Database, options: Options) -> None:
    """Create the history table, and its schema where it is missing."""
    # Only where it is missing: IF NOT EXISTS, too, asks for the privilege to create schemas.
    if database.value("SELECT to_regnamespace(%s) IS NULL", (sql.Identifier(options.schema).as_string(database.connection),)):
        database.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(options.schema)))
    database.execute(sql.SQL(_CREATE_HISTORY).format(history=options.history))


def lock_holders(database: Database) -> list[str]:
    """Describe the sessions that hold Prisma's lock."""
    return _sessions(database, _HOLDS_ADVISORY_LOCK, (ADVISORY_LOCK,))


@contextlib.contextmanager
def advisory_lock(database: Database, seconds: float) -> Iterator[None]:
    """Hold Prisma's lock in the block.

    Args:
        database: the session that holds it.
        seconds: how long to wait for it, in seconds.

    Raises:
        UnifiedUserError: another deployment holds it; names its sessions.
    """
    try:
        with database.transaction():
            database.execute("SELECT set_config('lock_timeout', %s, true)", (f"{int(seconds * 1000)}ms",))
            # Taken for the session, so it outlives this transaction.
            database.execute("SELECT pg_advisory_lock(%s)", (ADVISORY_LOCK,))
    except psycopg2.Error as error:
        if error.pgcode != psycopg2.errorcodes.LOCK_NOT_AVAILABLE:
            raise
        holders = lock_holders(database)
        raise UnifiedUserError(
            "start the deployment of migrations",
            f"another deployment holds Prisma's lock for more than {seconds:g} s: {'; '.join(holders) or 'it has just ended'}",
            "Wait for it to end; if its client is gone, end the session with pg_terminate_backend(pid), then run the same command again",
            blockers=holders,
        ) from error
    try:
        yield
    finally:
        # A lost connection has given the lock back already.
        with contextlib.suppress(psycopg2.Error):
            database.value("SELECT pg_advisory_unlock(%s)", (ADVISORY_LOCK,))


class _Watch:
    """Looks, from a session of its own, whom another session waits for: afterwards it is too late to ask.

    Args:
        database: the watching session; closed with the watch.
        process_id: the backend that is watched.
    """

    def __init__(self, database: Database, process_id: int) -> None:
        self._database = database
        self._process_id = process_id
        self._seen: list[str] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch for blocking sessions", daemon=True)
        self._thread.start()

    def _look(self) -> None:
        # A watch whose session is lost has nothing more to say; the watched one reports its own errors.
        with contextlib.suppress(psycopg2.Error):
            while not self._end.wait(0.2):
                seen = _sessions(self._database, "a.pid = ANY (pg_catalog.pg_blocking_pids(%s))", (self._process_id,))
                self._seen = seen or self._seen

    def blockers(self) -> list[str]:
        """Return the sessions seen in the way last, and forget them."""
        seen, self._seen = self._seen, []
        return seen

    def close(self) -> None:
        """Stop looking and close the session."""
        self._end.set()
        self._thread.join()
        self._database.close()


def examine(database: Database, options: Options) -> Diagnosis:
    """Compare a database with a release, and look how much of the failed migrations is there. Reads only.

    Raises:
        UnifiedUserError: the migrations cannot be read.
    """
    migrations = read_migrations(options.path)
    diagnosis = diagnose(database, options, migrations)
    for number, migration in enumerate(migrations):
        if migration.name in diagnosis.failed:
            diagnosis.remains[migration.name] = find_remains(database, options.schema, migration, migrations[number + 1 :]).describe()
    return diagnosis


def deploy(database: Database, options: Options, connect: Callable[[], Database], check_mode: bool) -> dict[str, Any]:
    """Apply what is pending, or say what would be applied, and return what the module returns.

    Raises:
        UnifiedUserError: as ``Deployment.run``; or the unified tables are not there afterwards.
    """
    begun = time.monotonic()
    deployment = Deployment(database, options, connect)
    diagnosis = deployment.plan() if check_mode else deployment.run()
    pending = [migration.name for migration in diagnosis.pending]
    missing = [] if check_mode and pending else missing_tables(database, options)
    if missing:
        raise UnifiedUserError(
            f"deploy the unified model into schema {options.schema}",
            f"no migration in {options.path} makes table {missing[0]}{and_more(missing)}",
            "Set path to the release that has the unified model, or unified_user_mapping to what its tables are called",
            applied=deployment.applied,
            changed=bool(deployment.applied),
        )
    after = sorted({*diagnosis.applied, *pending}, key=os.fsencode)
    return {
        "changed": bool(pending),
        "applied": deployment.applied,
        "pending": [name for name in pending if name not in deployment.applied],
        "already_applied": len(diagnosis.applied),
        "up_to_date": not pending or not check_mode,
        "duration_ms": round((time.monotonic() - begun) * 1000),
        "diff": {"before": _lines(diagnosis.applied), "after": _lines(after)},
    }


def _lines(names: list[str]) -> str:
    return "".join(f"{name}\n" for name in names)
