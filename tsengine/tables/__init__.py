"""Tables: frames and Arrow streams, as columns that an engine takes.

Whatever is written from a table, by `Engine.write_table` or by `copy`, is read here, so that
both come to the same points.
"""

from __future__ import annotations

from tsengine.tables.form import POINTS_MAX, LabelColumns, ValueColumns, form_of
from tsengine.tables.opening import open_table
from tsengine.tables.parts import is_table, table_rows
from tsengine.tables.rows import Batch, table_batches
from tsengine.tables.writing import stage, write_table, write_wide

__all__ = [
    "POINTS_MAX",
    "Batch",
    "LabelColumns",
    "ValueColumns",
    "form_of",
    "is_table",
    "open_table",
    "stage",
    "table_batches",
    "table_rows",
    "write_table",
    "write_wide",
]
