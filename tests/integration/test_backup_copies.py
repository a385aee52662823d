# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Copies at further places: a mounted file system, a host behind a real sshd, a bucket of an S3-compatible server."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.integration.backup_support import databases, flip, refuse, restore, succeed, visible
from tests.integration.far_ends import FarEnd, free_port
from tests.module_process import run_module

KINDS = ["path", "ssh", "s3"]


@pytest.fixture
def backup(site, legacy_reference_database):
    """The options for, and result of, a backup of the reference case."""
    options = site(legacy_reference_database)
    return options, succeed(run_module("database_backup", options))


def copy(taken: dict, *places: FarEnd, **changes) -> dict:
    return run_module("database_backup_copy", {"backup": taken["path"], "copies": [place.options for place in places], **changes})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.one_major
def test_a_copy_is_whole_compared_proven_and_enough_without_the_original(backup, far_end, admin, kind):
    options, taken = backup
    place, name = far_end(kind), Path(taken["path"]).name
    planned = succeed(copy(taken, place, _ansible_check_mode=True))
    assert planned["changed"] and planned["planned"] and place.stored() == {}
    done = succeed(copy(taken, place))
    assert done["changed"] and [entry["place"] for entry in done["copies"]] == [place.label]
    original = {f"{name}/{path.relative_to(taken['path'])}": path.read_bytes() for path in Path(taken["path"]).rglob("*") if path.is_file()}
    assert place.stored() == original
    assert succeed(copy(taken, place))["changed"] is False

    tested = succeed(restore(options, taken, copies=[place.options]))
    assert tested["backup"]["path"] == f"{place.label}/{name}" and tested["backup"]["sha256"] == taken["sha256"]
    assert tested["proof_at"] == [taken["path"], place.label]
    proofs = [json.loads(content) for content in (Path(taken["path"], "proof.json").read_bytes(), place.stored()[f"{name}/proof.json"])]
    assert proofs[0] == proofs[1] and proofs[0]["sha256"] == taken["sha256"] and proofs[0]["restored_from"] == f"{place.label}/{name}"
    assert proofs[0]["duration_ms"] >= proofs[0]["restore_ms"] > 0
    assert visible(options) == [name], "nothing that was brought back stays"

    shutil.rmtree(options["directory"])
    again = succeed(run_module("database_restore", {**options, "state": "restored", "copies": [place.options]}))
    assert again["backup"]["path"] == f"{place.label}/{name}" and again["target"] in databases(admin)
    admin.execute(f'DROP DATABASE "{again["target"]}"')


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("path", "altered"), ("path", "truncated"), ("path", "empty"), ("path", "manifest"),
        ("ssh", "altered"), ("ssh", "missing"), ("ssh", "swapped"), ("s3", "altered"), ("s3", "missing"),
    ],
)  # fmt: skip
@pytest.mark.one_major
def test_damage_at_the_far_end_is_noticed_before_anyone_relies_on_it(backup, far_end, admin, kind, damage):
    options, taken = backup
    place = far_end(kind)
    succeed(copy(taken, place))
    before, stored = databases(admin), place.stored()
    one, other = [name for name, unused in sorted(stored.items(), key=lambda item: -len(item[1])) if "/dump/" in name][:2]
    content = stored[one]
    if damage == "altered":
        place.put(one, content[:50] + bytes([content[50] ^ 1]) + content[51:])
    elif damage == "swapped":
        place.put(one, stored[other])
        place.put(other, content)
    elif damage == "manifest":
        name = next(name for name in stored if name.endswith("manifest.json"))
        place.put(name, stored[name].replace(b'"rows": 158', b'"rows": 159'))
    else:
        place.put(one, {"truncated": content[:-1], "empty": b"", "missing": None}[damage])

    words = ["the restored copy is not what the manifest says"] if damage == "manifest" else ["dump/"]
    refuse(restore(options, taken, copies=[place.options]), *words)
    message = refuse(copy(taken, place), place.label)
    assert ("another backup of that name" in message) == (damage == "manifest")
    assert databases(admin) == before and not any(name.endswith("proof.json") and b"true" in text for name, text in place.stored().items())
    # The original is as good as it was.
    assert succeed(restore(options, taken, copies=[place.options], source="directory"))["proven"]


@pytest.mark.one_major
def test_the_last_copy_is_taken_unless_told_otherwise(backup, far_end):
    options, taken = backup
    places = [far_end("path"), far_end("ssh")]
    copies = [place.options for place in places]
    assert [entry["place"] for entry in succeed(copy(taken, *places))["copies"]] == [place.label for place in places]
    name = Path(taken["path"]).name
    for source, path in [("last", f"{places[1].label}/{name}"), (places[0].label, f"{places[0].label}/{name}"), ("directory", taken["path"])]:
        tested = succeed(restore(options, taken, copies=copies, source=source))
        assert tested["backup"]["path"] == path
        assert tested["proof_at"] == [taken["path"], *(place.label for place in places)]
    refuse(restore(options, taken, copies=copies, source="ssh nowhere:/x"), "no copy is called so", places[0].label)


