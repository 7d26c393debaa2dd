"""Our side of the figures: the engine as its users drive it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tsengine
from benchmarks.machine import settle
from tsengine import DataPoint, Engine, WriteBuffer

Feed = Callable[[WriteBuffer], None]
"""Writes prepared points into a buffer."""

MEMORY_URL = "memory://"


class LostPointsError(RuntimeError):
    """Is raised when a store holds other than what was written: its figure would mean nothing."""


def lmdb_url(folder: Path) -> str:
    """Name the LMDB store in a folder."""
    return f"lmdb://{(folder / 'store').resolve()}"


def open_engine(url: str, **options: str) -> Engine:
    """Open a store as the figures ask for it: LMDB at durability `commit`."""
    if url.startswith("lmdb:"):
        options = {"durability": "commit", **options}
    return tsengine.open(url, **options)  # type: ignore[arg-type]  # `timeout` is not among them


def single_writes(points: Sequence[DataPoint]) -> Feed:
    """Write point by point."""

    def feed(buffer: WriteBuffer) -> None:
        write = buffer.write
        for point in points:
            write(point)

    return feed


def many_writes(points: Sequence[DataPoint], size: int) -> Feed:
    """Write `size` points a call, as a receiver of messages would."""
    parts = [points[first : first + size] for first in range(0, len(points), size)]

    def feed(buffer: WriteBuffer) -> None:
        for part in parts:
            buffer.write_many(part)

    return feed


def threaded_writes(points: Sequence[DataPoint], series: int, threads: int) -> Feed:
    """Write point by point from several threads, each with series of its own."""
    feeds = [
        single_writes(
            [point for place, point in enumerate(points) if place % series % threads == t]
        )
        for t in range(threads)
    ]

    def feed(buffer: WriteBuffer) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(part, buffer) for part in feeds]:
                done.result()

    return feed


def ingest(url: str, prime: Sequence[DataPoint], feed: Feed, count: int) -> tuple[float, float]:
    """Time first writes and then writes to known series, each until they are durable.

    The second clock runs from the first write until `buffer.close()` returns. Merges go on
    in the background meanwhile; the engine is closed afterwards.

    Args:
        url: a store that is not there yet.
        prime: points that make each series known.
        feed: writes the points that are timed.
        count: points that must be there in the end, those of `prime` included.

    Returns:
        Seconds for `prime`, seconds for `feed`.

    Raises:
        LostPointsError: the store holds another number of points.
    """
    with open_engine(url) as engine, tsengine.WriteBuffer(engine) as buffer:
        settle()
        started = time.perf_counter()
        single_writes(prime)(buffer)
        buffer.flush()
        prime_seconds = time.perf_counter() - started
        settle()
        started = time.perf_counter()
        feed(buffer)
        buffer.close()
        feed_seconds = time.perf_counter() - started
        require_count(engine, count)
    return prime_seconds, feed_seconds


def require_count(engine: Engine, count: int) -> None:
    """Hold the store to the number of points that were written.

    Raises:
        LostPointsError: it holds another number.
    """
    found = engine.count()
    if found != count:
        raise LostPointsError(f"{count:,} points were written and the store holds {found:,}")
