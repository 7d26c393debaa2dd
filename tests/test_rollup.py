"""Rollups: after a run the target has what the source gives, whatever came before."""

from __future__ import annotations

import math
import pickle
import random
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tsengine
from tsengine import (
    AggregationError,
    Engine,
    Labels,
    QueryResult,
    RollupCancelledError,
    RollupError,
    RollupReport,
    RollupTimeoutError,
)
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.engine import Capability
from tsengine.errors import (
    ConfigurationError,
    InvalidQueryError,
    NotOpenError,
    StorageError,
    UnknownOptionError,
    UnsupportedError,
    ValueKindError,
)
from tsengine.model import ProducerMark, WriteReceipt
from tsengine.retry import RetryPolicy
from tsengine.rollups import spans
from tsengine.testing.faults import Fault, When

SERIES = [Labels("load", host=str(number)) for number in range(3)]
FUNCTIONS = ["count", "sum", "mean", "min", "max", "first", "last"]
AT_ONCE = RetryPolicy(max_retries=0)
BEGIN = 10_000
RETENTION = 300

Raw: TypeAlias = "dict[Labels, dict[int, float]]"
Results: TypeAlias = "dict[Labels, dict[int, float]]"

NAIVE: dict[str, Callable[[list[float]], float]] = {
    "count": len,
    "sum": math.fsum,
    "mean": lambda values: math.fsum(values) / len(values),
    "min": min,
    "max": max,
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
}


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.now = BEGIN

    def __call__(self) -> int:
        """Give the time."""
        return self.now


def result_labels(labels: Labels, every: int, function: str, merged: str = "") -> Labels:
    """Name a result, as the documentation says."""
    name = f"{labels['__name__']}:{every}ns{merged}"
    texts = {**labels, "__name__": name, "__function__": function}
    return Labels(texts)


def naive(raw: Raw, every: int, floor: int, now: int) -> Results:
    """Work out all windows that have ended, and of which nothing lies before the floor."""
    found: Results = {}
    for labels, rows in raw.items():
        windows: dict[int, list[float]] = {}
        for moment in sorted(rows):
            window = moment // every * every
            if window >= floor and window + every <= now:
                windows.setdefault(window, []).append(rows[moment])
        for function in FUNCTIONS if windows else ():
            column = {window: NAIVE[function](values) for window, values in windows.items()}
            found[result_labels(labels, every, function)] = column
    return found


def held(engine: Engine, selector: Any = '{__function__!=""}') -> Results:
    """Give all results in a store."""
    return {
        batch.labels: dict(zip(batch.timestamps.tolist(), batch.values.tolist(), strict=True))
        for batch in engine.query(selector)
    }


def changed(report: RollupReport) -> int:
    """Tell how many results a run touched."""
    return report.written + report.redone + report.removed


