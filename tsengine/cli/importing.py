"""`tsengine import`: a file into a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from tsengine.cli.arguments import examples, quiet_option, store_argument, wait_option
from tsengine.cli.failures import ExitCode, note
from tsengine.cli.interrupts import cancelled_by_signals
from tsengine.cli.moments import MOMENT
from tsengine.cli.progress import progress
from tsengine.cli.stores import open_or_create
from tsengine.formats import Choices, Import, ImportOptions, ImportProgress, ImportReport, ValueForm
from tsengine.formats.files import FORMATS, STANDARD
from tsengine.formats.times import UNITS

_Function = TypeVar("_Function", bound=Callable[..., Any])

FORMAT = click.Choice(sorted(set(FORMATS.values())))


def _column_options(function: _Function) -> _Function:
    """Add the options that say what columns are."""
    options = (
        click.option("--time", metavar="COLUMN", help="The column of times."),
        click.option(
            "--time-format",
            metavar="FORM",
            help="How times are written: ns, us, ms or s since 1970, iso, or a pattern such as "
            "'%d.%m.%Y %H:%M:%S'.",
        ),
        click.option(
            "--timezone", metavar="ZONE", help="The zone of times that name none, such as UTC."
        ),
        click.option(
            "--value", "values", metavar="COLUMN", multiple=True, help="A column of values."
        ),
        click.option(
            "--value-as",
            type=click.Choice([form.value for form in ValueForm]),
            help="How values are meant. With auto, a number without a point is what the store "
            "makes of integers.",
        ),
        click.option(
            "--label",
            "labels",
            metavar="COLUMN",
            multiple=True,
            help="A column of labels. [default: all others]",
        ),
        click.option("--metric", metavar="NAME", help="The metric name."),
        click.option(
            "--constant",
            "constants",
            metavar="NAME=VALUE",
            multiple=True,
            help="A label that every series gets.",
        ),
        click.option(
            "--join",
            metavar="TEXT",
            default="_",
            show_default=True,
            help="What stands between metric and column, or measurement and field.",
        ),
        click.option("--delimiter", metavar="CHARACTER", help="Between cells of CSV."),
        click.option(
            "--columns", metavar="NAMES", help="Columns of CSV without a head: time,host,value."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command(
    "import",
    epilog=examples(
        "tsengine import lmdb://metrics points.csv.gz",
        "tsengine import lmdb://metrics rooms.csv --time at --timezone UTC --value celsius",
        "tsengine import lmdb://metrics - --format line --precision ms < influx.lp",
        "tsengine import lmdb://metrics big.parquet --resume --rejects bad.jsonl",
    ),
)
@store_argument
@click.argument("file", default=STANDARD, metavar="[FILE]")
@click.option(
    "-f", "--format", "file_format", type=FORMAT, help="What FILE holds. [default: by its name]"
)
@_column_options
@click.option(
    "--precision",
    type=click.Choice(list(UNITS)),
    default="ns",
    show_default=True,
    help="The unit of timestamps of line protocol.",
)
@click.option("--missing-time", type=MOMENT, help="The time of lines of line protocol without one.")
@click.option("--rejects", metavar="PATH", help="Where rows go that cannot be stored.")
@click.option(
    "--max-rejects",
    type=click.IntRange(min=0),
    metavar="NUMBER",
    help="Stop when more rows than that cannot be stored. [default: never]",
)
@click.option("--producer", metavar="NAME", help="Name the import, so that it can be resumed.")
@click.option("--resume", is_flag=True, help="The same, with the path of FILE as the name.")
@wait_option
@quiet_option
def import_(
    store: str,
    file: str,
    file_format: str | None,
    columns: str | None,
    constants: Sequence[str],
    delimiter: str | None,
    precision: str,
    missing_time: int | None,
    rejects: str | None,
    max_rejects: int | None,
    producer: str | None,
    resume: bool,
    wait: float,
    quiet: bool,
    **said: Any,
) -> None:
    """Store what a file holds.

    That is CSV, JSON lines, Parquet or InfluxDB line protocol. STORE is made where there is none.
    FILE ends with .csv, .tsv, .jsonl, .parquet or .lp, then with .gz, .bz2, .xz or .zst where it is
    compressed; - is standard input, any size of it. What `tsengine export` wrote needs no
    options. Elsewhere columns are guessed by their names and first rows, and that is told.

    Rows that cannot be stored are counted, and written to --rejects as JSON lines with number,
    reason and text; the exit code then is 1. Rows before them are stored, and so are those behind.
    With --resume or --producer the same command run again goes on where it was stopped, by Ctrl-C,
    an error or a kill, and stores nothing twice.
    """
    options = ImportOptions(
        file_format=file_format,
        choices=_choices(constants, **said),
        separator="\t" if delimiter == "\\t" else delimiter,
        columns=None if columns is None else columns.split(","),
        precision=precision,
        missing_time=missing_time,
    )
    with Import(file, options) as source:
        if not quiet:
            note(f"{source.name}: {source.meaning}")
        with (
            open_or_create(store, timeout=wait) as engine,
            cancelled_by_signals() as cancel,
            progress("import", source.unit, quiet=quiet) as advance,
        ):

            def show(made: ImportProgress) -> None:
                told = f"{made.points:,} points, {made.rate:,.0f} a second"
                bad = f", {made.rejects:,} rejects" if made.rejects else ""
                advance(made.done, made.total, note=told + bad)

            report = source.run(
                engine,
                producer=_producer(file, producer, resume=resume),
                rejects_path=rejects,
                rejects_max=max_rejects,
                progress=show if advance.is_shown else None,
                cancel=cancel,
            )
    _tell(report, rejects, quiet=quiet)


def _choices(
    constants: Sequence[str],
    *,
    time: str | None,
    time_format: str | None,
    timezone: str | None,
    values: Sequence[str],
    value_as: str | None,
    labels: Sequence[str],
    metric: str | None,
    join: str,
) -> Choices:
    pairs = [constant.partition("=") for constant in constants]
    if any(not equals for _, equals, _ in pairs):
        raise click.BadParameter("a constant label is given as NAME=VALUE", param_hint="--constant")
    return Choices(
        time=time,
        time_form=time_format,
        zone=timezone,
        values=values,
        value_form=None if value_as is None else ValueForm(value_as),
        labels=labels or None,
        metric=metric,
        constants={name: value for name, _, value in pairs},
        separator=join,
    )


def _producer(file: str, producer: str | None, *, resume: bool) -> str | None:
    if producer is not None or not resume:
        return producer
    if file == STANDARD:
        raise click.UsageError("standard input has no path to resume by; give --producer NAME")
    return f"import {Path(file).resolve()}"


def _tell(report: ImportReport, rejects: str | None, *, quiet: bool) -> None:
    """Say what was done; raises where rows were rejected."""
    copied = report.copied
    if not quiet:
        parts = [f"{copied.accepted:,} points of {copied.series:,} series"]
        if copied.skipped:
            parts.append(f"{copied.skipped:,} imported before")
        parts += [f"{count:,} refused by the {reason}" for reason, count in copied.reasons.items()]
        if copied.evicted:
            parts.append(f"{copied.evicted:,} older ones evicted")
        note(
            f"imported {', '.join(parts)}, in {copied.seconds:.1f} s ({copied.rate:,.0f} points/s)"
        )
    if report.rejects:
        where = f"written to {rejects}" if rejects else "--rejects PATH writes them"
        rows = "1 row" if report.rejects == 1 else f"{report.rejects:,} rows"
        note(f"rejected {rows} ({where}), the first of them:")
        for reject in report.first_rejects:
            note(f"  {reject}")
        raise click.exceptions.Exit(ExitCode.NO)
