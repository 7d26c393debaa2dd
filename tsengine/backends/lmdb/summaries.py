"""Summaries: the headers of a run's blocks as columns, so that many answer at once.

A run never changes, so its headers are read once, and are there as columns for whoever asks next.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import lmdb
import numpy as np
import numpy.typing as npt

from tsengine.backends.lmdb.blocks import HEADER_BYTES, HEADER_DTYPE, are_sound, read_header
from tsengine.backends.lmdb.layout import block_key, pack_u64
from tsengine.backends.lmdb.reading import BlockReader
from tsengine.backends.lmdb.runs import Run
from tsengine.errors import CorruptionError
from tsengine.model import Int64Array

SUMMARIES_BYTES_MAX: Final = 32 << 20
"""Memory for summaries: of 3 billion points in full blocks."""

SEEKS_PER_BLOCK: Final = 4
"""Blocks that are read one after the other in the time of seeking one."""

_KEY: Final = np.dtype([("run", ">u8"), ("series", ">u8"), ("timestamp", ">u8")])
_SIGN: Final = np.uint64(1 << 63)


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """Some blocks of one run, or all, in order of key.

    Attributes:
        series: int64[b], series of the first row.
        timestamps: int64[b], timestamp of the first row.
        headers: [b], of `HEADER_DTYPE`.
    """

    series: Int64Array
    timestamps: Int64Array
    headers: npt.NDArray[np.void]

    def __len__(self) -> int:
        return len(self.series)

    @classmethod
    def none(cls) -> Summary:
        """Give a summary of no blocks."""
        return _summary((), ())

    def take(self, rows: npt.NDArray[np.bool_] | slice) -> Summary:
        """Give some of the blocks."""
        return Summary(self.series[rows], self.timestamps[rows], self.headers[rows])


class Summaries:
    """Reads summaries and keeps those of whole runs.

    Thread-safety: any number of threads.
    """

    def __init__(self, reader: BlockReader) -> None:
        self._reader = reader
        self._kept: OrderedDict[int, Summary] = OrderedDict()  # by run
        self._bytes = 0
        self._lock = threading.Lock()  # guards both where they change

    def forget(self, run: int) -> None:
        """Drop the summary of a run that was merged away."""
        with self._lock:
            summary = self._kept.pop(run, None)
            if summary is not None:
                self._bytes -= _size(summary)

    def of(
        self, cursor: lmdb.Cursor, run: Run, numbers: Int64Array | None, start: int, end: int
    ) -> Summary:
        """Summarise at least the blocks of a run that may have rows of some series in a range.

        Args:
            cursor: over the blocks.
            run: which run.
            numbers: int64[k], ascending; None for all series.
            start: first timestamp.
            end: one past the last.

        Raises:
            CorruptionError: a header is damaged, or a block is missing.
        """
        kept = self._kept.get(run.number)
        if kept is not None:
            return kept
        if numbers is not None and len(numbers) * SEEKS_PER_BLOCK < run.blocks:
            return self._of_some(cursor, run, numbers, start, end)
        summary = _read_all(cursor, run)
        with self._lock:
            if run.number not in self._kept and _size(summary) <= SUMMARIES_BYTES_MAX:
                self._kept[run.number] = summary
                self._bytes += _size(summary)
            while self._bytes > SUMMARIES_BYTES_MAX:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= _size(oldest)
        return summary

    def _of_some(
        self, cursor: lmdb.Cursor, run: Run, numbers: Int64Array, start: int, end: int
    ) -> Summary:
        heads: dict[bytes, bytes] = {}
        first = int(numbers.searchsorted(run.series_first))
        last = int(numbers.searchsorted(run.series_last, "right"))
        for number in numbers[first:last].tolist():
            for key, _, _ in self._reader.headers_of(cursor, run, number, start, end):
                if key not in heads:
                    heads[key] = bytes(cursor.value()[:HEADER_BYTES])
        return _summary(sorted(heads), map(heads.__getitem__, sorted(heads)))


def _read_all(cursor: lmdb.Cursor, run: Run) -> Summary:
    """Read the headers of all blocks of a run."""
    prefix = pack_u64(run.number)
    keys: list[bytes] = []
    heads: list[bytes] = []
    checksums: list[int] = []
    sizes: list[int] = []
    crc32 = zlib.crc32
    if cursor.set_range(prefix):
        for view, block in cursor.iternext():
            key = bytes(view)
            if key[:8] != prefix:
                break
            head = bytes(block[:HEADER_BYTES])
            keys.append(key)
            heads.append(head.ljust(HEADER_BYTES, b"\0"))
            checksums.append(crc32(head[4:], crc32(key)))
            sizes.append(len(block))
    summary = _summary(keys, heads)
    sound = are_sound(summary.headers, np.array(checksums), np.array(sizes))
    for place in np.flatnonzero(~sound).tolist():
        cursor.set_key(keys[place])
        read_header(keys[place], cursor.value())  # says what is wrong
    lost = np.flatnonzero(summary.headers["place"] != np.arange(len(keys)))
    if len(lost) or len(keys) != run.blocks:
        at = int(lost[0]) if len(lost) else len(keys)
        raise CorruptionError(f"run {run.number} has lost a block of {run.blocks} from place {at}")
    return summary


def _summary(keys: Iterable[bytes], heads: Iterable[bytes]) -> Summary:
    parts = np.frombuffer(b"".join(keys), _KEY)
    return Summary(
        parts["series"].astype(np.int64),
        (parts["timestamp"].astype(np.uint64) ^ _SIGN).view(np.int64),
        np.frombuffer(b"".join(heads), HEADER_DTYPE),
    )


def key_of(run: Run, series: int, timestamp: int) -> bytes:
    """Give the key of a block from its summary."""
    return block_key(run.number, series, timestamp)


def _size(summary: Summary) -> int:
    return (HEADER_BYTES + 16) * len(summary)
