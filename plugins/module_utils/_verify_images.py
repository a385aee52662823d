# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the unified tables must hold: the contract, sections 2 and 3, derived anew from the legacy tables.

Nothing here is the copy's: a wrong rule must not prove itself. Where the copy numbers the rows of each identity, this
separates people who are alone, whose rows are compared as they stand, from the few who are joined, whose values are
picked one by one. The journal's identity map is used only where the image ``identity_map`` proves it in the same snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Column, Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import (
    CUSTOMER_ROLE,
    GRANTED_BY,
    OWNER_ROLE,
    PEOPLE,
    USER_RULES,
    Policies,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import (
    comma,
    compose,
    derived_id,
    identity_key,
    is_blank,
    is_usable,
    masked_email,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_columns import (
    constant_default,
    shared_columns,
    typed,
)

MAP = sql and sql.SQL("unified_user_journal.identity_map")
GUEST = "bookings"

_TEXT = Column("", "text", "text", "S", True, None, False, False)
_JSONB = Column("", "jsonb", "jsonb", "U", True, None, False, False)


@dataclass(frozen=True)
class Image:
    """The rows that one table must hold.

    Attributes:
        name: of the check.
        table: composed name of the table that must hold them.
        key: actual columns that tell its rows apart.
        columns: the columns to compare, by actual name.
        expected: composed SELECT of these columns, under their actual names.
        label: composed expression over ``k``, a row with the key columns, that names a row in a sample.
        ignored: columns that cannot be compared, as their defaults are not constants.
        born: composed condition over ``a``, the row there is, that it was born after cut-over; None when it never can be.
        changed: composed condition over ``e`` and ``a`` that the row there is was changed after cut-over; or None.
    """

    name: str
    table: object
    key: tuple[str, ...]
    columns: dict[str, Column]
    expected: object
    label: object
    ignored: list[str] = field(default_factory=list)
    born: object = None
    changed: object = None


class Images:
    """Composes the image of every table.

    Args:
        schema: resolved tables and columns.
        policies: the operator's decisions.
        started_at: the run's start, UTC, as text with milliseconds.
        cutover_at: since when the unified side has lived a life of its own, UTC, as text; or None.
        mask_pii: whether e-mails in samples are masked.
    """

    def __init__(self, schema: Schema, policies: Policies, started_at: str, cutover_at: str | None = None, mask_pii: bool = True) -> None:
        self.schema = schema
        self.policies = policies
        self.started_at = started_at
        self.cutover_at = cutover_at
        self.mask_pii = mask_pii

    def all(self) -> list[Image]:
        """Return the images; the identity map first, as the others lean on it."""
        return [
            self.identity_map(), self.users(), self.role_assignments(), self.ownerships(), self.accounts(), self.sessions(),
            self.bookings(), self.favourites(), self.quarantine(),
        ]

    # Expressions

    def key(self, table: str, alias: str):
        """Return the identity key of a row of owners, customers, users or bookings."""
        column = "customerEmail" if table == "bookings" else "email"
        return identity_key(self.schema.compose(f"{alias}.{{{table}.{column}}}"), self.policies.email_match)

    def anonymous(self, alias: str):
        """Return the condition that a booking names its person by a usable e-mail alone."""
        email = self.schema.compose(f"{alias}.{{bookings.customerEmail}}")
        return self.schema.compose(f"{alias}.{{bookings.customerId}} IS NULL AND {{usable}}", usable=is_usable(email))

    def unresolvable(self, alias: str):
        """Return the condition that a booking names nobody."""
        email = self.schema.compose(f"{alias}.{{bookings.customerEmail}}")
        return self.schema.compose(f"{alias}.{{bookings.customerId}} IS NULL AND NOT {{usable}}", usable=is_usable(email))

    def carries_all(self) -> bool:
        """Return whether credentials are carried whether verified or not."""
        return self.policies.join_credentials == "all"

    def _at(self, moment: str, column: Column):
        return compose("CAST({moment} AS {type})", {"moment": sql.Literal(moment), "type": sql.SQL(column.type)})

    # Building blocks

    def joined(self):
        """Select the keys of identities with more than one row."""
        return compose(
            "SELECT i.identity_key FROM {map} AS i WHERE i.source_table <> {guest} GROUP BY i.identity_key HAVING count(*) > 1",
            {"map": MAP, "guest": sql.Literal(GUEST)},
        )

    def own_id(self, table: str, alias: str):
        """Return the id that a person would give a user, and the join it needs (the contract, section 2: collisions)."""
        plain = self.schema.compose(f"{alias}.{{{table}.id}}")
        if table == "studio_owners" or self.policies.id_collisions != "rekey":
            return plain, sql.SQL("")
        namesake = self.schema.compose(
            f" LEFT JOIN {{studio_owners}} AS namesake ON namesake.{{studio_owners.id}} = {alias}.{{customers.id}} AND {{theirs}} <> {{ours}}",
            theirs=self.key("studio_owners", "namesake"), ours=self.key(table, alias),
        )
        own = self.schema.compose(
            f"CASE WHEN namesake.{{studio_owners.id}} IS NULL THEN {alias}.{{customers.id}} ELSE {{derived}} END",
            derived=derived_id(sql.Literal("customer:"), plain),
        )
        return own, namesake

    def members(self, person_columns: dict[str, dict[str, str]] | None = None):
        """Select the rows of joined identities: key, what decides their order, credentials, and further columns.

        Args:
            person_columns: column of ``users`` -> legacy table -> column there.
        """
        users = self.schema["users"].columns
        selects = []
        for side, table in enumerate(PEOPLE):
            own, join = self.own_id(table, "p")
            extra = [
                compose(
                    ", {value} AS {name}",
                    {
                        "value": typed(users[name], compose("p.{c}", {"c": sql.Identifier(sources[table])}) if table in sources else sql.SQL("NULL")),
                        "name": sql.Identifier(name),
                    },
                )
                for name, sources in (person_columns or {}).items()
            ]
            selects.append(
                self.schema.compose(
                    f"SELECT j.identity_key AS \"key of\", {side} AS \"side of\", p.{{{table}.emailVerified}} IS NULL AS \"unverified of\","
                    f" p.{{{table}.id}}::text AS \"id of\", {{own}} AS \"own id of\", p.{{{table}.email}}::text AS \"email of\","
                    f" p.{{{table}.password}}::text AS \"password of\", p.{{{table}.emailVerified}} AS \"verified of\","
                    f" p.{{{table}.createdAt}} AS \"created of\", p.{{{table}.updatedAt}} AS \"updated of\"{{extra}}"
                    f" FROM ({{joined}}) AS j JOIN {{{table}}} AS p ON {{key}} = j.identity_key{{join}}",
                    own=own, join=join, joined=self.joined(), key=self.key(table, "p"), extra=sql.Composed(extra),
                )
            )
        return sql.SQL(" UNION ALL ").join(selects)

    #: Survivor order (the contract, section 2).
    ORDER = '"side of", "unverified of", "created of", "id of" COLLATE "C"'

    def _first(self, value: str, before: object = None, where: object = None):
        """Select key and a member's value for each joined identity: of the first, by a condition and then in survivor order."""
        return compose(
            'SELECT DISTINCT ON ("key of") "key of", {value} FROM member AS m{where} ORDER BY "key of", {before}' + self.ORDER,
            {
                "value": sql.SQL(value) if isinstance(value, str) else value,
                "before": compose("{condition}, ", {"condition": before}) if before else sql.SQL(""),
                "where": compose(" WHERE {condition}", {"condition": where}) if where else sql.SQL(""),
            },
        )

    def guest_bookings(self, values):
        """Select key and further values of the bookings whose people have no account."""
        return self.schema.compose(
            'SELECT {key} AS "key of", {values} FROM {bookings} AS b WHERE {anonymous}'
            " AND NOT EXISTS (SELECT FROM {map} AS i WHERE i.source_table <> {guest} AND i.identity_key = {key})",
            key=self.key("bookings", "b"), values=comma(values), anonymous=self.anonymous("b"), map=MAP, guest=sql.Literal(GUEST),
        )

    def guest_id(self, key):
        """Return the id of the guest of a key."""
        return derived_id(sql.Literal("guest:"), key)

    def mapped(self, table: str, alias: str, reference):
        """Join the map's row of a legacy person."""
        return compose(
            f" LEFT JOIN {{map}} AS {alias} ON {alias}.source_table = {{table}} AND {alias}.source_id = {{reference}}",
            {"map": MAP, "table": sql.Literal(table), "reference": reference},
        )

    # The images

    def identity_map(self) -> Image:
        """Every owner and customer once, every guest once, each with his user (the contract, sections 2 and 3)."""
        people = []
        for table in PEOPLE:
            own, join = self.own_id(table, "p")
            people.append(
                self.schema.compose(
                    f"SELECT {{name}} AS source_table, p.{{{table}.id}}::text AS source_id, coalesce(f.user_id, {{own}})::text AS user_id,"
                    f" {{key}} AS identity_key FROM {{{table}}} AS p LEFT JOIN survivor AS f ON f.\"key of\" = {{key}}{{join}}",
                    name=sql.Literal(table), own=own, key=self.key(table, "p"), join=join,
                )
            )
        guests = compose(
            'SELECT {guest}, g."key of", {id}, g."key of" FROM ({bookings}) AS g GROUP BY g."key of"',
            {"guest": sql.Literal(GUEST), "id": self.guest_id(sql.SQL('g."key of"')), "bookings": self.guest_bookings([sql.SQL("1 AS one")])},
        )
        expected = compose(
            "WITH member AS MATERIALIZED ({members}), survivor AS MATERIALIZED ({survivors}) {rows}",
            {
                "members": self.members(), "survivors": self._first('"own id of" AS user_id'),
                "rows": sql.SQL(" UNION ALL ").join([*people, guests]),
            },
        )
        label = compose(
            "k.source_table || ' ' || CASE k.source_table WHEN {guest} THEN {masked} ELSE k.source_id END",
            {"guest": sql.Literal(GUEST), "masked": masked_email(sql.SQL("k.source_id"), self.mask_pii)},
        )
        columns = dict.fromkeys(("source_table", "source_id", "user_id", "identity_key"), _TEXT)
        return Image("identity_map", MAP, ("source_table", "source_id"), columns, expected, label)

    def _person_sources(self) -> dict[str, dict[str, str]]:
        """Return column of ``users`` -> legacy table -> column there, for the columns that follow the rule for name."""
        sources: dict[str, dict[str, str]] = {}
        for table in PEOPLE:
            for name, source in shared_columns(self.schema[table], self.schema["users"], USER_RULES).items():
                sources.setdefault(name, {})[table] = source
        return sources

    def users(self) -> Image:
        """One user for each identity and each guest (the contract, sections 2 and 3)."""
        relation = self.schema["users"]
        sources = self._person_sources()
        defaults = {
            name: constant_default(column)
            for name, column in relation.columns.items()
            if relation.logical_name(name) not in USER_RULES and not column.generated
        }
        ignored = [name for name, default in defaults.items() if default is None]
        further = [name for name in defaults if name not in ignored]
        columns = {name: relation.columns[name] for name in [relation.names[rule] for rule in USER_RULES] + further}
        branches = [self._alone(table, sources, defaults) for table in PEOPLE] + [self._together(sources, defaults), self._guests(defaults)]
        selects = []
        for values, source in branches:
            selects.append(
                compose(
                    "SELECT {values} {source}",
                    {
                        "values": comma(
                            compose("{value} AS {name}", {"value": typed(column, values[name]), "name": sql.Identifier(name)})
                            for name, column in columns.items()
                        ),
                        "source": source,
                    },
                )
            )
        expected = compose(
            'WITH member AS MATERIALIZED ({members}), nobody AS MATERIALIZED ({bookings}) {rows}',
            {
                "members": self.members({name: sources[name] for name in further if name in sources}),
                "bookings": self.guest_bookings(
                    self.schema.compose(f"b.{{bookings.{column}}} AS {alias}")
                    for column, alias in (
                        ("id", "id"), ("customerEmail", "email"), ("customerName", "name"), ("customerPhone", "phone"),
                        ("createdAt", "created"), ("updatedAt", "updated"),
                    )
                ),
                "rows": sql.SQL(" UNION ALL ").join(selects),
            },
        )
        return self._image("users", "users", columns, expected, ignored)

    def _ruled(self, primary_role, **values) -> dict[str, object]:
        """Name the values of the columns with a rule of their own as ``users`` does."""
        names = self.schema["users"].names
        values.update(primaryRole=primary_role, isActive=sql.SQL("true"), isSuspended=sql.SQL("false"))
        return {names[rule]: values[rule] for rule in USER_RULES}

    def _stored_email(self, email, key):
        return key if self.policies.email_store == "normalized" else email

    def _alone(self, table: str, sources: dict[str, dict[str, str]], defaults: dict[str, object]):
        """Owners or customers who share their key with nobody: their row as it stands."""
        own, join = self.own_id(table, "p")
        row = {
            name: self.schema.compose(f"p.{{{table}.{name}}}")
            for name in ("email", "emailVerified", "password", "createdAt", "updatedAt")
        }
        row.update(id=own, email=self._stored_email(row["email"], self.key(table, "p")))
        values = self._ruled(sql.Literal(PEOPLE[table]), **row)
        for name, default in defaults.items():
            source = sources.get(name, {}).get(table)
            values[name] = compose("p.{c}", {"c": sql.Identifier(source)}) if source else default
        return values, self.schema.compose(
            f"FROM {{{table}}} AS p{{join}} WHERE NOT EXISTS (SELECT FROM ({{joined}}) AS j WHERE j.identity_key = {{key}})",
            join=join, joined=self.joined(), key=self.key(table, "p"),
        )

    def _together(self, sources: dict[str, dict[str, str]], defaults: dict[str, object]):
        """Joined identities: each value picked from the first row, in survivor order, that may give it."""
        carried = sql.SQL("TRUE" if self.carries_all() else 'NOT m."unverified of"')
        has = compose("{carried} AND NOT {blank}", {"carried": carried, "blank": is_blank(sql.SQL('m."password of"'))})
        picks = {
            "survivor": self._first('"own id of", "email of", "side of"'),
            "kept": self._first(compose('CASE WHEN {has} THEN m."password of" END AS password', {"has": has}), compose("NOT ({has})", {"has": has})),
        }
        role = compose(
            'CASE survivor."side of" WHEN 0 THEN {owner} ELSE {customer} END',
            {"owner": sql.Literal(OWNER_ROLE), "customer": sql.Literal(CUSTOMER_ROLE)},
        )
        values = self._ruled(
            role, id=sql.SQL('survivor."own id of"'), emailVerified=sql.SQL("span.verified"), password=sql.SQL("kept.password"),
            email=self._stored_email(sql.SQL('survivor."email of"'), sql.SQL('survivor."key of"')),
            createdAt=sql.SQL("span.created"), updatedAt=sql.SQL("span.updated"),
        )
        for number, (name, default) in enumerate(defaults.items()):
            if name not in sources or default is None:
                values[name] = default
                continue
            column, own = self.schema["users"].columns[name], compose("m.{c}", {"c": sql.Identifier(name)})
            blank = is_blank(own) if column.is_text else compose("{own} IS NULL", {"own": own})
            sides = comma(sql.Literal(side) for side, table in enumerate(PEOPLE) if table in sources[name])
            alias = f"pick{number}"
            picks[alias] = self._first(compose("{own} AS value", {"own": own}), blank, compose('m."side of" IN ({sides})', {"sides": sides}))
            # An identity without a row in any table that has the column is left with the default.
            values[name] = compose(
                "CASE WHEN {alias}.\"key of\" IS NULL THEN {default} ELSE {alias}.value END",
                {"alias": sql.Identifier(alias), "default": typed(column, default)},
            )
        span = 'SELECT "key of", min("verified of") AS verified, min("created of") AS created, max("updated of") AS updated FROM member GROUP BY "key of"'
        source = compose('FROM ({survivor}) AS survivor JOIN (' + span + ') AS span USING ("key of")', {"survivor": picks.pop("survivor")})
        joins = [
            compose(' LEFT JOIN ({select}) AS {alias} ON {alias}."key of" = survivor."key of"', {"select": select, "alias": sql.Identifier(alias)})
            for alias, select in picks.items()
        ]
        return values, sql.Composed([source, *joins])

    def _guests(self, defaults: dict[str, object]):
        """Guests: what their latest bookings say (the contract, section 3)."""
        users = self.schema["users"]
        email = sql.SQL("latest.email" if self.policies.email_match == "exact" else "btrim(latest.email)")
        key, null = sql.SQL('span."key of"'), sql.SQL("NULL")
        values = {
            **defaults,
            **self._ruled(
                sql.Literal(self.policies.guest_role), id=self.guest_id(key), email=self._stored_email(email, key),
                emailVerified=null, password=null, createdAt=sql.SQL("span.created"), updatedAt=sql.SQL("span.updated"),
            ),
            users.names["name"]: sql.SQL("named.value"),
            users.names["phone"]: sql.SQL("called.value"),
        }
        if "image" in users.names:
            values[users.names["image"]] = null
        latest = 'b.created DESC, b.id COLLATE "C" DESC'
        not_blank = "SELECT DISTINCT ON (b.\"key of\") b.\"key of\", b.{column}::text AS value FROM nobody AS b WHERE NOT {blank} ORDER BY b.\"key of\", " + latest
        picked = [
            compose(not_blank, {"column": sql.SQL(column), "blank": is_blank(sql.SQL(f"b.{column}"))}) for column in ("name", "phone")
        ]
        return values, compose(
            'FROM (SELECT "key of", min(created) AS created, max(updated) AS updated FROM nobody GROUP BY "key of") AS span'
            ' JOIN (SELECT DISTINCT ON (b."key of") b."key of", b.email FROM nobody AS b ORDER BY b."key of", ' + latest + ") AS latest"
            ' USING ("key of") LEFT JOIN ({name}) AS named USING ("key of") LEFT JOIN ({phone}) AS called USING ("key of")',
            {"name": picked[0], "phone": picked[1]},
        )

    def _image(self, name: str, table: str, columns: dict[str, Column], expected, ignored) -> Image:
        relation = self.schema[table]
        keys = ("A", "B") if table == "_UserFavorites" else ("id",)
        actual = tuple(relation.names[key] for key in keys)
        label = sql.SQL(" || ' ' || ").join([compose("k.{c}::text", {"c": sql.Identifier(column)}) for column in actual])
        return Image(name, self.schema.table(table), actual, columns, expected, label, list(ignored), self._born(table), self._changed(table))

    def _born(self, table: str):
        """Return the condition that a row of a unified table was born after cut-over: by its own time, else by its user's."""
        if self.cutover_at is None:
            return None
        relation = self.schema[table]
        own = next((name for name in ("createdAt", "grantedAt", "invitedAt") if name in relation.names), None)
        at = self._at(self.cutover_at, relation.columns[relation.names[own]]) if own else None
        by_itself = self.schema.compose(f"a.{{{table}.{own}}} >= {{at}}", at=at) if own else sql.SQL("FALSE")
        if own == "createdAt":
            return by_itself
        user = "B" if table == "_UserFavorites" else "userId"
        users = self.schema["users"]
        return self.schema.compose(
            f"({{by_itself}} OR EXISTS (SELECT FROM {{users}} AS u WHERE u.{{users.id}} = a.{{{table}.{user}}} AND u.{{users.createdAt}} >= {{at}}))",
            by_itself=by_itself, at=self._at(self.cutover_at, users.columns[users.names["createdAt"]]),
        )

    def _changed(self, table: str):
        """Return the condition that a row was changed after cut-over, while its source is older."""
        relation = self.schema[table]
        if self.cutover_at is None or "updatedAt" not in relation.names:
            return None
        at = self._at(self.cutover_at, relation.columns[relation.names["updatedAt"]])
        return self.schema.compose(f"(a.{{{table}.updatedAt}} >= {{at}} AND e.{{{table}.updatedAt}} < {{at}})", at=at)

    def _made(self, name: str, table: str, values: dict[str, object], source) -> Image:
        """The image of a table whose rows are made: logical column -> value, every other column its default."""
        relation = self.schema[table]
        actual = {relation.names[logical]: value for logical, value in values.items() if logical in relation.names}
        return self._filled(name, table, actual, source)

    def _filled(self, name: str, table: str, values: dict[str, object], source) -> Image:
        relation = self.schema[table]
        ignored, columns, select = [], {}, []
        for column_name, column in relation.columns.items():
            value = values.get(column_name) or constant_default(column)
            if value is None:
                if not column.generated:
                    ignored.append(column_name)
                continue
            columns[column_name] = column
            select.append(compose("{value} AS {name}", {"value": typed(column, value), "name": sql.Identifier(column_name)}))
        expected = compose("SELECT {values} {source}", {"values": comma(select), "source": source})
        return self._image(name, table, columns, expected, ignored)

    def role_assignments(self) -> Image:
        """STUDIO_OWNER and CUSTOMER for the rows an identity has, the guests' role for guests, each once."""
        role = compose(
            "CASE i.source_table WHEN 'studio_owners' THEN {owner} WHEN 'customers' THEN {customer} ELSE {guest} END",
            {"owner": sql.Literal(OWNER_ROLE), "customer": sql.Literal(CUSTOMER_ROLE), "guest": sql.Literal(self.policies.guest_role)},
        )
        at = sql.Literal(self.started_at)
        values = {
            "id": derived_id(sql.Literal("role:"), sql.SQL("r.user_id"), sql.Literal(":"), sql.SQL("r.role")),
            "userId": sql.SQL("r.user_id"), "role": sql.SQL("r.role"), "studioId": sql.SQL("NULL"),
            "grantedBy": sql.Literal(GRANTED_BY), "grantedAt": at, "expiresAt": sql.SQL("NULL"),
        }
        source = compose(
            "FROM (SELECT i.user_id, {role} AS role FROM {map} AS i GROUP BY 1, 2) AS r",
            {"role": role, "map": MAP},
        )
        return self._made("role_assignments", "user_role_assignments", values, source)

    def ownerships(self) -> Image:
        """One for each studio with an owner."""
        studio, at = self.schema.compose("s.{studios.id}"), sql.Literal(self.started_at)
        values = {
            "id": derived_id(sql.Literal("ownership:"), sql.SQL("m.user_id"), sql.Literal(":"), studio),
            "userId": sql.SQL("m.user_id"), "studioId": studio, "isPrimary": sql.SQL("true"), "canTransfer": sql.SQL("true"),
            "invitedBy": sql.Literal(GRANTED_BY), "invitedAt": at, "acceptedAt": at,
        }
        source = self.schema.compose(
            "FROM {studios} AS s{mapped} WHERE s.{studios.ownerId} IS NOT NULL",
            mapped=self.mapped("studio_owners", "m", self.schema.compose("s.{studios.ownerId}")),
        )
        return self._made("ownerships", "studio_ownership", values, source)

    def accounts(self) -> Image:
        """The OAuth accounts of owners whose credentials are carried."""
        return self._credentials("accounts", "new_accounts")

    def sessions(self) -> Image:
        """The sessions of owners whose credentials are carried."""
        return self._credentials("sessions", "new_sessions")

    def _row_copy(self, source: str, target: str, ruled: str) -> dict[str, object]:
        pairs = shared_columns(self.schema[source], self.schema[target], (ruled,))
        return {name: compose("t.{c}", {"c": sql.Identifier(other)}) for name, other in pairs.items()}

    def _credentials(self, source: str, target: str) -> Image:
        values = self._row_copy(source, target, "userId")
        values[self.schema[target].names["userId"]] = sql.SQL("m.user_id")
        mapped = self.mapped("studio_owners", "m", self.schema.compose("p.{studio_owners.id}"))
        return self._filled(
            source, target, values, compose("{owned}{mapped} WHERE NOT {dropped}", {"owned": self.owned(source), "mapped": mapped, "dropped": self.dropped()})
        )

    def owned(self, source: str):
        """Return the FROM clause of accounts or sessions ``t`` with their owners ``p`` and, if joined, their keys ``j``."""
        return self.schema.compose(
            f"FROM {{{source}}} AS t JOIN {{studio_owners}} AS p ON p.{{studio_owners.id}} = t.{{{source}.userId}}"
            " LEFT JOIN ({joined}) AS j ON j.identity_key = {key}",
            joined=self.joined(), key=self.key("studio_owners", "p"),
        )

    def dropped(self):
        """Return the condition, over ``owned``, that an owner's credentials are not carried (the contract, section 2)."""
        if self.carries_all():
            return sql.SQL("FALSE")
        return self.schema.compose("(j.identity_key IS NOT NULL AND p.{studio_owners.emailVerified} IS NULL)")

    def bookings(self) -> Image:
        """Every booking that names somebody, with his user: by customerId, else by e-mail (the contract, section 3)."""
        values = self._row_copy("bookings", "new_bookings", "customerId")
        user = self.schema.compose("CASE WHEN t.{bookings.customerId} IS NULL THEN i.user_id ELSE m.user_id END")
        values[self.schema["new_bookings"].names["customerId"]] = user
        source = self.schema.compose(
            "FROM {bookings} AS t{mapped} LEFT JOIN (SELECT identity_key, min(user_id) AS user_id FROM {map} GROUP BY identity_key) AS i"
            " ON i.identity_key = CASE WHEN t.{bookings.customerId} IS NULL THEN {key} END WHERE NOT ({unresolvable})",
            mapped=self.mapped("customers", "m", self.schema.compose("t.{bookings.customerId}")),
            map=MAP, key=self.key("bookings", "t"), unresolvable=self.unresolvable("t"),
        )
        return self._filled("bookings", "new_bookings", values, source)

    def favourites(self) -> Image:
        """Every favourite, its columns swapped; what several rows of one identity share appears once."""
        source = self.schema.compose(
            "FROM (SELECT DISTINCT f.{_CustomerFavorites.B} AS studio, m.user_id FROM {_CustomerFavorites} AS f{mapped}) AS d",
            mapped=self.mapped("customers", "m", self.schema.compose("f.{_CustomerFavorites.A}")),
        )
        return self._made("favourites", "_UserFavorites", {"A": sql.SQL("d.studio"), "B": sql.SQL("d.user_id")}, source)

    def quarantine(self) -> Image:
        """Every booking that names nobody, kept whole."""
        expected = self.schema.compose(
            "SELECT {name}::text AS source_table, t.{bookings.id}::text AS source_id, 'unresolvable'::text AS reason, to_jsonb(t) AS row"
            " FROM {bookings} AS t WHERE {unresolvable}",
            name=sql.Literal("bookings"), unresolvable=self.unresolvable("t"),
        )
        columns = {**dict.fromkeys(("source_table", "source_id", "reason"), _TEXT), "row": _JSONB}
        return Image(
            "quarantine", sql.SQL("unified_user_journal.quarantine"), ("source_table", "source_id"), columns, expected,
            sql.SQL("k.source_table || ' ' || k.source_id"),
        )
