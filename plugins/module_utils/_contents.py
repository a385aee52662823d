# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a database holds, in a form that two databases can be compared by: rows, content sums, positions and the catalogue."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Callable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql

#: Settings that decide how a row looks as text; the sums of two databases compare only under the same ones.
_TEXT_FORM = {
    "search_path": "",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
    "row_security": "off",
}

_LARGE_OBJECTS = "pg_catalog.pg_largeobject"

_OUR_SCHEMAS = "n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'"


def _no_member(catalog: str, oid: str) -> str:
    """Return the condition that an object does not belong to an extension: pg_dump leaves those to CREATE EXTENSION."""
    return (
        f"NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = '{catalog}'::regclass AND d.objid = {oid}"
        " AND d.deptype = 'e')"
    )


def _privileges(acl: str, kind: str, owner: str) -> str:
    """Return the expression that spells privileges out, the default ones too, in an order that does not depend on history.

    MAINTAIN stands apart, because servers before 17 do not have it.
    """
    return (
        "(SELECT string_agg(concat_ws(' ', x.grantee::regrole, x.privilege_type, x.is_grantable), ','"
        " ORDER BY x.grantee::regrole::text COLLATE \"C\", x.privilege_type COLLATE \"C\")"
        f" FROM aclexplode(coalesce({acl}, acldefault('{kind}', {owner}))) AS x WHERE x.privilege_type <> 'MAINTAIN')"
    )


#: Built-in type -> a form of its values whose hash sees every bit, is the same on every server and major, and costs less than that of text.
#: The hash of eight bytes would fold them to four. Missing are types whose equality overlooks something (numeric, interval, float, jsonb) and
#: those whose bytes hold an OID, which is another one after a restore (enum).
_FORMS = {
    "boolean": "{}",
    "smallint": "{}",
    "integer": "{}",
    "date": "{}",
    "uuid": "{}",
    "bytea": "{}",
    "text": '{} COLLATE "C"',
    "character varying": '{} COLLATE "C"',
    "bigint": "int8send({})",
    "time without time zone": "time_send({})",
    "timestamp without time zone": "timestamp_send({})",
    "timestamp with time zone": "timestamptz_send({})",
}
_TEXT = '{}::text COLLATE "C"'

_TABLES = f"""
SELECT n.nspname AS schema, c.relname AS table, format('%I.%I', n.nspname, c.relname) AS name,
       ARRAY(SELECT ARRAY[a.attname, CASE WHEN a.atttypid < 16384 THEN format_type(a.atttypid, NULL) ELSE '' END] FROM pg_attribute AS a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS columns
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND {_OUR_SCHEMAS} AND {_no_member('pg_class', 'c.oid')}
ORDER BY n.nspname, c.relname
"""

_SEQUENCES = """
SELECT format('%I.%I', schemaname, sequencename) AS name, last_value, increment_by > 0 AS ascending
FROM pg_sequences WHERE NOT cycle AND last_value IS NOT NULL
"""

