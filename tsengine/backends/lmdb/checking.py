"""Checking: read everything, verify every checksum, and compare it with the manifest."""

from __future__ import annotations

import numpy as np

from tsengine.backends.lmdb.blocks import decode, describe, read_header, verify
from tsengine.backends.lmdb.datafile import verify_structure
from tsengine.backends.lmdb.layout import (
    BLOCKS,
    META,
    NAMES,
    PRODUCERS,
    REMOVED_SERIES,
    RETIRED,
    block_key,
    pack_u64,
    posting_key,
    split_block_key,
    text_key,
    unpack_u64,
    unseal,
)
from tsengine.backends.lmdb.marks import unpack_mark
from tsengine.backends.lmdb.runs import Manifest, Retired, Run
from tsengine.backends.lmdb.store import OPTIONS_KEY, Store, unpack_options
from tsengine.backends.lmdb.sweeping import RemovedSeries
from tsengine.errors import CorruptionError
from tsengine.model import INT64_MAX, INT64_MIN, Int64Array

STEP_BLOCKS = 64
"""Blocks verified in one read transaction: a few milliseconds, so that pages are not held."""


def check_store(store: Store) -> None:
    """Verify a store while it is in use.

    Raises:
        CorruptionError: names the first place found damaged.
    """
    check_structure(store)
    with store.pinned(lambda _: None) as (manifest, _):
        for run in manifest.runs:
            _check_run(store, run)
    _check_no_orphans(store)
    _check_rows(store)
    _check_catalogue(store)


def check_structure(store: Store) -> None:
    """Verify LMDB's pages without LMDB, as far as no writer of another process moves them."""
    if store.settings.read_only:
        return
    path = store.environment.path / "data.mdb"
    with store.environment.quiet():
        verify_structure(path)


def _check_run(store: Store, run: Run) -> None:
    rows = blocks = 0
    t_min, t_max = INT64_MAX, INT64_MIN
    last: tuple[int, int] | None = None
    key = pack_u64(run.number)
    more = True
    while more:
        with store.environment.read() as transaction:
            cursor = transaction.cursor(store.environment.tables[BLOCKS])
            more = cursor.set_range(key)
            if more and blocks and bytes(cursor.key()) == key:
                more = cursor.next()
            for _ in range(STEP_BLOCKS):
                if not more or cursor.key()[:8] != pack_u64(run.number):
                    more = False
                    break
                key, block = bytes(cursor.key()), cursor.value()
                header = read_header(key, block)
                verify(key, block, header)
                columns = decode(key, block, header)
                first = int(columns.series[0]), int(columns.timestamps[0])
                if block_key(run.number, *first) != key or (last is not None and first <= last):
                    raise CorruptionError(f"{describe(key)} is out of order")
                last = header.last_series, header.last_timestamp
                rows += len(columns)
                blocks += 1
                t_min, t_max = min(t_min, header.t_min), max(t_max, header.t_max)
                more = cursor.next()
    if (t_min, t_max) != (run.t_min, run.t_max):
        raise CorruptionError(f"the manifest has other bounds of time for run {run.number}")
    if (rows, blocks) != (run.rows, run.blocks):
        raise CorruptionError(
            f"run {run.number} has {rows} rows in {blocks} blocks, the manifest says {run.rows} "
            f"in {run.blocks}"
        )


def _check_no_orphans(store: Store) -> None:
    """Check that each block is of a run that the manifest lists or that is to be swept."""
    with store.moment() as (transaction, manifest):
        tables = store.environment.tables
        listed = {run.number for run in manifest.runs}
        cursor = transaction.cursor(tables[BLOCKS])
        more = cursor.first()
        while more:
            run, _, _ = split_block_key(cursor.key())
            if run not in listed and transaction.get(pack_u64(run), db=tables[RETIRED]) is None:
                raise CorruptionError(f"run {run} has blocks, and nothing lists it")
            more = cursor.set_range(pack_u64(run + 1))


def _check_rows(store: Store) -> None:
    """Check the rows of the small tables, as one moment has them."""
    tables = store.environment.tables
    with store.environment.read() as transaction:
        Manifest.load(transaction, tables, store.environment.moment(transaction))
        options = transaction.get(OPTIONS_KEY, db=tables[META])
        unpack_options(None if options is None else bytes(options), store.environment.path)
        for key, row in transaction.cursor(tables[PRODUCERS]):
            unpack_mark(bytes(key), row)
        for key, row in transaction.cursor(tables[RETIRED]):
            number = unpack_u64(key)
            if number & REMOVED_SERIES:
                RemovedSeries.unpack(number, row)
            else:
                Retired.unpack(number, row)


def _check_catalogue(store: Store) -> None:
    """Check that names, labels and index say the same of every series.

    In one transaction, as they change together. Takes 8 bytes of memory a series.
    """
    catalogue = store.catalogue
    with store.environment.read() as transaction:
        tables = store.environment.tables
        numbers = []
        expected = 0
        for key, row in transaction.cursor(tables[NAMES]):
            number = unpack_u64(unseal(NAMES, key, row))
            labels = catalogue.labels(transaction, number)
            if text_key(labels.id) != bytes(key):
                raise CorruptionError(f"series number {number} is listed under another name")
            numbers.append(number)
            expected += len(labels)
        listed = np.array(numbers, np.int64)
        listed.sort()
        if (listed[1:] == listed[:-1]).any():
            raise CorruptionError("two names lead to one series number")
        unindexed = catalogue.unindexed(transaction)
        for number, _ in unindexed:
            if _is_among(number, listed):
                raise CorruptionError(f"series number {number} is listed twice")
        series = store.manifest_of(transaction).state.series
        if len(listed) + len(unindexed) != series:
            raise CorruptionError(
                f"{len(listed) + len(unindexed)} series are listed, it should be {series}"
            )
        for label, numbers_having in catalogue.postings.labels(transaction):
            if (numbers_having[1:] == numbers_having[:-1]).any():
                raise CorruptionError(f"the index lists a series twice under {label[:80]!r}")
            for number in numbers_having.tolist():
                if not _is_among(number, listed) or not any(
                    posting_key(*pair) == label
                    for pair in catalogue.labels(transaction, number).items()
                ):
                    raise CorruptionError(
                        f"the index lists series number {number} under {label[:80]!r}, which it "
                        "does not have"
                    )
            expected -= len(numbers_having)
        # Every entry is one of a series, so that the number of them tells whether all are there.
        if expected:
            raise CorruptionError(f"the index lacks {expected} labels of series that are listed")


def _is_among(number: int, numbers: Int64Array) -> bool:
    place = int(numbers.searchsorted(number))
    return place < len(numbers) and int(numbers[place]) == number
