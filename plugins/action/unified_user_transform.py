# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Calls the module of the same name, slice by slice where it is online, and shows where it is."""

from __future__ import annotations

import uuid
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

_display = Display()


def progress_line(progress: dict[str, Any]) -> str:
    """Say in a line where an online run is.

    Args:
        progress: ``phase``, ``rows_done``, ``rows_total``, ``rows_per_second``, ``waiting_for`` of a slice's result.
    """
    done, total, rate = progress["rows_done"], progress["rows_total"], progress["rows_per_second"]
    parts = [f"{progress['phase']}: {done:,} of about {total:,} rows ({100 * done // max(total, 1)} %)"]
    if rate:
        left = max(total - done, 0) / rate
        parts += [f"{rate:,.0f} rows/s", f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left"]
    if progress["waiting_for"]:
        parts.append(f"waiting for {progress['waiting_for']}")
    return ", ".join(parts)


class ActionModule(ActionBase):
    """Runs the module until it is done."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp=None, task_vars=None):
        """Return what the last slice returned, with the notes and phases of all."""
        super().run(tmp, task_vars)
        arguments = {**self._task.args}
        arguments["run_id"] = arguments.get("run_id") or uuid.uuid4().hex
        notes: list[str] = []
        phases: list[dict[str, Any]] = []
        milliseconds = 0
        while True:
            result = self._execute_module(module_name=self._task.resolved_action or self._task.action, module_args=arguments, task_vars=task_vars)
            notes += result.get("notes", [])
            phases += result.get("phases", [])
            milliseconds += result.get("duration_ms", 0)
            if result.get("failed") or "progress" not in result:
                break
            _display.display(f"  {progress_line(result['progress'])}")
        if notes:
            result["notes"] = notes
        if phases:
            result.update(phases=phases, duration_ms=milliseconds)
        return result