#: Everything that pg_dump is to bring back besides rows. Invalid indexes are left out because pg_dump leaves them out,
#: extension versions because CREATE EXTENSION installs the server's; NOT NULL constraints are told by their columns.
_CATALOGUE = f"""
SELECT 'schema' AS kind, quote_ident(n.nspname) AS name,
       concat_ws('|', n.nspowner::regrole, {_privileges('n.nspacl', 'n', 'n.nspowner')}) AS definition
FROM pg_namespace AS n WHERE {_OUR_SCHEMAS} AND {_no_member('pg_namespace', 'n.oid')}
UNION ALL
SELECT 'extension', quote_ident(e.extname), e.extnamespace::regnamespace::text FROM pg_extension AS e
UNION ALL
SELECT 'type', format('%I.%I', n.nspname, t.typname),
       concat_ws('|', t.typtype, t.typowner::regrole, {_privileges('t.typacl', 'T', 't.typowner')},
                 format_type(nullif(t.typbasetype, 0), t.typtypmod), t.typnotnull, t.typdefault,
                 (SELECT string_agg(quote_literal(l.enumlabel), ',' ORDER BY l.enumsortorder)
                  FROM pg_enum AS l WHERE l.enumtypid = t.oid))
FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace LEFT JOIN pg_class AS c ON c.oid = t.typrelid
WHERE t.typtype IN ('e', 'd', 'r', 'c') AND (t.typtype <> 'c' OR c.relkind = 'c')
      AND {_OUR_SCHEMAS} AND {_no_member('pg_type', 't.oid')}
UNION ALL
SELECT 'table', format('%I.%I', n.nspname, c.relname),
       concat_ws('|', c.relkind, c.relpersistence, c.relowner::regrole, {_privileges('c.relacl', 'r', 'c.relowner')},
                 array_to_string(c.reloptions, ','), c.relrowsecurity, c.relforcerowsecurity, c.relreplident,
                 pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid),
                 (SELECT string_agg(i.inhparent::regclass::text, ',' ORDER BY i.inhseqno)
                  FROM pg_inherits AS i WHERE i.inhrelid = c.oid))
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND {_OUR_SCHEMAS} AND {_no_member('pg_class', 'c.oid')}
UNION ALL
SELECT 'view', format('%I.%I', n.nspname, c.relname), pg_get_viewdef(c.oid)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('v', 'm') AND c.relpersistence <> 't' AND {_OUR_SCHEMAS} AND {_no_member('pg_class', 'c.oid')}
UNION ALL
SELECT 'maintain privilege', format('%I.%I', n.nspname, c.relname),
       string_agg(concat_ws(' ', x.grantee::regrole, x.is_grantable), ',' ORDER BY x.grantee::regrole::text COLLATE "C")
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace CROSS JOIN LATERAL aclexplode(c.relacl) AS x
WHERE x.privilege_type = 'MAINTAIN' AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
      AND {_OUR_SCHEMAS} AND {_no_member('pg_class', 'c.oid')}
GROUP BY n.nspname, c.relname
UNION ALL
SELECT 'column', format('%I.%I.%I', n.nspname, c.relname, a.attname),
       concat_ws('|', format_type(a.atttypid, a.atttypmod), nullif(a.attcollation, 0)::regcollation, a.attnotnull,
                 a.attidentity, a.attgenerated, pg_get_expr(f.adbin, f.adrelid),
                 CASE WHEN a.attacl IS NOT NULL THEN {_privileges('a.attacl', 'c', 'c.relowner')} END)
FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_attrdef AS f ON f.adrelid = a.attrelid AND f.adnum = a.attnum
WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c') AND c.relpersistence <> 't'
      AND {_OUR_SCHEMAS} AND {_no_member('pg_class', 'c.oid')}
UNION ALL
SELECT 'index', format('%I.%I', n.nspname, c.relname),
       concat_ws('|', pg_get_indexdef(i.indexrelid), i.indisunique, i.indisclustered, i.indisreplident)
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_class AS r ON r.oid = i.indrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE (i.indisvalid OR r.relkind = 'p') AND c.relpersistence <> 't' AND {_OUR_SCHEMAS} AND {_no_member('pg_class', 'r.oid')}
UNION ALL
SELECT 'constraint', format('%s.%I', coalesce(nullif(k.conrelid, 0)::regclass::text, k.contypid::regtype::text), k.conname),
       concat_ws('|', pg_get_constraintdef(k.oid), k.convalidated)
FROM pg_constraint AS k JOIN pg_namespace AS n ON n.oid = k.connamespace
WHERE k.contype NOT IN ('n', 't') AND {_OUR_SCHEMAS}
      AND {_no_member('pg_class', 'k.conrelid')} AND {_no_member('pg_type', 'k.contypid')}
UNION ALL
SELECT 'sequence', format('%I.%I', n.nspname, c.relname),
       concat_ws('|', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle,
                 c.relowner::regrole, {_privileges('c.relacl', 's', 'c.relowner')},
                 (SELECT string_agg(format('%s.%s', d.refobjid::regclass, d.refobjsubid), ',') FROM pg_depend AS d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0))
FROM pg_sequence AS s JOIN pg_class AS c ON c.oid = s.seqrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relpersistence <> 't' AND {_OUR_SCHEMAS} AND {_no_member('pg_class', 'c.oid')}
UNION ALL
SELECT 'function', p.oid::regprocedure::text,
       concat_ws('|', p.prokind, p.proowner::regrole, {_privileges('p.proacl', 'f', 'p.proowner')},
                 CASE WHEN p.prokind <> 'a' THEN pg_get_functiondef(p.oid) END)
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE {_OUR_SCHEMAS} AND {_no_member('pg_proc', 'p.oid')}
UNION ALL
SELECT 'trigger', format('%s.%I', t.tgrelid::regclass, t.tgname), concat_ws('|', pg_get_triggerdef(t.oid), t.tgenabled)
FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE NOT t.tgisinternal AND {_OUR_SCHEMAS} AND {_no_member('pg_class', 'c.oid')}
UNION ALL
SELECT 'policy', format('%s.%I', p.polrelid::regclass, p.polname),
       concat_ws('|', p.polcmd, p.polpermissive,
                 (SELECT string_agg(CASE r.role WHEN 0 THEN 'public' ELSE r.role::regrole::text END, ',' ORDER BY r.role)
                  FROM unnest(p.polroles) AS r(role)),
                 pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE {_OUR_SCHEMAS} AND {_no_member('pg_class', 'c.oid')}
UNION ALL
SELECT 'rule', format('%s.%I', r.ev_class::regclass, r.rulename), concat_ws('|', pg_get_ruledef(r.oid), r.ev_enabled)
FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE r.rulename <> '_RETURN' AND {_OUR_SCHEMAS} AND {_no_member('pg_class', 'c.oid')}
"""

