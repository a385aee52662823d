# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The atomic copy on a real server: the reference case, its undoing, what stops it, and what interrupts it."""

from __future__ import annotations

import contextlib
import os
import sys
import time

import psycopg2
import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _deferral, _journal
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import read_schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import FILLED, SOURCES, Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._meanwhile import meanwhile
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options

from tests.module_process import ROOT, ModuleProcess, connection_options, run_module

REFERENCE = {"users": 198, "user_role_assignments": 200, "studio_ownership": 47, "new_bookings": 312}


@pytest.fixture
def open_session(cluster, reference_database):
    """Opens sessions on the reference database, closed with the test."""
    with contextlib.ExitStack() as stack:

        def connect() -> Database:
            return stack.enter_context(contextlib.closing(Database(cluster.connect(reference_database))))

        yield connect


@pytest.fixture
def session(open_session):
    """One session on the reference database."""
    return open_session()


def sums(session: Database, tables) -> dict:
    """Row count and content sum of each table."""
    return {
        table: session.row(f'SELECT count(*), coalesce(sum(hashtextextended(t::text, 0)::numeric), 0)::text FROM public."{table}" AS t') for table in tables
    }


def catalogue(session: Database) -> list:
    """Constraints, indexes and NOT NULLs of the unified tables."""
    session.execute("SET search_path = pg_catalog")
    return _deferral.fingerprint(session, read_schema(session))


