"""One store that grows to 300,000,000 points: what gets slower on the way, and what it costs.

    python -m benchmarks.growth                      1 M, 10 M, 100 M, 300 M points; minutes
    python -m benchmarks.growth --points 1e6,1e7     other sizes; the first is compared with
    python -m benchmarks.growth --quick              tiny sizes: does it run?
    python -m benchmarks.growth --json F --chart G   write what was measured, and draw it

At each size the store is compared with fresh ones of the first size, measured in processes of
their own in the same minute. How, and how far to trust it, stands in `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from benchmarks.comparison import Line, say, table
from benchmarks.machine import (
    UnfitFolderError,
    ask_fresh_process,
    disk_bytes,
    disk_folder,
    facts,
    fresh_folder,
)
from benchmarks.ours import lmdb_url, open_engine, require_count
from benchmarks.reading import Range, open_in_fresh_process, ranges_in_fresh_process, time_ranges
from benchmarks.workload import START_NS, STEP_NS, VALUE_MAX
from tsengine import Labels, WriteBuffer

PIECE = 50
"""Points of one series that come together, as from a collector that sends now and then."""

CHURN_STEPS = 1_000
"""Steps after which a hundredth of the series ends and as many begin."""

RANGE_STEPS = 360
"""Points of a range that is read: one hour."""

READS = 300
"""Ranges of each kind that are read; each is of another series where there are so many."""

IDLE_SECONDS_MAX = 600
"""How long merges may go on after the last write before that counts as a failure."""

RAW_BYTES = 16
"""A point as it comes: timestamp and value."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How far a store grows.

    Attributes:
        stages: points at which it is measured, ascending; multiples of the first.
        series: series that are written to at any moment.
        rounds: fresh stores of the first size that each stage is compared with.
        opens: fresh processes that open the store.
    """

    stages: tuple[int, ...] = (1_000_000, 10_000_000, 100_000_000, 300_000_000)
    series: int = 1_000
    rounds: int = 3
    opens: int = 9

    def quick(self) -> Sizes:
        """Give tiny sizes: to see that it runs, not what it measures."""
        return Sizes((50_000, 150_000), 100, 1, 1)

    def first(self) -> list[str]:
        """Give the arguments by which another process takes this one's first size."""
        stage, series, opens = map(str, (self.stages[0], self.series, self.opens))
        return ["--points", stage, "--series", series, "--opens", opens]


@dataclass(frozen=True, slots=True)
class Stage:
    """A store at one size. Times in microseconds but for opening, sizes in bytes.

    Attributes:
        points: points written so far.
        series: series listed, those that ended included.
        rates: points a second in each stretch of the first size since the stage before.
        window: how many of the last of them count as the rate at this size: a fifth.
        runs: runs when the last write returned, before merging had caught up.
        settle_seconds: how long merging went on from there.
        resident: memory of the writing process but for the file's pages; 0 where the
            system does not tell.
        written: bytes that the process handed to the system to write, in all; 0 likewise.
        file: the files on disk, merging done.
        live: the blocks of the manifest.
        recent_here: the last hour of a series, in the writing process.
        recent: the same in a fresh process.
        old: the first hour of the store.
        opening: opening in a fresh process, milliseconds.
    """

    points: int
    series: int
    rates: list[float]
    window: int
    runs: int
    settle_seconds: float
    resident: int
    written: int
    file: int
    live: int
    recent_here: float
    recent: float
    old: float
    opening: float

    @property
    def rate(self) -> float:
        """Points a second at this size."""
        return statistics.harmonic_mean(self.rates[-self.window :])


Measured: TypeAlias = tuple[Stage, list[Stage]]
"""A stage, and the fresh stores of the first size that it is compared with."""


