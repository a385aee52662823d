"""The real Prisma CLI against an embedded cluster, without the native engine that it would download.

What it and the reference application need is installed from the lock file once, below .cache, under a name made from the files that decide it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

APPLICATION = Path(__file__).resolve().parent
PRISMA_DIRECTORY = APPLICATION / "prisma"
CACHE = APPLICATION.parent.parent / ".cache"
_SOURCES = (".npmrc", "package.json", "package-lock.json", "prisma.config.ts", "prisma/schema.prisma")
# The CLI looks for both engines and would download them; it never runs them here.
_EMPTY_ENGINE = "empty-engine"


class PrismaCliError(Exception):
    """The CLI could not be installed. The message says what to do."""


def install():
    """Install the CLI from the lock file unless it is there, and return its directory.

    Safe to call from several processes at once.

    Raises:
        PrismaCliError: npm is missing or could not install the packages.
    """
    digest = hashlib.sha256(b"\0".join((APPLICATION / name).read_bytes() for name in _SOURCES)).hexdigest()
    directory = CACHE / f"prisma-cli-{digest[:16]}"
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / "prisma-cli.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.is_dir():
            # Of other lock files, and what an installation that was killed left behind.
            for outdated in (*CACHE.glob("prisma-cli-*/"), *CACHE.glob("prisma-cli.partial-*/")):
                shutil.rmtree(outdated)
            _install_into(directory)
    return directory


def _install_into(directory):
    if not shutil.which("npm") or not shutil.which("node"):
        raise PrismaCliError("Failed to install the Prisma CLI: node or npm is missing. Run make setup, or install nodejs (18.18 or later) and npm.")
    partial = Path(tempfile.mkdtemp(prefix="prisma-cli.partial-", dir=CACHE))
    try:
        (partial / "prisma").mkdir()
        for name in _SOURCES:
            shutil.copy(APPLICATION / name, partial / name)
        (partial / _EMPTY_ENGINE).touch()
        result = subprocess.run(
            ["npm", "ci", "--loglevel=error"], cwd=partial, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False
        )
        if result.returncode:
            raise PrismaCliError(f"Failed to install the Prisma CLI: npm ci ended with status {result.returncode}. Its output:\n{result.stdout}")
        _generate_client(partial)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _generate_client(directory):
    """Make the client that the reference application runs with; it lies among the packages, as it does in a release."""
    result = subprocess.run(
        ["node", "node_modules/prisma/build/index.js", "generate"],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "HOME": str(directory), "DATABASE_URL": "postgresql://localhost/none", "CI": "1", **_offline(directory)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    if result.returncode:
        raise PrismaCliError(f"Failed to generate the Prisma client: it ended with status {result.returncode}. Its output:\n{result.stdout}")


def _offline(directory):
    empty = str(directory / _EMPTY_ENGINE)
    return {"PRISMA_QUERY_ENGINE_LIBRARY": empty, "PRISMA_SCHEMA_ENGINE_BINARY": empty, "CHECKPOINT_DISABLE": "1"}


def offline_environment():
    """Return the variables that keep the CLI from downloading what it does not run here."""
    return _offline(install())


def database_url(cluster, dbname):
    """Return the URL by which Prisma reaches a database of an embedded cluster over its socket."""
    return f"postgresql://{cluster.user}@localhost:{cluster.port}/{quote(dbname)}?host={quote(str(cluster.host), safe='')}"


def make_release(directory, migrations=PRISMA_DIRECTORY / "migrations"):
    """Make a release directory as it lies on an application's host, with the CLI installed in it, and return it.

    Args:
        directory: where; it must not exist.
        migrations: its migrations.
    """
    installation = install()
    shutil.copytree(PRISMA_DIRECTORY, directory / "prisma", ignore=shutil.ignore_patterns("migrations"))
    shutil.copytree(migrations, directory / "prisma" / "migrations")
    for name in ("package.json", "package-lock.json", "prisma.config.ts"):
        shutil.copy(APPLICATION / name, directory / name)
    (directory / "node_modules").symlink_to(installation / "node_modules")
    return directory


class PrismaCli:
    """Runs Prisma CLI commands on one database of a cluster.

    Args:
        cluster: an embedded cluster, reached over its socket.
        dbname: the database.
        directory: where schema.prisma and migrations/ are; default the reference application's.
    """

    def __init__(self, cluster, dbname, directory=PRISMA_DIRECTORY):
        self._installation = install()
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._installation),
            "DATABASE_URL": database_url(cluster, dbname),
            "PRISMA_DIRECTORY": str(directory),
            "CI": "1",
            "NO_COLOR": "1",
            **offline_environment(),
        }

    def start(self, *arguments):
        """Start a command, e.g. ``start("migrate", "deploy")``, and return its Popen with standard output and error in one pipe."""
        return subprocess.Popen(
            ["node", "node_modules/prisma/build/index.js", *arguments],
            cwd=self._installation,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments, timeout=120):
        """Run a command to its end and return a CompletedProcess; stdout holds both streams.

        Raises:
            subprocess.TimeoutExpired: after ``timeout`` seconds; the command has been ended.
        """
        with self.start(*arguments) as process:
            try:
                output, _errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, output)
