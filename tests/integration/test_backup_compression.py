# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compression by what the real programs here were built with: 15 knows gzip alone, 17 all of them, 18 lacks lz4 and zstd."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_compression import Compression, check_level, choose_compression
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._client_programs import Program, find_program
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

from tests.module_process import connection_options, run_module
from tools.embedded_postgres import Cluster, available_majors

#: How the bytes of each method begin (RFC 1952, LZ4 frame format, RFC 8878).
MAGIC = {"gzip": b"\x1f\x8b", "lz4": b"\x04\x22\x4d\x18", "zstd": b"\x28\xb5\x2f\xfd"}


def pg_dump(version: int) -> Program:
    if version not in available_majors():
        pytest.skip(f"no PostgreSQL {version} here")
    return find_program("pg_dump", version, version, str(Path(Cluster(version, "never-started").bin("pg_dump")).parent), "bin_dir")


@pytest.mark.parametrize(
    ("version", "wanted", "level", "expected", "argument"),
    [
        (15, "auto", 1, Compression("gzip", 1), "--compress=1"),
        (17, "auto", 1, Compression("zstd", 1), "--compress=zstd:1"),
        (18, "auto", 1, Compression("gzip", 1), "--compress=1"),
        (17, "gzip", 9, Compression("gzip", 9), "--compress=9"),
        (17, "lz4", 12, Compression("lz4", 12), "--compress=lz4:12"),
        (17, "zstd", 19, Compression("zstd", 19), "--compress=zstd:19"),
        (17, "auto", 0, Compression("none", 0), "--compress=0"),
        (15, "gzip", 0, Compression("none", 0), "--compress=0"),
    ],
)
def test_what_the_program_can_is_chosen(version, wanted, level, expected, argument):
    chosen = choose_compression(pg_dump(version), wanted, level)
    assert chosen == expected and chosen.argument == argument


@pytest.mark.parametrize(("version", "wanted"), [(15, "lz4"), (15, "zstd"), (18, "lz4"), (18, "zstd")])
def test_what_the_program_cannot_is_refused_with_the_way_out(version, wanted):
    program = pg_dump(version)
    with pytest.raises(UnifiedUserError) as caught:
        choose_compression(program, wanted, 1)
    message = str(caught.value)
    assert f"compress a dump with {wanted}" in message and program.version in message
    assert "Set compression to auto or gzip" in message and "bin_dir" in message


@pytest.mark.parametrize(("method", "level", "last"), [("gzip", 10, 9), ("lz4", 13, 12), ("zstd", 23, 22), ("zstd", 0, 22), ("gzip", -1, 9)])
def test_a_level_that_the_method_lacks_is_refused(method, level, last):
    with pytest.raises(UnifiedUserError, match=rf"compression_level is {level}, {method} has levels from \d to {last}"):
        check_level(method, level)


@pytest.mark.one_major
def test_the_probe_does_not_ask_the_server_of_the_environment(cluster, monkeypatch):
    """Whatever PGHOST names, the question what a program was built with opens no session."""
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")
    monkeypatch.setenv("PGPORT", str(cluster.port))
    assert choose_compression(pg_dump(17), "zstd", 1).method == "zstd"


@pytest.fixture
def able(clusters, tmp_path):
    """Options for a database on the server whose programs can do everything."""
    program = pg_dump(17)
    own = clusters(17)
    name = "compressed"
    own.create_database(name)
    with contextlib.closing(Database(own.connect(name))) as session:
        session.execute("CREATE TABLE t AS SELECT i, md5(i::text) AS h FROM generate_series(1, 3000) AS i")
    yield {**connection_options(own, name), "directory": str(tmp_path / "backups"), "bin_dir": str(Path(program.path).parent)}
    own.drop_database(name)


@pytest.mark.parametrize("form", ["directory", "custom"])
@pytest.mark.parametrize(("wanted", "used"), [("gzip", "gzip"), ("lz4", "lz4"), ("zstd", "zstd"), ("auto", "zstd")])
def test_the_dump_is_compressed_so_says_so_and_is_proven(able, wanted, used, form):
    taken = run_module("database_backup", {**able, "compression": wanted, "format": form})
    assert not taken.get("failed"), taken
    manifest = json.loads(Path(taken["manifest"]).read_text())
    assert taken["compression"] == manifest["compression"] == {"method": used, "level": 1}
    if form == "directory":
        (data,) = (path for path in Path(taken["path"], "dump").iterdir() if path.name != "toc.dat")
        assert data.read_bytes().startswith(MAGIC[used])
    tested = run_module("database_restore", {**able, "backup": taken["path"]})
    assert tested.get("proven") is True, tested


def test_a_pg_restore_that_lacks_the_compression_is_told_which_to_take(able):
    taken = run_module("database_backup", {**able, "compression": "zstd", "format": "custom"})
    unable = str(Path(pg_dump(18).path).parent)
    refused = run_module("database_restore", {**able, "backup": taken["path"], "bin_dir": unable})
    assert refused["failed"] and "not support compression" in refused["msg"], refused
    assert "Install a pg_restore that was built with the compression of this backup or set bin_dir to it" in refused["msg"]
    assert not Path(taken["path"], "proof.json").exists()


def test_check_mode_says_which_it_would_be(able):
    planned = run_module("database_backup", {**able, "compression": "auto", "_ansible_check_mode": True})
    assert planned["planned"] and planned["compression"] == {"method": "zstd", "level": 1}
    refused = run_module("database_backup", {**able, "compression": "zstd", "compression_level": 40, "_ansible_check_mode": True})
    assert refused["failed"] and "zstd has levels from 1 to 22" in refused["msg"]
