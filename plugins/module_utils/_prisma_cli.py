# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Running the Prisma CLI that a release of the application brings, and understanding what it says.

The database's address and password reach it in its environment alone. What it prints is never repeated: its messages hold
rows. Codes, names of migrations and PostgreSQL's own messages without their values are taken from it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

_URL_VARIABLE = "DATABASE_URL"
#: libpq's mode -> how Prisma's connector says the same.
_SSL_MODES = {
    "disable": {"sslmode": "disable"},
    "allow": {"sslmode": "prefer"},
    "prefer": {"sslmode": "prefer"},
    "require": {"sslmode": "require"},
    "verify-ca": {"sslmode": "require", "sslaccept": "strict"},
    "verify-full": {"sslmode": "require", "sslaccept": "strict"},
}
_APPLIED = re.compile(r"^\s*└─ (\S+)/$", re.MULTILINE)
_CODE = re.compile(r"^(?:Error:|Error code:)?\s*(P\d{4})\b", re.MULTILINE)
_SQLSTATE = re.compile(r"Database error code: (\w{5})|SqlState\(E?(\w{5})\)|code: \"(\w{5})\"")
_MESSAGE = re.compile(r"^(?:Error querying the database: )?(?:db error: )?ERROR: (.*)$", re.MULTILINE)
_MIGRATION = re.compile(r"Migration name: (\S+)|migration_name=\"([^\"]+)\"|^The `([^`]+)` migration started", re.MULTILINE)
_QUOTED = re.compile("[\"\u201e\u201c\u00ab].*[\"\u201c\u201d\u00bb]")
#: What the engine says when the flag is not for releases with a driver adapter.
_COMMENT = re.compile(r"^--.*\n", re.MULTILINE)
#: How Prisma would drop an index of the sync, which are all called so.
_OUR_INDEX = re.compile(r'DROP INDEX (?:"(?:[^"]|"")+"\.)?"(unified_user_sync_[^"]+)"')
_SHOWN = 200
_NO_DATASOURCE = "--from-schema-datasource flag"
_PANIC = re.compile(r"panicked at|RuntimeError: unreachable|constraint_type")
_LOCK = ("advisory lock", "lock timeout")

_EXPLANATIONS = {
    "P1000": ("the server refused the login", "Check the user and the password that the release's host logs in with"),
    "P1001": ("the release's host does not reach the database server", "Set schema_deploy_login_host and schema_deploy_login_port to how that host reaches it"),
    "P1003": ("there is no such database", "Check unified_user_login_db"),
    "P1010": ("the user has no access to the database", "GRANT CONNECT on it, or check the user"),
    "P1011": ("the encrypted connection could not be made", "Check unified_user_ssl_mode and unified_user_ca_cert"),
    "P1012": ("the release's schema.prisma is not valid", "Deploy a release whose `prisma validate` passes"),
    "P3005": (
        "the schema has tables but no record of any migration",
        "Record that they are there (baseline it): prisma_migration with state=resolved and resolution=applied for each migration that made them",
    ),
    "P3009": (
        "a migration began earlier and did not finish",
        "Look with prisma_migration state=status how much of it is there, put that right, and mark it with state=resolved",
    ),
    "P3015": ("a migration's directory has no migration.sql", "Restore the file from version control, or remove the empty directory"),
    "P3018": (
        "a migration failed",
        "Look with prisma_migration state=status how much of it is there, put that right, and mark it with state=resolved",
    ),
}


