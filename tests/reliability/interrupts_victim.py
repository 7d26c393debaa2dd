"""The victim of `interrupts.py`: works on a store, and is interrupted all the time.

Started as a script with a folder, a seed, seconds and a fault. Prints `ready`, and at the end JSON
with what was found.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time

import tsengine
from tsengine import Labels, WriteBuffer, WriteReceipt

SECONDS_MORE: float = 60.0
"""Beyond its time; what takes longer hangs."""

BUFFERED = Labels("buffered")
DIRECT = Labels("direct")


class LosingBuffer(WriteBuffer):
    """A planted fault: an interrupted flush forgets what it was about."""

    __slots__ = ()

    def flush(
        self, timeout: float | None = None, cancel: threading.Event | None = None
    ) -> WriteReceipt:
        """Commit, or lose all."""
        try:
            return super().flush(timeout, cancel)
        except KeyboardInterrupt:
            self.take_pending()
            raise


class Work:
    """What is done, and what is known of it."""

    def __init__(self, path: str, seed: int, fault: str) -> None:
        self._path = path
        self._chance = random.Random(seed)
        self._engine = self._open()
        make = LosingBuffer if fault else WriteBuffer
        self._buffer = make(self._engine, points_max=50)
        self._moment = 0
        self._given: dict[Labels, set[int]] = {BUFFERED: set(), DIRECT: set()}
        self._taken: dict[Labels, set[int]] = {BUFFERED: set(), DIRECT: set()}

    def _open(self) -> tsengine.Engine:
        return tsengine.open(f"lmdb://{self._path}?duplicate_policy=sum&merging=background")

    def step(self) -> None:
        """Do something."""
        self._moment += 1
        moment = self._moment
        choice = self._chance.random()
        if choice < 0.6:
            self._given[BUFFERED].add(moment)
            self._buffer.write((BUFFERED, moment, 1.0))
            self._taken[BUFFERED].add(moment)
        elif choice < 0.75:
            self._given[DIRECT].add(moment)
            self._engine.write([(DIRECT, moment, 1.0)])
            self._taken[DIRECT].add(moment)
        elif choice < 0.85:
            self._buffer.flush()
        elif choice < 0.93:
            self._compare(DIRECT)
        elif choice < 0.98:
            sum(map(len, self._engine.scan()))
        else:
            self._engine.compact()

    def handle(self) -> None:
        """Do what programs do that handle an interrupt, while it is one."""
        if self._chance.random() < 0.3:
            self._engine.count(BUFFERED)

    def end(self) -> dict[str, int]:
        """Close, and look at what is stored."""
        self._buffer.close()
        self._engine.close()
        with self._open() as self._engine:
            self._engine.check()
            return {labels.id: self._compare(labels) for labels in self._given}

    def _compare(self, labels: Labels) -> int:
        taken = self._taken[labels].copy()
        rows = {
            point.timestamp: point.value
            for batch in self._engine.query(labels)
            for point in batch.points()
        }
        lost = taken - rows.keys()
        assert not lost, f"{labels.id}: {sorted(lost)[:9]} are lost"
        strange = rows.keys() - self._given[labels]
        assert not strange, f"{labels.id}: {sorted(strange)[:9]} were not written"
        twice = [moment for moment, value in rows.items() if value != 1.0]
        assert not twice, f"{labels.id}: {twice[:9]} are stored more than once"
        return len(rows)


class Interrupts:
    """Raises KeyboardInterrupt where one is expected: once, until it has been handled."""

    def __init__(self) -> None:
        self.count = 0
        self.is_expected = False
        signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        if self.is_expected:
            self.is_expected = False
            self.count += 1
            raise KeyboardInterrupt


def main() -> None:
    """Work for a while."""
    path, seed, seconds, fault = sys.argv[1:]
    faulthandler.dump_traceback_later(float(seconds) + SECONDS_MORE, exit=True)
    interrupts = Interrupts()
    work = Work(path, int(seed), fault)
    os.write(1, b"ready\n")
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        try:
            interrupts.is_expected = True
            work.step()
            interrupts.is_expected = False
        except KeyboardInterrupt:
            work.handle()
        except tsengine.StorageError:  # shutil.rmtree makes an OSError of an interrupt
            if interrupts.is_expected:  # but there was none
                raise
            work.handle()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    found = work.end()
    os.write(1, json.dumps({"interrupts": interrupts.count, **found}).encode())


if __name__ == "__main__":
    main()
