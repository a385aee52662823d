# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The role preflight and playbooks/preflight.yml: what the terminal shows, and when they stop."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.module_process import ROOT

ANSIBLE_PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")


@pytest.fixture
def doubled(cluster, reference_database):
    """The reference database with a person who registered twice."""
    with contextlib.closing(cluster.connect(reference_database)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO customers (id, name, email, \"updatedAt\") VALUES ('t1', 'N', 'twin@example.org', now()), ('t2', 'N', 'Twin@example.org', now())"
        )
    return reference_database


@pytest.fixture
def play(cluster, doubled, tmp_path):
    """Runs a playbook, given as its plays, on that database; returns its exit status, its output and the steps it recorded."""
    variables = {
        "ansible_connection": "local", "ansible_python_interpreter": sys.executable, "unified_user_login_db": doubled,
        "unified_user_login_unix_socket": str(cluster.host), "unified_user_login_port": cluster.port,
        "preflight_bin_dir": str(cluster.bin("pg_dump").parent),
    }  # fmt: skip
    (tmp_path / "hosts.yml").write_text(json.dumps({"database": {"hosts": {"localhost": variables}}}))

    def play(plays: list[dict], *arguments: str, **environment: str) -> tuple[int, str, list[dict]]:
        (tmp_path / "playbook.yml").write_text(json.dumps(plays))
        command = [str(ANSIBLE_PLAYBOOK), str(tmp_path / "playbook.yml"), "-i", str(tmp_path / "hosts.yml"), *arguments]
        done = subprocess.run(
            command, cwd=ROOT / "playbooks", capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0", **environment},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr, json.loads((tmp_path / "steps.json").read_text())

    return play


@pytest.fixture
def record(tmp_path):
    """A task that writes the recorded steps to a file."""
    return {"ansible.builtin.copy": {"content": "{{ unified_user_steps | to_json }}", "dest": str(tmp_path / "steps.json"), "mode": "0600"}}


def test_stops_at_blockers_after_showing_everything(play, record):
    role = {"ansible.builtin.import_role": {"name": "rnltlabs.unified_user.preflight"}}
    status, output, steps = play(
        [{"hosts": "database", "gather_facts": False, "tasks": [{"block": [role], "always": [record]}]}], ANSIBLE_CALLBACK_RESULT_FORMAT="json"
    )
    assert status == 2
    assert output.index("BLOCKER  duplicate_identities") < output.index("WARNING ") < output.index("INFO ") < output.index("Failed to pass preflight")
    assert "Set unified_user_duplicate_identities: merge" in output.partition("Failed to pass preflight")[2]
    assert "t***@example.org" in output and "twin@example.org" not in output.lower()
    (step,) = steps
    assert step["step"] == "preflight" and step["result"] == "failed" and step["detail"].startswith("blockers: 1, warnings: ")


def test_playbook_passes_once_the_blocker_is_decided(play, record):
    plays = [{"import_playbook": str(ROOT / "playbooks" / "preflight.yml")}, {"hosts": "database", "gather_facts": False, "tasks": [record]}]
    status, output, steps = play(plays, "-e", "unified_user_duplicate_identities=merge")
    assert status == 0, output
    assert "INFO     duplicate_identities" in output and "WARNING  bookings_joined_unverified" in output
    assert "Blockers: 0, warnings: 1. The copy of 682 rows needs about" in output
    assert "Next: ansible-playbook migrate.yml goes the whole path." in output
    lines = output.splitlines()
    first = next(number for number, line in enumerate(lines) if "SEVERITY FINDING" in line)
    last = next(number for number, line in enumerate(lines) if "Blockers: 0" in line)
    assert max(map(len, lines[first:last])) <= 132, "wide enough is not wider than a terminal"
    (step,) = steps
    assert step["step"] == "preflight" and step["result"] == "ok" and step["rows"] == 682 and step["duration_ms"] > 0
    assert step["detail"].startswith("blockers: 0, warnings: 1") and step["data"]["estimates"]["rows"] == 682
