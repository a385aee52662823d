# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Random legacy databases, small and nasty, for hypothesis.

They always satisfy the legacy schema's own constraints. Values come from small pools full of near
misses (letter case, spaces that btrim takes and spaces that it leaves, equal times, ids shared by
owners and customers), because rules about identity break where values nearly collide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from tests.oracle.database import describe_policies
from tests.oracle.model import POLICY_CHOICES, Legacy, Policies, derived_id, identity_key, project, usable
from tests.oracle.moments import EARLIEST, INFINITY, LATEST, read_moment
from tests.oracle.schema import ENUMS, FULL, Column, Shape

PROFILES = ("legal", "any")


@dataclass(frozen=True, eq=False)
class Case:
    """A legacy database and the policies to transform it under."""

    legacy: Legacy
    policies: Policies

    def __repr__(self) -> str:
        return f"{self.legacy!r}\n  policies: {describe_policies(self.policies)}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


# The Kelvin sign, the dotted capital I and the capital sharp s lower-case to ASCII-like letters in some locales.
_ADDRESSES = (
    "anna@x.de",
    "bo@x.de",
    "o'brien@x.de",
    "k@x.de",
    "i@x.de",
    "jürgen@x.de",
    "ß@x.de",
    "%s@x.de",
    "{}@x.de",
    'a"b\\@x.de',
    "a\n@x.de",
    "a b@x.de",
    "@",
    "a@b@c",
)
_SPELLINGS: tuple[Callable[[str], str], ...] = (
    str,
    str.title,
    str.upper,
    lambda a: " " + a,
    lambda a: a + "  ",
    lambda a: " " + a.title() + " ",
    lambda a: "\t" + a,
    lambda a: a + "\n",
    lambda a: "\u00a0" + a,
    lambda a: a + "\u3000",
    lambda a: a.replace("@", " @ "),
)
_USABLE = tuple(
    dict.fromkeys(
        [spelling(address) for spelling in _SPELLINGS for address in _ADDRESSES]
        + [
            "\u212a@x.de",
            "\u0130@x.de",
            "\u0131@x.de",
            "\u1e9e@x.de",
            "J\u00dcRGEN@x.de",
            "ju\u0308rgen@x.de",
            "\uff41nna@x.de",
            "\U0001f600@x.de",
            "\ufb03@x.de",
            "a@x.de\u200b",
            "a@x.de",
            "A" * 900 + "@x.de",
            "a" * 900 + "@X.de",
        ]
    )
)
_UNUSABLE = ("", " ", "   ", "\t", "\u00a0", "nobody", " Nobody ", "anna at x.de", "\uff20", "NULL")

_IDS = (
    "1",
    "2",
    "3",
    "a",
    "A",
    "b",
    "B",
    "_",
    "~",
    "é",
    "e\u0301",
    "ß",
    "\U0001f600",
    "",
    " ",
    " a",
    "a ",
    "10",
    "9",
    "o'c",
    '"q"',
    "%s",
    "%(x)s",
    "{}",
    "a\\b",
    "a\nb",
    "a:b",
    "STUDIO_OWNER",
    "x" * 300,
)
_GREEDY_IDS = tuple(
    [derived_id("customer:" + i) for i in _IDS[:4]] + [derived_id("guest:" + key) for key in ("anna@x.de", "bo@x.de", "Anna@X.De", "o'brien@x.de")]
)

_TEXTS = (
    "Anna",
    "anna",
    "Bo",
    "Łukasz Żółć",
    "李雷",
    "O'Brien",
    '"quoted"',
    "100 %",
    "%s %(name)s %%",
    "{} {0} {name}",
    "a\\b\\n",
    "line\nbreak\r\n",
    "tab\t",
    " padded ",
    "\u00a0",
    "\t",
    "NULL",
    "null",
    "\\N",
    "$$;--",
    "e\u0301",
    "\u202eabc",
    "\U0001f469\u200d\U0001f680",
    "\x01\x7f",
    "x" * 100_000,
    "é'" * 50_000,
)
_BLANKS = ("", " ", "     ")

_MOMENTS = (
    0,
    -1,
    1,
    999,
    -999_000,
    1_700_000_000_000,
    1_700_000_000_001,
    1_700_000_000_000 - 86_400_000,
    read_moment("1969-12-31 23:59:59.999"),
    read_moment("1582-10-15 00:00:00"),
    read_moment("1900-02-28 12:00:00.001"),
    read_moment("0001-01-01 00:00:00"),
    read_moment("0044-03-15 12:00:00.5 BC"),
    read_moment("2024-02-29 02:30:00.123"),
    read_moment("2024-03-31 02:30:00"),
    read_moment("9999-12-31 23:59:59.999"),
    read_moment("10000-01-01 00:00:00"),
    EARLIEST,
    LATEST,
    INFINITY,
    -INFINITY,
)

_DOCUMENTS = ({}, [], "", " ", 0, False, {"b": 1, "a": [1, 2, {"x": "é'%s"}]}, [None], "text")

