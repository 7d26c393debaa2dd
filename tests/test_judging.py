from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tsengine.buffering.judging
from tsengine.backends.memory import MemoryEngine
from tsengine.buffer import WriteBuffer
from tsengine.engine import Engine
from tsengine.errors import (
    BatchShapeError,
    InvalidDataError,
    LabelsError,
    TimestampError,
    ValueKindError,
)
from tsengine.model import DataPoint, Labels, PointLike, Value, ValueKind

A, B, C = (Labels("cpu", host=host) for host in "abc")
SERIES = [Labels("load", host=str(number)) for number in range(5)]

Way = Callable[[WriteBuffer, list[PointLike]], object]


def bits(point: DataPoint) -> tuple[Labels, int, object]:
    """A point whose floats are compared bit for bit, and whose kinds are told apart."""
    value = point.value
    if isinstance(value, float):
        return point.labels, point.timestamp, struct.pack("d", value)
    return point.labels, point.timestamp, (type(value), value)


def read(engine: Engine) -> list[tuple[Labels, int, object]]:
    """Read all that is stored."""
    return [bits(point) for batch in engine.query() for point in batch.points()]


@pytest.fixture
def memory() -> Iterator[MemoryEngine]:
    """An engine whose structures are checked in the end."""
    with MemoryEngine() as engine:
        yield engine
        engine.check()


# ------------------------------------------------------------------- what goes in comes out


def one_by_one(buffer: WriteBuffer, points: list[PointLike]) -> None:
    """Write points with `write`."""
    for point in points:
        buffer.write(point)


def from_generator(buffer: WriteBuffer, points: list[PointLike]) -> None:
    """Write points with `write_many`, which sees each of them once."""
    buffer.write_many(point for point in points)


@pytest.mark.parametrize("way", [one_by_one, WriteBuffer.write_many, from_generator])
@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (1.5, 1.5),
        (float("-inf"), float("-inf")),
        (-0.0, -0.0),
        (np.float64(2.5), 2.5),
        (np.float32(0.5), 0.5),
        (7, 7.0),
        (np.int16(7), 7.0),
        (True, True),
        ("text", "text"),
        (b"bytes", b"bytes"),
        ({"a": [1, (2, None)]}, {"a": [1, [2, None]]}),
    ],
    ids=repr,
)
def test_each_kind_of_value_is_committed_in_its_stored_form(
    memory: MemoryEngine, way: Way, given: object, stored: Value
) -> None:
    """A value is committed as the model says it is stored, the first time and the next."""
    with WriteBuffer(memory) as buffer:
        way(buffer, [(A, 1, given), (A, np.int64(2), given)])
        way(buffer, [(A, 3, given)])
    expected = [DataPoint(A, moment, stored) for moment in (1, 2, 3)]
    assert read(memory) == [bits(point) for point in expected]


Outcome = tuple[type[InvalidDataError] | None, tuple[int, ...]]


def outcome(call: Callable[[], object]) -> Outcome:
    """What a call raises of invalid data, and which indices it names."""
    try:
        call()
    except InvalidDataError as error:
        return type(error), error.indices
    return None, ()


numbers = st.floats() | st.integers(-5, 5) | st.just(2**53 + 1)
values = numbers | st.booleans() | st.text(max_size=3)
some_points = st.lists(
    st.builds(DataPoint, st.sampled_from(SERIES), st.integers(0, 6), values), max_size=12
)
some_columns = st.lists(st.builds(DataPoint, st.just(SERIES[0]), st.integers(1, 6), numbers))
steps = st.lists(
    st.tuples(st.sampled_from(["write", "many", "flush"]), some_points)
    | st.tuples(st.just("series"), some_columns),
    max_size=12,
)


