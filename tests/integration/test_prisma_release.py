# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module prisma_cli with the real CLI of a release, on every server: deploying, comparing, scripting, failing."""

from __future__ import annotations

import contextlib

import pytest

from tests.app.migration_history import migration_directories
from tests.app.prisma_cli import make_release, offline_environment
from tests.module_process import connection_options, run_module

# What is tested here does not depend on the server's version; what does is tested on every one elsewhere.
pytestmark = pytest.mark.one_major

NAMES = [directory.name for directory in migration_directories()]


@pytest.fixture
def release(tmp_path):
    return make_release(tmp_path / "release")


@pytest.fixture
def cli(cluster, release):
    """Runs the module: cli(dbname, command, option=value)."""

    def run(dbname, command, **options):
        common = {"release_directory": str(release), "environment": offline_environment(), "command": command}
        return run_module("prisma_cli", {**connection_options(cluster, dbname), **common, **options})

    return run


def execute(cluster, dbname, statement):
    with contextlib.closing(cluster.connect(dbname)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)


def test_deploy_and_compare(cluster, database, cli):
    planned = cli(database, "deploy", _ansible_check_mode=True)
    assert (planned["changed"], planned["version"]) == (False, "6.19.3")
    done = cli(database, "deploy")
    assert (done["changed"], done["applied"]) == (True, NAMES)
    again = cli(database, "deploy")
    assert (again["changed"], again["applied"]) == (False, [])
    compared = cli(database, "compare")
    assert (compared["changed"], compared["equal"], compared["differences"]) == (False, True, [])
    assert cli(database, "script")["script"] == ""
    execute(cluster, database, 'CREATE INDEX unified_user_sync_bookings_customerid ON bookings ("customerId"); DROP INDEX "audit_logs_resource_resourceId_idx"')
    compared = cli(database, "compare")
    assert compared["equal"] is False and compared["left_alone"] == ["unified_user_sync_bookings_customerid"]
    (difference,) = compared["differences"]
    assert difference.startswith('CREATE INDEX "audit_logs_resource_resourceId_idx"')
    assert cli(database, "script")["script"].count("CREATE INDEX") == 1


def test_whose_session_role_owns_what_is_made(cluster, database, cli):
    execute(cluster, database, "DROP ROLE IF EXISTS prisma_owner")
    execute(cluster, database, "CREATE ROLE prisma_owner")
    try:
        execute(cluster, database, "GRANT CREATE ON SCHEMA public TO prisma_owner")
        cli(database, "deploy", session_role="prisma_owner")
        with contextlib.closing(cluster.connect(database)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'")
            assert cursor.fetchall() == [("prisma_owner",)]
    finally:
        execute(cluster, database, "DROP OWNED BY prisma_owner CASCADE; DROP ROLE prisma_owner")


def test_wrong_password_and_wrong_port_are_told_without_it(cluster, database, cli, secret):
    password = secret("wrong")
    for options in ({"login_host": cluster.tcp_host, "login_unix_socket": ""}, {"login_host": "127.0.0.1", "login_unix_socket": "", "login_port": 1}):
        result = cli(database, "deploy", login_password=password, **options)
        assert result["failed"] and result["msg"].startswith("Failed to deploy the migrations with Prisma: "), result
        assert password not in str(result)


def test_a_release_that_is_not_there_or_has_no_schema(database, cli, release):
    assert "there is no such directory on this host" in cli(database, "version", release_directory=str(release / "nowhere"))["msg"]
    (release / "prisma" / "schema.prisma").unlink()
    assert "it has no prisma/schema.prisma. Set schema_deploy_schema_path" in cli(database, "version")["msg"]


def test_engine_that_cannot_read_postgresql_18_is_explained(cluster, unified_database, cli, release):
    """The tests' configuration works around it; a release's own does not."""
    if cluster.major < 18:
        pytest.skip("NOT NULL constraints are rows of the catalogue from PostgreSQL 18 on")
    config = release / "prisma.config.ts"
    config.write_text(config.read_text().replace("('p', 'u', 'f', 'n')", "('p', 'u', 'f')"))
    refused = cli(unified_database, "compare")
    assert "ended with a panic. Engines of driver adapters do so on PostgreSQL 18" in refused["msg"], "should Prisma mend it, say so in the README"
    assert cli(unified_database, "deploy")["applied"] == [], "deploying is not affected"


def test_without_a_cli_of_its_own_none_is_fetched(database, cli, release):
    (release / "node_modules").unlink()
    assert "the release has no Prisma CLI of its own" in cli(database, "version")["msg"]


def test_a_workspace_s_cli_is_found_further_up(database, cli, release):
    (release / "node_modules").rename(release.parent / "node_modules")
    assert cli(database, "deploy")["applied"] == NAMES
