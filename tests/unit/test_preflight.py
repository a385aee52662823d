# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The parts of preflight that need no database, and that its description of the schema and its tests leave nothing out."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._constraints import KEYS, REFERENCES
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._findings import Finding
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import POLICY_CHOICES, TABLES
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight import PROBES
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight_context import Options, and_more
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight_resources import _by_file_system
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._preflight_server import judge_version, size

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("server_major", "severities"), [(12, ["blocker"]), (13, ["warning"]), (15, []), (16, []), (18, []), (19, ["warning"])])
def test_versions(server_major, severities):
    assert [finding.severity for finding in judge_version(server_major, f"{server_major}.1")] == severities


def test_numbers_of_bytes_as_a_person_reads_them():
    assert [size(number) for number in (0, 999, 1500, 25_000_000, 3_400_000_000, 5e15)] == [
        "0 bytes", "999 bytes", "1.5 kB", "25 MB", "3.4 GB", "5000.0 TB",
    ]  # fmt: skip


def test_a_long_hint_is_cut_and_says_so():
    assert and_more(["a", "b"]) == "a; b"
    assert and_more(["a"] * 14) == "; ".join(["a"] * 12) + "; and 2 more like these"


def test_needs_on_one_file_system_add_up(tmp_path):
    (tmp_path / "pg_wal").mkdir()
    systems = _by_file_system({"data": (100, str(tmp_path)), "wal": (20, str(tmp_path / "pg_wal")), "sorts": (3, str(tmp_path / "gone"))}, str(tmp_path))
    ((path, (need, free)),) = systems.items()
    assert path == str(tmp_path) and need == 123 and free > 0
    with pytest.raises(OSError, match="No such file"):
        _by_file_system({"data": (1, str(tmp_path / "gone"))}, str(tmp_path / "gone"))


def test_keys_and_references_name_logical_columns():
    for key in KEYS:
        assert set(key.columns) <= set(TABLES[key.table].required)
    for reference in REFERENCES:
        assert reference.column in TABLES[reference.table].required and "id" in TABLES[reference.target].required
    filled = {name for name, table in TABLES.items() if not table.starts_empty}
    assert {key.table for key in KEYS} == filled


def test_options_are_taken_from_the_module_parameters():
    parameters = {**{name: choices[-1] for name, choices in POLICY_CHOICES.items()}, **vars(Options()), "lock_timeout": 7}
    options = Options.from_parameters(parameters)
    assert options.lock_timeout == 7 and options.policies.guest_role == "GUEST"


def test_every_probe_says_what_it_looks_at():
    assert len({probe.subject for probe in PROBES}) == len(PROBES)


def finding_names() -> set[str]:
    """The names of all findings that the code can make: first arguments of Finding, found and their like."""
    names = set()
    folder = ROOT / "plugins" / "module_utils"
    for path in [*folder.glob("_preflight*.py"), folder / "_findings.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in ("Finding", "found", "_Question") and isinstance(node.args[0], ast.Constant):
                    names.add(node.args[0].value)
            # Names in a table of (name, severity or privilege, ...) that a loop goes over.
            elif isinstance(node, ast.For) and ast.unparse(node.target).startswith(("(name, severity, ", "(name, privilege, ")):
                names.update(row.elts[0].value for row in node.iter.elts)
    return names


def test_every_finding_is_provoked_by_a_test():
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*/test_preflight*.py") if path != Path(__file__))
    names = finding_names()
    assert len(names) > 60 and {"privilege_lock", "rows_of_nobody", "unusable_email", "standby"} <= names
    # The server's version is judged above: no server that old or that new is to be had.
    assert {name for name in names if f'"{name}"' not in tests} == {"server_version"}


def test_findings_are_returned_as_plain_data():
    assert Finding("a", "info", 1, "b", "c").as_dict() == {"name": "a", "severity": "info", "count": 1, "detail": "b", "hint": "c", "samples": []}
