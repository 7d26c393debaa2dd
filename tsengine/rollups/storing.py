"""Storing: columns into a store, with the patience of a retry policy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np

from tsengine.buffering.committing import Committer, Delivery
from tsengine.buffering.judging import Judge
from tsengine.engine import WriteBufferHandler
from tsengine.metrics import CommitMetrics
from tsengine.model import DataPoint, Int64Array, ProducerMark, SeriesBatch, WriteReceipt
from tsengine.pipeline.parcels import gather
from tsengine.retry import RetryPolicy

Rejected: TypeAlias = tuple[list[DataPoint], Exception]

_COMMIT_ROWS: Final = 1 << 19
"""As many as a copy commits at once."""


class Deadline:
    """When a call has to end, and what ends it earlier.

    Args:
        timeout: seconds; None for as long as it takes.
        cancel: is set where it is to end.
        clock: seconds, monotonic.
    """

    def __init__(
        self, timeout: float | None, cancel: threading.Event | None, clock: Callable[[], float]
    ) -> None:
        self._clock = clock
        self._cancel = cancel
        self.began = clock()
        self._end = None if timeout is None else self.began + timeout
        self._is_late = False  # whether a retry would come after the end

    @property
    def is_cancelled(self) -> bool:
        """Whether the caller wants it to end."""
        return self._cancel is not None and self._cancel.is_set()

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return self._is_late or (self._end is not None and self._clock() >= self._end)

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return self._clock() - self.began

    def pause(self, seconds: float) -> bool:
        """Wait before a retry; false where the call is to end instead."""
        if self._end is not None and self._clock() + seconds > self._end:
            self._is_late = True
            return False
        if self._cancel is None:
            time.sleep(seconds)
            return True
        return not self._cancel.wait(seconds)


class Storing:
    """Commits columns.

    Args:
        target: what to write to.
        retry: when a failed commit is tried again, and how it is divided.
        deadline: ends retries.
        producer: is named in the log.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        target: WriteBufferHandler,
        retry: RetryPolicy,
        deadline: Deadline,
        producer: str,
        clock: Callable[[], float],
    ) -> None:
        self._judge = Judge(target, [])
        self._committer = Committer(
            target,
            retry,
            CommitMetrics(),
            points_max=_COMMIT_ROWS,
            pause=deadline.pause,
            by_arrival=True,
            fields={"producer": producer},
            clock=clock,
        )

    def write(
        self, columns: Sequence[SeriesBatch], mark: ProducerMark | None = None
    ) -> tuple[WriteReceipt, list[Rejected], Int64Array]:
        """Have columns stored, in one commit or several.

        Args:
            columns: distinct series, none empty.
            mark: of one commit of them, which is then the only one.

        Returns:
            The receipt of what was stored, what cannot be, by error, and the rows of that,
            over the columns one after the other: int64[k].

        Raises:
            Exception: what the last attempt failed with.
        """
        (parcel,) = gather(columns)
        departure, _ = parcel.departure(self._judge, [])
        assert departure is not None
        delivery = Delivery(departure, lambda *_: mark, self._committer.size.points)
        before = delivery.progress
        self._committer.deliver(delivery)
        bad = [departure.positions[rows] for rows, _ in delivery.progress.rejected]
        rejected = np.concatenate([np.empty(0, np.int64), *bad])
        return delivery.receipt(), delivery.rejections(before), rejected
