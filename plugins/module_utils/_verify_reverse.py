# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether the legacy side holds all that it can hold of the unified side, while both are written (the contract, section 4).

Who is who is what the identity map says, for users keep their ids whoever joins or leaves them; that the map is right is checked
first. From there the unified rows are derived as for a migration. Each difference is then either of a kind that the legacy tables
cannot hold, decided row by row and column by column, or in quarantine, or wrong. Nothing here is the sync's.
"""

from __future__ import annotations

from dataclasses import replace

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import CUSTOMER_ROLE, OWNER_ROLE, PEOPLE, REFERRING, ROW_COPIES, USER_RULES
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import all_of, comma, compose, derived_id, is_blank, masked_email
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_base import GUEST, Branch, Derivation, Image, Look
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_belongings import Belongings
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_columns import shared_columns
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_explain import Excuses
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_people import TEXT, People
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_rules import Rule, Rules

QUARANTINE = "quarantine"

#: What is on one side only because credentials were not carried, or something was in the way.
NOT_CARRIED = ("accounts_not_carried", "sessions_not_carried", "passwords_not_carried", QUARANTINE)

#: What only the unified side can hold and no image has.
HELD = ("pinned_bookings", "scoped_roles", "magic_link_tokens", "audit_logs")

#: Columns of new_bookings that the legacy side has no place for, and what they are called together.
_CONFIRMATIONS = ("confirmedBy", "confirmedAt", "cancelledBy", "cancelledAt")
_CONFIRMED = "confirmations_of_bookings"

#: Unique columns beside the id: a row whose values another one has over there cannot go there.
_UNIQUE = {"accounts": ("provider", "providerAccountId"), "sessions": ("sessionToken",)}

# Which of a joined person's passwords is his: the first not blank, in survivor order, of a row whose credentials are carried. A row
# that was made of the user never makes him joined; that he was born on the unified side counts as a row.
_PASSWORD = """
(SELECT p.password FROM (SELECT h.*, count(*) FILTER (WHERE NOT h.made) OVER () + (bool_or(h.native) OVER ())::integer AS parties FROM ({rows}) AS h) AS p
 WHERE NOT {blank} AND ({all} OR p.verified IS NOT NULL OR p.made OR p.parties <= 1)
 ORDER BY p.side, p.verified IS NULL, p.created, p.id COLLATE "C" LIMIT 1)
