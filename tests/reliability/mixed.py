"""Mixed: one store that lives long, with everything at once.

A process with many threads writes, flushes, deletes, compacts, copies, reads and checks, while
another process reads, the disk is full for a while, and kill -9 ends it at any moment. Then the
store is opened and held to what was promised, and the next life goes on from there.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.reliability.mixed_victim import WRITERS
from tsengine import Labels
from tsengine.backends.lmdb import LmdbEngine

VICTIM: Final = Path(__file__).with_name("mixed_victim.py")
READER: Final = Path(__file__).with_name("mixed_reader.py")

DISK_BYTES: Final = 128 << 20
"""Size of the disk in memory that can be made full: far above what the store takes."""

FULL_SECONDS: Final = 0.3
LIFE_SECONDS_MAX: Final = 3.0
PATIENCE_SECONDS: Final = 120.0


@dataclass
class Ledger:
    """What the victim told, over all lives.

    Attributes:
        flushed: by writer, the last point known to be stored.
        deleting: by writer, below what points were to be deleted.
        deleted: by writer, below what points are known to be deleted.
        told: how often it told what.
    """

    flushed: Counter[int] = field(default_factory=Counter)
    deleting: Counter[int] = field(default_factory=Counter)
    deleted: Counter[int] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)

    def take(self, line: str) -> None:
        """Note a line; what is not a promise is counted only."""
        what, *words = line.split(maxsplit=1)
        self.told[what] += 1
        if what in {"flushed", "deleting", "deleted"}:
            writer, number = map(int, words[0].split())
            getattr(self, what)[writer] = number


class Mixed:
    """A store and its lives.

    Args:
        folder: empty; the store is made in it, on a disk of its own where there may be one.
        seed: of all that is random but the order in which threads take turns.
        fault: what is wrong with the victim; nothing by default.
    """

    def __init__(self, folder: Path, seed: int, fault: str = "") -> None:
        self.path = folder / "store"
        self.ledger = Ledger()
        self.reads = 0
        self._folder = folder
        self._seed = seed
        self._fault = fault
        self._chance = random.Random(seed)
        self._log = folder.with_name(f"{folder.name}.log")
        self._lives = 0

    def live(self, seconds: float, *, may_fill: bool) -> None:
        """Let it work for a while, kill it, and hold the store to its promises.

        Raises:
            AssertionError: one is broken.
        """
        self._lives += 1
        with self._log.open("w", encoding="utf-8") as log:
            arguments = [str(self.path), str(self._seed + self._lives), self._fault]
            victim = subprocess.Popen(
                [sys.executable, str(VICTIM), *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            begun = threading.Event()
            telling = threading.Thread(target=self._listen, args=(victim, begun))
            telling.start()
            try:
                assert begun.wait(PATIENCE_SECONDS), f"nothing was flushed: {self._said()}"
                with self._reader():
                    self._disturb(victim, seconds, may_fill=may_fill)
            finally:
                victim.kill()
                victim.wait()
                telling.join()
        assert victim.returncode == -9, f"ended by itself, {victim.returncode}: {self._said()}"
        self.check()

    def check(self) -> None:
        """Hold the store to what was told of it.

        Raises:
            AssertionError: a promise is broken.
        """
        ledger = self.ledger
        with LmdbEngine(str(self.path), merging="manual") as engine:
            engine.check()
            for writer in range(WRITERS):
                (batch,) = engine.query(Labels("mixed", writer=str(writer)))
                times = batch.timestamps
                first, last = int(times[0]), int(times[-1])
                told = f"seed {self._seed}, writer {writer}: {first} to {last} are there, {ledger}"
                assert last - first + 1 == len(times), f"holes; {told}"
                assert (batch.values == times).all(), f"wrong values; {told}"
                assert last >= ledger.flushed[writer], f"flushed points are lost; {told}"
                assert first >= ledger.deleted[writer], f"deleted points are back; {told}"
                assert first <= max(ledger.deleting[writer], 1), f"more was deleted; {told}"

    def _listen(self, victim: subprocess.Popen[str], begun: threading.Event) -> None:
        assert victim.stdout is not None
        lines = 0
        with victim.stdout:
            for line in victim.stdout:
                if line.endswith("\n"):  # else the kill cut it short
                    self.ledger.take(line.rstrip("\n"))
                    lines += 1
                    if lines > WRITERS:
                        begun.set()

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8")[-4000:]

    def _disturb(self, victim: subprocess.Popen[str], seconds: float, *, may_fill: bool) -> None:
        """Wait, with a full disk for a part of it; ends early with the victim."""
        before = seconds * self._chance.random()
        if not may_fill:
            _wait(victim, seconds)
            return
        _wait(victim, before)
        with full_disk(self._folder):
            _wait(victim, min(FULL_SECONDS, seconds))
        _wait(victim, max(seconds - before, 0.0))

    @contextmanager
    def _reader(self) -> Iterator[None]:
        """Have another process read meanwhile."""
        reader = subprocess.Popen(
            [sys.executable, str(READER), str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield
            output, errors = reader.communicate(timeout=PATIENCE_SECONDS)
            assert reader.returncode == 0, f"seed {self._seed}: a reader failed: {errors[-4000:]}"
            self.reads += int(output.split()[0])
        finally:
            reader.kill()
            reader.communicate()


def _wait(victim: subprocess.Popen[str], seconds: float) -> None:
    try:
        victim.wait(seconds)
    except subprocess.TimeoutExpired:
        return


# A disk that can be full.


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk in memory on a folder, where root may; gives whether it is there."""
    if os.geteuid() != 0:
        yield False
        return
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tsengine-mixed", str(folder)],
        capture_output=True,
        check=False,
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Have a file take all that is left of a disk."""
    ballast = folder / "ballast"
    try:
        with ballast.open("wb") as file:
            with suppress(OSError):  # the victim may have taken some of it by now
                room = os.statvfs(folder)
                os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)
            yield
    finally:
        ballast.unlink()


def torture(seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Live, die and check for a while; give how often, and what was done."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    disk = folder / "disk"
    disk.mkdir()
    lives = 0
    with small_disk(disk) as can_fill:
        mixed = Mixed(disk, seed)
        while lives == 0 or time.monotonic() < end:
            mixed.live(
                LIFE_SECONDS_MAX * chance.random(), may_fill=can_fill and chance.random() < 0.4
            )
            lives += 1
    points = sum(mixed.ledger.flushed.values())
    return {
        "lives": lives,
        "disk": "tmpfs that is made full" if can_fill else "never full: needs root",
        "points_flushed": points,
        "reads_elsewhere": mixed.reads,
        "told": dict(sorted(mixed.ledger.told.items())),
        "lost": 0,
    }
