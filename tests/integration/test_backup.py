# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Taking a backup and proving it, on real servers: what must come out, and every way in which it can go wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import threading
from pathlib import Path

import psycopg2
import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _scratch
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import Backup
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._contents import fix_text_form, list_tables, measure_rows
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from psycopg2 import sql

from tests.integration.backup_support import BIG_ROWS, biggest, databases, flip, refuse, restore, succeed, visible, wait_until
from tests.module_process import ModuleProcess, connection_options, run_module

REFERENCE = {"public.studio_owners": 42, "public.customers": 158, "public.bookings": 312}


@pytest.fixture
def backup(site, legacy_reference_database):
    """The options for, and result of, a backup of the reference case."""
    options = site(legacy_reference_database)
    return options, succeed(run_module("database_backup", options))


@pytest.fixture
def pg_dump_held_up(cluster, site, big_database, admin):
    """A backup under way whose pg_dump waits for a lock on a catalogue that only pg_dump reads."""
    with contextlib.closing(Database(cluster.connect(big_database))) as blocker:
        blocker.execute("BEGIN; LOCK TABLE pg_catalog.pg_publication IN ACCESS EXCLUSIVE MODE")
        password = cluster.password
        options = {**site(big_database), "login_host": "127.0.0.1", "login_password": password}
        options.pop("login_unix_socket")
        process = ModuleProcess("database_backup", options)

        def waiting():
            return admin.value(
                "SELECT pid FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock' AND query ~ 'pg_publication'",
                (big_database,),
            )

        wait_until(waiting)
        yield process, options, waiting, lambda: blocker.execute("ROLLBACK")


# --- what must come out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["directory", "custom"])
def test_a_backup_is_whole_private_and_proven(site, legacy_reference_database, admin, form):
    options = site(legacy_reference_database, format=form)
    before = databases(admin)
    taken = succeed(run_module("database_backup", options))
    path = Path(taken["path"])
    assert taken["changed"] and not taken["planned"]
    assert path.name.startswith(legacy_reference_database + "-2") and path.name.endswith("Z")
    for file in [path.parent, path, *path.rglob("*")]:
        assert stat.S_IMODE(file.stat().st_mode) == (0o700 if file.is_dir() else 0o600), file
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["database"] == legacy_reference_database
    assert manifest["server"]["version"] == admin.value("SHOW server_version")
    rows = {table["name"]: table["rows"] for table in manifest["tables"]}
    assert {name: rows[name] for name in REFERENCE} == REFERENCE
    assert {file["name"] for file in manifest["files"]} == {
        str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() and file.name != "manifest.json"
    }

    tested = succeed(restore(options, taken))
    assert tested["proven"] and tested["changed"] and tested["backup"]["proven"]
    assert {table["name"]: table["actual"] for table in tested["tables"]} == rows
    assert not any(table["differing"] for table in tested["tables"]) and tested["catalogue"] == []
    assert tested["catalogue_objects"] > 100
    proof = json.loads(Path(tested["proof"]).read_text())
    assert proof["sha256"] == manifest["sha256"] == taken["sha256"]
    assert databases(admin) == before


def test_the_proof_holds_while_the_application_writes(cluster, site, big_database, admin):
    options = site(big_database)
    stop, written, errors = threading.Event(), [], []

    def write():
        with contextlib.closing(cluster.connect(big_database)) as connection, connection.cursor() as cursor:
            number = BIG_ROWS
            while not stop.is_set():
                number += 1
                cursor.execute("INSERT INTO ledger VALUES (%s, 'new')", (number,))
                cursor.execute("UPDATE ledger SET t = 'changed' WHERE id = %s", (number - BIG_ROWS,))
                cursor.execute("DELETE FROM ledger WHERE id = %s", (BIG_ROWS - number + BIG_ROWS,))
                written.append(number)

    def guarded():
        try:
            write()
        except psycopg2.Error as error:
            errors.append(error)

    writer = threading.Thread(target=guarded)
    writer.start()
    try:
        wait_until(lambda: len(written) > 20)
        taken = succeed(run_module("database_backup", options))
        wait_until(lambda: len(written) > 40)
    finally:
        stop.set()
        writer.join()
    assert not errors
    assert succeed(restore(options, taken))["proven"]
    # What was written after the snapshot is not in it: the comparison with the live table is not blind.
    since = succeed(restore(options, taken, state="compared"))
    assert [table for table in since["tables"] if table["name"] == "public.ledger"][0]["differing"]
    assert not since["changed"]


