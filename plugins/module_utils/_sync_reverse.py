# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reverse sync: what the unified side says, written back as far as the legacy side can hold it (the contract, section 4).

After its own writes every function calls ``recompute`` with the user as ``reversed``: that keeps map, guests, bookings by
e-mail and what is noted of the user in order, and overwrites nothing of his.
"""

from __future__ import annotations

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._journal import STUDIO_LOCK
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._projection import CUSTOMER_SIDE, Projection
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import all_of, comma, compose, derived_id, identity_key, is_usable
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync_forward import (
    FUNCTION,
    LOCK,
    MOMENT,
    changed,
    differ,
    lock_found,
    same_guest,
    settings,
    trigger_function,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync_three_way import heir, noted, noted_value

#: Unified tables whose writes are carried.
TRIGGERED = ("users", "user_role_assignments", "studio_ownership", "new_accounts", "new_sessions", "new_bookings", "_UserFavorites")

#: Legacy table of people -> the role whose holders have a row there.
_ROLES = dict(_mapping.PEOPLE)

# Locks the keys given, a user's own, which somebody without a legacy row is found by, and all that his rows are under, and returns them.
_LOCK_USER = """
DECLARE
    uu_more text[];
BEGIN
    uu_keys := ARRAY(SELECT DISTINCT k FROM unnest(uu_keys) AS k WHERE k IS NOT NULL
        UNION SELECT {user_key} COLLATE "default" FROM {users} AS u WHERE u.{users.id} = uu_user AND {user_key} IS NOT NULL
        UNION SELECT i.identity_key FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user);
    uu_more := uu_keys;
    LOOP
        {lock}
        uu_more := ARRAY(SELECT i.identity_key FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user EXCEPT SELECT unnest(uu_keys));
        EXIT WHEN uu_more = '{}';
        uu_keys := uu_keys || uu_more;
    END LOOP;
    RETURN uu_keys;
END
"""

# Who names a studio's owner decides by all its ownerships: one at a time, and by none that is out of date. An update of the lock
# row tells those with an older snapshot; the studio's own row is what the legacy side writes. No key of a person begins like this.
_LOCK_STUDIOS = """
DECLARE
    uu_locks text[] := ARRAY(SELECT {prefix} || x FROM unnest(uu_studios) AS x);
BEGIN
    {lock}
    PERFORM FROM {studios} AS s WHERE s.{studios.id} = ANY (uu_studios) ORDER BY s.{studios.id} FOR NO KEY UPDATE;
END
"""

# Puts a user into quarantine whose state the legacy side cannot take, with the key that is in the way.
_SET_ASIDE = """
BEGIN
    INSERT INTO unified_user_journal.quarantine (source_table, source_id, reason, "row", identity_key)
    SELECT 'users', u.{users.id}, uu_reason, to_jsonb(u), {key} FROM {users} AS u WHERE u.{users.id} = uu_user
    ON CONFLICT (source_table, source_id) DO UPDATE SET reason = excluded.reason, "row" = excluded."row", identity_key = excluded.identity_key;
END
"""

# Gives the legacy side what a user has there who has a row now: his favourites, accounts, sessions and studios.
_FLOW = """
DECLARE
    uu_customer text := {first_customer};
    uu_owner text := {first_owner};
BEGIN
    IF uu_customer IS NOT NULL THEN
        INSERT INTO {_CustomerFavorites} ({_CustomerFavorites.A}, {_CustomerFavorites.B})
        SELECT uu_customer, f.{_UserFavorites.A} FROM {_UserFavorites} AS f WHERE f.{_UserFavorites.B} = uu_user
        AND NOT EXISTS (SELECT FROM {_CustomerFavorites} AS l JOIN unified_user_journal.identity_map AS i
                        ON i.source_table = 'customers' AND i.source_id = l.{_CustomerFavorites.A}
                        WHERE i.user_id = uu_user AND l.{_CustomerFavorites.B} = f.{_UserFavorites.A});
    END IF;
    IF uu_owner IS NOT NULL THEN
        {credentials}
        PERFORM unified_user_journal.lock_studios(
            ARRAY(SELECT o.{studio_ownership.studioId} FROM {studio_ownership} AS o WHERE o.{studio_ownership.userId} = uu_user));
        UPDATE {studios} AS s SET {studios.ownerId} = {heir}
        WHERE s.{studios.id} IN (SELECT o.{studio_ownership.studioId} FROM {studio_ownership} AS o WHERE o.{studio_ownership.userId} = uu_user)
        AND s.{studios.ownerId} IS DISTINCT FROM {heir};
    END IF;
END
"""

_FIRST = """
(SELECT i.source_id FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user AND i.source_table = {table}
 ORDER BY i.source_id <> i.user_id, i.source_id COLLATE "C" LIMIT 1)
