# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Preflight's questions to tables, keys and references: each problem is made, found, and gone when its hint is followed."""

from __future__ import annotations

import contextlib
import re
import threading

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _preflight_tables

from tests.integration.preflight_support import follow, found, look, names, probes_failed, run


@pytest.fixture
def connection(cluster, reference_database):
    """A session on the reference database, legacy and unified tables."""
    with contextlib.closing(cluster.connect(reference_database)) as connection:
        yield connection


@pytest.fixture
def look_here(cluster, reference_database):
    """Looks at the reference database."""
    return lambda **options: look(cluster, reference_database, **options)


@pytest.fixture
def reader(connection):
    """A role that may read everything and owns nothing."""
    run(connection, "CREATE ROLE preflight_reader LOGIN", "GRANT pg_read_all_data, pg_read_all_stats TO preflight_reader")
    yield "preflight_reader"
    run(connection, "DROP OWNED BY preflight_reader", "DROP ROLE preflight_reader")


# --- what hides or rewrites rows ----------------------------------------------------------------------------------------


def test_row_level_security(connection, look_here, reader):
    run(connection, "ALTER TABLE bookings ENABLE ROW LEVEL SECURITY")
    finding = found(look_here(session_role=reader), "row_security_active", "blocker")
    assert finding["samples"] == ["bookings"] and "BYPASSRLS" in finding["hint"]
    assert found(look_here(), "row_security_bypassed", "info")["samples"] == ["bookings"]
    run(connection, f"ALTER ROLE {reader} BYPASSRLS")
    assert "row_security_active" not in names(look_here(session_role=reader))


def test_row_level_security_on_a_further_table_stops_the_backup(connection, look_here, reader):
    run(connection, "CREATE SCHEMA crm", "CREATE TABLE crm.leads (id int)", "ALTER TABLE crm.leads ENABLE ROW LEVEL SECURITY")
    finding = found(look_here(session_role=reader), "row_security_backup", "blocker")
    assert finding["samples"] == ["crm.leads"]
    assert "row_security_backup" not in names(look_here())


def test_triggers(connection, look_here):
    run(connection, "CREATE FUNCTION noop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        'CREATE TRIGGER "stamp it" BEFORE INSERT ON users FOR EACH ROW EXECUTE FUNCTION noop()',
        "CREATE TRIGGER on_delete AFTER DELETE ON users FOR EACH ROW EXECUTE FUNCTION noop()",
        "CREATE TRIGGER notify AFTER UPDATE ON bookings FOR EACH ROW EXECUTE FUNCTION noop()",
        "CREATE TRIGGER asleep AFTER UPDATE ON studios FOR EACH ROW EXECUTE FUNCTION noop()", "ALTER TABLE studios DISABLE TRIGGER asleep")
    result = look_here()
    firing = found(result, "unified_triggers", "warning")
    assert firing["samples"] == ["stamp it on users"]
    assert found(result, "legacy_triggers", "warning")["samples"] == ["notify on bookings"]
    follow(connection, firing["hint"])
    assert "unified_triggers" not in names(look_here())


def test_rules(connection, look_here):
    run(connection, "CREATE RULE swallow AS ON INSERT TO new_bookings DO INSTEAD NOTHING",
        "CREATE RULE keep AS ON DELETE TO bookings DO INSTEAD NOTHING")
    result = look_here()
    rewriting = found(result, "insert_rules", "blocker")
    assert rewriting["samples"] == ["swallow on new_bookings"]
    assert found(result, "rules", "warning")["samples"] == ["keep on bookings"]
    follow(connection, rewriting["hint"])
    assert "insert_rules" not in names(look_here())


