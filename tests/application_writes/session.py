# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""An application's session: statements in logical names, on any layout, remembered for a second database.

A write chooses its targets from what the database holds at that moment, but what it then executes is kept as plain
statements, so that a database without sync can be given the very same ones.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg2

from tests.oracle import database as oracle
from tests.oracle.model import Policies, Row, identity_key
from tests.oracle.schema import Layout, quote

ISOLATION_LEVELS = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")


@dataclass(frozen=True)
class Expression:
    """A value that the database computes, such as ``lower(email)``; ``{name}`` stands for the column of that name."""

    text: str


@dataclass(frozen=True)
class Statement:
    """What was sent to the database: a statement with its parameters, or the rows of a COPY."""

    text: str
    parameters: tuple = ()
    copied: str | None = None

    def send(self, connection: Any) -> None:
        """Execute it on any connection."""
        with connection.cursor() as cursor:
            if self.copied is None:
                cursor.execute(self.text, self.parameters)
            else:
                cursor.copy_expert(self.text, io.StringIO(self.copied))


@dataclass
class Written:
    """What one transaction wrote: (table, key) -> the columns it gave, or None where it deleted the row."""

    rows: dict[tuple[str, tuple], Row | None] = field(default_factory=dict)

    def note(self, table: str, key: tuple, values: Row | None) -> None:
        """Add a row's values to what is known of it."""
        before = self.rows.get((table, key))
        self.rows[table, key] = values if values is None or before is None else {**before, **values}

    def forget(self, table: str, key: tuple, names: Iterable[str]) -> None:
        """Take back what is known of some columns: the database computed them."""
        self.rows[table, key] = {name: value for name, value in self.rows[table, key].items() if name not in names}

    def tables(self) -> set[str]:
        """Every table with a row that was written."""
        return {table for table, _key in self.rows}


def key_columns(table: str) -> tuple[str, ...]:
    """The logical columns of a table's primary key."""
    return ("A", "B") if table.startswith("_") else ("id",)


def copy_text(value: Any) -> str:
    """A text as COPY's text format has it; None is NULL."""
    if value is None:
        return r"\N"
    return str(value).replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n").replace("\r", r"\r")


