# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The rehearsal on real servers: the whole way on a copy, what stops it, what interrupts it, and that nothing real is touched."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal, _rehearsal_copy, _scratch
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import read_schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._rehearsal_writes import Writes
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options

from tests.app.migration_history import MIGRATIONS, apply_migrations, unified_migration
from tests.app.prisma_cli import make_release, offline_environment
from tests.module_process import ROOT, ModuleProcess, connection_options, run_module
from tests.playbook_process import changed, inventory, run_playbook

LATER = "20251102000000_later"


class Stage:
    """A live database with a proven backup, and a release whose migrations are pending."""

    def __init__(self, cluster, name: str, folder: Path):
        self.cluster, self.name, self.folder = cluster, name, folder
        self.copy = f"{name}_rehearsal"
        self.migrations = folder / "migrations"
        shutil.copytree(MIGRATIONS, self.migrations)
        self.connection = connection_options(cluster, name)
        self.files = {"directory": str(folder / "backups"), "bin_dir": str(Path(cluster.bin("pg_dump")).parent)}
        self.options = {**self.connection, **self.files, "migrations_path": str(self.migrations)}

    def back_up(self) -> None:
        self.backup = Path(succeed(run_module("database_backup", {**self.connection, **self.files}))["path"])
        succeed(run_module("database_restore", {**self.connection, **self.files}))

    def rehearse(self, **options) -> dict:
        return run_module("unified_user_rehearsal", {**self.options, **options})

    def add_migration(self, script: str) -> None:
        (self.migrations / LATER).mkdir()
        (self.migrations / LATER / "migration.sql").write_text(script)

    def query(self, statement: str, database: str | None = None):
        with contextlib.closing(Database(self.cluster.connect(database or self.name))) as session:
            return session.value(statement)

    def execute(self, statement: str, database: str | None = None) -> None:
        with contextlib.closing(Database(self.cluster.connect(database or self.name))) as session:
            session.execute(statement)

    def databases(self) -> list[str]:
        names = self.query(f"SELECT array_agg(datname::text) FROM pg_database WHERE starts_with(datname, '{self.name}')")
        return sorted(name.removeprefix(self.name) for name in names)

    def contents(self) -> str:
        """All of the live database, as pg_dump tells it."""
        command = [str(self.cluster.bin("pg_dump")), "-h", str(self.cluster.host), "-p", str(self.cluster.port), "-U", self.cluster.user, self.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        # pg_dump protects psql by a key that is new every time.
        return "\n".join(line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


def succeed(result: dict) -> dict:
    assert not result.get("failed"), result["msg"]
    return result


def refuse(result: dict, *words: str) -> str:
    assert result.get("failed"), result
    for word in ("Failed to ", *words):
        assert word in result["msg"], result["msg"]
    return result["msg"]


@pytest.fixture
def stage(cluster, legacy_reference_database, tmp_path):
    """The reference case before its migration, backed up."""
    stage = Stage(cluster, legacy_reference_database, tmp_path)
    stage.back_up()
    yield stage
    cluster.drop_database(stage.copy)


@pytest.mark.one_major
def test_a_migration_that_has_begun_is_not_rehearsed(stage):
    with contextlib.closing(Database(stage.cluster.connect(stage.name))) as session:
        _journal.create(session)
        _journal.start_run(session, "online", "public", {}, {})
    refuse(stage.rehearse(), "it has begun", "playbooks/abort.yml")
    assert stage.databases() == [""]


@pytest.mark.parametrize("strategy", ["atomic", "online"])
def test_goes_the_whole_way_and_leaves_only_the_forecast(stage, strategy):
    before = stage.contents()
    done = succeed(stage.rehearse(strategy=strategy))
    assert (done["changed"], done["finished"], done["kept"], done["dropped_leftover"]) == (True, False, False, False)
    assert stage.databases() == [""] and stage.contents() == before

    forecast = json.loads((stage.backup / "rehearsal.json").read_text())
    assert forecast == done["forecast"] and done["forecast_path"] == str(stage.backup / "rehearsal.json")
    assert forecast["backup"]["sha256"] == json.loads((stage.backup / "manifest.json").read_text())["sha256"]
    script = (unified_migration() / "migration.sql").read_bytes()
    assert forecast["migrations"] == [{"name": unified_migration().name, "checksum": hashlib.sha256(script).hexdigest()}]
    # 198 and 312 of the reference case, and those of the writes before the copy: one who signed up, one guest, two bookings.
    assert (forecast["counts"]["users"], forecast["counts"]["new_bookings"]) == (200, 314)
    assert list(forecast["steps_ms"]) == ["restore", "schema_deploy", "data_migration", "verification", "rollback"]
    assert 0 < forecast["longest_lock_ms"] <= forecast["steps_ms"]["data_migration"]
    assert len(forecast["writes"]) == 8
    assert (stage.backup / "rehearsal.json").stat().st_mode & 0o077 == 0


@pytest.mark.one_major
def test_check_mode_only_looks(stage):
    done = succeed(stage.rehearse(_ansible_check_mode=True))
    assert done["planned"] and stage.databases() == [""]
    assert not (stage.backup / "rehearsal.json").exists()


@pytest.mark.one_major
def test_a_kept_copy_is_gone_back_and_holds_the_writes(stage):
    done = succeed(stage.rehearse(keep=True))
    assert done["kept"] and done["target"] == stage.copy and stage.databases() == ["", "_rehearsal"]
    assert stage.query("SELECT count(*) FROM users", stage.copy) == 0
    assert stage.query("SELECT count(*) FROM customers WHERE starts_with(id, 'rehearsal-')", stage.copy) == 1
    assert stage.query("SELECT count(*) FROM bookings WHERE starts_with(id, 'rehearsal-')", stage.copy) == 2
    assert stage.query("SELECT count(*) FROM customers WHERE name ~ '^Rehearsal .'", stage.copy) == 1
    assert succeed(stage.rehearse())["dropped_leftover"]
    assert stage.databases() == [""]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("ALTER TABLE customers ADD COLUMN nickname TEXT;", ("rehearse schema_deploy", "customers")),
        ("ALTER TABLE email_verification_tokens ADD COLUMN tries INTEGER;", ("column public.email_verification_tokens.tries (added)",)),
        ("CREATE INDEX later ON verification_tokens (expires);", ("index public.later (added)",)),
        ("ALTER TYPE \"BookingStatus\" ADD VALUE 'NO_SHOW';", ("BookingStatus",)),
        ("CREATE TABLE news (id TEXT PRIMARY KEY);", ("table public.news (added)",)),
        ("INSERT INTO verification_tokens VALUES ('a@example.invalid', 'x', now());", ("rows outside the unified tables", "verification_tokens")),
    ],
    ids=["legacy column", "other column", "index", "enum", "table", "rows"],
)
@pytest.mark.one_major
def test_a_migration_that_changes_more_than_the_unified_tables_stops_it(stage, script, words):
    stage.add_migration(script)
    message = refuse(stage.rehearse(), *words, f"Database {stage.name} was not touched")
    assert stage.copy in message and stage.databases() == [""]
    assert not (stage.backup / "rehearsal.json").exists()


