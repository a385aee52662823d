# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Comparing a table with its image: counting first, and listing what differs only when there is something to list."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Column
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import all_of, comma, compose
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_base import Image
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_columns import differs

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
    """Compares tables with their images in one session.

    Args:
        database: an open session; it only runs SELECTs.
        sample_size: how many samples a difference shows at most.
    """

    def __init__(self, database: Database, sample_size: int) -> None:
        self.database = database
        self.sample_size = sample_size

    def compare(self, image: Image) -> Comparison:
        """Compare every column of every row.

        Raises:
            psycopg2.Error: as the server reports it.
        """
        counts = {"expected": 0, "found": 0, "different": 0, "changed_since": 0}
        for part in image.parts:
            for name, count in self.database.row(self.counting(image, part)).items():
                counts[name] += count
        actual = self.database.value(compose("SELECT count(*) FROM {table}", {"table": image.table}))
        born = 0
        if image.born is not None and actual != counts["found"]:
            born = self.database.value(self._listing(image, "SELECT count(*) FROM difference WHERE kind = 'born'"))
        missing = counts["expected"] - counts["found"]
        # Two expected rows with one key find the same row: then fewer rows are there than were found.
        unexpected = abs(actual - counts["found"] - born)
        samples, columns = [], {}
        if missing or unexpected or counts["different"]:
            samples, columns = self._samples(image)
        return Comparison(counts["expected"], actual, missing, unexpected, counts["different"], born, counts["changed_since"], samples, columns)

    @staticmethod
    def _pair(image: Image, name: str, column: Column):
        own = {"c": sql.Identifier(name)}
        condition = differs(column, compose("e.{c}", own), compose("a.{c}", own))
        if name in image.unknown:
            return compose("(NOT e.{flag} AND {condition})", {"flag": sql.Identifier(image.unknown[name]), "condition": condition})
        return condition

    def _parts(self, image: Image) -> dict[str, object]:
        return {
            "table": image.table,
            "here": compose("a.{c}", {"c": sql.Identifier(image.key[0])}),
            "wanted": compose("e.{c}", {"c": sql.Identifier(image.key[0])}),
            "same": all_of(compose("a.{c} = e.{c}", {"c": sql.Identifier(name)}) for name in image.key),
            "differs": sql.SQL(" OR ").join([self._pair(image, name, column) for name, column in image.columns.items()]),
            "changed": image.changed or sql.SQL("FALSE"),
            "born": image.born or sql.SQL("FALSE"),
        }

    def counting(self, image: Image, part):
        """Return the statement that counts one part of an image: its rows, those found, and those that differ."""
        # The comparison stands in FILTER, never in WHERE, where equality misleads the planner's estimates.
        return compose(
            "SELECT count(*) AS expected, count({here}) AS found,"
            " count(*) FILTER (WHERE {here} IS NOT NULL AND ({differs}) AND NOT {changed}) AS different,"
            " count(*) FILTER (WHERE {here} IS NOT NULL AND ({differs}) AND {changed}) AS changed_since"
            " FROM ({part}) AS e LEFT JOIN {table} AS a ON {same}",
            {**self._parts(image), "part": part},
        )

    def _listing(self, image: Image, question: str, **extra):
        names = [
            compose(
                "CASE WHEN {here} IS NOT NULL AND {wanted} IS NOT NULL AND ({differs}) THEN {name} END",
                {**self._parts(image), "differs": self._pair(image, name, column), "name": sql.Literal(name)},
            )
            for name, column in image.columns.items()
        ]
        difference = compose(
            "SELECT CASE WHEN {wanted} IS NULL AND {born} THEN 'born' WHEN {wanted} IS NULL THEN 'unexpected'"
            " WHEN {here} IS NULL THEN 'missing' WHEN {changed} THEN 'changed' ELSE 'different' END AS kind, {keys},"
            " array_remove(ARRAY[{names}], NULL) AS names FROM ({expected}) AS e FULL JOIN {table} AS a ON {same}"
            " WHERE {here} IS NULL OR {wanted} IS NULL OR {differs}",
            {
                **self._parts(image),
                "expected": sql.SQL(" UNION ALL ").join([compose("({part})", {"part": part}) for part in image.parts]),
                "keys": comma(compose("coalesce(a.{c}, e.{c}) AS {c}", {"c": sql.Identifier(name)}) for name in image.key),
                "names": comma(names),
            },
        )
        return compose(
            "WITH difference AS MATERIALIZED ({difference}) {question}",
            {"difference": difference, "question": compose(question, {"label": image.label, **extra})},
        )

    def _samples(self, image: Image) -> tuple[list[str], dict[str, int]]:
        found = {}
        for kind in (MISSING, UNEXPECTED, DIFFERENT):
            found[kind] = [
                f"{kind} {row['label']}" + (f" ({', '.join(row['names'])})" if row["names"] else "")
                for row in self.database.rows(
                    self._listing(
                        image, "SELECT {label} AS label, names FROM difference AS k WHERE kind = {kind} ORDER BY 1 LIMIT {limit}",
                        kind=sql.Literal(kind), limit=sql.Literal(self.sample_size),
                    )
                )
            ]
        columns = {
            row["name"]: row["rows"]
            for row in self.database.rows(
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
