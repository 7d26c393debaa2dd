"""Figure 11: writing under asyncio, each task awaiting each of its points."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from functools import partial

from benchmarks.comparison import Line, say, take_turns
from benchmarks.machine import freeze, fresh_folder, settle
from benchmarks.ours import lmdb_url, require_count
from benchmarks.setting import Setting
from benchmarks.workload import workload
from tsengine import DataPoint, aio

TASKS = 1_000
"""Tasks, each with a series of its own."""
STEPS = 200
"""Points of each, at full size."""
STEPS_QUICK = 20


def figure_11(setting: Setting) -> list[Line]:
    """Durable points a second of 1,000 tasks that await each write, into LMDB."""
    quick = setting.sizes.points < 1_000_000
    made = workload(TASKS, 1 + (STEPS_QUICK if quick else STEPS))
    prime, points = made.points(0, 1), made.points(1)
    shares = [points[task::TASKS] for task in range(TASKS)]
    freeze()
    processor: list[float] = []

    def ours() -> float:
        with fresh_folder(setting.folder) as folder:
            url = f"{lmdb_url(folder)}?durability=commit"
            wall, busy = asyncio.run(awaited_writes(url, prime, shares))
        processor.append(len(points) / busy)
        say(f"    a second of processor time: {processor[-1]:,.0f} points")
        return len(points) / wall

    rates = take_turns({"asyncio": ours}, rounds=setting.rounds)
    return [
        Line(
            figure=11,
            what=f"asyncio, {TASKS:,} tasks, each awaiting its write",
            unit="points/s",
            ours=rates["asyncio"],
            bar=50_000.0,
            note=f"{statistics.median(processor[-setting.rounds :]):,.0f} points a second of "
            "processor time",
        )
    ]


async def awaited_writes(
    url: str, prime: Sequence[DataPoint], shares: Sequence[Sequence[DataPoint]]
) -> tuple[float, float]:
    """Write the points of each task one after the other, each awaited until it is durable.

    Returns:
        Seconds from the first write until the last returned, and seconds of processor time.

    Raises:
        LostPointsError: the store holds another number of points.
    """

    async def writer(buffer: aio.WriteBuffer, points: Sequence[DataPoint]) -> None:
        write = buffer.write
        for point in points:
            await write(point)

    async with aio.open(url) as engine, aio.WriteBuffer(engine) as buffer:
        await buffer.write_many(prime)
        settle()
        started, busy = time.perf_counter(), time.process_time()
        await asyncio.gather(*map(partial(writer, buffer), shares))
        wall, busy = time.perf_counter() - started, time.process_time() - busy
        require_count(engine.sync, len(prime) + sum(map(len, shares)))
    return wall, busy
