# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sync as the tests of histories see it: a database with it, one without, and applications that write."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import psycopg2
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies as ModulePolicies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import Sync, SyncOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import verify_database
from psycopg2 import sql

from tests.application_writes.histories import Transaction
from tests.application_writes.session import Application, Statement, Written, key_columns
from tests.integration.subject import Subject
from tests.oracle import database as oracle
from tests.oracle.agreement import Leeway, State, disagreements, moved_users
from tests.oracle.model import Legacy, Policies, Projection
from tests.oracle.schema import LEGACY, Shape, quote
from tests.oracle.sync import adopt_times, as_kept, project_under_sync, with_comparable_quarantine

ROLE = "application"

# Where a person's row goes, another row's reference to it goes to NULL.
_SET_NULL = ("customerId", "serviceId", "ownerId")


def create_role(cluster: Any) -> None:
    """Create the role of an application, which has no rights of its own, unless it is there."""
    there = (psycopg2.errors.DuplicateObject, psycopg2.errors.UniqueViolation)
    with contextlib.closing(cluster.connect()) as admin, admin.cursor() as cursor, contextlib.suppress(*there):
        cursor.execute(f"CREATE ROLE {ROLE} LOGIN")


def comes_from_a_function(error: psycopg2.Error) -> bool:
    """Whether an error arose in a function that a trigger called, not in the application's own statement."""
    return "function" in (error.diag.context or "")


def describe(error: psycopg2.Error | None) -> str:
    """An error in one line."""
    return "no error" if error is None else f"{error.pgcode} {str(error).strip()!r:.400}"


def statements(outcome: Outcome) -> list[str]:
    """What was executed, for people."""
    return [f"  {statement.text:.300} {[ascii(value)[:60] for value in statement.parameters]}" for statement in outcome.executed]


@dataclass
class Outcome:
    """What became of a transaction.

    Attributes:
        committed: whether it was.
        error: what the database answered, if it refused.
        executed: the statements that were sent.
        written: the rows that were written.
    """

    committed: bool
    error: psycopg2.Error | None
    executed: list[Statement]
    written: Written