@pytest.mark.parametrize("kind", ["ssh", "s3"])
@pytest.mark.one_major
def test_limits_hold_at_every_place(backup, site, far_end, legacy_reference_database, kind):
    options, first = backup
    place, taken = far_end(kind), [first]
    copies = {"copies": [place.options]}
    for number in range(3):
        if number:
            taken.append(succeed(run_module("database_backup", options)))
        succeed(copy(taken[-1], place))
        if number < 2:
            succeed(restore(options, taken[-1], **copies))
    names = [Path(entry["path"]).name for entry in taken]
    limits = {"directory": options["directory"], "database": legacy_reference_database, "keep_count": 1, **copies}
    planned = succeed(run_module("database_backup_retention", {**limits, "_ansible_check_mode": True}))
    assert [entry["path"] for entry in planned["copies"][0]["removed"]] == [f"{place.label}/{names[0]}"]
    assert {name.split("/")[0] for name in place.stored()} == set(names)
    done = succeed(run_module("database_backup_retention", limits))
    assert done["changed"] and {name.split("/")[0] for name in place.stored()} == set(names[1:]) == set(visible(options))
    assert [entry["reason"] for entry in done["copies"][0]["kept"]] == ["no newer one is proven", "the newest proven one"]
    assert succeed(run_module("database_backup_retention", limits))["changed"] is False


@pytest.mark.one_major
def test_a_directory_where_nothing_is_mounted_is_refused(backup, tmp_path):
    taken = backup[1]
    refuse(run_module("database_backup_copy", {"backup": taken["path"], "copies": [{"kind": "path", "path": str(tmp_path / "none")}]}), "no such directory")
    (tmp_path / "mnt").mkdir()
    place = FarEnd({"kind": "path", "path": str(tmp_path / "mnt")}, "", tmp_path / "mnt")
    refuse(copy(taken, place), "on the same file system as the backup", "allow_same_filesystem")
    place.options["allow_same_filesystem"] = True
    assert succeed(copy(taken, place))["changed"]
    refuse(copy(taken, place, place), "names it twice")


@pytest.mark.one_major
def test_a_host_that_cannot_be_logged_in_to_is_explained(backup, far_end, tmp_path):
    taken, place = backup[1], far_end("ssh")
    for change, words in [
        ({"port": free_port()}, ["ssh: ", "refused"]),
        ({"known_hosts_file": str(tmp_path / "none")}, ["ssh: ", "Host key verification failed"]),
        ({"identity_file": str(tmp_path / "none")}, ["ssh: ", "Permission denied"]),
        ({"path": str(tmp_path / "none")}, ["Make the directory there"]),
        ({"path": "relative"}, ["not absolute"]),
        ({"host": "-oProxyCommand=true"}, ["characters that no host"]),
    ]:
        refuse(copy(taken, FarEnd({**place.options, **change}, "")), *words)
    assert place.stored() == {}


@pytest.mark.one_major
def test_a_bucket_that_cannot_be_written_to_is_explained(backup, far_end):
    taken, place = backup[1], far_end("s3")
    refuse(copy(taken, FarEnd({**place.options, "bucket": "nobodys"}, "")), "NoSuchBucket", "Check bucket, endpoint_url, region")
    refuse(copy(taken, FarEnd({**place.options, "profile": "nobody"}, "")), "profile")
    assert place.stored() == {}


@pytest.mark.one_major
def test_what_rots_here_does_not_spread(backup, far_end):
    taken, place = backup[1], far_end("ssh")
    flip(next(Path(taken["path"], "dump").glob("*.gz")), 40)
    refuse(copy(taken, place), "was altered")
    assert place.stored() == {}


@pytest.mark.one_major
def test_what_a_killed_copy_left_is_replaced(backup, far_end):
    taken, place = backup[1], far_end("ssh")
    left = place.folder / f".{Path(taken['path']).name}.partial" / "dump"
    left.mkdir(parents=True)
    (left / "half.dat").write_bytes(b"half")
    old = place.folder / f".{Path(taken['path']).name[:-16]}20200101T000000Z.partial"
    old.mkdir()
    os.utime(old, (0, 0))
    other = place.folder / ".another-20200101T000000Z.partial"
    other.mkdir()
    os.utime(other, (0, 0))
    succeed(copy(taken, place))
    assert {entry.name for entry in place.folder.iterdir()} == {Path(taken["path"]).name, other.name}
    assert not any("half" in name for name in place.stored())
