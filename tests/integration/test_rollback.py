# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Going back, on real servers: the exchange of databases, what stops it, what interrupts it, and the playbook that asks first."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg2
import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _scratch, _swap
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import Policies
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options
from psycopg2 import sql

from tests.module_process import ROOT, connection_options, run_module
from tests.playbook_process import changed, inventory, run_playbook, run_playbook_in_terminal

ROLLBACK = ROOT / "playbooks" / "rollback.yml"


@pytest.fixture
def admin(cluster):
    """A session on another database than those that are exchanged."""
    with contextlib.closing(Database(cluster.connect())) as session:
        yield session


class Site:
    """A live database and what its modules and playbooks are told."""

    def __init__(self, cluster, admin: Database, name: str, folder: Path):
        self.cluster, self.admin, self.name, self.folder = cluster, admin, name, folder
        self.connection = connection_options(cluster, name)
        self.files = {"directory": str(folder / "backups"), "bin_dir": str(Path(cluster.bin("pg_dump")).parent)}

    def back_up(self) -> str:
        return succeed(run_module("database_backup", {**self.connection, **self.files}))["path"]

    def restore(self, **options) -> dict:
        return run_module("database_restore", {**self.connection, **self.files, **options})

    def swap(self, **options) -> dict:
        return run_module("database_swap", {**self.connection, **options})

    def exchange(self, **options) -> _swap.Swap:
        """The exchange in this process, so that a test can step in between."""
        return _swap.Swap(
            {**self.connection, "terminate_sessions": True, "timeout": 10, "maintenance_db": "postgres", **options}, check_mode=False
        )

    def query(self, statement: str, database: str | None = None):
        with contextlib.closing(Database(self.cluster.connect(database or self.name))) as session:
            return session.value(statement)

    def execute(self, statement: str) -> None:
        with contextlib.closing(Database(self.cluster.connect(self.name))) as session:
            session.execute(statement)

    def hosts(self, **variables) -> Path:
        return inventory(
            self.folder,
            {
                **{f"unified_user_{key}": value for key, value in self.connection.items()},
                "backup_directory": self.files["directory"],
                "backup_bin_dir": self.files["bin_dir"],
                "backup_minimum_bytes": 1000,
                **variables,
            },
        )

    def databases(self) -> dict[str, bool]:
        """The databases of this site, and whether they take connections."""
        rows = self.admin.rows("SELECT datname, datallowconn FROM pg_database WHERE starts_with(datname, %s)", (self.name,))
        return {row["datname"].removeprefix(self.name): row["datallowconn"] for row in rows}


def succeed(result: dict) -> dict:
    assert not result.get("failed"), result["msg"]
    return result


def refuse(result: dict, *words: str) -> str:
    assert result.get("failed"), result
    for word in ("Failed to ", *words):
        assert word in result["msg"], result["msg"]
    return result["msg"]


@pytest.fixture
def make_site(cluster, admin, tmp_path):
    """Makes a site of a database that is there; whatever it was renamed to is dropped at the end."""
    made = []

    def make(name: str) -> Site:
        made.append(Site(cluster, admin, name, tmp_path))
        return made[-1]

    yield make
    for site in made:
        for suffix in site.databases():
            cluster.drop_database(site.name + suffix)


@pytest.fixture
def site(make_site, cluster, admin):
    """A small live database."""
    name = f"shop_{os.getpid()}"
    cluster.create_database(name)
    site = make_site(name)
    with contextlib.closing(Database(cluster.connect(name))) as session:
        session.execute("CREATE TABLE orders AS SELECT i AS id, 'old' AS state FROM generate_series(1, 100) AS i")
    return site


@pytest.fixture
def ready(site):
    """A site with a proven backup, writes since then, and a restored copy beside it."""
    site.back_up()
    succeed(site.restore())
    with contextlib.closing(Database(site.cluster.connect(site.name))) as session:
        session.execute("DELETE FROM orders WHERE id > 90; UPDATE orders SET state = 'new'; CREATE TABLE since AS SELECT 1 AS a")
    assert succeed(site.restore(state="restored"))["changed"]
    return site


def assert_untouched(site: Site) -> None:
    """The live database is as it was and open, and the copy waits for the next try."""
    assert site.databases() == {"": True, "_restored": True}
    assert site.query("SELECT count(*) FROM orders WHERE state = 'new'") == 90
    mark = _scratch.look_up(site.admin, site.name + "_restored").mark
    assert mark["progress"] == "complete"


# --- the exchange ------------------------------------------------------------------------------------------------------


