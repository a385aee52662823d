"""What is measured: the module, hand-written SQL, clients that go row by row, and the floor. Each on a fresh database.

Every contender returns a dict of measures: seconds by name, plus the module's memory. Whatever writes the unified rows is
compared with the others once per size, rows and catalogue alike, so that nobody is quick by doing less.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import FILLED, SOURCES, UNIFIED_TABLES
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import verify_database

from tests.app import migration_history, prisma_cli, reference_data

ROOT = Path(__file__).resolve().parent.parent.parent
BY_HAND = Path(__file__).resolve().parent / "by_hand"
GUIDE_CLIENT = Path(__file__).resolve().parent / "guide_client.mjs"
MODULE = "ansible_collections.rnltlabs.unified_user.plugins.modules.unified_user_transform"
SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "1h",
    # A server that has run for a while has its WAL files; every commit waits while one is made.
    "min_wal_size": "4GB",
    # A vacuum that starts by itself would hit one contender and spare the next.
    "autovacuum": "off",
}
# The same memory and the same planner settings for everybody.
SESSION = "SET LOCAL jit = off; SET LOCAL work_mem = '256MB'; SET LOCAL maintenance_work_mem = '512MB';"
COPIED = ("studio_owners", "customers", "accounts", "sessions", "bookings", "_CustomerFavorites")
MOMENTS = ("grantedAt", "invitedAt", "acceptedAt")
CLIENT_SAMPLE = 3000
#: What the kernel counts processor time in, seconds; less cannot be told from nothing.
TICK = 1 / os.sysconf("SC_CLK_TCK")
#: Ends the names of measures that are processor time.
PROCESSOR = " (processor)"


class BenchError(Exception):
    """A measurement would not mean what it says."""


class Arena:
    """Fresh databases of one size: each is a copy of a template that holds both schemas and the legacy rows."""

    def __init__(self, cluster, bookings: int) -> None:
        self.cluster = cluster
        self.bookings = bookings
        self.template = f"bench_{bookings}"

    def prepare(self) -> None:
        """Make the template."""
        self.cluster.create_database(self.template)
        with contextlib.closing(self.cluster.connect(self.template)) as connection:
            migration_history.apply_migrations(connection, migration_history.migration_directories())
            reference_data.load_benchmark(connection, bookings=self.bookings)
            with connection.cursor() as cursor:
                cursor.execute("VACUUM (FREEZE, ANALYZE)")

    def drop(self) -> None:
        """Drop the template."""
        self.cluster.drop_database(self.template)

    @contextlib.contextmanager
    def fresh(self):
        """A database to work in, with nothing left for a checkpoint to write; dropped at the end."""
        name = f"{self.template}_work"
        with contextlib.closing(self.cluster.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(sql.Identifier(name), sql.Identifier(self.template))
            )
            cursor.execute("CHECKPOINT")
        try:
            yield name
        finally:
            self.cluster.drop_database(name)


class Stopwatch:
    """Takes seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def time(self, name: str):
        """Time a block by the clock."""
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started

    @contextlib.contextmanager
    def processor_time(self, name: str, cluster):
        """Time a block that ends all its sessions by what the server computes meanwhile, which a busy machine changes less."""
        postmaster = (cluster.data_directory / "postmaster.pid").read_text().split("\n", maxsplit=1)[0]
        processes, started = _children(postmaster), _processor_seconds(postmaster)
        yield
        # Counted are processes that have ended, and a session's process outlives its connection a little.
        while _children(postmaster) - processes:
            time.sleep(0.01)
        self.seconds[f"{name}{PROCESSOR}"] = max(_processor_seconds(postmaster) - started, TICK)


def _children(pid: str) -> set[str]:
    return set(Path("/proc", pid, "task", pid, "children").read_text().split())


def _processor_seconds(pid: str) -> float:
    """What a process's ended children have computed, parallel workers of a server included (Linux only)."""
    fields = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()
    user, system = fields[13:15]
    return (int(user) + int(system)) * TICK


def _script(name: str) -> str:
    return (BY_HAND / f"{name}.sql").read_text(encoding="utf-8")


def _tables(names):
    return sql.SQL(", ").join(map(sql.Identifier, names))


# --- the module -------------------------------------------------------------------------------------------------------


