"""Garbage: rows that no read gives any more, and which runs to merge to be rid of them.

Merging by levels drops rows that later ones replace or deletes hide where it happens to meet
them. That alone bounds nothing: a run that is merged no more would keep what a delete hid, and
values written over and over would stand in a run of each level. So garbage is estimated, and
where a third of the rows is that, they are rewritten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from tsengine.backends.lmdb.blocks import Header
from tsengine.backends.lmdb.environment import Environment
from tsengine.backends.lmdb.layout import BLOCKS
from tsengine.backends.lmdb.reading import BlockReader
from tsengine.backends.lmdb.runs import DeleteEvent, Manifest, Run
from tsengine.duplicates import DuplicatePolicy
from tsengine.model import INT64_MIN

GARBAGE_SHARE: Final = 1 / 3
"""Share of garbage at which rows are rewritten: the rest is then at most half as much again."""

GARBAGE_ROWS_MIN: Final = 65_536
"""Rows of garbage below which nothing is rewritten for their sake: one small merge's worth."""

DELETES_DUE: Final = 64
"""Deletes in the manifest from which a run is rewritten just to be rid of some: each read of
a series looks at all of them."""

FEW_SERIES: Final = 64
"""Series up to which a delete has their blocks searched for; of more, all headers are read."""

HEADERS_A_STEP: Final = 1_024
"""Block headers looked at in one read transaction: a few milliseconds."""

SAMPLES: Final = 32
"""Places at which a run is compared with older ones."""


GOLDEN_RATIO: Final = 0.618_033_988_75


