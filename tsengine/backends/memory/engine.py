"""MemoryEngine: the store in memory, behind the interface of all engines."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Final

import numpy as np

from tsengine.backends.memory.commit import Commit, packed
from tsengine.backends.memory.snapshot_file import StoreHead, write_snapshot
from tsengine.backends.memory.snapshot_reader import read_snapshot
from tsengine.backends.memory.store import Store, View
from tsengine.engine import Capability, CompactReport, Engine, EngineStats, is_unbounded
from tsengine.errors import CorruptionError, StorageError
from tsengine.model import (
    INT64_MAX,
    INT64_MIN,
    RANGE_END_MAX,
    DataPoint,
    GroupedBatch,
    Labels,
    ProducerMark,
    SeriesBatch,
    TimestampLike,
    ValueKind,
    WriteReceipt,
    check_label_text,
    check_producer,
    timestamp_range,
)
from tsengine.options import STORE_OPTIONS, StoreOptions, optional, positive_integer
from tsengine.result import QueryResult
from tsengine.selectors import Selector, SelectorLike, to_selector

_SCAN_ROWS: Final = 65_536
"""Most rows of one batch of a scan: a megabyte, which bounds what a scan takes."""

_SWEEPS: Final = 16
"""Sweeps of the whole store in the time of a retention: at most a sixteenth of what is
stored has expired, and a sweep costs each series some nanoseconds."""


class MemoryEngine(Engine):
    """A store in the memory of this process, for tests, caches and short histories.

    Args:
        location: empty for an empty store; the path of a file that `snapshot` wrote, to
            begin with what it holds. The file is read at open and never written.
        max_points_per_series: the newest distinct timestamps that a series keeps. A point
            too old for a full series is refused; overwriting evicts nothing.
        max_points: the newest rows that the store keeps, of one time those of the
            greatest series IDs.
        options: as of every engine. A snapshot keeps those of the store; caps hold for
            one engine, and cut what a snapshot has beyond them at open.

    Thread-safety: any number of threads. Commits, deletes and the beginnings of reads take
    turns; rows are copied to readers while writers go on.
    """

    capabilities: ClassVar = frozenset(
        {
            Capability.CAP,
            Capability.RETENTION,
            Capability.PRODUCER_MARKS,
            Capability.SNAPSHOT_FILES,
        }
    )
    option_converters: ClassVar = {
        **STORE_OPTIONS,
        "max_points_per_series": optional(positive_integer),
        "max_points": optional(positive_integer),
    }

    def __init__(
        self,
        location: str = "",
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        **options: object,
    ) -> None:
        super().__init__(location, clock_ns=clock_ns, **options)
        # Guards all that follows, and is held for the whole of a commit or delete, but by
        # reads only until their windows are pinned. Never while rows are copied to
        # readers or written to a file.
        self._lock = threading.Lock()
        self._store = self._new_store()
        self._marks: dict[str, tuple[ProducerMark, WriteReceipt]] = {}
        self._last_write_ns: int | None = None
        self._now_ns = INT64_MIN  # the latest that the clock ever said
        self._swept_ns = INT64_MIN  # the horizon of the last sweep
        self._is_torn = False

    # Primitives.

    def _open(self) -> None:
        if self.location:
            self._restore()

    def _close(self) -> None:
        with self._lock:  # a commit on its way ends first
            self._store = self._new_store()
            self._marks = {}

    def _commit(self, batches: Sequence[GroupedBatch], mark: ProducerMark | None) -> WriteReceipt:
        batches = [packed(batch) for batch in batches]
        with self._lock:
            self._check_open()
            if mark is not None and mark.producer in self._marks:
                highest, receipt = self._marks[mark.producer]
                if mark[1:] <= highest[1:]:
                    submitted = sum(map(len, batches))
                    is_last = mark == highest and submitted == receipt.submitted
                    return receipt if is_last else WriteReceipt(submitted, submitted)
            now_ns = self._read_clock()
            horizon = self._horizon(now_ns)
            commit = Commit(self._store, horizon)
            commit.judge(batches)
            try:
                with self._changing(MemoryError):
                    commit.make_room()
                with self._changing():
                    receipt = commit.apply()
                    if receipt.accepted:
                        self._last_write_ns = now_ns
                    if mark is not None:
                        self._marks[mark.producer] = mark, receipt
            except BaseException:
                self._store.catalogue.doubt_free()  # new series may have slots and not be listed
                raise
            self._tidy(horizon)
            return receipt

    def _kind(self, labels: Labels) -> ValueKind | None:
        with self._lock:
            return self._store.kind(labels)

    def _series(self, selector: Selector) -> Iterator[Labels]:
        with self._lock:
            self._check_open()
            catalogue = self._store.catalogue
            return iter(catalogue.labels_of(catalogue.resolve(selector)))

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        with self._view(selector, start, end) as view:
            yield from view.batches(_SCAN_ROWS)

    def _delete(self, selector: Selector, start: int, end: int) -> int:
        with self._lock:
            self._check_open()
            slots = self._store.catalogue.resolve(selector)
            with self._changing():
                if is_unbounded(start, end):
                    self._store.remove(slots)
                else:
                    self._store.delete(slots, start, end)
            self._tidy(INT64_MIN)
            return len(slots)

    def _stats(self) -> EngineStats:
        with self._lock:
            self._check_open()
            store = self._store
            with self._changing():
                store.drop_before(self._horizon())
            points, series, columns = store.points, len(store.catalogue), store.bytes
            last_write_ns = self._last_write_ns
            objects = store.view(store.rings[ValueKind.OBJECT].filled(), INT64_MIN, RANGE_END_MAX)
        with objects:
            packed = sum(len(one) for _, _, _, values in objects.columns() for one in values)
        return EngineStats(points, True, series, columns + packed, last_write_ns)

    # What can be done better here than by the primitives.

    def query(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> QueryResult:
        self._check_open()
        first, last = timestamp_range(start, end)
        with self._view(to_selector(selector), first, last) as view:
            return QueryResult(list(view.batches()))

    def retained_from(self) -> int:
        self._check_open()
        with self._lock:
            return self._horizon()

    def earliest(self, selector: SelectorLike = None) -> list[DataPoint]:
        return self._edges(selector, newest=False)

    def latest(self, selector: SelectorLike = None) -> list[DataPoint]:
        return self._edges(selector, newest=True)

    def count(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> int:
        self._check_open()
        first, last = timestamp_range(start, end)
        resolved = to_selector(selector)
        with self._lock:
            self._check_open()
            slots = self._store.catalogue.resolve(resolved)
            begins, ends = self._store.locate(slots, max(first, self._horizon()), last)
            return int((ends - begins).sum())

    def label_names(self) -> list[str]:
        with self._lock:
            self._check_open()
            return self._store.catalogue.label_names()

    def label_values(self, name: str) -> list[str]:
        with self._lock:
            self._check_open()
            check_label_text(name, "name")
            return self._store.catalogue.label_values(name)

    def compact(self) -> CompactReport:
        """Give back all room that columns have to grow; the next write to a series moves it."""
        with self._lock:
            self._check_writable()
            before = self._store.bytes
            is_read = any(rings.pool.pins for rings in self._store.rings.values())
            with self._changing(MemoryError):
                self._store.drop_before(self._horizon())
                for rings in self._store.rings.values():
                    rings.rewrite(exact=True)
            after = self._store.bytes
        reason = "running reads hold the former columns until they end" if is_read else ""
        return CompactReport(before, after, reason)

    def snapshot(self, path: str) -> None:
        """Write a snapshot file, as `snapshot_file` describes it; writers go on meanwhile."""
        with self._lock:
            self._check_open()
            catalogue = self._store.catalogue
            slots = catalogue.ordered()
            by_kind = slots[np.argsort(catalogue.kinds[slots], kind="stable")]
            view = self._store.view(by_kind, self._horizon(), RANGE_END_MAX, empty=True)
            head = StoreHead(self.options.to_dict(), self._last_write_ns, dict(self._marks))
        with view:
            write_snapshot(os.fspath(path), head, view.columns())

    def check(self) -> None:
        """Verify that columns, catalogue and counters agree."""
        with self._lock:
            self._check_open()
            self._store.verify()

    def high_water(self, producer: str) -> ProducerMark | None:
        with self._lock:
            self._check_open()
            check_producer(producer)
            known = self._marks.get(producer)
            return None if known is None else known[0]

    def forget_producer(self, producer: str) -> None:
        with self._lock:
            self._check_writable()
            check_producer(producer)
            self._marks.pop(producer, None)

    # The rest.

    def _check_open(self) -> None:
        super()._check_open()
        if self._is_torn:
            raise StorageError(
                f"a write to {self!r} was interrupted half way; what it holds is unknown"
            )

    @contextlib.contextmanager
    def _changing(self, *harmless: type[Exception]) -> Iterator[None]:
        """Close the engine to all use where a change is interrupted, by Ctrl-C for instance.

        What may go wrong in the course of things goes wrong before a change, or is named
        here as harmless; but half of a change must not be taken for the store.
        """
        try:
            yield
        except harmless:
            raise
        except BaseException:
            self._is_torn = True
            raise

    def _new_store(self) -> Store:
        caps = (self.backend_options.get(name) for name in ("max_points_per_series", "max_points"))
        return Store(self.options.duplicate_policy, *caps)  # type: ignore[arg-type]  # converted

    def _read_clock(self) -> int:
        """Give the time, which never moves backwards here."""
        self._now_ns = max(self._now_ns, self._clock_ns())
        return self._now_ns

    def _horizon(self, now_ns: int | None = None) -> int:
        """Give the earliest timestamp that retention shows at this call."""
        if self.options.retention is None:
            return INT64_MIN
        now_ns = self._read_clock() if now_ns is None else now_ns
        return min(max(now_ns - self.options.retention, INT64_MIN), INT64_MAX)

    def _view(self, selector: Selector, start: int, end: int) -> View:
        with self._lock:
            self._check_open()
            start = max(start, self._horizon())
            catalogue = self._store.catalogue
            if selector.exact is not None:
                slot = catalogue.slot(selector.exact)
                return self._store.view_one(slot, start, end) if slot else View([], [])
            slots = catalogue.resolve(selector)
            if len(slots) == 1:
                return self._store.view_one(int(slots[0]), start, end)
            return self._store.view(slots, start, end)

    def _edges(self, selector: SelectorLike, *, newest: bool) -> list[DataPoint]:
        self._check_open()
        resolved = to_selector(selector)
        with self._lock:
            self._check_open()
            slots = self._store.catalogue.resolve(resolved)
            rows = self._store.edges(slots, self._horizon(), newest=newest)
        return rows.points()

    def _tidy(self, horizon: int) -> None:
        """Give room back, now and then; where there is none to do that in, another time."""
        retention = self.options.retention
        with contextlib.suppress(MemoryError), self._changing(MemoryError):
            if retention is not None and horizon - self._swept_ns >= retention // _SWEEPS:
                self._store.drop_before(horizon)
                self._swept_ns = horizon
            self._store.tidy()

    def _restore(self) -> None:
        with read_snapshot(self.location) as (head, series):
            try:
                stored = StoreOptions.from_dict(head.options)
            except (KeyError, ValueError, TypeError) as error:
                raise CorruptionError(
                    f"snapshot {self.location!r} is damaged: its options are {head.options!r}"
                ) from error
            self._adopt_options(stored)
            self._store = self._new_store()
            for part in series:
                if not self._store.load(part):
                    raise CorruptionError(
                        f"snapshot {self.location!r} is damaged: it holds a series twice"
                    )
        self._last_write_ns = head.last_write_ns
        self._marks = dict(head.marks)
        self._store.drop_before(self._horizon())
        self._store.apply_caps()
