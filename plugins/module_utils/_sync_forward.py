# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Forward sync: what the legacy side says, carried to the unified side (the contract, section 4).

One function, ``recompute``, brings whole identities up to date under a lock row for each key: it is what triggers call,
and backfill and repair as well. Fast paths beside it serve the writes that touch no identity.

Names of variables start with ``uu_``, so that no column of the application is mistaken for one.
"""

from __future__ import annotations

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Column, Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._journal import SCHEMA
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._projection import CUSTOMER_SIDE, SIDES, Projection
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import all_of, comma, compose, derived_id, identity_key, is_usable
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync_scope import ScopedSchema, where

#: Composite types that hold a few rows of the projection's relations in a variable.
TYPES = {
    "member": "side smallint, source_id text, key text, verified boolean, position bigint, size bigint, any_verified boolean, user_id text",
    "guest": "key text, user_id text, email text, name text, phone text, created timestamp, updated timestamp, bookings bigint",
    "blocked": "source_table text, source_id text, reason text, key text",
    "entry": 'source_table text, source_id text, reason text, "row" jsonb, identity_key text',
}

# Types, beside texts and enums, whose equality tells every two images apart; it is quicker to set up than a comparison of rows.
_EXACT = ("boolean", "smallint", "integer", "bigint", "uuid", "bytea", "date", "timestamp without time zone", "timestamp with time zone")

#: Legacy and shared tables whose writes are carried.
TRIGGERED = (*_mapping.PEOPLE, "accounts", "sessions", "bookings", "_CustomerFavorites", "studios")

#: The projection's relations, out of those variables.
RELATIONS = "member AS (SELECT * FROM unnest(uu_members)), guest AS (SELECT * FROM unnest(uu_guests))"

# Rows of people in the scope, and why some of them cannot be migrated.
_BLOCKED = """
SELECT coalesce(array_agg(ROW(p.source_table, p.id, p.reason, p.key)::unified_user_journal.blocked), '{}') INTO uu_blocked
FROM (
    SELECT d.source_table, d.id, d.key, coalesce(d.reason, CASE WHEN NOT {merges} AND bool_or(d.alike > 1) OVER (PARTITION BY d.key)
           AND row_number() OVER (PARTITION BY d.key ORDER BY d.side, d.verified DESC, d.created, d.id COLLATE "C") > 1
           THEN 'duplicate_identity' END) AS reason
    FROM (SELECT q.*, count(*) OVER (PARTITION BY q.key, q.side) AS alike FROM ({people}) AS q) AS d
) AS p
WHERE p.reason IS NOT NULL;
"""

_PERSON = """
SELECT {name}::text AS source_table, {side}::smallint AS side, t.{people.id} AS id, {key} AS key, t.{people.emailVerified} IS NOT NULL AS verified,
       t.{people.createdAt} AS created, CASE WHEN NOT {usable} THEN 'unusable_email' {collision} AS reason
FROM {people} AS t WHERE {key} = ANY (uu_keys)
"""

# What else these keys touch: where their people were, who shares an id with them, and whose user bears one of these ids.
_CLOSURE = """
uu_near := ARRAY(
    SELECT o.{studio_owners.id} FROM {studio_owners} AS o WHERE {owner_key} = ANY (uu_keys)
    UNION SELECT c.{customers.id} FROM {customers} AS c WHERE {customer_key} = ANY (uu_keys)
    UNION SELECT i.source_id FROM unified_user_journal.identity_map AS i WHERE i.identity_key = ANY (uu_keys) AND i.source_table <> 'bookings'
    UNION SELECT i.user_id FROM unified_user_journal.identity_map AS i WHERE i.identity_key = ANY (uu_keys)
    {users_there}UNION SELECT unnest(uu_ids));
uu_more := ARRAY(
    SELECT k.key FROM (
        SELECT {owner_key} AS key FROM {studio_owners} AS o WHERE o.{studio_owners.id} = ANY (uu_near)
        UNION SELECT {customer_key} FROM {customers} AS c WHERE c.{customers.id} = ANY (uu_near)
        UNION SELECT i.identity_key FROM unified_user_journal.identity_map AS i
              WHERE i.source_table IN ('studio_owners', 'customers') AND i.source_id = ANY (uu_near)
        UNION SELECT i.identity_key FROM unified_user_journal.identity_map AS i WHERE i.user_id = ANY (uu_near)
    ) AS k WHERE k.key <> ALL (uu_keys));
"""

#: Updates the lock row of each key, in order: this is what serialises everything.
LOCK = """
INSERT INTO unified_user_journal.identity_lock AS l (identity_key, generation)
SELECT DISTINCT ON (k.key COLLATE "C") k.key, 1 FROM unnest({keys}) AS k (key) WHERE k.key IS NOT NULL ORDER BY k.key COLLATE "C"
ON CONFLICT (identity_key) DO UPDATE SET generation = l.generation + 1;
"""

#: The same for the one key of a variable, which nearly always has its row.
LOCK_ONE = """
UPDATE unified_user_journal.identity_lock AS l SET generation = l.generation + 1 WHERE l.identity_key = {key} AND l.generation > 0;
IF NOT FOUND THEN
    {left}{lock}
END IF;
"""

#: The same for the key of somebody who is looked up by rows ``i`` of the map that have one key, in one statement where there is a
#: lock row. It is no join: planned while few keys have a lock row, one would look through all of them ever after. Nor is it a list
#: of keys, which takes a bitmap to look up. The map is read once.
LOCK_FOUND = """
WITH who AS MATERIALIZED (SELECT i.identity_key, {found} AS found FROM {whose} LIMIT 1)
UPDATE unified_user_journal.identity_lock AS l SET generation = l.generation + 1
WHERE l.identity_key = (SELECT w.identity_key FROM who AS w) RETURNING (SELECT w.found FROM who AS w) INTO {into};
IF NOT FOUND THEN
    {left}{lock}
    SELECT {found} INTO {into} FROM {whose} LIMIT 1;
END IF;
"""

# A write to somebody whom the backfill has still to carry, and will: his row was there before the sync. His lock row says so by
# its generation, 0, until whoever carries him raises it.
_LEFT_TO_BACKFILL = """
DECLARE
    uu_generation bigint;
BEGIN
    IF uu_key IS NULL OR NOT EXISTS (SELECT FROM unified_user_journal.backfill AS s WHERE NOT s.done) THEN
        RETURN false;
    END IF;
    INSERT INTO unified_user_journal.identity_lock AS l (identity_key, generation) VALUES (uu_key, 0)
    ON CONFLICT (identity_key) DO UPDATE SET generation = l.generation RETURNING l.generation INTO uu_generation;
    RETURN uu_generation = 0;
