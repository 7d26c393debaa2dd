"""Filling: what stands in windows without rows."""

from __future__ import annotations

from typing import Final, cast

import numpy as np

from tsengine.aggregation.asking import Aggregation, Function
from tsengine.aggregation.partials import FloatArray
from tsengine.aggregation.windows import window_of
from tsengine.errors import AggregationError
from tsengine.model import INT64_MIN, Int64Array, ValueArray

FILLED_MAX: Final = 1 << 24
"""Most windows of one answer where empty ones are filled: 256 MiB of columns. A range of a year has
31 million seconds, and one without bounds any number: what is too much is refused."""


class FillLimit:
    """Counts the windows of an answer."""

    def __init__(self) -> None:
        self._windows = 0

    def take(self, asked: Aggregation, windows: int) -> None:
        """Count windows of one group and function.

        Raises:
            AggregationError: they are too many.
        """
        self._windows += windows
        if self._windows > FILLED_MAX:
            raise AggregationError(
                f"fill={asked.fill!r} asks for more than {FILLED_MAX:,} windows; give a longer "
                "every, a shorter range, or fill='none'"
            )


def filled(
    asked: Aggregation,
    function: Function,
    windows: Int64Array,
    values: ValueArray,
    limit: FillLimit,
) -> tuple[Int64Array, ValueArray]:
    """Give the columns of one group and function, with the windows that have no rows.

    Args:
        asked: what is asked.
        function: which function.
        windows: int64[m], ascending: those that have rows.
        values: [m].
        limit: of the answer.

    Returns:
        Columns; those given where nothing is filled.

    Raises:
        AggregationError: objects cannot be filled so, or the windows are too many.
    """
    if asked.fill == "none":
        return windows, values
    every = cast("int", asked.every)
    grid = _grid(asked, int(windows[0]), int(windows[-1]), every, limit)
    present = grid.searchsorted(windows)
    if function.base == "count":
        counts = np.zeros(len(grid), np.int64)
        counts[present] = values
        return grid, counts
    return grid, _fill(asked, function, present, values, len(grid))


def _grid(asked: Aggregation, first: int, last: int, every: int, limit: FillLimit) -> Int64Array:
    """Give the starts of all windows of the range, or of the group where it has no bound."""
    has_start, has_end = asked.is_bounded
    begin = window_of(asked.start, every, asked.phase) if has_start else first
    if not has_start and first == INT64_MIN:  # a window's start that was cut there
        begin = window_of(first, every, asked.phase)
    end = window_of(asked.end - 1, every, asked.phase) if has_end else last
    if not has_end and last == INT64_MIN:
        end = window_of(last, every, asked.phase)
    count = (end - begin) // every + 1
    limit.take(asked, count)
    if begin >= INT64_MIN:
        return np.arange(count) * every + begin
    starts = np.full(count, INT64_MIN)
    starts[1:] = np.arange(count - 1) * every + (begin + every)
    return starts


def _fill(
    asked: Aggregation, function: Function, present: Int64Array, values: ValueArray, count: int
) -> ValueArray:
    fill = asked.fill
    is_object = values.dtype == object
    if is_object and fill not in ("null", "previous"):
        raise AggregationError(
            f"fill={fill!r} means nothing for the {function.name} of objects; "
            "'none', 'null' or 'previous' would"
        )
    column: ValueArray
    if not isinstance(fill, str):
        keeps_kind = values.dtype == np.float64 or isinstance(fill, int)
        column = np.full(count, fill, values.dtype if keeps_kind else np.float64)
        column[present] = values
        return column
    column = np.full(count, None if is_object else np.nan, object if is_object else np.float64)
    column[present] = values
    if fill == "previous":
        known = np.full(count, -1)
        known[present] = present
        np.maximum.accumulate(known, out=known)
        inside = known >= 0
        column[inside] = column[known[inside]]
    elif fill == "linear":
        everywhere = np.arange(count)
        known_values = cast("FloatArray", column[present])
        column = np.interp(everywhere, present, known_values, left=np.nan, right=np.nan)
        column[present] = known_values
    return column
