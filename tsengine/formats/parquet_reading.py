"""Parquet: batches of rows, their columns as they are; row by row where some need a look.

Types say what values are: floating point opens float series, integers int series, booleans, text,
binary, lists and structs object series. The column `value_object` of binary is MessagePack, as
`export` writes it. Null is nothing: no label, no value.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, Final, cast

import numpy as np
import numpy.typing as npt

from tsengine.errors import CorruptionError, FormatError, InvalidDataError
from tsengine.formats.arrow_columns import float64s, int64s, validity
from tsengine.formats.columns import LabelsMaker, series_column
from tsengine.formats.files import InputFile
from tsengine.formats.intake import Given, Intake, Judged, batches_of, grouped
from tsengine.formats.mapping import (
    TIME_COLUMN_TYPED,
    Choices,
    ColumnMapping,
    ValueColumn,
    resolve,
)
from tsengine.formats.times import TimeForm, guess_form, read_number
from tsengine.formats.values import ValueForm
from tsengine.model import INT64_MAX, GroupedBatch, Int64Array, ValueKind, unpack_object

if TYPE_CHECKING:
    import pyarrow as pa

ROWS: Final = 1 << 17
"""Rows of a batch: 131,072, some megabytes of columns."""

_ROWS_SLOW: Final = 1 << 13
"""How many are read one by one at once where a batch has something that needs it."""

_OBJECT_COLUMN: Final = "value_object"
_COPY_BYTES: Final = 1 << 20
_FLOAT_EXACT: Final = 2**53


class ParquetReader:
    """Reads Parquet.

    Args:
        file: what is read; standard input is first written to a temporary file, since the
            format begins at its end.
        choices: what the caller says of the columns.
        path: of the file; None for standard input.

    Attributes:
        mapping: what each column is.
        rows: how many there are.
        rows_read: how many were read.

    Raises:
        FormatError: it is no Parquet, or columns are missing or of types without a meaning.
    """

    def __init__(self, file: InputFile, choices: Choices, *, path: str | None) -> None:
        import pyarrow as pa  # an optional package, imported when used
        from pyarrow import parquet

        self._failures: tuple[type[Exception], ...] = (pa.ArrowException, OSError, ValueError)
        self._name = file.name
        source: str | BinaryIO = path if path is not None else _spooled(file)
        try:
            self._file = parquet.ParquetFile(source, buffer_size=_COPY_BYTES, pre_buffer=False)
            texts = [field.name for field in self._file.schema_arrow if _is_text(field.type)]
            self._file.close()
            self._file = parquet.ParquetFile(
                source, buffer_size=_COPY_BYTES, pre_buffer=False, read_dictionary=texts
            )
        except self._failures as error:
            raise FormatError(f"{self._name} is no Parquet, or damaged: {error}") from error
        self.rows: int = self._file.metadata.num_rows
        self.rows_read = 0
        self._choices = choices
        self._schema: pa.Schema = self._file.schema_arrow
        try:
            self.mapping = self._resolve()
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def read(self, intake: Intake) -> Iterator[GroupedBatch]:
        """Give the points of all rows, in their order; rejects what is bad.

        Raises:
            FormatError: the file is damaged.
        """
        columns = _Columns(self.mapping, self._schema, self._choices, intake)
        wanted = [
            self.mapping.time,
            *self.mapping.labels,
            *(value.column for value in self.mapping.values),
        ]
        records = self._file.iter_batches(batch_size=ROWS, columns=wanted, use_threads=False)
        row = 1
        while (record := self._next(records)) is not None:
            yield from columns.batches(record, row)
            row += record.num_rows
            self.rows_read += record.num_rows

    def _next(self, records: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
        try:
            return next(records, None)
        except self._failures as error:
            raise FormatError(f"{self._name} is damaged: {error}") from error

    def _resolve(self) -> ColumnMapping:
        import pyarrow as pa

        types = pa.types
        names: list[str] = self._schema.names
        kinds = {field.name: field.type for field in self._schema}
        numeric = frozenset(
            name
            for name, kind in kinds.items()
            if types.is_floating(kind) or types.is_integer(kind)
        )
        typed = [name for name, kind in kinds.items() if types.is_timestamp(kind)]
        choices = self._choices
        if choices.time is None and len(typed) == 1 and TIME_COLUMN_TYPED not in names:
            choices = replace(choices, time=typed[0])
        mapping = resolve(names, [], choices, typed_time=True, numeric=numeric)
        for column in mapping.labels:
            if not _is_text(kinds[column]):
                raise FormatError(
                    f"column {column!r} of type {kinds[column]} is no label, which is text; say "
                    "which columns are labels"
                )
        for value in mapping.values:
            if types.is_null(kinds[value.column]) or not _has_meaning(kinds[value.column]):
                raise FormatError(
                    f"column {value.column!r} of type {kinds[value.column]} holds no values"
                )
        return self._timed(mapping, kinds[mapping.time])

    def _timed(self, mapping: ColumnMapping, kind: pa.DataType) -> ColumnMapping:
        """Find out how times are written."""
        import pyarrow as pa

        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return mapping
        if not (pa.types.is_integer(kind) or _is_text(kind) or pa.types.is_floating(kind)):
            raise FormatError(f"column {mapping.time!r} of type {kind} holds no times")
        form = self._choices.time_form
        if form is None:
            few = self._next(self._file.iter_batches(batch_size=100, columns=[mapping.time]))
            texts = [] if few is None else few.column(0).drop_null().to_pylist()
            form = guess_form(mapping.time, [str(text) for text in texts])
        return replace(mapping, time_form=TimeForm(form, self._choices.zone))


class _Columns:
    """Makes batches of record batches."""

    def __init__(
        self, mapping: ColumnMapping, schema: pa.Schema, choices: Choices, intake: Intake
    ) -> None:
        self._mapping = mapping
        self._schema = schema
        self._intake = intake
        self._choices = choices
        self._maker = LabelsMaker(list(mapping.labels.values()), mapping.constants)

    def batches(self, record: pa.RecordBatch, row: int) -> Iterator[GroupedBatch]:
        """Give the points of rows, the first of which has this number in the file."""
        todo = [(record, row)]
        while todo:
            part, first = todo.pop()
            try:
                found = self._fast(part)
            except InvalidDataError:
                found = None
            if found is not None and self._intake.admits(found):
                yield from found
            elif part.num_rows > _ROWS_SLOW:
                half = part.num_rows // 2
                todo += [(part.slice(half), first + half), (part.slice(0, half), first)]
            else:
                yield from batches_of(self._slow(part, first))

    def _fast(self, part: pa.RecordBatch) -> list[GroupedBatch] | None:
        moments = self._times(part.column(self._mapping.time))
        if moments is None:
            return None
        series = series_column(
            part.num_rows, [part.column(column) for column in self._mapping.labels]
        )
        filled = np.zeros(part.num_rows, bool)
        batches: list[GroupedBatch] = []
        for value in self._mapping.values:
            column = part.column(value.column)
            if column.null_count == part.num_rows:
                continue
            values = self._numbers(column, value.form)
            if values is None:
                return None
            ranks, names = self._maker.series(value.metric, series)
            if not column.null_count:
                filled[:] = True
                batches.append(grouped(ranks, names, moments, values))
                continue
            valid = validity(column)
            filled |= valid
            batches.append(grouped(ranks[valid], names, moments[valid], values))
        return batches if filled.all() else None

    def _times(self, column: pa.Array) -> Int64Array | None:
        """Give times as int64[n] nanoseconds; None where one needs a look."""
        import pyarrow as pa
        import pyarrow.compute as pc

        form = self._mapping.time_form
        if column.null_count:
            return None
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("ms"))
        if pa.types.is_timestamp(column.type):
            try:
                if column.type.tz is None and form.zone not in (None, "UTC"):
                    column = pc.assume_timezone(column, form.zone)
                column = column.cast(pa.timestamp("ns", column.type.tz))
            except pa.ArrowInvalid:
                return None
            return int64s(column)
        if form.unit is None or not pa.types.is_integer(column.type):
            return None
        try:
            moments = int64s(column.cast(pa.int64()))
        except pa.ArrowInvalid:
            return None
        most = INT64_MAX // form.unit
        if len(moments) and (moments.max() > most or moments.min() < -most):
            return None
        return moments * form.unit

    def _opens_int(self, form: ValueForm) -> bool:
        """Whether integers open int series: their type says so, unless the caller does not."""
        said = self._choices.value_form
        return said in (None, ValueForm.INT) or form is ValueForm.INT

    def _numbers(self, column: pa.Array, form: ValueForm) -> npt.NDArray[np.generic] | None:
        """Give the numbers that are no null; None where one needs a look."""
        import pyarrow as pa

        kind = column.type
        column = column.drop_null()
        if pa.types.is_floating(kind):
            if self._choices.value_form is ValueForm.INT:
                return None
            return float64s(column.cast(pa.float64()))
        if not pa.types.is_integer(kind):
            return None
        try:
            whole = int64s(column.cast(pa.int64()))
        except pa.ArrowInvalid:
            return None
        if self._opens_int(form) or self._intake.integers is ValueKind.INT:
            return whole
        return whole.astype(np.float64) if (np.abs(whole) <= _FLOAT_EXACT).all() else None

    def _slow(self, part: pa.RecordBatch, first: int) -> list[Judged]:
        mapping = self._mapping
        cells = {name: self._listed(part.column(name), name) for name in part.schema.names}
        points: list[Judged] = []
        for place in range(part.num_rows):
            row = {name: column[place] for name, column in cells.items()}
            try:
                texts = tuple(cast("str | None", row[column]) for column in mapping.labels)
                moment = self._moment(row[mapping.time])
                given = [
                    self._given(value, texts, moment, row[value.column])
                    for value in mapping.values
                    if row[value.column] is not None
                ]
                if not given:
                    raise InvalidDataError("no value: all are null")
                points += self._intake.judge(given)
            except InvalidDataError as error:
                self._intake.rejects.add(first + place, str(error), repr(row))
        return points

    def _given(
        self, column: ValueColumn, texts: Sequence[str | None], moment: int, cell: object
    ) -> Given:
        labels = self._maker.labels(column.metric, tuple(texts))
        if column.column == _OBJECT_COLUMN and isinstance(cell, bytes):
            try:
                cell = unpack_object(cell)
            except CorruptionError as error:
                raise InvalidDataError(f"column {column.column}: {error}") from None
        return Given(labels, moment, cell, opens_int=self._opens_int(column.form))

    def _moment(self, cell: object) -> int:
        form = self._mapping.time_form
        if cell is None:
            raise InvalidDataError(f"no time: null in column {self._mapping.time}")
        if isinstance(cell, int) and form.unit is not None:
            return read_number(str(cell), form.unit)
        return form.read(str(cell))

    def _listed(self, column: pa.Array, name: str) -> list[object]:
        """Give cells as Python has them, times of a type as nanoseconds."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if name != self._mapping.time or not (
            pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)
        ):
            return list(column.to_pylist())
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("ms"))
        zone = self._mapping.time_form.zone
        if column.type.tz is None and zone not in (None, "UTC"):
            column = pc.assume_timezone(column, zone)
        factor = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[column.type.unit]
        return [
            None if moment is None else moment * factor
            for moment in column.view(pa.int64()).to_pylist()
        ]


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_null(kind)
    )


def _has_meaning(kind: pa.DataType) -> bool:
    """Whether values of a type are of some kind."""
    import pyarrow as pa

    types = pa.types
    return not (types.is_temporal(kind) or types.is_decimal(kind) or types.is_union(kind))


def _spooled(file: InputFile) -> BinaryIO:
    """Write what comes from standard input to a temporary file, which nobody else sees."""
    spool = tempfile.TemporaryFile()  # noqa: SIM115  # the reader closes it
    while piece := file.read(_COPY_BYTES):
        spool.write(piece)
    if file.failure is not None:
        spool.close()
        raise file.failure
    spool.seek(0)
    return cast("BinaryIO", spool)
