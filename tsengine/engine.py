"""Engine, what users call; beside it in `handler.py` what a buffer needs, `WriteBufferHandler`.

A backend implements the eight primitives of `Engine`, marked so in their docstrings; all
else is built on them here and may be overridden where a backend does better. The handler
half is implemented over the same primitives by staging per thread.
"""

from __future__ import annotations

import enum
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Self

from tsengine.aggregation import Aggregation, Fill, aggregate_batches, aggregation
from tsengine.errors import (
    ForkedError,
    InvalidDataError,
    NotOpenError,
    ReadOnlyError,
    StoreInUseError,
    StoreInUseTimeoutError,
    UnknownOptionError,
    UnsavedPointsError,
    UnsupportedError,
)
from tsengine.handler import WriteBufferHandler
from tsengine.model import (
    INT64_MAX,
    INT64_MIN,
    RANGE_END_MAX,
    DataPoint,
    DurationLike,
    ForwardClock,
    GroupedBatch,
    Labels,
    PointLike,
    ProducerMark,
    SeriesBatch,
    TimestampLike,
    ValueKind,
    WideBatch,
    WriteReceipt,
    check_label_text,
    check_producer,
    timestamp_range,
)
from tsengine.options import STORE_OPTIONS, Converter, StoreOptions, convert_options
from tsengine.reports import Capability, CompactReport, EngineStats
from tsengine.result import QueryResult, joined_series
from tsengine.selectors import Selector, SelectorLike, to_selector
from tsengine.staging import Staging, in_callers_order, judge_point, series_columns
from tsengine.tables import (
    POINTS_MAX,
    Batch,
    LabelColumns,
    ValueColumns,
    form_of,
    open_table,
    stage,
    write_table,
    write_wide,
)
from tsengine.waiting import Patience

__all__ = [
    "Capability",
    "CompactReport",
    "Engine",
    "EngineStats",
    "WriteBufferHandler",
    "is_unbounded",
]


