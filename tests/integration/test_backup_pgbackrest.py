# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Backups by the real pgBackRest: what they prove under live writes, and every fault that must not pass for one.

One server of PostgreSQL 15, which the pgBackRest of Debian 12 can read, serves all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import psycopg2
import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import Backup, sha256_of_files
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

from tests.integration.backup_support import databases, flip, refuse, succeed, visible, wait_until
from tests.integration.repository import STANZA, repository
from tests.module_process import ModuleProcess, run_module

DATABASE = "massava"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A repository, and a database with an application's tables in it."""
    with repository(f"pgbackrest-{os.getpid()}") as made:
        made.cluster.create_database(DATABASE)
        with session(made) as database:
            database.execute(
                "CREATE TABLE ledger (id bigserial PRIMARY KEY, t text, at timestamptz DEFAULT now()); CREATE INDEX ON ledger (t);"
                "INSERT INTO ledger (t) SELECT md5(i::text) FROM generate_series(1, 20000) AS i;"
                "CREATE TABLE accounts (id text PRIMARY KEY, balance numeric NOT NULL);"
                "INSERT INTO accounts VALUES ('a', 100), ('b', 100);"
                "CREATE UNLOGGED TABLE scratchpad (t text); INSERT INTO scratchpad VALUES ('gone after a restore')"
            )
        yield made


@contextlib.contextmanager
def session(made, name: str = DATABASE):
    with contextlib.closing(Database(made.cluster.connect(name))) as database:
        yield database


@pytest.fixture
def options(site, tmp_path):
    return site.options(DATABASE, tmp_path / "backups")


def back_up(options: dict, kind: str = "full", **changes) -> dict:
    repository_options = {**options["pgbackrest"], "type": kind, **changes.pop("pgbackrest", {})}
    return run_module("database_backup", {**options, "engine": "pgbackrest", **changes, "pgbackrest": repository_options})


def restore(options: dict, taken: dict, **changes) -> dict:
    return run_module("database_restore", {**options, "backup": taken["path"], **changes})


@pytest.fixture(scope="module")
def taken(site, tmp_path_factory):
    """One full backup, which the tests of its proof share."""
    return succeed(back_up(site.options(DATABASE, tmp_path_factory.mktemp("shared"))))


@pytest.fixture
def damaged():
    """Damages a file of the repository until the test ends: damaged(path, function)."""
    with contextlib.ExitStack() as stack:

        def damage(path: Path, how) -> None:
            content, status = path.read_bytes(), path.stat()

            def put_back() -> None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                os.chown(path, status.st_uid, status.st_gid)
                path.chmod(status.st_mode & 0o7777)

            stack.callback(put_back)
            how(path)

        yield damage


def scratch(site) -> Path:
    return Path(f"{site.cluster.data_directory}_unified_user")


def middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


