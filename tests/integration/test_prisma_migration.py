# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module prisma_migration on real servers: deploying, refusing, planning, racing, dying and going on."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from types import SimpleNamespace

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, connect
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma import Options
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma_deployment import ADVISORY_LOCK, deploy
from ansible_collections.rnltlabs.unified_user.plugins.modules import prisma_migration
from psycopg2 import sql

from tests.app.migration_history import MIGRATIONS, migration_directories
from tests.module_process import ModuleProcess, connection_options, run_module

NAMES = [directory.name for directory in migration_directories()]
UNIFIED = NAMES[-1]


@pytest.fixture
def release(tmp_path):
    """A copy of the application's migrations that a test may change."""
    return shutil.copytree(MIGRATIONS, tmp_path / "migrations")


@pytest.fixture
def add(release):
    """Adds a migration to the release: add("20251201000000_x", "SQL")."""

    def add(name, script):
        (release / name).mkdir()
        (release / name / "migration.sql").write_bytes(script if isinstance(script, bytes) else script.encode())
        return name

    return add


@pytest.fixture
def own_release(tmp_path):
    """An empty release, and its `add`."""
    directory = tmp_path / "own"
    directory.mkdir()

    def add(name, script):
        (directory / name).mkdir()
        (directory / name / "migration.sql").write_text(script)

    return directory, add


def options(cluster, dbname, path, **more):
    return {**connection_options(cluster, dbname), "path": str(path), **more}


def run_process(cluster, dbname, path, **more):
    """Run the module as the process it is on a host."""
    return run_module("prisma_migration", options(cluster, dbname, path, **more))


def run(cluster, dbname, path, check_mode=False, **more):
    """Run what the module runs, in this process, and return what it would return: a process takes much longer."""
    defaults = {
        "state": "deployed",
        "migration": None,
        "resolution": None,
        "before": {},
        "schema": "public",
        "unified_model": False,
        "mapping": None,
        "lock_timeout": 1500,
        "lock_retry_seconds": 60,
    }
    parameters = {**defaults, **options(cluster, dbname, path, **more)}
    module = SimpleNamespace(params=parameters, check_mode=check_mode, connect=lambda: connect(parameters))
    try:
        return prisma_migration.migrate(module)
    except UnifiedUserError as error:
        return {"failed": True, "msg": str(error), **error.details}


@contextlib.contextmanager
def session(cluster, dbname):
    with contextlib.closing(Database(cluster.connect(dbname))) as database:
        yield database


def query(cluster, dbname, statement, parameters=None):
    with session(cluster, dbname) as database:
        return database.rows(statement, parameters)


def execute(cluster, dbname, *statements):
    with session(cluster, dbname) as database:
        for statement in statements:
            database.execute(statement)


def history(cluster, dbname):
    return query(cluster, dbname, "SELECT * FROM _prisma_migrations ORDER BY started_at, migration_name")


def dump(cluster, dbname, *more):
    """Everything in the database, as pg_dump tells it, without the key it makes up for each dump."""
    command = [str(cluster.bin("pg_dump")), "--dbname", cluster.dsn(dbname), *more]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line for line in output.splitlines() if "restrict " not in line]


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came to it"
        time.sleep(0.02)
    return found


# --- deploying


def test_fresh_database(cluster, database, unified_database, release):
    result = run_process(cluster, database, release, unified_model=True, _ansible_diff=True)
    assert (result["changed"], result["applied"], result["pending"], result["already_applied"], result["up_to_date"]) == (True, NAMES, [], 0, True)
    assert result["diff"] == {"before": "", "after": "".join(f"{name}\n" for name in NAMES)}
    assert result["duration_ms"] > 0
    assert dump(cluster, database, "--schema-only", "--exclude-table=_prisma_migrations") == dump(
        cluster, unified_database, "--schema-only", "--exclude-table=_prisma_migrations"
    )


def test_records_are_prisma_s(cluster, database, release):
    run(cluster, database, release)
    rows = history(cluster, database)
    assert [row["migration_name"] for row in rows] == NAMES, "they began in order"
    assert len({row["id"] for row in rows}) == 7
    for row in rows:
        assert len(row["id"]) == 36 and len(row["checksum"]) == 64
        assert (row["logs"], row["rolled_back_at"], row["applied_steps_count"]) == (None, None, 1)
        assert row["started_at"] <= row["finished_at"]
        assert row["finished_at"].microsecond % 1000 == 0, "Prisma's times have milliseconds"
    columns = query(
        cluster,
        database,
        "SELECT column_name, data_type, character_maximum_length, is_nullable, column_default FROM information_schema.columns"
        " WHERE table_name = '_prisma_migrations' ORDER BY ordinal_position",
    )
    assert [tuple(column.values()) for column in columns] == [
        ("id", "character varying", 36, "NO", None),
        ("checksum", "character varying", 64, "NO", None),
        ("finished_at", "timestamp with time zone", None, "YES", None),
        ("migration_name", "character varying", 255, "NO", None),
        ("logs", "text", None, "YES", None),
        ("rolled_back_at", "timestamp with time zone", None, "YES", None),
        ("started_at", "timestamp with time zone", None, "NO", "now()"),
        ("applied_steps_count", "integer", None, "NO", "0"),
    ]


