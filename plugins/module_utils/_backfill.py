# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The backfill of an online migration: batches of identity keys, each locked, carried and counted in one transaction.

A batch carries keys that nobody has carried before: whoever writes to an identity locks its key and carries it whole, or leaves
it to the batch that is still to come, and its lock row tells which. The rows are the copy's projection of these keys.
Identities that are out of the ordinary go through the sync's ``recompute`` instead.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, psycopg2, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._contents import lift_timeouts
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._projection import CUSTOMER_SIDE, Projection
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import all_of, comma, compose, identity_key, is_usable
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync_forward import CALL_RECOMPUTE
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync_scope import ScopedSchema

#: Somebody else is at work on one of these rows: the batch goes again, smaller.
YIELDING = ("55P03", "40P01", "40001")

_NEXT = """
INSERT INTO batch (key)
SELECT k.key FROM ({sources}) AS k WHERE k.key IS NOT NULL ORDER BY k.key COLLATE "C" LIMIT {size}
"""

_BOUND = "{key} {operator} (SELECT s.{bound} FROM unified_user_journal.backfill AS s WHERE s.slice = {slice})"

# The journal's columns have the database's collation, and so has the index. OFFSET 0 has each key looked up there.
_FREE = 'NOT EXISTS (SELECT FROM unified_user_journal.identity_lock AS l WHERE l.identity_key = {key} COLLATE "default" AND l.generation > 0 OFFSET 0)'

# A batch that a crash of the server takes along has its cursor in it, and goes again: no commit needs to wait for the disk. Until
# all is there, rough statistics are enough.
_SESSION = {
    "jit": "off", "random_page_cost": "1.1", "client_min_messages": "warning", "max_parallel_workers_per_gather": "0", "synchronous_commit": "off",
    "default_statistics_target": "10",
}  # fmt: skip

# OFFSET keeps the planner from reading the whole table once for all: a batch is always a small part of it. The outer one keeps
# it from joining anything else key by key.
_EACH = "(SELECT scoped.* FROM {of} CROSS JOIN LATERAL (SELECT t.* FROM {table} AS t WHERE {condition} OFFSET 0) AS scoped OFFSET 0)"

# Of these keys only those that nobody has carried whole before stay in the batch: what has a generation above 0 is there.
_LOCK = """
WITH locked AS (
    INSERT INTO unified_user_journal.identity_lock AS l (identity_key, generation)
    SELECT b.key, 1 FROM batch AS b ORDER BY b.key COLLATE "C"
    ON CONFLICT (identity_key) DO UPDATE SET generation = 1 WHERE l.generation = 0 RETURNING identity_key
)
DELETE FROM batch AS b WHERE NOT EXISTS (SELECT FROM locked AS l WHERE l.identity_key = b.key)
"""

# What is not simply new: an id that somebody else has or had, a duplicate that stays out, an unusable e-mail. OFFSET has each
# looked up: planned while the map is small, a join would read all of it for every batch.
_UNUSUAL = """
SELECT m.key FROM member AS m WHERE NOT {usable} OR EXISTS (
    SELECT FROM unified_user_journal.identity_map AS i WHERE i.source_id = m.source_id AND i.source_table IN ('studio_owners', 'customers') OFFSET 0
) OR EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = m.user_id OFFSET 0)
OR (m.user_id <> m.source_id AND EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = m.source_id OFFSET 0))
OR CASE m.side WHEN {customer}
    THEN EXISTS (SELECT FROM {studio_owners} AS o WHERE o.{studio_owners.id} = m.source_id AND {owner_key} <> m.key OFFSET 0)
    ELSE EXISTS (SELECT FROM {customers} AS c WHERE c.{customers.id} = m.source_id AND {customer_key} <> m.key OFFSET 0)
END
{duplicates}
UNION SELECT g.key FROM guest AS g WHERE EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = g.user_id OFFSET 0)
OR EXISTS (SELECT FROM {studio_owners} AS o WHERE o.{studio_owners.id} = g.user_id OFFSET 0)
OR EXISTS (SELECT FROM {customers} AS c WHERE c.{customers.id} = g.user_id OFFSET 0)
"""

