"""The reference data set of the contract (section 3), at any size, made inside the server.

Every value is a function of a row's number, so two loads give the same bytes, and no row travels through the client.
At factor 1: 42 owners, 158 customers of which 2 share an owner's e-mail, 47 owned studios (and 3 without an owner),
312 bookings and no guests, which become 198 users, 200 role assignments, 47 ownerships and 312 bookings.

Known sign-ins: owners 1, 3 and 4 with ``OWNER_PASSWORD`` and customers 1 to 4 with ``CUSTOMER_PASSWORD``, at the
addresses of ``owner_email`` and ``customer_email``; owner 2 has only Google. Owner 1 and customer 1 share an address, both
verified; owner 2 and customer 2 share one up to letter case, and that customer is not verified. All other passwords look
like bcrypt and match nothing.

Columns are filled under their Prisma names: load first, then apply a variant of tests.app.schema_variants.
Run ``python -m tests.app.reference_data --help`` to load from the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import psycopg2
from psycopg2 import sql

OWNER_PASSWORD = "studio-Passwort-1"
CUSTOMER_PASSWORD = "kunden-Passwort-1"

TABLES = (
    "studio_owners",
    "customers",
    "accounts",
    "sessions",
    "studios",
    "services",
    "bookings",
    "_CustomerFavorites",
    "verification_tokens",
    "email_verification_tokens",
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """How many rows of each kind to make.

    Attributes:
        owners: rows of studio_owners.
        customers: rows of customers.
        joined: customers that share an owner's e-mail; at most the smaller of both.
        studios: studios with an owner.
        ownerless: studios without one.
        bookings: rows of bookings.
        favorites: rows of _CustomerFavorites.
        unlinked: bookings per thousand that have only an e-mail, of a customer or an owner.
        guests: bookings per thousand whose e-mail belongs to nobody; about two of them to a guest.
    """

    owners: int
    customers: int
    joined: int
    studios: int
    ownerless: int
    bookings: int
    favorites: int
    unlinked: int = 200
    guests: int = 0

    def __post_init__(self):
        if min(dataclasses.astuple(self)) < 0 or not self.owners or not self.customers or not self.studios:
            raise ValueError("a shape has at least one owner, customer and studio, and no negative number")
        if self.joined > min(self.owners, self.customers):
            raise ValueError("joined must not exceed owners or customers")
        if self.favorites > self.customers * self.studios:
            raise ValueError("favorites must not exceed customers times studios")
        if self.unlinked + self.guests > 1000:
            raise ValueError("unlinked and guests are shares per thousand of the bookings")


def reference_shape(factor=1):
    """Return the contract's reference case, every number multiplied by an integer factor."""
    return Shape(
        owners=42 * factor,
        customers=158 * factor,
        joined=2 * factor,
        studios=47 * factor,
        ownerless=3 * factor,
        bookings=312 * factor,
        favorites=120 * factor,
    )


def benchmark_shape(bookings=300_000, guests=0.05, joined=0.02):
    """Return the proportions that the benchmarks use: a million bookings have 33 k owners, 333 k customers, 333 k favourites.

    Args:
        bookings: number of bookings, at least 30.
        guests: share (0 to 0.8) of the bookings made by people without an account.
        joined: share (0 to 1) of the owners who are customers too.
    """
    owners = bookings // 30
    return Shape(
        owners=owners,
        customers=bookings // 3,
        joined=round(owners * joined),
        studios=owners + owners // 10,
        ownerless=owners // 20,
        bookings=bookings,
        favorites=bookings // 3,
        guests=round(guests * 1000),
    )


