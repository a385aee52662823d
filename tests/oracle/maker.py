# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Legacy databases small enough to be worked out by hand."""

from __future__ import annotations

from tests.oracle.model import Legacy, Policies, Projection, project
from tests.oracle.moments import read_moment
from tests.oracle.schema import FULL, Shape

START = read_moment("2025-11-01 12:00:00.123")


class Maker:
    """Builds a legacy database row by row; what a test does not say is NULL, '' or day 0."""

    def __init__(self, shape: Shape = FULL) -> None:
        self.legacy = Legacy({}, shape)

    def _add(self, table: str, **given) -> None:
        row = {}
        for name, column in self.legacy.shape.columns(table).items():
            plain = {"text": "", "boolean": False, "BookingStatus": "PENDING"}.get(column.kind, 0)
            row[name] = given.pop(name, None if column.nullable else plain)
        assert not given, f"{table} has no {given}"
        self.legacy[table].append(row)

    def owner(self, i: str, email: str, **given) -> Maker:
        self._add("studio_owners", id=i, email=email, **given)
        return self

    def customer(self, i: str, email: str, **given) -> Maker:
        self._add("customers", id=i, email=email, **given)
        return self

    def studio(self, i: str, owner: str | None = None) -> Maker:
        self._add("studios", id=i, ownerId=owner)
        return self

    def booking(self, i: str, email: str, customer: str | None = None, **given) -> Maker:
        self._add("bookings", id=i, studioId="s", customerEmail=email, customerId=customer, **given)
        return self

    def row(self, table: str, **given) -> Maker:
        self._add(table, **given)
        return self

    def project(self, **policies) -> Projection:
        return project(self.legacy, Policies(**policies), START)
