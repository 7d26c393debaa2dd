"""Time: int64 nanoseconds since the Unix epoch in UTC, durations, half-open ranges."""

from __future__ import annotations

import datetime as dt
import operator
import re
from collections.abc import Sequence
from typing import Final, SupportsIndex, TypeAlias

import numpy as np
import numpy.typing as npt

from tsengine.errors import (
    BatchShapeError,
    InvalidDataError,
    RangeError,
    TimestampError,
    UnknownOptionError,
)
from tsengine.model.absent import absent_rows

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
RANGE_END_MAX: Final = 2**63
"""The end of a range that leaves nothing out: one past the last timestamp."""

TimestampLike: TypeAlias = "SupportsIndex | dt.datetime | np.datetime64 | str"
"""A moment, as `timestamp` takes it."""

DurationLike: TypeAlias = "dt.timedelta | str"
"""A length of time, as `duration` takes it."""

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NS_PER_UNIT: Final = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60 * 1_000_000_000,
    "h": 3_600 * 1_000_000_000,
    "d": 86_400 * 1_000_000_000,
    "w": 7 * 86_400 * 1_000_000_000,
}
_DURATION: Final = re.compile(r"(?:\d+(?:ns|us|ms|s|m|h|d|w))+\Z")
_DURATION_PART: Final = re.compile(r"(\d+)(ns|us|ms|s|m|h|d|w)")
_ISO_FRACTION: Final = re.compile(r"(.*(?::\d\d:\d\d|T\d{6}))[.,](\d+)(.*)\Z", re.DOTALL)


def timestamp(moment: TimestampLike) -> int:
    """Convert a moment to integer nanoseconds since the Unix epoch, UTC.

    Args:
        moment: an integer of any type but bool (nanoseconds already); an aware
            `datetime` or `pandas.Timestamp`; a `numpy.datetime64` (UTC, as numpy has it);
            ISO 8601 text with an offset or `Z` and up to nine digits of a second.

    Raises:
        TimestampError: none of these, naive, not a time, or beyond int64.
    """
    if type(moment) is int:
        nanoseconds = moment
    elif isinstance(moment, np.datetime64):
        return int(_datetime64_to_ns(np.asarray(moment).reshape(1))[0])
    elif isinstance(moment, (bool, np.bool_, np.timedelta64)):
        raise TimestampError(_not_a_timestamp(moment))
    elif isinstance(moment, dt.datetime):
        nanoseconds = _datetime_to_ns(moment)
    elif isinstance(moment, str):
        nanoseconds = _text_to_ns(moment)
    else:
        try:
            nanoseconds = operator.index(moment)
        except TypeError:
            raise TimestampError(_not_a_timestamp(moment)) from None
    if not INT64_MIN <= nanoseconds <= INT64_MAX:
        raise TimestampError(
            f"timestamp {nanoseconds} is beyond int64; nanoseconds since 1970 reach to 2262"
        )
    return nanoseconds


def timestamp_array(moments: object) -> npt.NDArray[np.int64]:
    """Convert an array or sequence of moments to int64[n] nanoseconds.

    Args:
        moments: an integer or datetime64 array, a pandas or Arrow column of these, or a
            sequence of what `timestamp` takes.

    Returns:
        int64[n], contiguous; the input itself where it is that already.

    Raises:
        BatchShapeError: not one-dimensional.
        TimestampError: an element is no timestamp; `indices` names each.
    """
    if isinstance(moments, (str, bytes)) or not hasattr(moments, "__len__"):
        raise BatchShapeError(
            f"timestamps must be a one-dimensional array or sequence, not {moments!r}"
        )
    if isinstance(moments, (list, tuple)) or getattr(moments, "dtype", None) == np.dtype(object):
        return _timestamps_one_by_one(list(moments))  # type: ignore[call-overload]  # has __len__
    absent = [] if type(moments) is np.ndarray else absent_rows(moments)
    if absent:
        raise TimestampError(f"timestamps[{absent[0]}] is masked or null", indices=absent)
    array = np.asarray(moments)
    if array.ndim != 1:
        raise BatchShapeError(f"timestamps must have one dimension, not shape {array.shape}")
    if array.dtype == object:  # pandas gives times with a zone as an array of them
        return _timestamps_one_by_one(array.tolist())
    if array.dtype == np.int64:
        return np.ascontiguousarray(array)
    if array.dtype.kind == "M":
        return _datetime64_to_ns(array)
    if array.dtype.kind == "i":
        return array.astype(np.int64)
    if array.dtype.kind == "u":
        wrong = np.flatnonzero(array > np.uint64(INT64_MAX))
        if wrong.size:
            raise TimestampError(
                f"timestamp {array[wrong[0]]} is beyond int64", indices=wrong.tolist()
            )
        return array.astype(np.int64)
    if array.size == 0 and array.dtype == np.float64:  # numpy's dtype for "no elements"
        return np.empty(0, np.int64)
    raise TimestampError(
        f"timestamps must be an integer or datetime64 array, not {array.dtype}",
        indices=range(array.size),
    )


def timestamp_range(start: TimestampLike | None, end: TimestampLike | None) -> tuple[int, int]:
    """Convert the bounds of a half-open range `[start, end)`; None is unbounded.

    Returns:
        `(start, end)` with `INT64_MIN <= start <= end <= RANGE_END_MAX`.

    Raises:
        RangeError: a bound is no timestamp, or start lies after end.
    """
    first = INT64_MIN if start is None else _bound(start, "start")
    last = RANGE_END_MAX if end is None else _bound(end, "end")
    if first > last:
        raise RangeError(f"start {start!r} lies after end {end!r}; ranges are [start, end)")
    return first, last


