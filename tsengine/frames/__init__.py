"""Frames: the series of an answer as columns of a long or wide table, for other libraries."""

from __future__ import annotations

from tsengine.frames.long import LabelColumn, label_columns, values_column
from tsengine.frames.pandas_frames import long_frame, wide_frame
from tsengine.frames.stream import long_stream, wide_stream
from tsengine.frames.wide import WideColumns, matrix_of, wide_columns

__all__ = [
    "LabelColumn",
    "WideColumns",
    "label_columns",
    "long_frame",
    "long_stream",
    "matrix_of",
    "values_column",
    "wide_columns",
    "wide_frame",
    "wide_stream",
]
