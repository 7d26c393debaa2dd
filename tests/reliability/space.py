"""Space: how large the file is beside the live data, and what `compact()` gives back.

A soak writes with a clock of its own, so that retention moves, and overwrites, deletes ranges
and whole series on the way. Live data is what a compacted copy weighs: a snapshot, opened
under the same clock and compacted. Whatever the store does meanwhile, its file stays within

    twice the live data, + what merging has not packed yet, + what open scans kept from it

and its rows stay those of the copy.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from tsengine import GroupedBatch, Labels, SeriesBatch
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.lmdb.merge import RUNS_DUE

FACTOR: Final = 2.0
"""What is promised."""

START_NS: Final = 1_700_000_000_000_000_000
STEP_NS: Final = 1_000_000_000
RAW_BYTES: Final = 16

TABLES_BYTES: Final = 1 << 18
"""What LMDB's pages take in a store of nothing: its tables, and two free lists in turn."""

READER: Final = Path(__file__).with_name("space_reader.py")
PATIENCE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a soak is to be.

    Attributes:
        seed: of all that is random.
        commits: how many; the first third warms up.
        series: how many at any moment.
        steps: rows of each series in a commit.
        retention_commits: commits that retention keeps; None for no retention.
        overwrites, range_deletes, series_deletes, scans: how likely, at each commit, is one
            that writes to times written before, a delete of a range, a delete of series, and
            a scan that is held for a while.
        merging: the option of that name.
    """

    seed: int
    commits: int = 360
    series: int = 40
    steps: int = 50
    retention_commits: int | None = 120
    overwrites: float = 0.0
    range_deletes: float = 0.0
    series_deletes: float = 0.0
    scans: float = 0.0
    merging: str = "inline"

    @property
    def floor_bytes(self) -> int:
        """What may be there beside the live data: two generations of commits as they came."""
        return TABLES_BYTES + 2 * RUNS_DUE * self.series * self.steps * RAW_BYTES


@dataclass(frozen=True, slots=True)
class Weight:
    """A store at one moment, in bytes; `pinned` is by how much it grew under open scans."""

    commits: int
    file: int
    live: int
    pinned: int

    def ratio(self, plan: Plan) -> float:
        """The file by the live data, without what may be there beside it."""
        return max(self.file - self.pinned - plan.floor_bytes, 0) / max(self.live, 1)


class Soak:
    """A store at work, and all that is random about it.

    Args:
        plan: what it is to be.
        folder: for the store and its copies; empty.
    """

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan = plan
        self._folder = folder
        self._random = random.Random(plan.seed)
        self._numbers = np.random.default_rng(plan.seed)
        self._now = START_NS
        self._made = plan.series
        self._labels = [_labels(number) for number in range(plan.series)]
        self._held: Iterator[SeriesBatch] | None = None
        self._held_until = 0
        self._held_from = 0
        self._pinned = 0
        self.options: dict[str, object] = {"merging": plan.merging}
        if plan.retention_commits is not None:
            kept = plan.retention_commits * plan.steps * STEP_NS
            self.options["retention"] = f"{kept // 1_000_000_000}s"
        self.engine = self._open(folder / "store")

    def run(self) -> list[Weight]:
        """Write and delete to the end; give what was weighed on the way.

        Raises:
            AssertionError: the file was too large, or rows differ from those of the copy.
        """
        plan = self._plan
        weights = []
        try:
            for commit in range(plan.commits):
                self._commit()
                self._disturb(commit)
                if commit >= plan.commits // 3 and commit % (plan.commits // 12) == 0:
                    weights.append(self._weigh(commit))
            self._let_go()
        finally:
            self.engine.close()
        return weights

    def _open(self, path: Path) -> LmdbEngine:
        return LmdbEngine(str(path), clock_ns=lambda: self._now, **self.options).open()

    def _commit(self) -> None:
        plan = self._plan
        start = self._now
        if self._random.random() < plan.overwrites:
            back = self._random.randint(1, plan.retention_commits or 100)
            start = max(start - back * plan.steps * STEP_NS, START_NS)
        else:
            self._now += plan.steps * STEP_NS
        times = start + np.arange(plan.steps, dtype=np.int64) * STEP_NS
        count = len(self._labels)
        self.engine.write_batch(
            GroupedBatch(
                list(self._labels),
                np.arange(count + 1, dtype=np.int64) * plan.steps,
                np.tile(times, count),
                self._numbers.standard_normal(count * plan.steps).cumsum(),
            )
        )

    def _disturb(self, commit: int) -> None:
        plan, chance = self._plan, self._random
        if chance.random() < plan.range_deletes:
            span = max((self._now - START_NS) // STEP_NS, 1)
            start = START_NS + chance.randrange(span) * STEP_NS
            end = start + chance.randint(1, 20 * plan.steps) * STEP_NS
            self.engine.delete(chance.choice([None, chance.choice(self._labels)]), start, end)
        if chance.random() < plan.series_deletes:
            place = chance.randrange(len(self._labels))
            self.engine.delete(self._labels[place])
            self._labels[place] = _labels(self._made)
            self._made += 1
        if self._held is None and chance.random() < plan.scans:
            self._held = self.engine.scan()
            next(self._held, None)
            self._held_until = commit + 2 * RUNS_DUE
            self._held_from = self.engine.stats().bytes
        elif self._held is not None and commit >= self._held_until:
            self._let_go()

    def _let_go(self) -> None:
        """End the scan that is held; the file does not shrink by itself."""
        if self._held is not None:
            for _ in self._held:
                pass
            self._held = None
            self._pinned += max(self.engine.stats().bytes - self._held_from, 0)

    def _weigh(self, commit: int) -> Weight:
        """Compare the file with a compacted copy, and the rows with its rows."""
        copied = self._folder / "copy"
        self.engine.snapshot(str(copied))
        copy = self._open(copied)
        try:
            report = copy.compact()
            assert not report.reason, f"compact() of a copy gave nothing back: {report.reason}"
            pinned = self._pinned
            file = self.engine.stats().bytes
            if self._held is not None:
                pinned += max(file - self._held_from, 0)
            weight = Weight(commit, file, report.bytes_after, pinned)
            assert_same_rows(self.engine.scan(), copy.scan())
        finally:
            copy.close()
            shutil.rmtree(copied)
        ratio = weight.ratio(self._plan)
        assert ratio <= FACTOR, (
            f"{self._plan}: after {commit} commits the file takes {weight.file:,} bytes, "
            f"{ratio:.2f} times the {weight.live:,} of a compacted copy; "
            f"{weight.pinned:,} were pinned; {self.engine.stats().details}"
        )
        return weight


def _labels(number: int) -> Labels:
    return Labels("space", host=str(number))


def assert_same_rows(ours: Iterator[SeriesBatch], theirs: Iterator[SeriesBatch]) -> None:
    """Hold two scans to the same rows."""
    assert _rows(ours) == _rows(theirs), "the rows of the store and its compacted copy differ"


def _rows(scan: Iterator[SeriesBatch]) -> dict[Labels, bytes]:
    times: dict[Labels, bytes] = {}
    values: dict[Labels, bytes] = {}
    for batch in scan:
        times[batch.labels] = times.get(batch.labels, b"") + batch.timestamps.tobytes()
        values[batch.labels] = values.get(batch.labels, b"") + batch.values.tobytes()
    return {labels: times[labels] + values[labels] for labels in times}


# compact() beside readers in other processes.


@dataclass(frozen=True, slots=True)
class Compactions:
    """How often `compact()` gave space back, and how often it said why not."""

    given_back: int
    refused: int
    reads: int


def compact_beside_readers(seed: int, folder: Path, rounds: int) -> Compactions:
    """Commit, delete and compact while readers elsewhere come and go.

    Each reader says what it saw; it must be at least what was committed before it was asked,
    through whatever file it had open.

    Raises:
        AssertionError: a commit was not seen, or a refusal had no reason.
    """
    chance = random.Random(seed)
    path = folder / "store"
    given_back = refused = reads = 0
    readers: list[Reader] = []
    with LmdbEngine(str(path)) as engine:
        try:
            for commit in range(1, rounds + 1):
                engine.write_series(Labels("bulk"), *_bulk(commit))
                engine.write([(Labels("commits"), commit, float(commit))])
                if chance.random() < 0.5:
                    engine.delete(Labels("bulk"))
                if chance.random() < 0.4:
                    readers.append(Reader(path))
                if readers and chance.random() < 0.4:
                    readers.pop(chance.randrange(len(readers))).close()
                if chance.random() < 0.7:
                    before = engine.stats().bytes
                    report = engine.compact()
                    if readers:
                        assert report.reason, f"seed {seed}: compacted under an open reader"
                        refused += 1
                    else:
                        assert not report.reason, f"seed {seed}: alone, and {report.reason}"
                        assert report.bytes_after <= before
                        given_back += 1
                for reader in readers:
                    seen = reader.last()
                    reads += 1
                    assert seen == commit, f"seed {seed}: a reader saw {seen} of {commit} commits"
            engine.check()
        finally:
            for reader in readers:
                reader.close()
    return Compactions(given_back, refused, reads)


def _bulk(commit: int) -> tuple[Sequence[int], Sequence[float]]:
    first = commit * 5_000
    return range(first, first + 5_000), np.random.default_rng(commit).random(5_000).tolist()


class Reader:
    """A process that has a store open for reading, and tells what it sees when asked."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(READER), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._asks, self._answers = self._process.stdin, self._process.stdout
        assert self._answers.readline() == "open\n", "a reader did not open the store"

    def last(self) -> int:
        """The number of the last commit that it sees."""
        print(file=self._asks, flush=True)
        return int(self._answers.readline())

    def close(self) -> None:
        """End the process and wait for its end."""
        self._asks.close()
        try:
            self._process.wait(PATIENCE_SECONDS)
        finally:
            self._process.kill()
            self._process.wait()
            self._answers.close()


