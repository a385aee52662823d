# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The oracle while only forward sync is on: sections 2 and 3 to the letter, what a blocker would stop in quarantine.

Readings, where the contract leaves a choice (each the one that loses nothing):

* What a blocker stops is judged on the whole legacy side, quarantined rows included, as before a run.
* Of an id collision under ``fail``, and of a derived id that is taken under ``rekey``, the customer goes to quarantine.
* "Every row after the first" of a duplicate identity is meant literally: a lone customer behind two owners goes, too.
* The rows that refer to a quarantined person are bookings by customerId, accounts, sessions, favourites, and studios
  (which stay where they are, but give no ownership).
* A booking by e-mail alone whose key only quarantined rows have makes a guest: no user has that key.
* A guest's id that any owner or customer has, quarantined or not, belongs to somebody else.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from tests.oracle.model import Legacy, Policies, Projection, Row, derived_id, identity_key, project, usable
from tests.oracle.schema import Shape

# Table -> the column that refers to a person, and the person's table.
_REFERENCES = (
    ("accounts", "userId", "studio_owners"),
    ("sessions", "userId", "studio_owners"),
    ("studios", "ownerId", "studio_owners"),
    ("bookings", "customerId", "customers"),
    ("_CustomerFavorites", "A", "customers"),
)

# Columns that hold the time of the run, or of the transaction that made the row.
_TIMES = {"user_role_assignments": ("grantedAt",), "studio_ownership": ("invitedAt", "acceptedAt")}


def source_id(table: str, row: Row) -> Any:
    """What a quarantined row is called here; the two ids of a favourite, whatever the journal makes of them."""
    return (row["A"], row["B"]) if table == "_CustomerFavorites" else row["id"]


def survivor_order(table: str, row: Row) -> tuple:
    """Section 2's order: the smallest is the survivor."""
    return (table != "studio_owners", row["emailVerified"] is None, row["createdAt"], row["id"].encode())


def quarantined_people(legacy: Legacy, policies: Policies) -> set[tuple[str, str]]:
    """(table, id) of every owner and customer that a blocker would have stopped."""
    found: set[tuple[str, str]] = set()
    identities: dict[str, list[tuple[str, Row]]] = defaultdict(list)
    for table in ("studio_owners", "customers"):
        for row in legacy[table]:
            identities[identity_key(row["email"], policies)].append((table, row))
            if not usable(row["email"]):
                found.add((table, row["id"]))
    if policies.duplicate_identities == "fail":
        for members in identities.values():
            tables = [table for table, _row in members]
            if len(tables) > len(set(tables)):
                ordered = sorted(members, key=lambda member: survivor_order(*member))
                found |= {(table, row["id"]) for table, row in ordered[1:]}
    owner_keys = {row["id"]: identity_key(row["email"], policies) for row in legacy["studio_owners"]}
    stored = {row["id"] for table in ("studio_owners", "customers") for row in legacy[table]}
    for row in legacy["customers"]:
        collides = row["id"] in owner_keys and owner_keys[row["id"]] != identity_key(row["email"], policies)
        if collides and (policies.id_collisions == "fail" or derived_id("customer:" + row["id"]) in stored):
            found.add(("customers", row["id"]))
    return found


def quarantine(legacy: Legacy, policies: Policies) -> dict[tuple[str, Any], Row]:
    """(table, source id) -> row of everything that sync keeps in quarantine."""
    people = quarantined_people(legacy, policies)
    found = {(table, row["id"]): row for table in ("studio_owners", "customers") for row in legacy[table] if (table, row["id"]) in people}
    for table, column, target in _REFERENCES:
        for row in legacy[table]:
            if (target, row[column]) in people:
                found[table, source_id(table, row)] = row
    for row in legacy["bookings"]:
        if row["customerId"] is None and not usable(row["customerEmail"]):
            found["bookings", row["id"]] = row
    return found


def project_under_sync(legacy: Legacy, policies: Policies, started_at: float = 0) -> Projection:
    """What the unified side, identity_map and quarantine must be while only forward sync is on."""
    kept = quarantine(legacy, policies)
    rest = Legacy({}, legacy.shape)
    for table, rows in legacy.tables.items():
        for row in rows:
            key = row["id"] if "id" in row else (row["A"], row["B"]) if "A" in row else None
            if table == "studios" and (table, key) in kept:
                rest[table].append({**row, "ownerId": None})
            elif (table, key) not in kept:
                rest[table].append(row)
    stored = {row["id"] for table in ("studio_owners", "customers") for row in legacy[table]}
    if policies.id_collisions == "rekey":
        stored |= {derived_id("customer:" + row["id"]) for row in legacy["customers"]}
    keys = {identity_key(row["customerEmail"], policies) for row in rest["bookings"] if row["customerId"] is None}
    result = project(rest, policies, started_at, {key: free_guest_id(key, stored) for key in keys})
    if result.blockers:
        raise AssertionError(f"the oracle leaves blockers: {result.blockers}")
    result.quarantine = kept
    result.counts["bookings_quarantined"] = len(kept)
    return result


def guest_ids(key: str) -> Iterator[str]:
    """The ids a guest of a key may have, the first choice first."""
    yield derived_id("guest:" + key)
    n = 2
    while True:
        yield derived_id(f"guest:{key}#{n}")
        n += 1


def free_guest_id(key: str, taken: set[str]) -> str:
    """The first of a guest's ids that nobody else has."""
    return next(user_id for user_id in guest_ids(key) if user_id not in taken)


def with_comparable_quarantine(actual: Projection) -> Projection:
    """A database's own word with its quarantine under the names that `quarantine` uses."""
    actual.quarantine = {(table, source_id(table, row) if table == "_CustomerFavorites" else source): row for (table, source), row in actual.quarantine.items()}
    return actual


def as_kept(shape: Shape, kept: dict[tuple[str, Any], Row]) -> dict[tuple[str, Any], Row]:
    """Rows as JSONB keeps them: a JSON text by its meaning."""
    return {
        (table, source): {
            name: json.loads(value, parse_float=Decimal) if shape.columns(table)[name].kind == "plain json" and value is not None else value
            for name, value in row.items()
        }
        for (table, source), row in kept.items()
    }


def adopt_times(expected: Projection, actual: Projection, started_at: float, now: float) -> None:
    """Take over the times of rows later than the run's start, as far as they are such times."""
    for table, names in _TIMES.items():
        for key, row in expected.tables[table].items():
            there = actual.tables[table].get(key, {})
            given = {there[name] for name in names if name in row and name in there}
            if len(given) == 1 and all(value is not None and started_at <= value <= now for value in given):
                row.update((name, there[name]) for name in names if name in row)
