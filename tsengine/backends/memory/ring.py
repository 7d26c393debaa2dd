"""Rings: the columns of all series of one kind, as windows into one pool.

Each series has a region of the pool, and in it a window that slides: rows are appended at
its end, caps and retention move its beginning.

    pool    ···|  free  | rows of series 7 | room |  rows of series 2  | room |···
               base     lo                 hi     end

Windows are described by numpy arrays by slot (the number of a series), so that what a
flush does to 65,536 series are a few dozen numpy calls. A region that is full slides its
rows to its base, or moves to a larger one at the end of the pool; a pool that is full is
written anew, larger, without what no window shows. All three copy a row about twice in
its life.

Readers take windows of a pool and pin it. As long as it is pinned nothing inside a window
changes in place: rows are only appended behind windows, all else moves to a new region.
"""

from __future__ import annotations

from typing import Final, cast

import numpy as np
import numpy.typing as npt

from tsengine.backends.memory.ranges import bounds_of, expand, lengths_of, lower_bounds, move
from tsengine.errors import CorruptionError, StorageError
from tsengine.model import INT64_MAX, INT64_MIN, Int64Array, ValueArray, ValueKind

_WASTE_MAX: Final = 4
"""A pool is written anew when it takes this many times the rows it shows. Steady growth
stays below three, so only deletes, caps and retention get here."""

_WINDOW: Final = slice(0, 4)
"""Of the state by slot: base, lo, hi and end."""

_NEWEST: Final = 4
"""Of the state by slot: the last timestamp."""

_SMALL: Final = 4_096
"""A pool of so few positions is not worth writing anew."""


class Pool:
    """Two columns in which windows lie.

    Attributes:
        timestamps: int64[size].
        values: float64, int64 or object[size]; objects as MessagePack.
        pins: one token for each reader that looks at windows of this pool. Sets add and
            discard atomically, so that a forgotten scan may unpin from wherever the
            garbage collector runs.
    """

    __slots__ = ("pins", "timestamps", "values")

    def __init__(self, size: int, kind: ValueKind) -> None:
        self.timestamps: Int64Array = np.empty(size, np.int64)
        self.values: ValueArray = cast("ValueArray", np.empty(size, kind.dtype))
        self.pins: set[object] = set()

    @property
    def columns(self) -> tuple[Int64Array, ValueArray]:
        """Both columns."""
        return self.timestamps, self.values


