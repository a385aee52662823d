# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an operator does with a run from outside: look at it, hold it up, let it go on, end it."""

from __future__ import annotations

import time
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal, _runner, _sync
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options


class RunControl:
    """The run of one database, from outside.

    Args:
        database: an open session outside a transaction.
        options: as for the run itself.
        wait_seconds: how long a run that is to end is waited for, in seconds.
    """

    def __init__(self, database: Database, options: Options, wait_seconds: float) -> None:
        self.database = database
        self.options = options
        self.wait_seconds = wait_seconds

    def status(self) -> dict[str, Any]:
        """Say who runs, since when, where it is, what it waits for, its last error, and how the sync is.

        Returns:
            ``run`` (None, or state and strategy of the journal's run), ``runner`` (None, or as ``_runner.status``), ``lock`` (None, or
            pid, application_name and since of who holds the migration's lock, whatever the strategy) and ``sync``.
        """
        holder = _journal.lock_holder(self.database)
        run = _journal.describe(self.database)["run"]
        wanted = _sync.SyncOptions(self.options.schema, self.options.mapping, self.options.policies)
        return {
            "run": run and {name: run[name] for name in ("strategy", "state", "started_at", "finished_at")},
            "runner": _runner.status(self.database),
            "lock": holder and {name: holder[name] for name in ("pid", "application_name", "since")},
            "sync": _sync.Sync(self.database, wanted).status(),
        }

    def ask(self, request: str | None, check_mode: bool) -> bool:
        """Hold the run up (``pause``) or let it go on (None).

        Returns:
            Whether that changes anything.

        Raises:
            UnifiedUserError: there is no run that could be paused.
        """
        runner = _runner.status(self.database)
        if request and (runner is None or runner["ended"]):
            raise UnifiedUserError("pause the run", "no online migration is under way", "Look with playbooks/status.yml")
        if runner is None or runner["request"] == request:
            return False
        return check_mode or _runner.ask(self.database, request)

    def abort(self, check_mode: bool) -> dict[str, Any]:
        """End the run, empty the unified tables and take the sync away; the legacy side stays as it is.

        Returns:
            As the undoing of a copy, with ``notes``.

        Raises:
            UnifiedUserError: the run is finished or does not end in time, or what ``AtomicCopy.undo`` raises.
        """
        notes = []
        run = _journal.current_run(self.database)
        if run and run["state"] == "finished":
            raise UnifiedUserError(
                "end the run", "the migration of the data is finished, and people may be using it",
                "Go back with playbooks/rollback.yml -e rollback_mode=abort, which tells what would be lost",
            )
        if not check_mode:
            runner = _runner.status(self.database)
            if runner and not runner["ended"]:
                _runner.ask(self.database, "abort")
            freed = self._wait()
            if freed:
                notes.append(f"The lock of a run whose client is gone was freed: {freed}")
        result = AtomicCopy(self.database, self.options).undo(check_mode)
        return {**result, "notes": notes}

    def _wait(self) -> str | None:
        """Wait until nobody holds the migration's lock; free an orphan's."""
        deadline = time.monotonic() + self.wait_seconds
        while True:
            freed = _runner.free_orphan(self.database)
            holder = _journal.lock_holder(self.database)
            if not holder:
                return freed
            if time.monotonic() > deadline:
                raise UnifiedUserError(
                    "end the run", f"pid {holder['pid']} ({holder['application_name']}) goes on for more than {self.wait_seconds:g} s",
                    f"Wait, or end it with SELECT pg_terminate_backend({holder['pid']}), then run the same command again",
                )
            time.sleep(0.2)
