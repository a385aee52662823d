"""The benchmark's runs of their own: what is read out of logs, judged, kept, shown and published."""

from __future__ import annotations

import pytest
from bench import backups, clients, online, sections, sync_cost
from bench.clients import Write, percentile, read_log, refused, took
from bench.contenders import PROCESSOR, BenchError
from bench.results import Target

LOG = "0 1 2500 0 1763850000 250000\n1 1 900 3 1763850001 000500 120\n"


def filled(targets, **others: float) -> dict[str, float]:
    """Measures that meet every target exactly, by the names the targets look at."""

    class Asked(dict):
        def __missing__(self, name):
            names.append(name)
            return 1.0

    found: dict[str, float] = dict(others)
    for target in targets:
        names: list[str] = []
        target.compute(Asked())
        found[names[0]] = target.limit
    return found


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.0, 1)])
def test_a_percentile_is_a_value_that_was_measured(share, expected):
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_no_writes_have_no_percentile():
    with pytest.raises(BenchError, match="No write was measured"):
        percentile([], 0.5)


def test_a_log_tells_what_was_written_when_and_how_long_it_took():
    assert read_log(LOG) == [Write(0, 1763850000.25, 2.5), Write(3, 1763850001.0005, 0.9)]


@pytest.mark.parametrize("word", ["failed", "deadlock", "serialization"])
def test_a_write_that_the_server_refused_is_counted_and_took_no_time(word):
    writes = read_log(f"{LOG}0 2 {word} 1 1763850002 000000\n")
    assert writes[2] == Write(1, 1763850002.0, None)
    assert refused(writes) == 1 and took(writes) == [2.5, 0.9]


def test_every_kind_of_write_has_a_script_on_both_sides():
    for side in ("legacy", "unified"):
        assert {path.stem for path in clients.script(side, "status").parent.iterdir()} == set(sync_cost.KINDS)


def test_latencies_are_those_of_the_time_and_of_the_writer():
    writes = [Write(kind, ended, ms) for kind, ended, ms in [(0, 1, 1.0), (1, 2, 9.0), (2, 2, 4.0), (3, 2.5, 5.0), (0, 3, 70.0), (2, 0.5, 80.0)]]
    found = online.latencies(writes, 1, 3, "x: ", " before ")
    assert found == {"x: inserts before p50": 1.0, "x: inserts before p99": 9.0, "x: updates before p50": 4.0, "x: updates before p99": 5.0}


def test_medians_and_load_of_what_was_repeated():
    shown = []
    found = sections.repeat(lambda repetition: {"a": float(repetition)}, 3, lambda *what: shown.append(what))
    assert found["medians"] == {"a": 1.0} and len(found["load"]) == 3
    assert shown == [(0, {"a": 0.0}), (1, {"a": 1.0}), (2, {"a": 2.0})]


def test_a_verdict_names_value_and_limit():
    target = Target("kept", 0.5, lambda measures: measures["kept"], least=True)
    assert sections.verdict(target, {"kept": 0.25}) == ["kept", "0.25 ×", "missed: ≥ 0.5 ×"]
    assert sections.verdict(target, {"kept": 0.5})[2] == "met: ≥ 0.5 ×"


def sync_result(**changes: float) -> dict:
    """A result of the sync's section that meets every target, but for changes."""
    measures = dict.fromkeys(sync_cost._PAUSE, 0.1)
    for side, direction in sync_cost.CASES:
        for kind in sync_cost.KINDS:
            measures[sync_cost._added(side, direction, kind)] = 3.0
            for number in sync_cost.CLIENTS:
                measures[sync_cost._kept(side, direction, kind, number)] = 0.5
                measures.update({f"{side} {kind} {state} {number} tps": 1234.0 for state in (sync_cost.OFF, direction)})
    return {"bookings": 3000, "load": [1.0, 2.0], "samples": [], "medians": {**measures, **changes}}


def online_result(**changes: float) -> dict:
    """A result of the online section that meets every target, but for changes."""
    names = (online.ATOMIC, online.ALONE, *map(online.online, online.WORKERS))
    measures = {"online, 1 worker: phase backfill": 2.5, "atomic: phase backfill": 1.5}
    for name in names:
        measures.update({name: 2.0, name + PROCESSOR: 1.0, f"{name}: longest wait": 7.0})
        measures.update({f"{name}: longest transaction {kind}": 400.0 for kind in (online.ROWS, online.TABLES, online.ANY)})
    for workers in online.WORKERS:
        measures.update({f"{online.online(workers)}: {writer} {when} {label}": 3.25
                         for writer in online.WRITERS for when in ("before", "meanwhile") for label in online.SHARES})  # fmt: skip
    return {"bookings": 3000, "load": [1.0, 2.0], "samples": [], "medians": {**filled(online.TARGETS), **measures, **changes}}


@pytest.mark.parametrize(
    ("section", "result", "name", "worse"),
    [
        (sync_cost.SECTION, sync_result, sync_cost._kept("legacy", "forward", "status", 8), 0.29),
        (sync_cost.SECTION, sync_result, sync_cost._kept("unified", "both", "booking", 1), 0.49),
        (sync_cost.SECTION, sync_result, sync_cost._added("legacy", "both", "sign_up"), 3.1),
        (online.SECTION, online_result, "online, 1 worker / atomic", 1.6),
        (online.SECTION, online_result, "online, 2 workers: longest batch", 1001.0),
        (online.SECTION, online_result, f"online, 1 worker: longest transaction {online.TABLES}", 1001.0),
        (online.SECTION, online_result, "online, 1 worker: updates p99 / before", 2.1),
        (online.SECTION, online_result, "online, 2 workers: writes refused", 1.0),
    ],
)
def test_one_missed_target_is_shown_and_fails_the_run(section, result, name, worse):
    assert section.all_met(result()) and "missed" not in section.as_text(result())
    missed = result(**{name: worse})
    assert not section.all_met(missed)
    assert section.as_text(missed).count("missed") == 1


def test_the_tables_hold_what_was_measured():
    text = online.SECTION.as_markdown(online_result())
    assert "| inserts, p99, online, 2 workers | 3.2 | 3.2 |" in text and "| backfill | 1.50 |  | 2.50 |  |" in text
    assert "| status change | 1,234 | 1,234 | 0.50 | 1,234 | 1,234 | 0.50 | 3.00 | met |" in sync_cost.SECTION.as_markdown(sync_result())


def test_a_run_is_kept_shown_again_and_published(tmp_path, capsys):
    document = tmp_path / "PERFORMANCE.md"
    document.write_text("before\n{}\nold\n{}\nafter\n".format(*sync_cost.SECTION.markers))
    assert sync_cost.SECTION.show(tmp_path, None, sync_result) == 0
    assert "old" in document.read_text()
    assert sync_cost.SECTION.show(tmp_path, document, None) == 0
    text = document.read_text()
    assert "old" not in text and "| booking insert | 1,234 |" in text and text.endswith("\nafter\n")
    assert sync_cost.SECTION.show(tmp_path, None, lambda: sync_result(**{sync_cost._added("legacy", "forward", "email"): 20.0})) == 1
    assert "missed ≤ 3 ms" in capsys.readouterr().out


def test_every_section_has_a_place_in_the_documentation(request):
    document = (request.config.rootpath / "docs" / "PERFORMANCE.md").read_text(encoding="utf-8")
    for section in (backups.SECTION, online.SECTION, sync_cost.SECTION):
        begin, end = section.markers
        assert document.index(begin) < document.index(end)