"""

_FLOW_CREDENTIALS = """
INSERT INTO {left} ({left.userId}, {theirs}) SELECT uu_owner, {ours} FROM {right} AS t WHERE t.{right.userId} = uu_user
AND NOT EXISTS (SELECT FROM {left} AS l WHERE l.{left.id} = t.{right.id}) ON CONFLICT DO NOTHING;
"""

# Makes the legacy row of a user who has the role and no row yet; in the way is whoever else has his key or his id.
_MAKE = """
DECLARE
    uu_key text;
    uu_native boolean;
BEGIN
    IF EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user AND i.source_table = {name}) THEN
        RETURN false;
    END IF;
    SELECT {user_key} INTO uu_key FROM {users} AS u WHERE u.{users.id} = uu_user AND {usable};
    IF uu_key IS NULL OR EXISTS (
        SELECT FROM unified_user_journal.identity_map AS i WHERE i.identity_key = uu_key AND i.user_id <> uu_user AND i.source_table <> 'bookings'
    ) OR EXISTS (
        SELECT FROM {people} AS p WHERE {person_key} = uu_key
    ) OR EXISTS (
        SELECT FROM {people} AS p WHERE p.{people.id} = uu_user
    ) OR EXISTS (
        SELECT FROM {other} AS p WHERE p.{other.id} = uu_user AND {other_key} <> uu_key
    ) THEN
        PERFORM unified_user_journal.set_aside(uu_user, 'not_written');
        RETURN false;
    END IF;
    uu_native := NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user);
    DELETE FROM unified_user_journal.identity_map AS i WHERE i.source_table = 'bookings' AND i.user_id = uu_user;
    INSERT INTO {people} ({columns}) SELECT {values} FROM {users} AS u WHERE u.{users.id} = uu_user;
    INSERT INTO unified_user_journal.identity_map (source_table, source_id, user_id, identity_key, made, native)
    VALUES ({name}, uu_user, uu_user, uu_key, true, uu_native);
    RETURN true;
END
"""

# Gives a guest who has become a customer a customer's role.
_PROMOTE = """
BEGIN
    DELETE FROM {user_role_assignments} AS r WHERE r.{user_role_assignments.userId} = uu_user AND r.{user_role_assignments.studioId} IS NULL
    AND r.{user_role_assignments.role}::text = 'GUEST';
    INSERT INTO {user_role_assignments} ({columns})
    WITH member AS (SELECT uu_user AS user_id, {side} AS side, 1 AS size), guest AS (SELECT uu_user AS user_id WHERE false)
    SELECT {granted} FROM ({select}) AS w ({columns}) WHERE NOT EXISTS (
        SELECT FROM {user_role_assignments} AS r WHERE r.{user_role_assignments.userId} = uu_user
        AND r.{user_role_assignments.studioId} IS NULL AND r.{user_role_assignments.role}::text = {customer});
    UPDATE {users} AS u SET {users.primaryRole} = {customer} WHERE u.{users.id} = uu_user AND u.{users.primaryRole}::text = 'GUEST';
END
"""

# Brings a user's legacy rows up to date: rows for his roles, and the columns in which he differs from what they called for.
_REVERSE_USER = """
DECLARE
    uu_base jsonb;
    uu_keys text[];
    uu_made boolean := false;
BEGIN
    SELECT unified_user_journal.lock_user(ARRAY[{user_key}] COLLATE "default", uu_user) INTO uu_keys FROM {users} AS u WHERE u.{users.id} = uu_user;
    DELETE FROM unified_user_journal.quarantine AS q WHERE q.source_table = 'users' AND q.source_id = uu_user;
    IF uu_keys IS NULL THEN
        RETURN;
    END IF;
    BEGIN
        IF EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user AND i.source_table = 'bookings') THEN
            -- The first write to a guest makes him a customer.
            uu_made := unified_user_journal.make_customers(uu_user);
            IF uu_made THEN
                PERFORM unified_user_journal.promote(uu_user);
            END IF;
        END IF;
        {make}
        IF uu_made THEN
            PERFORM unified_user_journal.flow(uu_user);
        END IF;
        SELECT d.projection INTO uu_base FROM unified_user_journal.divergence AS d WHERE d.user_id = uu_user;
        uu_base := coalesce(uu_base, uu_old);
        IF uu_base IS NOT NULL AND EXISTS (
            SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user AND i.source_table <> 'bookings') THEN
            {tie}
            IF EXISTS (SELECT FROM {users} AS u WHERE u.{users.id} = uu_user AND (NOT {usable} OR EXISTS (
                SELECT FROM unified_user_journal.identity_map AS i
                WHERE i.identity_key = {user_key} COLLATE "default" AND i.user_id <> uu_user AND i.source_table <> 'bookings'))) THEN
                PERFORM unified_user_journal.set_aside(uu_user, 'not_written');
                uu_base := uu_base || (SELECT jsonb_build_object({email}, u.{users.email}) FROM {users} AS u WHERE u.{users.id} = uu_user);
            END IF;
            {write}
        ELSIF EXISTS (SELECT FROM {users} AS u JOIN {users} AS o ON o.{users.id} <> uu_user AND {others_key} = {user_key} WHERE u.{users.id} = uu_user
                      AND NOT EXISTS (SELECT FROM unified_user_journal.quarantine AS q WHERE q.source_table = 'users' AND q.source_id = o.{users.id}))
            AND NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user) THEN
            -- One of two users who spell one address differently is nobody on the legacy side.
            PERFORM unified_user_journal.set_aside(uu_user, 'not_written');
        END IF;
    EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN
        PERFORM unified_user_journal.set_aside(uu_user, 'not_written');
    END;
    -- A guest who could not be written, under another address, is a guest no longer: who has the old one next must not get what is his.
    IF EXISTS (SELECT FROM unified_user_journal.identity_map AS i JOIN {users} AS u ON u.{users.id} = i.user_id
               WHERE i.user_id = uu_user AND i.source_table = 'bookings' AND i.identity_key IS DISTINCT FROM {user_key}) THEN
        {pin}
        DELETE FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user;
        PERFORM unified_user_journal.promote(uu_user);
    END IF;
    {settle}