END
"""

_RETURN_WHERE_LEFT = """
    IF unified_user_journal.left_to_backfill({key}) THEN
        RETURN NULL;
    END IF;
    """

#: When a new row was made. What bears a time before the start of the sync is the copy's, so a clock that is set back must not say one.
MOMENT = (
    "greatest((now() AT TIME ZONE 'UTC')::timestamp(3), (SELECT (y.since AT TIME ZONE 'UTC')::timestamp(3) FROM unified_user_journal.sync AS y))"
)

#: Brings identities, and bookings given by their ids, up to date: a template over the SELECT of the identities' keys.
CALL_RECOMPUTE = """
SELECT unified_user_journal.recompute(
    ARRAY({keys}) COLLATE "default", ARRAY[]::text[], %s::text[], ARRAY[]::text[], ARRAY[]::text[], ARRAY[]::text[], false, %s::timestamp)
"""

# Bookings whose user is about to go are decided again, with whoever they belong to now.
_BOOKINGS_OF_GONE = """
uu_bookings := uu_bookings || ARRAY(SELECT n.{new_bookings.id} FROM {new_bookings} AS n WHERE n.{new_bookings.customerId} = ANY (uu_gone));
uu_more := ARRAY(
    SELECT DISTINCT k.key FROM {new_bookings} AS n JOIN {bookings} AS b ON b.{bookings.id} = n.{new_bookings.id}
    LEFT JOIN {customers} AS c ON c.{customers.id} = b.{bookings.customerId}
    CROSS JOIN LATERAL (SELECT CASE WHEN b.{bookings.customerId} IS NULL THEN {booking_key} ELSE {customer_key} END AS key) AS k
    WHERE n.{new_bookings.customerId} = ANY (uu_gone) AND k.key <> ALL (uu_keys));
"""

# In the midst of a cascade bookings may name a customer who is gone: his own trigger is still to come.
_KEEP = """
uu_kept := ARRAY(
    SELECT DISTINCT n.{new_bookings.customerId} FROM {new_bookings} AS n JOIN {bookings} AS b ON b.{bookings.id} = n.{new_bookings.id}
    WHERE n.{new_bookings.customerId} = ANY (uu_gone) AND b.{bookings.customerId} IS NOT NULL
    AND NOT EXISTS (SELECT FROM {customers} AS c WHERE c.{customers.id} = b.{bookings.customerId}));
uu_gone := ARRAY(SELECT unnest(uu_gone) EXCEPT SELECT unnest(uu_kept));
"""

_RECOMPUTE = """
CREATE OR REPLACE FUNCTION unified_user_journal.recompute(
    uu_keys text[], uu_ids text[], uu_bookings text[], uu_rows text[], uu_studios text[], uu_reversed text[], uu_keep_password boolean, uu_at timestamp)
RETURNS void LANGUAGE plpgsql SECURITY DEFINER {settings} AS {body}
"""

_BODY = """
#variable_conflict use_variable
DECLARE
    uu_more text[];
    uu_near text[];
    uu_members unified_user_journal.member[];
    uu_guests unified_user_journal.guest[];
    uu_blocked unified_user_journal.blocked[];
    uu_customers text[];
    uu_before text[];
    uu_users text[];
    uu_gone text[];
    uu_owners_moved text[];
    uu_customers_moved text[];
    uu_gained text[];
    uu_lost text[];
    uu_native text[];
    uu_natives text[];
    uu_kept text[];
    uu_user text;
    uu_entries unified_user_journal.entry[];
BEGIN
    uu_keys := array_remove(uu_keys, NULL);
    uu_ids := array_remove(uu_ids, NULL);
    uu_bookings := array_remove(uu_bookings, NULL);
    uu_rows := array_remove(uu_rows, NULL);
    uu_studios := array_remove(uu_studios, NULL);
    uu_reversed := array_remove(uu_reversed, NULL);
    uu_more := uu_keys;
    LOOP
        LOOP
            {lock}
            {closure}
            EXIT WHEN uu_more = '{}';
            uu_keys := uu_keys || uu_more;
        END LOOP;
        {blocked}
        {members}
        uu_customers := ARRAY(SELECT m.source_id FROM unnest(uu_members) AS m WHERE m.side = {customer});
        {pin}
        {guests}
        {assign}
        uu_before := ARRAY(SELECT DISTINCT i.user_id FROM unified_user_journal.identity_map AS i WHERE i.identity_key = ANY (uu_keys));
        uu_users := ARRAY(SELECT m.user_id FROM unnest(uu_members) AS m UNION SELECT g.user_id FROM unnest(uu_guests) AS g);
        uu_gone := ARRAY(SELECT unnest(uu_before) EXCEPT SELECT unnest(uu_users));
        uu_kept := '{}';
        IF uu_gone <> '{}' THEN
            {keep}
        END IF;
        EXIT WHEN uu_gone = '{}';
        {bookings_of_gone}
        EXIT WHEN uu_more = '{}';
        uu_keys := uu_keys || uu_more;
    END LOOP;
    uu_users := ARRAY(SELECT unnest(uu_users) UNION SELECT unnest(uu_before));
    {fill}
END
"""

# A derived id that belongs to somebody else by now is never overwritten.
_GUEST_IDS = """
FOR uu_number IN 1 .. cardinality(uu_guests) LOOP
    FOR uu_try IN 2 .. 1000 LOOP
        EXIT WHEN NOT ({taken});
        uu_guests[uu_number].user_id := {next};
    END LOOP;
END LOOP;
"""

_GUEST_TAKEN = """
EXISTS (SELECT FROM {studio_owners} AS o WHERE o.{studio_owners.id} = uu_guests[uu_number].user_id)
OR EXISTS (SELECT FROM {customers} AS c WHERE c.{customers.id} = uu_guests[uu_number].user_id)
OR EXISTS (SELECT FROM unified_user_journal.identity_map AS i
           WHERE i.user_id = uu_guests[uu_number].user_id AND i.identity_key <> uu_guests[uu_number].key)
"""

# Two users may be about to swap their e-mails; the unique index would see the first of them.
_PARK = """
IF cardinality(uu_users) > 1 THEN
    WITH {relations}, wanted ({columns}) AS ({wanted})
    UPDATE {users} AS u SET {users.email} = chr(1) || u.{users.id} FROM wanted AS w
    WHERE u.{users.id} = ANY (uu_users) AND w.{users.email} = u.{users.email} AND w.{users.id} <> u.{users.id};