HOSTILE = """
CREATE TABLE "odd ""name" (t text, "a.b" int, v varchar(10) CHECK (v IN ('a', 'b')), f float8, at timestamptz, g int
    GENERATED ALWAYS AS ("a.b" * 2) STORED, i int GENERATED BY DEFAULT AS IDENTITY, m money, by bytea, iv interval);
INSERT INTO "odd ""name" (t, "a.b", v, f, at, m, by, iv)
    SELECT E'x%s\n"' || n, n, 'a', random(), now(), n, decode('00ff', 'hex'), '1 mon 2 days' FROM generate_series(1, 100) AS n;
CREATE SCHEMA "Other"; CREATE TYPE "Other"."Mood" AS ENUM ('sad', 'it''s ok'); CREATE DOMAIN "Other".positive AS int CHECK (VALUE > 0);
CREATE TABLE "Other".empty (); CREATE TABLE "Other".t (t "Other".positive, mood "Other"."Mood" DEFAULT 'sad'); INSERT INTO "Other".t VALUES (1);
CREATE TABLE part (a int, b timestamp(3)) PARTITION BY RANGE (a);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100); CREATE INDEX ON part (b); INSERT INTO part VALUES (1, now());
CREATE TABLE parent (a int); CREATE TABLE child (b int) INHERITS (parent); INSERT INTO child VALUES (1, 2);
CREATE SEQUENCE used START 7; SELECT nextval('used'); CREATE SEQUENCE unused;
CREATE VIEW few AS SELECT * FROM "odd ""name" WHERE v IN ('a', 'b'); CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM part;
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql AS 'SELECT $1 * 2'; CREATE INDEX ON "odd ""name" (twice("a.b")) WHERE v IN ('a');
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER noted BEFORE INSERT ON parent FOR EACH ROW EXECUTE FUNCTION note(); ALTER TABLE parent DISABLE TRIGGER noted;
ALTER TABLE parent ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON parent USING (a IN (1, 2));
ALTER TABLE child ADD CONSTRAINT later CHECK (b > 0) NOT VALID; CREATE RULE nothing AS ON DELETE TO child DO INSTEAD NOTHING;
SELECT lo_from_bytea(0, decode('00ff10', 'hex'));
"""


def test_everything_that_a_database_holds_is_compared(cluster, site, admin):
    name, role = "odd = \"na'me", f"odd_role_{os.getpid()}"
    admin.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    admin.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'").format(sql.Identifier(name)))
    try:
        with contextlib.closing(Database(cluster.connect(name))) as session:
            session.execute(HOSTILE)
            session.execute(
                sql.SQL(
                    'GRANT SELECT ON part TO {0}; GRANT UPDATE (a) ON parent TO {0} WITH GRANT OPTION; ALTER TABLE "Other".t OWNER TO {0};'
                    ' GRANT USAGE ON SCHEMA "Other" TO {0}; ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {0}'
                ).format(sql.Identifier(role))
            )
        options = site(name)
        taken = succeed(run_module("database_backup", options))
        catalogue = json.loads(Path(taken["manifest"]).read_text())["catalogue"]
        kinds = "column constraint extension function index policy rule schema sequence table trigger type view".split()
        assert [kind for kind in sorted(catalogue) if kind != "maintain privilege"] == kinds
        tested = succeed(restore(options, taken))
        rows = {table["name"]: table["actual"] for table in tested["tables"]}
        assert rows['public."odd ""name"'] == 100 and rows["pg_catalog.pg_largeobject"] == 1 and rows["public.child"] == 1
        assert rows["public.parent"] == 0  # a child's rows are counted once
    finally:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


