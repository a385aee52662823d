# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The reference application switched for real: pm2, two processes, people who sign in and book throughout, and each way it can fail."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
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
from tests.playbook_process import ROOT, run_playbook

pytestmark = pytest.mark.one_major
BASE_PATH = "/termine"
CRASHING = 'setTimeout(() => process.exit(1), 5000); require("./node_modules/next/dist/bin/next")'
ODD = """it's $5 and ${PATH} "twice" # no comment"""
PLAYBOOK = ROOT / "playbooks" / "switch.yml"


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

    def inventory(self, **changes) -> Path:
        """Write what an operator's inventory says."""
        connection = {
            name.replace("login_", "unified_user_login_", 1): value for name, value in connection_options(self.cluster, self.database).items()
        }
        variables = {
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable, **connection,
            "app_switchover_root": str(self.root), "app_switchover_name": "termine", "app_switchover_source": "directory",
            "app_switchover_commands": [], "app_switchover_environment": self.environment, "app_switchover_port": self.stand.port,
            "app_switchover_candidate_port": self.candidate_port, "app_switchover_pm2": self.pm2, "app_switchover_pm2_home": self.pm2_home,
            "app_switchover_health_path": BASE_PATH + "/api/health", "app_switchover_watch_seconds": 1, "app_switchover_health_seconds": 30,
            "auth_check_url": self.stand.url, "auth_check_environment": "test", "auth_check_mail": {"source": "database"},
            "auth_check_bcrypt_cost": 8, **changes,
        }  # fmt: skip
        path = self.folder / "hosts.json"
        path.write_text(json.dumps({"all": {"children": {"app": {"hosts": {"localhost": variables}}}}}))
        path.chmod(0o600)
        return path

    def switch(self, release: str, built: Path, **changes):
        """Run the playbook and return its status and its words."""
        hosts = self.inventory(app_switchover_directory=str(built), app_switchover_release=release, **changes)
        done = run_playbook(PLAYBOOK, hosts, timeout=400)
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


def test_sign_in_that_is_broken_never_serves(host, unified):
    broken = {**host.environment, "BROKEN": "magic-link-takes-no-token"}
    status, words = host.switch("unified-bad", unified, app_switchover_environment=broken)
    assert status != 0 and "magic_link_without_token" in words and "Release legacy-1 serves. The bad release is kept in" in words
    assert host.serving() == "legacy-1" and host.processes() == ["termine", "termine"] and (host.root / "releases" / "unified-bad").is_dir()
    assert not (host.root / ".switchover").exists()


def test_back_when_it_fails_while_it_serves(host, unified, tmp_path):
    hook = tmp_path / "fails.yml"
    hook.write_text("- name: Fail once it serves\n  ansible.builtin.fail:\n    msg: the operator's own check says no\n")
    with People(host, ["studio-credentials", "credentials"]) as people:
        status, words = host.switch("unified-2", unified, app_switchover_auth_check=False, app_switchover_hooks={"after_switch": [str(hook)]})
    assert status != 0 and "the operator's own check says no Release legacy-1 serves." in words
    assert host.serving() == "legacy-1" and not people.failed and people.answered


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"app_switchover_commands": [["sh", "-c", "echo lock file does not match; exit 7"]]}, "The command said: lock file does not match"),
        ({"app_switchover_import_rewrites": [{"files": ["lib/mail.ts"], "before": "nothing like it", "after": "x"}]}, "occurs 0 times instead of 1"),
        # The database refuses it.
        ({"settings": {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}, "app_switchover_health_seconds": 2}, "Status code was 503"),
        # It dies after it was healthy.
        (
            {
                "app_switchover_commands": [["sh", "-c", f"echo '{CRASHING}' > crashing.js"]], "app_switchover_script": "crashing.js",
                "app_switchover_watch_seconds": 6, "app_switchover_auth_check": False,
            },
            "Connection refused",
        ),
    ],
    ids=["build", "rewrite", "database", "crash"],
)  # fmt: skip
def test_what_fails_before_it_serves(host, unified, request, changes, words):
    release = f"unified-{request.node.callspec.id}"
    settings = {**host.environment, **changes.get("settings", {})}
    others = {name: value for name, value in changes.items() if name != "settings"}
    status, said = host.switch(release, unified, app_switchover_environment=settings, **others)
    assert status != 0 and words in said and "Release legacy-1 serves." in said
    assert host.serving() == "legacy-1" and host.processes() == ["termine", "termine"]


def test_a_port_that_is_taken(host, unified):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", host.candidate_port))
        other.listen()
        status, words = host.switch("unified-3", unified)
    assert status != 0 and f"Port {host.candidate_port} is taken" in words and host.serving() == "legacy-1"


def test_two_at_once_and_links_that_lead_nowhere(host, unified):
    (host.root / ".switchover").mkdir()
    status, words = host.switch("unified-4", unified)
    (host.root / ".switchover").rmdir()
    assert status != 0 and "another switchover is under way" in words and not (host.root / "releases" / "unified-4").exists()
    current = host.root / "current"
    current.unlink()
    current.symlink_to("releases/gone")
    status, words = host.switch("unified-4", unified)
    current.unlink()
    current.symlink_to("releases/legacy-1")
    assert status != 0 and "leads to gone, which is not there" in words and not (host.root / "releases" / "unified-4").exists()
