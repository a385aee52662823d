# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Preflight's questions to the server: what it is, how it is set up, and who else depends on it."""

from __future__ import annotations

from typing import Any, Iterable, Iterator

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, connect, pooler
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._findings import BLOCKER, INFO, WARNING, Finding
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight_context import Context, Probe, and_more

#: DROP DATABASE … WITH (FORCE), with which the restore test cleans up, came with 13.
OLDEST_MAJOR = 13

#: The majors that the tests run against.
TESTED_MAJORS = (15, 18)

_FACTS = """
SELECT current_setting('server_version') AS version, current_setting('server_version_num')::int AS version_num,
       pg_is_in_recovery() AS in_recovery, d.datname::text AS database, pg_encoding_to_char(d.encoding)::text AS encoding,
       d.datcollate::text AS lc_collate, d.datctype::text AS lc_ctype, session_user::text AS login, r.rolname::text AS role,
       r.rolsuper AS superuser, r.rolcreatedb AS createdb, pg_backend_pid() AS backend_pid,
       (inet_server_addr() IS NOT DISTINCT FROM inet_client_addr()) AS same_address
FROM pg_database AS d, pg_roles AS r
WHERE d.datname = current_database() AND r.rolname = current_user
"""


def server_facts(database: Database, parameters: dict[str, Any]) -> dict[str, Any]:
    """Ask the server what it is, outside of any transaction, and find out whether a pooler stands in between.

    Args:
        database: the open session.
        parameters: module parameters, to open a second session where there is a pooler.

    Returns:
        A dict by name; ``pooler`` is None, ``session`` or ``transaction``.

    Raises:
        UnifiedUserError: the pooler refuses a second session.
    """
    facts = database.row(_FACTS)
    facts["major"] = facts["version_num"] // 10000
    facts["pooler"] = pooler(database, lambda: connect(parameters))
    return facts


def judge_version(major: int, version: str) -> list[Finding]:
    """Judge the server's version.

    Args:
        major: e.g. 16.
        version: as the server spells it, for the message.
    """
    oldest, newest = TESTED_MAJORS
    if major < OLDEST_MAJOR:
        return [Finding(
            "server_version", BLOCKER, 1, f"PostgreSQL {version} is older than {OLDEST_MAJOR}, which the migration needs",
            f"Upgrade the server with pg_upgrade to PostgreSQL {OLDEST_MAJOR} or later", [version],
        )]
    if not oldest <= major <= newest:
        return [Finding(
            "server_version", WARNING, 1, f"PostgreSQL {version} is not among the tested majors {oldest} to {newest}",
            "Go the whole path on a copy first: ansible-playbook migrate.yml -i staging", [version],
        )]
    return []


def _version(context: Context) -> Iterable[Finding]:
    return judge_version(context.server["major"], context.server["version"])


def _standby(context: Context) -> Iterable[Finding]:
    if context.server["in_recovery"]:
        yield Finding("standby", BLOCKER, 1, "the server is a standby and takes no writes",
                      "Set unified_user_login_host to the primary, or promote this server: SELECT pg_promote()")


def _pooler(context: Context) -> Iterable[Finding]:
    mode = context.server["pooler"]
    hint = "Set unified_user_login_host and unified_user_login_port to the server itself instead of the pooler"
    if mode == "transaction":
        yield Finding("pooler", BLOCKER, 1,
                      "the connection goes through a pooler in transaction mode, where session locks and settings do not last", hint)
    elif mode == "session":
        yield Finding("pooler", WARNING, 1, "the connection goes through a pooler, which may end it in the middle of a long statement", hint)


