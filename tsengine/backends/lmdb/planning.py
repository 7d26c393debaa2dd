"""Planning an aggregation: which blocks are clean, and what is left to be read row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import lmdb
import numpy as np

from tsengine.aggregation import Aggregation, window_starts
from tsengine.backends.lmdb.columns import BoolArray
from tsengine.backends.lmdb.layout import BLOCKS
from tsengine.backends.lmdb.runs import Manifest, Run
from tsengine.backends.lmdb.store import Store
from tsengine.backends.lmdb.summaries import Summary
from tsengine.model import Int64Array

_NONE: Final = np.empty(0, np.int64)


@dataclass(slots=True, eq=False)
class Part:
    """Blocks of one run that hold one series each, a selected one, and may have rows in range.

    Attributes:
        run: which run.
        summary: of the blocks.
        is_clean: bool[b], whether their rows are all there is of their series in their time.
    """

    run: Run
    summary: Summary
    is_clean: BoolArray

    def is_inside(self, asked: Aggregation, start: int, end: int) -> BoolArray:
        """Whether blocks lie in the range and in one window: bool[b]."""
        t_min, t_max = self.summary.headers["t_min"], self.summary.headers["t_max"]
        inside: BoolArray = (t_min >= start) & (t_max <= end - 1)
        if asked.every is not None:
            begins = window_starts(t_min, asked.every, asked.phase)
            inside &= begins == window_starts(t_max, asked.every, asked.phase)
        return inside


@dataclass(frozen=True, slots=True)
class _Box:
    """Rows that no header tells apart: of some series, in some time, of the run of a place."""

    place: int
    series_first: int
    series_last: int
    t_min: int
    t_max: int
    rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How one aggregation reads one manifest.

    Attributes:
        asked: what is asked.
        manifest: the runs.
        numbers: int64[k], the selected series by series ID; None for all, where neither
            labels nor order matter.
        start: first timestamp, of range and retention.
        end: one past the last.
        parts: blocks that may answer.
        rest: int64[r], ascending: series that have, or may have, other rows.
        rest_rows: how many rows these are, roughly.
    """

    asked: Aggregation
    manifest: Manifest
    numbers: Int64Array | None
    start: int
    end: int
    parts: Sequence[Part]
    rest: Int64Array
    rest_rows: int


def make_plan(
    store: Store,
    transaction: lmdb.Transaction,
    asked: Aggregation,
    numbers: Int64Array | None,
    resolve: Callable[[], Int64Array],
    start: int,
) -> Plan:
    """Look at the headers of all blocks that may have rows.

    Args:
        store: which store.
        transaction: a read transaction.
        asked: what is asked.
        numbers: as in `Plan`.
        resolve: gives them where they turn out to be needed.
        start: first timestamp, of range and retention.

    Raises:
        CorruptionError: a header is damaged, or a block is missing.
    """
    manifest, end = store.manifest_of(transaction), asked.end
    selected = None if numbers is None else np.sort(numbers)
    cursor = transaction.cursor(store.environment.tables[BLOCKS])
    parts: list[Part] = []
    boxes: list[_Box] = []
    for run in manifest.runs:
        if not (run.overlaps(start, end) and _has_some(selected, run)):
            continue
        if store.reader.is_recent(run):
            whole = run.series_first, run.series_last, run.t_min, run.t_max, run.rows
            boxes.append(_Box(len(parts), *whole))
            summary = Summary.none()
        else:
            summary = store.summaries.of(cursor, run, selected, start, end)
            boxes += _boxes(summary, selected, start, end, len(parts))
            summary = _solo(summary, selected, start, end)
        parts.append(Part(run, summary, np.ones(len(summary), bool)))
    _find_overlaps(parts, boxes)
    _find_deletes(parts, manifest)
    rest, rows = _NONE, sum(box.rows for box in boxes)
    dirty = [part.summary.take(~part.is_clean) for part in parts]
    rows += sum(int(one.headers["rows"].sum()) for one in dirty)
    if rows:
        if numbers is None:
            numbers = resolve()
        rest = _rest(np.sort(numbers), boxes, np.concatenate([one.series for one in dirty]))
    return Plan(asked, manifest, numbers, start, end, parts, rest, rows)


def _has_some(numbers: Int64Array | None, run: Run) -> bool:
    """Whether a selected series lies between the lowest and the highest of a run."""
    if numbers is None:
        return True
    first = numbers.searchsorted(run.series_first)
    return bool(first < numbers.searchsorted(run.series_last, "right"))


