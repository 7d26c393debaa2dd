"""Flushing: what the thread of a buffer does, and how others ask it to.

It commits what is old, what is waited for and what it is asked for; with `background=True`
everything. Between an outbox, which knows how to commit, and `buffer.py`, which callers see.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final

from tsengine.buffering.arrivals import ENTRY
from tsengine.buffering.committing import NOTHING
from tsengine.buffering.flusher import Flusher
from tsengine.buffering.outbox import OnReject, Outbox, State
from tsengine.engine import WriteBufferHandler
from tsengine.errors import NotOpenError, WaitTimeoutError
from tsengine.model import WriteReceipt
from tsengine.retry import RetryPolicy
from tsengine.waiting import Patience

logger = logging.getLogger("tsengine.buffer")

GATHERED_MIN: Final = 8
"""Fewer who wait at once are not waited for."""

GATHER_SECONDS: Final = 0.0002
"""In which somebody has to submit for more of them to be waited for: a fifth of a commit."""


class FlushedOutbox(Outbox):
    """An outbox with a thread of its own.

    Args:
        handler: what to commit to.
        age_max: seconds after which a pending point is committed; None for never.
        background: whether the thread alone commits.
        retry: how patient a commit is.
        points_max, pending_max, producer, on_reject, clock: as for an `Outbox`.
    """

    __slots__ = (
        "_age_max",
        "_background",
        "_failed_in_row",
        "_is_wanted",
        "_requests",
        "_retry",
        "_retry_at",
    )

    def __init__(
        self,
        handler: WriteBufferHandler,
        *,
        points_max: int,
        pending_max: int,
        age_max: float | None,
        background: bool,
        producer: str | None,
        retry: RetryPolicy,
        on_reject: OnReject | None,
        clock: Callable[[], float],
    ) -> None:
        super().__init__(
            handler,
            points_max=points_max,
            pending_max=pending_max,
            producer=producer,
            retry=retry,
            on_reject=on_reject,
            clock=clock,
        )
        self._age_max = age_max
        self._background = background
        self._retry = retry
        self._requests: list[_Request] = []  # of the thread; guarded by _state_lock
        self._failed_in_row = 0  # attempts of the thread, which alone changes this and the next
        self._retry_at = 0.0  # no commit by age before
        self._is_wanted = False  # a flag: the thread has been woken for submitted points

    @property
    def _may_commit(self) -> bool:
        """Whether a write may commit in the calling thread."""
        return not self._background or (self._flusher is not None and self._flusher.is_current)

    def _commits_here(self, timeout: float | None, cancel: threading.Event | None) -> bool:
        """Whether a call commits in its own thread, rather than have the flusher do it."""
        if self._flusher is not None and self._flusher.is_current:
            return True
        return timeout is None and cancel is None and not self._background

    def _need_flusher(self, *, closing: bool = False) -> Flusher:
        flusher = self._flusher
        if flusher is None:
            with self._state_lock:
                if self._flusher is None:
                    if not closing:
                        self._check_state_locked()
                    self._flusher = Flusher(self, f"tsengine-{self.producer[:24]}")
                flusher = self._flusher
        return flusher

    def _have_flushed(self, patience: Patience, *, closing: bool = False) -> WriteReceipt:
        """Have the flusher commit all that is pending, and wait for it."""
        request = _Request(closing=closing)
        with self._state_lock:
            if not closing:
                self._check_state_locked()
            self._requests.append(request)
        try:
            self._need_flusher(closing=closing).bell.ring()
        except RuntimeError:  # no thread can be begun: too many, or Python is about to exit
            return self._flush_here("close" if closing else "flush", patience)
        with self._state_lock:
            try:
                self._wait_locked(
                    patience,
                    lambda: request.is_done or (self._state is State.CLOSED and not closing),
                )
            finally:
                request.is_left = True
            pending = self._pending_locked()
        if not request.is_done:
            if self._state is State.CLOSED and not closing:
                raise NotOpenError(f"this buffer was closed with {pending} points pending")
            raise WaitTimeoutError(
                f"{pending} points are still pending; they are being committed all the same"
            )
        if request.error is not None:
            self._forget_failure()  # it was of the batch that this call tells about
            raise request.error
        return request.receipt

    def _work(self) -> float | None:
        """Do what is due, as the flusher; see `Worker`."""
        self._is_timed = False
        wanted = self._is_wanted
        if wanted:
            self._is_wanted = False  # before anything departs
        with self._state_lock:
            state = self._state
            requests = self._requests[:]
        receipt = NOTHING
        failure: BaseException | None = None
        cause = ""
        try:
            if state is State.OPEN or requests:
                cause = self._due(requests, wanted=wanted)
                if cause == "submit":
                    self._gather()
                if cause:
                    receipt = self._flush_here(cause)
                    while cause == "close" and self._pending_locked():
                        self._flush_here(cause)
                if cause or self._background:  # what others added meanwhile may have filled it
                    self._commit_full()
        except BaseException as error:  # noqa: BLE001  # told to whoever asked, or kept
            failure = error
        is_heard = self._answer(requests, receipt, failure)
        if failure is None:
            if cause:
                self._failed_in_row, self._retry_at = 0, 0.0
        else:
            # Where points are old all the time, a store that is gone is not asked all the time.
            self._first_at = self._clock()
            self._retry_at = self._first_at + self._retry.pause(self._failed_in_row)
            self._failed_in_row += 1
            if wanted and failure is not self._told:
                self._is_wanted = True
            if not is_heard:
                self._owe(failure)
                self._complain(failure)
        failure = None  # it has this frame in its traceback
        self._notify()
        if self._state in (State.CLOSED, State.FORKED):
            raise StopIteration
        return self._seconds_to_look()

    def _due(self, requests: list[_Request], *, wanted: bool) -> str:
        """Give what makes a commit due now; nothing where none is, but perhaps by size."""
        for request in requests:
            if request.closing:
                return "close"
        if requests:
            return "flush"
        if wanted:
            return "submit"
        return "age" if self._age_due() <= 0 else ""

    def _answer(
        self, requests: list[_Request], receipt: WriteReceipt, failure: BaseException | None
    ) -> bool:
        """Tell those who asked for a flush what came of it; whether anybody listens."""
        with self._state_lock:
            is_heard = False
            for request in requests:
                is_heard = is_heard or not request.is_left
                request.receipt, request.error, request.is_done = receipt, failure, True
            del self._requests[: len(requests)]
        return is_heard

    def _gather(self) -> None:
        """Let those who were just told of their points submit the next ones.

        A commit takes a millisecond, so that it pays to have all of them in the same one: without
        this half of the threads find that the others have just left.
        """
        if self._last_told < GATHERED_MIN:
            return
        before, now = -1, len(self._entries) // ENTRY
        while before < now < self._last_told:
            time.sleep(GATHER_SECONDS)
            before, now = now, len(self._entries) // ENTRY

    def _commit_full(self) -> None:
        """Commit while the buffer is full, as the flusher."""
        patience = Patience(None, None)
        while self._pending_locked() >= self._points_max:
            if self._commit_once("size", patience, least=self._points_max) is None:
                return

    def _age_due(self) -> float:
        """Give the seconds until the first pending point is too old, infinity for never."""
        if self._age_max is None or self._is_unwatched:
            return math.inf
        now = self._clock()
        if now < self._first_at:  # the clock was set back
            self._first_at, self._retry_at = now, 0.0
        return max(self._first_at + self._age_max, self._retry_at) - now

    def _seconds_to_look(self) -> float | None:
        if self._requests:
            return 0.0
        if not self._entries:
            self._rest()
        due = self._age_due()
        if self._is_wanted:
            due = min(due, self._retry_at - self._clock())
        if due == math.inf:
            return None
        self._is_timed = True
        return max(due, 0.0)

    def _complain(self, error: BaseException) -> None:
        fields = {**self._fields(), "error_type": type(error).__name__}
        logger.error(
            "a commit failed, and %d points stay pending: %s", fields["points"], error, extra=fields
        )

    def _fields(self) -> dict[str, object]:
        """Give the fields of a record of the log."""
        return {"producer": self.producer, "points": self.pending}

    def _disown(self) -> None:
        self._requests.clear()
        super()._disown()


class _Request:
    """Asks the flusher to commit all that is pending. Guarded by the buffer's _state_lock."""

    __slots__ = ("closing", "error", "is_done", "is_left", "receipt")

    def __init__(self, *, closing: bool) -> None:
        self.closing = closing
        self.is_done = False
        self.is_left = False  # whoever asked waits no longer
        self.receipt = NOTHING
        self.error: BaseException | None = None
