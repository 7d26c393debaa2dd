"""Catalogue: which series there are, by labels and by number.

A series has a number, the `id` of its row, that is never used again. So what is known of a
number stays true; what is known of labels is true until a series is removed anywhere, which
`store.removals` counts. Neither outlives the sessions it comes from: a server that crashed with
`synchronous_commit` off, or a replica in its place, may have lost series that were committed,
and give their numbers to others.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Final

import numpy as np

from tsengine.backends.postgres.binary import JSONB, TEXT, BinaryArray, field, jsonb_field
from tsengine.backends.postgres.packing import byteas, int8s, int64_column
from tsengine.backends.postgres.session import Session
from tsengine.backends.postgres.tables import quoted
from tsengine.errors import CorruptionError
from tsengine.model import Int64Array, Labels, ValueKind
from tsengine.model.labels import ids_of
from tsengine.selectors import Matcher, MatchOperator, Selector

KIND_SHIFT: Final = 56
"""A number as it is kept here has the kind of its series in the top byte."""

NUMBER_MASK: Final = (1 << KIND_SHIFT) - 1

KNOWN_MAX: Final = 1 << 18
"""Series that an engine remembers: some 40 MB besides their `Labels`. More are looked up anew."""

_SLICE: Final = 4_096
"""Series of one look-up: a megabyte of parameters."""

_REGISTER: Final = (
    "INSERT INTO series (digest, series, labels, kind) SELECT * FROM unnest(%s, %s, %s, %s)"
    " ON CONFLICT (digest) DO NOTHING"
)
_LOOK_UP: Final = (
    "SELECT string_agg(int8send(w.place - 1), ''), string_agg(int8send(s.id), ''),"
    " string_agg(int8send(s.kind), '') FROM unnest(%s) WITH ORDINALITY w(digest, place)"
    " JOIN series s ON s.digest = w.digest"
)
_EQUAL_IN_JSON: Final = "labels @> %s::jsonb"


@dataclass(frozen=True, slots=True)
class Resolved:
    """Series that a selector names, by series ID.

    Attributes:
        numbers: int64[k], the kind in the top byte.
    """

    numbers: Int64Array

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def ids(self) -> Int64Array:
        """The ids of their rows: int64[k]."""
        return self.numbers & NUMBER_MASK


class Catalogue:
    """What an engine remembers of the series of its store, and how it finds the others.

    Args:
        schema: of the store.

    Thread-safety: any number of threads.
    """

    def __init__(self, schema: str) -> None:
        name = quoted(schema)
        in_statements = name.replace("%", "%%")  # where there are parameters
        self._find_kind = f"SELECT kind FROM {in_statements}.series WHERE digest = %s".encode()
        self._count_removals = f"SELECT removals FROM {name}.store".encode()
        self._lock = threading.Lock()  # guards all that follows
        self._removals = -1
        self._sessions = 0
        self._numbers: dict[Labels, int] = {}
        self._labels: dict[int, Labels] = {}

    # By labels.

    def kind(self, session: Session, labels: Labels) -> ValueKind | None:
        """Give the kind of a listed series, in one round trip and without a transaction.

        What is remembered does not do: a series may have been removed elsewhere, and come back
        with another kind.
        """
        row = session.execute(self._find_kind, _digests([labels.id])).fetchone()
        return None if row is None else ValueKind(row[0])

    def known_kind(self, labels: Labels) -> ValueKind | None:
        """Give the kind of a series that is remembered, as of the last `at` or `refresh`."""
        number = self._numbers.get(labels)
        return None if number is None else ValueKind(number >> KIND_SHIFT)

    def refresh(self, session: Session) -> None:
        """Forget what may not be true any more, in one round trip and without a transaction."""
        row = session.execute(self._count_removals).fetchone()
        assert row is not None
        self.at(int(row[0]))

    def at(self, removals: int) -> None:
        """Forget what may not be true any more, once series were removed."""
        with self._lock:
            if removals != self._removals:
                self._removals = removals
                self._numbers = {}

    def on(self, sessions: int) -> None:
        """Forget everything once there are other sessions, `Database.made`, in which to ask."""
        with self._lock:
            if sessions != self._sessions:
                self._sessions = sessions
                self._numbers = {}
                self._labels = {}

    def numbers(self, session: Session, labels: Sequence[Labels], removals: int) -> Int64Array:
        """Give the numbers of series, 0 for those that are not listed.

        Args:
            session: in a transaction in which none is removed.
            labels: distinct.
            removals: as that transaction sees it.
        """
        self.at(removals)
        known = self._numbers
        numbers = np.fromiter(map(known.get, labels, repeat(0)), np.int64, len(labels))
        unknown = np.flatnonzero(numbers == 0)
        if len(unknown):
            others = [labels[place] for place in unknown.tolist()]
            numbers[unknown] = self._look_up(session, _digests(ids_of(others)))
            self.learn(others, numbers[unknown], removals)
        return numbers

    def register(
        self, session: Session, newcomers: Sequence[Labels], kinds: Int64Array
    ) -> Int64Array:
        """List series that were not listed a moment ago, and give their numbers.

        Somebody else may list them at the same time, then this waits for him, and the kinds are
        his. Rows go in by digest, so that two of us never wait for each other. Nothing is
        remembered, as the transaction may fail.

        Args:
            session: in a transaction that writes.
            newcomers: distinct.
            kinds: int64[k], of each.
        """
        names = ids_of(newcomers)
        digests = _digests(names)
        order = sorted(range(len(names)), key=digests.__getitem__)
        for first in range(0, len(order), _SLICE):
            some = order[first : first + _SLICE]
            texts = [field(names[place].encode()) for place in some]
            documents = [jsonb_field(_as_json(newcomers[place])) for place in some]
            session.execute(
                _REGISTER,
                (
                    byteas([digests[place] for place in some]),
                    BinaryArray.of_fields(TEXT, texts),
                    BinaryArray.of_fields(JSONB, documents),
                    int8s(kinds[some]),
                ),
            )
        return self._look_up(session, digests)

    def _look_up(self, session: Session, digests: Sequence[bytes]) -> Int64Array:
        """Give the numbers of series by digest, 0 for those that are not listed."""
        numbers = np.zeros(len(digests), np.int64)
        for first in range(0, len(digests), _SLICE):
            cursor = session.cursor(binary=True)
            cursor.execute(_LOOK_UP, (byteas(digests[first : first + _SLICE]),))
            places, ids, kinds = map(int64_column, cursor.fetchall()[0])
            numbers[places + first] = ids | (kinds << KIND_SHIFT)
        return numbers

    def learn(self, labels: Sequence[Labels], numbers: Int64Array, removals: int) -> None:
        """Remember the numbers that a committed transaction gave or found; 0 is none."""
        if len(labels) > KNOWN_MAX:
            return
        found = [
            (one, number) for one, number in zip(labels, numbers.tolist(), strict=True) if number
        ]
        with self._lock:
            if removals != self._removals:
                return
            if len(self._numbers) + len(found) > KNOWN_MAX:
                self._numbers = {}
            self._numbers.update(found)

    # By selector.

    def resolve(self, session: Session, selector: Selector) -> Resolved:
        """Give the series that match, in a transaction of one snapshot.

        Equality and lists of values are asked of the server; expressions are matched here, over
        the values that there are of their label.
        """
        if selector.exact is not None:
            numbers = self._look_up(session, _digests([selector.exact.id]))
            return Resolved(numbers[numbers != 0])
        conditions, parameters = _conditions(selector.matchers)
        for matcher in selector.matchers:
            if matcher.literals is None:
                conditions.append("coalesce(labels ->> %s, '') = ANY(%s)")
                parameters += [matcher.name, self._values_of(session, matcher, selector)]
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        cursor = session.cursor(binary=True)
        cursor.execute(
            f"SELECT string_agg(int8send(id | (kind::bigint << {KIND_SHIFT})), '' ORDER BY series)"
            f" FROM series{where}".encode(),
            parameters,
        )
        row = cursor.fetchone()
        assert row is not None
        return Resolved(np.frombuffer(row[0] or b"", ">i8").astype(np.int64))

    def labels_of(self, session: Session, ids: Sequence[int]) -> list[Labels]:
        """Give the labels of listed series, in the order of their numbers.

        Raises:
            CorruptionError: one is not listed, or its labels are none.
        """
        known = self._labels
        found = {number: known[number] for number in ids if number in known}
        unknown = [number for number in ids if number not in found]
        for first in range(0, len(unknown), _SLICE):
            rows = session.execute(
                "SELECT id, labels::text FROM series WHERE id = ANY(%s)",
                (int8s(unknown[first : first + _SLICE]),),
            ).fetchall()
            new = {number: labels_from_json(text) for number, text in rows}
            found.update(new)
            with self._lock:
                if len(self._labels) + len(new) > KNOWN_MAX:
                    self._labels = {}
                self._labels.update(new)
        try:
            return [found[number] for number in ids]
        except KeyError as error:
            raise CorruptionError(f"no series has the number {error.args[0]}") from None

    def label_names(self, session: Session) -> list[str]:
        """Give the names of all labels, sorted."""
        rows = session.execute("SELECT DISTINCT jsonb_object_keys(labels) FROM series").fetchall()
        return sorted(name for (name,) in rows)

    def label_values(self, session: Session, name: str) -> list[str]:
        """Give the values of a label, sorted."""
        rows = session.execute(
            "SELECT DISTINCT labels ->> %s FROM series WHERE labels ? %s", (name, name)
        ).fetchall()
        return sorted(value for (value,) in rows)

    def _values_of(self, session: Session, matcher: Matcher, selector: Selector) -> list[str]:
        """Give the values of a label that an expression matches, of series that may match."""
        conditions, parameters = _conditions(selector.matchers)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        rows = session.execute(
            f"SELECT DISTINCT coalesce(labels ->> %s, '') FROM series{where}".encode(),
            [matcher.name, *parameters],
        ).fetchall()
        return [value for (value,) in rows if matcher.matches(value)]


def _conditions(matchers: Iterable[Matcher]) -> tuple[list[str], list[object]]:
    """Give what the server can be asked of matchers, with its parameters."""
    conditions: list[str] = []
    parameters: list[object] = []
    for matcher in matchers:
        if matcher.literals is None:
            continue
        if matcher.operator is MatchOperator.EQUAL and matcher.value:
            conditions.append(_EQUAL_IN_JSON)  # the one that an index answers
            parameters.append(json.dumps({matcher.name: matcher.value}))
            continue
        negates = matcher.operator in (MatchOperator.NOT_EQUAL, MatchOperator.NOT_MATCHES)
        listed = "coalesce(labels ->> %s, '') = ANY(%s)"
        conditions.append(f"NOT {listed}" if negates else listed)
        parameters += [matcher.name, sorted(matcher.literals)]
    return conditions, parameters


def _digests(names: Sequence[str]) -> list[bytes]:
    return [hashlib.sha256(name.encode()).digest() for name in names]


_encode: Final = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode


def _as_json(labels: Labels) -> bytes:
    return _encode(dict(labels.items())).encode()


def labels_from_json(text: str) -> Labels:
    """Give the labels that a row of `series` holds.

    Raises:
        CorruptionError: it holds none.
    """
    try:
        return Labels.of_sorted(tuple(chain.from_iterable(sorted(json.loads(text).items()))))
    except (ValueError, TypeError, AttributeError) as error:
        raise CorruptionError(f"the labels of a series are damaged: {text[:200]!r}") from error
