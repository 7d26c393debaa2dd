"""What an engine tells of itself: what it can do, how much it holds, what it gave back."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class Capability(enum.StrEnum):
    """What a backend may declare beyond the common meaning; the test kit goes by it."""

    CAP = "cap"
    """Options `max_points_per_series` and `max_points`."""
    RETENTION = "retention"
    """Option `retention`."""
    PERSISTENCE = "persistence"
    """What is committed is there after reopening."""
    OTHER_PROCESSES = "other_processes"
    """Other processes may read beside the writer."""
    SNAPSHOT_FILES = "snapshot_files"
    """`snapshot(path)` writes a store that opens by URL."""
    PRODUCER_MARKS = "producer_marks"
    """Marks are committed with the points, so that a repeated batch is a no-op."""


@dataclass(frozen=True, slots=True)
class EngineStats:
    """How much a store holds.

    Attributes:
        points: points stored; an upper bound where `points_exact` is false.
        points_exact: whether `points` is exact.
        series: series listed.
        bytes: bytes that the store takes where it is kept.
        last_write_ns: when the last write was committed, nanoseconds since the Unix
            epoch; None where nothing was written.
        details: what the backend tells beyond that.
    """

    points: int
    points_exact: bool
    series: int
    bytes: int
    last_write_ns: int | None
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What `compact()` did.

    Attributes:
        bytes_before: bytes of the store before.
        bytes_after: bytes of the store after.
        reason: why nothing or not all was given back; empty where it was.
    """

    bytes_before: int
    bytes_after: int
    reason: str = ""
