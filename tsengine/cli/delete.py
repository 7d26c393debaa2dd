"""`tsengine delete`: rows or whole series, after a question."""

from __future__ import annotations

import sys

import click

from tsengine.cli.arguments import (
    examples,
    quiet_option,
    range_options,
    selector_argument,
    store_argument,
    wait_option,
)
from tsengine.cli.failures import ExitCode, note
from tsengine.cli.stores import count_rows, open_for_change, open_for_reading
from tsengine.cli.texts import timestamp_text
from tsengine.engine import Engine


@click.command(
    epilog=examples(
        "tsengine delete lmdb://metrics 'cpu_usage{host=\"web-9\"}' --dry-run",
        "tsengine delete lmdb://metrics cpu_usage --end -90d --yes",
        "tsengine delete lmdb://metrics --all --end 2020-01-01 --yes",
    )
)
@store_argument
@selector_argument
@click.option("--all", "is_of_all", is_flag=True, help="Of all series, in place of a selector.")
@range_options
@click.option("-y", "--yes", is_flag=True, help="Do not ask; needed where nobody can answer.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be deleted, and stop.")
@wait_option
@quiet_option
def delete(
    store: str,
    selector: str | None,
    is_of_all: bool,
    start: int | None,
    end: int | None,
    yes: bool,
    dry_run: bool,
    wait: float,
    quiet: bool,
) -> None:
    """Delete rows in a range, or whole series, after a question.

    With --start or --end rows in that range go and the series stay listed; without them the series
    go. It says how much that is and asks. There is no way back but a snapshot.
    """
    if (selector is None) is not is_of_all:
        raise click.UsageError("give a SELECTOR, or --all for all series")
    if not (yes or dry_run or sys.stdin.isatty()):
        raise click.UsageError("nobody is there to be asked; --yes deletes without a question")
    if dry_run:
        with open_for_reading(store) as engine:
            _, told = _what(engine, selector, start, end)
        click.echo(f"would delete {told}")
        return
    with open_for_change(store, timeout=wait) as engine:
        count, told = _what(engine, selector, start, end)
        if count and not yes and not click.confirm(f"Delete {told}?", err=True):
            note("nothing was deleted")
            raise click.exceptions.Exit(ExitCode.NO)
        engine.delete(selector, start, end)
    if not quiet:
        note(f"deleted {told}")


def _what(
    engine: Engine, selector: str | None, start: int | None, end: int | None
) -> tuple[int, str]:
    """Count what would be deleted, series or rows, and put it into words."""
    with_rows, rows = count_rows(engine, selector, start, end)
    if start is None and end is None:
        listed = sum(1 for _ in engine.series(selector))
        return listed, f"{listed:,} series with all their {rows:,} rows"
    first = "the beginning" if start is None else timestamp_text(start)
    last = "the end" if end is None else timestamp_text(end)
    return rows, f"{rows:,} rows of {with_rows:,} series, from {first} to {last}"
