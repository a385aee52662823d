# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reviewing a directory of migrations: what they must bring, what squawk says beside, and what the operator accepts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Iterable

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import SOURCES, UNIFIED_TABLES
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._review import ERROR, INFO, OFF, SEVERITIES, Expectations, Review, ReviewFinding


def default_expectations() -> Expectations:
    """Return what the unified model's migration must bring: its tables and keys, and the legacy tables kept.

    Columns are expected under their logical or their snake_case name (the contract, section 1).
    """
    references = {
        "user_role_assignments": (("userId", "users"), ("studioId", "studios")),
        "studio_ownership": (("userId", "users"), ("studioId", "studios")),
        "new_accounts": (("userId", "users"),),
        "new_sessions": (("userId", "users"),),
        "new_bookings": (("studioId", "studios"), ("serviceId", "services"), ("customerId", "users")),
        "_UserFavorites": (("A", "studios"), ("B", "users")),
        "audit_logs": (("userId", "users"),),
    }
    return Expectations(
        UNIFIED_TABLES, SOURCES, tuple((table, column, target) for table, keys in references.items() for column, target in keys)
    )


def squawk_findings(program: str, migration: str, path: str, exclude: Iterable[str], severities: dict[str, str]) -> list[ReviewFinding]:
    """Run squawk on a migration and return its findings, as rules ``squawk-<name>`` of severity ``info`` unless told otherwise.

    Args:
        program: path of the program.
        migration: the migration's directory name.
        path: the file.
        exclude: squawk's rules to leave out.
        severities: the operator's severities.

    Raises:
        UnifiedUserError: squawk cannot be run or says something else than findings.
    """
    command = [program, "--reporter=json", "--assume-in-transaction", *(f"--exclude={rule}" for rule in exclude), path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        reported = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise UnifiedUserError(
            f"have squawk read {migration}", f"{type(error).__name__} from {program}", "Repair squawk, or set squawk to an empty string"
        ) from error
    findings = []
    for item in reported:
        rule = f"squawk-{item['rule_name']}"
        severity = severities.get(rule, INFO)
        if severity != OFF:
            findings.append(ReviewFinding(rule, severity, migration, item["line"] + 1, "", item["message"], safe_form=item["help"] or ""))
    return findings


def review_directory(
    path: str,
    names: list[str] | None,
    expectations: Expectations,
    severities: dict[str, str],
    squawk: str | None = None,
    squawk_exclude: Iterable[str] = (),
) -> tuple[list[ReviewFinding], list[str]]:
    """Judge migrations of a directory.

    Args:
        path: the directory of migrations.
        names: those to judge; None for the newest.
        expectations: what they must bring.
        severities: over the defaults.
        squawk: path of squawk, or None.
        squawk_exclude: its rules to leave out.

    Returns:
        The findings, the gravest first, and the names of what was judged.

    Raises:
        UnifiedUserError: the directory or a migration named is not there or cannot be read.
    """
    present = sorted(entry.name for entry in Path(path).iterdir() if entry.is_dir()) if Path(path).is_dir() else []
    if not present:
        raise UnifiedUserError(f"read the migrations in {path}", "there are none", "Set path to the directory that holds them")
    judged = [present[-1]] if names is None else names
    for name in judged:
        if name not in present:
            raise UnifiedUserError(f"read migration {name}", f"{path} has no such directory", f"The newest there is {present[-1]}")
    review = Review(expectations, severities)
    found = []
    for name in present:
        file = Path(path, name, "migration.sql")
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UnifiedUserError(f"read {file}", f"{type(error).__name__}", "Each migration's directory needs a migration.sql in UTF-8") from error
        review.read(name, text, name in judged)
        if squawk and name in judged:
            found += squawk_findings(squawk, name, str(file), squawk_exclude, severities)
    order = SEVERITIES.index
    return sorted(review.finish() + found, key=lambda finding: (order(finding.severity), finding.migration, finding.line, finding.rule)), judged


def accept(findings: Iterable[ReviewFinding], accepted: list[dict[str, str]]) -> list[dict[str, str]]:
    """Mark the findings that the operator accepts, and return the acceptances that fit none.

    Args:
        findings: of ``Review.finish``.
        accepted: dicts of ``rule``, ``object`` and ``reason``.
    """
    unused = []
    for entry in accepted:
        fitting = [finding for finding in findings if finding.rule == entry["rule"] and finding.object == entry["object"]]
        for finding in fitting:
            finding.accepted = entry["reason"]
        if not fitting:
            unused.append(entry)
    return unused


def passed(findings: Iterable[ReviewFinding]) -> bool:
    """Return whether no error is left that nobody accepted."""
    return not any(finding.severity == ERROR and not finding.accepted for finding in findings)


def summary(findings: list[dict[str, Any]]) -> str:
    """Return the message for errors that nobody accepted, of findings as dicts."""
    errors = [finding for finding in findings if finding["severity"] == ERROR and not finding["accepted"]]
    named = "; ".join(f"{finding['rule']} {finding['object']} ({finding['detail']})" for finding in errors[:5])
    return (
        f"Failed to pass the migrations: {len(errors)} error(s): {named}. "
        "Change the migration as safe_form says, or accept a finding with its reason."
    )
