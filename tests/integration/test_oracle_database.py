# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the oracle stands on: its schema is the application's, and what it writes it reads back."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.oracle.database import compare_legacy, create_tables, empty_tables, prepare, read_legacy, write_legacy
from tests.oracle.schema import LEGACY, NAMINGS, SHAPES, UNIFIED, Layout
from tests.oracle.strategies import legacy_databases

_COLUMNS = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname = ANY(%s)"""

_CONSTRAINTS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE contype IN ('p', 'f') AND conrelid IN (SELECT oid FROM pg_class WHERE relname = ANY(%s))"""

_UNIQUE_INDEXES = """
SELECT tablename, indexname, indexdef FROM pg_indexes
WHERE schemaname = 'public' AND tablename = ANY(%s) AND indexdef LIKE 'CREATE UNIQUE%%'"""


def catalogue(connection) -> dict[str, set]:
    with connection.cursor() as cursor:
        found = {}
        for name, query in (("columns", _COLUMNS), ("constraints", _CONSTRAINTS), ("unique indexes", _UNIQUE_INDEXES)):
            cursor.execute(query, ([*LEGACY, *UNIFIED],))
            found[name] = set(cursor.fetchall())
    return found


def test_the_oracles_schema_is_the_applications(cluster, unified_database, database):
    with contextlib.closing(cluster.connect(unified_database)) as application, contextlib.closing(cluster.connect(database)) as ours:
        create_tables(ours, Layout())
        expected, actual = catalogue(application), catalogue(ours)
    for name in expected:
        assert actual[name] - expected[name] == set()
        assert expected[name] - actual[name] == set()


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_what_is_written_is_read_back(cluster, database, shape, naming):
    layout = Layout(shape, naming, 'We "ird" %s Schéma')
    with contextlib.closing(cluster.connect(database)) as connection:
        prepare(connection)
        create_tables(connection, layout)

        @seed(3)
        @settings(max_examples=10, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(legacy_databases("any", shape))
        def check(case):
            empty_tables(connection, layout)
            write_legacy(connection, case.legacy, layout)
            assert compare_legacy(case.legacy, read_legacy(connection, layout)) == []

        check()
