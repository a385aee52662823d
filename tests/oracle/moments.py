# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Moments: TIMESTAMP(3) values as whole milliseconds since 1970, or plus or minus infinity.

Python's datetime ends at the years 1 and 9999; PostgreSQL's timestamp reaches from 4713 BC to
294276 AD and knows both infinities. Integers hold all of them and compare as they should.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

INFINITY = float("inf")
EARLIEST = -210_866_803_200_000 + 86_400_000
LATEST = 9_223_371_331_199_999

_DAY = 86_400_000
_CYCLE_DAYS = 146_097  # 400 years of the Gregorian calendar
_EPOCH = datetime(1970, 1, 1)
_TEXT = re.compile(r"(\d+)-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,3}))?( BC)?")


def show_moment(value: float) -> str:
    """A moment as PostgreSQL reads it (DateStyle ISO)."""
    if value in (INFINITY, -INFINITY):
        return "infinity" if value > 0 else "-infinity"
    days, rest = divmod(value, _DAY)
    cycles, days = divmod(days, _CYCLE_DAYS)
    day = _EPOCH + timedelta(days=days, milliseconds=rest)
    year = day.year + 400 * cycles
    era = ""
    if year <= 0:
        year, era = 1 - year, " BC"
    return f"{year:04d}-{day:%m-%d %H:%M:%S}.{day.microsecond // 1000:03d}{era}"


def read_moment(text: str) -> float:
    """A moment from PostgreSQL's text or JSON form of a TIMESTAMP(3).

    Raises:
        ValueError: the text is no such moment, or finer than a millisecond.
    """
    if text in ("infinity", "-infinity"):
        return INFINITY if text == "infinity" else -INFINITY
    match = _TEXT.fullmatch(text)
    if not match:
        raise ValueError(f"not a TIMESTAMP(3): {text!r}")
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    if match[8]:
        year = 1 - year
    cycles = (year - 1970) // 400
    moment = datetime(year - 400 * cycles, month, day, hour, minute, second) - _EPOCH
    return (cycles * _CYCLE_DAYS + moment.days) * _DAY + moment.seconds * 1000 + int((match[7] or "0").ljust(3, "0"))
