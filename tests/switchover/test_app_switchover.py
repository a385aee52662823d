# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The reference application switched for real: pm2, two processes, people who sign in and book throughout, and each way it can fail."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_browser import BrowserError, Network
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._auth_check_site import CaseFailed, Site
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sync import Sync, SyncOptions
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options

from tests.app import application, prisma_cli, reference_data
from tests.module_process import connection_options
from tests.playbook_process import run_playbook
from tests.switchover.small_host import AT_ONCE, PLAYBOOK

pytestmark = pytest.mark.one_major
BASE_PATH = "/termine"
ODD = """it's $5 and ${PATH} "twice" # no comment"""


class Host:
    """A host of the application: this machine, with a pm2 of its own."""

    def __init__(self, cluster, database: str, folder: Path) -> None:
        self.root, self.folder = folder / "srv" / "termine", folder
        self.stand, self.candidate_port = application.Stand(BASE_PATH), application.free_port()
        self.cluster, self.database = cluster, database
        self.pm2 = ["node", str(prisma_cli.install() / "node_modules" / "pm2" / "bin" / "pm2")]
        self.pm2_home = str(folder / "pm2")
        self.environment = {
            name: value
            for name, value in self.stand.environment(cluster, database, SMTP_URL="", MAIL_MODE="log", BCRYPT_COST="8").items()
            if name not in ("PATH", "HOME", "PORT", "NODE_ENV", "CI", "NO_COLOR")
        }
        self.environment["ODD"] = ODD
        # Its daemon belongs to nobody: should this process be killed, the end of the pipe is what ends it.
        self._watch = subprocess.Popen(
            ["sh", "-c", 'read -r nothing; exec "$@" >/dev/null 2>&1', "sh", *self.pm2, "kill"],
            stdin=subprocess.PIPE, env={**os.environ, "PM2_HOME": self.pm2_home}, start_new_session=True,
        )  # fmt: skip

    def inventory(self, each: dict[str, dict] | None = None, **changes) -> Path:
        """Write what an operator's inventory says, where `each` names further hosts like this one."""
        connection = {
            name.replace("login_", "unified_user_login_", 1): value for name, value in connection_options(self.cluster, self.database).items()
        }
        variables = {
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable, **connection,
            "app_switchover_root": str(self.root), "app_switchover_name": "termine", "app_switchover_source": "directory",
            "app_switchover_commands": [], "app_switchover_environment": self.environment, "app_switchover_port": self.stand.port,
            "app_switchover_candidate_port": self.candidate_port, "app_switchover_pm2": self.pm2, "app_switchover_pm2_home": self.pm2_home,
            "app_switchover_health_path": BASE_PATH + "/api/health", "app_switchover_watch_seconds": 1, "app_switchover_health_seconds": 60,
            "auth_check_url": self.stand.url, "auth_check_environment": "test", "auth_check_mail": {"source": "database"},
            "auth_check_bcrypt_cost": 8, **changes,
        }  # fmt: skip
        hosts = {name: {**variables, **own} for name, own in (each or {"localhost": {}}).items()}
        path = self.folder / "hosts.json"
        path.write_text(json.dumps({"all": {"children": {"app": {"hosts": hosts}}}}))
        path.chmod(0o600)
        return path

    def switch(self, release: str, built: Path, playbook: Path = PLAYBOOK, **changes):
        """Run the playbook and return its status and its words."""
        hosts = self.inventory(app_switchover_directory=str(built), app_switchover_release=release, **changes)
        done = run_playbook(playbook, hosts, timeout=500)
        return done.returncode, " ".join(done.stdout.split())

    def serving(self) -> str:
        """The release that answers."""
        site = self.site()
        return site.browser().get(site.at("health")).json()["release"]

    def site(self, **providers: str) -> Site:
        return Site(self.stand.url, Network(f"http://localhost:{self.stand.port}"), providers=providers)

    def end(self) -> None:
        """End pm2 and all it runs."""
        self._watch.communicate(timeout=60)

    def processes(self) -> list[str]:
        """What pm2 runs, by name."""
        done = subprocess.run([*self.pm2, "jlist"], env={**os.environ, "PM2_HOME": self.pm2_home}, capture_output=True, text=True, check=True)
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


