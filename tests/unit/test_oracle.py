# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The oracle against cases small enough to be worked out by hand from the contract."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.oracle.maker import START, Maker
from tests.oracle.model import COUNTS, Policies, Projection, blank, derived_id, identity_key, project, usable
from tests.oracle.moments import EARLIEST, INFINITY, LATEST, read_moment, show_moment
from tests.oracle.sample import RICH_POLICIES, rich_legacy
from tests.oracle.schema import LOPSIDED, MINIMAL, SHAPES, WIDENED
from tests.oracle.strategies import legacy_databases


def only_user(projection: Projection) -> dict:
    assert not projection.blockers
    (user,) = projection.tables["users"].values()
    return user


def joined(**given) -> Maker:
    """An owner o and a customer c of one person."""
    owner = {name[6:]: value for name, value in given.items() if name.startswith("owner_")}
    customer = {name[9:]: value for name, value in given.items() if name.startswith("customer_")}
    return Maker().owner("o", "A@x.de", **owner).customer("c", " a@X.de", **customer)


@pytest.mark.parametrize(
    "text, value",
    [
        ("1970-01-01 00:00:00.000", 0),
        ("1969-12-31 23:59:59.999", -1),
        ("2000-02-29 12:30:45.678", 951_827_445_678),
        ("10000-01-01 00:00:00.000", 253_402_300_800_000),
        ("0001-12-31 23:59:59.999 BC", -62_135_596_800_001),
        ("infinity", INFINITY),
        ("-infinity", -INFINITY),
    ],
)
def test_moments_are_read_and_shown(text, value):
    assert read_moment(text) == value
    assert show_moment(value) == text


@pytest.mark.parametrize("value", [EARLIEST, LATEST, -12_345_678_901, 1, 999])
def test_moments_survive_the_round_trip(value):
    assert read_moment(show_moment(value)) == value


def test_a_moment_finer_than_a_millisecond_is_refused():
    with pytest.raises(ValueError):
        read_moment("2024-01-01 00:00:00.0001")


@pytest.mark.parametrize(
    "email, key",
    [
        ("  A@X.De ", "a@x.de"),
        ("\tA@x.de", "\ta@x.de"),
        ("\u00a0a@x.de", "\u00a0a@x.de"),
        ("JÜRGEN@x.de", "jÜrgen@x.de"),
        ("\u212a@x.de", "\u212a@x.de"),
        ("İ@x.de", "İ@x.de"),
        ("ẞ@X", "ẞ@x"),
    ],
)
def test_the_identity_key_trims_spaces_and_lowers_ascii_only(email, key):
    assert identity_key(email, Policies()) == key
    assert identity_key(email, Policies(email_match="exact")) == email


def test_blank_and_usable():
    assert blank(None) and blank("") and blank("   ")
    assert not blank("\t") and not blank("\u00a0")
    assert usable("@") and usable(" a@b ")
    assert not usable(None) and not usable(" ") and not usable("anna") and not usable("\uff20")


def test_derived_ids_hash_utf8_bytes():
    assert derived_id("guest:ü@x.de") == "c" + hashlib.sha256(b"guest:\xc3\xbc@x.de").hexdigest()[:24]
    assert len(derived_id("x")) == 25


def test_a_person_alone_is_carried_as_stored():
    user = only_user(Maker().customer("c", " A@x.de", name=" ", password=" ", phone="", image=None, createdAt=5, updatedAt=3).project())
    assert user == {
        "id": "c",
        "email": " A@x.de",
        "emailVerified": None,
        "password": " ",
        "name": " ",
        "phone": "",
        "image": None,
        "primaryRole": "CUSTOMER",
        "isActive": True,
        "isSuspended": False,
        "createdAt": 5,
        "updatedAt": 3,
    }


