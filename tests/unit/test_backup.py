# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Backups without a server: what is found, believed, refused and shown."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import yaml
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _backup_files, _client_programs, _contents, _scratch
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import Backup, Workplace
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._version import COLLECTION_VERSION

ROOT = Path(__file__).resolve().parents[2]


def make_backup(folder: Path, snapshot_time: str = "2025-11-01T22:00:00.000Z", database: str = "shop", **changes) -> Backup:
    """A backup of two files with a manifest that fits them."""
    (folder / "dump").mkdir(parents=True)
    (folder / "dump" / "toc.dat").write_bytes(b"contents")
    (folder / "dump" / "1.dat.gz").write_bytes(b"rows" * 50)
    files = _backup_files.list_files(str(folder), ("dump", "globals.sql"))
    properties = dict.fromkeys(("name", "encoding", "collate", "ctype", "provider", "locale"), "x")
    manifest = {
        "manifest_version": 2,
        "database": database,
        "properties": {**properties, "size_bytes": 1},
        "server": {"version": "18.1", "major": 18},
        "client_version": "16.4",
        "format": "directory",
        "snapshot_time": snapshot_time,
        "tables": [{"name": "public.t", "rows": 1, "sum": "5"}],
        "sequences": {},
        "catalogue": {},
        "files": files,
        "sha256": _backup_files.sha256_of_files(files),
        **changes,
    }
    _backup_files.write_json(str(folder / "manifest.json"), manifest)
    return Backup.load(str(folder))


def test_sound_files_are_believed(tmp_path):
    backup = make_backup(tmp_path / "b")
    backup.verify_files()
    assert backup.proof() is None


def test_every_single_byte_counts(tmp_path):
    backup = make_backup(tmp_path / "b")
    for file in backup.manifest["files"]:
        path = tmp_path / "b" / file["name"]
        sound = path.read_bytes()
        for position in range(len(sound)):
            path.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
            with pytest.raises(UnifiedUserError, match="was altered"):
                backup.verify_files()
        path.write_bytes(sound)
    backup.verify_files()


def exchange(folder: Path):
    first, second = folder / "dump" / "toc.dat", folder / "dump" / "1.dat.gz"
    contents = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(contents)


DAMAGES = {
    "truncated": (lambda folder: os.truncate(folder / "dump" / "1.dat.gz", 100), r"1\.dat\.gz has 100 bytes instead of 200"),
    "empty": (lambda folder: os.truncate(folder / "dump" / "1.dat.gz", 0), r"1\.dat\.gz is empty"),
    "missing": (lambda folder: (folder / "dump" / "toc.dat").unlink(), r"toc\.dat is missing"),
    "swapped": (exchange, r"1\.dat\.gz has 8 bytes instead of 200; dump/toc\.dat has 200 bytes instead of 8"),
    "foreign": (lambda folder: (folder / "dump" / "2.dat").write_text("x"), r"2\.dat is not in the manifest"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(tmp_path, damage):
    folder = tmp_path / "b"
    backup = make_backup(folder)
    inflict, message = DAMAGES[damage]
    inflict(folder)
    with pytest.raises(UnifiedUserError, match=message) as caught:
        backup.verify_files()
    assert "do not rely on this one" in str(caught.value)


def test_a_directory_that_is_gone_is_missing(tmp_path):
    backup = make_backup(tmp_path / "b")
    for path in (tmp_path / "b" / "dump").iterdir():
        path.unlink()
    (tmp_path / "b" / "dump").rmdir()
    with pytest.raises(UnifiedUserError, match=r"1\.dat\.gz is missing; dump/toc\.dat is missing"):
        backup.verify_files()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "not a finished backup"),
        (b"", "is not JSON"),
        (b'{"manifest_version": 2, "datab', "is not JSON"),
        (b"[]", "version None"),
        (b'{"manifest_version": 9}', "version 9"),
        (b'{"manifest_version": 2}', "database, format, .* missing or malformed"),
    ],
)
def test_a_manifest_that_cannot_be_read(tmp_path, content, message):
    make_backup(tmp_path / "b")
    path = tmp_path / "b" / "manifest.json"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UnifiedUserError, match=message):
        Backup.load(str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, "contradicts itself"),
        ({"files": []}, "contradicts itself"),
        ({"files": [{"name": "dump/toc.dat", "size": "8", "sha256": "x"}]}, "files missing or malformed"),
        ({"tables": [{"name": "public.t", "rows": 1}]}, "tables missing or malformed"),
        ({"format": "plain"}, "format missing or malformed"),
        ({"properties": {}}, "encoding, .* missing or malformed"),
        ({"client_version": "new"}, "client_version missing or malformed"),
    ],
)
def test_a_manifest_that_is_damaged(tmp_path, changes, message):
    with pytest.raises(UnifiedUserError, match=message):
        make_backup(tmp_path / "b", **changes)