"""


def _roles() -> dict[str, object]:
    """Return the roles that call for a legacy row; the driver may be missing where this file is only loaded."""
    return {"owner": sql.Literal(OWNER_ROLE), "customer": sql.Literal(CUSTOMER_ROLE)}


class ReverseDerivation(Derivation):
    """Composes what must be, where people are who the identity map says they are, and pinned bookings theirs whom they are pinned to."""

    def own_id(self, table: str, alias: str):
        """Return the user of a person and the join it needs; who is in quarantine has none and is left out."""
        join = self.of(
            table, " JOIN {map} AS mapped ON mapped.source_table = {name} AND mapped.source_id = {p}.{.id}", name=sql.Literal(table), p=sql.SQL(alias)
        )
        return sql.SQL("mapped.user_id"), join

    def several(self):
        """Select the keys that more than one mapped person has."""
        return self.of(
            "users",
            "SELECT i.identity_key, 1 AS joined FROM {map} AS i WHERE i.source_table <> {guest} GROUP BY i.identity_key HAVING count(*) > 1",
        )

    def guest_id(self, key):
        """Return the user of the guest of a key."""
        return self.of("users", "(SELECT i.user_id FROM {map} AS i WHERE i.source_table = {guest} AND i.source_id = {key})", key=key)

    def user_of(self, table: str, reference):
        """Return the user of a person that a column refers to, and the join; rows that refer to somebody in quarantine are left out."""
        join = self.of(
            table, " JOIN {map} AS moved ON moved.source_table = {name} AND moved.source_id = {reference}", name=sql.Literal(table), reference=reference
        )
        return sql.SQL("moved.user_id"), join

    def anonymous(self, alias: str):
        """Return the condition that a booking names its person by a usable e-mail alone and is pinned to nobody."""
        return compose("({anonymous} AND NOT {pinned})", {"anonymous": super().anonymous(alias), "pinned": self.pinned(alias)})

    def pinned(self, alias: str):
        """Return the condition that a booking is pinned to somebody."""
        return self.of(
            "bookings", "EXISTS (SELECT FROM unified_user_journal.pinned_booking AS pin WHERE pin.booking_id = {b}.{.id})", b=sql.SQL(alias)
        )

    def has_row(self, table: str, user):
        """Return the condition that a user has a row in a legacy table of people."""
        return self.of(
            "users", "EXISTS (SELECT FROM {map} AS i WHERE i.user_id = {user} AND i.source_table = {name})", user=user, name=sql.Literal(table)
        )

    def is_person(self, user):
        """Return the condition that a user has any legacy row of his own."""
        return self.of("users", "EXISTS (SELECT FROM {map} AS i WHERE i.user_id = {user} AND i.source_table <> {guest})", user=user)

    def kept(self, table: str, identifier):
        """Return the condition that a row is in quarantine."""
        return compose(
            "EXISTS (SELECT FROM unified_user_journal.quarantine AS q WHERE q.source_table = {table} AND q.source_id = {id})",
            {"table": sql.Literal(table), "id": identifier},
        )

    def there(self, table: str, column: str):
        """Return a column of the row ``a0``."""
        return compose("a0.{c}", {"c": self.schema.column(table, column)})


class Reverse:
    """Composes the images of the reverse direction, why rows may differ from them, and the rules.

    Args:
        derivation: keys, policies and tables.
    """

    def __init__(self, derivation: ReverseDerivation) -> None:
        self.derivation = derivation
        self.rules = ReverseRules(derivation)
        self._people = _People(derivation)
        self._belongings = _Belongings(derivation)

    def looks(self) -> list[Look]:
        """Return what to count, table by table."""
        return [*self._people.looks(), *self._belongings.looks()]

    def excuses(self) -> dict[str, Excuses]:
        """Return why rows may differ, by the image's name."""
        return {**self._people.excuses(), **self._belongings.excuses()}