def test_second_run_changes_nothing(cluster, database, release):
    run(cluster, database, release)
    before = dump(cluster, database)
    result = run(cluster, database, release, unified_model=True)
    assert (result["changed"], result["applied"], result["pending"], result["already_applied"]) == (False, [], [], 7)
    assert dump(cluster, database) == before


def test_partial_history(cluster, legacy_database, release):
    result = run(cluster, legacy_database, release)
    assert (result["changed"], result["applied"], result["already_applied"]) == (True, [UNIFIED], 6)


def test_older_migration_that_came_later(cluster, unified_database, release, add):
    name = add("20250901000000_merged_late", "CREATE TABLE merged_late (id int PRIMARY KEY);")
    assert run(cluster, unified_database, release)["applied"] == [name]


def test_rolled_back_migration_is_applied_again(cluster, unified_database, release, add):
    name = add("20251201000000_notes", "CREATE TABLE notes (id int PRIMARY KEY);")
    execute(
        cluster,
        unified_database,
        "INSERT INTO _prisma_migrations (id, checksum, migration_name, rolled_back_at) VALUES ('a', 'another', '20251201000000_notes', now())",
    )
    assert run(cluster, unified_database, release)["applied"] == [name]
    assert [row["finished_at"] is None for row in history(cluster, unified_database) if row["migration_name"] == name] == [True, False]


def test_other_line_endings_are_no_edit(cluster, unified_database, release):
    for script in release.glob("*/migration.sql"):
        script.write_bytes(script.read_bytes().replace(b"\n", b"\r\n"))
    assert run(cluster, unified_database, release)["changed"] is False


@pytest.mark.parametrize("schema", ["app", 'The "App" %s'])
def test_another_schema(cluster, database, release, schema):
    result = run(cluster, database, release, schema=schema, unified_model=True)
    assert result["applied"] == NAMES
    counts = query(cluster, database, "SELECT schemaname, count(*) AS tables FROM pg_tables WHERE schemaname !~ '^(pg_|information_)' GROUP BY 1")
    assert [tuple(row.values()) for row in counts] == [(schema, 20)]
    assert run(cluster, database, release, schema=schema, unified_model=True)["changed"] is False


def test_script_with_a_transaction_and_settings_of_its_own(cluster, unified_database, release, add):
    """As Prisma writes it when an enum loses a value, and as pg_dump writes the first lines of a baseline."""
    add(
        "20251201000000_enum",
        "SELECT pg_catalog.set_config('search_path', '', false);\nSET lock_timeout = 0;\n"
        "-- AlterEnum\nBEGIN;\nCREATE TYPE public.\"UserRole_new\" AS ENUM ('SUPER_ADMIN', 'STUDIO_OWNER', 'CUSTOMER');\n"
        'ALTER TYPE public."UserRole" RENAME TO "UserRole_old";\nCOMMIT;\n',
    )
    add("20251201000001_next", "CREATE TABLE found_by_the_path (id int PRIMARY KEY);")
    result = run(cluster, unified_database, release)
    assert result["applied"] == ["20251201000000_enum", "20251201000001_next"]
    types = query(cluster, unified_database, "SELECT typname FROM pg_type WHERE typname LIKE 'UserRole\\_%' ORDER BY 1")
    assert [row["typname"] for row in types] == ["UserRole_new", "UserRole_old"]
    assert query(cluster, unified_database, "SELECT to_regclass('public.found_by_the_path') IS NOT NULL AS found") == [{"found": True}]


def test_hostile_text_arrives_as_it_stands(cluster, database, own_release):
    path, add = own_release
    text = "100 % of %s and %(x)s; it''s \\ {} $1 ü\n;"
    add("1_text", f"CREATE TABLE texts AS SELECT '{text}' AS a, $$%s;'$$ AS b, E'\\'' AS c; -- %d\n/* %s */")
    assert run(cluster, database, path)["applied"] == ["1_text"]
    assert query(cluster, database, "SELECT * FROM texts") == [{"a": text.replace("''", "'"), "b": "%s;'", "c": "'"}]


