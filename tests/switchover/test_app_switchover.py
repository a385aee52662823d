# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The reference application switched for real: pm2, two processes, people who sign in and book throughout, and each way it can fail."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import Sync, SyncOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options

from tests.app import application
from tests.app.application_host import BASE_PATH, ApplicationHost, People
from tests.module_process import connection_options
from tests.playbook_process import run_playbook
from tests.switchover.small_host import AT_ONCE, PLAYBOOK

pytestmark = pytest.mark.one_major
ODD = """it's $5 and ${PATH} "twice" # no comment"""


class Host(ApplicationHost):
    """A host of the application with an inventory of its own."""

    def __init__(self, cluster, database: str, folder: Path) -> None:
        super().__init__(folder, cluster, database, SMTP_URL="", MAIL_MODE="log", ODD=ODD)
        self.cluster, self.database = cluster, database

    def inventory(self, each: dict[str, dict] | None = None, **changes) -> Path:
        """Write what an operator's inventory says, where `each` names further hosts like this one."""
        connection = {
            name.replace("login_", "unified_user_login_", 1): value for name, value in connection_options(self.cluster, self.database).items()
        }
        variables = {
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable, **connection, "app_switchover_source": "directory",
            "app_switchover_commands": [], **self.variables(auth_check_mail={"source": "database"}), **changes,
        }  # fmt: skip
        hosts = {name: {**variables, **own} for name, own in (each or {"localhost": {}}).items()}
        path = self.folder / "hosts.json"
        path.write_text(json.dumps({"all": {"children": {"app": {"hosts": hosts}}}}))
        path.chmod(0o600)
        return path

    def switch(self, release: str, built: Path, playbook: Path = PLAYBOOK, **changes):
        """Run the playbook and return its status and its words."""
        hosts = self.inventory(**{"app_switchover_directory": str(built), **changes, "app_switchover_release": release})
        done = run_playbook(playbook, hosts, timeout=500)
        return done.returncode, " ".join(done.stdout.split())

    def processes(self) -> list[str]:
        """What pm2 runs, by name."""
        done = subprocess.run([*self.pm2, "jlist"], env={**os.environ, "PM2_HOME": str(self.pm2_home)}, capture_output=True, text=True, check=True)
        return [process["name"] for process in json.loads(done.stdout[done.stdout.index("["):])]


@pytest.fixture(scope="module")
def host(cluster, templates, tmp_path_factory):
    """A host on which the legacy release serves, on a migrated database with two-way sync."""
    with templates.database("reference") as name:
        folder = tmp_path_factory.mktemp("host")
        host = Host(cluster, name, folder)
        with contextlib.closing(Database(cluster.connect(name))) as database:
            AtomicCopy(database, Options()).run()
            Sync(database, SyncOptions()).install("both")
        with contextlib.ExitStack() as stack:
            stack.enter_context(host.stand.issuer(folder / "issuer.log"))
            stack.callback(host.end)
            status, words = host.switch("legacy-1", application.build("legacy", BASE_PATH), app_switchover_auth_check=False)
            assert status != 0 and "no release serves there, so there would be none to go back to" in words
            assert not host.root.exists()
            archive = shutil.make_archive(str(folder / "legacy"), "gztar", application.build("legacy", BASE_PATH))
            first = {"app_switchover_first": True, "app_switchover_source": "tarball", "app_switchover_tarball": archive}
            status, words = host.switch("legacy-1", Path("/nowhere"), app_switchover_auth_check=False, **first)
            assert status == 0 and host.serving() == "legacy-1", words
            yield host


@pytest.fixture(scope="module")
def unified():
    return application.build("unified", BASE_PATH)


