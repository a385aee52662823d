# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every single change of what the transformation made must be noticed by verification.

What is changed comes from the catalogue: every column of every table that is not a legacy one, in each way its type
can be changed a little. A column that nobody thought of is therefore tried too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg2
import pytest

from tests.integration.subject import Subject
from tests.oracle.model import project
from tests.oracle.sample import RICH_POLICIES, rich_legacy
from tests.oracle.schema import FULL, LEGACY, WIDENED, quote

# What is tested here does not depend on the server's version; what does is tested on every one elsewhere.
pytestmark = pytest.mark.one_major

JOURNAL = "unified_user_journal"

# Table -> the check that must notice a change of its rows, whatever else does.
CHECKS = {
    "users": "users",
    "user_role_assignments": "role_assignments",
    "studio_ownership": "ownerships",
    "new_accounts": "accounts",
    "new_sessions": "sessions",
    "new_bookings": "bookings",
    "_UserFavorites": "favourites",
    "identity_map": "identity_map",
    "quarantine": "quarantine",
    "magic_link_tokens": "magic_link_tokens",
    "audit_logs": "audit_logs",
}

# Kind of type -> way to change a value -> (which values, their replacement); {c} is the column.
_WAYS = {
    "text": {
        "last byte flipped": ("{c} <> ''", "overlay({c} placing chr(ascii(right({c}, 1)) # 1) from length({c}))"),
        "first byte flipped": ("{c} <> ''", "overlay({c} placing chr(ascii({c}) # 1) from 1)"),
        "letter case": ("upper({c}) <> {c}", "upper({c})"),
        "a space more": ("{c} IS NOT NULL", "{c} || ' '"),
        "a no-break space more": ("{c} IS NOT NULL", "{c} || chr(160)"),
        "decomposed": ("{c} <> normalize({c}, NFD)", "normalize({c}, NFD)"),
        "emptied": ("{c} <> ''", "''"),
        "made empty": ("{c} IS NULL", "''"),
        "made up": ("{c} IS NULL", "'x'"),
    },
    "timestamp": {
        "a millisecond later": ("{c} IS NOT NULL", "{c} + interval '1 ms'"),
        "a millisecond earlier": ("{c} IS NOT NULL", "{c} - interval '1 ms'"),
        "an hour later": ("{c} IS NOT NULL", "{c} + interval '1 hour'"),
        "made infinite": ("{c} IS NOT NULL", "'infinity'"),
        "made up": ("{c} IS NULL", "'2025-01-01'"),
    },
    "boolean": {"flipped": ("{c} IS NOT NULL", "NOT {c}"), "made up": ("{c} IS NULL", "false")},
    "integer": {"one more": ("{c} IS NOT NULL", "{c} + 1"), "made up": ("{c} IS NULL", "0")},
    "double precision": {
        "the next number": ("{c} > 0", "{c} + {c} * 2.3e-16"),
        "negative zero": ("{c} = 0", "'-0'"),
        "made up": ("{c} IS NULL", "0"),
    },
    "jsonb": {
        "wrapped": ("{c} IS NOT NULL", "jsonb_build_array({c})"),
        "a key more": ("jsonb_typeof({c}) = 'object'", """{c} || '{{"more": null}}'"""),
        "a key less": ("jsonb_typeof({c}) = 'object'", "{c} - (SELECT min(k) FROM jsonb_object_keys({c}) AS k)"),
        "a number's scale": (
            "jsonb_typeof({c} -> 'n') = 'number'", "{c} || jsonb_build_object('n', (({c} ->> 'n') || '.0')::numeric)"),
        "made up": ("{c} IS NULL", "'null'"),
    },
    "json": {"a space more": ("{c} IS NOT NULL", "({c}::text || ' ')::json"), "made up": ("{c} IS NULL", "'null'")},
    "numeric": {
        "one more": ("{c} IS NOT NULL", "{c} + 1"),
        "its scale": ("{c} IS NOT NULL", "round({c}, scale({c}) + 1)"),
        "made up": ("{c} IS NULL", "0"),
    },
    "text[]": {
        "an element more": ("{c} IS NOT NULL", "{c} || ''::text"),
        "NULL spelt out": ("array_position({c}, NULL) > 0", "array_replace({c}, NULL, 'NULL')"),
        "made up": ("{c} IS NULL", "'{{}}'"),
    },
    "bytea": {"a bit flipped": ("length({c}) > 0", "set_bit({c}, 0, 1 - get_bit({c}, 0))"), "made up": ("{c} IS NULL", "''")},
    "uuid": {"last digit": ("{c} IS NOT NULL", "overlay({c}::text placing 'f' from 36)::uuid"), "made up": ("{c} IS NULL", "gen_random_uuid()")},
    "enum": {"another label": ("{c} IS NOT NULL", "(SELECT e FROM unnest(enum_range({c})) AS e WHERE e <> {c} LIMIT 1)")},
}  # fmt: skip

