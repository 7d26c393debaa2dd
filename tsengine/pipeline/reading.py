"""Reading: a thread that iterates over a source and feeds a copy."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import logging
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from tsengine.errors import CancelledError
from tsengine.model import DataPoint
from tsengine.pipeline.feed import Feed, FeedStoppedError
from tsengine.pipeline.sources import Item, Source

logger = logging.getLogger("tsengine.copies")

POINTS_A_PASS: Final = 256
"""Points of an async source after which others in its loop have their turn: some 0.3 ms. One
that has everything at hand never waits, and would keep the loop until a parcel is full."""


class InLoop(AsyncIterable[Item]):
    """An async source that belongs to an event loop, and is iterated there.

    Attributes:
        loop: runs until the copy has ended; it must not be the one of the thread that copies.
    """

    def __init__(self, items: AsyncIterable[Item], loop: asyncio.AbstractEventLoop) -> None:
        self._items = items
        self.loop = loop

    def __aiter__(self) -> AsyncIterator[Item]:
        return aiter(self._items)


class Stoppable(Iterable[Item]):
    """A source that can be told, while it waits for its next item, that nobody wants it.

    Args:
        items: the source.
        stop: is called by another thread, at most once; what waits then raises CancelledError.
    """

    def __init__(self, items: Iterable[Item], stop: Callable[[], object]) -> None:
        self._items = items
        self.stop = stop

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)


class Reader:
    """Reads a source in a thread of its own, which `stop` ends.

    An async source is driven by an event loop of that thread; `InLoop` by its own, where
    points are added, while columns are copied and joined, and room is waited for, in a thread.

    Args:
        source: what to read.
        feed: where to.
    """

    def __init__(self, source: Source, feed: Feed) -> None:
        self._source = source
        self._feed = feed
        self._lock = threading.Lock()  # guards the two below
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False
        context = contextvars.copy_context()  # of the caller, whose source it is
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="tsengine-copy-reader", daemon=True
        )

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Stop reading and wait until the source is closed.

        An async source is cancelled, a `Stoppable` one is told. Another one that is asked for its
        next item cannot be: it is waited for.
        """
        self._feed.stop()
        with self._lock:
            self._is_stopped = True
            if self._task is not None:
                self._task.get_loop().call_soon_threadsafe(self._cancel)
        if isinstance(self._source.items, Stoppable):
            self._source.items.stop()
        self._thread.join()

    def _cancel(self) -> None:
        """Cancel the task that reads, in its loop, unless it closes its source already."""
        if self._task is not None:
            self._task.cancel()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            items = self._source.items
            if isinstance(items, Iterable):
                self._read(items)
            else:
                # Ends, with what was begun in it, before the copy does.
                with ThreadPoolExecutor(1, thread_name_prefix="tsengine-copy-reader") as waiting:
                    if isinstance(items, InLoop):
                        reading = self._read_async(items, waiting)
                        asyncio.run_coroutine_threadsafe(reading, items.loop).result()
                    else:
                        asyncio.run(self._read_async(items, waiting))
        except (
            FeedStoppedError,
            CancelledError,
            asyncio.CancelledError,
            concurrent.futures.CancelledError,
        ) as ended:  # fmt: skip
            if not self._is_stopped:
                error = ended
        except BaseException as raised:  # noqa: BLE001  # raised by whoever takes from the feed
            error = raised
            if self._is_stopped:
                logger.warning("a source failed while it was closed: %s", raised)
        self._feed.finish(error)

    def _read(self, items: Iterable[object]) -> None:
        feed = self._feed
        iterator = iter(items)
        try:
            points = feed.points
            for item in iterator:
                # Most is plain points, and a call for each would cost as much as all else.
                kind = type(item)
                if (kind is DataPoint or kind is tuple) and not feed.has_batches:
                    points.append(item)  # type: ignore[arg-type]  # judged by the writer
                    if len(points) < feed.points_max:
                        continue
                    item = None
                if item is None:
                    self._flush()
                else:
                    self._add(item)
            self._flush()
        except FeedStoppedError:
            raise
        except BaseException:
            self._flush()  # what came before the error lands before it
            raise
        finally:
            if isinstance(iterator, Generator):
                iterator.close()

    def _add(self, item: object) -> None:
        for _ in self._feed.add(item):
            self._feed.wait_for_room()

    def _flush(self) -> None:
        for _ in self._feed.flush():
            self._feed.wait_for_room()

    async def _read_async(self, items: AsyncIterable[object], waiting: ThreadPoolExecutor) -> None:
        feed = self._feed
        is_ours = not isinstance(items, InLoop)  # the loop, to be held up as we like
        in_thread = partial(asyncio.get_running_loop().run_in_executor, waiting)
        with self._lock:
            if self._is_stopped:
                return
            self._task = asyncio.current_task()
        iterator = aiter(items)
        points = 0
        try:
            async for item in iterator:
                if is_ours or (type(item) in (DataPoint, tuple) and not feed.has_batches):
                    for _ in feed.add(item):
                        await in_thread(feed.wait_for_room)
                    points += 1
                    if points % POINTS_A_PASS == 0:
                        await asyncio.sleep(0)
                else:
                    await in_thread(self._add, item)
            await in_thread(self._flush)
        except (FeedStoppedError, asyncio.CancelledError):
            raise
        except BaseException:
            await in_thread(self._flush)
            raise
        finally:
            with self._lock:
                self._task = None
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()
