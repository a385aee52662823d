# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Copies at further places: a mounted file system, a host behind a real sshd, a bucket of an S3-compatible server."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from tests.integration.backup_support import databases, flip, folder_in_memory, refuse, restore, succeed, visible, wait_until
from tests.module_process import run_module

KINDS = ["path", "ssh", "s3"]
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
def backup(site, legacy_reference_database):
    """The options for, and result of, a backup of the reference case."""
    options = site(legacy_reference_database)
    return options, succeed(run_module("database_backup", options))


def copy(taken: dict, *places: FarEnd, **changes) -> dict:
    return run_module("database_backup_copy", {"backup": taken["path"], "copies": [place.options for place in places], **changes})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.one_major
def test_a_copy_is_whole_compared_proven_and_enough_without_the_original(backup, far_end, admin, kind):
    options, taken = backup
    place, name = far_end(kind), Path(taken["path"]).name
    planned = succeed(copy(taken, place, _ansible_check_mode=True))
    assert planned["changed"] and planned["planned"] and place.stored() == {}
    done = succeed(copy(taken, place))
    assert done["changed"] and [entry["place"] for entry in done["copies"]] == [place.label]
    original = {f"{name}/{path.relative_to(taken['path'])}": path.read_bytes() for path in Path(taken["path"]).rglob("*") if path.is_file()}
    assert place.stored() == original
    assert succeed(copy(taken, place))["changed"] is False

    tested = succeed(restore(options, taken, copies=[place.options]))
    assert tested["backup"]["path"] == f"{place.label}/{name}" and tested["backup"]["sha256"] == taken["sha256"]
    assert tested["proof_at"] == [taken["path"], place.label]
    proofs = [json.loads(content) for content in (Path(taken["path"], "proof.json").read_bytes(), place.stored()[f"{name}/proof.json"])]
    assert proofs[0] == proofs[1] and proofs[0]["sha256"] == taken["sha256"] and proofs[0]["restored_from"] == f"{place.label}/{name}"
    assert proofs[0]["duration_ms"] >= proofs[0]["restore_ms"] > 0
    assert visible(options) == [name], "nothing that was brought back stays"

    shutil.rmtree(options["directory"])
    again = succeed(run_module("database_restore", {**options, "state": "restored", "copies": [place.options]}))
    assert again["backup"]["path"] == f"{place.label}/{name}" and again["target"] in databases(admin)
    admin.execute(f'DROP DATABASE "{again["target"]}"')


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("path", "altered"), ("path", "truncated"), ("path", "empty"), ("path", "manifest"),
        ("ssh", "altered"), ("ssh", "missing"), ("ssh", "swapped"), ("s3", "altered"), ("s3", "missing"),
    ],
)  # fmt: skip
@pytest.mark.one_major
def test_damage_at_the_far_end_is_noticed_before_anyone_relies_on_it(backup, far_end, admin, kind, damage):
    options, taken = backup
    place = far_end(kind)
    succeed(copy(taken, place))
    before, stored = databases(admin), place.stored()
    one, other = [name for name, unused in sorted(stored.items(), key=lambda item: -len(item[1])) if "/dump/" in name][:2]
    content = stored[one]
    if damage == "altered":
        place.put(one, content[:50] + bytes([content[50] ^ 1]) + content[51:])
    elif damage == "swapped":
        place.put(one, stored[other])
        place.put(other, content)
    elif damage == "manifest":
        name = next(name for name in stored if name.endswith("manifest.json"))
        place.put(name, stored[name].replace(b'"rows": 158', b'"rows": 159'))
    else:
        place.put(one, {"truncated": content[:-1], "empty": b"", "missing": None}[damage])

    words = ["the restored copy is not what the manifest says"] if damage == "manifest" else ["dump/"]
    refuse(restore(options, taken, copies=[place.options]), *words)
    message = refuse(copy(taken, place), place.label)
    assert ("another backup of that name" in message) == (damage == "manifest")
    assert databases(admin) == before and not any(name.endswith("proof.json") and b"true" in text for name, text in place.stored().items())
    # The original is as good as it was.
    assert succeed(restore(options, taken, copies=[place.options], source="directory"))["proven"]


@pytest.mark.one_major
def test_the_last_copy_is_taken_unless_told_otherwise(backup, far_end):
    options, taken = backup
    places = [far_end("path"), far_end("ssh")]
    copies = [place.options for place in places]
    assert [entry["place"] for entry in succeed(copy(taken, *places))["copies"]] == [place.label for place in places]
    name = Path(taken["path"]).name
    for source, path in [("last", f"{places[1].label}/{name}"), (places[0].label, f"{places[0].label}/{name}"), ("directory", taken["path"])]:
        tested = succeed(restore(options, taken, copies=copies, source=source))
        assert tested["backup"]["path"] == path
        assert tested["proof_at"] == [taken["path"], *(place.label for place in places)]
    refuse(restore(options, taken, copies=copies, source="ssh nowhere:/x"), "no copy is called so", places[0].label)


