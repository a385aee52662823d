# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The whole path as production goes it: the release's own Prisma brings the schema, and pgBackRest the way back.

One run of migrate.yml, another one, and rollback.yml, which the tests look at in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database

from tests.app.migration_history import migration_directories, unified_migration
from tests.app.prisma_cli import make_release, offline_environment
from tests.conftest import Templates
from tests.integration.repository import STANZA, repository
from tests.module_process import ROOT, connection_options
from tests.playbook_process import changed, inventory, run_playbook

STEPS = ["preflight", "migration_review", "backup", "restore_test", "rehearsal", "schema_deploy", "data_migration", "verification"]


class Site:
    """A server with a stanza, the application's database on it, a release beside it, and what the playbooks told."""

    def __init__(self, made, database: str, folder: Path):
        self.made, self.database, self.folder = made, database, folder
        self.report = folder / "report.json"
        options = made.options(database, folder / "backups")
        connection = {f"unified_user_{name}": value for name, value in connection_options(made.cluster, database).items()}
        self.hosts = inventory(folder, {
            **connection,
            "backup_engine": "pgbackrest", "backup_pgbackrest": options["pgbackrest"], "backup_directory": options["directory"],
            "backup_bin_dir": options["bin_dir"], "preflight_bin_dir": options["bin_dir"],
            "schema_deploy_engine": "prisma", "schema_deploy_release_directory": str(make_release(folder / "release")),
            "schema_deploy_environment": offline_environment(), "report_path": str(self.report),
        })  # fmt: skip

    def play(self, name: str, *arguments: str):
        return run_playbook(ROOT / "playbooks" / f"{name}.yml", self.hosts, *arguments, timeout=300)

    def value(self, statement: str, database: str | None = None):
        with contextlib.closing(Database(self.made.cluster.connect(database or self.database))) as session:
            return session.value(statement)

    def databases(self) -> list[str]:
        return self.value("SELECT array_agg(datname::text ORDER BY datname) FROM pg_database WHERE datname ~ '^t_'", "postgres")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with repository(f"migrate-{os.getpid()}") as made, Templates(made.cluster).database("legacy_reference") as database:
        yield Site(made, database, tmp_path_factory.mktemp("migrate"))


def test_copies_of_a_repository_are_refused_before_anything_is_taken(site):
    done = site.play("rehearse", "-e", json.dumps({"backup_copies": [{"kind": "path", "path": "/nowhere"}]}))
    assert done.returncode != 0 and "repo2-path" in done.stdout and "Take a backup" not in done.stdout, done.stdout


@pytest.fixture(scope="module")
def migrated(site):
    """What migrate.yml printed and reported."""
    # The rehearsal's tests compare the copy with the schema; here it is done once, by the second run.
    done = site.play("migrate", "-e", "schema_deploy_compare=false")
    assert done.returncode == 0, done.stdout
    return done, json.loads(site.report.read_text())


def test_prisma_and_pgbackrest_go_the_whole_path(site, migrated):
    done, report = migrated
    steps = {step["step"]: step for step in report["steps"]}
    assert list(steps) == STEPS and report["not_done"] == []
    assert steps["schema_deploy"]["data"]["engine"] == "prisma" and steps["schema_deploy"]["data"]["migrations"] == [unified_migration().name]
    assert site.value("SELECT array_agg(migration_name::text ORDER BY migration_name) FROM _prisma_migrations WHERE finished_at IS NOT NULL") == sorted(
        path.name for path in migration_directories()
    )
    assert (site.value("SELECT count(*) FROM users"), site.value("SELECT count(*) FROM new_bookings")) == (198, 312)
    assert site.value("SELECT count(*) FROM user_role_assignments") == 200
    assert site.databases() == [site.database], "the rehearsal's copy is gone"
    assert "longest lock" in done.stdout and "FORECAST" in done.stdout


def test_backup_is_a_set_of_pgbackrest_that_was_proven(site, migrated):
    _done, report = migrated
    steps = {step["step"]: step for step in report["steps"]}
    taken = steps["backup"]["data"]
    assert taken["format"] == "pgbackrest" and taken["restore_point"] in steps["backup"]["detail"] and "writers held up for" in steps["backup"]["detail"]
    assert f"--stanza={STANZA}" in taken["restore_command"]
    proof = json.loads(Path(taken["path"], "proof.json").read_text())
    assert proof["proven"] and proof["sha256"] == taken["sha256"] == steps["restore_test"]["data"]["backup"]["sha256"]
    assert Path(taken["path"], "rehearsal.json").exists(), "the copy of the rehearsal came out of it"


def test_second_run_changes_nothing_and_finds_what_schema_prisma_says(site, migrated):
    done = site.play("migrate")
    assert done.returncode == 0 and changed(done) == 0, done.stdout
    assert "TASK [rnltlabs.unified_user.schema_deploy : Require that they are equal]" in done.stdout


def test_rollback_takes_the_database_out_of_the_backup(site, migrated):
    with contextlib.closing(Database(site.made.cluster.connect(site.database))) as session:
        session.execute("UPDATE customers SET name = 'written since' WHERE id = (SELECT min(id) FROM customers)")
    done = site.play("rollback", "-e", "rollback_mode=restore", "-e", "rollback_confirmed=restore")
    assert done.returncode == 0, done.stdout
    assert migrated[1]["steps"][2]["data"]["restore_command"] in " ".join(done.stdout.split()), "the way back for the whole server is named"
    assert site.value("SELECT to_regclass('users')") is None
    assert site.value("SELECT count(*) FROM customers WHERE name = 'written since'") == 0
    (replaced,) = set(site.databases()) - {site.database}
    assert "_replaced_" in replaced
    assert site.value("SELECT count(*) FROM users", replaced) == 198
    assert site.value("SELECT count(*) FROM customers WHERE name = 'written since'", replaced) == 1
