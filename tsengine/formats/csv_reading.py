"""CSV: RFC 4180, in UTF-8, with any separator of one character; by blocks through pyarrow.

Rows end with a line feed, after a carriage return or not. Quoted cells hold separators, quotes
twice, and line ends. Empty lines are left out.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from tsengine.errors import FormatError, InvalidDataError, TsEngineError
from tsengine.formats.arrow_columns import float64s, int64s, validity
from tsengine.formats.blocks import LINE_MAX, Block
from tsengine.formats.columns import LabelsMaker, series_column
from tsengine.formats.intake import Intake, Judged, grouped
from tsengine.formats.mapping import ColumnMapping
from tsengine.formats.rows import RowReader
from tsengine.formats.text_reading import TextReader
from tsengine.formats.times import ISO
from tsengine.formats.values import ValueForm
from tsengine.model import INT64_MAX, GroupedBatch, Int64Array, ValueKind

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLE_ROWS: Final = 100
"""Rows that are looked at to guess what columns are."""

_MISREAD: Final = (b"0x", b"0X", b"n(", b"N(")

_BOM: Final = b"\xef\xbb\xbf"
_FLOAT_EXACT: Final = 2.0**53


class Record(NamedTuple):
    """A row as it stands in a file.

    Attributes:
        line: number of its first line.
        data: its bytes, the line end included.
        reason: why it is none; empty for a row.
    """

    line: int
    data: bytes
    reason: str = ""


class CsvDialect(NamedTuple):
    """How cells stand in rows.

    Attributes:
        separator: one character of ASCII.
        columns: their names, in order.
        is_headed: whether the file says these names itself, so that a row of them is no row.
    """

    separator: str
    columns: Sequence[str]
    is_headed: bool = True


def records(block: Block, separator: str) -> Iterator[Record]:
    """Cut a block into rows; a quote that does not end spoils its own line alone.

    A line goes on in the next ones where it begins a cell by a quote and does not end it, and they
    make one row with it: a quote inside of a cell that begins with none is a character like others.
    """
    lines = block.data.splitlines(keepends=True) if b"\r" not in block.data else _lines(block.data)
    place = 0
    while place < len(lines):
        number = block.line + place
        data, taken = lines[place], 1
        if data.count(b'"') % 2 and not _is_row(data, separator):
            taken = _quoted_lines(lines, place)
            joined = b"".join(lines[place : place + taken])
            if not taken or not _is_row(joined, separator):
                yield Record(number, data, "a quote without its end")
                place += 1
                continue
            data = joined
        yield Record(number, data)
        place += taken


def _is_row(data: bytes, separator: str) -> bool:
    """Whether bytes are one row, as far as quotes tell; it may have a wrong number of cells."""
    text = data.decode(errors="replace")  # what is no UTF-8 is told by who reads the cells
    try:
        return (
            len(list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)))
            < 2
        )
    except csv.Error:
        return False


def _lines(data: bytes) -> list[bytes]:
    """Cut at line feeds alone, which `splitlines` does not."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _quoted_lines(lines: Sequence[bytes], first: int) -> int:
    """Count the lines of a row whose first line leaves a quote open; 0 where none closes it."""
    size = len(lines[first])
    for place in range(first + 1, len(lines)):
        size += len(lines[place])
        if size > LINE_MAX:
            break
        if lines[place].count(b'"') % 2:
            return place - first + 1
    return 0


