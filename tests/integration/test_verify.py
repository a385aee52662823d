# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Verification on real servers: it passes what is right, and each of its checks fails for what that check is there for."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psycopg2
import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import read_schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import Verification, verify, verify_database

from tests.module_process import ROOT, connection_options, run_module
from tests.seeded_secrets import register_secrets

POLICIES = Policies(unresolvable_bookings="quarantine", duplicate_identities="merge")

# What the reference case lacks: a guest, a booking that names nobody, an unverified owner who is joined to a verified customer,
# with credentials that are not carried, two customers who are one person and share a favourite.
MORE_ROWS = """
INSERT INTO bookings (id, "studioId", "customerName", "customerEmail", "customerPhone", "preferredDate", "preferredTime", "createdAt", "updatedAt")
SELECT v.id, s.id, v.name, v.email, v.phone, '2026-01-01', '10:00', v.at, v.at FROM (SELECT min(id) AS id FROM studios) AS s, (VALUES
    ('b-guest-1', 'Gina', ' Gina@guest.example', '', timestamp '2024-01-01 10:00:00.001'),
    ('b-guest-2', ' ', 'gina@guest.example', '0171', timestamp '2024-01-02 10:00:00.002'),
    ('b-nobody', 'Nobody', 'no address', '', timestamp '2024-01-03 10:00:00.003')) AS v(id, name, email, phone, at);
INSERT INTO studio_owners (id, name, email, password, "createdAt", "updatedAt")
VALUES ('o-squatter', 'S', 'squatted@example.org', 'squatters-own-password', '2023-01-01', '2023-01-01');
INSERT INTO customers (id, name, email, "emailVerified", password, "createdAt", "updatedAt") VALUES
    ('c-squatted', 'C', 'Squatted@example.org', '2023-02-02 02:02:02.002', 'squatted-ones-password', '2023-02-02', '2023-02-02'),
    ('c-twin-1', 'T', 'twin@example.org', '2023-02-03', NULL, '2023-02-02', '2023-02-02'),
    ('c-twin-2', 'T', 'Twin@example.org', NULL, 'untrusted-twin-password', '2023-02-04', '2023-02-05');
INSERT INTO sessions (id, "sessionToken", "userId", expires) VALUES ('s-squatter', 'squatters-session-token', 'o-squatter', '2095-01-01');
INSERT INTO accounts (id, "userId", type, provider, "providerAccountId") VALUES ('a-squatter', 'o-squatter', 'oauth', 'google', 'squatters-google');
INSERT INTO "_CustomerFavorites" SELECT c.id, s.id FROM customers AS c, (SELECT min(id) AS id FROM studios) AS s WHERE c.id LIKE 'c-twin-%'
"""
register_secrets(
    ["squatters-own-password", "squatted-ones-password", "untrusted-twin-password", "squatters-session-token", "squatters-google"]
)
CHECKS = 30
PEOPLE_SHOWN = ("gina@guest.example", "squatted@example.org", "twin@example.org")


@pytest.fixture(scope="module")
def migrated_template(cluster, templates):
    """Name of a migrated database that is only ever cloned."""
    name = f"verified_{os.getpid()}"
    with templates.database("reference") as reference:
        cluster.create_database(name, reference)
    with contextlib.closing(Database(cluster.connect(name))) as session:
        session.execute(MORE_ROWS)
        AtomicCopy(session, Options(policies=POLICIES)).run()
    yield name
    cluster.drop_database(name)


@pytest.fixture
def migrated(cluster, migrated_template):
    """Name of a migrated database of the test's own."""
    name = f"{migrated_template}_clone"
    cluster.create_database(name, migrated_template)
    yield name
    cluster.drop_database(name)


@pytest.fixture
def session(cluster, migrated):
    """A superuser's session there, free of foreign keys, as whoever spoils a database may be."""
    with contextlib.closing(Database(cluster.connect(migrated))) as database:
        database.execute("SET session_replication_role = replica")
        yield database


@pytest.fixture
def check(cluster, migrated):
    """Verifies that database in a session of its own and returns the verification."""

    def check(**options) -> Verification:
        with contextlib.closing(Database(cluster.connect(migrated))) as database:
            return verify_database(database, **{"policies": POLICIES, **options})

    return check


def copy(database: Database) -> None:
    """Migrate under the default policies and leave the session as it was."""
    AtomicCopy(database, Options()).run()
    database.execute("RESET search_path")


def failed(verification: Verification) -> dict:
    """The checks that did not pass, by name."""
    found = {check.name: check for check in verification.checks if not check.passed}
    assert verification.passed == (not found)
    return found


def test_a_migrated_database_passes_and_its_totals_are_the_guides(check):
    found = check().require()
    assert len({entry.name for entry in found.checks}) == len(found.checks) == CHECKS
    assert all(entry.differing == 0 and not entry.samples and not entry.detail for entry in found.checks)
    assert found.totals == {
        "owners": 43, "customers": 161, "identities": 200, "joined_identities": 4, "guests": 1, "users": 201, "role_assignments": 204,
        "ownerships": 47, "bookings": 314, "quarantined": 1, "favourites": 121, "favourites_left": 1, "accounts": 20, "accounts_left": 1,
        "sessions": 28, "sessions_left": 1, "orphans": 0,
    }  # fmt: skip
    assert {entry.name: (entry.expected, entry.actual) for entry in found.checks}["bookings"] == (314, 314)


def test_the_journal_of_an_earlier_version_passes(session, check):
    session.execute("ALTER TABLE unified_user_journal.identity_map DROP COLUMN parted")
    check().require()


def test_the_reference_case_by_its_numbers(cluster, reference_database):
    with contextlib.closing(Database(cluster.connect(reference_database))) as database:
        AtomicCopy(database, Options()).run()
        totals = verify_database(database).require().totals
    assert {name: totals[name] for name in ("users", "role_assignments", "ownerships", "bookings", "orphans")} == {
        "users": 198, "role_assignments": 200, "ownerships": 47, "bookings": 312, "orphans": 0,
    }  # fmt: skip


