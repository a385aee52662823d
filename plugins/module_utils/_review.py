# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Judging the SQL of schema migrations with PostgreSQL's own parser, before any server sees it.

The rules are those of a change that a live application must survive: only additions, nothing taken away or rewritten, locks
known beforehand. They follow PostgreSQL's documentation of ALTER TABLE and of explicit locking.
"""

from __future__ import annotations

import bisect
from dataclasses import asdict, dataclass, field
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import snake_case

try:
    import pglast
    import pglast.parser
    from pglast import ast
    from pglast.enums import AlterTableType, ConstrType, ObjectType
except ImportError:  # reported by the module, with the interpreter's path
    pglast = None

ERROR, WARNING, INFO, OFF = "error", "warning", "info", "off"
SEVERITIES = (ERROR, WARNING, INFO, OFF)

#: PostgreSQL cuts longer names silently (NAMEDATALEN).
MAXIMUM_NAME_BYTES = 63

#: Rule -> its severity unless the operator says otherwise.
RULES: dict[str, str] = {
    "syntax": ERROR,
    "tables_created": ERROR,
    "old_tables_kept": ERROR,
    "indexes_created": ERROR,
    "foreign_keys_defined": ERROR,
    "drops": ERROR,
    "alters_existing": ERROR,
    "writes_existing": ERROR,
    "writes_new": WARNING,
    "set_null_on_not_null": WARNING,
    "unique_with_nulls": WARNING,
    "long_name": ERROR,
    "locks_existing": WARNING,
    "unindexed_foreign_key": WARNING,
    "outside_transaction": ERROR,
    "not_understood": WARNING,
}

_SET_NULL = "n"


@dataclass
class ReviewFinding:
    """One thing to know about a migration.

    Attributes:
        rule: a name of ``RULES``, or ``squawk-…``.
        severity: ``error``, ``warning`` or ``info``.
        migration: the migration's directory name.
        line: where the statement starts, from 1; 0 for findings about the whole.
        object: table, index, constraint or type, dotted with the column where there is one.
        detail: one sentence.
        lock: the strongest lock taken on a table that the application uses, or empty.
        safe_form: how to do it safely, or empty.
        accepted: the operator's reason for accepting it, or empty.
    """

    rule: str
    severity: str
    migration: str
    line: int
    object: str
    detail: str
    lock: str = ""
    safe_form: str = ""
    accepted: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as a module returns it."""
        return asdict(self)


