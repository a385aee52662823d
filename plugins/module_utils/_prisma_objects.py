# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How much of a migration is in a database: the objects that its statements make and take away, looked up in the catalogue."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Iterator

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma import Migration
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql_script import Statement, tokens

#: Which of a list of objects exist. Indexes, tables, views and sequences share one name space.
_EXIST = """
SELECT w.position, CASE w.kind
    WHEN 'schema' THEN EXISTS (SELECT FROM pg_catalog.pg_namespace AS n WHERE n.nspname = w.name)
    WHEN 'extension' THEN EXISTS (SELECT FROM pg_catalog.pg_extension AS e WHERE e.extname = w.name)
    WHEN 'type' THEN EXISTS (SELECT FROM pg_catalog.pg_type AS t JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
                             WHERE n.nspname = w.space AND t.typname = w.name AND t.typtype <> 'b'
                                   AND NOT EXISTS (SELECT FROM pg_catalog.pg_class AS c WHERE c.oid = t.typrelid AND c.relkind <> 'c'))
    WHEN 'value' THEN EXISTS (SELECT FROM pg_catalog.pg_enum AS l JOIN pg_catalog.pg_type AS t ON t.oid = l.enumtypid
                              JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
                              WHERE n.nspname = w.space AND t.typname = w.owner AND l.enumlabel = w.name)
    WHEN 'column' THEN EXISTS (SELECT FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
                               JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                               WHERE n.nspname = w.space AND c.relname = w.owner AND a.attname = w.name AND a.attnum > 0 AND NOT a.attisdropped)
    WHEN 'constraint' THEN EXISTS (SELECT FROM pg_catalog.pg_constraint AS k JOIN pg_catalog.pg_class AS c ON c.oid = k.conrelid
                                   JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                                   WHERE n.nspname = w.space AND c.relname = w.owner AND k.conname = w.name)
    ELSE EXISTS (SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
                 WHERE n.nspname = w.space AND c.relname = w.name AND c.relkind = ANY (CASE w.kind
                       WHEN 'table' THEN '{r,p,f}' WHEN 'index' THEN '{i,I}' WHEN 'sequence' THEN '{S}' ELSE '{v,m}' END::"char"[]))
    END AS there
FROM unnest(%s::int[], %s::text[], %s::text[], %s::text[], %s::text[]) AS w(position, kind, space, owner, name)
"""

_RELATIONS = {"TABLE": "table", "INDEX": "index", "TYPE": "type", "VIEW": "view", "SEQUENCE": "sequence", "SCHEMA": "schema", "EXTENSION": "extension"}
_PREFIXES = ("UNIQUE", "UNLOGGED", "MATERIALIZED")


@dataclass(frozen=True)
class Thing:
    """An object that a migration makes or takes away.

    Attributes:
        kind: ``table``, ``index``, ``type``, ``view``, ``sequence``, ``schema``, ``extension``, ``column``, ``constraint`` or ``value``.
        space: its schema; empty for the one that the migrations fill.
        owner: the table of a column or a constraint, the type of a value; else empty.
        name: its name.
    """

    kind: str
    space: str
    owner: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.owner + '.' if self.owner else ''}{self.name}"


@dataclass(frozen=True)
class Deed:
    """What one statement does to one object.

    Attributes:
        thing: the object.
        present: whether it is there afterwards.
        certain: whether it was the other way round before; not so with ``IF EXISTS``, ``IF NOT EXISTS`` and ``OR REPLACE``.
        table: the table that an index is made on.
    """

    thing: Thing
    present: bool
    certain: bool = True
    table: str = ""

    @property
    def bearers(self) -> list[Thing]:
        """What the object goes with: its table or type."""
        bearer = self.thing.owner or self.table
        return [Thing(kind, self.thing.space, "", bearer) for kind in ("table", "type")] if bearer else []