def run_module(cluster, database: str) -> tuple[dict, float, float]:
    """Run the transformation as Ansible runs it, as a process of its own.

    Returns:
        The module's result, the process's seconds by the wall clock, and its peak memory in MB.
    """
    # A child's peak counts what its parent had before the program was loaded, so this process must stay small.
    arguments = {
        "login_host": cluster.tcp_host, "login_port": cluster.port, "login_user": cluster.user, "login_password": cluster.password,
        "login_db": database,
        # What nobody else does is not compared: the indexes and triggers of the sync come after the copy.
        "sync": False,
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".collections")}
    started = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=environment
        )
        process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        process.stdin.close()
        output = process.stdout.read()
        process.stdout.close()
        unused, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        if process.returncode:
            raise BenchError(f"The module failed: {(output + errors.read()).decode()[-2000:]}")
    return json.loads(output), seconds, usage.ru_maxrss / 1024


def module(arena: Arena, database: str) -> dict[str, float]:
    """The module: first run with its phases, second run, then verification by ours and by EXCEPT in the migrated database."""
    stopwatch = Stopwatch()
    with stopwatch.processor_time("module", arena.cluster):
        result, seconds, memory = run_module(arena.cluster, database)
    if not result["changed"]:
        raise BenchError("The module found nothing to do in a fresh database.")
    phases = {phase["name"]: phase["duration_ms"] / 1000 for phase in result["phases"]}
    measures = {
        "module": result["duration_ms"] / 1000,
        "module without verification": result["duration_ms"] / 1000 - phases["verify"],
        "module process": seconds,
        "memory": memory,
        "rows": sum(result["counts"].values()),
        **{f"phase {name}": value for name, value in phases.items()},
    }
    again, seconds, memory = run_module(arena.cluster, database)
    if again["changed"] or not again["counts"].items() <= result["counts"].items():
        raise BenchError(f"The second run of the module changed something: {again['counts']} after {result['counts']}.")
    measures.update({"second run": again["duration_ms"] / 1000, "second run process": seconds, "memory": max(measures["memory"], memory)})
    connect = functools.partial(arena.cluster.connect, database)
    for name, work in (
        ("verify", functools.partial(_verify, connect=lambda: Database(connect()))), ("verify from one session", _verify), ("EXCEPT both ways", _except)
    ):  # fmt: skip
        with stopwatch.processor_time(name, arena.cluster), contextlib.closing(connect()) as connection:
            measures[name] = work(connection)
    measures.update(stopwatch.seconds)
    # Verification inside the transaction computes what one session does afterwards.
    copied = max(measures[f"module{PROCESSOR}"] - measures[f"verify from one session{PROCESSOR}"], TICK)
    return {**measures, f"module without verification{PROCESSOR}": copied}


def _verify(connection, connect=None) -> float:
    """Seconds of our verification, on one snapshot of its own; from two sessions, as the module does it, with what opens the other."""
    started = time.monotonic()
    verify_database(Database(connection), connect=connect).require()
    return time.monotonic() - started


def _except(connection) -> float:
    """Seconds of comparing the same expectation with EXCEPT both ways, table by table."""
    with connection.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ;" + SESSION)
        started = time.monotonic()
        cursor.execute(_script("expected"))
        for table in FILLED:
            columns = _tables(_lasting_columns(cursor, table))
            expected = sql.SQL("SELECT {} FROM {}").format(columns, sql.Identifier(f"expected_{table}"))
            found = sql.SQL("SELECT {} FROM {}").format(columns, sql.Identifier(table))
            cursor.execute(
                sql.SQL("SELECT count(*) FROM (({e} EXCEPT {f}) UNION ALL ({f} EXCEPT {e})) AS difference").format(e=expected, f=found)
            )
            if cursor.fetchone()[0]:
                raise BenchError(f"The module's {table} and the hand-written expectation differ.")
        seconds = time.monotonic() - started
        cursor.execute("ROLLBACK")
    return seconds


class _InPlace(AtomicCopy):
    """The module's own copy with indexes and foreign keys left where they are."""

    def _take_down(self) -> int:
        _journal.create(self.database)
        return 0


def module_in_place(arena: Arena, database: str) -> dict[str, float]:
    """The module's copy, every row through indexes and foreign keys."""
    stopwatch = Stopwatch()
    with stopwatch.processor_time("module in place", arena.cluster), contextlib.closing(arena.cluster.connect(database)) as connection:
        result = _InPlace(Database(connection), Options(), lambda: Database(arena.cluster.connect(database))).run()
    verification = next(phase["duration_ms"] for phase in result["phases"] if phase["name"] == "verify")
    return {
        **stopwatch.seconds,
        "module in place": result["duration_ms"] / 1000,
        "module in place without verification": (result["duration_ms"] - verification) / 1000,
    }


