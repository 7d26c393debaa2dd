"""A process of the history checker: the writer of a store, or one of its readers.

Started by `processes.py` as a file of its own, so that it imports nothing from beside it. What the
store is to hold after each operation follows from the number of the operation alone (`History`):
that is how a reader, which has seen none of them, can judge what it reads.
"""

from __future__ import annotations

import enum
import itertools
import mmap
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from tsengine.backends.lmdb import LmdbEngine, environment
from tsengine.backends.lmdb import engine as lmdb_engine
from tsengine.backends.lmdb.runs import Manifest
from tsengine.backends.lmdb.store import Store
from tsengine.engine import Engine
from tsengine.errors import SnapshotExpiredError
from tsengine.model import Labels, SeriesBatch
from tsengine.selectors import to_selector

SERIES: Final = [Labels("m", host=str(number)) for number in range(6)]

HEAD: Final = 2**62
"""Timestamp of a row that every write overwrites: its value is the number of the last one."""

KEPT: Final = 40
"""Timestamps that a delete of what is old leaves."""

LATE: Final = 5
"""How far back the late point of a write lies."""

SNAPSHOT_SECONDS: Final = 0.3
"""`snapshot_age_max` of the writer: scans that rest for longer may expire."""

Rows = dict[Labels, dict[int, float]]


class Word(enum.IntEnum):
    """Places in the memory that the processes share, 8 bytes each."""

    BEGUN = 0  # the operation that the writer began last
    ACKNOWLEDGED = 1  # the last one that had returned
    RESTING = 2  # readers close the store, so that a compaction can have the file alone
    STOPPING = 3
    COMPACTED = 4  # compactions that swapped the file
    EXPIRED = 5  # scans that were told that they had expired
    READS = 8  # reads that were found right, one place a reader


WORDS: Final = 64


def shared_words(path: Path) -> memoryview:
    """Map the file of `WORDS` numbers; one that is set is seen by all processes at once."""
    with path.open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 8 * WORDS)).cast("Q")


