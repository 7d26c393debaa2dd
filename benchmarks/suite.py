"""What is measured of every backend with pytest-benchmark: one class, subclassed per backend.

Sizes are small, so that the suite also runs as a test (`--benchmark-disable`, each function
once) and a change that breaks a path is seen without measuring anything. The figures that
the package is held to, at full size and beside peers, come from `benchmarks.report`.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

import pytest

import tsengine
from benchmarks.workload import START_NS, STEP_NS, Workload, workload
from tsengine import DataPoint, Engine, GroupedBatch, Labels, SeriesBatch, WriteBuffer

SERIES = 1_000
STEPS = 50
"""Points a series in the writing benchmarks, single writes and bulk."""
LONG_SERIES = 20
LONG = 10_000
"""Points in each of the first `LONG_SERIES` series of the store that is read."""
SHORT = 500
"""Points in each other series of it."""
RANGE = 360
"""Points of a short range: one hour."""
ROUNDS = 5

Arguments: TypeAlias = tuple[tuple[object, ...], dict[str, object]]
"""Positional and keyword arguments of what is measured."""

_Result = TypeVar("_Result")


class Benchmark(Protocol):
    """The fixture of pytest-benchmark, as far as it is used here; it has no types itself."""

    def __call__(self, function: Callable[[], _Result], /) -> _Result:
        """Call a function many times and give one of its results."""

    def pedantic(
        self,
        target: Callable[..., _Result],
        *,
        setup: Callable[[], Arguments],
        rounds: int,
    ) -> _Result:
        """Call a function so many times, each after a setup that makes its arguments."""


class BackendBenchmarks(ABC):
    """Writing into fresh stores, reading from one that is prepared."""

    @classmethod
    @abstractmethod
    def url(cls, folder: Path) -> str:
        """Name a new store; the folder is empty and its own."""

    # Stores and data.

    @pytest.fixture(scope="class")
    @classmethod
    def written(cls) -> Workload:
        """Give what the writing benchmarks write, and one time before it."""
        return workload(SERIES, 1 + STEPS)

    @pytest.fixture(scope="class")
    @classmethod
    def prime(cls, written: Workload) -> list[DataPoint]:
        """Give one point of each series, so that no clock runs over new series."""
        return written.points(0, 1)

    @pytest.fixture(scope="class")
    @classmethod
    def points(cls, written: Workload) -> list[DataPoint]:
        """Give the points that are written one by one, over all series in turn."""
        return written.points(1)

    @pytest.fixture
    def new_engine(self, tmp_path: Path) -> Iterator[Callable[[], Engine]]:
        """Give a function that opens new stores; they are closed when the benchmark is done."""
        numbers = itertools.count()
        with ExitStack() as opened:

            def open_new() -> Engine:
                folder = tmp_path / str(next(numbers))
                folder.mkdir()
                return opened.enter_context(tsengine.open(self.url(folder)))

            yield open_new

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
        """Give the store that is read: 20 long series among 1,000, compacted."""
        all_series = workload(SERIES, SHORT)
        longer = workload(LONG_SERIES, LONG - SHORT, start_ns=START_NS + SHORT * STEP_NS, seed=1)
        with tsengine.open(cls.url(tmp_path_factory.mktemp("read"))) as engine:
            engine.write_batch(all_series.batch())
            engine.write_batch(longer.batch())
            engine.compact()
            yield engine

    @pytest.fixture(scope="class")
    @classmethod
    def labels(cls) -> Labels:
        """Give one of the long series."""
        return workload(LONG_SERIES, 0).labels[LONG_SERIES // 2]

    @pytest.fixture
    def new_buffer(
        self, new_engine: Callable[[], Engine], prime: Sequence[DataPoint]
    ) -> Callable[[], Arguments]:
        """Give a function that makes the argument of a writing round: a buffer on a new store."""

        def make() -> Arguments:
            engine = new_engine()
            engine.write(prime)
            return (WriteBuffer(engine),), {}

        return make

    # Writing. Each round has a store of its own in which every series is known.

    def test_single_writes(
        self,
        benchmark: Benchmark,
        new_buffer: Callable[[], Arguments],
        points: Sequence[DataPoint],
    ) -> None:
        """`WriteBuffer.write`, point by point, until `close` returns."""

        def write(buffer: WriteBuffer) -> None:
            write_point = buffer.write
            for point in points:
                write_point(point)
            buffer.close()

        benchmark.pedantic(write, setup=new_buffer, rounds=ROUNDS)

    def test_write_many(
        self,
        benchmark: Benchmark,
        new_buffer: Callable[[], Arguments],
        points: Sequence[DataPoint],
    ) -> None:
        """`WriteBuffer.write_many`, 1,000 points a call, until `close` returns."""
        parts = [points[first : first + 1_000] for first in range(0, len(points), 1_000)]

        def write(buffer: WriteBuffer) -> None:
            for part in parts:
                buffer.write_many(part)
            buffer.close()

        benchmark.pedantic(write, setup=new_buffer, rounds=ROUNDS)

    def test_bulk(
        self,
        benchmark: Benchmark,
        new_engine: Callable[[], Engine],
        prime: Sequence[DataPoint],
        written: Workload,
    ) -> None:
        """`Engine.write_batch` of columns of all series."""
        batch = written.batch()

        def setup() -> Arguments:
            engine = new_engine()
            engine.write(prime)
            return (engine, batch), {}

        def write(engine: Engine, columns: GroupedBatch) -> int:
            return engine.write_batch(columns).accepted

        assert benchmark.pedantic(write, setup=setup, rounds=ROUNDS) == len(batch)

    def test_copy(
        self, benchmark: Benchmark, new_engine: Callable[[], Engine], engine: Engine
    ) -> None:
        """`tsengine.copy` of the store that is read into an empty one of the same backend."""

        def setup() -> Arguments:
            return (engine, new_engine()), {}

        def copy(source: Engine, target: Engine) -> int:
            return tsengine.copy(source, target).accepted

        assert benchmark.pedantic(copy, setup=setup, rounds=ROUNDS) == engine.count()

    # Reading.

    def test_whole_series(self, benchmark: Benchmark, engine: Engine, labels: Labels) -> None:
        """`Engine.query` of one series of 10,000 points."""

        def read() -> SeriesBatch:
            (batch,) = engine.query(labels)
            return batch

        assert len(benchmark(read)) == LONG

    def test_short_range(self, benchmark: Benchmark, engine: Engine, labels: Labels) -> None:
        """`Engine.query` of an hour out of one series."""
        start = START_NS + LONG // 2 * STEP_NS

        def read() -> SeriesBatch:
            (batch,) = engine.query(labels, start, start + RANGE * STEP_NS)
            return batch

        assert len(benchmark(read)) == RANGE

    def test_latest(self, benchmark: Benchmark, engine: Engine) -> None:
        """`Engine.latest` of all 1,000 series."""

        def read() -> list[DataPoint]:
            return engine.latest()

        assert len(benchmark(read)) == SERIES

    def test_windows_of_a_series(
        self, benchmark: Benchmark, engine: Engine, labels: Labels
    ) -> None:
        """`Engine.aggregate`: five-minute means of one series of 10,000 points."""

        def aggregate() -> SeriesBatch:
            (batch,) = engine.aggregate(labels, functions=["mean"], every="5m")
            return batch

        assert len(benchmark(aggregate)) == -(-(LONG + START_NS // STEP_NS % 30) // 30)

    def test_windows_of_a_group(self, benchmark: Benchmark, engine: Engine) -> None:
        """`Engine.aggregate`: hourly maxima of all 1,000 series by region."""

        def aggregate() -> int:
            return len(engine.aggregate(functions=["max"], every="1h", group_by=["region"]))

        assert benchmark(aggregate) == 9

    def test_totals(self, benchmark: Benchmark, engine: Engine) -> None:
        """`Engine.aggregate`: sum, least, greatest and count of everything."""

        def aggregate() -> int:
            functions = ["sum", "min", "max", "count"]
            return len(engine.aggregate(functions=functions, group_by=[]))

        assert benchmark(aggregate) == 4

    def test_equality_selector(self, benchmark: Benchmark, engine: Engine) -> None:
        """`Engine.series` by an equality matcher: ten of 1,000."""

        def look_up() -> list[Labels]:
            return list(engine.series('{hostname="host_7"}'))

        assert len(benchmark(look_up)) == 10

    def test_regex_selector(self, benchmark: Benchmark, engine: Engine) -> None:
        """`Engine.series` by a metric name and a regular expression: 22 of 1,000."""

        def look_up() -> list[Labels]:
            return list(engine.series('cpu_usage_user{region=~"eu-.*"}'))

        assert len(benchmark(look_up)) == 22
