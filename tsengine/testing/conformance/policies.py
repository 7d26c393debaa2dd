"""Duplicate policies: the same answer in one batch, across batches and by every way in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from tsengine.engine import Engine
from tsengine.errors import DuplicatePointError, ValueKindError, ValueOverflowError
from tsengine.model import INT64_MAX, INT64_MIN, GroupedBatch, ValueKind
from tsengine.testing.compare import assert_range, assert_rows, rows_of
from tsengine.testing.conformance.base import A, B, C, ConformanceBase
from tsengine.testing.reference import ReferenceModel
from tsengine.testing.strategies import SPECIAL_FLOATS, Point

POLICIES = ("last", "first", "min", "max", "sum", "error")

each_policy = pytest.mark.parametrize("policy", POLICIES)
each_folding_policy = pytest.mark.parametrize("policy", POLICIES[:-1])

_NAN_42 = SPECIAL_FLOATS[8]
_NAN_SIGNED = SPECIAL_FLOATS[9]

SEQUENCES: dict[str, tuple[object, ...]] = {
    "rising": (1.0, 2.0, 3.0),
    "falling": (3.0, 2.0, 1.0),
    "peak": (1.0, 5.0, 2.0),
    "zeros": (0.0, -0.0),
    "zeros, turned": (-0.0, 0.0),
    "zeros, minus between": (0.0, -0.0, 0.0),
    "NaN first": (_NAN_42, 1.0),
    "NaN last": (1.0, _NAN_42),
    "NaN between": (2.0, math.nan, 1.0),
    "NaN only": (_NAN_42, _NAN_SIGNED, math.nan),
    "NaN alone": (_NAN_SIGNED,),
    "minus zero alone": (-0.0,),
    "infinities": (math.inf, -math.inf),
    "infinity and NaN": (-math.inf, _NAN_42),
    "infinity and a number": (math.inf, 1.0, -1.0),
    "subnormals": (5e-324, -5e-324, 1e-310),
    "far apart": (1e300, 1.0, -1e300),
    "overflowing": (1.7e308, 1.7e308),
    "tenths": (0.1,) * 10,
}


def by_every_way(engine: Engine, values: Sequence[object]) -> None:
    """Write values at one timestamp of a series: at once, one by one, in halves, staged."""
    engine.write([(A, 10, value) for value in values])
    for value in values:
        engine.write([(B, 10, value)])
    half = len(values) // 2
    engine.write_series(C, [10] * half, list(values[:half]))
    for value in values[half:]:
        engine.write_to_buffer((C, 10, value))
    engine.flush_buffer()


class PolicyConformance(ConformanceBase):
    """What a later write at one series and timestamp does."""

    @each_folding_policy
    @pytest.mark.parametrize("sequence", list(SEQUENCES))
    def test_floats_fold_alike_however_they_come(self, policy: str, sequence: str) -> None:
        """One batch, many batches and halves fold to what the policy says."""
        engine = self.open(duplicate_policy=policy)
        model = ReferenceModel(duplicate_policy=policy)
        values = SEQUENCES[sequence]
        by_every_way(engine, values)
        for labels in (A, B, C):
            model.write([(labels, 10, value) for value in values])
        assert_range(engine, model)
        # Neighbours are left alone, before and after the repeated row.
        for labels in (A, B, C):
            around: list[Point] = [(labels, 9, -1.5), (labels, 11, math.nan), (labels, 10, 0.25)]
            engine.write(around)
            model.write(around)
        assert_range(engine, model)

    @each_folding_policy
    def test_integers_fold_exactly(self, policy: str) -> None:
        """Integers fold without a detour over floats, at the limits of int64 too."""
        engine = self.open(duplicate_policy=policy, integers="int")
        model = ReferenceModel(duplicate_policy=policy, integers="int")
        values = [2**53 + 1, 2**53, -(2**62), 2**62 + 5, -7]
        by_every_way(engine, values)
        for labels in (A, B, C):
            model.write([(labels, 10, value) for value in values])
        assert_range(engine, model)

    @pytest.mark.parametrize("policy", ["last", "first"])
    def test_objects_fold_whole(self, policy: str) -> None:
        """Objects stand as written first or last, never mixed."""
        engine = self.open(duplicate_policy=policy)
        values: list[object] = [{"a": 1}, {"b": [1.0]}, "x", True]
        by_every_way(engine, values)
        stands = values[-1] if policy == "last" else values[0]
        assert_rows(rows_of(engine.query()), {labels: [(10, stands)] for labels in (A, B, C)})

    @pytest.mark.parametrize("policy", ["min", "max", "sum"])
    def test_objects_are_invalid_where_numbers_are_meant(self, policy: str) -> None:
        """Under min, max and sum objects are refused by index, one by one and in columns."""
        engine = self.open(duplicate_policy=policy)
        with pytest.raises(ValueKindError, match=policy) as caught:
            engine.write([(A, 1, 1.0), (B, 1, True), (C, 1, "x")])
        assert caught.value.indices == (1, 2)
        with pytest.raises(ValueKindError, match=policy) as caught:
            engine.write_series(B, [1, 2], np.array(["x", "y"]))
        assert caught.value.indices == (0, 1)
        mixed = np.array([1.0, 2.0, "x", "y"], dtype=object)
        batch = GroupedBatch([A, B], np.array([0, 2, 4]), np.array([1, 2, 1, 2]), mixed)
        with pytest.raises(ValueKindError) as caught:
            engine.write_batch(batch)
        assert caught.value.indices == (2, 3)
        assert list(engine.series()) == []

    def test_error_refuses_what_is_taken(self) -> None:
        """Under `error` a point whose place is taken is refused by index, with all of its call."""
        engine = self.open(duplicate_policy="error")
        engine.write([(A, 5, 1.0), (B, 5, 1.0)])
        with pytest.raises(DuplicatePointError) as caught:
            engine.write([(A, 6, 2.0), (B, 5, 2.0), (A, 7, 2.0), (A, 5, 2.0)])
        assert caught.value.indices == (1, 3)
        with pytest.raises(DuplicatePointError) as caught:
            engine.write_series(A, [9, 5, 8], [1.0, 1.0, 1.0])
        assert caught.value.indices == (1,)
        assert_rows(rows_of(engine.query()), {A: [(5, 1.0)], B: [(5, 1.0)]})
        engine.write([(A, 6, 2.0)])
        assert engine.count() == 3

    def test_error_refuses_repetition_within_a_call(self) -> None:
        """Under `error` the second of two equal points is the offender, of any kind."""
        engine = self.open(duplicate_policy="error", integers="int")
        with pytest.raises(DuplicatePointError) as caught:
            engine.write([(A, 5, 1.0), (B, 5, 1), (A, 4, 1.0), (A, 5, 1.0), (B, 5, 1), (A, 5, 2.0)])
        assert caught.value.indices == (3, 4, 5)
        assert list(engine.series()) == []
        with pytest.raises(DuplicatePointError) as caught:
            engine.write_series(C, [7, 3, 7], np.array(["a", "b", "c"]))
        assert caught.value.indices == (2,)
        assert list(engine.series()) == []

    def test_error_speaks_of_the_staged_order(self) -> None:
        """A flush that fails under `error` names positions in the order of staging."""
        engine = self.open(duplicate_policy="error")
        engine.write([(A, 5, 1.0)])
        for point in [(B, 9, 1.0), (A, 6, 1.0), (A, 5, 1.0)]:
            engine.write_to_buffer(point)
        with pytest.raises(DuplicatePointError) as caught:
            engine.flush_buffer()
        assert caught.value.indices == (2,)
        assert engine.count() == 1

    def test_integer_sums_must_fit(self) -> None:
        """An int64 sum that overflows is refused by index at the write; nothing is stored."""
        engine = self.open(duplicate_policy="sum", integers="int")
        engine.write([(A, 1, INT64_MAX - 5), (B, 1, INT64_MIN)])
        with pytest.raises(ValueOverflowError, match=str(INT64_MAX + 1)) as caught:
            engine.write([(A, 2, 1), (A, 1, 4), (B, 2, 1), (A, 1, 2)])
        assert caught.value.indices == (1, 3)
        with pytest.raises(ValueOverflowError) as caught:
            engine.write([(B, 1, -1), (A, 2, 1), (A, 1, 6)])
        assert caught.value.indices == (0, 2)
        with pytest.raises(ValueOverflowError) as caught:
            engine.write([(C, 1, INT64_MAX), (C, 2, 1), (C, 1, 1)])
        assert caught.value.indices == (0, 2)
        assert_rows(rows_of(engine.query()), {A: [(1, INT64_MAX - 5)], B: [(1, INT64_MIN)]})
        engine.write([(A, 1, 6), (A, 1, 5), (A, 1, -6), (B, 1, 0)])
        assert_rows(rows_of(engine.query()), {A: [(1, INT64_MAX)], B: [(1, INT64_MIN)]})

    def test_float_sums_do_not_overflow(self) -> None:
        """A float sum beyond float64 is infinite, as everywhere."""
        engine = self.open(duplicate_policy="sum")
        engine.write([(A, 1, 1.7e308), (A, 1, 1.7e308)])
        assert_rows(rows_of(engine.query()), {A: [(1, math.inf)]})

    @each_folding_policy
    def test_reads_of_every_sort_fold(self, policy: str) -> None:
        """query, scan, count, earliest and latest see folded rows over many commits."""
        engine = self.open(duplicate_policy=policy)
        model = ReferenceModel(duplicate_policy=policy)
        generator = np.random.default_rng(3)
        for _ in range(12):
            points: list[Point] = [
                (labels, int(moment), float(value))
                for labels, moment, value in zip(
                    [A, B] * 8,
                    generator.integers(1, 9, 16),
                    generator.integers(-4, 5, 16),
                    strict=True,
                )
            ]
            engine.write(points)
            model.write(points)
        assert_range(engine, model)
        assert [point.timestamp for point in engine.latest()] == [
            moment for _, moment, _ in model.latest()
        ]
        assert [point.timestamp for point in engine.earliest()] == [
            moment for _, moment, _ in model.earliest()
        ]
        engine.compact()
        assert_range(engine, model)

    @each_policy
    @pytest.mark.parametrize("kind", list(ValueKind))
    def test_distinct_points_are_kept_under_every_policy(
        self, policy: str, kind: ValueKind
    ) -> None:
        """No policy touches rows that are alone."""
        if kind is ValueKind.OBJECT and policy in ("min", "max", "sum"):
            return  # refused, as another test says
        engine = self.open(duplicate_policy=policy, integers="int")
        columns: dict[ValueKind, list[object]] = {
            ValueKind.FLOAT: [-0.0, math.inf, 1.5],
            ValueKind.INT: [INT64_MIN, 0, INT64_MAX],
            ValueKind.OBJECT: ["x", [1], {"a": None}],
        }
        values = columns[kind]
        for moment, value in zip((3, 1, 2), values, strict=True):
            engine.write([(A, moment, value)])
        expected = {A: [(1, values[1]), (2, values[2]), (3, values[0])]}
        assert_rows(rows_of(engine.query()), expected)
