# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What several tests start from."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import boto3
import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database

from tests.integration.backup_support import BIG_ROWS, folder_in_memory
from tests.integration.far_ends import BUCKET, FarEnd, free_port, server
from tests.module_process import connection_options
from tests.seeded_secrets import register_secrets


@pytest.fixture
def admin(cluster):
    """A session on another database than those that are backed up."""
    with contextlib.closing(Database(cluster.connect())) as session:
        yield session


@pytest.fixture
def site(cluster, tmp_path):
    """Options of both modules for a database: `site(name, **changes)`."""

    def options(database: str, **changes) -> dict:
        return {
            **connection_options(cluster, database),
            "directory": str(tmp_path / "backups"),
            "bin_dir": str(Path(cluster.bin("pg_dump")).parent),
            **changes,
        }

    return options


@pytest.fixture
def big_database(cluster, database):
    """A database whose dump and restore take long enough to be disturbed."""
    with contextlib.closing(Database(cluster.connect(database))) as session:
        session.execute(
            "CREATE TABLE ledger (id bigint PRIMARY KEY, t text, at timestamptz DEFAULT now());"
            f"INSERT INTO ledger SELECT i, md5(i::text) || md5((i * 7)::text) FROM generate_series(1, {BIG_ROWS}) AS i;"
            "CREATE INDEX ON ledger (t); CREATE INDEX ON ledger (at, t)"
        )
    return database


@pytest.fixture
def small_disk():
    """Makes directories with little room: small_disk(kilobytes). Skipped, and counted as skipped, where mounting is refused."""

    def make(kilobytes: int, owner: int = 0) -> Path:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unified_user-small-")))
        choices = f"size={kilobytes}k,mode=0700,uid={owner}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", choices, "tmpfs", str(folder)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("mounting a small file system is refused here")
        stack.callback(subprocess.run, ["umount", "--lazy", str(folder)], check=True)
        return folder

    with contextlib.ExitStack() as stack:
        yield make


@pytest.fixture(scope="session")
def sshd(tmp_path_factory):
    """A host behind SSH: options of a place without its path. The far end is this machine."""
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = free_port()
    settings = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host_key", "AuthorizedKeysFile": folder / "user_key.pub",
        "PidFile": "none", "StrictModes": "no", "UsePAM": "no", "PasswordAuthentication": "no", "PermitRootLogin": "yes",
    }  # fmt: skip
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    kind, key = (folder / "host_key.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with server(["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd_config")], port, folder / "log"):
        yield {
            "kind": "ssh", "host": "127.0.0.1", "port": port, "user": getpass.getuser(),
            "identity_file": str(folder / "user_key"), "known_hosts_file": str(folder / "known_hosts"),
        }  # fmt: skip


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """An S3-compatible server with a bucket: options of a place, and a client to look behind its back."""
    folder, port = tmp_path_factory.mktemp("s3"), free_port()
    with server([str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)], port, folder / "log"):
        os.environ.update(AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_DEFAULT_REGION="us-east-1")
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        client.create_bucket(Bucket=BUCKET)
        yield {"kind": "s3", "bucket": BUCKET, "endpoint_url": f"http://127.0.0.1:{port}", "region": "us-east-1"}, client


@pytest.fixture
def far_end(request, tmp_path):
    """Makes places by kind: far_end("ssh")."""
    with contextlib.ExitStack() as stack:

        def make(kind: str) -> FarEnd:
            if kind == "path":
                folder = Path(stack.enter_context(folder_in_memory()))
                return FarEnd({"kind": "path", "path": str(folder)}, f"path {folder}", folder)
            if kind == "ssh":
                folder = tmp_path / "far end's folder"
                folder.mkdir()
                options = {**request.getfixturevalue("sshd"), "path": str(folder)}
                return FarEnd(options, f"ssh {options['user']}@127.0.0.1:{folder}", folder)
            options, client = request.getfixturevalue("s3")
            return FarEnd({**options, "path": tmp_path.name}, f"s3 {BUCKET}/{tmp_path.name}", client=client)

        yield make


@pytest.fixture
def identity(tmp_path):
    """Makes key pairs: identity("name") returns the file with the secret key, and the public key."""

    def make(name: str = "identity") -> tuple[str, str]:
        path = tmp_path / f"{name}.txt"
        subprocess.run(["age-keygen", "-o", str(path)], check=True, capture_output=True)
        register_secrets(re.findall(r"AGE-SECRET-KEY-\w+", path.read_text()))
        answer = subprocess.run(["age-keygen", "-y", str(path)], check=True, capture_output=True, text=True)
        return str(path), answer.stdout.strip()

    return make
