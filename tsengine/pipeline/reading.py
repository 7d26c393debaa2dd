"""Reading: a thread that iterates over a source and feeds a copy."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable

from tsengine.model import DataPoint
from tsengine.pipeline.feed import Feed, FeedStoppedError
from tsengine.pipeline.sources import Source

logger = logging.getLogger("tsengine.copies")


class Reader:
    """Reads a source in a thread of its own, which `stop` ends.

    An async source is driven by an event loop of that thread.

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

        An async source is cancelled. Another one that is asked for its next item cannot be: it
        is waited for.
        """
        self._feed.stop()
        with self._lock:
            self._is_stopped = True
            if self._task is not None:
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)
        self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            if isinstance(self._source.items, Iterable):
                self._read(self._source.items)
            else:
                asyncio.run(self._read_async(self._source.items))
        except (FeedStoppedError, asyncio.CancelledError) as ended:
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
                for _ in feed.flush() if item is None else feed.add(item):
                    feed.wait_for_room()
            for _ in feed.flush():
                feed.wait_for_room()
        except FeedStoppedError:
            raise
        except BaseException:
            for _ in feed.flush():  # what came before the error lands before it
                feed.wait_for_room()
            raise
        finally:
            if isinstance(iterator, Generator):
                iterator.close()

    async def _read_async(self, items: AsyncIterable[object]) -> None:
        feed = self._feed
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._is_stopped:
                return
            self._task = asyncio.current_task()
        iterator = aiter(items)
        try:
            async for item in iterator:
                for _ in feed.add(item):
                    await loop.run_in_executor(None, feed.wait_for_room)
            for _ in feed.flush():
                await loop.run_in_executor(None, feed.wait_for_room)
        except (FeedStoppedError, asyncio.CancelledError):
            raise
        except BaseException:
            for _ in feed.flush():
                await loop.run_in_executor(None, feed.wait_for_room)
            raise
        finally:
            with self._lock:
                self._task = None
            if isinstance(iterator, AsyncGenerator):
                await iterator.aclose()
