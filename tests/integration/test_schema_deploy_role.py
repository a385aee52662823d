# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The role schema_deploy as an operator runs it: from a release on the host or from the controller, planned, twice, refused."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from tests.app.migration_history import MIGRATIONS, migration_directories
from tests.app.prisma_cli import PrismaCli, make_release, offline_environment
from tests.module_process import ROOT, connection_options
from tests.playbook_process import changed, inventory, run_playbook

# What is tested here does not depend on the server's version; what does is tested on every one elsewhere.
pytestmark = pytest.mark.one_major

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

    def run(dbname, *arguments, app_host=False, **variables):
        facts.unlink(missing_ok=True)
        connection = {f"unified_user_{name}": value for name, value in connection_options(cluster, dbname).items()}
        hosts = inventory(tmp_path, {**connection, "schema_deploy_engine": "native", **variables})
        if app_host:
            listed = json.loads(hosts.read_text())
            listed["all"]["children"]["app"] = {"hosts": {"app1": listed["all"]["children"]["database"]["hosts"]["localhost"]}}
            hosts.write_text(json.dumps(listed))
        done = run_playbook(playbook, hosts, *arguments)
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
    assert step["data"]["engine"] == "native"
    assert (step["step"], step["result"], step["rows"], told["pending"]) == ("schema_deploy", "changed", None, False)
    assert step["detail"] == f"applied 1 of 7 migrations, the last {UNIFIED}"
    assert step["duration_ms"] > 0 and step["data"]["migrations"] == [UNIFIED]
    assert tables(cluster, legacy_database) == 19

    again, told = deploy(legacy_database, **path)
    assert (again.returncode, changed(again)) == (0, 0), again.stdout
    assert (told["steps"][0]["result"], told["steps"][0]["detail"]) == ("ok", "up to date: 7 migrations")


def test_from_the_controller(cluster, database, deploy):
    """Where controller and database host are one, nothing is copied."""
    done, told = deploy(database, schema_deploy_migrations_source=str(MIGRATIONS))
    assert (done.returncode, changed(done)) == (0, 1), done.stdout
    assert told["steps"][0]["data"] == {"engine": "native", "migrations": NAMES}
    assert tables(cluster, database) == 19


def test_from_another_host(cluster, database, deploy, monkeypatch, tmp_path):
    """The copy is made for the run and gone afterwards, in check mode, too."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    release = tmp_path / "a release"
    shutil.copytree(MIGRATIONS, release / "prisma" / "migrations")
    source = {"schema_deploy_release_directory": str(release)}
    planned, told = deploy(database, "--check", "--verbose", app_host=True, **source)
    assert (planned.returncode, changed(planned), told["pending"]) == (0, 1, True), planned.stdout
    assert f"{tmp_path}/tmp/" in planned.stdout, "the copy was elsewhere"
    assert tables(cluster, database) == 0
    done, told = deploy(database, app_host=True, **source)
    assert (done.returncode, changed(done)) == (0, 1), done.stdout
    assert told["steps"][0]["data"]["migrations"] == NAMES
    assert tables(cluster, database) == 19
    assert list(Path(tmp_path / "tmp").glob("*.migrations")) == []


def test_refusal_stops_the_play_and_leaves_no_copy(cluster, legacy_database, deploy, monkeypatch, tmp_path):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    release = shutil.copytree(MIGRATIONS, tmp_path / "release")
    (release / UNIFIED / "migration.sql").write_text('CREATE TABLE "users" (id text PRIMARY KEY);\nDROP TABLE "sessions", "not_there";')
    (tmp_path / "prisma").mkdir()
    release.rename(tmp_path / "prisma" / "migrations")
    done, told = deploy(legacy_database, schema_deploy_release_directory=str(tmp_path), app_host=True)
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
    assert "either schema_deploy_migrations_path (on the database host)" in " ".join(done.stdout.split())


def test_unknown_engine_is_refused_by_the_specification(legacy_database, deploy):
    done, told = deploy(legacy_database, schema_deploy_engine="magic", schema_deploy_migrations_path=str(MIGRATIONS))
    assert done.returncode != 0 and told is None
    assert "value of schema_deploy_engine must be one of: prisma, native" in done.stdout


# --- the release's own Prisma


@pytest.fixture
def release(tmp_path):
    """A release with its CLI, as it lies on an application's host."""
    return make_release(tmp_path / "release")


