# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What could stop or spoil a switch of the application on one of its hosts: programs, disk, ports, settings, clocks, mail, the release."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import re
import shutil
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Iterable
from urllib.parse import urlsplit

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._findings import BLOCKER, SEVERITIES, WARNING, Finding

_VERSION = re.compile(r"\d+(?:\.\d+)*")
_SETTING = re.compile(r"^\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)$")
_ANSWER_SECONDS = 10
#: A file for each account whose units go on without a session (systemd-logind).
_LINGERING = "/var/lib/systemd/linger"
#: Where a mail service listens whose address names no port (RFC 6409, RFC 8314).
_MAIL_PORTS = {"smtp": 587, "smtps": 465, "http": 80, "https": 443}


@dataclass(frozen=True)
class Wanted:
    """What a switch needs of a host.

    Attributes:
        root: the application's directory, with ``releases/`` and the link ``current``.
        programs: name -> ``command`` (a list that prints the version) and ``minimum``.
        free_bytes: free disk that a new release needs, in bytes.
        port, candidate_port: where the application serves, and where a new release is tried.
        other_ports: where its further instances do, under systemd.
        systemd_scope: whose units they are, ``system`` or ``user``; empty where systemd does not run it.
        health_path: what answers with 200 while it is healthy.
        release: name or commit of the release that must serve now; empty for any.
        next_release: the one that is switched to.
        environment_names: variables that the application cannot do without.
        environment_given: names of those that the switch itself writes.
        environment_files: further files with settings, on this host.
        mail: ``required``, ``variable``, and, where it is known, ``scheme``, ``host`` and ``port`` of the mail service.
        clocks: for each host, this one first: ``name``, its ``time`` in whole seconds, and the controller's ``before`` and ``after`` asking.
        clock_seconds: largest difference of two clocks, in seconds.
        accepted: name of a blocker -> why it does not stop.
    """

    root: str
    programs: dict[str, dict[str, Any]] = field(default_factory=dict)
    free_bytes: int = 0
    port: int = 3000
    candidate_port: int = 3999
    other_ports: list[int] = field(default_factory=list)
    systemd_scope: str = ""
    health_path: str = "/"
    release: str = ""
    next_release: str = ""
    environment_names: list[str] = field(default_factory=list)
    environment_given: list[str] = field(default_factory=list)
    environment_files: list[str] = field(default_factory=list)
    mail: dict[str, Any] = field(default_factory=dict)
    clocks: list[dict[str, Any]] = field(default_factory=list)
    clock_seconds: float = 5
    accepted: dict[str, str] = field(default_factory=dict)


