"""Figures 20 to 23: the PostgreSQL backend beside programs written by hand.

Both sides write to the same tables of the same server, whose commits reach the disk. The server
and its clients use every core, as they would.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import count

import tsengine
from benchmarks.comparison import Line, say, take_turns
from benchmarks.figures_pipeline import SMALL_POINTS, peak
from benchmarks.machine import freeze, fresh_folder
from benchmarks.ours import lmdb_url, open_engine, require_count
from benchmarks.postgres_server import Server
from benchmarks.setting import Setting
from benchmarks.workload import START_NS, STEP_NS, Workload, workload
from tsengine import DataPoint, Labels
from tsengine.backends.postgres import bulk_upsert
from tsengine.errors import BulkUpsertError, ContentionError
from tsengine.retry import RetryPolicy

BY_HAND = "psycopg by hand"


def figure_20(setting: Setting) -> list[Line]:
    """Batches of 1,000 and 10,000 points, and a bulk, beside what is written by hand."""
    with fresh_folder(setting.folder) as folder, Server(folder) as server:
        many = setting.sizes.postgres_batches
        return [
            *_batches(setting, server, 1, many),
            *_batches(setting, server, 10, many // 5),
            *_bulk(setting, server),
        ]


def _batches(setting: Setting, server: Server, steps: int, batches: int) -> list[Line]:
    """Write batches of so many steps of all series, each at a time of its own."""
    series = setting.sizes.series
    points = steps * series
    prime = workload(series, 1)

    def contest(prepare: Callable[[Workload], Callable[[], object]]) -> Callable[[], float]:
        numbers = count(1)

        def rate() -> float:
            starts = [START_NS + next(numbers) * steps * STEP_NS for _ in range(batches)]
            writes = [prepare(workload(series, steps, start_ns=start)) for start in starts]
            server.settle()
            started = time.perf_counter()
            for write in writes:
                write()
            return batches * points / (time.perf_counter() - started)

        return rate

    with ExitStack() as stack:
        engine, _ = stack.enter_context(server.store(prime))
        lists = stack.enter_context(server.by_hand(prime))
        copied = stack.enter_context(server.by_hand(prime))

        def ours(made: Workload) -> Callable[[], object]:
            return partial(engine.write_batch, made.batch())

        def by_lists(made: Workload) -> Callable[[], object]:
            columns = made.columns()
            numbers = lists.numbers[columns.series].tolist()
            return partial(
                lists.unnest, numbers, columns.timestamps.tolist(), columns.values.tolist()
            )

        def by_copy(made: Workload) -> Callable[[], object]:
            return partial(copied.copy, made.columns())

        rates = take_turns(
            {"ours": contest(ours), "unnest": contest(by_lists), "copy": contest(by_copy)},
            rounds=setting.rounds,
        )
    what = f"batches of {points:,} points"
    return [
        Line(20, what, "points/s", rates["ours"], f"{BY_HAND}: {peer}", rates[peer], 0.9)
        for peer in ("unnest", "copy")
    ]


def _bulk(setting: Setting, server: Server) -> list[Line]:
    sizes = setting.sizes
    prime = workload(sizes.series, 1)
    length = sizes.postgres_bulk_points // sizes.series
    made = workload(sizes.series, length, start_ns=START_NS + STEP_NS)
    batch, columns = made.batch(), made.columns()
    few = workload(sizes.series, max(length // 10, 1), start_ns=START_NS + STEP_NS)
    freeze()

    def ours() -> float:
        with server.store(prime) as (engine, _):
            server.settle()
            started = time.perf_counter()
            engine.write_batch(batch)
            seconds = time.perf_counter() - started
            require_count(engine, len(batch) + sizes.series)
            return len(batch) / seconds

    def copy() -> float:
        with server.by_hand(prime) as program:
            server.settle()
            started = time.perf_counter()
            program.copy(columns)
            return len(columns) / (time.perf_counter() - started)

    def executemany() -> float:
        with server.by_hand(prime) as program:
            numbers = program.numbers.tolist()
            rows = [(numbers[series], when, value) for series, when, value in few.rows()]
            server.settle()
            started = time.perf_counter()
            program.executemany(rows)
            return len(rows) / (time.perf_counter() - started)

    rates = take_turns(
        {"ours": ours, "copy": copy, "executemany": executemany}, rounds=setting.rounds
    )
    what = f"a bulk of {len(batch):,} points"
    return [
        Line(20, what, "points/s", rates["ours"], f"{BY_HAND}: copy", rates["copy"], 0.9),
        Line(20, what, "points/s", rates["ours"], "executemany", rates["executemany"], 3.0),
    ]


def figure_21(setting: Setting) -> list[Line]:
    """The same bulk once more, beside a plain DO UPDATE."""
    sizes = setting.sizes
    made = workload(sizes.series, sizes.postgres_bulk_points // sizes.series)
    batch, columns = made.batch(), made.columns()
    freeze()
    with fresh_folder(setting.folder) as folder, Server(folder) as server:

        def ours() -> float:
            with server.store(made) as (engine, _):
                server.settle()
                started = time.perf_counter()
                engine.write_batch(batch)
                return len(batch) / (time.perf_counter() - started)

        def plain() -> float:
            with server.by_hand(made) as program:
                server.settle()
                started = time.perf_counter()
                program.copy(columns)
                return len(columns) / (time.perf_counter() - started)

        rates = take_turns({"ours": ours, "plain": plain}, rounds=setting.rounds)
    what = f"the same {len(batch):,} points again"
    return [Line(21, what, "points/s", rates["ours"], "plain DO UPDATE", rates["plain"], 1.5)]


def figure_22(setting: Setting) -> list[Line]:
    """Four writers of overlapping keys in any order: how many deadlocks a caller meets."""
    sizes = setting.sizes
    labels = [Labels("cpu", host=str(number)) for number in range(20)]
    met: list[int] = []
    with (
        fresh_folder(setting.folder) as folder,
        Server(folder) as server,
        server.schema() as schema,
        server.connect() as connection,
    ):
        tsengine.open(server.url(schema)).close()
        connection.execute(f"CREATE TABLE {schema}.mine (k int PRIMARY KEY, v int)")

        def write(writer: int) -> int:
            chooser = random.Random(writer)
            deadlocks = 0
            with tsengine.open(server.url(schema)) as engine:
                for turn in range(sizes.postgres_turns):
                    points = [
                        DataPoint(chooser.choice(labels), START_NS + n, float(turn))
                        for n in chooser.sample(range(3_000), 2_000)
                    ]
                    rows = [(n, turn) for n in chooser.sample(range(3_000), 2_000)]
                    try:
                        engine.write(points)
                        bulk_upsert(
                            server.cluster.local_url(),
                            (schema, "mine"),
                            rows,
                            columns=["k", "v"],
                            key=["k"],
                            policy=RetryPolicy(max_retries=0),
                        )
                    except (BulkUpsertError, ContentionError) as error:
                        say(f"  {error}")
                        deadlocks += 1
            return deadlocks

        for turn in range(setting.rounds):
            with ThreadPoolExecutor(4) as pool:
                met.append(sum(pool.map(write, range(turn * 4, turn * 4 + 4))))
            say(f"  round {turn + 1}: {met[-1]} deadlocks")
    what = f"deadlocks of four writers, {sizes.postgres_turns} turns"
    return [Line(22, what, "", met, bar=0, higher_is_better=False)]


def figure_23(setting: Setting) -> list[Line]:
    """The memory of a process that streams many points into a store, beside one of few."""
    sizes = setting.sizes
    lengths = {
        "large": sizes.copied_points // sizes.series,
        "small": min(SMALL_POINTS, sizes.copied_points // 4) // sizes.series,
    }
    peaks: dict[str, list[float]] = {name: [] for name in lengths}
    with fresh_folder(setting.folder) as folder, Server(folder) as server:
        for name, length in lengths.items():
            (folder / name).mkdir()
            with open_engine(lmdb_url(folder / name)) as engine:
                engine.write_batch(workload(sizes.series, length).batch())
                engine.compact()
            with server.schema() as schema:
                seen = peak(lmdb_url(folder / name), server.url(schema))
            say(f"  memory of the {name} stream: {seen / 1e6:.1f} MB")
            peaks[name].append(seen / 1e6)
    large, small = (length * sizes.series for length in lengths.values())
    return [
        Line(
            figure=23,
            what=f"peak memory of a stream of {large:,}",
            unit="MB",
            ours=peaks["large"],
            peer=f"of {small:,}",
            theirs=peaks["small"],
            bar=1.2,
            higher_is_better=False,
            note="measured once: a stream takes minutes",
        )
    ]