class World:
    """Stores, and a model of what they are to hold.

    Args:
        source: with the clock given.
        target: where results go.
        every: nanoseconds.
        follows: whether deletes are followed.
        retention: of the source, nanoseconds.
    """

    def __init__(
        self,
        source: Engine,
        target: Engine,
        clock: Clock,
        every: int,
        *,
        follows: bool,
        retention: int | None,
    ) -> None:
        self.source, self.target, self.clock = source, target, clock
        self.every, self.follows, self.retention = every, follows, retention
        self.raw: Raw = {}
        self.results: Results = {}

    def shown(self) -> int:
        """Give the earliest timestamp that retention shows."""
        return 0 if self.retention is None else self.clock.now - self.retention

    def write(self, series: int, age: int, value: float) -> None:
        """Write a point of some age."""
        moment = self.clock.now - age
        self.source.write([(SERIES[series], moment, value)])
        if moment >= self.shown():
            self.raw.setdefault(SERIES[series], {})[moment] = value

    def delete(self, series: int, age: int, length: int) -> None:
        """Delete a range."""
        start = self.clock.now - age
        self.source.delete(SERIES[series], start, start + length)
        rows = self.raw.get(SERIES[series], {})
        for moment in [one for one in rows if start <= one < start + length]:
            del rows[moment]

    def run(self, **options: Any) -> RollupReport:
        """Roll up, in the model first."""
        floor = -(-self.shown() // self.every) * self.every
        raw = {
            labels: {moment: value for moment, value in rows.items() if moment >= self.shown()}
            for labels, rows in self.raw.items()
        }
        fresh = naive(raw, self.every, floor, self.clock.now)
        for labels in {*self.results, *fresh}:
            stored = self.results.setdefault(labels, {})
            given = fresh.get(labels, {})
            if self.follows:
                for window in [one for one in stored if one >= floor and one not in given]:
                    del stored[window]
            origin = Labels({"__name__": "load", "host": labels["host"]})
            first = min(raw.get(origin, {}), default=0) // self.every * self.every
            has_lost = any(floor <= window < first for window in stored)
            for window, value in given.items():
                if self.follows or window != first or not has_lost or window not in stored:
                    stored[window] = value
        return self.again(**options)

    def again(self, **options: Any) -> RollupReport:
        """Roll up."""
        return tsengine.rollup(
            self.source,
            self.target,
            f"{self.every}ns",
            FUNCTIONS,
            "load",
            follow_deletes=self.follows,
            **options,
        )

    def check(self) -> None:
        """Compare the target with the model."""
        wanted = {labels: rows for labels, rows in self.results.items() if rows}
        found = held(self.target, f'{{__name__="load:{self.every}ns"}}')
        assert found.keys() == wanted.keys()
        for labels, rows in wanted.items():
            assert found[labels] == pytest.approx(rows, rel=1e-14, nan_ok=True), labels


STEPS = st.one_of(
    st.tuples(
        st.just("write"), st.integers(0, 2), st.integers(0, 400), st.integers(-9, 9).map(float)
    ),
    st.tuples(st.just("delete"), st.integers(0, 2), st.integers(0, 400), st.integers(1, 90)),
    st.tuples(st.just("tick"), st.integers(1, 120)),
    st.tuples(st.just("run")),
)


def build(
    stack: ExitStack, backend: str, *, retention: int | None, is_one_store: bool
) -> tuple[Engine, Engine, Clock]:
    """Open a source and a target."""
    clock = Clock()
    options: dict[str, object] = {} if retention is None else {"retention": f"{retention}ns"}
    engines: list[Engine] = []
    for own in [options, {}][: 1 if is_one_store else 2]:
        if backend == "memory":
            engine: Engine = MemoryEngine("", clock_ns=clock, **own)
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            engine = LmdbEngine(
                f"{folder}/store", clock_ns=clock, block_points=16, merging="inline", **own
            )
        engines.append(stack.enter_context(engine))
    return engines[0], engines[-1], clock


def play(world: World, steps: Sequence[tuple[Any, ...]]) -> None:
    """Do steps, and check after every run."""
    for step in steps:
        match step:
            case ("write", series, age, value):
                world.write(series, age, value)
            case ("delete", series, age, length):
                world.delete(series, age, length)
            case ("tick", length):
                world.clock.now += length
            case _:
                world.run()
                world.check()


@pytest.fixture(autouse=True)
def small_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have spans be of a few windows, and those without points be looked for."""
    monkeypatch.setattr(spans, "ROWS_MAX", 60)
    monkeypatch.setattr(spans, "POINTS_MAX", 20)
    monkeypatch.setattr(spans, "SERIES_POINTS_MIN", 3)
    monkeypatch.setattr(spans, "SPANS_MAX", 12)


@pytest.fixture
def clock() -> Clock:
    """Give a clock."""
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> Iterator[Engine]:
    """Give a store in memory."""
    with MemoryEngine("", clock_ns=clock) as engine:
        yield engine


@pytest.fixture
def target() -> Iterator[Engine]:
    """Give another."""
    with MemoryEngine() as engine:
        yield engine


# What is there after a run.


@pytest.mark.parametrize("backend", ["memory", "lmdb"])
@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(STEPS, min_size=10, max_size=40),
    every=st.sampled_from([1, 7, 10, 50, 900]),
    follows=st.booleans(),
    retention=st.sampled_from([None, RETENTION]),
    is_one_store=st.booleans(),
)
def test_a_run_makes_the_target_what_the_source_gives(
    backend: str,
    steps: list[tuple[Any, ...]],
    every: int,
    follows: bool,
    retention: int | None,
    is_one_store: bool,
) -> None:
    """Late points, deletes and retention between runs: a naive model agrees; again: no change."""
    with ExitStack() as stack:
        source, target, clock = build(
            stack, backend, retention=retention, is_one_store=is_one_store and retention is None
        )
        world = World(source, target, clock, every, follows=follows, retention=retention)
        play(world, [*steps, ("run",)])
        report = world.again()
        assert changed(report) == 0
        assert report.unchanged <= report.results <= report.unchanged + report.kept
        world.check()


def test_a_window_that_has_not_ended_is_left_alone(
    memory: Engine, target: Engine, clock: Clock
) -> None:
    """Only windows that have ended by the clock, or by `end`, are rolled up, and whole ones."""
    memory.write([(SERIES[0], moment, 1.0) for moment in range(9_500, 10_500, 10)])
    clock.now = 9_999
    tsengine.rollup(memory, target, "100ns", ["count"])
    labels = result_labels(SERIES[0], 100, "count")
    assert list(held(target)[labels]) == [9_500, 9_600, 9_700, 9_800]
    clock.now = 20_000
    report = tsengine.rollup(memory, target, "100ns", ["count"], end=10_199)
    assert (report.start, report.end, report.written) == (9_500, 10_100, 2)
    report = tsengine.rollup(memory, target, "100ns", ["count"], start=10_201, end=10_500)
    assert (report.start, report.end, report.written) == (10_300, 10_500, 2)


@pytest.mark.parametrize("backend", ["memory", "lmdb"])
def test_windows_at_the_edge_of_retention_keep_their_value(backend: str) -> None:
    """A window that retention cuts, or has dropped, keeps the value that it had when whole."""
    with ExitStack() as stack:
        source, target, clock = build(stack, backend, retention=300, is_one_store=False)
        source.write([(SERIES[0], moment, 1.0) for moment in range(9_750, 10_000, 10)])
        tsengine.rollup(source, target, "100ns", ["count"])
        labels = result_labels(SERIES[0], 100, "count")
        whole = held(target)[labels]
        assert whole == {9_700: 5, 9_800: 10, 9_900: 10}
        for clock.now in range(10_000, 10_500, 25):
            for follows in (False, True):
                report = tsengine.rollup(source, target, "100ns", ["count"], follow_deletes=follows)
                assert changed(report) == 0
                assert held(target)[labels] == whole


def test_retention_that_moves_during_a_run_harms_nothing(target: Engine) -> None:
    """The clock may go on between any two calls of a run: no cut window is stored."""

    class Hasty(Clock):
        def __call__(self) -> int:
            self.now += 7
            return self.now

    for early in range(60):
        clock = Hasty()
        with MemoryEngine("", clock_ns=clock, retention="300ns") as source:
            clock.now = BEGIN - 100
            source.write([(SERIES[0], moment, 1.0) for moment in range(9_700, 10_000, 10)])
            clock.now = BEGIN + 100 - early  # soon retention cuts the window at 9,800
            tsengine.rollup(source, target, "100ns", ["count"], follow_deletes=True)
            found = held(target)[result_labels(SERIES[0], 100, "count")]
            assert set(found.values()) == {10}, (early, found)
            target.delete()


def test_old_points_that_are_deleted_leave_their_results(clock: Clock) -> None:
    """In one store without retention: results outlive a delete of old points, at any moment."""
    with MemoryEngine("", clock_ns=clock) as store:
        store.write([(SERIES[0], moment, 1.0) for moment in range(9_000, 10_000, 10)])
        tsengine.rollup(store, store, "100ns", ["count"])
        labels = result_labels(SERIES[0], 100, "count")
        whole = held(store)[labels]
        for end in (9_100, 9_250, 9_251, 9_999, 10_000):
            store.delete("load", None, end)
            report = tsengine.rollup(store, store, "100ns", ["count"])
            assert (changed(report), held(store)[labels]) == (0, whole)


@pytest.mark.parametrize("cap", ["max_points_per_series", "max_points"])
def test_what_a_cap_evicts_leaves_its_results(target: Engine, clock: Clock, cap: str) -> None:
    """Results of windows that a ring has evicted, in part or altogether, stay as they were."""
    with MemoryEngine("", clock_ns=clock, **{cap: 35}) as source:
        for moment in range(9_000, 10_000, 10):
            source.write([(SERIES[0], moment, 1.0)])
            clock.now = moment + 10
            tsengine.rollup(source, target, "100ns", ["count"])
        found = held(target)[result_labels(SERIES[0], 100, "count")]
        assert found == dict.fromkeys(range(9_000, 10_000, 100), 10)
        for wrong in ({"follow_deletes": True}, {"group_by": [], "name": "all"}):
            with pytest.raises(ConfigurationError, match=cap):
                tsengine.rollup(source, target, "100ns", ["count"], **wrong)


def test_a_late_point_redoes_its_window_and_no_other(memory: Engine, target: Engine) -> None:
    """The report tells what was written, redone, and left as it was."""
    memory.write([(SERIES[0], moment, 1.0) for moment in range(9_000, 10_000, 10)])
    report = tsengine.rollup(memory, target, "100ns", ["count", "max"])
    assert (report.results, report.written, report.series) == (20, 20, 2)
    memory.write([(SERIES[0], 9_005, 5.0), (SERIES[0], 8_999, 1.0)])
    report = tsengine.rollup(memory, target, "100ns", ["count", "max"])
    assert (report.written, report.redone, report.unchanged) == (2, 2, 18)
    memory.write([(SERIES[0], 9_005, 4.0)])  # the same count, and the same sum of others
    report = tsengine.rollup(memory, target, "100ns", ["count", "max"])
    assert (report.written, report.redone, report.unchanged) == (0, 1, 21)


def test_a_stray_point_of_1970_costs_no_decades(memory: Engine, target: Engine) -> None:
    """Stretches without points are passed over."""
    with MemoryEngine(clock_ns=lambda: 2 * 10**18) as source:
        source.write([(SERIES[0], 5 * 10**9, 1.0), (SERIES[0], 10**18, 1.0)])
        report = tsengine.rollup(source, target, "1s", ["count"], follow_deletes=True)
        assert (report.written, report.results) == (2, 2)


def test_results_come_in_spans_of_bounded_size(target: Engine) -> None:
    """However long a source reaches, no more than `ROWS_MAX` results are asked for at once."""
    sizes: list[int] = []

    class Watching(MemoryEngine):
        def aggregate(self, *args: Any, **options: Any) -> QueryResult:
            result = super().aggregate(*args, **options)
            if len(options["functions"]) > 1:
                sizes.append(result.rows)
            return result

    with Watching() as source:
        for labels in SERIES:
            source.write([(labels, moment, 1.0) for moment in range(100, 9_000, 10)])
        report = tsengine.rollup(source, target, "10ns", ["count", "max"])
        assert report.written == sum(sizes) == 2 * 3 * 890
        assert max(sizes) <= spans.ROWS_MAX


def test_lookback_bounds_what_is_read(memory: Engine, target: Engine, clock: Clock) -> None:
    """Late points are found as far back from the mark as asked, and no farther."""

    def run(**options: Any) -> RollupReport:
        return tsengine.rollup(memory, target, "100ns", ["count"], **options)

    memory.write([(SERIES[0], moment, 1.0) for moment in range(9_000, 10_000, 10)])
    assert run(lookback="200ns").start == 9_000  # nothing is marked yet
    memory.write([(SERIES[0], 9_001, 1.0), (SERIES[0], 9_801, 1.0), (SERIES[0], 10_001, 1.0)])
    clock.now = 10_100
    report = run(lookback="150ns")
    assert (report.start, report.end) == (9_800, 10_100)
    assert (report.written, report.redone) == (1, 1)
    report = run()
    assert (report.start, report.redone) == (9_000, 1)
    mark = target.high_water(report.producer)
    assert mark is not None
    assert mark.sequence == 10_100


def test_a_target_without_marks_does_for_all_but_lookback(memory: Engine) -> None:
    """Without marks all is compared, which needs none."""

    class Markless(MemoryEngine):
        capabilities = MemoryEngine.capabilities - {Capability.PRODUCER_MARKS}

    memory.write([(SERIES[0], moment, 1.0) for moment in range(9_000, 10_000, 10)])
    with Markless() as target:
        assert tsengine.rollup(memory, target, "100ns", ["count"]).written == 10
        memory.write([(SERIES[0], 9_001, 1.0)])
        assert tsengine.rollup(memory, target, "100ns", ["count"]).redone == 1
        with pytest.raises(UnsupportedError, match="lookback"):
            tsengine.rollup(memory, target, "100ns", ["count"], lookback="1us")


def test_a_reader_rolls_up_what_another_engine_writes(tmp_path: Path) -> None:
    """The source may be open for reading alone; a buffer in front of it is flushed."""
    path = str(tmp_path / "source")
    with (
        tsengine.BufferedEngine(LmdbEngine(path, clock_ns=lambda: BEGIN)) as source,
        MemoryEngine() as target,
    ):
        source.buffer.write((SERIES[0], 9_000, 1.0))
        assert tsengine.rollup(source, target, "100ns", ["count"]).written == 1
        source.write([(SERIES[0], 9_100, 1.0)])
        with LmdbEngine(path, clock_ns=lambda: BEGIN, read_only=True) as reader:
            assert tsengine.rollup(reader, target, "100ns", ["count"]).written == 1


# What results are called.


def test_names_of_results(memory: Engine, target: Engine) -> None:
    """Length in the metric name, function in its label; also for one function, and no name."""
    named = Labels("load", host="1")
    memory.write([(named, 9_000, 1.0), (Labels(host="2"), 9_000, 1.0)])
    tsengine.rollup(memory, target, "100ns", ["quantile(0.5)"])
    tsengine.rollup(memory, target, "1us", ["max"], "load", origin=100)
    assert set(target.series()) == {
        Labels(":100ns", host="2", __function__="quantile(0.5)"),
        Labels("load:100ns", host="1", __function__="quantile(0.5)"),
        Labels("load:1us_100ns", host="1", __function__="max"),
    }
    assert target.query('load:1us_100ns{__function__="max"}').rows == 1


@pytest.mark.parametrize(
    "selector",
    [
        None, "load", 'load{host="1"}', '{__name__=~"lo.*|x"}', '{__name__!="mem"}', {"host": "1"},
        '{__name__!~"m.*",host!=""}', SERIES[1], '{host=~"0|1"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("of", [None, "10ns"])
def test_a_rollup_knows_its_own(selector: Any, of: str | None, clock: Clock) -> None:
    """However series are selected: results are found again, and others never touched."""
    with MemoryEngine("", clock_ns=clock) as store:
        others = [Labels("mem", host="1"), Labels("load:extra", host="1")]
        for labels in [*SERIES, *others]:
            store.write([(labels, moment, 1.0) for moment in range(9_000, 9_500, 5)])
        store.write([(Labels("load:100ns", host="1", __function__="mean"), 9_000, 7.0)])
        store.write([(Labels("load:100ns_by_host", host="1", __function__="max"), 9_000, 7.0)])
        if isinstance(selector, Labels):
            more = Labels("load:100ns", host="1", __function__="max", more="1")
            store.write([(more, 9_000, 7.0)])
        store.write([(Labels("load:200ns", host="1", __function__="count"), 9_000, 7.0)])
        tsengine.rollup(store, store, "10ns", ["count", "max"])
        before = held(store)
        chosen = [one for one in [*SERIES, *others] if _selects(selector, one)]
        report = tsengine.rollup(
            store, store, "100ns", ["count", "max"], selector, of=of, follow_deletes=True
        )
        assert (report.written, report.removed) == (10 * len(chosen), 0)
        again = tsengine.rollup(
            store, store, "100ns", ["count", "max"], selector, of=of, follow_deletes=True
        )
        assert (changed(again), again.unchanged) == (0, 10 * len(chosen))
        found = held(store)
        for labels in chosen:
            assert set(found.pop(result_labels(labels, 100, "count")).values()) == {20}
            assert set(found.pop(result_labels(labels, 100, "max")).values()) == {1.0}
        assert found == before


def _selects(selector: Any, labels: Labels) -> bool:
    if isinstance(selector, Labels):
        return selector is labels
    with MemoryEngine() as store:
        store.write([(labels, 1, 1.0)])
        return bool(list(store.series(selector)))


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), grouped=st.booleans())
def test_a_rollup_of_a_rollup_is_that_of_the_points(seed: int, grouped: bool) -> None:
    """Count, sum, min, max, first, last of longer windows come out the same, redone ones too."""
    chance = random.Random(seed)
    clock = Clock()
    names = ["count", "sum", "min", "max", "first", "last"]
    with MemoryEngine("", clock_ns=clock) as store, MemoryEngine() as direct:
        for _ in range(3):
            store.write(
                [
                    (chance.choice(SERIES), chance.randrange(9_000, 10_000), chance.randrange(9))
                    for _ in range(chance.randrange(30))
                ]
            )
            tsengine.rollup(store, store, "10ns", names, "load")
            options: dict[str, Any] = {"group_by": ["__name__"]} if grouped else {}
            if grouped:  # which is first or last of several series goes by their names
                names = ["count", "sum", "min", "max"]
            tsengine.rollup(store, store, "50ns", names, "load", of="10ns", **options)
            tsengine.rollup(store, direct, "50ns", names, "load", **options)
            assert held(store, '{__name__=~"load:50ns(_all)?"}') == held(direct)


def test_merged_series_are_rolled_up(memory: Engine, target: Engine) -> None:
    """`group_by` merges as in `aggregate`; integers stay so where no floats are among them."""
    for host in "12":
        memory.write_series(
            Labels("load", host=host, kind="int"), np.arange(9_000, 9_500), np.arange(500)
        )
    memory.write([(Labels("load", host="1", kind="mixed"), 9_450, 0.5)])
    memory.write_series(
        Labels("load", host="2", kind="mixed"), np.arange(9_000, 9_500), np.arange(500)
    )
    tsengine.rollup(memory, target, "100ns", ["sum", "count"], group_by=["__name__", "kind"])
    tsengine.rollup(memory, target, "100ns", ["sum"], group_by=["kind"], name="merged")
    given = memory.aggregate(
        None, functions=["sum", "count"], every="100ns", group_by=["__name__", "kind"]
    )
    for batch in given:
        labels = result_labels(batch.labels, 100, batch.labels["__function__"], "_by_kind")
        (found,) = target.query(labels)
        assert found.values.tolist() == batch.values.tolist()
        is_float = batch.labels["kind"] == "mixed" and batch.labels["__function__"] == "sum"
        assert found.values.dtype == (np.float64 if is_float else np.int64)
    assert len(target.query('merged:100ns_by_kind{kind="int",__function__="sum"}')) == 1
    for options in ({"group_by": ["__name__", "kind"]}, {"group_by": ["kind"], "name": "merged"}):
        report = tsengine.rollup(memory, target, "100ns", ["sum"], **options)
        assert (changed(report), report.unchanged) == (0, 10)


def test_objects_have_first_last_and_count(memory: Engine, target: Engine) -> None:
    """Objects are compared as they are stored."""
    memory.write([(SERIES[0], moment, {"n": moment}) for moment in range(9_000, 9_200, 10)])
    for wanted in (6, 0):
        assert (
            changed(tsengine.rollup(memory, target, "100ns", ["first", "last", "count"])) == wanted
        )
    memory.write([(SERIES[0], 9_190, {"n": "late"})])
    report = tsengine.rollup(memory, target, "100ns", ["first", "last", "count"])
    assert (report.redone, report.unchanged) == (1, 5)
    with pytest.raises(RollupError, match="mean") as caught:
        tsengine.rollup(memory, target, "100ns", ["mean"])
    assert caught.value.side == "source"
    assert isinstance(caught.value.__cause__, AggregationError)


def test_nan_and_zeros_are_no_change(memory: Engine, target: Engine) -> None:
    """NaN is itself, and a run after a run writes nothing for it."""
    values = [float("nan"), float("inf"), -0.0, 0.0, float("-inf")]
    memory.write([(SERIES[0], 9_000 + 10 * place, value) for place, value in enumerate(values)])
    for every in ("10ns", "20ns", "1us"):
        tsengine.rollup(memory, target, every, [*FUNCTIONS, "stddev", "rate", "median"])
        report = tsengine.rollup(memory, target, every, [*FUNCTIONS, "stddev", "rate", "median"])
        assert changed(report) == 0


def test_sums_that_round_elsewhere_are_no_change(
    target: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge of LMDB, by which sums are added up in other parts, has nothing redone."""
    monkeypatch.undo()  # in spans of one window blocks would be read as by a query
    functions = ["sum", "mean", "stddev", "increase"]
    chance = np.random.default_rng(1)
    with LmdbEngine(str(tmp_path), clock_ns=lambda: 10**9, merging="manual") as source:
        for part in range(6):
            moments = 100_000 + np.arange(50_000 * part, 50_000 * (part + 1)) * 5
            moments += chance.integers(0, 5, 50_000)
            source.write_series(SERIES[0], moments, chance.random(50_000) - 0.5)
        tsengine.rollup(source, target, "100us", functions)
        before = held(target)
        source.compact()
        report = tsengine.rollup(source, target, "100us", functions)
        assert (changed(report), report.unchanged) == (0, report.results)
        with MemoryEngine() as anew:
            tsengine.rollup(source, anew, "100us", functions)
            assert held(anew) != before


# What stops it.


class Abandoned(BaseException):
    """Stands for a kill: nothing handles it."""


class Faulty(MemoryEngine):
    """A store whose commits fail as faults say."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__()
        self.faults = list(faults)

    def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
        """Commit, or fail before or after that."""
        struck = [fault for fault in self.faults if fault.strikes()]
        for fault in struck:
            if fault.when is When.BEFORE:
                self.discard_buffer()
                raise fault.error()  # type: ignore[misc]  # each has one
        receipt = super().flush_buffer(mark)
        for fault in struck:
            raise fault.error()  # type: ignore[misc]  # each has one
        return receipt


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), lookback=st.sampled_from([None, "300ns"]))
def test_faults_and_kills_leave_what_the_next_run_completes(
    seed: int, lookback: str | None
) -> None:
    """Runs that fail or die anywhere: each stored result is right, and the next run completes."""
    chance = random.Random(seed)
    clock = Clock()
    with MemoryEngine("", clock_ns=clock) as source, Faulty() as target:
        world = World(source, target, clock, 10, follows=True, retention=None)
        for _ in range(6):
            clock.now += chance.randrange(90)
            for _ in range(chance.randrange(40)):
                world.write(chance.randrange(3), chance.randrange(1, 290), chance.randrange(9))
            errors: list[Callable[[], BaseException]] = [Abandoned, StorageError]
            target.faults = [
                Fault(
                    "flush_buffer",
                    at=chance.randrange(1, 12),
                    when=chance.choice([*When]),
                    error=chance.choice(errors),
                )
                for _ in range(chance.randrange(3))
            ]
            try:
                world.run(lookback=lookback, retry=AT_ONCE)
            except Abandoned:
                target.discard_buffer()
            except RollupError as error:
                if not isinstance(error.__cause__, StorageError):
                    raise
            found = held(target)
            for labels, rows in found.items():
                for window, value in rows.items():
                    assert window in world.results[labels], (labels, window, value)
        target.faults = []
        world.run(lookback=lookback)
        world.check()
        assert changed(world.again(lookback=lookback)) == 0


def test_transient_errors_are_retried(memory: Engine) -> None:
    """A commit that fails now and then is tried again, as in a copy."""
    memory.write([(SERIES[0], moment, 1.0) for moment in range(9_000, 10_000, 10)])
    fault = Fault("flush_buffer", at=1, every=2)
    with Faulty(fault) as target:
        patient = RetryPolicy(backoff_min=0.0, backoff_max=0.0)
        report = tsengine.rollup(memory, target, "100ns", ["count"], retry=patient)
        assert report.written == 10
        assert fault.calls > 3


def test_another_kind_in_the_target_harms_no_other_series(memory: Engine, target: Engine) -> None:
    """What cannot be stored is told, all others are stored, and the mark waits."""
    for labels in SERIES:
        memory.write([(labels, moment, 1.5) for moment in range(9_000, 10_000, 10)])
    conflict = result_labels(SERIES[1], 100, "mean")
    target.write_series(conflict, [9_000], np.array([3]))
    for _ in range(2):
        with pytest.raises(RollupError, match="cannot be stored") as caught:
            tsengine.rollup(memory, target, "100ns", ["mean"])
        error = pickle.loads(pickle.dumps(caught.value))
        assert error.side == "target"
        assert isinstance(caught.value.__cause__, ValueKindError)
        assert error.report.rejected == 10
        assert {point.labels for points, _ in error.rejections for point in points} == {conflict}
        assert held(target)[conflict] == {9_000: 3}
        assert len(held(target)[result_labels(SERIES[2], 100, "mean")]) == 10
        assert target.high_water(error.report.producer) is None
    target.delete(conflict)
    assert tsengine.rollup(memory, target, "100ns", ["mean"]).written == 10


def test_cancel_timeout_and_callbacks_stop_it(memory: Engine, target: Engine) -> None:
    """Each is told by its own error, with what was done; the next run goes on."""
    memory.write([(SERIES[0], moment, 1.0) for moment in range(9_000, 10_000, 10)])
    cancel = threading.Event()
    told: list[RollupReport] = []

    def progress(report: RollupReport) -> None:
        told.append(report)
        cancel.set()

    with pytest.raises(RollupCancelledError) as caught:
        tsengine.rollup(memory, target, "10ns", ["count"], progress=progress, cancel=cancel)
    assert 0 < caught.value.report.written == told[0].written < 100
    with pytest.raises(RollupTimeoutError):
        tsengine.rollup(memory, target, "10ns", ["count"], timeout=0)
    ticks = iter(range(1_000))
    with pytest.raises(RollupTimeoutError):
        tsengine.rollup(memory, target, "10ns", ["count"], timeout=9, clock=lambda: next(ticks))

    def fail(report: RollupReport) -> None:
        raise LookupError("of the caller")

    with pytest.raises(RollupError, match="of the caller") as failed:
        tsengine.rollup(memory, target, "10ns", ["count"], progress=fail)
    assert failed.value.side == "caller"
    tsengine.rollup(memory, target, "10ns", ["count"])
    assert len(held(target)[result_labels(SERIES[0], 10, "count")]) == 100


def test_a_bad_rollup_is_refused(memory: Engine, target: Engine) -> None:
    """Arguments that make no sense, or not together, are told before anything is read."""
    wrongs: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"every": "5x"}, AggregationError),
        ({"every": None}, AggregationError),
        ({"functions": ["middle"]}, AggregationError),
        ({"functions": []}, AggregationError),
        ({"selector": "{"}, InvalidQueryError),
        ({"selector": 'load{__function__="max"}'}, AggregationError),
        ({"start": 5, "end": 4}, InvalidQueryError),
        ({"group_by": ["host"]}, AggregationError),
        ({"group_by": ["__function__", "__name__"]}, AggregationError),
        ({"name": "all"}, AggregationError),
        ({"group_by": ["__name__"], "follow_deletes": True}, ConfigurationError),
        ({"of": "30ns"}, AggregationError),
        ({"of": "100ns"}, AggregationError),
        ({"of": "soon"}, UnknownOptionError),
        ({"of": "10ns", "functions": ["mean"]}, AggregationError),
        ({"lookback": 5}, UnknownOptionError),
        ({"timeout": "long"}, UnknownOptionError),
        ({"producer": ""}, tsengine.InvalidDataError),
    ]
    for wrong, error in wrongs:
        arguments: dict[str, Any] = {"every": "100ns", "functions": ["max"], **wrong}
        with pytest.raises(error):
            tsengine.rollup(memory, target, **arguments)
    for policy in ("first", "min", "max", "sum", "error"):
        with (
            MemoryEngine("", duplicate_policy=policy) as other,
            pytest.raises(ConfigurationError, match=policy),
        ):
            tsengine.rollup(memory, other, "100ns", ["max"])
    stores: list[tuple[Engine, Engine]] = [(MemoryEngine(), target), (memory, MemoryEngine())]
    for source, into in stores:
        with pytest.raises(NotOpenError):
            tsengine.rollup(source, into, "100ns", ["max"])
