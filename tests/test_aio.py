from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import inspect
import logging
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tsengine
from tsengine import aio
from tsengine.aio import taking
from tsengine.aio.delivery import Mailbox
from tsengine.backends.memory import MemoryEngine
from tsengine.buffering.judging import Judge
from tsengine.errors import (
    AggregationError,
    BufferFullError,
    DuplicatePointError,
    InvalidDataError,
    LifecycleError,
    NotOpenError,
    RejectedPointsError,
    SelectorError,
    StorageError,
    TimestampError,
    UnsavedPointsError,
    ValueKindError,
)
from tsengine.model import (
    DataPoint,
    GroupedBatch,
    Labels,
    PointLike,
    ProducerMark,
    SeriesBatch,
    WriteReceipt,
)
from tsengine.retry import RetryPolicy
from tsengine.selectors import Selector
from tsengine.testing.compare import rows_of
from tsengine.testing.faults import Fault, FaultyHandler, When

A, B, C = (Labels("cpu", host=host) for host in "abc")
SERIES = [A, B, C]
STORED = WriteReceipt(1, 1)
AT_ONCE = RetryPolicy(max_retries=0)

LONGEST_RUN = 60.0
"""Seconds after which a test hangs."""

T = TypeVar("T")


class Gate:
    """Holds a thread up until the event loop lets it pass: with a blocked loop, never."""

    LONGEST = 20.0

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self._opened = threading.Event()

    def hold_up(self) -> None:
        """Wait in a thread that is not the loop's."""
        self.loop.call_soon_threadsafe(self.reached.set)
        if not self._opened.wait(self.LONGEST):
            raise AssertionError("the event loop was blocked, or nobody opened the gate")

    def open(self) -> None:
        """Let everybody pass from now on."""
        self._opened.set()

    async def heartbeat(self) -> None:
        """Tick until the thread is held up, then a hundred times, and let it pass."""
        await self.reached.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        self.open()


class Gated(MemoryEngine):
    """An engine whose calls, by name, are held up by gates; notes what its scans do."""

    def __init__(self, **options: Any) -> None:
        super().__init__("", **options)
        self.gates: dict[str, Gate] = {}
        self.closed_in: list[str] = []
        self.fails_at = -1
        self.committed = 0

    def _pass(self, name: str) -> None:
        if name in self.gates:
            self.gates[name].hold_up()

    @property
    def holds_only_floats(self) -> bool:
        """Whether to ask is needed: always, here."""
        return False

    def validate_point(self, point: PointLike) -> DataPoint:
        """As the engine does, later."""
        self._pass("judge")
        return super().validate_point(point)

    def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
        """As the engine does, later."""
        self._pass("commit")
        receipt = super().flush_buffer(mark)
        self.committed += receipt.accepted
        return receipt

    def count(self, *arguments: Any) -> int:
        """As the engine does, later."""
        self._pass("read")
        return super().count(*arguments)

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        self._pass("scan")
        try:
            for number, batch in enumerate(super()._scan(selector, start, end)):
                if number == self.fails_at:
                    raise StorageError("a block that cannot be read")
                yield batch
        finally:
            self.closed_in.append(threading.current_thread().name)


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine; afterwards no thread of ours is left, and no exception unheard."""
    unheard: list[dict[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: unheard.append(what))
        try:
            return await main()
        finally:
            gc.collect()

    before = set(threading.enumerate())
    result = asyncio.run(asyncio.wait_for(watched(), LONGEST_RUN))
    assert not unheard
    assert set(threading.enumerate()) <= before
    return result


def points(count: int, labels: Labels = A, start: int = 1) -> list[DataPoint]:
    """Make points with the values 0.0, 1.0, … at successive timestamps."""
    return [DataPoint(labels, start + number, float(number)) for number in range(count)]


async def fail(awaitable: Awaitable[object]) -> Exception | None:
    """Give what an awaitable raises."""
    try:
        await awaitable
    except Exception as error:  # noqa: BLE001  # for the test to look at
        return error
    return None


async def passes(count: int = 20) -> None:
    """Let the loop do what is due."""
    for _ in range(count):
        await asyncio.sleep(0)


# ------------------------------------------------------------------------- writing


def test_what_is_returned_is_durable(tmp_path: Path) -> None:
    """When a write returns, another engine on the store reads its point."""

    async def main() -> None:
        url = f"lmdb://{tmp_path / 'store'}"
        async with aio.open(url) as engine, aio.WriteBuffer(engine) as buffer:
            with tsengine.open(url, read_only=True) as other:
                for number, labels in enumerate([A, B, A, C], 1):
                    assert await buffer.write((labels, number, 1.0)) == STORED
                    assert other.count() == number
                receipt = await buffer.write_many(points(3, start=10))
                assert receipt == WriteReceipt(3, 3)
                assert other.count() == 7
                receipt = await buffer.write_series(A, np.array([20, 21]), [0.5, 0.5])
                assert receipt == WriteReceipt(2, 2)
                assert other.count() == 9
                future = await buffer.submit((A, 30, 1.0))
                assert await future == STORED
                assert other.count() == 10

    run(main)


def test_tasks_share_commits() -> None:
    """What all tasks write in one pass of the loop is one commit, however many they are."""

    async def main() -> None:
        with MemoryEngine() as engine:
            async with aio.WriteBuffer(engine) as buffer:
                await buffer.write((A, 1, 1.0))
                before = buffer.metrics.batches
                await asyncio.gather(*(buffer.write((A, 2 + n, 1.0)) for n in range(500)))
                assert buffer.metrics.batches == before + 1
                assert engine.count() == 501

    run(main)


def test_a_cancelled_waiter_harms_no_other() -> None:
    """Of many writers one is cancelled: the others get their receipts, and its point is stored."""

    async def main() -> None:
        with Gated() as engine:
            async with aio.WriteBuffer(engine) as buffer:
                await buffer.write((A, 1, 1.0))
                engine.gates["commit"] = gate = Gate()
                tasks = [asyncio.create_task(buffer.write(p)) for p in points(100, A, 2)]
                await gate.reached.wait()
                tasks[50].cancel()
                with pytest.raises(asyncio.CancelledError):
                    await tasks[50]
                gate.open()
                told = await asyncio.gather(*tasks, return_exceptions=True)
                assert [t for t in told if t != STORED] == [told[50]]
                assert engine.count() == 101

    run(main)


def test_a_writer_cancelled_in_its_turn_has_not_written() -> None:
    """Cancelled while it is judged or while it waits for room, a point is not taken."""

    async def main() -> None:
        with Gated() as engine:
            options = aio.BufferOptions(points_max=2, pending_max=2)
            async with aio.WriteBuffer(engine, **options) as buffer:
                engine.gates["judge"] = gate = Gate()
                judged = asyncio.create_task(buffer.write((A, 1, 1.0)))
                await gate.reached.wait()
                judged.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await judged
                gate.open()
                await buffer.write((A, 2, 1.0))
                engine.gates["commit"] = gate = Gate()
                written = [asyncio.create_task(buffer.write((A, 3 + n, 1.0))) for n in range(6)]
                await gate.reached.wait()
                await passes()
                assert buffer.pending == 2
                written[3].cancel()
                await passes()
                gate.open()
                told = await asyncio.gather(*written, return_exceptions=True)
                assert [told.index(t) for t in told if t != STORED] == [3]
                times = [int(t) for t in engine.query()[0].timestamps]
                assert times == [2, 3, 4, 5, 7, 8]

    run(main)


async def check_order(engine: Gated) -> None:
    """Write to one series plain and odd values, alone and in calls, from concurrent tasks."""
    async with aio.WriteBuffer(engine, points_max=8, pending_max=16) as buffer:
        engine.gates["judge"] = gate = Gate()
        tasks: list[asyncio.Task[WriteReceipt]] = []
        for number in range(0, 200, 5):
            for value in (float(number), np.float64(number + 1), number + 2):
                one = buffer.write((A, 1, value))
                tasks.append(asyncio.create_task(one))
            some = buffer.write_many([(A, 1, float(number + 3)), (A, 1, number + 4)])
            tasks.append(asyncio.create_task(some))
            await asyncio.sleep(0)
            if number == 20:
                await gate.heartbeat()
        await asyncio.gather(*tasks)


class Following(Gated):
    """Notes the values in the order in which they are committed."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[object] = []

    def write_batch_to_buffer(self, batch: GroupedBatch) -> None:
        """Stage, and note."""
        self.values += batch.values.tolist()
        super().write_batch_to_buffer(batch)