def _session_settings(context: Context) -> Iterable[Finding]:
    """Defaults of the role, the database or the server that would change how the run's session works."""
    settings = context.settings
    role = context.quoted(context.server["login"])
    here = f"ALTER ROLE {role} IN DATABASE {context.quoted(context.server['database'])} SET"
    if settings.get("default_transaction_read_only") == "on":
        yield Finding("read_only_default", BLOCKER, 1, "transactions are read-only by default here (default_transaction_read_only)",
                      f"{here} default_transaction_read_only = off", ["default_transaction_read_only = on"])
    if settings.get("session_replication_role", "origin") != "origin":
        yield Finding("replication_role", WARNING, 1, "foreign keys are not checked in this role's sessions (session_replication_role)",
                      f"{here} session_replication_role = origin", [f"session_replication_role = {settings['session_replication_role']}"])
    # Since PostgreSQL 17.
    if settings.get("transaction_timeout", "0") != "0":
        yield Finding("transaction_timeout", WARNING, 1, "the server ends long transactions of this role (transaction_timeout), and the copy is one",
                      f"{here} transaction_timeout = 0", [f"transaction_timeout = {settings['transaction_timeout']} ms"])
    limits = [f"{name} = {settings[name]} ms" for name in ("statement_timeout", "idle_in_transaction_session_timeout")
              if settings.get(name, "0") != "0"]
    yield from context.found("time_limits", INFO, limits, "time limits of this role's sessions; the copy lifts them for its own transactions",
                             "Nothing to set: SHOW statement_timeout tells what holds for the application")


def _synchronous_standby(context: Context) -> Iterable[Finding]:
    settings = context.settings
    if not settings.get("synchronous_standby_names") or settings.get("synchronous_commit") in ("off", "local"):
        return
    names = [f"synchronous_standby_names = {settings['synchronous_standby_names']}"]
    seen = context.database.row(
        "SELECT count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')) AS synchronous, count(*) FILTER (WHERE state IS NULL) AS hidden"
        " FROM pg_stat_replication"
    )
    if not seen["synchronous"]:
        yield Finding(
            "synchronous_standby_missing", WARNING if seen["hidden"] else BLOCKER, 1,
            "commits wait for a synchronous standby, and none is connected" + (" as far as this role may see" if seen["hidden"] else ""),
            "Start the standby, or ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf()", names,
        )


def _capacity(context: Context) -> Iterable[Finding]:
    """Lock table and connections, as far as pg_dump and the run will need them."""
    settings = context.settings
    slots = int(settings["max_connections"]) + int(settings["max_prepared_transactions"])
    locks = int(settings["max_locks_per_transaction"]) * slots
    counts = context.database.row(
        "SELECT (SELECT count(*) FROM pg_class WHERE relkind IN ('r', 'p', 'S', 'v', 'm', 'f') AND relnamespace NOT IN"
        " ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)) AS relations,"
        " (SELECT count(*) FROM pg_stat_activity WHERE coalesce(backend_type, 'client backend') = 'client backend') AS used"
    )
    if counts["relations"] > locks * 0.8:
        yield Finding("lock_table_small", WARNING, counts["relations"],
                      f"pg_dump locks every table of the database, and the server has room for {locks} locks",
                      f"ALTER SYSTEM SET max_locks_per_transaction = {max(64, counts['relations'] * 2 // slots + 1)}, then restart the server")
    reserved = int(settings["superuser_reserved_connections"]) + int(settings.get("reserved_connections") or 0)
    free = int(settings["max_connections"]) - counts["used"] - (0 if context.server["superuser"] else reserved)
    if free < 6:
        yield Finding("connections_scarce", WARNING, max(free, 0), f"only {max(free, 0)} of {settings['max_connections']} connections are left;"
                      " backup, restore test and copy need up to 6 at once",
                      "End idle sessions, set backup_jobs: 1, or raise max_connections and restart the server")