def test_the_copy_takes_the_place_and_the_replaced_one_is_kept(ready):
    swapped = succeed(ready.swap())
    assert swapped["changed"]
    replaced = swapped["replaced"].removeprefix(ready.name)
    assert ready.databases() == {"": True, replaced: True}
    assert ready.query("SELECT count(*) FROM orders WHERE state = 'old'") == 100
    assert ready.query("SELECT to_regclass('since')") is None
    assert ready.query("SELECT count(*) FROM orders WHERE state = 'new'", swapped["replaced"]) == 90
    ready.admin.execute(swapped["drop_command"])
    assert ready.databases() == {"": True}


def test_what_belongs_to_the_database_stays_with_its_name(ready):
    owner, other = f"owner_{os.getpid()}", f'other "{os.getpid()}'
    roles = {"db": sql.Identifier(ready.name), "owner": sql.Identifier(owner), "other": sql.Identifier(other)}
    admin = ready.admin
    for role in (owner, other):
        admin.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
    for statement in (
        "ALTER DATABASE {db} OWNER TO {owner}",
        "GRANT CREATE, TEMPORARY ON DATABASE {db} TO {other} WITH GRANT OPTION",
        "REVOKE CONNECT ON DATABASE {db} FROM PUBLIC",
        "ALTER DATABASE {db} CONNECTION LIMIT 17",
        "COMMENT ON DATABASE {db} IS 'the shop''s'",
        """ALTER DATABASE {db} SET search_path TO "$user", "My Schema", public""",
        "ALTER DATABASE {db} SET session_preload_libraries TO 'auto_explain'",
        "ALTER DATABASE {db} SET app.setting TO 'it''s, \"so\"'",
        "ALTER DATABASE {db} SET DateStyle TO 'SQL, DMY'",
        "ALTER ROLE {other} IN DATABASE {db} SET work_mem TO '7MB'",
    ):
        admin.execute(sql.SQL(statement).format(**roles))
    try:
        swapped = succeed(ready.swap())
        names = (ready.name, swapped["replaced"])
        facts = "SELECT datdba::regrole::text, datconnlimit, datacl::text FROM pg_database WHERE datname = %s"
        assert admin.row(facts, names[:1]) == admin.row(facts, names[1:])
        assert admin.value("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", names[:1]) == "the shop's"
        settings = (
            "SELECT array_agg(setrole::text || setconfig::text ORDER BY setrole) FROM pg_db_role_setting"
            " JOIN pg_database AS d ON d.oid = setdatabase WHERE datname = %s"
        )
        assert admin.value(settings, names[:1]) == admin.value(settings, names[1:])
        assert ready.query("SHOW search_path") == '"$user", "My Schema", public'
        assert ready.query("SHOW app.setting") == "it's, \"so\""
    finally:
        for suffix in ready.databases():
            ready.cluster.drop_database(ready.name + suffix)
        for role in (owner, other):
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_sessions_are_ended_only_when_that_is_allowed(ready):
    live = ready.cluster.connect(ready.name, application_name="the application")
    idle_in_transaction = ready.cluster.connect(ready.name)
    with contextlib.closing(live), contextlib.closing(idle_in_transaction):
        idle_in_transaction.cursor().execute("BEGIN; UPDATE orders SET state = 'lost'")
        refuse(ready.swap(), "2 sessions are open", "the application as postgres", "set terminate_sessions")
        assert_untouched(ready)
        live.cursor().execute("SELECT 1")
        swapped = succeed(ready.swap(terminate_sessions=True))
        assert len(swapped["sessions"]) == 2 and swapped["closed_ms"] < 10_000
        with pytest.raises(psycopg2.OperationalError):
            live.cursor().execute("SELECT 1")
    assert ready.query("SELECT count(*) FROM orders WHERE state = 'old'") == 100
    assert ready.query("SELECT count(*) FROM orders WHERE state = 'new'", swapped["replaced"]) == 90


@pytest.mark.one_major
def test_check_mode_tells_and_touches_nothing(ready):
    with contextlib.closing(ready.cluster.connect(ready.name)):
        planned = succeed(ready.swap(_ansible_check_mode=True))
        assert planned["planned"] and planned["changed"] and len(planned["sessions"]) == 1
    assert_untouched(ready)