def test_points_of_a_series_keep_their_order() -> None:
    """Whether judged in the loop or in the thread, points are committed as they were written."""

    async def main() -> list[object]:
        with Following() as engine:
            await check_order(engine)
            return engine.values

    assert run(main) == [float(number) for number in range(200)]


def test_a_series_that_is_judged_holds_up_no_other() -> None:
    """While the handler thinks about a new series, points of known ones are written."""

    async def main() -> None:
        with Gated() as engine:
            async with aio.WriteBuffer(engine) as buffer:
                await buffer.write((A, 1, 1.0))
                engine.gates["judge"] = gate = Gate()
                new = asyncio.create_task(buffer.write((B, 1, 1.0)))
                await gate.reached.wait()
                assert await buffer.write((A, 2, 1.0)) == STORED
                assert await buffer.write((A, 3, np.float64(1.0))) == STORED
                assert not new.done()
                gate.open()
                assert await new == STORED

    run(main)


def test_an_invalid_point_raises_for_its_writer_alone() -> None:
    """Of many concurrent writes the invalid ones raise, and all others are stored."""
    bad: list[Any] = [
        (A, 0, 1.0), (A, "1", 1.0), (A, 5, None), (A, 5, "text"), None, (A, 1), ([], 1, 1.0),
        (Labels(), 1, 1.0), ("cpu", 1, 1.0), 7,
    ]  # fmt: skip

    async def main() -> None:
        with MemoryEngine() as engine:
            async with aio.WriteBuffer(engine) as buffer:
                good = points(30)
                mixed: list[Any] = [*good[:10], *bad, *good[10:]]
                told = await asyncio.gather(*map(buffer.write, mixed), return_exceptions=True)
                for point, outcome in zip(mixed, told, strict=True):
                    if any(point is one for one in bad):
                        assert isinstance(outcome, InvalidDataError), point
                    else:
                        assert outcome == STORED
                assert isinstance(await fail(buffer.submit((A, 0, 1.0))), TimestampError)
                assert engine.count() == 30

    run(main)


def test_a_rejected_point_raises_for_its_writer_alone() -> None:
    """A point that only the commit finds bad raises for its writer; the others are stored."""

    async def main() -> None:
        with MemoryEngine("", duplicate_policy="error") as engine:
            engine.write([(A, 5, 1.0), (A, 6, 1.0)])
            async with aio.WriteBuffer(engine) as buffer:
                told = await asyncio.gather(*map(buffer.write, points(9)), return_exceptions=True)
                assert [type(t) for t in told] == [
                    *[WriteReceipt] * 4, *[DuplicatePointError] * 2, *[WriteReceipt] * 3
                ]  # fmt: skip
                assert told[4] is not told[5]
                assert [t.indices for t in told if isinstance(t, InvalidDataError)] == [(), ()]
                assert engine.count() == 9

    run(main)


def test_a_receipt_says_what_was_refused() -> None:
    """A point too old for a full ring is accepted by nobody, and its receipt says so."""

    async def main() -> None:
        with MemoryEngine("", max_points_per_series=2) as engine:
            async with aio.WriteBuffer(engine) as buffer:
                assert await buffer.write_many(points(2, A, 10)) == WriteReceipt(2, 2)
                refused = WriteReceipt(1, 0, 1, 0, {"cap": 1}, (0,))
                assert await buffer.write((A, 1, 1.0)) == refused
                receipt = await buffer.write_many([(B, 1, 1.0), (A, 2, 1.0), (A, 3, 1.0)])
                assert receipt == WriteReceipt(3, 1, 2, 0, {"cap": 2}, (1, 2))

    run(main)


