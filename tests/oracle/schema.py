# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The two schemas of the contract, section 1, as data, and the DDL of any of their variations.

A `Shape` says which tables and columns a database has: optional columns may be missing and
columns the contract does not list may be there. A `Layout` says what a shape is called in one
database: the schema's name and how columns are spelled. Rows everywhere else in this package
are dicts by *logical* column name (``customerId``, whatever the database calls it).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from tests.oracle.moments import show_moment

NAMINGS = ("camel", "snake", "mixed")

SQL_TYPES = {
    "text": "TEXT",
    "moment": "TIMESTAMP(3)",
    "boolean": "BOOLEAN",
    "integer": "INTEGER",
    "float": "DOUBLE PRECISION",
    "json": "JSONB",
    "plain json": "JSON",
    "short text": "VARCHAR(40)",
    "number": "NUMERIC",
    "texts": "TEXT[]",
    "bytes": "BYTEA",
    "uuid": "UUID",
}


@dataclass(frozen=True)
class Column:
    """One column: its logical name, its type, whether it may be NULL, and a constant default.

    Attributes:
        kind: a key of `SQL_TYPES`, or the name of an enum.
        default: a Python value; None means no default, hence NULL. ``"now"`` on a moment means
            the database's clock, which no projection ever relies on.
        optional: the contract's "optional" columns, which an application may lack.
    """

    name: str
    kind: str
    nullable: bool = False
    default: Any = None
    optional: bool = False


_KINDS = {"i": "integer", "f": "float", "b": "boolean", "t": "moment", "j": "json", "J": "plain json", "v": "short text",
          "n": "number", "a": "texts", "x": "bytes", "u": "uuid", "S": "BookingStatus", "R": "UserRole"}  # fmt: skip


def _columns(text: str) -> tuple[Column, ...]:
    """Columns from a compact notation: ``name[:kind][?][~][=default]``, ``?`` meaning nullable, ``~`` optional."""
    found = []
    for word in text.split():
        name, kind, nullable, optional, default = re.fullmatch(r"(\w+)(?::(\w))?(\?)?(~)?(?:=(\w+))?", word).groups()
        value = {"true": True, "false": False}.get(default, default)
        value = int(value) if kind == "i" and value is not None else value
        found.append(Column(name, _KINDS.get(kind, "text"), bool(nullable), value, bool(optional)))
    return tuple(found)


_ACCOUNT = "id userId type provider providerAccountId refresh_token? access_token? expires_at:i? token_type? scope? id_token? session_state?"
_SESSION = "id sessionToken userId expires:t"
_CONSENT = "explicitHealthConsent:b?~=false healthConsentGivenAt:t?~ healthConsentText?~ healthConsentWithdrawnAt:t?~"
_STAMPS = "createdAt:t=now updatedAt:t"

LEGACY = {
    "studio_owners": _columns(f"id name? email emailVerified:t? password? image?~ {_STAMPS}"),
    "customers": _columns(f"id name email emailVerified:t? password? phone? image?~ {_STAMPS}"),
    "accounts": _columns(_ACCOUNT),
    "sessions": _columns(_SESSION),
    "studios": _columns(f"id name description? address city postalCode? phone email latitude:f? longitude:f? openingHours:j? ownerId? {_STAMPS}"),
    "services": _columns(f"id studioId name description? price:f duration:i {_STAMPS}"),
    "bookings": _columns(
        "id studioId serviceId? customerId? customerName customerEmail customerPhone "
        f"preferredDate preferredTime message? {_CONSENT} status:S=PENDING {_STAMPS}"
    ),
    "_CustomerFavorites": _columns("A B"),
    "verification_tokens": _columns("identifier token expires:t"),
    "email_verification_tokens": _columns("id email token expires:t createdAt:t=now"),
}