def test_only_reads_and_leaves_nothing(cluster, migrated):
    with contextlib.closing(Database(cluster.connect(migrated))) as database:
        verify_database(database, policies=POLICIES).require()
        verbs = {re.match(r"\s*(\w+)", statement).group(1) for statement in database.executed_queries}
        assert verbs <= {"BEGIN", "SET", "SELECT", "WITH", "SHOW", "SAVEPOINT", "RELEASE", "COMMIT"}
        assert not database.in_transaction
        assert database.value("SHOW search_path") != "pg_catalog"
        assert database.value("SELECT count(*) FROM pg_class WHERE relpersistence = 't'") == 0


_ONE_USER = """(SELECT id FROM users WHERE "primaryRole" = 'CUSTOMER' AND id LIKE 'cm%' ORDER BY id LIMIT 1)"""
_ONE_BOOKING = "(SELECT min(id) FROM new_bookings WHERE id LIKE 'cm%')"
_SQUATTED = "(SELECT user_id FROM unified_user_journal.identity_map WHERE source_id = 'o-squatter')"
_COPY = "id, name, email, \"emailVerified\", password, phone, image, \"primaryRole\", \"isActive\", \"isSuspended\", \"createdAt\", \"updatedAt\""

# What is done -> the checks that must fail, each with the number of rows that differ and what its first sample looks like.
DIFFERENCES = {
    "a user's name": (
        f"UPDATE users SET name = name || ' ' WHERE id = {_ONE_USER}", {"users": (1, r"different cm\w+ \(name\)")}),
    "a user's birth by a millisecond": (
        f"UPDATE users SET \"createdAt\" = \"createdAt\" + interval '1 ms' WHERE id = {_ONE_USER}", {"users": (1, r"different cm\w+ \(createdAt\)")}),
    "a user suspended": (
        f"UPDATE users SET \"isSuspended\" = true WHERE id = {_ONE_USER}", {"users": (1, r"different cm\w+ \(isSuspended\)")}),
    "a user too many": (
        "INSERT INTO users (id, email, \"updatedAt\") VALUES ('u-more', 'more@example.org', now())",
        {"users": (1, "unexpected u-more"), "total_users": (1, None)}),
    "a user too few": (
        "DELETE FROM users WHERE id = 'c-twin-1'",
        {"users": (1, "missing c-twin-1"), "total_users": (1, None), "dangling_mappings": (2, "customers c-twin-1"),
         "orphans": (2, r"_UserFavorites cm\w+ c-twin-1 \(B\)|user_role_assignments c\w{24} \(userId\)")}),
    "a user's e-mail in another spelling": (
        "UPDATE users SET email = 'twin@EXAMPLE.org' WHERE id = 'c-twin-1'", {"users": (1, r"different c-twin-1 \(email\)")}),
    "two users with one key": (
        "INSERT INTO users (id, email, \"updatedAt\") VALUES ('u-more', ' TWIN@example.org', now())",
        {"users": (1, "unexpected u-more"), "total_users": (1, None), "double_identity_keys": (1, r"t\*\*\*@example.org")}),
    "a role twice": (
        "INSERT INTO user_role_assignments (id, \"userId\", role, \"grantedBy\", \"grantedAt\") SELECT 'r-more', \"userId\", role, \"grantedBy\", \"grantedAt\""
        f" FROM user_role_assignments WHERE \"userId\" = {_ONE_USER}",
        {"role_assignments": (1, "unexpected r-more"), "total_role_assignments": (1, None), "double_roles": (1, r"cm\w+ CUSTOMER")}),
    "a role's id": (
        f"UPDATE user_role_assignments SET id = 'r-other' WHERE \"userId\" = {_ONE_USER}",
        {"role_assignments": (2, r"missing c\w{24}")}),
    "a role's time": (
        f"UPDATE user_role_assignments SET \"grantedAt\" = \"grantedAt\" - interval '1 ms' WHERE \"userId\" = {_ONE_USER}",
        {"role_assignments": (1, r"different c\w{24} \(grantedAt\)")}),
    "a role that grew": (
        f"UPDATE user_role_assignments SET role = 'SUPER_ADMIN' WHERE \"userId\" = {_ONE_USER}",
        {"role_assignments": (1, r"different c\w{24} \(role\)")}),
    "an ownership lost": (
        "DELETE FROM studio_ownership WHERE id = (SELECT min(id) FROM studio_ownership)",
        {"ownerships": (1, r"missing c\w{24}"), "total_ownerships": (1, None)}),
    "an ownership passed on": (
        f"UPDATE studio_ownership SET \"userId\" = {_ONE_USER} WHERE id = (SELECT min(id) FROM studio_ownership)",
        {"ownerships": (1, r"different c\w{24} \(userId\)")}),
    "an account's token": (
        "UPDATE new_accounts SET access_token = access_token || 'x' WHERE id = (SELECT min(id) FROM new_accounts)",
        {"accounts": (1, r"different cm\w+ \(access_token\)")}),
    "an account of a squatter": (
        f"INSERT INTO new_accounts SELECT id, {_SQUATTED}, type, provider, \"providerAccountId\" FROM accounts WHERE id = 'a-squatter'",
        {"accounts": (1, "unexpected a-squatter"), "total_accounts": (1, None), "credentials_not_carried": (1, "new_accounts a-squatter")}),
    "a session lost": (
        "DELETE FROM new_sessions WHERE id = (SELECT min(id) FROM new_sessions)",
        {"sessions": (1, r"missing cm\w+"), "total_sessions": (1, None)}),
    "a session of a squatter under another id": (
        f"INSERT INTO new_sessions SELECT 's-other', \"sessionToken\", {_SQUATTED}, expires FROM sessions WHERE id = 's-squatter'",
        {"sessions": (1, "unexpected s-other"), "total_sessions": (1, None), "credentials_not_carried": (1, "new_sessions s-other")}),
    "a squatter's password": (
        f"UPDATE users SET password = (SELECT password FROM studio_owners WHERE id = 'o-squatter') WHERE id = {_SQUATTED}",
        {"users": (1, r"different o-squatter \(password\)"), "passwords": (1, "o-squatter")}),
    "a guest's password": (
        "UPDATE users SET password = 'made-up-password' WHERE id = (SELECT user_id FROM unified_user_journal.identity_map WHERE source_table = 'bookings')",
        {"users": (1, r"different c\w{24} \(password\)"), "passwords": (1, r"c\w{24}")}),
    "a verification time": (
        f"UPDATE users SET \"emailVerified\" = \"emailVerified\" + interval '1 ms' WHERE id = {_SQUATTED}",
        {"users": (1, r"different o-squatter \(emailVerified\)"), "verification_times": (1, "o-squatter")}),
    "a guest verified": (
        "UPDATE users SET \"emailVerified\" = now() WHERE id = (SELECT user_id FROM unified_user_journal.identity_map WHERE source_table = 'bookings')",
        {"users": (1, r"different c\w{24} \(emailVerified\)"), "verification_times": (1, r"c\w{24}")}),
    "a booking's message": (
        f"UPDATE new_bookings SET message = coalesce(message, '') || 'x' WHERE id = {_ONE_BOOKING}",
        {"bookings": (1, r"different cm\w+ \(message\)")}),
    "a booking's user": (
        "UPDATE new_bookings SET \"customerId\" = 'c-twin-1' WHERE id IN ('b-guest-1', 'b-guest-2')",
        {"bookings": (2, r"different b-guest-1 \(customerId\)")}),
    "a booking lost and another made up": (
        f"UPDATE new_bookings SET id = 'b-other' WHERE id = {_ONE_BOOKING}",
        {"bookings": (2, r"missing cm\w+")}),
    "a booking confirmed": (
        f"UPDATE new_bookings SET \"confirmedBy\" = '' WHERE id = {_ONE_BOOKING}", {"bookings": (1, r"different cm\w+ \(confirmedBy\)")}),
    "a booking without its studio, service and user": (
        f"UPDATE new_bookings SET \"studioId\" = 'none', \"serviceId\" = 'none', \"customerId\" = 'none' WHERE id = {_ONE_BOOKING}",
        {"bookings": (1, r"different cm\w+ \(studioId, serviceId, customerId\)"), "orphans": (3, r"new_bookings cm\w+ \(customerId\)")}),
    "a favourite lost": (
        "DELETE FROM \"_UserFavorites\" WHERE \"B\" = 'c-twin-1'",
        {"favourites": (1, r"missing cm\w+ c-twin-1"), "total_favourites": (1, None)}),
    "a favourite swapped": (
        "UPDATE \"_UserFavorites\" SET \"A\" = \"B\", \"B\" = \"A\" WHERE \"B\" = 'c-twin-1'",
        {"favourites": (2, r"missing cm\w+ c-twin-1"), "orphans": (2, r"_UserFavorites c-twin-1 cm\w+ \(A\)")}),
    "a mapping's user": (
        "UPDATE unified_user_journal.identity_map SET user_id = 'nobody' WHERE source_id = 'c-twin-2'",
        {"identity_map": (1, r"different customers c-twin-2 \(user_id\)"), "dangling_mappings": (1, "customers c-twin-2")}),
    "a guest's mapping": (
        "DELETE FROM unified_user_journal.identity_map WHERE source_table = 'bookings'",
        {"identity_map": (1, r"missing bookings g\*\*\*@guest.example"), "total_identity_map": (1, None)}),
    "a quarantined row": (
        "UPDATE unified_user_journal.quarantine SET \"row\" = \"row\" || '{\"message\": \"\"}'",
        {"quarantine": (1, r"different bookings b-nobody \(row\)")}),
    "a quarantined row lost": (
        "DELETE FROM unified_user_journal.quarantine",
        {"quarantine": (1, "missing bookings b-nobody"), "total_quarantine": (1, None), "total_bookings": (1, None)}),
    "a magic link": (
        "INSERT INTO magic_link_tokens (id, token, email, \"expiresAt\") VALUES ('m-1', 'made-up-token', 'x@example.org', now())",
        {"magic_link_tokens": (1, "m-1")}),
    "an audit entry": (
        "INSERT INTO audit_logs (id, \"userId\", action, resource, \"resourceId\") VALUES ('l-1', 'none', 'a', 'r', 'i')",
        {"audit_logs": (1, "l-1"), "orphans": (1, r"audit_logs l-1 \(userId\)")}),
    "a session of nobody on the legacy side": (
        "INSERT INTO sessions (id, \"sessionToken\", \"userId\", expires) VALUES ('s-nobody', 'x', 'nobody', now())",
        {"credentials_of_nobody": (1, "sessions s-nobody")}),
    "a legacy row that came after": (
        "INSERT INTO customers (id, name, email, \"updatedAt\") VALUES ('c-late', 'L', 'late@example.org', now())",
        {"identity_map": (1, "missing customers c-late"), "users": (1, "missing c-late"), "total_users": (1, None), "total_identity_map": (1, None)}),
}  # fmt: skip


