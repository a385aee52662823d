"""Runs `ansible-test sanity` on a copy of the checkout's tracked files, and reports each of its tests.

ansible-test wants to be inside `ansible_collections/<namespace>/<name>`, and wants pip's installer from a host of its own;
here it gets a small stand-in that uses the pip every Python carries. What it installs stays in .cache and is used again.

    tools/run_sanity.py --junit-directory DIRECTORY
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".cache" / "ansible-test"

# Called as get-pip.py would be: options, then requirements. The versions asked for are the ones installed.
GET_PIP = '''\
"""Stand-in for get-pip.py: installs pip from the copy that comes with Python, then what was asked for."""
import subprocess
import sys

wanted = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=subprocess.DEVNULL)
subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *wanted], check=True)
'''


def tracked_files(root: Path = ROOT) -> list[str]:
    """The files git knows, that exist; without a repository (an unpacked archive) there is nothing to go by."""
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], check=True, capture_output=True).stdout
    return [name for name in listed.decode().split("\0") if name and os.path.lexists(root / name)]


def copy_tracked(target: Path, root: Path = ROOT) -> Path:
    """Copies the tracked files, symlinks as symlinks, to <target>/ansible_collections/<namespace>/<name>; returns that path."""
    metadata = yaml.safe_load((root / "galaxy.yml").read_text())
    collection = target / "ansible_collections" / metadata["namespace"] / metadata["name"]
    for name in tracked_files(root):
        (collection / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, collection / name, follow_symlinks=False)
    return collection


def prepare_home() -> dict[str, str]:
    """An own home for ansible-test, with the stand-in where it looks for get-pip; returns the environment to run it in."""
    cache = HOME / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    version = re.search(r"pip='([0-9.]+)'", _requirements_source())
    if version is None:
        raise RuntimeError("Failed to prepare ansible-test: its pip version is not where it used to be. Adapt tools/run_sanity.py.")
    (cache / f"get_pip_{version[1].replace('.', '_')}.py").write_text(GET_PIP)
    environment = {**os.environ, "HOME": str(HOME)}
    # pip's settings of the user (an index, certificates) stay valid.
    environment.setdefault("XDG_CONFIG_HOME", str(Path.home() / ".config"))
    environment["PATH"] = os.pathsep.join(program_directories())
    environment["PIP_QUIET"] = "1"
    environment.pop("ANSIBLE_CONFIG", None)
    return environment


def program_directories() -> list[str]:
    """PATH for ansible-test, which takes any pythonX.Y it finds there for one that works.

    Directories with one that does not (the stand-ins of a version manager) are left out, what such a manager really has
    installed is put in: the collection's modules are to run on Pythons much older than the one this runs on.
    """
    managed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [str(Path(sys.executable).parent), *map(str, sorted(managed.glob("*/bin"))), *os.environ["PATH"].split(os.pathsep)]
    return [directory for directory in dict.fromkeys(candidates) if all(map(_runs, Path(directory).glob("python3.[0-9]*")))]


def _runs(program: Path) -> bool:
    if not re.fullmatch(r"python3\.\d+", program.name):
        return True
    return subprocess.run([str(program), "-c", ""], check=False, capture_output=True).returncode == 0


def _requirements_source() -> str:
    import ansible_test

    return (Path(next(iter(ansible_test.__path__))) / "_internal" / "python_requirements.py").read_text()


def link_dependencies(collection: Path) -> None:
    """Puts the collections ours depends on beside it, for the tests that import."""
    installed = ROOT / ".collections" / "ansible_collections"
    for name in yaml.safe_load((collection / "galaxy.yml").read_text())["dependencies"]:
        namespace, short = name.split(".")
        beside = collection.parent.parent / namespace
        beside.mkdir(exist_ok=True)
        shutil.copytree(installed / namespace / short, beside / short)


def run(root: Path, junit_directory: Path, tests: list[str]) -> int:
    """Runs all sanity tests, or those named, on `root`'s tracked files; JUnit files go to `junit_directory`."""
    with tempfile.TemporaryDirectory(prefix="sanity-") as folder:
        collection = copy_tracked(Path(folder), root)
        link_dependencies(collection)
        command = ["ansible-test", "sanity", "--local", "--python", "default", "--junit", "--color", "no"]
        for test in tests:
            command += ["--test", test]
        # Without a repository around it, ansible-test looks at all files.
        done = subprocess.run(command, cwd=collection, env=prepare_home(), check=False)
        junit_directory.mkdir(parents=True, exist_ok=True)
        for report in (collection / "tests" / "output" / "junit").glob("*.xml"):
            shutil.copy2(report, junit_directory / report.name)
    return done.returncode


def main() -> int:
    """The program: returns ansible-test's exit status."""
    parser = argparse.ArgumentParser(description="Run ansible-test sanity on the tracked files.")
    parser.add_argument("--junit-directory", type=Path, default=ROOT / ".cache" / "test-output" / "sanity")
    parser.add_argument("--root", type=Path, default=ROOT, help="checkout to test (default: this one)")
    parser.add_argument("tests", nargs="*", help="sanity tests to run (default: all)")
    arguments = parser.parse_args()
    return run(arguments.root, arguments.junit_directory, arguments.tests)


if __name__ == "__main__":
    sys.exit(main())
