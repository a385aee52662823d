# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Between the oracle's dicts and a real database: writing, reading back, comparing.

Every connection given to these functions is psycopg2's and in autocommit; `prepare` makes it read
and write moments exactly, whatever time zone and date style the database prefers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from psycopg2 import BINARY, extensions, extras

from tests.oracle.model import Legacy, Policies, Projection, Row
from tests.oracle.moments import read_moment, show_moment
from tests.oracle.schema import LEGACY, UNIFIED, Column, Layout, Shape, quote, show

_READ_MOMENT = extensions.new_type((1114,), "MOMENT", lambda text, cursor: None if text is None else read_moment(text))

# A JSON column keeps its text to the letter, which is what must arrive; JSONB only its meaning.
_READ_PLAIN_JSON = extensions.new_type((114,), "PLAIN_JSON", lambda text, cursor: text)
_READ_BYTES = extensions.new_type((17,), "BYTES", lambda text, cursor: None if text is None else bytes(BINARY(text, cursor)))

# Parents before children, so that rows can go in with the foreign keys in place.
_WRITE_ORDER = (
    "studio_owners",
    "customers",
    "accounts",
    "sessions",
    "studios",
    "services",
    "bookings",
    "_CustomerFavorites",
    "verification_tokens",
    "email_verification_tokens",
)


def prepare(connection: Any) -> None:
    """Make a connection exact: UTC, ISO dates, moments as numbers, all digits of a float."""
    for reader in (_READ_MOMENT, _READ_PLAIN_JSON, _READ_BYTES):
        extensions.register_type(reader, connection)
    with connection.cursor() as cursor:
        cursor.execute("SET timezone = 'UTC'; SET datestyle = 'ISO, YMD'; SET extra_float_digits = 1; SET client_encoding = 'UTF8'")


def create_tables(connection: Any, layout: Layout) -> None:
    """Create both sides' tables, empty."""
    with connection.cursor() as cursor:
        cursor.execute("; ".join(layout.create_statements()))


def empty_tables(connection: Any, layout: Layout) -> None:
    """Delete every row of both sides, faster than TRUNCATE does on tables this small."""
    deletes = "; ".join(f"DELETE FROM {layout.relation(table)}" for table in (*LEGACY, *UNIFIED))
    with connection.cursor() as cursor:
        cursor.execute(f"BEGIN; SET LOCAL session_replication_role = replica; {deletes}; COMMIT")


def write_legacy(connection: Any, legacy: Legacy, layout: Layout) -> None:
    """Write a legacy database into empty tables, one INSERT a table, foreign keys checked."""
    with connection.cursor() as cursor:
        for table in _WRITE_ORDER:
            rows = legacy[table]
            if rows:
                columns = legacy.shape.columns(table)
                values = [[parameter(column, row[name]) for name, column in columns.items()] for row in rows]
                target = f"{layout.relation(table)} ({layout.column_list(table)})".replace("%", "%%")
                extras.execute_values(cursor, f"INSERT INTO {target} VALUES %s", values, page_size=len(values))


def parameter(column: Column, value: Any) -> Any:
    """A value as psycopg2 is to be given it."""
    if value is None:
        return None
    if column.kind == "moment":
        return show_moment(value)
    return json.dumps(value) if column.kind == "json" else value


def read_rows(connection: Any, layout: Layout, table: str) -> list[Row]:
    """All rows of a table by logical column name, in no order."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {layout.column_list(table)} FROM {layout.relation(table)}")
        names = list(layout.shape.columns(table))
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def read_legacy(connection: Any, layout: Layout) -> Legacy:
    """The legacy side as it is now."""
    return Legacy({table: read_rows(connection, layout, table) for table in LEGACY}, layout.shape)


def read_unified(connection: Any, layout: Layout, journal: str = "unified_user_journal") -> Projection:
    """The unified side and the journal's identity_map and quarantine, as they are now.

    `magic_link_tokens` and `audit_logs` are among the tables; double ids are impossible, since the
    key is checked by the database, and a table read twice over keeps its row count in `counts`.
    """
    actual = Projection()
    for table in UNIFIED:
        rows = read_rows(connection, layout, table)
        actual.counts[table] = len(rows)
        if table == "_UserFavorites":
            actual.favourites = {(row["A"], row["B"]) for row in rows}
        else:
            actual.tables[table] = {row["id"]: row for row in rows}
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT source_table, source_id, user_id FROM {quote(journal)}.identity_map")
        mapped = cursor.fetchall()
        actual.counts["identity_map"] = len(mapped)
        actual.identity_map = {(table, source): user for table, source, user in mapped}
        cursor.execute(f'SELECT source_table, source_id, "row"::text FROM {quote(journal)}.quarantine')
        kept = cursor.fetchall()
        actual.counts["bookings_quarantined"] = len(kept)
        actual.quarantine = {(table, source): _row_from_json(layout, table, row) for table, source, row in kept}
    return actual


def _bytes(text: str) -> bytes:
    """Bytes from either of PostgreSQL's text forms of them."""
    if text.startswith("\\x"):
        return bytes.fromhex(text[2:])
    return re.sub(r"\\(\\|[0-7]{3})", lambda m: "\\" if m[1] == "\\" else chr(int(m[1], 8)), text).encode("latin-1")


