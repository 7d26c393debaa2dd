"""Benchmark of the asyncio face on LMDB; small, so that it runs as a test too."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

from benchmarks.figures_aio import awaited_writes
from benchmarks.suite import ROUNDS, Arguments, Benchmark
from benchmarks.workload import workload

TASKS = 1_000
STEPS = 20


def test_awaited_writes(benchmark: Benchmark, tmp_path: Path) -> None:
    """1,000 tasks, each awaiting each of its 20 writes; opening and closing are included."""
    made = workload(TASKS, 1 + STEPS)
    prime, points = made.points(0, 1), made.points(1)
    shares = [points[task::TASKS] for task in range(TASKS)]
    numbers = itertools.count()

    def setup() -> Arguments:
        return (f"lmdb://{tmp_path / str(next(numbers))}?durability=commit",), {}

    def write(url: str) -> None:
        asyncio.run(awaited_writes(url, prime, shares))

    benchmark.pedantic(write, setup=setup, rounds=ROUNDS)
