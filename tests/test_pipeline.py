"""Copying: what is in the source is in the target, once, whatever fails on either side."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tsengine
from tsengine import (
    CopyCancelledError,
    CopyError,
    CopyTimeoutError,
    DataPoint,
    Engine,
    GroupedBatch,
    Labels,
    Progress,
    SeriesBatch,
    SourceChangedError,
)
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.engine import Capability
from tsengine.errors import (
    BatchTooLargeError,
    ConfigurationError,
    DuplicatePointError,
    InvalidDataError,
    NotOpenError,
    ReadOnlyError,
    RejectedPointsError,
    StorageError,
    UnknownOptionError,
    UnsupportedError,
    ValueKindError,
)
from tsengine.model import ProducerMark, WriteReceipt
from tsengine.retry import RetryPolicy
from tsengine.testing.faults import Fault, FaultyHandler, When

SERIES = [Labels("load", host=str(number)) for number in range(4)]
AT_ONCE = RetryPolicy(backoff_min=0.0, backoff_max=0.0, min_batch_size=1)
NEVER_AGAIN = RetryPolicy(max_retries=0, min_batch_size=1)

Row = tuple[Labels, int, object]


def rows_of(engine: Engine) -> list[Row]:
    """Give all rows, by series ID, then time."""
    return [(*point,) for batch in engine.scan() for point in batch.points()]


def summed(points: Sequence[Row]) -> list[Row]:
    """Give what a store of the policy `sum` holds of points, each written once."""
    sums: dict[tuple[Labels, int], Any] = {}
    for labels, timestamp, value in points:
        sums[labels, timestamp] = sums.get((labels, timestamp), 0.0) + value
    ordered = sorted(sums.items(), key=lambda one: (one[0][0].id, one[0][1]))
    return [(labels, timestamp, value) for (labels, timestamp), value in ordered]


def points_of(count: int, seed: int = 0) -> list[Row]:
    """Give points over a few series, timestamps repeated often, sums exact."""
    chance = random.Random(seed)
    return [
        (chance.choice(SERIES), chance.randrange(1, 1 + count), float(chance.randrange(1, 100)))
        for _ in range(count)
    ]


def in_batches(points: Sequence[Row], chance: random.Random) -> Iterator[Any]:
    """Give points as they are, as columns of one series, and as columns of many, at random."""
    at = 0
    while at < len(points):
        some = points[at : at + chance.randrange(1, 12)]
        at += len(some)
        kind = chance.randrange(3)
        if kind == 0:
            yield from some
            continue
        groups: dict[Labels, list[Row]] = {}
        for point in some:
            groups.setdefault(point[0], []).append(point)
        columns = [
            SeriesBatch(
                labels,
                np.array([timestamp for _, timestamp, _ in rows], np.int64),
                np.array([value for _, _, value in rows], np.float64),
            )
            for labels, rows in groups.items()
        ]
        if kind == 1:
            yield from columns
            continue
        yield GroupedBatch(
            [one.labels for one in columns],
            np.cumsum([0, *map(len, columns)]),
            np.concatenate([one.timestamps for one in columns]),
            np.concatenate([one.values for one in columns]),
        )


class Abandoned(BaseException):
    """Stands for a kill: nothing handles it."""


@pytest.fixture
def memory() -> Iterator[Engine]:
    """Give a store in memory."""
    with MemoryEngine() as engine:
        yield engine


@pytest.fixture
def sums() -> Iterator[Engine]:
    """Give one in which a point stored twice shows."""
    with MemoryEngine(duplicate_policy="sum") as engine:
        yield engine


def readers() -> list[threading.Thread]:
    """Give the threads that copies have left behind."""
    return [one for one in threading.enumerate() if one.name == "tsengine-copy-reader"]


# What lands.


@pytest.mark.parametrize("backend", ["memory", "lmdb"])
@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_a_store_is_copied_whole(tmp_path: Path, backend: str, size: int) -> None:
    """Rows of all kinds come out as they were, in commits of any size."""
    url = {"memory": "memory://", "lmdb": f"lmdb://{tmp_path / 'target'}"}[backend]
    with LmdbEngine(str(tmp_path / "source")) as source, tsengine.open(url) as target:
        source.write([(SERIES[0], t, t / 7) for t in range(1, 40)])
        source.write_series(SERIES[1], np.arange(1, 30), np.arange(2**60, 2**60 + 29))
        source.write([(SERIES[2], t, {"n": t, "list": [t]}) for t in range(1, 20)])
        source.write(
            [(SERIES[3], t, [float("nan"), -0.0, float("inf")][t % 3]) for t in range(1, 9)]
        )
        report = tsengine.copy(source, target, points_max=size)
        assert (report.accepted, report.points, report.series) == (95, 95, 4)
        assert tsengine.verify(source, target).points == 95
        assert not readers()


@pytest.mark.parametrize("size", [3, 100])
def test_a_selection_is_copied(memory: Engine, sums: Engine, size: int) -> None:
    """Selector, start and end choose as in `query`."""
    points = points_of(200)
    memory.write(points)
    tsengine.copy(memory, sums, {"host": "1"}, 20, 150, points_max=size)
    wanted = [row for row in rows_of(memory) if row[0] is SERIES[1] and 20 <= row[1] < 150]
    assert rows_of(sums) == wanted


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 40))
def test_any_iterable_lands_once(seed: int, size: int) -> None:
    """Points, columns of one and of many series in any mixture add up to what was given."""
    points = points_of(100, seed)
    given: list[Any] = list(in_batches(points, random.Random(seed)))
    with MemoryEngine(duplicate_policy="sum") as target:
        report = tsengine.copy(given, target, points_max=size)
        assert report.accepted == len(points)
        assert report.bytes == 16 * len(points)
        assert report.series == len({labels for labels, _, _ in points})
        assert rows_of(target) == summed(points)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 40))
def test_the_order_of_the_source_is_kept(seed: int, size: int) -> None:
    """Of points at one timestamp the last one of the source stands, however they come."""
    points = points_of(80, seed)
    with MemoryEngine() as target, MemoryEngine() as one_by_one:
        tsengine.copy(in_batches(points, random.Random(seed)), target, points_max=size)
        for point in points:
            one_by_one.write([point])
        assert rows_of(target) == rows_of(one_by_one)


def test_an_async_iterable_is_copied(sums: Engine) -> None:
    """An async source is driven by a loop of the copy's own, and closed."""
    points = points_of(500)
    closed = threading.Event()

    async def source() -> Any:
        try:
            for point in points:
                yield point
        finally:
            closed.set()

    assert tsengine.copy(source(), sums, points_max=64).accepted == 500
    assert closed.is_set()
    assert rows_of(sums) == summed(points)


