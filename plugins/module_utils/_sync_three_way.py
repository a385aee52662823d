# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Forward sync while the unified side is written as well: only what the legacy side changed is carried (the contract: Three-way).

Users keep their ids, whoever joins or leaves an identity. What the legacy side called for when a user differed from it is in
``divergence``; where there is none, the user himself says it.
"""

from __future__ import annotations

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Column, Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._projection import CUSTOMER_SIDE, OWNER_SIDE, Projection
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import all_of, comma, compose, derived_id
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync_forward import RELATIONS, Forward, changed

# Which user each identity has: people bring theirs along; where an identity splits, the part with the row whose id the user
# bears keeps him; where several meet, a person's user is kept before a guest's, then the one who was there.
_ASSIGN = """
uu_native := ARRAY(
    SELECT {user_key} FROM {users} AS u WHERE {user_key} = ANY (uu_keys)
    AND NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = u.{users.id}));
uu_natives := '{}';
IF uu_native <> '{}' THEN
    uu_natives := ARRAY(
        SELECT u.{users.id} FROM {users} AS u WHERE {user_key} = ANY (uu_native)
        AND NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = u.{users.id}));
END IF;
WITH person AS (
    SELECT m.key, m.position, i.user_id, i.source_id = i.user_id AS bears FROM unnest(uu_members) AS m
    JOIN unified_user_journal.identity_map AS i ON i.source_table = (ARRAY['studio_owners', 'customers'])[m.side + 1] AND i.source_id = m.source_id
), claim AS (
    SELECT p.key, p.user_id, bool_or(p.bears) AS bears, min(p.position) AS position FROM person AS p GROUP BY p.key, p.user_id
    UNION ALL SELECT {user_key}, u.{users.id}, false, 1000000 FROM {users} AS u
    WHERE {user_key} = ANY (uu_keys) AND EXISTS (SELECT FROM unnest(uu_members) AS m WHERE m.key = {user_key})
    AND NOT EXISTS (SELECT FROM person AS p WHERE p.user_id = u.{users.id})
), won AS (
    SELECT DISTINCT ON (c.user_id) c.*, {user_key} = c.key AS there, EXISTS (
        SELECT FROM unified_user_journal.identity_map AS i WHERE i.source_table = 'bookings' AND i.user_id = c.user_id) AS guest
    FROM claim AS c JOIN {users} AS u ON u.{users.id} = c.user_id
    ORDER BY c.user_id, c.bears DESC, {user_key} = c.key DESC, c.position, c.key
), best AS (
    SELECT DISTINCT ON (w.key) w.key, w.user_id FROM won AS w ORDER BY w.key, w.guest, w.there DESC, w.bears DESC, w.position, w.user_id
), counted AS (
    SELECT m.*, i.made IS TRUE AS made, count(*) FILTER (WHERE i.made IS NOT TRUE) OVER (PARTITION BY m.key)
           + (coalesce(bool_or(i.native) OVER (PARTITION BY m.key), false) OR m.key = ANY (uu_native))::integer AS parties
    FROM unnest(uu_members) AS m LEFT JOIN unified_user_journal.identity_map AS i
    ON i.source_table = (ARRAY['studio_owners', 'customers'])[m.side + 1] AND i.source_id = m.source_id
)
SELECT coalesce(array_agg(ROW(
    -- Rows that reverse made never make an identity a joined one for the credentials rule; a user who was born on the unified
    -- side is a party of his own, whom a stranger's unverified row must not open.
    c.side, c.source_id, c.key, c.verified OR c.made OR c.parties <= 1, c.position, greatest(c.size, c.parties), c.any_verified,
    coalesce(b.user_id, CASE WHEN EXISTS (SELECT FROM {users} AS u WHERE u.{users.id} = c.user_id) THEN {derived} ELSE c.user_id END)
)::unified_user_journal.member), '{}') INTO uu_members FROM counted AS c LEFT JOIN best AS b ON b.key = c.key;
IF uu_guests <> '{}' THEN
    uu_guests := ARRAY(
        SELECT ROW(g.key, coalesce(i.user_id, g.user_id), g.email, g.name, g.phone, g.created, g.updated, g.bookings)::unified_user_journal.guest
        FROM unnest(uu_guests) AS g LEFT JOIN unified_user_journal.identity_map AS i ON i.source_table = 'bookings' AND i.source_id = g.key);
