"""Pipelines: `copy` between stores, `verify`, whether two hold the same, `rollup` of aggregates.

    sources.py    what can be copied: engines, batches, tables, iterables
    arrow.py      tables as batches; pyarrow is imported there when it is used
    reading.py    the thread that reads
    parcels.py    points of a source in its order, as many as one commit takes
    feed.py       the bounded queue between reading and writing
    writing.py    the side of the calling thread: what lands, what is told, what stops it
    copying.py    `copy`, which puts these together
    progress.py   what is told of it
    verifying.py  checksums by series, and the first difference
    rolling.py    `rollup`, which puts the next ones together
    rolled.py     the series of results, and which rows they come from
    spans.py      which windows are looked at, and how many at once
    differing.py  which results are not what is stored
    storing.py    columns into the target, with retries, until a deadline
    renewing.py   one run, span by span
    rollup_report.py   what is told of it

Nothing here knows of a buffer or a backend.
"""

from tsengine.pipeline.copying import copy
from tsengine.pipeline.progress import CopyReport, Progress
from tsengine.pipeline.rolling import rollup
from tsengine.pipeline.rollup_report import RollupReport
from tsengine.pipeline.verifying import Difference, SeriesChecksum, VerifyReport, verify

__all__ = [
    "CopyReport",
    "Difference",
    "Progress",
    "RollupReport",
    "SeriesChecksum",
    "VerifyReport",
    "copy",
    "rollup",
    "verify",
]
