# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Comparing a table with its image: counting first, and listing what differs only when there is something to list."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import all_of, comma, compose
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_base import Image, Look
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_columns import differs, typed

MISSING = "missing"
UNEXPECTED = "unexpected"
DIFFERENT = "different"


@dataclass(frozen=True)
class Comparison:
    """What came out of comparing one table with its image.

    Attributes:
        expected: rows that must be there.
        actual: rows that are there.
        missing: rows that must be there and are not.
        unexpected: rows that are there and have no source.
        different: rows that are there and differ in a column.
        born_after: rows without a source that were born after cut-over; not among the unexpected.
        changed_since: rows that were changed after cut-over; not among the different.
        samples: a few of the differences.
        columns: differing column -> rows that differ there.
    """

    expected: int
    actual: int
    missing: int
    unexpected: int
    different: int
    born_after: int
    changed_since: int
    samples: list[str]
    columns: dict[str, int]

    @property
    def differing(self) -> int:
        """How many rows are not as they must be."""
        return self.missing + self.unexpected + self.different


class Comparer:
    """Compares tables with their images, by SELECTs alone.

    Args:
        sample_size: how many samples a difference shows at most.
    """

    def __init__(self, sample_size: int) -> None:
        self.sample_size = sample_size
        #: Rows that must be there, by image and part.
        self.expected: dict[tuple[str, str], int] = {}
        self._counted: dict[str, Counter] = {}

    def count(self, database: Database, look: Look) -> list[dict]:
        """Count the rows of a look: those that must be there, those that are, and those that differ. See ``counting``.

        Raises:
            psycopg2.Error: as the server reports it.
        """
        return database.rows(self.counting(look))

    @staticmethod
    def count_rows(database: Database, image: Image) -> int:
        """Count the rows that are there.

        Raises:
            psycopg2.Error: as the server reports it.
        """
        return database.value(compose("SELECT count(*) FROM {table} AS a0", {"table": image.table}))

    def add(self, look: Look, rows: list[dict]) -> None:
        """Add what a look has counted."""
        for row in rows:
            expected, *counts = row["counts"]
            for image, part in look.groups[row["number"]]:
                found, different, changed, *counts = counts
                self.expected[image.name, part] = expected
                counted = self._counted.setdefault(image.name, Counter())
                counted.update(expected=expected, found=found, different=different, changed_since=changed)

    def conclude(self, database: Database, image: Image, actual: int) -> Comparison:
        """Say what the looks at an image have found, with samples of what differs.

        Args:
            database: an open session.
            image: whose looks have all been added.
            actual: the rows that are there.

        Raises:
            psycopg2.Error: as the server reports it.
        """
        counted = self._counted[image.name]
        born = 0
        if image.born is not None and actual != counted["found"]:
            born = database.value(self._listing(image, "SELECT count(*) FROM difference WHERE kind = 'born'"))
        missing = counted["expected"] - counted["found"]
        # Two expected rows with one key find the same row: then fewer rows are there than were found.
        unexpected = abs(actual - counted["found"] - born)
        samples, columns = [], {}
        if missing or unexpected or counted["different"]:
            samples, columns = self._samples(database, image)
        return Comparison(
            counted["expected"], actual, missing, unexpected, counted["different"], born, counted["changed_since"], samples, columns
        )

    @staticmethod
    def _wanted(image: Image, name: str, index: int):
        """Name an expected column: numbered, as actual names of two tables may be the same, and one is as long as a name may be."""
        return sql.Identifier("e", f"{index} {list(image.columns).index(name)}")

    def _pair(self, image: Image, name: str, index: int):
        there = sql.Identifier(f"a{index}", name)
        condition = differs(image.columns[name], self._wanted(image, name, index), there)
        if name in image.flagged:
            flag = sql.Identifier("e", f"{index} unknown {image.flagged.index(name)}")
            return compose("(NOT {flag} AND {condition})", {"flag": flag, "condition": condition})
        return condition

    def _parts(self, image: Image, index: int = 0) -> dict[str, object]:
        changed = sql.SQL("FALSE")
        if image.updated:
            changed = compose(
                "({there} >= {at} AND {wanted} < {at})",
                {"there": sql.Identifier(f"a{index}", image.updated), "wanted": self._wanted(image, image.updated, index), "at": image.cutover_at},
            )
        return {
            "table": image.table,
            "a": sql.Identifier(f"a{index}"),
            "here": sql.Identifier(f"a{index}", image.key[0]),
            "wanted": self._wanted(image, image.key[0], index),
            "same": all_of(compose("{a} = {e}", {"a": sql.Identifier(f"a{index}", key), "e": self._wanted(image, key, index)}) for key in image.key),
            "differs": sql.SQL(" OR ").join([self._pair(image, name, index) for name in image.columns]),
            "changed": changed,
            "born": image.born or sql.SQL("FALSE"),
        }

    @staticmethod
    def _expected(group: list[tuple[Image, str]]):
        """Select the rows of parts that have the same sources, the columns of each image under their numbers."""
        first, part = group[0]
        selects = []
        for number, branch in enumerate(first.parts[part]):
            values = []
            for index, (image, name) in enumerate(group):
                own = image.parts[name][number]
                for position, (column, kind) in enumerate(image.columns.items()):
                    value = own.values[column] or sql.SQL("NULL")
                    values.append(compose("{value} AS {name}", {"value": typed(kind, value), "name": sql.Identifier(f"{index} {position}")}))
                for position, column in enumerate(image.flagged):
                    unknown = own.unknown.get(column) or sql.SQL("TRUE" if own.values[column] is None else "FALSE")
                    values.append(compose("{value} AS {name}", {"value": unknown, "name": sql.Identifier(f"{index} unknown {position}")}))
            selects.append(compose("SELECT {values} {source}", {"values": comma(values), "source": branch.source}))
        return sql.SQL(" UNION ALL ").join(selects)

    @staticmethod
    def _with(ctes: dict[str, object]):
        named = [compose("{name} AS MATERIALIZED ({select})", {"name": sql.Identifier(name), "select": select}) for name, select in ctes.items()]
        return compose("WITH {ctes} ", {"ctes": comma(named)}) if named else sql.SQL("")

    def counting(self, look: Look):
        """Return the statement that counts a look: for each group its number, its rows, and for each image those found and those that differ."""
        selects = []
        for number, group in enumerate(look.groups):
            counts, joins = [sql.SQL("count(*)")], []
            for index, (image, _part) in enumerate(group):
                parts = self._parts(image, index)
                # The comparison stands in FILTER, never in WHERE, where equality misleads the planner's estimates.
                counts += [
                    compose(count, parts)
                    for count in (
                        "count({here})", "count(*) FILTER (WHERE {here} IS NOT NULL AND ({differs}) AND NOT {changed})",
                        "count(*) FILTER (WHERE {here} IS NOT NULL AND ({differs}) AND {changed})",
                    )
                ]
                joins.append(compose(" LEFT JOIN {table} AS {a} ON {same}", parts))
            selects.append(
                compose(
                    "SELECT {number} AS number, ARRAY[{counts}] AS counts FROM ({expected}) AS e{joins}",
                    {"number": sql.Literal(number), "counts": comma(counts), "expected": self._expected(group), "joins": sql.Composed(joins)},
                )
            )
        return compose("{ctes}{selects}", {"ctes": self._with(look.ctes), "selects": sql.SQL(" UNION ALL ").join(selects)})

    def _listing(self, image: Image, question: str, **extra):
        # Whether a row must be there is not told by its key: that may be NULL where its constraint is gone.
        parts = {**self._parts(image), "wanted": sql.Identifier("e", "wanted")}
        names = [
            compose(
                "CASE WHEN {here} IS NOT NULL AND {wanted} AND {differs} THEN {name} END",
                {**parts, "differs": compose("({c})", {"c": self._pair(image, name, 0)}), "name": sql.Literal(name)},
            )
            for name in image.columns
        ]
        difference = compose(
            "SELECT CASE WHEN {wanted} IS NULL AND {born} THEN 'born' WHEN {wanted} IS NULL THEN 'unexpected'"
            " WHEN {here} IS NULL THEN 'missing' WHEN {changed} THEN 'changed' ELSE 'different' END AS kind, {keys},"
            " array_remove(ARRAY[{names}], NULL) AS names FROM (SELECT *, TRUE AS wanted FROM ({expected}) AS x) AS e FULL JOIN {table} AS {a} ON {same}"
            " WHERE {here} IS NULL OR {wanted} IS NULL OR {differs}",
            {
                **parts,
                "expected": sql.SQL(" UNION ALL ").join([self._expected([(image, part)]) for part in image.parts]),
                "keys": comma(
                    compose(
                        "coalesce({a}, {e}) AS {c}",
                        {"a": sql.Identifier("a0", key), "e": self._wanted(image, key, 0), "c": sql.Identifier(key)},
                    )
                    for key in image.key
                ),
                "names": comma(names),
            },
        )
        return compose(
            "{ctes}{question}",
            {"ctes": self._with({**image.ctes, "difference": difference}), "question": compose(question, {"label": image.label, **extra})},
        )

    def _samples(self, database: Database, image: Image) -> tuple[list[str], dict[str, int]]:
        found = {}
        for kind in (MISSING, UNEXPECTED, DIFFERENT):
            found[kind] = [
                f"{kind} {row['label']}" + (f" ({', '.join(row['names'])})" if row["names"] else "")
                for row in database.rows(
                    self._listing(
                        image, "SELECT {label} AS label, names FROM difference AS k WHERE kind = {kind} ORDER BY 1 LIMIT {limit}",
                        kind=sql.Literal(kind), limit=sql.Literal(self.sample_size),
                    )
                )
            ]
        columns = {
            row["name"]: row["rows"]
            for row in database.rows(
                self._listing(
                    image,
                    "SELECT name, count(*) AS rows FROM difference, unnest(names) AS name WHERE kind = 'different' GROUP BY 1 ORDER BY 2 DESC, 1",
                )
            )
        }
        # A few of each kind rather than many of the first.
        rounds = max(map(len, found.values()), default=0)
        mixed = [labels[number] for number in range(rounds) for labels in found.values() if number < len(labels)]
        return mixed[: self.sample_size], columns
