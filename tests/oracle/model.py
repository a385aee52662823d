# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The oracle: what the unified tables must hold, computed in plain Python from the contract alone.

It shares no code, no SQL and no clever structure with the collection: loops over dicts, slow and
plain, so that it can be read against the contract, sections 2 and 3, line by line.

Readings, where the contract leaves a choice (each the one that loses nothing):

* A column of ``users`` that the survivor's own table lacks (``phone`` on an owner, an unlisted
  column) counts as absent there: when all values are blank, the value as it stands is that of the
  first row, in survivor order, whose table has the column; if none has it, the column's default.
* Survivor order compares the ids as stored, also those of customers who get a derived id.
* A customer in an id collision gets the derived id under ``rekey`` even when absorbed, and under
  ``fail`` the collision is a blocker even when the customer would be absorbed.
* Duplicates are counted by key alone, so two unusable e-mails with one key are a duplicate too.
* A booking's usable e-mail is judged before rule 2: an unusable one never meets an identity.
* Where ``bookings`` itself has a confirmation column, it is a shared column and is carried.
* Only text can be blank by being spaces; in any other type blank is NULL.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.oracle.schema import FULL, LEGACY, Column, Shape, show

Row = dict[str, Any]

_ASCII_LOWER = {ord(upper): ord(upper) + 32 for upper in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}

# Each legacy table whose rows have an image, and the table that holds it.
_DESTINATIONS = [
    ("studio_owners", "users"),
    ("customers", "users"),
    ("accounts", "new_accounts"),
    ("sessions", "new_sessions"),
    ("bookings", "new_bookings"),
]


@dataclass(frozen=True)
class Policies:
    """The seven choices of an operator, with the contract's defaults."""

    email_match: str = "case_insensitive"
    email_store: str = "as_stored"
    join_credentials: str = "verified"
    duplicate_identities: str = "fail"
    id_collisions: str = "fail"
    unresolvable_bookings: str = "fail"
    guest_role: str = "CUSTOMER"


POLICY_CHOICES = {
    "email_match": ("case_insensitive", "exact"),
    "email_store": ("as_stored", "normalized"),
    "join_credentials": ("verified", "all"),
    "duplicate_identities": ("fail", "merge"),
    "id_collisions": ("fail", "rekey"),
    "unresolvable_bookings": ("fail", "quarantine"),
    "guest_role": ("CUSTOMER", "GUEST"),
}


@dataclass(eq=False)
class Legacy:
    """A legacy database: its shape, and table -> rows by logical column name."""

    tables: dict[str, list[Row]] = field(default_factory=dict)
    shape: Shape = FULL

    def __post_init__(self) -> None:
        for table in LEGACY:
            self.tables.setdefault(table, [])

    def __getitem__(self, table: str) -> list[Row]:
        return self.tables[table]

    def __repr__(self) -> str:
        lines = [f"Legacy database of shape {self.shape.name!r}:"]
        for table, rows in self.tables.items():
            columns = self.shape.columns(table)
            for row in rows:
                values = (f"{name}={show(columns[name], value)}" for name, value in row.items() if value is not None)
                lines.append(f"  {table}: {', '.join(values)}")
        return "\n".join(lines)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


@dataclass
class Projection:
    """What the contract calls for.

    Attributes:
        blockers: name -> what is blocked; when it is not empty, `tables` and the rest are empty.
        tables: unified table -> id -> row by logical name (all of its columns).
        favourites: `_UserFavorites` as (A, B) pairs.
        identity_map: (source_table, source_id) -> user_id.
        quarantine: (source_table, source_id) -> the whole legacy row.
        counts: every count that sections 2 and 3 ask for.
        warnings: (legacy table, logical column) that hold values and have nowhere to go.
        odd_keys: identity keys with a character outside ``!`` to ``~``.
    """

    blockers: dict[str, set] = field(default_factory=dict)
    tables: dict[str, dict[str, Row]] = field(default_factory=dict)
    favourites: set[tuple[str, str]] = field(default_factory=set)
    identity_map: dict[tuple[str, str], str] = field(default_factory=dict)
    quarantine: dict[tuple[str, str], Row] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    warnings: set[tuple[str, str]] = field(default_factory=set)
    odd_keys: set[str] = field(default_factory=set)


