# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The people that an auth check signs in as: made for one run, marked in every row, and removed with every trace."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any, Callable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_password import bcrypt_hash, new_password
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, describe, psycopg2, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._journal import STUDIO_LOCK
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma, compose

#: What every address, every studio's address and the browser's name hold; a run's own number follows.
MARK = "auth-check-"
_DIGITS = 10
#: A run that is younger may still be going on.
_LEFTOVER_AFTER = "1 hour"
_NOW = "(clock_timestamp() AT TIME ZONE 'UTC')::timestamp(3)"
_TRIES = 5
#: How often, and how long each, to wait for what the application still writes.
_PAUSES, _PAUSE_SECONDS = 10, 1.0
#: Where nothing says what the application hashes with: what its libraries default to.
_DEFAULT_COST = 10

#: The tables in which a run leaves rows, and how they are known, children first. ``ids`` are all ids that bear the mark.
_TRACES = (
    ("audit_logs", "position(%(mark)s in coalesce({audit_logs.userAgent}, '')) > 0 OR {audit_logs.userId} = ANY (%(ids)s)"
                   " OR {audit_logs.resourceId} = ANY (%(ids)s)"),
    ("magic_link_tokens", "position(%(mark)s in lower({magic_link_tokens.email})) > 0"),
    ("new_bookings", "position(%(mark)s in lower({new_bookings.customerEmail})) > 0 OR {new_bookings.customerId} = ANY (%(users)s)"),
    ("bookings", "position(%(mark)s in lower({bookings.customerEmail})) > 0"),
    ("studios", "position(%(mark)s in lower({studios.email})) > 0"),
    ("users", "position(%(mark)s in lower({users.email})) > 0"),
    ("studio_owners", "position(%(mark)s in lower({studio_owners.email})) > 0"),
    ("customers", "position(%(mark)s in lower({customers.email})) > 0"),
)  # fmt: skip

_STUDIO_LOCKS = """
DELETE FROM unified_user_journal.identity_lock AS l WHERE starts_with(l.identity_key, %(prefix)s)
AND NOT EXISTS (SELECT FROM {studios} AS s WHERE s.{studios.id} = substr(l.identity_key, length(%(prefix)s) + 1))
"""

_LEFTOVERS = """
SELECT DISTINCT substring(lower({email}) from %(pattern)s) AS mark FROM {people}
WHERE lower({email}) ~ %(pattern)s AND {created} < (clock_timestamp() AT TIME ZONE 'UTC') - %(age)s::interval
"""

_COST = """
SELECT substring({users.password} from '^[$]2[abxy][$](\\d\\d)[$]')::int AS cost FROM {users}
WHERE {users.password} ~ '^[$]2[abxy][$]' GROUP BY 1 ORDER BY count(*) DESC LIMIT 1
"""


@dataclass
class Person:
    """A test account.

    Attributes:
        name: what the cases call it.
        email: its marked address.
        password: its password, or empty where it has none.
        id: the id of its user.
    """

    name: str
    email: str
    password: str = ""
    id: str = ""


