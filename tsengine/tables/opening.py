"""Opening tables of any kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from tsengine.errors import BatchShapeError
from tsengine.tables.arrow import open_arrow
from tsengine.tables.frame import open_frame
from tsengine.tables.mapping import open_mapping
from tsengine.tables.parts import OpenTable, is_frame, is_table

if TYPE_CHECKING:
    import pandas as pd


def open_table(table: object) -> OpenTable:
    """Find out what a table has, without reading its rows.

    Raises:
        MissingDependencyError: it is no pandas frame, and pyarrow is not installed.
        BatchShapeError: it is no table, or its columns are not named by text.
    """
    if is_frame(table):
        return open_frame(cast("pd.DataFrame", table))
    if isinstance(table, Mapping):
        return open_mapping(table)
    if not is_table(table):
        raise BatchShapeError(
            f"{type(table).__name__} is no table; give a pandas or polars frame, what offers "
            "the Arrow interfaces, or a mapping of columns"
        )
    return open_arrow(table)
