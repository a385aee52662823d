# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Encryption of a backup with the program age: what a client program writes goes through it, so that no disk ever holds plaintext."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Any, Iterator, Sequence

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._client_programs import (
    Child,
    Pipe,
    Program,
    piped,
    running,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

#: What ``age --recipient`` takes: native keys, keys of plugins, and the two kinds of SSH keys (age's manual).
_RECIPIENT = re.compile(r"age1[0-9a-z]{8,}|ssh-(?:ed25519|rsa) [A-Za-z0-9+/=]{60,}(?: .*)?")


@dataclass(frozen=True)
class Encryption:
    """How a backup is encrypted.

    Attributes:
        program: ``age``.
        recipients: public keys; the identity of any of them decrypts.
    """

    program: Program
    recipients: tuple[str, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """What the manifest says about it."""
        return {"method": "age", "version": self.program.version, "recipients": list(self.recipients)}


def hidden(recipients: Sequence[str]) -> set[str]:
    """Return those that are no public keys: a secret key put there by mistake must not be repeated, in no output."""
    return {recipient for recipient in recipients if not _RECIPIENT.fullmatch(recipient)}


def choose_encryption(recipients: Sequence[str]) -> Encryption | None:
    """Return how to encrypt for recipients, None if there are none.

    Raises:
        UnifiedUserError: one is no public key of age, age is not there, or age refuses one.
    """
    if not recipients:
        return None
    action, advice = "encrypt a backup", "Give public keys, as age-keygen -y prints them from an identity file, or SSH public keys"
    for number, recipient in enumerate(recipients, 1):
        if recipient in hidden(recipients):
            raise UnifiedUserError(action, f"number {number} of encryption_recipients is no public key of age", advice)
    encryption = Encryption(_find_age(), tuple(recipients))
    with running(encryption.program, _recipients(encryption), dict(os.environ)) as child:
        complaint = child.wait()
    if complaint:
        raise UnifiedUserError(action, complaint, advice)
    return encryption


def _find_age() -> Program:
    path = shutil.which("age", path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/bin", "/opt/homebrew/bin"]))
    version = ""
    if path:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            answer = subprocess.run([path, "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, check=False)
            version = answer.stdout.decode("utf-8", "replace").strip().lstrip("v") if answer.returncode == 0 else ""
    if not path or not version:
        raise UnifiedUserError("find the program age", f"{path} does not run" if path else "it is not in PATH", "Install the package age on this host")
    return Program(path, version, 0)


def _recipients(encryption: Encryption) -> list[str]:
    return ["--encrypt", *(f"--recipient={recipient}" for recipient in encryption.recipients)]


@contextlib.contextmanager
def writing(
    program: Program,
    arguments: Sequence[str],
    environment: dict[str, str],
    held: Sequence[int],
    path: str,
    encryption: Encryption | None,
) -> Iterator[Child | Pipe]:
    """Run a client program for the length of the block, its output in a file: as it is, or encrypted on its way.

    Args:
        program: ``pg_dump`` or ``pg_dumpall``; it must write to one file.
        arguments: without ``--file``.
        environment: see `child_environment`.
        held: file descriptors that the programs inherit.
        path: the file, which must not exist when it is encrypted.
        encryption: None for not at all.
    """
    if encryption is None:
        with running(program, [*arguments, f"--file={path}"], environment, held) as child:
            yield child
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with piped(
            lambda target: Child(program, arguments, environment, held, stdout=target),
            lambda source: Child(encryption.program, _recipients(encryption), dict(os.environ), held, stdin=source, stdout=descriptor),
        ) as pipe:
            yield pipe
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Decryption:
    """Reads an encrypted dump with an identity.

    Args:
        path: the encrypted file.
        identity_file: the file with the identities; None if nobody named one.

    Raises:
        UnifiedUserError: there is no such file, age is not there, or no identity in the file opens this dump. Nothing has been touched yet.
    """

    def __init__(self, path: str, identity_file: str | None) -> None:
        self._path = path
        self._action = f"decrypt {path}"
        self._advice = "Set decryption_identity_file (backup_decryption_identity_file) to the identity of one of the recipients in manifest.json"
        if not identity_file:
            raise UnifiedUserError(self._action, "the backup is encrypted and no identity file was named", self._advice)
        self._identity_file = os.path.abspath(identity_file)
        if not os.access(self._identity_file, os.R_OK):
            raise UnifiedUserError(self._action, f"identity file {self._identity_file} is not there or may not be read", self._advice)
        self._program = _find_age()
        self._probe()

    def _child(self, source: Any, target: int) -> Child:
        return Child(self._program, ["--decrypt", f"--identity={self._identity_file}"], dict(os.environ), stdin=source, stdout=target)

    def _probe(self) -> None:
        """Decrypt the first byte: a wrong key shows at once or not at all."""
        source, target = os.pipe()
        with open(self._path, "rb") as file, open(source, "rb", buffering=0) as output:
            try:
                child = self._child(file, target)
            finally:
                os.close(target)
            try:
                complaint = None if output.read(1) else child.wait() or "it holds nothing"
            finally:
                child.stop()
        if complaint:
            raise UnifiedUserError(self._action, complaint, self._advice)

    @contextlib.contextmanager
    def feeding(self, program: Program, arguments: Sequence[str], environment: dict[str, str]) -> Iterator[Pipe]:
        """Run a client program on the decrypted dump for the length of the block.

        Args:
            program: ``pg_restore``, which reads its standard input.
            arguments: see `Child`.
            environment: see `child_environment`.
        """
        with open(self._path, "rb") as file, piped(
            lambda target: self._child(file, target), lambda source: Child(program, arguments, environment, stdin=source)
        ) as pipe:
            yield pipe
