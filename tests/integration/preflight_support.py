# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Looking at a database as the module unified_user_preflight does, and following the hints it gives."""

from __future__ import annotations

import contextlib
from typing import Any

from ansible_collections.rnltlabs.unified_user.plugins.module_utils import _preflight_resources
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import POLICY_CHOICES
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight import run_preflight
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight_context import Options

from tests.module_process import connection_options


def parameters(cluster, database: str, **options: Any) -> dict[str, Any]:
    """The module's parameters with their defaults, for a superuser over the socket unless the options say otherwise."""
    defaults = {**vars(Options()), **{name: choices[0] for name, choices in POLICY_CHOICES.items()}, "fail_on_blocker": False}
    del defaults["policies"]
    return {**defaults, **connection_options(cluster, database), "bin_dir": str(cluster.bin("pg_dump").parent), **options}


def look(cluster, database: str, timed: bool = False, **options: Any) -> dict[str, Any]:
    """One preflight, in this process. Unless the time is what is looked at, only a hundredth of the usual units is timed."""
    units, _preflight_resources._UNITS = _preflight_resources._UNITS, _preflight_resources._UNITS if timed else 1000
    try:
        return run_preflight(parameters(cluster, database, **options))
    finally:
        _preflight_resources._UNITS = units


def names(result: dict[str, Any], *severities: str) -> list[str]:
    """The names of the findings of some severities, all without."""
    return [finding["name"] for finding in result["findings"] if not severities or finding["severity"] in severities]


def found(result: dict[str, Any], name: str, severity: str) -> dict[str, Any]:
    """The one finding of a name. Fails when it is missing, there twice, of another severity, or without a hint."""
    matches = [finding for finding in result["findings"] if finding["name"] == name]
    assert len(matches) == 1, f"{name} was found {len(matches)} times among {names(result)}"
    (finding,) = matches
    assert finding["severity"] == severity, finding
    assert finding["detail"] and finding["hint"] and finding["count"] > 0, finding
    assert result["blocked"] == bool(names(result, "blocker"))
    return finding


def probes_failed(result: dict[str, Any]) -> list[str]:
    """What the probes that could not run say."""
    return [finding["detail"] for finding in result["findings"] if finding["name"] == "probe_failed"]


def follow(connection, hint: str) -> None:
    """Do what a hint says, when it is SQL from its beginning to its end."""
    with contextlib.closing(connection.cursor()) as cursor:
        for statement in hint.split("; "):
            cursor.execute(statement)


def run(connection, *statements: str) -> None:
    """Run statements one by one; each is a transaction of its own on a connection in autocommit mode."""
    with contextlib.closing(connection.cursor()) as cursor:
        for statement in statements:
            cursor.execute(statement)
