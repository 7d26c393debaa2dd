"""Renewing: one run of a rollup, span by span."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias, TypeVar

import numpy as np

from tsengine.aggregation import FUNCTION_LABEL
from tsengine.errors import (
    RollupCancelledError,
    RollupError,
    RollupTimeoutError,
    TsEngineError,
)
from tsengine.model import INT64_MAX, Int64Array, Labels, ProducerMark, SeriesBatch
from tsengine.rollups.differing import BoolArray, Changes, changes, is_unchanged
from tsengine.rollups.report import RollupReport
from tsengine.rollups.spans import Known, Task, caps_of, float_results, spans
from tsengine.rollups.storing import Deadline, Rejected, Storing

OnRollup: TypeAlias = Callable[[RollupReport], object]
_T = TypeVar("_T")

REJECTED_MAX: Final = 1_000
"""Results that an error carries of those that cannot be stored."""


@dataclass(slots=True)
class _Found:
    """What a span needs.

    Attributes:
        columns: results to be stored.
        is_redone: bool[n] for each of the columns, results that something else is stored for.
        gone: ranges of stored results whose points have gone, by series.
        marked: one result that is stored, or will be, to be committed with the mark.
        results, unchanged, kept, refused, removed: as in `RollupReport`.
    """

    columns: list[SeriesBatch] = field(default_factory=list)
    is_redone: list[BoolArray] = field(default_factory=list)
    gone: list[tuple[Labels, int, int]] = field(default_factory=list)
    marked: SeriesBatch | None = None
    results: int = 0
    unchanged: int = 0
    kept: int = 0
    refused: int = 0
    removed: int = 0


class Renewing:
    """Has the results in the target made what the source gives.

    Args:
        task: what is to be rolled up.
        storing: writes to the target.
        deadline: when to end.
        producer: name of the mark.
        progress: is called after each span.
        known: by an earlier run of this task and process.

    Attributes:
        known: by this one, once it is done.
    """

    def __init__(
        self,
        task: Task,
        storing: Storing,
        deadline: Deadline,
        producer: str,
        progress: OnRollup | None,
        known: Known | None,
    ) -> None:
        self.known = known
        self._task = task
        self._storing = storing
        self._deadline = deadline
        self._progress = progress
        self._report = RollupReport(producer)
        self._mark: int | None = None  # the end of what is rolled up, as the target has it
        self._floats: set[Labels] = set()
        self._series: set[Labels] = set()
        self._rejected: list[Rejected] = []
        self._kept: set[int] = set()  # windows that have other results than are stored

    def run(self) -> RollupReport:
        """Do it; raises as `rollup` does."""
        self._check_patience()
        self._attempt("target", self._load_mark)
        looked_at, known = self._attempt(
            "source", lambda: spans(self._task, self._mark, self.known)
        )
        self._floats = self._attempt("source", lambda: float_results(self._task))
        if looked_at:
            self._report = replace(self._report, start=looked_at[0][0], end=looked_at[-1][1])
        for begin, end in looked_at:
            self._check_patience()
            self._renew(begin, end)
            if self._progress is not None:
                self._attempt("caller", self._tell)
        if self._rejected:
            error = self._rejected[0][1]
            raise RollupError(
                f"{self._report.rejected} results cannot be stored, all others are: {error}",
                report=self._told(),
                side="target",
                rejections=self._rejected,
            ) from error
        if known is not None and known is not self.known:  # the same where nothing is there
            known = known._replace(kept=frozenset(self._kept))
        self.known = known
        return self._told()

    def _load_mark(self) -> None:
        target = self._task.target
        if target.marks_producers:
            mark = target.high_water(self._report.producer)
            self._mark = None if mark is None else mark.sequence

    # One span.

    def _renew(self, begin: int, end: int) -> None:
        stored = self._attempt("target", lambda: self._stored(begin, end))
        results = self._attempt("source", lambda: self._results(begin, end))
        found = self._attempt("source", lambda: self._find(results, stored))
        self._attempt("target", lambda: self._store(found, end))

    def _stored(self, begin: int, end: int) -> dict[Labels, SeriesBatch]:
        """Give what is stored of a span, by the labels of results."""
        rolled = self._task.rolled
        found = self._task.target.query(rolled.stored, begin, end)
        return {batch.labels: batch for batch in found if rolled.owns(batch.labels)}

    def _results(self, begin: int, end: int) -> list[tuple[str, SeriesBatch]]:
        """Give what the source answers for a span, by function."""
        task, rolled = self._task, self._task.rolled
        results: list[tuple[str, SeriesBatch]] = []
        for each in rolled.passes:
            for batch in task.source.aggregate(
                each.selector,
                begin,
                end,
                functions=each.functions,
                every=f"{task.every}ns",
                group_by=rolled.group_by,
                origin=task.origin,
            ):
                name = each.names[0]
                if len(each.names) > 1:
                    name = batch.labels[FUNCTION_LABEL]
                labels = rolled.labels(batch.labels, name)
                values = batch.values
                if labels in self._floats and values.dtype == np.int64:
                    values = values.astype(np.float64)
                results.append((name, SeriesBatch(labels, batch.timestamps, values)))
        return results

    def _find(
        self, results: Sequence[tuple[str, SeriesBatch]], stored: dict[Labels, SeriesBatch]
    ) -> _Found:
        """Compare what the source gives with what is stored."""
        # Asked after the results: what retention hid from some of them is hidden now.
        shown_from = self._task.next_window(self._task.source.retained_from())
        edges = _Edges(self._task, shown_from)
        found = _Found()
        left = {labels: _from(batch, shown_from) for labels, batch in stored.items()}
        for function, batch in results:
            was = left.pop(batch.labels, None)
            self._compare(found, _from(batch, shown_from), was, function, edges)
        for labels, batch in left.items():
            self._let_go(found, labels, batch.timestamps, _NONE)
        return found

    def _compare(
        self,
        found: _Found,
        batch: SeriesBatch,
        stored: SeriesBatch | None,
        function: str,
        edges: _Edges,
    ) -> None:
        """Add what a series of results needs to what a span needs."""
        if len(batch):
            self._series.add(batch.labels)
        found.results += len(batch)
        if found.marked is not None and is_unchanged(batch, stored, function):
            found.unchanged += len(batch)
            return
        change = changes(batch, stored, function)
        is_kept = np.zeros(len(batch), bool)
        if change.is_other.any() and not self._task.follows_deletes:
            is_kept = edges.cut(batch, change)
            self._kept.update(batch.timestamps[is_kept].tolist())
        is_storable = batch.timestamps >= self._task.target.timestamp_min
        is_due = (change.is_new | change.is_other) & ~is_kept & is_storable
        if is_due.any():
            found.columns.append(_rows(batch, is_due))
            found.is_redone.append(change.is_other[is_due])
        good = ~is_kept & is_storable
        if found.marked is None and good.any():
            found.marked = _rows(batch, np.flatnonzero(good)[:1])
        found.kept += int(is_kept.sum())
        found.refused += int((~is_storable).sum())
        found.unchanged += int((~change.is_new & ~change.is_other).sum())
        self._let_go(found, batch.labels, change.gone, batch.timestamps)

    def _let_go(self, found: _Found, labels: Labels, gone: Int64Array, there: Int64Array) -> None:
        """Decide about stored results without points, between those that have some."""
        if not self._task.follows_deletes:
            found.kept += len(gone)
            return
        found.removed += len(gone)
        for few in np.split(gone, np.flatnonzero(np.diff(there.searchsorted(gone))) + 1):
            if len(few):
                found.gone.append((labels, int(few[0]), int(few[-1]) + 1))

    def _store(self, found: _Found, end: int) -> None:
        task, report = self._task, self._report
        for labels, first, last in found.gone:
            task.target.delete(labels, first, last)
        redone = written = refused = rejected = 0
        if found.columns:
            receipt, rejections, bad = self._storing.write(found.columns)
            is_redone = np.concatenate(found.is_redone)
            is_stored = np.ones(len(is_redone), bool)
            is_stored[list(receipt.indices)] = False
            is_stored[bad] = False
            redone = int((is_redone & is_stored).sum())
            written = int(is_stored.sum()) - redone
            refused, rejected = receipt.refused, len(bad)
            self._reject(rejections)
        self._report = replace(
            report,
            results=report.results + found.results,
            written=report.written + written,
            redone=report.redone + redone,
            unchanged=report.unchanged + found.unchanged,
            refused=report.refused + found.refused + refused,
            rejected=report.rejected + rejected,
            kept=report.kept + found.kept,
            removed=report.removed + found.removed,
        )
        self._set_mark(found.marked, end)

    def _reject(self, rejections: Iterable[Rejected]) -> None:
        """Keep some of the results that cannot be stored."""
        room = REJECTED_MAX - sum(len(points) for points, _ in self._rejected)
        for points, error in rejections:
            if room > 0:
                self._rejected.append((points[:room], error))
                room -= len(points)

    def _set_mark(self, marked: SeriesBatch | None, end: int) -> None:
        """Remember that all is rolled up to there, unless something could not be stored.

        In a commit of its own, which stores one result again: a mark that another run has
        overtaken makes its commit a no-op, and that of results must not be one.
        """
        if marked is None or self._rejected or not self._task.target.marks_producers:
            return
        if end > max(self._mark or 0, 0):
            self._storing.write([marked], ProducerMark(self._report.producer, end))
            self._mark = end

    # What is told.

    def _told(self) -> RollupReport:
        return replace(self._report, series=len(self._series), seconds=self._deadline.seconds)

    def _tell(self) -> None:
        assert self._progress is not None
        self._progress(self._told())

    def _attempt(self, side: Literal["source", "target", "caller"], call: Callable[[], _T]) -> _T:
        try:
            return call()
        except Exception as error:
            self._check_patience(error)
            told = str(error) if isinstance(error, TsEngineError) else repr(error)
            raise RollupError(
                f"the rollup stopped at its {side}: {told}", report=self._told(), side=side
            ) from error

    def _check_patience(self, cause: Exception | None = None) -> None:
        if self._deadline.is_cancelled:
            raise RollupCancelledError(
                "the rollup was cancelled; run again, it goes on",
                report=self._told(),
                side="caller",
            ) from cause
        if self._deadline.is_over:
            raise RollupTimeoutError(
                "the rollup took longer than its timeout; run again, it goes on",
                report=self._told(),
                side="caller",
            ) from cause


class _Edges:
    """Where the series of a source begin now, and whether they began earlier once.

    What a source has lost by a cap, or by a delete of all that is old, looks like a change of the
    first window that it still has rows of.

    Args:
        task: what is rolled up.
        shown_from: the first window that retention shows whole.
    """

    def __init__(self, task: Task, shown_from: int) -> None:
        self._task = task
        self._shown_from = shown_from
        self._is_capped = bool(caps_of(task.source))
        self._first_windows: dict[Labels, int] | None = None

    def cut(self, batch: SeriesBatch, change: Changes) -> BoolArray:
        """Tell of which windows that differ the source may have lost rows: bool[n]."""
        if self._first_windows is None:  # after the results, for they were cut before
            self._first_windows = self._look()
        first = self._first_windows.get(batch.labels, INT64_MAX)
        is_cut = change.is_other & (batch.timestamps < first)
        at_first = change.is_other & (batch.timestamps == first)
        if at_first.any() and (self._is_capped or self._has_older(batch.labels, first)):
            is_cut |= at_first
        return is_cut

    def _look(self) -> dict[Labels, int]:
        task = self._task
        firsts: dict[Labels, int] = {}
        for each in task.rolled.passes:
            for point in task.source.earliest(each.selector):
                group, window = task.group(point.labels), task.window(point.timestamp)
                for name in each.names:
                    labels = task.rolled.labels(group, name)
                    firsts[labels] = min(window, firsts.get(labels, window))
        return firsts

    def _has_older(self, labels: Labels, first: int) -> bool:
        """Whether results are stored of windows that the source would show and has no more."""
        if self._shown_from >= first:
            return False
        return self._task.target.count(labels, self._shown_from, first) > 0


_NONE: Final = np.empty(0, np.int64)


def _rows(batch: SeriesBatch, which: BoolArray | Int64Array) -> SeriesBatch:
    return SeriesBatch(batch.labels, batch.timestamps[which], batch.values[which])


def _from(batch: SeriesBatch, moment: int) -> SeriesBatch:
    """Give what of a batch does not lie before a moment."""
    row = int(batch.timestamps.searchsorted(moment)) if moment <= INT64_MAX else len(batch)
    return SeriesBatch(batch.labels, batch.timestamps[row:], batch.values[row:]) if row else batch