def test_an_owner_survives_a_customer_and_takes_what_is_blank():
    projection = joined(
        owner_name=" ",
        owner_createdAt=9,
        owner_updatedAt=1,
        owner_emailVerified=7,
        customer_name="Anna",
        customer_phone="1",
        customer_createdAt=2,
        customer_updatedAt=8,
        customer_emailVerified=4,
    ).project()
    user = only_user(projection)
    assert {name: user[name] for name in ("id", "email", "name", "phone", "createdAt", "updatedAt", "emailVerified", "primaryRole")} == {
        "id": "o",
        "email": "A@x.de",
        "name": "Anna",
        "phone": "1",
        "createdAt": 2,
        "updatedAt": 8,
        "emailVerified": 4,
        "primaryRole": "STUDIO_OWNER",
    }
    assert projection.identity_map == {("studio_owners", "o"): "o", ("customers", "c"): "o"}
    assert {(row["userId"], row["role"]) for row in projection.tables["user_role_assignments"].values()} == {("o", "STUDIO_OWNER"), ("o", "CUSTOMER")}
    assert projection.counts["joined"] == 1


def test_roles_are_made_as_the_contract_says():
    projection = Maker().owner("o", "a@x.de").project()
    assert projection.tables["user_role_assignments"] == {
        derived_id("role:o:STUDIO_OWNER"): {
            "id": derived_id("role:o:STUDIO_OWNER"),
            "userId": "o",
            "role": "STUDIO_OWNER",
            "studioId": None,
            "grantedBy": "SYSTEM_MIGRATION",
            "grantedAt": START,
            "expiresAt": None,
        }
    }


def test_all_blank_leaves_the_survivors_value_as_it_stands():
    assert only_user(joined(owner_name=" ", customer_name="").project())["name"] == " "
    assert only_user(joined(owner_name=None, customer_name="").project())["name"] is None


def test_a_blank_phone_of_the_only_row_with_the_column_is_kept():
    assert only_user(joined(customer_phone=" ").project())["phone"] == " "


@pytest.mark.parametrize(
    "first, second",
    [
        ({"emailVerified": 9, "createdAt": 5}, {"createdAt": 1}),
        ({"createdAt": 1}, {"createdAt": 2}),
    ],
)
def test_survivor_order_among_customers(first, second):
    maker = Maker().customer("z", "a@x.de", **first).customer("a", "A@x.de", **second)
    assert only_user(maker.project(duplicate_identities="merge"))["id"] == "z"


def test_the_smaller_id_is_the_one_with_smaller_bytes():
    maker = Maker().customer("a", "a@x.de").customer("é", "A@x.de").customer("B", "A@X.de")
    assert only_user(maker.project(duplicate_identities="merge"))["id"] == "B"
    maker = Maker().customer("\uffee", "a@x.de").customer("\U0001f600", "A@x.de")
    assert only_user(maker.project(duplicate_identities="merge"))["id"] == "\uffee"


@pytest.mark.parametrize(
    "given, policy, password, count",
    [
        ({"owner_password": "o", "owner_emailVerified": 1, "customer_password": "c"}, "verified", "o", "password_kept_over_different"),
        ({"owner_password": "o", "owner_emailVerified": 1, "customer_password": "o"}, "verified", "o", None),
        ({"owner_password": "o", "owner_emailVerified": 1, "customer_password": " "}, "verified", "o", None),
        ({"owner_password": "o", "customer_password": "c", "customer_emailVerified": 1}, "verified", "c", "password_adopted"),
        (
            {"owner_password": "", "owner_emailVerified": 1, "customer_password": "c", "customer_emailVerified": 1},
            "verified",
            "c",
            "password_adopted",
        ),
        ({"owner_password": "o", "customer_password": "c"}, "verified", None, "password_dropped"),
        ({"owner_password": None, "owner_emailVerified": 1, "customer_password": "c"}, "verified", None, "password_dropped"),
        ({"owner_password": " ", "customer_password": ""}, "verified", None, None),
        ({"owner_password": "o", "customer_password": "c"}, "all", "o", "password_kept_over_different"),
        ({"owner_password": " ", "customer_password": "c"}, "all", "c", "password_adopted"),
        ({"owner_password": " ", "owner_emailVerified": 1, "customer_password": ""}, "all", None, None),
    ],
)
def test_passwords_of_joined_identities(given, policy, password, count):
    projection = joined(**given).project(join_credentials=policy)
    assert only_user(projection)["password"] == password
    for name in ("password_kept_over_different", "password_adopted", "password_dropped"):
        assert projection.counts[name] == (name == count)


