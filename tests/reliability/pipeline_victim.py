"""Pipeline victim: threads write through one buffer, flush, delete and compact until killed.

Each thread writes or submits the points 1, 2, 3, … of a series of its own, so that what survives is
judged by counting; in its next life it goes on where the store ends. Values are the numbers of the
points, and the duplicate policy is `sum`: a commit that counts twice shows. Commits fail now and
then, before and after their effect, and large ones are refused. Run by `template.py`.
"""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Callable, Mapping, MutableSequence
from typing import Any, Final

from tests.reliability.history import Told
from tsengine.backends.lmdb import LmdbEngine, merge
from tsengine.buffer import WriteBuffer
from tsengine.buffering.acknowledgement import Acknowledgement
from tsengine.engine import Engine
from tsengine.errors import BatchTooLargeError, StorageError
from tsengine.model import Labels, ProducerMark, WriteReceipt
from tsengine.retry import RetryPolicy
from tsengine.testing.faults import FaultyHandler

THREADS: Final = 3
SERIES: Final = [Labels("written", thread=str(thread)) for thread in range(THREADS)]
PRODUCER: Final = "pipeline"


class Progress(Told):
    """What the threads tell, each in a place of its own.

    Attributes:
        given: the last point that was about to be given to the buffer.
        acknowledged: the last point before a flush that returned.
        deleting: deletes of all points before this were begun.
        deleted: such deletes returned.
        lives: how often the store was opened.
        compactions: how many compactions returned.
    """

    given: MutableSequence[int]
    acknowledged: MutableSequence[int]
    deleting: MutableSequence[int]
    deleted: MutableSequence[int]
    lives: int
    compactions: int

    _fields_ = (
        ("given", ctypes.c_uint64 * THREADS),
        ("acknowledged", ctypes.c_uint64 * THREADS),
        ("deleting", ctypes.c_uint64 * THREADS),
        ("deleted", ctypes.c_uint64 * THREADS),
        ("lives", ctypes.c_uint64),
        ("compactions", ctypes.c_uint64),
    )


class Flaky(FaultyHandler):
    """Fails now and then, before or after a commit took effect, and takes no large batches.

    Args:
        engine: does the work.
        chance: when.
    """

    def __init__(self, engine: Engine, chance: random.Random) -> None:
        super().__init__(engine)
        self._chance = chance

    def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
        """Commit, or fail before or after it."""
        fate = self._chance.random()
        if self.handler.staged_points > 20 and fate < 0.2:
            self.handler.discard_buffer()
            raise BatchTooLargeError("so many at once")
        if fate > 0.95:
            self.handler.discard_buffer()
            raise StorageError("before")
        receipt = super().flush_buffer(mark)
        if fate > 0.9:
            raise StorageError("after")
        return receipt


def live(arguments: Mapping[str, Any], ready: Callable[[], None]) -> None:
    """Write, flush, delete and compact until the end."""
    chance = random.Random(arguments["seed"])
    if chance.random() < 0.7:  # else as it is outside of tests
        merge.TAIL_ROWS_MAX = chance.choice([0, 64])  # type: ignore[misc]  # Final for the program
        merge.SMALL_ROWS = 0  # type: ignore[misc]
        merge.RUNS_DUE = 4  # type: ignore[misc]
        merge.RUNS_MERGED = 3  # type: ignore[misc]
        merge.STEP_ROWS = 64  # type: ignore[misc]
    progress = Progress.at(arguments["progress"])
    ready()
    engine = LmdbEngine(arguments["store"], duplicate_policy="sum", block_points=64).open()
    progress.lives += 1
    buffer = WriteBuffer(
        Flaky(engine, random.Random(chance.random())),
        points_max=chance.choice([7, 100]),
        age_max=chance.choice([None, 0.002]),
        background=chance.random() < 0.5,
        producer=PRODUCER,
        retry=RetryPolicy(max_retries=100, backoff_min=0.0, backoff_max=0.0, min_batch_size=3),
    )
    failed: list[BaseException] = []

    def guarded(thread: int, seed: float) -> None:
        try:
            _write(engine, buffer, progress, thread, random.Random(seed), arguments.get("fault"))
        except BaseException as error:  # noqa: BLE001  # told by the main thread
            failed.append(error)

    for thread in range(THREADS):
        threading.Thread(target=guarded, args=(thread, chance.random()), daemon=True).start()
    pause = threading.Event()
    while not failed:
        if chance.random() < 0.5:
            engine.compact()
            progress.compactions += 1
        pause.wait(chance.uniform(0, 0.05))
    raise failed[0]


def _write(
    engine: Engine,
    buffer: WriteBuffer,
    progress: Progress,
    thread: int,
    chance: random.Random,
    fault: str | None,
) -> None:
    labels = SERIES[thread]
    last = engine.latest(labels)
    number = last[0].timestamp if last else progress.deleted[thread]
    while True:
        waits = chance.random() < 0.3
        futures: list[Acknowledgement] = []
        for _ in range(chance.choice([1, 5, 60])):
            number += 1
            progress.given[thread] = max(number, progress.given[thread])
            if waits:
                futures.append(buffer.submit((labels, number, float(number))))
            else:
                buffer.write((labels, number, float(number)))
        if fault == "early":  # the planted fault
            progress.acknowledged[thread] = number
        for future in futures:
            future.result()
        if not waits:
            buffer.flush()
        progress.acknowledged[thread] = number
        if chance.random() < 0.1:
            before = max(number - chance.randint(0, 100), progress.deleting[thread], 1)
            progress.deleting[thread] = before
            engine.delete(labels, 1, before)
            progress.deleted[thread] = before


def examine(arguments: Mapping[str, Any], ready: Callable[[], None]) -> None:
    """Check that a prefix of each series is there, but for what was deleted, as often as given."""
    progress = Progress.at(arguments["progress"])
    if not progress.lives:
        return
    with LmdbEngine(arguments["store"], read_only=True) as engine:
        _examine(engine, progress)
    with LmdbEngine(arguments["store"], merging="manual") as engine:
        _examine(engine, progress)
        if arguments["compacting"]:
            engine.compact()
            _examine(engine, progress)


def _examine(engine: Engine, progress: Progress) -> None:
    engine.check()
    for thread, labels in enumerate(SERIES):
        result = engine.query(labels)
        timestamps = result[0].timestamps.tolist() if len(result) else []
        values = result[0].values.tolist() if len(result) else []
        acknowledged, given = progress.acknowledged[thread], progress.given[thread]
        starts = {max(progress.deleted[thread], 1), max(progress.deleting[thread], 1)}
        told = (
            f"thread {thread}: given {given}, acknowledged {acknowledged}, deleted before {starts}"
        )
        if not timestamps:
            # All that was acknowledged may be deleted but for the last, which never is.
            assert not acknowledged, f"{told}: nothing is there"
            continue
        first, last = timestamps[0], timestamps[-1]
        assert first in starts, f"{told}: begins at {first}"
        assert acknowledged <= last <= given, f"{told}: ends at {last}"
        assert timestamps == list(range(first, last + 1)), f"{told}: has holes"
        assert values == [float(number) for number in timestamps], f"{told}: has other values"


WORKS: Final = {"live": live, "examine": examine}
