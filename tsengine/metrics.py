"""Metrics: what a buffer or a copy counts, as plain attributes that anybody may read.

Numbers only grow. Those of commits are written by whoever commits, one at a time, those of
waits under the lock of their buffer; they are read without a lock: each is right, two of them
may be of different moments.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

LATENCY_BOUNDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
"""Seconds: from a commit of one point to a disk that hangs."""

CAUSES: Final = ("size", "age", "submit", "flush", "close")
"""What makes a batch due: enough points, an old one, one that is waited for, or a call."""

SIZE_BOUNDS: Final = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144)
"""Points of a commit."""


class Histogram:
    """Counts observations by size.

    Args:
        bounds: upper bounds of the buckets, ascending, each inclusive; one more is without
            bound.

    Attributes:
        bounds: as given.
        counts: observations of each bucket, the last one without bound.
        total: sum of the observations.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total: float = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many observations there were."""
        return sum(self.counts)

    def quantile(self, fraction: float) -> float:
        """Give the bound of the bucket that holds a quantile; infinity beyond the last.

        Args:
            fraction: from 0 to 1, as 0.99 for the 99th percentile.

        Returns:
            0 where nothing was observed.
        """
        if not self.count:
            return 0.0
        # By whole observations: 0.07 of 100 is the seventh, whatever floats make of it.
        wanted = max(math.ceil(round(fraction * self.count, 9)), 1)
        seen = 0
        for bound, count in zip(self.bounds, self.counts[:-1], strict=True):
            seen += count
            if seen >= wanted:
                return bound
        return float("inf")

    def __repr__(self) -> str:
        return f"<Histogram: {self.count} observations, total {self.total:g}>"


@dataclass(slots=True)
class CommitMetrics:
    """What commits to a handler came to.

    Attributes:
        points: points committed, refused ones included.
        refused: points of these that a cap or the retention kept out.
        batches: commits that succeeded, the pieces of divided ones each.
        failures: attempts that failed, of any class.
        retries: attempts of a piece after its first, in one go.
        splits: pieces divided, for being too large or holding a bad point.
        rejected: points that cannot be stored.
        sizes: points of each commit.
        latency: seconds of each commit in the handler, failed ones included.
    """

    points: int = 0
    refused: int = 0
    batches: int = 0
    failures: int = 0
    retries: int = 0
    splits: int = 0
    rejected: int = 0
    sizes: Histogram = field(default_factory=lambda: Histogram(SIZE_BOUNDS))
    latency: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS))


@dataclass(slots=True)
class BufferMetrics(CommitMetrics):
    """What a buffer counts beyond its commits.

    Attributes:
        flushes: batches taken up, by what made them due, each of `CAUSES`.
        waits: waits of writes for room; of one write there may be several.
        wait_seconds: how long they did, together.
        full: writes refused with `BufferFullError`.
    """

    flushes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0))
    waits: int = 0
    wait_seconds: float = 0.0
    full: int = 0


@dataclass(frozen=True, slots=True)
class BulkUpsertReport:
    """How far a bulk upsert is.

    `submitted` is the sum of the next five.

    Attributes:
        submitted: rows taken from the caller whose batch is settled, or unknown.
        inserted: rows that were not in the table, and are.
        updated: rows that were in the table with other values.
        unchanged: rows that were in the table as they are, or, where conflicts are ignored, with
            their key, one of the same call included; nothing was written.
        folded: rows that gave way to a later row of the same batch with their key.
        unknown: rows of a batch whose commit was on its way when the connection was lost, and
            of which nobody could tell whether they are stored.
        batches: transactions that were committed.
        retries: attempts beyond the first.
        batch_size: rows at once, at the end.
    """

    submitted: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    folded: int = 0
    unknown: int = 0
    batches: int = 0
    retries: int = 0
    batch_size: int = 0
