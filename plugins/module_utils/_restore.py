# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Restoring a backup beside the live database and comparing what came out with what went in."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import time
from typing import Any, Iterator

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _scratch
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_copies import (
    choose_place,
    fetched,
    find_copy,
    open_places,
    spread_proof,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_encryption import Decryption
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import PROOF, Backup, free_bytes, newest, utc
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_place import Place
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._client_programs import (
    Child,
    Pipe,
    Program,
    child_environment,
    database_argument,
    ending_in_order,
    find_program,
    running,
    write_service_file,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, connect, psycopg2
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._contents import (
    SPELLED_BY_MAJOR,
    compare_catalogues,
    compare_rows,
    compare_sequences,
    fix_text_form,
    list_tables,
    measure_rows,
    read_catalogue,
    read_sequences,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._pgbackrest import FORMAT
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._pgbackrest_cluster import ScratchCluster
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._version import COLLECTION_VERSION

_SUFFIXES = {"tested": "_restore_test", "restored": "_restored", "rehearsal": "_rehearsal"}
_SHOWN = 5

_ADVICE = (
    ("No space left", "Free disk space on the database server, then run the same command again"),
    ("unrecognized configuration parameter", "Install the client package of the server's own major or set bin_dir to it"),
    ("not support compression", "Install a pg_restore that was built with the compression of this backup or set bin_dir to it"),
    ("unsupported version", "Install a newer client package or set bin_dir to it"),
    ("must be superuser", "Connect as a superuser: the dump holds objects that only one may create"),
    ("must be able to SET ROLE", "Connect as a superuser or as a member of the roles that own the objects"),
    ("must be member of role", "Connect as a superuser or as a member of the roles that own the objects"),
    ("must be owner", "Connect as a superuser or as the role that owns the objects"),
    ("permission denied", "Connect as a superuser or as the role that owns the objects"),
    ("does not exist", "Create on this server the roles or extensions that the message names, then run the same command again"),
)


def _require(backup: Backup, parameters: dict[str, Any]) -> Backup:
    """Return a backup that was named if it is of the right database and, if that is asked for, proven."""
    if backup.manifest["database"] != parameters["login_db"]:
        raise UnifiedUserError(
            f"use backup {backup.source}",
            f"its manifest says it is of database {backup.manifest['database']}, not of {parameters['login_db']}",
            "Name a backup of this database or set login_db to the database it was taken of",
        )
    if _needs_proof(parameters):
        backup.require_proof()
    return backup


def _needs_proof(parameters: dict[str, Any]) -> bool:
    return parameters["require_proof"] or parameters["state"] == "restored"


def choose_backup(parameters: dict[str, Any]) -> Backup:
    """Load the backup that the options name, or the newest of this database: a proven one if it is to be gone back to.

    Args:
        parameters: ``backup`` or ``directory``, ``login_db``, ``state``, ``require_proof``.

    Raises:
        UnifiedUserError: there is none, it is of another database, or it lacks the proof it needs.
    """
    if parameters.get("backup"):
        backup = _require(Backup.load(parameters["backup"]), parameters)
    else:
        backup = newest(parameters["directory"], parameters["login_db"], _needs_proof(parameters))
    backup.repository_options = parameters[FORMAT]
    return backup


@contextlib.contextmanager
def _chosen(parameters: dict[str, Any], place: Place | None, check_mode: bool) -> Iterator[Backup]:
    """Provide the backup that the options name, for the length of the block: the local one, or the copy at a place.

    A copy is brought here only to be restored. To be looked at it stays where it is.
    """
    if place is None:
        yield choose_backup(parameters)
        return
    name = os.path.basename(os.path.abspath(parameters["backup"])) if parameters.get("backup") else None
    copy = find_copy(place, name, parameters["login_db"], _needs_proof(parameters))
    _require(copy, parameters)
    path = place.local_path(copy.name)
    if path:
        backup = Backup.load(path)
        backup.source = copy.path
        yield backup
    elif check_mode or parameters["state"] not in ("tested", "restored"):
        yield copy
    else:
        with fetched(place, copy, os.path.abspath(parameters["directory"])) as backup:
            yield backup


def describe_backup(backup: Backup) -> dict[str, Any]:
    """Return what identifies a backup, for a module's result."""
    manifest, proof = backup.manifest, backup.proof()
    return {
        "path": backup.source,
        "database": manifest["database"],
        "sha256": manifest["sha256"],
        "size_bytes": backup.size_bytes,
        "snapshot_time": manifest["snapshot_time"],
        "proven": proof is not None,
        "proven_at": proof["proven_at"] if proof else None,
        # The way back for the whole server, where a database is not enough.
        "restore_command": manifest[FORMAT]["restore_command"] if backup.in_repository else None,
    }


def restore(parameters: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Do what ``state`` asks for with a backup.

    Args:
        parameters: module parameters: connection options and those of the module database_restore.
        check_mode: look at everything that would stop it, and only say what would be done.

    Returns:
        What the module returns.

    Raises:
        UnifiedUserError: the backup cannot be found, trusted or restored, or what came out differs.
    """
    places = open_places(parameters["copies"])
    place = choose_place(places, parameters["source"])
    with _chosen(parameters, place, check_mode) as backup, backup.in_use():
        if parameters["state"] not in ("tested", "restored"):
            return _look_at(backup, parameters)
        try:
            result = Restore(parameters, backup, check_mode).run()
        except UnifiedUserError as error:
            if error.details.get("proven") is False:
                spread_proof(places, parameters["directory"], backup)
            raise
        told = spread_proof(places, parameters["directory"], backup) if result.get("proof") else []
        if place and told:
            result["proof"] = os.path.join(told[0], PROOF)
        return {**result, "backup": describe_backup(backup), "proof_at": told}


def _look_at(backup: Backup, parameters: dict[str, Any]) -> dict[str, Any]:
    """Verify a backup's files and, if ``state`` says so, compare the database of now with it."""
    started = time.monotonic()
    backup.verify_files(all_of_repository=parameters["state"] == "verified")
    result = {"changed": False, "backup": describe_backup(backup)}
    if parameters["state"] == "compared":
        database = connect(parameters)
        try:
            result.update(compare_with(database, backup.manifest), executed_queries=database.executed_queries)
        finally:
            database.close()
    return {**result, "duration_ms": int((time.monotonic() - started) * 1000)}


def compare_with(database: Database, manifest: dict[str, Any]) -> dict[str, list[Any]]:
    """Compare a database with a manifest, in one snapshot of its own.

    Returns:
        ``tables`` (see `compare_rows`), ``catalogue``, the list of objects that differ, and ``not_compared``, the kinds of objects that
        two majors spell differently.
    """
    with database.transaction("ISOLATION LEVEL REPEATABLE READ, READ ONLY"):
        fix_text_form(database)
        sequences, catalogue = read_sequences(database), read_catalogue(database)
        rows = measure_rows(database, list_tables(database))
    same_major = database.connection.server_version // 10000 == manifest["server"]["major"]
    left_out = () if same_major else SPELLED_BY_MAJOR
    expected, actual = ({kind: found for kind, found in side.items() if kind not in left_out} for side in (manifest["catalogue"], catalogue))
    return {
        "tables": compare_rows(manifest["tables"], rows),
        "catalogue": compare_catalogues(expected, actual) + compare_sequences(manifest["sequences"], sequences),
        "not_compared": sorted({*left_out} & {*manifest["catalogue"], *catalogue}),
    }


def _differences(compared: dict[str, list[Any]]) -> list[str]:
    """Put what differs into words."""
    words = []
    for table in compared["tables"]:
        if table["problem"] == "content":
            words.append(f"table {table['name']}: the same {table['actual']} rows in number, not in content")
        elif table["differing"]:
            words.append(f"table {table['name']}: {table['actual']} rows instead of {table['expected']}".replace("None", "no"))
    return words + [f"{entry['kind']} {entry['name']}: {entry['problem']}" for entry in compared["catalogue"]]


class Restore:
    """One restore of one backup into one database of ours.

    Args:
        parameters: module parameters: connection options, ``state`` (``tested`` or ``restored``), ``target``, ``jobs``,
            ``bin_dir``, ``maintenance_db``, ``decryption_identity_file``.
        backup: what to restore.
        check_mode: look at everything that would stop it, and only say what would be done.
        purpose: what the copy's mark says it is for, when not for what the state is; only copies of one purpose replace each other.
    """

    def __init__(self, parameters: dict[str, Any], backup: Backup, check_mode: bool, purpose: str | None = None) -> None:
        self._parameters = parameters
        self._backup = backup
        self._check_mode = check_mode
        self._decryption: Decryption | None = None
        self._cluster: ScratchCluster | None = None
        self._state = parameters["state"]
        self._purpose = purpose or self._state
        self.target = parameters.get("target") or _scratch.derived_name(backup.manifest["database"], _SUFFIXES[self._purpose])

    def run(self) -> dict[str, Any]:
        """Restore, compare, and either write the proof and drop the copy (tested) or keep it (restored).

        Raises:
            UnifiedUserError: the backup cannot be trusted or restored, or what came out differs. The copy is dropped.
        """
        started = time.monotonic()
        self._backup.verify_files()
        self._cluster = ScratchCluster(self._backup, self._parameters) if self._backup.in_repository else None
        if self._cluster and self._purpose == "tested":
            return self._test_cluster(self._cluster, started)
        if self._backup.encrypted and (not self._check_mode or os.path.exists(self._backup.dump_path)):
            self._decryption = Decryption(self._backup.dump_path, self._parameters.get("decryption_identity_file"))
        admin = connect(self._parameters, self._parameters["maintenance_db"])
        try:
            return self._run(admin, started)
        finally:
            admin.close()

    def _test_cluster(self, cluster: ScratchCluster, started: float) -> dict[str, Any]:
        """Let pgBackRest restore a server of its own, and compare the database there; the original need not run."""
        result = {
            "changed": True,
            "planned": self._check_mode,
            "target": cluster.directory,
            "dropped_leftover": os.path.lexists(cluster.directory),
            "client_version": cluster.version,
            "disk_check": "passed",
        }
        if self._check_mode:
            cluster.look()
            return {**result, "executed_queries": []}
        with ending_in_order(), self._withdrawing(), cluster.running(), contextlib.closing(cluster.open()) as copy:
            compared = compare_with(copy, self._backup.manifest)
            self._require_equal(compared)
            return self._finish(result, compared, started, cluster.restore_ms, copy)

    @contextlib.contextmanager
    def _withdrawing(self) -> Iterator[None]:
        """Take an earlier proof away when the block finds that the backup is none."""
        try:
            yield
        except UnifiedUserError as error:
            if error.details.get("proven") is False:
                self._backup.withdraw_proof()
            raise

    def _run(self, admin: Database, started: float) -> dict[str, Any]:
        manifest = self._backup.manifest
        server_major = admin.connection.server_version // 10000
        if server_major < manifest["server"]["major"]:
            raise UnifiedUserError(
                f"restore {self._backup.source} on PostgreSQL {server_major}",
                f"it was taken from PostgreSQL {manifest['server']['version']}, and an older server cannot read what a newer one dumps",
                f"Restore on a server of PostgreSQL {manifest['server']['major']} or later",
            )
        # An archive is read by the major that wrote it and by later ones.
        client_major = int(re.match(r"\d+", manifest["client_version"]).group())
        program = find_program("pg_restore", server_major, client_major, self._parameters["bin_dir"], "bin_dir")
        _scratch.require_createdb(admin)
        _scratch.hold_name(admin, self.target)
        leftover = self._look_at_target(admin)
        result = {
            "changed": True,
            "planned": self._check_mode,
            "target": self.target,
            "dropped_leftover": leftover is not None,
            "client_version": program.version,
            "disk_check": "not needed",
        }
        if leftover and self._is_same_copy(leftover):
            compared = self._compare()
            if not _differences(compared):
                return self._finish(result, compared, started, 0, admin, changed=False, dropped_leftover=False)
        if leftover is not None and not self._check_mode:
            _scratch.drop(admin, self.target)
        result["disk_check"] = self._check_disk(admin)
        if self._check_mode:
            return {**result, "executed_queries": admin.executed_queries}
        kept = False
        try:
            with ending_in_order():
                _scratch.create(admin, self.target, manifest["properties"], self._tablespace(admin), **self._mark("restoring"))
                restore_ms = self._fill(admin, program)
                compared = self._compare()
                self._require_equal(compared)
                if self._state == "restored":
                    self._analyze()
                    _scratch.write_mark(admin, self.target, **self._mark("complete"))
                    kept = True
        finally:
            if not kept:
                self._clean_up(admin)
        return self._finish(result, compared, started, restore_ms, admin)

    def _mark(self, progress: str) -> dict[str, Any]:
        return {
            "purpose": self._purpose,
            "progress": progress,
            "database": self._backup.manifest["database"],
            "sha256": self._backup.manifest["sha256"],
        }

    def _look_at_target(self, admin: Database) -> dict[str, Any] | None:
        """Return the mark of a leftover of ours (empty if it has none yet), None if the name is free.

        Raises:
            UnifiedUserError: the name belongs to somebody else's database.
        """
        found = _scratch.look_up(admin, self.target)
        if not found.exists:
            return None
        ours = found.mark.get("purpose") == self._purpose and found.mark.get("database") == self._backup.manifest["database"]
        if not ours and not found.unborn:
            raise UnifiedUserError(
                f"restore into database {self.target}",
                "a database of that name exists and this step did not make it",
                "Set target to another name (restore_test_database, rehearsal_database, rollback_database), or drop that database if nobody needs it",
            )
        return found.mark

    def _is_same_copy(self, mark: dict[str, Any]) -> bool:
        return mark == {"made_by": mark.get("made_by"), **self._mark("complete")}

    def _tablespace(self, admin: Database) -> str | None:
        return admin.value(
            "SELECT t.spcname FROM pg_database AS d JOIN pg_tablespace AS t ON t.oid = d.dattablespace"
            " WHERE d.datname = %s AND t.spcname <> 'pg_default'",
            (self._backup.manifest["database"],),
        )

    def _check_disk(self, admin: Database) -> str:
        """Compare the server's free disk with the size that the database had; say so where that cannot be seen from here."""
        directory = admin.value("SELECT setting FROM pg_settings WHERE name = 'data_directory'")
        on_this_host = re.match(r"/|localhost$|127\.|::1$", admin.connection.info.host)
        if not directory or not on_this_host or not os.access(directory, os.F_OK):
            return "not possible: the server's data directory cannot be seen from here"
        needed, available = self._backup.manifest["properties"]["size_bytes"], free_bytes(directory)
        if available < needed:
            raise UnifiedUserError(
                f"restore into database {self.target}",
                f"{needed} bytes of free disk are needed at {directory}, {available} are available",
                "Free space on the database server, then run the same command again",
                needed_bytes=needed,
                available_bytes=available,
            )
        return "passed"

    def _fill(self, admin: Database, program: Program) -> int:
        """Run pg_restore and return how long it took, in milliseconds."""
        started = time.monotonic()
        environment, rest = child_environment(self._parameters, admin)
        arguments = [
            database_argument(self.target),
            "--exit-on-error",
            "--no-subscriptions",
            "--no-password",
        ]
        if self._parameters.get("session_role"):
            arguments.append(f"--role={self._parameters['session_role']}")
        with tempfile.TemporaryDirectory(prefix="unified_user-") as folder:
            environment.update(write_service_file(os.path.join(folder, "service.conf"), rest))
            with self._reading(program, arguments, environment) as child:
                complaint = child.wait()
        if complaint:
            stored = self._backup.source if self._cluster else self._backup.dump_path
            raise UnifiedUserError(f"restore {stored} into database {self.target}", complaint, _next_step(complaint))
        return int((time.monotonic() - started) * 1000)

    def _reading(self, program: Program, arguments: list[str], environment: dict[str, str]) -> contextlib.AbstractContextManager[Child | Pipe]:
        """Run pg_restore on the files, or on what is being decrypted from them or dumped from a scratch server: a stream has one reader."""
        if self._cluster:
            return self._out_of_cluster(self._cluster, program, arguments, environment)
        if self._decryption:
            return self._decryption.feeding(program, arguments, environment)
        return running(program, [*arguments, f"--jobs={self._parameters['jobs']}", self._backup.dump_path], environment)

    @staticmethod
    @contextlib.contextmanager
    def _out_of_cluster(cluster: ScratchCluster, program: Program, arguments: list[str], environment: dict[str, str]) -> Iterator[Pipe]:
        """A physical backup is of a whole server: it is restored beside the live one, and the database taken out of it."""
        with cluster.running(), cluster.dumping_into(program, arguments, environment) as pipe:
            yield pipe

    def _compare(self) -> dict[str, list[Any]]:
        copy = connect(self._parameters, self.target)
        try:
            return compare_with(copy, self._backup.manifest)
        finally:
            copy.close()

    def _require_equal(self, compared: dict[str, list[Any]]) -> None:
        differences = _differences(compared)
        if not differences:
            return
        self._backup.withdraw_proof()
        more = len(differences) - _SHOWN
        raise UnifiedUserError(
            f"prove backup {self._backup.source}",
            "the restored copy is not what the manifest says: "
            + "; ".join(differences[:_SHOWN])
            + (f"; and {more} more" if more > 0 else ""),
            "Do not rely on this backup: take a new one and test that",
            proven=False,
            tables=compared["tables"],
            catalogue=compared["catalogue"],
        )

    def _analyze(self) -> None:
        """Give the planner its statistics before the copy meets the application."""
        copy = connect(self._parameters, self.target)
        try:
            copy.execute("ANALYZE")
        finally:
            copy.close()

    def _clean_up(self, admin: Database) -> None:
        # After a lost connection the next run finds the mark and drops the copy; the first error must stay the one shown.
        with contextlib.suppress(UnifiedUserError, psycopg2.Error):
            cleaner = connect(self._parameters, self._parameters["maintenance_db"]) if admin.connection.closed else admin
            found = _scratch.look_up(cleaner, self.target)
            if found.unborn or found.mark.get("purpose") == self._purpose:
                _scratch.drop(cleaner, self.target)

    def _finish(
        self,
        result: dict[str, Any],
        compared: dict[str, list[Any]],
        started: float,
        restore_ms: int,
        admin: Database,
        **changes: Any,
    ) -> dict[str, Any]:
        duration_ms = int((time.monotonic() - started) * 1000)
        facts = {
            "proven_at": utc(time.time()),
            "duration_ms": duration_ms,
            "restore_ms": restore_ms,
            "restored_from": self._backup.source,
            "restored_into": self.target,
            "server": {
                "version": admin.value("SHOW server_version"),
                "host": admin.connection.info.host,
                "port": admin.connection.info.port,
            },
            "client_version": result["client_version"],
            "collection_version": COLLECTION_VERSION,
            "not_compared": compared["not_compared"],
            "tables": len(compared["tables"]),
            "rows": sum(table["actual"] for table in compared["tables"]),
            "catalogue_objects": sum(len(objects) for objects in self._backup.manifest["catalogue"].values()),
        }
        proof = self._backup.write_proof(facts) if self._state == "tested" and not self._check_mode else None
        return {
            **result,
            **changes,
            "proven": True,
            "proof": proof,
            "tables": compared["tables"],
            "rows": facts["rows"],
            "catalogue": compared["catalogue"],
            "not_compared": compared["not_compared"],
            "catalogue_objects": facts["catalogue_objects"],
            "restore_ms": restore_ms,
            "duration_ms": duration_ms,
            "executed_queries": admin.executed_queries,
        }


def _next_step(complaint: str) -> str:
    for sign, advice in _ADVICE:
        if sign.lower() in complaint.lower():
            return advice
    return "Put the cause right, or use another backup, then run the same command again"
