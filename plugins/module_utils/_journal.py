# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The journal: what the migration remembers in the database, in a schema of its own."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import asdict
from typing import Any, Iterator

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import compose

SCHEMA = "unified_user_journal"

#: What the lock row of a studio begins with, before its id; no key of a person does.
STUDIO_LOCK = "\x01studio "

#: Key of the session-level advisory lock that keeps two runs apart; chosen once, by chance.
LOCK_KEY = 5077220411

# Text columns keep the default collation: comparisons with application columns then find their indexes. The map's own begins
# with what tells rows apart: no plan should find half of them by their table.
_TABLES = """
CREATE SCHEMA IF NOT EXISTS unified_user_journal;
CREATE TABLE IF NOT EXISTS unified_user_journal.run (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    strategy text NOT NULL,
    application_schema text NOT NULL,
    policies jsonb NOT NULL,
    mapping jsonb NOT NULL,
    state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'finished', 'aborted')),
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at timestamptz,
    summary jsonb
);
CREATE UNIQUE INDEX IF NOT EXISTS run_current ON unified_user_journal.run ((true)) WHERE state <> 'aborted';
CREATE TABLE IF NOT EXISTS unified_user_journal.identity_map (
    source_table text NOT NULL,
    source_id text NOT NULL,
    user_id text NOT NULL,
    identity_key text NOT NULL,
    made boolean NOT NULL DEFAULT false,
    native boolean NOT NULL DEFAULT false,
    parted boolean NOT NULL DEFAULT false,
    CONSTRAINT identity_map_pkey PRIMARY KEY (source_id, source_table)
);
CREATE TABLE IF NOT EXISTS unified_user_journal.quarantine (
    source_table text NOT NULL,
    source_id text NOT NULL,
    reason text NOT NULL,
    "row" jsonb NOT NULL,
    identity_key text,
    CONSTRAINT quarantine_pkey PRIMARY KEY (source_table, source_id)
);
CREATE TABLE IF NOT EXISTS unified_user_journal.identity_lock (
    identity_key text PRIMARY KEY,
    generation bigint NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE IF NOT EXISTS unified_user_journal.divergence (
    user_id text PRIMARY KEY,
    projection jsonb NOT NULL
);
CREATE TABLE IF NOT EXISTS unified_user_journal.pinned_booking (
    booking_id text PRIMARY KEY,
    user_id text NOT NULL
);
CREATE TABLE IF NOT EXISTS unified_user_journal.sync (
    direction text NOT NULL CHECK (direction IN ('forward', 'reverse', 'both')),
    settings jsonb NOT NULL,
    triggers text[] NOT NULL,
    definition text NOT NULL,
    since timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS unified_user_journal.runner (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    owner text NOT NULL,
    client text NOT NULL,
    pid integer NOT NULL,
    phase text NOT NULL DEFAULT 'start',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    rows_done bigint NOT NULL DEFAULT 0,
    rows_total bigint NOT NULL DEFAULT 0,
    rows_per_second double precision NOT NULL DEFAULT 0,
    waiting_for text,
    request text CHECK (request IN ('pause', 'abort')),
    last_error text,
    repair boolean NOT NULL DEFAULT false,
    between_slices boolean NOT NULL DEFAULT false,
    ended boolean NOT NULL DEFAULT false
);
CREATE TABLE IF NOT EXISTS unified_user_journal.backfill (
    slice integer PRIMARY KEY,
    after text,
    upto text,
    rows bigint NOT NULL DEFAULT 0,
    skipped bigint NOT NULL DEFAULT 0,
    done boolean NOT NULL DEFAULT false
);
CREATE TABLE IF NOT EXISTS unified_user_journal.taken_down (
    position integer PRIMARY KEY,
    table_name text NOT NULL,
    name text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('constraint', 'index')),
    definition text NOT NULL
);
CREATE TABLE IF NOT EXISTS unified_user_journal.taken_down_catalogue (
    fingerprint jsonb NOT NULL
);
"""


_KNOWS_PARTED = """
SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass('unified_user_journal.identity_map') AND attname = 'parted' AND NOT attisdropped)
"""

_ADD_PARTED = "ALTER TABLE unified_user_journal.identity_map ADD COLUMN parted boolean NOT NULL DEFAULT false"


def exists(database: Database) -> bool:
    """Return whether this database has a journal."""
    return database.value("SELECT to_regclass(%s) IS NOT NULL", ("unified_user_journal.run",))


def create(database: Database) -> None:
    """Create what the journal lacks. Repeatable."""
    database.execute(_TABLES)
    # Asked first: adding a column locks the map, which every write of the application reads.
    if not knows_parted(database):
        database.execute(_ADD_PARTED)


def knows_parted(database: Database) -> bool:
    """Return whether the map says who parted; that of an earlier version does not until ``create``."""
    return database.value(_KNOWS_PARTED)


def drop(database: Database) -> None:
    """Drop the journal with everything in it."""
    database.execute("DROP SCHEMA IF EXISTS unified_user_journal CASCADE")


def current_run(database: Database) -> dict[str, Any] | None:
    """Return the run that is under way or finished, or None. Aborted runs are history.

    Returns:
        A dict with ``id, strategy, application_schema, policies, mapping, state, started_at, finished_at, summary``.
    """
    if not exists(database):
        return None
    return database.row("SELECT * FROM unified_user_journal.run WHERE state <> 'aborted'")