OUTSIDE = """
CREATE TABLE news (id SERIAL PRIMARY KEY, "customerId" TEXT REFERENCES customers (id));
INSERT INTO news DEFAULT VALUES;
CREATE INDEX "Later" ON verification_tokens (expires);
ALTER TABLE email_verification_tokens ADD COLUMN "How Often" INTEGER NOT NULL DEFAULT 1;
DELETE FROM verification_tokens;
"""
ACCEPTED = [
    {"kind": "table", "name": "public.news", "change": "added", "reason": "of the release before"},
    {"kind": "index", "name": 'public."Later"', "change": "added", "reason": "wanted"},
    {"kind": "column", "name": 'public.email_verification_tokens."How Often"', "change": "added", "reason": "has a default"},
    {"kind": "rows", "name": "public.verification_tokens", "change": "altered", "reason": "all have expired"},
]


@pytest.mark.one_major
def test_what_is_accepted_by_name_passes_and_is_told_with_its_reason(stage):
    stage.add_migration(OUTSIDE)
    stage.execute("INSERT INTO verification_tokens VALUES ('a@example.invalid', 'x', now())")
    stage.execute("INSERT INTO email_verification_tokens VALUES ('1', 'b', 'y', now())")
    stage.back_up()
    never = {"kind": "index", "name": "public.never", "change": "added", "reason": "gone by now"}
    forecast = succeed(stage.rehearse(accepted_changes=[*ACCEPTED, never]))["forecast"]
    told = {(change["kind"], change["name"]): change["accepted"] for change in forecast["catalogue"]["changes_outside"]}
    assert {(entry["kind"], entry["name"]): entry["reason"] for entry in ACCEPTED}.items() <= told.items()
    # All that belongs to the new table came with it, for its reason.
    came_with = {"column": "news.id", "index": "news_pkey", "sequence": "news_id_seq", "constraint": "news.news_pkey"}
    assert {(kind, f"public.{name}") for kind, name in came_with.items()} <= told.keys()
    assert {told[key] for key in told.keys() - {(entry["kind"], entry["name"]) for entry in ACCEPTED}} == {"of the release before"}
    assert forecast["unused_accepted"] == [never]
    assert stage.databases() == [""]


