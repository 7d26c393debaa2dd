"""Aggregation against pandas, an oracle that nobody here has written."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsengine.aggregation import (
    Collector,
    aggregate_batches,
    aggregation,
    cut,
    cut_regular,
    cut_rows,
)
from tsengine.aggregation.ordered import quantiles_of
from tsengine.aggregation.partials import Partials, add_segments, concatenate, fold, measure
from tsengine.aggregation.windows import window_of
from tsengine.backends.memory import MemoryEngine
from tsengine.errors import AggregationError
from tsengine.model import INT64_MAX, INT64_MIN, Labels, SeriesBatch, ValueKind
from tsengine.testing.reference_aggregates import Near, aggregate_rows
from tsengine.testing.strategies import FUNCTIONS

NAMES = [Labels("cpu", host=host, **zone) for host in "ab" for zone in ({}, {"zone": "eu"})]
SECOND = 10**9

numbers = st.one_of(
    st.floats(-1e6, 1e6), st.integers(-9, 9).map(float), st.sampled_from((math.nan, 1e15, 1e-9))
)
moments = st.integers(0, 300).map(lambda step: 1 + step * SECOND // 3)
written = st.lists(
    st.tuples(st.sampled_from(NAMES), moments, numbers),
    min_size=1,
    max_size=60,
    unique_by=lambda row: row[:2],
)


def long_frame(points: list[tuple[Labels, int, float]], length: int, grouped: str) -> pd.DataFrame:
    """Give points as a frame, by time and series ID, with the group and the window of each."""
    rows = [
        (
            labels.id,
            name_of(labels, grouped),
            moment // length * length,
            moment,
            value,
        )
        for labels, moment, value in points
    ]
    frame = pd.DataFrame(rows, columns=["series", "key", "window", "moment", "value"])
    return frame.sort_values(["moment", "series"], ignore_index=True)


def name_of(labels: Labels, grouped: str) -> str:
    """Give what stands for the group of a series, or for a group itself."""
    if grouped == "series":
        return labels.id
    return labels.get("zone", "") if grouped == "zone" else ""


def by_pandas(frame: pd.DataFrame, function: str) -> dict[tuple[str, int], float]:
    """Work a function out of each group and window with what pandas has for it."""
    groups: Any = frame.groupby(["key", "window"])
    values = groups["value"]
    if function == "count":
        found = groups.size()
    elif function in ("first", "last"):
        found = values.agg(lambda of: of.iloc[0 if function == "first" else -1])
    elif function == "sum":
        found = values.sum(min_count=1)
    elif function == "range":
        found = values.max() - values.min()
    elif function.startswith("quantile"):
        found = values.quantile(float(function[9:-1]))
    elif function in ("delta", "increase", "rate"):
        found = groups.apply(
            lambda group: pd.Series(
                [gain(one, function) for _, one in group.groupby("series")]
            ).sum(min_count=1)
        )
    else:
        names = {"variance": "var", "stddev": "std"}
        found = getattr(values, names.get(function, function))()
    return {key: float(value) for key, value in found.items()}


def gain(one: pd.DataFrame, function: str) -> float:
    """Give delta, increase or rate of one series in one window."""
    one = one.dropna(subset="value").sort_values("moment")
    if one.empty:
        return math.nan
    steps = one["value"].diff()
    if function == "delta":
        return float(one["value"].iloc[-1] - one["value"].iloc[0])
    increase = float(steps.where(steps >= 0, one["value"]).iloc[1:].sum())
    if function == "increase":
        return increase
    seconds = (one["moment"].iloc[-1] - one["moment"].iloc[0]) / 1e9
    return increase / seconds if seconds else math.nan


@settings(max_examples=120)
@given(
    points=written,
    every=st.sampled_from(("1s", "7s", "20s", "10m")),
    function=st.sampled_from(FUNCTIONS),
    grouped=st.sampled_from(("series", "zone", "all")),
)
def test_functions_agree_with_pandas(
    points: list[tuple[Labels, int, float]], every: str, function: str, grouped: str
) -> None:
    """Every function of windows and groups is what pandas makes of the same rows."""
    group_by = {"series": None, "zone": ["zone"], "all": []}[grouped]
    with MemoryEngine() as engine:
        engine.write(points)
        result = engine.aggregate(functions=[function], every=every, group_by=group_by)
    expected = by_pandas(long_frame(points, pd.Timedelta(every).value, grouped), function)
    found = {
        (name_of(batch.labels, grouped), moment): float(value)
        for batch in result
        for moment, value in zip(batch.timestamps.tolist(), batch.values.tolist(), strict=True)
    }
    assert found.keys() == expected.keys()
    # pandas adds without care; a variance of 1e15 and -9 has few digits in common.
    scale = max((abs(value) for _, _, value in points if value == value), default=1.0)
    loose = {"variance": scale * scale, "stddev": scale}.get(function, scale)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-9, abs=1e-7 * loose, nan_ok=True), key


@settings(max_examples=60)
@given(points=written, every=st.sampled_from(("2s", "9s")), fill=st.sampled_from(("null", 5.0)))
def test_filling_agrees_with_resampling(
    points: list[tuple[Labels, int, float]], every: str, fill: Any
) -> None:
    """A filled grid of one series is that of pandas' resample, from first row to last."""
    labels = points[0][0]
    own = sorted((moment, value) for of, moment, value in points if of is labels)
    with MemoryEngine() as engine:
        engine.write(points)
        [batch] = engine.aggregate(labels, functions=["max"], every=every, fill=fill)
    series = pd.Series(
        [value for _, value in own], pd.to_datetime([moment for moment, _ in own], unit="ns")
    )
    resampled = series.resample(every, origin="epoch")
    expected = resampled.max()
    if fill == 5.0:
        expected = expected.where(resampled.size() > 0, 5.0)
    assert batch.timestamps.tolist() == expected.index.astype("datetime64[ns]").astype(int).tolist()
    np.testing.assert_array_equal(batch.values, expected.to_numpy())


