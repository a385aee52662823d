# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A backup on disk: one directory with the dump, its manifest, and the proof that this very dump was restored.

``<database>-<UTC time>/`` holds ``dump/`` or ``database.dump``, ``globals.sql``, ``manifest.json`` and, once proven, ``proof.json``.
What is encrypted bears a further ``.age``. What pgBackRest took lies in its repository, and only manifest and proof are here. While
a backup is being made its name is hidden and ends in ``.partial``; the last act is the rename, so whatever bears the name is whole.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import time
from typing import Any, Iterator

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._pgbackrest import FORMAT, PgBackRest, Settings

MANIFEST = "manifest.json"
MANIFEST_VERSION = 2
PROOF = "proof.json"
#: Roles and their settings as SQL, where the role that made the backup could read them.
GLOBALS = "globals.sql"
#: Format of pg_dump -> where the dump lies in the backup's directory.
DUMP_NAMES = {"directory": "dump", "custom": "database.dump"}
#: What the names of encrypted files end in.
ENCRYPTED = ".age"

_NEEDED_KEYS = {
    "database": str,
    "format": str,
    "properties": dict,
    "server": dict,
    "client_version": str,
    "snapshot_time": str,
    "tables": list,
    "sequences": dict,
    "catalogue": dict,
    "files": list,
    "sha256": str,
}
_NEEDED_ENTRIES = {
    "files": {"name": str, "size": int, "sha256": str},
    "tables": {"name": str, "rows": int, "sum": str},
}
_NEEDED_FACTS = {
    "stanza": str,
    "label": str,
    "labels": list,
    "restore_point": str,
    "timeline": str,
    "wal": dict,
    "wal_segment_bytes": int,
    "cluster_bytes": int,
    "data_directory": str,
    "settings": dict,
    "restore_command": str,
}
_NEEDED_SERVER = ("version", "major")
_NEEDED_PROPERTIES = ("name", "encoding", "collate", "ctype", "provider", "locale", "size_bytes")
_BLOCK = 1 << 20
_READERS = 4
_SHOWN = 5


def utc(seconds: float) -> str:
    """Return an ISO 8601 time in UTC for seconds since the epoch."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@contextlib.contextmanager
def explaining(action: str) -> Iterator[None]:
    """Turn an operating system's error inside the block into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise UnifiedUserError(
            action,
            f"{error.strerror or error} ({error.filename or 'no file named'})",
            "Check free space and that the user this module runs as may write there, then run the same command again",
        ) from error


def sha256_of_file(path: str) -> str:
    """Return the hex digest of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_files(files: list[dict[str, Any]]) -> str:
    """Return the one digest of a backup: over its list of files, sorted, in the form that ``sha256sum`` prints."""
    lines = "".join(f"{file['sha256']}  {file['name']}\n" for file in sorted(files, key=lambda file: file["name"]))
    return hashlib.sha256(lines.encode("utf-8")).hexdigest()


def stored_names(form: str, encrypted: bool) -> tuple[str, str]:
    """Return where the dump and the globals of a backup lie in its directory.

    Args:
        form: a key of `DUMP_NAMES`.
        encrypted: whether both are.
    """
    suffix = ENCRYPTED if encrypted else ""
    return DUMP_NAMES[form] + suffix, GLOBALS + suffix


def list_files(directory: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Describe every file of a backup, the dump and what may lie beside it: name relative to the backup's directory, size in
    bytes, sha256. Sorted by name.

    Args:
        directory: the backup's directory.
        names: of `stored_names`.
    """
    paths = []
    for path in (os.path.join(directory, name) for name in names):
        if os.path.isdir(path):
            paths += [os.path.join(parent, name) for parent, _folders, names in os.walk(path) for name in names]
        elif os.path.exists(path):
            paths.append(path)
    paths.sort()
    # Hashing leaves Python's lock, so that several files are read at once.
    with concurrent.futures.ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(lambda path: _describe(path, directory), paths))


def _describe(path: str, directory: str) -> dict[str, Any]:
    return {"name": os.path.relpath(path, directory), "size": os.path.getsize(path), "sha256": sha256_of_file(path)}