END IF;
"""

# What is there already is left alone: ON CONFLICT would write to every row it meets.
_UPSERT = """
WITH {relations}, wanted ({columns}) AS ({select}), typed AS (SELECT {typed} FROM wanted AS w), stale AS MATERIALIZED (
    SELECT w.* FROM typed AS w
    WHERE NOT EXISTS (SELECT FROM {table} AS o WHERE o.{key} = w.{key} AND ROW({theirs})::record OPERATOR(pg_catalog.*=) ROW({ours})::record))
INSERT INTO {table} AS n ({columns}) SELECT w.* FROM stale AS w WHERE {parents}
ON CONFLICT ({key}) DO UPDATE SET {updates};
"""

_RECONCILE = """
WITH {relations}, wanted ({columns}) AS MATERIALIZED ({select})
DELETE FROM {table} AS n WHERE n.{user} = ANY (uu_users) AND NOT EXISTS (SELECT FROM wanted AS w WHERE {same});
WITH {relations}, wanted ({columns}) AS ({select}), absent AS MATERIALIZED (
    SELECT w.* FROM wanted AS w WHERE NOT EXISTS (SELECT FROM {table} AS n WHERE {same}))
INSERT INTO {table} ({columns}) SELECT w.* FROM absent AS w WHERE {parents};
"""

_MAP = """
DELETE FROM unified_user_journal.identity_map AS i WHERE i.identity_key = ANY (uu_keys)
AND NOT EXISTS (SELECT FROM unnest(uu_members) AS m WHERE i.source_table = (ARRAY['studio_owners', 'customers'])[m.side + 1] AND i.source_id = m.source_id)
AND NOT EXISTS (SELECT FROM unnest(uu_guests) AS g WHERE i.source_table = 'bookings' AND i.source_id = g.key)
AND i.user_id <> ALL (uu_kept);
INSERT INTO unified_user_journal.identity_map AS i (source_table, source_id, user_id, identity_key)
WITH {relations}, wanted (source_table, source_id, user_id, identity_key) AS ({select})
SELECT w.source_table, w.source_id, w.user_id, w.identity_key FROM wanted AS w WHERE NOT EXISTS (
    SELECT FROM unified_user_journal.identity_map AS n WHERE n.source_table = w.source_table AND n.source_id = w.source_id
    AND n.user_id = w.user_id AND n.identity_key = w.identity_key)
ON CONFLICT (source_table, source_id) DO UPDATE SET user_id = excluded.user_id, identity_key = excluded.identity_key;
"""

# Where the people of a user that goes are now, there his log entries go.
_AUDIT = """
IF cardinality(uu_gone) > 0 THEN
    UPDATE {audit_logs} AS a SET {audit_logs.userId} = n.user_id FROM (
        SELECT DISTINCT ON (i.user_id) i.user_id AS gone, m.user_id FROM unified_user_journal.identity_map AS i
        JOIN unnest(uu_members) AS m ON m.key = i.identity_key
             OR (i.source_table = (ARRAY['studio_owners', 'customers'])[m.side + 1] AND i.source_id = m.source_id)
        WHERE i.user_id = ANY (uu_gone) ORDER BY i.user_id, i.source_id = m.source_id DESC, m.position
    ) AS n WHERE a.{audit_logs.userId} = n.gone;
END IF;
"""

_GONE = """
IF cardinality(uu_gone) > 0 THEN
    DELETE FROM {users} AS u WHERE u.{users.id} = ANY (uu_gone);
END IF;
"""

# Entries are looked for only where there can be any.
_QUARANTINE = """
IF uu_blocked <> '{}' OR uu_rows <> '{}' OR EXISTS (
    SELECT FROM unified_user_journal.quarantine AS q
    WHERE q.identity_key = ANY (uu_keys) OR (q.source_table = 'bookings' AND q.source_id = ANY (uu_bookings))
) OR EXISTS (SELECT FROM {bookings} AS b WHERE b.{bookings.id} = ANY (uu_bookings) AND {unresolvable}) THEN
    SELECT coalesce(array_agg(ROW(e.source_table, e.source_id, e.reason, e."row", e.identity_key)::unified_user_journal.entry), '{}')
    INTO uu_entries FROM ({entries}) AS e (source_table, source_id, reason, "row", identity_key);
    DELETE FROM unified_user_journal.quarantine AS q
    WHERE q.source_table <> 'users' AND (q.identity_key = ANY (uu_keys) OR (q.source_table = 'bookings' AND q.source_id = ANY (uu_bookings)))
    AND NOT EXISTS (SELECT FROM unnest(uu_entries) AS e WHERE e.source_table = q.source_table AND e.source_id = q.source_id);
    INSERT INTO unified_user_journal.quarantine (source_table, source_id, reason, "row", identity_key)
    SELECT DISTINCT ON (e.source_table, e.source_id) e.source_table, e.source_id, e.reason, e."row", e.identity_key
    FROM unnest(uu_entries) AS e ORDER BY e.source_table, e.source_id, e.reason
    ON CONFLICT (source_table, source_id) DO UPDATE SET reason = excluded.reason, "row" = excluded."row", identity_key = excluded.identity_key;
    DELETE FROM {new_bookings} AS n
    WHERE n.{new_bookings.id} IN (SELECT e.source_id FROM unnest(uu_entries) AS e WHERE e.source_table = 'bookings');
END IF;
"""

_UNRESOLVABLE = "(b.{bookings.customerId} IS NULL AND NOT {usable})"

# A guest is not looked up so: he is made of his bookings, and only a change of nothing but their time leaves him as he is.
_BOOKING_TRIGGER = """
DECLARE
    uu_user text;
    uu_key text;
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.{bookings.customerId} IS NOT NULL AND {same} THEN
        {lock_and_update}
        IF FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    IF TG_OP = 'INSERT' OR (TG_OP = 'UPDATE' AND {same}) THEN
        IF NEW.{bookings.customerId} IS NOT NULL THEN
            {lock_customer}
        ELSE
            uu_key := {new_key};
            {lock_person}
        END IF;
        IF TG_OP = 'INSERT' THEN
            {insert}
        ELSE
            IF uu_user IS NULL AND NEW.{bookings.customerId} IS NULL AND {same_guest} THEN
                {lock}
                SELECT i.user_id INTO uu_user FROM unified_user_journal.identity_map AS i WHERE i.source_table = 'bookings' AND i.source_id = uu_key
                AND unified_user_journal.renew_guest(i.user_id, uu_key, NEW.{bookings.id}, NEW.{bookings.updatedAt});
            END IF;
            {update}
        END IF;
        -- What is there already was carried by the trigger of another row of this statement.
        IF FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    {slow}
    RETURN NULL;
