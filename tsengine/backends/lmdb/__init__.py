"""The LMDB backend: a columnar merge tree that needs no server.

engine.py        LmdbEngine
sharing.py       one open store per path and process
store.py         commits and moments of one store
writing.py       from the batches of a commit to columns
reading.py       from runs to the rows of a series, or of many
merge.py         folding neighbouring runs
upkeep.py        merging in the background, sweeping
checking.py      reading and verifying everything
catalogue.py     which series there are
series_rows.py   series numbers and their labels
postings.py      labels and the numbers of the series that have them
runs.py          runs, deletes, the manifest, pins
blocks.py        rows as bytes
columns.py       rows as arrays
layout.py        tables and keys
environment.py   files, transactions, locks, the map
"""

from tsengine.backends.lmdb.engine import LmdbEngine

__all__ = ["LmdbEngine"]
