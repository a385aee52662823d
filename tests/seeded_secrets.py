"""Secrets the tests plant, each written down, so that tools/scan_output.py can search every output for them.

A test that needs a password, a token or a person takes it from here (fixture `secret`), never from a literal.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REGISTER = Path(os.environ.get("UNIFIED_USER_SECRETS_REGISTER", ROOT / ".cache" / "test-output" / "seeded-secrets.txt"))
# Shorter ones would be found by chance.
SHORTEST = 8


def new_secret(label: str = "secret") -> str:
    """A fresh secret, registered; `label` (letters, digits, hyphens) makes a find traceable to its test."""
    value = f"{label}-{secrets.token_hex(12)}"
    register_secrets([value])
    return value


def register_secrets(values) -> None:
    """Writes values down that no output may hold; ones too short to be told from chance raise ValueError."""
    values = [value for value in values if value]
    for value in values:
        if len(value) < SHORTEST or "\n" in value:
            raise ValueError("a secret to be searched for needs at least 8 characters on one line")
    REGISTER.parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(REGISTER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w", encoding="utf-8") as register:
        fcntl.flock(register, fcntl.LOCK_EX)
        register.write("".join(f"{value}\n" for value in values))


def registered_secrets() -> set[str]:
    """All secrets planted so far."""
    try:
        return set(REGISTER.read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        return set()
