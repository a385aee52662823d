# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Edits of a release: exactly what was meant, or nothing at all. The reference application's own are among them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _release_edit
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._release_edit import NOTE, Edits, edit

from tests.app import application
from tests.module_process import run_module

GUIDE = {
    "rewrites": [{"files": list(application.IMPORTS), "before": application.IMPORT_BEFORE, "after": application.IMPORT_AFTER}],
    "moves": [{"source": f"{route}-unified", "target": route} for route in application.ROUTES],
}


def contents(directory: Path) -> dict[str, str]:
    """Every file's text by its path, our note left out."""
    found = {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}
    found.pop(NOTE, None)
    return found


@pytest.fixture
def release(tmp_path):
    """The reference application's source, as it is fetched."""
    directory = tmp_path / "releases" / "1"
    application.make_source(directory, "legacy")
    return directory


@pytest.fixture
def small(tmp_path):
    """A release of a few files."""
    for name, text in {"a.ts": "one two one\r\n", "b/[id]/c.ts": "one\n", "b-new/x.ts": "new\n", "node_modules/d.ts": "one\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    return tmp_path


def do(directory: Path, **options) -> dict:
    return edit(str(directory), Edits.from_parameters(options.get("rewrites", []), options.get("moves", [])))


def test_the_guides_edits_of_the_reference_application(release, tmp_path):
    application.make_source(tmp_path / "expected", "unified")
    before = contents(release)
    options = {"release_directory": str(release), **GUIDE}
    planned = run_module("release_edit", {**options, "_ansible_check_mode": True, "_ansible_diff": True})
    assert planned["changed"] and contents(release) == before and '+import { auth } from "@/auth-unified";' in planned["diff"]["prepared"]
    done = run_module("release_edit", options)
    assert done["changed"] and len(done["files"]) == 8 and len(done["moves"]) == 15
    assert contents(release) == contents(tmp_path / "expected")
    again = run_module("release_edit", options)
    assert not again["changed"] and contents(release) == contents(tmp_path / "expected")


def test_the_release_that_serves_is_refused(release, tmp_path):
    (tmp_path / "current").symlink_to(release)
    refused = run_module("release_edit", {"release_directory": str(release), "live": str(tmp_path / "current"), **GUIDE})
    assert refused["failed"] and "is the release that serves. Make a new release" in refused["msg"]


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"rewrites": [{"files": ["a.ts", "b/[id]/c.ts"], "before": "one", "after": "1"}]}, r'"one" occurs 3 times instead of 2 \(2 in a.ts\)'),
        ({"rewrites": [{"files": ["a.ts", "b/[id]/c.ts"], "before": "two", "after": "2"}]}, r'"two" occurs 1 times instead of 2 \(0 in b/\[id\]/c.ts\)'),
        ({"rewrites": [{"files": ["**/*.ts"], "before": "one", "after": "1", "places": 4}]}, r'"one" occurs 3 times instead of 4 \(2 in a.ts, 0 in b-new'),
        ({"rewrites": [{"files": ["*.js"], "before": "one", "after": "1"}]}, "no file is"),
        ({"rewrites": [{"files": ["a.ts"], "before": "", "after": "1"}]}, "nothing to look for"),
        ({"rewrites": [{"files": ["../a.ts"], "before": "one", "after": "1"}]}, "leads out of the release"),
        ({"rewrites": [{"files": ["/etc/hosts"], "before": "one", "after": "1"}]}, "leads out of the release"),
        ({"rewrites": [{"files": ["out/passwd"], "before": "root", "after": "1"}]}, "leads out of the release"),
        ({"moves": [{"source": "nothing", "target": "b"}]}, "there is no nothing to move"),
        ({"moves": [{"source": "b", "target": "b/[id]"}]}, "are not two places"),
        ({"moves": [{"source": "b-new", "target": "b", "displaced": "a.ts"}]}, "a.ts is there already"),
        ({"moves": [{"source": "b-new", "target": "out/b"}]}, "leads out of the release"),
    ],
)  # fmt: skip
def test_what_does_not_match_changes_nothing(small, options, cause):
    (small / "out").symlink_to("/etc")
    before = contents(small)
    with pytest.raises(UnifiedUserError, match=cause):
        do(small, **options)
    # One that does match, in front of it, is not carried out either.
    good = {"files": ["b-new/x.ts"], "before": "new", "after": "neu"}
    with pytest.raises(UnifiedUserError, match=cause):
        do(small, rewrites=[good, *options.get("rewrites", [])], moves=options.get("moves", []))
    assert contents(small) == before and not (small / NOTE).exists()