class Garbage:
    """Estimates what runs hold in vain.

    Args:
        environment: the store's files.
        reader: the store's block reader.
        retained_from: the earliest timestamp that retention lets through.

    Thread-safety: none; upkeep calls it with its lock held.
    """

    def __init__(
        self, environment: Environment, reader: BlockReader, retained_from: Callable[[], int]
    ) -> None:
        self._environment = environment
        self._reader = reader
        self._retained_from = retained_from
        self._hidden: dict[int, tuple[int, float]] = {}  # run: last delete seen, rows hidden
        self._replaced: dict[int, float] = {}  # run: rows of older runs that its rows replace

    def plan(self, manifest: Manifest, busy: Collection[int]) -> Sequence[Run]:
        """Give the neighbouring runs to merge next; empty where garbage is bounded.

        Args:
            manifest: the newest.
            busy: numbers of runs that are being merged.
        """
        numbers = {run.number for run in manifest.runs}
        self._hidden = {run: kept for run, kept in self._hidden.items() if run in numbers}
        self._replaced = {run: kept for run, kept in self._replaced.items() if run in numbers}
        for run in manifest.runs:
            if run.number not in busy:
                hidden = self._hidden_rows(manifest, run) + self._expired_rows(run)
                if hidden >= max(GARBAGE_SHARE * run.rows, GARBAGE_ROWS_MIN):
                    return (run,)
        return self._with_replaced(manifest, busy) or self._with_deletes(manifest, busy)

    def _expired_rows(self, run: Run) -> float:
        """Estimate the rows that retention hides: as if they were spread evenly over time."""
        age = self._retained_from() - run.t_min
        return run.rows * min(max(age / max(run.t_max - run.t_min, 1), 0.0), 1.0)

    def _hidden_rows(self, manifest: Manifest, run: Run) -> float:
        """Estimate the rows that deletes hide, by the headers of the blocks concerned.

        A delete of few series adds what their blocks say, counted twice where another has
        hidden it already; one of many has all blocks looked at anew.
        """
        newest = manifest.deletes[-1].sequence if manifest.deletes else 0
        seen, hidden = self._hidden.get(run.number, (0, 0.0))
        if seen == newest:
            return hidden
        deletes = list(manifest.deletes_after(run))
        fresh = [delete for delete in deletes if delete.sequence > seen]
        if all(len(delete.series) <= FEW_SERIES for delete in fresh):
            for delete in fresh:
                blocks = self._blocks_of(run, delete)
                hidden += _hidden_of([delete], blocks) if blocks else 0.0
        else:
            hidden = 0.0
            after: bytes | None = None
            while found := self._headers(run, after):
                after = found[-1][0]
                hidden += _hidden_of(deletes, [(first, header) for _, first, header in found])
        self._hidden[run.number] = newest, min(hidden, run.rows)
        return hidden

    def _headers(self, run: Run, after: bytes | None) -> list[tuple[bytes, int, Header]]:
        with self._environment.read() as transaction:
            cursor = transaction.cursor(self._environment.tables[BLOCKS])
            return self._reader.headers(cursor, run, after, HEADERS_A_STEP)

    def _blocks_of(self, run: Run, delete: DeleteEvent) -> list[tuple[int, Header]]:
        """Give the blocks of a run that a delete may hide rows of."""
        blocks: dict[bytes, tuple[int, Header]] = {}
        with self._environment.read() as transaction:
            cursor = transaction.cursor(self._environment.tables[BLOCKS])
            for number in delete.series.tolist():
                for key, first, header in self._reader.headers_of(
                    cursor, run, number, max(delete.start, INT64_MIN), delete.end
                ):
                    blocks[key] = first, header  # once, though it holds several of the series
        return list(blocks.values())

    def _with_replaced(self, manifest: Manifest, busy: Collection[int]) -> Sequence[Run]:
        """Give the runs between the oldest whose rows are replaced and the newest that does it."""
        runs = manifest.runs
        merged = [place for place, run in enumerate(runs) if run.level]
        replacing = [place for place in merged if self._replaced_rows(manifest, place)]
        garbage = sum(self._replaced[runs[place].number] for place in replacing)
        rows = sum(runs[place].rows for place in merged)
        if garbage < max(GARBAGE_SHARE * rows, GARBAGE_ROWS_MIN):
            return ()
        newest = runs[replacing[-1]]
        oldest = next(place for place, run in enumerate(runs) if run.overlaps_run(newest))
        chosen = runs[oldest : replacing[-1] + 1]
        return () if any(run.number in busy for run in chosen) else chosen

    def _replaced_rows(self, manifest: Manifest, place: int) -> float:
        """Estimate how many rows of older runs a run replaces, by samples."""
        run = manifest.runs[place]
        known = self._replaced.get(run.number)
        if known is not None:
            return known
        older = tuple(other for other in manifest.runs[:place] if other.overlaps_run(run))
        share = self._replaced_share(replace(manifest, runs=older), run) if older else 0.0
        self._replaced[run.number] = share * run.rows
        return share * run.rows

    def _replaced_share(self, older: Manifest, run: Run) -> float:
        sampled = replaced = 0
        for sample in range(SAMPLES):
            # The two go through series and time at different paces, so that all of both is met.
            across = sample * GOLDEN_RATIO % 1
            number = run.series_first + int((run.series_last - run.series_first) * across)
            timestamp = run.t_min + (run.t_max - run.t_min) * sample // SAMPLES
            with self._environment.read() as transaction:
                cursor = transaction.cursor(self._environment.tables[BLOCKS])
                columns = self._reader.sample(cursor, run, number, timestamp)
                if columns is None:
                    continue
                middle = len(columns.series) // 2
                first, end = columns.offsets[middle : middle + 2].tolist()
                timestamps = columns.timestamps[first:end]
                piece = self._reader.read_series(
                    transaction,
                    older,
                    int(columns.series[middle]),
                    int(timestamps[0]),
                    int(timestamps[-1]) + 1,
                    DuplicatePolicy.LAST,
                )
            sampled += len(timestamps)
            if piece is not None:
                replaced += int(np.isin(timestamps, piece[0], assume_unique=True).sum())
        return replaced / sampled if sampled else 0.0

    def _with_deletes(self, manifest: Manifest, busy: Collection[int]) -> Sequence[Run]:
        """Give the run that most deletes hide rows of, where there are many deletes."""
        if len(manifest.deletes) < DELETES_DUE:
            return ()
        free = [run for run in manifest.runs if run.number not in busy]
        counts = [sum(1 for _ in manifest.deletes_after(run)) for run in free]
        most = max(counts, default=0)
        return (free[counts.index(most)],) if most else ()


def _hidden_of(deletes: Sequence[DeleteEvent], blocks: Sequence[tuple[int, Header]]) -> float:
    """Estimate the rows of some blocks that deletes hide: as if spread evenly over each."""
    first = np.array([series for series, _ in blocks])
    last = np.array([header.last_series for _, header in blocks])
    segments = np.array([header.segments for _, header in blocks])
    rows = np.array([header.rows for _, header in blocks], np.float64)
    t_min = np.array([header.t_min for _, header in blocks], np.float64)
    t_end = np.array([header.t_max for _, header in blocks], np.float64) + 1.0
    hidden = np.zeros(len(blocks))
    for delete in deletes:
        series = delete.series
        about = series.searchsorted(last, "right") - series.searchsorted(first, "left")
        inside = np.minimum(t_end, float(delete.end)) - np.maximum(t_min, float(delete.start))
        share = np.clip(inside / np.maximum(t_end - t_min, 1.0), 0.0, 1.0)
        hidden += rows * share * np.minimum(about / segments, 1.0)
    return float(np.minimum(hidden, rows).sum())
