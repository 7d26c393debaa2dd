"""Waiting to open a store that another process has: how long, and how it ends."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import tsengine
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.errors import (
    CancelledError,
    NotOpenError,
    StoreInUseError,
    StoreInUseTimeoutError,
    UnknownOptionError,
    WaitTimeoutError,
)
from tsengine.model import Labels

A = Labels("a", host="1")

HOLDER = """
import sys
from tsengine.backends.lmdb import LmdbEngine

with LmdbEngine(sys.argv[1]):
    print("open", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process that has a store open for writing until it is told to let go."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"open\n"

    def let_go(self) -> None:
        """Close the store there."""
        self.process.communicate(timeout=60)

    def kill(self) -> None:
        """End the process without a goodbye."""
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    """A process that holds the store at `tmp_path / "store"`."""
    holder = Holder(tmp_path / "store")
    yield holder
    holder.kill()


class Taken(MemoryEngine):
    """A backend as by other hands: somebody has its store for the first few tries."""

    tries_left = 0
    tried: threading.Event

    def _open(self) -> None:
        if self.tries_left:
            self.tries_left -= 1
            self.tried.set()
            raise StoreInUseError("somebody has it")
        super()._open()


def taken(tries: float) -> Taken:
    """Make an engine whose store is taken for so many tries."""
    engine = Taken()
    engine.tries_left = tries  # type: ignore[assignment]  # infinity too
    engine.tried = threading.Event()
    return engine


def test_without_a_timeout_it_is_refused_at_once() -> None:
    """The first refusal is raised as it is, and the engine may be opened later."""
    engine = taken(1)
    with pytest.raises(StoreInUseError, match="somebody has it") as caught:
        engine.open()
    assert not isinstance(caught.value, WaitTimeoutError)
    with engine.open():
        assert engine.count() == 0


@pytest.mark.parametrize("timeout", [60, 60.0, math.inf, None])
def test_any_backend_waits(timeout: float | None) -> None:
    """A backend only has to refuse: the waiting is done for it."""
    with taken(5).open(timeout=timeout) as engine:
        assert engine.count() == 0


def test_after_the_timeout_both_errors_fit() -> None:
    """What is raised is a StoreInUseError and a WaitTimeoutError, and tells how long it was."""
    engine = taken(math.inf)
    with pytest.raises(
        StoreInUseTimeoutError, match=r"somebody has it; waited for 0\.01"
    ) as caught:
        engine.open(timeout=0.01)
    assert isinstance(caught.value, StoreInUseError)
    assert isinstance(caught.value, WaitTimeoutError)
    engine.tries_left = 0
    engine.open().close()


def test_cancelling_ends_the_wait() -> None:
    """The event ends a wait without a timeout, and one set before lets nothing begin."""
    engine, cancel = taken(math.inf), threading.Event()

    def give_up() -> None:
        engine.tried.wait(60)
        cancel.set()

    thread = threading.Thread(target=give_up)
    thread.start()
    with pytest.raises(CancelledError):
        engine.open(timeout=None, cancel=cancel)
    thread.join()
    engine.tries_left = 0
    with pytest.raises(CancelledError):
        engine.open(cancel=cancel)
    engine.open().close()


def test_closing_ends_the_wait() -> None:
    """An engine closed by another thread while it waits raises NotOpenError."""
    engine = taken(math.inf)

    def close() -> None:
        engine.tried.wait(60)
        engine.close()

    thread = threading.Thread(target=close)
    thread.start()
    with pytest.raises(NotOpenError):
        engine.open(timeout=None)
    thread.join()


@pytest.mark.parametrize("timeout", [-1, math.nan, True, "5"])
def test_a_timeout_is_a_number_of_seconds(timeout: float) -> None:
    """What is no number of seconds is refused, with what would be right."""
    with pytest.raises(UnknownOptionError, match=r"timeout .* seconds"):
        tsengine.open("memory://", timeout=timeout)


def test_the_holder_is_named(tmp_path: Path, holder: Holder) -> None:
    """A second writer is refused at once and told which process has the store."""
    with pytest.raises(StoreInUseError, match=f"process {holder.process.pid}"):
        tsengine.open(f"lmdb://{tmp_path}/store")
    with pytest.raises(StoreInUseTimeoutError, match=f"process {holder.process.pid}"):
        tsengine.open(f"lmdb://{tmp_path}/store", timeout=0.01)
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(CancelledError):
        tsengine.open(f"lmdb://{tmp_path}/store", cancel=cancelled)
    with tsengine.open(f"lmdb://{tmp_path}/store", read_only=True) as reader:
        assert reader.count() == 0


@pytest.mark.parametrize("end", [Holder.let_go, Holder.kill])
def test_a_writer_waits_for_another(tmp_path: Path, holder: Holder, end: object) -> None:
    """A writer that waits gets the store when the other closes it, or is killed."""
    assert callable(end)
    waiting = threading.Timer(0.1, end, [holder])
    waiting.start()
    with tsengine.open(f"lmdb://{tmp_path}/store", timeout=60) as engine:
        engine.write([(A, 1, 1.0)])
    waiting.join()


def test_waiting_for_one_store_keeps_no_other_waiting(tmp_path: Path, holder: Holder) -> None:
    """While a thread waits for a store, others open and close theirs."""
    cancel = threading.Event()
    engine = LmdbEngine(str(tmp_path / "store"))
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            engine.open(timeout=None, cancel=cancel)
        except CancelledError as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    for number in range(5):
        with LmdbEngine(str(tmp_path / f"other-{number}")) as other:
            other.write([(A, 1, 1.0)])
    cancel.set()
    thread.join(60)
    assert len(outcome) == 1
    assert os.waitpid(holder.process.pid, os.WNOHANG) == (0, 0)
