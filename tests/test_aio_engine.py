"""The awaited engine."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import subprocess
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path

import numpy as np
import pytest

import tsengine
from tests.aio_setting import (
    A,
    B,
    C,
    Gate,
    Gated,
    T,
    fail,
    passes,
    points,
    run,
)
from tsengine import aio
from tsengine.errors import (
    AggregationError,
    NotOpenError,
    SelectorError,
    StorageError,
)
from tsengine.model import (
    DataPoint,
    GroupedBatch,
    Labels,
    SeriesBatch,
    WriteReceipt,
)
from tsengine.testing.compare import rows_of

# ------------------------------------------------------------------------- the engine


def test_reads_and_writes_answer_as_the_engine_does(tmp_path: Path) -> None:
    """Each call gives what the same call of the engine gives."""

    async def main() -> None:
        async with aio.open(f"lmdb://{tmp_path / 'store'}", integers="int") as engine:
            assert await engine.write([(A, 1, 1.0), (B, 2, 7)]) == WriteReceipt(2, 2)
            assert (await engine.write_series(A, [2, 3], [2.0, 3.0])).accepted == 2
            batch = GroupedBatch([C], np.array([0, 1]), np.array([5]), np.array([0.5]))
            assert (await engine.write_batch(batch)).accepted == 1
            sync = engine.sync
            assert [b.labels for b in await engine.query()] == [b.labels for b in sync.query()]
            assert (await engine.query(A, 2))[0].values.tolist() == [2.0, 3.0]
            assert await engine.earliest() == sync.earliest()
            assert await engine.latest('{host="a"}') == sync.latest('{host="a"}')
            assert await engine.count(A, 1, 3) == 2
            assert [labels async for labels in engine.series()] == list(sync.series())
            assert await engine.label_names() == sync.label_names()
            assert await engine.label_values("host") == ["a", "b", "c"]
            assert (await engine.stats()).series == 3
            assert await engine.high_water("nobody") is None
            assert await engine.delete(B) == 1
            await engine.check()
            assert (await engine.compact()).bytes_after > 0
            await engine.snapshot(str(tmp_path / "copy"))
            async with aio.open(f"lmdb://{tmp_path / 'copy'}") as copy:
                assert await copy.count() == 4
            assert isinstance(await fail(engine.query("{")), SelectorError)
            assert isinstance(await fail(anext(engine.scan("{"))), SelectorError)
        assert isinstance(await fail(engine.count()), NotOpenError)
        await engine.close()

    run(main)


def test_aggregations_answer_as_the_engine_does(tmp_path: Path) -> None:
    """Every word of an aggregation reaches the engine, and its answer and its errors come back."""
    theirs, ours = (inspect.signature(of.aggregate) for of in (tsengine.Engine, aio.Engine))
    assert ours == theirs

    async def main() -> None:
        async with aio.open(f"lmdb://{tmp_path / 'store'}", integers="int") as engine:
            await engine.write([(A, 1, 1.0), (A, 3, 4.0), (B, 3, 7), (C, 12, 0.5)])
            everything = await engine.aggregate(functions=["count"], group_by=[])
            assert [batch.values.tolist() for batch in everything] == [[4]]
            found = await engine.aggregate(
                '{host!="c"}', 0, 9, functions=["sum"], every="2ns", group_by=[], origin=1, fill=-1
            )
            expected = [(-1, -1.0), (1, 1.0), (3, 11.0), (5, -1.0), (7, -1.0)]
            assert rows_of(found) == {Labels(): expected}
            assert isinstance(await fail(engine.aggregate(functions=["mode"])), AggregationError)
            assert isinstance(await fail(engine.aggregate("{", functions=["sum"])), SelectorError)
        assert isinstance(await fail(engine.aggregate(functions=["sum"])), NotOpenError)

    run(main)


def many_series(count: int) -> Sequence[DataPoint]:
    """Make one point for each of many series."""
    return [DataPoint(Labels("many", number=str(n)), 1, float(n)) for n in range(count)]


def test_scans_interleave() -> None:
    """Scans and other reads take turns, and each gives all that a scan of the engine gives."""

    async def main() -> None:
        engine = Gated().open()
        engine.write(many_series(3_000))
        engine.write_series(A, range(1, 30_001), np.arange(30_000.0))
        expected = [(b.labels, b.values.tolist()) for b in engine.scan()]
        async with aio.Engine(engine) as face:
            scans = [face.scan() for _ in range(3)]
            found: list[list[object]] = [[], [], []]
            for _ in range(len(expected)):
                for scan, into in zip(scans, found, strict=True):
                    batch = await anext(scan)
                    into.append((batch.labels, batch.values.tolist()))
            assert await face.count() == 33_000
            for scan in scans:
                with pytest.raises(StopAsyncIteration):
                    await anext(scan)
            assert found == [expected] * 3
            assert [labels async for labels in face.series()] == list(engine.series())

    run(main)


def test_a_scan_that_is_left_is_closed_in_its_thread() -> None:
    """Closing the async iterator, or dropping it, closes the engine's generator in the thread."""

    async def main() -> None:
        engine = Gated().open()
        engine.write(many_series(2_000))
        async with aio.Engine(engine) as face:
            async with contextlib.aclosing(face.scan()) as scan:
                await anext(scan)
            assert [name[:19] for name in engine.closed_in] == ["tsengine-aio-engine"]
            async for _ in face.scan():
                break
            gc.collect()
            await passes()
            await face.count()  # after the close that the loop has handed over
            assert len(engine.closed_in) == 2
            left = face.scan()
            await anext(left)
        assert len(engine.closed_in) == 3
        assert all(name.startswith("tsengine-aio-engine") for name in engine.closed_in)
        with pytest.raises(NotOpenError):
            async for _ in left:
                pass

    run(main)


