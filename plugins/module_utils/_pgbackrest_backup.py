# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Taking a backup with pgBackRest: a backup set, a named restore point after it, and a snapshot of the very state at that point."""

from __future__ import annotations

import dataclasses
import os
import secrets
import shlex
import time
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import (
    MANIFEST,
    MANIFEST_VERSION,
    Workplace,
    explaining,
    planned_name,
    sha256_of_files,
    utc,
    write_json,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_source import read_properties, read_server
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._client_programs import ending_in_order
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import (
    Database,
    connect,
    describe,
    psycopg2,
    sql,
    with_lock_retries,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._contents import (
    fix_text_form,
    list_tables,
    measure_rows,
    read_catalogue,
    read_sequences,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._pgbackrest import FORMAT, PgBackRest, Settings, segments
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._version import COLLECTION_VERSION

#: Longest wait for the tables in one attempt; writers queue behind it that long.
_LOCK_MS = 1000
#: What a server needs at least as much of as the one whose WAL it replays.
_KEPT_SETTINGS = ("max_connections", "max_locks_per_transaction", "max_prepared_transactions", "max_worker_processes", "max_wal_senders")

_MAY = """
SELECT r.name, has_function_privilege(r.name, 'EXECUTE') AS allowed
FROM (VALUES ('pg_create_restore_point(text)'), ('pg_switch_wal()')) AS r (name)
"""

_SERVER = """
SELECT (SELECT setting FROM pg_settings WHERE name = 'data_directory') AS data_directory, pg_is_in_recovery() AS in_recovery,
       (SELECT setting::bigint * CASE unit WHEN '8kB' THEN 8192 ELSE 1 END FROM pg_settings WHERE name = 'wal_segment_size') AS segment_bytes
"""

_UNLOGGED = """
SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence = 'u'
"""


@dataclasses.dataclass(frozen=True)
class _Frozen:
    """The state of a restore point.

    Attributes:
        name: the restore point's.
        segment: the WAL segment that holds it.
        time: when its snapshot was taken, in UTC.
        held_ms: how long writers were held up, in milliseconds.
        sequences: where they stood just before it.
        tables: those that were locked.
    """

    name: str
    segment: str
    time: str
    held_ms: int
    sequences: dict[str, Any]
    tables: list[dict[str, Any]]


def take_pgbackrest_backup(parameters: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """Let pgBackRest take a backup set, set a restore point, and write a manifest to prove both by.

    Args:
        parameters: module parameters of database_backup.
        check_mode: look at everything that would stop it, and only say what would be done.

    Returns:
        What the module returns.

    Raises:
        UnifiedUserError: nothing was left that looks like a backup of ours. A backup set that pgBackRest had finished stays in its repository.
    """
    _refuse_options(parameters)
    started = time.monotonic()
    database = connect(parameters)
    try:
        properties, server, facts = read_properties(database), read_server(database), _look_at_server(database)
        options = parameters[FORMAT]
        pgbackrest = PgBackRest(Settings.choose(options, data_directory=facts["data_directory"]))
        repo = _require_same_server(pgbackrest, server)
        pgbackrest.settings = dataclasses.replace(pgbackrest.settings, repo=repo)
        result = {
            "changed": True,
            "planned": check_mode,
            "database": properties["name"],
            "server_version": server["version"],
            "client_version": pgbackrest.version,
            "format": FORMAT,
            "compression": {"method": "as pgBackRest is configured", "level": None},
            "encrypted": pgbackrest.information().get("cipher", "none") != "none",
        }
        if check_mode:
            path = os.path.join(os.path.abspath(parameters["directory"]), planned_name(properties["name"]))
            return {**result, "path": path, "executed_queries": database.executed_queries}
        with ending_in_order(), explaining(f"write a backup below {parameters['directory']}"):
            workplace = Workplace(parameters["directory"], properties["name"])
            try:
                manifest = _fill(workplace, database, parameters, pgbackrest, properties, server, facts, started)
                path = workplace.publish()
            finally:
                workplace.close()
        return {
            **result,
            "path": path,
            "manifest": os.path.join(path, MANIFEST),
            "tables": [{"name": table["name"], "rows": table["rows"]} for table in manifest["tables"]],
            "rows": sum(table["rows"] for table in manifest["tables"]),
            "warnings": _warnings(manifest),
            "removed_leftovers": workplace.leftovers,
            "executed_queries": database.executed_queries,
            "restore_point": manifest[FORMAT]["restore_point"],
            "writers_held_ms": manifest[FORMAT]["writers_held_ms"],
            "restore_command": manifest[FORMAT]["restore_command"],
            **{name: manifest[name] for name in ("sha256", "size_bytes", "snapshot_time", "globals", "duration_ms")},
        }
    finally:
        database.close()


def _refuse_options(parameters: dict[str, Any]) -> None:
    action = "take a backup with pgBackRest"
    if parameters["encryption_recipients"]:
        raise UnifiedUserError(
            action, "it does not encrypt with age", "Take encryption_recipients away and set repo1-cipher-type in pgBackRest's own configuration"
        )
    if parameters["format"] != "auto":
        raise UnifiedUserError(action, f"it has a format of its own, and format is {parameters['format']}", "Take format away")


def _look_at_server(database: Database) -> dict[str, Any]:
    """Return what is to be known of the server, and refuse one that no restore point can be set on."""
    action = "set a restore point"
    facts = database.row(_SERVER)
    if facts["in_recovery"]:
        raise UnifiedUserError(action, "this server is a standby", "Set login_host to the primary")
    refused = [row["name"] for row in database.rows(_MAY) if not row["allowed"]]
    if refused or not facts["data_directory"]:
        missing = [f"EXECUTE on {name}" for name in refused] + ([] if facts["data_directory"] else ["membership in pg_read_all_settings"])
        raise UnifiedUserError(
            action, f"this role lacks {', '.join(missing)}", "Let a superuser grant that, or set login_user or session_role to a role that has it"
        )
    settings = database.rows("SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", (list(_KEPT_SETTINGS),))
    return {**facts, "settings": {row["name"]: row["setting"] for row in settings}}


def _require_same_server(pgbackrest: PgBackRest, server: dict[str, Any]) -> int:
    """Raise unless the stanza's newest data is of this very server; return the number of the repository."""
    information = pgbackrest.information()
    stanza = pgbackrest.settings.stanza
    repo = pgbackrest.settings.repo or information["repo"][0]["key"]
    systems = [str(entry["system-id"]) for entry in information["db"] if entry["repo-key"] == repo]
    if not systems:
        raise UnifiedUserError(
            f"use repository {repo} of pgBackRest", f"stanza {stanza} has no data in it", "Set repo in pgbackrest (backup_pgbackrest) to another one"
        )
    if server["system_identifier"] and systems[-1] != server["system_identifier"]:
        raise UnifiedUserError(
            f"use stanza {stanza} of pgBackRest",
            f"it is of another server (system identifier {systems[-1]}, this one has {server['system_identifier']})",
            "Set stanza in pgbackrest (backup_pgbackrest) to the one of this server, or run pgbackrest stanza-upgrade if this one replaced it",
        )
    return repo


def _fill(
    workplace: Workplace,
    database: Database,
    parameters: dict[str, Any],
    pgbackrest: PgBackRest,
    properties: dict[str, Any],
    server: dict[str, Any],
    facts: dict[str, Any],
    started: float,
) -> dict[str, Any]:
    """Make the backup set, the restore point and the manifest, and return the manifest."""
    options = parameters[FORMAT]
    chosen = _take_set(pgbackrest, options)
    frozen, contents = _freeze(database, parameters)
    archive = f"archive/{pgbackrest.settings.stanza}/{_archive_id(pgbackrest, chosen)}"
    _wait_for_archive(database, pgbackrest, archive, frozen.segment, options["archive_timeout"])
    labels = [*(chosen["reference"] or []), chosen["label"]]
    names = [f"backup/{pgbackrest.settings.stanza}/{label}/backup.manifest" for label in labels]
    names += _wal_files(pgbackrest, archive, segments(chosen["archive"]["start"], frozen.segment, facts["segment_bytes"]))
    files = pgbackrest.describe_files(names)
    size = chosen["info"]["repository"]["size"] + sum(file["size"] for file in files)
    missing = sorted({*names} - {file["name"] for file in files})
    if missing or size < parameters["minimum_bytes"]:
        raise UnifiedUserError(
            f"accept backup set {chosen['label']} of pgBackRest",
            f"{missing[0]} went missing while it was being read" if missing
            else f"it has {size} bytes, fewer than the {parameters['minimum_bytes']} that a backup of a real database has",
            "See that nothing else works on the repository, then run the same command again" if missing
            else "Check that login_db and the stanza are the right ones; for a small database lower minimum_bytes",
            size_bytes=size,
        )
    timeline = frozen.segment[:8]
    command = pgbackrest.command(
        f"--set={chosen['label']}", "--type=name", f"--target={frozen.name}", f"--target-timeline={int(timeline, 16)}",
        "--target-action=promote", "--delta", "restore", repo=True,
    )
    manifest = {
        "manifest_version": MANIFEST_VERSION,
        "collection_version": COLLECTION_VERSION,
        "database": properties["name"],
        "properties": properties,
        "server": server,
        # Whatever reads the scratch server must be of its major.
        "client_version": server["version"],
        "format": FORMAT,
        "compression": None,
        "encryption": None,
        "snapshot_time": frozen.time,
        "sequences": frozen.sequences,
        **contents,
        "globals": {"included": True, "reason": None},
        FORMAT: {
            **pgbackrest.settings.as_dict(),
            "version": pgbackrest.version,
            "label": chosen["label"],
            "labels": labels,
            "type": chosen["type"],
            "restore_point": frozen.name,
            "timeline": timeline,
            "wal": {"start": chosen["archive"]["start"], "stop": frozen.segment},
            "wal_segment_bytes": facts["segment_bytes"],
            "cluster_bytes": chosen["info"]["size"],
            "data_directory": facts["data_directory"],
            "settings": facts["settings"],
            "writers_held_ms": frozen.held_ms,
            "restore_command": " ".join(map(shlex.quote, command)),
        },
        "files": files,
        "sha256": sha256_of_files(files),
        "size_bytes": size,
        "finished_at": utc(time.time()),
        "duration_ms": int((time.monotonic() - started) * 1000),
    }
    write_json(os.path.join(workplace.path, MANIFEST), manifest)
    return manifest


def _take_set(pgbackrest: PgBackRest, options: dict[str, Any]) -> dict[str, Any]:
    """Let pgBackRest take a backup set, expire none, and return what ``info`` says of the new one."""
    before = {entry["label"] for entry in pgbackrest.information()["backup"]}
    action = f"take a backup of stanza {pgbackrest.settings.stanza} with pgBackRest"
    pgbackrest.do(
        action, f"--type={options['type']}", "--no-expire-auto", "--start-fast", f"--archive-timeout={options['archive_timeout']}", "backup", repo=True
    )
    repo = pgbackrest.settings.repo
    made = [
        entry for entry in pgbackrest.information()["backup"]
        if entry["label"] not in before and entry["database"]["repo-key"] == repo and not entry.get("error")
    ]
    if not made:
        raise UnifiedUserError(action, "it said that it had, and info shows no new set without page errors", "Look at pgbackrest info and its log")
    return max(made, key=lambda entry: entry["label"])


def _archive_id(pgbackrest: PgBackRest, chosen: dict[str, Any]) -> str:
    """Return what pgBackRest calls the part of its archive that a backup set's WAL is in, e.g. ``16-1``."""
    return next(entry["id"] for entry in pgbackrest.information()["archive"] if entry["database"] == chosen["database"])


def _freeze(database: Database, parameters: dict[str, Any]) -> tuple[_Frozen, dict[str, Any]]:
    """Set the restore point while nobody writes, and measure what is there at it while everybody writes again.

    One session keeps writers out, exports its snapshot and sets the restore point: whoever had written a commit by then was visible, for
    only a finished transaction gives its locks back. A second session takes that snapshot over and measures it after the first has let go.
    """
    action = f"set a restore point beside database {parameters['login_db']}"
    holder = connect(parameters)
    try:
        tables = list_tables(database)

        def attempt() -> tuple[_Frozen, dict[str, Any]]:
            with database.transaction("ISOLATION LEVEL REPEATABLE READ, READ ONLY"):
                _prepare(database, tables, "ACCESS SHARE")
                # A name of its own each time: recovery stops at the first point of a name.
                frozen = _set_point(holder, database, tables, f"unified_user_{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}_{secrets.token_hex(3)}")
                return frozen, _measure(database, frozen)

        return with_lock_retries(
            attempt, action, database,
            lambda: database.lock_holders([table["name"] for table in tables]), parameters["lock_wait_timeout"],
        )
    except psycopg2.Error as error:
        raise UnifiedUserError(action, describe(error), "Put the cause right and run the same command again") from error
    finally:
        holder.close()


def _prepare(session: Database, tables: list[dict[str, Any]], mode: str) -> None:
    """Lock tables in a transaction that has just begun, by statements that take no snapshot."""
    for name in ("statement_timeout", "idle_in_transaction_session_timeout"):
        session.execute(f"SET LOCAL {name} = 0")
    session.execute(f"SET LOCAL lock_timeout = {_LOCK_MS}")
    if tables:
        names = sql.SQL(", ").join(sql.Identifier(table["schema"], table["table"]) for table in tables)
        session.execute(sql.SQL("LOCK TABLE ONLY {} IN {} MODE").format(names, sql.SQL(mode)))


def _set_point(holder: Database, measurer: Database, tables: list[dict[str, Any]], point: str) -> _Frozen:
    with holder.transaction("ISOLATION LEVEL REPEATABLE READ, READ ONLY"):
        begun = time.monotonic()
        _prepare(holder, tables, "SHARE")
        snapshot = holder.row(
            "SELECT pg_export_snapshot() AS id, to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') AS time"
        )
        measurer.execute("SET TRANSACTION SNAPSHOT %s", (snapshot["id"],))
        # Sequences know no snapshot: they may stand further on at the restore point, never behind.
        sequences = read_sequences(holder)
        segment = holder.value("SELECT pg_walfile_name(pg_create_restore_point(%s))", (point,))
    return _Frozen(point, segment, snapshot["time"], int((time.monotonic() - begun) * 1000), sequences, tables)


def _measure(database: Database, frozen: _Frozen) -> dict[str, Any]:
    """Measure the snapshot of the restore point."""
    fix_text_form(database)
    found = list_tables(database)
    added = {table["name"] for table in found} - {table["name"] for table in frozen.tables}
    if added:
        raise UnifiedUserError(
            f"set restore point {frozen.name}", f"{', '.join(sorted(added))} was made while the tables were being locked",
            "Run the same command again",
        )
    # Not in any physical backup: after a restore they are there and empty.
    unlogged = {row["name"] for row in database.rows(_UNLOGGED)} & {table["name"] for table in found}
    measured = measure_rows(database, [table for table in found if table["name"] not in unlogged])
    empty = [{"name": name, "rows": 0, "sum": "0"} for name in sorted(unlogged)]
    return {"tables": measured + empty, "catalogue": read_catalogue(database), "unlogged": sorted(unlogged)}


def _wait_for_archive(database: Database, pgbackrest: PgBackRest, archive: str, segment: str, seconds: int) -> None:
    """End the segment that holds the restore point, and wait until it is in the archive.

    Raises:
        UnifiedUserError: it does not get there; says what the server's archiver says.
    """
    database.execute("SELECT pg_switch_wal()")
    deadline = time.monotonic() + seconds
    while segment not in pgbackrest.archived(f"{archive}/{segment[:16]}"):
        if time.monotonic() > deadline:
            state = database.row("SELECT failed_count, last_failed_wal FROM pg_stat_archiver")
            raise UnifiedUserError(
                f"find WAL segment {segment} in the archive of pgBackRest",
                f"it did not get there within {seconds} s (the server's archiver has failed {state['failed_count']} times, last on {state['last_failed_wal']})",
                "Look into the server's log why archive_command fails, put that right, then run the same command again",
            )
        time.sleep(0.1)


def _wal_files(pgbackrest: PgBackRest, archive: str, wanted: list[str]) -> list[str]:
    """Return where the WAL segments lie in the repository.

    Raises:
        UnifiedUserError: some are not there.
    """
    stored: dict[str, str] = {}
    for folder in sorted({segment[:16] for segment in wanted}):
        stored.update(pgbackrest.archived(f"{archive}/{folder}"))
    missing = [segment for segment in wanted if segment not in stored]
    if missing:
        raise UnifiedUserError(
            "find the WAL between the backup and its restore point", f"{', '.join(missing[:3])} {'are' if missing[1:] else 'is'} not in the archive",
            "Look into the server's log and the repository why, then take a new backup",
        )
    return [stored[segment] for segment in wanted]


def _warnings(manifest: dict[str, Any]) -> list[str]:
    if not manifest["unlogged"]:
        return []
    return [f"Unlogged tables are empty after a restore, whatever they hold now: {', '.join(manifest['unlogged'])}."]
