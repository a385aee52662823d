# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Two-way sync: the triggers that keep both user models in step while both are in use (the contract, section 4)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal, _mapping, _sync_indexes
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import read_schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql, with_lock_retries
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._contents import lift_timeouts
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies, parse_mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma, compose
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync_forward import CALL_RECOMPUTE, MOMENT, TRIGGERED, TYPES, Forward, mark
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync_report import not_representable
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync_reverse import TRIGGERED as REVERSED
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync_reverse import Reverse
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync_three_way import ThreeWay

#: What every trigger of ours is called, and then some.
PREFIX = "unified_user_"

#: How many identities, or bookings, one transaction of a repair looks at.
_REPAIR_BATCH = 500

_NO_KEYS = "SELECT NULL::text WHERE false"

_INSTALLED = """
SELECT c.relname AS "table", t.tgname AS name, t.tgenabled AS enabled FROM pg_trigger AS t
JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_proc AS p ON p.oid = t.tgfoid
WHERE p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'unified_user_journal') AND NOT t.tgisinternal
ORDER BY c.relname, t.tgname
"""


# Nobody selects from it. Without it a table or a column could be dropped that a trigger writes to, and every write would fail.
_VIEW = "CREATE VIEW {name} AS SELECT {columns} FROM {table}"

_VIEWS = """
SELECT c.relname AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = 'unified_user_journal' AND c.relkind = 'v'
"""


@dataclass(frozen=True)
class SyncOptions:
    """What to keep in step, and how long to wait for locks.

    Attributes:
        schema: database schema of the application's tables.
        mapping: the operator's overriding names, or None.
        policies: the operator's decisions.
        lock_timeout: longest wait for a lock in one attempt, in milliseconds.
        lock_retry_seconds: how long to go on attempting, in seconds.
    """

    schema: str = "public"
    mapping: dict | None = None
    policies: Policies = field(default_factory=Policies)
    lock_timeout: int = 1500
    lock_retry_seconds: float = 60.0


@dataclass(frozen=True)
class _Trigger:
    """One trigger that must be there."""

    table: str
    name: str
    definition: object


