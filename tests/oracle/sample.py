# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One legal legacy database in which every rule of the contract has something to do and every column is used.

Random databases find what nobody thought of; a change to a unified table can only be shown to be noticed
where there is a row of every kind to change.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from tests.oracle.model import Legacy, Policies
from tests.oracle.moments import read_moment
from tests.oracle.schema import ENUMS, LEGACY, Column, Shape

# Under these every rule applies, and nothing is refused.
RICH_POLICIES = Policies(duplicate_identities="merge", id_collisions="rekey", unresolvable_bookings="quarantine", guest_role="GUEST")

_DAY = 86_400_000

# What decides; every other column gets a value of its own, or NULL in every third row.
_ROWS: dict[str, list[dict[str, Any]]] = {
    "studio_owners": [
        {"id": "o1x", "email": "kept@x.de", "password": "kept", "emailVerified": 1},
        {"id": "o2x", "email": "Adopted@x.de", "password": "untrusted", "emailVerified": None},
        {"id": "o3x", "email": "dropped@x.de ", "password": "untrusted", "emailVerified": None},
        {"id": "o4x", "email": "alone@x.de", "password": "alone", "emailVerified": None, "createdAt": 9 * _DAY},
        {"id": "same", "email": "same@x.de", "password": None, "emailVerified": 5},
        {"id": "o6x", "email": "twin@x.de", "password": "", "emailVerified": 5},
        {"id": "o7x", "email": "Twin@x.de", "password": "twin", "emailVerified": 7, "createdAt": 0},
    ],
    "customers": [
        {"id": "c1x", "email": "Kept@x.de", "password": "other", "emailVerified": 3},
        {"id": "c2x", "email": "adopted@x.de", "password": "adopted", "emailVerified": 2},
        {"id": "c3x", "email": "Dropped@x.de", "password": "", "emailVerified": None, "phone": " "},
        {"id": "same", "email": "collides@x.de", "password": "mine", "emailVerified": 4},
        {"id": "c5x", "email": "never@x.de", "password": " ", "emailVerified": None, "name": " ", "phone": ""},
        {"id": "c6x", "email": "Jürgen@x.de", "password": None, "emailVerified": 6},
        {"id": "c7x", "email": "tie@x.de", "password": "z", "emailVerified": 8, "createdAt": _DAY},
        {"id": "C8x", "email": "TIE@x.de", "password": "z", "emailVerified": 9, "createdAt": _DAY},
    ],
    "accounts": [{"id": f"a{n}x", "userId": owner} for n, owner in enumerate(("o1x", "o2x", "o3x", "o4x", "o6x", "o7x", "same", "o1x"))],
    "sessions": [{"id": f"s{n}x", "userId": owner} for n, owner in enumerate(("o1x", "o2x", "o3x", "o4x", "o6x", "o7x", "o4x"))],
    "studios": [{"id": f"st{n}x", "ownerId": owner} for n, owner in enumerate(("o1x", "o1x", "o3x", "o7x", None))],
    "services": [{"id": "sv0x", "studioId": "st0x"}, {"id": "sv1x", "studioId": "st4x"}],
    "bookings": [
        {"id": "b0x", "customerId": "c1x", "customerEmail": "kept@x.de"},
        {"id": "b1x", "customerId": "c2x", "customerEmail": "guest@x.de"},
        {"id": "b2x", "customerId": "same", "customerEmail": ""},
        {"id": "b3x", "customerId": None, "customerEmail": " ALONE@x.de"},
        {"id": "b4x", "customerId": None, "customerEmail": "never@x.de"},
        {"id": "b5x", "customerId": None, "customerEmail": "tie@x.de"},
        {"id": "b6x", "customerId": None, "customerEmail": " Guest@x.de", "customerName": "First", "customerPhone": "1", "createdAt": 1},
        {"id": "b7x", "customerId": None, "customerEmail": "guest@X.de", "customerName": "Last", "customerPhone": " ", "createdAt": 2},
        {"id": "b8x", "customerId": None, "customerEmail": "GUEST@x.de", "customerName": " ", "customerPhone": "", "createdAt": 2},
        {"id": "b9x", "customerId": None, "customerEmail": "visitor@x.de", "customerName": "", "customerPhone": ""},
        {"id": "b10x", "customerId": None, "customerEmail": "no address"},
        {"id": "b11x", "customerId": None, "customerEmail": " "},
        {"id": "b12x", "customerId": "c7x", "customerEmail": "tie@x.de"},
        {"id": "b13x", "customerId": None, "customerEmail": "visitor@x.de"},
    ],
    "_CustomerFavorites": [{"A": a, "B": b} for a, b in (
        ("c1x", "st0x"), ("c2x", "st0x"), ("c7x", "st1x"), ("C8x", "st1x"), ("C8x", "st2x"), ("same", "st0x"), ("c5x", "st4x"))],
    "verification_tokens": [{"identifier": "kept@x.de", "token": "t"}],
    "email_verification_tokens": [{"id": "e", "email": "never@x.de", "token": "t"}],
}  # fmt: skip


def rich_legacy(shape: Shape) -> Legacy:
    """The database, in a shape; legal under `RICH_POLICIES`."""
    legacy = Legacy({}, shape)
    for table in LEGACY:
        for n, given in enumerate(_ROWS[table]):
            columns = shape.columns(table)
            row = {name: _value(table, column, n + k) for k, (name, column) in enumerate(columns.items())}
            row.update({name: value for name, value in given.items() if name in columns})
            if "studioId" in columns and "studioId" not in given:
                row["studioId"] = f"st{n % 5}x"
            if "serviceId" in columns:
                row["serviceId"] = f"sv{n % 2}x" if n % 3 else None
            legacy[table].append(row)
    return legacy


def _value(table: str, column: Column, n: int) -> Any:
    """A value that no other row has in this column, where its type allows that; NULL every third time."""
    if column.nullable and n % 3 == 0:
        return None
    if column.kind == "text":
        return f"{table}.{column.name} {n} 'ü%s\n"
    if column.kind == "moment":
        return read_moment("2024-02-29 23:59:59.123") + n * _DAY + n
    if column.kind in ENUMS:
        return ENUMS[column.kind][n % len(ENUMS[column.kind])]
    return {
        "boolean": n % 2 == 0,
        "integer": n,
        "float": n / 7,
        "json": {"n": n, "of": [column.name]},
        "plain json": f'{{"n":  {n}}}',
        "short text": f"{column.name} {n}",
        "number": Decimal(n).scaleb(-2),
        "texts": [column.name, None, str(n)],
        "bytes": bytes([n, 255, 0]),
        "uuid": f"{n:08x}-0000-0000-0000-000000000000",
    }[column.kind]
