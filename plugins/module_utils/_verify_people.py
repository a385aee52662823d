# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who must be in the identity map and in ``users`` (the contract, sections 2 and 3).

Where the copy puts the rows of every identity in order, this separates people who are alone, whose rows are compared as
they stand, from the few who are joined, each of whose values is picked for itself, and from guests.
"""

from __future__ import annotations

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Column
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import CUSTOMER_ROLE, OWNER_ROLE, PEOPLE, USER_RULES
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma, compose, is_blank
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_base import GUEST, Branch, Derivation, Image, Look
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_columns import constant_default, shared_columns, typed

TEXT = Column("", "text", "text", "S", True, None, False, False)
_BOOLEAN = Column("", "boolean", "boolean", "B", True, None, False, False)

#: Always holds. By it the planner expects so few groups that it looks for every user among them, not for each of them among all users.
_FEW = " HAVING count(*) > 0"

#: Survivor order of rows of ``member`` (the contract, section 2).
_ORDER = '"side of", "unverified of", "created of", "id of" COLLATE "C"'

#: What a guest is made of: column of ``bookings`` -> name in ``nobody``.
_GUESTS_OWN = {
    "id": "id", "customerEmail": "email", "customerName": "name", "customerPhone": "phone", "createdAt": "created", "updatedAt": "updated",
}


def _rows(selects) -> object:
    return sql.SQL(" UNION ALL ").join(selects)


class People:
    """Composes the images of the identity map and of users.

    Args:
        derivation: keys, policies and tables.
    """

    def __init__(self, derivation: Derivation) -> None:
        self.derivation = derivation
        self.schema = derivation.schema
        self.policies = derivation.policies

    def members(self, person_columns: dict[str, dict[str, str]] | None = None):
        """Select the rows of joined identities, whose keys are in ``several``: what decides their order, credentials, and further columns.

        Args:
            person_columns: column of ``users`` -> legacy table -> column there.
        """
        users = self.schema["users"].columns
        selects = []
        for side, table in enumerate(PEOPLE):
            own, join = self.derivation.own_id(table, "p")
            further = []
            for name, sources in (person_columns or {}).items():
                value = compose("p.{c}", {"c": sql.Identifier(sources[table])}) if table in sources else sql.SQL("NULL")
                further.append(compose(", {value} AS {name}", {"value": typed(users[name], value), "name": sql.Identifier(name)}))
            selects.append(
                self.derivation.of(
                    table,
                    'SELECT {key} AS "key of", {side} AS "side of", p.{.emailVerified} IS NULL AS "unverified of", p.{.id}::text AS "id of",'
                    ' {own} AS "own id of", p.{.email}::text AS "email of", p.{.password}::text AS "password of",'
                    ' p.{.emailVerified} AS "verified of", p.{.createdAt} AS "created of", p.{.updatedAt} AS "updated of"{further}'
                    # The planner knows nothing of the keys, and of a number that few are 1: so it takes these for the few that they mostly are.
                    " FROM {.} AS p JOIN several ON several.identity_key = {key} AND several.joined = 1{join}",
                    key=self.derivation.key(table, "p"), side=sql.Literal(side), own=own, join=join, further=sql.Composed(further),
                )
            )
        return _rows(selects)

    def guest_bookings(self):
        """Select key and contents of the bookings whose people have no account."""
        return self.derivation.of(
            "bookings",
            'SELECT {key} AS "key of", {values} FROM {.} AS b WHERE {anonymous}'
            " AND NOT EXISTS (SELECT FROM {map} AS i WHERE i.source_table <> {guest} AND i.identity_key = {key})",
            key=self.derivation.key("bookings", "b"), anonymous=self.derivation.anonymous("b"),
            values=comma(
                compose("b.{c} AS {name}", {"c": self.schema.column("bookings", column), "name": sql.SQL(name)}) for column, name in _GUESTS_OWN.items()
            ),
        )

    def _alone(self, table: str):
        """Return the FROM clause of the owners or customers ``p`` who share their key, in ``several`` if they do, with nobody."""
        return self.derivation.of(
            table, "FROM {.} AS p{join} WHERE NOT EXISTS (SELECT FROM several WHERE several.identity_key = {key})",
            join=self.derivation.own_id(table, "p")[1], key=self.derivation.key(table, "p"),
        )

    @staticmethod
    def _first(value, before=None, where=None):
        """Select key and a value of a member of each joined identity: the first, by a condition and then in survivor order."""
        return compose(
            'SELECT DISTINCT ON ("key of") "key of", {value} FROM member AS m WHERE {where} ORDER BY "key of", {before}{order}',
            {
                "value": value, "where": where or sql.SQL("TRUE"), "order": sql.SQL(_ORDER),
                "before": compose("{condition}, ", {"condition": before}) if before else sql.SQL(""),
            },
        )

    def looks(self) -> list[Look]:
        """Return what to count. Who is alone, and who is a guest, is in the map and in users row by row."""
        mapped, users = self.identity_map(), self.users()
        joined = {name: users.ctes[name] for name in ("several", "member")}
        return [
            Look([[(mapped, "alone"), (users, "alone")], [(mapped, "together")], [(users, "together")]], joined),
            Look([[(mapped, "guests"), (users, "guests")]], {"nobody": users.ctes["nobody"]}),
        ]

    def _ctes(self, sources: dict[str, dict[str, str]]) -> dict[str, object]:
        return {"several": self.derivation.several(), "member": self.members(sources), "nobody": self.guest_bookings()}

    def identity_map(self) -> Image:
        """Every owner and customer once, every guest once, each with his user."""
        owners, customers = map(sql.Literal, PEOPLE)
        # Reverse sync marks the rows it made, and those that parted; before it is on there are none.
        marks = [] if self.derivation.both_ways else ["made", "native", *(["parted"] if self.derivation.knows_parted else [])]

        def row(source_table, source_id, user_id, key) -> dict[str, object]:
            row = {"source_table": source_table, "source_id": source_id, "user_id": user_id, "identity_key": key}
            return {**row, **dict.fromkeys(marks, sql.SQL("false"))}

        alone = [
            Branch(
                row(sql.Literal(table), self.derivation.of(table, "p.{.id}"), self.derivation.own_id(table, "p")[0], self.derivation.key(table, "p")),
                self._alone(table),
            )
            for table in PEOPLE
        ]
        side = compose('CASE m."side of" WHEN 0 THEN {owners} ELSE {customers} END', {"owners": owners, "customers": customers})
        together = Branch(
            row(side, sql.SQL('m."id of"'), sql.SQL("s.user_id"), sql.SQL('m."key of"')),
            compose('FROM member AS m JOIN ({first}) AS s USING ("key of")', {"first": self._first(sql.SQL('"own id of" AS user_id'))}),
        )
        key = sql.SQL('span."key of"')
        guests = Branch(row(sql.Literal(GUEST), key, sql.SQL('span."own id of"'), key), self._traces())
        columns = {**dict.fromkeys(("source_table", "source_id", "user_id", "identity_key"), TEXT), **dict.fromkeys(marks, _BOOLEAN)}
        return Image(
            "identity_map", self.derivation.map, ("source_table", "source_id"), columns,
            {"alone": alone, "together": [together], "guests": [guests]}, self.derivation.map_label("k"), self._ctes({}),
        )

    def users(self) -> Image:
        """One user for each identity and each guest."""
        relation = self.schema["users"]
        sources: dict[str, dict[str, str]] = {}
        for table in PEOPLE:
            for name, source in shared_columns(self.schema[table], relation, USER_RULES).items():
                sources.setdefault(name, {})[table] = source
        # None where the default is computed: a row that nobody gives a value may hold any.
        defaults = {
            name: constant_default(column)
            for name, column in relation.columns.items()
            if relation.logical_name(name) not in USER_RULES and not column.generated
        }
        columns = {name: relation.columns[name] for name in [*(relation.names[rule] for rule in USER_RULES), *defaults]}
        parts = {
            "alone": [Branch(self._values_alone(table, sources, defaults), self._alone(table)) for table in PEOPLE],
            "together": [self._picks(sources, defaults)],
            "guests": [Branch(self._values_of_guests(defaults), self._traces())],
        }
        computed = [name for name, default in defaults.items() if default is None]
        return self.derivation.image("users", "users", columns, parts, computed, self._ctes(sources))

    def _ruled(self, primary_role, **values) -> dict[str, object]:
        """Name the values of the columns with a rule of their own as ``users`` does."""
        names = self.schema["users"].names
        values.update(primaryRole=primary_role, isActive=sql.SQL("true"), isSuspended=sql.SQL("false"))
        if self.policies.email_store == "normalized":
            values["email"] = values["key"]
        return {names[rule]: values[rule] for rule in USER_RULES}

    def _values_alone(self, table: str, sources: dict[str, dict[str, str]], defaults: dict[str, object]) -> dict[str, object]:
        """People who are alone: their row as it stands."""
        own = {name: self.derivation.of(table, "p.{c}", c=self.schema.column(table, name)) for name in USER_RULES if name in self.schema[table].names}
        own.update(id=self.derivation.own_id(table, "p")[0], key=self.derivation.key(table, "p"))
        values = self._ruled(sql.Literal(PEOPLE[table]), **own)
        for name, default in defaults.items():
            source = sources.get(name, {}).get(table)
            values[name] = compose("p.{c}", {"c": sql.Identifier(source)}) if source else default
        return values

    def _picks(self, sources: dict[str, dict[str, str]], defaults: dict[str, object]) -> Branch:
        """Joined identities: each value from the first row, in survivor order, that may give it."""
        carried = sql.SQL("TRUE" if self.derivation.carries_all() else 'NOT m."unverified of"')
        has = compose("({carried} AND NOT {blank})", {"carried": carried, "blank": is_blank(sql.SQL('m."password of"'))})
        password = compose('CASE WHEN {has} THEN m."password of" END AS value', {"has": has})
        picks = {"kept": self._first(password, compose("NOT {has}", {"has": has}))}
        role = compose(
            'CASE survivor."side of" WHEN 0 THEN {owner} ELSE {customer} END', {"owner": sql.Literal(OWNER_ROLE), "customer": sql.Literal(CUSTOMER_ROLE)}
        )
        values = self._ruled(
            role, id=sql.SQL('survivor."own id of"'), email=sql.SQL('survivor."email of"'), key=sql.SQL('survivor."key of"'),
            emailVerified=sql.SQL("span.verified"), password=sql.SQL("kept.value"),
            createdAt=sql.SQL("span.created"), updatedAt=sql.SQL("span.updated"),
        )
        unknown = {}
        for number, (name, default) in enumerate(defaults.items()):
            values[name] = default
            if name in sources:
                column, own = self.schema["users"].columns[name], compose("m.{c}", {"c": sql.Identifier(name)})
                blank = is_blank(own) if column.is_text else compose("{own} IS NULL", {"own": own})
                sides = comma(sql.Literal(side) for side, table in enumerate(PEOPLE) if table in sources[name])
                pick = sql.Identifier(f"pick{number}")
                picks[f"pick{number}"] = self._first(
                    compose("{own} AS value", {"own": own}), blank, compose('m."side of" IN ({sides})', {"sides": sides})
                )
                # An identity without a row in any table that has the column is left with the default.
                without = compose('{pick}."key of" IS NULL', {"pick": pick})
                values[name] = compose(
                    "CASE WHEN {without} THEN {default} ELSE {pick}.value END",
                    {"pick": pick, "without": without, "default": typed(column, default or sql.SQL("NULL"))},
                )
                if default is None:
                    unknown[name] = without
        source = compose(
            "FROM ({survivor}) AS survivor JOIN (SELECT \"key of\", min(\"verified of\") AS verified, min(\"created of\") AS created,"
            ' max("updated of") AS updated FROM member GROUP BY "key of"{few}) AS span USING ("key of"){picks}',
            {
                "survivor": self._first(sql.SQL('"own id of", "email of", "side of"')), "few": sql.SQL(_FEW),
                "picks": sql.Composed(
                    compose(' LEFT JOIN ({select}) AS {alias} USING ("key of")', {"select": select, "alias": sql.Identifier(alias)})
                    for alias, select in picks.items()
                ),
            },
        )
        return Branch(values, source, unknown)

    def _values_of_guests(self, defaults: dict[str, object]) -> dict[str, object]:
        """Guests: what their latest bookings say."""
        names = self.schema["users"].names
        key, null = sql.SQL('span."key of"'), sql.SQL("NULL")
        email = sql.SQL("latest.value" if self.policies.email_match == "exact" else "btrim(latest.value)")
        values = {
            **defaults,
            **self._ruled(
                sql.Literal(self.policies.guest_role), id=sql.SQL('span."own id of"'), email=email, key=key, emailVerified=null, password=null,
                createdAt=sql.SQL("span.created"), updatedAt=sql.SQL("span.updated"),
            ),
            names["name"]: sql.SQL("named.value"),
            names["phone"]: sql.SQL("called.value"),
        }
        if "image" in names:
            values[names["image"]] = null
        return values

    def _traces(self):
        """Return the FROM clause of guests: their bookings' span, their latest e-mail, name and phone."""

        def latest(column: str, where):
            return compose(
                'SELECT DISTINCT ON (b."key of") b."key of", b.{column}::text AS value FROM nobody AS b WHERE {where}'
                ' ORDER BY b."key of", b.created DESC, b.id COLLATE "C" DESC',
                {"column": sql.Identifier(column), "where": where},
            )

        return compose(
            'FROM (SELECT "key of", {id} AS "own id of", min(created) AS created, max(updated) AS updated FROM nobody GROUP BY "key of"{few}) AS span'
            ' JOIN ({email}) AS latest USING ("key of") LEFT JOIN ({name}) AS named USING ("key of") LEFT JOIN ({phone}) AS called USING ("key of")',
            {
                "id": self.derivation.guest_id(sql.SQL('"key of"')), "few": sql.SQL(_FEW),
                "email": latest("email", sql.SQL("TRUE")),
                **{name: latest(name, compose("NOT {blank}", {"blank": is_blank(sql.SQL("b." + name))})) for name in ("name", "phone")},
            },
        )