def settings_of(schema: str, policies: Policies, mapping: dict | None) -> dict[str, Any]:
    """Return what decides which rows a run makes, by name: schema, mapping and every policy."""
    return {"schema": schema, "mapping": mapping or {}, **asdict(policies)}


def run_settings(run: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a run was made with, as `settings_of`."""
    return {"schema": run["application_schema"], "mapping": run["mapping"], **run["policies"]}


def changed_settings(run: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Name the settings that are not those of a run, sorted."""
    theirs = run_settings(run)
    return sorted(name for name in settings if settings[name] != theirs.get(name))


def start_run(database: Database, strategy: str, schema: str, policies: dict, mapping: dict) -> dict[str, Any]:
    """Return the current run, made when there is none. A resumed run keeps its first start."""
    run = current_run(database)
    if run:
        return run
    return database.row(
        "INSERT INTO unified_user_journal.run (strategy, application_schema, policies, mapping) VALUES (%s, %s, %s, %s) RETURNING *",
        (strategy, schema, json.dumps(policies), json.dumps(mapping)),
    )


def finish_run(database: Database, run_id: int, summary: dict) -> None:
    """Mark a run as finished, with what it did."""
    database.execute(
        "UPDATE unified_user_journal.run SET state = 'finished', finished_at = clock_timestamp(), summary = %s WHERE id = %s",
        (json.dumps(summary), run_id),
    )


def lock_holder(database: Database) -> dict[str, Any] | None:
    """Return who holds the lock that keeps two runs apart, or None.

    Returns:
        ``pid``, ``application_name``, ``since``, ``idle`` (seconds without a statement; None while one runs, or when that may not
        be seen) and ``ours`` (whether this role may end the session).
    """
    return database.row(
        "SELECT a.pid, a.application_name, a.backend_start::timestamptz(0)::text AS since,"
        " CASE WHEN a.state LIKE 'idle%%' THEN extract(epoch FROM clock_timestamp() - a.state_change)::float END AS idle,"
        " pg_has_role(a.usesysid, 'MEMBER') AS ours FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1"
        " AND (l.classid::bigint << 32) + l.objid::bigint = %s AND l.database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())",
        (LOCK_KEY,),
    )


@contextlib.contextmanager
def exclusive(database: Database, wait: float = 10.0) -> Iterator[None]:
    """Hold the lock that keeps two runs apart, for the duration of the block.

    Args:
        database: the session that will hold it.
        wait: how long to wait for another run, in seconds; a killed one's session needs a moment to notice.

    Raises:
        UnifiedUserError: another session holds it; names its process id.
    """
    deadline = time.monotonic() + wait
    while not database.value("SELECT pg_try_advisory_lock(%s)", (LOCK_KEY,)):
        if time.monotonic() > deadline:
            holder = lock_holder(database)
            who = f"pid {holder['pid']} ({holder['application_name']}, since {holder['since']})" if holder else "another session"
            raise UnifiedUserError(
                "start the run",
                f"another run holds the migration lock: {who}",
                "Wait for it to end; if its client is gone, end the session with pg_terminate_backend(pid) and run again",
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        # A lost connection has given the lock back already.
        if not database.connection.closed:
            database.value("SELECT pg_advisory_unlock(%s)", (LOCK_KEY,))


def fill_identity_map(database: Database, select) -> int:
    """Fill the empty identity map from a SELECT, its index built afterwards. Returns the number of rows."""
    database.execute("ALTER TABLE unified_user_journal.identity_map DROP CONSTRAINT identity_map_pkey")
    rows = database.execute(
        compose("INSERT INTO unified_user_journal.identity_map (source_table, source_id, user_id, identity_key) {select}", {"select": select})
    )
    database.execute("ALTER TABLE unified_user_journal.identity_map ADD CONSTRAINT identity_map_pkey PRIMARY KEY (source_id, source_table)")
    return rows


def fill_quarantine(database: Database, select) -> int:
    """Put the rows of a SELECT (source_table, source_id, reason, row) into quarantine. Returns their number."""
    return database.execute(
        compose('INSERT INTO unified_user_journal.quarantine (source_table, source_id, reason, "row") {select}', {"select": select})
    )


def count_quarantine(database: Database) -> int:
    """Return how many rows are in quarantine."""
    return database.value("SELECT count(*) FROM unified_user_journal.quarantine")


def abort_run(database: Database) -> None:
    """Forget where rows went, and make the current run history."""
    database.execute(
        "TRUNCATE unified_user_journal.identity_map, unified_user_journal.quarantine, unified_user_journal.identity_lock,"
        " unified_user_journal.divergence, unified_user_journal.pinned_booking, unified_user_journal.backfill"
    )
    database.execute("UPDATE unified_user_journal.run SET state = 'aborted', finished_at = clock_timestamp() WHERE state <> 'aborted'")
    # A run that is between two slices must not begin anew with the next one.
    database.execute("UPDATE unified_user_journal.runner SET ended = true, between_slices = false, request = 'abort'")


def describe(database: Database) -> dict[str, Any]:
    """Return what the journal knows, in values that a module can return.

    Returns:
        ``present``, ``finished``, ``run`` (as ``current_run``, times in ISO 8601) and ``taken_down``.
    """
    run = current_run(database)
    if run:
        run = {**run, **{name: run[name] and run[name].isoformat() for name in ("started_at", "finished_at")}}
    present = exists(database)
    return {
        "present": present,
        "finished": bool(run and run["state"] == "finished"),
        "run": run,
        "taken_down": database.value("SELECT count(*) FROM unified_user_journal.taken_down") if present else 0,
    }
