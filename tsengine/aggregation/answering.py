"""Answering: from folded tables to the columns of functions, and to batches with labels."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt

from tsengine.aggregation.asking import FUNCTION_LABEL, Aggregation, Function
from tsengine.aggregation.filling import FillLimit, filled
from tsengine.aggregation.ordered import quantile_name
from tsengine.aggregation.partials import (
    FloatArray,
    Partials,
    Statistics,
    concatenate,
    fold,
    numbers_of,
    sums,
)
from tsengine.errors import AggregationError, LabelsError
from tsengine.model import Int64Array, Labels, SeriesBatch, ValueArray, ValueKind
from tsengine.result import QueryResult


def answer(
    asked: Aggregation,
    groups: Sequence[Labels],
    tables: Mapping[ValueKind, Partials],
    extra: Sequence[Partials] = (),
) -> QueryResult:
    """Work out the answer.

    Args:
        asked: what is asked.
        groups: labels of each group, by number.
        tables: folded, by kind.
        extra: folded tables of other statistics, float64, with no other groups and windows.

    Raises:
        AggregationError: a group mixes objects and numbers, an integer result does not fit
            int64, labels do not take another, or there are too many windows to fill.
    """
    batches: list[SeriesBatch] = []
    limit = FillLimit()
    names = _Names(asked)
    for kind, table in _by_group(asked, groups, tables).items():
        for part in extra:
            _align(table, part)
        columns = [_column(function, kind, table, groups) for function in asked.functions]
        # Of one group and function the columns are nobody else's.
        is_shared = len(columns) > 1 or table.groups[0] != table.groups[-1]
        for rows, labels in _slices(table, groups):
            windows = table.windows[rows]
            if asked.every is None:
                begin = table.statistics["begin"][rows] if asked.needs_begin else [asked.start]
                windows = np.array(begin, np.int64)
            for function, column in zip(asked.functions, columns, strict=True):
                timestamps, values = filled(asked, function, windows, column[rows], limit)
                if is_shared and asked.fill == "none":
                    timestamps, values = timestamps.copy(), values.copy()
                batches.append(SeriesBatch(names.of(labels, function), timestamps, values))
    if len(batches) > 1:
        batches.sort(key=lambda batch: batch.labels.id)
    return QueryResult(batches)


def _slices(table: Partials, groups: Sequence[Labels]) -> Iterator[tuple[slice, Labels]]:
    """Give the rows of each group, and its labels."""
    of_rows = table.groups
    bounds = [0, len(of_rows)]
    if of_rows[0] != of_rows[-1]:
        bounds[1:1] = (np.flatnonzero(of_rows[1:] != of_rows[:-1]) + 1).tolist()
    for first, last in pairwise(bounds):
        yield slice(first, last), groups[int(of_rows[first])]


class _Names:
    """Labels of the batches of an answer."""

    def __init__(self, asked: Aggregation) -> None:
        self._is_plain = len(asked.functions) == 1

    def of(self, labels: Labels, function: Function) -> Labels:
        if self._is_plain:
            return labels
        texts = labels.texts
        names = texts[::2]
        place = bisect_left(names, FUNCTION_LABEL)
        if names[place : place + 1] == (FUNCTION_LABEL,):
            raise AggregationError(
                f"{labels.id} has a label {FUNCTION_LABEL} of its own; ask for one function at a "
                "time, or group by other labels"
            )
        named = (*texts[: 2 * place], FUNCTION_LABEL, function.name, *texts[2 * place :])
        try:
            return Labels.of_sorted(named)
        except LabelsError as error:
            raise AggregationError(
                f"no room for the label {FUNCTION_LABEL} of several functions: {error}"
            ) from None


def _by_group(
    asked: Aggregation, groups: Sequence[Labels], tables: Mapping[ValueKind, Partials]
) -> dict[ValueKind, Partials]:
    """Give tables such that each group is in one of them."""
    if len(tables) < 2:
        return dict(tables)
    parts = dict(tables)
    objects = parts.get(ValueKind.OBJECT)
    numbers = [table for kind, table in parts.items() if kind is not ValueKind.OBJECT]
    if objects is not None:
        others = np.concatenate([table.groups for table in numbers])
        both = np.intersect1d(objects.groups, others)
        if len(both):
            asks = ", ".join(function.name for function in asked.functions)
            raise AggregationError(
                f"{asks}: the group {groups[int(both[0])].id or '{}'} has objects and numbers, "
                "which only count together; select or group so that they are apart"
            )
    floats, integers = parts.get(ValueKind.FLOAT), parts.get(ValueKind.INT)
    if floats is not None and integers is not None:
        mixed = np.isin(integers.groups, floats.groups)
        if mixed.any():
            as_floats = _as_floats(integers.take(mixed))
            parts[ValueKind.FLOAT] = fold(concatenate([floats, as_floats]))
            parts[ValueKind.INT] = integers.take(~mixed)
            if mixed.all():
                del parts[ValueKind.INT]
    return parts


def _as_floats(table: Partials) -> Partials:
    """Give a table of integers as one of floats; sums keep what rounding takes."""
    statistics = dict(table.statistics)
    if "high" in statistics:
        high, low = statistics.pop("high"), statistics.pop("low")
        large, small = high * 2.0**32, low.astype(np.float64)  # exact, both of them
        total = large + small
        statistics["sum"], statistics["error"] = total, small - (total - large)
        statistics["numbers"] = statistics["rows"]
    for name in statistics.keys() & {"min", "max", "first", "last"}:
        statistics[name] = statistics[name].astype(np.float64)
    return Partials(table.groups, table.windows, statistics)


def _align(table: Partials, part: Partials) -> None:
    """Add the statistics of another table to one that has its groups and windows; NaN elsewhere."""
    known = np.unique(table.windows)
    keys = table.groups * len(known) + known.searchsorted(table.windows)
    wanted = known.searchsorted(part.windows).clip(max=len(known) - 1)
    is_known = known[wanted] == part.windows
    wanted += part.groups * len(known)
    places = keys.searchsorted(wanted).clip(max=len(keys) - 1)
    hit = is_known & (keys[places] == wanted)
    for name, column in part.statistics.items():
        aligned = np.full(len(table), np.nan)
        aligned[places[hit]] = column[hit]
        table.statistics[name] = aligned


def _column(
    function: Function, kind: ValueKind, table: Partials, groups: Sequence[Labels]
) -> ValueArray:
    """Work out one function of every group and window."""
    statistics, base = table.statistics, function.base
    if base == "count":
        return statistics["rows"]
    if base in ("first", "last", "min", "max"):
        return statistics[base]
    if base == "range":
        apart = statistics["max"] - statistics["min"]
        if kind is ValueKind.INT:
            _refuse(function, apart < 0, table, groups, _range_of)
        return apart
    if base in ("median", "quantile"):
        return statistics.get(quantile_name(function.quantile), np.full(len(table), np.nan))
    if base in ("delta", "increase", "rate"):
        if base not in statistics:  # no series has numbers
            return np.full(len(table), np.nan)
        parts = statistics["rated" if base == "rate" else "measured"]
        return np.where(parts > 0, statistics[base], np.nan)
    numbers = numbers_of(statistics)
    if base == "sum" and kind is ValueKind.INT:
        low = cast("Int64Array", statistics["low"])
        high = cast("Int64Array", statistics["high"]) + (low >> 32)
        low = low & (2**32 - 1)
        _refuse(function, (high >= 2**31) | (high < -(2**31)), table, groups, _sum_of)
        return (high << 32) + low
    if base == "sum":
        total = sums(statistics)
        return total if numbers is statistics["rows"] else np.where(numbers > 0, total, np.nan)
    if base == "mean":
        means = sums(statistics) / numbers
        # 0/0 is a NaN with a sign on some processors, which is not the one that we answer.
        return means if numbers is statistics["rows"] else np.where(numbers > 0, means, np.nan)
    squares = cast("FloatArray", statistics["squares"])
    variance = np.where(numbers > 1, squares / (numbers - 1), np.nan)
    return np.sqrt(variance) if base == "stddev" else variance


def _refuse(
    function: Function,
    is_over: npt.NDArray[np.bool_],
    table: Partials,
    groups: Sequence[Labels],
    exact: Callable[[Statistics, int], int],
) -> None:
    """Refuse integer results that do not fit int64."""
    rows = np.flatnonzero(is_over)
    if len(rows):
        row = int(rows[0])
        raise AggregationError(
            f"{function.name} of {groups[int(table.groups[row])].id or '{}'} is "
            f"{exact(table.statistics, row)}, which does not fit int64; shorter windows may, or "
            "ask for the mean"
        )


def _range_of(statistics: Statistics, row: int) -> int:
    return int(statistics["max"][row]) - int(statistics["min"][row])


def _sum_of(statistics: Statistics, row: int) -> int:
    return (int(statistics["high"][row]) << 32) + int(statistics["low"][row])
