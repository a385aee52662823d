# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A disk that is really full, in the middle of a dump, a copy, a fetch and a restore.

As root on a small file system of its own; where mounting one is refused, those tests are skipped, and what stops a dump is the largest file
that the process may write.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import sys
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database

from tests.integration.backup_support import databases, refuse, restore, succeed, visible, wait_until
from tests.integration.small_disk import drop_tablespace, room_left
from tests.module_process import run_module

ROOM_BYTES = 14_000_000


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
@pytest.mark.one_major
def test_full_during_the_dump(site, big_database, small_disk, identity, encrypted):
    recipients = [identity()[1]] if encrypted else []
    options = site(big_database, directory=str(small_disk(2000)), required_bytes=1, encryption_recipients=recipients)
    message = refuse(run_module("database_backup", options), "dump database", "Free disk space")
    assert re.search("no space left on device", message, re.IGNORECASE)
    assert visible(options) == []
    refuse(run_module("database_backup", {**options, "required_bytes": None}), "bytes of free disk are needed")


@pytest.mark.one_major
def test_a_file_larger_than_the_process_may_write(site, big_database, tmp_path):
    limited = tmp_path / "limited"
    limited.write_text(f'#!/bin/bash\nulimit -f 1000\nexec {sys.executable} "$@"\n')
    limited.chmod(0o755)
    options = site(big_database, required_bytes=1)
    refuse(run_module("database_backup", options, python=str(limited)), "dump database")
    assert visible(options) == []


@pytest.mark.parametrize("kind", ["path", "ssh"])
@pytest.mark.one_major
def test_full_during_the_copy(site, big_database, small_disk, far_end, kind):
    taken = succeed(run_module("database_backup", site(big_database)))
    folder = small_disk(2000)
    place = {**far_end(kind).options, "path": str(folder)}
    refuse(run_module("database_backup_copy", {"backup": taken["path"], "copies": [place]}), "No space left on device", f"at {kind} ")
    assert list(folder.iterdir()) == []


@pytest.mark.one_major
def test_full_while_a_copy_is_brought_back(site, big_database, small_disk, far_end, admin):
    options, place, before = site(big_database), far_end("ssh").options, databases(admin)
    taken = succeed(run_module("database_backup", options))
    succeed(run_module("database_backup_copy", {"backup": taken["path"], "copies": [place]}))
    folder = small_disk(2000)
    refuse(restore({**options, "directory": str(folder)}, taken, copies=[place]), "bring back the copy", "No space left on device")
    assert list(folder.iterdir()) == [] and databases(admin) == before


@pytest.mark.one_major
def test_full_during_the_restore(cluster, site, small_disk, admin):
    folder = small_disk(100_000, owner=pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else os.geteuid())
    name = f"full_{os.getpid()}"
    admin.execute(f"CREATE TABLESPACE {name} LOCATION '{folder}'")
    try:
        admin.execute(f"CREATE DATABASE {name} TABLESPACE {name}")
        with contextlib.closing(Database(cluster.connect(name))) as session:
            session.execute("CREATE TABLE t AS SELECT i, md5(i::text) || md5((i * 7)::text) AS b FROM generate_series(1, 200000) AS i")
        options = site(name)
        taken = succeed(run_module("database_backup", options))
        # An empty database fits into what is left, the table does not.
        room_left(folder, ROOM_BYTES)
        refuse(restore(options, taken), "restore", "No space left on device", "Free disk space on the database server")
        assert f"{name}_restore_test" not in databases(admin) and not Path(taken["path"], "proof.json").exists()
    finally:
        admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        wait_until(lambda: drop_tablespace(admin, name))
