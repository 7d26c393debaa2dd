from __future__ import annotations

import gc
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recorder import AT_ONCE, A, B, C, Recorder, failing, points, run_threads
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.buffer import WriteBuffer
from tsengine.engine import WriteBufferHandler
from tsengine.errors import (
    ConfigurationError,
    DuplicatePointError,
    NotOpenError,
    RejectedPointsError,
    StorageError,
    UnknownOptionError,
    UnsavedPointsError,
    ValueKindError,
)
from tsengine.model import (
    DataPoint,
    GroupedBatch,
    Labels,
    PointLike,
    ProducerMark,
    WriteReceipt,
)
from tsengine.testing.faults import Fault, FaultyHandler, When

SERIES = [Labels("load", host=str(number)) for number in range(5)]


@pytest.fixture
def recorder() -> Recorder:
    """A handler that keeps what it is given."""
    return Recorder()


@pytest.fixture
def memory() -> Iterator[MemoryEngine]:
    """An engine whose structures are checked in the end."""
    with MemoryEngine() as engine:
        yield engine
        engine.check()


# ------------------------------------------------------------------------- commits


def test_the_write_that_fills_a_buffer_commits_it(recorder: Recorder) -> None:
    """The write that brings the pending points to `points_max` commits them, none before."""
    buffer = WriteBuffer(recorder, points_max=4)
    for number, point in enumerate(points(11), 1):
        buffer.write(point)
        assert len(recorder.commits) == number // 4
        assert buffer.pending == number % 4
    buffer.close()
    assert recorder.stored == points(11)


@pytest.mark.parametrize("points_max", [1, 3, 4, 100])
def test_large_calls_are_committed_in_batches(recorder: Recorder, points_max: int) -> None:
    """No commit has more than `points_max` points; each has the next number."""
    buffer = WriteBuffer(recorder, points_max=points_max)
    buffer.write_many(points(30))
    buffer.write_series(B, range(1, 31), np.arange(30.0))
    buffer.write_many(points(7, C))
    buffer.write((C, 99, 1.0))
    buffer.close()
    sizes = [sum(map(len, batches)) for batches in recorder.commits]
    assert max(sizes) <= points_max
    assert sum(sizes) == 68
    assert recorder.marks == [
        ProducerMark(buffer.producer, number) for number in range(1, len(sizes) + 1)
    ]
    assert recorder.of(A) == points(30)
    assert recorder.of(B) == points(30, B)
    assert recorder.of(C) == [*points(7, C), (C, 99, 1.0)]


def test_receipts_count_points_in_order_of_arrival(recorder: Recorder) -> None:
    """The receipt of a flush sums its commits; refused points are named by order of arrival."""
    recorder.refuses = lambda value: value in (2.0, "b")
    buffer = WriteBuffer(recorder, points_max=8, pending_max=100, retry=AT_ONCE)
    recorder.before = failing(1)
    some: list[PointLike] = [
        (A, 1, 1.0), (B, 1, "a"), (C, 1, 2.0), (A, 2, 2.0), (B, 2, "b"), (A, 3, 3.0), (B, 3, "b"),
        (A, 4, 2.0), (A, 5, 1.0), (B, 4, "b"), (C, 2, 1.0),
    ]  # fmt: skip
    buffer.write_many(some)
    receipt = buffer.flush()
    assert receipt == WriteReceipt(11, 5, 6, 0, {"cap": 6}, (2, 3, 4, 6, 7, 9))
    assert buffer.flush() == WriteReceipt(0, 0)
    buffer.write_many([(A, 6, 2.0)] * 8)  # committed by size
    assert buffer.committed == WriteReceipt(19, 5, 14, 0, {"cap": 14})
    buffer.close()


def test_a_kind_lost_to_another_buffer_rejects_its_points_alone(memory: MemoryEngine) -> None:
    """Of two buffers that race for the kind of a series, the loser's points are in the error."""
    first, second = WriteBuffer(memory), WriteBuffer(memory)
    first.write_many([(A, 1, 1.0), (B, 1, 1.0)])
    second.write_many([(C, 1, "ok"), (A, 1, "text"), (B, 2, 2.0), (A, 2, "text"), (C, 2, "ok")])
    first.close()
    with pytest.raises(RejectedPointsError) as caught:
        second.flush()
    assert caught.value.points == [(A, 1, "text"), (A, 2, "text")]
    ((points, error),) = caught.value.rejections
    assert isinstance(error, ValueKindError)
    assert error.indices == (0, 1)
    assert len(points) == 2
    assert second.pending == 0
    second.close()
    assert [len(batch) for batch in memory.query()] == [1, 2, 2]


