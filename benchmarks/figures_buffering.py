"""Figures 9 and 10: what the windows of a buffer cost a producer, and group commit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from benchmarks.comparison import Line, say, take_turns
from benchmarks.machine import freeze, fresh_folder, settle
from benchmarks.ours import lmdb_url, open_engine, require_count
from benchmarks.setting import Setting
from benchmarks.workload import START_NS, STEP_NS, workload
from tsengine import DataPoint, Engine, Labels, WriteBuffer

SUBMITTING_THREADS = 64
SWITCH_MS = 6.0
"""What a single write may take in the background: the switch interval of the interpreter, 5 ms, in
which another thread may keep it, and one to spare."""


def figure_9(setting: Setting) -> list[Line]:
    """One producer, with commits by age and in the background, beside one without either."""
    sizes = setting.sizes
    made = workload(sizes.series, 1 + sizes.points // sizes.series)
    prime, points = made.points(0, 1), made.points(1)
    late: list[float] = []
    freeze()

    def produce(*, age_max: float | None, background: bool = False) -> float:
        with (
            fresh_folder(setting.folder) as folder,
            open_engine(lmdb_url(folder)) as engine,
            WriteBuffer(engine, age_max=age_max, background=background) as buffer,
        ):
            buffer.write_many(prime)
            buffer.flush()
            settle()
            started = time.perf_counter()
            write = buffer.write
            for point in points:
                write(point)
            buffer.close()
            elapsed = time.perf_counter() - started
            require_count(engine, len(prime) + len(points))
        return len(points) / elapsed

    def look_at_each() -> float:
        late.append(_late_write_ms(setting, prime, points))
        return late[-1]

    rates = take_turns(
        {
            "neither": partial(produce, age_max=None),
            "age": partial(produce, age_max=1.0),
            "background": partial(produce, age_max=1.0, background=True),
            "each": look_at_each,
        },
        rounds=setting.rounds,
    )
    line = partial(
        Line, figure=9, unit="points/s", peer="ours, without either", theirs=rates["neither"]
    )
    return [
        line(what="single writes, age_max=1", ours=rates["age"], bar=0.97),
        line(what="single writes, background=True", ours=rates["background"], bar=0.8),
        Line(
            figure=9,
            what="p99.9 of a write, background=True",
            unit="ms",
            ours=rates["each"],
            bar=SWITCH_MS,
            higher_is_better=False,
        ),
    ]


def _late_write_ms(
    setting: Setting, prime: Sequence[DataPoint], points: Sequence[DataPoint]
) -> float:
    """Give the 99.9th percentile of a write, but for those that waited for room."""
    with (
        fresh_folder(setting.folder) as folder,
        open_engine(lmdb_url(folder)) as engine,
        WriteBuffer(engine, background=True) as buffer,
    ):
        buffer.write_many(prime)
        buffer.flush()
        settle()
        took = np.zeros(len(points))
        write, metrics, now = buffer.write, buffer.metrics, time.perf_counter
        waits = 0
        for number, point in enumerate(points):
            started = now()
            write(point)
            ended = now()
            if metrics.waits == waits:
                took[number] = ended - started
            waits = metrics.waits
    say(f"    waits for room: {waits}, longest write {took.max() * 1e3:.2f} ms")
    return float(np.quantile(took, 0.999) * 1e3)


def figure_10(setting: Setting) -> list[Line]:
    """Many threads that wait for each of their points, beside the same committing alone."""
    labels = [Labels("submitted", thread=str(number)) for number in range(SUBMITTING_THREADS)]
    sizes: list[float] = []

    def submit(engine: Engine) -> float:
        with WriteBuffer(engine) as buffer:
            before = buffer.metrics.batches
            rate = _rate(setting, lambda point: buffer.submit(point).result(), labels, buffer.flush)
            points = buffer.metrics.points
            sizes.append(points / (buffer.metrics.batches - before))
        say(f"    {sizes[-1]:.1f} points a commit")
        return rate

    def alone(engine: Engine) -> float:
        return _rate(setting, lambda point: engine.write([point]), labels)

    def on_new_store(measure: Callable[[Engine], float]) -> float:
        with fresh_folder(setting.folder) as folder, open_engine(lmdb_url(folder)) as engine:
            engine.write([DataPoint(one, START_NS, 0.0) for one in labels])
            settle()
            return measure(engine)

    rates = take_turns(
        {"submit": partial(on_new_store, submit), "alone": partial(on_new_store, alone)},
        rounds=setting.rounds,
    )
    return [
        Line(
            figure=10,
            what=f"{SUBMITTING_THREADS} threads in submit().result()",
            unit="points/s",
            ours=rates["submit"],
            peer="ours, each thread committing alone",
            theirs=rates["alone"],
            bar=20.0,
        )
    ]


def _rate(
    setting: Setting,
    store: Callable[[DataPoint], object],
    labels: Sequence[Labels],
    finish: Callable[[], object] = lambda: None,
) -> float:
    """Give the points a second that a thread a series stores, one after the other."""
    counts = [0] * len(labels)
    until = time.perf_counter() + setting.sizes.submit_seconds

    def work(number: int) -> None:
        moment = START_NS
        while time.perf_counter() < until:
            moment += STEP_NS
            store(DataPoint(labels[number], moment, 1.0))
            counts[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(labels))]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finish()
    return sum(counts) / (time.perf_counter() - started)
