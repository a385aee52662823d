# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""pgBackRest: running it as the user the server belongs to, reading its repository, and its errors.

What a backup of ours leans on there are the manifests of the backup set, which hold a checksum of every file, and the WAL from the
set's begin to the restore point. Of these the manifest beside the dump holds the sha256 as they are stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any, Sequence

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._client_programs import Program
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

#: The format that a manifest of ours names when the data is in a repository of pgBackRest.
FORMAT = "pgbackrest"

#: The option of the modules, in the form that Ansible takes.
ARGUMENT: dict[str, Any] = {
    "type": "dict",
    "default": {},
    "options": {
        "stanza": {"type": "str"},
        "type": {"type": "str", "default": "full", "choices": ["full", "diff"]},
        "config": {"type": "path"},
        "repo": {"type": "int"},
        "user": {"type": "str"},
        "archive_timeout": {"type": "int", "default": 60},
        "scratch_directory": {"type": "path"},
    },
}

_BLOCK = 1 << 20
_SEGMENT = re.compile(r"[0-9A-F]{24}")
_ARCHIVED = re.compile(r"[0-9A-F]{24}-[0-9a-f]{40}(?:\.[a-z0-9]+)?")
_PROBLEM = re.compile(r"INFO: (.+?) '([^']+)'$")

_ADVICE = (
    ("does this stanza exist", "Name the stanza of this server (backup_pgbackrest.stanza) and its configuration file (backup_pgbackrest.config)"),
    ("stanza-create", "Create the stanza with pgbackrest stanza-create, or name the right one (backup_pgbackrest.stanza)"),
    ("unable to acquire lock", "Wait until the other pgBackRest process has ended, then run the same command again"),
    ("archive_mode", "Turn on archive_mode and set archive_command to pgbackrest archive-push, then run the same command again"),
    ("archive_command", "Set archive_command to pgbackrest archive-push for this stanza, then run the same command again"),
    ("archived before", "Look into the server's log why archive_command fails, put that right, then run the same command again"),
    ("No space left", "Free disk space, then run the same command again"),
    ("unable to find primary", "Check that the server runs and that pg1-path, pg1-port and pg1-user in the configuration file are its own"),
    ("ermission denied", "Set backup_pgbackrest.user to the user of the operating system that the repository belongs to"),
    ("checksum", "Do not rely on this backup: use another one or take a new one, and look at the disk of the repository"),
    ("data error", "Do not rely on this backup: use another one or take a new one, and look at the disk of the repository"),
    ("eof in compressed data", "Do not rely on this backup: use another one or take a new one, and look at the disk of the repository"),
)


def next_step(complaint: str) -> str:
    """Return what to do about a complaint of pgBackRest."""
    for sign, advice in _ADVICE:
        if sign.lower() in complaint.lower():
            return advice
    return "Put the cause right and run the same command again"


@dataclass(frozen=True)
class Settings:
    """Which repository, and as whom.

    Attributes:
        stanza: its name.
        config: the configuration file, None for pgBackRest's own default.
        repo: the number of the repository, None for the first that is configured.
        user: the user of the operating system that pgBackRest and servers run as.
    """

    stanza: str
    config: str | None
    repo: int | None
    user: str

    @classmethod
    def choose(cls, options: dict[str, Any], recorded: dict[str, Any] | None = None, data_directory: str | None = None) -> Settings:
        """Take what the operator says, else what was recorded with the backup, else what is to be seen.

        Args:
            options: the option ``pgbackrest`` of a module.
            recorded: ``pgbackrest`` of a manifest.
            data_directory: the server's, whose owner is the user if nobody names one and root runs this.

        Raises:
            UnifiedUserError: there is no stanza or no user to be had.
        """
        known = {name: options.get(name) or (recorded or {}).get(name) for name in ("stanza", "config", "repo", "user")}
        if not known["stanza"]:
            raise UnifiedUserError(
                "use pgBackRest", "no stanza was named", "Set stanza in pgbackrest (backup_pgbackrest) to the one that pgbackrest info shows"
            )
        return cls(**{**known, "user": _choose_user(known["user"], data_directory)})

    def as_dict(self) -> dict[str, Any]:
        """Return them in a form that JSON holds."""
        return {"stanza": self.stanza, "config": self.config, "repo": self.repo, "user": self.user}


