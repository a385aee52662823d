# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Running a playbook of the checkout as the process that an operator starts, with or without a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = Path(sys.executable).parent / "ansible-playbook"


def inventory(folder: Path, variables: dict[str, Any]) -> Path:
    """Write an inventory of this host in group database and return its file."""
    path = folder / "hosts.json"
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **variables}
    path.write_text(json.dumps({"all": {"children": {"database": {"hosts": {"localhost": host}}}}}))
    path.chmod(0o600)
    return path


def _command(playbook: str | Path, hosts: Path, extra: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    return [str(PROGRAM), str(playbook), "-i", str(hosts), *extra], environment


def run_playbook(playbook: str | Path, hosts: Path, *extra: str, timeout: float = 180) -> subprocess.CompletedProcess:
    """Run a playbook where nobody can be asked; its output is in ``stdout``."""
    command, environment = _command(playbook, hosts, extra)
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=timeout, check=False,
    )
    # Kept with the test's report, where tools/scan_output.py looks for secrets.
    print(done.stdout)
    return done


def run_playbook_in_terminal(
    playbook: str | Path, hosts: Path, *extra: str, question: str, answer: str, timeout: float = 180
) -> subprocess.CompletedProcess:
    """Run a playbook in a terminal of its own and type an answer once the question is on it and the playbook waits.

    Ansible throws away what was typed before it began to read, so the answer is typed again as long as nothing happens.
    """
    command, environment = _command(playbook, hosts, extra)
    process_id, terminal = pty.fork()
    if process_id == 0:
        os.chdir(ROOT)
        os.execve(command[0], command, environment)
    output, answered, deadline, status = "", False, time.monotonic() + timeout, None
    try:
        while True:
            assert time.monotonic() < deadline, f"the playbook did not end: {output}"
            if not select.select([terminal], [], [], 1)[0]:
                if question in output:
                    os.write(terminal, answer.encode() + b"\r")
                    answered = True
                continue
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # how Linux reports that the other end is closed
                break
            if not piece:
                break
            output += piece.decode("utf-8", "replace")
        _pid, status = os.waitpid(process_id, 0)
    finally:
        os.close(terminal)
        if status is None:
            os.kill(process_id, signal.SIGKILL)
            os.waitpid(process_id, 0)
    print(output)
    assert answered, f"the playbook never asked: {output}"
    return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), stdout=output.replace("\r\n", "\n"))


def changed(done: subprocess.CompletedProcess) -> int:
    """The number of changes in a playbook's recap."""
    return int(re.search(r"localhost\s+: ok=\d+\s+changed=(\d+)", done.stdout).group(1))