# Casts to text are written out: an implicit one is only stable, and keeps the server from inlining the function.
_FUNCTIONS = r"""
-- A number from 0 to n - 1 out of a row's number; the hash is the same in every major version.
CREATE FUNCTION pg_temp.pick(i bigint, salt int, n bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS
$$ SELECT ((hashint8extended(i, salt) & 2147483647) * n) >> 31 $$;

-- Like a real cuid, it grows with time, here with the row's number.
CREATE FUNCTION pg_temp.cuid(kind text, i bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT 'cm' || lpad(to_hex(i), 8, '0') || left(md5(kind || ':' || i::text), 15) $$;

-- To the millisecond, from February 2023 on, within a number of days.
CREATE FUNCTION pg_temp.moment(i bigint, salt int, days int) RETURNS timestamp LANGUAGE sql IMMUTABLE AS
$$ SELECT timestamp '2023-02-01 06:00:00' + pg_temp.pick(i, salt, days * 86400::bigint) * interval '1 second'
        + pg_temp.pick(i, salt + 1, 1000) * interval '1 millisecond' $$;

CREATE FUNCTION pg_temp.bcrypt(kind text, i bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT '$2b$10$' || left(md5(kind || i::text) || md5(i::text || kind), 53) $$;

CREATE FUNCTION pg_temp.person(i bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT (ARRAY['Anna', 'Jörg', 'Zoë', 'Søren', 'Łukasz', 'Mária', 'Ayşe', 'Νίκος', 'Ольга', '李娜', 'محمد', 'Renée', 'Günther', 'Chloé'])
              [1 + pg_temp.pick(i, 1, 14)] || ' ' ||
          (ARRAY['Müller', 'O''Brien', 'Größe-Weiß', 'd''Ångström', 'Nuñez', 'Şahin', 'Παπαδόπουλος', 'Иванова', '王', 'von der Heide', 'Smith'])
              [1 + pg_temp.pick(i, 2, 11)] $$;

CREATE FUNCTION pg_temp.owner_email(i bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN i % 10 = 7 THEN 'Studio' ELSE 'studio' END || i::text || '@massage.example' $$;

-- Joined customers write the owner's address as it is, in capitals, or with spaces around it.
CREATE FUNCTION pg_temp.customer_email(i bigint, joined bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN i > joined THEN
                   CASE WHEN i % 9 = 4 THEN 'Kunde.' ELSE 'kunde.' END || i::text
                   || (ARRAY['@mail.example', '@post.example', '@web.example'])[1 + pg_temp.pick(i, 3, 3)]
               WHEN i % 3 = 1 THEN pg_temp.owner_email(i)
               WHEN i % 3 = 2 THEN upper(pg_temp.owner_email(i))
               ELSE ' ' || pg_temp.owner_email(i) || ' ' END $$;

CREATE FUNCTION pg_temp.customer_phone(i bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN i % 5 = 0 THEN NULL WHEN i % 7 = 0 THEN '' ELSE '+49 151 ' || (10000000 + pg_temp.pick(i, 4, 89999999))::text END $$;

-- People write their address as they please; the identity is the same.
CREATE FUNCTION pg_temp.spelling(email text, style bigint) RETURNS text LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE style WHEN 0 THEN upper(email) WHEN 1 THEN ' ' || email WHEN 2 THEN initcap(email) || '  ' ELSE email END $$;
"""

# In the statements, OFFSET 0 keeps a pick from being computed again wherever it is used.
_OWNERS = r"""
INSERT INTO studio_owners (id, name, email, "emailVerified", password, image, "createdAt", "updatedAt")
SELECT pg_temp.cuid('owner', i),
       CASE WHEN i % 11 = 0 THEN NULL WHEN i % 13 = 0 THEN '' ELSE pg_temp.person(i + 500) END,
       pg_temp.owner_email(i),
       CASE WHEN i % 5 <> 0 THEN created + pg_temp.pick(i, 5, 72) * interval '1 hour' END,
       CASE WHEN i % 3 = 2 THEN NULL
            WHEN i <= 4 THEN '$2b$10$i.sdg98K4n28Pz12rvl1B.Fe6rvgXlcuC8WuaEMdcMWH2I5xZAT7a'
            ELSE pg_temp.bcrypt('owner', i) END,
       CASE WHEN i % 3 = 2 THEN 'https://images.example/' || md5('owner' || i) || '.png' END,
       created, created + pg_temp.pick(i, 6, 400) * interval '1 day'
FROM (SELECT i, pg_temp.moment(i, 10, 600) AS created FROM shape, generate_series(1, owners) AS i OFFSET 0) AS base
"""

