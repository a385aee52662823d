"""After the playbook ran twice: what it left on the host, and what it said where others may read it."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

STEPS = ["preflight", "migration_review", "backup", "restore_test", "rehearsal", "schema_deploy", "data_migration", "verification"]


def test_systemd_runs_the_server(host):
    assert host.process.get(pid=1).comm == "systemd"
    assert host.check_output("systemctl is-system-running") == "running"


def test_the_server_listens_on_loopback_only_and_asked_for_the_password(host, query, server_log, variables):
    listening = [socket for socket in host.socket.get_listening_sockets() if socket.endswith(":5432")]
    assert listening == ["tcp://127.0.0.1:5432"]
    user = variables["unified_user_login_user"]
    assert query(f"SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = '{user}'") == ["t"]
    assert re.search(rf'connection authenticated: identity="{user}" method=scram-sha-256', server_log)


def test_the_backup_is_there_for_its_owner_only(host, variables):
    directory = variables["backup_directory"]
    found = [line.split(" ", 3) for line in host.check_output("find %s -printf '%%y %%m %%u %%P\\n'", directory).splitlines()]
    dumps = [path for kind, _mode, _owner, path in found if kind == "d" and path.startswith(variables["unified_user_login_db"] + "-")]
    assert len([path for path in dumps if "/" not in path]) == 1, "one backup was taken, and the second run took no other"
    assert {(kind, mode, owner) for kind, mode, owner, _path in found} == {("d", "700", "deploy"), ("f", "600", "deploy")}


def test_the_report_says_that_every_step_is_done(run_directory):
    report = json.loads((run_directory / "report.json").read_text(encoding="utf-8"))
    assert report["complete"]
    assert [step["step"] for step in report["steps"]] == STEPS
    assert {step["result"] for step in report["steps"]} <= {"ok", "skipped"}, "the second run changes nothing"


@pytest.fixture(scope="module")
def secrets_and_people(query, run_directory) -> set[str]:
    """The password of the run, every password hash and token in the database, every e-mail address."""
    columns = query(
        """SELECT table_name || '.' || column_name FROM information_schema.columns
            WHERE table_schema = 'public' AND data_type = 'text' AND column_name ~* '(password|email|token)$'"""
    )
    parts = [f'SELECT btrim("{column}") AS v FROM "{table}"' for table, column in (name.split(".") for name in columns)]
    values = set(query(f"SELECT v FROM ({' UNION '.join(parts)}) AS all_values WHERE length(v) >= 8"))
    assert len(values) > 500, "the reference case has more secrets and people than that"
    return values | {(run_directory / "database_password").read_text(encoding="utf-8")}


@pytest.mark.parametrize(
    ("where", "evidence"),
    [
        # Each with words that show that the right thing was looked through.
        ("journal", "unified_user_transform"),
        ("log of the server", "INSERT INTO"),
        ("process list", "pg_dump --format=directory"),
        ("playbook's output", "unified_user_transform"),
    ],
)
def test_secrets_and_people_stay_hidden(host, server_log, run_directory, secrets_and_people, where, evidence):
    text = {
        "journal": lambda: host.check_output("journalctl --no-pager --output=short"),
        "log of the server": lambda: server_log,
        "process list": lambda: host.file("/opt/reference/processes").content_string,
        # At the verbosity of -vvvv.
        "playbook's output": lambda: (run_directory / "ansible.log").read_text(encoding="utf-8"),
    }[where]()
    # Numbers only: a failure must not print what it found.
    seen, found = evidence in text, sum(value in text for value in secrets_and_people)
    assert seen, f"the {where} does not hold {evidence}: it is not the whole one"
    assert found == 0, f"{found} secrets or addresses are in the {where}"


def test_a_python_without_psycopg2_is_named(run_directory):
    interpreter = "/opt/python-without-psycopg2/bin/python"
    command = ["ansible", "database1", "--inventory", str(run_directory / "inventory")]
    command += ["--module-name", "rnltlabs.unified_user.unified_user_info", "--args", "login_db=any"]
    done = subprocess.run(
        [*command, "--extra-vars", json.dumps({"ansible_python_interpreter": interpreter})],
        capture_output=True, text=True, check=False, env={**os.environ, "ANSIBLE_LOG_PATH": ""},
    )
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "psycopg2" in output
    assert interpreter in output
    assert "Traceback" not in output
