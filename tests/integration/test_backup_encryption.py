# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Encrypted backups: nothing readable on disk, proven with the identity, and every way in which a key or a file can be wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import subprocess
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._backup_files import sha256_of_file, sha256_of_files

from tests.app.migration_history import MIGRATIONS
from tests.integration.backup_support import databases, flip, refuse, restore, succeed, visible, wait_until
from tests.module_process import ModuleProcess, run_module


@pytest.fixture
def encrypted(site, identity, legacy_reference_database):
    """Options (with the identity) and result of an encrypted backup of the reference case."""
    path, recipient = identity()
    options = site(legacy_reference_database)
    taken = succeed(run_module("database_backup", {**options, "encryption_recipients": [recipient]}))
    return {**options, "decryption_identity_file": path}, taken


def redo_manifest(taken: dict) -> None:
    """Make the manifest agree with the files as they are now, as somebody would who wants to pass an altered dump off."""
    manifest = json.loads(Path(taken["manifest"]).read_text())
    for file in manifest["files"]:
        path = Path(taken["path"], file["name"])
        file.update(size=path.stat().st_size, sha256=sha256_of_file(str(path)))
    manifest["sha256"] = sha256_of_files(manifest["files"])
    Path(taken["manifest"]).write_text(json.dumps(manifest))


def test_an_encrypted_backup_is_proven_and_readable_by_nobody_else(encrypted, admin, legacy_reference_database):
    options, taken = encrypted
    assert taken["encrypted"] and taken["format"] == "custom"
    names = {path.name: path for path in Path(taken["path"]).iterdir()}
    assert sorted(names) == ["database.dump.age", "globals.sql.age", "manifest.json"]
    for name in ("database.dump.age", "globals.sql.age"):
        assert names[name].read_bytes().startswith(b"age-encryption.org/v1\n") and stat.S_IMODE(names[name].stat().st_mode) == 0o600
    manifest = json.loads(names["manifest.json"].read_text())
    assert manifest["encryption"]["recipients"] and manifest["encryption"]["method"] == "age"

    tested = succeed(restore(options, taken))
    assert tested["rows"] == taken["rows"] > 500 and tested["backup"]["sha256"] == taken["sha256"]
    proof = json.loads(Path(tested["proof"]).read_text())
    assert proof["sha256"] == taken["sha256"]
    assert f"{legacy_reference_database}_restore_test" not in databases(admin)
    kept = succeed(restore(options, taken, state="restored"))
    admin.execute(f'DROP DATABASE "{kept["target"]}"')


@pytest.mark.one_major
def test_any_of_several_identities_opens_it(site, identity, legacy_reference_database):
    (first, one), (second, two) = identity("first"), identity("second")
    options = site(legacy_reference_database, encryption_recipients=[one, two])
    taken = succeed(run_module("database_backup", options))
    options.pop("encryption_recipients")
    for path in (first, second):
        assert succeed(restore({**options, "decryption_identity_file": path}, taken))["proven"]


@pytest.mark.one_major
def test_plaintext_is_never_on_a_disk(site, identity, legacy_reference_database, tmp_path):
    """With age held up, pg_dump has filled the pipe and waits: what it has open by then is all that it writes to."""
    program = subprocess.run(["which", "age"], check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path / "bin").mkdir()
    wrapper, go = tmp_path / "bin" / "age", tmp_path / "go"
    wrapper.write_text(f'#!/bin/sh\n[ -p /dev/stdin ] && until [ -e {go} ]; do sleep 0.05; done\nexec {program} "$@"\n')
    wrapper.chmod(0o755)
    options = site(legacy_reference_database, encryption_recipients=[identity()[1]], compression_level=0)
    process = ModuleProcess("database_backup", options, environment={"PATH": f"{wrapper.parent}:{os.environ['PATH']}"})

    def opened() -> dict[str, str]:
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words, wait = command.read_bytes(), (command.parent / "wchan").read_text()
                if b"--snapshot=" in words and options["login_db"].encode() in (command.parent / "environ").read_bytes() and "pipe" in wait:
                    return {entry.name: os.readlink(entry) for entry in (command.parent / "fd").iterdir()}
        return {}

    found = wait_until(opened)
    (workplace,) = (Path(options["directory"], name) for name in visible(options))
    written = {path.name: path.stat().st_size for path in workplace.iterdir()}
    go.touch()
    taken = succeed(process.result())
    assert found["1"].startswith("pipe:") and found["2"].endswith("(deleted)")
    # The workplace itself is open for its lock.
    assert [name for name in found.values() if name.startswith(options["directory"])] == [str(workplace)]
    assert written == {"database.dump.age": 0}
    assert taken["size_bytes"] > 100_000


