"""Fills .collections: the collections of requirements/collections.yml, and the checkout itself as a symlink.

They come from Galaxy when it answers quickly, else out of the pinned `ansible` wheel, which carries the same releases.
Run with the interpreter of .venv. Does nothing when all is in place.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
COLLECTIONS = ROOT / ".collections" / "ansible_collections"
GALAXY_SECONDS = 30


def wanted() -> dict[str, str]:
    """Name -> version, from requirements/collections.yml."""
    listed = yaml.safe_load((ROOT / "requirements" / "collections.yml").read_text())["collections"]
    return {entry["name"]: entry["version"] for entry in listed}


def installed_version(name: str) -> str | None:
    """The version of an installed collection, or None."""
    manifest = COLLECTIONS.joinpath(*name.split("."), "MANIFEST.json")
    try:
        return json.loads(manifest.read_text())["collection_info"]["version"]
    except (OSError, ValueError, KeyError):
        return None


def from_galaxy(missing: dict[str, str]) -> bool:
    """Installs from Galaxy; False when it does not answer in time or lacks a version."""
    command = [str(Path(sys.executable).parent / "ansible-galaxy"), "collection", "install", "--no-deps", "--timeout", "10"]
    command += ["--collections-path", str(COLLECTIONS.parent), *(f"{name}:{version}" for name, version in missing.items())]
    try:
        done = subprocess.run(command, capture_output=True, timeout=GALAXY_SECONDS, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def from_wheel(missing: dict[str, str]) -> None:
    """Unpacks just the missing collections out of the pinned `ansible` wheel."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
            + ["--require-hashes", "--requirement", str(ROOT / "requirements" / "collections.txt"), "--dest", folder],
            check=True,
        )
        (wheel,) = Path(folder).glob("ansible-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for name in missing:
                prefix = "ansible_collections/" + name.replace(".", "/") + "/"
                shutil.rmtree(COLLECTIONS.joinpath(*name.split(".")), ignore_errors=True)
                members = [member for member in archive.namelist() if member.startswith(prefix)]
                archive.extractall(COLLECTIONS.parent, members)


def link_checkout() -> None:
    """Makes the checkout importable and runnable as rnltlabs.unified_user."""
    link = COLLECTIONS / "rnltlabs" / "unified_user"
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(ROOT, link.parent)
    if link.is_symlink() and os.readlink(link) == target:
        return
    if link.is_symlink():
        link.unlink()
    link.symlink_to(target, target_is_directory=True)


def main() -> int:
    """Installs what is missing and says where it came from."""
    COLLECTIONS.mkdir(parents=True, exist_ok=True)
    missing = {name: version for name, version in wanted().items() if installed_version(name) != version}
    if missing:
        source = "Galaxy"
        if not from_galaxy(missing):
            source = "the pinned ansible wheel (Galaxy did not answer)"
            from_wheel(missing)
        wrong = [name for name, version in missing.items() if installed_version(name) != version]
        if wrong:
            print(f"Failed to install {', '.join(wrong)}: another version came than requirements/collections.yml asks for. "
                  "Make requirements/collections.yml and collections.in name the same release.", file=sys.stderr)
            return 1
        print(f"setup: {', '.join(f'{name} {version}' for name, version in missing.items())} from {source}")
    link_checkout()
    return 0


if __name__ == "__main__":
    sys.exit(main())