def test_an_integer_array_and_a_float_array_of_one_series_keep_their_order(
    memory: Engine,
) -> None:
    """Columns of two dtypes in one commit are stored in the order of the source."""
    memory.write([(SERIES[0], 1, 0.5)])
    whole = SeriesBatch(SERIES[0], np.array([2, 3]), np.array([1, 1]))
    broken = SeriesBatch(SERIES[0], np.array([2, 3]), np.array([0.25, 0.25]))
    tsengine.copy([whole, broken], memory)
    assert [value for _, _, value in rows_of(memory)] == [0.5, 0.25, 0.25]
    tsengine.copy([broken, whole], memory)
    assert [value for _, _, value in rows_of(memory)] == [0.5, 1.0, 1.0]


def test_an_array_that_is_used_again_is_copied_in_time(memory: Engine) -> None:
    """A source may fill the same arrays anew for each batch that it yields."""
    timestamps, values = np.zeros(2, np.int64), np.zeros(2)

    def source() -> Iterator[SeriesBatch]:
        for number in range(1, 50):
            timestamps[:] = 2 * number, 2 * number + 1
            values[:] = number
            yield SeriesBatch(SERIES[0], timestamps, values)

    tsengine.copy(source(), memory)
    assert [value for _, _, value in rows_of(memory)] == [float(n // 2) for n in range(2, 100)]


def test_empty_sources_and_batches_are_nothing(memory: Engine, sums: Engine) -> None:
    """A source without points is copied; batches without rows create no series."""
    none = np.empty(0, np.int64)
    empty = SeriesBatch(SERIES[0], none, np.empty(0))
    many = GroupedBatch(SERIES[:2], np.zeros(3, np.int64), none, np.empty(0))
    half = GroupedBatch(SERIES[:2], np.array([0, 0, 1]), np.array([1]), np.array([1.0]))
    sources: list[Any] = [[], memory, [empty], [empty, many], empty, many]
    for source in sources:
        assert tsengine.copy(source, sums).points == 0
    assert list(sums.series()) == []
    tsengine.copy([empty, half, many], sums)
    assert list(sums.series()) == [SERIES[1]]


def test_what_cannot_be_read_is_refused(memory: Engine, sums: Engine, tmp_path: Path) -> None:
    """A URL, a number, a selection of an iterable and a store copied to itself are errors."""
    for source in ("memory://", 5, None):
        with pytest.raises(UnknownOptionError, match="source"):
            tsengine.copy(source, memory)  # type: ignore[arg-type]  # the error
    with pytest.raises(UnknownOptionError, match="select"):
        tsengine.copy([], memory, "load")
    wrongs: list[dict[str, Any]] = [
        {"points_max": 0}, {"points_max": 1.5}, {"age_max": -1}, {"progress_interval": "soon"},
        {"progress_interval": None}, {"timeout": "long"},
    ]  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(UnknownOptionError):
            tsengine.copy([], memory, **wrong)
    with pytest.raises(ConfigurationError, match="one store"):
        tsengine.copy(memory, memory)
    with tsengine.BufferedEngine(memory) as buffered:
        for one, other in ((memory, buffered), (buffered, memory), (buffered, buffered)):
            with pytest.raises(ConfigurationError, match="one store"):
                tsengine.copy(one, other)
    path = str(tmp_path / "store")
    (tmp_path / "link").symlink_to(path)
    with (
        LmdbEngine(path) as store,
        LmdbEngine(str(tmp_path / "link"), read_only=True) as linked,
        pytest.raises(ConfigurationError, match="one store"),
    ):
        tsengine.copy(linked, store)
    with pytest.raises(NotOpenError):
        tsengine.copy(MemoryEngine(), sums)


# What cannot be stored.


def test_bad_points_go_to_on_reject_once(sums: Engine) -> None:
    """What is no point, has no labels, no time or another kind is handed out, the rest stored."""
    good = points_of(50)
    bad: list[Any] = [
        5,
        "abc",
        (SERIES[0], "x", 1.0),
        (SERIES[0], 0, 1.0),
        (Labels(), 1, 1.0),
        ("load", 1, 1.0),
        (SERIES[0], 1, "text"),
        (SERIES[0], 1, None),
        (SERIES[0], 2**70, 1.0),
    ]
    mixed: list[Any] = [*good]
    for place, point in enumerate(bad):
        mixed.insert(5 * place, point)
    handed: list[object] = []

    def reject(points: list[DataPoint], error: Exception) -> None:
        assert isinstance(error, InvalidDataError)
        handed.extend(points)

    report = tsengine.copy(mixed, sums, points_max=7, on_reject=reject)
    assert handed == bad
    assert (report.accepted, report.rejected) == (len(good), len(bad))
    assert rows_of(sums) == summed(good)


def test_without_on_reject_a_bad_point_stops_the_copy(sums: Engine) -> None:
    """The other points of its commit are stored; the error has the point."""
    points = points_of(20)
    bad: Row = (SERIES[0], 1, "text")
    with pytest.raises(CopyError, match="no sum") as caught:
        tsengine.copy([*points[:5], bad, *points[5:]], sums, points_max=10)
    assert caught.value.side == "source"
    assert isinstance(caught.value.__cause__, RejectedPointsError)
    assert caught.value.__cause__.points == [bad]
    assert caught.value.rejections[0][0] == [bad]
    assert (caught.value.report.accepted, caught.value.report.rejected) == (9, 1)
    assert rows_of(sums) == summed(points[:9])


@pytest.mark.parametrize("size", [2, 5, 100])
def test_bad_rows_of_columns_are_handed_out(size: int) -> None:
    """Rows that the target does not take are told apart, whatever is wrong with them."""
    batches: list[Any] = [
        SeriesBatch(SERIES[0], np.array([5, 0, 7]), np.array([1.0, 2.0, 3.0])),
        GroupedBatch(
            [SERIES[1], Labels()], np.array([0, 2, 3]), np.array([5, -1, 7]), np.arange(3.0)
        ),
        SeriesBatch(SERIES[2], np.array([5, 6]), np.array([1.5, 2.5])),
        SeriesBatch(SERIES[3], np.array([5]), np.ma.masked_array([1.0], [True])),
    ]
    handed: list[DataPoint] = []
    with MemoryEngine(integers="int") as target:
        target.write([(SERIES[2], 1, 1)])
        report = tsengine.copy(
            batches, target, points_max=size, on_reject=lambda points, _: handed.extend(points)
        )
        assert rows_of(target) == [
            (SERIES[0], 5, 1.0), (SERIES[0], 7, 3.0), (SERIES[1], 5, 0.0), (SERIES[2], 1, 1)
        ]  # fmt: skip
    assert (report.accepted, report.rejected) == (3, 6)
    assert [(labels, timestamp) for labels, timestamp, _ in handed] == [
        (SERIES[0], 0), (SERIES[1], -1), (Labels(), 7), (SERIES[2], 5), (SERIES[2], 6),
        (SERIES[3], 5),
    ]  # fmt: skip


def test_columns_that_do_not_fit_together_stop_the_copy(memory: Engine) -> None:
    """What came before is stored, and the error is the source's."""
    broken = SeriesBatch(SERIES[0], np.array([1, 2]), np.array([1.0]))
    with pytest.raises(CopyError, match="do not fit") as caught:
        tsengine.copy([(SERIES[1], 1, 1.0), broken], memory)
    assert caught.value.side == "source"
    assert caught.value.report.accepted == 1
    assert memory.count() == 1


def test_the_policy_error_rejects_points_that_are_there(memory: Engine) -> None:
    """Duplicates go to `on_reject`, and the others are stored."""
    points = [(SERIES[0], t, float(t)) for t in range(1, 11)]
    memory.write(points)
    handed: list[DataPoint] = []
    with MemoryEngine(duplicate_policy="error") as target:
        target.write(points[3:5])
        report = tsengine.copy(
            memory, target, points_max=4, on_reject=lambda given, _: handed.extend(given)
        )
        assert (report.accepted, report.rejected) == (8, 2)
        assert handed == points[3:5]
        with pytest.raises(CopyError) as caught:
            tsengine.copy(memory, target)
        assert isinstance(caught.value.rejections[0][1], DuplicatePointError)


def test_what_a_cap_or_the_retention_keeps_out_is_counted(memory: Engine) -> None:
    """Refused points are no error: the report says how many, and why."""
    memory.write([(SERIES[0], t, float(t)) for t in range(1, 101)])
    with MemoryEngine(retention="1us", clock_ns=lambda: 1_040) as target:
        report = tsengine.copy(memory, target, points_max=30)
        assert (report.accepted, report.refused) == (61, 39)
        assert report.reasons == {"retention": 39}
    with MemoryEngine(max_points_per_series=10) as target:
        tsengine.copy(memory, target)
        assert target.count() == 10
        again = tsengine.copy(memory, target, points_max=30)
        assert again.reasons == {"cap": 90}
        assert again.accepted == 10


def test_an_on_reject_that_raises_stops_the_copy(sums: Engine) -> None:
    """Its error is the cause; points that it was not handed are in the error."""
    points = points_of(10)
    bad: list[Row] = [(SERIES[0], 1, text) for text in ("a", "b")]

    def reject(points: list[DataPoint], error: Exception) -> None:
        raise RuntimeError("full")

    with pytest.raises(CopyError, match="full") as caught:
        tsengine.copy([*points, *bad], sums, points_max=5, on_reject=reject)
    assert caught.value.side == "caller"
    assert caught.value.report.accepted == 10
    assert [one for given, _ in caught.value.rejections for one in given] == bad[1:]
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert not readers()


# Either side fails.


def test_a_source_that_fails_leaves_what_came_before(sums: Engine) -> None:
    """All points before the error are stored, and the error says so; the source is closed."""
    points = points_of(100)
    closed = threading.Event()

    def source() -> Iterator[Row]:
        try:
            yield from points[:83]
            raise OSError("gone")
        finally:
            closed.set()

    with pytest.raises(CopyError, match="gone") as caught:
        tsengine.copy(source(), sums, points_max=10)
    assert caught.value.side == "source"
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.report.accepted == 83
    assert rows_of(sums) == summed(points[:83])
    assert closed.is_set()
    assert not readers()


def test_a_target_that_fails_stops_the_source(sums: Engine) -> None:
    """The report says what had landed; the source is closed, though it has no end."""
    closed = threading.Event()

    def source() -> Iterator[Row]:
        try:
            timestamp = 0
            while True:
                timestamp += 1
                yield SERIES[0], timestamp, 1.0
        finally:
            closed.set()

    faults = FaultyHandler(sums, Fault("flush_buffer", at=4, times=100))
    with pytest.raises(CopyError, match="on demand") as caught:
        tsengine.copy(source(), faults, points_max=10, retry=NEVER_AGAIN)
    assert caught.value.side == "target"
    assert caught.value.report.accepted == 30 == sums.count()
    assert closed.is_set()
    assert not readers()


def test_a_target_that_is_closed_or_read_only_is_told(tmp_path: Path, sums: Engine) -> None:
    """Neither is retried; the error says on which side it was, and what had landed."""
    path = str(tmp_path / "store")
    LmdbEngine(path).open().close()
    sums.write(points_of(100))
    with LmdbEngine(path, read_only=True) as unwritten, pytest.raises(CopyError) as caught:
        tsengine.copy(sums, unwritten)
    assert isinstance(caught.value.__cause__, ReadOnlyError)
    assert caught.value.side == "target"
    target = MemoryEngine().open()

    def source() -> Iterator[Row]:
        yield from points_of(20)
        target.close()
        yield from points_of(20)

    with pytest.raises(CopyError) as caught:
        tsengine.copy(source(), target, points_max=5)
    assert isinstance(caught.value.__cause__, NotOpenError)
    assert caught.value.side == "target"
    assert not readers()


def test_a_batch_that_is_too_large_is_divided() -> None:
    """A target that takes few points at once gets few."""

    class Small(MemoryEngine):
        sizes: list[int] = []  # noqa: RUF012  # of one test

        def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
            if self.staged_points > 6:
                self.discard_buffer()
                raise BatchTooLargeError("too large")
            self.sizes.append(self.staged_points)
            return super().flush_buffer(mark)

    points = points_of(100)
    with Small(duplicate_policy="sum") as target:
        report = tsengine.copy(points, target, points_max=50, retry=AT_ONCE)
        assert report.accepted == 100
        assert rows_of(target) == summed(points)
        assert max(Small.sizes) <= 6


def test_an_error_after_the_last_commit_took_effect_counts_it(sums: Engine) -> None:
    """Where the target can tell that a commit was stored, what is said to have landed is exact."""
    faults = FaultyHandler(sums, Fault("flush_buffer", at=2, times=9, when=When.AFTER))
    with pytest.raises(CopyError) as caught:
        tsengine.copy(points_of(30), faults, points_max=10, retry=NEVER_AGAIN)
    assert caught.value.report.accepted == 20
    assert rows_of(sums) == summed(points_of(30)[:20])


# Exactly once, and resuming.


class Narrow(FaultyHandler):
    """Takes so many points at once and no more, besides its faults."""

    def __init__(self, most: int, engine: Engine, *faults: Fault) -> None:
        super().__init__(engine, *faults)
        self._most = most
        self._engine = engine

    def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
        """Refuse what is too much."""
        if self._engine.staged_points > self._most:
            self._engine.discard_buffer()
            raise BatchTooLargeError("too large")
        return super().flush_buffer(mark)


class Schedule:
    """Faults at random calls, before and after their effect, and kills."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def over(self, engine: Engine) -> FaultyHandler:
        """Put a few in front of an engine."""
        chance = self._chance
        kinds: list[Callable[[], BaseException]] = [
            lambda: StorageError("a fault on demand"),
            Abandoned,
        ]
        return Narrow(
            chance.choice([3, 10, 100]),
            engine,
            *(
                Fault(
                    chance.choice(["flush_buffer", "flush_buffer", "write_batch_to_buffer"]),
                    at=chance.randrange(1, 12),
                    times=chance.randrange(1, 5),
                    when=chance.choice([When.BEFORE, When.AFTER]),
                    error=chance.choice(kinds),
                )
                for _ in range(chance.randrange(4))
            ),
        )


def copy_until_done(
    source: Callable[[], Any], engine: Engine, chance: random.Random
) -> list[DataPoint]:
    """Copy again and again, with faults and kills, until a copy comes to its end.

    Gives what was rejected, in all runs.
    """
    runs = 0
    rejected: list[DataPoint] = []
    sides: set[str] = set()
    while True:
        runs += 1
        target = Schedule(chance).over(engine) if runs < 30 else engine
        try:
            report = tsengine.copy(
                source(),
                target,
                producer="again",
                points_max=chance.randrange(1, 40),
                on_reject=lambda points, _: rejected.extend(points),
                retry=RetryPolicy(
                    max_retries=chance.randrange(3), backoff_min=0.0, backoff_max=0.0,
                    min_batch_size=chance.randrange(1, 9),
                ),
            )  # fmt: skip
        except CopyError as error:
            sides.add(error.side)
        except Abandoned:
            engine.discard_buffer()
        else:
            mark = engine.high_water("again")
            assert mark is None or mark.sequence <= report.skipped + report.points
            assert not readers()
            assert sides <= {"target"}
            return rejected


@settings(max_examples=80)
@given(seed=st.integers(0, 2**32))
def test_faults_and_kills_store_nothing_twice_and_lose_nothing(seed: int) -> None:
    """Resumed after any faults, in commits of any other size, each point counts once.

    Each bad one among them is rejected at least once.
    """
    chance = random.Random(seed)
    points = points_of(120, seed)
    bad: list[Row] = [(SERIES[0], 0, float(number)) for number in range(chance.randrange(6))]
    mixed = [*points, *bad]
    chance.shuffle(mixed)
    order = chance.randrange(2**30)  # the source is the same each time

    def source() -> Any:
        return in_batches(mixed, random.Random(order))

    good = [point for point in mixed if point[1]]
    with MemoryEngine(duplicate_policy="sum") as engine:
        rejected = copy_until_done(source, engine, chance)
        assert {value for _, _, value in rejected} == {value for _, _, value in bad}
        assert rows_of(engine) == summed(good)
        again = tsengine.copy(source(), engine, producer="again", on_reject=lambda *_: None)
        assert again.accepted == 0
        assert rows_of(engine) == summed(good)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_a_store_copied_under_faults_and_kills_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    """The same from memory to LMDB, of all kinds that a sum knows."""
    folder = tmp_path_factory.mktemp("copies")
    chance = random.Random(seed)
    with (
        MemoryEngine(duplicate_policy="sum") as source,
        LmdbEngine(str(folder / "target"), duplicate_policy="sum") as target,
    ):
        source.write(points_of(100, seed))
        source.write_series(Labels("whole"), np.arange(1, 40), np.arange(1, 40))
        assert not copy_until_done(lambda: source, target, chance)
        tsengine.verify(source, target)


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 30), at=st.integers(1, 99))
def test_a_source_that_changed_before_the_place_is_refused(seed: int, size: int, at: int) -> None:
    """A point less, more, moved, or exchanged for another among those settled is noticed."""
    chance = random.Random(seed)
    points = [(SERIES[0], t, 1.0) for t in range(1, 101)]
    with MemoryEngine(duplicate_policy="sum") as target:
        tsengine.copy(points[:at], target, producer="p", points_max=size)
        held = rows_of(target)
        where = chance.randrange(at)
        changed = list(points)
        how = chance.randrange(3)
        if how == 0:
            del changed[where]
        elif how == 1:
            changed.insert(where, (SERIES[0], 1_000, 1.0))
        else:
            changed[where] = (SERIES[0], 1_000, 1.0)
        with pytest.raises(SourceChangedError, match="not those"):
            tsengine.copy(changed, target, producer="p")
        assert rows_of(target) == held
        with pytest.raises(SourceChangedError, match="ends after"):
            tsengine.copy(points[: at - 1], target, producer="p")
        assert rows_of(target) == held


def test_a_copy_that_is_run_again_takes_what_was_added(sums: Engine) -> None:
    """At its end a named copy goes on where the source went on."""
    points = points_of(60)
    assert tsengine.copy(points[:40], sums, producer="log").accepted == 40
    report = tsengine.copy(points, sums, producer="log", points_max=7)
    assert (report.skipped, report.accepted) == (40, 20)
    assert rows_of(sums) == summed(points)


def test_a_mark_is_kept_under_its_name_and_else_dropped(sums: Engine) -> None:
    """Only a copy with a name leaves a mark."""

    class Watching(MemoryEngine):
        forgotten: list[str] = []  # noqa: RUF012  # of one test

        def forget_producer(self, producer: str) -> None:
            assert self.high_water(producer) == (producer, 30, 0)
            self.forgotten.append(producer)
            super().forget_producer(producer)

    with Watching() as target:
        tsengine.copy(points_of(30), target)
        assert len(Watching.forgotten) == 1
        tsengine.copy(points_of(30), target, producer="named")
        assert len(Watching.forgotten) == 1
        mark = target.high_water("named")
        assert mark is not None
        assert mark.sequence == 30


def test_a_mark_that_cannot_be_dropped_is_no_failure(
    sums: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """All points are stored then; the log tells of the mark."""
    faults = FaultyHandler(sums, Fault("forget_producer"))
    assert tsengine.copy(points_of(30), faults).accepted == 30
    assert "stays in its store" in caplog.text


def test_a_target_without_marks_cannot_be_resumed() -> None:
    """A producer is refused where nothing would be kept of it; a copy without one is not."""

    class Plain(MemoryEngine):
        capabilities = MemoryEngine.capabilities - {Capability.PRODUCER_MARKS}

    with Plain(duplicate_policy="sum") as target:
        with pytest.raises(UnsupportedError, match="marks"):
            tsengine.copy([], target, producer="name")
        assert tsengine.copy(points_of(30), target, points_max=7).accepted == 30
        assert rows_of(target) == summed(points_of(30))


# What is bounded, told, and stopped.


def test_the_source_is_read_only_a_little_ahead(sums: Engine) -> None:
    """Never more than three commits' worth is on its way."""
    given = 0
    ahead: list[int] = []

    def source() -> Iterator[Row]:
        nonlocal given
        for given in range(1, 2_001):
            yield SERIES[0], given, 1.0

    class Watching(MemoryEngine):
        def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
            receipt = super().flush_buffer(mark)
            ahead.append(given - self.count())
            return receipt

    with Watching() as target:
        tsengine.copy(source(), target, points_max=20)
    assert max(ahead) <= 3 * 20


@pytest.mark.parametrize("is_async", [False, True])
def test_a_slow_source_is_committed_as_it_comes(is_async: bool) -> None:
    """What has arrived lands after `age_max`, though it is less than a commit takes."""
    landed = threading.Event()

    class Watching(MemoryEngine):
        def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
            receipt = super().flush_buffer(mark)
            landed.set()
            return receipt

    def slow() -> Iterator[object]:
        yield SERIES[0], 1, 1.0
        assert landed.wait(30)
        landed.clear()
        yield SeriesBatch(SERIES[0], np.array([2]), np.array([1.0]))
        assert landed.wait(30)
        yield SERIES[0], 3, 1.0

    async def slow_async() -> Any:
        for item in slow():
            yield item

    with Watching() as target:
        source: Any = slow_async() if is_async else slow()
        assert tsengine.copy(source, target, age_max=0.01).accepted == 3


def test_progress_is_told_from_the_calling_thread(memory: Engine, sums: Engine) -> None:
    """It grows to the end, where nothing is left; not more often than asked for."""
    memory.write([(labels, t, 1.0) for labels in SERIES for t in range(1, 51)])
    told: list[Progress] = []
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.125
        return now

    def progress(one: Progress) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append(one)

    options: dict[str, Any] = {"points_max": 10, "clock": clock, "progress": progress}
    tsengine.copy(memory, sums, **options, progress_interval=0)
    assert [one.points for one in told] == [*range(10, 201, 10), 200]
    assert {one.points_total for one in told} == {200}
    assert told[-1].seconds_left == 0
    assert told[-1].series == 4
    assert told[-1].bytes == 16 * 200
    assert all(one.rate > 0 for one in told)
    middle = told[9].seconds_left
    assert middle is not None
    assert middle > 0
    told.clear()
    tsengine.copy(memory, sums, **options, progress_interval=1e9)
    assert [one.points for one in told] == [200]
    told.clear()
    tsengine.copy(iter(points_of(20)), sums, **options)
    assert told[-1].points_total is None


def test_a_progress_that_raises_stops_the_copy(sums: Engine) -> None:
    """Its error is the cause, and the report says what had landed."""

    def progress(one: Progress) -> None:
        raise RuntimeError("no terminal")

    with pytest.raises(CopyError, match="no terminal") as caught:
        tsengine.copy(points_of(50), sums, points_max=10, progress=progress, progress_interval=0)
    assert caught.value.side == "caller"
    assert caught.value.report.accepted == 10


@pytest.mark.parametrize("is_async", [False, True])
def test_a_cancelled_copy_says_what_had_landed(sums: Engine, is_async: bool) -> None:
    """`cancel` ends it, closes the source, and a named copy can be resumed."""
    cancel = threading.Event()
    points = points_of(100)
    closed = threading.Event()

    def source() -> Iterator[Row]:
        try:
            yield from points
        finally:
            closed.set()

    async def source_async() -> Any:
        try:
            for point in points:
                yield point
        finally:
            closed.set()

    def progress(one: Progress) -> None:
        if one.points >= 40:
            cancel.set()

    given: Any = source_async() if is_async else source()
    with pytest.raises(CopyCancelledError) as caught:
        tsengine.copy(
            given, sums, producer="p", points_max=10, cancel=cancel, progress=progress,
            progress_interval=0,
        )  # fmt: skip
    assert isinstance(caught.value, tsengine.CancelledError)
    assert caught.value.report.accepted == 40
    assert closed.is_set()
    assert not readers()
    tsengine.copy(points, sums, producer="p")
    assert rows_of(sums) == summed(points)


def test_an_async_source_that_waits_is_cancelled(sums: Engine) -> None:
    """One that would never give anything more does not keep the copy."""
    cancel = threading.Event()

    async def source() -> Any:
        import asyncio

        yield SERIES[0], 1, 1.0
        cancel.set()
        await asyncio.Event().wait()

    with pytest.raises(CopyCancelledError):
        tsengine.copy(source(), sums, cancel=cancel)
    assert not readers()


def test_a_retry_pause_is_ended_by_cancel(sums: Engine) -> None:
    """The commit's error is the cause then."""
    cancel = threading.Event()

    def fail() -> BaseException:
        cancel.set()
        return StorageError("busy")

    faults = FaultyHandler(sums, Fault("flush_buffer", at=2, times=9, error=fail))
    with pytest.raises(CopyCancelledError) as caught:
        tsengine.copy(
            points_of(30), faults, points_max=10, cancel=cancel,
            retry=RetryPolicy(backoff_min=1e6, backoff_max=1e6, deadline=None),
        )  # fmt: skip
    assert isinstance(caught.value.__cause__, StorageError)
    assert caught.value.report.accepted == 10


def test_a_timeout_is_for_the_whole_copy(sums: Engine) -> None:
    """Once it is over nothing more is committed, and no retry is waited for."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    with pytest.raises(CopyTimeoutError) as caught:
        tsengine.copy(points_of(100), sums, points_max=1, timeout=40, clock=clock)
    assert isinstance(caught.value, tsengine.WaitTimeoutError)
    assert 0 < caught.value.report.accepted < 100
    faults = FaultyHandler(sums, Fault("flush_buffer", times=9))
    with pytest.raises(CopyTimeoutError):
        tsengine.copy(
            points_of(3), faults, timeout=60,
            retry=RetryPolicy(backoff_min=1e6, backoff_max=1e6, deadline=None),
        )  # fmt: skip


def test_a_point_staged_by_the_caller_is_left_alone(sums: Engine) -> None:
    """A copy does not commit what its thread has staged itself."""
    sums.write_to_buffer((SERIES[0], 1, 1.0))
    with pytest.raises(CopyError, match="staged"):
        tsengine.copy(points_of(10), sums)
    assert sums.staged_points == 1
    sums.discard_buffer()


def test_an_interrupt_leaves_at_once(sums: Engine) -> None:
    """Ctrl-C is not wrapped; no thread is left, and nothing is staged."""
    faults = FaultyHandler(sums, Fault("flush_buffer", at=3, error=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tsengine.copy(points_of(100), faults, points_max=10)
    assert not readers()
    assert sums.staged_points == 0
    assert rows_of(sums) == summed(points_of(100)[:20])


def test_errors_travel_between_processes(memory: Engine) -> None:
    """An error of a copy is pickled with its report."""
    import pickle

    with pytest.raises(CopyError) as caught:
        tsengine.copy([(SERIES[0], 1, 1.0), (SERIES[0], 2, "text")], memory)
    copied = pickle.loads(pickle.dumps(caught.value))
    assert (copied.report, copied.side) == (caught.value.report, "source")
    assert isinstance(copied.rejections[0][1], ValueKindError)
