# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The sync on a real server: what each write on one side does on the other, and what its triggers must withstand."""

from __future__ import annotations

import contextlib
import itertools

import psycopg2
import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import Sync, SyncOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import direction as sync_direction
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import verify_database

from tests.module_process import connection_options, run_module
from tests.playbook_process import ROOT, inventory, run_playbook


@pytest.fixture
def session(cluster, reference_database):
    """A session on the reference database."""
    with contextlib.closing(Database(cluster.connect(reference_database))) as database:
        yield database


def forward(session: Database, **policies) -> Sync:
    """Copy, and keep in step from then on."""
    decided = Policies(**policies)
    AtomicCopy(session, Options(policies=decided)).run()
    sync = Sync(session, SyncOptions(policies=decided))
    assert sync.install("forward")
    session.execute("RESET search_path")
    return sync


#: Some bookings become those of a few guests.
GUESTS = (
    "UPDATE public.bookings SET \"customerId\" = NULL, \"customerEmail\" = 'Guest' || ascii(reverse(id)) % 7 || '@example.org'"
    " WHERE ascii(reverse(id)) % 3 = 0"
)


def in_step(session: Database, **policies) -> None:
    """Insist that the unified side is what the legacy side calls for, by the verification's own SQL."""
    verify_database(session, policies=Policies(**policies)).require()


#: What an application does on the legacy side, by name.
WRITES = {
    "sign-up of a customer": "INSERT INTO customers (id, name, email, \"updatedAt\") VALUES ('c-new', 'New', 'new@example.org', now())",
    "sign-up of an owner": "INSERT INTO studio_owners (id, name, email, \"updatedAt\") VALUES ('o-new', 'New', 'new@example.org', now())",
    "a customer registers with an owner's address": (
        "INSERT INTO customers (id, name, email, \"updatedAt\") SELECT 'c-new', 'New', upper(email), now() FROM studio_owners"
        " WHERE lower(email) NOT IN (SELECT lower(email) FROM customers) ORDER BY id LIMIT 1"
    ),
    "an owner registers with a customer's address": (
        "INSERT INTO studio_owners (id, name, email, \"updatedAt\") SELECT 'o-new', 'New', email, now() FROM customers"
        " WHERE lower(email) NOT IN (SELECT lower(email) FROM studio_owners) ORDER BY id LIMIT 1"
    ),
    "a name": "UPDATE customers SET name = 'Other', \"updatedAt\" = now() WHERE id = (SELECT min(id) FROM customers)",
    "every name": "UPDATE customers SET name = name || ' x', phone = NULL",
    "every owner": "UPDATE studio_owners SET name = NULL, password = 'p', \"emailVerified\" = NULL",
    "an e-mail": "UPDATE customers SET email = 'moved@example.org' WHERE id = (SELECT min(id) FROM customers)",
    "an e-mail's case": "UPDATE customers SET email = upper(email)",
    "a joined customer parts": "UPDATE customers SET email = 'parted' || id || '@example.org' WHERE lower(email) IN (SELECT lower(email) FROM studio_owners)",
    "a customer joins": (
        "UPDATE customers SET email = (SELECT max(email) FROM studio_owners WHERE lower(email) NOT IN (SELECT lower(email) FROM customers))"
        " WHERE id = (SELECT max(id) FROM customers)"
    ),
    "a booking": (
        "INSERT INTO bookings SELECT (jsonb_populate_record(b, '{\"id\": \"b-new\"}')).* FROM bookings AS b WHERE \"customerId\" IS NOT NULL LIMIT 1"
    ),
    "a guest's booking": (
        "INSERT INTO bookings SELECT (jsonb_populate_record(b, '{\"id\": \"b-new\", \"customerId\": null, \"customerEmail\": \"Guest@Example.org \"}')).*"
        " FROM bookings AS b LIMIT 1"
    ),
    "every booking a guest's": "UPDATE bookings SET \"customerId\" = NULL, \"customerEmail\" = 'g' || length(id) || '@example.org'",
    "every status": "UPDATE bookings SET status = 'CANCELLED', \"updatedAt\" = now()",
    "every booking's time goes back": "UPDATE bookings SET \"updatedAt\" = \"updatedAt\" - length(id) * interval '1 day'",
    "guests' bookings at other times": (
        "UPDATE bookings SET status = 'CONFIRMED', \"updatedAt\" = \"updatedAt\" + ascii(reverse(id)) * interval '1 hour' WHERE \"customerId\" IS NULL"
    ),
    "guests' names": "UPDATE bookings SET \"customerName\" = 'N' || id, \"updatedAt\" = now() WHERE \"customerId\" IS NULL",
    "some bookings go": "DELETE FROM bookings WHERE id < (SELECT avg(length(id))::text || max(id) FROM bookings)",
    "every customer goes": "DELETE FROM customers",
    "every favourite goes": 'DELETE FROM "_CustomerFavorites"',
    "a favourite": 'INSERT INTO "_CustomerFavorites" SELECT c.id, s.id FROM customers AS c, studios AS s ON CONFLICT DO NOTHING',
    "sessions": "INSERT INTO sessions SELECT 's-' || id, 't-' || id, id, now() FROM studio_owners",
    "sessions go": "DELETE FROM sessions",
    "accounts": "UPDATE accounts SET access_token = 'x'",
    "accounts go": "DELETE FROM accounts",
    "studios change hands": "UPDATE studios SET \"ownerId\" = (SELECT min(id) FROM studio_owners)",
    "studios without owner": "UPDATE studios SET \"ownerId\" = NULL",
    "a studio goes": "DELETE FROM studios WHERE id = (SELECT min(id) FROM studios)",
    "every studio goes": "DELETE FROM studios",
    "every owner goes": "DELETE FROM studio_owners",
}  # fmt: skip


