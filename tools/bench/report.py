"""Shows results: a table for the terminal and for the documentation, and a plot."""

from __future__ import annotations

import re
from pathlib import Path

from bench.results import CONTEXT, TARGETS, Measures, across_sizes

#: Title, headings, rows.
Table = tuple[str, list[str], list[list[str]]]

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"

SECONDS = (
    ("module without verification", "Copy, without its verification"),
    ("phase verify", "… its verification, inside the transaction"),
    ("module process", "… both, as a process of its own (start-up and commit included)"),
    ("second run", "Second run on the migrated database"),
    ("by hand, deferred", "By hand, indexes and foreign keys built afterwards"),
    ("by hand, in place", "By hand, indexes and foreign keys in place"),
    ("module in place without verification", "Our copy, indexes and foreign keys in place"),
    ("floor bookings", "Floor: CREATE TABLE AS of bookings"),
    ("floor", "Floor: CREATE TABLE AS of all six legacy tables"),
    ("verify", "Verification on a snapshot, ours"),
    ("verify from one session", "… from one session"),
    ("EXCEPT both ways", "Verification on a snapshot, EXCEPT both ways"),
    ("plain client", "Row by row through the bare driver, extrapolated from a sample"),
    ("guide's client", "Row by row as the guide does (Prisma Client), extrapolated from a sample"),
)


def _seconds(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}"


def _number(value: float, unit: str) -> str:
    return f"{value:.0f}" if unit == "MB" or value >= 10 else f"{value:.2f}"


def _value(measures: Measures, name: str) -> float:
    return measures["rows"] / measures[f"{name} rows/s"] if name.endswith("client") else measures[name]


def tables(results: dict[int, Measures]) -> list[Table]:
    """Return (title, headings, rows) of seconds, targets, further ratios and phases.

    Args:
        results: number of bookings -> medians.
    """
    sizes = sorted(results)
    headings = [f"{size:,}" for size in sizes]
    seconds = [["rows written", *[f"{results[size]['rows']:,.0f}" for size in sizes]]]
    seconds += [[label, *[_seconds(_value(results[size], name)) for size in sizes]] for name, label in SECONDS]
    targets = []
    for target in TARGETS:
        values = [target.compute(results[size]) for size in sizes]
        met = [size for size, value in zip(sizes, values, strict=True) if target.met(value)]
        verdict = "met" if len(met) == len(sizes) else f"missed at {', '.join(f'{size:,}' for size in sizes if size not in met)}"
        targets.append([target.name, target.wanted, *[_number(value, target.unit) for value in values], verdict])
    for target, value in across_sizes(results):
        targets.append([target.name, target.wanted, *[""] * (len(sizes) - 1), f"{value:.2f}", "met" if target.met(value) else "missed"])
    context = [[name, *[_number(compute(results[size]), "×") for size in sizes]] for name, compute in CONTEXT]
    names = [name for name in results[sizes[-1]] if name.startswith("phase ")]
    phases = [[name.removeprefix("phase "), *[_seconds(results[size][name]) for size in sizes]] for name in names]
    return [
        ("Seconds, by number of bookings", ["", *headings], seconds),
        ("Targets", ["", "target", *headings, ""], targets),
        ("Further ratios", ["", *headings], context),
        ("Phases of the copy, seconds", ["", *headings], phases),
    ]


def text_of(tables: list[Table]) -> str:
    """Return tables for a terminal."""
    parts = []
    for title, headings, rows in tables:
        widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
        lines = [
            "  ".join(cell.ljust(width) if column == 0 or (column == len(widths) - 1 and cell[:1].isalpha()) else cell.rjust(width)
                      for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in [headings, *rows]
        ]  # fmt: skip
        parts.append("\n".join([title, "-" * len(title), *lines]))
    return "\n\n".join(parts)


def markdown_of(tables: list[Table], conditions: str) -> str:
    """Return tables for the documentation, under a sentence on the conditions of the run."""
    parts = [conditions]
    for title, headings, rows in tables:
        lines = ["| " + " | ".join(row) + " |" for row in [headings, *rows]]
        lines.insert(1, "|---" + "|--:" * (len(headings) - 1) + "|")
        parts.append(f"### {title}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def as_text(results: dict[int, Measures]) -> str:
    """Return the tables of all sizes for a terminal."""
    return text_of(tables(results))


def as_markdown(results: dict[int, Measures], conditions: str) -> str:
    """Return the tables of all sizes for the documentation."""
    return markdown_of(tables(results), conditions)


def publish(document: Path, markdown: str, markers: tuple[str, str] = (BEGIN, END)) -> None:
    """Put the tables between the markers of a document.

    Raises:
        ValueError: the document has no markers.
    """
    text = document.read_text(encoding="utf-8")
    begin, end = markers
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{document.name} has no place for the tables: add the lines '{begin}' and '{end}'")
    document.write_text(pattern.sub(lambda unused: f"{begin}\n{markdown}\n{end}", text), encoding="utf-8")


PLOTTED = (
    ("guide's client", "guide's client, row by row (extrapolated)", "#555555"),
    ("plain client", "bare driver, row by row (extrapolated)", "#aaaaaa"),
    ("by hand, in place", "by hand, indexes and FKs in place", "#d08770"),
    ("module in place without verification", "our copy, indexes and FKs in place", "#bf616a"),
    ("EXCEPT both ways", "verification by EXCEPT", "#b48ead"),
    ("module without verification", "our copy", "#2e7d32"),
    ("by hand, deferred", "by hand, built afterwards", "#5e81ac"),
    ("verify", "our verification", "#88c0d0"),
    ("floor", "floor: CREATE TABLE AS", "#d8b40a"),
)


def plot(results: dict[int, Measures], path: Path) -> None:
    """Draw seconds over size (both logarithmic), and where the time of the copy goes at the largest size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = sorted(results)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.2), width_ratios=(3, 2))
    for name, label, colour in PLOTTED:
        left.plot(sizes, [_value(results[size], name) for size in sizes], marker="o", label=label, color=colour)
    left.set(xscale="log", yscale="log", xlabel="bookings", ylabel="seconds", title="Time by size")
    left.set_xticks(sizes, [f"{size:,}" for size in sizes])
    left.minorticks_off()
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    largest = results[sizes[-1]]
    phases = sorted(((value, name.removeprefix("phase ")) for name, value in largest.items() if name.startswith("phase ")))[-10:]
    bars = right.barh([name for unused, name in phases], [value for value, unused in phases], color="#2e7d32")
    right.bar_label(bars, [_seconds(value) for value, unused in phases], padding=3, fontsize=8)
    right.margins(x=0.12)
    right.set(xlabel="seconds", title=f"Phases at {sizes[-1]:,} bookings")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