class _People(People):
    """The identity map and the users."""

    def looks(self) -> list[Look]:
        mapped, users = self.identity_map(), self.users()
        joined = {name: users.ctes[name] for name in ("several", "member")}
        nobody = {"nobody": users.ctes["nobody"]}
        return [
            Look([[(mapped, "people")]]), Look([[(mapped, "guests")]], nobody),
            Look([[(users, "alone")], [(users, "together")]], joined), Look([[(users, "guests")]], nobody),
        ]  # fmt: skip

    def identity_map(self) -> Image:
        """Every owner and customer, and every guest; whose user each is, ``ReverseRules`` asks."""
        people = [
            Branch(
                {"source_table": sql.Literal(table), "source_id": self.derivation.of(table, "p.{.id}"), "identity_key": self.derivation.key(table, "p")},
                self.derivation.of(table, "FROM {.} AS p"),
            )
            for table in PEOPLE
        ]
        key = sql.SQL('g."key of"')
        keys = sql.SQL('FROM (SELECT DISTINCT "key of" FROM nobody) AS g')
        guests = Branch({"source_table": sql.Literal(GUEST), "source_id": key, "identity_key": key}, keys)
        return Image(
            "identity_map", self.derivation.map, ("source_table", "source_id"), dict.fromkeys(("source_table", "source_id", "identity_key"), TEXT),
            {"people": people, "guests": [guests]}, self.derivation.map_label("k"), {"nobody": self.guest_bookings()},
        )  # fmt: skip

    def excuses(self) -> dict[str, Excuses]:
        user = self.derivation.there("users", "id")
        pinned = "EXISTS (SELECT FROM unified_user_journal.pinned_booking AS pin WHERE pin.user_id = {user})"

        def in_quarantine(called_for):
            return compose(
                "EXISTS (SELECT FROM unified_user_journal.quarantine AS q WHERE q.source_table = {table} AND q.source_id = {id})",
                {"table": called_for("source_table"), "id": called_for("source_id")},
            )

        guest = self.derivation.of("users", "(a0.source_table = {guest} AND {pinned})", pinned=compose(pinned, {"user": sql.SQL("a0.user_id")}))
        unlinked = self.derivation.of(
            "users",
            "(NOT EXISTS (SELECT FROM {map} AS i WHERE i.user_id = {user}) AND NOT EXISTS (SELECT FROM {user_role_assignments} AS r"
            " WHERE r.{user_role_assignments.userId} = {user} AND r.{user_role_assignments.studioId} IS NULL"
            " AND r.{user_role_assignments.role}::text IN ({owner}, {customer})))",
            user=user, **_roles(),
        )
        return {
            "identity_map": Excuses(unexpected=[(None, guest)], missing=[(QUARANTINE, in_quarantine)]),
            "users": Excuses(
                columns=self._columns(),
                unexpected=[
                    ("guests_of_pinned_bookings", compose("({guest} AND {pinned})", {
                        "guest": self.derivation.has_row(GUEST, user), "pinned": compose(pinned, {"user": user})})),
                    (QUARANTINE, self._set_aside('q."row" = to_jsonb(a0)')),
                    ("users_without_legacy_row", unlinked),
                ],
            ),
        }  # fmt: skip

    def _set_aside(self, same: str, **parts):
        """Return the condition that the user is in quarantine, and what is told of him there is so."""
        return self.derivation.of(
            "users",
            "EXISTS (SELECT FROM unified_user_journal.quarantine AS q WHERE q.source_table = 'users' AND q.source_id = {user} AND {same})",
            user=self.derivation.there("users", "id"), same=compose(same, parts),
        )

    def _columns(self) -> dict[str, list]:
        """Return by column of users what the legacy side cannot hold of it."""
        users = self.schema["users"]
        excuses: dict[str, list] = {name: [] for name in users.columns}
        rules = {
            "isActive": ("inactive_users", lambda there, unused: compose("NOT {there}", {"there": there})),
            "isSuspended": ("suspended_users", lambda there, unused: there),
            "primaryRole": ("users.primaryRole", lambda unused, other: self.derivation.is_person(self.derivation.there("users", "id"))),
        }
        for rule, excuse in rules.items():
            excuses[users.names[rule]].append(excuse)
        excuses[users.names["email"]] += self._of_email()
        excuses[users.names["password"]] += self._of_password()
        carried: dict[str, dict[str, str]] = {}
        for table in PEOPLE:
            for name, source in shared_columns(self.schema[table], users, USER_RULES).items():
                carried.setdefault(name, {})[table] = source
        for name in users.columns:
            if users.logical_name(name) not in USER_RULES:
                excuses[name] += self._of_carried(name, carried.get(name, {}))
            excuses[name] += [(QUARANTINE, self._told_in_quarantine(name)), ("users_met_by_a_legacy_row", self._met(name))]
        return excuses

    def _met(self, name: str):
        """Who was born on the unified side keeps what he is when a legacy person comes to his key; the journal notes what that row called for."""
        return lambda unused, called_for: self.derivation.of(
            "users",
            "(EXISTS (SELECT FROM {map} AS i WHERE i.user_id = {user} AND i.native) AND EXISTS (SELECT FROM {map} AS i WHERE i.user_id = {user}"
            " AND NOT i.made) AND EXISTS (SELECT FROM unified_user_journal.divergence AS d WHERE d.user_id = {user}"
            " AND (d.projection ->> {name}) IS NOT DISTINCT FROM {called_for}))",
            user=self.derivation.there("users", "id"), name=sql.Literal(name), called_for=self._as_noted(name, called_for),
        )

    def _as_noted(self, name: str, value):
        """Spell a value of a column of users as the journal notes it: documents as text."""
        document = self.schema["users"].columns[name].base_type in ("json", "jsonb")
        return compose("({value})::text" if document else "(to_jsonb({value}) #>> '{}')", {"value": value})

    def _told_in_quarantine(self, name: str):
        # To the letter, also of documents: as the entry has it.
        return lambda there, unused: self._set_aside(
            "(q.\"row\" ->> {name}) IS NOT DISTINCT FROM (to_jsonb({there}) #>> '{}')", name=sql.Literal(name), there=there
        )

    def _of_email(self) -> list:
        """Rows of one table that share a key are told apart by spaces; a key that is stored instead of the address is no other address."""
        user = self.derivation.there("users", "id")
        rows = [
            self.derivation.of(
                table, "SELECT p.{.email}::text AS email FROM {map} AS i JOIN {.} AS p ON p.{.id} = i.source_id WHERE i.source_table = {name}"
                " AND i.user_id = {user}", name=sql.Literal(table), user=user,
            )
            for table in PEOPLE
        ]  # fmt: skip
        held = "EXISTS (SELECT FROM ({rows}) AS r WHERE {email} = {there}::text COLLATE \"C\") AND ({normalized} OR {several})"
        several = self.derivation.of(
            "users", "EXISTS (SELECT FROM {map} AS i WHERE i.user_id = {user} GROUP BY i.source_table HAVING count(*) > 1)", user=user
        )
        parts = {
            "rows": sql.SQL(" UNION ALL ").join(rows), "several": several, "email": sql.SQL('r.email COLLATE "C"'),
            "normalized": sql.SQL("TRUE" if self.policies.email_store == "normalized" else "FALSE"),
        }
        return [(None, lambda there, unused: compose(held, {**parts, "there": there}))]

    def _of_password(self) -> list:
        """What a joined identity leaves of several passwords, and what was left of them before (the contract: Credentials once dropped)."""
        user = self.derivation.there("users", "id")
        rows = sql.SQL(" UNION ALL ").join(
            self.derivation.of(
                table,
                "SELECT {side} AS side, i.made, i.native, p.{.id}::text AS id, p.{.password}::text AS password, p.{.emailVerified} AS verified,"
                " p.{.createdAt} AS created FROM {map} AS i JOIN {.} AS p ON p.{.id} = i.source_id WHERE i.source_table = {name} AND i.user_id = {user}",
                side=sql.Literal(side), name=sql.Literal(table), user=user,
            )
            for side, table in enumerate(PEOPLE)
        )
        every = sql.SQL("TRUE" if self.derivation.carries_all() else "FALSE")
        parts = {
            "rows": rows, "pick": compose(_PASSWORD, {"rows": rows, "blank": is_blank(sql.SQL("p.password")), "all": every}),
            "user": user, "password": sql.Literal(self.schema["users"].names["password"]),
        }
        joined = "(SELECT count(*) > 1 OR bool_or(r.native) FROM ({rows}) AS r)"
        # The journal notes what the rows called for when the user differed from it.
        noted = (
            "EXISTS (SELECT FROM unified_user_journal.divergence AS d WHERE d.user_id = {user} AND (d.projection ->> {password}) IS NOT DISTINCT FROM"
            " CASE WHEN " + joined + " THEN {pick} ELSE {called_for}::text END)"
        )
        his = '{there}::text COLLATE "C" IN (SELECT r.password COLLATE "C" FROM ({rows}) AS r)'

        def when(condition: str):
            return lambda there, called_for: compose(condition, {**parts, "there": there, "called_for": called_for})

        return [
            (None, when("(" + joined + " AND {there}::text IS NOT DISTINCT FROM {pick})")),
            ("passwords_not_carried", when("({there} IS NULL AND " + noted + ")")),
            (None, when("(" + his + " AND " + noted + ")")),
        ]

    def _of_carried(self, name: str, sources: dict[str, str]) -> list:
        """A further column: held by the tables that have it."""
        users, user = self.schema["users"], self.derivation.there("users", "id")
        kind, column = f"users.{users.logical_name(name)}", users.columns[name]
        person = self.derivation.is_person(user)
        if not sources:
            return [(kind, lambda unused, other: person)]
        excuses = []
        if column.is_text and any(self.schema[table].columns[source].not_null for table, source in sources.items()):
            excuses.append((None, _empty_is_null))
        lacking = [table for table in PEOPLE if table not in sources]
        if lacking:
            (table,), (other,) = lacking, sources

            def only_here(unused, called_for):
                # What he has from when only that table knew him stays beside a row that has none: the journal notes that it called for none.
                empty = is_blank(called_for) if column.is_text else compose("{c} IS NULL", {"c": called_for})
                noted = compose(
                    "EXISTS (SELECT FROM unified_user_journal.divergence AS d WHERE d.user_id = {user}"
                    " AND (d.projection ->> {name}) IS NOT DISTINCT FROM {called_for})",
                    {"user": user, "name": sql.Literal(name), "called_for": self._as_noted(name, called_for)},
                )
                parts = {"has": self.derivation.has_row(other, user), "lacks": self.derivation.has_row(table, user), "person": person}
                return compose("({person} AND (NOT {has} OR ({lacks} AND {empty} AND {noted})))", {**parts, "empty": empty, "noted": noted})

            excuses.append((kind, only_here))
        return excuses


