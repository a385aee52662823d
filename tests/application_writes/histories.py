# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Histories: transactions of writes, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from tests.application_writes.kinds import Kind, Write, writes_of
from tests.application_writes.legacy import LEGACY_WRITES
from tests.application_writes.session import ISOLATION_LEVELS, Application
from tests.application_writes.unified import UNIFIED_WRITES
from tests.oracle.schema import Shape

SIDES: dict[str, list[Kind]] = {"legacy": LEGACY_WRITES, "unified": UNIFIED_WRITES}


class Abandoned(Exception):
    """An application changed its mind at the end of a transaction."""


@dataclass(frozen=True)
class Transaction:
    """Writes between BEGIN and the end.

    Attributes:
        drafts: writes before the others that are rolled back to a savepoint.
        isolation: None for the database's own.
        abandoned: whether it is rolled back in the end.
    """

    writes: tuple[Write, ...]
    drafts: tuple[Write, ...] = ()
    isolation: str | None = None
    abandoned: bool = False

    def run(self, application: Application) -> bool:
        """Do it all.

        Returns:
            Whether it was committed.

        Raises:
            psycopg2.Error: what the database answered; everything is rolled back.
        """
        try:
            with application.transaction(self.isolation):
                if self.drafts:
                    with application.rolled_back():
                        for write in self.drafts:
                            write.run(application)
                for write in self.writes:
                    write.run(application)
                if self.abandoned:
                    raise Abandoned
        except Abandoned:
            return False
        return True

    def __repr__(self) -> str:
        if not self.drafts and not self.isolation and not self.abandoned and len(self.writes) == 1:
            return repr(self.writes[0])
        parts = ["BEGIN" + (f" ISOLATION LEVEL {self.isolation}" if self.isolation else "")]
        if self.drafts:
            parts += ["SAVEPOINT", *map(repr, self.drafts), "ROLLBACK TO SAVEPOINT"]
        return "; ".join([*parts, *map(repr, self.writes), "ROLLBACK" if self.abandoned else "COMMIT"])


@dataclass(frozen=True, eq=False)
class History:
    """Transactions in order."""

    transactions: tuple[Transaction, ...]

    def __repr__(self) -> str:
        return "".join(f"\n  {transaction!r}" for transaction in self.transactions) or " nothing"


def transactions(side: str, shape: Shape) -> st.SearchStrategy[Transaction]:
    """One transaction on a side, or on either: mostly a single write, as most requests of an application are.

    No transaction writes to both sides: it is an old release of the application that makes it, or a new one.
    """
    if side == "either":
        return st.one_of(*(transactions(one, shape) for one in SIDES))
    write = writes_of(SIDES[side], shape)
    single = st.tuples(write).map(Transaction)
    several = st.builds(
        Transaction,
        writes=st.lists(write, min_size=1, max_size=4).map(tuple),
        drafts=st.one_of(st.just(()), st.just(()), st.lists(write, min_size=1, max_size=2).map(tuple)),
        isolation=st.sampled_from((None, *ISOLATION_LEVELS)),
        abandoned=st.sampled_from((False, False, False, False, False, True)),
    )
    return st.one_of(single, single, single, several)


def histories(side: str, shape: Shape, least: int = 0, most: int = 12) -> st.SearchStrategy[History]:
    """Transactions on a side (`legacy`, `unified` or `either`)."""
    return st.lists(transactions(side, shape), min_size=least, max_size=most).map(lambda found: History(tuple(found)))