@pytest.mark.one_major
@pytest.mark.parametrize("difference", DIFFERENCES)
def test_every_check_notices_what_it_is_there_for(session, check, difference):
    statement, expected = DIFFERENCES[difference]
    assert session.execute(statement) > 0
    found = failed(check())
    assert {name: entry.differing for name, entry in found.items() if name in expected} == {name: count for name, (count, unused) in expected.items()}
    for name, (count, sample) in expected.items():
        assert found[name].expected != found[name].actual or count
        if sample:
            assert re.fullmatch(sample, found[name].samples[0]), found[name].samples
    # What depends on a lost user or mapping may differ with it; nothing else may.
    knock_on = {"a user too few", "a mapping's user", "a guest's mapping", "a booking without its studio, service and user"}
    assert difference in knock_on or set(found) == set(expected)


def test_every_check_is_among_those_that_fail_somewhere(check):
    seen = {name for unused, expected in DIFFERENCES.values() for name in expected}
    assert {entry.name for entry in check().checks} - seen == {"run", "settings"}


def test_samples_are_as_many_as_asked_for_and_show_no_person(session, check):
    session.execute("UPDATE users SET name = name || 'x'; UPDATE unified_user_journal.identity_map SET user_id = user_id || 'x'")
    for size in (0, 1, 7):
        found = failed(check(sample_size=size))
        assert len(found["users"].samples) == size and len(found["identity_map"].samples) == size
        assert found["users"].differing == 201 - session.value("SELECT count(*) FROM users WHERE name IS NULL")
        assert found["identity_map"].differing == 205
    told = json.dumps(check(sample_size=1000).as_dict())
    assert not [email for email in PEOPLE_SHOWN if email in told.lower()]
    assert "gina@guest.example" in json.dumps(check(sample_size=1000, mask_pii=False).as_dict())