def _empty_is_null(there, called_for):
    """Return the condition that one of two texts is NULL and the other empty: how a column that must not be NULL spells it."""
    return compose("coalesce({there}::text, '') = coalesce({called_for}::text, '')", {"there": there, "called_for": called_for})


class _Belongings(Belongings):
    """What people have."""

    def _of_key(self):
        return self.derivation.of("users", "SELECT DISTINCT i.identity_key, i.user_id FROM {map} AS i")

    def _under_any_id(self, image: Image, table: str, same: str) -> Image:
        """Tell rows apart by whom and what they are about: the application gives ids of its own."""
        names = self.schema[table].names
        about = names["role" if table == "user_role_assignments" else "studioId"]
        key = (names["userId"], about)
        label = compose("k.{user} || ' ' || k.{about}::text", {"user": sql.Identifier(key[0]), "about": sql.Identifier(about)})
        relation = image.table
        if table == "user_role_assignments":
            relation = self.derivation.of(table, "(SELECT * FROM {.} AS s WHERE s.{.studioId} IS NULL)")
        return replace(image, table=relation, key=key, label=label)

    def _carried(self) -> list:
        return [sql.SQL("")]

    def bookings(self) -> Image:
        """Every booking that is somebody's: by customerId, else whom it is pinned to, else by e-mail."""
        values = self._row_copy("bookings", "new_bookings", "customerId")
        linked = self.schema.compose("t.{bookings.customerId}")
        values[self.schema["new_bookings"].names["customerId"]] = sql.SQL("coalesce(c.user_id, pin.user_id, k.user_id)")
        source = self.derivation.of(
            "bookings",
            "FROM {.} AS t LEFT JOIN {map} AS c ON c.source_table = 'customers' AND c.source_id = {linked}"
            " LEFT JOIN unified_user_journal.pinned_booking AS pin ON pin.booking_id = t.{.id} AND {linked} IS NULL"
            " LEFT JOIN ({of_key}) AS k ON k.identity_key = CASE WHEN {linked} IS NULL AND pin.user_id IS NULL THEN {key} END"
            " WHERE ({linked} IS NULL OR c.user_id IS NOT NULL) AND (pin.user_id IS NOT NULL OR NOT ({unresolvable}))",
            of_key=self._of_key(), linked=linked, key=self.derivation.key("bookings", "t"), unresolvable=self.derivation.unresolvable("t"),
        )
        return self.derivation.filled("bookings", "new_bookings", values, source)

    def looks(self) -> list[Look]:
        images = (self.role_assignments(), self.ownerships(), self.accounts(), self.sessions(), self.bookings(), self.favourites())
        return [Look([[(image, "rows")]]) for image in images]

    def excuses(self) -> dict[str, Excuses]:
        """Return why rows may differ, by the image's name."""
        there, has_row = self.derivation.there, self.derivation.has_row
        none = compose("NOT {row}", {"row": has_row("customers", there("_UserFavorites", "B"))})
        return {
            "role_assignments": self._of_roles(),
            "ownerships": self._of_ownerships(),
            "accounts": self._of_credentials("accounts", "new_accounts"),
            "sessions": self._of_credentials("sessions", "new_sessions"),
            "bookings": Excuses(columns=self._copied("bookings", "new_bookings", dict.fromkeys(_CONFIRMATIONS, _CONFIRMED))),
            "favourites": Excuses(unexpected=[("favourites", none)]),
        }

    def _copied(self, source: str, target: str, kinds: dict[str, str]) -> dict[str, list]:
        """Return by column of a row for row copy what the legacy side cannot hold, or spells otherwise."""
        relation, ruled = self.schema[target], ROW_COPIES[target][1]
        pairs = shared_columns(self.schema[source], relation, ruled)
        excuses: dict[str, list] = {}
        for name, column in relation.columns.items():
            logical = relation.logical_name(name)
            if name in pairs:
                if column.is_text and not column.not_null and self.schema[source].columns[pairs[name]].not_null:
                    excuses[name] = [(None, _empty_is_null)]
            elif logical not in (*ruled, "id"):
                excuses[name] = [(kinds.get(logical, f"{target}.{logical}"), lambda unused, other: sql.SQL("TRUE"))]
        return excuses

    def _details(self, table: str, about: tuple[str, ...], kinds: dict[str, str], kind: str) -> dict[str, list]:
        """Return by column of a table without a legacy counterpart the kind of what the legacy side cannot hold."""
        relation = self.schema[table]
        logical = {name: relation.logical_name(name) for name in relation.columns}
        return {
            name: [(kinds.get(listed, kind), lambda unused, other: sql.SQL("TRUE"))] for name, listed in logical.items() if listed not in about
        }

    def _of_roles(self) -> Excuses:
        table = "user_role_assignments"
        other = self.derivation.of(table, "a0.{.role}::text NOT IN ({owner}, {customer})", **_roles())
        return Excuses(
            columns=self._details(table, ("userId", "role", "studioId"), {"expiresAt": "expiring_roles"}, "grants_of_roles"),
            unexpected=[("roles_without_legacy_row", other), (QUARANTINE, self.derivation.kept("users", self.derivation.there(table, "userId")))],
            missing=[("revoked_roles", lambda unused: sql.SQL("TRUE"))],
        )

    def _of_ownerships(self) -> Excuses:
        """The legacy side names one owner: the primary, else who accepted first, among those with an owner row."""
        table, names = "studio_ownership", self.schema["studio_ownership"].names
        order, accepted = [], []
        if "isPrimary" in names:
            order.append("h.{.isPrimary} DESC")
            accepted.append("h.{.isPrimary}")
        if "acceptedAt" in names:
            order.append("h.{.acceptedAt}")
            accepted.append("h.{.acceptedAt} IS NOT NULL")
        rightful = self.derivation.of(
            table,
            "(SELECT h.{.userId} FROM {.} AS h WHERE h.{.studioId} = a0.{.studioId} AND ({accepted}) AND {has_row} ORDER BY {order} LIMIT 1)",
            accepted=self.derivation.of(table, " OR ".join(accepted) if "acceptedAt" in names else "TRUE"),
            has_row=self.derivation.has_row("studio_owners", self.derivation.of(table, "h.{.userId}")),
            order=self.derivation.of(table, ", ".join([*order, 'h.{.id} COLLATE "C"'])),
        )
        named = self.derivation.of(
            "studios",
            "EXISTS (SELECT FROM {.} AS s JOIN {map} AS i ON i.source_table = 'studio_owners' AND i.source_id = s.{.ownerId}"
            " WHERE s.{.id} = a0.{studio_ownership.studioId})",
        )
        set_aside = self.derivation.of(
            "studios",
            "EXISTS (SELECT FROM {.} AS s WHERE s.{.id} = a0.{studio_ownership.studioId} AND {kept})",
            kept=self.derivation.kept("studio_owners", self.schema.compose("s.{studios.ownerId}")),
        )
        # A legacy change of ownerId wins, also one to nobody: then nobody is primary, and the one it named before has gone. Without
        # that column, what is still here under the id that the legacy side's naming gives is named by it.
        if "isPrimary" in names:
            wrong = self.derivation.of(table, "(a0.{.isPrimary} OR {named})", named=named)
        else:
            user, studio = self.derivation.there(table, "userId"), self.derivation.there(table, "studioId")
            given = derived_id(sql.Literal("ownership:"), user, sql.Literal(":"), studio)
            wrong = self.derivation.of(table, "(NOT {named} AND a0.{.id} = {given})", named=named, given=given)
        further = self.derivation.of(
            table, "(a0.{.userId} IS DISTINCT FROM {rightful} OR {set_aside} OR NOT {wrong})", rightful=rightful, set_aside=set_aside, wrong=wrong
        )
        columns = self._details(table, ("userId", "studioId"), {}, "terms_of_ownership")
        if "isPrimary" in names:
            his = self.derivation.of(table, "a0.{.userId} = {rightful}", rightful=rightful)
            columns[names["isPrimary"]] = [("terms_of_ownership", lambda unused, other: his)]
        return Excuses(columns=columns, unexpected=[("further_owners", further)])

    def _of_credentials(self, source: str, target: str) -> Excuses:
        there, called_for_id = self.derivation.there, self.schema[target].names["id"]

        def taken(rows: str, own: str, others: str):
            """Return the condition that another row over there has what is unique."""
            same = all_of(
                compose("{own}.{a} = x.{b}", {"own": sql.SQL(own), "a": self.schema.column(rows, name), "b": self.schema.column(others, name)})
                for name in _UNIQUE[source]
            )
            parts = {"own": sql.SQL(own), "same": same, "a": self.schema.column(rows, "id"), "b": self.schema.column(others, "id")}
            return self.derivation.of(others, "EXISTS (SELECT FROM {.} AS x WHERE x.{b} <> {own}.{a} AND {same})", **parts)

        # Of a row that was unverified in a joined identity, or is; once not carried they do not come back by themselves.
        left = self.derivation.of(
            source,
            "(p.{studio_owners.emailVerified} IS NULL OR i.native OR {parted} OR i.user_id <> i.source_id"
            " OR (SELECT count(*) FROM {map} AS n WHERE n.user_id = i.user_id) > 1)", parted=sql.SQL("i.parted" if self.derivation.knows_parted else "FALSE"),
        ) if not self.derivation.carries_all() else sql.SQL("FALSE")  # fmt: skip

        def not_carried(called_for):
            return self.derivation.of(
                source,
                "EXISTS (SELECT FROM {.} AS t JOIN {studio_owners} AS p ON p.{studio_owners.id} = t.{.userId}"
                " JOIN {map} AS i ON i.source_table = 'studio_owners' AND i.source_id = p.{studio_owners.id}"
                " WHERE t.{.id} = {id} AND ({left} OR {taken}))",
                id=called_for(called_for_id), left=left, taken=taken(source, "t", target),
            )

        user = there(target, "userId")
        unheld = compose("(NOT {row} OR {taken})", {"row": self.derivation.has_row("studio_owners", user), "taken": taken(target, "a0", source)})
        return Excuses(
            columns=self._copied(source, target, {}),
            unexpected=[(source, unheld)],
            missing=[
                (QUARANTINE, lambda called_for: self.derivation.kept(source, called_for(called_for_id))),
                (f"{source}_not_carried", not_carried),
            ],
        )


