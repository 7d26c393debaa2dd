"""Submitted points: what their futures tell, and that they share commits."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import as_completed, wait

import pytest

from tests.recorder import AT_ONCE, A, B, Recorder, failing, points, run_threads
from tests.test_windows import PATIENCE, Gate
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.buffer import WriteBuffer
from tsengine.errors import (
    DuplicatePointError,
    InvalidDataError,
    NotOpenError,
    StorageError,
    TimestampError,
    UnsavedPointsError,
)
from tsengine.model import DataPoint, Labels, WriteReceipt


@pytest.fixture
def recorder() -> Recorder:
    """A handler that keeps what it is given."""
    return Recorder()


@pytest.fixture(params=["memory", "lmdb"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MemoryEngine | LmdbEngine]:
    """An engine of each kind, under policy `error`."""
    if request.param == "memory":
        made: MemoryEngine | LmdbEngine = MemoryEngine("", duplicate_policy="error")
    else:
        path = str(tmp_path_factory.mktemp("store") / "store")
        made = LmdbEngine(path, duplicate_policy="error")
    with made:
        yield made


def test_a_future_is_done_when_its_point_is_durable(engine: MemoryEngine | LmdbEngine) -> None:
    """The result is the receipt of that point, and a read then finds it, whatever `age_max` is."""
    for age_max in (None, 3600.0):
        with WriteBuffer(engine, age_max=age_max) as buffer:
            for moment in range(1, 20):
                labels = Labels("submitted", age=str(age_max))
                receipt = buffer.submit((labels, moment, 1.0)).result(PATIENCE)
                assert receipt == WriteReceipt(1, 1)
                assert engine.latest(labels) == [(labels, moment, 1.0)]


def test_a_bad_point_raises_in_its_own_future_alone(engine: MemoryEngine | LmdbEngine) -> None:
    """Invalid and rejected points fail their own futures; their neighbours are stored."""
    engine.write([(A, 5, 1.0)])
    rejected: list[DataPoint] = []
    with WriteBuffer(
        engine, age_max=None, on_reject=lambda some, error: rejected.extend(some)
    ) as buffer:
        futures = [buffer.submit((A, moment, 2.0)) for moment in (4, 5, -1, 6, 4)]
        done, not_done = wait(futures, PATIENCE)
        assert (len(done), not_done) == (5, set())
        assert futures[0].result() == futures[3].result() == WriteReceipt(1, 1)
        assert isinstance(futures[1].exception(), DuplicatePointError)
        assert isinstance(futures[2].exception(), TimestampError)
        assert isinstance(futures[4].exception(), DuplicatePointError)
        assert buffer.submit((B, 1, 1.0)).result(PATIENCE).accepted == 1
        assert buffer.submit((A, 9, "text")).exception(PATIENCE) is not None
    assert engine.count() == 4
    assert rejected == []  # their futures told


def test_a_receipt_tells_of_a_refusal() -> None:
    """A point that a cap or the retention keeps out is refused in its own receipt."""
    now = 1_000_000_000_000
    with (
        MemoryEngine("", max_points_per_series=2, retention="1s", clock_ns=lambda: now) as engine,
        WriteBuffer(engine, age_max=None) as buffer,
    ):
        kept = [buffer.submit((A, now + moment, 1.0)) for moment in (5, 6)]
        assert [future.result(PATIENCE) for future in kept] == [WriteReceipt(1, 1)] * 2
        capped = buffer.submit((A, now + 1, 1.0)).result(PATIENCE)
        assert capped == WriteReceipt(1, 0, 1, 0, {"cap": 1}, (0,))
        late = buffer.submit((A, 1, 1.0)).result(PATIENCE)
        assert late == WriteReceipt(1, 0, 1, 0, {"retention": 1}, (0,))
        assert buffer.submit((A, now + 7, 1.0)).result(PATIENCE) == WriteReceipt(1, 1)
    assert buffer.committed.refused == 2
    assert buffer.committed.evicted == 1


def test_submitted_points_share_commits(recorder: Recorder) -> None:
    """While a commit runs, what many threads submit gathers, and goes in the next one."""
    gate = Gate(recorder)
    with WriteBuffer(recorder, age_max=None) as buffer:
        first = buffer.submit((A, 1, 0.0))
        assert gate.stalled.wait(PATIENCE)
        later = [buffer.submit(point) for number in range(64) for point in points(1, B, 1 + number)]
        gate.open.set()
        for future in as_completed([first, *later], PATIENCE):
            assert future.result() == WriteReceipt(1, 1)
        assert len(recorder.commits) == 2
        assert buffer.metrics.flushes["submit"] == 2


def test_threads_that_submit_wait_for_nobody_else(recorder: Recorder) -> None:
    """Each of many threads gets the receipt of its own points, one after the other."""
    with WriteBuffer(recorder, points_max=5, age_max=None) as buffer:

        def work(number: int) -> None:
            labels = Labels("thread", number=str(number))
            for moment in range(1, 60):
                assert buffer.submit((labels, moment, 1.0)).result(PATIENCE).accepted == 1
                assert recorder.of(labels)[-1].timestamp == moment

        run_threads(work, 8)
    assert len(set(recorder.stored)) == len(recorder.stored) == 8 * 59


def test_a_failed_commit_reaches_the_futures_of_its_points(recorder: Recorder) -> None:
    """The error is told to each future, and to no write, where all its points were submitted."""
    gate = Gate(recorder)
    buffer = WriteBuffer(recorder, age_max=None, retry=AT_ONCE)
    first = buffer.submit((A, 1, 0.0))
    assert gate.stalled.wait(PATIENCE)
    futures = [buffer.submit(point) for point in points(3, B)]
    recorder.after = failing(1)
    gate.open.set()
    assert isinstance(first.exception(PATIENCE), StorageError)
    # The batch that failed is tried again, alone, and what came later is stored.
    assert [future.result(PATIENCE) for future in futures] == [WriteReceipt(1, 1)] * 3
    buffer.write((A, 2, 1.0))
    buffer.close()
    assert recorder.stored == [(A, 1, 0.0), *points(3, B), (A, 2, 1.0)]


def test_a_failure_that_concerns_others_reaches_the_next_write(recorder: Recorder) -> None:
    """Of a batch that had written points as well, the next write hears, and then no other."""
    recorder.before = failing(1)
    buffer = WriteBuffer(recorder, age_max=None, retry=AT_ONCE)
    buffer.write((A, 1, 0.0))
    assert isinstance(buffer.submit((A, 2, 1.0)).exception(PATIENCE), StorageError)
    buffer.flush()
    buffer.close()
    assert recorder.stored == points(2)


def test_a_rejected_point_is_told_even_after_a_failure() -> None:
    """A point whose future heard of a failure, and that is then rejected, goes to `on_reject`."""
    with MemoryEngine("", duplicate_policy="error") as engine:
        engine.write([(A, 1, 1.0)])
        rejected: list[DataPoint] = []
        from tsengine.testing.faults import Fault, FaultyHandler

        handler = FaultyHandler(engine, Fault("flush_buffer"))
        buffer = WriteBuffer(
            handler,
            age_max=None,
            retry=AT_ONCE,
            on_reject=lambda some, error: rejected.extend(some),
        )
        assert isinstance(buffer.submit((A, 1, 2.0)).exception(PATIENCE), StorageError)
        buffer.flush()
        assert rejected == [(A, 1, 2.0)]
        buffer.close()


def test_a_future_cannot_be_cancelled(recorder: Recorder) -> None:
    """The point is taken: cancelling its future does nothing, and it is stored."""
    gate = Gate(recorder)
    with WriteBuffer(recorder, age_max=None) as buffer:
        future = buffer.submit((A, 1, 0.0))
        assert gate.stalled.wait(PATIENCE)
        assert not future.cancel()
        with pytest.raises(TimeoutError):
            future.result(0.01)
        gate.open.set()
        assert future.result(PATIENCE).accepted == 1


def test_no_future_waits_for_a_closed_buffer(recorder: Recorder) -> None:
    """What a close could not store, or `take_pending` took back, is told to its futures."""
    gate = Gate(recorder)
    buffer = WriteBuffer(recorder, age_max=None, points_max=1, pending_max=8)
    stalled = buffer.submit((A, 1, 0.0))
    assert gate.stalled.wait(PATIENCE)
    behind = [buffer.submit(point) for point in points(3, B)]
    with pytest.raises(UnsavedPointsError):
        buffer.close(timeout=0.02)
    for future in (stalled, *behind):
        assert isinstance(future.exception(PATIENCE), UnsavedPointsError)
    with pytest.raises(NotOpenError):
        buffer.submit((B, 9, 9.0))
    gate.open.set()
    back = buffer.take_pending(timeout=PATIENCE)
    assert [*recorder.stored, *back] == [(A, 1, 0.0), *points(3, B)]


def test_taken_back_points_are_told(recorder: Recorder) -> None:
    """A future of a point that `take_pending` gave back raises that it is not stored."""
    recorder.before = failing(10**9)
    buffer = WriteBuffer(recorder, age_max=None, retry=AT_ONCE)
    failed = buffer.submit((A, 1, 0.0))
    assert isinstance(failed.exception(PATIENCE), StorageError)
    assert buffer.take_pending() == points(1)
    recorder.before = failing(0)
    buffer.close()
    assert recorder.stored == []


def test_a_callback_may_submit_again(recorder: Recorder) -> None:
    """What runs when a future is done may submit the next point, full as the buffer may be."""
    done = threading.Event()
    with WriteBuffer(recorder, points_max=1, pending_max=1, age_max=None) as buffer:

        def go_on(moment: int) -> None:
            if moment == 50:
                done.set()
            else:
                future = buffer.submit((A, moment, 1.0))
                future.add_done_callback(lambda _: go_on(moment + 1))

        go_on(1)
        assert done.wait(PATIENCE)
    assert [point.timestamp for point in recorder.stored] == list(range(1, 50))


def test_a_forked_child_waits_for_no_future() -> None:
    """In a child waiting for the parent's point raises; the parent goes on."""
    script = """
import os, threading
from tsengine.backends.memory import MemoryEngine
from tsengine.buffer import WriteBuffer
from tsengine.errors import ForkedError
from tsengine.model import Labels
from tsengine.testing.faults import Fault, FaultyHandler
stall = threading.Event()
engine = MemoryEngine().open()
buffer = WriteBuffer(FaultyHandler(engine, Fault("flush_buffer", error=None, stall=stall)))
future = buffer.submit((Labels("a"), 1, 1.0))
child = os.fork()
if child == 0:
    for call in (future.result, future.exception, buffer.flush, buffer.take_pending,
                 lambda: buffer.submit((Labels("a"), 2, 1.0))):
        try:
            call()
        except ForkedError:
            print("forked", flush=True)
    buffer.close()
    print(buffer.pending, flush=True)
    raise SystemExit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
stall.set()
print(future.result(30).accepted, flush=True)
buffer.close()
print(engine.count())
"""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.splitlines() == ["forked"] * 5 + ["0", "0", "1", "1"]
    assert ended.stderr == ""


def test_errors_about_data_alone_are_rejections(recorder: Recorder) -> None:
    """A future raises InvalidDataError exactly where its point is not stored for its own sake."""
    with WriteBuffer(recorder, age_max=None) as buffer:
        for bad in ((A, 0, 1.0), (A, 1, None), ("a", 1, 1.0), 5):
            error = buffer.submit(bad).exception(PATIENCE)  # type: ignore[arg-type]  # what it must refuse
            assert isinstance(error, InvalidDataError)
        assert buffer.pending == 0
    assert recorder.stored == []