limits = st.one_of(
    st.integers(-50, 50),
    st.sampled_from((INT64_MIN, INT64_MIN + 1, INT64_MAX - 1, INT64_MAX)),
    st.integers(INT64_MIN, INT64_MAX),
)
lengths = st.one_of(st.integers(1, 20), st.sampled_from((2**40, 2**62, INT64_MAX)))


def windows_one_by_one(times: list[int], every: int, phase: int) -> tuple[list[int], list[int]]:
    """Cut in plain Python."""
    starts = [max(window_of(moment, every, phase), INT64_MIN) for moment in times]
    begins = [row for row in range(len(times)) if not row or starts[row] != starts[row - 1]]
    return begins, [starts[row] for row in begins]


@given(times=st.sets(limits, min_size=1, max_size=20).map(sorted), every=lengths, phase=lengths)
def test_cutting_is_what_floor_division_says(times: list[int], every: int, phase: int) -> None:
    """Rows are cut where the window changes, however that is found, to the ends of int64."""
    phase %= every
    expected = windows_one_by_one(times, every, phase)
    column = np.array(times, np.int64)
    for starts, windows in (
        cut(column, every, phase),
        cut_rows(column, np.array([0, len(times)]), every, phase),
    ):
        assert (starts.tolist(), windows.tolist()) == expected


@given(
    first=limits,
    step=st.one_of(st.integers(1, 30), st.sampled_from((2**40, 2**61, 2**62))),
    rows=st.integers(1, 40),
    every=lengths,
    phase=lengths,
)
def test_regular_times_are_cut_without_a_look_at_each(
    first: int, step: int, rows: int, every: int, phase: int
) -> None:
    """Regular rows are cut as if they were listed."""
    rows = min(rows, (INT64_MAX - first) // step + 1)
    phase %= every
    times = [first + step * row for row in range(rows)]
    starts, windows = cut_regular(first, step, rows, every, phase)
    assert (starts.tolist(), windows.tolist()) == windows_one_by_one(times, every, phase)


@given(
    segments=st.lists(
        st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=70), min_size=1, max_size=5
    )
)
def test_partial_sums_keep_what_rounding_takes(segments: list[list[float]]) -> None:
    """Sums of partial sums are as good as exact, in few long segments and in many short ones."""
    totals = np.array(list(itertools.chain.from_iterable(segments)))
    starts = np.cumsum([0, *map(len, segments)])[:-1]
    with np.errstate(all="ignore"):
        high, low = add_segments(totals, np.zeros(len(totals)), starts)
    for terms, total, error in zip(segments, high.tolist(), low.tolist(), strict=True):
        exact = math.fsum(terms)
        slack = 2**-50 * abs(exact) + 2**-100 * sum(map(abs, terms))
        assert total + error == pytest.approx(exact, rel=0, abs=slack)


def test_long_sums_do_not_drift() -> None:
    """A million tenths in a thousand commits' worth of parts sum to the last digit or so."""
    values = np.full(1_000_000, 0.1)
    parts = [
        Partials(
            np.zeros(1, np.int64),
            np.zeros(1, np.int64),
            measure(ValueKind.FLOAT, values[first : first + 1_000], np.zeros(1, np.int64), {"sum"}),
        )
        for first in range(0, len(values), 1_000)
    ]
    table = parts[0]
    for part in parts[1:]:
        table = fold(concatenate([table, part]))
    total = float(table.statistics["sum"][0] + table.statistics["error"][0])
    assert abs(total - math.fsum(values.tolist())) <= 2e-11