_DUPLICATES = "UNION SELECT m.key FROM member AS m GROUP BY m.key, m.side HAVING count(*) > 1"

_FILL = "INSERT INTO {table} ({columns}) {select}"

_MAP = "INSERT INTO unified_user_journal.identity_map (source_table, source_id, user_id, identity_key) {select}"

_QUARANTINE = """
INSERT INTO unified_user_journal.quarantine (source_table, source_id, reason, "row") {select} ON CONFLICT (source_table, source_id) DO NOTHING
"""


# Shares of about the same number of customers, by the key that each ends with.
_SLICES = """
INSERT INTO unified_user_journal.backfill (slice, after, upto)
SELECT row_number() OVER keys - 1, lag(u.key) OVER keys, u.key FROM (
    SELECT DISTINCT b.key FROM (
        SELECT (SELECT {key} FROM {customers} AS t ORDER BY 1 OFFSET (SELECT count(*) * n / {workers} FROM {customers}) LIMIT 1) AS key
        FROM generate_series(1, {workers} - 1) AS n
    ) AS b WHERE b.key IS NOT NULL UNION ALL SELECT NULL
) AS u WINDOW keys AS (ORDER BY u.key COLLATE "C" NULLS LAST)
"""


class Yielded(Exception):
    """A batch made way for somebody else's transaction."""


@dataclass(frozen=True)
class Carried:
    """What one batch did.

    Attributes:
        keys: how many it looked at; 0 at the slice's end.
        rows: unified rows written.
        seconds: how long its transaction took.
    """

    keys: int
    rows: int
    seconds: float


