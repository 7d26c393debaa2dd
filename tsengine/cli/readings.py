"""Readings for demonstrations: of real sensors, or generated where the extra `demo` is missing.

The real ones are two files of the package `bokeh-sampledata`: a continuous glucose monitor
(readings about every five minutes, with gaps and repeated times) and the sea surface at
buoy B01 off Maine (every half hour).
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

from tsengine.model import DataPoint, Labels, timestamp

GLUCOSE: Final = Labels("glucose", device="cgm")
CURRENT: Final = Labels("sensor_current", device="cgm")
SEA: Final = Labels("sea_temperature", buoy="B01")

CGM_FILE: Final = "CGM.csv"
SEA_FILE: Final = "sea_surface_temperature.csv"
NO_READING: Final = "nil"
"""What the monitor's file has where the sensor gave no current: nothing to store."""

_ROOMS: Final = ("kitchen", "office", "cellar")
_MINUTE: Final = 60 * 10**9


def are_real() -> bool:
    """Whether the files of real sensors are there."""
    return find_spec("bokeh_sampledata") is not None


def read_glucose_monitor() -> Iterator[DataPoint]:
    """Give glucose, and the sensor's current where there is one, in the order of the file."""
    for current, moment, glucose in _rows(CGM_FILE):
        time = timestamp(moment + "Z")
        yield DataPoint(GLUCOSE, time, float(glucose))
        if current != NO_READING:
            yield DataPoint(CURRENT, time, float(current))


def read_sea() -> Iterator[DataPoint]:
    """Give the temperatures; their times end in Z already."""
    for moment, celsius in _rows(SEA_FILE):
        yield DataPoint(SEA, timestamp(moment), float(celsius))


def generate(*, days: int = 7) -> Iterator[DataPoint]:
    """Give temperatures of three rooms, one a minute: the same each time."""
    random = np.random.default_rng(seed=2026)
    start = timestamp("2026-01-01T00:00:00Z")
    minutes = np.arange(days * 24 * 60)
    day = np.sin(2 * np.pi * (minutes / (24 * 60) - 0.3))
    for warmth, room in enumerate(_ROOMS):
        labels = Labels("temperature", room=room)
        values = 18 + 2 * warmth + day + random.normal(0, 0.05, len(minutes))
        for minute, value in zip(minutes.tolist(), values.round(2).tolist(), strict=True):
            yield DataPoint(labels, start + minute * _MINUTE, value)


def path_of(name: str) -> Path:
    """Give the path of one of the files."""
    plain = Path(str(files("bokeh_sampledata"))) / "_data" / name
    return plain if plain.exists() else plain.with_name(name + ".gz")  # it depends on the release


def file_text(name: str) -> str:
    """Give the text of one of the files."""
    path = path_of(name)
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode()


def _rows(name: str) -> Iterator[list[str]]:
    rows = csv.reader(file_text(name).splitlines())
    next(rows)  # the names of the columns
    return rows
