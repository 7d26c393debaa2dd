"""Catalogue: series numbers, labels, and the inverted index from label to series.

    names      series ID          -> series number
    series     series numbers     -> labels              (series_rows.py)
    postings   label name, value  -> series numbers      (postings.py)
    unindexed  first number of a row of `series` whose series are in neither other table yet

A commit with many new series writes their labels, a few hundred to a row, and notes these
rows as unindexed: that is all it takes to list them. The searchable tables follow in slices,
so that no other commit waits for long. Until then readers look through those rows themselves.

A series number is never used again. What is read here comes from the caller's transaction
and so from the caller's moment; caches hold only what no later commit can change.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Final, cast
from zlib import crc32

import lmdb
import numpy as np

from tsengine.backends.lmdb.absence import check_absent
from tsengine.backends.lmdb.environment import Environment, Table
from tsengine.backends.lmdb.layout import (
    KIND_SHIFT,
    META,
    NAMES,
    SEAL_BYTES,
    SEAL_SEEDS,
    SERIES,
    UNINDEXED,
    pack_u64,
    posting_key,
    seal,
    text_key,
    unpack_u64,
    unseal,
)
from tsengine.backends.lmdb.postings import LabelsOf, Postings
from tsengine.backends.lmdb.runs import State
from tsengine.backends.lmdb.series_rows import ROW_SERIES_MAX, SeriesRows
from tsengine.errors import CorruptionError
from tsengine.model import Int64Array, Labels, ValueKind
from tsengine.model.labels import ids_of, series_ids
from tsengine.selectors import Matcher, MatchOperator, Selector

NUMBERS_MAX: Final = 1 << 21
"""Most series whose number is remembered: about 75 bytes each beside their labels."""

LABELS_MAX: Final = 1 << 17
"""Most series whose labels are remembered by number: about 400 bytes each."""

RESOLVED_MAX: Final = 64
"""Most selectors whose series are remembered: programs ask the same again and again."""

RESOLVED_NUMBERS_MAX: Final = 1 << 16
"""Most series of one of them: half a megabyte."""

SORTED_MAX: Final = 1 << 16
"""Most series that are listed by sorting their labels; more are read in the order of the
names table, which needs no labels in memory."""

INDEXED_AT_ONCE_MAX: Final = 512
"""Most new series that a commit puts into the searchable tables itself: some 5 ms."""

SLICE_ROWS: Final = 64
"""Rows of `series` that are indexed in one transaction: 4,096 series, some 10 ms."""


_KINDS: Final = {int(kind): kind for kind in ValueKind}  # to call the enum takes thrice as long


def kind_of(number: int) -> ValueKind:
    """Give the value kind that a series number carries."""
    kind = number >> KIND_SHIFT
    return _KINDS.get(kind) or ValueKind(kind)


@dataclass(slots=True)
class NumberCache:
    """Numbers of series, valid for one epoch: until some series is removed.

    Readers that hold an older one go on adding to it, which harms nobody.
    """

    epoch: int
    numbers: dict[Labels, int] = field(default_factory=dict)

    def add_all(self, labels: Sequence[Labels], numbers: range) -> None:
        """Remember series that were just committed."""
        if len(self.numbers) + len(labels) > NUMBERS_MAX:
            self.numbers.clear()
        self.numbers.update(zip(labels, numbers, strict=True))

    def add(self, labels: Labels, number: int) -> None:
        """Remember a committed series."""
        if len(self.numbers) >= NUMBERS_MAX:
            self.numbers.clear()
        self.numbers[labels] = number


@dataclass(frozen=True, eq=False)
class Unindexed:
    """The series that are listed and not in the searchable tables yet, at one moment.

    Attributes:
        rows: their labels by the key of the row, which is the number of the first.
    """

    rows: Mapping[bytes, Sequence[Labels]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def __iter__(self) -> Iterator[tuple[int, Labels]]:
        for key, series in self.rows.items():
            yield from enumerate(series, unpack_u64(key))

    def number(self, labels: Labels) -> int | None:
        """Give the number of a series, None where it is not here."""
        return self._numbers.get(labels)

    @cached_property
    def _numbers(self) -> dict[Labels, int]:
        # Made as a whole before others see it: where half of it is there, a series is missed,
        # and would be listed a second time.
        return {labels: number for number, labels in self}


_ALL_INDEXED: Final = Unindexed()


class Catalogue:
    """Reads and writes its tables in transactions of its callers.

    Thread-safety: any number of threads; `register` and `remove` need the writer's lock.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self.postings = Postings(environment)
        self._rows = SeriesRows(environment)
        self._labels: dict[int, Labels] = {}
        # As the last reader found them, and the moment that it saw.
        self._unindexed: tuple[int, Unindexed] = -1, _ALL_INDEXED
        # What selectors resolved to, as long as the index stays as it is.
        self._resolved: dict[Selector, tuple[object, Int64Array]] = {}
        self.owes_index = False  # in the writing process: whether `index` has something to do
        self.cache = NumberCache(-1)

    # Table handles are asked for each time: compacting opens the environment anew.

    @property
    def _names(self) -> Table:
        return self._environment.tables[NAMES]

    @property
    def _series(self) -> Table:
        return self._environment.tables[SERIES]

    def number_cache(self, epoch: int) -> NumberCache:
        """Give the cache for an epoch: the shared one, or where that is newer an empty one."""
        cache = self.cache
        if cache.epoch == epoch:
            return cache
        fresh = NumberCache(epoch)
        if epoch > cache.epoch:
            self.cache = fresh
        return fresh

    def number(
        self, transaction: lmdb.Transaction, labels: Labels, cache: NumberCache
    ) -> int | None:
        """Give the number of a series, None where it is not listed."""
        number = cache.numbers.get(labels)
        return self.look_up(transaction, labels, cache) if number is None else number

    def holds_only_floats(self, transaction: lmdb.Transaction) -> bool:
        """Whether every series ever listed holds floats: theirs are the lowest numbers."""
        cursor = transaction.cursor(self._series)
        return not cursor.set_range(pack_u64((ValueKind.FLOAT + 1) << KIND_SHIFT))

    def look_up(
        self, transaction: lmdb.Transaction, labels: Labels, cache: NumberCache
    ) -> int | None:
        """Give the number of a series that is not in the cache, and put it there."""
        key = text_key(labels.id)
        row = transaction.get(key, db=self._names)
        if row is None:
            number = self.unindexed(transaction).number(labels)
            if number is None:
                return None
        else:
            number = unpack_u64(unseal(NAMES, key, row))
            # A key that is no hash is the ID itself, so nobody else can stand there.
            if key[:1] == b"#" and self.labels(transaction, number) is not labels:
                raise CorruptionError(f"the catalogue has another series under {labels.id!r}")
        cache.add(labels, number)
        return number

    def check_absent(self, transaction: lmdb.Transaction, labels: Labels) -> None:
        """Check that a series was not found because it is not listed, and not for damage.

        Raises:
            CorruptionError: its row may have been lost.
        """
        check_absent(transaction, self._names, NAMES, text_key(labels.id))

    def labels(self, transaction: lmdb.Transaction, number: int) -> Labels:
        """Give the labels of a series number.

        Raises:
            CorruptionError: there is no such series, or its row is damaged.
        """
        return self.labels_of(transaction, (number,))[0]

    def labels_of(
        self, transaction: lmdb.Transaction, numbers: Sequence[int], *, remember: bool = True
    ) -> list[Labels]:
        """Give the labels of series numbers, and remember them if that is wanted.

        Raises:
            CorruptionError: as in `labels`.
        """
        known = self._labels
        listed = list(map(known.get, numbers))
        missing = [place for place, labels in enumerate(listed) if labels is None]
        if missing and remember and len(known) + len(missing) > LABELS_MAX:
            self._labels = known = {}
        found = self._rows.labels(transaction, [numbers[place] for place in missing])
        for place, labels in zip(missing, found, strict=True):
            if labels is None:
                raise CorruptionError(f"series number {numbers[place]} is not in the catalogue")
            listed[place] = labels
            if remember:
                known[numbers[place]] = labels
        return cast("list[Labels]", listed)

    # Changing.

    def register(
        self,
        transaction: lmdb.Transaction,
        newcomers: Sequence[Labels],
        kind: ValueKind,
        next_series: int,
    ) -> range:
        """List new series, and give their numbers.

        More than `INDEXED_AT_ONCE_MAX` are left to `index`.

        Args:
            transaction: a write transaction.
            newcomers: distinct, none of them listed.
            kind: the value kind of all of them.
            next_series: the first number to give, before its kind is added.
        """
        first = next_series + (kind << KIND_SHIFT)
        numbers = range(first, first + len(newcomers))
        keys = self._rows.put(transaction, first, newcomers)
        if len(newcomers) > INDEXED_AT_ONCE_MAX:
            table = self._environment.tables[UNINDEXED]
            notes = [(key, seal(UNINDEXED, key, b"")) for key in keys]
            transaction.cursor(table).putmulti(notes)
        else:
            names, having = _index_of(zip(numbers, newcomers, strict=True))
            transaction.cursor(self._names).putmulti(names)
            self.postings.extend(transaction, having)
        return numbers

    def remember(self, newcomers: Sequence[Labels], numbers: range) -> None:
        """Keep in mind series whose registration was just committed."""
        self.cache.add_all(newcomers, numbers)
        if len(newcomers) > INDEXED_AT_ONCE_MAX:
            self.owes_index = True
            rows = dict(self._unindexed[1].rows)
            for start in range(0, len(newcomers), ROW_SERIES_MAX):
                rows[pack_u64(numbers[start])] = newcomers[start : start + ROW_SERIES_MAX]
            self._unindexed = -1, Unindexed(rows)  # to be compared with the notes

    def look_for_unindexed(self, transaction: lmdb.Transaction) -> None:
        """Learn whether commits have left something for `index`."""
        table = self._environment.tables[UNINDEXED]
        self.owes_index = bool(transaction.cursor(table).first())

    def index(self) -> bool:
        """Put a slice of the unindexed series into the searchable tables; whether there was one.

        In transactions of its own; one thread at a time.
        """
        table = self._environment.tables[UNINDEXED]
        with self._environment.read() as transaction:
            rows = self.unindexed(transaction).rows
        some = Unindexed(dict(islice(rows.items(), SLICE_ROWS)))
        names, having = _index_of(some)

        def work(transaction: lmdb.Transaction) -> None:
            transaction.cursor(self._names).putmulti(names)
            self.postings.put(transaction, having)
            for key in some.rows:
                transaction.delete(key, db=table)

        if some.rows:
            self._environment.write(work)
        return bool(some.rows)

    def remove(self, transaction: lmdb.Transaction, numbers: Iterable[int]) -> None:
        """Unlist series, all indexed; their rows by number stay for readers of older moments."""
        names, having = _index_of((number, self.labels(transaction, number)) for number in numbers)
        for key, _ in names:
            transaction.delete(key, db=self._names)
        self.postings.remove(transaction, having)

    def forget(self, transaction: lmdb.Transaction, numbers: Int64Array) -> None:
        """Drop the labels of series that nobody reads any more: numbers int64[k], ascending."""
        self._rows.forget(transaction, numbers)
        for number in numbers.tolist():
            self._labels.pop(number, None)

    # Reading.

    def unindexed(self, transaction: lmdb.Transaction) -> Unindexed:
        """Give the series that are not in the searchable tables, to a read transaction.

        The notes are looked through once for a moment: a commit asks for each new series.
        """
        moment = self._environment.moment(transaction)
        seen, known = self._unindexed
        if seen == moment:
            return known
        table = self._environment.tables[UNINDEXED]
        notes = [(bytes(key), bytes(note)) for key, note in transaction.cursor(table)]
        keys = [key for key, _ in notes]
        if not keys:
            known = _ALL_INDEXED
        elif list(known.rows) != keys:
            for key, note in notes:
                unseal(UNINDEXED, key, note)
            rows = {key: known.rows.get(key) or self._rows.row(transaction, key) for key in keys}
            known = Unindexed(rows)
        self._unindexed = moment, known
        return known

    def resolve(self, transaction: lmdb.Transaction, selector: Selector) -> Int64Array:
        """Give the numbers of the matching series, int64[k], in order of series ID.

        The array is shared, and nobody may change it.
        """
        if selector.exact is not None:
            number = self.number(transaction, selector.exact, NumberCache(-1))
            if number is None:
                self.check_absent(transaction, selector.exact)
            return np.array([] if number is None else [number], np.int64)
        version = self._index_version(transaction)
        known = self._resolved.get(selector)
        if known is not None and known[0] == version:
            return known[1]
        numbers = self._resolve(transaction, selector)
        if len(numbers) <= RESOLVED_NUMBERS_MAX:
            if len(self._resolved) >= RESOLVED_MAX:
                self._resolved.clear()
            numbers.flags.writeable = False
            self._resolved[selector] = version, numbers
        return numbers

    def _resolve(self, transaction: lmdb.Transaction, selector: Selector) -> Int64Array:
        more = [one for one in self.unindexed(transaction) if selector.matches(one[1])]
        matching = self._matching(transaction, selector.matchers)
        if matching is None:
            return self._in_name_order(transaction, more)
        if more:
            matching = np.append(matching, [number for number, _ in more])
            matching.sort()
        if len(matching) <= SORTED_MAX:
            names = ids_of(self.labels_of(transaction, matching.tolist()))
            return matching[sorted(range(len(names)), key=names.__getitem__)]
        everything = self._in_name_order(transaction, more)
        return everything[np.isin(everything, matching, assume_unique=True)]

    def label_names(self, transaction: lmdb.Transaction) -> list[str]:
        """Give the names of all labels, sorted."""
        names = set(self.postings.names(transaction, self._labels_of(transaction)))
        for _, labels in self.unindexed(transaction):
            names.update(labels)
        return sorted(names)

    def label_values(self, transaction: lmdb.Transaction, name: str) -> list[str]:
        """Give the values of a label, sorted."""
        version = self._index_version(transaction)
        values = set(self.postings.values(transaction, name, self._labels_of(transaction), version))
        for _, labels in self.unindexed(transaction):
            if name in labels:
                values.add(labels[name])
        return sorted(values)

    def _labels_of(self, transaction: lmdb.Transaction) -> LabelsOf:
        return lambda number: self.labels(transaction, number)

    def _matching(
        self, transaction: lmdb.Transaction, matchers: Sequence[Matcher]
    ) -> Int64Array | None:
        """Numbers of indexed series that match, ascending; None for all."""
        matching: Int64Array | None = None
        for matcher in sorted(matchers, key=_cost):
            if matching is not None and not len(matching):
                break
            if matcher.matches_empty:
                # A series without the label matches, so take away those that have it wrong.
                wrong = self._with_label(transaction, matcher, wanted=False)
                if len(wrong):
                    if matching is None:
                        matching = np.sort(self._in_name_order(transaction, ()))
                    matching = np.setdiff1d(matching, wrong, assume_unique=True)
            else:
                right = self._with_label(transaction, matcher, wanted=True)
                if matching is None:
                    matching = right
                else:
                    matching = np.intersect1d(matching, right, assume_unique=True)
        return matching

    def _with_label(
        self, transaction: lmdb.Transaction, matcher: Matcher, *, wanted: bool
    ) -> Int64Array:
        """Numbers of the series that have the label with a value that matches, or does not."""
        lists = matcher.operator in (MatchOperator.EQUAL, MatchOperator.MATCHES)
        if wanted and lists and matcher.literals is not None:
            keys = [posting_key(matcher.name, value) for value in matcher.literals if value]
            postings = [self.postings.numbers(transaction, key) for key in keys]
            if len(postings) == 1:
                return postings[0]
            return np.sort(np.concatenate(postings)) if postings else np.empty(0, np.int64)
        return self.postings.matching(
            transaction,
            matcher.name,
            lambda value: matcher.matches(value) is wanted,
            self._labels_of(transaction),
            self._index_version(transaction),
        )

    def _index_version(self, transaction: lmdb.Transaction) -> object:
        """Give what changes whenever the rows of `postings` do.

        Registering takes numbers, removing begins an epoch, and a slice of indexing takes
        notes away.
        """
        tables = self._environment.tables
        state = State.load(transaction, tables[META])
        notes = transaction.stat(tables[UNINDEXED])["entries"]
        return state.catalogue_epoch, state.next_series, notes

    def _in_name_order(
        self, transaction: lmdb.Transaction, unindexed: Iterable[tuple[int, Labels]]
    ) -> Int64Array:
        """All numbers of the names table and some that are not in it, in order of series ID.

        The keys of the table sort as the IDs do, but for IDs too long for a key: those, and
        what is not in the table, are sorted by themselves and merged in.
        """
        cursor = transaction.cursor(self._names)
        others = [(labels.id.encode(), number) for number, labels in unindexed]
        found = cursor.first()
        while found and bytes(cursor.key()[:1]) == b"#":
            number = unpack_u64(unseal(NAMES, *cursor.item()))
            others.append((self.labels(transaction, number).id.encode(), number))
            found = cursor.next()
        others.sort()
        if not found:
            return np.array([number for _, number in others], np.int64)
        if not others:
            packed = b"".join([unseal(NAMES, key, row) for key, row in cursor])
            return np.frombuffer(packed, ">u8").astype(np.int64)
        short = ((bytes(key[1:]), unpack_u64(unseal(NAMES, key, row))) for key, row in cursor)
        merged = heapq.merge(others, short)
        return np.fromiter((number for _, number in merged), np.int64)


