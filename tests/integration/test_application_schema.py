"""The reference application's migrations, its schema.prisma and the variants of its schema, judged by the real Prisma CLI."""

from __future__ import annotations

import contextlib
import subprocess

import pytest

from tests.app import schema_variants
from tests.app.prisma_cli import PRISMA_DIRECTORY, PrismaCli

# What is tested here does not depend on the server's version; what does is tested on every one elsewhere.
pytestmark = pytest.mark.one_major

SCHEMA = str(PRISMA_DIRECTORY / "schema.prisma")


def dump_of_schema(cluster, dbname):
    """Everything pg_dump knows about a database's objects, apart from the key it makes up for each dump."""
    command = [str(cluster.bin("pg_dump")), "--schema-only", "--dbname", cluster.dsn(dbname)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line for line in output.splitlines() if "restrict " not in line]


def test_schema_file_is_valid(cluster, database):
    result = PrismaCli(cluster, database).run("validate")
    assert result.returncode == 0, result.stdout
    # The contradiction that the contract asks for, and nothing else, is what Prisma warns about.
    assert result.stdout.count("\n- The `onDelete` referential action") == 1


def test_migrations_lead_to_the_schema_file(cluster, database):
    result = PrismaCli(cluster, database).run(
        "migrate", "diff", "--from-migrations", str(PRISMA_DIRECTORY / "migrations"), "--to-schema-datamodel", SCHEMA, "--exit-code"
    )
    assert (result.returncode, "No difference detected" in result.stdout) == (0, True), result.stdout
    with contextlib.closing(cluster.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_database WHERE datname LIKE 'prisma\\_migrate\\_shadow%'")
        assert cursor.fetchone()[0] == 0


def test_migrated_database_agrees_with_the_schema_file(cluster, unified_database, tmp_path):
    cli = PrismaCli(cluster, unified_database)
    pulled = cli.run("db", "pull", "--print")
    assert pulled.returncode == 0, pulled.stdout
    models = tmp_path / "pulled.prisma"
    models.write_text(pulled.stdout[pulled.stdout.index("generator client") :].split("// *** WARNING")[0])
    result = cli.run("migrate", "diff", "--from-schema-datamodel", str(models), "--to-schema-datamodel", SCHEMA, "--exit-code")
    assert (result.returncode, "No difference detected" in result.stdout) == (0, True), result.stdout


def test_diff_notices_a_changed_column(cluster, unified_database, tmp_path):
    with contextlib.closing(cluster.connect(unified_database)) as connection, connection.cursor() as cursor:
        cursor.execute('ALTER TABLE users ALTER COLUMN "isActive" DROP DEFAULT')
    cli = PrismaCli(cluster, unified_database)
    pulled = cli.run("db", "pull", "--print").stdout
    models = tmp_path / "pulled.prisma"
    models.write_text(pulled[pulled.index("generator client") :].split("// *** WARNING")[0])
    result = cli.run("migrate", "diff", "--from-schema-datamodel", str(models), "--to-schema-datamodel", SCHEMA, "--exit-code")
    assert result.returncode == 2, result.stdout
    assert "isActive" in result.stdout


def test_real_deploy_equals_migrations_run_as_scripts(cluster, database, unified_database):
    cli = PrismaCli(cluster, database)
    deployed = cli.run("migrate", "deploy")
    assert deployed.returncode == 0, deployed.stdout
    assert dump_of_schema(cluster, database) == dump_of_schema(cluster, unified_database)
    assert PrismaCli(cluster, unified_database).run("migrate", "status").returncode == 0


def columns(cluster, dbname):
    with contextlib.closing(cluster.connect(dbname)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE table_schema = 'public' AND table_name <> '_prisma_migrations' ORDER BY table_name, ordinal_position"
        )
        return cursor.fetchall()


@pytest.mark.parametrize("variant", schema_variants.VARIANTS)
def test_variant_renames_columns(cluster, unified_database, variant):
    before = columns(cluster, unified_database)
    with contextlib.closing(cluster.connect(unified_database)) as connection:
        renamed = schema_variants.apply_variant(connection, variant)
    after = columns(cluster, unified_database)
    assert sum(old != new for old, new in zip(before, after, strict=True)) == renamed
    camel_case = [name for _table, name in after if any(letter.isupper() for letter in name) and name not in ("A", "B")]
    names = {table: [name for owner, name in after if owner == table] for table, _name in after}
    assert names["_UserFavorites"] == names["_CustomerFavorites"] == ["A", "B"]
    if variant == "camelCase":
        assert renamed == 0 and "healthConsentGivenAt" in names["bookings"]
    elif variant == "snake_case":
        assert camel_case == [] and {"customer_id", "health_consent_given_at", "provider_account_id"} <= {name for _table, name in after}
    else:
        assert 20 < renamed < 60 and len(camel_case) > 20


def test_unknown_variant_is_refused(cluster, unified_database):
    match = "choose one of camelCase, snake_case, mixed"
    with contextlib.closing(cluster.connect(unified_database)) as connection, pytest.raises(ValueError, match=match):
        schema_variants.apply_variant(connection, "kebab-case")
