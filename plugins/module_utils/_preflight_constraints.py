# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Preflight's questions to keys, indexes and foreign keys: those the mapping needs, and rows that break missing ones."""

from __future__ import annotations

from typing import Any, Iterable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._constraints import KEYS, REFERENCES, Key, Reference
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._findings import BLOCKER, WARNING, Finding
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight_context import Context, Probe, and_more
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma

_INDEXES = """
SELECT c.relname::text AS "table", x.relname::text AS name, i.indisvalid AND i.indisready AND i.indislive AS valid,
       i.indisunique AS "unique", i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL AS guarantees,
       ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, place)
             JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number WHERE k.place <= i.indnkeyatts) AS columns
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid JOIN pg_class AS x ON x.oid = i.indexrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
ORDER BY 1, 2
"""

# A constraint is trusted when it was validated, is enforced (since PostgreSQL 18 it may not be) and none of the triggers
# that enforce it is disabled.
_FOREIGN_KEYS = """
SELECT c.relname::text AS "table", k.conname::text AS name, fn.nspname = %(schema)s AS here, f.relname::text AS target,
       (SELECT array_agg(a.attname::text) FROM pg_attribute AS a WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)) AS columns,
       (SELECT array_agg(a.attname::text) FROM pg_attribute AS a WHERE a.attrelid = k.confrelid AND a.attnum = ANY (k.confkey)) AS targets,
       k.convalidated AND coalesce((to_jsonb(k) ->> 'conenforced')::boolean, true) AS validated,
       NOT EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgconstraint = k.oid AND t.tgenabled IN ('D', 'R')) AS enforced
FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid JOIN pg_class AS f ON f.oid = k.confrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_namespace AS fn ON fn.oid = f.relnamespace
WHERE k.contype = 'f' AND n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
ORDER BY 1, 2
"""


_ROLES = """
SELECT c.relname::text AS "table", a.attname::text AS "column", tn.nspname::text AS type_schema, t.typname::text AS type,
       array_agg(e.enumlabel::text) AS labels
FROM unnest(%(tables)s::text[], %(columns)s::text[]) AS w ("table", "column")
JOIN pg_class AS c ON c.relname = w."table" JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = %(schema)s
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = w."column"
JOIN pg_type AS t ON t.oid = a.atttypid JOIN pg_namespace AS tn ON tn.oid = t.typnamespace JOIN pg_enum AS e ON e.enumtypid = t.oid
GROUP BY 1, 2, 3, 4 ORDER BY 1
"""

# Besides unique indexes: CHECK and exclusion constraints (pg_constraint.contype c and x).
_CHECKS = """
SELECT k.conname::text AS name, c.relname::text AS "table"
FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE k.contype IN ('c', 'x') AND n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
ORDER BY 2, 1
"""


def _has(schema: Schema, table: str, columns: tuple[str, ...]) -> bool:
    """Whether a logical table and all of these columns are there; what is not is a finding of its own."""
    return schema[table].exists and all(column in schema[table].names for column in columns)


def _spell(schema: Schema, key: Key | Reference) -> str:
    """Name a key or a reference as the database spells it."""
    if isinstance(key, Key):
        return f"{schema[key.table].name} ({', '.join(schema[key.table].names[column] for column in key.columns)})"
    return f"{schema[key.table].name}.{schema[key.table].names[key.column]} to {schema[key.target].name}"


def _indexes(context: Context) -> Iterable[Finding]:
    rows = context.database.rows(_INDEXES, context.scope())
    invalid = [row for row in rows if not row["valid"]]
    yield from context.found(
        "invalid_index", WARNING, [f"{row['name']} on {row['table']}" for row in invalid],
        "indexes that were never finished: they cost every write and help no query",
        and_more([f"REINDEX INDEX CONCURRENTLY {context.table(row['name'])}" for row in invalid]),
    )
    missing = [key for key in KEYS if _has(context.schema, key.table, key.columns) and not _is_guaranteed(context, key, rows)]
    yield from context.found(
        "missing_key", WARNING, [_spell(context.schema, key) for key in missing],
        "columns that should be unique and have no unique index",
        and_more([_add_index(context, key) for key in missing]),
    )
    yield from _doubles(context, [key for key in missing if key.identifies and not context.is_unified(context.schema[key.table].name)])


