"""Copy victim: copies one LMDB store into another until killed, and goes on in its next life.

The source is the same in every life, but comes as a store, as points, as batches or as tables, and
is copied in commits of any size. The duplicate policy of the target is `sum`: what is stored twice
shows. Run by `template.py`.
"""

from __future__ import annotations

import ctypes
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

import tsengine
from tests.reliability.history import Told
from tsengine.backends.lmdb import LmdbEngine, merge
from tsengine.engine import Engine
from tsengine.model import DataPoint, Labels

PRODUCER: Final = "copy"
SERIES: Final = [Labels("copied", series=str(number)) for number in range(7)]
ROWS: Final = 3_000
"""Of each series: a copy takes a few lives."""


class Progress(Told):
    """What the copy tells.

    Attributes:
        settled: points that the last `progress` told of.
        lives: how often a copy was begun.
        copies: how many came to their end.
    """

    settled: int
    lives: int
    copies: int

    _fields_ = (
        ("settled", ctypes.c_uint64),
        ("lives", ctypes.c_uint64),
        ("copies", ctypes.c_uint64),
    )


def build(arguments: Mapping[str, Any], ready: Callable[[], None]) -> None:
    """Make the source."""
    with LmdbEngine(arguments["source"]) as source:
        for number, labels in enumerate(SERIES):
            times = np.arange(1, ROWS + 1) * (number + 1)
            source.write_series(labels, times, times * 0.5)


def live(arguments: Mapping[str, Any], ready: Callable[[], None]) -> None:
    """Copy, and again from the beginning when a copy is done, until the end."""
    chance = random.Random(arguments["seed"])
    if chance.random() < 0.7:  # else as it is outside of tests
        merge.SMALL_ROWS = 0  # type: ignore[misc]  # Final for the program
        merge.RUNS_DUE = 4  # type: ignore[misc]
        merge.RUNS_MERGED = 3  # type: ignore[misc]
    told = Progress.at(arguments["progress"])

    def progress(one: tsengine.Progress) -> None:
        told.settled = one.points

    ready()
    source = LmdbEngine(arguments["source"], read_only=True).open()
    while True:
        target = LmdbEngine(arguments["target"], duplicate_policy="sum", block_points=64).open()
        told.lives += 1
        if arguments.get("fault") == "forgetful":  # the planted fault
            target.forget_producer(PRODUCER)
        given: Any = chance.choice([_itself, _points, _tables])(source)
        report = tsengine.copy(
            given,
            target,
            producer=PRODUCER,
            points_max=chance.choice([10, 100, 1_000]),
            progress=progress,
            progress_interval=0,
        )
        assert report.skipped + report.accepted == len(SERIES) * ROWS
        tsengine.verify(source, target)
        target.close()
        told.settled = 0
        told.copies += 1
        shutil.rmtree(arguments["target"])


def _itself(source: Engine) -> Engine:
    return source


def _points(source: Engine) -> Iterator[DataPoint]:
    for batch in source.scan():
        yield from batch.points()


def _tables(source: Engine) -> Iterator[Any]:
    for batch in source.scan():
        labels = {name: [batch.labels[name]] * len(batch) for name in batch.labels}
        yield pa.table({**labels, "timestamp": batch.timestamps, "value": batch.values})


def examine(arguments: Mapping[str, Any], ready: Callable[[], None]) -> None:
    """Check that what is there is a beginning of the source, each point once, and marked so."""
    told = Progress.at(arguments["progress"])
    path = Path(arguments["target"])
    if not (path / "data.mdb").exists():
        shutil.rmtree(path, ignore_errors=True)  # killed while it was made or removed
        return
    with (
        # With its policy: killed early enough it is made only here.
        LmdbEngine(arguments["target"], duplicate_policy="sum", block_points=64) as target,
        LmdbEngine(arguments["source"]) as source,
    ):
        target.check()
        found = list(_points(target))
        wanted = list(_points(source))[: len(found)]
        assert found == wanted, f"{len(found)} points are not the beginning of the source"
        assert len(found) >= told.settled, f"{told.settled} were settled, {len(found)} are there"
        mark = target.high_water(PRODUCER)
        assert (mark.sequence if mark else 0) == len(found), f"marked as {mark}, not {len(found)}"


WORKS: Final = {"build": build, "live": live, "examine": examine}
