"""The reference application as it runs on a host: built once for each state of its source, started on loopback, stopped with its test.

A release is built in one of three stages of the guide: ``legacy`` as the source stands, ``auth`` with the eight imports of ``@/auth``
pointing to ``@/auth-unified``, ``unified`` with the routes exchanged for their ``-unified`` twins, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from tests.app import prisma_cli
from tests.seeded_secrets import new_secret

APPLICATION = prisma_cli.APPLICATION
CACHE = prisma_cli.CACHE
STAGES = ("legacy", "auth", "unified")
API = "app/[locale]/api"

#: What step 7 of the guide edits: these files import sign-in from one place only.
IMPORTS = (
    "app/api/auth/[...nextauth]/route.ts",
    "lib/permissions.ts",
    f"{API}/user/export/route.ts",
    f"{API}/user/delete/route.ts",
    f"{API}/auth/magic-link/verify/route.ts",
    f"{API}/user/studios/route.ts",
    "app/[locale]/dashboard/page.tsx",
    "app/[locale]/studio/dashboard/page.tsx",
)
IMPORT_BEFORE, IMPORT_AFTER = 'from "@/auth";', 'from "@/auth-unified";'
#: What step 8 exchanges for its twin.
ROUTES = tuple(f"{API}/{route}" for route in ("bookings", "studios", "user/studios", "auth/register", "auth/customer/register"))

_SOURCES = ("app", "lib", "auth.ts", "auth-unified.ts", "next.config.ts", "tsconfig.json", "types.d.ts", "prisma/schema.prisma", "package.json")
_KEPT_BUILDS = 4
_NEXT = "node_modules/next/dist/bin/next"


class ApplicationError(Exception):
    """The application could not be built or started; the message holds what it said."""


def _files():
    for name in _SOURCES:
        path = APPLICATION / name
        yield from (sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path])


def make_source(directory: Path, stage: str) -> None:
    """Copy the source into a directory and edit it for a stage.

    Raises:
        ApplicationError: an edit did not find exactly what it expects.
    """
    for file in _files():
        target = directory / file.relative_to(APPLICATION)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    if stage == "legacy":
        return
    for name in IMPORTS:
        text = (directory / name).read_text(encoding="utf-8")
        if text.count(IMPORT_BEFORE) != 1:
            raise ApplicationError(f"Failed to edit {name}: it has {text.count(IMPORT_BEFORE)} imports of @/auth instead of one. Correct IMPORTS.")
        (directory / name).write_text(text.replace(IMPORT_BEFORE, IMPORT_AFTER), encoding="utf-8")
    for route in ROUTES if stage == "unified" else ():
        old, new, aside = directory / route, directory / f"{route}-unified", directory / f"{route}-aside"
        # The customers' registration lies beside the owners', not in it, so nothing is moved twice.
        old.rename(aside)
        new.rename(old)
        aside.rename(new)


def build(stage: str = "unified", base_path: str = "") -> Path:
    """Build a release unless it is there, and return its directory: what `next start` and pm2 run.

    Args:
        stage: one of ``STAGES``.
        base_path: where it is served, e.g. ``/termine``; decided at build time.

    Raises:
        ApplicationError: the build failed.
        PrismaCliError: the packages could not be installed.
    """
    installation = prisma_cli.install()
    digest = hashlib.sha256(f"{stage} {base_path} {installation.name} {Path(__file__).read_bytes()!r}".encode())
    for file in _files():
        digest.update(f"{file.relative_to(APPLICATION)}\0".encode() + file.read_bytes())
    directory = CACHE / f"application-{stage}-{digest.hexdigest()[:16]}"
    with open(CACHE / f"application-{stage}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.is_dir():
            for outdated in sorted(CACHE.glob(f"application-{stage}-*/"), key=lambda path: path.stat().st_mtime)[: -_KEPT_BUILDS + 1 or None]:
                shutil.rmtree(outdated)
            _build_into(directory, stage, base_path, installation)
    return directory


def _build_into(directory: Path, stage: str, base_path: str, installation: Path) -> None:
    partial = Path(tempfile.mkdtemp(prefix="application.partial-", dir=CACHE))
    try:
        make_source(partial, stage)
        (partial / "node_modules").symlink_to(installation / "node_modules")
        environment = {**_environment(), "NEXT_PUBLIC_BASE_PATH": base_path, "TEST_BUILD": "1"}
        done = subprocess.run(
            ["node", _NEXT, "build"], cwd=partial, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=600, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ApplicationError(f"Failed to build the reference application ({stage}): next build ended with status {done.returncode}:\n{done.stdout}")
        shutil.rmtree(partial / ".next" / "cache", ignore_errors=True)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(CACHE), "NODE_ENV": "production", "NEXT_TELEMETRY_DISABLED": "1", "CI": "1", "NO_COLOR": "1"}


def free_port() -> int:
    """Return a loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end_with_parent() -> None:
    # PR_SET_PDEATHSIG: whoever started it may be killed, and nothing must go on listening.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@contextlib.contextmanager