END IF;
"""

# Somebody without a legacy row has the e-mail of these bookings: they are his, and no guest is made. OFFSET 0 has him looked up
# for each booking; else a plan may begin with all users.
_PIN = """
INSERT INTO unified_user_journal.pinned_booking (booking_id, user_id)
SELECT b.{bookings.id}, u.{users.id} FROM {bookings} AS b
CROSS JOIN LATERAL (SELECT * FROM {users} AS u WHERE {user_key} = {booking_key} OFFSET 0) AS u
WHERE b.{bookings.customerId} IS NULL AND {usable} AND {booking_key} = ANY (uu_keys)
AND NOT EXISTS (SELECT FROM unnest(uu_members) AS m WHERE m.key = {booking_key})
AND NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = u.{users.id})
ON CONFLICT (booking_id) DO NOTHING;
"""

_MOVED = """
uu_owners_moved := ARRAY(
    SELECT m.source_id FROM unnest(uu_members) AS m WHERE m.side = {owner} AND NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS i
    WHERE i.source_table = 'studio_owners' AND i.source_id = m.source_id AND i.user_id = m.user_id))
    || ARRAY(SELECT x.source_id FROM unnest(uu_blocked) AS x WHERE x.source_table = 'studio_owners');
uu_customers_moved := ARRAY(
    SELECT m.source_id FROM unnest(uu_members) AS m WHERE m.side = {customer} AND NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS i
    WHERE i.source_table = 'customers' AND i.source_id = m.source_id AND i.user_id = m.user_id))
    || ARRAY(SELECT x.source_id FROM unnest(uu_blocked) AS x WHERE x.source_table = 'customers');
IF uu_owners_moved <> '{}' THEN
    uu_rows := uu_rows || ARRAY(SELECT 'accounts:' || t.{accounts.id} FROM {accounts} AS t WHERE t.{accounts.userId} = ANY (uu_owners_moved))
        || ARRAY(SELECT 'sessions:' || t.{sessions.id} FROM {sessions} AS t WHERE t.{sessions.userId} = ANY (uu_owners_moved));
    uu_studios := uu_studios || ARRAY(SELECT s.{studios.id} FROM {studios} AS s WHERE s.{studios.ownerId} = ANY (uu_owners_moved));
END IF;
IF uu_customers_moved <> '{}' THEN
    uu_studios := uu_studios
        || ARRAY(SELECT f.{_CustomerFavorites.B} FROM {_CustomerFavorites} AS f WHERE f.{_CustomerFavorites.A} = ANY (uu_customers_moved));
END IF;
"""

# Here and elsewhere what few have is looked up and not joined (OFFSET keeps it so): planned while nobody has it, a join would go
# through all there is ever after.

# A column is written only where the projection says something else than it did. Who had none before is only noted; so is, after
# a write on the unified side, everybody but guests: other rows of that write may still wait for their triggers.
_USERS = """
WITH {relations}, wanted ({columns}) AS ({select}), typed AS (SELECT {typed} FROM wanted AS w)
INSERT INTO {users} AS n ({columns}) SELECT w.* FROM typed AS w WHERE NOT EXISTS (SELECT FROM {users} AS u WHERE u.{id} = w.{id});
WITH {relations}, wanted ({columns}) AS ({select}), typed AS (SELECT {typed} FROM wanted AS w),
based AS (SELECT w.*, coalesce((SELECT d.projection FROM unified_user_journal.divergence AS d WHERE d.user_id = w.{id}), {noted_user}) AS "uu base"
          FROM typed AS w JOIN {users} AS u ON u.{id} = w.{id} WHERE w.{id} <> ALL (uu_natives)
          AND (uu_reversed = '{}' OR (w.{id} IN (SELECT g.user_id FROM guest AS g) AND w.{id} <> ALL (uu_reversed))))