@dataclass(frozen=True)
class Release:
    """A release of the application on this host, and how to run its CLI.

    Attributes:
        directory: where it is.
        schema_path: its schema.prisma, or the directory of its schema files, relative to it.
        environment: variables for the CLI beside ours.
        timeout: how long one command may take, in seconds.
    """

    directory: str
    schema_path: str = "prisma/schema.prisma"
    environment: dict[str, str] = field(default_factory=dict)
    timeout: float = 600

    @property
    def schema(self) -> str:
        """The path of the schema file."""
        return os.path.join(self.directory, self.schema_path)

    def program(self) -> list[str]:
        """Return the command that runs the release's own CLI; never one from elsewhere.

        Raises:
            UnifiedUserError: the directory, the schema or the CLI is not there.
        """
        action = f"run Prisma in {self.directory}"
        if not os.path.isdir(self.directory):
            raise UnifiedUserError(
                action, "there is no such directory on this host", "Set schema_deploy_release_directory to the release that has the unified model"
            )
        if not os.path.exists(self.schema):
            raise UnifiedUserError(action, f"it has no {self.schema_path}", "Set schema_deploy_schema_path to where the release keeps it")
        own = os.path.join(self.directory, "node_modules", ".bin", "prisma")
        if os.path.exists(own):
            return [own]
        npx = shutil.which("npx", path=self._environment().get("PATH"))
        # A workspace's CLI is further up. Without --no-install npx would fetch the newest one, which is not the release's.
        if npx and subprocess.run(
            [npx, "--no-install", "prisma", "--version"], cwd=self.directory, env={**self._environment(), _URL_VARIABLE: "postgresql://unused.invalid/unused"},
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
        ).returncode == 0:
            return [npx, "--no-install", "prisma"]
        raise UnifiedUserError(
            action, "the release has no Prisma CLI of its own",
            "Install what its lock file pins, with the development packages (npm ci), or set schema_deploy_engine: native",
        )

    def version(self) -> str:
        """Return the version of the CLI in node_modules, or an empty string."""
        try:
            with open(os.path.join(self.directory, "node_modules", "prisma", "package.json"), encoding="utf-8") as file:
                return str(json.load(file)["version"])
        except (OSError, ValueError, KeyError):
            return ""

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CI": "1", "NO_COLOR": "1", "CHECKPOINT_DISABLE": "1", "PRISMA_HIDE_UPDATE_MESSAGE": "1", **self.environment}

    def run(self, url: str, *arguments: str) -> subprocess.CompletedProcess:
        """Run one command to its end; ``stdout`` holds both streams.

        Args:
            url: how the CLI reaches the database; given to it in its environment.
            arguments: the command, e.g. ``"migrate", "deploy"``; the schema is added.

        Raises:
            UnifiedUserError: there is no CLI, or it did not end in time; it and its children are gone then.
        """
        command = [*self.program(), *arguments]
        process = subprocess.Popen(
            command, cwd=self.directory, env={**self._environment(), _URL_VARIABLE: url}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", start_new_session=True,
        )
        try:
            output = process.communicate(timeout=self.timeout)[0]
        except subprocess.TimeoutExpired as error:
            raise UnifiedUserError(
                f"run prisma {' '.join(arguments[:2])}", f"it did not end within {self.timeout:g} s and was ended",
                "Look for locks in its way, or set schema_deploy_cli_timeout",
            ) from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, output)


def database_url(parameters: dict[str, Any], dbname: str | None = None) -> str:
    """Return the URL by which Prisma connects as the connection options say.

    Args:
        parameters: connection options, ``schema``, and ``lock_timeout`` in milliseconds.
        dbname: a database other than ``login_db``.

    Raises:
        UnifiedUserError: an option cannot be said in such a URL.
    """
    impossible = [name for name in ("ssl_cert", "ssl_key", "connect_params") if parameters.get(name)]
    if impossible:
        raise UnifiedUserError(
            "tell Prisma how to connect", f"its URL has no place for {', '.join(impossible)}", "Set schema_deploy_engine: native"
        )
    host, socket = parameters.get("login_host") or "", parameters.get("login_unix_socket") or ""
    settings = dict(_SSL_MODES[parameters["ssl_mode"]])
    if host in ("", "localhost") and socket:
        settings = {"host": socket}
    elif host.startswith("/"):
        settings, host = {"host": host}, ""
    elif parameters.get("ca_cert"):
        settings["sslcert"] = parameters["ca_cert"]
    options = [f"-c lock_timeout={int(parameters['lock_timeout'])}"]
    if parameters.get("session_role"):
        options.append("-c role=" + re.sub(r"([\\ ])", r"\\\1", parameters["session_role"]))
    settings.update(schema=parameters["schema"], options=" ".join(options))
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in settings.items())
    user = quote(parameters["login_user"] or "", safe="")
    password = quote(parameters.get("login_password") or "", safe="")
    address = f"[{host}]" if ":" in host else host or "localhost"
    return (
        f"postgresql://{user}{':' + password if password else ''}@{address}:{parameters['login_port']}"
        f"/{quote(dbname or parameters['login_db'], safe='')}?{query}"
    )


def deploy(release: Release, url: str) -> dict[str, Any]:
    """Run ``prisma migrate deploy``.

    Returns:
        ``changed``, ``applied`` (names in order) and ``duration_ms``.

    Raises:
        UnifiedUserError: it failed; says with Prisma's code why and what to do. Its details hold ``code`` and ``failed_migration``.
    """
    started = time.monotonic()
    done = release.run(url, "migrate", "deploy", "--schema", release.schema)
    applied = _APPLIED.findall(done.stdout.partition("have been applied")[2])
    if done.returncode:
        raise _failure("deploy the migrations with Prisma", done.stdout, done.returncode)
    return {"changed": bool(applied), "applied": applied, "duration_ms": round((time.monotonic() - started) * 1000)}


def generate(release: Release, url: str) -> dict[str, Any]:
    """Run ``prisma generate``: the release's client for its schema.

    Raises:
        UnifiedUserError: it failed.
    """
    started = time.monotonic()
    done = release.run(url, "generate", "--schema", release.schema)
    if done.returncode:
        raise _failure("generate the Prisma client", done.stdout, done.returncode)
    return {"changed": True, "duration_ms": round((time.monotonic() - started) * 1000)}


