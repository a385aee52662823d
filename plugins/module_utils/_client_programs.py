# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""PostgreSQL's client programs: finding one that fits the server, running it without showing a secret, reading its errors."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from typing import Any, Callable, Iterator, NoReturn, Sequence

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import (
    Database,
    connection_arguments,
    psycopg2,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

#: Where Debian, the PostgreSQL project's RPMs, Homebrew and source builds put the programs of one major.
_KNOWN_DIRECTORIES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
)

#: libpq's connection keywords that it also reads from the environment (PostgreSQL documentation, libpq, "Environment Variables").
_ENVIRONMENT = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "passfile": "PGPASSFILE",
    "service": "PGSERVICE",
    "options": "PGOPTIONS",
    "application_name": "PGAPPNAME",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
    "sslnegotiation": "PGSSLNEGOTIATION",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "channel_binding": "PGCHANNELBINDING",
    "require_auth": "PGREQUIREAUTH",
    "requirepeer": "PGREQUIREPEER",
    "gssencmode": "PGGSSENCMODE",
    "krbsrvname": "PGKRBSRVNAME",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}

_ERROR_LINE = re.compile(r"^[\w.]+: (?:error|fatal): |\b(?:ERROR|FATAL|PANIC): ")
_DATA_LINE = re.compile(r"^\s|^(?:[\w.]+: )?(?:detail|context|statement|command was|hint):|^COPY ", re.IGNORECASE)
_LEFT_ALONE = re.compile(rf"broken pipe|killed by signal {signal.SIGPIPE.value}$", re.IGNORECASE)
_EMAIL = re.compile(r"[^\s@'\"(=]+(@[^\s@'\")=,;]+)")
_BAD_VALUE = re.compile(r"(invalid input (?:syntax|value) for [^:]+: ).*", re.IGNORECASE)


@dataclass(frozen=True)
class Program:
    """A client program that was found and asked for its version.

    Attributes:
        path: the executable.
        version: as it prints it, e.g. ``16.4``.
        major: e.g. ``16``.
    """

    path: str
    version: str
    major: int


