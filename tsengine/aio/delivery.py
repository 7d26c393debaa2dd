"""Delivery of what became of points, from the thread that committed them to the event loop.

A commit that settles a thousand points wakes the loop once.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from tsengine.buffering.arrivals import Outcome
from tsengine.errors import InvalidDataError, RejectedPointsError
from tsengine.model import DataPoint, WriteReceipt

logger = logging.getLogger("tsengine.aio")

DELIVERED_AT_ONCE: Final = 1_024
"""Points told in one pass of the loop; each wakes a task, which takes some 10 µs. What else
is in the loop waits for no more than these."""

Receipt: TypeAlias = asyncio.Future[WriteReceipt]
"""A future of what becomes of a point that was taken."""


class Mailbox:
    """Takes what became of points, in any thread, and tells it in a loop.

    Args:
        loop: where futures are told.
        after: is called in the loop when a commit, or what else settled points, was told.
    """

    __slots__ = ("_after", "_is_wanted", "_loop", "_told")

    def __init__(self, loop: asyncio.AbstractEventLoop, after: Callable[[], None]) -> None:
        self._loop = loop
        self._after = after
        # Filled at one end by who commits, emptied at the other by the loop, each in one step.
        self._told: deque[tuple[object, Outcome]] = deque()
        self._is_wanted = False  # whether the loop has been woken; set before, cleared after

    def tell(self, told: list[tuple[object, Outcome]]) -> None:
        """Have futures told, as `arrivals.Tell` says; with none, that points were settled."""
        self._told.extend(_each_its_own(told))
        if self._is_wanted and not self._loop.is_closed():
            return
        self._is_wanted = True
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:  # it is closed
            self._is_wanted = False
            self._say_undelivered()

    def _deliver(self) -> None:
        told = self._told
        self._is_wanted = False  # first: what is added from here on wakes the loop anew
        for _ in range(min(len(told), DELIVERED_AT_ONCE)):
            future, outcome = told.popleft()
            if isinstance(future, asyncio.Future) and not future.done():
                if isinstance(outcome, WriteReceipt):
                    future.set_result(outcome)
                else:
                    future.set_exception(outcome)
        if told and not self._is_wanted:
            self._is_wanted = True
            self._loop.call_soon(self._deliver)
        self._after()

    def _say_undelivered(self) -> None:
        """Log what the closed loop does not hear of any more."""
        outcomes = [outcome for _, outcome in self._told]
        self._told.clear()
        failures = [outcome for outcome in outcomes if not isinstance(outcome, WriteReceipt)]
        logger.log(
            logging.ERROR if failures else logging.INFO,
            "the event loop was closed before %d points were settled, of which %d failed%s",
            len(outcomes),
            len(failures),
            f": {failures[0]}" if failures else "",
        )


class Call:
    """Gathers what becomes of the points of one call, for the one future of that.

    Args:
        points: those of the call.
        receipt: is told once all are settled, or one failed.
        mailbox: tells it.
    """

    __slots__ = ("_is_told", "_left", "_mailbox", "_receipt", "_refused", "_rejected",
                 "_seen", "points", "tell")  # fmt: skip

    def __init__(
        self,
        points: Sequence[DataPoint],
        receipt: Receipt,
        mailbox: Mailbox,
    ) -> None:
        self.points = points
        self.tell = self._tell  # one object, by which the points of a commit are gathered
        self._receipt = receipt
        self._mailbox = mailbox
        self._seen = bytearray(len(points))
        self._left = len(points)
        self._refused: dict[int, str] = {}
        self._rejected: dict[int, tuple[list[DataPoint], Exception]] = {}  # by id of the error
        self._is_told = False

    def _tell(self, told: list[tuple[object, Outcome]]) -> None:
        for index, outcome in told:
            assert isinstance(index, int)
            if self._is_told or self._seen[index]:
                continue  # a batch that failed in the middle tells twice of what was stored
            self._seen[index] = 1
            self._left -= 1
            if isinstance(outcome, WriteReceipt):
                if outcome.refused:
                    self._refused[index] = next(iter(outcome.reasons))
            elif isinstance(outcome, Exception) and self._is_of_points(outcome):
                points, _ = self._rejected.setdefault(id(outcome), ([], outcome))
                points.append(self.points[index])
            else:
                self._finish(_copied(outcome))  # others have it, too
        if not self._left and not self._is_told:
            self._finish(self._outcome())
        self._mailbox.tell([])  # that there is room, whether or not the call has ended

    def _is_of_points(self, error: Exception) -> bool:
        """Whether an error says that points can never be stored, and not that a commit failed."""
        return isinstance(error, (InvalidDataError, RejectedPointsError))

    def _finish(self, outcome: Outcome) -> None:
        self._is_told = True
        self._mailbox.tell([(self._receipt, outcome)])

    def _outcome(self) -> Outcome:
        if self._rejected:
            rejections = list(self._rejected.values())
            count = sum(len(points) for points, _ in rejections)
            error = RejectedPointsError(
                f"{count} of {len(self.points)} points cannot be stored, and are in this error: "
                f"{rejections[0][1]}",
                rejections=rejections,
            )
            error.__cause__ = rejections[0][1]
            return error
        refused = self._refused
        reasons: dict[str, int] = {}
        for reason in refused.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        count = len(self.points)
        indices = tuple(sorted(refused))
        return WriteReceipt(count, count - len(refused), len(refused), 0, reasons, indices)


def _each_its_own(told: list[tuple[object, Outcome]]) -> list[tuple[object, Outcome]]:
    """Give each future an exception of its own: tasks add to it what they were doing."""
    if all(type(outcome) is WriteReceipt for _, outcome in told):
        return told
    seen: set[int] = set()
    own: list[tuple[object, Outcome]] = []
    for future, outcome in told:
        original = id(outcome)
        if isinstance(outcome, StopIteration):  # which no future takes
            outcome = RuntimeError(f"a commit raised {outcome!r}")
        elif isinstance(outcome, InvalidDataError) or original in seen:
            outcome = _copied(outcome)
        seen.add(original)
        own.append((future, outcome))
    return own


def _copied(outcome: Outcome) -> Outcome:
    """Give a copy of an exception, caused by it; itself where it cannot be copied."""
    if isinstance(outcome, WriteReceipt):
        return outcome
    try:
        error = copy.copy(outcome)
    except Exception:  # noqa: BLE001  # a class of another's, whose constructor takes what it likes
        return outcome
    if type(error) is not type(outcome):
        return outcome
    error.__cause__ = outcome
    if isinstance(error, InvalidDataError):
        error.indices = ()  # of one point
    return error