def test_proves_the_state_of_the_restore_point_under_live_writes(site, taken, options):
    """Each transfer writes both tables: a moment that is not one of all tables would show."""
    stop = threading.Event()
    durations = []

    def write(number: int) -> None:
        with session(site) as database:
            while not stop.is_set():
                begun = time.monotonic()
                with database.transaction():
                    database.execute("UPDATE accounts SET balance = balance + %s WHERE id = 'a'", (number,))
                    database.execute("INSERT INTO ledger (t) VALUES (%s)", (str(number),))
                    database.execute("UPDATE accounts SET balance = balance - %s WHERE id = 'b'", (number,))
                durations.append(time.monotonic() - begun)
                time.sleep(0.002)

    writers = [threading.Thread(target=write, args=(number,)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    try:
        different = succeed(back_up(options, "diff"))
        assert all(writer.is_alive() for writer in writers)
        result = succeed(restore(options, different))
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    facts, full = (json.loads(Path(one["manifest"]).read_text())["pgbackrest"] for one in (different, taken))
    assert facts["type"] == "diff" and facts["labels"] == [full["label"], facts["label"]]
    assert len(durations) > 50 and max(durations) < 2 and different["writers_held_ms"] < 1000
    rows = {table["name"]: table["rows"] for table in different["tables"]}
    assert rows["public.ledger"] > 20_000
    assert result["proven"] and not any(table["differing"] for table in result["tables"]) and result["catalogue"] == []
    assert result["rows"] == different["rows"]
    assert json.loads(Path(result["proof"]).read_text())["sha256"] == different["sha256"]
    assert not scratch(site).exists()


def test_manifest_names_what_a_way_back_needs(site, taken):
    manifest = json.loads(Path(taken["manifest"]).read_text())
    names = [file["name"] for file in manifest["files"]]
    assert names[0] == f"backup/{STANZA}/{manifest['pgbackrest']['label']}/backup.manifest"
    assert any(manifest["pgbackrest"]["wal"]["stop"] in name for name in names[1:])
    assert f"--target={taken['restore_point']}" in taken["restore_command"]
    assert f"--set={manifest['pgbackrest']['label']}" in taken["restore_command"]
    assert "public.scratchpad" in json.dumps(taken["warnings"])
    assert next(table for table in taken["tables"] if table["name"] == "public.scratchpad")["rows"] == 0


def test_check_mode_takes_nothing(site, options):
    labels = site.run("info", "--output=json")
    result = succeed(back_up(options, _ansible_check_mode=True))
    assert result["planned"] and result["changed"]
    assert visible(options) == []
    assert json.loads(site.run("info", "--output=json"))[0]["backup"] == json.loads(labels)[0]["backup"]


def test_restores_the_database_beside_the_live_one(site, taken, options):
    """What rollback and rehearsal go on with: the database taken out of a scratch server, proven once more."""
    shutil.copytree(Path(taken["path"]).parent, options["directory"])
    options = {**options, "backup": str(Path(options["directory"], Path(taken["path"]).name))}
    refuse(restore({**options, "state": "restored"}, {"path": options["backup"]}), "no restore test has proven it")
    succeed(run_module("database_restore", options))
    with session(site) as database:
        database.execute("DELETE FROM accounts WHERE id = 'b'")
    compared = succeed(run_module("database_restore", {**options, "state": "compared"}))
    assert {"public.accounts", "public.scratchpad"} <= {table["name"] for table in compared["tables"] if table["differing"]}
    try:
        result = succeed(run_module("database_restore", {**options, "state": "restored"}))
        assert result["rows"] == taken["rows"]
        with session(site, result["target"]) as copy, session(site) as live:
            assert copy.value("SELECT count(*) FROM accounts") == 2
            assert live.value("SELECT count(*) FROM accounts") == 1
        again = succeed(run_module("database_restore", {**options, "state": "restored"}))
        assert not again["changed"]
    finally:
        with session(site, "postgres") as admin:
            admin.execute(f"DROP DATABASE IF EXISTS {DATABASE}_restored")
        with session(site) as database:
            database.execute("INSERT INTO accounts VALUES ('b', 100)")
    assert not scratch(site).exists()


def test_proves_a_backup_while_the_primary_is_down(site, taken, options):
    site.cluster.stop()
    try:
        refused = run_module("database_restore", {**options, "backup": taken["path"], "state": "compared"})
        refuse(refused, "connect to database")
        result = succeed(restore(options, taken))
    finally:
        site.cluster.start()
        site.configure()
    assert result["proven"] and result["rows"] == taken["rows"]


def test_refuses_a_wrong_stanza(site, options):
    message = refuse(back_up(options, pgbackrest={"stanza": "masava"}), "find stanza masava", f"known there: {STANZA}")
    assert "backup_pgbackrest" in message
    refuse(back_up(options, pgbackrest={"stanza": ""}), "no stanza was named")
    assert visible(options) == []


@pytest.mark.one_major
def test_refuses_the_stanza_of_another_server(site, options, cluster, database):
    other = {**options, "login_unix_socket": str(cluster.host), "login_port": cluster.port, "login_db": database}
    refuse(back_up(other), f"use stanza {STANZA}", "of another server")
    assert visible(options) == []


def facts_of(taken: dict) -> dict:
    return json.loads(Path(taken["manifest"]).read_text())["pgbackrest"]


def wal_of(site, taken: dict) -> list[Path]:
    wal = facts_of(taken)["wal"]
    return [path for path in site.stored("archive", "*.gz") if wal["start"] <= path.name.split("-")[0] <= wal["stop"]]


def test_notices_wal_that_is_gone(site, taken, options, damaged):
    damaged(wal_of(site, taken)[-1], Path.unlink)
    refuse(restore(options, taken), "trust backup", "is missing", facts_of(taken)["wal"]["stop"])


def test_explains_a_recovery_that_runs_out_of_wal(site, taken, damaged, options, altered):
    """The segment vanishes between being looked at and being asked for: its manifest is made to forget it."""
    stop = facts_of(taken)["wal"]["stop"]

    def forget(manifest: dict) -> None:
        manifest["files"] = [file for file in manifest["files"] if stop not in file["name"]]
        manifest["sha256"] = sha256_of_files(manifest["files"])

    forgetful = altered(forget)
    proof = Path(forgetful["path"], "proof.json")
    proof.write_text("{}")
    damaged(wal_of(site, taken)[-1], Path.unlink)
    refuse(restore(options, forgetful), "the WAL in the archive ends before it", stop)
    assert not proof.exists(), "a backup that cannot be recovered is proven no longer"
    assert not scratch(site).exists()


def test_notices_an_archive_that_is_gone(site, taken, options, damaged):
    files = site.stored("archive", "*")
    for path in files:
        damaged(path, Path.unlink)
    refuse(restore(options, taken), "trust backup", "is missing")


def test_notices_a_flipped_byte_of_the_wal_wherever_it_is(site, taken, damaged):
    path = wal_of(site, taken)[-1]
    size = path.stat().st_size
    damaged(path, lambda path: None)
    for position in (0, size // 3, size // 2, size - 1):
        flip(path, position)
        with pytest.raises(UnifiedUserError, match=f"{path.name} was altered"):
            Backup.load(taken["path"]).verify_files()
        flip(path, position)
    Backup.load(taken["path"]).verify_files()


def file_of_the_set(site, taken: dict) -> Path:
    label = facts_of(taken)["label"]
    return max((path for path in site.stored("backup", "*.gz") if label in path.parts), key=lambda path: path.stat().st_size)


def test_notices_an_altered_file_of_the_backup_set(site, taken, options, damaged):
    damaged(file_of_the_set(site, taken), middle)
    message = refuse(restore(options, taken), f"restore backup set {facts_of(taken)['label']} with pgBackRest", "Do not rely on this backup")
    assert "data error" in message
    assert not scratch(site).exists()


def test_verifies_every_file_of_the_backup_set(site, taken, damaged):
    Backup.load(taken["path"]).verify_files(all_of_repository=True)
    label = facts_of(taken)["label"]
    files = sorted((path for path in site.stored("backup", "*.gz") if label in path.parts), key=lambda path: path.stat().st_size)[-4:]
    ways = (middle, lambda path: os.truncate(path, 100), lambda path: os.truncate(path, 0), Path.unlink)
    for path, how in zip(files, ways, strict=True):
        damaged(path, how)
    with pytest.raises(UnifiedUserError) as told:
        Backup.load(taken["path"]).verify_files(all_of_repository=True)
    for path, problem in zip(files, ("invalid checksum", "invalid checksum", "invalid checksum", "file missing"), strict=True):
        stored = "/".join(path.parts[path.parts.index(label) :])
        assert f"{stored}: {problem}" in told.value.details["problems"], told.value


def test_notices_an_altered_manifest_of_the_backup_set(site, taken, options, damaged):
    label = facts_of(taken)["label"]
    path = next(path for path in site.stored("backup", "backup.manifest") if label in path.parts)
    damaged(path, middle)
    refuse(restore(options, taken), "trust backup", "backup.manifest was altered")


def test_notices_a_set_that_was_expired(site, taken, options, damaged):
    for path in site.stored("backup", "backup.manifest*"):
        damaged(path, Path.unlink)
    refuse(restore(options, taken), "trust backup", "backup.manifest is missing")


def test_a_manifest_that_tells_another_story_takes_the_proof_away(taken, options, altered):
    """Rows that are not those of the restore point: the test fails, and an earlier proof goes."""

    def another_sum(manifest: dict) -> None:
        next(table for table in manifest["tables"] if table["name"] == "public.accounts")["sum"] = "1"

    other = altered(another_sum)
    proof = Path(other["path"], "proof.json")
    proof.write_text("{}")
    refuse(restore(options, other), "table public.accounts: the same 2 rows in number, not in content")
    assert not proof.exists()


def test_waits_for_writers_and_names_who_is_in_the_way(site, options):
    with session(site) as writer, writer.transaction():
        writer.execute("UPDATE accounts SET balance = balance")
        refuse(back_up(options, "diff", lock_wait_timeout=0.5), "another session holds a lock", "pid ")
    assert visible(options) == []


def test_says_that_wal_does_not_get_into_the_archive(site, options):
    site.archive("/bin/false")
    try:
        refuse(back_up(options, "diff"), "archive_command '/bin/false' must contain pgbackrest", "Set archive_command to")
        site.archive(f"pgbackrest --config={site.path}/missing.conf --stanza={STANZA} archive-push %p")
        refuse(back_up(options, "diff", pgbackrest={"archive_timeout": 1}), "was not archived before the 1000ms timeout", "why archive_command fails")
    finally:
        site.archive()
    assert visible(options) == []


def test_clears_away_what_a_killed_test_left_and_its_server(site, taken, options):
    test = ModuleProcess("database_restore", {**options, "backup": taken["path"]})
    pid_file = scratch(site) / "data" / "postmaster.pid"
    wait_until(pid_file.exists)
    test.kill()
    left = int(pid_file.read_text().split()[0])
    result = succeed(restore(options, taken))
    assert result["dropped_leftover"] and result["proven"]
    assert not scratch(site).exists()
    wait_until(lambda: not Path(f"/proc/{left}").exists() or "Z" in Path(f"/proc/{left}/stat").read_text().split()[2])


def test_ends_in_order_when_it_is_told_to(site, taken, options):
    test = ModuleProcess("database_restore", {**options, "backup": taken["path"]})
    wait_until((scratch(site) / "data" / "postmaster.pid").exists)
    test.process.send_signal(signal.SIGTERM)
    refuse(test.result(), "signal 15")
    assert not scratch(site).exists()


def test_leaves_a_directory_of_somebody_else_alone(site, taken, options, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").write_text("precious")
    changed = {"pgbackrest": {**options["pgbackrest"], "scratch_directory": str(theirs)}}
    refuse(restore(options, taken, **changed), "this step did not make it", "scratch_directory")
    assert (theirs / "file").read_text() == "precious"


def test_refuses_what_pgbackrest_cannot_keep(site, taken, options, tmp_path):
    refuse(back_up(options, encryption_recipients=["age1qqq"]), "repo1-cipher-type")
    refuse(back_up(options, format="custom"), "format of its own")
    copies = [{"kind": "path", "path": str(tmp_path), "allow_same_filesystem": True}]
    refuse(run_module("database_backup_copy", {"backup": taken["path"], "copies": copies}), "in the repository of pgBackRest", "repo2-path")


def test_a_role_without_superuser_rights_is_told_what_it_needs_and_then_can_do_it_all(site, options):
    plain = {**options, "login_user": "plain"}
    with session(site) as admin:
        admin.execute("CREATE ROLE plain LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO plain; GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO plain")
        try:
            message = refuse(back_up(plain, "diff"), "EXECUTE on pg_create_restore_point(text), EXECUTE on pg_switch_wal()", "pg_read_all_settings")
            assert "Let a superuser grant that" in message
            admin.execute(
                "GRANT pg_read_all_settings TO plain;"
                "GRANT EXECUTE ON FUNCTION pg_create_restore_point(text) TO plain; GRANT EXECUTE ON FUNCTION pg_switch_wal() TO plain"
            )
            assert succeed(restore(plain, succeed(back_up(plain, "diff"))))["proven"]
        finally:
            admin.execute("DROP OWNED BY plain; DROP ROLE plain")


@pytest.fixture
def altered(taken, tmp_path):
    """A backup of ours whose manifest is another one: altered(function of the manifest) returns it as a result of database_backup."""

    def alter(how) -> dict:
        path = Path(shutil.copytree(taken["path"], tmp_path / "altered"), "manifest.json")
        manifest = json.loads(path.read_text())
        how(manifest)
        path.write_text(json.dumps(manifest))
        return {"path": str(path.parent)}

    return alter


def test_too_little_disk_for_a_scratch_server_is_said_before_it_is_restored(site, options, altered):
    big = altered(lambda manifest: manifest["pgbackrest"].update(cluster_bytes=10**15))
    refuse(restore(options, big), "bytes of free disk are needed", "scratch_directory")
    assert not scratch(site).exists()


@pytest.mark.one_major
def test_a_server_of_another_major_cannot_start_it(taken, options, cluster):
    refuse(restore({**options, "bin_dir": str(cluster.bin("postgres").parent)}, taken), "can only be started by 15", "Install the package postgresql-15")


def test_retention_counts_these_too_and_looks_at_the_newest_before_anything_goes(site, taken, options):
    older, newest = (Path(options["directory"], f"{DATABASE}-202601{day}T000000Z") for day in ("01", "02"))
    for path in (older, newest):
        shutil.copytree(taken["path"], path)
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, "snapshot_time": f"2026-01-{path.name[-11:-9]}T00:00:00.000Z"}))
        Backup.load(str(path)).write_proof({"proven_at": "2026-01-03T00:00:00Z"})
    limits = {"directory": options["directory"], "database": DATABASE, "keep_count": 1}
    with contextlib.ExitStack() as until_put_back:
        wal = wal_of(site, taken)[-1]
        until_put_back.callback(wal.with_suffix(".away").rename, wal)
        wal.rename(wal.with_suffix(".away"))
        refuse(run_module("database_backup_retention", limits), "trust backup", "is missing")
    assert older.exists()
    assert [entry["path"] for entry in succeed(run_module("database_backup_retention", limits))["removed"]] == [str(older)]
    assert newest.exists() and not older.exists()
    assert file_of_the_set(site, taken).exists(), "the repository keeps what it has"


def test_live_database_is_never_touched(site):
    with session(site, "postgres") as admin:
        assert databases(admin) == {"postgres", "template0", "template1", DATABASE}
    with pytest.raises(psycopg2.OperationalError):
        site.cluster.connect(f"{DATABASE}_restored")


def test_the_command_for_the_whole_server_brings_it_back(site, taken):
    """The last one: the server is on another timeline after it."""
    with session(site) as database:
        database.execute("DROP TABLE ledger")
    site.cluster.stop()
    become = {"user": site.user} if os.geteuid() == 0 else {}
    subprocess.run(shlex.split(taken["restore_command"]), check=True, capture_output=True, cwd="/", **become)
    site.cluster.start()
    rows = {table["name"]: table["rows"] for table in taken["tables"]}
    with session(site) as database:
        wait_until(lambda: not database.value("SELECT pg_is_in_recovery()"))
        assert database.value("SELECT count(*) FROM ledger") == rows["public.ledger"]
        assert database.value("SELECT count(*) FROM accounts") == rows["public.accounts"]