@dataclass(eq=False)
class _Member:
    """An owner or customer on its way into an identity."""

    table: str
    row: Row
    user_id: str  # the id it would give its user: its own, or the derived one

    @property
    def is_owner(self) -> bool:
        return self.table == "studio_owners"

    @property
    def verified(self) -> bool:
        return self.row["emailVerified"] is not None

    @property
    def order(self) -> tuple:
        """Survivor order: the smallest is the survivor."""
        return (not self.is_owner, not self.verified, self.row["createdAt"], self.row["id"].encode())


def derived_id(text: str) -> str:
    """``'c' || left(sha256hex(text), 24)``, over the UTF-8 bytes."""
    return "c" + hashlib.sha256(text.encode()).hexdigest()[:24]


def trim(text: str) -> str:
    """``btrim``: off with spaces (U+0020) at both ends, and with nothing else."""
    return text.strip(" ")


def blank(text: str | None) -> bool:
    """NULL, or nothing but spaces."""
    return text is None or trim(text) == ""


def usable(email: str | None) -> bool:
    """Not blank, and with an ``@``."""
    return not blank(email) and "@" in email


def identity_key(email: str, policies: Policies) -> str:
    """The identity key of an e-mail."""
    if policies.email_match == "exact":
        return email
    return trim(email).translate(_ASCII_LOWER)


def _default(column: Column) -> Any:
    return None if column.default == "now" else column.default


def _shared(shape: Shape, source: str, target: str) -> list[str]:
    """Logical columns that both tables have, in one type."""
    there = shape.columns(target)
    return [name for name, column in shape.columns(source).items() if name in there and there[name].kind == column.kind]


def _copy(shape: Shape, source: str, target: str, row: Row) -> Row:
    """The row's image: shared columns as they stand, the target's other columns at their default."""
    image = {name: _default(column) for name, column in shape.columns(target).items()}
    image.update((name, row[name]) for name in _shared(shape, source, target))
    return image


def _only(shape: Shape, table: str, row: Row) -> Row:
    """A made row, without the optional columns that the table lacks, defaults for what is not given."""
    return {name: row.get(name, _default(column)) for name, column in shape.columns(table).items()}


def _is_null(value: Any) -> bool:
    return value is None


def _first_not_blank(values: Iterable[str | None]) -> str | None:
    return next((value for value in values if not blank(value)), None)


def project(legacy: Legacy, policies: Policies = Policies(), started_at: float = 0, guest_ids: dict[str, str] | None = None) -> Projection:
    """Everything the contract, sections 2 and 3, says about one legacy database.

    Args:
        legacy: the database.
        policies: the operator's choices.
        started_at: the run's start, a moment (see `tests.oracle.moments`).
        guest_ids: key -> the id of its guest, where that is not the one derived from the key.

    Returns:
        The projection; one with blockers has nothing else.
    """
    shape = legacy.shape
    people = _people(legacy, policies)
    identities = _identities(people, policies)
    bookings = _sort_bookings(legacy, identities, policies)
    guest_ids = {key: (guest_ids or {}).get(key, derived_id("guest:" + key)) for key in bookings["guest"]}
    blockers = _blockers(legacy, people, identities, bookings, guest_ids, policies)
    if any(blockers.values()):
        return Projection(blockers={name: found for name, found in blockers.items() if found})

    result = Projection(tables={table: {} for table in ("users", "user_role_assignments", "studio_ownership", "new_accounts", "new_sessions", "new_bookings")})
    counts = defaultdict(int)
    carried_owners = set()
    for key, members in identities.items():
        user = _user(shape, key, members, policies, counts)
        result.tables["users"][user["id"]] = user
        for member in members:
            result.identity_map[member.table, member.row["id"]] = user["id"]
            if member.is_owner and _carried(member, members, policies):
                carried_owners.add(member.row["id"])
        for role, holds in (("STUDIO_OWNER", any(m.is_owner for m in members)), ("CUSTOMER", any(not m.is_owner for m in members))):
            if holds:
                _assign(result, shape, user["id"], role, started_at)
    for key, theirs in bookings["guest"].items():
        user = _guest(shape, key, guest_ids[key], theirs, policies)
        result.tables["users"][user["id"]] = user
        result.identity_map["bookings", key] = user["id"]
        _assign(result, shape, user["id"], policies.guest_role, started_at)

    owner_of = {i: user for (table, i), user in result.identity_map.items() if table == "studio_owners"}
    customer_of = {i: user for (table, i), user in result.identity_map.items() if table == "customers"}
    _follow(legacy, result, owner_of, customer_of, carried_owners, started_at, counts)
    _book(legacy, result, bookings, identities, customer_of, guest_ids, policies, counts)

    result.warnings = _homeless(legacy)
    result.odd_keys = {key for key in [*identities, *bookings["guest"]] if any(not "!" <= char <= "~" for char in key)}
    counts.update({table: len(rows) for table, rows in result.tables.items()})
    counts.update(
        {
            "_UserFavorites": len(result.favourites),
            "identity_map": len(result.identity_map),
            "identities": len(identities),
            "joined": sum(len(members) > 1 for members in identities.values()),
            "guests": len(bookings["guest"]),
            "bookings_quarantined": len(result.quarantine),
            "rekeyed": sum(person.user_id != person.row["id"] for person in people),
        }
    )
    result.counts = {name: counts[name] for name in COUNTS}
    return result