#: What another major spells otherwise or does not have, so that only servers of one major can be compared in it.
SPELLED_BY_MAJOR = ("view", "maintain privilege", "rule")

#: PostgreSQL prints an expression with other casts and parentheses once it has read its own printing back.
_CAST = re.compile(
    r'::(?:"[^"]+"|[a-z_]\w*)(?:\.(?:"[^"]+"|\w+))?(?:\(\d+(?:,\s*\d+)?\))?(?: varying| precision)?(?:\(\d+\))?'
    r"(?: with(?:out)? time zone)?(?:\[\])*"
)


def _digest(definition: str) -> str:
    plain = re.sub(r"[\s()]+", "", _CAST.sub("", definition))
    return hashlib.sha256(plain.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def lift_timeouts(database: Database, until: str = "transaction") -> None:
    """Let no timeout of the server, the database or the role end what is under way, on any major.

    Args:
        database: a session, with a transaction open if only that is meant.
        until: the end of what, ``transaction`` or ``session``.
    """
    database.execute(
        "SELECT set_config(s.name, '0', %s) FROM pg_settings AS s"
        " WHERE s.name IN ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')",
        (until == "transaction",),
    )


def fix_text_form(database: Database) -> None:
    """Make rows look the same as text in every session, and let nothing end the transaction but us.

    To be called first in a transaction. ``row_security`` off turns a policy that would hide rows into an error.
    """
    lift_timeouts(database)
    for name, value in _TEXT_FORM.items():
        database.execute("SELECT set_config(%s, %s, true)", (name, value))


def list_tables(database: Database) -> list[dict[str, Any]]:
    """List every ordinary table of the users: schema, table, the quoted name of both, and its columns with their types if those are built in.

    Partitions count, temporary tables do not.
    """
    return database.rows(_TABLES)


def lock_tables(database: Database, tables: list[dict[str, Any]], timeout: float) -> None:
    """Hold every table against being dropped, altered or truncated until the transaction ends; reads and writes go on.

    Args:
        tables: of `list_tables`.
        timeout: how long to wait for a lock, in seconds.
    """
    if not tables:
        return
    database.execute("SELECT set_config('lock_timeout', %s, true)", (f"{int(timeout * 1000)}ms",))
    names = sql.SQL(", ").join(sql.Identifier(table["schema"], table["table"]) for table in tables)
    database.execute(sql.SQL("LOCK TABLE ONLY {} IN ACCESS SHARE MODE").format(names))


def _values(columns: list[list[str]]) -> sql.Composable:
    return sql.SQL(", ").join(sql.SQL(_FORMS.get(kind, _TEXT)).format(sql.Identifier("t", name)) for name, kind in columns)


def measure_rows(
    database: Database, tables: list[dict[str, Any]], between: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Count the rows of each table and add up the hashes of their contents, in the snapshot of the running transaction.

    The hash of a record is a sum over its columns, so it is hashed once more: else a value could change places with another row's. The
    sum does not depend on the order of rows and changes with any byte of any of them.

    Args:
        tables: of `list_tables`.
        between: called before each table, to look whether it is still worth going on.

    Returns:
        Dicts of name, rows, sum (a decimal number as text). Large objects appear as one more table when there are any.
    """
    measured = []
    for table in tables:
        between()
        row = database.row(
            sql.SQL(
                "SELECT count(*) AS rows, coalesce(sum(hashtextextended(hash_record_extended(ROW({}), 0)::text, 0)), 0)::text AS sum FROM ONLY {} AS t"
            ).format(_values(table["columns"]), sql.Identifier(table["schema"], table["table"]))
        )
        measured.append({"name": table["name"], **row})
    between()
    objects = database.row(
        "SELECT count(*) AS rows,"
        " coalesce(sum(hashtextextended(oid::text || ' ' || encode(sha256(lo_get(oid)), 'hex'), 0)), 0)::text AS sum"
        " FROM pg_largeobject_metadata"
    )
    if objects["rows"]:
        measured.append({"name": _LARGE_OBJECTS, **objects})
    return measured


def read_catalogue(database: Database) -> dict[str, dict[str, str]]:
    """Return kind -> object -> digest of its definition, for everything that a dump brings back besides rows."""
    catalogue: dict[str, dict[str, str]] = {}
    for row in database.rows(_CATALOGUE):
        catalogue.setdefault(row["kind"], {})[row["name"]] = _digest(row["definition"] or "")
    return {kind: dict(sorted(catalogue[kind].items())) for kind in sorted(catalogue)}


def read_sequences(database: Database) -> dict[str, dict[str, Any]]:
    """Return where each used sequence stands: name -> last_value, ascending. Cycling ones tell nothing and are left out."""
    return {
        row["name"]: {"last_value": row["last_value"], "ascending": row["ascending"]} for row in database.rows(_SEQUENCES)
    }


def compare_rows(expected: list[dict[str, Any]], actual: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare two results of `measure_rows` table by table.

    Returns:
        Dicts of name, expected and actual (rows, None where the table does not exist), differing, and problem
        (``rows``, ``content``, ``missing``, ``unexpected`` or None). Tables in the order of their names.
    """
    left, right = ({table["name"]: table for table in tables} for tables in (expected, actual))
    compared = []
    for name in sorted({*left, *right}):
        want, have = left.get(name), right.get(name)
        if not want or not have:
            problem = "missing" if want else "unexpected"
        elif want["rows"] != have["rows"]:
            problem = "rows"
        else:
            problem = "content" if want["sum"] != have["sum"] else None
        compared.append(
            {
                "name": name,
                "expected": want["rows"] if want else None,
                "actual": have["rows"] if have else None,
                "differing": problem is not None,
                "problem": problem,
            }
        )
    return compared


def compare_catalogues(
    expected: dict[str, dict[str, str]], actual: dict[str, dict[str, str]]
) -> list[dict[str, str]]:
    """List the objects that are missing, unexpected or different, as dicts of kind, name, problem."""
    differences = []
    for kind in sorted({*expected, *actual}):
        want, have = expected.get(kind, {}), actual.get(kind, {})
        for name in sorted({*want, *have}):
            if want.get(name) != have.get(name):
                problem = "missing" if name not in have else "unexpected" if name not in want else "different"
                differences.append({"kind": kind, "name": name, "problem": problem})
    return differences


def compare_sequences(
    expected: dict[str, dict[str, Any]], actual: dict[str, dict[str, Any]]
) -> list[dict[str, str]]:
    """List the sequences that stand behind where they stood: they would give out numbers that are taken.

    A dump reads sequences outside its snapshot, so a later position is right and only an earlier one is not.
    """
    behind = []
    for name, was in expected.items():
        now = actual.get(name)
        step = 1 if was["ascending"] else -1
        if now is None or now["last_value"] * step < was["last_value"] * step:
            behind.append({"kind": "sequence", "name": name, "problem": "behind"})
    return behind
