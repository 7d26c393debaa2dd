"""Wide runs: series that share their timestamps, which are encoded once for all of them.

Values stay raw: packing would take most of the time of a large write, and merging does it later.
Nor are blocks gathered before they are put: each is made in memory that is warm from the one
before, which takes a tenth of the time of eighty megabytes that are touched for the first time.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from tsengine.backends.lmdb.blocks import HEADER_BYTES, SharedTimes, encode_shared
from tsengine.backends.lmdb.layout import BLOCK_KEY_BYTES
from tsengine.backends.lmdb.merge import Totals
from tsengine.model import Int64Array, WideBatch


class WideBlocks:
    """The blocks of a run of series that share their timestamps; made anew at each iteration.

    Args:
        run: number of the run.
        series: int64[k], ascending.
        batch: of these series; timestamps strictly increase.
        block_points: most rows of a block.
    """

    def __init__(self, run: int, series: Int64Array, batch: WideBatch, block_points: int) -> None:
        rows = len(batch.timestamps)
        parts = -(-rows // block_points)
        cuts = [rows * part // parts for part in range(parts + 1)]
        self._run = run
        self._series = series.tolist()
        self._columns = batch.columns
        self._shared = [
            (slice(*cut), SharedTimes(batch.timestamps[slice(*cut)])) for cut in pairwise(cuts)
        ]

    def totals(self) -> Totals:
        """Give what the manifest says of the run."""
        times = [shared for _, shared in self._shared]
        count = len(self._series)
        head = BLOCK_KEY_BYTES + HEADER_BYTES
        return Totals(
            blocks=count * len(times),
            rows=count * sum(one.rows for one in times),
            size=count * sum(head + len(one.part) + 8 * one.rows for one in times),
            t_min=times[0].first,
            t_max=times[-1].last,
            series_first=self._series[0],
            series_last=self._series[-1],
        )

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over keys and blocks."""
        place = 0
        for number, column in zip(self._series, self._columns, strict=True):
            values = np.ascontiguousarray(column)
            for part, times in self._shared:
                yield encode_shared(self._run, number, times, values[part], place=place)
                place += 1
