"""Figures 7 and 8: commits of a point each, and what merging in the background costs a commit."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import TypeVar
from unittest.mock import patch

import lmdb
import numpy as np

import tsengine
from benchmarks.comparison import Line, say
from benchmarks.machine import freeze, fresh_folder, settle
from benchmarks.ours import lmdb_url, open_engine
from benchmarks.setting import Setting
from benchmarks.workload import START_NS, STEP_NS, workload
from tsengine import DataPoint, Engine, GroupedBatch, Labels
from tsengine.backends.lmdb.environment import Environment

SERIES_OF_SMALL_COMMITS = 10
READS = 200
"""Queries of which the median is taken."""
MOMENTS = 5
"""How often in a round reads are compared with those of a compacted copy."""

_Result = TypeVar("_Result")


def figure_7(setting: Setting) -> list[Line]:
    """One point a flush beside raw LMDB commits of 16 bytes, and reads meanwhile."""
    commits = setting.sizes.tiny_commits // setting.rounds // MOMENTS
    labels = [Labels("cpu", host=str(number)) for number in range(SERIES_OF_SMALL_COMMITS)]
    buffered: list[float] = []
    direct: list[float] = []
    raw: list[float] = []
    reads: list[float] = []
    compacted: list[float] = []
    numbers = count()
    with fresh_folder(setting.folder) as folder:
        (folder / "raw").mkdir()
        with (
            lmdb.open(str(folder / "raw"), map_size=1 << 30) as environment,
            open_engine(lmdb_url(folder)) as engine,
            tsengine.WriteBuffer(engine) as buffer,
        ):

            def flush() -> None:
                number = next(numbers)
                timestamp = START_NS + number * STEP_NS
                buffer.write(DataPoint(labels[number % len(labels)], timestamp, float(number)))
                buffer.flush()

            def write() -> None:
                number = next(numbers)
                timestamp = START_NS + number * STEP_NS
                engine.write([(labels[number % len(labels)], timestamp, float(number))])

            def commit() -> None:
                with environment.begin(write=True) as transaction:
                    transaction.put(next(numbers).to_bytes(8, "big"), b"x" * 16)

            settle()
            for moment in range(setting.rounds * MOMENTS):
                raw.append(_rate(commit, commits // 4))
                buffered.append(_rate(flush, commits))
                direct.append(_rate(write, commits // 4))
                copy = folder / f"copy-{moment}"
                engine.snapshot(str(copy))
                with open_engine(f"lmdb://{copy}") as other:
                    other.compact()
                    compacted.append(_read_seconds(other, labels))
                reads.append(_read_seconds(engine, labels))
                say(
                    f"  raw {raw[-1]:,.0f}/s, flush {buffered[-1]:,.0f}/s, "
                    f"reads {reads[-1] / compacted[-1]:.1f}"
                )
    worst = max(range(len(reads)), key=lambda place: reads[place] / compacted[place])
    return [
        Line(7, "one point a flush, LMDB", "commits/s", buffered, "raw LMDB commits", raw, 0.7),
        Line(7, "one point an engine.write", "commits/s", direct, "raw LMDB commits", raw),
        Line(
            figure=7,
            what=f"reads after any of {next(numbers):,} commits, worst moment",
            unit="µs",
            ours=[reads[worst] * 1e6],
            peer="ours, compacted then",
            theirs=[compacted[worst] * 1e6],
            bar=4.0,
            higher_is_better=False,
        ),
    ]


def figure_8(setting: Setting) -> list[Line]:
    """How even commits are while merging goes on, and how long a merge step keeps the lock."""
    sizes = setting.sizes
    steps = max(sizes.run_points // sizes.series, 1)
    made = workload(sizes.series, steps)
    batch = made.batch()
    freeze()
    ratios: list[float] = []
    holds: list[float] = []
    medians: list[float] = []
    for _ in range(setting.rounds):
        with fresh_folder(setting.folder) as folder, open_engine(lmdb_url(folder)) as engine:
            settle()
            with _holds_of_upkeep() as held:
                seconds = [
                    _seconds(partial(engine.write_batch, later))
                    for later in _later(batch, steps, sizes.flushes)
                ]
        medians.append(statistics.median(seconds) * 1e3)
        ratios.append(float(np.percentile(seconds, 99)) * 1e3)
        holds.append(float(np.percentile(held, 99)) * 1e3 if held else 0.0)
        say(f"  flush {medians[-1]:.1f} ms, p99 {ratios[-1]:.1f} ms, lock p99 {holds[-1]:.1f} ms")
    return [
        Line(
            figure=8,
            what=f"p99 of {sizes.flushes} flushes of {len(batch):,}, merging meanwhile",
            unit="ms",
            ours=ratios,
            peer="ours, the median of them",
            theirs=medians,
            bar=5.0,
            higher_is_better=False,
        ),
        Line(
            figure=8,
            what="writer's lock kept by a merge step, p99, its sync included",
            unit="ms",
            ours=holds,
            bar=15.0,
            higher_is_better=False,
        ),
    ]


def _later(batch: GroupedBatch, steps: int, times: int) -> Iterator[GroupedBatch]:
    """Give a batch again and again, each time where the one before ended."""
    for time_around in range(times):
        shift = time_around * steps * STEP_NS
        yield GroupedBatch(batch.labels, batch.offsets, batch.timestamps + shift, batch.values)


@contextmanager
def _holds_of_upkeep() -> Iterator[list[float]]:
    """Gather how long each transaction of the upkeep thread kept the writer's lock, in seconds."""
    held: list[float] = []
    write = Environment.write

    def timed(
        environment: Environment, work: Callable[[lmdb.Transaction], _Result], **options: bool
    ) -> _Result:
        began: list[float] = []

        def begun(transaction: lmdb.Transaction) -> _Result:
            began.append(time.perf_counter())
            return work(transaction)

        try:
            return write(environment, begun, **options)
        finally:
            if began and threading.current_thread().name == "tsengine-upkeep":
                held.append(time.perf_counter() - began[0])

    with patch.object(Environment, "write", timed):
        yield held


def _rate(call: Callable[[], object], times: int) -> float:
    started = time.perf_counter()
    for _ in range(times):
        call()
    return times / (time.perf_counter() - started)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _read_seconds(engine: Engine, labels: list[Labels]) -> float:
    """Give the median time of a query of one whole series."""
    return statistics.median(
        _seconds(partial(engine.query, labels[number % len(labels)])) for number in range(READS)
    )