def test_a_policy_that_raises_rejects_its_points_alone() -> None:
    """Under the policy `error` only the points that repeat others are rejected."""
    with MemoryEngine("", duplicate_policy="error") as engine:
        engine.write([(A, 2, 1.0)])
        buffer = WriteBuffer(engine)
        buffer.write_many([(B, 2, 1.0), (A, 2, 5.0), (A, 3, 1.0), (A, 3, 6.0)])
        with pytest.raises(RejectedPointsError) as caught:
            buffer.flush()
        assert isinstance(caught.value.__cause__, DuplicatePointError)
        assert caught.value.points == [(A, 2, 5.0), (A, 3, 6.0)]
        buffer.close()
        assert engine.count() == 3


def test_a_handler_may_stage_point_by_point() -> None:
    """The default of `write_batch_to_buffer` serves: no mark, no batch, the same points."""

    class Small(Recorder):
        def write_batch_to_buffer(self, batch: GroupedBatch) -> None:
            WriteBufferHandler.write_batch_to_buffer(self, batch)

        def write_to_buffer(self, point: PointLike) -> None:
            labels, moment, value = point
            column = np.array([value])
            self.staged.append(GroupedBatch([labels], np.array([0, 1]), np.array([moment]), column))

    small = Small(marks_producers=False)
    with WriteBuffer(small, points_max=3, producer="named") as buffer:
        for point in points(10):
            buffer.write(point)
    assert small.stored == points(10)
    assert small.marks == [None] * 4
    assert small.forgotten == []


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"points_max": 0}, "points_max"),
        ({"points_max": True}, "points_max"),
        ({"points_max": 1.5}, "points_max"),
        ({"pending_max": -1}, "pending_max"),
        ({"points_max": 10, "pending_max": 9}, "pending_max"),
    ],
)
def test_bounds_that_make_no_sense_raise(
    recorder: Recorder, options: dict[str, Any], name: str
) -> None:
    """A bound that is no positive integer, or room for less than a batch, is named."""
    with pytest.raises(UnknownOptionError, match=name):
        WriteBuffer(recorder, **options)


# ------------------------------------------------------------------------- failures


def test_a_failed_flush_keeps_everything_and_can_be_repeated(recorder: Recorder) -> None:
    """The error passes unchanged; the batch is tried again as it was, then the later points."""
    cause = OSError("the handler's own")
    recorder.before = failing(2, lambda: cause)
    buffer = WriteBuffer(recorder, points_max=100, retry=AT_ONCE)
    buffer.write_many(points(3))
    with pytest.raises(OSError, match="own") as caught:
        buffer.flush()
    assert caught.value is cause
    buffer.write_many(points(2, B))
    with pytest.raises(OSError, match="own"):
        buffer.flush()
    assert (buffer.pending, recorder.stored) == (5, [])
    assert buffer.flush() == WriteReceipt(5, 5)
    assert [sum(map(len, batches)) for batches in recorder.commits] == [3, 2]
    assert [mark and mark.sequence for mark in recorder.marks] == [1, 1, 1, 2]
    assert recorder.stored == [*points(3), *points(2, B)]
    buffer.close()


@pytest.mark.parametrize("when", When)
@pytest.mark.parametrize("method", ["flush_buffer", "write_batch_to_buffer"])
def test_an_unknown_outcome_stores_nothing_twice(
    memory: MemoryEngine, method: str, when: When
) -> None:
    """A commit that failed, took effect or not, is repeated until told; each point counts once."""
    with MemoryEngine("", duplicate_policy="sum") as engine:
        faults = FaultyHandler(engine, Fault(method, at=2, times=2, when=when))
        buffer = WriteBuffer(faults, points_max=4, pending_max=8, retry=AT_ONCE)
        taken = 0
        for number in range(40):
            try:
                buffer.write((SERIES[number % 2], 1, 1.0))
                taken += 1
            except StorageError:
                pass
        buffer.close()
        assert sum(batch.values.sum() for batch in engine.query()) == taken == 40 - 2