@pytest.mark.one_major
@pytest.mark.parametrize("write", WRITES)
def test_forward_carries(session, write):
    session.execute(GUESTS)
    forward(session)
    session.execute(WRITES[write])
    in_step(session)
    assert session.value("SELECT count(*) FROM studios") > 0 or write == "every studio goes"


def test_both_directions(session):
    sync = forward(session)
    assert sync.install("both") and not sync.install("both")
    in_step(session)
    owners = session.rows("SELECT id, \"ownerId\" FROM studios ORDER BY id")
    assert sync.status()["direction"] == "both" and not sync.status()["missing"]
    run = session.execute
    run("INSERT INTO users (id, email, name, phone, \"updatedAt\") VALUES ('u-1', 'born@example.org', 'Born', '1', now())")
    assert not session.value("SELECT count(*) FROM customers WHERE id = 'u-1'")
    run("INSERT INTO user_role_assignments (id, \"userId\", role) VALUES ('r-1', 'u-1', 'CUSTOMER')")
    assert session.row("SELECT name, phone, email FROM customers WHERE id = 'u-1'") == {"name": "Born", "phone": "1", "email": "born@example.org"}
    run("UPDATE users SET name = NULL, email = 'moved@example.org', password = 'x' WHERE id = 'u-1'")
    assert session.row("SELECT name, email, password FROM customers WHERE id = 'u-1'") == {"name": "", "email": "moved@example.org", "password": "x"}
    assert session.value("SELECT name IS NULL FROM users WHERE id = 'u-1'")
    run("UPDATE customers SET phone = '2' WHERE id = 'u-1'")
    assert session.row("SELECT name, phone, email FROM users WHERE id = 'u-1'") == {"name": None, "phone": "2", "email": "moved@example.org"}
    run("INSERT INTO user_role_assignments (id, \"userId\", role) VALUES ('r-2', 'u-1', 'STUDIO_OWNER')")
    assert session.value("SELECT count(*) FROM studio_owners WHERE id = 'u-1'") == 1
    run("INSERT INTO studio_ownership (id, \"userId\", \"studioId\", \"isPrimary\", \"acceptedAt\") SELECT 'w-1', 'u-1', min(id), true, now() FROM studios"
        " WHERE \"ownerId\" IS NOT NULL")
    studio = session.value("SELECT \"studioId\" FROM studio_ownership WHERE id = 'w-1'")
    run(f"UPDATE studio_ownership SET \"isPrimary\" = false WHERE id <> 'w-1' AND \"studioId\" = '{studio}'")
    assert session.value(f"SELECT \"ownerId\" FROM studios WHERE id = '{studio}'") == "u-1"
    run("INSERT INTO new_sessions (id, \"sessionToken\", \"userId\", expires) VALUES ('s-1', 't-1', 'u-1', now())")
    assert session.value("SELECT \"userId\" FROM sessions WHERE id = 's-1'") == "u-1"
    run(
        "INSERT INTO new_bookings SELECT (jsonb_populate_record(b, '{\"id\": \"b-1\", \"customerId\": \"u-1\", \"customerPhone\": null}')).*"
        " FROM new_bookings AS b LIMIT 1"
    )
    assert session.row("SELECT \"customerId\", \"customerPhone\" FROM bookings WHERE id = 'b-1'") == {"customerId": "u-1", "customerPhone": ""}
    run("UPDATE new_bookings SET status = 'CONFIRMED', \"confirmedBy\" = 'u-1' WHERE id = 'b-1'")
    assert session.value("SELECT status::text FROM bookings WHERE id = 'b-1'") == "CONFIRMED"
    run("UPDATE bookings SET status = 'CANCELLED' WHERE id = 'b-1'")
    assert session.row("SELECT status::text, \"customerPhone\", \"confirmedBy\" FROM new_bookings WHERE id = 'b-1'") == {
        "status": "CANCELLED", "customerPhone": None, "confirmedBy": "u-1"}  # fmt: skip
    run("DELETE FROM new_bookings WHERE id = 'b-1'")
    assert not session.value("SELECT count(*) FROM bookings WHERE id = 'b-1'")
    run("DELETE FROM users WHERE id = 'u-1'")
    assert not session.value("SELECT count(*) FROM customers WHERE id = 'u-1'")
    assert not session.value("SELECT count(*) FROM studio_owners WHERE id = 'u-1'")
    assert owners == session.rows("SELECT id, \"ownerId\" FROM studios ORDER BY id")