class Sync:
    """The sync of one database.

    Args:
        database: an open session of the role that will own the functions; nothing else may use it meanwhile.
        options: what to keep in step.

    Attributes:
        repaired: how many identities ``install`` looked at again, because a trigger had been missing or was outdated; 0 when none had.
    """

    def __init__(self, database: Database, options: SyncOptions) -> None:
        self.database = database
        self.options = options
        self.schema = read_schema(database, options.schema, parse_mapping(options.mapping))
        self.repaired = 0

    def install(self, direction: str) -> bool:
        """Keep both sides in step from now on; a direction that is on already is made anew if it is not as it should be.

        What missing or outdated triggers of ``forward`` did not carry is carried then. Once the unified side is written as well, nobody can
        tell which side missed a write: the verification names what differs.

        Args:
            direction: ``forward`` (legacy to unified), ``reverse`` or ``both``.

        Returns:
            Whether anything was changed.

        Raises:
            UnifiedUserError: a table or column is missing, or a lock is not to be had.
        """
        self.schema.require()
        self._require_run()
        if not self.changes(direction):
            return False
        self._locked(lambda: _journal.create(self.database), "bring the journal up to date")
        current = self._current()
        if current and current["direction"] == "forward" and (self._missing("forward") or self._outdated(current)):
            self._turn_on("forward")
            self.repaired = self.repair()
        if not self.repaired or direction != "forward":
            self._turn_on(direction)
        return True

    def _turn_on(self, direction: str) -> None:
        # Before the triggers: without them every write would look through whole tables.
        _sync_indexes.make(self.database, self.schema, self.options.policies, direction)
        self._locked(lambda: self.install_in_transaction(direction), "turn on the sync")

    def changes(self, direction: str | None) -> bool:
        """Return whether ``install`` (or, for None, ``remove``) has anything to do.

        Raises:
            UnifiedUserError: it is to end while a migration leans on it.
        """
        if direction is None:
            there = bool(self._current() or self.database.rows(_INSTALLED))
            run = _journal.current_run(self.database)
            if there and run and run["state"] == "running":
                raise UnifiedUserError(
                    "turn off the sync", "the migration that is under way leans on it: what is written meanwhile would be lost to it",
                    "Let it finish, or end it with playbooks/abort.yml, which takes the sync along",
                )
            return there
        current = self._current()
        if not current or current["direction"] != direction or self._missing(direction) or self._outdated(current):
            return True
        if set(self._views()) - {row["name"] for row in self.database.rows(_VIEWS)}:
            return True
        return bool(_sync_indexes.missing(self.database, self.schema, self.options.policies, direction))

    def _require_run(self) -> None:
        """Insist on a finished copy under the same settings: sync only carries what is written from now on."""
        run = _journal.current_run(self.database)
        if not run or run["state"] != "finished":
            raise UnifiedUserError(
                "turn on the sync", "the data of this database has not been migrated", "Run playbooks/migrate.yml first"
            )
        changed = _journal.changed_settings(run, self._settings())
        if changed:
            raise UnifiedUserError(
                "turn on the sync", f"the migration was made with other settings of {', '.join(changed)}", "Set them as they were"
            )

    def install_in_transaction(self, direction: str) -> None:
        """Make functions and triggers in the transaction that is open, whose caller waits for locks; indexes are made before it."""
        since = (self._current() or {}).get("since")
        drop(self.database, self.schema.name)
        for name, attributes in TYPES.items():
            self.database.execute(compose("CREATE TYPE {name} AS ({attributes})", {
                "name": sql.Identifier(_journal.SCHEMA, name), "attributes": sql.SQL(attributes)}))  # fmt: skip
        for statement in self._functions(direction):
            self.database.execute(statement)
        self.database.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA unified_user_journal FROM PUBLIC")
        for trigger in self._triggers(direction):
            self.database.execute(trigger.definition)
            # Writes that are replicated or replayed are carried, too.
            self.database.execute(self.schema.compose(
                "ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}", table=trigger.table, name=sql.Identifier(trigger.name)))  # fmt: skip
        for view in self._views().values():
            self.database.execute(view)
        self.database.execute(
            # A transaction that is open already may write later, and its rows bear the time of its start.
            "INSERT INTO unified_user_journal.sync (direction, settings, triggers, definition, since)"
            " SELECT %s, %s, %s, %s, coalesce(%s, least(clock_timestamp(), min(a.xact_start))) FROM pg_stat_activity AS a WHERE a.datname = current_database()",
            (direction, json.dumps(self._settings()), self._names(direction), self._definition(direction), since),
        )

    def remove(self) -> bool:
        """End the sync. The rows on both sides stay as they are.

        Returns:
            Whether anything was changed.

        Raises:
            UnifiedUserError: a lock is not to be had, or a migration under way leans on the sync.
        """
        if not self.changes(None):
            return False
        self._locked(lambda: end(self.database, self.schema.name), "turn off the sync")
        return True

    def repair(self) -> int:
        """Bring every identity up to date, whatever was written while no trigger was there; the sync must be on.

        Returns:
            How many identities there are.

        Raises:
            UnifiedUserError: other sessions hold some of them locked all the while.
        """
        bookings = [row["id"] for row in self.database.rows(self._stray_bookings())]
        moment = self.database.value(compose("SELECT {moment}::text", {"moment": sql.SQL(MOMENT)}))
        self.database.execute("DROP TABLE IF EXISTS pg_temp.to_repair")
        # Keys are addresses of people: they stay in the server, and out of every statement that it might log.
        identities = self.database.execute(
            compose("CREATE TEMPORARY TABLE to_repair AS SELECT row_number() OVER () AS n, k.key FROM ({keys}) AS k", {"keys": self._all_keys()})
        )
        for first in range(1, identities + 1, _REPAIR_BATCH):
            keys = compose("SELECT r.key FROM pg_temp.to_repair AS r WHERE r.n BETWEEN {first} AND {last}", {
                "first": sql.Literal(first), "last": sql.Literal(first + _REPAIR_BATCH - 1),
            })  # fmt: skip
            self._recompute(keys, [], moment)
        self.carry_bookings(bookings, moment)
        return identities

    def carry_bookings(self, ids: list[str], moment: str) -> None:
        """Bring bookings up to date that no key of an identity leads to.

        Args:
            ids: of the bookings.
            moment: what new rows say when they were made, a timestamp in UTC without zone, as text.
        """
        for first in range(0, len(ids), _REPAIR_BATCH):
            self._recompute(sql.SQL(_NO_KEYS), ids[first : first + _REPAIR_BATCH], moment)

    def _recompute(self, keys, bookings: list[str], moment: str) -> None:
        def attempt() -> None:
            with self.database.transaction():
                lift_timeouts(self.database)
                self.database.value("SELECT set_config('lock_timeout', %s, true)", (f"{self.options.lock_timeout}ms",))
                self.database.value(compose(CALL_RECOMPUTE, {"keys": keys}), (bookings, moment))

        self._until_locked(attempt, "repair identities")

    def status(self) -> dict[str, Any]:
        """Say what is on, and what is wrong with it.

        Returns:
            ``direction`` (None when off), ``missing`` (triggers that are not there or not enabled always, by table and name),
            ``outdated`` (whether they were made for other columns, or by another version of the collection), ``quarantine``
            (reason -> rows), ``not_representable`` (kind -> rows that the legacy side cannot hold).
        """
        current = self._current()
        if not current:
            return {"direction": None, "missing": [], "outdated": False, "quarantine": {}, "not_representable": {}}
        reasons = self.database.rows("SELECT reason, count(*) AS rows FROM unified_user_journal.quarantine GROUP BY reason ORDER BY reason")
        return {
            "direction": current["direction"],
            "missing": self._missing(current["direction"]),
            "outdated": self._outdated(current),
            "quarantine": {row["reason"]: row["rows"] for row in reasons},
            "not_representable": not_representable(self.database, self.schema, self.options.policies.guest_role),
        }

    def outdated(self) -> bool:
        """Return whether the triggers that are there were made for other columns, or by another version of the collection."""
        current = self._current()
        return bool(current) and self._outdated(current)

    def _missing(self, direction: str) -> list[str]:
        enabled = {f"{row['table']}.{row['name']}" for row in self.database.rows(_INSTALLED) if row["enabled"] == "A"}
        return [name for name in self._names(direction) if name not in enabled]

    def _names(self, direction: str) -> list[str]:
        return [f"{self.schema[trigger.table].name}.{trigger.name}" for trigger in self._triggers(direction)]

    # What is made

    def _settings(self) -> dict[str, Any]:
        return _journal.settings_of(self.options.schema, self.options.policies, self.options.mapping)

    def _current(self) -> dict[str, Any] | None:
        if not _journal.exists(self.database):
            return None
        return self.database.row("SELECT direction, settings, definition, since FROM unified_user_journal.sync")

    def _functions(self, direction: str) -> list:
        makers = (Forward,) if direction == "forward" else (ThreeWay, Reverse)
        return [statement for maker in makers for statement in maker(self.database, self.schema, self.options.policies).functions()]

    def _views(self) -> dict[str, object]:
        """Return name -> statement of the views that keep tables and columns from being dropped under the sync."""
        views = {}
        for table, columns in self.schema.carried_columns().items():
            name = f"kept_in_step_{table}"
            views[name] = self.schema.compose(
                _VIEW, name=sql.Identifier(_journal.SCHEMA, name), columns=comma(sql.Identifier(column) for column in columns), table=table
            )
        return views

    def _definition(self, direction: str) -> str:
        """Return what tells this sync from one for other columns, or of another version: a digest of the statements that make it."""
        statements = [*self._functions(direction), *(trigger.definition for trigger in self._triggers(direction)), *self._views().values()]
        text = "\n".join([*(f"{name} {attributes}" for name, attributes in TYPES.items()), *(s.as_string(self.database.connection) for s in statements)])
        return hashlib.sha256(text.encode()).hexdigest()

    def _outdated(self, current: dict[str, Any]) -> bool:
        """Return whether the triggers that are there are not those that would be made now, under the same settings."""
        if current["settings"] != json.loads(json.dumps(self._settings())):
            return False
        try:
            self.schema.require()
        except UnifiedUserError:
            return True
        return current["definition"] != self._definition(current["direction"])

    def _triggers(self, direction: str) -> list[_Trigger]:
        triggers = []
        if direction != "reverse":
            triggers += [trigger for table in TRIGGERED for trigger in self._forward(table)]
        if direction != "forward":
            triggers += [trigger for table in REVERSED for trigger in self._rows(table, "reverse", "forward")]
        triggers.append(self._trigger("studio_owners", "release_studios", "BEFORE DELETE", "FOR EACH ROW", "forward_release_studios", _guard("reverse")))
        synced = [table for table in (*_mapping.SOURCES, *_mapping.FILLED) if table != "services"]
        triggers += [self._trigger(table, "refuse_truncate", "BEFORE TRUNCATE", "FOR EACH STATEMENT", "refuse_truncate") for table in synced]
        return triggers

    def _forward(self, table: str) -> list[_Trigger]:
        if table != "studios":
            return self._rows(table, "forward", "reverse")
        # The column must be named: when it is dropped, the application's writes of studios would fail otherwise.
        update = self.schema.compose("AFTER UPDATE OF {studios.id}, {studios.ownerId}")
        changed = self.schema.compose("(OLD.{studios.ownerId}, OLD.{studios.id}) IS DISTINCT FROM (NEW.{studios.ownerId}, NEW.{studios.id})")
        return self._rows(table, "forward", "reverse", update, changed)

    def _rows(self, table: str, direction: str, other: str, update=None, changed=None) -> list[_Trigger]:
        guard, function = _guard(other), f"{direction}_{table}"
        return [
            self._trigger(table, f"{direction}_insert", "AFTER INSERT", "FOR EACH ROW", function, guard),
            self._trigger(table, f"{direction}_update", update or "AFTER UPDATE", "FOR EACH ROW", function,
                          compose("{g} AND {c}", {"g": guard, "c": changed}) if changed else guard),
            self._trigger(table, f"{direction}_delete", "AFTER DELETE", "FOR EACH ROW", function, guard),
        ]

    def _trigger(self, table: str, name: str, event, scope: str, function: str, condition=None) -> _Trigger:
        parts = {
            "name": sql.Identifier(PREFIX + name), "event": sql.SQL(event) if isinstance(event, str) else event, "scope": sql.SQL(scope),
            "function": sql.Identifier(_journal.SCHEMA, function),
            "when": compose(" WHEN ({c})", {"c": condition}) if condition else sql.SQL(""),
        }
        definition = self.schema.compose("CREATE TRIGGER {name} {event} ON {table} {scope}{when} EXECUTE FUNCTION {function}()", table=table, **parts)
        return _Trigger(table, PREFIX + name, definition)

    def _locked(self, attempt, action: str) -> None:
        def one_attempt() -> None:
            with self.database.transaction():
                self.database.value("SELECT set_config('lock_timeout', %s, true)", (f"{self.options.lock_timeout}ms",))
                attempt()

        self._until_locked(one_attempt, action)

    def _until_locked(self, attempt, action: str) -> None:
        names = [self.schema.table(table).as_string(self.database.connection) for table in (*_mapping.SOURCES, *_mapping.FILLED)]
        with_lock_retries(attempt, action, self.database, lambda: self.database.lock_holders(names), self.options.lock_retry_seconds)

    # What there is to repair

    def _all_keys(self):
        forward = Forward(self.database, self.schema, self.options.policies)
        return self.schema.compose(
            "SELECT {owner} AS key FROM {studio_owners} AS o UNION SELECT {customer} FROM {customers} AS c"
            " UNION SELECT {booking} FROM {bookings} AS b WHERE b.{bookings.customerId} IS NULL"
            " UNION SELECT i.identity_key FROM unified_user_journal.identity_map AS i",
            owner=forward.key("studio_owners", "o"), customer=forward.key("customers", "c"), booking=forward.key("bookings", "b"),
        )

    def _stray_bookings(self):
        return self.schema.compose(
            "SELECT b.{bookings.id} AS id FROM {bookings} AS b FULL JOIN {new_bookings} AS n ON n.{new_bookings.id} = b.{bookings.id}"
            " WHERE n.{new_bookings.id} IS NULL OR b.{bookings.id} IS NULL"
        )


