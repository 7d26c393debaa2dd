"""Spans: which windows a rollup looks at, cut into such stretches as fit into memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

from tsengine.aggregation import window_of
from tsengine.engine import Engine
from tsengine.model import RANGE_END_MAX, Labels, ValueKind
from tsengine.rollups.rolled import Rolled
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


class Known(NamedTuple):
    """What a run has looked at, kept in memory for the next one.

    Attributes:
        bound: windows that begin before were not looked at.
        end: nor those from there on.
        source, target: the moments, as `Engine.changed_since` gives them, before that.
        kept: the windows whose results were left as they are, though the source gives others.
            What decides of that may change elsewhere, so that each run looks at them.
    """

    bound: int
    end: int
    source: object
    target: object
    kept: frozenset[int] = frozenset()


def caps_of(engine: Engine) -> list[str]:
    """Give the options by which a store evicts points."""
    return [name for name in _CAPS if engine.backend_options.get(name) is not None]


def spans(task: Task, mark: int | None, known: Known | None) -> tuple[list[Span], Known | None]:
    """Give the spans to be looked at, by time, and what is known when they have been.

    Args:
        task: what is to be rolled up.
        mark: the end of what earlier runs have rolled up; None where there was none.
        known: by an earlier run of this task and process.
    """
    source, target = task.source, task.target
    # Before anything is read: what changes from here on the next run is told of.
    moments, changed = _changes(task, known)
    bound = max(task.start, source.retained_from(), target.retained_from())
    bound = task.next_window(bound)
    end = task.window(min(task.end, source.rules.clock_ns()))
    if task.lookback is not None and mark is not None:
        bound = max(bound, task.window(mark - task.lookback))
    looked = _looked_at(task)
    firsts = [point.timestamp for engine, selector in looked for point in engine.earliest(selector)]
    if not firsts or (begin := max(bound, task.window(min(firsts)))) >= end:
        return [], known
    length = _windows_at_once(task, begin, end) * task.every
    stretches = [(begin, end)]
    if known is not None and changed is not None and known.bound <= bound:
        kept = [(window, window + 1) for window in known.kept]
        stretches = _stretches(task, [*changed, *kept, (known.end, RANGE_END_MAX)], begin, end)
    found: list[Span] = []
    for first, last in stretches:
        begins: Iterable[int] = range(first, last, length)
        if (last - first) // length >= SPANS_MAX:
            begins = _filled(looked, first, last, length)
        found += [(one, min(one + length, last)) for one in begins]
    return found, Known(bound, end, *moments)


def _changes(task: Task, known: Known | None) -> tuple[tuple[object, object], list[Span] | None]:
    """Give the moment of both stores, and where one of them changed; None for unknown."""
    source, of_source = task.source.changed_since(known and known.source)
    target, of_target = task.target.changed_since(known and known.target)
    if of_source is None or of_target is None:
        return (source, target), None
    return (source, target), [*of_source, *of_target]


def _stretches(task: Task, ranges: Iterable[Span], begin: int, end: int) -> list[Span]:
    """Give the windows of ranges, within bounds, as few stretches."""
    stretches: list[Span] = []
    for start, stop in sorted(ranges):
        first, last = max(task.window(start), begin), min(task.next_window(stop), end)
        if first >= last:
            continue
        if stretches and first <= stretches[-1][1]:
            stretches[-1] = (stretches[-1][0], max(last, stretches[-1][1]))
        else:
            stretches.append((first, last))
    return stretches


def _filled(
    looked: Iterable[tuple[Engine, Selector]], begin: int, end: int, length: int
) -> list[int]:
    """Give where those spans begin that have rows."""
    filled: set[int] = set()
    for engine, selector in looked:
        for batch in engine.aggregate(
            selector,
            begin,
            end,
            functions=["count"],
            every=f"{length}ns",
            group_by=[],
            origin=begin,
        ):
            filled.update(batch.timestamps.tolist())
    return sorted(filled)


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