def _encoding(context: Context) -> Iterable[Finding]:
    server = context.server
    if server["encoding"] == "SQL_ASCII":
        yield Finding("encoding", BLOCKER, 1, "the database's encoding is SQL_ASCII: its bytes have no agreed meaning, so ids cannot be derived from UTF-8",
                      "Restore the database into one made with CREATE DATABASE … ENCODING 'UTF8'", ["SQL_ASCII"])
    elif server["encoding"] != "UTF8":
        yield Finding("encoding", INFO, 1, f"the database's encoding is {server['encoding']}; derived ids hash the UTF-8 form of the e-mails",
                      "Nothing to set: SHOW server_encoding", [server["encoding"]])
    # Since PostgreSQL 15 a database remembers the version of the collation library that its indexes were built with.
    if server["major"] >= 15:
        versions = context.database.row(
            "SELECT datcollversion AS recorded, pg_database_collation_actual_version(oid) AS actual FROM pg_database"
            " WHERE datname = current_database()"
        )
        if versions["recorded"] is not None and versions["recorded"] != versions["actual"]:
            name = context.quoted(server["database"])
            yield Finding(
                "collation_version", WARNING, 1,
                f"text indexes were built with version {versions['recorded']} of the collation library, the server now has {versions['actual']};"
                " unique indexes on e-mails may be wrong",
                f"REINDEX DATABASE {name}; ALTER DATABASE {name} REFRESH COLLATION VERSION", [server["lc_collate"]],
            )


def _extensions(context: Context) -> Iterable[Finding]:
    rows = context.database.rows(
        "SELECT e.extname::text AS name, e.extversion AS version, a.name IS NOT NULL AS available,"
        " coalesce(v.superuser AND NOT coalesce((to_jsonb(v) ->> 'trusted')::boolean, false), true) AS superuser"
        " FROM pg_extension AS e LEFT JOIN pg_available_extensions AS a ON a.name = e.extname"
        " LEFT JOIN pg_available_extension_versions AS v ON v.name = e.extname AND v.version = e.extversion"
        " WHERE e.extname <> 'plpgsql' ORDER BY 1"
    )
    gone = [row["name"] for row in rows if not row["available"]]
    yield from context.found("extension_unavailable", BLOCKER, gone,
                             "installed extensions whose files the server no longer has; a restore of the backup would fail",
                             "Install the packages of these extensions on the database server, or DROP EXTENSION")
    if context.options.restore_test and not context.server["superuser"]:
        hard = [row["name"] for row in rows if row["available"] and row["superuser"]]
        yield from context.found(
            "extension_needs_superuser", BLOCKER, hard, "installed extensions that only a superuser may create, so the restore test would fail",
            "Set unified_user_login_user to a superuser for the restore test, or unified_user_session_role to one",
        )
    kept = [f"{row['name']} {row['version']}" for row in rows if row["available"]]
    yield from context.found("extensions", INFO, kept, "installed extensions; a server that the backup is restored on needs them, the migration needs none",
                             "Nothing to set: SELECT * FROM pg_available_extensions on that server")


def _archiver(context: Context) -> Iterable[Finding]:
    failing = context.database.row(
        "SELECT failed_count, last_failed_time::timestamptz(0)::text AS since FROM pg_stat_archiver"
        " WHERE current_setting('archive_mode') <> 'off' AND last_failed_time > coalesce(last_archived_time, '-infinity')"
    )
    if failing:
        yield Finding("archiver_failing", WARNING, failing["failed_count"],
                      f"WAL archiving fails (last at {failing['since']}), so all WAL of the migration stays on disk",
                      "Repair archive_command and look at the server log; SELECT * FROM pg_stat_archiver must show no newer failure")


def _slots(context: Context) -> Iterable[Finding]:
    rows = context.database.rows(
        "SELECT slot_name::text AS name, slot_type, active, coalesce(wal_status, '') = 'lost' AS lost, coalesce(pg_wal_lsn_diff("
        "CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, restart_lsn), 0)::bigint AS retained"
        " FROM pg_replication_slots ORDER BY 1"
    )
    idle = [row for row in rows if not row["active"] and not row["lost"]]
    yield from context.found(
        "slot_inactive", WARNING, [f"{row['name']} ({row['slot_type']}, {size(row['retained'])} of WAL retained)" for row in idle],
        "replication slots that nobody reads: all WAL of the migration stays on disk for them",
        "Start what reads them, or " + and_more([f"SELECT pg_drop_replication_slot('{row['name']}')" for row in idle]),
    )
    lost = [row["name"] for row in rows if row["lost"]]
    yield from context.found("slot_lost", WARNING, lost, "replication slots whose WAL is gone; what reads them must be built anew",
                             and_more([f"SELECT pg_drop_replication_slot('{name}')" for name in lost]))
    logical = [row["name"] for row in rows if row["active"] and row["slot_type"] == "logical"]
    yield from context.found("slot_logical", WARNING, logical, "logical slots that decode the copy as one large transaction",
                             "Watch them during the run: SELECT slot_name, confirmed_flush_lsn FROM pg_replication_slots")