def duration(length: DurationLike) -> int:
    """Convert a positive duration on the data's time axis to nanoseconds.

    Args:
        length: a `timedelta`, or text such as `"5m"` or `"1h30m"` in the units
            ns, us, ms, s, m, h, d, w. Bare numbers are refused: their unit is a guess.

    Raises:
        UnknownOptionError: none of these, not positive, or beyond int64.
    """
    nanoseconds = 0
    given: object = length  # what a caller without a type checker may give
    if isinstance(given, dt.timedelta):
        nanoseconds = (given // dt.timedelta(microseconds=1)) * 1_000
    elif isinstance(given, str) and _DURATION.fullmatch(given):
        nanoseconds = sum(
            int(number) * _NS_PER_UNIT[unit] for number, unit in _DURATION_PART.findall(given)
        )
    if not 0 < nanoseconds <= INT64_MAX:
        raise UnknownOptionError(
            f"{length!r} is no duration; give a positive timedelta or text like '5m' or '1h30m'"
        )
    return nanoseconds


def duration_text(nanoseconds: int) -> str:
    """Give a positive duration as the shortest text that `duration` takes: `"5m"`, `"90s"`."""
    for unit, length in reversed(_NS_PER_UNIT.items()):
        if nanoseconds % length == 0:
            return f"{nanoseconds // length}{unit}"
    raise AssertionError("every duration is so many nanoseconds")


def _not_a_timestamp(moment: object) -> str:
    return (
        f"{moment!r} of type {type(moment).__name__} is no timestamp; give integer "
        "nanoseconds since 1970 UTC, or convert with tsengine.timestamp()"
    )


def _datetime_to_ns(moment: dt.datetime) -> int:
    if moment != moment:  # pandas.NaT is a datetime that differs from itself
        raise TimestampError("NaT is no timestamp")
    if moment.utcoffset() is None:
        raise TimestampError(
            f"naive datetime {moment!r}; give it a time zone, for instance "
            "moment.replace(tzinfo=datetime.UTC)"
        )
    # pandas.Timestamp is a datetime with nanoseconds, where plain ones end at microseconds.
    nanosecond = getattr(moment, "nanosecond", 0)
    # A Timestamp minus a datetime is a Timedelta, which may overflow: go by way of datetime.
    to_pydatetime = getattr(moment, "to_pydatetime", None)
    plain: dt.datetime = moment if to_pydatetime is None else to_pydatetime(warn=False)
    elapsed = plain - _EPOCH
    return (
        (elapsed.days * 86_400 + elapsed.seconds) * 1_000_000 + elapsed.microseconds
    ) * 1_000 + int(nanosecond)


def _text_to_ns(text: str) -> int:
    nanosecond = 0
    plain = text
    fraction = _ISO_FRACTION.match(text)
    if fraction:
        head, digits, tail = fraction.groups()
        if len(digits) > 9:  # a nanosecond is the ninth digit of a second
            raise TimestampError(f"{text!r} is finer than a nanosecond")
        nanosecond = int(digits.ljust(9, "0"))
        plain = head + tail
    try:
        moment = dt.datetime.fromisoformat(plain)
    except ValueError:
        raise TimestampError(
            f"{text!r} is no ISO 8601 time such as '2024-01-31T12:00:00Z'"
        ) from None
    if moment.tzinfo is None:
        raise TimestampError(f"naive time {text!r}; add an offset or 'Z'")
    return _datetime_to_ns(moment) + nanosecond


def _datetime64_to_ns(moments: npt.NDArray[np.datetime64]) -> npt.NDArray[np.int64]:
    absent = np.flatnonzero(np.isnat(moments))
    if absent.size:
        raise TimestampError("NaT is no timestamp", indices=absent.tolist())
    unit = np.datetime_data(moments.dtype)[0]
    if unit == "generic":
        raise TimestampError("datetime64 without a unit is no timestamp")
    in_ns = moments.astype("datetime64[ns]")
    # numpy casts wrap around silently: whoever does not come back the same did not fit. Units
    # finer than ns are cut, which is only an error where something was cut off.
    changed = np.flatnonzero(in_ns.astype(moments.dtype) != moments)
    if changed.size:
        raise TimestampError(
            f"{moments[changed[0]]} does not fit int64 nanoseconds", indices=changed.tolist()
        )
    return in_ns.astype(np.int64)


def _timestamps_one_by_one(moments: Sequence[TimestampLike]) -> npt.NDArray[np.int64]:
    if set(map(type, moments)) <= {int}:
        try:
            return np.array(moments, dtype=np.int64)
        except OverflowError:
            pass  # the loop below names the elements that overflow
    converted = np.empty(len(moments), np.int64)
    wrong: list[int] = []
    reason = ""
    for index, moment in enumerate(moments):
        try:
            converted[index] = timestamp(moment)
        except TimestampError as error:
            reason = reason or str(error)
            wrong.append(index)
    if wrong:
        raise TimestampError(f"timestamps[{wrong[0]}]: {reason}", indices=wrong)
    return converted


def _bound(moment: TimestampLike, name: str) -> int:
    if isinstance(moment, (int, np.integer)) and moment == RANGE_END_MAX:
        return RANGE_END_MAX
    try:
        return timestamp(moment)
    except InvalidDataError as error:
        raise RangeError(f"{name}: {error}") from None
