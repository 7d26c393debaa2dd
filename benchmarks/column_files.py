"""The floor of reading: the same columns in plain files, without a store around them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.workload import Workload


class ColumnFiles:
    """Two files a series, read by `numpy.fromfile`.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = os.fspath(folder)

    def save(self, workload: Workload) -> None:
        """Write the columns of every series."""
        for number, values in enumerate(workload.values):
            timestamps_path, values_path = self.paths(number)
            workload.timestamps.tofile(timestamps_path)
            values.tofile(values_path)

    def paths(self, series: int) -> tuple[str, str]:
        """Name the two files of a series, so that a clock need not run over that."""
        base = os.path.join(self._folder, str(series))  # noqa: PTH118  # text is what fromfile opens fastest
        return f"{base}.timestamps", f"{base}.values"

    @staticmethod
    def read(
        timestamps_path: str, values_path: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Read the columns of a series."""
        return np.fromfile(timestamps_path, np.int64), np.fromfile(values_path, np.float64)
