"""Figure 12: copying a store into another, beside reading and writing alone, and its memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tsengine
from benchmarks.comparison import Line, say, take_turns
from benchmarks.machine import all_cores, freeze, fresh_folder, program_of, settle
from benchmarks.ours import lmdb_url, open_engine, require_count
from benchmarks.setting import Setting
from benchmarks.workload import workload

SAMPLE_SECONDS = 0.001
"""Between two looks at the memory of a copy, which lasts seconds."""

SMALL_POINTS = 1_000_000
"""What the memory of a large copy is compared with."""


def figure_12(setting: Setting) -> list[Line]:
    """Copy LMDB to LMDB on one core and on all, and what memory that takes."""
    store = setting.full
    batch = setting.bulk(None).batch()
    freeze()

    def scan() -> float:
        with tsengine.open(store.url, read_only=True) as source:
            settle()
            started = time.perf_counter()
            points = sum(map(len, source.scan()))
            return points / (time.perf_counter() - started)

    def write() -> float:
        with fresh_folder(setting.folder) as folder, open_engine(lmdb_url(folder)) as target:
            settle()
            started = time.perf_counter()
            target.write_batch(batch)
            return len(batch) / (time.perf_counter() - started)

    def copy() -> float:
        with (
            fresh_folder(setting.folder) as folder,
            tsengine.open(store.url, read_only=True) as source,
            open_engine(lmdb_url(folder)) as target,
        ):
            settle()
            started = time.perf_counter()
            tsengine.copy(source, target)
            seconds = time.perf_counter() - started
            require_count(target, store.points)
            return store.points / seconds

    def copy_on_all() -> float:
        with all_cores():
            return copy()

    contestants: dict[str, Callable[[], float]] = {"scan": scan, "write": write, "copy": copy}
    cores = os.cpu_count() or 1
    if cores > 1 and hasattr(os, "sched_setaffinity"):
        contestants["copy on all cores"] = copy_on_all
    rates = take_turns(contestants, rounds=setting.rounds)
    slower = [min(pair) for pair in zip(rates["scan"], rates["write"], strict=True)]
    peer = "the slower of scan and write_batch"
    lines = [Line(12, "copy LMDB to LMDB, one core", "points/s", rates["copy"], peer, slower, 0.7)]
    if "copy on all cores" in rates:
        ours = rates["copy on all cores"]
        what = f"copy LMDB to LMDB, {cores} cores"
        lines.append(Line(12, what, "points/s", ours, peer, slower, 0.7))
    lines += [
        Line(12, "scan of that store", "points/s", rates["scan"]),
        Line(12, "write_batch of all of it", "points/s", rates["write"]),
    ]
    if Path("/proc/self/status").exists():
        lines.append(_memory(setting))
    return lines


def _memory(setting: Setting) -> Line:
    """Compare the peak of anonymous memory of a large copy with that of a small one."""
    sizes = setting.sizes
    lengths = {
        "large": sizes.copied_points // sizes.series,
        "small": min(SMALL_POINTS, sizes.copied_points // 4) // sizes.series,
    }
    peaks: dict[str, list[float]] = {}
    with fresh_folder(setting.folder) as folder:
        for name, length in lengths.items():
            (folder / name).mkdir()
            with open_engine(lmdb_url(folder / name)) as engine:
                engine.write_batch(workload(sizes.series, length).batch())
                engine.compact()
        for turn in range(setting.rounds):
            for name in lengths:
                with fresh_folder(folder) as target:
                    seen = peak(lmdb_url(folder / name), lmdb_url(target))
                say(f"  round {turn + 1}: memory of the {name} copy: {seen / 1e6:.1f} MB")
                peaks.setdefault(name, []).append(seen / 1e6)
    large, small = (length * sizes.series for length in lengths.values())
    return Line(
        figure=12,
        what=f"peak memory of a copy of {large:,}, without mapped files",
        unit="MB",
        ours=peaks["large"],
        peer=f"of {small:,}",
        theirs=peaks["small"],
        bar=1.2,
        higher_is_better=False,
    )


def peak(source_url: str, target_url: str) -> int:
    """Copy in a fresh process; give the most anonymous memory that it was seen with, bytes."""
    most = 0
    with subprocess.Popen(
        [sys.executable, "-c", program_of("benchmarks.copying"), source_url, target_url],
        stdout=subprocess.DEVNULL,
    ) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            found = re.search(r"^RssAnon:\s+(\d+) kB", status.read_text(), re.MULTILINE)
            if found:
                most = max(most, 1024 * int(found[1]))
            time.sleep(SAMPLE_SECONDS)
        if process.returncode:
            raise RuntimeError(f"the copy ended with {process.returncode}")
    return most
