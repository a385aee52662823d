"""The benchmark's arithmetic, and that its tables say what the numbers say."""

from __future__ import annotations

import pytest
from bench import report, results

MEASURES = {
    "rows": 650_000.0, "module": 6.0, "module without verification": 4.0, "module process": 6.5, "memory": 36.0, "second run": 0.1,
    "second run process": 0.4, "verify": 1.5, "verify from one session": 2.0,
    "EXCEPT both ways": 6.0, "phase verify": 2.0, "phase users": 0.3, "by hand, deferred": 4.0,
    "by hand, in place": 20.0, "module in place": 21.0, "module in place without verification": 19.0, "floor": 0.5, "floor bookings": 0.4,
    "guide's client rows/s": 800.0, "plain client rows/s": 4000.0,
    "module without verification (processor)": 5.0, "by hand, deferred (processor)": 4.8, "verify (processor)": 2.5,
    "EXCEPT both ways (processor)": 7.0,
}  # fmt: skip


def scaled(factor: float, **changes: float) -> dict[str, float]:
    """The measures of a size that takes `factor` times as long, all ratios unchanged."""
    fixed = {"memory", "guide's client rows/s", "plain client rows/s"}
    return {name: value if name in fixed else value * factor for name, value in MEASURES.items()} | changes


def verdicts(by_size: dict[int, dict[str, float]]) -> dict[str, str]:
    """Target -> verdict, from the table."""
    rows = next(rows for title, unused, rows in report.tables(by_size) if title == "Targets")
    return {row[0]: row[-1] for row in rows}


def test_medians_are_taken_measure_by_measure():
    samples = [{"a": 1.0, "b": 9.0}, {"a": 3.0, "b": 7.0}, {"a": 2.0, "b": 8.0}]
    assert results.medians(samples) == {"a": 2.0, "b": 8.0}
    assert results.spread(samples, "a") == 1.0


def test_a_smaller_size_is_measured_more_often():
    assert [results.repetitions(size) for size in (30_000, 300_000, 3_000_000, 9_000_000)] == [7, 5, 3, 3]


@pytest.mark.parametrize("power", [0.5, 1.0, 1.3])
def test_the_exponent_is_that_of_the_power_law(power):
    points = [(size, 0.002 * size**power) for size in (30_000, 300_000, 3_000_000)]
    assert results.exponent(points) == pytest.approx(power)


def test_one_size_has_no_exponent():
    assert results.across_sizes({30_000: MEASURES}) == []


def test_everything_within_its_limit_is_met():
    by_size = {30_000: MEASURES, 300_000: scaled(10)}
    assert results.all_met(by_size)
    assert set(verdicts(by_size).values()) == {"met"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"module in place without verification": 60.0}, "copy / the same copy with indexes and foreign keys in place"),
        ({"by hand, deferred": 36.0}, "copy / best hand-written SQL, indexes and foreign keys built afterwards"),
        ({"guide's client rows/s": 3300.0}, "copy, rows/s / the guide's client, row by row"),
        ({"verify": 17.0}, "verification / copy"),
        ({"second run": 19.0}, "second run / first run"),
        ({"memory": 81.0}, "peak memory of the module's process"),
        ({"memory": 38.0}, "growth of memory, largest size against smallest"),
        ({"module": 80.0}, "scaling exponent of copy and verification"),
    ],
)
def test_each_missed_target_is_named_and_fails_the_run(change, name):
    by_size = {30_000: MEASURES, 300_000: scaled(10, **change)}
    assert not results.all_met(by_size)
    assert verdicts(by_size)[name].startswith("missed")


def test_a_target_missed_at_a_small_size_is_shown_but_does_not_fail_the_run():
    by_size = {30_000: {**MEASURES, "verify": 1.8}, 300_000: scaled(10)}
    assert verdicts(by_size)["verification / copy"] == "missed at 30,000"
    assert results.all_met(by_size)


def test_the_text_holds_every_row_aligned():
    text = report.as_text({30_000: MEASURES, 300_000: scaled(10)})
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert lines["Verification on a snapshot, ours"].split()[-2:] == ["1.50", "15.00"]
    assert lines["Row by row through the bare driver, extrapolated from a sample"].split()[-2:] == ["162.5", "1,625"]
    assert lines["users"].split()[-2:] == ["0.30", "3.00"]
    assert len({len(lines[label]) for unused, label in report.SECONDS}) == 1


def test_the_document_gets_tables_between_its_markers(tmp_path):
    document = tmp_path / "PERFORMANCE.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.publish(document, report.as_markdown({30_000: MEASURES}, "Conditions \\1."))
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "old" not in text and "Conditions \\1." in text
    header = text.index("|  | target | 30,000 |  |")
    assert text[header:].splitlines()[1] == "|---|--:|--:|--:|"
    assert "| verification / copy | ≤ 0.4 × | 0.38 | met |" in text


def test_a_document_without_markers_is_refused(tmp_path):
    document = tmp_path / "PERFORMANCE.md"
    document.write_text("nothing")
    with pytest.raises(ValueError, match="no place for the tables"):
        report.publish(document, "x")
    assert document.read_text() == "nothing"


def test_the_plot_is_a_picture(tmp_path):
    report.plot({30_000: MEASURES, 300_000: scaled(10)}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