def test_inheritance_partitions_and_unlogged_tables(connection, look_here):
    run(connection, "CREATE TABLE archived () INHERITS (bookings)", "ALTER TABLE sessions SET UNLOGGED",
        'DROP TABLE "_UserFavorites"', 'CREATE TABLE "_UserFavorites" ("A" text, "B" text, PRIMARY KEY ("A", "B")) PARTITION BY HASH ("A")')
    result = look_here()
    assert found(result, "has_children", "warning")["samples"] == ["bookings"]
    assert found(result, "partitioned", "warning")["samples"] == ["_UserFavorites"]
    unlogged = found(result, "unlogged", "warning")
    assert unlogged["samples"] == ["sessions"] and probes_failed(result) == []
    follow(connection, unlogged["hint"])
    assert "unlogged" not in names(look_here())


# --- upkeep -------------------------------------------------------------------------------------------------------------


def test_autovacuum_disabled_on_a_table(connection, look_here):
    run(connection, "ALTER TABLE bookings SET (autovacuum_enabled = off, fillfactor = 80)")
    finding = found(look_here(), "autovacuum_disabled", "warning")
    assert finding["samples"] == ["bookings"]
    follow(connection, finding["hint"])
    assert "autovacuum_disabled" not in names(look_here())


def test_tables_without_statistics(cluster, connection, templates, look_here):
    with templates.database("unified") as name, contextlib.closing(cluster.connect(name)) as fresh:
        run(fresh, "INSERT INTO studio_owners (id, email, \"updatedAt\") VALUES ('o1', 'o@example.org', now())")
        finding = found(look(cluster, name), "never_analyzed", "warning")
        assert finding["samples"] == ["studio_owners"]
        follow(fresh, finding["hint"])
        assert "never_analyzed" not in names(look(cluster, name))


def test_dead_rows(connection, look_here, monkeypatch):
    run(connection, "ALTER TABLE bookings SET (autovacuum_enabled = off)", "UPDATE bookings SET message = 'again'",
        "SELECT pg_stat_force_next_flush()")
    assert "dead_rows" not in names(look_here()), "312 dead rows are not worth a word"
    monkeypatch.setattr(_preflight_tables, "_DEAD_ROWS", 100)
    finding = found(look_here(), "dead_rows", "warning")
    assert re.fullmatch(r"bookings: \d{3} dead, 312 live, last vacuum never", finding["samples"][0])
    follow(connection, finding["hint"])
    run(connection, "SELECT pg_stat_force_next_flush()")
    assert "dead_rows" not in names(look_here())


def test_table_due_for_a_vacuum_against_wraparound(connection, look_here):
    run(connection, "ALTER TABLE bookings SET (autovacuum_freeze_max_age = 100000, autovacuum_enabled = off)")
    assert "wraparound" not in names(look_here())
    run(connection, "CREATE TEMP TABLE burnt (i int)",
        "DO 'BEGIN FOR i IN 1 .. 100100 LOOP BEGIN INSERT INTO burnt VALUES (i); EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END'")
    finding = found(look_here(), "wraparound", "warning")
    assert finding["samples"][0].startswith("bookings: ") and "limit 100000" in finding["samples"][0]
    follow(connection, finding["hint"])
    assert "wraparound" not in names(look_here())


def test_vacuum_under_way(cluster, connection, reference_database, look_here):
    # A cost delay makes the vacuum of a small table last.
    run(connection, "UPDATE bookings SET message = repeat('x', 500)")
    with contextlib.closing(cluster.connect(reference_database)) as other:
        pid = other.info.backend_pid

        def vacuum():
            with contextlib.suppress(Exception):
                run(other, "SET vacuum_cost_delay = 100", "SET vacuum_cost_limit = 1", "VACUUM bookings")

        worker = threading.Thread(target=vacuum)
        worker.start()
        try:
            for _attempt in range(100):
                result = look_here()
                if "vacuum_running" in names(result):
                    break
            assert found(result, "vacuum_running", "info")["samples"] == [f"bookings (pid {pid})"]
        finally:
            run(connection, f"SELECT pg_cancel_backend({pid})")
            worker.join()


