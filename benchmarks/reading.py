"""Timing reads, of which some against `numpy.fromfile`, and `open`, here and in a fresh process.

Run as a program, it is that fresh process: it opens a store, reads, and prints its own
figures as JSON. Its clocks start after everything is imported.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import tsengine.backends.lmdb  # opening a store would import it inside the clock
from benchmarks.column_files import ColumnFiles
from benchmarks.machine import ask_fresh_process, freeze
from benchmarks.ours import open_engine
from benchmarks.workload import series_labels
from tsengine import Engine, Labels


@dataclass(frozen=True, slots=True)
class ReadTimes:
    """Medians over the series that were read, in microseconds.

    Attributes:
        ours: `Engine.query` until numpy columns are there.
        theirs: `numpy.fromfile` of both columns.
    """

    ours: float
    theirs: float


class ShortAnswerError(RuntimeError):
    """Is raised when a query gives fewer or more rows than were written."""


def time_reads(
    engine: Engine,
    files: ColumnFiles,
    numbers: Sequence[int],
    *,
    rows: int,
    start: int | None = None,
    end: int | None = None,
) -> ReadTimes:
    """Read series in turn with the column files, each once.

    Args:
        engine: an open store of `series_labels`.
        files: the columns of the same series.
        numbers: which series.
        rows: how many rows each answer must have, or one more where points that came
            in turn did not end with the last series.
        start: of the range, None for the whole series.
        end: of the range, exclusive.

    Raises:
        ShortAnswerError: an answer has another number of rows.
    """
    labels = series_labels(max(numbers) + 1)
    ours, theirs = [], []
    clock = time.perf_counter_ns
    gc.collect()
    for number in numbers:
        wanted, paths = labels[number], files.paths(number)
        started = clock()
        batch = engine.query(wanted, start, end)[0]
        timestamps, values = batch.timestamps, batch.values
        ours.append(clock() - started)
        if not rows <= len(timestamps) == len(values) <= rows + 1:
            raise ShortAnswerError(f"{wanted.id}: {len(timestamps):,} rows, not {rows:,}")
        started = clock()
        files.read(*paths)
        theirs.append(clock() - started)
    return ReadTimes(statistics.median(ours) / 1e3, statistics.median(theirs) / 1e3)


class Range(NamedTuple):
    """A stretch of one series: `[start, end)` in nanoseconds."""

    labels: Labels
    start: int
    end: int


def time_ranges(engine: Engine, ranges: Sequence[Range]) -> float:
    """Read ranges in turn, each once; gives the median, in microseconds.

    Raises:
        ShortAnswerError: a range is empty.
    """
    seconds = []
    clock = time.perf_counter_ns
    gc.collect()
    for labels, start, end in ranges:
        started = clock()
        batches = engine.query(labels, start, end)
        seconds.append(clock() - started)
        if not batches:
            raise ShortAnswerError(f"{labels.id} has no rows from {start} to {end}")
    return statistics.median(seconds) / 1e3


def time_open(url: str) -> float:
    """Time `open` alone, in milliseconds."""
    started = time.perf_counter_ns()
    engine = tsengine.open(url)
    elapsed = time.perf_counter_ns() - started
    engine.close()
    return elapsed / 1e6


def open_in_fresh_process(url: str) -> float:
    """Start a process that opens the store; give what it says, in milliseconds."""
    return float(_run("open", url)["milliseconds"])


def read_in_fresh_process(url: str, files: Path, numbers: Sequence[int], *, rows: int) -> ReadTimes:
    """Start a process that opens the store and reads whole series; give what it says."""
    question = json.dumps({"files": str(files), "series": numbers, "rows": rows})
    return ReadTimes(**_run("read", url, question))


def ranges_in_fresh_process(url: str, ranges: Sequence[Range]) -> float:
    """Start a process that opens the store and reads ranges; give what `time_ranges` says."""
    question = json.dumps([(dict(labels), start, end) for labels, start, end in ranges])
    return _run("ranges", url, question)["microseconds"]


def _run(what: str, url: str, question: str = "") -> dict[str, float]:
    answer: dict[str, float] = ask_fresh_process("benchmarks.reading", what, url, question=question)
    return answer


def main() -> None:
    """Open or read, as the arguments and standard input say, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("open", "read", "ranges"))
    parser.add_argument("url")
    arguments = parser.parse_args()
    if arguments.what == "open":
        freeze()
        print(json.dumps({"milliseconds": time_open(arguments.url)}))
        return
    question = json.load(sys.stdin)
    if arguments.what == "ranges":
        ranges = [Range(Labels(labels), start, end) for labels, start, end in question]
        freeze()
        with open_engine(arguments.url, merging="manual") as engine:
            print(json.dumps({"microseconds": time_ranges(engine, ranges)}))
        return
    files = ColumnFiles(Path(question["files"]))
    freeze()
    with open_engine(arguments.url, merging="manual") as engine:
        times = time_reads(engine, files, question["series"], rows=question["rows"])
    print(json.dumps(asdict(times)))


if __name__ == "__main__":
    main()