def test_rewrites_build_on_each_other_and_keep_what_is_beside_them(small):
    os.chmod(small / "a.ts", 0o640)
    (small / "linked.ts").hardlink_to(small / "a.ts")
    done = do(small, rewrites=[
        {"files": ["**/*.ts"], "before": "one", "after": "1", "places": 5},
        {"files": ["a.ts"], "before": "1 two 1", "after": "3"},
    ])  # fmt: skip
    assert (small / "a.ts").read_bytes() == b"3\r\n" and (small / "a.ts").stat().st_mode & 0o777 == 0o640
    assert (small / "linked.ts").read_bytes() == b"1 two 1\r\n" and (small / "node_modules" / "d.ts").read_text() == "one\n"
    assert {entry["path"]: entry["places"] for entry in done["files"]} == {"a.ts": 3, "b-new/x.ts": 0, "b/[id]/c.ts": 1, "linked.ts": 2}


def test_moves(small):
    do(small, moves=[{"source": "b-new", "target": "b", "displaced": "old/b"}, {"source": "a.ts", "target": "sub/a.ts"}])
    assert set(contents(small)) == {"b/x.ts", "old/b/[id]/c.ts", "sub/a.ts", "node_modules/d.ts"}


def test_a_chain_of_moves(small):
    """Each is judged by what the ones before it leave."""
    do(small, moves=[{"source": "b-new", "target": "b"}, {"source": "b-new", "target": "c"}, {"source": "b", "target": "b-new"}])
    assert set(contents(small)) == {"b-new/x.ts", "c/[id]/c.ts", "a.ts", "node_modules/d.ts"}
    (small / NOTE).unlink()
    with pytest.raises(UnifiedUserError, match="there is no c to move"):
        do(small, moves=[{"source": "c", "target": "d"}, {"source": "c", "target": "e"}])
    with pytest.raises(UnifiedUserError, match="nor into an earlier one's places"):
        do(small, moves=[{"source": "c", "target": "d"}, {"source": "d/[id]", "target": "e"}])


def test_edited_otherwise_or_interrupted(small, monkeypatch):
    one, other = ({"rewrites": [{"files": ["a.ts"], "before": "two", "after": after}]} for after in ("2", "zwei"))
    do(small, **one)
    with pytest.raises(UnifiedUserError, match=r"was edited otherwise before. Make the release anew"):
        do(small, **other)
    (small / NOTE).unlink()

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_release_edit.os, "replace", full)
        with pytest.raises(UnifiedUserError, match=r"No space left on device. Put that right, and make the release anew"):
            do(small, rewrites=[{"files": ["a.ts"], "before": "2", "after": "two"}])
    assert json.loads((small / NOTE).read_text())["done"] is False
    with pytest.raises(UnifiedUserError, match="was being edited when that was interrupted"):
        do(small, **other)


def undo(directory: Path, **options) -> dict:
    return edit(str(directory), Edits.from_parameters(options.get("rewrites", []), options.get("moves", [])).inverse())