#: What an application does on either side that touches no identity, by name.
PLAIN_WRITES = {
    "a status": "UPDATE bookings SET status = 'CONFIRMED', \"updatedAt\" = now()",
    "an earlier time": "UPDATE bookings SET \"updatedAt\" = \"updatedAt\" - length(id) * interval '1 day'",
    "a status there": "UPDATE new_bookings SET status = 'CONFIRMED', \"updatedAt\" = now()",
    "an earlier time there": "UPDATE new_bookings SET \"updatedAt\" = \"updatedAt\" - length(id) * interval '1 day'",
    "a guest's name there": "UPDATE new_bookings SET \"customerName\" = 'N' || id, \"updatedAt\" = now()",
    "a profile": "UPDATE customers SET name = 'N' || id, phone = NULL, \"updatedAt\" = now()",
    "a profile there": "UPDATE users SET name = 'N' || id, \"updatedAt\" = now()",
    "an empty profile there": "UPDATE users SET name = NULL, password = NULL, \"emailVerified\" = now()",
    "a phone that owners have no place for": "UPDATE users SET phone = '1'",
    "a suspension": "UPDATE users SET \"isSuspended\" = true, \"isActive\" = false",
    "a letter case": "UPDATE users SET email = upper(email)",
}  # fmt: skip

_CONTENTS = " UNION ALL ".join(
    f"SELECT '{table}' AS name, md5(string_agg(t::text, ';' ORDER BY t::text COLLATE \"C\")) AS sum FROM {table} AS t" for table in (
        "customers", "studio_owners", "bookings", "users", "new_bookings", "user_role_assignments", "unified_user_journal.identity_map",
        "unified_user_journal.divergence", "unified_user_journal.pinned_booking", "unified_user_journal.quarantine",
    )
)  # fmt: skip


