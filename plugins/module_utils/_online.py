# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The online copy: beside a running application, in small transactions, with the sync on from before its first row.

Every step leaves a state from which the next run goes on: what has been done is read from the catalogue and the journal.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Callable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _backfill, _deferral, _journal, _mapping, _runner, _sync_indexes
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, describe, pooler, psycopg2, sql, with_lock_retries
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._findings import BLOCKER, refuse
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._meanwhile import meanwhile, spare
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._online_workers import PATIENCE, PAUSED, Crew
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import compose
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._throttle import Limits, Throttle, require_readable
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options, set_up_session
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import Verification, verify_database

#: How often a lost connection is made again before the run gives up.
_MOST_RECONNECTS = 10

# Plain indexes of the tables to fill that nothing is looked up by while the backfill runs.
_SPARED = """
SELECT x.relname AS name FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid
LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = ANY (SELECT to_regclass(n) FROM unnest(%s) AS n) AND NOT i.indisunique AND NOT EXISTS (
    SELECT FROM unnest(%s, %s) AS l (name, lookup) WHERE to_regclass(l.name) = i.indrelid AND l.lookup = a.attname)
"""

_ESTIMATE = "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class AS c WHERE c.oid = ANY (SELECT to_regclass(n) FROM unnest(%s) AS n)"


class _SliceOver(Exception):
    """A paused run has lasted as long as a slice may."""


@dataclass(frozen=True)
class OnlineOptions:
    """How to go about it beside a running application.

    Attributes:
        owner: what tells this run from others; the same for all its slices.
        batch_seconds: how long one transaction of the backfill should take, in seconds.
        batch_keys: most identities in one batch.
        workers: sessions that carry at the same time, each its own share of the identities. With one the server has one process at work for
            the migration, in every phase.
        slice_seconds: after how long the backfill stops for a moment, to be gone on with by another call; 0 for never.
        reconnect_seconds: how long a lost server is looked for, in seconds.
        limits: what the backfill makes way for.
    """

    owner: str
    batch_seconds: float = 0.5
    batch_keys: int = 500
    workers: int = 1
    slice_seconds: float = 0.0
    reconnect_seconds: float = 60.0
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def from_parameters(cls, parameters: dict[str, Any]) -> OnlineOptions:
        """Take the options out of module parameters."""
        names = ("batch_seconds", "batch_keys", "slice_seconds", "reconnect_seconds")
        return cls(
            owner=parameters["run_id"] or uuid.uuid4().hex, workers=parameters["parallel_workers"], limits=Limits.from_parameters(parameters),
            **{name: parameters[name] for name in names},
        )