def test_the_guides_edits_are_taken_back(release, tmp_path):
    before = contents(release)
    options = {"release_directory": str(release), **GUIDE}
    run_module("release_edit", options)
    edited = contents(release)
    planned = run_module("release_edit", {**options, "inverse": True, "_ansible_check_mode": True, "_ansible_diff": True})
    assert planned["changed"] and contents(release) == edited and '+import { auth } from "@/auth";' in planned["diff"]["prepared"]
    done = run_module("release_edit", {**options, "inverse": True})
    assert done["changed"] and len(done["files"]) == 8 and len(done["moves"]) == 15 and contents(release) == before
    assert not run_module("release_edit", {**options, "inverse": True})["changed"]
    refused = run_module("release_edit", options)
    assert refused["failed"] and "was edited otherwise before" in refused["msg"]


# What is done, and taken back again: rewrites by patterns, upon each other, in what is moved afterwards; moves of all kinds.
INVERTIBLE = {
    "by patterns": {"rewrites": [{"files": ["**/*.ts"], "before": "one", "after": "1", "places": 3}]},
    "upon each other": {"rewrites": [
        {"files": ["**/*.ts"], "before": "one", "after": "1", "places": 3}, {"files": ["a.ts"], "before": "1 two 1", "after": "3"}]},
    "in what is moved": {
        "rewrites": [{"files": ["b-new/*.ts"], "before": "new", "after": "newer"}, {"files": ["b/**"], "before": "one", "after": "uno"}],
        "moves": [{"source": "b-new", "target": "b"}]},
    "the same text in different files": {"rewrites": [
        {"files": ["a.ts"], "before": "two", "after": "X"}, {"files": ["b/[id]/c.ts"], "before": "one", "after": "X"}]},
    "something displaced": {"moves": [{"source": "b-new", "target": "b", "displaced": "old/b"}, {"source": "a.ts", "target": "sub/a.ts"}]},
    "a chain": {"moves": [{"source": "b-new", "target": "b"}, {"source": "b-new", "target": "c"}, {"source": "b", "target": "b-new"}]},
}  # fmt: skip


@pytest.mark.parametrize("name", INVERTIBLE)
def test_what_is_taken_back_is_as_it_was(small, name):
    (small / "b" / ".hidden.ts").write_text("one\n")
    before = contents(small)
    do(small, **INVERTIBLE[name])
    edited = contents(small)
    assert edited != before
    assert undo(small, **INVERTIBLE[name])["changed"] and contents(small) == before


@pytest.mark.parametrize(
    ("rewrites", "cause"),
    [
        ([{"files": ["a.ts"], "before": " two", "after": ""}], r'the rewrite of " two" to "" \(a.ts\) cannot be: it leaves nothing to look for'),
        ([{"files": ["a.ts"], "before": "one", "after": "X", "places": 2}, {"files": ["./a.ts"], "before": "two", "after": "X"}],
         r'the rewrite of "two" to "X" \(./a.ts\) cannot be: the one of "one", perhaps in the same file, becomes the same'),
        ([{"files": ["a.ts"], "before": "two", "after": "X"}, {"files": ["b/**"], "before": "one", "after": "X"}],
         r".*\(b/\*\*\) cannot be: .* becomes the same"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_back_is_named(small, rewrites, cause):
    do(small, rewrites=rewrites)
    edited = contents(small)
    with pytest.raises(UnifiedUserError, match="Failed to take the edits back: " + cause):
        undo(small, rewrites=rewrites)
    assert contents(small) == edited


def test_what_is_no_longer_as_it_was_edited_is_not_taken_back(small):
    options = {"rewrites": [{"files": ["a.ts"], "before": "two", "after": "zwei"}], "moves": [{"source": "b-new", "target": "b", "displaced": "old"}]}
    with pytest.raises(UnifiedUserError, match=r"there is no old to move|is there already|occurs 0 times"):
        undo(small, **options)
    do(small, **options)
    with pytest.raises(UnifiedUserError, match="other edits than these were made in this release"):
        undo(small, rewrites=options["rewrites"])
    for text, cause in (("one zwei zwei", '"zwei" occurs 2 times instead of 1'), ("two zwei", r'"two" stands in a.ts in other places, too')):
        (small / "a.ts").write_text(text)
        with pytest.raises(UnifiedUserError, match=cause):
            undo(small, **options)
    assert (small / "old").is_dir()
