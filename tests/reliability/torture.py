"""Torture: everything that may go wrong, at random, for as long as it is given.

    make torture SEED=7 MINUTES=10
    python -m tests.reliability.torture --seed 7 --minutes 10 --topics kills,disk

Each topic runs in a process of its own, so that one that dies by a signal is told from one
that finds a broken promise, and neither ends the others. Progress goes to standard error, the
figures as JSON to standard output. The exit code is 1 where a promise was broken; the seed that
is told repeats it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

TOPICS: Final = (
    *("kills", "pipelines", "copies", "rollups", "power_cut", "disk", "damage"),
    *("processes", "threads", "space", "lockstep", "mixed"),
    *("memory_errors", "interrupts"),
)
"""Modules of this folder. Each has `torture(seed, seconds, folder)`, and `why_not()` where it
needs what a machine may not have."""

ROOT: Final = Path(__file__).resolve().parents[2]

GRACE_SECONDS: Final = 300.0
"""How much longer than it was given a topic may take before that counts as hanging."""

BROKEN: Final = "broken"
CANNOT_RUN: Final = "cannot run"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the topics and print their figures; gives the exit code."""
    chosen = _parser().parse_args(arguments)
    if chosen.one:
        return _run_here(chosen.one, chosen.seed, chosen.seconds, chosen.folder)
    seed = int.from_bytes(os.urandom(4)) if chosen.seed is None else chosen.seed
    seconds = 60 * chosen.minutes if chosen.seconds is None else chosen.seconds
    figures = run(seed, seconds, chosen.topics, chosen.folder)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 1 if figures[BROKEN] else 0


def run(seed: int, seconds: float, topics: Sequence[str], folder: Path | None) -> dict[str, object]:
    """Give each topic its share of the time, in random order; give what all of them found."""
    chance = random.Random(seed)
    order = list(topics)
    chance.shuffle(order)
    started = time.monotonic()
    found: dict[str, dict[str, object]] = {}
    for place, topic in enumerate(order):
        left = max(seconds - (time.monotonic() - started), 0.0)
        share = left / (len(order) - place)
        _say(f"{topic}: {share:.0f} s, seed {seed}")
        with tempfile.TemporaryDirectory(prefix=f"torture-{topic}-", dir=folder) as own:
            found[topic] = run_topic(topic, seed, share, Path(own))
        for state in (BROKEN, CANNOT_RUN):
            if state in found[topic]:
                _say(f"{topic}: {state}: {found[topic][state]}")
    return {
        "seed": seed,
        "seconds": round(time.monotonic() - started),
        "machine": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "as_root": os.geteuid() == 0,
        BROKEN: sorted(topic for topic in found if BROKEN in found[topic]),
        CANNOT_RUN: sorted(topic for topic in found if CANNOT_RUN in found[topic]),
        "topics": dict(sorted(found.items())),
    }


def run_topic(topic: str, seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Run one topic in a process of its own; give its figures, or what became of it."""
    # With our own path, so that it imports the same tsengine, and the project behind it.
    path = [*sys.path, str(ROOT)]
    code = f"import sys; sys.path[:] = {path!r}; import tests.reliability.torture as torture"
    arguments = ["--one", topic, "--seed", seed, "--seconds", seconds, "--folder", folder]
    started = time.monotonic()
    # Files and not pipes, which a process that the topic left behind would keep open.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", f"{code}; sys.exit(torture.main())", *map(str, arguments)],
            stdout=output,
            stderr=errors,
            start_new_session=True,  # so that what it started can be ended with it
        )
        try:
            process.wait(seconds + GRACE_SECONDS)
            became = ""
        except subprocess.TimeoutExpired:
            became = f"it had {seconds:.0f} s and hangs after {GRACE_SECONDS:.0f} more; "
        finally:
            _end_session(process)
        if not became and process.returncode < 0:
            became = f"died by {signal.Signals(-process.returncode).name}; "
        output.seek(0)
        errors.seek(0)
        told, complaints = output.read().decode(), errors.read().decode(errors="replace")
    taken = {"took_seconds": round(time.monotonic() - started)}
    if process.returncode:
        return {BROKEN: f"seed {seed}: {became}{complaints[-4000:]}", **taken}
    figures: dict[str, object] = json.loads(told.splitlines()[-1])
    return {**figures, **taken}


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """End a topic and what it left running."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of it has ended
    process.wait()


def _run_here(topic: str, seed: int, seconds: float, folder: Path) -> int:
    """Run one topic in this process, and print its figures as one line."""
    module = importlib.import_module(f"tests.reliability.{topic}")
    why_not = module.why_not() if hasattr(module, "why_not") else ""
    try:
        figures = {CANNOT_RUN: why_not} if why_not else module.torture(seed, seconds, folder)
    except Exception:  # noqa: BLE001  # whatever it is, it is told, and the others go on
        traceback.print_exc()
        return 1
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.reliability.torture",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, help="of all that is random (a random one)")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all topics (10)")
    parser.add_argument("--seconds", type=float, help="instead of minutes")
    parser.add_argument("--topics", type=_topics, default=TOPICS, metavar=",".join(TOPICS))
    parser.add_argument("--folder", type=Path, help="a folder on a disk, for the stores")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def _topics(text: str) -> tuple[str, ...]:
    topics = tuple(text.split(","))
    if unknown := [topic for topic in topics if topic not in TOPICS]:
        raise argparse.ArgumentTypeError(f"no topic {unknown[0]}; there are {', '.join(TOPICS)}")
    return topics


if __name__ == "__main__":
    sys.exit(main())
