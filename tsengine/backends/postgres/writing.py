"""Writing: one transaction a commit.

In this order, which is everybody's, so that no two commits ever wait for each other: the row of
the producer, new series by digest, points by kind, series and time.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import Final

import numpy as np
import psycopg

from tsengine.backends.postgres import marks, statements
from tsengine.backends.postgres.catalogue import KIND_SHIFT, KNOWN_MAX, NUMBER_MASK, Catalogue
from tsengine.backends.postgres.packing import copy_blocks, int8s, parameters
from tsengine.backends.postgres.rows import Rows, by_series, packed
from tsengine.backends.postgres.session import Session
from tsengine.backends.postgres.sqlstates import is_misplaced
from tsengine.duplicates import DuplicatePolicy, distinct_starts, fold_values
from tsengine.errors import (
    DuplicatePointError,
    InvalidDataError,
    ValueKindError,
    ValueOverflowError,
)
from tsengine.model import (
    INT64_MAX,
    INT64_MIN,
    GroupedBatch,
    Int64Array,
    Labels,
    ProducerMark,
    ValueKind,
    WriteReceipt,
)
from tsengine.staging import kind_of_column, receipt_of

UNNEST_ROWS_MAX: Final = 20_000
"""Rows up to which arrays are faster than COPY and its temporary table; see the design page."""

UNNEST_BYTES_MAX: Final = 1 << 24
"""Bytes of objects up to which they are sent as one array; the server takes a gigabyte."""

_UPSERTS: Final = 64
"""Commits for which no rows are taken for new ones, after some were not."""


class Way(enum.Enum):
    """How points are stored."""

    APPEND = "append"
    """As new rows where they seem to be new, which takes half the time of an upsert; else as
    with UPSERT. Where they turn out not to be new the commit is repeated."""
    UPSERT = "upsert"
    """Whatever is stored already."""
    ALONE = "alone"
    """With nobody writing beside it, and what is stored read before: a policy refuses some rows,
    and only the stored ones tell which."""


class RepeatError(Exception):
    """Says that a commit must be repeated in another way, in another transaction.

    Attributes:
        way: which.
    """

    def __init__(self, way: Way) -> None:
        super().__init__(way.value)
        self.way = way


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit, before its transaction.

    Attributes:
        batches: as `Engine._commit` takes them; objects packed.
        kinds: of each batch.
        horizon: earlier rows are refused.
        mark: of its producer.
        now_ns: when it is made.
    """

    batches: Sequence[GroupedBatch]
    kinds: Sequence[ValueKind]
    horizon: int
    mark: ProducerMark | None
    now_ns: int

    @classmethod
    def of(
        cls,
        batches: Sequence[GroupedBatch],
        *,
        horizon: int,
        mark: ProducerMark | None,
        now_ns: int,
    ) -> Commit:
        """Prepare what takes no transaction."""
        kinds = [kind_of_column(batch.values) for batch in batches]
        ready = [packed(batch, kind) for batch, kind in zip(batches, kinds, strict=True)]
        return cls(ready, kinds, horizon, mark, now_ns)

    @property
    def points(self) -> int:
        """How many points it has."""
        return sum(map(len, self.batches))

    @property
    def bases(self) -> list[int]:
        """Which row of the commit is the first of each batch."""
        return list(accumulate(map(len, self.batches[:-1]), initial=0))

    def receipt(self) -> WriteReceipt:
        """Give its receipt, if it succeeds."""
        refused = [
            np.flatnonzero(batch.timestamps < self.horizon) + base
            for batch, base in zip(self.batches, self.bases, strict=True)
            if len(batch) and batch.timestamps.min() < self.horizon
        ]
        rows = np.concatenate(refused) if refused else np.empty(0, np.int64)
        return receipt_of(self.points, {"retention": rows})


