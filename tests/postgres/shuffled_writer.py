"""A process that writes keys which others write too, in an order of its own.

    python shuffled_writer.py URL SCHEMA WRITER

It imports nothing of the tests, and ends with an error where a write raises one.
"""

from __future__ import annotations

import sys

import numpy as np

import tsengine
from tsengine.backends.postgres import writing
from tsengine.model import GroupedBatch, Labels

WRITERS = 4
ROUNDS = 75
SERIES = [Labels("shared", number=str(number)) for number in range(40)]


def batches(writer: int) -> list[GroupedBatch]:
    """Give what a writer writes: half of the series in any order, their times in any order."""
    generator = np.random.default_rng(writer)
    made = []
    for number in range(ROUNDS):
        some = generator.permutation(len(SERIES))[:20].tolist()
        times = generator.integers(1, 60, 200)
        values = np.full(200, float(writer * 1_000 + number))
        names = [SERIES[place] for place in some]
        made.append(GroupedBatch(names, np.arange(21) * 10, times, values))
    return made


def main() -> None:
    """Write all of them; writers of odd number copy what others give as arrays."""
    url, schema, writer = sys.argv[1:]
    if int(writer) % 2:
        writing.UNNEST_ROWS_MAX = 50  # type: ignore[misc]  # so that small commits are copied
    with tsengine.open(url, schema=schema) as engine:
        for batch in batches(int(writer)):
            engine.write_batch(batch)


if __name__ == "__main__":
    main()
