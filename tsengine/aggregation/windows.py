"""Windows: where the rows of a column in order of time pass from one to the next.

A window is told by its start; one that starts before the first int64 by that, which is no
other's.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np

from tsengine.model import INT64_MAX, INT64_MIN, Int64Array

Cut: TypeAlias = "tuple[Int64Array, Int64Array]"
"""Rows at which segments begin (int64[m], ascending, the first 0), and the window of each."""

_ZERO: Final = np.zeros(1, np.int64)
_ZERO.flags.writeable = False

_SEARCHED: Final = 4
"""Rows a window from which windows are searched for: a search takes 30 ns, a look at one row,
to see in which window it is, 2 ns and some copies."""


def window_of(moment: int, every: int, phase: int) -> int:
    """Give the start of the window of a moment, which may lie before the first int64."""
    return moment - (moment - phase) % every


def cut(timestamps: Int64Array, every: int | None, phase: int) -> Cut:
    """Cut the rows of one series into windows.

    Args:
        timestamps: int64[n], strictly increasing, not empty.
        every: length of a window; None for one window, whose start is said to be 0.
        phase: where windows begin, modulo `every`.
    """
    if every is None:
        return _ZERO, _ZERO
    first = window_of(int(timestamps[0]), every, phase)
    last = window_of(int(timestamps[-1]), every, phase)
    if first == last:
        return _ZERO, np.array([max(first, INT64_MIN)])
    rows, windows = len(timestamps), (last - first) // every + 1
    if windows * _SEARCHED > rows:
        return cut_rows(timestamps, np.array([0, rows]), every, phase)
    if first >= INT64_MIN and last + every <= INT64_MAX:
        edges = np.arange(first, last + every, every)
    else:
        edges = np.arange(windows)
        edges *= every
        edges += first if first >= INT64_MIN else first + 2**64  # wraps back
    starts = timestamps.searchsorted(edges)
    starts[0] = 0
    edges[0] = max(first, INT64_MIN)
    return _without_empty(starts, edges)


def cut_regular(first: int, step: int, rows: int, every: int | None, phase: int) -> Cut:
    """Cut rows at regular times into windows, without a look at each: as `cut`.

    Args:
        first: the timestamp of the first row.
        step: between rows, above 0.
        rows: how many.
        every: as in `cut`.
        phase: as in `cut`.
    """
    if every is None:
        return _ZERO, _ZERO
    begin = window_of(first, every, phase)
    span = first + (rows - 1) * step - begin
    windows = span // every + 1
    if windows == 1:
        return _ZERO, np.array([max(begin, INT64_MIN)])
    if begin < INT64_MIN or windows > rows or span + step > INT64_MAX:
        timestamps = np.arange(rows) * step + first
        return cut(timestamps, every, phase)
    starts = np.arange(begin - first + step - 1, begin - first + step - 1 + windows * every, every)
    starts //= step
    starts[0] = 0
    edges = np.arange(windows)
    edges *= every
    edges += begin
    return (starts, edges) if step <= every else _without_empty(starts, edges)


def cut_rows(timestamps: Int64Array, offsets: Int64Array, every: int | None, phase: int) -> Cut:
    """Cut the rows of several series into windows.

    Args:
        timestamps: int64[n], strictly increasing within a series, not empty.
        offsets: int64[k + 1]; rows `offsets[i]` to `offsets[i + 1]` are of series `i`; none is
            without rows.
        every: as in `cut`.
        phase: as in `cut`.
    """
    if every is None:
        starts = offsets[:-1]
        return starts, np.zeros(len(starts), np.int64)
    begins = window_starts(timestamps, every, phase)
    changes = np.empty(len(timestamps), bool)
    np.not_equal(begins[1:], begins[:-1], out=changes[1:])
    changes[offsets[:-1]] = True
    starts = np.flatnonzero(changes)
    return starts, begins[starts]


def window_starts(timestamps: Int64Array, every: int, phase: int) -> Int64Array:
    """Give the start of the window of each row: int64[n]."""
    # int64 wraps around without a word, here there and back. Floor division by one number is
    # three times as fast as the remainder.
    into = timestamps // every
    into *= -every
    into += timestamps
    into -= phase
    into[into < 0] += every
    starts = timestamps - into
    starts[starts > timestamps] = INT64_MIN
    return starts


def _without_empty(starts: Int64Array, windows: Int64Array) -> Cut:
    """Leave out windows that begin where the next begins; the last one has rows."""
    apart = starts[1:] != starts[:-1]
    if apart.all():
        return starts, windows
    filled = np.append(apart, True)
    return starts[filled], windows[filled]
