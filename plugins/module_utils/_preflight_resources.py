# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Preflight's estimates: rows, disk and time that the migration will need, against what there is; and the client programs."""

from __future__ import annotations

import os
import time
from typing import Any, Iterable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._client_programs import find_program
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._findings import BLOCKER, INFO, WARNING, Finding
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import LEGACY
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight_context import Context, Probe
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight_server import size
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import comma

# What the copy adds, as multiples of the legacy tables with their indexes. Measured with the benchmark data, PostgreSQL 15
# and 18: tables, indexes and journal 1.37 and sorts on disk 0.76 at 300 k bookings; WAL 1.43 there and 1.9 at 3 M bookings
# (3.4 GB for 1.8 GB), where checkpoints write more whole pages.
UNIFIED_FACTOR = 1.4
TEMPORARY_FACTOR = 0.8
WAL_FACTOR = 1.9

# What a restored copy adds, as multiples of the whole database: its size, and the WAL of filling it.
SCRATCH_FACTOR = 1.0
SCRATCH_WAL_FACTOR = 1.1

# The unit of work that is timed: one derived id, sorted. Copying a legacy row, indexes and foreign keys included, took 5.0 to
# 10.5 of them and verifying it in the same transaction, which one session does, about half of that again (benchmark data of
# 300 k bookings, PostgreSQL 15 and 18, 2 cores, busy and not), plus about a second whatever the size.
UNITS_PER_ROW = 16
FIXED_SECONDS = 1.0

_UNIT = """
SELECT count(*) FROM (SELECT encode(sha256(convert_to('guest:' || g, 'UTF8')), 'hex') AS id
                      FROM generate_series(1, %s) AS g ORDER BY id) AS s
"""

#: How many units are timed: about 0.1 s of work on a server of today, once to warm up with a tenth of it.
_UNITS = 100_000

_SIZES = """
SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint AS legacy, pg_database_size(current_database()) AS database,
       (SELECT pg_tablespace_location(d.dattablespace) FROM pg_database AS d WHERE d.datname = current_database()) AS tablespace,
       (SELECT pg_tablespace_location(t.oid) FROM pg_tablespace AS t
        WHERE t.spcname = btrim(split_part(current_setting('temp_tablespaces'), ',', 1), ' "')) AS temporary
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(tables)s)
"""


def _rows(context: Context) -> Iterable[Finding]:
    """Count what will be copied. Nothing to object to: the numbers go into the estimates."""
    tables = [name for name, table in _mapping.TABLES.items() if table.side == LEGACY and context.schema[name].exists]
    if tables:
        context.estimates["tables"] = context.database.row(context.schema.compose("SELECT {counts}", counts=comma(
            context.schema.compose("(SELECT count(*) FROM {counted}) AS {name}", counted=table, name=sql.Identifier(table)) for table in tables
        )))
        context.estimates["rows"] = sum(context.estimates["tables"].values())
    return []


