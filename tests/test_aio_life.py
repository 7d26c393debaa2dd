"""Closing, loops that end, forks."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable
from typing import Any

import pytest

from tests.aio_setting import (
    AT_ONCE,
    STORED,
    A,
    Gate,
    Gated,
    fail,
    passes,
    points,
    run,
)
from tsengine import aio
from tsengine.aio.delivery import Mailbox
from tsengine.backends.memory import MemoryEngine
from tsengine.errors import (
    LifecycleError,
    NotOpenError,
    StorageError,
    UnsavedPointsError,
)
from tsengine.model import (
    DataPoint,
)
from tsengine.testing.faults import Fault, FaultyHandler

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