UPDATE {users} AS n SET {updates} FROM based AS w WHERE n.{id} = w.{id} AND ({changed});
WITH {relations}, wanted ({columns}) AS ({select}), typed AS (SELECT {typed} FROM wanted AS w),
noted AS (
    INSERT INTO unified_user_journal.divergence AS d (user_id, projection)
    SELECT w.{id}, {noted} FROM typed AS w JOIN {users} AS u ON u.{id} = w.{id} WHERE ({differs})
    ON CONFLICT (user_id) DO UPDATE SET projection = excluded.projection WHERE d.projection <> excluded.projection
)
DELETE FROM unified_user_journal.divergence AS d
WHERE d.user_id = ANY (ARRAY(SELECT w.{id} FROM typed AS w JOIN {users} AS u ON u.{id} = w.{id} WHERE NOT ({differs})));
"""

# The ids in uu_rows that are of one table.
_TOUCHED_ROWS = "ARRAY(SELECT substr(r, length({prefix}) + 1) FROM unnest(uu_rows) AS r WHERE starts_with(r, {prefix}))"

# What an identity has rows for now and had not, and the other way round: a role that was revoked there stays revoked.
_ROLES = """
WITH {relations}, now (user_id, role) AS (
    SELECT m.user_id, (ARRAY[{owner_role}, {customer_role}])[m.side + 1] FROM member AS m UNION SELECT g.user_id, {guest_role} FROM guest AS g
), before (user_id, role) AS (
    SELECT i.user_id, CASE i.source_table WHEN 'studio_owners' THEN {owner_role} WHEN 'customers' THEN {customer_role} ELSE {guest_role} END
    FROM unified_user_journal.identity_map AS i WHERE i.identity_key = ANY (uu_keys)
), lost AS (
    DELETE FROM {user_role_assignments} AS r USING (SELECT * FROM before EXCEPT SELECT * FROM now) AS l
    WHERE r.{user_role_assignments.userId} = l.user_id AND r.{user_role_assignments.role}::text = l.role AND r.{user_role_assignments.studioId} IS NULL
    AND l.user_id <> ALL (uu_kept)
)
INSERT INTO {user_role_assignments} ({columns})
SELECT w.* FROM ({select}) AS w ({columns}) JOIN (SELECT * FROM now EXCEPT SELECT * FROM before) AS g
    ON g.user_id = w.{user_role_assignments.userId} AND g.role = w.{user_role_assignments.role}::text
WHERE NOT EXISTS (SELECT FROM {user_role_assignments} AS r WHERE r.{user_role_assignments.userId} = g.user_id
                  AND r.{user_role_assignments.role}::text = g.role AND r.{user_role_assignments.studioId} IS NULL)
ON CONFLICT ({user_role_assignments.id}) DO NOTHING;
"""

# Whom a studio named before, by the rows this write touched or moved; who else owns it stays.
_OWNERSHIP = """
IF uu_studios <> '{}' THEN
    WITH {relations}, wanted ({columns}) AS MATERIALIZED ({select})
    DELETE FROM {studio_ownership} AS n USING unified_user_journal.identity_map AS i
    WHERE n.{studio_ownership.studioId} = ANY (uu_studios) AND i.user_id = n.{studio_ownership.userId} AND i.source_table = 'studio_owners'
    AND i.source_id = ANY (uu_ids || uu_owners_moved)
    AND NOT EXISTS (SELECT FROM wanted AS w WHERE w.{studio_ownership.userId} = n.{studio_ownership.userId}
                    AND w.{studio_ownership.studioId} = n.{studio_ownership.studioId});
    WITH {relations}, wanted ({columns}) AS ({select}), absent AS MATERIALIZED (
        SELECT w.* FROM wanted AS w WHERE w.{studio_ownership.studioId} = ANY (uu_studios)
        AND NOT EXISTS (SELECT FROM {studio_ownership} AS n WHERE n.{studio_ownership.userId} = w.{studio_ownership.userId}
                        AND n.{studio_ownership.studioId} = w.{studio_ownership.studioId}))
    INSERT INTO {studio_ownership} ({columns}) SELECT w.* FROM absent AS w WHERE {parents}
    ON CONFLICT ({studio_ownership.id}) DO NOTHING;
    {primary}
