"""Retry: what a failed commit calls for, decided in one place for buffers and pipelines.

A handler says of which class an error is (`WriteBufferHandler.error_class`, by default
`classify`); what follows from the class is the same everywhere:

    TRANSIENT    the same points are tried again, after a pause that grows and is jittered
    TOO_LARGE    they are tried in halves, down to `min_batch_size`; the size is remembered
    PERMANENT    they are divided until the bad ones stand alone; the good ones are stored
    FATAL        nothing is tried: the handler is closed or misconfigured, or the error is
                 unknown; it is not about these points, which stay where they are
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tsengine.errors import (
    AccessDeniedError,
    BatchTooLargeError,
    CorruptionError,
    FormatVersionError,
    InvalidDataError,
    SchemaError,
    StorageError,
    StorePathError,
    UnknownOptionError,
    WaitTimeoutError,
)

REGROW_AFTER: Final = 8
"""Commits in a row, as large as is allowed at the moment, after which twice as large ones are
tried: where the limit is fixed, one commit in nine is refused and halved again."""


class ErrorClass(enum.Enum):
    """What an error of a commit says about its points."""

    TRANSIENT = "transient"
    """The next attempt may succeed; the outcome of this one may be unknown."""
    TOO_LARGE = "too large"
    """Nothing was stored, and fewer points at once may be."""
    PERMANENT = "permanent"
    """Nothing was stored, as some of these points can never be."""
    FATAL = "fatal"
    """No attempt can succeed as things are, which is not the fault of these points."""


_NEVER_BETTER: Final = (
    AccessDeniedError,
    CorruptionError,
    FormatVersionError,
    SchemaError,
    StorePathError,
)
"""Errors of storage that time does not heal."""


def classify(error: Exception) -> ErrorClass:
    """Give the class of an error by its type, for what tsengine and the system raise.

    An unknown error is FATAL: to try it again might never end, and to divide the points
    would hand all of them out as bad where the bad one is the handler.
    """
    if isinstance(error, InvalidDataError):
        return ErrorClass.PERMANENT
    if isinstance(error, BatchTooLargeError):
        return ErrorClass.TOO_LARGE
    if isinstance(error, _NEVER_BETTER):
        return ErrorClass.FATAL
    if isinstance(error, (StorageError, WaitTimeoutError, OSError)):
        return ErrorClass.TRANSIENT
    return ErrorClass.FATAL


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient a commit is.

    Attributes:
        max_retries: further attempts after the first, for each piece that is committed.
        deadline: seconds after which no further attempt is begun, over all pieces and pauses
            of a commit; None for no such bound.
        backoff_min: seconds before the first retry, at most; each further pause is up to twice
            as long.
        backoff_max: the longest pause, seconds.
        batch_size: rows at once, to begin with, of who divides rows by itself, as `bulk_upsert`
            does. A buffer commits at once what it flushes, however much that is.
        min_batch_size: points or rows below which a batch that is too large is not halved for its
            size. At that size it is retried as after a transient error; then a buffer divides
            it to find the point that is too large by itself, and a bulk upsert ends.
        timeout: seconds for one attempt, of who can bound it, as `bulk_upsert`; None for no bound.
            An engine bounds its commits by an option of its own, where it has one.
        throttle_interval: seconds of rest between batches, of who divides rows by itself, as
            `bulk_upsert`.
        jitter: gives a number from 0 to 1. A pause lasts from half of its length to all of it,
            so that clients that failed together do not come back together.

    Raises:
        UnknownOptionError: a number makes no sense.
    """

    max_retries: int = 3
    deadline: float | None = 30.0
    backoff_min: float = 0.05
    backoff_max: float = 5.0
    min_batch_size: int = 500
    batch_size: int = 5_000
    timeout: float | None = 30.0
    throttle_interval: float = 0.0
    jitter: Callable[[], float] = field(default=random.random, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("max_retries", 0), ("min_batch_size", 1), ("batch_size", 1)):
            value: object = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UnknownOptionError(
                    f"{name}={value!r} is no integer of at least {least}, which it must be"
                )
        for name in ("deadline", "backoff_min", "backoff_max", "timeout", "throttle_interval"):
            value = getattr(self, name)
            if value is None and name in ("deadline", "timeout"):
                continue
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (is_number and 0 <= float(str(value)) < float("inf")):
                raise UnknownOptionError(f"{name}={value!r} is no number of seconds from 0 on")

    def pause(self, retry: int) -> float:
        """Give the seconds to wait before a retry; the first is number 0."""
        longest = min(self.backoff_min * 2.0 ** min(retry, 60), self.backoff_max)
        return longest * (1 + self.jitter()) / 2


class BatchSize:
    """How many points are committed at once: halved where that is too many, and regrown.

    Args:
        most: what it begins with, and never exceeds.
        least: what it is not halved below, unless `most` is.

    Attributes:
        points: the present size.

    Thread-safety: one thread at a time.
    """

    __slots__ = ("_least", "_most", "_successes", "points")

    def __init__(self, most: int, least: int) -> None:
        self._most = most
        self._least = min(least, most)
        self._successes = 0
        self.points = most

    def shrink(self, refused: int) -> int:
        """Remember that so many points were too many; give the size to try next."""
        self._successes = 0
        self.points = max(min((refused + 1) // 2, self.points), self._least)
        return self.points

    def grow(self, stored: int) -> None:
        """Remember that so many points were stored at once."""
        if stored < self.points or self.points == self._most:
            return
        self._successes += 1
        if self._successes == REGROW_AFTER:
            self._successes = 0
            self.points = min(2 * self.points, self._most)
