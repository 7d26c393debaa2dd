"""Output: rows as a table, CSV or JSON, the same columns in each, streamed.

A format that is not asked for is `table` where stdout is a terminal, and `csv` elsewhere.
"""

from __future__ import annotations

import enum
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from json.encoder import encode_basestring
from typing import Final, TextIO, TypeAlias

from tsengine.cli.texts import json_text, printable

TABLE_ROWS_AHEAD: Final = 1_000
"""Rows that a table looks at for the width of its columns; later ones may stand out."""


class Format(enum.StrEnum):
    """What rows look like."""

    TABLE = "table"
    """Columns side by side, for people."""
    CSV = "csv"
    """UTF-8, a head with the names of the columns, lines that end in a line feed."""
    JSON = "json"
    """One array of objects, one object a line."""
    JSONL = "jsonl"
    """JSON lines: one object a line, and nothing around them."""


Cell: TypeAlias = "str | int | float | JsonCell | None"


class JsonCell:
    """A cell whose JSON is no text: a value of a series.

    Args:
        value: as Python has it.
        text: as CSV and tables have it; of a float its `repr`.
    """

    __slots__ = ("text", "value")

    def __init__(self, value: object, text: str) -> None:
        self.value = value
        self.text = text


Row: TypeAlias = "Sequence[Cell]"


def default_format(stream: TextIO) -> Format:
    """Give the format of output that goes there."""
    return Format.TABLE if stream.isatty() else Format.CSV


def write_rows(
    columns: Sequence[str],
    rows: Iterable[Row],
    form: Format | None = None,
    *,
    stream: TextIO | None = None,
) -> None:
    """Write rows to stdout, or another stream, as they come.

    Args:
        columns: names, distinct.
        rows: of a cell for each column.
        form: what they look like; None for what suits the stream.
        stream: where to; stdout where not given.

    Raises:
        BrokenPipeError: the reader has gone.
    """
    out = sys.stdout if stream is None else stream
    chosen = default_format(out) if form is None else form
    if chosen is Format.TABLE:
        _write_table(columns, rows, out)
    elif chosen is Format.CSV:
        _write_csv(columns, rows, out)
    else:
        _write_json(columns, rows, out, is_array=chosen is Format.JSON)
    out.flush()


def write_record(
    fields: Mapping[str, Cell],
    form: Format | None = None,
    *,
    shown: Mapping[str, str] | None = None,
) -> None:
    """Write one row to stdout: as a table a line for each column, its name before it.

    Args:
        fields: cells by name of their column.
        form: what they look like; None for what suits stdout.
        shown: what stands in a table in place of some of them, for people.

    Raises:
        BrokenPipeError: the reader has gone.
    """
    chosen = default_format(sys.stdout) if form is None else form
    if chosen is not Format.TABLE:
        write_rows(list(fields), [list(fields.values())], chosen)
        return
    width = max(map(len, fields))
    for name, cell in fields.items():
        text = "none" if cell is None else printable((shown or {}).get(name, _text(cell)))
        sys.stdout.write(f"{name:<{width}}  {text}".rstrip() + "\n")


def _text(cell: Cell) -> str:
    if type(cell) is JsonCell:
        return cell.text
    return "" if cell is None else str(cell)


def _csv(cell: Cell) -> str:
    """Give a field of CSV; by hand, since csv.writer leaves a lone carriage return unquoted."""
    text = _text(cell)
    if '"' in text or "," in text or "\n" in text or "\r" in text:  # a third of a regex's time
        return '"' + text.replace('"', '""') + '"'
    return text


def _json(cell: Cell) -> str:
    if type(cell) is str:
        return encode_basestring(cell)
    if type(cell) is not JsonCell:
        return json_text(cell)
    value = cell.value
    if type(value) is float and math.isfinite(value):
        return cell.text  # it is the same in JSON, and most cells are such
    return json_text(value)


def _write_csv(columns: Sequence[str], rows: Iterable[Row], out: TextIO) -> None:
    out.writelines(",".join(map(_csv, row)) + "\n" for row in chain([columns], rows))


def _write_json(
    columns: Sequence[str], rows: Iterable[Row], out: TextIO, *, is_array: bool
) -> None:
    keys = (encode_basestring(name).replace("%", "%%") for name in columns)
    line = "{" + ", ".join(f"{key}: %s" for key in keys) + "}"
    first, between, last = ("[\n", ",\n", "\n]\n") if is_array else ("", "\n", "\n")
    is_empty = True
    for row in rows:
        out.write((first if is_empty else between) + line % tuple(map(_json, row)))
        is_empty = False
    if not is_empty:
        out.write(last)
    elif is_array:
        out.write("[]\n")


def _write_table(columns: Sequence[str], rows: Iterable[Row], out: TextIO) -> None:
    source: Iterator[list[str]] = ([printable(_text(cell)) for cell in row] for row in rows)
    ahead = list(islice(source, TABLE_ROWS_AHEAD))
    widths = [max(map(len, column)) for column in zip(columns, *ahead, strict=True)]
    for row in chain([list(columns)], ahead, source):
        cells = (text.ljust(width) for text, width in zip(row, widths, strict=True))
        out.write("  ".join(cells).rstrip() + "\n")