@pytest.mark.one_major
@pytest.mark.parametrize("missing", range(len(ACCEPTED)), ids=[entry["kind"] for entry in ACCEPTED])
def test_what_is_not_accepted_stays_an_error(stage, missing):
    stage.add_migration(OUTSIDE)
    stage.execute("INSERT INTO verification_tokens VALUES ('a@example.invalid', 'x', now())")
    stage.back_up()
    entry = ACCEPTED[missing]
    result = stage.rehearse(accepted_changes=[other for other in ACCEPTED if other is not entry] + [{**entry, "change": "gone"}])
    refuse(result, f"{entry['kind']} {entry['name']} ({entry['change']})", "rehearsal_accepted_changes")
    assert {change["problem"] for change in result["outside_changes"]} == {entry["change"]}
    if entry["kind"] != "table":
        assert [(change["kind"], change["name"]) for change in result["outside_changes"]] == [(entry["kind"], entry["name"])]


@pytest.mark.one_major
def test_what_the_data_migration_reads_cannot_be_accepted(stage):
    stage.add_migration("ALTER TABLE customers ADD COLUMN nickname TEXT;")
    accepted = [{"kind": "column", "name": "public.customers.nickname", "change": "added", "reason": "wanted"}]
    refuse(stage.rehearse(accepted_changes=accepted), "rehearse schema_deploy", "it changes what the data migration reads")


@pytest.mark.one_major
def test_a_migration_of_the_unified_tables_themselves_is_rehearsed(stage):
    stage.add_migration(
        "CREATE TYPE \"Shade\" AS ENUM ('DARK'); ALTER TABLE users ADD COLUMN shade \"Shade\", ADD CONSTRAINT shady CHECK (shade = 'DARK');"
        " CREATE INDEX users_shade ON users (shade); CREATE SEQUENCE counter OWNED BY users.shade;"
    )
    assert [migration["name"] for migration in succeed(stage.rehearse())["forecast"]["migrations"]] == [unified_migration().name, LATER]


@pytest.mark.one_major
def test_a_copy_of_the_data_that_fails_stops_it_and_the_database_is_dropped(stage):
    stage.execute("UPDATE customers SET email = 'nobody' WHERE id = (SELECT min(id) FROM customers)")
    stage.back_up()
    refuse(stage.rehearse(), f"rehearse data_migration in {stage.copy}", "was not touched")
    assert stage.databases() == [""]
    refuse(stage.rehearse(keep=True), "which was kept")
    assert stage.databases() == ["", "_rehearsal"]


