"""Charts of a growing store, as SVG, from what `benchmarks.growth` measured.

python -m benchmarks.growth_chart docs/growth.json docs/growth.svg
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.growth import Measured, Stage

OURS = "#1f6feb"
FRESH = "#8b949e"
BAR = "#d1242f"


def load(path: Path) -> list[Measured]:
    """Read what `benchmarks.growth` wrote."""
    report = json.loads(path.read_text(encoding="utf-8"))
    return [
        (Stage(**each["stage"]), [Stage(**one) for one in each["fresh"]])
        for each in report["stages"]
    ]


def draw(measured: Sequence[Measured], path: Path) -> None:
    """Draw six charts into one file."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    first, *rest = figure.subplots(2, 3).flat
    _draw_writing(first, measured)
    _draw_compared(rest[0], measured, "recent", "last hour of a series, fresh process, µs")
    _draw_compared(rest[1], measured, "old", "first hour of a series, fresh process, µs")
    _draw_compared(rest[2], measured, "opening", "open in a fresh process, ms")
    stages = [stage for stage, _ in measured]
    _draw_sizes(rest[3], stages)
    _draw_memory(rest[4], stages)
    largest = stages[-1].points
    figure.suptitle(f"One store growing to {largest:,} points, merges in the background")
    with rc_context({"svg.hashsalt": "tsengine"}):  # equal figures give an equal file
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw_writing(axes: Axes, measured: Sequence[Measured]) -> None:
    rates = [rate / 1e6 for stage, _ in measured for rate in stage.rates]
    unit = measured[0][0].points / 1e6
    axes.plot([unit * (1 + place) for place in range(len(rates))], rates, color=OURS, linewidth=0.8)
    fresh = statistics.median(one.rate for _, fresh in measured for one in fresh) / 1e6
    axes.axhline(fresh, color=FRESH, linestyle="--", label="fresh stores")
    axes.axhline(0.8 * fresh, color=BAR, linestyle=":", label="asked: 0.8 of that")
    axes.set(title="writing, M points/s", xlabel="M points in the store", ylim=(0, None))
    axes.legend(frameon=False)


def _draw_compared(axes: Axes, measured: Sequence[Measured], name: str, title: str) -> None:
    points = [stage.points for stage, _ in measured]
    fresh = [statistics.median(getattr(one, name) for one in fresh) for _, fresh in measured]
    axes.plot(points, [getattr(stage, name) for stage, _ in measured], "o-", color=OURS)
    axes.plot(points, fresh, "o--", color=FRESH, label="fresh stores of the first size")
    axes.plot(points, [2 * each for each in fresh], ":", color=BAR, label="asked: twice that")
    axes.set(title=title, xscale="log", ylim=(0, None))
    axes.legend(frameon=False)


def _draw_sizes(axes: Axes, stages: Sequence[Stage]) -> None:
    points = [stage.points for stage in stages]
    axes.plot(points, [stage.written / stage.points for stage in stages], "o-", label="written")
    axes.plot(points, [stage.file / stage.points for stage in stages], "o-", label="file")
    axes.plot(points, [stage.live / stage.points for stage in stages], "o-", label="live data")
    axes.set(title="bytes a point", xlabel="points", xscale="log", ylim=(0, None))
    axes.legend(frameon=False)


def _draw_memory(axes: Axes, stages: Sequence[Stage]) -> None:
    points = [stage.points for stage in stages]
    axes.plot(points, [stage.resident / 1e6 for stage in stages], "o-", color=OURS)
    axes.set(title="resident memory, MB", xlabel="points", xscale="log", ylim=(0, None))


def main() -> None:
    """Draw the charts of a report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="JSON of benchmarks.growth")
    parser.add_argument("chart", type=Path, help="SVG to write")
    arguments = parser.parse_args()
    draw(load(arguments.report), arguments.chart)


if __name__ == "__main__":
    main()