_CUSTOMERS = r"""
INSERT INTO customers (id, name, email, "emailVerified", password, phone, image, "createdAt", "updatedAt")
SELECT pg_temp.cuid('customer', i), pg_temp.person(i), pg_temp.customer_email(i, joined),
       CASE WHEN i % 4 <> 2 THEN created + pg_temp.pick(i, 7, 72) * interval '1 hour' END,
       CASE WHEN i <= 4 THEN '$2b$10$/b23.Ee980yjoKyMxCx3D.lC7V89reb4D2qnrNLVp39hIS/cPG5iq'
            WHEN i % 6 <> 5 THEN pg_temp.bcrypt('customer', i) END,
       pg_temp.customer_phone(i),
       CASE WHEN i % 8 = 0 THEN 'https://images.example/' || md5('customer' || i) || '.png' END,
       created, created + pg_temp.pick(i, 8, 300) * interval '1 day'
FROM (SELECT i, joined, pg_temp.moment(i, 12, 900) AS created FROM shape, generate_series(1, customers) AS i OFFSET 0) AS base
"""

# Google for every owner without a password; some have a second provider, or one beside their password.
_ACCOUNTS = r"""
INSERT INTO accounts (id, "userId", type, provider, "providerAccountId", refresh_token, access_token, expires_at, token_type,
                      scope, id_token, session_state)
SELECT pg_temp.cuid(provider, i), pg_temp.cuid('owner', i), 'oauth', provider, (100000000000 + pg_temp.pick(i, 14, 899999999))::text || i,
       CASE WHEN i % 2 = 0 THEN '1//' || md5('refresh' || i) END, 'ya29.' || md5(provider || i),
       1735689600 + pg_temp.pick(i, 15, 30000000)::int, 'Bearer', 'openid email profile',
       CASE WHEN provider = 'google' THEN 'eyJhbGciOiJSUzI1NiJ9.' || md5('id' || i) END,
       CASE WHEN i % 4 = 0 THEN md5('state' || i) END
FROM shape, generate_series(1, owners) AS i, (VALUES ('google', 3, 2), ('facebook', 7, 0)) AS p(provider, modulus, remainder)
WHERE i % modulus = remainder
"""

# Some expired long ago; the others live for years, so that tests can rely on them.
_SESSIONS = r"""
INSERT INTO sessions (id, "sessionToken", "userId", expires)
SELECT pg_temp.cuid('session' || device, i), md5('token' || device || i) || md5(i || 'token'), pg_temp.cuid('owner', i),
       CASE WHEN i % 8 = 3 THEN timestamp '2025-06-01 12:00:00.123'
            ELSE timestamp '2095-01-01' + pg_temp.pick(i, 16, 5000000) * interval '1 second' END
FROM shape, generate_series(1, owners) AS i, generate_series(1, 2) AS device
WHERE i % 2 = 1 AND (device = 1 OR i % 6 = 1)
"""

