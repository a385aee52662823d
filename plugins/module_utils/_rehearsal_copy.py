# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The copy that a rehearsal works on: telling it from the real database, measuring it, and dropping it."""

from __future__ import annotations

from typing import Any, Callable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal, _mapping, _scratch
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, connect
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._contents import (
    compare_catalogues,
    fix_text_form,
    list_tables,
    measure_rows,
    read_catalogue,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma import HISTORY_TABLE

#: What the mark of such a copy says that it is for.
PURPOSE = "rehearsal"

_WHERE_AM_I = """
SELECT d.datname AS name, pg_catalog.shobj_description(d.oid, 'pg_database') AS comment
FROM pg_catalog.pg_database AS d WHERE d.datname = pg_catalog.current_database()
"""

#: Everything that belongs to some tables, spelt as the catalogue spells it. A type belongs to them when no other table uses it.
_BELONGINGS = """
WITH t AS (
    SELECT c.oid, c.relname, n.nspname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND (n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
          OR format('%%I.%%I', n.nspname, c.relname) = %(table)s)
)
SELECT 'table' AS kind, format('%%I.%%I', t.nspname, t.relname) AS name FROM t
UNION ALL
SELECT 'column', format('%%I.%%I.%%I', t.nspname, t.relname, a.attname)
FROM t JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT 'index', format('%%I.%%I', n.nspname, c.relname)
FROM t JOIN pg_index AS i ON i.indrelid = t.oid JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
UNION ALL
SELECT 'constraint', format('%%s.%%I', t.oid::regclass, k.conname) FROM t JOIN pg_constraint AS k ON k.conrelid = t.oid
UNION ALL
SELECT 'trigger', format('%%s.%%I', t.oid::regclass, g.tgname) FROM t JOIN pg_trigger AS g ON g.tgrelid = t.oid
UNION ALL
SELECT 'policy', format('%%s.%%I', t.oid::regclass, p.polname) FROM t JOIN pg_policy AS p ON p.polrelid = t.oid
UNION ALL
SELECT 'rule', format('%%s.%%I', t.oid::regclass, r.rulename) FROM t JOIN pg_rewrite AS r ON r.ev_class = t.oid
UNION ALL
SELECT 'sequence', format('%%I.%%I', n.nspname, s.relname)
FROM t JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.refobjid = t.oid AND d.deptype IN ('a', 'i')
JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S' JOIN pg_namespace AS n ON n.oid = s.relnamespace
UNION ALL
SELECT 'type', format('%%I.%%I', n.nspname, y.typname)
FROM pg_type AS y JOIN pg_namespace AS n ON n.oid = y.typnamespace
WHERE EXISTS (SELECT FROM t JOIN pg_attribute AS a ON a.attrelid = t.oid WHERE a.atttypid IN (y.oid, y.typarray))
      AND NOT EXISTS (SELECT FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
                      WHERE a.atttypid IN (y.oid, y.typarray) AND NOT EXISTS (SELECT FROM t WHERE t.oid = c.oid))
"""


def require_copy(database: Database, original: str) -> None:
    """Raise unless a session is on a complete copy that a rehearsal of this database made.

    The server is asked where the session really is: ``connect_params`` may name a database of their own.

    Args:
        database: an open session.
        original: the real database's name.

    Raises:
        UnifiedUserError: it is any other database; nothing was written.
    """
    found = database.row(_WHERE_AM_I)
    mark = _scratch.parse_mark(found["comment"])
    wanted = {"purpose": PURPOSE, "progress": "complete", "database": original}
    if found["name"] == original or any(mark.get(name) != value for name, value in wanted.items()):
        raise UnifiedUserError(
            f"rehearse in database {found['name']}",
            f"it is not a copy of {original} that a rehearsal restored, so nothing was written",
            "Take dbname out of unified_user_connect_params and set rehearsal_database to the name of a database that does not exist",
        )


def open_copy(parameters: dict[str, Any], name: str) -> Database:
    """Open a session on the copy, and refuse whatever is not one.

    Args:
        parameters: module parameters; ``login_db`` is the real database.
        name: the copy's name.

    Raises:
        UnifiedUserError: as `require_copy`, or no session is to be had.
    """
    database = connect(parameters, name)
    try:
        require_copy(database, parameters["login_db"])
        database.execute("SET TIME ZONE 'UTC'")
    except BaseException:
        database.close()
        raise
    return database


def drop_copy(parameters: dict[str, Any], name: str) -> bool:
    """Drop the copy, whatever a run has left of it; return whether there was one.

    Raises:
        UnifiedUserError: no session is to be had, or the server refuses to drop it.
    """
    admin = connect(parameters, parameters["maintenance_db"])
    try:
        found = _scratch.look_up(admin, name)
        # Unborn is what a signal left between its creation and its mark, as empty as template0.
        ours = found.unborn or (found.mark.get("purpose") == PURPOSE and found.mark.get("database") == parameters["login_db"])
        if ours:
            _scratch.drop(admin, name)
        return ours
    finally:
        admin.close()


def measure_others(
    database: Database, schema: Schema, left_out_column: Callable[[str, str], bool] = lambda table, column: False
) -> tuple[list[dict[str, Any]], list[str]]:
    """Count and sum the rows of every table but the unified ones, the journal's and Prisma's history.

    Args:
        database: an open session without a transaction.
        schema: the application's tables.
        left_out_column: given a table's qualified name and a column, whether the sum goes without it.

    Returns:
        What `measure_rows` gives, and the names of the tables left out.
    """
    apart = {schema[name].name for name in _mapping.UNIFIED_TABLES} | {HISTORY_TABLE}
    with database.transaction("ISOLATION LEVEL REPEATABLE READ, READ ONLY"):
        fix_text_form(database)
        tables = list_tables(database)
        kept = [
            table for table in tables
            if table["schema"] != _journal.SCHEMA and not (table["schema"] == schema.name and table["table"] in apart)
        ]
        left_out = [table["name"] for table in tables if table not in kept]
        for table in kept:
            table["columns"] = [column for column in table["columns"] if not left_out_column(table["name"], column[0])]
        return measure_rows(database, kept), left_out


def belongings_of(database: Database, tables: list[str]) -> dict[tuple[str, str], str]:
    """Return kind and name of everything that belongs to tables, and which table that is.

    Args:
        database: an open session without a transaction.
        tables: qualified names, as the catalogue spells them; they need not exist.
    """
    found: dict[tuple[str, str], str] = {}
    with database.transaction("ISOLATION LEVEL REPEATABLE READ, READ ONLY"):
        fix_text_form(database)
        for table in tables:
            for row in database.rows(_BELONGINGS, {"schema": None, "tables": [], "table": table}):
                found[row["kind"], row["name"]] = table
    return found


class Catalogue:
    """The catalogue of a copy at one moment, and what of it belongs to the unified tables or to the journal.

    Args:
        objects: as `read_catalogue` returns them.
        belongings: kind and name of what belongs to the unified tables.
    """

    def __init__(self, objects: dict[str, dict[str, str]], belongings: set[tuple[str, str]]) -> None:
        self.objects = objects
        self.belongings = belongings

    @classmethod
    def read(cls, database: Database, schema: str, tables: list[str]) -> Catalogue:
        """Read it.

        Args:
            database: an open session without a transaction.
            schema: the database schema of the application's tables.
            tables: actual names of the unified tables; they need not exist.
        """
        with database.transaction("ISOLATION LEVEL REPEATABLE READ, READ ONLY"):
            fix_text_form(database)
            objects = read_catalogue(database)
            rows = database.rows(_BELONGINGS, {"schema": schema, "tables": tables, "table": None})
        return cls(objects, {(row["kind"], row["name"]) for row in rows})

    @classmethod
    def from_dict(cls, kept: dict[str, Any]) -> Catalogue:
        """Return what `as_dict` gave."""
        return cls(kept["objects"], set(map(tuple, kept["belongings"])))

    @property
    def size(self) -> int:
        """How many objects there are."""
        return sum(len(names) for names in self.objects.values())

    def as_dict(self) -> dict[str, Any]:
        """Return it in a form that JSON holds."""
        return {"objects": self.objects, "belongings": sorted(self.belongings)}

    def changes(self, later: Catalogue) -> list[dict[str, str]]:
        """List what is another one later, was added or is gone, outside the unified tables and the journal.

        Returns:
            Dicts of kind, name, problem (``added``, ``gone`` or ``altered``).
        """
        words = {"unexpected": "added", "missing": "gone", "different": "altered"}
        belongings = self.belongings | later.belongings
        return [
            {**entry, "problem": words[entry["problem"]]}
            for entry in compare_catalogues(self.objects, later.objects)
            if (entry["kind"], entry["name"]) not in belongings and entry["name"].split(".")[0] != _journal.SCHEMA
        ]