@pytest.fixture
def by_prisma(cluster, deploy, release):
    """Runs the role with the release's CLI, over TCP with a password that a URL cannot hold as it stands."""
    environment = {**offline_environment(), "UNUSED": "1"}

    def run(dbname, *arguments, **variables):
        return deploy(
            dbname, *arguments, app_host=True,
            **{
                "schema_deploy_engine": "prisma", "schema_deploy_release_directory": str(release), "schema_deploy_environment": environment,
                **variables,
            },
        )

    return run


def execute(cluster, dbname, statement):
    with contextlib.closing(cluster.connect(dbname)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)


def add_migration(release, script, name="20251201000000_later"):
    directory = release / "prisma" / "migrations" / name
    directory.mkdir()
    (directory / "migration.sql").write_text(script)
    return name


def plain(done):
    """What was printed, without the line breaks that the terminal's width makes."""
    return " ".join(done.stdout.replace("\\n", " ").split())


def test_prisma_planned_deployed_and_done(cluster, legacy_database, by_prisma, release):
    planned, told = by_prisma(legacy_database, "--check")
    assert (planned.returncode, changed(planned), told["pending"]) == (0, 1, True), planned.stdout
    assert tables(cluster, legacy_database) == 10

    done, told = by_prisma(legacy_database)
    assert done.returncode == 0 and told["pending"] is False, done.stdout
    assert told["steps"][0]["detail"] == f"applied 1 of 7 migrations, the last {UNIFIED}"
    assert told["steps"][0]["data"] == {"engine": "prisma", "migrations": [UNIFIED]}
    assert tables(cluster, legacy_database) == 19
    assert (release / "node_modules" / ".prisma" / "client" / "schema.prisma").is_file()

    again, told = by_prisma(legacy_database)
    assert (again.returncode, changed(again), told["steps"][0]["detail"]) == (0, 0, "up to date: 7 migrations"), again.stdout
    name = add_migration(release, 'CREATE TABLE "news" ("id" TEXT PRIMARY KEY);')
    native, told = by_prisma(legacy_database, schema_deploy_engine="native")
    assert native.returncode == 0 and told["steps"][0]["data"] == {"engine": "native", "migrations": [name]}, "it goes on where Prisma was"


def test_prisma_after_native_half_way(cluster, database, deploy, by_prisma, release):
    half = release.parent / "half"
    shutil.copytree(MIGRATIONS, half)
    for name in NAMES[3:]:
        shutil.rmtree(half / name)
    done, _told = deploy(database, schema_deploy_migrations_path=str(half))
    assert done.returncode != 0 and "makes table users" in done.stdout, "it ends there, with three migrations applied"
    done, told = by_prisma(database)
    assert done.returncode != 0 and 'what was there before: column "explicitHealthConsent" of bookings' in plain(done), done.stdout
    again, told = by_prisma(database)
    assert again.returncode == 0 and told["steps"][0]["detail"] == "up to date: 7 migrations", again.stdout
    assert PrismaCli(cluster, database, release / "prisma").run("migrate", "status").returncode == 0


def test_prisma_fails_in_the_middle_of_a_file(cluster, legacy_database, by_prisma, deploy, release):
    """Half of it stays with this engine: recognised, explained, and the way out that is named works."""
    name = add_migration(release, "CREATE TABLE half (id int);\nINSERT INTO half VALUES (1/0);")
    done, told = by_prisma(legacy_database)
    assert done.returncode != 0 and told is None
    assert f"a migration failed (Prisma's P3018, {name}, division by zero)" in plain(done)
    assert f"How much there is of {name}: everything that it makes or takes away and the catalogue tells is as after it: table half" in plain(done)
    assert f"resolve_migration.yml -e schema_deploy_resolve_migration={name} with -e schema_deploy_resolution=rolled_back" in plain(done)

    again, _told = by_prisma(legacy_database)
    assert again.returncode != 0 and "(Prisma's P3009)" in plain(again) and "table half" in plain(again)
    native, _told = by_prisma(legacy_database, schema_deploy_engine="native")
    assert native.returncode != 0 and "(Prisma's P3009)" in plain(native)

    variables = {
        **{f"unified_user_{key}": value for key, value in connection_options(cluster, legacy_database).items()},
        "schema_deploy_release_directory": str(release), "schema_deploy_resolve_migration": name,
    }
    playbook = ROOT / "playbooks" / "resolve_migration.yml"
    refused = run_playbook(playbook, inventory(release.parent, variables))
    assert refused.returncode != 0 and "that is not true: table half came of it" in plain(refused)
    execute(cluster, legacy_database, "DROP TABLE half")
    planned = run_playbook(playbook, inventory(release.parent, variables), "--check")
    assert planned.returncode == 0 and changed(planned) == 1 and f"sets rolled_back_at of the failed record of {name}" in plain(planned)
    assert run_playbook(playbook, inventory(release.parent, variables)).returncode == 0
    (release / "prisma" / "migrations" / name / "migration.sql").write_text("SELECT 1;")
    done, told = by_prisma(legacy_database)
    assert done.returncode == 0 and told["steps"][0]["data"]["migrations"] == [name], done.stdout


