"""Catalogue: series numbers, labels, and the inverted index from label to series.

    names      series ID         -> series number
    series     series number     -> labels
    postings   label name, value -> series numbers, sorted

A series number is never used again. What is read here comes from the caller's transaction
and so from the caller's moment; caches hold only what no later commit can change.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import lmdb
import msgpack
import numpy as np

from tsengine.backends.lmdb.absence import check_absent
from tsengine.backends.lmdb.environment import Environment, Table
from tsengine.backends.lmdb.layout import (
    KIND_SHIFT,
    NAMES,
    POSTINGS,
    SEAL_SEEDS,
    SERIES,
    pack_u64,
    posting_key,
    posting_prefix,
    text_key,
    unpack_u64,
    unseal,
)
from tsengine.errors import CorruptionError
from tsengine.model import Int64Array, Labels, ValueKind
from tsengine.selectors import Matcher, MatchOperator, Selector

NUMBERS_MAX: Final = 1 << 21
"""Most series whose number is remembered: about 200 bytes each beside their labels."""

LABELS_MAX: Final = 1 << 18
"""Most series whose labels are remembered by number."""

SORTED_MAX: Final = 1 << 16
"""Most series that are listed by sorting their labels; more are read in the order of the
names table, which needs no labels in memory."""


def kind_of(number: int) -> ValueKind:
    """Give the value kind that a series number carries."""
    return ValueKind(number >> KIND_SHIFT)


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


class Catalogue:
    """Reads and writes the three tables in transactions of its callers.

    Thread-safety: any number of threads; `register` and `remove` need the writer's lock.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._labels: dict[int, Labels] = {}
        self.cache = NumberCache(-1)

    # Table handles are asked for each time: compacting opens the environment anew.

    @property
    def _names(self) -> Table:
        return self._environment.tables[NAMES]

    @property
    def _series(self) -> Table:
        return self._environment.tables[SERIES]

    @property
    def _postings(self) -> Table:
        return self._environment.tables[POSTINGS]

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
        cursor = transaction.cursor(self._environment.tables[SERIES])
        return not cursor.set_range(pack_u64((ValueKind.FLOAT + 1) << KIND_SHIFT))

    def look_up(
        self, transaction: lmdb.Transaction, labels: Labels, cache: NumberCache
    ) -> int | None:
        """Give the number of a series that is not in the cache, and put it there."""
        key = text_key(labels.id)
        row = transaction.get(key, db=self._environment.tables[NAMES])
        if row is None:
            return None
        number = unpack_u64(unseal(NAMES, key, row))
        if self.labels(transaction, number) is not labels:
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
        labels = self._labels.get(number)
        if labels is None:
            key = pack_u64(number)
            row = transaction.get(key, db=self._series)
            if row is None:
                raise CorruptionError(f"series number {number} is not in the catalogue")
            labels = _unpack_labels(number, unseal(SERIES, key, row))
            if len(self._labels) >= LABELS_MAX:
                self._labels.clear()
            self._labels[number] = labels
        return labels

    def register(
        self,
        transaction: lmdb.Transaction,
        newcomers: Sequence[Labels],
        kind: ValueKind,
        next_series: int,
    ) -> range:
        """List new series, and give their numbers.

        Args:
            transaction: a write transaction.
            newcomers: distinct, none of them listed.
            kind: the value kind of all of them.
            next_series: the first number to give, before its kind is added.
        """
        first = next_series + (kind << KIND_SHIFT)
        numbers = range(first, first + len(newcomers))
        names = []
        rows = []
        having: dict[tuple[str, str], list[bytes]] = {}
        pack = msgpack.Packer().pack
        # `seal` written out: 0.1 µs a row less.
        crc32 = zlib.crc32
        names_seed, series_seed = SEAL_SEEDS[NAMES], SEAL_SEEDS[SERIES]
        for labels, number in zip(newcomers, numbers, strict=True):
            packed = pack_u64(number)
            name = text_key(labels.id)
            names.append(
                (name, crc32(packed, crc32(name, names_seed)).to_bytes(4, "little") + packed)
            )
            row = pack(labels.texts)
            rows.append(
                (packed, crc32(row, crc32(packed, series_seed)).to_bytes(4, "little") + row)
            )
            texts = labels.texts
            for pair in zip(texts[::2], texts[1::2], strict=True):
                numbers_having = having.get(pair)
                if numbers_having is None:
                    having[pair] = [packed]
                else:
                    numbers_having.append(packed)
        names.sort()
        keys = sorted((posting_key(*pair), pair) for pair in having)
        postings = ((key, packed) for key, pair in keys for packed in having[pair])
        # LMDB goes down its tree once a key; sorted keys find their pages warm.
        transaction.cursor(self._names).putmulti(names)
        transaction.cursor(self._series).putmulti(rows, append=False)
        transaction.cursor(self._postings).putmulti(postings, dupdata=True)
        return numbers

    def remove(self, transaction: lmdb.Transaction, numbers: Iterable[int]) -> None:
        """Unlist series; their rows by number stay for readers of older moments."""
        for number in numbers:
            labels = self.labels(transaction, number)
            packed = pack_u64(number)
            transaction.delete(text_key(labels.id), db=self._names)
            for name, value in labels.items():
                transaction.delete(posting_key(name, value), packed, db=self._postings)

    def forget(self, transaction: lmdb.Transaction, numbers: Iterable[int]) -> None:
        """Drop the rows by number of series that nobody reads any more."""
        for number in numbers:
            transaction.delete(pack_u64(number), db=self._series)
            self._labels.pop(number, None)

    def count(self, transaction: lmdb.Transaction) -> int:
        """Count the listed series."""
        return int(transaction.stat(self._names)["entries"])

    def resolve(self, transaction: lmdb.Transaction, selector: Selector) -> Int64Array:
        """Give the numbers of the matching series, int64[k], in order of series ID."""
        if selector.exact is not None:
            number = self.number(transaction, selector.exact, NumberCache(-1))
            if number is None:
                self.check_absent(transaction, selector.exact)
            return np.array([] if number is None else [number], np.int64)
        matching = self._matching(transaction, selector.matchers)
        if matching is not None and len(matching) <= SORTED_MAX:
            listed = [self.labels(transaction, number) for number in matching.tolist()]
            # The index has no checksums: what it leads to is compared with what was asked.
            for labels in listed:
                if not selector.matches(labels):
                    raise CorruptionError(f"the index leads to {labels.id!r} for {selector}")
            by_id = sorted(range(len(listed)), key=lambda place: listed[place].id)
            return matching[by_id]
        everything = self._in_name_order(transaction)
        if matching is None:
            return everything
        return everything[np.isin(everything, matching, assume_unique=True)]

    def label_names(self, transaction: lmdb.Transaction) -> list[str]:
        """Give the names of all labels, sorted."""
        cursor = transaction.cursor(self._postings)
        names = []
        found = cursor.first()
        while found:
            key = bytes(cursor.key())
            prefix, name = self._name_of(transaction, cursor, key)
            names.append(name)
            found = cursor.set_range(prefix[:-1] + b"\1")  # past the NUL that ends the name
        return sorted(names)

    def label_values(self, transaction: lmdb.Transaction, name: str) -> list[str]:
        """Give the values of a label, sorted."""
        return sorted(value for value, _ in self._values(transaction, name))

    def _matching(
        self, transaction: lmdb.Transaction, matchers: Sequence[Matcher]
    ) -> Int64Array | None:
        """Numbers that match, ascending; None for all."""
        matching: Int64Array | None = None
        for matcher in sorted(matchers, key=_cost):
            if matching is not None and not len(matching):
                break
            if matcher.matches_empty:
                # A series without the label matches, so take away those that have it wrong.
                wrong = self._with_label(transaction, matcher, wanted=False)
                if len(wrong):
                    if matching is None:
                        matching = np.sort(self._in_name_order(transaction))
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
        else:
            keys = [
                key
                for value, key in self._values(transaction, matcher.name)
                if matcher.matches(value) is wanted
            ]
        postings = [self._posting(transaction, key) for key in keys]
        if len(postings) == 1:
            return postings[0]
        return np.sort(np.concatenate(postings)) if postings else np.empty(0, np.int64)

    def _posting(self, transaction: lmdb.Transaction, key: bytes) -> Int64Array:
        cursor = transaction.cursor(self._postings)
        packed = b"".join(cursor.iternext_dup()) if cursor.set_key(key) else b""
        return np.frombuffer(packed, ">u8").astype(np.int64)

    def _values(self, transaction: lmdb.Transaction, name: str) -> Iterator[tuple[str, bytes]]:
        """Iterate over the values of a label and their keys."""
        prefix = posting_prefix(name)
        cursor = transaction.cursor(self._postings)
        found = cursor.set_range(prefix)
        while found:
            key = bytes(cursor.key())
            if not key.startswith(prefix):
                return
            if key[len(prefix) : len(prefix) + 1] == b"=":
                yield _text(key[len(prefix) + 1 :]), key
            else:  # a hashed value: its text stands in the labels of any series that has it
                yield self.labels(transaction, unpack_u64(cursor.value()))[name], key
            found = cursor.next_nodup()

    def _name_of(
        self, transaction: lmdb.Transaction, cursor: lmdb.Cursor, key: bytes
    ) -> tuple[bytes, str]:
        """Give the prefix and the label name of a posting key."""
        if key[:1] == b"=":
            end = key.find(b"\0")
            return key[: end + 1], _text(key[1:end])
        prefix = key[:34]  # "#", 32 bytes of hash, NUL
        labels = self.labels(transaction, unpack_u64(cursor.value()))
        return prefix, next(name for name in labels if posting_prefix(name) == prefix)

    def _in_name_order(self, transaction: lmdb.Transaction) -> Int64Array:
        """All numbers in order of series ID.

        The keys of the names table sort as the IDs do, but for IDs too long for a key:
        those are sorted by themselves and merged in.
        """
        cursor = transaction.cursor(self._names)
        hashed = []
        found = cursor.first()
        while found and bytes(cursor.key()[:1]) == b"#":
            number = unpack_u64(unseal(NAMES, cursor.key(), cursor.value()))
            hashed.append((self.labels(transaction, number).id.encode(), number))
            found = cursor.next()
        if not found:
            return np.array([number for _, number in sorted(hashed)], np.int64)
        if not hashed:
            packed = b"".join([unseal(NAMES, key, row) for key, row in cursor])
            return np.frombuffer(packed, ">u8").astype(np.int64)
        short = ((bytes(key[1:]), unpack_u64(unseal(NAMES, key, row))) for key, row in cursor)
        merged = heapq.merge(sorted(hashed), short)
        return np.fromiter((number for _, number in merged), np.int64)


def _unpack_labels(number: int, row: bytes | memoryview) -> Labels:
    try:
        flat = msgpack.unpackb(row, use_list=False)
        if len(flat) % 2 or not all(isinstance(text, str) for text in flat):
            raise ValueError("not pairs of text")
        return Labels.of_sorted(flat)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptionError(f"the labels of series number {number} are damaged") from error


def _text(part: bytes) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError as error:
        raise CorruptionError(f"the index has a damaged label {part!r}") from error


def _cost(matcher: Matcher) -> int:
    """Equality first, then what narrows, then what only takes away."""
    if matcher.operator is MatchOperator.EQUAL and not matcher.matches_empty:
        return 0
    return 2 if matcher.matches_empty else 1
