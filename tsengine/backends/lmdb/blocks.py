"""Blocks: rows of one run as bytes, with a header, a checksum and an encoding each.

A flush writes raw blocks of at most `RAW_BLOCK_BYTES`: a memcpy. Merges write compressed
ones: regular timestamps as start and step, all else through pcodec. The header of a block
of one series also answers for its rows. The byte-level description is
docs/design/lmdb_layout.md.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt
from pcodec import ChunkConfig, DeltaSpec, standalone

from tsengine.backends.lmdb.columns import Columns
from tsengine.backends.lmdb.layout import BLOCK_KEY_BYTES, block_key, split_block_key
from tsengine.errors import CorruptionError
from tsengine.model import INT64_MAX, Int64Array, ValueArray, ValueKind

RAW_BLOCK_BYTES: Final = 65_000
"""Largest raw block: a little under 16 pages, with LMDB's page header. Values of a megabyte
meet a fragmented free list and are never reused."""

ROWS_MAX: Final = 1 << 20
"""Most rows of a block that is read: what a damaged or hostile header may ask for."""

OBJECT_BLOCK_BYTES_MAX: Final = 1 << 26
"""Most bytes that the objects of one block may inflate to."""

PACKED_OBJECTS_BYTES: Final = 1 << 20
"""Bytes of objects that a packed block takes: far below what reading it allows."""

_UNDECODABLE: Final = (
    ArithmeticError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What numpy, pcodec, struct and zlib raise over bytes that make no sense."""

_VERSION: Final = 1
_HEADER: Final = struct.Struct("<IIBBBBBxxxIIIIIIIxxxxqqQq8s8s8s8s16s")
_PLACE: Final = struct.Struct("<I36xI")
HEADER_BYTES: Final = _HEADER.size
assert HEADER_BYTES % 8 == 0, "columns behind the header are mapped as 8-byte integers"

_RAW: Final = 0
_PACKED: Final = 1
_REGULAR: Final = 2

HEADER_DTYPE: Final = np.dtype(
    {
        "names": [
            "version", "time_encoding", "value_encoding",
            "checksum", "rows", "segments", "segment_bytes", "time_bytes", "value_bytes",
            "nan_count", "place",
            "t_min", "t_max", "last_series", "first", "last", "min", "max", "sum", "sum_error",
        ],
        "formats": ["u1"] * 3 + ["<u4"] * 8 + ["<i8"] * 9,
        "offsets": [
            8, 11, 12, 0, 16, 20, 24, 28, 32, 36, 40,
            48, 56, 64, 80, 88, 96, 104, 112, 120,
        ],
        "itemsize": HEADER_BYTES,
    }
)  # fmt: skip
"""A header as numpy reads it: what many of them are asked for together. Values are of int kind;
those of float kind have the same bits."""

_NONE: Final = b"\0" * 8
_COMPRESSION: Final = ChunkConfig(compression_level=4)
"""Level 4 of pcodec: 6.41 bytes a point at 82 M points/s, where level 8 gives 6.36 at 25
and level 1 gives 7.00 at 175."""

_DIFFERENCES: Final = ChunkConfig(compression_level=4, delta_spec=DeltaSpec.try_consecutive(1))
"""The same, told to take first differences, which is what it finds out itself for most
measured quantities: saves a sixth of its time."""

PROBE_EVERY: Final = 64
"""Columns packed between two looks at whether first differences still serve."""

_PACK_AT: Final = 16
"""Columns shorter than this stay raw: pcodec's own header is longer than what it saves."""


class Header(NamedTuple):
    """The header of a block; the statistics speak of a block of one series only.

    Attributes:
        checksum: crc32 over the key and the header behind this field.
        body_checksum: crc32 of all that follows the header.
        kind: the value kind of all rows.
        rows: number of rows.
        segments: number of series.
        nan_count: rows whose value is NaN.
        place: how many blocks of the run come before this one, so that a read sees when one
            is missing.
        t_min: earliest timestamp.
        t_max: latest timestamp.
        last_series: series number of the last row.
        last_timestamp: timestamp of the last row.
        first, last, min, max: values as 8 bytes; min and max leave NaN out.
        sum: float64 sum and its rounding error, or a 128-bit integer.
    """

    checksum: int
    body_checksum: int
    version: int
    kind: int
    segment_encoding: int
    time_encoding: int
    value_encoding: int
    rows: int
    segments: int
    segment_bytes: int
    time_bytes: int
    value_bytes: int
    nan_count: int
    place: int
    t_min: int
    t_max: int
    last_series: int
    last_timestamp: int
    first: bytes
    last: bytes
    min: bytes
    max: bytes
    sum: bytes


