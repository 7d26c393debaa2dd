"""Exporting: rows of a store into a file, streamed from one snapshot, sorted by series and time."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol, TypeAlias

from tsengine.engine import Engine
from tsengine.errors import CancelledError, FormatError
from tsengine.formats.files import (
    STANDARD,
    check_separator,
    compression_of,
    format_of,
    separator_of,
)
from tsengine.formats.output_files import written
from tsengine.formats.parquet_writing import ParquetWriter
from tsengine.formats.text_writing import CsvWriter, JsonWriter, LineWriter, kind_of
from tsengine.model import METRIC_NAME, GroupedBatch, Labels, SeriesBatch, TimestampLike, ValueKind
from tsengine.selectors import SelectorLike

_TOLD_AFTER: Final = 1 << 16
"""Points between two calls of `progress`."""

OnExportProgress: TypeAlias = Callable[[int], object]


class Writer(Protocol):
    """What writes a format."""

    def begin(self) -> None:
        """Write what comes before all rows."""

    def write(self, batch: SeriesBatch) -> None:
        """Write the rows of a series."""

    def end(self) -> None:
        """Write what comes after all rows."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export did.

    Attributes:
        points: rows written.
        series: series that had rows.
    """

    points: int
    series: int


def export(
    engine: Engine,
    path: str,
    selector: SelectorLike = None,
    start: TimestampLike | None = None,
    end: TimestampLike | None = None,
    *,
    file_format: str | None = None,
    separator: str | None = None,
    progress: OnExportProgress | None = None,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> ExportReport:
    """Write rows of a store to a file, in memory that does not grow with them.

    `Import` reads back the same rows, bit for bit. Series without rows are left out. The file is
    there when it is whole; before, and after an error, what was there stays.

    Args:
        engine: a store, open.
        path: of the file, or `-` for standard output.
        selector: which series.
        start: the first timestamp.
        end: one past the last timestamp.
        file_format: `csv`, `jsonl`, `parquet` or `line`; None for what the name says.
        separator: between cells of CSV; None for a comma, or a tab in files called `.tsv`.
        progress: is called now and then with the number of rows written.
        is_cancelled: is asked as often, and stops the export.

    Raises:
        FormatError: the name does not tell the format; a value or label is such as the format
            does not carry; or a series came meanwhile that has labels or values of another kind.
        FileAccessError: the file cannot be written.
        UnknownOptionError: the separator is none.
        InvalidQueryError: a bad selector or range.
        SnapshotExpiredError: it took longer than the backend keeps the snapshot.
        CancelledError: `is_cancelled` said so.
    """
    form = format_of(path, file_format)
    check_separator(separator)
    if form == "parquet" and path != STANDARD and compression_of(path):
        raise FormatError(f"{path}: Parquet is compressed by itself; leave the ending out")
    points, series = 0, 0
    last: Labels | None = None
    told = 0
    with written(path) as stream:
        writer = _writer(stream, form, engine, selector, separator or separator_of(path))
        writer.begin()
        with closing(_batches(engine, selector, start, end)) as batches:
            for batch in batches:
                writer.write(batch)
                points += len(batch)
                series += batch.labels is not last
                last = batch.labels
                if points - told >= _TOLD_AFTER:
                    told = points
                    if is_cancelled():
                        raise CancelledError(f"the export was cancelled after {points} points")
                    if progress is not None:
                        progress(points)
        writer.end()
    if progress is not None:
        progress(points)
    return ExportReport(points, series)


def _writer(
    stream: BinaryIO, form: str, engine: Engine, selector: SelectorLike, separator: str
) -> Writer:
    if form == "jsonl":
        return JsonWriter(stream)
    if form == "line":
        return LineWriter(stream)
    names: set[str] = set()
    kinds: set[ValueKind] = set()
    for labels in engine.series(selector):
        names.update(labels)
        kind = engine.series_kind(labels)
        if kind is not None:
            kinds.add(kind)
    ordered = [METRIC_NAME, *sorted(names - {METRIC_NAME})]
    present = sorted(kinds) or [ValueKind.FLOAT]
    writer: Writer = (
        ParquetWriter(stream, ordered, present)
        if form == "parquet"
        else CsvWriter(stream, ordered, present, separator)
    )
    return _Checked(writer, frozenset(ordered), frozenset(present))


class _Checked:
    """Refuses what came after the columns were decided on."""

    def __init__(self, writer: Writer, names: frozenset[str], kinds: frozenset[ValueKind]) -> None:
        self._writer = writer
        self._names = names
        self._kinds = kinds
        self._last: Labels | None = None
        self.begin, self.end = writer.begin, writer.end

    def write(self, batch: SeriesBatch) -> None:
        if batch.labels is not self._last:
            self._last = batch.labels
            if not self._names.issuperset(batch.labels) or kind_of(batch) not in self._kinds:
                raise FormatError(
                    f"{batch.labels} came while the export began, and there is no column for it; "
                    "export again"
                )
        self._writer.write(batch)


def _batches(
    engine: Engine,
    selector: SelectorLike,
    start: TimestampLike | None,
    end: TimestampLike | None,
) -> Generator[SeriesBatch, None, None]:
    for batch in engine.scan_groups(selector, start, end):
        if isinstance(batch, GroupedBatch):
            yield from batch.groups()
        else:
            yield batch
