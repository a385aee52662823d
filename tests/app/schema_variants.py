"""Variants of the reference application's schema, made from a migrated database.

The contract (section 1) resolves columns by their Prisma name or its snake_case form, so the tests need
databases of either kind. The variants are derived by renaming columns, never written twice.
"""

from __future__ import annotations

VARIANTS = ("camelCase", "snake_case", "mixed")

# A column is renamed when its name holds a capital after a small letter or digit; so A and B keep theirs.
_RENAMES = r"""
WITH named AS (
    SELECT c.relname, a.attnum, a.attname,
           lower(regexp_replace(a.attname, '([a-z0-9])([A-Z])', '\1_\2', 'g')) AS snake
    FROM pg_catalog.pg_attribute AS a
    JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relkind IN ('r', 'p') AND c.relname <> '_prisma_migrations'
      AND a.attnum > 0 AND NOT a.attisdropped AND a.attname ~ '[a-z0-9][A-Z]'
)
SELECT format('ALTER TABLE %%I.%%I RENAME COLUMN %%I TO %%I', %(schema)s::text, relname, attname, snake)
FROM named
WHERE %(variant)s = 'snake_case' OR left(md5(relname || '.' || attname), 1) < '8'
ORDER BY relname, attnum
"""


def apply_variant(connection, variant, schema="public"):
    """Give the columns of a migrated database the names of a variant.

    :param connection: open psycopg2 connection; the renames are one transaction.
    :param variant: ``camelCase`` (as Prisma makes them: nothing is renamed), ``snake_case`` (every column),
        or ``mixed`` (about half of them, always the same ones, chosen apart for every table).
    :param schema: the schema that holds the tables.
    :returns: number of renamed columns.
    :raises ValueError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown schema variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    if variant == "camelCase":
        return 0
    with connection.cursor() as cursor:
        cursor.execute(_RENAMES, {"schema": schema, "variant": variant})
        statements = [row[0] for row in cursor.fetchall()]
        if statements:
            # One message to the server is one transaction, also on an autocommit connection.
            cursor.execute(";\n".join(statements))
    return len(statements)
