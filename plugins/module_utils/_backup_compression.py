# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which compression a dump gets: what was asked for, or the best that this very pg_dump was built with."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._client_programs import Program
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

#: Method -> its levels (PostgreSQL documentation, pg_dump, ``--compress``); level 0 of gzip is no compression.
_LEVELS = {"gzip": range(10), "lz4": range(1, 13), "zstd": range(1, 23)}
#: What ``auto`` tries, the best ratio of size to time first; every pg_dump has the last one.
_PREFERRED = ("zstd", "lz4", "gzip")
_FIRST_MAJOR = 16


@dataclass(frozen=True)
class Compression:
    """How a dump is compressed.

    Attributes:
        method: ``gzip``, ``lz4``, ``zstd`` or ``none``.
        level: as the method counts.
    """

    method: str
    level: int

    @property
    def argument(self) -> str:
        """The argument of pg_dump; a bare level, which older ones know as well, for gzip and none."""
        return f"--compress={self.level}" if self.method in ("gzip", "none") else f"--compress={self.method}:{self.level}"


def check_level(method: str, level: int) -> None:
    """Raise UnifiedUserError unless the method, if it is known already, has the level."""
    levels = _LEVELS.get(method)
    if levels and level not in levels:
        raise UnifiedUserError(
            "take a backup",
            f"compression_level is {level}, {method} has levels from {levels[0]} to {levels[-1]}",
            "Correct compression_level or set another compression",
        )


def choose_compression(program: Program, wanted: str, level: int) -> Compression:
    """Return the compression to dump with.

    Args:
        program: ``pg_dump``.
        wanted: ``gzip``, ``lz4``, ``zstd``, or ``auto`` for the first of zstd, lz4 and gzip that the program can.
        level: as the method counts.

    Raises:
        UnifiedUserError: the program cannot do what is wanted, or the method has no such level.
    """
    if level == 0 and wanted in ("auto", "gzip"):
        return Compression("none", 0)
    method = next(name for name in _PREFERRED if _is_able(program, name)) if wanted == "auto" else wanted
    if not _is_able(program, method):
        raise UnifiedUserError(
            f"compress a dump with {method}",
            f"{program.path} (PostgreSQL {program.version}) cannot: {_FIRST_MAJOR} is the first that may, if it was built with {method}",
            "Set compression to auto or gzip, or set bin_dir to the directory of a pg_dump that can",
            client_version=program.version,
        )
    check_level(method, level)
    return Compression(method, level)


def _is_able(program: Program, method: str) -> bool:
    """Whether a pg_dump was built with a compression: it says so before it connects, here to where no server can be."""
    if method == "gzip":
        return True
    if program.major < _FIRST_MAJOR:
        return False
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG") and name != "LC_ALL"}
    answer = subprocess.run(
        [program.path, "--format=custom", f"--compress={method}:1", "--host=/dev/null", "--no-password"],
        env={**environment, "LC_MESSAGES": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    return b"connection to server" in answer.stderr
