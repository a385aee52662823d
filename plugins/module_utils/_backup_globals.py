# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What belongs to the server and not to one database, and is needed on another server: roles, memberships, their settings."""

from __future__ import annotations

import os
import re
from typing import Any, Sequence

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_encryption import Encryption, writing
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._client_programs import (
    Program,
    database_keywords,
    find_program,
)
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

_NOT_ALLOWED = re.compile(r"permission denied for (?:view|table|relation|function|schema) [^\s;]+")


def find_globals_program(dump_program: Program) -> Program:
    """Find the ``pg_dumpall`` that came with a ``pg_dump``.

    Raises:
        UnifiedUserError: it is not there.
    """
    return find_program("pg_dumpall", dump_program.major, dump_program.major, os.path.dirname(dump_program.path), "bin_dir")


def dump_globals(
    program: Program, path: str, database: str, role: str | None, environment: dict[str, str], held: Sequence[int], encryption: Encryption | None
) -> dict[str, Any]:
    """Write roles, memberships, settings of roles and tablespaces, without passwords, as SQL beside the dump.

    Args:
        program: ``pg_dumpall``.
        path: the file to write.
        database: the database to be connected to.
        role: the role to switch to, None for none.
        environment: see `child_environment`.
        held: file descriptors that the program inherits.
        encryption: how to encrypt it, None for not at all.

    Returns:
        What the manifest says about it: ``included``, and why not where the role may not read them.

    Raises:
        UnifiedUserError: it went wrong for any other reason.
    """
    arguments = ["--globals-only", "--no-role-passwords", "--no-password", f"--database={database_keywords(database)}"]
    if role:
        arguments.append(f"--role={role}")
    with writing(program, arguments, environment, held, path, encryption) as child:
        complaint = child.wait()
    if not complaint:
        return {"included": True, "reason": None}
    refused = _NOT_ALLOWED.search(complaint)
    if not refused:
        raise UnifiedUserError(f"dump the roles beside database {database}", complaint, "Put the cause right and run the same command again")
    # Half of the roles would pass for all of them.
    if os.path.exists(path):
        os.unlink(path)
    return {"included": False, "reason": refused.group()}
