# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The projection: the unified rows that the legacy rows call for (the contract, sections 2 and 3).

Everything is a SELECT over three relations, which the caller provides as temporary tables or as common table expressions:

``member``  one row for each owner and customer: ``side`` (0 owner, 1 customer), ``source_id``, ``key``, ``verified``,
            ``position`` in survivor order, ``size`` of the identity, ``any_verified`` of it, ``user_id``.
``guest``   one row for each guest: ``key``, ``user_id``, his columns, and the number of his ``bookings``.
the legacy tables themselves.

Each function returns the target columns and the SELECT that fills them, in the same order.
"""

from __future__ import annotations

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import PersonColumn, Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma, derived_id, identity_key, is_usable

#: Logical people table -> its number in survivor order.
SIDES = {table: number for number, table in enumerate(_mapping.PEOPLE)}

# Every user has these; what else people have follows.
_USER_COLUMNS = ("id", "email", "emailVerified", "password", "primaryRole", "isActive", "isSuspended", "createdAt", "updatedAt")

OWNER_SIDE = SIDES["studio_owners"]
CUSTOMER_SIDE = SIDES["customers"]


class Projection:
    """Builds the SELECTs of the projection for one schema under one set of policies.

    Args:
        schema: the resolved schema; its required columns must be there.
        policies: the operator's decisions.
        started_at: composed expression of the run's start, a timestamp in UTC.
    """

    def __init__(self, schema: Schema, policies: Policies, started_at) -> None:
        self.schema = schema
        self.policies = policies
        self.started_at = started_at

    def _key(self, column, alias: str):
        return identity_key(sql.SQL("{}.{}").format(sql.Identifier(alias), column), self.policies.email_match)

    def member(self):
        """Select every owner and customer with his identity, his place in it and the user he becomes."""
        own_id, join = sql.SQL("p.id"), sql.SQL("")
        if self.policies.id_collisions == "rekey":
            own_id = self.schema.compose(
                "CASE WHEN collision.{studio_owners.id} IS NULL THEN p.id ELSE {derived} END",
                derived=self.rekeyed_id(sql.SQL("p.id")),
            )
            join = self.schema.compose(
                " LEFT JOIN {studio_owners} AS collision ON p.side = {customer} AND collision.{studio_owners.id} = p.id"
                " AND {key} <> p.key",
                customer=sql.Literal(CUSTOMER_SIDE),
                key=self._key(self.schema.column("studio_owners", "email"), "collision"),
            )
        people = sql.SQL(" UNION ALL ").join(self._people(table) for table in _mapping.PEOPLE)
        return self.schema.compose(
            "SELECT m.side, m.source_id, m.key, m.verified, row_number() OVER survivors AS position,"
            " count(*) OVER identity AS size, bool_or(m.verified) OVER identity AS any_verified, first_value(m.own_id) OVER survivors AS user_id"
            " FROM (SELECT p.side, p.id AS source_id, {own_id} AS own_id, p.key, p.verified, p.created FROM ({people}) AS p{join}) AS m"
            " WINDOW identity AS (PARTITION BY m.key),"
            ' survivors AS (PARTITION BY m.key ORDER BY m.side, m.verified DESC, m.created, m.source_id COLLATE "C")',
            own_id=own_id, people=people, join=join,
        )

    def unverified(self):
        """Select the key of each identity of owners and customers none of whose e-mails was verified, without ``member``."""
        people = sql.SQL(" UNION ALL ").join(self._people(table) for table in _mapping.PEOPLE)
        return sql.SQL("SELECT p.key FROM ({}) AS p GROUP BY p.key HAVING NOT bool_or(p.verified)").format(people)

    def _people(self, table: str):
        return self.schema.compose(
            "SELECT {side}::smallint AS side, t.{people.id} AS id, {key} AS key,"
            " t.{people.emailVerified} IS NOT NULL AS verified, t.{people.createdAt} AS created FROM {people} AS t",
            people=table,
            side=sql.Literal(SIDES[table]),
            key=self._key(self.schema.column(table, "email"), "t"),
        )

    @staticmethod
    def rekeyed_id(customer_id):
        """Return the derived id of a customer whose id an owner of another identity has."""
        return derived_id(sql.Literal("customer:"), customer_id)

    def guest(self):
        """Select one guest for each usable e-mail of bookings that no customer and no identity claims."""
        email = sql.SQL("b.{}").format(self.schema.column("bookings", "customerEmail"))
        key = identity_key(email, self.policies.email_match)
        stored = sql.SQL("g.email")
        if self.policies.email_store == "normalized":
            stored = sql.SQL("g.key")
        elif self.policies.email_match == "case_insensitive":
            stored = sql.SQL("btrim(g.email)")
        return self.schema.compose(
            "SELECT g.key, {id} AS user_id, {stored} AS email, g.name, g.phone, g.created, g.updated, g.bookings FROM ("
            'SELECT {key} AS key, (array_agg({email} ORDER BY b.{bookings.createdAt} DESC, b.{bookings.id} COLLATE "C" DESC))[1] AS email,'
            " {name} AS name, {phone} AS phone, min(b.{bookings.createdAt}) AS created, max(b.{bookings.updatedAt}) AS updated, count(*) AS bookings"
            " FROM {bookings} AS b WHERE b.{bookings.customerId} IS NULL AND {usable}"
            " AND NOT EXISTS (SELECT FROM member AS m WHERE m.key = {key}) GROUP BY 1) AS g",
            id=derived_id(sql.Literal("guest:"), sql.SQL("g.key")),
            stored=stored, key=key, email=email, usable=is_usable(email),
            name=self._latest("customerName"), phone=self._latest("customerPhone"),
        )

    def _latest(self, column: str):
        return self.schema.compose(
            '(array_agg({value} ORDER BY b.{bookings.createdAt} DESC, b.{bookings.id} COLLATE "C" DESC)'
            " FILTER (WHERE btrim({value}) <> ''))[1]",
            value=sql.SQL("b.{}").format(self.schema.column("bookings", column)),
        )

    def carried(self):
        """Return the condition under which the credentials of a ``member`` row ``m`` are carried."""
        if self.policies.join_credentials == "all":
            return sql.SQL("true")
        return sql.SQL("(m.size = 1 OR m.verified)")

    def identity_map(self):
        """Select where every owner, customer and guest goes."""
        sides = sql.SQL(" ").join(
            sql.SQL("WHEN {} THEN {}").format(sql.Literal(side), sql.Literal(table)) for table, side in SIDES.items()
        )
        return self.schema.compose(
            "SELECT CASE m.side {sides} END, m.source_id, m.user_id, m.key FROM member AS m"
            " UNION ALL SELECT 'bookings', g.key, g.user_id, g.key FROM guest AS g",
            sides=sides,
        )

    def targets(self) -> dict[str, tuple]:
        """Return columns and SELECT of each unified table that is filled, parents first."""
        return {
            "users": self.users(),
            "user_role_assignments": self.user_role_assignments(),
            "studio_ownership": self.studio_ownership(),
            "new_accounts": self.new_accounts(),
            "new_sessions": self.new_sessions(),
            "new_bookings": self.new_bookings(),
            "_UserFavorites": self.favourites(),
        }

    def users(self):
        """Select one user for each identity and guest."""
        carried = self.schema.person_columns()
        parts = [self._single_users(table) for table in _mapping.PEOPLE]
        parts += [self._joined_users(carried), self._guest_users(carried)]
        return self._user_columns(carried), sql.SQL(" UNION ALL ").join(parts)

    def user_alone(self, table: str, row: str, user, key) -> list[tuple]:
        """Return (column, value) of the user of an identity that is one row of a table of people.

        Args:
            table: of people.
            row: what that row is called.
            user: composed; his id.
            key: composed; the identity's key.
        """
        def of(name: str):
            return sql.SQL("{}.{}").format(sql.SQL(row), sql.Identifier(name))

        names = self.schema[table].names
        fixed = {
            "id": user,
            "email": key if self.policies.email_store == "normalized" else of(names["email"]),
            "primaryRole": self._role(sql.Literal(_mapping.PEOPLE[table])),
            "isActive": sql.SQL("true"),
            "isSuspended": sql.SQL("false"),
        }
        return [
            *((self.schema.column("users", name), fixed[name] if name in fixed else of(names[name])) for name in _USER_COLUMNS),
            *(
                (sql.Identifier(column.target.name), of(column.sources[table]) if table in column.sources else self._default(column))
                for column in self.schema.person_columns()
            ),
        ]

    def _user_columns(self, carried: list[PersonColumn]) -> list:
        return [self.schema.column("users", name) for name in _USER_COLUMNS] + [sql.Identifier(column.target.name) for column in carried]

    def _role(self, role):
        users = self.schema["users"]
        # The server's own spelling of the enum, schema included.
        return sql.SQL("{}::{}").format(role, sql.SQL(users.columns[users.names["primaryRole"]].base_type))

    def _default(self, column: PersonColumn):
        return sql.SQL(column.target.default) if column.target.default else self._null(column)

    @staticmethod
    def _null(column: PersonColumn):
        return sql.SQL("NULL::{}").format(sql.SQL(column.target.type))

    def _single_users(self, table: str):
        alone = self.user_alone(table, "t", sql.SQL("m.user_id"), sql.SQL("m.key"))
        return self.schema.compose(
            "SELECT {values} FROM member AS m JOIN {people} AS t ON t.{people.id} = m.source_id WHERE m.side = {side} AND m.size = 1",
            people=table, values=comma(value for unused, value in alone), side=sql.Literal(SIDES[table]),
        )

    @staticmethod
    def _further(values):
        return sql.SQL("").join(sql.SQL(", {}").format(value) for value in values)

    def _joined_users(self, carried: list[PersonColumn]):
        """Aggregate the identities of several rows, each column by its rule, in survivor order."""
        people = sql.SQL(" UNION ALL ").join(
            self.schema.compose(
                "SELECT {side}::smallint AS side, t.{people.id} AS id, t.{people.email} AS email,"
                " t.{people.emailVerified} AS verified_at, t.{people.password} AS password,"
                " t.{people.createdAt} AS created, t.{people.updatedAt} AS updated{values} FROM {people} AS t",
                people=table,
                side=sql.Literal(SIDES[table]),
                values=self._further(
                    sql.SQL("{} AS {}").format(
                        sql.SQL("t.{}").format(sql.Identifier(column.sources[table]))
                        if table in column.sources
                        else self._null(column),
                        self._alias(number),
                    )
                    for number, column in enumerate(carried)
                ),
            )
            for table in _mapping.PEOPLE
        )
        return self.schema.compose(
            "SELECT m.user_id, {email}, min(t.verified_at),"
            " (array_agg(t.password ORDER BY m.position) FILTER (WHERE btrim(t.password) <> '' AND {is_carried}))[1],"
            " {role}, true, false, min(t.created), max(t.updated){values}"
            " FROM member AS m JOIN ({people}) AS t ON t.side = m.side AND t.id = m.source_id"
            " WHERE m.size > 1 GROUP BY m.key, m.user_id",
            email=sql.SQL("m.key") if self.policies.email_store == "normalized" else sql.SQL("(array_agg(t.email ORDER BY m.position))[1]"),
            is_carried=self.carried(),
            role=self._role(
                sql.SQL("CASE min(m.side) WHEN {} THEN {} ELSE {} END").format(
                    sql.Literal(OWNER_SIDE), sql.Literal(_mapping.OWNER_ROLE), sql.Literal(_mapping.CUSTOMER_ROLE)
                )
            ),
            people=people,
            values=self._further(self._first_not_blank(number, column) for number, column in enumerate(carried)),
        )

    @staticmethod
    def _alias(number: int):
        return sql.Identifier(f"carried_{number}")

    def _first_not_blank(self, number: int, column: PersonColumn):
        """The rule for ``name``: the first not blank in survivor order, else the first there is, else the default."""
        value = sql.SQL("t.{}").format(self._alias(number))
        present = sql.SQL("btrim({}) <> ''" if column.target.is_text else "{} IS NOT NULL").format(value)
        sides = comma(sql.Literal(SIDES[table]) for table in column.sources)
        # Arrays of arrays are not arrays of elements; as text, which is exact both ways, an array is one.
        spelt, back = (sql.SQL("{}::text").format(value), sql.SQL(column.target.type)) if column.target.is_array else (value, None)
        first = sql.SQL("coalesce((array_agg({value} ORDER BY m.position) FILTER (WHERE {present}))[1],"
                        " (array_agg({value} ORDER BY m.position) FILTER (WHERE m.side IN ({sides})))[1])").format(
            value=spelt, present=present, sides=sides
        )
        if back:
            first = sql.SQL("({})::{}").format(first, back)
        if len(column.sources) == len(_mapping.PEOPLE):
            return first
        return sql.SQL("CASE WHEN bool_or(m.side IN ({})) THEN {} ELSE {} END").format(sides, first, self._default(column))

    def _guest_users(self, carried: list[PersonColumn]):
        users = self.schema["users"]
        own = {users.names.get("name"): sql.SQL("g.name"), users.names.get("phone"): sql.SQL("g.phone"),
               users.names.get("image"): sql.SQL("NULL")}
        values = [own.get(column.target.name, self._default(column)) for column in carried]
        return self.schema.compose(
            "SELECT g.user_id, g.email, NULL, NULL, {role}, true, false, g.created, g.updated{values} FROM guest AS g",
            role=self._role(sql.Literal(self.policies.guest_role)),
            values=self._further(values),
        )

    def user_role_assignments(self):
        """Select one role for each table that an identity has rows in, and one for each guest."""
        table = self.schema["user_role_assignments"]
        roles = sql.SQL(" ").join(
            sql.SQL("WHEN {} THEN {}").format(sql.Literal(SIDES[name]), sql.Literal(role)) for name, role in _mapping.PEOPLE.items()
        )
        granted = self.schema.compose(
            "SELECT user_id, CASE side {roles} END AS role FROM member WHERE size = 1"
            " UNION ALL SELECT DISTINCT user_id, CASE side {roles} END FROM member WHERE size > 1"
            " UNION ALL SELECT user_id, {guest_role} FROM guest",
            roles=roles,
            guest_role=sql.Literal(self.policies.guest_role),
        )
        values = {
            "id": derived_id(sql.Literal("role:"), sql.SQL("r.user_id"), sql.Literal(":"), sql.SQL("r.role")),
            "userId": sql.SQL("r.user_id"),
            "role": sql.SQL("r.role::{}").format(sql.SQL(table.columns[table.names["role"]].base_type)),
            "studioId": sql.SQL("NULL::text"),
            "grantedBy": sql.Literal(_mapping.GRANTED_BY),
            "grantedAt": self.started_at,
            "expiresAt": sql.SQL("NULL::timestamp"),
        }
        return self._filled("user_role_assignments", values, sql.SQL("FROM ({}) AS r").format(granted))

    def _filled(self, target: str, values: dict, source):
        present = [name for name in values if name in self.schema[target].names]
        return (
            [self.schema.column(target, name) for name in present],
            sql.SQL("SELECT {} {}").format(comma(values[name] for name in present), source),
        )

    def studio_ownership(self):
        """Select one ownership for each studio that has an owner."""
        studio = self.schema.compose("s.{studios.id}")
        values = {
            "id": derived_id(sql.Literal("ownership:"), sql.SQL("m.user_id"), sql.Literal(":"), studio),
            "userId": sql.SQL("m.user_id"),
            "studioId": studio,
            "isPrimary": sql.SQL("true"),
            "canTransfer": sql.SQL("true"),
            "invitedBy": sql.Literal(_mapping.GRANTED_BY),
            "invitedAt": self.started_at,
            "acceptedAt": self.started_at,
        }
        source = self.schema.compose(
            "FROM {studios} AS s JOIN member AS m ON m.side = {owner} AND m.source_id = s.{studios.ownerId}",
            owner=sql.Literal(OWNER_SIDE),
        )
        return self._filled("studio_ownership", values, source)

    def new_accounts(self):
        """Select the OAuth accounts whose owner's credentials are carried."""
        return self._credentials("new_accounts", "accounts")

    def new_sessions(self):
        """Select the sessions whose owner's credentials are carried."""
        return self._credentials("new_sessions", "sessions")

    def _credentials(self, target: str, source: str):
        columns, values = self._row_copy(target)
        return (
            [self.schema.column(target, "userId"), *columns],
            self.schema.compose(
                "SELECT m.user_id, {values} FROM {source} AS t JOIN member AS m"
                " ON m.side = {owner} AND m.source_id = t.{source.userId} WHERE {is_carried}",
                source=source, values=comma(values), owner=sql.Literal(OWNER_SIDE), is_carried=self.carried(),
            ),
        )

    def _row_copy(self, target: str):
        pairs = self.schema.row_copy(target)
        return [sql.Identifier(left) for left, unused in pairs], [sql.SQL("t.{}").format(sql.Identifier(right)) for unused, right in pairs]

    def favourites(self):
        """Select the favourites, columns swapped; a pair that several rows of one identity share appears once."""
        pair = "SELECT {distinct}f.{_CustomerFavorites.B}, m.user_id FROM {_CustomerFavorites} AS f JOIN member AS m" \
               " ON m.side = {customer} AND m.source_id = f.{_CustomerFavorites.A} WHERE m.size {size} 1"
        customer = sql.Literal(CUSTOMER_SIDE)
        select = sql.SQL(" UNION ALL ").join([
            self.schema.compose(pair, distinct=sql.SQL(""), customer=customer, size=sql.SQL("=")),
            self.schema.compose(pair, distinct=sql.SQL("DISTINCT "), customer=customer, size=sql.SQL(">")),
        ])
        return [self.schema.column("_UserFavorites", "A"), self.schema.column("_UserFavorites", "B")], select

    def new_bookings(self):
        """Select every booking that somebody can be found for: by customerId, else by e-mail, else his guest."""
        columns, values = self._row_copy("new_bookings")
        return (
            [self.schema.column("new_bookings", "customerId"), *columns],
            self.schema.compose(
                "SELECT {user}, {values} {source} WHERE {user} IS NOT NULL",
                values=comma(values), user=self._booking_user(), source=self._booking_source(),
            ),
        )

    def _booking_user(self):
        return sql.SQL("coalesce(c.user_id, i.user_id, g.user_id)")

    def _booking_source(self):
        # Each key is NULL where an earlier rule decides, so that those rows look up nobody. Members and guests are joined one
        # after the other: of a union of both the planner has no statistics, and it would sort every booking.
        return self.schema.compose(
            "FROM {bookings} AS t"
            " LEFT JOIN member AS c ON c.side = {customer} AND c.source_id = t.{bookings.customerId}{looked_up}"
            " LEFT JOIN member AS i ON i.position = 1 AND i.key = CASE WHEN t.{bookings.customerId} IS NULL THEN {key} END"
            " LEFT JOIN guest AS g ON g.key = CASE WHEN t.{bookings.customerId} IS NULL AND i.key IS NULL THEN {key} END",
            customer=sql.Literal(CUSTOMER_SIDE),
            looked_up=self._customers_looked_up(),
            key=self.booking_key("t"),
        )

    @staticmethod
    def _customers_looked_up():
        """Return a further condition on the customers ``c`` that bookings look up."""
        return sql.SQL("")

    def booking_key(self, alias: str):
        """Return the identity key of a booking's customerEmail."""
        return self._key(self.schema.column("bookings", "customerEmail"), alias)

    def quarantine(self):
        """Select the bookings that have neither a customerId nor a usable e-mail."""
        return self.schema.compose(
            "SELECT 'bookings', t.{bookings.id}, 'unresolvable', to_jsonb(t) FROM {bookings} AS t"
            " WHERE t.{bookings.customerId} IS NULL AND NOT {usable}",
            usable=is_usable(sql.SQL("t.{}").format(self.schema.column("bookings", "customerEmail"))),
        )