def test_a_wrong_or_missing_key_is_refused_before_anything_is_restored(encrypted, identity, admin):
    options, taken = encrypted
    before = databases(admin)
    refuse(restore({**options, "decryption_identity_file": identity("other")[0]}, taken), "no identity matched", "decryption_identity_file")
    refuse(restore({**options, "decryption_identity_file": "/nowhere/identity.txt"}, taken), "is not there or may not be read")
    options.pop("decryption_identity_file")
    refuse(restore(options, taken), "encrypted and no identity file was named", "backup_decryption_identity_file")
    assert succeed(restore(options, taken, state="verified"))["backup"]["proven"] is False
    assert databases(admin) == before


@pytest.mark.one_major
def test_a_file_that_is_no_identity_is_refused_without_its_content(encrypted, tmp_path, secret):
    options, taken = encrypted
    value = secret("not-an-identity")
    (tmp_path / "notes.txt").write_text(value + "\n")
    message = refuse(restore({**options, "decryption_identity_file": str(tmp_path / "notes.txt")}, taken), "identity")
    assert value not in message


@pytest.mark.one_major
@pytest.mark.parametrize("where", ["header", "first", "middle", "last", "cut"])
def test_altered_ciphertext_is_noticed_even_where_the_manifest_agrees_with_it(encrypted, admin, where):
    options, taken = encrypted
    dump = Path(taken["path"], "database.dump.age")
    size = dump.stat().st_size
    if where == "cut":
        os.truncate(dump, size - 20)
    else:
        flip(dump, {"header": 60, "first": 400, "middle": size // 2, "last": size - 1}[where])
    refuse(restore(options, taken), "database.dump.age", "bytes instead of" if where == "cut" else "was altered")
    redo_manifest(taken)
    before = databases(admin)
    refuse(restore(options, taken), "database.dump.age")
    assert databases(admin) == before and not Path(taken["path"], "proof.json").exists()


@pytest.mark.one_major
def test_a_secret_key_among_the_recipients_is_refused_and_not_shown(site, identity, legacy_reference_database):
    path, unused = identity()
    (key,) = re.findall(r"AGE-SECRET-KEY-\w+", Path(path).read_text())
    options = site(legacy_reference_database, encryption_recipients=[key])
    refused = run_module("database_backup", options)
    assert key not in refuse(refused, "number 1 of encryption_recipients is no public key") and key not in json.dumps(refused)
    refuse(run_module("database_backup", {**options, "encryption_recipients": ["age1" + "q" * 58]}), "age: error")
    assert visible(options) == []


@pytest.mark.one_major
def test_directory_format_is_refused_and_a_missing_program_named(site, identity, legacy_reference_database, tmp_path):
    unused, recipient = identity()
    options = site(legacy_reference_database, encryption_recipients=[recipient])
    refuse(run_module("database_backup", {**options, "format": "directory"}), "plaintext must never be there", "Set format to auto or custom")
    refuse(run_module("database_backup", options, environment={"PATH": str(tmp_path)}), "find the program age", "Install the package age")
    assert visible(options) == []


@pytest.mark.one_major
def test_the_rehearsal_opens_it_with_the_identity(encrypted):
    options, taken = encrypted
    succeed(restore(options, taken))
    rehearsal = {**options, "migrations_path": str(MIGRATIONS)}
    assert succeed(run_module("unified_user_rehearsal", rehearsal))["backup"]["sha256"] == taken["sha256"]
    rehearsal.pop("decryption_identity_file")
    refuse(run_module("unified_user_rehearsal", rehearsal), "no identity file was named")
