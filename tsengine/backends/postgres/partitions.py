"""Partitions: made ahead of the points, and dropped when retention hides all of one.

Both are done by privileged functions, in transactions of their own that wait for locks no
longer than a moment: what cannot be done now is done at a later commit. Points for whose time
there is no partition go to `points_rest`, so nothing depends on it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from tsengine.backends.postgres import schema
from tsengine.backends.postgres.connecting import Database
from tsengine.errors import AccessDeniedError, DataRefusedError, StorageError, TsEngineError
from tsengine.model import GroupedBatch, Int64Array

logger = logging.getLogger("tsengine.postgres")

WIDTH: Final = 7 * 86_400 * 10**9
"""A week, nanoseconds."""

_WIDTH_MIN: Final = 3_600 * 10**9

_IN_RETENTION: Final = 8
"""Partitions in the time of a retention: an eighth more than that is stored."""

PAST: Final = 208
"""How many partitions back from now points get one of their own: four years of weeks. The
planner looks at all partitions that a question may concern."""

AHEAD: Final = 1
"""Partitions after the present one that are there before they are needed."""

_FEW: Final = 4
"""Partitions that a batch may span without a look at which of them it has rows in."""

_LOCK_WAIT: Final = "SET LOCAL lock_timeout = '200ms'"
"""While one waits for its lock, all that come later wait behind it."""

_AGAIN_SECONDS: Final = 10.0
"""After this long what failed is tried again."""

_SWEEPS: Final = 16
"""Sweeps in the time of a retention: so at most a sixteenth of what is stored has expired."""


def width_for(retention: int | None) -> int:
    """Give the width of partitions where none is given: some go wholly within a retention."""
    if retention is None:
        return WIDTH
    return max(min(retention // _IN_RETENTION, WIDTH), _WIDTH_MIN)


class Partitions:
    """Makes and drops the partitions of a store.

    Args:
        database: where it is.
        schema_name: which schema.
        width: of a partition, nanoseconds.
        clock: seconds, monotonic.

    Thread-safety: any number of threads.
    """

    def __init__(
        self,
        database: Database,
        schema_name: str,
        width: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._schema = schema_name
        self._width = width
        self._clock = clock
        self._lock = threading.Lock()  # guards all that follows
        self._settled: set[int] = set()  # numbers that are made, or never will be; of PAST + AHEAD
        self._again_at = clock()
        self._swept_ns: int | None = None
        self._sweep_at = clock()

    def prepare(self, batches: Sequence[GroupedBatch], now_ns: int) -> None:
        """Make what partitions a commit and the time after it need, as far as that can be done.

        Args:
            batches: of the commit.
            now_ns: nanoseconds since the Unix epoch.
        """
        present = now_ns // self._width
        first, last = present - PAST, present + AHEAD
        wanted = {present, last}
        for batch in batches:
            if len(batch):
                wanted.update(self._numbers(batch.timestamps))
        with self._lock:
            missing = sorted(number for number in wanted - self._settled if first <= number <= last)
            if not missing or self._clock() < self._again_at:
                return
            self._again_at = self._clock() + _AGAIN_SECONDS  # others need not wait for the same
        if _is_settled(self._call("SELECT make_partitions(%s)", missing)):
            with self._lock:
                self._settled = {one for one in self._settled if one >= first} | set(missing)
                self._again_at = self._clock()

    def drop_expired(self, horizon: int, retention: int) -> None:
        """Drop what retention hides, now and then."""
        with self._lock:
            is_due = self._swept_ns is None or horizon - self._swept_ns >= retention // _SWEEPS
            if not is_due or self._clock() < self._sweep_at:
                return
            self._sweep_at = self._clock() + _AGAIN_SECONDS  # others need not wait for the same
        if _is_settled(self.sweep(horizon)):
            with self._lock:
                self._swept_ns, self._sweep_at = horizon, self._clock()

    def sweep(self, horizon: int) -> TsEngineError | None:
        """Drop what retention hides; gives what stood in the way, None where all of it has gone."""
        return self._call("SELECT drop_expired(%s)", horizon)

    def _numbers(self, timestamps: Int64Array) -> Sequence[int]:
        first = int(timestamps.min()) // self._width
        last = int(timestamps.max()) // self._width
        if last - first < _FEW:
            return range(first, last + 1)
        found: list[int] = np.unique(timestamps // self._width).tolist()
        return found

    def _call(self, statement: str, argument: object) -> TsEngineError | None:
        try:
            with self._database.transaction(
                doing="making partitions",
                opening=f"{schema.open_read(self._schema)}; {_LOCK_WAIT}",
            ) as session:
                session.execute(statement.encode(), (argument,))
        # A row that came meanwhile, for which the partition was to be, is said to violate it.
        except (StorageError, DataRefusedError) as error:
            logger.warning("partitions of schema %s stay as they are: %s", self._schema, error)
            return error
        return None


def _is_settled(error: TsEngineError | None) -> bool:
    """Whether there is no use in trying again: it is done, or this user is never going to."""
    return error is None or isinstance(error, AccessDeniedError)
