"""When a buffer commits: by size, by age, in the background; and how its waits end."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from tests.recorder import AT_ONCE, A, B, Recorder, failing, points, run_threads
from tsengine.backends.memory import MemoryEngine
from tsengine.buffer import WriteBuffer
from tsengine.buffering.flusher import Bell
from tsengine.errors import (
    BufferFullError,
    CancelledError,
    NotOpenError,
    StorageError,
    UnknownOptionError,
    UnsavedPointsError,
    WaitTimeoutError,
)
from tsengine.model import DataPoint, Labels
from tsengine.retry import RetryPolicy

AGE = 1 / 128
"""Seconds, and a number that adds up exactly."""

PATIENCE = 30.0
"""Seconds after which what a test waits for is taken not to come."""


class Gate:
    """Stalls the commits of a recorder until it is opened."""

    def __init__(self, recorder: Recorder) -> None:
        self.stalled = threading.Event()
        self.open = threading.Event()
        recorder.before = self._stall

    def _stall(self) -> None:
        self.stalled.set()
        assert self.open.wait(PATIENCE)


class Clock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        """Give the time."""
        return self.now


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """No test leaves a thread of a buffer behind."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE)
        assert not thread.is_alive(), thread.name


@pytest.fixture
def recorder() -> Recorder:
    """A handler that keeps what it is given."""
    return Recorder()


def in_thread(work: Callable[[], object]) -> threading.Thread:
    """Start a thread."""
    thread = threading.Thread(target=work)
    thread.start()
    return thread


# ------------------------------------------------------------------------------ by age


def told_of(recorder: Recorder) -> threading.Event:
    """Give an event that each commit sets."""
    committed = threading.Event()
    recorder.after = committed.set
    return committed


def test_a_point_is_committed_once_it_is_old(recorder: Recorder) -> None:
    """What is written and left alone is committed, without another call."""
    committed = told_of(recorder)
    with WriteBuffer(recorder, age_max=0.005) as buffer:
        for point in points(3):
            committed.clear()
            buffer.write(point)
            assert committed.wait(PATIENCE)
        assert buffer.metrics.flushes["age"] == 3
    assert recorder.stored == points(3)


def test_age_counts_from_the_first_point(recorder: Recorder) -> None:
    """Later points do not put the commit off: it comes `age_max` after the first."""
    clock = Clock()
    committed = told_of(recorder)
    with WriteBuffer(recorder, age_max=AGE, clock=clock) as buffer:
        for number, point in enumerate(points(10)):
            clock.now = 1_000.0 + number / 2_048  # never `AGE` after the first
            buffer.write(point)
        assert not committed.wait(0.05)
        clock.now = 1_000.0 + AGE
        assert committed.wait(PATIENCE)
        assert len(recorder.stored) == 10


def test_points_that_come_during_a_commit_have_their_own_age(recorder: Recorder) -> None:
    """What is written while a commit runs is committed `age_max` later, at the latest."""
    clock = Clock()
    gate = Gate(recorder)
    with WriteBuffer(recorder, age_max=AGE, clock=clock) as buffer:
        buffer.write((A, 1, 0.0))
        clock.now += AGE
        assert gate.stalled.wait(PATIENCE)
        gate.stalled.clear()
        buffer.write((A, 2, 1.0))
        gate.open.set()
        assert not gate.stalled.wait(0.05)  # not yet
        assert recorder.stored == points(1)
        clock.now += AGE
        assert gate.stalled.wait(PATIENCE)
    assert recorder.stored == points(2)


@pytest.mark.parametrize("jump", [-500.0, 500.0])
def test_a_clock_that_jumps_keeps_no_point(recorder: Recorder, jump: float) -> None:
    """Where the clock is set forward or back, pending points are committed all the same."""
    clock = Clock()
    committed = told_of(recorder)
    with WriteBuffer(recorder, age_max=0.005, clock=clock) as buffer:
        buffer.write((A, 1, 0.0))
        clock.now += jump
        deadline = threading.Event()
        while not committed.is_set() and clock.now < 2_000.0:
            deadline.wait(0.002)
            clock.now += 0.005
        assert committed.wait(PATIENCE)


def test_without_age_nothing_is_committed_by_itself(recorder: Recorder) -> None:
    """With `age_max=None` a buffer has no thread, and points stay until they are flushed."""
    before = threading.active_count()
    buffer = WriteBuffer(recorder, age_max=None)
    assert threading.active_count() == before
    buffer.write((A, 1, 0.0))
    assert buffer.pending == 1
    buffer.close()


