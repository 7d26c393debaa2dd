"""What `Engine.aggregate` must answer, worked out of rows one window after the other.

The naive half of the oracle: lists, `Fraction` and no arrays; it shares nothing with the code
that it judges. Exact answers are given as they are. Others are a `Near`, which knows what
rounding it accepts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TypeAlias

from tsengine.errors import AggregationError
from tsengine.model import Labels

Row: TypeAlias = "tuple[int, object]"

Member: TypeAlias = "tuple[int, int, object]"
"""A row of a group: timestamp, rank of its series, value."""

_INT64_MIN = -(2**63)
_INT64_END = 2**63
_FILLED_MAX = 2**24
_OF_A_KIND = ("sum", "min", "max", "range", "first", "last")
"""Functions whose values are integers where those of the series are."""
_EPSILON = Fraction(2) ** -52
_TINY = Fraction(2) ** -1060
"""What underflow may take from a square or a quotient."""
_LARGE = Fraction(2) ** 1000
"""From here on a sum or a square on the way may overflow."""


@dataclass(frozen=True, slots=True)
class Near:
    """A float64 that depends on the order of adding.

    Attributes:
        exact: without rounding; None where any float is accepted, since infinities or overflow
            were on the way.
        slack: how far it may be off.
        is_root: whether the square root of `exact` is meant.
    """

    exact: Fraction | None
    slack: Fraction = Fraction(0)
    is_root: bool = False

    def accepts(self, found: object) -> bool:
        """Whether `found` is near enough."""
        if type(found) is not float:
            return False
        if self.exact is None:
            return True
        if not math.isfinite(found) or (self.is_root and found < 0):
            return False
        value = Fraction(found)
        if self.is_root:
            value *= value
        slack = self.slack + 4 * _EPSILON * abs(self.exact) + _TINY
        return abs(value - self.exact) <= slack


@dataclass(frozen=True, slots=True)
class AnyZero:
    """Zero of either sign."""

    def accepts(self, found: object) -> bool:
        """Whether `found` is a zero."""
        return type(found) is float and found == 0.0


def aggregate_rows(
    series: Mapping[Labels, Sequence[Row]],
    *,
    functions: Sequence[str],
    start: int | None = None,
    end: int | None = None,
    every: int | None = None,
    group_by: Sequence[str] | None = None,
    origin: int = 0,
    fill: object = "none",
) -> dict[Labels, list[Row]]:
    """Aggregate the rows of a range.

    Args:
        series: rows by series, in order of series ID.
        functions: as `Engine.aggregate` has them.
        start: of the range, which the rows were read from.
        end: of the range.
        every: nanoseconds.
        group_by: label names.
        origin: nanoseconds.
        fill: a word or a number.

    Raises:
        AggregationError: as `Engine.aggregate`, for values.
    """
    found: dict[Labels, list[Row]] = {}
    filled = 0
    for labels, members in _groups(series, group_by).items():
        kinds = {_kind(value) for _, _, value in members}
        if "object" in kinds and not set(functions) <= {"count", "first", "last"}:
            raise AggregationError("objects")
        if len(kinds) > 1 and "object" in kinds and set(functions) != {"count"}:
            raise AggregationError("objects and numbers")
        if kinds == {"int", "float"}:
            members = [(moment, rank, _as_float(value)) for moment, rank, value in members]
        windows = _windows(members, every, origin, start)
        for function in functions:
            rows = [(moment, evaluate(function, rows)) for moment, rows in windows.items()]
            if fill != "none":
                assert every is not None
                is_int = kinds == {"int"} and function in _OF_A_KIND
                grid = _grid(list(windows), every, origin, start, end)
                filled += (grid[-1] - grid[0]) // every + 1  # len() ends at 2**63
                if filled > _FILLED_MAX:
                    raise AggregationError("too many windows")
                rows = _filled(function, dict(rows), grid, fill, is_int=is_int, kinds=kinds)
            named = {**labels, "__function__": function} if len(functions) > 1 else labels
            rows = [(max(moment, _INT64_MIN), value) for moment, value in rows]
            found[Labels(dict(named))] = rows
    return dict(sorted(found.items(), key=lambda item: item[0].id))


def _groups(
    series: Mapping[Labels, Sequence[Row]], group_by: Sequence[str] | None
) -> dict[Labels, list[Member]]:
    groups: dict[Labels, list[Member]] = {}
    for rank, (labels, rows) in enumerate(series.items()):
        group = labels
        if group_by is not None:
            group = Labels({name: labels[name] for name in group_by if name in labels})
        groups.setdefault(group, []).extend((moment, rank, value) for moment, value in rows)
    return {labels: sorted(members, key=lambda row: row[:2]) for labels, members in groups.items()}


def _windows(
    members: Sequence[Member], every: int | None, origin: int, start: int | None
) -> dict[int, list[Member]]:
    """Give the rows of each window by its start, which may lie before the first int64."""
    if every is None:
        is_open = start is None or start <= _INT64_MIN
        return {members[0][0] if is_open or start is None else start: list(members)}
    windows: dict[int, list[Member]] = {}
    for member in members:
        windows.setdefault(_window(member[0], every, origin), []).append(member)
    return windows


def _window(moment: int, every: int, origin: int) -> int:
    return origin + (moment - origin) // every * every


def _grid(
    windows: Sequence[int], every: int, origin: int, start: int | None, end: int | None
) -> range:
    first, last = windows[0], windows[-1]
    if start is not None and start > _INT64_MIN:
        first = _window(start, every, origin)
    if end is not None and end < _INT64_END:
        last = _window(end - 1, every, origin)
    return range(first, last + 1, every)


def _kind(value: object) -> str:
    return {float: "float", int: "int"}.get(type(value), "object")


def _as_float(value: object) -> float:
    assert isinstance(value, (int, float))
    return float(value)


# Functions.


def evaluate(function: str, rows: Sequence[Member]) -> object:
    """Give one function of the rows of one window, in order of time and rank."""
    if function == "count":
        return len(rows)
    if function in ("first", "last"):
        return rows[0 if function == "first" else -1][2]
    if function in ("delta", "increase", "rate"):
        return _gain(function, rows)
    numbers = [value for _, _, value in rows if isinstance(value, (int, float)) and value == value]
    if not numbers:
        return math.nan
    if function in ("min", "max"):
        return _edge(min(numbers) if function == "min" else max(numbers))
    if function == "median" or function.startswith("quantile("):
        text = "0.5" if function == "median" else function[len("quantile(") : -1]
        return _quantile(float(text), sorted(numbers))
    simple: dict[str, Callable[[Sequence[float | int]], object]] = {
        "sum": _sum,
        "mean": _mean,
        "range": _range,
        "variance": _variance,
        "stddev": _stddev,
    }
    return simple[function](numbers)


def _edge(value: float | int) -> object:
    return AnyZero() if isinstance(value, float) and value == 0.0 else value


def _integer(value: int) -> int:
    if not _INT64_MIN <= value < _INT64_END:
        raise AggregationError(f"{value} does not fit")
    return value


def _is_rough(numbers: Iterable[float | int]) -> bool:
    """Whether infinities or overflow may be met on the way."""
    values = list(numbers)
    if not all(map(math.isfinite, values)):
        return True
    return sum((abs(Fraction(value)) for value in values), Fraction(0)) >= _LARGE


def _size(numbers: Iterable[float | int]) -> Fraction:
    return sum((abs(Fraction(value)) for value in numbers), Fraction(0))


def _sum(numbers: Sequence[float | int]) -> object:
    if isinstance(numbers[0], int):
        return _integer(sum(map(int, numbers)))
    if not all(map(math.isfinite, numbers)):
        return sum(value for value in numbers if not math.isfinite(value))
    if _is_rough(numbers):
        return Near(None)
    return Near(sum(map(Fraction, numbers), Fraction(0)), len(numbers) * _EPSILON * _size(numbers))


def _mean(numbers: Sequence[float | int]) -> object:
    if not all(map(math.isfinite, numbers)):
        return sum(value for value in numbers if not math.isfinite(value))
    if _is_rough(numbers):
        return Near(None)
    return Near(
        sum(map(Fraction, numbers), Fraction(0)) / len(numbers), 2 * _EPSILON * _size(numbers)
    )


def _range(numbers: Sequence[float | int]) -> object:
    if isinstance(numbers[0], int):
        return _integer(int(max(numbers)) - int(min(numbers)))
    return float(max(numbers)) - float(min(numbers))


def _variance(numbers: Sequence[float | int]) -> object:
    count = len(numbers)
    if count == 1:
        return math.nan
    if _is_rough(numbers) or _is_rough(Fraction(value) ** 2 for value in numbers):  # type: ignore[misc]  # fractions are numbers
        return Near(None)
    mean = sum(map(Fraction, numbers), Fraction(0)) / count
    squares = sum(((Fraction(value) - mean) ** 2 for value in numbers), Fraction(0))
    largest = max(abs(Fraction(value)) for value in numbers)
    off = (count + 4) * _EPSILON * largest  # how far a mean may be off
    root = Fraction(math.sqrt(count * squares)) * 2
    slack = 8 * (count + 4) * _EPSILON * squares + 8 * off * root + 8 * count * off**2
    return Near(squares / (count - 1), (slack + count * _TINY) / (count - 1))


def _stddev(numbers: Sequence[float | int]) -> object:
    variance = _variance(numbers)
    if isinstance(variance, Near):
        return Near(variance.exact, variance.slack, is_root=True)
    return variance


def _quantile(quantile: float, ordered: Sequence[float | int]) -> object:
    if _is_rough(ordered):
        return Near(None)
    place = Fraction(quantile) * (len(ordered) - 1)
    below = math.floor(place)
    lower, upper = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    exact = Fraction(lower) + (Fraction(upper) - Fraction(lower)) * (place - below)
    return Near(exact, 16 * len(ordered) * _EPSILON * max(map(abs, map(Fraction, ordered))))


def _gain(function: str, rows: Sequence[Member]) -> object:
    """Give delta, increase or rate: of each series, then added up."""
    total, slack, parts = Fraction(0), Fraction(0), 0
    for rank in sorted({rank for _, rank, _ in rows}):
        own = [
            (moment, value)
            for moment, of, value in rows
            if of == rank and isinstance(value, (int, float)) and value == value
        ]
        if not own:
            continue
        values = [value for _, value in own]
        if _is_rough(values):
            return Near(None)
        gain = Fraction(values[-1]) - Fraction(values[0])
        if function != "delta":
            gain += sum(
                (Fraction(before) for before, after in pairwise(values) if after < before),
                Fraction(0),
            )
        size = 4 * len(values) * _EPSILON * _size(values)
        if function == "rate":
            seconds = Fraction(own[-1][0] - own[0][0], 10**9)
            if not seconds:
                continue
            gain, size = gain / seconds, size / seconds
            size += 4 * _EPSILON * abs(gain)
        total, slack, parts = total + gain, slack + size, parts + 1
        if abs(total) >= _LARGE:
            return Near(None)
    if not parts:
        return math.nan
    return Near(total, slack + 4 * parts * _EPSILON * (abs(total) + slack))


# Filling.


def _filled(
    function: str,
    rows: Mapping[int, object],
    grid: Sequence[int],
    fill: object,
    *,
    is_int: bool,
    kinds: set[str],
) -> list[Row]:
    if function == "count":
        return [(moment, rows.get(moment, 0)) for moment in grid]
    is_object = kinds == {"object"}
    if is_object and fill not in ("null", "previous"):
        raise AggregationError("objects cannot be filled so")
    if is_int and not isinstance(fill, int):
        rows = {moment: _as_float(value) for moment, value in rows.items()}
    nothing = None if is_object else math.nan
    if not isinstance(fill, str):
        assert isinstance(fill, (int, float))
        number: object = fill if is_int and isinstance(fill, int) else float(fill)
        return [(moment, rows.get(moment, number)) for moment in grid]
    filled: list[Row] = []
    for moment in grid:
        before = [known for known in rows if known <= moment]
        after = [known for known in rows if known >= moment]
        if moment in rows:
            filled.append((moment, rows[moment]))
        elif fill == "previous" and before:
            filled.append((moment, rows[max(before)]))
        elif fill == "linear" and before and after:
            filled.append((moment, _between(moment, max(before), min(after), rows)))
        else:
            filled.append((moment, nothing))
    return filled


def _between(moment: int, before: int, after: int, rows: Mapping[int, object]) -> object:
    """Give the value on the line between two, each exact or a `Near`."""
    ends: list[tuple[Fraction, Fraction]] = []
    for value in (rows[before], rows[after]):
        if isinstance(value, Near):
            if value.exact is None:
                return Near(None)
            if value.is_root:
                root = Fraction(math.sqrt(value.exact))
                slack = 2 * Fraction(math.sqrt(value.slack)) + 8 * _EPSILON * root
                ends.append((root, slack + Fraction(2) ** -500))
            else:
                ends.append((value.exact, value.slack))
        elif isinstance(value, AnyZero):
            ends.append((Fraction(0), Fraction(0)))
        else:
            number = _as_float(value)
            if number != number:
                return math.nan
            if _is_rough([number]):
                return Near(None)
            ends.append((Fraction(number), Fraction(0)))
    (low, low_slack), (high, high_slack) = ends
    part = Fraction(moment - before, after - before)
    slack = low_slack + high_slack + 16 * _EPSILON * (abs(low) + abs(high))
    return Near(low + (high - low) * part, slack)
