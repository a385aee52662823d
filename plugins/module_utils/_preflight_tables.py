# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Preflight's questions to the tables: what they are, what hides or rewrites their rows, and how well they are kept."""

from __future__ import annotations

from typing import Iterable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._findings import BLOCKER, INFO, WARNING, Finding, schema_findings
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import LEGACY, SHARED, UNIFIED
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight_context import Context, Probe, and_more

_KINDS = {"f": "a foreign table", "v": "a view", "m": "a materialized view", "S": "a sequence", "i": "an index", "c": "a type"}

_RELATIONS = """
SELECT c.relname::text AS name, c.relkind::text AS kind, c.relpersistence = 'u' AS unlogged,
       c.relrowsecurity AS secured, row_security_active(c.oid) AS filtered, pg_get_userbyid(c.relowner)::text AS owner,
       EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhparent = c.oid) AS has_children
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
ORDER BY 1
"""

# Of the bits of tgtype 4 is INSERT (PostgreSQL source, catalog/pg_trigger.h).
_TRIGGERS = """
SELECT c.relname::text AS "table", t.tgname::text AS name, t.tgtype & 4 <> 0 AS on_insert
FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
ORDER BY 1, 2
"""

# ev_type 1 is SELECT, 3 is INSERT (PostgreSQL source, nodes/nodes.h).
_RULES = """
SELECT c.relname::text AS "table", r.rulename::text AS name, r.ev_type = '3' AS on_insert
FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE r.ev_type <> '1' AND r.ev_enabled IN ('O', 'A') AND n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
ORDER BY 1, 2
"""

_UPKEEP = """
SELECT c.relname::text AS name,
       EXISTS (SELECT FROM pg_options_to_table(c.reloptions) AS o
               WHERE CASE WHEN o.option_name = 'autovacuum_enabled' THEN NOT o.option_value::boolean END) AS disabled,
       s.n_dead_tup AS dead, greatest(s.n_live_tup, c.reltuples::bigint, 0) AS live,
       s.last_analyze IS NULL AND s.last_autoanalyze IS NULL AND pg_relation_size(c.oid) > 0
       AND NOT EXISTS (SELECT FROM pg_stats AS t WHERE t.schemaname = n.nspname AND t.tablename = c.relname) AS never_analyzed,
       coalesce(greatest(s.last_vacuum, s.last_autovacuum)::timestamptz(0)::text, 'never') AS vacuumed,
       age(c.relfrozenxid) AS age,
       least((SELECT o.option_value::int FROM pg_options_to_table(c.reloptions) AS o WHERE o.option_name = 'autovacuum_freeze_max_age'),
             current_setting('autovacuum_freeze_max_age')::int) AS limit_age,
       v.pid AS vacuum_pid
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_stat_all_tables AS s ON s.relid = c.oid
LEFT JOIN pg_stat_progress_vacuum AS v ON v.relid = c.oid AND v.datname = current_database()
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(tables)s) AND c.relkind = 'r'
ORDER BY 1
"""

#: A table is due for VACUUM when more than this share of it, and more rows than that, are dead.
_DEAD_SHARE = 0.2
_DEAD_ROWS = 10000


def unified_is_missing(context: Context) -> bool:
    """Whether none of the unified tables is there: the schema has not been deployed yet."""
    return not context.relations(UNIFIED)


def _schema(context: Context) -> Iterable[Finding]:
    """Missing and contradictory tables and columns; unified tables that are all missing are a matter of the schema's deployment."""
    name = context.schema.name
    if not context.database.value("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %s)", (name,)):
        others = context.database.rows(
            "SELECT DISTINCT n.nspname::text AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE c.relname = ANY (%s) AND c.relkind IN ('r', 'p') AND n.nspname <> 'pg_catalog' ORDER BY 1",
            ([context.schema[table].name for table in _mapping.SOURCES],),
        )
        where = f"; tables of these names are in {', '.join(row['name'] for row in others)}" if others else ""
        yield Finding("missing_schema", BLOCKER, 1, f"there is no schema {name} in database {context.server['database']}{where}",
                      "Set unified_user_schema or unified_user_login_db", [row["name"] for row in others][: context.options.sample_size])
        return
    pending = unified_is_missing(context)
    for finding in schema_findings(context.schema):
        if not (pending and finding.name == "missing_table" and context.is_unified(finding.samples[0])):
            yield finding
    if pending:
        yield Finding(
            "unified_tables_missing", BLOCKER if context.options.expect_unified else INFO,
            sum(not _mapping.TABLES[table].starts_empty for table in _mapping.UNIFIED_TABLES),
            "the unified tables are not there yet; their columns, keys and rows can be looked at once they are",
            "Run the role schema_deploy, which creates them (ansible-playbook migrate.yml does)",
            [context.schema[table].name for table in _mapping.FILLED][: context.options.sample_size],
        )