@pytest.mark.parametrize("when", When)
def test_a_failing_commit_is_told_to_each_and_stored_later(when: When) -> None:
    """Each writer gets an exception of its own; the points are stored once by the next commit."""

    async def main() -> None:
        with MemoryEngine("", duplicate_policy="sum") as engine:
            faults = FaultyHandler(engine, Fault("flush_buffer", at=2, when=when))
            async with aio.WriteBuffer(faults, retry=AT_ONCE) as buffer:
                await buffer.write_many([(A, 1, 1.0), (B, 3, 1.0)])
                some = [buffer.write((A, 2, 1.0)) for _ in range(5)]
                call = buffer.write_many([(B, 1, 1.0), (B, 2, 1.0)])
                told = await asyncio.gather(*some, call, return_exceptions=True)
                assert all(isinstance(error, StorageError) for error in told)
                assert len({id(error) for error in told}) == 6
                assert buffer.pending == 7
                await buffer.flush()
                assert (buffer.pending, engine.count()) == (0, 5)
                assert engine.query(A)[0].values.tolist() == [1.0, 5.0]
                assert await buffer.write((A, 3, 1.0)) == STORED

    run(main)


def test_errors_that_cannot_be_copied_or_raised_by_futures_are_told() -> None:
    """Exceptions of any class reach every writer, those that asyncio does not take as well."""

    class OddError(Exception):
        def __init__(self, first: int, second: int) -> None:
            super().__init__("odd")

    async def main(error: Exception) -> list[Any]:
        with MemoryEngine() as engine:
            faults = FaultyHandler(engine, Fault("flush_buffer", at=2, error=lambda: error))
            async with aio.WriteBuffer(faults) as buffer:
                await buffer.write((A, 9, 1.0))
                some = map(buffer.write, points(3))
                told = await asyncio.gather(*some, return_exceptions=True)
                await buffer.flush()
                assert engine.count() == 4
                return told

    assert [type(t) for t in run(lambda: main(OddError(1, 2)))] == [OddError] * 3
    assert [type(t) for t in run(lambda: main(StopIteration()))] == [RuntimeError] * 3


# ------------------------------------------------------------------------- calls of many


def test_a_call_is_taken_whole_or_not() -> None:
    """An invalid call takes no point, and names all offenders by index."""

    async def main() -> None:
        with MemoryEngine() as engine:
            async with aio.WriteBuffer(engine) as buffer:
                for known in (False, True):
                    bad: list[Any] = [(A, 1, 1.0), (A, 0, 1.0), (A, 2, 1.0), (A, 3, None)]
                    error = await fail(buffer.write_many(bad))
                    assert isinstance(error, InvalidDataError)
                    assert error.indices == (1, 3)
                    error = await fail(buffer.write_series(A, [1, 0], [1.0, 2.0]))
                    assert isinstance(error, TimestampError)
                    assert isinstance(await fail(buffer.write_series(A, 1, 2)), InvalidDataError)
                    assert engine.count() == known
                    await buffer.write((A, 1, 1.0))
                assert await buffer.write_many([]) == WriteReceipt(0, 0)
                assert await buffer.write_series(A, [], []) == WriteReceipt(0, 0)
                assert isinstance(await fail(buffer.write_series(A, [1], ["text"])), ValueKindError)

    run(main)


def test_a_call_larger_than_the_buffer_is_committed_in_pieces() -> None:
    """A call returns when its last piece is durable; points of others share the commits."""

    async def main() -> None:
        with MemoryEngine() as engine:
            async with aio.WriteBuffer(engine, points_max=16, pending_max=20) as buffer:
                some = [buffer.write_many(points(100, A)), buffer.write_many(points(3, B))]
                times = np.arange(1, 2_001)
                series = buffer.write_series(C, times, times.astype(float))
                told = await asyncio.gather(*some, series)
                assert [t.accepted for t in told] == [100, 3, 2_000]
                assert engine.count() == 2_103
                assert buffer.metrics.batches >= 2_103 // 16

    run(main)


def test_a_call_tells_which_of_its_points_were_rejected() -> None:
    """Points of a call that the commit finds bad are in its error; all others are stored."""

    async def main() -> None:
        with MemoryEngine("", duplicate_policy="error") as engine:
            engine.write([(A, 2, 1.0), (B, 2, 1.0)])
            async with aio.WriteBuffer(engine) as buffer:
                good, bad = await asyncio.gather(
                    buffer.write_many(points(3, C)),
                    buffer.write_many([*points(3), *points(3, B)]),
                    return_exceptions=True,
                )
                assert good == WriteReceipt(3, 3)
                assert isinstance(bad, RejectedPointsError)
                assert {(p.labels, p.timestamp) for p in bad.points} == {(A, 2), (B, 2)}
                assert isinstance(bad.__cause__, DuplicatePointError)
                assert engine.count() == 9

    run(main)


def test_columns_are_copied() -> None:
    """What the caller does to its arrays after the call has begun changes no point."""

    async def main() -> None:
        with Gated() as engine:
            async with aio.WriteBuffer(engine) as buffer:
                engine.gates["judge"] = gate = Gate()
                times, values = np.array([1, 2]), np.array([1.0, 2.0])
                task = asyncio.create_task(buffer.write_series(A, times, values))
                await gate.reached.wait()
                times[:], values[:] = 7, 7.0
                gate.open()
                await task
                (batch,) = engine.query()
                assert (batch.timestamps.tolist(), batch.values.tolist()) == ([1, 2], [1.0, 2.0])

    run(main)


# ------------------------------------------------------------------------- the loop goes on