def read_header(key: bytes | memoryview, block: bytes | memoryview) -> Header:
    """Read the header of a block, and check its checksum and that its sizes fit together.

    What a header says may be relied on without a look at what follows it: about 1 µs.

    Raises:
        CorruptionError: names the block.
    """
    if len(block) >= HEADER_BYTES:
        header = Header._make(_HEADER.unpack_from(block))
        if (
            header.checksum == zlib.crc32(block[4:HEADER_BYTES], zlib.crc32(key))
            and header.version == _VERSION
            and 0 < header.rows <= ROWS_MAX
            and 0 < header.segments <= header.rows
            and HEADER_BYTES + header.segment_bytes + header.time_bytes + header.value_bytes
            == len(block)
        ):
            return header
    raise _damaged(key, "has a damaged header")


def are_sound(
    headers: npt.NDArray[np.void], checksums: Int64Array, sizes: Int64Array
) -> npt.NDArray[np.bool_]:
    """Whether headers pass what `read_header` asks of each: bool[b].

    Args:
        headers: [b], of `HEADER_DTYPE`.
        checksums: int64[b], what the checksums should be.
        sizes: int64[b], bytes of the blocks.
    """
    rows, segments = headers["rows"], headers["segments"]
    parts = HEADER_BYTES + sum(
        headers[name].astype(np.int64) for name in ("segment_bytes", "time_bytes", "value_bytes")
    )
    sound: npt.NDArray[np.bool_] = (
        (headers["checksum"] == checksums)
        & (headers["version"] == _VERSION)
        & (segments > 0)
        & (segments <= rows)
        & (rows <= ROWS_MAX)
        & (parts == sizes)
    )
    return sound


def place_of(key: bytes | memoryview, block: bytes | memoryview) -> int:
    """Give how many blocks of its run come before one, from a header that passes its checksum.

    Half the time of `read_header`.

    Raises:
        CorruptionError: names the block.
    """
    if len(block) >= HEADER_BYTES:
        checksum, place = _PLACE.unpack_from(block)
        if checksum == zlib.crc32(block[4:HEADER_BYTES], zlib.crc32(key)):
            return cast("int", place)
    raise _damaged(key, "has a damaged header")


def verify(key: bytes | memoryview, block: bytes | memoryview, header: Header) -> None:
    """Check the checksum of what follows the header of a block.

    Raises:
        CorruptionError: names the block and its first series.
    """
    if zlib.crc32(block[HEADER_BYTES:]) != header.body_checksum:
        raise _damaged(key, "fails its checksum")


def describe(key: bytes | memoryview) -> str:
    """Name a block for a message."""
    if len(key) != BLOCK_KEY_BYTES:
        return f"block {bytes(key).hex()}"
    run, series, timestamp = split_block_key(key)
    return f"the block of run {run}, series number {series}, from timestamp {timestamp}"


class BlockError(CorruptionError):
    """Is raised for a damaged block; its reader adds the labels of the series.

    Attributes:
        key: of the block.
    """

    key: bytes = b""


def _damaged(key: bytes | memoryview, what: str) -> BlockError:
    error = BlockError(f"{describe(key)} {what}")
    error.key = bytes(key)
    return error


class NumberPacker:
    """Packs columns of numbers one after the other, through pcodec.

    Now and then it packs one both ways, with first differences and with what pcodec chooses,
    and goes on with what was smaller. Data that changes its nature in between costs a few
    percent of size until the next look, never correctness.

    Thread-safety: none.
    """

    def __init__(self) -> None:
        self._config = _COMPRESSION
        self._until_probe = 0

    def pack(self, numbers: ValueArray) -> bytes:
        """Give the packed form of a column of float64 or int64."""
        column = np.ascontiguousarray(numbers)
        packed: bytes = standalone.simple_compress(column, self._config)
        if self._until_probe == 0:
            other = _COMPRESSION if self._config is _DIFFERENCES else _DIFFERENCES
            otherwise: bytes = standalone.simple_compress(column, other)
            if (len(otherwise), other is _COMPRESSION) < (len(packed), other is not _COMPRESSION):
                self._config, packed = other, otherwise
            self._until_probe = PROBE_EVERY
        self._until_probe -= 1
        return packed


