"""The benchmark's contenders do the same work: small, on a server of the tests."""

from __future__ import annotations

import contextlib
import time

import pytest
from bench import backups, clients, contenders, online, report, results, sync_cost

# What is tested here does not depend on the server's version; what does is tested on every one elsewhere.
pytestmark = pytest.mark.one_major

BOOKINGS = 3000


@pytest.fixture(scope="module")
def arena(cluster):
    """Fresh databases of a small size."""
    arena = contenders.Arena(cluster, BOOKINGS)
    arena.prepare()
    yield arena
    arena.drop()


@pytest.fixture(scope="module")
def measured(arena):
    """One repetition."""
    progress = []
    measures, outcome = contenders.measure(arena, 0, None, lambda name, found: progress.append(name))
    return measures, outcome, progress


def test_every_contender_has_its_turn_and_all_leave_the_same_behind(measured):
    unused, outcome, progress = measured
    assert set(progress) == set(contenders.CONTENDERS)
    assert outcome["new_bookings"][0] == BOOKINGS
    assert any("new_bookings_customerId_fkey" in line for line in outcome["indexes and constraints"])


def test_the_measures_fill_every_table_of_the_report(measured):
    measures, *unused = measured
    assert min(measures.values()) >= 0 and measures["guide's client rows/s"] > 0
    # A child's peak includes what its parent had before exec, and this parent is a test run: only `make bench` can judge the limit.
    assert measures["memory"] > 10
    text = report.as_text({BOOKINGS: results.medians([measures])})
    assert "nan" not in text and "new_bookings" in text


def test_the_next_repetition_begins_with_another_contender(arena, measured, monkeypatch):
    unused, outcome, first = measured
    order = []
    quick = {name: ((lambda arena, database: {}), complete) for name, (function, complete) in contenders.CONTENDERS.items()}
    monkeypatch.setattr(contenders, "CONTENDERS", quick)
    contenders.measure(arena, 1, outcome, lambda name, found: order.append(name))
    assert order == [*first[1:], first[0]]


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        ('UPDATE new_bookings SET message = \'x\' WHERE id = (SELECT min(id) FROM new_bookings)', "new_bookings"),
        ('DROP INDEX "new_bookings_status_createdAt_idx"', "indexes and constraints"),
        ('ALTER TABLE new_bookings DROP CONSTRAINT "new_bookings_studioId_fkey"', "indexes and constraints"),
    ],
)
def test_a_contender_that_does_less_is_not_compared(arena, monkeypatch, damage, where):
    def careless(arena, database):
        measures = contenders.by_hand_deferred(arena, database)
        with contextlib.closing(arena.cluster.connect(database)) as connection, connection.cursor() as cursor:
            cursor.execute(damage)
        return measures

    monkeypatch.setattr(contenders, "CONTENDERS", {"honest": (contenders.by_hand_deferred, True), "careless": (careless, True)})
    with pytest.raises(contenders.BenchError, match=f"'careless' left other results .*{where}"):
        contenders.measure(arena, 0, None, lambda name, found: None)


def test_a_module_that_fails_is_reported_with_its_words(arena):
    with pytest.raises(contenders.BenchError, match=r"does_not_exist"):
        contenders.run_module(arena.cluster, "does_not_exist")


def test_backups_are_measured_beside_the_plain_programs(cluster):
    lines = []
    result = backups.measure(cluster, BOOKINGS, 2, lines.append)
    assert len(lines) == 2 and result["size_bytes"] > 1_000_000
    contenders_of_backups = {backups.DUMP, backups.BACKUP, backups.RESTORE, backups.TEST}
    assert set(result["medians"]) == {name + kind for name in contenders_of_backups for kind in ("", contenders.PROCESSOR)}
    assert min(result["medians"].values()) > 0
    section = backups.SECTION
    assert "backup / plain pg_dump" in section.as_text(result) and "| restore test |" in section.as_markdown(result)
    slow = {**result, "medians": {**result["medians"], backups.BACKUP: 1.16 * result["medians"][backups.DUMP]}}
    assert not section.all_met(slow) and "missed: ≤ 1.15 ×" in section.as_text(slow)


def test_the_online_copy_is_measured_beside_writers(cluster):
    lines = []
    result = online.measure(cluster, 600, 1, lines.append, calm=0.6)
    medians = result["medians"]
    assert len(lines) == 5 and "nan" not in online.SECTION.as_text(result)
    for workers in online.WORKERS:
        name = online.online(workers)
        assert medians[f"{name}: writes meanwhile"] > 0 and medians[f"{name}: longest batch"] > 0
        assert medians[f"{name} / atomic"] == pytest.approx(medians[name] / medians["atomic"])
    # All that the atomic copy does it does in one transaction, which holds the legacy tables.
    assert 0 < medians[f"atomic: longest transaction {online.TABLES}"] <= 1000 * medians["atomic"]
    assert result["longest transactions"]["atomic"][online.ROWS][0]["query"]


def test_every_kind_of_write_is_measured_with_and_without_sync(cluster, monkeypatch):
    monkeypatch.setattr(sync_cost, "CALM", 0.3)
    lines = []
    result = sync_cost.measure(cluster, 660, 1, lines.append, ("--transactions", "1"))
    assert len(lines) == 1 and min(value for name, value in result["medians"].items() if name.endswith("tps")) > 0
    assert set(result["medians"]) >= set(sync_cost.TARGETS) and "nan" not in sync_cost.SECTION.as_text(result)


def test_clients_that_cannot_write_are_reported(cluster, database):
    arguments = (cluster, database, 600, [clients.script("legacy", "status")])
    with pytest.raises(contenders.BenchError, match='relation "bookings" does not exist'):
        clients.Clients(*arguments, "--transactions", "1").run()
    with pytest.raises(contenders.BenchError, match="did not"), clients.Clients(*arguments, "--time", "60").beside():
        time.sleep(1)