async def stalled_commit(engine: Gated, buffer: aio.WriteBuffer) -> None:
    """Write while commits stall."""
    await buffer.write((A, 2, 1.0))


async def stalled_judging(engine: Gated, buffer: aio.WriteBuffer) -> None:
    """Write a new series while the handler thinks."""
    await buffer.write((B, 2, 1.0))


async def stalled_call(engine: Gated, buffer: aio.WriteBuffer) -> None:
    """Write many."""
    await buffer.write_many([(B, 2, 1.0), (C, 2, 1.0)])


async def stalled_full(engine: Gated, buffer: aio.WriteBuffer) -> None:
    """Write more than there is room for."""
    await asyncio.gather(*map(buffer.write, points(50, A, 2)))


async def stalled_flush(engine: Gated, buffer: aio.WriteBuffer) -> None:
    """Flush."""
    future = await buffer.submit((A, 2, 1.0))
    await buffer.flush()
    assert future.done()


async def stalled_close(engine: Gated, buffer: aio.WriteBuffer) -> None:
    """Close."""
    future = await buffer.submit((A, 2, 1.0))
    await buffer.close()
    await future


async def stalled_take(engine: Gated, buffer: aio.WriteBuffer) -> None:
    """Take back what is pending."""
    future = await buffer.submit((A, 2, 1.0))
    await engine.gates["commit"].reached.wait()
    assert await buffer.take_pending() == []
    await future


async def stalled_read(engine: Gated, buffer: aio.WriteBuffer) -> None:
    """Read."""
    async with aio.Engine(engine) as reading:
        assert await reading.count() == 1


async def stalled_scan(engine: Gated, buffer: aio.WriteBuffer) -> None:
    """Scan."""
    async with aio.Engine(engine) as reading:
        assert [len(batch) async for batch in reading.scan()] == [1]


@pytest.mark.parametrize(
    ("gate", "work"),
    [
        ("commit", stalled_commit),
        ("judge", stalled_judging),
        ("judge", stalled_call),
        ("commit", stalled_full),
        ("commit", stalled_flush),
        ("commit", stalled_close),
        ("commit", stalled_take),
        ("read", stalled_read),
        ("scan", stalled_scan),
    ],
)
def test_the_loop_is_never_blocked(
    gate: str, work: Callable[[Gated, aio.WriteBuffer], Coroutine[Any, Any, None]]
) -> None:
    """A call that stalls is let go on by a heartbeat in the same loop: none is held up by it."""

    async def main() -> None:
        engine = Gated().open()
        async with aio.WriteBuffer(engine, points_max=4, pending_max=8) as buffer:
            await buffer.write((A, 1, 1.0))
            engine.gates[gate] = held = Gate()
            await asyncio.gather(work(engine, buffer), held.heartbeat())
        engine.close()

    run(main)


def test_other_tasks_run_beside_full_load() -> None:
    """Beside 1,000 writers another task comes by between any two of their rounds."""

    async def main() -> None:
        with MemoryEngine() as engine:
            async with aio.WriteBuffer(engine) as buffer:
                beats = 0
                rounds = [0] * 1_000

                async def heartbeat() -> None:
                    nonlocal beats
                    while min(rounds) < 20:
                        beats += 1
                        await asyncio.sleep(0)

                async def writer(number: int) -> None:
                    for moment in range(20):
                        before = beats
                        await buffer.write((A, 1 + moment * 1_000 + number, 1.0))
                        rounds[number] += 1
                        assert beats > before

                await asyncio.gather(heartbeat(), *map(writer, range(1_000)))
                assert engine.count() == 20_000

    run(main)


# ------------------------------------------------------------------------- room


def test_at_pending_max_writers_get_room_in_their_order() -> None:
    """No more than `pending_max` points are taken, and those that wait are taken in turn."""

    async def main() -> None:
        with Following() as engine:
            async with aio.WriteBuffer(engine, points_max=3, pending_max=5) as buffer:
                await buffer.write((A, 1, -1.0))
                engine.gates["commit"] = gate = Gate()
                tasks = [asyncio.create_task(buffer.write((A, 2, float(n)))) for n in range(40)]
                await gate.reached.wait()
                await passes()
                assert buffer.pending == 5
                assert buffer.metrics.waits == 35
                gate.open()
                await asyncio.gather(*tasks)
                assert buffer.metrics.wait_seconds > 0
            assert engine.values == [float(number) for number in range(-1, 40)]

    run(main)


@pytest.mark.parametrize(
    "options",
    [
        aio.BufferOptions(points_max=3, pending_max=5, on_full="raise"),
        aio.BufferOptions(points_max=3, pending_max=5, full_timeout=0.01),
    ],
    ids=["raise", "timeout"],
)
def test_without_room_a_write_raises_as_asked(options: aio.BufferOptions) -> None:
    """At once, or after `full_timeout`, BufferFullError: those points are not taken."""

    async def main() -> None:
        with Gated() as engine:
            async with aio.WriteBuffer(engine, **options) as buffer:
                await buffer.write((A, 1, 1.0))
                engine.gates["commit"] = gate = Gate()
                tasks = [asyncio.create_task(buffer.write(p)) for p in points(8, A, 2)]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                await gate.reached.wait()
                while sum(task.done() for task in tasks) < 3:
                    await asyncio.wait(
                        [t for t in tasks if not t.done()], return_when=asyncio.FIRST_COMPLETED
                    )
                assert buffer.pending == 5
                gate.open()
                told = await asyncio.gather(*tasks, return_exceptions=True)
                assert told[:5] == [STORED] * 5
                assert all(isinstance(t, BufferFullError) for t in told[5:])
                assert buffer.metrics.full == 3
                assert engine.count() == 6

    run(main)


