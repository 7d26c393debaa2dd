"""Spans: which windows a rollup looks at, cut into such stretches as fit into memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

from tsengine.aggregation import window_of
from tsengine.engine import Engine
from tsengine.model import Labels, ValueKind, duration_text
from tsengine.pipeline.rolled import Rolled
from tsengine.selectors import Selector

Span: TypeAlias = "tuple[int, int]"
"""Where the first window begins and the last one ends, nanoseconds."""

ROWS_MAX: Final = 1 << 20
"""Results that are worked out and compared at once: 100 MB, with what is stored of them."""

POINTS_MAX: Final = 1 << 23
"""Points that are read at once, so that a long rollup ends soon after it is told to."""

SERIES_POINTS_MIN: Final = 1 << 15
"""Of each series, though: the edge of a span cuts a block of each, 16,384 points, which is then
read on both sides."""

SPANS_MAX: Final = 1_000
"""From so many spans on, those that have points are looked for first: one device that says it is
1970 would have the rollup go through decades of nothing."""


_CAPS: Final = ("max_points_per_series", "max_points")


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be rolled up.

    Attributes:
        source: what is read.
        target: where results are kept.
        rolled: the series.
        every: length of a window, nanoseconds.
        origin: a moment at which windows begin.
        start: no window that begins before is looked at.
        end: no window that ends behind is.
        lookback: how far before the mark windows are looked at, nanoseconds; None for all.
        follows_deletes: whether results go when their points have gone.
    """

    source: Engine
    target: Engine
    rolled: Rolled
    every: int
    origin: int
    start: int
    end: int
    lookback: int | None
    follows_deletes: bool

    def window(self, moment: int) -> int:
        """Give the start of the window of a moment."""
        return window_of(moment, self.every, self.origin)

    def next_window(self, moment: int) -> int:
        """Give the start of the first window that begins no earlier than a moment."""
        return -window_of(-moment, self.every, -self.origin)

    def group(self, labels: Labels) -> Labels:
        """Give the labels of the group of a series, which is itself where none are merged."""
        names = self.rolled.group_by
        if names is None:
            return labels
        return Labels({name: labels[name] for name in names if name in labels})


def caps_of(engine: Engine) -> list[str]:
    """Give the options by which a store evicts points."""
    return [name for name in _CAPS if engine.backend_options.get(name) is not None]


def spans(task: Task, mark: int | None) -> list[Span]:
    """Give the spans to be looked at, by time.

    Args:
        task: what is to be rolled up.
        mark: the end of what earlier runs have rolled up; None where there was none.
    """
    source, target = task.source, task.target
    begin = max(task.start, source.retained_from(), target.retained_from())
    begin = task.next_window(begin)
    end = task.window(min(task.end, source.rules.clock_ns()))
    if task.lookback is not None and mark is not None:
        begin = max(begin, task.window(mark - task.lookback))
    looked = _looked_at(task)
    firsts = [point.timestamp for engine, selector in looked for point in engine.earliest(selector)]
    if firsts:
        begin = max(begin, task.window(min(firsts)))
    if not firsts or begin >= end:
        return []
    length = _windows_at_once(task, begin, end) * task.every
    begins: Iterable[int] = range(begin, end, length)
    if (end - begin) // length >= SPANS_MAX:
        filled: set[int] = set()
        for engine, selector in looked:
            for batch in engine.aggregate(
                selector,
                begin,
                end,
                functions=["count"],
                every=duration_text(length),
                group_by=[],
                origin=begin,
            ):
                filled.update(batch.timestamps.tolist())
        begins = sorted(filled)
    return [(one, min(one + length, end)) for one in begins]


def float_results(task: Task) -> set[Labels]:
    """Give results of groups that have a series of floats.

    Integers among them are to become floats in windows without floats as well: a series has
    one kind.
    """
    rolled = task.rolled
    if rolled.group_by is None:
        return set()
    return {
        rolled.labels(task.group(labels), name)
        for each in rolled.passes
        for labels in task.source.series(each.selector)
        if task.source.series_kind(labels) is ValueKind.FLOAT
        for name in each.names
        if name != "count"
    }


def _looked_at(task: Task) -> list[tuple[Engine, Selector]]:
    """Give what has rows where something may have to change."""
    looked = [(task.source, each.selector) for each in task.rolled.passes]
    if task.follows_deletes:
        looked.append((task.target, task.rolled.stored))
    return looked


def _windows_at_once(task: Task, begin: int, end: int) -> int:
    """Give how many windows a span is to have."""
    windows = (end - begin) // task.every
    series = results = 0
    for each in task.rolled.passes:
        listed = list(task.source.series(each.selector))
        series += len(listed)
        results += len(set(map(task.group, listed))) * len(each.names)
    most = max(POINTS_MAX, series * SERIES_POINTS_MIN)
    points = task.source.stats().points
    if points > most:  # else it does not matter how many are selected
        points = sum(
            int(batch.values[0])
            for each in task.rolled.passes
            for batch in task.source.aggregate(
                each.selector, begin, end, functions=["count"], group_by=[]
            )
        )
    by_rows = ROWS_MAX // max(results, 1)
    return max(1, min(by_rows, windows * most // max(points, 1), windows))
