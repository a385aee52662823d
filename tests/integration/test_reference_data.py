"""The reference data set: the contract's totals, the same bytes every time, and every kind of row that the tests rely on."""

from __future__ import annotations

import contextlib

import bcrypt
import pytest
from psycopg2 import sql

from tests.app import reference_data

KEY = 'lower(btrim(email) COLLATE "C")'
# All rows of all tables at factor 1, in the order of their text. It changes only together with the generator.
CHECKSUM = "eb7110e114e50862259311faad162f94"


def value(connection, statement):
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
        return row[0] if len(row) == 1 else row


def checksum(connection, schema="public"):
    """A digest of every row of the legacy tables."""
    with contextlib.closing(connection.cursor()) as cursor:
        digests = []
        for table in reference_data.TABLES:
            cursor.execute(sql.SQL("SELECT md5(string_agg(t::text, E'\\n' ORDER BY t::text COLLATE \"C\")) FROM {} AS t").format(sql.Identifier(schema, table)))
            digests.append(cursor.fetchone()[0])
        cursor.execute("SELECT md5(%s)", (",".join(digests),))
        return cursor.fetchone()[0]


@pytest.fixture
def connection(cluster, legacy_database):
    with contextlib.closing(cluster.connect(legacy_database)) as connection:
        yield connection


def test_totals_of_the_reference_case(connection):
    counts = reference_data.load(connection)
    assert (counts["studio_owners"], counts["customers"], counts["bookings"]) == (42, 158, 312)
    assert value(connection, 'SELECT count("ownerId") FROM studios') == 47
    for table, rows in counts.items():
        assert value(connection, f'SELECT count(*) FROM "{table}"') == rows > 0
    emails = f"SELECT {KEY} AS key FROM studio_owners UNION ALL SELECT {KEY} FROM customers"
    assert value(connection, f"SELECT count(*), count(DISTINCT key) FROM ({emails}) AS people") == (200, 198)
    unmatched = (
        'SELECT count(*) FROM (SELECT "customerId", lower(btrim("customerEmail") COLLATE "C") AS key FROM bookings) AS b'
        f' WHERE "customerId" IS NULL AND key NOT IN ({emails})'
    )
    assert value(connection, unmatched) == 0, "the reference case has no guests"


def test_blockers_are_absent(connection):
    reference_data.load(connection)
    for table in ("studio_owners", "customers"):
        assert value(connection, f"SELECT count(*) - count(DISTINCT {KEY}) FROM {table}") == 0
        assert value(connection, f"SELECT count(*) FROM {table} WHERE email !~ '^[ -~]*@[ -~]*$'") == 0
    assert value(connection, "SELECT count(*) FROM studio_owners JOIN customers USING (id)") == 0


def test_foreign_keys_hold(connection):
    reference_data.load(connection)
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute("SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'f'")
        constraints = cursor.fetchall()
        assert len(constraints) == 9
        # Loading skips the checks, so they are made here: adding a constraint looks at every row.
        for table, name, definition in constraints:
            cursor.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{name}", ADD CONSTRAINT "{name}" {definition}')


def test_same_bytes_every_time(connection):
    reference_data.load(connection)
    assert checksum(connection) == CHECKSUM


def test_every_kind_of_row_is_there(connection):
    reference_data.load(connection)
    present = {
        "statuses": "SELECT count(DISTINCT status) = 3 FROM bookings",
        "consents": 'SELECT count(DISTINCT "explicitHealthConsent") = 2 AND count("healthConsentWithdrawnAt") > 5'
        ' AND count(*) > count("explicitHealthConsent") FROM bookings',
        "linked by e-mail only": 'SELECT count(*) > 30 FROM bookings WHERE "customerId" IS NULL',
        "an owner who books": 'SELECT count(*) > 0 FROM bookings, studio_owners WHERE "customerId" IS NULL AND lower(btrim("customerEmail")) = lower(email)',
        "other spellings": 'SELECT count(*) FILTER (WHERE "customerEmail" <> btrim("customerEmail")) > 3'
        ' AND count(*) FILTER (WHERE "customerEmail" = upper("customerEmail")) > 3 FROM bookings',
        "an address that is not the customer's": 'SELECT count(*) > 2 FROM bookings AS b JOIN customers AS c ON c.id = "customerId"'
        ' WHERE lower(btrim("customerEmail")) <> lower(btrim(email))',
        "empty and missing phones": "SELECT count(*) FILTER (WHERE phone = '') > 3 AND count(*) FILTER (WHERE phone IS NULL) > 3 FROM customers",
        "hostile messages": "SELECT bool_or(message LIKE '%\"%''%') AND bool_or(message LIKE '%\n%') AND bool_or(strpos(message, '%s') > 0)"
        " AND bool_or(strpos(message, chr(92)) > 0) AND bool_or(message = '') AND bool_or(message IS NULL) FROM bookings",
        "unicode names": "SELECT count(*) FILTER (WHERE octet_length(name) > length(name)) > 50 FROM customers",
        "owners without a name": "SELECT bool_or(name IS NULL) AND bool_or(name = '') FROM studio_owners",
        "no password": "SELECT (SELECT bool_or(password IS NULL) FROM studio_owners) AND (SELECT bool_or(password IS NULL) FROM customers)",
        "unverified": 'SELECT (SELECT bool_or("emailVerified" IS NULL) FROM studio_owners) AND (SELECT bool_or("emailVerified" IS NULL) FROM customers)',
        "studios without an owner": 'SELECT count(*) = 3 FROM studios WHERE "ownerId" IS NULL',
        "owners with none and with two studios": "SELECT bool_or(n = 0) AND bool_or(n = 2) FROM (SELECT count(s.id) AS n FROM studio_owners AS o"
        ' LEFT JOIN studios AS s ON s."ownerId" = o.id GROUP BY o.id) AS counts',
        "two providers": "SELECT count(DISTINCT provider) = 2 FROM accounts",
        "expired sessions": "SELECT bool_or(expires < '2026-01-01') AND bool_or(expires > '2090-01-01') FROM sessions",
        "favourites of one customer at most once": 'SELECT count(*) = count(DISTINCT ("A", "B")) FROM "_CustomerFavorites"',
        "milliseconds": 'SELECT count(*) > 250 FROM bookings WHERE extract(milliseconds FROM "createdAt")::int % 1000 <> 0',
    }
    missing = [name for name, statement in present.items() if value(connection, statement) is not True]
    assert missing == []


