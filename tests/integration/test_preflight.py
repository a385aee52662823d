# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module unified_user_preflight as an operator runs it, and that looking changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time

import pytest

from tests.conftest import Templates
from tests.integration.preflight_support import found, look, names, probes_failed, run
from tests.module_process import ROOT, connection_options, run_module

STATISTICS = """
SELECT s.relid::regclass::text, s.n_tup_ins, s.n_tup_upd, s.n_tup_del, s.last_analyze, s.last_vacuum, c.reltuples, c.relpages
FROM pg_stat_all_tables AS s JOIN pg_class AS c ON c.oid = s.relid ORDER BY 1
"""


@pytest.fixture
def options(cluster, reference_database):
    """The module's options for the reference database."""
    return {**connection_options(cluster, reference_database), "bin_dir": str(cluster.bin("pg_dump").parent)}


def state(cluster, database: str) -> dict:
    """Everything of a server that looking might have changed."""
    with contextlib.closing(cluster.connect(database)) as connection, contextlib.closing(connection.cursor()) as cursor:
        # A session that has ended counts what it did a moment later.
        others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        deadline = time.monotonic() + 10
        while cursor.execute(others) or cursor.fetchone()[0]:
            assert time.monotonic() < deadline, "other sessions stay"
            time.sleep(0.02)
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute(STATISTICS)
        statistics = cursor.fetchall()
        cursor.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text, (SELECT sum(tup_inserted + tup_updated + tup_deleted) FROM pg_stat_database)")
        counters = cursor.fetchone()
        cursor.execute("SELECT datname FROM pg_database ORDER BY 1")
        databases = cursor.fetchall()
        cursor.execute("SELECT rolname, rolconfig FROM pg_roles ORDER BY 1")
        roles = cursor.fetchall()
    command = [str(cluster.bin("pg_dump")), "--no-password", "-d", cluster.dsn(database)]
    dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # A newer pg_dump guards its output with a random key.
    dump = "\n".join(line for line in dump.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))
    return {"statistics": statistics, "counters": counters, "databases": databases, "roles": roles, "dump": dump}


@pytest.mark.parametrize("kind", ["legacy_reference", "reference"])
def test_nothing_is_changed(make_cluster, kind):
    cluster = make_cluster(settings={"autovacuum": "off"})
    database = cluster.create_database("app", Templates(cluster)._template(kind))
    before = state(cluster, database)
    result = look(cluster, database)
    assert probes_failed(result) == [] and len(result["executed_queries"]) > 60
    after = state(cluster, database)
    # Names alone: the dump holds the reference case's secrets.
    assert [name for name, value in before.items() if after[name] != value] == [], "not even a transaction id was used"
    # The comparison can fail.
    with contextlib.closing(cluster.connect(database)) as connection:
        run(connection, "UPDATE customers SET name = name WHERE id = (SELECT min(id) FROM customers)")
    assert state(cluster, database)["counters"] != before["counters"]


def test_everything_runs_read_only(cluster, reference_database):
    queries = look(cluster, reference_database)["executed_queries"]
    begin = queries.index("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    assert all(query.lstrip().startswith("SELECT") for query in queries[:begin])
    assert queries[-1] == "COMMIT" and queries.count("COMMIT") == 1


def test_module_returns_what_it_documents(options):
    result = run_module("unified_user_preflight", {**options, "_ansible_check_mode": True})
    assert result["changed"] is False and result["blocked"] is False and not result.get("failed")
    assert {"rows", "bytes", "seconds", "tables", "bytes_for"} == set(result["estimates"])
    assert {"name", "severity", "count", "detail", "hint", "samples"} == set(result["findings"][0])
    assert result["server"]["major"] and result["duration_ms"] > 0 and result["executed_queries"]


def test_module_fails_on_blockers_only_when_asked(cluster, reference_database, options):
    with contextlib.closing(cluster.connect(reference_database)) as connection:
        run(connection, "INSERT INTO customers (id, name, email, \"updatedAt\") VALUES ('x', 'N', 'nobody', now())", "CREATE SCHEMA unified_user_journal")
    result = run_module("unified_user_preflight", options)
    assert not result.get("failed") and names(result, "blocker") == ["journal_schema_taken", "unusable_email"]
    failed = run_module("unified_user_preflight", {**options, "fail_on_blocker": True})
    assert failed["failed"] and failed["msg"].startswith("Failed to pass preflight: there is a schema unified_user_journal")
    assert "ALTER SCHEMA unified_user_journal RENAME" in failed["msg"] and "owners or customers without a usable e-mail (1)" in failed["msg"]
    assert found(failed, "unusable_email", "blocker") and failed["estimates"]["rows"] == 681


def test_wrong_password_is_never_shown(cluster, options, secret):
    password = secret("wrong-password")
    remote = {**options, "login_unix_socket": "", "login_host": cluster.tcp_host, "login_password": password}
    failed = run_module("unified_user_preflight", remote)
    assert failed["failed"] and "password authentication failed" in failed["msg"] and "login_password" in failed["msg"]
    assert password not in json.dumps(failed)


def test_over_the_network_the_disk_of_this_host_is_still_seen(cluster, options):
    remote = {**options, "login_unix_socket": "", "login_host": cluster.tcp_host, "login_password": cluster.password}
    result = run_module("unified_user_preflight", remote)
    assert found(result, "disk_space", "info") and cluster.password not in json.dumps(result)


def test_missing_driver_names_the_interpreter(options, tmp_path):
    (tmp_path / "psycopg2.py").write_text("raise ImportError('as if it were not installed')\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT / ".collections"), *(path for path in sys.path if "site-packages" in path)])
    failed = run_module("unified_user_preflight", options, environment={"PYTHONPATH": paths})
    assert failed["failed"] and f"psycopg2 is missing for {sys.executable}" in failed["msg"] and "python3-psycopg2" in failed["msg"]