@pytest.mark.one_major
@pytest.mark.parametrize(("write", "after"), list(itertools.pairwise([*PLAIN_WRITES, *list(PLAIN_WRITES)[:1]])))
def test_nothing_is_left_for_a_look_at_every_identity(session, write, after):
    """What a plain write is spared must not have been needed, whatever was written before it."""
    session.execute(GUESTS)
    sync = forward(session)
    sync.install("both")
    session.execute("RESET search_path")
    session.execute(f"{PLAIN_WRITES[write]}; {PLAIN_WRITES[after]}")
    left = session.rows(_CONTENTS)
    sync.repair()
    session.execute("RESET search_path")
    assert session.rows(_CONTENTS) == left


@pytest.mark.one_major
def test_module(cluster, reference_database, session):
    options = connection_options(cluster, reference_database)
    refused = run_module("unified_user_sync", options)
    assert refused["failed"] and "has not been migrated. Run playbooks/migrate.yml first" in refused["msg"]
    AtomicCopy(session, Options()).run()
    other = run_module("unified_user_sync", {**options, "email_match": "exact"})
    assert other["failed"] and "with other settings of email_match" in other["msg"]
    planned = run_module("unified_user_sync", {**options, "_ansible_check_mode": True})
    assert planned["changed"] and planned["direction"] is None and not session.value("SELECT count(*) FROM unified_user_journal.sync")
    made = run_module("unified_user_sync", options)
    assert made["changed"] and made["direction"] == "forward" and not made["missing"] and not made["not_representable"]
    assert not run_module("unified_user_sync", options)["changed"]
    session.execute("UPDATE public.users SET phone = '1' WHERE id IN (SELECT id FROM public.studio_owners ORDER BY id LIMIT 3)")
    session.execute("ALTER TABLE public.bookings DISABLE TRIGGER unified_user_forward_insert")
    broken = run_module("unified_user_sync", {**options, "_ansible_check_mode": True})
    assert broken["changed"] and broken["missing"] == ["bookings.unified_user_forward_insert"]
    both = run_module("unified_user_sync", {**options, "direction": "both"})
    assert both["changed"] and both["diff"] == {"before": {"direction": "forward"}, "after": {"direction": "both"}} and not both["missing"]
    removed = run_module("unified_user_sync", {**options, "state": "absent"})
    assert removed["changed"] and removed["direction"] is None
    assert not session.rows("SELECT tgname FROM pg_trigger WHERE tgname LIKE 'unified_user%'")
    assert not session.rows("SELECT relname FROM pg_class WHERE relname LIKE 'unified_user_sync%'")
    assert not run_module("unified_user_sync", {**options, "state": "absent"})["changed"]


def test_an_owner_without_superuser_rights_keeps_both_sides_in_step(cluster, reference_database, session):
    session.execute("DO $$ BEGIN CREATE ROLE plain_owner LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$")
    session.execute(f'ALTER DATABASE "{reference_database}" OWNER TO plain_owner; ALTER SCHEMA public OWNER TO plain_owner')
    session.execute(
        "DO $$ DECLARE t text; BEGIN FOR t IN SELECT c.oid::regclass FROM pg_class AS c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'"
        " LOOP EXECUTE 'ALTER TABLE ' || t || ' OWNER TO plain_owner'; END LOOP;"
        " FOR t IN SELECT y.oid::regtype FROM pg_type AS y WHERE y.typnamespace = 'public'::regnamespace AND y.typtype = 'e'"
        " LOOP EXECUTE 'ALTER TYPE ' || t || ' OWNER TO plain_owner'; END LOOP; END $$"
    )
    with contextlib.closing(Database(cluster.connect(reference_database, user="plain_owner"))) as plain:
        assert AtomicCopy(plain, Options(sync=True)).run()["finished"] and sync_direction(plain) == "forward"
        assert Sync(plain, SyncOptions()).install("both")
        plain.execute("RESET search_path")
        plain.execute(WRITES["sign-up of a customer"])
        plain.execute("UPDATE users SET name = 'Carried' WHERE id = 'c-new'")
        assert plain.value("SELECT name FROM customers WHERE id = 'c-new'") == "Carried"
        in_step(plain)