UNIFIED = {
    "users": _columns(f"id email emailVerified:t? password? name? phone? image?~ primaryRole:R=CUSTOMER isActive:b=true isSuspended:b=false {_STAMPS}"),
    "user_role_assignments": _columns("id userId role:R studioId? grantedBy?~ grantedAt:t~=now expiresAt:t?~"),
    "studio_ownership": _columns("id userId studioId isPrimary:b~=false canTransfer:b~=false invitedBy?~ invitedAt:t~=now acceptedAt:t?~"),
    "new_accounts": _columns(_ACCOUNT),
    "new_sessions": _columns(_SESSION),
    "new_bookings": _columns(
        "id studioId serviceId? customerId customerName customerEmail customerPhone? "
        f"preferredDate preferredTime message? {_CONSENT} status:S=PENDING "
        f"confirmedBy?~ confirmedAt:t?~ cancelledBy?~ cancelledAt:t?~ {_STAMPS}"
    ),
    "_UserFavorites": _columns("A B"),
    "magic_link_tokens": _columns("id token email expiresAt:t used:b=false createdAt:t=now"),
    "audit_logs": _columns("id userId? action resource resourceId metadata:j? ipAddress? userAgent? createdAt:t=now"),
}

ENUMS = {
    "BookingStatus": ("PENDING", "CONFIRMED", "CANCELLED"),
    "UserRole": ("SUPER_ADMIN", "STUDIO_OWNER", "CUSTOMER", "GUEST"),
}

_PRIMARY_KEYS = {"_CustomerFavorites": ("A", "B"), "_UserFavorites": ("A", "B"), "verification_tokens": ()}

_UNIQUE = [
    ("studio_owners", "email"),
    ("customers", "email"),
    ("users", "email"),
    ("accounts", "provider", "providerAccountId"),
    ("new_accounts", "provider", "providerAccountId"),
    ("sessions", "sessionToken"),
    ("new_sessions", "sessionToken"),
    ("user_role_assignments", "userId", "role", "studioId"),
    ("studio_ownership", "userId", "studioId"),
    ("magic_link_tokens", "token"),
    ("verification_tokens", "token"),
    ("verification_tokens", "identifier", "token"),
    ("email_verification_tokens", "token"),
]

_INDEXES = [
    ("_CustomerFavorites", "B"),
    ("_UserFavorites", "B"),
    ("new_bookings", "customerId"),
    ("new_bookings", "studioId"),
    ("users", "primaryRole"),
    ("user_role_assignments", "userId"),
    ("studio_ownership", "studioId"),
]

_FOREIGN_KEYS = [
    ("accounts", "userId", "studio_owners", "CASCADE"),
    ("sessions", "userId", "studio_owners", "CASCADE"),
    ("studios", "ownerId", "studio_owners", "CASCADE"),
    ("services", "studioId", "studios", "CASCADE"),
    ("bookings", "studioId", "studios", "CASCADE"),
    ("bookings", "serviceId", "services", "SET NULL"),
    ("bookings", "customerId", "customers", "SET NULL"),
    ("_CustomerFavorites", "A", "customers", "CASCADE"),
    ("_CustomerFavorites", "B", "studios", "CASCADE"),
    ("user_role_assignments", "userId", "users", "CASCADE"),
    ("user_role_assignments", "studioId", "studios", "CASCADE"),
    ("studio_ownership", "userId", "users", "CASCADE"),
    ("studio_ownership", "studioId", "studios", "CASCADE"),
    ("new_accounts", "userId", "users", "CASCADE"),
    ("new_sessions", "userId", "users", "CASCADE"),
    ("new_bookings", "studioId", "studios", "CASCADE"),
    ("new_bookings", "serviceId", "services", "SET NULL"),
    ("new_bookings", "customerId", "users", "SET NULL"),
    ("_UserFavorites", "A", "studios", "CASCADE"),
    ("_UserFavorites", "B", "users", "CASCADE"),
    ("audit_logs", "userId", "users", "SET NULL"),
]


