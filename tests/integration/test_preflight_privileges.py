# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Preflight as an unprivileged role: every missing privilege is named with the GRANT that gives it, and the GRANTs suffice."""

from __future__ import annotations

import contextlib

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import Options as CopyOptions

from tests.integration.preflight_support import follow, found, look, names, probes_failed, run


@pytest.fixture
def connection(cluster, reference_database):
    """A session of a superuser on the reference database."""
    with contextlib.closing(cluster.connect(reference_database)) as connection:
        yield connection


@pytest.fixture
def nobody(connection):
    """A role that may log in, and nothing else."""
    name = "preflight nobody"
    run(connection, f'CREATE ROLE "{name}" LOGIN')
    yield name
    run(connection, f'REASSIGN OWNED BY "{name}" TO postgres', f'DROP OWNED BY "{name}"', f'DROP ROLE "{name}"')


@pytest.fixture
def look_as(cluster, reference_database, nobody):
    """Looks at the reference database as the role that may do nothing."""
    return lambda **options: look(cluster, reference_database, **{"login_user": nobody, "available_bytes": 10**12, **options})


def test_each_missing_privilege_is_named_with_its_grant(connection, reference_database, look_as, nobody):
    run(connection, f'REVOKE TEMPORARY ON DATABASE "{reference_database}" FROM PUBLIC', "REVOKE USAGE ON SCHEMA public FROM PUBLIC")
    result = look_as()
    blockers = set(names(result, "blocker"))
    assert {
        "privilege_schema", "privilege_schema_create", "privilege_database_create", "privilege_temporary", "privilege_select", "privilege_lock",
        "privilege_references", "privilege_insert", "privilege_truncate", "privilege_ownership", "privilege_backup", "privilege_createdb",
    } <= blockers  # fmt: skip
    assert found(result, "privilege_select", "blocker")["count"] == 17
    assert found(result, "privilege_lock", "blocker")["count"] == 8
    assert set(found(result, "privilege_references", "blocker")["samples"]) == {"services", "studios"}
    assert found(result, "privilege_ownership", "blocker")["samples"][0].endswith("(of postgres)")
    assert any("permission denied" in detail and "the rows of the legacy tables" in detail for detail in probes_failed(result))
    for finding in result["findings"]:
        if finding["name"].startswith("privilege_"):
            assert f'"{nobody}"' in finding["hint"], finding
            follow(connection, finding["hint"])
    granted = look_as()
    assert names(granted, "blocker") == [] and not granted["blocked"]


def test_the_grants_suffice_for_the_copy(cluster, connection, reference_database, look_as, nobody):
    for _round in range(2):
        for finding in look_as()["findings"]:
            if finding["name"].startswith("privilege_") and finding["name"] not in ("privilege_backup", "privilege_createdb"):
                follow(connection, finding["hint"])
    with contextlib.closing(Database(cluster.connect(reference_database, user=nobody))) as session:
        assert AtomicCopy(session, CopyOptions()).run()["counts"]["users"] == 198


def test_each_single_privilege(connection, reference_database, look_as, nobody):
    run(connection, f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{nobody}"', f'GRANT ALL ON SCHEMA public TO "{nobody}"',
        f'GRANT ALL ON DATABASE "{reference_database}" TO "{nobody}"', f'ALTER ROLE "{nobody}" CREATEDB')
    assert names(look_as(), "blocker") == ["privilege_ownership"]
    every = "UPDATE, DELETE, TRUNCATE" + (", MAINTAIN" if connection.server_version >= 170000 else "")
    for privilege, table, name in (
        (every, "bookings", "privilege_lock"), ("REFERENCES", "studios", "privilege_references"), ("INSERT", "users", "privilege_insert"),
        ("TRUNCATE", "users", "privilege_truncate"), ("SELECT", "new_bookings", "privilege_select"),
    ):  # fmt: skip
        run(connection, f'REVOKE {privilege} ON {table} FROM "{nobody}"')
        assert found(look_as(), name, "blocker")["samples"] == [table]
        run(connection, f'GRANT ALL ON {table} TO "{nobody}"')
    run(connection, f'ALTER ROLE "{nobody}" NOCREATEDB')
    assert found(look_as(), "privilege_createdb", "blocker")
    assert "privilege_createdb" not in names(look_as(restore_test=False))


