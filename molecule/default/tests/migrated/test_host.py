"""After the playbook ran twice: what it left on the host, and what it said where others may read it."""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest


def test_systemd_runs_the_server(host):
    assert host.process.get(pid=1).comm == "systemd"
    assert host.check_output("systemctl is-system-running") == "running"


def test_the_server_listens_on_loopback_only_and_asked_for_the_password(host, query, server_log, variables):
    listening = [socket for socket in host.socket.get_listening_sockets() if socket.endswith(":5432")]
    assert listening == ["tcp://127.0.0.1:5432"]
    user = variables["unified_user_login_user"]
    assert query(f"SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = '{user}'") == "t"
    assert re.search(rf'connection authenticated: identity="{user}" method=scram-sha-256', server_log)


def test_the_backup_is_there_for_its_owner_only(host, variables):
    directory = host.file(variables["backup_directory"])
    assert directory.is_directory
    assert directory.mode == 0o700
    files = [host.file(f"{directory.path}/{name}") for name in directory.listdir()]
    dumps = [file for file in files if variables["unified_user_login_db"] in file.basename]
    assert len(dumps) >= 1
    for file in files:
        assert file.mode == 0o600
        assert (file.user, file.size > 0) == (directory.user, True)


@pytest.fixture
def secrets_and_people(query, run_directory) -> list[str]:
    """The password of the run, every password hash and token in the database, every e-mail address."""
    columns = query("""SELECT table_name || '.' || column_name FROM information_schema.columns
                        WHERE table_schema = 'public' AND data_type = 'text' AND column_name ~* '(password|email|token)$'""").split()
    values = {(run_directory / "database_password").read_text()}
    for table, column in (name.split(".") for name in columns):
        values.update(query(f'SELECT DISTINCT btrim("{column}") FROM "{table}" WHERE length("{column}") >= 8').splitlines())
    assert len(values) > 500, "the reference case has more secrets and people than that"
    return sorted(values)


@pytest.mark.parametrize(
    ("where", "evidence"),
    [
        # Each with a word that shows that the right thing was looked through.
        ("journal", "ansible-rnltlabs.unified_user.unified_user_transform"),
        ("server's log", "statement: "),
        ("process list", "pg_dump "),
        ("playbook's output", "unified_user_transform"),
    ],
)
def test_secrets_and_people_stay_hidden(host, server_log, run_directory, secrets_and_people, where, evidence):
    text = {
        "journal": lambda: host.check_output("journalctl --no-pager --output=cat"),
        "server's log": lambda: server_log,
        "process list": lambda: host.file("/opt/reference/processes").content_string,
        "playbook's output": lambda: (run_directory / "ansible.log").read_text(encoding="utf-8"),
    }[where]()
    assert evidence in text
    found = [number for number, value in enumerate(secrets_and_people) if value in text]
    # The values themselves would be in this output, too.
    assert len(found) == 0, f"{len(found)} secrets or addresses are in the {where}"


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
