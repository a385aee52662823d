"""What a stranger sees: the demo migrates the reference case, shows the exact numbers, and changes nothing when run again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import demo
import embedded_postgres
import pytest
import yaml

ROOT = embedded_postgres.ROOT
LOGS = ROOT / ".cache" / "test-output" / "playbooks"

# The contract's reference case.
NUMBERS = {
    "users": ("SELECT count(*) FROM users", 198),
    "role assignments": ("SELECT count(*) FROM user_role_assignments", 200),
    "ownerships": ("SELECT count(*) FROM studio_ownership", 47),
    "bookings": ("SELECT count(*) FROM new_bookings", 312),
    "orphans": ('SELECT count(*) FROM new_bookings b LEFT JOIN users u ON u.id = b."customerId" WHERE u.id IS NULL', 0),
}


class Demo:
    """The demo with a server and a directory of its own."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.name = f"demo-test-{os.getpid()}"
        self.environment = {**os.environ, "UNIFIED_USER_DEMO_DIRECTORY": str(directory), "UNIFIED_USER_DEMO_CLUSTER": self.name}
        self.cluster = embedded_postgres.Cluster(demo.MAJOR, self.name, keep=True)

    def run(self, *arguments: str, log: str) -> subprocess.CompletedProcess:
        """Runs the demo's program; what it prints is kept for the secret scan."""
        command = [sys.executable, str(ROOT / "tools" / "demo.py"), *arguments]
        done = subprocess.run(
            command, env={**self.environment, "ANSIBLE_NOCOLOR": "1"}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300
        )
        LOGS.mkdir(parents=True, exist_ok=True)
        (LOGS / f"{log}.log").write_text(done.stdout + done.stderr)
        return done


@pytest.fixture(scope="module")
def its_demo(tmp_path_factory):
    own = Demo(tmp_path_factory.mktemp("demo"))
    yield own
    own.cluster.stop()
    own.cluster.remove()


@pytest.fixture(scope="module")
def rehearsed(its_demo):
    """The demo from scratch, and only rehearsed."""
    return its_demo.run("run", "--playbook", "rehearse", log="demo-rehearsal")


@pytest.fixture(scope="module")
def runs(its_demo, rehearsed):
    """The demo after it was rehearsed, then again."""
    return its_demo.run("run", log="demo-first"), its_demo.run("run", log="demo-second")


