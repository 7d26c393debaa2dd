"""InfluxDB line protocol, line by line: the whole of its syntax.

    measurement[,tag=value…] field=value[,field=value…] [timestamp]

A field becomes a point. Its series has the tags as labels, and as metric name the measurement, a
separator and the field, as Telegraf and VictoriaMetrics have it; a field called `value` adds
nothing. `1.5` is a float, `1i` and `1u` open int series, `t`, `true` and so on and `"text"` are
objects. A string may hold line feeds. Lines that begin with `#` are comments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tsengine.errors import InvalidDataError, TimestampError, ValueKindError
from tsengine.formats.intake import Given
from tsengine.formats.times import UNITS, read_number
from tsengine.model import INT64_MAX, METRIC_NAME, Labels

FIELD_OF_METRIC: Final = "value"
"""The field that adds nothing to the metric name."""

BOOLS: Final = dict.fromkeys(("t", "T", "true", "True", "TRUE"), True) | dict.fromkeys(
    ("f", "F", "false", "False", "FALSE"), False
)

_KEY: Final = r"(?:[^\\,= \n]|\\[^\n])++"
_MEASUREMENT: Final = r"(?:[^\\, \n]|\\[^\n])++"
_STRING: Final = r'"(?:[^"\\]|\\.)*+"'
_FIELD: Final = rf'({_KEY})=({_STRING}|[^," \n\r]++)'

SERIES: Final = re.compile(rf"({_MEASUREMENT})((?:,{_KEY}={_KEY})*+)", re.DOTALL)
_TAG: Final = re.compile(rf",({_KEY})=({_KEY})", re.DOTALL)
FIELDS: Final = re.compile(_FIELD, re.DOTALL)
LINE: Final = re.compile(
    rf" *({_MEASUREMENT}(?:,{_KEY}={_KEY})*+) +({_FIELD}(?:,{_FIELD})*+)"
    r"(?: +([^ \n\r]++))? *\r?(?:\n|\Z)",
    re.DOTALL,
)
OPEN_STRING: Final = re.compile(
    rf' *{_MEASUREMENT}(?:,{_KEY}={_KEY})*+ +(?:{_FIELD},)*+{_KEY}="(?:[^"\\]|\\.)*+\\?\Z',
    re.DOTALL,
)
"""The beginning of a line up to the end of the text, inside of a string."""

SKIPPED: Final = re.compile(r"[ \t]*(?:#[^\n]*)?\r?(?:\n|\Z)")
"""An empty line or a comment."""

_MEASUREMENT_ESCAPE: Final = re.compile(r"\\([,\\ ])")
_KEY_ESCAPE: Final = re.compile(r"\\([,=\\ ])")
_STRING_ESCAPE: Final = re.compile(r'\\(["\\])')
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\Z")
_WHOLE: Final = re.compile(r"-?[0-9]{1,1000}\Z")


@dataclass(frozen=True, slots=True)
class LineRules:
    """How lines become points.

    Attributes:
        unit: nanoseconds of the unit of timestamps.
        separator: stands between measurement and field in a metric name.
        constants: labels that every series gets.
        missing_time: nanoseconds of points without a timestamp; None where they are rejected.
    """

    unit: int = UNITS["ns"]
    separator: str = "_"
    constants: Mapping[str, str] = field(default_factory=dict)
    missing_time: int | None = None

    def labels(self, series: str, key: str) -> Labels:
        """Make the labels of a field, both as they stand in a line.

        Raises:
            InvalidDataError: they are such as no series has.
        """
        match = SERIES.fullmatch(series)
        if match is None:
            raise InvalidDataError(f"{series[:80]!r} is no measurement with tags")
        measurement = _MEASUREMENT_ESCAPE.sub(r"\1", match[1])
        name = _KEY_ESCAPE.sub(r"\1", key)
        metric = measurement if name == FIELD_OF_METRIC else f"{measurement}{self.separator}{name}"
        named = {METRIC_NAME: metric}
        for tag, text in _TAG.findall(match[2]):
            label = _KEY_ESCAPE.sub(r"\1", tag)
            if label in named:
                raise InvalidDataError(f"the tag {label!r} is given twice")
            named[label] = _KEY_ESCAPE.sub(r"\1", text)
        for label, text in self.constants.items():
            if label in named:
                raise InvalidDataError(f"the tag {label!r} is a constant label as well")
            named[label] = text
        return Labels(named)

    def given(self, line: re.Match[str]) -> list[Given]:
        """Give the points of a line that `LINE` matches.

        Raises:
            InvalidDataError: a tag, a field or the timestamp is none.
        """
        moment = self._timestamp(line[line.re.groups])
        points: list[Given] = []
        for key, text in FIELDS.findall(line[2]):
            value = read_field(text)
            points.append(Given(self.labels(line[1], key), moment, value, opens_int=True))
        return points

    def _timestamp(self, text: str | None) -> int:
        if text is not None:
            if not _WHOLE.match(text):
                raise TimestampError(f"{text[:80]!r} is no integer since 1970")
            return read_number(text, self.unit)
        if self.missing_time is None:
            raise TimestampError("the line has no timestamp, and none is given for such")
        return self.missing_time


def read_field(text: str) -> object:
    """Give the value of a field.

    Raises:
        ValueKindError: it is none.
    """
    if text.startswith('"'):
        return _STRING_ESCAPE.sub(r"\1", text[1:-1])
    if text in BOOLS:
        return BOOLS[text]
    body = text[:-1]
    if text.endswith(("i", "u")) and _WHOLE.match(body):
        number = int(body)
        if text.endswith("u") and (number < 0 or body.startswith("-")):
            raise ValueKindError(f"{text!r} is no unsigned integer")
        if not -INT64_MAX - 1 <= number <= INT64_MAX:
            raise ValueKindError(f"{text} does not fit int64")
        return number
    if not _DECIMAL.match(text):
        raise ValueKindError(f"{text[:80]!r} is no number, boolean or quoted string")
    value = float(text)
    if math.isinf(value):
        raise ValueKindError(f"{text[:80]} is beyond float64")
    return value