def torture(seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Soak stores of random habits for a while; give the worst ratios."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    soaks = commits = 0
    worst = 0.0
    compactions = Compactions(0, 0, 0)
    while time.monotonic() < end or not soaks:
        here = folder / f"space-{soaks}"
        here.mkdir()
        if chance.random() < 0.2:
            got = compact_beside_readers(chance.randrange(1 << 32), here, 30)
            compactions = Compactions(
                compactions.given_back + got.given_back,
                compactions.refused + got.refused,
                compactions.reads + got.reads,
            )
        plan = Plan(
            chance.randrange(1 << 32),
            commits=chance.choice([200, 400]),
            series=chance.choice([1, 10, 40]),
            steps=chance.choice([20, 50, 100]),
            retention_commits=chance.choice([None, 40, 120]),
            overwrites=chance.choice([0.0, 0.3]),
            range_deletes=chance.choice([0.0, 0.1]),
            series_deletes=chance.choice([0.0, 0.1]),
            scans=chance.choice([0.0, 0.02]),
        )
        soak = here / "soak"
        soak.mkdir()
        weights = Soak(plan, soak).run()
        worst = max(worst, *(weight.ratio(plan) for weight in weights))
        commits += plan.commits
        soaks += 1
        shutil.rmtree(here)
    return {
        "soaks": soaks,
        "commits": commits,
        "file_by_live_data_at_most": round(worst, 2),
        "compactions_given_back": compactions.given_back,
        "compactions_refused_beside_readers": compactions.refused,
        "reads_elsewhere": compactions.reads,
    }
