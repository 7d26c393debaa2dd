"""Postings: for each label the numbers of the series that have it, packed.

    label name, value, base  ->  numbers of series, as distances from the base, ascending

A label may have many rows. Registering few series goes on with the last row of each of their
labels; registering many puts a row a label and slice, which needs no look at what is there.
So the rows of a label may overlap, and a reader sorts where they do.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, TypeAlias

import lmdb
import numpy as np

from tsengine.backends.lmdb.absence import check_absent
from tsengine.backends.lmdb.environment import Environment, Table
from tsengine.backends.lmdb.layout import (
    POSTINGS,
    pack_u64,
    posting_prefix,
    seal,
    unpack_u64,
    unseal,
)
from tsengine.errors import CorruptionError
from tsengine.model import Int64Array, Labels

ROW_NUMBERS_MAX: Final = 1_000
"""Most numbers of a row: with its key it fills one overflow page of LMDB."""

LabelsOf: TypeAlias = Callable[[int], Labels]
"""Gives the labels of a series number; asked where only they tell what a hash stands for."""

_DISTANCE: Final = np.dtype("<u4")
_DISTANCE_END: Final = 1 << 32
_FEW: Final = 16
"""Numbers up to which a row is packed faster without numpy."""

_STEPS_MAX: Final = 16
"""Rows of a value that are stepped over: that many take as long as one search."""

VALUES_MAX: Final = 1 << 16
"""Most values of labels that are remembered, of all labels together: some 150 bytes each."""

_FEW_LABELS: Final = 64
"""Values up to which the rows of each are searched for rather than all walked along."""

_PLAIN: Final = ord("=")
_BASE_BYTES: Final = 8
_HASH_PART_BYTES: Final = 33
"""A `#` and a hash of 32 bytes: what stands in a key for a text that is too long for it."""


class Postings:
    """Reads and writes the table in transactions of its callers.

    A label is told by its `posting_key`. Thread-safety: any number of threads.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._listed: dict[str, tuple[object, list[tuple[str, bytes]]]] = {}  # by label name

    @property
    def _table(self) -> Table:
        return self._environment.tables[POSTINGS]

    def numbers(self, transaction: lmdb.Transaction, label: bytes) -> Int64Array:
        """Give the numbers of the series that have a label, ascending."""
        prefix = label + b"\0"
        cursor = transaction.cursor(self._table)
        rows = _Rows()
        found = cursor.set_range(prefix)
        while found:
            key, value = cursor.item()
            if key[:-_BASE_BYTES] != prefix:
                break
            rows.add(key, value)
            found = cursor.next()
        # A row whose key was damaged would stand beside the others, or in their place.
        for edge in (prefix, prefix + b"\xff" * _BASE_BYTES):
            check_absent(transaction, self._table, POSTINGS, edge)
        return rows.numbers()

    def matching(
        self,
        transaction: lmdb.Transaction,
        name: str,
        is_wanted: Callable[[str], bool],
        texts: LabelsOf,
        version: object,
    ) -> Int64Array:
        """Give the numbers of the series whose value of a label is wanted, ascending.

        Args:
            transaction: any.
            name: of the label.
            is_wanted: asked once for each value.
            texts: as `LabelsOf` says.
            version: of the whole table, at the moment of the transaction.
        """
        listed = self._values(transaction, name, texts, version)
        wanted = {label for value, label in listed if is_wanted(value)}
        if len(wanted) <= _FEW_LABELS:
            found = [self.numbers(transaction, label) for label in sorted(wanted)]
            return np.sort(np.concatenate(found)) if found else np.empty(0, np.int64)
        rows = _Rows()
        for _, label, cursor in self._walk(transaction, name, texts):
            if label in wanted:
                key, packed = cursor.item()
                prefix = label + b"\0"
                while key[:-_BASE_BYTES] == prefix:
                    rows.add(key, packed)
                    if not cursor.next():
                        break
                    key, packed = cursor.item()
        return rows.numbers()

    def values(
        self, transaction: lmdb.Transaction, name: str, texts: LabelsOf, version: object
    ) -> list[str]:
        """Give the values that a label has, in no particular order; arguments as in `matching`."""
        return [value for value, _ in self._values(transaction, name, texts, version)]

    def _values(
        self, transaction: lmdb.Transaction, name: str, texts: LabelsOf, version: object
    ) -> list[tuple[str, bytes]]:
        """Give the values of a label and their keys: walked along once for a version."""
        known = self._listed.get(name)
        if known is not None and known[0] == version:
            return known[1]
        listed = [(value, label) for value, label, _ in self._walk(transaction, name, texts)]
        others = {key: one for key, one in self._listed.copy().items() if one[0] == version}
        if len(listed) + sum(len(one[1]) for one in others.values()) <= VALUES_MAX:
            self._listed = {**others, name: (version, listed)}
        return listed

    def names(self, transaction: lmdb.Transaction, texts: LabelsOf) -> list[str]:
        """Give the names of all labels, in no particular order."""
        cursor = transaction.cursor(self._table)
        names = []
        found = cursor.first()
        key = b""
        while found:
            key = _ascending(key, bytes(cursor.key()))
            unseal(POSTINGS, key, cursor.value())
            if key[:1] == b"=":
                prefix = key[: key.index(b"\0") + 1]
                names.append(prefix[1:-1].decode())
            else:
                prefix = key[: _HASH_PART_BYTES + 1]
                labels = texts(unpack_u64(key[-_BASE_BYTES:]))
                names.append(next(name for name in labels if posting_prefix(name) == prefix))
            # Past the NUL that ends the name.
            found = self._leap(transaction, cursor, prefix[:-1] + b"\1")
        return names

    def labels(self, transaction: lmdb.Transaction) -> Iterator[tuple[bytes, Int64Array]]:
        """Iterate over all labels: the key of each, and the numbers that have it, ascending."""
        label, rows = b"", _Rows()
        for key, value in transaction.cursor(self._table):
            if key[: -_BASE_BYTES - 1] != label:
                if label:
                    yield label, rows.numbers()
                label, rows = bytes(key[: -_BASE_BYTES - 1]), _Rows()
            rows.add(key, value)
        if label:
            yield label, rows.numbers()

    def put(self, transaction: lmdb.Transaction, having: Mapping[bytes, Sequence[int]]) -> None:
        """Add rows for many series at once, a microsecond a label.

        Args:
            transaction: a write transaction.
            having: numbers by label, ascending; in no row of the label yet.
        """
        rows = []
        for label in sorted(having):
            numbers = having[label]
            base = numbers[0]
            if len(numbers) <= _FEW and numbers[-1] - base < _DISTANCE_END:
                key = label + b"\0" + pack_u64(base)
                distances = struct.pack(f"<{len(numbers)}I", *[one - base for one in numbers])
                rows.append((key, seal(POSTINGS, key, distances)))
            else:
                rows += _packed(label + b"\0", np.array(numbers, np.int64))
        transaction.cursor(self._table).putmulti(rows)

    def extend(self, transaction: lmdb.Transaction, having: Mapping[bytes, Sequence[int]]) -> None:
        """Add series to the rows that their labels have: for few series; as `put` otherwise."""
        cursor = transaction.cursor(self._table)
        for label in sorted(having):
            prefix = label + b"\0"
            added = np.array(having[label], np.int64)
            found = _row_before(cursor, prefix, int(added[0]))
            if found is not None:
                base, held = found
                # Where rows overlap is not for here: they are sorted when they are read.
                if len(held) < ROW_NUMBERS_MAX and int(added[-1]) - base < _DISTANCE_END:
                    added = np.union1d(held, added)
            for key, value in _packed(prefix, added):
                cursor.put(key, value)

    def remove(self, transaction: lmdb.Transaction, having: Mapping[bytes, Sequence[int]]) -> None:
        """Take series away; as `put` otherwise.

        Raises:
            CorruptionError: some are not there.
        """
        cursor = transaction.cursor(self._table)
        for label in sorted(having):
            prefix = label + b"\0"
            gone = np.array(having[label], np.int64)
            last = int(gone[-1])
            # From the last row that can hold them backwards: mostly it is there, but rows
            # may overlap.
            while len(gone):
                found = _row_before(cursor, prefix, last)
                if found is None:
                    raise CorruptionError(
                        f"the index lacks series number {gone[0]} under {label[:80]!r}"
                    )
                base, held = found
                last = base - 1
                kept = held[~np.isin(held, gone, assume_unique=True)]
                if len(kept) == len(held):
                    continue
                gone = gone[~np.isin(gone, held, assume_unique=True)]
                cursor.delete()
                for key, value in _packed(prefix, kept):
                    cursor.put(key, value)

    def _leap(self, transaction: lmdb.Transaction, cursor: lmdb.Cursor, edge: bytes) -> bool:
        """Go to the first row behind a key that no row has, and see that none was lost there."""
        check_absent(transaction, self._table, POSTINGS, edge)
        return bool(cursor.set_range(edge))

    def _walk(
        self, transaction: lmdb.Transaction, name: str, texts: LabelsOf
    ) -> Iterator[tuple[str, bytes, lmdb.Cursor]]:
        """Iterate over the values of a label: each with its key, and the cursor at its first row.

        The cursor may be moved on among the rows of that value, and to the first behind them.
        """
        prefix = posting_prefix(name)
        cursor = transaction.cursor(self._table)
        found = self._leap(transaction, cursor, prefix)
        key = b""
        while found:
            key = _ascending(key, bytes(cursor.key()))
            unseal(POSTINGS, key, cursor.value())
            if not key.startswith(prefix):
                return
            begins = len(prefix)
            if key[begins] == _PLAIN:
                ends = key.index(b"\0", begins)
                value = key[begins + 1 : ends].decode()
            else:  # its text stands in the labels of any series that has it
                ends = begins + _HASH_PART_BYTES
                value = texts(unpack_u64(key[-_BASE_BYTES:]))[name]
            yield value, key[:ends], cursor
            behind = cursor.key()
            if behind[: ends + 1] == key[: ends + 1]:
                found = cursor.next()
                steps = 0
                while found and cursor.key()[: ends + 1] == key[: ends + 1]:
                    steps += 1
                    if steps == _STEPS_MAX:  # past the NUL behind the value
                        found = self._leap(transaction, cursor, key[:ends] + b"\1")
                        break
                    found = cursor.next()
            else:
                found = bool(behind)


