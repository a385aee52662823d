# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What people must have: roles, studios, accounts, sessions, bookings and favourites (the contract, sections 2 and 3)."""

from __future__ import annotations

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Column
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import GRANTED_BY, PEOPLE
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import compose, derived_id
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_base import Derivation, Image
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_columns import shared_columns
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_people import TEXT

_JSONB = Column("", "jsonb", "jsonb", "U", True, None, False, False)


class Belongings:
    """Composes the images of the tables that refer to users, and of the quarantine.

    Args:
        derivation: keys, policies and tables.
    """

    def __init__(self, derivation: Derivation) -> None:
        self.derivation = derivation
        self.schema = derivation.schema

    def _first_of(self, same: str):
        """Select the map's rows without those that another row of one user precedes.

        Args:
            same: what makes two rows repeat each other, as a condition over ``x`` and ``i``.
        """
        return self.derivation.of(
            "users",
            'SELECT i.* FROM {map} AS i WHERE NOT EXISTS (SELECT FROM {map} AS x WHERE {same}'
            ' AND (x.source_table COLLATE "C", x.source_id COLLATE "C") < (i.source_table COLLATE "C", i.source_id COLLATE "C"))',
            same=sql.SQL(same),
        )

    def role_assignments(self) -> Image:
        """STUDIO_OWNER and CUSTOMER for the rows an identity has, the guests' role for guests, each once."""
        roles = {**PEOPLE, "guest": self.derivation.policies.guest_role}
        values = {
            "id": derived_id(sql.Literal("role:"), sql.SQL("r.user_id"), sql.Literal(":"), sql.SQL("r.role")),
            "userId": sql.SQL("r.user_id"), "role": sql.SQL("r.role"), "studioId": sql.SQL("NULL"),
            "grantedBy": sql.Literal(GRANTED_BY), "grantedAt": sql.Literal(self.derivation.started_at), "expiresAt": sql.SQL("NULL"),
        }
        source = compose(
            "FROM (SELECT f.user_id, CASE f.source_table WHEN 'studio_owners' THEN {studio_owners} WHEN 'customers' THEN {customers} ELSE {guest} END AS role"
            " FROM ({first}) AS f) AS r",
            {**{name: sql.Literal(role) for name, role in roles.items()}, "first": self._first_of("x.user_id = i.user_id AND x.source_table = i.source_table")},
        )
        return self.derivation.made("role_assignments", "user_role_assignments", values, source)

    def ownerships(self) -> Image:
        """One for each studio with an owner."""
        studio, at = self.schema.compose("s.{studios.id}"), sql.Literal(self.derivation.started_at)
        values = {
            "id": derived_id(sql.Literal("ownership:"), sql.SQL("m.user_id"), sql.Literal(":"), studio),
            "userId": sql.SQL("m.user_id"), "studioId": studio, "isPrimary": sql.SQL("true"), "canTransfer": sql.SQL("true"),
            "invitedBy": sql.Literal(GRANTED_BY), "invitedAt": at, "acceptedAt": at,
        }
        source = self.derivation.of(
            "studios", "FROM {.} AS s{mapped} WHERE s.{.ownerId} IS NOT NULL",
            mapped=self.derivation.mapped("studio_owners", "m", self.schema.compose("s.{studios.ownerId}")),
        )
        return self.derivation.made("ownerships", "studio_ownership", values, source)

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
        values[self.schema[target].names["userId"]] = sql.SQL("m.user_id")
        owned = self.derivation.of(
            source, "FROM {.} AS t JOIN {studio_owners} AS p ON p.{studio_owners.id} = t.{.userId}{mapped}",
            mapped=self.derivation.mapped("studio_owners", "m", self.schema.compose("p.{studio_owners.id}")),
        )
        if self.derivation.carries_all():
            return self.derivation.filled(source, target, values, owned)
        # The two ways to be carried are asked for one by one: a negated or alternative EXISTS would be tried row by row.
        verified = self.schema.compose(" WHERE p.{studio_owners.emailVerified} IS NOT NULL")
        alone = self.schema.compose(
            " WHERE p.{studio_owners.emailVerified} IS NULL AND NOT {shared}", shared=self.derivation.shared("studio_owners", "p")
        )
        return self.derivation.filled(source, target, values, owned + verified, owned + alone)

    def bookings(self) -> Image:
        """Every booking that names somebody, with his user: by customerId, else by e-mail."""
        values = self._row_copy("bookings", "new_bookings", "customerId")
        linked = self.schema.compose("t.{bookings.customerId}")
        values[self.schema["new_bookings"].names["customerId"]] = compose("CASE WHEN {linked} IS NULL THEN k.user_id ELSE m.user_id END", {"linked": linked})
        # The key is asked for only where it decides: a booking's customerId wins over his e-mail.
        source = self.derivation.of(
            "bookings",
            "FROM {.} AS t{mapped} LEFT JOIN ({first}) AS k ON k.identity_key = CASE WHEN {linked} IS NULL THEN {key} END WHERE NOT ({unresolvable})",
            mapped=self.derivation.mapped("customers", "m", linked), first=self._first_of("x.identity_key = i.identity_key"), linked=linked,
            key=self.derivation.key("bookings", "t"), unresolvable=self.derivation.unresolvable("t"),
        )
        return self.derivation.filled("bookings", "new_bookings", values, source)

    def favourites(self) -> Image:
        """Every favourite, its columns swapped; what several rows of one identity share appears once."""
        source = self.derivation.of(
            "_CustomerFavorites", "FROM (SELECT DISTINCT f.{.B} AS studio, m.user_id FROM {.} AS f{mapped}) AS d",
            mapped=self.derivation.mapped("customers", "m", self.schema.compose("f.{_CustomerFavorites.A}")),
        )
        return self.derivation.made("favourites", "_UserFavorites", {"A": sql.SQL("d.studio"), "B": sql.SQL("d.user_id")}, source)

    def quarantine(self) -> Image:
        """Every booking that names nobody, kept whole."""
        expected = self.derivation.of(
            "bookings",
            "SELECT {guest}::text AS source_table, t.{.id}::text AS source_id, 'unresolvable'::text AS reason, to_jsonb(t) AS \"row\""
            " FROM {.} AS t WHERE {unresolvable}",
            unresolvable=self.derivation.unresolvable("t"),
        )
        columns = {**dict.fromkeys(("source_table", "source_id", "reason"), TEXT), "row": _JSONB}
        return Image(
            "quarantine", sql.Identifier("unified_user_journal", "quarantine"), ("source_table", "source_id"), columns, [expected],
            sql.SQL("k.source_table || ' ' || k.source_id"),
        )