def test_a_failed_commit_by_age_is_tried_again(recorder: Recorder) -> None:
    """After a failure the next write raises it, takes nothing, and age goes on."""
    committed = told_of(recorder)
    failed = threading.Event()

    def fail() -> None:
        if not failed.is_set():
            failed.set()
            raise StorageError("once")

    recorder.before = fail
    buffer = WriteBuffer(recorder, age_max=0.005, retry=AT_ONCE)
    buffer.write((A, 1, 0.0))
    assert committed.wait(PATIENCE)
    buffer.close()
    assert recorder.stored == points(1)


def test_the_error_of_a_commit_by_age_reaches_the_next_write(recorder: Recorder) -> None:
    """Nobody else hears of a failure in the buffer's thread: the next write raises it, once."""
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise StorageError("by age")

    recorder.before = fail
    clock = Clock()
    buffer = WriteBuffer(recorder, age_max=0.002, retry=AT_ONCE, clock=clock)
    buffer.write((A, 1, 0.0))
    clock.now += 1
    assert failed.wait(PATIENCE)
    recorder.before = failing(0)

    def write_on() -> None:
        for moment in range(10_000_000):  # until the thread has told
            buffer.write((B, moment + 1, 0.0))

    with pytest.raises(StorageError, match="by age"):
        write_on()
    buffer.flush()
    buffer.close()
    assert recorder.of(A) == points(1)