def test_database_with_other_defaults(cluster, database, own_release):
    path, add = own_release
    add("1_text", "CREATE TABLE texts AS SELECT '\\' AS a; CREATE TABLE more AS SELECT ';' AS a;")
    execute(
        cluster,
        database,
        f'ALTER DATABASE "{database}" SET standard_conforming_strings = off',
        f'ALTER DATABASE "{database}" SET search_path = nowhere',
        f"ALTER DATABASE \"{database}\" SET default_transaction_isolation = 'serializable'",
    )
    assert run(cluster, database, path)["applied"] == ["1_text"]
    assert query(cluster, database, "SELECT a FROM public.texts") == [{"a": "\\"}]


def test_unprivileged_owner(cluster, database, release):
    execute(cluster, database, "DROP ROLE IF EXISTS app_owner", "CREATE ROLE app_owner LOGIN", "GRANT CREATE, USAGE ON SCHEMA public TO app_owner")
    try:
        result = run(cluster, database, release, login_user="app_owner", unified_model=True)
        assert result["applied"] == NAMES
    finally:
        execute(cluster, database, "DROP OWNED BY app_owner CASCADE", "DROP ROLE app_owner")


def test_session_role_owns_what_is_made(cluster, database, release):
    execute(cluster, database, "DROP ROLE IF EXISTS app_role", "CREATE ROLE app_role", "GRANT CREATE, USAGE ON SCHEMA public TO app_role")
    try:
        assert run(cluster, database, release, session_role="app_role")["applied"] == NAMES
        owners = query(cluster, database, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
        assert owners == [{"tableowner": "app_role"}]
    finally:
        execute(cluster, database, "DROP OWNED BY app_role CASCADE", "DROP ROLE app_role")


# --- planning


def test_check_mode_changes_nothing(cluster, legacy_database, release):
    before = dump(cluster, legacy_database)
    result = run_process(cluster, legacy_database, release, unified_model=True, _ansible_check_mode=True, _ansible_diff=True)
    assert (result["changed"], result["applied"], result["pending"], result["up_to_date"]) == (True, [], [UNIFIED], False)
    assert result["diff"]["after"] == result["diff"]["before"] + f"{UNIFIED}\n"
    assert all(query.split()[0] == "SELECT" for query in result["executed_queries"])
    assert dump(cluster, legacy_database) == before


def test_check_mode_on_an_empty_database(cluster, database, release):
    result = run(cluster, database, release, unified_model=True, check_mode=True)
    assert (result["changed"], result["pending"]) == (True, NAMES)
    assert query(cluster, database, "SELECT to_regclass('_prisma_migrations') AS made") == [{"made": None}]


def test_status_tells_everything_and_fails_for_nothing(cluster, unified_database, release, add):
    with open(release / NAMES[2] / "migration.sql", "a", encoding="utf-8") as script:
        script.write("-- edited\n")
    shutil.rmtree(release / NAMES[1])
    add("20251201000000_next", "SELECT 1;")
    execute(cluster, unified_database, "INSERT INTO _prisma_migrations (id, checksum, migration_name) VALUES ('x', '', '20251115000000_broken')")
    before = dump(cluster, unified_database)
    result = run_process(cluster, unified_database, release, state="status")
    found = {name: result[name] for name in ("pending", "failed_migrations", "edited_migrations", "missing_migrations")}
    assert found == {
        "pending": ["20251201000000_next"],
        "failed_migrations": ["20251115000000_broken"],
        "edited_migrations": [NAMES[2]],
        "missing_migrations": [NAMES[1]],
    }
    assert (result["changed"], result["up_to_date"], result["needs_baseline"], result["already_applied"]) == (False, False, False, 7)
    assert dump(cluster, unified_database) == before


# --- refusing


def refused(cluster, dbname, path, **more):
    """Run, expect a refusal that changes nothing in either mode, and return its message."""
    before = dump(cluster, dbname)
    planned = run(cluster, dbname, path, check_mode=True, **more)
    result = run(cluster, dbname, path, **more)
    assert result["failed"] and planned["failed"] and planned["msg"] == result["msg"]
    assert not result.get("changed")
    assert dump(cluster, dbname) == before
    return result


def test_failed_migration(cluster, legacy_database, release):
    execute(cluster, legacy_database, f"INSERT INTO _prisma_migrations (id, checksum, migration_name, logs) VALUES ('x', '', '{UNIFIED}', 'boom')")
    result = refused(cluster, legacy_database, release)
    assert "P3009" in result["msg"] and UNIFIED in result["msg"] and "prisma migrate resolve --rolled-back" in result["msg"]
    assert result["failed_migrations"] == [UNIFIED]


def test_edited_migration(cluster, legacy_database, release):
    with open(release / NAMES[2] / "migration.sql", "a", encoding="utf-8") as script:
        script.write(" ")
    result = refused(cluster, legacy_database, release)
    assert f"migration.sql of {NAMES[2]} was changed after it was applied" in result["msg"]
    assert result["edited_migrations"] == [NAMES[2]]


def test_missing_directory(cluster, legacy_database, release):
    shutil.rmtree(release / NAMES[0])
    result = refused(cluster, legacy_database, release)
    assert f"the database has migration {NAMES[0]}, which is not in {release}" in result["msg"]


@pytest.mark.parametrize("with_table", [False, True], ids=["no history", "empty history"])
def test_tables_without_history(cluster, legacy_database, release, with_table):
    execute(cluster, legacy_database, "DELETE FROM _prisma_migrations" if with_table else "DROP TABLE _prisma_migrations")
    result = refused(cluster, legacy_database, release)
    assert "it holds 10 tables but no record of any migration (Prisma's P3005)" in result["msg"]
    assert "prisma migrate resolve --applied <name>" in result["msg"]


def test_objects_that_are_no_tables_are_no_obstacle(cluster, database, release):
    execute(cluster, database, "CREATE TYPE mood AS ENUM ('good')", "CREATE VIEW one AS SELECT 1 AS a", "CREATE SEQUENCE numbers")
    assert run(cluster, database, release)["applied"] == NAMES


@pytest.mark.parametrize("script", ["CREATE INDEX CONCURRENTLY x ON customers(name);", "VACUUM customers;"])
def test_statement_that_no_transaction_can_hold(cluster, legacy_database, release, add, script):
    add("20251015000000_first", "CREATE TABLE never_made (id int);")
    add("20251201000000_concurrently", f"-- a comment\n{script}")
    result = refused(cluster, legacy_database, release)
    assert "20251201000000_concurrently" in result["msg"] and "line 2" in result["msg"] and "prisma migrate deploy" in result["msg"]


@pytest.mark.parametrize(("script", "words"), [(b"SELECT '\xff';", "not UTF-8"), (b"SELECT $x$;", "has no end"), (None, "has no migration.sql")])
def test_files_that_are_no_scripts(cluster, legacy_database, release, add, script, words):
    add("20251201000000_bad", script or b"")
    if script is None:
        (release / "20251201000000_bad" / "migration.sql").unlink()
    assert words in refused(cluster, legacy_database, release)["msg"]


def test_no_migrations_at_all(cluster, legacy_database, tmp_path):
    assert "it holds no migration directory" in refused(cluster, legacy_database, tmp_path)["msg"]
    assert "no such directory on this host" in refused(cluster, legacy_database, tmp_path / "nowhere")["msg"]


# --- failing


def test_failing_statement_leaves_nothing(cluster, legacy_database, release, add):
    add("20251015000000_fine", "CREATE TABLE fine (id int);")
    add("20251020000000_fails", "CREATE TABLE half (id int);\n\nALTER TABLE customers\n  ADD COLUMN nothing int,\n  DROP COLUMN not_there;\nSELECT 1;")
    result = run(cluster, legacy_database, release)
    assert result["failed"]
    assert "Failed to apply migration 20251020000000_fails: statement 2 (ALTER TABLE, line 3) failed:" in result["msg"]
    assert 'column "not_there" of relation "customers" does not exist' in result["msg"]
    assert (result["changed"], result["applied"]) == (True, ["20251015000000_fine"])
    assert result["failed_statement"] == {"migration": "20251020000000_fails", "statement": 2, "line": 3, "sqlstate": "42703"}
    assert query(cluster, legacy_database, "SELECT to_regclass('half') AS half, to_regclass('fine') IS NOT NULL AS fine") == [{"half": None, "fine": True}]
    assert [row["migration_name"] for row in history(cluster, legacy_database)][6:] == ["20251015000000_fine"]
    # The way out: corrected, the same command goes on.
    (release / "20251020000000_fails" / "migration.sql").write_text("CREATE TABLE half (id int);")
    assert run(cluster, legacy_database, release)["applied"] == ["20251020000000_fails", UNIFIED]


def test_line_of_a_syntax_error(cluster, database, own_release):
    path, add = own_release
    add("1_a", "-- one\nCREATE TABLE a (\n  id int,\n  name txet\n);")
    assert "statement 1 (CREATE TABLE, line 4) failed" in run(cluster, database, path)["msg"]
    add("2_b", "SELECT 1;\nSELECT 2\n  FRM x;")
    (path / "1_a" / "migration.sql").write_text("SELECT 0;")
    assert "statement 2 (SELECT, line 3) failed: syntax error" in run(cluster, database, path)["msg"]


@pytest.mark.one_major
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO customers (id, name, email, \"updatedAt\") SELECT id, name, email, '{secret}' FROM customers",
        "SELECT '{secret}'::int",
        "SELECT '{secret}'::\"BookingStatus\"",
        "DO $$ BEGIN RAISE EXCEPTION 'duplicate %', '{secret}'; END $$",
        "INSERT INTO customers VALUES ('{secret}', 'a', '{secret}', now(), NULL, NULL, NULL, now(), now()),"
        " ('{secret}', 'a', '{secret}', now(), NULL, NULL, NULL, now(), now())",
        "DO $$ BEGIN ASSERT false, '{secret}'; END $$",
        "ALTER TABLE customers ADD CHECK (email = '{secret}'); INSERT INTO customers VALUES ('a', 'a', 'b', NULL, '{secret}', NULL, NULL, now(), now())",
    ],
)
def test_errors_hold_no_values(cluster, legacy_reference_database, release, add, secret, statement):
    value = secret("value-in-a-migration")
    add("20251020000000_fails", statement.replace("{secret}", value))
    result = run_process(cluster, legacy_reference_database, release)
    assert result["failed"] and "20251020000000_fails" in result["msg"]
    assert value not in str(result)


