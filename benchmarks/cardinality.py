"""Very many series: what each costs to begin, to hold, to find and to list.

    python -m benchmarks.cardinality                     1,000,000 series, some minutes
    python -m benchmarks.cardinality --series 100000
    python -m benchmarks.cardinality --json figures.json

Every figure comes from a process of its own, which says what it found: so none has the caches
or the memory of another. What the figures mean stands in `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.comparison import Line, say, table
from benchmarks.machine import ask_fresh_process, disk_folder, freeze, pin
from benchmarks.ours import lmdb_url, open_engine, require_count
from benchmarks.reading import open_in_fresh_process
from benchmarks.workload import START_NS, STEP_NS
from tsengine import DataPoint, Labels, WriteBuffer

SERIES = 1_000_000
PER_HOST = 8
PER_RACK = 1_000
REPEATS = 5
PAUSE_SECONDS = 0.002
"""Between two small flushes beside the large ones."""

Figures = dict[str, float]


def labels_of(number: int) -> Labels:
    """Name a series as a monitoring agent would, with texts made anew for each."""
    host, core = divmod(number, PER_HOST)
    rack = number // PER_RACK
    return Labels("cpu_usage", host=f"host-{host:06}", rack=f"rack-{rack:04}", core=f"{core}")


def resident_bytes() -> int:
    """Give the resident memory of this process, pages of mapped files included."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(kilobytes) * 1024


def write(url: str, series: int) -> Figures:
    """Begin all series, then write to each of them again, point by point."""
    gc.collect()
    before = resident_bytes()
    started = time.perf_counter()
    names = [labels_of(number) for number in range(series)]
    made = time.perf_counter() - started
    gc.collect()
    named = resident_bytes()
    freeze()
    seconds = []
    with open_engine(url) as engine, WriteBuffer(engine) as buffer:
        for step in range(2):
            timestamp = START_NS + step * STEP_NS
            started = time.perf_counter()
            for labels in names:
                buffer.write(DataPoint(labels, timestamp, 0.5))
            buffer.flush()
            seconds.append(time.perf_counter() - started)
        held = resident_bytes()
        require_count(engine, 2 * series)
    return {
        "labels": series / made,
        "labels_bytes": (named - before) / series,
        "first": series / seconds[0],
        "again": series / seconds[1],
        "bytes": (held - before) / series,
        "disk": engine_bytes(url) / series,
    }


def engine_bytes(url: str) -> int:
    """Give what the store takes on the disk."""
    with open_engine(url, read_only="true") as engine:
        return engine.stats().bytes


def beside(url: str, series: int) -> Figures:
    """Flush single points of one series while another thread begins very many."""
    names = [labels_of(number) for number in range(series)]
    freeze()
    alone: list[float] = []
    crowded: list[float] = []
    with open_engine(url) as engine, WriteBuffer(engine) as small:
        ended = threading.Event()
        known = Labels("known")

        def flush(seconds: list[float]) -> None:
            small.write(DataPoint(known, START_NS + len(alone) + len(crowded), 0.5))
            started = time.perf_counter()
            small.flush()
            seconds.append(time.perf_counter() - started)

        def begin_all() -> None:
            try:
                with WriteBuffer(engine) as large:
                    for labels in names:
                        large.write(DataPoint(labels, START_NS, 0.5))
            finally:
                ended.set()

        for _ in range(100):
            flush(alone)
        thread = threading.Thread(target=begin_all)
        thread.start()
        while not ended.wait(PAUSE_SECONDS):
            flush(crowded)
        thread.join()
        small.close()
        require_count(engine, series + len(alone) + len(crowded))
    milliseconds = sorted(1e3 * one for one in crowded)
    return {
        "flushes": len(crowded),
        "alone": 1e3 * statistics.median(alone),
        "median": statistics.median(milliseconds),
        "p99": milliseconds[int(0.99 * len(milliseconds))],
        "longest": milliseconds[-1],
    }