@pytest.mark.parametrize("deed", ["DISABLE TRIGGER unified_user_forward_update", "ENABLE TRIGGER unified_user_forward_update"])
def test_verification_notices_a_trigger_that_does_not_always_fire(session, deed):
    forward(session)
    session.execute(f"ALTER TABLE customers {deed}")
    failed = [check for check in verify_database(session).checks if not check.passed]
    assert [(check.name, check.samples) for check in failed] == [("sync", ["customers.unified_user_forward_update"])]


def test_undoing_ends_forward_and_refuses_both(session):
    sync = forward(session)
    sync.install("both")
    with pytest.raises(UnifiedUserError, match=r"they are in use.*sync_direction=none"):
        AtomicCopy(session, Options()).undo()
    sync.install("forward")
    session.execute("INSERT INTO public.customers (id, name, email, \"updatedAt\") VALUES ('c-new', 'New', 'new@example.org', now())")
    assert AtomicCopy(session, Options()).undo()["counts"]["users"] == 199
    assert sync.status()["direction"] is None
    session.execute("DELETE FROM public.customers WHERE id = 'c-new'")
    assert AtomicCopy(session, Options()).run()["counts"]["users"] == 198


def test_every_lookup_has_an_index(session):
    sync = forward(session)
    sync.install("both")
    session.execute("SET enable_seqscan = off")
    key = "lower(btrim(email::text) COLLATE \"C\") = ANY (ARRAY['x'])"
    for table in ("customers", "studio_owners", "users"):
        assert "unified_user_sync" in plan(session, f"SELECT FROM {table} WHERE {key}")
    booking = key.replace("email", '"customerEmail"')
    assert "unified_user_sync" in plan(session, f'SELECT FROM bookings WHERE "customerId" IS NULL AND {booking}')
    for table, column in (("bookings", "customerId"), ("studios", "ownerId"), ("new_sessions", "userId"), ("audit_logs", "userId")):
        assert "unified_user_sync" in plan(session, f"SELECT FROM {table} WHERE \"{column}\" = ANY (ARRAY['x'])")
    # One of the application's own serves as well.
    assert "new_bookings_customerId_idx" in plan(session, "SELECT FROM new_bookings WHERE \"customerId\" = 'x'")
    assert not session.value("SELECT to_regclass('unified_user_sync_new_bookings_customerId') IS NOT NULL")
    session.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'unified_user_sync_customers_key'::regclass")
    assert sync.changes("both") and sync.install("both") and not sync.changes("both")


#: What is written most, on either side, for one person.
FREQUENT_WRITES = {
    "a booking": (
        "INSERT INTO bookings SELECT (jsonb_populate_record(b, jsonb_build_object('id', clock_timestamp()))).* FROM bookings AS b"
        " WHERE b.id = (SELECT max(id) FROM bookings WHERE \"customerId\" IS NOT NULL)"
    ),
    "a status": "UPDATE bookings SET status = 'CANCELLED', \"updatedAt\" = now() WHERE id = (SELECT max(id) FROM bookings)",
    "a profile": "UPDATE customers SET name = name || 'x' WHERE id = (SELECT max(id) FROM customers)",
    "a sign-up": (
        "INSERT INTO customers (id, name, email, \"updatedAt\") SELECT m.id, m.id, m.id || '@example.org', now()"
        " FROM (SELECT md5(clock_timestamp()::text) AS id) AS m"
    ),
    "an e-mail": "UPDATE customers SET email = 'x' || email WHERE id = (SELECT min(id) FROM customers)",
    "a guest's booking": (
        "INSERT INTO bookings SELECT (jsonb_populate_record(b, jsonb_build_object('id', clock_timestamp(), 'customerId', NULL,"
        " 'customerEmail', 'guest@example.org'))).* FROM bookings AS b WHERE b.id = (SELECT min(id) FROM bookings)"
    ),
    "a booking there": (
        "INSERT INTO new_bookings SELECT (jsonb_populate_record(b, jsonb_build_object('id', clock_timestamp()))).* FROM new_bookings AS b"
        " WHERE b.id = (SELECT max(b.id) FROM new_bookings AS b JOIN customers AS c ON c.id = b.\"customerId\")"
    ),
    "a status there": "UPDATE new_bookings SET status = 'CONFIRMED', \"updatedAt\" = now() WHERE id = (SELECT max(id) FROM new_bookings)",
    "a profile there": "UPDATE users SET name = name || 'x' WHERE id = (SELECT max(id) FROM customers)",
}

