"""An LMDB store among processes: readers that die, stop or lag behind, growth, forks."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import lmdb
import numpy as np
import pytest

from tsengine.backends.lmdb import LmdbEngine, environment
from tsengine.errors import (
    ForkedError,
    SnapshotExpiredError,
    StorageError,
    StoreInUseError,
)
from tsengine.model import Labels
from tsengine.testing.conformance.lifecycle import in_a_child

A = Labels("a", host="1")
SERIES = [Labels("m", host=f"{number:02}") for number in range(20)]

ELSEWHERE = """
import sys
from tsengine.backends.lmdb import LmdbEngine, environment
from tsengine.model import Labels

names = {"LmdbEngine": LmdbEngine, "Labels": Labels, "environment": environment}
names["path"] = sys.argv[1]
exec(sys.argv[2], names)
print(None, flush=True)
for line in sys.stdin:
    try:
        answer = eval(line, names)
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    print(repr(answer), flush=True)
"""

READER = "engine = LmdbEngine(path, read_only=True).open()\n"


class Elsewhere:
    """Another process that has prepared something and answers what it is asked.

    Args:
        path: of the store.
        prepare: Python code.
        within: a command that runs commands.
    """

    def __init__(self, path: Path, prepare: str = READER, *, within: Sequence[str] = ()) -> None:
        self.process = subprocess.Popen(
            [*within, sys.executable, "-c", ELSEWHERE, str(path), prepare],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.answer()

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def __call__(self, expression: str) -> object:
        """Ask, and wait for the answer."""
        self.ask(expression)
        return self.answer()

    def ask(self, expression: str) -> None:
        """Ask without waiting for the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def answer(self) -> object:
        """Wait for the answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the other process ended"
        return ast.literal_eval(line)

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it without a goodbye, also where it is stopped."""
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A path where a store may be made."""
    return tmp_path / "store"


def commits(engine: LmdbEngine, numbers: range) -> None:
    """Make one commit of one row in each series for each number."""
    for number in numbers:
        engine.write((labels, number, float(number)) for labels in SERIES)


# Opening.


def test_a_new_store_opened_by_all_at_once(tmp_path: Path) -> None:
    """Of processes that make one store at once each gets its turn; readers wait or are told."""
    write = (
        "from tsengine.errors import StorageError\n"
        "def write(place, name):\n"
        "    with LmdbEngine(f'{path}/{place}').open(timeout=60) as engine:\n"
        "        return engine.write([(Labels(name), 1, 1.0)]).accepted\n"
        "def read(place):\n"
        "    told = set()\n"
        "    while True:\n"
        "        try:\n"
        "            with LmdbEngine(f'{path}/{place}', read_only=True) as engine:\n"
        "                if engine.count() == 3:\n"
        "                    return sorted(told)\n"
        "        except StorageError as error:\n"
        "            told.add(type(error).__name__)\n"
    )
    with (
        Elsewhere(tmp_path, write) as one,
        Elsewhere(tmp_path, write) as two,
        Elsewhere(tmp_path, write) as three,
        Elsewhere(tmp_path, write) as reader,
    ):
        for place in range(12):
            reader.ask(f"read({place})")
            for name, writer in zip("abc", (one, two, three), strict=True):
                writer.ask(f"write({place}, {name!r})")
            assert [writer.answer() for writer in (one, two, three)] == [1, 1, 1]
            told = reader.answer()
            assert isinstance(told, list), told
            assert set(told) <= {"StorePathError", "FormatVersionError", "StoreInUseError"}
            with LmdbEngine(str(tmp_path / str(place))) as engine:
                assert engine.count() == 3
                engine.check()


# Readers that die and stop.


def test_readers_that_died_leave_their_slots(path: Path) -> None:
    """A table full of readers is an error that says so, until they have died."""
    fill = (
        "held = []\n"
        "def fill():\n"
        "    while True:\n"
        "        held.append(engine._store.environment.read())\n"
        "        held[-1].__enter__()\n"
    )
    with LmdbEngine(str(path)) as engine:
        engine.write([(A, 1, 1.0)])
        with Elsewhere(path, READER + fill) as reader:
            assert "StorageError" in str(reader("fill()"))
            with pytest.raises(StorageError, match="read transactions"):
                engine.count()
        assert engine.count() == 1
        with Elsewhere(path) as reader:
            assert reader("engine.count()") == 1


def test_a_reader_killed_in_a_transaction_keeps_no_pages(tmp_path: Path) -> None:
    """The pages of a reader that died while it read are used again: the file does not grow."""
    hold = "held = engine._store.environment.read()\nheld.__enter__()\n"
    sizes = {}
    for name in ("alone", "beside"):
        with LmdbEngine(str(tmp_path / name), merging="manual", durability="relaxed") as engine:
            engine.write([(A, 1, 1.0)])
            if name == "beside":
                Elsewhere(tmp_path / name, READER + hold).kill()
            for number in range(500):
                engine.delete(A, 1, 2 + number % 7)
            sizes[name] = engine.stats().bytes
    assert sizes["beside"] <= 4 * sizes["alone"], sizes  # a hundred times, were they kept


def test_a_stopped_reader_stops_nobody(path: Path) -> None:
    """Beside a reader that was stopped while it read, writing goes on; then it sees its moment."""
    hold = (
        "def begin():\n"
        "    global held\n"
        "    held = engine._store.environment.read()\n"
        "    held.__enter__()\n"
        "def count():\n"
        "    engine._store.environment.read = lambda: Again()\n"
        "    return engine.count()\n"
        "class Again:\n"
        "    def __enter__(self): return held._transaction\n"
        "    def __exit__(self, *_): pass\n"
    )
    with LmdbEngine(str(path), merging="inline") as engine:
        commits(engine, range(1, 11))
        with Elsewhere(path, READER + hold) as stopped, Elsewhere(path) as other:
            stopped("begin()")
            stopped.signal(signal.SIGSTOP)
            commits(engine, range(11, 101))
            assert other("engine.count()") == 100 * len(SERIES)
            assert engine.count() == 100 * len(SERIES)
            stopped.signal(signal.SIGCONT)
            assert stopped("count()") == 10 * len(SERIES)
        engine.check()


def test_two_processes_of_one_number_are_told(path: Path) -> None:
    """Processes of the same number, as two containers have them, get an error that says so."""
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare: processes are given the same number")
    within = ("unshare", "--pid", "--fork", "--kill-child")
    open_now = "def open_now():\n    return LmdbEngine(path, read_only=True).open().count()\n"
    writer = "engine = LmdbEngine(path).open()\n"
    with (
        Elsewhere(path, writer, within=within) as first,
        Elsewhere(path, open_now, within=within) as second,
    ):
        assert first("engine.count()") == 0
        assert "share one PID namespace" in str(second("open_now()"))
    with LmdbEngine(str(path)) as engine:
        engine.check()


# Scans that outlive much.


def test_a_scan_keeps_its_moment_through_a_thousand_commits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scan begun before a thousand commits, their merges and a compaction ends as it began."""
    monkeypatch.setattr("tsengine.backends.lmdb.engine.SHORT_SERIES", 1)
    with LmdbEngine(str(path), merging="inline", durability="relaxed") as engine:
        commits(engine, range(1, 21))
        scan = engine.scan()
        rows = {labels: np.empty(0, np.int64) for labels in SERIES}
        rows[SERIES[0]] = next(scan).timestamps
        for number in range(1_000):
            commits(engine, range(21 + number, 22 + number))
            if number % 60 == 0:
                batch = next(scan)
                rows[batch.labels] = np.append(rows[batch.labels], batch.timestamps)
            if number == 500:
                engine.delete(None, 1, 15)
                assert engine.compact().reason.endswith("are still being read")
        for batch in scan:
            rows[batch.labels] = np.append(rows[batch.labels], batch.timestamps)
        for timestamps in rows.values():
            assert timestamps.tolist() == list(range(1, 21))
        engine.compact()
        assert engine.stats().details["runs_to_sweep"] == 0