def encode(
    run: int, kind: ValueKind, columns: Columns, *, place: int, packer: NumberPacker | None
) -> tuple[bytes, bytes]:
    """Give key and bytes of the block that holds these rows.

    Args:
        run: number of the run.
        kind: value kind of all rows.
        columns: at least one row.
        place: how many blocks of the run come before it.
        packer: packs the columns; None leaves them raw, for flushes, which must be fast.
    """
    compress = packer is not None
    rows, segments = len(columns), len(columns.series)
    timestamps = columns.timestamps
    segment_encoding, segment_part = _encode_segments(columns, compress=compress)
    time_encoding, time_part = _encode_times(columns, compress=compress)
    value_encoding, value_part = _encode_values(kind, columns.values, packer)
    key = block_key(run, int(columns.series[0]), int(timestamps[0]))
    parts = (segment_part, time_part, value_part)
    body_checksum = 0
    for part in parts:
        body_checksum = zlib.crc32(part, body_checksum)
    nan_count, statistics = (
        _statistics(kind, columns.values) if segments == 1 else (0, _NO_STATISTICS)
    )
    head = _HEADER.pack(
        0,
        body_checksum,
        _VERSION,
        kind,
        segment_encoding,
        time_encoding,
        value_encoding,
        rows,
        segments,
        len(segment_part),
        len(time_part),
        len(value_part),
        nan_count,
        place,
        int(timestamps[0] if segments == 1 else timestamps.min()),
        int(timestamps[-1] if segments == 1 else timestamps.max()),
        int(columns.series[-1]),
        int(timestamps[-1]),
        *statistics,
    )[4:]
    return key, _sealed(key, head, parts)


class SharedTimes:
    """Timestamps of a block, encoded once for the blocks of many series.

    Args:
        timestamps: int64[n], at least one, strictly increasing.
    """

    def __init__(self, timestamps: Int64Array) -> None:
        self.rows = len(timestamps)
        self.first, self.last = int(timestamps[0]), int(timestamps[-1])
        alone = Columns(np.zeros(1, np.int64), np.array([0, self.rows]), timestamps, timestamps)
        self.encoding, self.part = _encode_times(alone, compress=True)
        self.checksum = zlib.crc32(self.part)


def encode_shared(
    run: int, series: int, times: SharedTimes, values: npt.NDArray[np.float64], *, place: int
) -> tuple[bytes, bytes]:
    """Give key and bytes of the block of one series at shared times, its values raw.

    Args:
        run: number of the run.
        series: number of the series.
        times: of the rows.
        values: float64[n], contiguous.
        place: how many blocks of the run come before it.
    """
    key = block_key(run, series, times.first)
    part = values.data.cast("B")
    nan_count, statistics = _statistics(ValueKind.FLOAT, values)
    head = _HEADER.pack(
        0,
        zlib.crc32(part, times.checksum),
        _VERSION,
        ValueKind.FLOAT,
        _RAW,
        times.encoding,
        _RAW,
        times.rows,
        1,
        0,
        len(times.part),
        values.nbytes,
        nan_count,
        place,
        times.first,
        times.last,
        series,
        times.last,
        *statistics,
    )[4:]
    return key, _sealed(key, head, (times.part, part))


def _sealed(key: bytes, head: bytes, parts: Sequence[bytes | memoryview]) -> bytes:
    """Give a block of a header without its checksum, and what follows it."""
    checksum = zlib.crc32(head, zlib.crc32(key))
    return b"".join((checksum.to_bytes(4, "little"), head, *parts))