def test_unified_tables_must_come(cluster, database, own_release):
    path, add = own_release
    add("1_a", "CREATE TABLE a (id int);")
    result = run(cluster, database, path, unified_model=True)
    assert f"no migration in {path} makes table users (and 6 more)" in result["msg"]
    assert (result["changed"], result["applied"]) == (True, ["1_a"])
    assert run(cluster, database, path)["up_to_date"] is True


def test_unified_tables_by_other_names(cluster, unified_database, release):
    execute(cluster, unified_database, "ALTER TABLE users RENAME TO people")
    assert "makes table users" in run(cluster, unified_database, release, unified_model=True)["msg"]
    mapping = {"tables": {"users": {"name": "people"}}}
    assert run(cluster, unified_database, release, unified_model=True, mapping=mapping)["up_to_date"] is True
    result = run(cluster, unified_database, release, unified_model=True, mapping={"tables": {"user": {}}})
    assert "unified_user_mapping.tables.user" in result["msg"]


@pytest.mark.parametrize(
    ("statement", "part"),
    [
        ('ALTER TABLE studios DROP COLUMN "ownerId"', 'column "ownerId" of studios'),
        ("ALTER TABLE customers ADD COLUMN note text", "column note of customers"),
        ("ALTER TABLE customers ALTER COLUMN name DROP NOT NULL", "column name of customers"),
        ("DROP INDEX customers_email_key", "index public.customers_email_key of customers"),
        ("CREATE INDEX x ON bookings(status)", "index public.x of bookings"),
        ('ALTER TABLE bookings DROP CONSTRAINT "bookings_customerId_fkey"', 'constraint "bookings_customerId_fkey" of bookings'),
        ("DROP TABLE sessions", "of sessions"),
        ("CREATE TRIGGER t BEFORE UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()", "trigger t of accounts"),
        ("SELECT set_config('search_path', '', false); ALTER TABLE public.services ENABLE ROW LEVEL SECURITY", "table of services"),
    ],
)
def test_what_the_copy_reads_must_stay(cluster, legacy_database, release, add, statement, part):
    name = add("20251201000000_later", f"CREATE TABLE fine (id int);\n{statement};")
    result = run(cluster, legacy_database, release, unified_model=True)
    assert f"Failed to apply migration {name}: it changes what the data migration reads: " in result["msg"]
    assert part in result["msg"] and "after the data is migrated" in result["msg"]
    assert (result["changed"], result["applied"]) == (True, [UNIFIED])
    assert query(cluster, legacy_database, "SELECT to_regclass('fine') AS fine") == [{"fine": None}]