class History:
    """What the store holds after operation `number`."""

    def __init__(self, number: int = 0, rows: Rows | None = None) -> None:
        self.number = number
        self.rows: Rows = {} if rows is None else rows

    def copy(self) -> History:
        """Give one that goes on by itself."""
        return History(self.number, {labels: dict(rows) for labels, rows in self.rows.items()})

    def advance(self, number: int) -> None:
        """Go on to an operation, where it is not there yet."""
        while self.number < number:
            self.step()

    def step(self) -> None:
        """Do the next operation."""
        self.number = number = self.number + 1
        if number % 97 == 0:
            for labels, rows in list(self.rows.items()):
                self.rows[labels] = {at: rows[at] for at in rows if at >= number - KEPT}
        elif number % 61 == 0:
            self.rows.pop(SERIES[number // 61 % len(SERIES)], None)
        else:
            for labels in SERIES:
                rows = self.rows.setdefault(labels, {})
                rows.update((at, float(number)) for at in _timestamps(number))


def _timestamps(number: int) -> Iterable[int]:
    return (max(number - LATE, 1), number, HEAD)


def operate(engine: Engine, number: int) -> None:
    """Do an operation: a write to all series, a delete of what is old, or of a series."""
    if number % 97 == 0:
        engine.delete(None, 1, max(number - KEPT, 1))
    elif number % 61 == 0:
        engine.delete(SERIES[number // 61 % len(SERIES)])
    else:
        engine.write((labels, at, float(number)) for labels in SERIES for at in _timestamps(number))


# What is read, and what it would be after an operation.


def gathered(batches: Iterable[SeriesBatch]) -> Rows:
    """Bring the batches of a read into the form of a history."""
    rows: Rows = {}
    for batch in batches:
        own = rows.setdefault(batch.labels, {})
        before = max(own, default=0)
        for at, value in zip(batch.timestamps.tolist(), batch.values.tolist(), strict=True):
            assert at > before, f"{batch.labels}: {at} comes after {before}"
            own[at] = value
            before = at
    return rows


def all_rows(history: History) -> Rows:
    """Give what a query of everything answers."""
    return {labels: rows for labels, rows in history.rows.items() if rows}


READS: Final[list[tuple[Callable[[Engine], object], Callable[[History], object]]]] = [
    (lambda engine: gathered(engine.query()), all_rows),
    (
        lambda engine: gathered(engine.query('m{host=~"[135]"}')),
        lambda history: {
            labels: rows for labels, rows in history.rows.items() if labels["host"] in "135"
        },
    ),
    (
        lambda engine: gathered(engine.query(SERIES[2])),
        lambda history: {SERIES[2]: history.rows[SERIES[2]]} if SERIES[2] in history.rows else {},
    ),
    (lambda engine: engine.count(), lambda history: sum(map(len, history.rows.values()))),
    (
        lambda engine: [(*point,) for point in engine.latest()],
        lambda history: [
            (labels, max(rows), rows[max(rows)]) for labels, rows in sorted_rows(history)
        ],
    ),
    (
        lambda engine: list(engine.series()),
        lambda history: [labels for labels, _ in sorted_rows(history)],
    ),
    (
        lambda engine: len(engine.label_values("host")),
        lambda history: len(history.rows),
    ),
]


def sorted_rows(history: History) -> list[tuple[Labels, dict[int, float]]]:
    """Give the series and their rows by series ID."""
    return sorted(history.rows.items(), key=lambda item: item[0].id)


class Reader:
    """Reads at random and judges what it gets.

    Args:
        words: the shared numbers.
        place: which reader it is.
        rng: what it reads, and for how long.
    """

    def __init__(self, words: memoryview, place: int, rng: random.Random) -> None:
        self.words = words
        self.place = Word.READS + place
        self.rng = rng
        self.history = History()  # of the earliest moment that the last read may have seen

    def read(self, engine: Engine) -> None:
        """Read once, and check the answer."""
        ask, expect = self.rng.choice(READS)
        self.history.advance(self.words[Word.ACKNOWLEDGED])
        got = ask(engine)
        self.judge(got, expect, self.words[Word.BEGUN])

    def scan_slowly(self, engine: Engine) -> None:
        """Scan with rests between the batches, and check that they are of one moment."""
        self.history.advance(self.words[Word.ACKNOWLEDGED])
        scan = engine.scan()
        batches = list(itertools.islice(scan, 1))
        last = self.words[Word.BEGUN]
        rest = self.rng.choice([0, 0.001, 0.001, 0.05])  # the last outlives `SNAPSHOT_SECONDS`
        for batch in scan:
            batches.append(batch)
            time.sleep(rest)
        self.judge(gathered(batches), all_rows, last)

    def read_a_snapshot(self, engine: Engine) -> None:
        """Have a snapshot made while the writer goes on, and check what it holds."""
        self.history.advance(self.words[Word.ACKNOWLEDGED])
        with tempfile.TemporaryDirectory(dir=Path(engine.location).parent) as folder:
            engine.snapshot(f"{folder}/snapshot")
            last = self.words[Word.BEGUN]
            with LmdbEngine(f"{folder}/snapshot", read_only=True) as snapshot:
                self.judge(gathered(snapshot.query()), all_rows, last)

    def judge(self, got: object, expect: Callable[[History], object], last: int) -> None:
        """Find the moment that was read: not before what had been seen, or was acknowledged."""
        moment = self.history.copy()
        while expect(moment) != got:
            assert moment.number < last, (
                f"reader {self.place} saw no moment from operation {self.history.number} to {last}:"
                f" {describe(got, expect(self.history))}"
            )
            moment.step()
        self.history = moment
        self.words[self.place] += 1


def describe(got: object, expected: object) -> str:
    """Say in few words how an answer differs from the earliest that would have been right."""
    if isinstance(got, dict) and isinstance(expected, dict):
        parts = []
        for labels in sorted(got.keys() | expected.keys(), key=lambda labels: labels.id):
            mine, right = got.get(labels, {}), expected.get(labels, {})
            parts.append(
                f"{labels}: head {mine.get(HEAD)} and not {right.get(HEAD)}, too many "
                f"{sorted(mine.keys() - right.keys())[:5]}, lacking "
                f"{sorted(right.keys() - mine.keys())[:5]}"
            )
        return "; ".join(parts)
    return f"{got} and not {expected}"


def run_reader(path: str, words: memoryview, place: int, seed: int, manner: str) -> None:
    """Read until told to stop."""
    rng = random.Random(seed)
    reader = Reader(words, place, rng)
    if manner == "stale":
        plant_stale_manifest()
    elif manner == "torn":
        plant_torn_query()
    while not words[Word.STOPPING]:
        if words[Word.RESTING]:
            time.sleep(0.002)
            continue
        with LmdbEngine(path, read_only=True).open(timeout=60) as engine:
            for _ in range(rng.randrange(1, 3 if manner == "churn" else 200)):
                if words[Word.STOPPING] or words[Word.RESTING]:
                    break
                try:
                    deed = rng.random()
                    if deed < 0.02:
                        reader.read_a_snapshot(engine)
                    elif deed < 0.1:
                        reader.scan_slowly(engine)
                    else:
                        reader.read(engine)
                except SnapshotExpiredError:
                    words[Word.EXPIRED] += 1


def run_writer(path: str, words: memoryview, seed: int, manner: str) -> None:
    """Do one operation after the other until told to stop, from where an earlier writer ended."""
    rng = random.Random(seed)
    history = History()
    history.advance(words[Word.ACKNOWLEDGED])
    with LmdbEngine(path, snapshot_age_max=SNAPSHOT_SECONDS).open(timeout=60) as engine:
        found = gathered(engine.query())
        if found != all_rows(history):  # then what was begun had happened
            begun = words[Word.BEGUN]
            assert begun > history.number, f"the store is not as operation {history.number} left it"
            history.step()
            assert found == all_rows(history), (
                f"the store is as neither operation {history.number - 1} nor {begun} left it: "
                f"{describe(found, all_rows(history))}"
            )
        words[Word.ACKNOWLEDGED] = history.number
        while not words[Word.STOPPING]:
            number = history.number + 1
            words[Word.BEGUN] = number
            if manner == "early":
                words[Word.ACKNOWLEDGED] = number
                time.sleep(0.01)
            operate(engine, number)
            words[Word.ACKNOWLEDGED] = number
            history.step()
            if rng.random() < (0.3 if manner == "churn" else 0.02):
                words[Word.COMPACTED] += not engine.compact().reason
            if rng.random() < 0.05:
                assert gathered(engine.query()) == all_rows(history)


def plant_stale_manifest() -> None:
    """Make readers use a manifest that they had read at another moment."""
    right = Store.manifest_of
    kept: dict[int, Manifest] = {}

    def stale(self: Store, transaction: object) -> Manifest:
        if self.settings.read_only and transaction.id() % 8:  # type: ignore[attr-defined]  # LMDB's
            kept.setdefault(id(self), right(self, transaction))  # type: ignore[arg-type]  # LMDB's
            return kept[id(self)]
        kept[id(self)] = right(self, transaction)  # type: ignore[arg-type]  # LMDB's
        return kept[id(self)]

    Store.manifest_of = stale  # type: ignore[method-assign]  # planted


def plant_torn_query() -> None:
    """Make a scan read each series at a moment of its own."""
    right = LmdbEngine._scan

    def torn(self: LmdbEngine, selector: object, start: int, end: int) -> Iterable[SeriesBatch]:
        wanted = {batch.labels for batch in right(self, selector, start, end)}  # type: ignore[arg-type]  # as given
        for labels in sorted(wanted, key=lambda labels: labels.id):
            time.sleep(0.002)
            yield from right(self, to_selector(labels), start, end)

    LmdbEngine._scan = torn  # type: ignore[method-assign,assignment]  # planted


def main() -> None:
    """Take the role that the arguments name."""
    role, path, words_path, place, seed, manner = sys.argv[1:]
    environment.MAP_BYTES = 1 << 19  # type: ignore[misc]  # so that it has to grow
    lmdb_engine.SCAN_ROWS = 32  # type: ignore[misc]  # so that a scan takes many transactions
    lmdb_engine.SHORT_SERIES = 1  # type: ignore[misc]  # likewise
    words = shared_words(Path(words_path))
    if role == "writer":
        run_writer(path, words, int(seed), manner)
    else:
        run_reader(path, words, int(place), int(seed), manner)


if __name__ == "__main__":
    main()
