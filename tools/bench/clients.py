"""Clients that write: pgbench with a script for each kind of write, one that runs to its end and one beside something else."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import BenchError
from tests.app import reference_data

SCRIPTS = Path(__file__).resolve().parent / "writes"


@dataclass(frozen=True)
class Write:
    """One write of a client.

    Attributes:
        kind: which of the scripts made it, by its place among them.
        ended: when, in seconds since the epoch.
        milliseconds: from when it was due to its end; None when it ended in a deadlock or in a serialization failure.
    """

    kind: int
    ended: float
    milliseconds: float | None


def script(side: str, kind: str) -> Path:
    """Return the script of a kind of write on the ``legacy`` or the ``unified`` side."""
    return SCRIPTS / side / f"{kind}.sql"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share (0 to 1) of the values does not exceed.

    Raises:
        BenchError: there are no values.
    """
    if not values:
        raise BenchError("No write was measured.")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def took(writes: Iterable[Write]) -> list[float]:
    """Return the milliseconds of those writes that were done."""
    return [write.milliseconds for write in writes if write.milliseconds is not None]


def refused(writes: Iterable[Write]) -> int:
    """Return how many writes were not done."""
    return sum(write.milliseconds is None for write in writes)


def read_log(text: str) -> list[Write]:
    """Return the writes of a pgbench log."""
    fields = [line.split() for line in text.splitlines()]
    return [
        Write(int(kind), int(seconds) + int(microseconds) / 1e6, int(spent) / 1000 if spent.isdecimal() else None)
        for _client, _number, spent, kind, seconds, microseconds, *_lag in fields
    ]


class Clients:
    """pgbench against one database of a reference case.

    Args:
        cluster: the server.
        database: one that holds the benchmark's rows.
        bookings: how many of them.
        scripts: what is written, each as often as the others.
        arguments: further ones for pgbench.
    """

    def __init__(self, cluster, database: str, bookings: int, scripts: Sequence[Path], *arguments: str) -> None:
        self._cluster, self._database = cluster, database
        shape = reference_data.benchmark_shape(bookings)
        numbers = {"bookings": shape.bookings, "customers": shape.customers, "joined": shape.joined, "studios": shape.studios}
        self._arguments = [
            str(cluster.bin("pgbench")), "--host", str(cluster.host), "--port", str(cluster.port), "--username", cluster.user,
            "--no-vacuum", "--protocol=prepared", "--log", *arguments,
            *(part for name, value in numbers.items() for part in ("--define", f"{name}={value}")),
            *(part for path in scripts for part in ("--file", str(path))), database,
        ]  # fmt: skip
        self._folder = tempfile.TemporaryDirectory(prefix="unified_user-bench-")

    def _start(self) -> subprocess.Popen:
        command = [self._arguments[0], "--log-prefix", str(Path(self._folder.name) / "log"), *self._arguments[1:]]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _writes(self) -> list[Write]:
        with self._folder:
            return read_log("".join(path.read_text(encoding="utf-8") for path in Path(self._folder.name).iterdir()))

    def run(self) -> tuple[float, list[Write]]:
        """Run to the end; return transactions per second, and the writes.

        Raises:
            BenchError: pgbench could not do it, or the server refused one of the writes.
        """
        process = self._start()
        output, errors = process.communicate()
        writes = self._writes()
        found = re.search(r"^tps = ([\d.]+)", output, re.MULTILINE)
        if process.returncode or not found:
            raise BenchError(f"pgbench failed: {errors[-2000:]}")
        if refused(writes):
            raise BenchError(f"{refused(writes)} of {len(writes)} writes ended in a deadlock or in a serialization failure.")
        return float(found[1]), writes

    @contextlib.contextmanager
    def beside(self):
        """Run while the block does; what was written is in the list that it is given, once the block has ended.

        Raises:
            BenchError: the clients ended too early.
        """
        writes: list[Write] = []
        process = self._start()
        try:
            yield writes
        finally:
            early = process.poll() is not None
            deadline = time.monotonic() + 60
            # A signal would lose what is not in the log yet; clients without sessions end by themselves.
            while process.poll() is None and time.monotonic() < deadline:
                self._end_sessions()
                time.sleep(0.05)
            process.kill()
            errors = process.communicate()[1]
            writes.extend(self._writes())
        if early or "ERROR:" in errors:
            raise BenchError(f"Clients that were to write all the while did not: {errors[-2000:]}")

    def _end_sessions(self) -> None:
        with contextlib.closing(self._cluster.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND application_name = 'pgbench'", (self._database,)
            )