# --- keys and references ------------------------------------------------------------------------------------------------


def test_invalid_index(connection, look_here):
    run(connection, 'INSERT INTO bookings SELECT \'copy\' || id, "studioId", "serviceId", "customerId", "customerName", "customerEmail", "customerPhone",'
        ' "preferredDate", "preferredTime", message, status, "createdAt", "updatedAt" FROM bookings LIMIT 1')
    with pytest.raises(Exception, match="could not create unique index"):
        run(connection, 'CREATE UNIQUE INDEX CONCURRENTLY one_a_day ON bookings ("customerEmail", "preferredDate", "preferredTime", "createdAt")')
    finding = found(look_here(), "invalid_index", "warning")
    assert finding["samples"] == ["one_a_day on bookings"]
    run(connection, "DELETE FROM bookings WHERE id LIKE 'copy%'")
    follow(connection, finding["hint"])
    assert "invalid_index" not in names(look_here())


def test_missing_keys_and_what_they_let_in(connection, look_here):
    run(connection, "ALTER TABLE sessions DROP CONSTRAINT sessions_pkey", "DROP INDEX users_email_key", 'DROP INDEX "accounts_provider_providerAccountId_key"',
        'CREATE UNIQUE INDEX partly ON accounts (provider, "providerAccountId") WHERE expires_at > 0')
    result = look_here()
    finding = found(result, "missing_key", "warning")
    assert set(finding["samples"]) == {"sessions (id)", "users (email)", "accounts (provider, providerAccountId)"}, "a partial index guards nothing"
    assert "double_keys" not in names(result)
    run(connection, 'INSERT INTO sessions SELECT id, "sessionToken" || \'2\', "userId", expires FROM sessions LIMIT 3')
    doubles = found(look_here(), "double_keys", "blocker")
    assert doubles["count"] == 3 and doubles["samples"] == ["sessions (id)"]
    run(connection, "DELETE FROM sessions WHERE \"sessionToken\" LIKE '%2' AND id IN (SELECT id FROM sessions GROUP BY id HAVING count(*) > 1)")
    follow(connection, found(look_here(), "missing_key", "warning")["hint"])
    assert not {"missing_key", "double_keys"} & set(names(look_here()))


@pytest.mark.parametrize(("table", "column", "severity"), [
    ("bookings", "customerId", "blocker"), ("bookings", "serviceId", "blocker"), ("studios", "ownerId", "blocker"),
    ("sessions", "userId", "blocker"), ("_CustomerFavorites", "A", "blocker"), ("services", "studioId", "warning"),
])  # fmt: skip
def test_missing_foreign_key_and_rows_that_lead_nowhere(connection, look_here, table, column, severity):
    run(connection, f'ALTER TABLE "{table}" DROP CONSTRAINT "{table}_{column}_fkey"')
    result = look_here()
    assert found(result, "missing_foreign_key", "warning")["samples"][0].startswith(f"{table}.{column} to ")
    assert "dangling_references" not in names(result)
    run(connection, f'UPDATE "{table}" SET "{column}" = \'nobody\' WHERE ctid = (SELECT min(ctid) FROM "{table}")')
    result = look_here()
    finding = found(result, "dangling_references", severity)
    assert finding["count"] == 1 and len(finding["samples"]) == 1
    run(connection, finding["hint"])
    follow(connection, found(result, "missing_foreign_key", "warning")["hint"])
    assert not {"missing_foreign_key", "dangling_references"} & set(names(look_here()))