def test_the_error_of_a_write_that_filled_the_buffer_goes_to_the_next(recorder: Recorder) -> None:
    """A commit by size that fails does not fail its write; the next one raises, once."""
    recorder.before = failing(1)
    buffer = WriteBuffer(recorder, points_max=3, pending_max=9, retry=AT_ONCE)
    for point in points(3):
        buffer.write(point)
    assert buffer.pending == 3
    with pytest.raises(StorageError):
        buffer.write((B, 1, 1.0))
    assert buffer.pending == 3
    buffer.write((A, 4, 3.0))
    buffer.write_many(points(1, C))
    assert (buffer.pending, len(recorder.marks)) == (5, 1)  # not tried at every write
    buffer.write((A, 5, 4.0))  # another points_max since: tried, and committed
    assert (buffer.pending, len(recorder.commits)) == (3, 1)
    buffer.write((A, 6, 5.0))
    assert [mark and mark.sequence for mark in recorder.marks] == [1, 1, 2]
    buffer.close()
    assert recorder.of(A) == points(6)


@pytest.mark.parametrize("way", ["write_many", "write_series"])
def test_a_bulk_write_raises_a_kept_error_before_it_takes(recorder: Recorder, way: str) -> None:
    """An error kept from a commit by size is raised by a bulk write too, which takes nothing."""
    recorder.before = failing(1)
    buffer = WriteBuffer(recorder, points_max=3, retry=AT_ONCE)
    buffer.write_many(points(3))
    calls: dict[str, Callable[[], None]] = {
        "write_many": lambda: buffer.write_many(points(2, B)),
        "write_series": lambda: buffer.write_series(B, [1, 2], [0.0, 1.0]),
    }
    with pytest.raises(StorageError):
        calls[way]()
    assert buffer.pending == 3
    calls[way]()
    buffer.close()
    assert recorder.stored == [*points(3), *points(2, B)]


def test_a_full_buffer_raises_without_taking(recorder: Recorder) -> None:
    """At `pending_max` each write tries to commit, and raises what that failed with."""
    recorder.before = failing(10**9)
    buffer = WriteBuffer(recorder, points_max=2, pending_max=4, retry=AT_ONCE)
    taken = 0
    for point in points(30):
        try:
            buffer.write(point)
            taken += 1
        except StorageError:
            pass
        assert buffer.pending == taken <= 4
    tries = len(recorder.marks)
    with pytest.raises(StorageError):
        buffer.write_many(points(3, B))
    assert len(recorder.marks) == tries + 1
    recorder.before = failing(0)
    buffer.write((B, 1, 1.0))
    assert buffer.pending < 4
    buffer.close()
    assert recorder.of(B) == [(B, 1, 1.0)]


def test_a_flush_that_succeeds_settles_a_kept_error(recorder: Recorder) -> None:
    """Once the failed batch is committed, or taken back, no write hears of the failure."""
    buffer = WriteBuffer(recorder, points_max=2, pending_max=8, retry=AT_ONCE)
    for settle in (buffer.flush, buffer.take_pending):
        recorder.before = failing(1)
        buffer.write_many(points(2))
        settle()
        buffer.write((A, 9, 1.0))
        buffer.flush()
    recorder.before = failing(2)
    buffer.write_many(points(2))
    with pytest.raises(StorageError):
        buffer.flush()  # tells of the same batch
    buffer.write((A, 9, 1.0))
    buffer.close()


def test_taking_points_back_leaves_their_batch_number_unused(recorder: Recorder) -> None:
    """After `take_pending` of a batch that was stored unknown to us, new points are stored."""
    recorder.after = failing(1)
    buffer = WriteBuffer(recorder, points_max=100, producer="named", retry=AT_ONCE)
    some: list[PointLike] = [*points(2), (B, 1, {"a": 1})]
    buffer.write_many(some)
    buffer.write_series(C, [1, 2], np.array([5, 6]))
    with pytest.raises(StorageError):
        buffer.flush()
    back = buffer.take_pending()
    assert back == [*some, (C, 1, 5), (C, 2, 6)]
    assert all(type(point) is DataPoint and type(point.timestamp) is int for point in back)
    assert buffer.take_pending() == []
    buffer.write_many(points(2, start=10))
    assert buffer.flush() == WriteReceipt(2, 2)
    assert [mark and mark.sequence for mark in recorder.marks] == [1, 2]
    assert recorder.of(A) == [*points(2), *points(2, start=10)]
    buffer.close()


