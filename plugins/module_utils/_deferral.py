# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Taking down the indexes and foreign keys of the still empty unified tables, and putting the very same ones back.

Filling a table without them and building them afterwards takes less than half the time. What was taken down is in the
journal before it is gone, so a killed run's successor, or an abort, finds all that is to be put back.
"""

from __future__ import annotations

import json
from typing import Callable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

# Everything about constraints, indexes and NOT NULL that taking down and putting back could change. The sync's own indexes
# come and go by themselves.
_FINGERPRINT = """
SELECT coalesce(jsonb_agg(line ORDER BY line::text), '[]') FROM (
    SELECT jsonb_build_array('constraint', c.relname, n.conname, n.contype, pg_get_constraintdef(n.oid), n.convalidated,
               n.coninhcount, n.conislocal, obj_description(n.oid, 'pg_constraint')) AS line
    FROM pg_constraint AS n JOIN pg_class AS c ON c.oid = n.conrelid
    WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s) AND c.relname = ANY (%(tables)s)
    UNION ALL
    SELECT jsonb_build_array('index', c.relname, x.relname, pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisclustered,
               i.indisreplident, x.reltablespace, x.reloptions, obj_description(x.oid, 'pg_class'))
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid JOIN pg_class AS x ON x.oid = i.indexrelid
    WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s) AND c.relname = ANY (%(tables)s)
      AND NOT starts_with(x.relname, 'unified_user_sync_')
    UNION ALL
    SELECT jsonb_build_array('column', c.relname, a.attname, a.attnotnull)
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
    WHERE a.attnum > 0 AND NOT a.attisdropped
      AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s) AND c.relname = ANY (%(tables)s)
) AS lines
"""

# Only what a definition reproduces in full is taken down: no comment, tablespace, storage option, clustering or replica
# identity of its own, nothing inherited, and no key that a foreign key from outside the unified tables leans on.
_REPRODUCIBLE = """
SELECT c.relname AS table_name, n.conname AS name, 'constraint' AS kind, pg_get_constraintdef(n.oid) AS definition,
       CASE n.contype WHEN 'f' THEN 0 ELSE 1 END AS stage
FROM pg_constraint AS n
JOIN pg_class AS c ON c.oid = n.conrelid AND c.relkind = 'r'
LEFT JOIN pg_class AS x ON x.oid = n.conindid AND n.contype IN ('p', 'u')
LEFT JOIN pg_index AS i ON i.indexrelid = x.oid
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s) AND n.coninhcount = 0 AND n.conparentid = 0
  AND obj_description(n.oid, 'pg_constraint') IS NULL
  AND CASE n.contype
      WHEN 'f' THEN c.relname = ANY (%(tables)s)
      WHEN 'p' THEN c.relname = ANY (%(filled)s)
      WHEN 'u' THEN c.relname = ANY (%(filled)s)
      ELSE false END
  AND (x.oid IS NULL OR (x.reltablespace = 0 AND x.reloptions IS NULL AND NOT i.indisclustered AND NOT i.indisreplident
       AND i.indisvalid AND obj_description(x.oid, 'pg_class') IS NULL
       AND NOT EXISTS (SELECT FROM pg_constraint AS f JOIN pg_class AS o ON o.oid = f.conrelid
                       WHERE f.contype = 'f' AND f.conindid = n.conindid
                         AND NOT (o.relnamespace = c.relnamespace AND o.relname = ANY (%(tables)s)))))
UNION ALL
SELECT c.relname, x.relname, 'index', pg_get_indexdef(i.indexrelid), 2
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indrelid AND c.relkind = 'r'
JOIN pg_class AS x ON x.oid = i.indexrelid
WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s) AND c.relname = ANY (%(filled)s)
  AND i.indisvalid AND i.indisready AND NOT i.indisclustered AND NOT i.indisreplident AND NOT i.indisexclusion
  AND x.reltablespace = 0 AND obj_description(x.oid, 'pg_class') IS NULL AND NOT starts_with(x.relname, 'unified_user_sync_')
  AND NOT EXISTS (SELECT FROM pg_constraint AS n WHERE n.conindid = i.indexrelid AND n.contype IN ('p', 'u', 'x', 'f'))
