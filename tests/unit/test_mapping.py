# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The mapping, its overriding, and how names are resolved: all without a database."""

from __future__ import annotations

import pytest
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._catalog import Column, Relation, Schema, resolve_names
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._errors import UnifiedUserError
from ansible_collections.rnltlabs.unified_user.plugins.module_utils._mapping import (
    FILLED,
    POLICY_CHOICES,
    ROW_COPIES,
    SOURCES,
    TABLES,
    Policies,
    parse_mapping,
    snake_case,
)


@pytest.mark.parametrize(
    ("logical", "snake"),
    [
        ("customerId", "customer_id"),
        ("providerAccountId", "provider_account_id"),
        ("healthConsentWithdrawnAt", "health_consent_withdrawn_at"),
        ("refresh_token", "refresh_token"),
        ("email", "email"),
        ("A", "A"),
        ("B", "B"),
    ],
)
def test_snake_case(logical, snake):
    assert snake_case(logical) == snake


def test_tables_of_the_mapping_agree_with_each_other():
    assert set(ROW_COPIES) < set(FILLED)
    assert all(source in SOURCES and set(ruled) <= set(TABLES[source].columns) for source, ruled in ROW_COPIES.values())
    assert "phone" not in TABLES["studio_owners"].columns
    assert "confirmedBy" in TABLES["new_bookings"].columns and "confirmedBy" not in TABLES["new_bookings"].required


@pytest.mark.parametrize("policy", POLICY_CHOICES)
def test_policy_with_an_unknown_value_is_refused(policy):
    with pytest.raises(UnifiedUserError, match=f"read policy {policy}"):
        Policies(**{policy: "whatever"})


@pytest.mark.parametrize(
    ("mapping", "path"),
    [
        ({"table": {}}, "unified_user_mapping.table"),
        ({"tables": ["users"]}, "unified_user_mapping.tables"),
        ({"tables": {"owner": {}}}, "unified_user_mapping.tables.owner"),
        ({"tables": {"users": "people"}}, "unified_user_mapping.tables.users"),
        ({"tables": {"users": {"title": "people"}}}, "unified_user_mapping.tables.users.title"),
        ({"tables": {"users": {"name": ""}}}, "unified_user_mapping.tables.users.name"),
        ({"tables": {"users": {"name": "x" * 64}}}, "unified_user_mapping.tables.users.name"),
        ({"tables": {"users": {"columns": {"mail": "email"}}}}, "unified_user_mapping.tables.users.columns.mail"),
        ({"tables": {"users": {"columns": {"email": 7}}}}, "unified_user_mapping.tables.users.columns.email"),
        ({"tables": {"users": {"columns": {"email": "m", "name": "m"}}}}, "unified_user_mapping.tables.users.columns.name"),
        ({"tables": {"users": {"name": "sessions"}}}, "unified_user_mapping.tables.users"),
    ],
)
def test_wrong_key_of_a_mapping_is_named_by_its_path(mapping, path):
    with pytest.raises(UnifiedUserError, match=f"read the mapping at {path}:"):
        parse_mapping(mapping)


def test_mapping_overrides_names():
    names = parse_mapping({"tables": {"studio_owners": {"name": "owners", "columns": {"email": "mail"}}}})
    assert names.table("studio_owners") == "owners" and names.table("customers") == "customers"
    assert names.columns == {"studio_owners": {"email": "mail"}}


def resolve(columns: list, overrides: dict | None = None) -> tuple[dict, list]:
    names, problems = resolve_names(columns, "sessions", overrides or {})
    return names, [(problem.severity, problem.column) for problem in problems]


def test_names_are_resolved_to_the_exact_name_else_its_snake_form():
    assert resolve(["id", "session_token", "userId", "expires"])[0]["sessionToken"] == "session_token"
    assert resolve(["id", "sessionToken", "expires"])[1] == [("blocker", "userId")]
    assert resolve(["id", "sessionToken", "userId", "user_id", "expires"])[1] == [("blocker", "userId")]
    assert resolve(["id", "sessionToken", "owner", "expires"], {"userId": "owner"}) == (
        {"id": "id", "sessionToken": "sessionToken", "userId": "owner", "expires": "expires"}, [],
    )  # fmt: skip
    assert resolve(["id", "sessionToken", "userId", "expires"], {"userId": "owner"})[1] == [("blocker", "userId")]


def test_a_column_claimed_by_the_mapping_is_not_found_for_another_name():
    names, problems = resolve(["id", "sessionToken", "userId", "user_id", "expires"], {"sessionToken": "user_id"})
    assert names["userId"] == "userId" and not problems


def column(name: str, kind: str = "text", **values) -> Column:
    base = kind.split("(")[0]
    defaults = {"category": "S" if base in ("text", "character varying") else "D", "not_null": False, "default": None}
    return Column(name, kind, base, **{**defaults, "generated": False, "identity": False, **values})


@pytest.mark.parametrize(
    ("target", "source", "taken"),
    [
        ("text", "text", True),
        ("text", "character varying(20)", True),
        ("character varying(20)", "text", False),
        ("character varying(20)", "character varying(20)", True),
        ("integer", "text", False),
        ("timestamp(3) without time zone", "timestamp(6) without time zone", False),
    ],
)
def test_a_column_takes_only_what_survives(target, source, taken):
    assert column("c", target).takes(column("c", source)) is taken


def schema(**tables: list[Column]) -> Schema:
    relations = {}
    for logical in TABLES:
        columns = {item.name: item for item in tables.get(logical, [])}
        relations[logical] = Relation(logical, logical, columns, resolve_names(list(columns), logical, {})[0])
    return Schema("public", relations, [])


def test_shared_unlisted_columns_are_carried_and_the_others_told():
    found = schema(
        bookings=[column("id"), column("customerId"), column("source_channel"), column("tags", "jsonb"), column("notes")],
        new_bookings=[column("id"), column("customerId"), column("sourceChannel"), column("tags"), column("confirmedBy")],
    )
    assert found.row_copy("new_bookings") == [("id", "id"), ("sourceChannel", "source_channel")]
    lost = {name: why for table, name, why in found.without_destination() if table == "bookings"}
    assert set(lost) == {"tags", "notes"}
    assert "jsonb here and text" in lost["tags"] and "no such column" in lost["notes"]


def test_columns_of_users_without_rule_follow_the_rule_for_name():
    found = schema(
        studio_owners=[column("id"), column("email"), column("name"), column("locale")],
        customers=[column("id"), column("email"), column("name"), column("phone"), column("is_active", "boolean")],
        users=[column("id"), column("email"), column("name"), column("phone"), column("locale"), column("isActive", "boolean")],
    )
    assert {item.target.name: item.sources for item in found.person_columns()} == {
        "name": {"studio_owners": "name", "customers": "name"},
        "phone": {"customers": "phone"},
        "locale": {"studio_owners": "locale"},
    }
    assert [(table, name) for table, name, why in found.without_destination()] == [("customers", "is_active")]
