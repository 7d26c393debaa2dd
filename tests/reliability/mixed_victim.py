"""Works on a store with many threads at once, and tells what it did, until it is killed.

Run as a program by `mixed`:

    mixed_victim.py PATH SEED FAULT

Writer w writes 1, 2, 3, … at those timestamps into `mixed{writer="w"}` and goes on where the
store ends. Each line it prints is a promise, said when the call returned:

    flushed w n     everything up to n is stored
    deleted w n     everything below n is deleted
"""

from __future__ import annotations

import random
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tsengine import Engine, Labels, StorageFullError, WriteBuffer
from tsengine.backends.lmdb import LmdbEngine

WRITERS: Final = 3
KEPT: Final = 20_000
"""Points that a writer leaves when it deletes the old ones."""

PAUSE_SECONDS: Final = 0.01
"""Between two tries on a full disk."""

FORGETS_TO_FLUSH: Final = "forgets to flush"
"""A planted fault: says that everything is stored and has it in memory."""


class Victim:
    """The threads, and what they share."""

    def __init__(self, engine: Engine, seed: int, fault: str) -> None:
        self.engine = engine
        self.seed = seed
        self.fault = fault
        self._telling = threading.Lock()  # guards standard output
        self._never = threading.Event()

    def tell(self, *words: object) -> None:
        """Print a line, whole."""
        with self._telling:
            sys.stdout.write(" ".join(map(str, words)) + "\n")
            sys.stdout.flush()

    def work(self) -> None:
        """Start the threads and wait for the first that fails, whose error threading prints."""
        failed = threading.Event()

        def guarded(do: Callable[[random.Random], None], number: int) -> None:
            chance = random.Random(self.seed * 100 + number)
            try:
                while True:
                    self._once(do, chance)
            finally:
                failed.set()

        tasks = [self.writer(number) for number in range(WRITERS)]
        tasks += [self.compact, self.read, self.copy]
        for number, task in enumerate(tasks):
            threading.Thread(target=guarded, args=(task, number), daemon=True).start()
        failed.wait()

    def _once(self, do: Callable[[random.Random], None], chance: random.Random) -> None:
        try:
            do(chance)
        except StorageFullError:
            self.tell("full")
            self._never.wait(PAUSE_SECONDS)

    def writer(self, number: int) -> Callable[[random.Random], None]:
        """Give a task that writes some points, flushes, and now and then deletes the oldest."""
        labels = Labels("mixed", writer=str(number))
        latest = self.engine.latest(labels)
        last = latest[0].timestamp if latest else 0
        buffer = WriteBuffer(self.engine, producer=f"writer-{number}", points_max=5_000)

        def write(chance: random.Random) -> None:
            nonlocal last
            for _ in range(chance.choice([1, 10, 1_000, 3_000])):
                buffer.write((labels, last + 1, float(last + 1)))
                last += 1
            if self.fault != FORGETS_TO_FLUSH:
                buffer.flush()
            self.tell("flushed", number, last)
            if chance.random() < 0.05 and last > KEPT:
                below = last - KEPT
                self.tell("deleting", number, below)
                self.engine.delete(labels, None, below)
                self.tell("deleted", number, below)

        return write

    def compact(self, chance: random.Random) -> None:
        """Compact, rarely."""
        self._never.wait(chance.random())
        self.engine.compact()
        self.tell("compacted")

    def read(self, chance: random.Random) -> None:
        """Read a writer's series: one stretch without holes."""
        labels = Labels("mixed", writer=str(chance.randrange(WRITERS)))
        for batch in self.engine.query(labels):
            times = batch.timestamps
            assert (times[1:] - times[:-1] == 1).all(), f"{labels.id} has holes"
            assert (batch.values == times).all(), f"{labels.id} has wrong values"
        self._never.wait(PAUSE_SECONDS)

    def copy(self, chance: random.Random) -> None:
        """Write a snapshot beside, check it, and check the store."""
        self._never.wait(chance.random())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "copy"
            self.engine.snapshot(str(path))
            with LmdbEngine(str(path), read_only=True) as copied:
                copied.check()
        self.engine.check()
        self.tell("copied")


def main() -> None:
    """Open the store and work on it."""
    path, seed, fault = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    merging = random.Random(seed).choice(["background", "inline"])
    engine = LmdbEngine(path, merging=merging, snapshot_age_max=1).open()
    Victim(engine, seed, fault).work()


if __name__ == "__main__":
    main()
