# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one declarative description of legacy and unified tables: names, columns, and which table becomes which.

Everything here is data (the contract, section 1). The copy, the findings and the verification read it; what a
database really calls these things is resolved in ``_catalog``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

LEGACY = "legacy"
UNIFIED = "unified"
SHARED = "shared"

OWNER_ROLE = "STUDIO_OWNER"
CUSTOMER_ROLE = "CUSTOMER"
GRANTED_BY = "SYSTEM_MIGRATION"

#: Columns that a schema may lack (the contract, section 1); every other listed one is required.
OPTIONAL_COLUMNS = frozenset(
    (
        *("image", "isPrimary", "canTransfer", "invitedBy", "invitedAt", "acceptedAt", "grantedBy", "grantedAt", "expiresAt"),
        *("explicitHealthConsent", "healthConsentGivenAt", "healthConsentText", "healthConsentWithdrawnAt"),
        *("confirmedBy", "confirmedAt", "cancelledBy", "cancelledAt"),
    )
)


@dataclass(frozen=True)
class Table:
    """One logical table.

    Attributes:
        side: ``legacy``, ``unified``, or ``shared`` for what stays where it is.
        columns: logical column names, in the contract's order.
        starts_empty: the migration writes nothing here.
    """

    side: str
    columns: tuple[str, ...]
    starts_empty: bool = False

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that must be there."""
        if self.starts_empty:
            return ()
        return tuple(name for name in self.columns if name not in OPTIONAL_COLUMNS)


def _table(side: str, columns: str, starts_empty: bool = False) -> Table:
    return Table(side, tuple(columns.split()), starts_empty)


_ACCOUNT = (
    "id userId type provider providerAccountId refresh_token access_token expires_at token_type scope id_token session_state"
)
_SESSION = "id sessionToken userId expires"
_BOOKING = (
    "id studioId serviceId customerId customerName customerEmail customerPhone preferredDate preferredTime message"
    " explicitHealthConsent healthConsentGivenAt healthConsentText healthConsentWithdrawnAt status createdAt updatedAt"
)

TABLES: dict[str, Table] = {
    "studio_owners": _table(LEGACY, "id name email emailVerified password image createdAt updatedAt"),
    "customers": _table(LEGACY, "id name email emailVerified password phone image createdAt updatedAt"),
    "accounts": _table(LEGACY, _ACCOUNT),
    "sessions": _table(LEGACY, _SESSION),
    "bookings": _table(LEGACY, _BOOKING),
    "_CustomerFavorites": _table(LEGACY, "A B"),
    "studios": _table(
        SHARED,
        "id name description address city postalCode phone email latitude longitude openingHours ownerId createdAt updatedAt",
    ),
    "services": _table(SHARED, "id studioId name description price duration createdAt updatedAt"),
    "users": _table(
        UNIFIED,
        "id email emailVerified password name phone image primaryRole isActive isSuspended createdAt updatedAt",
    ),
    "user_role_assignments": _table(UNIFIED, "id userId role studioId grantedBy grantedAt expiresAt"),
    "studio_ownership": _table(
        UNIFIED, "id userId studioId isPrimary canTransfer invitedBy invitedAt acceptedAt"
    ),
    "new_accounts": _table(UNIFIED, _ACCOUNT),
    "new_sessions": _table(UNIFIED, _SESSION),
    "new_bookings": _table(UNIFIED, _BOOKING + " confirmedBy confirmedAt cancelledBy cancelledAt"),
    "_UserFavorites": _table(UNIFIED, "A B"),
    "magic_link_tokens": _table(UNIFIED, "id token email expiresAt used createdAt", starts_empty=True),
    "audit_logs": _table(
        UNIFIED,
        "id userId action resource resourceId metadata ipAddress userAgent createdAt",
        starts_empty=True,
    ),
}

#: Legacy rows that refer to a person: logical table, the column that refers, the person's table.
REFERRING = (
    ("accounts", "userId", "studio_owners"),
    ("sessions", "userId", "studio_owners"),
    ("studios", "ownerId", "studio_owners"),
    ("bookings", "customerId", "customers"),
    ("_CustomerFavorites", "A", "customers"),
)

#: Row for row copies: unified table -> (legacy table, columns that a rule fills instead).
ROW_COPIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "new_accounts": ("accounts", ("userId",)),
    "new_sessions": ("sessions", ("userId",)),
    "new_bookings": ("bookings", ("customerId",)),
}

#: Shared rows that unified rows refer to: unified table -> column -> table.
PARENTS = {
    "studio_ownership": {"studioId": "studios"},
    "_UserFavorites": {"A": "studios"},
    "new_bookings": {"studioId": "studios", "serviceId": "services"},
}

#: What the sync reads or writes of tables that are on neither of its sides.
REFERRED_TO = {"studios": ("id", "ownerId"), "services": ("id",), "audit_logs": ("userId",)}

#: The tables whose rows are people, in survivor order, with the role each gives.
PEOPLE: dict[str, str] = {"studio_owners": OWNER_ROLE, "customers": CUSTOMER_ROLE}

#: Columns of ``users`` that have a rule of their own; every further one follows the rule for ``name``.
USER_RULES = ("id", "email", "emailVerified", "password", "primaryRole", "isActive", "isSuspended", "createdAt", "updatedAt")

#: The unified tables that the migration fills, parents first.
FILLED = tuple(name for name, table in TABLES.items() if table.side == UNIFIED and not table.starts_empty)

#: Every unified table, parents first.
UNIFIED_TABLES = tuple(name for name, table in TABLES.items() if table.side == UNIFIED)

#: Tables that must not change while a copy reads them, parents first.
SOURCES = tuple(name for name, table in TABLES.items() if table.side != UNIFIED)


def snake_case(name: str) -> str:
    """Return the snake_case form of a logical name; ``A`` and ``B`` keep theirs."""
    if len(name) == 1:
        return name
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@dataclass(frozen=True)
class Policies:
    """The operator's decisions, named as in the contract.

    Raises:
        UnifiedUserError: a value that the contract does not know.
    """

    email_match: str = "case_insensitive"
    email_store: str = "as_stored"
    join_credentials: str = "verified"
    duplicate_identities: str = "fail"
    id_collisions: str = "fail"
    unresolvable_bookings: str = "fail"
    guest_role: str = "CUSTOMER"

    def __post_init__(self) -> None:
        for name, choices in POLICY_CHOICES.items():
            if getattr(self, name) not in choices:
                raise UnifiedUserError(
                    f"read policy {name}", f"it must be one of {', '.join(choices)}", f"Set unified_user_{name} to one of them"
                )

    @classmethod
    def from_parameters(cls, parameters: dict[str, Any]) -> Policies:
        """Take the policies out of module parameters."""
        return cls(**{name: parameters[name] for name in POLICY_CHOICES})


#: Policy -> its values, the default first (the contract, sections 2 and 3).
POLICY_CHOICES: dict[str, tuple[str, ...]] = {
    "email_match": ("case_insensitive", "exact"),
    "email_store": ("as_stored", "normalized"),
    "join_credentials": ("verified", "all"),
    "duplicate_identities": ("fail", "merge"),
    "id_collisions": ("fail", "rekey"),
    "unresolvable_bookings": ("fail", "quarantine"),
    "guest_role": ("CUSTOMER", "GUEST"),
}


@dataclass(frozen=True)
class Names:
    """What an application calls the logical tables and columns, where it differs from the default.

    Attributes:
        tables: logical table -> actual table.
        columns: logical table -> logical column -> actual column.
    """

    tables: dict[str, str] = field(default_factory=dict)
    columns: dict[str, dict[str, str]] = field(default_factory=dict)

    def table(self, logical: str) -> str:
        """Return the actual name of a logical table."""
        return self.tables.get(logical, logical)


def _fail(path: str, cause: str, next_step: str) -> None:
    raise UnifiedUserError(f"read the mapping at {path}", cause, next_step)


def parse_mapping(mapping: dict[str, Any] | None) -> Names:
    """Validate an overriding mapping.

    Args:
        mapping: ``{tables: {<logical table>: {name: <actual>, columns: {<logical column>: <actual>}}}}`` or None.

    Raises:
        UnifiedUserError: naming the path of the first wrong key or value.
    """
    names, columns = {}, {}
    mapping = mapping or {}
    for key in mapping:
        if key != "tables":
            _fail(f"unified_user_mapping.{key}", "there is no such key", "The only key here is 'tables'")
    tables = mapping.get("tables") or {}
    if not isinstance(tables, dict):
        _fail("unified_user_mapping.tables", "it must be a dictionary", "Write <logical table>: {name: …, columns: {…}}")
    for table, entry in tables.items():
        path = f"unified_user_mapping.tables.{table}"
        if table not in TABLES:
            _fail(path, "there is no such logical table", f"Known are {', '.join(TABLES)}")
        if not isinstance(entry, dict):
            _fail(path, "it must be a dictionary", "Write {name: <actual table>, columns: {<logical>: <actual>}}")
        for key in entry:
            if key not in ("name", "columns"):
                _fail(f"{path}.{key}", "there is no such key", "Known are 'name' and 'columns'")
        if "name" in entry:
            names[table] = _actual_name(f"{path}.name", entry["name"])
        overrides = entry.get("columns") or {}
        if not isinstance(overrides, dict):
            _fail(f"{path}.columns", "it must be a dictionary", "Write <logical column>: <actual column>")
        for column, actual in overrides.items():
            if column not in TABLES[table].columns:
                _fail(f"{path}.columns.{column}", "there is no such logical column", f"Known are {', '.join(TABLES[table].columns)}")
            columns.setdefault(table, {})[column] = _actual_name(f"{path}.columns.{column}", actual)
        _refuse_doubles(f"{path}.columns", columns.get(table, {}))
    _refuse_doubles("unified_user_mapping.tables", {name: names.get(name, name) for name in TABLES})
    return Names(names, columns)


def _actual_name(path: str, value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        _fail(path, "it must be a name that is not empty", "Write the name as the database has it")
    if len(value.encode()) > 63:
        _fail(path, "PostgreSQL's names have at most 63 bytes", "Write the name as the database has it")
    return value


def _refuse_doubles(path: str, names: dict[str, str]) -> None:
    seen: dict[str, str] = {}
    for logical, actual in names.items():
        if actual in seen:
            _fail(f"{path}.{logical}", f"{actual} is also what {seen[actual]} is called", "Give each its own name")
        seen[actual] = logical