class Backfill:
    """One worker's batches.

    Args:
        database: a session of its own, with ``search_path`` set to ``pg_catalog``.
        schema: the resolved tables.
        policies: the operator's decisions.
        started_at: the run's start, a timestamp in UTC without zone, as text.
        number: which slice of the keys it works on.
    """

    def __init__(self, database: Database, schema: Schema, policies: Policies, started_at: str, number: int) -> None:
        self.database = database
        self.schema = schema
        self.policies = policies
        self.started_at = started_at
        self.number = number
        nobodys = schema.compose(" AND t.{bookings.customerId} IS NULL")
        anonymous = self._in_batch("bookings", nobodys)
        people: dict[str, object] = {table: self._in_batch(table) for table in _mapping.PEOPLE}
        # Guests are under keys of no member, and what is unresolvable is under keys that are no e-mail: few have to be looked up.
        people["bookings"] = self._in_batch("bookings", nobodys, sql.SQL("NOT EXISTS (SELECT FROM member AS m WHERE m.key = k.key)"))
        unresolvable = self._in_batch("bookings", nobodys, compose("NOT {usable}", {"usable": is_usable(sql.SQL("k.key"))}))
        named = schema.compose(_EACH, of=sql.SQL("member AS n"), table="bookings", condition=schema.compose(
            "t.{bookings.customerId} = n.source_id AND n.side = {customer}", customer=sql.Literal(CUSTOMER_SIDE)
        ))  # fmt: skip
        bookings = sql.SQL(" UNION ALL ").join([named, anonymous])
        moment = sql.Literal(started_at) + sql.SQL("::timestamp(3)")
        self._people = Projection(ScopedSchema(schema, people), policies, moment)
        self._projection = Projection(ScopedSchema(schema, {"bookings": bookings}), policies, moment)
        self._unresolvable = Projection(ScopedSchema(schema, {"bookings": unresolvable}), policies, moment)

    def _in_batch(self, table: str, condition=None, wanted=None):
        """Select the rows of a table whose key is in the batch.

        Args:
            table: logical name.
            condition: composed; a further one on its rows ``t``, with its AND.
            wanted: composed; a condition on the batch's rows ``k``.
        """
        key = compose("{key} = b.key", {"key": self._key(table, "t")})
        keys = compose("(SELECT k.key FROM batch AS k WHERE {wanted}) AS b", {"wanted": wanted or sql.SQL("true")})
        return self.schema.compose(_EACH, of=keys, table=table, condition=sql.Composed([key, condition or sql.SQL("")]))

    def prepare(self) -> None:
        """Set up the session: it keeps the same temporary tables for all its batches."""
        database = self.database
        lift_timeouts(database, "session")
        for name, value in _SESSION.items():
            database.value("SELECT set_config(%s, %s, false)", (name, value))
        # Keys are addresses of people: they stay in the server, and out of every statement that it might log.
        database.execute("CREATE TEMPORARY TABLE batch (key text) ON COMMIT DELETE ROWS")
        database.execute("CREATE TEMPORARY TABLE unusual (key text) ON COMMIT DELETE ROWS")
        relations = {"member": self._people.member(), "guest": self._people.guest()}
        for name, select in relations.items():
            database.execute(
                compose("CREATE TEMPORARY TABLE {name} ON COMMIT DELETE ROWS AS {select} WITH NO DATA", {"name": sql.Identifier(name), "select": select})
            )
        statements = {
            "lock_keys": sql.SQL(_LOCK),
            **{f"find_{name}": compose("INSERT INTO {name} {select}", {"name": sql.Identifier(name), "select": select}) for name, select in relations.items()},
            "find_unusual": compose("INSERT INTO unusual {select}", {"select": self._unusual()}),
            "fill_identity_map": compose(_MAP, {"select": self._projection.identity_map()}),
            "fill_quarantine": compose(_QUARANTINE, {"select": self._unresolvable.quarantine()}),
            **{
                f"fill_{table}": self.schema.compose(_FILL, table=table, columns=comma(columns), select=select)
                for table, (columns, select) in self._projection.targets().items()
            },
        }
        for name, statement in statements.items():
            # Planned once: that takes as long as carrying a few hundred keys. Nobody analyzes the temporary tables: the planner
            # then takes each for ten pages at least, whomever the batch has that it plans for, and loops over no pairs of them.
            database.execute(compose("PREPARE {name} AS {statement}", {"name": sql.Identifier(name), "statement": statement}))

    def advance(self, size: int, lock_timeout: int) -> Carried:
        """Carry the next keys of the slice, and move its cursor, in one transaction.

        Args:
            size: how many keys at most.
            lock_timeout: longest wait for a lock, in milliseconds.

        Raises:
            Yielded: somebody else is at work on them; nothing was carried.
        """
        started = time.monotonic()
        try:
            with self.database.transaction():
                self.database.value("SELECT set_config('lock_timeout', %s, true)", (f"{lock_timeout}ms",))
                keys = self._next(size)
                rows = self._carry() if keys else 0
                self.database.execute(
                    "UPDATE unified_user_journal.backfill SET rows = rows + %s, done = %s WHERE slice = %s", (rows, keys < size, self.number)
                )
        except psycopg2.Error as error:
            if error.pgcode in YIELDING and not self.database.connection.closed:
                raise Yielded from error
            raise
        return Carried(keys, rows, time.monotonic() - started)

    def skip(self) -> None:
        """Move the cursor past the next key: it is looked at again at the end."""
        with self.database.transaction():
            keys = self._next(1)
            self.database.execute(
                "UPDATE unified_user_journal.backfill SET skipped = skipped + %s, done = %s WHERE slice = %s", (keys, not keys, self.number)
            )

    def _next(self, size: int) -> int:
        """Put the next keys into the batch, and move the cursor behind the last of them; return how many."""
        row = self.database.row(
            "SELECT after IS NOT NULL AS after, upto IS NOT NULL AS upto FROM unified_user_journal.backfill WHERE slice = %s", (self.number,)
        )
        limit = sql.Literal(size)
        sources = []
        for table in (*_mapping.PEOPLE, "bookings"):
            key = self._key(table, "t")
            # Passing over what is there already keeps ahead of any application: its new people come with a lock row.
            conditions = [compose(_FREE, {"key": key})]
            if table == "bookings":
                conditions.append(self.schema.compose("t.{bookings.customerId} IS NULL"))
            for operator, bound in ((">", "after"), ("<=", "upto")):
                if row[bound]:
                    conditions.append(compose(_BOUND, {
                        "key": key, "operator": sql.SQL(operator), "bound": sql.Identifier(bound), "slice": sql.Literal(self.number),
                    }))  # fmt: skip
            sources.append(self.schema.compose(
                "(SELECT DISTINCT {key} AS key FROM {table} AS t WHERE {conditions} ORDER BY 1 LIMIT {size})",
                key=key, table=table, conditions=all_of(conditions), size=limit,
            ))  # fmt: skip
        self.database.execute(compose(_NEXT, {"sources": sql.SQL(" UNION ").join(sources), "size": limit}))
        self.database.execute(
            'UPDATE unified_user_journal.backfill SET after = coalesce((SELECT max(b.key COLLATE "C") FROM batch AS b), after) WHERE slice = %s',
            (self.number,),
        )
        return self.database.value("SELECT count(*) FROM batch")

    def _carry(self) -> int:
        database = self.database
        for name in ("lock_keys", "find_member", "find_guest"):
            database.execute(f"EXECUTE {name}")
        unusual = database.execute("EXECUTE find_unusual")
        if unusual:
            for table in ("batch", "member", "guest"):
                database.execute(compose("DELETE FROM {table} WHERE key IN (SELECT u.key FROM unusual AS u)", {"table": sql.Identifier(table)}))
        rows = sum(self._fill(table) for table in self._projection.targets())
        database.execute("EXECUTE fill_identity_map")
        database.execute("EXECUTE fill_quarantine")
        if unusual:
            database.value(compose(CALL_RECOMPUTE, {"keys": sql.SQL("SELECT u.key FROM unusual AS u")}), ([], self.started_at))
        return rows

    def _fill(self, table: str) -> int:
        return self.database.execute(compose("EXECUTE {name}", {"name": sql.Identifier(f"fill_{table}")}))

    def _unusual(self):
        stays_out = self.policies.duplicate_identities != "merge"
        return self.schema.compose(
            _UNUSUAL, customer=sql.Literal(CUSTOMER_SIDE), owner_key=self._key("studio_owners", "o"), customer_key=self._key("customers", "c"),
            usable=is_usable(sql.SQL("m.key")), duplicates=sql.SQL(_DUPLICATES if stays_out else ""),
        )

    def _key(self, table: str, alias: str):
        email = self.schema.column(table, "customerEmail" if table == "bookings" else "email")
        return identity_key(compose("{alias}.{email}", {"alias": sql.SQL(alias), "email": email}), self.policies.email_match)


def make_slices(database: Database, schema: Schema, policies: Policies, workers: int) -> None:
    """Share the keys out, once: a run that goes on keeps its slices.

    Args:
        database: an open session outside a transaction.
        schema: the resolved tables.
        policies: the operator's decisions.
        workers: how many slices of about the same number of keys.
    """
    if database.value("SELECT EXISTS (SELECT FROM unified_user_journal.backfill)"):
        return
    key = identity_key(compose("t.{email}", {"email": schema.column("customers", "email")}), policies.email_match)
    # Customers are nearly everybody.
    database.execute(schema.compose(_SLICES, key=key, workers=sql.Literal(workers)))


def begin_again(database: Database) -> bool:
    """Start over where keys were skipped; return whether there were any. What has been carried is passed over quickly."""
    with database.transaction():
        skipped = database.value("SELECT coalesce(sum(skipped), 0) FROM unified_user_journal.backfill")
        if skipped:
            database.execute("DELETE FROM unified_user_journal.backfill WHERE slice > 0")
            database.execute("UPDATE unified_user_journal.backfill SET after = NULL, upto = NULL, skipped = 0, done = false WHERE slice = 0")
    return bool(skipped)
