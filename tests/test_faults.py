"""A buffer over a handler that fails: nothing is lost, nothing is stored twice."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from tsengine.backends.memory import MemoryEngine
from tsengine.buffer import WriteBuffer
from tsengine.errors import InvalidDataError, StorageError, UnsavedPointsError
from tsengine.model import DataPoint, GroupedBatch, Labels
from tsengine.retry import RetryPolicy
from tsengine.testing import Fault, FaultyHandler, ReferenceModel, When, assert_range

A, B = Labels("cpu", host="a"), Labels("cpu", host="b")
AT_ONCE = RetryPolicy(max_retries=0)
POINTS = [(A, 1, 1.0), (B, 1, 2.0), (A, 1, 4.0), (A, 2, 8.0)]


@pytest.mark.parametrize("policy", ["last", "first", "min", "max", "sum", "error"])
@pytest.mark.parametrize("when", list(When))
@pytest.mark.parametrize("times", [1, 3])
def test_a_failed_flush_is_repeated_without_loss_or_repetition(
    policy: str, when: When, times: int
) -> None:
    """Whether or not a failing commit took effect, repeating it stores every point once."""
    points = POINTS if policy != "error" else POINTS[1:]
    with MemoryEngine(duplicate_policy=policy) as engine:
        handler = FaultyHandler(engine, Fault("flush_buffer", at=2, times=times, when=when))
        buffer = WriteBuffer(handler, retry=AT_ONCE)
        model = ReferenceModel(duplicate_policy=policy)
        buffer.write((A, 50, 0.5))
        buffer.flush()
        buffer.write_many(points)
        for _ in range(times):
            with pytest.raises(StorageError, match="on demand"):
                buffer.flush()
            assert buffer.pending == len(points)
        buffer.write((B, 9, 9.0))
        buffer.flush()
        assert buffer.pending == 0
        for batch in ([(A, 50, 0.5)], points, [(B, 9, 9.0)]):
            model.write(batch)
        assert_range(engine, model)
        buffer.close()


@pytest.mark.parametrize("method", ["write_batch_to_buffer", "discard_buffer", "flush_buffer"])
def test_points_are_kept_whatever_call_fails(method: str) -> None:
    """A fault in staging keeps every point in the buffer, in order."""
    with MemoryEngine() as engine:
        handler = FaultyHandler(engine)
        buffer = WriteBuffer(handler, retry=AT_ONCE)
        buffer.write_many(POINTS)
        handler.faults.append(Fault(method))
        try:
            buffer.flush()
        except StorageError:
            assert [tuple(point) for point in buffer.take_pending()] == POINTS
            assert engine.count() == 0
        buffer.close()


def test_a_close_that_fails_says_what_is_unsaved() -> None:
    """UnsavedPointsError counts the points, which take_pending gives back after close."""
    with MemoryEngine() as engine:
        faults = FaultyHandler(engine, Fault("flush_buffer", times=100))
        buffer = WriteBuffer(faults, retry=AT_ONCE)
        buffer.write_many(POINTS)
        with pytest.raises(UnsavedPointsError) as caught:
            buffer.close()
        assert caught.value.count == len(POINTS)
        assert [tuple(point) for point in buffer.take_pending()] == POINTS


def test_faults_count_down() -> None:
    """A fault strikes the k-th call and as many after it as it says, and no other."""
    with MemoryEngine() as engine:
        fault = Fault("validate_point", at=2, times=2)
        handler = FaultyHandler(engine, fault)
        handler.validate_point((A, 1, 1.0))
        for _ in range(2):
            with pytest.raises(StorageError):
                handler.validate_point((A, 1, 1.0))
        handler.validate_point((A, 1, 1.0))
        assert fault.calls == 4
    with pytest.raises(ValueError, match="flush_buffer"):
        Fault("flush")


def test_a_fault_may_strike_every_kth_call_and_certain_points() -> None:
    """Faults repeat by `every`, and count only flushes that are about their points."""
    with MemoryEngine() as engine:
        handler = FaultyHandler(
            engine,
            Fault("flush_buffer", at=2, every=3, about=lambda point: point.labels is B),
        )
        failed = []
        for moment in range(1, 10):
            handler.write_to_buffer((A, moment, 1.0))
            handler.flush_buffer()
            handler.write_batch_to_buffer(
                GroupedBatch([B], np.array([0, 1]), np.array([moment]), np.array([1.0]))
            )
            try:
                handler.flush_buffer()
            except StorageError:
                failed.append(moment)
        assert failed == [2, 5, 8]
        assert engine.count(A) == 9
        assert engine.count(B) == 6
    for wrong in ({"every": 1, "times": 2}, {"method": "discard_buffer", "about": bool}):
        with pytest.raises(ValueError, match=r"every|about"):
            Fault(**{"method": "flush_buffer", **wrong})  # type: ignore[arg-type]  # what it must refuse


@pytest.mark.parametrize("background", [True, False])
def test_one_failing_series_keeps_no_other(background: bool) -> None:
    """Of a backend that fails for one series for good, every other point lands."""
    rejected: list[DataPoint] = []
    with MemoryEngine() as engine:
        handler = FaultyHandler(
            engine,
            Fault(
                "flush_buffer",
                times=10**9,
                about=lambda point: point.labels is B,
                error=lambda: InvalidDataError("not this one"),
            ),
        )
        with WriteBuffer(
            handler,
            points_max=64,
            background=background,
            on_reject=lambda some, error: rejected.extend(some),
        ) as buffer:
            for moment in range(1, 200):
                buffer.write((A, moment, 1.0))
                buffer.write((B, moment, 1.0))
        assert engine.count(A) == 199
        assert [point.timestamp for point in rejected] == list(range(1, 200))


def test_a_stalled_handler_does_not_stop_writers() -> None:
    """While a commit hangs others go on writing, and all is stored when it ends."""
    stall = threading.Event()
    with MemoryEngine() as engine:
        handler = FaultyHandler(engine, Fault("flush_buffer", error=None, stall=stall))
        buffer = WriteBuffer(handler)
        buffer.write((A, 1, 1.0))
        flusher = threading.Thread(target=buffer.flush)
        flusher.start()
        for moment in range(2, 102):
            buffer.write((A, moment, 1.0))
        stall.set()
        flusher.join()
        buffer.close()
        assert engine.count() == 101
