"""Verifying: whether two stores hold the same points, bit for bit."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, Literal, TypeAlias

import numpy as np

from tsengine.engine import Engine
from tsengine.errors import DifferenceError
from tsengine.model import Labels, SeriesBatch, TimestampLike, Value, ValueKind, pack_object
from tsengine.selectors import SelectorLike
from tsengine.staging import kind_of_column
from tsengine.waiting import Patience

_DIGEST_BYTES: Final = 16
"""No two series of any number of stores have the same by chance."""

What: TypeAlias = Literal["missing", "extra", "kind", "count", "timestamp", "value"]
"""In what two stores differ; see `Difference`."""


@dataclass(frozen=True, slots=True)
class SeriesChecksum:
    """What tells the rows of a series from any others, however they come in batches.

    Attributes:
        labels: which series.
        kind: kind of its values.
        count: how many rows.
        digest: BLAKE2b of its timestamps and its values, numbers as 8 bytes, least significant
            first, objects as MessagePack.
    """

    labels: Labels
    kind: ValueKind
    count: int
    digest: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two stores first differ, by series ID, then time.

    Attributes:
        labels: which series.
        what: `"missing"`, the target has no rows of it; `"extra"`, the source has none;
            `"kind"`; `"timestamp"`, one side has a row there; `"value"`, both have, and differ;
            `"count"`, where the rows were changed before the difference could be looked up.
        source: checksum of the series in the source, None where there is none.
        target: the same of the target.
        timestamp: of the first row that differs, None where it is not about rows.
        source_value: what the source has there; None for no row.
        target_value: what the target has there; None for no row.
    """

    labels: Labels
    what: What
    source: SeriesChecksum | None
    target: SeriesChecksum | None
    timestamp: int | None = None
    source_value: Value | None = None
    target_value: Value | None = None

    def __str__(self) -> str:
        series = self.labels.id
        if self.what == "missing":
            return f"{series} is not in the target"
        if self.what == "extra":
            return f"{series} is in the target alone"
        source, target = self.source, self.target
        if source is None or target is None or self.what == "kind":
            kinds = [side.kind.name.lower() for side in (source, target) if side is not None]
            return f"{series} holds {' in the source and '.join(kinds)} in the target"
        rows = f"{series} has {source.count} rows in the source and {target.count} in the target"
        if self.timestamp is None:
            return f"{rows}, and other digests"
        if self.what == "value":
            ours, theirs = repr(self.source_value), repr(self.target_value)
            if ours == theirs:  # NaNs, of which only the bits tell
                ours, theirs = _bits(self.source_value), _bits(self.target_value)
            return f"{series} at {self.timestamp}: {ours} in the source, {theirs} in the target"
        side = "source" if self.target_value is None else "target"
        return f"{rows}: the row at {self.timestamp} is in the {side} alone"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was compared and found equal.

    Attributes:
        series: series with rows.
        points: rows.
    """

    series: int
    points: int


def verify(
    source: Engine,
    target: Engine,
    selector: SelectorLike = None,
    start: TimestampLike | None = None,
    end: TimestampLike | None = None,
    *,
    progress: Callable[[VerifyReport], None] | None = None,
    cancel: threading.Event | None = None,
) -> VerifyReport:
    """Compare what two stores hold, series by series, in bounded memory.

    Rows are equal where timestamps and values are, bit for bit: −0 is not 0, and NaNs differ by
    their payload. Series without rows are not looked at. Each store is read from one snapshot.

    It raises where they differ rather than say so in what it returns: a difference that nobody
    looks at would pass for none.

    Args:
        source: an engine, open.
        target: another.
        selector: which series of both.
        start: the first timestamp.
        end: one past the last timestamp.
        progress: is called after each series with what was found equal so far.
        cancel: stops when it is set.

    Raises:
        DifferenceError: names the first difference.
        InvalidQueryError: a bad selector or range.
        CancelledError: `cancel` was set.
        StorageError: one of the stores cannot be read.
    """
    series = points = 0
    for left, right in _pairs(
        checksums(source, selector, start, end, cancel=cancel),
        checksums(target, selector, start, end, cancel=cancel),
    ):
        if left is None or right is None or left != right:
            difference = _difference(source, target, left, right, start, end)
            raise DifferenceError(str(difference), difference=difference)
        series += 1
        points += left.count
        if progress is not None:
            progress(VerifyReport(series, points))
    return VerifyReport(series, points)


def checksums(
    engine: Engine,
    selector: SelectorLike = None,
    start: TimestampLike | None = None,
    end: TimestampLike | None = None,
    *,
    cancel: threading.Event | None = None,
) -> Iterator[SeriesChecksum]:
    """Iterate over the checksums of all series that have rows in a range, by series ID.

    Raises:
        InvalidQueryError: a bad selector or range.
        CancelledError: `cancel` was set.
        StorageError: the store cannot be read.
    """
    current: _Digest | None = None
    for batch in engine.scan(selector, start, end):
        Patience(None, cancel)  # raises where it was set
        if current is None or current.labels is not batch.labels:
            if current is not None:
                yield current.checksum()
            current = _Digest(batch)
        current.add(batch)
    if current is not None:
        yield current.checksum()


class _Digest:
    """The checksum of a series, as far as its batches have come."""

    def __init__(self, batch: SeriesBatch) -> None:
        self.labels = batch.labels
        self._kind = kind_of_column(batch.values)
        self._count = 0
        # Two, or the digest would depend on where a batch ends.
        self._timestamps = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        self._values = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def add(self, batch: SeriesBatch) -> None:
        self._count += len(batch)
        self._timestamps.update(_as_bytes(batch.timestamps))
        if self._kind is ValueKind.OBJECT:
            self._values.update(b"".join(map(pack_object, batch.values.tolist())))
        else:
            self._values.update(_as_bytes(batch.values))

    def checksum(self) -> SeriesChecksum:
        self._timestamps.update(self._values.digest())
        return SeriesChecksum(self.labels, self._kind, self._count, self._timestamps.hexdigest())


def _bits(value: object) -> str:
    return f"{value!r} ({np.array([value]).view(np.uint64)[0]:#x})"


def _as_bytes(column: np.ndarray[tuple[int], np.dtype[np.generic]]) -> memoryview:
    return np.ascontiguousarray(column, column.dtype.newbyteorder("<")).view(np.uint8).data


def _pairs(
    source: Iterator[SeriesChecksum], target: Iterator[SeriesChecksum]
) -> Iterator[tuple[SeriesChecksum | None, SeriesChecksum | None]]:
    """Pair checksums of the same series; None for a side that does not have it."""
    left, right = next(source, None), next(target, None)
    while left is not None or right is not None:
        # Text sorts as its UTF-8 does.
        if right is None or (left is not None and left.labels.id < right.labels.id):
            yield left, None
            left = next(source, None)
        elif left is None or right.labels.id < left.labels.id:
            yield None, right
            right = next(target, None)
        else:
            yield left, right
            left, right = next(source, None), next(target, None)


def _difference(
    source: Engine,
    target: Engine,
    left: SeriesChecksum | None,
    right: SeriesChecksum | None,
    start: TimestampLike | None,
    end: TimestampLike | None,
) -> Difference:
    """Say what differs; rows are looked up in both stores again."""
    if left is None or right is None:
        present = left or right
        assert present is not None
        what: What = "missing" if right is None else "extra"
        return Difference(present.labels, what, left, right)
    labels = left.labels
    if left.kind is not right.kind:
        return Difference(labels, "kind", left, right)
    ours, theirs = _rows(source, labels, start, end), _rows(target, labels, start, end)
    for one, other in zip_longest(ours, theirs):
        if one is not None and other is not None:
            if one == other:
                continue
            if one[0] == other[0]:
                return Difference(labels, "value", left, right, one[0], one[2], other[2])
        if other is None or (one is not None and one[0] < other[0]):
            return Difference(labels, "timestamp", left, right, one[0], one[2], None)
        return Difference(labels, "timestamp", left, right, other[0], None, other[2])
    return Difference(labels, "count", left, right)


def _rows(
    engine: Engine, labels: Labels, start: TimestampLike | None, end: TimestampLike | None
) -> Iterator[tuple[int, bytes, Value]]:
    """Iterate over the rows of a series: timestamp, value as bytes, value."""
    for batch in engine.scan(labels, start, end):
        if kind_of_column(batch.values) is ValueKind.OBJECT:
            packed = [pack_object(value) for value in batch.values.tolist()]
        else:
            whole = _as_bytes(batch.values).tobytes()
            packed = [whole[at : at + 8] for at in range(0, len(whole), 8)]
        yield from zip(batch.timestamps.tolist(), packed, batch.values.tolist(), strict=True)