END
"""

_WHOSE_CUSTOMER = "unified_user_journal.identity_map AS i WHERE i.source_table = 'customers' AND i.source_id = NEW.{bookings.customerId}"

_WHOSE_KEY = "unified_user_journal.identity_map AS i WHERE i.identity_key = uu_key AND i.source_table <> 'bookings'"

# Most updates, in one statement. It may see the map as it was before the lock, and then the booking is not the user's that it names.
# That there is a lock row is asked first, and of no row of bookings.
_LOCK_AND_UPDATE = """
WITH who AS MATERIALIZED (SELECT i.identity_key, i.user_id FROM {whose}), locked AS (
    UPDATE unified_user_journal.identity_lock AS l SET generation = l.generation + 1
    WHERE l.identity_key = (SELECT w.identity_key FROM who AS w) RETURNING true AS is_locked)
UPDATE {new_bookings} AS n SET {updates}
WHERE (SELECT k.is_locked FROM locked AS k) AND n.{new_bookings.id} = NEW.{bookings.id} AND n.{new_bookings.customerId} = (SELECT w.user_id FROM who AS w);
"""

# Whose it is may have changed until his key was locked.
_INSERT_BOOKING = """
INSERT INTO {new_bookings} ({new_bookings.customerId}, {columns}) SELECT uu_user, {values}
WHERE EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user AND CASE WHEN NEW.{bookings.customerId} IS NULL
              THEN i.identity_key = uu_key AND i.source_table <> 'bookings' ELSE i.source_table = 'customers' AND i.source_id = NEW.{bookings.customerId} END)
ON CONFLICT ({new_bookings.id}) DO NOTHING;
"""

# A guest is made of his bookings. One in which nothing but its time concerns him renews him; whether he is one, and as the
# bookings have him, is only sure under the lock of his key.
_RENEW_GUEST = """
BEGIN
    UPDATE {users} AS u SET {users.updatedAt} = greatest(u.{users.updatedAt}, uu_updated) WHERE u.{users.id} = uu_user
    AND EXISTS (SELECT FROM unified_user_journal.identity_map AS i
                WHERE i.source_table = 'bookings' AND i.source_id = uu_key AND i.user_id = uu_user AND i.identity_key = uu_key)
    AND NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.identity_key = uu_key AND i.source_table <> 'bookings')
    AND NOT EXISTS (SELECT FROM unified_user_journal.pinned_booking AS pin WHERE pin.booking_id = uu_booking)
    AND NOT EXISTS (SELECT FROM unified_user_journal.divergence AS d WHERE d.user_id = uu_user)
    AND NOT EXISTS (SELECT FROM unified_user_journal.quarantine AS q WHERE q.identity_key = uu_key);
    RETURN FOUND;
END
"""

# A cascade that takes the person, too, takes the image of what is his; the person's own trigger does the rest.
_BELONGING_TRIGGER = """
DECLARE
    uu_keys text[];
BEGIN
    IF TG_OP = 'DELETE' AND NOT EXISTS (SELECT FROM {people} AS p WHERE p.{people.id} = OLD.{column}) THEN
        uu_keys := ARRAY(SELECT i.identity_key FROM unified_user_journal.identity_map AS i WHERE i.source_table = {name} AND i.source_id = OLD.{column});
        {lock}
        {erase}
        RETURN NULL;
    END IF;
    {slow}
    RETURN NULL;
END
"""

_ERASE_CREDENTIAL = "DELETE FROM {image} AS n WHERE n.{image.id} = OLD.{image.id};"

_ERASE_FAVOURITE = """
DELETE FROM {_UserFavorites} AS f USING unified_user_journal.identity_map AS i
WHERE i.source_table = 'customers' AND i.source_id = OLD.{_CustomerFavorites.A} AND f.{_UserFavorites.B} = i.user_id
AND f.{_UserFavorites.A} = OLD.{_CustomerFavorites.B} AND NOT EXISTS (
    SELECT FROM {_CustomerFavorites} AS l JOIN unified_user_journal.identity_map AS j
    ON j.source_table = 'customers' AND j.source_id = l.{_CustomerFavorites.A}
    WHERE j.user_id = i.user_id AND l.{_CustomerFavorites.B} = OLD.{_CustomerFavorites.B});
"""

# Who is one row alone, and what it calls for.
_PERSON_TRIGGER = """
DECLARE
    uu_key text;
BEGIN
    IF TG_OP = 'UPDATE' AND {same} THEN
        uu_key := {new_key};
        {lock}
        UPDATE {users} AS u SET {updates} WHERE u.{users.id} = (
            SELECT i.user_id FROM unified_user_journal.identity_map AS i
            WHERE i.source_table = {name} AND i.source_id = NEW.{people.id} AND i.identity_key = uu_key
            AND NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS n
                            WHERE n.identity_key = uu_key AND (n.source_table, n.source_id) IS DISTINCT FROM ({name}, NEW.{people.id}))
            AND NOT EXISTS (SELECT FROM unified_user_journal.quarantine AS q WHERE q.identity_key = uu_key) AND NOT {diverged});
        IF FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    {slow}
    RETURN NULL;
END
"""

#: Makes a function that others call.
FUNCTION = """
CREATE OR REPLACE FUNCTION unified_user_journal.{name}({arguments}) RETURNS {returns} LANGUAGE plpgsql SECURITY DEFINER {settings} AS {body}
"""

# Makes a trigger function.
_TRIGGER_FUNCTION = """
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER {settings} AS {body}
"""

# What an update leaves as it was is nobody's business; by image, as not every type has an equality. It is asked here because the
# text of a trigger's own condition is read anew with every statement. From PostgreSQL 18 on RETURNING has an OLD and a NEW, too.
_TRIGGER_BODY = """
#variable_conflict use_variable
BEGIN
    IF TG_OP = 'UPDATE' AND NOT OLD OPERATOR(pg_catalog.*<>) NEW THEN
        RETURN NULL;
    END IF;
    {body};
END
"""

# His studios stay, and with them other people's bookings (the contract: Erasure).
_RELEASE = """
BEGIN
    {lock}
    UPDATE {studios} AS s SET {studios.ownerId} = {heir} WHERE s.{studios.ownerId} = OLD.{studio_owners.id};
    RETURN OLD;
END
"""

_REFUSE_TRUNCATE = """
BEGIN
    RAISE EXCEPTION 'Failed to truncate table %: it is kept in step with the other user model, which would not hear of it.', TG_TABLE_NAME
    USING ERRCODE = 'feature_not_supported', HINT = 'Use DELETE FROM, or end the sync first: playbooks/sync.yml with -e sync_direction=none.';
