"""WriteBuffer under asyncio: a write is awaited until its point is durable.

The points go into a `tsengine.WriteBuffer`, whose own thread commits them. The loop only
appends: what might wait is done elsewhere, and a point that cannot be taken at once, as the
handler must be asked about it or there is no room, waits its turn in a queue of the loop's.
"""

from __future__ import annotations

import asyncio
import threading
from asyncio import get_running_loop
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, Literal, Self, TypedDict, Unpack, cast

import numpy as np

from tsengine import buffer as core
from tsengine.aio.delivery import Call, Mailbox, Receipt
from tsengine.aio.engine import Engine
from tsengine.aio.waiting_thread import WaitingThread
from tsengine.arrivals import ENTRY, Awaited, points_of
from tsengine.buffer import OnReject
from tsengine.engine import WriteBufferHandler
from tsengine.errors import (
    BufferFullError,
    LifecycleError,
    NotOpenError,
    UnsavedPointsError,
)
from tsengine.metrics import BufferMetrics
from tsengine.model import INT64_MAX, DataPoint, Labels, PointLike, Value, WriteReceipt
from tsengine.retry import RetryPolicy

ASKED_AT_ONCE: Final = 256
"""Points about which the handler is asked in one go: to change threads for each costs more
than most answers, and a flush waits for no more than these."""


JUDGED_AT_ONCE: Final = 512
"""Points of one call that the loop judges itself, where they are plain: 0.2 ms."""


