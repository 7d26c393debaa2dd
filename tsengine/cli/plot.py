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

_DRAWN_MAX: Final = 1e100
"""Largest magnitude that is drawn, and its inverse the smallest: uniplot squares what it scales."""

_NS_DRAWN_MAX: Final = 9 * 10**18
"""Nanoseconds to which times are drawn as such, about 2255."""

_SIZE_INCHES: Final = (12.0, 5.0)
_DOTS_PER_INCH: Final = 100


class Line(NamedTuple):
    """What is drawn of one series.

    Attributes:
        name: for the legend.
        timestamps: int64[n], nanoseconds.
        values: float64[n].
        left_out: how many values cannot be drawn, besides NaN, which is a gap.
    """

    name: str
    timestamps: Int64Array
    values: npt.NDArray[np.float64]
    left_out: int = 0


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
    """Draw series over time, on the terminal or in a file.

    Each point is the mean, or another function, of what lies in one dot. However many points there
    are: memory goes by the width of the plot. Times are UTC.
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
    found = list(map(line_of, answer))
    left_out = sum(line.left_out for line in found)
    if left_out:
        what = f"no numbers, infinite or beyond ±{_DRAWN_MAX:g}"
        note(f"{left_out:,} values that are {what} are left out")
    drawn = [line for line in found if len(line.values)]
    if not drawn:
        note("there are no numbers to plot")
        return
    if len(drawn) > lines:
        note(f"{len(drawn) - lines:,} more series are left out; --lines shows more")
        drawn = drawn[:lines]
    title = f"{function}, {timestamp_text(span[0])} to {timestamp_text(span[1])}"
    if output is None:
        has_colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        is_utf_8 = "utf" in (sys.stdout.encoding or "").lower()
        picture = draw(drawn, title, columns, height, has_colours=has_colours, has_braille=is_utf_8)
        sys.stdout.write(picture + "\n")
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


def line_of(batch: SeriesBatch) -> Line:
    """Give what can be drawn of a series: no NaN, no infinity, nothing as large as makes one."""
    name = printable(batch.labels.id if batch.labels else "all")
    if batch.values.dtype == object:
        return Line(name, batch.timestamps[:0], np.empty(0), len(batch))
    values = batch.values.astype(np.float64)
    is_drawn = np.abs(values) <= _DRAWN_MAX  # false for NaN
    left_out = int(np.count_nonzero(~is_drawn & ~np.isnan(values)))
    return Line(name, batch.timestamps[is_drawn], values[is_drawn], left_out)


def draw(
    lines: Sequence[Line],
    title: str,
    width: int,
    height: int,
    *,
    has_colours: bool,
    has_braille: bool,
) -> str:
    """Draw lines as text.

    Args:
        lines: at least one, none of them empty.
        title: above.
        width: characters inside the frame.
        height: lines inside the frame.
        has_colours: whether lines are told apart by colour.
        has_braille: whether it is drawn in Braille, or in ASCII.
    """
    import uniplot

    ends = [int(end) for line in lines for end in (line.timestamps[0], line.timestamps[-1])]
    # The margins of the scale have to fit as well, which they do not at the ends of int64.
    unit = "ns" if max(map(abs, ends)) < _NS_DRAWN_MAX else "us"
    times = [line.timestamps.view("datetime64[ns]").astype(f"datetime64[{unit}]") for line in lines]
    y_min, y_max = _scale([line.values for line in lines])
    return uniplot.plot_to_string(
        [line.values for line in lines],
        times,
        lines=True,
        width=width,
        height=height,
        y_min=y_min,
        y_max=y_max,
        title=title,
        color=has_colours,
        legend_labels=[line.name for line in lines],
        character_set="braille" if has_braille else "ascii",
    )


def _scale(columns: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float]:
    """Give the ends of the vertical scale, so far apart that numbers between them differ."""
    low, high = min(float(one.min()) for one in columns), max(float(one.max()) for one in columns)
    margin = max((high - low) / 20, max(abs(low), abs(high)) * 1e-6, 1 / _DRAWN_MAX)
    return low - margin, high + margin


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
