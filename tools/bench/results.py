"""From samples to medians, ratios, the scaling exponent and the verdict on each target. Plain arithmetic, no database."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

#: Measures of one size by name.
Measures = dict[str, float]

MEMORY_LIMIT_MB = 80

#: How often a size is measured at least.
REPETITIONS = 3


def repetitions(size: int) -> int:
    """Return how often to measure a number of bookings: what is over in a minute is most at the mercy of what else a shared machine does then."""
    return REPETITIONS + 2 * max(0, round(math.log10(3_000_000 / size)))


def medians(samples: list[Measures]) -> Measures:
    """Return the median of each measure over the repetitions of one size."""
    return {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}


def spread(samples: list[Measures], name: str) -> float:
    """Return how far apart the repetitions of a measure are: (largest - smallest) / median."""
    values = [sample[name] for sample in samples]
    return (max(values) - min(values)) / statistics.median(values)


def exponent(points: list[tuple[float, float]]) -> float:
    """Return b of the least-squares fit seconds = a * size ** b, in logarithms.

    Args:
        points: at least two (size, seconds), both positive, of different sizes.
    """
    logs = [(math.log(size), math.log(seconds)) for size, seconds in points]
    return statistics.linear_regression([x for x, unused in logs], [y for unused, y in logs]).slope


@dataclass(frozen=True)
class Target:
    """A ratio of two measures of one size, and what it must not exceed (or, with ``least``, not fall short of)."""

    name: str
    limit: float
    compute: Callable[[Measures], float]
    least: bool = False
    unit: str = "×"

    def met(self, value: float) -> bool:
        """Whether a value is within the limit."""
        return value >= self.limit if self.least else value <= self.limit

    @property
    def wanted(self) -> str:
        """The limit as people read it."""
        return f"{'≥' if self.least else '≤'} {self.limit:g} {self.unit}"


def _ratio(left: str, right: str) -> Callable[[Measures], float]:
    return lambda measures: measures[left] / measures[right]


def _speed(client: str) -> Callable[[Measures], float]:
    return lambda measures: measures["rows"] / measures["module without verification"] / measures[client]


TARGETS = (
    Target("copy / the same copy with indexes and foreign keys in place", 0.50,
           _ratio("module without verification", "module in place without verification")),
    Target("copy / best hand-written SQL, indexes and foreign keys built afterwards", 1.10,
           _ratio("module without verification", "by hand, deferred")),
    Target("copy, rows/s / the guide's client, row by row", 50, _speed("guide's client rows/s"), least=True),
    Target("verification / copy", 0.40, _ratio("verify", "module without verification")),
    Target("second run / first run", 0.30, _ratio("second run", "module")),
    Target("peak memory of the module's process", MEMORY_LIMIT_MB, lambda measures: measures["memory"], unit="MB"),
)  # fmt: skip

#: Ratios that have no target but tell where the time goes.
CONTEXT = (
    ("copy and verification / the same with indexes and foreign keys in place", _ratio("module", "module in place")),
    ("copy / the same rows by hand, indexes and foreign keys in place", _ratio("module without verification", "by hand, in place")),
    ("copy / CREATE TABLE AS of the legacy tables", _ratio("module without verification", "floor")),
    ("copy, rows/s / the bare driver, row by row", _speed("plain client rows/s")),
    ("our verification / EXCEPT both ways", _ratio("verify", "EXCEPT both ways")),
    ("verification inside the transaction / copy", _ratio("phase verify", "module without verification")),
    ("second run / first run, whole processes", _ratio("second run process", "module process")),
    ("processor time: copy / best hand-written SQL", _ratio("module without verification (processor)", "by hand, deferred (processor)")),
    ("processor time: verification / copy", _ratio("verify (processor)", "module without verification (processor)")),
    ("processor time: our verification / EXCEPT both ways", _ratio("verify (processor)", "EXCEPT both ways (processor)")),
)

EXPONENT = Target("scaling exponent of copy and verification", 1.08, lambda unused: math.nan, unit="")
GROWTH = Target("growth of memory, largest size against smallest", 1.05, lambda unused: math.nan)


def across_sizes(results: dict[int, Measures]) -> list[tuple[Target, float]]:
    """Return what only several sizes together tell: the exponent and the growth of memory. Empty for one size."""
    if len(results) < 2:
        return []
    smallest, largest = min(results), max(results)
    return [
        (EXPONENT, exponent([(size, measures["module"]) for size, measures in results.items()])),
        (GROWTH, results[largest]["memory"] / results[smallest]["memory"]),
    ]


def all_met(results: dict[int, Measures]) -> bool:
    """Whether the largest size meets every target, and the sizes together theirs."""
    largest = results[max(results)]
    return all(target.met(target.compute(largest)) for target in TARGETS) and all(target.met(value) for target, value in across_sizes(results))
