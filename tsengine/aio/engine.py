"""Engine under asyncio: every call of a `tsengine.Engine`, made in one thread and awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import (
    AsyncGenerator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import partial
from typing import Any, Final, Generic, Self, TypeVar

from tsengine import registry
from tsengine.aggregation import Fill
from tsengine.aio.waiting_thread import WaitingThread, finish
from tsengine.engine import CompactReport, EngineStats
from tsengine.engine import Engine as SyncEngine
from tsengine.model import (
    DataPoint,
    DurationLike,
    GroupedBatch,
    Labels,
    PointLike,
    ProducerMark,
    SeriesBatch,
    TimestampLike,
    WriteReceipt,
)
from tsengine.result import QueryResult
from tsengine.selectors import SelectorLike
from tsengine.tables import POINTS_MAX, LabelColumns, ValueColumns

STEP_ROWS: Final = 4_096
"""Rows after which a step of a scan ends. A step costs some 0.1 ms to hand over; a store of
many short series would pay that for each."""

STEP_ITEMS: Final = 512
"""Batches, or labels, after which it ends as well: about a millisecond's worth."""

_S = TypeVar("_S")


class Engine:
    """The asyncio face of an engine.

    Its calls mean, take and raise what those of `tsengine.Engine` do. They run one after the
    other in a thread of its own; use several engines on one store where a long call must not
    delay others. Of a task that is cancelled, a read goes on in the thread and its result is
    dropped; a call that changes the store is not made where it had not begun, else waited for.

    Args:
        engine: the engine, open or not; it is this object's to close.

    Attributes:
        sync: the engine itself. Any thread may call it, as always.

    Thread-safety: for one event loop at a time.
    """

    def __init__(self, engine: SyncEngine) -> None:
        self.sync = engine
        self._thread = WaitingThread("tsengine-aio-engine", "engine")
        self._scans: set[_Steps[Any]] = set()  # begun and not ended; only its thread touches it

    # Life.

    async def open(self, *, timeout: float | None = 0.0) -> Self:  # noqa: ASYNC109  # the core's
        """Open the store; `aio.open` makes an engine that is open.

        Args:
            timeout: as `tsengine.Engine.open`. A cancellation ends the wait as well.
        """
        cancel = threading.Event()
        call = partial(self.sync.open, timeout=timeout, cancel=cancel)
        await self._thread.change(call, cancel)
        return self

    async def close(self) -> None:
        """Close the store after the calls that were made before; a second call does nothing.

        A cancellation is raised once it is closed. Scans that have not ended raise
        NotOpenError at their next step.

        Raises:
            UnsavedPointsError: as `tsengine.Engine.close`.
        """
        await self._thread.end(self._close)

    def _close(self) -> None:
        try:
            for steps in list(self._scans):
                steps.close()
        finally:
            self.sync.close()

    async def __aenter__(self) -> Self:
        try:
            await self._thread.change(self.sync.__enter__)
        except asyncio.CancelledError:
            await self.close()  # nobody else will
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<aio.Engine of {self.sync!r}>"

    # Writing.

    async def write(self, points: Iterable[PointLike]) -> WriteReceipt:
        """Store points, all in one atomic commit; see `tsengine.Engine.write`."""
        return await self._thread.change(partial(self.sync.write, list(points)))

    async def write_series(
        self, labels: Labels, timestamps: object, values: object
    ) -> WriteReceipt:
        """Store columns of one series; the caller leaves them alone until it returns."""
        return await self._thread.change(
            partial(self.sync.write_series, labels, timestamps, values)
        )

    async def write_batch(self, grouped: GroupedBatch) -> WriteReceipt:
        """Store columns of many series; the caller leaves them alone until it returns."""
        return await self._thread.change(partial(self.sync.write_batch, grouped))

    async def write_table(
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
        """Store the rows of a table, read in the thread; see `tsengine.Engine.write_table`."""
        call = partial(
            self.sync.write_table,
            table,
            time=time,
            labels=labels,
            values=values,
            shared_labels=shared_labels,
            skip_nan=skip_nan,
            points_max=points_max,
        )
        return await self._thread.change(call)

    async def delete(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> int:
        """Delete rows of matching series; see `tsengine.Engine.delete`."""
        return await self._thread.change(partial(self.sync.delete, selector, start, end))

    # Reading.

    async def query(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> QueryResult:
        """Give the rows of matching series, from one consistent snapshot."""
        return await self._thread.read(partial(self.sync.query, selector, start, end))

    def scan(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> AsyncGenerator[SeriesBatch, None]:
        """Iterate over the rows that `query` gives, in bounded memory.

        The scan begins, and bad arguments raise, at the first step. Between its steps the
        thread is free for others. A loop that is left early closes it at once by
        `contextlib.aclosing`, else when the event loop gets to it.

        Raises:
            NotOpenError: the engine is not open, or was closed before the scan had ended.
            Exception: as `tsengine.Engine.scan`.
        """
        return self._iterate(partial(self.sync.scan, selector, start, end), len)

    async def aggregate(
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
        """Reduce the rows of matching series in windows; see `tsengine.Engine.aggregate`."""
        call = partial(
            self.sync.aggregate,
            selector,
            start,
            end,
            functions=functions,
            every=every,
            group_by=group_by,
            origin=origin,
            fill=fill,
        )
        return await self._thread.read(call)

    async def earliest(self, selector: SelectorLike = None) -> list[DataPoint]:
        """Give the first point of each matching series that has rows, by series ID."""
        return await self._thread.read(partial(self.sync.earliest, selector))

    async def latest(self, selector: SelectorLike = None) -> list[DataPoint]:
        """Give the last point of each matching series that has rows, by series ID."""
        return await self._thread.read(partial(self.sync.latest, selector))

    async def count(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> int:
        """Count the rows of matching series in a range."""
        return await self._thread.read(partial(self.sync.count, selector, start, end))

    def series(self, selector: SelectorLike = None) -> AsyncGenerator[Labels, None]:
        """Iterate over the matching series, by series ID, step by step as `scan`."""
        return self._iterate(partial(self.sync.series, selector), lambda _: 0)

    async def label_names(self) -> list[str]:
        """Give the names of all labels of all series, sorted."""
        return await self._thread.read(self.sync.label_names)

    async def label_values(self, name: str) -> list[str]:
        """Give the values of one label over all series, sorted."""
        return await self._thread.read(partial(self.sync.label_values, name))

    async def stats(self) -> EngineStats:
        """Tell how much the store holds."""
        return await self._thread.read(self.sync.stats)

    async def high_water(self, producer: str) -> ProducerMark | None:
        """Give the highest mark committed by a producer, None where there is none."""
        return await self._thread.read(partial(self.sync.high_water, producer))

    async def retained_from(self) -> int:
        """Give the earliest timestamp that retention shows at this moment."""
        return await self._thread.read(self.sync.retained_from)

    # Upkeep.

    async def compact(self) -> CompactReport:
        """Fold what can be folded and give space back."""
        return await self._thread.change(self.sync.compact)

    async def snapshot(self, path: str) -> None:
        """Write a consistent copy of the store that opens by its own URL."""
        await self._thread.change(partial(self.sync.snapshot, path))

    async def check(self) -> None:
        """Read and verify everything."""
        await self._thread.read(self.sync.check)

    async def _iterate(
        self, begin: Callable[[], Iterator[_S]], rows: Callable[[_S], int]
    ) -> AsyncGenerator[_S, None]:
        steps = _Steps(begin, rows, self._scans)
        try:
            while True:
                items, failure = await self._thread.read(steps.take)
                for item in items:
                    yield item
                if failure is not None:
                    raise failure
                if not items:
                    return
        finally:
            # After a step that may be under way. Where the engine is closed, so are its scans.
            if not self._thread.is_ending:
                await finish(asyncio.wrap_future(self._thread.submit(steps.close)))


class _Steps(Generic[_S]):
    """An iterator that is consumed by many items at once, all in one thread.

    Args:
        begin: makes it.
        rows: how large an item is.
        begun: where it is noted until it is closed.
    """

    def __init__(
        self,
        begin: Callable[[], Iterator[_S]],
        rows: Callable[[_S], int],
        begun: set[_Steps[Any]],
    ) -> None:
        self._begin = begin
        self._rows = rows
        self._begun = begun
        self._iterator: Iterator[_S] | None = None

    def take(self) -> tuple[list[_S], Exception | None]:
        """Give the next items, none at the end, and what the iterator raised after them."""
        items: list[_S] = []
        rows = 0
        try:
            if self._iterator is None:
                self._iterator = self._begin()
                self._begun.add(self)
            for item in self._iterator:
                items.append(item)
                rows += self._rows(item)
                if rows >= STEP_ROWS or len(items) >= STEP_ITEMS:
                    break
        except Exception as error:  # noqa: BLE001  # raised when the items were given
            return items, error
        return items, None

    def close(self) -> None:
        """Close the iterator, where it can be."""
        self._begun.discard(self)
        if isinstance(self._iterator, Generator):
            self._iterator.close()


class open:  # noqa: N801  # used as the function of that name
    """Open a store: `engine = await open(url)`, or `async with open(url) as engine`.

    Args:
        url: as for `tsengine.open`.
        timeout: as for `tsengine.open`. A cancellation ends the wait as well.
        options: options of the backend, as Python values.

    Raises:
        Exception: as `tsengine.open`, when it is awaited or entered.
    """

    def __init__(self, url: str, *, timeout: float | None = 0.0, **options: object) -> None:
        self._cancel = threading.Event()
        self._call = partial(registry.open, url, timeout=timeout, cancel=self._cancel, **options)
        self._engine: Engine | None = None

    def __await__(self) -> Generator[Any, Any, Engine]:
        return self._open().__await__()

    async def __aenter__(self) -> Engine:
        self._engine = await self._open()
        return self._engine

    async def __aexit__(self, *_: object) -> None:
        if self._engine is not None:
            await self._engine.close()

    async def _open(self) -> Engine:
        thread = WaitingThread("tsengine-aio-open", "store")
        opened: list[SyncEngine] = []
        try:
            try:
                await thread.change(lambda: opened.append(self._call()), self._cancel)
            finally:
                await thread.end(lambda: None)
        except asyncio.CancelledError:
            if opened:
                await Engine(opened[0]).close()
            raise
        return Engine(opened[0])
