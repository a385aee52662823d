# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Proving a backup on another server: with the primary down, on a newer major, and what an older one is told."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import yaml
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database

from tests.integration.backup_support import refuse, succeed, wait_until
from tests.integration.test_backup import HOSTILE
from tests.module_process import connection_options, run_module
from tests.playbook_process import inventory, run_playbook
from tools.embedded_postgres import available_majors

VIEWS = """
CREATE VIEW busy AS SELECT p.a, count(*) AS n FROM parent AS p JOIN parent AS q USING (a) GROUP BY p.a;
GRANT ALL ON busy TO PUBLIC; GRANT ALL ON parent TO PUBLIC;
"""


def options(cluster, database: str, tmp_path, **changes) -> dict:
    places = {"directory": str(tmp_path / "backups"), "bin_dir": str(Path(cluster.bin("pg_dump")).parent)}
    return {**connection_options(cluster, database), **places, **changes}


@pytest.fixture
def lost(make_cluster, tmp_path):
    """A backup whose server is down; returns the options that reached it."""
    own = make_cluster()
    own.create_database("shop")
    with contextlib.closing(Database(own.connect("shop"))) as session:
        session.execute("CREATE TABLE t (a int PRIMARY KEY, b text); INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 500) AS i")
    found = options(own, "shop", tmp_path)
    taken = succeed(run_module("database_backup", found))
    own.stop("immediate")
    wait_until(lambda: not own.running)
    return found, taken


@pytest.mark.one_major
def test_a_backup_is_proven_with_the_primary_down(cluster, lost, tmp_path):
    found, taken = lost
    refuse(run_module("database_restore", found), "connect to database postgres")
    tested = succeed(run_module("database_restore", options(cluster, "shop", tmp_path)))
    proof = json.loads(Path(tested["proof"]).read_text())
    assert proof["sha256"] == taken["sha256"] and proof["server"]["port"] == cluster.port and proof["rows"] == 500


@pytest.mark.one_major
def test_the_role_proves_it_on_the_server_it_is_told(cluster, lost, tmp_path):
    found, taken = lost
    (tmp_path / "prove.yml").write_text(
        yaml.safe_dump([{"hosts": "database", "gather_facts": False, "roles": ["rnltlabs.unified_user.restore_test"]}])
    )
    primary = {f"unified_user_{name}": found[name] for name in ("login_db", "login_user", "login_unix_socket", "login_port")}
    other = {"restore_test_login_host": "127.0.0.1", "restore_test_login_port": cluster.port, "restore_test_login_password": cluster.password}
    hosts = inventory(
        tmp_path, {**primary, **other, "backup_directory": found["directory"], "backup_bin_dir": found["bin_dir"], "restore_test_primary_available": False}
    )
    done = run_playbook(tmp_path / "prove.yml", hosts)
    assert done.returncode == 0, done.stdout
    proof = json.loads(Path(taken["path"], "proof.json").read_text())
    assert proof["server"]["host"] == "127.0.0.1" and proof["sha256"] == taken["sha256"]


@pytest.fixture
def two_majors(clusters, major):
    """The oldest server here and the newest."""
    majors = available_majors()
    if len(majors) < 2:
        pytest.skip("only one PostgreSQL here")
    return clusters(majors[0]), clusters(majors[-1])


@pytest.mark.one_major
def test_a_newer_major_takes_it_and_says_what_was_not_compared(two_majors, tmp_path):
    old, new = two_majors
    old.create_database("travels")
    try:
        with contextlib.closing(Database(old.connect("travels"))) as session:
            session.execute(HOSTILE + VIEWS)
        taken = succeed(run_module("database_backup", options(old, "travels", tmp_path)))
        tested = succeed(run_module("database_restore", options(new, "travels", tmp_path)))
        assert tested["rows"] == taken["rows"] > 100 and tested["not_compared"] == ["maintain privilege", "rule", "view"]
        proof = json.loads(Path(tested["proof"]).read_text())
        assert proof["not_compared"] == tested["not_compared"] and proof["server"]["version"].startswith(str(new.major))
        assert succeed(run_module("database_restore", options(old, "travels", tmp_path)))["not_compared"] == []
        with contextlib.closing(Database(old.connect("travels"))) as session:
            session.execute("ALTER VIEW busy OWNER TO pg_monitor; CREATE OR REPLACE VIEW busy AS SELECT a, 1::bigint AS n FROM parent")
        since = succeed(run_module("database_restore", options(old, "travels", tmp_path, state="compared")))
        assert {(entry["kind"], entry["name"]) for entry in since["catalogue"]} == {("view", "public.busy"), ("table", "public.busy")}
    finally:
        old.drop_database("travels")


@pytest.mark.one_major
def test_an_older_major_is_refused_with_the_reason(two_majors, tmp_path):
    old, new = two_majors
    new.create_database("travels")
    try:
        with contextlib.closing(Database(new.connect("travels"))) as session:
            session.execute("CREATE TABLE t AS SELECT 1 AS a")
        taken = succeed(run_module("database_backup", options(new, "travels", tmp_path)))
        words = [f"on PostgreSQL {old.major}", f"from PostgreSQL {new.major}", f"Restore on a server of PostgreSQL {new.major} or later"]
        refuse(run_module("database_restore", options(old, "travels", tmp_path)), *words)
        older_client = options(new, "travels", tmp_path, bin_dir=str(Path(old.bin("pg_restore")).parent))
        refuse(run_module("database_restore", older_client), f"older than the {new.major} that is needed", f"postgresql-client-{new.major}")
        assert not Path(taken["path"], "proof.json").exists()
    finally:
        new.drop_database("travels")
