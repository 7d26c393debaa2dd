"""Upkeep: merging in the background, sweeping what nobody reads, giving space back.

One thread per open store where `merging="background"`; with "inline" the writer does the
work after its commit, with "manual" only `compact` does it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import lmdb
import msgpack
import numpy as np

from tsengine.backends.lmdb.layout import (
    BLOCKS,
    REMOVED_SERIES,
    RETIRED,
    pack_u64,
    unpack_u64,
    unseal,
)
from tsengine.backends.lmdb.merge import RUNS_DUE, Merge, delete_blocks, plan
from tsengine.backends.lmdb.runs import Manifest, Retired, Run
from tsengine.backends.lmdb.store import Store
from tsengine.errors import CorruptionError

logger = logging.getLogger(__name__)

SWEEP_BLOCKS: Final = 256
"""Blocks deleted in one transaction: a few milliseconds of work."""

SWEEP_POLL_SECONDS: Final = 1.0
"""How often runs are looked at that a reader still pins."""


@dataclass(frozen=True, slots=True)
class RemovedSeries:
    """Series that were removed, whose labels wait for readers of older moments to end."""

    key: int
    version: int
    at_ns: int
    numbers: tuple[int, ...]

    @classmethod
    def unpack(cls, key: int, row: bytes | memoryview) -> RemovedSeries:
        """Read the row that `Store.delete` wrote.

        Raises:
            CorruptionError: it is damaged.
        """
        plain = unseal(RETIRED, pack_u64(key), row)
        try:
            version, at_ns, packed = msgpack.unpackb(plain)
            numbers = tuple(np.frombuffer(packed, np.int64).tolist())
        except (ValueError, TypeError) as error:
            raise CorruptionError(f"the row of removed series {key} is damaged") from error
        return cls(key, version, at_ns, numbers)


class Upkeep:
    """The upkeep of one store.

    Thread-safety: any number of threads; `_working` lets one at a time merge and sweep. It
    is taken before the store's `commit_lock`, never while that is held.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._working = threading.RLock()  # guards _merges, _retired and _removed
        self._merges: list[Merge] = []
        self._retired: list[Retired] = []
        self._removed: list[RemovedSeries] = []
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_paused = False  # merging, from a failure to the next commit
        self._is_stale = False  # whether _retired and _removed are to be read anew
        self.error: Exception | None = None
        if store.settings.read_only:
            return
        self._load_retired()
        if store.settings.merging == "background":
            self._thread = threading.Thread(target=self._run, name="tsengine-upkeep", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread; a merge under way is dropped and swept at the next open."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def after_commit(self) -> None:
        """Do, or have done, what a commit made due."""
        self._is_paused = False
        if self._store.settings.merging == "inline":
            # What is committed stays committed: a merge that fails is not the writer's error.
            self._guard(self._work_off)
        else:
            self._wake.set()

    def note_removed(self, key: int, version: int, at_ns: int, numbers: tuple[int, ...]) -> None:
        """Remember removed series for sweeping."""
        with self._working:
            self._removed.append(RemovedSeries(key, version, at_ns, numbers))

    def merge_all(self) -> None:
        """Merge everything into one run, apply all deletes, and sweep what can be swept."""
        with self._working:
            try:
                while self._merges:
                    self._step()
                runs = self._store.manifest.runs
                if self._needs_merging(runs):
                    self._begin(list(runs))
                    while self._merges:
                        self._step()
            except BaseException:
                self._drop_merges()
                raise
            while self._sweep():
                pass

    @property
    def owed(self) -> int:
        """How many runs wait to be swept."""
        return len(self._retired)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait(SWEEP_POLL_SECONDS if self._retired or self._removed else None)
            self._wake.clear()
            self._guard(self._work_on)

    def _guard(self, work: Callable[[], None]) -> None:
        """Do work whose failure has nobody to be raised to.

        stats() tells of it, the log tells, and the next commit makes it try again. What a
        merge wrote so far is swept.
        """
        try:
            work()
        except Exception as error:
            logger.exception("upkeep of %s failed", self._store.environment.path)
            self.error = error
            self._is_paused = True
            with self._working:
                self._drop_merges()
        else:
            if not self._is_paused:  # else what failed was only not tried again
                self.error = None

    def _work_on(self) -> None:
        while not self._closing.is_set() and self._work_a_little():
            pass

    def _work_off(self) -> None:
        with self._working:
            while self._work():
                pass

    def _work_a_little(self) -> bool:
        with self._working:
            return self._work()

    def _work(self) -> bool:
        """Do one step of what is due; whether more may be."""
        self._retire_expired()
        busy = {run for merge in self._merges for run in merge.inputs}
        inputs = [] if self._is_paused else plan(self._store.manifest.runs, busy)
        if inputs:
            self._begin(inputs)
        if self._merges:
            self._step()
            return True
        return self._sweep()

    def _begin(self, inputs: list[Run]) -> None:
        store = self._store
        with store.commit_lock:
            before = store.manifest
            number = before.state.next_run
            unfinished = Retired(number, 0, 0)

            def work(transaction: lmdb.Transaction) -> None:
                # Listed as retired until it is in the manifest: whatever ends this process,
                # the blocks of an unfinished run are swept.
                table = store.environment.tables[RETIRED]
                transaction.put(pack_u64(number), unfinished.pack(), db=table)

            store.publish(replace(before, state=replace(before.state, next_run=number + 1)), work)
        self._merges.append(
            Merge(
                store.environment,
                store.reader,
                before,
                inputs,
                number=number,
                policy=store.options.duplicate_policy,
                block_points=store.settings.block_points,
                retained_from=store.retained_from(),
            )
        )

    def _step(self) -> None:
        """Take a step in the merge that is owed most.

        By debt and not by level: small merges overtake big ones, which would starve behind
        them if they came first always.
        """
        runs = self._store.manifest.runs

        def debt(merge: Merge) -> float:
            level = max(run.level for run in merge.inputs)
            return sum(run.level == level for run in runs) / RUNS_DUE

        merge = max(self._merges, key=debt)
        try:
            if not merge.step():
                self._finish(merge)
                self._merges.remove(merge)
        except BaseException:
            # Rows that a step took in and did not put are gone from the merge: it must never
            # go on. What became of its blocks the table of retired runs tells.
            self._merges.remove(merge)
            self._is_stale = True
            raise

    def _finish(self, merge: Merge) -> None:
        store = self._store
        result = merge.result()
        with store.commit_lock:
            before = store.manifest
            merged = set(merge.inputs)
            place = before.runs.index(merge.inputs[0])
            runs = [run for run in before.runs if run not in merged]
            if result is not None:
                runs.insert(place, result)
            manifest = before.with_runs(runs, before.state)
            retired = self._retire(manifest, merge.inputs)

            def work(transaction: lmdb.Transaction) -> None:
                table = store.environment.tables[RETIRED]
                transaction.delete(pack_u64(merge.number), db=table)
                for one in retired:
                    transaction.put(pack_u64(one.number), one.pack(), db=table)

            store.publish(manifest, work)
        self._retired += retired

    def _retire(self, manifest: Manifest, runs: tuple[Run, ...]) -> list[Retired]:
        now = self._store.clock_ns()
        for run in runs:
            self._store.reader.forget(run.number)
        return [Retired(run.number, manifest.state.version, now) for run in runs]

    def _retire_expired(self) -> None:
        """Drop runs that retention hides altogether."""
        store = self._store
        cutoff = store.retained_from()
        busy = {run for merge in self._merges for run in merge.inputs}
        expired = tuple(
            run for run in store.manifest.runs if run.t_max < cutoff and run not in busy
        )
        if not expired:
            return
        with store.commit_lock:
            before = store.manifest
            kept = [run for run in before.runs if run not in expired]
            manifest = before.with_runs(kept, before.state)
            retired = self._retire(manifest, expired)

            def work(transaction: lmdb.Transaction) -> None:
                table = store.environment.tables[RETIRED]
                for one in retired:
                    transaction.put(pack_u64(one.number), one.pack(), db=table)

            store.publish(manifest, work)
        self._retired += retired

    def _needs_merging(self, runs: tuple[Run, ...]) -> bool:
        if len(runs) != 1:
            return bool(runs)
        only = runs[0]
        return (
            only.level == 0
            or only.t_min < self._store.retained_from()
            or any(delete.touches(only) for delete in self._store.manifest.deletes)
        )

    def _drop_merges(self) -> None:
        # Which of their runs are to be swept only the table knows, where the last commit of
        # a merge may have happened or not.
        self._merges.clear()
        self._is_stale = True

    def _load_retired(self) -> None:
        """Read what is to be swept: what an earlier life of the store left, or a failure."""
        self._retired.clear()
        self._removed.clear()
        with self._store.environment.read() as transaction:
            for key, row in transaction.cursor(self._store.environment.tables[RETIRED]):
                number = unpack_u64(key)
                if number & REMOVED_SERIES:
                    self._removed.append(RemovedSeries.unpack(number, row))
                else:
                    self._retired.append(Retired.unpack(number, row))

    def _is_unread(self, version: int, at_ns: int, *, alone: bool) -> bool:
        """Whether nobody can still read what left the manifest at a version."""
        if version == 0 or at_ns < 0:
            return True
        oldest = self._store.pins.oldest()
        if oldest is not None and oldest < version:
            return False
        return alone or self._store.clock_ns() - at_ns > self._store.settings.snapshot_age_max_ns

    def _sweep(self) -> bool:
        """Delete some blocks that nobody reads; whether there are more."""
        if self._is_stale:
            self._load_retired()
            self._is_stale = False
        if not self._retired and not self._removed:
            return False
        store = self._store
        alone = not store.environment.has_other_processes()
        runs = [
            one for one in self._retired if self._is_unread(one.version, one.at_ns, alone=alone)
        ]
        series = [
            one for one in self._removed if self._is_unread(one.version, one.at_ns, alone=alone)
        ]
        if not runs and not series:
            return False
        done: list[Retired] = []

        def sweep(transaction: lmdb.Transaction) -> None:
            done.clear()
            tables = store.environment.tables
            room = SWEEP_BLOCKS
            for one in runs:
                key = pack_u64(one.number)
                # Readers elsewhere see by this that the run is going.
                going = Retired(one.number, one.version, -1).pack()
                transaction.put(key, going, db=tables[RETIRED])
                room -= delete_blocks(transaction, tables[BLOCKS], one.number, room)
                if room <= 0:
                    break
                transaction.delete(key, db=tables[RETIRED])
                done.append(one)
            for removed in series:
                store.catalogue.forget(transaction, removed.numbers)
                transaction.delete(pack_u64(removed.key), db=tables[RETIRED])

        store.environment.write(sweep)
        gone = set(done)
        self._retired = [one for one in self._retired if one not in gone]
        self._removed = [one for one in self._removed if one not in series]
        return len(done) < len(runs)
