"""`tsengine copy` and `tsengine verify`: from one store to another, and whether they are equal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import TextIO

import click

import tsengine
from tsengine.cli.arguments import (
    examples,
    quiet_option,
    range_options,
    selector_argument,
    wait_option,
)
from tsengine.cli.failures import ExitCode, note
from tsengine.cli.interrupts import cancelled_by_signals
from tsengine.cli.progress import progress
from tsengine.cli.stores import count_rows, open_for_reading, open_or_create
from tsengine.cli.texts import json_value, timestamp_text
from tsengine.engine import Engine
from tsengine.model import DataPoint
from tsengine.pipeline import CopyReport, Progress, VerifyReport

_source = click.argument("source", metavar="SOURCE")
_target = click.argument("target", metavar="TARGET")


@click.command(
    epilog=examples(
        "tsengine copy lmdb://metrics lmdb://archive",
        "tsengine copy lmdb://metrics 'lmdb://year?retention=365d' cpu_usage --start -30d",
        "tsengine copy lmdb://metrics lmdb://mirror --end 2026-06-01 --producer mirror --quiet",
    )
)
@_source
@_target
@selector_argument
@range_options
@click.option("--producer", metavar="NAME", help="Name the copy, so that it can be resumed.")
@click.option(
    "--rejects",
    type=click.File("a", encoding="utf-8"),
    help="Where points go that the target can never store, as JSON lines, each with the reason; "
    "without it the copy stops at them.",
)
@wait_option
@quiet_option
def copy(
    source: str,
    target: str,
    selector: str | None,
    start: int | None,
    end: int | None,
    producer: str | None,
    rejects: TextIO | None,
    wait: float,
    quiet: bool,
) -> None:
    """Copy rows of one store into another.

    SOURCE and TARGET are URLs of stores; the target is made where there is none. With --producer
    the same command run again goes on where it was stopped, by Ctrl-C, an error or a kill, and
    stores nothing twice. What it had copied of the source must be as it was: give --end where the
    source grows, and copy what came later by a --start under another name. Ctrl-C lets the commit
    under way end and says what has landed.
    """
    with (
        open_for_reading(source) as read,
        open_or_create(target, timeout=wait) as written,
        cancelled_by_signals() as cancel,
        progress("copy", "points", quiet=quiet) as advance,
    ):

        def show(made: Progress) -> None:
            advance(made.points, made.points_total)

        report = tsengine.copy(
            read,
            written,
            selector,
            start,
            end,
            producer=producer,
            on_reject=None if rejects is None else partial(_set_aside, rejects),
            progress=show if advance.is_shown else None,
            cancel=cancel,
        )
    if not quiet:
        note(_told(report))
    if report.rejected:
        note(f"rejected {report.rejected:,} points that the target cannot store")
        raise click.exceptions.Exit(ExitCode.NO)


def _set_aside(file: TextIO, points: Sequence[DataPoint], error: Exception) -> None:
    """Write points that were rejected to a file, before any behind them is stored."""
    for labels, timestamp, value in points:
        row = {
            "series": labels.id,
            "timestamp": timestamp_text(timestamp),
            "value": json_value(value),
            "reason": str(error),
        }
        file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    file.flush()


def _told(report: CopyReport) -> str:
    parts = [f"{report.accepted:,} points of {report.series:,} series"]
    if report.skipped:
        parts.append(f"{report.skipped:,} copied before")
    parts += [f"{count:,} refused by the {reason}" for reason, count in report.reasons.items()]
    if report.evicted:
        parts.append(f"{report.evicted:,} older ones evicted")
    return f"copied {', '.join(parts)}, in {report.seconds:.1f} s ({report.rate:,.0f} points/s)"


@click.command(
    epilog=examples(
        "tsengine verify lmdb://metrics lmdb://archive",
        "tsengine verify lmdb://metrics lmdb://archive cpu_usage --end 2026-01-02",
    )
)
@_source
@_target
@selector_argument
@range_options
@quiet_option
def verify(
    source: str,
    target: str,
    selector: str | None,
    start: int | None,
    end: int | None,
    quiet: bool,
) -> None:
    """Compare what two stores hold, bit for bit.

    SOURCE and TARGET are URLs of stores. It exits with 1 at the first difference, and names it.
    """
    with (
        open_for_reading(source) as ours,
        open_for_reading(target) as theirs,
        cancelled_by_signals() as cancel,
        progress("verify", "points", quiet=quiet) as advance,
    ):
        total = _total(ours, selector, start, end) if advance.is_shown else None

        def show(made: VerifyReport) -> None:
            advance(made.points, total, note=f"{made.series:,} series")

        report = tsengine.verify(ours, theirs, selector, start, end, progress=show, cancel=cancel)
    if not quiet:
        note(f"equal: {report.points:,} points of {report.series:,} series")


def _total(engine: Engine, selector: str | None, start: int | None, end: int | None) -> int:
    if selector is None and start is None and end is None:
        return engine.stats().points
    return count_rows(engine, selector, start, end)[1]
