# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a kind of write is, and the arguments that are drawn for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.application_writes.session import Application
from tests.oracle.model import Row
from tests.oracle.schema import Shape
from tests.oracle.strategies import email_addresses, row_values

Draw = Callable[[Shape], st.SearchStrategy]


@dataclass(frozen=True)
class Kind:
    """A function that writes, and how its arguments are drawn.

    Attributes:
        act: takes an application and the arguments; it writes nothing where the database has no target for it.
        arguments: name -> strategy, by shape.
        weight: how often it is drawn, compared with the others of its side.
    """

    act: Callable[..., None]
    arguments: dict[str, Draw]
    weight: int

    @property
    def name(self) -> str:
        """The side it writes to, and the function's name."""
        return f"{self.act.__module__.rpartition('.')[2]}.{self.act.__name__}"


@dataclass(frozen=True)
class Write:
    """One write with its arguments."""

    kind: Kind
    arguments: dict[str, Any]

    def run(self, application: Application) -> None:
        """Do it, in the transaction that is open."""
        self.kind.act(application, **self.arguments)

    def __repr__(self) -> str:
        return f"{self.kind.name}({', '.join(f'{name}={_short(value)}' for name, value in self.arguments.items())})"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_short(one)}" for name, one in value.items() if one is not None) + "}"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:40]}… ({len(text)} characters)"


def registry() -> tuple[list[Kind], Callable]:
    """An empty list of kinds, and the decorator that adds to it: ``@write(weight=…, argument=<draw>, …)``."""
    kinds: list[Kind] = []

    def write(weight: int = 2, **arguments: Draw) -> Callable:
        def add(act: Callable[..., None]) -> Callable[..., None]:
            kinds.append(Kind(act, arguments, weight))
            return act

        return add

    return kinds, write


def number(shape: Shape) -> st.SearchStrategy[int]:
    """Which of the rows that are there."""
    return st.integers(0, 11)


def flag(shape: Shape) -> st.SearchStrategy[bool]:
    """One way or the other."""
    return st.booleans()


def email(shape: Shape) -> st.SearchStrategy[str]:
    """An address that can be used."""
    return email_addresses()


def any_email(shape: Shape) -> st.SearchStrategy[str]:
    """An address, now and then an unusable one."""
    return email_addresses(unusable=True)


def one_of(*values: Any) -> Draw:
    """One of a few values."""
    return lambda shape: st.sampled_from(values)


def row_of(table: str, *columns: str) -> Draw:
    """Values for a row of a table, or for some of its columns."""
    return lambda shape: row_values(shape, table, columns)


def rows_of(table: str) -> Draw:
    """Two or three rows of a table."""
    return lambda shape: st.lists(row_values(shape, table), min_size=2, max_size=3)


def writes_of(kinds: list[Kind], shape: Shape) -> st.SearchStrategy[Write]:
    """Any write of these kinds."""
    found = []
    for kind in kinds:
        arguments = st.fixed_dictionaries({name: draw(shape) for name, draw in kind.arguments.items()})
        found += [arguments.map(lambda given, kind=kind: Write(kind, given))] * kind.weight
    return st.one_of(found)


def pick(rows: list[Row], n: int) -> Row | None:
    """The nth of the rows, counted round and round; None where there are none."""
    return rows[n % len(rows)] if rows else None


def free_id(application: Application, wanted: str, *tables: str) -> str:
    """The id, or the next one like it that none of the tables has."""
    taken = {row["id"] for table in tables for row in application.rows(table)}
    while wanted in taken:
        wanted += "+"
    return wanted
