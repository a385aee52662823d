# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tables and columns as a database really has them, resolved against the mapping (the contract, section 1)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import TABLES, Names, snake_case
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import compose

_COLUMNS = """
SELECT c.relname AS "table", a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type,
       format_type(a.atttypid, NULL) AS base_type, t.typcategory AS category, a.attnotnull AS not_null,
       CASE WHEN a.attgenerated = '' THEN pg_get_expr(d.adbin, d.adrelid) END AS "default",
       a.attgenerated <> '' OR a.attidentity = 'a' AS generated, a.attidentity <> '' AS identity
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE n.nspname = %s AND c.relname = ANY (%s) AND c.relkind IN ('r', 'p')
ORDER BY c.relname, a.attnum
"""

#: Text types whose values survive an assignment to unlimited text.
_UNLIMITED_TEXT = ("text", "character varying")


@dataclass(frozen=True)
class Column:
    """One actual column: its name, its type with and without modifier, and how it fills itself."""

    name: str
    type: str
    base_type: str
    category: str
    not_null: bool
    default: str | None
    generated: bool
    identity: bool

    @property
    def is_text(self) -> bool:
        """Whether blank can mean more than NULL here."""
        return self.category == "S"

    @property
    def is_array(self) -> bool:
        """Whether values are arrays, which cannot be elements of one."""
        return self.category == "A"

    def takes(self, source: Column) -> bool:
        """Whether every value of the source column arrives here as it stands."""
        if self.type == source.type:
            return True
        return self.type in _UNLIMITED_TEXT and source.base_type in ("text", "character varying")


@dataclass(frozen=True)
class Problem:
    """Something about a column that stops the migration, or that a person should know.

    Attributes:
        severity: ``blocker`` or ``warning``.
        table: actual table name.
        column: logical name for blockers, actual name for warnings.
        cause: one clause.
    """

    severity: str
    table: str
    column: str
    cause: str


@dataclass
class Relation:
    """A logical table and what stands for it in the database.

    Attributes:
        logical: the mapping's name.
        name: the actual name.
        columns: actual columns by name; empty when the table does not exist.
        names: logical column -> actual column, for the listed ones that are there.
    """

    logical: str
    name: str
    columns: dict[str, Column] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        """Whether the table is there."""
        return bool(self.columns)

    @property
    def unlisted(self) -> list[str]:
        """Actual columns that no logical column stands for."""
        listed = set(self.names.values())
        return [name for name in self.columns if name not in listed]

    def find(self, name: str, logical: str) -> str | None:
        """Find the column for an actual name of the other side, or for its logical name.

        Args:
            name: the other side's actual name, tried first.
            logical: the logical name; spelled camelCase or snake_case here.
        """
        if logical in self.names:
            return self.names[logical]
        if name in self.unlisted:
            return name
        matches = [column for column in self.unlisted if snake_case(column) == snake_case(logical)]
        return matches[0] if len(matches) == 1 else None

    def logical_name(self, actual: str) -> str:
        """Return the logical name of an actual column; an unlisted one is its own."""
        return next((logical for logical, name in self.names.items() if name == actual), actual)


@dataclass(frozen=True)
class PersonColumn:
    """A column of ``users`` that follows the rule for ``name``.

    Attributes:
        target: the column of ``users``.
        sources: logical people table -> actual column there.
    """

    target: Column
    sources: dict[str, str]