@pytest.mark.parametrize(
    ("change", "kind", "name", "problem"),
    [
        ('DROP INDEX "studios_ownerId_idx"', "index", 'public."studios_ownerId_idx"', "missing"),
        ("CREATE INDEX extra ON studios (city)", "index", "public.extra", "unexpected"),
        ("ALTER TABLE bookings ALTER status SET DEFAULT 'CONFIRMED'", "column", "public.bookings.status", "different"),
        ('ALTER TABLE services DROP CONSTRAINT "services_studioId_fkey"', "constraint", 'public.services."services_studioId_fkey"', "missing"),
        ("ALTER TYPE \"BookingStatus\" ADD VALUE 'NEW'", "type", 'public."BookingStatus"', "different"),
        ("GRANT SELECT ON customers TO PUBLIC", "table", "public.customers", "different"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "function", "public.f()", "unexpected"),
    ],
)
@pytest.mark.one_major
def test_a_difference_in_the_catalogue_is_named(cluster, backup, change, kind, name, problem):
    options, taken = backup
    with contextlib.closing(Database(cluster.connect(options["login_db"]))) as session:
        index = 'CREATE INDEX IF NOT EXISTS "studios_ownerId_idx" ON studios ("ownerId")'
        if "ownerId_idx" in change:
            session.execute(index)
            taken = succeed(run_module("database_backup", options))
        session.execute(change)
    since = succeed(restore(options, taken, state="compared"))
    assert {"kind": kind, "name": name, "problem": problem} in since["catalogue"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("UPDATE customers SET name = name || ' ' WHERE id = (SELECT min(id) FROM customers)", "content"),
        ('UPDATE customers SET "updatedAt" = "updatedAt" + interval \'1 ms\' WHERE id = (SELECT min(id) FROM customers)', "content"),
        ("UPDATE customers SET phone = '' WHERE id = (SELECT min(id) FROM customers WHERE phone IS NULL)", "content"),
        ("DELETE FROM customers WHERE id = (SELECT min(id) FROM customers)", "rows"),
        ("DROP TABLE customers CASCADE", "missing"),
    ],
)
@pytest.mark.one_major
def test_a_difference_in_a_row_is_noticed(cluster, backup, change, problem):
    options, taken = backup
    with contextlib.closing(Database(cluster.connect(options["login_db"]))) as session:
        session.execute(change)
    since = succeed(restore(options, taken, state="compared"))
    assert [table["problem"] for table in since["tables"] if table["name"] == "public.customers"] == [problem]


ALIKE = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE alike (id int PRIMARY KEY, n numeric, i interval, f float8, j json, b jsonb, m mood, ms mood[], x text, y text, ip inet, c char(3),
                    big bigint DEFAULT 4, at timestamp DEFAULT '2025-01-01', z int DEFAULT 0);
CREATE TABLE hollow (); INSERT INTO hollow DEFAULT VALUES;
INSERT INTO alike (id, n, i, f, j, b, m, ms, x, y, ip, c) VALUES (1, 1.0, '24 hours', 0, '{"a": 1}', '{"a": 1.0}', 'good', '{good}', 'a', 'b', '10.0.0.1', 'a'),
                         (2, 1.0, '24 hours', 0, '{"a": 1}', '{"a": 1.0}', 'good', '{good}', 'c', NULL, '10.0.0.1', 'a');
