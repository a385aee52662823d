# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Preflight's questions about what the role may do, each answered with the GRANT that is missing."""

from __future__ import annotations

from typing import Any, Iterable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._findings import BLOCKER, Finding
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import LEGACY, SHARED, UNIFIED
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight_context import Context, Probe, and_more

# Any of these lets a role take SHARE ROW EXCLUSIVE (PostgreSQL documentation, LOCK); MAINTAIN came with 17.
_LOCK_PRIVILEGES = "UPDATE, DELETE, TRUNCATE"

_TABLES = """
SELECT c.relname::text AS name, o.rolname::text AS owner, o.rolsuper AS owner_is_superuser, pg_has_role(c.relowner, 'USAGE') AS owned,
       has_table_privilege(c.oid, 'SELECT') AS selectable, has_table_privilege(c.oid, %(lock)s) AS lockable,
       has_table_privilege(c.oid, 'REFERENCES') AS referable, has_table_privilege(c.oid, 'INSERT') AS insertable,
       has_table_privilege(c.oid, 'TRUNCATE') AS emptiable
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_roles AS o ON o.oid = c.relowner
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
ORDER BY 1
"""

_DATABASE = """
SELECT has_schema_privilege(n.oid, 'USAGE') AS usable, has_schema_privilege(n.oid, 'CREATE') AS creatable,
       has_database_privilege(current_database(), 'CREATE') AS journal_creatable,
       has_database_privilege(current_database(), 'TEMPORARY') AS temporary,
       j.nspname IS NOT NULL AS journal_there, o.rolname::text AS journal_owner,
       j.nspname IS NULL OR pg_has_role(j.nspowner, 'USAGE') AS journal_owned
FROM pg_namespace AS n LEFT JOIN pg_namespace AS j ON j.nspname = %(journal)s LEFT JOIN pg_roles AS o ON o.oid = j.nspowner
WHERE n.nspname = %(schema)s
"""

_HISTORY = """
SELECT has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'UPDATE') AS granted
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = '_prisma_migrations' AND c.relkind = 'r'
"""

# What pg_dump reads or locks, but for what an extension brings along (pg_depend.deptype 'e').
_DUMPED = """
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname) AS name, c.relkind = 'S' AS is_sequence
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'S') AND n.nspname NOT IN ('pg_catalog', 'information_schema', %(journal)s) AND n.nspname !~ '^pg_(toast|temp_)'
  AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))
  AND NOT (n.nspname = %(schema)s AND c.relname = ANY (%(tables)s))
  AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1
"""


def _grant(context: Context, privilege: str, rows: list[dict[str, Any]]) -> str:
    tables = ", ".join(context.table(row["name"]) for row in rows)
    return f"GRANT {privilege} ON TABLE {tables} TO {context.quoted(context.server['role'])}"


def _on_tables(context: Context) -> Iterable[Finding]:
    maintain = context.server["major"] >= 17
    lock = f"{_LOCK_PRIVILEGES}, MAINTAIN" if maintain else _LOCK_PRIVILEGES
    rows = {row["name"]: row for row in context.database.rows(_TABLES, {**context.scope(), "lock": lock})}
    role = context.server["role"]

    def lacking(privilege: str, tables: Iterable[str]) -> list[dict[str, Any]]:
        return [rows[name] for name in tables if name in rows and not rows[name][privilege]]

    sources = [relation.name for relation in context.relations(LEGACY, SHARED)]
    unified = [relation.name for relation in context.relations(UNIFIED)]
    referred = [context.schema[table].name for table in ("studios", "services")]
    for name, privilege, tables, detail, grant in (
        ("privilege_select", "selectable", sources + unified, "may not read", "SELECT"),
        ("privilege_lock", "lockable", sources, "may not lock against writes", "MAINTAIN" if maintain else "UPDATE"),
        ("privilege_references", "referable", referred, "may not make foreign keys to", "REFERENCES"),
        ("privilege_insert", "insertable", unified, "may not fill", "INSERT"),
        ("privilege_truncate", "emptiable", unified, "may not empty, as going back needs,", "TRUNCATE"),
    ):
        found = lacking(privilege, tables)
        yield from context.found(name, BLOCKER, [row["name"] for row in found], f"role {role} {detail} tables of the migration",
                                 _grant(context, grant, found))
    foreign = lacking("owned", unified)
    yield from context.found(
        "privilege_ownership", BLOCKER, [f"{row['name']} (of {row['owner']})" for row in foreign],
        f"role {role} does not own unified tables, so it may not take down and rebuild their indexes and foreign keys",
        and_more(list(dict.fromkeys(_make_owner(context, row) for row in foreign))),
    )


