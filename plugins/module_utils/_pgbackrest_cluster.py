# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A server of our own, restored by pgBackRest to a named restore point, for as long as it is looked at.

It listens on a socket in a directory that only its user may enter, archives nothing, loads no library, subscribes to nothing and is
removed afterwards: a copy of a live server must not act as one.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from typing import Any, Iterator

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import Backup, explaining, free_bytes, lock_directory, write_json
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._client_programs import (
    Child,
    Pipe,
    Program,
    child_environment,
    find_program,
    piped,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database, connect
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._pgbackrest import FORMAT, PgBackRest, Settings, as_user

_MARK = "unified_user.json"
_MADE_BY = "rnltlabs.unified_user"
_PORT = 5432
_SOCKET_PARENT = "/tmp"
_SOCKET_PREFIX = "unified_user-"
#: What the server reads beside its data: the original's own files may lie elsewhere, and are made for the original.
_FILES = {"config_file": ("postgresql.conf", ""), "hba_file": ("pg_hba.conf", "local all all trust\n"), "ident_file": ("pg_ident.conf", "")}
#: What would let the copy act on the world, or keep it from starting beside the original. The command line outranks every file.
_SETTINGS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "unix_socket_permissions": "0700",
    "unix_socket_group": "",
    "archive_mode": "off",
    "hot_standby": "off",
    "recovery_min_apply_delay": "0",
    "max_logical_replication_workers": "0",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "local_preload_libraries": "",
    "synchronous_standby_names": "",
    "ssl": "off",
    "shared_buffers": "128MB",
    "huge_pages": "off",
    "fsync": "off",
    "autovacuum": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "",
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_statement": "none",
    "lc_messages": "C",
}
_WAITING = ("the database system is starting up", "not accepting connections", "not yet accepting connections")


def scratch_directory(options: dict[str, Any], manifest: dict[str, Any]) -> str:
    """Return where the scratch server goes: what the operator says, else beside the data directory of the original."""
    return os.path.abspath(options.get("scratch_directory") or manifest[FORMAT]["data_directory"].rstrip("/") + "_unified_user")


def _make(path: str, mode: int) -> str:
    """Make a directory of exactly this mode, whatever the umask."""
    os.mkdir(path, mode)
    os.chmod(path, mode)
    return path


