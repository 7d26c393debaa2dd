"""Faults on demand: a handler whose k-th call fails before, or after, it took effect.

    faults = FaultyHandler(engine, Fault("flush_buffer", at=3, when=When.AFTER))
    buffer = WriteBuffer(faults)

The third flush is committed and nevertheless fails, as when the reply of a server is lost:
what the buffer does next must not store anything twice. A fault may strike every k-th call
(`every`), stall (`stall`), or strike only what is about certain points (`about`).
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from tsengine.engine import WriteBufferHandler
from tsengine.errors import StorageError
from tsengine.model import (
    DataPoint,
    GroupedBatch,
    Labels,
    PointLike,
    ProducerMark,
    ValueKind,
    WriteReceipt,
)
from tsengine.retry import ErrorClass

_T = TypeVar("_T")

METHODS: Final = (
    "validate_point",
    "write_to_buffer",
    "write_batch_to_buffer",
    "flush_buffer",
    "discard_buffer",
    "forget_producer",
)
"""The calls that can be made to fail."""

STALL_MAX: Final = 30.0
"""Seconds after which a stalled call goes on by itself, so that no test hangs for good."""


class When(enum.Enum):
    """Whether a failing call took effect."""

    BEFORE = "before"
    AFTER = "after"
    """The call did its work, then failed: the outcome is unknown to the caller."""


@dataclass
class Fault:
    """A fault that strikes by countdown.

    Attributes:
        method: the call that fails, one of `METHODS`.
        at: which of its calls fails first, from 1.
        times: how many calls in a row fail.
        every: after so many calls it strikes again, and so on; None for once.
        about: counts and strikes only flushes of a point of which this is true, as of those
            of one series.
        when: whether the call takes effect.
        error: makes what is raised; None only stalls.
        stall: a call that is struck waits for this event first.
        calls: how often the method was called so far.
    """

    method: str
    at: int = 1
    times: int = 1
    every: int | None = None
    about: Callable[[DataPoint], bool] | None = None
    when: When = When.BEFORE
    error: Callable[[], BaseException] | None = field(
        default=lambda: StorageError("a fault on demand")
    )
    stall: threading.Event | None = None
    calls: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"{self.method!r} is none of {', '.join(METHODS)}")
        if self.every is not None and self.every < self.times:
            raise ValueError(f"every={self.every} is less than times={self.times}")
        if self.about is not None and self.method != "flush_buffer":
            raise ValueError(f"only flush_buffer is about points, not {self.method}")

    def strikes(self, points: Iterable[DataPoint] = ()) -> bool:
        """Count a call, which may be about points; whether it is one that fails."""
        if self.about is not None and not any(map(self.about, points)):
            return False
        self.calls += 1
        since = self.calls - self.at
        return since >= 0 and (since if self.every is None else since % self.every) < self.times


class FaultyHandler(WriteBufferHandler):
    """A handler that passes every call on, but for those that a fault strikes.

    Args:
        handler: does the work.
        faults: each counts the calls of its own method.

    Thread-safety: that of the handler; faults count under a lock.
    """

    def __init__(self, handler: WriteBufferHandler, *faults: Fault) -> None:
        self.handler = handler
        self.faults = list(faults)
        self.validates_every_point = handler.validates_every_point
        self.marks_producers = handler.marks_producers
        self._lock = threading.Lock()  # guards the counts of faults
        self._staged = threading.local()  # .points, of those faults that are about some

    @property
    def timestamp_min(self) -> int:
        """That of the handler."""
        return self.handler.timestamp_min

    @property
    def holds_only_floats(self) -> bool:
        """That of the handler, unless faults are to meet its validation."""
        return self.handler.holds_only_floats and not any(
            fault.method == "validate_point" for fault in self.faults
        )

    @property
    def staged_points(self) -> int:
        """That of the handler."""
        return self.handler.staged_points

    def error_class(self, error: Exception) -> ErrorClass:
        """That of the handler."""
        return self.handler.error_class(error)

    def validate_point(self, point: PointLike) -> DataPoint:
        """As the handler does, or a fault."""
        return self._do("validate_point", lambda: self.handler.validate_point(point))

    def series_kind(self, labels: Labels) -> ValueKind | None:
        """That of the handler."""
        return self.handler.series_kind(labels)

    def high_water(self, producer: str) -> ProducerMark | None:
        """That of the handler."""
        return self.handler.high_water(producer)

    def write_to_buffer(self, point: PointLike) -> None:
        """As the handler does, or a fault."""
        self._do("write_to_buffer", lambda: self.handler.write_to_buffer(point))
        if self._minds_points:
            self._points().append(DataPoint(*point))

    def write_batch_to_buffer(self, batch: GroupedBatch) -> None:
        """As the handler does, or a fault."""
        self._do("write_batch_to_buffer", lambda: self.handler.write_batch_to_buffer(batch))
        if self._minds_points:
            self._points().extend(point for one in batch.groups() for point in one.points())

    def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
        """As the handler does, or a fault; the staging is consumed in any case."""
        try:
            return self._do("flush_buffer", lambda: self.handler.flush_buffer(mark))
        finally:
            self._points().clear()
            self.handler.discard_buffer()

    def discard_buffer(self) -> None:
        """As the handler does, or a fault."""
        self._points().clear()
        self._do("discard_buffer", self.handler.discard_buffer)

    def forget_producer(self, producer: str) -> None:
        """As the handler does, or a fault."""
        self._do("forget_producer", lambda: self.handler.forget_producer(producer))

    @property
    def _minds_points(self) -> bool:
        return any(fault.about is not None for fault in self.faults)

    def _points(self) -> list[DataPoint]:
        """Give what this thread staged, as far as a fault minds."""
        if not hasattr(self._staged, "points"):
            self._staged.points = []
        points: list[DataPoint] = self._staged.points
        return points

    def _do(self, method: str, call: Callable[[], _T]) -> _T:
        with self._lock:
            points = self._points()
            struck = [
                fault for fault in self.faults if fault.method == method and fault.strikes(points)
            ]
        for fault in struck:
            if fault.stall is not None:
                fault.stall.wait(STALL_MAX)
        for fault in struck:
            if fault.error is not None and fault.when is When.BEFORE:
                raise fault.error()
        result = call()
        for fault in struck:
            if fault.error is not None:
                raise fault.error()
        return result