def test_room_that_comes_after_failures_is_used() -> None:
    """Writers that wait behind a failing commit are served once one succeeds."""

    async def main() -> None:
        with MemoryEngine() as engine:
            faults = FaultyHandler(engine, Fault("flush_buffer", at=2, times=3))
            options = aio.BufferOptions(points_max=2, pending_max=4, retry=AT_ONCE, age_max=0.01)
            async with aio.WriteBuffer(faults, **options) as buffer:
                await buffer.write((A, 1, 1.0))
                some = map(buffer.write, points(20, A, 2))
                told = await asyncio.gather(*some, return_exceptions=True)
                failed = [t for t in told if isinstance(t, StorageError)]
                assert failed
                assert len(failed) + told.count(STORED) == 20
            # Who waited for room heard why there was none, and was not taken.
            assert told.count(STORED) < engine.count() == buffer.committed.accepted

    run(main)


def test_who_waits_for_room_hears_why_there_is_none() -> None:
    """A commit of a full buffer fails: one of those who wait gets its error, and no point taken."""

    async def main() -> None:
        with Gated() as engine:
            faults = FaultyHandler(engine, Fault("flush_buffer", at=2))
            options = aio.BufferOptions(points_max=2, pending_max=2, retry=AT_ONCE, age_max=None)
            async with aio.WriteBuffer(faults, **options) as buffer:
                await buffer.write((A, 1, 1.0))
                taken = [await buffer.submit(point) for point in points(2, A, 2)]
                assert isinstance(await fail(buffer.submit((A, 9, 1.0))), StorageError)
                told = await asyncio.gather(*taken, return_exceptions=True)
                assert all(isinstance(t, StorageError) for t in told)
            assert engine.count() == 3

    run(main)


# ------------------------------------------------------------------------- life


def test_a_cancelled_close_loses_nothing() -> None:
    """Leaving `async with` while cancelled stores everything, and closes in the right order."""

    async def main() -> None:
        engine = Gated()

        async def work(entered: asyncio.Event) -> None:
            async with aio.Engine(engine) as face, aio.WriteBuffer(face) as buffer:
                await buffer.write((A, 1, 1.0))
                engine.gates["commit"] = Gate()
                _ = [await buffer.submit(point) for point in points(10, A, 2)]
                entered.set()
                await asyncio.Event().wait()

        entered = asyncio.Event()
        task = asyncio.create_task(work(entered))
        await entered.wait()
        task.cancel()
        await engine.gates["commit"].reached.wait()
        for _ in range(5):
            await passes()
            task.cancel()
        assert not task.done()
        engine.gates["commit"].open()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.committed == 11
        with pytest.raises(NotOpenError):
            engine.stats()

    run(main)


def test_an_awaited_close_says_what_it_could_not_save() -> None:
    """UnsavedPointsError goes to the closer and to the writers; the points can be had back."""

    async def main() -> None:
        with MemoryEngine() as engine:
            faults = FaultyHandler(engine, Fault("flush_buffer", times=1_000))
            buffer = aio.WriteBuffer(faults, retry=AT_ONCE)
            futures = [await buffer.submit(point) for point in points(3)]
            with pytest.raises(UnsavedPointsError) as caught:
                await buffer.close()
            assert caught.value.count == 3
            told = await asyncio.gather(*futures, return_exceptions=True)
            assert all(isinstance(t, (UnsavedPointsError, StorageError)) for t in told)
            assert await buffer.take_pending() == points(3)
            assert await buffer.take_pending() == []
            await buffer.close()

    run(main)


def test_a_closed_buffer_takes_nothing() -> None:
    """After close, and for those who wait when it comes, writes raise NotOpenError."""

    async def main() -> None:
        with Gated() as engine:
            buffer = aio.WriteBuffer(engine, points_max=2, pending_max=2)
            await buffer.write((A, 1, 1.0))
            engine.gates["commit"] = gate = Gate()
            tasks = [asyncio.create_task(buffer.write(p)) for p in points(6, A, 2)]
            await gate.reached.wait()
            await passes()
            closing = [asyncio.create_task(buffer.close()) for _ in range(3)]
            await passes()
            assert isinstance(await fail(buffer.write((A, 99, 1.0))), NotOpenError)
            gate.open()
            await asyncio.gather(*closing)
            told = await asyncio.gather(*tasks, return_exceptions=True)
            assert told[:2] == [STORED] * 2
            assert all(isinstance(t, NotOpenError) for t in told[2:])
            assert engine.count() == 3
            for call in (
                buffer.write((A, 9, 1.0)),
                buffer.submit((A, 9, 1.0)),
                buffer.write_many([(A, 9, 1.0)]),
                buffer.write_series(A, [9], [1.0]),
                buffer.flush(),
            ):
                assert isinstance(await fail(call), NotOpenError)
            assert buffer.pending == 0

    run(main)


def test_close_gives_up_in_time() -> None:
    """With a timeout close ends while the handler hangs, and says what is pending."""

    async def main() -> None:
        with Gated() as engine:
            buffer = aio.WriteBuffer(engine)
            await buffer.write((A, 1, 1.0))
            engine.gates["commit"] = gate = Gate()
            future = await buffer.submit((A, 2, 1.0))
            flushing = asyncio.create_task(buffer.flush())
            await gate.reached.wait()
            await passes()
            assert isinstance(await fail(buffer.close(timeout=0.01)), UnsavedPointsError)
            assert isinstance(await fail(flushing), NotOpenError)
            assert isinstance(await fail(future), UnsavedPointsError)
            gate.open()
            await buffer.take_pending()
            assert buffer._core._flusher is not None
            buffer._core._flusher.join()

    run(main)


