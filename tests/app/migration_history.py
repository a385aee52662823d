"""Applies the application's migrations as Prisma Migrate would have, bookkeeping included.

For tests and the demo only, and on purpose not the collection's own applier: a test must not prove code with itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import uuid
from pathlib import Path

MIGRATIONS = Path(__file__).resolve().parent / "prisma" / "migrations"
UNIFIED_SUFFIX = "_add_unified_user_model_and_rbac"

BOOKKEEPING = """
CREATE TABLE IF NOT EXISTS "_prisma_migrations" (
    "id"                  VARCHAR(36) PRIMARY KEY NOT NULL,
    "checksum"            VARCHAR(64) NOT NULL,
    "finished_at"         TIMESTAMPTZ,
    "migration_name"      VARCHAR(255) NOT NULL,
    "logs"                TEXT,
    "rolled_back_at"      TIMESTAMPTZ,
    "started_at"          TIMESTAMPTZ NOT NULL DEFAULT now(),
    "applied_steps_count" INTEGER NOT NULL DEFAULT 0
)
"""


def migration_directories(migrations: Path = MIGRATIONS) -> list[Path]:
    """The migrations in the order Prisma applies them; the last one adds the unified model."""
    directories = sorted(path.parent for path in migrations.glob("*/migration.sql"))
    if not directories or not directories[-1].name.endswith(UNIFIED_SUFFIX):
        raise FileNotFoundError(f"{migrations} must hold migrations of which the last is named *{UNIFIED_SUFFIX}")
    return directories


def legacy_migrations(migrations: Path = MIGRATIONS) -> list[Path]:
    """All but the last: the application before the unified model."""
    return migration_directories(migrations)[:-1]


def unified_migration(migrations: Path = MIGRATIONS) -> Path:
    """The one that adds the unified model."""
    return migration_directories(migrations)[-1]


def apply_migrations(connection, directories: list[Path]) -> None:
    """Runs each migration.sql and records it as finished.

    connection: a psycopg2 connection in autocommit mode; tables go to the first schema of its search_path.
    """
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute(BOOKKEEPING)
        for directory in directories:
            script = (directory / "migration.sql").read_bytes()
            cursor.execute(script.decode())
            cursor.execute(
                'INSERT INTO "_prisma_migrations" (id, checksum, migration_name, started_at, finished_at, applied_steps_count) '
                "VALUES (%s, %s, %s, now(), now(), 1)",
                (str(uuid.uuid4()), hashlib.sha256(script).hexdigest(), directory.name),
            )