_OTHERS = """
INSERT INTO unified_user_journal.identity_lock SELECT 'other' || n, 1 FROM generate_series(1, 3000) AS n;
INSERT INTO unified_user_journal.identity_map SELECT 'customers', 'other' || n, 'other' || n, 'other' || n FROM generate_series(1, 3000) AS n;
INSERT INTO unified_user_journal.quarantine SELECT 'customers', 'other' || n, 'unusable_email', '{}', 'other' || n FROM generate_series(1, 3000) AS n;
INSERT INTO unified_user_journal.divergence SELECT 'other' || n, '{}' FROM generate_series(1, 3000) AS n;
INSERT INTO unified_user_journal.pinned_booking SELECT 'other' || n, 'other' || n FROM generate_series(1, 3000) AS n;
"""

_LOOKED_THROUGH = """
SELECT sum(seq_tup_read + idx_tup_fetch)::bigint FROM pg_stat_xact_all_tables WHERE schemaname = 'unified_user_journal'
"""


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_what_was_planned_while_few_rows_were_there_does_not_look_through_many(session, direction):
    """A session keeps its plans; the journal's tables begin empty, and grow."""
    forward(session).install(direction)
    session.execute("SET search_path = public")
    session.execute("VACUUM (ANALYZE)")
    writes = {name: write for name, write in FREQUENT_WRITES.items() if direction == "both" or not name.endswith("there")}

    def read() -> dict[str, int]:
        """How many rows of the journal each write reads."""
        found = {}
        for name, write in writes.items():
            with session.transaction():
                before = session.value(_LOOKED_THROUGH)
                assert session.execute(write) == 1
                found[name] = session.value(_LOOKED_THROUGH) - before
        return found

    # The first time they are planned, too.
    few = [read(), read()][1]
    session.execute(_OTHERS)
    many = read()
    assert few["a booking"] and {name: rows for name, rows in many.items() if rows > few[name] + 20} == {}


def plan(session: Database, statement: str) -> str:
    """The plan of a statement, as text."""
    return "\n".join(row["QUERY PLAN"] for row in session.rows(f"EXPLAIN {statement}"))


@pytest.mark.one_major
def test_playbook(cluster, reference_database, session, tmp_path):
    forward(session)
    variables = {"unified_user_login_db": reference_database, "unified_user_login_unix_socket": str(cluster.host), "unified_user_login_port": cluster.port}
    hosts = inventory(tmp_path, variables)
    done = run_playbook(ROOT / "playbooks" / "sync.yml", hosts, "-e", "sync_direction=both")
    assert done.returncode == 0 and "changed=1 " in done.stdout and "direction: both" in done.stdout.replace('"', "").replace(",", "")
    assert sync_direction(session) == "both"
    again = run_playbook(ROOT / "playbooks" / "sync.yml", hosts, "-e", "sync_direction=both")
    assert again.returncode == 0 and "changed=0 " in again.stdout
    ended = run_playbook(ROOT / "playbooks" / "sync.yml", hosts, "-e", "sync_direction=none")
    assert ended.returncode == 0 and "changed=1 " in ended.stdout and sync_direction(session) is None


