"""One writer and several readers, each a process, while some are killed and some are stopped.

Every read is held against the history: it shows the store as some operation left it, all series of
the same moment; none before what was acknowledged when it began, or what this reader had seen
already; none behind what the writer had begun when it ended. Killed writers lose nothing that
was acknowledged.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.reliability.processes_victim import (
    WORDS,
    History,
    Word,
    all_rows,
    gathered,
    shared_words,
)
from tsengine.backends.lmdb import LmdbEngine

VICTIM: Final = Path(__file__).with_name("processes_victim.py")

READERS: Final = 3

PATIENCE_SECONDS: Final = 60.0
"""How long a process may take to end, or the others to do anything at all."""


class Run:
    """A writer and its readers over one store.

    Args:
        folder: an empty folder.
        seed: of what is done to the processes, and of what they do.
        manner: "churn" for readers that come and go while the writer compacts all the time; or a
            planted fault, "stale" and "torn" of the readers, "early" of the writer.
    """

    def __init__(self, folder: Path, seed: int, *, manner: str = "") -> None:
        self._folder = folder
        self._seed = seed
        self._rng = random.Random(seed)
        self._manner = manner
        self._processes: dict[int, subprocess.Popen[bytes]] = {}  # by place; the writer is at 0
        self._started = 0
        self.killed = {"writers": 0, "readers": 0, "stopped": 0}
        words = folder / "words"
        words.write_bytes(bytes(8 * WORDS))
        self.words = shared_words(words)

    def drive(self, *, operations: int, seconds: float, least: int = 0) -> None:
        """Let the processes work, and disturb them, until they have done enough.

        Args:
            operations: of the writer, and reads.
            seconds: stop by then,
            least: but not before so many operations and reads, and a file that was swapped.

        Raises:
            AssertionError: a process saw what it must not see, or hangs.
        """
        deadline = time.monotonic() + seconds
        try:
            self._start(0)
            while self.words[Word.ACKNOWLEDGED] == 0:
                self._check(0)
                time.sleep(0.01)
            for place in range(1, READERS + 1):
                self._start(place)
            while (self.done() < operations and time.monotonic() < deadline) or not self._has_done(
                least
            ):
                time.sleep(self._rng.uniform(0.02, 0.2))
                for place in self._processes:
                    self._check(place)
                self._disturb()
            self._end()
        finally:
            for process in self._processes.values():
                process.kill()  # also one that was stopped
                process.wait()

    def done(self) -> int:
        """How many operations and reads were done so far."""
        return self.words[Word.ACKNOWLEDGED] + self.reads()

    def _has_done(self, least: int) -> bool:
        words = self.words
        enough = words[Word.ACKNOWLEDGED] >= least and self.reads() >= least
        return not least or (enough and words[Word.COMPACTED] > 0)

    def reads(self) -> int:
        """How many reads were found right."""
        return sum(self.words[Word.READS + place] for place in range(1, READERS + 1))

    def _disturb(self) -> None:
        deed = self._rng.random()
        place = self._rng.randint(1, READERS)
        process = self._processes[place]
        if deed < 0.05:
            self._kill(0)
            self.killed["writers"] += 1
        elif deed < 0.15:
            self._kill(place)
            self.killed["readers"] += 1
        elif deed < 0.25:
            process.send_signal(signal.SIGSTOP)
            time.sleep(self._rng.uniform(0, 0.3))
            if self._rng.random() < 0.3:
                self._kill(place)
            else:
                process.send_signal(signal.SIGCONT)
            self.killed["stopped"] += 1
        elif deed < 0.4:
            self.words[Word.RESTING] = 1 - self.words[Word.RESTING]

    def _start(self, place: int) -> None:
        self._started += 1
        role = "reader" if place else "writer"
        arguments = [
            role,
            str(self._folder / "store"),
            str(self._folder / "words"),
            str(place),
            str(self._seed * 1_000 + self._started),
            self._manner,
        ]
        with self._log(place).open("wb") as log:
            self._processes[place] = subprocess.Popen(
                [sys.executable, str(VICTIM), *arguments], stderr=log, stdin=subprocess.DEVNULL
            )

    def _kill(self, place: int) -> None:
        process = self._processes[place]
        process.kill()
        process.wait(PATIENCE_SECONDS)
        if process.returncode != -signal.SIGKILL:
            self._check(place)
        self._start(place)

    def _check(self, place: int) -> None:
        code = self._processes[place].poll()
        assert code is None or (code == 0 and self.words[Word.STOPPING]), (
            f"seed {self._seed}: the {'reader' if place else 'writer'} at place {place} ended with "
            f"{code}:\n{self._log(place).read_text()}"
        )

    def _log(self, place: int) -> Path:
        return self._folder / f"log-{place}"

    def _end(self) -> None:
        self.words[Word.STOPPING] = 1
        for place, process in self._processes.items():
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"seed {self._seed}: place {place} hangs") from None
            self._check(place)

    def check_end(self) -> None:
        """Check what is left in the store when all have ended."""
        history = History()
        history.advance(self.words[Word.ACKNOWLEDGED])
        with LmdbEngine(str(self._folder / "store")) as engine:
            engine.check()
            assert gathered(engine.query()) == all_rows(history), f"seed {self._seed}"
            assert engine.compact().reason == "", f"seed {self._seed}: somebody holds the store"
            assert gathered(engine.query()) == all_rows(history), f"seed {self._seed}"

    def figures(self) -> dict[str, object]:
        """Say what was done."""
        return {
            "operations": self.words[Word.ACKNOWLEDGED],
            "reads": self.reads(),
            "scans expired": self.words[Word.EXPIRED],
            "files swapped": self.words[Word.COMPACTED],
            **self.killed,
        }


def torture(seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Do and check 50,000 operations, or as many as there is time for."""
    figures: dict[str, object] = {}
    for manner, share in (("", 0.8), ("churn", 0.2)):
        (folder / f"manner-{manner}").mkdir()
        run = Run(folder / f"manner-{manner}", seed, manner=manner)
        run.drive(operations=int(50_000 * share), seconds=seconds * share)
        run.check_end()
        figures[manner or "long-lived readers"] = run.figures()
    return figures
