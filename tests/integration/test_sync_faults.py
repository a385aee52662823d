# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Faults that sync must survive, each injected on purpose, judged by the same oracle as the histories."""

from __future__ import annotations

import contextlib
import os
import threading
import time

import psycopg2
import pytest

from tests.integration.sync_subject import ROLE, SyncSubject, Witness
from tests.oracle.maker import Maker
from tests.oracle.model import Policies, derived_id
from tests.oracle.schema import FULL

RETRYABLE = ("40001", "40P01")
BOTH = pytest.mark.parametrize("direction", ["forward", "both"])
ISOLATION = pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])


@pytest.fixture(scope="module")
def subject(cluster):
    """One database for all: every test starts it over."""
    with contextlib.closing(SyncSubject(cluster, f"faults_{os.getpid()}", FULL, "camel")) as made:
        yield made


def people() -> Maker:
    """A joined person o/c, two customers, two studios, bookings of every kind."""
    maker = Maker().owner("o", "joined@x.de", name="Olga", password="o", emailVerified=1).owner("p", "p@x.de", name="Paul")
    maker.customer("c", "Joined@x.de", name="Clara", password="c").customer("a", "a@x.de", name="Anna").customer("b", "b@x.de", name="Bo")
    maker.studio("s", "o").studio("t", "p").row("_CustomerFavorites", A="c", B="t").row("sessions", id="z", sessionToken="z", userId="o")
    return maker.booking("1", "joined@x.de", "c").booking("2", "a@x.de").booking("3", "guest@x.de", customerName="Guest").booking("4", "b@x.de", "b")


def judge(subject: SyncSubject, direction: str) -> list[str]:
    """What the oracle finds wrong now."""
    if direction == "forward":
        return subject.forward_differences(subject.state())
    return Witness(subject).look(None)


class Session:
    """A session whose statements may have to wait: each runs in a thread, and can be waited for."""

    def __init__(self, subject: SyncSubject, role: str | None = ROLE) -> None:
        self.subject, self.connection = subject, subject.connect(role)
        self.pid = self.connection.get_backend_pid()
        self.error: psycopg2.Error | None = None
        self._thread: threading.Thread | None = None

    def send(self, text: str, parameters: tuple = ()) -> Session:
        """Execute, without waiting for the answer."""
        self.wait()
        self._thread = threading.Thread(target=self._execute, args=(text, parameters), daemon=True)
        self._thread.start()
        return self

    def _execute(self, text: str, parameters: tuple) -> None:
        try:
            with self.connection.cursor() as cursor:
                cursor.execute(text, parameters)
        except psycopg2.Error as error:
            self.error = error

    def wait(self) -> psycopg2.Error | None:
        """Wait for the answer; returns the error, if any came since the last time."""
        if self._thread:
            self._thread.join(60)
            assert not self._thread.is_alive(), "a session waits for ever"
        error, self.error = self.error, None
        return error

    def do(self, text: str, parameters: tuple = ()) -> psycopg2.Error | None:
        """Execute and wait."""
        return self.send(text, parameters).wait()

    def is_busy(self) -> bool:
        """Whether a statement is under way."""
        return self._thread is not None and self._thread.is_alive()

    def settle(self) -> None:
        """Wait until the statement is done, or waits for a lock."""
        for _attempt in range(1000):
            if not self.is_busy():
                return
            with self.subject.connection.cursor() as cursor:
                cursor.execute("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", (self.pid,))
                if cursor.fetchone()[0]:
                    return
            time.sleep(0.01)
        raise AssertionError("the session neither ends nor waits")

    def close(self) -> None:
        """End the session."""
        self.wait()
        self.connection.close()


@pytest.fixture
def sessions(subject):
    """Makes sessions that end with the test, before its database does."""
    with contextlib.ExitStack() as stack:
        yield lambda role=ROLE: stack.enter_context(contextlib.closing(Session(subject, role)))


def race(first: Session, second: Session, one: list[str], other: list[str], isolation: str) -> list[str]:
    """Let two transactions meet: they take turns, and each is repeated as long as the database asks for it.

    Returns:
        The errors that repeating does not help against.
    """
    scripts = {
        session: [f"BEGIN ISOLATION LEVEL {isolation}", "SELECT 1 FROM customers", *statements, "COMMIT"]
        for session, statements in ((first, one), (second, other))
    }
    step, found = dict.fromkeys(scripts, 0), []
    give_up = time.monotonic() + 60
    while scripts:
        assert time.monotonic() < give_up, "two transactions never come to an end"
        for session, script in list(scripts.items()):
            if session.is_busy():
                time.sleep(0.002)
                continue
            error = session.wait()
            if error is not None:
                session.do("ROLLBACK")
                step[session] = 0
                if error.pgcode not in RETRYABLE:
                    found.append(f"{error.pgcode} {error}")
                    del scripts[session]
            elif step[session] == len(script):
                del scripts[session]
            else:
                session.send(script[step[session]]).settle()
                step[session] += 1
    return found


