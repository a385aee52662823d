# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What must never be found in the unified tables, whatever the legacy rows say, and how many rows there must be."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import PEOPLE
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma, compose, masked_email
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_images import GUEST, MAP, Images

#: Every reference inside the unified tables and from them to shared ones: table, column, table it points to.
REFERENCES = (
    ("user_role_assignments", "userId", "users"),
    ("user_role_assignments", "studioId", "studios"),
    ("studio_ownership", "userId", "users"),
    ("studio_ownership", "studioId", "studios"),
    ("new_accounts", "userId", "users"),
    ("new_sessions", "userId", "users"),
    ("new_bookings", "customerId", "users"),
    ("new_bookings", "studioId", "studios"),
    ("new_bookings", "serviceId", "services"),
    ("_UserFavorites", "A", "studios"),
    ("_UserFavorites", "B", "users"),
    ("audit_logs", "userId", "users"),
)


@dataclass(frozen=True)
class Rule:
    """Something that no row may be.

    Attributes:
        name: of the check.
        violations: composed SELECT of one ``label`` for each row or key that breaks the rule.
    """

    name: str
    violations: object


class Rules:
    """Composes the rules of the contract, section 5, points 3 to 5, beside the images.

    Args:
        images: whose schema, policies and derivations are used.
    """

    def __init__(self, images: Images) -> None:
        self.images = images
        self.schema = images.schema

    def all(self) -> list[Rule]:
        """Return the rules."""
        return [
            Rule("dangling_mappings", self._dangling()),
            Rule("double_roles", self._double_roles()),
            Rule("double_identity_keys", self._double_keys()),
            Rule("passwords", self._passwords()),
            Rule("verification_times", self._verification_times()),
            Rule("credentials_not_carried", self._not_carried()),
            *(Rule(table, self._rows(table)) for table in ("magic_link_tokens", "audit_logs") if self.schema[table].exists),
        ]

    def orphans(self, child: str):
        """Select, for one table, how many of its rows point nowhere, by column.

        Returns:
            A composed SELECT of one row, and the columns it counts.
        """
        references = [(column, parent) for table, column, parent in REFERENCES if table == child and column in self.schema[table].names]
        counts, joins = [], []
        for number, (column, parent) in enumerate(references):
            parts = {"p": sql.Identifier(f"p{number}"), "name": sql.Identifier(column)}
            counts.append(
                self.schema.compose(
                    f"count(*) FILTER (WHERE c.{{{child}.{column}}} IS NOT NULL AND {{p}}.{{{parent}.id}} IS NULL) AS {{name}}", **parts
                )
            )
            joins.append(self.schema.compose(f" LEFT JOIN {{{parent}}} AS {{p}} ON {{p}}.{{{parent}.id}} = c.{{{child}.{column}}}", **parts))
        select = self.schema.compose(f"SELECT {{counts}} FROM {{{child}}} AS c{{joins}}", counts=comma(counts), joins=sql.Composed(joins))
        return select, [column for column, unused in references]

    def orphaned(self, child: str, column: str):
        """Select a label for each row of a table whose column points nowhere."""
        parent = next(parent for table, name, parent in REFERENCES if (table, name) == (child, column))
        label = "c.{_UserFavorites.A} || ' ' || c.{_UserFavorites.B}" if child == "_UserFavorites" else f"c.{{{child}.id}}::text"
        return self.schema.compose(
            f"SELECT {label} AS label FROM {{{child}}} AS c WHERE c.{{{child}.{column}}} IS NOT NULL"
            f" AND NOT EXISTS (SELECT FROM {{{parent}}} AS p WHERE p.{{{parent}.id}} = c.{{{child}.{column}}})"
        )

    def _map_label(self, alias: str):
        return compose(
            f"{alias}.source_table || ' ' || CASE {alias}.source_table WHEN {{guest}} THEN {{masked}} ELSE {alias}.source_id END",
            {"guest": sql.Literal(GUEST), "masked": masked_email(sql.SQL(f"{alias}.source_id"), self.images.mask_pii)},
        )

    def _dangling(self):
        """Mappings to a user that is not there."""
        return self.schema.compose(
            "SELECT {label} AS label FROM {map} AS i WHERE NOT EXISTS (SELECT FROM {users} AS u WHERE u.{users.id} = i.user_id)",
            label=self._map_label("i"), map=MAP,
        )

    def _double_roles(self):
        """A role held twice: the unique constraint does not object, as no studio is unlike no studio to it."""
        return self.schema.compose(
            "SELECT r.{user_role_assignments.userId} || ' ' || r.{user_role_assignments.role}::text AS label FROM {user_role_assignments} AS r"
            " GROUP BY r.{user_role_assignments.userId}, r.{user_role_assignments.role}, r.{user_role_assignments.studioId} HAVING count(*) > 1"
        )

    def _double_keys(self):
        """Two users with one identity key."""
        key = self.images.key("users", "u")
        return self.schema.compose(
            "SELECT {masked} AS label FROM {users} AS u GROUP BY {key} HAVING count(*) > 1",
            masked=masked_email(key, self.images.mask_pii), key=key,
        )

    def _untouched(self):
        """The condition over ``u`` that nobody has changed the user after cut-over."""
        changed = self.images.cutover_at and self.schema.compose(
            " AND u.{users.updatedAt} < CAST({at} AS {type})", at=sql.Literal(self.images.cutover_at),
            type=sql.SQL(self.schema["users"].columns[self.schema["users"].names["updatedAt"]].type),
        )
        return changed or sql.SQL("")

    def _passwords(self):
        """A password of a joined person that no carried row of his has, or any of a guest: somebody else could sign in."""
        carried = sql.SQL("TRUE" if self.images.carries_all() else "m.\"verified of\" IS NOT NULL")
        return self.schema.compose(
            "WITH member AS MATERIALIZED ({members}) SELECT u.{users.id}::text AS label FROM {users} AS u"
            " JOIN (SELECT DISTINCT i.user_id FROM {map} AS i JOIN ({joined}) AS j USING (identity_key)"
            " UNION ALL SELECT g.user_id FROM {map} AS g WHERE g.source_table = {guest}) AS p ON p.user_id = u.{users.id}"
            " WHERE u.{users.password} IS NOT NULL{untouched} AND NOT EXISTS (SELECT FROM member AS m JOIN {map} AS i"
            " ON i.source_table = CASE m.\"side of\" WHEN 0 THEN {owners} ELSE {customers} END AND i.source_id = m.\"id of\""
            " WHERE i.user_id = u.{users.id} AND {carried} AND m.\"password of\" COLLATE \"C\" = u.{users.password}::text COLLATE \"C\")",
            members=self.images.members(), joined=self.images.joined(), map=MAP, guest=sql.Literal(GUEST), carried=carried,
            untouched=self._untouched(), **self._sides(),
        )

    def _sides(self):
        owners, customers = PEOPLE
        return {"owners": sql.Literal(owners), "customers": sql.Literal(customers)}

    def _verification_times(self):
        """A joined person whose e-mail is verified at another time than the earliest of his rows, or a guest with any."""
        return self.schema.compose(
            "WITH member AS MATERIALIZED ({members}), earliest AS (SELECT i.user_id, min(m.\"verified of\") AS at FROM member AS m JOIN {map} AS i"
            " ON i.source_table = CASE m.\"side of\" WHEN 0 THEN {owners} ELSE {customers} END AND i.source_id = m.\"id of\" GROUP BY 1"
            " UNION ALL SELECT g.user_id, NULL FROM {map} AS g WHERE g.source_table = {guest})"
            " SELECT u.{users.id}::text AS label FROM {users} AS u JOIN earliest AS s ON s.user_id = u.{users.id}"
            " WHERE u.{users.emailVerified} IS DISTINCT FROM s.at{untouched}",
            members=self.images.members(), map=MAP, guest=sql.Literal(GUEST), untouched=self._untouched(), **self._sides(),
        )

    def _not_carried(self):
        """Accounts and sessions on the unified side that belong to legacy rows whose credentials must not be carried."""
        selects = [
            self.schema.compose(
                f"SELECT {{name}} || ' ' || n.{{{target}.id}} AS label {{owned}} JOIN {{{target}}} AS n ON {same} WHERE {{dropped}}",
                name=sql.Literal(self.schema[target].name), owned=self.images.owned(source), dropped=self.images.dropped(),
            )
            for source, target, same in (
                ("accounts", "new_accounts", "n.{new_accounts.provider} = t.{accounts.provider}"
                 " AND n.{new_accounts.providerAccountId} = t.{accounts.providerAccountId}"),
                ("sessions", "new_sessions", "n.{new_sessions.sessionToken} = t.{sessions.sessionToken}"),
            )
        ]
        return sql.SQL(" UNION ALL ").join(selects)

    def _rows(self, table: str):
        """Rows of a table that starts empty."""
        relation = self.schema[table]
        since = sql.SQL("FALSE")
        if self.images.cutover_at and "createdAt" in relation.names:
            since = self.schema.compose(
                f"a.{{{table}.createdAt}} >= CAST({{at}} AS {{type}})",
                at=sql.Literal(self.images.cutover_at), type=sql.SQL(relation.columns[relation.names["createdAt"]].type),
            )
        return self.schema.compose(f"SELECT a.{{{table}.id}}::text AS label FROM {{{table}}} AS a WHERE NOT {{since}}", since=since)

    def totals(self):
        """Select what the equations between the totals are made of, from the tables alone, without the journal's map.

        Identities and guests are found by putting the keys of all people and of the bookings that name one beside each other.
        """
        people = [
            self.schema.compose(f"SELECT {{key}} AS key, {{side}} AS side FROM {{{table}}} AS p", key=self.images.key(table, "p"), side=sql.Literal(side))
            for side, table in enumerate(PEOPLE)
        ]
        bookings = self.schema.compose(
            "SELECT {key}, {side} FROM {bookings} AS b WHERE {anonymous}",
            key=self.images.key("bookings", "b"), side=sql.Literal(len(PEOPLE)), anonymous=self.images.anonymous("b"),
        )
        counted = ("studio_owners", "customers", "accounts", "sessions", "bookings", "_CustomerFavorites", "users", "user_role_assignments",
                   "studio_ownership", "new_accounts", "new_sessions", "new_bookings", "_UserFavorites")
        counts = [
            self.schema.compose(f"(SELECT count(*) FROM {{{table}}}) AS {{name}}", name=sql.Identifier(table)) for table in counted
        ]
        counts += [
            self.schema.compose("(SELECT count({studios.ownerId}) FROM {studios}) AS owned_studios"),
            self.schema.compose("(SELECT count(*) FROM {bookings} AS b WHERE {unresolvable}) AS unresolvable", unresolvable=self.images.unresolvable("b")),
            compose("(SELECT count(*) FROM {map}) AS identity_map", {"map": MAP}),
            sql.SQL("(SELECT count(*) FROM unified_user_journal.quarantine) AS quarantine"),
        ]
        counts.append(
            self.schema.compose(
                "(SELECT coalesce(sum(rows - 1), 0) FROM (SELECT count(*) AS rows FROM {_CustomerFavorites} AS f{mapped}"
                " GROUP BY f.{_CustomerFavorites.B}, m.user_id HAVING count(*) > 1) AS d)::bigint AS shared_favourites",
                mapped=self.images.mapped("customers", "m", self.schema.compose("f.{_CustomerFavorites.A}")),
            )
        )
        counts += [
            self.schema.compose(
                f"(SELECT count(*) {{owned}} WHERE {{dropped}}) AS {table}_not_carried", owned=self.images.owned(table), dropped=self.images.dropped()
            )
            for table in ("accounts", "sessions")
        ]
        return compose(
            "SELECT {counts}, k.* FROM (SELECT count(*) FILTER (WHERE owners > 0) AS owner_identities,"
            " count(*) FILTER (WHERE customers > 0) AS customer_identities, count(*) FILTER (WHERE owners + customers > 0) AS identities,"
            " count(*) FILTER (WHERE owners + customers > 1) AS joined_identities, count(*) FILTER (WHERE owners + customers = 0) AS guests"
            " FROM (SELECT count(*) FILTER (WHERE side = 0) AS owners, count(*) FILTER (WHERE side = 1) AS customers"
            " FROM ({keys}) AS q GROUP BY key) AS g) AS k",
            {"counts": comma(counts), "keys": sql.SQL(" UNION ALL ").join([*people, bookings])},
        )
