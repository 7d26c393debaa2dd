"""Ctrl-C at every place where Python looks for it, in the calls of a buffer that commit."""

from __future__ import annotations

import dis
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import tsengine
from tests.recorder import AT_ONCE, A, B, Recorder, points
from tsengine.buffer import WriteBuffer
from tsengine.buffering.acknowledgement import Acknowledgement
from tsengine.errors import InvalidDataError, UnsavedPointsError
from tsengine.model import DataPoint, ProducerMark, WriteReceipt

PATIENCE = 30.0

PACKAGE = Path(tsengine.__file__).parent
FILES = {
    str(PACKAGE / f"{name}.py")
    for name in (
        *("buffer", "waiting", "buffering/outbox", "buffering/committing", "buffering/keeping"),
        *("buffering/acknowledgement", "buffering/flusher", "buffering/arrivals"),
        "buffering/flushing",
    )
}
assert all(Path(file).is_file() for file in FILES)

BAD = -1.0
GOOD = [*points(5), DataPoint(B, 1, 1.0)]
REFUSED = DataPoint(A, 50, BAD)


class Strike:
    """Raises KeyboardInterrupt at the k-th place where CPython looks for signals.

    These are the entry of a function, what follows a call, and a jump back.
    """

    _names: dict[CodeType, dict[int, str]] = {}  # noqa: RUF012  # of instructions, by their place

    def __init__(self, k: int) -> None:
        self._left = k
        self._last: dict[FrameType, str | None] = {}
        self.where = ""

    def trace(self, frame: FrameType, event: str, _: object) -> Any:  # a trace function
        """Count a place, or strike; gives the tracing of a frame."""
        code = frame.f_code
        if code.co_filename not in FILES or self.where:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            if code not in self._names:
                self._names[code] = {one.offset: one.opname for one in dis.get_instructions(code)}
            before, now = self._last.get(frame), self._names[code].get(frame.f_lasti)
            self._last[frame] = now
            if now == "SWAP":
                # The way out of a `with` by `return f()`: Python interrupts at the end of the
                # call, which is inside of it; a tracer can only one instruction later.
                return self.trace
            if before is not None and before.startswith(("CALL", "RESUME", "JUMP_BACKWARD")):
                self._left -= 1
                if not self._left:
                    self.where = f"{Path(code.co_filename).name}:{frame.f_lineno}"
                    self._last.clear()
                    raise KeyboardInterrupt
        return self.trace


class Picky(Recorder):
    """Refuses bad points, and names them."""

    def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
        """Commit, unless there are bad points."""
        rows = [point for batch in self.staged for one in batch.groups() for point in one.points()]
        bad = [row for row, point in enumerate(rows) if point.value == BAD]
        if bad:
            self.discard_buffer()
            raise InvalidDataError("bad", indices=bad)
        return super().flush_buffer(mark)


class Scene:
    """A buffer with points that were written and submitted, good ones and bad ones."""

    def __init__(self) -> None:
        self.store = Picky()
        self.rejected: list[DataPoint] = []
        self.back: list[DataPoint] = []
        gate = self.gate = threading.Event()

        class Waiting(WriteBuffer):
            __slots__ = ()

            def _work(self) -> float | None:
                gate.wait(PATIENCE)  # the thread of the buffer leaves the work to others
                return super()._work()

        self.buffer = Waiting(
            self.store,
            age_max=None,
            retry=AT_ONCE,
            on_reject=lambda some, error: self.rejected.extend(some),
        )
        self.buffer.write_many([*points(5), REFUSED])
        self.good = self.buffer.submit(GOOD[-1])
        self.bad = self.buffer.submit((B, 2, BAD))

    def take_back(self) -> None:
        """Take what is pending."""
        self.back += self.buffer.take_pending(timeout=PATIENCE)

    def end(self) -> None:
        """Do what a program does that goes on after an interrupt."""
        self.gate.set()
        try:
            self.buffer.flush(timeout=PATIENCE)
        except tsengine.NotOpenError:
            pass
        try:
            self.buffer.close(timeout=PATIENCE)
        except UnsavedPointsError:
            pass
        self.take_back()

    def check(self, where: str) -> None:
        """See that every point is somewhere, once, and that nobody waits."""
        held = Counter([*self.store.stored, *self.rejected])
        for point in self.back:  # an interrupted commit may have been stored, as its error says
            held[point] = max(held[point], 1)
        expected = Counter([*GOOD, REFUSED])
        if not _is_rejected(self.bad):
            expected[DataPoint(B, 2, BAD)] = 1
        assert held == expected, f"interrupted at {where}"
        assert self.good.exception(PATIENCE) is None or GOOD[-1] in self.back, where
        assert self.buffer.pending == 0, where


def _is_rejected(future: Acknowledgement) -> bool:
    return isinstance(future.exception(PATIENCE), InvalidDataError)


def _close(scene: Scene) -> None:
    scene.gate.set()  # it waits for the thread
    scene.buffer.close()


CALLS: dict[str, Callable[[Scene], object]] = {
    "flush": lambda scene: scene.buffer.flush(),
    "close": _close,
    "take_pending": Scene.take_back,
}


@pytest.mark.parametrize("call", CALLS)
def test_an_interrupt_anywhere_loses_nothing(call: str) -> None:
    """Struck at any place, each point is stored, rejected or given back, and no wait is left."""
    struck = 0
    for k in range(1, 2_000):
        scene = Scene()
        strike = Strike(k)
        before = sys.gettrace()
        sys.settrace(strike.trace)
        try:
            CALLS[call](scene)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        scene.end()
        if not strike.where:
            break
        struck += 1
        scene.check(strike.where)
    assert struck > 20
