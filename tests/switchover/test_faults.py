# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Everything that can go wrong before a new release serves: each on a host of its own, all in one run, and the old release goes on serving."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.switchover.small_host import SERVER, run_on, serving_hosts, small_release

pytestmark = pytest.mark.one_major

CRASHING = SERVER + "\nsetTimeout(() => process.exit(1), 4000);\n"
#: Bytes of the disk that gets full.
SMALL_DISK = 4 * 1024 * 1024


def _rewrite(before: str) -> dict:
    return {"app_switchover_import_rewrites": [{"files": ["server.js"], "before": before, "after": "x"}]}


#: What a host's switchover is told, and what it says.
FAULTS = {
    "build": (
        {"app_switchover_commands": [["sh", "-c", "seq 2000; echo cannot compile; exit 7"]]},
        "non-zero return code The command said: 1 2 3 … 1999 2000 cannot compile Release old serves.",
    ),
    "lockfile": ({"app_switchover_commands": [["npm", "ci", "--offline"]]}, "can only install packages when your package.json and package-lock.json"),
    "rewritenone": (_rewrite("nothing like it"), "occurs 0 times instead of 1"),
    "rewritemuch": (_rewrite("response"), "occurs 3 times instead of 1"),
    "port": ({}, "is taken; the candidate needs it"),
    "crash": ({"app_switchover_watch_seconds": 7}, "See that it goes on answering"),
    "disk": ({"app_switchover_commands": [["dd", "if=/dev/zero", "of=chunk", "bs=1M", "count=8"]]}, "No space left on device"),
    "lock": ({}, "another switchover is under way there, or was killed. Wait for it"),
    "alive": ({}, f"another switchover is under way there, or was killed. It is process {os.getpid()} on {os.uname().nodename}. Wait for it"),
    "dangling": ({}, "leads to gone, which is not there"),
    "nolink": ({}, "current is not a link"),
    "none": ({}, "no release serves there, so there would be none to go back to"),
    "badname": ({"app_switchover_release": "../old"}, "../old cannot be a release's name"),
}  # fmt: skip
#: Refused before anything is touched: not even a directory is made.
REFUSED = {"lock", "alive", "dangling", "nolink", "none", "badname"}


def _wrong_lock(folder: Path) -> Path:
    """A release whose lock file was not made for its package.json, and which needs no registry to see that."""
    release = small_release(folder)
    (release / "lib").mkdir()
    (release / "lib" / "package.json").write_text(json.dumps({"name": "lib", "version": "1.0.0"}))
    described = {"name": "small", "version": "1.0.0", "lockfileVersion": 3, "packages": {"": {"name": "small", "version": "1.0.0"}}}
    (release / "package-lock.json").write_text(json.dumps(described))
    (release / "package.json").write_text(json.dumps({"name": "small", "version": "1.0.0", "dependencies": {"lib": "file:lib"}}))
    return release


def _contents(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """All hosts after the run: host, what it said, and whether its directories are as they were."""
    folder = tmp_path_factory.mktemp("faults")
    new, crashing, wrong_lock = small_release(folder / "new"), small_release(folder / "crashing", CRASHING), _wrong_lock(folder / "wrong_lock")
    with contextlib.ExitStack() as stack:
        disk = folder / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(disk)], capture_output=True, check=False).returncode == 0
        if mounted:
            stack.callback(subprocess.run, ["umount", "--lazy", str(disk)], check=True)
        names = tuple(name for name in FAULTS if mounted or name != "disk")
        hosts = {host.name: host for host in stack.enter_context(serving_hosts(folder, names, roots={"disk": disk}, without=("none",)))}
        taken = stack.enter_context(socket.socket())
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", hosts["port"].candidate_port))
        taken.listen()
        (hosts["lock"].root / ".switchover").symlink_to("switch")
        (hosts["alive"].root / ".switchover").symlink_to(f"switch:{os.uname().nodename}:{os.getpid()}")
        for name in ("dangling", "nolink"):
            (hosts[name].root / "current").unlink()
        (hosts["dangling"].root / "current").symlink_to("releases/gone")
        (hosts["nolink"].root / "current").mkdir()
        before = {name: _contents(host.root) for name, host in hosts.items()}
        releases = {"crash": crashing, "lockfile": wrong_lock}
        each = {name: {"app_switchover_directory": str(releases.get(name, new)), **changes} for name, (changes, _words) in FAULTS.items()}
        status, words = run_on(list(hosts.values()), each={name: {"app_switchover_release": "new", **changes} for name, changes in each.items()})
        assert status != 0
        yield {name: (host, words, before[name] == _contents(host.root)) for name, host in hosts.items()}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_before_it_serves(outcome, fault):
    if fault not in outcome:
        pytest.skip("mounting a small file system is refused here")
    host, words, untouched = outcome[fault]
    start = words.index(f"Failed to switch {fault}")
    message = words[start : words.find("Origin:", start)]
    beginning, cut, end = FAULTS[fault][1].partition(" … ")
    # Of what is long there are both ends.
    assert beginning in message and cut in message and end in message, message
    if fault in REFUSED:
        assert untouched
    else:
        assert "Release old serves. The bad release is kept in" in message and "run `ansible-playbook switch.yml -e app_switchover_release=new`" in message
        assert host.linked() == "old" and not (host.root / ".switchover").is_symlink() and not (host.root / "previous").is_symlink()
    if fault != "none":
        assert host.serving() == "old"


def test_only_what_serves_is_left_running(outcome):
    names = [process["name"] for process in outcome["build"][0].processes()]
    assert sorted(names) == sorted(set(outcome) - {"none"})


def test_pm2_is_gone(tmp_path):
    """Its daemon was killed, and with it what served: the switch brings up both releases as it needs them."""
    release = small_release(tmp_path / "new")
    with serving_hosts(tmp_path, ("here",)) as hosts:
        (host,) = hosts
        daemon = int((host.pm2_home / "pm2.pid").read_text())
        workers = [process["pid"] for process in host.processes()]
        os.kill(daemon, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # Its way back is sound, too.
        hooks = {"after_switch": [str(tmp_path / "fails.yml")]}
        (tmp_path / "fails.yml").write_text("- name: Fail once it serves\n  ansible.builtin.fail:\n    msg: the operator says no\n")
        status, words = run_on(hosts, app_switchover_release="bad", app_switchover_directory=str(release), app_switchover_hooks=hooks)
        assert status != 0 and "the operator says no Release old serves." in words and host.serving() == "old", words
        # And where pm2 itself is gone, nothing that serves is touched.
        absent = {"app_switchover_release": "new", "app_switchover_directory": str(release), "app_switchover_pm2": [str(tmp_path / "no-pm2")]}
        status, words = run_on(hosts, **absent)
        assert status != 0 and 'in step "Start it on the spare port"' in words and "No such file or directory" in words and host.serving() == "old"
