"""Pipelines: `copy` between stores, and `verify`, whether two hold the same.

    sources.py    what can be copied: engines, batches, tables, iterables
    reading.py    the thread that reads
    parcels.py    points of a source in its order, as many as one commit takes
    feed.py       the bounded queue between reading and writing
    writing.py    the side of the calling thread: what lands, what is told, what stops it
    copying.py    `copy`, which puts these together
    progress.py   what is told of it
    verifying.py  checksums by series, and the first difference

Nothing here knows of a buffer or a backend.
"""

from tsengine.pipeline.copying import copy
from tsengine.pipeline.progress import CopyReport, Progress
from tsengine.pipeline.verifying import Difference, SeriesChecksum, VerifyReport, verify

__all__ = [
    "CopyReport",
    "Difference",
    "Progress",
    "SeriesChecksum",
    "VerifyReport",
    "copy",
    "verify",
]
