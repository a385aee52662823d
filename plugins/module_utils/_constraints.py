# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The keys and references of the contract, section 1, by logical names: what preflight holds a database against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Key:
    """Columns that are unique together.

    Attributes:
        table: logical table.
        columns: logical columns.
        identifies: whether the copy relies on it; doubles of an e-mail are a matter of identities instead.
    """

    table: str
    columns: tuple[str, ...]
    identifies: bool = True


@dataclass(frozen=True)
class Reference:
    """A column that names a row of another table by its id.

    Attributes:
        table: logical table.
        column: logical column.
        target: logical table it refers to.
        copied: whether the copy needs the row referred to; otherwise the reference stays where it is.
    """

    table: str
    column: str
    target: str
    copied: bool = True


KEYS = (
    Key("studio_owners", ("id",)),
    Key("studio_owners", ("email",), identifies=False),
    Key("customers", ("id",)),
    Key("customers", ("email",), identifies=False),
    Key("accounts", ("id",)),
    Key("accounts", ("provider", "providerAccountId")),
    Key("sessions", ("id",)),
    Key("sessions", ("sessionToken",)),
    Key("studios", ("id",)),
    Key("services", ("id",)),
    Key("bookings", ("id",)),
    Key("_CustomerFavorites", ("A", "B")),
    Key("users", ("id",)),
    Key("users", ("email",)),
    Key("user_role_assignments", ("id",)),
    Key("user_role_assignments", ("userId", "role", "studioId")),
    Key("studio_ownership", ("id",)),
    Key("studio_ownership", ("userId", "studioId")),
    Key("new_accounts", ("id",)),
    Key("new_accounts", ("provider", "providerAccountId")),
    Key("new_sessions", ("id",)),
    Key("new_sessions", ("sessionToken",)),
    Key("new_bookings", ("id",)),
    Key("_UserFavorites", ("A", "B")),
)

REFERENCES = (
    Reference("accounts", "userId", "studio_owners"),
    Reference("sessions", "userId", "studio_owners"),
    Reference("studios", "ownerId", "studio_owners"),
    Reference("services", "studioId", "studios", copied=False),
    Reference("bookings", "studioId", "studios"),
    Reference("bookings", "serviceId", "services"),
    Reference("bookings", "customerId", "customers"),
    Reference("_CustomerFavorites", "A", "customers"),
    Reference("_CustomerFavorites", "B", "studios"),
    Reference("user_role_assignments", "userId", "users"),
    Reference("user_role_assignments", "studioId", "studios"),
    Reference("studio_ownership", "userId", "users"),
    Reference("studio_ownership", "studioId", "studios"),
    Reference("new_accounts", "userId", "users"),
    Reference("new_sessions", "userId", "users"),
    Reference("new_bookings", "studioId", "studios"),
    Reference("new_bookings", "serviceId", "services"),
    Reference("new_bookings", "customerId", "users"),
    Reference("_UserFavorites", "A", "studios"),
    Reference("_UserFavorites", "B", "users"),
)
