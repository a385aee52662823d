# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Composing SQL: templates whose braces become identifiers, and the expressions of the contract."""

from __future__ import annotations

import re
from typing import Callable, Mapping

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")


def compose(template: str, lookup: Callable[[str], object] | Mapping[str, object]):
    """Fill the braces of a template with composed SQL.

    Unlike ``sql.SQL.format`` a placeholder may hold any name, such as ``{customers.email}``, and literal braces do not
    occur in our statements.

    Args:
        template: SQL with ``{name}`` placeholders.
        lookup: returns (or maps to) the Composable that stands for a name.

    Raises:
        KeyError: the lookup does not know a name.
    """
    find = lookup if callable(lookup) else lookup.__getitem__
    pieces = _PLACEHOLDER.split(template)
    return sql.Composed(
        [find(piece) if index % 2 else sql.SQL(piece) for index, piece in enumerate(pieces) if piece]
    )


def comma(parts):
    """Join composed parts with commas."""
    return sql.SQL(", ").join(list(parts))


def all_of(conditions):
    """Join conditions with AND; no condition is TRUE."""
    conditions = list(conditions)
    return sql.SQL(" AND ").join(conditions) if conditions else sql.SQL("TRUE")


def identity_key(email, email_match: str):
    """Return the identity key of an e-mail expression (the contract, section 2).

    Args:
        email: composed expression of a text type.
        email_match: ``case_insensitive`` or ``exact``.
    """
    if email_match == "exact":
        return compose('({email}::text COLLATE "C")', {"email": email})
    return compose('lower(btrim({email}::text) COLLATE "C")', {"email": email})


def is_blank(text):
    """Return the condition for blank: NULL or nothing but spaces (the contract, section 2)."""
    return compose("(coalesce(btrim({text}), '') = '')", {"text": text})


def is_usable(email):
    """Return the condition for a usable e-mail: not blank, with an ``@`` (the contract, section 2); with one it is not blank."""
    return compose("(coalesce(strpos({email}, '@'), 0) > 0)", {"email": email})


def derived_id(*parts):
    """Return the expression of a derived id: ``'c' || left(sha256hex(parts), 24)`` over the UTF-8 bytes.

    Args:
        parts: composed text expressions, concatenated in order.
    """
    return compose(
        "('c' || left(encode(sha256(convert_to({seed}, 'UTF8')), 'hex'), 24))",
        {"seed": sql.SQL(" || ").join(list(parts))},
    )


def masked_email(email, mask: bool):
    """Return the expression that shows an e-mail: its first character, three stars and its domain, or as it stands.

    What has no ``@`` is shown as its first character and stars, whatever it is.
    """
    if not mask:
        return email
    return compose(
        "(left(btrim({email}), 1) || '***' || coalesce(substring({email} from '@[^@]*$'), ''))", {"email": email}
    )
