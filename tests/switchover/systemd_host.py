# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Hosts of a small application under a real systemd: a container that is reached over SSH, as the account that an operator has there."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import host_image
import run_molecule

from tests.switchover.small_host import small_release

PORTS = {"system": 3000, "user": 4000}
#: Says what it sees, answers /slow in two parts, and ends when it is asked to, once it has answered everybody.
SERVER = """
const port = Number(process.argv[process.argv.indexOf("-p") + 1]);
const writes = (path) => { try { require("fs").writeFileSync(path, ""); return true; } catch { return false; } };
const seen = {
  release: process.env.RELEASE_ID, directory: process.cwd(), odd: process.env.ODD, user: process.getuid(),
  writes: { home: writes(`${require("os").homedir()}/written`), release: writes("written") },
};
const answer = (request, response) => {
  response.setHeader("content-type", "application/json");
  if (request.url !== "/slow") return response.end(JSON.stringify(seen));
  response.flushHeaders();
  setTimeout(() => response.end(JSON.stringify(seen)), 1000);
};
const server = require("http").createServer(answer).listen(port, "0.0.0.0");
process.on("SIGTERM", () => server.close(() => process.exit(0)));
"""


class Machine:
    """A container with systemd, with this machine's Node.js in it.

    Args:
        folder: for keys, and for the releases that the container sees below ``/releases``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, f"{run_molecule.run_name()}-switchover"
        self.releases, self.key, self.known = folder / "releases", folder / "key", folder / "known_hosts"
        self.releases.mkdir()
        self.address = ""

    def run(self, *command: str) -> str:
        """Run a command as root there and return what it printed."""
        return host_image.run("podman", "exec", self.name, *command).stdout.strip()

    def start(self) -> None:
        """Start it, and wait until SSH and the account's own systemd answer."""
        # What a killed run left behind.
        run_molecule.remove_where(run_molecule.is_stale)
        node = subprocess.run(["node", "-p", "process.execPath"], capture_output=True, text=True, check=True).stdout.strip()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        host_image.run("podman", "network", "create", "--internal", self.name)
        host_image.run(
            "podman", "run", "--detach", "--name", self.name, "--hostname", "app1", "--network", self.name, "--systemd=always", "--pull=never",
            # Without it systemd cannot keep a unit's processes from writing where they should not.
            "--cap-add=SYS_ADMIN", "--timeout=900", "--stop-timeout=5",
            f"--volume={node}:/usr/local/bin/node:ro", f"--volume={self.releases}:/releases:ro", host_image.ensure(),
        )  # fmt: skip
        self._wait(lambda: self.run("cat", "/etc/ssh/ssh_host_ed25519_key.pub"))
        described = json.loads(host_image.run("podman", "inspect", self.name).stdout)[0]
        self.address = described["NetworkSettings"]["Networks"][self.name]["IPAddress"]
        public_key = " ".join(self.run("cat", "/etc/ssh/ssh_host_ed25519_key.pub").split()[:2])
        self.known.write_text(f"{self.address} {public_key}\n")
        # The account's units go on without a session, as after `loginctl enable-linger`; there is no logind that would do it.
        self.run(
            "sh", "-ec",
            "umask 077; mkdir -p ~deploy/.ssh; printf '%s\n' \"$1\" > ~deploy/.ssh/authorized_keys; chown -R deploy ~deploy/.ssh;"
            " umask 022; mkdir -p /var/lib/systemd/linger /srv/system; touch /var/lib/systemd/linger/deploy; chown deploy /srv/system;"
            " mkdir -p /run/systemd/system/user@.service.d;"
            " printf '[Service]\\nEnvironment=XDG_RUNTIME_DIR=/run/user/%%i\\n' > /run/systemd/system/user@.service.d/runtime.conf;"
            " systemctl daemon-reload; systemctl start user@$(id -u deploy)",
            "sh", self.key.with_suffix(".pub").read_text().strip(),
        )  # fmt: skip
        self._wait(lambda: socket.create_connection((self.address, 22), 1).close())

    def _wait(self, look) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                return look()
            except (host_image.ImageError, OSError):
                assert time.monotonic() < deadline, "the container does not get ready"
                time.sleep(0.2)

    def end(self) -> None:
        """Remove it and its network."""
        run_molecule.remove([self.name], [self.name])


