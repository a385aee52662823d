# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading migration directories: order, checksums, and what is wrong with a file before a database is asked."""

from __future__ import annotations

import hashlib
import os

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma import Diagnosis, Migration, Options, read_migrations

from tests.app.migration_history import MIGRATIONS, migration_directories


def write(directory, **scripts):
    """Make migration directories out of names and scripts (bytes)."""
    for name, script in scripts.items():
        (directory / name).mkdir()
        (directory / name / "migration.sql").write_bytes(script)
    return str(directory)


def test_application_s_migrations():
    migrations = read_migrations(str(MIGRATIONS))
    assert [migration.name for migration in migrations] == [directory.name for directory in migration_directories()]
    for migration, directory in zip(migrations, migration_directories(), strict=True):
        assert migration.checksum == hashlib.sha256((directory / "migration.sql").read_bytes()).hexdigest()


def test_order_is_that_of_bytes(tmp_path):
    path = write(tmp_path, **dict.fromkeys(("2_b", "10_a", "2_B", "2_ä", "Z"), b""))
    (tmp_path / "notes.md").write_text("no directory, so no migration")
    assert [migration.name for migration in read_migrations(path)] == ["10_a", "2_B", "2_b", "2_ä", "Z"]


def test_missing_directory(tmp_path):
    with pytest.raises(UnifiedUserError, match=r"there is no such directory on this host\. Set path to"):
        read_migrations(str(tmp_path / "prisma"))


def test_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "migrations").write_text("")
    with pytest.raises(UnifiedUserError, match="Not a directory"):
        read_migrations(str(tmp_path / "migrations"))


def test_directory_without_migrations(tmp_path):
    (tmp_path / "migration_lock.toml").write_text('provider = "postgresql"')
    with pytest.raises(UnifiedUserError, match="it holds no migration directory"):
        read_migrations(str(tmp_path))


def test_missing_script(tmp_path):
    path = write(tmp_path, a=b"", b=b"")
    os.unlink(tmp_path / "a" / "migration.sql")
    with pytest.raises(UnifiedUserError, match=r"a has no migration\.sql\. Restore the file from version control"):
        read_migrations(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_script(tmp_path):
    path = write(tmp_path, a=b"")
    (tmp_path / "a" / "migration.sql").chmod(0)
    with pytest.raises(UnifiedUserError, match=r"Permission denied .*Let the user that runs this module read it"):
        read_migrations(path)


def test_other_database(tmp_path):
    path = write(tmp_path, a=b"")
    (tmp_path / "migration_lock.toml").write_text('# comment\nprovider = "mysql"\n')
    with pytest.raises(UnifiedUserError, match="they were written for mysql"):
        read_migrations(path)


@pytest.mark.parametrize(
    ("stored", "equal"),
    [
        (hashlib.sha256(b"SELECT 1;\n\nSELECT 2;\n").hexdigest(), True),
        (hashlib.sha256(b"SELECT 1;\r\n\r\nSELECT 2;\r\n").hexdigest(), True),
        ("".join(f"{byte:x}" for byte in hashlib.sha256(b"SELECT 1;\n\nSELECT 2;\n").digest()), True),
        (hashlib.sha256(b"SELECT 1;\n\nSELECT 2; \n").hexdigest(), False),
        ("", False),
    ],
    ids=["same", "other line endings", "early Prisma", "a space more", "empty"],
)
def test_checksums(stored, equal):
    unix = Migration("a", b"SELECT 1;\n\nSELECT 2;\n")
    windows = Migration("a", b"SELECT 1;\r\n\r\nSELECT 2;\r\n")
    assert (unix.matches(stored), windows.matches(stored)) == (equal, equal)


def test_early_checksums_differ_from_today_s():
    digest = hashlib.sha256(b"SELECT 1;\n\nSELECT 2;\n")
    assert "".join(f"{byte:x}" for byte in digest.digest()) != digest.hexdigest(), "the case above would prove nothing"


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        (b"SELECT 1;\nSELECT 'M\xfcller';", "line 2 of its migration.sql is not UTF-8. Save the file as UTF-8"),
        ("SELECT 1;".encode("utf-16"), "line 1 of its migration.sql is not UTF-8"),
        (b"SELECT 1;\0", "its migration.sql holds a NUL byte"),
        (b"SELECT 1;\nSELECT 'x", "in its migration.sql the quote or comment that begins in line 2 has no end"),
        (
            b"CREATE INDEX a ON t(a);\nCREATE INDEX CONCURRENTLY b ON t(b);\nVACUUM t;",
            r"cannot be applied as a whole or not at all \(line 2: CREATE INDEX CONCURRENTLY cannot run inside a transaction; line 3: VACUUM",
        ),
    ],
)
def test_scripts_that_cannot_be_applied(script, cause):
    with pytest.raises(UnifiedUserError, match=cause):
        Migration("20250101000000_x", script).statements()


def test_statements_leave_out_the_script_s_own_transaction():
    migration = Migration("a", "\ufeffBEGIN;\nSELECT 1;\nCOMMIT;\n".encode())
    assert [(statement.number, statement.line, statement.text) for statement in migration.statements()] == [(2, 2, "SELECT 1")]


def diagnosis(**findings):
    nothing = {"applied": [], "pending": [], "failed": [], "edited": [], "missing": [], "tables": 0, "has_history": True}
    return Diagnosis(**{**nothing, **findings})


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (diagnosis(failed=["b"]), ("P3009", "migration b began earlier and did not finish", "prisma migrate resolve --rolled-back b")),
        (diagnosis(edited=["a", "c"]), ("migration.sql of a (and 1 more) was changed after it was applied", "put the change into a new migration")),
        (diagnosis(missing=["a"]), ("the database has migration a, which is not in /srv/m", "Set path to the release")),
        (diagnosis(tables=3), ("P3005", "it holds 3 tables but no record of any migration", "prisma migrate resolve --applied")),
    ],
    ids=["failed", "edited", "missing", "without history"],
)
def test_refusals_say_the_way_out(found, words):
    with pytest.raises(UnifiedUserError) as caught:
        found.refuse(Options("/srv/m"))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert str(caught.value).startswith("Failed to deploy migrations into schema public: ")


def test_nothing_wrong_is_not_refused():
    diagnosis(pending=[Migration("a", b"")]).refuse(Options("/srv/m"))
    assert diagnosis().up_to_date and not diagnosis(pending=[Migration("a", b"")]).up_to_date


def test_another_deployment_is_waited_for_as_long_as_prisma_waits():
    assert Options("/srv/m").advisory_lock_seconds == 10
