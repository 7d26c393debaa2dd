"""What goes by the order of rows or by all of them: counters, and samples for quantiles.

Both are told of segments series by series and in order of time, as a scan has them; a
segment may go on where the next begins.
"""

from __future__ import annotations

from typing import Final, cast

import numpy as np

from tsengine.aggregation.partials import FloatArray, Gathered, Partials, Statistics
from tsengine.model import Int64Array, ValueArray

_SAMPLES: Final = 1 << 18
"""Samples gathered before the windows that are complete are worked out: 2 MiB."""

_EXACT: Final = 2.0**62
"""Differences of integers below this do not overflow."""

_LONG: Final = 32
"""Average rows of a segment from which each is sorted by itself: a call costs as much as sorting
so many rows among all others."""


class Counters:
    """Gains of each series in each window, which a group adds up.

    Thread-safety: none.
    """

    def __init__(self) -> None:
        self._segments: list[Statistics] = []
        self._done = Gathered()

    def add(
        self,
        series: Int64Array,
        groups: Int64Array,
        windows: Int64Array,
        counts: Int64Array,
        timestamps: Int64Array,
        values: ValueArray,
    ) -> None:
        """Add segments of numbers; NaN is left out already.

        Args:
            series: int64[m], rank of the series of each segment.
            groups: int64[m].
            windows: int64[m].
            counts: int64[m], rows of each segment, at least one.
            timestamps: int64[n].
            values: float64[n] or int64[n].
        """
        starts = np.cumsum(counts) - counts
        lost = np.zeros(len(values))
        fell = values[1:] < values[:-1]
        lost[1:][fell] = values[:-1][fell]
        lost[starts] = 0.0  # that is between segments
        ends = starts + counts - 1
        self._segments.append(
            {
                "series": series,
                "groups": groups,
                "windows": windows,
                "first": values[starts],
                "first_at": timestamps[starts],
                "last": values[ends],
                "last_at": timestamps[ends],
                "lost": np.add.reduceat(lost, starts),
            }
        )
        if len(self._segments) >= 16:
            self._settle(keep_last=True)

    def table(self) -> Partials | None:
        """Give `delta`, `increase`, `rate`, `measured` and `rated` of series; None for none."""
        self._settle(keep_last=False)
        return self._done.table()

    def _settle(self, *, keep_last: bool) -> None:
        """Join segments that go on, and work out those that are complete."""
        if not self._segments:
            return
        told = {
            name: np.concatenate([segment[name] for segment in self._segments])
            for name in self._segments[0]
        }
        is_new = np.ones(len(told["series"]), bool)
        np.not_equal(told["series"][1:], told["series"][:-1], out=is_new[1:])
        is_new[1:] |= told["windows"][1:] != told["windows"][:-1]
        starts = np.flatnonzero(is_new)
        if keep_last:
            rest = int(starts[-1])
            self._segments = [{name: column[rest:] for name, column in told.items()}]
            told = {name: column[:rest] for name, column in told.items()}
            starts = starts[:-1]
        else:
            self._segments = []
        if len(starts):
            self._done.add(_gains(told, starts))


def _gains(told: Statistics, starts: Int64Array) -> Partials:
    ends = np.append(starts[1:], len(told["first"])) - 1
    lost = told["lost"].copy()
    fell = told["first"][1:] < told["last"][:-1]
    between = np.zeros(len(lost))
    between[1:][fell] = told["last"][:-1][fell]
    between[starts] = 0.0
    first, last = told["first"][starts], told["last"][ends]
    delta = _difference(first, last)
    increase = delta + np.add.reduceat(cast("FloatArray", lost + between), starts)
    seconds = _difference(told["first_at"][starts], told["last_at"][ends]) / 1e9
    is_rate = seconds > 0
    rate = np.divide(increase, seconds, out=np.zeros(len(delta)), where=is_rate)
    return Partials(
        cast("Int64Array", told["groups"][starts]),
        cast("Int64Array", told["windows"][starts]),
        {
            "delta": delta,
            "increase": increase,
            "rate": rate,
            "measured": np.ones(len(delta), np.int64),
            "rated": is_rate.astype(np.int64),
        },
    )


def _difference(first: ValueArray, last: ValueArray) -> FloatArray:
    """Give last − first as float64; of integers exactly before it is rounded."""
    apart = last.astype(np.float64) - first.astype(np.float64)
    if first.dtype == np.int64:
        exact = np.abs(apart) < _EXACT
        apart[exact] = (last - first)[exact]
    return apart


