# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The indexes that the sync looks rows up by, and that Prisma does not make."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import compose, identity_key

#: What every index of ours is called, and then some.
PREFIX = "unified_user_sync_"

#: Columns that rows are looked up by: logical table -> columns.
_COLUMNS = {
    "bookings": ("customerId",),
    "accounts": ("userId",),
    "sessions": ("userId",),
    "studios": ("ownerId",),
    "new_accounts": ("userId",),
    "new_sessions": ("userId",),
    "new_bookings": ("customerId",),
    "studio_ownership": ("studioId",),
    "_UserFavorites": ("B",),
    "audit_logs": ("userId",),
}

#: Further ones, once the unified side is written: only there a role is given for one studio.
_COLUMNS_OF_REVERSE = {"user_role_assignments": ("studioId",)}

_JOURNAL = (("identity_map", "identity_key"), ("identity_map", "user_id"), ("quarantine", "identity_key"), ("pinned_booking", "user_id"))

# Whether some valid index of the whole table begins with the column.
_COVERED = """
SELECT EXISTS (SELECT FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
WHERE i.indrelid = %s::regclass AND a.attname = %s AND i.indisvalid AND i.indpred IS NULL)
"""

_OURS = """
SELECT n.nspname AS "schema", c.relname AS name, i.indisvalid AS valid FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN (%s, 'unified_user_journal') AND starts_with(c.relname, 'unified_user_sync_')
"""


@dataclass(frozen=True)
class Index:
    """An index to make.

    Attributes:
        name: of the index, in the table's schema.
        table: composed name of the table.
        definition: composed text after the table's name.
    """

    name: str
    table: object
    definition: object


def lookups(direction: str) -> list[tuple[str, str]]:
    """Return the columns that rows are looked up by, as (logical table, column).

    Args:
        direction: ``forward`` needs fewer than ``reverse`` and ``both``.
    """
    keys = [("customers", "email"), ("studio_owners", "email"), ("bookings", "customerEmail")]
    plain = dict(_COLUMNS)
    if direction != "forward":
        keys.append(("users", "email"))
        plain.update(_COLUMNS_OF_REVERSE)
    return keys + [(table, column) for table, columns in plain.items() for column in columns]


def missing(database: Database, schema: Schema, policies: Policies, direction: str) -> list[Index]:
    """Return the indexes that are not there, or not valid.

    Args:
        database: an open session.
        schema: the resolved tables.
        policies: the operator's decisions; they say what a key is.
        direction: what the sync does.
    """
    there = {row["name"] for row in database.rows(_OURS, (schema.name,)) if row["valid"]}
    wanted = []
    for table, column in lookups(direction):
        if column in (*_COLUMNS.get(table, ()), *_COLUMNS_OF_REVERSE.get(table, ())):
            name = schema[table].names.get(column)
            if name and not _covered(database, schema.table(table), name):
                wanted.append(Index(f"{PREFIX}{table}_{column}", schema.table(table), compose("({c})", {"c": schema.column(table, column)})))
            continue
        key = identity_key(schema.column(table, column), policies.email_match)
        # Bookings that name a customer are found by him.
        where = schema.compose(" WHERE {bookings.customerId} IS NULL") if table == "bookings" else sql.SQL("")
        wanted.append(Index(f"{PREFIX}{table}_key", schema.table(table), compose("(({key})){where}", {"key": key, "where": where})))
    for table, column in _JOURNAL:
        wanted.append(Index(f"{PREFIX}{table}_{column}", sql.Identifier(_journal.SCHEMA, table), compose("({c})", {"c": sql.Identifier(column)})))
    return [index for index in wanted if index.name not in there]


def _covered(database: Database, table, column: str) -> bool:
    return database.value(_COVERED, (table.as_string(database.connection), column))


def make(database: Database, schema: Schema, policies: Policies, direction: str) -> int:
    """Make the missing indexes, and return how many.

    Outside a transaction that is done beside a running application, which does not wait for it; inside one the caller holds
    locks against writers already. An interrupted one's remains are dropped first.
    """
    how = sql.SQL("" if database.in_transaction else "CONCURRENTLY ")
    drop(database, schema.name, invalid_only=True)
    indexes = missing(database, schema, policies, direction)
    for index in indexes:
        parts = {"how": how, "name": sql.Identifier(index.name), "table": index.table, "definition": index.definition}
        database.execute(compose("CREATE INDEX {how}{name} ON {table} {definition}", parts))
    return len(indexes)


def drop(database: Database, schema: str, invalid_only: bool = False) -> None:
    """Drop our indexes.

    Args:
        database: an open session.
        schema: the database schema of the application's tables.
        invalid_only: leave those that are whole.
    """
    for row in database.rows(_OURS, (schema,)):
        if not (invalid_only and row["valid"]):
            database.execute(compose("DROP INDEX {name}", {"name": sql.Identifier(row["schema"], row["name"])}))