def test_foreign_key_that_was_never_validated(connection, look_here):
    run(connection, 'ALTER TABLE bookings DROP CONSTRAINT "bookings_customerId_fkey"',
        "UPDATE bookings SET \"customerId\" = 'gone' WHERE id = (SELECT min(id) FROM bookings)",
        'ALTER TABLE bookings ADD CONSTRAINT "late fk" FOREIGN KEY ("customerId") REFERENCES customers (id) ON DELETE SET NULL NOT VALID')
    result = look_here()
    doubtful = found(result, "unvalidated_foreign_key", "warning")
    assert doubtful["samples"] == ["late fk on bookings"]
    dangling = found(result, "dangling_references", "blocker")
    assert dangling["count"] == 1
    run(connection, dangling["hint"])
    follow(connection, doubtful["hint"])
    assert not {"unvalidated_foreign_key", "dangling_references"} & set(names(look_here()))


def test_foreign_key_that_is_switched_off(connection, look_here):
    run(connection, "ALTER TABLE sessions DISABLE TRIGGER ALL", "UPDATE sessions SET \"userId\" = 'gone' WHERE id = (SELECT min(id) FROM sessions)")
    result = look_here()
    doubtful = found(result, "unvalidated_foreign_key", "warning")
    assert doubtful["samples"] == ["sessions_userId_fkey on sessions"]
    assert found(result, "dangling_references", "blocker")["count"] == 1
    run(connection, "DELETE FROM sessions WHERE \"userId\" = 'gone'")
    follow(connection, doubtful["hint"])
    assert "unvalidated_foreign_key" not in names(look_here())


def test_foreign_key_that_is_not_enforced(cluster, connection, look_here):
    if cluster.major < 18:
        with pytest.raises(Exception, match="ENFORCED"):
            run(connection, 'ALTER TABLE sessions ALTER CONSTRAINT "sessions_userId_fkey" NOT ENFORCED')
        return
    run(connection, 'ALTER TABLE sessions ALTER CONSTRAINT "sessions_userId_fkey" NOT ENFORCED')
    assert found(look_here(), "unvalidated_foreign_key", "warning")["samples"] == ["sessions_userId_fkey on sessions"]


def test_foreign_key_that_leads_elsewhere(connection, look_here):
    run(connection, 'ALTER TABLE new_bookings DROP CONSTRAINT "new_bookings_customerId_fkey"',
        'ALTER TABLE new_bookings ADD CONSTRAINT "to the old" FOREIGN KEY ("customerId") REFERENCES customers (id)')
    result = look_here()
    finding = found(result, "foreign_key_elsewhere", "blocker")
    assert finding["samples"] == ["to the old on new_bookings leads to customers"]
    assert found(result, "missing_foreign_key", "warning")["samples"] == ["new_bookings.customerId to users"]
    follow(connection, finding["hint"])
    assert "foreign_key_elsewhere" not in names(look_here())


def test_demands_that_the_migration_does_not_know(connection, look_here):
    run(connection, "CREATE UNIQUE INDEX one_phone ON users (phone)", "CREATE UNIQUE INDEX lowered ON users (lower(email))",
        "ALTER TABLE new_bookings ADD CONSTRAINT dated CHECK (\"preferredDate\" <> '')", "ALTER TABLE audit_logs ADD CHECK (action <> '')")
    finding = found(look_here(), "further_constraints", "warning")
    assert set(finding["samples"]) == {"one_phone on users", "lowered on users", "dated on new_bookings"}
    assert finding["hint"] == """psql -c '\\d "public"."new_bookings"'; psql -c '\\d "public"."users"'"""


def test_roles_that_the_enumeration_lacks(connection, look_here):
    run(connection, "CREATE TYPE \"Few Roles\" AS ENUM ('STUDIO_OWNER', 'CUSTOMER')",
        "ALTER TABLE user_role_assignments ALTER COLUMN role TYPE \"Few Roles\" USING role::text::\"Few Roles\"")
    assert "role_unknown" not in names(look_here())
    finding = found(look_here(guest_role="GUEST"), "role_unknown", "blocker")
    assert finding["samples"] == ["GUEST"] and "role of user_role_assignments" in finding["detail"]
    follow(connection, finding["hint"])
    assert "role_unknown" not in names(look_here(guest_role="GUEST"))
