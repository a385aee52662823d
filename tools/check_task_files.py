"""Keeps files readable at a glance: a task file has at most 50 lines, a module's main() at most 40."""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASK_FILE_LINES = 50
MAIN_LINES = 40


def check_task_file(path: Path) -> list[str]:
    """A finding when a task file is too long."""
    lines = len(path.read_text(encoding="utf-8").splitlines())
    return [f"{lines} lines, {TASK_FILE_LINES} are allowed: move a part to a file that says what it does"] if lines > TASK_FILE_LINES else []


def check_module(path: Path) -> list[str]:
    """A finding when a module has no main(), or one that is too long."""
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    if not functions:
        return ["it has no main()"]
    lines = functions[0].end_lineno - functions[0].lineno + 1
    return [f"main() has {lines} lines, {MAIN_LINES} are allowed: move the work to module_utils"] if lines > MAIN_LINES else []


def main(argv: list[str] | None = None) -> int:
    """The program: 0 when every file keeps the limits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT)
    root = parser.parse_args(argv).root
    tasks = sorted(path for folder in ("tasks", "handlers") for path in root.glob(f"roles/*/{folder}/**/*.yml"))
    modules = sorted(root.glob("plugins/modules/*.py"))
    found = [f"{path.relative_to(root)}: {problem}" for path in tasks for problem in check_task_file(path)]
    found += [f"{path.relative_to(root)}: {problem}" for path in modules for problem in check_module(path)]
    if not tasks or not modules:
        found.append(f"Failed to check lengths: {root} has no task files or no modules. Name the checkout with --root.")
    print("\n".join(found) if found else f"{len(tasks)} task files and {len(modules)} modules keep their limits")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
