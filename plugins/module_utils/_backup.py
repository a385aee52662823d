# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Taking a backup: a dump, row counts, content sums and the catalogue, all of one snapshot, under live writes."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_compression import (
    Compression,
    check_level,
    choose_compression,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_encryption import (
    Encryption,
    choose_encryption,
    writing,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import (
    MANIFEST,
    MANIFEST_VERSION,
    Workplace,
    explaining,
    free_bytes,
    list_files,
    planned_name,
    sha256_of_files,
    stored_names,
    utc,
    write_json,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_globals import dump_globals, find_globals_program
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_source import read_properties, read_server
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._client_programs import (
    Child,
    Pipe,
    Program,
    child_environment,
    ending_in_order,
    find_program,
    write_service_file,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import (
    Database,
    connect,
    describe,
    psycopg2,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._contents import (
    fix_text_form,
    list_tables,
    lock_tables,
    measure_rows,
    read_catalogue,
    read_sequences,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._pgbackrest import FORMAT
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._pgbackrest_backup import take_pgbackrest_backup
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._version import COLLECTION_VERSION

_ADVICE = (
    ("permission denied", "Connect as a role that may read every table, e.g. a member of pg_read_all_data, or set session_role"),
    ("row-level security", "Connect as the owner of the tables or as a role with BYPASSRLS"),
    ("No space left", "Free disk space or set another directory, then run the same command again"),
    ("statement timeout", "Let the session that holds the lock finish, or raise lock_wait_timeout, then run the same command again"),
    ("lock timeout", "Let the session that holds the lock finish, or raise lock_wait_timeout, then run the same command again"),
    ("could not obtain lock", "Let the session that holds the lock finish, then run the same command again"),
    ("server version mismatch", "Install the client package of the server's major or set bin_dir"),
)


@dataclasses.dataclass(frozen=True)
class _Means:
    """What a dump is made with: ``pg_dump``, its compression, and encryption or None."""

    program: Program
    compression: Compression
    encryption: Encryption | None


@dataclasses.dataclass(frozen=True)
class BackupOptions:
    """What decides how a backup is taken.

    Attributes:
        directory: where backups are kept.
        format: ``directory`` or ``custom``; ``plain`` is refused, and so is ``directory`` with recipients.
        jobs: parallel workers of the directory format.
        compression: ``gzip``, ``lz4``, ``zstd``, or ``auto`` for the best that pg_dump can.
        compression_level: as the method counts; 1 is the fastest of each, 0 is none (gzip and auto only).
        minimum_bytes: a smaller dump is a failure.
        required_bytes: free disk to ask for; None for the size of the database.
        lock_wait_timeout: how long to wait for a table that is locked exclusively, in seconds.
        bin_dir: the directory of pg_dump; None to search for one that fits the server.
        encryption_recipients: public keys of age to encrypt for; none for no encryption.
    """

    directory: str
    format: str
    jobs: int
    compression: str
    compression_level: int
    minimum_bytes: int
    required_bytes: int | None
    lock_wait_timeout: float
    bin_dir: str | None
    encryption_recipients: list[str]

    def __post_init__(self) -> None:
        if self.format == "plain":
            raise UnifiedUserError(
                "take a backup in plain format",
                "pg_restore cannot read a plain SQL dump, so nobody could prove it or go back with it",
                "Set format to directory or custom; pg_restore --file turns either into SQL whenever it is wanted",
            )
        if self.format == "directory" and self.encryption_recipients:
            raise UnifiedUserError(
                "encrypt a backup in directory format",
                "pg_dump can only write its many files to disk, and plaintext must never be there",
                "Set format to auto or custom, which is dumped by one worker",
            )
        if self.jobs < 1:
            raise UnifiedUserError("take a backup", f"jobs is {self.jobs}", "Set it to at least 1")
        check_level(self.compression, self.compression_level)

    @classmethod
    def from_parameters(cls, parameters: dict[str, Any]) -> BackupOptions:
        """Take the options out of module parameters; format ``auto`` is directory, and custom for what is to be encrypted."""
        values = {name: parameters[name] for name in cls.__dataclass_fields__}
        if values["format"] == "auto":
            values["format"] = "custom" if values["encryption_recipients"] else "directory"
        return cls(**values)


def take_backup(parameters: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Dump a database into a new directory below the one for backups, with a manifest to prove it by; or let pgBackRest take it.

    Args:
        parameters: module parameters: connection options, ``engine``, ``pgbackrest``, and those of `BackupOptions`.
        check_mode: look at everything that would stop it, and only say what would be done.

    Returns:
        What the module returns.

    Raises:
        UnifiedUserError: nothing was left that looks like a backup.
    """
    if parameters["engine"] == FORMAT:
        return take_pgbackrest_backup(parameters, check_mode)
    options = BackupOptions.from_parameters(parameters)
    started = time.monotonic()
    database = connect(parameters)
    try:
        properties, server = read_properties(database), read_server(database)
        program = find_program("pg_dump", server["major"], server["major"], options.bin_dir, "bin_dir")
        find_globals_program(program)
        compression = choose_compression(program, options.compression, options.compression_level)
        encryption = choose_encryption(options.encryption_recipients)
        _check_disk(options, properties)
        result = {
            "changed": True,
            "planned": check_mode,
            "database": properties["name"],
            "server_version": server["version"],
            "client_version": program.version,
            "format": options.format,
            "compression": dataclasses.asdict(compression),
            "encrypted": encryption is not None,
        }
        if check_mode:
            path = os.path.join(os.path.abspath(options.directory), planned_name(properties["name"]))
            return {**result, "path": path, "executed_queries": database.executed_queries}
        with ending_in_order(), explaining(f"write a backup below {options.directory}"):
            workplace = Workplace(options.directory, properties["name"])
            try:
                means = _Means(program, compression, encryption)
                manifest = _fill(workplace, database, parameters, options, means, properties, server, started)
                path = workplace.publish()
            finally:
                workplace.close()
        return {
            **result,
            "path": path,
            "manifest": os.path.join(path, MANIFEST),
            "sha256": manifest["sha256"],
            "size_bytes": manifest["size_bytes"],
            "snapshot_time": manifest["snapshot_time"],
            "tables": [{"name": table["name"], "rows": table["rows"]} for table in manifest["tables"]],
            "rows": sum(table["rows"] for table in manifest["tables"]),
            "globals": manifest["globals"],
            "warnings": _warnings(manifest["globals"]),
            "removed_leftovers": workplace.leftovers,
            "duration_ms": manifest["duration_ms"],
            "executed_queries": database.executed_queries,
        }
    finally:
        database.close()


def _warnings(found: dict[str, Any]) -> list[str]:
    if found["included"]:
        return []
    return [
        f"The backup holds no roles: {found['reason']}. This server needs none from it; to restore on another one, make the roles there "
        "first, or back up as a role that may read them."
    ]


def _check_disk(options: BackupOptions, properties: dict[str, Any]) -> None:
    needed = properties["size_bytes"] if options.required_bytes is None else options.required_bytes
    with explaining(f"look for free disk at {options.directory}"):
        available = free_bytes(options.directory)
    if available < needed:
        raise UnifiedUserError(
            f"back up database {properties['name']} into {options.directory}",
            f"{needed} bytes of free disk are needed (the database has {properties['size_bytes']}), {available} are available",
            "Free space, set another directory, or set required_bytes if you know that the dump is smaller",
            needed_bytes=needed,
            available_bytes=available,
        )


def _fill(
    workplace: Workplace,
    database: Database,
    parameters: dict[str, Any],
    options: BackupOptions,
    means: _Means,
    properties: dict[str, Any],
    server: dict[str, Any],
    started: float,
) -> dict[str, Any]:
    """Make the dump and the manifest in the workplace and return the manifest."""
    dump, beside = stored_names(options.format, means.encryption is not None)
    contents = _dump(workplace, database, parameters, options, means, properties["name"])
    files = list_files(workplace.path, (dump, beside))
    size = sum(file["size"] for file in files if file["name"] != beside)
    if size < options.minimum_bytes:
        raise UnifiedUserError(
            f"accept the dump of database {properties['name']}",
            f"it has {size} bytes, fewer than the {options.minimum_bytes} that a backup of a real database has",
            "Check that login_db names the right database; for a small one lower minimum_bytes",
            size_bytes=size,
        )
    manifest = {
        "manifest_version": MANIFEST_VERSION,
        "collection_version": COLLECTION_VERSION,
        "database": properties["name"],
        "properties": properties,
        "server": server,
        "client_version": means.program.version,
        "format": options.format,
        "compression": dataclasses.asdict(means.compression),
        "encryption": means.encryption.facts if means.encryption else None,
        **contents,
        "files": files,
        "sha256": sha256_of_files(files),
        "size_bytes": size,
        "finished_at": utc(time.time()),
        "duration_ms": int((time.monotonic() - started) * 1000),
    }
    write_json(os.path.join(workplace.path, MANIFEST), manifest)
    return manifest


def _dump(
    workplace: Workplace,
    database: Database,
    parameters: dict[str, Any],
    options: BackupOptions,
    means: _Means,
    name: str,
) -> dict[str, Any]:
    """Run pg_dump on an exported snapshot and measure the same snapshot beside it; return what was measured."""
    action = f"dump database {name}"
    held = [workplace.descriptor]
    target, beside = (os.path.join(workplace.path, part) for part in stored_names(options.format, means.encryption is not None))
    environment, rest = child_environment(parameters, database)
    service_file = os.path.join(workplace.path, "service.conf")
    environment.update(write_service_file(service_file, rest))
    mask = os.umask(0o077)
    try:
        with database.transaction("ISOLATION LEVEL REPEATABLE READ, READ ONLY"):
            fix_text_form(database)
            snapshot = database.row(
                "SELECT pg_export_snapshot() AS id,"
                " to_char(transaction_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') AS time"
            )
            tables = list_tables(database)
            lock_tables(database, tables, options.lock_wait_timeout)
            contents = {
                "snapshot_time": snapshot["time"],
                "sequences": read_sequences(database),
                "catalogue": read_catalogue(database),
            }
            arguments = _arguments(options, means.compression, parameters, snapshot["id"])
            with writing(means.program, arguments, environment, held, target, means.encryption) as child:
                contents["tables"] = measure_rows(database, tables, lambda: _stop_if_failed(child, action))
                _stop_if_complained(child, action)
        contents["globals"] = dump_globals(
            find_globals_program(means.program), beside, name, parameters.get("session_role"), environment, held, means.encryption
        )
    except psycopg2.Error as error:
        raise UnifiedUserError(action, describe(error), _next_step(str(error))) from error
    finally:
        os.umask(mask)
    if rest:
        os.unlink(service_file)
    return contents


def _arguments(options: BackupOptions, compression: Compression, parameters: dict[str, Any], snapshot: str) -> list[str]:
    arguments = [
        f"--format={options.format}",
        f"--snapshot={snapshot}",
        compression.argument,
        f"--lock-wait-timeout={int(options.lock_wait_timeout * 1000)}",
        "--no-password",
    ]
    if options.format == "directory":
        arguments.append(f"--jobs={options.jobs}")
    if parameters.get("session_role"):
        arguments.append(f"--role={parameters['session_role']}")
    return arguments


def _stop_if_failed(child: Child | Pipe, action: str) -> None:
    if child.failed():
        _stop_if_complained(child, action)


def _stop_if_complained(child: Child | Pipe, action: str) -> None:
    complaint = child.wait()
    if complaint:
        raise UnifiedUserError(action, complaint, _next_step(complaint))


def _next_step(cause: str) -> str:
    for sign, advice in _ADVICE:
        if sign.lower() in cause.lower():
            return advice
    return "Put the cause right and run the same command again"