ORDER BY stage, table_name, name
"""


def _parameters(schema: Schema) -> dict:
    return {
        "schema": schema.name,
        "tables": [schema[table].name for table in _mapping.UNIFIED_TABLES],
        "filled": [schema[table].name for table in _mapping.FILLED],
    }


def fingerprint(database: Database, schema: Schema) -> list:
    """Return the constraints, indexes and NOT NULLs of the unified tables, as sorted lines.

    The session's ``search_path`` must be ``pg_catalog`` alone, so that definitions are spelled alike every time.
    """
    return database.value(_FINGERPRINT, _parameters(schema))


def recorded(database: Database) -> list[dict]:
    """Return what is down now, in the order it was taken down."""
    return database.rows("SELECT * FROM unified_user_journal.taken_down ORDER BY position")


def take_down(database: Database, schema: Schema, wanted: Callable[[dict], bool] | None = None) -> int:
    """Drop the reproducible indexes and keys of the unified tables, after writing them into the journal.

    Call it in a short transaction of its own with ``lock_timeout`` set: dropping a foreign key also locks the table
    it refers to. Does nothing when something is down already.

    Args:
        database: a session with an open transaction.
        schema: the resolved tables.
        wanted: says of an object (``table_name``, ``name``, ``kind``, ``definition``) whether it goes down; None stands for all.

    Returns:
        How many objects went down.
    """
    if recorded(database):
        return 0
    database.execute("DELETE FROM unified_user_journal.taken_down_catalogue")
    database.execute(
        "INSERT INTO unified_user_journal.taken_down_catalogue VALUES (%s)", (json.dumps(fingerprint(database, schema)),)
    )
    objects = [item for item in database.rows(_REPRODUCIBLE, _parameters(schema)) if wanted is None or wanted(item)]
    for position, item in enumerate(objects):
        database.execute(
            "INSERT INTO unified_user_journal.taken_down VALUES (%s, %s, %s, %s, %s)",
            (position, item["table_name"], item["name"], item["kind"], item["definition"]),
        )
    for item in objects:
        database.execute(_drop_statement(schema, item))
    return len(objects)


def _drop_statement(schema: Schema, item: dict):
    if item["kind"] == "index":
        return sql.SQL("DROP INDEX {}").format(sql.Identifier(schema.name, item["name"]))
    return sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(
        sql.Identifier(schema.name, item["table_name"]), sql.Identifier(item["name"])
    )


def put_back(database: Database, schema: Schema) -> int:
    """Build everything that is down, and prove that the catalogue is what it was.

    Runs inside the caller's transaction, with ``search_path`` set to ``pg_catalog``.

    Returns:
        How many objects were built.

    Raises:
        UnifiedUserError: the catalogue differs from the recorded one.
    """
    objects = recorded(database)
    # Indexes and keys before the foreign keys, which lean on them: the reverse of taking down.
    for item in reversed(objects):
        if _there(database, schema, item):
            continue
        if item["kind"] == "index":
            # The definition is PostgreSQL's own, from its catalogue.
            database.execute(item["definition"])
        else:
            database.execute(_add_statement(schema, item))
    if objects:
        _prove(database, schema)
    return len(objects)


def put_back_beside_writers(database: Database, schema: Schema, locked: Callable[[Callable[[], None]], None]) -> int:
    """Build everything that is down without keeping anybody waiting for longer than it takes to note a foreign key.

    What an interrupted attempt has built stays. Runs outside a transaction, with ``search_path`` set to ``pg_catalog``.

    Args:
        database: an open session.
        schema: the resolved tables.
        locked: calls a function in a transaction that waits for strong locks.

    Returns:
        How many objects were built.

    Raises:
        UnifiedUserError: the catalogue differs from the recorded one.
    """
    objects = recorded(database)
    # Making an index waits for every snapshot that is older: foreign keys, which wait for none, go first.
    for item in sorted(objects, key=lambda item: (item["kind"] == "index", -item["position"])):
        if item["kind"] == "index":
            if not _there(database, schema, item):
                database.execute(sql.SQL("DROP INDEX IF EXISTS {}").format(sql.Identifier(schema.name, item["name"])))
                database.execute(item["definition"].replace(" INDEX ", " INDEX CONCURRENTLY ", 1))
            continue
        names = sql.Identifier(schema.name, item["table_name"]), sql.Identifier(item["name"])
        if not _there(database, schema, item):
            statement = sql.Composed([_add_statement(schema, item), sql.SQL(" NOT VALID")])
            locked(lambda statement=statement: database.execute(statement))
        database.execute(sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(*names))
    if objects:
        with database.transaction():
            _prove(database, schema)
    return len(objects)


def _there(database: Database, schema: Schema, item: dict) -> bool:
    """Return whether an object is back already, whole if it is an index."""
    if item["kind"] == "index":
        return database.value(
            "SELECT EXISTS (SELECT FROM pg_index AS i JOIN pg_class AS x ON x.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = x.relnamespace"
            " WHERE n.nspname = %s AND x.relname = %s AND i.indisvalid)", (schema.name, item["name"]),
        )
    return database.value(
        "SELECT EXISTS (SELECT FROM pg_constraint AS n JOIN pg_class AS c ON c.oid = n.conrelid JOIN pg_namespace AS s ON s.oid = c.relnamespace"
        " WHERE s.nspname = %s AND c.relname = %s AND n.conname = %s)", (schema.name, item["table_name"], item["name"]),
    )


def _add_statement(schema: Schema, item: dict):
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(
        sql.Identifier(schema.name, item["table_name"]), sql.Identifier(item["name"]), sql.SQL(item["definition"])
    )


def _prove(database: Database, schema: Schema) -> None:
    """Require that the catalogue is what it was, and forget what was down."""
    before = database.value("SELECT fingerprint FROM unified_user_journal.taken_down_catalogue")
    after = fingerprint(database, schema)
    if before != after:
        differing = sorted({f"{line[0]} {line[2]} of {line[1]}" for line in before + after if (line in before) != (line in after)})
        raise UnifiedUserError(
            "put back the indexes and foreign keys of the unified tables",
            f"the catalogue is not what it was: {', '.join(differing[:5])}",
            "Somebody changed the unified tables meanwhile. Compare them with the schema migrations, then run again",
            differing=differing,
        )
    database.execute("DELETE FROM unified_user_journal.taken_down")
    database.execute("DELETE FROM unified_user_journal.taken_down_catalogue")
