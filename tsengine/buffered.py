"""BufferedEngine: an engine that batches small writes, and reads as if it did not.

It wraps: the engine behind knows nothing of it, and is asked by the calls that anybody could
make, so that whatever a backend answers better than by the defaults of `Engine` is answered so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypedDict, Unpack

from tsengine.aggregation import Fill
from tsengine.buffer import WriteBuffer
from tsengine.buffering.outbox import OnReject
from tsengine.engine import CompactReport, Engine, EngineStats
from tsengine.errors import NotOpenError, UnsavedPointsError
from tsengine.model import (
    DataPoint,
    DurationLike,
    GroupedBatch,
    Labels,
    PointLike,
    ProducerMark,
    SeriesBatch,
    TimestampLike,
    ValueKind,
    WriteReceipt,
)
from tsengine.result import QueryResult
from tsengine.retry import ErrorClass, RetryPolicy
from tsengine.selectors import Selector, SelectorLike
from tsengine.tables import POINTS_MAX, LabelColumns, ValueColumns


class BufferOptions(TypedDict, total=False):
    """The options of `WriteBuffer`, where they mean what its docstring says."""

    points_max: int
    age_max: float | None
    pending_max: int | None
    on_full: Literal["block", "raise"]
    full_timeout: float | None
    background: bool
    producer: str | None
    retry: RetryPolicy | None
    on_reject: OnReject | None
    clock: Callable[[], float]


class BufferedEngine(Engine):
    """An engine and a buffer in front of it, which every call sees through.

        with tsengine.BufferedEngine(tsengine.open("lmdb://metrics"), age_max=5) as engine:
            engine.buffer.write(point)  # committed with others, by size or age
            engine.latest()             # or here: it flushes first, and has the point

    What is written to `buffer` is batched. Every read, write, delete and upkeep of this engine
    flushes the buffer first, in the calling thread unless that is the background's, and then
    does the same on `engine`: it sees all that was written to the buffer before it began, and
    comes after it. Iterators flush at the call. Of the handler half only `flush_buffer` flushes,
    and whatever judges a point of a series that is not stored yet, whose kind may be pending;
    marks and staged points are seen as they are.

    Where that flush fails the call raises its error and does nothing else. The points stay
    pending, or are in the RejectedPointsError that is raised for them once; `buffer` says what
    is to be done. To ask or to delete without it, turn to `engine`.

    Capabilities, options, location and clock are those of the engine.

    Args:
        engine: where to store, of any kind. It is opened where it is new, else taken as it is,
            and closed with this one.
        options: of the buffer, which is made when this engine opens.

    Attributes:
        engine: the engine behind, which does not see what is pending.

    Raises:
        UnknownOptionError, InvalidDataError, ConfigurationError: at `open`, as by `WriteBuffer`.
    """

    def __init__(self, engine: Engine, **options: Unpack[BufferOptions]) -> None:
        super().__init__(engine.location, clock_ns=engine._clock_ns)
        self.engine = engine
        self.capabilities = engine.capabilities  # type: ignore[misc]  # of a class elsewhere
        self.marks_producers = engine.marks_producers
        self.read_only = engine.read_only
        self.backend_options = engine.backend_options
        self._adopt_options(engine.options)
        self._buffer_options = options
        self._buffer: WriteBuffer | None = None

    @property
    def buffer(self) -> WriteBuffer:
        """The buffer, to write to; after `close` it still gives pending points back.

        Raises:
            NotOpenError: the engine was not opened yet.
        """
        if self._buffer is None:
            raise NotOpenError(f"{self!r} is not open")
        return self._buffer

    def _flushed(self) -> Engine:
        """Give the engine behind once all is in it that is pending now."""
        self._check_open()
        if self.buffer.pending:  # a buffer that was closed is in nobody's way when it is empty
            self.buffer.flush()
        return self.engine

    # Life.

    def _open(self) -> None:
        is_ours = self.engine._is_new
        if is_ours:
            self.engine.open()
        else:
            self.engine._check_open()
        try:
            self._adopt_options(self.engine.options)
            self._buffer = WriteBuffer(self.engine, **self._buffer_options)
        except BaseException:
            if is_ours:
                self.engine.close()
            raise

    def _close(self) -> None:
        self.buffer.close()  # once more: it may have been opened while `close` began

    def close(self) -> None:
        """Close the buffer, which commits what is pending, then the engine; for good.

        Raises:
            UnsavedPointsError: points were still pending or staged, here or on the engine
                behind. All is closed nevertheless; `buffer.take_pending()` gives the pending
                ones back.
        """
        closes = [super().close, self.engine.close]
        if self._buffer is not None:
            closes.insert(0, self._buffer.close)
        failures: list[Exception] = []
        for close in closes:
            try:
                close()
            except Exception as error:  # noqa: BLE001  # raised below
                failures.append(error)
        count = sum(error.count for error in failures if isinstance(error, UnsavedPointsError))
        if len(failures) > 1 and count:
            text = "; ".join(map(str, failures))
            raise UnsavedPointsError(text, count=count) from ExceptionGroup("close", failures)
        if len(failures) > 1:
            raise ExceptionGroup("neither buffer nor engine closed well", failures)
        if failures:
            raise failures[0]

    # Primitives.

    def _commit(self, batches: Sequence[GroupedBatch], mark: ProducerMark | None) -> WriteReceipt:
        # Staged here and committed there: what this thread has staged on the engine itself, as
        # the buffer does for each of its commits, is another matter.
        return self._flushed()._commit(batches, mark)

    def _kind(self, labels: Labels) -> ValueKind | None:
        return self.engine.series_kind(labels) or self._flushed().series_kind(labels)

    def _series(self, selector: Selector) -> Iterator[Labels]:
        return self._flushed().series(selector)

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        return self._flushed().scan(selector, start, end)

    def _delete(self, selector: Selector, start: int, end: int) -> int:
        return self._flushed().delete(selector, start, end)

    def _stats(self) -> EngineStats:
        return self._flushed().stats()

    # What the engine behind may answer better than by its primitives.

    def write(self, points: Iterable[PointLike]) -> WriteReceipt:
        return self._flushed().write(points)

    def write_series(self, labels: Labels, timestamps: object, values: object) -> WriteReceipt:
        return self._flushed().write_series(labels, timestamps, values)

    def write_batch(self, grouped: GroupedBatch) -> WriteReceipt:
        return self._flushed().write_batch(grouped)

    def write_table(
        self,
        table: object,
        *,
        time: str | None = None,
        labels: LabelColumns | None = None,
        values: ValueColumns | None = None,
        shared_labels: Mapping[str, str] | None = None,
        skip_nan: bool = False,
        points_max: int = POINTS_MAX,
    ) -> WriteReceipt:
        return self._flushed().write_table(
            table,
            time=time,
            labels=labels,
            values=values,
            shared_labels=shared_labels,
            skip_nan=skip_nan,
            points_max=points_max,
        )

    def query(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> QueryResult:
        return self._flushed().query(selector, start, end)

    def scan_groups(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> Iterator[SeriesBatch | GroupedBatch]:
        return self._flushed().scan_groups(selector, start, end)

    def aggregate(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
        *,
        functions: Sequence[str],
        every: DurationLike | None = None,
        group_by: Sequence[str] | None = None,
        origin: TimestampLike | None = None,
        fill: Fill = "none",
    ) -> QueryResult:
        return self._flushed().aggregate(
            selector,
            start,
            end,
            functions=functions,
            every=every,
            group_by=group_by,
            origin=origin,
            fill=fill,
        )

    def shares_store(self, other: Engine) -> bool:
        return self.engine.shares_store(other.engine if isinstance(other, type(self)) else other)

    def retained_from(self) -> int:
        self._check_open()
        return self.engine.retained_from()

    def changed_since(self, moment: object) -> tuple[object, list[tuple[int, int]] | None]:
        return self._flushed().changed_since(moment)

    def earliest(self, selector: SelectorLike = None) -> list[DataPoint]:
        return self._flushed().earliest(selector)

    def latest(self, selector: SelectorLike = None) -> list[DataPoint]:
        return self._flushed().latest(selector)

    def count(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> int:
        return self._flushed().count(selector, start, end)

    def label_names(self) -> list[str]:
        return self._flushed().label_names()

    def label_values(self, name: str) -> list[str]:
        return self._flushed().label_values(name)

    def compact(self) -> CompactReport:
        return self._flushed().compact()

    def snapshot(self, path: str) -> None:
        self._flushed().snapshot(path)

    def check(self) -> None:
        """Verify as the engine behind does, before `open` too where that one can."""
        (self.engine if self._is_new else self._flushed()).check()

    # The handler half.

    @property
    def holds_only_floats(self) -> bool:
        return not self.buffer.pending and self.engine.holds_only_floats

    def error_class(self, error: Exception) -> ErrorClass:
        return self.engine.error_class(error)

    def high_water(self, producer: str) -> ProducerMark | None:
        self._check_open()
        return self.engine.high_water(producer)

    def forget_producer(self, producer: str) -> None:
        self._check_writable()
        self.engine.forget_producer(producer)
