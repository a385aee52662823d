# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Copies of backups on another host, by the programs ssh and, over there, sh, tar and sha256sum."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from typing import IO, Any, Callable, Sequence

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import name_of_database, partial_name
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_place import NAME, STALE_DAYS, Place

_HOST = re.compile(r"[A-Za-z0-9_.:%\[\]][A-Za-z0-9_.:%\[\]-]*")
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@-]*")
_MISSING = 44
_BLOCK = 1 << 20
_SHARED_SECONDS = 5
_OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=yes",
    "ConnectTimeout=15",
    "ServerAliveInterval=15",
    "ServerAliveCountMax=8",
    "ClearAllForwardings=yes",
)


class SshPlace(Place):
    """A directory of another host.

    Args:
        options: ``host``, ``path``, and, if given, ``user``, ``port``, ``identity_file``, ``known_hosts_file``.

    Raises:
        UnifiedUserError: an option cannot be meant, or ssh is not there.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        host, user, self._path = options["host"], options.get("user"), options["path"].rstrip("/")
        self.label = f"ssh {user + '@' if user else ''}{host}:{self._path}"
        advice = "Correct this entry of the list of copies"
        if not _HOST.fullmatch(host) or (user and not _USER.fullmatch(user)):
            raise self.error("keep a copy of a backup", "host or user has characters that no host or user has", advice)
        if not self._path.startswith("/"):
            raise self.error("keep a copy of a backup", "its path is not absolute", advice)
        program = shutil.which("ssh")
        if not program:
            raise self.error("keep a copy of a backup", "the program ssh is not in PATH of this host", "Install the package openssh-client")
        self._command = [program, "-T", *(f"-o{option}" for option in _OPTIONS)]
        if options.get("identity_file"):
            self._command += [f"-i{options['identity_file']}", "-oIdentitiesOnly=yes"]
        if options.get("known_hosts_file"):
            self._command += [f"-oUserKnownHostsFile={options['known_hosts_file']}"]
        if options.get("port"):
            self._command += [f"-p{options['port']}"]
        if user:
            self._command += [f"-l{user}"]
        self._host = host
        self._folder: tempfile.TemporaryDirectory | None = None

    def _sharing(self) -> list[str]:
        """Return the options by which all calls share one connection, which ends by itself."""
        if not self._folder:
            self._folder = tempfile.TemporaryDirectory(prefix="uu-ssh-")
        return ["-oControlMaster=auto", f"-oControlPath={self._folder.name}/%C", f"-oControlPersist={_SHARED_SECONDS}"]

    def _run(
        self,
        action: str,
        script: str,
        feed: Callable[[IO[bytes]], None] | None = None,
        take: Callable[[IO[bytes]], None] | None = None,
        allowed: Sequence[int] = (0,),
    ) -> tuple[int, bytes]:
        """Run a script over there, in the directory of the copies; return its status and what it printed.

        Args:
            action: for the message.
            script: for ``sh``; every name in it must be quoted.
            feed: writes what it reads.
            take: reads what it prints.
            allowed: statuses that are no failure.
        """
        command = f"umask 077; cd {shlex.quote(self._path)} || exit 45; {script}"
        # A file, not a pipe: nobody has to read it while data is on its way.
        with tempfile.TemporaryFile() as complaints:
            process = subprocess.Popen(
                [*self._command, *self._sharing(), "--", self._host, f"exec sh -c {shlex.quote(command)}"],
                stdin=subprocess.PIPE if feed else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                start_new_session=True,
            )
            output = b""
            problem: Exception | None = None
            try:
                try:
                    if feed:
                        feed(process.stdin)
                        process.stdin.close()
                    if take:
                        take(process.stdout)
                except (BrokenPipeError, tarfile.TarError) as error:
                    problem = error  # the other side says why
                if not take:
                    output = process.stdout.read()
                process.wait()
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                process.stdout.close()
            complaints.seek(0)
            text = " ".join(complaints.read().decode("utf-8", "replace").split())
        if process.returncode not in allowed or problem:
            raise self._failure(action, process.returncode, text or str(problem))
        return process.returncode, output

    def _failure(self, action: str, status: int, text: str) -> Exception:
        if status == 255:
            return self.error(
                action, f"ssh: {text[-500:] or 'no answer'}",
                "Make ssh to it work without a password for the user this module runs as, with the host's key in known_hosts",
            )
        if status == 45:
            return self.error(action, text[-500:] or "there is no such directory", "Make the directory there, mode 0700, owned by the user who logs in")
        return self.error(action, text[-500:] or f"the command there ended with status {status}", "Put the cause right there, then run the same command again")

    def prepare(self, backup_path: str) -> None:
        """See `Place`: whether it can be reached shows when it is asked for its names."""

    def names(self) -> list[str]:
        """See `Place`."""
        answer = self._run("look for backups", "for m in */manifest.json; do [ -f \"$m\" ] && printf '%s\\n' \"${m%/manifest.json}\"; done; :")[1]
        return sorted(name for name in answer.decode("utf-8", "replace").split("\n") if NAME.fullmatch(name))

    def read(self, name: str, file: str) -> bytes | None:
        """See `Place`."""
        path = shlex.quote(f"{name}/{file}")
        status, content = self._run(f"read {name}/{file}", f"[ -f {path} ] || exit {_MISSING}; exec cat {path}", allowed=(0, _MISSING))
        return content if status == 0 else None

    def write(self, name: str, file: str, content: bytes) -> None:
        """See `Place`."""
        path = shlex.quote(f"{name}/{file}")
        self._run(f"write {name}/{file}", f"cat > {path}.partial && mv {path}.partial {path}", feed=lambda pipe: _write(pipe, content))

    def send(self, backup_path: str, name: str, files: Sequence[str]) -> None:
        """See `Place`."""
        hidden, stem = shlex.quote(partial_name(name)), shlex.quote(f".{name_of_database(name)}-*.partial")

        def feed(pipe: IO[bytes]) -> None:
            with tarfile.open(fileobj=pipe, mode="w|", bufsize=_BLOCK) as archive:
                for file in files:
                    archive.add(os.path.join(backup_path, file), arcname=file, recursive=False)

        self._run(
            f"write a copy of {name}",
            f"find . -mindepth 1 -maxdepth 1 -type d -name {stem} -mtime +{STALE_DAYS} -exec rm -rf {{}} +; rm -rf {hidden}; mkdir {hidden} && "
            f"{{ tar -xof - -C {hidden} || {{ rm -rf {hidden}; exit 46; }}; }}",
            feed=feed,
        )

    def digests(self, name: str, files: Sequence[str], published: bool) -> dict[str, str]:
        """See `Place`."""
        folder = shlex.quote(name if published else partial_name(name))
        answer = self._run(f"read the copy of {name}", f"cd {folder} && find . -type f -exec sha256sum {{}} +")[1].decode("utf-8", "replace")
        found = {path: digest for digest, path in re.findall(r"^([0-9a-f]{64}) [ *]\./(.+)$", answer, re.MULTILINE)}
        return {file: found[file] for file in files if file in found}

    def publish(self, name: str, manifest_file: str, manifest: bytes) -> None:
        """See `Place`."""
        hidden = partial_name(name)
        self.write(hidden, manifest_file, manifest)
        # On disk before it has its name. Where sync knows no -f, it knows to sync everything.
        quoted = shlex.quote(hidden)
        self._run(f"finish the copy of {name}", f"{{ sync -f {quoted} 2>/dev/null || sync; }} && mv {quoted} {shlex.quote(name)}")

    def fetch(self, name: str, files: Sequence[str], target: str) -> None:
        """See `Place`."""
        wanted = set(files)

        def take(pipe: IO[bytes]) -> None:
            with tarfile.open(fileobj=pipe, mode="r|", bufsize=_BLOCK) as archive:
                for member in archive:
                    file = member.name[2:] if member.name.startswith("./") else member.name
                    if not member.isfile() or file not in wanted:
                        continue
                    path = os.path.join(target, file)
                    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as writing:
                        shutil.copyfileobj(archive.extractfile(member), writing, _BLOCK)

        try:
            self._run(f"read the copy of {name}", f"exec tar -cf - -C {shlex.quote(name)} .", take=take)
        except OSError as error:
            raise self.error(
                f"bring back the copy of {name}", f"{error.strerror or error} (below {target})", "Free space on this host, then run the same command again"
            ) from error

    def remove(self, name: str) -> None:
        """See `Place`."""
        old, hidden = shlex.quote(name), shlex.quote(partial_name(name))
        self._run(f"remove {name}", f"mv {old} {hidden} && rm -rf {hidden}")


def _write(pipe: IO[bytes], content: bytes) -> None:
    pipe.write(content)