class Rings:
    """The windows of one kind.

    Args:
        kind: what the values are.
        is_capped: whether series stop growing at some size, so that room to double would
            be wasted.

    Attributes:
        lo: int64 by slot, position of the first row.
        hi: int64 by slot, one past the last row.
        newest: int64 by slot, the last timestamp; meaningful where there are rows.
        points: rows of all series.

    Thread-safety: none; the engine's lock guards it. Slot 0 is of no series, always empty.
    """

    def __init__(self, kind: ValueKind, *, is_capped: bool = False) -> None:
        self.kind = kind
        self._is_capped = is_capped
        self.pool = Pool(1, kind)  # never empty, so that position -1 may be looked at
        self.used = 0  # positions handed out, from the beginning of the pool
        self.points = 0
        self._written = 0, 0  # `used` and `points` when the pool was written anew
        self._adopt(np.zeros((5, 1), np.int64))

    def ensure_slots(self, slots: int) -> None:
        """Make room for slots below a number."""
        have = len(self.lo)
        if slots > have:
            state = np.zeros((5, max(slots, 2 * have)), np.int64)
            state[:, :have] = self._state
            self._adopt(state)

    @property
    def bytes(self) -> int:
        """Bytes of the pool in use, rows and what surrounds them, and of the windows."""
        return self.used * 16 + 5 * self.lo.nbytes

    def filled(self) -> Int64Array:
        """Give the slots that have rows."""
        return np.flatnonzero(self.hi > self.lo)

    def locate(self, slots: Int64Array, moment: int) -> Int64Array:
        """Give the position of the first row of each window that is not before a moment.

        Args:
            slots: int64[k].
            moment: INT64_MIN .. RANGE_END_MAX.
        """
        first, last = self.lo[slots], self.hi[slots]
        if moment > INT64_MAX:
            return last
        if moment <= INT64_MIN:
            return first
        # Most ranges begin before or end behind most windows, which needs no bisection.
        held = last > first
        oldest = self.pool.timestamps[np.minimum(first, len(self.pool.timestamps) - 1)]
        behind = held & (self.newest[slots] < moment)
        inside = np.flatnonzero(held & (oldest < moment) & ~behind)
        found = np.where(behind, last, first)
        found[inside] = lower_bounds(self.pool.timestamps, first[inside], last[inside], moment)
        return found

    def advance(self, slots: Int64Array, lo: Int64Array) -> int:
        """Drop the oldest rows: windows begin at `lo` now. Gives the number of rows."""
        before = self.lo[slots]
        dropped = int((lo - before).sum())
        if dropped:
            self._let_go(before, lo - before)
            self.lo[slots] = lo
            self.points -= dropped
        return dropped

    def release(self, slots: Int64Array) -> None:
        """Give the regions of removed series back."""
        count = self.hi[slots] - self.lo[slots]
        self._let_go(self.lo[slots], count)
        self.points -= int(count.sum())
        for state in (self._base, self.lo, self.hi, self._end):
            state[slots] = 0

    def make_room(self, slots: Int64Array, kept: Int64Array, lengths: Int64Array) -> None:
        """Bring windows to where `replace_tails` can write; what they show stays the same.

        Args:
            slots: int64[k], distinct.
            kept: int64[k], rows of each window that will stay.
            lengths: int64[k], rows that will follow them.

        Raises:
            MemoryError: there is no room; nothing has changed.
        """
        count = self.hi[slots] - self.lo[slots]
        needed = np.maximum(count, kept + lengths)
        fits = self.lo[slots] + needed <= self._end[slots]
        if self.pool.pins:
            fits &= kept == count  # a reader may look at what would be written over
        if fits.all():
            return
        moving = np.flatnonzero(~fits)
        slots, needed = slots[moving], needed[moving]
        if not self.pool.pins:
            # Sliding frees half of what it copies at least, or it would not be worth it.
            slides = needed + (needed >> 1) <= self._end[slots] - self._base[slots]
            sliding = slots[slides]
            self._slide(sliding)
            slots, needed = slots[~slides], needed[~slides]
        # A first write gets what it needs: bulk loads are copied once, as one piece.
        opens = self._end[slots] == self._base[slots]
        size = np.where(opens, needed, self._grown(needed))
        wanted = int(size.sum())
        if self.used + wanted <= len(self.pool.timestamps):
            bases = self.used + bounds_of(size)
            self._place(slots, bases[:-1], bases[1:])
            self.used = int(bases[-1])
            return
        is_other = self._end > self._base
        is_other[slots] = False
        others = np.flatnonzero(is_other)
        room = self._end[others] - self._base[others]
        self._rewrite(
            np.concatenate((others, slots)),
            np.concatenate((room, size)),
            spare=(wanted + int(room.sum())) >> 1,
        )

    def replace_tails(
        self,
        slots: Int64Array,
        kept: Int64Array,
        bounds: Int64Array,
        columns: tuple[Int64Array, ValueArray],
    ) -> Int64Array:
        """Keep the first rows of each window and let others follow: the one way to write.

        Args:
            slots: int64[k], distinct, for which room was made.
            kept: int64[k], rows of each window that stay.
            bounds: int64[k + 1], which rows of the columns follow in each.
            columns: timestamps, later than those of the rows kept, and values.

        Returns:
            int64[k], where in the pool the rows given begin.
        """
        lengths = lengths_of(bounds)
        tails = self.lo[slots] + kept
        ends = tails + lengths
        before = self.hi[slots]
        move(columns, bounds[:-1], self.pool.columns, tails, lengths)
        self.hi[slots] = ends
        self.newest[slots] = self.pool.timestamps[ends - 1]
        self.points += int((ends - before).sum())
        self._let_go(ends, np.maximum(before - ends, 0))
        return tails

    def cut_out(self, slots: Int64Array, kept: Int64Array, cut: Int64Array) -> None:
        """Drop rows inside windows, or at their ends.

        Args:
            slots: int64[k], distinct.
            kept: int64[k], rows of each window before the first to drop.
            cut: int64[k], rows to drop.
        """
        lengths = self.hi[slots] - self.lo[slots] - kept - cut
        rows = expand(self.lo[slots] + kept + cut, lengths)
        columns = self.pool.timestamps[rows], self.pool.values[rows]
        self.make_room(slots, kept, lengths)
        self.replace_tails(slots, kept, bounds_of(lengths), columns)

    def tidy(self) -> None:
        """Write the pool anew where most of it is waste."""
        # Series of few rows have more room than that, which writing anew would not change:
        # it waits until the pool has doubled or half of its rows are gone.
        used, points = self._written
        if self.used > max(_SMALL, _WASTE_MAX * self.points) and (
            self.used > 2 * used or 2 * self.points < points
        ):
            self.rewrite()

    def rewrite(self, *, exact: bool = False) -> None:
        """Write the pool anew, so that regions have room in proportion, or none at all."""
        slots = np.flatnonzero(self._end > self._base)
        count = self.hi[slots] - self.lo[slots]
        size = (
            count if exact else np.minimum(self._end[slots] - self._base[slots], self._grown(count))
        )
        self._rewrite(slots, size, spare=0 if exact else int(size.sum()) >> 1)

    def verify(self, kinds: npt.NDArray[np.int8]) -> None:
        """Check what everything here relies on.

        Args:
            kinds: kind of each slot's series.

        Raises:
            CorruptionError: it does not hold.
        """
        base, lo, hi, end = self._base, self.lo, self.hi, self._end
        by_base = np.argsort(base[end > base], kind="stable")
        regions = base[end > base][by_base], end[end > base][by_base]
        filled = self.filled()
        counts = hi[filled] - lo[filled]
        rows = self.pool.timestamps[expand(lo[filled], counts)]
        rises = rows[1:] > rows[:-1]
        rises[bounds_of(counts)[1:-1] - 1] = True
        if not (
            ((base <= lo) & (lo <= hi) & (hi <= end)).all()
            and (regions[0][1:] >= regions[1][:-1]).all()
            and (end <= self.used).all()
            and self.used <= len(self.pool.timestamps)
            and int((hi - lo).sum()) == self.points
            and (self.newest[filled] == self.pool.timestamps[hi[filled] - 1]).all()
            and rises.all()
            and (kinds[filled] == self.kind).all()
        ):
            raise CorruptionError(f"the columns of kind {self.kind.name.lower()} are inconsistent")

    def _slide(self, slots: Int64Array) -> None:
        """Move windows to the base of their regions, over rows that they show themselves."""
        try:
            self._place(slots, self._base[slots], self._end[slots])
        except MemoryError as error:
            raise StorageError("rows were moved half way when memory ran out") from error

    def _place(self, slots: Int64Array, bases: Int64Array, ends: Int64Array) -> None:
        """Move windows to other regions of this pool, or to the base of their own."""
        lo, hi = self.lo[slots], self.hi[slots]
        his = bases + hi - lo
        move(self.pool.columns, lo, self.pool.columns, bases, hi - lo)
        if self.kind is ValueKind.OBJECT:
            left = np.where(bases == self._base[slots], np.clip(his, lo, hi), lo)
            self._let_go(left, hi - left)
        # One assignment, which lacks memory as a whole or not at all.
        self._state[_WINDOW, slots] = np.array((bases, bases, his, ends))

    def _rewrite(self, slots: Int64Array, size: Int64Array, *, spare: int) -> None:
        """Move all windows to a new pool.

        Args:
            slots: int64[k], all that have or get a region.
            size: int64[k], positions for each.
            spare: positions beyond that.
        """
        bases = bounds_of(size)
        pool = Pool(int(bases[-1]) + spare + 1, self.kind)
        lo = self.lo[slots]
        count = self.hi[slots] - lo
        his = bases[:-1] + count
        move(self.pool.columns, lo, pool.columns, bases[:-1], count)
        used = int(bases[-1])
        written = used, self.points
        state = np.zeros_like(self._state)  # 0 for series without a region
        state[_WINDOW, slots] = np.array((bases[:-1], bases[:-1], his, bases[1:]))
        state[_NEWEST] = self.newest
        self._adopt(state, pool)
        self.used = used
        self._written = written

    def _adopt(self, state: npt.NDArray[np.int64], pool: Pool | None = None) -> None:
        """Go by other windows, and another pool, from one moment to the next."""
        rows: list[Int64Array] = list(state)
        base, lo, hi, end, newest = rows
        # From here on nothing needs memory, so that all of it is done or none.
        self._state, self._base, self.lo, self.hi, self._end = state, base, lo, hi, end
        self.newest = newest
        if pool is not None:
            self.pool = pool

    def _grown(self, count: Int64Array) -> Int64Array:
        """Give room to grow, so that over the life of a series a row is moved once or twice."""
        return count + (count >> 1 if self._is_capped else count) + 2

    def _let_go(self, starts: Int64Array, lengths: Int64Array) -> None:
        """Drop references to objects that no window shows; numbers may lie where they lie."""
        if self.kind is ValueKind.OBJECT and not self.pool.pins:
            self.pool.values[expand(starts, lengths)] = None  # type: ignore[call-overload]  # objects
