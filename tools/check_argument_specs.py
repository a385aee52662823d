"""Compares each role's meta/argument_specs.yml with its defaults/main.yml, both ways, and judges the types.

A role's variables are documented and validated by the one file and set by the other; whoever changes one has to change both.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
TYPES = {"str": str, "bool": bool, "int": int, "float": (int, float), "list": list, "dict": dict, "path": str, "raw": object}
SECRET_NAME = re.compile(r"(password|passphrase|secret|token|private_key)$")


def _read(path: Path):
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else None


def _is_template(value) -> bool:
    return isinstance(value, str) and "{{" in value


def _type_problems(name: str, option: dict) -> list[str]:
    """What is wrong with one option's type, default, choices or elements."""
    problems = []
    kind = option.get("type", "str")
    if kind not in TYPES:
        return [f"{name}: type {kind!r} is none of {', '.join(TYPES)}"]
    default = option.get("default")
    if default is not None and not _is_template(default):
        # In Python a bool is an int; in a specification it is a mistake.
        if not isinstance(default, TYPES[kind]) or (isinstance(default, bool) and kind in ("int", "float")):
            problems.append(f"{name}: its default is no {kind}")
        if "choices" in option and default not in option["choices"]:
            problems.append(f"{name}: its default is none of its choices")
    if kind == "list" and "elements" not in option:
        problems.append(f"{name}: a list must say what its elements are")
    if not option.get("description"):
        problems.append(f"{name}: no description")
    if SECRET_NAME.search(name):
        if kind != "str":
            problems.append(f"{name}: a secret is a str")
        if "choices" in option:
            problems.append(f"{name}: choices of a secret would be printed with the wrong value")
    return problems


def check_role(role: Path) -> list[str]:
    """The differences between a role's specification and its defaults, and what is wrong with either."""
    specification, defaults = _read(role / "meta" / "argument_specs.yml"), _read(role / "defaults" / "main.yml")
    if specification is None or defaults is None:
        missing = "meta/argument_specs.yml" if specification is None else "defaults/main.yml"
        return [f"{missing} is missing"]
    options = specification.get("argument_specs", {}).get("main", {}).get("options", {}) or {}
    public = {name: value for name, value in defaults.items() if not name.startswith("__")}
    problems = [f"{name}: in defaults/main.yml, not in meta/argument_specs.yml" for name in sorted(public.keys() - options.keys())]
    for name, option in sorted(options.items()):
        problems += _type_problems(name, option)
        if not name.startswith((f"{role.name}_", "unified_user_")):
            problems.append(f"{name}: must start with {role.name}_ or unified_user_")
        if option.get("required") and ("default" in option or name in public):
            problems.append(f"{name}: required, so it can have no default")
        elif "default" in option and name not in public:
            problems.append(f"{name}: has a default in meta/argument_specs.yml, but not in defaults/main.yml")
        elif name in public and "default" not in option:
            problems.append(f"{name}: has a default in defaults/main.yml, but not in meta/argument_specs.yml")
        elif name in public and (public[name] != option["default"] or type(public[name]) is not type(option["default"])):
            problems.append(f"{name}: defaults/main.yml and meta/argument_specs.yml give it different defaults")
    return problems


def main(argv: list[str] | None = None) -> int:
    """The program: 0 when every role agrees with itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--roles", type=Path, default=ROOT / "roles")
    roles = sorted(path for path in parser.parse_args(argv).roles.glob("*") if path.is_dir())
    found = [f"{role.name}: {problem}" for role in roles for problem in check_role(role)]
    if not roles:
        found.append("Failed to check the roles: there is none. Name their directory with --roles.")
    print("\n".join(found) if found else f"{len(roles)} roles agree with their specifications")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
