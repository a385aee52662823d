"""Runs of their own beside the main one: each has a size, tables, targets, a file of results and a place in the documentation."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import report, results
from bench.results import Measures, Target


@dataclass(frozen=True)
class Section:
    """One such run.

    Attributes:
        name: of the option, of the results' file and of the place in the documentation.
        help: what the option is for.
        measure: called with the server, the number of bookings, the number of repetitions and a function that shows a line;
            returns ``samples`` and ``medians``, and whatever the tables show.
        tables: titles, headings and rows of a result.
        sentence: what a result was measured under.
        targets: what is judged.
    """

    name: str
    help: str
    measure: Callable[..., dict]
    tables: Callable[[dict], list[report.Table]]
    sentence: Callable[[dict], str]
    targets: tuple[Target, ...]

    @property
    def markers(self) -> tuple[str, str]:
        """The lines around its tables in the documentation."""
        return f"<!-- bench {self.name}: begin -->", f"<!-- bench {self.name}: end -->"

    def all_met(self, result: dict) -> bool:
        """Whether every target is met."""
        return all(target.met(target.compute(result["medians"])) for target in self.targets)

    def as_text(self, result: dict) -> str:
        """Return the tables for a terminal."""
        return f"{report.text_of(self.tables(result))}\n\n{self.sentence(result)}"

    def as_markdown(self, result: dict) -> str:
        """Return the tables for the documentation."""
        return report.markdown_of(self.tables(result), self.sentence(result))

    def show(self, directory: Path, document: Path | None, measure: Callable[[], dict] | None) -> int:
        """Measure, keep, show and judge.

        Args:
            directory: where results are kept.
            document: where to publish them, or None.
            measure: or None to show the last results again.

        Returns:
            The exit status: 1 when a target is missed.
        """
        file = directory / f"{self.name}.json"
        if measure is not None:
            file.write_text(json.dumps(measure(), indent=1), encoding="utf-8")
        result = json.loads(file.read_text(encoding="utf-8"))
        print(f"\n{self.as_text(result)}")
        if document:
            report.publish(document, self.as_markdown(result), self.markers)
        return 0 if self.all_met(result) else 1


def repeat(measure: Callable[[int], Measures], repetitions: int, progress: Callable[[int, Measures], None]) -> dict:
    """Return ``samples``, their ``medians`` and the machine's ``load`` before each of them.

    Args:
        measure: called with the number of the repetition, from 0 on.
        repetitions: at least 1.
        progress: called with that number and what was measured.
    """
    samples, load = [], []
    for repetition in range(repetitions):
        load.append(round(os.getloadavg()[0], 1))
        samples.append(measure(repetition))
        progress(repetition, samples[-1])
    return {"samples": samples, "medians": results.medians(samples), "load": load}


def conditions(result: dict) -> str:
    """Say how often something was measured, and what else the machine did."""
    load = result["load"]
    return f"Medians of {len(load)}; load average before a repetition: {min(load)} to {max(load)} on {os.cpu_count()} processors."


def verdict(target: Target, measures: Measures) -> list[str]:
    """Return a table's row: what, value, whether the target is met."""
    value = target.compute(measures)
    return [target.name, f"{value:,.2f} {target.unit}".rstrip(), f"{'met' if target.met(value) else 'missed'}: {target.wanted}".rstrip()]