class Writer:
    """Stores commits in a session.

    Args:
        catalogue: of the engine.
        policy: of the store.

    Thread-safety: any number of threads.
    """

    def __init__(self, catalogue: Catalogue, policy: DuplicatePolicy) -> None:
        self._catalogue = catalogue
        self._policy = policy
        # The newest row of each series that was stored from here. Others may have stored newer
        # ones: that it is right saves time, and nothing goes wrong where it is not.
        self._newest: dict[int, int] = {}
        self._upserts = 0  # commits until rows are taken for new ones again

    def store(
        self, session: Session, commit: Commit, removals: int, way: Way
    ) -> tuple[WriteReceipt, Callable[[], None]]:
        """Store a commit in the transaction of a session.

        Args:
            session: in a transaction that has begun to write.
            commit: what to store.
            removals: as the transaction sees it.
            way: how; alone, the transaction must be so too.

        Returns:
            The receipt, and what is to be called once the transaction is committed.

        Raises:
            ValueKindError, DuplicatePointError, ValueOverflowError: as `Engine._commit`.
            RepeatError: it is to be repeated.
        """
        receipt = commit.receipt()
        if commit.mark is not None:
            answered = marks.claim(session, commit.mark, receipt)
            if answered is not None:
                return answered, _nothing
        numbered, learn = self._number(session, commit, removals)
        judged = [
            by_series(batch, kind, numbers, base).since(commit.horizon)
            for batch, kind, numbers, base in zip(
                commit.batches, commit.kinds, numbered, commit.bases, strict=True
            )
        ]
        rows = [one for one in judged if len(one)]
        if way is Way.ALONE:
            rows = self._with_stored(session, rows)
        for place, one in enumerate(rows):
            noted = commit.now_ns if place == len(rows) - 1 else None
            if way is Way.ALONE:
                self._insert(session, one, DuplicatePolicy.LAST, noted)
            else:
                self._store_beside_others(session, one, way, noted)

        def done() -> None:
            learn()
            for one in rows:
                self._note_newest(one)

        return receipt, done

    # Series.

    def _number(
        self, session: Session, commit: Commit, removals: int
    ) -> tuple[list[Int64Array], Callable[[], None]]:
        """Give the ids of the series of each batch; lists new ones that have rows to store.

        New series without such rows have the id 0.

        Raises:
            ValueKindError: some hold another kind.
        """
        catalogue = self._catalogue
        numbered = [catalogue.numbers(session, batch.labels, removals) for batch in commit.batches]
        _check_kinds(commit, numbered)
        newcomers: list[Labels] = []
        kinds: list[int] = []
        places: list[tuple[Int64Array, Int64Array]] = []
        for batch, kind, numbers in zip(commit.batches, commit.kinds, numbered, strict=True):
            new = np.flatnonzero(numbers == 0)
            if not len(new):
                continue
            latest = batch.timestamps[batch.offsets[1:][new] - 1]
            new = new[latest >= commit.horizon]
            newcomers += [batch.labels[place] for place in new.tolist()]
            kinds += [int(kind)] * len(new)
            places.append((numbers, new))
        if not newcomers:
            return [numbers & NUMBER_MASK for numbers in numbered], _nothing
        made = catalogue.register(session, newcomers, np.array(kinds, np.int64))
        self._newest.update(dict.fromkeys((made & NUMBER_MASK).tolist(), INT64_MIN))
        first = 0
        for numbers, new in places:
            numbers[new] = made[first : first + len(new)]
            first += len(new)
        _check_kinds(commit, numbered)  # somebody else may have been first, with another kind
        return (
            [numbers & NUMBER_MASK for numbers in numbered],
            lambda: catalogue.learn(newcomers, made, removals),
        )

    # Points.

    def _store_beside_others(
        self, session: Session, rows: Rows, way: Way, noted: int | None
    ) -> None:
        policy, refuses = self._policy, _refuses(self._policy, rows.kind)
        try:
            folded = rows.folded(policy)
            appends = policy is DuplicatePolicy.ERROR or (
                way is Way.APPEND and self._is_new(folded)
            )
            self._insert(session, folded, DuplicatePolicy.ERROR if appends else policy, noted)
        except (DuplicatePointError, ValueOverflowError) as error:
            raise RepeatError(Way.ALONE) from error
        except psycopg.errors.UniqueViolation as error:
            self._upserts = _UPSERTS
            raise RepeatError(
                Way.ALONE if policy is DuplicatePolicy.ERROR else Way.UPSERT
            ) from error
        except psycopg.errors.NumericValueOutOfRange as error:
            if not refuses:
                raise
            raise RepeatError(Way.ALONE) from error
        except psycopg.errors.CheckViolation as error:
            if not is_misplaced(error):
                raise
            # While this waited, a partition was made for rows that were to go to the default one.
            raise RepeatError(way) from error

    def _is_new(self, rows: Rows) -> bool:
        """Whether rows are newer than all that was stored of their series, as far as is known."""
        if self._upserts:
            self._upserts -= 1
            return False
        starts = _series_starts(rows)
        series: list[int] = rows.series[starts].tolist()
        newest = np.fromiter(
            map(self._newest.get, series, repeat(INT64_MAX)), np.int64, len(series)
        )
        return bool((rows.timestamps[starts] > newest).all())

    def _note_newest(self, rows: Rows) -> None:
        if not len(rows):
            return
        starts = _series_starts(rows)
        series: list[int] = rows.series[starts].tolist()
        last = rows.timestamps[np.append(starts[1:], len(rows)) - 1]
        known = np.fromiter(map(self._newest.get, series, repeat(INT64_MIN)), np.int64, len(series))
        if len(self._newest) + len(series) > KNOWN_MAX:
            self._newest = {}
        self._newest.update(zip(series, np.maximum(last, known).tolist(), strict=True))

    def _with_stored(self, session: Session, rows: Sequence[Rows]) -> list[Rows]:
        """Fold rows with what is stored, here, where every offender can be named."""
        offenders: list[int] = []
        first: InvalidDataError | None = None
        merged: list[Rows] = []
        for one in rows:
            both = _stored_too(session, one)
            starts = distinct_starts(both.timestamps, both.series)
            if starts is None:
                merged.append(both)
                continue
            try:
                values = fold_values(starts, both.values, self._policy)
            except InvalidDataError as error:
                first = first or error
                places = both.places[list(error.indices)]
                offenders += places[places >= 0].tolist()
            else:
                merged.append(
                    Rows(one.kind, both.series[starts], both.timestamps[starts], values, starts)
                )
        if first is not None:
            first.indices = tuple(sorted(offenders))
            raise first
        return merged

    def _insert(
        self, session: Session, rows: Rows, policy: DuplicatePolicy, noted: int | None
    ) -> None:
        """Store rows; the last ones of a commit note when that was."""
        kind, notes = rows.kind, noted is not None
        before = () if noted is None else (noted,)
        if _is_small(rows):
            statement = statements.insert(kind, policy, copied=False, notes=notes)
            session.execute(statement, (*before, *parameters(rows)))
            return
        session.execute(statements.create_incoming(kind))
        with session.cursor().copy(statements.copy_incoming(kind)) as copying:
            for block in copy_blocks(rows):
                copying.write(block)
        session.execute(statements.insert(kind, policy, copied=True, notes=notes), before)


