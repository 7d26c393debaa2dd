"""Every point is accounted for whatever fails; bugs that are planted are found."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import aio_setting, test_aio_buffer, test_aio_loop
from tests.aio_setting import (
    SERIES,
    Gate,
    fail,
    passes,
    run,
)
from tsengine import aio
from tsengine.aio import taking
from tsengine.aio.delivery import Mailbox
from tsengine.backends.memory import MemoryEngine
from tsengine.buffering.judging import Judge
from tsengine.errors import (
    BufferFullError,
    InvalidDataError,
    StorageError,
)
from tsengine.model import (
    Labels,
    PointLike,
    WriteReceipt,
)
from tsengine.retry import RetryPolicy
from tsengine.testing.faults import Fault, FaultyHandler, When

# ------------------------------------------------------------------------- at random


FAULTS = st.builds(
    Fault,
    method=st.sampled_from(["flush_buffer", "write_batch_to_buffer", "validate_point"]),
    at=st.integers(1, 8),
    times=st.integers(1, 3),
    when=st.sampled_from(When),
    error=st.sampled_from(
        [
            lambda: StorageError("a fault"),
            lambda: RuntimeError("a fault"),
        ]
    ),
)
WRITES = st.lists(
    st.tuples(
        st.sampled_from(SERIES),
        st.sampled_from(["write", "many", "series", "submit", "bad", "odd"]),
        st.integers(0, 3),  # passes of the loop before it
        st.sampled_from([None, None, None, 0, 1, 5]),  # passes until it is cancelled
    ),
    max_size=30,
)


@settings(max_examples=60)
@given(
    faults=st.lists(FAULTS, max_size=3),
    writes=WRITES,
    points_max=st.sampled_from([1, 3, 100]),
    on_full=st.sampled_from(["block", "raise"]),
)
def test_every_point_is_accounted_for(
    faults: list[Fault], writes: list[Any], points_max: int, on_full: Any
) -> None:
    """With any faults and cancellations, what was taken is stored exactly once."""
    run(lambda: account(faults, writes, points_max, on_full))


async def account(faults: list[Fault], writes: list[Any], points_max: int, on_full: Any) -> None:
    """Write at random; accepted, rejected, raised and cancelled are all that went in."""
    with MemoryEngine("", duplicate_policy="sum") as engine:
        buffer = aio.WriteBuffer(
            FaultyHandler(engine, *map(copy.copy, faults)),
            points_max=points_max,
            pending_max=2 * points_max,
            on_full=on_full,
            retry=RetryPolicy(max_retries=1, backoff_min=0.0),
            age_max=0.001,
        )
        told = {"accepted": 0, "bad": 0, "raised": 0, "cancelled": 0}

        async def one(labels: Labels, how: str, after: int, cancelled_after: int | None) -> None:
            size = 3 if how in ("many", "series") else 1
            await passes(after)

            async def write() -> WriteReceipt:
                if how == "many":
                    return await buffer.write_many([(labels, 1, 1.0)] * 3)
                if how == "series":
                    return await buffer.write_series(labels, [1, 1, 2], np.ones(3))
                if how == "submit":
                    return await (await buffer.submit((labels, 2, 1.0)))
                value: Any = {"bad": "text", "odd": np.float32(1.0)}.get(how, 1.0)
                return await buffer.write((labels, 1, value))

            task = asyncio.create_task(write())
            if cancelled_after is not None:
                await passes(cancelled_after)
                task.cancel()
            try:
                receipt = await task
                assert receipt == WriteReceipt(size, size)
                told["accepted"] += size
            except asyncio.CancelledError:
                told["cancelled"] += size
            except InvalidDataError:
                assert how == "bad"
                told["bad"] += size
            except (BufferFullError, StorageError, RuntimeError):
                told["raised"] += size

        await asyncio.gather(*(one(*write) for write in writes))
        for _ in range(20):
            if not isinstance(await fail(buffer.flush()), (StorageError, RuntimeError)):
                break
        await buffer.close()
        assert buffer.pending == 0
        stored = sum(float(batch.values.sum()) for batch in engine.query())
        given = sum(3 if how in ("many", "series") else 1 for _, how, _, _ in writes)
        assert sum(told.values()) == given
        assert stored == buffer.committed.accepted == buffer.committed.submitted
        assert told["accepted"] <= stored <= given - told["bad"]


# ------------------------------------------------------------------------- planted bugs


def test_a_point_that_overtakes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of order fails when points that were judged pass others of their series."""
    have_asked = taking.Taker._have_asked

    def out_of_order(self: taking.Taker, turns: list[taking.Turn]) -> None:
        have_asked(self, turns[::-1])

    monkeypatch.setattr(taking.Taker, "_have_asked", out_of_order)
    with pytest.raises(AssertionError):
        test_aio_buffer.test_points_of_a_series_keep_their_order()


def test_a_loop_that_is_blocked_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the heartbeat fails when the handler is asked in the loop."""
    monkeypatch.setattr(Gate, "LONGEST", 0.05)

    def ask(judge: Judge, point: PointLike) -> tuple[Labels, int, object]:
        return judge._handler.validate_point(point)

    monkeypatch.setattr(Judge, "judge_unasked", ask)
    with pytest.raises(AssertionError, match="was blocked"):
        test_aio_loop.test_the_loop_is_never_blocked("judge", test_aio_loop.stalled_judging)


def test_a_receipt_for_who_has_gone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of cancelled waiters fails when a commit tells those as well."""

    def deliver(self: Mailbox) -> None:
        self._is_wanted = False
        while self._told:
            future, outcome = self._told.popleft()
            assert isinstance(future, asyncio.Future)
            assert isinstance(outcome, WriteReceipt)
            if future.cancelled():
                self._told.clear()  # where setting it would raise, and the rest not be told
                return
            future.set_result(outcome)

    monkeypatch.setattr(Mailbox, "_deliver", deliver)
    monkeypatch.setattr(aio_setting, "LONGEST_RUN", 0.5)
    with pytest.raises(TimeoutError):
        test_aio_buffer.test_a_cancelled_waiter_harms_no_other()
