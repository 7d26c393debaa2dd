"""Columns: rows of many series by series number and time, and how pieces of them combine.

This is the one shape inside the store: what a flush writes, a block holds, a merge moves
and a read gathers. Values of kind `object` are their MessagePack bytes here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsengine.duplicates import DuplicatePolicy, distinct_starts, fold_values
from tsengine.model import Int64Array, ValueArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Rows sorted by series number, then time.

    Attributes:
        series: int64[k], ascending and distinct.
        offsets: int64[k + 1]; rows `offsets[i]` to `offsets[i + 1]` are of `series[i]`.
        timestamps: int64[n].
        values: float64[n], int64[n], or object[n] of bytes.
    """

    series: Int64Array
    offsets: Int64Array
    timestamps: Int64Array
    values: ValueArray

    def __len__(self) -> int:
        return len(self.timestamps)

    def copy(self) -> Columns:
        """Give columns that share no memory with these."""
        return Columns(
            self.series.copy(), self.offsets.copy(), self.timestamps.copy(), self.values.copy()
        )

    def row_series(self) -> Int64Array:
        """Give each row its series number: int64[n]."""
        return np.repeat(self.series, np.diff(self.offsets))

    def rows(self, start: int, end: int) -> Columns:
        """Give the rows from `start` to `end`, as views where a column allows it."""
        first = int(self.offsets.searchsorted(start, "right")) - 1
        last = int(self.offsets.searchsorted(end, "left"))
        offsets = self.offsets[first : last + 1] - start
        offsets[0], offsets[-1] = 0, end - start  # only the outer ones can lie outside
        return Columns(
            self.series[first:last], offsets, self.timestamps[start:end], self.values[start:end]
        )

    def keep(self, kept: BoolArray) -> Columns:
        """Give the rows where `kept` (bool[n]) is true."""
        kept_before = np.concatenate(([0], np.cumsum(kept)))
        bounds = kept_before[self.offsets]
        filled = bounds[1:] > bounds[:-1]
        return Columns(
            self.series[filled],
            np.append(bounds[:-1][filled], bounds[-1]),
            self.timestamps[kept],
            self.values[kept],
        )


def group_rows(row_series: Int64Array, timestamps: Int64Array, values: ValueArray) -> Columns:
    """Make columns of rows that are sorted by series and time already."""
    starts = np.flatnonzero(np.concatenate(([True], row_series[1:] != row_series[:-1])))
    if not len(row_series):
        starts = np.empty(0, np.int64)
    return Columns(row_series[starts], np.append(starts, len(row_series)), timestamps, values)


def combine(pieces: Sequence[Columns], policy: DuplicatePolicy) -> Columns:
    """Merge pieces in order of commit, and fold rows of equal series and time.

    Args:
        pieces: of one value kind, the oldest first, each without repeated keys or not.
        policy: what equal keys do; `error` was enforced at the write, so nothing repeats.

    Returns:
        Sorted columns with one row per series and timestamp.
    """
    pieces = [piece for piece in pieces if len(piece)]
    if not pieces:
        empty = np.empty(0, np.int64)
        return Columns(empty, np.zeros(1, np.int64), empty, np.empty(0, np.float64))
    if len(pieces) == 1:
        return fold_columns(pieces[0], policy)
    # What is ordered are segments, the rows that one piece has of one series: there are far
    # fewer of them than rows.
    series = np.concatenate([piece.series for piece in pieces])
    counts = np.concatenate([np.diff(piece.offsets) for piece in pieces])
    timestamps = np.concatenate([piece.timestamps for piece in pieces])
    values: ValueArray = np.concatenate([piece.values for piece in pieces])
    if (series[1:] < series[:-1]).any():
        order = series.argsort(kind="stable")
        rows = _rows_in_order(counts, order)
        timestamps, values = timestamps[rows], values[rows]
        series, counts = series[order], counts[order]
    ends = np.cumsum(counts)
    is_last = np.append(series[1:] != series[:-1], True)  # of its series
    columns = Columns(series[is_last], np.concatenate(([0], ends[is_last])), timestamps, values)
    borders = ends[~is_last]
    if (timestamps[borders] < timestamps[borders - 1]).any():  # pieces overlap in time
        row_series = columns.row_series()
        by_time = np.lexsort((timestamps, row_series))
        columns = Columns(columns.series, columns.offsets, timestamps[by_time], values[by_time])
    return fold_columns(columns, policy)


def fold_columns(columns: Columns, policy: DuplicatePolicy) -> Columns:
    """Fold rows of equal series and time in sorted columns."""
    timestamps = columns.timestamps
    if not (timestamps[1:] == timestamps[:-1]).any():  # the common case, and cheap to tell
        return columns
    row_series = columns.row_series()
    starts = distinct_starts(columns.timestamps, row_series)
    if starts is None:
        return columns
    return group_rows(
        row_series[starts],
        columns.timestamps[starts],
        fold_values(starts, columns.values, _reading(policy)),
    )


def _reading(policy: DuplicatePolicy) -> DuplicatePolicy:
    """The policy for rows that were accepted: under `error` none repeat."""
    return DuplicatePolicy.LAST if policy is DuplicatePolicy.ERROR else policy


def _rows_in_order(counts: Int64Array, order: Int64Array) -> Int64Array:
    """Give the rows of segments in another order: int64[n].

    Args:
        counts: int64[k], the rows of each segment as they stand.
        order: int64[k], the segments as they are to stand.
    """
    rows = int(counts.sum())
    if len(order) == rows:  # one each, as in flushes over very many series
        return order
    starts, counts = (np.cumsum(counts) - counts)[order], counts[order]
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(rows)