def test_an_owner_without_superuser_rights_can_go_back(ready):
    owner = f"owner_{os.getpid()}"
    identifier = sql.Identifier(owner)
    ready.admin.execute(sql.SQL("CREATE ROLE {} LOGIN CREATEDB").format(identifier))
    try:
        as_owner = {**ready.connection, "login_user": owner}
        refuse(run_module("database_swap", as_owner), "takes its owner with CREATEDB")
        for name in (ready.name, ready.name + "_restored"):
            ready.admin.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(sql.Identifier(name), identifier))
        # Sessions of roles that it may not end: said so, and everything is as before.
        with contextlib.closing(ready.cluster.connect(ready.name)):
            refuse(run_module("database_swap", {**as_owner, "terminate_sessions": True}), "may not end the session of postgres", "pg_signal_backend")
            assert_untouched(ready)
        succeed(run_module("database_swap", as_owner))
        assert ready.query("SELECT count(*) FROM orders WHERE state = 'old'") == 100
    finally:
        for suffix in ready.databases():
            ready.cluster.drop_database(ready.name + suffix)
        ready.admin.execute(sql.SQL("DROP ROLE {}").format(identifier))


# --- what stops it -----------------------------------------------------------------------------------------------------


@pytest.mark.one_major
def test_only_a_proven_backup_is_gone_back_to(site):
    path = site.back_up()
    refuse(site.restore(state="restored", backup=path), "no restore test has proven it", "state tested")
    refuse(site.restore(state="restored"), "find a proven backup")
    refuse(site.restore(state="compared", backup=path, require_proof=True), "no restore test has proven it")
    succeed(site.restore(backup=path))
    other = site.back_up()
    os.replace(Path(path, "proof.json"), Path(other, "proof.json"))
    refuse(site.restore(state="restored", backup=other), "about another dump")
    assert site.databases() == {"": True}


@pytest.mark.one_major
def test_only_a_restored_copy_is_taken(site):
    refuse(site.swap(), "is not a restored and compared copy")
    site.cluster.create_database(site.name + "_restored")
    refuse(site.swap(), "is not a restored and compared copy")
    site.back_up()
    succeed(site.restore())
    refuse(site.restore(state="restored"), "did not make it", "rollback_database")


def test_prepared_transactions_are_found_first(ready):
    with contextlib.closing(ready.cluster.connect(ready.name)) as connection:
        connection.cursor().execute("BEGIN; UPDATE orders SET state = 'x' WHERE id = 1; PREPARE TRANSACTION 'p'")
    try:
        refuse(ready.swap(), "1 prepared transactions", "ROLLBACK PREPARED")
        assert_untouched(ready)
    finally:
        with contextlib.closing(ready.cluster.connect(ready.name)) as connection:
            connection.cursor().execute("ROLLBACK PREPARED 'p'")


@pytest.mark.one_major
def test_a_closed_database_is_not_opened_by_guess(ready):
    ready.admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(ready.name)))
    refuse(ready.swap(), "takes no connections, and no swap of ours closed it")
    assert not succeed(ready.swap(state="recovered"))["changed"]
    assert ready.databases() == {"": False, "_restored": True}


@pytest.mark.one_major
def test_a_first_rename_that_fails_changes_nothing(ready, monkeypatch):
    with contextlib.closing(ready.cluster.connect(ready.name)) as connection:
        connection.cursor().execute("BEGIN; UPDATE orders SET state = 'x' WHERE id = 1; PREPARE TRANSACTION 'p'")
    swap = ready.exchange()
    # As if the transaction had been prepared right after the look for such ones.
    monkeypatch.setattr(swap, "_refuse_what_outlives_sessions", lambda admin: None)
    with pytest.raises(UnifiedUserError, match=f'"{ready.name}" is being accessed by other users.*Nothing was renamed'):
        swap.run()
    assert_untouched(ready)
    with contextlib.closing(ready.cluster.connect(ready.name)) as connection:
        connection.cursor().execute("ROLLBACK PREPARED 'p'")


@pytest.mark.one_major
def test_a_second_rename_that_fails_undoes_the_first(ready, monkeypatch):
    swap = ready.exchange()
    carry_over = swap._carry_over
    with contextlib.ExitStack() as stack:

        def intrude(admin):
            carry_over(admin)
            stack.enter_context(contextlib.closing(ready.cluster.connect(swap.copy)))

        monkeypatch.setattr(swap, "_carry_over", intrude)
        with pytest.raises(UnifiedUserError, match=f'"{swap.copy}" is being accessed by other users.*Nothing was renamed'):
            swap.run()
    assert_untouched(ready)


# --- what interrupts it ------------------------------------------------------------------------------------------------


def test_a_run_killed_between_restore_and_exchange_goes_on(ready):
    again = succeed(ready.restore(state="restored"))
    assert not again["changed"] and not again["dropped_leftover"]
    succeed(ready.swap())
    assert ready.query("SELECT count(*) FROM orders WHERE state = 'old'") == 100


