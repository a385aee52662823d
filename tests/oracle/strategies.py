# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Random legacy databases, small and nasty, for hypothesis.

They always satisfy the legacy schema's own constraints. Values come from small pools full of near
misses (letter case, spaces that btrim takes and spaces that it leaves, equal times, ids shared by
owners and customers), because rules about identity break where values nearly collide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
_moments = st.one_of(st.sampled_from(_MOMENTS[4:8]), st.sampled_from(_MOMENTS), st.integers(min_value=EARLIEST, max_value=LATEST))
# What an `any` database may have that its policies refuse; drawn as a set, so that each also comes alone.
_FAULTS = ("unusable_emails", "duplicate_identities", "id_collisions", "unresolvable_bookings", "derived_ids_taken")

_usable_emails = st.one_of(
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
    **{enum: st.sampled_from(labels) for enum, labels in ENUMS.items()},
}

# Columns that decide something, hence collide or are blank more often than others.
_BY_NAME = {
    "name": _mostly_blank_texts,
    "phone": _mostly_blank_texts,
    "image": _mostly_blank_texts,
    "password": st.sampled_from(("hash-1", "hash-2", "hash-3", "hash-1 ", "", "  ")),
    "preferredLocale": _mostly_blank_texts,
    "customerName": _mostly_blank_texts,
    "customerPhone": _mostly_blank_texts,
}

# Columns no rule looks at and no unified table has: one value is as good as another.
_FIXED = {
    "studios": {
        "name": "Studio",
        "description": None,
        "address": "Straße 1",
        "city": "Ulm",
        "postalCode": None,
        "phone": "0",
        "email": "s@x.de",
        "latitude": 48.4,
        "longitude": None,
        "openingHours": {"mo": "9-17"},
    },
    "services": {"name": "Massage", "description": None, "price": 59.9, "duration": 60},
}


def policies() -> st.SearchStrategy[Policies]:
    """Every combination of the contract's settings."""
    return st.builds(Policies, **{name: st.sampled_from(choices) for name, choices in POLICY_CHOICES.items()})


def _value(draw: Callable, column: Column) -> Any:
    # NULL by a draw of its own: one_of(none(), …) would let shrinking and sizes favour it too much.
    if column.nullable and draw(st.integers(0, 2)) == 0:
        return None
    return draw(_BY_NAME.get(column.name, _BY_KIND[column.kind]))


def _row(draw: Callable, shape: Shape, table: str, given: dict[str, Any]) -> dict[str, Any]:
    fixed = {**_FIXED.get(table, {}), **given}
    return {name: fixed[name] if name in fixed else _value(draw, column) for name, column in shape.columns(table).items()}