@pytest.mark.parametrize("seed", range(3))
def test_no_point_is_forgotten_by_age(recorder: Recorder, seed: int) -> None:
    """Whatever threads write while commits come and go, all of it is committed by age alone."""
    buffer = WriteBuffer(recorder, points_max=7, age_max=0.001)
    done = threading.Event()
    each = 300

    def after() -> None:
        if len(recorder.stored) == 4 * each:
            done.set()

    recorder.after = after

    def work(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        for moment in range(1, each + 1):
            buffer.write((Labels("aged", thread=str(number)), moment, 1.0))
            if rng.random() < 0.05:
                threading.Event().wait(0.002)

    run_threads(work, 4)
    assert done.wait(PATIENCE)
    buffer.close()
    assert len(set(recorder.stored)) == len(recorder.stored) == 4 * each


# ---------------------------------------------------------------------- in the background


def test_in_the_background_no_write_commits(recorder: Recorder) -> None:
    """With `background=True` every commit is in the buffer's own thread, flush and close too."""
    threads: set[int] = set()
    recorder.before = lambda: threads.add(threading.get_ident())
    with WriteBuffer(recorder, points_max=4, background=True) as buffer:
        for point in points(30):
            buffer.write(point)
        buffer.write_many(points(10, B))
        buffer.flush()
        buffer.write((B, 99, 1.0))
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert recorder.of(A) == points(30)
    assert len(recorder.stored) == 41


def test_in_the_background_writers_go_on_filling(recorder: Recorder) -> None:
    """While the background commit stalls, writes are taken up to `pending_max`."""
    gate = Gate(recorder)
    buffer = WriteBuffer(recorder, points_max=10, pending_max=40, background=True)
    for point in points(10):
        buffer.write(point)
    assert gate.stalled.wait(PATIENCE)
    for point in points(30, B):
        buffer.write(point)
    assert buffer.pending == 40
    gate.open.set()
    buffer.close()
    assert len(recorder.stored) == 40


# ------------------------------------------------------------------------- full, and waits


@pytest.mark.parametrize("background", [True, False])
def test_a_full_buffer_raises_at_once_where_asked(recorder: Recorder, background: bool) -> None:
    """With `on_full="raise"` a write at `pending_max` raises, and its point is not taken."""
    gate = Gate(recorder)
    buffer = WriteBuffer(
        recorder, points_max=2, pending_max=4, on_full="raise", background=background, age_max=None
    )
    first = in_thread(lambda: buffer.write_many(points(4)))
    assert gate.stalled.wait(PATIENCE)
    for _ in range(3):
        with pytest.raises(BufferFullError, match="not taken"):
            buffer.write((B, 1, 0.0))
    with pytest.raises(BufferFullError):
        buffer.write_many(points(2, B))
    with pytest.raises(BufferFullError):
        buffer.submit((B, 1, 0.0))
    assert buffer.metrics.full == 5
    gate.open.set()
    first.join()
    buffer.close()
    assert recorder.stored == points(4)


@pytest.mark.parametrize("background", [True, False])
def test_a_wait_for_room_ends_in_time(recorder: Recorder, background: bool) -> None:
    """A write that finds no room within `full_timeout` raises; with room in time it goes on."""
    gate = Gate(recorder)
    buffer = WriteBuffer(
        recorder, points_max=2, pending_max=4, full_timeout=0.02, background=background
    )
    first = in_thread(lambda: buffer.write_many(points(4)))
    assert gate.stalled.wait(PATIENCE)
    with pytest.raises(BufferFullError, match="full_timeout"):
        buffer.write((B, 1, 0.0))
    assert buffer.metrics.waits >= 1
    assert buffer.metrics.wait_seconds > 0
    gate.open.set()
    first.join()
    buffer.flush()
    buffer.write((B, 1, 0.0))
    buffer.close()
    assert recorder.stored == [*points(4), (B, 1, 0.0)]


@pytest.mark.parametrize("background", [True, False])
def test_a_close_ends_every_wait(recorder: Recorder, background: bool) -> None:
    """Behind a stalled backend a close with a timeout ends writes and flushes that wait."""
    gate = Gate(recorder)
    buffer = WriteBuffer(recorder, points_max=2, pending_max=4, background=background)
    first = in_thread(lambda: buffer.write_many(points(4)))
    assert gate.stalled.wait(PATIENCE)
    ended: list[str] = []

    def wait(name: str, call: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            with pytest.raises(NotOpenError):
                call()
            ended.append(name)

        return in_thread(run)

    waiting = [
        wait("write", lambda: buffer.write((B, 1, 0.0))),
        wait("flush", buffer.flush),
        wait("bounded flush", lambda: buffer.flush(timeout=PATIENCE)),
    ]
    with pytest.raises(UnsavedPointsError) as caught:
        buffer.close(timeout=0.05)
    assert caught.value.count == 4
    assert isinstance(caught.value.__cause__, WaitTimeoutError)
    for thread in waiting:
        thread.join(PATIENCE)
    assert sorted(ended) == ["bounded flush", "flush", "write"]
    with pytest.raises(WaitTimeoutError):
        buffer.take_pending(timeout=0.01)  # the outcome of the commit is not known yet
    gate.open.set()
    first.join(PATIENCE)
    back = buffer.take_pending(timeout=PATIENCE)
    assert [*recorder.stored, *back] == points(4)
    buffer.close()


def test_a_close_ends_a_pause_before_a_retry(recorder: Recorder) -> None:
    """A backoff of an hour is over when the buffer closes, whose own attempt comes at once."""
    tried = threading.Event()

    def fail() -> None:
        tried.set()
        raise StorageError("no")

    recorder.before = fail
    policy = RetryPolicy(max_retries=1, deadline=None, backoff_min=3600.0, backoff_max=3600.0)
    buffer = WriteBuffer(recorder, age_max=None, retry=policy)
    buffer.write((A, 1, 0.0))
    raised: list[Exception] = []

    def flush() -> None:
        with pytest.raises(StorageError) as caught:
            buffer.flush()
        raised.append(caught.value)

    waiting = in_thread(flush)
    assert tried.wait(PATIENCE)
    recorder.before = failing(0)
    buffer.close()
    waiting.join(PATIENCE)
    assert len(raised) == 1
    assert recorder.stored == points(1)


@pytest.mark.parametrize("background", [True, False])
def test_a_flush_waits_so_long_and_no_longer(recorder: Recorder, background: bool) -> None:
    """A flush with a timeout or a cancel event ends; the commit goes on, and nothing is lost."""
    gate = Gate(recorder)
    buffer = WriteBuffer(recorder, age_max=None, background=background)
    buffer.write((A, 1, 0.0))
    with pytest.raises(WaitTimeoutError, match="1 points"):
        buffer.flush(timeout=0.01)
    cancel = threading.Event()

    def cancel_later() -> None:
        gate.stalled.wait(PATIENCE)
        cancel.set()

    in_thread(cancel_later)
    with pytest.raises(CancelledError):
        buffer.flush(cancel=cancel)
    with pytest.raises(CancelledError):
        buffer.flush(cancel=cancel)
    with pytest.raises(UnknownOptionError):
        buffer.flush(timeout=-1)
    gate.open.set()
    assert buffer.flush(timeout=PATIENCE).submitted in (0, 1)
    assert recorder.stored == points(1)
    buffer.close()


def test_a_flush_waits_for_what_others_commit(recorder: Recorder) -> None:
    """A flush returns when all that was taken before it is stored, whoever stores it."""
    gate = Gate(recorder)
    buffer = WriteBuffer(recorder, points_max=3, age_max=None)
    first = in_thread(lambda: buffer.write_many(points(3)))
    assert gate.stalled.wait(PATIENCE)
    flushed = threading.Event()
    stored_then: list[int] = []

    def flush() -> None:
        buffer.flush()
        stored_then.append(len(recorder.stored))
        flushed.set()

    second = in_thread(flush)
    assert not flushed.wait(0.02)
    gate.open.set()
    first.join(PATIENCE)
    second.join(PATIENCE)
    assert stored_then == [3]
    buffer.close()


@pytest.mark.parametrize("background", [True, False])
def test_two_threads_close_at_once(recorder: Recorder, background: bool) -> None:
    """Every close returns when the first is done, also while eight threads write."""
    buffer = WriteBuffer(recorder, points_max=20, background=background)
    taken = [0] * 8
    closing = threading.Event()

    def work(number: int) -> None:
        if number >= 8:
            closing.wait(PATIENCE)
            buffer.close()
            assert len(recorder.stored) + buffer.pending >= 8
            return
        for moment in range(1, 1_000_000):
            try:
                buffer.write((Labels("closing", thread=str(number)), moment, 1.0))
            except NotOpenError:
                return
            taken[number] += 1
            if moment == 100:
                closing.set()

    run_threads(work, 10)
    assert sum(taken) == len(recorder.stored) + buffer.pending
    assert len(set(recorder.stored)) == len(recorder.stored)
    buffer.take_pending()


def test_a_failure_that_a_bounded_flush_did_not_wait_for_is_kept(recorder: Recorder) -> None:
    """Where whoever asked for a flush has left before it failed, the next write hears of it."""
    gate = Gate(recorder)
    buffer = WriteBuffer(recorder, age_max=None, retry=AT_ONCE)
    buffer.write((A, 1, 0.0))
    with pytest.raises(WaitTimeoutError):
        buffer.flush(timeout=0.01)
    recorder.after = failing(1)
    gate.open.set()

    def write_on() -> None:
        for moment in range(10_000_000):
            buffer.write((B, moment + 1, 0.0))

    with pytest.raises(StorageError):
        write_on()
    buffer.close()
    assert recorder.of(A) == points(1)


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_flush_that_fails_tells_what_was_kept(recorder: Recorder, timeout: float | None) -> None:
    """A failure that a flush raises is not raised again by the next write, whoever committed."""
    recorder.before = failing(2)
    buffer = WriteBuffer(recorder, points_max=2, age_max=None, retry=AT_ONCE)
    buffer.write_many(points(2))  # fails by size, and is kept
    with pytest.raises(StorageError):
        buffer.flush(timeout=timeout)
    buffer.write((B, 1, 0.0))
    buffer.close()
    assert recorder.stored == [*points(2), (B, 1, 0.0)]


def test_a_close_with_a_timeout_needs_no_thread_before(recorder: Recorder) -> None:
    """A buffer without a thread can be closed with a timeout, which begins one and ends it."""
    buffer = WriteBuffer(recorder, age_max=None)
    buffer.write((A, 1, 0.0))
    buffer.close(timeout=PATIENCE)
    assert recorder.stored == points(1)


def test_a_dropped_buffer_ends_its_thread(recorder: Recorder) -> None:
    """A buffer that nobody holds any more goes, and its thread with it."""
    buffer = WriteBuffer(recorder)
    buffer.write((A, 1, 0.0))
    buffer.flush()
    gone = weakref.ref(buffer)
    del buffer
    for _ in range(1_000):
        gc.collect()
        if gone() is None:
            break
        threading.Event().wait(0.005)
    assert gone() is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"age_max": -1}, "age_max"),
        ({"age_max": "soon"}, "age_max"),
        ({"on_full": "wait"}, "on_full"),
        ({"full_timeout": True}, "full_timeout"),
    ],
)
def test_options_that_make_no_sense_raise(
    recorder: Recorder, options: dict[str, object], name: str
) -> None:
    """An option that makes no sense is named, and no thread is begun."""
    with pytest.raises(UnknownOptionError, match=name):
        WriteBuffer(recorder, **options)  # type: ignore[arg-type]  # what it must refuse


def test_a_bell_loses_no_ring() -> None:
    """A ring before the wait ends it; many rings end one."""
    bell = Bell()
    for _ in range(3):
        bell.ring()
    bell.wait(PATIENCE)
    woken = threading.Event()

    def wait() -> None:
        bell.wait(None)
        woken.set()

    thread = in_thread(wait)
    assert not woken.wait(0.02)
    bell.ring()
    thread.join(PATIENCE)
    assert woken.is_set()


def test_a_stalled_memory_engine_is_left_usable() -> None:
    """After a close that timed out the rest can be stored through another buffer."""
    with MemoryEngine() as engine:
        buffer = WriteBuffer(engine)
        buffer.write_many([DataPoint(A, 1, 1.0)])
        buffer.close(timeout=PATIENCE)
        assert engine.count() == 1
