# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What people must have: roles, studios, accounts, sessions, bookings and favourites (the contract, sections 2 and 3)."""

from __future__ import annotations

from dataclasses import replace

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Column
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import GRANTED_BY, PEOPLE
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import compose, derived_id
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_base import (
    BEARS,
    GUEST,
    LEADS_ELSEWHERE,
    Branch,
    Derivation,
    Image,
    Look,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_columns import shared_columns
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_people import TEXT

#: Ends a subquery that PostgreSQL must not dissolve, as it would compute its derived ids again wherever they are named.
_ONCE = "OFFSET 0"

_JSONB = Column("", "jsonb", "jsonb", "U", True, None, False, False)


class Belongings:
    """Composes the images of the tables that refer to users, and of the quarantine.

    Args:
        derivation: keys, policies and tables.
    """

    def __init__(self, derivation: Derivation) -> None:
        self.derivation = derivation
        self.schema = derivation.schema

    def _held(self):
        """Select user and source table of each table that a user has rows in, once.

        A row that bears its user's id is the only one of its table that does. The others are few: those that lead elsewhere.
        """
        return self.derivation.of(
            "users",
            "SELECT i.user_id, i.source_table FROM {map} AS i WHERE {bears} OR i.source_table = {guest}"
            " UNION ALL SELECT DISTINCT i.user_id, i.source_table FROM {map} AS i WHERE {elsewhere} AND i.source_table <> {guest}"
            " AND NOT EXISTS (SELECT FROM {map} AS x WHERE x.source_id = i.user_id AND x.user_id = i.user_id AND x.source_table = i.source_table)",
            bears=sql.SQL(BEARS), elsewhere=sql.SQL(LEADS_ELSEWHERE),
        )

    def _of_key(self):
        """Select each identity key once, with its user: by the row that bears the user's id, by the owner's if two do."""
        # Nobody bears the id of a customer who got a derived one.
        derived = derived_id(sql.Literal("customer:"), sql.SQL("i.source_id"))
        rekeyed = self.derivation.policies.id_collisions == "rekey"
        return self.derivation.of(
            "users",
            "SELECT i.identity_key, i.user_id FROM {map} AS i WHERE ({bears} OR i.source_table = {guest}{rekeyed})"
            " AND NOT EXISTS (SELECT FROM {map} AS x WHERE x.source_table = {owners} AND i.source_table = {customers}"
            " AND x.source_id = i.source_id AND x.user_id = i.user_id)",
            bears=sql.SQL(BEARS), owners=sql.Literal("studio_owners"), customers=sql.Literal("customers"),
            rekeyed=compose(" OR i.user_id = {derived}", {"derived": derived}) if rekeyed else sql.SQL(""),
        )

    def role_assignments(self) -> Image:
        """STUDIO_OWNER and CUSTOMER for the rows an identity has, the guests' role for guests, each once."""
        roles = {**PEOPLE, "guest": self.derivation.policies.guest_role}
        identifier = sql.SQL("r.id")
        values = {
            "id": identifier, "userId": sql.SQL("r.user_id"), "role": sql.SQL("r.role"), "studioId": sql.SQL("NULL"),
            "grantedBy": sql.Literal(GRANTED_BY), "expiresAt": sql.SQL("NULL"), **self._times("user_role_assignments", identifier, "grantedAt"),
        }
        source = compose(
            "FROM (SELECT h.user_id, h.role, {id} AS id FROM (SELECT f.user_id,"
            " CASE f.source_table WHEN 'studio_owners' THEN {studio_owners} WHEN 'customers' THEN {customers} ELSE {guest} END AS role"
            " FROM ({held}) AS f) AS h {once}) AS r",
            {
                **{name: sql.Literal(role) for name, role in roles.items()}, "held": self._held(), "once": sql.SQL(_ONCE),
                "id": derived_id(sql.Literal("role:"), sql.SQL("h.user_id"), sql.Literal(":"), sql.SQL("h.role")),
            },
        )
        same = "x.{.userId} = r.user_id AND x.{.role}::text = r.role AND x.{.studioId} IS NULL AND x.{.id} <> r.id"
        return self._under_any_id(self.derivation.made("role_assignments", "user_role_assignments", values, source), "user_role_assignments", same)

    def ownerships(self) -> Image:
        """One for each studio with an owner."""
        studio = self.schema.compose("s.{studios.id}")
        user, join = self.derivation.user_of("studio_owners", self.schema.compose("s.{studios.ownerId}"))
        identifier = sql.SQL("o.id")
        values = {
            "id": identifier, "userId": sql.SQL("o.owner"), "studioId": sql.SQL("o.studio"), "isPrimary": sql.SQL("true"), "canTransfer": sql.SQL("true"),
            "invitedBy": sql.Literal(GRANTED_BY), **self._times("studio_ownership", identifier, "invitedAt", "acceptedAt"),
        }
        source = self.derivation.of(
            "studios", "FROM (SELECT {studio} AS studio, {user} AS owner, {id} AS id FROM {.} AS s{join} WHERE s.{.ownerId} IS NOT NULL {once}) AS o",
            studio=studio, user=user, join=join, id=derived_id(sql.Literal("ownership:"), user, sql.Literal(":"), studio), once=sql.SQL(_ONCE),
        )
        same = "x.{.userId} = o.owner AND x.{.studioId} = o.studio AND x.{.id} <> o.id"
        return self._under_any_id(self.derivation.made("ownerships", "studio_ownership", values, source), "studio_ownership", same)

    def _under_any_id(self, image: Image, table: str, same: str) -> Image:
        """Let rows that the application made on the unified side, under ids of its own, stand for those that are called for.

        Args:
            image: of the rows under the ids that the transformation gives.
            table: logical table.
            same: template of the condition that ``x`` is such a row.
        """
        if not self.derivation.both_ways:
            return image
        (called_for,) = image.parts["rows"]
        condition = self.derivation.of(table, same)
        absent = self.derivation.of(table, " WHERE NOT EXISTS (SELECT FROM {.} AS x WHERE {same})", same=condition)
        there = self.derivation.of(table, " JOIN {.} AS x ON {same}", same=condition)
        own = Branch({name: sql.Identifier("x", name) for name in called_for.values}, called_for.source + there)
        return replace(image, parts={"rows": [replace(called_for, source=called_for.source + absent), own]})

    def _times(self, table: str, identifier, *columns: str) -> dict[str, object]:
        return {name: self.derivation.time(table, name, identifier) for name in columns if name in self.schema[table].names}

    def _row_copy(self, source: str, target: str, ruled: str) -> dict[str, object]:
        pairs = shared_columns(self.schema[source], self.schema[target], (ruled,))
        return {name: compose("t.{c}", {"c": sql.Identifier(other)}) for name, other in pairs.items()}

    def accounts(self) -> Image:
        """The OAuth accounts of owners whose credentials are carried."""
        return self._credentials("accounts", "new_accounts")

    def sessions(self) -> Image:
        """The sessions of owners whose credentials are carried."""
        return self._credentials("sessions", "new_sessions")

    def _credentials(self, source: str, target: str) -> Image:
        values = self._row_copy(source, target, "userId")
        user, join = self.derivation.user_of("studio_owners", self.schema.compose("p.{studio_owners.id}"))
        values[self.schema[target].names["userId"]] = user
        owned = self.derivation.of(
            source, "FROM {.} AS t JOIN {studio_owners} AS p ON p.{studio_owners.id} = t.{.userId}{join}", join=join
        )
        return self.derivation.filled(source, target, values, *(owned + where for where in self._carried()))

    def _carried(self) -> list:
        """Return conditions, one for each way in which the credentials of an owner ``p`` are carried."""
        if self.derivation.carries_all():
            return [sql.SQL("")]
        # The two ways to be carried are asked for one by one: a negated or alternative EXISTS would be tried row by row.
        verified = self.schema.compose(" WHERE p.{studio_owners.emailVerified} IS NOT NULL")
        alone = self.schema.compose(
            " WHERE p.{studio_owners.emailVerified} IS NULL AND NOT {shared}", shared=self.derivation.shared("studio_owners", "p")
        )
        return [verified, alone]

    def bookings(self) -> Image:
        """Every booking that names somebody, with his user: by customerId, else by e-mail."""
        values = self._row_copy("bookings", "new_bookings", "customerId")
        linked = self.schema.compose("t.{bookings.customerId}")
        user, join = self.derivation.user_of("customers", linked)
        # The key is asked for only where it decides: a booking's customerId wins over its e-mail.
        values[self.schema["new_bookings"].names["customerId"]] = compose("coalesce({user}, k.user_id)", {"user": user})
        source = self.derivation.of(
            "bookings",
            "FROM {.} AS t{join} LEFT JOIN ({of_key}) AS k ON k.identity_key = CASE WHEN {linked} IS NULL THEN {key} END WHERE NOT ({unresolvable})",
            join=join, of_key=self._of_key(), linked=linked,
            key=self.derivation.key("bookings", "t"), unresolvable=self.derivation.unresolvable("t"),
        )
        return self.derivation.filled("bookings", "new_bookings", values, source)

    def favourites(self) -> Image:
        """Every favourite, its columns swapped; what several rows of one identity share appears once."""
        user, join = self.derivation.user_of("customers", self.schema.compose("f.{_CustomerFavorites.A}"))
        source = self.derivation.of(
            "_CustomerFavorites", "FROM (SELECT DISTINCT f.{.B} AS studio, {user} AS person FROM {.} AS f{join}) AS d", user=user, join=join
        )
        return self.derivation.made("favourites", "_UserFavorites", {"A": sql.SQL("d.studio"), "B": sql.SQL("d.person")}, source)

    def quarantine(self) -> Image:
        """Every booking that names nobody, kept whole."""
        values = {
            "source_table": sql.Literal(GUEST), "source_id": self.schema.compose("t.{bookings.id}"),
            "reason": sql.SQL("'unresolvable'"), "row": sql.SQL("to_jsonb(t)"), "identity_key": sql.SQL("NULL"),
        }
        source = self.derivation.of("bookings", "FROM {.} AS t WHERE {unresolvable}", unresolvable=self.derivation.unresolvable("t"))
        columns = {**dict.fromkeys(("source_table", "source_id", "reason", "identity_key"), TEXT), "row": _JSONB}
        return Image(
            "quarantine", sql.Identifier("unified_user_journal", "quarantine"), ("source_table", "source_id"), columns,
            {"rows": [Branch(values, source)]}, sql.SQL("coalesce(k.source_table, 'NULL') || ' ' || coalesce(k.source_id, 'NULL')"),
        )

    def looks(self) -> list[Look]:
        """Return what to count, table by table."""
        images = (
            self.role_assignments(), self.ownerships(), self.accounts(), self.sessions(), self.bookings(), self.favourites(), self.quarantine()
        )
        return [Look([[(image, "rows")]]) for image in images]
