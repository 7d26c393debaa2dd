"""Rows: the batches of a commit by series number and time, as they are stored."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tsengine.duplicates import DuplicatePolicy, distinct_starts, fold_values
from tsengine.model import GroupedBatch, Int64Array, ValueArray, ValueKind, pack_object


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one kind.

    Attributes:
        kind: of the values.
        series: int64[n], ids, ascending.
        timestamps: int64[n], ascending within a series; of equal ones the newest is last.
        values: [n]; objects packed.
        places: int64[n], which row of the commit each was.
    """

    kind: ValueKind
    series: Int64Array
    timestamps: Int64Array
    values: ValueArray
    places: Int64Array

    def __len__(self) -> int:
        return len(self.series)

    def since(self, horizon: int) -> Rows:
        """Leave out what retention hides."""
        if not len(self) or self.timestamps.min() >= horizon:
            return self
        kept = self.timestamps >= horizon
        return Rows(
            self.kind,
            self.series[kept],
            self.timestamps[kept],
            self.values[kept],
            self.places[kept],
        )

    def folded(self, policy: DuplicatePolicy) -> Rows:
        """Give one row for each key.

        Raises:
            DuplicatePointError, ValueOverflowError: as `fold_values`; `indices` are of these rows.
        """
        starts = distinct_starts(self.timestamps, self.series)
        if starts is None:
            return self
        values = fold_values(starts, self.values, policy)
        return Rows(
            self.kind, self.series[starts], self.timestamps[starts], values, self.places[starts]
        )


def packed(batch: GroupedBatch, kind: ValueKind) -> GroupedBatch:
    """Give a batch with its objects packed."""
    if kind is not ValueKind.OBJECT:
        return batch
    values = np.empty(len(batch), object)
    values[:] = [pack_object(value) for value in batch.values.tolist()]
    return replace(batch, values=values)


def by_series(batch: GroupedBatch, kind: ValueKind, ids: Int64Array, base: int) -> Rows:
    """Bring a batch into the order of its series' ids.

    Args:
        batch: each series once, its rows sorted by time; objects packed.
        kind: of the values.
        ids: int64[k], distinct.
        base: which row of the commit is its first.
    """
    counts = np.diff(batch.offsets)
    if (ids[1:] > ids[:-1]).all():
        places = np.arange(base, base + len(batch))
        return Rows(kind, np.repeat(ids, counts), batch.timestamps, batch.values, places)
    order = ids.argsort(kind="stable")
    ids, counts = ids[order], counts[order]
    firsts = np.zeros(len(order), np.int64)
    np.cumsum(counts[:-1], out=firsts[1:])
    rows = np.repeat(batch.offsets[:-1][order] - firsts, counts) + np.arange(len(batch))
    return Rows(
        kind, np.repeat(ids, counts), batch.timestamps[rows], batch.values[rows], rows + base
    )
