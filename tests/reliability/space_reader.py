"""Opens a store for reading; for each line it reads, tells the last commit that it sees."""

from __future__ import annotations

import sys

from tsengine import Labels
from tsengine.backends.lmdb import LmdbEngine


def main() -> None:
    """Answer until standard input ends."""
    with LmdbEngine(sys.argv[1], read_only=True) as engine:
        _tell("open")
        for _ in sys.stdin:
            (point,) = engine.latest(Labels("commits"))
            _tell(str(point.timestamp))


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
