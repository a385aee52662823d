"""How the tests look at the hosts of this run: over SSH, as the operator's account, with sudo."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import testinfra


@pytest.fixture(scope="session")
def run_directory() -> Path:
    """The directory of this run: keys, inventory, logs."""
    return Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])


@pytest.fixture(scope="session")
def host(run_directory):
    """The database host, as root."""
    return testinfra.get_host(f"ssh://database1?ssh_config={run_directory}/ssh_config&sudo=True")


@pytest.fixture(scope="session")
def variables(run_directory) -> dict:
    """What the inventory says about the database host; values with templates stand as they are written."""
    command = ["ansible-inventory", "--inventory", str(run_directory / "inventory"), "--host", "database1"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="session")
def query(run_directory, variables):
    """Runs a statement as the server's superuser, with psql on the host itself, and returns the lines it prints."""
    postgres = testinfra.get_host(f"ssh://database1?ssh_config={run_directory}/ssh_config&sudo=True&sudo_user=postgres")

    def ask(statement: str) -> list[str]:
        command = ["psql", "--no-psqlrc", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"]
        command += [f"--dbname={variables['unified_user_login_db']}", f"--command={statement}"]
        return postgres.check_output(shlex.join(command)).splitlines()

    return ask


@pytest.fixture(scope="session")
def fingerprint(host, variables) -> str:
    """The database's fingerprint as it is now."""
    return host.check_output("sudo -u postgres sh /opt/reference/fingerprint.sh %s", variables["unified_user_login_db"])


@pytest.fixture(scope="session")
def server_log(host, query) -> str:
    """The log of the PostgreSQL server."""
    major = int(query("SHOW server_version_num")[0]) // 10000
    return host.file(f"/var/log/postgresql/postgresql-{major}-main.log").content_string
