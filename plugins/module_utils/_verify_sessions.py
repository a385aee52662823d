# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asking the questions of a verification: from one session, or from two that see one snapshot."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, describe, psycopg2
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

#: The transaction that both sessions are in.
SNAPSHOT = "ISOLATION LEVEL REPEATABLE READ, READ ONLY"


@dataclass(frozen=True)
class Failure:
    """Why a question has no answer."""

    reason: str


def attempt(database: Database, ask: Callable[[Database], Any]) -> Any:
    """Ask in a savepoint, so that an SQL error fails this question alone.

    Returns:
        The answer, or a ``Failure``.

    Raises:
        psycopg2.Error: the session is lost.
    """
    database.execute("SAVEPOINT verification")
    try:
        answer = ask(database)
    except psycopg2.Error as error:
        if database.connection.closed:
            raise
        database.execute("ROLLBACK TO SAVEPOINT verification")
        answer = Failure(describe(error))
    database.execute("RELEASE SAVEPOINT verification")
    return answer


class Sessions:
    """The sessions that questions are asked from.

    Args:
        first: a session with an open transaction.
        second: another one with the same snapshot, or None.
    """

    def __init__(self, first: Database, second: Database | None = None) -> None:
        self.first = first
        self.second = second

    @contextlib.contextmanager
    def setting(self, name: str, value: str):
        """Have a setting in both sessions for the duration of the block, or to the transaction's end if it fails."""
        sessions = [session for session in (self.first, self.second) if session]
        before = self.first.value("SELECT current_setting(%s)", (name,))
        for session in sessions:
            session.value("SELECT set_config(%s, %s, true)", (name, value))
        yield
        for session in sessions:
            session.value("SELECT set_config(%s, %s, true)", (name, before))

    def ask(self, questions: dict[Any, Callable[[Database], Any]]) -> dict[Any, Any]:
        """Ask everything once, each time from a session that is free.

        Args:
            questions: by a name; each asks in the session it is given, with SELECTs alone, and needs no other's answer.

        Returns:
            By name, the answer or a ``Failure``.

        Raises:
            psycopg2.Error: a session is lost.
        """
        answers: dict[Any, Any] = {}
        waiting = collections.deque(questions.items())

        def work(session: Database) -> None:
            try:
                while True:
                    try:
                        name, question = waiting.popleft()
                    except IndexError:
                        return
                    answers[name] = attempt(session, question)
            except BaseException:
                waiting.clear()
                raise

        if self.second is None:
            work(self.first)
            return answers
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            other = pool.submit(work, self.second)
            try:
                work(self.first)
            except BaseException:
                with contextlib.suppress(psycopg2.Error):
                    self.second.connection.cancel()
                raise
            other.result()
        return answers


@contextlib.contextmanager
def sharing_snapshot(first: Database, connect: Callable[[], Database] | None, settings: dict[str, str]):
    """Provide the sessions to verify from: the first, and, where it can be had, a second one that sees the same.

    Where there is no room for a second session, or its server does not know the snapshot (behind a pooler, say), one does.

    Args:
        first: a session in a transaction of ``SNAPSHOT``.
        connect: opens a session to the same database as the same role; or None.
        settings: what to set in the second session's transaction.
    """
    second = connect and _join(first, connect, settings)
    if not second:
        yield Sessions(first)
        return
    try:
        sessions = Sessions(first, second)
        # Two sessions are two processes; workers of each would only be in the way of what else the server does.
        with sessions.setting("max_parallel_workers_per_gather", "0"):
            yield sessions
    finally:
        second.close()
        first.executed_queries += second.executed_queries


def _join(first: Database, connect: Callable[[], Database], settings: dict[str, str]) -> Database | None:
    snapshot = first.value("SELECT pg_export_snapshot()")
    second = None
    try:
        second = connect()
        second.execute(f"BEGIN {SNAPSHOT}")
        second.execute("SET TRANSACTION SNAPSHOT %s", (snapshot,))
        for name, value in settings.items():
            second.value("SELECT set_config(%s, %s, true)", (name, value))
    except (UnifiedUserError, psycopg2.Error):
        if second:
            second.close()
        return None
    return second
