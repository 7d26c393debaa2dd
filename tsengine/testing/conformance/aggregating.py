"""Aggregation: what each function, window, group and fill means, against the oracle."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tsengine.engine import Capability, Engine
from tsengine.errors import AggregationError, RangeError, SelectorError
from tsengine.model import INT64_MAX, INT64_MIN, Labels, SeriesBatch
from tsengine.testing.compare import assert_aggregate, rows_of
from tsengine.testing.conformance.base import A, B, C, ConformanceBase, requires
from tsengine.testing.reference import ReferenceModel
from tsengine.testing.strategies import FUNCTIONS, NUMERIC_FUNCTIONS, TIME_BASE, Point, Selected

_MINUTE = 60_000_000_000

_SERIES = (A, B, C, Labels("cpu", host="c", zone="eu"), Labels(zone="us", host="a"))
_WHOLE = Labels("requests", host="a", zone="eu")

_ASKED: Sequence[dict[str, Any]] = (
    {},
    {"group_by": []},
    {"group_by": ["zone"]},
    {"group_by": ["host", "absent"]},
    {"every": _MINUTE},
    {"every": _MINUTE, "group_by": ["zone"], "origin": 17},
    {"every": 7_777_777_777, "group_by": []},
    {"every": 10 * _MINUTE, "fill": "null", "group_by": ["zone"]},
    {"every": 3 * _MINUTE, "fill": "previous"},
    {"every": 3 * _MINUTE, "fill": "linear", "group_by": ["host"]},
    {"every": 2 * _MINUTE, "fill": -1.5},
    {"every": 2 * _MINUTE, "fill": 3},
    {"every": 10**18},
    {"every": INT64_MAX},
)

_BAD: Sequence[tuple[dict[str, Any], str]] = (
    ({"functions": "mean"}, r"\['mean'"),
    ({"functions": b"mean"}, "sequence"),
    ({"functions": None}, "sequence"),
    ({"functions": 5}, "sequence"),
    ({"functions": [max]}, "sequence"),
    ({"functions": {"mean"}}, "sequence"),
    ({"functions": []}, "count, sum, mean"),
    ({"functions": ["avg"]}, "'avg' is unknown; there are count, sum, mean, min, max"),
    ({"functions": ["mean", "mean"]}, "twice"),
    ({"functions": ["quantile"]}, r"quantile\(0\.95\)"),
    ({"functions": ["quantile()"]}, "unknown"),
    ({"functions": ["quantile(nan)"]}, "unknown"),
    ({"functions": ["quantile(0.5"]}, "unknown"),
    ({"functions": ["quantile(1.01)"]}, "between 0 and 1"),
    ({"functions": ["quantile(-0.1)"]}, "between 0 and 1"),
    ({"every": "0s"}, "duration"),
    ({"every": dt.timedelta(0)}, "duration"),
    ({"every": dt.timedelta(seconds=-5)}, "duration"),
    ({"every": "-5m"}, "duration"),
    ({"every": 300}, "duration"),
    ({"every": 1.5}, "duration"),
    ({"every": "5 minutes"}, "duration"),
    ({"every": "200000w"}, "duration"),
    ({"group_by": "zone"}, r"\['region'\]"),
    ({"group_by": [1]}, "sequence"),
    ({"group_by": [""]}, "empty"),
    ({"group_by": ["a\0"]}, "NUL"),
    ({"group_by": ["zone", "zone"]}, "twice"),
    ({"every": "5m", "origin": 1.5}, "origin"),
    ({"every": "5m", "origin": dt.datetime(2024, 1, 1)}, "origin: naive"),  # noqa: DTZ001
    ({"every": "5m", "fill": "zero"}, "'none', 'null', 'previous', 'linear' or a number"),
    ({"every": "5m", "fill": True}, "fill=True"),
    ({"every": "5m", "fill": None}, "fill=None"),
    ({"every": "5m", "fill": 2**63}, "int64"),
    ({"every": "5m", "fill": [1]}, "fill"),
    ({"fill": "null"}, "every"),
    ({"origin": 5}, "every"),
)


def _filled(engine: Engine, *, seed: int = 3) -> ReferenceModel:
    """Write some commits of overlapping times, NaN among the values, and a series of integers."""
    model = ReferenceModel(integers="int")
    generator = np.random.default_rng(seed)
    for turn in range(6):
        points: list[Point] = []
        for labels in (*_SERIES, _WHOLE):
            times = TIME_BASE + generator.integers(turn, turn + 3, 30) * _MINUTE
            times += generator.integers(0, 50, 30) * 1_000_000_000
            for moment, value in zip(times.tolist(), generator.normal(50, 20, 30), strict=True):
                number: object = round(float(value), 1) if value < 90 else math.nan
                points.append((labels, moment, int(value) if labels is _WHOLE else number))
        engine.write(points)
        model.write(points)
    return model


def _one(engine: Engine, function: str, labels: Labels = A, **asked: Any) -> list[object]:
    """Give the values of one function of one series."""
    [batch] = engine.aggregate(labels, functions=[function], **asked)
    values: list[object] = batch.values.tolist()
    return values


class AggregateConformance(ConformanceBase):
    """What `aggregate` answers."""

    @pytest.mark.parametrize("number", range(len(_ASKED)))
    def test_every_function_agrees_with_the_oracle(self, number: int) -> None:
        """Every function, over each sort of window, group and fill, is what the oracle says."""
        engine = self.open(integers="int")
        model, asked = _filled(engine), _ASKED[number]
        everything = Selected(None, None)
        inside = TIME_BASE + 90_000_000_123, TIME_BASE + 6 * _MINUTE + 1
        for start, end in ((None, None), inside, (None, inside[1]), (inside[0], None)):
            assert_aggregate(engine, model, everything, start, end, functions=FUNCTIONS, **asked)
        engine.compact()
        for function in FUNCTIONS:
            assert_aggregate(engine, model, everything, *inside, functions=[function], **asked)
        engine.delete(A, TIME_BASE + _MINUTE, TIME_BASE + 3 * _MINUTE)
        model.delete(A, TIME_BASE + _MINUTE, TIME_BASE + 3 * _MINUTE)
        engine.write([(A, TIME_BASE + 2 * _MINUTE, 7.0), (B, TIME_BASE + 4 * _MINUTE, 8.0)])
        model.write([(A, TIME_BASE + 2 * _MINUTE, 7.0), (B, TIME_BASE + 4 * _MINUTE, 8.0)])
        assert_aggregate(engine, model, everything, functions=FUNCTIONS, **asked)

    def test_windows_are_aligned_to_an_origin(self) -> None:
        """Windows are [origin + k·every, …), told by their starts, cut off by the range."""
        engine = self.open()
        engine.write([(A, moment, 1.0) for moment in (1, 9, 10, 11, 25, 30)])
        asked: dict[str, Any] = {"functions": ["count"], "every": "10ns"}
        [batch] = engine.aggregate(A, **asked)
        assert batch.timestamps.tolist() == [0, 10, 20, 30]
        assert batch.values.tolist() == [2, 2, 1, 1]
        [batch] = engine.aggregate(A, 9, 30, **asked, origin=25)
        assert batch.timestamps.tolist() == [5, 25]
        assert batch.values.tolist() == [3, 1]
        [batch] = engine.aggregate(A, 9, 30, **asked, origin="1970-01-01T00:00:01.000000005Z")
        assert batch.timestamps.tolist() == [5, 25]
        [batch] = engine.aggregate(A, 11, 12, functions=["sum"], every=dt.timedelta(days=9))
        assert rows_of([batch]) == {A: [(0, 1.0)]}

    def test_the_whole_range_is_one_window(self) -> None:
        """Without `every` there is one row a group, at the start or the group's first point."""
        engine = self.open()
        engine.write([(A, 5, 1.0), (A, 6, 3.0), (B, 9, 5.0)])
        assert rows_of(engine.aggregate(functions=["mean"])) == {A: [(5, 2.0)], B: [(9, 5.0)]}
        assert rows_of(engine.aggregate(None, 2, functions=["mean"])) == {
            A: [(2, 2.0)],
            B: [(2, 5.0)],
        }
        assert rows_of(engine.aggregate(functions=["mean"], group_by=[])) == {Labels(): [(5, 3.0)]}

    def test_groups_merge_series(self) -> None:
        """Series of equal values of the named labels merge; a label that is lacking is a value."""
        engine = self.open()
        others = [Labels("cpu", zone="eu", host="x"), Labels("cpu", zone="us")]
        engine.write([(labels, 5, 1.0) for labels in (A, B, C, *others)])
        found = rows_of(engine.aggregate(functions=["count"], group_by=["zone"]))
        assert found == {
            Labels(zone="eu"): [(5, 2)],
            Labels(zone="us"): [(5, 1)],
            Labels(): [(5, 2)],
        }
        found = rows_of(engine.aggregate(functions=["count"], group_by=["no such label"]))
        assert found == {Labels(): [(5, 5)]}

    def test_several_functions_have_names(self) -> None:
        """Several functions are told apart by `__function__`, and come by series ID; one is not."""
        engine = self.open()
        engine.write([(A, 5, 1.0), (A, 6, 3.0)])
        [batch] = engine.aggregate(A, functions=["max"])
        assert batch.labels is A
        result = engine.aggregate(A, functions=["min", "max", "quantile(0.50)"])
        assert rows_of(result) == {
            Labels(**A, __function__="max"): [(5, 3.0)],
            Labels(**A, __function__="min"): [(5, 1.0)],
            Labels(**A, __function__="quantile(0.50)"): [(5, 2.0)],
        }
        named = Labels("x", __function__="own")
        engine.write([(named, 5, 1.0)])
        assert rows_of(engine.aggregate(named, functions=["max"])) == {named: [(5, 1.0)]}
        with pytest.raises(AggregationError, match="__function__"):
            engine.aggregate(named, functions=["max", "min"])

    def test_nan_is_left_out_but_for_count_first_and_last(self) -> None:
        """NaN counts as a row, is a first and a last value, and for all else is not there."""
        engine = self.open()
        nan = math.nan
        values = (nan, 4.0, nan, 1.0, 7.0, nan)
        engine.write([(A, (1 + place) * 10**9, value) for place, value in enumerate(values)])
        engine.write([(B, 10**9, nan), (B, 2 * 10**9, nan)])
        expected = {
            "count": 6, "first": nan, "last": nan, "sum": 12.0, "mean": 4.0, "min": 1.0,
            "max": 7.0, "range": 6.0, "variance": 9.0, "stddev": 3.0, "median": 4.0,
            "quantile(1)": 7.0, "delta": 3.0, "increase": 7.0, "rate": 7.0 / 3.0,
        }  # fmt: skip
        for function, value in expected.items():
            [found] = _one(engine, function)
            assert repr(found) == repr(value), function
            [found] = _one(engine, function, B)
            assert repr(found) == ("2" if function == "count" else "nan"), function
            # The same NaN everywhere: what 0/0 gives has a sign on some processors.
            assert not isinstance(found, float) or math.copysign(1.0, found) == 1.0, function

    def test_infinities_are_values(self) -> None:
        """Infinities add and compare as IEEE 754 says."""
        engine = self.open()
        engine.write([(A, 1, math.inf), (A, 2, 1.0), (B, 1, math.inf), (B, 2, -math.inf)])
        for function, value, both in (
            ("sum", math.inf, math.nan),
            ("mean", math.inf, math.nan),
            ("max", math.inf, math.inf),
            ("min", 1.0, -math.inf),
            ("range", math.inf, math.inf),
            ("quantile(0)", 1.0, -math.inf),
        ):
            assert repr(_one(engine, function)) == repr([value]), function
            assert repr(_one(engine, function, B)) == repr([both]), function

    def test_counters_reset_as_in_prometheus(self) -> None:
        """A fall is a reset to zero: what was there before it is added, within the window."""
        engine = self.open()
        values = (5.0, 8.0, 2.0, 3.0, 1.0, 4.0)
        engine.write([(A, place * 10**9 + 1, value) for place, value in enumerate(values)])
        assert _one(engine, "delta") == [-1.0]
        assert _one(engine, "increase") == [10.0]
        assert _one(engine, "rate") == [2.0]
        assert _one(engine, "increase", every="2s") == [3.0, 1.0, 3.0]
        assert _one(engine, "rate", every="2s") == [3.0, 1.0, 3.0]
        assert repr(_one(engine, "rate", every="1s")) == repr([math.nan] * 6)
        assert _one(engine, "increase", every="1s") == [0.0] * 6

    def test_counters_of_a_group_add_up(self) -> None:
        """In a merged group each series is a counter of its own, and their gains add up."""
        engine = self.open()
        engine.write([(A, 1, 100.0), (A, 10**9 + 1, 104.0), (B, 2, 3.0), (B, 10**9 + 2, 1.0)])
        engine.write([(Labels("cpu", host="once"), 5, 9.0)])
        for function, value in (("delta", 2.0), ("increase", 5.0), ("rate", 5.0)):
            assert rows_of(engine.aggregate("cpu", functions=[function], group_by=[])) == {
                Labels(): [(1, value)]
            }

    def test_ties_go_by_series_id(self) -> None:
        """Of rows at one time in a group the first is of the lowest series ID, the last highest."""
        engine = self.open()
        engine.write([(B, 5, 2.0), (C, 5, 3.0)])
        engine.write([(A, 5, 1.0)])
        result = engine.aggregate(functions=["first", "last"], group_by=[])
        assert [batch.values.tolist() for batch in result] == [[1.0], [3.0]]

    def test_integers_stay_exact(self) -> None:
        """Sums, extremes and ranges of int series are int64, exact, or refused beyond it."""
        engine = self.open(integers="int")
        big = 2**62 + 1
        engine.write([(A, 1, big), (A, 2, big - 2), (A, 3, -5), (B, 1, big), (B, 2, big)])
        engine.write([(C, 1, INT64_MIN), (C, 2, INT64_MAX)])
        assert _one(engine, "sum") == [2**63 - 5]
        assert _one(engine, "min") == [-5]
        assert _one(engine, "range") == [2**62 + 6]
        assert _one(engine, "sum", C) == [-1]
        assert _one(engine, "mean", B) == [float(big)]
        assert _one(engine, "mean", C) == [-0.5]
        for labels, function in ((B, "sum"), (C, "range")):
            with pytest.raises(AggregationError, match=rf"{function} of .* does not fit int64"):
                engine.aggregate(labels, functions=[function])
        assert _one(engine, "sum", B, every="1ns") == [big, big]

    def test_kinds_in_one_group(self) -> None:
        """Ints and floats make floats; objects count, and are refused beside numbers."""
        engine = self.open(integers="int")
        engine.write([(A, 1, 2), (B, 2, 0.5), (C, 3, {"a": 1}), (C, 4, ["x"])])
        found = rows_of(engine.aggregate("cpu", functions=["sum"], group_by=[]))
        assert found == {Labels(): [(1, 2.5)]}
        [batch] = engine.aggregate("cpu", functions=["last"], every="10ns", group_by=[])
        assert batch.values.tolist() == [0.5]
        assert batch.values.dtype == np.float64
        assert rows_of(engine.aggregate(functions=["count"], group_by=[])) == {Labels(): [(1, 4)]}
        with pytest.raises(AggregationError, match="objects and numbers"):
            engine.aggregate(functions=["count", "last"], group_by=[])
        assert _one(engine, "first", C) == [{"a": 1}]
        assert _one(engine, "last", C) == [["x"]]
        for function in NUMERIC_FUNCTIONS:
            with pytest.raises(AggregationError, match=r"memory.* holds objects"):
                engine.aggregate(C, functions=["count", function])

    def test_what_stands_in_empty_windows(self) -> None:
        """Empty windows are left out, or filled as asked; the grid is that of the range."""
        engine = self.open(integers="int")
        engine.write([(A, 11, 2.0), (A, 41, 8.0), (B, 11, 2), (B, 31, 7), (C, 11, "a")])
        nan = math.nan
        cases: tuple[tuple[Labels, str, Any, list[object]], ...] = (
            (A, "sum", "null", [nan, 2.0, nan, nan, 8.0, nan]),
            (A, "sum", "previous", [nan, 2.0, 2.0, 2.0, 8.0, 8.0]),
            (A, "sum", "linear", [nan, 2.0, 4.0, 6.0, 8.0, nan]),
            (A, "sum", 1, [1.0, 2.0, 1.0, 1.0, 8.0, 1.0]),
            (A, "count", "linear", [0, 1, 0, 0, 1, 0]),
            (B, "max", "null", [nan, 2.0, nan, 7.0, nan, nan]),
            (B, "max", 0, [0, 2, 0, 7, 0, 0]),
            (B, "max", 0.5, [0.5, 2.0, 0.5, 7.0, 0.5, 0.5]),
            (C, "first", "null", [None, "a", None, None, None, None]),
            (C, "first", "previous", [None, "a", "a", "a", "a", "a"]),
        )
        for labels, function, fill, values in cases:
            asked: dict[str, Any] = {"functions": [function], "every": "10ns"}
            [batch] = engine.aggregate(labels, 5, 51, **asked, fill=fill)
            assert batch.timestamps.tolist() == [0, 10, 20, 30, 40, 50]
            assert repr(batch.values.tolist()) == repr(values), (function, fill)
            bare: SeriesBatch = engine.aggregate(labels, **asked, fill=fill)[0]
            assert bare.timestamps[0] == 10
        with pytest.raises(AggregationError, match="objects"):
            engine.aggregate(C, functions=["last"], every="10ns", fill="linear")
        with pytest.raises(AggregationError, match="objects"):
            engine.aggregate(C, functions=["last"], every="10ns", fill=0)

    def test_filled_windows_are_bounded(self) -> None:
        """A grid that would fill memory is refused; without fill it costs nothing."""
        engine = self.open()
        engine.write([(A, 1, 2.0), (A, INT64_MAX, 8.0)])
        with pytest.raises(AggregationError, match="16,777,216 windows"):
            engine.aggregate(A, functions=["sum"], every="1s", fill="null")
        assert _one(engine, "sum", every="1s") == [2.0, 8.0]

    def test_what_is_empty_is_answered(self) -> None:
        """No series, no rows in range and ranges of zero width give an empty result."""
        engine = self.open()
        asked: dict[str, Any] = {"functions": ["mean", "count"]}
        assert len(engine.aggregate(**asked)) == 0
        engine.write([(A, 5, 1.0)])
        for start, end in ((5, 5), (6, None), (None, 5)):
            assert len(engine.aggregate(A, start, end, **asked)) == 0
            assert len(engine.aggregate(A, start, end, **asked, every="1s", fill=0)) == 0
        assert len(engine.aggregate("nothing", **asked)) == 0
        assert len(engine.aggregate(B, **asked)) == 0

    @pytest.mark.parametrize("number", range(len(_BAD)))
    def test_a_bad_aggregation_is_refused(self, number: int) -> None:
        """What makes no sense is a typed error that names it and says what would."""
        engine = self.open()
        asked, said = _BAD[number]
        with pytest.raises(AggregationError, match=said):
            engine.aggregate(**{"functions": ["mean"], **asked})
        with pytest.raises(AggregationError, match=said):
            engine.aggregate(A, 5, 5, **{"functions": ["mean"], **asked})

    def test_a_bad_selection_is_refused(self) -> None:
        """Selector and range are judged as by query."""
        engine = self.open()
        with pytest.raises(SelectorError):
            engine.aggregate("{", functions=["mean"])
        with pytest.raises(RangeError):
            engine.aggregate(None, 5, 4, functions=["mean"])

    @pytest.mark.parametrize("every", [None, 1, 3, 10**9, 2**62, INT64_MAX])
    def test_the_limits_of_time_have_windows(self, every: int | None) -> None:
        """Windows reach from the first int64, where one may begin earlier, to the last."""
        engine = self.open(min_timestamp=INT64_MIN)
        model = ReferenceModel(min_timestamp=INT64_MIN)
        limits = (INT64_MIN, INT64_MIN + 1, -2, 0, 1, INT64_MAX - 1, INT64_MAX)
        points: list[Point] = [(A, moment, float(place)) for place, moment in enumerate(limits)]
        engine.write(points)
        model.write(points)
        for origin in (0, 2, INT64_MIN, INT64_MAX) if every else (0,):
            asked: dict[str, Any] = {"origin": origin} if every else {}
            everything = Selected(A, A)
            assert_aggregate(engine, model, everything, every=every, functions=FUNCTIONS, **asked)

    def test_results_of_aggregation_belong_to_the_caller(self) -> None:
        """Columns may be written to, without a change in any other column or answer."""
        engine = self.open()
        engine.write([(A, moment, float(moment)) for moment in range(1, 50)])
        asked: dict[str, Any] = {"functions": ["first", "max"], "every": "10ns"}
        before = rows_of(engine.aggregate(A, **asked))
        one, other = engine.aggregate(A, **asked)
        one.timestamps[:] = 0
        one.values[:] = 0.0
        assert other.timestamps.tolist() == [0, 10, 20, 30, 40]
        assert rows_of(engine.aggregate(A, **asked)) == before

    @requires(Capability.RETENTION)
    def test_expired_points_are_not_aggregated(self) -> None:
        """Retention cuts windows to the nanosecond, as it cuts queries."""
        now = TIME_BASE
        engine = self.open(retention="100ns", clock_ns=lambda: now)
        model = ReferenceModel(retention=100, clock_ns=lambda: now)
        points: list[Point] = [(A, TIME_BASE - age, float(age)) for age in range(0, 99, 3)]
        engine.write(points)
        model.write(points)
        engine.compact()
        for step in (0, 1, 2, 50):
            now = TIME_BASE + step
            for every in (None, 10, 64):
                assert_aggregate(engine, model, every=every, functions=FUNCTIONS)
