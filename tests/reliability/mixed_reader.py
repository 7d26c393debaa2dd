"""Reads what `mixed_victim` writes, from another process, until standard input ends.

    mixed_reader.py PATH

Each read must give one stretch of a writer's points without holes, that ends no earlier than the
one before. It opens the store anew now and then, so that `compact()` finds it alone.
"""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter

from tsengine import Labels, SnapshotExpiredError
from tsengine.backends.lmdb import LmdbEngine

READS = 30
"""Reads of one opening."""


def main() -> None:
    """Read until told to end, then print how often."""
    path = sys.argv[1]
    chance = random.Random(path)
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    seen: Counter[str] = Counter()
    reads = expired = 0
    while not ended.is_set():
        with LmdbEngine(path, read_only=True) as engine:
            for _ in range(READS):
                writer = str(chance.randrange(3))
                try:
                    batches = engine.query(Labels("mixed", writer=writer))
                except SnapshotExpiredError:
                    expired += 1
                    continue
                for batch in batches:
                    times = batch.timestamps
                    assert (times[1:] - times[:-1] == 1).all(), f"writer {writer}: holes"
                    assert (batch.values == times).all(), f"writer {writer}: wrong values"
                    assert times[-1] >= seen[writer], f"writer {writer}: went back"
                    seen[writer] = int(times[-1])
                reads += 1
        ended.wait(0.005)
    sys.stdout.write(f"{reads} {expired}\n")


if __name__ == "__main__":
    main()