def test_sessions_and_accounts_of_unverified_joined_rows_stay_behind():
    maker = joined().owner("p", "p@x.de")
    for owner in ("o", "p"):
        maker.row("sessions", id="s" + owner, userId=owner, sessionToken=owner, expires=5)
        maker.row("accounts", id="a" + owner, userId=owner, providerAccountId=owner)
    projection = maker.project()
    assert projection.tables["new_sessions"] == {"sp": {"id": "sp", "userId": "p", "sessionToken": "p", "expires": 5}}
    assert set(projection.tables["new_accounts"]) == {"ap"}
    assert (projection.counts["sessions_not_carried"], projection.counts["accounts_not_carried"]) == (1, 1)
    assert set(maker.project(join_credentials="all").tables["new_sessions"]) == {"so", "sp"}


def test_sessions_follow_an_absorbed_owner():
    maker = Maker().owner("a", "a@x.de", emailVerified=1).owner("b", "A@x.de", emailVerified=2)
    maker.row("sessions", id="s", userId="b", sessionToken="t")
    assert maker.project(duplicate_identities="merge").tables["new_sessions"]["s"]["userId"] == "a"


def test_duplicates_are_a_blocker_with_all_ids_or_merged():
    maker = Maker().owner("o", "a@x.de").customer("d", "a@x.de ").customer("c", "A@x.de")
    assert maker.project().blockers == {"duplicate_identities": {("a@x.de", frozenset({("studio_owners", "o"), ("customers", "c"), ("customers", "d")}))}}
    assert only_user(maker.project(duplicate_identities="merge"))["id"] == "o"
    assert len(maker.project(email_match="exact").tables["users"]) == 3


def test_an_unusable_email_is_a_blocker_under_every_setting():
    maker = Maker().owner("o", " ").customer("c", "nobody")
    for policies in ({}, {"email_match": "exact", "duplicate_identities": "merge", "unresolvable_bookings": "quarantine"}):
        assert maker.project(**policies).blockers == {"unusable_emails": {("studio_owners", "o"), ("customers", "c")}}


def test_an_id_in_two_identities_is_a_blocker_or_rekeyed():
    maker = Maker().owner("1", "o@x.de").customer("1", "c@x.de").owner("2", "b@x.de").customer("2", "B@x.de")
    assert maker.project().blockers == {"id_collisions": {"1"}}
    projection = maker.project(id_collisions="rekey")
    assert projection.identity_map["customers", "1"] == derived_id("customer:1")
    assert projection.identity_map["customers", "2"] == "2"
    assert projection.counts["rekeyed"] == 1


def test_a_taken_derived_id_is_a_blocker():
    taken = derived_id("customer:1")
    maker = Maker().owner("1", "o@x.de").customer("1", "c@x.de").owner(taken, "t@x.de")
    assert maker.project(id_collisions="rekey").blockers == {"derived_ids_taken": {("customers", "1", taken)}}
    guest = derived_id("guest:g@x.de")
    maker = Maker().studio("s").customer(guest, "c@x.de").booking("b", "G@x.de")
    assert maker.project().blockers == {"derived_ids_taken": {("bookings", "g@x.de", guest)}}


def test_normalized_stores_the_key():
    maker = Maker().studio("s").owner("o", " Ä@X.de ").booking("b", " G@x.de")
    emails = {user["email"] for user in maker.project(email_store="normalized").tables["users"].values()}
    assert emails == {"Ä@x.de", "g@x.de"}
    assert project(maker.legacy, Policies(email_match="exact", email_store="normalized"), 0).tables["users"]["o"]["email"] == " Ä@X.de "


