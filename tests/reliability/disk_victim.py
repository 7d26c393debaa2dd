"""Victim of a failing disk: it lives a whole life of a store and goes on after each error.

Every step is tried again until it succeeds, as a program would that waits for room. What may be
raised is a `StorageError`; after each one the store is read and must hold the steps that were
acknowledged, and of the one that failed all or nothing.

Run by `template.py`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from tests.reliability.history import contents_of, deletion, differences, expected, points
from tests.reliability.victim import BLOCK_POINTS, small_merges
from tsengine.backends.lmdb import LmdbEngine, environment, reserve
from tsengine.backends.memory import MemoryEngine
from tsengine.buffer import WriteBuffer
from tsengine.engine import Engine
from tsengine.errors import StorageError, StorageFullError, UnsavedPointsError
from tsengine.model import Labels
from tsengine.retry import RetryPolicy

STEPS: Final = 16
"""Steps of a life: two deletes, one of them of a series, merges of two levels."""

TRIES_MAX: Final = 40
"""So often a step is tried. Failures that are spread out end long before."""

Ready = Callable[[], None]
Arguments = Mapping[str, Any]

AT_ONCE: Final = RetryPolicy(max_retries=0)
"""What the store fails with is to be seen, and not healed by the buffer."""


class Life:
    """What a victim does, step by step, and what it saw of the disk.

    Args:
        arguments: `store`, `target` of a snapshot, `merging`, and a `fault` to plant.
    """

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self.failures = 0
        self.full = 0
        self.done = 0  # steps that were acknowledged

    def open(self) -> None:
        """Open the store, which need not be there."""
        self.engine = self.persist(self._open)
        self.buffer = WriteBuffer(
            self.engine, points_max=1_000, producer="disk", age_max=None, retry=AT_ONCE
        )

    def step(self, number: int) -> None:
        """Do step `number`, and try again while the disk fails."""
        gone = deletion(number)
        if gone is None:
            given = points(number)
            before = self.buffer.pending
            self.buffer.write_many(given)
            assert self.buffer.pending == before + len(given)
            self.persist(lambda: self._flush(len(given)), number)
            assert not self.buffer.pending
        else:
            self.persist(lambda: self.engine.delete(*gone), number)
        self.done = number

    def _flush(self, pending: int) -> None:
        try:
            self.buffer.flush()
        except StorageError:
            if self._arguments["fault"] == "drops":  # planted: a buffer that lets go
                self.buffer.take_pending()
            else:
                assert self.buffer.pending == pending
            raise

    def try_copies(self) -> None:
        """Compact and take a snapshot, or give up.

        Each copies in a thread of its own, and the failures of `strace` are counted by thread:
        what fails once may fail each time.
        """
        for work in (self.compact, self.snapshot):
            for _ in range(3):
                try:
                    work()
                    break
                except StorageError as error:
                    self.note(error, self.done)

    def persist(self, work: Callable[[], Any], number: int = 0) -> Any:
        """Do some work until the disk lets it succeed; look at the store after each failure."""
        for _ in range(TRIES_MAX):
            try:
                return work()
            except StorageError as error:
                self.note(error, number)
        raise AssertionError(f"step {number} did not succeed in {TRIES_MAX} tries")

    def note(self, error: StorageError, number: int = 0) -> None:
        """Count an error, and see that reading goes on."""
        self.failures += 1
        self.full += isinstance(error, StorageFullError)
        if number:
            self.look(number)

    def look(self, number: int) -> None:
        """Compare the store with the steps acknowledged, and with one more."""
        for _ in range(TRIES_MAX):
            try:
                seen = contents_of(self.engine)
                break
            except StorageError:  # LMDB could not be opened anew
                self.failures += 1
        else:
            raise AssertionError(f"reading did not succeed in {TRIES_MAX} tries")
        allowed = [expected(self.done), expected(number)]
        for contents in (seen, *allowed):
            contents.mark = 0  # the buffer counts its batches itself
        told = "; ".join(differences(seen, allowed[0]))
        assert seen in allowed, f"{self.done} of {number} steps were done: {told}"

    def compact(self) -> None:
        """Compact; that there was no room for it is told as a reason."""
        report = self.engine.compact()
        if report.reason:
            raise StorageFullError(report.reason)

    def snapshot(self) -> None:
        """Take a snapshot and throw it away; one that fails leaves nothing behind."""
        target = Path(self._arguments["target"]) / "snapshot"
        try:
            self.engine.snapshot(str(target))
        except StorageError:
            left = list(target.parent.iterdir())
            assert not left, f"a snapshot that failed left {left}"
            raise
        try:
            with LmdbEngine(str(target), read_only=True) as engine:
                engine.check()
                assert contents_of(engine) == contents_of(self.engine)
        finally:
            shutil.rmtree(target)

    def close(self) -> None:
        """Close buffer and store."""
        self.buffer.close()
        self.engine.close()

    def end(self) -> dict[str, int]:
        """Look at everything, also after reopening; gives what was seen."""
        self.engine.check()
        self.look(self.done)
        self.close()
        path = Path(self._arguments["store"])
        leaked = [name for name in _open_files() if name.startswith(str(path.parent))]
        assert not leaked, f"left open: {leaked}"
        assert not (path / "compacting").exists()
        self.engine = self._open()
        self.engine.check()
        self.look(self.done)
        self.engine.close()
        return {"failures": self.failures, "full": self.full}

    def _open(self) -> LmdbEngine:
        return LmdbEngine(
            self._arguments["store"],
            merging=self._arguments["merging"],
            block_points=BLOCK_POINTS,
            clock_ns=lambda: 1_800_000_000_000_000_000,
        ).open()


def live(arguments: Arguments, ready: Ready) -> dict[str, int]:
    """Live a whole life on a disk that fails now and then."""
    _prepare(arguments)
    life = Life(arguments)
    ready()
    life.open()
    for number in range(1, STEPS + 1):
        life.step(number)
    life.try_copies()
    life.step(STEPS + 1)
    life.persist(lambda: life.engine.forget_producer("nobody"))
    ready()
    life.compact()
    life.snapshot()
    return life.end()


def last(arguments: Arguments, ready: Ready) -> dict[str, int]:
    """Meet a disk that fails for good at some point, and go on when it is mended."""
    _prepare(arguments)
    life = Life(arguments)
    life.open()
    for number in range(1, 9):
        life.step(number)
    ready()
    number = 8
    try:
        while number < STEPS:
            number += 1
            gone = deletion(number)
            if gone is None:
                life.buffer.write_many(points(number))
                life.buffer.flush()
            else:
                life.engine.delete(*gone)
            life.done = number
        ready()
        return life.end()  # it lasted
    except StorageError as error:
        life.note(error, number)
    pending = life.buffer.pending
    for work in (
        life.buffer.flush,
        lambda: life.engine.delete("nothing"),
        life.engine.compact,
        life.snapshot,
    ):
        try:
            work()
        except StorageError as error:
            life.note(error, number)
    life.engine.stats()
    if life.done != number and deletion(number) is None and pending != life.buffer.pending:
        life.done = number  # a flush was let through
    ready()
    if life.buffer.pending:
        life.buffer.flush()
        life.done = number
    elif life.done != number:
        gone = deletion(number)
        assert gone is not None
        life.engine.delete(*gone)
        life.done = number
    for later in range(number + 1, STEPS + 2):
        life.step(later)
    life.compact()
    return life.end()


def close_full(arguments: Arguments, ready: Ready) -> dict[str, int]:
    """Close a buffer on a disk that fails: it says what is unsaved and gives it back."""
    _prepare(arguments)
    life = Life(arguments)
    life.open()
    life.step(1)
    life.buffer.write_many(points(2))
    ready()
    unsaved = None
    try:
        life.buffer.close()
    except UnsavedPointsError as error:
        unsaved = error
    assert unsaved is not None, "the disk did not fail"
    assert unsaved.count == len(points(2)) == life.buffer.pending
    assert isinstance(unsaved.__cause__, StorageError)
    life.note(unsaved.__cause__, 2)
    life.engine.close()
    ready()
    life.engine = life._open()
    life.look(2)
    with WriteBuffer(life.engine, age_max=None, retry=AT_ONCE) as buffer:
        buffer.write_many(life.buffer.take_pending())
    life.done = 2
    return life.end()


def fill(arguments: Arguments, ready: Ready) -> dict[str, int]:
    """Meet a disk that is full to the last byte, and go on once there is room.

    `store` lies on a small file system of its own.
    """
    _prepare(arguments)
    life = Life(arguments)
    life.open()
    for number in range(1, 9):
        life.step(number)
    filler = Path(arguments["store"]).with_name("filler")
    number = 8
    for _ in range(2):
        take_all(filler)
        number = _write_until_full(life, number, filler)
        pending = life.buffer.pending
        life.engine.check()
        life.engine.stats()
        try:
            life.snapshot()
        except StorageFullError as error:
            life.note(error, number)
        else:
            raise AssertionError("a full disk took a snapshot")
        assert life.buffer.pending == pending > 0
        filler.unlink()
        life.buffer.flush()
        life.done = number
        number += 1
        life.step(number)
        assert life.engine.stats().details["upkeep_error"] is None
    take_all(filler)
    life.close()
    with LmdbEngine(life.engine.location, read_only=True) as reader:
        reader.check()
    life.engine = life._open()
    life.look(life.done)
    filler.unlink()
    life.buffer = WriteBuffer(life.engine, age_max=None, retry=AT_ONCE)
    life.step(number + 1)
    return life.end()


def _write_until_full(life: Life, number: int, filler: Path) -> int:
    """Go on until the disk is full; gives the step whose points are pending."""
    for _ in range(99):  # what is free inside the file takes some commits
        number += 1
        if deletion(number) is not None:
            life.step(number)
            take_all(filler)  # what it left of the reserve
            continue
        life.buffer.write_many(points(number))
        try:
            life.buffer.flush()
        except StorageFullError as error:
            life.note(error, number)
            return number
        life.done = number
    raise AssertionError("a full disk took a hundred commits")


def free(arguments: Arguments, ready: Ready) -> dict[str, int]:
    """Make room inside a store whose disk stays full: delete, compact, and write again.

    The first delete takes more pages than the file has free.
    """
    _prepare(arguments)
    many = [Labels("many", number=str(number)) for number in range(2_000)]
    filler = Path(arguments["store"]).with_name("filler")
    engine = LmdbEngine(arguments["store"], merging=arguments["merging"]).open()
    failures = commits = now = 0
    for _ in range(5):
        now += 1
        engine.write([(labels, now, float(now)) for labels in many])
    take_all(filler)
    for cycle in range(8):
        assert engine.delete(None, 1, now + 1) == len(many)
        if cycle % 2:
            engine.compact()
            take_all(filler)
        assert engine.count() == 0
        for _ in range(99):
            now += 1
            try:
                engine.write([(labels, now, float(now)) for labels in many[: 1 + 100 * cycle]])
            except StorageFullError:
                failures += 1
                break
            commits += 1
        engine.check()
    engine.delete(many[0])
    filler.unlink()
    engine.write([(labels, now + 1, 0.0) for labels in many])
    engine.compact()
    assert engine.stats().details["upkeep_error"] is None
    engine.check()
    engine.close()
    return {"failures": failures, "full": failures, "commits": commits}


def take_all(filler: Path) -> None:
    """Make the disk full, to the last byte."""
    with filler.open("ab", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError as error:
                if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
                    raise
                size //= 2


def memory(arguments: Arguments, ready: Ready) -> dict[str, int]:
    """Write snapshots of a store in memory, and open them."""
    engine: Engine = MemoryEngine().open()
    for number in range(1, STEPS + 1):
        if deletion(number) is None:
            engine.write(points(number))
    held = contents_of(engine)
    target = Path(arguments["target"]) / "file"
    seen: list[StorageError] = []

    def snapshot() -> bool:
        try:
            engine.snapshot(str(target))
        except StorageError as error:
            seen.append(error)
            left = list(target.parent.iterdir())
            assert not left, f"a snapshot that failed left {left}"
        return target.exists()

    ready()
    for _ in range(3):
        if snapshot():
            break
    ready()
    assert target.exists() or snapshot()
    with MemoryEngine(str(target)) as opened:
        assert contents_of(opened) == held
    return {"failures": len(seen), "full": sum(isinstance(e, StorageFullError) for e in seen)}


def _prepare(arguments: Arguments) -> None:
    logging.disable()  # upkeep tells of each failure
    small_merges()
    if arguments["fault"] == "panics":  # planted: LMDB is not opened anew
        environment.Environment._revive = lambda self: None  # type: ignore[method-assign]  # planted
    if arguments["fault"] == "poor":  # planted: no room is kept
        reserve.Reserve.hold = lambda self: None  # type: ignore[method-assign]  # planted
    if arguments["fault"] == "raw":  # planted: an error of LMDB's own comes through
        vars(environment)["translate"] = lambda error, _: error


def _open_files() -> list[str]:
    names = []
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the one by which they are listed
            names.append(str(entry.readlink()))
    return names


WORKS: Final = {
    "live": live,
    "last": last,
    "close_full": close_full,
    "memory": memory,
    "fill": fill,
    "free": free,
}
