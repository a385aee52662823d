"""Measures the online copy beside the atomic one, and what it does to an application that writes meanwhile.

The application is pgbench: half of its writes are bookings, the others names of random customers and statuses of random bookings.
What a write takes counts from when it was due, so that one that is held up counts for those behind it, too.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._online import OnlineCopy, OnlineOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import verify_database

from bench.clients import Clients, Write, percentile, refused, script, took
from bench.contenders import PROCESSOR, Arena, BenchError, Stopwatch
from bench.report import Table
from bench.results import Measures, Target
from bench.sections import Section, conditions, repeat, verdict

#: Writes per second of the application.
RATE = 50
#: For how long the application writes by itself first, in seconds, and how much of that is only there to warm it up.
CALM, WARM_UP = 12.0, 2.0
WORKERS = (1, 2)
#: Bookings twice: pgbench picks each script as often as the others.
SCRIPTS = ("booking", "booking", "profile", "status")
WRITERS = {"inserts": (0, 1), "updates": (2, 3)}
SHARES = {"p50": 0.5, "p99": 0.99}
#: How often the run's sessions are looked at, in seconds.
LOOK = 0.05
ATOMIC, ALONE = "atomic", "online, nobody writes"
#: What `longest_transactions` tells apart.
ROWS, TABLES, ANY = "holding rows that it wrote", "holding a table against writes", "of any kind"

# Locks on temporary tables and on the catalogue are in nobody's way.
_LOOK_AT = """
SELECT a.pid, a.xact_start::text AS begun, extract(epoch FROM clock_timestamp() - a.xact_start)::float * 1000 AS ms, left(a.query, 80) AS query,
       a.backend_xid IS NOT NULL AND coalesce(bool_or(l.mode = 'RowExclusiveLock'), false) AS rows,
       coalesce(bool_or(l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')), false) AS tables
FROM pg_stat_activity AS a LEFT JOIN (
    SELECT l.pid, l.mode FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation AND c.relkind IN ('r', 'p')
    WHERE l.granted AND l.locktype = 'relation' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND c.relnamespace::regnamespace::text IN ('public', 'unified_user_journal')
) AS l ON l.pid = a.pid
WHERE a.datname = current_database() AND a.application_name = 'unified_user' AND a.xact_start IS NOT NULL
GROUP BY a.pid, a.xact_start, a.query, a.backend_xid
"""

_LONGEST_WAIT = """
SELECT coalesce(max(extract(epoch FROM clock_timestamp() - l.waitstart)), 0)::float * 1000 AS ms
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE NOT l.granted AND a.datname = current_database() AND a.application_name = 'pgbench'
"""


def online(workers: int) -> str:
    """Return the name of the contender beside which the application writes."""
    return f"online, {workers} worker{'s' * (workers > 1)}"


class Watch(threading.Thread):
    """Looks at a run's sessions from one of its own: how long their transactions last and hold locks, how long writers wait for one.

    Args:
        connection: in autocommit mode, nobody else's.
    """

    def __init__(self, connection) -> None:
        super().__init__(daemon=True)
        self._database = Database(connection)
        self._enough = threading.Event()
        self._seen: dict[tuple[str, int, str], dict] = {}
        self.longest_wait = 0.0
        self.failure: BaseException | None = None

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_exception) -> None:
        self._enough.set()
        self.join(30)
        self._database.close()

    def run(self) -> None:
        try:
            while not self._enough.wait(LOOK):
                for row in self._database.rows(_LOOK_AT):
                    for kind, holds in ((ROWS, row["rows"]), (TABLES, row["tables"]), (ANY, True)):
                        if holds:
                            self._seen[kind, row["pid"], row["begun"]] = {"ms": round(row["ms"], 1), "query": row["query"]}
                self.longest_wait = max(self.longest_wait, self._database.value(_LONGEST_WAIT))
        except BaseException as error:
            # Told where the measures are asked for.
            self.failure = error

    def longest_transactions(self, kind: str) -> list[dict]:
        """Return the five that lasted longest, each with its last statement: none was seen at its very end, so up to `LOOK` is missing.

        Raises:
            BenchError: the watch could not watch.
        """
        if self.failure:
            raise BenchError(f"The run could not be watched: {self.failure}")
        return sorted((seen for (what, *_whose), seen in self._seen.items() if what == kind), key=lambda seen: -seen["ms"])[:5]


class OnlineBench:
    """Fresh databases, and who migrates them.

    Args:
        cluster: the server.
        bookings: size of the reference case.
        calm: for how long the application writes by itself first, in seconds.
        progress: shows a line.
    """

    def __init__(self, cluster, bookings: int, calm: float, progress: Callable[[str], None]) -> None:
        self._arena = Arena(cluster, bookings)
        self._calm = calm
        self._progress = progress
        #: What is not a number: the longest transactions of each contender, the last repetition's.
        self.details: dict[str, dict[str, list[dict]]] = {}

    def __enter__(self) -> OnlineBench:
        self._arena.prepare()
        return self

    def __exit__(self, *_exception) -> None:
        self._arena.drop()

    def measure(self, repetition: int) -> Measures:
        """Let each contender migrate a fresh database; who comes first changes from one repetition to the next."""
        turns: list[Callable[[str], Measures]] = [self._atomic, self._alone]
        turns += [functools.partial(self._beside, workers=workers) for workers in WORKERS]
        turn = repetition % len(turns)
        measures: Measures = {}
        for contender in turns[turn:] + turns[:turn]:
            with self._arena.fresh() as database:
                measures.update(contender(database))
        for name in (ALONE, *map(online, WORKERS)):
            measures[f"{name} / {ATOMIC}"] = measures[name] / measures[ATOMIC]
        for workers in WORKERS:
            for writer in WRITERS:
                meanwhile, before = (measures[f"{online(workers)}: {writer} {when} p99"] for when in ("meanwhile", "before"))
                measures[f"{online(workers)}: {writer} p99 / before"] = meanwhile / before
        return measures

    def _connect(self, database: str) -> Database:
        return Database(self._arena.cluster.connect(database, application_name="unified_user"))

    def _atomic(self, database: str) -> Measures:
        return self._migrate(database, ATOMIC, lambda session: AtomicCopy(session, Options(sync=True), lambda: self._connect(database)))

    def _alone(self, database: str, workers: int = 1, name: str = ALONE) -> Measures:
        chosen = OnlineOptions(owner="bench", workers=workers)
        return self._migrate(database, name, lambda session: OnlineCopy(session, Options(sync=True), chosen, lambda: self._connect(database)))

    def _migrate(self, database: str, name: str, make: Callable[[Database], AtomicCopy]) -> Measures:
        stopwatch = Stopwatch()
        with (
            # The application's sessions go on, so that only the run's own are counted.
            stopwatch.processor_time(name, self._arena.cluster),
            contextlib.closing(self._connect(database)) as session,
            Watch(self._arena.cluster.connect(database)) as watch,
            stopwatch.time(name),
        ):
            result = make(session).run()
        if not (result["changed"] and result["finished"]):
            raise BenchError(f"'{name}' found nothing to do in a fresh database, or did not come to its end.")
        self.details[name] = {kind: watch.longest_transactions(kind) for kind in (ROWS, TABLES, ANY)}
        measures = {f"{name}: longest transaction {kind}": max([found["ms"] for found in all_found], default=0.0)
                    for kind, all_found in self.details[name].items()}  # fmt: skip
        measures.update({f"{name}: phase {phase['name']}": phase["duration_ms"] / 1000 for phase in result["phases"]})
        if "longest_batch_ms" in result:
            measures[f"{name}: longest batch"] = float(result["longest_batch_ms"])
        self._progress(f"{name}: {stopwatch.seconds[name]:.1f} s")
        return {**measures, **stopwatch.seconds, f"{name}: longest wait": watch.longest_wait}

    def _beside(self, database: str, workers: int) -> Measures:
        """Migrate beside the application, which has written before and writes until it is done."""
        name = online(workers)
        writers = Clients(
            self._arena.cluster, database, self._arena.bookings, [script("legacy", kind) for kind in SCRIPTS],
            "--client", "4", "--time", "3600", "--rate", str(RATE),
        )  # fmt: skip
        with writers.beside() as writes:
            time.sleep(WARM_UP * self._calm / CALM)
            warm = time.time()
            time.sleep(self._calm)
            started = time.time()
            measures = self._alone(database, workers, name)
            ended = time.time()
        with contextlib.closing(self._connect(database)) as session:
            # Whatever was written meanwhile is there.
            verify_database(session).require()
        for when, low, high in (("before", warm, started), ("meanwhile", started, ended)):
            measures.update(latencies(writes, low, high, f"{name}: ", f" {when} "))
        meanwhile = [write for write in writes if started <= write.ended < ended]
        measures.update({f"{name}: writes meanwhile": float(len(meanwhile)), f"{name}: writes refused": float(refused(meanwhile))})
        return measures


def latencies(writes: list[Write], low: float, high: float, prefix: str, when: str) -> Measures:
    """Return the percentiles of the writes that ended between two moments, in milliseconds, by who wrote."""
    found = {}
    for writer, kinds in WRITERS.items():
        values = took(write for write in writes if write.kind in kinds and low <= write.ended < high)
        found.update({f"{prefix}{writer}{when}{label}": percentile(values, share) for label, share in SHARES.items()})
    return found


def _of(name: str) -> Callable[[Measures], float]:
    return lambda measures: measures[name]


TARGETS = (
    *(Target(f"{online(workers)}, {RATE} writes/s / {ATOMIC}", 1.5, _of(f"{online(workers)} / {ATOMIC}")) for workers in WORKERS),
    *(Target(f"{online(workers)}: longest batch of the backfill", 1000, _of(f"{online(workers)}: longest batch"), unit="ms") for workers in WORKERS),
    *(Target(f"{online(workers)}: longest transaction {kind}", 1000, _of(f"{online(workers)}: longest transaction {kind}"), unit="ms")
      for workers in WORKERS for kind in (ROWS, TABLES)),
    *(Target(f"{online(workers)}: p99 of {writer} / their p99 before", 2.0, _of(f"{online(workers)}: {writer} p99 / before"))
      for workers in WORKERS for writer in WRITERS),
    *(Target(f"{online(workers)}: writes that ended in a deadlock", 0, _of(f"{online(workers)}: writes refused"), unit="")
      for workers in WORKERS),
)  # fmt: skip


def measure(cluster, bookings: int, repetitions: int, progress: Callable[[str], None], calm: float = CALM) -> dict:
    """Return what each repetition measured, the medians, and the longest transactions of the last repetition."""

    def show(repetition: int, sample: Measures) -> None:
        ratios = ", ".join(f"{name} {sample[f'{name} / {ATOMIC}']:.2f} ×" for name in (ALONE, *map(online, WORKERS)))
        progress(f"repetition {repetition + 1}, against the atomic copy: {ratios}")

    with OnlineBench(cluster, bookings, calm, progress) as bench:
        return {"bookings": bookings, **repeat(bench.measure, repetitions, show), "longest transactions": bench.details}


def tables(result: dict) -> list[Table]:
    """Return seconds, targets, latencies and phases."""
    medians = result["medians"]
    names = (ATOMIC, ALONE, *map(online, WORKERS))
    seconds = [[name, f"{medians[name]:.2f}", f"{medians[name] / medians[ATOMIC]:.2f} ×",
                f"{medians[name + PROCESSOR]:.2f}", f"{medians[name + PROCESSOR] / medians[ATOMIC + PROCESSOR]:.2f} ×"]
               for name in names]  # fmt: skip
    milliseconds = [[f"longest transaction {kind}", *(f"{medians[f'{name}: longest transaction {kind}']:,.0f}" for name in names)]
                    for kind in (ROWS, TABLES, ANY)]  # fmt: skip
    milliseconds.append(["longest wait of a writer for a lock", *(f"{medians[f'{name}: longest wait']:,.0f}" for name in names)])
    latency = [
        [f"{writer}, {label}, {online(workers)}", *(f"{medians[f'{online(workers)}: {writer} {when} {label}']:.1f}" for when in ("before", "meanwhile"))]
        for workers in WORKERS for writer in WRITERS for label in SHARES
    ]  # fmt: skip
    done = list(dict.fromkeys(name.split(": phase ")[1] for name in medians if ": phase " in name))
    phases = [[phase, *(f"{medians[key]:.2f}" if (key := f"{name}: phase {phase}") in medians else "" for name in names)] for phase in done]
    return [
        ("Seconds, and against the atomic copy", ["", "seconds", "ratio", "processor", "ratio"], seconds),
        ("Targets of the online copy", ["", "median", "target"], [verdict(target, medians) for target in TARGETS]),
        ("Transactions, milliseconds", ["", *names], milliseconds),
        ("Writes of the application, milliseconds", ["", "before", "meanwhile"], latency),
        ("Phases, seconds", ["", *names], phases),
    ]


def sentence(result: dict) -> str:
    """Say what was measured."""
    return (
        f"{result['bookings']:,} bookings, all copies with the sync on at their end; {RATE} writes/s of the application, half of them inserts, "
        f"timed from when they were due. Transactions are looked at every {LOOK * 1000:g} ms. {conditions(result)}"
    )


SECTION = Section("online", "the online copy beside the atomic one, and an application beside it (300000)", measure, tables, sentence, TARGETS)