RACES = {
    "delete the customer and rename the owner": (["DELETE FROM customers WHERE id = 'c'"], ["UPDATE studio_owners SET name = 'New' WHERE id = 'o'"]),
    "rename the owner and delete the customer": (["UPDATE studio_owners SET name = 'New' WHERE id = 'o'"], ["DELETE FROM customers WHERE id = 'c'"]),
    "delete and update one row": (["DELETE FROM customers WHERE id = 'a'"], ["UPDATE customers SET name = 'New' WHERE id = 'a'"]),
    "part and rename": (["""UPDATE customers SET email = 'parted@x.de' WHERE id = 'c'"""], ["UPDATE studio_owners SET name = 'New' WHERE id = 'o'"]),
    "two come to one key": (["""UPDATE customers SET email = 'new@x.de' WHERE id = 'a'"""], ["""UPDATE studio_owners SET email = 'New@x.de' WHERE id = 'p'"""]),
    "a customer registers with the address that its owner leaves": (
        ["UPDATE studio_owners SET email = 'moved@x.de' WHERE id = 'p'"],
        ["""INSERT INTO customers (id, name, email, "updatedAt") VALUES ('n', 'New', 'P@x.de', now())"""],
    ),
    "a guest registers and books once more": (
        ["""INSERT INTO customers (id, name, email, "updatedAt") VALUES ('n', 'New', 'guest@x.de', now())"""],
        ["""INSERT INTO bookings (id, "studioId", "customerName", "customerEmail", "customerPhone", "preferredDate", "preferredTime", "updatedAt")
            VALUES ('9', 's', 'G', 'Guest@x.de', '', '', '', now())"""],
    ),
    "two guests book for the first time under one address": tuple(
        [f"""INSERT INTO bookings (id, "studioId", "customerName", "customerEmail", "customerPhone", "preferredDate", "preferredTime", "updatedAt")
             VALUES ('{n}', 's', 'G{n}', 'first@x.de', '', '', '', now())"""]
        for n in (8, 9)
    ),
    "the last booking goes and another comes": (
        ["DELETE FROM bookings WHERE id = '3'"],
        ["""INSERT INTO bookings (id, "studioId", "customerName", "customerEmail", "customerPhone", "preferredDate", "preferredTime", "updatedAt")
            VALUES ('9', 's', 'G', 'Guest@x.de', '', '', '', now())"""],
    ),
    "a studio closes while somebody books there": (
        ["DELETE FROM studios WHERE id = 't'"],
        ["""INSERT INTO bookings (id, "studioId", "customerName", "customerEmail", "customerPhone", "preferredDate", "preferredTime", "updatedAt")
            VALUES ('9', 's', 'G', 'guest@x.de', '', '', '', now())""", """UPDATE bookings SET status = 'CANCELLED' WHERE id = '1'"""],
    ),
    "an owner goes while his studio changes hands": (
        ["""UPDATE studios SET "ownerId" = 'p' WHERE id = 's'"""],
        ["""UPDATE studios SET "ownerId" = NULL WHERE "ownerId" = 'o'""", "DELETE FROM studio_owners WHERE id = 'o'"],
    ),
    "the same two rows in opposite order": (
        ["UPDATE customers SET name = '1' WHERE id = 'a'", "UPDATE customers SET name = '2' WHERE id = 'b'"],
        ["UPDATE customers SET name = '3' WHERE id = 'b'", "UPDATE customers SET name = '4' WHERE id = 'a'"],
    ),
    "two identities in opposite order, by different tables": (
        ["UPDATE studio_owners SET name = '1' WHERE id = 'o'", "UPDATE bookings SET \"customerEmail\" = 'a@x.de' WHERE id = '3'"],
        ["UPDATE customers SET email = 'a2@x.de' WHERE id = 'a'", "UPDATE customers SET name = '2' WHERE id = 'c'"],
    ),
}  # fmt: skip


@pytest.mark.one_major
@pytest.mark.parametrize("name", RACES)
@ISOLATION
@BOTH
def test_two_transactions_that_meet_leave_the_right_state(subject, sessions, name, isolation, direction):
    subject.start(people().legacy, Policies(), direction)
    one, other = RACES[name]
    refused = race(sessions(), sessions(), one, other, isolation)
    # What the application's own statement meets is its own affair: a studio that is gone, a row that is there.
    assert [error for error in refused if "function" in error] == []
    assert judge(subject, direction) == []


UNIFIED_RACES = {
    "both sides rename one person": (["UPDATE customers SET name = 'Old side' WHERE id = 'a'"], ["UPDATE users SET name = 'New side' WHERE id = 'a'"]),
    "one side erases, the other renames": (["DELETE FROM customers WHERE id = 'a'"], ["UPDATE users SET name = 'New side' WHERE id = 'a'"]),
    "one side renames, the other erases": (
        ["UPDATE customers SET name = 'Old side' WHERE id = 'a'"],
        ["""DELETE FROM new_bookings WHERE "customerId" = 'a'""", "DELETE FROM users WHERE id = 'a'"],
    ),
    "both sides sign up one address": (
        ["""INSERT INTO customers (id, name, email, "updatedAt") VALUES ('n', 'New', 'New@x.de', now())"""],
        ["""INSERT INTO users (id, name, email, "updatedAt") VALUES ('m', 'New', 'new@x.de', now())""",
         """INSERT INTO user_role_assignments (id, "userId", role) VALUES ('r', 'm', 'CUSTOMER')"""],
    ),
    "both sides change one booking": (
        ["UPDATE bookings SET status = 'CANCELLED' WHERE id = '1'"],
        ["UPDATE new_bookings SET status = 'CONFIRMED' WHERE id = '1'"],
    ),
    "both sides delete one booking": (["DELETE FROM bookings WHERE id = '3'"], ["DELETE FROM new_bookings WHERE id = '3'"]),
    "a guest signs in while he books on the other side": (
        ["""INSERT INTO bookings (id, "studioId", "customerName", "customerEmail", "customerPhone", "preferredDate", "preferredTime", "updatedAt")
            VALUES ('9', 's', 'G', 'Guest@x.de', '', '', '', now())"""],
        ["""UPDATE users SET password = 'new' WHERE email = 'guest@x.de'"""],
    ),
    "both sides swap addresses": (
        [f"UPDATE customers SET email = '{email}@x.de' WHERE id = '{one}'" for email, one in ("qa", "ab", "ba")],
        [f"UPDATE users SET email = '{email}@x.de' WHERE id = '{one}'" for email, one in ("wb", "ba", "ab")],
    ),
    "both sides link one account": (
        ["""INSERT INTO accounts (id, "userId", type, provider, "providerAccountId") VALUES ('x', 'p', 'oauth', 'google', '1')"""],
        ["""INSERT INTO new_accounts (id, "userId", type, provider, "providerAccountId") VALUES ('y', 'a', 'oauth', 'google', '1')"""],
    ),
    "both sides favour one studio": (
        ["""INSERT INTO "_CustomerFavorites" ("A", "B") VALUES ('a', 's')"""],
        ["""INSERT INTO "_UserFavorites" ("A", "B") VALUES ('s', 'a')"""],
    ),
    "both sides give a studio away": (
        ["""UPDATE studios SET "ownerId" = 'p' WHERE id = 's'"""],
        ["""DELETE FROM studio_ownership WHERE "studioId" = 's'"""],
    ),
}  # fmt: skip


