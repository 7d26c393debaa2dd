"""Figures 4 to 6: the store at rest, how it reads, what it weighs, how it opens."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

import tsengine
from benchmarks.comparison import Line
from benchmarks.machine import fresh_folder, settle
from benchmarks.ours import lmdb_url, open_engine, require_count
from benchmarks.reading import (
    ReadTimes,
    open_in_fresh_process,
    read_in_fresh_process,
    time_reads,
)
from benchmarks.setting import BulkStore, Setting
from benchmarks.workload import START_NS, STEP_NS, Workload, late_workload, workload

PEER = "numpy.fromfile of the columns"

Read = Callable[[Sequence[int]], ReadTimes]
"""Reads series, by their numbers."""


def figure_4(setting: Setting) -> list[Line]:
    """Reading a series and a range, merged and with unmerged runs on top."""
    lines = []
    for kind, store in (("full precision", setting.full), ("two-decimal", setting.two_decimal)):
        lines += _merged(setting, store, kind)
    return lines + _with_runs(setting)


def _merged(setting: Setting, store: BulkStore, kind: str) -> list[Line]:
    length, within = setting.sizes.length, setting.sizes.range_points
    first = START_NS + (length - within) // 2 * STEP_NS
    with open_engine(store.url, merging="manual") as engine:
        read = partial(time_reads, engine, store.files)
        whole = _rounds(setting, partial(read, rows=length))
        short = _rounds(
            setting, partial(read, rows=within, start=first, end=first + within * STEP_NS)
        )
    return [
        _line(f"series of {length:,}, merged, {kind}", whole, 3.0),
        _line(f"range of {within}, merged, {kind}", short, 3.0),
    ]


def _with_runs(setting: Setting) -> list[Line]:
    sizes = setting.sizes
    per_series = -(-sizes.runs * sizes.run_points // sizes.series)
    newer = workload(sizes.series, per_series, start_ns=START_NS + sizes.length * STEP_NS, seed=1)
    late = late_workload(sizes.series, per_series, length=sizes.length)
    lines = []
    for name, on_top, here_bar, fresh_bar in (
        (f"{sizes.runs} runs on top", newer, 3.0, 6.0),
        (f"{sizes.runs} late runs", late, 5.0, None),
    ):
        here, fresh = _read_under_runs(setting, on_top)
        what = f"series of {sizes.length:,}, {name}"
        lines += [
            _line(f"{what}, writing process", here, here_bar),
            _line(f"{what}, fresh process", fresh, fresh_bar),
        ]
    return lines


def _read_under_runs(setting: Setting, on_top: Workload) -> tuple[list[ReadTimes], list[ReadTimes]]:
    """Put unmerged runs on a copy of the store; read here, then in fresh processes."""
    sizes, store = setting.sizes, setting.full
    added = sizes.runs * sizes.run_points
    rows = sizes.length + added // sizes.series  # and one more in the first of the series
    with fresh_folder(setting.folder) as folder:
        copied = folder / "copy"
        shutil.copytree(store.folder, copied)
        url = lmdb_url(copied)
        with open_engine(url, merging="manual") as engine:
            points = on_top.points()[:added]
            with tsengine.WriteBuffer(engine) as buffer:
                for first in range(0, added, sizes.run_points):
                    buffer.write_many(points[first : first + sizes.run_points])
                    buffer.flush()
            require_count(engine, store.points + added)
            del points
            settle()
            here = _rounds(setting, partial(time_reads, engine, store.files, rows=rows))
        fresh = _rounds(setting, partial(read_in_fresh_process, url, store.files_folder, rows=rows))
    return here, fresh


def _rounds(setting: Setting, read: Read) -> list[ReadTimes]:
    """Read other series in every round, so that none finds what another has decoded."""
    numbers = np.random.default_rng(4).permutation(setting.sizes.series).tolist()
    step = len(numbers) // (setting.rounds + 1)
    read(numbers[:step])  # not counted: touches what every read shares
    return [read(numbers[step * turn : step * (turn + 1)]) for turn in range(1, setting.rounds + 1)]


def _line(what: str, times: Sequence[ReadTimes], bar: float | None) -> Line:
    return Line(
        figure=4,
        what=what,
        unit="µs",
        ours=[each.ours for each in times],
        peer=PEER,
        theirs=[each.theirs for each in times],
        bar=bar,
        higher_is_better=False,
    )


def figure_5(setting: Setting) -> list[Line]:
    """Bytes a point takes after `compact()`."""
    lines = []
    for kind, store, bar in (
        ("two-decimal", setting.two_decimal, 1.35),
        ("full precision", setting.full, 6.8),
    ):
        for how, size in (("on disk", store.disk_bytes), ("by stats()", store.stated_bytes)):
            lines.append(
                Line(
                    figure=5,
                    what=f"size after compact, {kind}, {how}",
                    unit="B/point",
                    ours=[size / store.points],
                    bar=bar,
                    higher_is_better=False,
                    note=f"compact said: {store.reason}" if store.reason else "",
                )
            )
    return lines


def figure_6(setting: Setting) -> list[Line]:
    """Opening the compacted store in a fresh process."""
    url = setting.full.url
    open_in_fresh_process(url)  # compiles what it imports
    times = [open_in_fresh_process(url) for _ in range(setting.sizes.opens)]
    return [
        Line(
            figure=6,
            what="open, fresh process",
            unit="ms",
            ours=times,
            bar=10.0,
            higher_is_better=False,
        )
    ]