END
"""

_PIN = """
INSERT INTO unified_user_journal.pinned_booking (booking_id, user_id)
SELECT b.{bookings.id}, uu_user FROM {bookings} AS b JOIN {new_bookings} AS n ON n.{new_bookings.id} = b.{bookings.id}
WHERE n.{new_bookings.customerId} = uu_user AND b.{bookings.customerId} IS NULL
ON CONFLICT (booking_id) DO UPDATE SET user_id = excluded.user_id;
"""

# Bookings tied to him by his key alone would be somebody else's under another key.
_TIE = """
IF EXISTS (SELECT FROM {users} AS u WHERE u.{users.id} = uu_user AND {user_key} IS DISTINCT FROM {base_key}) THEN
    IF {first_customer} IS NOT NULL THEN
        UPDATE {bookings} AS b SET {bookings.customerId} = {first_customer} FROM {new_bookings} AS n
        WHERE n.{new_bookings.customerId} = uu_user AND b.{bookings.id} = n.{new_bookings.id} AND b.{bookings.customerId} IS NULL;
    ELSE
        {pin}
    END IF;
END IF;
"""

_WRITE = """
UPDATE {people} AS p SET {updates} FROM {users} AS u, (
    SELECT i.source_id, row_number() OVER (ORDER BY i.source_id <> i.user_id, i.source_id COLLATE "C") - 1 AS number
    FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user AND i.source_table = {name}
) AS r WHERE u.{users.id} = uu_user AND p.{people.id} = r.source_id AND ({changed});
"""

# Nothing leans on a user who is one person of his own, whose key is as it was, and who is what his row calls for. OFFSET has
# each looked up: planned while a table is small, a join would go through all of it ever after.
_ALONE = """
NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS n
            WHERE n.user_id = i.user_id AND (n.source_table, n.source_id) <> (i.source_table, i.source_id) OFFSET 0)
AND NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS n
                WHERE n.identity_key = i.identity_key AND (n.source_table, n.source_id) <> (i.source_table, i.source_id) OFFSET 0)
AND NOT EXISTS (SELECT FROM unified_user_journal.quarantine AS q WHERE q.identity_key = i.identity_key OFFSET 0)
AND NOT EXISTS (SELECT FROM unified_user_journal.quarantine AS q WHERE q.source_table = 'users' AND q.source_id = i.user_id OFFSET 0)
AND NOT EXISTS (SELECT FROM unified_user_journal.divergence AS d WHERE d.user_id = i.user_id OFFSET 0)
AND NOT EXISTS (SELECT FROM {user_role_assignments} AS r WHERE r.{user_role_assignments.userId} = i.user_id
                AND r.{user_role_assignments.role}::text = {other_role} AND r.{user_role_assignments.studioId} IS NULL OFFSET 0)
"""

_WHOSE_ROW = "unified_user_journal.identity_map AS i WHERE i.user_id = NEW.{users.id} AND i.identity_key = uu_key AND i.source_table <> 'bookings'"

_ROW_ALONE = """
SELECT i.source_id FROM unified_user_journal.identity_map AS i
WHERE i.user_id = NEW.{users.id} AND i.source_table = {name} AND i.identity_key = uu_key AND {alone}
"""

_WRITE_ALONE = """
IF uu_table = {name} THEN
    IF {changed} THEN
        UPDATE {people} AS t SET {updates} WHERE t.{people.id} = ({row}) RETURNING {same} INTO uu_settled;
    ELSE
        SELECT {same} INTO uu_settled FROM {people} AS t WHERE t.{people.id} = ({row});
    END IF;
END IF;
"""

_USERS_TRIGGER = """
DECLARE
    uu_keys text[];
    uu_key text;
    uu_table text;
    uu_settled boolean;