def _running(command: list[str], directory: Path, environment: dict[str, str], port: int, path: str, log: Path):
    """Run a server until the block ends; it has answered with 200 when the block begins."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=_end_with_parent
        )
    try:
        deadline = time.monotonic() + 60
        while not _answers(port, path):
            if process.poll() is not None or time.monotonic() > deadline:
                state = f"it ended with status {process.returncode}" if process.poll() is not None else "it did not answer within 60 s"
                raise ApplicationError(f"Failed to start {command[1]}: {state}:\n{log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


class Stand:
    """What a running application needs beside its database: its secrets, its port, its mail service and its issuer.

    Attributes:
        port, issuer_port, smtp_port: loopback ports; nobody listens on the last one before a test does.
        url: where a browser finds the application.
    """

    def __init__(self, base_path: str = "") -> None:
        self.port, self.issuer_port, self.smtp_port = free_port(), free_port(), free_port()
        self.base_path = base_path
        self.url = f"http://localhost:{self.port}{base_path}"
        self.issuer_url = f"http://localhost:{self.issuer_port}"
        self.client_id = f"client-{secrets.token_hex(6)}"
        self._client_secret, self._auth_secret, self._issuer_secret = new_secret("google"), new_secret("auth"), new_secret("issuer")

    @contextlib.contextmanager
    def issuer(self, log: Path):
        """Run the stand-in for Google."""
        installation = prisma_cli.install()
        environment = {
            **_environment(), "GOOGLE_CLIENT_ID": self.client_id, "GOOGLE_CLIENT_SECRET": self._client_secret,
            "ISSUER_SECRET": self._issuer_secret, "NODE_ENV": "test",
        }  # fmt: skip
        # Modules are looked for from where the script is.
        shutil.copy(APPLICATION / "issuer.mjs", installation / "issuer.mjs")
        command = ["node", "issuer.mjs", str(self.issuer_port), f"{self.url}/api/auth/callback/google"]
        with _running(command, installation, environment, self.issuer_port, "/.well-known/openid-configuration", log) as process:
            yield process

    def environment(self, cluster, dbname: str, **changes: str) -> dict[str, str]:
        """Return the variables that the application runs with."""
        return {
            **_environment(),
            "DATABASE_URL": prisma_cli.database_url(cluster, dbname),
            "AUTH_URL": f"http://localhost:{self.port}",
            "AUTH_SECRET": self._auth_secret,
            "GOOGLE_CLIENT_ID": self.client_id,
            "GOOGLE_CLIENT_SECRET": self._client_secret,
            "GOOGLE_ISSUER": self.issuer_url,
            "SMTP_URL": f"smtp://127.0.0.1:{self.smtp_port}",
            "PORT": str(self.port),
            "NEXT_PUBLIC_BASE_PATH": self.base_path,
            **changes,
        }

    @contextlib.contextmanager
    def application(self, release: Path, cluster, dbname: str, log: Path, port: int = 0, **changes: str):
        """Run a built release on a database, on another port where one is given.

        Args:
            changes: further environment variables, e.g. ``BROKEN="role-unchecked"``.
        """
        port = port or self.port
        environment = {**self.environment(cluster, dbname, **changes), "PORT": str(port)}
        command = ["node", _NEXT, "start", "-H", "127.0.0.1", "-p", str(port)]
        with _running(command, release, environment, port, f"{self.base_path}/api/health", log) as process:
            yield process