class Schema:
    """The resolved tables of one database schema; composes SQL that names them.

    Args:
        name: the database schema.
        relations: by logical name, one for each of the mapping's tables.
        problems: what resolving found.
    """

    def __init__(self, name: str, relations: dict[str, Relation], problems: list[Problem]) -> None:
        self.name = name
        self.relations = relations
        self.problems = problems

    def __getitem__(self, logical: str) -> Relation:
        return self.relations[logical]

    def table(self, logical: str):
        """Return the qualified identifier of a logical table."""
        return sql.Identifier(self.name, self.relations[logical].name)

    def column(self, logical: str, column: str):
        """Return the identifier of a logical column.

        Raises:
            KeyError: an optional column that this database lacks.
        """
        return sql.Identifier(self.relations[logical].names[column])

    def compose(self, template: str, **parts):
        """Fill ``{table}`` and ``{table.column}`` of a template with identifiers.

        Args:
            template: SQL whose braces hold logical names.
            parts: further names: a string stands for the logical table of that name, anything else for itself.
        """

        def find(name: str):
            if not isinstance(parts.get(name, ""), str):
                return parts[name]
            table, dot, column = name.partition(".")
            table = parts.get(table, table)
            return self.column(table, column) if dot else self.table(table)

        return compose(template, find)

    def require(self) -> None:
        """Raise for the first thing that is missing or contradictory.

        Raises:
            UnifiedUserError: names table and column.
        """
        blockers = [problem for problem in self.problems if problem.severity == "blocker"]
        if blockers:
            first = blockers[0]
            more = f" (and {len(blockers) - 1} more)" if len(blockers) > 1 else ""
            where = f"column {first.column} of table {first.table}" if first.column else f"table {first.table}"
            raise UnifiedUserError(
                f"resolve {where} in schema {self.name}",
                first.cause + more,
                "Deploy the schema migrations (role schema_deploy), or name it in unified_user_mapping or unified_user_schema",
                blockers=[vars(problem) for problem in blockers],
            )

    def row_copy(self, target: str) -> list[tuple[str, str]]:
        """Return (target column, source column) pairs, actual names, that a row for row copy carries as they stand.

        Args:
            target: a logical table of ``ROW_COPIES``.
        """
        source, ruled = _mapping.ROW_COPIES[target]
        left, right = self.relations[source], self.relations[target]
        pairs = []
        for name, column in right.columns.items():
            logical = right.logical_name(name)
            found = None if logical in ruled or column.generated else left.find(name, logical)
            if found and column.takes(left.columns[found]):
                pairs.append((name, found))
        return pairs

    def person_columns(self) -> list[PersonColumn]:
        """Return the columns of ``users`` that follow the rule for ``name`` and have a source."""
        users = self.relations["users"]
        found = []
        for name, column in users.columns.items():
            logical = users.logical_name(name)
            if logical in _mapping.USER_RULES or column.generated:
                continue
            sources = {}
            for table in _mapping.PEOPLE:
                source = self.relations[table].find(name, logical)
                if source and column.takes(self.relations[table].columns[source]):
                    sources[table] = source
            if sources:
                found.append(PersonColumn(column, sources))
        return found

    def carried_columns(self) -> dict[str, list[str]]:
        """Return logical table -> actual columns that the sync reads or writes, of the tables that are there."""
        carried = {
            table: set(relation.names.values()) for table, relation in self.relations.items()
            if relation.exists and not TABLES[table].starts_empty and TABLES[table].side != _mapping.SHARED
        }
        for table, columns in _mapping.REFERRED_TO.items():
            names = self.relations[table].names
            carried[table] = {names[column] for column in columns if column in names}
        for target, copied in _mapping.ROW_COPIES.items():
            for right, left in self.row_copy(target):
                carried[target].add(right)
                carried[copied[0]].add(left)
        for column in self.person_columns():
            carried["users"].add(column.target.name)
            for table, name in column.sources.items():
                carried[table].add(name)
        return {table: sorted(columns) for table, columns in carried.items() if columns}

    def without_destination(self) -> list[tuple[str, str, str]]:
        """Return (logical table, actual column, why) of legacy columns whose values go nowhere."""
        lost = []
        carried = {table: {column.sources[table] for column in self.person_columns() if table in column.sources}
                   for table in _mapping.PEOPLE}
        for table in _mapping.PEOPLE:
            ruled = {self.relations[table].names.get(name) for name in ("id", "email", "emailVerified", "password", "createdAt", "updatedAt")}
            lost += self._lost(table, "users", carried[table] | ruled)
        for target, (source, ruled) in _mapping.ROW_COPIES.items():
            taken = {pair[1] for pair in self.row_copy(target)} | {self.relations[source].names.get(name) for name in ruled}
            lost += self._lost(source, target, taken)
        return lost

    def _lost(self, source: str, target: str, taken: set) -> list[tuple[str, str, str]]:
        left, right = self.relations[source], self.relations[target]
        lost: list[tuple[str, str, str]] = []
        if not right.exists:  # nobody can tell yet
            return lost
        for name in left.columns:
            if name in taken:
                continue
            other = right.find(name, left.logical_name(name))
            why = f"{right.name} has no such column"
            if other:
                why = f"it is {left.columns[name].type} here and {right.columns[other].type} in {right.name}"
                if right.logical_name(other) in _mapping.USER_RULES and target == "users":
                    why = f"{right.name}.{other} is filled by a rule of its own"
                elif right.columns[other].generated:
                    continue
            lost.append((source, name, why))
        return lost


