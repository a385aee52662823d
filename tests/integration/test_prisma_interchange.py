# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module prisma_migration and the real Prisma CLI on one database, in either order: neither notices the other."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma import Options
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma_deployment import ADVISORY_LOCK, deploy
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma_states import resolve, status

from tests.app.migration_history import migration_directories
from tests.app.prisma_cli import PRISMA_DIRECTORY, PrismaCli

# What is tested here does not depend on the server's version; what does is tested on every one elsewhere.
pytestmark = pytest.mark.one_major

NAMES = [directory.name for directory in migration_directories()]
UP_TO_DATE = "Database schema is up to date!"
NOTHING_PENDING = "No pending migrations to apply."


class Application:
    """One database and a release of its own, deployed by either tool.

    Attributes:
        migrations: the release's migrations, which a test may change.
    """

    def __init__(self, cluster, dbname, directory):
        self.cluster, self.dbname = cluster, dbname
        shutil.copytree(PRISMA_DIRECTORY, directory)
        self.migrations = directory / "migrations"
        self.cli = PrismaCli(cluster, dbname, directory)

    def keep(self, names):
        """Leave only these migrations in the release."""
        for name in set(NAMES) - set(names):
            shutil.rmtree(self.migrations / name)

    def restore(self):
        """Put every migration back."""
        shutil.copytree(PRISMA_DIRECTORY / "migrations", self.migrations, dirs_exist_ok=True)

    def by_cli(self):
        """Deploy with the CLI and return what it printed."""
        result = self.cli.run("migrate", "deploy")
        assert result.returncode == 0, result.stdout
        return result.stdout

    def by_module(self):
        """Deploy with the module's engine and return what it applied."""
        with self.session() as database:
            return deploy(database, Options(str(self.migrations)), self.connect, check_mode=False)["applied"]

    def status(self):
        """Return what both say about the database: the CLI's status and output, and the module's result."""
        told = self.cli.run("migrate", "status")
        with self.session() as database:
            return told.returncode, told.stdout, status(database, Options(str(self.migrations)))

    def require_up_to_date(self):
        """Fail unless both say that there is nothing to do."""
        code, output, ours = self.status()
        assert (code, UP_TO_DATE in output) == (0, True), output
        assert ours["up_to_date"] is True

    def require_nothing_to_do(self):
        """Fail unless a deployment by either changes nothing at all."""
        before = self.dump()
        assert NOTHING_PENDING in self.by_cli()
        assert self.by_module() == []
        assert self.dump() == before

    def connect(self):
        """Open a session."""
        return Database(self.cluster.connect(self.dbname))

    def session(self):
        """A session for a with block."""
        return contextlib.closing(self.connect())

    def rows(self, statement):
        """Ask the database."""
        with self.session() as database:
            return database.rows(statement)

    def dump(self, *more):
        """Everything in the database, as pg_dump tells it, without the key it makes up for each dump."""
        command = [str(self.cluster.bin("pg_dump")), "--dbname", self.cluster.dsn(self.dbname), *more]
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        return [line for line in output.splitlines() if "restrict " not in line]

    def records(self):
        """The history without what is made up for each deployment."""
        return self.rows(
            "SELECT migration_name, checksum, logs, rolled_back_at, applied_steps_count, finished_at >= started_at AS in_time,"
            " length(id) AS id_length FROM _prisma_migrations ORDER BY started_at"
        )


@pytest.fixture
def application(cluster, database, tmp_path):
    return Application(cluster, database, tmp_path / "prisma")


def test_module_then_cli(application):
    assert application.by_module() == NAMES
    application.require_up_to_date()
    application.require_nothing_to_do()


def test_cli_then_module(application):
    application.by_cli()
    application.require_up_to_date()
    application.require_nothing_to_do()


def test_both_leave_the_same(application, cluster, templates, tmp_path):
    application.by_cli()
    with templates.database("empty") as other_database:
        other = Application(cluster, other_database, tmp_path / "other")
        other.by_module()
        assert application.dump("--schema-only") == other.dump("--schema-only")
        assert application.records() == other.records()


@pytest.mark.parametrize("first", ["module", "cli"])
def test_half_by_each(application, first):
    application.keep(NAMES[:3])
    if first == "module":
        assert application.by_module() == NAMES[:3]
        application.restore()
        assert NAMES[-1] in application.by_cli()
    else:
        application.by_cli()
        application.restore()
        assert application.by_module() == NAMES[3:]
    assert [record["migration_name"] for record in application.records()] == NAMES
    application.require_up_to_date()