"""


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE public.alike SET n = 1.00 WHERE id = 1",
        "UPDATE public.alike SET i = '1 day' WHERE id = 1",
        # What the hash of a bigint or a timestamp folds together.
        "UPDATE public.alike SET big = big # ((1::bigint << 32) | 1) WHERE id = 1",
        "UPDATE public.alike SET at = at + ((1::bigint << 32) + 1) * interval '1 microsecond' WHERE id = 1",
        "UPDATE public.alike SET z = NULL WHERE id = 1",
        "UPDATE public.alike SET f = '-0' WHERE id = 1",
        "UPDATE public.alike SET f = 4.9e-324 WHERE id = 1",
        """UPDATE public.alike SET j = '{"a":1}' WHERE id = 1""",
        """UPDATE public.alike SET b = '{"a": 1.00}' WHERE id = 1""",
        "UPDATE public.alike SET m = 'bad' WHERE id = 1",
        "UPDATE public.alike SET ms = '{good,bad}' WHERE id = 1",
        "UPDATE public.alike SET ip = '10.0.0.1/31' WHERE id = 1",
        "UPDATE public.alike SET x = CASE x WHEN 'a' THEN 'c' ELSE 'a' END",
        "UPDATE public.alike SET x = y, y = x WHERE id = 1",
        "UPDATE public.alike SET x = 'ab', y = '' WHERE id = 1",
        "UPDATE public.alike SET id = 3 WHERE id = 2",
    ],
)
def test_what_equality_or_a_sum_of_columns_would_overlook_is_noticed(cluster, database, change):
    with contextlib.closing(Database(cluster.connect(database))) as session:
        session.execute(ALIKE)
        with session.transaction():
            fix_text_form(session)
            tables = list_tables(session)
            before = {table["name"]: table for table in measure_rows(session, tables)}
            assert {name: table["rows"] for name, table in before.items()} == {"public.alike": 2, "public.hollow": 1}
            session.execute(change)
            assert {table["name"]: table for table in measure_rows(session, tables)} != before


@pytest.mark.one_major
def test_check_mode_plans_and_writes_nothing(site, legacy_reference_database, admin):
    options = site(legacy_reference_database, _ansible_check_mode=True)
    planned = succeed(run_module("database_backup", options))
    assert planned["changed"] and planned["planned"] and not Path(options["directory"]).exists()
    refuse(run_module("database_backup", {**options, "required_bytes": 10**18}), "free disk")

    taken = succeed(run_module("database_backup", {**options, "_ansible_check_mode": False}))
    before = databases(admin)
    tested = succeed(restore(options, taken))
    assert tested["changed"] and tested["planned"] and databases(admin) == before
    assert not Path(taken["path"], "proof.json").exists()


@pytest.mark.one_major
def test_the_newest_backup_is_taken_when_none_is_named(site, legacy_reference_database):
    options = site(legacy_reference_database)
    first = succeed(run_module("database_backup", options))
    second = succeed(run_module("database_backup", options))
    assert first["path"] != second["path"]
    options.pop("format", None)
    assert succeed(run_module("database_restore", {**options, "state": "verified"}))["backup"]["path"] == second["path"]


def test_an_owner_without_superuser_rights_can_do_it_all(cluster, site, admin):
    owner, name = f"owner_{os.getpid()}", f"owned_{os.getpid()}"
    admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'x' CREATEDB").format(sql.Identifier(owner)))
    admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(sql.Identifier(name), sql.Identifier(owner)))
    try:
        options = {**site(name), "login_user": owner, "session_role": owner}
        with contextlib.closing(Database(cluster.connect(name, user=owner))) as session:
            session.execute("CREATE TABLE t AS SELECT 1 AS a; CREATE EXTENSION IF NOT EXISTS pg_trgm")
        taken = succeed(run_module("database_backup", options))
        assert succeed(restore(options, taken))["proven"]

        admin.execute(sql.SQL("ALTER ROLE {} NOCREATEDB").format(sql.Identifier(owner)))
        refuse(restore(options, taken), f"role {owner} has no CREATEDB privilege", f'ALTER ROLE "{owner}" CREATEDB')
    finally:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(owner)))


# --- what stops a backup -----------------------------------------------------------------------------------------------


@pytest.mark.one_major
def test_plain_is_refused_with_the_way_out(site, legacy_reference_database):
    options = site(legacy_reference_database, format="plain")
    refuse(run_module("database_backup", options), "pg_restore cannot read a plain SQL dump", "Set format to directory or custom")
    assert visible(options) == []


@pytest.mark.one_major
def test_too_little_disk_says_how_much_is_missing(site, legacy_reference_database):
    options = site(legacy_reference_database, required_bytes=10**18)
    result = run_module("database_backup", options)
    refuse(result, f"{10**18} bytes of free disk are needed", f"{result['available_bytes']} are available")
    assert visible(options) == []


@pytest.mark.one_major
def test_a_dump_that_is_too_small_is_no_backup(site, legacy_reference_database):
    options = site(legacy_reference_database, minimum_bytes=1_000_000)
    result = run_module("database_backup", options)
    refuse(result, f"it has {result['size_bytes']} bytes", "lower minimum_bytes")
    assert visible(options) == []


@pytest.mark.one_major
def test_an_older_client_is_refused_with_both_versions(cluster, site, legacy_reference_database, tmp_path):
    (tmp_path / "old").mkdir()
    program = tmp_path / "old" / "pg_dump"
    program.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 12.3'\n")
    program.chmod(0o755)
    options = site(legacy_reference_database, bin_dir=str(tmp_path / "old"))
    refuse(run_module("database_backup", options), "12.3", f"server: {cluster.major}", f"postgresql-client-{cluster.major}", "bin_dir")
    assert visible(options) == []


def test_a_table_that_may_not_be_read_stops_it(cluster, site, legacy_reference_database, admin):
    reader = f"reader_{os.getpid()}"
    admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(reader)))
    try:
        options = {**site(legacy_reference_database), "login_user": reader}
        refuse(run_module("database_backup", options), "permission denied", "pg_read_all_data")
        assert visible(options) == []
        # A policy that would hide rows is an error, never a smaller backup.
        admin.execute(sql.SQL("GRANT pg_read_all_data TO {}").format(sql.Identifier(reader)))
        with contextlib.closing(Database(cluster.connect(legacy_reference_database))) as session:
            session.execute("ALTER TABLE customers ENABLE ROW LEVEL SECURITY")
        refuse(run_module("database_backup", options), "row-level security", "BYPASSRLS")
        assert visible(options) == []
    finally:
        admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(reader)))


def test_a_locked_table_is_waited_for_as_long_as_said(cluster, site, legacy_reference_database):
    options = site(legacy_reference_database, lock_wait_timeout=0.5)
    with contextlib.closing(Database(cluster.connect(legacy_reference_database))) as blocker:
        blocker.execute("BEGIN; LOCK TABLE customers IN ACCESS EXCLUSIVE MODE")
        refuse(run_module("database_backup", options), "lock timeout", "raise lock_wait_timeout")
    assert visible(options) == []


@pytest.mark.one_major
def test_a_wrong_password_is_never_shown(site, legacy_reference_database, secret):
    password = secret("wrong-password")
    options = site(legacy_reference_database, login_host="127.0.0.1", login_password=password)
    options.pop("login_unix_socket")
    process = ModuleProcess("database_backup", options)
    refuse(process.result(), "login_password")
    assert password not in process.output


@pytest.mark.one_major
def test_the_source_going_away_leaves_nothing(pg_dump_held_up, admin):
    process, options, waiting, _release = pg_dump_held_up
    admin.execute("SELECT pg_terminate_backend(%s)", (waiting(),))
    refuse(process.result(), f"dump database {options['login_db']}", "terminating connection")
    assert visible(options) == []


@pytest.mark.one_major
def test_no_process_shows_the_password(pg_dump_held_up):
    process, options, _waiting, release = pg_dump_held_up
    command_lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command_lines.append(path.read_bytes())
    assert any(b"--snapshot=" in line for line in command_lines)
    assert not any(options["login_password"].encode() in line for line in command_lines)
    release()
    succeed(process.result())
    assert options["login_password"] not in process.output


@pytest.mark.one_major
def test_a_stopped_backup_puts_away_what_it_began(pg_dump_held_up, admin):
    process, options, waiting, _release = pg_dump_held_up
    process.process.send_signal(signal.SIGTERM)
    refuse(process.result(), "signal 15", "Run the same command again")
    assert visible(options) == []
    wait_until(lambda: not waiting())


@pytest.mark.one_major
def test_a_killed_backup_looks_like_none_and_is_removed_by_the_next(pg_dump_held_up):
    process, options, waiting, release = pg_dump_held_up
    process.kill()
    (leftover,) = visible(options)
    assert leftover.startswith(".") and leftover.endswith(".partial")
    # Its pg_dump lives on for as long as it waits: what it writes to is left alone until it is gone.
    assert waiting()
    release()
    wait_until(lambda: not waiting())
    removed = wait_until(lambda: succeed(run_module("database_backup", options))["removed_leftovers"])
    assert removed == [leftover]
    assert all(not name.startswith(".") for name in visible(options))


# --- what stops a restore ----------------------------------------------------------------------------------------------


DAMAGES = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 1), "bytes instead of"),
    "altered": (lambda path: flip(path, path.stat().st_size // 2), "was altered"),
    "empty": (lambda path: os.truncate(path, 0), "is empty"),
    "missing": (lambda path: path.unlink(), "is missing"),
}


@pytest.mark.parametrize("form", ["directory", "custom"])
@pytest.mark.one_major
def test_a_damaged_backup_is_refused_before_anything_is_restored(site, legacy_reference_database, admin, form):
    options = site(legacy_reference_database, format=form)
    taken = succeed(run_module("database_backup", options))
    succeed(restore(options, taken))
    before = databases(admin)
    path = biggest(taken)
    sound = path.read_bytes()
    for inflict, words in DAMAGES.values():
        inflict(path)
        refuse(restore(options, taken), words, "do not rely on this one")
        path.write_bytes(sound)
    flip(path, 0)
    for state in ("verified", "restored", "compared"):
        refuse(restore(options, taken, state=state), "was altered")
    assert databases(admin) == before


@pytest.mark.one_major
def test_a_byte_flipped_in_any_file_is_noticed(backup):
    _options, taken = backup
    stored = Backup.load(taken["path"])
    for file in sorted(Path(taken["path"], "dump").iterdir()):
        position = file.stat().st_size // 2
        flip(file, position)
        with pytest.raises(UnifiedUserError, match=f"{file.name} was altered"):
            stored.verify_files()
        flip(file, position)
    stored.verify_files()


@pytest.mark.one_major
def test_swapped_files_are_noticed(backup):
    options, taken = backup
    first, second, *_others = sorted(Path(taken["path"], "dump").glob("*.gz"), key=lambda path: -path.stat().st_size)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    refuse(restore(options, taken), first.name, second.name)


def rewrite_manifest(taken: dict, change) -> None:
    path = Path(taken["manifest"])
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def add_a_row(manifest: dict) -> None:
    next(table for table in manifest["tables"] if table["name"] == "public.customers")["rows"] += 1


def change_a_sum(manifest: dict) -> None:
    next(table for table in manifest["tables"] if table["name"] == "public.customers")["sum"] = "1"


def forget_an_index(manifest: dict) -> None:
    manifest["catalogue"]["index"].pop("public.bookings_pkey")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add_a_row, "table public.customers: 158 rows instead of 159"),
        (change_a_sum, "table public.customers: the same 158 rows in number, not in content"),
        (forget_an_index, "index public.bookings_pkey: unexpected"),
        (lambda manifest: manifest["sequences"].update(gone={"last_value": 1, "ascending": True}), "sequence gone: behind"),
    ],
)
@pytest.mark.one_major
def test_a_manifest_that_does_not_match_disproves_the_backup(backup, admin, change, words):
    options, taken = backup
    succeed(restore(options, taken))
    before = databases(admin)
    rewrite_manifest(taken, change)
    result = restore(options, taken)
    refuse(result, "prove backup", words, "take a new one")
    assert result["proven"] is False
    assert not Path(taken["path"], "proof.json").exists()
    assert databases(admin) == before


@pytest.mark.one_major
def test_a_backup_of_another_database_is_refused(backup, database):
    options, taken = backup
    refuse(restore({**options, "login_db": database}, taken), f"not of {database}")


def test_a_sound_file_that_cannot_be_restored_is_refused_without_a_value(cluster, site, database, admin):
    with contextlib.closing(Database(cluster.connect(database))) as session:
        session.execute(
            f"CREATE FUNCTION at_home(text) RETURNS bool LANGUAGE sql AS $$ SELECT current_database() = '{database}' $$;"
            "CREATE TABLE people (email text CHECK (at_home(email))); INSERT INTO people VALUES ('a@b.c')"
        )
    options = site(database)
    taken = succeed(run_module("database_backup", options))
    before = databases(admin)
    message = refuse(restore(options, taken), "into database", "violates check constraint")
    assert "a@b.c" not in message
    assert databases(admin) == before


@pytest.mark.one_major
def test_a_scratch_database_of_somebody_else_is_left_alone(cluster, backup, database):
    options, taken = backup
    with contextlib.closing(Database(cluster.connect(database))) as session:
        session.execute("CREATE TABLE precious AS SELECT 1 AS a")
        refuse(restore(options, taken, target=database), f"restore into database {database}", "did not make it")
        assert session.value("SELECT a FROM precious") == 1
    refuse(restore(options, taken, target=options["login_db"]), "did not make it")


def test_a_scratch_database_that_was_never_marked_is_recognised(backup, admin):
    options, taken = backup
    target = options["login_db"] + "_restore_test"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ALLOW_CONNECTIONS false CONNECTION LIMIT 0").format(sql.Identifier(target))
    admin.execute(create)
    assert succeed(restore(options, taken))["dropped_leftover"]
    assert target not in databases(admin)


@pytest.mark.one_major
def test_two_restores_do_not_get_into_each_others_way(backup, admin):
    options, taken = backup
    _scratch.hold_name(admin, options["login_db"] + "_restore_test")
    refuse(restore(options, taken), "another run is at work on it")


@pytest.fixture
def restore_under_way(cluster, site, big_database, admin):
    """A restore test in the middle of pg_restore."""
    options = site(big_database)
    taken = succeed(run_module("database_backup", options))
    process = ModuleProcess("database_restore", {**options, "backup": taken["path"]})
    target = big_database + "_restore_test"
    wait_until(lambda: admin.value("SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND query ~ 'ledger'", (target,)))
    yield process, options, taken, target


@pytest.mark.one_major
def test_a_stopped_restore_drops_its_copy(restore_under_way, admin):
    process, _options, taken, target = restore_under_way
    process.process.send_signal(signal.SIGTERM)
    refuse(process.result(), "signal 15")
    assert target not in databases(admin)
    assert not Path(taken["path"], "proof.json").exists()


@pytest.mark.one_major
def test_a_killed_restore_is_cleaned_up_by_the_next(restore_under_way, admin):
    process, options, taken, target = restore_under_way
    process.kill()
    assert target in databases(admin)
    tested = succeed(restore(options, taken))
    assert tested["dropped_leftover"] and tested["proven"]
    assert target not in databases(admin)


@pytest.mark.one_major
def test_the_server_going_away_is_explained_and_left_to_the_next_run(make_cluster, tmp_path):
    own = make_cluster()
    own.create_database("shop")
    with contextlib.closing(Database(own.connect("shop"))) as session:
        session.execute(f"CREATE TABLE ledger AS SELECT i, md5(i::text) AS t FROM generate_series(1, {BIG_ROWS}) AS i; CREATE INDEX ON ledger (t)")
    places = {"directory": str(tmp_path), "bin_dir": str(Path(own.bin("pg_dump")).parent)}
    options = {**connection_options(own, "shop"), **places}
    taken = succeed(run_module("database_backup", options))
    process = ModuleProcess("database_restore", {**options, "backup": taken["path"]})
    with contextlib.closing(Database(own.connect())) as watch:
        wait_until(lambda: watch.value("SELECT count(*) FROM pg_stat_activity WHERE datname = 'shop_restore_test' AND query ~ 'ledger'"))
    own.stop("immediate")
    refuse(process.result(), "into database shop_restore_test")
    own.start()
    tested = succeed(restore({**connection_options(own, "shop"), **places}, taken))
    assert tested["dropped_leftover"] and tested["proven"]