@pytest.mark.parametrize("seconds", [0, 600])
def test_a_scan_elsewhere_sees_its_moment_or_is_told(path: Path, seconds: int) -> None:
    """A scan of another process gives rows of its moment, or is told that it has expired."""
    slowly = READER + (
        "import tsengine.backends.lmdb.engine as module\n"
        "module.SHORT_SERIES = 1\n"
        "scan = engine.scan()\n"
        "def step():\n"
        "    batch = next(scan, None)\n"
        "    return batch and (batch.labels['host'], batch.timestamps.tolist())\n"
    )
    with LmdbEngine(
        str(path), merging="inline", durability="relaxed", snapshot_age_max=seconds
    ) as engine:
        commits(engine, range(1, 21))
        with Elsewhere(path, slowly) as reader:
            steps = [reader("step()")]
            for number in range(21, 221):
                commits(engine, range(number, number + 1))
                if number % 20 == 0 and isinstance(steps[-1], tuple):
                    steps.append(reader("step()"))
            while isinstance(steps[-1], tuple):
                steps.append(reader("step()"))
            whole = [(f"{number:02}", list(range(1, 21))) for number in range(len(SERIES))]
            last = steps.pop()
            assert steps == whole[: len(steps)]
            if seconds:
                assert last is None
                assert len(steps) == len(SERIES)
            else:
                assert str(last).startswith(SnapshotExpiredError.__name__)
            assert reader("engine.count()") == 220 * len(SERIES)