def compare(release: Release, url: str) -> dict[str, Any]:
    """Compare the database with schema.prisma as ``prisma migrate diff --exit-code`` does, but for the indexes that the sync made.

    Returns:
        ``equal``; ``differences``, the statements that would make it equal; ``left_alone``, the names of the sync's indexes, which go with it.

    Raises:
        UnifiedUserError: the comparison was not possible.
    """
    done = _diff(release, url, "--script", "--exit-code")
    statements = [" ".join(statement.split()) for statement in _COMMENT.sub("", _script_in(done.stdout)).split(";\n") if statement.strip()]
    if bool(done.returncode) != bool(statements):
        # Were it taken for equal, the comparison could not fail.
        raise _failure("read what is different between the database and schema.prisma", done.stdout, done.returncode)
    left_alone = [found.group(1) for found in map(_OUR_INDEX.fullmatch, statements) if found]
    differences = [statement[:_SHOWN] for statement in statements if not _OUR_INDEX.fullmatch(statement)]
    return {"changed": False, "equal": not differences, "differences": differences, "left_alone": left_alone}


def script(release: Release, url: str) -> dict[str, Any]:
    """Return the SQL that leads from the database to schema.prisma, as ``prisma migrate diff --script`` writes it.

    Returns:
        ``script``; empty where nothing is to be done.

    Raises:
        UnifiedUserError: the comparison was not possible.
    """
    return {"changed": False, "script": _script_in(_diff(release, url, "--script").stdout)}


def _script_in(output: str) -> str:
    """Return the script that Prisma printed, which begins with a comment of its own; lines about the configuration come before it."""
    found = re.search(r"^-- [A-Z].*", output, re.MULTILINE | re.DOTALL)
    text = found.group().rstrip() + "\n" if found else ""
    return "" if text.startswith("-- This is an empty migration") else text


def _diff(release: Release, url: str, *form: str) -> subprocess.CompletedProcess:
    """Compare the database with schema.prisma.

    A release whose prisma.config.ts has a driver adapter cannot compare with the database at once; there the database's models
    are pulled and compared instead.
    """
    against = ("--to-schema-datamodel", release.schema, *form)
    done = release.run(url, "migrate", "diff", "--from-schema-datasource", release.schema, *against)
    if done.returncode == 1 and _NO_DATASOURCE in done.stdout:
        pulled = release.run(url, "db", "pull", "--print", "--schema", release.schema)
        if pulled.returncode and "P4001" in pulled.stdout:
            # There is nothing in the database to pull.
            done = release.run(url, "migrate", "diff", "--from-empty", *against)
        elif pulled.returncode:
            raise _failure("read the database's models with Prisma", pulled.stdout, pulled.returncode)
        else:
            done = _compare_models(release, url, pulled.stdout, against)
    if done.returncode not in (0, 2):
        raise _failure("compare the database with schema.prisma", done.stdout, done.returncode)
    return done


def _compare_models(release: Release, url: str, printed: str, against: tuple[str, ...]) -> subprocess.CompletedProcess:
    """Compare with models that ``db pull`` has printed, among lines about its own."""
    models = printed[printed.index("generator ") :].split("// *** WARNING")[0]
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "pulled.prisma")
        with open(path, "w", encoding="utf-8") as file:
            file.write(models)
        return release.run(url, "migrate", "diff", "--from-schema-datamodel", path, *against)


def _failure(action: str, output: str, status: int) -> UnifiedUserError:
    """Turn what a failed command printed into an error, without the rows and values in it."""
    code = next(iter(_CODE.findall(output)), "")
    migration = next((name for names in _MIGRATION.findall(output) for name in names if name), "")
    sqlstate = next((state for states in _SQLSTATE.findall(output) for state in states if state), "")
    message = next(iter(_MESSAGE.findall(output)), "")
    if sqlstate[:2] in ("", "22", "P0"):
        # Values stand in quotation marks, and so do names; without a code it is not to be known which. The server's log has them.
        message = _QUOTED.sub('"…"', message)
    if any(word in output for word in _LOCK) and not migration:
        cause, step = "another deployment holds Prisma's lock", "Wait for it to end, then run the same command again"
        code = code or "P1002"
    elif not code and _PANIC.search(output):
        cause = "the engine that this release uses ended with a panic"
        step = (
            "Engines of driver adapters do so on PostgreSQL 18 (prisma-engines, pull request 5819): update Prisma, or take the adapter out of"
            " prisma.config.ts; schema_deploy_compare: false leaves the comparison out"
        )
    elif code in _EXPLANATIONS:
        cause, step = _EXPLANATIONS[code]
    elif migration:
        cause, step = _EXPLANATIONS["P3018"]
        code = "P3018"
    else:
        cause, step = f"it ended with status {status}", "Run the same command in the release directory by hand to see what it says"
    named = ", ".join(part for part in (code and f"Prisma's {code}", migration, message, sqlstate) if part)
    return UnifiedUserError(action, f"{cause}{f' ({named})' if named else ''}", step, code=code, failed_migration=migration)