def from_git(host: Host, built: Path) -> dict:
    """The guide's way: the legacy source out of a repository, edited as data says, and built; here with what was built before."""
    repository = host.folder / "repository"
    application.make_source(repository, "legacy")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    return {
        "app_switchover_source": "git", "app_switchover_git_repository": str(repository), "app_switchover_git_version": "HEAD",
        "app_switchover_import_rewrites": [{"files": list(application.IMPORTS), "before": application.IMPORT_BEFORE, "after": application.IMPORT_AFTER}],
        "app_switchover_route_moves": [{"source": f"{route}-unified", "target": route} for route in application.ROUTES],
        "app_switchover_commands": [
            # Only what was edited exactly so is built to the same.
            ["diff", "-r", str(built / "app"), "app"], ["diff", "-r", str(built / "lib"), "lib"],
            ["ln", "-s", str(prisma_cli.install() / "node_modules"), "node_modules"], ["cp", "-r", str(built / ".next"), ".next"],
        ],
    }  # fmt: skip


class People:
    """People who look, sign in and book all the time; every request must be answered."""

    def __init__(self, host: Host, providers: list[str]) -> None:
        self._host, self._providers = host, providers
        self._stop = threading.Event()
        self.answered, self.failed, self.booked = 0, [], []

    def __enter__(self):
        self._threads = [threading.Thread(target=self._act, args=(number,)) for number in range(2)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _act(self, number: int) -> None:
        count = 0
        site = self._host.site()
        studio = site.browser().get(site.at("studios")).json()["studios"][0]["id"]
        while not self._stop.is_set():
            count += 1
            site = Site(self._host.stand.url, Network(site.origin, headers=(("X-Forwarded-For", f"2001:db8::{number}:{count:x}"),)))
            try:
                browser = site.browser()
                assert browser.get(site.at("health")).status == 200
                # The session of one release is good at the other; which providers there are tells which one it is.
                offered = browser.get(site.auth("providers")).json()
                provider = next(name for name in self._providers if name in offered)
                attempt = site.sign_in(browser, provider, {"email": reference_data.owner_email(1), "password": reference_data.OWNER_PASSWORD})
                # Between the two requests the release may have changed: then the provider is not there, and the person tries again.
                assert attempt.answer.status < 500 and (attempt.user or attempt.error), attempt.error
                answer = browser.post_json(site.at("bookings"), {
                    "studioId": studio, "customerName": "Gast", "customerEmail": f"gast.{number}.{count}@mail.example",
                    "customerPhone": "0", "preferredDate": "2091-01-02", "preferredTime": "9",
                })  # fmt: skip
                assert answer.status == 201, answer.status
                self.booked.append(answer.json()["booking"]["id"])
                self.answered += 1
            except (AssertionError, BrowserError, CaseFailed) as error:
                self.failed.append(f"{type(error).__name__} {error}")
            time.sleep(0.1)


def test_switched_there_and_back_without_a_failed_request(host, unified):
    with People(host, ["studio-credentials", "credentials"]) as people:
        status, words = host.switch("unified-1", unified, **from_git(host, unified))
        assert status == 0 and host.serving() == "unified-1", words
        assert "33 passed, 0 failed, 0 skipped" in words
        again, told = host.switch("unified-1", unified)
        assert again == 0 and "changed=0" in told
        ancient = host.root / "releases" / "ancient"
        ancient.mkdir()
        status, words = host.switch("legacy-1", unified, app_switchover_auth_check=False, app_switchover_keep=2)
        assert status == 0 and host.serving() == "legacy-1", words
    assert not people.failed and people.answered > 10
    with contextlib.closing(Database(host.cluster.connect(host.database))) as database:
        for table in ("bookings", "new_bookings"):
            assert database.value(f"SELECT count(*) FROM {table} WHERE id = ANY (%s)", (people.booked,)) == len(people.booked)
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
    with People(host, ["studio-credentials", "credentials"]) as people:
        status, words = host.switch("unified-2", unified, playbook=PLAYBOOK, each={"localhost": {}, "second": second}, **changes)
    message = words[words.index("Failed to switch localhost to release unified-2") :].partition("Origin:")[0]
    assert status != 0 and "magic_link_without_token" in message and "Release legacy-1 serves." in message
    assert host.serving() == "legacy-1" and not people.failed and people.answered and not (tmp_path / "second").exists()