END IF;
"""

_PRIMARY = """
WITH {relations}, wanted ({columns}) AS MATERIALIZED ({select})
UPDATE {studio_ownership} AS n SET {studio_ownership.isPrimary} = (n.{studio_ownership.userId} = w.{studio_ownership.userId}) FROM wanted AS w
WHERE w.{studio_ownership.studioId} = ANY (uu_studios) AND n.{studio_ownership.studioId} = w.{studio_ownership.studioId}
AND n.{studio_ownership.isPrimary} <> (n.{studio_ownership.userId} = w.{studio_ownership.userId});
"""

_FAVOURITES = """
IF uu_studios <> '{}' THEN
    WITH {relations}, wanted ({columns}) AS MATERIALIZED ({select})
    DELETE FROM {_UserFavorites} AS n USING unified_user_journal.identity_map AS i
    WHERE n.{_UserFavorites.A} = ANY (uu_studios) AND i.user_id = n.{_UserFavorites.B} AND i.source_table = 'customers'
    AND i.source_id = ANY (uu_ids || uu_customers_moved)
    AND NOT EXISTS (SELECT FROM wanted AS w WHERE w.{_UserFavorites.A} = n.{_UserFavorites.A} AND w.{_UserFavorites.B} = n.{_UserFavorites.B});
    WITH {relations}, wanted ({columns}) AS ({select}), absent AS MATERIALIZED (
        SELECT w.* FROM wanted AS w WHERE w.{_UserFavorites.A} = ANY (uu_studios)
        AND NOT EXISTS (SELECT FROM {_UserFavorites} AS n WHERE n.{_UserFavorites.A} = w.{_UserFavorites.A}
                        AND n.{_UserFavorites.B} = w.{_UserFavorites.B}))
    INSERT INTO {_UserFavorites} ({columns}) SELECT w.* FROM absent AS w WHERE {parents}
    ON CONFLICT ({_UserFavorites.A}, {_UserFavorites.B}) DO NOTHING;
END IF;
"""

# What somebody else has taken meanwhile is seen as taken by a second look, unless the snapshot is an older one.
_CREDENTIALS = """
IF uu_rows <> '{}' THEN
    FOR uu_try IN 1 .. 3 LOOP
        BEGIN
            {credentials}
            EXIT;
        EXCEPTION WHEN unique_violation THEN
            IF uu_try = 3 OR current_setting('transaction_isolation') <> 'read committed' THEN
                RAISE EXCEPTION 'Failed to carry an account or a session: another transaction has just taken its key. Repeat the transaction.'
                USING ERRCODE = 'serialization_failure';
            END IF;
        END;
    END LOOP;
END IF;
"""

# A write on the unified side is carried by its own trigger; only those of a user who goes are decided again.
_BOOKINGS = """
IF uu_reversed = '{}' THEN
    {carried}
ELSIF uu_gone <> '{}' THEN
    WITH {relations}, wanted ({columns}) AS ({select})
    UPDATE {new_bookings} AS n SET {new_bookings.customerId} = w.{new_bookings.customerId} FROM wanted AS w
    WHERE n.{new_bookings.id} = w.{new_bookings.id} AND n.{new_bookings.customerId} = ANY (uu_gone);
END IF;
"""

# Who has, or had, a legacy row has nothing there that it has not: when one of his rows has gone, so has what came with it.
_LOST = """
IF uu_reversed = '{}' THEN
    uu_lost := ARRAY(
        SELECT DISTINCT i.user_id FROM unified_user_journal.identity_map AS i WHERE i.identity_key = ANY (uu_keys) AND i.source_table = {name}
        AND NOT EXISTS (SELECT FROM unnest(uu_members) AS m WHERE m.side = {side} AND m.source_id = i.source_id AND m.user_id = i.user_id));
    IF uu_lost <> '{}' THEN
        {deletes}
    END IF;
END IF;
"""

_LOST_ROWS = """
WITH {relations}, wanted ({columns}) AS MATERIALIZED ({select})
DELETE FROM {table} AS n WHERE n.{user} = ANY (uu_lost) AND NOT EXISTS (SELECT FROM wanted AS w WHERE {same});
"""

_DELETED_BOOKINGS = """
DELETE FROM {new_bookings} AS n WHERE n.{new_bookings.id} = ANY (uu_bookings)
AND NOT EXISTS (SELECT FROM {bookings} AS b WHERE b.{bookings.id} = n.{new_bookings.id});
"""

# Who has become an owner or a customer is given, on the legacy side, what he had on the unified side.
_GAINED = """
FOREACH uu_user IN ARRAY uu_gained LOOP
    PERFORM unified_user_journal.flow(uu_user);
END LOOP;
"""

_WHO_GAINS = """
uu_gained := ARRAY(
    SELECT DISTINCT m.user_id FROM unnest(uu_members) AS m
    WHERE NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = m.user_id
                      AND i.source_table = (ARRAY['studio_owners', 'customers'])[m.side + 1])
    AND EXISTS (SELECT FROM {users} AS u WHERE u.{users.id} = m.user_id));
