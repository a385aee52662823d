"""Writes the table of variables in each role's README.md out of its meta/argument_specs.yml.

The table stands between the markers `<!-- variables: begin -->` and `<!-- variables: end -->`; the rest of the page is the
author's. With --check nothing is written, and the exit status tells whether every table is up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- variables: begin -->", "<!-- variables: end -->"


class ReadmeError(Exception):
    """A README that cannot be rendered."""


def _text(description) -> str:
    """A description as one table cell: Ansible's C(), V(), O() … become code, bars are escaped."""
    joined = " ".join(description) if isinstance(description, list) else str(description)
    joined = re.sub(r"\b[CVOMI]\(([^)]*)\)", r"`\1`", joined)
    return " ".join(joined.split()).replace("|", "\\|")


def _default(option: dict) -> str:
    if option.get("required"):
        return "**required**"
    if "default" not in option:
        return "none"
    value = option["default"]
    shown = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    return "`" + " ".join(shown.split()).replace("|", "\\|") + "`"


def table(options: dict) -> str:
    """The Markdown table of a role's options, in the order of the specification."""
    if not options:
        return "This role has no variables of its own."
    lines = ["| variable | type | default | meaning |", "|---|---|---|---|"]
    for name, option in options.items():
        kind = option.get("type", "str") + (f" of {option['elements']}" if "elements" in option else "")
        choices = option.get("choices")
        meaning = _text(option.get("description", "")) + (f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else "")
        lines.append(f"| `{name}` | {kind} | {_default(option)} | {meaning} |")
    return "\n".join(lines)


def render(role: Path) -> str:
    """The README.md a role should have. Raises ReadmeError when the page or its markers are missing."""
    readme, specification = role / "README.md", role / "meta" / "argument_specs.yml"
    if not readme.exists() or not specification.exists():
        raise ReadmeError(f"{role.name}: README.md or meta/argument_specs.yml is missing")
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ReadmeError(f"{role.name}: README.md must hold the line {BEGIN} and, after it, {END}, once each")
    options = yaml.safe_load(specification.read_text(encoding="utf-8"))["argument_specs"]["main"].get("options") or {}
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    return f"{before}{BEGIN}\n\n{table(options)}\n\n{after}"


def main(argv: list[str] | None = None) -> int:
    """The program: writes the tables, or with --check says which are out of date."""
    parser = argparse.ArgumentParser(description="Write the tables of variables in the roles' README.md files.")
    parser.add_argument("--roles", type=Path, default=ROOT / "roles")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a table is out of date")
    arguments = parser.parse_args(argv)
    found, roles = [], sorted(path for path in arguments.roles.glob("*") if path.is_dir())
    for role in roles:
        try:
            wanted = render(role)
        except ReadmeError as error:
            found.append(str(error))
            continue
        readme = role / "README.md"
        if readme.read_text(encoding="utf-8") == wanted:
            continue
        if arguments.check:
            found.append(f"{role.name}: README.md is out of date. Run .venv/bin/python tools/render_readmes.py.")
        else:
            readme.write_text(wanted, encoding="utf-8")
            print(f"wrote {readme}")
    if not roles:
        found.append("Failed to render: there are no roles. Name their directory with --roles.")
    print("\n".join(found) if found else f"{len(roles)} READMEs are up to date")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
