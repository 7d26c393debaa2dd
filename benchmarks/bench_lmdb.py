"""Benchmarks of the LMDB backend, at durability `commit` with merges in the background."""

from __future__ import annotations

from pathlib import Path

from benchmarks.suite import BackendBenchmarks


class TestLmdb(BackendBenchmarks):
    """A new store on the disk for each round."""

    @classmethod
    def url(cls, folder: Path) -> str:
        """Name a new store in the folder."""
        return f"lmdb://{folder / 'store'}?durability=commit"