def find(url: str, series: int) -> Figures:
    """Find series by a matcher of a rack, the first time in a process and later."""
    freeze()
    figures: Figures = {}
    racks = -(-series // PER_RACK)
    with open_engine(url, read_only="true") as engine:
        for name, form in (("equality", '{{rack="rack-{:04}"}}'), ("regex", '{{rack=~".*-0*{}"}}')):
            cold: list[float] = []
            warm: list[float] = []
            for repeat in range(REPEATS):
                selector = form.format((7 * repeat + 3) % racks)
                for seconds in (cold, warm):
                    started = time.perf_counter()
                    found = len(list(engine.series(selector)))
                    seconds.append(time.perf_counter() - started)
                    if found != min(PER_RACK, series):
                        raise RuntimeError(f"{selector} found {found:,} series")
            figures[f"{name}_cold"] = 1e3 * statistics.median(cold)
            figures[f"{name}_warm"] = 1e3 * statistics.median(warm)
    return figures


def list_(url: str, series: int) -> Figures:
    """List all series, holding on to none."""
    with open_engine(url, read_only="true") as engine:
        gc.collect()
        before = resident_bytes()
        started = time.perf_counter()
        listing = engine.series()
        next(listing)
        first = time.perf_counter() - started
        listed = 1 + sum(1 for _ in listing)
        seconds = time.perf_counter() - started
        grown = resident_bytes() - before
    if listed != series:
        raise RuntimeError(f"{listed:,} series were listed, {series:,} were written")
    return {"first": 1e3 * first, "rate": series / seconds, "bytes": grown / series}


PARTS: Mapping[str, Callable[[str, int], Figures]] = {
    "write": write,
    "beside": beside,
    "find": find,
    "list": list_,
}


def measure(folder: Path, series: int) -> list[Line]:
    """Measure everything on a new store in a folder."""

    def ask(part: str, url: str, series: int = series) -> Figures:
        say(f"{part}: {series:,} series")
        found: Figures = ask_fresh_process(
            "benchmarks.cardinality", "--part", part, url, str(series)
        )
        say(f"    {', '.join(f'{name} {value:,.4g}' for name, value in found.items())}")
        return found

    url = lmdb_url(folder)
    wrote = ask("write", url)
    opened = [open_in_fresh_process(url) for _ in range(REPEATS)]
    found = ask("find", url)
    listed = ask("list", url)
    (folder / "beside").mkdir()
    waited = ask("beside", lmdb_url(folder / "beside"), max(series // 5, 1))

    def line(
        what: str,
        value: float | list[float],
        unit: str,
        bar: float | None = None,
        *,
        higher: bool = True,
    ) -> Line:
        ours = value if isinstance(value, list) else [value]
        return Line(figure=7, what=what, unit=unit, ours=ours, bar=bar, higher_is_better=higher)

    def at_most(what: str, value: float | list[float], unit: str, bar: float) -> Line:
        return line(what, value, unit, bar, higher=False)

    return [
        line("making Labels", wrote["labels"], "series/s"),
        line("memory of Labels alone", wrote["labels_bytes"], "B a series"),
        line("first writes to new series", wrote["first"], "series/s", 150_000.0),
        line("writes to each again", wrote["again"], "points/s"),
        at_most("resident memory while writing", wrote["bytes"], "B a series", 900.0),
        line("store on disk, unmerged", wrote["disk"], "B a series"),
        at_most("open, fresh process", opened, "ms", 100.0),
        line("a small flush, alone", waited["alone"], "ms"),
        line("… beside first writes, p99", waited["p99"], "ms"),
        at_most("… beside first writes, longest", waited["longest"], "ms", 50.0),
        at_most("equality, 1,000 series", found["equality_warm"], "ms", 1.0),
        line("… whose labels were not read before", found["equality_cold"], "ms"),
        at_most("regex over the values", found["regex_warm"], "ms", 5.0),
        line("… whose labels were not read before", found["regex_cold"], "ms"),
        line("listing all: until the first", listed["first"], "ms"),
        line("listing all", listed["rate"], "series/s"),
        line("listing all: memory", listed["bytes"], "B a series"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the arguments ask for and print the table; or be one of the processes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cardinality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--series", type=int, default=SERIES, help=f"how many ({SERIES:,})")
    parser.add_argument("--folder", type=Path, help="a folder on a disk, for the stores")
    parser.add_argument("--core", type=int, help="the core everything is kept to (the last)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--part", nargs=3, metavar=("PART", "URL", "SERIES"), help=argparse.SUPPRESS
    )
    chosen = parser.parse_args(arguments)
    if chosen.part:
        part, url, series = chosen.part
        print(json.dumps(PARTS[part](url, int(series))))
        return
    pin(chosen.core)
    with disk_folder(chosen.folder) as folder:
        lines = measure(folder, chosen.series)
    print(table(lines))
    if chosen.json:
        chosen.json.write_text(json.dumps([asdict(line) for line in lines], indent=2))


if __name__ == "__main__":
    main()