class AppPreflight:
    """Looks at one host, and changes nothing.

    Args:
        wanted: what the switch needs.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.seen: dict[str, Any] = {"versions": {}, "free_bytes": None, "release": "", "commit": ""}

    def look(self) -> dict[str, Any]:
        """Return what was found, blockers first, as a module returns it."""
        probes: tuple[Callable[[], Iterable[Finding]], ...] = (
            self._programs, self._account, self._disk, self._release, self._ports, self._environment, self._mail, self._clocks,
        )  # fmt: skip
        findings = [self._judged(finding) for probe in probes for finding in probe()]
        findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
        return {
            "findings": [finding.as_dict() for finding in findings], "blocked": any(finding.severity == BLOCKER for finding in findings), **self.seen,
        }  # fmt: skip

    def _judged(self, finding: Finding) -> Finding:
        reason = str(self.wanted.accepted.get(finding.name) or "").strip()
        if finding.severity != BLOCKER or not reason:
            return finding
        return replace(finding, severity=WARNING, detail="%s (accepted: %s)" % (finding.detail, reason))

    def _programs(self) -> Iterable[Finding]:
        for name, program in self.wanted.programs.items():
            minimum = str(program["minimum"])
            hint = "Install %s %s or later for the account that Ansible uses there, or set app_preflight_minimum_%s" % (name, minimum, name)
            try:
                version = _version_of(program["command"])
            except (OSError, subprocess.SubprocessError, ValueError) as error:
                yield Finding("%s_missing" % name, BLOCKER, 1, "%s cannot be run (%s)" % (name, _reason(error)), hint)
                continue
            self.seen["versions"][name] = version
            if _parts(version) < _parts(minimum):
                yield Finding("%s_too_old" % name, BLOCKER, 1, "%s is %s, and %s or later is needed" % (name, version, minimum), hint)

    def _account(self) -> Iterable[Finding]:
        if not self.wanted.systemd_scope:
            return
        name = pwd.getpwuid(os.geteuid()).pw_name
        if os.geteuid() == 0:
            yield Finding(
                "runs_as_root", BLOCKER, 1, "the application runs as the account that Ansible uses there, and that is root",
                "Use another account (ansible_user), which root's rights are added to by become",
            )  # fmt: skip
        if self.wanted.systemd_scope == "user" and not os.path.exists(os.path.join(_LINGERING, name)):
            yield Finding(
                "not_lingering", BLOCKER, 1, "units of %s end with its last session, and are not started with the host" % name,
                "Run `loginctl enable-linger %s` there as root, or set app_switchover_systemd_scope to system" % name,
            )  # fmt: skip

    def _disk(self) -> Iterable[Finding]:
        place = os.path.abspath(self.wanted.root)
        while not os.path.isdir(place):
            place = os.path.dirname(place)
        free = self.seen["free_bytes"] = shutil.disk_usage(place).free
        if free < self.wanted.free_bytes:
            yield Finding(
                "disk_space", BLOCKER, 1, "%d MB are free at %s, and a release needs %d MB" % (free // 10**6, place, self.wanted.free_bytes // 10**6),
                "Free disk there, for example with a smaller app_switchover_keep, or set app_preflight_free_bytes if a release needs less", [place],
            )  # fmt: skip

    def _release(self) -> Iterable[Finding]:
        link = os.path.join(self.wanted.root, "current")
        if not os.path.islink(link):
            if self.wanted.release:
                yield Finding(
                    "unexpected_release", BLOCKER, 1, "no release serves, and %s should" % self.wanted.release,
                    "Look at %s, and set app_preflight_release to what should serve there" % link,
                )  # fmt: skip
            return
        name = self.seen["release"] = os.path.basename(os.readlink(link))
        commit = self.seen["commit"] = _commit_of(link)
        wanted = self.wanted.release
        named = wanted == name or (len(wanted) >= 7 and commit.startswith(wanted.lower()))
        # A switch that goes on with what it did before is no surprise.
        if wanted and not named and name != self.wanted.next_release:
            yield Finding(
                "unexpected_release", BLOCKER, 1, "release %s%s serves instead of %s" % (name, " (commit %s)" % commit[:12] if commit else "", wanted),
                "Find out who released it; then set app_preflight_release to it, or bring %s back first" % wanted,
            )  # fmt: skip

    def _ports(self) -> Iterable[Finding]:
        port = self.wanted.candidate_port
        if port in (self.wanted.port, *self.wanted.other_ports):
            yield Finding(
                "candidate_port_taken", BLOCKER, 1, "Port %d is to be the candidate's, and the application serves on it" % port,
                "Set app_switchover_candidate_port to a port that no instance has",
            )  # fmt: skip
        elif not _is_free(port) and self._is_left_over(port):
            yield Finding(
                "candidate_left_over", WARNING, 1, "the candidate of a switch that was cut off still runs on port %d; the next switch ends it" % port,
                "Run the same switch again",
            )  # fmt: skip
        elif not _is_free(port):
            yield Finding(
                "candidate_port_taken", BLOCKER, 1, "Port %d is taken; the candidate needs it" % port,
                "End what listens there (ss -ltnp 'sport = :%d'), or set app_switchover_candidate_port" % port,
            )  # fmt: skip
        for serving_port in (self.wanted.port, *self.wanted.other_ports):
            yield from self._serving_port(serving_port)

    def _is_left_over(self, port: int) -> bool:
        """Return whether what listens there is the release that a switch, whose lock is still there, was trying."""
        if not self.wanted.next_release or not os.path.islink(os.path.join(self.wanted.root, ".switchover")):
            return False
        status, release = _health("http://127.0.0.1:%d%s" % (port, self.wanted.health_path))
        return status != 0 and release in ("", self.wanted.next_release)

    def _serving_port(self, port: int) -> Iterable[Finding]:
        serving = self.seen["release"]
        look = "ss -ltnp 'sport = :%d'" % port
        if _is_free(port):
            if serving:
                yield Finding(
                    "application_down", WARNING, 1, "nothing listens on port %d, where release %s should serve; the way back leads to it" % (port, serving),
                    "Look at its log (pm2 logs, or journalctl), and start it first if it should be gone back to",
                )  # fmt: skip
            return
        url = "http://127.0.0.1:%d%s" % (port, self.wanted.health_path)
        status, release = _health(url)
        if not serving or not (status == 200 or status >= 500):
            what = "answers %s with status %d" % (self.wanted.health_path, status) if status else "does not speak HTTP"
            yield Finding(
                "serving_port_foreign", BLOCKER, 1, "port %d is held by what is not the application: it %s%s" % (
                    port, what, "" if serving else ", and no release serves here yet"),
                "End it (%s), or set app_switchover_port and app_switchover_health_path to the application's" % look,
            )  # fmt: skip
        elif status >= 500:
            yield Finding(
                "application_unhealthy", WARNING, 1, "release %s answers %s with status %d" % (serving, self.wanted.health_path, status),
                "Look at its log: whether it reaches its database",
            )  # fmt: skip
        elif release and release != serving:
            yield Finding(
                "release_not_reloaded", WARNING, 1, "current leads to %s, and the processes run %s" % (serving, release),
                "A switch was interrupted there: run it again, or go back with rollback.yml -e rollback_mode=application",
            )  # fmt: skip

    def _environment(self) -> Iterable[Finding]:
        there = {*self.wanted.environment_given, *(name for name, value in os.environ.items() if value), *self._settings()}
        missing = [name for name in self.wanted.environment_names if name not in there]
        if missing:
            yield Finding(
                "environment_missing", BLOCKER, len(missing), "environment variables that the application needs and nobody sets",
                "Set them in app_switchover_environment (secrets from the vault), or correct app_preflight_environment_names", missing,
            )  # fmt: skip

    def _settings(self) -> dict[str, str]:
        """Return the settings of the files that releases share; their values stay in this process."""
        found: dict[str, str] = {}
        for path in self.wanted.environment_files:
            with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
                for match in filter(None, map(_SETTING.match, file)):
                    value = match[2].strip().strip("'\"`")
                    if value:
                        found[match[1]] = value
        return found

    def _mail(self) -> Iterable[Finding]:
        mail = self.wanted.mail
        severity = BLOCKER if mail.get("required") else WARNING
        variable = mail.get("variable") or ""
        scheme, host, port = mail.get("scheme") or "", mail.get("host") or "", mail.get("port") or 0
        if not host:
            scheme, host, port = _address_in(self._settings().get(variable) or os.environ.get(variable, ""))
        if not host:
            if variable:
                yield Finding(
                    "mail_service_unset", severity, 1, "%s names no mail service, so magic links would not arrive" % variable,
                    "Set %s in app_switchover_environment, or app_preflight_mail_host and app_preflight_mail_port where another variable names it" % variable,
                )  # fmt: skip
            return
        port = int(port or _MAIL_PORTS.get(scheme, 25))
        why = _no_mail_service(scheme, host, port)
        if why:
            yield Finding(
                "mail_service_unreachable", severity, 1, "the mail service %s port %d %s, so magic links would not arrive" % (host, port, why),
                "Try it from there (nc %s %d), open the firewall or start the service, or correct %s" % (host, port, variable or "app_preflight_mail_host"),
            )  # fmt: skip

    def _clocks(self) -> Iterable[Finding]:
        # The controller's clock counts as one that was asked without delay. A time in whole seconds may be up to one second later.
        offsets = [("the controller", 0.0, 0.0)]
        offsets += [(str(clock["name"]), float(clock["time"]) - float(clock["after"]), float(clock["time"]) + 1 - float(clock["before"]))
                    for clock in self.wanted.clocks]  # fmt: skip
        if len(offsets) < 2:
            return
        name, least, most = offsets.pop(1)
        for other, other_least, other_most in offsets:
            # What is certain: the intervals are that far apart.
            difference = max(least - other_most, other_least - most, 0)
            if difference > self.wanted.clock_seconds:
                yield Finding(
                    "clock_differs", BLOCKER, 1, "the clock of %s is %.0f s or more away from that of %s" % (name, difference, other),
                    "Let both follow a time service (timedatectl set-ntp true): sessions and magic links end by the clock", [other],
                )  # fmt: skip


def _version_of(command: list[str]) -> str:
    done = subprocess.run(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60, check=True, universal_newlines=True
    )
    versions = _VERSION.findall(done.stdout.strip().rpartition("\n")[2])
    if not versions:
        raise ValueError("it does not say its version")
    return versions[0]


def _parts(version: str) -> tuple[int, ...]:
    """Return a version as numbers that compare as versions do; 18 is 18.0.0."""
    numbers = [int(part) for part in _VERSION.search(version)[0].split(".")] if _VERSION.search(version) else []  # type: ignore[index]
    return tuple((numbers + [0, 0, 0])[:3])


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else type(error).__name__
    return "it ended with status %d" % error.returncode if isinstance(error, subprocess.CalledProcessError) else str(error) or type(error).__name__


def _commit_of(directory: str) -> str:
    """Return the commit of a release that was cloned, or nothing."""
    if not os.path.exists(os.path.join(directory, ".git")):
        return ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(
            ["git", "-C", directory, "rev-parse", "HEAD"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            timeout=60, check=True, universal_newlines=True,
        ).stdout.strip()  # fmt: skip
    return ""


def _is_free(port: int) -> bool:
    """Return whether the loopback port could be listened on now."""
    with socket.socket() as probe:
        # Connections that are only being closed are in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def _health(url: str) -> tuple[int, str]:
    """Return the status that a health page answers with, 0 for none, and the release that it names."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_ANSWER_SECONDS) as answer:
            status, content = answer.status, answer.read(65536)
    except urllib.error.HTTPError as error:
        return error.code, ""
    # What does not speak HTTP raises one of many kinds of errors.
    except Exception:
        return 0, ""
    try:
        value = json.loads(content)
    except ValueError:
        return status, ""
    return status, str(value.get("release") or "") if isinstance(value, dict) else ""


def _address_in(value: str) -> tuple[str, str, int]:
    """Return scheme, host and port of a mail service's URL; nothing where it is none."""
    try:
        parts = urlsplit(value)
        return parts.scheme, parts.hostname or "", parts.port or 0
    except ValueError:
        return "", "", 0


def _no_mail_service(scheme: str, host: str, port: int) -> str:
    """Return why there is no mail service at an address, or nothing where one greets. Of a service by HTTP only the connection is tried."""
    try:
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(socket.create_connection((host, port), _ANSWER_SECONDS))
            if scheme in ("smtps", "https"):
                connection = stack.enter_context(ssl.create_default_context().wrap_socket(connection, server_hostname=host))
            if scheme in ("http", "https"):
                return ""
            with connection.makefile("rb") as lines:
                greeting = lines.readline(1024)
            if greeting[:3] != b"220":
                return "does not greet as one"
            connection.sendall(b"QUIT\r\n")
    except socket.timeout:
        return "does not answer within %d s" % _ANSWER_SECONDS
    except OSError as error:
        return "is not reached (%s)" % (error.strerror or type(error).__name__)
    return ""