@pytest.mark.one_major
@pytest.mark.parametrize("name", UNIFIED_RACES)
@pytest.mark.parametrize("turn", [1, -1])
@ISOLATION
def test_both_sides_meet_and_agree(subject, sessions, name, turn, isolation):
    subject.start(people().legacy, Policies(), "both")
    one, other = UNIFIED_RACES[name][::turn]
    refused = race(sessions(), sessions(), one, other, isolation)
    assert [error for error in refused if "function" in error] == []
    witness = Witness(subject)
    witness.leeway.legacy_decided |= {"s"}
    assert witness.look(None) == []


def test_other_columns_of_a_booking_are_changed_on_both_sides_at_once(subject, sessions):
    """The status waits for the other side's transaction, and then finds a newer row than its statement began with."""
    subject.start(people().legacy, Policies(), "both")
    # From then on there is a lock row, and the quickest way is taken.
    subject.execute("UPDATE bookings SET message = 'before' WHERE id = '4'")
    one, other = sessions(), sessions()
    assert other.do("BEGIN") is None and other.do("""UPDATE new_bookings SET "customerPhone" = '0171' WHERE id = '4'""") is None
    one.send("UPDATE bookings SET status = 'CONFIRMED' WHERE id = '4'").settle()
    assert one.is_busy() and other.do("COMMIT") is None and one.wait() is None
    with subject.connection.cursor() as cursor:
        cursor.execute("""SELECT 1, status::text, "customerPhone" FROM bookings WHERE id = '4'
                          UNION ALL SELECT 2, status::text, "customerPhone" FROM new_bookings WHERE id = '4' ORDER BY 1""")
        assert cursor.fetchall() == [(1, "CONFIRMED", "0171"), (2, "CONFIRMED", "0171")]
    assert Witness(subject).look(None) == []


GAINS = {
    "his role": """INSERT INTO user_role_assignments (id, "userId", role) VALUES ('r', 'm', '{role}')""",
    "a row on the legacy side": """INSERT INTO {people} (id, name, email, "updatedAt") VALUES ('n', 'New', 'M@x.de', now())""",
}
BELONGINGS = {
    "CUSTOMER": (
        "customers",
        """INSERT INTO "_UserFavorites" ("A", "B") VALUES ('s', 'm')""",
        """SELECT count(*) FROM "_CustomerFavorites" WHERE "A" IN ('m', 'n')""",
    ),
    "STUDIO_OWNER": (
        "studio_owners",
        """INSERT INTO new_sessions (id, "sessionToken", "userId", expires) VALUES ('x', 'token', 'm', now())""",
        "SELECT count(*) FROM sessions WHERE id = 'x'",
    ),
}


@pytest.mark.one_major
@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("role", BELONGINGS)
@pytest.mark.parametrize("turn", [1, -1])
@ISOLATION
def test_what_somebody_is_given_while_he_gains_a_legacy_row_gets_there(subject, sessions, role, gain, turn, isolation):
    subject.start(people().legacy, Policies(), "both")
    table, belonging, found = BELONGINGS[role]
    assert sessions().do("""INSERT INTO users (id, name, email, "updatedAt") VALUES ('m', 'New', 'm@x.de', now())""") is None
    one, other = [[belonging], [GAINS[gain].format(role=role, people=table)]][::turn]
    assert race(sessions(), sessions(), one, other, isolation) == []
    with subject.connection.cursor() as cursor:
        cursor.execute(found)
        assert cursor.fetchone()[0] == 1


_COMES = """INSERT INTO studio_ownership (id, "userId", "studioId", "acceptedAt", "isPrimary") VALUES ('n', 'p', 's', now(), {})"""
HEIRS = {
    "the owner leaves while another comes": ("""DELETE FROM studio_ownership WHERE "studioId" = 's' AND "userId" = 'o'""", _COMES.format("false")),
    "the owner is erased while another comes": (
        """DELETE FROM new_bookings WHERE "customerId" = 'o'; DELETE FROM users WHERE id = 'o'""", _COMES.format("false")
    ),
    "his legacy row goes while another comes": ("DELETE FROM studio_owners WHERE id = 'o'", _COMES.format("false")),
    "the owner steps back for another": (
        """UPDATE studio_ownership SET "isPrimary" = false WHERE "studioId" = 's' AND "userId" = 'o'""", _COMES.format("true")
    ),
}  # fmt: skip


@pytest.mark.one_major
@pytest.mark.parametrize("name", HEIRS)
@pytest.mark.parametrize("turn", [1, -1])
@ISOLATION
def test_a_studio_of_two_who_meet_has_the_owner_it_should(subject, sessions, name, turn, isolation):
    subject.start(people().legacy, Policies(), "both")
    one, other = [[statement] for statement in HEIRS[name][::turn]]
    assert race(sessions(), sessions(), one, other, isolation) == []
    with subject.connection.cursor() as cursor:
        cursor.execute("""SELECT "ownerId" FROM studios WHERE id = 's'""")
        assert cursor.fetchone()[0] == "p"


@pytest.mark.one_major
@BOTH
def test_two_customers_swap_their_addresses(subject, direction):
    subject.start(people().legacy, Policies(), direction)
    with subject.application().transaction():
        for email, customer in (("swap@x.de", "a"), ("a@x.de", "b"), ("b@x.de", "a")):
            subject.application().update("customers", {"email": email}, id=customer)
    state = subject.state()
    assert {user: row["email"] for user, row in state.unified.tables["users"].items() if user in "ab"} == {"a": "b@x.de", "b": "a@x.de"}
    # A booking by customer stays with him, one by address goes with the address.
    assert {one: state.unified.tables["new_bookings"][one]["customerId"] for one in "24"} == {"2": "b", "4": "b"}
    assert judge(subject, direction) == []


