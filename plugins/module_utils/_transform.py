# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The atomic copy: all that the projection calls for, in one transaction, proven before it commits; and its undoing."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Iterator

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _deferral, _journal, _mapping, _sync, _sync_indexes
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import read_schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, psycopg2, sql, with_lock_retries
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._contents import fix_text_form, lift_timeouts, list_tables, measure_rows
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._findings import BLOCKER, DataFindings, refuse
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies, parse_mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._meanwhile import meanwhile, spare
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._projection import Projection, WholeProjection
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma, compose, identity_key
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import verify

_ALL_TABLES = _mapping.SOURCES + _mapping.UNIFIED_TABLES


@dataclass(frozen=True)
class Options:
    """How to copy.

    Attributes:
        schema: database schema of the application's tables.
        mapping: the operator's overriding names, or None.
        policies: the operator's decisions.
        lock_timeout: longest wait for a lock in one attempt, in milliseconds.
        lock_retry_seconds: how long to go on attempting, in seconds.
        work_mem: memory for one sort or hash, as PostgreSQL spells it.
        maintenance_work_mem: memory for building an index, as PostgreSQL spells it.
        sample_size: how many samples a difference shows.
        mask_pii: whether e-mails are masked in messages.
        sync: whether what the legacy side writes after the copy is carried, too.
    """

    schema: str = "public"
    mapping: dict | None = None
    policies: Policies = field(default_factory=Policies)
    lock_timeout: int = 1500
    lock_retry_seconds: float = 60.0
    work_mem: str = "256MB"
    maintenance_work_mem: str = "512MB"
    sample_size: int = 5
    mask_pii: bool = True
    sync: bool = False

    @classmethod
    def from_parameters(cls, parameters: dict[str, Any]) -> Options:
        """Take the options out of module parameters."""
        names = ("schema", "mapping", "lock_timeout", "lock_retry_seconds", "work_mem", "maintenance_work_mem", "sample_size", "mask_pii", "sync")
        return cls(policies=Policies.from_parameters(parameters), **{name: parameters[name] for name in names})


