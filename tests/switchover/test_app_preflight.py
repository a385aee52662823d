# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is found on an application's host before a switch, each fault made for real; only what a program's version is, a stand-in says."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.app import application
from tests.module_process import run_module
from tests.playbook_process import ROOT, run_playbook

PLAYBOOK = """
- hosts: app
  gather_facts: false
  tasks:
    - ansible.builtin.import_role:
        name: rnltlabs.unified_user.app_preflight
"""


@contextlib.contextmanager
def answering(status: int, content: dict | None = None):
    """An application on a loopback port that answers everything alike; yields the port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(content or {}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        yield from _served(server)


@contextlib.contextmanager
def greeting(words: bytes):
    """A service on a loopback port that says something to whoever comes; yields the port."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(words)
            self.rfile.readline()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        yield from _served(server)


def _served(server):
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()


@pytest.fixture
def root(tmp_path) -> Path:
    """An application's directory in which a release serves."""
    release = tmp_path / "srv" / "releases" / "legacy-1"
    release.mkdir(parents=True)
    (tmp_path / "srv" / "current").symlink_to("releases/legacy-1")
    return tmp_path / "srv"


@pytest.fixture
def look(root, monkeypatch):
    """Runs the module on a host where all is well but for what is said, and returns what it found, by name."""

    def look(environment: dict | None = None, **changes) -> dict[str, dict]:
        with answering(200, {"release": "legacy-1"}) as port:
            options = {"root": str(root), "port": port, "candidate_port": application.free_port(), **changes}
            result = run_module("app_preflight", options, environment=environment)
        assert not result.get("failed"), result
        assert result["blocked"] == any(finding["severity"] == "blocker" for finding in result["findings"])
        assert all(finding["hint"] and finding["detail"] for finding in result["findings"])
        look.result = result
        return {finding["name"]: finding for finding in result["findings"]}

    return look


def blocker(found: dict[str, dict], name: str, *words: str) -> None:
    """Insist that exactly one thing was found, that stops."""
    assert set(found) == {name} and found[name]["severity"] == "blocker", found
    for word in words:
        assert word in found[name]["detail"] + " " + found[name]["hint"]


def test_nothing_is_found_where_all_is_well(look, root):
    with greeting(b"220 mail.example ESMTP\r\n") as mail:
        found = look(
            programs={"node": {"command": ["node", "--version"], "minimum": "18.18"}, "npm": {"command": ["npm", "--version"], "minimum": "9"}},
            free_bytes=1, release="legacy-1", environment_names=["DATABASE_URL"], environment_given=["DATABASE_URL"],
            mail={"variable": "SMTP_URL", "scheme": "smtp", "host": "127.0.0.1", "port": mail},
        )  # fmt: skip
    assert found == {} and look.result["release"] == "legacy-1" and set(look.result["versions"]) == {"node", "npm"}
    assert look.result["changed"] is False


@pytest.mark.parametrize(
    ("script", "name", "words"),
    [
        ("echo v16.20.2", "node_too_old", "node is 16.20.2, and 18.18 or later is needed"),
        ("exit 3", "node_missing", "node cannot be run (it ended with status 3)"),
        ("echo hello", "node_missing", "node cannot be run (it does not say its version)"),
        (None, "node_missing", "node cannot be run (No such file or directory)"),
    ],
)
def test_programs(look, tmp_path, script, name, words):
    if script:
        (tmp_path / "node").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "node").chmod(0o755)
    path = {"PATH": str(tmp_path)}
    blocker(look(path, programs={"node": {"command": ["node", "--version"], "minimum": "18.18"}}), name, words, "app_preflight_minimum_node")


def test_disk_also_where_the_directory_is_not_there_yet(look, root):
    (root / "current").unlink()
    blocker(look(root=str(root / "not" / "yet"), port=application.free_port(), free_bytes=10**18), "disk_space", f"are free at {root}", "app_switchover_keep")


