# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Places for copies of backups, with a look behind their backs, and the servers that some of them need."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from pathlib import Path

from tests.integration.backup_support import wait_until

BUCKET = "vault"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(command: list[str], port: int, log: Path, **options):
    """A server on a loopback port for the length of the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options)

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        try:
            wait_until(answers)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)


class FarEnd:
    """A place and a look behind its back.

    Attributes:
        options: the entry for the list of copies.
        label: what the place is called.
    """

    def __init__(self, options: dict, label: str, folder: Path | None = None, client=None):
        self.options, self.label, self.folder, self.client = options, label, folder, client

    def stored(self) -> dict[str, bytes]:
        """Every file there by its path below the place, hidden ones too."""
        if self.folder:
            return {str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        keys = [entry["Key"] for entry in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]
        prefix = self.options["path"] + "/"
        return {key.removeprefix(prefix): self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys if key.startswith(prefix)}

    def put(self, name: str, content: bytes | None) -> None:
        """Replace a file there, or remove it."""
        if self.folder:
            (self.folder / name).unlink() if content is None else (self.folder / name).write_bytes(content)
        elif content is None:
            self.client.delete_object(Bucket=BUCKET, Key=f"{self.options['path']}/{name}")
        else:
            self.client.put_object(Bucket=BUCKET, Key=f"{self.options['path']}/{name}", Body=content)