@given(
    steps,
    st.integers(1, 20),
    st.sampled_from(["last", "first", "sum"]),
    st.sampled_from(["float", "int"]),
)
def test_a_buffer_stores_what_direct_writes_store(
    steps: list[tuple[str, list[DataPoint]]], points_max: int, policy: str, integers: str
) -> None:
    """Through a buffer of any size the same calls raise, and the same points are stored."""

    def do(target: Engine | WriteBuffer, way: str, some: list[DataPoint]) -> list[Outcome]:
        if way == "series":
            moments = [point.timestamp for point in some]
            column = [point.value for point in some]
            return [outcome(partial(target.write_series, SERIES[0], moments, column))]
        if isinstance(target, Engine):
            calls = [some] if way == "many" else [[point] for point in some]
            return [outcome(partial(target.write, call)) for call in calls]
        if way == "many":
            return [outcome(partial(target.write_many, iter(some)))]
        return [outcome(partial(target.write, point)) for point in some]

    options: dict[str, Any] = {"duplicate_policy": policy, "integers": integers}
    with MemoryEngine("", **options) as direct, MemoryEngine("", **options) as behind:
        with WriteBuffer(behind, points_max=points_max) as buffer:
            for way, some in steps:
                if way == "flush":
                    buffer.flush()
                    continue
                raised, expected = do(buffer, way, some), do(direct, way, some)
                assert [one[0] for one in raised] == [one[0] for one in expected]
                if way != "write":  # of one point there is no index to tell
                    assert raised == expected
        found, stored = read(behind), read(direct)
        if policy == "sum":  # floats may add up in another order
            assert [row[:2] for row in found] == [row[:2] for row in stored]
        else:
            assert found == stored
        behind.check()


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (np.array([1.0, 2.0]), ValueKind.FLOAT),
        (np.array([1, 2], np.float32), ValueKind.FLOAT),
        (np.array([1, 2**53 + 1]), ValueKind.INT),
        (np.array([1, 2], np.uint8), ValueKind.INT),
        ([1, 2], ValueKind.FLOAT),
        ([1.5, 2], ValueKind.FLOAT),
        (["a", {"b": 1}], ValueKind.OBJECT),
        (np.array([True, False]), ValueKind.OBJECT),
    ],
    ids=repr,
)
def test_columns_open_the_kind_that_they_open_directly(
    memory: MemoryEngine, column: object, kind: ValueKind
) -> None:
    """`write_series` of a new series opens the same kind as `Engine.write_series` does."""
    memory.write_series(A, [1, 2], column)
    with WriteBuffer(memory) as buffer:
        buffer.write_series(B, np.array([1, 2]), column)
        buffer.write_series(B, np.array([3, 4], "datetime64[ns]"), column)
    assert memory.series_kind(A) is memory.series_kind(B) is kind
    first, second = memory.query()
    assert [*first.values.tolist() * 2] == second.values.tolist()


def test_a_kind_that_the_store_knows_decides_over_integers(memory: MemoryEngine) -> None:
    """Integers for a stored series of floats become floats; inexact ones raise, by index."""
    memory.write([(A, 1, 1.0)])
    buffer = WriteBuffer(memory)
    with pytest.raises(ValueKindError) as caught:
        buffer.write_series(A, [2, 3], np.array([1, 2**53 + 1]))
    assert caught.value.indices == (1,)
    buffer.write_series(A, [2, 3], np.array([1, 2]))
    buffer.close()
    assert memory.query()[0].values.tolist() == [1.0, 1.0, 2.0]


def test_nothing_of_a_caller_is_kept(memory: MemoryEngine) -> None:
    """What a caller changes after a write does not change the points."""
    moments, column = np.array([1, 2]), np.array([1.0, 2.0])
    record, names = {"a": [1]}, ["x", ["y"]]
    with WriteBuffer(memory) as buffer:
        buffer.write_series(A, moments, column)
        buffer.write_series(C, moments, names)
        buffer.write((B, 1, record))
        moments[:], column[:] = 9, 9.0
        record["a"].append(2)
        names[1].append("z")  # type: ignore[attr-defined]  # the list inside
    assert [point[1:] for batch in memory.query() for point in batch.points()] == [
        (1, 1.0),
        (2, 2.0),
        (1, {"a": [1]}),
        (1, "x"),
        (2, ["y"]),
    ]


# --------------------------------------------------------------------- what is not valid