def test_ports(look, root):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        blocker(look(candidate_port=port), "candidate_port_taken", f"Port {port} is taken", "app_switchover_candidate_port")
    with answering(404) as port:
        blocker(look(port=port, health_path="/health"), "serving_port_foreign", "it answers /health with status 404")
    with greeting(b"hello\r\n") as port:
        blocker(look(port=port), "serving_port_foreign", "does not speak HTTP")
    for found, name in (
        (look(port=application.free_port()), "application_down"), (_with(look, 503, {}), "application_unhealthy"),
        (_with(look, 200, {"release": "other"}), "release_not_reloaded"),
    ):  # fmt: skip
        assert set(found) == {name} and found[name]["severity"] == "warning"
    (root / "current").unlink()
    blocker(look(), "serving_port_foreign", "no release serves here yet")
    assert look(port=application.free_port()) == {}


def test_a_candidate_of_a_switch_that_was_cut_off(look, root):
    with answering(503, {"release": "next"}) as port:
        blocker(look(candidate_port=port, next_release="next"), "candidate_port_taken", f"Port {port} is taken")
        (root / ".switchover").symlink_to("switch:controller:1")
        found = look(candidate_port=port, next_release="next")
        assert set(found) == {"candidate_left_over"} and found["candidate_left_over"]["severity"] == "warning"
    with answering(200, {"release": "next"}) as port:
        blocker(look(candidate_port=port, next_release="other"), "candidate_port_taken")


def test_under_systemd(look):
    """Each instance's port is looked at, and the account: these tests run as root, or as one that does not linger."""
    with answering(200, {"release": "other"}) as port:
        found = look(other_ports=[port], systemd_scope="system")
        assert "is to be the candidate's" in look(other_ports=[port], candidate_port=port)["candidate_port_taken"]["detail"]
    assert found.pop("release_not_reloaded")["detail"].endswith("the processes run other")
    assert set(found) == ({"runs_as_root"} if os.geteuid() == 0 else set())
    found = look(systemd_scope="user")
    assert found["not_lingering"]["severity"] == "blocker" and "loginctl enable-linger" in found["not_lingering"]["hint"]
    old = {"command": ["sh", "-c", "echo 'systemd 215 (215-17+deb8u13)' | head -n 1"], "minimum": "240"}
    blocker(look(programs={"systemd": old}), "systemd_too_old", "systemd is 215, and 240 or later is needed", "app_preflight_minimum_systemd")


def _with(look, status: int, content: dict) -> dict[str, dict]:
    with answering(status, content) as port:
        return look(port=port)


def test_the_release_that_serves_is_the_expected_one(look, root):
    release = root / "releases" / "legacy-1"
    blocker(look(release="legacy-0"), "unexpected_release", "release legacy-1 serves instead of legacy-0")
    assert look(release="legacy-0", next_release="legacy-1") == {}
    (release / "file").touch()
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=release, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=release, check=True, capture_output=True, text=True).stdout.strip()
    assert look(release=commit[:10]) == {} and look.result["commit"] == commit
    blocker(look(release="0" * 40), "unexpected_release", f"(commit {commit[:12]})")
    (root / "current").unlink()
    blocker(look(release="legacy-1", port=application.free_port()), "unexpected_release", "no release serves, and legacy-1 should")


def test_variables_by_their_names_only(look, root, secret):
    value = secret("environment")
    shared = root / ".env.local"
    shared.write_text(f"# AUTH_SECRET=no\nexport AUTH_SECRET='{value}'\nEMPTY=\n")
    wanted = {"environment_names": ["AUTH_SECRET", "DATABASE_URL", "EMPTY", "FROM_ACCOUNT"], "environment_files": [str(shared)]}
    found = look({"FROM_ACCOUNT": "x"}, environment_given=["DATABASE_URL"], **wanted)
    blocker(found, "environment_missing", "app_switchover_environment")
    assert found["environment_missing"]["samples"] == ["EMPTY"] and value not in json.dumps(look.result)