class BufferOptions(TypedDict, total=False):
    """The options of a `tsengine.WriteBuffer`, but for `background`: it always is."""

    points_max: int
    age_max: float | None
    pending_max: int | None
    on_full: Literal["block", "raise"]
    full_timeout: float | None
    producer: str | None
    retry: RetryPolicy | None
    on_reject: OnReject | None
    clock: Callable[[], float]


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
    `full_timeout` mean what they mean there. `on_reject` is called by the thread that commits.

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
        self._handler = handler.sync if isinstance(handler, Engine) else handler
        self._core = core.WriteBuffer(self._handler, background=True, **options)
        self._judge = self._core._judge
        self._thread = WaitingThread("tsengine-aio-buffer", "buffer")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._returned: list[DataPoint] = []  # taken back for a task that was cancelled
        self._reset()

    def _reset(self) -> None:
        """Begin as in a new loop. Only that touches what is here."""
        self._is_plain = True  # whether nobody waits for a turn, and the buffer is open
        self._is_ringing = False  # whether the flusher is woken at the end of this pass
        self._unjudged: OrderedDict[_Turn, None] = OrderedDict()  # the handler is to be asked
        self._is_asking = False  # whether the thread is asking
        self._asked: dict[object, int] = {}  # how many of each series are unjudged
        self._judged: OrderedDict[_Turn, None] = OrderedDict()  # room is all that they need

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
                which will try again: to write it once more may store it twice.
        """
        receipt = self._take(point)
        if receipt is None:
            receipt = await self._take_in_turn(point)
        return await receipt

    async def submit(self, point: PointLike) -> Receipt:
        """Take one point, and return when it is taken.

        Returns:
            A future of what `write` would return or raise from here on. To cancel it leaves
            the point where it is.

        Raises:
            Exception: as `write`; the point is not taken.
        """
        receipt = self._take(point)
        if receipt is None:
            receipt = await self._take_in_turn(point)
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
        limit = self._core._points_max
        return await self._write_call(
            lambda: points_of(self._judge.judge_many(given, limit)), given
        )

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

        return await self._write_call(judge, None)

    # Committing.

    async def flush(self) -> WriteReceipt:
        """Commit all that is pending; points that wait for their turn are not.

        Cancelled, it no longer waits; the commits go on.

        Returns:
            The receipt of these commits, as `tsengine.WriteBuffer.flush`.

        Raises:
            Exception: as `tsengine.WriteBuffer.flush`.
        """
        self._bind()
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
        self._bind()
        cancel = threading.Event()

        def take() -> None:
            self._returned += self._core.take_pending(cancel=cancel)

        if self._thread.is_ending:
            await self._closed()
            thread = WaitingThread("tsengine-aio-taking", "buffer")
            await thread.end(take)
        else:
            await self._thread.change(take, cancel)
        returned, self._returned = self._returned, []
        self._go_on()
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
        if self._core._state is not core._State.FORKED:
            self._bind()
        self._is_plain = False
        # Not after what the thread waits for, which this ends.
        ending = self._thread.end(partial(self._core.close, timeout), at_once=True)
        refusal = NotOpenError("this buffer was closed before the point was taken")
        for turn in [*self._unjudged, *self._judged]:
            self._refuse(turn, refusal)
        self._unjudged.clear()
        self._judged.clear()
        await ending
        if self._returned:
            count = len(self._returned)
            raise UnsavedPointsError(
                f"closed with {count} points that were taken back for a task that was cancelled; "
                "take_pending() gives them back",
                count=count,
            )

    async def _closed(self) -> None:
        await self._thread.end(lambda: None)

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

    # Taking.

    def _bind(self) -> None:
        """Hold this buffer to the running loop; to another one only where that is closed.

        Raises:
            LifecycleError: it is another's.
            ForkedError: it is the parent's.
        """
        loop = get_running_loop()
        if loop is self._loop:
            return
        self._thread.check_process()
        if self._loop is not None and not self._loop.is_closed():
            raise LifecycleError(
                "this buffer belongs to another event loop, which is not closed; a loop has a "
                "buffer of its own, and a thread a tsengine.WriteBuffer"
            )
        self._reset()
        self._is_plain = not self._thread.is_ending
        self._loop = loop
        self._create_future: Callable[[], Receipt] = loop.create_future
        self._mailbox = Mailbox(loop, self._go_on)
        self._tell = self._mailbox.tell

    def _take(self, point: PointLike) -> Receipt | None:
        """Take a point of the plainest kind, where nothing is in its way; else None."""
        # The hot path, as that of `tsengine.WriteBuffer.write`.
        if get_running_loop() is not self._loop:
            self._bind()
        if not self._is_plain:
            return None
        judge = self._judge
        try:
            labels, timestamp, value = point
            if labels not in judge.floats:
                return None
        except (TypeError, ValueError):
            return None
        if (
            type(value) is not float
            or type(timestamp) is not int
            or not judge.earliest <= timestamp <= INT64_MAX
        ):
            return None
        buffer = self._core
        entries = buffer._entries
        if len(entries) >= buffer._room:
            return None
        receipt = self._create_future()
        entries += (labels, timestamp, Awaited(value, receipt, self._tell))
        if buffer._is_unwatched:
            buffer._watch()
        if not self._is_ringing:
            self._ring_soon()
        return receipt

    async def _take_in_turn(self, point: PointLike) -> Receipt:
        """Take a point when it is judged and there is room, after those that came before."""
        self._check_open()
        turn = _Turn(self._loop_of(), _series_of(point))
        receipt = turn.receipt

        def entries(labels: Labels, timestamp: int, value: Value) -> list[object]:
            return [labels, timestamp, Awaited(value, receipt, self._tell)]

        if _ANY not in self._asked and turn.series not in self._asked:
            entry = self._judge.judge_unasked(point)
            if entry is not None:
                turn.entries = entries(*entry)
        turn.judge = lambda: entries(*self._judge.judge(point))
        return await self._await_turn(turn)

    async def _write_call(
        self, judge: Callable[[], list[DataPoint]], given: list[PointLike] | None
    ) -> WriteReceipt:
        """Take the points of a call as one.

        Args:
            judge: gives them as points that can be stored.
            given: the points themselves, where they are judged one by one.
        """
        self._check_open()
        turn = _Turn(self._loop_of(), _ANY)
        mailbox = self._mailbox

        def entries(points: Sequence[DataPoint]) -> list[object]:
            call = Call(points, turn.receipt, mailbox, self._handler)
            made: list[object] = []
            for index, (labels, timestamp, value) in enumerate(points):
                made += (labels, timestamp, Awaited(value, index, call.tell))
            return made

        if (
            given is not None
            and 0 < len(given) <= JUDGED_AT_ONCE
            and not self._asked
            and self._judge.are_plain(given)
        ):
            turn.entries = entries(cast("list[DataPoint]", given))
        turn.judge = lambda: entries(judge())
        return await (await self._await_turn(turn))

    async def _await_turn(self, turn: _Turn) -> Receipt:
        """Wait until the points of a turn are taken; give what tells when they are durable."""
        if turn.entries is None:
            self._unjudged[turn] = None
            self._asked[turn.series] = self._asked.get(turn.series, 0) + 1
            self._ask()
        else:
            self._judged[turn] = None
            self._go_on()
        try:
            await turn.taken
        except BaseException:
            # Not where it is being asked about: whose turn is over is not taken then.
            if self._unjudged.pop(turn, turn) is None:
                self._forget_asked(turn)
            self._judged.pop(turn, None)
            turn.end()
            turn.receipt.cancel()  # nobody is there to hear of it, where it was taken just now
            self._is_plain = self._is_free
            raise
        return turn.receipt

    def _ask(self) -> None:
        """Have the points that come next judged, unless others are."""
        if self._is_asking or not self._unjudged:
            return
        turns: list[_Turn] = []
        while self._unjudged and len(turns) < ASKED_AT_ONCE:
            turns.append(self._unjudged.popitem(last=False)[0])
        loop = self._loop
        try:
            asked = self._thread.submit(partial(_judge, turns))
        except LifecycleError as error:
            for turn in turns:
                self._refuse(turn, error)
            return
        self._is_asking = True
        wrapped = asyncio.wrap_future(asked)
        wrapped.add_done_callback(lambda _: self._have_asked(turns) if loop is self._loop else None)

    def _have_asked(self, turns: list[_Turn]) -> None:
        self._is_asking = False
        for turn in turns:
            self._forget_asked(turn)
            if turn.error is not None:
                self._refuse(turn, turn.error)
            elif not turn.taken.done():
                self._judged[turn] = None
        self._go_on()
        self._ask()

    def _forget_asked(self, turn: _Turn) -> None:
        left = self._asked[turn.series] - 1
        if left:
            self._asked[turn.series] = left
        else:
            del self._asked[turn.series]

    def _go_on(self) -> None:
        """Take the points whose turn it is, as far as there is room."""
        buffer, judged = self._core, self._judged
        while judged:
            turn = next(iter(judged))
            try:
                with buffer._state_lock:
                    has_room = buffer._has_room_locked()
                if not has_room:
                    self._wait_for_room()
                    break
                self._append(turn)
            except Exception as error:  # noqa: BLE001  # is for whose turn it was
                self._refuse(turn, error)
            judged.pop(turn, None)
        self._is_plain = self._is_free

    @property
    def _is_free(self) -> bool:
        return not (self._judged or self._asked or self._thread.is_ending)

    def _append(self, turn: _Turn) -> None:
        entries = turn.entries
        assert entries is not None
        if entries:
            self._core._take(entries, len(entries) // ENTRY)
            if not self._is_ringing:
                self._ring_soon()
        else:
            turn.receipt.set_result(WriteReceipt(0, 0))
        if turn.waits_since is not None:
            self._core.metrics.wait_seconds += self._now() - turn.waits_since
        turn.end()
        turn.taken.set_result(None)

    def _wait_for_room(self) -> None:
        """Have who came last told that there is no room, or see to it that some is made."""
        buffer, loop = self._core, self._loop_of()
        for turn in [*reversed(self._judged)]:
            if turn.waits_since is not None:
                break
            if buffer._on_full == "raise":
                del self._judged[turn]
                self._refuse_full(turn)
                continue
            turn.waits_since = self._now()
            buffer.metrics.waits += 1
            if buffer._full_timeout is not None:
                turn.timer = loop.call_later(buffer._full_timeout, self._refuse_full, turn)
            self._ring_soon()

    def _refuse_full(self, turn: _Turn) -> None:
        buffer = self._core
        buffer.metrics.full += 1
        waited = "" if turn.waits_since is None else f" after {buffer._full_timeout} seconds"
        self._refuse(
            turn,
            BufferFullError(
                f"{buffer.pending} points are pending{waited}, "
                f"pending_max={buffer._pending_max}; the point was not taken"
            ),
        )

    def _refuse(self, turn: _Turn, error: BaseException) -> None:
        if not turn.taken.done():
            turn.taken.set_exception(error)
        turn.end()

    def _ring_soon(self) -> None:
        """Have the flusher commit at the end of this pass, with what others take in it."""
        if not self._is_ringing:
            self._is_ringing = True
            self._loop_of().call_soon(self._ring)

    def _ring(self) -> None:
        self._is_ringing = False
        buffer = self._core
        buffer._is_wanted = True
        if buffer._flusher is not None:
            buffer._flusher.bell.ring()

    def _check_open(self) -> None:
        self._bind()
        if self._thread.is_ending:
            raise NotOpenError("this buffer is closed")

    def _loop_of(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None, "bound before"
        return self._loop

    def _now(self) -> float:
        return self._core._clock()


class _Turn:
    """Points of one call that wait until they are judged and there is room.

    Attributes:
        series: whose points; `_ANY` where they may be of any.
        taken: done when they are taken.
        receipt: told when they are durable.
        judge: gives their entries; may ask the handler.
        entries: what to append, once they are judged.
        error: what is wrong with them.
        waits_since: when they first found no room.
        timer: ends that wait.
    """

    __slots__ = (
        "entries",
        "error",
        "judge",
        "receipt",
        "series",
        "taken",
        "timer",
        "waits_since",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, series: object) -> None:
        self.series = series
        self.taken: asyncio.Future[None] = loop.create_future()
        self.receipt: Receipt = loop.create_future()
        self.judge: Callable[[], list[object]] = list
        self.entries: list[object] | None = None
        self.error: BaseException | None = None
        self.waits_since: float | None = None
        self.timer: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """Stop the clock."""
        if self.timer is not None:
            self.timer.cancel()


_ANY: Final = object()
"""Stands for the series of a call that may have points of any."""

_NONE: Final = object()
"""Stands for the series of a point that has none, and will be refused."""


def _series_of(point: PointLike) -> object:
    try:
        labels = point[0]
    except (TypeError, IndexError, KeyError):
        return _NONE
    return labels if type(labels) is Labels else _NONE


def _judge(turns: list[_Turn]) -> None:
    """Judge points in the thread that may wait."""
    for turn in turns:
        if turn.taken.cancelled():
            continue
        try:
            turn.entries = turn.judge()
        except BaseException as error:  # noqa: BLE001  # raised by whoever wrote the point
            turn.error = error


def _copy(column: object) -> object:
    """Copy what a caller may change before it is looked at."""
    if isinstance(column, np.ndarray):
        return column.copy()
    return list(column) if isinstance(column, Iterable) else column
