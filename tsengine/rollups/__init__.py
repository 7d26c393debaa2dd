"""Rollups: aggregates of a store, kept as series of their own, and kept true.

    rolling.py    `rollup`, which puts the others together
    rolled.py     the series of results, and which rows they come from
    spans.py      which windows are looked at, and how many at once
    differing.py  which results are not what is stored
    storing.py    columns into the target, with retries, until a deadline
    renewing.py   one run, span by span
    report.py     what is told of it

Nothing here knows of a buffer or a backend.
"""

from tsengine.rollups.report import RollupReport
from tsengine.rollups.rolling import rollup

__all__ = ["RollupReport", "rollup"]