def _choose_user(name: str | None, data_directory: str | None) -> str:
    own = pwd.getpwuid(os.geteuid()).pw_name
    action = "run pgBackRest"
    try:
        if name is None and os.geteuid() == 0 and data_directory:
            name = pwd.getpwuid(os.stat(data_directory).st_uid).pw_name
        found = pwd.getpwnam(name or own)
    except FileNotFoundError as error:
        raise UnifiedUserError(
            action, f"the server's data directory {data_directory} is not on this host", "Run this on the server's own host (group database)"
        ) from error
    except KeyError as error:
        raise UnifiedUserError(
            action, f"there is no user {name} on this host", "Set user in pgbackrest (backup_pgbackrest) to the one that servers run as here"
        ) from error
    if found.pw_uid == 0:
        raise UnifiedUserError(
            action, "it would run as root, which owns neither servers nor their repositories",
            "Set user in pgbackrest (backup_pgbackrest) to the user that the server runs as",
        )
    if os.geteuid() not in (0, found.pw_uid):
        raise UnifiedUserError(
            action, f"{own} may not become {found.pw_name}", f"Run this as root or as {found.pw_name} (ansible_become, ansible_become_user)"
        )
    return found.pw_name


def as_user(user: str, command: Sequence[str]) -> list[str]:
    """Return the command that runs another one as a user of the operating system; itself if we are that user."""
    entry = pwd.getpwnam(user)
    if os.geteuid() == entry.pw_uid:
        return list(command)
    return [_find("setpriv"), f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--init-groups", "--", *command]


def _find(name: str) -> str:
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/bin:/usr/sbin:/usr/local/bin")
    if not path:
        package = "util-linux" if name == "setpriv" else name
        raise UnifiedUserError(f"find {name}", "it is not in PATH", f"Install the package {package} on this host")
    return path


def explain(stderr: str) -> str:
    """Reduce what pgBackRest wrote to its first error, without hints."""
    lines, taking = [], False
    for line in stderr.splitlines():
        if "ERROR:" in line:
            if lines:
                break
            taking = True
            lines.append(line.partition("ERROR:")[2].strip())
        elif taking and line.startswith(" ") and "HINT: " not in line:
            lines.append(line.strip())
        elif not line.startswith(" "):
            taking = False
    hints = [line.partition("HINT:")[2].strip() for line in stderr.splitlines() if "HINT:" in line and ("exist" in line or "stanza-create" in line)]
    text = "; ".join(dict.fromkeys([*(lines[:3] or ["it said nothing"]), *hints[:1]]))
    return text if len(text) <= 600 else text[:600] + " …"


class PgBackRest:
    """pgBackRest with one stanza.

    Args:
        settings: which, and as whom.

    Raises:
        UnifiedUserError: it is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._program = _find("pgbackrest")
        self.version = self._output(["version"], "ask pgBackRest for its version").split()[-1]

    @property
    def program(self) -> Program:
        """It, as a client program."""
        return Program(self._program, self.version, int(self.version.split(".")[0]))

    def command(self, *arguments: str, stanza: bool = True, repo: bool = False) -> list[str]:
        """Return a command line of it, as an operator would type it."""
        line = [self._program]
        if self.settings.config:
            line.append(f"--config={self.settings.config}")
        if stanza:
            line.append(f"--stanza={self.settings.stanza}")
        if repo and self.settings.repo:
            line.append(f"--repo={self.settings.repo}")
        return [*line, *arguments]

    def _output(self, command: Sequence[str], action: str) -> str:
        line = [self._program, *command] if command[:1] == ["version"] else list(command)
        done = self._run(line)
        if done.returncode:
            complaint = explain(done.stderr.decode("utf-8", "replace"))
            raise UnifiedUserError(action, complaint, next_step(complaint))
        return done.stdout.decode("utf-8", "replace")

    def _environment(self) -> dict[str, str]:
        # It reads its own configuration; ours must not lead it to another server.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG") or name.startswith("PGBACKREST_")}
        return {**environment, "HOME": pwd.getpwnam(self.settings.user).pw_dir, "LC_ALL": "C.UTF-8"}

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            as_user(self.settings.user, command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self._environment(), cwd="/", check=False,
        )

    def do(self, action: str, *arguments: str, repo: bool = False) -> str:
        """Run a command of the stanza to its end and return what it printed.

        Args:
            action: for the message of a failure, e.g. ``take a backup``.
            arguments: the command last, its options before it.
            repo: whether it takes a repository's number.

        Raises:
            UnifiedUserError: what it complained about, with what to do.
        """
        quiet = ["--log-level-console=off", "--log-level-stderr=error", "--no-log-timestamp"]
        return self._output(self.command(*quiet, *arguments, repo=repo), action)

    def information(self) -> dict[str, Any]:
        """Return what ``info`` knows about the stanza.

        Raises:
            UnifiedUserError: the stanza does not exist in the repository; says which do.
        """
        listed = json.loads(self._output(self.command("--log-level-stderr=error", "--output=json", "info", stanza=False), "ask pgBackRest for its stanzas"))
        for stanza in listed:
            if stanza["name"] == self.settings.stanza and stanza["db"]:
                return stanza
        known = ", ".join(stanza["name"] for stanza in listed) or "none"
        where = self.settings.config or "the default configuration"
        raise UnifiedUserError(
            f"find stanza {self.settings.stanza} of pgBackRest",
            f"it has no data in the repository of {where} (known there: {known})",
            "Set stanza in pgbackrest (backup_pgbackrest) to one of these, or create it with pgbackrest stanza-create",
        )

    def set_of(self, label: str) -> dict[str, Any]:
        """Return what ``info`` knows about one backup set.

        Raises:
            UnifiedUserError: it is not in the repository, or not any more.
        """
        for entry in self.information()["backup"]:
            if entry["label"] == label:
                return entry
        raise UnifiedUserError(
            f"find backup set {label} of pgBackRest", f"stanza {self.settings.stanza} has none of that label, or has expired it",
            "Use another backup or take a new one",
        )

    def archived(self, folder: str) -> dict[str, str]:
        """Return where the WAL segments below a folder of the repository lie, by segment; those that are still being written are not."""
        action = f"list {folder} in the repository of pgBackRest"
        listed = json.loads(self._output(self.command("--log-level-stderr=error", "--output=json", "repo-ls", folder, stanza=False, repo=True), action))
        return {name[:24]: f"{folder}/{name}" for name in listed if _ARCHIVED.fullmatch(name)}

    def describe_file(self, name: str) -> dict[str, Any] | None:
        """Read a file of the repository as it is stored, and return its name, size in bytes and sha256; None if it is not there."""
        command = self.command("--log-level-stderr=error", "--raw", "--ignore-missing", "repo-get", name, stanza=False, repo=True)
        digest, size = hashlib.sha256(), 0
        with tempfile.TemporaryFile() as errors:
            with subprocess.Popen(
                as_user(self.settings.user, command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                env=self._environment(), cwd="/",
            ) as process:
                for block in iter(lambda: process.stdout.read(_BLOCK), b""):
                    digest.update(block)
                    size += len(block)
            errors.seek(0)
            complaint = errors.read().decode("utf-8", "replace")
        if process.returncode and "ERROR" in complaint:
            cause = explain(complaint)
            raise UnifiedUserError(f"read {name} in the repository of pgBackRest", cause, next_step(cause))
        return None if process.returncode else {"name": name, "size": size, "sha256": digest.hexdigest()}

    def describe_files(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Describe those of the files that are there."""
        return [found for found in map(self.describe_file, names) if found]

    def invalid_files(self, labels: Sequence[str]) -> list[str]:
        """Let pgBackRest read every file of its repository, and return what is wrong with those of some sets, in words.

        Its exit status does not tell: some releases succeed whatever they find. A set that it gives no verdict on is none.

        Raises:
            UnifiedUserError: it gave no verdict.
        """
        line = self.command("--log-level-console=info", "--log-level-stderr=error", "--no-log-timestamp", "--output=text", "--verbose", "verify", repo=True)
        done = self._run(line)
        text = done.stdout.decode("utf-8", "replace")
        problems = []
        for found in filter(None, map(_PROBLEM.search, text.splitlines())):
            if found.group(2).split("/")[0] in labels:
                problems.append(f"{found.group(2)}: {found.group(1)}")
        for label in labels:
            verdict = re.search(rf"backup: {re.escape(label)}, status: (\w+)", text)
            if not verdict:
                complaint = explain(done.stderr.decode("utf-8", "replace"))
                raise UnifiedUserError(f"verify backup set {label} of pgBackRest", f"it gave no verdict: {complaint}", next_step(complaint))
            if verdict.group(1) != "valid" and not any(problem.startswith(label) for problem in problems):
                problems.append(f"backup set {label} is {verdict.group(1)}")
        return problems


def segments(start: str, stop: str, segment_bytes: int) -> list[str]:
    """List the names of the WAL segments of one timeline from one to another.

    Args:
        start: the first, e.g. ``000000010000000000000002``.
        stop: the last.
        segment_bytes: ``wal_segment_size`` in bytes.

    Raises:
        UnifiedUserError: these are not two segments of one timeline in that order.
    """
    per_file = 0x100000000 // segment_bytes
    if not (_SEGMENT.fullmatch(start) and _SEGMENT.fullmatch(stop) and start[:8] == stop[:8] and start <= stop):
        raise UnifiedUserError(
            "follow the WAL from the backup to its restore point", f"{start} and {stop} are not of one timeline", "Take a new backup"
        )
    first, last = (int(name[8:16], 16) * per_file + int(name[16:], 16) for name in (start, stop))
    return [f"{start[:8]}{number // per_file:08X}{number % per_file:08X}" for number in range(first, last + 1)]
