# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an application writes while people use it, for a rehearsal: on either side, marked, and looked for afterwards."""

from __future__ import annotations

import secrets
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._rehearsal_copy import require_copy
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma, compose, identity_key

_NOW = "(clock_timestamp() AT TIME ZONE 'UTC')::timestamp(3)"

#: A customer whose name the unified user has whoever else there is: nobody shares the identity key.
_CUSTOMER_ALONE = """
SELECT c.{customers.id} FROM {customers} AS c
WHERE c.{customers.id} <> {signup}
      AND NOT EXISTS (SELECT FROM {studio_owners} AS o WHERE {owner_key} = {customer_key})
      AND NOT EXISTS (SELECT FROM {customers} AS d WHERE d.{customers.id} <> c.{customers.id} AND {other_key} = {customer_key})
LIMIT 1
"""

#: Write -> the condition that it is where it belongs after the copy. The guest's user is nobody's but the booking's.
_CARRIED = {
    "sign-up": (
        "SELECT EXISTS (SELECT FROM {users} AS u JOIN {user_role_assignments} AS r ON r.{user_role_assignments.userId} = u.{users.id}"
        " WHERE u.{users.id} = {signup_user} AND u.{users.email} = {email}"
        " AND r.{user_role_assignments.role}::text = {customer_role})"
    ),
    "booking by a customer": (
        "SELECT EXISTS (SELECT FROM {new_bookings} AS b"
        " WHERE b.{new_bookings.id} = {booking} AND b.{new_bookings.customerId} = {customer_user})"
    ),
    "booking by a guest": (
        "SELECT EXISTS (SELECT FROM {new_bookings} AS b JOIN {users} AS u ON u.{users.id} = b.{new_bookings.customerId}"
        " JOIN unified_user_journal.identity_map AS m ON m.user_id = u.{users.id} AND m.source_table = 'bookings'"
        " WHERE b.{new_bookings.id} = {guest_booking} AND u.{users.email} = {guest_email})"
    ),
    "profile change": "SELECT EXISTS (SELECT FROM {users} AS u WHERE u.{users.id} = {customer_user} AND u.{users.name} = {changed_name})",
    "favourite": (
        "SELECT EXISTS (SELECT FROM {_UserFavorites} AS f WHERE f.{_UserFavorites.A} = {studio} AND f.{_UserFavorites.B} = {signup_user})"
    ),
}

_KEPT = {
    "sign-up": "SELECT EXISTS (SELECT FROM {customers} AS c WHERE c.{customers.id} = {signup})",
    "booking by a customer": "SELECT EXISTS (SELECT FROM {bookings} AS b WHERE b.{bookings.id} = {booking} AND b.{bookings.customerId} = {customer})",
    "booking by a guest": "SELECT EXISTS (SELECT FROM {bookings} AS b WHERE b.{bookings.id} = {guest_booking})",
    "profile change": "SELECT EXISTS (SELECT FROM {customers} AS c WHERE c.{customers.id} = {customer} AND c.{customers.name} = {changed_name})",
    "favourite": (
        "SELECT EXISTS (SELECT FROM {_CustomerFavorites} AS f"
        " WHERE f.{_CustomerFavorites.A} = {signup} AND f.{_CustomerFavorites.B} = {studio})"
    ),
}

_STANDING = {
    "unified booking": (
        "SELECT EXISTS (SELECT FROM {new_bookings} AS b WHERE b.{new_bookings.id} = {unified_booking}"
        " AND b.{new_bookings.customerId} = {signup_user})"
        " AND NOT EXISTS (SELECT FROM {bookings} AS b WHERE b.{bookings.id} = {unified_booking})"
    ),
    "unified profile change": (
        "SELECT EXISTS (SELECT FROM {users} AS u WHERE u.{users.id} = {customer_user} AND u.{users.name} = {unified_name})"
        " AND NOT EXISTS (SELECT FROM {customers} AS c WHERE c.{customers.id} = {customer} AND c.{customers.name} = {unified_name})"
    ),
    "role grant": (
        "SELECT EXISTS (SELECT FROM {user_role_assignments} AS r WHERE r.{user_role_assignments.id} = {grant}"
        " AND r.{user_role_assignments.userId} = {signup_user})"
    ),
}


