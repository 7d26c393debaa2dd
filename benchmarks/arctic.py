"""ArcticDB, which stores frames: symbols of an LMDB library of its own."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import arcticdb
import pandas as pd
from arcticdb import QueryBuilder, ReadRequest

SYMBOL = "wide"


class ArcticDb:
    """A library in a folder, opened and made before any clock runs; all settings are defaults.

    Args:
        folder: an empty folder on the disk.
    """

    product = f"ArcticDB {arcticdb.__version__}"

    def __init__(self, folder: Path) -> None:
        self._arctic = arcticdb.Arctic(f"lmdb://{folder / 'arctic'}")
        self._library = self._arctic.create_library("frames")

    def write(self, frame: pd.DataFrame) -> float:
        """Write a frame as one symbol; gives seconds until it is stored."""
        started = time.perf_counter()
        self._library.write(SYMBOL, frame)
        return time.perf_counter() - started

    def write_series(self, frames: Mapping[str, pd.DataFrame]) -> None:
        """Write each frame, with one column called value, as a symbol."""
        for symbol, frame in frames.items():
            self._library.write(symbol, frame)

    def hourly_max(self, symbols: Sequence[str]) -> list[pd.DataFrame]:
        """Give the hourly maxima of symbols, read as one batch."""
        asked = QueryBuilder().resample("h").agg({"value": "max"})
        read = self._library.read_batch([ReadRequest(one, query_builder=asked) for one in symbols])
        return [item.data for item in read]

    def count(self) -> int:
        """Count the rows."""
        return int(self._library.get_description(SYMBOL).row_count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del self._library, self._arctic  # it is closed when nothing refers to it
