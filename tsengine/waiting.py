"""Waiting: for what somebody else holds, no longer than the caller has patience."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from tsengine.errors import CancelledError, UnknownOptionError

PAUSE_SECONDS_MIN: Final = 0.001
PAUSE_SECONDS_MAX: Final = 0.05
"""Between two looks at what has no event to wait for, such as a file lock: each pause is half as
long again as the one before, which costs a waiting process about 20 system calls a second."""

LOST_SECONDS: Final = 1.0
"""What a notification costs that is lost, because an interrupt came before it was given."""


class Patience:
    """How long a call waits: until a deadline, or until it is told to give up.

    Args:
        timeout: seconds; 0 for not at all, None for as long as it takes.
        cancel: gives up when it is set.

    Raises:
        UnknownOptionError: `timeout` is no number of seconds.
        CancelledError: `cancel` is set already.
    """

    def __init__(self, timeout: float | None, cancel: threading.Event | None) -> None:
        is_number = isinstance(timeout, (int, float)) and not isinstance(timeout, bool)
        if timeout is not None and not (is_number and timeout >= 0):
            raise UnknownOptionError(
                f"timeout {timeout!r} is no number of seconds; 0 waits not at all, None without end"
            )
        self._timeout = timeout
        self._cancel = cancel
        self._deadline = (
            None if timeout is None else time.monotonic() + min(timeout, threading.TIMEOUT_MAX / 2)
        )
        self._pause = PAUSE_SECONDS_MIN
        self._check_cancelled()

    @property
    def is_none(self) -> bool:
        """Whether it does not wait at all."""
        return self._timeout == 0

    @property
    def left(self) -> float | None:
        """Seconds that are left, at least 0; None without end."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def wait_for(self, condition: threading.Condition, ready: Callable[[], bool]) -> bool:
        """Wait for what a condition is notified of; whether it came before time was up.

        Args:
            condition: held by the caller.
            ready: whether it came; asked with the condition held.

        Raises:
            CancelledError: `cancel` was set.
        """
        while not ready():
            self._check_cancelled()
            left = self.left
            if left == 0:
                return False
            # An event of the caller's notifies no condition.
            longest = LOST_SECONDS if self._cancel is None else PAUSE_SECONDS_MAX
            condition.wait(longest if left is None else min(left, longest))
        return True

    def wait(self) -> bool:
        """Wait a little, longer each time; whether there is time left to look again.

        Raises:
            CancelledError: `cancel` was set, which ends the pause at once.
        """
        pause = self._pause
        left = self.left
        if left is not None:
            if left <= 0:
                return False
            pause = min(pause, left)
        self._pause = min(self._pause * 1.5, PAUSE_SECONDS_MAX)
        if self._cancel is None:
            time.sleep(pause)
        else:
            self._cancel.wait(pause)
            self._check_cancelled()
        return True

    def _check_cancelled(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise CancelledError("cancelled by the caller while it waited, or before")