def test_a_scan_gives_what_came_before_an_error() -> None:
    """What the engine raises in the middle of a scan comes after the batches before it."""

    async def main() -> None:
        engine = Gated().open()
        engine.write(many_series(100))
        engine.fails_at = 60
        async with aio.Engine(engine) as face:
            seen: list[SeriesBatch] = []

            async def scan() -> None:
                async for batch in face.scan():
                    seen.append(batch)  # noqa: PERF401  # what came before it raises

            assert isinstance(await fail(scan()), StorageError)
            assert len(seen) == 60

    run(main)


def test_a_cancelled_read_harms_no_other() -> None:
    """A read or a step of a scan is cancelled: the calls behind it answer as ever."""

    async def main() -> None:
        engine = Gated().open()
        engine.write(points(3))
        async with aio.Engine(engine) as face:
            for name, read in (
                ("read", face.count),
                ("scan", lambda: anext(face.scan())),
            ):
                engine.gates[name] = gate = Gate()
                reading: asyncio.Task[object] = asyncio.create_task(_as_coroutine(read()))
                await gate.reached.wait()
                waiting = asyncio.create_task(face.count())
                dropped = asyncio.create_task(face.count())
                await passes()
                reading.cancel()
                dropped.cancel()
                await passes()
                gate.open()
                assert await waiting == 3
                told = await asyncio.gather(reading, dropped, return_exceptions=True)
                assert all(isinstance(t, asyncio.CancelledError) for t in told)
                engine.gates.clear()

    run(main)


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable


def test_a_cancelled_write_is_whole_or_not_made() -> None:
    """A cancelled `Engine.write` is waited for where it had begun, else it is not made."""

    async def main() -> None:
        engine = Gated().open()
        async with aio.Engine(engine) as face:
            engine.gates["read"] = gate = Gate()
            reading = asyncio.create_task(face.count())
            await gate.reached.wait()
            writing = asyncio.create_task(face.write(points(3)))
            await passes()
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            gate.open()
            assert await reading == 0
            assert await face.count() == 0

    run(main)


def test_opening_is_cancelled_without_a_trace(tmp_path: Path) -> None:
    """A cancelled wait for a store that another process has ends, and leaves nothing open."""
    url = f"lmdb://{tmp_path / 'store'}"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import sys, tsengine\nwith tsengine.open({url!r}):\n print(flush=True)\n input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()

    async def main() -> None:
        async def opening() -> aio.Engine:
            return await aio.open(url, timeout=None)

        task = asyncio.create_task(opening())
        await passes()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(tsengine.StoreInUseError):
            await aio.open(url)
        await asyncio.to_thread(holder.communicate, b"\n")
        engine = await aio.open(url)
        await engine.close()

    asyncio.run(main())