BEGIN
    IF TG_OP = 'DELETE' THEN
        uu_keys := unified_user_journal.lock_user(ARRAY[{old_key}] COLLATE "default", OLD.{users.id});
        {erase}
        DELETE FROM unified_user_journal.identity_map AS i WHERE i.user_id = OLD.{users.id};
        DELETE FROM unified_user_journal.divergence AS d WHERE d.user_id = OLD.{users.id};
        DELETE FROM unified_user_journal.pinned_booking AS pin WHERE pin.user_id = OLD.{users.id};
        DELETE FROM unified_user_journal.quarantine AS q WHERE q.source_table = 'users' AND q.source_id = OLD.{users.id};
        {settle}
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND {old_key} = {new_key} AND OLD.{users.id} = NEW.{users.id} THEN
        uu_key := {new_key};
        {lock_found}
        IF uu_table IS NOT NULL THEN
            BEGIN
                {write_alone}
            EXCEPTION WHEN integrity_constraint_violation OR data_exception THEN
                uu_settled := false;
            END;
            IF uu_settled THEN
                RETURN NULL;
            END IF;
        END IF;
    ELSIF TG_OP = 'UPDATE' THEN
        PERFORM unified_user_journal.lock_user(ARRAY[{old_key}, {new_key}] COLLATE "default", NEW.{users.id});
    END IF;
    PERFORM unified_user_journal.reverse_user(NEW.{users.id}, CASE WHEN TG_OP = 'UPDATE' THEN {noted_old} END, '{}');
    RETURN NULL;
END
"""

_ERASE = """
PERFORM unified_user_journal.lock_studios(ARRAY(SELECT s.{studios.id} FROM {studios} AS s JOIN unified_user_journal.identity_map AS i
    ON i.source_table = 'studio_owners' AND i.source_id = s.{studios.ownerId} WHERE i.user_id = OLD.{users.id}));
UPDATE {studios} AS s SET {studios.ownerId} = {heir} FROM unified_user_journal.identity_map AS i
WHERE i.user_id = OLD.{users.id} AND i.source_table = 'studio_owners' AND s.{studios.ownerId} = i.source_id;
DELETE FROM {customers} AS p USING unified_user_journal.identity_map AS i
WHERE i.user_id = OLD.{users.id} AND i.source_table = 'customers' AND p.{customers.id} = i.source_id;
DELETE FROM {studio_owners} AS p USING unified_user_journal.identity_map AS i
WHERE i.user_id = OLD.{users.id} AND i.source_table = 'studio_owners' AND p.{studio_owners.id} = i.source_id;
"""

_OWNERSHIP_TRIGGER = """
DECLARE
    uu_user text;
BEGIN
    FOR uu_user IN SELECT DISTINCT x FROM unnest(ARRAY[OLD.{studio_ownership.userId}, NEW.{studio_ownership.userId}]) AS x WHERE x IS NOT NULL ORDER BY x LOOP
        PERFORM unified_user_journal.touch_user(uu_user);
    END LOOP;
    PERFORM unified_user_journal.lock_studios(ARRAY[OLD.{studio_ownership.studioId}, NEW.{studio_ownership.studioId}]);
    UPDATE {studios} AS s SET {studios.ownerId} = {heir}
    WHERE s.{studios.id} IN (OLD.{studio_ownership.studioId}, NEW.{studio_ownership.studioId}) AND s.{studios.ownerId} IS DISTINCT FROM {heir};
    RETURN NULL;
END
"""

# A guest becomes a customer by the first write to what is his; everybody's keys are locked.
_TOUCH_USER = """
BEGIN
    IF EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user AND i.source_table = 'bookings') THEN
        PERFORM unified_user_journal.reverse_user(uu_user, NULL, '{}');
    ELSE
        PERFORM unified_user_journal.lock_user('{}', uu_user);
    END IF;
END
"""

_ROLES_TRIGGER = """
BEGIN
    IF TG_OP <> 'DELETE' AND EXISTS (SELECT FROM {users} AS u WHERE u.{users.id} = NEW.{user_role_assignments.userId}) THEN
        PERFORM unified_user_journal.reverse_user(NEW.{user_role_assignments.userId}, NULL, '{}');
    END IF;
    RETURN NULL;
END
"""

_CREDENTIALS_TRIGGER = """
DECLARE
    uu_user text := NEW.{right.userId};
    uu_owner text;
BEGIN
    IF uu_user IS NOT NULL THEN
        PERFORM unified_user_journal.touch_user(uu_user);
        uu_owner := {first_owner};
    END IF;
    IF TG_OP <> 'INSERT' AND (uu_owner IS NULL OR OLD.{right.id} <> NEW.{right.id}) THEN
        DELETE FROM {left} AS l WHERE l.{left.id} = OLD.{right.id};
    END IF;
    IF uu_owner IS NOT NULL THEN
        UPDATE {left} AS l SET {left.userId} = uu_owner, {updates} WHERE l.{left.id} = NEW.{right.id};
        IF NOT FOUND THEN
            INSERT INTO {left} ({left.userId}, {theirs}) VALUES (uu_owner, {ours});
        END IF;
    END IF;
    RETURN NULL;
