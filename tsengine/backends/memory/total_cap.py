"""The total cap: which rows are the oldest of the whole store.

Few rows among many series are found through a heap of each series' oldest row; many rows
at once, as a flush into a full store evicts them, by narrowing down their newest time
over the beginnings of all windows, which takes less than half a microsecond a row.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from tsengine.backends.memory.catalogue import NO_KIND, Catalogue
from tsengine.backends.memory.ranges import BoolArray, expand, lower_bounds
from tsengine.backends.memory.ring import Rings
from tsengine.model import Int64Array

_FEW: Final = 128
"""Series for each row to evict from which the heap is faster: it takes microseconds a row,
the other way a tenth of a microsecond a series."""

Oldest: TypeAlias = "tuple[Rings, Int64Array, Int64Array]"
"""Windows of one kind and where they shall begin: rings, slots, positions."""


class TotalCap:
    """Finds the oldest rows of a store: by time, those of one time by series ID.

    Args:
        points_max: rows that the store may hold.
        catalogue: for series IDs.
        rings: the columns, by kind.

    Thread-safety: none; the engine's lock guards it.
    """

    def __init__(self, points_max: int, catalogue: Catalogue, rings: Mapping[int, Rings]) -> None:
        self.points_max = points_max
        self._catalogue = catalogue
        self._rings = rings
        # (timestamp, series ID, slot): for each series that has rows at least one entry not
        # above its oldest row. None until rows are first sought this way.
        self._heap: list[tuple[int, str, int]] | None = None

    def note_oldest(self, rings: Rings, slots: Int64Array) -> None:
        """Take note that the oldest row of series may have become an older one."""
        heap = self._heap
        if heap is None:
            return
        if len(heap) + len(slots) > 2 * len(self._catalogue) + _FEW:
            self._heap = None
            return
        for entry in self._entries(rings, slots):
            heapq.heappush(heap, entry)

    def excess(self) -> list[Oldest]:
        """Find what the store holds beyond its cap."""
        count = sum(rings.points for rings in self._rings.values()) - self.points_max
        if count <= 0:
            return []
        if count * _FEW < len(self._catalogue):
            return self._by_heap(count)
        return self._by_time(count)

    def _entries(self, rings: Rings, slots: Int64Array) -> list[tuple[int, str, int]]:
        moments = rings.pool.timestamps[rings.lo[slots]].tolist()
        numbers = slots.tolist()
        ids = [self._catalogue.labels(slot).id for slot in numbers]
        return list(zip(moments, ids, numbers, strict=True))

    def _by_heap(self, count: int) -> list[Oldest]:
        if self._heap is None:
            self._heap = []
            for rings in self._rings.values():
                self._heap.extend(self._entries(rings, rings.filled()))
            heapq.heapify(self._heap)
        heap = self._heap
        begins: dict[int, int] = {}  # by slot, where its window begins when all is evicted
        while count:
            moment, series_id, slot = heap[0]
            holder = self._rings_of(slot, series_id)
            begin = 0 if holder is None else begins.get(slot, int(holder.lo[slot]))
            if holder is None or begin == holder.hi[slot]:
                heapq.heappop(heap)
                continue
            rows = holder.pool.timestamps[begin : min(int(holder.hi[slot]), begin + count + 1)]
            if rows[0] != moment:
                heapq.heapreplace(heap, (int(rows[0]), series_id, slot))
                continue
            heapq.heappop(heap)
            run = min(len(rows), count)
            if heap:
                side = "right" if series_id < heap[0][1] else "left"
                older = rows.searchsorted(heap[0][0], side)  # type: ignore[call-overload]  # the stubs want a literal
                run = min(run, max(int(older), 1))
            count -= run
            begins[slot] = begin + run
            if run < len(rows):
                heapq.heappush(heap, (int(rows[run]), series_id, slot))
        return self._by_kind(begins)

    def _rings_of(self, slot: int, series_id: str) -> Rings | None:
        """Give the rings of a series, None where an entry is of one that was removed."""
        kind = int(self._catalogue.kinds[slot])
        if kind == NO_KIND or self._catalogue.labels(slot).id != series_id:
            return None
        return self._rings[kind]

    def _by_kind(self, begins: dict[int, int]) -> list[Oldest]:
        slots = np.fromiter(begins, np.int64, len(begins))
        lo = np.fromiter(begins.values(), np.int64, len(begins))
        kinds = self._catalogue.kinds[slots]
        return [
            (rings, slots[kinds == rings.kind], lo[kinds == rings.kind])
            for rings in self._rings.values()
        ]

    def _by_time(self, count: int) -> list[Oldest]:
        fronts = [_Front.of(rings) for rings in self._rings.values() if rings.points]
        series = sum(len(front.slots) for front in fronts)
        for front in fronts:
            front.widen(2 * count // series + 1)
        while True:
            moments = np.concatenate([front.moments() for front in fronts])
            if len(moments) < count:
                for front in fronts:
                    front.widen(2)
                continue
            newest = int(np.partition(moments, count - 1)[count - 1])
            # Where a window goes on beyond what was looked at, older rows may follow.
            if not any(front.widen_up_to(newest) for front in fronts):
                break
        for front in fronts:
            front.cut(newest)
        ties = count - sum(int((front.seen - front.lo).sum()) for front in fronts)
        at = [front.at(newest) for front in fronts]
        ranks = [self._catalogue.ranks()[front.slots] for front in fronts]
        tied = np.concatenate([rank[here] for rank, here in zip(ranks, at, strict=True)])
        last = np.partition(tied, ties - 1)[ties - 1]
        for front, rank, here in zip(fronts, ranks, at, strict=True):
            front.seen += here & (rank <= last)
        return [(front.rings, front.slots, front.seen) for front in fronts]


@dataclass(slots=True)
class _Front:
    """The beginnings of all windows of one kind.

    Attributes:
        rings: the windows.
        slots: those that have rows.
        lo: where each begins.
        seen: up to where it was looked at.
        hi: where it ends.
    """

    rings: Rings
    slots: Int64Array
    lo: Int64Array
    seen: Int64Array
    hi: Int64Array

    @classmethod
    def of(cls, rings: Rings) -> _Front:
        slots = rings.filled()
        lo = rings.lo[slots]
        return cls(rings, slots, lo, np.minimum(lo + 1, rings.hi[slots]), rings.hi[slots])

    def moments(self) -> Int64Array:
        return self.rings.pool.timestamps[expand(self.lo, self.seen - self.lo)]

    def widen(self, times: int) -> None:
        self.seen = np.minimum(self.lo + times * (self.seen - self.lo), self.hi)

    def widen_up_to(self, newest: int) -> bool:
        """Look further at windows whose rows seen are all up to a moment; tell if any were."""
        last = self.rings.pool.timestamps[self.seen - 1]
        going_on = np.flatnonzero((self.seen < self.hi) & (last <= newest))
        seen, lo = self.seen[going_on], self.lo[going_on]
        self.seen[going_on] = np.minimum(2 * seen - lo, self.hi[going_on])
        return bool(len(going_on))

    def cut(self, moment: int) -> None:
        """Look at rows before a moment only."""
        self.seen = lower_bounds(self.rings.pool.timestamps, self.lo, self.seen, moment)

    def at(self, moment: int) -> BoolArray:
        """Tell of which series the row after those looked at is of a moment."""
        inside = np.minimum(self.seen, self.hi - 1)
        is_at: BoolArray = self.rings.pool.timestamps[inside] == moment
        return is_at & (self.seen < self.hi)
