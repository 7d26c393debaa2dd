"""Upkeep: merging in the background, sweeping what nobody reads, giving space back.

One thread per open store where `merging="background"`; with "inline" the writer does the
work after its commit, with "manual" only `compact` does it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Final

import lmdb

from tsengine.backends.lmdb.garbage import Garbage
from tsengine.backends.lmdb.layout import BLOCKS, RETIRED, pack_u64
from tsengine.backends.lmdb.merge import RUNS_DUE, RUNS_MERGED, Merge, plan
from tsengine.backends.lmdb.runs import Manifest, Retired, Run
from tsengine.backends.lmdb.store import Store
from tsengine.errors import NotOpenError

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 30.0
"""How long the background waits for a commit before it tries again what failed: there may be room
on the disk by then, and the log is not flooded."""

SWEEP_POLL_SECONDS: Final = 1.0
"""How often runs and removed series are looked at that a reader still pins."""


RUNS_HELD_BACK: Final = 32
"""Runs of one level from which writers wait for merging: twice of what makes a merge due."""

HOLD_BACK_SECONDS: Final = 0.5
"""Longest that a write waits for merging."""

RETENTION_POLL_SECONDS: Final = 60.0
"""How often a store with retention is looked at that nobody writes to."""


class Upkeep:
    """The upkeep of one store.

    Thread-safety: any number of threads; `_working` lets one at a time merge and sweep. It
    is taken before the store's `commit_lock`, never while that is held.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._working = threading.RLock()  # guards _merges
        self._merges: list[Merge] = []
        self._garbage = Garbage(store.environment, store.reader, store.retained_from)
        # Not an Event: an interrupt or a lack of memory inside of one leaves it locked for ever.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._is_closing = False
        self._step_lock = threading.Lock()  # guards _steps and _is_idle
        self._stepped = threading.Condition(self._step_lock)
        self._steps = 0
        self._is_idle = True  # whether the thread has done all that it was woken for
        self._thread: threading.Thread | None = None
        self._is_paused = False  # merging, from a failure to the next commit
        self.error: Exception | None = None
        if store.settings.read_only:
            return
        store.sweeper.load()
        if store.settings.merging == "background":
            self._thread = threading.Thread(target=self._run, name="tsengine-upkeep", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread; a merge under way is dropped and swept at the next open."""
        self._is_closing = True
        self._wake.put(None)
        self._tell()
        if self._thread is not None:
            self._thread.join()

    def after_commit(self, *, is_due: bool = True) -> None:
        """Do, or have done, what a commit made due.

        Args:
            is_due: whether it can have made anything due.
        """
        self._is_paused = False
        if self._store.catalogue.owes_index:
            self._guard(self._store.index_series)
        if not is_due:
            return
        if self._store.settings.merging == "inline":
            # What is committed stays committed: a merge that fails is not the writer's error.
            self._guard(self._work_off)
        elif self._thread is not None:
            with self._step_lock:
                self._is_idle = False
                if self._wake.empty():
                    self._wake.put(None)
            self._hold_back()

    def _hold_back(self) -> None:
        """Keep a writer from running away from merging, without end and at the readers' cost.

        Its commit is done. It waits for as many steps as bring the two to one pace, or for the
        end of what is due, since not all runs of a level need be merged; and no longer than
        `HOLD_BACK_SECONDS`: a merge that is stuck makes writing slow, not stop.
        """
        by_level = Counter(run.level for run in self._store.manifest.runs)
        owed = max(by_level.values(), default=0) - RUNS_HELD_BACK
        if owed <= 0:
            return
        with self._step_lock:
            due = self._steps + 1 + owed // RUNS_MERGED
            self._stepped.wait_for(
                lambda: self._steps >= due or self._is_idle or self._is_paused or self._is_closing,
                HOLD_BACK_SECONDS,
            )

    def merge_all(self) -> None:
        """Merge everything into one run, apply all deletes, and sweep what can be swept."""
        with self._working:
            try:
                self._end_merges()
                self._begin(self._all_that_needs_it)
                self._end_merges()
            except BaseException:
                self._drop_merges()
                raise
            while self._store.sweeper.sweep():
                pass

    def _end_merges(self) -> None:
        while self._merges:
            self._step()
            self._tell()

    @property
    def _poll_seconds(self) -> float | None:
        """How long to wait for a commit before looking again."""
        if self._is_paused:
            return RETRY_SECONDS
        if self._store.sweeper.owed or self._store.sweeper.is_due:
            return SWEEP_POLL_SECONDS
        return None if self._store.options.retention is None else RETENTION_POLL_SECONDS

    def _run(self) -> None:
        while not self._is_closing:
            try:
                self._wake.get(timeout=self._poll_seconds)
            except Empty:
                self._is_paused = False
            # Without memory even to tell of a failure: the next commit makes it try again.
            with contextlib.suppress(MemoryError):
                self._guard(self._work_on)
                with self._step_lock:
                    self._is_idle = self._wake.empty()
                    self._stepped.notify_all()

    def _guard(self, work: Callable[[], None]) -> None:
        """Do work whose failure has nobody to be raised to.

        stats() tells of it, the log tells, and it is tried again at the next commit, and in the
        background after a while without one. What a merge wrote so far is swept.
        """
        try:
            work()
        except Exception as error:
            if self._is_closing and isinstance(error, NotOpenError):
                return  # another thread closed the store: nothing is wrong, nor left to do
            self.error = error
            self._is_paused = True
            with self._working:
                self._drop_merges()
            self._tell()
            logger.exception("upkeep of %s failed", self._store.environment.path)
        else:
            if not self._is_paused:  # else what failed was only not tried again
                self.error = None

    def _work_on(self) -> None:
        while not self._is_closing and self._work_a_little():
            self._tell()

    def _tell(self) -> None:
        """Let writers that are held back know of a step."""
        with self._step_lock:
            self._steps += 1
            self._stepped.notify_all()

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
        if not self._is_paused:
            self._begin(lambda manifest: plan(manifest.runs, self._store.merging))
            if not self._merges:
                # Looked for outside of the commit lock: it reads.
                garbage = self._garbage.plan(self._store.manifest, self._store.merging)
                if garbage:
                    self._begin(lambda manifest: _still_there(garbage, manifest))
        if self._merges:
            self._step()
            if self._store.sweeper.owed > RUNS_DUE:
                self._store.sweeper.sweep()  # or the file would grow for as long as merges are due
            return True
        return self._store.sweeper.sweep()

    def _begin(self, choose: Callable[[Manifest], Sequence[Run]]) -> None:
        """Begin to merge what `choose` gives of the newest manifest, if that is anything."""
        store = self._store
        with store.commit_lock:
            before = store.manifest
            inputs = choose(before)
            if not inputs:
                return
            number = store.reserve_run()
            store.sweeper.protect(number)
            store.merging.update(run.number for run in inputs)
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
        owed = Counter(run.level for run in self._store.manifest.runs)
        merge = max(self._merges, key=lambda merge: owed[merge.level])
        # Rows that a step took in and did not put are gone from the merge: it must never go on
        # then. So it is out of the list, whatever happens, until its step is done as a whole.
        self._merges.remove(merge)
        try:
            blocks, more = merge.step()
            if not more:
                self._finish(merge, blocks)
                self._let_go(merge)
                return
            if merge.is_listed:
                self._store.environment.write(lambda transaction: self._put(transaction, blocks))
            else:
                self._list(merge, blocks)
            self._merges.append(merge)
        except BaseException:
            self._let_go(merge)
            self._store.sweeper.give_up(merge.number)  # the table tells what became of its blocks
            raise

    def _put(self, transaction: lmdb.Transaction, blocks: Sequence[tuple[bytes, bytes]]) -> None:
        table = self._store.environment.tables[BLOCKS]
        for key, block in blocks:
            transaction.put(key, block, db=table)

    def _list(self, merge: Merge, blocks: Sequence[tuple[bytes, bytes]]) -> None:
        """Put the first blocks of a merge of several steps.

        With them it is listed as retired until it is in the manifest: whatever ends this
        process, the blocks of an unfinished run are swept.
        """
        store = self._store
        unfinished = Retired(merge.number, 0, 0)

        def work(transaction: lmdb.Transaction) -> None:
            table = store.environment.tables[RETIRED]
            transaction.put(pack_u64(merge.number), unfinished.pack(), db=table)
            self._put(transaction, blocks)

        with store.commit_lock:
            before = store.manifest
            state = before.state._replace(next_run=store.counters.next_run)
            store.publish(replace(before, state=state), work)
        merge.is_listed = True

    def _finish(self, merge: Merge, blocks: Sequence[tuple[bytes, bytes]]) -> None:
        """Put the last blocks of a merge, and its run in the place of its inputs."""
        store = self._store
        result = merge.result()
        with store.commit_lock:
            before = store.manifest
            merged = {run.number for run in merge.inputs}
            place = before.runs.index(merge.inputs[0])
            runs = [run for run in before.runs if run.number not in merged]
            size = 0 if result is None else result.size
            if result is not None:
                runs.insert(place, result)
            manifest = before.with_runs(runs, store.counters)
            retired = self._retire(manifest, merge.inputs)

            def work(transaction: lmdb.Transaction) -> None:
                self._put(transaction, blocks)
                table = store.environment.tables[RETIRED]
                transaction.delete(pack_u64(merge.number), db=table)
                for one in retired:
                    transaction.put(pack_u64(one.number), one.pack(), db=table)

            store.publish(
                manifest, work, makes_room=2 * size < sum(run.size for run in merge.inputs)
            )
        store.sweeper.add_merged(merge.number, retired)

    def _retire(self, manifest: Manifest, runs: tuple[Run, ...]) -> list[Retired]:
        now = self._store.clock_ns()
        for run in runs:
            self._store.reader.forget(run.number)
            self._store.summaries.forget(run.number)
        return [Retired(run.number, manifest.state.version, now) for run in runs]

    def _retire_expired(self) -> None:
        """Drop runs that retention hides altogether."""
        store = self._store
        cutoff = store.retained_from()
        if all(run.t_max >= cutoff for run in store.manifest.runs):
            return
        with store.commit_lock:
            before = store.manifest
            expired = tuple(
                run for run in before.runs if run.t_max < cutoff and run.number not in store.merging
            )
            if not expired:
                return
            kept = [run for run in before.runs if run not in expired]
            manifest = before.with_runs(kept, store.counters)
            retired = self._retire(manifest, expired)

            def work(transaction: lmdb.Transaction) -> None:
                table = store.environment.tables[RETIRED]
                for one in retired:
                    transaction.put(pack_u64(one.number), one.pack(), db=table)

            store.publish(manifest, work, makes_room=True)
        store.sweeper.add_runs(retired)

    def _all_that_needs_it(self, manifest: Manifest) -> Sequence[Run]:
        """Give all runs, unless they are one that merging would leave as it is."""
        runs = manifest.runs
        if len(runs) != 1:
            return runs
        only = runs[0]
        needs_it = (
            only.level == 0
            or only.t_min < self._store.retained_from()
            or any(delete.touches(only) for delete in manifest.deletes)
        )
        return runs if needs_it else ()

    def _let_go(self, merge: Merge) -> None:
        """Let the inputs of a merge be merged by others."""
        with self._store.commit_lock:
            self._store.merging.difference_update(run.number for run in merge.inputs)

    def _drop_merges(self) -> None:
        while self._merges:
            merge = self._merges.pop()
            self._let_go(merge)
            self._store.sweeper.give_up(merge.number)


def _still_there(runs: Sequence[Run], manifest: Manifest) -> Sequence[Run]:
    """Give the runs, unless one of them has gone since they were looked at."""
    return runs if set(runs) <= set(manifest.runs) else ()
