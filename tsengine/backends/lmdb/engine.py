"""LmdbEngine: the embedded default, a columnar merge tree in LMDB."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Final, cast

import lmdb
import numpy as np

from tsengine.aggregation import Aggregation
from tsengine.backends.lmdb.aggregating import push_down
from tsengine.backends.lmdb.blocks import ROWS_MAX
from tsengine.backends.lmdb.catalogue import kind_of
from tsengine.backends.lmdb.checking import check_store
from tsengine.backends.lmdb.columns import Columns
from tsengine.backends.lmdb.edges import edge_points
from tsengine.backends.lmdb.failures import translate_os
from tsengine.backends.lmdb.files import DATA_FILE, sync_directory, sync_file
from tsengine.backends.lmdb.layout import BLOCKS, REMOVED_SERIES
from tsengine.backends.lmdb.merge import OWN_BLOCKS_FROM, count_due, is_bulk
from tsengine.backends.lmdb.reading import series_batch
from tsengine.backends.lmdb.runs import DeleteEvent, Manifest
from tsengine.backends.lmdb.sharing import Shared, acquire, release
from tsengine.backends.lmdb.store import Settings, Store
from tsengine.backends.lmdb.sweeping import RemovedSeries
from tsengine.backends.lmdb.writing import number_series, prepare
from tsengine.duplicates import DuplicatePolicy
from tsengine.engine import Capability, CompactReport, Engine, EngineStats, is_unbounded
from tsengine.errors import (
    CorruptionError,
    NotOpenError,
    StorageError,
    StorageFullError,
    StorePathError,
)
from tsengine.model import (
    DataPoint,
    GroupedBatch,
    Int64Array,
    Labels,
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
from tsengine.options import STORE_OPTIONS, Converter, at_most, choice, positive_integer, seconds
from tsengine.result import QueryResult
from tsengine.selectors import Selector, SelectorLike, to_selector
from tsengine.staging import receipt_of

SCAN_ROWS: Final = 1 << 18
"""Rows that one step of a scan holds: 4 MiB of columns."""

LISTED_AT_ONCE: Final = 1 << 10
"""Series that a listing reads in one transaction: a few milliseconds."""

SHORT_SERIES: Final = 2_000
"""Average rows of a series below which many series are read together, block by block, rather
than one by one: there a block is decoded once for all series in it."""


class LmdbEngine(Engine):
    """A store in a directory, written by one process and read by any number.

    Args:
        location: path of the directory; created, with mode 0700, where missing.
        durability: `"commit"`, a returned commit is on disk; or `"relaxed"`, a power cut
            may take the last commit, never the store.
        merging: `"background"`, `"inline"` (the writer merges after its commit), or
            `"manual"` (only `compact()` does).
        block_points: rows of a packed block.
        snapshot_age_max: seconds that merged runs stay for scans in other processes.
        clock_ns: nanoseconds since the Unix epoch; injected by tests.
        options: those of every store.

    Engines of one process on one path share one open store. Forked children open anew.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.RETENTION,
            Capability.PERSISTENCE,
            Capability.OTHER_PROCESSES,
            Capability.SNAPSHOT_FILES,
            Capability.PRODUCER_MARKS,
        }
    )
    option_converters: ClassVar[Mapping[str, Converter]] = {
        **STORE_OPTIONS,
        "durability": choice("commit", "relaxed"),
        "merging": choice("background", "inline", "manual"),
        "block_points": at_most(ROWS_MAX, positive_integer),
        "snapshot_age_max": seconds,
    }

    def __init__(
        self, location: str, *, clock_ns: Callable[[], int] = time.time_ns, **options: object
    ) -> None:
        super().__init__(os.fspath(location), clock_ns=clock_ns, **options)
        if not self.location or "\0" in self.location:
            raise StorePathError(
                f"a store needs a path, as in lmdb:///var/lib/app/metrics, not {self.location!r}"
            )
        # The store while points can be written without one being judged here; see
        # `holds_only_floats`, which is asked for each new series.
        self._floats_store: Store | None = None
        own = dict(self.backend_options)
        age = own.pop("snapshot_age_max", None)
        if age is not None:
            own["snapshot_age_max_ns"] = int(float(str(age)) * 1e9)
        self._user = object()  # stands for this engine among those that share a store
        self._settings = Settings(read_only=self.read_only, **own)  # type: ignore[arg-type]  # converted by option_converters

    # Primitives.

    def _open(self) -> None:
        self._shared: Shared = acquire(
            Path(self.location).absolute(),
            self._settings,
            self.options,
            self._store_options_given,
            self._clock_ns,
            self._user,
        )
        self._store: Store = self._shared.store
        try:
            self._adopt_options(self._store.options)
        except BaseException:
            self._close()
            raise
        if not (self.read_only or self.validates_every_point):
            self._floats_store = self._store

    def _close(self) -> None:
        self._floats_store = None
        release(self._shared, self._user)

    def _commit(self, batches: Sequence[GroupedBatch], mark: ProducerMark | None) -> WriteReceipt:
        store = self._store
        with store.commit_lock:
            _ = store.manifest  # read anew where that is due, before a transaction is open
            with store.moment() as (transaction, manifest):
                if mark is not None:
                    known = store.mark(transaction, mark.producer)
                    if known is not None and mark[1:] <= known[0][1:]:
                        submitted = sum(map(len, batches))
                        return known[1] if mark == known[0] else receipt_of(submitted, {})
                prepared = prepare(store, transaction, manifest, batches, store.retained_from())
            receipt = receipt_of(sum(map(len, batches)), {"retention": prepared.refused})
            is_due = store.add_run(
                prepared.columns, prepared.newcomers, mark, receipt, self._clock_ns()
            )
        self._shared.upkeep.after_commit(is_due=is_due)
        return receipt

    def _commit_wide(self, batch: WideBatch) -> WriteReceipt:
        store, rows = self._store, len(batch.timestamps)
        own_from = min(OWN_BLOCKS_FROM, store.settings.block_points)
        policy = store.options.duplicate_policy
        if (
            not is_bulk(len(batch))
            or rows < own_from
            or policy is DuplicatePolicy.ERROR
            or batch.timestamps[0] < store.retained_from()
        ):
            return super()._commit_wide(batch)
        with store.commit_lock:
            _ = store.manifest  # as in _commit
            with store.moment() as (transaction, manifest):
                offsets = np.arange(len(batch.labels) + 1) * rows
                numbers, newcomers = number_series(
                    store, transaction, batch.labels, offsets, ValueKind.FLOAT, manifest
                )
            order = numbers.argsort(kind="stable")
            columns = [batch.columns[place] for place in order.tolist()]
            ordered = replace(batch, columns=columns)
            receipt = receipt_of(len(batch), {})
            is_due = store.add_wide_run(
                numbers[order], ordered, newcomers, receipt, self._clock_ns()
            )
        self._shared.upkeep.after_commit(is_due=is_due)
        return receipt

    def _kind(self, labels: Labels) -> ValueKind | None:
        store = self._store
        number = store.numbers().numbers.get(labels)
        if number is None:
            with store.environment.read() as transaction:
                epoch = store.manifest_of(transaction).state.catalogue_epoch
                cache = store.catalogue.number_cache(epoch)
                number = store.catalogue.look_up(transaction, labels, cache)
        return None if number is None else kind_of(number)

    def _series(self, selector: Selector) -> Iterator[Labels]:
        store = self._store
        with store.pinned(lambda transaction: self._resolve(transaction, selector)) as (
            manifest,
            numbers,
        ):
            for start in range(0, len(numbers), LISTED_AT_ONCE):
                some = numbers[start : start + LISTED_AT_ONCE].tolist()
                with store.environment.read() as transaction:
                    labels = store.labels_of(transaction, manifest, some, remember=False)
                yield from labels

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        batches = self._scan_batches(selector, start, end, grouped=False)
        return cast("Iterator[SeriesBatch]", batches)

    def _delete(self, selector: Selector, start: int, end: int) -> int:
        store = self._store
        with store.commit_lock:
            _ = store.manifest
            remove = is_unbounded(start, end)
            if remove:
                store.index_series()
            with store.environment.read() as transaction:
                numbers = np.sort(self._resolve(transaction, selector))
            if not len(numbers):
                return 0
            now = self._clock_ns()
            event = DeleteEvent(store.counters.sequence + 1, start, end, numbers)
            store.delete(event, remove=remove, now_ns=now)
            version = store.manifest.state.version
        # Behind the commit lock: upkeep takes its own lock first and that one second.
        if remove:
            store.sweeper.add_series(
                RemovedSeries(REMOVED_SERIES | event.sequence, version, now, numbers)
            )
        self._shared.upkeep.after_commit()
        return len(numbers)

    def _stats(self) -> EngineStats:
        store = self._store
        with store.moment() as (_, manifest):
            pass
        runs = manifest.runs
        levels: dict[int, int] = {}
        for run in runs:
            levels[run.level] = levels.get(run.level, 0) + 1
        upkeep = self._shared.upkeep
        return EngineStats(
            points=sum(run.rows for run in runs),
            points_exact=len(runs) <= 1
            and not manifest.deletes
            and all(run.t_min >= store.retained_from() for run in runs),
            series=manifest.state.series,
            bytes=store.environment.file_bytes(),
            last_write_ns=manifest.state.last_write_ns or None,
            details={
                "runs": len(runs),
                "runs_by_level": levels,
                "merges_owed": count_due(runs),
                "block_bytes": sum(run.size for run in runs),
                "deletes": len(manifest.deletes),
                "runs_to_sweep": store.sweeper.owed,
                "upkeep_error": None if upkeep.error is None else repr(upkeep.error),
            },
        )

    # What can be answered better than by the primitives.

    @property
    def holds_only_floats(self) -> bool:
        """As `WriteBufferHandler` says: it saves a transaction for each new series."""
        store = self._floats_store
        return store is not None and store.only_floats

    def _aggregate(self, selector: Selector, asked: Aggregation) -> QueryResult:
        """By headers and blocks, where what is asked does not go by the order of rows."""
        result = push_down(
            self._store, selector, lambda transaction: self._resolve(transaction, selector), asked
        )
        return super()._aggregate(selector, asked) if result is None else result

    def query(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> QueryResult:
        resolved = to_selector(selector)
        if resolved.exact is None:
            return super().query(resolved, start, end)
        self._check_open()
        first, last = timestamp_range(start, end)
        store = self._store
        first = max(first, store.retained_from())
        with store.environment.read() as transaction:
            manifest = store.manifest_of(transaction)
            number = self._number(transaction, manifest, resolved.exact)
            if number is None:
                store.catalogue.check_absent(transaction, resolved.exact)
            if number is None or first >= last:
                return QueryResult(())
            piece = store.reader.read_series(
                transaction, manifest, number, first, last, store.options.duplicate_policy
            )
        if piece is None:
            return QueryResult(())
        return QueryResult((series_batch(resolved.exact, number, piece),))

    def scan_groups(
        self,
        selector: SelectorLike = None,
        start: TimestampLike | None = None,
        end: TimestampLike | None = None,
    ) -> Iterator[SeriesBatch | GroupedBatch]:
        self._check_open()
        first, last = timestamp_range(start, end)
        resolved = to_selector(selector)
        if first == last:
            return iter(())
        return self._scan_batches(resolved, first, last, grouped=True)

    def retained_from(self) -> int:
        self._check_open()
        return self._store.retained_from()

    def changed_since(self, moment: object) -> tuple[object, list[tuple[int, int]] | None]:
        self._check_open()
        with self._store.moment() as (_, manifest):
            pass
        return manifest, manifest.changed_since(moment) if isinstance(moment, Manifest) else None

    def earliest(self, selector: SelectorLike = None) -> list[DataPoint]:
        return self._edges(selector, newest=False)

    def latest(self, selector: SelectorLike = None) -> list[DataPoint]:
        return self._edges(selector, newest=True)

    def label_names(self) -> list[str]:
        self._check_open()
        with self._store.environment.read() as transaction:
            return self._store.catalogue.label_names(transaction)

    def label_values(self, name: str) -> list[str]:
        self._check_open()
        check_label_text(name, "name")
        with self._store.environment.read() as transaction:
            return self._store.catalogue.label_values(transaction, name)

    def high_water(self, producer: str) -> ProducerMark | None:
        self._check_open()
        check_producer(producer)
        with self._store.environment.read() as transaction:
            known = self._store.mark(transaction, producer)
        return None if known is None else known[0]

    def forget_producer(self, producer: str) -> None:
        self._check_writable()
        check_producer(producer)
        self._store.forget_mark(producer)

    def compact(self) -> CompactReport:
        """Merge everything into one run, apply deletes, and give space back to the disk.

        Readers go on meanwhile, but for the moment in which the smaller file takes the place
        of the larger; writers wait while it is written. With a reader in another process the
        file stays, and the report says so.
        """
        self._check_writable()
        store = self._store
        before = store.environment.file_bytes()
        with store.environment.without_reserve():
            self._shared.upkeep.merge_all()
            try:
                reason = store.shrink()
            except StorageFullError:
                reason = "the disk has no room for the smaller file beside the larger"
        owed = self._store.sweeper.owed
        if not reason and owed:
            reason = f"{owed} merged runs are still being read"
        return CompactReport(before, store.environment.file_bytes(), reason)

    def snapshot(self, path: str) -> None:
        """Copy the store to a new directory, which is there as a whole or not at all.

        The copy is made beside its place under a name that begins with `.tsengine-`: such a
        directory is what a kill or a power cut may leave, and can be removed.
        """
        self._check_open()
        target = Path(path)
        made = target.parent / f".tsengine-{secrets.token_hex(8)}.tmp"
        try:
            if target.is_symlink() or target.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            made.mkdir(mode=0o700)
        except OSError as error:
            raise translate_os(error, target, "cannot take a snapshot") from error
        try:
            self._store.environment.copy(made)
            (made / DATA_FILE).chmod(0o600)
            sync_file(made / DATA_FILE)
            sync_directory(made)
            made = made.rename(target)  # raises where something came to be there meanwhile
            sync_directory(target.absolute().parent)
        except BaseException as error:
            shutil.rmtree(made, ignore_errors=True)
            if isinstance(error, OSError) and not isinstance(error, StorageError):
                raise translate_os(error, target, "cannot take a snapshot") from error
            raise

    def check(self) -> None:
        """Read and verify everything.

        On an engine that is not open yet the files are verified without LMDB first, which a
        damaged one could make kill the process: after that, opening is safe. Nothing is
        written, and the engine stays as it is.

        Raises:
            CorruptionError: names the first place found damaged.
            FormatVersionError: it is no store of this version.
            NotOpenError: the engine is not open yet and there is no store, or it was closed.
            StoreInUseError: the engine is not open yet and another process writes to the store;
                open with `read_only=True` and check then.
        """
        if not self._is_new:
            self._check_open()
            check_store(self._store)
            return
        path = Path(self.location).absolute()
        if not (path / DATA_FILE).exists():
            raise NotOpenError(f"{self!r} is not open, and there is no store yet to be checked")
        settings = replace(self._settings, read_only=True)
        shared = acquire(
            path,
            settings,
            self.options,
            self._store_options_given,
            self._clock_ns,
            self._user,
            verify=True,
        )
        try:
            check_store(shared.store)
        finally:
            release(shared, self._user)

    def shares_store(self, other: Engine) -> bool:
        if not isinstance(other, LmdbEngine) or self._is_new or other._is_new:
            return False
        return self._store is other._store

    # Inside.

    def _resolve(self, transaction: lmdb.Transaction, selector: Selector) -> Int64Array:
        """Give the numbers of the matching series; of all of them, see that none is missing."""
        numbers = self._store.catalogue.resolve(transaction, selector)
        if selector.exact is None and not selector.matchers:
            expected = self._store.manifest_of(transaction).state.series
            ordered = np.sort(numbers)  # unique() goes by hashing and takes several times as long
            different = len(ordered) - int((ordered[1:] == ordered[:-1]).sum())
            if different != expected:
                raise CorruptionError(
                    f"{self.location} lists {different} series, it should be {expected}"
                )
        return numbers

    def _number(
        self, transaction: lmdb.Transaction, manifest: Manifest, labels: Labels
    ) -> int | None:
        catalogue = self._store.catalogue
        cache = catalogue.number_cache(manifest.state.catalogue_epoch)
        return catalogue.number(transaction, labels, cache)

    def _scan_batches(
        self, selector: Selector, start: int, end: int, *, grouped: bool
    ) -> Iterator[SeriesBatch | GroupedBatch]:
        store = self._store
        start = max(start, store.retained_from())
        with store.pinned(lambda transaction: self._resolve(transaction, selector)) as (
            manifest,
            numbers,
        ):
            if start < end and len(numbers):
                yield from self._scan_pinned(manifest, numbers, start, end, grouped=grouped)

    def _scan_pinned(
        self, manifest: Manifest, numbers: Int64Array, start: int, end: int, *, grouped: bool
    ) -> Iterator[SeriesBatch | GroupedBatch]:
        rows = sum(run.rows for run in manifest.runs if run.overlaps(start, end))
        listed = manifest.state.next_series
        if rows > SHORT_SERIES * listed or len(numbers) == 1:
            for number in numbers.tolist():
                yield from self._scan_series(manifest, number, start, end)
            return
        each = max(SCAN_ROWS * listed // max(rows, 1), 1)
        for first in range(0, len(numbers), each):
            some = numbers[first : first + each]
            yield from self._scan_together(manifest, some, start, end, grouped=grouped)

    def _scan_series(
        self, manifest: Manifest, number: int, start: int, end: int
    ) -> Iterator[SeriesBatch]:
        """Read one series, in windows where it is long."""
        store = self._store
        with store.environment.read() as transaction:
            store.check_runs(transaction, manifest)
            [labels] = store.labels_of(transaction, manifest, (number,))
            cursor = transaction.cursor(store.environment.tables[BLOCKS])
            edges = store.reader.window_edges(cursor, manifest, number, start, end, SCAN_ROWS)
        for first, last in pairwise(edges):
            with store.environment.read() as transaction:
                store.check_runs(transaction, manifest)
                piece = store.reader.read_series(
                    transaction, manifest, number, first, last, store.options.duplicate_policy
                )
            if piece is not None:
                yield series_batch(labels, number, piece)

    def _scan_together(
        self, manifest: Manifest, numbers: Int64Array, start: int, end: int, *, grouped: bool
    ) -> Iterator[SeriesBatch | GroupedBatch]:
        """Read many short series at once, and give them in the order of `numbers`.

        Numbers come as one batch where that is asked for and they are of one kind.
        """
        store = self._store
        if len(numbers) == 1:
            yield from self._scan_series(manifest, int(numbers[0]), start, end)
            return
        with store.environment.read() as transaction:
            store.check_runs(transaction, manifest)
            parts = store.reader.read_many(
                transaction,
                manifest,
                np.sort(numbers),
                start,
                end,
                store.options.duplicate_policy,
                rows_max=4 * SCAN_ROWS,
            )
            whole: Columns | None = None
            found: dict[int, tuple[Columns, int]] = {}
            if grouped and parts is not None and len(parts) == 1 and not _holds_objects(parts[0]):
                whole = _in_order(parts[0], numbers)
                order = whole.series.tolist()
            else:
                found = {
                    number: (part, place)
                    for part in parts or ()
                    for place, number in enumerate(part.series.tolist())
                }
                order = [number for number in numbers.tolist() if number in found]
            names = store.labels_of(transaction, manifest, order, remember=False)
        if whole is not None:
            yield GroupedBatch(names, whole.offsets, whole.timestamps, whole.values)
            return
        if parts is None:  # some of them are long after all
            middle = len(numbers) // 2
            for half in (numbers[:middle], numbers[middle:]):
                yield from self._scan_together(manifest, half, start, end, grouped=grouped)
            return
        for number, labels in zip(order, names, strict=True):
            part, place = found[number]
            rows = slice(int(part.offsets[place]), int(part.offsets[place + 1]))
            yield series_batch(
                labels, number, (part.timestamps[rows].copy(), part.values[rows].copy())
            )

    def _edges(self, selector: SelectorLike, *, newest: bool) -> list[DataPoint]:
        self._check_open()
        resolved = to_selector(selector)
        return edge_points(
            self._store, lambda transaction: self._resolve(transaction, resolved), newest=newest
        )


def _holds_objects(columns: Columns) -> bool:
    return columns.values.dtype == ValueKind.OBJECT.dtype


def _in_order(columns: Columns, numbers: Int64Array) -> Columns:
    """Give a copy of columns in the order of some numbers, all of theirs among them."""
    places = columns.series.searchsorted(numbers)
    places[places == len(columns.series)] = 0
    places = places[columns.series[places] == numbers]
    if (places[1:] > places[:-1]).all():
        return columns.copy()
    counts = np.diff(columns.offsets)[places]
    offsets = np.zeros(len(places) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    rows = np.repeat(columns.offsets[places] - offsets[:-1], counts) + np.arange(len(columns))
    return Columns(columns.series[places], offsets, columns.timestamps[rows], columns.values[rows])
