"""Store: one LMDB environment and all that works on it, shared by the engines of a process.

Commits, deletes and the publishing of merges happen one at a time under `commit_lock`; each
leaves a new manifest. Reads take the manifest of their moment and never wait for a writer.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import lmdb
import msgpack

from tsengine.backends.lmdb.absence import check_absent
from tsengine.backends.lmdb.blocks import BlockError, encode, split_raw
from tsengine.backends.lmdb.catalogue import Catalogue, NumberCache
from tsengine.backends.lmdb.columns import Columns, combine
from tsengine.backends.lmdb.environment import Environment
from tsengine.backends.lmdb.layout import (
    BLOCK_KEY_BYTES,
    BLOCKS,
    FORMAT_VERSION,
    META,
    PRODUCERS,
    REMOVED_SERIES,
    RETIRED,
    RUNS,
    TABLES,
    pack_u64,
    seal,
    split_block_key,
    text_key,
    unpack_row,
    unseal,
)
from tsengine.backends.lmdb.marks import pack_mark, unpack_mark
from tsengine.backends.lmdb.merge import (
    Totals,
    is_bulk,
    level_of,
    pack_columns,
    split_tails,
    tail_start,
)
from tsengine.backends.lmdb.reading import BlockReader
from tsengine.backends.lmdb.runs import DeleteEvent, Manifest, Pins, Retired, Run, State, digest
from tsengine.backends.lmdb.summaries import Summaries
from tsengine.backends.lmdb.sweeping import SWEEP_BLOCKS, Sweeper, delete_blocks
from tsengine.backends.lmdb.wide import WideBlocks
from tsengine.errors import (
    CorruptionError,
    FormatVersionError,
    SnapshotExpiredError,
)
from tsengine.model import (
    INT64_MIN,
    ForwardClock,
    Int64Array,
    Labels,
    ProducerMark,
    ValueKind,
    WideBatch,
    WriteReceipt,
)
from tsengine.options import StoreOptions

T = TypeVar("T")

FORMAT_KEY: Final = b"format"
OPTIONS_KEY: Final = b"options"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a store is worked on in this process; not persisted.

    Attributes:
        durability: "commit" or "relaxed".
        merging: "background", "inline" or "manual".
        block_points: rows of a packed block.
        snapshot_age_max_ns: how long runs stay for readers in other processes.
        read_only: whether the files are open for reading only.
    """

    durability: str = "commit"
    merging: str = "background"
    block_points: int = 16_384
    snapshot_age_max_ns: int = 60_000_000_000
    read_only: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Written:
    """The blocks of a new run, before they are committed.

    Attributes:
        totals: what the manifest says of them.
        blocks: keys and blocks; iterated again where the commit is tried again.
        level: of the run.
        tails: small runs before it whose rows it has, too.
        columns: its rows by kind, to be remembered; None where they are too many.
    """

    totals: Totals
    blocks: Iterable[tuple[bytes, bytes]]
    level: int
    tails: tuple[Run, ...] = ()
    columns: dict[ValueKind, Columns] | None = None