"""


_LOCK_RELEASED = """
PERFORM unified_user_journal.lock_studios(ARRAY(SELECT s.{studios.id} FROM {studios} AS s WHERE s.{studios.ownerId} = OLD.{studio_owners.id}));
"""

# A guest stays as long as a booking is pinned to him, unless somebody has his key now.
_KEEP = """
uu_kept := uu_kept || ARRAY(
    SELECT i.user_id FROM unified_user_journal.identity_map AS i WHERE i.source_table = 'bookings' AND i.user_id = ANY (uu_gone)
    AND EXISTS (SELECT FROM unified_user_journal.pinned_booking AS pin WHERE pin.user_id = i.user_id OFFSET 0)
    AND NOT EXISTS (SELECT FROM unnest(uu_members) AS m WHERE m.key = i.identity_key));
uu_gone := ARRAY(SELECT unnest(uu_gone) EXCEPT SELECT unnest(uu_kept));
"""

# Pins of a user who goes no longer hold: his bookings are decided again.
_UNPIN_GONE = """
DELETE FROM unified_user_journal.pinned_booking AS pin WHERE pin.user_id = ANY (uu_gone);
IF FOUND AND uu_more = '{}' THEN
    uu_more := uu_keys;
END IF;
"""

_UNPIN = """
IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND NOT ({same})) THEN
    DELETE FROM unified_user_journal.pinned_booking AS pin WHERE pin.booking_id IN (OLD.{bookings.id}, NEW.{bookings.id});
END IF;
"""

# Credentials that were not carried because others shared the identity do not come back when these leave it: nobody is to miss them then.
_PARTED = """
UPDATE unified_user_journal.identity_map AS i SET parted = true
WHERE i.identity_key = ANY (uu_keys) AND i.source_table = 'studio_owners' AND NOT i.parted AND EXISTS (
    SELECT FROM unified_user_journal.identity_map AS n
    WHERE n.user_id = i.user_id AND n.source_table <> 'bookings' AND (n.source_table, n.source_id) <> (i.source_table, i.source_id)
    AND NOT EXISTS (SELECT FROM unnest(uu_members) AS m WHERE m.user_id = i.user_id
                    AND n.source_table = (ARRAY['studio_owners', 'customers'])[m.side + 1] AND n.source_id = m.source_id)
) AND (
    EXISTS (SELECT FROM {accounts} AS t WHERE t.{accounts.userId} = i.source_id
            AND NOT EXISTS (SELECT FROM {new_accounts} AS n WHERE n.{new_accounts.id} = t.{accounts.id}))
    OR EXISTS (SELECT FROM {sessions} AS t WHERE t.{sessions.userId} = i.source_id
               AND NOT EXISTS (SELECT FROM {new_sessions} AS n WHERE n.{new_sessions.id} = t.{sessions.id})));
"""

_NATIVE = """
IF uu_native <> '{}' THEN
    UPDATE unified_user_journal.identity_map AS i SET native = true WHERE i.identity_key = ANY (uu_native) AND NOT i.native;
END IF;
"""

_FORGET_GONE = """
IF uu_gone <> '{}' THEN
    DELETE FROM unified_user_journal.divergence AS d WHERE d.user_id = ANY (uu_gone);
    DELETE FROM unified_user_journal.quarantine AS q WHERE q.source_table = 'users' AND q.source_id = ANY (uu_gone);
END IF;
"""

# What could not be written to the legacy side is tried again when something changes where it was in the way; so is who has been given
# a namesake. Each sees to himself alone: they would call one another for ever.
_RETRY = """
uu_more := ARRAY(
    SELECT q.source_id FROM unified_user_journal.quarantine AS q WHERE q.source_table = 'users' AND q.identity_key = ANY (uu_keys)
    UNION SELECT u.{users.id} FROM {users} AS u WHERE u.{users.id} = ANY (uu_natives)
          AND EXISTS (SELECT FROM unnest(uu_members) AS m WHERE m.key = {user_key})
          AND NOT EXISTS (SELECT FROM unnest(uu_members) AS m WHERE m.user_id = u.{users.id}));
FOR uu_user IN SELECT x FROM unnest(uu_more) AS x WHERE x <> ALL (uu_reversed) ORDER BY 1 LOOP
    PERFORM unified_user_journal.reverse_user(uu_user, NULL, uu_more || uu_reversed);
END LOOP;
"""


# The legacy side names the primary owner, else the one who accepted first, among those with an owner row.
_HEIR = """
(SELECT j.source_id FROM {studio_ownership} AS h JOIN unified_user_journal.identity_map AS j
 ON j.user_id = h.{studio_ownership.userId} AND j.source_table = 'studio_owners'
 WHERE h.{studio_ownership.studioId} = s.{studios.id} AND ({accepted}) AND {condition} ORDER BY {order} LIMIT 1)