@pytest.mark.one_major
def test_two_users_swap_their_addresses(subject):
    subject.start(people().legacy, Policies(), "both")
    with subject.application().transaction():
        for email, user in (("swap@x.de", "a"), ("a@x.de", "b"), ("b@x.de", "a")):
            subject.application().update("users", {"email": email}, id=user)
    state = subject.state()
    assert {row["id"]: row["email"] for row in state.legacy["customers"] if row["id"] in "ab"} == {"a": "b@x.de", "b": "a@x.de"}
    # Nobody's booking moved: the unified side changed an address, not a booking.
    assert {one: state.unified.tables["new_bookings"][one]["customerId"] for one in "24"} == {"2": "a", "4": "b"}
    assert next(row for row in state.legacy["bookings"] if row["id"] == "2")["customerId"] == "a"
    assert judge(subject, "both") == []


@pytest.mark.one_major
@ISOLATION
def test_an_old_snapshot_is_answered_with_a_serialization_failure(subject, sessions, isolation):
    subject.start(people().legacy, Policies(), "forward")
    early, late = sessions(), sessions()
    assert early.do(f"BEGIN ISOLATION LEVEL {isolation}") is None
    assert early.do("SELECT 1 FROM customers") is None
    assert late.do("UPDATE studio_owners SET name = NULL, image = 'late' WHERE id = 'o'") is None
    error = early.do("UPDATE customers SET name = 'early' WHERE id = 'c'")
    if error is None:
        error = early.do("COMMIT")
    assert (error and error.pgcode) in ((None,) if isolation == "READ COMMITTED" else (None, "40001"))
    if error is not None:
        early.do("ROLLBACK")
        assert early.do("UPDATE customers SET name = 'early' WHERE id = 'c'") is None
    assert subject.state().unified.tables["users"]["o"]["name"] == "early"
    assert judge(subject, "forward") == []


def triggers(subject) -> list[tuple[str, str]]:
    """Every (table, trigger) of the application's schema that is not a foreign key's."""
    with subject.connection.cursor() as cursor:
        cursor.execute("SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2")
        return cursor.fetchall()


DAMAGES = ["DROP TRIGGER {name} ON {table}", "ALTER TABLE {table} DISABLE TRIGGER {name}", "ALTER TABLE {table} ENABLE TRIGGER {name}"]


@pytest.mark.one_major
@pytest.mark.parametrize("damage", DAMAGES)
@BOTH
def test_a_trigger_that_is_not_as_it_should_be_is_named(subject, damage, direction):
    subject.start(people().legacy, Policies(), direction)
    assert subject.status()["missing"] == []
    assert subject.status()["direction"] == direction
    assert subject.install(direction) is False
    unnoticed = []
    for table, name in triggers(subject):
        subject.execute(damage.format(table=table, name=f'"{name}"'))
        if not any(name in str(missing) and table.strip('"') in str(missing) for missing in subject.status()["missing"]):
            unnoticed.append((table, name))
    assert unnoticed == []
    assert subject.install(direction) is True
    assert subject.status()["missing"] == []


@pytest.mark.one_major
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_what_was_written_without_a_trigger_is_carried_when_it_is_made_again(subject, direction):
    subject.start(people().legacy, Policies(), "forward")
    for table in ("customers", "bookings", "users"):
        subject.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    subject.execute("""UPDATE customers SET name = 'Unseen' WHERE id IN ('a', 'b'); DELETE FROM bookings WHERE id = '3';
                       UPDATE users SET image = 'Wrong' WHERE id = 'o'""")
    assert judge(subject, "forward") != []
    subject.install(direction)
    assert judge(subject, direction) == []


@BOTH
def test_replicated_writes_are_carried(subject, sessions, direction):
    subject.start(people().legacy, Policies(), direction)
    subscriber = sessions(None)
    for statement in (
        "SET session_replication_role = replica",
        """INSERT INTO customers (id, name, email, "updatedAt") VALUES ('n', 'New', 'P@x.de', now())""",
        "UPDATE customers SET email = 'elsewhere@x.de' WHERE id = 'c'",
        "UPDATE bookings SET status = 'CONFIRMED'",
        "DELETE FROM bookings WHERE id = '3'",
    ):
        assert subscriber.do(statement) is None
    assert "n" in {source for _table, source in subject.state().unified.identity_map}
    assert judge(subject, direction) == []


@BOTH
def test_temporary_tables_named_like_the_applications_are_not_taken_for_them(subject, sessions, direction):
    subject.start(people().legacy, Policies(), direction)
    session = sessions()
    for table in ("users", "customers", "studio_owners", "bookings", "new_bookings", "user_role_assignments", "identity_map", "quarantine", "studios"):
        assert session.do(f"CREATE TEMP TABLE {table} (LIKE public.customers)") is None
    assert session.do("""INSERT INTO public.customers (id, name, email, "updatedAt") VALUES ('n', 'New', 'P@x.de', now())""") is None
    assert session.do("""UPDATE public.bookings SET "customerEmail" = 'other@x.de'""") is None
    assert session.do("DELETE FROM public.customers WHERE id = 'c'") is None
    assert judge(subject, direction) == []


@pytest.mark.one_major
@pytest.mark.parametrize("table", ["studio_owners", "customers", "accounts", "sessions", "bookings", '"_CustomerFavorites"', "studios"])
@BOTH
def test_truncate_of_a_synchronised_table_is_refused_with_what_to_do(subject, direction, table):
    subject.start(people().legacy, Policies(), direction)
    before = subject.state()
    with pytest.raises(psycopg2.Error, match=r"(?is)failed to truncate.*DELETE FROM"):
        subject.execute(f"TRUNCATE {table} CASCADE")
    after = subject.state()
    assert (after.legacy.tables, after.unified.tables) == (before.legacy.tables, before.unified.tables)


@pytest.mark.one_major
@pytest.mark.parametrize("table", ["users", "new_bookings", "user_role_assignments", "studio_ownership", "new_accounts", "new_sessions", '"_UserFavorites"'])
def test_truncate_of_the_unified_side_is_refused_while_it_is_carried_back(subject, table):
    subject.start(people().legacy, Policies(), "both")
    with pytest.raises(psycopg2.Error, match=r"(?is)failed to truncate.*DELETE FROM"):
        subject.execute(f"TRUNCATE {table} CASCADE")