_WAYS["character varying"] = _WAYS["text"]

# Columns that get every way; all do when UNIFIED_USER_EVERY_MUTATION is set.
_DECIDING = ("email", "password", "emailVerified", "email_verified", "row", "identity_key")
EVERY_WAY = bool(os.environ.get("UNIFIED_USER_EVERY_MUTATION"))

_COLUMNS = """
SELECT n.nspname, c.relname, a.attname, CASE WHEN t.typtype = 'e' THEN 'enum' ELSE split_part(format_type(t.oid, NULL), ' without', 1) END,
       NOT a.attnotnull
FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_type AS t ON t.oid = a.atttypid
WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
  AND (n.nspname = %(schema)s AND c.relname <> ALL (%(legacy)s) OR n.nspname = %(journal)s AND c.relname IN ('identity_map', 'quarantine'))
ORDER BY 1, 2, a.attnum"""


@dataclass(frozen=True)
class Column:
    """A column as the catalogue has it."""

    schema: str
    table: str
    name: str
    kind: str
    nullable: bool


class Migrated:
    """A migrated rich database whose tables can be changed and put back."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        layout = subject.layout
        self.legacy = rich_legacy(layout.shape)
        subject.write(self.legacy)
        subject.transform(RICH_POLICIES)
        self.expected = project(self.legacy, RICH_POLICIES, subject.started_at())
        with subject.connection.cursor() as cursor:
            cursor.execute(_COLUMNS, {"schema": layout.schema, "legacy": list(LEGACY), "journal": JOURNAL})
            self.columns = [Column(*row) for row in cursor.fetchall()]
        self.tables = {column.table: (column.schema, column.table) for column in self.columns}
        subject.execute("CREATE SCHEMA kept")
        for table in [*self.tables, *LEGACY]:
            subject.execute(f"CREATE TABLE kept.{quote(table)} AS TABLE {self.relation(table)}")

    def relation(self, table: str) -> str:
        """A table of the unified side, the journal or the legacy side, quoted."""
        schema, name = self.tables.get(table, (self.subject.layout.schema, table))
        return f"{quote(schema)}.{quote(name)}"

    def column(self, table: str, name: str) -> str:
        """A logical column, quoted."""
        return quote(self.subject.layout.actual(table, name))

    def change(self, statement: str) -> int:
        """Change rows as someone who gets round the foreign keys; returns how many."""
        self.subject.execute("BEGIN; SET LOCAL session_replication_role = replica")
        try:
            touched = self.subject.execute(statement)
        except psycopg2.Error:
            self.subject.execute("ROLLBACK")
            raise
        self.subject.execute("COMMIT")
        return touched

    def restore(self, *tables: str) -> None:
        """Put tables back as the transformation left them."""
        for table in tables:
            relation = self.relation(table)
            self.subject.execute(
                f"BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM {relation}; INSERT INTO {relation} SELECT * FROM kept.{quote(table)}; COMMIT"
            )

    def unnoticed(self, table: str, statement: str, *checks: str, rows: int = 1) -> str | None:
        """Change rows of a table, verify, put the table back; says what was not noticed, None when all was.

        Args:
            table: what is changed.
            statement: changes it.
            checks: that must notice besides the table's own.
            rows: how many rows it changes.
        """
        touched = self.change(statement)
        try:
            failed = self.subject.failed_checks(RICH_POLICIES)
        finally:
            self.restore(table)
        assert touched == rows, f"{touched} rows changed by {statement}"
        for name in (*([CHECKS[table]] if table in CHECKS else []), *checks):
            if name not in failed:
                return f"{name} did not notice; these did: {sorted(failed) or 'none'}"
            if not failed[name].differing or not failed[name].samples:
                return f"{name} names no row"
        return None


# The shape and spelling that each major is tried with: the SQL is the same for all, and a change takes 0.1 s to judge.
_KINDS = {15: (FULL, "snake"), 17: (FULL, "camel")}


@pytest.fixture(scope="module")
def migrated(cluster):
    """A migrated rich database. Every test leaves it as it was."""
    shape, naming = _KINDS.get(cluster.major, (WIDENED, "mixed"))
    with contextlib.closing(Subject(cluster, f"mutations_{os.getpid()}", shape, naming)) as subject:
        yield Migrated(subject)


def changes(migrated: Migrated, table: str) -> Iterator[tuple[str, str]]:
    """Description and statement of one change for each column of a table and each way to change its type, rows taking turns."""
    turns = itertools.count()
    with migrated.subject.connection.cursor() as cursor:
        for column in (column for column in migrated.columns if column.table == table):
            first, *others = _WAYS[column.kind].items()
            if not (EVERY_WAY or column.name in _DECIDING):
                # One after the other, so that every way is tried on some column of each table.
                others = [others[next(turns) % len(others)], *(way for way in others if way[0] == "made up")] if others else []
            null = [("made NULL", ("{c} IS NOT NULL", "NULL"))] if column.nullable else []
            for way, (condition, replacement) in dict([first, *others, *null]).items():
                name, relation = quote(column.name), migrated.relation(table)
                rows = f'SELECT t.ctid FROM {relation} AS t WHERE {condition.format(c=name)} ORDER BY t::text COLLATE "C"'
                cursor.execute(rows)
                if cursor.rowcount:
                    one = f"({rows} OFFSET {next(turns) % cursor.rowcount} LIMIT 1)"
                    yield f"{table}.{column.name} {way}", f"UPDATE {relation} SET {name} = {replacement.format(c=name)} WHERE ctid = {one}"


def test_nothing_is_wrong_before_anything_is_changed(migrated):
    assert migrated.subject.failed_checks(RICH_POLICIES) == {}
    assert set(migrated.tables) == set(CHECKS)


@pytest.mark.parametrize("table", CHECKS)
def test_a_change_of_any_column_is_noticed(migrated, table):
    tried = list(changes(migrated, table))
    found = [f"{what}: {found}" for what, statement in tried if (found := migrated.unnoticed(table, statement))]
    assert found == []
    touched = {what.split(" ")[0] for what, _statement in tried}
    assert table in ("magic_link_tokens", "audit_logs") or touched == {f"{table}.{c.name}" for c in migrated.columns if c.table == table}
    assert migrated.subject.failed_checks(RICH_POLICIES) == {}


@pytest.mark.parametrize("table", [table for table in CHECKS if table not in ("magic_link_tokens", "audit_logs")])
def test_a_missing_row_is_noticed(migrated, table):
    relation = migrated.relation(table)
    rows = f'SELECT t.ctid FROM {relation} AS t ORDER BY t::text COLLATE "C"'
    count = len(fetch(migrated, rows))
    statements = [f"DELETE FROM {relation} WHERE ctid = ({rows} OFFSET {n} LIMIT 1)" for n in range(count)]
    assert count and [found for statement in statements if (found := migrated.unnoticed(table, statement))] == []


def fetch(migrated: Migrated, query: str) -> list[tuple]:
    with migrated.subject.connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def copied(migrated: Migrated, table: str, where: str, **changed: str) -> str:
    """An INSERT of a row that differs from one that is there in the columns given as SQL."""
    relation = migrated.relation(table)
    names = [column.name for column in migrated.columns if column.table == table]
    new = {migrated.column(table, name).strip('"'): value for name, value in changed.items()}
    assert set(new) <= set(names)
    values = ", ".join(new.get(name, quote(name)) for name in names)
    return f"INSERT INTO {relation} ({', '.join(map(quote, names))}) SELECT {values} FROM {relation} WHERE {where} LIMIT 1"


@pytest.mark.parametrize("table, changed", [
    ("users", {"id": "'more'", "email": "'more@x.de'"}),
    ("user_role_assignments", {"id": "'more'", "studioId": "'st0x'"}),
    ("studio_ownership", {"id": "'more'", "studioId": "'st4x'"}),
    ("new_accounts", {"id": "'more'", "providerAccountId": "'more'"}),
    ("new_sessions", {"id": "'more'", "sessionToken": "'more'"}),
    ("new_bookings", {"id": "'more'"}),
    ("_UserFavorites", {"A": "'st3x'"}),
    ("identity_map", {"source_id": "'more'"}),
    ("quarantine", {"source_id": "'more'"}),
])  # fmt: skip
def test_an_extra_row_is_noticed(migrated, table, changed):
    assert migrated.unnoticed(table, copied(migrated, table, "true", **changed)) is None


@pytest.mark.parametrize("table, columns, values", [
    ("magic_link_tokens", ("id", "token", "email", "expiresAt"), "'m', 't', 'a@x.de', now()"),
    ("audit_logs", ("id", "action", "resource", "resourceId"), "'l', 'a', 'r', 'i'"),
])  # fmt: skip
def test_a_row_where_there_is_none_is_noticed(migrated, table, columns, values):
    names = ", ".join(migrated.column(table, column) for column in columns)
    assert migrated.unnoticed(table, f"INSERT INTO {migrated.relation(table)} ({names}) VALUES ({values})") is None


def exchange(migrated: Migrated, table: str, column: str, one: str, other: str) -> str:
    """An UPDATE that lets two rows, told by their ids, exchange the values of a column."""
    relation, name = migrated.relation(table), migrated.column(table, column)
    return f"UPDATE {relation} AS t SET {name} = o.{name} FROM {relation} AS o WHERE (t.id, o.id) IN (('{one}', '{other}'), ('{other}', '{one}'))"


@pytest.mark.parametrize("table, column, one, other", [
    ("users", "updatedAt", "o1x", "o4x"), ("users", "password", "o1x", "o4x"), ("users", "name", "o1x", "c6x"),
    ("new_bookings", "customerId", "b0x", "b3x"), ("new_bookings", "message", "b1x", "b2x"),
    ("new_sessions", "userId", "s0x", "s3x"), ("new_sessions", "expires", "s0x", "s3x"), ("new_accounts", "userId", "a0x", "a3x"),
])  # fmt: skip
def test_exchanged_values_are_noticed(migrated, table, column, one, other):
    assert migrated.unnoticed(table, exchange(migrated, table, column, one, other), rows=2) is None


def test_swapped_favourites_are_noticed(migrated):
    swap = f'UPDATE {migrated.relation("_UserFavorites")} SET "A" = "B", "B" = "A" WHERE "A" = \'st0x\' AND "B" = \'o1x\''
    assert migrated.unnoticed("_UserFavorites", swap, "orphans") is None


def test_a_doubled_role_is_noticed(migrated):
    double = copied(migrated, "user_role_assignments", f"{migrated.column('user_role_assignments', 'userId')} = 'o4x'", id="'double'")
    assert migrated.unnoticed("user_role_assignments", double, "double_roles") is None


def test_a_role_the_person_does_not_have_is_noticed(migrated):
    where = f"{migrated.column('user_role_assignments', 'userId')} = 'o4x'"
    more = copied(migrated, "user_role_assignments", where, id="'more'", role="'SUPER_ADMIN'")
    assert migrated.unnoticed("user_role_assignments", more) is None


@pytest.mark.parametrize("user, password, checks", [
    ("o3x", "untrusted", ["passwords"]), ("o2x", "untrusted", ["passwords"]), ("o1x", "other", []), ("o7x", "", []),
])  # fmt: skip
def test_another_password_of_the_identity_is_noticed(migrated, user, password, checks):
    adopt = f"UPDATE {migrated.relation('users')} SET password = '{password}' WHERE id = '{user}'"
    assert migrated.unnoticed("users", adopt, *checks) is None


def test_a_later_verification_of_the_identity_is_noticed(migrated):
    column = migrated.column("users", "emailVerified")
    later = f"UPDATE {migrated.relation('users')} SET {column} = {column} + interval '2 ms' WHERE id = 'o1x'"
    assert migrated.unnoticed("users", later, "verification_times") is None


@pytest.mark.parametrize("source, target, row", [("accounts", "new_accounts", "a2x"), ("sessions", "new_sessions", "s2x")])
def test_credentials_that_must_stay_behind_are_noticed(migrated, source, target, row):
    shared = set(migrated.subject.layout.shape.columns(source)) & set(migrated.subject.layout.shape.columns(target))
    there = ", ".join(migrated.column(target, name) for name in sorted(shared))
    here = ", ".join(migrated.column(source, name) for name in sorted(shared))
    adopt = f"INSERT INTO {migrated.relation(target)} ({there}) SELECT {here} FROM {migrated.relation(source)} WHERE id = '{row}'"
    assert migrated.unnoticed(target, adopt, "credentials_not_carried") is None


def test_a_booking_of_nobody_is_noticed(migrated):
    orphan = f"UPDATE {migrated.relation('new_bookings')} SET {migrated.column('new_bookings', 'customerId')} = 'nobody' WHERE id = 'b0x'"
    assert migrated.unnoticed("new_bookings", orphan, "orphans") is None


def test_a_mapping_to_nobody_is_noticed(migrated):
    astray = f"UPDATE {migrated.relation('identity_map')} SET user_id = 'nobody' WHERE source_id = 'c1x'"
    assert migrated.unnoticed("identity_map", astray, "dangling_mappings") is None


def test_a_second_user_of_one_key_is_noticed(migrated):
    twin = copied(migrated, "users", "id = 'o4x'", id="'twin'", email="upper(email)")
    assert migrated.unnoticed("users", twin, "double_identity_keys") is None


@pytest.mark.parametrize("column, value", [
    ("name", "'First'"), ("phone", "NULL"), ("email", "'Guest@x.de'"), ("password", "'x'"), ("emailVerified", "createdAt"),
    ("primaryRole", "'CUSTOMER'"), ("createdAt", "updatedAt"), ("isActive", "false"),
])  # fmt: skip
def test_a_changed_guest_is_noticed(migrated, column, value):
    guest = next(row for row in migrated.expected.tables["users"].values() if row["email"] == "GUEST@x.de")
    names = migrated.subject.layout.shape.columns("users")
    new = migrated.column("users", value) if value in names else value
    change = f"UPDATE {migrated.relation('users')} SET {migrated.column('users', column)} = {new} WHERE id = '{guest['id']}'"
    assert migrated.unnoticed("users", change) is None


@pytest.mark.parametrize("table, statement, check", [
    ("customers", "DELETE FROM {t} WHERE id = 'c5x'", "users"),
    ("studio_owners", "UPDATE {t} SET password = 'new' WHERE id = 'o4x'", "users"),
    ("customers", "UPDATE {t} SET email = 'elsewhere@x.de' WHERE id = 'c2x'", "identity_map"),
    ("bookings", "UPDATE {t} SET message = 'new' WHERE id = 'b2x'", "bookings"),
    ("bookings", "DELETE FROM {t} WHERE id = 'b9x'", "bookings"),
    ("sessions", "DELETE FROM {t} WHERE id = 's0x'", "sessions"),
    ("accounts", "DELETE FROM {t} WHERE id = 'a0x'", "accounts"),
    ("_CustomerFavorites", "DELETE FROM {t} WHERE \"A\" = 'c5x'", "favourites"),
    ("bookings", "DELETE FROM {t} WHERE id = 'b10x'", "quarantine"),
])  # fmt: skip
def test_a_change_of_the_legacy_side_is_noticed(migrated, table, statement, check):
    assert migrated.unnoticed(table, statement.format(t=migrated.relation(table)), check) is None


def test_everything_is_put_back(migrated):
    assert migrated.subject.failed_checks(RICH_POLICIES) == {}
