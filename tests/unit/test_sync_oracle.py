# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The oracles of sync against cases worked out by hand, and against every small lie about a state that agrees."""

from __future__ import annotations

import copy

import pytest

from tests.application_writes.kinds import writes_of
from tests.application_writes.legacy import LEGACY_WRITES
from tests.application_writes.session import Written, copy_text
from tests.application_writes.unified import UNIFIED_WRITES
from tests.integration.sync_reduction import Example, reduce, without_row
from tests.oracle.agreement import Leeway, State, disagreements, moved_users, rightful_owner
from tests.oracle.maker import START, Maker
from tests.oracle.model import Policies, derived_id, project
from tests.oracle.sample import RICH_POLICIES, rich_legacy
from tests.oracle.schema import FULL, SHAPES
from tests.oracle.strategies import Case
from tests.oracle.sync import adopt_times, project_under_sync, quarantine


def kept(maker: Maker, **policies) -> set:
    return set(quarantine(maker.legacy, Policies(**policies)))


# --- forward only -----------------------------------------------------------------------------------------------------


def test_without_anything_to_stop_sync_means_what_the_copy_means():
    legacy = rich_legacy(FULL)
    copied, synchronised = project(legacy, RICH_POLICIES, START), project_under_sync(legacy, RICH_POLICIES, START)
    assert synchronised.tables == copied.tables
    assert synchronised.identity_map == copied.identity_map
    assert synchronised.quarantine == copied.quarantine != {}


def test_an_unusable_person_goes_to_quarantine_with_everything_of_his():
    maker = Maker().owner("o", "nobody").customer("c", " ").customer("d", "d@x.de").studio("s", "o")
    maker.booking("b", "x@x.de", "c").booking("e", "x@x.de", "d").row("accounts", id="a", userId="o").row("sessions", id="t", userId="o")
    maker.row("_CustomerFavorites", A="c", B="s").row("_CustomerFavorites", A="d", B="s")
    assert kept(maker) == {
        ("studio_owners", "o"), ("customers", "c"), ("studios", "s"), ("bookings", "b"), ("accounts", "a"), ("sessions", "t"),
        ("_CustomerFavorites", ("c", "s")),
    }  # fmt: skip
    result = project_under_sync(maker.legacy, Policies())
    assert set(result.tables["users"]) == {"d"}
    assert set(result.tables["new_bookings"]) == {"e"}
    assert result.favourites == {("s", "d")}
    assert result.tables["studio_ownership"] == result.tables["new_accounts"] == {}


def test_of_a_duplicate_identity_only_the_first_in_survivor_order_stays():
    maker = Maker().owner("late", "A@x.de", createdAt=2).owner("early", "a@x.de", createdAt=1).customer("c", "a@X.de", createdAt=0, emailVerified=1)
    assert kept(maker) == {("studio_owners", "late"), ("customers", "c")}
    assert kept(maker, duplicate_identities="merge") == set()
    assert kept(maker, email_match="exact") == set()
    result = project_under_sync(maker.legacy, Policies())
    assert result.identity_map == {("studio_owners", "early"): "early"}


def test_of_an_id_collision_the_customer_goes():
    maker = Maker().owner("x", "a@x.de").customer("x", "b@x.de").booking("b", "b@x.de")
    assert kept(maker) == {("customers", "x")}
    assert project_under_sync(maker.legacy, Policies()).identity_map["bookings", "b@x.de"] == derived_id("guest:b@x.de")
    assert kept(maker, id_collisions="rekey") == set()
    maker.customer(derived_id("customer:x"), "c@x.de")
    assert kept(maker, id_collisions="rekey") == {("customers", "x")}


def test_an_unresolvable_booking_is_kept_whatever_the_setting():
    maker = Maker().studio("s").booking("b", "nobody")
    assert kept(maker) == kept(maker, unresolvable_bookings="quarantine") == {("bookings", "b")}


def test_a_guest_whose_id_is_somebody_elses_takes_the_next():
    guest = derived_id("guest:g@x.de")
    maker = Maker().customer(guest, "c@x.de").studio("s").booking("b", "G@x.de")
    result = project_under_sync(maker.legacy, Policies())
    assert result.identity_map["bookings", "g@x.de"] == derived_id("guest:g@x.de#2")
    assert result.tables["new_bookings"]["b"]["customerId"] == derived_id("guest:g@x.de#2")
    maker.owner(derived_id("guest:g@x.de#2"), "nobody")
    assert project_under_sync(maker.legacy, Policies()).identity_map["bookings", "g@x.de"] == derived_id("guest:g@x.de#3")


def test_only_times_since_the_run_are_believed():
    maker = Maker().owner("o", "a@x.de").studio("s", "o")
    expected, actual = project(maker.legacy, Policies(), START), project(maker.legacy, Policies(), START)
    (role,) = actual.tables["user_role_assignments"].values()
    (ownership,) = actual.tables["studio_ownership"].values()
    role["grantedAt"], ownership["invitedAt"], ownership["acceptedAt"] = START + 5, START + 5, START + 6
    adopt_times(expected, actual, START, START + 10)
    assert expected.tables["user_role_assignments"] == actual.tables["user_role_assignments"]
    assert expected.tables["studio_ownership"] != actual.tables["studio_ownership"]
    role["grantedAt"] = START - 1
    adopt_times(expected, actual, START, START + 10)
    assert expected.tables["user_role_assignments"] != actual.tables["user_role_assignments"]