def _nothing() -> None:
    return


def _refuses(policy: DuplicatePolicy, kind: ValueKind) -> bool:
    """Whether a policy may refuse rows for what is stored."""
    return policy is DuplicatePolicy.ERROR or (
        policy is DuplicatePolicy.SUM and kind is ValueKind.INT
    )


def _is_small(rows: Rows) -> bool:
    """Whether rows are sent as arrays, and not copied."""
    if len(rows) > UNNEST_ROWS_MAX:
        return False
    return rows.kind is not ValueKind.OBJECT or sum(map(len, rows.values)) <= UNNEST_BYTES_MAX


def _series_starts(rows: Rows) -> Int64Array:
    """Give the first row of each series."""
    return np.flatnonzero(np.concatenate([[True], rows.series[1:] != rows.series[:-1]]))


def _check_kinds(commit: Commit, numbered: Sequence[Int64Array]) -> None:
    wrong: list[int] = []
    message = ""
    for batch, kind, numbers, base in zip(
        commit.batches, commit.kinds, numbered, commit.bases, strict=True
    ):
        held = numbers >> KIND_SHIFT
        other = np.flatnonzero((held != 0) & (held != kind))
        if not len(other):
            continue
        bounds = batch.offsets.tolist()
        message = message or (
            f"{batch.labels[other[0]].id} holds {ValueKind(int(held[other[0]])).name.lower()}, "
            f"the values are {kind.name.lower()}"
        )
        for place in other.tolist():
            wrong.extend(range(base + bounds[place], base + bounds[place + 1]))
    if wrong:
        raise ValueKindError(message, indices=wrong)


def _stored_too(session: Session, rows: Rows) -> Rows:
    """Give rows with those that are stored under their keys, whose places are -1, before them."""
    cursor = session.cursor(binary=True)
    cursor.execute(
        statements.select_stored(rows.kind), (int8s(rows.series), int8s(rows.timestamps))
    )
    found = cursor.fetchall()
    if not found:
        return rows
    series, timestamps, held = zip(*found, strict=True)
    values = np.empty(len(found), rows.values.dtype)
    values[:] = held
    places = np.concatenate([np.full(len(found), -1), rows.places])
    all_series = np.concatenate([np.array(series, np.int64), rows.series])
    all_timestamps = np.concatenate([np.array(timestamps, np.int64), rows.timestamps])
    order = np.lexsort((all_timestamps, all_series))
    return Rows(
        rows.kind,
        all_series[order],
        all_timestamps[order],
        np.concatenate([values, rows.values])[order],
        places[order],
    )
