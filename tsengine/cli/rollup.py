"""`tsengine rollup`: aggregates kept as series."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

import tsengine
from tsengine.cli.arguments import (
    examples,
    quiet_option,
    range_options,
    selector_argument,
    wait_option,
)
from tsengine.cli.failures import note
from tsengine.cli.interrupts import cancelled_by_signals
from tsengine.cli.moments import MOMENT
from tsengine.cli.progress import progress
from tsengine.cli.stores import open_for_change, open_for_reading, open_or_create
from tsengine.cli.texts import timestamp_text
from tsengine.engine import Engine
from tsengine.rollups import RollupReport


@click.command(
    epilog=examples(
        "tsengine rollup lmdb://metrics lmdb://rollups cpu_usage --every 5m -F mean -F max",
        "tsengine rollup lmdb://metrics lmdb://metrics cpu_usage --every 1h -F max --by __name__",
        "tsengine rollup lmdb://metrics lmdb://rollups --every 1d -F count --lookback 7d --quiet",
    )
)
@click.argument("source", metavar="SOURCE")
@click.argument("target", metavar="TARGET")
@selector_argument
@click.option("--every", required=True, metavar="DURATION", help="Length of the windows.")
@click.option(
    "-F", "--function", "functions", multiple=True, required=True, help="As of aggregate."
)
@click.option("--by", multiple=True, metavar="LABEL", help="As of aggregate.")
@click.option("--merge", is_flag=True, help="As of aggregate; needs --name.")
@click.option("--origin", type=MOMENT, help="As of aggregate.")
@click.option("--name", metavar="METRIC", help="Metric name of merged results.")
@click.option("--of", metavar="DURATION", help="Read the rollup of this length, not points.")
@click.option("--lookback", metavar="DURATION", help="How far back late points are looked for.")
@click.option("--follow-deletes", is_flag=True, help="Results go when all their points have gone.")
@range_options
@wait_option
@quiet_option
def rollup(
    source: str,
    target: str,
    selector: str | None,
    every: str,
    functions: tuple[str, ...],
    by: tuple[str, ...],
    merge: bool,
    origin: int | None,
    name: str | None,
    of: str | None,
    lookback: str | None,
    follow_deletes: bool,
    start: int | None,
    end: int | None,
    wait: float,
    quiet: bool,
) -> None:
    """Keep aggregates of a store as series of their own.

    SOURCE and TARGET are URLs of stores, or one URL twice; the target is made where there is none.
    Results of cpu_usage are cpu_usage:5m{__function__="mean"}. Run again, by a timer say, it adds
    windows that have ended since and redoes those whose points were changed. Ctrl-C, an error or a
    kill leave nothing that the next run does not mend.
    """
    if merge and by:
        raise click.UsageError("--merge makes one group of all; it does not go with --by")
    with (
        _stores(source, target, wait) as (read, written),
        cancelled_by_signals() as cancel,
        progress("rollup", "results", quiet=quiet) as advance,
    ):

        def show(made: RollupReport) -> None:
            until = "" if made.end is None else f"until {timestamp_text(made.end)}"
            advance(made.results, None, note=until)

        report = tsengine.rollup(
            read,
            written,
            every,
            list(functions),
            selector,
            start,
            end,
            group_by=list(by) if by else [] if merge else None,
            origin=origin,
            name=name,
            of=of,
            lookback=lookback,
            follow_deletes=follow_deletes,
            progress=show if advance.is_shown else None,
            cancel=cancel,
        )
    if not quiet:
        note(_told(report))


@contextmanager
def _stores(source: str, target: str, wait: float) -> Iterator[tuple[Engine, Engine]]:
    """Open both, or the one that both are."""
    if source == target:
        with open_for_change(source, timeout=wait) as engine:
            yield engine, engine
        return
    with open_for_reading(source) as read, open_or_create(target, timeout=wait) as written:
        yield read, written


def _told(report: RollupReport) -> str:
    parts = [f"{report.written:,} written", f"{report.unchanged:,} unchanged"]
    for count, what in (
        (report.redone, "redone"),
        (report.kept, "kept although their points are gone or changed"),
        (report.removed, "removed"),
        (report.refused, "refused by the target"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    return (
        f"rolled up: {', '.join(parts)}; {report.series:,} series of results, "
        f"in {report.seconds:.1f} s"
    )