_some_text = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=8)
_texts = st.one_of(st.sampled_from(_TEXTS[:8]), st.sampled_from(_TEXTS + _BLANKS), _some_text)
_mostly_blank_texts = st.sampled_from(_TEXTS[:4] + _BLANKS * 2)
_moments = st.one_of(st.sampled_from((0, *_MOMENTS[4:8])), st.sampled_from(_MOMENTS), st.integers(min_value=EARLIEST, max_value=LATEST))
# What an `any` database may have that its policies refuse; drawn as a set, so that each also comes alone.
_FAULTS = ("unusable_emails", "duplicate_identities", "id_collisions", "unresolvable_bookings", "derived_ids_taken")

_usable_emails = st.one_of(
    st.sampled_from([spelling("anna@x.de") for spelling in _SPELLINGS[:6]]),
    st.sampled_from([spelling("anna@x.de") for spelling in _SPELLINGS]),
    st.sampled_from([spelling(address) for address in _ADDRESSES[1:3] for spelling in _SPELLINGS[:6]]),
    st.sampled_from(_USABLE),
)
_emails = st.one_of(_usable_emails, _usable_emails, _usable_emails, st.sampled_from(_UNUSABLE))

_BY_KIND = {
    "text": _texts,
    "moment": _moments,
    "boolean": st.booleans(),
    "integer": st.sampled_from((0, 1, -1, 2**31 - 1, -(2**31))),
    "float": st.sampled_from((0.0, 0.1, -1.5, 1e300, 1 / 3, 5e-324)),
    "json": st.sampled_from(_DOCUMENTS),
    "plain json": st.sampled_from(('{"b": 1,  "a": 2, "b": 3}', "[]", ' "x" ', "1.0", "null")),
    "short text": _mostly_blank_texts,
    "number": st.sampled_from(tuple(map(Decimal, ("0", "0.00", "1.0", "1.00", "-12345678901234567890.123456789")))),
    "texts": st.sampled_from(([], [""], [None], ["a,b", '"', "\\", "{}"], ["NULL", None, "ü"])),
    "bytes": st.binary(max_size=4),
    "uuid": st.sampled_from(("00000000-0000-0000-0000-000000000000", "6f9619ff-8b86-d011-b42d-00cf4fc964ff")),
    **{enum: st.sampled_from(labels) for enum, labels in ENUMS.items()},
}

_indexes = st.integers(0, 11)
_maybe_indexes = st.one_of(st.none(), _indexes)

# Columns that decide something, hence collide or are blank more often than others; and references to other
# tables' rows, drawn as numbers, since a row must be drawn in one piece for hypothesis to be able to leave it out.
_BY_NAME = {
    **dict.fromkeys(("name", "phone", "image", "customerName", "customerPhone", "preferredLocale"), _mostly_blank_texts),
    "password": st.sampled_from(("hash-1", "hash-2", "hash-3", "hash-1 ", "", "  ")),
    "id": st.sampled_from(_IDS),
    **dict.fromkeys(("A", "B", "userId", "studioId"), _indexes),
    **dict.fromkeys(("customerId", "serviceId", "ownerId"), _maybe_indexes),
    "customerEmail": _emails,
    **dict.fromkeys(("preferredDate", "preferredTime", "token", "sessionToken", "providerAccountId"), st.just("")),
}

# Columns no rule looks at and no unified table has: one value is as good as another.
_FIXED = {
    "studios": {
        "name": "Studio", "description": None, "address": "Straße 1", "city": "Ulm", "postalCode": None, "phone": "0",
        "email": "s@x.de", "latitude": 48.4, "longitude": None, "openingHours": {"mo": "9-17"},
    },
    "services": {"name": "Massage", "description": None, "price": 59.9, "duration": 60},
}  # fmt: skip

# Table -> rows at least in a big database, rows at most in any.
_SIZES = {"studio_owners": (4, 8), "customers": (6, 12), "accounts": (3, 6), "sessions": (3, 6), "studios": (2, 6), "services": (0, 2),
          "bookings": (6, 14), "_CustomerFavorites": (4, 10), "verification_tokens": (0, 2), "email_verification_tokens": (0, 2)}  # fmt: skip

_REFERENCES = {"studioId": "studios", "serviceId": "services", "customerId": "customers", "ownerId": "studio_owners",
               "userId": "studio_owners", "A": "customers", "B": "studios"}  # fmt: skip


def policies() -> st.SearchStrategy[Policies]:
    """Every combination of the contract's settings."""
    return st.builds(Policies, **{name: st.sampled_from(choices) for name, choices in POLICY_CHOICES.items()})


def _values(table: str, column: Column, special: dict[str, st.SearchStrategy]) -> st.SearchStrategy:
    if column.name in _FIXED.get(table, {}):
        return st.just(_FIXED[table][column.name])
    if column.name in special:
        return special[column.name]
    values = _BY_NAME.get(column.name, _BY_KIND[column.kind])
    return st.one_of(st.none(), values, values) if column.nullable and column.name not in _REFERENCES else values