@pytest.mark.one_major
def test_a_copy_that_was_written_to_or_is_of_another_backup_is_made_anew(ready):
    with contextlib.closing(Database(ready.cluster.connect(ready.name + "_restored"))) as session:
        session.execute("UPDATE orders SET state = 'tampered' WHERE id = 1")
    assert succeed(ready.restore(state="restored"))["dropped_leftover"]
    ready.back_up()
    succeed(ready.restore())
    again = succeed(ready.restore(state="restored"))
    assert again["changed"] and again["dropped_leftover"]
    succeed(ready.swap())
    assert ready.query("SELECT count(*) FROM orders WHERE state = 'new'") == 90


KILLED = """
import json, os, signal, sys
from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _swap

def die(self, *arguments):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(_swap.Swap, sys.argv[1], die)
_swap.Swap(json.loads(sys.argv[2]), check_mode=False).run()
"""


@pytest.mark.one_major
@pytest.mark.parametrize("moment", ["_end_sessions", "_carry_over"])
def test_a_run_killed_in_the_middle_of_the_exchange_is_put_right(ready, moment):
    parameters = {**ready.connection, "terminate_sessions": True, "timeout": 10, "maintenance_db": "postgres"}
    paths = os.pathsep.join([str(ROOT / ".collections"), *(path for path in sys.path if "site-packages" in path)])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), moment, json.dumps(parameters)],
        env={**os.environ, "PYTHONPATH": paths}, check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert ready.databases() == {"": False, "_restored": True}
    assert succeed(ready.swap(state="recovered", _ansible_check_mode=True))["changed"]
    assert succeed(ready.swap(state="recovered"))["changed"]
    assert_untouched(ready)
    assert not succeed(ready.swap(state="recovered"))["changed"]
    assert not succeed(ready.restore(state="restored"))["changed"]
    succeed(ready.swap())
    assert ready.query("SELECT count(*) FROM orders WHERE state = 'old'") == 100


@pytest.mark.one_major
def test_a_run_killed_while_closed_may_also_just_be_repeated(ready):
    ready.admin.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(sql.Identifier(ready.name)))
    mark = _scratch.look_up(ready.admin, ready.name + "_restored").mark
    mark.pop("made_by")
    _scratch.write_mark(ready.admin, ready.name + "_restored", **{**mark, "progress": "swapping"})
    succeed(ready.swap())
    assert ready.query("SELECT count(*) FROM orders WHERE state = 'old'") == 100


# --- the playbook ------------------------------------------------------------------------------------------------------


@pytest.mark.one_major
def test_the_playbook_asks_before_it_goes_back(ready):
    hosts = ready.hosts()
    done = run_playbook(ROLLBACK, hosts, "-e", "rollback_mode=restore")
    assert done.returncode != 0 and "nobody confirmed it, and nothing was changed" in done.stdout
    assert_untouched(ready)

    question = {"question": "Type restore to go on"}
    done = run_playbook_in_terminal(ROLLBACK, hosts, "-e", "rollback_mode=restore", **question, answer="yes")
    assert done.returncode != 0 and "nobody confirmed it" in done.stdout
    assert_untouched(ready)

    done = run_playbook(ROLLBACK, hosts, "-e", "rollback_mode=restore", "--check")
    assert done.returncode == 0, done.stdout
    assert "Run the same command without --check" in done.stdout
    assert_untouched(ready)

    with contextlib.closing(ready.cluster.connect(ready.name, application_name="the application")):
        done = run_playbook_in_terminal(ROLLBACK, hosts, "-e", "rollback_mode=restore", **question, answer="restore")
    assert done.returncode == 0, done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "public.orders 100 90" in lines and "public.since - 1 goes" in lines
    assert "1 open sessions will be ended: the application as postgres." in lines
    assert "DROP DATABASE " + ready.name + "_replaced_" in done.stdout
    assert ready.query("SELECT count(*) FROM orders WHERE state = 'old'") == 100

    done = run_playbook(ROLLBACK, hosts, "-e", "rollback_mode=restore", "-e", "rollback_confirmed=restore")
    assert done.returncode == 0 and changed(done) == 0, done.stdout
    assert "holds exactly what" in done.stdout


@pytest.mark.one_major
def test_the_playbook_goes_back_to_a_copy_when_the_backup_is_lost(site, far_end):
    copies = [far_end("ssh").options]
    succeed(run_module("database_backup_copy", {"backup": site.back_up(), "copies": copies}))
    succeed(site.restore(copies=copies))
    site.execute("UPDATE orders SET state = 'new'")
    shutil.rmtree(site.files["directory"])
    chosen = ["-e", "rollback_mode=restore", "-e", "rollback_confirmed=restore", "-e", "rollback_source=last"]
    done = run_playbook(ROLLBACK, site.hosts(backup_copies=copies), *chosen)
    assert done.returncode == 0, done.stdout
    assert site.query("SELECT count(*) FROM orders WHERE state = 'old'") == 100


