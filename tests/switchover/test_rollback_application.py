# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Going back with the application alone: two hosts, a migrated database with the sync on, and each way it must refuse or go on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import Sync, SyncOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options

from tests.module_process import connection_options
from tests.playbook_process import PROGRAM, ROOT, run_playbook, run_playbook_in_terminal
from tests.switchover.small_host import serving_hosts, small_release

pytestmark = pytest.mark.one_major

ROLLBACK, SWITCH = ROOT / "playbooks" / "rollback.yml", ROOT / "playbooks" / "switch.yml"
MODE = ("-e", "rollback_mode=application")
CONFIRMED = (*MODE, "-e", "rollback_confirmed=application")
BOOK = """
INSERT INTO public.new_bookings (id, "studioId", "customerId", "customerName", "customerEmail", "customerPhone", "preferredDate", "preferredTime", "updatedAt")
SELECT %s, "studioId", "customerId", "customerName", "customerEmail", "customerPhone", "preferredDate", "preferredTime", now() FROM public.new_bookings
ORDER BY id LIMIT 1
"""


class Stand:
    """Two hosts of the application, and the database that they share."""

    def __init__(self, cluster, database: str, hosts: list, folder: Path) -> None:
        self.cluster, self.database, self.hosts, self.folder = cluster, database, hosts, folder
        self.release = small_release(folder / "new")

    def inventory(self, **changes) -> Path:
        """Write what an operator's inventory says."""
        connection = {name.replace("login_", "unified_user_login_", 1): value for name, value in connection_options(self.cluster, self.database).items()}
        groups = {
            "app": {"hosts": {host.name: {**host.variables(), **connection, **changes} for host in self.hosts}},
            "database": {"hosts": {"db": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **connection}}},
        }
        path = self.folder / "both.json"
        path.write_text(json.dumps({"all": {"children": groups}}))
        path.chmod(0o600)
        return path

    def forward(self) -> None:
        """Switch both hosts to the new release, unless it serves."""
        if self.serving() == ["new", "new"]:
            return
        done = run_playbook(SWITCH, self.inventory(app_switchover_release="new", app_switchover_directory=str(self.release)), timeout=400)
        assert done.returncode == 0 and self.serving() == ["new", "new"], done.stdout

    def back(self, *arguments: str, **changes) -> tuple[int, str]:
        """Run the playbook and return its status and its words."""
        done = run_playbook(ROLLBACK, self.inventory(**changes), *arguments, timeout=400)
        return done.returncode, " ".join(done.stdout.split())

    def serving(self) -> list[str]:
        return [host.serving() for host in self.hosts]

    @contextlib.contextmanager
    def session(self):
        with contextlib.closing(Database(self.cluster.connect(self.database))) as database:
            yield database

    def sync(self, direction: str) -> None:
        with self.session() as database:
            Sync(database, SyncOptions()).install(direction)

    def book(self, name: str) -> bool:
        """Book as the new release does, and return whether the legacy side has it."""
        with self.session() as database:
            database.execute(BOOK, (name,))
            return database.value("SELECT count(*) FROM public.bookings WHERE id = %s", (name,)) == 1


