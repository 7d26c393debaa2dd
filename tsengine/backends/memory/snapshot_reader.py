"""Reading snapshot files, the format of which `snapshot_file` describes.

A file may be damaged, cut off or made by anybody: nothing it says is believed before it
was checked, and whatever is wrong with it is a FormatVersionError or a CorruptionError.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from tsengine.backends.memory.snapshot_file import (
    COLUMN_DTYPES,
    FRAME_BYTES_MAX,
    FRAME_HEAD,
    FRAME_ITEMS_MAX,
    FRAME_SERIES_MAX,
    MAGIC,
    VERSION,
    VERSION_FIELD,
    StoredSeries,
    StoreHead,
)
from tsengine.errors import CorruptionError, FormatVersionError, StorageError, StorePathError
from tsengine.model import (
    INT64_MAX,
    Labels,
    ProducerMark,
    ValueArray,
    ValueKind,
    WriteReceipt,
    unpack_bounded,
)


@contextlib.contextmanager
def read_snapshot(path: str) -> Iterator[tuple[StoreHead, Iterator[StoredSeries]]]:
    """Open a file for as long as it is read.

    Yields:
        Its head, and its series; iterating reads on, to the end, which is checked as well.

    Raises:
        StorePathError: the path is no file that can be read.
        FormatVersionError: it is no snapshot, or one of another version.
        CorruptionError: it is damaged; raised from the iteration where that gets there.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115  # closed below
    except (OSError, ValueError) as error:  # a ValueError is a NUL in the path
        raise StorePathError(f"cannot read the snapshot {path!r}: {error}") from error
    with file:
        reader = _Reader(path, file)
        yield reader.head(), reader.series()