class ScratchCluster:
    """A server restored from a backup of ours that pgBackRest made.

    Args:
        backup: the backup.
        parameters: module parameters: connection options, ``pgbackrest``, ``bin_dir``.

    Raises:
        UnifiedUserError: pgBackRest, a server program of the right major or the user is not on this host.
    """

    def __init__(self, backup: Backup, parameters: dict[str, Any]) -> None:
        self._manifest, self._facts = backup.manifest, backup.manifest[FORMAT]
        self._source = backup.source
        options = parameters.get(FORMAT) or {}
        self._pgbackrest = PgBackRest(Settings.choose(options, self._facts))
        self._user = self._pgbackrest.settings.user
        self.directory = scratch_directory(options, self._manifest)
        self._data = os.path.join(self.directory, "data")
        self._log = os.path.join(self.directory, "server.log")
        major = self._manifest["server"]["major"]
        self._program = find_program("postgres", major, major, parameters.get("bin_dir"), "bin_dir")
        if self._program.major != major:
            raise UnifiedUserError(
                f"restore {self._source} into a scratch server",
                f"{self._program.path} is of PostgreSQL {self._program.version}; a pgBackRest backup of {major} can only be started by {major}",
                f"Install the package postgresql-{major} on this host or set bin_dir to its programs",
            )
        self._parameters = parameters
        self._bin_dir = parameters.get("bin_dir")
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = ""
        self.restore_ms = 0

    @property
    def version(self) -> str:
        """The version of pgBackRest."""
        return self._pgbackrest.version

    @property
    def connection(self) -> dict[str, Any]:
        """Module parameters that lead to the scratch server as the same role, by its socket."""
        kept = {
            name: value for name, value in (self._parameters.get("connect_params") or {}).items()
            if name not in ("host", "hostaddr", "port", "dbname", "service")
        }
        place = {"login_host": "", "login_unix_socket": self._socket, "login_port": _PORT, "connect_params": kept, "ssl_mode": "disable"}
        secrets = {"login_password": None, "ca_cert": None, "ssl_cert": None, "ssl_key": None}
        return {**self._parameters, **place, **secrets, "login_db": self._manifest["database"]}

    def look(self) -> None:
        """Look for what would stop a restore: somebody else's directory, too little disk, an expired backup set.

        Raises:
            UnifiedUserError: there is such a thing.
        """
        self._pgbackrest.set_of(self._facts["label"])
        leftover = self._leftover_bytes()
        needed = self._facts["cluster_bytes"] + self._facts["wal_segment_bytes"] * 2
        with explaining(f"look for free disk at {self.directory}"):
            available = free_bytes(self.directory) + leftover
        if available < needed:
            raise UnifiedUserError(
                f"restore {self._source} into a scratch server",
                f"{needed} bytes of free disk are needed at {self.directory}, {available} are available",
                "Free space there, or set scratch_directory in pgbackrest (backup_pgbackrest) to another place",
                needed_bytes=needed, available_bytes=available,
            )

    def _leftover_bytes(self) -> int:
        """Return how much an earlier run of ours has left, in bytes; it is removed before the restore."""
        if not os.path.lexists(self.directory):
            return 0
        if self._read_mark() is None:
            raise UnifiedUserError(
                f"restore into {self.directory}", "it exists and this step did not make it",
                "Set scratch_directory in pgbackrest (backup_pgbackrest) to a directory that does not exist, or remove that one if nobody needs it",
            )
        paths = (os.path.join(parent, name) for parent, _folders, names in os.walk(self.directory) for name in names)
        total = 0
        for path in paths:
            with contextlib.suppress(OSError):
                total += os.lstat(path).st_size
        return total

    def _read_mark(self) -> dict[str, Any] | None:
        try:
            with open(os.path.join(self.directory, _MARK), encoding="utf-8") as file:
                mark = json.load(file)
        except (OSError, ValueError):
            # Made, and the run ended before it was marked.
            return {} if os.path.isdir(self.directory) and not os.path.islink(self.directory) and not os.listdir(self.directory) else None
        return mark if isinstance(mark, dict) and mark.get("made_by") == _MADE_BY else None

    @contextlib.contextmanager
    def running(self) -> Iterator[ScratchCluster]:
        """Restore it, start it, have it until the end of the block, and remove it whatever happens.

        Raises:
            UnifiedUserError: another run is at work there, or it cannot be restored or started.
        """
        with self._alone():
            self.look()
            self._remove()
            try:
                started = time.monotonic()
                self._make_directories()
                self._restore()
                self._start()
                self.restore_ms = int((time.monotonic() - started) * 1000)
                yield self
            finally:
                self._stop()
                self._remove()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        parent = os.path.dirname(self.directory)
        with explaining(f"use {parent}"):
            os.makedirs(parent, mode=0o755, exist_ok=True)
            descriptor = lock_directory(parent)
        if descriptor is None:
            raise UnifiedUserError(
                f"restore into {self.directory}", f"another run is at work in {parent}", "Wait until it has ended, then run the same command again"
            )
        try:
            yield
        finally:
            os.close(descriptor)

    def _own(self, path: str) -> str:
        if os.geteuid() == 0:
            entry = pwd.getpwnam(self._user)
            os.chown(path, entry.pw_uid, entry.pw_gid)
        return path

    def _make_directories(self) -> None:
        """Make a directory of ours, in which only the data belongs to the server's user."""
        with explaining(f"make {self.directory}"):
            _make(self.directory, 0o711)
            # Not in there: a socket's path has little room.
            self._socket = self._own(tempfile.mkdtemp(prefix=_SOCKET_PREFIX, dir=_SOCKET_PARENT))
            write_json(os.path.join(self.directory, _MARK), {"made_by": _MADE_BY, "socket": self._socket})
            for name in ("data", "tablespaces"):
                self._own(_make(os.path.join(self.directory, name), 0o700))
            for name, content in _FILES.values():
                path = os.path.join(self.directory, name)
                with open(path, "w", encoding="utf-8") as file:
                    file.write(content)
                os.chmod(path, 0o644)

    def _restore(self) -> None:
        self._pgbackrest.do(
            f"restore backup set {self._facts['label']} with pgBackRest into {self.directory}",
            f"--pg1-path={self._data}",
            f"--set={self._facts['label']}",
            "--type=name",
            f"--target={self._facts['restore_point']}",
            f"--target-timeline={int(self._facts['timeline'], 16)}",
            "--target-action=promote",
            "--archive-mode=off",
            f"--tablespace-map-all={os.path.join(self.directory, 'tablespaces')}",
            "restore",
            repo=True,
        )

    def _start(self) -> None:
        files = {setting: os.path.join(self.directory, name) for setting, (name, _content) in _FILES.items()}
        settings = {**_SETTINGS, **self._facts["settings"], **files, "unix_socket_directories": self._socket}
        line = [self._program.path, "-D", self._data, *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG") or name.startswith("PGBACKREST_")}
        with open(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as log:
            self._process = subprocess.Popen(
                as_user(self._user, line), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd="/",
                env={**environment, "HOME": pwd.getpwnam(self._user).pw_dir}, start_new_session=True,
            )
        while not self._answers():
            if self._process.poll() is not None:
                raise self._not_started()
            time.sleep(0.05)

    def _answers(self) -> bool:
        """Whether it has recovered to the restore point; until then it takes no connection."""
        try:
            connect(self.connection).close()
        except UnifiedUserError as error:
            # A server that is up and refuses the login will not change its mind.
            if not error.action.startswith("connect") or ("FATAL" in error.cause and not any(sign in error.cause for sign in _WAITING)):
                raise
            return False
        return True

    def _not_started(self) -> UnifiedUserError:
        with open(self._log, encoding="utf-8", errors="replace") as file:
            lines = [line.strip() for line in file if re.match(r"(?:FATAL|PANIC|postgres: )", line) and not any(sign in line for sign in _WAITING)]
        cause = lines[0] if lines else f"it ended with status {self._process.returncode} and said nothing"
        action = f"recover {self._source} to restore point {self._facts['restore_point']}"
        if "before configured recovery target" in cause:
            return UnifiedUserError(
                action, f"the WAL in the archive ends before it, or is damaged on the way there ({cause})",
                f"Look in the repository for the segments {self._facts['wal']['start']} to {self._facts['wal']['stop']}; without them take a new backup",
                proven=False,
            )
        return UnifiedUserError(action, cause, "Put the cause right, or take a new backup, then run the same command again")

    def open(self) -> Database:
        """Open a session on the database that the backup is of."""
        return connect(self.connection)

    @contextlib.contextmanager
    def dumping_into(self, program: Program, arguments: list[str], environment: dict[str, str]) -> Iterator[Pipe]:
        """Dump the database into a client program for the length of the block; nothing but the pipe is between them.

        Args:
            program: ``pg_restore``, which reads its standard input.
            arguments: see `Child`.
            environment: see `child_environment`.
        """
        dump = find_program("pg_dump", self._program.major, self._program.major, self._bin_dir, "bin_dir")
        with contextlib.closing(self.open()) as database:
            here = child_environment(self.connection, database)[0]
        words = ["--format=custom", "--compress=0", "--no-password"]
        if self._parameters.get("session_role"):
            words.append(f"--role={self._parameters['session_role']}")
        with piped(lambda target: Child(dump, words, here, stdout=target), lambda source: Child(program, arguments, environment, stdin=source)) as pipe:
            yield pipe

    def _stop(self) -> None:
        """End the server at once; nothing in it is worth a checkpoint."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGQUIT)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _remove(self) -> None:
        """Remove what this run or a killed one has made, its server first."""
        mark = self._read_mark()
        for path in (self._socket, (mark or {}).get("socket", "")):
            if re.fullmatch(rf"{_SOCKET_PARENT}/{_SOCKET_PREFIX}\w+", path):
                shutil.rmtree(path, ignore_errors=True)
        if mark is not None:
            self._end_leftover()
            with explaining(f"remove {self.directory}"):
                shutil.rmtree(self.directory)

    def _end_leftover(self) -> None:
        """End a server that outlived its run: the one that works in our directory, whatever its number has become since."""
        for _attempt in range(200):
            pid = self._postmaster()
            if pid is None:
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGQUIT)
            time.sleep(0.05)
        raise UnifiedUserError(f"end the scratch server in {self.directory}", f"process {pid} does not end", "End it, then run the same command again")

    def _postmaster(self) -> int | None:
        try:
            with open(os.path.join(self._data, "postmaster.pid"), encoding="utf-8") as file:
                pid = int(file.readline())
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                return pid if os.fsencode(self._data) in file.read().split(b"\0") else None
        except (OSError, ValueError):
            return None
