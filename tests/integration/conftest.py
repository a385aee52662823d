# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What several tests of backups start from."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database

from tests.integration.backup_support import BIG_ROWS
from tests.module_process import connection_options


@pytest.fixture
def admin(cluster):
    """A session on another database than those that are backed up."""
    with contextlib.closing(Database(cluster.connect())) as session:
        yield session


@pytest.fixture
def site(cluster, tmp_path):
    """Options of both modules for a database: `site(name, **changes)`."""

    def options(database: str, **changes) -> dict:
        return {
            **connection_options(cluster, database),
            "directory": str(tmp_path / "backups"),
            "bin_dir": str(Path(cluster.bin("pg_dump")).parent),
            **changes,
        }

    return options


@pytest.fixture
def big_database(cluster, database):
    """A database whose dump and restore take long enough to be disturbed."""
    with contextlib.closing(Database(cluster.connect(database))) as session:
        session.execute(
            "CREATE TABLE ledger (id bigint PRIMARY KEY, t text, at timestamptz DEFAULT now());"
            f"INSERT INTO ledger SELECT i, md5(i::text) || md5((i * 7)::text) FROM generate_series(1, {BIG_ROWS}) AS i;"
            "CREATE INDEX ON ledger (t); CREATE INDEX ON ledger (at, t)"
        )
    return database
