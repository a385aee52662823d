# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Verification in reverse: everything written on the unified side is on the legacy side, or of a kind that it cannot hold.

One row or value is taken away behind the triggers' back, and each time exactly that must be found. What the legacy side cannot
hold passes and hides nothing beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import Sync, SyncOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import Verification, verify_database

from tests.integration.test_verify import MORE_ROWS, POLICIES, failed, options
from tests.module_process import run_module
from tests.seeded_secrets import register_secrets

register_secrets(["password-of-both", "password-changed-since", "password-of-a-squatter-since"])

# No sync function takes a write for the application's under these: neither side hears of it.
BEHIND = 'SET search_path = public, "unified_user:forward", "unified_user:reverse"; SET session_replication_role = replica'

# What an application of the unified side does after the switch: what the legacy side can hold, and what it cannot.
LIFE = """
INSERT INTO studios SELECT (jsonb_populate_record(s, '{"id": "s-new", "ownerId": null}')).* FROM studios AS s ORDER BY id LIMIT 1;
INSERT INTO users (id, name, email, phone, password, "emailVerified", "primaryRole", "createdAt", "updatedAt") VALUES
    ('u-both', 'Both', 'both@unified.example', '0170', 'password-of-both', '2026-01-02 03:04:05.678', 'STUDIO_OWNER', '2026-01-01', '2026-01-03'),
    ('u-customer', NULL, 'customer@unified.example', '0171', NULL, NULL, 'CUSTOMER', '2026-01-01', '2026-01-03'),
    ('u-owner', 'Owner', 'owner@unified.example', '0172', NULL, NULL, 'STUDIO_OWNER', '2026-01-01', '2026-01-03'),
    ('u-nobody', 'Nobody', 'nobody@unified.example', NULL, NULL, NULL, 'SUPER_ADMIN', '2026-01-01', '2026-01-03');
INSERT INTO user_role_assignments (id, "userId", role, "studioId", "grantedBy", "expiresAt") VALUES
    ('r-1', 'u-both', 'CUSTOMER', NULL, NULL, NULL), ('r-2', 'u-both', 'STUDIO_OWNER', NULL, 'u-nobody', NULL),
    ('r-3', 'u-customer', 'CUSTOMER', NULL, NULL, '2027-01-01'), ('r-4', 'u-owner', 'STUDIO_OWNER', NULL, NULL, NULL),
    ('r-5', 'u-nobody', 'SUPER_ADMIN', NULL, NULL, NULL), ('r-6', 'u-customer', 'STUDIO_OWNER', 's-new', 'u-both', NULL);
INSERT INTO studio_ownership (id, "userId", "studioId", "isPrimary", "invitedAt", "acceptedAt") VALUES
    ('w-1', 'u-both', 's-new', true, '2026-01-03', '2026-01-04'), ('w-2', 'u-owner', 's-new', false, '2026-01-03', '2026-01-03');
INSERT INTO new_bookings (id, "studioId", "customerId", "customerName", "customerEmail", "customerPhone", "preferredDate", "preferredTime", message,
                          "createdAt", "updatedAt") VALUES
    ('n-1', 's-new', 'u-customer', 'C', 'customer@unified.example', NULL, '2026-02-01', '10:00', 'm', '2026-01-05', '2026-01-05'),
    ('n-2', 's-new', 'u-owner', 'O', 'other@unified.example', '0172', '2026-02-01', '10:00', NULL, '2026-01-05', '2026-01-05');
UPDATE new_bookings SET status = 'CONFIRMED', "confirmedBy" = 'u-both', "confirmedAt" = '2026-01-06' WHERE id = 'n-1';
UPDATE new_bookings SET status = 'CANCELLED' WHERE id = 'b-guest-1';
INSERT INTO "_UserFavorites" VALUES ('s-new', 'u-customer'), ('s-new', 'u-owner');
INSERT INTO new_accounts (id, "userId", type, provider, "providerAccountId", access_token) VALUES
    ('a-both', 'u-both', 'oauth', 'google', 'both', 't'), ('a-customer', 'u-customer', 'oauth', 'google', 'customer', 't');
INSERT INTO new_sessions (id, "sessionToken", "userId", expires) VALUES
    ('t-both', 'token-of-both', 'u-both', '2095-01-01'), ('t-customer', 'token-of-customer', 'u-customer', '2095-01-01');
UPDATE users SET password = 'password-changed-since' WHERE id = 'o-squatter';
UPDATE users SET "isSuspended" = true WHERE id = 'u-customer';
UPDATE users SET "isActive" = false WHERE id = 'u-owner';
UPDATE users SET "primaryRole" = 'SUPER_ADMIN' WHERE id = 'u-both';
DELETE FROM user_role_assignments WHERE "userId" = 'c-twin-1';
INSERT INTO audit_logs (id, "userId", action, resource, "resourceId") VALUES ('l-1', 'u-both', 'login', 'user', 'u-both');
INSERT INTO magic_link_tokens (id, token, email, "expiresAt") VALUES ('m-1', 'magic-token', 'both@unified.example', now())
"""