@pytest.fixture(scope="module")
def stand(cluster, templates, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand")
    with templates.database("reference") as name, serving_hosts(folder, ("app1", "app2")) as hosts:
        stand = Stand(cluster, name, hosts, folder)
        with stand.session() as database:
            AtomicCopy(database, Options()).run()
        yield stand


def test_refused_before_any_host_is_touched(stand):
    status, words = stand.back(*CONFIRMED)
    assert status != 0 and "app1 has no release that is known to have served before, and nothing was changed on any host" in words
    stand.forward()
    stand.sync("forward")
    status, words = stand.back(*CONFIRMED)
    assert status != 0 and "what the new release writes is not carried to the legacy tables (sync: forward)" in words
    assert "Nothing was changed on any host. Run `ansible-playbook sync.yml -e sync_direction=both`" in words
    stand.sync("both")
    with stand.session() as database:
        database.execute("ALTER TABLE public.new_bookings DISABLE TRIGGER unified_user_reverse_insert")
    status, words = stand.back(*CONFIRMED)
    assert status != 0 and "triggers of the sync are missing: new_bookings.unified_user_reverse_insert" in words
    with stand.session() as database:
        database.execute("ALTER TABLE public.new_bookings ENABLE ALWAYS TRIGGER unified_user_reverse_insert")
    status, words = stand.back(*MODE)
    assert status != 0 and "nobody confirmed it, and nothing was changed" in words
    status, words = stand.back(*CONFIRMED, "--limit", "app1")
    assert status != 0 and "nobody was asked" in words and "--limit 'app1,db'" in words
    status, words = stand.back(*CONFIRMED, app_switchover_back_to="ancient")
    assert status != 0 and "has no release ancient" in words
    status, words = stand.back(*MODE, "--check")
    assert status == 0 and "app2 new -> old" in words and "2 of 2 hosts would serve the release before." in words
    assert stand.serving() == ["new", "new"]


def test_back_and_forward_again(stand):
    """What the legacy side cannot hold is told; what is written is there; nothing migrates again."""
    stand.sync("reverse")
    stand.forward()
    assert stand.book("while-new")
    with stand.session() as database:
        database.execute("INSERT INTO public.users (id, email, \"updatedAt\") VALUES ('nobody', 'nobody@example.org', now())")
        database.execute('UPDATE public.new_bookings SET "confirmedAt" = now() WHERE id = %s', ("while-new",))
    question = {"question": "Type application to go on", "answer": "application"}
    done = run_playbook_in_terminal(ROLLBACK, stand.inventory(), *MODE, **question, timeout=400)
    words = " ".join(done.stdout.split())
    assert done.returncode == 0 and stand.serving() == ["old", "old"], words
    assert "app1 new -> old" in words and "users_without_legacy_row 1" in words
    assert "2 of 2 hosts went back to the release before; everything written since the switch is on the legacy side (21 checks)." in words
    assert all(f"Only the unified side holds 1 {kind}." in words for kind in ("confirmations_of_bookings", "users_without_legacy_row"))
    with stand.session() as database:
        assert Sync(database, SyncOptions()).status()["direction"] == "both"
    status, words = stand.back(*CONFIRMED)
    assert status == 0 and "Nothing to do: 2 hosts serve the release before already" in words and "changed=0" in words
    with stand.session() as database:
        database.execute("DELETE FROM public.users WHERE id = 'nobody'")
        database.execute('UPDATE public.new_bookings SET "confirmedAt" = NULL')
    stand.forward()
    assert stand.book("while-new-again")


def test_killed_in_the_middle_and_run_again_and_what_the_legacy_side_lacks_is_found(stand, tmp_path):
    stand.sync("both")
    stand.forward()
    assert stand.book("lost") and stand.book("confirmed")
    mark, hook = tmp_path / "mark", tmp_path / "slow.yml"
    hook.write_text(
        "- name: Wait on the second host\n  ansible.builtin.shell: touch {{ mark }}; sleep 60\n  when: inventory_hostname == 'app2'\n  vars:\n"
        f"    mark: {mark}\n"
    )
    hosts = stand.inventory(app_switchover_hooks={"before_back": [str(hook)]})
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [str(PROGRAM), str(ROLLBACK), "-i", str(hosts), *CONFIRMED], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 90
        while not mark.exists():
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert stand.serving() == ["old", "new"]
    with stand.session() as database:
        database.execute('UPDATE public.new_bookings SET "confirmedAt" = now() WHERE id = %s', ("confirmed",))
        database.execute("ALTER TABLE public.bookings DISABLE TRIGGER USER")
        database.execute("DELETE FROM public.bookings WHERE id = 'lost'")
        for trigger in ("forward_insert", "forward_update", "forward_delete", "refuse_truncate"):
            database.execute(f"ALTER TABLE public.bookings ENABLE ALWAYS TRIGGER unified_user_{trigger}")
        if database.value("SELECT count(*) FROM pg_trigger WHERE tgrelid = 'public.bookings'::regclass AND NOT tgisinternal AND tgenabled <> 'A'"):
            raise AssertionError("a trigger of the sync was forgotten")
    status, words = stand.back(*CONFIRMED)
    assert "app1 new" not in words and "app2 new -> old" in words and "1 of 2 hosts went back to the release before; NOT everything written" in words
    assert status != 0 and "Failed to prove that everything written since the switch is on the legacy side" in words
    assert "bookings (1 unexpected, unexpected lost)" in words
    assert "The release before serves on every host." in words and stand.serving() == ["old", "old"]