def test_earlier_migrations_may_change_what_the_copy_reads(cluster, legacy_database, release, add):
    name = add("20251020000000_note", "ALTER TABLE customers ADD COLUMN note text;")
    assert run(cluster, legacy_database, release, unified_model=True)["applied"] == [name, UNIFIED]


def test_after_the_data_migration_tables_may_change(cluster, reference_database, release, add):
    copied = run_module("unified_user_transform", connection_options(cluster, reference_database))
    assert copied["finished"]
    # A trigger of the sync leans on the column.
    assert run_module("unified_user_sync", {**connection_options(cluster, reference_database), "state": "absent"})["changed"]
    name = add("20251201000000_later", 'ALTER TABLE studios DROP COLUMN "ownerId";')
    assert run(cluster, reference_database, release, unified_model=True)["applied"] == [name]


def test_wrong_password_is_not_told(cluster, database, release, secret):
    password = secret("wrong-password")
    result = run_process(cluster, database, release, login_host=cluster.tcp_host, login_password=password)
    assert result["failed"] and "Failed to connect to database" in result["msg"]
    assert password not in str(result)


# --- waiting


@pytest.mark.one_major
def test_two_deployments_at_once(cluster, database, own_release):
    path, add = own_release
    for number in range(4):
        add(f"{number}_slow", f"SELECT pg_sleep(0.3); CREATE TABLE t{number} (id int);")
    processes = [ModuleProcess("prisma_migration", options(cluster, database, path)) for _number in range(2)]
    results = [process.result() for process in processes]
    assert [result.get("failed") for result in results] == [None, None], results
    assert sorted(len(result["applied"]) for result in results) == [0, 4]
    assert sorted(result["changed"] for result in results) == [False, True]
    assert [row["migration_name"] for row in history(cluster, database)] == [f"{number}_slow" for number in range(4)]


