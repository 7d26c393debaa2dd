"""Figures 1 to 3: writing, beside what users would take otherwise."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.comparison import Contestant, Line, say, take_turns
from benchmarks.machine import freeze, fresh_folder, settle
from benchmarks.ours import (
    MEMORY_URL,
    Feed,
    LostPointsError,
    ingest,
    lmdb_url,
    many_writes,
    open_engine,
    require_count,
    single_writes,
    threaded_writes,
)
from benchmarks.peers import DuckDb, Peer, RocksDb, Sqlite
from benchmarks.setting import Setting
from benchmarks.workload import START_NS, STEP_NS, Row, workload
from tsengine import DataPoint


def figure_1(setting: Setting) -> list[Line]:
    """Single writes into LMDB, beside RocksDB, sqlite and DuckDB; and their siblings."""
    sizes = setting.sizes
    made = workload(sizes.series, 1 + sizes.points // sizes.series)
    prime, points = made.points(0, 1), made.points(1)
    prime_rows, rows = made.rows(0, 1), made.rows(1)
    few_rows = rows[: sizes.small_commit_points]
    count = len(prime) + len(points)
    single = single_writes(points)
    many = many_writes(points, sizes.batch)
    threaded = threaded_writes(points, sizes.series, sizes.threads)
    freeze()

    def ours(feed: Feed, *, memory: bool = False) -> Contestant:
        return partial(_rate_of_ours, setting, prime, feed, count, memory=memory)

    def theirs(peer: Callable[[Path, int], Peer], commit: int, rows: Sequence[Row]) -> Contestant:
        return partial(_rate_of_peer, setting, peer, commit, prime_rows, rows)

    rates = take_turns(
        {
            "LMDB": ours(single),
            "RocksDB": theirs(RocksDb, sizes.batch, rows),
            "sqlite": theirs(Sqlite, 100 * sizes.batch, rows),
            "write_many": ours(many),
            "RocksDB large": theirs(RocksDb, 65_536, rows),
            "memory": ours(single, memory=True),
            "threads": ours(threaded),
            "sqlite small": theirs(Sqlite, sizes.batch, few_rows),
            "DuckDB small": theirs(DuckDb, sizes.batch, few_rows),
        },
        rounds=setting.rounds,
    )
    line = partial(_rate_line, 1, rates)
    return [
        line("single writes, LMDB", "LMDB", "RocksDB, 1,000 a synced batch", "RocksDB", 2.0),
        line("single writes, LMDB", "LMDB", "sqlite, 100,000 a transaction", "sqlite", 2.5),
        line("write_many, LMDB", "write_many", "RocksDB, 1,000 a synced batch", "RocksDB", 2.7),
        line("single writes, memory", "memory", "ours, single writes, LMDB", "LMDB", 1.0),
        line(f"{sizes.threads} threads, LMDB", "threads", "ours, one thread", "LMDB", 0.7),
        line("single writes, LMDB", "LMDB", "RocksDB, 65,536 sorted", "RocksDB large"),
        line("single writes, LMDB", "LMDB", "sqlite, 1,000 a transaction", "sqlite small"),
        line("single writes, LMDB", "LMDB", "DuckDB, 1,000 an Arrow table", "DuckDB small"),
    ]


def figure_2(setting: Setting) -> list[Line]:
    """Single writes over very many series, and first writes to new ones."""
    sizes = setting.sizes
    few = workload(sizes.series, 1 + sizes.points // sizes.series)
    few_prime, few_points = few.points(0, 1), few.points(1)
    many = workload(sizes.many_series, 1 + sizes.points // sizes.many_series)
    many_prime, many_points = many.points(0, 1), many.points(1)
    new_series: list[float] = []
    freeze()

    def over_many() -> float:
        with fresh_folder(setting.folder) as folder:
            first, then = ingest(
                lmdb_url(folder),
                many_prime,
                single_writes(many_points),
                len(many_prime) + len(many_points),
            )
        new_series.append(len(many_prime) / first)
        say(f"    first writes: {new_series[-1]:,.0f} series/s")
        return len(many_points) / then

    few_count = len(few_prime) + len(few_points)
    rates = take_turns(
        {
            "few": partial(_rate_of_ours, setting, few_prime, single_writes(few_points), few_count),
            "many": over_many,
        },
        rounds=setting.rounds,
    )
    return [
        _rate_line(
            2,
            rates,
            f"single writes, {sizes.many_series:,} series",
            "many",
            f"ours, {sizes.series:,} series",
            "few",
            0.7,
        ),
        Line(
            figure=2,
            what="first writes to new series",
            unit="series/s",
            ours=new_series[-setting.rounds :],  # the warm-up round is not counted
            bar=100_000.0,
        ),
    ]


def figure_3(setting: Setting) -> list[Line]:
    """One batch of ten million points, committed, beside DuckDB with the same Arrow table."""
    made = setting.bulk(None)
    batch, columns = made.batch(), made.columns()
    prime = workload(setting.sizes.series, 1, start_ns=START_NS - STEP_NS)
    prime_points, prime_rows = prime.points(), prime.rows()
    freeze()

    def ours() -> float:
        with fresh_folder(setting.folder) as folder, open_engine(lmdb_url(folder)) as engine:
            engine.write(prime_points)
            settle()
            started = time.perf_counter()
            engine.write_batch(batch)
            elapsed = time.perf_counter() - started
            require_count(engine, len(batch) + len(prime_points))
        return len(batch) / elapsed

    def theirs() -> float:
        with fresh_folder(setting.folder) as folder, DuckDb(folder) as peer:
            peer.ingest(prime_rows)
            settle()
            elapsed = peer.load(columns)
            _require_peer_count(peer, len(columns) + len(prime_rows))
        return len(columns) / elapsed

    rates = take_turns({"LMDB": ours, "DuckDB": theirs}, rounds=setting.rounds)
    what = f"one write_batch of {len(batch):,}"
    return [_rate_line(3, rates, what, "LMDB", "DuckDB, one Arrow table", "DuckDB", 1.5)]


def _rate_of_ours(
    setting: Setting, prime: Sequence[DataPoint], feed: Feed, count: int, *, memory: bool = False
) -> float:
    with fresh_folder(setting.folder) as folder:
        url = MEMORY_URL if memory else lmdb_url(folder)
        _, seconds = ingest(url, prime, feed, count)
    return (count - len(prime)) / seconds


def _rate_of_peer(
    setting: Setting,
    peer: Callable[[Path, int], Peer],
    rows_per_commit: int,
    prime: Sequence[Row],
    rows: Sequence[Row],
) -> float:
    with fresh_folder(setting.folder) as folder, peer(folder, rows_per_commit) as opened:
        opened.ingest(prime)
        settle()
        seconds = opened.ingest(rows)
        _require_peer_count(opened, len(prime) + len(rows))
    return len(rows) / seconds


def _require_peer_count(peer: Peer, count: int) -> None:
    found = peer.count()
    if found != count:
        raise LostPointsError(f"{peer.product} holds {found:,} of {count:,} rows")


def _rate_line(
    figure: int,
    rates: Mapping[str, Sequence[float]],
    what: str,
    ours: str,
    peer: str,
    theirs: str,
    bar: float | None = None,
) -> Line:
    return Line(
        figure=figure,
        what=what,
        unit="points/s",
        ours=rates[ours],
        peer=peer,
        theirs=rates[theirs],
        bar=bar,
    )