def test_an_interrupt_is_no_error_of_a_commit(recorder: Recorder) -> None:
    """Ctrl-C in a commit leaves it at once, the points pending, and nothing kept for later."""
    recorder.after = failing(1, KeyboardInterrupt)
    buffer = WriteBuffer(recorder, points_max=2)
    buffer.write((A, 1, 0.0))
    with pytest.raises(KeyboardInterrupt):
        buffer.write((A, 2, 1.0))
    assert buffer.pending == 2
    buffer.write((A, 3, 2.0))
    buffer.close()
    assert recorder.stored == points(3)


def test_an_iterable_that_raises_takes_nothing(recorder: Recorder) -> None:
    """`write_many` takes nothing where its iterable fails half way."""

    def some() -> Iterator[PointLike]:
        yield from points(5)
        raise RuntimeError("half way")

    with WriteBuffer(recorder) as buffer:
        with pytest.raises(RuntimeError):
            buffer.write_many(some())
        assert buffer.pending == 0


# ------------------------------------------------------------------------- life


def test_close_commits_and_is_final(recorder: Recorder) -> None:
    """Close commits what is pending; afterwards nothing is taken, and close does nothing."""
    with WriteBuffer(recorder) as buffer:
        buffer.write((A, 1, 0.0))
    buffer.close()
    calls: list[Callable[[], object]] = [
        lambda: buffer.write((A, 2, 1.0)),
        lambda: buffer.write_many(points(2)),
        lambda: buffer.write_series(A, [1], [1.0]),
        buffer.flush,
    ]
    for call in calls:
        with pytest.raises(NotOpenError):
            call()
    assert (buffer.pending, buffer.take_pending()) == (0, [])
    assert recorder.stored == points(1)
    assert "closed" in repr(buffer)


@pytest.mark.parametrize("way", ["write", "write_many", "write_series"])
def test_a_close_in_the_midst_of_a_write_stands(recorder: Recorder, way: str) -> None:
    """A write that finds the buffer closed when it comes to take its points raises."""
    buffer = WriteBuffer(recorder, points_max=2)
    recorder.when_asked = buffer.close
    calls: dict[str, Callable[[], None]] = {
        "write": lambda: buffer.write((A, 1, 0.0)),
        "write_many": lambda: buffer.write_many(points(1)),
        "write_series": lambda: buffer.write_series(A, [1], [0.0]),
    }
    with pytest.raises(NotOpenError):
        calls[way]()
    assert (buffer.pending, recorder.stored) == (0, [])


def test_close_says_what_it_could_not_save(recorder: Recorder) -> None:
    """A close that fails raises with the count and the cause; the points can be taken back."""
    recorder.before = failing(1)
    buffer = WriteBuffer(recorder, retry=AT_ONCE)
    buffer.write_many(points(3))
    with pytest.raises(UnsavedPointsError, match="take_pending") as caught:
        buffer.close()
    assert caught.value.count == 3
    assert isinstance(caught.value.__cause__, StorageError)
    buffer.close()
    with pytest.raises(NotOpenError):
        buffer.write((A, 9, 9.0))
    assert buffer.take_pending() == points(3)
    assert buffer.pending == 0


def test_the_mark_of_a_random_producer_goes_at_a_clean_close() -> None:
    """A random producer leaves a mark only where it closed with points pending."""
    memory = MemoryEngine().open()
    clean, idle, torn = (WriteBuffer(memory) for _ in range(3))
    assert len({clean.producer, idle.producer, torn.producer}) == 3
    for buffer in (clean, torn):
        buffer.write((A, 1, 1.0))
        buffer.flush()
        assert memory.high_water(buffer.producer) == ProducerMark(buffer.producer, 1)
    clean.close()
    idle.close()
    assert memory.high_water(clean.producer) is None
    torn.write((A, 2, 1.0))
    memory.close()
    with pytest.raises(UnsavedPointsError):
        torn.close()
    assert torn.take_pending() == [(A, 2, 1.0)]


