# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Changes outside the unified tables that somebody has looked at and accepts, each by its name and with a reason."""

from __future__ import annotations

from typing import Any, Iterable

#: The kind of a change of a table's rows; all other kinds are those of the catalogue.
ROWS = "rows"

#: The option of the module, in the form that Ansible takes.
ARGUMENT: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "default": [],
    "options": {
        "kind": {"type": "str", "required": True},
        "name": {"type": "str", "required": True},
        "change": {"type": "str", "required": True, "choices": ["added", "gone", "altered"]},
        "reason": {"type": "str", "required": True},
    },
}


class Accepted:
    """The list that an operator keeps.

    Args:
        entries: dicts of kind, name, change and reason.

    Attributes:
        changes: what was found and is accepted: kind, name, problem, and accepted, the reason.
    """

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self._entries = {(entry["kind"], entry["name"], entry["change"]): entry for entry in entries}
        self._used: set[tuple[str, str, str]] = set()
        self.changes: list[dict[str, str]] = []

    def tables(self, change: str) -> list[str]:
        """Return the names of the tables that may come or go as a whole."""
        return [name for kind, name, listed in self._entries if kind == "table" and listed == change]

    def sort_out(self, changes: Iterable[dict[str, str]], belongings: dict[tuple[str, str], str]) -> list[dict[str, str]]:
        """Keep the changes that are accepted, and return the others.

        Args:
            changes: dicts of kind, name and problem.
            belongings: kind and name of what comes with a table that is accepted as a whole, and that table's name.
        """
        others = []
        for change in changes:
            key = (change["kind"], change["name"], change["problem"])
            if key not in self._entries:
                key = ("table", belongings.get((change["kind"], change["name"]), ""), change["problem"])
            if key in self._entries:
                self._used.add(key)
                self.changes.append({**change, "accepted": self._entries[key]["reason"]})
            else:
                others.append(change)
        return others

    def leaves_out(self, table: str, column: str) -> bool:
        """Whether a column is an accepted new one, which the table's content before the migrations does not have.

        Args:
            table: its qualified name, as the catalogue spells it.
            column: its plain name.
        """
        spellings = {f"{table}.{column}", table + '."' + column.replace('"', '""') + '"'}
        return any(change["kind"] == "column" and change["problem"] == "added" and change["name"] in spellings for change in self.changes)

    @property
    def unused(self) -> list[dict[str, Any]]:
        """The entries that no change was like."""
        return [entry for key, entry in self._entries.items() if key not in self._used]