BAD_POINTS: list[tuple[object, type[InvalidDataError]]] = [
    ((A, 0, 1.0), TimestampError),
    ((A, -5, 1.0), TimestampError),
    ((A, 2**63, 1.0), TimestampError),
    ((A, True, 1.0), TimestampError),
    ((A, 1.0, 1.0), TimestampError),
    ((A, "2024-01-01T00:00:00Z", 1.0), TimestampError),
    ((A, None, 1.0), TimestampError),
    ((A, 1, "text"), ValueKindError),
    ((A, 1, True), ValueKindError),
    ((A, 1, None), ValueKindError),
    ((A, 1, 2**53 + 1), ValueKindError),
    ((A, 1, 1j), ValueKindError),
    ((Labels(), 1, 1.0), LabelsError),
    (({"host": "a"}, 1, 1.0), LabelsError),
    (("cpu", 1, 1.0), LabelsError),
    ((None, 1, 1.0), LabelsError),
    ((A, 1), InvalidDataError),
    ((A, 1, 1.0, 2.0), InvalidDataError),
    (None, InvalidDataError),
    (7, InvalidDataError),
]


@pytest.mark.parametrize(("bad", "error"), BAD_POINTS, ids=repr)
def test_a_bad_point_raises_at_its_caller(
    memory: MemoryEngine, bad: PointLike, error: type[InvalidDataError]
) -> None:
    """A point that is not valid raises what the engine raises, alone or among others.

    Nothing of the call is taken, and `indices` names the offenders.
    """
    with WriteBuffer(memory) as buffer:
        buffer.write((A, 1, 1.0))
        with pytest.raises(error):
            buffer.write(bad)
        with pytest.raises(error) as direct:
            memory.write([(A, 2, 2.0), bad, (A, 3, 3.0), bad])
        with pytest.raises(error) as buffered:
            buffer.write_many([(A, 2, 2.0), bad, (A, 3, 3.0), bad])
        assert type(buffered.value) is type(direct.value)
        assert buffered.value.indices == (1, 3)
        assert buffer.pending == 1
    assert memory.count() == 1


@pytest.mark.parametrize(
    ("moments", "column", "error", "indices"),
    [
        ([1, 0, 3], [1.0, 2.0, 3.0], TimestampError, (1,)),
        ([1, "naive", 3], [1.0, 2.0, 3.0], TimestampError, (1,)),
        ([1, 2], [1.0], BatchShapeError, ()),
        (np.array([[1]]), [1.0], BatchShapeError, ()),
        ([1, 2], np.zeros((2, 1)), BatchShapeError, ()),
        ([1, 2], np.array([1j, 2j]), BatchShapeError, ()),
        ([1, 2], ["a", "b"], ValueKindError, (0, 1)),
        ([1, 2], [1.0, None], ValueKindError, (1,)),
        ([1, 2], np.array([2**53 + 1, 1]), ValueKindError, (0,)),
    ],
)
def test_bad_columns_raise_at_their_caller(
    memory: MemoryEngine,
    moments: object,
    column: object,
    error: type[InvalidDataError],
    indices: tuple[int, ...],
) -> None:
    """Columns that are not valid raise, naming the rows; none of them is taken."""
    with WriteBuffer(memory) as buffer:
        buffer.write((A, 9, 1.0))
        with pytest.raises(error) as caught:
            buffer.write_series(A, moments, column)
        assert caught.value.indices == indices
        with pytest.raises(LabelsError):
            buffer.write_series(Labels(), [1], [1.0])
        assert buffer.pending == 1


class Asked(MemoryEngine):
    """Remembers what it is asked about."""

    points: list[PointLike]

    def validate_point(self, point: PointLike) -> DataPoint:
        """Judge as ever."""
        self.points.append(point)
        return super().validate_point(point)


def test_the_handler_is_asked_once_a_series() -> None:
    """`validate_point` sees the first point of each series; the shared rules judge the rest."""
    engine = Asked(integers="int")
    engine.points = []
    with engine, WriteBuffer(engine) as buffer:
        for moment in range(1, 50):
            for labels, value in ((A, 1.0), (B, "text"), (C, 3)):
                buffer.write((labels, moment, value))
        buffer.write_many([(A, moment, 1.0) for moment in range(50, 60)])
        buffer.write_series(B, [1], ["a"])
    assert engine.points == [(A, 1, 1.0), (B, 1, "text"), (C, 1, 3)]


