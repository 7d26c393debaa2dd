"""PointRules: what makes a point valid in one store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tsengine.errors import BatchShapeError, LabelsError, TimestampError
from tsengine.model.batches import Int64Array
from tsengine.model.labels import Labels
from tsengine.model.time import INT64_MAX, INT64_MIN, timestamp
from tsengine.model.values import ValueKind

_NO_LABELS = Labels()


class ForwardClock:
    """A clock that never goes back: retention must not show again what it has hidden.

    Args:
        clock_ns: nanoseconds since the Unix epoch.
        latest: a time known to have been, before which it never is.

    Thread-safety: any number of threads.
    """

    def __init__(self, clock_ns: Callable[[], int], latest: int = INT64_MIN) -> None:
        self._clock_ns = clock_ns
        self._lock = threading.Lock()  # guards _latest
        self._latest = latest

    def __call__(self) -> int:
        """Give the time, or the latest one given before where that is later."""
        now = self._clock_ns()
        with self._lock:
            self._latest = max(self._latest, now)
            return self._latest


@dataclass(frozen=True, slots=True)
class PointRules:
    """The rules that all points of one store share, whatever its backend.

    Attributes:
        min_timestamp: earliest valid timestamp, nanoseconds.
        future_max_ns: how far ahead of the clock a timestamp may lie; None for no bound.
        integers: the kind that an integer scalar opens, FLOAT or INT.
        clock_ns: nanoseconds since the Unix epoch; injected by tests.

    Thread-safety: any number of threads.
    """

    min_timestamp: int = 1
    future_max_ns: int | None = None
    integers: ValueKind = ValueKind.FLOAT
    clock_ns: Callable[[], int] = time.time_ns

    @property
    def max_timestamp(self) -> int:
        """The latest timestamp valid at this moment."""
        if self.future_max_ns is None:
            return INT64_MAX
        return min(INT64_MAX, self.clock_ns() + self.future_max_ns)

    def check_labels(self, labels: object) -> Labels:
        """Give labels back, or raise.

        Raises:
            LabelsError: not `Labels`, or the empty ones.
        """
        if type(labels) is not Labels:
            raise LabelsError(
                f"a series is told by tsengine.Labels, not {labels!r} of type "
                f"{type(labels).__name__}"
            )
        if not labels:
            raise LabelsError("Labels() names no series; give a metric name or a label")
        return labels

    def check_distinct_labels(self, labels: Sequence[Labels]) -> None:
        """Check the labels of a batch; at C speed, since a flush has one per series.

        Raises:
            LabelsError: some are not `Labels`, or the empty ones.
            BatchShapeError: some are equal.
        """
        distinct = set(labels) if set(map(type, labels)) <= {Labels} else set()
        if len(distinct) != len(labels) or _NO_LABELS in distinct:
            for given in labels:
                self.check_labels(given)
            raise BatchShapeError("the labels of a GroupedBatch must be distinct; join their rows")

    def check_timestamp(self, moment: object) -> int:
        """Give the timestamp of a point in nanoseconds, or raise.

        Raises:
            TimestampError: no integer, below `min_timestamp`, or too far ahead.
        """
        if type(moment) is not int:
            if isinstance(moment, (np.datetime64, str)) or not hasattr(moment, "__index__"):
                raise TimestampError(
                    f"timestamp of a point must be integer nanoseconds, not {moment!r} of type "
                    f"{type(moment).__name__}; convert with tsengine.timestamp()"
                )
            moment = timestamp(moment)
        if not self.min_timestamp <= moment <= self.max_timestamp:
            raise TimestampError(self._out_of_bounds(moment))
        return moment

    def check_timestamps(self, timestamps: Int64Array) -> None:
        """Check a column of timestamps.

        Args:
            timestamps: int64[n], nanoseconds.

        Raises:
            TimestampError: some lie out of bounds; `indices` names each.
        """
        if not len(timestamps):
            return
        latest = self.max_timestamp
        if self.min_timestamp <= timestamps.min() and timestamps.max() <= latest:
            return
        wrong = np.flatnonzero((timestamps < self.min_timestamp) | (timestamps > latest))
        raise TimestampError(
            f"timestamps[{wrong[0]}]: {self._out_of_bounds(int(timestamps[wrong[0]]))}",
            indices=wrong.tolist(),
        )

    def _out_of_bounds(self, moment: int) -> str:
        if moment < self.min_timestamp:
            return (
                f"timestamp {moment} is too early, at least {self.min_timestamp}; the store "
                "option min_timestamp admits earlier ones"
            )
        if moment > INT64_MAX:
            return f"timestamp {moment} is beyond int64; nanoseconds since 1970 reach to 2262"
        return (
            f"timestamp {moment} lies further ahead than future_max allows, at most "
            f"{self.max_timestamp}; are these nanoseconds?"
        )