def write_json(path: str, content: dict[str, Any]) -> None:
    """Replace a JSON file at once, mode 0600, safely on disk before the name is."""
    write_bytes(path, json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8") + b"\n")


def write_bytes(path: str, content: bytes) -> None:
    """Replace a file at once, mode 0600, safely on disk before the name is."""
    temporary = path + ".partial"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """Make sure that names made, changed or removed in a directory are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_bytes(directory: str) -> int:
    """Return how many bytes an ordinary user may still write below a directory that need not exist yet."""
    path = os.path.abspath(directory)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


@contextlib.contextmanager
def alone_in(directory: str) -> Iterator[None]:
    """Keep other runs from making or removing anything in a directory for the length of the block."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def lock_directory(path: str) -> int | None:
    """Return a descriptor that holds a directory for us alone until it is closed; None if somebody is at work in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


class Workplace:
    """The hidden directory in which a backup is made.

    Attributes:
        path: the directory, mode 0700.
        descriptor: open on it, with the lock that says somebody is still at work; children inherit it.
        leftovers: names of what earlier, killed runs left and this one removed.
    """

    def __init__(self, directory: str, database: str) -> None:
        self.directory = os.path.abspath(directory)
        self._prepare_directory()
        with alone_in(self.directory):
            self.leftovers = self._remove_leftovers()
            self.name = self._free_name(database)
            self.path = os.path.join(self.directory, partial_name(self.name))
            os.mkdir(self.path, 0o700)
            self.descriptor = os.open(self.path, os.O_RDONLY)
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def _prepare_directory(self) -> None:
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        mode = os.stat(self.directory).st_mode
        if mode & (stat.S_IWGRP | stat.S_IWOTH) and not mode & stat.S_ISVTX:
            raise UnifiedUserError(
                f"write a backup below {self.directory}",
                f"others may write there (mode {stat.S_IMODE(mode):04o}) and could exchange it",
                f"Run chmod 0700 {self.directory} or choose another directory",
            )

    def _remove_leftovers(self) -> list[str]:
        removed = []
        for name in sorted(os.listdir(self.directory)):
            path = os.path.join(self.directory, name)
            if not (name.startswith(".") and name.endswith(".partial") and os.path.isdir(path)):
                continue
            descriptor = lock_directory(path)
            if descriptor is None:
                continue  # its run, or a pg_dump that outlived it, is still at work
            try:
                shutil.rmtree(path)
                removed.append(name)
            finally:
                os.close(descriptor)
        return removed

    def _free_name(self, database: str) -> str:
        while True:
            name = planned_name(database)
            taken = (name, partial_name(name))
            if not any(os.path.lexists(os.path.join(self.directory, candidate)) for candidate in taken):
                return name
            time.sleep(0.1)

    def publish(self) -> str:
        """Give the finished backup its name and return its path."""
        path = os.path.join(self.directory, self.name)
        os.rename(self.path, path)
        sync_directory(self.directory)
        return path

    def close(self) -> None:
        """Release the lock, and remove the directory unless it was published."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.descriptor)


def planned_name(database: str) -> str:
    """Return ``<database>-<UTC time>``, with what file systems or shells dislike replaced by underscores."""
    return f"{name_stem(database)}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"


def name_of_database(name: str) -> str:
    """Return what the name of a backup begins with; the other way round, see `planned_name`."""
    return name.rsplit("-", 1)[0]


def name_stem(database: str) -> str:
    """Return what the names of a database's backups begin with."""
    return re.sub(r"^[.-]|[^A-Za-z0-9_.-]", "_", database)


def partial_name(name: str) -> str:
    """Return the hidden name that a backup has before it is whole, and again while it is being removed."""
    return f".{name}.partial"


class Backup:
    """A finished backup and what its manifest says. Use `load` or `newest`.

    Attributes:
        path: its directory.
        source: where it was taken from: its directory, or a copy that was brought here.
        manifest: the parsed manifest.
        manifest_bytes: as it stands in its file.
        manifest_sha256: digest of the manifest's bytes.
        repository_options: what an operator says about pgBackRest, over what the manifest does.
    """

    def __init__(self, path: str, manifest: dict[str, Any], manifest_bytes: bytes) -> None:
        self.repository_options: dict[str, Any] = {}
        self.path = path
        self.source = path
        self.manifest = manifest
        self.manifest_bytes = manifest_bytes
        self.manifest_sha256 = hashlib.sha256(manifest_bytes).hexdigest()

    @property
    def name(self) -> str:
        """The name of its directory, which all its copies bear."""
        return os.path.basename(self.path)

    @classmethod
    def load(cls, path: str) -> Backup:
        """Read a backup's manifest.

        Raises:
            UnifiedUserError: there is no such directory, no manifest in it, or one that contradicts itself.
        """
        path = os.path.abspath(path)
        action = f"read backup {path}"
        if not os.path.isdir(path):
            raise UnifiedUserError(action, "there is no such directory", "Give the directory that holds manifest.json")
        try:
            with open(os.path.join(path, MANIFEST), "rb") as file:
                return cls.parse(path, file.read())
        except FileNotFoundError as error:
            raise UnifiedUserError(
                action, f"it has no {MANIFEST}, so it is not a finished backup of this collection", "Take a new backup"
            ) from error
        except OSError as error:
            raise UnifiedUserError(
                action, f"{error.strerror} ({error.filename})", "Run this as the user who made the backup"
            ) from error

    @staticmethod
    def parse(path: str, content: bytes) -> Backup:
        """Read the bytes of a manifest.

        Args:
            path: where the backup lies, for messages and as its `path`.
            content: the manifest.

        Raises:
            UnifiedUserError: it contradicts itself or is none.
        """
        action = f"read backup {path}"
        try:
            manifest = json.loads(content.decode("utf-8"))
        except ValueError as error:
            raise UnifiedUserError(action, f"{MANIFEST} is damaged: it is not JSON", "Use another backup or take a new one") from error
        Backup._check(action, manifest)
        return Backup(path, manifest, content)

    @staticmethod
    def _check(action: str, manifest: Any) -> None:
        advice = "Use another backup or take a new one"
        version = manifest.get("manifest_version") if isinstance(manifest, dict) else None
        if version != MANIFEST_VERSION:
            raise UnifiedUserError(
                action, f"{MANIFEST} has version {version!r}, this release reads version {MANIFEST_VERSION}",
                "Use the release of the collection that made the backup, or take a new one",
            )
        malformed = [key for key, kind in _NEEDED_KEYS.items() if not isinstance(manifest.get(key), kind)]
        if not malformed:
            malformed = [
                key
                for key, wanted in _NEEDED_ENTRIES.items()
                if not all(
                    isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in wanted.items())
                    for entry in manifest[key]
                )
            ]
            malformed += [f"server {name}" for name in _NEEDED_SERVER if not manifest["server"].get(name)]
            malformed += [name for name in _NEEDED_PROPERTIES if name not in manifest["properties"]]
            malformed += ["format"] if manifest["format"] not in (*DUMP_NAMES, FORMAT) else []
            if manifest["format"] == FORMAT:
                facts = manifest.get(FORMAT)
                malformed += [f"{FORMAT} {key}" for key, kind in _NEEDED_FACTS.items() if not isinstance(facts, dict) or not isinstance(facts.get(key), kind)]
            malformed += ["client_version"] if not re.match(r"\d+", manifest["client_version"]) else []
        if malformed:
            raise UnifiedUserError(action, f"{MANIFEST} is damaged: {', '.join(malformed)} missing or malformed", advice)
        if sha256_of_files(manifest["files"]) != manifest["sha256"]:
            raise UnifiedUserError(action, f"{MANIFEST} contradicts itself: its digest is not that of its list of files", advice)

    @property
    def encrypted(self) -> bool:
        """Whether its files are of no use without an identity of age."""
        return bool(self.manifest.get("encryption"))

    @property
    def in_repository(self) -> bool:
        """Whether pgBackRest has its data."""
        return self.manifest["format"] == FORMAT

    def _repository(self) -> PgBackRest:
        return PgBackRest(Settings.choose(self.repository_options, self.manifest[FORMAT]))

    @property
    def local_files(self) -> list[dict[str, Any]]:
        """Those of its files that lie in its directory: all, or none."""
        return [] if self.in_repository else self.manifest["files"]

    @property
    def size_bytes(self) -> int:
        """How much is stored of it, in bytes."""
        return self.manifest["size_bytes"] if self.in_repository else sum(file["size"] for file in self.manifest["files"])

    @property
    def _names(self) -> tuple[str, str]:
        return stored_names(self.manifest["format"], self.encrypted)

    @property
    def dump_path(self) -> str:
        """The file or directory that pg_restore reads, once it is decrypted."""
        return os.path.join(self.path, self._names[0])

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the backup from being removed for the length of the block."""
        with explaining(f"read backup {self.path}"):
            descriptor = os.open(self.path, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        try:
            yield
        finally:
            os.close(descriptor)

    def verify_files(self, all_of_repository: bool = False) -> None:
        """Read every file of the dump and compare it with the manifest.

        Of a backup that pgBackRest took these are the manifests of its set, which hold a checksum of every other file, and the WAL.
        A restore compares the other files with these.

        Args:
            all_of_repository: let pgBackRest read the other files of such a backup now; it reads its whole repository for that.

        Raises:
            UnifiedUserError: naming the files that are missing, empty, truncated, altered or should not be there.
        """
        expected = {file["name"]: file for file in self.manifest["files"]}
        invalid: list[str] = []
        if self.in_repository:
            repository = self._repository()
            found = repository.describe_files(list(expected))
            invalid = repository.invalid_files(self.manifest[FORMAT]["labels"]) if all_of_repository else []
        else:
            with explaining(f"read backup {self.path}"):
                found = list_files(self.path, self._names)
        present = {file["name"]: file for file in found}
        problems = [f"{name} is not in the manifest" for name in sorted({*present} - {*expected})]
        for name, want in expected.items():
            have = present.get(name)
            if have is None:
                problems.append(f"{name} is missing")
            elif have["size"] == 0 and want["size"]:
                problems.append(f"{name} is empty")
            elif have["size"] != want["size"]:
                problems.append(f"{name} has {have['size']} bytes instead of {want['size']}")
            elif have["sha256"] != want["sha256"]:
                problems.append(f"{name} was altered (its sha256 differs)")
        problems += invalid
        if problems:
            shown = "; ".join(problems[:_SHOWN])
            more = len(problems) - _SHOWN
            raise UnifiedUserError(
                f"trust backup {self.path}",
                shown + (f"; and {more} more" if more > 0 else ""),
                "Take a new backup or use another one; do not rely on this one" if self.in_repository
                else "Copy it again from another place or take a new backup; do not rely on this one",
                problems=problems,
            )

    def proof(self) -> dict[str, Any] | None:
        """Return the proof that this very dump was restored and compared; None if there is none or it is of another dump."""
        try:
            proof = json.loads((self.read_proof() or b"").decode("utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(proof, dict) or proof.get("proven") is not True:
            return None
        same = proof.get("sha256") == self.manifest["sha256"] and proof.get("manifest_sha256") == self.manifest_sha256
        return proof if same else None

    def read_proof(self) -> bytes | None:
        """Return the proof's bytes, None if there is none."""
        try:
            with open(os.path.join(self.path, PROOF), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def require_proof(self) -> None:
        """Raise unless this very dump was restored and compared."""
        if self.proof():
            return
        cause = "no restore test has proven it"
        if self.read_proof() is not None:
            cause = f"its {PROOF} is about another dump: the sha256 proven is not that of the files here"
        raise UnifiedUserError(
            f"go back to backup {self.path}",
            cause,
            "Prove it first with the module database_restore, state tested (role restore_test), or choose a proven one",
        )

    def write_proof(self, facts: dict[str, Any]) -> str:
        """Write the proof beside the manifest and return its path."""
        path = os.path.join(self.path, PROOF)
        write_json(path, {"proven": True, "sha256": self.manifest["sha256"], "manifest_sha256": self.manifest_sha256, **facts})
        return path

    def take_proof(self, content: bytes | None) -> None:
        """Write a proof that was made of another copy of this backup, or, without one, remove the proof."""
        if content is None:
            self.withdraw_proof()
        else:
            write_bytes(os.path.join(self.path, PROOF), content)

    def withdraw_proof(self) -> None:
        """Remove the proof: this dump has been restored and was not what the manifest says."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self.path, PROOF))


def newest(directory: str, database: str, proven: bool) -> Backup:
    """Find the newest backup of a database.

    Args:
        directory: what holds the backups' directories.
        database: the database's name.
        proven: take only one that a restore test has proven.

    Raises:
        UnifiedUserError: there is none.
    """
    found = []
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        if name.startswith(".") or not os.path.isfile(os.path.join(directory, name, MANIFEST)):
            continue
        with contextlib.suppress(UnifiedUserError):
            backup = Backup.load(os.path.join(directory, name))
            if backup.manifest["database"] == database and (not proven or backup.proof()):
                found.append(backup)
    if not found:
        raise UnifiedUserError(
            f"find a {'proven ' if proven else ''}backup of database {database}",
            f"there is none below {directory}",
            "Set the path of one" + (", or prove an existing one with the module database_restore, state tested" if proven else ", or take one"),
        )
    return max(found, key=lambda backup: (backup.manifest["snapshot_time"], backup.path))
