# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""bcrypt for the passwords of test accounts, by what the host has: the Python library, or the system's own crypt(3)."""

from __future__ import annotations

import ctypes
import secrets

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError

_ALPHABET = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_LIBRARIES = ("libcrypt.so.1", "libcrypt.so.2", "libcrypt.so")


def new_password() -> str:
    """Return a password that nobody guesses, of the kinds of characters that forms ask for."""
    return "Aa1-" + secrets.token_urlsafe(24)


def bcrypt_hash(password: str, cost: int) -> str:
    """Return the bcrypt hash of a password.

    Args:
        password: at most 72 bytes.
        cost: base-2 logarithm of the number of rounds, 4 to 31.

    Raises:
        UnifiedUserError: this host can compute none.
    """
    hashed = _by_library(password, cost) or _by_system(password, cost)
    if not hashed:
        raise UnifiedUserError(
            "make test accounts", "this host has neither the Python library bcrypt nor a crypt(3) that knows bcrypt",
            "Install python3-bcrypt (or libxcrypt) for the Python that runs the module",
        )  # fmt: skip
    return hashed


def _by_library(password: str, cost: int) -> str:
    try:
        import bcrypt
    except ImportError:
        return ""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost, prefix=b"2b")).decode()


def _by_system(password: str, cost: int) -> str:
    # The last of the 22 characters of a salt holds two bits only.
    salt = "$2b$%02d$%s" % (cost, "".join(secrets.choice(_ALPHABET) for unused in range(21)) + secrets.choice(".Oeu"))
    for name in _LIBRARIES:
        try:
            crypt = ctypes.CDLL(name).crypt
        except (OSError, AttributeError):
            continue
        crypt.restype, crypt.argtypes = ctypes.c_char_p, [ctypes.c_char_p, ctypes.c_char_p]
        hashed = (crypt(password.encode(), salt.encode()) or b"").decode()
        # What does not know the method answers with a token of failure, or with something short.
        if hashed.startswith(salt) and len(hashed) == 60:
            return hashed
    return ""