class SyncSubject(Subject):
    """A database with the collection's sync, and sessions of applications on it."""

    def __init__(self, cluster: Any, name: str, shape: Shape, naming: str) -> None:
        super().__init__(cluster, name, shape, naming)
        self.cluster, self.name = cluster, name
        create_role(cluster)
        schema = quote(self.layout.schema)
        self.execute(f"ALTER DATABASE {quote(name)} SET deadlock_timeout = '30ms'")
        self.execute(f"GRANT USAGE ON SCHEMA {schema} TO {ROLE}")
        self.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {ROLE}")
        self._applications: dict[Any, Application] = {}

    def close(self) -> None:
        """Close every connection and drop the database."""
        for application in self._applications.values():
            application.connection.close()
        super().close()

    def start(self, legacy: Legacy, policies: Policies, direction: str | None) -> None:
        """Start over with a migrated database, and turn on sync in a direction, or none."""
        self.execute("SET client_min_messages = warning; DROP SCHEMA IF EXISTS unified_user_journal CASCADE")
        self.write(legacy)
        self.policies = policies
        self.transform(policies)
        self.start_of_run = self.started_at()
        if direction:
            self.install(direction)

    @contextlib.contextmanager
    def sync(self) -> Iterator[Sync]:
        """Sync in a session of its own."""
        with self.session() as database:
            chosen = ModulePolicies.from_parameters(asdict(self.policies))
            yield Sync(database, SyncOptions(schema=self.layout.schema, mapping=None, policies=chosen))

    def install(self, direction: str) -> bool:
        """Turn sync on."""
        with self.sync() as sync:
            return sync.install(direction)

    def status(self) -> dict[str, Any]:
        """Sync's own word on how it is."""
        with self.sync() as sync:
            return sync.status()

    def connect(self, role: str | None = ROLE) -> Any:
        """A new connection of an application; as the tables' owner for None. Not in autocommit in spirit: BEGIN is sent."""
        connection = self.cluster.connect(self.name, **({"user": role} if role else {}))
        oracle.prepare(connection)
        with connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '30s'")
        return connection

    def application(self, name: Any = 0, role: str | None = ROLE) -> Application:
        """A session of an application, the same one for the same name and role."""
        if (name, role) not in self._applications:
            self._applications[name, role] = Application(self.connect(role), self.layout, self.policies)
        application = self._applications[name, role]
        application.policies = self.policies
        return application

    def run(self, transaction: Transaction, application: Application) -> Outcome:
        """Do a transaction once."""
        committed, error = False, None
        try:
            committed = transaction.run(application)
        except psycopg2.Error as caught:
            error = caught
        return Outcome(committed, error, application.executed, application.written)

    def replay(self, statements: list[Statement]) -> psycopg2.Error | None:
        """Give this database the statements another one was given, in one transaction; returns what it answered."""
        with self.connection.cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                for statement in statements:
                    statement.send(self.connection)
                cursor.execute("COMMIT")
            except psycopg2.Error as error:
                cursor.execute("ROLLBACK")
                return error
        return None

    def erase(self, users: set[str]) -> None:
        """Delete users of the unified side who have no booking."""
        with self.connection.cursor() as cursor:
            table = sql.Identifier(self.layout.schema, "users")
            cursor.execute(sql.SQL("DELETE FROM {} WHERE id = ANY ({}::text[])").format(table, sql.Literal(list(users))))

    def now(self) -> int:
        """The database's clock, as a moment."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT ceil(extract(epoch FROM clock_timestamp()) * 1000)::bigint")
            return cursor.fetchone()[0]

    def state(self) -> State:
        """Both sides and the journal, in one snapshot."""
        with self.connection.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                pinned = {}
                cursor.execute("SELECT to_regclass('unified_user_journal.pinned_booking') IS NOT NULL")
                if cursor.fetchone()[0]:
                    cursor.execute("SELECT booking_id, user_id FROM unified_user_journal.pinned_booking")
                    pinned = dict(cursor.fetchall())
                return State(self.legacy(), with_comparable_quarantine(self.unified()), pinned)
            finally:
                cursor.execute("COMMIT")

    def met(self) -> set[str]:
        """Users whom a legacy person has met: the only trace of it, where several wrote at once, is the journal's."""
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT DISTINCT i.user_id FROM unified_user_journal.identity_map AS i WHERE NOT i.made AND EXISTS ("
                           "SELECT FROM unified_user_journal.identity_map AS n WHERE n.user_id = i.user_id AND n.native)")
            return {row[0] for row in cursor.fetchall()}

    def reverse_differences(self) -> list[str]:
        """What the collection's own verification in reverse finds wrong."""
        chosen = ModulePolicies.from_parameters(asdict(self.policies))
        with self.session() as database:
            found = verify_database(database, self.layout.schema, policies=chosen, mask_pii=False, sample_size=100, direction="reverse")
        return [f"verification: {check.name} {check.detail} {check.samples}" for check in found.checks if not check.passed]

    def forward_differences(self, state: State) -> list[str]:
        """What the unified side of a database with forward sync only has wrong."""
        expected = project_under_sync(state.legacy, self.policies, self.start_of_run)
        adopt_times(expected, state.unified, self.start_of_run, self.now())
        expected.quarantine = as_kept(self.layout.shape, expected.quarantine)
        return oracle.compare(expected, state.unified, self.layout.shape)


def lost_writes(state: State, written: Written) -> list[str]:
    """Rows that are no longer as the application wrote them a moment ago."""
    sides: dict[str, dict[tuple, dict]] = {}
    found = []
    for (table, key), values in written.rows.items():
        if table not in sides:
            if table == "_UserFavorites":
                rows = [{"A": a, "B": b} for a, b in state.unified.favourites]
            else:
                rows = state.legacy[table] if table in LEGACY else list(state.unified.tables[table].values())
            sides[table] = {tuple(row[name] for name in key_columns(table)): row for row in rows}
        row = sides[table].get(key)
        if values is None:
            if row is not None:
                found.append(f"{table}: {key!r} was deleted and is there again")
            continue
        if row is None:
            # What went with a later statement's cascade is not noted; the sides' agreement covers it.
            if len(written.rows) == 1:
                found.append(f"{table}: {key!r} was written and is not there")
            continue
        for name, value in values.items():
            if row[name] != value and not (name in _SET_NULL and row[name] is None and len(written.rows) > 1):
                found.append(f"{table}: {key!r}.{name} was written as {value!r:.60} and is {row[name]!r:.60}")
    return found