def _relations(context: Context) -> Iterable[Finding]:
    names = [relation.name for relation in context.schema.relations.values()]
    rows = context.database.rows(_RELATIONS, {"schema": context.schema.name, "tables": names})
    tables = [row for row in rows if row["kind"] in ("r", "p")]
    yield from context.found(
        "not_a_table", BLOCKER, [f"{row['name']} is {_KINDS.get(row['kind'], 'something else')}" for row in rows if row not in tables],
        "names of the application's tables that something else has",
        "Set unified_user_mapping to the tables' real names, or rename what is in the way",
    )
    owners = ", ".join(sorted({row["owner"] for row in tables if row["filtered"]}))
    yield from context.found(
        "row_security_active", BLOCKER, [row["name"] for row in tables if row["filtered"]],
        f"row-level security hides rows of these tables from role {context.server['role']}",
        f"Set unified_user_session_role to the tables' owner ({owners}), or ALTER ROLE {context.quoted(context.server['role'])} BYPASSRLS",
    )
    yield from context.found(
        "row_security_bypassed", INFO, [row["name"] for row in tables if row["secured"] and not row["filtered"]],
        "row-level security is on, and this role sees every row all the same",
        "Nothing to set: SELECT * FROM pg_policies shows the policies; give the unified tables their own",
    )
    yield from context.found(
        "has_children", WARNING, [row["name"] for row in tables if row["has_children"] and row["kind"] == "r"],
        "tables that others inherit from: rows of those are read as if they were their own",
        "ALTER TABLE … NO INHERIT for tables that are something else: SELECT inhrelid::regclass FROM pg_inherits",
    )
    yield from context.found(
        "partitioned", WARNING, [row["name"] for row in tables if row["kind"] == "p" and context.is_unified(row["name"])],
        "partitioned unified tables: their indexes and foreign keys stay in place while they are filled, which takes longer",
        "Raise preflight_max_duration_seconds if that is acceptable, or create them as plain tables",
    )
    unlogged = [row["name"] for row in tables if row["unlogged"]]
    yield from context.found(
        "unlogged", WARNING, unlogged, "unlogged tables are emptied by a crash of the server and missing on its replicas",
        and_more([f"ALTER TABLE {context.table(name)} SET LOGGED" for name in unlogged]),
    )


def _row_security_elsewhere(context: Context) -> Iterable[Finding]:
    """Further tables of the database, which pg_dump refuses to dump when a policy would hide rows."""
    rows = context.database.rows(
        "SELECT c.oid::regclass::text AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE c.relrowsecurity AND row_security_active(c.oid) AND NOT (n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)) ORDER BY 1",
        context.scope(),
    )
    yield from context.found(
        "row_security_backup", BLOCKER, [row["name"] for row in rows],
        f"row-level security hides rows of further tables from role {context.server['role']}, so pg_dump would refuse",
        f"ALTER ROLE {context.quoted(context.server['role'])} BYPASSRLS, or set unified_user_login_user to a role that has it",
    )


