"""Runs every check and test of the project, stage by stage, and counts them: what `make test` is.

Each stage's output goes to the terminal (a lint check's only when it fails) and to .cache/test-output/<stage>.log. A failure
does not stop the stages after it. The last line is "N passed, N failed", with ", N skipped" when there are any, and the exit
status is 0 only when nothing failed. A stage whose files are missing, or that ran nothing, has failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent))

import embedded_postgres

ROOT = embedded_postgres.ROOT
BIN = Path(sys.executable).parent
OUTPUT = ROOT / ".cache" / "test-output"
PYTHON = sys.executable

#: Set in a thread whose output goes to its log only.
SILENT = threading.local()


@dataclasses.dataclass
class Tally:
    """What a stage counted, and what to tell at the end."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    skips: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.failures += other.failures
        self.skips += other.skips

    def fail(self, what: str) -> None:
        self.failed += 1
        self.failures.append(what)

    def skip(self, what: str) -> None:
        self.skipped += 1
        self.skips.append(what)

    def __str__(self) -> str:
        return f"{self.passed} passed, {self.failed} failed" + (f", {self.skipped} skipped" if self.skipped else "")


def environment() -> dict[str, str]:
    """The tools of .venv first, no colours in logs, output as it comes."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "ANSIBLE_NOCOLOR": "1", "ANSIBLE_FORCE_COLOR": "0"}


def run(command: list[str], log: Path, seconds: float, show: bool = True) -> int:
    """Runs a command with its output in a log (appended) and, line by line, on the terminal.

    Past `seconds` the command and all it started are ended; the result is then 124.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", start_new_session=True,
        )
        overdue = threading.Event()

        def end() -> None:
            overdue.set()
            for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 0)):
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    return
                try:
                    process.wait(patience)
                except subprocess.TimeoutExpired:
                    continue

        alarm = threading.Timer(seconds, end)
        alarm.start()
        try:
            for line in process.stdout:
                file.write(line)
                if show and not getattr(SILENT, "on", False):
                    print(line, end="", flush=True)
            status = process.wait()
        except BaseException:
            end()
            raise
        finally:
            alarm.cancel()
        if overdue.is_set():
            file.write(f"ended after {seconds:.0f} s\n")
            return 124
    return status


def read_junit(path: Path) -> Tally:
    """Counts of a JUnit file; one that is missing or unreadable counts as nothing."""
    tally = Tally()
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return tally
    for case in cases:
        name = "::".join(part for part in (case.get("classname"), case.get("name")) if part)
        # An error in a test's clean-up comes as a second case beside the one that passed.
        if case.find("failure") is not None or case.find("error") is not None:
            tally.fail(name)
        elif case.find("skipped") is not None:
            why = case.find("skipped")
            tally.skip(f"{name}: {why.get('message') or why.text or ''}")
        else:
            tally.passed += 1
    return tally


def judge(tally: Tally, status: int, what: str) -> Tally:
    """A command that failed without a failed test, or ran nothing, is a failure of its own."""
    if status != 0 and not tally.failed:
        reason = "it took too long and was ended" if status == 124 else f"exit status {status}"
        tally.fail(f"{what}: {reason}")
    elif not tally.passed and not tally.failed:
        tally.fail(f"{what}: nothing ran")
    return tally


# --- stages -----------------------------------------------------------------------------------------------------------


def shell_scripts() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z", "*.sh", ".ci/run"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def lint_checks() -> list[tuple[str, list[str]]]:
    """Name and command of each static check."""
    return [
        ("ruff", [str(BIN / "ruff"), "check", "."]),
        ("modules parse on Python 3.8", [str(BIN / "ruff"), "check", "--isolated", "--target-version", "py38", "--select", "E9", "plugins"]),
        ("yamllint", [str(BIN / "yamllint"), "--strict", "."]),
        ("ansible-lint", [str(BIN / "ansible-lint"), "--offline", "--strict", "--nocolor"]),
        ("shellcheck", [str(BIN / "shellcheck"), *shell_scripts()]),
        ("changelog fragments", [str(BIN / "antsibull-changelog"), "lint"]),
        ("changelog is up to date", [PYTHON, "tools/changelog.py", "--check"]),
        ("argument specifications", [PYTHON, "tools/check_argument_specs.py"]),
        ("names of variables", [PYTHON, "tools/check_variable_names.py"]),
        ("lengths of task files and modules", [PYTHON, "tools/check_task_files.py"]),
        ("tables in the roles' READMEs", [PYTHON, "tools/render_readmes.py", "--check"]),
    ]