HELD = {
    "accounts": 1, "sessions": 1, "favourites": 1, "audit_logs": 1, "magic_link_tokens": 1, "pinned_bookings": 1,
    "confirmations_of_bookings": 1, "suspended_users": 1, "inactive_users": 1, "users.phone": 1, "users.primaryRole": 1,
    "users_without_legacy_row": 1, "roles_without_legacy_row": 1, "scoped_roles": 1, "revoked_roles": 1, "expiring_roles": 1, "grants_of_roles": 4,
    "further_owners": 1, "terms_of_ownership": 1,
}  # fmt: skip
# Of the legacy side's own: a squatter's account and session.
NOT_CARRIED = {"accounts_not_carried": 1, "sessions_not_carried": 1}


@pytest.fixture(scope="module")
def lived_in(cluster, templates):
    """Name of a migrated database, both sides in step, with a life on the unified side; it is only ever cloned."""
    name = f"reversed_{os.getpid()}"
    with templates.database("reference") as reference:
        cluster.create_database(name, reference)
    with contextlib.closing(Database(cluster.connect(name))) as session:
        session.execute(MORE_ROWS)
        AtomicCopy(session, Options(policies=POLICIES)).run()
        Sync(session, SyncOptions(policies=POLICIES)).install("both")
        session.execute("RESET search_path")
        session.execute(LIFE)
    yield name
    cluster.drop_database(name)


@pytest.fixture
def mine(cluster, lived_in):
    """Name of a clone of the test's own."""
    name = f"{lived_in}_clone"
    cluster.create_database(name, lived_in)
    yield name
    cluster.drop_database(name)


@pytest.fixture
def session(cluster, mine):
    """The application's session there."""
    with contextlib.closing(Database(cluster.connect(mine))) as database:
        yield database


@pytest.fixture
def behind(cluster, mine):
    """Does something there that no trigger hears of."""

    def behind(statement: str) -> None:
        with contextlib.closing(Database(cluster.connect(mine))) as database:
            database.execute(BEHIND)
            assert database.execute(statement) > 0

    return behind


@pytest.fixture
def check(cluster, mine):
    """Verifies in reverse."""

    def check(**changes) -> Verification:
        with contextlib.closing(Database(cluster.connect(mine))) as database:
            return verify_database(database, **{"policies": POLICIES, "direction": "reverse", **changes})

    return check


def test_everything_is_on_the_legacy_side_or_cannot_be(check):
    found = check().require()
    assert found.not_representable == HELD and found.not_carried == NOT_CARRIED
    assert len({entry.name for entry in found.checks}) == len(found.checks)
    assert not [entry for entry in found.checks if entry.samples]
    assert found.totals["users"] == 205 and found.totals["bookings"] == 316 and found.totals["orphans"] == 0


_A_CUSTOMER = (
    "(SELECT min(id) FROM customers WHERE id LIKE 'cm%' AND password <> '' AND \"emailVerified\" IS NOT NULL"
    " AND lower(btrim(email)) NOT IN (SELECT lower(btrim(email)) FROM studio_owners))"
)