def _ids(draw: Callable, most: int, pool: tuple[str, ...] = _IDS) -> list[str]:
    return draw(st.lists(st.sampled_from(pool), unique=True, min_size=draw(st.integers(0, most // 2)), max_size=most))


def _pick(draw: Callable, parents: list[dict[str, Any]]) -> str:
    return draw(st.sampled_from([row["id"] for row in parents]))


@st.composite
def legacy_databases(draw: Callable, profile: str = "legal", shape: Shape = FULL) -> Case:
    """A legacy database with policies.

    Args:
        profile: ``legal`` has no blocker under its policies; ``any`` may have every kind of them.
        shape: which columns the tables have.
    """
    faults = draw(st.sets(st.sampled_from(_FAULTS), min_size=1)) if profile == "any" else frozenset()
    chosen = draw(policies())
    pool = _IDS[:8] + _GREEDY_IDS if "derived_ids_taken" in faults else _IDS
    legacy = Legacy({}, shape)
    _draw_people(draw, legacy, "studio_owners", _ids(draw, 8, pool), chosen, faults)
    _draw_people(draw, legacy, "customers", _ids(draw, 12, pool), chosen, faults)
    owners, customers = legacy["studio_owners"], legacy["customers"]

    for i in _ids(draw, 6):
        owner = _pick(draw, owners) if owners and draw(st.booleans()) else None
        legacy["studios"].append(_row(draw, shape, "studios", {"id": i, "ownerId": owner}))
    studios = legacy["studios"]
    if owners:
        for n, i in enumerate(_ids(draw, 6)):
            given = {"id": i, "userId": _pick(draw, owners), "providerAccountId": f"{n}%"}
            legacy["accounts"].append(_row(draw, shape, "accounts", given))
        for n, i in enumerate(_ids(draw, 6)):
            given = {"id": i, "userId": _pick(draw, owners), "sessionToken": f"token '{n}'"}
            legacy["sessions"].append(_row(draw, shape, "sessions", given))
    if studios:
        for i in _ids(draw, 2):
            legacy["services"].append(_row(draw, shape, "services", {"id": i, "studioId": _pick(draw, studios)}))
        for i in _ids(draw, 12):
            legacy["bookings"].append(_draw_booking(draw, legacy, i, chosen, faults))
    if studios and customers:
        pairs = st.tuples(st.sampled_from([row["id"] for row in customers]), st.sampled_from([row["id"] for row in studios]))
        legacy["_CustomerFavorites"].extend({"A": a, "B": b} for a, b in draw(st.lists(pairs, unique=True, max_size=10)))
    for n in range(draw(st.integers(0, 2))):
        email = draw(_emails)
        legacy["verification_tokens"].append({"identifier": email, "token": f"v{n}", "expires": draw(_moments)})
        given = {"id": f"e{n}", "email": email, "token": f"w{n}"}
        legacy["email_verification_tokens"].append(_row(draw, shape, "email_verification_tokens", given))
    if profile == "legal":
        # Left to chance only: a derived id that happens to be taken.
        assume(not project(legacy, chosen).blockers)
    return Case(legacy, chosen)


def _draw_people(draw: Callable, legacy: Legacy, table: str, ids: list[str], chosen: Policies, faults: set[str]) -> None:
    """Owners or customers, put right where the policies would refuse them for a fault that may not be."""
    owner_keys = {row["id"]: identity_key(row["email"], chosen) for row in legacy["studio_owners"]}
    emails: set[str] = set()
    keys: set[str] = set()
    for n, i in enumerate(ids):
        email = draw(_emails if "unusable_emails" in faults else _usable_emails)
        refused = "duplicate_identities" not in faults and chosen.duplicate_identities == "fail" and identity_key(email, chosen) in keys
        if email in emails or refused:
            email = f"{table} {n}@Unique.example"
        key = identity_key(email, chosen)
        collides = table == "customers" and owner_keys.get(i, key) != key
        if collides and chosen.id_collisions == "fail" and "id_collisions" not in faults:
            i = f"customer {n}"
        emails.add(email)
        keys.add(key)
        legacy[table].append(_row(draw, legacy.shape, table, {"id": i, "email": email}))


def _draw_booking(draw: Callable, legacy: Legacy, i: str, chosen: Policies, faults: set[str]) -> dict[str, Any]:
    """A booking of a customer, or by e-mail alone."""
    customer = _pick(draw, legacy["customers"]) if legacy["customers"] and draw(st.booleans()) else None
    services = [row["id"] for row in legacy["services"]]
    email = draw(_emails)
    unresolvable = customer is None and not usable(email)
    if unresolvable and chosen.unresolvable_bookings == "fail" and "unresolvable_bookings" not in faults:
        email = "guest" + email + "@Unique.example"
    return _row(
        draw,
        legacy.shape,
        "bookings",
        {
            "id": i,
            "studioId": _pick(draw, legacy["studios"]),
            "customerId": customer,
            "customerEmail": email,
            "serviceId": draw(st.sampled_from(services)) if services and draw(st.booleans()) else None,
            "preferredDate": "2024-02-30",
            "preferredTime": "25:00",
        },
    )
