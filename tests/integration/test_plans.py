"""At 300,000 bookings PostgreSQL goes through no big table row by row: the plans of every statement of copy and verification.

The plans are taken where the statements run: in the copy's own transaction, with its temporary tables, its settings and the
statistics of that moment.
"""

from __future__ import annotations

import contextlib
import json
import re

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._connection import Database
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._transform import AtomicCopy, Options
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import verify_database

from tests.app import migration_history, reference_data

# What is tested here does not depend on the server's version; what does is tested on every one elsewhere.
pytestmark = pytest.mark.one_major

BOOKINGS = 300_000
BIG = 50_000
BOUNDED = 1_000
EXPLAINABLE = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE|CREATE TEMPORARY TABLE)\b", re.IGNORECASE)
DATABASE = "plans"


class ExplainingDatabase(Database):
    """A session that asks for the plan of each statement before it runs it."""

    def __init__(self, connection):
        super().__init__(connection)
        self.plans: list[tuple[str, dict]] = []

    def _execute(self, statement, parameters):
        text = statement if isinstance(statement, str) else statement.as_string(self.connection)
        if EXPLAINABLE.match(text):
            with self.connection.cursor() as cursor:
                cursor.execute("EXPLAIN (FORMAT JSON) " + text, parameters)
                self.plans.append((text, cursor.fetchone()[0][0]["Plan"]))
        return super()._execute(statement, parameters)


def crawling(plan: dict, sizes: dict[str, int]) -> list[str]:
    """What in a plan goes through a big table once for each row of something else.

    plan: a node as EXPLAIN gives it. sizes: rows of each table by name, as loaded; estimates alone would hide what they miss.
    """
    text = json.dumps(plan)
    found: list[str] = []

    def is_whole_scan(node: dict) -> bool:
        return node["Node Type"] in ("Seq Scan", "CTE Scan") or ("Relation Name" in node and not {"Index Cond", "Recheck Cond"} & set(node))

    def rows(node: dict) -> int:
        return max(node["Plan Rows"], sizes.get(node.get("Relation Name"), 0) if is_whole_scan(node) else 0)

    def big_scans(node: dict) -> list[dict]:
        own = [node] if is_whole_scan(node) and rows(node) > BIG else []
        return own + [scan for child in node.get("Plans", ()) for scan in big_scans(child)]

    def single_row(node: dict) -> bool:
        return node["Node Type"] == "Result" or (node["Node Type"] == "Aggregate" and node.get("Strategy") == "Plain")

    def visit(node: dict, bounded: bool) -> None:
        bounded = bounded or (node["Node Type"] == "Limit" and node["Plan Rows"] <= BOUNDED)
        children = [child for child in node.get("Plans", ()) if child["Parent Relationship"] in ("Outer", "Inner")]
        if node["Node Type"] == "Nested Loop" and not bounded:
            outer, inner = children
            if outer["Plan Rows"] > BIG:
                found.append(f"nested loop over {outer['Plan Rows']} rows")
            if not single_row(outer):
                found.extend(f"nested loop that reads {scan.get('Relation Name') or scan.get('CTE Name')} again and again" for scan in big_scans(inner))
        for child in node.get("Plans", ()):
            name = child.get("Subplan Name", "")
            if child["Parent Relationship"] == "SubPlan" and f"hashed {name}" not in text and not bounded:
                if rows(node) > BIG:
                    found.append(f"{name} for each of {rows(node)} rows")
                found.extend(f"{name} that reads {scan.get('Relation Name') or scan.get('CTE Name')} again and again" for scan in big_scans(child))
            visit(child, bounded)

    visit(plan, False)
    return found


def nodes(plan: dict) -> list[dict]:
    """A node and all below it."""
    return [plan, *(node for child in plan.get("Plans", ()) for node in nodes(child))]