# What is done on the legacy side alone -> the checks that must fail, each with the number of rows and what its first sample looks like.
MUTATIONS = {
    "a booking's status": (
        "UPDATE bookings SET status = 'PENDING' WHERE id = 'b-guest-1'", {"bookings": (1, r"different b-guest-1 \(status\)")}),
    "a booking's message beside its confirmation": (
        "UPDATE bookings SET message = 'x' WHERE id = 'n-1'", {"bookings": (1, r"different n-1 \(message\)")}),
    "a booking's phone": ("UPDATE bookings SET \"customerPhone\" = '0' WHERE id = 'n-1'", {"bookings": (1, r"different n-1 \(customerPhone\)")}),
    "a booking's birth by a millisecond": (
        "UPDATE bookings SET \"createdAt\" = \"createdAt\" + interval '1 ms' WHERE id = 'n-1'", {"bookings": (1, r"different n-1 \(createdAt\)")}),
    "a booking's customer": (
        "UPDATE bookings SET \"customerId\" = 'c-twin-2' WHERE id = 'n-1'", {"bookings": (1, r"different n-1 \(customerId\)")}),
    "a booking": ("DELETE FROM bookings WHERE id = 'n-1'", {"bookings": (1, "unexpected n-1")}),
    "a pinned booking": ("DELETE FROM bookings WHERE id = 'n-2'", {"bookings": (1, "unexpected n-2")}),
    "a guest's booking": (
        "DELETE FROM bookings WHERE id = 'b-guest-1'",
        {"bookings": (1, "unexpected b-guest-1"), "users": (1, r"different c\w{24} \(createdAt, name\)")}),
    "a booking that is nowhere else": (
        "INSERT INTO bookings SELECT (jsonb_populate_record(b, '{\"id\": \"b-late\"}')).* FROM bookings AS b WHERE id = 'n-1'",
        {"bookings": (1, "missing b-late")}),
    "a customer's phone": ("UPDATE customers SET phone = NULL WHERE id = 'u-both'", {"users": (1, r"different u-both \(phone\)")}),
    "a suspended customer's name": ("UPDATE customers SET name = 'x' WHERE id = 'u-customer'", {"users": (1, r"different u-customer \(name\)")}),
    "an inactive owner's name beside his phone": (
        "UPDATE studio_owners SET name = 'x' WHERE id = 'u-owner'", {"users": (1, r"different u-owner \(name\)")}),
    "an administrator's image": ("UPDATE studio_owners SET image = 'x' WHERE id = 'u-both'", {"users": (1, r"different u-both \(image\)")}),
    "an e-mail": (
        f"UPDATE customers SET email = 'x' || email WHERE id = {_A_CUSTOMER}",
        {"identity_map": (1, r"different customers cm\w+ \(identity_key\)"), "users": (1, r"different cm\w+ \(email\)")}),
    "an e-mail's spelling": (
        f"UPDATE customers SET email = upper(email) WHERE id = {_A_CUSTOMER}", {"users": (1, r"different cm\w+ \(email\)")}),
    "a password": (f"UPDATE customers SET password = NULL WHERE id = {_A_CUSTOMER}", {"users": (1, r"different cm\w+ \(password\)")}),
    "one of two rows' password": (
        "UPDATE customers SET password = 'password-of-a-squatter-since' WHERE id = 'c-squatted'", {"users": (1, r"different o-squatter \(password\)")}),
    "both rows' password": (
        "UPDATE studio_owners SET password = NULL WHERE id = 'u-both'; UPDATE customers SET password = '' WHERE id = 'u-both'",
        {"users": (1, r"different u-both \(password\)")}),
    "when an e-mail was verified": (
        f"UPDATE customers SET \"emailVerified\" = NULL WHERE id = {_A_CUSTOMER}", {"users": (1, r"different cm\w+ \(emailVerified\)")}),
    "a change by a millisecond": (
        "UPDATE customers SET \"updatedAt\" = \"updatedAt\" - interval '1 ms' WHERE id = 'u-customer'", {"users": (1, r"different u-customer \(updatedAt\)")}),
    "the row of a role": (
        "DELETE FROM customers WHERE id = 'u-customer'",
        {"identity_map": (1, "unexpected customers u-customer"), "users": (1, "unexpected u-customer")}),
    "the row of a role and its mapping": (
        "DELETE FROM customers WHERE id = 'u-customer'; DELETE FROM \"_CustomerFavorites\" WHERE \"A\" = 'u-customer';"
        " DELETE FROM bookings WHERE \"customerId\" = 'u-customer'; DELETE FROM unified_user_journal.identity_map WHERE user_id = 'u-customer'",
        {"users": (1, "unexpected u-customer"), "role_assignments": (1, "unexpected u-customer CUSTOMER"), "bookings": (1, "unexpected n-1")}),
    "one of two rows": (
        "DELETE FROM customers WHERE id = 'u-both'; DELETE FROM unified_user_journal.identity_map WHERE user_id = 'u-both' AND source_table = 'customers'",
        {"role_assignments": (1, "unexpected u-both CUSTOMER")}),
    "a person who is nowhere else": (
        "INSERT INTO customers (id, name, email, \"updatedAt\") VALUES ('c-late', 'L', 'late@legacy.example', now())",
        {"identity_map": (1, "missing customers c-late")}),
    "a favourite": ("DELETE FROM \"_CustomerFavorites\" WHERE \"A\" = 'u-customer'", {"favourites": (1, "unexpected s-new u-customer")}),
    "a favourite that is nowhere else": (
        "INSERT INTO \"_CustomerFavorites\" VALUES ('u-both', 's-new')", {"favourites": (1, "missing s-new u-both")}),
    "a session": ("DELETE FROM sessions WHERE id = 't-both'", {"sessions": (1, "unexpected t-both")}),
    "a session's end by a millisecond": (
        "UPDATE sessions SET expires = expires + interval '1 ms' WHERE id = 't-both'", {"sessions": (1, r"different t-both \(expires\)")}),
    "a session's owner": (
        "UPDATE sessions SET \"userId\" = 'u-owner' WHERE id = 't-both'", {"sessions": (1, r"different t-both \(userId\)")}),
    "a session that is nowhere else": (
        "INSERT INTO sessions VALUES ('t-late', 'token-late', (SELECT min(id) FROM studio_owners WHERE id LIKE 'cm%' AND \"emailVerified\" IS NOT NULL"
        " AND lower(email) NOT IN (SELECT lower(btrim(email)) FROM customers)), now())",
        {"sessions": (1, "missing t-late")}),
    "an account": ("DELETE FROM accounts WHERE id = 'a-both'", {"accounts": (1, "unexpected a-both")}),
    "an account's token": ("UPDATE accounts SET access_token = NULL WHERE id = 'a-both'", {"accounts": (1, r"different a-both \(access_token\)")}),
    "a studio's owner": ("UPDATE studios SET \"ownerId\" = NULL WHERE id = 's-new'", {"ownerships": (1, "unexpected u-both s-new")}),
    "a studio's owner for a further one": (
        "UPDATE studios SET \"ownerId\" = 'u-owner' WHERE id = 's-new'", {"ownerships": (2, r"different u-owner s-new \(isPrimary\)")}),
    "a studio's owner for somebody else": (
        "UPDATE studios SET \"ownerId\" = (SELECT min(id) FROM studio_owners WHERE id LIKE 'cm%') WHERE id = 's-new'",
        {"ownerships": (2, r"missing cm\w+ s-new")}),
    "a migrated studio's owner": (
        "UPDATE studios SET \"ownerId\" = NULL WHERE id = (SELECT min(id) FROM studios WHERE \"ownerId\" LIKE 'cm%')",
        {"ownerships": (1, r"unexpected cm\w+ cm\w+")}),
    "an entry in quarantine": ("DELETE FROM unified_user_journal.quarantine", {"unaccounted": (1, "bookings b-nobody")}),
    "an entry of nothing": (
        "INSERT INTO unified_user_journal.quarantine (source_table, source_id, reason, \"row\") VALUES ('bookings', 'b-gone', 'unresolvable', '{}')",
        {"quarantine": (1, "bookings b-gone")}),
    "a pin": (
        "UPDATE unified_user_journal.pinned_booking SET user_id = 'u-both'",
        {"pinned_bookings": (1, "n-2"), "bookings": (1, r"different n-2 \(customerId\)")}),
    "a mapping": (
        "UPDATE unified_user_journal.identity_map SET user_id = 'u-owner' WHERE source_table = 'customers' AND source_id = 'u-customer'",
        {"identities": (1, "customers u-customer"), "users": (2, None)}),
    "a mapping to nobody": (
        "UPDATE unified_user_journal.identity_map SET user_id = 'u-gone' WHERE source_id = 'u-customer'",
        {"dangling_mappings": (1, "customers u-customer"), "users": (2, None)}),
    "two users of one key": (
        "INSERT INTO users (id, email, \"updatedAt\") VALUES ('u-twice', ' BOTH@unified.example', now())",
        {"double_identity_keys": (1, r"b\*\*\*@unified.example")}),
    "a role twice": (
        "INSERT INTO user_role_assignments (id, \"userId\", role) VALUES ('r-twice', 'u-both', 'CUSTOMER')",
        {"double_roles": (1, "u-both CUSTOMER")}),
    "a user who is gone": (
        "DELETE FROM users WHERE id = 'u-customer'",
        {"users": (1, "missing u-customer"), "dangling_mappings": (1, "customers u-customer"), "orphans": (6, None)}),
}  # fmt: skip


