"""A commit: judged as a whole first, then applied as a whole.

Judging works out, for the batch of each kind, what rows every series will show from its
first changed row on, and raises where a kind or the duplicate policy says no; it changes
nothing. Then room is made, which nobody can see. Applying writes these rows behind those
kept, lets the caps cut the oldest, and tells from where windows begin afterwards which of
the rows given were refused.

All steps work on all series of a batch at once; there is no path series by series.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tsengine.backends.memory.ranges import (
    BoolArray,
    bounds_of,
    expand,
    lengths_of,
    lower_bounds,
    repeats,
)
from tsengine.backends.memory.ring import Rings
from tsengine.backends.memory.store import Store
from tsengine.backends.memory.total_cap import TotalCap
from tsengine.duplicates import DuplicatePolicy, fold_values
from tsengine.errors import (
    DuplicatePointError,
    InvalidDataError,
    ValueKindError,
    ValueOverflowError,
)
from tsengine.grouping import take_rows
from tsengine.model import (
    INT64_MIN,
    GroupedBatch,
    Int64Array,
    Labels,
    ValueArray,
    ValueKind,
    WriteReceipt,
    pack_object,
)
from tsengine.staging import receipt_of


@dataclass(slots=True)
class _Group:
    """What is given for one kind.

    Attributes:
        kind: its kind.
        first_row: number of its first row among the rows of the commit.
        batch: its columns, no series without rows.
        rows: number of each row among those given for the kind; None where all are there.
        slots: int64[k], 0 for series that are not listed yet.
    """

    kind: ValueKind
    first_row: int
    batch: GroupedBatch
    rows: Int64Array | None
    slots: Int64Array

    def rows_given(self, rows: Int64Array) -> Int64Array:
        """Translate rows of the batch to rows of the commit."""
        return (rows if self.rows is None else self.rows[rows]) + self.first_row


@dataclass(slots=True)
class _Change:
    """What becomes of the series of one kind.

    A key is a distinct timestamp of a series among the rows given.

    Attributes:
        group: what was given.
        starts: int64[m], the first row of each key; None where each row is one.
        keys: int64[k + 1], which keys are of which series.
        expired: int64[k], rows that each series has and retention no longer shows.
        kept: int64[k], rows of each series before the first changed one, expired or not.
        bounds: int64[k + 1], which rows of the columns follow in each series.
        columns: timestamps and values, keys merged with the rows stored between them.
        places: int64[m], where each key is in the columns; None where keys are all that
            is there.
        is_new: bool[m], whether the timestamp was not stored before; None where none was.
    """

    group: _Group
    starts: Int64Array | None
    keys: Int64Array
    expired: Int64Array
    kept: Int64Array
    bounds: Int64Array
    columns: tuple[Int64Array, ValueArray]
    places: Int64Array | None = None
    is_new: BoolArray | None = None


@dataclass(slots=True)
class _Overlap:
    """Where keys of series lie among the rows that these already have.

    Attributes:
        series: int64[l], which series of the group have rows at or after their first key.
        keys: int64[j], all keys of those.
        of: int64[j], the series of each of these keys, as its index in the group.
        at: int64[j], position in the pool of the first row not before the key.
        exists: bool[j], whether that row has the timestamp of the key.
    """

    series: Int64Array
    keys: Int64Array
    of: Int64Array
    at: Int64Array
    exists: BoolArray


class Commit:
    """One commit: `judge`, `make_room`, `apply`, in this order.

    Args:
        store: where to.
        horizon: the earliest timestamp that retention lets in.

    Thread-safety: none; the engine's lock is held until it is applied.
    """

    def __init__(self, store: Store, horizon: int) -> None:
        self._store = store
        self._horizon = horizon
        self._submitted = 0
        self._expired: list[Int64Array] = []
        self._changes: list[_Change] = []
        self._unlisted: list[Int64Array] = []  # of each change, the series not listed before

    def judge(self, batches: Sequence[GroupedBatch]) -> None:
        """Work out what will change; changes nothing.

        Args:
            batches: as `Engine._commit` gets them, objects as MessagePack.

        Raises:
            InvalidDataError: the commit cannot be stored; `indices` are rows over the
                batches one after the other.
        """
        groups: list[_Group] = []
        for batch in batches:
            slots = self._store.catalogue.slots(batch.labels)
            groups.append(_Group(_kind_of(batch.values), self._submitted, batch, None, slots))
            self._submitted += len(batch)
        self._check_kinds(groups)
        errors: list[InvalidDataError] = []
        for group in groups:
            self._leave_out(group)
            if len(group.batch):
                try:
                    self._changes.append(self._change(group))
                except (DuplicatePointError, ValueOverflowError) as error:
                    errors.append(error)
        if errors:
            wrong = [index for error in errors for index in error.indices]
            raise type(errors[0])(str(errors[0]), indices=sorted(wrong))

    def make_room(self) -> None:
        """Give new series slots, and all series room for what they will show.

        Raises:
            MemoryError: there is none; the store shows what it showed.
        """
        catalogue = self._store.catalogue
        try:
            for change in self._changes:
                slots = change.group.slots
                unlisted = np.flatnonzero(slots == 0)
                slots[unlisted] = catalogue.new_slots(len(unlisted))
                self._unlisted.append(unlisted)
                rings = self._store.rings[change.group.kind]
                rings.ensure_slots(catalogue.slots_end)
                rings.make_room(slots, change.kept, lengths_of(change.bounds))
        except BaseException:
            for change, unlisted in zip(self._changes, self._unlisted, strict=False):
                self._store.rings[change.group.kind].release(change.group.slots[unlisted])
            raise

    def apply(self) -> WriteReceipt:
        """Write, and let caps cut; what was refused shows in where windows begin then."""
        dropped = 0
        tails: list[Int64Array] = []
        for change, unlisted in zip(self._changes, self._unlisted, strict=True):
            labels = change.group.batch.labels
            if len(unlisted) < len(labels):
                labels = [labels[index] for index in unlisted.tolist()]
            slots = change.group.slots
            self._store.catalogue.add(labels, slots[unlisted], change.group.kind)
            rings = self._store.rings[change.group.kind]
            rings.advance(slots, rings.lo[slots] + change.expired)
            kept, cap = change.kept - change.expired, self._store.points_per_series_max
            if cap is not None:
                cut = np.clip(kept + lengths_of(change.bounds) - cap, 0, kept)
                dropped += rings.advance(slots, rings.lo[slots] + cut)
                kept = kept - cut
            tails.append(rings.replace_tails(slots, kept, change.bounds, change.columns))
            if cap is not None:
                begins = np.maximum(rings.lo[slots], rings.hi[slots] - cap)
                dropped += rings.advance(slots, begins)
            if self._store.total_cap is not None:
                self._store.total_cap.note_oldest(rings, slots[kept == 0])
        if self._store.total_cap is not None:
            dropped += self._cut_oldest(self._store.total_cap)
        refused = [np.empty(0, np.int64)]
        for change, tail in zip(self._changes, tails, strict=True):
            rows, new = self._refused(change, tail)
            refused.append(rows)
            dropped -= new
        self._unlist_empty()
        return receipt_of(
            self._submitted,
            {
                "retention": np.concatenate([np.empty(0, np.int64), *self._expired]),
                "cap": np.concatenate(refused),
            },
            evicted=dropped,
        )

    def _check_kinds(self, groups: Sequence[_Group]) -> None:
        """Raise ValueKindError where a series holds, or is given, values of two kinds."""
        wrong: list[int] = []
        message = ""
        opened: dict[Labels, ValueKind] = {}
        for group in groups:
            kinds = self._store.catalogue.kinds[group.slots]
            kinds[group.slots == 0] = group.kind
            if len(groups) > 1:
                opens = (group.slots == 0) & (lengths_of(group.batch.offsets) > 0)
                for index in np.flatnonzero(opens).tolist():
                    kinds[index] = opened.setdefault(group.batch.labels[index], group.kind)
            for index in np.flatnonzero(kinds != group.kind).tolist():
                rows = range(*group.batch.offsets[index : index + 2].tolist())
                if rows:
                    message = message or (
                        f"{group.batch.labels[index].id} holds "
                        f"{ValueKind(int(kinds[index])).name.lower()}, the values given are "
                        f"{group.kind.name.lower()}"
                    )
                    wrong.extend(group.first_row + row for row in rows)
        if wrong:
            raise ValueKindError(message, indices=wrong)

    def _leave_out(self, group: _Group) -> None:
        """Refuse rows that have expired already, and leave out series without rows."""
        batch = group.batch
        lengths = lengths_of(batch.offsets)
        keep = batch.timestamps >= self._horizon if self._horizon > INT64_MIN else None
        if keep is not None and not keep.all():
            self._expired.append(np.flatnonzero(~keep) + group.first_row)
            group.rows = np.flatnonzero(keep)
        elif lengths.all():
            return
        else:
            keep = np.ones(len(batch), np.bool_)
        group.batch = take_rows(batch, keep)
        group.slots = group.slots[lengths_of(bounds_of(keep.astype(np.int64))[batch.offsets]) > 0]

    def _change(self, group: _Group) -> _Change:
        rings = self._store.rings[group.kind]
        batch, slots = group.batch, group.slots
        expired = rings.locate(slots, self._horizon) - rings.lo[slots]
        again = repeats(batch.timestamps, batch.offsets)
        if again is None:
            starts, keys, moments = None, batch.offsets, batch.timestamps
        else:
            starts = np.flatnonzero(~again)
            keys, moments = np.searchsorted(starts, batch.offsets), batch.timestamps[starts]
        count = rings.hi[slots] - rings.lo[slots]
        late = (batch.timestamps[batch.offsets[:-1]] <= rings.newest[slots]) & (count > 0)
        if not late.any():
            folded = self._fold(group, starts, None, rings)
            return _Change(group, starts, keys, expired, count, keys, (moments, folded))
        overlap = _overlap(rings, slots, np.flatnonzero(late), keys, moments)
        columns = moments, self._fold(group, starts, overlap, rings)
        change = _Change(group, starts, keys, expired, count, keys, columns)
        return _merged(change, overlap, rings)

    def _fold(
        self,
        group: _Group,
        starts: Int64Array | None,
        overlap: _Overlap | None,
        rings: Rings,
    ) -> ValueArray:
        """Give each key its value: what was stored at it, then the rows given, as one fold.

        Folding in two steps would let an int64 sum overflow half way that fits in the end.
        """
        values = group.batch.values
        existing = at = np.empty(0, np.int64)
        if overlap is not None:
            existing, at = overlap.keys[overlap.exists], overlap.at[overlap.exists]
        if starts is None:
            if not len(existing) or self._store.policy is DuplicatePolicy.LAST:
                return values
            starts = np.arange(len(values))
        before = starts[existing]
        stored = np.zeros(len(starts), np.int64)
        stored[existing] = 1
        try:
            return fold_values(
                starts + np.cumsum(stored) - stored,
                np.insert(values, before, rings.pool.values[at]),  # type: ignore[arg-type]  # both of one kind
                self._store.policy,
            )
        except InvalidDataError as error:
            given = np.insert(np.arange(len(values)), before, -1)[list(error.indices)]
            wrong = given[given >= 0]
            series = int(np.searchsorted(group.batch.offsets, wrong[0], "right")) - 1
            raise type(error)(
                f"{group.batch.labels[series].id} at {group.batch.timestamps[wrong[0]]}: {error}",
                indices=group.rows_given(wrong).tolist(),
            ) from None

    def _cut_oldest(self, total_cap: TotalCap) -> int:
        """Apply the total cap; give the rows cut that had not expired.

        Where rows have expired they are the oldest, so that cutting them first leaves the
        same as purging the whole store before.
        """
        dropped = 0
        for rings, slots, begins in total_cap.excess():
            expired = np.minimum(rings.locate(slots, self._horizon), begins) - rings.lo[slots]
            dropped += rings.advance(slots, begins) - int(expired.sum())
        return dropped

    def _refused(self, change: _Change, tails: Int64Array) -> tuple[Int64Array, int]:
        """Give the rows whose key was cut, and how many of these keys were not stored before."""
        rings = self._store.rings[change.group.kind]
        begins = rings.lo[change.group.slots]
        if (begins <= tails).all():
            return np.empty(0, np.int64), 0
        of = np.repeat(np.arange(len(tails)), lengths_of(change.keys))
        places = np.arange(len(of)) if change.places is None else change.places
        cut = places + (tails - change.bounds[:-1] - begins)[of] < 0
        new = cut if change.is_new is None else cut & change.is_new
        if change.starts is not None:
            cut = np.repeat(cut, lengths_of(np.append(change.starts, len(change.group.batch))))
        return change.group.rows_given(np.flatnonzero(cut)), int(new.sum())

    def _unlist_empty(self) -> None:
        """Take series off the list again of which no row was accepted."""
        for change, unlisted in zip(self._changes, self._unlisted, strict=True):
            slots = change.group.slots[unlisted]
            rings = self._store.rings[change.group.kind]
            empty = slots[rings.hi[slots] == rings.lo[slots]]
            if len(empty):
                rings.release(empty)
                self._store.catalogue.remove(empty)


def _overlap(
    rings: Rings, slots: Int64Array, series: Int64Array, keys: Int64Array, moments: Int64Array
) -> _Overlap:
    lengths = lengths_of(keys)[series]
    which = expand(keys[series], lengths)
    of = np.repeat(series, lengths)
    timestamps, ends = rings.pool.timestamps, rings.hi[slots[of]]
    at = lower_bounds(timestamps, rings.lo[slots[of]], ends, moments[which])
    exists = at < ends
    exists &= timestamps[np.where(exists, at, 0)] == moments[which]
    return _Overlap(series, which, of, at, exists)


def _merged(change: _Change, overlap: _Overlap, rings: Rings) -> _Change:
    """Merge keys with the rows stored after the first of them: sorted by place, not by sorting."""
    slots, keys, (moments, values) = change.group.slots, change.keys, change.columns
    hi = rings.hi[slots]
    tails = hi.copy()
    tails[overlap.series] = overlap.at[bounds_of(lengths_of(keys)[overlap.series])[:-1]]
    is_new = np.ones(len(moments), np.bool_)
    is_new[overlap.keys[overlap.exists]] = False
    new_before = bounds_of(is_new.astype(np.int64))
    bounds = bounds_of(hi - tails + lengths_of(new_before[keys]))
    # A key stands after the rows stored before it and the new keys before it.
    of = np.repeat(np.arange(len(slots)), lengths_of(keys))
    places = new_before[:-1] + (bounds[:-1] - new_before[keys[:-1]])[of]
    places[overlap.keys] += overlap.at - tails[overlap.of]
    is_stored = np.ones(int(bounds[-1]), np.bool_)
    is_stored[places[is_new]] = False
    rows = expand(tails, hi - tails)
    timestamps = np.empty(len(is_stored), np.int64)
    merged = np.empty_like(values, shape=len(is_stored))
    for column, stored, given in (
        (timestamps, rings.pool.timestamps, moments),
        (merged, rings.pool.values, values),
    ):
        column[is_stored] = stored[rows]
        column[places] = given
    return replace(
        change,
        kept=tails - rings.lo[slots],
        bounds=bounds,
        columns=(timestamps, merged),
        places=places,
        is_new=is_new,
    )


def packed(batch: GroupedBatch) -> GroupedBatch:
    """Give a batch with objects as MessagePack, as they are stored."""
    if _kind_of(batch.values) is not ValueKind.OBJECT:
        return batch
    values = np.empty(len(batch), object)
    values[:] = [pack_object(value) for value in batch.values]
    return replace(batch, values=values)


def _kind_of(values: ValueArray) -> ValueKind:
    if values.dtype == np.float64:
        return ValueKind.FLOAT
    return ValueKind.INT if values.dtype == np.int64 else ValueKind.OBJECT