def test_an_edited_migration_is_found_before_prisma_is_run(cluster, unified_database, by_prisma, release):
    """Prisma itself would not notice it."""
    script = release / "prisma" / "migrations" / NAMES[0] / "migration.sql"
    script.write_text(script.read_text() + "-- edited\n")
    done, told = by_prisma(unified_database)
    assert done.returncode != 0 and told is None and "was changed after it was applied" in plain(done), done.stdout


def test_prisma_s_lock_held_elsewhere(cluster, legacy_database, by_prisma):
    with contextlib.closing(cluster.connect(legacy_database, application_name="another deploy")) as other, other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(72707369)")
        done, told = by_prisma(legacy_database)
    assert done.returncode != 0 and told is None
    assert "another deployment holds Prisma's lock" in plain(done) and "(another deploy, idle for" in plain(done)
    assert tables(cluster, legacy_database) == 10


def test_prisma_does_not_queue_the_application_behind_its_locks(cluster, legacy_database, by_prisma):
    """A reader of a referenced table holds up the migration; lock_timeout ends it, nothing of that statement is there."""
    with contextlib.closing(cluster.connect(legacy_database)) as reader, reader.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE studios IN ROW EXCLUSIVE MODE")
        done, _told = by_prisma(legacy_database, schema_deploy_lock_timeout=200)
    assert done.returncode != 0 and "canceling statement due to lock timeout" in plain(done), done.stdout
    assert f"How much there is of {UNIFIED}: of it type" in plain(done)


def test_drift_is_told(cluster, unified_database, by_prisma):
    execute(cluster, unified_database, 'ALTER TABLE users ALTER COLUMN "isActive" DROP DEFAULT; CREATE TABLE stray (id int PRIMARY KEY)')
    done, told = by_prisma(unified_database)
    assert done.returncode != 0 and told is None
    assert "the database is not what prisma/schema.prisma of" in plain(done) and "isActive" in plain(done) and "stray" in plain(done)


def test_prisma_that_changes_what_was_there_is_told(cluster, legacy_database, by_prisma, release):
    add_migration(release, 'ALTER TABLE "studios" ADD COLUMN "colour" TEXT;')
    done, told = by_prisma(legacy_database)
    assert done.returncode != 0 and told is None
    assert "the migrations changed what was there before: column colour of studios" in plain(done)


def test_password_reaches_the_cli_and_nothing_else(cluster, legacy_database, by_prisma, secret):
    """Over TCP, with characters that a URL must encode; it is in no output and in no process list."""
    password = secret("role") + "/@:%# ?&"
    with contextlib.closing(cluster.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_roles WHERE rolname = 'odd @ role'")
        if not cursor.fetchone()[0]:
            cursor.execute('CREATE ROLE "odd @ role" SUPERUSER LOGIN')
        cursor.execute('ALTER ROLE "odd @ role" PASSWORD %s', (password,))
    variables = {
        "unified_user_login_host": cluster.tcp_host, "unified_user_login_unix_socket": "", "unified_user_login_user": "odd @ role",
        "unified_user_login_password": password,
    }
    with processes_watched(password) as seen:
        done, told = by_prisma(legacy_database, "-vvv", **variables)
    assert done.returncode == 0, done.stdout
    assert told["steps"][0]["result"] == "changed"
    assert password not in done.stdout and quote(password, safe="") not in done.stdout
    assert seen == []


@contextlib.contextmanager
def processes_watched(password):
    """Collects the command lines of all processes that hold the password, plain or encoded, while the block runs."""
    found, over = [], threading.Event()

    def look():
        while not over.wait(0.1):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    line = file.read_bytes().decode(errors="replace")
                    if password in line or quote(password, safe="") in line:
                        found.append(line)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
