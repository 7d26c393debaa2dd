"""Benchmarks of the memory backend."""

from __future__ import annotations

from pathlib import Path

from benchmarks.suite import BackendBenchmarks


class TestMemory(BackendBenchmarks):
    """A new store in this process's memory for each round."""

    @classmethod
    def url(cls, folder: Path) -> str:  # noqa: ARG003  # what other backends need
        """Name a new store; the folder is not used."""
        return "memory://"