# --- both directions --------------------------------------------------------------------------------------------------


def agreed(shape=FULL) -> State:
    legacy = rich_legacy(shape)
    return State(legacy, project(legacy, RICH_POLICIES, START), {})


def leeway_of(state: State) -> Leeway:
    """What the copy itself did not carry."""
    unified = state.unified.tables
    uncarried = {row["id"] for source in ("accounts", "sessions") for row in state.legacy[source] if row["id"] not in unified[f"new_{source}"]}
    return Leeway(uncarried=uncarried, once_joined={user for user, rows in state.rows_of_users().items() if len(rows) > 1})


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_copy_agrees(shape):
    state = agreed(shape)
    assert disagreements(state, RICH_POLICIES, leeway_of(state)) == []


# What the legacy side cannot hold, or what says nothing about the two sides.
_FREE = {
    "users": {"id", "primaryRole", "isActive", "isSuspended"},
    "user_role_assignments": {"id", "grantedBy", "grantedAt", "expiresAt"},
    "studio_ownership": {"id", "canTransfer", "invitedBy", "invitedAt", "acceptedAt", "isPrimary"},
    "new_bookings": {"confirmedBy", "confirmedAt", "cancelledBy", "cancelledAt", "id"},
    "new_accounts": {"id"},
    "new_sessions": {"id"},
}


def lies(state: State):
    """Every value of every unified row made another one."""
    others = {"text": "another", "moment": 12345, "BookingStatus": "other", "UserRole": "GUEST"}
    for table, rows in state.unified.tables.items():
        for key, row in rows.items():
            for name, column in FULL.columns(table).items():
                if name not in _FREE[table]:
                    other = not row[name] if column.kind == "boolean" else 98765 if column.kind == "integer" else others[column.kind]
                    yield table, key, name, other


def test_every_changed_value_of_the_unified_side_is_noticed():
    state = agreed()
    leeway = leeway_of(state)
    unnoticed = []
    for table, key, name, other in lies(state):
        row = state.unified.tables[table][key]
        before, row[name] = row[name], other
        if not disagreements(state, RICH_POLICIES, leeway):
            unnoticed.append((table, key, name))
        row[name] = before
    guests, rows = state.guests(), state.rows_of_users()
    has_phone = {user for user, members in rows.items() if any((row.get("phone") or "").strip() for _table, row in members)}

    def is_free(table, key, name):
        """A guest is made of his bookings, in an order that no state tells; where no row has a phone, his may be what an owner's cannot hold."""
        if table == "users":
            return (key in guests and name != "email") or (name == "phone" and key not in has_phone)
        return table == "user_role_assignments" and state.unified.tables[table][key]["userId"] in guests

    assert [lie for lie in unnoticed if not is_free(*lie)] == []


@pytest.mark.parametrize("table", [*_FREE, "_UserFavorites", "identity_map", "quarantine"])
def test_every_missing_row_of_the_unified_side_is_noticed(table):
    state = agreed()
    leeway = leeway_of(state)
    rows = {"_UserFavorites": state.unified.favourites, "identity_map": state.unified.identity_map, "quarantine": state.unified.quarantine}
    there = rows.get(table) or state.unified.tables[table]
    # A guest's role, and his entry in identity_map, have nothing on the legacy side.
    free = {row["id"] for row in state.unified.tables["user_role_assignments"].values() if row["userId"] in state.guests()}
    free |= {source for source in state.unified.identity_map if source[0] == "bookings"}
    for key in sorted(there, key=str):
        if key not in free:
            lying = copy.deepcopy(state)
            lost = {"_UserFavorites": lying.unified.favourites, "identity_map": lying.unified.identity_map, "quarantine": lying.unified.quarantine}
            rows_left = lost.get(table, lying.unified.tables.get(table))
            if isinstance(rows_left, set):
                rows_left.discard(key)
            else:
                del rows_left[key]
            assert disagreements(lying, RICH_POLICIES, leeway), f"nobody misses {key!r} in {table}"


@pytest.mark.parametrize("table", ["studio_owners", "customers", "accounts", "sessions", "bookings", "_CustomerFavorites"])
def test_every_missing_row_of_the_legacy_side_is_noticed(table):
    state = agreed()
    # Such a booking, account or session is on no other side; a favourite of two absorbed rows was one all along.
    alone = {source for kept_table, source in state.unified.quarantine if kept_table == table} | leeway_of(state).uncarried
    for index, row in enumerate(state.legacy[table]):
        if row.get("id") in alone or row in ({"A": "c7x", "B": "st1x"}, {"A": "C8x", "B": "st1x"}):
            continue
        lying = State(without_row(state.legacy, table, index), state.unified, {})
        assert disagreements(lying, RICH_POLICIES, leeway_of(state)), f"nobody misses {row!r:.80} in {table}"