def test_only_the_very_dump_that_was_proven_is_proven(tmp_path):
    backup = make_backup(tmp_path / "b")
    with pytest.raises(UnifiedUserError, match="no restore test has proven it"):
        backup.require_proof()
    path = backup.write_proof({"proven_at": "2025-11-01T22:10:00Z"})
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    backup.require_proof()

    other = make_backup(tmp_path / "other", snapshot_time="2025-11-02T22:00:00.000Z")
    os.replace(path, tmp_path / "other" / "proof.json")
    with pytest.raises(UnifiedUserError, match="about another dump"):
        other.require_proof()

    backup.write_proof({"proven_at": "2025-11-01T22:10:00Z"})
    backup.withdraw_proof()
    assert backup.proof() is None


def test_a_changed_manifest_is_no_longer_proven(tmp_path):
    backup = make_backup(tmp_path / "b")
    backup.write_proof({"proven_at": "2025-11-01T22:10:00Z"})
    manifest = {**backup.manifest, "tables": [{"name": "public.t", "rows": 2, "sum": "5"}]}
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UnifiedUserError, match="about another dump"):
        Backup.load(str(tmp_path / "b")).require_proof()


def test_the_newest_is_found_and_what_is_no_backup_passed_over(tmp_path):
    make_backup(tmp_path / "shop-1", "2025-11-01T00:00:00.000Z").write_proof({"proven_at": "2025-11-01T00:10:00Z"})
    make_backup(tmp_path / "shop-2", "2025-11-03T00:00:00.000Z")
    make_backup(tmp_path / "blog-1", "2025-11-04T00:00:00.000Z", database="blog")
    make_backup(tmp_path / ".shop-3.partial", "2025-11-05T00:00:00.000Z")
    (tmp_path / "shop-4").mkdir()
    (tmp_path / "shop-5").mkdir()
    (tmp_path / "shop-5" / "manifest.json").write_text("{")
    assert _backup_files.newest(str(tmp_path), "shop", proven=False).path.endswith("shop-2")
    assert _backup_files.newest(str(tmp_path), "shop", proven=True).path.endswith("shop-1")
    with pytest.raises(UnifiedUserError, match="find a proven backup of database blog"):
        _backup_files.newest(str(tmp_path), "blog", proven=True)
    with pytest.raises(UnifiedUserError, match="there is none below"):
        _backup_files.newest(str(tmp_path / "nowhere"), "shop", proven=False)


def test_a_workplace_leaves_nothing_unless_published(tmp_path):
    directory = tmp_path / "backups"
    workplace = Workplace(str(directory), "shop")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(workplace.path).st_mode) == 0o700
    # Another run does not touch what somebody is still at work on.
    second = Workplace(str(directory), "shop")
    assert second.leftovers == [] and second.name != workplace.name
    second.close()
    workplace.close()
    assert list(directory.iterdir()) == []
    third = Workplace(str(directory), "shop")
    Path(third.path, "manifest.json").write_text("{}")
    published = third.publish()
    third.close()
    assert [str(path) for path in directory.iterdir()] == [published]