class _Clock:
    """Times the phases of a run."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.phases: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[dict[str, Any]]:
        entry: dict[str, Any] = {"name": name, "rows": None}
        started = time.monotonic()
        yield entry
        entry["duration_ms"] = round((time.monotonic() - started) * 1000)
        self.phases.append(entry)

    @property
    def duration_ms(self) -> int:
        return round((time.monotonic() - self.started) * 1000)


def set_up_session(database: Database) -> None:
    """Make a session fit for copying: its settings last until it ends."""
    # A killed client's statement would otherwise run to its end before the server notices (PostgreSQL 14 and later).
    if database.connection.server_version >= 140000:
        database.execute("SET client_connection_check_interval = '1s'")
    database.execute("SET TIME ZONE 'UTC'")
    database.execute("SET search_path = pg_catalog")
    # Rows that a policy would hide are an error, not rows that are not there.
    database.execute("SET row_security = off")
    # What goes to quarantine is kept to the last digit, whatever the database's own setting.
    database.execute("SET extra_float_digits = 1")


class AtomicCopy:
    """One atomic migration of the data.

    Args:
        database: an open session; nothing else may use it meanwhile.
        options: how to copy.
        connect: opens a further session of the same kind, which counts while this one writes; or None.
    """

    #: What the journal calls this way to copy.
    strategy = "atomic"

    def __init__(self, database: Database, options: Options, connect: Callable[[], Database] | None = None) -> None:
        self.database = database
        self.options = options
        self._connect = connect
        self._second: Database | None = None
        self.clock = _Clock()
        set_up_session(database)
        self.schema = read_schema(database, options.schema, parse_mapping(options.mapping))

    def plan(self) -> dict[str, Any]:
        """Say what ``run`` would do, with SELECTs alone.

        Returns:
            As ``run``; ``changed`` tells whether there is anything to do.

        Raises:
            UnifiedUserError: there is a blocker, or a run of another strategy is under way.
        """
        self.schema.require()
        run = self._run_so_far()
        if run and run["state"] == "finished":
            return self._already_done(run)
        projection = self._projection(sql.SQL("(now() AT TIME ZONE 'UTC')::timestamp(3)"))
        with self.database.transaction("ISOLATION LEVEL REPEATABLE READ, READ ONLY"):
            if not run:
                self._refuse_foreign_rows()
            refuse("plan the migration of the data", self._findings(projection).collect((BLOCKER,)))
            counts = self.database.row(
                compose(
                    "WITH member AS MATERIALIZED ({member}), guest AS MATERIALIZED ({guest}) SELECT {counts}",
                    {
                        "member": projection.member(),
                        "guest": projection.guest(),
                        "counts": comma(
                            compose("(SELECT count(*) FROM ({select}) AS q) AS {name}", {"select": select, "name": sql.Identifier(name)})
                            for name, (unused, select) in projection.targets().items()
                        ),
                    },
                )
            )
        return self._result(changed=True, finished=False, counts=counts)

    def run(self) -> dict[str, Any]:
        """Copy, prove and commit; or change nothing.

        Returns:
            ``changed``, ``finished``, ``counts`` by unified table, ``identities``, ``not_carried``, ``bookings``, ``phases``
            and ``duration_ms``.

        Raises:
            UnifiedUserError: a blocker, a lock that is not to be had, another run, or a difference.
        """
        self.schema.require()
        with _journal.exclusive(self.database):
            run = self._run_so_far()
            if run and run["state"] == "finished":
                return self._already_done(run)
            return self._copy()

    def _run_so_far(self) -> dict[str, Any] | None:
        """Return the run that is under way or finished, or None; one that is under way must be of this strategy."""
        run = _journal.current_run(self.database)
        if run and run["state"] != "finished" and run["strategy"] != self.strategy:
            raise UnifiedUserError(
                f"begin the {self.strategy} migration of the data", f"the {run['strategy']} one has begun already",
                f"Go on with data_migration_strategy: {run['strategy']}, or undo it first with playbooks/abort.yml",
            )
        return run

    def undo(self, check_mode: bool = False) -> dict[str, Any]:
        """Empty the unified tables, put back what is down and mark the run as aborted. The legacy side is not touched.

        Args:
            check_mode: only count.

        Returns:
            ``changed``, ``counts`` of the rows removed, by unified table, and ``kept``, the rows of the legacy tables.

        Raises:
            UnifiedUserError: another run is under way, a lock is not to be had, or rows are there that no run made.
        """
        kept = self._counts(name for name in _mapping.SOURCES if self.schema[name].exists)
        present = [name for name in _mapping.UNIFIED_TABLES if self.schema[name].exists]
        run = _journal.current_run(self.database)
        if run is None and not (_journal.exists(self.database) and _deferral.recorded(self.database)):
            self._refuse_foreign_rows()
            return self._result(changed=False, counts=self._counts(present), kept=kept)
        if _sync.direction(self.database) in ("reverse", "both"):
            raise UnifiedUserError(
                "empty the unified tables",
                "they are in use: what is written there is carried back to the legacy side, and some of it has no place there",
                "See what with playbooks/sync.yml --check -e sync_direction=both, end the sync with -e sync_direction=none, and run this again",
            )
        if check_mode:
            return self._result(changed=True, counts=self._counts(present), kept=kept)

        def attempt() -> dict[str, int]:
            fix_text_form(self.database)
            removed, before = self._counts(present), self._legacy_contents()
            _sync.end(self.database, self.schema.name)
            self.database.execute(sql.SQL("TRUNCATE {}").format(comma(self.schema.table(name) for name in present)))
            _deferral.put_back(self.database, self.schema)
            _journal.abort_run(self.database)
            if self._legacy_contents() != before:
                raise UnifiedUserError(
                    "empty the unified tables",
                    "that would have changed rows of the legacy tables, so it was taken back",
                    "Look for triggers on the unified tables that write to the legacy ones, and disable them",
                )
            return removed

        with _journal.exclusive(self.database):
            # One snapshot: what differs afterwards is our doing, whoever else is writing.
            removed = self._locked(attempt, "empty the unified tables", "REPEATABLE READ")
        return self._result(changed=True, counts=removed, kept=kept)

    def _legacy_contents(self) -> list[dict[str, Any]]:
        legacy = {self.schema[name].name for name in _mapping.SOURCES}
        tables = [table for table in list_tables(self.database) if table["schema"] == self.schema.name and table["table"] in legacy]
        return measure_rows(self.database, tables)

    def _counts(self, tables) -> dict[str, int]:
        return {name: self.database.value(self.schema.compose("SELECT count(*) FROM {table}", table=name)) for name in tables}

    def _refuse_credentials_of_nobody(self) -> None:
        """Refuse accounts and sessions that refer to no owner: no foreign key keeps them out, and no rule says whose they are."""
        for table in ("accounts", "sessions"):
            lost = self.database.value(
                self.schema.compose(
                    "SELECT count(*) FROM {source} AS t WHERE NOT EXISTS"
                    " (SELECT FROM {studio_owners} AS o WHERE o.{studio_owners.id} = t.{source.userId})",
                    source=table,
                )
            )
            self._refuse_lost(table, lost, "owner")

    def _refuse_lost(self, table: str, lost: int, person: str) -> None:
        if lost:
            raise UnifiedUserError(
                f"copy table {self.schema[table].name}", f"{lost} of its rows refer to no {person}",
                f"Delete these rows or bring their {person}s back; ansible-playbook preflight.yml names them",
            )

    def _findings(self, projection: Projection) -> DataFindings:
        return DataFindings(self.database, projection, self.options.sample_size, self.options.mask_pii)

    def _projection(self, started_at) -> Projection:
        return WholeProjection(self.schema, self.options.policies, started_at)

    def _already_done(self, run: dict[str, Any]) -> dict[str, Any]:
        changed = _journal.changed_settings(run, _journal.settings_of(self.options.schema, self.options.policies, self.options.mapping))
        if changed:
            raise UnifiedUserError(
                "go on with the finished migration of the data",
                f"it was made with other settings of {', '.join(changed)}",
                "Set them as they were, or undo it first with rollback.yml -e rollback_mode=abort",
            )
        counts = {**self._counts(_mapping.FILLED), "quarantine": _journal.count_quarantine(self.database)}
        result = self._result(changed=False, finished=True, counts=counts)
        return {**run["summary"], **result}

    def _result(self, **values) -> dict[str, Any]:
        return {**values, "phases": self.clock.phases, "duration_ms": self.clock.duration_ms}

    def _copy(self) -> dict[str, Any]:
        with self.clock.phase("take down indexes and foreign keys") as phase:
            phase["rows"] = self._take_down()
        try:
            with spare(self._connect, set_up_session) as self._second:
                result = self._locked(self._copy_in_transaction, "lock the legacy tables against writes")
        except BaseException:
            # The unified tables are empty again: leave them as they were found. Where that cannot be, the journal has the
            # list, and the next run or an abort puts everything back; what the operator must hear is the first error.
            with contextlib.suppress(UnifiedUserError, psycopg2.Error):
                self._put_back()
            raise
        # Only now is the commit behind us, too.
        return {**result, "duration_ms": self.clock.duration_ms}

    def _locked(self, attempt: Callable[[], Any], action: str, isolation: str = "READ COMMITTED") -> Any:
        """Attempt something in a transaction that takes strong locks, until it gets them."""
        names = [self.schema.table(table).as_string(self.database.connection) for table in _ALL_TABLES]
        done = len(self.clock.phases)

        def one_attempt():
            del self.clock.phases[done:]
            with self.database.transaction(f"ISOLATION LEVEL {isolation}"):
                self._settings()
                return attempt()

        return with_lock_retries(
            one_attempt, action, self.database, lambda: self.database.lock_holders(names), self.options.lock_retry_seconds
        )

    def _settings(self) -> None:
        self._set_up_transaction(self.database)

    def _set_up_transaction(self, database: Database) -> None:
        lift_timeouts(database)
        for name, value in (
            ("lock_timeout", f"{self.options.lock_timeout}ms"),
            ("work_mem", self.options.work_mem),
            ("maintenance_work_mem", self.options.maintenance_work_mem),
            ("jit", "off"),
        ):
            database.value("SELECT set_config(%s, %s, true)", (name, value))

    def _take_down(self) -> int:
        _journal.create(self.database)

        def attempt() -> int:
            self._refuse_foreign_rows()
            return _deferral.take_down(self.database, self.schema)

        return self._locked(attempt, "take down indexes and foreign keys of the unified tables")

    def _put_back(self) -> int:
        return self._locked(
            lambda: _deferral.put_back(self.database, self.schema),
            "put back the indexes and foreign keys of the unified tables",
        )

    def _refuse_foreign_rows(self) -> None:
        """Refuse unified tables that hold rows: a finished run is not under way, so they are nobody's we know."""
        filled = [
            name for name in _mapping.FILLED
            if self.schema[name].exists and self.database.value(self.schema.compose("SELECT EXISTS (SELECT FROM {table})", table=name))
        ]
        if filled:
            raise UnifiedUserError(
                "copy into the unified tables",
                f"there are rows that no run of this collection made, in {', '.join(self.schema[name].name for name in filled)}",
                "Look where they come from, and empty these tables (rollback.yml -e rollback_mode=abort does it for rows of ours)",
                tables=filled,
            )

    def _copy_in_transaction(self) -> dict[str, Any]:
        database, options = self.database, self.options
        with self.clock.phase("lock the legacy tables"):
            # All at once and under lock_timeout: nothing after this waits for anybody.
            for names, mode in ((_mapping.SOURCES, "SHARE ROW EXCLUSIVE"), (_mapping.UNIFIED_TABLES, "ACCESS EXCLUSIVE")):
                database.execute(
                    sql.SQL("LOCK TABLE {} IN {} MODE").format(
                        comma(self.schema.table(name) for name in names if self.schema[name].exists), sql.SQL(mode)
                    )
                )
        self._refuse_foreign_rows()
        run = _journal.start_run(database, "atomic", options.schema, asdict(options.policies), options.mapping or {})
        projection = self._projection(
            compose(
                "(SELECT (started_at AT TIME ZONE 'UTC')::timestamp(3) FROM unified_user_journal.run WHERE id = {id})",
                {"id": sql.Literal(run["id"])},
            )
        )
        self._identities(projection)
        refuse("migrate the data", self._findings(projection).collect((BLOCKER,), prepared=True))
        # What writes is one process. Nobody can change the bookings now, so that another session sees them as this one does.
        with meanwhile(database, self._second, lambda session: self._linked_bookings(session, projection)) as linked:
            counts = self._fill(projection)
            summary = {"counts": counts, **self._summary(projection, counts["new_bookings"], linked)}
        with self.clock.phase("build indexes and foreign keys") as phase:
            phase["rows"] = _deferral.put_back(database, self.schema)
        with self.clock.phase("analyze"):
            self._analyze_briefly(sql.Identifier(_journal.SCHEMA, "identity_map"))
            database.execute(sql.SQL("ANALYZE {}").format(comma(self.schema.table(name) for name in _mapping.FILLED)))
        with self.clock.phase("verify") as phase:
            phase["rows"] = len(verify(database, self.schema, options.policies, options.sample_size, options.mask_pii).require().checks)
        if options.sync:
            with self.clock.phase("turn on the sync"):
                self._keep_in_step()
        _journal.finish_run(database, run["id"], summary)
        return self._result(changed=True, finished=True, **summary)

    def _keep_in_step(self) -> None:
        """Carry what the legacy side writes as soon as its locks are gone: nothing falls between the copy and the sync."""
        _sync_indexes.make(self.database, self.schema, self.options.policies, "forward")
        self._sync().install_in_transaction("forward")

    def _sync(self) -> _sync.Sync:
        options = self.options
        wanted = _sync.SyncOptions(options.schema, options.mapping, options.policies, options.lock_timeout, options.lock_retry_seconds)
        return _sync.Sync(self.database, wanted)

    def _identities(self, projection: Projection) -> None:
        for name, select in (("member", projection.member()), ("guest", projection.guest())):
            with self.clock.phase(f"find the {name}s") as phase:
                phase["rows"] = self.database.execute(
                    compose("CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS {select}", {"name": sql.Identifier(name), "select": select})
                )
                self._analyze_briefly(sql.Identifier(name))

    def _analyze_briefly(self, table) -> None:
        """Analyze one of our own tables with a tenth of the usual sample: enough for tables read as a whole."""
        self.database.execute("SET LOCAL default_statistics_target = 10")
        self.database.execute(sql.SQL("ANALYZE {}").format(table))
        self.database.execute("SET LOCAL default_statistics_target TO DEFAULT")

    def _fill(self, projection: Projection) -> dict[str, int]:
        counts = {}
        for name, (columns, select) in projection.targets().items():
            with self.clock.phase(self.schema[name].name) as phase:
                counts[name] = phase["rows"] = self.database.execute(
                    self.schema.compose("INSERT INTO {table} ({columns}) {select}", table=name, columns=comma(columns), select=select)
                )
        with self.clock.phase("journal") as phase:
            phase["rows"] = _journal.fill_identity_map(self.database, projection.identity_map())
            # Under the other policy a booking to quarantine is a blocker, and there is none.
            quarantines = self.options.policies.unresolvable_bookings == "quarantine"
            counts["quarantine"] = _journal.fill_quarantine(self.database, projection.quarantine()) if quarantines else 0
        return counts

    def count(self) -> dict[str, Any]:
        """Count what is in the unified tables, and what the contract wants counted beside it.

        Works in the caller's transaction, which should see one snapshot.

        Returns:
            ``counts`` by unified table, ``identities``, ``not_carried`` and ``bookings``.

        Raises:
            UnifiedUserError: rows refer to nobody.
        """
        self._settings()
        projection = self._projection(sql.SQL("(now() AT TIME ZONE 'UTC')::timestamp(3)"))
        self._identities(projection)
        counts = {**self._counts(_mapping.FILLED), "quarantine": _journal.count_quarantine(self.database)}
        return {"counts": counts, **self._summary(projection, counts["new_bookings"], lambda: self._count_linked(self.database, projection))}

    def _linked_bookings(self, database: Database, projection: Projection) -> dict[str, int]:
        """Count the bookings that name a customer, and those that are tied to somebody by an e-mail that was never verified."""
        if database is not self.database:
            with database.transaction("ISOLATION LEVEL READ COMMITTED, READ ONLY"):
                self._set_up_transaction(database)
                database.execute("SET LOCAL max_parallel_workers_per_gather = 0")
                return self._count_linked(database, projection)
        return self._count_linked(database, projection)

    def _count_linked(self, database: Database, projection: Projection) -> dict[str, int]:
        keys = {
            "booking_key": projection.booking_key("t"),
            "customer_key": identity_key(self.schema.compose("c.{customers.email}"), self.options.policies.email_match),
        }
        return {
            **database.row(self.schema.compose(_LINKED_BOOKINGS, **keys)),
            "by_email_unverified": database.value(self.schema.compose(_UNVERIFIED_BOOKINGS, unverified=projection.unverified(), **keys)),
        }

    def _summary(self, projection: Projection, copied: int, linked: Callable[[], dict[str, int]]) -> dict[str, Any]:
        """Count what the contract wants counted beside the rows (sections 2 and 3).

        Args:
            projection: what the rows were made by.
            copied: how many bookings are in new_bookings.
            linked: returns what ``_linked_bookings`` does.
        """
        with self.clock.phase("count"):
            identities = self.database.row(self.schema.compose(_CREDENTIAL_COUNTS, carried=projection.carried()))
            identities.update(
                self.database.row(
                    "SELECT count(*) FILTER (WHERE position = 1) AS persons, (SELECT count(*) FROM guest) AS guests FROM member"
                )
            )
            not_carried = {
                table: self.database.value(
                    self.schema.compose(
                        "SELECT count(*) FROM {source} AS t JOIN member AS m ON m.side = 0 AND m.source_id = t.{source.userId}"
                        " WHERE NOT {carried}",
                        source=table, carried=projection.carried(),
                    )
                )
                for table in ("accounts", "sessions")
            }
            self._refuse_credentials_of_nobody()
            bookings = dict(linked())
            self._refuse_lost("bookings", bookings.pop("lost"), "customer")
            bookings["by_guest"] = self.database.value("SELECT coalesce(sum(bookings), 0)::bigint FROM guest")
            bookings["by_email"] = copied - bookings["by_customer"] - bookings["by_guest"]
        return {"identities": identities, "not_carried": not_carried, "bookings": bookings}