def test_points_taken_back_for_a_cancelled_task_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cancelled `take_pending` leaves the points to the next, and to close to tell about."""

    async def main() -> None:
        with Gated() as engine:
            faults = FaultyHandler(engine, Fault("flush_buffer", at=2, times=1_000))
            buffer = aio.WriteBuffer(faults, retry=AT_ONCE, age_max=None)
            await buffer.write((A, 1, 1.0))
            assert isinstance(await fail(buffer.write((A, 2, 1.0))), StorageError)
            core_takes = buffer._core.take_pending
            gate = Gate()

            def take_slowly(**options: Any) -> list[DataPoint]:
                taken = core_takes(**options)
                gate.hold_up()
                return taken

            monkeypatch.setattr(
                "tsengine.buffer.WriteBuffer.take_pending", lambda _, **o: take_slowly(**o)
            )
            taking = asyncio.create_task(buffer.take_pending())
            await gate.reached.wait()
            taking.cancel()
            await passes()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await taking
            assert buffer.pending == 1
            assert isinstance(await fail(buffer.close()), UnsavedPointsError)
            assert await buffer.take_pending() == [(A, 2, 1.0)]
            await buffer.close()

    run(main)


def test_a_loop_that_is_closed_first_loses_no_point(caplog: pytest.LogCaptureFixture) -> None:
    """Points whose loop is gone are stored, nothing raises in the flusher, and it is logged."""
    caplog.set_level(logging.INFO, "tsengine.aio")
    engine = Gated().open()
    buffer = aio.WriteBuffer(engine)

    async def first() -> Gate:
        await buffer.write((A, 1, 1.0))
        engine.gates["commit"] = gate = Gate()
        _ = await buffer.submit((A, 2, 1.0))
        await gate.reached.wait()
        return gate

    gate = asyncio.run(first())
    gate.loop.call_soon_threadsafe = lambda *_: None  # type: ignore[method-assign, assignment]
    gate.open()

    async def second() -> None:
        assert await buffer.write((A, 3, 1.0)) == STORED
        await buffer.close()

    engine.gates.clear()
    asyncio.run(second())
    assert engine.count() == 3
    engine.close()


def test_a_closed_loop_is_told_about_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """What nobody can be told goes to the log: failures as errors, with their number."""
    caplog.set_level(logging.INFO, "tsengine.aio")
    loop = asyncio.new_event_loop()
    box = Mailbox(loop, lambda: None)
    futures = [loop.create_future() for _ in range(3)]
    loop.close()
    box.tell([(future, STORED) for future in futures])
    box.tell([(futures[0], StorageError("no")), (futures[1], STORED)])
    assert [record.levelno for record in caplog.records] == [logging.INFO, logging.ERROR]
    assert "2 points were settled, of which 1 failed: no" in caplog.text


def test_a_buffer_belongs_to_one_loop() -> None:
    """A second loop, in another thread, is refused by an error that says what to do."""

    async def main() -> None:
        with MemoryEngine() as engine:
            async with aio.WriteBuffer(engine) as buffer:
                await buffer.write((A, 1, 1.0))

                async def elsewhere() -> list[Exception | None]:
                    calls: list[Awaitable[object]] = [
                        buffer.write((A, 2, 1.0)),
                        buffer.write_many([(A, 2, 1.0)]),
                        buffer.flush(),
                        buffer.take_pending(),
                        buffer.close(),
                    ]
                    return [await fail(call) for call in calls]

                told = await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
                assert all(isinstance(error, LifecycleError) for error in told)
                assert await buffer.write((A, 2, 1.0)) == STORED

    asyncio.run(main())


def test_a_child_of_a_fork_is_refused_by_awaited_calls() -> None:
    """In a child of a fork engine and buffer raise ForkedError, and close does nothing."""
    script = """
import asyncio, os, sys
from tsengine import aio
from tsengine.backends.memory import MemoryEngine
from tsengine.errors import ForkedError
from tsengine.model import Labels
A = Labels("cpu")
engine = aio.Engine(MemoryEngine())
loop = asyncio.new_event_loop()
async def begin():
    await engine.open()
    buffer = aio.WriteBuffer(engine)
    await buffer.write((A, 1, 1.0))
    assert await engine.count() == 1
    return buffer
buffer = loop.run_until_complete(begin())
child = os.fork()
async def refused():
    async def scan():
        async for _ in engine.scan():
            pass
    for call in (
        lambda: buffer.write((A, 2, 2.0)), lambda: buffer.write_many([(A, 2, 2.0)]),
        lambda: buffer.write_series(A, [2], [2.0]), buffer.flush, buffer.take_pending,
        engine.count, scan, lambda: engine.write([(A, 2, 2.0)]),
    ):
        try:
            await call()
        except ForkedError:
            print("forked", flush=True)
    await buffer.close()
    await engine.close()
async def go_on():
    await buffer.write((A, 2, 2.0))
    await buffer.close()
    print(await engine.count(), flush=True)
    await engine.close()
if child == 0:
    asyncio.run(refused())
    os._exit(0)  # to collect the parent's loop here would take its selector from it
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
loop.run_until_complete(go_on())
loop.close()
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert result.stdout.splitlines() == ["forked"] * 8 + ["0", "2"]
    assert result.stderr == ""


# ------------------------------------------------------------------------- the engine


def test_reads_and_writes_answer_as_the_engine_does(tmp_path: Path) -> None:
    """Each call gives what the same call of the engine gives."""

    async def main() -> None:
        async with aio.open(f"lmdb://{tmp_path / 'store'}", integers="int") as engine:
            assert await engine.write([(A, 1, 1.0), (B, 2, 7)]) == WriteReceipt(2, 2)
            assert (await engine.write_series(A, [2, 3], [2.0, 3.0])).accepted == 2
            batch = GroupedBatch([C], np.array([0, 1]), np.array([5]), np.array([0.5]))
            assert (await engine.write_batch(batch)).accepted == 1
            sync = engine.sync
            assert [b.labels for b in await engine.query()] == [b.labels for b in sync.query()]
            assert (await engine.query(A, 2))[0].values.tolist() == [2.0, 3.0]
            assert await engine.earliest() == sync.earliest()
            assert await engine.latest('{host="a"}') == sync.latest('{host="a"}')
            assert await engine.count(A, 1, 3) == 2
            assert [labels async for labels in engine.series()] == list(sync.series())
            assert await engine.label_names() == sync.label_names()
            assert await engine.label_values("host") == ["a", "b", "c"]
            assert (await engine.stats()).series == 3
            assert await engine.high_water("nobody") is None
            assert await engine.delete(B) == 1
            await engine.check()
            assert (await engine.compact()).bytes_after > 0
            await engine.snapshot(str(tmp_path / "copy"))
            async with aio.open(f"lmdb://{tmp_path / 'copy'}") as copy:
                assert await copy.count() == 4
            assert isinstance(await fail(engine.query("{")), SelectorError)
            assert isinstance(await fail(anext(engine.scan("{"))), SelectorError)
        assert isinstance(await fail(engine.count()), NotOpenError)
        await engine.close()

    run(main)