def test_two_users_of_one_key_and_a_role_twice_are_noticed():
    state = agreed()
    state.unified.tables["users"]["twice"] = {**state.unified.tables["users"]["o4x"], "id": "twice", "email": "ALONE@x.de"}
    role = next(row for row in state.unified.tables["user_role_assignments"].values() if row["userId"] == "o4x")
    state.unified.tables["user_role_assignments"]["twice"] = {**role, "id": "twice"}
    found = disagreements(state, RICH_POLICIES, leeway_of(state))
    assert any("have one key" in line for line in found) and any("is there twice" in line for line in found)


def test_a_booking_by_key_belongs_to_that_key_or_is_pinned():
    maker = Maker().owner("o", "o@x.de").studio("s").booking("b", "o@x.de")
    state = State(maker.legacy, maker.project(), {})
    assert disagreements(state, Policies(), Leeway()) == []
    maker.legacy["bookings"][0]["customerEmail"] = "else@x.de"
    state.unified.tables["new_bookings"]["b"]["customerEmail"] = "else@x.de"
    assert disagreements(state, Policies(), Leeway()) != []
    state.pinned["b"] = "o"
    assert disagreements(state, Policies(), Leeway()) == []
    state.pinned["b"] = "p"
    assert disagreements(state, Policies(), Leeway()) != []


def test_a_studio_follows_the_primary_then_the_oldest_accepted_owner():
    maker = Maker().owner("o", "o@x.de").owner("p", "p@x.de").customer("c", "c@x.de").studio("s", "o")
    state = State(maker.legacy, maker.project(), {})
    (first,) = state.unified.tables["studio_ownership"].values()

    def add(key, user, **values):
        plain = {**first, "id": key, "userId": user, "isPrimary": False, "acceptedAt": START + 1}
        state.unified.tables["studio_ownership"][key] = {**plain, **values}

    add("2", "p")
    add("3", "c", isPrimary=True)
    assert rightful_owner(state, "s") == "o"
    first["isPrimary"] = False
    assert rightful_owner(state, "s") == "o"
    first["acceptedAt"] = START + 1
    assert rightful_owner(state, "s") == "p"
    first["acceptedAt"] = None
    assert rightful_owner(state, "s") == "p"
    state.unified.tables["studio_ownership"]["2"]["acceptedAt"] = None
    assert rightful_owner(state, "s") is None


def test_a_users_id_stays_with_the_row_that_bears_it():
    def state(maker, **mapped):
        made = State(maker.legacy, maker.project(), {})
        made.unified.identity_map.update({tuple(person.split("_", 1)): user for person, user in mapped.items()})
        return made

    joined = state(Maker().owner("o", "a@x.de").customer("c", "a@x.de"))
    assert joined.unified.identity_map["customers", "c"] == "o"
    parted = Maker().owner("o", "b@x.de").customer("c", "a@x.de")
    assert moved_users(joined, state(parted), Policies()) == []
    wrong = state(parted)
    wrong.unified.identity_map = {("studio_owners", "o"): "new", ("customers", "c"): "o"}
    assert len(moved_users(joined, wrong, Policies())) == 1
    left = state(Maker().customer("c", "a@x.de"))
    assert len(moved_users(joined, left, Policies())) == 1
    left.unified.identity_map["customers", "c"] = "o"
    assert moved_users(joined, left, Policies()) == []


# --- tools ------------------------------------------------------------------------------------------------------------


def test_a_written_row_is_known_by_its_last_values():
    written = Written()
    written.note("users", ("u",), {"name": "a", "email": "b"})
    written.note("users", ("u",), {"name": "c"})
    assert written.rows == {("users", ("u",)): {"name": "c", "email": "b"}}
    written.forget("users", ("u",), {"email"})
    assert written.rows == {("users", ("u",)): {"name": "c"}}
    written.note("users", ("u",), None)
    written.note("users", ("u",), {"name": "d"})
    assert written.rows == {("users", ("u",)): {"name": "d"}}
    assert written.tables() == {"users"}


def test_copy_takes_every_text():
    assert copy_text(None) == r"\N"
    assert copy_text("a\tb\nc\\N\r") == r"a\tb\nc\\N\r"


@pytest.mark.parametrize("kinds", [LEGACY_WRITES, UNIFIED_WRITES], ids=["legacy", "unified"])
def test_every_kind_of_write_has_a_name_of_its_own_and_can_be_drawn(kinds):
    assert len({kind.name for kind in kinds}) == len(kinds) > 30
    for shape in SHAPES:
        assert not writes_of(kinds, shape).is_empty


def test_an_example_is_made_as_small_as_its_failure_allows():
    example = Example(Case(rich_legacy(FULL), RICH_POLICIES), ())

    def fails(one):
        return any(row["id"] == "b1x" for row in one.case.legacy["bookings"])

    smaller = reduce(example, fails).case.legacy
    assert [row["id"] for row in smaller["bookings"]] == ["b1x"]
    assert {table: len(rows) for table, rows in smaller.tables.items() if rows} == {"bookings": 1, "studios": 1}
