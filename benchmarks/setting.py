"""What the figures share: sizes, a folder, rounds, and the bulk stores, built once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.column_files import ColumnFiles
from benchmarks.comparison import say
from benchmarks.machine import disk_bytes
from benchmarks.ours import lmdb_url, open_engine, require_count
from benchmarks.workload import Workload, workload


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of the workload is used. The defaults are those that the bars stand on.

    Attributes:
        series: series of all figures but the second.
        points: points written one by one.
        many_series: series of the second figure.
        small_commit_points: points written to the peers that are ten times slower when
            they commit 1,000 at a time; fewer favour them, for a small table is faster.
        length: points of each series in bulk.
        run_points: points of each unmerged run.
        runs: how many unmerged runs.
        range_points: points of a short range.
        threads: producers on one buffer.
        batch: points of a small batch, ours and theirs.
        opens: fresh processes that open the store.
        tiny_commits: commits of one point, over all rounds.
        flushes: flushes of `run_points` whose spread is looked at.
        submit_seconds: how long threads submit points.
        copied_points: points of the copy whose memory is looked at.
        imported_text_points: points of a file of text.
        imported_parquet_points: points of a file of Parquet.
        postgres_batches: batches of a round into PostgreSQL, a fifth as many of large ones.
        postgres_bulk_points: points of a bulk into PostgreSQL.
        postgres_turns: turns of each of four writers.
        upserted_sessions: rows of a table with JSON.
        upserted_words: rows of a dictionary.
    """

    series: int = 1_000
    points: int = 1_000_000
    many_series: int = 100_000
    small_commit_points: int = 100_000
    length: int = 10_000
    run_points: int = 65_536
    runs: int = 16
    range_points: int = 360
    threads: int = 8
    batch: int = 1_000
    opens: int = 9
    tiny_commits: int = 100_000
    flushes: int = 400
    submit_seconds: float = 3.0
    copied_points: int = 20_000_000
    imported_text_points: int = 2_000_000
    imported_parquet_points: int = 10_000_000
    postgres_batches: int = 50
    postgres_bulk_points: int = 1_000_000
    postgres_turns: int = 75
    upserted_sessions: int = 10_000
    upserted_words: int = 50_000

    def quick(self) -> Sizes:
        """Give sizes a tenth or less of these: to see that it runs, not what it measures."""
        return Sizes(
            points=100_000,
            many_series=10_000,
            small_commit_points=20_000,
            length=1_000,
            run_points=4_096,
            opens=3,
            tiny_commits=1_000,
            flushes=40,
            submit_seconds=0.3,
            copied_points=200_000,
            imported_text_points=100_000,
            imported_parquet_points=200_000,
            postgres_batches=5,
            postgres_bulk_points=50_000,
            postgres_turns=5,
            upserted_sessions=2_000,
            upserted_words=10_000,
        )


class Setting:
    """What the figures share: a folder on a disk, sizes, rounds, and the bulk stores.

    Args:
        folder: where stores are made; removed by whoever made it.
        sizes: how much of the workload is used.
        rounds: how many rounds are counted.
    """

    def __init__(self, folder: Path, sizes: Sizes, rounds: int) -> None:
        self.folder = folder
        self.sizes = sizes
        self.rounds = rounds

    def bulk(self, decimals: int | None) -> Workload:
        """Build the bulk workload, of full precision or as a sensor rounds it."""
        return workload(self.sizes.series, self.sizes.length, decimals=decimals)

    @cached_property
    def full(self) -> BulkStore:
        """The bulk workload at full precision, in a compacted store."""
        return BulkStore.build(self.folder / "full", self.bulk(None))

    @cached_property
    def two_decimal(self) -> BulkStore:
        """The bulk workload at two decimals, in a compacted store."""
        return BulkStore.build(self.folder / "two-decimal", self.bulk(2))


@dataclass(frozen=True, slots=True)
class BulkStore:
    """A closed, compacted store, its columns as files, and what it weighed when compacted."""

    folder: Path
    files: ColumnFiles
    files_folder: Path
    points: int
    disk_bytes: int
    stated_bytes: int
    reason: str

    @classmethod
    def build(cls, folder: Path, columns: Workload) -> BulkStore:
        """Write a workload in one batch, compact, weigh, close."""
        store, files_folder = folder / "store", folder / "files"
        store.mkdir(parents=True)
        files_folder.mkdir()
        files = ColumnFiles(files_folder)
        files.save(columns)
        started = time.perf_counter()
        with open_engine(lmdb_url(store)) as engine:
            engine.write_batch(columns.batch())
            written = time.perf_counter()
            report = engine.compact()
            compacted = time.perf_counter()
            require_count(engine, columns.values.size)
            weight, stats = disk_bytes(store), engine.stats()
        say(
            f"  {folder.name} store: written in {written - started:.1f} s, compacted in "
            f"{compacted - written:.1f} s, {report.bytes_before:,} to {report.bytes_after:,} bytes"
        )
        return cls(
            store, files, files_folder, columns.values.size, weight, stats.bytes, report.reason
        )

    @property
    def url(self) -> str:
        """The URL of the store."""
        return lmdb_url(self.folder)
