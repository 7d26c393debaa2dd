"""Arguments and options that commands share, as decorators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from tsengine.cli.moments import MOMENT
from tsengine.cli.output import Format

_Function = TypeVar("_Function", bound=Callable[..., Any])

RANGE_HELP: Final = "2026-01-31T12:00:00Z, 2026-01-31, nanoseconds, now, or -1h from now"


def examples(*lines: str) -> str:
    """Give the epilog of a command's help: lines that a test runs as they stand."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def store_argument(function: _Function) -> _Function:
    """Add the argument STORE: `store`, a URL."""
    return click.argument("store", metavar="STORE")(function)


def selector_argument(function: _Function) -> _Function:
    """Add the argument SELECTOR: `selector`, text or None for all series."""
    return click.argument("selector", required=False, metavar="[SELECTOR]")(function)


def range_options(function: _Function) -> _Function:
    """Add --start and --end: `start` and `end`, nanoseconds or None."""
    end = click.option("--end", type=MOMENT, help=f"One past the last time: {RANGE_HELP}.")
    start = click.option("--start", type=MOMENT, help=f"The first time: {RANGE_HELP}.")
    return start(end(function))


def format_option(function: _Function) -> _Function:
    """Add --format: `form`, a `Format` or None for what suits stdout."""
    return click.option(
        "-f",
        "--format",
        "form",
        type=click.Choice([form.value for form in Format]),
        callback=lambda _ctx, _param, given: None if given is None else Format(given),
        help="What rows look like. [default: table on a terminal, csv elsewhere]",
    )(function)


def quiet_option(function: _Function) -> _Function:
    """Add --quiet: `quiet`, whether progress and reports are left out."""
    return click.option("-q", "--quiet", is_flag=True, help="No progress, no report.")(function)


def wait_option(function: _Function) -> _Function:
    """Add --wait: `wait`, seconds to wait for another process that has the store."""
    return click.option(
        "--wait",
        type=click.FloatRange(min=0.0),
        default=0.0,
        metavar="SECONDS",
        help="How long to wait while another process writes to the store. [default: 0]",
    )(function)
