"""PostgreSQL with the rest of tsengine: buffers, copies, verify, asyncio."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tsengine
from tests.postgres.stores import make_postgres
from tsengine import aio
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.backends.postgres import PostgresEngine
from tsengine.backends.postgres.session import Session
from tsengine.model import DataPoint, GroupedBatch, Labels

pytestmark = pytest.mark.usefixtures("stores")

NAMES = [Labels("cpu", host=f"web-{number}", zone="eu") for number in range(30)]


def filled(engine: tsengine.Engine) -> tsengine.Engine:
    """Write points of all kinds to an engine."""
    generator = np.random.default_rng(5)
    offsets = np.arange(len(NAMES) + 1) * 300
    times = np.concatenate([generator.permutation(300) + 1 for _ in NAMES])
    engine.write_batch(GroupedBatch(NAMES, offsets, times, generator.random(len(times))))
    engine.write_series(Labels("requests"), np.arange(1, 6), np.arange(5) * 2**59)
    engine.write_series(Labels("event"), [1, 2], [{"a": [1, None]}, b"x"])
    return engine


def test_a_store_is_copied_there_and_back(tmp_path: Path) -> None:
    """What is copied from LMDB to PostgreSQL and on to memory is the same, bit for bit."""
    with (
        filled(LmdbEngine(str(tmp_path / "lmdb")).open()) as lmdb,
        make_postgres(tmp_path) as postgres,
        MemoryEngine() as memory,
    ):
        tsengine.copy(lmdb, postgres, producer="move")
        tsengine.verify(lmdb, postgres)
        tsengine.copy(postgres, memory)
        tsengine.verify(postgres, memory)
        again = tsengine.copy(lmdb, postgres, producer="move")
        assert again.accepted == 0


def test_threads_share_a_buffer(tmp_path: Path) -> None:
    """Points of a buffer are committed with its numbers; the bad ones are handed out once."""
    rejected: list[object] = []
    labels = Labels("mixed")
    with (
        make_postgres(tmp_path) as engine,
        tsengine.WriteBuffer(
            engine, points_max=100, on_reject=lambda points, _: rejected.extend(points)
        ) as buffer,
    ):
        for moment in range(1, 251):
            buffer.write((NAMES[moment % 30], moment, float(moment)))
        with make_postgres(tmp_path) as other:
            buffer.write((labels, 1, 1.0))
            other.write([(labels, 1, "text")])
        buffer.flush()
        assert engine.count("cpu") == 250
        assert rejected == [DataPoint(labels, 1, 1.0)]


def test_the_time_of_the_last_write_stays(tmp_path: Path) -> None:
    """stats() tells when points were last committed, by whomever, after reopening too."""
    clock = [1_000]
    with make_postgres(tmp_path, clock_ns=lambda: clock[0]) as engine:
        assert engine.stats().last_write_ns is None
        engine.write([(NAMES[0], 1, 1.0)])
        clock[0] = 2_000
        with make_postgres(tmp_path, clock_ns=lambda: clock[0]) as other:
            other.write([(NAMES[0], 2, 1.0), (Labels("n"), 2, "x")])
            clock[0] = 3_000
            other.delete(NAMES[0])
        assert engine.stats().last_write_ns == 2_000
    with make_postgres(tmp_path) as engine:
        assert engine.stats().last_write_ns == 2_000
        assert engine.stats().points == 1


def test_tasks_share_a_store(tmp_path: Path) -> None:
    """Tasks write, scan and aggregate at once; each awaited point is stored."""

    async def main(engine: PostgresEngine) -> None:
        async with aio.Engine(engine) as store, aio.WriteBuffer(store) as buffer:

            async def work(number: int) -> None:
                for moment in range(1, 21):
                    await buffer.write((NAMES[number], moment, float(number)))

            async def read() -> int:
                return sum([len(batch) async for batch in store.scan()])

            await asyncio.gather(*(work(number) for number in range(20)), read(), store.count())
            assert await store.count() == 400
            assert await read() == 400
            [batch] = await store.aggregate(functions=["count"], group_by=[])
            assert batch.values.tolist() == [400]

    asyncio.run(main(make_postgres(tmp_path)))


@pytest.mark.parametrize("every", [None, "7ns", "100ns"])
def test_the_server_aggregates_as_memory_does(tmp_path: Path, every: str | None) -> None:
    """What is asked of the server, and what goes over a scan, is what memory answers."""
    with filled(make_postgres(tmp_path).open()) as engine, filled(MemoryEngine().open()) as memory:
        asked = [
            ("cpu", ["count", "min", "max", "range", "first", "last"]),
            ("requests", ["sum", "mean"]),
            ("event", ["count", "first", "last"]),
            ("cpu", ["sum", "median", "rate"]),
        ]
        for selector, functions in asked:
            for group_by in (None, [], ["zone"]):
                answers = [
                    one.aggregate(selector, 3, 250, functions=functions, every=every,
                                  group_by=group_by)
                    for one in (engine, memory)
                ]  # fmt: skip
                for found, wanted in zip(*answers, strict=True):
                    assert found.labels is wanted.labels
                    assert found.timestamps.tolist() == wanted.timestamps.tolist()
                    if found.values.dtype == object:
                        assert found.values.tolist() == wanted.values.tolist()
                    else:
                        np.testing.assert_allclose(found.values, wanted.values, rtol=1e-12)


def test_a_commit_takes_few_round_trips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known series cost a commit no round trip each: it takes three, of integers four."""
    waits: list[object] = []
    wait = Session.wait

    def counting(self: Session, *arguments: Any, **named: Any) -> Any:
        waits.append(arguments)
        return wait(self, *arguments, **named)

    others = [Labels("int", number=str(number)) for number in range(len(NAMES))]

    def batch(names: list[Labels], moment: int, values: Any) -> GroupedBatch:
        times = np.full(len(names), moment)
        return GroupedBatch(names, np.arange(len(names) + 1), times, values)

    with make_postgres(tmp_path) as engine:
        engine.write_batch(batch(NAMES, 1, np.ones(30)))
        engine.write_batch(batch(others, 1, np.arange(30)))
        monkeypatch.setattr(Session, "wait", counting)
        engine.write_batch(batch(NAMES, 2, np.ones(30)))
        assert len(waits) == 3
        engine.write_batch(batch(others, 2, np.arange(30)))
        assert len(waits) == 3 + 4
