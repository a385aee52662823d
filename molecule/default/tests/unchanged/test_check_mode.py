"""After the playbook ran with --check: nothing on the host is other than before."""

from __future__ import annotations

import json
import re

WRITES = re.compile(r"statement:\s+(INSERT|UPDATE|DELETE|MERGE|TRUNCATE|CREATE|ALTER|DROP|COPY|GRANT|REVOKE|COMMENT|LOCK|VACUUM)\b", re.IGNORECASE)


def test_the_database_is_the_same_to_the_byte(host, fingerprint):
    assert re.fullmatch(r"[0-9a-f]{64}", fingerprint)
    assert fingerprint == host.file("/opt/reference/fingerprint").content_string.strip()


def test_the_playbook_looked_and_wrote_nothing(server_log, variables):
    user, database = variables["unified_user_login_user"], variables["unified_user_login_db"]
    lines = [line for line in server_log.splitlines() if f" {user}@{database} " in line]
    assert any("statement:" in line and "SELECT" in line for line in lines), "check mode asked the database nothing"
    assert [line for line in lines if WRITES.search(line)] == []


def test_no_backup_was_made(host, variables):
    assert host.file(variables["backup_directory"]).listdir() == []


def test_the_report_is_a_plan(run_directory):
    report = json.loads((run_directory / "report.json").read_text(encoding="utf-8"))
    assert (report["check_mode"], report["complete"]) == (True, True)
    planned = [step["step"] for step in report["steps"] if step["result"] == "changed"]
    assert "schema_deploy" in planned
