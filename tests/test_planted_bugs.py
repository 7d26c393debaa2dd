"""The kit must be able to fail: each bug planted here is caught by it, and no other engine is.

Every bug is a small subclass of the memory backend. `Sound` is the same without one: it
reads by the defaults of `Engine`, so that a bug in a primitive shows in every read.
"""

# ruff: noqa: D102  # overrides, whose class says what is wrong with them
from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tsengine.aggregation import Aggregation, aggregate_batches
from tsengine.backends.memory import MemoryEngine
from tsengine.duplicates import DuplicatePolicy, distinct_starts
from tsengine.engine import CompactReport, Engine, EngineStats, is_unbounded
from tsengine.errors import InvalidDataError
from tsengine.grouping import group_numbers, take_rows
from tsengine.model import (
    RANGE_END_MAX,
    GroupedBatch,
    Labels,
    PointLike,
    ProducerMark,
    SeriesBatch,
    ValueKind,
    WriteReceipt,
)
from tsengine.result import QueryResult
from tsengine.selectors import Selector
from tsengine.staging import Staging
from tsengine.testing import EngineConformance, Lockstep, Target, operations, run_suite

# The bugs change what primitives take and give, without looking at types.
Batches = Sequence[GroupedBatch]


class Sound(MemoryEngine):
    """Reads by the defaults of Engine, and is right."""

    query = Engine.query
    count = Engine.count
    earliest = Engine.earliest
    latest = Engine.latest


class LosesDuplicates(Sound):
    """Of points equal in series and time within a batch only the first is kept."""

    def _commit(self, batches: Batches, mark: ProducerMark | None) -> WriteReceipt:
        kept = []
        for batch in batches:
            starts = distinct_starts(batch.timestamps, group_numbers(batch.offsets))
            keep = np.ones(len(batch), bool)
            if starts is not None:
                keep[:] = False
                keep[starts] = True
            kept.append(take_rows(batch, keep))
        receipt = super()._commit(kept, mark)
        rows = sum(map(len, batches))
        return replace(receipt, submitted=rows, accepted=rows - receipt.refused)


class IncludesTheEnd(Sound):
    """A range takes its end too."""

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        return super()._scan(selector, start, min(end + 1, RANGE_END_MAX))


class OrdersWrongAfterMerge(Sound):
    """After compact() the rows of a series come newest first."""

    merged = False

    def compact(self) -> CompactReport:
        self.merged = True
        return super().compact()

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        for batch in super()._scan(selector, start, end):
            step = -1 if self.merged else 1
            yield SeriesBatch(batch.labels, batch.timestamps[::step], batch.values[::step])


def _changing_floats(change: Callable[[Any], Any]) -> type[Sound]:
    class ChangesFloats(Sound):
        def _commit(self, batches: Batches, mark: ProducerMark | None) -> WriteReceipt:
            changed = [
                replace(batch, values=change(batch.values))
                if batch.values.dtype == np.float64
                else batch
                for batch in batches
            ]
            return super()._commit(changed, mark)

    return ChangesFloats


ChangesNan = _changing_floats(lambda values: np.where(np.isnan(values), np.nan, values))
LosesMinusZero = _changing_floats(lambda values: values + 0.0)
FlushesSubnormals = _changing_floats(
    lambda values: np.where(np.abs(values) < np.finfo(np.float64).tiny, values * 0.0, values)
)


class RoundsIntegers(Sound):
    """Integers go by way of float64."""

    def _commit(self, batches: Batches, mark: ProducerMark | None) -> WriteReceipt:
        rounded = [
            replace(batch, values=np.clip(batch.values.astype(float), -9e18, 9e18).astype(np.int64))
            if batch.values.dtype == np.int64
            else batch
            for batch in batches
        ]
        return super()._commit(rounded, mark)


class SharesResults(Sound):
    """A query that was asked before is answered by the same arrays."""

    def _open(self) -> None:
        super()._open()
        self.answers: dict[str, QueryResult] = {}

    def query(self, *args: Any, **named: Any) -> QueryResult:
        asked = repr((args, named, self._last_write_ns, list(map(str, self.series()))))
        return self.answers.setdefault(asked, super().query(*args, **named))


class KeepsArguments(Sound):
    """Staged points are judged when they are staged and read when they are flushed."""

    def write_to_buffer(self, point: PointLike) -> None:
        self.validate_point(point)
        staged: list[PointLike] = self.__dict__.setdefault("staged", [])
        staged.append(point)

    def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
        for point in self.__dict__.pop("staged", []):
            super().write_to_buffer(point)
        return super().flush_buffer(mark)