@dataclass
class _Table:
    """What is known of a table from the migrations read so far."""

    new: bool
    not_null: dict[str, bool] = field(default_factory=dict)
    indexed: list[tuple[str, ...]] = field(default_factory=list)
    foreign_keys: list[tuple[tuple[str, ...], str, str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Expectations:
    """What the reviewed migrations must bring together (the guide's four checks).

    Attributes:
        tables: tables to be created, each with at least one index beside its primary key unless it has none to need.
        kept: tables that must not be dropped.
        references: (table, column, referenced table) of each foreign key to be defined.
    """

    tables: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    references: tuple[tuple[str, str, str], ...] = ()


class Review:
    """Reads migrations in their order, and judges some of them.

    Args:
        expectations: what they must bring.
        severities: rule -> severity, over the defaults.
    """

    def __init__(self, expectations: Expectations, severities: dict[str, str] | None = None) -> None:
        for rule, severity in (severities or {}).items():
            if rule not in RULES and not rule.startswith("squawk-"):
                raise UnifiedUserError(f"read severity of rule {rule}", "there is no such rule", f"Known are {', '.join(RULES)}")
            if severity not in SEVERITIES:
                raise UnifiedUserError(f"read severity of rule {rule}", f"{severity} is none", f"Known are {', '.join(SEVERITIES)}")
        self.expectations = expectations
        self.severities = {**RULES, **(severities or {})}
        self.findings: list[ReviewFinding] = []
        self.tables: dict[str, _Table] = {}
        self.dropped: set[str] = set()
        self._migration, self._line, self._judging = "", 0, False

    def read(self, migration: str, text: str, judge: bool) -> None:
        """Read one migration.

        Args:
            migration: its directory name.
            text: the SQL.
            judge: whether to judge it, or only to learn what exists after it.
        """
        self._migration, self._line, self._judging = migration, 0, judge
        starts = [0] + [position + 1 for position, character in enumerate(text) if character == "\n"]
        try:
            statements = pglast.parse_sql(text)
            self._long_names(text, starts)
        except pglast.parser.ParseError as error:
            position = error.args[1] if len(error.args) > 1 else 0
            self._line = bisect.bisect_right(starts, position)
            self._find("syntax", "", f"PostgreSQL cannot parse it: {error.args[0]}")
            return
        for raw in statements:
            self._line = bisect.bisect_right(starts, self._first_word(text, raw.stmt_location))
            handler = getattr(self, f"_on_{type(raw.stmt).__name__}", self._on_anything_else)
            handler(raw.stmt)

    @staticmethod
    def _first_word(text: str, position: int) -> int:
        """Skip the white space and comments that the parser counts to a statement."""
        while position < len(text):
            if text[position].isspace():
                position += 1
            elif text.startswith("--", position):
                end = text.find("\n", position)
                position = len(text) if end < 0 else end
            else:
                break
        return position

    def finish(self) -> list[ReviewFinding]:
        """Judge what the migrations bring together, and return every finding, the gravest first."""
        self._migration, self._line, self._judging = "", 0, True
        for table in self.expectations.tables:
            known = self.tables.get(table)
            if not known or not known.new:
                self._find("tables_created", table, "this table is to be created, and is not")
            elif not known.indexed:
                self._find("indexes_created", table, "this table gets no key and no index")
        for table, column, referenced in self.expectations.references:
            known = self.tables.get(table)
            spellings = ((column,), (snake_case(column),))
            if known and not any(key[0] in spellings and key[1] == referenced for key in known.foreign_keys):
                self._find("foreign_keys_defined", f"{table}.{column}", f"there is no foreign key to {referenced}")
        for table in self.expectations.kept:
            if table in self.dropped:
                self._find("old_tables_kept", table, "this table is dropped, and with it the way back")
        for name, table in self.tables.items():
            for columns, target, migration, line in table.foreign_keys if table.new else ():
                if not any(index[: len(columns)] == columns for index in table.indexed):
                    self._migration, self._line = migration, line
                    self._find(
                        "unindexed_foreign_key", f"{name}.{', '.join(columns)}",
                        f"no index begins with it: deleting from {target} reads the whole table for every row",
                        safe_form="Add an @@index on it in schema.prisma",
                    )
        return sorted(self.findings, key=lambda finding: (SEVERITIES.index(finding.severity), finding.migration, finding.line, finding.rule))

    def _find(self, rule: str, target: str, detail: str, lock: str = "", safe_form: str = "") -> None:
        severity = self.severities[rule]
        if self._judging and severity != OFF:
            self.findings.append(ReviewFinding(rule, severity, self._migration, self._line, target, detail, lock, safe_form))

    def _long_names(self, text: str, starts: list[int]) -> None:
        for token in pglast.parser.scan(text):
            if token.name != "IDENT":
                continue
            name = text[token.start : token.end + 1].strip('"').replace('""', '"')
            if len(name.encode()) > MAXIMUM_NAME_BYTES:
                self._line = bisect.bisect_right(starts, token.start)
                self._find("long_name", name, f"{len(name.encode())} bytes; PostgreSQL cuts it after {MAXIMUM_NAME_BYTES}",
                           safe_form="Give it a shorter name with map: in schema.prisma")

    def _is_new(self, table: str) -> bool:
        return table in self.tables and self.tables[table].new

    def _table(self, name: str) -> _Table:
        return self.tables.setdefault(name, _Table(new=False))

    # Statements that only add.

    def _on_CreateStmt(self, statement) -> None:
        name = statement.relation.relname
        table = self.tables[name] = _Table(new=self._judging)
        for element in statement.tableElts or ():
            if isinstance(element, ast.ColumnDef):
                self._column(name, table, element)
            elif isinstance(element, ast.Constraint):
                self._constraint(name, element)

    def _column(self, name: str, table: _Table, column) -> None:
        kinds = [constraint.contype for constraint in column.constraints or ()]
        table.not_null[column.colname] = any(kind in (ConstrType.CONSTR_NOTNULL, ConstrType.CONSTR_PRIMARY) for kind in kinds)
        for constraint in column.constraints or ():
            self._constraint(name, constraint, (column.colname,))

    def _on_CreateEnumStmt(self, statement) -> None:
        """A new type harms nobody."""

    _on_CreateSchemaStmt = _on_CommentStmt = _on_CreateEnumStmt

    def _on_IndexStmt(self, statement) -> None:
        table = statement.relation.relname
        columns = tuple(element.name for element in statement.indexParams if element.name)
        if not statement.whereClause and len(columns) == len(statement.indexParams):
            self._table(table).indexed.append(columns)
        if statement.unique and not statement.nulls_not_distinct:
            self._unique(table, statement.idxname, columns)
        if statement.concurrent:
            self._find("outside_transaction", statement.idxname or table, "CREATE INDEX CONCURRENTLY cannot run in a migration's transaction",
                       safe_form="Drop CONCURRENTLY where the table is new, else create the index by hand before the migration")
        elif not self._is_new(table):
            self._find("locks_existing", f"{table}.{statement.idxname}", "writers wait while the index is built", "SHARE",
                       "Create it CONCURRENTLY by hand before the migration, and mark the migration as applied")

    # Constraints, in a new table or added to one.

    def _constraint(self, table: str, constraint, columns: tuple[str, ...] = ()) -> None:
        known = self._table(table)
        columns = columns or tuple(key.sval for key in constraint.keys or ())
        if constraint.contype in (ConstrType.CONSTR_PRIMARY, ConstrType.CONSTR_UNIQUE):
            known.indexed.append(columns)
            if constraint.contype == ConstrType.CONSTR_PRIMARY:
                known.not_null.update(dict.fromkeys(columns, True))
            elif not constraint.nulls_not_distinct:
                self._unique(table, constraint.conname, columns)
        elif constraint.contype == ConstrType.CONSTR_FOREIGN:
            self._foreign_key(table, constraint, columns if not constraint.fk_attrs else tuple(key.sval for key in constraint.fk_attrs))

    def _foreign_key(self, table: str, constraint, columns: tuple[str, ...]) -> None:
        known, target = self._table(table), constraint.pktable.relname
        known.foreign_keys.append((columns, target, self._migration, self._line))
        contradicting = [column for column in columns if known.not_null.get(column)]
        if constraint.fk_del_action == _SET_NULL and contradicting:
            self._find("set_null_on_not_null", f"{table}.{', '.join(contradicting)}",
                       f"NOT NULL, and ON DELETE SET NULL: a row of {target} that it refers to can never be deleted",
                       safe_form="Make the relation optional, or onDelete: Restrict or Cascade")
        if not self._is_new(target) and not constraint.skip_validation:
            self._find("locks_existing", f"{table} → {target}", f"writers of {target} wait while the key is added",
                       "SHARE ROW EXCLUSIVE", "Run it with a lock_timeout and retries, as prisma_migration does; the new table is empty, so it is short")

    def _unique(self, table: str, name: str | None, columns: tuple[str, ...]) -> None:
        known = self._table(table)
        nullable = [column for column in columns if known.not_null.get(column) is False]
        if nullable and len(columns) > 1:
            self._find("unique_with_nulls", f"{table}.{name or ', '.join(columns)}",
                       f"rows with NULL in {', '.join(nullable)} are all distinct, so it does not stop doubles of them",
                       safe_form="NULLS NOT DISTINCT (PostgreSQL 15 and later), or a partial unique index WHERE the column IS NULL")

    # Statements that change what is there.

    def _on_AlterTableStmt(self, statement) -> None:
        name = statement.relation.relname
        if statement.objtype != ObjectType.OBJECT_TABLE:
            self._on_anything_else(statement)
            return
        for command in statement.cmds:
            if command.subtype == AlterTableType.AT_AddConstraint:
                self._constraint(name, command.def_)
            if command.subtype == AlterTableType.AT_AddColumn:
                self._column(name, self._table(name), command.def_)
            if not self._is_new(name):
                self._altered(name, command)

    def _altered(self, table: str, command) -> None:
        target = f"{table}.{command.name or getattr(command.def_, 'colname', None) or getattr(command.def_, 'conname', None) or ''}".rstrip(".")
        what, lock, safe = {
            AlterTableType.AT_DropColumn: ("a column is dropped, with its values", "ACCESS EXCLUSIVE", "Drop it in a later release, after contract"),
            AlterTableType.AT_AlterColumnType: ("the type of a column changes, which may rewrite the table", "ACCESS EXCLUSIVE",
                                                "Add a new column, copy in batches, switch, drop the old one later"),
            AlterTableType.AT_SetNotNull: ("every row is read under the lock", "ACCESS EXCLUSIVE",
                                           "ADD CONSTRAINT … CHECK (… IS NOT NULL) NOT VALID, VALIDATE, then SET NOT NULL"),
            AlterTableType.AT_AddColumn: ("a column is added, which the running release does not know", "ACCESS EXCLUSIVE",
                                          "Accept it when it is nullable or has a constant default"),
            AlterTableType.AT_AddConstraint: ("a constraint is added, and every row is checked under the lock", "ACCESS EXCLUSIVE",
                                              "Add it NOT VALID, and VALIDATE it in a migration of its own"),
            AlterTableType.AT_DropConstraint: ("a constraint is dropped, and what it kept out may come in", "ACCESS EXCLUSIVE", "Leave it until contract"),
        }.get(command.subtype, ("the table is altered", "ACCESS EXCLUSIVE", "Leave tables of the running release as they are until contract"))
        rule = "drops" if command.subtype in (AlterTableType.AT_DropColumn, AlterTableType.AT_DropConstraint) else "alters_existing"
        self._find(rule, target, what, lock, safe)

    def _on_RenameStmt(self, statement) -> None:
        table = statement.relation.relname if statement.relation else ""
        if not self._is_new(table):
            target = f"{table}.{statement.subname}" if statement.subname else table
            self._find("alters_existing", target, f"it is renamed to {statement.newname}, under the running release's feet",
                       "ACCESS EXCLUSIVE", "Rename with @map in schema.prisma only")

    def _on_AlterEnumStmt(self, statement) -> None:
        name = statement.typeName[-1].sval
        if statement.oldVal:
            self._find("alters_existing", name, "a value of the type is renamed", safe_form="Add the new value, and move the rows later")
        else:
            self._find("locks_existing", name, "a value is added, which cannot be used in the same transaction and never be taken away",
                       safe_form="Put it into a migration of its own")

    def _on_DropStmt(self, statement) -> None:
        for item in statement.objects:
            parts = item if isinstance(item, tuple) else getattr(item, "names", (item,))
            name = ".".join(part.sval for part in parts if hasattr(part, "sval"))
            if statement.removeType == ObjectType.OBJECT_TABLE:
                table = name.rpartition(".")[2]
                self.tables.pop(table, None)
                if self._judging:
                    self.dropped.add(table)
            kind = ObjectType(statement.removeType).name.replace("OBJECT_", "").lower()
            self._find("drops", name, f"a {kind} is dropped", "ACCESS EXCLUSIVE", "Drop it in a later release, after contract")
            if statement.concurrent:
                self._find("outside_transaction", name, "DROP … CONCURRENTLY cannot run in a migration's transaction")

    def _on_TruncateStmt(self, statement) -> None:
        for relation in statement.relations:
            self._writes(relation.relname, "the table is emptied", "ACCESS EXCLUSIVE")

    # Data.

    def _writes(self, table: str, what: str, lock: str = "ROW EXCLUSIVE") -> None:
        if self._is_new(table):
            self._find("writes_new", table, f"{what}: data belongs into data_migration, which proves it", safe_form="Leave the table empty")
        else:
            self._find("writes_existing", table, what, lock, "Leave rows of the running release alone; data_migration copies them")

    def _on_InsertStmt(self, statement) -> None:
        self._writes(statement.relation.relname, "rows are inserted")

    def _on_UpdateStmt(self, statement) -> None:
        self._writes(statement.relation.relname, "rows are updated")

    def _on_DeleteStmt(self, statement) -> None:
        self._writes(statement.relation.relname, "rows are deleted")

    def _on_MergeStmt(self, statement) -> None:
        self._writes(statement.relation.relname, "rows are merged")

    def _on_CopyStmt(self, statement) -> None:
        if statement.is_from and statement.relation:
            self._writes(statement.relation.relname, "rows are copied in")

    # The rest.

    def _on_VacuumStmt(self, statement) -> None:
        self._find("outside_transaction", "", "VACUUM cannot run in a migration's transaction", safe_form="Leave it to autovacuum")

    def _on_TransactionStmt(self, statement) -> None:
        self._find("outside_transaction", "", "it begins or ends a transaction of its own, so a failure would leave half of it",
                   safe_form="Leave transactions to the tool that deploys it")

    def _on_LockStmt(self, statement) -> None:
        for relation in statement.relations:
            self._find("locks_existing", relation.relname, "the table is locked until the migration ends", "as named",
                       "Leave locks to the statements that need them")

    def _on_VariableSetStmt(self, statement) -> None:
        """A setting of the session; it ends with it."""

    def _on_anything_else(self, statement) -> None:
        self._find("not_understood", type(statement).__name__.replace("Stmt", ""), "no rule knows this kind of statement; read it yourself")
