"""Copying under asyncio: what `tsengine.copy` promises, and a loop that is never held up."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tsengine
from tests import aio_setting
from tests.aio_setting import Gate, Gated, fail, passes, run
from tests.test_pipeline import (
    AT_ONCE,
    NEVER_AGAIN,
    SERIES,
    Row,
    in_batches,
    points_of,
    rows_of,
    summed,
)
from tsengine import (
    CopyCancelledError,
    CopyError,
    CopyTimeoutError,
    DataPoint,
    DifferenceError,
    GroupedBatch,
    Progress,
    SeriesBatch,
    SourceChangedError,
    aio,
)
from tsengine.aio import copying
from tsengine.backends.memory import MemoryEngine
from tsengine.errors import (
    ConfigurationError,
    NotOpenError,
    RejectedPointsError,
    StorageError,
    UnknownOptionError,
    UnsavedPointsError,
)
from tsengine.model import ProducerMark, WriteReceipt
from tsengine.pipeline import parcels
from tsengine.retry import RetryPolicy
from tsengine.testing.faults import Fault, FaultyHandler, When

SOME = 'load{host=~"1|2"}'
BATCH = SeriesBatch(SERIES[0], np.array([1, 2, 3]), np.array([1.0, 2.0, 3.0]))


class Source:
    """An async source, which notes where it is iterated, and whether it is closed.

    Args:
        items: what it gives.
        then: what it awaits behind them.
    """

    def __init__(
        self, items: Any, then: Callable[[], Coroutine[Any, Any, object]] | None = None
    ) -> None:
        self._items = items
        self._then = then
        self.loop: asyncio.AbstractEventLoop | None = None
        self.given = 0
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[Any]:
        self.loop = asyncio.get_running_loop()
        try:
            for item in self._items:
                self.given += 1
                yield item
            if self._then is not None:
                await self._then()
        finally:
            await asyncio.sleep(0)  # closing may take its time
            self.is_closed = True


def rows_in(item: Any) -> list[Row]:
    """Give the points of what a source yields, in their order."""
    if isinstance(item, SeriesBatch):
        return [(*point,) for point in item.points()]
    if isinstance(item, GroupedBatch):
        return [row for group in item.groups() for row in rows_in(group)]
    return [item]


async def forever() -> None:
    """Wait for what never comes."""
    await asyncio.Event().wait()


def sums() -> MemoryEngine:
    """Give a store in which a point stored twice shows."""
    return MemoryEngine("", duplicate_policy="sum")


# ------------------------------------------------------------------------- what lands


def test_a_source_of_the_callers_loop_is_copied() -> None:
    """A source waits for a queue that tasks of the caller's loop fill while it is copied."""
    points = points_of(300)

    async def main() -> None:
        queue: asyncio.Queue[Any] = asyncio.Queue(4)

        async def fill() -> None:
            for item in in_batches(points, random.Random(1)):
                await queue.put(item)
                await asyncio.sleep(0)
            await queue.put(None)

        async def source() -> AsyncIterator[Any]:
            while (item := await queue.get()) is not None:
                yield item

        with sums() as target:
            report, _ = await asyncio.gather(
                aio.copy(source(), target, points_max=64, producer="queue"), fill()
            )
            assert report.accepted == 300
            assert rows_of(target) == summed(points)

    run(main)


@pytest.mark.parametrize("is_source_aio", [False, True])
@pytest.mark.parametrize("is_target_aio", [False, True])
def test_engines_of_either_face_are_copied_and_verified(
    is_source_aio: bool, is_target_aio: bool
) -> None:
    """Source and target may be awaited engines or not; a copy holds up no other call of them."""

    async def main() -> None:
        here, there = Gated(duplicate_policy="sum"), Gated(duplicate_policy="sum")
        async with aio.Engine(here) as source, aio.Engine(there) as target:
            await source.write(points_of(100))
            given, into = (source if is_source_aio else here), (target if is_target_aio else there)
            there.gates["commit"] = gate = Gate()
            copy = asyncio.create_task(aio.copy(given, into, SOME, 20, 90))
            await gate.reached.wait()
            assert await target.count() == 0
            gate.open()
            assert (await copy).accepted == await source.count(SOME, 20, 90) > 0
            report = await aio.verify(given, into, SOME, 20, 90)
            assert report.points == await target.count()
            with pytest.raises(DifferenceError):
                await aio.verify(given, into)

    run(main)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 40), kind=st.integers(0, 2))
