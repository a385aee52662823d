# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Copies of a backup at further places: sent, compared at the far end, found, fetched and told what a restore test has proven."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from typing import Any, Iterator

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import (
    MANIFEST,
    PROOF,
    Backup,
    alone_in,
    explaining,
    lock_directory,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_place import Place
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_place_path import PathPlace
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_place_s3 import S3Place
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_place_ssh import SshPlace
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

_KINDS = {"path": PathPlace, "ssh": SshPlace, "s3": S3Place}
_SHOWN = 5
#: How the local directory is called where a place is chosen by its label.
LOCAL = "directory"
LAST = "last"

#: The argument of modules that takes the list of places; its documentation is the fragment ``copies``.
COPIES_ARGUMENT = {
    "type": "list",
    "elements": "dict",
    "default": [],
    "options": {
        "kind": {"type": "str", "required": True, "choices": list(_KINDS)},
        "path": {"type": "str"},
        "allow_same_filesystem": {"type": "bool", "default": False},
        "host": {"type": "str"},
        "user": {"type": "str"},
        "port": {"type": "int"},
        "identity_file": {"type": "path"},
        "known_hosts_file": {"type": "path"},
        "bucket": {"type": "str"},
        "endpoint_url": {"type": "str"},
        "region": {"type": "str"},
        "profile": {"type": "str"},
    },
    "required_if": [("kind", "path", ["path"]), ("kind", "ssh", ["host", "path"]), ("kind", "s3", ["bucket"])],
}


def open_places(options: list[dict[str, Any]]) -> list[Place]:
    """Return the places that a list of options describes.

    Raises:
        UnifiedUserError: one cannot be meant, two are the same, or what one of them needs is not on this host.
    """
    places: list[Place] = []
    for entry in options:
        place = _KINDS[entry["kind"]](entry)
        if place.label in [other.label for other in places]:
            raise place.error("keep two copies of a backup", "the list of copies names it twice", "Remove one of the entries")
        places.append(place)
    return places


def choose_place(places: list[Place], source: str) -> Place | None:
    """Return the place that backups are to be taken from, None for the local directory.

    Args:
        places: all of them, the furthest last.
        source: ``last``, ``directory``, or the label of one.
    """
    if source == LOCAL or (source == LAST and not places):
        return None
    if source == LAST:
        return places[-1]
    for place in places:
        if place.label == source:
            return place
    known = ", ".join([LAST, LOCAL, *(place.label for place in places)])
    raise UnifiedUserError(f"take a backup from {source}", "no copy is called so", f"Set source to one of: {known}")


def copy_backup(parameters: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Bring a backup to every place, and compare what is stored there with the manifest.

    Args:
        parameters: ``backup`` (its directory) and ``copies``.
        check_mode: only look whether the places can be reached and what they have.

    Returns:
        What the module returns.

    Raises:
        UnifiedUserError: a place cannot be reached, has no room, or stores something else than what was sent. Copies at places before
            it in the list are whole; the place itself shows nothing that looks like a backup.
    """
    places = open_places(parameters["copies"])
    backup = Backup.load(parameters["backup"])
    if backup.in_repository:
        raise UnifiedUserError(
            f"copy backup {backup.path}", "its data is in the repository of pgBackRest",
            "Configure a further repository there (repo2-path and so on) and take a backup into it with repo in pgbackrest",
        )
    told = []
    with backup.in_use():
        for place in places:
            place.prepare(backup.path)
            started = time.monotonic()
            present = _is_present(place, backup)
            if not present and not check_mode:
                _send(place, backup)
            told.append(
                {
                    "place": place.label,
                    "changed": not present,
                    "size_bytes": backup.size_bytes,
                    "duration_ms": int((time.monotonic() - started) * 1000),
                }
            )
    return {
        "changed": any(entry["changed"] for entry in told),
        "planned": check_mode,
        "path": backup.path,
        "sha256": backup.manifest["sha256"],
        "copies": told,
    }


def _files(backup: Backup) -> list[str]:
    return [file["name"] for file in backup.manifest["files"]]


def _is_present(place: Place, backup: Backup) -> bool:
    if backup.name not in place.names():
        return False
    if place.read(backup.name, MANIFEST) != backup.manifest_bytes:
        advice = f"Move {backup.name} away there, then run the same command again"
        raise place.error(f"keep a copy of {backup.name}", "another backup of that name is there", advice)
    _compare(place, backup, published=True)
    return True


def _send(place: Place, backup: Backup) -> None:
    # The bytes that leave this host are those that were written: what rots here must not spread.
    backup.verify_files()
    place.send(backup.path, backup.name, _files(backup))
    _compare(place, backup, published=False)
    place.publish(backup.name, MANIFEST, backup.manifest_bytes)
    if place.read(backup.name, MANIFEST) != backup.manifest_bytes:
        raise place.error(f"keep a copy of {backup.name}", f"its {MANIFEST} is not what was sent", "Remove that copy and do not rely on this place")


def _compare(place: Place, backup: Backup, published: bool) -> None:
    """Raise unless what is stored at a place is what the manifest says."""
    problems = differences(place, backup, published)
    if problems:
        more = len(problems) - _SHOWN
        raise place.error(
            f"trust the copy of {backup.name}",
            "; ".join(problems[:_SHOWN]) + (f"; and {more} more" if more > 0 else ""),
            "Do not rely on it: remove it there, then run the same command again",
        )


def differences(place: Place, backup: Backup, published: bool) -> list[str]:
    """Return which files at a place are missing or are not those of the manifest, in words."""
    stored = place.digests(backup.name, _files(backup), published)
    return [
        f"{file['name']} {'is missing' if file['name'] not in stored else 'was altered (its sha256 differs)'}"
        for file in backup.manifest["files"]
        if stored.get(file["name"]) != file["sha256"]
    ]


class CopyOfBackup(Backup):
    """A backup that lies at a place, known by its manifest."""

    def __init__(self, place: Place, name: str, content: bytes) -> None:
        parsed = Backup.parse(f"{place.label}/{name}", content)
        super().__init__(parsed.path, parsed.manifest, content)
        self._place = place

    @property
    def name(self) -> str:
        """The name that the backup and all its copies have."""
        return self.path.rsplit("/", 1)[1]

    def read_proof(self) -> bytes | None:
        """See `Backup`."""
        return self._place.read(self.name, PROOF)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Nothing: only retention removes a copy, and never one that a restore test of now works on."""
        yield

    def verify_files(self, all_of_repository: bool = False) -> None:
        """Compare every file at the place with the manifest; see `Backup`."""
        _compare(self._place, self, published=True)


def copies_at(place: Place) -> Iterator[CopyOfBackup]:
    """Yield the readable copies at a place, by name."""
    for name in place.names():
        with contextlib.suppress(UnifiedUserError):
            content = place.read(name, MANIFEST)
            if content is not None:
                yield CopyOfBackup(place, name, content)


def find_copy(place: Place, name: str | None, database: str, proven: bool) -> CopyOfBackup:
    """Find the copy of a named backup, or the newest of a database.

    Raises:
        UnifiedUserError: there is none.
    """
    if name:
        content = place.read(name, MANIFEST) if name in place.names() else None
        if content is None:
            advice = "Copy the backup there with the module database_backup_copy, or set source to directory"
            raise place.error(f"find the copy of {name}", "it is not there", advice)
        return CopyOfBackup(place, name, content)
    found = [copy for copy in copies_at(place) if copy.manifest["database"] == database and (not proven or copy.proof())]
    if not found:
        kind = "proven backup" if proven else "backup"
        raise place.error(f"find a {kind} of database {database}", "there is none", "Copy one there, or set source to another place")
    return max(found, key=lambda copy: (copy.manifest["snapshot_time"], copy.name))


@contextlib.contextmanager
def fetched(place: Place, copy: CopyOfBackup, directory: str) -> Iterator[Backup]:
    """Bring a copy to this host for the length of the block.

    It lies in a hidden directory below the one for backups; what a killed run leaves there is removed by the next backup.

    Args:
        place: where it lies.
        copy: what to bring.
        directory: the local directory for backups; made if it is missing.
    """
    with explaining(f"bring back {copy.path}"):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with alone_in(directory):
            folder = tempfile.mkdtemp(prefix=".fetched-", suffix=".partial", dir=directory)
            descriptor = lock_directory(folder)
    try:
        target = os.path.join(folder, copy.name)
        os.mkdir(target, 0o700)
        place.fetch(copy.name, _files(copy), target)
        with explaining(f"bring back {copy.path}"), open(os.path.join(target, MANIFEST), "wb") as file:
            file.write(copy.manifest_bytes)
        backup = Backup.load(target)
        backup.source = copy.path
        yield backup
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def spread_proof(places: list[Place], directory: str, backup: Backup) -> list[str]:
    """Put the proof of the backup that was restored beside all its copies; without one, take away what is there.

    Args:
        places: the further places.
        directory: the local directory for backups.
        backup: what was restored, with its proof, or without if it was not what its manifest says.

    Returns:
        Where the proof lies now, or where it was taken away.
    """
    proof, told = backup.read_proof(), []
    local = os.path.join(os.path.abspath(directory), backup.name)
    if os.path.isdir(local):
        with contextlib.suppress(UnifiedUserError):
            own = Backup.load(local)
            if own.manifest_bytes == backup.manifest_bytes:
                own.take_proof(proof)
                told.append(own.path)
    for place in places:
        if backup.name in place.names() and place.read(backup.name, MANIFEST) == backup.manifest_bytes:
            place.write(backup.name, PROOF, proof or b'{"proven": false}\n')
            told.append(place.label)
    return told
