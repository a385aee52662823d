"""The runner of the scenarios: it removes what dead runs left, leaves live ones alone, and its scenarios do test something."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
from pathlib import Path

import host_image
import pytest
import run_molecule
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
SCENARIOS = sorted(path.parent for path in ROOT.glob("molecule/*/molecule.yml"))
SHARED = yaml.safe_load((ROOT / ".config" / "molecule" / "config.yml").read_text())


def dead_process() -> int:
    done = subprocess.Popen(["true"])
    done.wait()
    return done.pid


def test_a_run_is_stale_when_its_process_is_gone_or_another():
    own = run_molecule.run_name()
    assert not run_molecule.is_stale(own)
    assert not run_molecule.is_stale(f"{own}-database1")
    assert run_molecule.is_stale(f"{run_molecule.PREFIX}-{dead_process()}-12345-database1")
    assert run_molecule.is_stale(f"{run_molecule.PREFIX}-{os.getpid()}-1"), "a later process of the same number"
    for strange in ("postgres", "unified-user-tester", f"{run_molecule.PREFIX}-x-1", f"my-{own}"):
        assert not run_molecule.is_stale(strange)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("podman"), reason="needs podman and root")
def test_what_a_killed_run_left_is_removed_and_what_lives_stays(monkeypatch, tmp_path):
    monkeypatch.setattr(run_molecule.tempfile, "gettempdir", lambda: str(tmp_path))
    stale, live = f"{run_molecule.PREFIX}-{dead_process()}-12345", f"{run_molecule.run_name()}-test"
    try:
        for name in (stale, live):
            host_image.run("podman", "network", "create", "--internal", name)
            (tmp_path / name).mkdir()
        run_molecule.remove_where(run_molecule.is_stale)
        left = run_molecule.listed("network", "ls", "--format", "{{.Name}}")
        assert stale not in left
        assert live in left
        assert [directory.name for directory in tmp_path.iterdir()] == [live]
    finally:
        run_molecule.remove([], [stale, live])


def test_there_is_a_scenario():
    assert "default" in [scenario.name for scenario in SCENARIOS]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_verify_step_has_tests(scenario):
    """Molecule passes a step whose directory holds no test."""
    own = yaml.safe_load((scenario / "molecule.yml").read_text())
    sequence = own.get("scenario", {}).get("test_sequence") or SHARED["scenario"]["test_sequence"]
    steps = [step.split()[1] for step in sequence if step.startswith("verify")]
    assert steps, "a scenario without a judge proves nothing"
    assert sequence[-1] == "destroy"
    for step in steps:
        modules = list((scenario / step).glob("test_*.py"))
        functions = [node.name for module in modules for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.FunctionDef)]
        assert any(name.startswith("test_") for name in functions), f"{scenario.name}/{step} holds no test"