def _further(context: Context) -> Iterable[Finding]:
    """Demands of the unified tables that the contract does not know, and roles that their enumerations lack."""
    schema = context.schema
    filled = {schema[table].name for table in _mapping.FILLED if schema[table].exists}
    known = [(schema[key.table].name, {schema[key.table].names.get(column) for column in key.columns}) for key in KEYS]
    scope = {"schema": schema.name, "tables": list(filled)}
    demands = [row for row in context.database.rows(_INDEXES, scope) if row["unique"] and (row["table"], set(row["columns"])) not in known]
    demands += context.database.rows(_CHECKS, scope)
    yield from context.found(
        "further_constraints", WARNING, [f"{row['name']} on {row['table']}" for row in demands],
        "constraints of the unified tables that the migration does not know; a row that breaks one would stop the copy",
        and_more([f"psql -c '\\d {table}'" for table in sorted({context.table(row["table"]) for row in demands})]),
    )
    needed = {_mapping.OWNER_ROLE, _mapping.CUSTOMER_ROLE, context.options.policies.guest_role}
    columns = [(table, column) for table, column in (("users", "primaryRole"), ("user_role_assignments", "role")) if _has(schema, table, (column,))]
    for row in context.database.rows(_ROLES, {
        "schema": schema.name,
        "tables": [schema[table].name for table, _column in columns],
        "columns": [schema[table].names[column] for table, column in columns],
    }):
        lacking = sorted(needed - set(row["labels"]))
        yield from context.found(
            "role_unknown", BLOCKER, lacking, f"roles that the column {row['column']} of {row['table']} does not know",
            and_more([context.statement("ALTER TYPE {} ADD VALUE ", (row["type_schema"], row["type"])) + f"'{label}'" for label in lacking]),
        )


def _is_guaranteed(context: Context, key: Key, rows: list[dict[str, Any]]) -> bool:
    relation = context.schema[key.table]
    wanted = {relation.names[column] for column in key.columns}
    return any(
        row["table"] == relation.name and (row["guarantees"] and row["valid"] and set(row["columns"]) == wanted) for row in rows
    ) or (bool(context.taken_down) and context.is_unified(relation.name))


def _add_index(context: Context, key: Key) -> str:
    names = context.schema[key.table].names
    columns = ", ".join(context.quoted(names[column]) for column in key.columns)
    return f"CREATE UNIQUE INDEX ON {context.table(context.schema[key.table].name)} ({columns})"


def _doubles(context: Context, keys: list[Key]) -> Iterable[Finding]:
    """Values that occur twice, or are NULL, in columns that nothing keeps unique."""
    if not keys:
        return
    selects = []
    for number, key in enumerate(keys):
        columns = [context.schema.column(key.table, column) for column in key.columns]
        selects.append(context.schema.compose(
            "SELECT {number} AS number, count(*) AS count FROM (SELECT FROM {checked} GROUP BY {columns} HAVING count(*) > 1 OR {is_null}) AS d",
            checked=key.table, number=sql.Literal(number), columns=comma(columns),
            is_null=sql.SQL(" OR ").join(sql.SQL("{} IS NULL").format(column) for column in columns),
        ))
    for row in context.database.rows(sql.SQL(" UNION ALL ").join(selects)):
        if row["count"]:
            key = keys[row["number"]]
            yield Finding(
                "double_keys", BLOCKER, row["count"], f"values of {_spell(context.schema, key)} that occur twice or are NULL, which no unified table allows",
                f"Remove the doubles, then {_add_index(context, key)}", [_spell(context.schema, key)],
            )


