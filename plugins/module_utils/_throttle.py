# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""When the backfill must wait for others: any one signal is enough, and one that cannot be read is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, describe, psycopg2
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

# A standby that streams but has nothing to replay has no lag. Without pg_monitor its state is hidden: then nobody knows.
_REPLICA_LAG = """
SELECT bool_or(r.state IS NULL) AS hidden, coalesce(max(extract(epoch FROM r.replay_lag)), 0)::float AS value FROM pg_stat_replication AS r
"""

_ACTIVE_SESSIONS = """
SELECT bool_or(a.backend_type IS NULL) AS hidden, count(*) FILTER (WHERE a.state = 'active') AS value
FROM pg_stat_activity AS a WHERE a.datname = current_database() AND a.pid <> ALL (%s)
"""

_LONG_TRANSACTION = """
SELECT bool_or(a.backend_type IS NULL) AS hidden, coalesce(max(extract(epoch FROM clock_timestamp() - a.xact_start)), 0)::float AS value
FROM pg_stat_activity AS a WHERE a.datname = current_database() AND a.pid <> ALL (%s)
"""

_UNARCHIVED = "SELECT false AS hidden, count(*) AS value FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"


@dataclass(frozen=True)
class Limits:
    """What the backfill makes way for; 0 or None turns a signal off.

    Attributes:
        replica_lag: of any standby, in seconds.
        active_sessions: sessions of others that run a statement in this database.
        transaction_age: age of anybody else's open transaction in this database, in seconds.
        unarchived_segments: WAL segments that wait for the archiver.
        query: a query of the operator's; it throttles as long as its first value is true, or unreadable.
    """

    replica_lag: float = 10.0
    active_sessions: int = 0
    transaction_age: float = 0.0
    unarchived_segments: int = 0
    query: str | None = None

    @classmethod
    def from_parameters(cls, parameters: dict[str, Any]) -> Limits:
        """Take the limits out of module parameters."""
        return cls(**{name: parameters[f"throttle_{name}"] for name in cls.__dataclass_fields__})


class Throttle:
    """Reads the signals.

    Args:
        database: a session for it, outside a transaction.
        limits: when to wait.
    """

    def __init__(self, database: Database, limits: Limits) -> None:
        self.database = database
        self.limits = limits

    def reason(self, ours: list[int]) -> str | None:
        """Say what to wait for, or None.

        Args:
            ours: process ids of the run's own sessions.
        """
        limits = self.limits
        for name, limit, unit, statement, parameters in (
            ("replica lag", limits.replica_lag, " s", _REPLICA_LAG, None),
            ("active sessions", limits.active_sessions, "", _ACTIVE_SESSIONS, (ours,)),
            ("a transaction open", limits.transaction_age, " s", _LONG_TRANSACTION, (ours,)),
            ("WAL segments to archive", limits.unarchived_segments, "", _UNARCHIVED, None),
        ):
            if limit:
                reason = self._compare(name, limit, unit, statement, parameters)
                if reason:
                    return reason
        return self._asked() if limits.query else None

    def _compare(self, name: str, limit: float, unit: str, statement: str, parameters) -> str | None:
        try:
            signal = self.database.row(statement, parameters)
        except psycopg2.Error as error:
            return self._unreadable(name, error)
        if signal["hidden"]:
            return f"{name}: cannot be read (grant pg_monitor to this role, or turn the limit off)"
        return f"{name}: {signal['value']:.0f}{unit}, more than {limit:g}{unit}" if signal["value"] > limit else None

    def _asked(self) -> str | None:
        try:
            with self.database.transaction("READ ONLY"):
                answer = self.database.value(self.limits.query)
        except psycopg2.Error as error:
            return self._unreadable("the throttle query", error)
        if not isinstance(answer, bool):
            return "the throttle query: its first value is not a boolean"
        return "the throttle query: true" if answer else None

    def _unreadable(self, name: str, error) -> str:
        if self.database.connection.closed:
            raise error
        return f"{name}: cannot be read, {describe(error)}"


def require_readable(throttle: Throttle, ours: list[int]) -> None:
    """Refuse to begin under a signal that can never be read: waiting would not end.

    Raises:
        UnifiedUserError: names the signal.
    """
    reason = throttle.reason(ours)
    if reason and ("cannot be read" in reason or "not a boolean" in reason):
        raise UnifiedUserError("begin the backfill", f"a signal that could hold it up is unreadable: {reason}", "Put that right, or turn its limit off")