# One row per joined identity: which password the user has, and from whom (the contract, section 2).
_CREDENTIAL_COUNTS = """
SELECT count(*) AS joined,
       count(*) FILTER (WHERE kept_at = 1 AND others > 1) AS password_kept,
       count(*) FILTER (WHERE kept_at > 1) AS password_adopted,
       count(*) FILTER (WHERE kept_at IS NULL AND others > 0) AS password_dropped
FROM (
    SELECT min(m.position) FILTER (WHERE {carried} AND btrim(p.password) <> '') AS kept_at,
           count(DISTINCT p.password) FILTER (WHERE btrim(p.password) <> '') AS others
    FROM member AS m
    JOIN (SELECT 0 AS side, o.{studio_owners.id} AS id, o.{studio_owners.password} AS password FROM {studio_owners} AS o
          UNION ALL SELECT 1, c.{customers.id}, c.{customers.password} FROM {customers} AS c) AS p
      ON p.side = m.side AND p.id = m.source_id
    WHERE m.size > 1
    GROUP BY m.key
) AS identity
"""

# Most e-mails are spelt alike on both sides: comparing them as they stand first spares their keys. No temporary table takes
# part, so that PostgreSQL may use several processes.
_LINKED_BOOKINGS = """
SELECT count(t.{bookings.customerId}) AS by_customer, count(t.{bookings.customerId}) - count(c.{customers.id}) AS lost,
       count(*) FILTER (WHERE c.{customers.email}::text COLLATE "C" <> t.{bookings.customerEmail}::text COLLATE "C"
                        AND {customer_key} <> {booking_key}) AS key_differs
FROM {bookings} AS t LEFT JOIN {customers} AS c ON c.{customers.id} = t.{bookings.customerId}
"""

_UNVERIFIED_BOOKINGS = """
SELECT count(*) FROM {bookings} AS t JOIN ({unverified}) AS u ON u.key = {booking_key} WHERE t.{bookings.customerId} IS NULL
"""
