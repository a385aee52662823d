"""Measures what the sync costs each kind of write, beside the same write without it, and how long turning it around holds writers up.

Three databases with the same rows stand side by side: with no sync, with forward, with both. A kind of write has its turn in each of
them directly after the other, so that ratios hold whatever else the machine does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import Sync, SyncOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options

from bench.clients import Clients, percentile, script, took
from bench.contenders import Arena
from bench.report import Table
from bench.results import Measures, Target
from bench.sections import Section, conditions, repeat

#: Name of a script -> what people call it.
KINDS = {
    "booking": "booking insert", "status": "status change", "profile": "profile change", "email": "e-mail change", "sign_up": "sign-up",
    "guest_booking": "guest booking",
}  # fmt: skip
#: Which side is written to, under which sync.
CASES = (("legacy", "forward"), ("legacy", "both"), ("unified", "both"))
CLIENTS = (1, 8)
OFF = "off"
FREQUENT = ("booking", "status", "profile")
RARE = ("email", "sign_up")
KEPT = {1: 0.5, 8: 0.3}
ADDED_MS = 3.0
#: For how long each kind writes in each database, as pgbench is told.
AMOUNT = ("--time", "2")
#: Writes per second while the sync is turned around, and for how many seconds before and after it.
PAUSED_RATE = 100
CALM = 2.0

_PAUSE = ("cut-over, seconds", "cut-over, longest write ms", "cut-over, longest write before ms")


def _kept(side: str, direction: str, kind: str, clients: int) -> str:
    return f"{side} {kind}, {direction} / {OFF}, {clients} clients"


def _added(side: str, direction: str, kind: str) -> str:
    return f"{side} {kind}, {direction} - {OFF}, ms"


def _measure_of(name: str) -> Callable[[Measures], float]:
    return lambda measures: measures[name]


def _targets() -> dict[str, Target]:
    """Every target by the name of its measure."""
    found = {}
    for side, direction in CASES:
        where = f"{side} side under {direction}"
        for kind in FREQUENT:
            for clients, limit in KEPT.items():
                name = _kept(side, direction, kind, clients)
                found[name] = Target(f"{KINDS[kind]}, {where}: writes per second kept, {clients} clients", limit, _measure_of(name), least=True)
        for kind in RARE:
            name = _added(side, direction, kind)
            found[name] = Target(f"{KINDS[kind]}, {where}: median time added", ADDED_MS, _measure_of(name), unit="ms")
    return found


TARGETS = _targets()


class SyncBench:
    """The three databases.

    Args:
        cluster: the server.
        bookings: size of the reference case.
        amount: for how long each kind writes in each database, as pgbench is told.
    """

    def __init__(self, cluster, bookings: int, amount: Sequence[str] = AMOUNT) -> None:
        self._arena = Arena(cluster, bookings)
        self._amount = amount
        self._databases: dict[str, str] = {}

    def __enter__(self) -> SyncBench:
        arena = self._arena
        arena.prepare()
        with contextlib.closing(arena.cluster.connect(arena.template)) as connection:
            AtomicCopy(Database(connection), Options()).run()
        for direction in (OFF, "forward", "both"):
            self._databases[direction] = arena.cluster.create_database(f"{arena.template}_{direction}", arena.template)
            if direction != OFF:
                self._install(self._databases[direction], direction)
        return self

    def __exit__(self, *_exception) -> None:
        for database in self._databases.values():
            self._arena.cluster.drop_database(database)
        self._arena.drop()

    def _install(self, database: str, direction: str) -> None:
        with contextlib.closing(self._arena.cluster.connect(database)) as connection:
            Sync(Database(connection), SyncOptions()).install(direction)

    def measure(self, repetition: int) -> Measures:
        """Return writes per second, milliseconds, and what is made of them."""
        for database in self._databases.values():
            # Nothing does it by itself here, and every repetition leaves dead rows.
            with contextlib.closing(self._arena.cluster.connect(database)) as connection, connection.cursor() as cursor:
                cursor.execute("VACUUM (ANALYZE)")
                cursor.execute("CHECKPOINT")
        measures: Measures = {}
        for side in ("legacy", "unified"):
            directions = [OFF, *(direction for where, direction in CASES if where == side)]
            turn = repetition % len(directions)
            for kind in KINDS:
                for clients in CLIENTS:
                    for direction in directions[turn:] + directions[:turn]:
                        self._write(measures, side, kind, clients, direction)
        for side, direction in CASES:
            for kind in KINDS:
                measures[_added(side, direction, kind)] = measures[f"{side} {kind} {direction} ms"] - measures[f"{side} {kind} {OFF} ms"]
                for clients in CLIENTS:
                    with_sync, without = (measures[f"{side} {kind} {state} {clients} tps"] for state in (direction, OFF))
                    measures[_kept(side, direction, kind, clients)] = with_sync / without
        return {**measures, **self._cut_over()}

    def _write(self, measures: Measures, side: str, kind: str, clients: int, direction: str) -> None:
        database = self._databases[direction]
        writers = Clients(self._arena.cluster, database, self._arena.bookings, [script(side, kind)], "--client", str(clients), *self._amount)
        measures[f"{side} {kind} {direction} {clients} tps"], writes = writers.run()
        if clients == 1:
            measures[f"{side} {kind} {direction} ms"] = percentile(took(writes), 0.5)

    def _cut_over(self) -> Measures:
        """Turn forward into both while clients write."""
        with self._arena.fresh() as database:
            self._install(database, "forward")
            writers = Clients(
                self._arena.cluster, database, self._arena.bookings, [script("legacy", kind) for kind in FREQUENT],
                "--client", "8", "--time", "3600", "--rate", str(PAUSED_RATE),
            )  # fmt: skip
            with writers.beside() as writes:
                time.sleep(CALM)
                started = time.time()
                self._install(database, "both")
                ended = time.time()
                time.sleep(CALM)
        # What began during it may end after it.
        before, meanwhile = (took(write for write in writes if (write.ended < started) is early) for early in (True, False))
        return dict(zip(_PAUSE, (ended - started, max(meanwhile), max(before)), strict=True))


def measure(cluster, bookings: int, repetitions: int, progress: Callable[[str], None], amount: Sequence[str] = AMOUNT) -> dict:
    """Return what each repetition measured, and the medians."""

    def show(repetition: int, sample: Measures) -> None:
        kept = [sample[_kept(*CASES[0], kind, 1)] for kind in FREQUENT]
        shown = ", ".join(f"{KINDS[kind]} {value:.2f}" for kind, value in zip(FREQUENT, kept, strict=True))
        progress(f"repetition {repetition + 1}: kept under forward at one client: {shown}")

    with SyncBench(cluster, bookings, amount) as bench:
        return {"bookings": bookings, **repeat(bench.measure, repetitions, show)}


def _verdict(medians: Measures, names: list[str]) -> str:
    targets = {name: TARGETS[name] for name in names if name in TARGETS}
    missed = [target.wanted for name, target in targets.items() if not target.met(medians[name])]
    return f"missed {' and '.join(missed)}" if missed else "met" if targets else ""


def tables(result: dict) -> list[Table]:
    """Return a table for each side and direction, and one of the cut-over."""
    medians = result["medians"]
    found = []
    for side, direction in CASES:
        rows = []
        for kind, label in KINDS.items():
            row, names = [label], [_added(side, direction, kind)]
            for clients in CLIENTS:
                names.append(_kept(side, direction, kind, clients))
                row += [*(f"{medians[f'{side} {kind} {state} {clients} tps']:,.0f}" for state in (OFF, direction)), f"{medians[names[-1]]:.2f}"]
            rows.append([*row, f"{medians[names[0]]:.2f}", _verdict(medians, names)])
        headings = [part for clients in CLIENTS for part in (f"/s, {clients} client{'s' * (clients > 1)}", "with sync", "kept")]
        found.append((f"Writes on the {side} side, sync {direction}", ["", *headings, "ms added", "target"], rows))
    seconds, longest, before = (medians[name] for name in _PAUSE)
    pause = [["turning forward into both", f"{seconds * 1000:,.0f} ms"], ["longest write meanwhile", f"{longest:,.0f} ms"],
             [f"longest write in the {CALM:g} s before", f"{before:,.0f} ms"]]  # fmt: skip
    return [*found, (f"Cut-over, {PAUSED_RATE} writes/s", ["", "median"], pause)]


def sentence(result: dict) -> str:
    """Say what was measured."""
    wanted = ", ".join(f"{limit:g} at {clients} client{'s' * (clients > 1)}" for clients, limit in KEPT.items())
    return (
        f"{result['bookings']:,} bookings; pgbench with prepared statements over the socket, fsync on. Targets: of the writes per second that "
        f"{', '.join(KINDS[kind] for kind in FREQUENT)} do without sync, at least {wanted} are kept; "
        f"{' and '.join(KINDS[kind] for kind in RARE)} take at most {ADDED_MS:g} ms longer (median, one client). {conditions(result)}"
    )


SECTION = Section("sync", "what the sync costs each kind of write (30000)", measure, tables, sentence, tuple(TARGETS.values()))
