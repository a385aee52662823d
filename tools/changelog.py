"""Writes CHANGELOG.rst and changelogs/changelog.yaml out of changelogs/fragments, for the version in galaxy.yml.

With --check nothing is written; the exit status tells whether both are up to date. The date of a release once noted stays.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import run_sanity

WRITTEN = ("CHANGELOG.rst", "changelogs/changelog.yaml")


def generate(folder: Path, root: Path) -> Path:
    """Has antsibull-changelog write both files in a copy of the checkout, where it also finds our plugins' documentation."""
    collection = run_sanity.copy_tracked(folder, root)
    for fragment in (root / "changelogs" / "fragments").glob("*.yml"):
        shutil.copy2(fragment, collection / "changelogs" / "fragments" / fragment.name)
    command = [str(Path(sys.executable).parent / "antsibull-changelog"), "release", "--reload-plugins", "--refresh"]
    if (root / WRITTEN[1]).exists():
        shutil.copy2(root / WRITTEN[1], collection / WRITTEN[1])
        command.append("--update-existing")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    subprocess.run(command, cwd=collection, env={**os.environ, "PATH": path}, check=True, stdout=subprocess.DEVNULL)
    return collection


def main(argv: list[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is out of date")
    parser.add_argument("--root", type=Path, default=run_sanity.ROOT)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="changelog-") as folder:
        try:
            collection = generate(Path(folder), arguments.root)
        except subprocess.CalledProcessError as error:
            print(f"Failed to write the changelog: antsibull-changelog ended with {error.returncode}. See what it says above.")
            return 1
        same = all(
            (arguments.root / name).exists() and filecmp.cmp(collection / name, arguments.root / name, shallow=False) for name in WRITTEN
        )
        if arguments.check:
            print("the changelog is up to date" if same else "CHANGELOG.rst is out of date. Run make changelog.")
            return 0 if same else 1
        for name in WRITTEN:
            shutil.copy2(collection / name, arguments.root / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
