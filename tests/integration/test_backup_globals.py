# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Roles beside the dump, on real servers: what is there, what must not be, and what is believed."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from psycopg2 import sql

from tests.module_process import connection_options, run_module


@pytest.fixture
def people(cluster, secret):
    """Two roles, one a member of the other, with a setting and a password; yields their names and the password."""
    staff, anna, password = f"staff_{os.getpid()}", f"anna_{os.getpid()}", secret("role-password")
    with contextlib.closing(Database(cluster.connect())) as admin:
        names = {"staff": sql.Identifier(staff), "anna": sql.Identifier(anna)}
        admin.execute(sql.SQL("CREATE ROLE {staff}; CREATE ROLE {anna} LOGIN CREATEDB IN ROLE {staff}").format(**names))
        admin.execute(sql.SQL("ALTER ROLE {anna} SET statement_timeout = '7s'").format(**names))
        admin.execute(sql.SQL("ALTER ROLE {anna} PASSWORD {}").format(sql.Literal(password), **names))
        yield staff, anna, password
        admin.execute(sql.SQL("DROP ROLE {anna}; DROP ROLE {staff}").format(**names))


@pytest.fixture
def taken(cluster, people, database, tmp_path):
    """Options and result of a backup of an almost empty database."""
    with contextlib.closing(Database(cluster.connect(database))) as session:
        session.execute("CREATE TABLE t AS SELECT 1 AS a")
    options = {
        **connection_options(cluster, database),
        "directory": str(tmp_path / "backups"),
        "bin_dir": str(Path(cluster.bin("pg_dump")).parent),
    }
    result = run_module("database_backup", options)
    assert not result.get("failed"), result
    return options, result


def test_roles_lie_beside_the_dump_without_passwords(people, taken):
    staff, anna, password = people
    _options, result = taken
    assert result["globals"] == {"included": True, "reason": None} and not result.get("warnings")
    path = Path(result["path"], "globals.sql")
    text = path.read_text()
    assert f"CREATE ROLE {anna};" in text and f"GRANT {staff} TO {anna}" in text
    assert f"ALTER ROLE {anna} SET statement_timeout TO '7s';" in text and "LOGIN" in text
    assert password not in text and "SCRAM-SHA-256" not in text and "PASSWORD" not in text.upper().replace("NO-ROLE-PASSWORDS", "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    manifest = json.loads(Path(result["manifest"]).read_text())
    assert [file["size"] for file in manifest["files"] if file["name"] == "globals.sql"] == [path.stat().st_size]


def test_another_server_gets_the_roles_from_it(people, taken, make_cluster):
    _staff, anna, _password = people
    _options, result = taken
    other = make_cluster()
    command = [other.bin("psql"), "--no-psqlrc", "--quiet", f"--host={other.host}", f"--port={other.port}", "--username=postgres", "--file"]
    done = subprocess.run([*command, str(Path(result["path"], "globals.sql")), "postgres"], capture_output=True, text=True, check=False)
    # The superuser is there already; everything else must go through.
    assert [line for line in done.stderr.splitlines() if "ERROR" in line and '"postgres" already exists' not in line] == []
    with contextlib.closing(Database(other.connect())) as session:
        assert session.row("SELECT rolcreatedb, rolconfig FROM pg_roles WHERE rolname = %s", (anna,)) == {
            "rolcreatedb": True,
            "rolconfig": ["statement_timeout=7s"],
        }


DAMAGES = {
    "altered": (lambda path: path.write_bytes(path.read_bytes().replace(b"NOSUPERUSER", b"noSUPERUSER")), "globals.sql was altered"),
    "truncated": (lambda path: os.truncate(path, 40), "globals.sql has 40 bytes"),
    "missing": (lambda path: path.unlink(), "globals.sql is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.one_major
def test_damage_to_them_is_noticed(taken, damage):
    options, result = taken
    inflict, words = DAMAGES[damage]
    inflict(Path(result["path"], "globals.sql"))
    refused = run_module("database_restore", {**options, "state": "verified", "backup": result["path"]})
    assert refused["failed"] and words in refused["msg"]


@pytest.mark.one_major
def test_a_client_without_pg_dumpall_is_refused_before_anything_is_dumped(taken, tmp_path):
    options, _result = taken
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pg_dump").symlink_to(Path(options["bin_dir"], "pg_dump"))
    places = {"bin_dir": str(tmp_path / "bin"), "directory": str(tmp_path / "none")}
    refused = run_module("database_backup", {**options, **places, "_ansible_check_mode": True})
    assert refused["failed"] and "Failed to find pg_dumpall" in refused["msg"] and "bin_dir" in refused["msg"]
    assert not (tmp_path / "none").exists()
