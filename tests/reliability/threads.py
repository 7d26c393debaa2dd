"""Threads: eight of them do everything at once, and what went in is what is stored.

Each thread owns series that nobody else writes to, so that it knows what every read of them
has to give; in stores whose policy is `sum` there is also one that all add to:

    direct     written and deleted through the engine; reads by the owner are exact
    buffered   1, 2, 3, … through one of three buffers; every read by anybody is 1, 2, 3, …
               at least up to what was flushed before it
    total      ones at a few timestamps, through all ways; the sums count the writes

While they go on, the buffers and the engine are closed under them: every write has returned,
and is stored or pending, or has raised that something was closed, and is neither.
"""

from __future__ import annotations

import logging
import random
import shutil
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final, TypeAlias
from unittest import mock
from urllib.parse import urlencode

import tsengine
from tsengine import (
    DataPoint,
    Engine,
    Labels,
    NotOpenError,
    SeriesBatch,
    UnsavedPointsError,
    WriteBuffer,
)
from tsengine.backends.lmdb import merge

THREADS: Final = 8
BUFFERS: Final = 3
MOMENTS: Final = 40
"""Timestamps of a direct series: few, so that writes and deletes meet."""

SETTLED_SECONDS: Final = 20.0
"""Within which a submitted point has to be settled: some hundred times what a commit takes."""

SUBMITTED_MAX: Final = 5
"""Points that a thread submits one after the other: each waits for a commit."""

PATIENCE_SECONDS: Final = 120.0
"""Many times what a run takes: what is not done by then hangs."""

TOTAL: Final = Labels("total")
DIRECT: Final = [Labels("direct", thread=str(number)) for number in range(THREADS)]
BUFFERED: Final = [Labels("buffered", thread=str(number)) for number in range(THREADS)]

Rows: TypeAlias = "list[tuple[int, object]]"


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run is to be.

    Attributes:
        seed: of all that is random but the order in which threads take turns.
        folder: for the store and its snapshots.
        scheme: which backend.
        sums: whether the store's policy is `sum`.
        steps: actions of each thread before the closing begins.
        options: further ones of the backend.
        spoil: plants a fault in an engine that was just opened.
        buffer: what buffers are made of.
    """

    seed: int
    folder: Path
    scheme: str
    sums: bool
    steps: int
    options: Mapping[str, str | int] = field(default_factory=dict)
    spoil: Callable[[Engine], None] = lambda engine: None
    buffer: type[WriteBuffer] = WriteBuffer

    @property
    def is_shared(self) -> bool:
        """Whether several engines can have the store open."""
        return self.scheme == "lmdb"

    def open(self) -> Engine:
        """Open the store."""
        location = self.folder / "store" if self.is_shared else ""
        options = {"duplicate_policy": "sum" if self.sums else "last", **self.options}
        engine = tsengine.open(f"{self.scheme}://{location}?{urlencode(options)}")
        self.spoil(engine)
        return engine


def run(plan: Plan) -> Counter[str]:
    """Do one run; give how often each action was done.

    Raises:
        AssertionError: a promise was broken; it names the seed and what was seen.
    """
    before = set(threading.enumerate())
    try:
        with _many_switches(), _small_merges(), _log_of_tsengine() as complaints:
            crowd = _Crowd(plan)
            try:
                crowd.work()
                crowd.check_stored()
            except AssertionError:
                crowd.give_up()
                raise
            crowd.engine.close()
        assert not complaints, f"the log has {complaints}"
        left = [thread.name for thread in threading.enumerate() if thread not in before]
        assert not left, f"threads {left} go on after close"
        held = _open_files(plan.folder)
        assert not held, f"{held} are open after close"
    except AssertionError as error:
        raise AssertionError(f"seed {plan.seed}, {plan.scheme}: {error}") from error
    return crowd.done


def torture(seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Run at random for a while, in LMDB and in memory; give how often what was done."""
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    runs = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        here = folder / f"threads-{runs}"
        here.mkdir()
        scheme = chance.choice(["lmdb", "lmdb", "memory"])
        options: dict[str, str | int] = {}
        if scheme == "lmdb":
            options["merging"] = chance.choice(["background", "inline", "manual"])
            options["block_points"] = chance.choice([4, 64, 16_384])
        steps = chance.randrange(5, 100)
        plan = Plan(chance.randrange(1 << 32), here, scheme, chance.random() < 0.5, steps, options)
        try:
            done += run(plan)
        except AssertionError as error:
            raise AssertionError(f"torture seed {seed}, {plan}: {error}") from error
        shutil.rmtree(here)
        runs += 1
    return {"runs": runs, "actions": dict(sorted(done.items()))}