@pytest.mark.one_major
def test_the_playbook_refuses_what_is_not_proven(site):
    site.back_up()
    done = run_playbook(ROLLBACK, site.hosts(), "-e", "rollback_mode=restore", "-e", "rollback_confirmed=restore")
    assert done.returncode != 0 and "find a proven backup of database" in done.stdout
    assert site.databases() == {"": True}


@pytest.fixture
def migrated(make_site, cluster, reference_database):
    """The reference case, migrated."""
    with contextlib.closing(Database(cluster.connect(reference_database))) as session:
        assert AtomicCopy(session, Options("public", None, Policies())).run()["finished"]
    return make_site(reference_database)


LEGACY = "studio_owners customers accounts sessions bookings studios services _CustomerFavorites".split()


def contents(site: Site, tables) -> list:
    return [site.query(f'SELECT sum(hashtextextended(t::text, 0)) FROM "{table}" AS t') for table in tables]


@pytest.mark.one_major
def test_the_playbook_aborts_a_migration(migrated):
    hosts, before = migrated.hosts(), contents(migrated, LEGACY)
    arguments = (ROLLBACK, hosts, "-e", "rollback_mode=abort")
    done = run_playbook(*arguments)
    assert done.returncode != 0 and "nobody confirmed it" in done.stdout
    done = run_playbook(*arguments, "--check")
    assert done.returncode == 0 and "rows would be removed" in done.stdout, done.stdout
    assert migrated.query("SELECT count(*) FROM users") == 198

    done = run_playbook_in_terminal(*arguments, question="Type abort to go on", answer="abort")
    assert done.returncode == 0, done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for line in ("users 198", "user_role_assignments 200", "studio_ownership 47", "new_bookings 312", "studio_owners 42", "customers 158"):
        assert line in lines, done.stdout
    assert migrated.query("SELECT count(*) FROM users") == 0
    assert migrated.query("SELECT count(*) FROM new_bookings") == 0
    assert contents(migrated, LEGACY) == before

    done = run_playbook(*arguments, "-e", "rollback_confirmed=abort")
    assert done.returncode == 0 and changed(done) == 0, done.stdout
    assert "Nothing to do" in done.stdout


PATH = """
- name: Back up and prove it
  hosts: database
  gather_facts: false
  tasks:
    - name: Back up
      ansible.builtin.import_role:
        name: rnltlabs.unified_user.backup
    - name: Prove it
      ansible.builtin.import_role:
        name: rnltlabs.unified_user.restore_test
    - name: Show the steps
      ansible.builtin.debug:
        msg: "{{ unified_user_steps | map(attribute='detail') | list }}"
"""


@pytest.mark.one_major
def test_the_roles_back_up_and_prove_until_the_migration_is_finished(make_site, reference_database, cluster, tmp_path):
    site = make_site(reference_database)
    playbook, hosts = tmp_path / "path.yml", site.hosts()
    playbook.write_text(PATH)
    done = run_playbook(playbook, hosts, "--check")
    assert done.returncode == 0, done.stdout
    assert "would be taken" in done.stdout and "planned once there is a backup" in done.stdout
    assert not Path(site.files["directory"]).exists()

    done = run_playbook(playbook, hosts)
    assert done.returncode == 0 and changed(done) == 2, done.stdout
    (path,) = Path(site.files["directory"]).iterdir()
    assert str(path) in done.stdout and "objects equal, sha256" in done.stdout
    assert (path / "proof.json").exists()

    with contextlib.closing(Database(cluster.connect(reference_database))) as session:
        AtomicCopy(session, Options("public", None, Policies())).run()
    done = run_playbook(playbook, hosts)
    assert done.returncode == 0 and changed(done) == 0, done.stdout
    assert done.stdout.count("not needed: the migration is finished") == 2
    assert [path] == list(Path(site.files["directory"]).iterdir())

    # The migration is undone by going back to what the role has proven.
    done = run_playbook(ROLLBACK, hosts, "-e", "rollback_mode=restore", "-e", "rollback_confirmed=restore")
    assert done.returncode == 0, done.stdout
    assert site.query("SELECT count(*) FROM users") == 0
    assert site.query("SELECT to_regnamespace('unified_user_journal')") is None
