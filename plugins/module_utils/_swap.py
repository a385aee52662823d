# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Putting a restored copy in the place of the live database: by rename, in one transaction, the replaced one kept."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _scratch
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._client_programs import ending_in_order
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import (
    Database,
    connect,
    describe,
    psycopg2,
    sql,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

#: Settings whose stored value is a list already quoted; as a literal it would become one element (PostgreSQL: GUC_LIST_QUOTE).
_LIST_SETTINGS = (
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "temp_tablespaces",
)

#: Of other roles' sessions an unprivileged role sees no type; autovacuum, which gives way by itself, has no role.
_SESSIONS = """
SELECT a.pid, a.usename AS role, coalesce(nullif(a.application_name, ''), 'unnamed application') AS application, d.datname AS database
FROM pg_stat_activity AS a JOIN pg_database AS d ON d.oid = a.datid
WHERE d.datname = ANY (%s) AND a.pid <> pg_backend_pid() AND a.usesysid IS NOT NULL
      AND coalesce(a.backend_type, 'client backend') IN ('client backend', 'walsender')
ORDER BY a.backend_start
"""

_SETTINGS = """
SELECT r.rolname AS role, split_part(c.entry, '=', 1) AS name, substr(c.entry, strpos(c.entry, '=') + 1) AS value
FROM pg_db_role_setting AS s JOIN pg_database AS d ON d.oid = s.setdatabase LEFT JOIN pg_roles AS r ON r.oid = s.setrole
CROSS JOIN unnest(s.setconfig) WITH ORDINALITY AS c(entry, position)
WHERE d.datname = %s ORDER BY r.rolname NULLS FIRST, c.position
"""

_PRIVILEGES = """
SELECT r.rolname AS role, x.privilege_type AS privilege, x.is_grantable AS grantable
FROM pg_database AS d CROSS JOIN aclexplode(d.datacl) AS x LEFT JOIN pg_roles AS r ON r.oid = x.grantee WHERE d.datname = %s
"""

_ALIKE = """
SELECT a.datdba = b.datdba AND a.datconnlimit = b.datconnlimit
       AND shobj_description(a.oid, 'pg_database') IS NOT DISTINCT FROM shobj_description(b.oid, 'pg_database')
       AND NOT EXISTS (
           (SELECT setrole, setconfig FROM pg_db_role_setting WHERE setdatabase = a.oid
            EXCEPT SELECT setrole, setconfig FROM pg_db_role_setting WHERE setdatabase = b.oid)
           UNION ALL
           (SELECT setrole, setconfig FROM pg_db_role_setting WHERE setdatabase = b.oid
            EXCEPT SELECT setrole, setconfig FROM pg_db_role_setting WHERE setdatabase = a.oid))
       AND NOT EXISTS (
           (SELECT grantee, privilege_type, is_grantable FROM aclexplode(coalesce(a.datacl, acldefault('d', a.datdba)))
            EXCEPT SELECT grantee, privilege_type, is_grantable FROM aclexplode(coalesce(b.datacl, acldefault('d', b.datdba))))
           UNION ALL
           (SELECT grantee, privilege_type, is_grantable FROM aclexplode(coalesce(b.datacl, acldefault('d', b.datdba)))
            EXCEPT SELECT grantee, privilege_type, is_grantable FROM aclexplode(coalesce(a.datacl, acldefault('d', a.datdba)))))
FROM pg_database AS a CROSS JOIN pg_database AS b WHERE a.datname = %s AND b.datname = %s
"""


def _alter(name: str, clause: str, *values: Any) -> Any:
    return sql.SQL("ALTER DATABASE {} " + clause).format(sql.Identifier(name), *values)


def reopen(admin: Database, live: str) -> bool:
    """Let the application in again where a killed swap had closed its database; return whether that was so."""
    reopened = False
    for row in admin.rows(
        "SELECT datname AS name, shobj_description(oid, 'pg_database') AS comment FROM pg_database WHERE NOT datistemplate"
    ):
        mark = _scratch.parse_mark(row["comment"])
        if mark.get("database") != live or mark.get("progress") != "swapping":
            continue
        with admin.transaction():
            if admin.value("SELECT NOT datallowconn FROM pg_database WHERE datname = %s", (live,)):
                admin.execute(_alter(live, "ALLOW_CONNECTIONS true"))
                reopened = True
            mark.pop("made_by")
            _scratch.write_mark(admin, row["name"], **{**mark, "progress": "complete"})
    return reopened


class Swap:
    """One exchange of a live database for its restored copy.

    Args:
        parameters: module parameters: connection options (``login_db`` is the live database), ``replacement``,
            ``terminate_sessions``, ``timeout`` (seconds to wait for sessions to end), ``maintenance_db``.
        check_mode: only look and say what would be done.
    """

    def __init__(self, parameters: dict[str, Any], check_mode: bool) -> None:
        self._parameters = parameters
        self._check_mode = check_mode
        self.live = parameters["login_db"]
        self.copy = parameters.get("replacement") or _scratch.derived_name(self.live, "_restored")
        self.replaced = _scratch.derived_name(self.live, time.strftime("_replaced_%Y%m%d_%H%M%S", time.gmtime()))
        self._action = f"put database {self.copy} in the place of {self.live}"

    def run(self) -> dict[str, Any]:
        """Exchange the databases.

        Raises:
            UnifiedUserError: they cannot be exchanged; the live database is open as before.
        """
        admin = connect(self._parameters, self._parameters["maintenance_db"])
        try:
            _scratch.hold_name(admin, self.copy)
            return self._run(admin)
        finally:
            admin.close()

    def recover(self) -> dict[str, Any]:
        """Put right what a killed swap left: open the live database again. The copy stays for the next try."""
        admin = connect(self._parameters, self._parameters["maintenance_db"])
        try:
            _scratch.hold_name(admin, self.copy)
            exists = admin.value("SELECT EXISTS (SELECT FROM pg_database WHERE datname = %s)", (self.live,))
            if not exists:
                raise UnifiedUserError(
                    f"find database {self.live}",
                    "there is no such database on this server",
                    "Check login_db and login_host; if it was dropped, restore it with the module database_restore, state restored, "
                    f"and rename {self.copy} yourself",
                )
            if self._check_mode:
                closed = admin.value("SELECT NOT datallowconn FROM pg_database WHERE datname = %s", (self.live,))
                return {"changed": closed and _scratch.look_up(admin, self.copy).mark.get("progress") == "swapping"}
            return {"changed": reopen(admin, self.live), "executed_queries": admin.executed_queries}
        finally:
            admin.close()

    def _run(self, admin: Database) -> dict[str, Any]:
        started = time.monotonic()
        mark = self._check(admin)
        sessions = admin.rows(_SESSIONS, ([self.live],))
        result = {
            "changed": True,
            "planned": self._check_mode,
            "database": self.live,
            "replaced": self.replaced,
            "drop_command": f"DROP DATABASE {admin.value('SELECT quote_ident(%s)', (self.replaced,))};",
            "sessions": [f"{session['application']} as {session['role']}" for session in sessions],
            "stays_behind": self._stays_behind(admin),
        }
        if self._check_mode:
            return {**result, "executed_queries": admin.executed_queries}
        if sessions and not self._parameters["terminate_sessions"]:
            raise UnifiedUserError(
                self._action,
                f"{len(sessions)} sessions are open on {self.live}: {'; '.join(sorted(set(result['sessions']))[:5])}",
                "Stop the application, or set terminate_sessions to end them",
                sessions=result["sessions"],
            )
        closing = time.monotonic()
        with ending_in_order():
            self._exchange(admin, mark)
        ended = time.monotonic()
        return {
            **result,
            "closed_ms": int((ended - closing) * 1000),
            "duration_ms": int((ended - started) * 1000),
            "executed_queries": admin.executed_queries,
        }

    def _check(self, admin: Database) -> dict[str, Any]:
        """Look at everything that would stop the exchange and return the copy's mark."""
        row = admin.row(
            "SELECT datallowconn AS open, pg_has_role(datdba, 'USAGE') AS owned,"
            " (SELECT rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = current_user) AS creates"
            " FROM pg_database WHERE datname = %s",
            (self.live,),
        )
        if row is None:
            raise UnifiedUserError(self._action, f"there is no database {self.live}", "Check login_db and login_host")
        if not row["owned"] or not row["creates"]:
            raise UnifiedUserError(
                self._action,
                "renaming a database takes its owner with CREATEDB, or a superuser",
                "Set login_user or session_role to such a role",
            )
        found = _scratch.look_up(admin, self.copy)
        ready = found.mark.get("purpose") == "restored" and found.mark.get("progress") in ("complete", "swapping")
        if (found.exists or not self._check_mode) and not (ready and found.mark.get("database") == self.live):
            raise UnifiedUserError(
                self._action,
                f"{self.copy} is not a restored and compared copy of {self.live}",
                "Run the module database_restore, state restored, first",
            )
        if not row["open"] and found.mark.get("progress") != "swapping":
            raise UnifiedUserError(
                self._action,
                f"{self.live} takes no connections, and no swap of ours closed it",
                f"Find out why, then run ALTER DATABASE ... ALLOW_CONNECTIONS true on {self.live}",
            )
        self._refuse_what_outlives_sessions(admin)
        return found.mark

    def _refuse_what_outlives_sessions(self, admin: Database) -> None:
        prepared = admin.value("SELECT count(*) FROM pg_prepared_xacts WHERE database = %s", (self.live,))
        if prepared:
            raise UnifiedUserError(
                self._action,
                f"{self.live} has {prepared} prepared transactions, which hold on to the database",
                "Finish them with COMMIT PREPARED or ROLLBACK PREPARED (see pg_prepared_xacts), then run the same command again",
            )
        subscriptions = admin.value(
            "SELECT count(*) FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid WHERE d.datname = %s AND s.subenabled",
            (self.live,),
        )
        if subscriptions:
            raise UnifiedUserError(
                self._action,
                f"{self.live} has {subscriptions} enabled subscriptions, whose workers hold on to the database",
                "Run ALTER SUBSCRIPTION ... DISABLE there, then run the same command again",
            )

    def _stays_behind(self, admin: Database) -> list[str]:
        slots = [row["slot_name"] for row in admin.rows("SELECT slot_name FROM pg_replication_slots WHERE database = %s", (self.live,))]
        return [f"logical replication slot {slot}" for slot in slots]

    def _exchange(self, admin: Database, mark: dict[str, Any]) -> None:
        facts = {key: value for key, value in mark.items() if key != "made_by"}
        exchanged = False
        try:
            with admin.transaction():
                _scratch.write_mark(admin, self.copy, **{**facts, "progress": "swapping"})
                admin.execute(_alter(self.live, "ALLOW_CONNECTIONS false"))
            self._end_sessions(admin)
            with admin.transaction():
                admin.execute("SET LOCAL lock_timeout = '10s'")
                self._carry_over(admin)
                admin.execute(_alter(self.live, "RENAME TO {}", sql.Identifier(self.replaced)))
                admin.execute(_alter(self.copy, "RENAME TO {}", sql.Identifier(self.live)))
                admin.execute(_alter(self.replaced, "ALLOW_CONNECTIONS true"))
                _scratch.write_mark(admin, self.replaced, purpose="replaced", database=self.live, sha256=facts.get("sha256"))
            exchanged = True
        except psycopg2.Error as error:
            raise UnifiedUserError(
                self._action, describe(error), "Nothing was renamed. Put the cause right, then run the same command again"
            ) from error
        finally:
            if not exchanged:
                self._undo(admin)

    def _undo(self, admin: Database) -> None:
        # Renames and settings were one transaction, so only the closed door is left to open. The next run does it if this cannot.
        with contextlib.suppress(UnifiedUserError, psycopg2.Error):
            reopen(connect(self._parameters, self._parameters["maintenance_db"]) if admin.connection.closed else admin, self.live)

    def _end_sessions(self, admin: Database) -> None:
        deadline = time.monotonic() + self._parameters["timeout"]
        while True:
            sessions = admin.rows(_SESSIONS, ([self.live, self.copy],))
            if not sessions:
                return
            if time.monotonic() > deadline:
                names = "; ".join(f"pid {session['pid']} ({session['application']} as {session['role']})" for session in sessions[:5])
                raise UnifiedUserError(
                    self._action,
                    f"{len(sessions)} sessions did not end within {self._parameters['timeout']} s: {names}",
                    "Stop what runs there, then run the same command again; the application can connect as before",
                )
            for session in sessions:
                try:
                    admin.execute("SELECT pg_terminate_backend(%s)", (session["pid"],))
                except psycopg2.errors.InsufficientPrivilege as error:
                    raise UnifiedUserError(
                        self._action,
                        f"this role may not end the session of {session['role']} (pid {session['pid']}, {session['application']})",
                        "Grant it pg_signal_backend, connect as a superuser, or stop that application, then run the same command again",
                    ) from error
            time.sleep(0.1)

    def _carry_over(self, admin: Database) -> None:
        """Give the copy the live database's owner, privileges, connection limit, settings and comment, and compare."""
        row = admin.row(
            "SELECT r.rolname AS owner, d.datconnlimit AS limit, d.datacl IS NOT NULL AS granted,"
            " shobj_description(d.oid, 'pg_database') AS comment"
            " FROM pg_database AS d JOIN pg_roles AS r ON r.oid = d.datdba WHERE d.datname = %s",
            (self.live,),
        )
        copy = sql.Identifier(self.copy)
        admin.execute(_alter(self.copy, "OWNER TO {}", sql.Identifier(row["owner"])))
        admin.execute(_alter(self.copy, "CONNECTION LIMIT {}", sql.Literal(row["limit"])))
        _scratch.set_comment(admin, self.copy, row["comment"])
        if row["granted"]:
            owner = sql.Identifier(row["owner"])
            admin.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC, {}").format(copy, owner))
            for grant in admin.rows(_PRIVILEGES, (self.live,)):
                grantee = sql.Identifier(grant["role"]) if grant["role"] else sql.SQL("PUBLIC")
                option = sql.SQL(" WITH GRANT OPTION" if grant["grantable"] else "")
                # The privilege is a keyword that the server itself spelled.
                admin.execute(
                    sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(sql.SQL(grant["privilege"]), copy, grantee, option)
                )
        for setting in admin.rows(_SETTINGS, (self.live,)):
            self._carry_setting(admin, **setting)
        if not admin.value(_ALIKE, (self.live, self.copy)):
            raise UnifiedUserError(
                self._action,
                f"{self.copy} would differ from {self.live} in owner, privileges, connection limit, comment or settings",
                "Run this as a superuser",
            )

    def _carry_setting(self, admin: Database, role: str | None, name: str, value: str) -> None:
        target = sql.SQL("DATABASE {}").format(sql.Identifier(self.copy))
        if role:
            target = sql.SQL("ROLE {} IN DATABASE {}").format(sql.Identifier(role), sql.Identifier(self.copy))
        parts = {"target": target, "name": sql.Identifier(*name.split("."))}
        if name in _LIST_SETTINGS:
            admin.execute("SELECT set_config(%s, %s, true)", (name, value))
            admin.execute(sql.SQL("ALTER {target} SET {name} FROM CURRENT").format(**parts))
        else:
            admin.execute(sql.SQL("ALTER {target} SET {name} TO {value}").format(value=sql.Literal(value), **parts))