class SystemdHost:
    """One application on the machine, with units of the system or of the account.

    Args:
        machine: where.
        name: ``system`` or ``user``: whose units they are, and what the inventory calls it.
    """

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name, self.folder = machine, name, machine.folder
        self.root = {"system": "/srv/system", "user": "/home/deploy/user"}[name]
        self.ports = [PORTS[name], PORTS[name] + 1]

    def variables(self, **changes: Any) -> dict[str, Any]:
        """What an operator's inventory says of it."""
        known = f"-o UserKnownHostsFile={self.machine.known} -o GlobalKnownHostsFile=/dev/null -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes"
        return {
            "ansible_host": self.machine.address, "ansible_user": "deploy", "ansible_ssh_private_key_file": str(self.machine.key),
            "ansible_ssh_common_args": known, "ansible_ssh_args": "-o ControlMaster=auto -o ControlPersist=10s",
            "ansible_python_interpreter": "/usr/bin/python3", "app_switchover_root": self.root, "app_switchover_name": f"small-{self.name}",
            "app_switchover_runtime": "systemd", "app_switchover_systemd_scope": self.name, "app_switchover_source": "directory",
            "app_switchover_commands": [], "app_switchover_script": "server.js", "app_switchover_arguments": "", "app_switchover_port": self.ports[0],
            "app_switchover_candidate_port": self.ports[0] + 900, "app_switchover_watch_seconds": 1, "app_switchover_health_seconds": 5,
            "app_switchover_drain_seconds": 5, "app_switchover_auth_check": False, "app_switchover_canary_seconds": 0,
            "app_preflight_environment_names": [], "app_preflight_mail_variable": "", "unified_user_login_db": "unused", **changes,
        }  # fmt: skip

    def release(self, name: str, server: str = SERVER) -> dict[str, str]:
        """Write a release and return the variables that switch to it."""
        small_release(self.machine.releases / name, server)
        return {"app_switchover_release": name, "app_switchover_directory": f"/releases/{name}"}

    def linked(self, name: str = "current") -> str:
        """The release that a link leads to; empty where there is no link."""
        return self.machine.run("sh", "-c", f"readlink {self.root}/{name} || :").rpartition("/")[2]

    def systemctl(self, *arguments: str) -> str:
        """Ask its systemd."""
        if self.name == "system":
            return self.machine.run("systemctl", *arguments)
        return self.machine.run("sh", "-c", 'exec runuser -u deploy -- env XDG_RUNTIME_DIR=/run/user/$(id -u deploy) systemctl --user "$@"', "sh", *arguments)

    def answers(self) -> list[dict[str, Any]]:
        """What each of its instances says."""
        return [json.loads(ask(self.machine.address, port, "/")) for port in self.ports]

    def serving(self) -> list[str]:
        """The release of each of its instances."""
        return [answer["release"] for answer in self.answers()]


class Refused(Exception):
    """An upstream took no connection, or ended it without a word."""


def ask(address: str, port: int, path: str) -> bytes:
    """Ask an upstream once.

    Raises:
        Refused: it did not begin to answer, so that a proxy asks the next one.
        http.client.HTTPException, OSError: it began and did not finish.
    """
    connection = http.client.HTTPConnection(address, port, timeout=10)
    with contextlib.closing(connection):
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
        except ConnectionError as error:
            raise Refused(str(error)) from error
        return answer.read()


class Clients:
    """People who ask all the time, through a proxy that takes the next upstream where one refuses. A context manager.

    Attributes:
        answered: how many times each release answered, by host and release.
        finished: how many slow answers, begun before, were read to their end.
        failed: what got no answer, or half of one.
    """

    def __init__(self, hosts: list[SystemdHost]) -> None:
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._act, args=(host, path), daemon=True) for host in hosts for path in ("/", "/slow")]
        self.answered: dict[tuple[str, str], int] = {}
        self.finished, self.failed = 0, []

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _act(self, host: SystemdHost, path: str) -> None:
        for count in itertools.count():
            if self._stop.wait(0.05):
                return
            try:
                answer = self._through_a_proxy(host, path, count)
                with self._lock:
                    release = json.loads(answer)["release"]
                    self.answered[host.name, release] = self.answered.get((host.name, release), 0) + 1
                    self.finished += path == "/slow"
            except (Refused, OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.failed.append(f"{host.name} {path}: {type(error).__name__} {error}")

    @staticmethod
    def _through_a_proxy(host: SystemdHost, path: str, count: int) -> bytes:
        first = count % len(host.ports)
        for port in host.ports[first:] + host.ports[:first]:
            try:
                return ask(host.machine.address, port, path)
            except Refused as error:
                refused = error
        raise refused


@contextlib.contextmanager
def systemd_hosts(folder: Path):
    """A machine with two hosts' applications on it, whose units are the system's and the account's."""
    machine = Machine(folder)
    try:
        machine.start()
        yield [SystemdHost(machine, name) for name in PORTS]
    finally:
        machine.end()