def test_switched_there_and_back_without_a_failed_request(host, unified):
    with People(host) as people:
        status, words = host.switch("unified-1", unified, **host.next_release())
        assert status == 0 and host.serving() == "unified-1", words
        assert "33 passed, 0 failed, 0 skipped" in words
        again, told = host.switch("unified-1", unified)
        assert again == 0 and "changed=0" in told
        ancient = host.root / "releases" / "ancient"
        ancient.mkdir()
        status, words = host.switch("legacy-1", unified, app_switchover_auth_check=False, app_switchover_keep=2)
        assert status == 0 and host.serving() == "legacy-1", words
    assert not people.failed and people.requests > 10 and all(people.sign_ins.values())
    with contextlib.closing(host.cluster.connect(host.database)) as connection:
        assert people.booked and set(people.found(connection).values()) == {len(people.booked)}
    assert host.processes() == ["termine", "termine"]
    assert {release.name for release in ancient.parent.iterdir()} == {"legacy-1", "unified-1"}
    settings = host.root / "releases" / "unified-1" / ".env.production"
    assert settings.stat().st_mode & 0o777 == 0o600 and "AUTH_SECRET" in settings.read_text()
    read = "require('@next/env').loadEnvConfig('.', false, {info() {}, error() {}}); console.log(process.env.ODD)"
    done = subprocess.run(["node", "-e", read], cwd=settings.parent, capture_output=True, text=True, check=True)
    assert done.stdout == ODD + "\n"


def test_candidates_that_must_not_serve(host, unified, tmp_path):
    """Sign-in that is broken, sign-in that lets anybody in, and a database that refuses the release: three hosts, of which one serves already."""
    changes = {
        "localhost": {"BROKEN": "magic-link-takes-no-token"},
        "throws": {"BROKEN": "sign-in-throws"},
        "refused": {"DATABASE_URL": f"postgresql://postgres:wrong@127.0.0.1:{host.cluster.port}/{host.database}"},
    }
    others = {"app_switchover_first": True, "app_switchover_health_seconds": 3}
    each = {name: {"app_switchover_environment": {**host.environment, **settings}} for name, settings in changes.items()}
    for name in ("throws", "refused"):
        root, ports = host.folder / name / "termine", (application.free_port(), application.free_port())
        each[name] |= {"app_switchover_root": str(root), "app_switchover_port": ports[0], "app_switchover_candidate_port": ports[1]}
        each[name] |= {"app_switchover_name": name, **(others if name == "refused" else {"app_switchover_first": True})}
    at_once = tmp_path / "at_once.yml"
    at_once.write_text(AT_ONCE)
    status, words = host.switch("unified-bad", unified, playbook=at_once, each=each)
    messages = {name: words[words.index(f"Failed to switch {name}") :][:3000].partition("Origin:")[0] for name in each}
    assert status != 0 and "magic_link_without_token (an e-mail without a token" in messages["localhost"]
    assert "Release legacy-1 serves. The bad release is kept in" in messages["localhost"]
    assert "password_owner" in messages["throws"] and "magic_link_without_token" not in messages["throws"]
    assert 'in step "Wait until it answers": Status code was 503' in messages["refused"]
    for name in ("throws", "refused"):
        assert "No release served before." in messages[name] and not (host.folder / name / "termine" / "current").exists()
    assert host.serving() == "legacy-1" and host.processes() == ["termine", "termine"] and (host.root / "releases" / "unified-bad").is_dir()
    assert not (host.root / ".switchover").is_symlink()


def test_back_when_sign_in_breaks_where_it_serves(host, unified, tmp_path):
    """The canary of two hosts: what its candidate did not show is found while it serves alone, and the second host is never touched."""
    mistake, hook = tmp_path / "broken", tmp_path / "breaks.yml"
    mistake.write_text("")
    copy = {"content": "magic-link-takes-no-token", "dest": str(mistake), "mode": "0644"}
    hook.write_text(json.dumps([{"name": "Break it once it serves", "ansible.builtin.copy": copy}]))
    second = {
        "app_switchover_root": str(tmp_path / "second"), "app_switchover_port": application.free_port(), "app_switchover_first": True,
        "app_switchover_candidate_port": application.free_port(),
    }  # fmt: skip
    changes = {
        "app_switchover_environment": {**host.environment, "BROKEN_FILE": str(mistake)}, "app_switchover_hooks": {"after_switch": [str(hook)]},
        "app_switchover_canary_seconds": 2,
    }  # fmt: skip
    with People(host) as people:
        status, words = host.switch("unified-2", unified, playbook=PLAYBOOK, each={"localhost": {}, "second": second}, **changes)
    message = words[words.index("Failed to switch localhost to release unified-2") :].partition("Origin:")[0]
    assert status != 0 and "magic_link_without_token" in message and "Release legacy-1 serves." in message
    assert host.serving() == "legacy-1" and not people.failed and people.requests and not (tmp_path / "second").exists()
