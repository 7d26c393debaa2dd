"""ArcticDB, which stores frames: one symbol of an LMDB library of its own."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType
from typing import Self

import arcticdb
import pandas as pd

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