END
"""


class Forward:
    """Composes the functions of forward sync.

    Args:
        database: an open session, for quoting.
        schema: the resolved tables.
        policies: the operator's decisions.
    """

    projection_class = Projection

    def __init__(self, database: Database, schema: Schema, policies: Policies) -> None:
        self.database = database
        self.schema = schema
        self.policies = policies
        admitted = {
            table: where(
                schema, table,
                "{key} = ANY (uu_keys) AND NOT EXISTS"
                " (SELECT FROM unnest(uu_blocked) AS x WHERE x.source_table = {name} AND x.source_id = scoped.{people.id})",
                people=table, key=self.key(table, "scoped"), name=sql.Literal(table),
            )
            for table in _mapping.PEOPLE
        }
        touched = where(
            schema, "bookings",
            "(scoped.{bookings.customerId} = ANY (uu_customers) OR (scoped.{bookings.customerId} IS NULL AND {key} = ANY (uu_keys))"
            " OR scoped.{bookings.id} = ANY (uu_bookings))",
            key=self.key("bookings", "scoped"),
        )
        self.people = self._projection({**admitted, "bookings": self._anonymous()})
        self.projection = self._projection({"bookings": touched})

    def _projection(self, scopes: dict[str, object]) -> Projection:
        return self.projection_class(ScopedSchema(self.schema, scopes), self.policies, sql.SQL("uu_at"))

    def _anonymous(self):
        """Select the bookings that guests may be made of."""
        return where(
            self.schema, "bookings", "scoped.{bookings.customerId} IS NULL AND {key} = ANY (uu_keys)", key=self.key("bookings", "scoped")
        )

    def key(self, table: str, alias: str):
        """Return the identity key of a row of people, users or bookings."""
        email = self.schema.column(table, "customerEmail" if table == "bookings" else "email")
        return identity_key(compose("{alias}.{email}", {"alias": sql.SQL(alias), "email": email}), self.policies.email_match)

    def _keys(self) -> dict[str, object]:
        return {
            "owner_key": self.key("studio_owners", "o"),
            "customer_key": self.key("customers", "c"),
            "booking_key": self.key("bookings", "b"),
            "usable": is_usable(self.schema.compose("b.{bookings.customerEmail}")),
        }

    def functions(self) -> list:
        """Return the statements that make the functions, in order."""
        made = settings("forward", self.schema)
        statements = [
            compose(_RECOMPUTE, {"settings": made, "body": self._text(self._recompute())}),
            compose(FUNCTION, {
                "name": sql.SQL("renew_guest"), "arguments": sql.SQL("uu_user text, uu_key text, uu_booking text, uu_updated timestamp"),
                "returns": sql.SQL("boolean"), "body": self._text(self.schema.compose(_RENEW_GUEST)), "settings": made,
            }),
            compose(FUNCTION, {
                "name": sql.SQL("left_to_backfill"), "arguments": sql.SQL("uu_key text"),
                "returns": sql.SQL("boolean"), "body": self._text(sql.SQL(_LEFT_TO_BACKFILL)), "settings": made,
            }),
        ]  # fmt: skip
        triggers = {f"forward_{table}": self._trigger(table) for table in TRIGGERED}
        triggers["forward_release_studios"] = self.schema.compose(_RELEASE, heir=self._heir(), lock=self._lock_released())
        triggers["refuse_truncate"] = sql.SQL(_REFUSE_TRUNCATE)
        for name, body in triggers.items():
            statements.append(trigger_function(name, made, body, self.database))
        return statements

    def _left(self, key):
        """Return what ends a trigger whose key, an expression, the backfill has still to carry."""
        return compose(_RETURN_WHERE_LEFT, {"key": key})

    def _lock_released(self):
        """Lock the studios of an owner who goes, where somebody else may name their heir meanwhile."""
        return sql.SQL("")

    def _heir(self):
        """Return who a studio ``s`` passes to when its owner goes."""
        return sql.SQL("NULL")

    def _text(self, body):
        return sql.Literal(body.as_string(self.database.connection))

    # The recompute

    def _recompute(self):
        select = self.schema.compose
        member = "ROW(m.side, m.source_id, m.key, m.verified, m.position, m.size, m.any_verified, m.user_id)::unified_user_journal.member"
        guest = "ROW(g.key, g.user_id, g.email, g.name, g.phone, g.created, g.updated, g.bookings)::unified_user_journal.guest"
        gather = "WITH {relations} SELECT coalesce(array_agg({row}), '{}') INTO {variable} FROM ({select}) AS {alias};"

        def gathered(relations: str, row: str, variable: str, found, alias: str):
            return compose(gather, {
                "relations": sql.SQL(relations), "row": sql.SQL(row), "variable": sql.SQL(variable), "select": found, "alias": sql.SQL(alias),
            })  # fmt: skip

        keys = self._keys()
        return compose(_BODY, {
            "lock": compose(LOCK, {"keys": sql.SQL("uu_more")}),
            "closure": select(_CLOSURE, users_there=self._users_there(), **keys),
            "blocked": self._blocked(),
            "members": gathered("nobody AS (SELECT)", member, "uu_members", self.people.member(), "m"),
            "guests": sql.Composed([
                gathered("member AS (SELECT * FROM unnest(uu_members))", guest, "uu_guests", self.people.guest(), "g"), self._guest_ids()
            ]),
            "customer": sql.Literal(CUSTOMER_SIDE),
            "pin": self._pin(),
            "assign": self._assign(),
            "keep": self._keep(),
            "bookings_of_gone": self._bookings_of_gone(),
            "fill": self._fill(),
        })  # fmt: skip

    def _blocked(self):
        people = sql.SQL(" UNION ALL ").join(
            self.schema.compose(
                _PERSON, people=table, name=sql.Literal(table), side=sql.Literal(side), key=self.key(table, "t"),
                usable=is_usable(self.schema.compose("t.{people.email}", people=table)),
                collision=self._collision() if side == CUSTOMER_SIDE else sql.SQL("END"),
            )
            for table, side in SIDES.items()
        )
        parts = {"people": people, "merges": sql.Literal(self.policies.duplicate_identities == "merge")}
        return compose(_BLOCKED, parts)

    def _collision(self):
        rekeyed = Projection.rekeyed_id(self.schema.compose("t.{customers.id}"))
        parts = {"key": self.key("customers", "t"), "owner_key": self.key("studio_owners", "o"), "other_key": self.key("customers", "c"), "rekeyed": rekeyed}
        for name, table, alias in (("owner_not_made", "studio_owners", "o"), ("customer_not_made", "customers", "c")):
            parts[name] = self.schema.compose(
                "NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.made AND i.source_table = {name} AND i.source_id = {row}.{table.id})",
                name=sql.Literal(table), row=sql.SQL(alias), table=table,
            )
        if self.policies.id_collisions == "fail":
            return self.schema.compose(
                "WHEN EXISTS (SELECT FROM {studio_owners} AS o WHERE o.{studio_owners.id} = t.{customers.id} AND {owner_key} <> {key})"
                " THEN 'id_collision' END", **parts
            )
        return self.schema.compose(
            "WHEN EXISTS (SELECT FROM {studio_owners} AS o WHERE o.{studio_owners.id} = t.{customers.id} AND {owner_key} <> {key})"
            # A row that reverse made of the user who bears the derived id is his own.
            " AND (EXISTS (SELECT FROM {studio_owners} AS o WHERE o.{studio_owners.id} = {rekeyed} AND {owner_not_made})"
            " OR EXISTS (SELECT FROM {customers} AS c WHERE c.{customers.id} = {rekeyed} AND {customer_not_made})"
            " OR EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = {rekeyed} AND i.identity_key <> {key}"
            " AND (i.source_table, i.source_id) IS DISTINCT FROM ('customers', t.{customers.id})"
            # Who comes along to this key is still under the one before in the map.
            " AND NOT EXISTS (SELECT FROM {studio_owners} AS o WHERE i.source_table = 'studio_owners' AND o.{studio_owners.id} = i.source_id"
            " AND {owner_key} = {key})"
            " AND NOT EXISTS (SELECT FROM {customers} AS c WHERE i.source_table = 'customers' AND c.{customers.id} = i.source_id"
            " AND {other_key} = {key})))"
            " THEN 'derived_id_taken' END", **parts
        )

    def _keep(self):
        """Keep users who have nobody on the legacy side any more."""
        return self.schema.compose(_KEEP)

    def _bookings_of_gone(self):
        return self.schema.compose(_BOOKINGS_OF_GONE, **self._keys())

    def _unresolvable(self):
        """Return the condition that a booking ``b`` names nobody."""
        return self.schema.compose(_UNRESOLVABLE, **self._keys())

    def _pin(self):
        """Tie bookings to users whom the legacy side cannot name."""
        return sql.SQL("")

    def _unpin(self):
        """Untie a booking whose customerId or customerEmail the legacy side has changed."""
        return sql.SQL("")

    def _diverged(self):
        """Return the condition that the user of a row ``i`` of the map differs from what the legacy side calls for."""
        return sql.SQL("false")

    def _users_there(self):
        """Return what adds the users who have one of the keys to what the keys touch."""
        return sql.SQL("")

    def _assign(self):
        """Give members and guests other users than those of their rows alone; the contract's exactness leaves none."""
        return sql.SQL("")

    def _guest_ids(self):
        guest = sql.SQL("uu_guests[uu_number].key")
        return compose(_GUEST_IDS, {
            "taken": self._guest_taken(),
            "next": derived_id(sql.Literal("guest:"), guest, sql.Literal("#"), sql.SQL("uu_try::text")),
        })  # fmt: skip

    def _guest_taken(self):
        return self.schema.compose(_GUEST_TAKEN)

    def _fill(self):
        projection = self.projection
        users = projection.users()
        return sql.Composed([
            self._park(*users),
            self._upsert("users", *users, kept=("isActive", "isSuspended")),
            self._reconcile("user_role_assignments", *projection.user_role_assignments(), ("id",), "userId"),
            self._reconcile("studio_ownership", *projection.studio_ownership(), ("id",), "userId"),
            self._reconcile("_UserFavorites", *projection.favourites(), ("A", "B"), "B"),
            self._reconcile("new_accounts", *projection.new_accounts(), ("id", "provider", "providerAccountId"), "userId"),
            self._upsert("new_accounts", *projection.new_accounts()),
            self._reconcile("new_sessions", *projection.new_sessions(), ("id", "sessionToken"), "userId"),
            self._upsert("new_sessions", *projection.new_sessions()),
            self._upsert("new_bookings", *projection.new_bookings()),
            self.schema.compose(
                "DELETE FROM {new_bookings} AS n WHERE (n.{new_bookings.id} = ANY (uu_bookings) OR n.{new_bookings.customerId} = ANY (uu_users))"
                " AND NOT EXISTS (SELECT FROM {bookings} AS b WHERE b.{bookings.id} = n.{new_bookings.id});"
            ),
            self._quarantine(),
            self._audit(),
            self._map(),
            self._gone(),
        ])  # fmt: skip

    def _map(self):
        return compose(_MAP, {"relations": sql.SQL(RELATIONS), "select": self.projection.identity_map()})

    def _gone(self):
        return self.schema.compose(_GONE)

    def _park(self, columns, select):
        return self.schema.compose(
            _PARK, relations=sql.SQL(RELATIONS), columns=comma(columns), wanted=select,
        )

    def _upsert(self, table: str, columns: list, select, kept: tuple[str, ...] = ()):
        """Insert the wanted rows that are not there, and update those that differ; ``kept`` columns are only inserted."""
        relation = self.schema[table]
        key = relation.names["id"]
        written = [column.string for column in columns if relation.logical_name(column.string) not in ("id", *kept)]
        updates = [
            compose(self._assignment(table, name), {"c": sql.Identifier(name), "t": sql.Identifier("n")}) for name in written
        ]
        return self.schema.compose(
            _UPSERT, table=table, relations=sql.SQL(RELATIONS), columns=comma(columns), select=select, key=sql.Identifier(key),
            typed=comma(
                compose("w.{c}::{type} AS {c}", {"c": column, "type": sql.SQL(relation.columns[column.string].type)}) for column in columns
            ),
            theirs=comma(sql.Identifier("o", name) for name in written), ours=comma(sql.Identifier("w", name) for name in written),
            updates=comma(updates), parents=self._parents(table),
        )

    def _parents(self, table: str):
        """Return the condition that what a row ``w`` refers to is there, and stays: it may be about to be deleted."""
        names = self.schema[table].names
        conditions = [
            self.schema.compose(
                "(w.{column} IS NULL OR EXISTS (SELECT FROM {parent} AS p WHERE p.{parent.id} = w.{column} FOR KEY SHARE))",
                column=sql.Identifier(names[column]), parent=parent,
            )
            for column, parent in _mapping.PARENTS.get(table, {}).items()
        ]
        return all_of(conditions)

    def _assignment(self, table: str, name: str) -> str:
        if table == "users" and self.schema[table].logical_name(name) == "primaryRole":
            # A SUPER_ADMIN is never lowered.
            return "{c} = CASE WHEN {t}.{c}::text = 'SUPER_ADMIN' THEN {t}.{c} ELSE excluded.{c} END"
        return "{c} = excluded.{c}"

    def _reconcile(self, table: str, columns: list, select, key: tuple[str, ...], user: str):
        """Delete the users' rows that are not wanted, and insert those that are not there."""
        names = self.schema[table].names
        return self.schema.compose(
            _RECONCILE, table=table, relations=sql.SQL(RELATIONS), columns=comma(columns), select=select, user=sql.Identifier(names[user]),
            same=all_of(compose("w.{c} = n.{c}", {"c": sql.Identifier(names[column])}) for column in key), parents=self._parents(table),
        )

    def _audit(self):
        if not {"userId"} <= set(self.schema["audit_logs"].names):
            return sql.SQL("")
        return self.schema.compose(_AUDIT)

    def _quarantine(self):
        schema = self.schema
        unresolvable = self._unresolvable()
        entries = []
        for table in _mapping.PEOPLE:
            entries.append(schema.compose(
                "SELECT x.source_table, x.source_id, x.reason, to_jsonb(t), x.key FROM unnest(uu_blocked) AS x"
                " JOIN {people} AS t ON t.{people.id} = x.source_id WHERE x.source_table = {name}", people=table, name=sql.Literal(table),
            ))  # fmt: skip
        for table, column, people in _mapping.REFERRING:
            names = schema[table].names
            identifier = compose("t.{id}", {"id": sql.Identifier(names["id"])}) if "id" in names else schema.compose(
                "t.{_CustomerFavorites.A} || ' ' || t.{_CustomerFavorites.B}"
            )
            entries.append(schema.compose(
                "SELECT {name}, {identifier}, 'refers_to_quarantined', to_jsonb(t), x.key FROM unnest(uu_blocked) AS x"
                " JOIN {table} AS t ON t.{column} = x.source_id WHERE x.source_table = {people}",
                table=table, name=sql.Literal(table), identifier=identifier, column=sql.Identifier(names[column]), people=sql.Literal(people),
            ))  # fmt: skip
        entries.append(schema.compose(
            "SELECT 'bookings', b.{bookings.id}, 'unresolvable', to_jsonb(b), NULL FROM {bookings} AS b"
            " WHERE b.{bookings.id} = ANY (uu_bookings) AND {unresolvable}", unresolvable=unresolvable,
        ))  # fmt: skip
        entries += self._refused()
        return schema.compose(_QUARANTINE, unresolvable=unresolvable, entries=sql.SQL(" UNION ALL ").join(entries))

    def _refused(self) -> list:
        """Return further SELECTs of rows that the unified side does not take."""
        return []

    # The triggers

    def _trigger(self, table: str):
        if table == "bookings":
            return self._booking_trigger()
        if table in _mapping.PEOPLE:
            return self._person_trigger(table)
        column = {name: column for name, column, unused in _mapping.REFERRING}[table]
        listed = {"ids": column, **{"studios": {"studios": "id"}, "_CustomerFavorites": {"studios": "B"}}.get(table, {})}
        touched = {
            name: comma(compose("{row}.{c}", {"row": sql.SQL(row), "c": self.schema.column(table, logical)}) for row in ("OLD", "NEW"))
            for name, logical in listed.items()
        }
        if table == "studios":
            return compose("BEGIN {slow} RETURN NULL; END", {"slow": recompute(**touched)})
        if table == "_CustomerFavorites":
            people, erase = "customers", self.schema.compose(_ERASE_FAVOURITE)
        else:
            people, erase = "studio_owners", self.schema.compose(_ERASE_CREDENTIAL, image=f"new_{table}")
            # Ids are unique in their own table only.
            touched["rows"] = comma(
                compose("{table} || {row}.{c}", {"table": sql.Literal(f"{table}:"), "row": sql.SQL(row), "c": self.schema.column(table, "id")})
                for row in ("OLD", "NEW")
            )
        return self.schema.compose(
            _BELONGING_TRIGGER, people=people, name=sql.Literal(people), lock=compose(LOCK, {"keys": sql.SQL("uu_keys")}),
            slow=recompute(**touched), column=self.schema.column(table, column), erase=erase,
        )

    def _booking_trigger(self):
        schema = self.schema
        bookings = schema["bookings"]
        pairs = [(sql.Identifier(left), sql.Identifier(right)) for left, right in schema.row_copy("new_bookings")]
        slow = recompute(
            keys=comma(
                schema.compose("CASE WHEN {row}.{bookings.customerId} IS NULL THEN {key} END", row=sql.SQL(row), key=self.key("bookings", row))
                for row in ("OLD", "NEW")
            ),
            # Whose it was may have had no other.
            ids=schema.compose(
                "OLD.{bookings.customerId}, NEW.{bookings.customerId},"
                " (SELECT n.{new_bookings.customerId} FROM {new_bookings} AS n WHERE n.{new_bookings.id} = OLD.{bookings.id})"
            ),
            bookings=schema.compose("OLD.{bookings.id}, NEW.{bookings.id}"),
        )
        whose = schema.compose(_WHOSE_CUSTOMER)
        # These two are as they were.
        updates = comma(
            self._copied(left, right, bookings.columns[right.string])
            for left, right in pairs if bookings.logical_name(right.string) not in ("id", "customerEmail")
        )
        return schema.compose(
            _BOOKING_TRIGGER, new_key=self.key("bookings", "NEW"), lock_and_update=schema.compose(_LOCK_AND_UPDATE, whose=whose, updates=updates),
            lock_customer=lock_found(whose, "i.user_id", "uu_user", self._left(schema.compose(
                "(SELECT {key} FROM {customers} AS c WHERE c.{customers.id} = NEW.{bookings.customerId})", key=self.key("customers", "c")))),
            lock_person=lock_found(sql.SQL(_WHOSE_KEY), "i.user_id", "uu_user"), lock=lock_one("uu_key", self._left(sql.SQL("uu_key"))),
            same=self._same_booking(), same_guest=same_guest(schema, "bookings"),
            insert=schema.compose(
                _INSERT_BOOKING, columns=comma(left for left, unused in pairs),
                values=comma(compose("NEW.{c}", {"c": right}) for unused, right in pairs),
            ),
            update=schema.compose(
                "UPDATE {new_bookings} AS n SET {updates} WHERE n.{new_bookings.id} = NEW.{bookings.id} AND n.{new_bookings.customerId} = uu_user;",
                updates=updates,
            ),
            slow=sql.Composed([self._unpin(), slow]),
        )

    def _copied(self, left, right, column: Column):
        """Return the assignment that brings a booking's column up to date."""
        return compose("{left} = NEW.{right}", {"left": left, "right": right})

    def _same_booking(self):
        bookings = self.schema["bookings"]
        columns = [bookings.columns[bookings.names[name]] for name in ("id", "customerId", "customerEmail")]
        return all_of(compose("NOT {changed}", {"changed": changed(column)}) for column in columns)

    def _person_trigger(self, table: str):
        schema = self.schema
        users = schema["users"]
        alone = Projection(schema, self.policies, sql.SQL("NULL")).user_alone(table, "NEW", schema.compose("u.{users.id}"), sql.SQL("uu_key"))
        kept = ("id", "primaryRole", "isActive", "isSuspended")
        rows = ("OLD", "NEW")
        return schema.compose(
            _PERSON_TRIGGER, people=table, name=sql.Literal(table), new_key=self.key(table, "NEW"),
            lock=lock_one("uu_key", self._left(sql.SQL("uu_key"))), diverged=self._diverged(),
            updates=comma(compose("{c} = {v}", {"c": column, "v": value}) for column, value in alone if users.logical_name(column.string) not in kept),
            same=schema.compose("NEW.{people.id} = OLD.{people.id} AND {new} = {old}", people=table, new=self.key(table, "NEW"), old=self.key(table, "OLD")),
            slow=recompute(
                keep_password=schema.compose(
                    "(TG_OP = 'UPDATE' AND OLD.{people.password} IS NOT DISTINCT FROM NEW.{people.password} AND {new} = {old})",
                    people=table, new=self.key(table, "NEW"), old=self.key(table, "OLD"),
                ),
                keys=comma(self.key(table, row) for row in rows), ids=comma(schema.compose("{row}.{people.id}", people=table, row=sql.SQL(row)) for row in rows)
            ),
        )