def decode(key: bytes | memoryview, block: bytes | memoryview, header: Header) -> Columns:
    """Give all rows of a verified block; the columns are fresh and writable or read-only.

    Raises:
        CorruptionError: an encoding does not hold what the header says.
    """
    segments_end = HEADER_BYTES + header.segment_bytes
    times_end = segments_end + header.time_bytes
    try:
        series, offsets = _decode_segments(key, block[HEADER_BYTES:segments_end], header)
        timestamps = _decode_times(block[segments_end:times_end], header, offsets)
        values = _decode_values(block[times_end:], header, header.rows)
    except _UNDECODABLE as error:
        raise _damaged(key, f"does not decode: {error}") from error
    return Columns(series, offsets, timestamps, values)


def decode_range(
    key: bytes | memoryview, block: bytes | memoryview, header: Header, start: int, end: int
) -> tuple[Int64Array, ValueArray] | None:
    """Give the rows in a range of a verified block of one series; None for none.

    A short range of a long block decodes little more than itself: of regular timestamps what
    lies in it, of packed values what lies before its end.

    Raises:
        CorruptionError: an encoding does not hold what the header says.
    """
    times_end = HEADER_BYTES + header.time_bytes
    times = block[HEADER_BYTES:times_end]
    try:
        step = _regular_step(times, header)
        if step:
            earliest = header.last_timestamp - (header.rows - 1) * step
            first = max(-((earliest - start) // step), 0)
            last = min(-((earliest - end) // step), header.rows)
            timestamps = _arithmetic(earliest + first * step, step, max(last - first, 0))
        else:
            timestamps = _decode_times(times, header, np.array([0, header.rows]))
            first, last = map(int, timestamps.searchsorted([start, min(end, INT64_MAX)]))
            last += end > INT64_MAX and header.last_timestamp == INT64_MAX
            timestamps = timestamps[first:last]
        if first >= last:
            return None
        return timestamps, _decode_values(block[times_end:], header, last)[first:]
    except _UNDECODABLE as error:
        raise CorruptionError(f"{describe(key)} does not decode: {error}") from error


def regular_step(header: Header) -> int:
    """The step between the timestamps of a block of one series, by its header; 0 for none."""
    span = header.t_max - header.t_min
    if header.time_encoding != _REGULAR or header.rows < 2 or span > INT64_MAX:
        return 0
    return span // (header.rows - 1)


class Layout(NamedTuple):
    """Where the columns of some blocks of one series each stand, as lists.

    Attributes:
        rows: of each block.
        steps: between the timestamps; 0 where they are not regular.
        offsets: where the values begin.
        is_raw: whether the values are as in memory.
    """

    rows: list[int]
    steps: list[int]
    offsets: list[int]
    is_raw: list[bool]


def layout_of(headers: npt.NDArray[np.void]) -> Layout:
    """Tell the layout of blocks of one series each by their headers, [b] of `HEADER_DTYPE`."""
    rows = headers["rows"].astype(np.int64)
    span = headers["t_max"] - headers["t_min"]
    # Below 0 where it wraps around, as differences beyond int64 do.
    is_regular = (headers["time_encoding"] == _REGULAR) & (rows > 1) & (span > 0)
    steps = np.where(is_regular, span // np.maximum(rows - 1, 1), 0)
    return Layout(
        rows.tolist(),
        steps.tolist(),
        (headers["time_bytes"].astype(np.int64) + HEADER_BYTES).tolist(),
        (headers["value_encoding"] == _RAW).tolist(),
    )


def decode_times(key: bytes | memoryview, block: bytes | memoryview, header: Header) -> Int64Array:
    """Give the timestamps of a verified block of one series.

    Raises:
        CorruptionError: the encoding does not hold what the header says.
    """
    part = block[HEADER_BYTES : HEADER_BYTES + header.time_bytes]
    try:
        return _decode_times(part, header, np.array([0, header.rows]))
    except _UNDECODABLE as error:
        raise _damaged(key, f"does not decode: {error}") from error


def decode_values_into(
    key: bytes, block: bytes | memoryview, offset: int, rows: int, *, is_raw: bool, into: ValueArray
) -> None:
    """Write the first values of a verified block of numbers of one series into a column.

    Args:
        key: of the block.
        block: the block.
        offset: where its values begin.
        rows: of the block.
        is_raw: how they are encoded.
        into: of the kind of the block, as long as there are values to be written.

    Raises:
        CorruptionError: the encoding does not hold what the header says.
    """
    wanted = len(into)
    try:
        if is_raw:
            into[:] = np.frombuffer(block[offset:], into.dtype, rows)[:wanted]
            return
        progress = standalone.simple_decompress_into(bytes(block[offset:]), into)
        if progress.n_processed != wanted or progress.finished != (wanted == rows):
            raise ValueError(f"a column of {wanted} rows holds another number")
    except _UNDECODABLE as error:
        raise _damaged(key, f"does not decode: {error}") from error


def split_raw(kind: ValueKind, columns: Columns, block_points: int) -> list[Columns]:
    """Cut rows into pieces that fit raw blocks."""
    rows, series = len(columns), len(columns.series)
    if kind is not ValueKind.OBJECT and rows <= block_points and 16 * (rows + series) < 32_768:
        return [columns]  # a small commit, in a fraction of the time
    if kind is ValueKind.OBJECT:
        sizes = np.cumsum([32 + len(packed) for packed in columns.values.tolist()])
        cuts = _cut_objects(sizes, block_points)
    else:
        cuts = _cut_numbers(columns.offsets, block_points)
    if len(cuts) == 2:  # one piece
        return [columns]
    return [columns.rows(start, end) for start, end in pairwise(cuts)]


def split_packed(kind: ValueKind, columns: Columns) -> list[Columns]:
    """Cut rows for packed blocks where their objects are large; numbers never are."""
    if kind is not ValueKind.OBJECT:
        return [columns]
    sizes = np.cumsum([32 + len(packed) for packed in columns.values.tolist()])
    cuts = _cut_objects(sizes, len(columns), PACKED_OBJECTS_BYTES)
    return [columns.rows(start, end) for start, end in pairwise(cuts)]


def _cut_objects(
    sizes: Int64Array, block_points: int, most: int = RAW_BLOCK_BYTES - HEADER_BYTES
) -> list[int]:
    """Cut rows by the bytes up to and including each (int64[n]); a large one stands alone."""
    cuts = [0]
    while cuts[-1] < len(sizes):
        before = int(sizes[cuts[-1] - 1]) if cuts[-1] else 0
        fitting = int(sizes.searchsorted(before + most, "right"))
        cuts.append(min(max(fitting, cuts[-1] + 1), cuts[-1] + block_points))
    return cuts


def _cut_numbers(offsets: Int64Array, block_points: int) -> list[int]:
    """Cut rows at 16 bytes a row and 16 a series."""
    ends = 16 * (offsets[1:] + np.arange(1, len(offsets)))  # bytes up to the end of each series
    rows = int(offsets[-1])
    cuts = [0]
    while cuts[-1] < rows:
        start = cuts[-1]
        series = int(offsets.searchsorted(start, "right")) - 1
        limit = 16 * (start + series) + RAW_BLOCK_BYTES - HEADER_BYTES
        whole = int(ends.searchsorted(limit, "right"))  # the first series that does not fit
        end = rows
        if whole < len(ends):
            first = int(offsets[whole])
            end = max(first, start) + max(limit // 16 - max(first, start) - whole - 1, 0)
        cuts.append(min(max(end, start + 1), start + block_points))
    return cuts


def _encode_segments(columns: Columns, *, compress: bool) -> tuple[int, bytes]:
    if len(columns.series) == 1:
        return _RAW, b""  # the key tells the series, the header the rows
    counts = np.diff(columns.offsets)
    if compress and len(counts) >= _PACK_AT:
        series = standalone.simple_compress(columns.series, _COMPRESSION)
        packed_counts = standalone.simple_compress(counts, _COMPRESSION)
        return _PACKED, struct.pack("<I", len(series)) + series + packed_counts
    return _RAW, columns.series.tobytes() + counts.tobytes()


def _decode_segments(
    key: bytes | memoryview, part: bytes | memoryview, header: Header
) -> tuple[Int64Array, Int64Array]:
    count = header.segments
    if count == 1:
        return np.array([split_block_key(key)[1]]), np.array([0, header.rows])
    if header.segment_encoding == _PACKED:
        (middle,) = struct.unpack_from("<I", part)
        series = _inflate_integers(part[4 : 4 + middle], count)
        counts = _inflate_integers(part[4 + middle :], count)
    else:
        numbers = np.frombuffer(bytes(part), np.int64, 2 * count)
        series, counts = numbers[:count], numbers[count:]
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    if offsets[-1] != header.rows or counts.min() < 1 or counts.max() > header.rows:
        raise ValueError("series and rows do not add up")
    return series, offsets


def _encode_times(columns: Columns, *, compress: bool) -> tuple[int, bytes]:
    timestamps = columns.timestamps
    if not compress or len(timestamps) == 1:
        return _RAW, timestamps.tobytes()
    firsts = columns.offsets[:-1]
    starts = timestamps[firsts]
    inside = np.diff(timestamps)
    if len(firsts) > 1:
        inside = np.delete(inside, firsts[1:] - 1)
    if len(inside) and (inside == inside[0]).all():
        return _REGULAR, inside[:1].tobytes() + _pack(starts)
    packed_starts = _pack(starts)
    packed = struct.pack("<Q", len(packed_starts)) + packed_starts + _pack(inside)
    if len(packed) >= timestamps.nbytes:
        return _RAW, timestamps.tobytes()
    return _PACKED, packed


def _decode_times(part: bytes | memoryview, header: Header, offsets: Int64Array) -> Int64Array:
    rows, segments = header.rows, header.segments
    if header.time_encoding == _RAW:
        return np.frombuffer(bytes(part), np.int64, rows)
    if header.time_encoding == _REGULAR:
        (step,) = struct.unpack_from("<q", part)
        if segments == 1:
            (start,) = struct.unpack_from("<q", part, 9)
            timestamps = np.arange(rows)
            timestamps *= step
            timestamps += start
            return timestamps
        starts = _unpack(part[8:], segments)
        inside = np.full(rows - segments, step)
    else:
        (middle,) = struct.unpack_from("<Q", part)
        starts = _unpack(part[8 : 8 + middle], segments)
        inside = _unpack(part[8 + middle :], rows - segments)
    # Differences wrap around like the sums that undo them, so any int64 comes back.
    steps = np.zeros(rows, np.int64)
    firsts = offsets[:-1]
    if segments == 1:
        steps[1:] = inside
    else:
        is_inside = np.ones(rows, bool)
        is_inside[firsts] = False
        steps[is_inside] = inside
    np.cumsum(steps, out=steps)
    if segments == 1:
        steps += starts[0]
    else:
        steps += np.repeat(starts - steps[firsts], np.diff(offsets))
    return steps


def _regular_step(part: bytes | memoryview, header: Header) -> int:
    """The step between the timestamps of a block of one series; 0 where there is no one."""
    if header.time_encoding != _REGULAR:
        return 0
    step, start = struct.unpack_from("<qxq", part)
    if start + (header.rows - 1) * step != header.last_timestamp:
        return 0  # it wraps around, as differences beyond int64 do
    return int(step)


def _arithmetic(first: int, step: int, count: int) -> Int64Array:
    """Give so many numbers, each a step above the one before: in one go where int64 allows it."""
    end = first + count * step
    if end <= INT64_MAX:
        return np.arange(first, end, step)
    numbers = np.arange(count)
    numbers *= step
    numbers += first
    return numbers


def _encode_values(
    kind: ValueKind, values: ValueArray, packer: NumberPacker | None
) -> tuple[int, bytes]:
    if kind is ValueKind.OBJECT:
        packed_objects: list[bytes] = values.tolist()
        lengths = np.array([len(packed) for packed in packed_objects], np.int64)
        part = lengths.tobytes() + b"".join(packed_objects)
        if packer is not None:
            deflated = zlib.compress(part, 6)
            if len(deflated) + 8 < len(part):
                return _PACKED, struct.pack("<Q", len(part)) + deflated
        return _RAW, part
    if packer is not None and len(values) >= _PACK_AT:
        packed = packer.pack(values)
        if len(packed) < values.nbytes:
            return _PACKED, packed
    return _RAW, values.tobytes()


def _decode_values(part: bytes | memoryview, header: Header, rows: int) -> ValueArray:
    """Give the first so many values of a block."""
    if header.kind == ValueKind.OBJECT:
        return _decode_objects(part, header)[:rows]
    dtype = ValueKind(header.kind).dtype
    if header.value_encoding == _RAW:
        raw: ValueArray = np.frombuffer(bytes(part), dtype, header.rows)
        return raw[:rows]
    return _inflate(part, rows, dtype, is_all=rows == header.rows)


def _decode_objects(part: bytes | memoryview, header: Header) -> ValueArray:
    if header.value_encoding == _PACKED:
        (size,) = struct.unpack_from("<Q", part)
        if not 8 * header.rows <= size <= OBJECT_BLOCK_BYTES_MAX:
            raise ValueError(f"{header.rows} objects in {size} bytes are too few or too many")
        inflater = zlib.decompressobj()
        plain = inflater.decompress(part[8:], size)
        if len(plain) != size or inflater.unconsumed_tail:
            raise ValueError("objects are not as long as they say")
    else:
        plain = bytes(part)
    lengths = np.frombuffer(plain, np.int64, header.rows)
    bounds = np.concatenate(([0], np.cumsum(lengths))) + 8 * header.rows
    if bounds[-1] != len(plain) or (lengths < 0).any():
        raise ValueError("objects do not add up")
    objects = np.empty(header.rows, dtype=object)
    edges = bounds.tolist()
    for row in range(header.rows):
        objects[row] = plain[edges[row] : edges[row + 1]]
    return objects


def _pack(numbers: Int64Array) -> bytes:
    """Encode a column by itself: one byte for how, then the numbers."""
    if len(numbers) >= _PACK_AT:
        packed: bytes = standalone.simple_compress(np.ascontiguousarray(numbers), _COMPRESSION)
        if len(packed) < numbers.nbytes:
            return b"\1" + packed
    return b"\0" + numbers.tobytes()


def _unpack(part: bytes | memoryview, count: int) -> Int64Array:
    if part[0]:
        return _inflate_integers(part[1:], count)
    return np.frombuffer(bytes(part[1:]), np.int64, count)


def _inflate(
    part: bytes | memoryview, count: int, dtype: np.dtype[np.generic], *, is_all: bool = True
) -> ValueArray:
    """Undo pcodec into a column of known length, which bounds what a damaged one can take."""
    column: ValueArray = np.empty(count, dtype)
    progress = standalone.simple_decompress_into(bytes(part), column)
    if progress.n_processed != count or progress.finished != is_all:
        raise ValueError(f"a column of {count} rows holds another number")
    return column


def _inflate_integers(part: bytes | memoryview, count: int) -> Int64Array:
    return cast("Int64Array", _inflate(part, count, np.dtype(np.int64)))


_NO_STATISTICS: Final = (_NONE, _NONE, _NONE, _NONE, _NONE * 2)


def _statistics(kind: ValueKind, values: ValueArray) -> tuple[int, tuple[bytes, ...]]:
    """What the header of a block of one series says of its values."""
    if kind is ValueKind.OBJECT:
        return 0, _NO_STATISTICS
    first, last = values[:1].tobytes(), values[-1:].tobytes()
    if kind is ValueKind.INT:
        total = _sum_integers(cast("Int64Array", values))
        extremes = (values.min().tobytes(), values.max().tobytes())
        return 0, (first, last, *extremes, total.to_bytes(16, "little", signed=True))
    if len(values) == 1:
        is_nan = bool(values[0] != values[0])
        return int(is_nan), (first, first, first, first, _NONE * 2 if is_nan else first + _NONE)
    with np.errstate(invalid="ignore", over="ignore"):
        lowest, nan_count, numbers = values.min(), 0, values
        if lowest != lowest:  # the minimum is NaN where any value is
            numbers = values[~np.isnan(values)]
            nan_count = len(values) - len(numbers)
            if not len(numbers):
                return nan_count, (first, last, first, first, _NONE * 2)
            lowest = numbers.min()
        total = numbers.sum()
    extremes = (lowest.tobytes(), numbers.max().tobytes())
    return nan_count, (first, last, *extremes, struct.pack("<dd", total, 0.0))


def _sum_integers(values: Int64Array) -> int:
    """Exact sum of int64: high and low halves do not overflow for `ROWS_MAX` rows."""
    return (int((values >> 32).sum()) << 32) + int((values & 0xFFFFFFFF).sum())
