"""`tsengine query`: rows as they are stored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import click

from tsengine.cli.arguments import (
    examples,
    format_option,
    range_options,
    selector_argument,
    store_argument,
)
from tsengine.cli.output import Format, JsonCell, Row, write_rows
from tsengine.cli.stores import open_for_reading
from tsengine.cli.texts import timestamp_texts, value_texts
from tsengine.model import GroupedBatch, SeriesBatch

COLUMNS: Final = ("series", "timestamp", "value")

ROWS_AT_ONCE: Final = 4_096
"""Rows that are text at once: a megabyte, where a batch of a scan would be sixty."""


@click.command(
    epilog=examples(
        "tsengine query lmdb://metrics 'cpu_usage{host=\"web-1\"}' --start -1h",
        "tsengine query lmdb://metrics --start 2026-01-01 --end 2026-01-02 --format csv",
        "tsengine query lmdb://metrics cpu_usage --format jsonl | head",
    )
)
@store_argument
@selector_argument
@range_options
@format_option
def query(
    store: str, selector: str | None, start: int | None, end: int | None, form: Format | None
) -> None:
    """Print rows, by series, then time.

    They are streamed: any number in little memory. Times are UTC with all nanoseconds, and each
    value is printed such that it reads back as the same: NaN and infinities in JSON as
    {"$float": "nan"}, bytes as {"$bytes": "base64"}.
    """
    with open_for_reading(store) as engine:
        write_rows(COLUMNS, rows_of(engine.scan_groups(selector, start, end)), form)


def rows_of(batches: Iterable[SeriesBatch | GroupedBatch]) -> Iterator[Row]:
    """Iterate over the rows of batches: series ID, time, value."""
    for batch in batches:
        groups = batch.groups() if isinstance(batch, GroupedBatch) else (batch,)
        for series in groups:
            name = series.labels.id
            for first in range(0, len(series), ROWS_AT_ONCE):
                rows = slice(first, first + ROWS_AT_ONCE)
                times = timestamp_texts(series.timestamps[rows])
                values = series.values[rows]
                cells = map(JsonCell, values.tolist(), value_texts(values))
                for moment, cell in zip(times, cells, strict=True):
                    yield name, moment, cell