def test_a_series_forgotten_meanwhile_is_no_damage(path: Path) -> None:
    """A scan elsewhere that meets a series removed and forgotten has expired, not found damage."""
    now = [1_000_000_000]
    scan = READER + "scan = engine.scan()\ndef step():\n    return len(next(scan))\n"
    with LmdbEngine(str(path), merging="inline", clock_ns=lambda: now[0]) as engine:
        for labels in SERIES:
            engine.write_series(labels, np.arange(1, 2_501), np.arange(2_500.0))
        engine.compact()
        with Elsewhere(path, scan) as reader:
            assert reader("step()") == 2_500
            engine.delete(SERIES[1])
            now[0] += 61_000_000_000
            engine.write([(A, 1, 1.0)])
            assert str(reader("step()")).startswith(SnapshotExpiredError.__name__)
            assert reader("len(list(engine.series()))") == len(SERIES)


# The map.


def test_the_map_grows_under_readers_elsewhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers of other processes follow the map that the writer grows, with many threads too."""
    monkeypatch.setattr(environment, "MAP_BYTES", 1 << 18)
    small = "environment.MAP_BYTES = 1 << 18\n" + READER
    threads = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "def counts():\n"
        "    with ThreadPoolExecutor(8) as pool:\n"
        "        return sorted(set(pool.map(lambda _: engine.count(), range(16))))\n"
    )
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write([(A, 1, 1.0)])
        with Elsewhere(path, small + threads) as reader:
            assert reader("engine.count()") == 1
            for step in range(1, 5):
                engine.write_series(
                    SERIES[0], np.arange(1, 1 + 40_000 * step), np.full(40_000 * step, 0.5)
                )
                assert reader("counts()") == [1 + 40_000 * step]
        assert path.joinpath("data.mdb").stat().st_size > 1 << 20


def test_two_processes_grow_the_map_in_turn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one writer grew the next one reads and grows on, with a reader beside both."""
    monkeypatch.setattr(environment, "MAP_BYTES", 1 << 18)
    small = "import numpy as np\nenvironment.MAP_BYTES = 1 << 18\n"
    write = (
        "def write(step):\n"
        "    with LmdbEngine(path, merging='manual') as engine:\n"
        "        rows = np.arange(1, 30_001), np.ones(30_000)\n"
        "        return engine.write_series(Labels('m', step=str(step)), *rows).accepted\n"
    )
    LmdbEngine(str(path)).open().close()
    with Elsewhere(path, small + write) as writer, Elsewhere(path, small + READER) as reader:
        for step in range(0, 10, 2):
            assert writer(f"write({step})") == 30_000
            assert reader("engine.count()") == 30_000 * (step + 1)
            with LmdbEngine(str(path), merging="manual") as engine:
                engine.write_series(
                    Labels("m", step=str(step + 1)), np.arange(1, 30_001), np.ones(30_000)
                )
                assert engine.count() == 30_000 * (step + 2)
            assert reader("engine.count()") == 30_000 * (step + 2)
    with LmdbEngine(str(path)) as engine:
        engine.check()


def test_a_reader_of_little_address_space_follows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader whose limits forbid the map of the writer reads what that writes all the same."""
    little = (
        "import resource\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), used + (1 << 28)))\n"
        "environment.MAP_BYTES = 1 << 19\n"
    )
    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write([(A, 1, 1.0)])
        with Elsewhere(path, little + READER) as reader:
            assert reader("engine.count()") == 1
            engine.write_series(
                SERIES[0], np.arange(1, 100_001), np.random.default_rng(1).random(100_000)
            )
            assert reader("engine.count()") == 100_001
            engine.write_series(
                SERIES[1], np.arange(1, 100_001), np.random.default_rng(1).random(100_000)
            )
            assert reader("engine.count()") == 200_001


def test_a_snapshot_follows_a_map_that_grew_meanwhile(path: Path, tmp_path: Path) -> None:
    """A snapshot by a reader is made anew where the writer grew the map just as it began."""

    class Grown:
        """LMDB's handle, for which the map has grown when it is first copied."""

        def __init__(self, handle: object) -> None:
            self.handle = handle
            self.copies = 0

        def __getattr__(self, name: str) -> object:
            return getattr(self.handle, name)

        def copy(self, folder: bytes, **options: bool) -> None:
            self.copies += 1
            if self.copies == 1:
                Path(os.fsdecode(folder), "data.mdb").touch()
                raise lmdb.MapResizedError("grown")
            self.handle.copy(folder, **options)  # type: ignore[attr-defined]  # LMDB's

    LmdbEngine(str(path)).open().close()
    with Elsewhere(path, "engine = LmdbEngine(path).open()\n") as writer:
        assert writer("engine.write([(Labels('a', host='1'), 1, 1.0)]).accepted") == 1
        with LmdbEngine(str(path), read_only=True) as engine:
            grown = Grown(engine._store.environment._lmdb)
            engine._store.environment._lmdb = grown  # type: ignore[assignment]  # poses as it
            engine.snapshot(str(tmp_path / "copy"))
    assert grown.copies == 2
    with LmdbEngine(str(tmp_path / "copy"), read_only=True) as copy:
        assert copy.count() == 1