class _Crowd:
    """The threads of a run, and what they share."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        chance = random.Random(plan.seed)
        self.engine = plan.open()
        self.buffers = [
            plan.buffer(
                self.engine,
                points_max=chance.choice([1, 3, 20, 200]),
                age_max=chance.choice([None, 0.001, 1.0]),
                background=chance.random() < 0.4,
            )
            for _ in range(BUFFERS)
        ]
        self.workers = [
            _Worker(self, number, random.Random(chance.randrange(1 << 32)))
            for number in range(THREADS)
        ]
        self.closes_engine_first = chance.random() < 0.3
        self.ready = threading.Semaphore(0)  # released by each worker that expects a close
        self.is_over = threading.Event()  # everything is closed, or a worker has failed
        self.snapshots = count()
        self.done: Counter[str] = Counter()

    def work(self) -> None:
        """Let all threads do their steps, then close everything under them."""
        threads = [
            threading.Thread(target=worker.run, name=f"worker-{worker.number}", daemon=True)
            for worker in self.workers
        ]
        closer = threading.Thread(target=self._close_all, name="closer", daemon=True)
        deadline = time.monotonic() + PATIENCE_SECONDS
        for thread in [*threads, closer]:
            thread.start()
        for thread in [*threads, closer]:
            thread.join(max(deadline - time.monotonic(), 0))
        hang = [thread.name for thread in [*threads, closer] if thread.is_alive()]
        if hang:  # not an assertion: what tidies up after those would hang as well
            raise RuntimeError(f"seed {self.plan.seed}: {hang} hang:\n{_stacks()}")
        for worker in self.workers:
            if worker.error is not None:
                raise AssertionError(
                    f"thread {worker.number}, {worker.doing}: {worker.error!r}"
                ) from worker.error
        for worker in self.workers:
            self.done += worker.done

    def _close_all(self) -> None:
        for _ in range(THREADS):
            self.ready.acquire(timeout=PATIENCE_SECONDS)
        closing: list[Callable[[], None]] = [buffer.close for buffer in self.buffers]
        if self.closes_engine_first:
            closing.insert(0, self.engine.close)
        elif self.plan.is_shared:  # elsewhere nothing would be left to look at
            closing.append(self.engine.close)
        for close in closing:
            with suppress(UnsavedPointsError):  # the points are pending, and are counted
                close()
        self.is_over.set()

    def give_up(self) -> None:
        """Close the buffers of a run that has failed, so that they do not warn of their points."""
        self.engine.close()
        for buffer in self.buffers:
            with suppress(UnsavedPointsError):
                buffer.close()
            buffer.take_pending()

    def check_stored(self) -> None:
        """Compare what the store and the buffers hold with what was written."""
        pending = [buffer.take_pending() for buffer in self.buffers]
        for number, buffer in enumerate(self.buffers):
            taken = sum(worker.taken[number] for worker in self.workers)
            held = buffer.committed.accepted + len(pending[number])
            assert held == taken, f"buffer {number} took {taken} points and stored or has {held}"
        if self.closes_engine_first and not self.plan.is_shared:
            return
        engine = self.plan.open() if self.plan.is_shared else self.engine
        try:
            engine.check()
            for worker in self.workers:
                worker.check_own(engine, [*pending[worker.number % BUFFERS]])
            if self.plan.sums:
                self._check_total(engine, [point for points in pending for point in points])
        finally:
            engine.close()

    def _check_total(self, engine: Engine, pending: Iterable[DataPoint]) -> None:
        expected: Counter[int] = Counter()
        for worker in self.workers:
            expected += worker.added
        stored = Counter(dict(_rows(engine, TOTAL)))
        stored += Counter(point.timestamp for point in pending if point.labels is TOTAL)
        assert stored == expected, f"ones were added as {expected}, stored are {stored}"


class _Worker:
    """One thread: what it does, and what it knows of its series."""

    def __init__(self, crowd: _Crowd, number: int, chance: random.Random) -> None:
        self._crowd = crowd
        self._chance = chance
        self.number = number
        self._engine = crowd.engine
        self._buffer = crowd.buffers[number % BUFFERS]
        self._direct: dict[int, object] = {}
        self._written = 0  # rows of the buffered series that were taken
        self._flushed = 0  # of these at least so many are stored; others read it
        self._expects_close = False
        self.added: Counter[int] = Counter()
        self.taken: Counter[int] = Counter()  # points by buffer
        self.done: Counter[str] = Counter()
        self.doing = "starting"
        self.error: BaseException | None = None
        self._actions: dict[Callable[[], None], int] = {
            self._write_direct: 12,
            self._write_buffered: 12,
            self._add_to_total: 8 if crowd.plan.sums else 0,
            self._flush: 4,
            self._read_own: 6,
            self._read_any: 8,
            self._scan: 3,
            self._look: 4,
            self._delete_rows: 3,
            self._delete_series: 1,
            self._compact: 1,
            self._snapshot: 1,
            self._check: 1,
            self._reopen: 2 if crowd.plan.is_shared else 0,
        }

    def run(self) -> None:
        """Do the steps, then go on until all is closed."""
        crowd = self._crowd
        try:
            for _ in range(crowd.plan.steps):
                self._step()
                if crowd.is_over.is_set():
                    return
            self._expects_close = True
            crowd.ready.release()
            while not crowd.is_over.is_set():
                self._step()
        except BaseException as error:  # noqa: BLE001  # raised where the threads are joined
            self.error = error
            crowd.is_over.set()
            crowd.ready.release(THREADS)

    def check_own(self, engine: Engine, pending: list[DataPoint]) -> None:
        """Compare what is stored, and what a buffer gave back, with what was written."""
        direct = _rows(engine, DIRECT[self.number])
        assert direct == sorted(self._direct.items()), f"{direct} are not {self._direct}"
        labels = BUFFERED[self.number]
        rows = _rows(engine, labels)
        rows += [(point.timestamp, point.value) for point in pending if point.labels is labels]
        assert rows == _ascending(self._written), f"{labels}: 1 to {self._written} are not {rows}"

    def _step(self) -> None:
        action = self._chance.choices([*self._actions], [*self._actions.values()])[0]
        self.doing = action.__name__
        try:
            action()
        except (NotOpenError, UnsavedPointsError):
            if not self._expects_close:
                raise
        self.done[action.__name__.strip("_")] += 1

    # Writing.

    def _write_direct(self) -> None:
        labels = DIRECT[self.number]
        moments = self._chance.choices(range(1, MOMENTS), k=self._chance.randrange(1, 6))
        points = [(labels, moment, self._value()) for moment in moments]
        if self._chance.random() < 0.5:
            receipt = self._engine.write(points)
        else:
            receipt = self._engine.write_series(labels, moments, [value for _, _, value in points])
        assert receipt.accepted == len(points), receipt
        for _, moment, value in points:
            before = self._direct.get(moment, 0) if self._crowd.plan.sums else 0
            self._direct[moment] = before + value  # type: ignore[operator]  # numbers all

    def _value(self) -> int | float:
        value = self._chance.randrange(1_000)
        return value if self.number % 2 else float(value)

    def _write_buffered(self) -> None:
        labels = BUFFERED[self.number]
        many = 1 if self._chance.random() < 0.5 else self._chance.randrange(2, 60)
        moments = range(self._written + 1, self._written + 1 + many)
        points = [(labels, moment, float(moment)) for moment in moments]
        way = self._chance.randrange(4)
        if way == 0:
            for point in points:
                self._buffer.write(point)
                self._note_taken(1)
            return
        if way == 3:
            for point in points[:SUBMITTED_MAX]:
                future = self._buffer.submit(point)
                self._note_taken(1)
                done, _ = wait([future], SETTLED_SECONDS)
                assert done, f"{point} was submitted, and nothing became of it"
                future.result()
            return
        if way == 1:
            self._buffer.write_many(points)
        else:
            self._buffer.write_series(labels, [*moments], [value for _, _, value in points])
        self._note_taken(many)

    def _note_taken(self, points: int) -> None:
        self._written += points
        self.taken[self.number % BUFFERS] += points

    def _add_to_total(self) -> None:
        moment = self._chance.randrange(1, 9)
        place = self._chance.randrange(BUFFERS + 1)
        if place < BUFFERS:
            self._crowd.buffers[place].write((TOTAL, moment, 1))
            self.taken[place] += 1
        else:
            self._engine.write([(TOTAL, moment, 1)])
        self.added[moment] += 1

    def _flush(self) -> None:
        chosen = self._chance.randrange(BUFFERS)
        owners = self._crowd.workers[chosen::BUFFERS]
        written = [owner._written for owner in owners]
        self._crowd.buffers[chosen].flush()
        for owner, rows in zip(owners, written, strict=True):
            owner._flushed = max(owner._flushed, rows)

    def _delete_rows(self) -> None:
        start = self._chance.randrange(MOMENTS)
        end = self._chance.randrange(start, MOMENTS + 1)
        self._engine.delete(DIRECT[self.number], start, end)
        for moment in range(start, end):
            self._direct.pop(moment, None)

    def _delete_series(self) -> None:
        self._engine.delete(DIRECT[self.number])
        self._direct.clear()

    # Reading.

    def _read_own(self) -> None:
        labels = DIRECT[self.number]
        expected = sorted(self._direct.items())
        start = self._chance.randrange(MOMENTS)
        end = self._chance.randrange(start, MOMENTS + 1)
        within = [row for row in expected if start <= row[0] < end]
        assert _rows(self._engine, labels) == expected, "an own write is not read"
        assert _rows(self._engine, labels, start, end) == within, f"{start} to {end} is not right"
        assert self._engine.count(labels) == len(expected), "count() counts otherwise"
        latest = [(point.timestamp, point.value) for point in self._engine.latest(labels)]
        assert latest == expected[-1:], f"{latest} is not the latest of {expected}"

    def _read_any(self) -> None:
        owner = self._chance.choice(self._crowd.workers)
        flushed = owner._flushed
        labels = BUFFERED[owner.number]
        rows = _rows(self._engine, labels)
        assert rows == _ascending(len(rows)), f"{labels} has holes: {rows}"
        assert len(rows) >= flushed, f"{labels}: {flushed} were flushed and {len(rows)} are read"

    def _scan(self) -> None:
        flushed = {BUFFERED[owner.number]: owner._flushed for owner in self._crowd.workers}
        found: dict[Labels, Rows] = {}
        scan = self._engine.scan('{__name__="buffered"}')
        batches = self._chance.choice([1, 3, 1_000])
        for batch, _ in zip(scan, range(batches), strict=False):
            found.setdefault(batch.labels, []).extend(_rows_of(batch))
        for labels, rows in found.items():
            assert rows == _ascending(len(rows)), f"{labels} is scanned with holes: {rows}"
            assert batches < len(found) or len(rows) >= flushed[labels], f"{labels} is cut off"

    def _look(self) -> None:
        names = {labels.id for labels in (*DIRECT, *BUFFERED, TOTAL)}
        listed = [labels.id for labels in self._engine.series()]
        assert listed == sorted(set(listed) & names), f"series() lists {listed}"
        assert self._engine.stats().points >= 0
        edges = self._engine.earliest('{__name__="buffered"}')
        assert all(point.timestamp == 1 for point in edges), f"{edges} do not begin at 1"

    # Upkeep.

    def _compact(self) -> None:
        self._engine.compact()

    def _check(self) -> None:
        self._engine.check()

    def _snapshot(self) -> None:
        path = self._crowd.plan.folder / f"snapshot-{next(self._crowd.snapshots)}"
        flushed = self._flushed
        expected = sorted(self._direct.items())
        self._engine.snapshot(str(path))
        with tsengine.open(f"{self._crowd.plan.scheme}://{path}") as copy:
            copy.check()
            assert _rows(copy, DIRECT[self.number]) == expected, "a snapshot is not right"
            rows = _rows(copy, BUFFERED[self.number])
            assert rows == _ascending(len(rows)), f"a snapshot has holes: {rows}"
            assert len(rows) >= flushed, f"a snapshot lacks {flushed - len(rows)} rows"
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()

    def _reopen(self) -> None:
        with self._crowd.plan.open() as other:
            assert _rows(other, DIRECT[self.number]) == sorted(self._direct.items())


def _rows(engine: Engine, labels: Labels, start: int | None = None, end: int | None = None) -> Rows:
    return [row for batch in engine.query(labels, start, end) for row in _rows_of(batch)]


def _rows_of(batch: SeriesBatch) -> Rows:
    return list(zip(batch.timestamps.tolist(), batch.values.tolist(), strict=True))


def _ascending(rows: int) -> Rows:
    return [(moment, float(moment)) for moment in range(1, rows + 1)]


@contextmanager
def _many_switches() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _small_merges() -> Iterator[None]:
    """Make merges due after a few commits, in steps of a few rows."""
    with mock.patch.multiple(merge, RUNS_DUE=3, RUNS_MERGED=2, STEP_ROWS=16, OWN_BLOCKS_FROM=5):
        yield


@contextmanager
def _log_of_tsengine() -> Iterator[list[str]]:
    """Gather what is logged: where all goes well, nothing."""
    lines: list[str] = []
    handler = logging.Handler()

    def emit(record: logging.LogRecord) -> None:
        # An engine that is closed under a buffer is what some of the runs are about.
        if getattr(record, "error_type", "") != "NotOpenError":
            lines.append(handler.format(record))

    handler.emit = emit  # type: ignore[method-assign]  # shorter than a class
    logger = logging.getLogger("tsengine")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def _stacks() -> str:
    """Tell where every thread stands."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )


def _open_files(folder: Path) -> list[str]:
    """Give the files in a folder that this process has open."""
    held = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            path = str(link.readlink())
        except FileNotFoundError:
            continue  # the listing itself
        if path.startswith(str(folder)):
            held.append(path)
    return held
