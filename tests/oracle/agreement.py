# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The oracle while both directions of sync are on: what both sides must agree on, and what only one can hold.

It knows no history: what it demands holds for every state that legal writes on either side can lead to. What depends
on who wrote last, a test says itself, and tells this oracle where that widens what is right (`Leeway`).

Readings, where the contract leaves a choice (each the one that loses nothing):

* Only unscoped roles call for a legacy row; a scoped one may have one, from before.
* A user whose legacy row is in quarantine may stay, without any row.
* A favourite, account or session of a user who has no legacy row that could hold it stays on the unified side.
* A user whose key another user has already (a race of two sign-ups) goes to quarantine, and has no legacy row meanwhile.
* A row that cannot come over because its unique key is taken there stays where it is, in quarantine or counted.
* A user who is not of the CUSTOMER or STUDIO_OWNER kind at all has no legacy row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.oracle.model import Legacy, Policies, Projection, Row, _Member, _shared, _user, blank, identity_key, usable
from tests.oracle.schema import Shape, show
from tests.oracle.sync import survivor_order

_PEOPLE = {"studio_owners": "STUDIO_OWNER", "customers": "CUSTOMER"}
_COPIES = {"accounts": "new_accounts", "sessions": "new_sessions"}
_UNIQUE = {"accounts": ("provider", "providerAccountId"), "sessions": ("sessionToken",)}


@dataclass
class Leeway:
    """What a history has made right that a state alone would not show.

    Attributes:
        legacy_decided: studios whose ownerId the legacy side wrote last.
        revoked: (user, role) whose role was revoked or scoped on the unified side.
        uncarried: ids of accounts and sessions that were once not carried.
        once_joined: users whose identity once had more than one row; None for all.
        any_ownership: whether a studio's owner may be any of its owners.
        met: users who had no legacy row when a legacy person came to their key: each side keeps what it says of them.
    """

    legacy_decided: set[str] = field(default_factory=set)
    revoked: set[tuple[str, str]] = field(default_factory=set)
    uncarried: set[str] = field(default_factory=set)
    once_joined: set[str] | None = None
    any_ownership: bool = False
    met: set[str] = field(default_factory=set)


@dataclass
class State:
    """Both sides and the journal at one moment.

    Attributes:
        pinned: booking id -> user id.
    """

    legacy: Legacy
    unified: Projection
    pinned: dict[str, str]

    def people(self) -> Iterator[tuple[str, Row]]:
        """Every owner and customer with its table."""
        for table in _PEOPLE:
            for row in self.legacy[table]:
                yield table, row

    def rows_of_users(self) -> dict[str, list[tuple[str, Row]]]:
        """User -> his legacy rows, in survivor order."""
        found: dict[str, list[tuple[str, Row]]] = defaultdict(list)
        for table, row in self.people():
            user = self.unified.identity_map.get((table, row["id"]))
            if user is not None:
                found[user].append((table, row))
        return {user: sorted(rows, key=lambda member: survivor_order(*member)) for user, rows in found.items()}

    def guests(self) -> dict[str, str]:
        """User -> key of everyone whom identity_map calls a guest."""
        return {user: source for (table, source), user in self.unified.identity_map.items() if table == "bookings"}


def disagreements(state: State, policies: Policies, leeway: Leeway) -> list[str]:
    """What is wrong between the two sides; empty when they agree."""
    found = [
        *_identities(state, policies),
        *_roles(state, leeway),
        *_projections(state, policies, leeway),
        *_bookings(state, policies),
        *_favourites(state),
        *_belongings(state, policies, leeway),
        *_ownerships(state, leeway),
        *_orphans(state),
    ]
    return sorted(found)


