# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Copies of backups in a directory of this host: a mounted file system, another disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import Any, Iterator, Sequence

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import (
    name_of_database,
    partial_name,
    sha256_of_file,
    sync_directory,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_place import STALE_DAYS, Place

_DAY_SECONDS = 86400
_BLOCK = 1 << 20


class PathPlace(Place):
    """A directory of this host.

    Args:
        options: ``path``, and ``allow_same_filesystem``.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._path = os.path.abspath(options["path"])
        self._allow_same = options["allow_same_filesystem"]
        self.label = f"path {self._path}"

    def prepare(self, backup_path: str) -> None:
        """Refuse the file system that the backup itself is on: what is to be mounted there is not."""
        action = "keep a copy of a backup"
        if not os.path.isdir(self._path):
            raise self.error(action, "there is no such directory", "Mount the file system and make the directory, then run the same command again")
        if os.stat(self._path).st_dev == os.stat(backup_path).st_dev and not self._allow_same:
            raise self.error(
                action,
                "it is on the same file system as the backup, which one fault would take with it",
                "Mount what should be there, or set allow_same_filesystem",
            )

    def local_path(self, name: str) -> str | None:
        """See `Place`."""
        return os.path.join(self._path, name)

    def names(self) -> list[str]:
        """See `Place`."""
        if not os.path.isdir(self._path):
            raise self.error("look for backups", "there is no such directory", "Mount the file system, then run the same command again")
        with self._explaining("look for backups"):
            return sorted(
                name
                for name in os.listdir(self._path)
                if not name.startswith(".") and os.path.isfile(os.path.join(self._path, name, "manifest.json"))
            )

    def read(self, name: str, file: str) -> bytes | None:
        """See `Place`."""
        with self._explaining(f"read {name}/{file}"):
            try:
                with open(os.path.join(self._path, name, file), "rb") as source:
                    return source.read()
            except FileNotFoundError:
                return None

    def write(self, name: str, file: str, content: bytes) -> None:
        """See `Place`."""
        with self._explaining(f"write {name}/{file}"):
            path = os.path.join(self._path, name, file)
            with open(os.open(path + ".partial", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as target:
                target.write(content)
                target.flush()
                os.fsync(target.fileno())
            os.replace(path + ".partial", path)
            sync_directory(os.path.dirname(path))

    def send(self, backup_path: str, name: str, files: Sequence[str]) -> None:
        """See `Place`."""
        hidden = os.path.join(self._path, partial_name(name))
        with self._explaining(f"write a copy of {name}"):
            self._sweep(name)
            try:
                os.mkdir(hidden, 0o700)
                for file in files:
                    target = os.path.join(hidden, file)
                    os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
                    self._copy(os.path.join(backup_path, file), target)
            except BaseException:
                shutil.rmtree(hidden, ignore_errors=True)
                raise

    def _copy(self, source: str, target: str) -> None:
        with open(source, "rb") as reading, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as writing:
            shutil.copyfileobj(reading, writing, _BLOCK)
            writing.flush()
            os.fsync(writing.fileno())
            # So that it is read back from where it is stored, not from memory.
            os.posix_fadvise(writing.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _sweep(self, name: str) -> None:
        """Remove what a killed run left of this copy, and of older ones of the same database."""
        shutil.rmtree(os.path.join(self._path, partial_name(name)), ignore_errors=True)
        stem = f".{name_of_database(name)}-"
        for entry in os.scandir(self._path):
            old = entry.name.startswith(stem) and entry.name.endswith(".partial") and entry.is_dir(follow_symlinks=False)
            if old and time.time() - entry.stat().st_mtime > STALE_DAYS * _DAY_SECONDS:
                shutil.rmtree(entry.path, ignore_errors=True)

    def digests(self, name: str, files: Sequence[str], published: bool) -> dict[str, str]:
        """See `Place`."""
        folder = os.path.join(self._path, name if published else partial_name(name))
        with self._explaining(f"read the copy of {name}"):
            return {file: sha256_of_file(os.path.join(folder, file)) for file in files if os.path.isfile(os.path.join(folder, file))}

    def publish(self, name: str, manifest_file: str, manifest: bytes) -> None:
        """See `Place`."""
        self.write(partial_name(name), manifest_file, manifest)
        with self._explaining(f"finish the copy of {name}"):
            os.rename(os.path.join(self._path, partial_name(name)), os.path.join(self._path, name))
            sync_directory(self._path)

    def fetch(self, name: str, files: Sequence[str], target: str) -> None:
        """See `Place`."""
        with self._explaining(f"read the copy of {name}"):
            for file in files:
                source, path = os.path.join(self._path, name, file), os.path.join(target, file)
                if os.path.isfile(source):
                    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                    self._copy(source, path)

    def remove(self, name: str) -> None:
        """See `Place`."""
        with self._explaining(f"remove {name}"):
            hidden = os.path.join(self._path, partial_name(name))
            os.rename(os.path.join(self._path, name), hidden)
            sync_directory(self._path)
            shutil.rmtree(hidden)

    @contextlib.contextmanager
    def _explaining(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.error(
                action,
                f"{error.strerror or error} ({error.filename or 'no file named'})",
                "Free space there, or let the user this module runs as read and write it, then run the same command again",
            ) from error
