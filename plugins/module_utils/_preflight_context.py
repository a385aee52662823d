# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every probe of preflight is given, and how a probe reports."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Callable, Iterable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Relation, Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._findings import BLOCKER, Finding
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies


@dataclass(frozen=True)
class Options:
    """What decides how preflight looks and what it objects to.

    Attributes:
        schema: database schema of the application's tables.
        mapping: the operator's overriding names, or None.
        policies: the operator's decisions.
        sample_size: how many samples a finding shows at most.
        mask_pii: whether e-mails are masked.
        expect_unified: whether the unified tables must be there.
        restore_test: whether a backup will be restored on this server for a test.
        rehearsal: whether the migration will be rehearsed on a copy on this server.
        bin_dir: the directory of the client programs; None to search for ones that fit the server.
        required_bytes: free disk to ask for instead of the estimate.
        available_bytes: free disk of the server as the operator states it, where it cannot be seen from here.
        max_transaction_seconds: age of a transaction that is worth a warning, in seconds.
        max_replica_lag_seconds: lag of a replica that is worth a warning, in seconds.
        max_duration_seconds: expected duration of the copy that is worth a warning, in seconds.
        lock_timeout: longest wait for a table that another session has locked, in milliseconds.
    """

    schema: str = "public"
    mapping: dict | None = None
    policies: Policies = field(default_factory=Policies)
    sample_size: int = 5
    mask_pii: bool = True
    expect_unified: bool = False
    restore_test: bool = True
    rehearsal: bool = True
    bin_dir: str | None = None
    required_bytes: int | None = None
    available_bytes: int | None = None
    max_transaction_seconds: float = 60.0
    max_replica_lag_seconds: float = 10.0
    max_duration_seconds: float = 600.0
    lock_timeout: int = 2000

    @classmethod
    def from_parameters(cls, parameters: dict[str, Any]) -> Options:
        """Take the options out of module parameters."""
        names = [item.name for item in fields(cls) if item.name != "policies"]
        return cls(policies=Policies.from_parameters(parameters), **{name: parameters[name] for name in names})


@dataclass
class Context:
    """One look at one database.

    Attributes:
        database: the session, inside a read-only transaction.
        options: how to look.
        server: what the server says of itself and of this session, by name.
        settings: settings of the server by name, as ``pg_settings`` shows them to this role.
        schema: the resolved tables and columns.
        run: the journal's current run, or None.
        taken_down: names of indexes and foreign keys that an interrupted run has taken down.
        estimates: what the copy will need; filled by the probes that measure.
    """

    database: Database
    options: Options
    server: dict[str, Any]
    settings: dict[str, str]
    schema: Schema
    run: dict[str, Any] | None = None
    taken_down: frozenset = frozenset()
    estimates: dict[str, Any] = field(default_factory=dict)

    def relations(self, *sides: str) -> list[Relation]:
        """Return the tables of some sides (all without an argument) that are there."""
        return [
            relation for name, relation in self.schema.relations.items()
            if relation.exists and (not sides or _mapping.TABLES[name].side in sides)
        ]

    def scope(self, *sides: str) -> dict[str, Any]:
        """Return the parameters ``schema`` and ``tables`` of a catalogue query over tables that are there."""
        return {"schema": self.schema.name, "tables": [relation.name for relation in self.relations(*sides)]}

    def is_unified(self, table: str) -> bool:
        """Whether an actual table name is one of the unified side."""
        return any(self.schema[name].name == table for name in _mapping.UNIFIED_TABLES)

    def quoted(self, *names: str) -> str:
        """Return a quoted, qualified identifier for a hint."""
        return sql.Identifier(*names).as_string(self.database.connection)

    def table(self, name: str) -> str:
        """Return the quoted, qualified name of an actual table for a hint."""
        return self.quoted(self.schema.name, name)

    def statement(self, template: str, *names: str | tuple[str, ...]) -> str:
        """Return a statement for a hint, its braces filled with quoted identifiers."""
        parts = [sql.Identifier(*((name,) if isinstance(name, str) else name)) for name in names]
        return sql.SQL(template).format(*parts).as_string(self.database.connection)

    def found(self, name: str, severity: str, items: Iterable[str], detail: str, hint: str) -> list[Finding]:
        """Return one finding over the items, or none where there are no items."""
        items = list(items)
        if not items:
            return []
        return [Finding(name, severity, len(items), detail, hint, items[: self.options.sample_size])]


@dataclass(frozen=True)
class Probe:
    """One question to the database.

    Attributes:
        subject: what is looked at, as it reads after *Failed to look at*.
        look: returns what was found.
        if_blind: how heavily it weighs when the probe cannot run: as heavily as the worst it could have found.
    """

    subject: str
    look: Callable[[Context], Iterable[Finding]]
    if_blind: str = BLOCKER


def and_more(statements: list[str], limit: int = 12) -> str:
    """Join statements into one hint; a long list is cut and says so."""
    shown = "; ".join(statements[:limit])
    return shown if len(statements) <= limit else f"{shown}; and {len(statements) - limit} more like these"