END
"""

_FAVOURITES_TRIGGER = """
DECLARE
    uu_user text := coalesce(NEW.{_UserFavorites.B}, OLD.{_UserFavorites.B});
    uu_customer text;
BEGIN
    PERFORM unified_user_journal.touch_user(uu_user);
    IF TG_OP <> 'INSERT' THEN
        DELETE FROM {_CustomerFavorites} AS l USING unified_user_journal.identity_map AS i
        WHERE i.user_id = OLD.{_UserFavorites.B} AND i.source_table = 'customers' AND l.{_CustomerFavorites.A} = i.source_id
        AND l.{_CustomerFavorites.B} = OLD.{_UserFavorites.A};
    END IF;
    IF TG_OP <> 'DELETE' THEN
        uu_customer := {first_customer};
        IF uu_customer IS NOT NULL THEN
            INSERT INTO {_CustomerFavorites} ({_CustomerFavorites.A}, {_CustomerFavorites.B}) VALUES (uu_customer, NEW.{_UserFavorites.A})
            ON CONFLICT ({_CustomerFavorites.A}, {_CustomerFavorites.B}) DO NOTHING;
        END IF;
    END IF;
    RETURN NULL;
END
"""

_WHOSE_BOOKING = "unified_user_journal.identity_map AS i WHERE i.user_id = uu_user AND i.identity_key = uu_key AND i.source_table <> 'studio_owners'"

_THEIRS_ALONE = """
EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user AND i.identity_key = uu_key AND i.source_table = uu_table)
AND NOT EXISTS (SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user AND i.identity_key <> uu_key)
"""

_BOOKINGS_TRIGGER = """
DECLARE
    uu_user text;
    uu_customer text;
    uu_key text;
    uu_table text;
    uu_keys text[];
BEGIN
    IF TG_OP = 'DELETE' THEN
        uu_keys := unified_user_journal.lock_user(ARRAY[{old_key}] COLLATE "default", OLD.{new_bookings.customerId});
        DELETE FROM {bookings} AS b WHERE b.{bookings.id} = OLD.{new_bookings.id};
        DELETE FROM unified_user_journal.pinned_booking AS pin WHERE pin.booking_id = OLD.{new_bookings.id};
        {settle_old}
        RETURN NULL;
    END IF;
    uu_user := NEW.{new_bookings.customerId};
    IF {same} THEN
        -- Whose rows all are under the booking's own key needs no other lock.
        uu_key := {new_key};
        {lock_found}
        IF uu_table IS NOT NULL THEN
            UPDATE {bookings} AS b SET {changes} WHERE b.{bookings.id} = NEW.{new_bookings.id} AND {theirs_alone};
            IF FOUND AND (uu_table = 'customers' OR ({same_guest}
                AND unified_user_journal.renew_guest(uu_user, uu_key, NEW.{new_bookings.id}, NEW.{new_bookings.updatedAt}))) THEN
                RETURN NULL;
            END IF;
        END IF;
    END IF;
    uu_keys := unified_user_journal.lock_user(ARRAY[{old_key}, {new_key}] COLLATE "default", uu_user);
    IF TG_OP = 'UPDATE' AND OLD.{new_bookings.customerId} <> uu_user THEN
        -- It may have been a guest's last, under another key than his.
        uu_keys := unified_user_journal.lock_user(uu_keys, OLD.{new_bookings.customerId});
    END IF;
    uu_customer := {first_customer};
    IF TG_OP = 'UPDATE' AND OLD.{new_bookings.id} = NEW.{new_bookings.id} THEN
        UPDATE {bookings} AS b SET {updates} WHERE b.{bookings.id} = NEW.{new_bookings.id};
    ELSE
        IF TG_OP = 'UPDATE' THEN
            DELETE FROM {bookings} AS b WHERE b.{bookings.id} = OLD.{new_bookings.id};
        END IF;
        INSERT INTO {bookings} ({bookings.customerId}, {theirs}) VALUES (uu_customer, {ours});
    END IF;
    IF uu_customer IS NOT NULL AND (TG_OP = 'INSERT' OR {same}) THEN
        RETURN NULL;
    END IF;
    -- Whose the legacy side would take it for: his by his customers row or his key; else it is pinned.
    DELETE FROM unified_user_journal.pinned_booking AS pin WHERE pin.booking_id IN (OLD.{new_bookings.id}, NEW.{new_bookings.id});
    IF uu_customer IS NULL AND NOT EXISTS (
        SELECT FROM unified_user_journal.identity_map AS i WHERE i.user_id = uu_user
        AND i.identity_key = {new_key} COLLATE "default" AND {new_usable}) THEN
        INSERT INTO unified_user_journal.pinned_booking (booking_id, user_id) VALUES (NEW.{new_bookings.id}, uu_user);
    END IF;
    {settle_new}
    RETURN NULL;