class Source:
    """Columns as they come: series that walk at random, some ending and others beginning.

    Args:
        series: how many there are at any moment.
    """

    def __init__(self, series: int) -> None:
        self._random = np.random.default_rng(0)
        self._state = self._random.uniform(0.0, VALUE_MAX, series)
        self._made = series
        self._churn = max(series // 100, 1)
        self._step = 0
        self.labels = [_labels(number) for number in range(series)]

    def piece(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Give the next timestamps and, by series, the values at them."""
        if self._step and self._step % CHURN_STEPS == 0:
            self._replace()
        walked = self._random.standard_normal((len(self.labels), PIECE)).cumsum(axis=1)
        walked += self._state[:, None]
        walked = VALUE_MAX - np.abs(walked % (2 * VALUE_MAX) - VALUE_MAX)  # back from the ends
        self._state = walked[:, -1]
        timestamps = START_NS + np.arange(self._step, self._step + PIECE) * STEP_NS
        self._step += PIECE
        return timestamps, walked

    def _replace(self) -> None:
        """End the series that have been there for longest, and begin as many."""
        for _ in range(self._churn):
            self.labels[self._made % len(self.labels)] = _labels(self._made)
            self._made += 1

    def last_hour(self, count: int) -> list[Range]:
        """Name ranges at the end, of series that were there through all of it."""
        end = START_NS + self._step * STEP_NS
        start = end - min(RANGE_STEPS, self._step) * STEP_NS
        newest = self._made - self._churn
        long_there = [labels for labels in self.labels if int(labels["host"]) < newest]
        return [Range(labels, start, end) for labels in long_there[:count]]


def _labels(number: int) -> Labels:
    return Labels("cpu_usage_user", host=str(number), region=f"region-{number % 9}")


def grow(folder: Path, sizes: Sizes) -> Iterator[Stage]:
    """Grow one store in a folder, and measure it at each stage.

    Between two stages it writes without a pause, with merges in the background.
    """
    url = lmdb_url(folder)
    source = Source(sizes.series)
    unit = sizes.stages[0]
    points = written = 0
    for stage in sizes.stages:
        rates = []
        written_before = _written()
        with open_engine(url) as engine:
            with WriteBuffer(engine) as buffer:
                while points < stage:
                    rates.append(unit / _write(buffer, source, unit))
                    points += unit
                runs = engine.stats().details["runs"]
            resident = _resident()
            settle_seconds = _wait_until_idle()
            written += _written() - written_before
            here = time_ranges(engine, source.last_hour(READS))
            stats = engine.stats()
        old = [Range(_labels(n), START_NS, START_NS + RANGE_STEPS * STEP_NS) for n in range(READS)]
        open_in_fresh_process(url)  # touches what each one needs
        yield Stage(
            points=points,
            series=stats.series,
            rates=rates,
            window=max(points // unit // 5, 1),
            runs=int(str(runs)),
            settle_seconds=settle_seconds,
            resident=resident,
            written=written,
            file=disk_bytes(folder),
            live=int(str(stats.details["block_bytes"])),
            recent_here=here,
            recent=ranges_in_fresh_process(url, source.last_hour(READS)),
            old=ranges_in_fresh_process(url, old[: sizes.series]),
            opening=statistics.median(open_in_fresh_process(url) for _ in range(sizes.opens)),
        )
    with open_engine(url, merging="manual") as engine:
        require_count(engine, points)


def _write(buffer: WriteBuffer, source: Source, points: int) -> float:
    """Write points and commit them; gives the seconds that took, not counting their making."""
    seconds = 0.0
    clock = time.perf_counter
    for _ in range(points // (PIECE * len(source.labels))):
        timestamps, values = source.piece()
        started = clock()
        for labels, column in zip(source.labels, values, strict=True):
            buffer.write_series(labels, timestamps, column)
        seconds += clock() - started
    started = clock()
    buffer.flush()
    return seconds + clock() - started


def _wait_until_idle() -> float:
    """Wait until this process does nothing any more; gives the seconds that took."""
    started = time.perf_counter()
    while True:
        before = time.process_time()
        time.sleep(0.25)
        elapsed = time.perf_counter() - started
        if time.process_time() - before < 0.01:
            return max(elapsed - 0.25, 0.0)
        if elapsed > IDLE_SECONDS_MAX:
            raise RuntimeError(f"merging still goes on {elapsed:.0f} s after the last write")


def _written() -> int:
    """Bytes that this process has handed to the system to write so far."""
    # Not write_bytes, which counts whole large folios of the page cache.
    return _proc("io").get("wchar", 0)


def _resident() -> int:
    """Memory of this process that is not the pages of a file."""
    return _proc("status").get("RssAnon", 0) * 1024


def _proc(name: str) -> Mapping[str, int]:
    """Read the numbers that Linux tells of this process."""
    path = Path("/proc/self") / name
    if not path.exists():
        return {}
    pairs = (line.partition(":") for line in path.read_text(encoding="utf-8").splitlines())
    return {
        key: int(found[0])
        for key, _, text in pairs
        if (found := text.split()) and found[0].isdigit()
    }


def fresh_stage(folder: Path, sizes: Sizes) -> Stage:
    """Measure a fresh store of the first size, in a process of its own."""
    with fresh_folder(folder) as own:
        arguments = ["--one", str(own), *sizes.first()]
        return Stage(**ask_fresh_process("benchmarks.growth", *arguments))


def lines_of(number: int, stage: Stage, fresh: Sequence[Stage]) -> list[Line]:
    """Compare a stage, one of a number, with fresh stores of the first size."""
    size = f"{stage.points:,} points"
    peer = f"fresh stores of {fresh[0].points:,}"

    def line(what: str, unit: str, name: str, bar: float) -> Line:
        theirs = [float(getattr(one, name)) for one in fresh]
        ours = [float(getattr(stage, name))] * len(theirs)
        higher = name == "rate"
        return Line(
            number, f"{what}, {size}", unit, ours, peer, theirs, bar, higher_is_better=higher
        )

    def told(what: str, unit: str, value: float) -> Line:
        return Line(number, f"{what}, {size}", unit, [value])

    raw = RAW_BYTES * stage.points
    return [
        line("writing", "points/s", "rate", 0.8),
        line("last hour of a series, writing process", "µs", "recent_here", 2.0),
        line("last hour of a series, fresh process", "µs", "recent", 2.0),
        line("first hour of a series, fresh process", "µs", "old", 2.0),
        line("open, fresh process", "ms", "opening", 2.0),
        told("bytes written, by 16 a point", "×", stage.written / raw),
        told("bytes written, by the live data", "×", stage.written / stage.live),
        told("file, by the live data", "×", stage.file / stage.live),
        told("live data", "B/point", stage.live / stage.points),
        told("runs when the last write returned", "runs", stage.runs),
        told("merging after it", "s", stage.settle_seconds),
        told("resident memory", "MB", stage.resident / 1e6),
    ]


def measure(folder: Path, sizes: Sizes) -> list[Measured]:
    """Give each stage and the fresh stores that it is compared with."""
    measured: list[Measured] = []
    with fresh_folder(folder) as own:
        for stage in grow(own, sizes):
            say(f"{stage.points:,} points: {stage.rate / 1e6:.2f} M points/s, {stage.runs} runs")
            measured.append((stage, [fresh_stage(folder, sizes) for _ in range(sizes.rounds)]))
    return measured


def report_of(measured: Sequence[Measured]) -> dict[str, object]:
    """Give what was measured as plain data."""
    return {
        "stages": [
            {"stage": asdict(stage), "fresh": [asdict(one) for one in fresh]}
            for stage, fresh in measured
        ]
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Grow a store as the arguments say and print the table."""
    chosen = _parser().parse_args(arguments)
    sizes = Sizes().quick() if chosen.quick else Sizes()
    given = {"stages": chosen.points, "series": chosen.series, "opens": chosen.opens}
    sizes = replace(sizes, **{name: value for name, value in given.items() if value})
    if chosen.one:
        print(json.dumps(asdict(next(grow(chosen.one, sizes)))))
        return
    try:
        with disk_folder(chosen.folder) as folder:
            ground = facts(folder, None)
            measured = measure(folder, sizes)
    except UnfitFolderError as error:
        raise SystemExit(str(error)) from None
    print(
        f"{ground.python} on {ground.cores} cores, {ground.file_system}, "
        f"4 KiB append and sync {ground.sync_ms:.2f} ms, load {ground.load:.1f} before the run\n"
        f"{sizes.series:,} series, a hundredth replaced every {CHURN_STEPS:,} steps"
        + ("\n--quick: tiny sizes, on which no bar stands" if chosen.quick else "")
    )
    print(
        table(
            [
                line
                for number, (stage, fresh) in enumerate(measured, 1)
                for line in lines_of(number, stage, fresh)
            ]
        )
    )
    if chosen.json:
        report = {"machine": asdict(ground), **report_of(measured)}
        chosen.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    if chosen.chart:
        from benchmarks.growth_chart import draw  # noqa: PLC0415  # takes seconds to import

        draw(measured, chosen.chart)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--points", type=_points, metavar="1e6,1e7,…", help="sizes to measure at")
    parser.add_argument("--series", type=int, help="series at any moment (1,000)")
    parser.add_argument("--opens", type=int, help="fresh processes that open the store (9)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--folder", type=Path, help="a folder on a disk, for the stores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw it there, as SVG")
    parser.add_argument("--one", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    return parser


def _points(text: str) -> tuple[int, ...]:
    stages = tuple(int(float(part)) for part in text.split(","))
    if any(stage % stages[0] for stage in stages) or list(stages) != sorted(set(stages)):
        raise argparse.ArgumentTypeError(f"{text} are not ascending multiples of the first")
    return stages


if __name__ == "__main__":
    main()
