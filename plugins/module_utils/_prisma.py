# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Prisma's migrations without Prisma: reading their directories and their history, and telling what is wrong with either."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Names
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql_script import (
    Statement,
    UnfinishedScript,
    describe_obstacle,
    split_script,
)

HISTORY_TABLE = "_prisma_migrations"
#: Tables of extensions are nobody's migration; Prisma, too, looks at tables alone.
_TABLES = """
SELECT count(*) FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND c.relname <> %s AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_depend AS d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
"""


@dataclass(frozen=True)
class Options:
    """How to apply migrations.

    Attributes:
        path: the directory that holds the migration directories.
        schema: the database schema that they fill and that holds the history.
        lock_timeout: longest wait for a lock in one attempt, in milliseconds.
        lock_retry_seconds: how long to go on attempting, in seconds.
        advisory_lock_seconds: how long to wait for another deploy, in seconds; Prisma's own limit is ten.
        unified_model: what the application calls its tables, when the migrations are those that bring the unified model;
            None to apply without looking at what they do.
    """

    path: str
    schema: str = "public"
    lock_timeout: int = 1500
    lock_retry_seconds: float = 60.0
    advisory_lock_seconds: float = 10.0
    unified_model: Names | None = None

    @property
    def history(self):
        """The qualified identifier of the history table."""
        return sql.Identifier(self.schema, HISTORY_TABLE)


@dataclass(frozen=True)
class Migration:
    """One migration directory.

    Attributes:
        name: the directory's name; migrations apply in the byte order of their names.
        script: the bytes of its migration.sql.
    """

    name: str
    script: bytes

    @property
    def checksum(self) -> str:
        """The SHA-256 of the script in hexadecimal, as Prisma stores it."""
        return hashlib.sha256(self.script).hexdigest()

    def matches(self, checksum: str) -> bool:
        """Whether a stored checksum is this script's.

        As in Prisma, line endings do not count, and checksums of its early versions lack the zeros before single digits.
        """
        unix = self.script.replace(b"\r\n", b"\n")
        digests = [hashlib.sha256(script).digest() for script in (self.script, unix, unix.replace(b"\n", b"\r\n"))]
        return any(checksum in (digest.hex(), "".join(f"{byte:x}" for byte in digest)) for digest in digests)

    def statements(self, transactional: bool = True) -> list[Statement]:
        """Return the statements to run; the script's own BEGIN and COMMIT are left out, as ours hold all of it.

        Args:
            transactional: whether to insist on statements that one transaction can hold.

        Raises:
            UnifiedUserError: the script is no text, has a quote without an end, or a statement that no transaction can hold.
        """
        action = f"read migration {self.name}"
        try:
            # A byte order mark is part of the checksum, but not of the SQL.
            script = self.script.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = self.script.count(b"\n", 0, error.start) + 1
            raise UnifiedUserError(
                action, f"line {line} of its migration.sql is not UTF-8", "Save the file as UTF-8, then run the same command again"
            ) from error
        if "\0" in script:
            raise UnifiedUserError(action, "its migration.sql holds a NUL byte", "Save the file as UTF-8 text, then run the same command again")
        try:
            statements = split_script(script)
        except UnfinishedScript as error:
            raise UnifiedUserError(action, f"in its migration.sql {error}", "Correct it, then run the same command again") from error
        obstacles = [describe_obstacle(statement) for statement in statements if statement.obstacle]
        if obstacles and transactional:
            raise UnifiedUserError(
                f"apply migration {self.name}",
                f"it cannot be applied as a whole or not at all ({'; '.join(obstacles)})",
                "Put such a statement into a migration of its own and apply that with the application's release (prisma migrate deploy),"
                " or use a form that transactions allow; then run the same command again",
            )
        return [statement for statement in statements if not statement.is_transaction_frame]


