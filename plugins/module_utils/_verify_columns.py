# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which columns a verification compares, and how two values are found to be the same to the byte."""

from __future__ import annotations

import re

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Column, Relation
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import sql
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import snake_case
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import compose

#: Types for which the operator ``=`` tells any two values apart.
_EXACT_TYPES = frozenset(
    (
        "boolean", "smallint", "integer", "bigint", "oid", "uuid", "date", "bytea",
        "timestamp without time zone", "timestamp with time zone", "time without time zone",
    )
)

#: A default that is a constant, as the server prints it: nothing to call, so every row gets the same value.
_CONSTANT = re.compile(
    r"""\(?(NULL|true|false|\(?-?[0-9.]+(e[+-]?[0-9]+)?\)?|'(?:[^']|'')*')\)?(::[\w ."]+(\([0-9, ]+\))?[\w ]*(\[\])?)*""", re.IGNORECASE
)


def same_value(source: Column, target: Column) -> bool:
    """Return whether a value of the source column can be in the target column as it stands."""
    if source.type == target.type:
        return True
    return target.type in ("text", "character varying") and source.base_type in ("text", "character varying")


def shared_columns(source: Relation, target: Relation, ruled) -> dict[str, str]:
    """Pair the columns that both tables have with one logical name and one type (the contract, section 1).

    Args:
        source: the legacy table.
        target: the unified table.
        ruled: logical columns of the target that a rule fills instead.

    Returns:
        Target column -> source column, actual names.
    """
    pairs = {}
    for name, column in target.columns.items():
        logical = target.logical_name(name)
        if logical in ruled or column.generated:
            continue
        candidates = [other for other in source.columns if snake_case(source.logical_name(other)) == snake_case(logical)]
        # Of two spellings the listed one is meant, else the one the target has too.
        preferred = [source.names.get(logical)] if logical in source.names else [other for other in candidates if other == name]
        candidates = preferred or candidates
        if len(candidates) == 1 and same_value(source.columns[candidates[0]], column):
            pairs[name] = candidates[0]
    return pairs


def constant_default(column: Column):
    """Return the value that a column without a source gets, or None where its default is more than a constant."""
    if column.identity or column.generated:
        return None
    if column.default is None:
        return compose("CAST(NULL AS {type})", {"type": sql.SQL(column.type)})
    if _CONSTANT.fullmatch(column.default):
        return compose("CAST({value} AS {type})", {"value": sql.SQL(column.default), "type": sql.SQL(column.type)})
    return None


def typed(column: Column, expression):
    """Return an expression in the type of a column; text stays unlimited, so that nothing is cut before it is compared."""
    kind = "text" if column.is_text and column.base_type != "character" else column.type
    return compose("CAST({expression} AS {type})", {"expression": expression, "type": sql.SQL(kind)})


def differs(column: Column, left, right):
    """Return the condition that two values of a column's type are not the same to the byte.

    Text is compared in the collation "C", as a nondeterministic one calls different spellings equal; types whose
    equality is lax (numbers with their scale, negative zero, jsonb) or missing (json) by their stored image.
    """
    parts = {"left": left, "right": right}
    if column.is_text:
        return compose('{left}::text COLLATE "C" IS DISTINCT FROM {right}::text COLLATE "C"', parts)
    if column.category == "E" or column.base_type in _EXACT_TYPES:
        return compose("{left} IS DISTINCT FROM {right}", parts)
    return compose("record_image_ne(ROW({left}), ROW({right}))", parts)
