"""Reads: ranges, selectors, order, snapshots."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest

from tsengine.engine import Engine
from tsengine.model import INT64_MAX, INT64_MIN, RANGE_END_MAX, DataPoint, Labels
from tsengine.result import QueryResult
from tsengine.selectors import Matcher, MatchOperator
from tsengine.testing.compare import assert_range, assert_same, rows_of
from tsengine.testing.conformance.base import A, B, C, ConformanceBase
from tsengine.testing.reference import ReferenceModel
from tsengine.testing.strategies import TIME_BASE, Point, Selected

_SERIES = (
    A,
    B,
    C,
    Labels("cpu", host="c", zone="eu"),
    Labels("cpu", host="a|b"),
    Labels("cpu"),
    Labels(host="a"),
    Labels("CPU", host="a\nb"),
    Labels("é", host=".*"),
    Labels({"odd name": "x", "host": '"'}),
)

_SELECTIONS = (
    Selected(None, None),
    Selected([], "{}"),
    Selected([], {}),
    Selected([], []),
    Selected([("__name__", "=", "cpu")], "cpu"),
    Selected({"host": "a"}, {"host": "a"}),
    Selected({"host": "a"}, '{host="a"}'),
    Selected({"host": ""}, {"host": ""}),
    Selected([("host", "!=", "")], '{host!=""}'),
    Selected([("zone", "!=", "eu")], '{zone!="eu"}'),
    Selected([("zone", "=~", "eu|")], '{zone=~"eu|"}'),
    Selected([("zone", "!~", ".+")], '{zone!~".+"}'),
    Selected([("host", "=~", "a|b")], '{host=~"a|b"}'),
    Selected([("host", "=~", "a.b")], '{host=~"a.b"}'),
    Selected([("host", "=~", "[ab]"), ("__name__", "=", "cpu")], 'cpu{host=~"[ab]"}'),
    Selected([("odd name", "=", "x")], '{"odd name"="x"}'),
    Selected([("__name__", "=", "é")], '{"é"}'),
    Selected([("none", "=", "x")], '{none="x"}'),
    Selected([("host", "=", "a"), ("host", "!=", "a")], '{host="a",host!="a"}'),
    Selected([("__name__", "=~", "c.*")], Matcher("__name__", MatchOperator.MATCHES, "c.*")),
    *(Selected(labels, labels) for labels in _SERIES),
)


def _filled(engine: Engine) -> ReferenceModel:
    model = ReferenceModel()
    points: list[Point] = [
        (labels, moment, float(moment + index))
        for index, labels in enumerate(_SERIES)
        for moment in (1, 5, 6, 7, 100, TIME_BASE, INT64_MAX)
    ]
    engine.write(points)
    model.write(points)
    return model


class ReadConformance(ConformanceBase):
    """What reads answer, and from when."""

    @pytest.mark.parametrize("number", range(len(_SELECTIONS)))
    def test_selectors_select(self, number: int) -> None:
        """Every form of selector selects the series that the rules of Prometheus say."""
        engine = self.open()
        model = _filled(engine)
        selected = _SELECTIONS[number]
        assert_range(engine, model, selected)
        assert_range(engine, model, selected, 6, 101)
        assert list(engine.series(selected.engine)) == model.series(selected.model)
        assert engine.latest(selected.engine) == model.latest(selected.model)
        assert engine.earliest(selected.engine) == model.earliest(selected.model)

    @pytest.mark.parametrize(
        ("start", "end"),
        [
            (None, None),
            (5, 7),
            (5, 5),
            (6, 7),
            (2, 5),
            (7, None),
            (None, 7),
            (8, 100),
            (0, 1),
            (101, TIME_BASE + 1),
            (INT64_MIN, RANGE_END_MAX),
            (INT64_MAX, RANGE_END_MAX),
            (INT64_MAX, INT64_MAX),
            (RANGE_END_MAX, RANGE_END_MAX),
            (RANGE_END_MAX, None),
            (None, INT64_MIN),
        ],
    )
    def test_ranges_are_half_open(self, start: int | None, end: int | None) -> None:
        """A range takes its start, leaves its end, and None leaves nothing out."""
        engine = self.open()
        model = _filled(engine)
        assert_range(engine, model, Selected(None, None), start, end)
        assert_range(engine, model, Selected(A, A), start, end)

    def test_bounds_convert(self) -> None:
        """Bounds are whatever `tsengine.timestamp` takes."""
        engine = self.open()
        moment = dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC)
        nanoseconds = 1_706_702_400_000_000_000
        engine.write([(A, nanoseconds + step, float(step)) for step in range(3)])
        for start in (
            moment,
            "2024-01-31T12:00:00Z",
            np.datetime64("2024-01-31T12:00"),
            nanoseconds,
        ):
            assert engine.count(A, start) == 3
            assert engine.count(A, None, start) == 0
            assert engine.count(A, np.int64(nanoseconds + 1), None) == 2
            assert len(engine.query(A, start)) == 1
            assert sum(map(len, engine.scan(A, start))) == 3

    def test_a_query_is_a_sequence(self) -> None:
        """A QueryResult has a length, indexes and iterates, again and again."""
        engine = self.open()
        _filled(engine)
        result = engine.query("cpu", 1, 6)
        assert isinstance(result, QueryResult)
        assert len(result) == len(list(result)) == len(list(result)) == len(result.labels) == 5
        assert result[0].labels is result.labels[0]
        assert result.rows == 10
        assert [batch.labels for batch in result[1:]] == result.labels[1:]

    def test_results_are_ordered_by_series_id(self) -> None:
        """query, scan, series, earliest and latest go by series ID, rows by time."""
        engine = self.open()
        _filled(engine)
        in_order = sorted(_SERIES, key=lambda labels: labels.id)
        assert list(engine.series()) == in_order
        assert engine.query().labels == in_order
        assert list(rows_of(engine.scan(), joined=False)) == in_order
        assert [point.labels for point in engine.latest()] == in_order
        assert [point.labels for point in engine.earliest()] == in_order

    def test_edges_are_points(self) -> None:
        """Edges are DataPoints with Python values, one per series with rows."""
        engine = self.open(integers="int")
        engine.write([(A, 1, 1.0), (A, 9, 2.0), (B, 5, 3), (C, 7, [True])])
        engine.delete(B, 5, 6)
        assert engine.earliest() == [DataPoint(A, 1, 1.0), DataPoint(C, 7, [True])]
        assert engine.latest() == [DataPoint(A, 9, 2.0), DataPoint(C, 7, [True])]
        point = engine.latest(A)[0]
        assert isinstance(point, DataPoint)
        assert (type(point.timestamp), type(point.value)) == (int, float)

    def test_listings_know_every_label(self) -> None:
        """series, label_names and label_values list all series, those without rows too."""
        engine = self.open()
        model = _filled(engine)
        engine.delete("cpu", 0)
        model.delete([("__name__", "=", "cpu")], 0)
        assert_same(engine, model)
        assert engine.label_names() == ["__name__", "host", "odd name", "zone"]
        assert engine.label_values("zone") == ["eu"]
        assert engine.label_values("none") == []
        assert next(iter(engine.series("memory"))) is C

    def test_a_scan_keeps_its_snapshot(self) -> None:
        """A scan under way sees no write, delete or new series of later, whoever makes it."""
        engine = self.open()
        engine.write([(labels, moment, 1.0) for labels in (A, B, C) for moment in (1, 2, 3)])
        before = rows_of(engine.query())
        scan = engine.scan()
        first = next(scan)
        engine.write([(labels, 2, 9.0) for labels in (A, B, C)])
        engine.write([(B, 4, 1.0), (Labels("between", z="z"), 1, 1.0)])
        engine.delete(C)
        engine.delete(B, 1, 3)
        engine.write([(C, 1, "another kind")])
        engine.compact()
        assert rows_of([first, *scan], joined=False) == before
        after = rows_of(engine.query())
        assert after[A] == [(1, 1.0), (2, 9.0), (3, 1.0)]
        assert after[B] == [(3, 1.0), (4, 1.0)]
        assert after[C] == [(1, "another kind")]

    def test_a_query_keeps_its_rows(self) -> None:
        """A result in hand does not change with later writes and deletes."""
        engine = self.open()
        engine.write([(labels, moment, 1.0) for labels in (A, B) for moment in (1, 2, 3)])
        result = engine.query()
        before = rows_of(result)
        engine.write([(A, 2, 9.0), (A, 4, 9.0), (B, 1, 9.0)])
        engine.delete(B)
        engine.compact()
        assert rows_of(result) == before

    def test_scans_may_be_left(self) -> None:
        """A scan may be closed or dropped half way, and several run side by side."""
        engine = self.open()
        _filled(engine)
        left = engine.scan()
        next(left)
        left.close()  # type: ignore[attr-defined]  # closing gives the snapshot back early
        dropped = engine.scan()
        next(dropped)
        del dropped
        one, other = engine.scan(), engine.scan("cpu")
        read = [next(one), next(other), *one, *other]
        assert sum(map(len, read)) == engine.count() + engine.count("cpu")
        engine.write([(A, 3, 1.0)])

    def test_a_long_series_scans_in_order(self) -> None:
        """A series of many commits scans in order of time, complete, in any number of batches."""
        engine = self.open()
        model = ReferenceModel()
        generator = np.random.default_rng(11)
        for _ in range(20):
            times = generator.integers(1, 5_000, 300)
            points: list[Point] = [(A, int(moment), float(moment % 7)) for moment in times]
            engine.write(points)
            model.write(points)
        assert_range(engine, model)
        for start in range(0, 5_000, 617):
            assert_range(engine, model, Selected(A, A), start, start + 500)

    def test_compact_and_check_change_no_answer(self) -> None:
        """compact() reports what it did, check() finds nothing, and reads stay as they were."""
        engine = self.open()
        model = _filled(engine)
        engine.delete(A, 5, 7)
        model.delete(A, 5, 7)
        report = engine.compact()
        assert report.bytes_after >= 0
        assert report.bytes_before >= 0
        engine.check()
        assert_same(engine, model)