def _triggers(context: Context) -> Iterable[Finding]:
    rows = context.database.rows(_TRIGGERS, context.scope())
    unified = [row for row in rows if context.is_unified(row["table"])]
    firing = [row for row in unified if row["on_insert"]]
    yield from context.found(
        "unified_triggers", WARNING, [f"{row['name']} on {row['table']}" for row in firing],
        "triggers on the unified tables fire for every row of the copy",
        and_more([f"ALTER TABLE {context.table(row['table'])} DISABLE TRIGGER {context.quoted(row['name'])}" for row in firing]),
    )
    legacy = [row for row in rows if row not in unified]
    yield from context.found(
        "legacy_triggers", WARNING, [f"{row['name']} on {row['table']}" for row in legacy],
        "triggers on the legacy tables: the copy does not fire them, and the unified tables have no counterpart to them",
        "Read them, and add what is still wanted to the unified tables: SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname = …",
    )


def _rules(context: Context) -> Iterable[Finding]:
    rows = context.database.rows(_RULES, context.scope())
    rewriting = [row for row in rows if row["on_insert"] and context.is_unified(row["table"])]
    yield from context.found(
        "insert_rules", BLOCKER, [f"{row['name']} on {row['table']}" for row in rewriting], "rules rewrite inserts into the unified tables",
        and_more([f"ALTER TABLE {context.table(row['table'])} DISABLE RULE {context.quoted(row['name'])}" for row in rewriting]),
    )
    others = [row for row in rows if row not in rewriting]
    yield from context.found("rules", WARNING, [f"{row['name']} on {row['table']}" for row in others],
                             "rules rewrite writes to the application's tables; the copy does not write there",
                             "Read them: SELECT pg_get_ruledef(oid) FROM pg_rewrite WHERE rulename = …")


def _upkeep(context: Context) -> Iterable[Finding]:
    """Autovacuum, statistics and transaction age: what the planner and the locks depend on."""
    off = [name for name in ("autovacuum", "track_counts") if context.settings.get(name) == "off"]
    yield from context.found("autovacuum_off", WARNING, [f"{name} = off" for name in off], "the server does not vacuum and analyze by itself",
                             and_more([f"ALTER SYSTEM SET {name} = on" for name in off]) + "; SELECT pg_reload_conf()")
    rows = context.database.rows(_UPKEEP, context.scope())
    sources = {relation.name for relation in context.relations(LEGACY, SHARED)}
    disabled = [row["name"] for row in rows if row["disabled"]]
    yield from context.found("autovacuum_disabled", WARNING, disabled, "tables that autovacuum is told to leave alone",
                             and_more([f"ALTER TABLE {context.table(name)} RESET (autovacuum_enabled)" for name in disabled]))
    unknown = [row["name"] for row in rows if row["never_analyzed"] and row["name"] in sources]
    yield from context.found("never_analyzed", WARNING, unknown, "tables without statistics: the planner would guess, and the copy could take far longer",
                             and_more([f"ANALYZE {context.table(name)}" for name in unknown]))
    dead = [row for row in rows if (row["dead"] or 0) > max(_DEAD_ROWS, _DEAD_SHARE * (row["live"] + row["dead"]))]
    yield from context.found(
        "dead_rows", WARNING, [f"{row['name']}: {row['dead']} dead, {row['live']} live, last vacuum {row['vacuumed']}" for row in dead],
        "tables with many dead rows, which every scan of the copy reads",
        and_more([f"VACUUM (ANALYZE) {context.table(row['name'])}" for row in dead]),
    )
    old = [row for row in rows if row["age"] > row["limit_age"]]
    yield from context.found(
        "wraparound", WARNING, [f"{row['name']}: {row['age']} transactions old, limit {row['limit_age']}" for row in old],
        "tables due for a vacuum against wraparound, which gives way to nobody and would keep the copy's locks waiting",
        and_more([f"VACUUM (FREEZE) {context.table(row['name'])}" for row in old]),
    )
    busy = [row for row in rows if row["vacuum_pid"]]
    yield from context.found("vacuum_running", INFO, [f"{row['name']} (pid {row['vacuum_pid']})" for row in busy], "tables that are being vacuumed now",
                             "Wait until SELECT * FROM pg_stat_progress_vacuum is empty")


PROBES = (
    Probe("the schema's tables and columns", _schema),
    Probe("what the tables are", _relations),
    Probe("row-level security", _row_security_elsewhere),
    Probe("triggers", _triggers, WARNING),
    Probe("rules", _rules),
    Probe("vacuum and statistics", _upkeep, WARNING),
)