def _identities(state: State, policies: Policies) -> Iterable[str]:
    """Every person has one user, of one key; every mapping is of somebody."""
    users, mapped = state.unified.tables["users"], state.unified.identity_map
    there = {(table, row["id"]): row for table, row in state.people()}
    for (table, source), user in mapped.items():
        if user not in users:
            yield f"identity_map: {table} {source!r} is mapped to {user!r}, who is not there"
        elif table == "bookings":
            if identity_key(users[user]["email"], policies) != source:
                yield f"identity_map: guest {source!r} is {user!r}, whose key is another"
        elif (table, source) not in there:
            yield f"identity_map: {table} {source!r} is mapped, but is not there"
    for (table, source), row in there.items():
        kept, user = (table, source) in state.unified.quarantine, mapped.get((table, source))
        if kept == (user is not None):
            yield f"{table}: {source!r} is {'mapped and in quarantine' if kept else 'neither mapped nor in quarantine'}"
        elif user in users and identity_key(row["email"], policies) != identity_key(users[user]["email"], policies):
            yield f"{table}: {source!r} has another key than its user {user!r}: {row['email']!r}, {users[user]['email']!r}"
    keys: dict[str, list[str]] = defaultdict(list)
    for user, row in users.items():
        if ("users", user) not in state.unified.quarantine:
            keys[identity_key(row["email"], policies)].append(user)
    for key, holders in keys.items():
        if len(holders) > 1:
            yield f"users: {sorted(holders)} have one key, {key!r}"
    booked = {row["customerId"] for row in state.unified.tables["new_bookings"].values()}
    rows = state.rows_of_users()
    for guest in state.guests():
        if guest in rows:
            yield f"users: {guest!r} is a guest and has legacy rows"
        if guest not in booked:
            yield f"users: {guest!r} is a guest without a booking"


def unscoped_roles(state: State) -> dict[str, set[str]]:
    """User -> the roles he has for everything."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in state.unified.tables["user_role_assignments"].values():
        if row["studioId"] is None:
            found[row["userId"]].add(row["role"])
    return found


def _roles(state: State, leeway: Leeway) -> Iterable[str]:
    """No role twice; a row for each role, a role for each row."""
    seen = set()
    for row in state.unified.tables["user_role_assignments"].values():
        role = (row["userId"], row["role"], row["studioId"])
        if role in seen:
            yield f"user_role_assignments: {role!r} is there twice"
        seen.add(role)
    rows, guests, roles = state.rows_of_users(), state.guests(), unscoped_roles(state)
    in_quarantine = {(table, source) for table, source in state.unified.quarantine if table in _PEOPLE}
    in_quarantine |= {(table, source) for kind, source in state.unified.quarantine if kind == "users" for table in _PEOPLE}
    for user in state.unified.tables["users"]:
        has = {table for table, _row in rows.get(user, [])}
        for table, role in _PEOPLE.items():
            if role in roles[user] and table not in has and user not in guests and (table, user) not in in_quarantine:
                yield f"{table}: user {user!r} has the role {role} and no row here"
            if table in has and role not in roles[user] and (user, role) not in leeway.revoked:
                yield f"user_role_assignments: user {user!r} has a row in {table} and not the role {role}"


def projection_of(shape: Shape, key: str, rows: list[tuple[str, Row]], policies: Policies) -> Row:
    """Section 2's user of some rows in survivor order, as far as the legacy side has a say."""
    members = [_Member(table, row, row["id"]) for table, row in rows]
    return _user(shape, key, members, policies, defaultdict(int))


def _projections(state: State, policies: Policies, leeway: Leeway) -> Iterable[str]:
    """Every user is what his rows say, as far as they can."""
    shape = state.legacy.shape
    for user, rows in state.rows_of_users().items():
        row = state.unified.tables["users"].get(user)
        if row is None or user in leeway.met:
            continue
        wanted = projection_of(shape, identity_key(row["email"], policies), rows, policies)
        holding = {name for table, _row in rows for name in _shared(shape, table, "users")}
        for name, column in shape.columns("users").items():
            if name not in holding or name in ("id", "password") or (name == "email" and policies.email_store == "normalized"):
                continue
            there, ours = row[name], wanted[name]
            if name in ("name", "phone") and (there or "") == (ours or ""):
                continue
            # An owner's row has no phone: what he gave is kept beside a customer's row that has none.
            if name == "phone" and blank(ours) and any(table == "studio_owners" for table, _row in rows):
                continue
            if there != ours or type(there) is not type(ours):
                yield f"users: {user!r}.{name} is {show(column, there)}, his rows say {show(column, ours)}"
        passwords = {one["password"] for _table, one in rows}
        may_be_dropped = leeway.once_joined is None or user in leeway.once_joined
        if row["password"] not in passwords and not (row["password"] is None and may_be_dropped):
            yield f"users: {user!r} has a password that none of his rows has"