# About one owner in fourteen has no studio yet; those after a full round have two.
_STUDIOS = r"""
INSERT INTO studios (id, name, description, address, city, "postalCode", phone, email, latitude, longitude, "openingHours", "ownerId",
                     "createdAt", "updatedAt")
SELECT pg_temp.cuid('studio', i),
       (ARRAY['Wohlfühl-Oase', 'Hände & Herz', 'Studio "Lotus"', 'Thaï Zen', 'Körperwerk'])[1 + pg_temp.pick(i, 17, 5)] || ' ' || i,
       CASE WHEN i % 4 <> 0 THEN E'Klassische Massage, Fango\nund Hot Stone – 100 % Entspannung' END,
       'Straße der Ruhe ' || i, (ARRAY['Berlin', 'Köln', 'München', 'Zürich', 'Wien'])[1 + pg_temp.pick(i, 18, 5)],
       CASE WHEN i % 6 <> 0 THEN lpad((10000 + pg_temp.pick(i, 19, 89999))::text, 5, '0') END,
       '+49 30 ' || (100000 + i), 'kontakt' || i || '@studio.example',
       CASE WHEN i % 3 <> 0 THEN 47 + pg_temp.pick(i, 20, 80000) / 10000.0 END,
       CASE WHEN i % 3 <> 0 THEN 7 + pg_temp.pick(i, 21, 90000) / 10000.0 END,
       CASE WHEN i % 5 <> 0 THEN jsonb_build_object('mo', jsonb_build_array('09:00', '18:00'), 'note', 'Größe "L" & mehr') END,
       CASE WHEN i <= studios THEN pg_temp.cuid('owner', 1 + (i - 1) % (owners - owners / 14)) END,
       created, created + pg_temp.pick(i, 22, 300) * interval '1 day'
FROM (SELECT i, owners, studios, pg_temp.moment(i, 23, 700) AS created FROM shape, generate_series(1, studios + ownerless) AS i OFFSET 0) AS base
"""

_SERVICES = r"""
INSERT INTO services (id, "studioId", name, description, price, duration, "createdAt", "updatedAt")
SELECT pg_temp.cuid('service' || n, i), pg_temp.cuid('studio', i), (ARRAY['Rückenmassage', 'Ganzkörper', 'Hot Stone'])[n],
       CASE WHEN n = 2 THEN 'Dauer und Preis nach Absprache (± 10 %)' END,
       (ARRAY[39.9, 74.5, 89])[n] + pg_temp.pick(i, 24, 20), (ARRAY[30, 60, 90])[n], created, created + interval '3 days'
FROM (SELECT i, pg_temp.moment(i, 25, 700) AS created FROM shape, generate_series(1, studios + ownerless) AS i OFFSET 0) AS base,
     generate_series(1, 3) AS n
"""