def _duration(context: Context) -> Iterable[Finding]:
    if "rows" not in context.estimates:
        return
    context.database.value(_UNIT, (_UNITS // 10,))
    started = time.monotonic()
    context.database.value(_UNIT, (_UNITS,))
    unit = (time.monotonic() - started) / _UNITS
    rows = context.estimates["rows"]
    seconds = round(FIXED_SECONDS + rows * UNITS_PER_ROW * unit, 1)
    context.estimates["seconds"] = seconds
    too_long = seconds > context.options.max_duration_seconds
    yield Finding(
        "expected_duration", WARNING if too_long else INFO, rows,
        f"copying {rows} rows will take about {seconds:g} s, in which writes to the legacy tables wait ({unit * 1e6:.2g} µs measured for a unit of work"
        f" here, {UNITS_PER_ROW} units a row; slow storage takes longer)",
        f"Choose a quiet time for the copy; a warning comes above preflight_max_duration_seconds ({context.options.max_duration_seconds:g})",
    )


def _estimate_bytes(context: Context) -> dict[str, Any]:
    sizes = context.database.row(_SIZES, context.scope(LEGACY))
    # One after the other, each gone before the next: the scratch copy of the restore test, the copy of the rehearsal, which is filled
    # on both sides, and the migration. The largest is what is needed.
    copies = [(1 if context.options.restore_test else 0, 0), (1, 1) if context.options.rehearsal else (0, 0), (0, 1)]
    needs = {
        "data": int(max(sizes["database"] * SCRATCH_FACTOR * copy + sizes["legacy"] * UNIFIED_FACTOR * filled for copy, filled in copies)),
        "wal": int(max(sizes["database"] * SCRATCH_WAL_FACTOR * copy + sizes["legacy"] * WAL_FACTOR * filled for copy, filled in copies)),
        "temporary": int(sizes["legacy"] * TEMPORARY_FACTOR),
    }
    context.estimates["bytes"] = sum(needs.values())
    context.estimates["bytes_for"] = {**needs, "legacy_tables": sizes["legacy"], "database": sizes["database"]}
    root = context.settings.get("data_directory")
    places = {
        "data": sizes["tablespace"] or root,
        "wal": os.path.join(root, "pg_wal") if root else None,
        "temporary": sizes["temporary"] or sizes["tablespace"] or root,
    }
    return {purpose: (need, places[purpose]) for purpose, need in needs.items()}


def _disk(context: Context) -> Iterable[Finding]:
    needs = _estimate_bytes(context)
    options = context.options
    needed = options.required_bytes if options.required_bytes is not None else context.estimates["bytes"]
    hint = "Free disk space on the database server, or set preflight_required_bytes if you know that less is needed"
    if options.available_bytes is not None:
        yield _judge_disk("the database server, as preflight_available_bytes says", needed, options.available_bytes, hint)
        return
    root = context.settings.get("data_directory")
    systems, why = {}, "this role may not see where the server keeps its data"
    if root:
        why = "the server runs on another host"
        if _is_this_host(context):
            try:
                systems = _by_file_system(needs, root)
            except OSError as error:
                why = f"the user who runs this may not look at {root} ({error.strerror})"
    if not systems:
        yield Finding(
            "disk_space_unknown", WARNING, 1,
            f"{size(needed)} of free disk are needed on the database server, and {why}",
            "Set preflight_available_bytes to what the database server has free (df -B1 --output=avail <data directory>)"
            + ("" if root else f", or GRANT pg_read_all_settings TO {context.quoted(context.server['role'])}"),
        )
        return
    for path, (need, free) in systems.items():
        yield _judge_disk(path, need if options.required_bytes is None else options.required_bytes, free, hint)


def _judge_disk(where: str, needed: int, free: int, hint: str) -> Finding:
    detail = f"{size(needed)} are needed for data, WAL and sorts at {where}, {size(free)} are free"
    if free < needed:
        return Finding("disk_space", BLOCKER, 1, detail, hint, [where])
    return Finding("disk_space", INFO, 1, detail, "Nothing to set: preflight_required_bytes asks for another amount", [where])


def _is_this_host(context: Context) -> bool:
    """Whether the server's own process is one of this host's. Equal addresses alone would be fooled by a tunnel."""
    try:
        with open(f"/proc/{context.server['backend_pid']}/cmdline", "rb") as file:
            return context.server["same_address"] and b"postgres" in file.read()
    except OSError:
        return False


def _by_file_system(needs: dict[str, tuple[int, str]], root: str) -> dict[str, tuple[int, int]]:
    """Add up what is needed on each file system.

    Args:
        needs: purpose -> bytes and the directory they go to.
        root: the server's data directory, which stands in for directories in it that this user may not enter.

    Returns:
        A directory on each file system -> bytes needed and bytes free there.

    Raises:
        OSError: the data directory cannot be looked at either.
    """
    systems: dict[int, tuple[str, int, int]] = {}
    for need, directory in needs.values():
        path = directory
        try:
            os.stat(path)
        except OSError:
            path = root
        status = os.statvfs(path)
        first, sum_before, _free = systems.get(os.stat(path).st_dev, (path, 0, 0))
        systems[os.stat(path).st_dev] = (first, sum_before + need, status.f_bavail * status.f_frsize)
    return {path: (need, free) for path, need, free in systems.values()}


def _programs(context: Context) -> Iterable[Finding]:
    major = context.server["major"]
    versions = []
    for name, severity in (("pg_dump", BLOCKER), ("pg_restore", BLOCKER), ("psql", INFO)):
        try:
            program = find_program(name, major, major, context.options.bin_dir, "backup_bin_dir")
            versions.append(f"{name} {program.version}")
        except UnifiedUserError as error:
            yield Finding("client_program", severity, 1, f"{name} is not usable: {error.cause}", error.next_step, [name])
    yield from context.found("client_programs", INFO, versions, "client programs that fit the server",
                             "Nothing to set: backup_bin_dir chooses others")


PROBES = (
    Probe("the number of rows", _rows),
    Probe("the expected duration", _duration, WARNING),
    Probe("disk space", _disk),
    Probe("client programs", _programs),
)
