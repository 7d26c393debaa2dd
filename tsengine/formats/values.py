"""Values as text: numbers that come back bit for bit, objects as JSON.

A float is the shortest text that reads back the same, with a point or an exponent: `12.0`. There
are `inf` and `-inf`; `nan`, and `-nan` and `nan(0x2)`, as C writes them, for one with another sign
or payload than usual. An int is digits. An object is JSON, which does not carry bytes.
"""

from __future__ import annotations

import enum
import json
import math
import re
import struct
from typing import Final

from tsengine.errors import FormatError, InvalidDataError, ValueKindError
from tsengine.model import Value


class ValueForm(enum.StrEnum):
    """How the texts of a column are meant."""

    AUTO = "auto"
    """Numbers. One without point and exponent opens the kind that the store gives integers."""
    FLOAT = "float"
    """Numbers, float64."""
    INT = "int"
    """Integers, int64."""
    TEXT = "text"
    """Text, as it stands."""
    JSON = "json"
    """JSON: text in quotes, lists, maps, true and false; numbers as with `auto`."""


_NUMBER: Final = re.compile(
    r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\Z", re.ASCII
)
_INTEGER: Final = re.compile(r"-?[0-9]+\Z", re.ASCII)
_WORD: Final = re.compile(r"[+-]?(?:inf|infinity|nan)\Z", re.IGNORECASE)
_NAN_PAYLOAD: Final = re.compile(r"(-?)nan\(0x([0-9a-f]{1,13})\)\Z")
_DIGITS_MAX: Final = 1_000
"""Longest text of a number: the exact decimal form of any float64 has at most 767 digits."""

_EXPONENT: Final = 0x7FF0000000000000
_QUIET: Final = 0x0008000000000000
_SIGN: Final = 1 << 63
_FLOAT_EXACT: Final = 2**53


def read_float(text: str) -> float:
    """Give the number that a text means.

    Raises:
        ValueKindError: it means none, or an integer that float64 does not hold.
    """
    number = read_number(text)
    if isinstance(number, int) and abs(number) > _FLOAT_EXACT:
        try:
            exact = int(float(number)) == number
        except OverflowError:
            exact = False
        if not exact:
            raise ValueKindError(f"{text.strip()[:80]} loses precision as float64; read it as int")
    return float(number)


def read_int(text: str) -> int:
    """Give the integer that a text means.

    Raises:
        ValueKindError: it means none.
    """
    stripped = text.strip(" \t")
    if len(stripped) > _DIGITS_MAX or not _INTEGER.match(stripped):
        raise ValueKindError(f"{stripped[:80]!r} is no integer")
    return int(stripped)


def read_number(text: str) -> float | int:
    """Give the number that a text means, an int where it has no point and no exponent.

    Raises:
        ValueKindError: it means none.
    """
    stripped = text.strip(" \t")
    if len(stripped) <= _DIGITS_MAX:
        if _INTEGER.match(stripped):
            return -0.0 if stripped.startswith("-") and not stripped.strip("-0") else int(stripped)
        if _NUMBER.match(stripped):
            number = float(stripped)
            if math.isinf(number):
                raise ValueKindError(f"{stripped[:80]} is beyond float64")
            return number
        if _WORD.match(stripped):
            return float(stripped)
        payload = _NAN_PAYLOAD.match(stripped)
        if payload and int(payload[2], 16):
            bits = _EXPONENT | int(payload[2], 16) | (_SIGN if payload[1] else 0)
            return float(struct.unpack("<d", struct.pack("<Q", bits))[0])
    raise ValueKindError(f"{stripped[:80]!r} is no number")


def read_json(text: str) -> object:
    """Give what a JSON text means.

    Raises:
        InvalidDataError: it is no JSON.
    """
    try:
        value: object = _DECODER.decode(text)
        return value
    except (ValueError, RecursionError) as error:
        raise InvalidDataError(f"no JSON: {error}") from None


def read_value(text: str, form: ValueForm) -> object:
    """Give the value that a text of a column means: not judged yet.

    Raises:
        InvalidDataError: it means none of that form.
    """
    match form:
        case ValueForm.AUTO:
            return read_number(text)
        case ValueForm.FLOAT:
            return read_float(text)
        case ValueForm.INT:
            return read_int(text)
        case ValueForm.TEXT:
            return text
        case ValueForm.JSON:
            return read_json(text)


def float_text(value: float) -> str:
    """Write a float so that `read_float` gives the same bits."""
    if value == value:
        return repr(value)
    bits: int = struct.unpack("<Q", struct.pack("<d", value))[0]
    sign = "-" if bits & _SIGN else ""
    payload = bits & ~(_SIGN | _EXPONENT)
    return f"{sign}nan" if payload == _QUIET else f"{sign}nan(0x{payload:x})"


def json_text(value: Value) -> str:
    """Write an object as JSON on one line.

    Raises:
        FormatError: JSON does not carry it: bytes, NaN, infinities.
    """
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise FormatError(
            f"JSON does not carry the value {repr(value)[:80]} ({error}); Parquet does"
        ) from None


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is no JSON")


def _json_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:80]} is beyond float64")
    return number


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant, parse_float=_json_float)
"""Kept: to make one takes half as long as to decode a row."""