def _in_time(summary: Summary, start: int, end: int) -> BoolArray:
    in_time: BoolArray = (summary.headers["t_min"] <= end - 1) & (summary.headers["t_max"] >= start)
    return in_time


def _solo(summary: Summary, numbers: Int64Array | None, start: int, end: int) -> Summary:
    """Keep the blocks of one selected series each."""
    kept = (summary.headers["segments"] == 1) & _in_time(summary, start, end)
    if numbers is not None:
        places = numbers.searchsorted(summary.series).clip(max=len(numbers) - 1)
        kept &= numbers[places] == summary.series
    return summary if kept.all() else summary.take(kept)


def _boxes(
    summary: Summary, numbers: Int64Array | None, start: int, end: int, place: int
) -> list[_Box]:
    """Put one box around the blocks of several series each."""
    mixed = (summary.headers["segments"] > 1) & _in_time(summary, start, end)
    if numbers is not None and mixed.any():
        first = numbers.searchsorted(summary.series)
        mixed &= first < numbers.searchsorted(summary.headers["last_series"], "right")
    if not mixed.any():
        return []
    some = summary.take(mixed)
    heads = some.headers
    return [
        _Box(
            place,
            int(some.series.min()),
            int(heads["last_series"].max()),
            int(heads["t_min"].min()),
            int(heads["t_max"].max()),
            int(heads["rows"].sum()),
        )
    ]


def _find_overlaps(parts: Sequence[Part], boxes: Sequence[_Box]) -> None:
    """Mark blocks as not clean that rows of other runs may lie between."""
    for place, part in enumerate(parts):
        heads, series = part.summary.headers, part.summary.series
        for box in boxes:
            if box.place != place:
                part.is_clean &= (
                    (series < box.series_first)
                    | (series > box.series_last)
                    | (heads["t_min"] > box.t_max)
                    | (heads["t_max"] < box.t_min)
                )
    filled = [part for part in parts if len(part.summary)]
    if len(filled) < 2:
        return
    series = np.concatenate([part.summary.series for part in filled])
    t_min = np.concatenate([part.summary.headers["t_min"] for part in filled])
    t_max = np.concatenate([part.summary.headers["t_max"] for part in filled])
    clean = _are_apart(series, t_min, t_max)
    first = 0
    for part in filled:
        last = first + len(part.summary)
        part.is_clean &= clean[first:last]
        first = last


def _are_apart(series: Int64Array, t_min: Int64Array, t_max: Int64Array) -> BoolArray:
    """Whether the time of each block touches that of no other of its series: bool[b]."""
    order = np.lexsort((t_min, series))
    series, t_min, t_max = series[order], t_min[order], t_max[order]
    # The latest time so far in each series: by ranks, which go up from series to series.
    ranked = t_max.argsort(kind="stable")
    ranks = np.empty(len(ranked), np.int64)
    ranks[ranked] = np.arange(len(ranked))
    is_next = np.zeros(len(series), bool)
    is_next[1:] = series[1:] == series[:-1]
    reached = np.maximum.accumulate(ranks + np.cumsum(~is_next) * len(ranks)) % len(ranks)
    touches = np.zeros(len(series), bool)
    touches[1:] = is_next[1:] & (t_max[ranked[reached[:-1]]] >= t_min[1:])
    clusters = np.cumsum(~touches) - 1
    alone: BoolArray = np.bincount(clusters)[clusters] == 1
    apart = np.empty(len(order), bool)
    apart[order] = alone
    return apart


def _find_deletes(parts: Sequence[Part], manifest: Manifest) -> None:
    """Mark blocks as not clean of which later deletes may hide rows."""
    for part in parts:
        if not len(part.summary):
            continue
        series = part.summary.series
        for delete in manifest.deletes_after(part.run):
            places = delete.series.searchsorted(series).clip(max=len(delete.series) - 1)
            hit = delete.series[places] == series
            part.is_clean &= ~(hit & _in_time(part.summary, delete.start, delete.end))


def _rest(numbers: Int64Array, boxes: Sequence[_Box], dirty: Int64Array) -> Int64Array:
    """Give the selected series that may have rows in boxes, or have blocks that are not clean."""
    wanted = np.isin(numbers, dirty)
    for box in boxes:
        wanted |= (numbers >= box.series_first) & (numbers <= box.series_last)
    return numbers[wanted]