def test_bookings_find_their_user_by_customer_then_email_then_guest():
    maker = Maker().studio("s").customer("c", "c@x.de").customer("d", "d@x.de")
    maker.booking("1", "d@x.de", "c").booking("2", " D@x.de").booking("3", "g@x.de").booking("4", "", "c").booking("5", "c@x.de", "c")
    projection = maker.project()
    users = {i: row["customerId"] for i, row in projection.tables["new_bookings"].items()}
    assert users == {"1": "c", "2": "d", "3": derived_id("guest:g@x.de"), "4": "c", "5": "c"}
    counts = projection.counts
    assert (counts["bookings_by_customer"], counts["bookings_by_email"], counts["bookings_by_guest"]) == (3, 1, 1)
    assert counts["bookings_differing_email"] == 2
    assert counts["bookings_joined_unverified"] == 1
    assert counts["guests"] == 1
    assert projection.identity_map["bookings", "g@x.de"] == derived_id("guest:g@x.de")


def test_a_guest_is_made_of_his_latest_bookings():
    maker = Maker().studio("s").customer("c", "c@x.de")
    maker.booking("b", " G@X.de ", customerName="Old", customerPhone="1", createdAt=1, updatedAt=50)
    maker.booking("a", "g@x.de", customerName="New", customerPhone=" ", createdAt=2, updatedAt=2)
    maker.booking("B", "G@x.de  ", customerName=" ", customerPhone="", createdAt=3, updatedAt=3)
    maker.booking("é", " g@X.de", customerName="", customerPhone="", createdAt=3, updatedAt=3)
    maker.booking("z", "G@X.DE", "c", customerName="Not his", createdAt=99, updatedAt=99)
    projection = maker.project(guest_role="GUEST")
    guest = projection.tables["users"][derived_id("guest:g@x.de")]
    assert guest == {
        "id": guest["id"],
        "email": "g@X.de",
        "emailVerified": None,
        "password": None,
        "name": "New",
        "phone": "1",
        "image": None,
        "primaryRole": "GUEST",
        "isActive": True,
        "isSuspended": False,
        "createdAt": 1,
        "updatedAt": 50,
    }
    assert derived_id(f"role:{guest['id']}:GUEST") in projection.tables["user_role_assignments"]
    exact = maker.project(email_match="exact")
    assert {" G@X.de ", "G@x.de  ", " g@X.de"} < {user["email"] for user in exact.tables["users"].values()}


def test_an_unresolvable_booking_is_a_blocker_or_quarantined():
    maker = Maker().studio("s").booking("b", " ", message="keep me").booking("c", "no-at")
    assert maker.project().blockers == {"unresolvable_bookings": {"b", "c"}}
    projection = maker.project(unresolvable_bookings="quarantine")
    assert projection.quarantine["bookings", "b"]["message"] == "keep me"
    assert projection.counts["bookings_quarantined"] == 2
    assert not projection.tables["new_bookings"]


def test_ownerships_and_favourites_follow():
    maker = joined().customer("d", "A@X.DE").studio("s", "o").studio("t")
    maker.row("_CustomerFavorites", A="c", B="s").row("_CustomerFavorites", A="d", B="s").row("_CustomerFavorites", A="d", B="t")
    projection = maker.project(duplicate_identities="merge")
    i = derived_id("ownership:o:s")
    assert projection.tables["studio_ownership"] == {
        i: {
            "id": i,
            "userId": "o",
            "studioId": "s",
            "isPrimary": True,
            "canTransfer": True,
            "invitedBy": "SYSTEM_MIGRATION",
            "invitedAt": START,
            "acceptedAt": START,
        }
    }
    assert projection.favourites == {("s", "o"), ("t", "o")}


def test_odd_keys_are_listed():
    maker = Maker().customer("1", "plain@x.de").customer("2", "ü@x.de").customer("3", "a b@x.de").customer("4", "\ta@x.de")
    assert maker.project().odd_keys == {"ü@x.de", "a b@x.de", "\ta@x.de"}


def test_optional_columns_get_the_default_where_the_legacy_side_lacks_them():
    maker = Maker(LOPSIDED).studio("s", "o").owner("o", "a@x.de").customer("c", "a@x.de", image="pic")
    maker.booking("b", "a@x.de", healthConsentGivenAt=5)
    projection = maker.project()
    assert only_user(projection)["image"] == "pic"
    booking = projection.tables["new_bookings"]["b"]
    assert booking["explicitHealthConsent"] is False and booking["healthConsentText"] is None
    assert "healthConsentGivenAt" not in booking and "confirmedAt" not in booking
    assert "isPrimary" not in next(iter(projection.tables["studio_ownership"].values()))
    assert projection.warnings == {("bookings", "healthConsentGivenAt")}
    assert set(Maker(MINIMAL).owner("o", "a@x.de").project().tables["user_role_assignments"].popitem()[1]) == {"id", "userId", "role", "studioId"}