def _make_owner(context: Context, row: dict[str, Any]) -> str:
    role = context.quoted(context.server["role"])
    # To be a member of a superuser is to be able to become one.
    if row["owner_is_superuser"]:
        return f"ALTER TABLE {context.table(row['name'])} OWNER TO {role}"
    return f"GRANT {context.quoted(row['owner'])} TO {role}"


def _on_database(context: Context) -> Iterable[Finding]:
    row = context.database.row(_DATABASE, {"schema": context.schema.name, "journal": _journal.SCHEMA})
    if row is None:  # no such schema: that is a finding of its own
        return
    role, database, schema = (context.quoted(name) for name in (context.server["role"], context.server["database"], context.schema.name))
    who = f"role {context.server['role']}"
    if not row["usable"]:
        yield Finding("privilege_schema", BLOCKER, 1, f"{who} may not look into schema {context.schema.name}",
                      f"GRANT USAGE ON SCHEMA {schema} TO {role}", [context.schema.name])
    if not row["creatable"]:
        yield Finding("privilege_schema_create", BLOCKER, 1, f"{who} may not make tables and indexes in schema {context.schema.name}",
                      f"GRANT CREATE ON SCHEMA {schema} TO {role}", [context.schema.name])
    if not row["journal_there"] and not row["journal_creatable"]:
        yield Finding("privilege_database_create", BLOCKER, 1, f"{who} may not make the journal's schema in database {context.server['database']}",
                      f"GRANT CREATE ON DATABASE {database} TO {role}", [context.server["database"]])
    if not row["journal_owned"]:
        yield Finding("privilege_journal", BLOCKER, 1, f"{who} does not own the journal's schema, {row['journal_owner']} does",
                      f"Set unified_user_session_role to {row['journal_owner']}", [_journal.SCHEMA])
    if not row["temporary"]:
        yield Finding("privilege_temporary", BLOCKER, 1, f"{who} may not make temporary tables in database {context.server['database']}",
                      f"GRANT TEMPORARY ON DATABASE {database} TO {role}", [context.server["database"]])


def _on_history(context: Context) -> Iterable[Finding]:
    """The schema's deployment writes down what it did; once the unified tables are there, it has."""
    if not context.relations(UNIFIED) and context.database.value(_HISTORY, (context.schema.name,)) is False:
        table = context.table("_prisma_migrations")
        yield Finding("privilege_history", BLOCKER, 1, f"role {context.server['role']} may not write the history of schema migrations",
                      f"GRANT SELECT, INSERT, UPDATE ON TABLE {table} TO {context.quoted(context.server['role'])}", ["_prisma_migrations"])


def _for_backup(context: Context) -> Iterable[Finding]:
    """What the backup and its restore test need beyond the migration's own tables."""
    role = context.quoted(context.server["role"])
    rows = context.database.rows(_DUMPED, {**context.scope(), "journal": _journal.SCHEMA})
    # The role pg_read_all_data came with 14.
    grant = f"GRANT pg_read_all_data TO {role}"
    if context.server["major"] < 14:
        grant = and_more([f"GRANT SELECT ON {'SEQUENCE' if row['is_sequence'] else 'TABLE'} {row['name']} TO {role}" for row in rows])
    yield from context.found("privilege_backup", BLOCKER, [row["name"] for row in rows],
                             f"role {context.server['role']} may not read further tables and sequences, so pg_dump would fail", grant)
    if context.options.restore_test and not (context.server["createdb"] or context.server["superuser"]):
        yield Finding("privilege_createdb", BLOCKER, 1, f"role {context.server['role']} may not create the database that the restore test needs",
                      f"ALTER ROLE {role} CREATEDB", [context.server["role"]])


PROBES = (
    Probe("privileges on the tables", _on_tables),
    Probe("privileges on the database", _on_database),
    Probe("privileges on the migration history", _on_history),
    Probe("privileges for backup and restore", _for_backup),
)