class Application:
    """One connection of an application; not in autocommit, `transaction` begins and ends.

    Attributes:
        executed: the statements of the current or last transaction.
        written: the rows of the current or last transaction, for a test to look at afterwards.
    """

    def __init__(self, connection: Any, layout: Layout, policies: Policies) -> None:
        self.connection, self.layout, self.policies = connection, layout, policies
        self.executed: list[Statement] = []
        self.written = Written()
        self._sending = True

    @contextlib.contextmanager
    def transaction(self, isolation: str | None = None) -> Iterator[None]:
        """BEGIN … COMMIT, or ROLLBACK on any error; forgets what was executed before."""
        self.executed, self.written = [], Written()
        with self.connection.cursor() as cursor:
            cursor.execute("BEGIN" + (f" ISOLATION LEVEL {isolation}" if isolation else ""))
            try:
                yield
                cursor.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(psycopg2.Error):
                    cursor.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def rolled_back(self) -> Iterator[None]:
        """A savepoint that everything inside is rolled back to."""
        before = dict(self.written.rows)
        self._send(Statement("SAVEPOINT draft"))
        yield
        self._send(Statement("ROLLBACK TO SAVEPOINT draft"))
        self.written.rows = before

    @contextlib.contextmanager
    def only_without_sync(self) -> Iterator[None]:
        """Statements that a database without sync needs to end as one with sync; here they are only remembered."""
        self._sending, before = False, dict(self.written.rows)
        try:
            yield
        finally:
            self._sending, self.written.rows = True, before

    def key(self, email: str) -> str:
        """The identity key, as an application that looks people up by address would have it."""
        return identity_key(email, self.policies)

    def has(self, table: str, column: str) -> bool:
        """Whether this application's table has the column."""
        return column in self.layout.shape.columns(table)

    def rows(self, table: str, **where: Any) -> list[Row]:
        """Rows of a table, in an order that does not depend on the database."""
        found = [row for row in oracle.read_rows(self.connection, self.layout, table) if all(row[name] == value for name, value in where.items())]
        return sorted(found, key=lambda row: tuple(row[name].encode() for name in key_columns(table)))

    def insert(self, table: str, *rows: Row) -> None:
        """Insert rows, in one statement; columns that a row lacks are left to the database."""
        if not rows:
            return
        names = list(rows[0])
        columns = ", ".join(quote(self.layout.actual(table, name)) for name in names)
        values = ", ".join("(" + ", ".join(["%s"] * len(names)) + ")" for _row in rows)
        parameters = tuple(self._parameter(table, name, row[name]) for row in rows for name in names)
        self._send(Statement(f"INSERT INTO {self._relation(table)} ({self._plain(columns)}) VALUES {values}", parameters))
        for row in rows:
            self.written.note(table, tuple(row[name] for name in key_columns(table)), dict(row))

    def copy(self, table: str, rows: list[Row]) -> None:
        """Insert rows by COPY; only columns of text, moments, numbers and enums are given."""
        kinds = ("text", "moment", "integer", "float", "BookingStatus", "UserRole")
        names = [name for name, column in self.layout.shape.columns(table).items() if column.kind in kinds]
        lines = ["\t".join(copy_text(self._parameter(table, name, row[name])) for name in names) for row in rows]
        columns = ", ".join(quote(self.layout.actual(table, name)) for name in names)
        self._send(Statement(f"COPY {self.layout.relation(table)} ({columns}) FROM STDIN", (), "".join(line + "\n" for line in lines)))
        for row in rows:
            self.written.note(table, tuple(row[name] for name in key_columns(table)), {name: row[name] for name in names})

    def update(self, table: str, values: Row, **where: Any) -> None:
        """Update the rows that have the given values (all rows, where none are given)."""
        assignments, parameters = [], []
        for name, value in values.items():
            column = self._plain(quote(self.layout.actual(table, name)))
            if isinstance(value, Expression):
                assignments.append(f"{column} = {self._plain(value.text.format_map(_Columns(self.layout, table)))}")
            else:
                assignments.append(f"{column} = %s")
                parameters.append(self._parameter(table, name, value))
        condition, more = self._condition(table, where)
        known = {name: value for name, value in values.items() if not isinstance(value, Expression)}
        for key in self._send_returning(table, f"UPDATE {self._relation(table)} SET {', '.join(assignments)}{condition}", (*parameters, *more)):
            self.written.note(table, key, known)
            self.written.forget(table, key, values.keys() - known.keys())

    def upsert(self, table: str, row: Row, *, conflict: str, values: Row) -> None:
        """INSERT … ON CONFLICT DO UPDATE, as Prisma's upsert sends it."""
        names = list(row)
        columns = self._plain(", ".join(quote(self.layout.actual(table, name)) for name in names))
        target = self._plain(quote(self.layout.actual(table, conflict)))
        changes = ", ".join(f"{self._plain(quote(self.layout.actual(table, name)))} = %s" for name in values)
        text = f"INSERT INTO {self._relation(table)} ({columns}) VALUES ({', '.join(['%s'] * len(names))}) ON CONFLICT ({target}) DO UPDATE SET {changes}"
        parameters = [self._parameter(table, name, value) for name, value in (*row.items(), *values.items())]
        own = tuple(row[name] for name in key_columns(table))
        for key in self._send_returning(table, text, tuple(parameters)):
            self.written.note(table, key, dict(row) if key == own else values)

    def delete(self, table: str, **where: Any) -> None:
        """Delete the rows that have the given values (all rows, where none are given)."""
        condition, parameters = self._condition(table, where)
        for key in self._send_returning(table, f"DELETE FROM {self._relation(table)}{condition}", parameters):
            self.written.note(table, key, None)

    def execute(self, text: str, parameters: tuple = ()) -> None:
        """Any other statement; the rows it writes are not noted."""
        self._send(Statement(text, parameters))

    @staticmethod
    def _plain(text: str) -> str:
        """A text as part of a statement that has parameters."""
        return text.replace("%", "%%")

    def _relation(self, table: str) -> str:
        return self._plain(self.layout.relation(table))

    def _parameter(self, table: str, name: str, value: Any) -> Any:
        return oracle.parameter(self.layout.shape.columns(table)[name], value)

    def _condition(self, table: str, where: Row) -> tuple[str, tuple]:
        parts, parameters = [], []
        for name, value in where.items():
            column = self._plain(quote(self.layout.actual(table, name)))
            if value is None:
                parts.append(f"{column} IS NULL")
            elif isinstance(value, (list, tuple)):
                parts.append(f"{column} = ANY(%s)")
                parameters.append([self._parameter(table, name, one) for one in value])
            else:
                parts.append(f"{column} = %s")
                parameters.append(self._parameter(table, name, value))
        return (" WHERE " + " AND ".join(parts) if parts else ""), tuple(parameters)

    def _send(self, statement: Statement) -> None:
        self.executed.append(statement)
        if self._sending:
            statement.send(self.connection)

    def _send_returning(self, table: str, text: str, parameters: tuple) -> list[tuple]:
        key = ", ".join(self._plain(quote(self.layout.actual(table, name))) for name in key_columns(table))
        statement = Statement(f"{text} RETURNING {key}", parameters)
        self.executed.append(statement)
        if not self._sending:
            return []
        with self.connection.cursor() as cursor:
            cursor.execute(statement.text, statement.parameters)
            return cursor.fetchall()


class _Columns(dict):
    """Logical column -> its quoted name, for `str.format_map`."""

    def __init__(self, layout: Layout, table: str) -> None:
        super().__init__()
        self._layout, self._table = layout, table

    def __missing__(self, name: str) -> str:
        return quote(self._layout.actual(self._table, name))