def test_leftovers_of_killed_runs_are_removed(tmp_path):
    (tmp_path / ".shop-20250101T000000Z.partial" / "dump").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    workplace = Workplace(str(tmp_path), "shop")
    workplace.close()
    assert workplace.leftovers == [".shop-20250101T000000Z.partial"]
    assert [path.name for path in tmp_path.iterdir()] == [".hidden"]


def test_a_directory_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(UnifiedUserError, match="others may write there"):
        Workplace(str(tmp_path), "shop")


def test_names_on_disk_hold_nothing_that_a_shell_minds():
    assert _backup_files.planned_name("shop").startswith("shop-2")
    assert _backup_files.planned_name("../a b'c\"").startswith("_._a_b_c_-2")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("shop", "shop_restored"), ("x" * 63, "x" * 54 + "_restored"), ("ä" * 30, "ä" * 27 + "_restored")],
)
def test_names_of_copies_fit_postgresql(name, expected):
    assert _scratch.derived_name(name, "_restored") == expected
    assert len(expected.encode()) <= 63


@pytest.mark.parametrize("comment", [None, "", "my database", "[1]", '{"made_by": "somebody"}', "5"])
def test_a_comment_of_somebody_else_is_no_mark(comment):
    assert _scratch.parse_mark(comment) == {}


def fake_program(folder: Path, version: str, name: str = "pg_dump") -> Path:
    """A program that is good for nothing but its version."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version}'\n")
    program.chmod(0o755)
    return program


def find(monkeypatch, tmp_path, server: int, minimum: int, *versions: str) -> str:
    """The version chosen where PATH has the first one and packages the others."""
    fake_program(tmp_path / "path", versions[0])
    for version in versions[1:]:
        fake_program(tmp_path / "packages" / version / "bin", version)
    monkeypatch.setenv("PATH", str(tmp_path / "path") + os.pathsep + os.environ["PATH"])
    monkeypatch.setattr(_client_programs, "_KNOWN_DIRECTORIES", (str(tmp_path / "packages" / "*" / "bin"),))
    return _client_programs.find_program("pg_dump", server, minimum, None, "bin_dir").version


@pytest.mark.parametrize(
    ("server", "minimum", "versions", "expected"),
    [
        (16, 16, ("18.1", "16.4", "17.2"), "16.4"),
        (16, 16, ("18.1", "15.1", "17.2"), "17.2"),
        (16, 16, ("16.9 (Debian 16.9-1)", "15.1"), "16.9"),
        (16, 17, ("18.1", "16.4", "17.2"), "17.2"),
        (19, 19, ("18.1", "19beta1"), "19beta1"),
    ],
)
def test_the_programs_of_the_servers_major_come_first(monkeypatch, tmp_path, server, minimum, versions, expected):
    assert find(monkeypatch, tmp_path, server, minimum, *versions) == expected


def test_programs_older_than_the_server_are_refused_with_the_way_out(monkeypatch, tmp_path):
    with pytest.raises(UnifiedUserError) as caught:
        find(monkeypatch, tmp_path, 16, 16, "14.2", "15.8")
    message = str(caught.value)
    assert "15.8" in message and "server: 16" in message
    assert "postgresql-client-16" in message and "bin_dir" in message


def test_a_directory_without_programs_is_refused(tmp_path):
    with pytest.raises(UnifiedUserError, match=r"find pg_dump: it is not in .*Install the package postgresql-client-16"):
        _client_programs.find_program("pg_dump", 16, 16, str(tmp_path), "bin_dir")
    (tmp_path / "pg_dump").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "pg_dump").chmod(0o755)
    with pytest.raises(UnifiedUserError, match="find pg_dump"):
        _client_programs.find_program("pg_dump", 16, 16, str(tmp_path), "bin_dir")


PG_RESTORE_COMPLAINT = """\
pg_restore: while PROCESSING TOC:
pg_restore: from TOC entry 3357; 0 16391 TABLE DATA customers postgres
pg_restore: error: could not execute query: ERROR:  could not create unique index "customers_email_key"
DETAIL:  Key (email)=(anna@example.com) is duplicated.
Command was: INSERT INTO customers VALUES ('anna@example.com',
    'hash-of-anna');