def trigger_function(name: str, made, body, database: Database):
    """Return the statement that makes a trigger function.

    Args:
        name: of the function, in the journal's schema.
        made: its composed SET clauses.
        body: its composed block.
        database: an open session, for quoting.
    """
    text = compose(_TRIGGER_BODY, {"body": body}).as_string(database.connection)
    return compose(_TRIGGER_FUNCTION, {"function": sql.Identifier(SCHEMA, name), "settings": made, "body": sql.Literal(text)})


def recompute(keep_password=None, **arrays):
    """Call ``recompute`` with what a write touched; NULLs among it are nobody's.

    Args:
        keep_password: composed condition that no password changed, so that none comes back by itself.
        arrays: ``keys``, ``ids`` of legacy people, ids of ``bookings``, ``rows`` (accounts and sessions) and ``studios``, and
            the users whose own write this is (``reversed``): composed lists of text.
    """
    parts = {name: arrays.get(name) or sql.SQL("NULL") for name in ("keys", "ids", "bookings", "rows", "studios", "reversed")}
    return compose(
        # The keys' own collation would become the function's, and no index of the default collation would serve it.
        "PERFORM unified_user_journal.recompute(ARRAY[{keys}]::text[] COLLATE \"default\", ARRAY[{ids}]::text[], ARRAY[{bookings}]::text[],"
        " ARRAY[{rows}]::text[], ARRAY[{studios}]::text[], ARRAY[{reversed}]::text[], {keep_password}, {moment});",
        {**parts, "keep_password": keep_password or sql.SQL("false"), "moment": sql.SQL(MOMENT)},
    )


