"""Writing text: CSV, JSON lines, line protocol, a series after the other.

What is written is read back as the same, bit for bit, or `FormatError` says what the format does
not carry.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO, Final, cast

import numpy as np

from tsengine.errors import FormatError
from tsengine.formats.line_protocol import FIELD_OF_METRIC
from tsengine.formats.mapping import TIME_COLUMN, label_column
from tsengine.formats.values import float_text, json_text
from tsengine.model import METRIC_NAME, Labels, SeriesBatch, Value, ValueKind

KIND_COLUMNS: Final = {
    ValueKind.FLOAT: "value",
    ValueKind.INT: "value_int",
    ValueKind.OBJECT: "value_object",
}
"""In which column the values of a kind stand, where a format has columns."""

_ROWS: Final = 1 << 13
"""Rows that become text together: less than a megabyte."""

_MEASUREMENT_ESCAPED: Final = re.compile(r"([\\, ])")
_KEY_ESCAPED: Final = re.compile(r"([\\,= ])")
_STRING_ESCAPED: Final = re.compile(r'(["\\])')


class TextWriter(ABC):
    """Writes rows as lines.

    Args:
        stream: where to.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._labels: Labels | None = None
        self._around: tuple[str, str] = "", ""

    def begin(self) -> None:  # noqa: B027  # most formats have nothing there
        """Write what comes before all rows."""

    def write(self, batch: SeriesBatch) -> None:
        """Write the rows of a series.

        Raises:
            FormatError: the format does not carry them.
        """
        for start in range(0, len(batch), _ROWS):
            rows = slice(start, start + _ROWS)
            self._write_rows(SeriesBatch(batch.labels, batch.timestamps[rows], batch.values[rows]))

    def end(self) -> None:  # noqa: B027  # most formats have nothing there
        """Write what comes after all rows."""

    @abstractmethod
    def series(self, labels: Labels, kind: ValueKind) -> tuple[str, str]:
        """Give what stands before and after the cells of time and value of a series."""

    @abstractmethod
    def texts(self, batch: SeriesBatch, kind: ValueKind) -> Iterable[str]:
        """Give values as text."""

    @abstractmethod
    def lines(self, before: str, after: str, times: Sequence[int], texts: Iterable[str]) -> str:
        """Give the lines of rows."""

    def _write_rows(self, batch: SeriesBatch) -> None:
        kind = kind_of(batch)
        if batch.labels is not self._labels:
            self._around = self.series(batch.labels, kind)
            self._labels = batch.labels
        try:
            texts = list(self.texts(batch, kind))
        except FormatError as error:
            raise FormatError(f"{batch.labels}: {error}") from None
        self._stream.write(self.lines(*self._around, batch.timestamps.tolist(), texts).encode())


class CsvWriter(TextWriter):
    """Writes CSV: a column for each label, one for time, one for each kind of values there is.

    Args:
        stream: where to.
        names: of all labels.
        kinds: of all values.
        separator: between cells.
    """

    def __init__(
        self, stream: BinaryIO, names: Sequence[str], kinds: Sequence[ValueKind], separator: str
    ) -> None:
        super().__init__(stream)
        self._names = names
        self._kinds = kinds
        self._separator = separator
        self._between = separator  # between time and value
        self._plain = re.compile(rf'[^"\r\n{re.escape(separator)}]*\Z')

    def begin(self) -> None:
        """Write the names of columns."""
        columns = [*map(label_column, self._names), TIME_COLUMN]
        columns += [KIND_COLUMNS[kind] for kind in self._kinds]
        self._stream.write((self._separator.join(map(self._cell, columns)) + "\n").encode())

    def series(self, labels: Labels, kind: ValueKind) -> tuple[str, str]:
        """Give the cells of labels, and the empty ones around the value."""
        one = self._separator
        place = self._kinds.index(kind)
        cells = (self._cell(labels.get(name, "")) for name in self._names)
        self._between = one * (place + 1)
        return one.join(cells) + one, one * (len(self._kinds) - place - 1)

    def texts(self, batch: SeriesBatch, kind: ValueKind) -> Iterable[str]:
        """Give values as text; objects as JSON in quotes."""
        if kind is ValueKind.OBJECT:
            return map(self._cell, map(json_text, batch.values.tolist()))
        return number_texts(batch, kind)

    def lines(self, before: str, after: str, times: Sequence[int], texts: Iterable[str]) -> str:
        """Give a line for each row."""
        between = self._between
        return "".join(
            [
                f"{before}{moment}{between}{text}{after}\n"
                for moment, text in zip(times, texts, strict=True)
            ]
        )

    def _cell(self, text: str) -> str:
        return text if self._plain.match(text) else '"' + text.replace('"', '""') + '"'