KNOCK_ON = (
    "the row of a role", "the row of a role and its mapping", "one of two rows", "a mapping", "a mapping to nobody", "a user who is gone", "a role twice",
)  # fmt: skip


@pytest.mark.one_major
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_what_is_missing_on_one_side_is_found(behind, check, mutation):
    statement, expected = MUTATIONS[mutation]
    behind(statement)
    found = failed(check())
    assert {name: found[name].differing for name in expected if name in found} == {name: count for name, (count, unused) in expected.items()}, found
    for name, (_count, sample) in expected.items():
        assert sample is None or re.fullmatch(sample, found[name].samples[0]), found[name].samples
    # What leans on a person who is lost may differ with him; nothing else may.
    assert mutation in KNOCK_ON or set(found) == set(expected), found


@pytest.mark.one_major
def test_what_is_in_quarantine_is_so_value_by_value(session, behind, check):
    # An address that somebody has by then cannot be written.
    with contextlib.closing(session):
        session.execute("ALTER TABLE customers ADD CONSTRAINT none CHECK (email <> 'refused@unified.example')")
        session.execute("UPDATE users SET email = 'refused@unified.example', name = 'Refused' WHERE id = 'u-customer'")
        assert session.value("SELECT source_id FROM unified_user_journal.quarantine WHERE source_table = 'users'") == "u-customer"
        found = check().require()
        assert found.not_representable == HELD and found.not_carried == {**NOT_CARRIED, "quarantine": 1}
    behind("UPDATE users SET name = 'Another' WHERE id = 'u-customer'")
    assert failed(check())["users"].samples == ["different u-customer (name)"]


