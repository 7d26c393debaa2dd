"""`tsengine export`: rows of a store into a file."""

from __future__ import annotations

import time

import click

from tsengine.cli.arguments import (
    examples,
    quiet_option,
    range_options,
    selector_argument,
    store_argument,
)
from tsengine.cli.failures import note
from tsengine.cli.importing import FORMAT
from tsengine.cli.interrupts import cancelled_by_signals
from tsengine.cli.progress import progress
from tsengine.cli.stores import open_for_reading
from tsengine.formats import export


@click.command(
    "export",
    epilog=examples(
        "tsengine export lmdb://metrics points.csv.gz",
        "tsengine export lmdb://metrics cpu.parquet 'cpu_usage{region=\"eu\"}' --start -1d",
        "tsengine export lmdb://metrics - cpu_usage --format line | gzip > cpu.lp.gz",
    ),
)
@store_argument
@click.argument("file")
@selector_argument
@range_options
@click.option(
    "-f",
    "--format",
    "file_format",
    type=FORMAT,
    help="What FILE is to hold. [default: by its name]",
)
@click.option("--delimiter", metavar="CHARACTER", help="Between cells of CSV.")
@quiet_option
def export_(
    store: str,
    file: str,
    selector: str | None,
    start: int | None,
    end: int | None,
    file_format: str | None,
    delimiter: str | None,
    quiet: bool,
) -> None:
    """Write rows to a file.

    That is CSV, JSON lines, Parquet or InfluxDB line protocol. FILE ends with .csv, .tsv, .jsonl,
    .parquet or .lp, then with .gz, .bz2, .xz or .zst to be compressed; - is standard output. Rows
    come by series, then time, from one moment of the store, in little memory. The file gets its
    name when it is whole.

    `tsengine import` reads back the same values, bit for bit. What a format does not carry is an
    error: CSV and JSON lines no bytes; line protocol no NaN, no lists and maps, and no series
    without a metric name.
    """
    began = time.monotonic()
    with (
        open_for_reading(store) as engine,
        cancelled_by_signals() as cancel,
        progress("export", "points", quiet=quiet) as advance,
    ):
        is_all = selector is None and start is None and end is None
        total = engine.stats().points if is_all else None

        def show(points: int) -> None:
            advance(points, total)

        report = export(
            engine,
            file,
            selector,
            start,
            end,
            file_format=file_format,
            separator="\t" if delimiter == "\\t" else delimiter,
            progress=show,
            is_cancelled=cancel.is_set,
        )
    if not quiet:
        seconds = time.monotonic() - began
        rate = report.points / seconds if seconds else 0.0
        note(
            f"exported {report.points:,} points of {report.series:,} series, in {seconds:.1f} s "
            f"({rate:,.0f} points/s)"
        )
