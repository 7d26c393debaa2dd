"""Arrivals: points in the order in which they came, and the columns they become.

A buffer holds one flat list of entries, three elements each, because CPython extends a list
by a tuple in one step that no other thread can divide:

    labels, timestamp, value       one point
    labels, timestamp, Awaited     one point whose fate somebody waits for
    labels, n, Columns             n points taken at once; labels is the series of all of
                                   them, or of the first where `Columns.labels` names each

`depart` turns the first entries into what a handler stages: one `GroupedBatch` per kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress, repeat
from typing import TYPE_CHECKING, Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from tsengine.grouping import group_order, take_rows
from tsengine.model import (
    DataPoint,
    GroupedBatch,
    Int64Array,
    Labels,
    Value,
    ValueArray,
    ValueKind,
    WriteReceipt,
)

if TYPE_CHECKING:
    LabelsArray: TypeAlias = npt.NDArray[np.object_]

ENTRY: Final = 3
"""List elements of an entry."""

_RANKS_MAX: Final = 2**31
"""What `group_order` takes."""

_ADDRESS_BITS: Final = 4
"""Objects are larger than 16 bytes, so addresses divided by 16 still tell them apart. That
brings a heap of 32 GiB into the range of ranks."""


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Points of one kind taken at once, in order.

    Attributes:
        kind: the kind of all of them.
        labels: the series of each; None where all are of the entry's series.
        timestamps: int64[n], nanoseconds.
        values: [n], of the dtype of the kind.
    """

    kind: ValueKind
    labels: tuple[Labels, ...] | None
    timestamps: Int64Array
    values: ValueArray

    def __len__(self) -> int:
        return len(self.timestamps)

    def entries(self, first: Labels, points_max: int) -> list[object]:
        """Give these as entries of at most `points_max` points."""
        count = len(self)
        if 0 < count <= points_max:
            return [first, count, self]
        entries: list[object] = []
        for start in range(0, count, points_max):
            rows = slice(start, start + points_max)
            labels = None if self.labels is None else self.labels[rows]
            part = Columns(self.kind, labels, self.timestamps[rows], self.values[rows])
            entries += (first if labels is None else labels[0], len(part), part)
        return entries


Outcome: TypeAlias = WriteReceipt | BaseException
"""What became of a point: its own receipt, or why it is not stored."""

Tell: TypeAlias = Callable[[list[tuple[object, Outcome]]], None]
"""Tells waiters what became of their points, many at once. Who was told already, as before an
interrupt, is not told again."""

News: TypeAlias = tuple[Tell, list[tuple[object, Outcome]]]
"""What is to be told, and by what."""


class Awaited:
    """The value of a point whose fate somebody waits for.

    Attributes:
        value: the value in its stored form.
        waiter: who waits, whatever `tell` takes.
        tell: tells it.
    """

    __slots__ = ("tell", "value", "waiter")

    def __init__(self, value: Value, waiter: object, tell: Tell) -> None:
        self.value = value
        self.waiter = waiter
        self.tell = tell


@dataclass(frozen=True, slots=True, eq=False)
class Departure:
    """What leaves a buffer in one commit.

    Attributes:
        entries: how many entries it was.
        points: how many points.
        batches: at most one per kind; distinct labels in no particular order, the rows of
            a series in order of arrival.
        positions: int64[points], the number in order of arrival of each row, over the
            batches one after the other.
        awaited: number in order of arrival, and value, of points whose fate is waited for.
    """

    entries: int
    points: int
    batches: list[GroupedBatch]
    positions: Int64Array
    awaited: Sequence[tuple[int, Awaited]] = ()

    def part(self, rows: Int64Array) -> list[GroupedBatch]:
        """Give the batches of some rows alone.

        Args:
            rows: int64[n], ascending, over the batches one after the other.
        """
        parts: list[GroupedBatch] = []
        base = 0
        for batch in self.batches:
            mine = rows[rows.searchsorted(base) : rows.searchsorted(base + len(batch))] - base
            base += len(batch)
            if len(mine):
                keep = np.zeros(len(batch), bool)
                keep[mine] = True
                parts.append(replace(take_rows(batch, keep), judged=True))
        return parts

    def points_of(self, rows: Int64Array) -> list[DataPoint]:
        """Give some rows, as `part` takes them, as points in order of arrival."""
        points = [
            point for batch in self.part(rows) for one in batch.groups() for point in one.points()
        ]
        return [points[place] for place in self.positions[rows].argsort().tolist()]


