"""Progress: what a copy has done, while it goes on and in the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tsengine.errors import ValueKindError
from tsengine.model import GroupedBatch, Labels, Value, WriteReceipt, pack_object

SERIES_MAX: Final = 1 << 20
"""Series of a source in no order that are told apart: 100 MB of names that would else be let go."""

_NUMBER_BYTES: Final = 8
"""Of a timestamp, a float64, an int64."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a copy is.

    Attributes:
        points: points of the source that are settled: stored, refused or rejected, by this run
            or by those that it resumes.
        points_total: points of the source; an upper bound where the source knows no better, and
            None where it knows nothing.
        bytes: bytes of the columns that this run copied, 8 a timestamp and a number, objects as
            MessagePack.
        series: distinct series that this run copied points of; beyond 1,048,576 of a source
            that is no engine a lower bound.
        rate: points a second that this run settled.
        seconds_left: until the end at that rate; None where that cannot be told.
    """

    points: int
    points_total: int | None
    bytes: int
    series: int
    rate: float
    seconds_left: float | None


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What a copy did.

    Attributes:
        accepted: points that the target stored.
        refused: points that a cap or the retention of the target kept out.
        rejected: points that can never be stored, handed to `on_reject`.
        skipped: points that the runs settled which this one resumed.
        evicted: points in the target that a cap removed to make room.
        reasons: refused points by reason, `"cap"` or `"retention"`.
        bytes: as in `Progress`.
        series: as in `Progress`.
        seconds: how long it took.
    """

    accepted: int = 0
    refused: int = 0
    rejected: int = 0
    skipped: int = 0
    evicted: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    bytes: int = 0
    series: int = 0
    seconds: float = 0.0

    @property
    def points(self) -> int:
        """Points of the source that this run settled."""
        return self.accepted + self.refused + self.rejected

    @property
    def rate(self) -> float:
        """Points a second."""
        return self.points / self.seconds if self.seconds else 0.0


class Tally:
    """Counts what a copy does.

    Args:
        is_sorted: whether all points of a series come together, as in a scan.
    """

    def __init__(self, *, is_sorted: bool) -> None:
        self._is_sorted = is_sorted
        self._last: Labels | None = None
        self._seen: set[Labels] = set()
        self._reasons: dict[str, int] = {}
        self._accepted = self._refused = self._evicted = 0
        self._bytes = self._series = 0
        self.rejected = 0
        self.skipped = 0

    def add(self, receipt: WriteReceipt, batches: Iterable[GroupedBatch]) -> None:
        """Count a receipt, and the columns of its points."""
        self._accepted += receipt.accepted
        self._refused += receipt.refused
        self._evicted += receipt.evicted
        for reason, count in receipt.reasons.items():
            self._reasons[reason] = self._reasons.get(reason, 0) + count
        for batch in batches:
            self._bytes += _NUMBER_BYTES * len(batch)
            if batch.values.dtype.kind in "fiu":
                self._bytes += _NUMBER_BYTES * len(batch)
            else:
                self._bytes += sum(map(_object_bytes, batch.values.tolist()))
            self._count_series(batch.labels)

    def report(self, seconds: float) -> CopyReport:
        """Give the sums."""
        return CopyReport(
            accepted=self._accepted,
            refused=self._refused,
            rejected=self.rejected,
            skipped=self.skipped,
            evicted=self._evicted,
            reasons=dict(self._reasons),
            bytes=self._bytes,
            series=self._series,
            seconds=seconds,
        )

    def progress(self, seconds: float, total: int | None, *, is_done: bool = False) -> Progress:
        """Give them as progress."""
        settled = self._accepted + self._refused + self.rejected
        points = settled + self.skipped
        rate = settled / seconds if seconds > 0 else 0.0
        left: float | None = None
        if is_done:
            left = 0.0
        elif total is not None and rate:
            left = max(total - points, 0) / rate
        return Progress(points, total, self._bytes, self._series, rate, left)

    def _count_series(self, labels: Iterable[Labels]) -> None:
        if self._is_sorted:
            for one in labels:
                self._series += one is not self._last
                self._last = one
        elif len(self._seen) < SERIES_MAX:
            self._seen.update(labels)
            self._series = len(self._seen)


def _object_bytes(value: Value) -> int:
    try:
        return len(pack_object(value))
    except ValueKindError:
        return 0  # it was rejected
