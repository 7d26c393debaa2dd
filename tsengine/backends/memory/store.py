"""Store: what a memory engine holds, and looking at it.

A `View` is what readers get: windows of one moment in pools that are pinned until it is
closed, so that a reader copies rows in its own time while writers go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Self, TypeAlias, cast

import numpy as np

from tsengine.backends.memory.catalogue import Catalogue
from tsengine.backends.memory.ranges import lengths_of
from tsengine.backends.memory.ring import Pool, Rings
from tsengine.backends.memory.snapshot_file import StoredSeries
from tsengine.backends.memory.total_cap import TotalCap
from tsengine.duplicates import DuplicatePolicy
from tsengine.model import (
    INT64_MAX,
    RANGE_END_MAX,
    DataPoint,
    Int64Array,
    Labels,
    SeriesBatch,
    Value,
    ValueArray,
    ValueKind,
    unpack_object,
)

_MakePoint: TypeAlias = "Callable[[type[DataPoint], tuple[object, ...]], DataPoint]"

Window: TypeAlias = "tuple[Labels, ValueKind, Pool, int, int]"
"""Rows of one series: where they are in which pool."""


class Store:
    """All series and their columns.

    Args:
        policy: what equal timestamps do.
        points_per_series_max: cap of each series; None for none.
        points_max: cap of all; None for none.

    Attributes:
        catalogue: which series there are.
        rings: their columns, by kind.
        total_cap: finds what `points_max` cuts; None for none.

    Thread-safety: none; the engine's lock guards it.
    """

    def __init__(
        self, policy: DuplicatePolicy, points_per_series_max: int | None, points_max: int | None
    ) -> None:
        self.catalogue = Catalogue()
        self.rings: Mapping[int, Rings] = {
            kind: Rings(kind, is_capped=points_per_series_max is not None) for kind in ValueKind
        }
        self.policy = policy
        self.points_per_series_max = points_per_series_max
        self.total_cap = None
        if points_max is not None:
            self.total_cap = TotalCap(points_max, self.catalogue, self.rings)

    @property
    def points(self) -> int:
        """Rows stored, with those that have expired and were not dropped yet."""
        return sum(rings.points for rings in self.rings.values())

    @property
    def bytes(self) -> int:
        """Bytes of the columns; what objects take is not among them."""
        return sum(rings.bytes for rings in self.rings.values())

    # Looking.

    def kind(self, labels: Labels) -> ValueKind | None:
        """Give the kind of a series, None where it is not listed."""
        slot = self.catalogue.slot(labels)
        # Not made of the number: that takes a microsecond, and is asked of every new series.
        return self.rings[int(self.catalogue.kinds[slot])].kind if slot else None

    def view_one(self, slot: int, start: int, end: int) -> View:
        """Give the rows of one series in a range: as `view`, without arrays of one."""
        rings = self.rings[int(self.catalogue.kinds[slot])]
        first, last = int(rings.lo[slot]), int(rings.hi[slot])
        pool = rings.pool
        if first < last and start <= INT64_MAX:
            rows = pool.timestamps[first:last]
            if end <= int(rings.newest[slot]):
                last = first + int(rows.searchsorted(end))
            if start > int(rows[0]):
                first += int(rows.searchsorted(start))
            if first < last:
                window = self.catalogue.labels(slot), rings.kind, pool, first, last
                return View([window], [pool])
        return View([], [])

    def view(self, slots: Int64Array, start: int, end: int, *, empty: bool = False) -> View:
        """Give the rows of series in a range.

        Args:
            slots: int64[k], listed series.
            start: earliest timestamp.
            end: one past the latest, up to RANGE_END_MAX.
            empty: whether series without rows in the range are there too.
        """
        first, last = self.locate(slots, start, end)
        if not empty:
            filled = last > first
            slots, first, last = slots[filled], first[filled], last[filled]
        labels = self.catalogue.labels_of(slots)
        kinds = self.catalogue.kinds[slots].tolist()
        pools = {kind: (rings.kind, rings.pool) for kind, rings in self.rings.items()}
        windows = (
            (one, *pools[kind], a, b)
            for one, kind, a, b in zip(labels, kinds, first.tolist(), last.tolist(), strict=True)
        )
        return View(windows, [pools[kind][1] for kind in set(kinds)])

    def locate(self, slots: Int64Array, start: int, end: int) -> tuple[Int64Array, Int64Array]:
        """Give the positions between which the rows of a range are, each in its pool."""
        kinds = self.catalogue.kinds[slots]
        first, last = np.zeros((2, len(slots)), np.int64)
        for rings in self.rings.values():
            mine = np.flatnonzero(kinds == rings.kind)
            if len(mine):
                first[mine] = rings.locate(slots[mine], start)
                last[mine] = np.maximum(first[mine], rings.locate(slots[mine], end))
        return first, last

    def edges(self, slots: Int64Array, horizon: int, *, newest: bool) -> Rows:
        """Give the first or last row of each series that has rows."""
        first, last = self.locate(slots, horizon, RANGE_END_MAX)
        filled = last > first
        slots, at = slots[filled], (last - 1 if newest else first)[filled]
        kinds = self.catalogue.kinds[slots]
        rows = Rows(self.catalogue.labels_of(slots), [])
        for kind, rings in self.rings.items():
            index = np.flatnonzero(kinds == kind)
            if len(index):
                found = at[index]
                moments, values = rings.pool.timestamps[found], rings.pool.values[found]
                rows.parts.append((rings.kind, index, moments, values))
        return rows

    # Changing.

    def delete(self, slots: Int64Array, start: int, end: int) -> None:
        """Drop the rows of a range."""
        first, last = self.locate(slots, start, end)
        kinds = self.catalogue.kinds[slots]
        for rings in self.rings.values():
            hit = (kinds == rings.kind) & (first < last)
            begins = hit & (first == rings.lo[np.where(hit, slots, 0)])
            rings.advance(slots[begins], last[begins])
            inside = np.flatnonzero(hit & ~begins)
            if len(inside):
                kept = first[inside] - rings.lo[slots[inside]]
                rings.cut_out(slots[inside], kept, (last - first)[inside])

    def remove(self, slots: Int64Array) -> None:
        """Drop series."""
        kinds = self.catalogue.kinds[slots]
        for rings in self.rings.values():
            rings.release(slots[kinds == rings.kind])
        self.catalogue.remove(slots)

    def drop_before(self, horizon: int) -> None:
        """Drop the rows of all series that have expired."""
        for rings in self.rings.values():
            slots = rings.filled()
            rings.advance(slots, rings.locate(slots, horizon))

    def load(self, part: StoredSeries) -> bool:
        """Add series, or rows to the end of series, as a snapshot has them.

        Returns:
            Whether all are new but for the one that goes on; where not, nothing is added.
        """
        slots = self.catalogue.slots(part.labels)
        new = np.flatnonzero(slots == 0)
        if len(slots) - len(new) != part.goes_on or slots[1:].any():
            return False
        slots[new] = self.catalogue.new_slots(len(new))
        self.catalogue.add([part.labels[index] for index in new.tolist()], slots[new], part.kind)
        rings = self.rings[part.kind]
        rings.ensure_slots(self.catalogue.slots_end)
        kept = rings.hi[slots] - rings.lo[slots]
        rings.make_room(slots, kept, lengths_of(part.bounds))
        rings.replace_tails(slots, kept, part.bounds, (part.timestamps, part.values))
        return True

    def apply_caps(self) -> int:
        """Cut what the caps say; give the number of rows."""
        dropped = 0
        if self.points_per_series_max is not None:
            for rings in self.rings.values():
                slots = rings.filled()
                begins = np.maximum(rings.lo[slots], rings.hi[slots] - self.points_per_series_max)
                dropped += rings.advance(slots, begins)
        if self.total_cap is not None:
            for rings, slots, begins in self.total_cap.excess():
                dropped += rings.advance(slots, begins)
        return dropped

    def tidy(self) -> None:
        """Write pools anew that are mostly waste."""
        for rings in self.rings.values():
            rings.tidy()

    def verify(self) -> None:
        """Check what everything here relies on.

        Raises:
            CorruptionError: it does not hold.
        """
        self.catalogue.verify()
        for rings in self.rings.values():
            rings.verify(self.catalogue.kinds)


@dataclass(slots=True)
class Rows:
    """A row each of some series, taken out of the store.

    Attributes:
        labels: the series.
        parts: for each kind that occurs, the index of each of its series among the labels,
            and the timestamps and values of these.
    """

    labels: list[Labels]
    parts: list[tuple[ValueKind, Int64Array, Int64Array, ValueArray]]

    def points(self) -> list[DataPoint]:
        """Give the rows as points."""
        moments: list[int] = [0] * len(self.labels)
        values: list[Value] = [0.0] * len(self.labels)
        for kind, index, times, stored in self.parts:
            if len(self.parts) == 1:
                moments, values = times.tolist(), _values(kind, stored).tolist()
                break
            for place, moment, value in zip(
                index.tolist(), times.tolist(), _values(kind, stored).tolist(), strict=True
            ):
                moments[place], values[place] = moment, value
        rows = zip(self.labels, moments, values, strict=True)
        # What `DataPoint(*row)` comes to, at half its time.
        return list(map(cast("_MakePoint", tuple.__new__), repeat(DataPoint), rows))


class View:
    """Windows of one moment, in pools that stay as they are until it is closed.

    Thread-safety: to be made under the engine's lock; closing needs none.
    """

    def __init__(self, windows: Iterable[Window], pools: Sequence[Pool]) -> None:
        self._windows = windows
        self._pools = pools
        for pool in self._pools:
            pool.pins.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            pool.pins.discard(self)

    def batches(self, rows_max: int = INT64_MAX) -> Iterator[SeriesBatch]:
        """Give the rows as columns of the caller's own, at most so many at a time."""
        for labels, kind, pool, first, last in self._windows:
            while last - first > rows_max:
                yield _batch(labels, kind, pool, first, first + rows_max)
                first += rows_max
            yield _batch(labels, kind, pool, first, last)

    def columns(self) -> Iterator[tuple[Labels, ValueKind, Int64Array, ValueArray]]:
        """Give the rows as they are stored: columns of the pool itself, not to be changed."""
        for labels, kind, pool, first, last in self._windows:
            yield labels, kind, pool.timestamps[first:last], pool.values[first:last]


def _batch(labels: Labels, kind: ValueKind, pool: Pool, first: int, last: int) -> SeriesBatch:
    return SeriesBatch(
        labels, pool.timestamps[first:last].copy(), _values(kind, pool.values[first:last])
    )


def _values(kind: ValueKind, column: ValueArray) -> ValueArray:
    """Give stored values as callers get them, in an array of their own."""
    if kind is not ValueKind.OBJECT:
        return column.copy()
    values = np.empty(len(column), object)
    for index, packed in enumerate(column):
        values[index] = unpack_object(packed)
    return values