def _inspect(path: str) -> Program | None:
    try:
        answer = subprocess.run(
            [path, "--version"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, check=False
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)(\S*)", answer)
    return Program(path, match.group(1) + match.group(2), int(match.group(1))) if match else None


def find_program(name: str, server_major: int, minimum_major: int, bin_dir: str | None, variable: str) -> Program:
    """Find a client program of the server's major, else the oldest one that is new enough.

    A program of the server's own major comes first because a newer ``pg_restore`` may set parameters that an older server
    does not know.

    Args:
        name: ``pg_dump`` or ``pg_restore``.
        server_major: major version of the server it will talk to.
        minimum_major: oldest major that can do the work.
        bin_dir: the only directory to look in, or None to search PATH and the usual places.
        variable: the option that sets ``bin_dir``, for messages.

    Raises:
        UnifiedUserError: none is there, or all are too old; says which package to install and which variable to set.
    """
    advice = (
        f"Install the package postgresql-client-{max(server_major, minimum_major)} on this host "
        f"or set {variable} to the directory that holds {name} of PostgreSQL {max(server_major, minimum_major)}"
    )
    if bin_dir:
        paths = [os.path.join(bin_dir, name)]
    else:
        directories = [directory for pattern in _KNOWN_DIRECTORIES for directory in sorted(glob.glob(pattern))]
        paths = [path for path in [shutil.which(name)] if path]
        paths += [path for path in (os.path.join(directory, name) for directory in directories) if os.path.exists(path)]
    found = [program for program in map(_inspect, paths) if program]
    if not found:
        raise UnifiedUserError(f"find {name}", f"it is not in {bin_dir or 'PATH nor where packages put it'}", advice)
    usable = [program for program in found if program.major >= minimum_major]
    if not usable:
        newest = max(found, key=lambda program: program.major)
        raise UnifiedUserError(
            f"use {newest.path}",
            f"it is of PostgreSQL {newest.version}, older than the {minimum_major} that is needed (server: {server_major})",
            advice,
            client_version=newest.version,
            server_major=server_major,
        )
    return min(usable, key=lambda program: (program.major != server_major, program.major))


def child_environment(parameters: dict[str, Any], database: Database) -> tuple[dict[str, str], dict[str, str]]:
    """Return the environment that makes a client program connect exactly as the module did, and what it has no variable for.

    Secrets travel in the environment only. Host and port are those of the session that is open, so that a list of hosts
    cannot lead the program to another server.

    Args:
        parameters: module parameters with community.postgresql's connection options.
        database: the module's open session.

    Returns:
        The environment, and the connection keywords for which libpq reads no environment variable.
    """
    arguments = {key: value for key, value in connection_arguments(parameters).items() if value is not None}
    info = database.connection.info
    arguments.update(host=info.host, port=info.port, user=info.user)
    arguments.pop("dbname", None)
    environment = {**os.environ, "LC_MESSAGES": "C", "PGDATABASE": info.dbname}
    environment.pop("LC_ALL", None)
    rest = {}
    for key, value in arguments.items():
        if key in _ENVIRONMENT:
            environment[_ENVIRONMENT[key]] = str(value)
        else:
            rest[key] = str(value)
    return environment, rest


def write_service_file(path: str, keywords: dict[str, str]) -> dict[str, str]:
    """Write connection keywords that have no environment variable into a service file of mode 0600.

    Args:
        path: the file, in a directory that only its owner may enter.
        keywords: libpq keywords, such as ``keepalives_idle`` or ``sslpassword``.

    Returns:
        The environment variables that make libpq read it.
    """
    if not keywords:
        return {}
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write("[unified_user]\n" + "".join(f"{key}={value}\n" for key, value in keywords.items()))
    return {"PGSERVICEFILE": path, "PGSERVICE": "unified_user"}


def database_argument(name: str) -> str:
    """Return the ``--dbname`` argument for a database of any name, also one with an equals sign or a quote."""
    return "--dbname=" + database_keywords(name)


def database_keywords(name: str) -> str:
    """Return a database's name as libpq takes it wherever it would read an equals sign in a bare name as a keyword's."""
    return psycopg2.extensions.make_dsn(dbname=name)


def explain(stderr: str, secrets: Sequence[str]) -> str:
    """Reduce what a client program wrote to its errors, without secrets and without rows.

    Lines that may quote data (DETAIL, CONTEXT, the failing command) are dropped, e-mails masked, rejected values cut.

    Args:
        stderr: what the program wrote.
        secrets: values that must not appear.
    """
    lines = [line.strip() for line in stderr.splitlines() if _ERROR_LINE.search(line) and not _DATA_LINE.search(line)]
    if not lines:
        lines = [line.strip() for line in stderr.splitlines() if line.strip() and not _DATA_LINE.search(line)][-3:]
    text = "; ".join(dict.fromkeys(_BAD_VALUE.sub(r"\1(value not shown)", line) for line in lines[:5])) or "it said nothing"
    for secret in filter(None, secrets):
        text = text.replace(secret, "********")
    text = _EMAIL.sub(r"***\1", text)
    return text if len(text) <= 600 else text[:600] + " …"


class Child:
    """A client program that is running.

    Args:
        program: what to run.
        arguments: without any secret: everybody on the host can read them.
        environment: see `child_environment`.
        held: file descriptors that it inherits, so that a lock on them lasts as long as it lives.
        stdin: what it reads, a file descriptor or file; nothing if not given.
        stdout: where its output goes; nowhere if not given.
    """

    def __init__(
        self,
        program: Program,
        arguments: Sequence[str],
        environment: dict[str, str],
        held: Sequence[int] = (),
        stdin: Any = subprocess.DEVNULL,
        stdout: Any = subprocess.DEVNULL,
    ) -> None:
        self.program = program
        self._secrets = [environment.get("PGPASSWORD", "")]
        # A file, not a pipe: a program with many warnings must never wait for us to read them.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed in stop()
        self._process = subprocess.Popen(
            [program.path, *arguments],
            env=environment,
            stdin=stdin,
            stdout=stdout,
            stderr=self._stderr,
            pass_fds=tuple(held),
            cwd="/",
            # Without a terminal of its own nothing can stop to ask for a passphrase.
            start_new_session=True,
        )

    def failed(self) -> bool:
        """Whether it has ended already, with an error."""
        return self._process.poll() not in (None, 0)

    def wait(self) -> str | None:
        """Wait for its end; return None if it did its work, else what it complained about."""
        code = self._process.wait()
        self._stderr.seek(0)
        text = self._stderr.read().decode("utf-8", "replace")
        if code == 0:
            return None
        if code < 0:
            return f"it was killed by signal {-code}"
        return explain(text, self._secrets)

    def stop(self) -> None:
        """End it if it still runs, and wait until it is gone."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._stderr.close()


@contextlib.contextmanager
def running(
    program: Program, arguments: Sequence[str], environment: dict[str, str], held: Sequence[int] = ()
) -> Iterator[Child]:
    """Run a client program for the length of the block; it is stopped when the block ends early."""
    child = Child(program, arguments, environment, held)
    try:
        yield child
    finally:
        child.stop()


class Pipe:
    """Two programs of which the first writes what the second reads.

    Args:
        first: starts the first program, given the descriptor to write to.
        second: starts the second program, given the descriptor to read from.
    """

    def __init__(self, first: Callable[[int], Child], second: Callable[[int], Child]) -> None:
        source, target = os.pipe()
        self._children: list[Child] = []
        try:
            self._children.append(second(source))
            self._children.insert(0, first(target))
        except BaseException:
            self.stop()
            raise
        finally:
            # Only the programs hold the ends now, so that each notices the other's end.
            os.close(source)
            os.close(target)

    def failed(self) -> bool:
        """Whether one of them has ended already, with an error."""
        return any(child.failed() for child in self._children)

    def wait(self) -> str | None:
        """Wait for the end of both; return None if they did their work, else the complaint that came first.

        Whoever is left alone by the other only complains of a broken pipe.
        """
        complaints = [complaint for complaint in [child.wait() for child in self._children] if complaint]
        causes = [complaint for complaint in complaints if not _LEFT_ALONE.search(complaint)]
        return (causes or complaints or [None])[0]

    def stop(self) -> None:
        """End both if they still run, and wait until they are gone."""
        for child in self._children:
            child.stop()


@contextlib.contextmanager
def piped(first: Callable[[int], Child], second: Callable[[int], Child]) -> Iterator[Pipe]:
    """Run two programs, one into the other, for the length of the block; see `Pipe`."""
    pipe = Pipe(first, second)
    try:
        yield pipe
    finally:
        pipe.stop()


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Turn SIGTERM, SIGINT and SIGHUP (a lost SSH session) into an exception, so that what the block made is put away.

    Raises:
        UnifiedUserError: when one of them arrives; later ones are ignored while the block cleans up.
    """
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def leave(number: int, _frame: object) -> NoReturn:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise UnifiedUserError(
            "finish", f"it was told to stop by signal {number}", "What it had begun was put away. Run the same command again"
        )

    previous = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
