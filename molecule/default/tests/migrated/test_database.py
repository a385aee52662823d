"""After the playbook ran twice: the reference case's numbers, asked of the database itself."""

from __future__ import annotations

import hashlib
from pathlib import Path

MIGRATIONS = Path(__file__).resolve().parents[4] / "tests" / "app" / "prisma" / "migrations"

ROWS = {
    "users": 198,
    "user_role_assignments": 200,
    "studio_ownership": 47,
    "new_bookings": 312,
    # The legacy side is as it was.
    "studio_owners": 42,
    "customers": 158,
    "bookings": 312,
}
ORPHANS = {
    "bookings without a user": 'SELECT count(*) FROM new_bookings b LEFT JOIN users u ON u.id = b."customerId" WHERE u.id IS NULL',
    "bookings without an image": "SELECT count(*) FROM bookings b LEFT JOIN new_bookings n USING (id) WHERE n.id IS NULL",
    "owned studios without an owner": 'SELECT count(*) FROM studios s LEFT JOIN studio_ownership o ON o."studioId" = s.id '
    'WHERE s."ownerId" IS NOT NULL AND o.id IS NULL',
    "roles without a user": 'SELECT count(*) FROM user_role_assignments r LEFT JOIN users u ON u.id = r."userId" WHERE u.id IS NULL',
}


def numbers(query, statements: dict[str, str]) -> dict[str, int]:
    """What each statement counts, in one go."""
    lines = query(" UNION ALL ".join(f"SELECT '{name}|' || ({statement})" for name, statement in statements.items()))
    return {name: int(number) for name, number in (line.split("|") for line in lines)}


def test_rows(query):
    assert numbers(query, {table: f'SELECT count(*) FROM "{table}"' for table in ROWS}) == ROWS


def test_no_orphans(query):
    assert numbers(query, ORPHANS) == dict.fromkeys(ORPHANS, 0)


def test_prismas_bookkeeping_names_every_migration_with_its_checksum(query):
    rows = query(
        """SELECT migration_name, checksum, finished_at IS NOT NULL AND logs IS NULL AND rolled_back_at IS NULL AND applied_steps_count = 1
             FROM _prisma_migrations ORDER BY migration_name"""
    )
    files = sorted(MIGRATIONS.glob("*/migration.sql"))
    assert rows == [f"{file.parent.name}|{hashlib.sha256(file.read_bytes()).hexdigest()}|t" for file in files]


def test_no_scratch_database_is_left(query, variables):
    assert set(query("SELECT datname FROM pg_database")) == {"postgres", "template0", "template1", variables["unified_user_login_db"]}
