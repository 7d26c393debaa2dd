"""Deletes are events in commit order."""

from __future__ import annotations

import pytest

from tsengine.errors import ValueKindError
from tsengine.model import INT64_MAX, INT64_MIN, RANGE_END_MAX, Labels
from tsengine.selectors import Matcher, MatchOperator
from tsengine.testing.compare import assert_rows, rows_of
from tsengine.testing.conformance.base import A, B, C, ConformanceBase
from tsengine.testing.conformance.policies import each_folding_policy
from tsengine.testing.reference import ReferenceModel
from tsengine.testing.strategies import Point


class DeleteConformance(ConformanceBase):
    """What a delete takes, leaves and frees."""

    def test_a_delete_without_bounds_removes_the_series(self) -> None:
        """An unbounded delete takes rows and series, of what it selects alone."""
        engine = self.open()
        engine.write([(A, 1, 1.0), (B, 1, 1.0), (C, 1, 1.0)])
        assert engine.delete("cpu") == 2
        assert list(engine.series()) == [C]
        assert_rows(rows_of(engine.query()), {C: [(1, 1.0)]})
        assert engine.label_values("host") == ["a"]
        assert engine.delete("cpu") == 0
        assert engine.delete() == 1
        assert engine.label_names() == []
        assert engine.stats().series == 0

    def test_a_delete_without_bounds_frees_the_kind(self) -> None:
        """After an unbounded delete the series may be opened with another kind."""
        engine = self.open(integers="int")
        for value in (1.0, "x", 7, True, 2.0):
            engine.write([(A, 1, value)])
            assert_rows(rows_of(engine.query()), {A: [(1, value)]})
            assert engine.delete(A) == 1

    def test_bounds_that_span_all_of_time_are_none(self) -> None:
        """A delete over the whole of int64 is one without bounds."""
        engine = self.open()
        engine.write([(A, 1, 1.0)])
        assert engine.delete(A, INT64_MIN, RANGE_END_MAX) == 1
        assert list(engine.series()) == []

    @pytest.mark.parametrize(
        ("start", "end"), [(None, INT64_MAX), (0, None), (None, 2**62), (1, RANGE_END_MAX)]
    )
    def test_a_bounded_delete_leaves_the_series(self, start: int | None, end: int | None) -> None:
        """A delete with any bound keeps the series listed, and its kind, without rows too."""
        engine = self.open()
        engine.write([(A, 5, 1.0), (A, 6, 1.0)])
        assert engine.delete(A, start, end) == 1
        assert list(engine.series()) == [A]
        assert engine.label_names() == ["__name__", "host"]
        assert engine.stats().series == 1
        assert len(engine.query()) == 0
        assert engine.latest() == engine.earliest() == []
        with pytest.raises(ValueKindError):
            engine.write([(A, 5, "x")])
        engine.write([(A, 7, 3.0)])
        assert_rows(rows_of(engine.query()), {A: [(7, 3.0)]})

    def test_a_range_is_half_open(self) -> None:
        """A delete takes the start of its range and leaves the end."""
        engine = self.open()
        engine.write([(A, moment, 1.0) for moment in range(1, 8)])
        assert engine.delete(A, 3, 5) == 1
        assert rows_of(engine.query())[A] == [(moment, 1.0) for moment in (1, 2, 5, 6, 7)]
        assert engine.delete(A, INT64_MAX, RANGE_END_MAX) == 1
        assert engine.count() == 5
        assert engine.delete(A, None, 2) == 1
        assert engine.delete(A, 7) == 1
        assert rows_of(engine.query())[A] == [(moment, 1.0) for moment in (2, 5, 6)]

    def test_an_empty_range_deletes_nothing(self) -> None:
        """A range whose start is its end selects no rows and touches no series."""
        engine = self.open()
        engine.write([(A, 5, 1.0)])
        assert engine.delete(A, 5, 5) == 0
        assert engine.delete(None, RANGE_END_MAX, RANGE_END_MAX) == 0
        assert engine.count() == 1

    def test_the_answer_counts_series_selected(self) -> None:
        """The answer is the number of series that the selector resolved to."""
        engine = self.open()
        engine.write([(A, 5, 1.0), (B, 5, 1.0), (C, 5, 1.0)])
        assert engine.delete({"host": "a"}, 100, 200) == 2
        assert engine.delete(Labels("none")) == 0
        matcher = Matcher("host", MatchOperator.NOT_EQUAL, "a")
        assert engine.delete(matcher, 0, 100) == 1
        assert list(rows_of(engine.query())) == [A, C]

    @each_folding_policy
    def test_what_is_written_after_a_delete_is_a_first_write(self, policy: str) -> None:
        """Policies fold only rows newer than the newest delete that covers them."""
        engine = self.open(duplicate_policy=policy)
        model = ReferenceModel(duplicate_policy=policy)

        def write(*points: Point) -> None:
            engine.write(points)
            model.write(points)

        for bounds in ((None, None), (10, 11), (5, 20)):
            write((A, 10, 5.0), (A, 12, 5.0))
            write((A, 10, -100.0), (A, 12, 100.0), (B, 10, 1.0))
            engine.delete(A, *bounds)
            model.delete(A, *bounds)
            assert_rows(rows_of(engine.query()), model.query())
            write((A, 10, 3.0))
            write((A, 10, 4.0), (A, 12, 1.0), (B, 10, 2.0))
            assert_rows(rows_of(engine.query()), model.query())
            engine.compact()
            assert_rows(rows_of(engine.query()), model.query())

    def test_a_deleted_place_is_free_under_error(self) -> None:
        """Under `error` a point may be written where a delete made room."""
        engine = self.open(duplicate_policy="error")
        engine.write([(A, 5, 1.0), (A, 6, 1.0)])
        engine.delete(A, 5, 6)
        engine.write([(A, 5, 2.0)])
        engine.delete(A)
        engine.write([(A, 6, 3.0)])
        assert_rows(rows_of(engine.query()), {A: [(6, 3.0)]})

    def test_deleted_sums_start_again(self) -> None:
        """An int64 sum counts only what came after the delete."""
        engine = self.open(duplicate_policy="sum", integers="int")
        engine.write([(A, 5, INT64_MAX)])
        engine.delete(A, 5, 6)
        engine.write([(A, 5, INT64_MAX)])
        assert_rows(rows_of(engine.query()), {A: [(5, INT64_MAX)]})

    def test_a_delete_hits_no_later_write(self) -> None:
        """Rows and series written after a delete are not covered by it, after compact() neither."""
        engine = self.open()
        engine.write([(A, moment, 1.0) for moment in range(1, 6)])
        engine.delete("cpu", 2, 5)
        engine.write([(A, 3, 2.0), (B, 3, 2.0)])
        expected = {A: [(1, 1.0), (3, 2.0), (5, 1.0)], B: [(3, 2.0)]}
        assert_rows(rows_of(engine.query()), expected)
        engine.compact()
        assert_rows(rows_of(engine.query()), expected)
        assert engine.count(None, 2, 5) == 2

    def test_staged_points_are_not_deleted(self) -> None:
        """A delete commits before what is staged meanwhile, and leaves it alone."""
        engine = self.open()
        engine.write_to_buffer((A, 5, 1.0))
        assert engine.delete() == 0
        engine.flush_buffer()
        assert_rows(rows_of(engine.query()), {A: [(5, 1.0)]})

    def test_deletes_and_writes_by_turns(self) -> None:
        """Overlapping deletes between overlapping writes leave what the order of commits says."""
        engine, model = self.open(), ReferenceModel()
        for turn in range(1, 12):
            points: list[Point] = [
                (labels, moment, float(turn))
                for labels in (A, B)
                for moment in range(turn, turn + 10, 2)
            ]
            engine.write(points)
            model.write(points)
            selected = A if turn % 3 else None
            bounds = (turn + 2, turn + 5) if turn % 4 else (None, turn)
            assert engine.delete(selected, *bounds) == model.delete(selected, *bounds)
            assert_rows(rows_of(engine.query()), model.query())
        assert engine.count() == model.count()