@pytest.mark.one_major
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_what_is_equal_and_not_the_same_is_carried(session, direction):
    for table in ("bookings", "new_bookings"):
        session.execute(f"ALTER TABLE {table} ADD price numeric, ADD note json")
    session.execute("UPDATE bookings SET price = 1.0, note = '1'")
    forward(session).install(direction)
    session.execute("RESET search_path")
    session.execute("UPDATE bookings SET price = 1.00, note = '[1, 2]' WHERE \"customerId\" IS NOT NULL")
    session.execute("UPDATE bookings SET price = 1.000, message = '2'")
    assert session.value("SELECT array_agg(DISTINCT price::text) FROM new_bookings") == ["1.000"]
    in_step(session)
    if direction == "both":
        session.execute("UPDATE new_bookings SET price = 1.0, note = '3'")
        assert session.value("SELECT array_agg(DISTINCT price::text) FROM bookings") == ["1.0"]
        in_step(session)


@pytest.mark.one_major
def test_the_null_of_a_document_is_not_that_of_a_column(session):
    for table in ("customers", "users"):
        session.execute(f"ALTER TABLE {table} ADD profile json")
    forward(session).install("both")
    session.execute("RESET search_path")
    customer = session.value("SELECT source_id FROM unified_user_journal.identity_map WHERE source_table = 'customers' AND source_id = user_id LIMIT 1")
    # Somebody who differs from his row: NULL there is '' here.
    session.execute("UPDATE users SET name = NULL WHERE id = %s", (customer,))
    session.execute("UPDATE customers SET profile = 'null' WHERE id = %s", (customer,))
    assert session.value("SELECT profile::text FROM users WHERE id = %s", (customer,)) == "null"
    session.execute("UPDATE users SET profile = NULL WHERE id = %s", (customer,))
    assert session.value("SELECT profile IS NULL FROM customers WHERE id = %s", (customer,))


@pytest.mark.parametrize("kind", ["json", "jsonb"])
def test_somebody_born_on_the_unified_side_and_met_later_keeps_his_documents(session, kind):
    for table in ("customers", "users"):
        session.execute(f"ALTER TABLE {table} ADD profile {kind}")
    forward(session).install("both")
    session.execute("RESET search_path")
    session.execute("INSERT INTO users (id, email, \"primaryRole\", \"updatedAt\") VALUES ('native', 'native@example.org', 'GUEST', now())")
    session.execute("INSERT INTO customers (id, name, email, profile, \"updatedAt\") VALUES ('met', 'M', 'native@example.org', '\"text\"', now())")
    assert session.value("SELECT profile IS NULL FROM users WHERE id = 'native'")
    assert verify_database(session, direction="reverse").require().not_representable["users_met_by_a_legacy_row"]
    session.execute("UPDATE public.users SET profile = '\"other\"' WHERE id = 'native'")
    verify_database(session, direction="reverse").require()


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_clock_that_is_set_back_behind_the_start_of_the_sync_is_of_no_account(session, direction):
    forward(session).install(direction)
    session.execute("UPDATE unified_user_journal.sync SET since = since + interval '1 day'")
    for name in ("sign-up of a customer", "sign-up of an owner"):
        session.execute(WRITES[name].replace("-new", "-later").replace("new@", f"{name[-5:]}@"))
    session.execute("UPDATE studios SET \"ownerId\" = 'o-later' WHERE id = (SELECT min(id) FROM studios)")
    in_step(session)


