# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What must never be found in the unified tables, whatever the legacy rows say, and how many rows there must be."""

from __future__ import annotations

from dataclasses import dataclass

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import PEOPLE
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma, compose, masked_email
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_base import LEADS_ELSEWHERE, Derivation

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

#: Legacy tables and what the totals call the number of their rows.
_COUNTED = {
    "owners": "studio_owners", "customers": "customers", "legacy_accounts": "accounts", "legacy_sessions": "sessions",
    "legacy_bookings": "bookings", "legacy_favourites": "_CustomerFavorites",
}


@dataclass(frozen=True)
class Rule:
    """Something that no row may be, or several such things that one look finds.

    Attributes:
        names: of the checks.
        rows: composed SELECT of ``label`` and, under each name, whether the row breaks that rule.
    """

    names: tuple[str, ...]
    rows: object


class Rules:
    """Composes the rules of the contract, section 5, points 3 to 5, beside the images, and the totals of point 1.

    Args:
        derivation: keys, policies and tables.
    """

    def __init__(self, derivation: Derivation) -> None:
        self.derivation = derivation
        self.schema = derivation.schema
        self.of = derivation.of

    def all(self) -> list[Rule]:
        """Return the rules."""
        return [
            self._rule("dangling_mappings", self._dangling()),
            self._rule("double_roles", self._double_roles()),
            self._rule("double_identity_keys", self._double_keys()),
            Rule(("passwords", "verification_times"), self._credentials()),
            self._rule("credentials_not_carried", self._not_carried()),
            self._rule("credentials_of_nobody", self._of_nobody()),
            *(self._rule(table, self._rows(table)) for table in ("magic_link_tokens", "audit_logs") if self.schema[table].exists),
        ]

    @staticmethod
    def _rule(name: str, violations) -> Rule:
        """Return the rule that every row of a SELECT of ``label`` breaks."""
        return Rule((name,), compose("SELECT v.label, TRUE AS {name} FROM ({violations}) AS v", {"name": sql.Identifier(name), "violations": violations}))

    def children(self) -> list[str]:
        """Return the tables that refer to others."""
        return [child for child in dict.fromkeys(reference[0] for reference in REFERENCES) if self.schema[child].exists]

    def orphans(self, child: str):
        """Select, for one table, how many of its rows point nowhere, by column.

        Returns:
            A composed SELECT of one row, and the columns it counts.
        """
        columns = [column for table, column, unused in REFERENCES if table == child and column in self.schema[table].names]
        counts, joins = [], []
        for number, column in enumerate(columns):
            parts = {"p": sql.Identifier(f"p{number}"), "name": sql.Identifier(column), "column": self.schema.column(child, column)}
            parent = self._parent(child, column)
            counts.append(self.of(parent, "count(*) FILTER (WHERE c.{column} IS NOT NULL AND {p}.{.id} IS NULL) AS {name}", **parts))
            joins.append(self.of(parent, " LEFT JOIN {.} AS {p} ON {p}.{.id} = c.{column}", **parts))
        return self.of(child, "SELECT {counts} FROM {.} AS c{joins}", counts=comma(counts), joins=sql.Composed(joins)), columns

    def orphaned(self, child: str, column: str):
        """Select a label for each row of a table whose column points nowhere."""
        label = self.of(child, "c.{.A} || ' ' || c.{.B}" if child == "_UserFavorites" else "c.{.id}::text")
        return self.of(
            self._parent(child, column),
            "SELECT {label} AS label FROM {child} AS c WHERE c.{column} IS NOT NULL AND NOT EXISTS (SELECT FROM {.} AS p WHERE p.{.id} = c.{column})",
            label=label, child=self.schema.table(child), column=self.schema.column(child, column),
        )

    @staticmethod
    def _parent(child: str, column: str) -> str:
        return next(parent for table, name, parent in REFERENCES if (table, name) == (child, column))

    def _dangling(self):
        """Mappings to a user that is not there."""
        return self.of(
            "users", "SELECT {label} AS label FROM {map} AS i WHERE NOT EXISTS (SELECT FROM {.} AS u WHERE u.{.id} = i.user_id)",
            label=self.derivation.map_label("i"),
        )

    def _double_roles(self):
        """A role held twice: the unique constraint does not object, as no studio is unlike no studio to it."""
        return self.of(
            "user_role_assignments",
            "SELECT r.{.userId} || ' ' || r.{.role}::text AS label FROM {.} AS r GROUP BY r.{.userId}, r.{.role}, r.{.studioId} HAVING count(*) > 1",
        )

    def _double_keys(self):
        """Two users with one identity key."""
        key = self.derivation.key("users", "u")
        return self.of(
            "users", "SELECT {masked} AS label FROM {.} AS u GROUP BY {key} HAVING count(*) > 1",
            masked=masked_email(key, self.derivation.mask_pii), key=key,
        )

    def _credentials(self):
        """Joined people and guests whose credentials are not what the contract, section 2, leaves them.

        A password that no carried row of theirs has lets somebody else sign in; guests have none. An e-mail is verified at the
        earliest time of their rows; a guest's never is. Joined is, for this, to whom a row leads that does not bear his id, or
        whose id an owner and a customer bear.
        """
        owners, customers = map(sql.Literal, PEOPLE)
        people = [
            self.of(table, "SELECT {name} AS source_table, p.{.id} AS id, p.{.password}::text AS password, p.{.emailVerified} AS verified FROM {.} AS p",
                    name=sql.Literal(table))
            for table in PEOPLE
        ]
        untouched = sql.SQL("TRUE")
        if self.derivation.cutover_at is not None:
            untouched = compose("NOT {changed}", {"changed": self.derivation.since("users", "updatedAt", "u")})
        return self.of(
            "users",
            "WITH joined AS (SELECT i.user_id FROM {map} AS i WHERE {elsewhere} AND i.source_table <> {guest}"
            " UNION SELECT o.user_id FROM {map} AS o JOIN {map} AS c ON c.source_id = o.source_id AND c.user_id = o.user_id"
            " WHERE o.source_table = {owners} AND c.source_table = {customers}),"
            " member AS MATERIALIZED (SELECT i.user_id, p.password, p.verified FROM joined JOIN {map} AS i USING (user_id)"
            " JOIN ({people}) AS p ON p.source_table = i.source_table AND p.id = i.source_id)"
            " SELECT u.{.id}::text AS label, u.{.password} IS NOT NULL AND c.user_id IS NULL AS passwords,"
            " u.{.emailVerified} IS DISTINCT FROM p.at AS verification_times FROM {.} AS u"
            # A customer whose id was taken leads elsewhere, too, and is alone.
            " JOIN (SELECT m.user_id, min(m.verified) AS at FROM member AS m GROUP BY m.user_id HAVING count(*) > 1"
            " UNION ALL SELECT g.user_id, NULL FROM {map} AS g WHERE g.source_table = {guest}) AS p ON p.user_id = u.{.id}"
            ' LEFT JOIN (SELECT DISTINCT m.user_id, m.password COLLATE "C" AS password FROM member AS m WHERE {carried}) AS c'
            ' ON c.user_id = u.{.id} AND c.password = u.{.password}::text COLLATE "C" WHERE {untouched}',
            elsewhere=sql.SQL(LEADS_ELSEWHERE), people=sql.SQL(" UNION ALL ").join(people), owners=owners, customers=customers, untouched=untouched,
            carried=sql.SQL("TRUE" if self.derivation.carries_all() else "m.verified IS NOT NULL"),
        )

    def _not_carried(self):
        """Accounts and sessions on the unified side that belong to legacy rows whose credentials must not be carried."""
        selects = []
        for source, target, tokens in (("accounts", "new_accounts", ("provider", "providerAccountId")), ("sessions", "new_sessions", ("sessionToken",))):
            same = [
                compose("n.{there} = t.{here}", {"there": self.schema.column(target, token), "here": self.schema.column(source, token)}) for token in tokens
            ]
            selects.append(
                self.of(
                    source,
                    "SELECT {name} || ' ' || n.{id} AS label FROM {.} AS t JOIN {studio_owners} AS p ON p.{studio_owners.id} = t.{.userId}"
                    " JOIN {target} AS n ON {same} WHERE {dropped}",
                    name=sql.Literal(self.schema[target].name), id=self.schema.column(target, "id"), target=self.schema.table(target),
                    same=sql.SQL(" AND ").join(same), dropped=self.derivation.dropped("p"),
                )
            )
        return sql.SQL(" UNION ALL ").join(selects)

    def _of_nobody(self):
        """Accounts and sessions of the legacy side that refer to no owner: they have no image, and no rule that says so."""
        return sql.SQL(" UNION ALL ").join(
            self.of(
                source,
                "SELECT {name} || ' ' || t.{.id} AS label FROM {.} AS t LEFT JOIN {studio_owners} AS p ON p.{studio_owners.id} = t.{.userId}"
                " WHERE p.{studio_owners.id} IS NULL",
                name=sql.Literal(self.schema[source].name),
            )
            for source in ("accounts", "sessions")
        )

    def _rows(self, table: str):
        """Rows of a table that starts empty, but for those of an application that writes to the unified side."""
        since = sql.SQL("FALSE")
        at = self.derivation.cutover_at or (self.derivation.synced_since if self.derivation.both_ways else None)
        if at is not None and "createdAt" in self.schema[table].names:
            since = self.derivation.since(table, "createdAt", "a", at)
        return self.of(table, "SELECT a.{.id}::text AS label FROM {.} AS a WHERE NOT {since}", since=since)

    def totals(self):
        """Select what the equations between the totals are made of: the legacy side's rows, and how many roles its people have by the map."""
        counts = [self.of(table, "(SELECT count(*) FROM {.}) AS {name}", name=sql.Identifier(name)) for name, table in _COUNTED.items()]
        return self.of(
            "studios",
            "SELECT {counts}, (SELECT count({.ownerId}) FROM {.}) AS owned_studios,"
            # Of the rows of one table and key only one bears the user's id, and he cannot have that role twice.
            " (SELECT count(*) FROM {map}) - (SELECT count(*) - count(DISTINCT (i.source_table, i.identity_key)) FROM {map} AS i"
            " WHERE i.identity_key IN (SELECT i.identity_key FROM {map} AS i WHERE {elsewhere})) AS roles",
            counts=comma(counts), elsewhere=sql.SQL(LEADS_ELSEWHERE),
        )
