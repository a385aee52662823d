"""After the playbook ran twice: the reference case's numbers, asked of the database itself."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

MIGRATIONS = Path(__file__).resolve().parents[4] / "tests" / "app" / "prisma" / "migrations"


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        ("users", 198),
        ("user_role_assignments", 200),
        ("studio_ownership", 47),
        ("new_bookings", 312),
        ("studio_owners", 42),
        ("customers", 158),
        ("bookings", 312),
    ],
)
def test_rows(query, table, rows):
    assert query(f'SELECT count(*) FROM "{table}"') == str(rows)


@pytest.mark.parametrize(
    ("what", "statement"),
    [
        ("bookings without a user", 'SELECT count(*) FROM new_bookings b LEFT JOIN users u ON u.id = b."customerId" WHERE u.id IS NULL'),
        ("bookings without their image", "SELECT count(*) FROM bookings b LEFT JOIN new_bookings n USING (id) WHERE n.id IS NULL"),
        ("studios without their owner", """SELECT count(*) FROM studios s LEFT JOIN studio_ownership o ON o."studioId" = s.id
            WHERE s."ownerId" IS NOT NULL AND o.id IS NULL"""),
        ("roles without a user", 'SELECT count(*) FROM user_role_assignments r LEFT JOIN users u ON u.id = r."userId" WHERE u.id IS NULL'),
    ],
)
def test_no_orphans(query, what, statement):
    assert query(statement) == "0", what


def test_prismas_bookkeeping_names_every_migration_with_its_checksum(query):
    rows = query("""SELECT migration_name || ' ' || checksum FROM _prisma_migrations
                     WHERE finished_at IS NOT NULL AND logs IS NULL AND rolled_back_at IS NULL AND applied_steps_count = 1
                     ORDER BY migration_name""").splitlines()
    files = sorted(MIGRATIONS.glob("*/migration.sql"))
    assert rows == [f"{file.parent.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
    assert query("SELECT count(*) FROM _prisma_migrations") == str(len(files))


def test_no_scratch_database_is_left(query, variables):
    assert set(query("SELECT datname FROM pg_database", "postgres").split()) == {
        "postgres", "template0", "template1", variables["unified_user_login_db"],
    }