@pytest.mark.one_major
def test_what_a_legacy_owner_decides_is_no_difference(session, check):
    session.execute("UPDATE studios SET \"ownerId\" = NULL WHERE id = 's-new'")
    found = check().require()
    assert found.not_representable["further_owners"] == 1
    session.execute("DELETE FROM studio_owners WHERE id = 'u-owner'; DELETE FROM new_bookings WHERE \"customerId\" = 'u-customer'")
    session.execute("DELETE FROM users WHERE id = 'u-customer'")
    assert "inactive_users" not in check().require().not_representable


@pytest.mark.one_major
def test_what_was_not_carried_is_not_missed_when_those_he_was_joined_with_are_gone(session, check):
    for statement in (
        "DELETE FROM customers WHERE lower(email) = 'squatted@example.org'",
        "UPDATE studio_owners SET \"emailVerified\" = now() WHERE id = 'o-squatter'",
    ):
        assert session.execute(statement) == 1
        assert check().require().not_carried == NOT_CARRIED, statement


@pytest.mark.one_major
def test_the_journal_of_an_earlier_version(cluster, mine, session, check):
    session.execute("ALTER TABLE unified_user_journal.identity_map DROP COLUMN parted; UPDATE unified_user_journal.sync SET definition = 'earlier'")
    found = check()
    assert set(failed(found)) == {"sync"} and found.not_carried == NOT_CARRIED
    with contextlib.closing(Database(cluster.connect(mine))) as database:
        assert Sync(database, SyncOptions(policies=POLICIES)).install("both")
    # Both write to the map who parted.
    assert session.execute("DELETE FROM customers WHERE lower(email) = 'squatted@example.org'") == 1
    assert session.execute("UPDATE studio_owners SET \"emailVerified\" = now() WHERE id = 'o-squatter'") == 1
    assert check().require().not_carried == NOT_CARRIED