def test_aggregations_answer_as_the_engine_does(tmp_path: Path) -> None:
    """Every word of an aggregation reaches the engine, and its answer and its errors come back."""
    theirs, ours = (inspect.signature(of.aggregate) for of in (tsengine.Engine, aio.Engine))
    assert ours == theirs

    async def main() -> None:
        async with aio.open(f"lmdb://{tmp_path / 'store'}", integers="int") as engine:
            await engine.write([(A, 1, 1.0), (A, 3, 4.0), (B, 3, 7), (C, 12, 0.5)])
            everything = await engine.aggregate(functions=["count"], group_by=[])
            assert [batch.values.tolist() for batch in everything] == [[4]]
            found = await engine.aggregate(
                '{host!="c"}', 0, 9, functions=["sum"], every="2ns", group_by=[], origin=1, fill=-1
            )
            expected = [(-1, -1.0), (1, 1.0), (3, 11.0), (5, -1.0), (7, -1.0)]
            assert rows_of(found) == {Labels(): expected}
            assert isinstance(await fail(engine.aggregate(functions=["mode"])), AggregationError)
            assert isinstance(await fail(engine.aggregate("{", functions=["sum"])), SelectorError)
        assert isinstance(await fail(engine.aggregate(functions=["sum"])), NotOpenError)

    run(main)


def many_series(count: int) -> Sequence[DataPoint]:
    """Make one point for each of many series."""
    return [DataPoint(Labels("many", number=str(n)), 1, float(n)) for n in range(count)]


def test_scans_interleave() -> None:
    """Scans and other reads take turns, and each gives all that a scan of the engine gives."""

    async def main() -> None:
        engine = Gated().open()
        engine.write(many_series(3_000))
        engine.write_series(A, range(1, 30_001), np.arange(30_000.0))
        expected = [(b.labels, b.values.tolist()) for b in engine.scan()]
        async with aio.Engine(engine) as face:
            scans = [face.scan() for _ in range(3)]
            found: list[list[object]] = [[], [], []]
            for _ in range(len(expected)):
                for scan, into in zip(scans, found, strict=True):
                    batch = await anext(scan)
                    into.append((batch.labels, batch.values.tolist()))
            assert await face.count() == 33_000
            for scan in scans:
                with pytest.raises(StopAsyncIteration):
                    await anext(scan)
            assert found == [expected] * 3
            assert [labels async for labels in face.series()] == list(engine.series())

    run(main)


def test_a_scan_that_is_left_is_closed_in_its_thread() -> None:
    """Closing the async iterator, or dropping it, closes the engine's generator in the thread."""

    async def main() -> None:
        engine = Gated().open()
        engine.write(many_series(2_000))
        async with aio.Engine(engine) as face:
            async with contextlib.aclosing(face.scan()) as scan:
                await anext(scan)
            assert [name[:19] for name in engine.closed_in] == ["tsengine-aio-engine"]
            async for _ in face.scan():
                break
            gc.collect()
            await passes()
            await face.count()  # after the close that the loop has handed over
            assert len(engine.closed_in) == 2
            left = face.scan()
            await anext(left)
        assert len(engine.closed_in) == 3
        assert all(name.startswith("tsengine-aio-engine") for name in engine.closed_in)
        with pytest.raises(NotOpenError):
            async for _ in left:
                pass

    run(main)


def test_a_scan_gives_what_came_before_an_error() -> None:
    """What the engine raises in the middle of a scan comes after the batches before it."""

    async def main() -> None:
        engine = Gated().open()
        engine.write(many_series(100))
        engine.fails_at = 60
        async with aio.Engine(engine) as face:
            seen: list[SeriesBatch] = []

            async def scan() -> None:
                async for batch in face.scan():
                    seen.append(batch)  # noqa: PERF401  # what came before it raises

            assert isinstance(await fail(scan()), StorageError)
            assert len(seen) == 60

    run(main)


def test_a_cancelled_read_harms_no_other() -> None:
    """A read or a step of a scan is cancelled: the calls behind it answer as ever."""

    async def main() -> None:
        engine = Gated().open()
        engine.write(points(3))
        async with aio.Engine(engine) as face:
            for name, read in (
                ("read", face.count),
                ("scan", lambda: anext(face.scan())),
            ):
                engine.gates[name] = gate = Gate()
                reading: asyncio.Task[object] = asyncio.create_task(_as_coroutine(read()))
                await gate.reached.wait()
                waiting = asyncio.create_task(face.count())
                dropped = asyncio.create_task(face.count())
                await passes()
                reading.cancel()
                dropped.cancel()
                await passes()
                gate.open()
                assert await waiting == 3
                told = await asyncio.gather(reading, dropped, return_exceptions=True)
                assert all(isinstance(t, asyncio.CancelledError) for t in told)
                engine.gates.clear()

    run(main)


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable


def test_a_cancelled_write_is_whole_or_not_made() -> None:
    """A cancelled `Engine.write` is waited for where it had begun, else it is not made."""

    async def main() -> None:
        engine = Gated().open()
        async with aio.Engine(engine) as face:
            engine.gates["read"] = gate = Gate()
            reading = asyncio.create_task(face.count())
            await gate.reached.wait()
            writing = asyncio.create_task(face.write(points(3)))
            await passes()
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            gate.open()
            assert await reading == 0
            assert await face.count() == 0

    run(main)