class Samples:
    """The values of each group in each window.

    Args:
        quantiles: float64[q], distinct, each 0 to 1.
        is_apart: whether each group is one series: then a window is complete when the next
            begins, and its values are let go.

    Thread-safety: none.
    """

    def __init__(self, quantiles: FloatArray, *, is_apart: bool) -> None:
        self._quantiles = quantiles
        self._is_apart = is_apart
        self._keys: list[tuple[Int64Array, Int64Array, Int64Array]] = []
        self._values: list[FloatArray] = []
        self._held = 0
        self._done = Gathered()

    def add(
        self, groups: Int64Array, windows: Int64Array, counts: Int64Array, values: ValueArray
    ) -> None:
        """Add segments of numbers, as `Counters.add`."""
        self._keys.append((groups, windows, counts))
        self._values.append(values.astype(np.float64))
        self._held += len(values)
        if self._is_apart and self._held >= _SAMPLES:
            self._settle(keep_last=True)

    def table(self) -> Partials | None:
        """Give the quantiles of each group and window; None for none."""
        self._settle(keep_last=False)
        return self._done.table()

    def _settle(self, *, keep_last: bool) -> None:
        if not self._keys:
            return
        groups, windows, counts = (
            np.concatenate([key[part] for key in self._keys]) for part in range(3)
        )
        values = np.concatenate(self._values)
        self._keys, self._values, self._held = [], [], 0
        if not self._is_apart:
            order = np.lexsort((windows, groups))
            values = values[_rows_of(counts, order)]
            groups, windows, counts = groups[order], windows[order], counts[order]
        is_new = np.ones(len(groups), bool)
        is_new[1:] = (groups[1:] != groups[:-1]) | (windows[1:] != windows[:-1])
        starts = np.flatnonzero(is_new)
        counts = np.add.reduceat(counts, starts)
        groups, windows = groups[starts], windows[starts]
        if keep_last:
            rest = len(values) - int(counts[-1])
            self._keys = [(groups[-1:], windows[-1:], counts[-1:])]
            self._values, self._held = [values[rest:]], int(counts[-1])
            groups, windows, counts, values = groups[:-1], windows[:-1], counts[:-1], values[:rest]
        if len(groups):
            worked_out = quantiles_of(values, counts, self._quantiles)
            named = map(quantile_name, self._quantiles.tolist())
            self._done.add(Partials(groups, windows, dict(zip(named, worked_out, strict=True))))


def quantile_name(quantile: float) -> str:
    """Name the statistic that a quantile is."""
    return f"quantile {quantile!r}"


def _rows_of(counts: Int64Array, order: Int64Array) -> Int64Array:
    """Give the rows of segments in another order."""
    starts, counts = (np.cumsum(counts) - counts)[order], counts[order]
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(int(counts.sum()))


def quantiles_of(values: FloatArray, counts: Int64Array, quantiles: FloatArray) -> list[FloatArray]:
    """Give quantiles of segments, linear between neighbours.

    Args:
        values: float64[n] without NaN.
        counts: int64[m], rows of each segment, at least one.
        quantiles: float64[q], each 0 to 1.

    Returns:
        For each quantile float64[m].
    """
    starts = np.cumsum(counts) - counts
    ordered = _sorted_within(values, starts, counts)
    found: list[FloatArray] = []
    for quantile in quantiles.tolist():
        place = quantile * (counts - 1)
        below = np.floor(place).astype(np.int64)
        part = place - below
        lower = ordered[starts + below]
        upper = ordered[starts + np.minimum(below + 1, counts - 1)]
        between = lower + (upper - lower) * part
        wide = ~np.isfinite(between)  # neighbours too far apart to be subtracted, or infinite
        between[wide] = (lower * (1.0 - part) + upper * part)[wide]
        found.append(np.where((part == 0.0) | (lower == upper), lower, between))
    return found


def _sorted_within(values: FloatArray, starts: Int64Array, counts: Int64Array) -> FloatArray:
    """Sort each segment: as rows of a matrix where all are of one length, which is fastest."""
    longest = int(counts.max())
    if longest == counts.min():
        return np.sort(values.reshape(-1, longest), axis=1).reshape(-1)
    if len(values) < _LONG * len(counts):
        return values[np.lexsort((values, np.repeat(np.arange(len(counts)), counts)))]
    ordered = values.copy()
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        ordered[start : start + count].sort()
    return ordered