def wait_until(condition, seconds: float = 20):
    """Wait for a condition to hold; fails when it never does."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came to it"
        time.sleep(0.01)
    return found


def make_slow(session: Database, seconds: float) -> None:
    """Make every insert into new_bookings wait, so that a test can act in the middle of a copy."""
    session.execute(f"CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep({seconds / 312}); RETURN NEW; END'")
    session.execute("CREATE TRIGGER wait BEFORE INSERT ON public.new_bookings FOR EACH ROW EXECUTE FUNCTION public.wait()")


def make_fast(session: Database) -> None:
    """Take ``make_slow`` back."""
    session.execute("DROP FUNCTION public.wait() CASCADE")


def copying(session: Database) -> bool:
    """Whether some session is filling new_bookings; what the journal writes of its indexes names it, too."""
    return session.value(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'unified_user' AND query ~ '^INSERT INTO \\S*new_bookings')"
    )


def test_reference_case_and_a_second_run(session):
    before = sums(session, SOURCES)
    first = AtomicCopy(session, Options()).run()
    assert {table: first["counts"][table] for table in REFERENCE} == REFERENCE
    assert first["changed"] and first["finished"]
    assert first["identities"]["joined"] == 2
    copied = sums(session, FILLED)
    second = AtomicCopy(session, Options()).run()
    assert not second["changed"] and second["finished"]
    assert {table: second["counts"][table] for table in REFERENCE} == REFERENCE
    assert second["identities"] == first["identities"]
    assert sums(session, FILLED) == copied
    assert sums(session, SOURCES) == before


@pytest.mark.parametrize("fault", ["none", "refused", "lost"])
def test_another_session_counts_what_it_can(session, open_session, monkeypatch, fault):
    others, asked = [], []
    count = AtomicCopy._linked_bookings

    def connect() -> Database:
        if fault == "refused":
            raise UnifiedUserError("connect", "too many clients already", "Wait")
        others.append(open_session())
        return others[0]

    def counted(self, database, projection):
        asked.append(database)
        if fault == "lost" and database in others:
            others[0].execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return count(self, database, projection)

    monkeypatch.setattr(AtomicCopy, "_linked_bookings", counted)
    result = AtomicCopy(session, Options(), connect).run()
    assert result["counts"]["new_bookings"] == 312
    assert result["bookings"]["by_customer"] == session.value('SELECT count("customerId") FROM public.bookings')
    assert asked == {"none": others, "refused": [session], "lost": [*others, session]}[fault]
    assert all(other.connection.closed for other in others)


def test_what_another_session_counts_ends_with_the_work(session, open_session):
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), meanwhile(session, open_session(), lambda other: other.value("SELECT pg_sleep(60)")):
        wait_until(lambda: session.value("SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"))
        raise ZeroDivisionError
    assert time.monotonic() - started < 30


def test_another_session_is_had_before_anything_is_locked(session, open_session):
    """A pool may keep it waiting: the application must not wait with it."""
    seen = []

    def connect() -> Database:
        seen.append(session.value("SELECT count(*) FROM pg_locks WHERE relation = 'public.bookings'::regclass"))
        return open_session()

    assert AtomicCopy(session, Options(), connect).run()["finished"]
    assert seen == [0]


def test_planning_promises_what_the_run_brings_and_changes_nothing(session):
    everything = "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    before = sums(session, SOURCES + FILLED), session.value(everything)
    planned = AtomicCopy(session, Options()).plan()
    assert planned["changed"] and not planned["finished"]
    assert (sums(session, SOURCES + FILLED), session.value(everything)) == before
    assert not _journal.exists(session)
    done = AtomicCopy(session, Options()).run()
    assert planned["counts"] == {table: rows for table, rows in done["counts"].items() if table != "quarantine"}
    assert not AtomicCopy(session, Options()).plan()["changed"]


def test_catalogue_is_identical_afterwards(session):
    # What a definition alone does not reproduce stays in place: a comment, storage options, a replica identity.
    session.execute('CREATE INDEX noted ON public.new_bookings ("customerName")')
    session.execute("COMMENT ON INDEX public.noted IS 'for the call centre'")
    session.execute('CREATE INDEX sparse ON public.users (lower(email)) WITH (fillfactor = 70) WHERE "isActive"')
    session.execute('ALTER TABLE public.new_sessions REPLICA IDENTITY USING INDEX "new_sessions_sessionToken_key"')
    session.execute('CREATE TABLE public.newsletter ("userId" text PRIMARY KEY REFERENCES public.users (id))')
    before = catalogue(session)
    AtomicCopy(session, Options()).run()
    assert catalogue(session) == before
    assert session.value("SELECT obj_description('public.noted'::regclass)") == "for the call centre"
    session.execute("DROP TABLE public.newsletter")
    AtomicCopy(session, Options()).undo()
    assert catalogue(session) == before


def test_undo_empties_the_unified_tables_and_touches_nothing_else(session):
    before, empty = sums(session, SOURCES), sums(session, FILLED)
    AtomicCopy(session, Options()).run()
    session.execute(
        "INSERT INTO public.audit_logs (id, \"userId\", action, resource, \"resourceId\") SELECT 'log', id, 'a', 'b', 'c' FROM public.users LIMIT 1"
    )
    planned = AtomicCopy(session, Options()).undo(check_mode=True)
    undone = AtomicCopy(session, Options()).undo()
    assert undone["changed"] and planned["changed"] and undone["counts"] == planned["counts"]
    assert {table: undone["counts"][table] for table in REFERENCE} == REFERENCE and undone["counts"]["audit_logs"] == 1
    assert (sums(session, SOURCES), sums(session, FILLED)) == (before, empty)
    assert not AtomicCopy(session, Options()).undo()["changed"]
    assert AtomicCopy(session, Options()).run()["changed"]


def test_undo_that_would_change_the_legacy_side_is_taken_back(session):
    AtomicCopy(session, Options()).run()
    session.execute("CREATE FUNCTION public.tidy() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN DELETE FROM public.sessions; RETURN NULL; END'")
    session.execute("CREATE TRIGGER tidy AFTER TRUNCATE ON public.new_sessions FOR EACH STATEMENT EXECUTE FUNCTION public.tidy()")
    before = sums(session, SOURCES + FILLED)
    with pytest.raises(UnifiedUserError, match="would have changed rows of the legacy tables"):
        AtomicCopy(session, Options()).undo()
    assert sums(session, SOURCES + FILLED) == before


def test_rows_of_nobody_known_are_refused(session):
    before = catalogue(session)
    session.execute("INSERT INTO public.users (id, email, \"updatedAt\") VALUES ('u', 'someone@example.com', now())")
    for attempt in (AtomicCopy(session, Options()).run, AtomicCopy(session, Options()).plan, AtomicCopy(session, Options()).undo):
        with pytest.raises(UnifiedUserError, match="rows that no run of this collection made, in users") as caught:
            attempt()
        assert "someone@example.com" not in str(caught.value)
    assert catalogue(session) == before
    assert session.value("SELECT count(*) FROM public.users") == 1


def test_finished_migration_is_not_gone_on_with_under_other_policies(session):
    AtomicCopy(session, Options()).run()
    with pytest.raises(UnifiedUserError, match="other settings of email_store, guest_role"):
        AtomicCopy(session, Options(policies=Policies(email_store="normalized", guest_role="GUEST"))).run()


BLOCKERS = {
    "duplicate identity": (
        "INSERT INTO public.customers (id, name, email, \"updatedAt\") SELECT 'twin', 'x', upper(email), now() FROM public.customers ORDER BY id LIMIT 1",
        "two or more rows in one table", "unified_user_duplicate_identities",
    ),
    "unusable e-mail": (
        "UPDATE public.studio_owners SET email = 'nobody' WHERE id = (SELECT min(id) FROM public.studio_owners)",
        "without a usable e-mail", "@",
    ),
    "id collision": (
        "INSERT INTO public.customers (id, name, email, \"updatedAt\")"
        " SELECT id, 'x', 'elsewhere@example.org', now() FROM public.studio_owners ORDER BY id LIMIT 1",
        "different identities have one id", "unified_user_id_collisions",
    ),
    "unresolvable booking": (
        "UPDATE public.bookings SET \"customerId\" = NULL, \"customerEmail\" = ' ' WHERE id = (SELECT min(id) FROM public.bookings)",
        "neither a customerId nor a usable e-mail", "unified_user_unresolvable_bookings",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKERS)
def test_blockers_stop_the_copy_and_name_the_variable_that_decides(session, name):
    statement, cause, variable = BLOCKERS[name]
    session.execute(statement)
    before = catalogue(session), sums(session, SOURCES + FILLED)
    for attempt in (AtomicCopy(session, Options()).run, AtomicCopy(session, Options()).plan):
        with pytest.raises(UnifiedUserError) as caught:
            attempt()
        assert cause in str(caught.value) and variable in str(caught.value)
        assert caught.value.details["blocked"] and caught.value.details["findings"][0]["count"] == 1
        emails = [row["email"] for row in session.rows("SELECT email FROM public.customers UNION SELECT email FROM public.studio_owners")]
        assert not [email for email in emails if "@" in email and email.lower() in str(caught.value).lower()]
    assert (catalogue(session), sums(session, SOURCES + FILLED)) == before


def test_missing_table_and_missing_column_are_named(session):
    session.execute('ALTER TABLE public.customers RENAME COLUMN "emailVerified" TO "verifiedAt"')
    with pytest.raises(UnifiedUserError, match=r"column emailVerified of table customers.*unified_user_mapping"):
        AtomicCopy(session, Options()).run()
    renamed = {"tables": {"customers": {"columns": {"emailVerified": "verifiedAt"}}}}
    assert AtomicCopy(session, Options(mapping=renamed)).run()["counts"]["users"] == 198
    AtomicCopy(session, Options(mapping=renamed)).undo()
    session.execute("ALTER TABLE public.customers RENAME TO clients")
    with pytest.raises(UnifiedUserError, match="legacy table customers does not exist"):
        AtomicCopy(session, Options(mapping=renamed)).run()
    renamed["tables"]["customers"]["name"] = "clients"
    assert AtomicCopy(session, Options(mapping=renamed)).run()["counts"]["users"] == 198


def test_column_under_both_names_is_a_blocker(session):
    session.execute("ALTER TABLE public.bookings ADD customer_email text")
    with pytest.raises(UnifiedUserError, match=r"column customerEmail of table bookings.*both names"):
        AtomicCopy(session, Options()).run()


def test_locked_legacy_row_is_waited_for_and_its_session_named(open_session):
    session, writer = open_session(), open_session()
    before = catalogue(session)
    writer.execute("SET application_name = 'booking desk'")
    writer.execute("BEGIN")
    writer.execute("UPDATE public.bookings SET message = 'x' WHERE id = (SELECT min(id) FROM public.bookings)")
    with pytest.raises(UnifiedUserError, match=r"holds a lock in the way.*pid \d+ \(booking desk, idle in transaction") as caught:
        AtomicCopy(session, Options(lock_timeout=200, lock_retry_seconds=1)).run()
    assert len(caught.value.details["blockers"]) == 1
    assert catalogue(session) == before
    writer.execute("COMMIT")
    assert AtomicCopy(session, Options()).run()["finished"]
    assert session.value("SELECT count(*) FROM public.new_bookings WHERE message = 'x'") == 1


def test_a_lock_given_back_in_time_only_delays(cluster, reference_database, open_session):
    session, writer = open_session(), open_session()
    writer.execute("BEGIN")
    writer.execute("UPDATE public.bookings SET message = 'late' WHERE id = (SELECT min(id) FROM public.bookings)")
    process = ModuleProcess("unified_user_transform", {**connection_options(cluster, reference_database), "lock_timeout": 100})
    wait_until(lambda: session.value("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'public.bookings'::regclass)"))
    writer.execute("COMMIT")
    assert process.result()["finished"]
    assert session.value("SELECT count(*) FROM public.new_bookings WHERE message = 'late'") == 1


@pytest.mark.one_major
def test_readers_of_the_legacy_side_are_not_held_up(cluster, reference_database, open_session):
    session, reader = open_session(), open_session()
    make_slow(session, 3)
    process = ModuleProcess("unified_user_transform", connection_options(cluster, reference_database))
    wait_until(lambda: copying(session))
    reader.execute("SET statement_timeout = '500ms'")
    assert reader.value("SELECT count(*) FROM public.bookings") == 312
    assert process.result()["finished"]


def test_kill_in_the_middle_of_the_copy_then_the_same_command_again(cluster, reference_database, open_session):
    session = open_session()
    before = catalogue(session), sums(session, SOURCES)
    make_slow(session, 8)
    process = ModuleProcess("unified_user_transform", connection_options(cluster, reference_database))
    wait_until(lambda: copying(session))
    process.kill()
    make_fast_when_free(session)
    assert run_module("unified_user_info", connection_options(cluster, reference_database))["journal"]["taken_down"] > 0
    again = run_module("unified_user_transform", connection_options(cluster, reference_database))
    assert again["changed"] and {table: again["counts"][table] for table in REFERENCE} == REFERENCE
    assert (catalogue(session), sums(session, SOURCES)) == before


def make_fast_when_free(session: Database) -> None:
    """Take ``make_slow`` back once the killed client's backend has noticed; how soon is the server's affair, and bounded."""
    wait_until(lambda: not copying(session))
    make_fast(session)


def test_kill_between_taking_down_and_copying_then_undo(cluster, reference_database, open_session):
    session, writer = open_session(), open_session()
    before = catalogue(session)
    writer.execute("BEGIN")
    writer.execute("UPDATE public.bookings SET message = 'x' WHERE id = (SELECT min(id) FROM public.bookings)")
    process = ModuleProcess("unified_user_transform", connection_options(cluster, reference_database))
    wait_until(lambda: _journal.exists(session) and len(_deferral.recorded(session)))
    process.kill()
    writer.execute("ROLLBACK")
    assert catalogue(session) != before
    undone = run_module("unified_user_transform", {**connection_options(cluster, reference_database), "state": "absent"})
    assert undone["changed"]
    assert catalogue(session) == before


def test_backend_ended_in_the_middle_is_an_error_that_says_what_to_do(cluster, reference_database, open_session):
    session = open_session()
    make_slow(session, 8)
    process = ModuleProcess("unified_user_transform", connection_options(cluster, reference_database))
    wait_until(lambda: copying(session))
    session.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'unified_user'")
    failed = process.result()
    assert failed["failed"] and "run the same command again" in failed["msg"]
    make_fast(session)
    assert AtomicCopy(session, Options()).run()["finished"]


def test_second_runner_is_told_who_is_first(open_session):
    first, second = open_session(), open_session()
    with _journal.exclusive(first):
        with pytest.raises(UnifiedUserError, match=r"another run holds the migration lock: pid \d+") as caught, _journal.exclusive(second, 0.3):
            pass
        assert str(first.value("SELECT pg_backend_pid()")) in str(caught.value)
    with _journal.exclusive(second, 0.3):
        pass


def test_a_difference_rolls_everything_back(session):
    # A trigger of the application that changes what is inserted is such a difference.
    session.execute("CREATE FUNCTION public.shout() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.name := upper(NEW.name); RETURN NEW; END'")
    session.execute("CREATE TRIGGER shout BEFORE INSERT ON public.users FOR EACH ROW EXECUTE FUNCTION public.shout()")
    before = catalogue(session), sums(session, SOURCES + FILLED)
    with pytest.raises(UnifiedUserError, match="verify") as caught:
        AtomicCopy(session, Options()).run()
    assert caught.value.details["checks"]
    assert (catalogue(session), sums(session, SOURCES + FILLED)) == before
    assert _journal.current_run(session) is None


@pytest.mark.one_major
def test_module_plans_in_check_mode_and_shows_the_difference(cluster, reference_database, session):
    options = connection_options(cluster, reference_database)
    planned = run_module("unified_user_transform", {**options, "_ansible_check_mode": True, "_ansible_diff": True})
    assert planned["changed"] and planned["diff"]["after"]["users"] == 198 and planned["diff"]["before"]["users"] == 0
    assert not _journal.exists(session)
    assert not run_module("unified_user_info", options)["journal"]["present"]
    assert run_module("unified_user_transform", options)["changed"]
    info = run_module("unified_user_info", options)["journal"]
    assert info["finished"] and info["taken_down"] == 0 and info["run"]["strategy"] == "atomic"


def test_statements_are_returned_without_values(cluster, reference_database, session):
    email = session.value("SELECT email FROM public.customers ORDER BY id LIMIT 1")
    result = run_module("unified_user_transform", connection_options(cluster, reference_database))
    statements = "\n".join(result["executed_queries"])
    assert 'INSERT INTO "public"."new_bookings"' in statements and email not in statements


def test_unreachable_database_and_wrong_password(cluster, reference_database, secret):
    password = secret("password")
    over_tcp = {"login_db": reference_database, "login_host": cluster.tcp_host, "login_port": cluster.port, "login_user": cluster.user}
    wrong = run_module("unified_user_transform", {**over_tcp, "login_password": password})
    assert wrong["failed"] and "password authentication failed" in wrong["msg"] and "pg_hba.conf" in wrong["msg"]
    assert password not in str(wrong)
    away = run_module("unified_user_transform", {**over_tcp, "login_port": 1, "login_password": password})
    assert away["failed"] and "Failed to connect to database" in away["msg"] and password not in str(away)


def test_missing_driver_names_the_interpreter(cluster, reference_database, tmp_path):
    # A package of that name that cannot be imported, before every other on the path.
    (tmp_path / "psycopg2.py").write_text("raise ImportError('no psycopg2 here')\n")
    (tmp_path / "psycopg.py").write_text("raise ImportError('no psycopg here')\n")
    paths = os.pathsep.join([str(tmp_path), str(ROOT / ".collections"), *(path for path in sys.path if "site-packages" in path)])
    failed = run_module("unified_user_transform", connection_options(cluster, reference_database), environment={"PYTHONPATH": paths})
    assert failed["failed"] and sys.executable in failed["msg"] and "python3-psycopg2" in failed["msg"]


def test_accounts_of_nobody_are_refused(session):
    session.execute('ALTER TABLE public.accounts DROP CONSTRAINT "accounts_userId_fkey"')
    session.execute("UPDATE public.accounts SET \"userId\" = 'nobody' WHERE id = (SELECT min(id) FROM public.accounts)")
    with pytest.raises(UnifiedUserError, match="copy table accounts: 1 of its rows refer to no owner"):
        AtomicCopy(session, Options()).run()
    assert sums(session, FILLED)["users"]["count"] == 0


def test_bookings_of_nobody_are_refused(session):
    session.execute('ALTER TABLE public.bookings DROP CONSTRAINT "bookings_customerId_fkey"')
    session.execute("UPDATE public.bookings SET \"customerId\" = 'nobody' WHERE id = (SELECT min(id) FROM public.bookings)")
    with pytest.raises(UnifiedUserError, match="copy table bookings: 1 of its rows refer to no customer"):
        AtomicCopy(session, Options()).run()
    assert sums(session, FILLED)["users"]["count"] == 0


def test_rows_hidden_by_a_policy_are_an_error(session):
    session.execute("CREATE ROLE tenant")
    try:
        for table in (*SOURCES, *FILLED, "magic_link_tokens", "audit_logs"):
            session.execute(f'ALTER TABLE public."{table}" OWNER TO tenant')
        session.execute("ALTER TABLE public.accounts ENABLE ROW LEVEL SECURITY")
        session.execute("ALTER TABLE public.accounts FORCE ROW LEVEL SECURITY")
        database = session.value("SELECT current_database()")
        session.execute(f'GRANT CREATE ON DATABASE "{database}" TO tenant')
        session.execute("SET ROLE tenant")
        with pytest.raises(psycopg2.Error, match="row-level security policy"):
            AtomicCopy(session, Options()).run()
        assert sums(session, FILLED)["users"]["count"] == 0
    finally:
        session.execute("RESET ROLE")
        session.execute("DROP OWNED BY tenant CASCADE")
        session.execute("DROP ROLE tenant")