class Store:
    """An open store.

    Args:
        path: its directory.
        settings: how to work on it.
        options: for a new store, those to create it with.
        given: names of the options that the caller asked for, to compare with stored ones.
        clock_ns: nanoseconds since the Unix epoch.
        verify: verify the structure of the file before LMDB maps it.

    Raises:
        StorageError: it cannot be opened.
        StoreOptionError: it was created with other options.
    """

    def __init__(
        self,
        path: Path,
        settings: Settings,
        options: StoreOptions,
        given: frozenset[str],
        clock_ns: Callable[[], int],
        *,
        verify: bool = False,
    ) -> None:
        self.settings = settings
        self.clock_ns = clock_ns
        self.environment = Environment(
            path,
            TABLES,
            read_only=settings.read_only,
            durable=settings.durability == "commit",
            verify=verify,
        )
        try:
            self.options = self._read_options(options, given)
            self.catalogue = Catalogue(self.environment)
            self.environment.explain = self._name_series
            self.reader = BlockReader(self.environment)
            self.summaries = Summaries(self.reader)
            self.pins = Pins()
            self.sweeper = Sweeper(
                self.environment, self.catalogue, self.pins, clock_ns, settings.snapshot_age_max_ns
            )
            # Guards _manifest, _is_sure, _taken, _last_mark and merging.
            self.commit_lock = threading.RLock()
            self.merging: set[int] = set()  # numbers of the runs that merges take in
            with self.environment.read() as transaction:
                self._manifest = self._load(transaction)
                self._only_floats = self.catalogue.holds_only_floats(transaction)
                self.catalogue.look_for_unindexed(transaction)
            # Lets one thread at a time index; taken after commit_lock where both are.
            self._index_lock = threading.Lock()
            self._is_sure = True  # whether _manifest is what the last commit left
            # The mark committed last, and its receipt: mostly a producer commits many in a row.
            self._last_mark: tuple[ProducerMark, WriteReceipt] | None = None
            self._taken = State()  # counters used that no commit has written down for sure
            self._seen = self._manifest  # what some reader saw last; whose does not matter
            self._retention_clock = ForwardClock(clock_ns, self._manifest.state.last_write_ns)
        except BaseException:
            self.environment.close()
            raise

    def close(self) -> None:
        """Close the files."""
        self.environment.close()

    def _name_series(self, error: CorruptionError, transaction: lmdb.Transaction) -> None:
        """Add to the error of a damaged block the labels of the series that it begins with."""
        if isinstance(error, BlockError) and len(error.key) == BLOCK_KEY_BYTES:
            with contextlib.suppress(CorruptionError):  # the key itself may be what is damaged
                labels = self.catalogue.labels(transaction, split_block_key(error.key)[1])
                error.args = (f"{error}; the series is {labels.id}",)

    # Reading.

    def retained_from(self) -> int:
        """The earliest timestamp that retention lets through at this moment."""
        if self.options.retention is None:
            return INT64_MIN
        return max(self._retention_clock() - self.options.retention, INT64_MIN)

    @contextlib.contextmanager
    def moment(self) -> Iterator[tuple[lmdb.Transaction, Manifest]]:
        """Begin a read transaction and give the manifest of its moment."""
        with self.environment.read() as transaction:
            yield transaction, self.manifest_of(transaction)

    def manifest_of(self, transaction: lmdb.Transaction) -> Manifest:
        """Give the manifest of the moment that a transaction sees.

        In the writing process it is nearly always at hand; elsewhere, and between a commit
        and its publishing here, it is read.
        """
        moment = self.environment.moment(transaction)
        manifest, seen = self._manifest, self._seen
        if manifest.moment == moment and not self.settings.read_only:
            return manifest
        if seen.moment != moment or self.settings.read_only:
            version = State.load(transaction, self.environment.tables[META]).version
            if version in (seen.state.version, manifest.state.version):
                # Only blocks of a merge were added: what is at hand is still true. By the
                # version and not by the moment alone: a writer elsewhere whose disk fails may
                # take a commit back, and its number comes again.
                known = seen if version == seen.state.version else manifest
                seen = replace(known, moment=moment)
            else:
                seen = self._load(transaction)
            self._seen = seen  # never _manifest, which belongs to the writer
        return seen

    def _load(self, transaction: lmdb.Transaction) -> Manifest:
        moment = self.environment.moment(transaction)
        return Manifest.load(transaction, self.environment.tables, moment)

    @contextlib.contextmanager
    def pinned(self, first: Callable[[lmdb.Transaction], T]) -> Iterator[tuple[Manifest, T]]:
        """Keep the runs of one moment for a read of several transactions.

        Args:
            first: called with the transaction of that moment.
        """
        while True:
            if not self.settings.read_only:
                _ = self.manifest  # reads it anew where the last commit's outcome is unknown
            reader = object()
            try:
                with self.environment.read() as transaction:
                    manifest = self.manifest_of(transaction)
                    version = manifest.state.version
                    self.pins.pin(reader, version)
                    # A run retired before the pin was there may be swept already; those
                    # retired later will not be.
                    is_safe = self.settings.read_only or self._manifest.state.version == version
                    answer = first(transaction)
                if is_safe:
                    yield manifest, answer
                    return
            finally:
                self.pins.unpin(reader)

    def check_runs(self, transaction: lmdb.Transaction, manifest: Manifest) -> None:
        """Check that the runs of a manifest pinned earlier are still there.

        Only a reader in another process can lose them: its pins are not seen by the writer.

        Raises:
            SnapshotExpiredError: some are not.
        """
        if not self.settings.read_only or manifest.moment == self.environment.moment(transaction):
            return
        tables = self.environment.tables
        for run in manifest.runs:
            key = pack_u64(run.number)
            if transaction.get(key, db=tables[RUNS]) is None:
                row = transaction.get(key, db=tables[RETIRED])
                if row is None or Retired.unpack(run.number, row).at_ns < 0:
                    raise self._expired()

    def labels_of(
        self,
        transaction: lmdb.Transaction,
        manifest: Manifest,
        numbers: Sequence[int],
        *,
        remember: bool = True,
    ) -> list[Labels]:
        """Give the labels of series of a manifest pinned earlier; see `Catalogue.labels_of`.

        Raises:
            SnapshotExpiredError: one was removed since, and the writer, a process that
                does not see this one's pins, has forgotten it.
            CorruptionError: there is no such series, or its row is damaged.
        """
        try:
            return self.catalogue.labels_of(transaction, numbers, remember=remember)
        except CorruptionError:
            epoch = self.manifest_of(transaction).state.catalogue_epoch
            if self.settings.read_only and epoch != manifest.state.catalogue_epoch:
                raise self._expired() from None
            raise

    def _expired(self) -> SnapshotExpiredError:
        return SnapshotExpiredError(
            f"this read outlived snapshot_age_max of the writer of {self.environment.path}; read "
            "in smaller ranges, or raise the option"
        )

    # Writing.

    @property
    def manifest(self) -> Manifest:
        """The newest manifest, in the writing process; exact where `commit_lock` is held."""
        if not self._is_sure:
            # A commit failed and may have happened all the same: the file tells.
            with self.commit_lock:
                if not self._is_sure:
                    self._reload()
        return self._manifest

    @property
    def only_floats(self) -> bool:
        """Whether no series of this store can hold anything but floats."""
        return self._only_floats and self._is_sure

    def _reload(self) -> None:
        with self.environment.read() as transaction:
            self._manifest = self._load(transaction)
            self._only_floats = self.catalogue.holds_only_floats(transaction)
            self.catalogue.look_for_unindexed(transaction)
        self.catalogue.cache = NumberCache(self._manifest.state.catalogue_epoch)
        self._is_sure = True

    @property
    def counters(self) -> State:
        """The counters that the next commit goes on from; `commit_lock` is held.

        Those of a commit that failed are not used again: it may have been seen for a moment
        before it was taken back, and caches here and elsewhere go by numbers. Nor are those
        that merges under way have.
        """
        return self.manifest.state.beyond(self._taken)

    def numbers(self) -> NumberCache:
        """The cache of series numbers of the newest manifest, in the writing process."""
        return self.catalogue.number_cache(self.manifest.state.catalogue_epoch)

    def publish(
        self,
        manifest: Manifest,
        work: Callable[[lmdb.Transaction], None] | None = None,
        done: Callable[[], None] | None = None,
        *,
        makes_room: bool = False,
    ) -> None:
        """Commit a new manifest together with other changes; `commit_lock` is held.

        Args:
            manifest: what the store is to be.
            work: called with the write transaction before the manifest is written.
            done: called when it is committed, to remember it; what an interrupt keeps from being
                remembered is read anew.
            makes_room: as for `Environment.write`.
        """
        before = self.manifest

        def write(transaction: lmdb.Transaction) -> int:
            if work is not None:
                work(transaction)
            manifest.save(transaction, self.environment.tables, before)
            return self.environment.moment(transaction)

        try:
            moment = self.environment.write(write, makes_room=makes_room)
            self._manifest = replace(manifest, moment=moment)
            if done is not None:
                done()
        except BaseException:  # an interrupt may come between any two of these
            self._is_sure = False
            self._last_mark = None
            self.sweeper.distrust()
            self._taken = manifest.state.beyond(self._taken)
            raise

    def reserve_run(self) -> int:
        """Give a merge the number of its run; `commit_lock` is held.

        The next commit writes down that it is taken, the merge's own first one at the latest.
        """
        number = self.counters.next_run
        self._taken = self._taken._replace(next_run=number + 1)
        return number

    def add_run(
        self,
        columns: dict[ValueKind, Columns],
        newcomers: Mapping[ValueKind, Sequence[Labels]],
        mark: ProducerMark | None,
        receipt: WriteReceipt,
        now_ns: int,
    ) -> bool:
        """Commit rows as a new run; `commit_lock` is held.

        Args:
            columns: by kind; numbers of new series are given in the order of `newcomers`.
            newcomers: labels to register by kind.
            mark: the producer's mark to commit with them.
            receipt: what to answer when the mark is repeated.
            now_ns: nanoseconds since the Unix epoch.

        Returns:
            Whether that may have made a merge due.
        """
        number, totals = self.counters.next_run, Totals()
        rows = sum(map(len, columns.values()))
        if is_bulk(rows):
            blocks = pack_columns(number, columns, self.settings.block_points, totals)
            written = _Written(totals, blocks, level_of(rows))
        else:
            _, tails = split_tails(self.manifest, rows, self.merging)
            if tails:
                tails, columns = self._take_in(tails, columns)
            blocks = self._raw_blocks(number, columns, totals)
            written = _Written(totals, blocks, 0, tails, columns)
        return self._add(written, newcomers, mark, receipt, now_ns)

    def add_wide_run(
        self,
        series: Int64Array,
        batch: WideBatch,
        newcomers: Sequence[Labels],
        receipt: WriteReceipt,
        now_ns: int,
    ) -> bool:
        """Commit series that share their timestamps as a new run; `commit_lock` is held.

        Args:
            series: int64[k], their numbers, ascending.
            batch: of these series; timestamps strictly increase.
            newcomers: labels to register, in the order of their numbers.
            receipt: what is answered.
            now_ns: nanoseconds since the Unix epoch.

        Returns:
            As `add_run`.
        """
        number = self.counters.next_run
        blocks = WideBlocks(number, series, batch, self.settings.block_points)
        written = _Written(blocks.totals(), blocks, 0)
        registered = {ValueKind.FLOAT: newcomers} if newcomers else {}
        return self._add(written, registered, None, receipt, now_ns)

    def _add(
        self,
        written: _Written,
        newcomers: Mapping[ValueKind, Sequence[Labels]],
        mark: ProducerMark | None,
        receipt: WriteReceipt,
        now_ns: int,
    ) -> bool:
        """Commit the run that was written; as `add_run`."""
        before = self.manifest
        state = self.counters
        number, sequence = state.next_run, state.sequence + 1
        totals, tails = written.totals, written.tails
        first_sequence = tails[0].sequence_first if tails else sequence
        if totals.blocks:
            run = totals.run(number, written.level, (first_sequence, sequence), sequence)
            runs = (*before.runs[: len(before.runs) - len(tails)], run)
        else:
            runs = before.runs
        created = sum(map(len, newcomers.values()))
        if not totals.blocks and not created and mark is None:
            return False  # every point was refused
        state = state._replace(
            version=state.version + 1,
            runs=digest([run.number for run in runs]),
            sequence=sequence,
            next_run=number + 1,
            next_series=state.next_series + created,
            last_write_ns=now_ns,
            series=state.series + created,
        )
        first_series = state.next_series - created
        retired = [Retired(tail.number, state.version, now_ns) for tail in tails]
        unread = self.sweeper.take_tails()
        registered: dict[ValueKind, range] = {}

        def work(transaction: lmdb.Transaction) -> None:
            table = self.environment.tables[BLOCKS]
            next_series = first_series
            for kind, labels in newcomers.items():
                registered[kind] = self.catalogue.register(transaction, labels, kind, next_series)
                next_series += len(labels)
            for key, block in written.blocks:
                transaction.put(key, block, db=table)
            if mark is not None:
                self._save_mark(transaction, mark, receipt)
            for tail in retired:
                transaction.put(
                    pack_u64(tail.number), tail.pack(), db=self.environment.tables[RETIRED]
                )
            for tail in unread:
                delete_blocks(transaction, table, tail.number, SWEEP_BLOCKS)
                transaction.delete(pack_u64(tail.number), db=self.environment.tables[RETIRED])

        def done() -> None:
            if mark is not None:
                self._last_mark = mark, receipt
            self.sweeper.add_tails(retired)
            if written.columns and totals.blocks:
                # Copies: the columns may be the caller's own arrays.
                copies = {kind: part.copy() for kind, part in written.columns.items()}
                self.reader.remember(number, copies)
            for tail in tails:
                self.reader.forget(tail.number)
                self.summaries.forget(tail.number)
            _ = self.numbers()  # of this epoch: what is remembered goes there
            self._only_floats = self._only_floats and newcomers.keys() <= {ValueKind.FLOAT}
            for kind, labels in newcomers.items():
                self.catalogue.remember(labels, registered[kind])

        # No delete hides rows of what comes after it, nor rows of the tails: all deletes stay.
        self.publish(Manifest(0, state, runs, before.deletes), work, done)
        return self.sweeper.is_due or tail_start(runs) != tail_start(before.runs)

    def _take_in(
        self, tails: tuple[Run, ...], columns: dict[ValueKind, Columns]
    ) -> tuple[tuple[Run, ...], dict[ValueKind, Columns]]:
        """Fold the rows of small runs with those of the commit behind them.

        A run that is damaged stays, with what comes before it: reads and `check` tell of it, and
        what is written now has nothing to do with it.

        Returns:
            The runs that were taken in, and the rows.
        """
        taken: list[dict[ValueKind, list[Columns]]] = []  # the newest first
        with contextlib.suppress(CorruptionError):
            for tail in reversed(tails):
                taken.append(self.reader.pieces_of(tail))  # noqa: PERF401  # some of them count
        pieces: dict[ValueKind, list[Columns]] = {}
        for one in reversed(taken):
            for kind, parts in one.items():
                pieces.setdefault(kind, []).extend(parts)
        for kind, part in columns.items():
            pieces.setdefault(kind, []).append(part)
        folded = {
            kind: combine(parts, self.options.duplicate_policy) for kind, parts in pieces.items()
        }
        return tails[len(tails) - len(taken) :], folded

    def index_series(self) -> None:
        """Bring series into the searchable tables that commits have left unindexed.

        In steps of some 10 ms, between which other commits have their turn. When it returns,
        none is left of commits before the call. `commit_lock` may be held.
        """
        with self._index_lock:
            self.catalogue.owes_index = False  # before, as a commit may add some meanwhile
            try:
                while self.catalogue.index():
                    pass
            except BaseException:
                self.catalogue.owes_index = True
                raise

    def delete(self, event: DeleteEvent, *, remove: bool, now_ns: int) -> None:
        """Commit a delete; `commit_lock` is held.

        Args:
            event: its sequence is the next one.
            remove: whether the series themselves go.
            now_ns: nanoseconds since the Unix epoch.
        """
        before = self.manifest
        state = self.counters._replace(sequence=event.sequence)
        numbers = event.series.tolist()
        if remove:
            state = state._replace(
                catalogue_epoch=state.catalogue_epoch + 1,
                series=state.series - len(numbers),
            )
        manifest = before.with_runs(before.runs, state, [*before.deletes, event])

        def work(transaction: lmdb.Transaction) -> None:
            if remove:
                self.catalogue.remove(transaction, numbers)
                row = msgpack.packb([manifest.state.version, now_ns, event.series.tobytes()])
                key = pack_u64(REMOVED_SERIES | event.sequence)
                transaction.put(key, seal(RETIRED, key, row), db=self.environment.tables[RETIRED])

        self.publish(manifest, work, makes_room=True)
        if remove:
            kept = self.catalogue.cache
            gone = set(numbers)
            self.catalogue.cache = NumberCache(
                state.catalogue_epoch,
                {
                    labels: number
                    for labels, number in kept.numbers.copy().items()  # readers add to it
                    if number not in gone
                },
            )

    def shrink(self) -> str:
        """Give free space back to the disk; gives why not, or nothing."""
        with self.commit_lock:
            return self.environment.shrink()

    # Producer marks.

    def mark(
        self, transaction: lmdb.Transaction, producer: str
    ) -> tuple[ProducerMark, WriteReceipt] | None:
        """Give the highest mark of a producer, and the receipt of its batch."""
        last = self._last_mark  # looked at once: another thread may commit another producer's
        if last is not None and last[0].producer == producer:
            return last
        key = text_key(producer)
        table = self.environment.tables[PRODUCERS]
        row = transaction.get(key, db=table)
        if row is None:
            check_absent(transaction, table, PRODUCERS, key)
            return None
        found = unpack_mark(key, row)
        if found[0].producer != producer:
            raise CorruptionError(f"another producer stands under {producer!r}")
        return found

    def forget_mark(self, producer: str) -> None:
        """Drop the mark of a producer."""
        # Locked: a mark committed meanwhile is kept here as in the file, or in neither.
        with self.commit_lock:
            self._last_mark = None
            self.environment.write(
                lambda transaction: transaction.delete(
                    text_key(producer), db=self.environment.tables[PRODUCERS]
                )
            )

    def _save_mark(
        self, transaction: lmdb.Transaction, mark: ProducerMark, receipt: WriteReceipt
    ) -> None:
        key = text_key(mark.producer)
        row = pack_mark(key, mark, receipt)
        transaction.put(key, row, db=self.environment.tables[PRODUCERS])

    def _raw_blocks(
        self, run: int, columns: dict[ValueKind, Columns], totals: Totals
    ) -> list[tuple[bytes, bytes]]:
        blocks: list[tuple[bytes, bytes]] = []
        for kind in sorted(columns):
            for part in split_raw(kind, columns[kind], self.settings.block_points):
                key, block = encode(run, kind, part, place=len(blocks), packer=None)
                totals.add(part, len(key) + len(block))
                blocks.append((key, block))
        return blocks

    def _read_options(self, options: StoreOptions, given: frozenset[str]) -> StoreOptions:
        """Read the options of the store, or write those of a new one."""
        meta = self.environment.tables[META]
        with self.environment.read() as transaction:
            version = transaction.get(FORMAT_KEY, db=meta)
            version = None if version is None else bytes(version)
            row = transaction.get(OPTIONS_KEY, db=meta)
            row = None if row is None else bytes(row)
            tables = self.environment.tables.values()
            is_empty = not any(transaction.stat(table)["entries"] for table in tables)
        path = self.environment.path
        if version is None:
            if not is_empty:
                raise CorruptionError(f"{path} has lost its format version")
            if self.settings.read_only:
                raise FormatVersionError(f"{path} was never opened by a writer")

            def create(transaction: lmdb.Transaction) -> None:
                packed = msgpack.packb(options.to_dict())
                transaction.put(FORMAT_KEY, str(FORMAT_VERSION).encode(), db=meta)
                transaction.put(OPTIONS_KEY, seal(META, OPTIONS_KEY, packed), db=meta)
                State().save(transaction, meta)

            self.environment.write(create)
            return options
        if version != str(FORMAT_VERSION).encode():
            raise FormatVersionError(
                f"{path} has format {version.decode(errors='replace')!r}, this version reads "
                f"{FORMAT_VERSION}; open it with a newer tsengine"
            )
        stored = unpack_options(row, path)
        stored.check_agreement(options, given, path)
        return stored


def unpack_options(row: bytes | None, path: Path) -> StoreOptions:
    """Read the row of the options of a store.

    Raises:
        CorruptionError: it is damaged or missing.
    """
    packed = unseal(META, OPTIONS_KEY, row or b"")
    try:
        return StoreOptions.from_dict(unpack_row(packed))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError(f"the options of {path} are damaged") from error