COUNTS = (
    "users",
    "user_role_assignments",
    "studio_ownership",
    "new_accounts",
    "new_sessions",
    "new_bookings",
    "_UserFavorites",
    "identity_map",
    "identities",
    "joined",
    "rekeyed",
    "guests",
    "password_kept_over_different",
    "password_adopted",
    "password_dropped",
    "accounts_not_carried",
    "sessions_not_carried",
    "bookings_by_customer",
    "bookings_by_email",
    "bookings_by_guest",
    "bookings_quarantined",
    "bookings_differing_email",
    "bookings_joined_unverified",
)


def _people(legacy: Legacy, policies: Policies) -> list[_Member]:
    """All owners and customers, those of a collision with their derived id under ``rekey``."""
    owner_keys = {row["id"]: identity_key(row["email"], policies) for row in legacy["studio_owners"]}
    people = [_Member("studio_owners", row, row["id"]) for row in legacy["studio_owners"]]
    for row in legacy["customers"]:
        user_id = row["id"]
        if policies.id_collisions == "rekey" and _collides(row, owner_keys, policies):
            user_id = derived_id("customer:" + row["id"])
        people.append(_Member("customers", row, user_id))
    return people


def _collides(customer: Row, owner_keys: dict[str, str], policies: Policies) -> bool:
    return customer["id"] in owner_keys and owner_keys[customer["id"]] != identity_key(customer["email"], policies)


def _identities(people: list[_Member], policies: Policies) -> dict[str, list[_Member]]:
    """Key -> its owners and customers in survivor order."""
    identities = defaultdict(list)
    for person in people:
        identities[identity_key(person.row["email"], policies)].append(person)
    return {key: sorted(members, key=lambda member: member.order) for key, members in identities.items()}


def _sort_bookings(legacy: Legacy, identities: dict[str, list[_Member]], policies: Policies) -> dict[str, Any]:
    """The bookings by the rule that finds their user: customer, email, guest (key -> rows), unresolvable."""
    found: dict[str, Any] = {"customer": [], "email": [], "guest": defaultdict(list), "unresolvable": []}
    for row in legacy["bookings"]:
        key = identity_key(row["customerEmail"], policies)
        if row["customerId"] is not None:
            found["customer"].append(row)
        elif not usable(row["customerEmail"]):
            found["unresolvable"].append(row)
        elif key in identities:
            found["email"].append(row)
        else:
            found["guest"][key].append(row)
    return found


