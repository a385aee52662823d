# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which backups go and which stay: nothing goes unless a newer one is proven, whole and of the same database."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shutil
from typing import Any, Callable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_copies import copies_at, open_places
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import (
    MANIFEST,
    Backup,
    alone_in,
    explaining,
    lock_directory,
    name_stem,
    partial_name,
    sync_directory,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_place import Place
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

_DAY = datetime.timedelta(days=1)
#: As PostgreSQL's to_char wrote it into the manifest.
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


def retain(parameters: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Remove the backups of a database that exceed a limit.

    Args:
        parameters: ``directory``, ``database``, ``keep_count`` (backups) and ``keep_days`` (days), where 0 sets no limit, and
            ``copies``: the same holds for each of these places.
        check_mode: only say what would be removed.

    Returns:
        What the module returns.

    Raises:
        UnifiedUserError: a limit is negative, the newest proven backup is damaged, or one could not be removed. Whatever
            was not removed is still whole.
    """
    if parameters["keep_count"] < 0 or parameters["keep_days"] < 0:
        raise UnifiedUserError(
            "remove older backups", "keep_count and keep_days must not be negative", "Set them to 0 for no limit, or higher"
        )
    directory = os.path.abspath(parameters["directory"])
    with explaining(f"look for backups below {directory}"):
        found, left_alone = _find(directory, parameters["database"])
    here = _apply(found, left_alone, parameters, check_mode, lambda backup: _remove(directory, backup))
    there = []
    for place in open_places(parameters["copies"]):
        found, left_alone = _find_copies(place, parameters["database"])
        there.append({"place": place.label, **_apply(found, left_alone, parameters, check_mode, _remover(place))})
    return {"changed": any(told["removed"] for told in [here, *there]), "planned": check_mode, **here, "copies": there}


def _remover(place: Place) -> Callable[[Backup], bool]:
    def remove(backup: Backup) -> bool:
        place.remove(backup.name)
        return True

    return remove


def _apply(
    found: list[Any], left_alone: list[dict[str, str]], parameters: dict[str, Any], check_mode: bool, remove: Callable[[Any], bool]
) -> dict[str, Any]:
    """Remove what exceeds a limit at one place, and say what went and what stayed."""
    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    verdicts = judge(found, parameters["keep_count"], parameters["keep_days"], now)
    by_path = {backup.path: backup for backup in found}
    excess = [verdict for verdict in verdicts if not verdict["kept"]]
    if excess:
        # The others go because of this one: its bytes are looked at, not only its proof.
        _newest_proven(found).verify_files()
    for verdict in [] if check_mode else excess:
        if not remove(by_path[verdict["path"]]):
            verdict.update(kept=True, reason="in use by another run")
    return {
        "removed": [_shown(verdict) for verdict in verdicts if not verdict["kept"]],
        "kept": [_shown(verdict) for verdict in verdicts if verdict["kept"]],
        "left_alone": left_alone,
    }


def judge(backups: list[Backup], keep_count: int, keep_days: int, now: datetime.datetime) -> list[dict[str, Any]]:
    """Say of each backup whether it stays, and why.

    The limit by count counts proven backups only, so that failed attempts never push a good one out.

    Args:
        backups: of one database, newest first.
        keep_count: how many proven ones may stay; 0 for no limit.
        keep_days: age in days, by the time of the snapshot, up to which they may stay; 0 for no limit.
        now: the time in UTC, without a time zone.

    Returns:
        A dict for each backup, in the same order: ``path``, ``snapshot_time``, ``proven``, ``kept`` and ``reason``.
    """
    verdicts, newer_proven = [], 0
    for backup in backups:
        proven = backup.proof() is not None
        age = now - snapshot_time(backup)
        kept, reason = True, "within the limits"
        if not newer_proven:
            reason = "the newest proven one" if proven else "no newer one is proven"
        elif keep_count and newer_proven >= keep_count:
            kept, reason = False, f"{newer_proven} newer ones are proven, keep_count is {keep_count}"
        elif keep_days and age > keep_days * _DAY:
            kept, reason = False, f"{age.days} days old, keep_days is {keep_days}"
        newer_proven += proven
        verdicts.append(
            {
                "path": backup.path,
                "snapshot_time": backup.manifest["snapshot_time"],
                "proven": proven,
                "kept": kept,
                "reason": reason,
            }
        )
    return verdicts


def snapshot_time(backup: Backup) -> datetime.datetime:
    """Return the time whose state a backup holds, in UTC without a time zone.

    Raises:
        ValueError: the manifest has no such time.
    """
    return datetime.datetime.strptime(backup.manifest["snapshot_time"], _TIME)


def _shown(verdict: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in verdict.items() if key != "kept"}


def _newest_proven(backups: list[Backup]) -> Backup:
    return next(backup for backup in backups if backup.proof())


def _find(directory: str, database: str) -> tuple[list[Backup], list[dict[str, str]]]:
    """Return the complete backups of the database, newest first, and what bears such a name and is none, with the reason."""
    pattern = re.compile(re.escape(name_stem(database)) + r"-\d{8}T\d{6}Z")
    found, left_alone = [], []
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else []:
        if not pattern.fullmatch(name):
            continue
        path = os.path.join(directory, name)
        try:
            found.append(_load(path, database))
        except UnifiedUserError as error:
            left_alone.append({"path": path, "reason": error.cause})
    return _of_one_server(found, left_alone)


def _find_copies(place: Place, database: str) -> tuple[list[Backup], list[dict[str, str]]]:
    """Return the copies of the database's backups at a place, newest first, and those that are not known to be, with the reason."""
    found: list[Backup] = []
    for copy in copies_at(place):
        with contextlib.suppress(ValueError):
            snapshot_time(copy)
            if copy.manifest["database"] == database:
                found.append(copy)
    return _of_one_server(found, [])


def _of_one_server(found: list[Backup], left_alone: list[dict[str, str]]) -> tuple[list[Backup], list[dict[str, str]]]:
    found.sort(key=lambda backup: (snapshot_time(backup), backup.path), reverse=True)
    proven = [backup for backup in found if backup.proof()]
    if not proven:
        return found, left_alone
    # Two servers may have a database of this name and share the directory.
    server = proven[0].manifest["server"].get("system_identifier")
    same = [backup for backup in found if server and backup.manifest["server"].get("system_identifier") == server]
    others = [{"path": backup.path, "reason": "it is not known to be of the same server"} for backup in found if backup not in same]
    return same, left_alone + others


def _load(path: str, database: str) -> Backup:
    """Load a backup that may be removed: a directory of its own, complete, of this database."""
    action = f"count {path} as a backup"
    if os.path.islink(path):
        raise UnifiedUserError(action, "it is a symbolic link", "Remove it yourself if nobody needs it")
    backup = Backup.load(path)
    if backup.manifest["database"] != database:
        raise UnifiedUserError(action, f"it is of database {backup.manifest['database']}", "Keep it elsewhere")
    try:
        snapshot_time(backup)
    except ValueError as error:
        raise UnifiedUserError(action, f"the snapshot_time in its {MANIFEST} is no time", "Remove it yourself if nobody needs it") from error
    for file in backup.local_files:
        name = os.path.join(path, file["name"])
        if not os.path.isfile(name) or os.path.getsize(name) != file["size"]:
            raise UnifiedUserError(action, f"{file['name']} is missing or not whole", "Remove it yourself if nobody needs it")
    return backup


def _remove(directory: str, backup: Backup) -> bool:
    """Remove a backup; return whether nobody was using it.

    It loses its name first, so that a run killed here leaves what the next backup clears away, never half a backup.
    """
    with explaining(f"remove backup {backup.path}"):
        hidden = os.path.join(directory, partial_name(os.path.basename(backup.path)))
        with alone_in(directory):
            descriptor = lock_directory(backup.path)
            if descriptor is None:
                return False
            os.rename(backup.path, hidden)
            sync_directory(directory)
        try:
            shutil.rmtree(hidden)
        finally:
            os.close(descriptor)
    return True
