"""Line protocol by blocks: structure found over all bytes at once, numbers parsed in columns.

The fast way takes lines of the plain form, `measurement,tags fields timestamp` without quotes and
backslashes, each with two spaces. What tells series apart, all before the first space and the name
of the field, is parsed once for each text and then remembered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from tsengine.errors import InvalidDataError
from tsengine.formats.arrow_columns import arrow_int64s, codes, float64s, int64s
from tsengine.formats.blocks import LINE_MAX, Block
from tsengine.formats.columns import combine
from tsengine.formats.intake import Intake, Judged, grouped
from tsengine.formats.line_protocol import BOOLS, LINE, OPEN_STRING, SKIPPED, LineRules
from tsengine.formats.text_reading import TextReader
from tsengine.model import INT64_MAX, GroupedBatch, Int64Array, Labels

if TYPE_CHECKING:
    import pyarrow as pa

_SERIES_MAX: Final = 1 << 17
_SUSPICIOUS: Final = (b'"', b"\\", b"\t")
"""What the fast way leaves to the other: strings, escapes, and what may be space or not."""


class LineReader(TextReader):
    """Reads line protocol."""

    def __init__(self, intake: Intake, rules: LineRules) -> None:
        super().__init__(intake)
        self._rules = rules
        self._known: dict[tuple[bytes, bytes], Labels] = {}

    def slow(self, block: Block, *, is_last: bool) -> tuple[list[Judged], int]:
        """Read row by row, as `TextReader` says."""
        try:
            text = block.data.decode()
        except UnicodeDecodeError:
            text = block.data.decode(errors="surrogateescape")
        points: list[Judged] = []
        place, line = 0, block.line
        while place < len(text):
            match = SKIPPED.match(text, place)
            if match is not None and match.end() > place:
                line += 1
                place = match.end()
                continue
            match = LINE.match(text, place)
            if match is None:
                rest = len(text) - place
                if not is_last and rest <= LINE_MAX and OPEN_STRING.match(text, place):
                    return points, len(text[place:].encode(errors="surrogateescape"))
                end = text.find("\n", place) + 1 or len(text)
                reason = "a string without its end" if '="' in text[place:end] else "no line"
                self._reject(line, f"{reason} of the line protocol", text[place:end])
            else:
                end = match.end()
                try:
                    points += self.intake.judge(self._rules.given(match))
                except InvalidDataError as error:
                    self._reject(line, str(error), text[place:end])
            line += text.count("\n", place, end)
            place = end
        return points, 0

    def _reject(self, line: int, reason: str, row: str) -> None:
        raw = row.encode(errors="surrogateescape")
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 at byte {error.start}"
        self.intake.rejects.add(line, reason, raw)

    def fast(self, block: Block) -> list[GroupedBatch] | None:
        """Read all at once, as `TextReader` says."""
        data = block.data
        if any(mark in data for mark in _SUSPICIOUS):
            return None
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
            if b"\r" in data:
                return None
        fields = _Fields.of(data if data.endswith(b"\n") else data + b"\n")
        if fields is None:
            return None
        try:
            batches = self._batches(fields)
        except (InvalidDataError, UnicodeDecodeError):
            return None
        if batches is None or not self.intake.admits(batches):
            return None
        return batches

    def _batches(self, fields: _Fields) -> list[GroupedBatch] | None:
        """Give the points; None where a number needs a look.

        Raises:
            InvalidDataError, UnicodeDecodeError: a series does.
        """
        if fields.are_hexadecimal(fields.spaces[:, 1] + 1):
            return None
        moments = _integers(fields.times())
        unit = self._rules.unit
        if (
            moments is None
            or moments.max() > INT64_MAX // unit
            or moments.min() < -(INT64_MAX // unit)
        ):
            return None
        moments = (moments * unit)[fields.lines]
        series, keys = fields.series().dictionary_encode(), fields.keys().dictionary_encode()
        ranks, pairs = combine(codes(series)[fields.lines], codes(keys), len(keys.dictionary))
        names = self._names(series.dictionary.to_pylist(), keys.dictionary.to_pylist(), pairs)
        distinct: dict[Labels, int] = {}
        places = [distinct.setdefault(labels, len(distinct)) for labels in names]
        if len(distinct) < len(names):  # one series written in two ways
            ranks = np.array(places, np.int64)[ranks]
            names = list(distinct)
        batches: list[GroupedBatch] = []
        for rows, column in _value_columns(fields):
            if column is None:
                return None
            if len(rows) == len(ranks):
                batches.append(grouped(ranks, names, moments, column))
            else:
                batches.append(grouped(ranks[rows], names, moments[rows], column))
        return batches

    def _names(self, series: list[bytes], keys: list[bytes], pairs: list[int]) -> list[Labels]:
        names: list[Labels] = []
        for pair in pairs:
            named = series[pair // len(keys)], keys[pair % len(keys)]
            labels = self._known.get(named)
            if labels is None:
                labels = self._rules.labels(named[0].decode(), named[1].decode())
                if len(self._known) >= _SERIES_MAX:
                    self._known.clear()
                self._known[named] = labels
            names.append(labels)
        return names


@dataclass(frozen=True, slots=True, eq=False)
class _Fields:
    """Where everything stands in a block of plain lines: of n lines and m fields.

    Attributes:
        data: the bytes, and `array`, the same as uint8.
        starts, spaces, ends: int64[n], [n, 2], [n]: of the lines.
        lines: int64[m], the line of each field.
        keys_at, equals, fields_end: int64[m].
    """

    data: bytes
    array: npt.NDArray[np.uint8]
    starts: Int64Array
    spaces: Int64Array
    ends: Int64Array
    lines: Int64Array
    keys_at: Int64Array
    equals: Int64Array
    fields_end: Int64Array

    @classmethod
    def of(cls, data: bytes) -> _Fields | None:
        """Find them; None where some line is not plain."""
        array = np.frombuffer(data, np.uint8)
        # One pass over all bytes; what follows looks at the marks alone, some ten a line.
        is_mark = array == ord("\n")
        for mark in b" ,=":
            is_mark |= array == mark
        marks = np.flatnonzero(is_mark)
        kinds = array[marks]
        ends, is_space = marks[kinds == ord("\n")], kinds == ord(" ")
        spaces = marks[is_space]
        if len(spaces) != 2 * len(ends):
            return None
        both = spaces.reshape(-1, 2)
        first, second = both[:, 0], both[:, 1]
        starts = np.concatenate(([0], ends[:-1] + 1))
        if not ((starts < first) & (first < second) & (second + 1 < ends)).all():
            return None
        spaces_before = np.cumsum(is_space)
        is_inside = (spaces_before & 1) == 1  # from the first space of a line up to the second
        is_equals = is_inside & (kinds == ord("="))
        is_comma = is_inside & (kinds == ord(","))
        equals, lines = marks[is_equals], spaces_before[is_equals] >> 1
        keys_at = marks[is_comma | (is_inside & is_space)] + 1
        fields_end = marks[is_comma | (is_space & ~is_inside)]
        if len(equals) != len(keys_at) or len(equals) != len(fields_end):
            return None
        if not ((keys_at < equals) & (equals + 1 < fields_end)).all():
            return None
        if (array[starts] == ord("#")).any():
            return None  # a comment
        return cls(data, array, starts, both, ends, lines, keys_at, equals, fields_end)

    def times(self) -> pa.Array:
        """Give the timestamps as text."""
        return self.texts(self.spaces[:, 1] + 1, self.ends)

    def series(self) -> pa.Array:
        """Give what stands before the first space, as bytes."""
        return self.texts(self.starts, self.spaces[:, 0], is_text=False)

    def keys(self) -> pa.Array:
        """Give the names of fields, as bytes."""
        return self.texts(self.keys_at, self.equals, is_text=False)

    def are_hexadecimal(self, starts: Int64Array) -> bool:
        """Whether some numbers are written as 0x1F, which pyarrow reads and nobody here."""
        last = len(self.array) - 1
        for place in (1, 2):  # behind a sign, too
            letters = self.array[np.minimum(starts + place, last)] | 0x20  # as small ones
            if (letters == ord("x")).any():
                return True
        return False

    def texts(self, starts: Int64Array, ends: Int64Array, *, is_text: bool = True) -> pa.Array:
        """Give pieces of the bytes, one after the other, as one column."""
        import pyarrow as pa

        bounds = np.empty(2 * len(starts) + 1, np.int32)
        bounds[0:-1:2] = starts
        bounds[1::2] = ends
        bounds[-1] = ends[-1] if len(ends) else 0
        buffers = [None, pa.py_buffer(bounds), pa.py_buffer(self.data)]
        kind = pa.string() if is_text else pa.binary()
        pieces = pa.Array.from_buffers(kind, 2 * len(starts), buffers)
        return pieces.take(arrow_int64s(np.arange(0, 2 * len(starts), 2)))


def _value_columns(
    fields: _Fields,
) -> list[tuple[Int64Array, npt.NDArray[np.generic] | None]]:
    """Give the values by kind with the fields they are of; None where one needs a look."""
    last = fields.array[fields.fields_end - 1]
    is_float = ((last >= ord("0")) & (last <= ord("9"))) | (last == ord("."))
    is_int = last == ord("i")
    columns: list[tuple[Int64Array, npt.NDArray[np.generic] | None]] = []
    for chosen, read, cut in (
        (is_float, _floats, 0),
        (is_int, _integers, 1),
        (~(is_float | is_int), _bools, 0),
    ):
        rows = np.flatnonzero(chosen)
        if len(rows):
            starts, ends = fields.equals[rows] + 1, fields.fields_end[rows] - cut
            is_empty = cut and (starts >= ends).any()
            is_bad = is_empty or (cut and fields.are_hexadecimal(starts))
            columns.append((rows, None if is_bad else read(fields.texts(starts, ends))))
    return columns


def _floats(texts: pa.Array) -> npt.NDArray[np.float64] | None:
    import pyarrow as pa

    try:
        numbers = float64s(texts.cast(pa.float64()))
    except pa.ArrowInvalid:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _integers(texts: pa.Array) -> Int64Array | None:
    import pyarrow as pa

    try:
        return int64s(texts.cast(pa.int64()))
    except pa.ArrowInvalid:
        return None


def _bools(texts: pa.Array) -> npt.NDArray[np.object_] | None:
    words = texts.to_pylist()
    if not BOOLS.keys() >= set(words):
        return None
    column = np.empty(len(words), object)
    column[:] = [BOOLS[word] for word in words]
    return column
