# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which backups are removed, and everything that must never be."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _backup_retention
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import Workplace
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

from tests.module_process import run_module
from tests.unit.test_backup import make_backup

SERVER = {"version": "18.1", "major": 18, "system_identifier": "7711098358154857758"}


def shelve(directory: Path, days_ago: float, proven: bool = True, database: str = "shop", **changes) -> str:
    """Put a backup of some age on the shelf and return its name."""
    moment = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=days_ago)
    name = f"{database}-{moment.strftime('%Y%m%dT%H%M%SZ')}"
    backup = make_backup(directory / name, moment.strftime("%Y-%m-%dT%H:%M:%S.123Z"), database, **{"server": SERVER, **changes})
    if proven:
        backup.write_proof({"proven_at": "2025-11-01T22:10:00Z"})
    return name


def clear(directory: Path, check_mode: bool = False, **limits) -> dict:
    return _backup_retention.retain({"directory": str(directory), "database": "shop", "keep_count": 0, "keep_days": 0, "copies": [], **limits}, check_mode)


def names(entries: list[dict]) -> list[str]:
    return [os.path.basename(entry["path"]) for entry in entries]


def on_disk(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.fixture
def shelf(tmp_path):
    """Proven backups of 1, 3, 5 and 7 days ago, newest first."""
    return tmp_path, [shelve(tmp_path, days) for days in (1, 3, 5, 7)]


@pytest.mark.parametrize(
    ("limits", "staying"),
    [
        ({}, 4),
        ({"keep_count": 4}, 4),
        ({"keep_count": 2}, 2),
        ({"keep_count": 1}, 1),
        ({"keep_days": 4}, 2),
        ({"keep_days": 30}, 4),
        ({"keep_count": 3, "keep_days": 4}, 2),
        ({"keep_count": 1, "keep_days": 30}, 1),
    ],
)
def test_what_exceeds_a_limit_goes(shelf, limits, staying):
    directory, backups = shelf
    planned = clear(directory, check_mode=True, **limits)
    assert on_disk(directory) == set(backups) and planned["planned"]
    done = clear(directory, **limits)
    assert on_disk(directory) == set(backups[:staying])
    for result in (planned, done):
        assert names(result["kept"]) == backups[:staying] and names(result["removed"]) == backups[staying:]
        assert result["changed"] is (staying < 4)
    assert not clear(directory, **limits)["changed"]


def test_the_newest_proven_one_stays_however_old(tmp_path):
    old, older = shelve(tmp_path, 400), shelve(tmp_path, 500)
    result = clear(tmp_path, keep_count=1, keep_days=1)
    assert names(result["removed"]) == [older] and on_disk(tmp_path) == {old}
    assert result["kept"][0]["reason"] == "the newest proven one"


def test_without_a_proven_one_nothing_goes(tmp_path):
    backups = [shelve(tmp_path, days, proven=False) for days in (100, 200, 300)]
    result = clear(tmp_path, keep_count=1, keep_days=1)
    assert not result["changed"] and on_disk(tmp_path) == set(backups)
    assert {entry["reason"] for entry in result["kept"]} == {"no newer one is proven"}


def test_unproven_ones_push_no_proven_one_out(tmp_path):
    failed = [shelve(tmp_path, days, proven=False) for days in (1, 2, 3)]
    good = [shelve(tmp_path, days) for days in (4, 6)]
    between = shelve(tmp_path, 5, proven=False)
    assert not clear(tmp_path, keep_count=2)["changed"]
    result = clear(tmp_path, keep_count=1)
    assert names(result["removed"]) == [between, good[1]]
    assert on_disk(tmp_path) == {*failed, good[0]}


def exchange_manifest(folder: Path, **changes) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def rename(folder: Path) -> None:
    folder.rename(folder.with_name(folder.name + "-before-the-move"))


def replace_by_link(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)


NOT_OURS = {
    "renamed": (rename, None),
    "link": (replace_by_link, "symbolic link"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "not a finished backup"),
    "manifest cut": (lambda folder: os.truncate(folder / "manifest.json", 40), "is damaged"),
    "file missing": (lambda folder: (folder / "dump" / "toc.dat").unlink(), "missing or not whole"),
    "file cut": (lambda folder: os.truncate(folder / "dump" / "1.dat.gz", 9), "missing or not whole"),
    "other database": (lambda folder: exchange_manifest(folder, database="shop_2"), "it is of database shop_2"),
    "other server": (lambda folder: exchange_manifest(folder, server={**SERVER, "system_identifier": "1"}), "same server"),
    "unknown server": (lambda folder: exchange_manifest(folder, server={"version": "18.1", "major": 18}), "same server"),
    "no time": (lambda folder: exchange_manifest(folder, snapshot_time="yesterday"), "is no time"),
}


@pytest.mark.parametrize("case", NOT_OURS)
def test_what_is_no_complete_backup_of_this_database_is_left_alone(shelf, case):
    directory, backups = shelf
    change, reason = NOT_OURS[case]
    change(directory / backups[-1])
    before = on_disk(directory)
    result = clear(directory, keep_count=1)
    assert names(result["removed"]) == backups[1:3] and on_disk(directory) == before - set(backups[1:3])
    assert names(result["left_alone"]) == ([backups[-1]] if reason else [])
    if reason:
        assert reason in result["left_alone"][0]["reason"]


def test_other_things_in_the_directory_are_not_even_looked_at(shelf):
    directory, _backups = shelf
    other = shelve(directory, 900, database="shop-2")
    (directory / "shop").mkdir()
    (directory / "shop-20200101T000000Z.tar").write_text("x")
    clear(directory, keep_count=1, keep_days=1)
    assert {other, "shop", "shop-20200101T000000Z.tar"} < on_disk(directory)


def test_a_damaged_newest_proven_one_keeps_all_others(shelf):
    directory, backups = shelf
    path = directory / backups[0] / "dump" / "toc.dat"
    path.write_bytes(b"c0ntents")
    with pytest.raises(UnifiedUserError, match=r"toc\.dat was altered"):
        clear(directory, keep_count=1)
    assert on_disk(directory) == set(backups)


def test_a_proof_of_another_dump_does_not_count(shelf):
    directory, backups = shelf
    shutil.copy(directory / backups[1] / "proof.json", directory / backups[0] / "proof.json")
    clear(directory, keep_count=1)
    assert on_disk(directory) == set(backups[:2])


def test_one_that_is_being_read_stays(shelf):
    directory, backups = shelf
    with _backup_retention.Backup.load(str(directory / backups[2])).in_use():
        result = clear(directory, keep_count=1)
    assert names(result["removed"]) == [backups[1], backups[3]]
    assert on_disk(directory) == {backups[0], backups[2]}
    assert result["kept"][1]["reason"] == "in use by another run"
    assert names(clear(directory, keep_count=1)["removed"]) == [backups[2]]


def test_a_removal_cut_short_leaves_nothing_that_looks_like_a_backup(shelf, monkeypatch):
    directory, backups = shelf

    def killed(_path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_backup_retention.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            clear(directory, keep_count=3)
    assert on_disk(directory) == {*backups[:3], f".{backups[3]}.partial"}
    workplace = Workplace(str(directory), "shop")
    workplace.close()
    assert workplace.leftovers == [f".{backups[3]}.partial"] and on_disk(directory) == set(backups[:3])


def test_the_module_says_what_it_did_and_refuses_nonsense(shelf):
    directory, backups = shelf
    options = {"directory": str(directory), "database": "shop", "keep_count": 3}
    planned = run_module("database_backup_retention", {**options, "_ansible_check_mode": True})
    assert planned["changed"] and planned["planned"] and names(planned["removed"]) == backups[3:]
    assert names(run_module("database_backup_retention", options)["removed"]) == backups[3:]
    assert on_disk(directory) == set(backups[:3])
    refused = run_module("database_backup_retention", {**options, "keep_days": -1})
    assert refused["failed"] and "must not be negative" in refused["msg"]
    nowhere = run_module("database_backup_retention", {**options, "directory": str(directory / "nowhere")})
    assert not nowhere["changed"] and nowhere["removed"] == []
