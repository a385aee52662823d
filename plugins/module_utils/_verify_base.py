# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every image of a verification is made of: keys, who shares one, where people went, and what a column must hold.

Nothing here is the copy's: a wrong rule must not prove itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Column, Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import PEOPLE, Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import (
    compose,
    derived_id,
    identity_key,
    is_usable,
    masked_email,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_columns import constant_default

#: The source table of guests in the identity map.
GUEST = "bookings"

#: That a row ``i`` of the map leads to another id than its own, or bears its user's. The planner guesses that two columns are never
#: equal, which would make everybody lead elsewhere; of a cast, that few are 0.
LEADS_ELSEWHERE = "(i.source_id = i.user_id)::int = 0"
BEARS = "(i.source_id = i.user_id)::int <> 0"


@dataclass(frozen=True)
class Branch:
    """Rows that a table must hold, by where they come from.

    Attributes:
        values: actual column -> composed value; None where it cannot be known.
        source: composed FROM clause, with all that follows it.
        unknown: actual column -> composed condition that its value cannot be known after all.
    """

    values: dict[str, object]
    source: object
    unknown: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    """The rows that one table must hold.

    Attributes:
        name: of the check.
        table: composed name of the table that must hold them.
        key: actual columns that tell its rows apart.
        columns: the columns to compare, by actual name.
        parts: the rows, by the name of the part; all branches together give each row once.
        label: composed expression over ``k``, a row with the key columns, that names a row in a sample.
        ctes: composed SELECTs that the branches' sources refer to, by name.
        ignored: columns that are not compared where no legacy row gives them a value, as their defaults are computed.
        born: composed condition over ``a0``, the row there is, that it was born after cut-over; None when it never can be.
        updated: the column that says when a row was changed last, if there is a cut-over.
        cutover_at: composed time from which on such a change is no difference; or None.
    """

    name: str
    table: object
    key: tuple[str, ...]
    columns: dict[str, Column]
    parts: dict[str, list[Branch]]
    label: object
    ctes: dict[str, object] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    born: object = None
    updated: str | None = None
    cutover_at: object = None

    @property
    def flagged(self) -> list[str]:
        """The ignored columns that some rows are given a value for all the same."""
        return [name for name in self.ignored if name in self.columns]