# --- by hand ----------------------------------------------------------------------------------------------------------


def _by_hand(arena: Arena, database: str, name: str, scripts: tuple[str, ...]) -> dict[str, float]:
    stopwatch = Stopwatch()
    with (
        stopwatch.processor_time(name, arena.cluster),
        contextlib.closing(arena.cluster.connect(database)) as connection,
        connection.cursor() as cursor,
        stopwatch.time(name),
    ):
        cursor.execute("BEGIN;" + SESSION)
        cursor.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(_tables(SOURCES)))
        for script in scripts:
            with stopwatch.time(f"{name}: {script}"):
                cursor.execute(_script(script))
        # Whoever opens these tables to an application gives the planner its statistics first.
        with stopwatch.time(f"{name}: analyze"):
            cursor.execute(sql.SQL("ANALYZE {}").format(_tables(FILLED)))
        cursor.execute("COMMIT")
    return stopwatch.seconds


def by_hand_deferred(arena: Arena, database: str) -> dict[str, float]:
    """Hand-written SQL, indexes and foreign keys built at the end; one transaction, no journal, no policies, no proof."""
    return _by_hand(arena, database, "by hand, deferred", ("take_down", "expected", "fill", "build"))


def by_hand_in_place(arena: Arena, database: str) -> dict[str, float]:
    """The same, indexes and foreign keys in place."""
    return _by_hand(arena, database, "by hand, in place", ("expected", "fill"))


# --- floor and client -------------------------------------------------------------------------------------------------


def floor_and_clients(arena: Arena, database: str) -> dict[str, float]:
    """The bare CREATE TABLE AS of the legacy tables, then clients that go row by row, each on a sample."""
    stopwatch = Stopwatch()
    with contextlib.closing(arena.cluster.connect(database)) as connection, connection.cursor() as cursor:
        for table in COPIED:
            with stopwatch.time(f"floor {table}"):
                cursor.execute(sql.SQL("CREATE TABLE {} AS TABLE {}").format(sql.Identifier(f"floor_{table}"), sql.Identifier(table)))
    # Over TCP, as an application and as the module connect.
    over_tcp = {"host": arena.cluster.tcp_host, "password": arena.cluster.password}
    with contextlib.closing(arena.cluster.connect(database, **over_tcp)) as connection, connection.cursor() as cursor:
        rate = _row_by_row(cursor)
    return {
        "floor bookings": stopwatch.seconds["floor bookings"], "floor": sum(stopwatch.seconds.values()), "plain client rows/s": rate,
        "guide's client rows/s": _guide_client(arena.cluster, database),
    }  # fmt: skip