@dataclass(frozen=True)
class Shape:
    """Which columns the tables of one application have.

    Attributes:
        name: for test ids and messages.
        without: (table, logical column) pairs of optional columns that are missing.
        extra: table -> columns the contract does not list.
    """

    name: str
    without: frozenset[tuple[str, str]] = frozenset()
    extra: dict[str, tuple[Column, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tables = {**LEGACY, **UNIFIED}
        for table, column in self.without:
            if not any(c.name == column and c.optional for c in tables[table]):
                raise ValueError(f"{table}.{column} is not an optional column")
        object.__setattr__(
            self,
            "_resolved",
            {table: {c.name: c for c in listed + self.extra.get(table, ()) if (table, c.name) not in self.without} for table, listed in tables.items()},
        )

    def __hash__(self) -> int:
        return hash(self.name)

    def columns(self, table: str) -> dict[str, Column]:
        """The columns of a table, by logical name, in order."""
        return self._resolved[table]


FULL = Shape("full")

MINIMAL = Shape("minimal", frozenset((table, column.name) for table, columns in {**LEGACY, **UNIFIED}.items() for column in columns if column.optional))

# Every optional column is missing on exactly one of the sides, and the later schema's isPrimary is gone.
LOPSIDED = Shape(
    "lopsided",
    frozenset(
        [
            ("studio_owners", "image"),
            ("studio_ownership", "isPrimary"),
            ("user_role_assignments", "grantedBy"),
            ("bookings", "explicitHealthConsent"),
            ("bookings", "healthConsentText"),
            ("new_bookings", "healthConsentGivenAt"),
            ("new_bookings", "confirmedAt"),
            ("new_bookings", "cancelledBy"),
            ("studio_ownership", "invitedAt"),
        ]
    ),
)

# Columns the contract never heard of: on one legacy table or both, of many types, of another type there, without destination.
_UNHEARD = "tags:a? preferredLocale? nickname:v? credit:n? avatar:x? externalRef:u? rawProfile:J?"
WIDENED = Shape(
    "widened",
    extra={
        "studio_owners": _columns(f"vatNumber? {_UNHEARD} referrerCode:i? legacyNote? phone?"),
        "customers": _columns(f"{_UNHEARD} loyaltyPoints:i=0 marketingOptIn:b? favouriteThings:j? lastSeenAt:t?"),
        "accounts": _columns("linkedAt:t? oldSecretHint? rawProfile:J? scopes:a?"),
        "sessions": _columns("userAgent? fingerprint:x?"),
        "bookings": _columns("price:n? internalNote? depositPaid:f? sourceChannel? tags:a? attachment:x? externalRef:u? confirmedAt:t?"),
        "users": _columns(
            f"onboardingStep:i=3 lastSeenAt:t? favouriteThings:j? marketingOptIn:b?=false loyaltyPoints:i=7 referrerCode=none vatNumber? {_UNHEARD}"
        ),
        "new_accounts": _columns("scopes:a? rawProfile:J? linkedAt:t?"),
        "new_sessions": _columns("deviceName=unknown fingerprint:x? userAgent?"),
        "new_bookings": _columns("reminderSent:b=false sourceChannel:i=9 tags:a? attachment:x? externalRef:u? depositPaid:f? internalNote? price:n?"),
        "user_role_assignments": _columns("revokedAt:t?"),
    },
)

SHAPES = (FULL, MINIMAL, LOPSIDED, WIDENED)


def snake_case(name: str) -> str:
    """The snake_case form of a camelCase name."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name).lower()


def quote(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True)
class Layout:
    """A shape as one database spells it.

    Attributes:
        shape: which columns there are.
        naming: ``camel``, ``snake``, or ``mixed`` (which of the two varies from column to column, and every table once had
            a column more).
        schema: the PostgreSQL schema that holds the tables.
    """

    shape: Shape = FULL
    naming: str = "camel"
    schema: str = "public"

    def actual(self, table: str, column: str) -> str:
        """The actual name of a logical column in this database."""
        if column in ("A", "B") or self.naming == "camel":
            return column
        # A fixed but irregular choice, so that the same logical column differs between tables.
        if self.naming == "mixed" and sum(map(ord, table + column)) % 2:
            return column
        return snake_case(column)

    def relation(self, table: str) -> str:
        """The table, quoted and qualified."""
        return f"{quote(self.schema)}.{quote(table)}"

    def column_list(self, table: str) -> str:
        """All columns of a table, quoted and in order."""
        return ", ".join(quote(self.actual(table, column)) for column in self.shape.columns(table))

    def _names(self, table: str, columns: tuple[str, ...]) -> str:
        return ", ".join(quote(self.actual(table, column)) for column in columns)

    def _definition(self, table: str, column: Column) -> str:
        kind = SQL_TYPES.get(column.kind) or f"{quote(self.schema)}.{quote(column.kind)}"
        text = f"{quote(self.actual(table, column.name))} {kind}"
        if not column.nullable:
            text += " NOT NULL"
        if column.default == "now":
            text += " DEFAULT CURRENT_TIMESTAMP"
        elif column.default is not None:
            text += " DEFAULT " + literal(column.default)
        return text

    def create_statements(self, tables: tuple[str, ...] = (*LEGACY, *UNIFIED)) -> list[str]:
        """The DDL of the enums and the tables given, with Prisma's kind of indexes and foreign keys."""
        statements = []
        if self.schema != "public":
            statements.append(f"CREATE SCHEMA {quote(self.schema)}")
        for enum, labels in ENUMS.items():
            statements.append(f"CREATE TYPE {quote(self.schema)}.{quote(enum)} AS ENUM ({', '.join(map(literal, labels))})")
        for table in tables:
            columns = [self._definition(table, column) for column in self.shape.columns(table).values()]
            if self.naming == "mixed":
                columns.insert(1, "dropped INTEGER NOT NULL DEFAULT 1")
            key = self._names(table, _PRIMARY_KEYS.get(table, ("id",)))
            if key:
                name = f"{table}_AB_pkey" if table.startswith("_") else f"{table}_pkey"
                columns.append(f"CONSTRAINT {quote(name)} PRIMARY KEY ({key})")
            statements.append(f"CREATE TABLE {self.relation(table)} ({', '.join(columns)})")
            if self.naming == "mixed":
                statements.append(f"ALTER TABLE {self.relation(table)} DROP COLUMN dropped")
        for unique, definitions in (("UNIQUE ", _UNIQUE), ("", _INDEXES)):
            for table, *columns in definitions:
                if table in tables:
                    actual = [self.actual(table, column) for column in columns]
                    name = "_".join([table, *actual, "key" if unique else ("index" if table.startswith("_") else "idx")])
                    statements.append(f"CREATE {unique}INDEX {quote(name)} ON {self.relation(table)} ({self._names(table, tuple(columns))})")
        for table, column, target, on_delete in _FOREIGN_KEYS:
            if table in tables:
                name = quote(f"{table}_{self.actual(table, column)}_fkey")
                statements.append(
                    f"ALTER TABLE {self.relation(table)} ADD CONSTRAINT {name} FOREIGN KEY "
                    f"({self._names(table, (column,))}) REFERENCES {self.relation(target)} "
                    f"({self._names(target, ('id',))}) ON DELETE {on_delete} ON UPDATE CASCADE"
                )
        return statements


def literal(value: Any) -> str:
    """A Python value as an SQL literal, for defaults and enum labels only."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"


def show(column: Column, value: Any) -> str:
    """A value for people: short, with moments as dates."""
    if value is None:
        return "NULL"
    if column.kind == "moment":
        return show_moment(value)
    text = json.dumps(value, ensure_ascii=True) if column.kind == "json" else ascii(value)
    return text if len(text) <= 80 else f"{text[:50]}… ({len(text)} characters)"
