"""Rollup victim: writes points, late ones too, and rolls them up until killed; and again.

Time goes on by a number that outlives it. Its rollups look back a little farther than its points
are late. Run by `template.py`.
"""

from __future__ import annotations

import ctypes
import math
import random
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

import tsengine
from tests.reliability.history import Told
from tsengine.backends.lmdb import LmdbEngine, merge
from tsengine.engine import Engine
from tsengine.model import Labels, ProducerMark
from tsengine.rollups import spans

PRODUCER: Final = "rollup"
SERIES: Final = [Labels("load", series=str(number)) for number in range(3)]
BEGIN: Final = 10_000
ROWS: Final = 3_000
"""Of each series at first: to roll them up takes a few lives."""
EVERY: Final = 20
LATE: Final = 400
LOOKBACK: Final = "500ns"


class Progress(Told):
    """What it tells.

    Attributes:
        now: what the clock says.
        lives: how often it began.
        runs: how many rollups came to their end.
    """

    now: int
    lives: int
    runs: int

    _fields_ = (("now", ctypes.c_uint64), ("lives", ctypes.c_uint64), ("runs", ctypes.c_uint64))


def build(arguments: Mapping[str, Any], ready: Callable[[], None]) -> None:
    """Make the source."""
    with LmdbEngine(arguments["source"]) as source:
        for number, labels in enumerate(SERIES):
            times = BEGIN + np.arange(ROWS) * (number + 1)
            source.write_series(labels, times, (times % 13) * 1.0)
    Progress.at(arguments["progress"]).now = BEGIN + 3 * ROWS


def live(arguments: Mapping[str, Any], ready: Callable[[], None]) -> None:
    """Write and roll up until the end."""
    chance = random.Random(arguments["seed"])
    merge.SMALL_ROWS = 0  # type: ignore[misc]  # Final for the program
    merge.RUNS_DUE = 4  # type: ignore[misc]
    merge.RUNS_MERGED = 3  # type: ignore[misc]
    spans.ROWS_MAX = chance.choice([20, 200, 5_000])  # type: ignore[misc]
    told = Progress.at(arguments["progress"])
    ready()
    told.lives += 1
    source = LmdbEngine(arguments["source"], clock_ns=lambda: told.now).open()
    target = LmdbEngine(arguments["target"], block_points=64).open()
    while True:
        if arguments.get("fault") == "hasty":  # the planted fault: the mark before the results
            target.write_to_buffer((Labels("mark"), 1, 1.0))
            target.flush_buffer(ProducerMark(PRODUCER, told.now))
        _roll_up(source, target)
        told.runs += 1
        if chance.random() < 0.3:
            target.close()
            shutil.rmtree(arguments["target"])
            target = LmdbEngine(arguments["target"], block_points=64).open()
        told.now += chance.randrange(2 * EVERY)
        for _ in range(chance.randrange(5)):
            moment = told.now - chance.randrange(LATE)
            source.write([(chance.choice(SERIES), moment, float(chance.randrange(9)))])
        if chance.random() < 0.2:
            start = told.now - chance.randrange(1, LATE)
            source.delete(chance.choice(SERIES), start, start + chance.randrange(1, 3 * EVERY))


def _roll_up(source: Engine, target: Engine) -> tsengine.RollupReport:
    return tsengine.rollup(
        source,
        target,
        f"{EVERY}ns",
        ["sum", "count", "max"],
        lookback=LOOKBACK,
        follow_deletes=True,
        producer=PRODUCER,
    )


def examine(arguments: Mapping[str, Any], ready: Callable[[], None]) -> None:
    """Check that one more run makes the target what the source gives, and another nothing."""
    told = Progress.at(arguments["progress"])
    with (
        LmdbEngine(arguments["source"], clock_ns=lambda: told.now) as source,
        LmdbEngine(arguments["target"], block_points=64) as target,
    ):
        target.check()
        _roll_up(source, target)
        wanted = _naive(source, told.now // EVERY * EVERY)
        found = {
            batch.labels: dict(zip(batch.timestamps.tolist(), batch.values.tolist(), strict=True))
            for batch in target.query(f'{{__name__="load:{EVERY}ns"}}')
        }
        for labels in {*wanted, *found}:
            ours, theirs = wanted.get(labels, {}), found.get(labels, {})
            wrong = [one for one in {*ours, *theirs} if ours.get(one) != theirs.get(one)]
            assert not wrong, f"{labels} differs at {sorted(wrong)[:5]}, {len(wrong)} windows"
        again = _roll_up(source, target)
        assert again.written == again.redone == again.removed == 0, again


def _naive(source: Engine, end: int) -> dict[Labels, dict[int, float]]:
    results: dict[Labels, dict[int, float]] = {}
    for batch in source.scan():
        windows: dict[int, list[float]] = {}
        for _, moment, value in batch.points():
            if moment < end:
                windows.setdefault(moment // EVERY * EVERY, []).append(float(str(value)))
        for function, reduce in (("sum", math.fsum), ("count", len), ("max", max)):
            texts = {**batch.labels, "__name__": f"load:{EVERY}ns", "__function__": function}
            rows = results.setdefault(Labels(texts), {})
            rows.update({window: reduce(values) for window, values in windows.items()})
    return results


WORKS: Final = {"build": build, "live": live, "examine": examine}
