"""Taking: how points of one event loop get into a buffer, without making the loop wait.

What is plain is appended at once. A point about which the handler must be asked, and one that
finds no room, waits its turn: first until it is judged, in the thread that may wait, then for
room, which commits make. Each of the two is a queue in order of arrival; points of a series
whose points are being judged join the first behind them, all others the second.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, cast

from tsengine.aio.delivery import Call, Mailbox, Receipt
from tsengine.aio.waiting_thread import WaitingThread
from tsengine.buffer import WriteBuffer
from tsengine.buffering.arrivals import ENTRY, Awaited
from tsengine.errors import BufferFullError, LifecycleError, NotOpenError
from tsengine.model import INT64_MAX, DataPoint, Labels, PointLike, Value, WriteReceipt

ASKED_AT_ONCE: Final = 256
"""Points about which the handler is asked in one go: to change threads for each costs more
than most answers, and a flush waits for no more than these."""

JUDGED_AT_ONCE: Final = 512
"""Points of one call that the loop judges itself, where they are plain: 0.2 ms."""


class Taker:
    """Takes points of the tasks of one loop.

    Args:
        buffer: where they go; commits in the background.
        thread: may wait.
        loop: calls all methods.
    """

    def __init__(
        self,
        buffer: WriteBuffer,
        thread: WaitingThread,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.loop = loop
        self._core = buffer
        self._judge = buffer._judge
        self._thread = thread
        self._create_future: Callable[[], Receipt] = loop.create_future
        self._mailbox = Mailbox(loop, self.go_on)
        self._tell = self._mailbox.tell
        self._is_ringing = False  # whether the flusher is woken at the end of this pass
        self._unjudged: OrderedDict[Turn, None] = OrderedDict()  # the handler is to be asked
        self._is_asking = False  # whether the thread is asking
        self._asked: dict[object, int] = {}  # how many of each series are unjudged
        self._judged: OrderedDict[Turn, None] = OrderedDict()  # room is all that they need
        self._is_plain = self._is_free  # kept, as it is looked at for each point

    def refuse_all(self) -> None:
        """Refuse the points that wait their turn, as the buffer is about to close."""
        self._is_plain = False
        for turn in [*self._unjudged, *self._judged]:
            self._refuse(turn, NotOpenError("this buffer was closed before the point was taken"))
        self._unjudged.clear()
        self._judged.clear()

    def take(self, point: PointLike) -> Receipt | None:
        """Take a point of the plainest kind, where nothing is in its way; else None."""
        # The hot path, as that of `tsengine.WriteBuffer.write`.
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

    async def take_in_turn(self, point: PointLike) -> Receipt:
        """Take a point when it is judged and there is room, after those that came before."""
        self._check_open()
        turn = Turn(self.loop, _series_of(point))
        receipt = turn.receipt

        def entries(labels: Labels, timestamp: int, value: Value) -> list[object]:
            return [labels, timestamp, Awaited(value, receipt, self._tell)]

        if ANY not in self._asked and turn.series not in self._asked:
            entry = self._judge.judge_unasked(point)
            if entry is not None:
                turn.entries = entries(*entry)
        turn.judge = lambda: entries(*self._judge.judge(point))
        return await self._await_turn(turn)

    async def take_call(
        self, judge: Callable[[], list[DataPoint]], given: list[PointLike] | None
    ) -> Receipt:
        """Take the points of a call, as `take_in_turn` takes one.

        Args:
            judge: gives them as points that can be stored.
            given: the points themselves, where they are judged one by one.
        """
        self._check_open()
        turn = Turn(self.loop, ANY)
        mailbox = self._mailbox

        def entries(points: Sequence[DataPoint]) -> list[object]:
            call = Call(points, turn.receipt, mailbox)
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
        return await self._await_turn(turn)

    async def _await_turn(self, turn: Turn) -> Receipt:
        """Wait until the points of a turn are taken; give what tells when they are durable."""
        if turn.entries is None:
            self._is_plain = False
            self._unjudged[turn] = None
            self._asked[turn.series] = self._asked.get(turn.series, 0) + 1
            self._ask()
        else:
            self._judged[turn] = None
            self.go_on()
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
        turns: list[Turn] = []
        while self._unjudged and len(turns) < ASKED_AT_ONCE:
            turns.append(self._unjudged.popitem(last=False)[0])
        try:
            asked = self._thread.submit(partial(_judge, turns))
        except LifecycleError as error:
            for turn in turns:
                self._refuse(turn, error)
            return
        self._is_asking = True
        asyncio.wrap_future(asked).add_done_callback(lambda _: self._have_asked(turns))

    def _have_asked(self, turns: list[Turn]) -> None:
        self._is_asking = False
        for turn in turns:
            self._forget_asked(turn)
            if turn.error is not None:
                self._refuse(turn, turn.error)
            elif not turn.taken.done():
                self._judged[turn] = None
        self.go_on()
        self._ask()

    def _forget_asked(self, turn: Turn) -> None:
        left = self._asked[turn.series] - 1
        if left:
            self._asked[turn.series] = left
        else:
            del self._asked[turn.series]

    def look_again(self) -> None:
        """Have those who wait for room looked after again; any thread may call it."""
        self._mailbox.tell([])

    def go_on(self) -> None:
        """Take the points whose turn it is, as far as there is room."""
        buffer, judged = self._core, self._judged
        while judged:
            turn = next(iter(judged))
            if turn.taken.done():  # cancelled, or out of time, and its task has not heard yet
                del judged[turn]
                continue
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

    def _append(self, turn: Turn) -> None:
        entries = turn.entries
        assert entries is not None
        if entries:
            count = len(entries) // ENTRY
            self._core._take(entries, count)
            self._core._commit_taken(count)  # by its own thread
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
        buffer = self._core
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
                turn.timer = self.loop.call_later(buffer._full_timeout, self._refuse_full, turn)
            self._ring_soon()

    def _refuse_full(self, turn: Turn) -> None:
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

    def _refuse(self, turn: Turn, error: BaseException) -> None:
        if not turn.taken.done():
            turn.taken.set_exception(error)
        turn.end()

    def _ring_soon(self) -> None:
        """Have the flusher commit at the end of this pass, with what others take in it."""
        if not self._is_ringing:
            self._is_ringing = True
            self.loop.call_soon(self._ring)

    def _ring(self) -> None:
        self._is_ringing = False
        buffer = self._core
        buffer._is_wanted = True
        if buffer._flusher is not None:
            buffer._flusher.bell.ring()

    def _check_open(self) -> None:
        if self._thread.is_ending:
            raise NotOpenError("this buffer is closed")

    def _now(self) -> float:
        return self._core._clock()


class Turn:
    """Points of one call that wait until they are judged and there is room.

    Attributes:
        series: whose points; `ANY` where they may be of any.
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


ANY: Final = object()
"""Stands for the series of a call that may have points of any."""

_NONE: Final = object()
"""Stands for the series of a point that has none, and will be refused."""


def _series_of(point: PointLike) -> object:
    try:
        labels: object = point[0]
    except (TypeError, IndexError, KeyError):
        return _NONE
    return labels if type(labels) is Labels else _NONE


def _judge(turns: list[Turn]) -> None:
    """Judge points in the thread that may wait."""
    for turn in turns:
        if turn.taken.cancelled():
            continue
        try:
            turn.entries = turn.judge()
        except BaseException as error:  # noqa: BLE001  # raised by whoever wrote the point
            turn.error = error
