"""Binary: columns as PostgreSQL takes them, built by numpy: COPY streams and array parameters.

    COPY … FROM STDIN (FORMAT BINARY)      HEADER, any number of blocks of rows, TRAILER
    unnest(%b, %b, …)                      one `BinaryArray` a column; which every `Session` takes

Both hold a field as its length in four bytes, big-endian, and then its bytes; a length of −1
and no bytes is NULL. Fields of a fixed width make structured arrays, which numpy fills by
column; others are joined from fields made one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from operator import add
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from psycopg import pq
from psycopg.abc import AdaptContext, DumperKey
from psycopg.adapt import Dumper, PyFormat

from tsengine.model import Int64Array

HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""Begins a stream: signature, flags, length of the header's extension."""

TRAILER: Final = b"\xff\xff"
"""Ends a stream."""

NULL: Final = b"\xff\xff\xff\xff"
"""The field of a NULL."""

BYTEA: Final = 17
INT8: Final = 20
TEXT: Final = 25
FLOAT8: Final = 701
JSONB: Final = 3802

ARRAYS: Final = {
    16: 1000,  # bool
    BYTEA: 1001,
    INT8: 1016,
    21: 1005,  # int2
    23: 1007,  # int4
    TEXT: 1009,
    114: 199,  # json
    700: 1021,  # float4
    FLOAT8: 1022,
    1042: 1014,  # char(n)
    1043: 1015,  # varchar
    1082: 1182,  # date
    1114: 1115,  # timestamp
    1184: 1185,  # timestamptz
    2950: 2951,  # uuid
    JSONB: 3807,
}
"""The type of an array by the type of its elements; these numbers are the same on every server."""

_length: Final = struct.Struct(">i").pack

_JSONB_VERSION: Final = b"\x01"

FixedColumn: TypeAlias = Int64Array | NDArray[np.float64]
"""A column without NULLs whose fields have eight bytes."""


def fixed_rows(*columns: FixedColumn) -> bytes:
    """Give a block of rows for COPY from columns of int64 and float64.

    Args:
        columns: [n] each, in the order of the COPY's columns; int64 for int8, float64 for float8.

    Returns:
        2 + 12 bytes a column for each row.
    """
    layout: list[tuple[str, str]] = [("fields", ">i2")]
    for number, column in enumerate(columns):
        layout += [(f"length{number}", ">i4"), (f"value{number}", _wire(column))]
    rows = np.empty(len(columns[0]), layout)
    rows["fields"] = len(columns)
    for number, column in enumerate(columns):
        rows[f"length{number}"] = 8
        rows[f"value{number}"] = column
    return rows.tobytes()


def rows_of_fields(columns: Sequence[Sequence[bytes]]) -> bytes:
    """Give a block of rows for COPY from fields.

    Args:
        columns: [n] each; a field with its length in front, as `field`, `fixed_fields` and NULL.
    """
    count = struct.pack(">h", len(columns))
    return b"".join(chain.from_iterable(zip(repeat(count), *columns, strict=False)))


def field(content: bytes) -> bytes:
    """Give bytes, or UTF-8 of a text, as a field."""
    return _length(len(content)) + content


def text_fields(texts: Sequence[str]) -> list[bytes]:
    """Give texts as fields, without a call of Python for each."""
    contents = list(map(str.encode, texts))
    return list(map(add, map(_length, map(len, contents)), contents))


def jsonb_field(content: bytes) -> bytes:
    """Give UTF-8 of a JSON document as a field of type jsonb."""
    return _length(len(content) + 1) + _JSONB_VERSION + content


def fixed_fields(column: FixedColumn) -> list[bytes]:
    """Give a column of int64 or float64 as fields."""
    content = _fixed_elements(column).tobytes()
    return [content[at : at + 12] for at in range(0, len(content), 12)]


@dataclass(frozen=True, slots=True)
class BinaryArray:
    """A parameter of a statement: an array in one dimension.

    Attributes:
        oid: type of the array.
        data: its binary form.
    """

    oid: int
    data: bytes

    @classmethod
    def of_fixed(cls, column: FixedColumn) -> BinaryArray:
        """Make an array of int8 or float8 from a column of int64 or float64."""
        oid = INT8 if column.dtype.kind == "i" else FLOAT8
        return cls(ARRAYS[oid], _head(oid, len(column)) + _fixed_elements(column).tobytes())

    @classmethod
    def of_fields(cls, oid: int, fields: Iterable[bytes]) -> BinaryArray:
        """Make an array from fields.

        Args:
            oid: type of the elements, one of `ARRAYS`.
            fields: each with its length in front; NULLs too.
        """
        listed = list(fields)
        return cls(ARRAYS[oid], _head(oid, len(listed), nulls=NULL in listed) + b"".join(listed))


class _BinaryArrayDumper(Dumper):
    """Hands a `BinaryArray` to the driver as it is."""

    format = pq.Format.BINARY

    def get_key(self, obj: BinaryArray, format: PyFormat) -> DumperKey:  # noqa: A002  # the driver's name
        return (self.cls, obj.oid)  # type: ignore[return-value]  # any hashable pair does, as for lists

    def upgrade(self, obj: BinaryArray, format: PyFormat) -> Dumper:  # noqa: A002  # as above
        dumper = type(self)(self.cls)
        dumper.oid = obj.oid
        return dumper

    def dump(self, obj: BinaryArray) -> bytes:
        return obj.data


def register(context: AdaptContext) -> None:
    """Let a connection take `BinaryArray` as a parameter, written `%b` in a statement."""
    context.adapters.register_dumper(BinaryArray, _BinaryArrayDumper)


def _wire(column: FixedColumn) -> str:
    assert column.dtype in (np.int64, np.float64)
    return ">i8" if column.dtype.kind == "i" else ">f8"


def _fixed_elements(column: FixedColumn) -> NDArray[np.void]:
    elements = np.empty(len(column), [("length", ">i4"), ("value", _wire(column))])
    elements["length"] = 8
    elements["value"] = column
    return elements


def _head(oid: int, length: int, *, nulls: bool = False) -> bytes:
    """Give what precedes the elements: dimensions, NULLs, type, length, lower bound."""
    if not length:
        return struct.pack(">iii", 0, 0, oid)
    return struct.pack(">iiiii", 1, int(nulls), oid, length, 1)
