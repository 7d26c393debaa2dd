"""Figure 18: a wide frame as one table, beside ArcticDB writing it as one symbol."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pandas as pd

from benchmarks.arctic import ArcticDb
from benchmarks.comparison import Line, take_turns
from benchmarks.machine import freeze, fresh_folder, settle
from benchmarks.ours import lmdb_url, open_engine, require_count
from benchmarks.setting import Setting


def figure_18(setting: Setting) -> list[Line]:
    """Write a frame of a column per series, as one block of columns and as one of rows."""
    data = setting.bulk(None)
    index = pd.DatetimeIndex(data.timestamps.view("datetime64[ns]"), name="timestamp")
    names = [f"series_{number}" for number in range(len(data.labels))]
    # As pandas has it: of columns put together, or of rows that were read one after the other.
    frames = {
        "columns": pd.DataFrame(data.values.T, index=index, columns=names),
        "rows": pd.DataFrame(data.values.T.copy(), index=index, columns=names),
    }
    freeze()
    contestants: dict[str, Callable[[], float]] = {}
    for layout, frame in frames.items():
        contestants[f"ours {layout}"] = partial(_ours, setting, frame)
        contestants[f"ArcticDB {layout}"] = partial(_theirs, setting, frame)
    rates = take_turns(contestants, rounds=setting.rounds)
    rows, columns = frames["rows"].shape
    return [
        Line(
            18,
            f"write_table, {columns:,} columns × {rows:,} rows, made of {layout}",
            "points/s",
            rates[f"ours {layout}"],
            ArcticDb.product,
            rates[f"ArcticDB {layout}"],
            0.8,
        )
        for layout in frames
    ]


def _ours(setting: Setting, frame: pd.DataFrame) -> float:
    with fresh_folder(setting.folder) as folder, open_engine(lmdb_url(folder)) as engine:
        settle()
        started = time.perf_counter()
        engine.write_table(frame)
        seconds = time.perf_counter() - started
        require_count(engine, frame.size)
        return frame.size / seconds


def _theirs(setting: Setting, frame: pd.DataFrame) -> float:
    with fresh_folder(setting.folder) as folder, ArcticDb(folder) as peer:
        settle()
        seconds = peer.write(frame)
        if peer.count() != len(frame):
            raise RuntimeError(f"{peer.count()} rows were stored, not {len(frame)}")
        return frame.size / seconds
