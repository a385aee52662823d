# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Running a module of the collection as the process it is on a host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODULES = "ansible_collections.rnltlabs.unified_user.plugins.modules"


def connection_options(cluster: Any, database: str) -> dict[str, Any]:
    """Return the options with which a module reaches a database of an embedded server over its socket."""
    return {
        "login_db": database,
        "login_user": cluster.user,
        "login_unix_socket": str(cluster.host),
        "login_port": cluster.port,
    }


class ModuleProcess:
    """A module under way.

    Args:
        name: the module's short name.
        options: its options; ``_ansible_check_mode`` and ``_ansible_diff`` among them as Ansible would pass them.
        python: the interpreter.
        environment: variables beside the caller's.
    """

    def __init__(self, name: str, options: dict[str, Any], python: str = sys.executable, environment: dict[str, str] | None = None):
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as arguments:
            json.dump({"ANSIBLE_MODULE_ARGS": options}, arguments)
        self._arguments = Path(arguments.name)
        paths = os.pathsep.join([str(ROOT / ".collections"), *(path for path in sys.path if "site-packages" in path)])
        self.process = subprocess.Popen(
            [python, "-m", f"{MODULES}.{name}", str(self._arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
        )
        self.output = ""

    def result(self, timeout: float = 120) -> dict[str, Any]:
        """Wait for the module's end and return what it returned; ``failed`` is among it when it failed."""
        self.output, errors = self.process.communicate(timeout=timeout)
        self._arguments.unlink()
        # Kept with the test's report, where tools/scan_output.py looks for secrets.
        print(self.output, errors, sep="\n")
        lines = [line for line in self.output.splitlines() if line.startswith("{")]
        assert lines, f"no result from the module: {self.output}{errors}"
        return json.loads(lines[-1])

    def kill(self) -> None:
        """End the module as ``kill -9`` does."""
        self.process.kill()
        self.process.communicate()
        self._arguments.unlink()


def run_module(name: str, options: dict[str, Any], **keywords: Any) -> dict[str, Any]:
    """Run a module to its end and return what it returned."""
    return ModuleProcess(name, options, **keywords).result()