#: That a row of ``member`` leads to another id than its own. The planner guesses that two columns are never equal; of a cast, few are 0.
_LEADS_ELSEWHERE = "({m}.source_id = {m}.user_id)::int = 0"


class WholeProjection(Projection):
    """The projection where ``member`` has every owner and customer, so that whoever keeps his id need not be looked up.

    A customerId that refers to no customer is carried as it stands: the caller must have refused it, or a foreign key will.
    """

    def _booking_user(self):
        return self.schema.compose("coalesce(c.user_id, t.{bookings.customerId}, i.user_id, g.user_id)")

    @staticmethod
    def _customers_looked_up():
        return sql.SQL(" AND " + _LEADS_ELSEWHERE).format(m=sql.SQL("c"))

    def favourites(self):
        """Select the favourites as ``Projection.favourites``: of who is alone with the id he has, else with his user's."""
        customers = sql.SQL("member AS m ON m.side = {} AND m.source_id").format(sql.Literal(CUSTOMER_SIDE))
        select = self.schema.compose(
            "SELECT f.{_CustomerFavorites.B}, coalesce(m.user_id, f.{_CustomerFavorites.A}) FROM {_CustomerFavorites} AS f"
            " LEFT JOIN {customers} = f.{_CustomerFavorites.A} AND (m.size > 1 OR {elsewhere}) WHERE m.size IS NULL OR m.size = 1"
            " UNION ALL SELECT DISTINCT f.{_CustomerFavorites.B}, m.user_id FROM {_CustomerFavorites} AS f"
            " JOIN {customers} = f.{_CustomerFavorites.A} WHERE m.size > 1",
            customers=customers, elsewhere=sql.SQL(_LEADS_ELSEWHERE).format(m=sql.SQL("m")),
        )
        return [self.schema.column("_UserFavorites", "A"), self.schema.column("_UserFavorites", "B")], select