@dataclass
class Remains:
    """How much of a migration is in a database.

    Attributes:
        there: objects as they are after the migration.
        lacking: objects as they are before it.
        judged_back: those of ``there`` that were otherwise before, so that a migration taken back cannot leave them.
        unjudged: lines and kinds of statements that leave nothing in the catalogue to look for.
    """

    there: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    judged_back: list[str] = field(default_factory=list)
    unjudged: list[str] = field(default_factory=list)

    @property
    def extent(self) -> str:
        """``all``, ``nothing``, ``part`` or ``unknown``."""
        if self.there and self.lacking:
            return "part"
        return "all" if self.there else "nothing" if self.lacking else "unknown"

    def describe(self) -> str:
        """Say how much is there, in a clause."""
        listed = {
            "all": f"everything that it makes or takes away and the catalogue tells is as after it: {_some(self.there)}",
            "nothing": "nothing that it makes or takes away is in the database",
            "part": f"of it {_some(self.there)} came, and {_some(self.lacking)} did not",
            "unknown": "the catalogue does not tell how much of it is there",
        }[self.extent]
        return listed + (f" (not to be told of {_some(self.unjudged)})" if self.unjudged and self.extent != "unknown" else "")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class _Reader:
    """The words of a statement, one after the other."""

    def __init__(self, text: str) -> None:
        self._words = [(kind, text[start:end]) for kind, start, end in tokens(text)]
        self._position = 0

    @property
    def word(self) -> str:
        """The next word in capitals; empty at the end, for names in quotation marks and for values."""
        if self._position >= len(self._words):
            return ""
        kind, text = self._words[self._position]
        return text.upper() if kind in ("word", "symbol") else ""

    @property
    def at_end(self) -> bool:
        """Whether nothing is left."""
        return self._position >= len(self._words)

    def take(self, *words: str) -> bool:
        """Step over these words if all of them follow."""
        start = self._position
        for word in words:
            if self.word != word:
                self._position = start
                return False
            self._position += 1
        return True

    def name(self) -> tuple[str, str]:
        """Step over a name, qualified or not, and return its schema (or nothing) and itself."""
        parts = [self._part()]
        while self.take("."):
            parts.append(self._part())
        return parts[-2] if len(parts) > 1 else "", parts[-1]

    def _part(self) -> str:
        if self.at_end:
            return ""
        kind, text = self._words[self._position]
        self._position += 1
        if kind == "quoted":
            return text[1:-1].replace('""', '"')
        return text[1:-1].replace("''", "'") if kind == "string" and text.startswith("'") else text.lower()

    def skip_to_comma(self) -> bool:
        """Step behind the next comma outside of parentheses; return whether there was one."""
        depth = 0
        while not self.at_end:
            word = self.word
            self._position += 1
            depth += (word == "(") - (word == ")")
            if word == "," and depth == 0:
                return True
        return False


def read_deeds(statement: Statement) -> list[Deed] | None:
    """Return what a statement does to objects, or None where the catalogue cannot tell whether it ran."""
    reader = _Reader(statement.text)
    if reader.take("CREATE"):
        return _creation(reader)
    if reader.take("DROP"):
        return _removal(reader)
    if reader.take("ALTER", "TABLE"):
        return _table_actions(reader)
    if reader.take("ALTER", "TYPE"):
        return _type_action(reader)
    if reader.take("ALTER", "INDEX"):
        reader.take("IF", "EXISTS")
        space, name = reader.name()
        return _renamed("index", space, "", name, reader.name()[1]) if reader.take("RENAME", "TO") else None
    return [] if reader.word in ("SET", "RESET") else None


def _creation(reader: _Reader) -> list[Deed] | None:
    certain = not reader.take("OR", "REPLACE")
    while any(reader.take(word) for word in _PREFIXES):
        pass
    kind = _RELATIONS.get(reader.word)
    if kind is None:
        return None
    reader.take(reader.word)
    reader.take("CONCURRENTLY")
    certain = not reader.take("IF", "NOT", "EXISTS") and certain
    if kind == "index" and reader.word == "ON":
        return None
    space, name = reader.name()
    table = ""
    if kind == "index" and reader.take("ON"):
        reader.take("ONLY")
        # An index lies in its table's schema.
        space, table = reader.name()
    return [Deed(Thing(kind, space, "", name), True, certain, table)]


def _removal(reader: _Reader) -> list[Deed] | None:
    reader.take("MATERIALIZED")
    kind = _RELATIONS.get(reader.word)
    if kind is None:
        return None
    reader.take(reader.word)
    reader.take("CONCURRENTLY")
    certain = not reader.take("IF", "EXISTS")
    deeds = []
    while True:
        space, name = reader.name()
        deeds.append(Deed(Thing(kind, space, "", name), False, certain))
        if not reader.take(","):
            return deeds


def _renamed(kind: str, space: str, owner: str, old: str, new: str) -> list[Deed]:
    return [Deed(Thing(kind, space, owner, old), False), Deed(Thing(kind, space, owner, new), True)]