class Engine(WriteBufferHandler):
    """A time-series store.

    Constructors do no I/O. `open()` or `with` opens, `close()` is idempotent and final.
    Every public call may be made by any thread. Ranges are `[start, end)`, None unbounded.

    Args:
        options: `duplicate_policy`, `retention`, `min_timestamp`, `future_max`,
            `integers`, `read_only`, each as in a URL or as a Python value.
        clock_ns: nanoseconds since the Unix epoch; injected by tests.

    Raises:
        UnknownOptionError: an option is unknown or makes no sense.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    option_converters: ClassVar[Mapping[str, Converter]] = STORE_OPTIONS
    """The options of this backend; a backend with more extends the mapping."""
    takes_encoded_location: ClassVar[bool] = False
    """Whether the location has parts of its own, and is taken from a URL still percent-encoded."""

    def __init__(
        self,
        location: str = "",
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        **options: object,
    ) -> None:
        converted = convert_options(options, self.option_converters)
        self.location = location
        self.read_only = bool(converted.pop("read_only", False))
        self._store_options_given = frozenset(converted) & frozenset(STORE_OPTIONS)
        self.options = StoreOptions(
            **{name: converted.pop(name) for name in self._store_options_given}  # type: ignore[arg-type]  # converted by STORE_OPTIONS
        )
        self.backend_options: Mapping[str, object] = converted
        if self.options.retention is not None:
            self.require(Capability.RETENTION)
        self._clock_ns = clock_ns
        self._forward_clock = ForwardClock(clock_ns)
        self._adopt_options(self.options)
        self._state = _State.NEW
        self._holds_store = False  # from open() until `_close` has returned
        self._pid = os.getpid()
        self._lifecycle_lock = threading.Lock()  # guards _state and what is added to _stagings
        self._thread = threading.local()  # .staging, what this thread staged
        self._stagings: set[Staging] = set()  # of all threads, so that close can count them
        self.marks_producers = Capability.PRODUCER_MARKS in self.capabilities

    # Primitives: what a backend implements.

    @abstractmethod
    def _open(self) -> None:
        """Primitive: open or create the store; may call `_adopt_options` with stored ones.

        Raises:
            StoreInUseError: somebody has the store who may give it back. It is raised at once
                and leaves nothing open: `open` waits, and calls again.
        """

    @abstractmethod
    def _close(self) -> None:
        """Primitive: give back what `_open` took; called again only where it raised."""

    @abstractmethod
    def _commit(self, batches: Sequence[GroupedBatch], mark: ProducerMark | None) -> WriteReceipt:
        """Primitive: store batches atomically, with a mark where the backend takes them.

        Args:
            batches: at most one per kind; each series once, its rows sorted by time with
                equal timestamps in order of writing; valid by the store's rules.
            mark: a repeated one makes the call a no-op.

        Returns:
            The receipt; its indices are rows over the batches one after the other.

        Raises:
            ValueKindError: a series holds another kind; indices as above. Policy errors
                likewise (`staging.merge_groups` raises both). Nothing is stored then.
        """

    def _commit_wide(self, batch: WideBatch) -> WriteReceipt:
        """Store series that share their timestamps, which strictly increase; as `_commit`.

        Overridden where a backend can sort, judge or encode a column of times once for all.
        """
        return self._commit([batch.grouped()], None)

    @abstractmethod
    def _kind(self, labels: Labels) -> ValueKind | None:
        """Primitive: give the kind of a series, None where it is not in the store."""

    @abstractmethod
    def _series(self, selector: Selector) -> Iterator[Labels]:
        """Primitive: iterate over the series that match, by series ID."""

    @abstractmethod
    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        """Primitive: iterate over the rows of matching series from one consistent snapshot.

        Series come by series ID, rows by time, one per timestamp. A long series may come
        in several batches; none is empty. Columns belong to the caller. The range is
        never empty.
        """

    @abstractmethod
    def _delete(self, selector: Selector, start: int, end: int) -> int:
        """Primitive: delete as described at `delete`; give the number of series."""

    @abstractmethod
    def _stats(self) -> EngineStats:
        """Primitive: tell how much the store holds."""

    # Life.

    def open(self, *, timeout: float | None = 0.0, cancel: threading.Event | None = None) -> Self:
        """Open the store, creating it where there is none.

        Args:
            timeout: seconds to wait while another process has the store open for writing; 0
                for not at all, None for as long as it takes.
            cancel: gives up waiting when it is set.

        Raises:
            NotOpenError: it was opened or closed before: an engine opens once.
            StorageError: the store cannot be opened.
            StoreInUseError: another process has it open for writing; after a `timeout` above 0
                a StoreInUseTimeoutError, which is a WaitTimeoutError too. Open may be tried again.
            CancelledError: `cancel` was set. Open may be tried again.
            StoreOptionError: it was created with other options.
        """
        patience = Patience(timeout, cancel)
        while True:
            with self._lifecycle_lock:  # not while it waits: close() may be called meanwhile
                if self._state is not _State.NEW:
                    raise NotOpenError(f"{self!r} was opened or closed before; make a new engine")
                self._pid = os.getpid()
                try:
                    self._open()
                except StoreInUseError as error:
                    refusal = error
                else:
                    self._holds_store = True
                    self._state = _State.OPEN
                    return self
            if patience.is_none:
                raise refusal
            if not patience.wait():
                raise StoreInUseTimeoutError(
                    f"{refusal}; waited for {timeout} seconds"
                ) from refusal

    def close(self) -> None:
        """Close the store, for good; a second call does nothing.

        Raises:
            UnsavedPointsError: points were staged and not flushed; the engine is closed
                nevertheless.
        """
        if self._pid != os.getpid():  # the store is the parent's, and so may be the lock
            self._state = _State.CLOSED
            return
        with self._lifecycle_lock:
            unsaved = sum(map(len, self._stagings.copy()))  # others discard meanwhile
            holds_store, self._holds_store = self._holds_store, False
            self._state = _State.CLOSED
            self._stagings.clear()
        if holds_store:
            try:
                self._close()
            except BaseException:
                self._holds_store = True  # a second call tries again
                raise
        if unsaved:
            raise UnsavedPointsError(
                f"closed with {unsaved} staged points; flush_buffer() stores them",
                count=unsaved,
            )

    def __enter__(self) -> Self:
        if self._state is _State.NEW:
            self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.location!r} {self._state.value}>"

    # Writing.

    def write(self, points: Iterable[PointLike]) -> WriteReceipt:
        """Store points, all in one atomic commit.

        Raises:
            InvalidDataError: some are not valid; nothing was stored, `indices` names them.
            StorageError: the commit failed.
        """
        staging = self._new_staging()
        staging.add_points(points)
        return self._commit_staging(staging, None)

    def write_series(self, labels: Labels, timestamps: object, values: object) -> WriteReceipt:
        """Store columns of one series in one atomic commit.

        Args:
            labels: which series.
            timestamps: [n], integers (nanoseconds), datetime64, or a sequence of what
                `tsengine.timestamp` takes; in any order.
            values: [n], float, integer or object array, or a sequence of values.

        Raises:
            InvalidDataError: as in `write`.
        """
        staging = self._new_staging()
        staging.add_batch(series_columns(labels, timestamps, values))
        return self._commit_staging(staging, None)

    def write_batch(self, grouped: GroupedBatch) -> WriteReceipt:
        """Store columns of many series in one atomic commit; indices are rows of the batch.

        Raises:
            InvalidDataError: as in `write`.
        """
        staging = self._new_staging()
        staging.add_batch(grouped)
        return self._commit_staging(staging, None)

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
        """Store the rows of a table: a frame, what offers Arrow's interfaces, or a mapping.

            engine.write_table(frame)                 # whatever QueryResult.to_…() gives
            engine.write_table(frame, time="when", labels=["room"], values="temperature")
            engine.write_table(frame, shared_labels={"host": "web-1"})  # a series per column

        In a **long** table, for which `values` is one column, each row is a point. In a **wide**
        one, with several, each cell is, and each column a series for each set of labels. What is
        not said is as `QueryResult` gives it: a table with a column `value` is long, and its
        other columns are labels; any other is wide, its columns named by series ID or metric.

        It goes in parts, each one atomic commit, of `points_max` points at most: at any size in
        bounded memory. A table of one part is stored as a whole or not at all.

        Args:
            table: a pandas or polars frame, whatever offers the Arrow interfaces (a stream is
                read once), or a mapping of names to arrays and lists.
            time: the column of times: timestamps of any unit and zone (without one: UTC),
                integer nanoseconds, or what `tsengine.timestamp` takes; in any order.
                `timestamp` where not given, or else the index of a frame where that holds times.
            labels: the columns of labels, text, null where a row has no such label; or a mapping
                of columns to labels. In a long table all other columns where not given, in a
                wide one none.
            values: the columns of values: one, for a long table; several, or a mapping of each
                to what its series are: a metric, a series ID, `Labels`, or a mapping of labels,
                to which come those of the row. A column is named like its metric or series ID
                where nothing else is said, but `value` says nothing.
            shared_labels: labels that all series have beside these.
            skip_nan: whether a NaN is no row, as frames often mean it; else it is stored. A null
                is no row in a wide table, and an error in a long one.
            points_max: most points of a commit; a long table takes 524,288 rows at most.

        Returns:
            The receipt. Its indices are rows of a long table; of a wide one cells, counted row by
            row over the columns of values.

        Raises:
            BatchShapeError: columns are missing, or serve two ends.
            InvalidDataError: some points are not valid; `indices` are rows of the table. Nothing
                was stored.
            StorageError: the commit failed.
            PartialWriteError: one of these, or the table's own error, came behind the first
                part, and the parts before it are stored.
            MissingDependencyError: what reads such a table is not installed.
        """
        self._check_writable()
        if points_max < 1:
            raise UnknownOptionError(f"points_max is at least 1, not {points_max!r}")
        opened = open_table(table)
        form = form_of(
            opened.columns,
            index=opened.index,
            time=time,
            labels=labels,
            values=values,
            shared_labels=shared_labels,
            skip_nan=skip_nan,
        )
        return write_table(self._write_batches, opened, form, points_max)

    def delete(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> int:
        """Delete the rows of matching series in a range, as an event in commit order.

        What is written later at the same timestamps is a first write. Without bounds the
        series themselves go, and their value kind is free again; with bounds they stay
        listed.

        Returns:
            The number of series that the selector resolved to; 0 for an empty range.

        Raises:
            InvalidQueryError: a bad selector or range.
        """
        self._check_writable()
        first, last = timestamp_range(start, end)
        resolved = to_selector(selector)
        return 0 if first == last else self._delete(resolved, first, last)

    # Reading.

    def query(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> QueryResult:
        """Give the rows of matching series, from one consistent snapshot.

        Returns:
            One `SeriesBatch` per series that has rows in the range, by series ID.

        Raises:
            InvalidQueryError: a bad selector or range.
        """
        self._check_open()
        first, last = timestamp_range(start, end)
        resolved = to_selector(selector)
        if first == last:
            return QueryResult([])
        return QueryResult(joined_series(self._scan(resolved, first, last)))

    def scan(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> Iterator[SeriesBatch]:
        """Iterate over the rows that `query` gives, in bounded memory.

        Series come by series ID, rows by time; a long series comes in several batches.
        All come from the snapshot taken when the iteration starts. Closing the iterator
        gives the snapshot back early.

        Raises:
            InvalidQueryError: a bad selector or range.
            SnapshotExpiredError: the iteration took longer than the backend keeps it.
        """
        self._check_open()
        first, last = timestamp_range(start, end)
        resolved = to_selector(selector)
        return iter(()) if first == last else self._scan(resolved, first, last)

    def scan_groups(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> Iterator[SeriesBatch | GroupedBatch]:
        """Iterate over the rows that `scan` gives, in its order, short series many at once.

        A batch of each series costs microseconds. A backend that reads many at once anyway
        overrides this; here it is `scan`.

        Raises:
            InvalidQueryError, SnapshotExpiredError: as in `scan`.
        """
        yield from self.scan(selector, start, end)

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
        """Reduce the rows of matching series in windows of time, from one consistent snapshot.

            engine.aggregate("cpu_usage", start, end, functions=["mean", "quantile(0.99)"],
                             every="5m", group_by=["region"])

        - `count`: rows, int64. `first`, `last`: the value of the first or last row. These three
          alone are for objects, too, and to them NaN is a value; the others leave NaN out and
          give NaN where no number is left.
        - `sum`, `min`, `max`, `range` (max − min): float64, or of int series int64 and exact.
          Float sums are compensated between blocks, pairwise inside.
        - `mean`, `median`, `quantile(q)` with q from 0 to 1, linear between neighbours: float64.
        - `variance`, `stddev`: of a sample (n − 1), float64; NaN for one number.
        - `delta` (last − first), `increase` (the same, with what a counter had before each
          fall, which is a reset to 0, added), `rate` (increase a second between first and last
          row; NaN for one row): float64. Of the rows in the window alone: nothing is
          extrapolated. In a group of several series each is taken by itself, and they add up.

        Args:
            selector: which series.
            start: earliest timestamp; None for no bound.
            end: one past the latest timestamp; None for no bound.
            functions: names, each once, at least one.
            every: length of the windows, a `timedelta` or text like `"5m"`; None for one
                window, the whole range. Only rows of the range count, so that windows at its
                ends may be parts.
            group_by: names of labels: series that have the same values of all of them, or
                lack them alike, are merged. `[]` merges all, None none.
            origin: a moment at which a window begins; the epoch where not given.
            fill: what stands in windows without rows: `"none"` leaves them out, `"null"` gives
                NaN (None for objects), `"previous"` the value before, `"linear"` what lies on
                the line between neighbours (NaN where there is no value, or no neighbour, for
                these two), a number itself. The windows go from that of `start` to that of
                `end`, without bounds from the group's first with rows to its last. A `count` is 0
                there in any case. Int columns become float64 under the three words, and under
                a number that is no integer.

        Returns:
            One `SeriesBatch` per group and function, by series ID, of groups that have rows.
            Timestamps are those at which windows begin (where that is before the first
            int64, the first int64); without `every` there is one, `start` or else that of the
            group's first row. Labels are those of the series, or those in `group_by`; of
            several functions each has its name in the label `__function__` as well. Int and
            float series in one group give float64.

        Raises:
            InvalidQueryError: a bad selector or range.
            AggregationError: a function, `every`, `group_by`, `origin` or `fill` makes no sense;
                a function is not for objects; a group has objects and numbers; an int64 sum or
                range does not fit; more than 2²⁴ windows were to be filled; or labels cannot
                take `__function__`.
            SnapshotExpiredError: it took longer than the backend keeps the snapshot.
        """
        self._check_open()
        first, last = timestamp_range(start, end)
        resolved = to_selector(selector)
        asked = aggregation(
            functions, first, last, every=every, group_by=group_by, origin=origin, fill=fill
        )
        return QueryResult(()) if first == last else self._aggregate(resolved, asked)

    def earliest(self, selector: SelectorLike = None) -> list[DataPoint]:
        """Give the first point of each matching series that has rows, by series ID."""
        return self._edge_points(selector, 0)

    def latest(self, selector: SelectorLike = None) -> list[DataPoint]:
        """Give the last point of each matching series that has rows, by series ID."""
        return self._edge_points(selector, -1)

    def count(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> int:
        """Count the rows of matching series in a range."""
        return sum(map(len, self.scan(selector, start, end)))

    def series(self, selector: SelectorLike = None) -> Iterator[Labels]:
        """Iterate over the matching series, by series ID, with rows or without."""
        self._check_open()
        return self._series(to_selector(selector))

    def label_names(self) -> list[str]:
        """Give the names of all labels of all series, sorted."""
        return sorted({name for labels in self.series() for name in labels})

    def label_values(self, name: str) -> list[str]:
        """Give the values of one label over all series, sorted.

        Raises:
            LabelsError: no label can have that name.
        """
        check_label_text(name, "name")
        return sorted({labels[name] for labels in self.series() if name in labels})

    # Upkeep.

    def compact(self) -> CompactReport:
        """Fold what can be folded and give space back."""
        self._check_writable()
        size = self._stats().bytes
        return CompactReport(size, size, "this backend has nothing to compact")

    def snapshot(self, path: str) -> None:
        """Write a consistent copy of the store that opens by its own URL.

        Raises:
            UnsupportedError: the backend does not declare `SNAPSHOT_FILES`.
            StorePathError: the path exists or cannot be written.
        """
        self._check_open()
        self.require(Capability.SNAPSHOT_FILES)
        raise NotImplementedError

    def check(self) -> None:
        """Read and verify everything.

        Backends that keep files may offer this before `open` as well, for files that are not
        trusted.

        Raises:
            CorruptionError: names the first place found damaged.
            NotOpenError: the engine is not open, and this backend checks only open ones.
        """
        for _ in self.scan():
            pass

    def stats(self) -> EngineStats:
        """Tell how much the store holds."""
        self._check_open()
        return self._stats()

    def retained_from(self) -> int:
        """Give the earliest timestamp that retention shows at this moment, INT64_MIN for all.

        What a read that began earlier has shown of before that may be incomplete.
        """
        self._check_open()
        if self.options.retention is None:
            return INT64_MIN
        horizon = self._forward_clock() - self.options.retention
        return min(max(horizon, INT64_MIN), INT64_MAX)

    def changed_since(self, moment: object) -> tuple[object, list[tuple[int, int]] | None]:
        """Tell in which ranges of time rows may have changed since a moment.

        Args:
            moment: what an earlier call to this very engine gave; None for none.

        Returns:
            The moment of this call, and ranges `[start, end)` that cover all that was written or
            deleted since the other; None where that is not known, as by default it never is.
        """
        self._check_open()
        return None, None

    def high_water(self, producer: str) -> ProducerMark | None:
        """Give the highest mark committed by a producer, None where there is none.

        Raises:
            InvalidDataError: no producer can have that name.
            UnsupportedError: the backend does not declare `PRODUCER_MARKS`.
        """
        self._check_open()
        self.require(Capability.PRODUCER_MARKS)
        raise NotImplementedError

    # The handler half, over staging per thread.

    @property
    def timestamp_min(self) -> int:
        """The earliest timestamp that is valid, nanoseconds."""
        return self.rules.min_timestamp

    def validate_point(self, point: PointLike) -> DataPoint:
        """Judge a point, as `WriteBufferHandler` says."""
        self._check_writable()
        policy = self.options.duplicate_policy
        return DataPoint(*judge_point(point, self.rules, policy, self._kind))

    def series_kind(self, labels: Labels) -> ValueKind | None:
        """Give the kind of a stored series, as `WriteBufferHandler` says."""
        self._check_open()
        return self._kind(labels)

    def write_to_buffer(self, point: PointLike) -> None:
        """Stage one point for this thread, as `WriteBufferHandler` says."""
        self._staging().add_point(point)

    def write_batch_to_buffer(self, batch: GroupedBatch) -> None:
        """Stage a batch for this thread, as `WriteBufferHandler` says.

        The arrays may be referred to until the flush; the caller leaves them alone so long.
        """
        self._staging().add_batch(batch)

    def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
        """Commit what this thread staged, as `WriteBufferHandler` says."""
        staging = self._take_staging()  # first, as it is consumed whatever happens
        if mark is not None:
            self.require(Capability.PRODUCER_MARKS)
            check_producer(mark.producer)
        self._check_open()
        if staging is None:
            self._check_writable()
            return WriteReceipt(0, 0)
        return self._commit_staging(staging, mark)

    def discard_buffer(self) -> None:
        """Forget what this thread staged."""
        self._take_staging()

    @property
    def staged_points(self) -> int:
        """How many points the calling thread has staged."""
        staging: Staging | None = getattr(self._thread, "staging", None)
        return 0 if staging is None else len(staging)

    # For backends.

    def shares_store(self, other: Engine) -> bool:
        """Whether what one of the two writes is what the other reads.

        A backend whose engines may share a store within a process overrides this.
        """
        return self is other

    def require(self, capability: Capability) -> None:
        """Raise UnsupportedError where the backend does not declare a capability."""
        if capability not in self.capabilities:
            raise UnsupportedError(f"{type(self).__name__} does not support {capability.value}")

    def _adopt_options(self, options: StoreOptions) -> None:
        """Go by these options: those given, or those the store was created with.

        Raises:
            StoreOptionError: an option was given and differs.
        """
        options.check_agreement(self.options, self._store_options_given, repr(self.location))
        self.options = options
        self.rules = options.rules(self._clock_ns)
        self.validates_every_point = options.future_max is not None

    @property
    def _is_new(self) -> bool:
        """Whether the engine was not opened yet."""
        return self._state is _State.NEW

    def _check_open(self) -> None:
        if self._state is not _State.OPEN:
            raise NotOpenError(f"{self!r} is not open")
        if self._pid != os.getpid():
            raise ForkedError(f"{self!r} was opened before a fork; open the store anew here")

    def _check_writable(self) -> None:
        self._check_open()
        if self.read_only:
            raise ReadOnlyError(f"{self!r} was opened with read_only=True")

    def _new_staging(self) -> Staging:
        self._check_writable()
        return Staging(self.rules, self.options.duplicate_policy, self._kind)

    def _staging(self) -> Staging:
        """Give this thread's staging."""
        self._check_writable()
        staging: Staging | None = getattr(self._thread, "staging", None)
        if staging is None:
            staging = self._new_staging()
            with self._lifecycle_lock:
                self._check_open()  # a close between the two would not count it
                self._stagings.add(staging)
            self._thread.staging = staging
        return staging

    def _take_staging(self) -> Staging | None:
        """Take this thread's staging away from it."""
        # Without a lock, which may need memory that is not there: to be rid of a staging must
        # always work. A set discards in one step.
        staging: Staging | None = getattr(self._thread, "staging", None)
        self._thread.staging = None
        self._stagings.discard(staging)
        return staging

    def _commit_staging(self, staging: Staging, mark: ProducerMark | None) -> WriteReceipt:
        self._check_writable()
        batches, positions = staging.batches()
        if not batches:
            return WriteReceipt(0, 0)
        try:
            return in_callers_order(self._commit(batches, mark), positions)
        except InvalidDataError as error:
            if positions is not None:
                error.indices = tuple(sorted(positions[list(error.indices)].tolist()))
            raise

    def _write_batches(self, batches: Sequence[Batch]) -> WriteReceipt:
        """Store batches in one commit; indices are points over them in their order."""
        if len(batches) == 1 and isinstance(batches[0], WideBatch):
            self._check_writable()
            receipt = write_wide(batches[0], self.rules, self._commit_wide)
            if receipt is not None:
                return receipt
        staging = self._new_staging()
        stage(staging, batches)
        return self._commit_staging(staging, None)

    def _aggregate(self, selector: Selector, asked: Aggregation) -> QueryResult:
        """Aggregate over the scan; a backend may do better. The range is never empty."""
        return aggregate_batches(self._scan(selector, asked.start, asked.end), asked)

    def _edge_points(self, selector: SelectorLike, row: int) -> list[DataPoint]:
        points: dict[Labels, DataPoint] = {}
        for batch in self.scan(selector):
            if row == 0 and batch.labels in points:
                continue
            points[batch.labels] = DataPoint(
                batch.labels, int(batch.timestamps[row]), batch.values.tolist()[row]
            )
        return list(points.values())


class _State(enum.Enum):
    NEW = "new"
    OPEN = "open"
    CLOSED = "closed"


def is_unbounded(start: int, end: int) -> bool:
    """Whether a resolved range leaves nothing out."""
    return start == INT64_MIN and end == RANGE_END_MAX