def _blockers(
    legacy: Legacy,
    people: list[_Member],
    identities: dict[str, list[_Member]],
    bookings: dict[str, Any],
    guest_ids: dict[str, str],
    policies: Policies,
) -> dict[str, set]:
    """Name -> what is blocked.

    ``duplicate_identities`` holds (key, the identity's (table, id) pairs), ``unusable_emails``
    (table, id), ``id_collisions`` ids, ``unresolvable_bookings`` booking ids, and
    ``derived_ids_taken`` (source table, source id or key, derived id).
    """
    blockers: dict[str, set] = defaultdict(set)
    for person in people:
        if not usable(person.row["email"]):
            blockers["unusable_emails"].add((person.table, person.row["id"]))
    if policies.duplicate_identities == "fail":
        for key, members in identities.items():
            owners = sum(member.is_owner for member in members)
            if owners > 1 or len(members) - owners > 1:
                rows = frozenset((member.table, member.row["id"]) for member in members)
                blockers["duplicate_identities"].add((key, rows))
    if policies.id_collisions == "fail":
        owner_keys = {row["id"]: identity_key(row["email"], policies) for row in legacy["studio_owners"]}
        blockers["id_collisions"] = {row["id"] for row in legacy["customers"] if _collides(row, owner_keys, policies)}
    if policies.unresolvable_bookings == "fail":
        blockers["unresolvable_bookings"] = {row["id"] for row in bookings["unresolvable"]}

    derived = [("customers", person.row["id"], person.user_id) for person in people if person.user_id != person.row["id"]]
    derived += [("bookings", key, user_id) for key, user_id in guest_ids.items()]
    stored = {person.row["id"] for person in people}
    for table, source, user_id in derived:
        others = [other for other in derived if other[2] == user_id and other[:2] != (table, source)]
        if user_id in stored or others:
            blockers["derived_ids_taken"].add((table, source, user_id))
    return blockers


def _carried(member: _Member, members: list[_Member], policies: Policies) -> bool:
    """Whether a row's credentials come along."""
    return len(members) == 1 or member.verified or policies.join_credentials == "all"


def _user(shape: Shape, key: str, members: list[_Member], policies: Policies, counts: dict[str, int]) -> Row:
    """The user of one identity; `members` in survivor order."""
    survivor = members[0]
    verified = [m.row["emailVerified"] for m in members if m.verified]
    user = {
        "id": survivor.user_id,
        "email": key if policies.email_store == "normalized" else survivor.row["email"],
        "emailVerified": min(verified) if verified else None,
        "password": _password(members, policies, counts),
        "primaryRole": "STUDIO_OWNER" if survivor.is_owner else "CUSTOMER",
        "isActive": True,
        "isSuspended": False,
        "createdAt": min(m.row["createdAt"] for m in members),
        "updatedAt": max(m.row["updatedAt"] for m in members),
    }
    for name, column in shape.columns("users").items():
        if name in user:
            continue
        values = [m.row[name] for m in members if name in _shared(shape, m.table, "users")]
        is_blank = blank if column.kind in ("text", "short text") else _is_null
        user[name] = next((value for value in values if not is_blank(value)), values[0] if values else _default(column))
    return user


def _password(members: list[_Member], policies: Policies, counts: dict[str, int]) -> str | None:
    """The user's password, counting what became of the others in a joined identity."""
    if len(members) == 1:
        return members[0].row["password"]
    having = [m for m in members if not blank(m.row["password"])]
    source = next((m for m in having if _carried(m, members, policies)), None)
    if source is None:
        counts["password_dropped"] += bool(having)
        return None
    if source is not members[0]:
        counts["password_adopted"] += 1
    elif any(m.row["password"] != source.row["password"] for m in having):
        counts["password_kept_over_different"] += 1
    return source.row["password"]


def _guest(shape: Shape, key: str, user_id: str, bookings: list[Row], policies: Policies) -> Row:
    """The guest of one key, made of the bookings that rule 3 resolves."""
    latest_first = sorted(bookings, key=lambda row: (row["createdAt"], row["id"].encode()), reverse=True)
    email = latest_first[0]["customerEmail"]
    if policies.email_store == "normalized":
        email = key
    elif policies.email_match != "exact":
        email = trim(email)
    return _only(
        shape,
        "users",
        {
            "id": user_id,
            "email": email,
            "name": _first_not_blank(row["customerName"] for row in latest_first),
            "phone": _first_not_blank(row["customerPhone"] for row in latest_first),
            "image": None,
            "password": None,
            "emailVerified": None,
            "primaryRole": policies.guest_role,
            "isActive": True,
            "isSuspended": False,
            "createdAt": min(row["createdAt"] for row in bookings),
            "updatedAt": max(row["updatedAt"] for row in bookings),
        },
    )