def lock_one(key: str, left):
    """Lock the identity key that a variable holds; NULL is nobody's.

    Args:
        key: the variable's name.
        left: composed; what is done before a lock row is made.
    """
    return compose(LOCK_ONE, {"key": sql.SQL(key), "left": left, "lock": compose(LOCK, {"keys": sql.SQL(f"ARRAY[{key}]")})})


def lock_found(whose, found: str, into: str, left=None):
    """Look somebody up, and lock his key.

    Args:
        whose: composed FROM and WHERE clauses, in which ``i`` is a row of the map; all that are found have one key.
        found: expression of what to look up.
        into: the variable it goes to; NULL where nobody is found.
        left: composed; what is done before a lock row is made, or None.
    """
    keys = compose("ARRAY(SELECT i.identity_key FROM {whose})", {"whose": whose})
    return compose(LOCK_FOUND, {
        "whose": whose, "found": sql.SQL(found), "into": sql.SQL(into), "left": left or sql.SQL(""), "lock": compose(LOCK, {"keys": keys}),
    })  # fmt: skip


def same_guest(schema: Schema, table: str):
    """Return the condition that a booking's update from OLD to NEW changes nothing of a guest who is made of it but his time.

    Args:
        schema: the resolved tables.
        table: ``bookings`` or ``new_bookings``.
    """
    columns = [schema[table].columns[schema[table].names[name]] for name in ("customerName", "customerPhone", "createdAt")]
    unchanged = [compose("NOT {changed}", {"changed": changed(column)}) for column in columns]
    return all_of([*unchanged, compose("NEW.{c} >= OLD.{c}", {"c": schema.column(table, "updatedAt")})])


