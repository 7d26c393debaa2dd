"""Grouping: from rows in order of arrival to columns by series and time, vectorised.

The cost does not depend on the number of series: one sort of packed integers, about ten
nanoseconds a row, where one array pair per series would cost microseconds a series.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from tsengine.model import GroupedBatch, Int64Array

ROWS_MAX: Final = 2**32
"""Most rows that one grouping takes: a row number is half of a packed int64."""


def group_order(ranks: Int64Array) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Sort rows by series, stable.

    Packing (rank, row) in one int64 makes all keys distinct, so numpy's fastest sort
    serves although it is not stable by itself.

    Args:
        ranks: int64[n], a number of its series for each row, in 0 .. 2**31.

    Returns:
        `(order, distinct, offsets)`: int64[n] such that `ranks[order]` ascends and rows of
        one series keep their order; int64[k] the ranks that occur, ascending; int64[k + 1]
        where each begins.
    """
    rows = len(ranks)
    packed = (ranks << 32) | np.arange(rows, dtype=np.int64)
    packed.sort()
    order = packed & (ROWS_MAX - 1)
    packed >>= 32
    distinct_at = np.flatnonzero(np.concatenate(([rows > 0], packed[1:] != packed[:-1])))
    distinct = packed[distinct_at]
    return order, distinct, np.append(distinct_at, rows)


def group_numbers(offsets: Int64Array) -> Int64Array:
    """Give each row the number of its group: int64[n] from int64[k + 1]."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def sort_by_time(batch: GroupedBatch) -> tuple[GroupedBatch, Int64Array | None]:
    """Sort the rows of each series by time, stable.

    Returns:
        The batch and int64[n], the former position of each row; the batch itself and None
        where it was sorted already.
    """
    timestamps = batch.timestamps
    if len(timestamps) < 2:  # a pair is what can be out of order
        return batch, None
    falls = timestamps[1:] < timestamps[:-1]
    borders = batch.offsets[1:-1]
    falls[borders[(borders > 0) & (borders < len(timestamps))] - 1] = False
    if not falls.any():
        return batch, None
    order = np.lexsort((timestamps, group_numbers(batch.offsets)))
    return (
        GroupedBatch(batch.labels, batch.offsets, timestamps[order], batch.values[order]),
        order,
    )


def take_rows(
    batch: GroupedBatch, keep: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> GroupedBatch:
    """Keep the rows where `keep` (bool[n]) is true; series left without rows are dropped."""
    kept_before = np.concatenate(([0], np.cumsum(keep)))
    bounds = kept_before[batch.offsets]
    filled = np.flatnonzero(bounds[1:] > bounds[:-1])
    offsets = np.append(bounds[:-1][filled], bounds[-1])
    labels = [batch.labels[index] for index in filled.tolist()]
    return GroupedBatch(labels, offsets, batch.timestamps[keep], batch.values[keep])
