# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One database session: connecting, executing, transactions, and errors that an operator can act on."""

from __future__ import annotations

import contextlib
import random
import time
from typing import Any, Callable, Iterator, TypeVar

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

try:
    import psycopg2
    import psycopg2.errorcodes
    import psycopg2.extensions
    import psycopg2.extras
    from psycopg2 import sql
except ImportError:  # reported once, by UnifiedUserModule, with the interpreter's path
    psycopg2 = None
    sql = None

APPLICATION_NAME = "unified_user"

_PARAMETERS = {
    "login_host": "host",
    "login_user": "user",
    "login_password": "password",
    "login_port": "port",
    "login_db": "dbname",
    "ssl_mode": "sslmode",
    "ca_cert": "sslrootcert",
    "ssl_cert": "sslcert",
    "ssl_key": "sslkey",
}

_Result = TypeVar("_Result")


class Database:
    """A psycopg2 connection in autocommit mode, with explicit transactions and a log of what it ran.

    Args:
        connection: an open psycopg2 connection; it is switched to autocommit.

    Attributes:
        executed_queries: the statements run, with placeholders in the place of values.
    """

    def __init__(self, connection) -> None:
        connection.autocommit = True
        self.connection = connection
        self.executed_queries: list[str] = []

    def _execute(self, statement, parameters):
        text = statement if isinstance(statement, str) else statement.as_string(self.connection)
        self.executed_queries.append(text)
        cursor = self.connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor)
        # Without parameters psycopg2 leaves percent signs alone, so text is sent as it stands.
        cursor.execute(text, parameters)
        return cursor

    def execute(self, statement, parameters=None) -> int:
        """Run a statement and return how many rows it touched.

        Raises:
            psycopg2.Error: as the server or the driver reports it.
        """
        with contextlib.closing(self._execute(statement, parameters)) as cursor:
            return max(cursor.rowcount, 0)

    def rows(self, statement, parameters=None) -> list[dict[str, Any]]:
        """Run a query and return its rows as dicts by column name. For small results only."""
        with contextlib.closing(self._execute(statement, parameters)) as cursor:
            return [dict(row) for row in cursor.fetchall()]

    def row(self, statement, parameters=None) -> dict[str, Any] | None:
        """Run a query and return its first row, or None."""
        rows = self.rows(statement, parameters)
        return rows[0] if rows else None

    def value(self, statement, parameters=None) -> Any:
        """Run a query and return the first column of its first row, or None."""
        row = self.row(statement, parameters)
        return next(iter(row.values())) if row else None

    @contextlib.contextmanager
    def transaction(self, modes: str = "ISOLATION LEVEL READ COMMITTED") -> Iterator[Database]:
        """Run the block in one transaction: committed at its end, rolled back on any exception.

        Args:
            modes: transaction modes after BEGIN, e.g. ``"ISOLATION LEVEL REPEATABLE READ, READ ONLY"``. The default is said
                out loud: where the database defaults to more, a snapshot from before a lock would hide what the lock waited for.
        """
        try:
            # Inside: a signal that arrives just after it must not leave the transaction open.
            self.execute(f"BEGIN {modes}")
            yield self
        except BaseException:
            # After a lost connection there is nothing to roll back: the server has done it.
            if not self.connection.closed:
                with contextlib.suppress(psycopg2.Error):
                    self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, failed or not."""
        return self.connection.get_transaction_status() != psycopg2.extensions.TRANSACTION_STATUS_IDLE

    def lock_holders(self, relations: list[str]) -> list[str]:
        """Describe the other sessions that hold a lock which keeps writers or DDL of a table waiting.

        Args:
            relations: quoted, qualified table names, as ``regclass`` reads them.

        Returns:
            Process id, application, state and age of each, oldest first; never its query.
        """
        return [
            f"pid {row['pid']} ({row['application']}, {row['state']}, transaction open for {row['age']} s)"
            for row in self.rows(
                "SELECT a.pid, coalesce(nullif(a.application_name, ''), a.backend_type) AS application,"
                " coalesce(a.state, 'active') AS state,"
                " coalesce(extract(epoch FROM clock_timestamp() - a.xact_start)::int, 0) AS age"
                " FROM pg_stat_activity AS a WHERE a.pid <> pg_backend_pid() AND EXISTS (SELECT FROM pg_locks AS l"
                " WHERE l.pid = a.pid AND l.granted AND l.mode NOT IN ('AccessShareLock', 'RowShareLock')"
                " AND l.relation = ANY (SELECT to_regclass(name) FROM unnest(%s) AS name))"
                " ORDER BY a.xact_start",
                (relations,),
            )
        ]

    def close(self) -> None:
        """Close the connection. Safe to call twice."""
        self.connection.close()


def describe(error) -> str:
    """Say what went wrong in a database error without repeating data.

    The server's primary message names objects, not rows; its detail and context lines may hold values and are left out.
    """
    diagnostics = getattr(error, "diag", None)
    message = getattr(diagnostics, "message_primary", None)
    if message:
        name = psycopg2.errorcodes.lookup(error.pgcode) if error.pgcode in psycopg2.errorcodes.__dict__.values() else ""
        return f"{message} ({name.lower() or error.pgcode})"
    return " ".join(str(error).split()) or type(error).__name__


def connection_arguments(parameters: dict[str, Any], dbname: str | None = None) -> dict[str, Any]:
    """Turn community.postgresql's connection options into psycopg2's keyword arguments.

    Args:
        parameters: module parameters (``login_host``, ``login_unix_socket``, ...).
        dbname: a database other than ``login_db``.
    """
    arguments = {
        _PARAMETERS[key]: value
        for key, value in parameters.items()
        if key in _PARAMETERS and value not in ("", None)
    }
    socket = parameters.get("login_unix_socket")
    if socket and arguments.get("host", "localhost") == "localhost":
        arguments["host"] = socket
    if dbname:
        arguments["dbname"] = dbname
    arguments.update(parameters.get("connect_params") or {})
    arguments.setdefault("application_name", APPLICATION_NAME)
    arguments.setdefault("connect_timeout", 15)
    return arguments


def connect(parameters: dict[str, Any], dbname: str | None = None) -> Database:
    """Open a session with community.postgresql's connection options.

    Args:
        parameters: module parameters; ``session_role`` is set after connecting.
        dbname: a database other than ``login_db``.

    Raises:
        UnifiedUserError: the server cannot be reached, refuses the login, or the role cannot be set.
    """
    arguments = connection_arguments(parameters, dbname)
    where = f"{arguments.get('host') or 'the local socket'} port {arguments.get('port', 5432)}"
    target = f"connect to database {arguments.get('dbname', arguments.get('user'))} as {arguments.get('user')} at {where}"
    try:
        database = Database(psycopg2.connect(**arguments))
    except psycopg2.Error as error:
        cause = " ".join(str(error).split())
        password = str(arguments.get("password") or "")
        if password:
            cause = cause.replace(password, "********")
        raise UnifiedUserError(
            target, cause, "Check login_host, login_port, login_user, login_password and pg_hba.conf, and that the server runs"
        ) from error
    role = parameters.get("session_role")
    if role:
        try:
            database.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        except psycopg2.Error as error:
            database.close()
            raise UnifiedUserError(
                f"switch to role {role}", describe(error), f"Grant {role} to the login user or change session_role"
            ) from error
    return database


def pooler(database: Database, open_second: Callable[[], Database]) -> str | None:
    """Find out whether a pooler stands between us and the server, and of which mode.

    A pooler hands out a process id of its own. In transaction mode, a second session is then served by the very server
    process that served the first one, which is idle.

    Args:
        database: an open session outside a transaction.
        open_second: opens another one of the same kind.

    Returns:
        None, ``session`` or ``transaction``.

    Raises:
        UnifiedUserError: the pooler refuses a second session.
    """
    own = "SELECT pg_backend_pid()"
    if database.connection.info.backend_pid == database.value(own):
        return None
    with contextlib.closing(open_second()) as second:
        return "transaction" if second.value(own) == database.value(own) else "session"


def with_lock_retries(
    attempt: Callable[[], _Result],
    action: str,
    database: Database,
    observer: Callable[[], list[str]] | None = None,
    seconds: float = 60.0,
    pause: float = 0.25,
) -> _Result:
    """Call a function that takes strong locks under a short lock_timeout until it gets them.

    A waiting lock queues every later writer behind it, so each attempt must set its own ``lock_timeout``; between attempts
    the queue drains. The pause doubles up to 5 s and is jittered. There is never a last attempt without a timeout.

    Args:
        attempt: does the work in a transaction of its own; rolled back when it raises.
        action: what is attempted, for the message.
        database: the session that attempts; closed sessions end the retries.
        observer: returns descriptions of the sessions in the way, asked after a failed attempt.
        seconds: how long to go on, in seconds.
        pause: the first pause, in seconds.

    Raises:
        UnifiedUserError: the lock was not to be had; names the blocking sessions.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except psycopg2.Error as error:
            retriable = (psycopg2.errorcodes.LOCK_NOT_AVAILABLE, psycopg2.errorcodes.DEADLOCK_DETECTED)
            if error.pgcode not in retriable or database.connection.closed:
                raise
            blockers = observer() if observer else []
            if time.monotonic() + pause > deadline:
                raise UnifiedUserError(
                    action,
                    f"another session holds a lock in the way for more than {seconds:g} s"
                    + (f": {'; '.join(blockers)}" if blockers else ""),
                    "Let that session finish or end it with pg_terminate_backend(pid), then run the same command again",
                    blockers=blockers,
                ) from error
            # Not cryptography: the jitter only keeps two waiting runs from knocking in step.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, 5.0)
