# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Explaining differences row by row: what one side holds that the other cannot, apart from what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Callable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma, compose
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_base import Image
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_compare import DIFFERENT, MISSING, UNEXPECTED, Comparer, Comparison

#: What a difference is, or a row: '=' nothing that either side would notice, '+' and the kind of what only one side can hold,
#: '-' and the column that is wrong (nothing where the row is).
_VERDICTS = """
SELECT 'held' AS what, kind AS name, count(*) AS rows FROM weighed, unnest(kinds) AS kind GROUP BY 2
UNION ALL SELECT CASE WHEN faults = '{}' THEN 'explained' ELSE 'wrong' END, difference, count(*) FROM weighed GROUP BY 1, 2
UNION ALL SELECT 'column', fault, count(*) FROM weighed, unnest(faults) AS fault WHERE difference = {different} GROUP BY 2
UNION ALL SELECT 'sample', s.sample, s.position FROM (
    SELECT difference || ' ' || coalesce(label, 'NULL')
               || CASE WHEN difference = {different} THEN ' (' || array_to_string(faults, ', ') || ')' ELSE '' END AS sample,
           row_number() OVER (PARTITION BY difference ORDER BY label) AS position
    FROM weighed WHERE faults <> '{}') AS s WHERE s.position <= {limit}
"""

_WEIGHED = """
SELECT k.difference, {label} AS label,
       ARRAY(SELECT substr(v, 2) FROM unnest(k.verdicts) AS v WHERE left(v, 1) = '-') AS faults,
       ARRAY(SELECT DISTINCT substr(v, 2) FROM unnest(k.verdicts) AS v WHERE left(v, 1) = '+') AS kinds
FROM judged AS k
"""


@dataclass(frozen=True)
class Excuses:
    """Why rows of a table may differ from its image, by the kind of what only one side can hold; None for no difference at all.

    The first reason that holds counts. Conditions may look at ``a0``, the row there.

    Attributes:
        columns: actual column -> (kind, what makes the condition of the value there and the one called for).
        unexpected: (kind, composed condition) of rows that nothing calls for.
        missing: (kind, what makes the condition of a function from a column to the value called for) of rows that are not there.
    """

    columns: dict[str, list[tuple[str | None, Callable]]] = field(default_factory=dict)
    unexpected: list[tuple[str | None, object]] = field(default_factory=list)
    missing: list[tuple[str | None, Callable]] = field(default_factory=list)


@dataclass(frozen=True)
class Explained(Comparison):
    """What came out of comparing one table, the explained differences left out.

    Attributes:
        held: kind -> rows of which only one side holds something.
    """

    held: dict[str, int] = field(default_factory=dict)


class Explainer(Comparer):
    """Compares tables with their images and explains each difference.

    Args:
        sample_size: how many samples of what is wrong are shown at most.
        excuses: by name of the image.
    """

    def __init__(self, sample_size: int, excuses: dict[str, Excuses]) -> None:
        super().__init__(sample_size)
        self.excuses = excuses

    def conclude(self, database: Database, image: Image, actual: int) -> Explained:
        """Say what the looks at an image have found that nothing explains. See ``Comparer.conclude``.

        Raises:
            psycopg2.Error: as the server reports it.
        """
        counted = self._counted[image.name]
        # Two rows that are there and have one key find the same expected row.
        raw = {
            MISSING: abs(counted["expected"] - counted["found"]), UNEXPECTED: abs(actual - counted["found"]),
            DIFFERENT: counted["different"],
        }  # fmt: skip
        found = Explained(counted["expected"], actual, *raw.values(), 0, 0, [], {})
        if not any(raw.values()):
            return found
        rows: dict[str, list[dict]] = {"held": [], "explained": [], "wrong": [], "column": [], "sample": []}
        for row in database.rows(self._explaining(image)):
            rows[row["what"]].append(row)
        explained, wrong = ({row["name"]: row["rows"] for row in rows[what]} for what in ("explained", "wrong"))
        samples = sorted(rows["sample"], key=lambda row: (row["rows"], row["name"]))
        return replace(
            # Rows of one key upset the counts; each that is wrong is listed all the same.
            found, **{kind: max(count - explained.get(kind, 0), wrong.get(kind, 0)) for kind, count in raw.items()},
            samples=[row["name"] for row in samples][: self.sample_size],
            columns={row["name"]: row["rows"] for row in sorted(rows["column"], key=lambda row: (-row["rows"], row["name"]))},
            held={row["name"]: row["rows"] for row in sorted(rows["held"], key=lambda row: row["name"])},
        )  # fmt: skip

    @staticmethod
    def _verdict(excuses: list[tuple[str | None, object]], fault: str):
        cases = [
            compose("WHEN {condition} THEN {verdict} ", {"condition": condition, "verdict": sql.Literal("=" if kind is None else f"+{kind}")})
            for kind, condition in excuses
        ]
        otherwise = sql.Literal(f"-{fault}")
        return compose("CASE {cases}ELSE {otherwise} END", {"cases": sql.Composed(cases), "otherwise": otherwise}) if cases else otherwise

    def _explaining(self, image: Image):
        """Return the statement that judges every difference. See ``_VERDICTS``."""
        excuses = self.excuses.get(image.name, Excuses())
        parts = {**self._parts(image), "wanted": sql.Identifier("e", "wanted")}

        def called_for(name: str):
            return self._wanted(image, name, 0)

        verdicts = [
            compose("CASE WHEN {wanted} IS NULL THEN {v} END", {**parts, "v": self._verdict(excuses.unexpected, "")}),
            compose(
                "CASE WHEN {here} IS NULL THEN {v} END",
                {**parts, "v": self._verdict([(kind, condition(called_for)) for kind, condition in excuses.missing], "")},
            ),
        ]
        for name in image.columns:
            there = sql.Identifier("a0", name)
            reasons = [(kind, condition(there, called_for(name))) for kind, condition in excuses.columns.get(name, [])]
            verdicts.append(
                compose(
                    "CASE WHEN {here} IS NOT NULL AND {wanted} AND {pair} THEN {v} END",
                    {**parts, "pair": compose("({c})", {"c": self._pair(image, name, 0)}), "v": self._verdict(reasons, name)},
                )
            )
        keys = comma(
            compose("coalesce({a}, {e}) AS {c}", {"a": sql.Identifier("a0", key), "e": called_for(key), "c": sql.Identifier(key)}) for key in image.key
        )
        judged = compose(
            "SELECT CASE WHEN {wanted} IS NULL THEN {unexpected} WHEN {here} IS NULL THEN {missing} ELSE {different} END AS difference, {keys},"
            " array_remove(ARRAY[{verdicts}], NULL) AS verdicts"
            " FROM (SELECT *, TRUE AS wanted FROM ({expected}) AS x) AS e FULL JOIN {table} AS {a} ON {same}"
            " WHERE {here} IS NULL OR {wanted} IS NULL OR {differs}",
            {
                **parts, "keys": keys, "verdicts": comma(verdicts),
                **{kind: sql.Literal(kind) for kind in (MISSING, UNEXPECTED, DIFFERENT)},
                "expected": sql.SQL(" UNION ALL ").join([self._expected([(image, part)]) for part in image.parts]),
            },
        )  # fmt: skip
        ctes = {**image.ctes, "judged": judged, "weighed": compose(_WEIGHED, {"label": image.label})}
        limits = {"limit": sql.Literal(self.sample_size), "different": sql.Literal(DIFFERENT)}
        return compose("{ctes}{verdicts}", {"ctes": self._with(ctes), "verdicts": compose(_VERDICTS, limits)})
