# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The role schema_deploy as an operator runs it: from a release on the host or from the controller, planned, twice, refused."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import yaml

from tests.app.migration_history import MIGRATIONS, migration_directories
from tests.module_process import connection_options
from tests.playbook_process import changed, inventory, run_playbook

NAMES = [directory.name for directory in migration_directories()]
UNIFIED = NAMES[-1]


@pytest.fixture
def deploy(cluster, tmp_path):
    """Runs the role against a database: deploy(dbname, *arguments, variable=value); returns the process and what it recorded."""
    facts = tmp_path / "facts.json"
    playbook = tmp_path / "deploy.yml"
    record = {
        "name": "Keep what the role told",
        "ansible.builtin.copy": {"content": "{{ {'steps': unified_user_steps, 'pending': unified_user_schema_pending} }}", "dest": str(facts)},
        "check_mode": False,
        "changed_when": False,
    }
    tasks = [{"name": "Deploy", "ansible.builtin.import_role": {"name": "rnltlabs.unified_user.schema_deploy"}}, record]
    playbook.write_text(yaml.safe_dump([{"name": "Deploy", "hosts": "database", "gather_facts": False, "tasks": tasks}]))

    def run(dbname, *arguments, **variables):
        facts.unlink(missing_ok=True)
        connection = {f"unified_user_{name}": value for name, value in connection_options(cluster, dbname).items()}
        done = run_playbook(playbook, inventory(tmp_path, {**connection, **variables}), *arguments)
        return done, json.loads(facts.read_text()) if facts.exists() else None

    return run


def tables(cluster, dbname):
    with contextlib.closing(cluster.connect(dbname)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename <> '_prisma_migrations'")
        return cursor.fetchone()[0]


def test_planned_deployed_and_done(cluster, legacy_database, deploy):
    path = {"schema_deploy_migrations_path": str(MIGRATIONS)}
    planned, told = deploy(legacy_database, "--check", "--diff", **path)
    assert (planned.returncode, changed(planned)) == (0, 1), planned.stdout
    assert f"+{UNIFIED}" in planned.stdout
    assert told["pending"] is True and told["steps"][0]["detail"] == f"would apply 1 of 7 migrations, the last {UNIFIED}"
    assert tables(cluster, legacy_database) == 10

    done, told = deploy(legacy_database, **path)
    assert (done.returncode, changed(done)) == (0, 1), done.stdout
    (step,) = told["steps"]
    assert (step["step"], step["result"], step["rows"], told["pending"]) == ("schema_deploy", "changed", None, False)
    assert step["detail"] == f"applied 1 of 7 migrations, the last {UNIFIED}"
    assert step["duration_ms"] > 0 and step["data"]["migrations"] == [UNIFIED]
    assert tables(cluster, legacy_database) == 19

    again, told = deploy(legacy_database, **path)
    assert (again.returncode, changed(again)) == (0, 0), again.stdout
    assert (told["steps"][0]["result"], told["steps"][0]["detail"]) == ("ok", "up to date: 7 migrations")


def test_from_the_controller(cluster, database, deploy, monkeypatch, tmp_path):
    """The copy is made for the run and gone afterwards, in check mode, too."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    source = {"schema_deploy_migrations_source": str(MIGRATIONS)}
    planned, told = deploy(database, "--check", "--verbose", **source)
    assert (planned.returncode, changed(planned), told["pending"]) == (0, 1, True), planned.stdout
    assert f"{tmp_path}/tmp/" in planned.stdout, "the copy was elsewhere"
    assert tables(cluster, database) == 0
    done, told = deploy(database, **source)
    assert (done.returncode, changed(done)) == (0, 1), done.stdout
    assert told["steps"][0]["data"]["migrations"] == NAMES
    assert tables(cluster, database) == 19
    assert list(Path(tmp_path / "tmp").glob("*.migrations")) == []


def test_refusal_stops_the_play_and_leaves_no_copy(cluster, legacy_database, deploy, monkeypatch, tmp_path):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    release = shutil.copytree(MIGRATIONS, tmp_path / "release")
    (release / UNIFIED / "migration.sql").write_text('CREATE TABLE "users" (id text PRIMARY KEY);\nDROP TABLE "sessions", "not_there";')
    done, told = deploy(legacy_database, schema_deploy_migrations_source=str(release))
    assert done.returncode != 0 and told is None
    assert f"Failed to apply migration {UNIFIED}: statement 2 (DROP TABLE, line 2) failed" in done.stdout
    assert tables(cluster, legacy_database) == 10
    assert list(Path(tmp_path / "tmp").glob("*.migrations")) == []


def test_release_without_the_unified_model(cluster, legacy_database, deploy, tmp_path):
    release = shutil.copytree(MIGRATIONS, tmp_path / "release")
    shutil.rmtree(release / UNIFIED)
    done, told = deploy(legacy_database, schema_deploy_migrations_path=str(release))
    assert done.returncode != 0 and told is None
    assert "makes table users (and 6 more). Set path to the release that has the unified model" in done.stdout


@pytest.mark.parametrize("both", [False, True], ids=["neither", "both"])
def test_migrations_in_one_place(legacy_database, deploy, both):
    places = {"schema_deploy_migrations_path": "/srv/a", "schema_deploy_migrations_source": "/srv/b"} if both else {}
    done, told = deploy(legacy_database, **places)
    assert done.returncode != 0 and told is None
    assert "set either schema_deploy_migrations_path" in " ".join(done.stdout.split())


def test_unknown_engine_is_refused_by_the_specification(legacy_database, deploy):
    done, told = deploy(legacy_database, schema_deploy_engine="magic", schema_deploy_migrations_path=str(MIGRATIONS))
    assert done.returncode != 0 and told is None
    assert "value of schema_deploy_engine must be one of: native" in done.stdout
