# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who migrates this database right now, where that is, what it waits for, and what an operator has asked of it."""

from __future__ import annotations

import time
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

#: A session that holds the migration's lock and has been idle for this long, in seconds, has lost its client.
ORPHANED_AFTER = 30.0

_STATUS = """
SELECT r.owner, r.client, r.phase, r.waiting_for, r.request, r.last_error, r.rows_done, r.rows_total, r.rows_per_second, r.ended, r.between_slices, r.repair,
       r.started_at::timestamptz(0)::text AS started_at, r.heartbeat_at::timestamptz(0)::text AS heartbeat_at,
       round(extract(epoch FROM clock_timestamp() - r.heartbeat_at))::bigint AS heartbeat_age
FROM unified_user_journal.runner AS r
"""


def aborted() -> UnifiedUserError:
    """Return the error of a run whose end an operator asked for."""
    return UnifiedUserError(
        "go on with the migration of the data", "an operator asked for its end",
        "playbooks/abort.yml empties the unified tables; then the same command begins anew",
    )


class Runner:
    """The row of the run that owns this database.

    Args:
        database: an open session outside a transaction; with a run in several slices each has its own.
        owner: what tells this run from others; the same for all slices of one.
    """

    def __init__(self, database: Database, owner: str) -> None:
        self.database = database
        self.owner = owner

    def claim(self) -> str | None:
        """Make the run ours; call it under the migration's lock.

        Returns:
            Whom it was taken over from, for a message; None when nobody had it.

        Raises:
            UnifiedUserError: another run is between two of its slices, or this one was aborted between two of its own.
        """
        other = self.database.row(_STATUS)
        if other and other["owner"] == self.owner and other["request"] == "abort":
            raise aborted()
        if other and other["owner"] != self.owner and other["between_slices"] and abs(other["heartbeat_age"]) < ORPHANED_AFTER:
            raise UnifiedUserError(
                "start the run", f"another run is under way: {other['client']}, since {other['started_at']}, in phase {other['phase']}",
                f"Let it end, or end it with playbooks/abort.yml; if its client is gone, run again in {ORPHANED_AFTER:g} s",
            )
        self.database.execute(
            "INSERT INTO unified_user_journal.runner AS r (owner, client, pid) SELECT %s, coalesce(host(inet_client_addr()) || ' ', '')"
            " || 'application ' || current_setting('application_name'), pg_backend_pid()"
            " ON CONFLICT (one) DO UPDATE SET owner = excluded.owner, client = excluded.client, pid = excluded.pid, ended = false, between_slices = false,"
            " heartbeat_at = clock_timestamp(), waiting_for = NULL, last_error = CASE WHEN r.owner = excluded.owner THEN r.last_error END,"
            " request = CASE WHEN r.owner = excluded.owner OR r.request <> 'abort' THEN r.request END,"
            " started_at = CASE WHEN r.owner = excluded.owner THEN r.started_at ELSE clock_timestamp() END",
            (self.owner,),
        )
        taken = other and other["owner"] != self.owner and not other["ended"]
        return f"{other['client']}, last seen {other['heartbeat_age']} s ago in phase {other['phase']}" if taken else None

    def enter(self, phase: str) -> None:
        """Say which phase begins."""
        self.database.execute("UPDATE unified_user_journal.runner SET phase = %s, waiting_for = NULL, heartbeat_at = clock_timestamp()", (phase,))

    def beat(self, done: int, total: int, rate: float, waiting_for: str | None) -> str | None:
        """Show a sign of life and where the run is.

        Args:
            done: rows carried so far.
            total: rows there are, an estimate.
            rate: rows per second of late.
            waiting_for: what keeps the run from going on, or None.

        Returns:
            What an operator asks for: ``pause``, ``abort`` or None.
        """
        return self.database.value(
            "UPDATE unified_user_journal.runner SET rows_done = %s, rows_total = %s, rows_per_second = %s, waiting_for = %s,"
            " heartbeat_at = clock_timestamp() RETURNING request",
            (done, total, rate, waiting_for),
        )

    def wait(self, reason: str) -> None:
        """Say what the run waits for, and that it is alive."""
        self.database.execute("UPDATE unified_user_journal.runner SET waiting_for = %s, heartbeat_at = clock_timestamp()", (reason,))

    def requested(self) -> str | None:
        """Return what an operator asks for: ``pause``, ``abort`` or None."""
        return self.database.value("SELECT request FROM unified_user_journal.runner")

    def rest(self) -> None:
        """Say that the run goes on with another slice in a moment."""
        self.database.execute("UPDATE unified_user_journal.runner SET between_slices = true, heartbeat_at = clock_timestamp()")

    def mark_for_repair(self, wanted: bool) -> None:
        """Remember across runs whether writes may have been missed, so that every identity must be looked at again."""
        self.database.execute("UPDATE unified_user_journal.runner SET repair = %s", (wanted,))

    def needs_repair(self) -> bool:
        """Return what was remembered."""
        return self.database.value("SELECT repair FROM unified_user_journal.runner")

    def end(self, error: str | None = None) -> None:
        """Let go of the run: finished, or failed with an error that ``status`` shows."""
        self.database.execute(
            "UPDATE unified_user_journal.runner SET ended = true, waiting_for = NULL, last_error = %s, heartbeat_at = clock_timestamp()", (error,)
        )


def ask(database: Database, request: str | None) -> bool:
    """Ask the run for something, or take a request back.

    Args:
        database: an open session.
        request: ``pause``, ``abort`` or None.

    Returns:
        Whether that is something new.
    """
    return bool(database.execute("UPDATE unified_user_journal.runner SET request = %s WHERE request IS DISTINCT FROM %s", (request, request)))


def status(database: Database) -> dict[str, Any] | None:
    """Return the runner's row with ``running`` (somebody holds the lock) and ``pid`` of who does; None when there never was a run."""
    if not database.value("SELECT to_regclass('unified_user_journal.runner') IS NOT NULL"):
        return None
    row = database.row(_STATUS)
    if row is None:
        return None
    holder = _journal.lock_holder(database)
    return {**row, "running": holder is not None, "pid": holder and holder["pid"]}


def free_orphan(database: Database) -> str | None:
    """End the session of a run whose client is gone: it holds the migration's lock, idle.

    Returns:
        Whose it was, for a message, or None when there is none.

    Raises:
        UnifiedUserError: it is another role's, and may not be ended.
    """
    holder = _journal.lock_holder(database)
    if not holder or holder["idle"] is None or holder["idle"] < ORPHANED_AFTER:
        return None
    who = f"pid {holder['pid']} ({holder['application_name']}), idle for {holder['idle']:.0f} s"
    if not holder["ours"]:
        raise UnifiedUserError(
            "take over the run", f"its session was left behind by {who} of another role",
            f"End it as a superuser with SELECT pg_terminate_backend({holder['pid']})",
        )
    database.value("SELECT pg_terminate_backend(%s)", (holder["pid"],))
    deadline = time.monotonic() + 10
    while _journal.lock_holder(database) and time.monotonic() < deadline:
        time.sleep(0.1)
    return who
