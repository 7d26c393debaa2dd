"""A handler that keeps what it is given, and threads that switch all the time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Self

from tsengine.engine import WriteBufferHandler
from tsengine.errors import StorageError
from tsengine.model import (
    DataPoint,
    GroupedBatch,
    Labels,
    PointLike,
    PointRules,
    ProducerMark,
    Value,
    ValueKind,
    WriteReceipt,
    fit_value,
)
from tsengine.retry import RetryPolicy

A, B, C = (Labels("cpu", host=host) for host in "abc")

Plan = Callable[[], None]

AT_ONCE = RetryPolicy(max_retries=0)
"""Raises what an attempt fails with, as a policy does whose retries are used up."""


class Recorder(WriteBufferHandler):
    """A handler that keeps what it is given, under marks; the smallest that is exact.

    Attributes:
        commits: the batches of each commit that took effect.
        marks: the mark of each flush, whether or not it took effect.
        when_asked: called when the handler is asked about a point.
        before, after: called in each flush before and after it takes effect; may raise.
        refuses: whether a value is refused by a cap.
    """

    marks_producers = True

    def __init__(self, *, marks_producers: bool = True) -> None:
        self.marks_producers = marks_producers
        self.commits: list[list[GroupedBatch]] = []
        self.marks: list[ProducerMark | None] = []
        self.stored: list[DataPoint] = []
        self.forgotten: list[str] = []
        self.when_asked: Plan = lambda: None
        self.before: Plan = lambda: None
        self.after: Plan = lambda: None
        self.refuses: Callable[[Value], bool] = lambda value: False
        self._staged = threading.local()
        self._lock = threading.Lock()  # makes a commit atomic
        self._high: dict[str, ProducerMark] = {}
        self._kinds: dict[Labels, ValueKind] = {}

    @property
    def timestamp_min(self) -> int:
        """The rule of a store without options."""
        return 1

    def validate_point(self, point: PointLike) -> DataPoint:
        """Judge as a store does that knows what was committed."""
        self.when_asked()
        rules = PointRules()
        labels, moment, value = point
        rules.check_labels(labels)
        return DataPoint(
            labels, rules.check_timestamp(moment), fit_value(value, self._kinds.get(labels))[1]
        )

    def series_kind(self, labels: Labels) -> ValueKind | None:
        """Give the kind by what was committed."""
        return self._kinds.get(labels)

    def write_to_buffer(self, point: PointLike) -> None:
        """Not what a buffer should call where there is a better way."""
        raise AssertionError("a buffer stages batches")

    def write_batch_to_buffer(self, batch: GroupedBatch) -> None:
        """Stage for this thread."""
        self.staged.append(batch)

    @property
    def staged(self) -> list[GroupedBatch]:
        """What this thread staged."""
        if not hasattr(self._staged, "batches"):
            self._staged.batches = []
        staged: list[GroupedBatch] = self._staged.batches
        return staged

    def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
        """Commit, unless the mark was there before."""
        batches, self._staged.batches = self.staged, []
        self.marks.append(mark)
        self.before()
        points = [point for batch in batches for one in batch.groups() for point in one.points()]
        with self._lock:
            high = None if mark is None else self._high.get(mark.producer)
            if mark is not None and (high is None or high < mark):
                self._high[mark.producer] = mark
                high = None
            if high is None:
                self.commits.append(batches)
                self.stored += points
                self._kinds.update((point.labels, _kind(point.value)) for point in points)
        self.after()
        refused = [row for row, point in enumerate(points) if self.refuses(point.value)]
        reasons = {"cap": len(refused)} if refused else {}
        count = len(points)
        return WriteReceipt(count, count - len(refused), len(refused), 0, reasons, tuple(refused))

    def discard_buffer(self) -> None:
        """Forget what this thread staged."""
        self._staged.batches = []

    def high_water(self, producer: str) -> ProducerMark | None:
        """Give the highest mark."""
        return self._high.get(producer)

    def forget_producer(self, producer: str) -> None:
        """Drop the mark."""
        self.forgotten.append(producer)
        self._high.pop(producer, None)

    def of(self, labels: Labels) -> list[DataPoint]:
        """What was stored of a series, in order of commits."""
        return [point for point in self.stored if point.labels is labels]


def _kind(value: Value) -> ValueKind:
    return fit_value(value, integers=ValueKind.INT)[0]


def failing(times: int, error: Callable[[], BaseException] = lambda: StorageError("no")) -> Plan:
    """Make a plan that fails so many times, then no more."""
    left = [times]

    def plan() -> None:
        if left[0]:
            left[0] -= 1
            raise error()

    return plan


def points(count: int, labels: Labels = A, start: int = 1) -> list[DataPoint]:
    """Make points with the values 0.0, 1.0, … at successive timestamps."""
    return [DataPoint(labels, start + number, float(number)) for number in range(count)]


class Switching:
    """Has the interpreter switch threads as often as it can."""

    def __enter__(self) -> Self:
        self.interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setswitchinterval(self.interval)


def run_threads(work: Callable[[int], None], count: int) -> None:
    """Run threads, and raise what one of them raised."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001  # raised below, in the test's thread
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    with Switching():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]
