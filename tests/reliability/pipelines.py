"""Pipelines: a store and all that works on it, killed (kill -9) at random, life after life.

Threads write through one buffer, merges run in the background, deletes and compactions between
them (`pipeline_victim.py`). After each kill nothing acknowledged is lost, no series has a hole, and
no point counts twice.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Final

from tests.reliability.forking import Template
from tests.reliability.pipeline_victim import THREADS, Progress

VICTIM: Final = Path(__file__).with_name("pipeline_victim.py")

LIFE_SECONDS_MAX: Final = 0.5
"""Longest life: some hundred commits and several merges and compactions."""


class Pipeline:
    """One store and its lives.

    Args:
        template: of `pipeline_victim.py`.
        folder: for the store.
        seed: of all chance.
        fault: a bug planted in the victim.
    """

    def __init__(
        self, template: Template, folder: Path, seed: int, *, fault: str | None = None
    ) -> None:
        self.progress = Progress.at(folder / "progress")
        self._template = template
        self._chance = random.Random(seed)
        self._arguments = {
            "store": str(folder / "store"),
            "progress": str(folder / "progress"),
            "fault": fault,
        }

    @property
    def acknowledged(self) -> int:
        """Points acknowledged in all lives."""
        return sum(self.progress.acknowledged[thread] for thread in range(THREADS))

    def life(self) -> None:
        """Let it live for a while, kill it, and examine what is left.

        Raises:
            AssertionError: a promise is broken.
        """
        chance = self._chance
        pid = self._template.start("live", **self._arguments, seed=chance.random())
        seconds = chance.uniform(0, LIFE_SECONDS_MAX)
        self._template.go()
        time.sleep(seconds)  # any moment is a good one
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        ended = self._template.end()
        place = f"life {self.progress.lives}, killed after {seconds:.4f} s"
        if ended.status != -signal.SIGKILL:
            raise AssertionError(f"{place}: ended by itself: {ended.error}")
        try:
            self._template.run("examine", **self._arguments, compacting=chance.random() < 0.1)
        except AssertionError as error:
            raise AssertionError(f"{place}\n{error}") from error


def torture(seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Kill one store's pipeline again and again."""
    end = time.monotonic() + seconds
    with Template(VICTIM) as template:
        pipeline = Pipeline(template, folder, seed)
        lives = 0
        while time.monotonic() < end:
            try:
                pipeline.life()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
            lives += 1
        return {
            "kills": lives,
            "points_acknowledged": pipeline.acknowledged,
            "compactions": pipeline.progress.compactions,
            "acknowledged_lost": 0,
            "holes": 0,
            "stores_broken": 0,
        }
