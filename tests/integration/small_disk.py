# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A file system with little room, for a server to fill."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg2
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database


def drop_tablespace(admin: Database, name: str) -> bool:
    """Drop a tablespace whose last files may still wait for a checkpoint; return whether it is gone."""
    try:
        admin.execute(f"DROP TABLESPACE {name}")
    except psycopg2.errors.ObjectNotInPrerequisiteState:
        return False
    return True


def room_left(folder: Path, amount: int) -> Path:
    """Leave so many bytes free, and return the file whose end makes room again."""
    status = os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(bytes(status.f_bavail * status.f_frsize - amount))
    return filler