def test_lock_held_elsewhere(cluster, legacy_database, release):
    with session(cluster, legacy_database) as other:
        other.execute("SET application_name = 'the other deploy'")
        other.value("SELECT pg_advisory_lock(%s)", (ADVISORY_LOCK,))
        pid = other.value("SELECT pg_backend_pid()")
        with session(cluster, legacy_database) as own, pytest.raises(UnifiedUserError) as caught:
            deploy(own, Options(str(release), advisory_lock_seconds=1), lambda: other, check_mode=False)
    assert f"another deployment holds Prisma's lock for more than 1 s: pid {pid} (the other deploy, idle" in str(caught.value)
    assert caught.value.details["blockers"] and "pg_terminate_backend(pid)" in str(caught.value)
    assert run(cluster, legacy_database, release)["applied"] == [UNIFIED]


def test_the_same_lock_elsewhere_is_none_here(cluster, legacy_database, database, release):
    with session(cluster, database) as other:
        other.value("SELECT pg_advisory_lock(%s)", (ADVISORY_LOCK,))
        assert run(cluster, legacy_database, release)["applied"] == [UNIFIED]


def test_check_mode_waits_for_nobody(cluster, legacy_database, release):
    with session(cluster, legacy_database) as other:
        other.value("SELECT pg_advisory_lock(%s)", (ADVISORY_LOCK,))
        assert run(cluster, legacy_database, release, check_mode=True)["pending"] == [UNIFIED]


@pytest.mark.one_major
def test_locked_table_names_the_blocker(cluster, legacy_database, release):
    before = dump(cluster, legacy_database)
    with session(cluster, legacy_database) as other:
        other.execute("SET application_name = 'a long report'")
        with other.transaction():
            other.execute("LOCK TABLE studios IN ACCESS SHARE MODE; LOCK TABLE services IN ROW EXCLUSIVE MODE")
            pid = other.value("SELECT pg_backend_pid()")
            result = run(cluster, legacy_database, release, lock_timeout=600, lock_retry_seconds=2)
    assert result["failed"] and f"Failed to apply migration {UNIFIED}: another session holds a lock in the way for more than 2 s" in result["msg"]
    assert f"pid {pid} (a long report, idle in transaction for " in result["msg"]
    assert (result["changed"], result["applied"]) == (False, [])
    assert dump(cluster, legacy_database) == before


@pytest.mark.one_major
def test_lock_that_is_given_back_in_time(cluster, legacy_database, release):
    with session(cluster, legacy_database) as other:
        other.execute("BEGIN")
        other.execute("LOCK TABLE services IN ROW EXCLUSIVE MODE")
        process = ModuleProcess("prisma_migration", options(cluster, legacy_database, release, lock_timeout=300, lock_retry_seconds=30))
        time.sleep(2)
        other.execute("ROLLBACK")
        assert process.result()["applied"] == [UNIFIED]


# --- dying


def backends(cluster, dbname, statement):
    return query(
        cluster,
        dbname,
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'unified_user' AND datname = %s AND query LIKE %s",
        (dbname, statement),
    )


def test_kill_in_the_middle_then_again(cluster, legacy_database, release, add):
    add("20251015000000_fine", "CREATE TABLE fine (id int);")
    slow = add("20251020000000_slow", "CREATE TABLE half (id int);\nSELECT pg_sleep(60);\nCREATE TABLE whole (id int);")
    process = ModuleProcess("prisma_migration", options(cluster, legacy_database, release))
    wait_until(lambda: backends(cluster, legacy_database, "%pg_sleep(60)%"))
    process.kill()
    # The server notices that its client is gone, and does not sleep on.
    wait_until(lambda: not backends(cluster, legacy_database, "%"), seconds=8)
    assert query(cluster, legacy_database, "SELECT to_regclass('half') AS half") == [{"half": None}]
    assert [row["migration_name"] for row in history(cluster, legacy_database)][6:] == ["20251015000000_fine"]
    script = release / slow / "migration.sql"
    script.write_text(script.read_text().replace("60", "0"))
    assert run(cluster, legacy_database, release)["applied"] == [slow, UNIFIED]


def test_server_ends_the_session(cluster, legacy_database, release, add):
    add("20251020000000_slow", "CREATE TABLE half (id int);\nSELECT pg_sleep(60);")
    process = ModuleProcess("prisma_migration", options(cluster, legacy_database, release))
    pid = wait_until(lambda: backends(cluster, legacy_database, "%pg_sleep(60)%"))[0]["pid"]
    query(cluster, legacy_database, "SELECT pg_terminate_backend(%s)", (pid,))
    result = process.result()
    assert result["failed"] and "Failed to apply migration 20251020000000_slow: statement 2" in result["msg"]
    assert query(cluster, legacy_database, "SELECT to_regclass('half') AS half") == [{"half": None}]


