"""Measures backup and restore test beside plain pg_dump and pg_restore with the same settings, on one server, in one run."""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.contenders import PROCESSOR, Stopwatch
from bench.report import Table
from bench.results import Measures, Target
from bench.sections import Section, conditions, repeat, verdict
from tests.app import migration_history, reference_data
from tests.module_process import connection_options, run_module

JOBS = 2
DUMP, RESTORE, BACKUP, TEST = "pg_dump", "pg_restore", "backup", "restore test"

TARGETS = (
    Target("backup / plain pg_dump", 1.15, lambda measures: measures[BACKUP] / measures[DUMP]),
    Target("restore test / plain pg_restore", 1.25, lambda measures: measures[TEST] / measures[RESTORE]),
)


#: Ratios that have no target, but that what else the machine does changes less.
CONTEXT = tuple((f"processor time: {ours} / {plain}", ours + PROCESSOR, plain + PROCESSOR) for ours, plain in ((BACKUP, DUMP), (TEST, RESTORE)))


def _clients_seconds() -> float:
    """What the processes that this one started and waited for have computed."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class BackupBench:
    """One database, and a directory for what is made of it.

    Args:
        cluster: the server.
        bookings: size of the reference case.
        directory: an empty directory on the disk that is to be measured.
    """

    def __init__(self, cluster, bookings: int, directory: Path) -> None:
        self._cluster, self._directory = cluster, directory
        self.database = f"bench_backup_{bookings}"
        self._options = {
            **connection_options(cluster, self.database),
            "directory": str(directory / "backups"),
            "bin_dir": str(Path(cluster.bin("pg_dump")).parent),
            "jobs": JOBS,
        }
        cluster.create_database(self.database)
        with contextlib.closing(cluster.connect(self.database)) as connection:
            migration_history.apply_migrations(connection, migration_history.legacy_migrations())
            reference_data.load_benchmark(connection, bookings=bookings)
            with connection.cursor() as cursor:
                cursor.execute("VACUUM (FREEZE, ANALYZE)")
                cursor.execute("CHECKPOINT")
                cursor.execute("SELECT pg_database_size(current_database())")
                self.size_bytes = cursor.fetchone()[0]

    def measure(self, repetition: int) -> Measures:
        """Return the seconds of each contender, by the clock and of the processor; who comes first changes from one repetition to the next."""
        shutil.rmtree(self._directory / "plain", ignore_errors=True)
        shutil.rmtree(self._directory / "backups", ignore_errors=True)
        pairs: list[tuple[tuple[str, Callable[[], None]], tuple[str, Callable[[], None]]]] = [
            ((DUMP, self._dump), (BACKUP, lambda: self._module("database_backup"))),
            ((RESTORE, self._restore), (TEST, lambda: self._module("database_restore"))),
        ]
        seconds = {}
        for pair in pairs:
            for name, contender in pair if repetition % 2 == 0 else reversed(pair):
                stopwatch = Stopwatch()
                clients = _clients_seconds()
                with stopwatch.processor_time(name, self._cluster), stopwatch.time(name):
                    contender()
                stopwatch.seconds[name + PROCESSOR] += _clients_seconds() - clients
                seconds.update(stopwatch.seconds)
        return seconds

    def _client(self, program: str, *arguments: str) -> None:
        place = ["--host", str(self._cluster.host), "--port", str(self._cluster.port), "--username", self._cluster.user]
        subprocess.run([self._cluster.bin(program), *place, *arguments], check=True)

    def _dump(self) -> None:
        self._client("pg_dump", "--format=directory", f"--jobs={JOBS}", "--compress=1", f"--file={self._directory / 'plain'}", self.database)

    def _restore(self) -> None:
        name = f"{self.database}_plain"
        self._cluster.create_database(name)
        self._client("pg_restore", f"--jobs={JOBS}", "--exit-on-error", f"--dbname={name}", str(self._directory / "plain"))
        self._cluster.drop_database(name)

    def _module(self, name: str) -> None:
        with contextlib.redirect_stdout(None):
            result = run_module(name, self._options)
        if result.get("failed"):
            raise RuntimeError(result["msg"])

    def drop(self) -> None:
        """Drop the database."""
        self._cluster.drop_database(self.database)


def measure(cluster, bookings: int, repetitions: int, progress: Callable[[str], None]) -> dict:
    """Return the size of the database in bytes, the seconds of each repetition, and their medians."""

    def show(_repetition: int, sample: Measures) -> None:
        progress(", ".join(f"{name} {seconds:.1f} s" for name, seconds in sample.items() if not name.endswith(PROCESSOR)))

    with tempfile.TemporaryDirectory(prefix="unified_user-bench-") as folder:
        bench = BackupBench(cluster, bookings, Path(folder))
        try:
            return {"bookings": bookings, "size_bytes": bench.size_bytes, **repeat(bench.measure, repetitions, show)}
        finally:
            bench.drop()


def tables(result: dict) -> list[Table]:
    """Return seconds, and ratios with their verdicts."""
    medians = result["medians"]
    seconds = [[name, f"{medians[name]:.1f} s"] for name in (DUMP, BACKUP, RESTORE, TEST)]
    ratios = [verdict(target, medians) for target in TARGETS]
    ratios += [[name, f"{medians[ours] / medians[plain]:.2f} ×", ""] for name, ours, plain in CONTEXT]
    return [("Seconds", ["", "median"], seconds), ("Ratios", ["", "ratio", "target"], ratios)]


def sentence(result: dict) -> str:
    """Say what was measured."""
    return f"A database of {result['size_bytes'] / 1e6:,.0f} MB, {JOBS} workers, gzip at level 1. {conditions(result)}"


SECTION = Section("backup", "backup and restore test (1500000 bookings: about 1 GB)", measure, tables, sentence, TARGETS)