END
"""


class Reverse:
    """Composes the functions of reverse sync.

    Args:
        database: an open session, for quoting.
        schema: the resolved tables.
        policies: the operator's decisions.
    """

    def __init__(self, database: Database, schema: Schema, policies: Policies) -> None:
        self.database = database
        self.schema = schema
        self.policies = policies

    def key(self, table: str, alias: str):
        """Return the identity key of a row of people, users or bookings."""
        column = "customerEmail" if table in ("bookings", "new_bookings") else "email"
        return identity_key(compose("{a}.{c}", {"a": sql.SQL(alias), "c": self.schema.column(table, column)}), self.policies.email_match)

    def functions(self) -> list:
        """Return the statements that make the functions, in order."""
        helpers = [
            ("lock_user", "uu_keys text[], uu_user text", "text[]", self.schema.compose(
                _LOCK_USER, lock=compose(LOCK, {"keys": sql.SQL("uu_more")}), user_key=self.key("users", "u")
            )),
            ("lock_studios", "uu_studios text[]", "void", self.schema.compose(
                _LOCK_STUDIOS, lock=compose(LOCK, {"keys": sql.SQL("uu_locks")}), prefix=sql.Literal(STUDIO_LOCK)
            )),
            ("set_aside", "uu_user text, uu_reason text", "void", self.schema.compose(_SET_ASIDE, key=self.key("users", "u"))),
            ("flow", "uu_user text", "void", self._flow()),
            *[(f"make_{table}", "uu_user text", "boolean", self._make(table)) for table in _mapping.PEOPLE],
            ("promote", "uu_user text", "void", self._promote()),
            ("reverse_user", "uu_user text, uu_old jsonb, uu_others text[]", "void", self._reverse_user()),
            ("touch_user", "uu_user text", "void", sql.SQL(_TOUCH_USER)),
        ]
        made = settings("reverse", self.schema)
        statements = [
            compose(FUNCTION, {
                "name": sql.SQL(name), "arguments": sql.SQL(arguments), "returns": sql.SQL(returns), "body": self._text(body),
                # It writes to the unified side, and that is not to be carried back.
                "settings": settings("forward", self.schema) if name == "promote" else made,
            })
            for name, arguments, returns, body in helpers
        ]  # fmt: skip
        for table in TRIGGERED:
            statements.append(trigger_function(f"reverse_{table}", made, self._trigger(table), self.database))
        return statements

    def _text(self, body):
        return sql.Literal(body.as_string(self.database.connection))

    def _first(self, table: str):
        return compose(_FIRST, {"table": sql.Literal(table)})

    def _firsts(self) -> dict[str, object]:
        return {"first_customer": self._first("customers"), "first_owner": self._first("studio_owners")}

    def _user_parts(self) -> dict[str, object]:
        email = self.schema.compose("u.{users.email}")
        return {"user_key": self.key("users", "u"), "usable": is_usable(email), **self._firsts()}

    def _flow(self):
        credentials = [
            self.schema.compose(
                _FLOW_CREDENTIALS, left=left, right=right,
                theirs=comma(sql.Identifier(theirs) for unused, theirs in self.schema.row_copy(right)),
                ours=comma(compose("t.{c}", {"c": sql.Identifier(ours)}) for ours, unused in self.schema.row_copy(right)),
            )
            for right, (left, unused) in _mapping.ROW_COPIES.items() if right != "new_bookings"
        ]  # fmt: skip
        return self.schema.compose(_FLOW, credentials=sql.Composed(credentials), heir=heir(self.schema, sql.SQL("true")), **self._firsts())

    def _pairs(self, table: str, user: str = "u") -> list[tuple[str, str, object]]:
        """Return (legacy column, column of users, its value of that user) of a table of people, all but the id."""
        relation, users = self.schema[table], self.schema["users"]
        names = [(relation.names[name], users.names[name]) for name in ("email", "emailVerified", "password", "createdAt", "updatedAt")]
        names += [(column.sources[table], column.target.name) for column in self.schema.person_columns() if table in column.sources]
        return [(theirs, ours, self._value(relation.columns[theirs], compose(f"{user}.{{c}}", {"c": sql.Identifier(ours)}))) for theirs, ours in names]

    @staticmethod
    def _value(column, value):
        if column.not_null and column.is_text:
            # '' is how the legacy side spells what is NULL here.
            return compose("coalesce({value}, '')", {"value": value})
        return value

    def _make(self, table: str):
        other = next(name for name in _mapping.PEOPLE if name != table)
        pairs = self._pairs(table)
        names = [self.schema.column(table, "id"), *[sql.Identifier(theirs) for theirs, unused, value in pairs]]
        values = [self.schema.compose("u.{users.id}"), *[value for theirs, unused, value in pairs]]
        return self.schema.compose(
            _MAKE, people=table, other=other, name=sql.Literal(table), person_key=self.key(table, "p"), other_key=self.key(other, "p"),
            columns=comma(names), values=comma(values), **self._user_parts(),
        )

    def _promote(self):
        columns, select = Projection(self.schema, self.policies, sql.SQL(MOMENT)).user_role_assignments()
        identifier = self.schema.column("user_role_assignments", "id")
        # A role of his for one studio may have the id of the one for all.
        other = derived_id(sql.Literal("role:"), sql.SQL("uu_user"), sql.Literal(f":{_mapping.CUSTOMER_ROLE}#2"))
        taken = self.schema.compose("EXISTS (SELECT FROM {user_role_assignments} AS r WHERE r.{user_role_assignments.id} = w.{user_role_assignments.id})")
        granted = [
            compose("CASE WHEN {taken} THEN {other} ELSE w.{id} END", {"taken": taken, "other": other, "id": identifier}) if column == identifier
            else compose("w.{c}", {"c": column})
            for column in columns
        ]
        return self.schema.compose(
            _PROMOTE, columns=comma(columns), granted=comma(granted), select=select,
            side=sql.Literal(CUSTOMER_SIDE), customer=sql.Literal(_mapping.CUSTOMER_ROLE)
        )

    def _reverse_user(self):
        schema, users = self.schema, self.schema["users"]
        make = [
            schema.compose(
                "IF EXISTS (SELECT FROM {user_role_assignments} AS r WHERE r.{user_role_assignments.userId} = uu_user"
                " AND r.{user_role_assignments.role}::text = {role} AND r.{user_role_assignments.studioId} IS NULL) THEN"
                " uu_made := unified_user_journal.{make}(uu_user) OR uu_made; END IF;",
                role=sql.Literal(role), make=sql.Identifier(f"make_{table}"),
            )
            for table, role in _ROLES.items()
        ]
        parts = self._user_parts()
        email = sql.Literal(users.names["email"])
        base_key = identity_key(compose("(uu_base ->> {email})", {"email": email}), self.policies.email_match)
        return schema.compose(
            _REVERSE_USER, make=sql.Composed(make), email=email, pin=schema.compose(_PIN),
            tie=schema.compose(_TIE, base_key=base_key, pin=schema.compose(_PIN), **parts),
            write=sql.Composed([self._write(table) for table in _mapping.PEOPLE]), settle=_settle("uu_keys", "ARRAY[uu_user] || uu_others"),
            others_key=self.key("users", "o"), **parts,
        )

    def _write_alone(self, table: str):
        """Write what changed of a user who is one row of this table, and say whether he is what his row calls for then."""
        schema, users = self.schema, self.schema["users"]
        alone = Projection(schema, self.policies, sql.SQL("NULL")).user_alone(table, "t", schema.compose("NEW.{users.id}"), sql.SQL("uu_key"))
        pairs = self._pairs(table, "NEW")
        other_role = next(role for name, role in _ROLES.items() if name != table)
        return schema.compose(
            _WRITE_ALONE, people=table, name=sql.Literal(table),
            row=schema.compose(_ROW_ALONE, name=sql.Literal(table), alone=schema.compose(_ALONE, other_role=sql.Literal(other_role))),
            changed=sql.SQL(" OR ").join(changed(users.columns[ours]) for unused, ours, value in pairs),
            updates=comma(
                compose("{c} = CASE WHEN {changed} THEN {value} ELSE t.{c} END", {
                    "c": sql.Identifier(theirs), "value": value, "changed": changed(users.columns[ours]),
                })
                for theirs, ours, value in pairs
            ),
            same=all_of(
                compose("NOT ({differ})", {"differ": differ(users.columns[column.string], compose("NEW.{c}", {"c": column}), compose(
                    "({value})::{type}", {"value": value, "type": sql.SQL(users.columns[column.string].type)}
                ))})
                for column, value in alone if users.logical_name(column.string) not in ("id", "isActive", "isSuspended")
            ),
        )  # fmt: skip

    def _write(self, table: str):
        updates, differing = [], []
        for theirs, ours, value in self._pairs(table):
            differs = compose("(uu_base ->> {name}) IS DISTINCT FROM {value}", {
                "name": sql.Literal(ours), "value": noted_value(self.schema, ours, "u")})  # fmt: skip
            if theirs == self.schema[table].names["email"]:
                # Absorbed rows of one table are told apart by spaces, which no key has.
                value = compose("{value} || repeat(' ', r.number::integer)", {"value": value})
            updates.append(
                compose("{c} = CASE WHEN {differs} THEN {value} ELSE p.{c} END", {"c": sql.Identifier(theirs), "differs": differs, "value": value})
            )
            differing.append(differs)
        return self.schema.compose(
            _WRITE, people=table, name=sql.Literal(table), updates=comma(updates), changed=sql.SQL(" OR ").join(differing)
        )

    # The triggers

    def _trigger(self, table: str):
        schema = self.schema
        if table == "users":
            return schema.compose(
                _USERS_TRIGGER, noted_old=noted(schema, "OLD"), old_key=self.key("users", "OLD"), new_key=self.key("users", "NEW"),
                lock_found=lock_found(schema.compose(_WHOSE_ROW), "i.source_table", "uu_table"),
                write_alone=sql.Composed([self._write_alone(name) for name in _mapping.PEOPLE]),
                erase=schema.compose(_ERASE, heir=heir(schema, sql.SQL("true"))), settle=_settle("uu_keys"),
            )
        if table == "user_role_assignments":
            return schema.compose(_ROLES_TRIGGER)
        if table == "studio_ownership":
            return schema.compose(_OWNERSHIP_TRIGGER, heir=heir(schema, sql.SQL("true")))
        if table == "_UserFavorites":
            return schema.compose(_FAVOURITES_TRIGGER, **self._firsts())
        if table == "new_bookings":
            return self._bookings_trigger()
        return self._credentials_trigger(table)

    def _columns(self, right: str) -> list[tuple[object, object, object]]:
        """Return (legacy column, its value from NEW, the same column of NEW) of a row for row copy, back to front."""
        left, unused = _mapping.ROW_COPIES[right]
        return [
            (sql.Identifier(theirs), self._value(self.schema[left].columns[theirs], compose("NEW.{c}", {"c": sql.Identifier(ours)})), sql.Identifier(ours))
            for ours, theirs in self.schema.row_copy(right)
        ]

    def _credentials_trigger(self, right: str):
        left, unused = _mapping.ROW_COPIES[right]
        columns = self._columns(right)
        return self.schema.compose(
            _CREDENTIALS_TRIGGER, left=left, right=right, theirs=comma(theirs for theirs, unused, other in columns),
            ours=comma(value for unused, value, other in columns),
            updates=comma(compose("{c} = {v}", {"c": theirs, "v": value}) for theirs, value, other in columns), **self._firsts(),
        )

    def _bookings_trigger(self):
        schema = self.schema
        columns = self._columns("new_bookings")
        same = schema.compose(
            "(TG_OP = 'UPDATE' AND NEW.{new_bookings.customerId} = OLD.{new_bookings.customerId}"
            " AND NEW.{new_bookings.customerEmail} = OLD.{new_bookings.customerEmail} AND NEW.{new_bookings.id} = OLD.{new_bookings.id})"
        )
        bookings = schema["new_bookings"]
        updates = {
            bookings.logical_name(ours.string): compose("{c} = CASE WHEN {changed} THEN {v} ELSE b.{c} END", {
                "c": theirs, "v": value, "changed": changed(bookings.columns[ours.string]),
            })
            for theirs, value, ours in columns
        }  # fmt: skip
        customer = schema.compose(
            "{bookings.customerId} = CASE WHEN NEW.{new_bookings.customerId} <> OLD.{new_bookings.customerId} OR {new_key} <> {old_key} THEN uu_customer"
            " ELSE b.{bookings.customerId} END", new_key=self.key("new_bookings", "NEW"), old_key=self.key("new_bookings", "OLD"),
        )
        return schema.compose(
            _BOOKINGS_TRIGGER, old_key=self.key("new_bookings", "OLD"), new_key=self.key("new_bookings", "NEW"),
            new_usable=is_usable(schema.compose("NEW.{new_bookings.customerEmail}")), same=same,
            lock_found=lock_found(sql.SQL(_WHOSE_BOOKING), "i.source_table", "uu_table"),
            same_guest=same_guest(schema, "new_bookings"), updates=comma([*updates.values(), customer]),
            theirs_alone=sql.SQL(_THEIRS_ALONE), changes=comma(update for name, update in updates.items() if name not in ("id", "customerEmail")),
            theirs=comma(theirs for theirs, unused, other in columns), ours=comma(value for unused, value, other in columns),
            settle_old=_settle("uu_keys", bookings=schema.compose("OLD.{new_bookings.id}")),
            settle_new=_settle("uu_keys", bookings=schema.compose("NEW.{new_bookings.id}")), **self._firsts(),
        )


def _settle(keys: str, users: str = "ARRAY['']", bookings=None):
    """Bring in order what leans on these keys.

    Args:
        keys: a variable with a list.
        users: expression of the list of the users whose own write this is, and of those who are seen to otherwise; '' is nobody.
        bookings: composed expression of a booking's id.
    """
    return compose(
        "PERFORM unified_user_journal.recompute({keys}, '{}', ARRAY[{bookings}]::text[], '{}', '{}', {users}, true, {moment});",
        {"moment": sql.SQL(MOMENT), "keys": sql.SQL(keys), "bookings": bookings or sql.SQL(""), "users": sql.SQL(users)},
    )
