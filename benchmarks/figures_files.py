"""Figure 19: importing files of line protocol, CSV and Parquet into a committed store."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.comparison import Line, take_turns
from benchmarks.machine import freeze, fresh_folder, settle
from benchmarks.ours import lmdb_url, open_engine, require_count
from benchmarks.setting import Setting
from benchmarks.workload import Workload, workload
from tsengine.formats import Import, export

TEXT_RATE = 500_000.0
"""Points a second that are asked of line protocol and CSV."""

PARQUET_RATE = 5_000_000.0


def figure_19(setting: Setting) -> list[Line]:
    """Import files whose rows come as they were measured: all series at one time, then the next."""
    sizes = setting.sizes
    text = workload(sizes.series, sizes.imported_text_points // sizes.series)
    large = workload(sizes.series, sizes.imported_parquet_points // sizes.series)
    with fresh_folder(setting.folder) as folder:
        files = {
            "line protocol, a field a line": folder / "fields.lp",
            "line protocol, ten fields a line": folder / "lines.lp",
            "CSV, long": folder / "points.csv",
            "Parquet, by series": folder / "points.parquet",
        }
        write_lines(files["line protocol, a field a line"], text)
        write_wide_lines(files["line protocol, ten fields a line"], text)
        write_csv(files["CSV, long"], text)
        write_parquet(files["Parquet, by series"], large, folder)
        points = dict.fromkeys(files, text.values.size)
        points["Parquet, by series"] = large.values.size
        cycles: dict[str, list[float]] = {name: [] for name in files}
        freeze()
        contestants: dict[str, Callable[[], float]] = {
            name: partial(_import, setting, path, points[name], cycles[name])
            for name, path in files.items()
        }
        rates = take_turns(contestants, rounds=setting.rounds)
    lines: list[Line] = []
    for name in files:
        what = f"import {name}, {points[name]:,} points"
        bar = PARQUET_RATE if "Parquet" in name else TEXT_RATE
        lines += [
            Line(19, what, "points/s", rates[name], bar=bar),
            # What a machine would do that has nothing else to do.
            Line(19, "the same, by processor time", "points/s", cycles[name][-setting.rounds :]),
        ]
    return lines


def _import(setting: Setting, path: Path, points: int, cycles: list[float]) -> float:
    """Import a file into a new store until all is committed; give points a second.

    Adds to `cycles` the points a second of processor time, of all threads.
    """
    with fresh_folder(setting.folder) as folder:
        settle()
        started, worked = time.perf_counter(), time.process_time()
        with open_engine(lmdb_url(folder)) as engine:
            with Import(str(path)) as source:
                report = source.run(engine)
            seconds = time.perf_counter() - started
            cycles.append(points / (time.process_time() - worked))
            if report.rejects:
                raise RuntimeError(f"{report.rejects} rows of {path.name} were rejected")
            require_count(engine, points)
    return points / seconds


def write_lines(path: Path, columns: Workload) -> None:
    """Write a line for each point."""
    heads = [
        f"{labels.name},hostname={labels['hostname']},region={labels['region']} value="
        for labels in columns.labels
    ]
    with path.open("w") as file:
        for row, moment in enumerate(columns.timestamps.tolist()):
            values = columns.values[:, row].tolist()
            pairs = zip(heads, values, strict=True)
            file.write("".join([f"{head}{value!r} {moment}\n" for head, value in pairs]))


def write_wide_lines(path: Path, columns: Workload) -> None:
    """Write a line for each host and time, with its ten metrics as fields."""
    hosts: dict[str, list[int]] = {}
    for place, labels in enumerate(columns.labels):
        head = f"cpu,hostname={labels['hostname']},region={labels['region']}"
        hosts.setdefault(head, []).append(place)
    fields = [str(labels.name).removeprefix("cpu_") for labels in columns.labels]
    with path.open("w") as file:
        for row, moment in enumerate(columns.timestamps.tolist()):
            values = columns.values[:, row].tolist()
            for head, places in hosts.items():
                pairs = ",".join([f"{fields[place]}={values[place]!r}" for place in places])
                file.write(f"{head} {pairs} {moment}\n")


def write_csv(path: Path, columns: Workload) -> None:
    """Write a row for each point."""
    heads = [f"{labels.name},{labels['hostname']},{labels['region']}," for labels in columns.labels]
    with path.open("w") as file:
        file.write("__name__,hostname,region,timestamp_ns,value\n")
        for row, moment in enumerate(columns.timestamps.tolist()):
            values = columns.values[:, row].tolist()
            pairs = zip(heads, values, strict=True)
            file.write("".join([f"{head}{moment},{value!r}\n" for head, value in pairs]))


def write_parquet(path: Path, columns: Workload, folder: Path) -> None:
    """Write what `export` writes."""
    with fresh_folder(folder) as store, open_engine(lmdb_url(store)) as engine:
        engine.write_batch(columns.batch())
        export(engine, str(path))
