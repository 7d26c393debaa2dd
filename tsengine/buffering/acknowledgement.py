"""Acknowledgement: what became of one submitted point, for the thread that waits for it."""

from __future__ import annotations

import logging
import os
import threading
from concurrent.futures import Future, InvalidStateError

from tsengine.buffering.arrivals import Awaited, News, Outcome, Tell
from tsengine.errors import ForkedError, UnsavedPointsError
from tsengine.model import WriteReceipt

logger = logging.getLogger("tsengine.buffer")


class Acknowledgement(Future[WriteReceipt]):
    """A future that is done when its point is durable, or is known not to become so.

    It cannot be cancelled: the point is taken. In a forked child, where nobody commits,
    waiting for it raises ForkedError.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()
        self.set_running_or_notify_cancel()

    def result(self, timeout: float | None = None) -> WriteReceipt:
        """Wait for the receipt of the point.

        Args:
            timeout: seconds; None for as long as it takes.

        Raises:
            TimeoutError: it took longer. The point stays where it is.
            InvalidDataError: the point is bad, and was not stored.
            RejectedPointsError: likewise, for a reason that is not about data alone, as where
                the point is too large by itself.
            UnsavedPointsError: the point was not stored when the buffer closed, or was taken
                back.
            ForkedError: the point is the parent's.
            Exception: its commit failed, unchanged. The point is still pending in the buffer,
                which will try again: to submit it once more may store it twice.
        """
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and give what `result` raises."""
        self._check_process()
        return super().exception(timeout)

    def disown(self) -> None:
        """Be done, in a forked child: nobody commits there. No other thread runs."""
        self._condition = threading.Condition()  # another thread of the parent may have held it
        self.set_exception(ForkedError("this point was submitted before a fork"))

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise ForkedError("this point was submitted before a fork; it is the parent's")


def tell_futures(told: list[tuple[object, Outcome]]) -> None:
    """Complete acknowledgements that are not done yet."""
    for future, outcome in told:
        if not isinstance(future, Acknowledgement) or future.done():
            continue
        try:
            if isinstance(outcome, WriteReceipt):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
        except InvalidStateError:
            pass  # another thread told it in between
        except (SystemExit, GeneratorExit):
            # Of a callback; of others concurrent.futures does the same. Those behind it hear.
            logger.exception("a callback of a submitted point raised")


def news_of_unsaved(waiting: list[Awaited], text: str) -> list[News]:
    """Give the news that points were left to their owner, for who has heard nothing before."""
    told: dict[Tell, list[tuple[object, Outcome]]] = {}
    for awaited in waiting:
        error = UnsavedPointsError(text, count=1)
        told.setdefault(awaited.tell, []).append((awaited.waiter, error))
    return list(told.items())