def test_differing_columns_are_counted(session, check):
    session.execute("UPDATE users SET phone = 'x', name = CASE WHEN id = 'c-twin-1' THEN 'y' ELSE name END WHERE id LIKE 'c-%' OR id LIKE 'o-%'")
    found = failed(check())["users"]
    assert found.differing == 2 and found.detail == "2 different (phone 2, name 1)"
    assert found.samples == ["different c-twin-1 (name, phone)", "different o-squatter (phone)"]


@pytest.mark.parametrize("table, column, check_name, sample", [
    ("user_role_assignments", "id", "role_assignments", "unexpected NULL"),
    ("_UserFavorites", "B", "favourites", r"unexpected cm\w+ NULL"),
    ("_CustomerFavorites", "A", "favourites", r"missing cm\w+ NULL"),
    ("_CustomerFavorites", "B", "favourites", r"missing NULL cm\w+"),
])  # fmt: skip
def test_rows_without_a_key_are_named_all_the_same(session, check, table, column, check_name, sample):
    (name,) = [row["conname"] for row in session.rows("SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'p'", (f'"{table}"',))]
    session.execute(f'ALTER TABLE "{table}" DROP CONSTRAINT "{name}"; ALTER TABLE "{table}" ALTER "{column}" DROP NOT NULL')
    assert session.execute(f'UPDATE "{table}" SET "{column}" = NULL WHERE ctid = (SELECT min(ctid) FROM "{table}")') == 1
    found = failed(check())
    assert set(found) == {check_name} and found[check_name].differing == 2 and found[check_name].detail == "1 missing; 1 unexpected"
    assert sum(re.fullmatch(sample, entry) is not None for entry in found[check_name].samples) == 1, found[check_name].samples


@pytest.mark.parametrize("statement, name, sample", [
    ("UPDATE studios SET \"ownerId\" = 'nobody' WHERE id = (SELECT min(id) FROM studios WHERE \"ownerId\" IS NOT NULL)",
     "ownerships", r"missing c\w{24}"),
    ("UPDATE \"_CustomerFavorites\" SET \"A\" = 'nobody' WHERE ctid = (SELECT min(ctid) FROM \"_CustomerFavorites\")",
     "favourites", r"missing cm\w+ nobody"),
])  # fmt: skip
def test_references_to_nobody_on_the_legacy_side_are_named(session, check, statement, name, sample):
    assert session.execute(statement) == 1
    found = failed(check())
    assert set(found) == {name} and found[name].differing == 2
    assert re.fullmatch(sample, found[name].samples[0]), found[name].samples