@pytest.mark.one_major
def test_a_trigger_that_spoils_the_way_back_is_noticed(stage):
    stage.add_migration(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE public.services SET name = 'x'; RETURN NULL; END $$;"
        " CREATE TRIGGER spoil AFTER UPDATE ON users EXECUTE FUNCTION spoil();"
    )
    # The function is found before its deed is.
    refuse(stage.rehearse(), "function public.spoil() (added)")
    shutil.rmtree(stage.migrations / LATER)
    stage.execute("CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE public.services SET name = 'x'; RETURN NULL; END $$")
    stage.back_up()
    stage.add_migration("CREATE TRIGGER spoil AFTER UPDATE ON users EXECUTE FUNCTION spoil();")
    refuse(stage.rehearse(), "rehearse rollback", "table public.services is not what it was")
    assert stage.databases() == [""]


@pytest.mark.one_major
def test_a_trigger_that_writes_elsewhere_on_a_sign_up_is_noticed(stage):
    stage.execute(
        "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE public.services SET name = 'x'; RETURN NULL; END $$;"
        " CREATE TRIGGER spoil AFTER INSERT ON customers EXECUTE FUNCTION spoil()"
    )
    stage.back_up()
    refuse(stage.rehearse(), "rehearse application-style writes on the legacy side", "table public.services")


KILLED = """
import json, os, signal, sys
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _rehearsal

def die(self, *arguments):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(_rehearsal.Rehearsal, sys.argv[1], die)
_rehearsal.rehearse(json.loads(sys.argv[2]), check_mode=False)
"""


@pytest.mark.one_major
@pytest.mark.parametrize("moment", ["_deploy_schema", "_write_unified", "_put_away"])
def test_what_a_killed_one_leaves_is_dropped_by_the_next(stage, moment):
    parameters = {**DEFAULTS, **stage.options}
    paths = os.pathsep.join([str(ROOT / ".collections"), *(path for path in sys.path if "site-packages" in path)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), moment, json.dumps(parameters)], env={**os.environ, "PYTHONPATH": paths}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert stage.databases() == ["", "_rehearsal"]
    again = succeed(stage.rehearse())
    # A copy that nothing was written to yet is taken as it is.
    assert again["dropped_leftover"] == (moment != "_deploy_schema")
    assert stage.databases() == [""]


DEFAULTS = {
    "state": "rehearsed", "pgbackrest": {}, "accepted_changes": [], "backup": None, "target": None, "keep": False, "jobs": 2,
    "maintenance_db": "postgres", "session_role": None, "connect_params": None,
    "lock_timeout": 1500, "lock_retry_seconds": 60, "strategy": "atomic", "work_mem": "64MB", "maintenance_work_mem": "64MB",
    "schema": "public", "mapping": None,
    "sample_size": 5, "mask_pii": True, "email_match": "case_insensitive", "email_store": "as_stored", "join_credentials": "verified",
    "duplicate_identities": "fail", "id_collisions": "fail", "unresolvable_bookings": "fail", "guest_role": "CUSTOMER",
}  # fmt: skip


@pytest.mark.one_major
def test_a_run_told_to_stop_drops_the_copy(stage):
    process = ModuleProcess("unified_user_rehearsal", stage.options)
    while stage.copy not in [stage.name + suffix for suffix in stage.databases()]:
        assert process.process.poll() is None
    process.process.terminate()
    assert process.result().get("failed")
    assert stage.databases() == [""]


@pytest.mark.one_major
def test_never_works_on_anything_but_its_copy(stage, cluster):
    before = stage.contents()
    refuse(stage.rehearse(target=stage.name), "it is the real one")
    # libpq's own dbname would win over ours.
    refuse(stage.rehearse(connect_params={"dbname": stage.name}), "nothing was written")
    other = f"{stage.name}_other"
    cluster.create_database(other)
    try:
        refuse(stage.rehearse(target=other), "this step did not make it")
        assert other in [stage.name + suffix for suffix in stage.databases()]
    finally:
        cluster.drop_database(other)
    assert stage.contents() == before and stage.databases() == [""]