def _index_of(
    series: Iterable[tuple[int, Labels]],
) -> tuple[list[tuple[bytes, bytes]], dict[bytes, list[int]]]:
    """Give what stands for series in the searchable tables: 2 µs each.

    Returns:
        The rows of `names`, by key, since LMDB goes down its tree once a key and finds pages
        warm where keys are sorted; and by posting key the numbers that have the label.
    """
    # Series with the same label names go by columns, which takes half the time.
    alike: defaultdict[tuple[str, ...], list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
    for number, labels in series:
        texts = labels.texts
        alike[texts[::2]].append((number, texts[1::2]))
    rows: list[tuple[bytes, bytes]] = []
    having: defaultdict[bytes, list[int]] = defaultdict(list)
    seed = SEAL_SEEDS[NAMES]
    for names, members in alike.items():
        numbers = [number for number, _ in members]
        columns = list(zip(*(values for _, values in members), strict=True))
        keys = map(text_key, series_ids(names, columns))
        for key, packed in zip(keys, map(pack_u64, numbers), strict=True):
            # `seal` written out, without the call.
            checksum = crc32(packed, crc32(key, seed))
            rows.append((key, checksum.to_bytes(SEAL_BYTES, "little") + packed))
        for name, values in zip(names, columns, strict=True):
            holders: defaultdict[str, list[int]] = defaultdict(list)
            for value, number in zip(values, numbers, strict=True):
                holders[value].append(number)
            for value, some in holders.items():
                having[posting_key(name, value)] += some
    rows.sort()
    if len(alike) > 1:
        for some in having.values():
            some.sort()
    return rows, having


def _cost(matcher: Matcher) -> int:
    """Equality first, then what narrows, then what only takes away."""
    if matcher.operator is MatchOperator.EQUAL and not matcher.matches_empty:
        return 0
    return 2 if matcher.matches_empty else 1