# Forks.


def child_opens_anew(path: Path, *engines: LmdbEngine) -> Callable[[], None]:
    """Make what a child does: it is refused the engines of its parent, and reads by its own."""

    def work() -> None:
        for engine in engines:
            for call in (engine.count, engine.stats, engine.scan, engine.label_names):
                with pytest.raises(ForkedError):
                    call()
            engine.close()
        with LmdbEngine(str(path), read_only=True) as mine:
            assert mine.count() >= 1
        with pytest.raises(StoreInUseError, match=f"process {os.getppid()}"):
            LmdbEngine(str(path)).open()

    return work


def test_a_fork_of_a_writer_and_a_reader(path: Path, tmp_path: Path) -> None:
    """A child is refused what its parent opened, and reads by an engine of its own."""
    LmdbEngine(str(tmp_path / "other")).open().close()
    with (
        LmdbEngine(str(path)) as writer,
        LmdbEngine(str(path), read_only=True) as reader,
        LmdbEngine(str(tmp_path / "other"), read_only=True) as other,
    ):
        writer.write([(A, 1, 1.0)])
        for number in range(2, 5):
            in_a_child(child_opens_anew(path, writer, reader, other))
            writer.write([(A, number, 1.0)])
            assert reader.count() == number
        assert other.count() == 0
        assert writer.compact().reason == ""
        writer.check()


def test_a_child_may_write_when_its_parent_has_closed(path: Path) -> None:
    """A child that lives on can take the store over, and its parent cannot while it has it."""
    engine = LmdbEngine(str(path)).open()
    engine.write([(A, 1, 1.0)])
    closed, told = os.pipe()
    taken, tell = os.pipe()
    done, finish = os.pipe()
    child = os.fork()
    if not child:  # the exit status tells
        try:
            os.read(closed, 1)
            with LmdbEngine(str(path)) as mine:
                mine.write([(A, 2, 2.0)])
                os.write(tell, b"x")
                os.read(done, 1)
        except BaseException:  # noqa: BLE001  # nothing may reach the test runner of the parent
            os._exit(1)
        os._exit(0)
    engine.close()
    os.write(told, b"x")
    assert os.read(taken, 1) == b"x"
    with pytest.raises(StoreInUseError, match=f"process {child}"):
        LmdbEngine(str(path)).open()
    os.write(finish, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with LmdbEngine(str(path)) as engine:
        assert engine.count() == 2
        engine.check()


@pytest.mark.parametrize("under_way", ["read", "write"])
def test_a_fork_during_a_transaction_of_another_thread(path: Path, under_way: str) -> None:
    """A fork while a thread reads or writes harms neither: the parent's transaction ends well."""
    begun, go_on = threading.Event(), threading.Event()
    seen: list[int] = []

    def read() -> None:
        with engine._store.environment.read() as transaction:
            first = transaction.id()
            begun.set()
            assert go_on.wait(60)
            seen.append(transaction.id() - first)
            seen.append(engine._store.manifest_of(transaction).state.sequence)

    def write() -> None:
        def work(transaction: object) -> None:
            begun.set()
            assert go_on.wait(60)

        engine._store.environment.write(work)
        seen.extend((0, 1))

    def child() -> None:
        with pytest.raises(ForkedError):
            engine.count()
        try:
            with LmdbEngine(str(path), read_only=True) as mine:
                assert mine.count() >= 1
        except StorageError:  # the parent's LMDB handle could not be closed here
            pass

    with LmdbEngine(str(path), merging="manual") as engine:
        engine.write([(A, 1, 1.0)])
        thread = threading.Thread(target=read if under_way == "read" else write)
        thread.start()
        assert begun.wait(60)
        for _ in range(3):
            in_a_child(child)
        if under_way == "read":
            for number in range(2, 20):
                engine.delete(A, 1, number)
        go_on.set()
        thread.join(60)
        assert seen == [0, 1]
        engine.write([(A, 50, 1.0)])
        assert engine.query(A)[0].timestamps.tolist()[-1] == 50
        engine.check()
