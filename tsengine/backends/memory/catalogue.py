"""Catalogue: which series there are, found by ID and by label.

A series is told by a slot, a small number that indexes the arrays of its columns. The
catalogue gives slots for labels, for an ID in order, and for label values through an
inverted index, so that a selector costs what it selects and not what the store holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set
from itertools import repeat
from typing import Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt
from sortedcontainers import SortedDict

from tsengine.errors import CorruptionError
from tsengine.model import Int64Array, Labels, ValueKind
from tsengine.selectors import Matcher, MatchOperator, Selector

NO_KIND: Final = 0
"""In the place of a `ValueKind`, where there is no series."""

_POSITIVE: Final = (MatchOperator.EQUAL, MatchOperator.MATCHES)
_SPARSE: Final = 8
"""Below one in so many of all series, sorting those selected is faster than picking them
from the sorted whole."""

_RUN_MIN: Final = 64
"""Series in a row for which comparing lists is worth trying."""

_Holders: TypeAlias = "int | set[int]"
"""The slots that have a label value. Most values of a label such as a host's name belong
to one series: a bare number then, which takes 32 bytes where a set takes 216."""


class Catalogue:
    """The series of a store.

    Attributes:
        kinds: int8 by slot, the `ValueKind` of each series, NO_KIND where there is none.

    Thread-safety: none; the engine's lock guards it. Slot 0 is of no series.
    """

    def __init__(self) -> None:
        self.kinds: npt.NDArray[np.int8] = np.zeros(16, np.int8)
        self._labels: list[Labels | None] = [None]  # by slot
        self._slots: dict[Labels, int] = {}
        self._by_id: SortedDict[str, int] = SortedDict()
        self._holders: dict[str, dict[str, _Holders]] = {}  # label name -> value -> slots
        self._free: list[int] = []
        self._is_free_known = True
        # All slots by series ID, and each slot's place among them; made when asked for.
        self._ordered: Int64Array | None = None
        self._ranks: Int64Array | None = None

    def __len__(self) -> int:
        """Count the series."""
        return len(self._slots)

    @property
    def slots_end(self) -> int:
        """One past the highest slot ever given."""
        return len(self._labels)

    def slot(self, labels: Labels) -> int:
        """Give the slot of a series, 0 where there is none."""
        return self._slots.get(labels, 0)

    def slots(self, labels: Sequence[Labels]) -> Int64Array:
        """Give the slots of many series, 0 where there is none.

        Series often come in the order in which they first came, and then lists are
        compared, at two nanoseconds a series where a look-up takes fifty or more.
        """
        known = labels if isinstance(labels, list) else list(labels)
        found = np.empty(len(known), np.int64)
        at = 0
        one_by_one = _RUN_MIN
        while at < len(known):
            slot = self._slots.get(known[at], 0)
            run = self._run(known, at, slot)
            if run:
                found[at : at + run] = np.arange(slot, slot + run)
                one_by_one = _RUN_MIN
            else:
                run = min(one_by_one, len(known) - at)
                looked_up = map(self._slots.get, known[at : at + run], repeat(0))
                found[at : at + run] = np.fromiter(looked_up, np.int64, run)
                one_by_one *= 2
            at += run
        return found

    def labels(self, slot: int) -> Labels:
        """Give the labels of a listed series."""
        labels = self._labels[slot]
        assert labels is not None
        return labels

    def labels_of(self, slots: Int64Array) -> list[Labels]:
        """Give the labels of many listed series."""
        return cast("list[Labels]", list(map(self._labels.__getitem__, slots.tolist())))

    # Changes.

    def new_slots(self, count: int) -> Int64Array:
        """Take slots for series to be; `add` or `give_back` follows."""
        self._find_free()
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        first = len(self._labels)
        fresh = range(first, first + count - len(reused))
        self._labels.extend(repeat(None, len(fresh)))
        if len(self._labels) > len(self.kinds):
            kinds = np.zeros(2 * len(self._labels), np.int8)
            kinds[: len(self.kinds)] = self.kinds
            self.kinds = kinds
        return np.array([*reused, *fresh], np.int64)

    def give_back(self, slots: Int64Array) -> None:
        """Return slots that were not used after all."""
        self._free.extend(slots.tolist())

    def doubt_free(self) -> None:
        """Look for the free slots anew before the next is taken; needs no memory itself."""
        self._is_free_known = False

    def _find_free(self) -> None:
        if not self._is_free_known:
            listed = enumerate(self._labels)
            self._free = [slot for slot, labels in listed if slot and labels is None]
            self._is_free_known = True

    def add(self, labels: Sequence[Labels], slots: Int64Array, kind: ValueKind) -> None:
        """List series that are not listed yet."""
        if not len(labels):
            return
        self.kinds[slots] = kind
        numbers = slots.tolist()
        self._slots.update(zip(labels, numbers, strict=True))
        self._by_id.update({one.id: slot for one, slot in zip(labels, numbers, strict=True)})
        for one, slot in zip(labels, numbers, strict=True):
            self._labels[slot] = one
            for name, value in one.items():
                values = self._holders.get(name)
                if values is None:
                    values = self._holders[name] = {}
                held = values.setdefault(value, slot)
                if isinstance(held, set):
                    held.add(slot)
                elif held != slot:
                    values[value] = {held, slot}
        self._ordered = self._ranks = None

    def remove(self, slots: Int64Array) -> None:
        """Take series off the list; their slots are free at once, as no reader keeps slots."""
        if not len(slots):
            return
        self.kinds[slots] = NO_KIND
        for slot in slots.tolist():
            labels = self.labels(slot)
            del self._slots[labels]
            del self._by_id[labels.id]
            self._labels[slot] = None
            for name, value in labels.items():
                values = self._holders[name]
                held = values[value]
                if isinstance(held, set) and len(held) > 1:
                    held.discard(slot)
                else:
                    del values[value]
                    if not values:
                        del self._holders[name]
        self.give_back(slots)
        self._ordered = self._ranks = None

    # Looking up.

    def resolve(self, selector: Selector) -> Int64Array:
        """Give the slots of all series that match, by series ID."""
        if selector.exact is not None:
            slot = self.slot(selector.exact)
            return np.array([slot] if slot else [], np.int64)
        if not selector.matchers:
            return self.ordered()
        found = self._matching(selector.matchers)
        if len(found) * _SPARSE < len(self):
            by_id = sorted(found, key=lambda slot: self.labels(slot).id)
            return np.array(by_id, np.int64)
        chosen = np.zeros(self.slots_end, np.bool_)
        chosen[np.fromiter(found, np.int64, len(found))] = True
        ordered = self.ordered()
        return ordered[chosen[ordered]]

    def ordered(self) -> Int64Array:
        """Give the slots of all series by series ID; not to be changed."""
        if self._ordered is None:
            self._ordered = np.fromiter(self._by_id.values(), np.int64, len(self._by_id))
        return self._ordered

    def ranks(self) -> Int64Array:
        """Give by slot the place of each series by series ID; not to be changed."""
        if self._ranks is None:
            ordered = self.ordered()
            self._ranks = np.zeros(self.slots_end, np.int64)
            self._ranks[ordered] = np.arange(len(ordered))
        return self._ranks

    def label_names(self) -> list[str]:
        """Give the names of all labels, sorted."""
        return sorted(self._holders)

    def label_values(self, name: str) -> list[str]:
        """Give the values of one label, sorted."""
        return sorted(self._holders.get(name, ()))

    def verify(self) -> None:
        """Check that all ways to find a series agree.

        Raises:
            CorruptionError: they do not.
        """
        self._find_free()
        holders: dict[str, dict[str, set[int]]] = {}
        for labels, slot in self._slots.items():
            for name, value in labels.items():
                holders.setdefault(name, {}).setdefault(value, set()).add(slot)
        indexed = {
            name: {value: _as_set(held) for value, held in values.items()}
            for name, values in self._holders.items()
        }
        listed = {labels.id: slot for labels, slot in self._slots.items()}
        if not (
            indexed == holders
            and dict(self._by_id) == listed
            and all(self._labels[slot] is labels for labels, slot in self._slots.items())
            and int((self.kinds != NO_KIND).sum()) == len(self._slots)
            and len(self._free) + len(self._slots) + 1 == len(self._labels)
        ):
            raise CorruptionError("the catalogue is inconsistent")

    def _run(self, labels: list[Labels], at: int, slot: int) -> int:
        """Count how many labels, but for less than _RUN_MIN, are those of successive slots."""
        run, length = 0, _RUN_MIN
        while slot and _RUN_MIN <= length <= len(labels) - at - run:
            mine = self._labels[slot + run : slot + run + length]
            if labels[at + run : at + run + length] == mine:
                run += length
                length = max(_RUN_MIN, min(2 * length, len(labels) - at - run))
            else:
                length //= 2
        return run

    def _matching(self, matchers: Iterable[Matcher]) -> Set[int]:
        """Give the slots that satisfy all matchers, beginning with those that select most."""
        found: Set[int] | None = None
        for matcher in sorted(matchers, key=self._cost):
            values = self._holders.get(matcher.name, {})
            is_listed = matcher.literals is not None and not matcher.matches_empty
            if found is not None and not is_listed and len(found) <= len(values):
                found = {slot for slot in found if self._matches(matcher, slot)}
            elif matcher.matches_empty:
                rejected = self._union(values, self._rejected(matcher, values))
                found = (set(self._slots.values()) if found is None else found) - rejected
            else:
                held = self._union(values, self._accepted(matcher, values))
                found = held if found is None else found & held
        return set() if found is None else found

    def _cost(self, matcher: Matcher) -> tuple[bool, float]:
        """Order matchers: what an index answers first, and of that what selects few."""
        literals = matcher.literals
        if literals is None:
            return matcher.matches_empty, math.inf
        values = self._holders.get(matcher.name, {})
        return matcher.matches_empty, sum(len(_as_set(values.get(value, ()))) for value in literals)

    def _matches(self, matcher: Matcher, slot: int) -> bool:
        return matcher.matches(self.labels(slot).get(matcher.name, ""))

    def _accepted(self, matcher: Matcher, values: Iterable[str]) -> Iterable[str]:
        if matcher.literals is not None and matcher.operator in _POSITIVE:
            return matcher.literals
        return filter(matcher.matches, values)

    def _rejected(self, matcher: Matcher, values: Iterable[str]) -> Iterable[str]:
        if matcher.literals is not None and matcher.operator not in _POSITIVE:
            return matcher.literals
        return (value for value in values if not matcher.matches(value))

    def _union(self, values: dict[str, _Holders], chosen: Iterable[str]) -> Set[int]:
        """Give the slots that hold one of the values chosen; not to be changed."""
        held = [_as_set(values.get(value, ())) for value in chosen]
        return held[0] if len(held) == 1 else set().union(*held)


def _as_set(held: _Holders | tuple[()]) -> Set[int]:
    return {held} if isinstance(held, int) else set(held) if isinstance(held, tuple) else held
