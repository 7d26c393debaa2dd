"""`tsengine demo`: sensor readings, one by one, into a store and back."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import click

import tsengine
from tsengine.cli import readings
from tsengine.cli.arguments import examples
from tsengine.cli.failures import ExitCode
from tsengine.cli.texts import size_text, timestamp_text
from tsengine.engine import Engine
from tsengine.model import DataPoint, Labels


@click.command(epilog=examples("tsengine demo", "tsengine demo ./readings"))
@click.argument("folder", required=False, type=click.Path(path_type=Path), metavar="[FOLDER]")
def demo(folder: Path | None) -> None:
    """Write sensor readings into a new store, and read them back.

    They are written one by one into an LMDB store, which stays for what is said then to try. FOLDER
    is new or empty; without it one is made below the temporary one. The readings are of real
    sensors where the extra demo is installed, and generated where not. Exits with 1 if anything
    came back other than it was written.
    """
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="tsengine-demo-"))
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise click.UsageError(f"{folder} holds something already, which the demo leaves alone")
    url = f"lmdb://{quote(str(folder.absolute()))}"
    points = list(_points())
    with tsengine.open(url) as engine:
        _write(engine, points)
        report = engine.compact()
        per_point = report.bytes_after / engine.count()
        _say("compacted", f"to {size_text(report.bytes_after)}: {per_point:.2f} bytes a point")
    with tsengine.open(url, read_only=True) as engine:
        is_exact = _came_back(engine, points)
        for number, point in enumerate(engine.latest()):
            text = f"{point.labels.id:<32}  {timestamp_text(point.timestamp)}  {point.value!s}"
            _say("" if number else "latest", text)
    some = shlex.quote(points[0].labels.id)
    for number, command in enumerate(
        (f"plot {url} {some}", f"aggregate {url} -F mean -F max --every 1d", f"stats {url}")
    ):
        _say("" if number else "try", f"tsengine {command}")
    if not is_exact:
        raise click.exceptions.Exit(ExitCode.NO)


def _points() -> Iterable[DataPoint]:
    if not readings.are_real():
        _say("data", "generated; pip install 'tsengine[demo]' brings those of real sensors")
        return readings.generate()
    return [*readings.read_glucose_monitor(), *readings.read_sea()]


def _write(engine: Engine, points: Iterable[DataPoint]) -> None:
    """Write each point by itself; the buffer makes few commits of many."""
    begin = time.perf_counter()
    with tsengine.WriteBuffer(engine) as buffer:
        for point in points:
            buffer.write(point)
    seconds = time.perf_counter() - begin  # leaving the buffer has committed the rest
    counts = Counter(point.labels.name for point in points)
    for number, (name, count) in enumerate(counts.items()):
        _say("" if number else "written", f"{count:,} of {name}")
    rate = buffer.committed.accepted / seconds
    _say("", f"one by one in {seconds:.2f} s, {rate:,.0f} points/s, synced to disk")


def _came_back(engine: Engine, points: Iterable[DataPoint]) -> bool:
    """Say whether the store holds, of each series and time, the last value written."""
    expected: dict[tuple[Labels, int], object] = {}
    for labels, timestamp, value in points:
        expected[labels, timestamp] = value
    found = {
        (labels, timestamp): value
        for batch in engine.scan()
        for labels, timestamp, value in batch.points()
    }
    is_exact = found == expected
    verdict = "exactly those written" if is_exact else "NOT those written"
    _say("reopened", f"{len(found):,} points, {verdict}, the last of repeated times")
    return is_exact


def _say(topic: str, text: str) -> None:
    """Print a line, its topic in a column of its own."""
    click.echo(f"{topic:<11}{text}")
