# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Shorter histories on smaller databases that fail as well: what hypothesis's shrinking takes too long for here.

Every attempt needs a migrated database, so there is time for a few hundred only; leaving out whole rows, transactions and
writes is what makes a failure readable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from tests.application_writes.histories import History
from tests.oracle.model import Legacy, Row, project
from tests.oracle.strategies import Case

# Table -> (column, table it refers to, whether the reference may be NULL).
_REFERENCES = {
    "accounts": (("userId", "studio_owners", False),),
    "sessions": (("userId", "studio_owners", False),),
    "studios": (("ownerId", "studio_owners", True),),
    "services": (("studioId", "studios", False),),
    "bookings": (("studioId", "studios", False), ("serviceId", "services", True), ("customerId", "customers", True)),
    "_CustomerFavorites": (("A", "customers", False), ("B", "studios", False)),
}


@dataclass(frozen=True)
class Example:
    """A database and what is done to it: histories, one after the other."""

    case: Case
    histories: tuple[History, ...]

    def __repr__(self) -> str:
        return f"{self.case!r}\n" + "\n".join(f"history:{history!r}" for history in self.histories)


def without_row(legacy: Legacy, table: str, index: int) -> Legacy:
    """The database without a row, nor what refers to it; what may refer to nothing does."""
    tables = {name: list(rows) for name, rows in legacy.tables.items()}
    tables[table].pop(index)
    for name, references in _REFERENCES.items():
        kept = []
        for row in tables[name]:
            settled: Row | None = row
            for column, target, may_be_null in references:
                if row[column] is not None and all(there["id"] != row[column] for there in tables[target]):
                    settled = {**settled, column: None} if may_be_null and settled else None
            if settled:
                kept.append(settled)
        tables[name] = kept
    return Legacy(tables, legacy.shape)


def _shorter(example: Example) -> Iterator[Example]:
    for h, history in enumerate(example.histories):

        def with_transactions(transactions: list[Any], h: int = h) -> Example:
            histories = list(example.histories)
            histories[h] = History(tuple(transactions))
            return replace(example, histories=tuple(histories))

        there = history.transactions
        for cut in range(len(there) // 2, 0, -1):
            yield with_transactions(there[: len(there) - cut])
        for n, transaction in enumerate(there):
            yield with_transactions([*there[:n], *there[n + 1 :]])
            plainer = [replace(transaction, drafts=(), isolation=None)] if transaction.drafts or transaction.isolation else []
            if len(transaction.writes) > 1:
                plainer += [replace(transaction, writes=transaction.writes[:k] + transaction.writes[k + 1 :]) for k in range(len(transaction.writes))]
            for one in plainer:
                yield with_transactions([*there[:n], one, *there[n + 1 :]])


def _smaller(example: Example) -> Iterator[Example]:
    """The example on a database without a table's rows, without half of them, without one."""
    legacy = example.case.legacy
    for share in (1, 2, 4, 0):
        for table, rows in legacy.tables.items():
            length = max(1, len(rows) // share) if share else 1
            if (length == 1 and share) or not rows:
                continue
            for start in range(0, len(rows), length):
                left = legacy
                for row in rows[start : start + length]:
                    index = next((n for n, there in enumerate(left[table]) if there is row), None)
                    left = left if index is None else without_row(left, table, index)
                yield replace(example, case=Case(left, example.case.policies))


def reduce(example: Example, fails: Callable[[Example], bool], seconds: float = 60) -> Example:
    """The smallest example that fails, as far as leaving things out one by one finds it in time.

    Args:
        example: one that fails.
        fails: whether another one does.
        seconds: when to stop looking.
    """
    give_up = time.monotonic() + seconds
    before = None
    while example is not before and time.monotonic() < give_up:
        before = example
        for candidates in (_shorter, _smaller, _shorter):
            tried = 0
            while time.monotonic() < give_up:
                # Where one attempt succeeded, the next starts from there: what could not go before rarely can now.
                candidate = next(islice(candidates(example), tried, None), None)
                if candidate is None:
                    break
                if not project(candidate.case.legacy, candidate.case.policies).blockers and fails(candidate):
                    example = candidate
                else:
                    tried += 1
    return example