def _assign(result: Projection, shape: Shape, user_id: str, role: str, started_at: float) -> None:
    row = {
        "id": derived_id(f"role:{user_id}:{role}"),
        "userId": user_id,
        "role": role,
        "studioId": None,
        "grantedBy": "SYSTEM_MIGRATION",
        "grantedAt": started_at,
        "expiresAt": None,
    }
    result.tables["user_role_assignments"][row["id"]] = _only(shape, "user_role_assignments", row)


def _follow(
    legacy: Legacy,
    result: Projection,
    owner_of: dict[str, str],
    customer_of: dict[str, str],
    carried_owners: set[str],
    started_at: float,
    counts: dict[str, int],
) -> None:
    """Ownership, accounts, sessions and favourites."""
    shape = legacy.shape
    for studio in legacy["studios"]:
        if studio["ownerId"] is not None:
            user_id = owner_of[studio["ownerId"]]
            row = {
                "id": derived_id(f"ownership:{user_id}:{studio['id']}"),
                "userId": user_id,
                "studioId": studio["id"],
                "isPrimary": True,
                "canTransfer": True,
                "invitedBy": "SYSTEM_MIGRATION",
                "invitedAt": started_at,
                "acceptedAt": started_at,
            }
            result.tables["studio_ownership"][row["id"]] = _only(shape, "studio_ownership", row)
    for source, target in (("accounts", "new_accounts"), ("sessions", "new_sessions")):
        for row in legacy[source]:
            if row["userId"] in carried_owners:
                image = _copy(shape, source, target, row)
                image["userId"] = owner_of[row["userId"]]
                result.tables[target][row["id"]] = image
            else:
                counts[f"{source}_not_carried"] += 1
    for pair in legacy["_CustomerFavorites"]:
        result.favourites.add((pair["B"], customer_of[pair["A"]]))


def _book(
    legacy: Legacy,
    result: Projection,
    bookings: dict[str, Any],
    identities: dict[str, list[_Member]],
    customer_of: dict[str, str],
    guest_ids: dict[str, str],
    policies: Policies,
    counts: dict[str, int],
) -> None:
    """The bookings, each under its user, or in quarantine."""
    keys = {row["id"]: identity_key(row["email"], policies) for row in legacy["customers"]}
    placed = []
    for row in bookings["customer"]:
        placed.append((row, customer_of[row["customerId"]]))
        counts["bookings_differing_email"] += identity_key(row["customerEmail"], policies) != keys[row["customerId"]]
    for row in bookings["email"]:
        members = identities[identity_key(row["customerEmail"], policies)]
        placed.append((row, members[0].user_id))
        counts["bookings_joined_unverified"] += not any(member.verified for member in members)
    for key, rows in bookings["guest"].items():
        placed += [(row, guest_ids[key]) for row in rows]
    for row, user_id in placed:
        image = _copy(legacy.shape, "bookings", "new_bookings", row)
        image["customerId"] = user_id
        result.tables["new_bookings"][row["id"]] = image
    for row in bookings["unresolvable"]:
        result.quarantine["bookings", row["id"]] = row
    counts["bookings_by_customer"] = len(bookings["customer"])
    counts["bookings_by_email"] = len(bookings["email"])
    counts["bookings_by_guest"] = sum(map(len, bookings["guest"].values()))


def _homeless(legacy: Legacy) -> set[tuple[str, str]]:
    """Legacy columns that hold values and have no destination of their name and type."""
    return {
        (source, name)
        for source, target in _DESTINATIONS
        for name in set(legacy.shape.columns(source)) - set(_shared(legacy.shape, source, target))
        if any(row[name] is not None for row in legacy[source])
    }
