"""Victim: the works during which a store is killed, and what is looked at afterwards.

Run by `template.py`. The victim tells what it began and what was acknowledged in a `Journal`.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.reliability.history import (
    BALLAST,
    BALLAST_ROWS,
    PRODUCER,
    Journal,
    deletion,
    perform,
    points,
    survivors,
)
from tsengine.backends.lmdb import LmdbEngine, merge, upkeep
from tsengine.backends.lmdb.layout import RETIRED
from tsengine.backends.memory import MemoryEngine
from tsengine.engine import Engine
from tsengine.errors import FormatVersionError, StorePathError
from tsengine.model import ProducerMark

BLOCK_POINTS: Final = 64
"""Rows of a block: small, so that commits and merges have several blocks."""

FILES: Final = {"data.mdb", "lock.mdb", "writer.lock", "readers.lock", "reserve"}

logging.getLogger("tsengine").addHandler(logging.NullHandler())  # upkeep fails when power does

Ready = Callable[[], None]
Arguments = Mapping[str, Any]


# Works that are killed. Each gets ready, then does what is to be cut short.


def small_merges() -> None:
    """Have merges due after three commits, however small, in steps of a few rows."""
    merge.TAIL_ROWS_MAX = 0  # type: ignore[misc]  # Final for the program, not for its victim
    merge.SMALL_ROWS = 0  # type: ignore[misc]
    merge.RUNS_DUE = 3  # type: ignore[misc]
    merge.RUNS_MERGED = 2  # type: ignore[misc]
    merge.STEP_ROWS = 16  # type: ignore[misc]
    merge.OWN_BLOCKS_FROM = 5  # type: ignore[misc]


def open_engine(
    arguments: Arguments, *, merging: str = "manual", block_points: int = BLOCK_POINTS
) -> LmdbEngine:
    """Open the store of a request; the clock stands still, so that every run is the same."""
    return LmdbEngine(
        arguments["store"],
        merging=merging,
        block_points=block_points,
        durability=arguments.get("durability", "commit"),
        clock_ns=lambda: 1_800_000_000_000_000_000,
    ).open()


def prepare(arguments: Arguments, ready: Ready) -> None:
    """Make a store of `count` operations, and leave a merge cut short in it."""
    small_merges()
    block_points = 16_384 if arguments["ballast"] else BLOCK_POINTS
    with open_engine(arguments, block_points=block_points) as engine:
        for number in range(1, arguments["count"] + 1):
            perform(engine, number)
        if arguments["ballast"]:
            values = np.random.default_rng(1).normal(size=BALLAST_ROWS)
            engine.write_series(BALLAST, np.arange(1, 1 + BALLAST_ROWS), values)
        if arguments["torn"]:
            work = engine._shared.upkeep  # only the backend can stop in the middle of a merge
            work._begin(lambda manifest: manifest.runs[:4])
            for _ in range(3):
                work._step()
            (Path(arguments["store"]) / "compacting").mkdir(mode=0o700)
            (Path(arguments["store"]) / "compacting" / "data.mdb").write_bytes(b"half a copy")
            os._exit(0)


def create(arguments: Arguments, ready: Ready) -> None:
    """Make a new store and write to it."""
    journal = Journal.at(arguments["journal"])
    ready()
    engine = open_engine(arguments)
    journal.opened = True
    _go_on(engine, journal, arguments)


def open_existing(arguments: Arguments, ready: Ready) -> None:
    """Open a store in which a merge and a compaction were cut short."""
    journal = Journal.at(arguments["journal"])
    ready()
    open_engine(arguments)
    journal.done = True


def flush(arguments: Arguments, ready: Ready) -> None:
    """Commit: known series and new ones, small and large, and deletes."""
    _write(open_engine(arguments), arguments, ready)


def bulk(arguments: Arguments, ready: Ready) -> None:
    """Commit batches that are packed at once."""
    merge.BULK_ROWS = 4  # type: ignore[misc]  # as above
    _write(open_engine(arguments), arguments, ready)


def merging(arguments: Arguments, ready: Ready) -> None:
    """Commit and merge after each commit; deletes are applied and runs swept."""
    small_merges()
    if arguments.get("fault") == "unlisted":
        _merge_unlisted()
    _write(open_engine(arguments, merging="inline"), arguments, ready)


def compact(arguments: Arguments, ready: Ready) -> None:
    """Merge all into one run and swap the smaller file in."""
    journal = Journal.at(arguments["journal"])
    engine = open_engine(arguments, block_points=16_384)
    ready()
    report = engine.compact()
    assert not report.reason, report
    journal.done = True


def snapshot(arguments: Arguments, ready: Ready) -> None:
    """Copy the store."""
    journal = Journal.at(arguments["journal"])
    engine = open_engine(arguments)
    ready()
    engine.snapshot(arguments["target"])
    journal.done = True


def close(arguments: Arguments, ready: Ready) -> None:
    """Close the store."""
    journal = Journal.at(arguments["journal"])
    engine = open_engine(arguments)
    ready()
    engine.close()
    journal.done = True


def memory_snapshot(arguments: Arguments, ready: Ready) -> None:
    """Write a store in memory to a file."""
    journal = Journal.at(arguments["journal"])
    engine = MemoryEngine().open()
    for number in range(1, journal.acknowledged + 1):
        perform(engine, number)
    ready()
    engine.snapshot(arguments["target"])
    journal.done = True


def _write(engine: LmdbEngine, arguments: Arguments, ready: Ready) -> None:
    journal = Journal.at(arguments["journal"])
    ready()
    _go_on(engine, journal, arguments)


def _go_on(engine: LmdbEngine, journal: Journal, arguments: Arguments) -> None:
    fault = arguments.get("fault")
    for number in range(journal.acknowledged + 1, arguments["until"] + 1):
        journal.began = number
        if fault == "early":  # the planted fault: acknowledged before it is committed
            journal.acknowledged = number
        if fault == "apart" and deletion(number) is None:  # another: points, then their mark
            engine.write(points(number))
            engine.flush_buffer(ProducerMark(PRODUCER, number))
        else:
            perform(engine, number)
        journal.acknowledged = number
    journal.done = True


def _merge_unlisted() -> None:
    """The planted fault of merges: their first blocks are put without listing them as retired."""

    def put(self: upkeep.Upkeep, merge_: merge.Merge, blocks: list[tuple[bytes, bytes]]) -> None:
        self._store.environment.write(lambda transaction: self._put(transaction, blocks))
        merge_.is_listed = True

    upkeep.Upkeep._list = put  # type: ignore[assignment]  # planted


# What the harness does afterwards, in a child of its own: a broken store may end it by a signal.


def examine(arguments: Arguments, ready: Ready) -> dict[str, int]:
    """Check all that holds of a store whose writer was killed; gives what survived.

    Opened by a reader and by a writer it holds the same: the operations that were
    acknowledged, and of the one under way all or nothing. It passes `check()`, takes further
    operations, and nothing of what was cut short is left.
    """
    journal = Journal.at(arguments["journal"])
    path = Path(arguments["store"])
    lost_max = arguments.get("lost_max", 0)
    allowed = range(max(journal.acknowledged - lost_max, 0), journal.began + 1)
    if arguments.get("target"):
        _examine_snapshot(arguments, journal)
        if arguments["in_memory"]:
            return {"survived": journal.acknowledged, "acknowledged": journal.acknowledged}
    if not path.exists() and not journal.opened and arguments.get("new"):
        survived = 0
    else:
        try:
            with LmdbEngine(str(path), read_only=True) as engine:
                survived = survivors(engine, allowed)
                engine.check()
        except (StorePathError, FormatVersionError):
            created = journal.opened and not lost_max  # that, too, is a commit
            if created or journal.acknowledged or not arguments.get("new"):
                raise
            survived = 0  # it was being created, and a reader is told that there is no store
    merge.TAIL_ROWS_MAX = 0  # type: ignore[misc]  # a tail that a commit took in waits for the next
    if not arguments.get("ballast"):  # which would be merged in thousands of steps
        small_merges()
    with open_engine(arguments) as engine:
        assert survivors(engine, range(survived, survived + 1)) == survived
        engine.check()
    with open_engine(arguments, merging="inline") as engine:
        for number in range(survived + 1, survived + 3):
            perform(engine, number)
        reached = survivors(engine, range(survived + 2, survived + 3))
        engine.check()
        with engine._store.environment.read() as transaction:
            owed = transaction.stat(engine._store.environment.tables[RETIRED])["entries"]
        assert owed == 0, f"{owed} entries are left to sweep"
        assert reached == survived + 2
    assert {entry.name for entry in path.iterdir()} <= FILES
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for entry in path.iterdir():
        assert stat.S_IMODE(entry.stat().st_mode) == 0o600, entry
    return {"survived": survived, "acknowledged": journal.acknowledged}


def _examine_snapshot(arguments: Arguments, journal: Journal) -> None:
    """A snapshot is there as a whole or not at all, and can be taken again."""
    target = Path(arguments["target"])
    count = journal.acknowledged
    in_memory = arguments["in_memory"]
    if target.exists() or journal.done:
        engine: Engine = (
            MemoryEngine(str(target)) if in_memory else LmdbEngine(str(target), read_only=True)
        )
        with engine:
            survivors(engine, range(count, count + 1))
            engine.check()
        if not in_memory:
            assert stat.S_IMODE(target.stat().st_mode) == 0o700
            assert stat.S_IMODE((target / "data.mdb").stat().st_mode) == 0o600
        return
    with MemoryEngine() if in_memory else open_engine(arguments) as engine:
        if in_memory:
            for number in range(1, count + 1):
                perform(engine, number)
        engine.snapshot(str(target))


WORKS: Final[dict[str, Callable[[Arguments, Ready], object]]] = {
    "prepare": prepare,
    "create": create,
    "open": open_existing,
    "flush": flush,
    "bulk": bulk,
    "merging": merging,
    "compact": compact,
    "snapshot": snapshot,
    "close": close,
    "memory_snapshot": memory_snapshot,
    "examine": examine,
}