@pytest.mark.parametrize("kind", ["ssh", "s3"])
@pytest.mark.one_major
def test_limits_hold_at_every_place(backup, site, far_end, legacy_reference_database, kind):
    options, first = backup
    place, taken = far_end(kind), [first]
    copies = {"copies": [place.options]}
    for number in range(3):
        if number:
            taken.append(succeed(run_module("database_backup", options)))
        succeed(copy(taken[-1], place))
        if number < 2:
            succeed(restore(options, taken[-1], **copies))
    names = [Path(entry["path"]).name for entry in taken]
    limits = {"directory": options["directory"], "database": legacy_reference_database, "keep_count": 1, **copies}
    planned = succeed(run_module("database_backup_retention", {**limits, "_ansible_check_mode": True}))
    assert [entry["path"] for entry in planned["copies"][0]["removed"]] == [f"{place.label}/{names[0]}"]
    assert {name.split("/")[0] for name in place.stored()} == set(names)
    done = succeed(run_module("database_backup_retention", limits))
    assert done["changed"] and {name.split("/")[0] for name in place.stored()} == set(names[1:]) == set(visible(options))
    assert [entry["reason"] for entry in done["copies"][0]["kept"]] == ["no newer one is proven", "the newest proven one"]
    assert succeed(run_module("database_backup_retention", limits))["changed"] is False


@pytest.mark.one_major
def test_a_directory_where_nothing_is_mounted_is_refused(backup, tmp_path):
    taken = backup[1]
    refuse(run_module("database_backup_copy", {"backup": taken["path"], "copies": [{"kind": "path", "path": str(tmp_path / "none")}]}), "no such directory")
    (tmp_path / "mnt").mkdir()
    place = FarEnd({"kind": "path", "path": str(tmp_path / "mnt")}, "", tmp_path / "mnt")
    refuse(copy(taken, place), "on the same file system as the backup", "allow_same_filesystem")
    place.options["allow_same_filesystem"] = True
    assert succeed(copy(taken, place))["changed"]
    refuse(copy(taken, place, place), "names it twice")


@pytest.mark.one_major
def test_a_host_that_cannot_be_logged_in_to_is_explained(backup, far_end, tmp_path):
    taken, place = backup[1], far_end("ssh")
    for change, words in [
        ({"port": free_port()}, ["ssh: ", "refused"]),
        ({"known_hosts_file": str(tmp_path / "none")}, ["ssh: ", "Host key verification failed"]),
        ({"identity_file": str(tmp_path / "none")}, ["ssh: ", "Permission denied"]),
        ({"path": str(tmp_path / "none")}, ["Make the directory there"]),
        ({"path": "relative"}, ["not absolute"]),
        ({"host": "-oProxyCommand=true"}, ["characters that no host"]),
    ]:
        refuse(copy(taken, FarEnd({**place.options, **change}, "")), *words)
    assert place.stored() == {}


@pytest.mark.one_major
def test_a_bucket_that_cannot_be_written_to_is_explained(backup, far_end):
    taken, place = backup[1], far_end("s3")
    refuse(copy(taken, FarEnd({**place.options, "bucket": "nobodys"}, "")), "NoSuchBucket", "Check bucket, endpoint_url, region")
    refuse(copy(taken, FarEnd({**place.options, "profile": "nobody"}, "")), "profile")
    assert place.stored() == {}


@pytest.mark.one_major
def test_what_rots_here_does_not_spread(backup, far_end):
    taken, place = backup[1], far_end("ssh")
    flip(next(Path(taken["path"], "dump").glob("*.gz")), 40)
    refuse(copy(taken, place), "was altered")
    assert place.stored() == {}


@pytest.mark.one_major
def test_what_a_killed_copy_left_is_replaced(backup, far_end):
    taken, place = backup[1], far_end("ssh")
    left = place.folder / f".{Path(taken['path']).name}.partial" / "dump"
    left.mkdir(parents=True)
    (left / "half.dat").write_bytes(b"half")
    old = place.folder / f".{Path(taken['path']).name[:-16]}20200101T000000Z.partial"
    old.mkdir()
    os.utime(old, (0, 0))
    other = place.folder / ".another-20200101T000000Z.partial"
    other.mkdir()
    os.utime(other, (0, 0))
    succeed(copy(taken, place))
    assert {entry.name for entry in place.folder.iterdir()} == {Path(taken["path"]).name, other.name}
    assert not any("half" in name for name in place.stored())