# who: 0 a linked customer, 1 only an e-mail that a customer or an owner has, 2 a guest. Guests are half as many as their bookings.
_BOOKINGS = r"""
INSERT INTO bookings (id, "studioId", "serviceId", "customerId", "customerName", "customerEmail", "customerPhone", "preferredDate",
                      "preferredTime", message, status, "explicitHealthConsent", "healthConsentGivenAt", "healthConsentText",
                      "healthConsentWithdrawnAt", "createdAt", "updatedAt")
SELECT pg_temp.cuid('booking', i), pg_temp.cuid('studio', studio),
       CASE WHEN i % 8 <> 0 THEN pg_temp.cuid('service' || 1 + pg_temp.pick(i, 26, 3), studio) END,
       CASE WHEN who = 0 THEN pg_temp.cuid('customer', customer) END,
       CASE who WHEN 2 THEN pg_temp.person(guest + 77) ELSE pg_temp.person(customer) END,
       CASE WHEN who = 2 THEN pg_temp.spelling('gast.' || guest || '@mail.example', pg_temp.pick(i, 27, 8))
            WHEN who = 0 AND i % 40 = 0 THEN 'andere.' || i || '@mail.example'
            WHEN who = 0 THEN pg_temp.customer_email(customer, joined)
            WHEN i % 10 = 9 THEN pg_temp.spelling(pg_temp.owner_email(1 + pg_temp.pick(i, 28, owners)), pg_temp.pick(i, 27, 8))
            ELSE pg_temp.spelling(pg_temp.customer_email(customer, joined), pg_temp.pick(i, 27, 8)) END,
       CASE WHEN who = 2 THEN CASE WHEN i % 3 = 0 THEN '' ELSE '0171 ' || (1000000 + guest) END
            ELSE coalesce(pg_temp.customer_phone(customer), '') END,
       to_char(created + (1 + pg_temp.pick(i, 29, 30)) * interval '1 day', 'YYYY-MM-DD'),
       (ARRAY['09:00', '10:30', '14:00', '17:15', 'abends'])[1 + pg_temp.pick(i, 30, 5)],
       (ARRAY[NULL, NULL, NULL, '', 'Ich komme 5 min später', 'Bitte "Fango", it''s for my back', E'erste Zeile\nzweite Zeile\tTab',
              '100 % sicher? %s %(name)s {{ x }}', E'C:\\temp\\neu', 'Rücken 💆 – ça va?'])[1 + pg_temp.pick(i, 31, 10)],
       (ARRAY['PENDING', 'CONFIRMED', 'CANCELLED'])[1 + pg_temp.pick(i, 32, 3)]::"BookingStatus",
       CASE WHEN consent < 6 THEN true WHEN consent < 9 THEN false END,
       CASE WHEN consent < 6 THEN created END,
       CASE WHEN consent < 6 THEN 'Ich willige in die Verarbeitung meiner Gesundheitsdaten ein (Art. 9 Abs. 2 lit. a DSGVO).' END,
       CASE WHEN consent = 0 THEN created + interval '40 days' END,
       created, created + pg_temp.pick(i, 33, 200) * interval '1 hour'
FROM (
    SELECT i, owners, joined, pg_temp.pick(i, 34, 10) AS consent, pg_temp.moment(i, 35, 1000) AS created,
           -- The lesser of two picks: some studios and customers are far busier than others.
           1 + least(pg_temp.pick(i, 37, studios + ownerless), pg_temp.pick(i, 38, studios + ownerless)) AS studio,
           1 + least(pg_temp.pick(i, 39, customers), pg_temp.pick(i, 40, customers)) AS customer,
           1 + pg_temp.pick(i, 41, greatest(bookings * guests / 2000, 1)) AS guest,
           CASE WHEN pg_temp.pick(i, 42, 1000) < guests THEN 2 WHEN pg_temp.pick(i, 42, 1000) < guests + unlinked THEN 1 ELSE 0 END AS who
    FROM shape, generate_series(1, bookings) AS i OFFSET 0
) AS base
"""

# A customer's further favourites follow the first one, so no pair appears twice.
_FAVORITES = r"""
INSERT INTO "_CustomerFavorites" ("A", "B")
SELECT pg_temp.cuid('customer', 1 + n % customers),
       pg_temp.cuid('studio', 1 + (pg_temp.pick(1 + n % customers, 43, studios) + n / customers) % studios)
FROM shape, generate_series(0, favorites - 1) AS n
"""

_VERIFICATION_TOKENS = r"""
INSERT INTO verification_tokens (identifier, token, expires)
SELECT pg_temp.owner_email(i), md5('verification' || i), pg_temp.moment(i, 45, 1000) FROM shape, generate_series(1, owners, 10) AS i
"""

_EMAIL_VERIFICATION_TOKENS = r"""
INSERT INTO email_verification_tokens (id, email, token, expires, "createdAt")
SELECT pg_temp.cuid('verification', i), pg_temp.customer_email(i, joined), md5('email' || i), created + interval '1 day', created
FROM (SELECT i, joined, pg_temp.moment(i, 47, 1000) AS created FROM shape, generate_series(2, customers, 12) AS i OFFSET 0) AS base
"""

_STATEMENTS = (
    _OWNERS,
    _CUSTOMERS,
    _ACCOUNTS,
    _SESSIONS,
    _STUDIOS,
    _SERVICES,
    _BOOKINGS,
    _FAVORITES,
    _VERIFICATION_TOKENS,
    _EMAIL_VERIFICATION_TOKENS,
)


def owner_email(number):
    """Return the address of an owner by number, from 1 on."""
    return f"{'Studio' if number % 10 == 7 else 'studio'}{number}@massage.example"