@given(
    segments=st.lists(
        st.lists(st.floats(allow_nan=False), min_size=1, max_size=9), min_size=1, max_size=5
    ),
    repeats=st.sampled_from((1, 1, 40)),
    quantile=st.sampled_from((0.0, 0.25, 0.5, 0.95, 1.0)),
)
def test_quantiles_agree_with_numpy(
    segments: list[list[float]], repeats: int, quantile: float
) -> None:
    """Quantiles of segments of one length and of several are numpy's, where these are finite."""
    segments = [segment * repeats for segment in segments]
    values = np.array(list(itertools.chain.from_iterable(segments)))
    counts = np.array([len(segment) for segment in segments])
    with np.errstate(all="ignore"):
        [found] = quantiles_of(values, counts, np.array([quantile]))
        for segment, value in zip(segments, found.tolist(), strict=True):
            expected = float(np.quantile(segment, quantile))
            if math.isfinite(expected):
                size = max((abs(one) for one in segment if math.isfinite(one)), default=1.0)
                assert value == pytest.approx(expected, rel=1e-12, abs=1e-14 * size)


def test_memory_goes_by_windows() -> None:
    """A scan of very many batches leaves a table of as many rows as there are windows."""
    asked = aggregation(["sum", "last"], INT64_MIN, INT64_MAX, every="1s")
    collector = Collector()
    rows = 3_000
    for _ in range(200):
        zeros = np.zeros(rows, np.int64)
        measured = measure(ValueKind.FLOAT, np.ones(rows), np.arange(rows), asked.needs)
        measured |= {"last_at": np.arange(rows), "last_rank": zeros}
        collector.add(ValueKind.FLOAT, Partials(zeros, np.arange(rows), measured))
        assert collector.rows <= 1 << 16
    table = collector.tables()[ValueKind.FLOAT]
    assert table.statistics["sum"].tolist() == [200.0] * rows


def test_no_room_for_the_label_of_functions() -> None:
    """A series whose labels are as long as labels may be has one function at a time."""
    labels = Labels("x", a="y" * 8_170)
    with MemoryEngine() as engine:
        engine.write([(labels, 1, 1.0)])
        [batch] = engine.aggregate(labels, functions=["max"])
        assert batch.labels is labels
        with pytest.raises(AggregationError, match="__function__"):
            engine.aggregate(labels, functions=["max", "min"])


# The oracle of the kit, against cases worked out by hand.


def test_the_oracle_counts_windows_and_groups() -> None:
    """The naive aggregation gives windows by their starts, groups by their labels."""
    a, b = Labels("cpu", host="a"), Labels("cpu", host="b")
    series = {a: [(1, 1.0), (12, 3.0)], b: [(2, 5.0), (13, math.nan)]}
    found = aggregate_rows(series, functions=["count", "max"], every=10, group_by=[])
    assert found == {
        Labels(__function__="count"): [(0, 2), (10, 2)],
        Labels(__function__="max"): [(0, 5.0), (10, 3.0)],
    }


def test_the_oracle_accepts_what_is_near() -> None:
    """A mean is accepted within its rounding and no further."""
    rows = {Labels("x"): [(moment, 0.1) for moment in range(1, 11)]}
    [[(_, mean)]] = aggregate_rows(rows, functions=["mean"]).values()
    assert isinstance(mean, Near)
    assert mean.accepts(0.1)
    assert mean.accepts(0.09999999999999999)
    assert not mean.accepts(0.1000001)
    assert not mean.accepts(math.nan)
    assert not mean.accepts("0.1")


def test_batches_of_a_scan_may_end_anywhere() -> None:
    """How a scan cuts a series into batches changes no answer."""
    generator = np.random.default_rng(5)
    times = np.cumsum(generator.integers(1, 9, 4_000)) * SECOND
    values = np.round(generator.normal(size=4_000), 3)
    values[generator.integers(0, 4_000, 50)] = math.nan
    asked = aggregation(list(FUNCTIONS), INT64_MIN, INT64_MAX, every="1m")
    answers = []
    for size in (1, 7, 4_000):
        batches = [
            SeriesBatch(labels, times[first : first + size], values[first : first + size])
            for labels in sorted(NAMES, key=lambda labels: labels.id)
            for first in range(0, 4_000, size)
        ]
        answers.append(aggregate_batches(batches, asked))
    for other in answers[1:]:
        assert other.labels == answers[0].labels
        for one, another in zip(answers[0], other, strict=True):
            np.testing.assert_array_equal(one.timestamps, another.timestamps)
            np.testing.assert_allclose(one.values, another.values, rtol=1e-9, atol=1e-9)
