"""Keeps roles out of each other's way: the names of what a role defines tell whose they are.

A role's public variables start with its name, its private ones (registered, looped, computed) with `__<role>_`, those of the
whole collection with `unified_user_`, public or private.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
FACT_MODULES = ("ansible.builtin.set_fact",)


class _Loader(yaml.SafeLoader):
    """Reads Ansible's own tags (!vault, !unsafe) as plain values."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else None)


def _read(path: Path):
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a safe loader)


def _names_in_tasks(tasks) -> Iterator[str]:
    """The variables that tasks and the blocks in them define."""
    for task in tasks or []:
        if not isinstance(task, dict):
            continue
        for section in ("block", "rescue", "always"):
            yield from _names_in_tasks(task.get(section))
        # What is handed to another role or task file bears that one's name.
        if not any("include" in key or "import" in key for key in task):
            yield from (task.get("vars") or {})
        if "register" in task:
            yield task["register"]
        if "loop_var" in (task.get("loop_control") or {}):
            yield task["loop_control"]["loop_var"]
        for module in FACT_MODULES:
            yield from (name for name in task.get(module) or {} if name != "cacheable")


def check_role(role: Path) -> list[str]:
    """The names of a role that do not tell whose they are."""
    allowed = (f"{role.name}_", f"__{role.name}_", "unified_user_", "__unified_user_")
    found = []
    for path in sorted([*role.glob("defaults/**/*.yml"), *role.glob("vars/**/*.yml")]):
        found += [(path, name) for name in _read(path) or {}]
    for folder in ("tasks", "handlers"):
        for path in sorted(role.glob(f"{folder}/**/*.yml")):
            found += [(path, name) for name in _names_in_tasks(_read(path))]
    return [f"{path.relative_to(role.parent.parent)}: {name} must start with {role.name}_ or __{role.name}_"
            for path, name in found if not name.startswith(allowed)]


def main(argv: list[str] | None = None) -> int:
    """The program: 0 when every name is right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--roles", type=Path, default=ROOT / "roles")
    roles = sorted(path for path in parser.parse_args(argv).roles.glob("*") if path.is_dir())
    found = [problem for role in roles for problem in check_role(role)]
    if not roles:
        found.append("Failed to check the roles: there is none. Name their directory with --roles.")
    print("\n".join(found) if found else f"the variables of {len(roles)} roles tell whose they are")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