class _Reader:
    """Reads frames in order, and trusts nothing that it has not checked."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._left = os.fstat(file.fileno()).st_size
        self._number = 0
        self._read_ahead: tuple[str, list[Any]] | None = None

    def head(self) -> StoreHead:
        """Read up to the first series."""
        if self._take(min(self._left, len(MAGIC))) != MAGIC:
            raise FormatVersionError(f"{self._path!r} is no snapshot of a memory store")
        (version,) = VERSION_FIELD.unpack(self._take(VERSION_FIELD.size))
        if version != VERSION:
            raise FormatVersionError(
                f"{self._path!r} is of format {version}; this version of tsengine reads {VERSION}"
            )
        with self._decoding():
            (options, last_write_ns) = self._frame("store")
            _expect(isinstance(options, dict), "options are no map")
            _expect(last_write_ns is None or type(last_write_ns) is int, "no time of last write")
            marks: dict[str, tuple[ProducerMark, WriteReceipt]] = {}
            while self._is_next("mark"):
                producer, sequence, piece, *counts, reasons = self._frame("mark")
                _expect(type(producer) is str, "a producer has no name")
                _expect(all(type(n) is int for n in (sequence, piece, *counts)), "no numbers")
                indices: list[int] = []
                while self._is_next("indices"):
                    (rows,) = self._frame("indices")
                    indices += np.frombuffer(rows, "<i8").tolist()
                submitted, accepted, refused, evicted = counts
                receipt = WriteReceipt(
                    submitted, accepted, refused, evicted, dict(reasons), tuple(indices)
                )
                _expect(len(indices) == receipt.refused, "refused rows are missing")
                marks[producer] = ProducerMark(producer, sequence, piece), receipt
        return StoreHead(options, last_write_ns, marks)

    def series(self) -> Iterator[StoredSeries]:
        """Read all series, and see that nothing is missing or too much."""
        last: tuple[Labels, ValueKind, int] | None = None  # of the frame before, as it may go on
        count = points = 0
        while self._is_next("series"):
            with self._decoding():
                part = _stored_series(*self._frame("series"))
                if last is not None and (part.labels[0], part.kind) == last[:2]:
                    part = replace(part, goes_on=True)
                    _expect(len(part.timestamps) > 0, "a series goes on without rows")
                    _expect(int(part.timestamps[0]) > last[2], "rows do not go on in time")
                count += len(part.labels) - part.goes_on
                points += len(part.timestamps)
                has_rows = part.bounds[-1] > part.bounds[-2]
                moment = int(part.timestamps[-1]) if has_rows else INT64_MAX
                last = part.labels[-1], part.kind, moment
            yield part
        with self._decoding():
            _expect([count, points] == self._frame("end"), "series or points are missing")
            _expect(not self._left, "something follows the end")

    def _is_next(self, name: str) -> bool:
        if self._read_ahead is None:
            self._read_ahead = self._any_frame()
        return self._read_ahead[0] == name

    def _frame(self, name: str) -> list[Any]:
        """Give the items of the next frame."""
        found, items = self._read_ahead or self._any_frame()
        self._read_ahead = None
        _expect(found == name, f"a frame {found!r} where {name!r} should be")
        return items

    def _any_frame(self) -> tuple[str, list[Any]]:
        length, checksum = FRAME_HEAD.unpack(self._take(FRAME_HEAD.size))
        if length > FRAME_BYTES_MAX:
            raise self._damaged(f"it declares {length} bytes")
        payload = self._take(length)
        if zlib.crc32(payload) != checksum:
            raise self._damaged("its checksum differs")
        with self._decoding():
            name, number, *items = unpack_bounded(
                payload, containers=FRAME_SERIES_MAX + 8, items=FRAME_ITEMS_MAX
            )
            _expect(number == self._number, f"it has the number {number}")
        self._number += 1
        return name, items

    def _take(self, length: int) -> bytes:
        """Read bytes that are there."""
        if length > self._left:
            raise self._damaged(f"{length} bytes are declared, {self._left} are left")
        self._left -= length
        try:
            taken = self._file.read(length)
        except OSError as error:
            raise StorageError(f"cannot read the snapshot {self._path!r}: {error}") from error
        if len(taken) != length:
            raise self._damaged("the file has shrunk")
        return taken

    def _damaged(self, what: str) -> CorruptionError:
        return CorruptionError(f"snapshot {self._path!r} is damaged: frame {self._number}: {what}")

    @contextlib.contextmanager
    def _decoding(self) -> Iterator[None]:
        """Turn whatever a payload of another make leads to into one error."""
        try:
            yield
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise self._damaged(str(error)) from error


def _expect(condition: object, what: str) -> None:
    if not condition:
        raise ValueError(what)


def _stored_series(
    kind_number: int, label_maps: list[dict[str, str]], counts: bytes, times: bytes, values: object
) -> StoredSeries:
    kind = ValueKind(kind_number)
    labels = [Labels(pairs) for pairs in label_maps]
    lengths = np.frombuffer(counts, "<i8").astype(np.int64)
    timestamps = np.frombuffer(times, "<i8").astype(np.int64)
    _expect(labels and len(lengths) == len(labels), "counts do not fit the labels")
    _expect(all(labels) and len(set(labels)) == len(labels), "labels are empty or repeated")
    _expect((lengths >= 0).all() and lengths.max() <= len(timestamps), "counts make no sense")
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    _expect(bounds[-1] == len(timestamps), "counts do not fit the timestamps")
    rises = timestamps[1:] > timestamps[:-1]
    borders = bounds[(bounds > 0) & (bounds < len(timestamps))]
    rises[borders - 1] = True
    _expect(rises.all(), "timestamps do not rise")
    column: ValueArray
    if kind is ValueKind.OBJECT:
        packed = cast("list[bytes]", values)
        _expect(type(packed) is list and set(map(type, packed)) <= {bytes}, "no objects")
        column = np.empty(len(packed), object)
        column[:] = packed
    else:
        column = np.frombuffer(cast("bytes", values), COLUMN_DTYPES[kind]).astype(kind.dtype)
    _expect(len(column) == len(timestamps), "values do not fit the timestamps")
    return StoredSeries(kind, labels, False, bounds, timestamps, column)
