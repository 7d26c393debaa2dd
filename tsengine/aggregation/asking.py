"""What is asked of an aggregation, judged and brought into numbers."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np

from tsengine.errors import (
    AggregationError,
    LabelsError,
    RangeError,
    TimestampError,
    UnknownOptionError,
)
from tsengine.model import (
    INT64_MAX,
    INT64_MIN,
    RANGE_END_MAX,
    DurationLike,
    TimestampLike,
    check_label_text,
    duration,
    timestamp,
)

Fill: TypeAlias = "Literal['none', 'null', 'previous', 'linear'] | float"
"""What stands in windows without rows; a number stands itself."""

FUNCTION_LABEL: Final = "__function__"
"""The label that tells the functions of one answer apart."""

NEEDS: Final = {
    "count": (),
    "sum": ("sum",),
    "mean": ("sum",),
    "min": ("min",),
    "max": ("max",),
    "range": ("min", "max"),
    "first": ("first",),
    "last": ("last",),
    "stddev": ("sum", "squares"),
    "variance": ("sum", "squares"),
    "median": ("samples",),
    "quantile": ("samples",),
    "delta": ("counter",),
    "increase": ("counter",),
    "rate": ("counter",),
}
"""Each function, and the statistics that it is worked out from, besides the number of rows."""

OF_OBJECTS: Final = frozenset({"count", "first", "last"})
"""Functions that objects have."""

_WORDS: Final = ("none", "null", "previous", "linear")
_QUANTILE: Final = re.compile(r"quantile\(\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\)")


class Function(NamedTuple):
    """One function as it is asked for.

    Attributes:
        name: as given, which is the value of the label `__function__`.
        base: a key of `NEEDS`.
        quantile: 0 to 1 for `median` and `quantile`, else NaN.
    """

    name: str
    base: str
    quantile: float

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics that it is worked out from."""
        return NEEDS[self.base]


class Aggregation(NamedTuple):
    """One aggregation, all of it valid.

    Attributes:
        functions: at least one, of distinct names.
        every: length of a window, nanoseconds; None for one window.
        phase: where windows begin, modulo `every`.
        group_by: label names that make a group; None keeps series apart.
        fill: a word of `Fill`, or a number.
        start: first timestamp; INT64_MIN for no bound.
        end: one past the last timestamp; RANGE_END_MAX for no bound.
        needs: the statistics that the functions are worked out from.
    """

    functions: tuple[Function, ...]
    every: int | None
    phase: int
    group_by: tuple[str, ...] | None
    fill: str | int | float
    start: int
    end: int
    needs: frozenset[str]

    @property
    def only_counts(self) -> bool:
        """Whether values do not matter."""
        return not self.needs

    @property
    def needs_begin(self) -> bool:
        """Whether the first timestamp of a group is the timestamp of its answer."""
        return self.every is None and self.start == INT64_MIN

    @property
    def is_bounded(self) -> tuple[bool, bool]:
        """Whether the range has a start and an end."""
        return self.start > INT64_MIN, self.end < RANGE_END_MAX


def aggregation(
    functions: Sequence[str],
    start: int,
    end: int,
    *,
    every: DurationLike | None = None,
    group_by: Sequence[str] | None = None,
    origin: TimestampLike | None = None,
    fill: Fill = "none",
) -> Aggregation:
    """Judge what a caller asks for.

    Args:
        functions: names.
        start: as `timestamp_range` gives it.
        end: likewise.
        every: length of a window.
        group_by: label names.
        origin: a moment at which a window begins.
        fill: what stands in windows without rows.

    Raises:
        AggregationError: something makes no sense; names it and says what would.
    """
    asked, needs = _functions(functions)
    length = None if every is None else _length(every)
    given: object = fill  # what a caller without a type checker may give
    if isinstance(given, np.generic):
        given = given.item()
    if isinstance(given, bool) or not isinstance(given, (str, int, float)):
        raise AggregationError(f"fill={fill!r} of type {type(fill).__name__}; {_FILLS}")
    if isinstance(given, str) and given not in _WORDS:
        raise AggregationError(f"fill={fill!r} is unknown; {_FILLS}")
    if isinstance(given, int) and not INT64_MIN <= given <= INT64_MAX:
        raise AggregationError(f"fill={fill!r} does not fit int64; a float would")
    if length is None and (origin is not None or given != "none"):
        what = f"fill={fill!r}" if origin is None else f"origin={origin!r}"
        raise AggregationError(f"{what} means nothing without windows; give every='5m' or the like")
    return Aggregation(
        functions=asked,
        every=length,
        phase=0 if length is None or origin is None else _moment(origin) % length,
        group_by=None if group_by is None else _names(group_by),
        fill=given,
        start=start,
        end=end,
        needs=needs,
    )


_FILLS: Final = "give 'none', 'null', 'previous', 'linear' or a number"


def _functions(functions: object) -> tuple[tuple[Function, ...], frozenset[str]]:
    """Give the functions, and what they need."""
    names = _texts(functions, "functions", "['mean', 'max']")
    return _parse(tuple(names))


@functools.lru_cache(maxsize=256)
def _parse(names: tuple[str, ...]) -> tuple[tuple[Function, ...], frozenset[str]]:
    functions = list(names)
    if not names:
        raise AggregationError(f"functions={functions!r} asks for nothing; {_known()}")
    if len(set(names)) < len(names):
        raise AggregationError(f"functions={functions!r} has a function twice; give it once")
    parsed = tuple(map(_function, names))
    return parsed, frozenset(need for function in parsed for need in function.needs)


def _function(name: str) -> Function:
    if name == "median":
        return Function(name, name, 0.5)
    if name in NEEDS and name != "quantile":
        return Function(name, name, float("nan"))
    match = _QUANTILE.fullmatch(name)
    if match is None:
        raise AggregationError(f"function {name!r} is unknown; {_known()}")
    quantile = float(match[1])
    if not 0.0 <= quantile <= 1.0:
        raise AggregationError(f"{name!r}: a quantile lies between 0 and 1")
    return Function(name, "quantile", quantile)


def _known() -> str:
    plain = ", ".join(name for name in NEEDS if name != "quantile")
    return f"there are {plain} and quantiles such as 'quantile(0.95)'"


@functools.lru_cache(maxsize=256)
def _length_of_text(every: str) -> int:
    return duration(every)


def _length(every: DurationLike) -> int:
    try:
        if type(every) is str:
            return _length_of_text(every)
        return duration(every)
    except UnknownOptionError as error:
        raise AggregationError(f"every: {error}") from None


def _moment(origin: TimestampLike) -> int:
    try:
        return timestamp(origin)
    except (RangeError, TimestampError) as error:
        raise AggregationError(f"origin: {error}") from None


def _names(group_by: object) -> tuple[str, ...]:
    names = _texts(group_by, "group_by", "['region']")
    for name in names:
        try:
            check_label_text(name, "name")
        except LabelsError as error:
            raise AggregationError(f"group_by: {error}") from None
    if len(set(names)) < len(names):
        raise AggregationError(f"group_by={group_by!r} has a label twice; give it once")
    return tuple(sorted(names))


def _texts(given: object, what: str, example: str) -> list[str]:
    """Take a sequence of text; one text alone is a sequence of characters, and a mistake."""
    if type(given) is list and {*map(type, given)} == {str}:
        return given
    is_one = isinstance(given, (str, bytes))
    if is_one or not isinstance(given, Sequence) or not all(isinstance(one, str) for one in given):
        raise AggregationError(f"{what}={given!r} is no sequence of text such as {example}")
    return list(map(str, given))