def lint() -> Tally:
    """The static checks, each counted as one, then the built collection's own."""
    tally = Tally()
    for name, command in lint_checks():
        log = OUTPUT / "lint" / f"{name.replace(' ', '-').replace(chr(39), '')}.log"
        started = time.monotonic()
        status = run(command, log, 300, show=False)
        print(f"  {'ok' if status == 0 else 'FAILED':6} {name} ({time.monotonic() - started:.1f} s)", flush=True)
        if status == 0:
            tally.passed += 1
        else:
            print(log.read_text(encoding="utf-8")[-6000:], flush=True)
            tally.fail(f"lint: {name}")
    junit = OUTPUT / "artifact.xml"
    status = run([PYTHON, "tools/check_artifact.py", "--junit", str(junit)], OUTPUT / "artifact.log", 300)
    tally.add(judge(read_junit(junit), status, "the built collection"))
    return tally


def sanity() -> Tally:
    """ansible-test sanity; each of its tests, on each Python, counts as one."""
    folder = OUTPUT / "sanity"
    status = run([PYTHON, "tools/run_sanity.py", "--junit-directory", str(folder)], OUTPUT / "sanity.log", 900)
    tally = Tally()
    for report in sorted(folder.glob("*.xml")):
        name = report.stem.removeprefix("ansible-test-")
        one = read_junit(report)
        if one.failed:
            tally.fail(name)
        elif one.skipped:
            tally.skip(f"{name}: {one.skips[0].rpartition(': ')[2]}")
        else:
            tally.passed += 1
    return judge(tally, status, "ansible-test sanity")


def pytest(stage: str, *arguments: str, seconds: float, workers: int = 2) -> Tally:
    """A pytest run; captured output of all tests goes to the JUnit file, for the secret scan."""
    junit = OUTPUT / f"{stage}.xml"
    command = [PYTHON, "-m", "pytest", "-q", f"--junit-xml={junit}", "-o", "junit_logging=all", "--durations=10"]
    command += ["-n", str(workers)] if workers > 1 else []
    status = run([*command, *arguments], OUTPUT / f"{stage}.log", seconds)
    return judge(read_junit(junit), status, stage)


def unit() -> Tally:
    return pytest("unit", "tests/unit", seconds=600)


def tools() -> Tally:
    """The development tools themselves: every check can fail, every server ends."""
    return pytest("tools", "tests/tools", "--all-majors", seconds=900)


def integration() -> Tally:
    """The database tests on every major; one that is not installed here is a skip nobody overlooks."""
    tally = pytest("integration", "tests/integration", "--all-majors", seconds=1800)
    for major in embedded_postgres.missing_majors():
        tally.skip(f"integration on PostgreSQL {major}: no server of that major is installed here")
    return tally


def playbooks() -> Tally:
    """Whole playbooks, the demo among them, on servers of their own."""
    return pytest("playbooks", "tests/playbooks", "--dist=loadfile", seconds=900)


def application() -> Tally:
    """The reference application, built and running, and sign-in on it: as it should be, and with each mistake."""
    return pytest("application", "tests/application", seconds=1200)


def switchover() -> Tally:
    """The application switched host by host under pm2 and back, under people's hands, and each way it can fail."""
    return pytest("switchover", "tests/switchover", "--dist=loadfile", seconds=1500)