class ReverseRules(Rules):
    """What must never be found while both sides are written, and what is counted beside the images."""

    def all(self) -> list[Rule]:
        """Return the rules."""
        return [
            self._rule("identities", self._identities()),
            self._rule("dangling_mappings", self._dangling()),
            self._rule("double_roles", self._double_roles()),
            self._rule("double_identity_keys", self._double_keys()),
            self._rule("unaccounted", self._unaccounted()),
            self._rule("credentials_of_nobody", self._of_nobody()),
            self._rule("pinned_bookings", self._pins()),
            self._rule(QUARANTINE, self._entries()),
        ]

    def _set_aside(self, user):
        return self.derivation.kept("users", user)

    def _identities(self):
        """Mappings to a user of another key, and people who are mapped though they are in quarantine, or are guests and people at once."""
        user = self.of("users", "u.{.id}")
        return self.of(
            "users",
            "SELECT {label} AS label FROM {map} AS i JOIN {.} AS u ON u.{.id} = i.user_id WHERE {key} <> i.identity_key AND NOT {aside}"
            " UNION ALL SELECT {label} FROM {map} AS i WHERE EXISTS (SELECT FROM unified_user_journal.quarantine AS q"
            " WHERE q.source_table = i.source_table AND q.source_id = i.source_id AND i.source_table <> {guest})"
            " UNION ALL SELECT {label} FROM {map} AS i WHERE i.source_table = {guest}"
            " AND (i.source_id <> i.identity_key OR {person} OR NOT EXISTS (SELECT FROM {new_bookings} AS b WHERE b.{new_bookings.customerId} = i.user_id))",
            label=self.derivation.map_label("i"), key=self.derivation.key("users", "u"), aside=self._set_aside(user),
            person=self.of("users", "EXISTS (SELECT FROM {map} AS n WHERE n.user_id = i.user_id AND n.source_table <> {guest})"),
        )

    def _double_keys(self):
        """Two users with one key, those apart who are in quarantine for it."""
        key = self.derivation.key("users", "u")
        return self.of(
            "users", "SELECT {masked} AS label FROM {.} AS u WHERE NOT {aside} GROUP BY {key} HAVING count(*) > 1",
            masked=masked_email(key, self.derivation.mask_pii), key=key, aside=self._set_aside(self.of("users", "u.{.id}")),
        )

    def _unaccounted(self):
        """Legacy rows that refer to a person who is nobody's, and are not in quarantine with him."""
        selects = []
        for table, column, people in REFERRING:
            identifier = self.of(table, "t.{.A} || ' ' || t.{.B}" if table == "_CustomerFavorites" else "t.{.id}::text")
            reference = compose("t.{c}", {"c": self.schema.column(table, column)})
            selects.append(
                self.of(
                    table,
                    "SELECT {name} || ' ' || {id} AS label FROM {.} AS t LEFT JOIN {map} AS i ON i.source_table = {people} AND i.source_id = {reference}"
                    " WHERE {reference} IS NOT NULL AND i.source_id IS NULL AND NOT {kept}",
                    name=sql.Literal(self.schema[table].name), id=identifier, people=sql.Literal(people), reference=reference,
                    kept=self.derivation.kept(table, identifier),
                )
            )
        nobody = self.of(
            "bookings", "SELECT {name} || ' ' || t.{.id} FROM {.} AS t WHERE {unresolvable} AND NOT {pinned} AND NOT {kept}",
            name=sql.Literal(self.schema["bookings"].name), unresolvable=self.derivation.unresolvable("t"), pinned=self.derivation.pinned("t"),
            kept=self.derivation.kept("bookings", self.of("bookings", "t.{.id}")),
        )
        return sql.SQL(" UNION ALL ").join([*selects, nobody])

    def _pins(self):
        """Pins of bookings that are not there, or belong to somebody else."""
        return self.of(
            "new_bookings",
            "SELECT pin.booking_id AS label FROM unified_user_journal.pinned_booking AS pin"
            " LEFT JOIN {.} AS b ON b.{.id} = pin.booking_id AND b.{.customerId} = pin.user_id WHERE b.{.id} IS NULL",
        )

    def _entries(self):
        """Entries in quarantine whose row is not there, and bookings that are there and on the unified side."""
        there = [
            self.of(
                table, "WHEN q.source_table = {name} THEN EXISTS (SELECT FROM {.} AS t WHERE {id} = q.source_id)", name=sql.Literal(table),
                id=self.of(table, "t.{.A} || ' ' || t.{.B}" if table == "_CustomerFavorites" else "t.{.id}::text"),
            )
            for table in (*PEOPLE, "users", *(referring[0] for referring in REFERRING))
        ]  # fmt: skip
        return self.of(
            "new_bookings",
            "SELECT q.source_table || ' ' || q.source_id AS label FROM unified_user_journal.quarantine AS q WHERE NOT CASE {there} ELSE FALSE END"
            " OR (q.source_table = 'bookings' AND EXISTS (SELECT FROM {.} AS b WHERE b.{.id} = q.source_id))",
            there=sql.SQL(" ").join(there),
        )

    def totals(self):
        """Select the legacy side's rows, how many are in quarantine, and what only the unified side can hold and no image has (``HELD``)."""
        counts = {
            "quarantined": sql.SQL("SELECT count(*) FROM unified_user_journal.quarantine AS q"),
            "pinned_bookings": sql.SQL("SELECT count(*) FROM unified_user_journal.pinned_booking AS pin"),
            "scoped_roles": self.of("user_role_assignments", "SELECT count(*) FROM {.} AS r WHERE r.{.studioId} IS NOT NULL"),
        }
        for table in ("magic_link_tokens", "audit_logs"):
            if self.schema[table].exists:
                counts[table] = self.of(table, "SELECT count(*) FROM {.} AS a")
        return compose(
            "SELECT t.*, {counts} FROM ({totals}) AS t",
            {
                "totals": super().totals(),
                "counts": comma(compose("({count}) AS {name}", {"count": count, "name": sql.Identifier(name)}) for name, count in counts.items()),
            },
        )