@cache
def row_values(shape: Shape, table: str, only: tuple[str, ...] = ()) -> st.SearchStrategy[dict[str, Any]]:
    """A row's values, or those of the columns given, as far as the table has them; references are still numbers."""
    columns = shape.columns(table)
    return st.fixed_dictionaries({name: _values(table, columns[name], {}) for name in only or columns if name in columns})


def email_addresses(unusable: bool = False) -> st.SearchStrategy[str]:
    """Usable e-mail addresses that nearly collide; with some that are unusable."""
    return _emails if unusable else _usable_emails


def _rows(shape: Shape, table: str, big: bool, special: dict[str, st.SearchStrategy]) -> st.SearchStrategy[list[dict[str, Any]]]:
    row = st.fixed_dictionaries({name: _values(table, column, special) for name, column in shape.columns(table).items()})
    least, most = _SIZES[table]
    return st.lists(row, min_size=least if big else 0, max_size=most)


@cache
def _raw_tables(shape: Shape, big: bool, faults: frozenset[str]) -> dict[str, st.SearchStrategy]:
    """Rows that do not know of each other yet."""
    emails = _emails if "unusable_emails" in faults else _usable_emails
    people = {"email": emails, **({"id": st.sampled_from(_IDS[:8] + _GREEDY_IDS)} if "derived_ids_taken" in faults else {})}
    return {table: _rows(shape, table, big, people if table in ("studio_owners", "customers") else {}) for table in _SIZES}


@st.composite
def legacy_databases(draw: Callable, profile: str = "legal", shape: Shape = FULL) -> Case:
    """A legacy database with policies.

    Args:
        profile: ``legal`` has no blocker under its policies; ``any`` may have every kind of them.
        shape: which columns the tables have.
    """
    faults = draw(st.frozensets(st.sampled_from(_FAULTS), min_size=1)) if profile == "any" else frozenset()
    chosen = draw(policies())
    big = draw(st.sampled_from((False, True, True)))
    raw = {table: draw(rows) for table, rows in _raw_tables(shape, big, faults).items()}
    legacy = Legacy({}, shape)
    _settle_people(legacy, raw, chosen, faults)
    for table in ("studios", "services", "accounts", "sessions", "bookings", "_CustomerFavorites"):
        _refer(legacy, table, raw[table])
    for row in legacy["bookings"]:
        unresolvable = row["customerId"] is None and not usable(row["customerEmail"])
        if unresolvable and chosen.unresolvable_bookings == "fail" and "unresolvable_bookings" not in faults:
            row["customerEmail"] = "guest" + row["customerEmail"] + "@Unique.example"
    for table, column in (("accounts", "providerAccountId"), ("sessions", "sessionToken"), ("verification_tokens", "token"),
                          ("email_verification_tokens", "token"), ("email_verification_tokens", "id")):  # fmt: skip
        rows = legacy[table] if table in ("accounts", "sessions") else raw[table]
        for n, row in enumerate(rows):
            row[column] = f"{n} %s"
        legacy.tables[table] = rows
    if profile == "legal":
        # Left to chance only: a derived id that happens to be taken.
        assume(not project(legacy, chosen).blockers)
    return Case(legacy, chosen)


def _settle_people(legacy: Legacy, raw: dict[str, Any], chosen: Policies, faults: frozenset[str]) -> None:
    """Owners and customers, put right where the schema forbids them, or the policies for a fault that may not be."""
    owner_keys: dict[str, str] = {}
    for table in ("studio_owners", "customers"):
        ids: set[str] = set()
        emails: set[str] = set()
        keys: set[str] = set()
        for n, row in enumerate(raw[table]):
            key = identity_key(row["email"], chosen)
            refused = key in keys and chosen.duplicate_identities == "fail" and "duplicate_identities" not in faults
            if row["email"] in emails or refused:
                row["email"] = f"{table} {n}@Unique.example"
                key = identity_key(row["email"], chosen)
            collides = table == "customers" and owner_keys.get(row["id"], key) != key
            if row["id"] in ids or (collides and chosen.id_collisions == "fail" and "id_collisions" not in faults):
                row["id"] = f"{table} {n}"
            ids.add(row["id"])
            emails.add(row["email"])
            keys.add(key)
            legacy[table].append(row)
        owner_keys = {row["id"]: identity_key(row["email"], chosen) for row in raw["studio_owners"]}


def _refer(legacy: Legacy, table: str, rows: list[dict[str, Any]]) -> None:
    """Numbers become ids of rows that are there; what can refer to nothing, or is there already, goes."""
    seen = set()
    for row in rows:
        for column, target in _REFERENCES.items():
            if column in row and row[column] is not None:
                there = legacy[target]
                row[column] = there[row[column] % len(there)]["id"] if there else None
        required = (name for name, column in legacy.shape.columns(table).items() if not column.nullable)
        key = row["id"] if "id" in row else (row["A"], row["B"])
        if key not in seen and all(row[name] is not None for name in required):
            seen.add(key)
            legacy[table].append(row)