def test_joined_identities_and_known_passwords(connection):
    reference_data.load(connection)
    joined = 'SELECT o.email, c.email, o."emailVerified" IS NULL, c."emailVerified" IS NULL, o.password, c.password'
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(joined + " FROM studio_owners AS o JOIN customers AS c ON lower(o.email) = lower(c.email) ORDER BY o.email")
        same, letter_case = cursor.fetchall()
    assert same[:4] == (reference_data.owner_email(1), reference_data.customer_email(connection, 1), False, False)
    assert letter_case[:4] == (reference_data.owner_email(2), reference_data.owner_email(2).upper(), False, True)
    assert bcrypt.checkpw(reference_data.OWNER_PASSWORD.encode(), same[4].encode())
    assert bcrypt.checkpw(reference_data.CUSTOMER_PASSWORD.encode(), same[5].encode())
    assert letter_case[4] is None and bcrypt.checkpw(reference_data.CUSTOMER_PASSWORD.encode(), letter_case[5].encode())
    looks_like_bcrypt = "SELECT bool_and(password ~ '^\\$2b\\$10\\$[./A-Za-z0-9]{53}$') FROM customers WHERE password IS NOT NULL"
    assert value(connection, looks_like_bcrypt)


def test_factor_multiplies_every_number(cluster, legacy_database):
    with contextlib.closing(cluster.connect(legacy_database)) as connection:
        counts = reference_data.load(connection, factor=7)
        assert (counts["studio_owners"], counts["customers"], counts["bookings"]) == (294, 1106, 2184)
        people = f"SELECT {KEY} AS key FROM studio_owners UNION SELECT {KEY} FROM customers"
        assert value(connection, f"SELECT count(*) FROM ({people}) AS people") == 198 * 7


def test_benchmark_shares(connection):
    counts = reference_data.load_benchmark(connection, bookings=9000, guests=0.1, joined=0.05)
    assert (counts["studio_owners"], counts["customers"], counts["bookings"], counts["_CustomerFavorites"]) == (300, 3000, 9000, 3000)
    assert value(connection, "SELECT count(*) FROM studio_owners AS o JOIN customers AS c ON lower(o.email) = lower(btrim(c.email))") == 15
    guests = 'FROM bookings WHERE "customerId" IS NULL AND "customerEmail" ILIKE \'%gast.%\''
    assert 800 < value(connection, "SELECT count(*) " + guests) < 1000
    assert 350 < value(connection, 'SELECT count(DISTINCT lower(btrim("customerEmail"))) ' + guests) < 450


def test_any_schema(cluster, legacy_database):
    with contextlib.closing(cluster.connect(legacy_database)) as connection:
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute('ALTER SCHEMA public RENAME TO "The App"')
        reference_data.load(connection, schema="The App")
        assert checksum(connection, "The App") == CHECKSUM


def test_second_load_is_refused_and_keeps_everything(connection):
    reference_data.load(connection)
    before = checksum(connection)
    with pytest.raises(ValueError, match="already holds rows: load into a fresh database"):
        reference_data.load(connection)
    assert checksum(connection) == before


def test_failed_load_leaves_nothing(connection):
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute("ALTER TABLE bookings ADD CHECK (message IS NULL)")
    with pytest.raises(Exception, match="check constraint"):
        reference_data.load(connection)
    assert value(connection, "SELECT count(*) FROM studio_owners") == 0


@pytest.mark.parametrize(
    "changes",
    [{"owners": 0}, {"joined": 43}, {"bookings": -1}, {"guests": 900}, {"favorites": 158 * 47 + 1}],
    ids=lambda changes: next(iter(changes)),
)
def test_impossible_shapes_are_refused(changes):
    reference = reference_data.reference_shape()
    with pytest.raises(ValueError):
        reference_data.dataclasses.replace(reference, **changes)


def test_command_line(cluster, legacy_database, capsys):
    reference_data.main(["--dsn", cluster.dsn(legacy_database), "--factor", "2"])
    output = capsys.readouterr().out
    assert [line.split() for line in output.splitlines()][:2] == [["studio_owners", "84"], ["customers", "316"]]
