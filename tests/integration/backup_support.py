# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What tests of backups do over and over: judge a module's result, restore, look at a directory, damage a file."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from pathlib import Path

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database

from tests.module_process import run_module

BIG_ROWS = 200_000


def succeed(result: dict) -> dict:
    assert not result.get("failed"), result["msg"]
    return result


def refuse(result: dict, *words: str) -> str:
    """The message of a failure, which must hold the words and read as every message of ours does."""
    assert result.get("failed"), result
    message = result["msg"]
    assert message.startswith("Failed to ") and message.endswith("."), message
    for word in words:
        assert word in message, message
    return message


def restore(options: dict, result: dict, **changes) -> dict:
    keep = {key: value for key, value in options.items() if key not in ("format", "jobs")}
    return run_module("database_restore", {**keep, "backup": result["path"], **changes})


def databases(admin: Database) -> set[str]:
    return {row["datname"] for row in admin.rows("SELECT datname FROM pg_database")}


def visible(options: dict) -> list[str]:
    directory = Path(options["directory"])
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def wait_until(condition, seconds: float = 60):
    """Wait for a condition to hold; fails when it never does."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
    return found


def biggest(taken: dict) -> Path:
    files = json.loads(Path(taken["manifest"]).read_text())["files"]
    return Path(taken["path"], max(files, key=lambda file: file["size"])["name"])


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(content)


@contextlib.contextmanager
def folder_in_memory():
    """A directory on another file system than the temporary ones, for the length of the block."""
    folder = tempfile.mkdtemp(prefix="unified_user-test-", dir="/dev/shm")
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
