"""Aggregation: functions over windows of time, of columns.

    asking.py      what is asked, judged
    windows.py     where rows pass from one window to the next
    partials.py    what windows need of their rows, as a table that folds
    ordered.py     what goes by the order of rows or by all of them: counters, quantiles
    collecting.py  from the batches of a scan to tables
    answering.py   from tables to the columns of functions
    filling.py     windows without rows

What each function means stands at `Engine.aggregate`. Nothing here knows of an engine: a
backend that can do better than `aggregate_batches` over its scan measures columns or headers
itself, gathers them in a `Collector`, and leaves the rest to `answer`.
"""

from tsengine.aggregation.answering import answer
from tsengine.aggregation.asking import (
    FUNCTION_LABEL,
    Aggregation,
    Fill,
    Function,
    aggregation,
)
from tsengine.aggregation.collecting import (
    Collector,
    CutSeries,
    Groups,
    aggregate_batches,
    aggregate_series,
    refuse_objects,
    with_edges,
)
from tsengine.aggregation.partials import Partials, Statistics, measure
from tsengine.aggregation.windows import (
    Cut,
    cut,
    cut_regular,
    cut_rows,
    window_of,
    window_starts,
)

__all__ = [
    "FUNCTION_LABEL",
    "Aggregation",
    "Collector",
    "Cut",
    "CutSeries",
    "Fill",
    "Function",
    "Groups",
    "Partials",
    "Statistics",
    "aggregate_batches",
    "aggregate_series",
    "aggregation",
    "answer",
    "cut",
    "cut_regular",
    "cut_rows",
    "measure",
    "refuse_objects",
    "window_of",
    "window_starts",
    "with_edges",
]
