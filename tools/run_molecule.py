"""Runs Molecule scenarios on containers that end whatever happens.

Builds the hosts' image if it is missing, gives the run a directory of its own (keys, passwords, inventory, logs), runs
`molecule test` and removes containers, network and directory, also after a failure, Ctrl-C or a time-out. What a killed
run left behind is removed by the next one; containers end by themselves after half an hour.

    tools/run_molecule.py [SCENARIO ...] [--keep]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import host_image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.seeded_secrets import new_secret  # noqa: E402

PREFIX = "unified-user-test"
LIMIT_SECONDS = 20 * 60


def process_started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when there is none. Tells a process from a later one of its number."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def run_name() -> str:
    """A name for this process's containers and network that says which process they belong to."""
    return f"{PREFIX}-{os.getpid()}-{process_started(os.getpid())}"


def is_stale(name: str) -> bool:
    """Whether a container or network of that name was made by a run whose process is gone."""
    made = re.fullmatch(rf"{PREFIX}-(\d+)-(\d+)(-.*)?", name)
    return bool(made) and process_started(int(made[1])) != int(made[2])


def remove(containers: list[str], networks: list[str]) -> None:
    """Removes containers and networks at once; those that are gone already are no error."""
    if containers:
        host_image.run("podman", "rm", "--force", "--ignore", "--time", "0", *containers)
    for network in networks:
        host_image.run("podman", "network", "rm", network, check=False)


def listed(*command: str) -> list[str]:
    """The names of our containers or networks, as a podman command lists them."""
    return [name for name in host_image.run("podman", *command).stdout.split() if name.startswith(f"{PREFIX}-")]


def run_directory(run: str) -> Path:
    """Where a run keeps its keys, passwords, inventory and logs; the path of an SSH control socket below it stays short enough."""
    return Path(tempfile.gettempdir()) / run


def remove_where(wanted: Callable[[str], bool]) -> None:
    """Removes our containers, networks and directories whose name satisfies the predicate."""
    containers = listed("ps", "--all", "--format", "{{.Names}}")
    networks = listed("network", "ls", "--format", "{{.Name}}")
    remove([name for name in containers if wanted(name)], [name for name in networks if wanted(name)])
    for directory in run_directory("x").parent.glob(f"{PREFIX}-*"):
        if wanted(directory.name):
            shutil.rmtree(directory, ignore_errors=True)


def settings(run: str, image: str) -> dict[str, str]:
    """The environment of the run. Molecule calls ansible-playbook and pytest by name, so this interpreter's come first."""
    return {
        **host_image.environment(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MOLECULE_GLOB": "molecule/*/molecule.yml",
        "MOLECULE_EPHEMERAL_DIRECTORY": str(run_directory(run)),
        "UNIFIED_USER_RUN": run,
        "UNIFIED_USER_HOST_IMAGE": image,
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def stop(molecule: subprocess.Popen[bytes]) -> None:
    """Ends Molecule and what it started; it has a session of its own, so nothing else is hit."""
    for how, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
        if molecule.poll() is None:
            os.killpg(molecule.pid, how)
            try:
                molecule.wait(patience)
            except subprocess.TimeoutExpired:
                continue


def run_scenario(scenario: str, image: str, keep: bool) -> int:
    """Runs one scenario and returns Molecule's exit code, or 1 when it took too long."""
    run = run_name()
    directory = run_directory(run)
    directory.mkdir(mode=0o700)
    (directory / "cp").mkdir()
    # Of this run alone; registered, so that every output of it can be searched for it.
    (directory / "database_password").write_text(new_secret("molecule"), encoding="utf-8")
    command = [sys.executable, "-m", "molecule", "test", "--scenario-name", scenario, "--no-command-borders"]
    command += ["--destroy", "never" if keep else "always"]
    started = time.monotonic()
    molecule = subprocess.Popen(command, cwd=ROOT, env=settings(run, image), stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        code = molecule.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"Failed to finish scenario {scenario}: it ran for {LIMIT_SECONDS // 60} minutes. Look at its last task above.", file=sys.stderr)
        code = 1
    finally:
        stop(molecule)
        if keep:
            print(f"molecule: kept: ssh -F {directory}/ssh_config <host>; containers {run}-*")
        else:
            remove_where(lambda name: name == run or name.startswith(f"{run}-"))
    print(f"molecule: scenario {scenario} {'passed' if code == 0 else 'failed'} in {time.monotonic() - started:.0f} s", flush=True)
    return code


def interrupt(_signal, _frame) -> None:
    """Makes a termination end like Ctrl-C, through every finally."""
    raise KeyboardInterrupt


def main() -> int:
    """Runs the scenarios one after another; the exit code is that of the first that failed."""
    parser = argparse.ArgumentParser(description="Runs Molecule scenarios on containers that end whatever happens.")
    parser.add_argument("scenario", nargs="*", default=["default"], help="names of directories in molecule/ (default: default)")
    parser.add_argument("--keep", action="store_true", help="leave the containers running for a look; they end after half an hour")
    options = parser.parse_args()
    if options.keep and len(options.scenario) > 1:
        parser.error("--keep goes with one scenario")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    try:
        image = host_image.ensure()
        remove_where(is_stale)
        codes = [run_scenario(scenario, image, options.keep) for scenario in options.scenario]
    except host_image.ImageError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("molecule: interrupted; its hosts are gone", file=sys.stderr)
        return 130
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
