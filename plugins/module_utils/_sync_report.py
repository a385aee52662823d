# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the unified side holds that the legacy side cannot, by kind: what going back would leave behind (the contract: Three-way)."""

from __future__ import annotations

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import compose

_MAP = "unified_user_journal.identity_map"

# Kind -> what is counted, as FROM and WHERE.
_KINDS = {
    "users_without_legacy_row": f"{{users}} AS u WHERE NOT EXISTS (SELECT FROM {_MAP} AS i WHERE i.user_id = u.{{users.id}})",
    "suspended_users": "{users} AS u WHERE u.{users.isSuspended}",
    "inactive_users": "{users} AS u WHERE NOT u.{users.isActive}",
    "roles_without_legacy_row": (
        "{user_role_assignments} AS r WHERE r.{user_role_assignments.studioId} IS NOT NULL OR NOT EXISTS ("
        f"SELECT FROM {_MAP} AS i WHERE i.user_id = r.{{user_role_assignments.userId}}"
        " AND r.{user_role_assignments.role}::text = CASE i.source_table WHEN 'studio_owners' THEN {owner} WHEN 'customers' THEN {customer} ELSE {guest} END)"
    ),
    "revoked_roles": (
        f"(SELECT DISTINCT i.user_id, CASE i.source_table WHEN 'studio_owners' THEN {{owner}} ELSE {{customer}} END AS role FROM {_MAP} AS i"
        " WHERE i.source_table <> 'bookings') AS l WHERE NOT EXISTS (SELECT FROM {user_role_assignments} AS r"
        " WHERE r.{user_role_assignments.userId} = l.user_id AND r.{user_role_assignments.role}::text = l.role AND r.{user_role_assignments.studioId} IS NULL)"
    ),
    "further_owners": (
        "{studio_ownership} AS o WHERE NOT EXISTS (SELECT FROM {studios} AS s"
        f" JOIN {_MAP} AS i ON i.source_table = 'studio_owners' AND i.source_id = s.{{studios.ownerId}}"
        " WHERE s.{studios.id} = o.{studio_ownership.studioId} AND i.user_id = o.{studio_ownership.userId})"
    ),
    "accounts": "{new_accounts} AS t WHERE NOT EXISTS (SELECT FROM {accounts} AS l WHERE l.{accounts.id} = t.{new_accounts.id})",
    "sessions": "{new_sessions} AS t WHERE NOT EXISTS (SELECT FROM {sessions} AS l WHERE l.{sessions.id} = t.{new_sessions.id})",
    "bookings": "{new_bookings} AS t WHERE NOT EXISTS (SELECT FROM {bookings} AS l WHERE l.{bookings.id} = t.{new_bookings.id})",
    "favourites": (
        "{_UserFavorites} AS f WHERE NOT EXISTS (SELECT FROM {_CustomerFavorites} AS l"
        f" JOIN {_MAP} AS i ON i.source_table = 'customers' AND i.source_id = l.{{_CustomerFavorites.A}}"
        " WHERE l.{_CustomerFavorites.B} = f.{_UserFavorites.A} AND i.user_id = f.{_UserFavorites.B})"
    ),
    "pinned_bookings": "unified_user_journal.pinned_booking AS p",
}  # fmt: skip

#: Columns of new_bookings that the legacy side has no place for.
_CONFIRMATIONS = ("confirmedBy", "confirmedAt", "cancelledBy", "cancelledAt")


def not_representable(database: Database, schema: Schema, guest_role: str) -> dict[str, int]:
    """Count what the legacy side cannot hold, by kind; kinds of which there is nothing are left out.

    Args:
        database: an open session.
        schema: the resolved tables.
        guest_role: the role that guests have.
    """
    roles = {"owner": sql.Literal(_mapping.OWNER_ROLE), "customer": sql.Literal(_mapping.CUSTOMER_ROLE), "guest": sql.Literal(guest_role)}
    counted = {kind: schema.compose(f"SELECT count(*) FROM {source}", **roles) for kind, source in _KINDS.items()}
    confirmations = [name for name in _CONFIRMATIONS if name in schema["new_bookings"].names]
    if confirmations:
        some = sql.SQL(" OR ").join(compose("b.{c} IS NOT NULL", {"c": schema.column("new_bookings", name)}) for name in confirmations)
        counted["confirmations_of_bookings"] = schema.compose("SELECT count(*) FROM {new_bookings} AS b WHERE {some}", some=some)
    result = {kind: database.value(select) for kind, select in counted.items()}
    # NULL and '' are one and the same to the legacy side.
    differing = schema.compose(
        "SELECT p.key AS column, count(*) AS rows FROM unified_user_journal.divergence AS d JOIN {users} AS u ON u.{users.id} = d.user_id"
        " CROSS JOIN LATERAL jsonb_each_text(d.projection) AS p"
        " WHERE coalesce(p.value, '') <> coalesce(to_jsonb(u) ->> p.key, '') GROUP BY p.key ORDER BY p.key"
    )
    result.update({f"users.{row['column']}": row["rows"] for row in database.rows(differing)})
    return {kind: count for kind, count in result.items() if count}