@pytest.mark.one_major
def test_writes_refuse_the_real_database_and_copies_for_other_ends(cluster, admin_of, reference_database):
    with contextlib.closing(Database(cluster.connect(reference_database))) as session:
        schema = read_schema(session)

        def attempt(original: str) -> None:
            writes = Writes(session, schema, "case_insensitive", original)
            for write in (writes.write_legacy, writes.write_unified):
                with pytest.raises(UnifiedUserError, match="nothing was written"):
                    write()

        attempt(reference_database)
        for mark in (
            {"purpose": "restored", "progress": "complete", "database": "shop"},
            {"purpose": "rehearsal", "progress": "restoring", "database": "shop"},
            {"purpose": "rehearsal", "progress": "complete", "database": "bakery"},
            {"purpose": "rehearsal", "progress": "complete", "database": reference_database},
        ):
            _scratch.write_mark(admin_of, reference_database, **mark)
            attempt("shop" if mark["database"] != reference_database else reference_database)
        assert session.value("SELECT count(*) FROM customers WHERE starts_with(id, 'rehearsal-')") == 0
        _scratch.write_mark(admin_of, reference_database, purpose="rehearsal", progress="complete", database="shop")
        _rehearsal_copy.require_copy(session, "shop")


@pytest.fixture
def admin_of(cluster):
    """A session on another database."""
    with contextlib.closing(Database(cluster.connect())) as session:
        yield session


@pytest.mark.one_major
def test_two_at_once_do_not_meet(stage, admin_of):
    _scratch.hold_name(admin_of, f"{stage.copy} (rehearsal)")
    refuse(stage.rehearse(), "another run is at work on it")


@pytest.mark.one_major
def test_wants_a_proven_backup(stage):
    (stage.backup / "proof.json").unlink()
    refuse(stage.rehearse(), "find a proven backup")
    refuse(stage.rehearse(backup=str(stage.backup)), "no restore test has proven it")


@pytest.mark.one_major
def test_an_application_without_studios_or_customers_is_rehearsed_too(cluster, legacy_database, tmp_path):
    stage = Stage(cluster, legacy_database, tmp_path)
    with contextlib.closing(cluster.connect(legacy_database)) as connection:
        apply_migrations(connection, [unified_migration()])
    stage.back_up()
    done = succeed(stage.rehearse())
    assert done["forecast"]["migrations"] == [] and done["forecast"]["counts"]["users"] == 2
    assert stage.databases() == [""]


# --- the playbook ------------------------------------------------------------------------------------------------------


def hosts_of(stage: Stage) -> Path:
    """An inventory of the stage, with the release on the controller."""
    variables = {
        **{f"unified_user_{key}": value for key, value in stage.connection.items()},
        "backup_directory": stage.files["directory"], "backup_bin_dir": stage.files["bin_dir"], "backup_minimum_bytes": 1000,
        "schema_deploy_engine": "native", "schema_deploy_migrations_source": str(stage.migrations), "report_path": str(stage.folder / "report.json"),
    }
    return inventory(stage.folder, variables)


@pytest.mark.one_major
def test_a_rehearsal_that_fails_stops_the_migration(stage):
    stage.add_migration("CREATE TABLE news (id TEXT PRIMARY KEY);")
    before = stage.contents()
    done = run_playbook(ROOT / "playbooks" / "migrate.yml", hosts_of(stage))
    assert done.returncode != 0 and "table public.news (added)" in done.stdout, done.stdout
    assert stage.contents() == before and stage.databases() == [""]
    report = json.loads((stage.folder / "report.json").read_text())
    assert report["not_done"] == ["rehearsal", "schema_deploy", "data_migration", "verification"]


