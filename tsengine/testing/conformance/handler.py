"""The handler half: staging per thread, flush, discard, marks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest

from tsengine.engine import Capability, Engine
from tsengine.errors import (
    InvalidDataError,
    TimestampError,
    UnsavedPointsError,
    UnsupportedError,
    ValueKindError,
)
from tsengine.model import DataPoint, GroupedBatch, ProducerMark, WriteReceipt
from tsengine.testing.compare import assert_rows, rows_of
from tsengine.testing.conformance.base import A, B, C, ConformanceBase, requires
from tsengine.testing.conformance.policies import each_folding_policy
from tsengine.testing.reference import ReferenceModel

_T = TypeVar("_T")


def in_a_thread(work: Callable[[], _T]) -> _T:
    """Run something in a thread of its own and give its result or error."""
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _stage(engine: Engine, *points: tuple[object, ...]) -> None:
    for point in points:
        engine.write_to_buffer(point)  # type: ignore[arg-type]  # some tests stage bad ones


class HandlerConformance(ConformanceBase):
    """Staging, flush and discard."""

    def test_staged_points_are_seen_by_nobody(self) -> None:
        """What is staged shows in no read, listing or count before its flush, then all at once."""
        engine = self.open()
        _stage(engine, (A, 1, 1.0), (B, 1, 2.0))
        assert engine.count() == 0
        assert list(engine.series()) == []
        assert engine.latest() == []
        assert engine.flush_buffer() == WriteReceipt(2, 2)
        assert_rows(rows_of(engine.query()), {A: [(1, 1.0)], B: [(1, 2.0)]})
        assert engine.flush_buffer() == WriteReceipt(0, 0)

    def test_staging_belongs_to_its_thread(self) -> None:
        """A flush commits what its own thread staged, and nothing of others."""
        engine = self.open()
        _stage(engine, (A, 1, 1.0))
        assert in_a_thread(engine.flush_buffer) == WriteReceipt(0, 0)
        in_a_thread(engine.discard_buffer)

        def stage_and_flush() -> WriteReceipt:
            _stage(engine, (B, 1, 1.0), (B, 2, 1.0))
            return engine.flush_buffer()

        assert in_a_thread(stage_and_flush) == WriteReceipt(2, 2)
        assert list(engine.series()) == [B]
        engine.write([(C, 1, 1.0)])
        assert list(engine.series()) == [B, C]
        assert engine.flush_buffer() == WriteReceipt(1, 1)
        assert list(engine.series()) == [A, B, C]

    def test_no_thread_gets_the_errors_of_another(self) -> None:
        """A bad flush in one thread fails there alone."""
        engine = self.open(duplicate_policy="error")
        engine.write([(A, 1, 1.0)])
        _stage(engine, (B, 1, 1.0))

        def fail() -> None:
            _stage(engine, (A, 1, 1.0))
            with pytest.raises(InvalidDataError):
                engine.flush_buffer()

        in_a_thread(fail)
        assert engine.flush_buffer() == WriteReceipt(1, 1)

    def test_discard_forgets_what_was_staged(self) -> None:
        """After discard_buffer nothing is staged, and neither is a kind."""
        engine = self.open()
        _stage(engine, (A, 1, 1.0), (A, 2, 1.0))
        engine.discard_buffer()
        assert engine.flush_buffer() == WriteReceipt(0, 0)
        _stage(engine, (A, 1, "x"))
        engine.flush_buffer()
        assert_rows(rows_of(engine.query()), {A: [(1, "x")]})
        engine.discard_buffer()
        engine.close()

    def test_a_bad_point_leaves_what_was_staged(self) -> None:
        """Staging a bad point or batch raises, and what was staged stays as it was."""
        engine = self.open()
        _stage(engine, (A, 1, 1.0))
        with pytest.raises(TimestampError):
            _stage(engine, (A, 0, 1.0))
        with pytest.raises(ValueKindError):
            _stage(engine, (A, 2, "x"))
        times, values = np.array([1, 0]), np.array([1.0, 2.0])
        with pytest.raises(TimestampError) as caught:
            engine.write_batch_to_buffer(GroupedBatch([B], np.array([0, 2]), times, values))
        assert caught.value.indices == (1,)
        assert engine.flush_buffer() == WriteReceipt(1, 1)
        assert_rows(rows_of(engine.query()), {A: [(1, 1.0)]})

    def test_a_flush_consumes_whatever_happens(self) -> None:
        """After a flush that failed nothing is staged any more."""
        engine = self.open(duplicate_policy="error")
        engine.write([(A, 1, 1.0)])
        _stage(engine, (B, 1, 1.0), (A, 1, 2.0))
        with pytest.raises(InvalidDataError):
            engine.flush_buffer()
        assert engine.flush_buffer() == WriteReceipt(0, 0)
        assert_rows(rows_of(engine.query()), {A: [(1, 1.0)]})
        engine.close()

    def test_staged_order_is_kept(self) -> None:
        """Points and batches staged by turns are writes in that order."""
        engine = self.open()
        offsets, times = np.array([0, 1, 2]), np.array([1, 1])
        _stage(engine, (A, 1, 1.0), (B, 1, 1.0))
        engine.write_batch_to_buffer(GroupedBatch([A, B], offsets, times, np.array([2.0, 2.0])))
        _stage(engine, (B, 1, 3.0))
        engine.write_batch_to_buffer(GroupedBatch([B, C], offsets, times, np.array([4.0, 4.0])))
        _stage(engine, (C, 1, 5.0))
        assert engine.flush_buffer() == WriteReceipt(8, 8)
        assert_rows(rows_of(engine.query()), {A: [(1, 2.0)], B: [(1, 4.0)], C: [(1, 5.0)]})

    def test_a_staged_series_has_one_kind(self) -> None:
        """Points and batches of several kinds for one series cannot be staged together."""
        engine = self.open()
        floats = GroupedBatch([A], np.array([0, 1]), np.array([1]), np.array([1.0]))
        texts = GroupedBatch([A], np.array([0, 1]), np.array([2]), np.array(["x"], dtype=object))
        engine.write_batch_to_buffer(floats)
        with pytest.raises(ValueKindError):
            _stage(engine, (A, 2, "x"))
        with pytest.raises(ValueKindError):
            engine.write_batch_to_buffer(texts)
        engine.flush_buffer()
        engine.delete(A)
        engine.write_batch_to_buffer(texts)
        with pytest.raises(ValueKindError) as caught:
            engine.write_batch_to_buffer(
                GroupedBatch([B, A], np.array([0, 1, 2]), np.array([1, 1]), np.array([1.0, 1.0]))
            )
        assert caught.value.indices == (1,)
        engine.flush_buffer()
        assert_rows(rows_of(engine.query()), {A: [(2, "x")]})

    def test_of_two_who_race_for_a_kind_the_loser_is_told(self) -> None:
        """Where another commit fixed the kind meanwhile, the flush fails with indices."""
        engine = self.open()
        _stage(engine, (B, 1, 1.0), (A, 1, "x"), (B, 2, 1.0), (A, 2, "y"))
        engine.write([(A, 5, 1.0)])
        with pytest.raises(ValueKindError) as caught:
            engine.flush_buffer()
        assert caught.value.indices == (1, 3)
        assert_rows(rows_of(engine.query()), {A: [(5, 1.0)]})

    def test_validate_point_stores_nothing(self) -> None:
        """validate_point gives the point as it would be stored and leaves no trace."""
        engine = self.open()
        assert engine.validate_point((A, np.int64(1), 7)) == DataPoint(A, 1, 7.0)
        assert type(engine.validate_point((A, 1, 7)).value) is float
        assert engine.validate_point((A, 1, (1, 2))).value == [1, 2]
        engine.write([(A, 1, "x")])
        assert engine.validate_point((A, 1, True)).value is True
        with pytest.raises(ValueKindError):
            engine.validate_point((A, 1, 1.0))
        assert engine.flush_buffer() == WriteReceipt(0, 0)
        assert engine.count() == 1

    def test_close_tells_of_staged_points(self) -> None:
        """close() with points staged, by any thread, closes and then says how many are lost."""
        engine = self.open()
        _stage(engine, (A, 1, 1.0))
        in_a_thread(lambda: _stage(engine, (B, 1, 1.0), (B, 2, 1.0)))
        with pytest.raises(UnsavedPointsError, match="3") as caught:
            engine.close()
        assert caught.value.count == 3
        engine.close()

    def test_the_bounds_of_time_are_told(self) -> None:
        """timestamp_min is what the buffer checks by."""
        assert self.open().timestamp_min == 1


class MarkConformance(ConformanceBase):
    """Producer marks, committed with the points."""

    @requires(Capability.PRODUCER_MARKS)
    @each_folding_policy
    def test_a_repeated_mark_is_a_no_op(self, policy: str) -> None:
        """A batch repeated under its mark changes nothing and gets the receipt it got."""
        engine = self.open(duplicate_policy=policy)
        model = ReferenceModel(duplicate_policy=policy)
        points = [(A, 1, 1.0), (A, 1, 2.0), (B, 5, -1.0)]
        mark = ProducerMark("producer", 1)
        model.write(points)
        for _ in range(3):
            _stage(engine, *points)
            assert engine.flush_buffer(mark) == WriteReceipt(3, 3)
            assert_rows(rows_of(engine.query()), model.query())
            assert engine.high_water("producer") == mark

    @requires(Capability.PRODUCER_MARKS)
    def test_a_repeated_mark_is_a_no_op_under_error(self) -> None:
        """A batch repeated under its mark is no duplicate of itself."""
        engine = self.open(duplicate_policy="error")
        for _ in range(2):
            _stage(engine, (A, 1, 1.0))
            assert engine.flush_buffer(ProducerMark("producer", 1)) == WriteReceipt(1, 1)
        assert engine.count() == 1

    @requires(Capability.PRODUCER_MARKS)
    def test_marks_order_by_sequence_and_piece(self) -> None:
        """A mark not above the highest stores nothing; one above it does."""
        engine = self.open(duplicate_policy="sum")
        stored: list[tuple[int, int]] = []
        for sequence, piece in [
            (1, 0),
            (1, 1),
            (1, 2),
            (2, 0),
            (1, 9),
            (2, 0),
            (3, 1),
            (3, 0),
            (9, 0),
        ]:
            above = not stored or (sequence, piece) > max(stored)
            if above:
                stored.append((sequence, piece))
            _stage(engine, (A, 1, 1.0))
            engine.flush_buffer(ProducerMark("producer", sequence, piece))
            assert_rows(rows_of(engine.query()), {A: [(1, float(len(stored)))]})
            assert engine.high_water("producer") == ProducerMark("producer", *max(stored))

    @requires(Capability.PRODUCER_MARKS)
    def test_producers_are_independent(self) -> None:
        """Each producer has its own mark, by a name of any text; unknown ones have none."""
        engine = self.open(duplicate_policy="sum")
        names = ["a", "b", "A", "é", "x" * 600, 'odd "name"\n']
        for name in names:
            _stage(engine, (A, 1, 1.0))
            engine.flush_buffer(ProducerMark(name, 5))
        assert [engine.high_water(name) for name in names] == [ProducerMark(n, 5) for n in names]
        assert engine.high_water("c") is None
        assert_rows(rows_of(engine.query()), {A: [(1, float(len(names)))]})

    @requires(Capability.PRODUCER_MARKS)
    def test_a_failed_flush_leaves_the_mark(self) -> None:
        """A mark is committed with its points or not at all."""
        engine = self.open(duplicate_policy="error")
        engine.write([(A, 1, 1.0)])
        mark = ProducerMark("producer", 1)
        _stage(engine, (A, 1, 2.0))
        with pytest.raises(InvalidDataError):
            engine.flush_buffer(mark)
        assert engine.high_water("producer") is None
        _stage(engine, (A, 2, 2.0))
        assert engine.flush_buffer(mark) == WriteReceipt(1, 1)
        assert engine.high_water("producer") == mark

    @requires(Capability.PRODUCER_MARKS)
    def test_deletes_leave_marks(self) -> None:
        """A delete of everything forgets no mark: what was stored before is not stored again."""
        engine = self.open()
        _stage(engine, (A, 1, 1.0))
        engine.flush_buffer(ProducerMark("producer", 1))
        engine.delete()
        _stage(engine, (A, 1, 1.0))
        engine.flush_buffer(ProducerMark("producer", 1))
        assert engine.count() == 0
        assert engine.high_water("producer") == ProducerMark("producer", 1)

    @requires(Capability.PRODUCER_MARKS)
    def test_a_producer_may_be_forgotten(self) -> None:
        """forget_producer drops one mark; to forget one unknown is nothing."""
        engine = self.open(duplicate_policy="sum")
        for name in ("a", "b"):
            _stage(engine, (A, 1, 1.0))
            engine.flush_buffer(ProducerMark(name, 3))
        engine.forget_producer("a")
        engine.forget_producer("unknown")
        assert engine.high_water("a") is None
        assert engine.high_water("b") == ProducerMark("b", 3)
        _stage(engine, (A, 1, 1.0))
        engine.flush_buffer(ProducerMark("a", 1))
        assert_rows(rows_of(engine.query()), {A: [(1, 3.0)]})

    @requires(Capability.PRODUCER_MARKS, Capability.PERSISTENCE)
    def test_marks_persist(self) -> None:
        """After reopening a mark is as high as before, and a repeated batch still a no-op."""
        engine = self.open(duplicate_policy="sum")
        _stage(engine, (A, 1, 1.0))
        engine.flush_buffer(ProducerMark("producer", 7, 2))
        engine.close()
        engine = self.open()
        assert engine.high_water("producer") == ProducerMark("producer", 7, 2)
        _stage(engine, (A, 1, 1.0))
        engine.flush_buffer(ProducerMark("producer", 7, 2))
        assert_rows(rows_of(engine.query()), {A: [(1, 1.0)]})

    def test_marks_are_declared(self) -> None:
        """marks_producers says what the capability says; without it marks are refused."""
        engine = self.open()
        declared = Capability.PRODUCER_MARKS in engine.capabilities
        assert engine.marks_producers is declared
        if not declared:
            _stage(engine, (A, 1, 1.0))
            with pytest.raises(UnsupportedError):
                engine.flush_buffer(ProducerMark("producer", 1))
            engine.discard_buffer()
            with pytest.raises(UnsupportedError):
                engine.high_water("producer")