class JsonWriter(TextWriter):
    """Writes JSON lines: a key for each label of the series, one for time, one for value."""

    def series(self, labels: Labels, kind: ValueKind) -> tuple[str, str]:
        """Give the beginning of an object up to its time, and the key of its value."""
        named: dict[str, str | None] = {METRIC_NAME: None}
        named |= {label_column(name): text for name, text in labels.items()}
        head = json.dumps(named)[:-1]
        return f'{head}, "{TIME_COLUMN}": ', f', "{KIND_COLUMNS[kind]}": '

    def texts(self, batch: SeriesBatch, kind: ValueKind) -> Iterable[str]:
        """Give values as JSON; what is no number there as text of a number."""
        if kind is ValueKind.OBJECT:
            return map(json_text, batch.values.tolist())
        texts = number_texts(batch, kind)
        if kind is ValueKind.FLOAT and not np.isfinite(batch.values).all():
            texts = [text if text[-1].isdigit() else f'"{text}"' for text in texts]
        return texts

    def lines(self, before: str, after: str, times: Sequence[int], texts: Iterable[str]) -> str:
        """Give an object for each row."""
        pairs = zip(times, texts, strict=True)
        return "".join([f"{before}{moment}{after}{text}}}\n" for moment, text in pairs])


class LineWriter(TextWriter):
    """Writes line protocol: the metric name as measurement, and one field, `value`."""

    def series(self, labels: Labels, kind: ValueKind) -> tuple[str, str]:
        """Give measurement and tags.

        Raises:
            FormatError: there is no metric name, or line protocol does not carry a label.
        """
        del kind
        name = labels.name
        if name is None:
            raise FormatError(f"{labels} has no metric name, which line protocol begins with")
        if any("\n" in text for text in labels.texts) or name.lstrip(" \t").startswith("#"):
            raise FormatError(
                f"line protocol carries no line feeds in labels and no name with # before all, "
                f"as in {labels}; other formats do"
            )
        parts = [_escaped(_MEASUREMENT_ESCAPED, name)]
        for tag, text in labels.items():
            if tag != METRIC_NAME:
                parts.append(f"{_escaped(_KEY_ESCAPED, tag)}={_escaped(_KEY_ESCAPED, text)}")
        return f"{','.join(parts)} {FIELD_OF_METRIC}=", ""

    def texts(self, batch: SeriesBatch, kind: ValueKind) -> Iterable[str]:
        """Give values as fields.

        Raises:
            FormatError: line protocol does not carry one.
        """
        if kind is ValueKind.INT:
            return [f"{value}i" for value in batch.values.tolist()]
        if kind is ValueKind.OBJECT:
            return map(_field_text, batch.values.tolist())
        if not np.isfinite(batch.values).all():
            raise FormatError("line protocol carries no NaN and no infinities; other formats do")
        return number_texts(batch, kind)

    def lines(self, before: str, after: str, times: Sequence[int], texts: Iterable[str]) -> str:
        """Give a line for each row."""
        pairs = zip(times, texts, strict=True)
        return "".join([f"{before}{text} {moment}\n" for moment, text in pairs])


def kind_of(batch: SeriesBatch) -> ValueKind:
    """Give the kind of the values of a batch."""
    return {"f": ValueKind.FLOAT, "i": ValueKind.INT}.get(batch.values.dtype.kind, ValueKind.OBJECT)


def number_texts(batch: SeriesBatch, kind: ValueKind) -> list[str]:
    """Give numbers as text that reads back the same."""
    values = batch.values.tolist()
    if kind is ValueKind.INT:
        return list(map(str, values))
    write: Callable[[float], str] = repr
    if np.isnan(batch.values).any():
        write = float_text  # tells one NaN from another
        # numpy gives Python floats with the bits they have.
    return [write(value) for value in cast("list[float]", values)]


def _escaped(special: re.Pattern[str], text: str) -> str:
    return special.sub(r"\\\1", text)


def _field_text(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{_escaped(_STRING_ESCAPED, value)}"'
    raise FormatError(
        f"line protocol carries numbers, booleans and text, not {repr(value)[:80]}; Parquet does"
    )