def read_migrations(path: str) -> list[Migration]:
    """Read the migration directories of a release, in the order in which they apply.

    Args:
        path: the directory, as a rule ``prisma/migrations``.

    Raises:
        UnifiedUserError: it is not there, holds no migration, or one of them lacks its migration.sql.
    """
    action = f"read the migrations in {path}"
    try:
        with os.scandir(path) as entries:
            names = sorted((entry.name for entry in entries if entry.is_dir()), key=os.fsencode)
        if not names:
            raise UnifiedUserError(action, "it holds no migration directory", "Set path to the prisma/migrations directory of a release")
        _require_postgresql(action, os.path.join(path, "migration_lock.toml"))
        return [Migration(name, _read_script(action, os.path.join(path, name, "migration.sql"))) for name in names]
    except FileNotFoundError as error:
        raise UnifiedUserError(action, "there is no such directory on this host", "Set path to the prisma/migrations directory of a release") from error
    except OSError as error:
        raise UnifiedUserError(action, f"{error.strerror} ({error.filename})", "Let the user that runs this module read it") from error


def _read_script(action: str, path: str) -> bytes:
    try:
        with open(path, "rb") as script:
            return script.read()
    except FileNotFoundError as error:
        directory = os.path.basename(os.path.dirname(path))
        raise UnifiedUserError(action, f"{directory} has no migration.sql", "Restore the file from version control, or remove the empty directory") from error


def _require_postgresql(action: str, lock_file: str) -> None:
    try:
        with open(lock_file, encoding="utf-8", errors="replace") as content:
            provider = re.search(r'^\s*provider\s*=\s*"([^"]*)"', content.read(), re.MULTILINE)
    except FileNotFoundError:
        return
    if provider and provider.group(1) not in ("postgresql", "postgres"):
        raise UnifiedUserError(action, f"they were written for {provider.group(1)}", "Set path to the migrations of the application that uses this database")


@dataclass(frozen=True)
class Diagnosis:
    """How a database stands to a set of migrations.

    Attributes:
        applied: names of the migrations that the database has, in the order of their names.
        pending: migrations to apply, in order.
        failed: names of migrations that began, did not finish, and were not resolved.
        edited: names of applied migrations whose migration.sql is another one now.
        missing: names of applied migrations that have no directory.
        tables: number of tables in a schema that has no history, or an empty one; else 0.
        has_history: whether the history table exists.
        remains: failed migration -> how much of it is in the database, in words.
    """

    applied: list[str]
    pending: list[Migration]
    failed: list[str]
    edited: list[str]
    missing: list[str]
    tables: int
    has_history: bool
    remains: dict[str, str] = field(default_factory=dict)

    @property
    def up_to_date(self) -> bool:
        """Whether there is nothing to apply and nothing wrong."""
        return not (self.pending or self.failed or self.edited or self.missing)

    def refuse(self, options: Options) -> None:
        """Raise for the first thing that stands in the way of applying.

        Raises:
            UnifiedUserError: says what it is, with Prisma's code where it has one, and the way out.
        """
        action = f"deploy migrations into schema {options.schema}"
        if self.failed:
            name = self.failed[0]
            found = f" ({self.remains[name]})" if name in self.remains else ""
            raise UnifiedUserError(
                action,
                f"migration {name} began earlier and did not finish (Prisma's P3009)",
                f"Take back or complete by hand what is there of it{found}, then mark it with prisma_migration state=resolved migration={name}"
                " resolution=rolled_back (to have it applied again) or resolution=applied, or with"
                f" 'prisma migrate resolve --rolled-back {name}' or '--applied {name}', and run the same command again",
                failed_migrations=self.failed,
            )
        if self.missing:
            raise UnifiedUserError(
                action,
                f"the database has migration {self.missing[0]}{and_more(self.missing)}, which is not in {options.path}",
                "Set path to the release that the database belongs to, or restore the directory from version control",
                missing_migrations=self.missing,
            )
        if self.edited:
            raise UnifiedUserError(
                action,
                f"migration.sql of {self.edited[0]}{and_more(self.edited)} was changed after it was applied (its checksum differs)",
                "Restore the file as it was applied from version control, and put the change into a new migration",
                edited_migrations=self.edited,
            )
        if self.tables:
            raise UnifiedUserError(
                action,
                f"it holds {self.tables} tables but no record of any migration (Prisma's P3005)",
                "If the tables were made by these migrations or are equal to what they make, record that (baseline it): run"
                " 'prisma migrate resolve --applied <name>', or prisma_migration state=resolved resolution=applied, for each of them,"
                " then the same command again. Otherwise set login_db or schema",
            )