def test_a_handler_may_ask_to_see_every_point() -> None:
    """Under `future_max`, which depends on the clock, each point is judged by the engine."""
    now = 1_000
    with (
        MemoryEngine("", clock_ns=lambda: now, future_max="100ns") as engine,
        WriteBuffer(engine) as buffer,
    ):
        buffer.write((A, 1_100, 1.0))
        calls: list[Callable[[], object]] = [
            lambda: buffer.write((A, 1_101, 1.0)),
            lambda: buffer.write_many([(A, 5, 1.0), (A, 1_101, 1.0)]),
            lambda: buffer.write_series(A, [5, 1_101], [1.0, 2.0]),
        ]
        for call in calls:
            with pytest.raises(TimestampError):
                call()
        now = 2_000
        buffer.write((A, 1_101, 1.0))
        buffer.write_many([(A, 1_102, 1.0)])
        buffer.write_series(A, [1_103, 1_104], np.array([1, 2]))
        buffer.flush()
        assert engine.query()[0].timestamps.tolist() == [1_100, 1_101, 1_102, 1_103, 1_104]


def test_a_buffer_goes_by_the_bounds_of_its_store() -> None:
    """`min_timestamp` of the store is that of the buffer, for single points and for columns."""
    with MemoryEngine("", min_timestamp=-10) as engine, WriteBuffer(engine) as buffer:
        buffer.write((A, -10, 1.0))
        buffer.write((A, -9, 1.0))
        buffer.write_many([(A, -8, 1.0)])
        buffer.write_series(A, [-7], [1.0])
        calls: list[Callable[[], object]] = [
            lambda: buffer.write((A, -11, 1.0)),
            lambda: buffer.write_many([(A, -11, 1.0)]),
            lambda: buffer.write_series(A, [-11], [1.0]),
        ]
        for call in calls:
            with pytest.raises(TimestampError):
                call()
        assert buffer.pending == 4


def test_pending_points_fix_the_kind_of_their_series(memory: MemoryEngine) -> None:
    """A value of another kind than a pending point raises at its caller, before any commit."""
    with WriteBuffer(memory) as buffer:
        buffer.write((A, 1, 1.0))
        buffer.write_many([(B, 1, "text")])
        for labels, value in ((A, "text"), (B, 1.0)):
            with pytest.raises(ValueKindError, match="pending"):
                buffer.write((labels, 2, value))
            with pytest.raises(ValueKindError):
                buffer.write_series(labels, [2], [value])
        with pytest.raises(ValueKindError) as caught:
            buffer.write_many([(C, 1, 1.0), (C, 2, 2), (C, 3, "text")])
        assert caught.value.indices == (2,)
        buffer.write((C, 1, "text"))  # the failed call has fixed no kind
        assert buffer.pending == 3


def test_a_delete_frees_the_kind_of_a_series(memory: MemoryEngine) -> None:
    """After a delete without bounds, points of another kind go through the same buffer."""
    with WriteBuffer(memory) as buffer:
        ways: list[Callable[[Value], object]] = [
            lambda value: buffer.write((A, 1, value)),
            lambda value: buffer.write_many([(A, 1, value)]),
            lambda value: buffer.write_series(A, [1], [value]),
        ]
        for way in ways:
            for value in (1.0, "text"):
                way(value)
                buffer.flush()
                assert memory.latest()[0].value == value
                memory.delete(A)


def test_the_memory_of_series_is_bounded(
    memory: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A buffer forgets series when it knows too many, and takes points of them as before."""
    monkeypatch.setattr(tsengine.buffering.judging, "SERIES_MAX", 4)
    with WriteBuffer(memory, points_max=10) as buffer:
        for number in range(100):
            labels = Labels("churn", number=str(number))
            for moment in (1, 2):
                buffer.write((labels, moment, float(number)))
                buffer.write((A, 2 * number + moment, "text"))
            assert len(buffer._judge.floats) + len(buffer._judge._kinds) <= 10 + 4
    assert memory.count() == 400


def test_the_kind_of_pending_points_is_not_forgotten(
    memory: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A series with pending points keeps its kind, however many series are forgotten."""
    monkeypatch.setattr(tsengine.buffering.judging, "SERIES_MAX", 2)
    with WriteBuffer(memory) as buffer:
        buffer.write((A, 1, 1.0))
        buffer.write_series(B, [1], ["text"])
        for number in range(10):
            buffer.write((Labels("more", number=str(number)), 1, 1.0))
        for labels, value in ((A, "text"), (B, 1.0)):
            with pytest.raises(ValueKindError, match="pending"):
                buffer.write((labels, 2, value))