def cells_of(data: bytes, separator: str) -> list[str]:
    """Give the cells of a row; none for an empty line.

    Raises:
        InvalidDataError: it is not one row of CSV.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidDataError(f"not UTF-8 at byte {error.start}") from None
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except csv.Error as error:
        raise InvalidDataError(f"no row of CSV: {error}") from None
    if len(rows) > 1:
        raise InvalidDataError("a quote inside of a cell that does not begin with one")
    return rows[0] if rows else []


def head_of(block: Block, separator: str, columns: Sequence[str] | None) -> tuple[list[str], Block]:
    """Give the names of columns, and the block without them.

    Args:
        block: the first of a file.
        separator: between cells.
        columns: the names, where the file does not say them.

    Raises:
        FormatError: there is no row of names.
    """
    if block.data.startswith(_BOM):
        block = Block(block.data[len(_BOM) :], block.line)
    if columns is not None:
        return list(columns), block
    for record in records(block, separator):
        try:
            names = [] if record.reason else cells_of(record.data, separator)
        except InvalidDataError as error:
            raise FormatError(f"line {record.line}, the names of columns: {error}") from None
        if record.reason:
            raise FormatError(f"line {record.line}, the names of columns: {record.reason}")
        if names:
            data = record.data
            end = block.data.index(data) + len(data)
            line = block.line + block.data.count(b"\n", 0, end)
            return names, Block(block.data[end:], line)
    raise FormatError("an empty file: not even a row with the names of columns")


def sample_of(block: Block, dialect: CsvDialect) -> list[Mapping[str, str]]:
    """Give the first rows, those that are whole and not the head once more."""
    rows: list[Mapping[str, str]] = []
    small = Block(block.data[: 1 << 18], block.line)
    for record in islice(records(small, dialect.separator), SAMPLE_ROWS):
        try:
            cells = [] if record.reason else cells_of(record.data, dialect.separator)
        except InvalidDataError:
            continue
        is_head = dialect.is_headed and cells == dialect.columns
        if len(cells) == len(dialect.columns) and not is_head:
            rows.append(dict(zip(dialect.columns, cells, strict=True)))
    return rows


def cut_rows(data: bytes) -> int:
    """Give where the last whole row of a block ends: at a line end outside of quotes."""
    last = data.rfind(b"\n") + 1
    if b'"' not in data:
        return last
    return _row_end(np.frombuffer(data, np.uint8), 0, from_end=True)


def _row_end(array: npt.NDArray[np.uint8], least: int, *, from_end: bool = False) -> int:
    """Find a line end before which quotes are even; 0 where there is none."""
    ends = np.flatnonzero(array == ord("\n"))
    quotes = np.flatnonzero(array == ord('"'))
    outside = ends[(np.searchsorted(quotes, ends) & 1) == 0] + 1
    if not len(outside):
        return 0
    if from_end:
        return int(outside[-1])
    place = int(np.searchsorted(outside, least))
    return int(outside[min(place, len(outside) - 1)])


class CsvReader(TextReader):
    """Reads CSV.

    Args:
        intake: judges the points.
        mapping: what each column is.
        dialect: how cells stand in rows.
    """

    def __init__(self, intake: Intake, mapping: ColumnMapping, dialect: CsvDialect) -> None:
        super().__init__(intake)
        self._mapping = mapping
        self._dialect = dialect
        self._rows = RowReader(mapping, intake)
        self._maker = LabelsMaker(list(mapping.labels.values()), mapping.constants)
        self._columns = _Columns(mapping, dialect, intake.integers)

    def split(self, block: Block) -> list[Block]:
        """Cut a block in two between rows."""
        if b'"' not in block.data:
            return block.halves()
        end = _row_end(np.frombuffer(block.data, np.uint8), len(block.data) // 2)
        if end in (0, len(block.data)):
            return [block]
        line = block.line + block.data.count(b"\n", 0, end)
        return [Block(block.data[:end], block.line), Block(block.data[end:], line)]

    def slow(self, block: Block, *, is_last: bool) -> tuple[list[Judged], int]:
        """Read row by row, as `TextReader` says."""
        del is_last  # blocks end with whole rows
        points: list[Judged] = []
        columns = self._dialect.columns
        for record in records(block, self._dialect.separator):
            reason = record.reason
            if not reason:
                try:
                    cells = cells_of(record.data, self._dialect.separator)
                    if not cells:
                        continue
                    if len(cells) != len(columns):
                        reason = f"{len(cells)} cells, where {len(columns)} columns are"
                    elif self._dialect.is_headed and cells == columns:
                        reason = "the names of the columns once more"
                    else:
                        points += self._rows.points(dict(zip(columns, cells, strict=True)))
                        continue
                except InvalidDataError as error:
                    reason = str(error)
            self.intake.rejects.add(record.line, reason, record.data)
        return points, 0

    def fast(self, block: Block) -> list[GroupedBatch] | None:
        """Read all at once, as `TextReader` says."""
        table = self._columns.read(block.data)
        if table is None:
            return None
        try:
            batches = self._batches(table)
        except TsEngineError:
            return None
        if batches is None or not self.intake.admits(batches):
            return None
        return batches

    def _batches(self, table: pa.Table) -> list[GroupedBatch] | None:
        """Give the points of columns; None where a cell needs a look.

        Raises:
            InvalidDataError: labels do.
        """
        mapping = self._mapping
        moments = self._columns.times(table.column(mapping.time).chunk(0))
        if moments is None:
            return None
        series = series_column(
            len(moments), [table.column(column).chunk(0) for column in mapping.labels]
        )
        batches: list[GroupedBatch] = []
        filled: npt.NDArray[np.bool_] | None = np.zeros(len(moments), bool)
        for value in mapping.values:
            column = table.column(value.column).chunk(0)
            values = self._columns.values(column, value.form)
            if values is None:
                return None
            if not len(values):
                continue
            ranks, names = self._maker.series(value.metric, series)
            if len(values) == len(moments):
                filled = None
                batches.append(grouped(ranks, names, moments, values))
            else:
                valid = validity(column)
                if filled is not None:
                    filled |= valid
                batches.append(grouped(ranks[valid], names, moments[valid], values))
        return batches if filled is None or filled.all() else None


class _Columns:
    """Reads blocks into columns by pyarrow, such that they are what the rows are one by one."""

    def __init__(self, mapping: ColumnMapping, dialect: CsvDialect, integers: ValueKind) -> None:
        import pyarrow as pa  # an optional package, imported when used
        from pyarrow import csv as arrow_csv

        self._mapping = mapping
        self._dialect = dialect
        self._ints = integers is ValueKind.INT
        self._is_zoned = mapping.time_form.zone in (None, "UTC")
        types: dict[str, pa.DataType] = {
            column: pa.dictionary(pa.int32(), pa.string()) for column in mapping.labels
        }
        zone = None if mapping.time_form.zone else "UTC"
        types[mapping.time] = (
            pa.timestamp("ns", zone) if mapping.time_form.form == ISO else pa.int64()
        )
        for value in mapping.values:
            types[value.column] = (
                pa.int64()
                if self._is_int(value.form)
                else pa.string()
                if value.form in (ValueForm.TEXT, ValueForm.JSON)
                else pa.float64()
            )
        self._convert = arrow_csv.ConvertOptions(
            column_types=types,
            include_columns=list(types),
            null_values=[""],
            strings_can_be_null=False,
        )
        # Every value of such a column is null or a string of its own: neither is text to look at.
        self._read = arrow_csv.read_csv
        self._read_options = arrow_csv.ReadOptions
        self._parse_options = arrow_csv.ParseOptions
        self._invalid: type[Exception] = pa.ArrowInvalid
        self._reader: Callable[[bytes], object] = pa.BufferReader

    def _is_int(self, form: ValueForm) -> bool:
        return form is ValueForm.INT or (form is ValueForm.AUTO and self._ints)

    def read(self, data: bytes) -> pa.Table | None:
        """Give the columns; None where some row needs a look."""
        mapping = self._mapping
        if "%" in mapping.time_form.form or not self._is_zoned or data.startswith(_BOM):
            return None
        # What pyarrow would take that is no number here: hexadecimal, NaN with a payload (which
        # it drops), and -0 as an integer.
        if any(mark[-1:] in data and mark in data for mark in _MISREAD):  # one byte: quick
            return None
        if self._ints and b"-0" in data:
            return None
        if b"\r" in data and data.count(b"\r") != data.count(b"\r\n"):
            return None
        is_quoted = b'"' in data
        if is_quoted and not _quotes_are_regular(data, self._dialect.separator):
            return None
        try:
            table = self._read(
                self._reader(data),
                read_options=self._read_options(
                    use_threads=False,
                    column_names=list(self._dialect.columns),
                    block_size=max(len(data), 1 << 10) + 1,
                ),
                parse_options=self._parse_options(
                    delimiter=self._dialect.separator,
                    quote_char='"' if is_quoted else False,
                    newlines_in_values=is_quoted,
                ),
                convert_options=self._convert,
            )
        except self._invalid:
            return None
        if not table.num_rows or table.column(0).num_chunks != 1:
            return None
        return table

    def times(self, column: pa.Array) -> Int64Array | None:
        """Give the times as int64[n] nanoseconds; None where one needs a look."""
        if column.null_count:
            return None
        moments = int64s(column)
        unit = self._mapping.time_form.unit
        if unit is None or unit == 1:
            return moments
        most = INT64_MAX // unit
        if len(moments) and (moments.max() > most or moments.min() < -most):
            return None
        return moments * unit

    def values(self, column: pa.Array, form: ValueForm) -> npt.NDArray[np.generic] | None:
        """Give the values that are there; None where one needs a look."""
        if form in (ValueForm.TEXT, ValueForm.JSON):
            import pyarrow.compute as pc

            # Objects are made one by one in any case. An empty text may be a value.
            is_empty = form is ValueForm.JSON and not pc.any(pc.not_equal(column, "")).as_py()
            return np.empty(0) if is_empty else None
        column = column.drop_null()
        if self._is_int(form):
            return int64s(column)
        values = float64s(column)
        if (np.abs(values) >= _FLOAT_EXACT).any():
            return None  # an integer that may lose precision, or infinity written in digits
        return values


def _quotes_are_regular(data: bytes, separator: str) -> bool:
    """Whether each quote begins or ends a cell, or stands beside another one inside."""
    array = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(array == ord('"'))
    if len(quotes) % 2:
        return False
    opening, closing = quotes[0::2], quotes[1::2]
    before = array[np.maximum(opening - 1, 0)]
    after = array[np.minimum(closing + 1, len(array) - 1)]
    borders = (ord(separator), ord("\n"), ord('"'))
    begins = np.isin(before, borders) | (opening == 0)
    ends = np.isin(after, (*borders, ord("\r"))) | (closing == len(array) - 1)
    return bool(begins.all() and ends.all())
