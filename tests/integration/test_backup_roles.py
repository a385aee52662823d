# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The roles backup and restore_test as an operator runs them, one after the other."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from psycopg2 import sql

from tests.integration.backup_support import folder_in_memory
from tests.module_process import connection_options
from tests.playbook_process import inventory, run_playbook

# What is tested here does not depend on the server's version; what does is tested on every one elsewhere.
pytestmark = pytest.mark.one_major


@pytest.fixture
def prove(cluster, legacy_reference_database, tmp_path):
    """Runs roles, both if not told which: prove(*arguments, variable=value); returns what each recorded, by its name."""
    facts, playbook = tmp_path / "facts.json", tmp_path / "prove.yml"
    record = {
        "name": "Keep what the roles told",
        "ansible.builtin.copy": {"content": "{{ unified_user_steps }}", "dest": str(facts)},
        "check_mode": False,
        "changed_when": False,
    }
    connection = {f"unified_user_{name}": value for name, value in connection_options(cluster, legacy_reference_database).items()}
    places = {"backup_directory": str(tmp_path / "backups"), "backup_bin_dir": str(Path(cluster.bin("pg_dump")).parent)}

    def run(*arguments, roles=("backup", "restore_test"), **variables):
        tasks = [{"name": f"Run {role}", "ansible.builtin.import_role": {"name": f"rnltlabs.unified_user.{role}"}} for role in roles]
        playbook.write_text(yaml.safe_dump([{"name": "Prove", "hosts": "database", "gather_facts": False, "tasks": [*tasks, record]}]))
        hosts = inventory(tmp_path, {**connection, **places, "backup_minimum_bytes": 10000, **variables})
        done = run_playbook(playbook, hosts, *arguments)
        assert done.returncode == 0, done.stdout
        return {step["step"]: step for step in json.loads(facts.read_text())}

    return run


def test_older_backups_go_after_the_proof_of_the_new_one(prove, tmp_path):
    first, second = prove(), prove()
    paths = [Path(told["backup"]["data"]["path"]) for told in (first, second)]
    assert sorted((tmp_path / "backups").iterdir()) == sorted(paths), "without a limit everything stays"
    assert "removed" not in second["restore_test"]["data"]

    planned = prove("--check", backup_keep_count=1)["restore_test"]
    assert planned["detail"] == "planned once there is a backup; older backups that would go: 1"
    assert [entry["path"] for entry in planned["data"]["removed"]] == [str(paths[0])] and paths[0].exists()

    third = prove(backup_keep_count=1)
    assert third["restore_test"]["detail"].endswith("…; older backups removed: 2")
    assert [entry["path"] for entry in third["restore_test"]["data"]["removed"]] == [str(paths[1]), str(paths[0])]
    (left,) = (tmp_path / "backups").iterdir()
    assert str(left) == third["backup"]["data"]["path"] and (left / "proof.json").exists()


def test_an_old_backup_that_is_named_survives_its_test(prove):
    first, second = (Path(prove()["backup"]["data"]["path"]) for unused in range(2))
    told = prove(roles=["restore_test"], restore_test_backup=str(first), backup_keep_count=1)["restore_test"]
    assert told["data"]["backup"]["path"] == str(first) and "removed" not in told["data"]
    assert first.exists() and second.exists()


def test_the_proof_is_of_the_copy_furthest_away(prove, tmp_path):
    with folder_in_memory() as mounted:
        (tmp_path / "second").mkdir()
        copies = [{"kind": "path", "path": str(tmp_path / "second"), "allow_same_filesystem": True}, {"kind": "path", "path": mounted}]
        told = prove(backup_copies=copies, backup_keep_count=1)
        places = [f"path {tmp_path}/second", f"path {mounted}"]
        assert told["backup"]["detail"].endswith(f", copied to {', '.join(places)}")
        assert [entry["place"] for entry in told["backup"]["data"]["copies"]] == places
        name = Path(told["backup"]["data"]["path"]).name
        assert told["restore_test"]["data"]["backup"]["path"] == f"path {mounted}/{name}"
        proofs = {(Path(folder) / name / "proof.json").read_text() for folder in (tmp_path / "backups", tmp_path / "second", mounted)}
        (proof,) = map(json.loads, proofs)
        assert proof["restored_from"] == f"path {mounted}/{name}" and proof["sha256"] == told["backup"]["data"]["sha256"]
        prove(backup_copies=copies, backup_keep_count=1)
        assert all(len(list(Path(folder).iterdir())) == 1 for folder in (tmp_path / "backups", tmp_path / "second", mounted))


def test_an_encrypted_backup_is_proven_by_the_roles(prove, tmp_path):
    identity = tmp_path / "identity.txt"
    subprocess.run(["age-keygen", "-o", str(identity)], check=True, capture_output=True)
    recipient = subprocess.run(["age-keygen", "-y", str(identity)], check=True, capture_output=True, text=True).stdout.strip()
    told = prove(backup_encryption_recipients=[recipient], backup_decryption_identity_file=str(identity))
    assert told["backup"]["data"]["encrypted"] and told["backup"]["data"]["format"] == "custom"
    assert told["restore_test"]["data"]["backup"]["sha256"] == told["backup"]["data"]["sha256"]


@pytest.fixture
def roles_hidden(cluster, legacy_reference_database):
    """A role that may read every table of the database, and not who is a member of what. Without pg_roles nothing is dumped at all."""
    reader = f"roles_hidden_{os.getpid()}"
    with contextlib.closing(Database(cluster.connect(legacy_reference_database))) as session:
        session.execute(sql.SQL("CREATE ROLE {0} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {0}").format(sql.Identifier(reader)))
        session.execute("REVOKE SELECT ON pg_catalog.pg_auth_members FROM PUBLIC")
        yield reader
        session.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(reader)))


def test_a_role_that_may_not_read_roles_is_told_so(prove, roles_hidden):
    told = prove(roles=["backup"], unified_user_login_user=roles_hidden)["backup"]
    assert told["data"]["globals"] == {"included": False, "reason": "permission denied for table pg_auth_members"}
    assert told["detail"].endswith(", without roles: permission denied for table pg_auth_members")
    path = Path(told["data"]["path"])
    assert json.loads((path / "manifest.json").read_text())["globals"] == told["data"]["globals"]
    assert not (path / "globals.sql").exists()