def test_what_an_application_writes_to_the_unified_side_under_ids_of_its_own_is_no_difference(session):
    sync = forward(session)
    sync.install("both")
    session.execute("RESET search_path")
    session.execute("""INSERT INTO users (id, name, email, "primaryRole", "updatedAt")
            VALUES ('u-new', 'New', 'new@example.org', 'STUDIO_OWNER', now());
        INSERT INTO user_role_assignments (id, "userId", role, "grantedBy")
            VALUES ('r-1', 'u-new', 'CUSTOMER', 'u-new'), ('r-2', 'u-new', 'STUDIO_OWNER', NULL);
        INSERT INTO studios SELECT (jsonb_populate_record(s, '{"id": "s-new", "ownerId": null}')).* FROM studios AS s LIMIT 1;
        INSERT INTO studio_ownership (id, "userId", "studioId", "isPrimary", "acceptedAt") VALUES ('w-1', 'u-new', 's-new', true, now());
        INSERT INTO audit_logs (id, "userId", action, resource, "resourceId") VALUES ('a-1', 'u-new', 'login', 'user', 'u-new');
        INSERT INTO magic_link_tokens (id, token, email, "expiresAt") VALUES ('m-1', 't', 'new@example.org', now())""")
    assert session.value("SELECT \"ownerId\" FROM studios WHERE id = 's-new'") == "u-new"
    in_step(session)
    session.execute("DELETE FROM user_role_assignments WHERE id = 'r-1'")
    session.execute("UPDATE audit_logs SET \"createdAt\" = '2001-01-01'")
    assert {check.name for check in verify_database(session).checks if not check.passed} == {"role_assignments", "total_role_assignments", "audit_logs"}


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_a_column_that_comes_later_is_carried_once_the_sync_is_made_anew(session, direction):
    forward(session).install(direction)

    def sync() -> Sync:
        return Sync(session, SyncOptions())

    assert not sync().changes(direction) and not sync().status()["outdated"]
    session.execute("ALTER TABLE public.customers ADD COLUMN nickname text; ALTER TABLE public.users ADD COLUMN nickname text")
    session.execute("UPDATE public.customers SET nickname = 'Zoë' WHERE id = (SELECT min(id) FROM public.customers)")
    assert sync().status()["outdated"] and sync().changes(direction)
    (check,) = [check for check in verify_database(session).checks if check.name == "sync"]
    assert not check.passed and "other columns" in check.detail
    anew = sync()
    assert anew.install(direction)
    # Once both sides are written nobody can tell which of them missed a write.
    assert bool(anew.repaired) == (direction == "forward")
    session.execute("UPDATE public.customers SET nickname = 'Anna' WHERE id = (SELECT max(id) FROM public.customers)")
    carried = session.value("SELECT array_agg(nickname ORDER BY nickname) FROM public.users WHERE nickname IS NOT NULL")
    assert carried == (["Anna", "Zoë"] if direction == "forward" else ["Anna"])
    session.execute("SET search_path = pg_catalog")
    assert not sync().changes(direction) and not sync().status()["outdated"]


@pytest.mark.one_major
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_what_the_sync_carries_is_not_dropped_under_it(session, direction):
    """Otherwise every write would fail that a trigger carries there."""
    sync = forward(session)
    sync.install(direction)
    for change in (
        "DROP TABLE public.customers", "ALTER TABLE public.customers DROP COLUMN phone", "ALTER TABLE public.new_bookings DROP COLUMN status",
        'ALTER TABLE public.studios DROP COLUMN "ownerId"', "ALTER TABLE public.users ALTER COLUMN phone TYPE varchar",
    ):  # fmt: skip
        with pytest.raises((psycopg2.errors.DependentObjectsStillExist, psycopg2.errors.FeatureNotSupported), match="kept_in_step_"):
            session.execute(change)
    # What it does not carry is nobody's business.
    session.execute("ALTER TABLE public.customers ADD COLUMN theirs text")
    session.execute("ALTER TABLE public.customers DROP COLUMN theirs; UPDATE public.customers SET phone = '0'")
    assert not Sync(session, SyncOptions()).changes(direction)
    assert sync.remove()
    session.execute("ALTER TABLE public.users ALTER COLUMN phone TYPE varchar; DROP TABLE public.customers CASCADE")


@pytest.mark.one_major
def test_a_type_is_changed_with_the_view_out_of_the_way(session):
    forward(session).install("both")
    session.execute("DROP VIEW unified_user_journal.kept_in_step_users; ALTER TABLE public.users ALTER COLUMN phone TYPE varchar")
    sync = Sync(session, SyncOptions())
    assert sync.changes("both") and sync.install("both") and not Sync(session, SyncOptions()).changes("both")
    session.execute("UPDATE public.customers SET phone = '0' WHERE id = (SELECT min(id) FROM public.customers)")
    with pytest.raises(psycopg2.errors.DependentObjectsStillExist, match="kept_in_step_users"):
        session.execute("ALTER TABLE public.users DROP COLUMN phone")
