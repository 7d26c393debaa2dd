"""Rollups: a store rolled up into another, killed (kill -9) at random, life after life.

After each kill one more run makes the target what the source gives, and another one changes
nothing (`rollups_victim.py`).
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
from tests.reliability.rollups_victim import Progress

VICTIM: Final = Path(__file__).with_name("rollups_victim.py")

LIFE_SECONDS_MAX: Final = 0.4
"""Longest life: about what the first rollup takes."""


class Rollups:
    """A source, a target, and the lives of what rolls up.

    Args:
        template: of `rollups_victim.py`.
        folder: for the stores.
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
            "source": str(folder / "source"),
            "target": str(folder / "target"),
            "progress": str(folder / "progress"),
            "fault": fault,
        }
        template.run("build", **self._arguments)

    def life(self) -> None:
        """Let it roll up for a while, kill it, and now and then examine what is left.

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
        if chance.random() < 0.5:  # else the next life goes on with what this one left
            try:
                self._template.run("examine", **self._arguments)
            except AssertionError as error:
                raise AssertionError(f"{place}\n{error}") from error


def torture(seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Kill rollups of one store again and again."""
    end = time.monotonic() + seconds
    with Template(VICTIM) as template:
        rollups = Rollups(template, folder, seed)
        lives = 0
        while time.monotonic() < end:
            try:
                rollups.life()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
            lives += 1
        return {"kills": lives, "rollups_completed": rollups.progress.runs, "results_wrong": 0}
