# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Hosts with a small application: a server of a few lines under a pm2 of its own, so that a switchover takes seconds."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.app import application, prisma_cli
from tests.playbook_process import ROOT, run_playbook

PLAYBOOK = ROOT / "playbooks" / "switch.yml"
#: All hosts at once, and each for itself: so many faults cost little more time than one.
AT_ONCE = """
- name: Switch the application
  hosts: app
  gather_facts: false
  tasks:
    - name: Switch it
      ansible.builtin.import_role:
        name: rnltlabs.unified_user.app_switchover
"""
#: The pm2 of the reference application.
PM2 = ["node", str(prisma_cli.install() / "node_modules" / "pm2" / "bin" / "pm2")]

SERVER = """
const port = Number(process.argv[process.argv.indexOf("-p") + 1]);
const answer = (_request, response) => {
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify({ release: process.env.RELEASE_ID }));
};
require("http").createServer(answer).listen(port, "127.0.0.1");
"""


class SmallHost:
    """A host: this machine, with directories, ports and a pm2 of its own.

    Attributes:
        name: what the inventory calls it.
        root: its directory of the application.
        port, candidate_port: where it serves, and where a new release is proven.
    """

    def __init__(self, name: str, folder: Path, pm2_home: Path, root: Path | None = None) -> None:
        self.name, self.folder = name, folder
        self.root, self.pm2_home = root or folder / "srv", pm2_home
        folder.mkdir(exist_ok=True)
        self.port, self.candidate_port = application.free_port(), application.free_port()

    def variables(self, **changes: Any) -> dict[str, Any]:
        """What an operator's inventory says of it."""
        return {
            "ansible_connection": "local", "ansible_python_interpreter": sys.executable, "app_switchover_root": str(self.root),
            "app_switchover_name": self.name, "app_switchover_source": "directory", "app_switchover_commands": [],
            "app_switchover_script": "server.js", "app_switchover_arguments": "", "app_switchover_port": self.port,
            "app_switchover_candidate_port": self.candidate_port, "app_switchover_pm2": PM2, "app_switchover_pm2_home": str(self.pm2_home),
            "app_switchover_watch_seconds": 1, "app_switchover_health_seconds": 20, "app_switchover_auth_check": False,
            "app_switchover_instances": 1, "app_switchover_canary_seconds": 0,
            "app_preflight_environment_names": [], "app_preflight_mail_variable": "", "unified_user_login_db": "unused", **changes,
        }  # fmt: skip

    def application(self) -> dict[str, Any]:
        """What pm2 is told of release old."""
        return {
            "name": self.name, "cwd": str(self.root / "current"), "script": "server.js", "args": f"-p {self.port}", "exec_mode": "cluster", "instances": 1,
            "env": {"RELEASE_ID": "old"},
        }  # fmt: skip

    def listens(self) -> bool:
        """Whether anything is on its port."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def serving(self) -> str:
        """The release that answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/health", timeout=5) as answer:
            return json.load(answer)["release"]

    def linked(self, name: str = "current") -> str:
        """The release that a link leads to."""
        return os.path.basename(os.readlink(self.root / name))

    def processes(self) -> list[dict[str, Any]]:
        """What pm2 runs."""
        done = subprocess.run([*PM2, "jlist"], env={**os.environ, "PM2_HOME": str(self.pm2_home)}, capture_output=True, text=True, check=True)
        return json.loads(done.stdout[done.stdout.index("[") :])


def small_release(folder: Path, server: str = SERVER) -> Path:
    """Write a release of the small application and return its directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.js").write_text(server)
    return folder


def run_on(hosts: list[SmallHost], *arguments: str, playbook: Path | None = None, each: dict[str, dict] | None = None, **changes: Any) -> tuple[int, str]:
    """Run a playbook on hosts, by default the role on all at once, and return its status and its words.

    Args:
        each: further variables of single hosts, by name.
        changes: further variables of all.
    """
    described = {host.name: host.variables(**{**changes, **(each or {}).get(host.name, {})}) for host in hosts}
    path, at_once = hosts[0].folder / "hosts.json", hosts[0].folder / "at_once.yml"
    at_once.write_text(AT_ONCE)
    path.write_text(json.dumps({"all": {"children": {"app": {"hosts": described}}}}))
    done = run_playbook(playbook or at_once, path, *arguments, timeout=500)
    return done.returncode, " ".join(done.stdout.split())


@contextlib.contextmanager
def _pm2_until_the_end(home: Path):
    # Its daemon belongs to nobody: should this process be killed, the end of the pipe is what ends it.
    watch = subprocess.Popen(
        ["sh", "-c", 'read -r nothing; exec "$@" >/dev/null 2>&1', "sh", *PM2, "kill"],
        stdin=subprocess.PIPE, env={**os.environ, "PM2_HOME": str(home)}, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        watch.communicate(timeout=60)


@contextlib.contextmanager
def serving_hosts(folder: Path, names: tuple[str, ...], roots: dict[str, Path] | None = None, without: tuple[str, ...] = ()):
    """Hosts on which release old serves, as a switch would have left them; they share one pm2.

    Args:
        roots: other directories of the application, by name of the host.
        without: hosts where nothing serves.
    """
    with contextlib.ExitStack() as stack:
        hosts = []
        for name in names:
            hosts.append(SmallHost(name, folder / name, folder / "pm2", (roots or {}).get(name)))
        stack.enter_context(_pm2_until_the_end(folder / "pm2"))
        serving = [host for host in hosts if host.name not in without]
        for host in serving:
            small_release(host.root / "releases" / "old")
            (host.root / "current").symlink_to("releases/old")
            (host.root / "shared").mkdir()
        if serving:
            described = folder / "old.ecosystem.json"
            described.write_text(json.dumps({"apps": [host.application() for host in serving]}))
            subprocess.run([*PM2, "start", str(described)], env={**os.environ, "PM2_HOME": str(folder / "pm2")}, capture_output=True, check=True)
        deadline = time.monotonic() + 30
        for host in serving:
            while not host.listens():
                assert time.monotonic() < deadline, host.name
                time.sleep(0.1)
            assert host.serving() == "old"
        yield hosts
