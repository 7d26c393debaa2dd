r"""Snapshot files: a whole store in one MessagePack file.

    magic       16 bytes, b"tsengine memory\n"
    version      4 bytes, little-endian, VERSION
    frame        length (4 bytes) and CRC-32 (4 bytes) of a payload, then the payload
    frame        ...

Payloads are MessagePack arrays, told apart by their first item and numbered by their
second, so that none can be missing, doubled or out of place:

    ["store",   0, options, last_write_ns]
    ["mark",    n, producer, sequence, piece, submitted, accepted, refused, evicted, reasons]
    ["indices", n, rows]                 the refused rows of the receipt before, as many
    ["series",  n, kind, [labels, ...], counts, timestamps, values]
    ["end",     n, series, points]

Columns are raw little-endian int64 or float64; values of objects are an array of their
MessagePack forms. A long series goes on in the next frame, in which it stands first. What
a file says of its sizes is held against what is there before memory is taken for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import msgpack
import numpy as np

from tsengine.errors import (
    CorruptionError,
    FormatVersionError,
    StorageError,
    StorageFullError,
    StorePathError,
)
from tsengine.model import (
    INT64_MAX,
    Int64Array,
    Labels,
    ProducerMark,
    ValueArray,
    ValueKind,
    WriteReceipt,
)

MAGIC: Final = b"tsengine memory\n"
VERSION: Final = 1

FRAME_BYTES_MAX: Final = 1 << 24
"""Most bytes of a payload, which is read and checked in one piece."""

_FRAME_BYTES: Final = 1 << 22
"""Bytes at which a frame is closed. What comes last adds at most an object or labels, so
that payloads stay far below FRAME_BYTES_MAX."""

_FRAME_ROWS: Final = 1 << 16
_VERSION: Final = struct.Struct("<I")
_HEAD: Final = struct.Struct("<II")
_COLUMN_DTYPES: Final = {
    ValueKind.FLOAT: np.dtype("<f8"),
    ValueKind.INT: np.dtype("<i8"),
}


@dataclass(frozen=True, slots=True)
class StoreHead:
    """What a snapshot says besides its series.

    Attributes:
        options: the store options as plain values.
        last_write_ns: as `EngineStats` has it.
        marks: highest mark of each producer, and the receipt of its commit.
    """

    options: Mapping[str, str | int | None]
    last_write_ns: int | None
    marks: Mapping[str, tuple[ProducerMark, WriteReceipt]]


@dataclass(frozen=True, slots=True)
class StoredSeries:
    """Columns of series of one kind; objects as MessagePack.

    Attributes:
        kind: what the values are.
        labels: k series.
        goes_on: whether the first of them is the last one before, with further rows.
        bounds: int64[k + 1], which rows are of which.
        timestamps: int64[n].
        values: [n].
    """

    kind: ValueKind
    labels: Sequence[Labels]
    goes_on: bool
    bounds: Int64Array
    timestamps: Int64Array
    values: ValueArray


@dataclass(slots=True)
class _Frame:
    """Series gathered for one frame."""

    kind: ValueKind
    labels: list[Labels] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    timestamps: list[Int64Array] = field(default_factory=list)
    values: list[ValueArray] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0

    def add(self, labels: Labels, timestamps: Int64Array, values: ValueArray) -> int:
        """Take as many rows as there is room for; give their number."""
        taken = min(len(timestamps), _FRAME_ROWS - self.rows)
        if self.kind is ValueKind.OBJECT:
            sizes = np.cumsum([len(packed) for packed in values[:taken]], dtype=np.int64)
            taken = min(taken, 1 + int(np.searchsorted(sizes, _FRAME_BYTES - self.bytes)))
            self.bytes += int(sizes[taken - 1]) if taken else 0
        self.labels.append(labels)
        self.counts.append(taken)
        self.timestamps.append(timestamps[:taken])
        self.values.append(values[:taken])
        self.rows += taken
        self.bytes += 16 * taken + 4 * len(labels.id) + 16  # a character is at most 4 bytes
        return taken

    @property
    def is_full(self) -> bool:
        return self.rows >= _FRAME_ROWS or self.bytes >= _FRAME_BYTES

    def items(self) -> list[object]:
        values: object
        if self.kind is ValueKind.OBJECT:
            values = [packed for column in self.values for packed in column]
        else:
            values = _raw(self.values, _COLUMN_DTYPES[self.kind])
        return [
            int(self.kind),
            [dict(labels) for labels in self.labels],
            np.array(self.counts, dtype="<i8").tobytes(),
            _raw(self.timestamps, np.dtype("<i8")),
            values,
        ]


def write_snapshot(
    path: str,
    head: StoreHead,
    series: Iterable[tuple[Labels, ValueKind, Int64Array, ValueArray]],
) -> None:
    """Write a file that is there as a whole or not at all, and durable.

    Args:
        path: where; nothing is there yet.
        head: what the store says besides its series.
        series: each with its columns, objects as MessagePack; those of a kind together.

    Raises:
        StorePathError: the path exists or cannot be written.
        StorageFullError: the disk is full.
    """
    target = Path(path)
    if target.is_symlink() or target.exists():
        raise StorePathError(f"{path!r} exists; a snapshot is written to a new path")
    # In the same folder, because only there can it be given its name in one step.
    temporary = target.with_name(f".tsengine-{secrets.token_hex(8)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                _write_frames(file, head, series)
                file.flush()
                os.fsync(file.fileno())
            _give_name(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        _sync_folder(target.parent)
    except FileExistsError:
        raise StorePathError(f"{path!r} exists; a snapshot is written to a new path") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"no room for the snapshot {path!r}: {error}") from error
        raise StorePathError(f"cannot write the snapshot {path!r}: {error}") from error


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
    except OSError as error:
        raise StorePathError(f"cannot read the snapshot {path!r}: {error}") from error
    with file:
        reader = _Reader(path, file)
        yield reader.head(), reader.series()


def _write_frames(
    file: BinaryIO,
    head: StoreHead,
    series: Iterable[tuple[Labels, ValueKind, Int64Array, ValueArray]],
) -> None:
    writer = _Writer(file)
    writer.write("store", dict(head.options), head.last_write_ns)
    for mark, receipt in head.marks.values():
        counts = receipt.submitted, receipt.accepted, receipt.refused, receipt.evicted
        writer.write("mark", *mark, *counts, dict(receipt.reasons))
        refused = np.array(receipt.indices, dtype="<i8")
        for row in range(0, len(refused), _FRAME_ROWS):
            writer.write("indices", refused[row : row + _FRAME_ROWS].tobytes())
    count = points = 0
    frame = _Frame(ValueKind.FLOAT)
    for labels, kind, timestamps, values in series:
        count += 1
        points += len(timestamps)
        if kind is not frame.kind:
            frame = writer.write_series(frame, kind)
        row = frame.add(labels, timestamps, values)
        while row < len(timestamps):
            frame = writer.write_series(frame, kind)
            row += frame.add(labels, timestamps[row:], values[row:])
        if frame.is_full:
            frame = writer.write_series(frame, kind)
    writer.write_series(frame, frame.kind)
    writer.write("end", count, points)


class _Writer:
    """Writes frames and numbers them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._number = 0
        file.write(MAGIC + _VERSION.pack(VERSION))

    def write(self, name: str, *items: object) -> None:
        payload: bytes = msgpack.packb([name, self._number, *items])
        if len(payload) > FRAME_BYTES_MAX:  # the name of a producer of many megabytes
            raise StorageError(f"a frame {name!r} of {len(payload)} bytes cannot be written")
        self._file.write(_HEAD.pack(len(payload), zlib.crc32(payload)))
        self._file.write(payload)
        self._number += 1

    def write_series(self, frame: _Frame, kind: ValueKind) -> _Frame:
        """Write what was gathered, and give an empty frame for what comes next."""
        if frame.labels:
            self.write("series", *frame.items())
        return _Frame(kind)


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
        (version,) = _VERSION.unpack(self._take(_VERSION.size))
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
        length, checksum = _HEAD.unpack(self._take(_HEAD.size))
        if length > FRAME_BYTES_MAX:
            raise self._damaged(f"it declares {length} bytes")
        payload = self._take(length)
        if zlib.crc32(payload) != checksum:
            raise self._damaged("its checksum differs")
        with self._decoding():
            # The library's own bounds follow from the length of what it is given.
            name, number, *items = msgpack.unpackb(payload)
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
        column = np.frombuffer(cast("bytes", values), _COLUMN_DTYPES[kind]).astype(kind.dtype)
    _expect(len(column) == len(timestamps), "values do not fit the timestamps")
    return StoredSeries(kind, labels, False, bounds, timestamps, column)


def _raw(columns: Sequence[ValueArray], dtype: np.dtype[Any]) -> bytes:
    return b"".join(column.astype(dtype, copy=False).tobytes() for column in columns)


def _give_name(temporary: Path, target: Path) -> None:
    """Give a finished file its name, unless something has it by now."""
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, on which a name may be taken over
        temporary.rename(target)


def _sync_folder(folder: Path) -> None:
    """Make a new name durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
