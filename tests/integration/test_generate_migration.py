# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The playbook generate_migration: a migration from schema.prisma, made by the real CLI in a database of its own, proven and reviewed."""

from __future__ import annotations

import contextlib
import json
import re
import shutil

import pytest

from tests.app.migration_history import unified_migration
from tests.app.prisma_cli import make_release, offline_environment
from tests.module_process import ROOT
from tests.playbook_process import run_playbook

pytestmark = pytest.mark.one_major
UNIFIED = unified_migration()


@pytest.fixture
def release(tmp_path):
    """A working copy whose schema has the unified model and whose migrations do not."""
    release = make_release(tmp_path / "release")
    shutil.rmtree(release / "prisma" / "migrations" / UNIFIED.name)
    return release


@pytest.fixture
def generate(cluster, tmp_path, release):
    """Runs the playbook; returns the process and its words."""
    variables = {
        "unified_user_login_unix_socket": str(cluster.host), "unified_user_login_port": cluster.port, "unified_user_login_user": cluster.user,
        "schema_deploy_release_directory": str(release), "schema_deploy_environment": offline_environment(),
        "schema_deploy_new_migration": "add_unified_user_model",
    }
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps({"all": {"hosts": {"localhost": {"ansible_connection": "local"}}}}))

    def run(*arguments, **more):
        done = run_playbook(ROOT / "playbooks" / "generate_migration.yml", hosts, "-e", json.dumps({**variables, **more}), *arguments)
        return done, " ".join(done.stdout.split())

    return run


def databases(cluster):
    with contextlib.closing(cluster.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database ORDER BY 1")
        return [row[0] for row in cursor.fetchall()]


def made(release):
    return sorted(path.name for path in (release / "prisma" / "migrations").glob("*_add_unified_user_model"))


def statements(text):
    """The statements of a script, in any order and without comments and layout."""
    plain = re.sub(r"--[^\n]*", "", text)
    return sorted(" ".join(statement.split()) for statement in plain.split(";") if statement.strip())


def test_made_proven_and_reviewed(cluster, generate, release):
    before = databases(cluster)
    planned, words = generate("--check")
    assert planned.returncode == 0 and 'CREATE TABLE "users"' in words, planned.stdout
    assert made(release) == []

    done, words = generate()
    assert done.returncode == 0, done.stdout
    (name,) = made(release)
    assert re.fullmatch(r"\d{14}_add_unified_user_model", name)
    script = (release / "prisma" / "migrations" / name / "migration.sql").read_text()
    assert statements(script) == statements((UNIFIED / "migration.sql").read_text())
    assert f"Reviewed: {name}. Errors: 0" in words and "set_null_on_not_null" in words
    assert "migration.sql leads to the schema" in words

    again, words = generate()
    assert again.returncode == 0 and "The migrations lead to the schema already: there is nothing to make." in words
    assert made(release) == [name] and databases(cluster) == before


def test_a_schema_that_is_not_valid_leaves_nothing(cluster, generate, release):
    before = databases(cluster)
    schema = release / "prisma" / "schema.prisma"
    schema.write_text(schema.read_text() + "\nmodel Broken {\n")
    done, words = generate()
    assert done.returncode != 0 and "the release's schema.prisma is not valid (Prisma's P1012)" in words
    assert made(release) == [] and databases(cluster) == before


def test_a_name_is_asked_for(generate):
    done, words = generate(schema_deploy_new_migration="Not a name")
    assert done.returncode != 0 and "schema_deploy_new_migration to a name of small letters, digits and underscores" in words