class Writes:
    """The writes of one rehearsal. They carry ids of their own, so that they can be found again.

    Args:
        database: a session on the copy; each method refuses any other database.
        schema: the resolved tables.
        email_match: the policy that says whose e-mails are one person's.
        original: the real database's name.
    """

    def __init__(self, database: Database, schema: Schema, email_match: str, original: str) -> None:
        self._database = database
        self._schema = schema
        self._email_match = email_match
        self._original = original
        token = secrets.token_hex(5)
        marks = {name: f"rehearsal-{name}-{token}" for name in ("signup", "booking", "guest_booking", "unified_booking", "grant", "studio")}
        marks.update(email=f"rehearsal-{token}@example.invalid", guest_email=f"rehearsal-guest-{token}@example.invalid")
        marks.update(new_name="Rehearsal", changed_name=f"Rehearsal {token}", unified_name=f"Rehearsal unified {token}")
        self._parts: dict[str, Any] = {name: sql.Literal(value) for name, value in marks.items()}
        self._parts.update(customer_role=sql.Literal(_mapping.CUSTOMER_ROLE))
        self._made_studio = False

    @property
    def rows_added(self) -> dict[str, int]:
        """How many rows the legacy writes add, by logical table; the profile change adds none."""
        return {"customers": 1, "bookings": 2, "_CustomerFavorites": 1, "studios": int(self._made_studio)}

    def write_legacy(self) -> list[str]:
        """Sign up, book, book as a guest, change a profile and keep a favourite, as the application of before does.

        Returns:
            The names of the writes.

        Raises:
            UnifiedUserError: the database is not the marked copy.
        """
        require_copy(self._database, self._original)
        now = sql.SQL(_NOW)
        with self._database.transaction():
            self._insert("customers", id="signup", email="email", name="new_name", updatedAt=now)
            self._choose_studio(now)
            self._choose_customer()
            booking = {"studioId": "studio", "customerName": "new_name", "customerPhone": "new_name", "updatedAt": now,
                       "preferredDate": sql.Literal("2030-01-01"), "preferredTime": sql.Literal("10:00")}
            self._insert("bookings", id="booking", customerId="customer", customerEmail=self._email_of_customer(), **booking)
            self._insert("bookings", id="guest_booking", customerEmail="guest_email", **booking)
            self._database.execute(self._compose(
                "UPDATE {customers} AS c SET {customers.name} = {changed_name}, {customers.updatedAt} = {now}"
                " WHERE c.{customers.id} = {customer}", now=now,
            ))
            self._insert("_CustomerFavorites", A="signup", B="studio")
        return list(_KEPT)

    def require_carried(self) -> None:
        """Raise unless every legacy write is where the contract wants it on the unified side."""
        self._require(_CARRIED, "is not where it belongs on the unified side")

    def require_kept(self) -> None:
        """Raise unless every legacy write is on the legacy side, as it was written."""
        self._require(_KEPT, "is not on the legacy side any more")

    def write_unified(self) -> list[str]:
        """Book, change a profile and grant a role as the application of afterwards does, and look for them.

        Returns:
            The names of the writes.

        Raises:
            UnifiedUserError: the database is not the marked copy, or a write is not where it belongs.
        """
        require_copy(self._database, self._original)
        now = sql.SQL(_NOW)
        with self._database.transaction():
            self._insert("new_bookings", id="unified_booking", studioId="studio", customerId="signup_user", customerName="new_name",
                         customerEmail="email", customerPhone="new_name", preferredDate=sql.Literal("2030-01-02"),
                         preferredTime=sql.Literal("11:00"), createdAt=now, updatedAt=now)
            self._database.execute(self._compose(
                "UPDATE {users} AS u SET {users.name} = {unified_name}, {users.updatedAt} = {now} WHERE u.{users.id} = {customer_user}", now=now,
            ))
            self._insert("user_role_assignments", id="grant", userId="signup_user", role=sql.Literal(_mapping.OWNER_ROLE), studioId="studio",
                         grantedBy="customer_user", grantedAt=now)
        self._require(_STANDING, "is not where it belongs on the unified side alone")
        return list(_STANDING)

    def _choose_studio(self, now) -> None:
        """Take a studio that is there; an application without one gets it from us."""
        found = self._database.value(self._schema.compose("SELECT {studios.id} FROM {studios} LIMIT 1"))
        self._made_studio = found is None
        if found is None:
            contact = dict.fromkeys(("name", "address", "city", "phone"), "new_name")
            self._insert("studios", id="studio", email="email", updatedAt=now, **contact)
        else:
            self._parts["studio"] = sql.Literal(found)

    def _choose_customer(self) -> None:
        """Take a customer who was there before and is nobody else; where there is none, the one who just signed up."""
        keys = {
            name: identity_key(self._schema.compose(column), self._email_match)
            for name, column in (
                ("customer_key", "c.{customers.email}"), ("other_key", "d.{customers.email}"), ("owner_key", "o.{studio_owners.email}")
            )
        }
        found = self._database.value(self._compose(_CUSTOMER_ALONE, **keys))
        self._parts["customer"] = self._parts["signup"] if found is None else sql.Literal(found)
        for name in ("customer", "signup"):
            self._parts[f"{name}_user"] = compose(
                "(SELECT m.user_id FROM unified_user_journal.identity_map AS m"
                " WHERE m.source_table = 'customers' AND m.source_id = {id})", {"id": self._parts[name]},
            )

    def _email_of_customer(self):
        return self._compose("(SELECT c.{customers.email} FROM {customers} AS c WHERE c.{customers.id} = {customer})")

    def _compose(self, template: str, **parts):
        return self._schema.compose(template, **{**self._parts, **parts})

    def _insert(self, table: str, **values: Any) -> None:
        """Insert one row as the application would: what it leaves to defaults is left out, what this database adds is borrowed.

        Args:
            table: a logical table.
            values: logical column -> composed expression, or the name of one of our parts. Columns that this database lacks are left out.
        """
        relation = self._schema[table]
        row = {
            relation.names[column]: self._parts[value] if isinstance(value, str) else value
            for column, value in values.items() if column in relation.names
        }
        for name in relation.unlisted:
            column = relation.columns[name]
            if column.not_null and column.default is None and not column.generated and not column.identity:
                row[name] = self._schema.compose("(SELECT t.{column} FROM {table} AS t LIMIT 1)", table=table, column=sql.Identifier(name))
        self._database.execute(
            self._schema.compose(
                "INSERT INTO {table} ({columns}) VALUES ({row})",
                table=table, columns=comma(sql.Identifier(name) for name in row), row=comma(row.values()),
            )
        )

    def _require(self, conditions: dict[str, str], problem: str) -> None:
        lost = [name for name, condition in conditions.items() if not self._database.value(self._compose(condition))]
        if lost:
            raise UnifiedUserError(
                "find the writes of the rehearsal again",
                f"{', '.join(lost)} {problem}",
                "Look for triggers, rules or policies on these tables; rehearsal_keep: true keeps the copy for looking",
                lost_writes=lost,
            )
