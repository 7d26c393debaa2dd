"""Importing: a file into a store, by the copy that all sources take."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from tsengine.engine import Engine
from tsengine.errors import FormatError, UnknownOptionError
from tsengine.formats.arrow_columns import require_pyarrow
from tsengine.formats.blocks import Block, blocks
from tsengine.formats.csv_reading import CsvDialect, CsvReader, cut_rows, head_of
from tsengine.formats.csv_reading import sample_of as sample_of_csv
from tsengine.formats.files import (
    STANDARD,
    InputFile,
    check_separator,
    compression_of,
    format_of,
    separator_of,
)
from tsengine.formats.intake import Intake
from tsengine.formats.json_reading import JsonReader
from tsengine.formats.json_reading import sample_of as sample_of_json
from tsengine.formats.line_protocol import LineRules
from tsengine.formats.line_reading import LineReader
from tsengine.formats.mapping import Choices, resolve
from tsengine.formats.parquet_reading import ParquetReader
from tsengine.formats.rejects import Reject, Rejects
from tsengine.formats.times import UNITS
from tsengine.model import DataPoint, GroupedBatch
from tsengine.pipeline import CopyReport, Progress, copy
from tsengine.pipeline.reading import Stoppable

_BINARY: Final = frozenset({"parquet"})
_THROUGH_ARROW: Final = {"csv": "CSV", "line": "line protocol", "parquet": "Parquet"}
"""Formats of which blocks become columns by pyarrow, with their names for people."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How a file is read.

    Attributes:
        file_format: `csv`, `jsonl`, `parquet` or `line`; None for what its name says.
        choices: what the caller says of the columns.
        separator: between cells of CSV; None for a comma, or a tab in files called `.tsv`.
        columns: names of the columns of CSV that does not say them itself.
        precision: unit of timestamps of the line protocol: `ns`, `us`, `ms` or `s`.
        missing_time: nanoseconds of lines without a timestamp; None where they are rejected.
    """

    file_format: str | None = None
    choices: Choices = field(default_factory=Choices)
    separator: str | None = None
    columns: Sequence[str] | None = None
    precision: str = "ns"
    missing_time: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in UNITS:
            raise UnknownOptionError(f"precision {self.precision!r} is none of {', '.join(UNITS)}")
        check_separator(self.separator)


@dataclass(frozen=True, slots=True)
class ImportProgress:
    """How far an import is.

    Attributes:
        points: points settled, those of runs that this one resumes among them.
        rate: points a second that this run settled.
        rejects: rows that cannot be stored.
        done: how much of the file was read, in the unit of `Import.unit`.
        total: how much there is; None where that is not known.
    """

    points: int
    rate: float
    rejects: int
    done: int
    total: int | None


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did.

    Attributes:
        copied: what was stored, refused and skipped.
        rejects: rows that could not be stored.
        first_rejects: the first of them.
    """

    copied: CopyReport
    rejects: int
    first_rejects: Sequence[Reject]


OnImportProgress: TypeAlias = Callable[[ImportProgress], object]