pg_restore: error: COPY failed for table "customers": ERROR:  invalid input syntax for type integer: "anna's secret"
CONTEXT:  COPY customers, line 1, column phone: "0815"
pg_restore: error: no entry for role bert@example.com with p4ssw0rd
pg_restore: detail: Query was: SELECT 'carla'
"""


def test_complaints_are_shown_without_rows_and_secrets():
    shown = _client_programs.explain(PG_RESTORE_COMPLAINT, ["p4ssw0rd"])
    assert 'could not create unique index "customers_email_key"' in shown
    assert "invalid input syntax for type integer: (value not shown)" in shown
    assert "***@example.com" in shown
    for hidden in ("anna", "bert", "carla", "0815", "p4ssw0rd", "hash-of"):
        assert hidden not in shown


def test_a_silent_or_chatty_program_is_explained_in_a_line():
    assert _client_programs.explain("", []) == "it said nothing"
    assert _client_programs.explain("Segmentation fault\n", []) == "Segmentation fault"
    assert len(_client_programs.explain("pg_dump: error: " + "x" * 5000, [])) < 700


def test_expressions_compare_however_often_postgresql_has_printed_them():
    # What PostgreSQL makes of  v varchar(10) CHECK (v IN ('a', 'b'))  before and after a restore.
    first = "CHECK (((v)::text = ANY ((ARRAY['a'::character varying, 'b'::character varying])::text[])))"
    again = "CHECK (((v)::text = ANY (ARRAY[('a'::character varying)::text, ('b'::character varying)::text])))"
    assert _contents._digest(first) == _contents._digest(again)
    assert _contents._digest(first) != _contents._digest(first.replace("'b'", "'c'"))
    assert _contents._digest("(x)::timestamp(3) without time zone") == _contents._digest("x")
    assert _contents._digest("'A'::public.\"Mood\"") == _contents._digest("'A'::\"Mood\"")


def test_comparison_names_what_is_wrong():
    expected = [{"name": name, "rows": 2, "sum": "7"} for name in ("a", "b", "c", "d")]
    actual = [
        {"name": "a", "rows": 2, "sum": "7"},
        {"name": "b", "rows": 2, "sum": "8"},
        {"name": "c", "rows": 3, "sum": "7"},
        {"name": "e", "rows": 0, "sum": "0"},
    ]
    compared = _contents.compare_rows(expected, actual)
    assert [(table["name"], table["problem"]) for table in compared] == [
        ("a", None),
        ("b", "content"),
        ("c", "rows"),
        ("d", "missing"),
        ("e", "unexpected"),
    ]
    assert [table["differing"] for table in compared] == [False, True, True, True, True]
    assert _contents.compare_catalogues({"index": {"i": "1", "j": "1"}}, {"index": {"i": "2"}, "view": {"v": "1"}}) == [
        {"kind": "index", "name": "i", "problem": "different"},
        {"kind": "index", "name": "j", "problem": "missing"},
        {"kind": "view", "name": "v", "problem": "unexpected"},
    ]


def test_a_sequence_may_be_ahead_but_not_behind():
    def at(up, down):
        return {"up": {"last_value": up, "ascending": True}, "down": {"last_value": down, "ascending": False}}

    assert _contents.compare_sequences(at(5, -5), at(5, -5)) == []
    assert _contents.compare_sequences(at(5, -5), at(9, -9)) == []
    assert [entry["name"] for entry in _contents.compare_sequences(at(5, -5), at(4, -4))] == ["up", "down"]
    assert [entry["name"] for entry in _contents.compare_sequences(at(5, -5), {})] == ["up", "down"]


def test_the_version_that_is_written_down_is_the_collections():
    assert yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"] == COLLECTION_VERSION