def _replicas(context: Context) -> Iterable[Finding]:
    if context.server["in_recovery"]:
        return
    rows = context.database.rows(
        "SELECT coalesce(nullif(application_name, ''), 'pid ' || pid) AS name, state, sync_state, state IS NULL AS hidden,"
        " coalesce(extract(epoch FROM replay_lag), 0)::float AS seconds,"
        " coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn), 0)::bigint AS bytes FROM pg_stat_replication ORDER BY 1"
    )
    if any(row["hidden"] for row in rows):
        yield Finding("replicas_hidden", WARNING, len(rows), "replicas are connected whose lag this role may not see",
                      f"GRANT pg_read_all_stats TO {context.quoted(context.server['role'])}", [row["name"] for row in rows])
        return
    lagging = [row for row in rows if row["seconds"] > context.options.max_replica_lag_seconds]
    yield from context.found(
        "replica_lag", WARNING, [f"{row['name']} ({row['seconds']:.0f} s, {size(row['bytes'])} behind)" for row in lagging],
        f"replicas that are more than {context.options.max_replica_lag_seconds:g} s behind; the copy will add to it",
        "Wait until SELECT application_name, replay_lag FROM pg_stat_replication is low, or raise preflight_max_replica_lag_seconds",
    )
    near = [f"{row['name']} ({row['state']}, {row['sync_state']})" for row in rows if row not in lagging]
    yield from context.found("replicas", INFO, near, "replicas that follow; reads there lag behind while the copy is replayed",
                             "Watch them during the run: SELECT application_name, replay_lag FROM pg_stat_replication")


def _publications(context: Context) -> Iterable[Finding]:
    rows = context.database.rows(
        "SELECT DISTINCT p.pubname::text AS name FROM pg_publication AS p LEFT JOIN pg_publication_tables AS t ON t.pubname = p.pubname"
        " AND t.schemaname = %(schema)s AND t.tablename = ANY (%(tables)s) WHERE p.puballtables OR t.tablename IS NOT NULL ORDER BY 1",
        {"schema": context.schema.name, "tables": [relation.name for name, relation in context.schema.relations.items()
                                                   if context.is_unified(relation.name)]},
    )
    yield from context.found("publications", WARNING, [row["name"] for row in rows],
                             "publications that cover the unified tables: every subscriber must have these tables before the copy",
                             "Create the tables on the subscribers and run ALTER SUBSCRIPTION … REFRESH PUBLICATION there")


def _event_triggers(context: Context) -> Iterator[Finding]:
    rows = context.database.rows("SELECT evtname::text AS name, evtevent AS event FROM pg_event_trigger WHERE evtenabled IN ('O', 'A') ORDER BY 1")
    yield from context.found("event_triggers", WARNING, [f"{row['name']} ({row['event']})" for row in rows],
                             "event triggers that fire when indexes, foreign keys and the journal are made",
                             and_more([f"ALTER EVENT TRIGGER {context.quoted(row['name'])} DISABLE" for row in rows]))


def size(number: float) -> str:
    """Write a number of bytes as a person reads it."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "bytes" or number >= 10 else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


PROBES = (
    Probe("the server's version", _version),
    Probe("whether the server is a standby", _standby),
    Probe("whether there is a pooler", _pooler),
    Probe("the session's settings", _session_settings),
    Probe("synchronous standbys", _synchronous_standby),
    Probe("connections and the lock table", _capacity, WARNING),
    Probe("encoding and collation", _encoding),
    Probe("installed extensions", _extensions),
    Probe("the WAL archiver", _archiver, WARNING),
    Probe("replication slots", _slots, WARNING),
    Probe("replicas", _replicas, WARNING),
    Probe("publications", _publications, WARNING),
    Probe("event triggers", _event_triggers, WARNING),
)