@BOTH
def test_the_application_has_no_rights_on_the_journal(subject, direction):
    subject.start(people().legacy, Policies(), direction)
    with subject.connection.cursor() as cursor:
        cursor.execute("SELECT has_schema_privilege(%s, 'unified_user_journal', 'USAGE')", (ROLE,))
        assert cursor.fetchone() == (False,)
        cursor.execute(
            """SELECT proname FROM pg_proc AS p WHERE pronamespace = 'unified_user_journal'::regnamespace
               AND prosecdef AND NOT coalesce(array_to_string(proconfig, ',') ~ 'search_path=.*pg_temp"?$', false)
               AND prorettype = 'trigger'::regtype AND NOT coalesce(array_to_string(proconfig, ',') ~ 'search_path=.*pg_temp"?,', false)"""
        )
        assert cursor.fetchall() == []
    with subject.application().transaction():
        subject.application().update("customers", {"name": "By the application"}, id="a")
    assert subject.state().unified.tables["users"]["a"]["name"] == "By the application"


@pytest.mark.one_major
def test_without_sync_nothing_of_it_is_left(subject):
    subject.start(people().legacy, Policies(), "both")
    with subject.sync() as sync:
        sync.remove()
    assert triggers(subject) == []
    with subject.application().transaction():
        subject.application().update("customers", {"name": "Alone"}, id="a")
    assert subject.state().unified.tables["users"]["a"]["name"] == "Anna"
    assert subject.status()["direction"] is None


# --- what random histories found once -------------------------------------------------------------------------------

MERGE = Policies(duplicate_identities="merge")
GUEST = derived_id("guest:guest@x.de")

# Name -> policies, what there is beside `people`, statements; judged after each.
FOUND = {
    "a foreign key makes a booking unresolvable": (
        Policies(), lambda maker: maker.booking("5", "nobody", "a"), ["DELETE FROM customers WHERE id = 'a'"]),
    "several bookings become unresolvable alike": (
        Policies(), lambda maker: maker.booking("5", "guest@x.de"), ["""UPDATE bookings SET "customerEmail" = 'nobody'"""]),
    "a person's useless address is that of a booking in quarantine": (
        Policies(unresolvable_bookings="quarantine"), lambda maker: maker.booking("5", ""),
        ["UPDATE customers SET email = '' WHERE id = 'a'", "UPDATE customers SET email = 'a@x.de' WHERE id = 'a'"]),
    "a rekeyed customer changes his address": (
        Policies(id_collisions="rekey"), lambda maker: maker.customer("o", "same@x.de"), ["UPDATE customers SET email = 'other@x.de' WHERE id = 'o'"]),
    "an earlier duplicate sends an owner with accounts to quarantine": (
        Policies(), lambda maker: maker.row("accounts", id="q", userId="p", provider="google", providerAccountId="1").owner("e", "e@x.de", emailVerified=1),
        ["UPDATE studio_owners SET email = 'P@x.de' WHERE id = 'e'", "UPDATE studio_owners SET email = 'e@x.de' WHERE id = 'e'"]),
    "a second customer of one key": (
        MERGE, lambda maker: maker.row("_CustomerFavorites", A="a", B="s"),
        ["""INSERT INTO customers (id, name, email, "updatedAt") VALUES ('n', 'New', 'A@x.de', now())"""]),
    "one of two owners of a key goes with what he has": (
        MERGE, lambda maker: maker.owner("e", "P@x.de").row("sessions", id="y", sessionToken="y", userId="e"), ["DELETE FROM studio_owners WHERE id = 'e'"]),
    "one of two customers of a key goes with his favourites": (
        MERGE, lambda maker: maker.customer("n", "A@x.de").row("_CustomerFavorites", A="a", B="s"), ["DELETE FROM customers WHERE id IN ('a', 'b')"]),
    "an account and a session have one id": (
        Policies(), lambda maker: maker.row("accounts", id="z", userId="p", provider="google", providerAccountId="1"),
        ["UPDATE accounts SET access_token = 'new' WHERE id = 'z'", """UPDATE accounts SET "userId" = 'o' WHERE id = 'z'""",
         "DELETE FROM accounts WHERE id = 'z'"]),
    "a customer comes to a guest's address, and leaves it": (
        Policies(), lambda maker: maker,
        ["UPDATE customers SET email = 'guest@x.de' WHERE id = 'a'", "UPDATE customers SET email = 'else@x.de' WHERE id = 'a'"]),
    "a stranger signs up with a guest's address, and leaves it": (
        Policies(), lambda maker: maker,
        ["""INSERT INTO customers (id, name, email, "updatedAt") VALUES ('n', 'New', 'guest@x.de', now())""",
         "UPDATE customers SET email = 'else@x.de' WHERE id = 'n'"]),
}  # fmt: skip


@pytest.mark.one_major
@pytest.mark.parametrize("name", FOUND)
@BOTH
def test_what_a_legacy_history_found(subject, sessions, name, direction):
    policies, more, statements = FOUND[name]
    subject.start(more(people()).legacy, policies, direction)
    session = sessions()
    for statement in statements:
        assert session.do(statement) is None
        assert judge(subject, direction) == [], statement


