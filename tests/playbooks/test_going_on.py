# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A migration that stopped half-way, gone on with by the same command: migrate.yml from its first step on."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database

from tests.app.migration_history import MIGRATIONS
from tests.integration.test_sync import WRITES
from tests.module_process import ROOT, connection_options
from tests.playbook_process import changed, inventory, run_playbook


@pytest.mark.one_major
def test_an_online_migration_that_stopped_is_gone_on_with(cluster, legacy_reference_database, tmp_path):
    connection = {f"unified_user_{name}": value for name, value in connection_options(cluster, legacy_reference_database).items()}
    programs = str(Path(cluster.bin("pg_dump")).parent)
    hosts = inventory(tmp_path, {
        **connection, "backup_directory": str(tmp_path / "backups"), "backup_bin_dir": programs, "preflight_bin_dir": programs,
        "backup_minimum_bytes": 1000, "schema_deploy_engine": "native", "schema_deploy_migrations_path": str(MIGRATIONS),
        "data_migration_strategy": "online", "data_migration_throttle_replica_lag": 0, "report_path": str(tmp_path / "report.json"),
    })  # fmt: skip

    def migrate(*arguments: str):
        return run_playbook(ROOT / "playbooks" / "migrate.yml", hosts, *arguments)

    stopped = migrate("-e", json.dumps({"data_migration_throttle_query": "SELECT misspelt"}))
    assert stopped.returncode != 0 and "throttle" in stopped.stdout, stopped.stdout
    with contextlib.closing(Database(cluster.connect(legacy_reference_database))) as application:
        # The sync is on: whoever is new is carried at once, so that the unified tables are not empty any more.
        application.execute("SET search_path = public")
        application.execute(WRITES["sign-up of a customer"])
        assert application.value("SELECT count(*) FROM users") == 1

        planned = migrate("--check")
        assert planned.returncode == 0 and changed(planned) > 0, planned.stdout
        done = migrate()
        assert done.returncode == 0, done.stdout
        steps = {step["step"]: step for step in json.loads((tmp_path / "report.json").read_text())["steps"]}
        assert "begun" in steps["rehearsal"]["detail"], "it would be rehearsed from the middle of a run"
        assert application.value("SELECT count(*) FROM users") == 199
        assert application.value("SELECT state FROM unified_user_journal.run") == "finished"
