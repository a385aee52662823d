# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What of verification needs no server: which columns it compares, with what they are compared, and how it fails."""

from __future__ import annotations

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Column, Relation, Schema, resolve_names
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import ROW_COPIES, TABLES, USER_RULES
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify import Check, Verification
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._verify_columns import constant_default, differs, shared_columns
from psycopg2 import sql

from tests.oracle.schema import LEGACY, NAMINGS, SHAPES, SQL_TYPES, UNIFIED, Layout


def column(name: str = "c", kind: str = "text", default: str | None = None, **more) -> Column:
    """A column of some type, as the catalogue would describe it."""
    category = {"text": "S", "character varying": "S", "integer": "N", "boolean": "B", "jsonb": "U", "citext": "S"}.get(kind.split("(")[0], "D")
    return Column(**{
        "name": name, "type": kind, "base_type": kind.split("(")[0].strip(), "category": category, "not_null": False, "default": default,
        "generated": False, "identity": False, **more,
    })  # fmt: skip


def relation(table: str, *columns: Column) -> Relation:
    """A table of some columns, resolved."""
    by_name = {entry.name: entry for entry in columns}
    return Relation(table, table, by_name, resolve_names(list(by_name), table, {})[0])


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_what_is_compared_is_what_is_carried(shape, naming):
    """Two derivations of one sentence of the contract, section 1, must agree on every shape."""
    layout = Layout(shape, naming)
    relations = {
        table: relation(
            table, *(column(layout.actual(table, entry.name), SQL_TYPES.get(entry.kind, entry.kind).lower()) for entry in shape.columns(table).values())
        )
        for table in {**LEGACY, **UNIFIED} if table in TABLES
    }  # fmt: skip
    schema = Schema("public", relations, [])
    for target, (source, ruled) in ROW_COPIES.items():
        assert shared_columns(relations[source], relations[target], ruled) == dict(schema.row_copy(target))
    carried = {entry.target.name: entry.sources for entry in schema.person_columns()}
    compared: dict = {}
    for table in ("studio_owners", "customers"):
        for name, source in shared_columns(relations[table], relations["users"], USER_RULES).items():
            compared.setdefault(name, {})[table] = source
    assert compared == carried
    assert "name" in compared


def test_of_two_spellings_the_same_one_is_meant():
    source = relation("bookings", column("innerNote"), column("inner_note"), column("otherNote"), column("other_note"))
    target = relation("new_bookings", column("innerNote"), column("inner_note"), column("OtherNote"))
    assert shared_columns(source, target, ()) == {"innerNote": "innerNote", "inner_note": "inner_note"}


@pytest.mark.parametrize(
    ("here", "there", "shared"),
    [
        ("text", "text", True), ("character varying(20)", "text", True), ("text", "character varying", True), ("text", "character varying(20)", False),
        ("character varying(20)", "character varying(20)", True), ("character varying(20)", "character varying(30)", False),
        ("integer", "bigint", False), ("integer", "text", False), ("citext", "text", False), ("timestamp(3)", "timestamp(6)", False),
    ],
)  # fmt: skip
def test_one_type_is_asked_for(here, there, shared):
    assert bool(shared_columns(relation("bookings", column("x", here)), relation("new_bookings", column("x", there)), ())) is shared


def test_ruled_and_generated_columns_are_not_compared():
    source = relation("bookings", column("id"), column("x"), column("y"))
    target = relation("new_bookings", column("id"), column("x", generated=True), column("y"))
    assert shared_columns(source, target, ("id",)) == {"y": "y"}


@pytest.mark.parametrize(
    "default",
    [
        None, "NULL::text", "'it''s'::text", "'PENDING'::public.\"BookingStatus\"", "'()'::text", "0", "-1", "'-1'::integer", "(-1)", "1.5", "1e+20", "true",
        "'{}'::jsonb", "'{}'::text[]", "'2024-01-01 00:00:00'::timestamp without time zone", "'2024-01-01 00:00:00'::timestamp(3) without time zone",
        "'x'::character varying(20)", "(0)::numeric", "'x'::\"My schema\".\"My type\"",
    ],
)  # fmt: skip
def test_a_constant_default_is_what_a_column_without_source_must_hold(default):
    assert constant_default(column(default=default)) is not None


@pytest.mark.parametrize(
    "default",
    ["now()", "CURRENT_TIMESTAMP", "gen_random_uuid()", "nextval('s'::regclass)", "(1 + 1)", "upper('x'::text)", "ARRAY[now()]", "'a'::text || CURRENT_USER",
     "('now'::text)::timestamp without time zone + '1 day'::interval", "'x'::text || ''::text"],
)  # fmt: skip
def test_a_default_that_is_computed_cannot_be_known(default):
    assert constant_default(column(default=default)) is None


def test_identity_and_generated_columns_have_no_constant_default():
    assert constant_default(column(identity=True)) is None
    assert constant_default(column(generated=True)) is None


@pytest.mark.parametrize(
    ("kind", "how"), [("text", 'COLLATE "C"'), ("integer", "IS DISTINCT FROM"), ("jsonb", "record_image_ne"), ("money", "record_image_ne")]
)
def test_a_type_decides_how_values_are_compared(kind, how):
    assert how in repr(differs(column(kind=kind), sql.Identifier("left"), sql.Identifier("right")))


def test_a_check_passes_only_when_it_ran_and_found_nothing():
    assert Check("x", 3, 3, 0).passed
    assert not Check("x", 3, 3, 1).passed
    assert not Check("x", None, None, None).passed


def test_the_error_names_the_checks_and_carries_everything():
    found = Verification(
        [Check("users", 3, 2, 1, ["missing u1", "missing u2", "missing u3"], "1 missing"), Check("bookings", 5, 5, 0), Check("total_users", 3, 2, 1)],
        {"users": 2},
    )
    assert not found.passed
    with pytest.raises(UnifiedUserError) as raised:
        found.require(duration_ms=7)
    message = str(raised.value)
    assert message.startswith(
        "Failed to verify the data: 2 of 3 checks failed: users: 1 missing [missing u1, missing u2]; total_users: 2 instead of 3. Compare the rows"
    )
    assert raised.value.details == {**found.as_dict(), "duration_ms": 7}
    assert [check["passed"] for check in raised.value.details["checks"]] == [False, True, False]


@pytest.mark.parametrize(("name", "step"), [("run", "Run playbooks/migrate.yml"), ("settings", "Set these variables as they were in the run")])
def test_what_is_to_be_done_depends_on_what_failed(name, step):
    with pytest.raises(UnifiedUserError, match=step):
        Verification([Check(name, 1, 0, 1)]).require()