def test_server_is_killed(make_cluster, release):
    own = make_cluster()
    own.create_database("app")
    (release / "20251020000000_slow").mkdir()
    script = release / "20251020000000_slow" / "migration.sql"
    script.write_text("CREATE TABLE half (id int);\nSELECT pg_sleep(60);")
    process = ModuleProcess("prisma_migration", options(own, "app", release))
    wait_until(lambda: backends(own, "app", "%pg_sleep(60)%"))
    own.kill()
    result = process.result()
    assert result["failed"] and "20251020000000_slow" in result["msg"] and result["applied"] == NAMES[:-1]
    own.start()
    script.write_text("CREATE TABLE half (id int);")
    assert run(own, "app", release)["applied"] == ["20251020000000_slow", UNIFIED]


def test_unreachable_server(cluster, database, release):
    result = run(cluster, database, release, login_port=1, login_unix_socket=str(cluster.host))
    assert result["failed"] and result["msg"].startswith("Failed to connect to database")


def test_names_are_composed_by_the_server_s_rules(cluster, database, own_release):
    path, add = own_release
    add('1_it\'s "quoted" %s', "CREATE TABLE a (id int);")
    assert run(cluster, database, path)["applied"] == ['1_it\'s "quoted" %s']
    with session(cluster, database) as own:
        own.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier("a")))
    assert run(cluster, database, path)["changed"] is False


# --- marking


FAILED = "INSERT INTO _prisma_migrations (id, checksum, migration_name, logs) VALUES ('f', 'c', '20251201000000_notes', 'it failed')"
NOTES = """
CREATE TYPE "Colour" AS ENUM ('RED');
CREATE TABLE "notes" ("id" TEXT NOT NULL, CONSTRAINT "notes_pkey" PRIMARY KEY ("id"));
CREATE UNIQUE INDEX "notes_id_key" ON "notes"("id");
ALTER TABLE "studios" ADD COLUMN "colour" "Colour", DROP COLUMN "latitude";
ALTER TYPE "BookingStatus" ADD VALUE 'LATE';
INSERT INTO "notes" VALUES ('a');
"""


def mark(cluster, dbname, release, resolution, **more):
    return run(cluster, dbname, release, state="resolved", migration="20251201000000_notes", resolution=resolution, **more)


def test_rolled_back_is_refused_while_anything_of_it_is_there(cluster, unified_database, release, add):
    name = add("20251201000000_notes", NOTES)
    execute(cluster, unified_database, FAILED, 'CREATE TABLE notes (id text)', "ALTER TYPE \"BookingStatus\" ADD VALUE 'LATE'")
    refused = mark(cluster, unified_database, release, "rolled_back")
    assert "that is not true: table notes, value BookingStatus.LATE came of it. Take that back by hand" in refused["msg"]
    told = run(cluster, unified_database, release, state="status")["remains"][name]
    assert "of it table notes, value BookingStatus.LATE came, and type Colour" in told and "column studios.latitude (taken away)" in told
    assert "line 7: INSERT INTO" in told
    assert "of it table notes" in run(cluster, unified_database, release)["msg"], "the refusal tells it, too"
    assert history(cluster, unified_database)[-1]["rolled_back_at"] is None


def test_rolled_back_once_nothing_is_there_and_then_applied(cluster, unified_database, release, add):
    name = add("20251201000000_notes", NOTES)
    execute(cluster, unified_database, FAILED)
    before = history(cluster, unified_database)
    planned = mark(cluster, unified_database, release, "rolled_back", check_mode=True)
    assert planned["changed"] and history(cluster, unified_database) == before
    assert planned["does"] == [f"sets rolled_back_at of the failed record of {name}", "leaves it to the next deployment to apply it again"]
    assert mark(cluster, unified_database, release, "rolled_back")["does"] == planned["does"]
    again = mark(cluster, unified_database, release, "rolled_back")
    assert (again["changed"], again["does"]) == (False, [])
    assert run(cluster, unified_database, release)["applied"] == [name]


