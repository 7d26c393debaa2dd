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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgpack
import numpy as np

from tsengine.errors import (
    StorageError,
    StorageFullError,
    StorePathError,
)
from tsengine.model import (
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
FRAME_SERIES_MAX: Final = 1 << 18
"""Most series of a frame: each counts as 20 bytes at least against `_FRAME_BYTES`."""

FRAME_ITEMS_MAX: Final = 1 << 20
"""Most names of labels, objects and series of a frame, all together; a name and its value count
as 16 bytes at least."""

VERSION_FIELD: Final = struct.Struct("<I")
FRAME_HEAD: Final = struct.Struct("<II")
COLUMN_DTYPES: Final = {
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
            values = _raw(self.values, COLUMN_DTYPES[self.kind])
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
        StorageError: the disk fails.
    """
    target = Path(path)
    if target.is_symlink() or target.exists():
        raise StorePathError(f"{path!r} exists; a snapshot is written to a new path")
    # In the same folder, because only there can it be given its name in one step.
    temporary = target.with_name(f".tsengine-{secrets.token_hex(8)}.tmp")
    try:
        try:
            with open(temporary, "xb", opener=_open_for_owner) as file:
                _write_frames(file, head, series)
                file.flush()
                os.fsync(file.fileno())
            _give_name(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        try:
            _sync_folder(target.parent)
        except OSError:
            target.unlink()  # it might be gone after a power cut
            raise
    except FileExistsError:
        raise StorePathError(f"{path!r} exists; a snapshot is written to a new path") from None
    except (OSError, ValueError) as error:  # a ValueError is a NUL in the path
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"no room for the snapshot {path!r}: {error}") from error
        if isinstance(error, OSError) and error.errno == errno.EIO:
            raise StorageError(f"cannot write the snapshot {path!r}: {error}") from error
        raise StorePathError(f"cannot write the snapshot {path!r}: {error}") from error


def _open_for_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


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
        file.write(MAGIC + VERSION_FIELD.pack(VERSION))

    def write(self, name: str, *items: object) -> None:
        payload: bytes = msgpack.packb([name, self._number, *items])
        if len(payload) > FRAME_BYTES_MAX:  # the name of a producer of many megabytes
            raise StorageError(f"a frame {name!r} of {len(payload)} bytes cannot be written")
        self._file.write(FRAME_HEAD.pack(len(payload), zlib.crc32(payload)))
        self._file.write(payload)
        self._number += 1

    def write_series(self, frame: _Frame, kind: ValueKind) -> _Frame:
        """Write what was gathered, and give an empty frame for what comes next."""
        if frame.labels:
            self.write("series", *frame.items())
        return _Frame(kind)


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
