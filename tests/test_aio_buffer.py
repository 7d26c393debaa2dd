"""The awaited buffer: what becomes of points, calls of many, and room."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tsengine
from tests.aio_setting import (
    AT_ONCE,
    STORED,
    A,
    B,
    C,
    Gate,
    Gated,
    fail,
    passes,
    points,
    run,
)
from tsengine import aio
from tsengine.backends.memory import MemoryEngine
from tsengine.errors import (
    BufferFullError,
    DuplicatePointError,
    InvalidDataError,
    RejectedPointsError,
    StorageError,
    TimestampError,
    ValueKindError,
)
from tsengine.model import (
    GroupedBatch,
    Labels,
    WriteReceipt,
)
from tsengine.testing.faults import Fault, FaultyHandler, When

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