class DeletesTheFuture(Sound):
    """A bounded delete hides what is written later in its range."""

    def _open(self) -> None:
        super()._open()
        self.deletes: list[tuple[Labels, int, int]] = []

    def _delete(self, selector: Selector, start: int, end: int) -> int:
        self.deletes += [(labels, start, end) for labels in self._series(selector)]
        return super()._delete(selector, start, end)

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        for batch in super()._scan(selector, start, end):
            keep = np.ones(len(batch), bool)
            for labels, first, last in self.deletes:
                if labels is batch.labels and not is_unbounded(first, last):
                    keep &= (batch.timestamps < first) | (batch.timestamps >= last)
            if keep.any():
                yield SeriesBatch(batch.labels, batch.timestamps[keep], batch.values[keep])


class FreesTheKind(Sound):
    """A bounded delete that leaves no rows takes the series too."""

    def _delete(self, selector: Selector, start: int, end: int) -> int:
        selected = list(self._series(selector))
        count = super()._delete(selector, start, end)
        for labels in selected:
            if not is_unbounded(start, end) and not self.count(labels):
                self.delete(labels)
        return count


class CountsWrongAfterEviction(Sound):
    """Evicted points are still counted."""

    evicted = 0

    def _commit(self, batches: Batches, mark: ProducerMark | None) -> WriteReceipt:
        receipt = super()._commit(batches, mark)
        self.evicted += receipt.evicted
        return receipt

    def _stats(self) -> EngineStats:
        stats = super()._stats()
        return replace(stats, points=stats.points + self.evicted)


class GoesBackInTime(Sound):
    """`now` follows the clock backwards."""

    def _read_clock(self) -> int:
        return self._clock_ns()


class ExpiresTooEarly(Sound):
    """A point exactly as old as retention allows is not seen."""

    def _horizon(self, now_ns: int | None = None) -> int:
        return super()._horizon(now_ns) + (self.options.retention is not None)


class SpeaksOfSortedRows(Sound):
    """Indices of receipts count rows as they are sorted, not as the caller gave them."""

    def _commit_staging(self, staging: Staging, mark: ProducerMark | None) -> WriteReceipt:
        batches, _ = staging.batches()
        return self._commit(batches, mark) if batches else WriteReceipt(0, 0)


class SharesStaging(Sound):
    """All threads stage into one place."""

    def _open(self) -> None:
        super()._open()
        self._thread = type("Shared", (), {})()


class SwapsFirstAndLast(Sound):
    """Across commits, what is stored stands and what comes later is dropped."""

    def _commit(self, batches: Batches, mark: ProducerMark | None) -> WriteReceipt:
        if self.options.duplicate_policy is not DuplicatePolicy.LAST:
            return super()._commit(batches, mark)
        kept = []
        for batch in batches:
            keep = np.ones(len(batch), bool)
            for index, group in enumerate(batch.groups()):
                stored = [found.timestamps for found in self.scan(group.labels)]
                taken = np.isin(group.timestamps, np.concatenate([np.empty(0, np.int64), *stored]))
                keep[batch.offsets[index] : batch.offsets[index + 1]] = ~taken
            kept.append(take_rows(batch, keep))
        receipt = super()._commit(kept, mark)
        rows = sum(map(len, batches))
        return replace(receipt, submitted=rows, accepted=rows - receipt.refused)


class LosesLatePoints(Sound):
    """A point older than the newest of its series is dropped."""

    def _commit(self, batches: Batches, mark: ProducerMark | None) -> WriteReceipt:
        newest = {point.labels: point.timestamp for point in self.latest()}
        kept = []
        for batch in batches:
            bounds = np.array([newest.get(labels, 0) for labels in batch.labels], np.int64)
            keep = batch.timestamps >= bounds[group_numbers(batch.offsets)]
            kept.append(take_rows(batch, keep))
        receipt = super()._commit(kept, mark)
        rows = sum(map(len, batches))
        return replace(receipt, submitted=rows, accepted=rows - receipt.refused)


class SumsTwice(Sound):
    """A repeated mark is kept and its points are stored again."""

    def _commit(self, batches: Batches, mark: ProducerMark | None) -> WriteReceipt:
        receipt = super()._commit(batches, None)
        if mark is not None:
            self._marks[mark.producer] = mark, receipt
        return receipt