@pytest.mark.one_major
def test_the_playbook_shows_the_forecast_and_changes_nothing_once_migrated(stage):
    hosts, playbook = hosts_of(stage), ROOT / "playbooks" / "rehearse.yml"
    done = run_playbook(playbook, hosts, "--check")
    assert done.returncode == 0 and stage.databases() == [""], done.stdout

    before = stage.contents()
    done = run_playbook(playbook, hosts, "-e", "rehearsal_keep=true")
    assert done.returncode == 0 and changed(done) == 3, done.stdout
    assert "longest lock" in done.stdout and f"The copy was kept: {stage.copy}" in done.stdout
    assert stage.databases() == ["", "_rehearsal"] and stage.contents() == before
    assert len(list(Path(stage.files["directory"]).glob("*/rehearsal.json"))) == 1

    # A name on the command line beats every other: the copy's own must not lead to the real database.
    stage.add_migration("CREATE TABLE news (id TEXT PRIMARY KEY);")
    accepted = [{"kind": kind, "name": f"public.{name}", "change": "added", "reason": "a reason"} for kind, name in (("table", "news"), ("index", "never"))]
    done = run_playbook(playbook, hosts, "-e", f"unified_user_login_db={stage.name}", "-e", json.dumps({"rehearsal_accepted_changes": accepted}))
    assert done.returncode == 0 and stage.databases() == [""] and stage.contents() == before, done.stdout
    assert "Accepted: table public.news (added), because: a reason" in done.stdout
    assert "Accepted, but not found: index public.never (added)." in done.stdout

    done = run_playbook(playbook, hosts)
    assert done.returncode != 0 and "table public.news (added)" in done.stdout
    assert stage.databases() == [""]
    shutil.rmtree(stage.migrations / LATER)

    with contextlib.closing(stage.cluster.connect(stage.name)) as connection:
        apply_migrations(connection, [unified_migration()])
        AtomicCopy(Database(connection), Options()).run()
    done = run_playbook(playbook, hosts)
    assert done.returncode == 0 and changed(done) == 0, done.stdout


@pytest.mark.one_major
def test_the_release_s_own_prisma_deploys_to_the_copy(stage):
    """The same forecast, by the engine of the real run; a failure of it drops the copy and touches nothing real."""
    release = make_release(stage.folder / "release")
    hosts, playbook = hosts_of(stage), ROOT / "playbooks" / "rehearse.yml"
    variables = json.dumps({
        "schema_deploy_engine": "prisma", "schema_deploy_release_directory": str(release), "schema_deploy_migrations_source": "",
        "schema_deploy_environment": offline_environment(),
    })
    planned = run_playbook(playbook, hosts, "-e", variables, "--check")
    assert planned.returncode == 0 and stage.databases() == [""], planned.stdout
    before = stage.contents()
    done = run_playbook(playbook, hosts, "-e", variables)
    assert done.returncode == 0 and "Migrations: 1, checks passed:" in done.stdout, done.stdout
    assert stage.contents() == before and stage.databases() == [""]
    forecast = json.loads(next(Path(stage.files["directory"]).glob("*/rehearsal.json")).read_text())
    assert forecast["migrations"][0]["name"] == unified_migration().name and forecast["steps_ms"]["schema_deploy"] > 0
    assert forecast["catalogue"]["objects_after"] > forecast["catalogue"]["objects_before"] and forecast["catalogue"]["changes_outside"] == []
    assert list(forecast["steps_ms"]) == ["restore", "schema_deploy", "data_migration", "verification", "rollback"]

    later = release / "prisma" / "migrations" / LATER
    later.mkdir()
    (later / "migration.sql").write_text("CREATE TABLE news (id TEXT PRIMARY KEY);")
    outside = run_playbook(playbook, hosts, "-e", variables, "-e", "schema_deploy_compare=false")
    assert outside.returncode != 0 and "table public.news (added)" in outside.stdout
    (later / "migration.sql").write_text("CREATE TABLE news (id TEXT PRIMARY KEY);\nSELECT 1/0;")
    failed = run_playbook(playbook, hosts, "-e", variables)
    told = " ".join(failed.stdout.split())
    assert failed.returncode != 0 and f"Prisma's P3018, {LATER}, division by zero" in told and f"Database {stage.name} was not touched" in told
    assert stage.contents() == before and stage.databases() == [""]