def resolve_names(columns: list[str], logical: str, overrides: dict[str, str]) -> tuple[dict[str, str], list[Problem]]:
    """Resolve the listed columns of one table: the exact name, else its snake_case form (the contract, section 1).

    Args:
        columns: the actual column names.
        logical: the logical table.
        overrides: logical column -> actual column, from the operator's mapping.

    Returns:
        The resolved names, and blockers for required columns that are missing or there under both names. The
        problems carry the logical table's name.
    """
    names, problems = {}, []
    table = TABLES[logical]
    claimed = set(overrides.values())
    for column in table.columns:
        if column in overrides:
            found = [overrides[column]] if overrides[column] in columns else []
        else:
            found = [name for name in dict.fromkeys((column, snake_case(column))) if name in columns and name not in claimed]
        if len(found) == 1:
            names[column] = found[0]
        elif len(found) > 1:
            problems.append(Problem("blocker", logical, column, f"it is there under both names, {found[0]} and {found[1]}"))
        elif column in overrides:
            problems.append(Problem("blocker", logical, column, f"unified_user_mapping calls it {overrides[column]}, which does not exist"))
        elif column in table.required:
            tried = " or ".join(dict.fromkeys((column, snake_case(column))))
            problems.append(Problem("blocker", logical, column, f"there is no column {tried}"))
    return names, problems


def read_schema(database: Database, schema: str = "public", names: Names | None = None) -> Schema:
    """Read the catalogue and resolve every logical table and column.

    Nothing is raised for what is missing: it is in the result's ``problems``; call ``require()`` to insist.

    Args:
        database: an open session.
        schema: the database schema that holds the application's tables.
        names: the operator's overriding names.
    """
    names = names or Names()
    actual = {logical: names.table(logical) for logical in TABLES}
    # With only pg_catalog on the path the server spells types and defaults with their schema.
    with contextlib.nullcontext() if database.in_transaction else database.transaction("READ ONLY"):
        database.execute("SET LOCAL search_path = pg_catalog")
        columns: dict[str, dict[str, Column]] = {}
        for row in database.rows(_COLUMNS, (schema, list(actual.values()))):
            table = columns.setdefault(row.pop("table"), {})
            table[row["name"]] = Column(**row)
    relations, problems = {}, []
    for logical, name in actual.items():
        relation = relations[logical] = Relation(logical, name, columns.get(name, {}))
        if not relation.exists:
            if not TABLES[logical].starts_empty:
                problems.append(Problem("blocker", name, "", f"{TABLES[logical].side} table {name} does not exist"))
            continue
        relation.names, found = resolve_names(list(relation.columns), logical, names.columns.get(logical, {}))
        problems += [Problem(problem.severity, name, problem.column, problem.cause) for problem in found]
    resolved = Schema(schema, relations, problems)
    if not problems:
        problems += _type_problems(resolved) + _unfilled(resolved)
    return resolved


def _type_problems(schema: Schema) -> list[Problem]:
    """Find listed columns that both sides have with types a value would not survive."""
    problems = []
    pairs = [(source, target) for target, (source, unused) in _mapping.ROW_COPIES.items()]
    pairs += [(table, "users") for table in _mapping.PEOPLE]
    for source, target in pairs:
        left, right = schema[source], schema[target]
        for logical in TABLES[source].required:
            if logical in TABLES[target].required and not right.columns[right.names[logical]].takes(left.columns[left.names[logical]]):
                problems.append(
                    Problem(
                        "blocker", left.name, logical,
                        f"it is {left.columns[left.names[logical]].type} here and"
                        f" {right.columns[right.names[logical]].type} in {right.name}",
                    )
                )
    return problems


def _unfilled(schema: Schema) -> list[Problem]:
    """Find columns of the unified tables that insist on a value and that nothing fills."""
    carried = {target: {pair[0] for pair in schema.row_copy(target)} for target in _mapping.ROW_COPIES}
    problems = []
    for logical in _mapping.FILLED:
        relation = schema[logical]
        for name, column in relation.columns.items():
            if not column.not_null or column.default is not None or column.generated or column.identity:
                continue
            if relation.logical_name(name) in TABLES[logical].columns or name in carried.get(logical, ()):
                continue
            # A person without any source row for it gets the default, and there is none.
            problems.append(Problem("blocker", relation.name, name, "it is NOT NULL, has no default, and no legacy column fills it"))
    return problems