def direction(database: Database) -> str | None:
    """Return which direction is on in a database, or None."""
    if not _journal.exists(database):
        return None
    return database.value("SELECT direction FROM unified_user_journal.sync")


def end(database: Database, schema: str) -> None:
    """Drop all that a sync is made of, in the transaction that is open. See ``drop``."""
    drop(database, schema)
    _sync_indexes.drop(database, schema)


def drop(database: Database, schema: str) -> None:
    """Drop triggers, views, functions and types, in the transaction that is open.

    Args:
        database: a session of their owner.
        schema: the database schema of the application's tables.
    """
    for row in database.rows(_INSTALLED):
        names = {"name": sql.Identifier(row["name"]), "table": sql.Identifier(schema, row["table"])}
        database.execute(compose("DROP TRIGGER {name} ON {table}", names))
    for row in database.rows(_VIEWS):
        database.execute(compose("DROP VIEW {name}", {"name": sql.Identifier(_journal.SCHEMA, row["name"])}))
    functions = database.rows(
        "SELECT p.oid::regprocedure::text AS name FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace"
        " WHERE n.nspname = 'unified_user_journal'"
    )
    if functions:
        database.execute(sql.SQL("DROP FUNCTION {}").format(comma(sql.SQL(row["name"]) for row in functions)))
    for name in TYPES:
        database.execute(compose("DROP TYPE IF EXISTS {name}", {"name": sql.Identifier(_journal.SCHEMA, name)}))
    database.execute("DELETE FROM unified_user_journal.sync")


def _guard(other: str):
    """Return the condition that a write was not made by the other direction's functions."""
    # As short as can be: it is read with every statement, as text.
    return compose("current_setting('search_path') NOT LIKE {mark}", {"mark": sql.Literal(f"%{mark(other)}%")})
