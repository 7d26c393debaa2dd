"""Series rows: the labels of consecutive series numbers, many to a row.

    first number  ->  count (u32), where the labels of each end (u32[count]), then for each
                      name, value, name, value, … sorted by name, UTF-8, with NUL between them

This way what a series is costs a commit with many new ones a copy, and not a search in a tree
for each. Where an end equals the one before it, the series was removed and nobody reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

import lmdb
import numpy as np

from tsengine.backends.lmdb.environment import Environment, Table
from tsengine.backends.lmdb.layout import SEAL_BYTES, SERIES, pack_u64, seal, unpack_u64, unseal
from tsengine.errors import CorruptionError
from tsengine.model import Int64Array, Labels

ROW_SERIES_MAX: Final = 64
"""Most series of a row: some 4 KB, a page, which is verified in microseconds before one of
them is read."""

VERIFIED_MAX: Final = 1 << 16
"""Most rows remembered as verified: 150 bytes each."""

_U32: Final = struct.Struct("<I")
_BOUNDS: Final = struct.Struct("<II")
_END: Final = np.dtype("<u4")


class SeriesRows:
    """Reads and writes the table in transactions of its callers.

    Thread-safety: any number of threads.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._verified: dict[int, bytes] = {}  # the seal by first number, which tells if it changed

    @property
    def _table(self) -> Table:
        return self._environment.tables[SERIES]

    def labels(
        self, transaction: lmdb.Transaction, numbers: Sequence[int]
    ) -> Iterator[Labels | None]:
        """Iterate over the labels of series numbers; None for a number without."""
        cursor = transaction.cursor(self._table)
        for number in numbers:
            key = pack_u64(number)
            found = cursor.set_range(key)
            if not found or cursor.key() != key:
                found = cursor.prev() if found else cursor.last()
            packed = None
            if found:
                first, row = unpack_u64(cursor.key()), cursor.value()
                if self._verified.get(first) != row[:SEAL_BYTES]:
                    self._verify(first, row)
                place, count = number - first, _U32.unpack_from(row, SEAL_BYTES)[0]
                if 0 <= place < count:
                    packed = _packed(row, place, count)
            yield unpack_labels(number, packed) if packed else None

    def row(self, transaction: lmdb.Transaction, key: bytes) -> list[Labels]:
        """Give the labels of all series of a row, of which none was removed.

        Raises:
            CorruptionError: there is no such row, or it is damaged.
        """
        first, row = unpack_u64(key), transaction.get(key, db=self._table)
        if row is None:
            raise CorruptionError(f"series number {first} is not in the catalogue")
        packed = _all(unseal(SERIES, key, row))
        return [unpack_labels(number, one) for number, one in enumerate(packed, first)]

    def put(
        self, transaction: lmdb.Transaction, first: int, series: Sequence[Labels]
    ) -> list[bytes]:
        """Add series of consecutive numbers in a write transaction; gives the keys of the rows."""
        packed = ["\0".join(labels.texts).encode() for labels in series]
        rows = []
        for start in range(0, len(packed), ROW_SERIES_MAX):
            key = pack_u64(first + start)
            rows.append((key, _row(key, packed[start : start + ROW_SERIES_MAX])))
        transaction.cursor(self._table).putmulti(rows)
        return [key for key, _ in rows]

    def forget(self, transaction: lmdb.Transaction, numbers: Int64Array) -> None:
        """Drop the labels of series in a write transaction: numbers int64[k], ascending."""
        cursor = transaction.cursor(self._table)
        while len(numbers):
            key = pack_u64(int(numbers[0]))
            found = cursor.set_range(key)
            if not found or cursor.key() != key:
                found = cursor.prev() if found else cursor.last()
            here = 1
            if found:
                key = bytes(cursor.key())
                first, packed = unpack_u64(key), _all(unseal(SERIES, key, cursor.value()))
                here = max(here, int(numbers.searchsorted(first + len(packed))))
                for number in numbers[:here].tolist():
                    if number < first + len(packed):
                        packed[number - first] = b""
                if any(packed):
                    cursor.put(key, _row(key, packed))
                else:
                    cursor.delete()
            numbers = numbers[here:]

    def _verify(self, first: int, row: bytes | memoryview) -> None:
        _all(unseal(SERIES, pack_u64(first), row))
        if len(self._verified) >= VERIFIED_MAX:
            self._verified.clear()
        self._verified[first] = bytes(row[:SEAL_BYTES])


def unpack_labels(number: int, packed: bytes | memoryview) -> Labels:
    """Read the labels of a series.

    Raises:
        CorruptionError: they make no sense.
    """
    try:
        flat = tuple(str(packed, "utf-8").split("\0"))
        if len(flat) % 2 or "" in flat:
            raise ValueError("not pairs of text")
        return Labels.of_sorted(flat)
    except ValueError as error:
        raise CorruptionError(f"the labels of series number {number} are damaged") from error


def _packed(row: bytes | memoryview, place: int, count: int) -> bytes | memoryview:
    """Give what a row, its seal included, has of the series at a place."""
    ends = SEAL_BYTES + _U32.size
    body = ends + _U32.size * count
    if place:
        start, end = _BOUNDS.unpack_from(row, ends + _U32.size * (place - 1))
    else:
        start, end = 0, _U32.unpack_from(row, ends)[0]
    return row[body + start : body + end]


def _all(payload: bytes) -> list[bytes]:
    """Give what a row without its seal has of each series.

    Raises:
        CorruptionError: what it says of its sizes makes no sense.
    """
    try:
        count = _U32.unpack_from(payload)[0]
        ends = np.frombuffer(payload, _END, count, offset=_U32.size).tolist()
    except (ValueError, struct.error) as error:
        raise CorruptionError(f"a row of series does not decode: {error}") from error
    body = payload[_U32.size * (count + 1) :]
    return [body[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _row(key: bytes, packed: Sequence[bytes]) -> bytes:
    ends = np.cumsum(np.fromiter(map(len, packed), np.int64, len(packed)))
    return seal(
        SERIES, key, b"".join((_U32.pack(len(packed)), ends.astype(_END).tobytes(), *packed))
    )