def _bookings(state: State, policies: Policies) -> Iterable[str]:
    """The same bookings on both sides, each of the same person."""
    shape, legacy, mapped = state.legacy.shape, {row["id"]: row for row in state.legacy["bookings"]}, state.unified.identity_map
    unified, users = state.unified.tables["new_bookings"], state.unified.tables["users"]
    kept = {source for table, source in state.unified.quarantine if table == "bookings"}
    for booking in legacy.keys() - unified.keys() - kept:
        yield f"new_bookings: {booking!r} is missing"
    for booking in legacy.keys() & unified.keys() & kept:
        yield f"new_bookings: {booking!r} is here and in quarantine"
    for booking in unified.keys() - legacy.keys():
        yield f"bookings: {booking!r} is missing"
    for booking in legacy.keys() & unified.keys():
        old, new = legacy[booking], unified[booking]
        for name in _shared(shape, "bookings", "new_bookings"):
            same = (old[name] or "") == (new[name] or "") if name == "customerPhone" else old[name] == new[name]
            if name != "customerId" and not same:
                column = shape.columns("bookings")[name]
                yield f"bookings: {booking!r}.{name} is {show(column, old[name])}, new_bookings has {show(column, new[name])}"
        user = new["customerId"]
        by_customer = old["customerId"] is not None
        right = (
            mapped.get(("customers", old["customerId"])) == user
            if by_customer
            else state.pinned.get(booking) == user
            or (user in users and usable(old["customerEmail"]) and identity_key(old["customerEmail"], policies) == identity_key(users[user]["email"], policies))
        )
        if not right:
            link = f"customer {old['customerId']!r}" if by_customer else f"{old['customerEmail']!r}"
            yield f"new_bookings: {booking!r} is of user {user!r}, bookings says {link}"
    for booking, user in state.pinned.items():
        if booking not in unified:
            yield f"pinned_booking: {booking!r} is not there"
        elif unified[booking]["customerId"] != user:
            yield f"pinned_booking: {booking!r} is pinned to {user!r} and belongs to {unified[booking]['customerId']!r}"


def _favourites(state: State) -> Iterable[str]:
    """The same favourites, of everyone who has a customers row."""
    mapped, customers = state.unified.identity_map, set()
    legacy = set()
    for row in state.legacy["customers"]:
        customers.add(mapped.get(("customers", row["id"])))
    for pair in state.legacy["_CustomerFavorites"]:
        user = mapped.get(("customers", pair["A"]))
        if user is not None:
            legacy.add((pair["B"], user))
    unified = {(studio, user) for studio, user in state.unified.favourites if user in customers}
    for pair in legacy - unified:
        yield f"_UserFavorites: {pair!r} is missing"
    for pair in unified - legacy:
        yield f"_CustomerFavorites: (studio, user) {pair!r} is missing"


def _belongings(state: State, policies: Policies, leeway: Leeway) -> Iterable[str]:
    """The same accounts and sessions, of everyone who has a studio_owners row, but for those not carried."""
    shape, mapped, rows = state.legacy.shape, state.unified.identity_map, state.rows_of_users()
    for source, target in _COPIES.items():
        legacy = {row["id"]: row for row in state.legacy[source]}
        unified = state.unified.tables[target]
        taken = {tuple(row[name] for name in _UNIQUE[source]): row["id"] for row in legacy.values()}
        taken_there = {tuple(row[name] for name in _UNIQUE[source]): row["id"] for row in unified.values()}
        for one in legacy.keys() - unified.keys():
            owner = legacy[one]["userId"]
            user = mapped.get(("studio_owners", owner))
            if user is None and ("studio_owners", owner) in state.unified.quarantine:
                continue
            owner_row = next((row for table, row in rows.get(user, []) if table == "studio_owners" and row["id"] == owner), {})
            not_carried = len(rows.get(user, [])) > 1 and owner_row.get("emailVerified") is None and policies.join_credentials == "verified"
            in_the_way = tuple(legacy[one][name] for name in _UNIQUE[source]) in taken_there
            if not (not_carried or in_the_way or one in leeway.uncarried or (leeway.once_joined is None and policies.join_credentials == "verified")):
                yield f"{target}: {one!r} is missing"
        for one in unified.keys() - legacy.keys():
            user = unified[one]["userId"]
            in_the_way = tuple(unified[one][name] for name in _UNIQUE[source]) in taken
            if any(table == "studio_owners" for table, _row in rows.get(user, [])) and not in_the_way:
                yield f"{source}: {one!r} is missing"
        for one in legacy.keys() & unified.keys():
            for name in _shared(shape, source, target):
                old, new = legacy[one][name], unified[one][name]
                if name == "userId":
                    old = mapped.get(("studio_owners", old))
                if old != new:
                    yield f"{source}: {one!r}.{name} is {old!r:.60}, {target} has {new!r:.60}"