class ScansTheMoment(Sound):
    """A scan reads each series when it gets there."""

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        for labels in list(self._series(selector)):
            yield from super()._scan(Selector(exact=labels), start, end)


class CommitsInPieces(Sound):
    """Each series of a batch is a commit of its own."""

    def _commit(self, batches: Batches, mark: ProducerMark | None) -> WriteReceipt:
        for batch in batches:
            for group in batch.groups():
                offsets = np.array([0, len(group)])
                one = GroupedBatch([group.labels], offsets, group.timestamps, group.values)
                super()._commit([one], None)
        rows = sum(map(len, batches))
        return WriteReceipt(rows, rows)


class StoresTheGoodHalf(Sound):
    """Where some points of a call are bad the others are stored."""

    def write(self, points: Any) -> WriteReceipt:
        given = list(points)
        try:
            return super().write(given)
        except InvalidDataError as error:
            bad = error.indices
            super().write(point for index, point in enumerate(given) if index not in bad)
            raise


class StagesAgain(Sound):
    """A flush that failed leaves its points staged."""

    def _take_staging(self) -> Staging | None:
        self.taken = super()._take_staging()
        return self.taken

    def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
        try:
            return super().flush_buffer(mark)
        except InvalidDataError:
            self._thread.staging = self.taken
            raise


class ForgetsEmptySeries(Sound):
    """A series without rows is not listed."""

    def _series(self, selector: Selector) -> Iterator[Labels]:
        return (labels for labels in super()._series(selector) if self.count(labels))


class LosesTheLastPoint(Sound):
    """Unbounded reads end one nanosecond too early."""

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        return super()._scan(selector, start, min(end, RANGE_END_MAX - 1))


class ForgetsThatAbsentIsEmpty(Sound):
    """A series without a label satisfies no condition on it."""

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        names = {matcher.name for matcher in selector.matchers}
        for batch in super()._scan(selector, start, end):
            if names <= set(batch.labels):
                yield batch


class AlignsWindowsToTheRange(Sound):
    """The first window of an aggregation begins where its range does."""

    def _aggregate(self, selector: Selector, asked: Aggregation) -> QueryResult:
        if asked.every is not None and asked.is_bounded[0]:
            asked = asked._replace(phase=asked.start % asked.every)
        return super()._aggregate(selector, asked)


class TakesNanForNothing(Sound):
    """Rows that are NaN are not counted."""

    def _aggregate(self, selector: Selector, asked: Aggregation) -> QueryResult:
        def without(batches: Iterator[SeriesBatch]) -> Iterator[SeriesBatch]:
            for batch in batches:
                keep = batch.values == batch.values
                if keep.any():
                    yield SeriesBatch(batch.labels, batch.timestamps[keep], batch.values[keep])

        return aggregate_batches(without(self._scan(selector, asked.start, asked.end)), asked)


class ForgetsResets(Sound):
    """The increase of a counter is what its last row has more than its first."""

    def _aggregate(self, selector: Selector, asked: Aggregation) -> QueryResult:
        functions = tuple(
            one._replace(base="delta") if one.base == "increase" else one for one in asked.functions
        )
        return super()._aggregate(selector, asked._replace(functions=functions))