@pytest.fixture(scope="module")
def plans(cluster):
    """Statements with their plans, of the copy in check mode, the copy and the verification afterwards; and the tables' sizes."""
    cluster.create_database(DATABASE)
    try:
        with contextlib.closing(cluster.connect(DATABASE)) as connection:
            migration_history.apply_migrations(connection, migration_history.migration_directories())
            sizes = reference_data.load_benchmark(connection, bookings=BOOKINGS)
        taken = {}
        for name, work in (
            ("check mode", lambda database: AtomicCopy(database, Options()).plan()),
            ("copy", lambda database: AtomicCopy(database, Options()).run()),
            ("verification", lambda database: verify_database(database).require()),
        ):
            with contextlib.closing(ExplainingDatabase(cluster.connect(DATABASE))) as database:
                work(database)
                taken[name] = database.plans
        with contextlib.closing(cluster.connect(DATABASE)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT relname, reltuples FROM pg_class WHERE relkind = 'r' AND reltuples > 0")
            sizes.update(cursor.fetchall())
        yield taken, sizes
    finally:
        cluster.drop_database(DATABASE)


@pytest.mark.parametrize("work", ["check mode", "copy", "verification"])
def test_no_statement_goes_through_a_big_table_row_by_row(plans, work):
    taken, sizes = plans
    found = {text[:300]: crawling(plan, sizes) for text, plan in taken[work]}
    assert {text: faults for text, faults in found.items() if faults} == {}


def test_the_plans_are_those_of_the_big_statements(plans):
    taken, sizes = plans
    assert sizes["bookings"] == BOOKINGS and sizes["customers"] > BIG
    targets = {match[1] for text, unused in taken["copy"] if (match := re.match(r'INSERT INTO "public"\."(\w+)"', text))}
    assert {"users", "user_role_assignments", "new_bookings", "_UserFavorites"} <= targets
    for work in taken:
        scanned = {node.get("Relation Name") for unused, plan in taken[work] for node in nodes(plan)}
        assert {"bookings", "customers", "_CustomerFavorites"} <= scanned, work
    compared = {node.get("Relation Name") for unused, plan in taken["verification"] for node in nodes(plan)}
    assert {"new_bookings", "users", "_UserFavorites", "identity_map"} <= compared


def test_bookings_are_copied_in_the_order_they_lie_in(plans):
    """Sorting them means to sort whole rows: at three million bookings, a gigabyte on disk."""
    taken, unused = plans
    (plan,) = [plan for text, plan in taken["copy"] if text.startswith('INSERT INTO "public"."new_bookings"')]
    kinds = {node["Node Type"] for node in nodes(plan)}
    assert "Hash Join" in kinds and not kinds & {"Sort", "Incremental Sort", "Merge Join"}


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("SELECT count(*) FROM bookings AS a JOIN customers AS b ON a.\"customerName\" < b.name", "again and again"),
        ('SELECT count(*) FROM bookings AS b WHERE b.message IS NULL OR EXISTS (SELECT FROM customers AS c WHERE c.name < b."customerName")', "SubPlan"),
        ("SELECT (SELECT count(*) FROM services AS s WHERE s.id = b.\"serviceId\") FROM bookings AS b", "for each of 300000 rows"),
        ("SELECT count(*) FROM (SELECT * FROM bookings OFFSET 0) AS b, LATERAL (SELECT FROM studios AS s WHERE s.id = b.\"studioId\" OFFSET 0) AS s",
         "nested loop over 300000 rows"),
    ],
)  # fmt: skip
def test_a_crawling_plan_is_noticed(plans, cluster, statement, fault):
    with contextlib.closing(cluster.connect(DATABASE)) as connection, connection.cursor() as cursor:
        cursor.execute("SET enable_memoize = off; EXPLAIN (FORMAT JSON) " + statement)
        plan = cursor.fetchone()[0][0]["Plan"]
    assert any(fault in found for found in crawling(plan, plans[1])), json.dumps(plan)


def test_a_bounded_loop_is_not_held_against_a_statement(plans, cluster):
    with contextlib.closing(cluster.connect(DATABASE)) as connection, connection.cursor() as cursor:
        cursor.execute('SET enable_hashjoin = off; SET enable_mergejoin = off; EXPLAIN (FORMAT JSON) SELECT b.id FROM bookings AS b'
                       ' JOIN studios AS s ON s.id = b."studioId" LIMIT 5')  # fmt: skip
        plan = cursor.fetchone()[0][0]["Plan"]
    assert "Nested Loop" in {node["Node Type"] for node in nodes(plan)}
    assert crawling(plan, plans[1]) == []