def test_applied_is_refused_until_all_of_it_is_there(cluster, unified_database, release, add):
    name = add("20251201000000_notes", NOTES)
    execute(cluster, unified_database, FAILED, 'CREATE TABLE notes (id text)')
    refused = mark(cluster, unified_database, release, "applied")
    assert "that is not true: of it table notes came, and type Colour, index notes_id_key, column studios.colour" in refused["msg"]
    execute(cluster, unified_database, "DROP TABLE notes", NOTES)
    planned = mark(cluster, unified_database, release, "applied", check_mode=True)
    assert planned["does"][0] == f"sets rolled_back_at of the failed record of {name}"
    assert planned["does"][1].startswith(f"records {name} as applied, with the checksum of its migration.sql")
    assert planned["unjudged"] == ["line 7: INSERT INTO"]
    assert mark(cluster, unified_database, release, "applied")["changed"]
    assert mark(cluster, unified_database, release, "applied")["changed"] is False
    result = run(cluster, unified_database, release, state="status")
    assert (result["up_to_date"], result["failed_migrations"]) == (True, [])


def test_what_no_record_or_catalogue_supports_is_refused(cluster, unified_database, release, add):
    add("20251201000000_notes", "UPDATE studios SET name = 'x' WHERE false;")
    assert "there is no record of it (Prisma's P3011)" in mark(cluster, unified_database, release, "rolled_back")["msg"]
    assert "nothing that it does can be looked up in the catalogue (line 1: UPDATE)" in mark(cluster, unified_database, release, "applied")["msg"]
    execute(cluster, unified_database, FAILED)
    assert "nothing that it does can be looked up" in mark(cluster, unified_database, release, "rolled_back")["msg"]
    applied = run(cluster, unified_database, release, state="resolved", migration=NAMES[0], resolution="rolled_back")
    assert "it is applied (Prisma's P3012)" in applied["msg"]
    unknown = run(cluster, unified_database, release, state="resolved", migration="nonsense", resolution="applied")
    assert "has no such directory" in unknown["msg"]


def test_later_migrations_that_touch_the_same_do_not_count(cluster, database, own_release):
    """A baseline marks migrations one by one, though later ones have changed what they made."""
    directory, add = own_release
    add("1_a", 'CREATE TABLE a (id int, gone int); CREATE INDEX a_gone ON a (gone); CREATE TABLE b (id int); CREATE INDEX b_id ON b (id);'
               ' CREATE TYPE "T" AS ENUM (\'X\');')
    add("2_b", 'ALTER TABLE a DROP COLUMN gone; DROP TABLE b;')
    add("3_c", 'CREATE TYPE "T_new" AS ENUM (\'Y\'); ALTER TYPE "T" RENAME TO "T_old"; ALTER TYPE "T_new" RENAME TO "T"; DROP TYPE "T_old";')
    assert run(cluster, database, directory).get("applied") == ["1_a", "2_b", "3_c"]
    execute(cluster, database, "DROP TABLE _prisma_migrations")
    for name in ("1_a", "2_b", "3_c"):
        done = run(cluster, database, directory, state="resolved", migration=name, resolution="applied")
        assert done.get("changed"), done
    assert run(cluster, database, directory)["changed"] is False


@pytest.mark.parametrize("state", ["checked", "proven"])
def test_states_around_another_engine_refuse_what_stands_in_the_way(cluster, unified_database, release, add, state):
    add("20251201000000_notes", NOTES)
    execute(cluster, unified_database, FAILED)
    assert "P3009" in run(cluster, unified_database, release, state=state)["msg"]
    execute(cluster, unified_database, "DELETE FROM _prisma_migrations WHERE id = 'f'")
    (release / NAMES[0]).rename(release.parent / "away")
    assert f"the database has migration {NAMES[0]}, which is not in" in run(cluster, unified_database, release, state=state)["msg"]
    (release.parent / "away").rename(release / NAMES[0])
    with open(release / NAMES[0] / "migration.sql", "a", encoding="utf-8") as script:
        script.write("-- edited")
    assert "was changed after it was applied" in run(cluster, unified_database, release, state=state)["msg"]
    execute(cluster, unified_database, "DROP TABLE _prisma_migrations")
    assert "P3005" in run(cluster, unified_database, release, state=state)["msg"]


def test_proof_names_what_became_another(cluster, legacy_database, release):
    checked = run(cluster, legacy_database, release, state="checked", unified_model=True)
    assert set(checked["tables"]) >= {"customers", "studios"} and "_prisma_migrations" not in checked["tables"]
    pending = run(cluster, legacy_database, release, state="proven", unified_model=True, before=checked["tables"])
    assert f"migration {UNIFIED} is still pending" in pending["msg"]
    run(cluster, legacy_database, release)
    proven = run(cluster, legacy_database, release, state="proven", unified_model=True, before=checked["tables"])
    assert proven["tables_unchanged"] == len(checked["tables"]) == 10
    execute(cluster, legacy_database, "ALTER TABLE studios ADD COLUMN colour text", "DROP TABLE sessions CASCADE")
    changed = run(cluster, legacy_database, release, state="proven", unified_model=True, before=checked["tables"])
    assert "the migrations changed what was there before: column colour of studios, table sessions" in changed["msg"]
    assert changed["changed_parts"] == ["column colour of studios", "table sessions"]
