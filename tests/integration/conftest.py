# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What several tests of backups start from."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database

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
