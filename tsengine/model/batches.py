"""What goes in and out: points, columns of one and of many series, receipts, marks."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from tsengine.errors import InvalidDataError
from tsengine.model.labels import Labels
from tsengine.model.time import TimestampLike
from tsengine.model.values import Value, ValueArray

Int64Array: TypeAlias = npt.NDArray[np.int64]
"""A numpy array, `int64[n]`."""

PRODUCER_LENGTH_MAX: Final = 1_024
"""Most characters of a producer's name: host, path and process of a program, and room."""

_NEVER_STORED: Final = re.compile("[\0\ud800-\udfff]")


class DataPoint(NamedTuple):
    """One value of one series at one time; the bare tuple is taken as well.

    Attributes:
        labels: which series.
        timestamp: nanoseconds since the Unix epoch, UTC.
        value: a float, an int, or what MessagePack carries.
    """

    labels: Labels
    timestamp: int
    value: Value


PointLike: TypeAlias = "DataPoint | tuple[Labels, TimestampLike, object]"
"""A point, or the bare tuple."""


@dataclass(frozen=True, slots=True, eq=False)
class SeriesBatch:
    """Columns of one series.

    Attributes:
        labels: which series.
        timestamps: int64[n], nanoseconds; strictly increasing in results.
        values: float64[n], int64[n] or object[n].
    """

    labels: Labels
    timestamps: Int64Array
    values: ValueArray

    def __len__(self) -> int:
        return len(self.timestamps)

    def points(self) -> Iterator[DataPoint]:
        """Iterate over the rows as points with Python values."""
        labels = self.labels
        for timestamp, value in zip(self.timestamps.tolist(), self.values.tolist(), strict=True):
            yield DataPoint(labels, timestamp, value)


@dataclass(frozen=True, slots=True, eq=False)
class GroupedBatch:
    """Columns of many series, grouped by series, values of one kind.

    Attributes:
        labels: k distinct series.
        offsets: int64[k + 1]; rows `offsets[i]` to `offsets[i + 1]` belong to `labels[i]`.
        timestamps: int64[n], nanoseconds, in any order within a series; of equal ones the
            later row is the newer write.
        values: float64[n], int64[n] or object[n].
        judged: set by who has judged every point by the rules of the store it is for, and
            made the columns itself, as a WriteBuffer does: it saves a second look.
    """

    labels: Sequence[Labels]
    offsets: Int64Array
    timestamps: Int64Array
    values: ValueArray
    judged: bool = False

    def __len__(self) -> int:
        return len(self.timestamps)

    def groups(self) -> Iterator[SeriesBatch]:
        """Iterate over the series; columns are views."""
        bounds = self.offsets.tolist()
        for index, labels in enumerate(self.labels):
            rows = slice(bounds[index], bounds[index + 1])
            yield SeriesBatch(labels, self.timestamps[rows], self.values[rows])


@dataclass(frozen=True, slots=True, eq=False)
class WideBatch:
    """Columns of many series that share their timestamps, values of kind float.

    Attributes:
        labels: k distinct series.
        timestamps: int64[n], nanoseconds, in any order; of equal ones the later row is the
            newer write.
        columns: k columns of float64[n], one per series; a matrix float64[k, n] is such.
    """

    labels: Sequence[Labels]
    timestamps: Int64Array
    columns: Sequence[npt.NDArray[np.float64]] | npt.NDArray[np.float64]

    def __len__(self) -> int:
        """Count the points."""
        return len(self.timestamps) * len(self.labels)

    def grouped(self) -> GroupedBatch:
        """Give the same points with timestamps of their own for each series."""
        rows, count = len(self.timestamps), len(self.labels)
        return GroupedBatch(
            self.labels,
            np.arange(count + 1) * rows,
            np.tile(self.timestamps, count),
            np.concatenate(self.columns) if count else np.empty(0),
        )

    def in_order(self) -> tuple[WideBatch, Int64Array | None] | None:
        """Sort the rows by time.

        Returns:
            The batch with timestamps that strictly increase, and int64[n], the former position
            of each row, or None where it was in order already; None where timestamps repeat.
        """
        timestamps = self.timestamps
        if (timestamps[1:] > timestamps[:-1]).all():
            return self, None
        order = timestamps.argsort(kind="stable")
        ordered = timestamps[order]
        if (ordered[1:] == ordered[:-1]).any():
            return None
        return WideBatch(self.labels, ordered, [column[order] for column in self.columns]), order


@dataclass(frozen=True, slots=True)
class WriteReceipt:
    """What became of a write that did not raise.

    Attributes:
        submitted: points given; always accepted + refused.
        accepted: points stored (an overwrite counts: which points were new is not told).
        refused: points that a cap or the retention kept out.
        evicted: points stored earlier that a cap removed to make room.
        reasons: refused points by reason, `"cap"` or `"retention"`.
        indices: positions of the refused in the caller's order, ascending.
    """

    submitted: int
    accepted: int
    refused: int = 0
    evicted: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    indices: tuple[int, ...] = ()


def check_producer(producer: object) -> None:
    """Check the name of a producer: what every backend can keep.

    Raises:
        InvalidDataError: it is not text, empty, longer than `PRODUCER_LENGTH_MAX`, or holds a NUL
            or a lone surrogate.
    """
    if (
        not isinstance(producer, str)
        or not 0 < len(producer) <= PRODUCER_LENGTH_MAX
        or _NEVER_STORED.search(producer)
    ):
        raise InvalidDataError(
            f"a producer is named by 1 to {PRODUCER_LENGTH_MAX} characters without NUL and lone "
            f"surrogates, not by {reprlib.repr(producer)}"
        )


class ProducerMark(NamedTuple):
    """How far a producer has got: committed with the points that it numbers.

    Marks order by `(sequence, piece)`; a batch whose mark is not above the highest stored
    one of its producer was stored before and is not stored again.

    Attributes:
        producer: name of the producer.
        sequence: number of the batch, from 1.
        piece: number of the piece where a batch was split, else 0.
    """

    producer: str
    sequence: int
    piece: int = 0