def test_opening_is_cancelled_without_a_trace(tmp_path: Path) -> None:
    """A cancelled wait for a store that another process has ends, and leaves nothing open."""
    url = f"lmdb://{tmp_path / 'store'}"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys, tsengine\nwith tsengine.open({url!r}):\n print(flush=True)\n input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()

    async def main() -> None:
        async def opening() -> aio.Engine:
            return await aio.open(url, timeout=None)

        task = asyncio.create_task(opening())
        await passes()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(tsengine.StoreInUseError):
            await aio.open(url)
        await asyncio.to_thread(holder.communicate, b"\n")
        engine = await aio.open(url)
        await engine.close()

    asyncio.run(main())


# ------------------------------------------------------------------------- at random


FAULTS = st.builds(
    Fault,
    method=st.sampled_from(["flush_buffer", "write_batch_to_buffer", "validate_point"]),
    at=st.integers(1, 8),
    times=st.integers(1, 3),
    when=st.sampled_from(When),
    error=st.sampled_from(
        [
            lambda: StorageError("a fault"),
            lambda: RuntimeError("a fault"),
        ]
    ),
)
WRITES = st.lists(
    st.tuples(
        st.sampled_from(SERIES),
        st.sampled_from(["write", "many", "series", "submit", "bad", "odd"]),
        st.integers(0, 3),  # passes of the loop before it
        st.sampled_from([None, None, None, 0, 1, 5]),  # passes until it is cancelled
    ),
    max_size=30,
)


@settings(max_examples=60)
@given(
    faults=st.lists(FAULTS, max_size=3),
    writes=WRITES,
    points_max=st.sampled_from([1, 3, 100]),
    on_full=st.sampled_from(["block", "raise"]),
)
def test_every_point_is_accounted_for(
    faults: list[Fault], writes: list[Any], points_max: int, on_full: Any
) -> None:
    """With any faults and cancellations, what was taken is stored exactly once."""
    run(lambda: account(faults, writes, points_max, on_full))


async def account(faults: list[Fault], writes: list[Any], points_max: int, on_full: Any) -> None:
    """Write at random; accepted, rejected, raised and cancelled are all that went in."""
    with MemoryEngine("", duplicate_policy="sum") as engine:
        buffer = aio.WriteBuffer(
            FaultyHandler(engine, *map(copy.copy, faults)),
            points_max=points_max,
            pending_max=2 * points_max,
            on_full=on_full,
            retry=RetryPolicy(max_retries=1, backoff_min=0.0),
            age_max=0.001,
        )
        told = {"accepted": 0, "bad": 0, "raised": 0, "cancelled": 0}

        async def one(labels: Labels, how: str, after: int, cancelled_after: int | None) -> None:
            size = 3 if how in ("many", "series") else 1
            await passes(after)

            async def write() -> WriteReceipt:
                if how == "many":
                    return await buffer.write_many([(labels, 1, 1.0)] * 3)
                if how == "series":
                    return await buffer.write_series(labels, [1, 1, 2], np.ones(3))
                if how == "submit":
                    return await (await buffer.submit((labels, 2, 1.0)))
                value: Any = {"bad": "text", "odd": np.float32(1.0)}.get(how, 1.0)
                return await buffer.write((labels, 1, value))

            task = asyncio.create_task(write())
            if cancelled_after is not None:
                await passes(cancelled_after)
                task.cancel()
            try:
                receipt = await task
                assert receipt == WriteReceipt(size, size)
                told["accepted"] += size
            except asyncio.CancelledError:
                told["cancelled"] += size
            except InvalidDataError:
                assert how == "bad"
                told["bad"] += size
            except (BufferFullError, StorageError, RuntimeError):
                told["raised"] += size

        await asyncio.gather(*(one(*write) for write in writes))
        for _ in range(20):
            if not isinstance(await fail(buffer.flush()), (StorageError, RuntimeError)):
                break
        await buffer.close()
        assert buffer.pending == 0
        stored = sum(float(batch.values.sum()) for batch in engine.query())
        given = sum(3 if how in ("many", "series") else 1 for _, how, _, _ in writes)
        assert sum(told.values()) == given
        assert stored == buffer.committed.accepted == buffer.committed.submitted
        assert told["accepted"] <= stored <= given - told["bad"]


# ------------------------------------------------------------------------- planted bugs


def test_a_point_that_overtakes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of order fails when points that were judged pass others of their series."""
    have_asked = taking.Taker._have_asked

    def out_of_order(self: taking.Taker, turns: list[taking.Turn]) -> None:
        have_asked(self, turns[::-1])

    monkeypatch.setattr(taking.Taker, "_have_asked", out_of_order)
    with pytest.raises(AssertionError):
        test_points_of_a_series_keep_their_order()


def test_a_loop_that_is_blocked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the heartbeat fails when the handler is asked in the loop."""
    monkeypatch.setattr(Gate, "LONGEST", 0.05)

    def ask(judge: Judge, point: PointLike) -> tuple[Labels, int, object]:
        return judge._handler.validate_point(point)

    monkeypatch.setattr(Judge, "judge_unasked", ask)
    with pytest.raises(AssertionError, match="was blocked"):
        test_the_loop_is_never_blocked("judge", stalled_judging)


def test_a_receipt_for_who_has_gone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of cancelled waiters fails when a commit tells those as well."""

    def deliver(self: Mailbox) -> None:
        self._is_wanted = False
        while self._told:
            future, outcome = self._told.popleft()
            assert isinstance(future, asyncio.Future)
            assert isinstance(outcome, WriteReceipt)
            if future.cancelled():
                self._told.clear()  # where setting it would raise, and the rest not be told
                return
            future.set_result(outcome)

    monkeypatch.setattr(Mailbox, "_deliver", deliver)
    monkeypatch.setattr(sys.modules[__name__], "LONGEST_RUN", 0.5)
    with pytest.raises(TimeoutError):
        test_a_cancelled_waiter_harms_no_other()