def test_mail_that_would_not_arrive(look, root, secret):
    password = secret("mail")
    unset = look(mail={"variable": "SMTP_URL"})
    blocker(unset, "mail_service_unset", "SMTP_URL names no mail service, so magic links would not arrive", "Set SMTP_URL in app_switchover_environment")
    nowhere = application.free_port()
    shared = root / ".env.local"
    shared.write_text(f"SMTP_URL=smtp://user:{password}@127.0.0.1:{nowhere}\n")
    blocker(look(mail={"variable": "SMTP_URL"}, environment_files=[str(shared)]), "mail_service_unreachable", f"127.0.0.1 port {nowhere} is not reached")
    assert password not in json.dumps(look.result)
    with greeting(b"554 go away\r\n") as port:
        at = {"variable": "SMTP_URL", "host": "127.0.0.1", "port": port}
        blocker(look(mail=at), "mail_service_unreachable", "does not greet as one, so magic links would not arrive")
        assert look(mail={**at, "scheme": "http"}) == {}
        assert "is not reached" in look(mail={**at, "scheme": "smtps"})["mail_service_unreachable"]["detail"]
        assert look(mail={**at, "required": False})["mail_service_unreachable"]["severity"] == "warning"
    assert look(mail={"variable": ""}) == {}


def test_clocks(look):
    controller = {"before": 1000.0, "after": 1000.5}
    here = {"name": "app1", "time": 1000, **controller}
    assert look(clocks=[here, {"name": "db1", "time": 1004, **controller}]) == {}
    blocker(look(clocks=[here, {"name": "db1", "time": 1060, **controller}]), "clock_differs", "the clock of app1 is 58 s or more away from that of db1")
    blocker(look(clocks=[{**here, "time": 900}]), "clock_differs", "99 s or more away from that of the controller", "timedatectl")


def test_a_blocker_may_be_accepted_with_a_reason(look):
    found = look(free_bytes=10**18, accepted={"disk_space": "the disk grows by itself"})
    assert found["disk_space"]["severity"] == "warning" and "(accepted: the disk grows by itself)" in found["disk_space"]["detail"]
    assert look(free_bytes=10**18, accepted={"disk_space": " "})["disk_space"]["severity"] == "blocker"


def test_the_role_tells_all_at_once_and_switch_stops_before_anything(root, tmp_path, secret):
    """A host whose clock is an hour ahead, whose mail service is not there, and where something is missing."""
    assert shutil.which("faketime"), "faketime is missing: run make setup"
    password, nowhere = secret("mail"), application.free_port()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec faketime -f +1h {sys.executable} "$@"\n')
    python.chmod(0o755)
    with answering(200, {"release": "legacy-1"}) as port:
        hosts = {
            "ansible_connection": "local", "ansible_python_interpreter": str(python), "unified_user_login_db": "none", "auth_check_url": "http://none.invalid",
            "app_switchover_root": str(root), "app_switchover_release": "next", "app_switchover_port": port, "app_switchover_commands": [],
            "app_switchover_candidate_port": application.free_port(), "app_switchover_pm2": ["sh", "-c", "echo 4.5.6"],
            "app_switchover_environment": {"SMTP_URL": f"smtp://user:{password}@127.0.0.1:{nowhere}", "AUTH_SECRET": password},
        }  # fmt: skip
        path = tmp_path / "hosts.json"
        path.write_text(json.dumps({"all": {"children": {"app": {"hosts": {"localhost": hosts}}}}}))
        path.chmod(0o600)
        done = run_playbook(ROOT / "playbooks" / "switch.yml", path)
        words = " ".join(done.stdout.split())
        assert done.returncode != 0 and "Failed to pass preflight of application host localhost:" in words
        for finding in (
            "pm2_too_old: pm2 is 4.5.6", "environment_missing: ", "(DATABASE_URL)", f"mail_service_unreachable: the mail service 127.0.0.1 port {nowhere}",
            "clock_differs: the clock of localhost is 3", "Set them in app_switchover_environment",
        ):  # fmt: skip
            assert finding in words, finding
        assert password not in done.stdout and "Make the release" not in words and not (root / ".switchover").exists()
        # With each of them settled it says so, and changes nothing.
        hosts |= {"ansible_python_interpreter": sys.executable, "app_switchover_pm2": ["sh", "-c", "echo 6.0.8"], "app_preflight_mail_variable": ""}
        hosts["app_switchover_environment"]["DATABASE_URL"] = password
        path.write_text(json.dumps({"all": {"children": {"app": {"hosts": {"localhost": hosts}}}}}))
        playbook = tmp_path / "preflight.yml"
        playbook.write_text(PLAYBOOK)
        done = run_playbook(playbook, path)
        assert done.returncode == 0 and "Nothing was found." in done.stdout and "changed=0" in done.stdout and "node" in done.stdout