def test_migration_that_failed_with_the_cli(application):
    """The way out that the refusal names works: mark it, then either tool goes on."""
    application.by_module()
    script = application.migrations / "20251201000000_fails"
    script.mkdir()
    (script / "migration.sql").write_text("CREATE TABLE half (id int);\nSELECT * FROM not_there;")
    failed = application.cli.run("migrate", "deploy")
    assert failed.returncode == 1 and "not_there" in failed.stdout
    code, output, ours = application.status()
    assert code == 1 and "Following migration have failed" in output
    assert ours["failed_migrations"] == ["20251201000000_fails"]
    with pytest.raises(UnifiedUserError, match=r"20251201000000_fails .*P3009.* 'prisma migrate resolve --rolled-back 20251201000000_fails'"):
        application.by_module()
    (script / "migration.sql").write_text("CREATE TABLE half (id int);")
    assert "table half" in ours["remains"]["20251201000000_fails"]
    # What `resolve --rolled-back` does; the engine used here cannot.
    with application.session() as database:
        options = Options(str(application.migrations))
        with pytest.raises(UnifiedUserError, match="that is not true: table half came of it"):
            resolve(database, options, "20251201000000_fails", "rolled_back", check_mode=False)
        database.execute("DROP TABLE half")
        assert resolve(database, options, "20251201000000_fails", "rolled_back", check_mode=False)["changed"]
    assert application.by_module() == ["20251201000000_fails"]
    application.require_up_to_date()


def test_migration_that_failed_with_the_module(application):
    """Nothing is left of it, so the CLI sees a pending migration and no failed one."""
    application.by_module()
    script = application.migrations / "20251201000000_fails"
    script.mkdir()
    (script / "migration.sql").write_text("CREATE TABLE half (id int);\nSELECT * FROM not_there;")
    with pytest.raises(UnifiedUserError, match="20251201000000_fails"):
        application.by_module()
    code, output, _ours = application.status()
    assert code == 1 and "have not yet been applied:\n20251201000000_fails" in output
    (script / "migration.sql").write_text("CREATE TABLE half (id int);")
    assert "20251201000000_fails" in application.by_cli()
    application.require_up_to_date()


def test_tables_without_history(application):
    """Both refuse, and the baseline that the refusal asks for satisfies both."""
    application.keep(NAMES[:1])
    application.by_module()
    with application.session() as database:
        database.execute("DROP TABLE _prisma_migrations")
    refused = application.cli.run("migrate", "deploy")
    assert refused.returncode == 1 and "P3005" in refused.stdout
    with pytest.raises(UnifiedUserError, match=r"P3005.*'prisma migrate resolve --applied <name>'"):
        application.by_module()
    resolved = application.cli.run("migrate", "resolve", "--applied", NAMES[0])
    assert resolved.returncode == 0, resolved.stdout
    application.restore()
    assert application.by_module() == NAMES[1:]
    application.require_up_to_date()


def test_edited_migration_is_noticed_by_the_module_alone(application):
    application.by_module()
    with open(application.migrations / NAMES[0] / "migration.sql", "a", encoding="utf-8") as script:
        script.write("-- edited\n")
    code, output, ours = application.status()
    assert (code, UP_TO_DATE in output) == (0, True), "should Prisma notice one day, this can be simplified"
    assert ours["edited_migrations"] == [NAMES[0]]
    with pytest.raises(UnifiedUserError, match="was changed after it was applied"):
        application.by_module()


def test_module_waits_for_the_cli(application):
    """The CLI, held up in the middle of its work, keeps the module out; then the module has nothing to do."""
    application.keep(NAMES[:1])
    application.by_module()
    application.restore()
    with application.session() as blocker:
        blocker.execute("BEGIN; LOCK TABLE studio_owners; LOCK TABLE studios")
        process = application.cli.start("migrate", "deploy")
        deadline = time.monotonic() + 30
        waiting = "SELECT count(*) AS sessions FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        while not application.rows(waiting)[0]["sessions"]:
            assert time.monotonic() < deadline, "the CLI never came to the lock"
            time.sleep(0.05)
        with application.session() as database, pytest.raises(UnifiedUserError, match="another deployment holds Prisma's lock"):
            deploy(database, Options(str(application.migrations), advisory_lock_seconds=1), application.connect, check_mode=False)
        blocker.execute("ROLLBACK")
    output, _errors = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert application.by_module() == []
    application.require_up_to_date()


def test_cli_waits_for_the_module(application):
    with application.session() as database:
        database.value("SELECT pg_advisory_lock(%s)", (ADVISORY_LOCK,))
        waited = application.cli.run("migrate", "deploy")
    assert waited.returncode == 1 and "P1002" in waited.stdout and "advisory lock" in waited.stdout
    assert NAMES[-1] in application.by_cli()


def test_both_mark_as_applied_alike(application, cluster, templates, tmp_path):
    """The record that state=resolved writes is the one that `prisma migrate resolve --applied` writes."""
    application.keep(NAMES[:1])
    application.by_module()
    with application.session() as database:
        database.execute("DROP TABLE _prisma_migrations")
        done = resolve(database, Options(str(application.migrations)), NAMES[0], "applied", check_mode=False)
        assert done["does"][0] == "creates table _prisma_migrations" and "without running it" in done["does"][1]
    ours = application.records()
    with application.session() as database:
        database.execute("DROP TABLE _prisma_migrations")
    assert application.cli.run("migrate", "resolve", "--applied", NAMES[0]).returncode == 0
    assert application.records() == ours
    application.restore()
    assert NAMES[-1] in application.by_cli()