def and_more(names: list[str]) -> str:
    """Return what follows the first name of a list in a sentence."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def diagnose(database: Database, options: Options, migrations: list[Migration]) -> Diagnosis:
    """Compare a database with a set of migrations. Reads only.

    Args:
        database: an open session.
        options: which schema.
        migrations: as ``read_migrations`` returns them.
    """
    has_history = database.value("SELECT to_regclass(%s) IS NOT NULL", (options.history.as_string(database.connection),))
    rows = (
        database.rows(
            sql.SQL(
                "SELECT migration_name, checksum, CASE WHEN rolled_back_at IS NOT NULL THEN 'rolled back'"
                " WHEN finished_at IS NULL THEN 'failed' ELSE 'finished' END AS state FROM {}"
            ).format(options.history)
        )
        if has_history
        else []
    )
    finished = {row["migration_name"]: row["checksum"] for row in rows if row["state"] == "finished"}
    by_name = {migration.name: migration for migration in migrations}
    return Diagnosis(
        applied=sorted(finished, key=os.fsencode),
        pending=[migration for migration in migrations if migration.name not in finished],
        failed=sorted(row["migration_name"] for row in rows if row["state"] == "failed"),
        edited=[name for name in sorted(finished) if name in by_name and not by_name[name].matches(finished[name])],
        missing=[name for name in sorted(finished) if name not in by_name],
        tables=0 if rows else database.value(_TABLES, (options.schema, HISTORY_TABLE)),
        has_history=has_history,
    )


#: All that makes up the tables of a schema apart from some, a line for each part.
_PARTS = """
WITH t AS (
    SELECT c.* FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p') AND CASE WHEN %(chosen)s THEN c.relname = ANY (%(tables)s)
                                                                      ELSE NOT c.relname = ANY (%(tables)s) END
)
SELECT t.relname AS "table", 'table' AS part,
       concat_ws(' ', t.relpersistence, t.relowner::regrole, t.relacl::text, t.reloptions::text, t.relrowsecurity, t.relreplident) AS definition
FROM t
UNION ALL
SELECT t.relname, format('column %%I', a.attname),
       concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attcollation::regcollation, a.attnotnull, a.attidentity, a.attgenerated,
                 pg_get_expr(d.adbin, d.adrelid), a.attacl::text)
FROM t JOIN pg_catalog.pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_attrdef AS d ON d.adrelid = t.oid AND d.adnum = a.attnum
UNION ALL
SELECT t.relname, format('constraint %%I', k.conname), concat_ws(' ', pg_get_constraintdef(k.oid), k.convalidated)
FROM t JOIN pg_catalog.pg_constraint AS k ON k.conrelid = t.oid
UNION ALL
SELECT t.relname, format('index %%s', i.indexrelid::regclass), concat_ws(' ', pg_get_indexdef(i.indexrelid), i.indisvalid)
FROM t JOIN pg_catalog.pg_index AS i ON i.indrelid = t.oid
UNION ALL
SELECT t.relname, format('trigger %%I', g.tgname), concat_ws(' ', pg_get_triggerdef(g.oid), g.tgenabled)
FROM t JOIN pg_catalog.pg_trigger AS g ON g.tgrelid = t.oid AND NOT g.tgisinternal
UNION ALL
SELECT t.relname, format('rule %%I', r.rulename), pg_get_ruledef(r.oid)
FROM t JOIN pg_catalog.pg_rewrite AS r ON r.ev_class = t.oid
UNION ALL
SELECT t.relname, format('policy %%I', p.polname),
       concat_ws(' ', p.polcmd, p.polroles::text, pg_get_expr(p.polqual, t.oid), pg_get_expr(p.polwithcheck, t.oid))
FROM t JOIN pg_catalog.pg_policy AS p ON p.polrelid = t.oid
"""


def read_definitions(database: Database, schema: str, tables: list[str], chosen: bool) -> dict[tuple[str, str], str]:
    """Return what tables are made of: table and part -> definition. To be called in a transaction, whose search path it sets.

    Args:
        database: an open session.
        schema: the tables' schema.
        tables: names of tables.
        chosen: whether to read these, or all others.
    """
    # A script may have changed the path, and names are spelled by it.
    database.execute("SET LOCAL search_path = pg_catalog")
    rows = database.rows(_PARTS, {"schema": schema, "tables": tables, "chosen": chosen})
    return {(row["table"], row["part"]): row["definition"] for row in rows}