def test_ownership_through_a_group(connection, look_as, nobody):
    run(connection, "CREATE ROLE preflight_owners", *(
        f'ALTER TABLE "{table}" OWNER TO preflight_owners' for table in (
            "users", "user_role_assignments", "studio_ownership", "new_accounts", "new_sessions", "new_bookings", "_UserFavorites",
            "magic_link_tokens", "audit_logs")))
    try:
        finding = found(look_as(), "privilege_ownership", "blocker")
        assert finding["hint"] == f'GRANT "preflight_owners" TO "{nobody}"'
        follow(connection, finding["hint"])
        assert "privilege_ownership" not in names(look_as())
    finally:
        run(connection, "REASSIGN OWNED BY preflight_owners TO postgres", "DROP ROLE preflight_owners")


def test_session_role_is_the_one_that_counts(connection, look_as, nobody):
    run(connection, "CREATE ROLE preflight_boss SUPERUSER", f'GRANT preflight_boss TO "{nobody}"')
    try:
        result = look_as(session_role="preflight_boss")
        assert not result["blocked"] and result["server"]["login"] == nobody and result["server"]["role"] == "preflight_boss"
    finally:
        run(connection, "DROP ROLE preflight_boss")


def test_journal_of_another_role(connection, look_as, nobody):
    run(connection, f'GRANT pg_read_all_data TO "{nobody}"')
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute("SELECT current_database()")
        (name,) = cursor.fetchone()
    run(connection, f'GRANT ALL ON DATABASE "{name}" TO "{nobody}"', "CREATE SCHEMA unified_user_journal", "CREATE TABLE unified_user_journal.run (state text)",
        "CREATE TABLE unified_user_journal.taken_down (position int, name text)")
    finding = found(look_as(), "privilege_journal", "blocker")
    assert finding["hint"] == "Set unified_user_session_role to postgres"


def test_other_sessions_cannot_be_seen(cluster, connection, reference_database, look_as, nobody):
    run(connection, f'GRANT pg_read_all_data TO "{nobody}"')
    finding = found(look_as(), "sessions_hidden", "warning")
    assert finding["count"] == 1
    follow(connection, finding["hint"])
    assert "sessions_hidden" not in names(look_as())


def test_disk_that_this_role_may_not_see(connection, look_as, nobody):
    run(connection, f'GRANT pg_read_all_data TO "{nobody}"')
    finding = found(look_as(available_bytes=None), "disk_space_unknown", "warning")
    assert "may not see" in finding["detail"] and "preflight_available_bytes" in finding["hint"]
    follow(connection, finding["hint"].rpartition("or ")[2])
    assert "disk_space_unknown" not in names(look_as(available_bytes=None))


def test_history_of_schema_migrations(cluster, connection, reference_database, look_as, nobody):
    run(connection, f'GRANT pg_read_all_data TO "{nobody}"')
    assert "privilege_history" not in names(look_as()), "with the unified tables there, nothing is left to deploy"
    unified = ("new_sessions", "new_accounts", "new_bookings", "studio_ownership", "user_role_assignments", '"_UserFavorites"', "magic_link_tokens",
               "audit_logs", "users")  # fmt: skip
    run(connection, *(f"DROP TABLE {table} CASCADE" for table in unified))
    finding = found(look_as(), "privilege_history", "blocker")
    assert finding["samples"] == ["_prisma_migrations"]
    follow(connection, finding["hint"])
    assert "privilege_history" not in names(look_as())