def test_unlisted_columns_follow_the_rule_for_name_or_get_their_default():
    maker = Maker(WIDENED).owner("o", "a@x.de", preferredLocale=" ", referrerCode=5).studio("s")
    maker.customer("c", "a@x.de", preferredLocale="de", loyaltyPoints=3, marketingOptIn=False, favouriteThings="").booking("b", "g@x.de", sourceChannel="x")
    projection = maker.project()
    user = projection.tables["users"]["o"]
    assert (user["preferredLocale"], user["loyaltyPoints"], user["marketingOptIn"], user["favouriteThings"]) == ("de", 3, False, "")
    assert (user["referrerCode"], user["onboardingStep"], user["lastSeenAt"]) == ("none", 3, None)
    guest = projection.tables["users"][derived_id("guest:g@x.de")]
    assert (guest["loyaltyPoints"], guest["marketingOptIn"]) == (7, False)
    assert projection.tables["new_bookings"]["b"]["sourceChannel"] == 9
    assert projection.warnings == {("studio_owners", "referrerCode"), ("bookings", "sourceChannel")}


def test_the_reference_case():
    maker = Maker()
    for n in range(42):
        maker.owner(f"o{n}", f"owner{n}@x.de", emailVerified=1)
    for n in range(158):
        maker.customer(f"c{n}", f"OWNER{n}@x.de" if n < 2 else f"customer{n}@x.de")
    for n in range(49):
        maker.studio(f"s{n}", f"o{n % 42}" if n < 47 else None)
    for n in range(312):
        maker.booking(f"b{n}", f"customer{2 + n % 156}@x.de", f"c{n % 158}" if n % 3 else None)
    counts = maker.project().counts
    assert (counts["users"], counts["user_role_assignments"], counts["studio_ownership"], counts["new_bookings"]) == (198, 200, 47, 312)
    assert (counts["joined"], counts["guests"], counts["identity_map"]) == (2, 0, 200)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_legal_databases_have_no_blockers_and_keep_every_row(shape):
    @seed(1)
    @settings(max_examples=10, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(legacy_databases("legal", shape))
    def check(case):
        legacy, found = case.legacy, project(case.legacy, case.policies, START)
        counts = found.counts
        assert not found.blockers
        assert counts["users"] == counts["identities"] + counts["guests"]
        assert len(legacy["bookings"]) == counts["new_bookings"] + counts["bookings_quarantined"]
        assert len(legacy["sessions"]) == counts["new_sessions"] + counts["sessions_not_carried"]
        assert len(legacy["studio_owners"]) + len(legacy["customers"]) + counts["guests"] == counts["identity_map"]
        assert set(found.identity_map.values()) == set(found.tables["users"])
        emails = [user["email"] for user in found.tables["users"].values()]
        assert len(set(emails)) == len(emails)

    check()


def test_every_kind_of_blocker_is_generated():
    found: set[str] = set()

    @settings(max_examples=10, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(legacy_databases("any"))
    def look(case):
        found.update(project(case.legacy, case.policies).blockers)

    for n in range(12):
        seed(n)(look)()
    assert found == {"unusable_emails", "duplicate_identities", "id_collisions", "unresolvable_bookings", "derived_ids_taken"}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_rich_database_has_a_row_of_every_kind(shape):
    found = project(rich_legacy(shape), RICH_POLICIES, START)
    assert not found.blockers
    assert [name for name in COUNTS if not found.counts[name]] == []
    for table in ("studio_owners", "customers", "accounts", "sessions", "bookings"):
        for name, column in shape.columns(table).items():
            values = [str(row[name]) for row in rich_legacy(shape)[table]]
            assert len(set(values)) > 1, f"{table}.{name} has but one value"
            assert not column.nullable or "None" in values, f"{table}.{name} is never NULL"