class OnlineCopy(AtomicCopy):
    """One online migration of the data.

    Args:
        database: an open session, which will hold the migration's lock; nothing else may use it meanwhile.
        options: how to copy.
        online: how to go about it beside a running application.
        connect: opens a further session of the same kind.
    """

    strategy = "online"

    def __init__(self, database: Database, options: Options, online: OnlineOptions, connect: Callable[[], Database]) -> None:
        super().__init__(database, options, connect)
        self.online = online
        self._notes: list[str] = []
        self._longest_batch = 0.0
        self._deadline = time.monotonic() + online.slice_seconds if online.slice_seconds else None
        self._keep_to_one_process()

    def run(self) -> dict[str, Any]:
        """Copy, prove and finish; or get as far as the slice lasts.

        Returns:
            As the atomic copy, when ``finished``; before that ``progress``. ``notes`` tell what the operator should know.

        Raises:
            UnifiedUserError: a blocker, another run, an abort, a lock that is not to be had, a lost server, or a difference.
        """
        if pooler(self.database, self._connect) == "transaction":
            raise UnifiedUserError(
                "begin the online migration", "the connection goes through a pooler in transaction mode, where session locks do not last",
                "Set unified_user_login_host and unified_user_login_port to the server itself, or the pool's pool_mode to session",
            )
        attempt = 0
        while True:
            try:
                orphan = _runner.free_orphan(self.database)
                if orphan:
                    self._notes.append(f"The lock of a run whose client is gone was freed: {orphan}")
                return super().run()
            except psycopg2.Error as error:
                # Whoever lost its session: all begin anew from the journal.
                if error.pgcode and not error.pgcode.startswith(("57P", "08")):
                    raise
                attempt += 1
                self._reconnect(error, attempt)

    def _keep_to_one_process(self) -> None:
        """With one worker keep the server's other processors for the application: when all compute, each of its commits waits for its turn."""
        if self.online.workers == 1:
            for name in ("max_parallel_workers_per_gather", "max_parallel_maintenance_workers"):
                self.database.value("SELECT set_config(%s, '0', false)", (name,))

    def _further(self) -> Callable[[], Database] | None:
        """Return what opens a session that works beside this one, or None where one is to be enough."""
        return self._connect if self.online.workers > 1 else None

    def _reconnect(self, error, attempt: int) -> None:
        """Open the session again; a server that restarts needs a while."""
        deadline = time.monotonic() + self.online.reconnect_seconds
        self.database.close()
        if attempt > _MOST_RECONNECTS:
            raise UnifiedUserError(
                "keep a connection to the server", f"it was lost {attempt} times ({describe(error)})",
                "What was carried stays. Look at the server's log, and run the same command again: it goes on from there",
            ) from error
        while True:
            try:
                fresh = self._connect()
                break
            except UnifiedUserError as failure:
                if time.monotonic() > deadline:
                    raise UnifiedUserError(
                        "go on with the migration of the data", f"the connection was lost ({describe(error)}), and is not to be had again",
                        "What was carried stays. Bring the server back, and run the same command again: it goes on from there",
                    ) from failure
                time.sleep(random.uniform(0.5, 1.0))
        set_up_session(fresh)
        # Whoever has this session has the new one.
        self.database.connection = fresh.connection
        self._keep_to_one_process()
        self._notes.append(f"The connection was lost ({describe(error)}) and made again")

    def _copy(self) -> dict[str, Any]:
        _journal.create(self.database)
        runner = _runner.Runner(self.database, self.online.owner)
        taken = runner.claim()
        if taken:
            self._notes.append(f"An earlier run was left behind and is gone on with: {taken}")
        try:
            result = self._go(runner)
        except _SliceOver:
            result = self._unfinished()
        except BaseException as error:
            # A lost server cannot be told; its run is an orphan, and known as one.
            with contextlib.suppress(psycopg2.Error):
                runner.end(_say(error))
            raise
        if result["finished"]:
            runner.end()
        else:
            runner.rest()
        return {**result, "notes": self._notes}

    def _go(self, runner: _runner.Runner) -> dict[str, Any]:
        run = _journal.current_run(self.database) or self._begin(runner)
        self._require_same_settings(run)
        started_at = self.database.value("SELECT (started_at AT TIME ZONE 'UTC')::timestamp(3)::text FROM unified_user_journal.run WHERE id = %s", (run["id"],))
        begun = self.database.value("SELECT EXISTS (SELECT FROM unified_user_journal.backfill)")
        if not begun:
            self._prepare(runner)
        self._keep_sync_on(runner, begun)
        if not self._carry(runner, started_at):
            return self._unfinished()
        summary = self._complete(runner)
        self._keep_sync_on(runner, True)
        if runner.needs_repair():
            summary = self._repair(runner, "writes that no trigger carried")
        summary = self._prove(runner) or summary
        with self.database.transaction():
            _journal.finish_run(self.database, run["id"], summary)
        return self._result(changed=True, finished=True, longest_batch_ms=round(self._longest_batch * 1000), **summary)

    def _complete(self, runner: _runner.Runner) -> dict[str, Any]:
        """Put back what the backfill did without; return what there is, which another session counts meanwhile, if there may be one."""
        with spare(self._further(), set_up_session) as second, meanwhile(self.database, second, self._count) as counted:
            with self._phase(runner, "analyze"):
                self._analyze()
            with self._phase(runner, "build indexes and foreign keys") as phase:
                phase["rows"] = _deferral.put_back_beside_writers(
                    self.database, self.schema, lambda work: self._locked(work, "put back a foreign key of the unified tables")
                )
            with self._phase(runner, "count"):
                return counted()

    def _count(self, database: Database) -> dict[str, Any]:
        """Count what the contract wants counted, on one snapshot."""
        counter = self if database is self.database else AtomicCopy(database, self.options)
        with database.transaction("ISOLATION LEVEL REPEATABLE READ"):
            return counter.count()

    def _settings(self) -> None:
        super()._settings()
        # Shorter than any server takes to find a deadlock: it is us who yield.
        self.database.value("SELECT set_config('lock_timeout', %s, true)", (f"{min(self.options.lock_timeout, PATIENCE)}ms",))

    def _unfinished(self) -> dict[str, Any]:
        return self._result(changed=True, finished=False, progress=_progress(self.database))

    def _phase(self, runner: _runner.Runner, name: str) -> AbstractContextManager[dict[str, Any]]:
        """Time a phase and show it to `status`; what an operator has asked for is heard before it begins."""
        while True:
            request = runner.requested()
            if request == "abort":
                raise _runner.aborted()
            if request != "pause":
                break
            runner.wait(PAUSED)
            if self._deadline and time.monotonic() > self._deadline:
                raise _SliceOver
            time.sleep(0.5)
        runner.enter(name)
        return self.clock.phase(name)

    def _begin(self, runner: _runner.Runner) -> dict[str, Any]:
        """Look at the data as it is now, and start the run."""
        with self._phase(runner, "look for blockers"):
            self._refuse_foreign_rows()
            moment = sql.SQL("(now() AT TIME ZONE 'UTC')::timestamp(3)")
            with self.database.transaction("ISOLATION LEVEL REPEATABLE READ, READ ONLY"):
                self._settings()
                refuse("migrate the data", self._findings(self._projection(moment)).collect((BLOCKER,)))
                self._refuse_credentials_of_nobody()
            with self.database.transaction():
                return _journal.start_run(
                    self.database, self.strategy, self.options.schema, asdict(self.options.policies), self.options.mapping or {}
                )

    def _require_same_settings(self, run: dict[str, Any]) -> None:
        changed = _journal.changed_settings(run, _journal.settings_of(self.options.schema, self.options.policies, self.options.mapping))
        if changed:
            raise UnifiedUserError(
                "go on with the migration of the data", f"it was begun with other settings of {', '.join(changed)}",
                "Set them as they were, or end it first with playbooks/abort.yml",
            )

    def _prepare(self, runner: _runner.Runner) -> None:
        """Indexes first, then what would slow the backfill down goes, then the triggers; only then the first key."""
        with self._phase(runner, "make the sync's indexes") as phase:
            phase["rows"] = with_lock_retries(
                self._make_indexes, "make the sync's indexes beside the application", self.database,
                self._long_transactions, self.options.lock_retry_seconds,
            )
            self._analyze_sources()
        with self._phase(runner, "take down indexes and foreign keys") as phase:
            phase["rows"] = self._locked(self._take_down_what_slows, "take down indexes and foreign keys of the unified tables")
        with self._phase(runner, "turn on the sync"):
            self._locked(lambda: self._sync().install_in_transaction("forward"), "turn on the sync")
        _backfill.make_slices(self.database, self.schema, self.options.policies, self.online.workers)

    def _take_down_what_slows(self) -> int:
        looked_up = [(self._name(table), self.schema[table].names.get(column)) for table, column in _sync_indexes.lookups("forward")]
        tables = [self._name(name) for name in _mapping.FILLED]
        # A killed atomic copy leaves keys down, too, which the sync cannot do without.
        _deferral.put_back(self.database, self.schema)
        spared = {row["name"] for row in self.database.rows(_SPARED, (tables, [name for name, unused in looked_up], [column for unused, column in looked_up]))}
        filled = {self.schema[name].name for name in _mapping.FILLED}

        def wanted(item: dict) -> bool:
            if item["kind"] == "index":
                return item["name"] in spared
            return item["definition"].startswith("FOREIGN KEY") and item["table_name"] in filled

        return _deferral.take_down(self.database, self.schema, wanted)

    def _make_indexes(self) -> int:
        # Making one waits for every transaction that is older; it must not do that silently.
        self.database.value("SELECT set_config('lock_timeout', %s, false)", (f"{max(self.options.lock_timeout, 5000)}ms",))
        try:
            return _sync_indexes.make(self.database, self.schema, self.options.policies, "forward")
        finally:
            if not self.database.connection.closed:
                self.database.execute("RESET lock_timeout")

    def _analyze_sources(self) -> None:
        """Let the planner know what the new indexes index."""
        for name in (*_mapping.PEOPLE, "bookings"):
            self.database.execute(self.schema.compose("ANALYZE (SKIP_LOCKED) {table}", table=name))

    def _long_transactions(self) -> list[str]:
        """Describe the transactions that have been open for longest, for a message."""
        return [
            f"pid {row['pid']} ({row['application']}, {row['state']}, transaction open for {row['age']} s)" for row in self.database.rows(
                "SELECT a.pid, coalesce(nullif(a.application_name, ''), a.backend_type) AS application, coalesce(a.state, 'active') AS state,"
                " extract(epoch FROM clock_timestamp() - a.xact_start)::int AS age FROM pg_stat_activity AS a"
                " WHERE a.xact_start IS NOT NULL AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend' ORDER BY a.xact_start LIMIT 3"
            )
        ]

    def _name(self, table: str) -> str:
        return self.schema.table(table).as_string(self.database.connection)

    def _keep_sync_on(self, runner: _runner.Runner, begun: bool) -> None:
        """Turn the sync on again where somebody has ended it meanwhile, or taken one of its triggers."""
        sync = self._sync()
        if not begun or not sync.changes("forward"):
            return
        self._notes.append("The sync was not as the run left it. It was made anew, and every identity is looked at again")
        runner.mark_for_repair(True)
        self._make_indexes()
        self._locked(lambda: sync.install_in_transaction("forward"), "turn on the sync")

    def _carry(self, runner: _runner.Runner, started_at: str) -> bool:
        """Carry every identity that is not there yet; return whether all are."""
        if self.database.value("SELECT bool_and(done) AND sum(skipped) = 0 FROM unified_user_journal.backfill"):
            return True
        throttle = Throttle(self.database, self.online.limits)
        sources = [self._name(name) for name in _mapping.SOURCES if name not in ("studios", "services")]
        total = self.database.value(_ESTIMATE, (sources,))
        stuck_since = time.monotonic()
        with self._phase(runner, "backfill") as phase:
            require_readable(throttle, [])
            while True:
                crew = Crew(self, runner, throttle, started_at, total)
                finished = crew.work(self._deadline)
                self._longest_batch = max(self._longest_batch, crew.longest)
                phase["rows"] = self.database.value("SELECT sum(rows)::bigint FROM unified_user_journal.backfill")
                if not finished:
                    return False
                if not _backfill.begin_again(self.database):
                    break
                if crew.rows:
                    stuck_since = time.monotonic()
                elif time.monotonic() - stuck_since > self.options.lock_retry_seconds:
                    self._refuse_locked()
                time.sleep(0.5)
            self._carry_strays(started_at)
        return True

    def _refuse_locked(self) -> None:
        holders = self.database.lock_holders([self._name(name) for name in _mapping.SOURCES]) or self._long_transactions()
        raise UnifiedUserError(
            "carry the last identities", f"other sessions hold them locked for more than {self.options.lock_retry_seconds:g} s: {'; '.join(holders)}",
            "Let them finish or end them with pg_terminate_backend(pid), then run the same command again: it goes on from here",
        )

    def open_worker(self) -> Database:
        """Open a session that carries."""
        database = self._connect()
        set_up_session(database)
        return database

    def _carry_strays(self, started_at: str) -> None:
        """Put the bookings into quarantine that have neither a customer nor an e-mail: no key leads to them."""
        ids = [row["id"] for row in self.database.rows(self.schema.compose(
            "SELECT b.{bookings.id} AS id FROM {bookings} AS b WHERE b.{bookings.customerId} IS NULL AND b.{bookings.customerEmail} IS NULL"))]  # fmt: skip
        self._sync().carry_bookings(ids, started_at)

    def _analyze(self) -> None:
        self.database.execute(compose("ANALYZE {map}", {"map": sql.Identifier(_journal.SCHEMA, "identity_map")}))
        for name in _mapping.FILLED:
            self.database.execute(self.schema.compose("ANALYZE {table}", table=name))

    def _repair(self, runner: _runner.Runner, why: str) -> dict[str, Any]:
        with self._phase(runner, "repair") as phase:
            phase["rows"] = self._sync().repair()
            runner.mark_for_repair(False)
        self._notes.append(f"Every identity was looked at again, because of {why}")
        with self._phase(runner, "count"):
            return self._count(self.database)

    def _prove(self, runner: _runner.Runner) -> dict[str, Any] | None:
        """Verify on one snapshot while the application writes on; repair what differs, and verify again.

        Returns:
            What there is after a repair, or None where none was needed.
        """
        found, summary = self._verify(runner), None
        if not found.passed:
            summary = self._repair(runner, f"differences in {', '.join(check.name for check in found.checks if not check.passed)}")
            found = self._verify(runner)
        found.require()
        return summary

    def _verify(self, runner: _runner.Runner) -> Verification:
        options = self.options
        with self._phase(runner, "verify") as phase:
            found = verify_database(
                self.database, options.schema, options.mapping, options.policies, options.sample_size, options.mask_pii,
                connect=self._further(), finished=False,
            )  # fmt: skip
            phase["rows"] = len(found.checks)
        return found


def _say(error: BaseException) -> str:
    if isinstance(error, UnifiedUserError):
        return str(error)
    return describe(error) if isinstance(error, psycopg2.Error) else f"interrupted ({type(error).__name__})"


def _progress(database: Database) -> dict[str, Any]:
    row = _runner.status(database)
    return {name: row[name] for name in ("phase", "rows_done", "rows_total", "rows_per_second", "waiting_for", "request")}