@dataclass
class Witness:
    """Follows a history while both directions are on, and knows what it has made right."""

    subject: SyncSubject
    leeway: Leeway = field(default_factory=lambda: Leeway(once_joined=set()))

    def __post_init__(self) -> None:
        self.before = self.subject.state()
        self._learn(self.before, Written())

    def _learn(self, state: State, written: Written) -> None:
        self.leeway.met |= state.unified.tables["users"].keys() - state.rows_of_users().keys() - state.guests().keys()
        for user, rows in state.rows_of_users().items():
            if len(rows) > 1:
                self.leeway.once_joined.add(user)
                # A person who parts from an identity takes what was dropped there along.
                self.leeway.once_joined |= {row["id"] for _table, row in rows}
        for source, target in (("accounts", "new_accounts"), ("sessions", "new_sessions")):
            there = state.unified.tables[target]
            self.leeway.uncarried |= {row["id"] for row in state.legacy[source] if row["id"] not in there}
        for (table, key), values in written.rows.items():
            if table == "studios" and values is not None and "ownerId" in values:
                self.leeway.legacy_decided.add(key[0])
            if table == "user_role_assignments":
                role = self.before.unified.tables[table].get(key[0])
                if role:
                    self.leeway.revoked.add((role["userId"], role["role"]))
            if table == "studio_ownership":
                row = state.unified.tables[table].get(key[0]) or self.before.unified.tables[table].get(key[0])
                if row and not any(table == "studios" for table, _key in written.rows):
                    self.leeway.legacy_decided.discard(row["studioId"])

    def look(self, outcome: Outcome | None) -> list[str]:
        """What is wrong now, after a transaction (None: after something that wrote nothing)."""
        state = self.subject.state()
        written = outcome.written if outcome and outcome.committed else Written()
        uncarried = set(self.leeway.uncarried)
        self._learn(state, written)
        # What is missing for the first time has to have a reason of its own.
        judged = replace(self.leeway, uncarried=uncarried)
        found = disagreements(state, self.subject.policies, judged) + lost_writes(state, written)
        if outcome and len(outcome.executed) <= 1:
            found += moved_users(self.before, state, self.subject.policies)
        self.before = state
        return found


# What a guest's user has from his bookings, whichever side wrote them last, and what he keeps of it as a customer.
_MADE_OF_BOOKINGS = ("email", "name", "phone", "createdAt", "updatedAt", "primaryRole")


def unified_drift(state: State, without: Projection, once_guests: set[str], since: float, shape: Shape) -> list[str]:
    """How a unified side that only the unified application wrote differs from the same one without sync.

    Args:
        once_guests: everybody who was a guest at some time: as a customer he has that role.
        since: times from this moment on are the clock's, hence differ.
    """
    found = []
    for table, rows in state.unified.tables.items():
        ours, theirs = ({key: _timeless(row, since) for key, row in side.items()} for side in (rows, without.tables[table]))
        for user in once_guests & ours.keys() & theirs.keys() if table == "users" else ():
            ours[user], theirs[user] = ({name: value for name, value in row.items() if name not in _MADE_OF_BOOKINGS} for row in (ours[user], theirs[user]))
        if table == "user_role_assignments":
            ours, theirs = ({key: row for key, row in side.items() if row["userId"] not in once_guests} for side in (ours, theirs))
        found += oracle.compare_rows(shape, table, theirs, ours)
    found += [f"_UserFavorites: {pair!r} differs" for pair in state.unified.favourites ^ without.favourites]
    return found


def _timeless(row: dict, since: float) -> dict:
    times = ("grantedAt", "invitedAt", "acceptedAt")
    return {name: "later" if name in times and value is not None and value >= since else value for name, value in row.items()}


def retrying(subject: SyncSubject, application: Application, transaction: Transaction, patience: float = 60) -> Outcome:
    """Do a transaction as an application does that repeats what the database asks it to repeat, and nothing else."""
    give_up = time.monotonic() + patience
    while True:
        outcome = subject.run(transaction, application)
        if outcome.error is None or outcome.error.pgcode not in ("40001", "40P01") or time.monotonic() > give_up:
            return outcome
        time.sleep(0.002)