@dataclass(frozen=True)
class Look:
    """What one statement counts.

    Attributes:
        groups: parts of images. Those of one group are row by row the same people and have the same sources, so that they are
            counted together; groups follow each other and share the ``ctes``.
        ctes: composed SELECTs by name, materialized.
    """

    groups: list[list[tuple[Image, str]]]
    ctes: dict[str, object] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The checks that lean on it."""
        return [image.name for group in self.groups for image, _part in group]


class Derivation:
    """Composes what must be from what the legacy tables hold.

    The journal's identity map stands in for the legacy people where only their keys and users are asked for: the image
    ``identity_map`` proves it, row by row, in the same snapshot.

    Args:
        schema: resolved tables and columns.
        policies: the operator's decisions.
        started_at: the run's start, UTC, as text with milliseconds.
        cutover_at: since when the unified side has lived a life of its own, UTC, as text; or None.
        mask_pii: whether e-mails in samples are masked.
        synced_since: since when sync has been on, UTC, as text; or None.
        both_ways: whether the unified side's writes are carried back.
        knows_parted: whether the map says who parted.
    """

    def __init__(
        self,
        schema: Schema,
        policies: Policies,
        started_at: str,
        cutover_at: str | None = None,
        mask_pii: bool = True,
        synced_since: str | None = None,
        both_ways: bool = False,
        knows_parted: bool = True,
    ) -> None:
        self.schema = schema
        self.policies = policies
        self.started_at = started_at
        self.cutover_at = cutover_at
        self.synced_since = synced_since
        self.both_ways = both_ways
        self.knows_parted = knows_parted
        self.mask_pii = mask_pii
        self.map = sql.Identifier("unified_user_journal", "identity_map")

    def of(self, table: str, template: str, **parts):
        """Fill a template about one table: ``{.}`` is the table and ``{.column}`` a logical column of it.

        ``{map}`` is the identity map, ``{guest}`` its name for guests, and ``{table.column}`` and further names are as in
        ``Schema.compose``.
        """

        def find(name: str):
            if name in parts:
                return parts[name]
            if name == "map":
                return self.map
            if name == "guest":
                return sql.Literal(GUEST)
            if name.startswith("."):
                return self.schema.column(table, name[1:]) if name[1:] else self.schema.table(table)
            other, dot, column = name.partition(".")
            return self.schema.column(other, column) if dot else self.schema.table(other)

        return compose(template, find)

    # Who is who

    def key(self, table: str, alias: str):
        """Return the identity key of a row of owners, customers, users or bookings."""
        email = "{alias}.{.customerEmail}" if table == "bookings" else "{alias}.{.email}"
        return identity_key(self.of(table, email, alias=sql.SQL(alias)), self.policies.email_match)

    def anonymous(self, alias: str):
        """Return the condition that a booking names its person by a usable e-mail alone."""
        return self._unlinked(alias, "{id} IS NULL AND {usable}")

    def unresolvable(self, alias: str):
        """Return the condition that a booking names nobody."""
        return self._unlinked(alias, "{id} IS NULL AND NOT {usable}")

    def _unlinked(self, alias: str, template: str):
        email = self.of("bookings", "{b}.{.customerEmail}", b=sql.SQL(alias))
        return compose(template, {"id": self.of("bookings", "{b}.{.customerId}", b=sql.SQL(alias)), "usable": is_usable(email)})

    def shared(self, table: str, alias: str):
        """Return the condition that an owner or customer shares his key with another row: that he is joined.

        Args:
            table: ``studio_owners`` or ``customers``.
            alias: of his row.
        """
        return self.of(
            table,
            "EXISTS (SELECT FROM {map} AS other WHERE other.identity_key = {key} AND other.source_table <> {guest}"
            " AND (other.source_table <> {name} OR other.source_id <> {p}.{.id}))",
            key=self.key(table, alias), name=sql.Literal(table), p=sql.SQL(alias),
        )

    def several(self):
        """Select the keys that more than one owner or customer has, as ``identity_key``, each with a 1 as ``joined``."""
        keys = [self.of(table, "SELECT {key} AS identity_key FROM {.} AS p", key=self.key(table, "p")) for table in PEOPLE]
        return compose(
            "SELECT k.identity_key, 1 AS joined FROM ({keys}) AS k GROUP BY k.identity_key HAVING count(*) > 1", {"keys": sql.SQL(" UNION ALL ").join(keys)}
        )

    def carries_all(self) -> bool:
        """Return whether credentials are carried whether verified or not."""
        return self.policies.join_credentials == "all"

    def dropped(self, alias: str):
        """Return the condition that an owner's credentials are not carried (the contract, section 2)."""
        if self.carries_all():
            return sql.SQL("FALSE")
        return self.of("studio_owners", "({p}.{.emailVerified} IS NULL AND {shared})", p=sql.SQL(alias), shared=self.shared("studio_owners", alias))

    def own_id(self, table: str, alias: str):
        """Return the id that a person would give a user, and the join it needs (the contract, section 2: collisions)."""
        plain = self.of(table, "{p}.{.id}", p=sql.SQL(alias))
        if table == "studio_owners" or self.policies.id_collisions != "rekey":
            return plain, sql.SQL("")
        join = self.of(
            "studio_owners", " LEFT JOIN {.} AS namesake ON namesake.{.id} = {id} AND {theirs} <> {ours}",
            id=plain, theirs=self.key("studio_owners", "namesake"), ours=self.key(table, alias),
        )
        rekeyed = derived_id(sql.Literal("customer:"), plain)
        return self.of("studio_owners", "CASE WHEN namesake.{.id} IS NULL THEN {id} ELSE {rekeyed} END", id=plain, rekeyed=rekeyed), join

    def guest_id(self, key):
        """Return the id of the guest of a key."""
        return derived_id(sql.Literal("guest:"), key)

    def user_of(self, table: str, reference):
        """Return the user of a legacy person that a column refers to, and the join this needs.

        Most people keep their id: only the map's few rows that lead elsewhere are joined.
        """
        join = self.of(
            table,
            " LEFT JOIN (SELECT i.source_id, i.user_id FROM {map} AS i WHERE i.source_table = {name} AND {elsewhere}) AS moved"
            " ON moved.source_id = {reference}",
            name=sql.Literal(table), reference=reference, elsewhere=sql.SQL(LEADS_ELSEWHERE),
        )
        return compose("coalesce(moved.user_id, {reference})", {"reference": reference}), join

    def map_label(self, alias: str):
        """Return the expression that names a row of the identity map; a guest's source id is his e-mail."""
        return compose(
            "coalesce({i}.source_table, 'NULL') || ' ' || coalesce(CASE {i}.source_table WHEN {guest} THEN {masked} ELSE {i}.source_id END, 'NULL')",
            {"i": sql.SQL(alias), "guest": sql.Literal(GUEST), "masked": masked_email(compose("{i}.source_id", {"i": sql.SQL(alias)}), self.mask_pii)},
        )

    def time(self, table: str, column: str, identifier):
        """Return when a row was made: at the run's start, or, while sync is on, at whatever time since then it bears."""
        start = sql.Literal(self.started_at)
        if self.synced_since is None:
            return start
        return self.of(
            table, "coalesce((SELECT x.{column} FROM {.} AS x WHERE x.{.id} = {id} AND x.{column} >= {since}::timestamp), {start}::timestamp)",
            column=self.schema.column(table, column), id=identifier, since=sql.Literal(self.synced_since), start=start,
        )

    # Tables

    def made(self, name: str, table: str, values: dict[str, object], source) -> Image:
        """Return the image of a table by logical column -> value; what is not given has its column's default."""
        names = self.schema[table].names
        return self.filled(name, table, {names[logical]: value for logical, value in values.items() if logical in names}, source)

    def filled(self, name: str, table: str, values: dict[str, object], *sources) -> Image:
        """Return the image of a table by actual column -> value; what is not given has its column's default.

        Args:
            name: of the check.
            table: logical table.
            values: the values, composed.
            sources: FROM clauses; together they give each row once.
        """
        ignored, columns, known = [], {}, {}
        for column_name, column in self.schema[table].columns.items():
            value = values.get(column_name) or constant_default(column)
            if value is not None:
                columns[column_name], known[column_name] = column, value
            elif not column.generated:
                ignored.append(column_name)
        return self.image(name, table, columns, {"rows": [Branch(known, source) for source in sources]}, ignored)

    def image(self, name: str, table: str, columns: dict[str, Column], parts: dict[str, list[Branch]], ignored: list[str], ctes=None) -> Image:
        """Return the image of an application's table."""
        names = self.schema[table].names
        key = ("A", "B") if table == "_UserFavorites" else ("id",)
        actual = tuple(names[column] for column in key)
        # A key is NULL only where its constraint is gone; the row must be named all the same.
        label = sql.SQL(" || ' ' || ").join([compose("coalesce(k.{c}::text, 'NULL')", {"c": sql.Identifier(column)}) for column in actual])
        changes = self.cutover_at is not None and "updatedAt" in names
        return Image(
            name, self.schema.table(table), actual, columns, parts, label, ctes or {}, ignored, self._born(table),
            names["updatedAt"] if changes else None, self._cutover(table, "updatedAt") if changes else None,
        )

    # Cut-over

    def _cutover(self, table: str, column: str, at: str | None = None):
        """Return the time of the cut-over, or another one, in the type of a column."""
        relation = self.schema[table]
        return compose(
            "CAST({at} AS {type})", {"at": sql.Literal(at or self.cutover_at), "type": sql.SQL(relation.columns[relation.names[column]].type)}
        )

    def since(self, table: str, column: str, alias: str, at: str | None = None):
        """Return the condition that a time of a row is not before cut-over, or before another time."""
        return compose(
            "{a}.{column} >= {at}", {"a": sql.SQL(alias), "column": self.schema.column(table, column), "at": self._cutover(table, column, at)}
        )

    def _born(self, table: str):
        """Return the condition that a row was born after cut-over: by its own time, else by its user's."""
        if self.cutover_at is None:
            return None
        own = next((name for name in ("createdAt", "grantedAt", "invitedAt") if name in self.schema[table].names), None)
        if own == "createdAt":
            return self.since(table, own, "a0")
        user = "B" if table == "_UserFavorites" else "userId"
        return self.of(
            table, "({own} OR EXISTS (SELECT FROM {users} AS u WHERE u.{users.id} = a0.{user} AND {born}))",
            own=self.since(table, own, "a0") if own else sql.SQL("FALSE"), user=self.schema.column(table, user), born=self.since("users", "createdAt", "u"),
        )