"""


def heir(schema: Schema, condition):
    """Return the expression of the owner whom the legacy side names for the studio ``s``.

    Args:
        schema: the resolved tables.
        condition: composed, over the ownership ``h``.
    """
    names = schema["studio_ownership"].names
    order = ["{studio_ownership.isPrimary} DESC"] if "isPrimary" in names else []
    accepted = ["h.{studio_ownership.isPrimary}"] if "isPrimary" in names else []
    if "acceptedAt" in names:
        order.append("{studio_ownership.acceptedAt}")
        accepted.append("h.{studio_ownership.acceptedAt} IS NOT NULL")
    order.append('{studio_ownership.id} COLLATE "C"')
    return schema.compose(
        _HEIR, accepted=schema.compose(" OR ".join(accepted if "acceptedAt" in names else ["true"])), condition=condition,
        order=schema.compose("h." + ", h.".join(order) + ', j.source_id <> j.user_id, j.source_id COLLATE "C"'),
    )


def _documents(schema: Schema) -> list[str]:
    users = schema["users"].columns
    return [column.target.name for column in schema.person_columns() if users[column.target.name].base_type in ("json", "jsonb")]


def noted(schema: Schema, alias: str):
    """Return a row of users as it is noted; documents as text, for JSON's null is not SQL's."""
    row = compose("to_jsonb({a})", {"a": sql.SQL(alias)})
    for name in _documents(schema):
        parts = {"row": row, "name": sql.Literal(name), "value": noted_value(schema, name, alias)}
        row = compose("{row} || jsonb_build_object({name}, {value})", parts)
    return compose("({row})", {"row": row})


def noted_value(schema: Schema, name: str, alias: str):
    """Return a column of users as ``->>`` gives it from where it is noted."""
    parts = {"a": sql.SQL(alias), "c": sql.Identifier(name)}
    return compose("{a}.{c}::text" if name in _documents(schema) else "(to_jsonb({a}.{c}) #>> '{}')", parts)


class PinnedProjection(Projection):
    """The projection in which a pinned booking belongs to whom it is pinned to, whatever the rules say."""

    def _booking_user(self):
        return self.schema.compose(
            "coalesce((SELECT pin.user_id FROM unified_user_journal.pinned_booking AS pin WHERE pin.booking_id = t.{bookings.id}), {user})",
            user=super()._booking_user(),
        )


class ThreeWay(Forward):
    """Composes the functions of forward sync for when the unified side is written as well. See ``Forward``."""

    projection_class = PinnedProjection

    def _anonymous(self):
        return self.schema.compose(
            "SELECT q.* FROM ({select}) AS q WHERE NOT EXISTS"
            " (SELECT FROM unified_user_journal.pinned_booking AS pin WHERE pin.booking_id = q.{bookings.id} OFFSET 0)",
            select=super()._anonymous(),
        )

    def _unresolvable(self):
        return self.schema.compose(
            "({unresolvable} AND NOT EXISTS (SELECT FROM unified_user_journal.pinned_booking AS pin WHERE pin.booking_id = b.{bookings.id} OFFSET 0))",
            unresolvable=super()._unresolvable(),
        )

    def _keep(self):
        return sql.Composed([super()._keep(), sql.SQL(_KEEP)])

    def _bookings_of_gone(self):
        return sql.Composed([super()._bookings_of_gone(), sql.SQL(_UNPIN_GONE)])

    def _unpin(self):
        return self.schema.compose(_UNPIN, same=self._same_booking())

    def _lock_released(self):
        return self.schema.compose(_LOCK_RELEASED)

    def _heir(self):
        return heir(self.schema, self.schema.compose("h.{studio_ownership.userId} <> coalesce({first}, '')", first=sql.SQL(
            "(SELECT k.user_id FROM unified_user_journal.identity_map AS k WHERE k.source_table = 'studio_owners' AND k.source_id = {id})"
        ).format(id=self.schema.compose("OLD.{studio_owners.id}"))))  # fmt: skip

    def _diverged(self):
        return sql.SQL("EXISTS (SELECT FROM unified_user_journal.divergence AS d WHERE d.user_id = i.user_id OFFSET 0)")

    def _users_there(self):
        return self.schema.compose("UNION SELECT u.{users.id} FROM {users} AS u WHERE {key} = ANY (uu_keys) ", key=self.key("users", "u"))

    def _assign(self):
        parts = {
            "user_key": self.key("users", "u"),
            "derived": derived_id(sql.SQL("(ARRAY['owner:', 'customer:'])[c.side + 1]"), sql.SQL("c.source_id")),
        }
        return self.schema.compose(_ASSIGN, **parts)

    def _pin(self):
        return self.schema.compose(_PIN, user_key=self.key("users", "u"), **self._keys())

    def _guest_taken(self):
        return sql.Composed([super()._guest_taken(), self.schema.compose(
            " OR EXISTS (SELECT FROM {users} AS u WHERE u.{users.id} = uu_guests[uu_number].user_id AND NOT EXISTS (SELECT FROM"
            " unified_user_journal.identity_map AS i WHERE i.source_table = 'bookings' AND i.source_id = uu_guests[uu_number].key"
            " AND i.user_id = u.{users.id}))"
        )])  # fmt: skip

    def _fill(self):
        projection, schema = self.projection, self.schema
        sides = {"owner": sql.Literal(OWNER_SIDE), "customer": sql.Literal(CUSTOMER_SIDE)}
        credentials = []
        for table in ("new_accounts", "new_sessions"):
            identifier = schema.column(table, "id")
            columns, select = getattr(projection, table)()
            source, unused = _mapping.ROW_COPIES[table]
            rows = compose(_TOUCHED_ROWS, {"prefix": sql.Literal(f"{source}:")})
            ours = compose("SELECT q.* FROM ({select}) AS q ({columns}) WHERE q.{id} = ANY ({rows}) AND NOT {taken}", {
                "select": select, "columns": comma(columns), "id": identifier, "taken": self._taken(table, "q"), "rows": rows})  # fmt: skip
            credentials += [
                schema.compose(
                    "DELETE FROM {table} AS n WHERE n.{id} = ANY ({rows}) AND NOT EXISTS (WITH {relations} SELECT FROM ({select}) AS w ({columns})"
                    " WHERE w.{id} = n.{id});",
                    table=table, id=identifier, relations=sql.SQL(RELATIONS), select=select, columns=comma(columns), rows=rows,
                ),
                self._upsert(table, columns, ours),
            ]
        return sql.Composed([
            schema.compose(_MOVED, **sides),
            schema.compose(_WHO_GAINS),
            self._park(*projection.users()),
            self._three_way_users(),
            self._roles(),
            self._owned(_OWNERSHIP, primary="isPrimary" in schema["studio_ownership"].names),
            self._with(_FAVOURITES, projection.favourites(), parents=self._parents("_UserFavorites")),
            compose(_CREDENTIALS, {"credentials": sql.Composed(credentials)}),
            *self._lost(),
            self._bookings(),
            self._quarantine(),
            self._audit(),
            schema.compose(_PARTED),
            self._map(),
            sql.SQL(_NATIVE),
            sql.SQL(_FORGET_GONE),
            self._gone(),
            sql.SQL(_GAINED),
            self.schema.compose(_RETRY, user_key=self.key("users", "u")),
        ])  # fmt: skip

    def _lost(self) -> list:
        lost = []
        for side, table, belongings in (
            (CUSTOMER_SIDE, "customers", {"_UserFavorites": (self.projection.favourites(), "B", ("A", "B"))}),
            (OWNER_SIDE, "studio_owners", {
                "new_accounts": (self.projection.new_accounts(), "userId", ("id",)), "new_sessions": (self.projection.new_sessions(), "userId", ("id",)),
            }),
        ):  # fmt: skip
            deletes = [
                self._with(
                    _LOST_ROWS, target, table=name, user=self.schema.column(name, user),
                    same=all_of(compose("w.{c} = n.{c}", {"c": self.schema.column(name, column)}) for column in key),
                )
                for name, (target, user, key) in belongings.items()
            ]
            lost.append(self.schema.compose(_LOST, name=sql.Literal(table), side=sql.Literal(side), deletes=sql.Composed(deletes)))
        return lost

    def _bookings(self):
        carried = sql.Composed([self._upsert("new_bookings", *self.projection.new_bookings()), self.schema.compose(_DELETED_BOOKINGS)])
        return self._with(_BOOKINGS, self.projection.new_bookings(), carried=carried)

    def _taken(self, table: str, alias: str):
        """Return the condition that another row of the unified table has what must be unique there."""
        unique = ("provider", "providerAccountId") if table == "new_accounts" else ("sessionToken",)
        same = all_of(compose("x.{c} = {q}.{c}", {"c": self.schema.column(table, name), "q": sql.SQL(alias)}) for name in unique)
        return self.schema.compose(
            "EXISTS (SELECT FROM {table} AS x WHERE x.{table.id} <> {q}.{table.id} AND {same})", table=table, q=sql.SQL(alias), same=same
        )

    def _refused(self) -> list:
        refused = []
        for table in ("new_accounts", "new_sessions"):
            columns, select = getattr(self.projection, table)()
            source, unused = _mapping.ROW_COPIES[table]
            refused.append(self.schema.compose(
                "SELECT {name}, q.{table.id}, 'not_written', to_jsonb(l), m.key FROM (WITH {relations} SELECT * FROM ({select}) AS q) AS q ({columns})"
                " JOIN {source} AS l ON l.{source.id} = q.{table.id} JOIN unnest(uu_members) AS m ON m.side = {owner} AND m.source_id = l.{source.userId}"
                " WHERE {taken}",
                name=sql.Literal(source), table=table, source=source, relations=sql.SQL(RELATIONS), select=select, columns=comma(columns),
                owner=sql.Literal(OWNER_SIDE), taken=self._taken(table, "q"),
            ))  # fmt: skip
        return refused

    def _with(self, template: str, target, **parts):
        columns, select = target
        return self.schema.compose(template, relations=sql.SQL(RELATIONS), columns=comma(columns), select=select, **parts)

    def _owned(self, template: str, primary: bool):
        target = self.projection.studio_ownership()
        promoted = self._with(_PRIMARY, target) if primary else sql.SQL("")
        return self._with(template, target, parents=self._parents("studio_ownership"), primary=promoted)

    def _roles(self):
        roles = {"owner_role": _mapping.OWNER_ROLE, "customer_role": _mapping.CUSTOMER_ROLE, "guest_role": self.policies.guest_role}
        return self._with(_ROLES, self.projection.user_role_assignments(), **{name: sql.Literal(role) for name, role in roles.items()})

    def _three_way_users(self):
        columns, select = self.projection.users()
        users = self.schema["users"]
        written = [column for column in columns if users.logical_name(column.string) not in ("id", "isActive", "isSuspended")]

        def each(template: str):
            return [
                compose(template, {
                    "c": column, "name": sql.Literal(column.string), "keep": self._keeps(column.string),
                    "value": noted_value(self.schema, column.string, "w"),
                })
                for column in written
            ]

        # As text: JSON's null is not SQL's.
        changed = "(w.\"uu base\" ->> {name}) IS DISTINCT FROM {value}"
        return self._with(
            _USERS, (columns, select), id=self.schema.column("users", "id"), noted=noted(self.schema, "w"), noted_user=noted(self.schema, "u"),
            typed=comma(compose("w.{c}::{type} AS {c}", {"c": c, "type": sql.SQL(users.columns[c.string].type)}) for c in columns),
            updates=comma(each("{c} = CASE WHEN " + changed + "{keep} THEN w.{c} ELSE n.{c} END")),
            changed=sql.SQL(" OR ").join(each(changed)),
            differs=sql.SQL(" OR ").join(each("to_jsonb(u.{c}) IS DISTINCT FROM to_jsonb(w.{c})")),
        )

    def _assignment(self, table: str, name: str) -> str:
        source, unused = _mapping.ROW_COPIES.get(table, (None, ()))
        pairs = dict(self.schema.row_copy(table)) if source else {}
        there = self.schema[table].columns[name]
        if name in pairs and there.is_text and not there.not_null and self.schema[source].columns[pairs[name]].not_null:
            # '' is how the legacy side spells what is NULL here.
            return "{c} = CASE WHEN {t}.{c} IS NULL AND excluded.{c} = '' THEN NULL ELSE excluded.{c} END"
        return super()._assignment(table, name)

    def _copied(self, left, right, column: Column):
        # What the legacy side left alone stays as the unified side has it.
        parts = {"left": left, "right": right, "new": changed(column)}
        return compose("{left} = CASE WHEN {new} THEN NEW.{right} ELSE n.{left} END", parts)

    def _keeps(self, name: str):
        logical = self.schema["users"].logical_name(name)
        if logical == "primaryRole":
            return compose(" AND n.{c}::text <> 'SUPER_ADMIN'", {"c": sql.Identifier(name)})
        # Credentials once dropped do not come back because an e-mail is verified later.
        return sql.SQL(" AND NOT uu_keep_password" if logical == "password" else "")
