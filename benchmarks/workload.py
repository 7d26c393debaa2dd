"""The workload of every figure: the CPU metrics of the Time Series Benchmark Suite (devops).

Ten metrics for each host, labels `hostname` and `region`, a value every 10 seconds that
walks at random between 0 and 100. Everything comes from a seed, and everything is built
before any clock starts: the points as `DataPoint` objects for us, as plain tuples with
series numbers for the peers (who so need no lookup of labels), the columns as arrays.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tsengine import DataPoint, GroupedBatch, Labels

STEP_NS = 10_000_000_000
"""Ten seconds between two points of a series."""
START_NS = 1_700_000_000_000_000_000
"""The first timestamp; a multiple of the step."""
VALUE_MAX = 100.0
"""The walk goes from 0 to this: per cent."""

METRICS = (
    "cpu_usage_user",
    "cpu_usage_system",
    "cpu_usage_idle",
    "cpu_usage_nice",
    "cpu_usage_iowait",
    "cpu_usage_irq",
    "cpu_usage_softirq",
    "cpu_usage_steal",
    "cpu_usage_guest",
    "cpu_usage_guest_nice",
)
REGIONS = (
    "ap-northeast-1",
    "ap-southeast-1",
    "ap-southeast-2",
    "eu-central-1",
    "eu-west-1",
    "sa-east-1",
    "us-east-1",
    "us-west-1",
    "us-west-2",
)

Row: TypeAlias = tuple[int, int, float]
"""A point as the peers get it: series number, timestamp, value."""


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """All rows of a workload as the peers load them, by series, then time.

    Attributes:
        series: uint32[n], series numbers.
        timestamps: int64[n], nanoseconds.
        values: float64[n].
    """

    series: npt.NDArray[np.uint32]
    timestamps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.timestamps)


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """Series that all have a value at the same times.

    Attributes:
        labels: k series.
        timestamps: int64[n], nanoseconds, of every series.
        values: float64[k, n].
    """

    labels: Sequence[Labels]
    timestamps: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    def points(self, first: int = 0, end: int | None = None) -> list[DataPoint]:
        """Build the points of times `first` to `end` (exclusive), series after series per time."""
        return [
            DataPoint(labels, timestamp, value)
            for timestamp, values in self._times(first, end)
            for labels, value in zip(self.labels, values, strict=True)
        ]

    def rows(self, first: int = 0, end: int | None = None) -> list[Row]:
        """Build what `points` builds, in the same order, as rows for the peers."""
        return [
            (number, timestamp, value)
            for timestamp, values in self._times(first, end)
            for number, value in enumerate(values)
        ]

    def _times(self, first: int, end: int | None) -> Sequence[tuple[int, list[float]]]:
        # By index, because building one list of all values would double the memory.
        times = self.timestamps[first:end].tolist()
        return [
            (timestamp, self.values[:, first + index].tolist())
            for index, timestamp in enumerate(times)
        ]

    def batch(self) -> GroupedBatch:
        """Give all rows grouped by series, as bulk writing takes them."""
        count, length = self.values.shape
        return GroupedBatch(
            labels=list(self.labels),
            offsets=np.arange(count + 1, dtype=np.int64) * length,
            timestamps=np.tile(self.timestamps, count),
            values=np.ascontiguousarray(self.values).reshape(-1),
        )

    def columns(self) -> Columns:
        """Give all rows as columns with series numbers, as the peers load them."""
        count, length = self.values.shape
        return Columns(
            series=np.repeat(np.arange(count, dtype=np.uint32), length),
            timestamps=np.tile(self.timestamps, count),
            values=np.ascontiguousarray(self.values).reshape(-1),
        )


def series_labels(series: int) -> list[Labels]:
    """Name series: ten metrics for each host, each host in one region."""
    hosts = ((f"host_{host}", REGIONS[host % len(REGIONS)]) for host in itertools.count())
    named = (
        Labels(metric, hostname=hostname, region=region)
        for hostname, region in hosts
        for metric in METRICS
    )
    return list(itertools.islice(named, series))


def random_walk(
    series: int, points: int, *, decimals: int | None = None, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Walk at random between 0 and 100 in steps of normal distribution, stopped at the ends.

    Args:
        series: how many walks.
        points: length of each.
        decimals: round to so many, as a sensor would; None keeps full precision.
        seed: the same seed gives the same walks.

    Returns:
        float64[series, points].
    """
    random = np.random.default_rng(seed)
    values = np.empty((points, series))  # by time, so that each step writes one line
    state = random.uniform(0.0, VALUE_MAX, series)
    for row in values:
        state = np.clip(state + random.standard_normal(series), 0.0, VALUE_MAX)
        row[:] = state
    if decimals is not None:
        np.round(values, decimals, out=values)
    return np.ascontiguousarray(values.T)


def workload(
    series: int,
    points: int,
    *,
    decimals: int | None = None,
    seed: int = 0,
    start_ns: int = START_NS,
) -> Workload:
    """Build the workload of `series` series with `points` points each, from `start_ns` on."""
    return Workload(
        labels=series_labels(series),
        timestamps=start_ns + np.arange(points, dtype=np.int64) * STEP_NS,
        values=random_walk(series, points, decimals=decimals, seed=seed),
    )


def late_workload(series: int, points: int, *, length: int, seed: int = 1) -> Workload:
    """Build points that arrive late: between the points of `workload(series, length)`.

    Their times are spread over that whole range without order and each lies half a step
    after a point that is there, so any few of them in a row overlap all of the range.
    """
    random = np.random.default_rng(seed)
    slots = random.choice(length, size=points, replace=False)
    return Workload(
        labels=series_labels(series),
        timestamps=START_NS + STEP_NS // 2 + slots.astype(np.int64) * STEP_NS,
        values=random_walk(series, points, seed=seed),
    )
