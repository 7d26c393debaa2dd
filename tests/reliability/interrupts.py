"""Interrupts: Ctrl-C at random moments of writes, flushes, reads and compactions.

What was taken before is stored once, nothing else is, and nothing hangs: neither what comes
after the interrupt nor what is done while it is being handled.

CPython leaves a gap: an interrupt between the first instruction of a Python function that is to
unlock something and its second lets the lock be. Our locks are taken and given back by `with` on
a lock itself, which has none; those inside `threading.Condition` have.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

VICTIM: Final = Path(__file__).with_name("interrupts_victim.py")
PAUSE_SECONDS_MAX: Final = 0.02
"""Between interrupts: about a hundred a second."""

SECONDS_MORE: Final = 120.0
"""Beyond the time of a victim; it ends itself before, with its stacks."""


def run(seed: int, folder: Path, seconds: float, fault: str = "") -> dict[str, int]:
    """Interrupt a victim for a while; give what it counted.

    Raises:
        AssertionError: it lost something or hung.
    """
    chance = random.Random(seed)
    arguments = [str(folder / "store"), str(seed), str(seconds), fault]
    with subprocess.Popen(
        [sys.executable, str(VICTIM), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as victim:
        try:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "ready\n", victim.communicate()[1]
            end = time.monotonic() + seconds
            while time.monotonic() < end and victim.poll() is None:
                time.sleep(chance.uniform(0, PAUSE_SECONDS_MAX))
                victim.send_signal(signal.SIGINT)
            found, complaints = victim.communicate(timeout=SECONDS_MORE)
        finally:
            victim.kill()
    assert not victim.returncode, f"seed {seed}: {victim.returncode}, {complaints[-3_000:]}"
    counted: dict[str, int] = json.loads(found)
    return counted


def torture(seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Interrupt one victim after the other; give the sums of what they counted."""
    total = {"interrupts": 0, "rows": 0}
    number = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        here = folder / f"interrupts-{number}"
        here.mkdir()
        counted = run(seed + number, here, min(10.0, seconds))
        interrupts = counted.pop("interrupts")
        total["interrupts"] += interrupts
        total["rows"] += sum(counted.values())
        number += 1
    return {**total}