def _ascending(before: bytes, key: bytes) -> bytes:
    """Give a key that stands behind another one, as it should."""
    if key <= before:
        raise CorruptionError(f"keys of the index are out of order: {before!r}, {key!r}")
    return key


class _Rows:
    """Gathers rows, to decode them all at once: with one row a label that halves the time."""

    __slots__ = ("_bases", "_distances", "_last")

    def __init__(self) -> None:
        self._bases: list[bytes] = []
        self._distances: list[bytes] = []
        self._last = b""

    def add(self, key: bytes | memoryview, value: bytes | memoryview) -> None:
        """Take a row, behind those taken before.

        Raises:
            CorruptionError: it is damaged, or not behind them.
        """
        self._last = _ascending(self._last, bytes(key))
        self._bases.append(bytes(key[-_BASE_BYTES:]))
        self._distances.append(unseal(POSTINGS, key, value))

    def numbers(self) -> Int64Array:
        """Give the numbers of the rows, ascending: int64[n]."""
        counts = np.fromiter(map(len, self._distances), np.int64) // _DISTANCE.itemsize
        bases = np.frombuffer(b"".join(self._bases), ">u8").astype(np.int64)
        numbers: Int64Array = np.repeat(bases, counts)
        numbers += np.frombuffer(b"".join(self._distances), _DISTANCE)
        if (numbers[1:] < numbers[:-1]).any():
            numbers.sort()
        return numbers


def _row_before(cursor: lmdb.Cursor, prefix: bytes, number: int) -> tuple[int, Int64Array] | None:
    """Go to the last row of a label that begins at or before a number; give it."""
    found = cursor.set_range(prefix + pack_u64(number + 1))
    if not (cursor.prev() if found else cursor.last()):
        return None
    key, value = cursor.item()
    if key[:-_BASE_BYTES] != prefix:
        return None
    row = _Rows()
    row.add(key, value)
    return unpack_u64(key[-_BASE_BYTES:]), row.numbers()


def _packed(prefix: bytes, numbers: Int64Array) -> list[tuple[bytes, bytes]]:
    """Give the rows for ascending numbers of one label.

    They may be of several kinds, which are too far apart to stand in one row.
    """
    rows = []
    first = 0
    while first < len(numbers):
        base = int(numbers[first])
        near = int(numbers.searchsorted(base + _DISTANCE_END))
        part = numbers[first : min(near, first + ROW_NUMBERS_MAX)]
        key = prefix + pack_u64(base)
        rows.append((key, seal(POSTINGS, key, (part - base).astype(_DISTANCE).tobytes())))
        first += len(part)
    return rows
