"""Packing: the columns of points as parameters, as COPY blocks, and read back.

No row becomes a Python object on the way, but those of objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, cast

import numpy as np

from tsengine.backends.postgres.binary import (
    BYTEA,
    HEADER,
    TRAILER,
    BinaryArray,
    FixedColumn,
    field,
    fixed_fields,
    fixed_rows,
    rows_of_fields,
)
from tsengine.backends.postgres.rows import Rows
from tsengine.errors import CorruptionError
from tsengine.model import Int64Array, ValueArray, ValueKind, unpack_object

COPY_ROWS: Final = 16_384
"""Rows of a block of COPY: 600 KiB, which bounds what a COPY of any length takes."""

COPY_OBJECTS: Final = 256
"""Likewise of objects, which may have 64 KiB each."""


def int8s(numbers: Int64Array | Sequence[int]) -> BinaryArray:
    """Give int64[n] as a parameter."""
    return BinaryArray.of_fixed(np.asarray(numbers, np.int64))


def byteas(contents: Sequence[bytes]) -> BinaryArray:
    """Give byte strings as a parameter."""
    return BinaryArray.of_fields(BYTEA, map(field, contents))


def parameters(rows: Rows) -> tuple[BinaryArray, BinaryArray, BinaryArray]:
    """Give rows as three parameters: series, timestamps, values."""
    if rows.kind is ValueKind.OBJECT:
        values = byteas(rows.values.tolist())
    else:
        values = BinaryArray.of_fixed(cast("FixedColumn", rows.values))
    return int8s(rows.series), int8s(rows.timestamps), values


def copy_blocks(rows: Rows) -> Iterator[bytes]:
    """Give rows as COPY takes them, block by block."""
    yield HEADER
    step = COPY_OBJECTS if rows.kind is ValueKind.OBJECT else COPY_ROWS
    for first in range(0, len(rows), step):
        some = slice(first, first + step)
        series, timestamps, values = rows.series[some], rows.timestamps[some], rows.values[some]
        if rows.kind is ValueKind.OBJECT:
            keys = fixed_fields(series), fixed_fields(timestamps)
            yield rows_of_fields([*keys, list(map(field, values.tolist()))])
        else:
            yield fixed_rows(series, timestamps, cast("FixedColumn", values))
    yield TRAILER


def int64_column(raw: bytes | None) -> Int64Array:
    """Read what `string_agg(int8send(…), '')` gives: int64[n], the caller's own."""
    return np.frombuffer(raw or b"", ">i8").astype(np.int64)


def value_column(kind: ValueKind, raw: bytes | None, lengths: bytes | None) -> ValueArray:
    """Read a column of values, the caller's own.

    Args:
        kind: of the values.
        raw: their bytes, one behind the other.
        lengths: of objects, `string_agg(int4send(…), '')`.

    Raises:
        CorruptionError: an object is no MessagePack.
    """
    if kind is ValueKind.INT:
        return int64_column(raw)
    if kind is ValueKind.FLOAT:
        return np.frombuffer(raw or b"", ">f8").astype(np.float64)
    whole = raw or b""
    ends: list[int] = np.cumsum(np.frombuffer(lengths or b"", ">i4"), dtype=np.int64).tolist()
    if (ends[-1] if ends else 0) != len(whole):
        raise CorruptionError("the values of a series of objects are not as long as they say")
    values = np.empty(len(ends), object)
    first = 0
    for row, end in enumerate(ends):
        values[row] = unpack_object(whole[first:end])
        first = end
    return values
