"""Parcels: points of a source in its order, as many as one commit takes.

A `PointParcel` holds points as they were given, a `RowParcel` columns. Either becomes the
`Departure` that a `Committer` delivers, whose positions count the points of the parcel in the
order of the source; and either tells by what a place in it is known again.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, TypeAlias, cast

import numpy as np

from tsengine.buffering.arrivals import Departure, depart
from tsengine.buffering.judging import Judge
from tsengine.errors import InvalidDataError
from tsengine.grouping import group_order, take_rows
from tsengine.model import DataPoint, GroupedBatch, Int64Array, Labels, PointLike, SeriesBatch

Rejection: TypeAlias = tuple[int, PointLike, InvalidDataError]
"""Position in its parcel, point, and what is wrong with it."""

_WRAP: Final = 1 << 64
_FINGERPRINT_BITS: Final = 31
"""Fits a column of 32 bits with a sign, where a backend keeps marks in one."""

_NUMBERS_MAX: Final = 1 << 19
"""Longest column of positions that is kept: 4 MB."""


@dataclass(slots=True)
class Trail:
    """How far a copy is in its source, and by what that place is known again.

    Attributes:
        position: points of the source before this place.
        timestamp_sum: of all of them, modulo 2^64; those of points without one count 0.
    """

    position: int = 0
    timestamp_sum: int = 0
    _known: tuple[Parcel, int, int] | None = None  # a sum: a mark needs it, then going on does

    def advance(self, parcel: Parcel, count: int, *, is_known_again: bool = True) -> None:
        """Go on behind the first points of what comes next."""
        if is_known_again:
            self.timestamp_sum = (self.timestamp_sum + self._sum(parcel, count)) % _WRAP
        self.position += count
        self._known = None

    def fingerprint(self, parcel: Parcel, count: int) -> int:
        """Tell a place behind the first points of what comes next, from 0 to 2^31.

        It covers the timestamps of all points before it, and the series of the last one.
        """
        series_id, timestamp = parcel.last(count)
        total = (self.timestamp_sum + self._sum(parcel, count)) % _WRAP
        known_by = f"{total} {timestamp} {series_id}".encode("utf-8", "surrogatepass")
        return zlib.crc32(known_by) >> (32 - _FINGERPRINT_BITS)

    def _sum(self, parcel: Parcel, count: int) -> int:
        known = self._known
        if known is None or known[0] is not parcel or known[1] != count:
            self._known = known = parcel, count, parcel.timestamp_sum(count)
        return known[2]


@dataclass(frozen=True, slots=True, eq=False)
class PointParcel:
    """Points as they were given."""

    points: list[PointLike]

    def __len__(self) -> int:
        return len(self.points)

    def after(self, count: int) -> PointParcel:
        """Give it without its first points."""
        return PointParcel(self.points[count:])

    def timestamp_sum(self, count: int) -> int:
        """Sum the timestamps of the first points; what has none counts 0."""
        points = self.points if count == len(self.points) else self.points[:count]
        try:
            timestamps = list(map(operator.itemgetter(1), cast("list[DataPoint]", points)))
            if set(map(type, timestamps)) <= {int}:
                return sum(timestamps)
        except (TypeError, LookupError):
            pass  # some are no points
        return sum(map(_timestamp_of, points))

    def last(self, count: int) -> tuple[str, int]:
        """Give series ID and timestamp of the last of the first points."""
        point = self.points[count - 1]
        given: object = point
        labels = given[0] if isinstance(given, tuple) and given else None
        return labels.id if type(labels) is Labels else "", _timestamp_of(point)

    def departure(
        self, judge: Judge, entries: list[object]
    ) -> tuple[Departure | None, list[Rejection]]:
        """Judge the points; give those that are valid as columns, and the others.

        Args:
            judge: by the rules of the target.
            entries: the list that the judge knows as that of pending points.
        """
        points = self.points
        entries.clear()
        rejected: list[Rejection] = []
        try:
            entries += judge.judge_many(points, len(points))
        except InvalidDataError:
            for position, point in enumerate(points):
                try:
                    entries += judge.judge(point, entries)
                except InvalidDataError as error:
                    rejected.append((position, point, error))
        departure = depart(entries, len(points))
        entries.clear()
        if departure is not None and rejected:
            bad = [position for position, _, _ in rejected]
            good = np.delete(np.arange(len(points)), bad)
            departure = replace(departure, positions=good[departure.positions])
        return departure, rejected


@dataclass(frozen=True, slots=True, eq=False)
class RowParcel:
    """Columns.

    Attributes:
        batches: at most one for each dtype; distinct labels, each in one batch alone.
        positions: int64[n], the place in the order of the source of each row, over the batches
            one after the other; None where rows stand in that order.
    """

    batches: list[GroupedBatch]
    positions: Int64Array | None = None

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    def after(self, count: int) -> RowParcel:
        """Give it without its first points."""
        batches: list[GroupedBatch] = []
        kept = self._positions() >= count
        base = 0
        for batch in self.batches:
            keep = kept[base : base + len(batch)]
            base += len(batch)
            if keep.any():
                batches.append(replace(take_rows(batch, keep), judged=batch.judged))
        return RowParcel(batches, None if self.positions is None else self.positions[kept] - count)

    def timestamp_sum(self, count: int) -> int:
        """Sum the timestamps of the first points, modulo 2^64."""
        # numpy wraps around by itself.
        if count == len(self):
            return sum(int(batch.timestamps.sum()) for batch in self.batches)
        total, base = 0, 0
        before = self._positions() < count
        for batch in self.batches:
            total += int(batch.timestamps[before[base : base + len(batch)]].sum())
            base += len(batch)
        return total

    def last(self, count: int) -> tuple[str, int]:
        """Give series ID and timestamp of the last of the first points."""
        row = count - 1
        if self.positions is not None:
            row = int(np.flatnonzero(self.positions == row)[0])
        for batch in self.batches:
            if row < len(batch):
                labels = batch.labels[int(batch.offsets.searchsorted(row, side="right")) - 1]
                return labels.id, int(batch.timestamps[row])
            row -= len(batch)
        raise AssertionError("a parcel has no point so far behind")

    def departure(
        self, judge: Judge, entries: list[object]
    ) -> tuple[Departure | None, list[Rejection]]:
        """Give the columns; the target judges them itself."""
        del judge, entries
        return _RowDeparture(0, len(self), self.batches, self._positions()), []

    def _positions(self) -> Int64Array:
        return _counted(len(self)) if self.positions is None else self.positions


Parcel: TypeAlias = PointParcel | RowParcel


class _RowDeparture(Departure):
    """Columns that nobody has judged yet; nor then are their parts."""

    __slots__ = ()

    def part(self, rows: Int64Array) -> list[GroupedBatch]:
        return [replace(batch, judged=False) for batch in Departure.part(self, rows)]


def gather(items: Sequence[GroupedBatch | SeriesBatch]) -> list[RowParcel]:
    """Join batches, in the order of their source, to as few parcels as can be.

    Args:
        items: of the right shape, none empty. The arrays of a single one are referred to.
    """
    forms = [_form(item) for item in items]
    if len(set(forms)) == 1:
        return [_join(items)]
    parcels: list[RowParcel] = []
    current: list[GroupedBatch | SeriesBatch] = []
    named: dict[str, set[Labels]] = {}
    for item, form in zip(items, forms, strict=True):
        labels = {item.labels} if isinstance(item, SeriesBatch) else set(item.labels)
        # Two batches of one series in two dtypes: which of them came first must not be lost.
        if any(other != form and not named[other].isdisjoint(labels) for other in named):
            parcels.append(_join_forms(current))
            current, named = [], {}
        current.append(item)
        named.setdefault(form, set()).update(labels)
    return [*parcels, _join_forms(current)]


def rows_of(batch: GroupedBatch | SeriesBatch, start: int, end: int) -> GroupedBatch | SeriesBatch:
    """Give some rows of a batch, as views."""
    if start == 0 and end == len(batch):
        return batch
    timestamps, values = batch.timestamps[start:end], batch.values[start:end]
    if isinstance(batch, SeriesBatch):
        return SeriesBatch(batch.labels, timestamps, values)
    offsets = batch.offsets
    first = int(offsets.searchsorted(start, side="right")) - 1
    last = int(offsets.searchsorted(end, side="left"))
    bounds = np.clip(offsets[first : last + 1], start, end) - start
    return GroupedBatch(batch.labels[first:last], bounds, timestamps, values)


def copied(batch: GroupedBatch | SeriesBatch) -> GroupedBatch | SeriesBatch:
    """Give a batch with arrays of its own."""
    if isinstance(batch, SeriesBatch):
        return SeriesBatch(batch.labels, batch.timestamps.copy(), batch.values.copy())
    return GroupedBatch(
        list(batch.labels), batch.offsets.copy(), batch.timestamps.copy(), batch.values.copy()
    )


def _counted(count: int) -> Int64Array:
    """Give 0, 1, 2, …: mostly the same again, and to touch new pages would cost more than it."""
    if count > _NUMBERS_MAX:
        return np.arange(count)
    return _numbers(1 << (count - 1).bit_length())[:count]


@lru_cache(maxsize=2)
def _numbers(count: int) -> Int64Array:
    numbers = np.arange(count)
    numbers.flags.writeable = False
    return numbers


def _form(item: GroupedBatch | SeriesBatch) -> str:
    """Tell which columns may become one without a change of values."""
    dtype = item.values.dtype
    return dtype.str if dtype.kind in "fiu" else dtype.kind


def _join_forms(items: Sequence[GroupedBatch | SeriesBatch]) -> RowParcel:
    """Join batches of several dtypes, each series of one alone."""
    starts = np.cumsum([0, *map(len, items)])
    groups: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(_form(item), []).append(place)
    if len(groups) == 1:
        return _join(items)
    batches: list[GroupedBatch] = []
    positions: list[Int64Array] = []
    for places in groups.values():
        joined = _join([items[place] for place in places])
        rows = np.concatenate([np.arange(starts[place], starts[place + 1]) for place in places])
        positions.append(rows if joined.positions is None else rows[joined.positions])
        batches += joined.batches
    return RowParcel(batches, np.concatenate(positions))


def _join(items: Sequence[GroupedBatch | SeriesBatch]) -> RowParcel:
    """Join batches of one dtype."""
    names: list[Labels] = []
    sizes: list[int] = []
    for item in items:
        if isinstance(item, SeriesBatch):
            if names and names[-1] is item.labels:
                sizes[-1] += len(item)
            else:
                names.append(item.labels)
                sizes.append(len(item))
            continue
        labels, counts = item.labels, np.diff(item.offsets).tolist()
        if names and len(labels) and names[-1] is labels[0]:
            sizes[-1] += counts[0]
            labels, counts = labels[1:], counts[1:]
        names += labels
        sizes += counts
    if len(items) == 1:
        timestamps, values = items[0].timestamps, items[0].values
    else:
        timestamps = np.concatenate([item.timestamps for item in items])
        values = np.concatenate([item.values for item in items])
    if 0 in sizes:
        filled = [place for place, size in enumerate(sizes) if size]
        names, sizes = [names[place] for place in filled], [sizes[place] for place in filled]
    if len(set(names)) == len(names):
        offsets = np.zeros(len(names) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        return RowParcel([GroupedBatch(names, offsets, timestamps, values)])
    ranks: dict[Labels, int] = {}
    for name in names:
        ranks.setdefault(name, len(ranks))
    of_rows = np.repeat(np.array([ranks[name] for name in names], np.int64), sizes)
    order, distinct, offsets = group_order(of_rows)
    all_names = list(ranks)
    names = [all_names[rank] for rank in distinct.tolist()]
    return RowParcel([GroupedBatch(names, offsets, timestamps[order], values[order])], order)


def _timestamp_of(point: object) -> int:
    """Give the timestamp of what may be a point, 0 where there is none."""
    try:
        return operator.index(point[1])  # type: ignore[index]  # asked for the answer
    except (TypeError, LookupError):
        return 0
