"""Searches what a test run wrote (logs, reports, evidence) for the secrets the tests planted.

Secrets come from the register that tests/seeded_secrets.py keeps. A find names the file, the line and the secret's label,
never the secret. Line breaks and spaces are no hiding place: every file is also searched with all of them taken out.
"""

from __future__ import annotations

import argparse
import gzip
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.seeded_secrets import REGISTER, registered_secrets  # noqa: E402

DEFAULT_PATHS = (ROOT / ".cache" / "test-output", ROOT / ".cache" / "demo")
# Files that are there to hold a secret, mode 0600, and are nobody's output.
KEEPERS = ("connection.yml", "seeded-secrets.txt")
# So is the data of a backup: its rows hold what the database holds. What is written about it is searched.
DATA = "backups/*/dump/*"


def label(secret: str) -> str:
    """What may be said about a secret: its label when a test made it, else its length."""
    made = re.fullmatch(r"([A-Za-z0-9-]+)-[0-9a-f]{24}", secret)
    return made[1] if made else f"a value of {len(secret)} characters"


def files_below(paths) -> list[Path]:
    """The files to search."""
    found = []
    for path in paths:
        found += [path] if path.is_file() else sorted(entry for entry in path.rglob("*") if entry.is_file())
    return [path for path in found if path.name not in KEEPERS and not path.match(DATA) and path.resolve() != REGISTER.resolve()]


def read(path: Path) -> str:
    """A file's text; compressed ones unpacked."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return data.decode("utf-8", errors="replace")


def scan(path: Path, secrets: set[str]) -> list[str]:
    """The finds in one file."""
    text = read(path)
    dense = re.sub(r"\s+", "", text)
    finds = []
    for secret in sorted(secrets):
        if secret in text:
            finds.append(f"{path}:{text[: text.index(secret)].count(chr(10)) + 1}: {label(secret)}")
        elif secret in dense:
            finds.append(f"{path}: {label(secret)}, broken over lines")
    return finds


def main(argv: list[str] | None = None) -> int:
    """The program: 0 when nothing is found; having nothing to search, or to search for, is a failure."""
    parser = argparse.ArgumentParser(description="Search output for the secrets the tests planted.")
    parser.add_argument("paths", nargs="*", type=Path, default=[path for path in DEFAULT_PATHS if path.exists()])
    paths = parser.parse_args(argv).paths
    secrets, files = registered_secrets(), files_below(paths)
    if not secrets or not files:
        print("Failed to scan the output: there is nothing to search or no secret to search for. Run the tests first.")
        return 1
    finds = [find for path in files for find in scan(path, secrets)]
    print("\n".join(finds) if finds else f"{len(files)} files hold none of {len(secrets)} secrets")
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