def test_the_engine_may_close_first(recorder: Recorder) -> None:
    """A buffer with nothing pending closes in silence after its engine."""
    engine = MemoryEngine().open()
    buffer = WriteBuffer(engine)
    buffer.write((A, 1, 1.0))
    buffer.flush()
    engine.close()
    buffer.close()


def test_a_named_producer_goes_on_counting(recorder: Recorder) -> None:
    """A producer of the same name numbers on from the stored mark; its mark stays."""
    for round_ in range(3):
        with WriteBuffer(recorder, points_max=2, producer="gateway") as buffer:
            assert buffer.producer == "gateway"
            buffer.write_many(points(4, start=10 * round_ + 1))
            with pytest.raises(ConfigurationError, match="gateway"):
                WriteBuffer(recorder, producer="gateway")
    assert [mark and mark.sequence for mark in recorder.marks] == [1, 2, 3, 4, 5, 6]
    assert len(recorder.stored) == 12
    assert recorder.high_water("gateway") == ProducerMark("gateway", 6)
    forgotten = WriteBuffer(recorder, producer="gateway", age_max=None)
    del forgotten
    gc.collect()
    WriteBuffer(recorder, producer="gateway").close()


def test_a_named_producer_whose_number_is_unknown_is_not_guessed(recorder: Recorder) -> None:
    """Where the stored mark cannot be read a flush fails, and numbers on once it can."""
    with WriteBuffer(recorder, producer="gateway", retry=AT_ONCE) as buffer:
        buffer.write((A, 1, 0.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "high_water", failing(1))
        buffer = WriteBuffer(recorder, producer="gateway", retry=AT_ONCE)
        buffer.write((A, 2, 1.0))
        with pytest.raises(TypeError):  # the plan takes no argument: any error will do
            buffer.flush()
    assert buffer.pending == 1
    buffer.close()
    assert recorder.stored == points(2)


def test_a_buffer_with_pending_points_is_kept(recorder: Recorder) -> None:
    """A buffer that everybody drops stores its pending points before it goes."""
    arrived = threading.Event()
    recorder.after = arrived.set
    WriteBuffer(recorder, age_max=0.01).write((A, 1, 0.0))
    gc.collect()
    assert arrived.wait(30)
    assert recorder.stored == points(1)
    gone = weakref.ref(WriteBuffer(recorder, age_max=None))
    gc.collect()
    assert gone() is None


def run(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    preamble = (
        "import os, sys\n"
        "from tsengine.backends.memory import MemoryEngine\n"
        "from tsengine.buffer import WriteBuffer\n"
        "from tsengine.errors import *\n"
        "from tsengine.model import Labels\n"
        "A = Labels('cpu')\n"
        "engine = MemoryEngine().open()\n"
        "buffer = WriteBuffer(engine)\n"
    )
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", preamble + script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.mark.parametrize("options", ["age_max=None", "age_max=3600", "background=True"])
def test_exit_flushes(tmp_path: Path, options: str) -> None:
    """A process that ends with pending points stores them, whoever still holds the buffer."""
    ended = run(
        f"""
from tsengine.backends.lmdb import LmdbEngine
engine = LmdbEngine({str(tmp_path / "store")!r}).open()
WriteBuffer(engine, {options}).write((A, 1, 1.0))
buffer.write((A, 1, 1.0))
buffer.close()
"""
    )
    assert ended.stderr == ""
    with LmdbEngine(str(tmp_path / "store")) as engine:
        assert engine.count() == 1


def test_exit_says_what_it_could_not_save() -> None:
    """What cannot be stored at exit is logged with its count, also of a closed buffer."""
    assert run("buffer.write((A, 1, 1.0))").stderr == ""
    ended = run("buffer.write_many([(A, 1, 1.0), (A, 2, 1.0)]); engine.close()")
    assert "2 pending points" in ended.stderr
    ended = run(
        """
buffer.write((A, 1, 1.0))
engine.close()
try:
    buffer.close()
except UnsavedPointsError:
    pass
"""
    )
    assert "1 pending points" in ended.stderr


def test_a_forked_child_has_no_points() -> None:
    """In a child the buffer is empty and raises; the parent's points are stored once."""
    result = run(
        """
buffer.write((A, 1, 1.0))
child = os.fork()
if child == 0:
    for call in (
        lambda: buffer.write((A, 2, 2.0)),
        lambda: buffer.write_many([(A, 2, 2.0)]),
        lambda: buffer.write_series(A, [2], [2.0]),
        buffer.flush,
        buffer.take_pending,
    ):
        try:
            call()
        except ForkedError:
            print("forked", flush=True)
    buffer.close()
    print(buffer.pending, flush=True)
    sys.exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
buffer.write((A, 2, 2.0))
buffer.close()
print(engine.query()[0].values.tolist())
"""
    )
    assert result.stdout.splitlines() == ["forked"] * 5 + ["0", "0", "[1.0, 2.0]"]
    assert result.stderr == ""


# ------------------------------------------------------------------------- threads


THREADS = 6


def write_somehow(
    buffer: WriteBuffer, rng: random.Random, labels: Labels, start: int, count: int
) -> None:
    """Write that many points of one series, timestamps ascending, in one of all ways."""
    moments = range(start, start + count)
    way = rng.randrange(4)
    if way == 0:
        buffer.write_many([(labels, moment, float(moment)) for moment in moments])
    elif way == 1:
        buffer.write_series(labels, np.array(moments), np.array(moments, float))
    else:
        for moment in moments:
            value = float(moment) if way == 2 else np.float64(moment)  # the fast way, the slow
            buffer.write((labels, moment, value))


@pytest.mark.parametrize("points_max", [1, 7, 64, 100_000])
@pytest.mark.parametrize("seed", range(3))
def test_threads_lose_nothing_and_keep_their_order(points_max: int, seed: int) -> None:
    """What many threads write is committed once, each thread's points in its order."""
    recorder = Recorder()
    buffer = WriteBuffer(recorder, points_max=points_max)
    shared = Labels("shared")

    def work(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        moment = 1
        while moment < 600:
            count = rng.randrange(1, 40)
            write_somehow(buffer, rng, SERIES[number % len(SERIES)], moment, count)
            buffer.write((shared, moment, float(number)))
            if rng.random() < 0.02:
                buffer.flush()
            moment += count

    run_threads(work, len(SERIES))
    buffer.close()
    for labels in SERIES:
        found = [point.timestamp for point in recorder.of(labels)]
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= 599
    for number in range(len(SERIES)):
        mine = [point.timestamp for point in recorder.of(shared) if point.value == number]
        assert mine == sorted(set(mine))
    total = sum(sum(map(len, batches)) for batches in recorder.commits)
    assert total == len(recorder.stored) == buffer.committed.accepted
    assert all(sum(map(len, batches)) <= points_max for batches in recorder.commits)


@pytest.mark.parametrize("seed", range(4))
def test_a_close_loses_nothing_of_threads_that_write(seed: int) -> None:
    """While close runs, each point is stored, or still pending, or its write raised."""
    recorder = Recorder()
    buffer = WriteBuffer(recorder, points_max=50)
    taken = [0] * THREADS
    closing = threading.Event()

    def work(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        if number == 0:
            closing.wait(30)
            buffer.close()
            return
        labels = Labels("closing", thread=str(number))
        moment = 1
        while moment < 100_000:
            count = rng.randrange(1, 4)
            try:
                if count == 1:
                    buffer.write((labels, moment, 1.0))
                else:
                    buffer.write_many([(labels, moment + row, 1.0) for row in range(count)])
            except NotOpenError:
                return
            taken[number] += count
            moment += count
            if moment > 500:
                closing.set()

    run_threads(work, THREADS)
    assert sum(taken) == len(recorder.stored) + buffer.pending
    assert len(set(recorder.stored)) == len(recorder.stored)
    buffer.take_pending()


@given(
    st.lists(st.sampled_from(["ok", "ok", "before", "after"]), max_size=60),
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(0, 2**32),
)
@settings(max_examples=40)
def test_faults_lose_nothing_and_store_nothing_twice(
    plan: list[str], points_max: int, factor: int, seed: int
) -> None:
    """Under any schedule of faults, what writes took is stored once, or is still pending.

    Faults strike before or after a commit takes effect, threads write in all ways.
    """
    recorder = Recorder()
    outcomes = iter(plan)
    current = threading.local()

    def before() -> None:
        current.outcome = next(outcomes, "ok")
        if current.outcome == "before":
            raise StorageError("before")

    def after() -> None:
        if current.outcome == "after":
            raise StorageError("after")

    recorder.before, recorder.after = before, after
    buffer = WriteBuffer(
        recorder, points_max=points_max, pending_max=factor * points_max, retry=AT_ONCE
    )
    taken: list[list[int]] = [[] for _ in range(3)]

    def work(number: int) -> None:
        rng = random.Random(seed + number)
        labels = SERIES[number]
        moment = 1
        while moment < 60:
            count = rng.randrange(1, 5)
            moments = list(range(moment, moment + count))
            try:
                if rng.random() < 0.1:
                    buffer.flush()
                    continue
                if count == 1:
                    buffer.write((labels, moment, float(moment)))
                elif rng.random() < 0.5:
                    buffer.write_series(labels, moments, np.array(moments, float))
                else:
                    buffer.write_many([(labels, one, float(one)) for one in moments])
            except StorageError:
                continue  # nothing of the call was taken, so it is made again
            taken[number] += moments
            moment += count

    run_threads(work, 3)
    unsaved = 0
    try:
        buffer.close()
    except UnsavedPointsError as error:
        unsaved = error.count
    assert unsaved == buffer.pending
    stored = set(recorder.stored)
    assert len(stored) == len(recorder.stored)
    pending = buffer.take_pending()
    for number, moments in enumerate(taken):
        found = [point.timestamp for point in recorder.of(SERIES[number])]
        # A batch that failed after it took effect is both stored and pending.
        held = [point.timestamp for point in pending if point.labels is SERIES[number]]
        rest = [moment for moment in held if moment not in set(found)]
        assert found + rest == moments


def test_pending_points_are_bounded_while_a_commit_stalls(recorder: Recorder) -> None:
    """Behind a stalled commit writers wait at `pending_max`, one point a thread above it."""
    stalled, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        stalled.set()
        go_on.wait(30)

    recorder.before = stall
    buffer = WriteBuffer(recorder, points_max=10, pending_max=40)
    each = 100
    highest = 0

    def work(number: int) -> None:
        nonlocal highest
        if number < THREADS:
            for point in points(each, SERIES[number % len(SERIES)], start=1 + each * number):
                buffer.write(point)
            return
        stalled.wait(30)
        deadline = time.monotonic() + 30
        while buffer.pending < 40 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)  # time to exceed it, for writers that would not wait
        highest = buffer.pending
        go_on.set()

    run_threads(work, THREADS + 1)
    buffer.close()
    assert 40 <= highest <= 40 + THREADS
    assert len(recorder.stored) == len(set(recorder.stored)) == each * THREADS


def test_others_go_on_filling_while_a_commit_runs(recorder: Recorder) -> None:
    """A writer that meets a full buffer whose commit is under way appends, and does not wait."""
    stalled, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        stalled.set()
        go_on.wait(30)

    recorder.before = stall
    buffer = WriteBuffer(recorder, points_max=10, pending_max=40)
    first = threading.Thread(target=lambda: buffer.write_many(points(10)))
    first.start()
    stalled.wait(30)
    for point in points(25, B):
        buffer.write(point)
    assert buffer.pending == 35
    assert not recorder.stored
    go_on.set()
    first.join()
    buffer.close()
    assert recorder.stored == [*points(10), *points(25, B)]


def test_buffers_on_one_engine_do_not_meet(memory: MemoryEngine) -> None:
    """Many buffers on one engine, some in one thread, commit their own points alone."""
    buffers = [WriteBuffer(memory, points_max=7) for _ in range(THREADS)]

    def work(number: int) -> None:
        own, neighbour = buffers[number], buffers[(number + 1) % THREADS]
        for moment in range(1, 200):
            own.write((Labels("own", buffer=str(number)), moment, 1.0))
            neighbour.write((Labels("neighbour", buffer=str(number)), moment, 1.0))
        memory.write([(Labels("direct", buffer=str(number)), 1, 1.0)])

    run_threads(work, THREADS)
    for buffer in buffers:
        buffer.close()
    assert {len(batch) for batch in memory.query("own")} == {199}
    assert {len(batch) for batch in memory.query("neighbour")} == {199}
    assert memory.count() == THREADS * 399