def _guide_client(cluster, database: str) -> float:
    """Rows per second of the migration guide's way: Prisma Client in one transaction. Of a sample."""
    installation = prisma_cli.install()
    # The generator looks for its packages from the schema on upwards, and would install what it does not find there.
    schema = shutil.copytree(prisma_cli.PRISMA_DIRECTORY, installation / "bench", dirs_exist_ok=True)
    generated = prisma_cli.PrismaCli(cluster, database, schema).run("generate")
    if generated.returncode:
        raise BenchError(f"Prisma Client could not be generated: {generated.stdout[-2000:]}")
    environment = {
        "PATH": os.environ["PATH"], "PGHOST": cluster.tcp_host, "PGPORT": str(cluster.port), "PGUSER": cluster.user,
        "PGPASSWORD": cluster.password, "PGDATABASE": database, "SAMPLE": str(CLIENT_SAMPLE),
    }  # fmt: skip
    done = subprocess.run(
        ["node", str(GUIDE_CLIENT)], cwd=installation, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise BenchError(f"The guide's client failed: {done.stderr[-2000:]}")
    written = json.loads(done.stdout)
    return written["rows"] / written["seconds"]


def _row_by_row(cursor) -> float:
    """Rows per second of the fastest such client: a look-up and an INSERT for each row through the bare driver, in one transaction.

    A sample: customers with their roles first, then bookings of these customers. Indexes and foreign keys are in place.
    The rows are gone again afterwards.
    """
    cursor.execute('SELECT id, email, "emailVerified", password, name, phone, image, "createdAt", "updatedAt" FROM customers ORDER BY id LIMIT %s',
                   (CLIENT_SAMPLE // 3,))  # fmt: skip
    customers = cursor.fetchall()
    columns = [name for name in migration_columns(cursor, "bookings") if name != "customerId"]
    cursor.execute(
        sql.SQL('SELECT {} FROM bookings WHERE "customerId" = ANY (%s) LIMIT %s').format(_tables(columns)),
        ([row[0] for row in customers], CLIENT_SAMPLE),
    )
    bookings = cursor.fetchall()
    insert_booking = sql.SQL('INSERT INTO new_bookings ("customerId", {}) VALUES (%s, {})').format(
        _tables(columns), sql.SQL(", ").join([sql.Placeholder()] * len(columns))
    ).as_string(cursor)
    email = columns.index("customerEmail")
    written = 0
    started = time.monotonic()
    cursor.execute("BEGIN")
    for row in customers:
        cursor.execute("SELECT id FROM users WHERE email = %s", (row[1],))
        if cursor.fetchone():
            continue
        cursor.execute(
            'INSERT INTO users (id, email, "emailVerified", password, name, phone, image, "createdAt", "updatedAt")'
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)", row)  # fmt: skip
        cursor.execute('INSERT INTO user_role_assignments (id, "userId", role) VALUES (%s, %s, %s)', ("r" + row[0], row[0], "CUSTOMER"))
        written += 2
    for row in bookings:
        cursor.execute("SELECT id FROM users WHERE email = %s", (row[email],))
        user = cursor.fetchone()
        cursor.execute(insert_booking, (user[0] if user else customers[0][0], *row))
        written += 1
    seconds = time.monotonic() - started
    cursor.execute("ROLLBACK")
    return written / seconds


# --- the same work ----------------------------------------------------------------------------------------------------


def migration_columns(cursor, table: str) -> list[str]:
    """The columns of a table, in order."""
    cursor.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum", (f'"{table}"',)
    )
    return [row[0] for row in cursor]


def _lasting_columns(cursor, table: str) -> list[str]:
    return [name for name in migration_columns(cursor, table) if name not in MOMENTS]


def outcome(connection) -> dict:
    """What a contender left behind: rows and checksum of each unified table, and its indexes and constraints."""
    tables, catalogue = {}, []
    with connection.cursor() as cursor:
        for table in FILLED:
            cursor.execute(
                sql.SQL("SELECT count(*), sum(hashtextextended(ROW({})::text, 0)::numeric)::text FROM {}").format(
                    _tables(_lasting_columns(cursor, table)), sql.Identifier(table)
                )
            )
            tables[table] = cursor.fetchone()
        cursor.execute(
            "SELECT indexdef FROM pg_indexes WHERE tablename = ANY (%(tables)s)"
            " UNION ALL SELECT conrelid::regclass::text || ' ' || conname || ' ' || pg_get_constraintdef(oid) || convalidated"
            " FROM pg_constraint WHERE conrelid IN (SELECT oid FROM pg_class WHERE relname = ANY (%(tables)s))",
            {"tables": list(UNIFIED_TABLES)},
        )
        catalogue = sorted(row[0] for row in cursor)
    return {**tables, "indexes and constraints": catalogue}


#: Name -> (function, whether it leaves the whole unified side behind).
CONTENDERS = {
    "module": (module, True),
    "by hand, deferred": (by_hand_deferred, True),
    "module in place": (module_in_place, True),
    "by hand, in place": (by_hand_in_place, True),
    "floor and clients": (floor_and_clients, False),
}


def measure(arena: Arena, repetition: int, expected: dict | None, progress) -> tuple[dict[str, float], dict | None]:
    """Let every contender work once, each repetition beginning with another one.

    Args:
        arena: of the size to measure.
        repetition: from 0 on.
        expected: the outcome of an earlier repetition, or None to compare outcomes in this one.
        progress: called with the name and the measures of each contender.

    Returns:
        All measures, and the outcome all contenders share.

    Raises:
        BenchError: two contenders left different rows or catalogues behind.
    """
    names = list(CONTENDERS)
    turn = repetition % len(names)
    compare, measures = expected is None, {}
    for name in names[turn:] + names[:turn]:
        function, complete = CONTENDERS[name]
        with arena.fresh() as database:
            found = function(arena, database)
            if compare and complete:
                with contextlib.closing(arena.cluster.connect(database)) as connection:
                    left = outcome(connection)
                if expected is not None and left != expected:
                    differing = [key for key in left if left[key] != expected[key]]
                    raise BenchError(f"'{name}' left other results behind than its competitors: {', '.join(differing)}.")
                expected = left
        measures.update(found)
        progress(name, found)
    return measures, expected