def molecule() -> Tally:
    """The scenarios on containers with systemd."""
    status = run([PYTHON, "tools/run_molecule.py"], OUTPUT / "molecule.log", 1800)
    return judge(Tally(passed=int(status == 0)), status, "molecule")


def secrets() -> Tally:
    """No output of all the stages before may hold a secret they planted."""
    status = run([PYTHON, "tools/scan_output.py"], OUTPUT / "secrets.log", 300)
    return judge(Tally(passed=int(status == 0)), status, "secrets in the output")


STAGES: dict[str, Callable[[], Tally]] = {
    "lint": lint,
    "sanity": sanity,
    "unit": unit,
    "tools": tools,
    "integration": integration,
    "playbooks": playbooks,
    "application": application,
    "switchover": switchover,
    "molecule": molecule,
    "secrets": secrets,
}


#: Stages that keep one processor busy, or wait: each runs beside the stages from one to another, its output only in its log.
BESIDE = {"sanity": ("lint", "unit", "tools", "integration"), "molecule": ("playbooks", "application", "switchover")}


def run_stage(name: str, function: Callable[[], Tally]) -> Tally:
    """Runs one stage; one that cannot has failed."""
    try:
        return function()
    except (OSError, subprocess.SubprocessError, embedded_postgres.EmbeddedPostgresError) as error:
        tally = Tally()
        tally.fail(f"{name}: {error}")
        return tally


class Beside(threading.Thread):
    """A stage that runs beside others."""

    def __init__(self, name: str, function: Callable[[], Tally]) -> None:
        super().__init__(name=name, daemon=True)
        self.function = function
        self.tally = Tally()
        self.seconds = 0.0

    def run(self) -> None:
        started = time.monotonic()
        SILENT.on = True
        self.tally = run_stage(self.name, self.function)
        self.seconds = time.monotonic() - started


def run_stages(stages: dict[str, Callable[[], Tally]]) -> Tally:
    """Runs the stages in order, some beside others, and prints what became of each."""
    total, started = Tally(), time.monotonic()
    beside = {name: Beside(name, function) for name, function in stages.items() if name in BESIDE and set(BESIDE[name]) & set(stages)}
    waiting = dict(beside)

    def tell(name: str, tally: Tally, seconds: float) -> None:
        print(f"=== {name}: {tally} ({seconds:.0f} s, {time.monotonic() - started:.0f} s in all)", flush=True)
        total.add(tally)

    def join(name: str) -> None:
        thread = waiting.pop(name)
        thread.join()
        tell(name, thread.tally, thread.seconds)

    for number, (name, function) in enumerate(stages.items(), start=1):
        if name in beside:
            continue
        for other in beside:
            if name in BESIDE[other] and not beside[other].ident:
                print(f"\n=== {other}, beside the next", flush=True)
                beside[other].start()
        if name not in {part for other in waiting for part in BESIDE[other]}:
            # What ran beside the stages before must not disturb this one.
            for other in [other for other in waiting if beside[other].ident]:
                join(other)
        print(f"\n=== ({number}/{len(stages)}) {name}", flush=True)
        stage_started = time.monotonic()
        tell(name, run_stage(name, function), time.monotonic() - stage_started)
    for other in list(waiting):
        join(other)
    return total


def main(argv: list[str] | None = None) -> int:
    """The program: 0 when nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", action="append", choices=STAGES, help="run only this stage (may be repeated)")
    chosen = parser.parse_args(argv).stage
    # Ended from outside, what was started ends, too.
    signal.signal(signal.SIGTERM, lambda *_arguments: sys.exit(143))
    stages = {name: function for name, function in STAGES.items() if not chosen or name in chosen}
    for name in stages:
        # What an earlier run left must not count in this one.
        for old in OUTPUT.glob(f"{name}*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    if not chosen:
        shutil.rmtree(OUTPUT, ignore_errors=True)
    total = run_stages(stages)
    for title, names in (("Skipped", total.skips), ("Failed", total.failures)):
        if names:
            print(f"\n{title}:\n" + "\n".join(f"  {name}" for name in names))
    print(f"\n{total}", flush=True)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
