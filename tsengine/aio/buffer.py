"""WriteBuffer under asyncio: a write is awaited until its point is durable.

The points go into a `tsengine.WriteBuffer`, whose own thread commits them. The loop only
appends: what might wait is done elsewhere, and a point that cannot be taken at once, as the
handler must be asked about it or there is no room, waits its turn in a queue of the loop's.
"""

from __future__ import annotations

import threading
from asyncio import get_running_loop
from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, Self, TypedDict, Unpack

import numpy as np

from tsengine import buffer as core
from tsengine.aio.delivery import Receipt
from tsengine.aio.engine import Engine
from tsengine.aio.taking import Taker
from tsengine.aio.waiting_thread import WaitingThread
from tsengine.buffering.arrivals import points_of
from tsengine.engine import WriteBufferHandler
from tsengine.errors import LifecycleError, UnsavedPointsError
from tsengine.metrics import BufferMetrics
from tsengine.model import DataPoint, Labels, PointLike, WriteReceipt
from tsengine.retry import RetryPolicy


class BufferOptions(TypedDict, total=False):
    """The options of a `tsengine.WriteBuffer`.

    But for `background`, which it always is, and `on_reject`: each point has its writer to tell.
    """

    points_max: int
    age_max: float | None
    pending_max: int | None
    on_full: Literal["block", "raise"]
    full_timeout: float | None
    producer: str | None
    retry: RetryPolicy | None
    clock: Callable[[], float]


class _Core(core.WriteBuffer):
    """The buffer behind, which tells when it keeps an error for those who wait for room."""

    __slots__ = ("when_kept",)

    when_kept: Callable[[], None]

    def __init__(
        self, handler: WriteBufferHandler, *, background: bool, **options: Unpack[BufferOptions]
    ) -> None:
        self.when_kept = lambda: None  # before its thread begins
        super().__init__(handler, background=background, **options)

    def _owe(self, error: BaseException) -> None:
        super()._owe(error)
        self.when_kept()