def differ(column: Column, left, right):
    """Return the condition that two values of a column differ, by image: not every type has an equality, and some are lax.

    Args:
        column: of whose type both are.
        left: composed.
        right: composed.
    """
    parts = {"left": left, "right": right}
    if column.base_type in ("text", "character varying"):
        # A column's own collation may take different texts for equal.
        return compose('{left} COLLATE "C" IS DISTINCT FROM {right} COLLATE "C"', parts)
    if column.category == "E" or column.base_type in _EXACT:
        return compose("{left} IS DISTINCT FROM {right}", parts)
    return compose("ROW({left})::record OPERATOR(pg_catalog.*<>) ROW({right})::record", parts)


def changed(column: Column):
    """Return the condition that a column of NEW is not OLD's, by image."""
    return differ(column, *[compose(row + ".{c}", {"c": sql.Identifier(column.name)}) for row in ("NEW", "OLD")])


def mark(direction: str) -> str:
    """Return the name, of no schema, that a direction's functions have in their search path, and no other path has."""
    return f"unified_user:{direction}"


def settings(direction: str, schema: Schema):
    """Return the SET clauses of a sync function: its path, and in it the mark by which the other direction knows whose write it is.

    A parameter of our own would do as well, but only a superuser may give a function one. What a function does is planned once for
    a session, by indexes and loops: it is always about a few rows, and a join that hashes a table whose statistics are from when it
    was empty keeps every write waiting for half a second.
    """
    return compose(
        "SET search_path = pg_catalog, {schema}, {mark}, pg_temp SET row_security = off"
        # Before PostgreSQL 18 what enable_seqscan forbids looks expensive enough to compile, call by call.
        " SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off",
        {"schema": sql.Identifier(schema.name), "mark": sql.Identifier(mark(direction))},
    )
