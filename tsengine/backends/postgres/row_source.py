"""Rows: what a caller of `bulk_upsert` gives, taken in batches of columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, Protocol, TypeAlias, cast, runtime_checkable

from tsengine.errors import (
    BatchShapeError,
    DataRefusedError,
    MissingDependencyError,
    UnknownOptionError,
)

Row: TypeAlias = Mapping[str, object] | Sequence[object]


@runtime_checkable
class ArrowStream(Protocol):
    """What gives Arrow data: a table, a record batch, a reader, a data frame."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Export it, as Arrow's C stream interface says."""


_ARROW_ROWS_MAX: Final = 50_000
"""Rows of a slice of Arrow that are Python values at the same time."""


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Rows as columns.

    Attributes:
        start: position of the first one among all that the caller gave.
        columns: [n] each.
    """

    start: int
    columns: tuple[Sequence[object], ...]

    def __len__(self) -> int:
        return len(self.columns[0])

    def cut(self, size: int) -> tuple[RowBatch, RowBatch]:
        """Give the first rows, so many, and the rest."""
        return (
            RowBatch(self.start, tuple(column[:size] for column in self.columns)),
            RowBatch(self.start + size, tuple(column[size:] for column in self.columns)),
        )


class RowSource:
    """Takes rows from the caller, no more of them than are asked for.

    Args:
        rows: mappings from name to value, or sequences of values, or Arrow data.
        columns: names; None takes those of the first mapping, or of the Arrow schema.

    Attributes:
        columns: names in order; empty where there are no rows to tell them.
        is_arrow: whether the rows are Arrow's, where JSON comes as text.

    Raises:
        BatchShapeError: the columns cannot be told.
        MissingDependencyError: the rows are Arrow data and pyarrow is missing.
    """

    def __init__(self, rows: Iterable[Row] | ArrowStream, columns: Sequence[str] | None) -> None:
        if columns is not None and not columns:
            raise BatchShapeError("columns is empty")
        self._left: RowBatch | None = None
        self._taken = 0
        self.is_arrow = isinstance(rows, ArrowStream)
        if isinstance(columns, str):
            raise UnknownOptionError(f"columns={columns!r} is one name; give a list of names")
        self.columns: tuple[str, ...] = tuple(columns or ())
        if self.is_arrow:
            self._batches: Iterator[RowBatch] = self._of_arrow(cast("ArrowStream", rows))
            return
        self._rows: Iterator[Row] = iter(cast("Iterable[Row]", rows))
        if columns is None:
            first = next(self._rows, None)
            if first is None:
                return
            if not isinstance(first, Mapping):
                raise BatchShapeError("rows that are no mappings need columns=, their names")
            self.columns = tuple(first)
            if not first:
                raise BatchShapeError("the first row has no columns")
            self._rows = itertools.chain([first], self._rows)
        names = self.columns
        self._pick: Callable[[Any], Sequence[object]] = (
            itemgetter(*names) if len(names) > 1 else lambda row: (row[names[0]],)
        )

    def take(self, most: int) -> RowBatch | None:
        """Take the next rows, at most so many; None where there are no more.

        Raises:
            BatchShapeError: a row has other columns; `indices` counts all rows.
        """
        if self._left is None:
            self._left = next(self._batches, None) if self.is_arrow else self._next(most)
        batch, self._left = self._left, None
        if batch is not None and len(batch) > most:
            batch, self._left = batch.cut(most)
        return batch

    def put_back(self, batch: RowBatch) -> None:
        """Take the rows back that followed those of the last batch, to be taken again."""
        after = self._left
        if after is not None:
            joined = zip(batch.columns, after.columns, strict=True)
            batch = RowBatch(batch.start, tuple([*ours, *theirs] for ours, theirs in joined))
        self._left = batch

    # Inside.

    def _next(self, most: int) -> RowBatch | None:
        rows: list[Any] = list(itertools.islice(self._rows, most))
        if not rows:
            return None
        start = self._taken
        self._taken += len(rows)
        width = len(self.columns)
        if isinstance(rows[0], Mapping):
            try:
                tuples = list(map(self._pick, rows))
            except (KeyError, TypeError, IndexError):
                raise self._misfit(rows, start) from None
        else:
            tuples = rows
        if {*map(len, rows)} != {width} or not {str, bytes}.isdisjoint(map(type, rows)):
            raise self._misfit(rows, start)
        return RowBatch(start, tuple(zip(*tuples, strict=True)))

    def _misfit(self, rows: Sequence[Row], start: int) -> BatchShapeError:
        """Say which row is not as the columns are."""
        wanted = set(self.columns)
        for number, row in enumerate(rows, start):
            if isinstance(row, Mapping):
                odd = sorted(map(repr, wanted.symmetric_difference(row)))
                if odd:
                    what = "has no" if odd[0] in map(repr, wanted) else "has an unexpected"
                    return BatchShapeError(f"row {number} {what} column {odd[0]}", indices=[number])
            elif isinstance(row, (str, bytes)) or not isinstance(row, Sequence):
                return BatchShapeError(
                    f"row {number} is a {type(row).__name__}, no mapping and no sequence",
                    indices=[number],
                )
            elif len(row) != len(self.columns):
                return BatchShapeError(
                    f"row {number} has {len(row)} values for {len(self.columns)} columns",
                    indices=[number],
                )
        return BatchShapeError(f"the rows from {start} on are partly mappings, partly not")

    def _of_arrow(self, stream: ArrowStream) -> Iterator[RowBatch]:
        try:
            import pyarrow as pa
        except ImportError as error:
            raise MissingDependencyError(
                "rows of Arrow need pyarrow: pip install 'tsengine[arrow]'"
            ) from error
        reader = pa.RecordBatchReader.from_stream(stream)
        names = reader.schema.names
        self.columns = self.columns or tuple(names)
        missing = [name for name in self.columns if names.count(name) != 1]
        if missing:
            raise BatchShapeError(
                f"the Arrow data has column {missing[0]!r} {names.count(missing[0])} times"
            )
        return self._slices(reader)

    def _slices(self, reader: Iterable[Any]) -> Iterator[RowBatch]:
        start = 0
        for batch in reader:
            for at in range(0, batch.num_rows, _ARROW_ROWS_MAX):
                part = batch.slice(at, _ARROW_ROWS_MAX)
                columns = tuple(_values(part.column(name), name) for name in self.columns)
                yield RowBatch(start, columns)
                start += part.num_rows


def _values(column: Any, name: str) -> Sequence[object]:
    """Give the values of an Arrow array as Python's, times to the microsecond."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        try:
            column = column.cast(pa.timestamp("us", kind.tz))
        except pa.ArrowInvalid as error:
            raise DataRefusedError(
                f"column {name!r} has nanoseconds, and PostgreSQL keeps microseconds: {error}"
            ) from None
    values: Sequence[object] = column.to_pylist()
    return values