class Import:
    """A file, opened and understood, that is going to be imported.

        with Import("points.csv.gz") as source:
            print(source.meaning)
            source.run(engine)

    Args:
        path: of the file, or `-` for standard input.
        options: how it is read.

    Attributes:
        name: of the file, for people.
        meaning: what was made of its columns, for people.
        unit: what progress counts: `bytes` of the file, compressed as they are, or `rows`.

    Raises:
        FileAccessError: it cannot be opened.
        FormatError: it is not what its name or format says, or columns are missing.
        MissingDependencyError: it takes pyarrow to be read, which is not installed.
        UnknownOptionError: an option makes no sense.
    """

    def __init__(self, path: str, options: ImportOptions | None = None) -> None:
        self._options = options = ImportOptions() if options is None else options
        self._format = format_of(path, options.file_format)
        if self._format in _BINARY and path != STANDARD and compression_of(path):
            raise FormatError(f"{path}: Parquet is compressed by itself; decompress it first")
        if self._format in _THROUGH_ARROW:
            require_pyarrow(f"{_THROUGH_ARROW[self._format]} is read")
        self._file = InputFile(path, self._format)
        self.name = self._file.name
        self.unit = "rows" if self._format == "parquet" else "bytes"
        self._parquet: ParquetReader | None = None
        self._blocks: Iterator[Block] = iter(())
        self._is_used = False
        try:
            self.meaning = self._open(path)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Import:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._parquet is not None:
            self._parquet.close()
        self._file.close()

    def run(
        self,
        target: Engine,
        *,
        producer: str | None = None,
        rejects_path: str | None = None,
        rejects_max: int | None = None,
        progress: OnImportProgress | None = None,
        cancel: threading.Event | None = None,
    ) -> ImportReport:
        """Store what the file holds; once.

        Args:
            target: an engine, open.
            producer: a name under which the import can be run again after it was stopped or
                killed: what was stored then is skipped. The file and the options must be the same.
            rejects_path: where rows that cannot be stored are written; those of an earlier run
                are kept where there is a `producer`, else the file is begun anew.
            rejects_max: how many of them there may be; None for any number.
            progress: is called now and then.
            cancel: stops the import when it is set.

        Raises:
            CopyError: as `tsengine.copy`; its cause is a FormatError where the file is damaged,
                a TooManyRejectsError where there are more rejects than there may be.
            FileAccessError: the rejects cannot be written.
            UnknownOptionError: the file has been read, or is where rejects would be written.
        """
        if self._is_used:
            raise UnknownOptionError("a file is read once; open it anew")
        if rejects_path is not None and self._file.is_file(rejects_path):
            raise UnknownOptionError(f"rejects cannot be written to {rejects_path!r}: it is read")
        self._is_used = True
        rejects = Rejects(rejects_path, rejects_max=rejects_max, name=producer)
        with closing(rejects):
            intake = Intake(target.rules, target.series_kind, rejects)

            def reject(points: list[DataPoint], error: Exception) -> None:
                for point in points:
                    rejects.add(
                        None, str(error), f"{point.labels} {point.timestamp} {point.value!r}"
                    )
                rejects.flush()

            def tell(told: Progress) -> None:
                if progress is not None:
                    progress(
                        ImportProgress(told.points, told.rate, rejects.count, *self._read_so_far())
                    )

            report = copy(
                Stoppable(self._read(intake), self._file.stop),
                target,
                producer=producer,
                on_reject=reject,
                progress=tell,
                cancel=cancel,
            )
        return ImportReport(report, rejects.count, tuple(rejects.first))

    def _read_so_far(self) -> tuple[int, int | None]:
        if self._parquet is not None:
            return self._parquet.rows_read, self._parquet.rows
        return self._file.bytes_read, self._file.bytes_total

    def _read(self, intake: Intake) -> Iterator[GroupedBatch]:
        """Give the points; rejects are on the disk before the points behind them."""
        batches = (
            self._parquet.read(intake)
            if self._parquet is not None
            else self._text_reader(intake).read(self._blocks)
        )
        for batch in batches:
            intake.rejects.flush()
            yield batch

    def _open(self, path: str) -> str:
        options = self._options
        if self._format == "parquet":
            self._parquet = ParquetReader(
                self._file, options.choices, path=None if path == STANDARD else path
            )
            return str(self._parquet.mapping)
        self._blocks = blocks(self._file, cut=cut_rows if self._format == "csv" else None)
        if self._format == "line":
            return self._open_lines()
        first = next(self._blocks, None)
        if first is None:
            raise FormatError(f"{self._file.name} is empty")
        if not first.is_whole:
            raise FormatError(f"{self._file.name} begins with a line without an end")
        if self._format == "jsonl":
            keys, rows, numeric = sample_of_json(first)
            self._mapping = resolve(keys, rows, options.choices, numeric=numeric)
        else:
            separator = options.separator or separator_of(path)
            names, first = head_of(first, separator, options.columns)
            self._dialect = CsvDialect(separator, names, is_headed=options.columns is None)
            sample = sample_of_csv(first, self._dialect)
            self._mapping = resolve(names, sample, options.choices)
        self._blocks = _chain(first, self._blocks)
        return str(self._mapping)

    def _open_lines(self) -> str:
        options, choices = self._options, self._options.choices
        if choices.time or choices.values or choices.labels or choices.metric:
            raise UnknownOptionError(
                "line protocol says itself what is the time, a label, a value and the metric"
            )
        self._rules = LineRules(
            UNITS[options.precision], choices.separator, choices.constants, options.missing_time
        )
        constants = "".join(f", {name}={text}" for name, text in choices.constants.items())
        return (
            f"line protocol, times in {options.precision}, metrics called "
            f"measurement{choices.separator}field{constants}"
        )

    def _text_reader(self, intake: Intake) -> LineReader | JsonReader | CsvReader:
        if self._format == "line":
            return LineReader(intake, self._rules)
        if self._format == "jsonl":
            return JsonReader(intake, self._mapping, self._options.choices)
        return CsvReader(intake, self._mapping, self._dialect)


def _chain(first: Block, rest: Iterator[Block]) -> Iterator[Block]:
    if first.data:
        yield first
    yield from rest