class WriteBuffer:
    """Gathers points of many tasks and commits them to a handler in batches.

    A write returns when its point is durable. A commit begins when none is under way, at the
    end of the pass of the loop in which a point was taken; points of all tasks that come
    meanwhile share the next one. Points of one series are committed in the order in which
    tasks of the loop began to write them.

    A task that is cancelled harms no other. Its point is not taken where it still waited for
    its turn; once it was taken it is stored all the same.

    Points are taken, judged and committed as by a `tsengine.WriteBuffer`, and with its options;
    what it says of a write holds of `submit`, which returns when the point is taken. At
    `pending_max` points a write awaits room, in the order of arrival; `on_full` and
    `full_timeout` mean what they mean there.

    Args:
        handler: what to commit to: an engine, open; one of `tsengine.aio` as well.
        options: as of `tsengine.WriteBuffer`.

    Raises:
        Exception: as `tsengine.WriteBuffer`.

    Thread-safety: for the tasks of one event loop, that of the first call; from another one
    raises LifecycleError, unless the first was closed. What has to write from threads as well
    has a `tsengine.WriteBuffer` of its own on the same engine.
    """

    def __init__(
        self, handler: WriteBufferHandler | Engine, **options: Unpack[BufferOptions]
    ) -> None:
        core = handler.sync if isinstance(handler, Engine) else handler
        self._core = _Core(core, background=True, **options)
        self._judge = self._core._judge
        self._thread = WaitingThread("tsengine-aio-buffer", "buffer")
        self._taker: Taker | None = None
        self._returned: list[DataPoint] = []  # taken back for a task that was cancelled

    # Writing.

    async def write(self, point: PointLike) -> WriteReceipt:
        """Store one point, and return when it is durable.

        Returns:
            The receipt of this point: refused by cap or retention it has `refused=1`.

        Raises:
            InvalidDataError: the point is not valid, or its commit found that it cannot be
                stored; no other point is harmed.
            BufferFullError: there is no room, or was none within `full_timeout`.
            NotOpenError: the buffer is closed, or was while this waited for its turn.
            UnsavedPointsError: the buffer was closed and could not store it, or it was taken
                back by `take_pending`.
            Exception: what its commit failed with. The point is still pending in the buffer,
                which will try again: to write it once more may store it twice. Or, while the
                buffer is full, what keeps it full: such a point was not taken. `submit`, which
                raises the second alone, tells them apart.
        """
        taker = self._taker
        if taker is None or taker.loop is not get_running_loop():
            taker = self._bound()
        receipt = taker.take(point)
        if receipt is None:
            receipt = await taker.take_in_turn(point)
        return await receipt

    async def submit(self, point: PointLike) -> Receipt:
        """Take one point, and return when it is taken.

        Returns:
            A future of what `write` would return or raise from here on. To cancel it leaves
            the point where it is.

        Raises:
            Exception: as `write`; the point is not taken.
        """
        taker = self._taker
        if taker is None or taker.loop is not get_running_loop():
            taker = self._bound()
        receipt = taker.take(point)
        if receipt is None:
            receipt = await taker.take_in_turn(point)
        return receipt

    async def write_many(self, points: Iterable[PointLike]) -> WriteReceipt:
        """Store points, and return when all are durable; those of an invalid call are not taken.

        They are judged in the thread of the buffer, and taken all in one step.

        Returns:
            The receipt of these points; its indices are those of the call.

        Raises:
            InvalidDataError: of the first offender's type; `indices` names all of them.
            RejectedPointsError: the commit found points that cannot be stored; it has them,
                and all others are stored.
            Exception: as `write`, of the first that failed; none of the points is lost.
        """
        given = list(points)

        def judge() -> list[DataPoint]:
            return points_of(self._judge.judge_many(given, self._core._points_max))

        return await (await self._bound().take_call(judge, given))

    async def write_series(
        self, labels: Labels, timestamps: object, values: object
    ) -> WriteReceipt:
        """Store columns of one series, and return when all are durable.

        Each point costs what one of `write_many` does: `Engine.write_series` takes large
        columns faster, in a commit of their own.

        Args:
            labels: which series.
            timestamps: [n], as for `Engine.write_series`; copied.
            values: [n], as for `Engine.write_series`; copied.

        Raises:
            Exception: as `write_many`.
        """
        times, column = _copy(timestamps), _copy(values)

        def judge() -> list[DataPoint]:
            columns = self._judge.judge_series(labels, times, column)
            return points_of([labels, len(columns), columns])

        return await (await self._bound().take_call(judge, None))

    # Committing.

    async def flush(self) -> WriteReceipt:
        """Commit all that is pending; points that wait for their turn are not.

        Cancelled, it no longer waits; the commits go on.

        Returns:
            The receipt of these commits, as `tsengine.WriteBuffer.flush`.

        Raises:
            Exception: as `tsengine.WriteBuffer.flush`.
        """
        self._bound()
        cancel = threading.Event()
        try:
            return await self._thread.read(partial(self._core.flush, cancel=cancel))
        finally:
            cancel.set()

    async def take_pending(self) -> list[DataPoint]:
        """Give the pending points back in order of arrival; the buffer has them no more.

        Their writers get UnsavedPointsError. Also for a closed buffer. Points that were taken
        for a task that was cancelled are given to the next.

        Raises:
            ForkedError: the points are the parent's.
        """
        taker = self._bound()
        cancel = threading.Event()

        def take() -> None:
            self._returned += self._core.take_pending(cancel=cancel)

        if self._thread.is_ending:
            await self._thread.end(lambda: None)  # once the close has ended
            thread = WaitingThread("tsengine-aio-taking", "buffer")
            await thread.end(take)
        else:
            await self._thread.change(take, cancel)
        returned, self._returned = self._returned, []
        taker.go_on()
        return returned

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  # the core's
        """Commit all that is pending and take no more, for good; a second call does nothing.

        Whoever waits for a turn gets NotOpenError; every other wait ends. A cancellation is
        raised once the buffer is closed, so that no point is lost by it.

        Args:
            timeout: seconds to wait for the commits; None for as long as it takes.

        Raises:
            UnsavedPointsError: not all was stored, and its cause says why. The buffer is closed
                nevertheless; `take_pending()` gives the points back.
        """
        if not self._thread.is_own_process:
            return
        self._bound().refuse_all()
        # Not after what the thread waits for, which this ends.
        await self._thread.end(partial(self._core.close, timeout), at_once=True)
        if self._returned:
            count = len(self._returned)
            raise UnsavedPointsError(
                f"closed with {count} points that were taken back for a task that was cancelled; "
                "take_pending() gives them back",
                count=count,
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<aio.WriteBuffer over {self._core!r}>"

    @property
    def metrics(self) -> BufferMetrics:
        """What happened so far."""
        return self._core.metrics

    @property
    def producer(self) -> str:
        """The name under which batches are numbered."""
        return self._core.producer

    @property
    def pending(self) -> int:
        """How many points were taken and are neither settled nor given back."""
        return self._core.pending + len(self._returned)

    @property
    def committed(self) -> WriteReceipt:
        """What became of all points committed so far, without indices."""
        return self._core.committed

    def _bound(self) -> Taker:
        """Hold this buffer to the running loop; to another one only where that is closed.

        Raises:
            LifecycleError: it is another's.
            ForkedError: it is the parent's.
        """
        loop = get_running_loop()
        taker = self._taker
        self._thread.check_process()
        if taker is None or taker.loop.is_closed():
            self._taker = taker = Taker(self._core, self._thread, loop)
            self._core.when_kept = taker.look_again
        if taker.loop is not loop:
            raise LifecycleError(
                "this buffer belongs to another event loop, which is not closed; a loop has a "
                "buffer of its own, and a thread a tsengine.WriteBuffer"
            )
        return taker


def _copy(column: object) -> object:
    """Copy what a caller may change before it is looked at."""
    if isinstance(column, np.ndarray):
        return column.copy()
    return list(column) if isinstance(column, Iterable) else column
