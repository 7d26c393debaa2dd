"""Moments: times as they are given on the command line, absolute or from now."""

from __future__ import annotations

import re
import time
from typing import Final

import click

from tsengine.errors import TsEngineError
from tsengine.model import duration, timestamp

_RELATIVE: Final = re.compile(r"(?:now)?(?:([+-])(\w+))?\Z")
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d\Z")
_INTEGER: Final = re.compile(r"[+-]?\d+\Z")
_NOW: Final = "tsengine.now_ns"


class Moment(click.ParamType[int]):
    """A time: `2026-01-31T12:00:00Z`, `2026-01-31` (UTC), nanoseconds, `now`, `-1h`, `now-1h30m`.

    All of one command are from one now.
    """

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Give nanoseconds since the Unix epoch."""
        if isinstance(value, int):
            return value
        text = str(value).strip()
        try:
            return moment(text, now_ns(ctx))
        except TsEngineError as error:
            self.fail(f"{error}; or give now, -1h, now-1h30m", param, ctx)


def moment(text: str, now: int) -> int:
    """Give nanoseconds since the Unix epoch.

    Raises:
        UnknownOptionError: what stands after + or − is no duration.
        TimestampError: it is no time.
    """
    if _INTEGER.match(text):
        return timestamp(int(text))
    relative = _RELATIVE.match(text) if text else None
    if relative is not None:
        sign, length = relative.groups()
        if sign is None:
            return now
        distance = duration(length)
        return timestamp(now - distance if sign == "-" else now + distance)
    return timestamp(f"{text}T00:00:00Z" if _DATE.match(text) else text)


def now_ns(ctx: click.Context | None) -> int:
    """Give the moment of this command, the same each time it is asked."""
    if ctx is None:
        return time.time_ns()
    now: int = ctx.meta.setdefault(_NOW, time.time_ns())
    return now


MOMENT: Final = Moment()
