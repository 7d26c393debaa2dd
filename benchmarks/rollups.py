"""What a run of a rollup costs, by how much the source keeps and how far back it looks.

    python -m benchmarks.rollups --series 100 --points 100000 --every 5m

Prints a line for each history: one, two and four times as many points of each series, one a
second, merged, from LMDB into LMDB. Times are the least of `--rounds`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

import tsengine
from tsengine.backends.lmdb import LmdbEngine

BEGIN: Final = 1_700_000_000 * 10**9
SECOND: Final = 10**9
FUNCTIONS: Final = ("mean", "max")


def fill(source: LmdbEngine, labels: list[tsengine.Labels], points: int) -> None:
    """Write so many points of each series, in ten batches, and merge them."""
    chance = np.random.default_rng(0)
    part = points // 10
    for number in range(10):
        times = BEGIN + np.arange(part * number, part * (number + 1)) * SECOND
        times += chance.integers(0, SECOND // 2, part)
        source.write_batch(
            tsengine.GroupedBatch(
                labels,
                np.arange(len(labels) + 1) * part,
                np.tile(times, len(labels)),
                chance.normal(50, 10, part * len(labels)).round(2),
            )
        )
    source.compact()


def least(call: Callable[[], object], rounds: int) -> float:
    """Give the seconds that a call takes, the least of so many."""
    seconds: list[float] = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def measure(series: int, points: int, every: str, rounds: int, folder: Path) -> str:
    """Give the line of one history."""
    labels = [tsengine.Labels("cpu", host=str(number)) for number in range(series)]

    def clock_ns() -> int:
        return BEGIN + points * SECOND

    with (
        LmdbEngine(str(folder / "source"), clock_ns=clock_ns, merging="manual") as source,
        LmdbEngine(str(folder / "target"), clock_ns=clock_ns) as target,
    ):
        fill(source, labels, points)

        def run(lookback: str | None = None) -> tsengine.RollupReport:
            return tsengine.rollup(source, target, every, FUNCTIONS, "cpu", lookback=lookback)

        first = least(run, 1)
        aggregate = least(lambda: source.aggregate("cpu", functions=FUNCTIONS, every=every), rounds)

        def anew(lookback: str | None = None) -> None:
            """As in another process: nothing is known of earlier runs."""
            with LmdbEngine(str(folder / "target"), clock_ns=clock_ns) as opened:
                tsengine.rollup(source, opened, every, FUNCTIONS, "cpu", lookback=lookback)

        again, back = least(anew, rounds), least(lambda: anew("1h"), rounds)

        def late() -> None:
            """One point of each series comes ten minutes late."""
            moment = BEGIN + (points - 600) * SECOND
            source.write([(one, moment, 50.0) for one in labels])
            run()

        run()
        quick = least(late, rounds)
        results = target.count()
    total = series * points
    return (
        f"{total:>12,} points: first {1e3 * first:6.0f} ms, again {1e3 * again:6.0f} ms "
        f"({1e9 * again / total:.1f} ns a point), lookback 1h {1e3 * back:5.0f} ms, "
        f"a late point each, same process {1e3 * quick:.0f} ms; "
        f"aggregate alone {1e3 * aggregate:6.0f} ms; {results:,} results"
    )


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=100)
    parser.add_argument("--points", type=int, default=50_000, help="of each series")
    parser.add_argument("--every", default="5m")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    for times in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            points = times * chosen.points
            print(measure(chosen.series, points, chosen.every, chosen.rounds, Path(folder)))


if __name__ == "__main__":
    main()