def _table_actions(reader: _Reader) -> list[Deed] | None:
    reader.take("IF", "EXISTS")
    reader.take("ONLY")
    space, table = reader.name()
    if reader.take("RENAME", "TO"):
        return _renamed("table", space, "", table, reader.name()[1])
    if reader.take("RENAME", "CONSTRAINT"):
        old = reader.name()[1]
        return _renamed("constraint", space, table, old, reader.name()[1]) if reader.take("TO") else None
    if reader.take("RENAME"):
        reader.take("COLUMN")
        old = reader.name()[1]
        return _renamed("column", space, table, old, reader.name()[1]) if reader.take("TO") else None
    deeds, unknown = [], False
    while True:
        deed = _table_action(reader, space, table)
        unknown = unknown or deed is None
        deeds += [deed] if deed else []
        if not reader.skip_to_comma():
            # A statement counts as told when one of its actions is: they come and go together.
            return deeds if deeds or not unknown else None


def _table_action(reader: _Reader, space: str, table: str) -> Deed | None:
    for verb, present in (("ADD", True), ("DROP", False)):
        if not reader.take(verb):
            continue
        kind = "constraint" if reader.take("CONSTRAINT") else "column"
        if kind == "column" and not reader.take("COLUMN") and reader.word in ("PRIMARY", "UNIQUE", "FOREIGN", "CHECK", "EXCLUDE"):
            return None
        certain = not (reader.take("IF", "NOT", "EXISTS") or reader.take("IF", "EXISTS"))
        return Deed(Thing(kind, space, table, reader.name()[1]), present, certain)
    return None


def _type_action(reader: _Reader) -> list[Deed] | None:
    space, name = reader.name()
    if reader.take("RENAME", "TO"):
        return _renamed("type", space, "", name, reader.name()[1])
    if reader.take("RENAME", "VALUE"):
        old = reader.name()[1]
        return _renamed("value", space, name, old, reader.name()[1]) if reader.take("TO") else None
    if reader.take("ADD", "VALUE"):
        certain = not reader.take("IF", "NOT", "EXISTS")
        return [Deed(Thing("value", space, name, reader.name()[1]), True, certain)]
    return None


def _deeds(migration: Migration) -> Iterator[tuple[Statement, list[Deed] | None]]:
    for statement in migration.statements(transactional=False):
        yield statement, read_deeds(statement)


def _all_deeds(migration: Migration) -> list[Deed]:
    return [deed for pair in _deeds(migration) for deed in pair[1] or ()]


def find_remains(database: Database, schema: str, migration: Migration, later: list[Migration]) -> Remains:
    """Look up how much of a migration is in the database. Reads only.

    Args:
        database: an open session.
        schema: the schema that the migrations fill.
        migration: the migration.
        later: those after it in the release; what they touch again says nothing about this one.

    Raises:
        UnifiedUserError: a script cannot be taken apart.
    """
    remains = Remains()
    history: dict[Thing, list[Deed]] = {}
    for statement, deeds in _deeds(migration):
        if deeds is None:
            remains.unjudged.append(f"line {statement.line}: {statement.kind}")
        for deed in deeds or ():
            # Last in the order of what was done last.
            history[deed.thing] = [*history.pop(deed.thing, ()), deed]
    touched = {deed.thing for other in later for deed in _all_deeds(other)}
    # With a column its indexes and constraints go, too.
    reshaped = {thing.owner for thing in touched if thing.kind == "column"}
    order = list(history)
    things = []
    for number, thing in enumerate(order):
        bearers = history[thing][-1].bearers
        gone = [bearer for bearer in bearers if bearer in order[number:] and not history[bearer][-1].present]
        implied = thing.kind in ("index", "constraint") and any(bearer.name in reshaped for bearer in bearers)
        if not gone and not implied and not touched.intersection((thing, *bearers)):
            things.append(thing)
    columns = (
        list(range(len(things))),
        [thing.kind for thing in things],
        [thing.space or schema for thing in things],
        [thing.owner for thing in things],
        [thing.name for thing in things],
    )
    there = {row["position"]: row["there"] for row in database.rows(_EXIST, columns)}
    for number, thing in enumerate(things):
        first, last = history[thing][0], history[thing][-1]
        told = f"{thing}" if last.present else f"{thing} (taken away)"
        if there[number] != last.present:
            remains.lacking.append(told)
        else:
            remains.there.append(told)
            if first.certain and first.present == last.present:
                remains.judged_back.append(told)
    return remains
