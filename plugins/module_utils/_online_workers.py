# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The sessions that carry identities at the same time, and the one that watches over them."""

from __future__ import annotations

import collections
import random
import threading
import time
from typing import TYPE_CHECKING

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal, _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backfill import Backfill, Yielded
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._runner import Runner, aborted
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma, compose
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._throttle import Throttle

if TYPE_CHECKING:
    from ansible_collections.rnltlabs.unified_user.plugins.module_utils._online import OnlineCopy

#: How many identities a worker begins with.
_FIRST_BATCH = 100

#: Longest wait for a lock while others are held, in milliseconds: shorter than any server takes to find a deadlock, so that
#: it is us who yield.
_IMPATIENCE = 50

#: How many of a session's statements are kept to be shown.
_REMEMBERED = 1000

#: How often the watch looks around, in seconds.
_LOOK = 0.5

#: Longest wait for a lock that writers queue behind, or for one key, in milliseconds; nobody has found a deadlock by then.
PATIENCE = 200

#: What a paused run waits for.
PAUSED = "an operator: playbooks/resume.yml goes on"


class _Worker(threading.Thread):
    """Carries the keys of one slice, batch by batch."""

    def __init__(self, crew: Crew, database: Database, number: int) -> None:
        super().__init__(name=f"slice {number}", daemon=True)
        copy = crew.copy
        self.crew = crew
        self.database = database
        self.backfill = Backfill(database, copy.schema, copy.options.policies, crew.started_at, number)
        self.failure: BaseException | None = None
        self.rows = 0
        self.longest = 0.0
        self.yielding = False

    def run(self) -> None:
        try:
            self.backfill.prepare()
            self._carry()
        except BaseException as error:  # pylint: disable=broad-except
            # Raised again by the watch, which then ends the others.
            self.failure = error
        finally:
            self.database.close()

    def _carry(self) -> None:
        online, size = self.crew.copy.online, min(_FIRST_BATCH, self.crew.copy.online.batch_keys)
        while self.crew.may_go_on():
            try:
                carried = self.backfill.advance(size, _IMPATIENCE if size > 1 else min(self.crew.copy.options.lock_timeout, PATIENCE))
            except Yielded:
                self.yielding = True
                if size == 1:
                    self.backfill.skip()
                size = max(1, size // 8)
                # Not cryptography: the jitter keeps two who met from meeting again in step.
                time.sleep(random.uniform(0.01, 0.05))
                continue
            self.yielding = False
            # The same statements again and again: a few say what was done.
            del self.database.executed_queries[_REMEMBERED:]
            self.rows += carried.rows
            self.longest = max(self.longest, carried.seconds)
            if carried.keys < size:
                return
            if self.backfill.number == self.crew.analyst:
                self.crew.analyze(self.database)
            size = max(1, min(online.batch_keys, int(size * min(2.0, max(0.5, online.batch_seconds / max(carried.seconds, 0.001))))))


class Crew:
    """Workers and their watch.

    Args:
        copy: the run.
        runner: its row.
        throttle: when to wait for others.
        started_at: the run's start, a timestamp in UTC, as text.
        total: how many rows there are to carry, an estimate.
    """

    def __init__(self, copy: OnlineCopy, runner: Runner, throttle: Throttle, started_at: str, total: int) -> None:
        self.copy = copy
        self.runner = runner
        self.throttle = throttle
        self.started_at = started_at
        self.total = total
        self.rows = 0
        self.longest = 0.0
        self._go = threading.Event()
        self._stop = threading.Event()
        self._deadline: float | None = None
        self._workers: list[_Worker] = []
        self._before = 0
        self._analyzed = 1000
        #: Whose session analyzes, between two of its batches: one more at work would take a processor from the application.
        self.analyst: int | None = None

    def may_go_on(self) -> bool:
        """Wait while the run is held up; return whether a worker may begin another batch."""
        while not self._stop.is_set() and not self._go.wait(_LOOK):
            pass
        return not self._stop.is_set()

    def work(self, deadline: float | None) -> bool:
        """Carry until every slice is done, or the deadline is there.

        Args:
            deadline: monotonic time at which to stop, or None.

        Returns:
            Whether every slice is done.

        Raises:
            UnifiedUserError: an operator asked for the end.
            psycopg2.Error: what ended a worker.
        """
        database = self.copy.database
        slices = [row["slice"] for row in database.rows("SELECT slice FROM unified_user_journal.backfill WHERE NOT done ORDER BY slice")]
        self._before = database.value("SELECT coalesce(sum(rows), 0)::bigint FROM unified_user_journal.backfill")
        self.analyst = min(slices, default=None)
        workers = self._workers
        try:
            for number in slices:
                workers.append(_Worker(self, self.copy.open_worker(), number))
            for worker in workers:
                worker.start()
            self._watch(deadline)
        finally:
            self._stop.set()
            for worker in workers:
                if worker.ident:
                    worker.join()
                else:
                    worker.database.close()
            self.rows = sum(worker.rows for worker in workers)
            self.longest = max([worker.longest for worker in workers], default=0.0)
        for worker in workers:
            if worker.failure:
                raise worker.failure
        return database.value("SELECT bool_and(done) FROM unified_user_journal.backfill")

    def _done(self) -> int:
        return self._before + sum(worker.rows for worker in self._workers)

    def _watch(self, deadline: float | None) -> None:
        workers = self._workers
        pids = [self.copy.database.connection.info.backend_pid, *(worker.database.connection.info.backend_pid for worker in workers)]
        window: collections.deque = collections.deque(maxlen=20)
        while any(worker.is_alive() for worker in workers) and not any(worker.failure for worker in workers):
            done = self._done()
            window.append((time.monotonic(), done))
            (first, rows), (last, more) = window[0], window[-1]
            waiting = self.throttle.reason(pids)
            if waiting is None and all(worker.yielding for worker in workers):
                waiting = "locks of other sessions"
            request = self.runner.beat(done, max(self.total, done), (more - rows) / (last - first) if last > first else 0.0, waiting)
            if request == "abort":
                raise aborted()
            if request == "pause":
                self.runner.wait(PAUSED)
            if request == "pause" or (waiting and waiting != "locks of other sessions"):
                self._go.clear()
            else:
                self._go.set()
            if deadline is not None and time.monotonic() > deadline:
                return
            del self.copy.database.executed_queries[_REMEMBERED:]
            pause = time.monotonic() + _LOOK
            while time.monotonic() < pause and any(worker.is_alive() for worker in workers):
                time.sleep(0.02)

    def analyze(self, database: Database) -> None:
        """Tell the planner as the tables grow: what the triggers do is planned for tables of the size it knows.

        Args:
            database: a worker's session, outside a transaction.
        """
        done = self._done()
        if done < 4 * self._analyzed:
            return
        self._analyzed = done
        names = [self.copy.schema.table(name) for name in _mapping.FILLED]
        names += [sql.Identifier(_journal.SCHEMA, name) for name in ("identity_map", "identity_lock")]
        # Whoever holds a table, such as autovacuum, will do it as well.
        database.execute(compose("ANALYZE (SKIP_LOCKED) {names}", {"names": comma(names)}))