def test_any_source_lands_once_and_in_order(seed: int, size: int, kind: int) -> None:
    """Points and batches are stored as by the copy that is not awaited."""

    def items() -> Iterator[Any]:
        return in_batches(points_of(120, seed), random.Random(seed))

    async def main() -> None:
        with MemoryEngine() as target, MemoryEngine() as plain:
            tsengine.copy(items(), plain, points_max=size)
            source: Any = [items(), list(items()), Source(items())][kind]
            assert (await aio.copy(source, target, points_max=size)).accepted == 120
            assert rows_of(target) == rows_of(plain)

    run(main)


def test_the_scan_of_an_awaited_engine_is_a_source() -> None:
    """What yields batches in the loop, and filters them, is copied."""

    async def main() -> None:
        async with aio.open("memory://") as source, aio.open("memory://") as target:
            await source.write(points_of(200))
            async with aclosing(source.scan()) as scan:
                kept = (batch async for batch in scan if batch.labels != SERIES[0])
                await aio.copy(kept, target)
            assert await target.count() == await source.count('load{host!="0"}')

    run(main)


def test_an_array_that_is_used_again_is_copied_in_time() -> None:
    """An async source may fill the same arrays anew for each batch that it yields."""
    timestamps, values = np.zeros(2, np.int64), np.zeros(2)

    def batches() -> Iterator[SeriesBatch]:
        for number in range(1, 50):
            timestamps[:] = 2 * number, 2 * number + 1
            values[:] = number
            yield SeriesBatch(SERIES[0], timestamps, values)

    async def main() -> None:
        with MemoryEngine() as target:
            await aio.copy(Source(batches()), target)
            assert [value for *_, value in rows_of(target)] == [
                float(number // 2) for number in range(2, 100)
            ]

    run(main)


def test_the_source_is_read_only_a_little_ahead() -> None:
    """However fast an async source is, no more than three commits of it are held."""
    ahead: list[int] = []
    source = Source(iter(points_of(1_000)))

    class Watching(MemoryEngine):
        written = 0

        def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
            ahead.append(source.given - self.written)
            receipt = super().flush_buffer(mark)
            self.written += receipt.submitted
            return receipt

    async def main() -> None:
        with Watching() as target:
            await aio.copy(source, target, points_max=20)

    run(main)
    assert len(ahead) == 50
    assert max(ahead) <= 3 * 20 + 1


def test_a_slow_source_is_committed_as_it_comes() -> None:
    """What has arrived lands after `age_max`, though it is less than a commit takes."""

    async def main() -> None:
        landed = asyncio.Event()
        loop = asyncio.get_running_loop()

        class Watching(MemoryEngine):
            def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
                receipt = super().flush_buffer(mark)
                loop.call_soon_threadsafe(landed.set)
                return receipt

        async def slow() -> AsyncIterator[Any]:
            for item in ((SERIES[0], 1, 1.0), BATCH, (SERIES[1], 3, 1.0)):
                yield item
                await landed.wait()
                landed.clear()

        with Watching() as target:
            assert (await aio.copy(slow(), target, age_max=0.01)).accepted == 5

    run(main)


# ------------------------------------------------------------------------- the loop


class Table:
    """A table whose columns are not to be had at once."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        import pyarrow

        self._gate.hold_up()
        columns = {"timestamp": [1, 2, 3], "value": [1.0, 2.0, 3.0], "__name__": ["load"] * 3}
        return pyarrow.table(columns).__arrow_c_stream__(requested_schema)


def stalled_items(gate: Gate) -> Iterator[Any]:
    """Give points, after a while."""
    gate.hold_up()
    yield from BATCH.points()


def stalled_engine(gate: Gate) -> Any:
    """Give an engine whose scan takes a while to begin."""
    engine = Gated().open()
    engine.write(list(BATCH.points()))
    engine.gates["scan"] = gate
    return engine


def stalled_room(gate: Gate) -> Any:
    """Give more points than there is room for while the first commit takes its time."""
    return Source([*BATCH.points()] * 300)


def stalled_stats(gate: Gate) -> Any:
    """Give an engine that takes a while to count its points."""

    class Counting(Gated):
        def _stats(self) -> Any:
            gate.hold_up()
            return super()._stats()

    engine = Counting().open()
    engine.write(list(BATCH.points()))
    return engine


def stalled_columns(gate: Gate) -> Any:
    """Give more columns than there is room for while the first commit takes its time."""
    return Source([BATCH] * 300)


def stalled_table(gate: Gate) -> Any:
    """Give a table whose columns take a while."""
    return Source([Table(gate)])


STALLED_BY_THE_TARGET = [stalled_room, stalled_columns]


@pytest.mark.parametrize(
    "source_of",
    [stalled_items, stalled_engine, stalled_stats, stalled_table, *STALLED_BY_THE_TARGET],
)
def test_the_loop_is_never_blocked(source_of: Callable[[Gate], Any]) -> None:
    """Whatever stalls in a copy is let go on by a heartbeat in the same loop."""

    async def main() -> None:
        with Gated() as target:
            gate = Gate()
            source = source_of(gate)
            if source_of in STALLED_BY_THE_TARGET:
                target.gates["commit"] = gate
            copy = aio.copy(source, target, points_max=2, progress=lambda _: None)
            await asyncio.gather(copy, gate.heartbeat())
            assert target.count() == 3
            if isinstance(source, Gated):
                source.close()

    run(main)


@pytest.mark.parametrize("size", [100, 10_000])
def test_a_source_that_never_waits_leaves_others_their_turn(size: int) -> None:
    """Of an async source that has all at hand so many points are taken at once, not more."""

    async def main() -> None:
        beats = 0
        longest: list[int] = []

        async def heartbeat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        async def source() -> AsyncIterator[Row]:
            seen = taken = 0
            for point in points_of(5_000):
                taken = taken + 1 if seen == beats else 1
                seen = beats
                longest.append(taken)
                yield point

        beating = asyncio.create_task(heartbeat())
        with sums() as target:
            await aio.copy(source(), target, points_max=size)
            assert target.stats().points == len(summed(points_of(5_000)))
        beating.cancel()
        assert max(longest) <= 256

    run(main)


def test_columns_are_joined_outside_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches between points become commits in a thread, however they are mixed."""
    gathered: list[threading.Thread] = []
    gather = parcels.gather

    def watched(items: Any) -> Any:
        gathered.append(threading.current_thread())
        return gather(items)

    monkeypatch.setattr("tsengine.pipeline.feed.gather", watched)

    async def main() -> None:
        with sums() as target:
            await aio.copy(Source(in_batches(points_of(500), random.Random(3))), target)

    run(main)
    assert len(gathered) > 10
    assert threading.main_thread() not in gathered


def test_callbacks_are_called_in_the_loop_and_waited_for() -> None:
    """`progress` and `on_reject` may touch what is the loop's; none is called after the end."""
    place: contextvars.ContextVar[str] = contextvars.ContextVar("place", default="nowhere")
    bad = [(SERIES[0], 0, float(number)) for number in range(5)]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        place.set("here")
        told: list[Progress] = []
        rejected: list[DataPoint] = []

        def progress(one: Progress) -> None:
            assert asyncio.get_running_loop() is loop
            assert place.get() == "here"
            told.append(one)

        def reject(points: list[DataPoint], error: Exception) -> None:
            assert asyncio.get_running_loop() is loop
            rejected.extend(points)

        def items() -> Iterator[Any]:
            assert place.get() == "here"
            yield from [*points_of(50), *bad]

        for source in (items(), Source(items())):
            told.clear()
            rejected.clear()
            with sums() as target:
                report = await aio.copy(
                    source, target, points_max=10, progress=progress, progress_interval=0,
                    on_reject=reject, points_total=55,
                )  # fmt: skip
                assert [one.points for one in told] == [10, 20, 30, 40, 50, 55, 55]
                assert rejected == bad
                assert (report.accepted, report.rejected) == (50, 5)
                assert told[-1].points_total == 55

    run(main)


# ------------------------------------------------------------------------- errors


def test_the_options_are_those_of_copy() -> None:
    """`CopyOptions` has the keyword arguments of `tsengine.copy`, with their types, and no more."""
    parameters = inspect.signature(tsengine.copy).parameters.values()
    theirs = {one.name: one.annotation for one in parameters if one.kind is one.KEYWORD_ONLY}
    ours = aio.CopyOptions.__annotations__
    assert {name: given.__forward_arg__ for name, given in ours.items()} == theirs


def test_what_cannot_be_copied_is_refused() -> None:
    """Arguments raise what they raise without asyncio, and their source is not begun."""

    async def main() -> None:
        async with aio.Engine(sums()) as target:
            source = Source(points_of(10))
            wrong: Any = "memory://"
            with pytest.raises(UnknownOptionError, match="opened first"):
                await aio.copy(wrong, target)
            with pytest.raises(UnknownOptionError, match="select from an engine"):
                await aio.copy(source, target, "load")
            with pytest.raises(UnknownOptionError, match="points_max"):
                await aio.copy(source, target, points_max=0)
            with pytest.raises(UnknownOptionError, match="timeout"):
                await aio.copy(source, target, timeout=-1)
            with pytest.raises(ConfigurationError, match="one store"):
                await aio.copy(target, target.sync)
            with pytest.raises(NotOpenError):
                await aio.copy(aio.Engine(sums()), target)
            assert source.loop is None

    run(main)


def test_a_source_that_fails_leaves_what_came_before() -> None:
    """All points before the error are stored; the error says so, and the source is closed."""
    points = points_of(100)

    async def fail() -> None:
        raise OSError("gone")

    async def main() -> None:
        for items in (points[:83], [*in_batches(points[:83], random.Random(2))]):
            source = Source(items, fail)
            with sums() as target:
                with pytest.raises(CopyError, match="gone") as caught:
                    await aio.copy(source, target, points_max=10)
                assert caught.value.side == "source"
                assert isinstance(caught.value.__cause__, OSError)
                assert caught.value.report.accepted == 83
                assert rows_of(target) == summed(points[:83])
                assert source.is_closed

    run(main)


def endless() -> Iterator[Row]:
    """Give points without end."""
    timestamp = 0
    while True:
        timestamp += 1
        yield SERIES[0], timestamp, 1.0


def test_a_target_that_fails_stops_the_source() -> None:
    """Whether the source is busy, waits for room or for something else, it is closed."""

    async def main() -> None:
        for items, then in [(endless(), None), (points_of(40), forever), ([BATCH] * 99, forever)]:
            source = Source(items, then)
            with sums() as engine:
                target = FaultyHandler(engine, Fault("flush_buffer", at=4, times=100))
                with pytest.raises(CopyError, match="on demand") as caught:
                    await aio.copy(source, target, points_max=10, retry=NEVER_AGAIN)
                assert caught.value.side == "target"
                assert caught.value.report.accepted == 30
                assert source.is_closed

    run(main)


def test_a_callback_that_raises_stops_the_copy() -> None:
    """Its error is the cause; without `on_reject` bad points are in the error."""

    def fail(*_: object) -> None:
        raise RuntimeError("no terminal")

    async def main() -> None:
        points = [*points_of(30), (SERIES[0], 0, 1.0)]
        for options in ({"progress": fail, "progress_interval": 0.0}, {"on_reject": fail}):
            source = Source(points, forever)
            with sums() as target, pytest.raises(CopyError, match="no terminal") as caught:
                await aio.copy(source, target, points_max=10, age_max=0.01, **options)
            assert caught.value.side == "caller"
            assert isinstance(caught.value.__cause__, RuntimeError)
            assert source.is_closed
        with sums() as target, pytest.raises(CopyError) as caught:
            await aio.copy(points, target)
        assert isinstance(caught.value.__cause__, RejectedPointsError)
        assert caught.value.report.accepted == 30

    run(main)


# ------------------------------------------------------------------------- cancellation


def test_a_cancelled_copy_waits_for_its_commit() -> None:
    """The commit under way ends before the cancellation is raised, and nothing goes on behind."""

    async def main() -> None:
        batches = [*in_batches(points_of(100), random.Random(5))]
        for items, is_async in [(points_of(100), 0), (points_of(100), 1), (batches, 1)]:
            points = [row for item in items for row in rows_in(item)]
            source: Any = Source(items) if is_async else items
            with Gated(duplicate_policy="sum") as target:
                target.gates["commit"] = gate = Gate()
                copy = asyncio.create_task(aio.copy(source, target, producer="p", points_max=10))
                await gate.reached.wait()
                try:
                    for _ in range(3):  # however impatient its caller is
                        copy.cancel()
                        await passes()
                    assert not copy.done()
                finally:
                    gate.open()
                with pytest.raises(asyncio.CancelledError) as caught:
                    await copy
                cause = caught.value.__cause__
                assert isinstance(cause, CopyCancelledError)
                landed = target.committed
                assert 0 < cause.report.accepted == landed <= 10
                assert rows_of(target) == summed(points[:landed])
                assert not is_async or source.is_closed
                again = await aio.copy(items, target, producer="p", points_max=7)
                assert again.skipped == landed
                assert rows_of(target) == summed(points)

    run(main)


def test_a_source_that_is_closing_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation that reaches the loop while the source is closed does not interrupt that."""
    late: list[Callable[[], object]] = []
    closed: list[bool] = []

    def fails(progress: object) -> None:
        raise ZeroDivisionError

    async def endless() -> AsyncIterator[Row]:
        try:
            while True:
                yield SERIES[0], 1, 1.0
        finally:
            for cancel in late:
                cancel()
            await passes()
            closed.append(True)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        schedule = loop.call_soon_threadsafe

        def hold_back(callback: Callable[..., object], *given: Any, **context: Any) -> Any:
            if "cancel" in getattr(callback, "__name__", ""):
                late.append(callback)
                return None
            return schedule(callback, *given, **context)

        monkeypatch.setattr(loop, "call_soon_threadsafe", hold_back)
        with sums() as target:
            copy = aio.copy(endless(), target, points_max=1, progress_interval=0, progress=fails)
            assert isinstance(await fail(copy), CopyError)
        assert closed

    run(main)


def test_a_source_that_waits_is_cancelled_and_closed() -> None:
    """One that would never give anything more does not keep a cancelled copy."""

    async def main() -> None:
        with sums() as target:
            reached = asyncio.Event()

            async def wait() -> None:
                reached.set()
                await forever()

            source = Source([(SERIES[0], 1, 1.0), BATCH], wait)
            copy = asyncio.create_task(aio.copy(source, target))
            await reached.wait()
            copy.cancel()
            with pytest.raises(asyncio.CancelledError):
                await copy
            assert source.is_closed
            source = Source([], forever)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await aio.copy(source, target)

    run(main)


def test_a_retry_pause_is_ended_by_a_cancellation() -> None:
    """What is waited for is a commit, not the pause before the next attempt at it."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reached = asyncio.Event()

        def fail() -> BaseException:
            loop.call_soon_threadsafe(reached.set)
            return StorageError("busy")

        patient = RetryPolicy(backoff_min=1e6, backoff_max=1e6, deadline=None)
        for cancels in (False, True):
            cancel = threading.Event()
            reached.clear()
            with sums() as engine:
                target = FaultyHandler(engine, Fault("flush_buffer", times=9, error=fail))
                source = Source(points_of(30), forever)
                copy = asyncio.create_task(
                    aio.copy(source, target, points_max=10, retry=patient, cancel=cancel)
                )
                await reached.wait()
                if cancels:
                    cancel.set()
                    with pytest.raises(CopyCancelledError):
                        await copy
                else:
                    copy.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await copy
                    assert not cancel.is_set()  # it is the caller's
                assert source.is_closed

    run(main)


def test_a_cancelled_verify_ends_before_it_raises() -> None:
    """It stops at the next batch, in the store that it reads; `cancel` raises for its caller."""

    async def main() -> None:
        with Gated() as here, MemoryEngine() as there:
            here.write(points_of(100))
            there.write(points_of(100))
            here.gates["scan"] = gate = Gate()
            verify = asyncio.create_task(aio.verify(here, there))
            await gate.reached.wait()
            verify.cancel()
            await passes()
            assert not verify.done()
            gate.open()
            with pytest.raises(asyncio.CancelledError):
                await verify
            cancel = threading.Event()
            cancel.set()
            with pytest.raises(tsengine.CancelledError):
                await aio.verify(here, there, cancel=cancel)

    run(main)


def test_a_timeout_is_for_the_whole_copy() -> None:
    """`timeout` ends a copy whose source gives nothing."""

    async def main() -> None:
        source = Source([], forever)
        with sums() as target, pytest.raises(CopyTimeoutError):
            await aio.copy(source, target, timeout=0.01)
        assert source.is_closed or source.loop is None  # its time may end before the source begins

    run(main)


def test_a_loop_that_ends_ends_its_copies() -> None:
    """`asyncio.run` returns, with copies under way, when they are cancelled and closed."""
    points = points_of(50)
    source = Source(points, forever)
    tasks: list[asyncio.Task[Any]] = []
    with sums() as target:

        async def main() -> None:
            landed = asyncio.Event()
            copy = aio.copy(
                source, target, producer="p", points_max=10, progress_interval=0,
                progress=lambda _: landed.set(),
            )  # fmt: skip
            tasks.append(asyncio.create_task(copy))
            await landed.wait()

        run(main)
        assert tasks[0].cancelled()
        assert source.is_closed
        assert tsengine.copy(points, target, producer="p").skipped >= 10
        assert rows_of(target) == summed(points)


def test_a_copy_of_the_loop_is_resumed_by_one_without() -> None:
    """A name means the same to both; a source that changed is refused by both."""

    async def main() -> None:
        points = points_of(60)
        with sums() as target:
            await aio.copy(Source(points[:40]), target, producer="p")
            assert tsengine.copy(points[:50], target, producer="p").skipped == 40
            assert (await aio.copy(Source(points), target, producer="p")).skipped == 50
            with pytest.raises(SourceChangedError):
                await aio.copy(Source(points_of(70, 2)), target, producer="p")
            assert rows_of(target) == summed(points)

    run(main)


async def copy_until_done(points: Sequence[Row], engine: Gated, chance: random.Random) -> int:
    """Copy again and again, cancelled and with faults, until a copy comes to its end.

    Gives how many were cancelled.
    """
    cancelled = runs = 0
    sides: set[str] = set()
    order = chance.randrange(2**30)  # the source is the same each time
    while True:
        runs += 1
        items = in_batches(points, random.Random(order))
        source = Source(items, forever if chance.randrange(2) and runs < 30 else None)
        given: Any = source if chance.randrange(4) else items
        faults = [
            Fault("flush_buffer", at=chance.randrange(1, 9), when=chance.choice([*When]))
            for _ in range(chance.randrange(3))
        ]
        target = FaultyHandler(engine, *faults) if runs < 30 else engine
        copy = asyncio.create_task(
            aio.copy(
                given, target, producer="again", points_max=chance.randrange(1, 40),
                age_max=chance.choice([None, 0.0]), retry=chance.choice([AT_ONCE, NEVER_AGAIN]),
            )
        )  # fmt: skip
        if runs < 30:
            if chance.randrange(2):
                engine.gates["commit"] = gate = Gate()
                waiting = asyncio.create_task(gate.reached.wait())
                # Perhaps there is nothing left to commit.
                done = asyncio.FIRST_COMPLETED
                await asyncio.wait([copy, waiting], timeout=0.1, return_when=done)
                waiting.cancel()
                asyncio.get_running_loop().call_later(0, gate.open)
            await passes(chance.randrange(60))
            copy.cancel()
        before = engine.committed
        try:
            await copy
        except CopyError as error:
            sides.add(error.side)
        except asyncio.CancelledError:
            cancelled += 1
        else:
            assert sides <= {"target"}
            return cancelled
        finally:
            engine.gates.clear()
            was = engine.committed
            await passes()
            assert engine.committed == was >= before  # nothing goes on behind
            assert source.is_closed or source.loop is None
            assert engine.staged_points == 0


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_cancelled_anywhere_and_resumed_each_point_is_stored_once(seed: int) -> None:
    """However often a named copy is cancelled, and fails, every point counts once in the end."""
    points = points_of(120, seed)

    async def main() -> None:
        with Gated(duplicate_policy="sum") as engine:
            await copy_until_done(points, engine, random.Random(seed))
            assert rows_of(engine) == summed(points)

    run(main)


# ------------------------------------------------------------------------- planted bugs


def test_a_source_in_another_loop_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the queue fails when the source is iterated in a loop of the reader."""
    monkeypatch.setattr(copying, "InLoop", lambda source, loop: source)
    monkeypatch.setattr(aio_setting, "LONGEST_RUN", 5.0)
    with pytest.raises((CopyError, RuntimeError, TimeoutError)):
        test_a_source_of_the_callers_loop_is_copied()


def test_a_commit_left_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of cancellation fails when the commit under way is not waited for."""

    async def hurried(future: asyncio.Future[Any], give_up: Callable[[], bool]) -> Any:
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            give_up()
            raise

    monkeypatch.setattr(copying, "finish", hurried)
    with pytest.raises((AssertionError, UnsavedPointsError)):
        test_a_cancelled_copy_waits_for_its_commit()


def test_a_loop_that_waits_for_room_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the heartbeat fails when room is waited for in the loop."""

    def at_once(loop: Any, executor: Any, call: Callable[..., None], *given: object) -> Any:
        call(*given)
        return asyncio.sleep(0)

    monkeypatch.setattr(Gate, "LONGEST", 0.05)
    monkeypatch.setattr(asyncio.BaseEventLoop, "run_in_executor", at_once)
    with pytest.raises((AssertionError, CopyError), match="was blocked"):
        test_the_loop_is_never_blocked(stalled_room)
