# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What can be said and put right about a deployment without applying anything: status, what stands in its way, its proof, and marking."""

from __future__ import annotations

import hashlib
import time
import uuid
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _journal, _mapping
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma import (
    HISTORY_TABLE,
    Diagnosis,
    Migration,
    Options,
    and_more,
    read_definitions,
    read_migrations,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma_deployment import (
    advisory_lock,
    create_history,
    examine,
    lock_holders,
    missing_tables,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._prisma_objects import Remains, find_remains

#: Resolution -> what Prisma's CLI calls it.
RESOLUTIONS = ("applied", "rolled_back")
_SHOWN = 5


def _tell(database: Database, diagnosis: Diagnosis, begun: float) -> dict[str, Any]:
    return {
        "changed": False,
        "applied": [],
        "pending": [migration.name for migration in diagnosis.pending],
        "already_applied": len(diagnosis.applied),
        "failed_migrations": diagnosis.failed,
        "edited_migrations": diagnosis.edited,
        "missing_migrations": diagnosis.missing,
        "needs_baseline": bool(diagnosis.tables),
        "remains": diagnosis.remains,
        "lock_holders": lock_holders(database),
        "up_to_date": diagnosis.up_to_date,
        "duration_ms": round((time.monotonic() - begun) * 1000),
    }


def status(database: Database, options: Options) -> dict[str, Any]:
    """Say how the database stands to the migrations, whatever is wrong, and return what the module returns.

    Raises:
        UnifiedUserError: the migrations cannot be read.
    """
    begun = time.monotonic()
    told = _tell(database, examine(database, options), begun)
    return {**told, "missing_tables": missing_tables(database, options)}


def check(database: Database, options: Options) -> dict[str, Any]:
    """Refuse what no engine could deploy rightly, and tell what is there before it; return what the module returns.

    Returns:
        As `status`, and ``tables``: table -> part -> digest of its definition, for `prove`. Empty once the data is migrated,
        when releases may change what was there.

    Raises:
        UnifiedUserError: the migrations cannot be read, or the database refuses them.
    """
    begun = time.monotonic()
    diagnosis = examine(database, options)
    diagnosis.refuse(options)
    return {**_tell(database, diagnosis, begun), "tables": _digests(database, options)}


def prove(database: Database, options: Options, before: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Require that a deployment has done all it should, and nothing else; return what the module returns.

    Args:
        database: an open session.
        options: as for the deployment.
        before: ``tables`` of `check`.

    Raises:
        UnifiedUserError: something is pending or wrong with the history, a unified table is not there, or a table that was
            there before is another one.
    """
    begun = time.monotonic()
    diagnosis = examine(database, options)
    diagnosis.refuse(options)
    action = f"prove the deployment into schema {options.schema}"
    if diagnosis.pending:
        names = [migration.name for migration in diagnosis.pending]
        raise UnifiedUserError(action, f"migration {names[0]}{and_more(names)} is still pending", "Run the same command again", pending=names)
    missing = missing_tables(database, options)
    if missing:
        raise UnifiedUserError(
            action, f"no migration in {options.path} makes table {missing[0]}{and_more(missing)}",
            "Set path to the release that has the unified model, or unified_user_mapping to what its tables are called",
        )
    after = _digests(database, options) if before else {}
    changed = sorted(
        f"{part} of {table}" if table in after else f"table {table}"
        for table, parts in before.items()
        for part in {*parts, *after.get(table, {})}
        if parts.get(part) != after.get(table, {}).get(part)
    )
    if changed:
        changed = sorted(set(changed))
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise UnifiedUserError(
            action, f"the migrations changed what was there before: {', '.join(changed[:_SHOWN])}{more}",
            "Make sure that the running release can live with that, or take it back; the same command goes on from here."
            " Migrations that do so belong into a release of their own, before or after the migration of the users",
            changed_parts=changed,
        )
    return {**_tell(database, diagnosis, begun), "tables_unchanged": len(before)}


def _digests(database: Database, options: Options) -> dict[str, dict[str, str]]:
    """Table -> part -> digest, of every table but the unified ones and the history."""
    if options.unified_model is None or _journal.describe(database)["finished"]:
        return {}
    apart = [HISTORY_TABLE, *(options.unified_model.table(name) for name in _mapping.UNIFIED_TABLES)]
    digests: dict[str, dict[str, str]] = {}
    with database.transaction("ISOLATION LEVEL REPEATABLE READ, READ ONLY"):
        definitions = read_definitions(database, options.schema, apart, chosen=False)
    for (table, part), definition in sorted(definitions.items()):
        digests.setdefault(table, {})[part] = hashlib.sha256(definition.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return digests


def resolve(database: Database, options: Options, name: str, resolution: str, check_mode: bool) -> dict[str, Any]:
    """Mark a migration as applied or as rolled back, as ``prisma migrate resolve`` does, if the catalogue does not contradict.

    Args:
        database: an open session.
        options: which release and schema.
        name: the migration.
        resolution: of `RESOLUTIONS`.
        check_mode: only say what would be done.

    Returns:
        What the module returns; ``does`` says what is done in sentences.

    Raises:
        UnifiedUserError: there is no such migration or record, what is claimed is not true, or another deployment is under way.
    """
    if check_mode:
        return _resolve(database, options, name, resolution, True)
    with advisory_lock(database, options.advisory_lock_seconds):
        return _resolve(database, options, name, resolution, False)


def _resolve(database: Database, options: Options, name: str, resolution: str, check_mode: bool) -> dict[str, Any]:
    begun = time.monotonic()
    migrations = read_migrations(options.path)
    names = [migration.name for migration in migrations]
    action = f"mark migration {name} as {resolution.replace('_', ' ')}"
    if name not in names:
        raise UnifiedUserError(action, f"{options.path} has no such directory", "Set path to the release that has it, or restore the directory")
    number = names.index(name)
    diagnosis = examine(database, options)
    result = {"changed": False, "does": [], "applied": [], "pending": [], "already_applied": len(diagnosis.applied), "up_to_date": False}
    if _is_so(database, options, diagnosis, name, resolution):
        return {**result, "duration_ms": round((time.monotonic() - begun) * 1000)}
    remains = find_remains(database, options.schema, migrations[number], migrations[number + 1 :])
    if resolution == "applied":
        _require_there(action, remains, name)
    else:
        _require_gone(action, remains, name, diagnosis)
    does = _sentences(migrations[number], resolution, name in diagnosis.failed, diagnosis.has_history)
    if not check_mode:
        with database.transaction():
            _mark(database, options, migrations[number], resolution, diagnosis.has_history)
    return {
        **result, "changed": True, "does": does, "extent": remains.extent, "unjudged": remains.unjudged,
        "duration_ms": round((time.monotonic() - begun) * 1000),
        "diff": {"before": f"{name}: {'failed' if name in diagnosis.failed else 'no record'}\n", "after": f"{name}: {resolution.replace('_', ' ')}\n"},
    }


def _is_so(database: Database, options: Options, diagnosis: Diagnosis, name: str, resolution: str) -> bool:
    """Whether the history says so already."""
    if name in diagnosis.failed:
        return False
    if resolution == "applied":
        return name in diagnosis.applied
    if not diagnosis.has_history or name in diagnosis.applied:
        return False
    rolled_back = sql.SQL("SELECT EXISTS (SELECT FROM {} WHERE migration_name = %s AND rolled_back_at IS NOT NULL)")
    return bool(database.value(rolled_back.format(_history(database, options)), (name,)))


def _require_there(action: str, remains: Remains, name: str) -> None:
    if remains.extent == "unknown":
        raise UnifiedUserError(
            action, f"nothing that it does can be looked up in the catalogue ({', '.join(remains.unjudged[:_SHOWN]) or 'it does nothing'})",
            f"If you know that all of it is there, run 'prisma migrate resolve --applied {name}'",
        )
    if remains.lacking:
        raise UnifiedUserError(
            action, f"that is not true: {remains.describe()}",
            "Complete it by hand, or take back what came and mark it as rolled back", lacking=remains.lacking,
        )


def _require_gone(action: str, remains: Remains, name: str, diagnosis: Diagnosis) -> None:
    if name not in diagnosis.failed:
        state = "it is applied (Prisma's P3012)" if name in diagnosis.applied else "there is no record of it (Prisma's P3011)"
        raise UnifiedUserError(action, state, "Only a migration that failed can be marked so")
    if remains.extent == "unknown":
        raise UnifiedUserError(
            action, f"nothing that it does can be looked up in the catalogue ({', '.join(remains.unjudged[:_SHOWN]) or 'it does nothing'})",
            f"If you know that nothing of it is there, run 'prisma migrate resolve --rolled-back {name}'",
        )
    if remains.judged_back:
        more = f" and {len(remains.judged_back) - _SHOWN} more" if len(remains.judged_back) > _SHOWN else ""
        raise UnifiedUserError(
            action, f"that is not true: {', '.join(remains.judged_back[:_SHOWN])}{more} came of it",
            "Take that back by hand, or complete it and mark it as applied", there=remains.judged_back,
        )


def _sentences(migration: Migration, resolution: str, failed: bool, has_history: bool) -> list[str]:
    does = [] if has_history else [f"creates table {HISTORY_TABLE}"]
    if failed:
        does.append(f"sets rolled_back_at of the failed record of {migration.name}")
    if resolution == "applied":
        does.append(f"records {migration.name} as applied, with the checksum of its migration.sql ({migration.checksum[:12]}…), without running it")
    else:
        does.append("leaves it to the next deployment to apply it again")
    return does


def _history(database: Database, options: Options):
    # A percent sign in the schema's name would be taken for a placeholder.
    return sql.SQL(options.history.as_string(database.connection).replace("%", "%%"))


def _mark(database: Database, options: Options, migration: Migration, resolution: str, has_history: bool) -> None:
    history = _history(database, options)
    if has_history:
        database.execute(
            sql.SQL("UPDATE {} SET rolled_back_at = date_trunc('milliseconds', clock_timestamp())"
                    " WHERE migration_name = %s AND finished_at IS NULL AND rolled_back_at IS NULL").format(history),
            (migration.name,),
        )
    else:
        create_history(database, options)
    if resolution == "applied":
        # As Prisma writes it: an empty log, no steps, one moment.
        database.execute(
            sql.SQL("INSERT INTO {} (id, checksum, migration_name, logs, started_at, finished_at, applied_steps_count)"
                    " SELECT %s, %s, %s, '', m, m, 0 FROM date_trunc('milliseconds', clock_timestamp()) AS m").format(history),
            (str(uuid.uuid4()), migration.checksum, migration.name),
        )
