"""Fields: Python values as the binary form of a column's type.

The common types have a form of ours, made without asking the driver about each value. Values
of any other type, such as arrays, enums, numbers and addresses, are written as text by the
driver, sent as text, and cast by the server: `field_type` says which.
"""

from __future__ import annotations

import datetime
import json
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias, cast

import numpy as np
import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.types.json import Json, Jsonb

from tsengine.backends.postgres.binary import (
    BYTEA,
    FLOAT8,
    INT8,
    JSONB,
    NULL,
    TEXT,
    field,
    jsonb_field,
    text_fields,
)
from tsengine.backends.postgres.tables import Column
from tsengine.errors import DataRefusedError

FieldMaker: TypeAlias = Callable[[object], bytes]
"""Gives a value that is not None as a field, with its length in front."""

_EPOCH_UTC: Final = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
_EPOCH: Final = datetime.datetime(2000, 1, 1)  # noqa: DTZ001  # of columns without a time zone
_EPOCH_DAY: Final = datetime.date(2000, 1, 1).toordinal()
_JSON: Final = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode


def fields_of(values: Sequence[object], column: Column, *, json_texts: bool = False) -> list[bytes]:
    """Give the values of a column as fields.

    Args:
        values: None for NULL.
        column: whose values they are.
        json_texts: whether a `str` for a json column is a document, rather than a string that
            becomes one. `bytes` are a document always.

    Raises:
        DataRefusedError: the column cannot take a value; `indices` names all such.
    """
    make = _maker(column, json_texts=json_texts)
    try:
        if make is _text and {*map(type, values)} == {str}:  # in half the time
            return text_fields(cast("Sequence[str]", values))
        return [NULL if value is None else make(value) for value in values]
    except _BAD:
        bad = [row for row, value in enumerate(values) if not _fits(make, value)]
        shown = repr(values[bad[0]])
        shown = shown if len(shown) <= 100 else f"{shown[:100]}…"
        raise DataRefusedError(
            f"column {column.name!r} of type {column.sql_type} does not take {shown}", indices=bad
        ) from None


def field_type(column: Column) -> int:
    """Give the type in which the fields of a column come: its own, or text."""
    return column.oid if column.oid in _MAKERS else TEXT


def _maker(column: Column, *, json_texts: bool) -> FieldMaker:
    make = _MAKERS.get(column.oid, _as_text)
    if json_texts and column.oid in (JSONB, 114):
        wrap = make

        def make_of_document(value: object) -> bytes:
            return wrap(value.encode() if isinstance(value, str) else value)

        return make_of_document
    return make


_BAD: Final = (
    AttributeError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,  # with UnicodeError
    psycopg.Error,
    struct.error,
)
"""What the makers raise of a value that does not fit."""


def _fits(make: FieldMaker, value: object) -> bool:
    try:
        if value is not None:
            make(value)
    except _BAD:
        return False
    return True


def _packed(layout: str) -> FieldMaker:
    """Make fields of numbers; struct takes no float for an integer, and no text."""
    packer = struct.Struct(f">i{layout}")
    pack, width = packer.pack, packer.size - 4

    def make(value: object) -> bytes:
        return pack(width, value)

    return make


def _boolean(value: object) -> bytes:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError
    return b"\0\0\0\1\1" if value else b"\0\0\0\1\0"


def _text(value: object) -> bytes:
    return field(cast("str", value).encode())  # what is no str has no encode()


def _bytes(value: object) -> bytes:
    if isinstance(value, (str, int)):
        raise TypeError
    return field(bytes(cast("bytes", value)))


def _document(value: object) -> bytes:
    if isinstance(value, (Jsonb, Json)):
        value = value.obj
    return value if isinstance(value, bytes) else _JSON(value).encode()


def _json(value: object) -> bytes:
    return field(_document(value))


def _jsonb(value: object) -> bytes:
    return jsonb_field(_document(value))


def _uuid(value: object) -> bytes:
    return field((value if isinstance(value, uuid.UUID) else uuid.UUID(cast("str", value))).bytes)


_pack_int4 = _packed("i")
_pack_int8 = _packed("q")


def _date(value: object) -> bytes:
    if type(value) is not datetime.date:  # a datetime would lose its time
        raise TypeError
    return _pack_int4(value.toordinal() - _EPOCH_DAY)


def _moments(epoch: datetime.datetime) -> FieldMaker:
    def make(value: object) -> bytes:
        # A naive one and an aware one have no difference: that is a TypeError.
        since = cast("datetime.datetime", value) - epoch
        if not isinstance(since, datetime.timedelta):
            raise TypeError
        seconds = since.days * 86_400 + since.seconds
        return _pack_int8(seconds * 1_000_000 + since.microseconds)

    return make


def _as_text(value: object) -> bytes:
    if isinstance(value, str):
        return _text(value)
    written = Transformer().get_dumper(value, PyFormat.TEXT).dump(value)
    if written is None:
        raise TypeError
    return field(bytes(written))


_MAKERS: Final[Mapping[int, FieldMaker]] = {
    16: _boolean,
    BYTEA: _bytes,
    INT8: _pack_int8,
    21: _packed("h"),  # int2
    23: _pack_int4,  # int4
    TEXT: _text,
    114: _json,
    700: _packed("f"),  # float4
    FLOAT8: _packed("d"),
    1042: _text,  # char(n)
    1043: _text,  # varchar
    1082: _date,
    1114: _moments(_EPOCH),  # timestamp
    1184: _moments(_EPOCH_UTC),  # timestamptz
    2950: _uuid,
    JSONB: _jsonb,
}
"""By type; these numbers are the same on every server."""