BUGS: dict[type[Sound], str] = {
    LosesDuplicates: "test_floats_fold_alike_however_they_come",
    IncludesTheEnd: "test_ranges_are_half_open",
    OrdersWrongAfterMerge: "test_reads_of_every_sort_fold",
    ChangesNan: "test_floats_come_back_bit_for_bit",
    LosesMinusZero: "test_floats_come_back_bit_for_bit",
    FlushesSubnormals: "test_floats_come_back_bit_for_bit",
    RoundsIntegers: "test_integers_come_back_exact",
    SharesResults: "test_results_alias_nothing",
    KeepsArguments: "test_staged_objects_are_not_kept",
    DeletesTheFuture: "test_a_delete_hits_no_later_write",
    FreesTheKind: "test_a_bounded_delete_leaves_the_series",
    CountsWrongAfterEviction: "test_counters_are_exact_after_everything",
    GoesBackInTime: "test_now_never_moves_backwards",
    ExpiresTooEarly: "test_expired_points_are_not_seen",
    SpeaksOfSortedRows: "test_indices_are_in_the_callers_order",
    SharesStaging: "test_staging_belongs_to_its_thread",
    SwapsFirstAndLast: "test_floats_fold_alike_however_they_come",
    LosesLatePoints: "test_later_commits_join_earlier_ones",
    SumsTwice: "test_a_repeated_mark_is_a_no_op",
    ScansTheMoment: "test_a_scan_keeps_its_snapshot",
    CommitsInPieces: "test_readers_see_whole_commits",
    StoresTheGoodHalf: "test_a_bad_point_is_refused",
    StagesAgain: "test_a_flush_consumes_whatever_happens",
    ForgetsEmptySeries: "test_listings_know_every_label",
    LosesTheLastPoint: "test_the_limits_of_time_are_stored",
    ForgetsThatAbsentIsEmpty: "test_selectors_select",
    AlignsWindowsToTheRange: "test_windows_are_aligned_to_an_origin",
    TakesNanForNothing: "test_nan_is_left_out_but_for_count_first_and_last",
    ForgetsResets: "test_counters_reset_as_in_prometheus",
}
"""Each bug, and the test of the suite that is there to catch it."""


def suite_of(engine: type[Sound]) -> type[EngineConformance]:
    """Make the suite for an engine, as a test module would."""

    class Suite(EngineConformance):
        engine_type = engine

        def make_engine(self, path: Path, **options: object) -> Engine:
            return engine(**options)  # type: ignore[arg-type]  # clock_ns is among the options

    return Suite


@pytest.mark.parametrize("bug", BUGS, ids=[bug.__doc__ or bug.__name__ for bug in BUGS])
def test_the_suite_catches(bug: type[Sound], tmp_path: Path) -> None:
    """The test that is there for a bug fails with it."""
    assert BUGS[bug] in run_suite(suite_of(bug), tmp_path, pattern=BUGS[bug])


@pytest.mark.parametrize("name", sorted(set(BUGS.values())))
def test_the_suite_passes_without_the_bug(name: str, tmp_path: Path) -> None:
    """The tests that catch bugs pass where there is none."""
    assert run_suite(suite_of(Sound), tmp_path, pattern=name) == {}


SERIES = [
    (Labels("cpu", host="a"), ValueKind.FLOAT),
    (Labels("cpu", host="b"), ValueKind.FLOAT),
    (Labels("cpu", zone="eu"), ValueKind.INT),
]


def run_in_lockstep(engine: type[Sound], options: dict[str, object], examples: int) -> None:
    """Drive an engine and a sound one through random operations."""
    targets = {
        "sound": Target(lambda _, **given: Sound(**given)),
        "suspect": Target(lambda _, **given: engine(**given)),
    }

    @settings(max_examples=examples, phases=[Phase.generate], derandomize=True)
    @given(steps=operations(SERIES), shared=st.fixed_dictionaries(options))  # type: ignore[arg-type]  # strategies
    def agree(steps: Any, shared: dict[str, Any]) -> None:
        with (
            tempfile.TemporaryDirectory() as folder,
            Lockstep(targets, Path(folder), integers="int", **shared) as lockstep,
        ):
            lockstep.run(steps)

    agree()


@pytest.mark.parametrize(
    "bug",
    [
        LosesDuplicates,
        IncludesTheEnd,
        OrdersWrongAfterMerge,
        ChangesNan,
        LosesMinusZero,
        DeletesTheFuture,
        FreesTheKind,
        SwapsFirstAndLast,
        LosesLatePoints,
        AlignsWindowsToTheRange,
        TakesNanForNothing,
        ForgetsResets,
    ],
    ids=lambda bug: bug.__name__,
)
def test_lockstep_catches(bug: type[Sound]) -> None:
    """Random operations find a bug that no test names, and tell whose it is."""
    policy = {"duplicate_policy": st.just("last")}
    with pytest.raises((AssertionError, ExceptionGroup)) as caught:
        run_in_lockstep(bug, policy, examples=300)  # type: ignore[arg-type]  # strategies
    notes = getattr(caught.value, "__notes__", [])
    assert any("suspect" in note for note in notes) or isinstance(caught.value, ExceptionGroup)


def test_lockstep_passes_without_a_bug() -> None:
    """Engines without a bug agree, under every policy."""
    policies = st.sampled_from([policy.value for policy in DuplicatePolicy])
    run_in_lockstep(Sound, {"duplicate_policy": policies}, examples=40)
