"""No call holds up the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.aio_setting import (
    A,
    B,
    C,
    Gate,
    Gated,
    points,
    run,
)
from tsengine import aio
from tsengine.backends.memory import MemoryEngine

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