def test_a_spelling_that_the_collation_calls_equal_is_noticed(session, check):
    if not session.value("SELECT EXISTS (SELECT FROM pg_collation WHERE collprovider = 'i' AND collname = 'und-x-icu')"):
        pytest.skip("this server was built without ICU")
    session.execute("CREATE COLLATION lax (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    session.execute("ALTER TABLE users ALTER email TYPE text COLLATE lax; ALTER TABLE new_bookings ALTER id TYPE text COLLATE lax")
    check().require()
    session.execute("UPDATE users SET email = upper(email) WHERE id = 'c-twin-1'; UPDATE new_bookings SET id = upper(id) WHERE id = 'b-guest-1'")
    found = failed(check())
    assert found["users"].samples == ["different c-twin-1 (email)"]
    assert set(found) == {"users", "bookings"}


# Types whose equality is lax or missing: a value, and another that the type's own operator may call equal.
LAX = {
    "json": ("'{\"a\": 1}'", "'{\"a\":1}'"),
    "jsonb": ("'{\"a\": 1}'", "'{\"a\": 1.0}'"),
    "numeric": ("1.50", "1.5"),
    "double precision": ("0", "'-0'"),
    "interval": ("'1 month'", "'30 days'"),
    "text[]": ("'{a,b}'", "'[2:3]={a,b}'"),
    "character(5)": ("'a'", "'b'"),
    "point": ("'(1,1)'", "'(1,1.000001)'"),
    "xml": ("'<a/>'", "'<a />'"),
    "varchar(20)": ("'ä'", "U&'a\\0308'"),
}


@pytest.mark.parametrize("kind", LAX)
def test_values_of_types_with_a_lax_equality_are_compared_to_the_byte(cluster, reference_database, kind):
    one, other = LAX[kind]
    with contextlib.closing(Database(cluster.connect(reference_database))) as database:
        if kind == "xml" and not _has_xml(database):
            pytest.skip("this server was built without XML")
        tables = {"bookings": "new_bookings", "customers": "users"}
        for table in (*tables, *tables.values()):
            database.execute(f'ALTER TABLE {table} ADD "extraField" {kind}')
        for table in tables:
            database.execute(f'UPDATE {table} SET "extraField" = {one}')
        copy(database)
        verify_database(database).require()
        for table, name in (("new_bookings", "bookings"), ("users", "users")):
            database.execute(f'UPDATE {table} SET "extraField" = {other} WHERE id = (SELECT max(id) FROM {table} WHERE "extraField" IS NOT NULL)')
            found = failed(verify_database(database))
            assert found[name].detail == "1 different (extraField 1)"


def _has_xml(database: Database) -> bool:
    with contextlib.suppress(Exception):
        return database.value("SELECT xmlparse(content '<a/>') IS NOT NULL")
    return False


def test_a_computed_default_is_not_known_and_everything_else_is(cluster, reference_database):
    with contextlib.closing(Database(cluster.connect(reference_database))) as database:
        database.execute(
            'ALTER TABLE users ADD "seenAt" timestamp(3) DEFAULT now(), ADD "madeAt" timestamp(3) DEFAULT now(), ADD score integer NOT NULL DEFAULT 7;'
            ' ALTER TABLE customers ADD "seenAt" timestamp(3); ALTER TABLE new_sessions ADD "madeAt" timestamp(3) DEFAULT now()'
        )
        copy(database)
        found = {entry.name: entry.detail for entry in verify_database(database).require().checks}
        assert found["users"] == "not compared where no row gives a value, as the default is computed: seenAt, madeAt"
        assert found["sessions"] == "not compared where no row gives a value, as the default is computed: madeAt"
        # A joined owner has it from his customers row, an owner alone from nowhere.
        joined = "(SELECT o.id FROM studio_owners AS o JOIN customers AS c ON c.email = o.email)"
        owner = "\"primaryRole\" = 'STUDIO_OWNER'"
        for where, differing in ((f"NOT {owner}", 156), (f"id IN {joined}", 1), (f"{owner} AND id NOT IN {joined}", 1)):
            database.execute(f'UPDATE users SET "seenAt" = \'2020-01-01\', "madeAt" = NULL WHERE {where}')
            assert failed(verify_database(database))["users"].detail.startswith(f"{differing} different (seenAt {differing})")
            database.execute(f'UPDATE users SET "seenAt" = NULL WHERE {where}')
        verify_database(database).require()
        database.execute("UPDATE users SET score = 8 WHERE id = (SELECT min(id) FROM users)")
        assert failed(verify_database(database))["users"].samples[0].endswith("(score)")


def test_what_cannot_be_read_is_not_a_pass(cluster, migrated, session):
    role = f"reader_{os.getpid()}"
    session.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA public, unified_user_journal TO {role}")
    session.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public, unified_user_journal TO {role}")
    try:
        with contextlib.closing(Database(cluster.connect(migrated, user=role))) as reader:
            # SELECT is all it takes.
            verify_database(reader, policies=POLICIES).require()
            session.execute(f"REVOKE SELECT ON new_sessions FROM {role}")
            found = failed(verify_database(reader, policies=POLICIES))
            # Every check that needs the table says so, and the others went on.
            assert set(found) == {"sessions", "orphans", "credentials_not_carried", "total_sessions"}
            for entry in found.values():
                assert entry.differing is None and entry.expected is None
                assert entry.detail.startswith("it could not run: ")
            assert found["orphans"].detail == "it could not run: permission denied for table new_sessions (insufficient_privilege)"
            with pytest.raises(UnifiedUserError, match="4 of 30 checks failed: sessions: it could not run: permission denied for table new_sessions"):
                verify_database(reader, policies=POLICIES).require()
            # Where only the comparison fails, the total that leans on it has failed with it.
            session.execute(f'GRANT SELECT (id, "userId", "sessionToken") ON new_sessions TO {role}')
            found = failed(verify_database(reader, policies=POLICIES))
            assert {name: entry.detail.partition(":")[2].strip() for name, entry in found.items()} == {
                "sessions": "permission denied for table new_sessions (insufficient_privilege)",
                "total_sessions": "what it is the sum of could not be compared",
            }  # fmt: skip
            session.execute(f"REVOKE SELECT ON unified_user_journal.run FROM {role}")
            assert list(failed(verify_database(reader, policies=POLICIES))) == ["run"]
    finally:
        session.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_rows_that_a_policy_hides_are_not_rows_that_are_not_there(cluster, migrated, session):
    role = f"blinkered_{os.getpid()}"
    session.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA public, unified_user_journal TO {role}")
    session.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public, unified_user_journal TO {role}")
    session.execute("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY; ALTER TABLE new_sessions ENABLE ROW LEVEL SECURITY")
    try:
        with contextlib.closing(Database(cluster.connect(migrated, user=role))) as reader:
            entry = failed(verify_database(reader, policies=POLICIES))["sessions"]
            assert entry.differing is None and "would be affected by row-level security policy" in entry.detail
    finally:
        session.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_database_that_was_never_migrated_is_not_a_pass(cluster, reference_database):
    with contextlib.closing(Database(cluster.connect(reference_database))) as database:
        found = verify_database(database)
        assert not found.passed and [entry.name for entry in found.checks] == ["run"]
        with pytest.raises(UnifiedUserError, match=r"this database has not been migrated: the journal has no run\. Run playbooks/migrate.yml"):
            found.require()
        _journal.create(database)
        assert failed(verify_database(database))["run"].actual == "none"
        _journal.start_run(database, "atomic", "public", {}, {})
        (run,) = verify_database(database).checks
        assert (run.actual, run.detail) == ("running", "the run is under way or was interrupted")
        AtomicCopy(database, Options()).undo()
        assert failed(verify_database(database))["run"].actual == "none"


def test_no_check_is_not_a_pass():
    assert not Verification().passed
    with pytest.raises(UnifiedUserError, match="no check was run"):
        Verification().require()


def test_settings_other_than_the_runs_are_named(check):
    found = failed(check(policies=Policies(guest_role="GUEST", unresolvable_bookings="quarantine"), mapping={"tables": {}}))
    assert set(found) == {"settings"}
    assert found["settings"].samples == ["duplicate_identities", "guest_role", "mapping"]
    assert "guest_role is GUEST here and was CUSTOMER in the run" in found["settings"].detail


def test_missing_tables_fail_before_anything_is_compared(cluster, legacy_reference_database):
    with (
        contextlib.closing(Database(cluster.connect(legacy_reference_database))) as database,
        pytest.raises(UnifiedUserError, match="unified table users does not exist"),
    ):
        verify_database(database)


def test_inside_a_transaction_it_sees_what_is_not_committed(cluster, migrated):
    with contextlib.closing(Database(cluster.connect(migrated))) as database:
        database.execute("SET search_path = pg_catalog; SET TIME ZONE 'UTC'")
        with database.transaction():
            schema = read_schema(database)
            verify(database, schema, POLICIES).require()
            database.execute("UPDATE public.users SET name = 'x' WHERE id = 'c-twin-1'")
            assert set(failed(verify(database, schema, POLICIES))) == {"users"}
            database.execute("UPDATE public.users SET name = 'T' WHERE id = 'c-twin-1'")
            verify(database, schema, POLICIES).require()


CUTOVER = "2030-01-01 00:00:00"
LATER = "'2030-01-01 00:00:00'"
LIFE_AFTER = f"""
INSERT INTO users (id, email, "createdAt", "updatedAt") VALUES ('u-new', 'new@example.org', {LATER}, {LATER});
INSERT INTO user_role_assignments (id, "userId", role, "grantedAt")
VALUES ('r-new', 'u-new', 'CUSTOMER', {LATER}), ('r-old', 'c-twin-1', 'STUDIO_OWNER', {LATER});
INSERT INTO studio_ownership (id, "userId", "studioId", "invitedAt") SELECT 'w-new', 'c-twin-1', min(id), {LATER} FROM studios;
INSERT INTO new_accounts (id, "userId", type, provider, "providerAccountId") VALUES ('a-new', 'u-new', 'oauth', 'google', 'new');
INSERT INTO new_sessions (id, "sessionToken", "userId", expires) VALUES ('s-new', 'new', 'u-new', '2031-01-01');
INSERT INTO "_UserFavorites" SELECT min(id), 'u-new' FROM studios;
INSERT INTO new_bookings (id, "studioId", "customerId", "customerName", "customerEmail", "preferredDate", "preferredTime", "createdAt", "updatedAt")
SELECT 'b-new', min(id), 'u-new', 'N', 'new@example.org', '', '', {LATER}, {LATER} FROM studios;
INSERT INTO magic_link_tokens (id, token, email, "expiresAt", "createdAt") VALUES ('m-new', 't', 'e', {LATER}, {LATER});
INSERT INTO audit_logs (id, action, resource, "resourceId", "createdAt") VALUES ('l-new', 'a', 'r', 'i', {LATER});
UPDATE users SET name = 'Changed', password = 'changed-password', "emailVerified" = {LATER}, "updatedAt" = {LATER} WHERE id IN ('c-twin-1', {_SQUATTED});
UPDATE new_bookings SET status = 'CONFIRMED', "confirmedBy" = 'c-twin-1', "confirmedAt" = {LATER}, "updatedAt" = {LATER} WHERE id = 'b-guest-1'
"""


def test_what_was_born_or_changed_after_cut_over_is_counted_apart(session, check):
    session.execute(LIFE_AFTER)
    # Without the time everything must match exactly.
    assert {"users", "role_assignments", "ownerships", "accounts", "sessions", "bookings", "favourites", "magic_link_tokens"} <= set(failed(check()))
    found = check(cutover_at=CUTOVER).require()
    assert (found.totals["born_after_cutover"], found.totals["changed_since_cutover"]) == (8, 3)
    assert found.totals["users"] == 202
    details = {entry.name: entry.detail for entry in found.checks if entry.detail}
    assert details["users"] == "1 born after cut-over; 2 changed since cut-over"
    assert details["role_assignments"] == "2 born after cut-over"
    # The same moment, told in another zone.
    check(cutover_at="2029-12-31 19:00:00-05").require()


# Nothing of this is excused by a cut-over: it happened before, its time is unknown, or the source is as new.
NOT_EXCUSED = {
    "users": "INSERT INTO users (id, email, \"createdAt\", \"updatedAt\") VALUES ('u-more', 'more@example.org', '2029-12-31 23:59:59.999', '2031-01-01')",
    "role_assignments": "INSERT INTO user_role_assignments (id, \"userId\", role, \"grantedAt\") VALUES ('r-more', 'c-twin-1', 'SUPER_ADMIN', '2029-12-31')",
    "sessions": "INSERT INTO new_sessions (id, \"sessionToken\", \"userId\", expires) VALUES ('s-more', 'x', 'c-twin-1', '2031-01-01')",
    "accounts": "DELETE FROM new_accounts WHERE id = (SELECT max(id) FROM new_accounts)",
    "bookings": "UPDATE new_bookings SET message = 'x', \"updatedAt\" = '2029-12-31 23:59:59.999' WHERE id = 'b-guest-1'",
    "favourites": "DELETE FROM \"_UserFavorites\" WHERE \"B\" = 'c-twin-1'",
    "magic_link_tokens": "INSERT INTO magic_link_tokens (id, token, email, \"expiresAt\", \"createdAt\") VALUES ('m', 'another', 'e', now(), '2029-12-31')",
    "double_roles": "INSERT INTO user_role_assignments (id, \"userId\", role, \"grantedAt\") VALUES ('r-more', 'c-twin-1', 'CUSTOMER', '2031-01-01')",
    "double_identity_keys": f"INSERT INTO users (id, email, \"createdAt\", \"updatedAt\") VALUES ('u-more', 'TWIN@example.org', {LATER}, {LATER})",
    "orphans": f"INSERT INTO user_role_assignments (id, \"userId\", role, \"grantedAt\") VALUES ('r-more', 'nobody', 'CUSTOMER', {LATER})",
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_EXCUSED)
def test_what_cut_over_does_not_excuse(session, check, name):
    session.execute(LIFE_AFTER)
    session.execute(NOT_EXCUSED[name])
    assert failed(check(cutover_at=CUTOVER))[name].differing == 1


def test_a_row_changed_on_both_sides_is_not_excused(session, check):
    session.execute("UPDATE customers SET \"updatedAt\" = '2031-01-01' WHERE id = 'c-twin-1'")
    session.execute("UPDATE users SET \"updatedAt\" = '2031-01-02' WHERE id = 'c-twin-1'")
    assert set(failed(check(cutover_at=CUTOVER))) == {"users"}


def test_a_cutover_that_is_no_time_is_refused(check):
    with pytest.raises(UnifiedUserError, match=r"Failed to read cutover_at: .* Write it in UTC as in 2026-01-31 04:00:00"):
        check(cutover_at="yesterday evening")


class Spy(Database):
    """A session that tells how often it was asked about the rows, and calls ``before`` when it is about to be."""

    def __init__(self, connection, before=None):
        super().__init__(connection)
        self.before = before

    @property
    def asked(self) -> int:
        return sum("count(" in statement for statement in self.executed_queries)

    def _execute(self, statement, parameters):
        if self.before and "count(" in str(statement):
            before, self.before = self.before, None
            before(self)
        return super()._execute(statement, parameters)


def await_that(happened) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def verify_from_two(cluster, database: str, connect, before=None, **options) -> tuple[Verification, Spy]:
    """Verify with a second session at hand; returns what was found and the first session, closed by now."""
    first = Spy(cluster.connect(database), before)
    found = verify_database(first, connect=connect, **{"policies": POLICIES, **options})
    assert not first.in_transaction and first.value("SHOW enable_nestloop") == "on"
    first.close()
    return found, first


def test_two_sessions_share_the_work_and_one_snapshot(cluster, migrated, session, check):
    second = []

    def connect():
        # The snapshot is there already: neither session may see this.
        assert session.execute("UPDATE users SET name = 'late'; DELETE FROM \"_UserFavorites\"") > 0
        second.append(Spy(cluster.connect(migrated)))
        return second[0]

    expected = check().require()
    found, first = verify_from_two(cluster, migrated, connect, lambda unused: await_that(lambda: second[0].asked > 3))
    assert found.require().as_dict() == expected.as_dict()
    assert second[0].connection.closed and first.asked > second[0].asked > 3
    assert set(second[0].executed_queries) <= set(first.executed_queries)
    assert set(failed(check())) == {"users", "favourites", "total_favourites"}


def test_two_sessions_find_what_one_finds(cluster, migrated, session):
    session.execute("UPDATE users SET name = name || 'x'; UPDATE new_bookings SET \"studioId\" = 'none'")
    # A table that cannot be read fails its own checks from whichever session.
    session.execute("ALTER TABLE sessions ENABLE ROW LEVEL SECURITY; ALTER TABLE sessions FORCE ROW LEVEL SECURITY")
    role = f"second_{os.getpid()}"
    session.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA public, unified_user_journal TO {role}")
    session.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public, unified_user_journal TO {role}")
    try:
        first = Database(cluster.connect(migrated, user=role))
        alone = verify_database(first, policies=POLICIES)
        both = verify_database(first, policies=POLICIES, connect=lambda: Database(cluster.connect(migrated, user=role)))
        first.close()
    finally:
        session.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert both.as_dict() == alone.as_dict()
    assert {entry.name for entry in both.checks if entry.differing is None} >= {"sessions"} and {"users", "orphans"} <= set(failed(both))


@pytest.mark.parametrize("reason", ["no connection", "another database", "no such snapshot"])
def test_where_no_second_session_is_to_be_had_one_verifies(cluster, migrated, reason):
    opened = []

    def connect():
        if reason == "no connection":
            raise UnifiedUserError("connect", "too many connections", "Wait")
        opened.append(Spy(cluster.connect("postgres" if reason == "another database" else migrated)))
        if reason == "no such snapshot":
            # As behind a pooler that leads to another server.
            opened[0].execute("SET default_transaction_isolation = 'serializable'")
            opened[0]._execute = lambda statement, parameters, do=opened[0]._execute: do(
                statement, ("00000000-00000000-1",) if "SNAPSHOT" in str(statement) else parameters
            )
        return opened[0]

    found, first = verify_from_two(cluster, migrated, connect)
    found.require()
    assert first.asked and not any(spy.asked or not spy.connection.closed for spy in opened)


@pytest.mark.parametrize("lost", ["first", "second"])
def test_a_session_that_is_lost_ends_the_verification(cluster, migrated, session, lost):
    def end(spy: Spy) -> None:
        assert session.value("SELECT pg_terminate_backend(%s, 5000)", (spy.connection.get_backend_pid(),))

    first, second = Spy(cluster.connect(migrated)), Spy(cluster.connect(migrated))
    if lost == "first":
        first.before = end
    else:
        second.before = end
        first.before = lambda unused: await_that(lambda: second.connection.closed)
    with pytest.raises(psycopg2.OperationalError):
        verify_database(first, policies=POLICIES, connect=lambda: second)
    assert second.connection.closed and (lost == "first" or not first.in_transaction)
    first.close()
    # A closed session's process outlives it a little.
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    await_that(lambda: session.value(others) == 0)


def test_a_replica_does(cluster, migrated, make_cluster, session):
    standby = make_cluster()
    standby.stop()
    owner = standby.data_directory.stat()
    shutil.rmtree(standby.data_directory)
    subprocess.run(
        [str(cluster.bin("pg_basebackup")), "-h", cluster.host, "-p", str(cluster.port), "-U", cluster.user, "-D", str(standby.data_directory),
         "-R", "-X", "stream", "-c", "fast", "--no-sync"],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    for path in [standby.data_directory, *standby.data_directory.rglob("*")]:
        os.chown(path, owner.st_uid, owner.st_gid)
    standby.start()
    with contextlib.closing(Database(standby.connect(migrated))) as replica:
        assert replica.value("SELECT pg_is_in_recovery()")
        verify_database(replica, policies=POLICIES).require()
        found, first = verify_from_two(standby, migrated, lambda: Spy(standby.connect(migrated)))
        assert found.passed and first.executed_queries.count("COMMIT") == 1 and "SET TRANSACTION SNAPSHOT %s" in first.executed_queries
        session.execute("UPDATE users SET name = 'x' WHERE id = 'c-twin-1'")
        position = session.value("SELECT pg_current_wal_lsn()")
        deadline = time.monotonic() + 30
        while not replica.value("SELECT pg_last_wal_replay_lsn() >= %s", (position,)):
            assert time.monotonic() < deadline, "the replica does not follow"
            time.sleep(0.05)
        assert set(failed(verify_database(replica, policies=POLICIES))) == {"users"}


def options(cluster, database: str, **more) -> dict:
    """The module's options."""
    return {**connection_options(cluster, database), "unresolvable_bookings": "quarantine", "duplicate_identities": "merge", **more}


def test_the_module_returns_what_it_found(cluster, migrated, session):
    passed = run_module("unified_user_verify", options(cluster, migrated, _ansible_check_mode=True))
    assert passed["passed"] and not passed["changed"] and passed["duration_ms"] > 0
    assert passed["totals"]["users"] == 201 and len(passed["checks"]) == CHECKS
    assert passed["checks"][0] == {"name": "run", "passed": True, "expected": "finished", "actual": "finished", "differing": 0, "samples": [], "detail": ""}
    assert any("identity_map" in query for query in passed["executed_queries"])
    session.execute("DELETE FROM unified_user_journal.identity_map WHERE source_table = 'bookings'")
    refused = run_module("unified_user_verify", options(cluster, migrated))
    assert refused["failed"] and not refused["passed"] and refused["duration_ms"] > 0
    assert "identity_map: 1 missing [missing bookings g***@guest.example]" in refused["msg"]
    assert refused["msg"].startswith("Failed to verify the data: ") and "rollback_mode=abort" in refused["msg"]
    told = run_module("unified_user_verify", options(cluster, migrated, fail_on_difference=False, sample_size=0))
    assert not told.get("failed") and not told["passed"] and not told["checks"][2]["samples"]


def test_the_module_names_settings_that_differ(cluster, migrated):
    refused = run_module("unified_user_verify", connection_options(cluster, migrated))
    assert "duplicate_identities is fail here and was merge in the run" in refused["msg"]
    assert "Set these variables as they were in the run" in refused["msg"]


@pytest.fixture
def play(cluster, tmp_path):
    """Runs playbooks/verify.yml on a database; returns its exit status, output and recorded steps."""
    numbers = itertools.count(1)

    def play(database: str, *arguments: str, **variables) -> tuple[int, str, list[dict]]:
        inventory, steps = tmp_path / "hosts.yml", tmp_path / f"steps-{next(numbers)}.json"
        variables = {
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable, "unified_user_login_db": database,
            "unified_user_login_unix_socket": str(cluster.host), "unified_user_login_port": cluster.port, **variables,
        }  # fmt: skip
        inventory.write_text(json.dumps({"database": {"hosts": {"localhost": variables}}}))
        (tmp_path / "record.yml").write_text(json.dumps([
            {"import_playbook": str(ROOT / "playbooks" / "verify.yml")},
            {"hosts": "database", "gather_facts": False, "tasks": [
                {"check_mode": False,
                 "ansible.builtin.copy": {"content": "{{ unified_user_steps | to_json }}", "dest": str(steps), "mode": "0600"}}]},
        ]))  # fmt: skip
        done = subprocess.run(
            [str(Path(sys.executable).with_name("ansible-playbook")), str(tmp_path / "record.yml"), "-i", str(inventory), *arguments],
            cwd=ROOT / "playbooks", capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr, json.loads(steps.read_text()) if steps.exists() else []

    return play


OURS = {"unified_user_unresolvable_bookings": "quarantine", "unified_user_duplicate_identities": "merge"}


@pytest.mark.one_major
def test_the_playbook_shows_the_totals_and_records_the_step(migrated, play):
    status, output, steps = play(migrated, **OURS)
    assert status == 0, output
    assert re.search(r"Users +201  200 people, 4 of them with several rows, from 43 owners and 161 customers; guests: 1\n", output), output
    for line in ("Role assignments +204", "Ownerships +47", "Bookings +314 +1 more in quarantine", "Orphans +0", f"All {CHECKS} checks passed"):
        assert re.search(line, output), output
    assert "changed=1 " in output, "more has changed than the file of this test's own"
    (step,) = steps
    assert (step["step"], step["result"], step["detail"]) == ("verification", "ok", f"{CHECKS} checks passed, 0 orphans")
    assert step["rows"] == 201 + 204 + 47 + 20 + 28 + 314 + 121 and step["duration_ms"] > 0


@pytest.mark.one_major
def test_the_playbook_shows_what_differs_and_stops(migrated, play, session):
    session.execute("UPDATE users SET name = 'x' WHERE id = 'c-twin-1'")
    status, output, unused = play(migrated, **OURS)
    assert status == 2
    assert re.search(r"users +201 +201 +1\n", output) and "1 different (name 1)" in output and "- different c-twin-1 (name)" in output
    assert f"1 of {CHECKS} checks failed." in output
    assert "Failed to verify the data of database" in output and "rollback_mode=abort" in output
    status, output, steps = play(migrated, verification_fail_on_difference=False, **OURS)
    assert status == 0, output
    assert (steps[0]["result"], steps[0]["detail"]) == ("failed", f"1 of {CHECKS} checks failed: users")


@pytest.mark.one_major
def test_the_playbook_has_nothing_to_verify_in_a_plan(reference_database, play):
    status, output, steps = play(reference_database, "--check")
    assert status == 0, output
    assert (steps[0]["result"], steps[0]["detail"]) == ("skipped", "verified once the data has been migrated")
    status, output, unused = play(reference_database)
    assert status == 2 and "this database has not been migrated: the journal has no run" in output
