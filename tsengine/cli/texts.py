"""Texts: timestamps, values, sizes and anything else, as people and programs read them."""

from __future__ import annotations

import base64
import json
import math
import re
from typing import Final

import numpy as np

from tsengine.model import Int64Array, ValueArray

_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters, and those that turn the direction of a line around."""

_USER: Final = re.compile(r"://[^\s'\"]*@")
_NAMED_SECRET: Final = re.compile(
    r"(?<=[?&])(password|passwd|secret|token|key)=[^&\s'\")]*", re.IGNORECASE
)

_encode: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
"""Made once: `json.dumps` with arguments makes one each time, which costs more than encoding."""

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def printable(text: str) -> str:
    r"""Escape what could steer a terminal: a label may hold anything, `\x1b` for one."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def without_secrets(text: str) -> str:
    """Take what may be a password out of the URLs that a text quotes."""
    return _NAMED_SECRET.sub(r"\1=***", _USER.sub("://***@", text))


def timestamp_texts(timestamps: Int64Array) -> list[str]:
    """Give ISO 8601 in UTC with all nine digits: every int64 of nanoseconds, without loss."""
    # The first int64 is NaT to numpy, and alone has no text of its own.
    texts: list[str] = np.datetime_as_string(timestamps.view("datetime64[ns]"), unit="ns").tolist()
    return [_FIRST if text == "NaT" else f"{text}Z" for text in texts]


_FIRST: Final = "1677-09-21T00:12:43.145224192Z"


def timestamp_text(timestamp: int) -> str:
    """Give one timestamp as `timestamp_texts` does."""
    return timestamp_texts(np.array([timestamp], np.int64))[0]


def value_texts(values: ValueArray) -> list[str]:
    """Give values as text that tells kinds apart and gives each back.

    Floats are the shortest text that reads back as the same, with a point, an exponent, `nan` or
    `inf`; integers are digits; objects are JSON, as `json_value` has it, text in quotes.
    """
    if values.dtype == object:
        return [json_text(value) for value in values.tolist()]
    return list(map(repr, values.tolist()))


def value_text(value: object) -> str:
    """Give one value as `value_texts` does."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return repr(value) if is_number else json_text(value)


def json_value(value: object) -> object:
    """Give what stands for a value in JSON, which knows no NaN, no infinity and no bytes.

    `{"$float": "nan"}`, `"inf"` or `"-inf"`, and `{"$bytes": "base64"}`; a map with one key that
    begins with `$` becomes `{"$map": …}`, so that nothing is taken for what it is not.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [json_value(item) for item in value]
    if isinstance(value, dict):
        items = {key: json_value(item) for key, item in value.items()}
        is_alike = len(items) == 1 and next(iter(items)).startswith("$")
        return {"$map": items} if is_alike else items
    return value


def json_text(value: object) -> str:
    """Give a value as JSON on one line."""
    return _encode(json_value(value))


def size_text(count: float) -> str:
    """Give bytes in the unit that people would choose: `1.5 MiB`."""
    size, power = float(count), 0
    while size >= 1024 and power < len(_UNITS) - 1:
        size, power = size / 1024, power + 1
    return f"{size:.1f} {_UNITS[power]}" if power else f"{size:.0f} B"