def rightful_owner(state: State, studio: str) -> str | None:
    """The user whom ``studios.ownerId`` follows: the primary, else the oldest accepted, among those with an owner row."""
    rows = state.rows_of_users()
    ranked: list[tuple] = []
    for row in state.unified.tables["studio_ownership"].values():
        if row["studioId"] == studio and any(table == "studio_owners" for table, _row in rows.get(row["userId"], [])):
            accepted = row.get("acceptedAt", 0)
            if row.get("isPrimary") or accepted is not None:
                ranked.append((not row.get("isPrimary"), accepted is None, accepted or 0, row["id"].encode(), row["userId"]))
    return min(ranked)[-1] if ranked else None


def _ownerships(state: State, leeway: Leeway) -> Iterable[str]:
    """A studio's ownerId is one of its owners, and the right one unless the legacy side said otherwise."""
    mapped = state.unified.identity_map
    owners: dict[str, set[str]] = defaultdict(set)
    pairs = set()
    for row in state.unified.tables["studio_ownership"].values():
        owners[row["studioId"]].add(row["userId"])
        if (row["userId"], row["studioId"]) in pairs:
            yield f"studio_ownership: {row['userId']!r} owns {row['studioId']!r} twice"
        pairs.add((row["userId"], row["studioId"]))
    for studio in state.legacy["studios"]:
        owner = studio["ownerId"]
        user = mapped.get(("studio_owners", owner))
        if owner is not None and user is None:
            if ("studio_owners", owner) not in state.unified.quarantine:
                yield f"studios: {studio['id']!r} has an owner {owner!r} who has no user"
            continue
        if user is not None and user not in owners[studio["id"]]:
            yield f"studio_ownership: user {user!r} owns {studio['id']!r} on the legacy side only"
        if studio["id"] not in leeway.legacy_decided and not leeway.any_ownership:
            wanted = rightful_owner(state, studio["id"])
            if user != wanted:
                yield f"studios: {studio['id']!r} belongs to user {user!r}, the owners say {wanted!r}"


def _orphans(state: State) -> Iterable[str]:
    """Nothing on the unified side refers to nothing, whatever foreign keys were off meanwhile."""
    users, studios = state.unified.tables["users"], {row["id"] for row in state.legacy["studios"]}
    for table, rows in state.unified.tables.items():
        for key, row in rows.items():
            user = row.get("customerId", row.get("userId"))
            if user is not None and user not in users:
                yield f"{table}: {key!r} is of user {user!r}, who is not there"
            if row.get("studioId") is not None and row["studioId"] not in studios:
                yield f"{table}: {key!r} is of studio {row['studioId']!r}, which is not there"
    for studio, user in state.unified.favourites:
        if user not in users or studio not in studios:
            yield f"_UserFavorites: {(studio, user)!r} is of somebody or something that is not there"


def moved_users(before: State, after: State, policies: Policies) -> list[str]:
    """Users who lost their id in a transaction that changed at most one person's key.

    Args:
        before: the state when reverse was on already.
        after: the state after one statement.
    """
    keys_before = {(table, row["id"]): identity_key(row["email"], policies) for table, row in before.people()}
    keys_after = {(table, row["id"]): identity_key(row["email"], policies) for table, row in after.people()}
    changed = {person for person in keys_before.keys() | keys_after.keys() if keys_before.get(person) != keys_after.get(person)}
    if len(changed) > 1:
        return []
    user_keys = {identity_key(row["email"], policies): user for user, row in before.unified.tables["users"].items()}
    found = []
    for (table, source), user in before.unified.identity_map.items():
        person = (table, source)
        now = after.unified.identity_map.get(person)
        if table == "bookings" or now is None or now == user:
            continue
        bearers = {one for one in changed if one[1] == user and before.unified.identity_map.get(one) == user}
        if person not in changed and not (bearers & keys_after.keys()):
            found.append(f"identity_map: {table} {source!r} was user {user!r} and is {now!r}, though his key stayed")
        elif person in bearers and user_keys.get(keys_after[person], user) == user:
            found.append(f"identity_map: {table} {source!r} gave his id to user {user!r}, and is {now!r} after he went")
    return found