def _foreign_keys(context: Context) -> Iterable[Finding]:
    rows = context.database.rows(_FOREIGN_KEYS, context.scope())
    schema = context.schema
    known = [reference for reference in REFERENCES if _has(schema, reference.table, (reference.column,)) and _has(schema, reference.target, ("id",))]
    missing, doubtful, elsewhere = [], [], []
    for reference in known:
        own = [row for row in rows if row["table"] == schema[reference.table].name and row["columns"] == [schema[reference.table].names[reference.column]]]
        right = [row for row in own if row["here"] and row["target"] == schema[reference.target].name
                 and row["targets"] == [schema[reference.target].names["id"]]]
        elsewhere += [(reference, row) for row in own if row not in right and context.is_unified(row["table"])]
        if any(row["validated"] and row["enforced"] for row in right):
            continue
        if right:
            doubtful.append((reference, right[0]))
        elif not (context.taken_down and context.is_unified(schema[reference.table].name)):
            missing.append(reference)
    yield from context.found(
        "foreign_key_elsewhere", BLOCKER, [f"{row['name']} on {row['table']} leads to {row['target']}" for unused, row in elsewhere],
        "foreign keys of unified tables lead to other tables than the migration's, so its rows would be refused",
        and_more([f"ALTER TABLE {context.table(row['table'])} DROP CONSTRAINT {context.quoted(row['name'])}" for unused, row in elsewhere]),
    )
    yield from context.found(
        "missing_foreign_key", WARNING, [_spell(schema, reference) for reference in missing], "references that no foreign key guards",
        and_more([_add_foreign_key(context, reference) for reference in missing]),
    )
    yield from context.found(
        "unvalidated_foreign_key", WARNING, [f"{row['name']} on {row['table']}" for unused, row in doubtful],
        "foreign keys that were never validated or whose triggers are disabled",
        and_more([_validate(context, row) for unused, row in doubtful]),
    )
    distrusted = missing + [reference for reference, unused in doubtful]
    yield from _dangling(context, [reference for reference in distrusted if not context.is_unified(schema[reference.table].name)])


def _add_foreign_key(context: Context, reference: Reference) -> str:
    schema = context.schema
    return (f"ALTER TABLE {context.table(schema[reference.table].name)} ADD FOREIGN KEY"
            f" ({context.quoted(schema[reference.table].names[reference.column])}) REFERENCES {context.table(schema[reference.target].name)}")


def _validate(context: Context, row: dict[str, Any]) -> str:
    table = f"ALTER TABLE {context.table(row['table'])}"
    if not row["enforced"]:
        return f"{table} ENABLE TRIGGER ALL"
    return f"{table} VALIDATE CONSTRAINT {context.quoted(row['name'])}"


def _dangling(context: Context, references: list[Reference]) -> Iterable[Finding]:
    """Rows that refer to a row which is not there: what refers to a person would have no image."""
    if not references:
        return
    selects = []
    for number, reference in enumerate(references):
        label = [key.columns for key in KEYS if key.table == reference.table][0]
        selects.append(context.schema.compose(
            "SELECT {number} AS number, count(*) AS count, (array_agg(d.label ORDER BY d.label))[1:{samples}] AS samples FROM ("
            "SELECT {label} AS label FROM {child} AS t WHERE t.{column} IS NOT NULL"
            " AND NOT EXISTS (SELECT FROM {parent} AS p WHERE p.{parent.id} = t.{column})) AS d",
            child=reference.table, parent=reference.target, number=sql.Literal(number), samples=sql.Literal(context.options.sample_size),
            column=context.schema.column(reference.table, reference.column),
            label=sql.SQL(" || ' ' || ").join(sql.SQL("t.{}").format(context.schema.column(reference.table, column)) for column in label),
        ))
    for row in context.database.rows(sql.SQL(" UNION ALL ").join(selects)):
        if not row["count"]:
            continue
        reference = references[row["number"]]
        table, column = context.schema[reference.table], context.schema[reference.table].names[reference.column]
        parent = context.schema[reference.target]
        mend, names = "DELETE FROM {}", [(context.schema.name, table.name)]
        if not table.columns[column].not_null:
            mend, names = "UPDATE {} SET {} = NULL", [*names, column]
        mend = context.statement(
            mend + " WHERE {} IS NOT NULL AND NOT EXISTS (SELECT FROM {} AS p WHERE p.{} = {})",
            *names, column, (context.schema.name, parent.name), parent.names["id"], (table.name, column),
        )
        yield Finding(
            "dangling_references", BLOCKER if reference.copied else WARNING, row["count"],
            f"rows of {table.name} whose {column} names no row of {context.schema[reference.target].name}", mend, row["samples"],
        )


PROBES = (
    Probe("keys and indexes", _indexes),
    Probe("further constraints and roles", _further),
    Probe("foreign keys", _foreign_keys),
)
