"""What is written is what is read: points, columns, kinds, receipts."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable

import numpy as np
import pytest

from tsengine.engine import Engine
from tsengine.errors import TimestampError, ValueKindError
from tsengine.model import (
    INT64_MAX,
    RANGE_END_MAX,
    DataPoint,
    GroupedBatch,
    Labels,
    ValueKind,
    WriteReceipt,
)
from tsengine.testing.compare import Rows, assert_rows, rows_of
from tsengine.testing.conformance.base import A, B, C, ConformanceBase
from tsengine.testing.strategies import HOSTILE_TEXTS, SPECIAL_FLOATS, SPECIAL_INTEGERS, TIME_BASE

_T = TIME_BASE


def _staged(engine: Engine, labels: Labels, times: list[int], values: list[object]) -> object:
    for moment, value in zip(times, values, strict=True):
        engine.write_to_buffer((labels, moment, value))
    return engine.flush_buffer()


_WAYS: dict[str, Callable[[Engine, Labels, list[int], list[object]], object]] = {
    "write": lambda engine, labels, times, values: engine.write(
        [(labels, moment, value) for moment, value in zip(times, values, strict=True)]
    ),
    "write_series": lambda engine, labels, times, values: engine.write_series(
        labels, times, values
    ),
    "write_batch": lambda engine, labels, times, values: engine.write_batch(
        batch_of(labels, times, values)
    ),
    "staged": _staged,
}
"""Every way to write rows of one series."""

each_way = pytest.mark.parametrize("way", list(_WAYS))


def batch_of(labels: Labels, times: list[int], values: list[object]) -> GroupedBatch:
    """Make a batch of one series whose values are judged one by one."""
    column = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        column[index] = value
    return GroupedBatch([labels], np.array([0, len(times)]), np.array(times, np.int64), column)


def write_by(
    way: str, engine: Engine, labels: Labels, times: list[int], values: list[object]
) -> None:
    """Write rows of one series in one commit."""
    _WAYS[way](engine, labels, times, values)


class WritingConformance(ConformanceBase):
    """What goes in comes out."""

    def test_a_new_store_answers_nothing(self) -> None:
        """A store just made has no rows, no series, no labels."""
        engine = self.open()
        assert len(engine.query()) == 0
        assert list(engine.scan()) == []
        assert list(engine.series()) == []
        assert engine.earliest() == engine.latest() == []
        assert engine.label_names() == engine.label_values("host") == []
        assert engine.count() == engine.delete() == 0
        stats = engine.stats()
        assert (stats.points, stats.series, stats.last_write_ns) == (0, 0, None)

    @each_way
    def test_a_write_is_read_back(self, way: str) -> None:
        """Every way of writing stores the same rows, sorted by time."""
        engine = self.open()
        write_by(way, engine, A, [_T + 5, _T, _T + 3], [1.5, 2.5, -0.0])
        expected = {A: [(_T, 2.5), (_T + 3, -0.0), (_T + 5, 1.5)]}
        assert_rows(rows_of(engine.query()), expected)

    def test_points_may_be_bare_tuples(self) -> None:
        """A bare tuple is a DataPoint, and any iterable of them can be written."""
        engine = self.open()
        engine.write(point for point in [(A, 1, 1.0), DataPoint(B, 2, 2.0)])
        assert_rows(rows_of(engine.query()), {A: [(1, 1.0)], B: [(2, 2.0)]})

    def test_later_commits_join_earlier_ones(self) -> None:
        """Late points of later commits come out in order of time."""
        engine = self.open()
        for moment in (50, 10, 40, 20, 30, 60, 5):
            engine.write([(A, moment, float(moment)), (B, moment, -float(moment))])
        moments = [5, 10, 20, 30, 40, 50, 60]
        expected = {
            A: [(moment, float(moment)) for moment in moments],
            B: [(moment, -float(moment)) for moment in moments],
        }
        assert_rows(rows_of(engine.query()), expected)

    @each_way
    def test_floats_come_back_bit_for_bit(self, way: str) -> None:
        """NaN payloads, infinities, −0.0 and subnormals are kept, in the answers of all reads."""
        engine = self.open()
        times = list(range(1, len(SPECIAL_FLOATS) + 1))
        write_by(way, engine, A, times, list(SPECIAL_FLOATS))
        expected = list(zip(times, SPECIAL_FLOATS, strict=True))
        assert_rows(rows_of(engine.query()), {A: expected})
        assert_rows(rows_of(engine.scan(), joined=False), {A: expected})
        for index, row in enumerate(expected):
            engine.write([(B, row[0], row[1])])
            latest = engine.latest(B)[0]
            assert_rows({B: [(latest.timestamp, latest.value)]}, {B: [expected[index]]})

    def test_integers_come_back_exact(self) -> None:
        """An integer array opens an int series that holds all of int64."""
        engine = self.open()
        times = list(range(1, len(SPECIAL_INTEGERS) + 1))
        engine.write_series(A, times, np.array(SPECIAL_INTEGERS, np.int64))
        expected = list(zip(times, SPECIAL_INTEGERS, strict=True))
        assert_rows(rows_of(engine.query()), {A: expected})
        assert engine.query()[0].values.dtype == np.int64
        assert type(engine.latest()[0].value) is int

    @each_way
    def test_objects_come_back_equal(self, way: str) -> None:
        """Objects come back as MessagePack carries them: tuples as lists, types kept."""
        engine = self.open()
        given: list[object] = [
            True,
            "text",
            b"\x00\xff",
            [1, 1.0, True, None],
            {"a": {"b": [math.inf, -0.0]}, "": "é\n"},
            (1, (2, 3)),
            bytearray(b"x"),
            [],
            {},
            "",
        ]
        times = list(range(1, len(given) + 1))
        write_by(way, engine, A, times, given)
        expected = [*given]
        expected[5], expected[6] = [1, [2, 3]], b"x"
        assert_rows(rows_of(engine.query()), {A: list(zip(times, expected, strict=True))})

    def test_numpy_scalars_are_numbers(self) -> None:
        """Numpy floats, integers and booleans are taken as the Python ones are."""
        engine = self.open()
        engine.write([(A, np.int64(5), np.float32(0.5)), (A, np.uint8(6), np.int16(3))])
        engine.write([(B, 5, np.bool_(True))])
        assert_rows(rows_of(engine.query()), {A: [(5, 0.5), (6, 3.0)], B: [(5, True)]})

    def test_integer_scalars_open_a_float_series(self) -> None:
        """A Python integer opens a float series and is refused where it is inexact."""
        engine = self.open()
        engine.write([(A, 1, 7), (A, 2, 2**53), (A, 3, 2**60)])
        assert_rows(rows_of(engine.query()), {A: [(1, 7.0), (2, 2.0**53), (3, 2.0**60)]})
        with pytest.raises(ValueKindError, match=str(2**53 + 1)) as caught:
            engine.write([(A, 4, 1), (A, 5, 2**53 + 1), (B, 1, 2**53 + 1)])
        assert caught.value.indices == (1, 2)
        assert engine.count() == 3

    def test_the_option_integers_opens_int_series(self) -> None:
        """With integers="int" an integer scalar opens an int series; floats stay floats."""
        engine = self.open(integers="int")
        engine.write([(A, 1, 2**53 + 1), (B, 1, 1.0), (B, 2, 3), (C, 1, True)])
        expected: Rows = {A: [(1, 2**53 + 1)], B: [(1, 1.0), (2, 3.0)], C: [(1, True)]}
        assert_rows(rows_of(engine.query()), expected)
        with pytest.raises(ValueKindError):
            engine.write([(A, 2, 1.0)])
        with pytest.raises(ValueKindError):
            engine.write([(A, 2, 2**63)])

    def test_integer_arrays_fit_float_series_where_exact(self) -> None:
        """An integer array written to a float series is converted, or refused by index."""
        engine = self.open()
        engine.write([(A, 1, 0.5)])
        engine.write_series(A, [2, 3], np.array([5, 2**53], np.int64))
        assert_rows(rows_of(engine.query()), {A: [(1, 0.5), (2, 5.0), (3, 2.0**53)]})
        with pytest.raises(ValueKindError) as caught:
            engine.write_series(A, [4, 5, 6], np.array([1, 2**53 + 1, INT64_MAX], np.int64))
        assert caught.value.indices == (1, 2)
        assert engine.count() == 3

    @pytest.mark.parametrize("kind", list(ValueKind))
    def test_a_kind_is_fixed_by_the_first_commit(self, kind: ValueKind) -> None:
        """Values of another kind are refused by index, one by one and in columns."""
        engine = self.open()
        columns = {
            ValueKind.FLOAT: np.array([1.5, 2.5]),
            ValueKind.INT: np.array([2**60 + 1, 7]),
            ValueKind.OBJECT: np.array(["a", "b"], dtype=object),
        }
        engine.write_series(A, [1, 2], columns[kind])
        before = rows_of(engine.query())
        for other in set(ValueKind) - {kind}:
            if (kind, other) == (ValueKind.FLOAT, ValueKind.INT):
                continue  # exact integers fit
            with pytest.raises(ValueKindError) as caught:
                engine.write_series(A, [3, 4], columns[other])
            assert caught.value.indices == (0, 1)
            offsets, times = np.array([0, 2, 4]), np.array([3, 4, 5, 6])
            twice = np.concatenate([columns[other], columns[other]])
            with pytest.raises(ValueKindError) as caught:
                engine.write_batch(GroupedBatch([B, A], offsets, times, twice))
            assert caught.value.indices == (2, 3)
        with pytest.raises(ValueKindError) as caught:
            engine.write([(B, 1, 1.0), (A, 5, "x" if kind is not ValueKind.OBJECT else 1.0)])
        assert caught.value.indices == (1,)
        assert_rows(rows_of(engine.query()), before)

    def test_kinds_are_fixed_within_a_call(self) -> None:
        """The first point of a new series fixes its kind for the rest of the call."""
        engine = self.open()
        with pytest.raises(ValueKindError) as caught:
            engine.write([(A, 1, 1.0), (B, 1, "x"), (A, 2, "x"), (B, 2, 1.0), (A, 3, 2)])
        assert caught.value.indices == (2, 3)
        assert list(engine.series()) == []
        engine.write([(A, 1, "x")])
        assert_rows(rows_of(engine.query()), {A: [(1, "x")]})

    def test_one_call_may_hold_every_kind(self) -> None:
        """Points of several kinds go in one call, in any order, and land together."""
        engine = self.open(integers="int")
        receipt = engine.write([(B, 2, True), (A, 2, 0.5), (C, 1, 7), (A, 1, 1.5), (B, 1, "x")])
        assert receipt == WriteReceipt(5, 5)
        expected: Rows = {A: [(1, 1.5), (2, 0.5)], B: [(1, "x"), (2, True)], C: [(1, 7)]}
        assert_rows(rows_of(engine.query()), expected)

    def test_columns_may_come_in_many_forms(self) -> None:
        """Timestamps and values come as arrays of any fitting dtype, or as sequences."""
        engine = self.open()
        moment = dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC)
        nanoseconds = 1_706_702_400_000_000_000
        engine.write_series(A, np.array(["2024-01-31T12:00:00"], "datetime64[s]"), [1.0])
        assert_rows(rows_of(engine.query()), {A: [(nanoseconds, 1.0)]})
        engine.write_series(
            A, [moment, "2024-01-31T12:00:00.000000001Z"], np.array([2, 3], np.float32)
        )
        assert_rows(rows_of(engine.query()), {A: [(nanoseconds, 2.0), (nanoseconds + 1, 3.0)]})
        engine.write_series(B, np.array([3, 1], np.uint32), (1, 2))
        engine.write_series(C, np.array([9, 8, 7, 6])[::2], np.array([1.0, 2.0, 3.0])[::2])
        rows = rows_of(engine.query())
        assert rows[B] == [(1, 2.0), (3, 1.0)]
        assert rows[C] == [(7, 3.0), (9, 1.0)]

    def test_a_batch_holds_many_series(self) -> None:
        """A GroupedBatch stores each group in its series; a group without rows, no series."""
        engine = self.open()
        batch = GroupedBatch(
            [C, B, A],
            np.array([0, 2, 2, 4]),
            np.array([9, 8, 1, 2]),
            np.array([0.1, 0.2, 0.3, 0.4]),
        )
        assert engine.write_batch(batch) == WriteReceipt(4, 4)
        assert list(engine.series()) == [A, C]
        assert_rows(rows_of(engine.query()), {A: [(1, 0.3), (2, 0.4)], C: [(8, 0.2), (9, 0.1)]})

    def test_a_write_of_nothing_does_nothing(self) -> None:
        """Empty calls give an empty receipt and list no series."""
        engine = self.open()
        assert engine.write([]) == WriteReceipt(0, 0)
        assert engine.write_series(A, [], []) == WriteReceipt(0, 0)
        empty = GroupedBatch([A], np.array([0, 0]), np.empty(0, np.int64), np.empty(0))
        assert engine.write_batch(empty) == WriteReceipt(0, 0)
        assert engine.flush_buffer() == WriteReceipt(0, 0)
        assert list(engine.series()) == []

    def test_receipts_count_points_not_changes(self) -> None:
        """A receipt counts what was given, overwrites as well, and is no view of the store."""
        engine = self.open()
        assert engine.write([(A, 1, 1.0), (A, 1, 2.0), (B, 1, 1.0)]) == WriteReceipt(3, 3)
        assert engine.write([(A, 1, 1.0)]) == WriteReceipt(1, 1)
        assert engine.write_series(A, [1, 1], [3.0, 4.0]) == WriteReceipt(2, 2)

    def test_the_limits_of_time_are_stored(self) -> None:
        """The first and the last timestamp are stored, found and told apart from neighbours."""
        engine = self.open()
        times = [1, 2, INT64_MAX - 1, INT64_MAX]
        engine.write([(A, moment, float(index)) for index, moment in enumerate(times)])
        rows = [(moment, float(index)) for index, moment in enumerate(times)]
        assert_rows(rows_of(engine.query()), {A: rows})
        assert_rows(rows_of(engine.query(None, INT64_MAX, RANGE_END_MAX)), {A: rows[3:]})
        assert_rows(rows_of(engine.query(None, INT64_MAX - 1, INT64_MAX)), {A: rows[2:3]})
        assert engine.earliest()[0].timestamp == 1
        assert engine.latest()[0].timestamp == INT64_MAX

    def test_min_timestamp_admits_earlier_points(self) -> None:
        """The option min_timestamp moves the bound of what is valid, to below zero too."""
        engine = self.open(min_timestamp=-(2**63))
        engine.write([(A, -(2**63), 1.0), (A, -1, 2.0), (A, 0, 3.0)])
        assert_rows(rows_of(engine.query()), {A: [(-(2**63), 1.0), (-1, 2.0), (0, 3.0)]})
        assert_rows(rows_of(engine.query(A, -1, 1)), {A: [(-1, 2.0), (0, 3.0)]})
        later = self.open("later", min_timestamp=1_000)
        with pytest.raises(TimestampError, match="999"):
            later.write([(A, 999, 1.0)])
        assert later.timestamp_min == 1_000

    def test_future_max_refuses_points_far_ahead(self) -> None:
        """The option future_max bounds timestamps by the clock at the moment of the write."""
        now = [_T]
        engine = self.open(future_max="1m", clock_ns=lambda: now[0])
        minute = 60_000_000_000
        engine.write([(A, _T + minute, 1.0)])
        with pytest.raises(TimestampError, match=str(_T + minute + 1)) as caught:
            engine.write([(A, 1, 1.0), (A, _T + minute + 1, 1.0)])
        assert caught.value.indices == (1,)
        with pytest.raises(TimestampError) as caught:
            engine.write_series(A, [_T + minute + 1, 1], [1.0, 1.0])
        assert caught.value.indices == (0,)
        now[0] += 1
        engine.write([(A, _T + minute + 1, 1.0)])
        assert engine.count() == 2

    def test_hostile_labels_round_trip(self) -> None:
        """Labels of any text are stored, listed, selected by their ID, and told apart."""
        engine = self.open()
        series = [Labels({text: "v", "n": text}) for text in HOSTILE_TEXTS if text != "n"]
        series += [Labels(text, host=text) for text in HOSTILE_TEXTS]
        series += [Labels(x="y" * length) for length in (470, 500, 511, 512, 2_000, 8_000)]
        series += [Labels(x="y" * 2_000 + tail) for tail in "ab"]
        engine.write([(labels, 1, float(index)) for index, labels in enumerate(series)])
        assert list(engine.series()) == sorted(series, key=lambda labels: labels.id)
        for index, labels in enumerate(series):
            assert_rows(rows_of(engine.query(labels)), {labels: [(1, float(index))]})
            assert labels in list(engine.series(labels.id))
        assert "n" in engine.label_names()
        assert engine.label_values("n") == sorted(set(HOSTILE_TEXTS) - {"n"})

    def test_series_that_share_labels_stay_apart(self) -> None:
        """A series with more labels, or other values, is another series."""
        engine = self.open()
        series = [Labels("m"), Labels("m", a="1"), Labels("m", a="1", b="2"), Labels(a="1")]
        engine.write([(labels, 1, float(index)) for index, labels in enumerate(series)])
        for index, labels in enumerate(series):
            assert_rows(rows_of(engine.query(labels)), {labels: [(1, float(index))]})
        assert engine.count("m") == 3
        assert engine.count('{a="1"}') == 3

    def test_statistics_follow_the_writes(self) -> None:
        """stats() counts points and series and tells when the last write was."""
        engine = self.open()
        engine.write([(A, 1, 1.0), (A, 2, 1.0), (B, 1, 1.0), (A, 1, 2.0)])
        stats = engine.stats()
        assert stats.series == 2
        assert stats.points == 3 if stats.points_exact else stats.points >= 3
        assert stats.last_write_ns is not None
        engine.delete(A)
        assert engine.stats().series == 1

    def test_many_points_of_one_series_and_many_series(self) -> None:
        """Ten thousand points of a series and a thousand series come back complete."""
        engine = self.open()
        count = 10_000
        times = np.arange(1, count + 1, dtype=np.int64) * 3
        shuffled = np.random.default_rng(7).permutation(count)
        values = np.sin(np.arange(count))
        engine.write_series(A, times[shuffled], values[shuffled])
        found = engine.query(A)[0]
        np.testing.assert_array_equal(found.timestamps, times)
        np.testing.assert_array_equal(found.values, values)
        names = [Labels("many", number=str(number)) for number in range(1_000)]
        engine.write([(labels, 5, float(index)) for index, labels in enumerate(names)])
        rows = rows_of(engine.query("many"))
        assert rows == {
            labels: [(5, float(names.index(labels)))]
            for labels in sorted(names, key=lambda labels: labels.id)
        }