@pytest.mark.one_major
def test_what_was_carried_is_missed_whoever_he_was_joined_with(session, behind, check):
    owner = session.row(
        'SELECT o.id, c.id AS customer FROM studio_owners AS o JOIN customers AS c ON lower(c.email) = lower(o.email)'
        ' WHERE o."emailVerified" IS NOT NULL ORDER BY o.id LIMIT 1'
    )
    session.execute("INSERT INTO sessions (id, \"sessionToken\", \"userId\", expires) VALUES ('t-joined', 'token-of-joined', %s, '2095-01-01')", (owner["id"],))
    session.execute("DELETE FROM customers WHERE id = %s", (owner["customer"],))
    check().require()
    behind("DELETE FROM new_sessions WHERE id = 't-joined'")
    assert failed(check())["sessions"].samples == ["missing t-joined"]


@pytest.mark.one_major
def test_without_reverse_sync_nothing_is_proven(cluster, session, check):
    sync = Sync(session, SyncOptions(policies=POLICIES))
    sync.install("forward")
    found = failed(check())
    assert set(found) == {"sync_direction"} and found["sync_direction"].actual == "forward"
    sync.remove()
    with pytest.raises(UnifiedUserError, match=r"what the unified side writes is not carried to the legacy side.* write to the legacy side what it lacks"):
        check().require()
    with pytest.raises(UnifiedUserError, match="in reverse a cut-over excuses nothing"):
        check(cutover_at="2030-01-01")
    assert set(failed(check(policies=Policies()))) == {"settings"}


@pytest.mark.one_major
def test_the_module_in_reverse(cluster, mine, behind):
    passed = run_module("unified_user_verify", options(cluster, mine, direction="reverse", _ansible_check_mode=True))
    assert passed["passed"] and not passed["changed"] and passed["not_representable"] == HELD
    behind("UPDATE customers SET phone = 'x'; UPDATE studio_owners SET email = 'x' || email")
    refused = run_module("unified_user_verify", options(cluster, mine, direction="reverse"))
    assert refused["failed"] and re.search(r"users: .*different \(phone \d+, email \d+", refused["msg"])
    told = json.dumps(run_module("unified_user_verify", options(cluster, mine, direction="reverse", fail_on_difference=False, sample_size=1000)))
    assert "@unified.example" not in re.sub(r"\w\*\*\*@unified\.example", "", told) and "password-of-both" not in told


@pytest.mark.one_major
def test_only_reads(cluster, mine):
    with contextlib.closing(Database(cluster.connect(mine))) as database:
        verify_database(database, policies=POLICIES, direction="reverse").require()
        verbs = {re.match(r"\s*(\w+)", statement).group(1) for statement in database.executed_queries}
        assert verbs <= {"BEGIN", "SET", "SELECT", "WITH", "SHOW", "SAVEPOINT", "RELEASE", "COMMIT"}
