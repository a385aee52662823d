# Copyright: (c) 2026, RNLT Labs
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The projection of some identities: the same SELECTs as the copy's, over tables of which only a part is seen."""

from __future__ import annotations

from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Schema
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._sql import compose


class ScopedSchema(Schema):
    """A schema of whose tables only the rows of a scope are seen.

    Args:
        schema: the resolved tables.
        scopes: logical table -> composed SELECT that stands in its place, with all its columns.
    """

    def __init__(self, schema: Schema, scopes: dict[str, object]) -> None:
        super().__init__(schema.name, schema.relations, schema.problems)
        self._scopes = scopes

    def table(self, logical: str):
        """Return what stands for a table in a FROM clause, which must give it an alias."""
        if logical in self._scopes:
            return compose("({select})", {"select": self._scopes[logical]})
        return super().table(logical)


def where(schema: Schema, logical: str, condition, **parts):
    """Select the rows ``scoped`` of a table that meet a condition, for a scope.

    Args:
        schema: the resolved tables.
        logical: the table.
        condition: template over ``scoped``; its braces are as in ``Schema.compose``.
        parts: further names of the template.
    """
    return schema.compose(
        "SELECT scoped.* FROM {table} AS scoped WHERE {condition}", table=logical, condition=schema.compose(condition, **parts)
    )
