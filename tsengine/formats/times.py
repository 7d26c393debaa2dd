"""Times as text: integers since 1970 in a unit, ISO 8601, or a pattern of `strptime`."""

from __future__ import annotations

import datetime as dt
import re
import zoneinfo
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final

from tsengine.errors import TimestampError, UnknownOptionError
from tsengine.model import INT64_MAX, INT64_MIN, timestamp

UNITS: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
"""Nanoseconds of a unit."""

ISO: Final = "iso"

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,30}\Z", re.ASCII)
_DECIMAL: Final = re.compile(r"[+-]?[0-9]{1,30}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,2})?\Z")
_NAIVE: Final = re.compile(r"\d{4}-?\d\d-?\d\d(?:[T ][0-9:.,]*)?\Z", re.ASCII)

_UNIT_MAGNITUDES: Final = ((10**17, "ns"), (10**14, "us"), (10**11, "ms"))
"""From which number on a time is probably of that unit: each is 1973, in the next finer unit."""


@dataclass(frozen=True, slots=True)
class TimeForm:
    """How times are written.

    Attributes:
        form: a unit of `UNITS`, `iso`, or a pattern of `strptime` with a `%`.
        zone: the zone of times that name none, such as `UTC` or `Europe/Berlin`; None where
            they are refused.

    Raises:
        UnknownOptionError: there is no such form or zone.
    """

    form: str
    zone: str | None = None

    def __post_init__(self) -> None:
        if self.form not in UNITS and self.form != ISO and "%" not in self.form:
            raise UnknownOptionError(
                f"times are {', '.join(UNITS)} since 1970, {ISO}, or a pattern such as "
                f"'%d.%m.%Y %H:%M:%S', not {self.form!r}"
            )
        if self.zone is not None:
            try:
                zoneinfo.ZoneInfo(self.zone)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
                raise UnknownOptionError(f"there is no time zone {self.zone!r}") from None

    @property
    def unit(self) -> int | None:
        """Nanoseconds of the unit; None for times as text."""
        return UNITS.get(self.form)

    def read(self, text: str) -> int:
        """Give the nanoseconds since 1970 that a text means.

        Raises:
            TimestampError: it means none.
        """
        text = text.strip(" \t")
        unit = UNITS.get(self.form)
        if unit is not None:
            return read_number(text, unit)
        if self.form == ISO:
            if self.zone is None or not _NAIVE.match(text):
                return timestamp(text)
            return self._in_zone(text)
        try:
            moment = dt.datetime.strptime(text, self.form)  # noqa: DTZ007  # its zone comes below
        except ValueError as error:
            raise TimestampError(str(error)) from None
        if moment.tzinfo is None:
            if self.zone is None:
                raise TimestampError(f"{text!r} names no time zone, and none is given for it")
            moment = moment.replace(tzinfo=zoneinfo.ZoneInfo(self.zone))
        return timestamp(moment)

    def _in_zone(self, text: str) -> int:
        """Read ISO 8601 without an offset: read it as UTC, then move it to the zone."""
        as_utc = timestamp(f"{text}Z" if len(text) > len("2024-01-31") else f"{text}T00:00:00Z")
        if self.zone == "UTC":
            return as_utc
        seconds, fraction = divmod(as_utc, UNITS["s"])
        naive = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)  # noqa: DTZ001  # a zone follows
        moment = naive.replace(tzinfo=zoneinfo.ZoneInfo(self.zone or "UTC"))
        return timestamp(timestamp(moment) + fraction)


def read_number(text: str, unit: int) -> int:
    """Give the nanoseconds of a number of units; a fraction where it is whole nanoseconds.

    Raises:
        TimestampError: it is none, or beyond int64.
    """
    nanoseconds: int | None = None
    if _INTEGER.match(text):
        nanoseconds = int(text) * unit
    elif _DECIMAL.match(text):
        try:
            exact = Decimal(text) * unit
            nanoseconds = int(exact) if exact == exact.to_integral_value() else None
        except InvalidOperation:
            nanoseconds = None
        if nanoseconds is None:
            raise TimestampError(f"{text[:80]!r} is finer than a nanosecond")
    if nanoseconds is None:
        raise TimestampError(f"{text[:80]!r} is no time since 1970")
    if not INT64_MIN <= nanoseconds <= INT64_MAX:
        raise TimestampError(f"{text[:80]!r} is beyond int64 nanoseconds; is that its unit?")
    return nanoseconds


def guess_form(column: str, texts: list[str]) -> str:
    """Guess how times are written by the name of their column and the first of them."""
    suffix = column.rpartition("_")[2]
    if suffix in UNITS and suffix != column:
        return suffix
    numbers = [text for text in texts if _DECIMAL.match(text)]
    if len(numbers) <= len(texts) // 2:  # a few bad rows say nothing of the others
        return ISO
    largest = max(abs(Decimal(text)) for text in numbers)
    return next((unit for least, unit in _UNIT_MAGNITUDES if largest >= least), "s")