# How JSON shows what it has no type for.
_FROM_JSON = {"moment": read_moment, "float": float, "number": Decimal, "bytes": _bytes}


def _row_from_json(layout: Layout, table: str, document: str) -> Row:
    """A row kept as JSONB, by logical name; a column it should not have keeps its own name."""
    columns = layout.shape.columns(table)
    logical = {layout.actual(table, name): name for name in columns}
    row = {}
    for actual, value in json.loads(document, parse_float=Decimal).items():
        name = logical.get(actual, f"unknown column {actual}")
        read = _FROM_JSON.get(columns[name].kind) if name in columns else None
        row[name] = read(value) if read and value is not None else value
    return row


def compare_rows(shape: Shape, table: str, expected: dict[Any, Row], actual: dict[Any, Row]) -> Iterable[str]:
    """One line for each row that is missing, too many, or different in a column."""
    columns = shape.columns(table)
    for key in expected.keys() - actual.keys():
        yield f"{table}: {key!r} is missing"
    for key in actual.keys() - expected.keys():
        yield f"{table}: {key!r} should not be there"
    for key in expected.keys() & actual.keys():
        for name in expected[key].keys() | actual[key].keys():
            wanted, found = expected[key].get(name, "(no such column)"), actual[key].get(name, "(no such column)")
            if wanted != found or type(wanted) is not type(found) or (isinstance(wanted, Decimal) and str(wanted) != str(found)):
                column = columns.get(name, Column(name, "text"))
                yield f"{table}: {key!r}.{name} is {show(column, found)}, should be {show(column, wanted)}"


def compare(expected: Projection, actual: Projection, shape: Shape) -> list[str]:
    """Readable differences between the oracle's word and what a database holds; empty when equal."""
    found: list[str] = []
    for table, rows in actual.tables.items():
        found += compare_rows(shape, table, expected.tables.get(table, {}), rows)
    for what, wanted, there in (
        ("_UserFavorites", expected.favourites, actual.favourites),
        ("identity_map", set(expected.identity_map.items()), set(actual.identity_map.items())),
    ):
        found += [f"{what}: {entry!r} is missing" for entry in wanted - there]
        found += [f"{what}: {entry!r} should not be there" for entry in there - wanted]
    found += compare_rows(shape, "bookings", expected.quarantine, actual.quarantine)
    for name, count in actual.counts.items():
        if count != expected.counts.get(name, 0):
            found.append(f"{name}: {count} rows, should be {expected.counts.get(name, 0)}")
    return sorted(found)


def compare_legacy(expected: Legacy, actual: Legacy) -> list[str]:
    """Readable differences between two states of the legacy side; empty when equal."""
    found: list[str] = []
    for table in LEGACY:
        keys = ("A", "B") if table == "_CustomerFavorites" else ("token",) if table == "verification_tokens" else ("id",)
        by_key = [{tuple(row[key] for key in keys): row for row in side[table]} for side in (expected, actual)]
        found += compare_rows(expected.shape, table, *by_key)
        if len(expected[table]) != len(actual[table]):
            found.append(f"{table}: {len(actual[table])} rows, should be {len(expected[table])}")
    return sorted(found)


def describe_policies(policies: Policies) -> str:
    """The choices that differ from the defaults."""
    changed = {name: value for name, value in vars(policies).items() if value != getattr(Policies(), name)}
    return ", ".join(f"{name}={value}" for name, value in changed.items()) or "all defaults"