def recap(done: subprocess.CompletedProcess) -> dict[str, int]:
    line = next(line for line in done.stdout.splitlines() if re.match(r"localhost\s+: ok=", line))
    return {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", line)}


def test_rehearsal_prints_the_forecast_and_the_real_run_is_shown_against_it(rehearsed, runs):
    assert rehearsed.returncode == 0, rehearsed.stdout + rehearsed.stderr
    forecast = rehearsed.stdout.partition("FORECAST           SECONDS")[2]
    assert re.match(r"\s+restore +\d+\.\d\s+schema_deploy +\d+\.\d\s+data_migration +\d+\.\d\s+verification +\d+\.\d\s+rollback +\d+\.\d\s", forecast)
    assert re.search(r"longest lock +\d+\.\d  \(the legacy tables take no writes that long\)", forecast)
    assert "nothing outside the unified tables changed" in forecast
    shown = runs[0].stdout.partition("SECONDS FORECAST  WHAT")[2]
    for step in ("schema_deploy", "data_migration", "verification"):
        assert re.search(rf"{step} +\w+ +\d* +\d+\.\d +\d+\.\d  ", shown), f"{step} has its duration and the forecast of it"


def test_migrates_the_reference_case_without_a_failure(runs):
    first = runs[0]
    assert first.returncode == 0, first.stdout + first.stderr
    assert recap(first)["failed"] == 0
    assert recap(first)["changed"] > 0


@pytest.mark.parametrize("what", NUMBERS)
def test_database_holds_the_contracts_numbers(runs, its_demo, what):
    query, number = NUMBERS[what]
    with its_demo.cluster as cluster, contextlib.closing(cluster.connect(demo.DATABASE)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        assert cursor.fetchone()[0] == number


def test_every_write_of_the_live_application_is_found(runs):
    told = re.findall(r"made (\d+) writes (.*); (\d+) of them are on the other side, (\d+) were refused", runs[0].stdout)
    assert [when for _made, when, _found, _refused in told] == ["while it was migrated", "on both sides since"]
    assert all(int(made) > 10 and made == found and refused == "0" for made, _when, found, refused in told), told


def test_second_run_changes_nothing(runs):
    second = runs[1]
    assert second.returncode == 0, second.stdout + second.stderr
    assert recap(second)["changed"] == 0
    assert "is there already" in second.stdout


def test_shows_the_numbers_and_where_to_look(runs):
    first = runs[0]
    assert "198 users, 200 role" in first.stdout
    assert "make psql" in first.stdout
    assert "report.json" in first.stdout


def test_report_names_every_step(runs, its_demo):
    report = json.loads((its_demo.directory / "report.json").read_text())
    names = [step["step"] for step in report["steps"]]
    assert names == ["preflight", "migration_review", "backup", "restore_test", "rehearsal", "schema_deploy", "data_migration", "verification"]


def test_server_ends_with_the_demo(runs, its_demo):
    assert not its_demo.cluster.running


def test_password_is_in_a_closed_file_and_nowhere_else(runs, its_demo):
    path = its_demo.directory / "connection.yml"
    assert path.stat().st_mode & 0o077 == 0
    password = yaml.safe_load(path.read_text())["password"]
    assert len(password) > 16
    for done in runs:
        assert password not in done.stdout + done.stderr
    assert password not in its_demo.cluster.log_file.read_text()


def test_psql_opens_the_demos_database_and_ends_its_server(runs, its_demo):
    done = its_demo.run("psql", "--", "-Atc", "SELECT count(*) FROM users", log="demo-psql")
    assert done.stdout == "198\n"
    assert not its_demo.cluster.running


def dump(cluster) -> str:
    command = [str(cluster.bin("pg_dump")), "-h", cluster.host, "-p", str(cluster.port), "-U", cluster.user, demo.DATABASE]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # pg_dump protects psql by a key that is new every time.
    return "\n".join(line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


def test_check_mode_plans_and_changes_nothing(tmp_path):
    checked = Demo(tmp_path / "check")
    checked.cluster = embedded_postgres.Cluster(demo.MAJOR, f"{checked.name}-check", keep=True)
    checked.environment["UNIFIED_USER_DEMO_CLUSTER"] = checked.cluster.name
    try:
        with checked.cluster as cluster:
            demo.role_password(cluster)
            demo.make_database(cluster)
            before = dump(cluster)
            assert "studio_owners" in before
        done = checked.run("run", "--", "--check", "--diff", log="demo-check")
        assert done.returncode == 0, done.stdout + done.stderr
        assert recap(done)["changed"] > 0, "it says what it would change"
        with checked.cluster as cluster:
            assert dump(cluster) == before
            with contextlib.closing(cluster.connect()) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT array_agg(datname::text ORDER BY datname) FROM pg_database WHERE NOT datistemplate")
                assert cursor.fetchone()[0] == [demo.DATABASE, "postgres"]
        assert not list(checked.directory.glob("backups/*"))
    finally:
        checked.cluster.stop()
        checked.cluster.remove()


def test_psql_before_the_demo_says_what_to_do(tmp_path):
    other = Demo(tmp_path)
    other.cluster = embedded_postgres.Cluster(demo.MAJOR, f"{other.name}-empty", keep=True)
    other.environment["UNIFIED_USER_DEMO_CLUSTER"] = other.cluster.name
    try:
        done = other.run("psql", log="demo-psql-too-early")
        assert done.returncode == 1
        assert "Run make demo first" in done.stderr
    finally:
        other.cluster.remove()