def customer_email(connection, number, shape=None):
    """Return the address of a customer by number, from 1 on, as a load of that shape stores it (default: the reference case)."""
    with connection.cursor() as cursor:
        cursor.execute(_FUNCTIONS.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
        cursor.execute("SELECT pg_temp.customer_email(%s, %s)", (number, (shape or reference_shape()).joined))
        return cursor.fetchone()[0]


def load_shape(connection, shape, schema="public"):
    """Fill the empty legacy tables with rows of a shape, in one transaction, and ANALYZE them.

    Args:
        connection: an open psycopg2 connection of a superuser, in autocommit mode.
        shape: how many rows of each kind.
        schema: the schema of the tables.

    Returns:
        The number of rows of each table, by name.

    Raises:
        ValueError: a table already holds rows.
        psycopg2.Error: as the server reports it; nothing was kept.
    """
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        try:
            counts = _fill(cursor, shape, schema)
        except BaseException:
            cursor.execute("ROLLBACK")
            raise
        cursor.execute("COMMIT")
        for table in TABLES:
            cursor.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(schema, table)))
    return counts


def _fill(cursor, shape, schema):
    cursor.execute(sql.SQL("SET LOCAL search_path = {}, pg_temp").format(sql.Identifier(schema)))
    for table in TABLES:
        cursor.execute(sql.SQL("SELECT EXISTS (SELECT FROM {})").format(sql.Identifier(schema, table)))
        if cursor.fetchone()[0]:
            raise ValueError(f"table {schema}.{table} already holds rows: load into a fresh database")
    # The rows refer to each other by construction; checking a million foreign keys one by one is most of the time.
    cursor.execute("SET LOCAL session_replication_role = replica")
    cursor.execute("SET LOCAL jit = off")
    fields = dataclasses.asdict(shape)
    columns = sql.SQL(", ").join(sql.SQL("{} bigint").format(sql.Identifier(name)) for name in fields)
    cursor.execute(sql.SQL("CREATE TEMP TABLE shape ({}) ON COMMIT DROP").format(columns))
    cursor.execute("INSERT INTO shape VALUES %s", (tuple(fields.values()),))
    cursor.execute(_FUNCTIONS.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))
    counts = {}
    for table, statement in zip(TABLES, _STATEMENTS, strict=True):
        cursor.execute(statement)
        counts[table] = cursor.rowcount
    return counts


def load(connection, factor=1, schema="public"):
    """Load the reference case, every number multiplied by an integer factor. See load_shape for the rest."""
    return load_shape(connection, reference_shape(factor), schema)


def load_benchmark(connection, bookings=300_000, guests=0.05, joined=0.02, schema="public"):
    """Load the benchmarks' proportions. See benchmark_shape for the arguments and load_shape for the rest."""
    return load_shape(connection, benchmark_shape(bookings, guests, joined), schema)


def main(arguments=None):
    """Load from the command line and print the number of rows of each table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.app.reference_data", description="Fill the empty legacy tables of the reference application."
    )
    parser.add_argument("--dsn", required=True, help="libpq connection string of a superuser; a password belongs into PGPASSWORD")
    parser.add_argument("--schema", default="public")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--factor", type=int, default=1, help="multiply the reference case (default 1)")
    size.add_argument("--bookings", type=int, help="load the benchmarks' proportions with this many bookings instead")
    parser.add_argument("--guests", type=float, default=0.05, help="with --bookings: share of bookings by guests")
    parser.add_argument("--joined", type=float, default=0.02, help="with --bookings: share of owners who are customers too")
    options = parser.parse_args(arguments)
    shape = benchmark_shape(options.bookings, options.guests, options.joined) if options.bookings else reference_shape(options.factor)
    connection = psycopg2.connect(options.dsn)
    connection.autocommit = True
    started = time.monotonic()
    try:
        counts = load_shape(connection, shape, options.schema)
    finally:
        connection.close()
    for table, rows in counts.items():
        print(f"{table:28} {rows:10}")
    print(f"{'total':28} {sum(counts.values()):10} in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