FOUND_WITH_BOTH = {
    "a pinned booking of a guest without others becomes unresolvable": (Policies(), [
        f"""UPDATE new_bookings SET "customerId" = '{GUEST}' WHERE id = '2'""", "DELETE FROM new_bookings WHERE id = '3'",
        """UPDATE bookings SET "customerEmail" = 'nobody'"""]),
    "a guest of another role becomes a customer": (Policies(guest_role="GUEST"), [f"UPDATE users SET email = 'known@x.de' WHERE id = '{GUEST}'"]),
    "a guest's role is scoped to a studio": (Policies(), [
        f"""UPDATE user_role_assignments SET "studioId" = 's' WHERE "userId" = '{GUEST}'""", """UPDATE users SET "updatedAt" = '2023-11-14'"""]),
    "every user is touched, a rekeyed one among them": (Policies(id_collisions="rekey"), ["""UPDATE users SET "updatedAt" = '1969-11-14'"""]),
    "a rekeyed customer becomes an owner, too": (Policies(id_collisions="rekey"), [
        f"""INSERT INTO user_role_assignments (id, "userId", role) SELECT 'n', u.id, 'STUDIO_OWNER' FROM users AS u WHERE u.id <> '{GUEST}'
            AND u.id NOT IN (SELECT id FROM customers UNION SELECT id FROM studio_owners)"""]),
    "a rekeyed customer becomes an owner, too, and changes his address": (Policies(id_collisions="rekey"), [
        f"""INSERT INTO user_role_assignments (id, "userId", role) SELECT 'n', u.id, 'STUDIO_OWNER' FROM users AS u WHERE u.id <> '{GUEST}'
            AND u.id NOT IN (SELECT id FROM customers UNION SELECT id FROM studio_owners)""",
        "UPDATE users SET email = 'moved@x.de' WHERE id = (SELECT id FROM studio_owners WHERE id NOT IN ('o', 'p'))"]),
    "a customer owns a studio without an owner, and becomes one": (Policies(), [
        "DELETE FROM studio_owners WHERE id = 'o'",
        """INSERT INTO studio_ownership (id, "userId", "studioId", "acceptedAt") VALUES ('n', 'a', 's', now())""",
        """INSERT INTO user_role_assignments (id, "userId", role) VALUES ('n', 'a', 'STUDIO_OWNER')"""]),
    "an owner has a phone of blanks": (Policies(), [
        "UPDATE users SET phone = '   ' WHERE id = 'p'",
        """UPDATE bookings SET "customerEmail" = 'p@x.de' WHERE id = '3'""", "DELETE FROM bookings WHERE id = '3'"]),
}  # fmt: skip


@pytest.mark.one_major
@pytest.mark.parametrize("name", FOUND_WITH_BOTH)
def test_what_a_history_of_both_sides_found(subject, sessions, name):
    policies, statements = FOUND_WITH_BOTH[name]
    maker = people()
    if policies.id_collisions == "rekey":
        maker.customer("o", "same@x.de", updatedAt=1)
    subject.start(maker.legacy, policies, "both")
    witness, session = Witness(subject), sessions()
    # Whose role was scoped to a studio has none for everything; and statements here are not noted.
    witness.leeway.revoked |= {(user, "CUSTOMER") for user in (GUEST, "o")} if "scoped" in name else set()
    for statement in statements:
        assert session.do(statement) is None
        users = subject.state().unified.tables["users"]
        assert witness.look(None) == [], statement
    if "updatedAt" in statements[-1]:
        assert len({row["updatedAt"] for row in users.values()}) == 1
    if "blanks" in name:
        assert users["p"]["phone"] == "   "
    if "address" in name:
        assert [row["email"] for table in ("customers", "studio_owners") for row in subject.state().legacy[table]].count("moved@x.de") == 2
        assert not subject.state().unified.quarantine


# --- the contract's sentences -----------------------------------------------------------------------------------------


@pytest.mark.one_major
@BOTH
def test_studios_and_other_peoples_bookings_survive_their_owner(subject, direction):
    subject.start(people().legacy, Policies(), direction)
    with subject.application().transaction():
        subject.application().delete("studio_owners", id="o")
    state = subject.state()
    assert {row["id"]: row["ownerId"] for row in state.legacy["studios"]} == {"s": None, "t": "p"}
    assert {row["id"] for row in state.legacy["bookings"]} == set(state.unified.tables["new_bookings"]) == {"1", "2", "3", "4"}
    assert judge(subject, direction) == []


@pytest.mark.one_major
def test_an_erased_owners_studio_passes_to_the_next(subject):
    subject.start(people().legacy, Policies(), "both")
    application = subject.application()
    with application.transaction():
        application.insert("studio_ownership", {"id": "next", "userId": "p", "studioId": "s", "acceptedAt": 1})
    with application.transaction():
        application.delete("new_bookings", customerId="o")
        application.delete("users", id="o")
    state = subject.state()
    assert {row["id"]: row["ownerId"] for row in state.legacy["studios"]} == {"s": "p", "t": "p"}
    assert {row["id"] for row in state.legacy["studio_owners"]} == {"p"} and {row["id"] for row in state.legacy["customers"]} == {"a", "b"}
    assert judge(subject, "both") == []


@pytest.mark.one_major
@BOTH
@pytest.mark.parametrize("table", ["customers", "bookings", "studio_owners", "accounts", "sessions", "studios"])
def test_an_update_that_changes_nothing_writes_nothing(subject, direction, table):
    subject.start(people().legacy, Policies(), direction)

    def versions():
        found = []
        for unified in ("users", "user_role_assignments", "studio_ownership", "new_bookings", "new_accounts", "new_sessions", '"_UserFavorites"'):
            with subject.connection.cursor() as cursor:
                cursor.execute(f"SELECT xmin::text, ctid::text, t::text FROM {unified} AS t ORDER BY 3")
                found.append(cursor.fetchall())
        return found

    before = versions()
    with subject.application().transaction():
        subject.application().execute(f"UPDATE {table} SET id = id")
    assert versions() == before


@pytest.mark.one_major
@BOTH
def test_what_an_applications_own_trigger_writes_is_carried(subject, direction):
    """Depth of triggers is no guard: such a write comes at depth 2."""
    subject.start(people().legacy, Policies(), direction)
    subject.execute(
        """CREATE FUNCTION public.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             UPDATE public.customers SET name = 'Touched', "updatedAt" = '2030-01-01' WHERE id = NEW."customerId"; RETURN NULL; END $$;
           CREATE TRIGGER touch AFTER UPDATE ON public.bookings FOR EACH ROW EXECUTE FUNCTION public.touch()"""
    )
    with subject.application().transaction():
        subject.application().update("bookings", {"status": "CONFIRMED"}, id="4")
    state = subject.state()
    subject.execute("DROP FUNCTION public.touch() CASCADE")
    assert state.unified.tables["users"]["b"]["name"] == "Touched"
    assert judge(subject, direction) == []