_COLUMNS: Final = 0  # no kind has this number
"""Stands for `Columns` where entries are numbered by the kind of their value."""

_OBJECT: Final = int(ValueKind.OBJECT)
_KIND_OF_TYPE: Final[dict[type, int]] = {
    float: int(ValueKind.FLOAT),
    int: int(ValueKind.INT),
    **dict.fromkeys((bool, str, bytes, list, dict), _OBJECT),
    Columns: _COLUMNS,
}
"""Values are in their stored form, which shows their kind."""

_KIND_OF_STORED: Final = {
    form: ValueKind(number) for form, number in _KIND_OF_TYPE.items() if number != _COLUMNS
}


def kind_of_stored(value: Value) -> ValueKind:
    """Tell the kind of a value in its stored form.

    Raises:
        TypeError: this is no stored form.
    """
    kind = _KIND_OF_STORED.get(type(value))
    if kind is None:
        raise TypeError(f"{value!r} of type {type(value).__name__} is no stored form of a value")
    return kind


def depart(entries: list[object], points_max: int) -> Departure | None:
    """Bring the first entries into columns; the list stays as it is.

    Args:
        entries: the list, to whose end others may be appending.
        points_max: how many points to take at most; no `Columns` has more.

    Returns:
        The columns, None where there are no entries.
    """
    count = min(len(entries) // ENTRY, points_max)
    if not count:
        return None
    end = ENTRY * count
    given = entries[2:end:ENTRY]
    types = set(map(type, given))
    awaited: list[tuple[int, Awaited]] = []
    if Awaited in types:
        awaited = [(place, value) for place, value in enumerate(given) if type(value) is Awaited]
        for place, value in awaited:
            given[place] = value.value
        types = set(map(type, given))
    if types != {float}:
        return _depart_mixed(entries, given, awaited, points_max)
    labels = np.fromiter(cast("list[Labels]", entries[0:end:ENTRY]), object, count)
    timestamps = np.fromiter(cast("list[int]", entries[1:end:ENTRY]), np.int64, count)
    values = np.fromiter(cast("list[float]", given), np.float64, count)
    batch, order = _grouped(labels, timestamps, values)
    return Departure(count, count, [batch], order, awaited)


def _depart_mixed(
    entries: list[object],
    values: list[object],
    awaited: list[tuple[int, Awaited]],
    points_max: int,
) -> Departure:
    count = len(values)
    kinds = np.fromiter(map(_KIND_OF_TYPE.__getitem__, map(type, values)), np.int8, count)
    numbers = np.fromiter(cast("list[int]", entries[1 : ENTRY * count : ENTRY]), np.int64, count)
    sizes = np.where(kinds == _COLUMNS, numbers, 1)
    ends = np.cumsum(sizes)
    count = max(1, int(ends.searchsorted(points_max, side="right")))
    kind_of_entry, starts, points = kinds[:count], (ends - sizes)[:count], int(ends[count - 1])
    many = np.flatnonzero(kind_of_entry == _COLUMNS).tolist()
    awaited = [(int(starts[entry]), value) for entry, value in awaited if entry < count]

    # A point in each row: its series, timestamp, kind, and in the column of its kind the value.
    labels = cast("list[Labels]", entries[0 : ENTRY * count : ENTRY])
    timestamps, kinds = numbers[:count], kind_of_entry
    if many:
        labels = _labels_of_points(labels, values, many)
        timestamps = timestamps.repeat(sizes[:count])
        kinds = kinds.repeat(sizes[:count])
    columns_of: dict[ValueKind, ValueArray] = {}
    for kind in ValueKind:
        chosen = kind_of_entry == kind
        if chosen.any():
            columns_of[kind] = column = np.empty(points, kind.dtype)
            column[starts[chosen]] = np.fromiter(compress(values, chosen.tolist()), kind.dtype)
    for entry in many:
        columns = cast("Columns", values[entry])
        rows = slice(starts[entry], starts[entry] + len(columns))
        timestamps[rows] = columns.timestamps
        kinds[rows] = columns.kind
        if columns.kind not in columns_of:
            columns_of[columns.kind] = np.empty(points, columns.kind.dtype)
        columns_of[columns.kind][rows] = columns.values

    names = np.fromiter(labels, object, points)
    batches: list[GroupedBatch] = []
    positions: list[Int64Array] = []
    for kind, column in sorted(columns_of.items()):
        if len(columns_of) == 1:
            batch, order = _grouped(names, timestamps, column)
        else:
            at = np.flatnonzero(kinds == kind)
            batch, order = _grouped(names[at], timestamps[at], column[at])
            order = at[order]
        batches.append(batch)
        positions.append(order)
    return Departure(count, points, batches, np.concatenate(positions), awaited)


def _labels_of_points(labels: list[Labels], values: list[object], many: list[int]) -> list[Labels]:
    """Repeat the labels of entries that are `Columns`, at the places `many`."""
    every: list[Labels] = []
    place = 0
    for entry in many:
        columns = cast("Columns", values[entry])
        every += labels[place:entry]
        every += repeat(labels[entry], len(columns)) if columns.labels is None else columns.labels
        place = entry + 1
    every += labels[place:]
    return every


def awaited_in(entries: list[object]) -> list[Awaited]:
    """Give the values of entries whose fate is waited for."""
    return [value for value in entries[2::ENTRY] if type(value) is Awaited]


def points_of(entries: list[object]) -> list[DataPoint]:
    """Give entries as points with Python values."""
    points: list[DataPoint] = []
    for labels, number, value in zip(*(entries[part::ENTRY] for part in range(ENTRY)), strict=True):
        if type(value) is Columns:
            series = [labels] * len(value) if value.labels is None else value.labels
            points += map(DataPoint, series, value.timestamps.tolist(), value.values.tolist())
        else:
            points.append(
                DataPoint(labels, number, value.value if type(value) is Awaited else value)
            )
    return points


def series_of(entries: list[object]) -> set[Labels]:
    """Give the series that entries have points of."""
    series = set(cast("list[Labels]", entries[0::ENTRY]))
    for value in entries[2::ENTRY]:
        if type(value) is Columns and value.labels is not None:
            series.update(value.labels)
    return series


def _ranks(labels: LabelsArray) -> Int64Array:
    """Number the series of an array: equal labels are one object, so its address tells.

    A third of the time of a look-up in a dict, or of `id` of each.
    """
    # An array of objects consists of their addresses. Not by `__array_interface__`, which takes
    # four times as long, and crashes where memory runs out.
    addresses: Int64Array = np.ndarray(len(labels), np.int64, buffer=labels)
    ranks: Int64Array = (addresses - addresses.min()) >> _ADDRESS_BITS
    if ranks.max() < _RANKS_MAX:
        return ranks
    numbers: Int64Array = np.unique(addresses, return_inverse=True)[1]
    return numbers


def _grouped(
    labels: LabelsArray, timestamps: Int64Array, values: ValueArray
) -> tuple[GroupedBatch, Int64Array]:
    if len(labels) == 1:  # a point a commit: there is nothing to group, and grouping takes longest
        one = np.zeros(1, np.int64)
        return GroupedBatch([labels[0]], np.arange(2), timestamps, values, judged=True), one
    order, _, offsets = group_order(_ranks(labels))
    names: Sequence[Labels] = labels[order[offsets[:-1]]].tolist()
    return GroupedBatch(names, offsets, timestamps[order], values[order], judged=True), order
