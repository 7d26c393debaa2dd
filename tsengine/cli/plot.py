"""`tsengine plot`: lines on the terminal, or in a PNG or SVG file."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import click
import numpy as np
import numpy.typing as npt

from tsengine.aggregation.asking import FUNCTION_LABEL
from tsengine.cli.arguments import examples, range_options, selector_argument, store_argument
from tsengine.cli.failures import note
from tsengine.cli.stores import open_for_reading
from tsengine.cli.texts import printable, timestamp_text
from tsengine.engine import Engine
from tsengine.errors import MissingDependencyError
from tsengine.model import INT64_MAX, Int64Array, SeriesBatch

LINES_MAX: Final = 8
"""Lines that a plot shows if nobody asks for more; more are not told apart."""

DOTS_PER_CHARACTER: Final = 2
"""Columns of dots in a Braille character."""

FILE_COLUMNS: Final = 1_200
"""Windows of a plot in a file: its width in pixels."""

_SIZE_INCHES: Final = (12.0, 5.0)
_DOTS_PER_INCH: Final = 100


class Line(NamedTuple):
    """What is drawn of one series.

    Attributes:
        name: for the legend.
        timestamps: int64[n], nanoseconds.
        values: float64[n].
    """

    name: str
    timestamps: Int64Array
    values: npt.NDArray[np.float64]


@click.command(
    epilog=examples(
        "tsengine plot lmdb://metrics 'cpu_usage{region=\"eu\"}' --start -6h",
        "tsengine plot lmdb://metrics cpu_usage -F max --every 1h --by region",
        "tsengine plot lmdb://metrics cpu_usage --output cpu.svg",
    )
)
@store_argument
@selector_argument
@click.option(
    "-F", "--function", default="mean", metavar="NAME", help="As of aggregate. [default: mean]"
)
@click.option("--every", metavar="DURATION", help="Length of a window; else what one dot takes.")
@click.option("--by", multiple=True, metavar="LABEL", help="As of aggregate.")
@click.option("--merge", is_flag=True, help="As of aggregate.")
@range_options
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file that ends in .png or .svg, instead of the terminal (extra plot).",
)
@click.option("--width", type=click.IntRange(20), help="Characters. [default: the terminal's]")
@click.option("--height", type=click.IntRange(4), default=17, help="Lines. [default: 17]")
@click.option("--lines", type=click.IntRange(1), default=LINES_MAX, help="Most lines. [default: 8]")
def plot(
    store: str,
    selector: str | None,
    function: str,
    every: str | None,
    by: tuple[str, ...],
    merge: bool,
    start: int | None,
    end: int | None,
    output: Path | None,
    width: int | None,
    height: int,
    lines: int,
) -> None:
    """Draw series over time, each point the mean, or another function, of what lies in one dot.

    However many points there are: memory goes by the width of the plot. Times are UTC.
    """
    if merge and by:
        raise click.UsageError("--merge makes one group of all; it does not go with --by")
    if output is not None and output.suffix.lower() not in (".png", ".svg"):
        raise click.BadParameter(f"{output} ends in neither .png nor .svg", param_hint="--output")
    columns = width or max(shutil.get_terminal_size().columns - 16, 20)  # 16 for the scale
    with open_for_reading(store) as engine:
        span = _span(engine, selector, start, end)
        dots = columns * DOTS_PER_CHARACTER if output is None else FILE_COLUMNS
        answer = engine.aggregate(
            selector,
            start,
            end,
            functions=[function],
            every=every or f"{max((span[1] - span[0]) // dots, 1)}ns",
            group_by=list(by) if by else [] if merge else None,
        )
    if not answer:
        note("there are no rows to plot")
        return
    drawn = [_line(batch) for batch in answer[:lines]]
    if len(answer) > lines:
        note(f"{len(answer) - lines:,} more series are left out; --lines shows more")
    title = f"{function}, {timestamp_text(span[0])} to {timestamp_text(span[1])}"
    if output is None:
        _draw(drawn, title, columns, height)
    else:
        _save(drawn, title, output)


def _span(
    engine: Engine, selector: str | None, start: int | None, end: int | None
) -> tuple[int, int]:
    """Give the first time and one past the last, from rows where they are not given."""
    if start is None or end is None:
        firsts = [point.timestamp for point in engine.earliest(selector)]
        lasts = [point.timestamp for point in engine.latest(selector)]
        if not firsts or not lasts:
            return 0, 0
        start = min(firsts) if start is None else start
        end = min(max(lasts), INT64_MAX - 1) + 1 if end is None else end
    return start, max(start, end)


def _line(batch: SeriesBatch) -> Line:
    labels = {name: value for name, value in batch.labels.items() if name != FUNCTION_LABEL}
    name = batch.labels.id if labels else "all"
    return Line(printable(name), batch.timestamps, batch.values.astype(np.float64))


def _draw(lines: Sequence[Line], title: str, width: int, height: int) -> None:
    """Draw on stdout: in colour on a terminal, in Braille where it takes that."""
    import uniplot

    is_terminal = sys.stdout.isatty()
    takes_braille = "utf" in (sys.stdout.encoding or "").lower()
    drawn = uniplot.plot_to_string(
        [line.values for line in lines],
        [line.timestamps.view("datetime64[ns]") for line in lines],
        lines=True,
        width=width,
        height=height,
        title=title,
        color=is_terminal and "NO_COLOR" not in os.environ,
        legend_labels=[line.name for line in lines],
        character_set="braille" if takes_braille else "ascii",
    )
    sys.stdout.write(drawn + "\n")


def _save(lines: Sequence[Line], title: str, path: Path) -> None:
    """Draw to a file, whose name says how.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # a figure of its own needs no display
    except ImportError:
        raise MissingDependencyError(
            "a plot in a file needs matplotlib: pip install 'tsengine[plot]'"
        ) from None
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    for line in lines:
        axes.plot(line.timestamps.view("datetime64[ns]"), line.values, label=line.name, linewidth=1)
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("time (UTC)")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path)
    note(f"wrote {path}")
