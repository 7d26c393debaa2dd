"""Figures 13 to 17: windows over the bulk store, beside files, DuckDB, ArcticDB and SQLite."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import pandas as pd

from benchmarks.arctic import ArcticDb
from benchmarks.comparison import Contestant, Line, take_turns
from benchmarks.machine import all_cores, freeze, fresh_folder, settle
from benchmarks.ours import open_engine
from benchmarks.peers import DuckDb, Sqlite
from benchmarks.setting import Setting
from benchmarks.workload import START_NS, STEP_NS, series_labels
from tsengine import Engine

MINUTE_NS = 60 * 10**9
HOUR_NS = 60 * MINUTE_NS
REPEATS = 5
"""Calls in one round, of which the median counts; short ones are called more often."""
SERIES_READ = 8
"""Series of figure 14, all of one metric, as in `cpu-max-all-8` of the suite."""
SQLITE_LENGTH = 1_000
"""Points of each series in SQLite: a tenth of ours, which favours it."""

Call = Callable[[], object]


def figure_13(setting: Setting) -> list[Line]:
    """Five-minute means over 12 hours of one series, beside its columns in plain files."""
    store = setting.full
    rows = min(12 * HOUR_NS // STEP_NS, setting.sizes.length // 2 // 30 * 30)
    every = 5 * MINUTE_NS
    start = -(-(START_NS + setting.sizes.length // 4 * STEP_NS) // every) * every
    end = start + rows * STEP_NS
    before = (start - START_NS) // STEP_NS
    labels = series_labels(setting.sizes.series)
    with open_engine(store.url, merging="manual") as engine:
        asked = partial(engine.aggregate, functions=["mean"], every="5m")
        ours = partial(asked, labels[13], start, end)
        theirs = partial(_means_of_files, *store.files.paths(13), before, rows)
        freeze()
        times = take_turns(
            {"LMDB": _repeated(ours, 200), "files": _repeated(theirs, 200)}, rounds=setting.rounds
        )
    what = f"5-minute means of {rows:,} points of a series"
    return [_line(13, what, times, "LMDB", "numpy.fromfile, add.reduceat", "files", 2.0)]


def _means_of_files(timestamps: str, values: str, before: int, rows: int) -> object:
    """Read both columns of a range, and take means of rows that are known to be regular."""
    offset = before * 8
    np.fromfile(timestamps, np.int64, rows, offset=offset)
    column = np.fromfile(values, np.float64, rows, offset=offset)
    return np.add.reduceat(column, np.arange(0, rows, 30)) / 30


def figure_14(setting: Setting) -> list[Line]:
    """Hourly maxima of eight series over all time, beside DuckDB and ArcticDB on two threads."""
    names = series_labels(setting.sizes.series)
    hosts = [f"host_{number}" for number in range(1, 1 + SERIES_READ)]
    selector = f'cpu_usage_user{{hostname=~"{"|".join(hosts)}"}}'
    wanted = [
        number
        for number, labels in enumerate(names)
        if labels.name == "cpu_usage_user" and labels["hostname"] in hosts
    ]
    query = (
        f"SELECT series, timestamp // {HOUR_NS} AS hour, max(value) FROM points "
        f"WHERE series IN ({', '.join(map(str, wanted))}) GROUP BY ALL"
    )

    def ours(engine: Engine) -> object:
        return engine.aggregate(selector, functions=["max"], every="1h")

    made = setting.bulk(None)
    index = pd.DatetimeIndex(made.timestamps.view("datetime64[ns]"), name="timestamp")
    frames = {
        str(number): pd.DataFrame({"value": made.values[number].copy()}, index=index)
        for number in wanted
    }
    del made
    with fresh_folder(setting.folder) as folder, ArcticDb(folder) as arctic:
        arctic.write_series(frames)
        arctic_asked = _repeated(partial(arctic.hourly_max, list(frames)))

        def on_all_cores() -> float:
            with all_cores():
                return arctic_asked()

        duckdb = {"DuckDB": (query, 2)}
        times = _beside_duckdb(setting, {"LMDB": ours}, duckdb, {"ArcticDB": on_all_cores})
    what = f"hourly max of {SERIES_READ} series"
    return [
        _line(14, what, times, "LMDB", "DuckDB, two threads", "DuckDB", 0.2),
        _line(14, "the same", times, "LMDB", f"{ArcticDb.product}, two threads", "ArcticDB", 0.2),
    ]


def figure_15(setting: Setting) -> list[Line]:
    """Sum, least, greatest and count of all points: by headers, and in hours."""
    functions = ["sum", "min", "max", "count"]
    sql = "sum(value), min(value), max(value), count(*) FROM points"

    def whole(engine: Engine) -> object:
        return engine.aggregate(functions=functions, group_by=[])

    def hours(engine: Engine) -> object:
        return engine.aggregate(functions=functions, group_by=[], every="1h")

    times = _beside_duckdb(
        setting,
        {"headers": whole, "hours": hours},
        {
            "DuckDB": (f"SELECT {sql}", 1),
            "DuckDB hours": (f"SELECT timestamp // {HOUR_NS} AS hour, {sql} GROUP BY hour", 1),
        },
    )
    points = setting.full.points
    return [
        Line(
            figure=15,
            what=f"sum, min, max, count of {points:,}, headers",
            unit="ms",
            ours=times["headers"],
            bar=1.0,
            higher_is_better=False,
        ),
        _line(15, "the same", times, "headers", "DuckDB, one thread", "DuckDB", None),
        _line(15, "the same, hourly", times, "hours", "DuckDB, one thread", "DuckDB hours", 1.0),
    ]


def figure_16(setting: Setting) -> list[Line]:
    """Hourly means of all series by region, beside DuckDB joining its table of series."""
    query = (
        f"SELECT region, timestamp // {HOUR_NS} AS hour, avg(value) "
        "FROM points JOIN series USING (series) GROUP BY ALL"
    )

    def ours(engine: Engine) -> object:
        return engine.aggregate(functions=["mean"], group_by=["region"], every="1h")

    times = _beside_duckdb(setting, {"LMDB": ours}, {"DuckDB": (query, 1)})
    what = "hourly means of all series by region"
    return [_line(16, what, times, "LMDB", "DuckDB, one thread", "DuckDB", 1.0)]


def figure_17(setting: Setting) -> list[Line]:
    """The latest point of every series, beside an indexed lookup each in SQLite."""
    made = setting.bulk(None)
    newest = slice(-min(SQLITE_LENGTH, setting.sizes.length), None)
    rows = [
        (number, timestamp, value)
        for number in range(setting.sizes.series)
        for timestamp, value in zip(
            made.timestamps[newest].tolist(), made.values[number][newest].tolist(), strict=True
        )
    ]
    with (
        fresh_folder(setting.folder) as folder,
        Sqlite(folder) as peer,
        open_engine(setting.full.url, merging="manual") as engine,
    ):
        peer.ingest(rows)
        if len(peer.latest()) != len(engine.latest()):
            raise RuntimeError("the stores hold other series")
        settle()
        freeze()
        times = take_turns(
            {"LMDB": _repeated(engine.latest, 20), "sqlite": _repeated(peer.latest, 20)},
            rounds=setting.rounds,
        )
    what = f"latest point of {setting.sizes.series:,} series"
    return [_line(17, what, times, "LMDB", "sqlite, a seek a series", "sqlite", 0.5)]


def _beside_duckdb(
    setting: Setting,
    ours: dict[str, Callable[[Engine], object]],
    theirs: dict[str, tuple[str, int]],
    others: dict[str, Contestant] | None = None,
) -> dict[str, list[float]]:
    """Time questions to the bulk store in turn with SQL over the same columns, by threads."""
    store, made = setting.full, setting.bulk(None)
    regions = [labels["region"] for labels in series_labels(setting.sizes.series)]
    with (
        fresh_folder(setting.folder) as folder,
        DuckDb(folder) as peer,
        open_engine(store.url, merging="manual") as engine,
    ):
        peer.load(made.columns())
        peer.load_series("region", regions)
        del made
        settle()
        freeze()
        contestants: dict[str, Contestant] = {
            name: _repeated(partial(ask, engine)) for name, ask in ours.items()
        }
        for name, (query, threads) in theirs.items():
            contestants[name] = partial(_duckdb_ms, peer, query, threads)
        contestants |= others or {}
        return take_turns(contestants, rounds=setting.rounds)


def _duckdb_ms(peer: DuckDb, query: str, threads: int) -> float:
    if threads == 1:
        return _repeated(partial(peer.fetch, query, threads))()
    with all_cores():
        return _repeated(partial(peer.fetch, query, threads))()


def _repeated(call: Call, times: int = REPEATS) -> Contestant:
    return partial(_median_ms, [call] * times)


def _median_ms(calls: list[Call]) -> float:
    """Call all and give the median time in milliseconds, the first not counted."""
    calls[0]()
    seconds = []
    for call in calls:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return median(seconds) * 1e3


def _line(
    figure: int,
    what: str,
    times: dict[str, list[float]],
    ours: str,
    peer: str,
    theirs: str,
    bar: float | None,
) -> Line:
    return Line(
        figure=figure,
        what=what,
        unit="ms",
        ours=times[ours],
        peer=peer,
        theirs=times[theirs],
        bar=bar,
        higher_is_better=False,
    )