class People:
    """The test accounts of one run in one database.

    Args:
        database: an open session that may write the application's tables.
        schema: the resolved tables.
        domain: of the addresses; one that belongs to nobody.
        cost: of the bcrypt hashes; None for what most users of the database have.
    """

    def __init__(self, database: Database, schema: Schema, domain: str, cost: int | None = None) -> None:
        self.database = database
        self.schema = schema
        self.mark = MARK + secrets.token_hex(_DIGITS // 2)
        self._domain = domain
        self._cost = cost
        self.by_name: dict[str, Person] = {}
        self.studio = ""
        self.bookings: dict[str, str] = {}
        self.absorbed_password = ""
        self.stored_session = ""

    def __getitem__(self, name: str) -> Person:
        return self.by_name[name]

    def address(self, name: str) -> str:
        """Return the address that a person of that name would have."""
        return "%s-%s@%s" % (self.mark, name, self._domain)

    @property
    def legacy_side(self) -> bool:
        """Whether the legacy people's tables are still there."""
        return all(self.schema[table].exists for table in _mapping.PEOPLE)

    def require(self) -> None:
        """Raise for a table that the check cannot do without.

        Raises:
            UnifiedUserError: names it.
        """
        needed = ("users", "user_role_assignments", "studio_ownership", "new_accounts", "new_sessions", "new_bookings", "studios",
                  "magic_link_tokens", "audit_logs")  # fmt: skip
        missing = [name for name in needed if not self.schema[name].exists]
        if missing:
            raise UnifiedUserError(
                "check sign-in", "schema %s has no table %s" % (self.schema.name, ", ".join(missing)),
                "Run playbooks/migrate.yml first, or name the tables in unified_user_mapping or unified_user_schema",
            )  # fmt: skip

    def make(self) -> None:
        """Make all accounts, in one transaction.

        Raises:
            UnifiedUserError: the database or this host cannot.
        """
        if self._cost is None:
            self._cost = self.database.value(self.schema.compose(_COST)) or _DEFAULT_COST
        # One hash is computed slowly on purpose; each account has a password of its own all the same.
        passwords = {name: new_password() for name in ("owner", "customer", "joined", "suspended", "auditor", "absorbed")}
        hashes = {name: bcrypt_hash(password, self._cost) for name, password in passwords.items()}
        self.absorbed_password = passwords.pop("absorbed")
        self._repeated(lambda: self._make(passwords, hashes), "make the test accounts")

    def _make(self, passwords: dict[str, str], hashes: dict[str, str]) -> None:
        owner, customer = _mapping.OWNER_ROLE, _mapping.CUSTOMER_ROLE
        roles = {
            "owner": (owner,), "google": (owner,), "customer": (customer,), "stranger": (customer,),
            "suspended": (customer,), "auditor": (owner, customer), "joined": (owner, customer),
        }  # fmt: skip
        for name, granted in roles.items():
            person = self.by_name[name] = Person(name, self.address(name), passwords.get(name, ""), _new_id())
            if name == "joined" and self.legacy_side:
                self._make_legacy(person, hashes)
            self._make_user(person, hashes.get(name), granted)
        self._insert("new_accounts", id=_new_id(), userId=self["google"].id, type="oidc", provider="google", providerAccountId=self["google"].email)
        self.studio = _new_id()
        self._insert("studios", id=self.studio, name="auth check", address="auth check", city="auth check", phone="0", email=self.address("studio"),
                     updatedAt=sql.SQL(_NOW))  # fmt: skip
        self._insert("studio_ownership", id=_new_id(), userId=self["owner"].id, studioId=self.studio, isPrimary=True, canTransfer=True,
                     acceptedAt=sql.SQL(_NOW))  # fmt: skip
        for name, date in (("customer", "2091-07-13"), ("stranger", "2092-08-14")):
            self.bookings[name] = _new_id()
            self._insert("new_bookings", id=self.bookings[name], studioId=self.studio, customerId=self[name].id, customerName=self[name].email,
                         customerEmail=self[name].email, customerPhone="", preferredDate=date, preferredTime="09:00", updatedAt=sql.SQL(_NOW))  # fmt: skip
        self.stored_session = secrets.token_hex(32)
        self._insert("new_sessions", id=_new_id(), sessionToken=self.stored_session, userId=self["owner"].id,
                     expires=sql.SQL("%s + interval '1 hour'" % _NOW))  # fmt: skip

    def _make_legacy(self, person: Person, hashes: dict[str, str]) -> None:
        """Make the two rows that the joined user comes from: a verified owner, and a customer that nobody verified."""
        now = sql.SQL(_NOW)
        self._insert("studio_owners", id=person.id, name="auth check", email=person.email, emailVerified=now, password=hashes["joined"], updatedAt=now)
        self._insert("customers", id=_new_id(), name="auth check", email=person.email, password=hashes["absorbed"], updatedAt=now)
        # Under sync the user is there by now.
        person.id = self.database.value(self.schema.compose("SELECT {users.id} FROM {users} WHERE {users.email} = %s"), (person.email,)) or person.id

    def _make_user(self, person: Person, hashed: str | None, roles: tuple[str, ...]) -> None:
        now = sql.SQL(_NOW)
        if not self.database.value(self.schema.compose("SELECT 1 FROM {users} WHERE {users.id} = %s"), (person.id,)):
            self._insert("users", id=person.id, email=person.email, emailVerified=now, password=hashed, name=person.email, primaryRole=roles[0],
                         isSuspended=person.name == "suspended", updatedAt=now)  # fmt: skip
        held = self.schema.compose(
            "SELECT 1 FROM {user_role_assignments} WHERE {user_role_assignments.userId} = %s AND {user_role_assignments.role}::text = %s"
        )
        for role in roles:
            # A role that is there already came with the legacy rows.
            if not self.database.value(held, (person.id, role)):
                self._insert("user_role_assignments", id=_new_id(), userId=person.id, role=role)

    def _insert(self, table: str, **values: Any) -> None:
        names = self.schema[table].names
        given = {column: value for column, value in values.items() if column in names or column not in _mapping.OPTIONAL_COLUMNS}
        self.database.execute(
            compose("INSERT INTO {table} ({columns}) VALUES ({values})", {
                "table": self.schema.table(table),
                "columns": comma(self.schema.column(table, column) for column in given),
                "values": comma(value if isinstance(value, sql.Composable) else sql.Placeholder(column) for column, value in given.items()),
            }),
            {column: value for column, value in given.items() if not isinstance(value, sql.Composable)},
        )  # fmt: skip

    def _repeated(self, work: Callable[[], None], action: str) -> None:
        """Do something in one transaction, again where another writer was in the way."""
        for attempt in range(_TRIES):
            try:
                with self.database.transaction():
                    return work()
            except psycopg2.Error as error:
                if error.pgcode not in ("40001", "40P01") or attempt == _TRIES - 1:
                    raise UnifiedUserError(action, describe(error), "See that %s may write the application's tables" % "the login user") from error
                time.sleep(0.1 * (attempt + 1))
        return None

    def value(self, query: str, *parameters: Any) -> Any:
        """Return the first value that a query with logical names finds."""
        return self.database.value(self.schema.compose(query), parameters)

    def values(self, query: str, *parameters: Any) -> list[Any]:
        """Return the first column that a query with logical names finds."""
        return [next(iter(row.values())) for row in self.database.rows(self.schema.compose(query), parameters)]

    def change(self, statement: str, *parameters: Any) -> int:
        """Run a statement with logical names and return how many rows it touched."""
        return self.database.execute(self.schema.compose(statement), parameters)

    def remove(self, still_written: bool = False) -> int:
        """Remove every row that this run left, and insist that none is left.

        Args:
            still_written: whether the application may be at a request whose answer nobody waits for; then until no more rows come.

        Returns:
            How many rows were removed.

        Raises:
            UnifiedUserError: some are still there; names the tables.
        """
        removed = self._remove(self.mark)
        for _pause in range(_PAUSES if still_written else 0):
            time.sleep(_PAUSE_SECONDS)
            late = self._remove(self.mark)
            removed += late
            if not late:
                break
        self._require_gone(self.mark)
        return removed

    def remove_leftovers(self) -> int:
        """Remove what earlier runs left that were killed; one that may still be going on is let alone.

        Returns:
            How many runs left something.
        """
        pattern = "%s[0-9a-f]{%d}" % (MARK, _DIGITS)
        marks = set()
        for table in ("users", *_mapping.PEOPLE):
            if self.schema[table].exists:
                parts = {"people": self.schema.table(table), "email": self.schema.column(table, "email"), "created": self.schema.column(table, "createdAt")}
                rows = self.database.rows(compose(_LEFTOVERS, parts), {"pattern": pattern, "age": _LEFTOVER_AFTER})
                marks.update(row["mark"] for row in rows)
        for mark in marks:
            self._remove(mark)
            self._require_gone(mark)
        return len(marks)

    def _remove(self, mark: str) -> int:
        removed = [0]

        def work() -> None:
            removed[0] = 0
            parameters = self._marked(mark)
            for table, condition in self._traces():
                removed[0] += self.database.execute(self.schema.compose("DELETE FROM {trace} WHERE {condition}", trace=table, condition=condition), parameters)
            # Sync locks identities by a row for each key, and studios by one for each; nobody has these keys any more.
            if self.database.value("SELECT to_regclass('unified_user_journal.identity_lock') IS NOT NULL"):
                self.database.execute("DELETE FROM unified_user_journal.identity_lock WHERE position(%s in identity_key) > 0", (mark,))
                self.database.execute(self.schema.compose(_STUDIO_LOCKS), {"prefix": STUDIO_LOCK})

        self._repeated(work, "remove the test accounts")
        return removed[0]

    def _require_gone(self, mark: str) -> None:
        parameters = self._marked(mark)
        left = [
            table for table, condition in self._traces()
            if self.database.value(self.schema.compose("SELECT EXISTS (SELECT FROM {trace} WHERE {condition})", trace=table, condition=condition), parameters)
        ]  # fmt: skip
        if left:
            raise UnifiedUserError(
                "remove the test accounts", "rows marked %s are still in %s" % (mark, ", ".join(left)),
                "Something wrote them meanwhile: delete them by that mark",
            )  # fmt: skip

    def _traces(self) -> list[tuple[str, Any]]:
        return [(table, self.schema.compose(condition)) for table, condition in _TRACES if self.schema[table].exists]

    def _marked(self, mark: str) -> dict[str, Any]:
        """Return the ids that bear a mark: of users, and of all that audit entries may be about."""

        def find(table: str, column: str) -> list[str]:
            if not self.schema[table].exists:
                return []
            named = self.schema.column(table, column)
            query = self.schema.compose("SELECT {people.id} AS id FROM {people} WHERE position(%s in lower({named})) > 0", people=table, named=named)
            return [row["id"] for row in self.database.rows(query, (mark,))]

        users = find("users", "email")
        others = find("studios", "email") + find("new_bookings", "customerEmail") + find("bookings", "customerEmail")
        return {"mark": mark, "users": users, "ids": users + others}


def _new_id() -> str:
    """Return an id as the application makes them, like a cuid."""
    return "c" + secrets.token_hex(12)