@BOTH
def test_merge_and_a_caught_exception_are_writes_like_others(subject, sessions, direction):
    subject.start(people().legacy, Policies(), direction)
    session = sessions()
    assert session.do(
        """MERGE INTO customers AS c USING (VALUES ('a', 'merged@x.de'), ('n', 'P@x.de')) AS v (id, email) ON c.id = v.id
           WHEN MATCHED THEN UPDATE SET email = v.email
           WHEN NOT MATCHED THEN INSERT (id, name, email, "updatedAt") VALUES (v.id, 'Merged', v.email, now())"""
    ) is None
    assert session.do(
        """DO $$ BEGIN
             UPDATE customers SET name = 'Never' WHERE id = 'b';
             INSERT INTO customers (id, name, email, "updatedAt") VALUES ('b', 'Never', 'never@x.de', now());
           EXCEPTION WHEN unique_violation THEN UPDATE customers SET phone = '1' WHERE id = 'b'; END $$"""
    ) is None
    users = subject.state().unified.tables["users"]
    assert (users["a"]["email"], users["b"]["name"], users["b"]["phone"]) == ("merged@x.de", "Bo", "1")
    assert judge(subject, direction) == []


@pytest.mark.one_major
def test_a_changed_primary_key_is_another_person(subject, sessions):
    subject.start(people().legacy, Policies(), "forward")
    session = sessions()
    for table, before, after in (("customers", "b", "renamed"), ("studio_owners", "o", "other"), ("studios", "t", "x")):
        assert session.do(f"UPDATE {table} SET id = '{after}' WHERE id = '{before}'") is None
        assert judge(subject, "forward") == []


@pytest.mark.one_major
@pytest.mark.parametrize("born, table", [("CUSTOMER", "studio_owners"), ("SUPER_ADMIN", "studio_owners"), ("SUPER_ADMIN", "customers")])
def test_a_stranger_does_not_take_over_a_user_born_on_the_unified_side(subject, born, table):
    subject.start(people().legacy, Policies(), "both")
    application = subject.application()
    with application.transaction():
        application.insert("users", {"id": "u", "email": "boss@x.de", "password": "own", "emailVerified": 1, "updatedAt": 0, "primaryRole": born})
        application.insert("user_role_assignments", {"id": "r", "userId": "u", "role": born})
    with application.transaction():
        application.insert(table, {"id": "stranger", "name": "S", "email": "Boss@x.de", "password": "stolen", "updatedAt": 0})
        if table == "studio_owners":
            application.insert("sessions", {"id": "theft", "sessionToken": "theft", "userId": "stranger", "expires": 0})
    state = subject.state()
    assert state.unified.identity_map[table, "stranger"] == "u"
    assert state.unified.tables["users"]["u"]["password"] == "own"
    assert "theft" not in state.unified.tables["new_sessions"]
    assert state.unified.tables["users"]["u"]["primaryRole"] == {"SUPER_ADMIN": "SUPER_ADMIN", "CUSTOMER": "STUDIO_OWNER"}[born]


@pytest.mark.one_major
def test_an_account_whose_key_is_taken_on_the_other_side_is_no_error(subject):
    subject.start(people().legacy, Policies(), "both")
    application = subject.application()
    account = {"type": "oauth", "provider": "google", "providerAccountId": "1"}
    with application.transaction():
        application.insert("new_accounts", {**account, "id": "new", "userId": "a"})
    with application.transaction():
        application.insert("accounts", {**account, "id": "old", "userId": "p"})
    state = subject.state()
    assert [row["id"] for row in state.legacy["accounts"]] == ["old"]
    assert set(state.unified.tables["new_accounts"]) == {"new"}
    assert judge(subject, "both") == []


@pytest.mark.one_major
@pytest.mark.parametrize("role", ["CUSTOMER", "GUEST"])
@pytest.mark.parametrize("freed", ["UPDATE customers SET email = 'other@x.de' WHERE id = 'a'", "UPDATE users SET email = 'other@x.de' WHERE id = 'a'"])
def test_many_users_of_one_key_are_no_error_but_known(subject, sessions, role, freed):
    subject.start(people().legacy, Policies(), "both")
    session = sessions()

    def waiting() -> list[str]:
        with subject.connection.cursor() as cursor:
            cursor.execute("SELECT source_id FROM unified_user_journal.quarantine WHERE source_table = 'users' ORDER BY 1")
            return [row[0] for row in cursor.fetchall()]

    for number, email in enumerate(("A@x.de", "a@X.de", "A@X.de")):
        assert session.do(f"""INSERT INTO users (id, name, email, "updatedAt") VALUES ('u{number}', 'New', '{email}', now())""") is None
        assert session.do(f"""INSERT INTO user_role_assignments (id, "userId", role) VALUES ('r{number}', 'u{number}', '{role}')""") is None
    assert waiting() == ["u0", "u1", "u2"]
    assert judge(subject, "both") == subject.reverse_differences() == []
    for statement in ("UPDATE customers SET name = 'Old side' WHERE id = 'a'", "UPDATE users SET name = 'New side' WHERE id = 'u1'", freed):
        assert session.do(statement) is None
    # One of them is the person with this address now.
    assert len(waiting()) == 2
    assert judge(subject, "both") == subject.reverse_differences() == []


@pytest.mark.one_major
def test_two_users_of_one_key_are_no_error_but_known(subject):
    """The schema allows it; an application that looks before it writes does not do it."""
    subject.start(people().legacy, Policies(), "both")
    application = subject.application()
    with application.transaction():
        application.insert("users", {"id": "twin", "email": "A@X.de", "name": "Twin", "updatedAt": 0})
        application.insert("user_role_assignments", {"id": "r", "userId": "twin", "role": "CUSTOMER"})
    assert "twin" in subject.state().unified.tables["users"]
    assert sum(subject.status()["quarantine"].values()) + sum(subject.status()["not_representable"].values()) > 0
    with application.transaction():
        application.update("customers", {"name": "Still Anna"}, id="a")
    users = subject.state().unified.tables["users"]
    assert (users["a"]["name"], users["twin"]["name"]) == ("Still Anna", "Twin")


