"""What the tests of the asyncio face share: gates that hold threads up, engines behind them."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from tsengine.backends.memory import MemoryEngine
from tsengine.errors import (
    StorageError,
)
from tsengine.model import (
    DataPoint,
    Labels,
    PointLike,
    ProducerMark,
    SeriesBatch,
    WriteReceipt,
)
from tsengine.retry import RetryPolicy
from tsengine.selectors import Selector

A, B, C = (Labels("cpu", host=host) for host in "abc")
SERIES = [A, B, C]
STORED = WriteReceipt(1, 1)
AT_ONCE = RetryPolicy(max_retries=0)

LONGEST_RUN = 60.0
"""Seconds after which a test hangs."""

T = TypeVar("T")


class Gate:
    """Holds a thread up until the event loop lets it pass: with a blocked loop, never."""

    LONGEST = 20.0

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self._opened = threading.Event()

    def hold_up(self) -> None:
        """Wait in a thread that is not the loop's."""
        self.loop.call_soon_threadsafe(self.reached.set)
        if not self._opened.wait(self.LONGEST):
            raise AssertionError("the event loop was blocked, or nobody opened the gate")

    def open(self) -> None:
        """Let everybody pass from now on."""
        self._opened.set()

    async def heartbeat(self) -> None:
        """Tick until the thread is held up, then a hundred times, and let it pass."""
        await self.reached.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        self.open()


class Gated(MemoryEngine):
    """An engine whose calls, by name, are held up by gates; notes what its scans do."""

    def __init__(self, **options: Any) -> None:
        super().__init__("", **options)
        self.gates: dict[str, Gate] = {}
        self.closed_in: list[str] = []
        self.fails_at = -1
        self.committed = 0

    def _pass(self, name: str) -> None:
        if name in self.gates:
            self.gates[name].hold_up()

    @property
    def holds_only_floats(self) -> bool:
        """Whether to ask is needed: always, here."""
        return False

    def validate_point(self, point: PointLike) -> DataPoint:
        """As the engine does, later."""
        self._pass("judge")
        return super().validate_point(point)

    def flush_buffer(self, mark: ProducerMark | None = None) -> WriteReceipt:
        """As the engine does, later."""
        self._pass("commit")
        receipt = super().flush_buffer(mark)
        self.committed += receipt.accepted
        return receipt

    def count(self, *arguments: Any) -> int:
        """As the engine does, later."""
        self._pass("read")
        return super().count(*arguments)

    def _scan(self, selector: Selector, start: int, end: int) -> Iterator[SeriesBatch]:
        self._pass("scan")
        try:
            for number, batch in enumerate(super()._scan(selector, start, end)):
                if number == self.fails_at:
                    raise StorageError("a block that cannot be read")
                yield batch
        finally:
            self.closed_in.append(threading.current_thread().name)


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine; afterwards no thread of ours is left, and no exception unheard."""
    unheard: list[dict[str, Any]] = []

    async def watched() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: unheard.append(what))
        try:
            return await main()
        finally:
            gc.collect()

    before = set(threading.enumerate())
    result = asyncio.run(asyncio.wait_for(watched(), LONGEST_RUN))
    assert not unheard
    assert set(threading.enumerate()) <= before
    return result


def points(count: int, labels: Labels = A, start: int = 1) -> list[DataPoint]:
    """Make points with the values 0.0, 1.0, … at successive timestamps."""
    return [DataPoint(labels, start + number, float(number)) for number in range(count)]


async def fail(awaitable: Awaitable[object]) -> Exception | None:
    """Give what an awaitable raises."""
    try:
        await awaitable
    except Exception as error:  # noqa: BLE001  # for the test to look at
        return error
    return None


async def passes(count: int = 20) -> None:
    """Let the loop do what is due."""
    for _ in range(count):
        await asyncio.sleep(0)