@pytest.mark.one_major
def test_a_guest_becomes_a_customer_with_his_first_unified_write(subject):
    subject.start(people().legacy, Policies(), "both")
    guest = subject.state().unified.identity_map["bookings", "guest@x.de"]
    application = subject.application()
    booking = {"id": "5", "studioId": "s", "customerId": guest, "customerName": "G", "customerEmail": "guest@x.de", "preferredDate": "", "preferredTime": ""}
    with application.transaction():
        application.insert("new_bookings", {**booking, "updatedAt": 0})
    state = subject.state()
    assert guest in state.guests() and judge(subject, "both") == []
    assert next(row for row in state.legacy["bookings"] if row["id"] == "5")["customerId"] is None
    with application.transaction():
        application.insert("_UserFavorites", {"A": "s", "B": guest})
    state = subject.state()
    assert state.unified.identity_map["customers", guest] == guest and guest not in state.guests()
    assert {"A": guest, "B": "s"} in state.legacy["_CustomerFavorites"]
    assert judge(subject, "both") == []
    with application.transaction():
        application.update("users", {"email": "known@x.de"}, id=guest)
        application.insert("bookings", {**booking, "id": "6", "customerId": None, "customerPhone": "", "updatedAt": 0})
    state = subject.state()
    # Somebody else has the first of a guest's ids by now, and keeps it.
    assert state.unified.identity_map["bookings", "guest@x.de"] != guest == state.unified.tables["new_bookings"]["3"]["customerId"]
    assert judge(subject, "both") == []


@pytest.mark.one_major
@pytest.mark.parametrize("before, address", [
    # His role for one studio has the id that the one for all would have.
    ("""UPDATE user_role_assignments SET "studioId" = 't' WHERE "userId" IN (SELECT "customerId" FROM new_bookings WHERE id = '3')""", "moved@x.de"),
    # The legacy side has somebody else there.
    ("SELECT", "B@X.de"),
])  # fmt: skip
def test_who_takes_over_a_guests_address_gets_nothing_that_is_his(subject, sessions, before, address):
    subject.start(people().legacy, Policies(), "both")
    session = sessions()

    def value(query: str):
        with subject.connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchone()[0]

    guest = value("""SELECT "customerId" FROM new_bookings WHERE id = '3'""")
    for statement in (before, f"UPDATE users SET email = '{address}' WHERE id = '{guest}'", "UPDATE users SET email = 'guest@x.de' WHERE id = 'a'"):
        assert session.do(statement) is None
    assert value("""SELECT "customerId" FROM new_bookings WHERE id = '3'""") == guest
    assert value(f"SELECT email FROM users WHERE id = '{guest}'") == address
    assert judge(subject, "both") == subject.reverse_differences() == []


@pytest.mark.one_major
@pytest.mark.parametrize("end", [
    "DELETE FROM new_bookings WHERE id = '3'", "DELETE FROM bookings WHERE id = '3'", "DELETE FROM studios WHERE id = 's'",
    """UPDATE new_bookings SET "customerId" = 'b' WHERE id = '3'""",
])  # fmt: skip
def test_a_guest_goes_with_his_last_booking_under_whatever_address(subject, sessions, end):
    subject.start(people().legacy, Policies(), "both")
    session = sessions()
    assert session.do("""UPDATE new_bookings SET "customerEmail" = 'other@x.de' WHERE id = '3'""") is None
    assert session.do(end) is None
    assert judge(subject, "both") == []
    with subject.connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM users WHERE email = 'guest@x.de'")
        assert cursor.fetchone()[0] == 0


@pytest.mark.one_major
@pytest.mark.parametrize("table", ["bookings", "new_bookings"])
def test_a_guest_who_goes_leaves_no_entry_in_quarantine(subject, sessions, table):
    subject.start(people().legacy, Policies(), "both")
    session, entries = sessions(), "SELECT count(*) FROM unified_user_journal.quarantine"
    with subject.connection.cursor() as cursor:
        cursor.execute("ALTER TABLE customers ADD CONSTRAINT refused CHECK (name <> 'Refused')")
        try:
            assert session.do("UPDATE users SET name = 'Refused' WHERE email = 'guest@x.de'") is None
            cursor.execute(entries)
            assert cursor.fetchone()[0] == 1
            assert session.do(f"DELETE FROM {table} WHERE id = '3'") is None
        finally:
            cursor.execute("ALTER TABLE customers DROP CONSTRAINT refused")
        cursor.execute("SELECT count(*) FROM users WHERE email = 'guest@x.de'")
        assert cursor.fetchone()[0] == 0
        cursor.execute(entries)
        assert cursor.fetchone()[0] == 0


@pytest.mark.one_major
@pytest.mark.parametrize("value", [None, ""])
def test_no_name_and_no_phone_make_the_round_trip(subject, value):
    subject.start(people().legacy, Policies(), "both")
    with subject.application().transaction():
        subject.application().update("users", {"name": value, "phone": value}, id="a")
    state = subject.state()
    assert (state.unified.tables["users"]["a"]["name"], state.unified.tables["users"]["a"]["phone"]) == (value, value)
    customer = next(row for row in state.legacy["customers"] if row["id"] == "a")
    assert customer["name"] == "" and customer["phone"] in ("", None)
    assert judge(subject, "both") == []


@pytest.mark.one_major
def test_a_changed_password_goes_to_every_row_and_dropped_ones_do_not_come_back(subject):
    maker = people().owner("q", "dropped@x.de", password="q").customer("d", "dropped@x.de")
    subject.start(maker.legacy, Policies(), "both")
    application = subject.application()
    assert subject.state().unified.tables["users"]["q"]["password"] is None
    with application.transaction():
        application.update("users", {"emailVerified": 7}, id="q")
    assert subject.state().unified.tables["users"]["q"]["password"] is None
    with application.transaction():
        application.update("users", {"password": "new"}, id="o")
    state = subject.state()
    assert {row["password"] for table, row in state.rows_of_users()["o"]} == {"new"}
    assert judge(subject, "both") == []
