"""Hypothesis strategies for what goes into a store, biased to where things break.

Equal timestamps, the ends of ranges, neighbours 1 ns apart, the limits of int64; NaN with
payloads, infinities, −0.0, subnormals, integers around 2^53; labels full of quotes,
backslashes and line breaks. All are small on purpose: two series and five timestamps
collide far more often than many do. Strategies of one meaning are made once, since Hypothesis
looks at each new one for longer than it draws from it.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from hypothesis import strategies as st

from tsengine.model import INT64_MAX, INT64_MIN, METRIC_NAME, RANGE_END_MAX, Labels, ValueKind
from tsengine.selectors import Matcher, MatchOperator, SelectorLike
from tsengine.testing.reference import Column, Condition, Selection

Point: TypeAlias = "tuple[Labels, int, object]"

HOSTILE_TEXTS: Final = (
    '"',
    "\\",
    "\n",
    "\\n",
    '\\"',
    "{}",
    "a=b,c",
    'x",y="z',
    "#",
    "`",
    "'",
    " ",
    "%s",
    "../..",
    "'; DROP TABLE points; --",
    "\x01\x7f",
    "\u2028",
    "ẞß",
    "é",
    "e\u0301",  # looks like the one above and differs
    "😀",
    "\U0010ffff",
    "__name__",
    "a|b",
    ".*",
    "web-1",
)
"""What breaks quoting, escaping, SQL, paths, regular expressions, normalisation."""

EASY_TEXTS: Final = ("a", "b", "ab", "web-1", "0")

TIME_BASE: Final = 1_700_000_000_000_000_000
"""A time of the kind people store: November 2023."""

SPECIAL_FLOATS: Final = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.1,
    math.inf,
    -math.inf,
    math.nan,
    struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_0000_002A))[0],  # NaN, payload 42
    struct.unpack("<d", struct.pack("<Q", 0xFFF8_0000_0000_0001))[0],  # NaN, sign and payload
    5e-324,
    -5e-324,
    2.2250738585072014e-308,
    1.7976931348623157e308,
    -1.7976931348623157e308,
    float(2**53),
    float(2**53 + 2),
    -float(2**63),
)

SPECIAL_INTEGERS: Final = (
    0,
    1,
    -1,
    2**31,
    2**53 - 1,
    2**53,
    2**53 + 1,
    -(2**53) - 1,
    2**62,
    INT64_MAX - 1,
    INT64_MAX,
    INT64_MIN,
    INT64_MIN + 1,
)

# Labels


@functools.cache
def label_texts() -> st.SearchStrategy[str]:
    """Text that a label name or value may hold."""
    characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    return st.one_of(
        st.sampled_from(EASY_TEXTS),
        st.sampled_from(HOSTILE_TEXTS),
        st.text(characters, min_size=1, max_size=6),
    )


@functools.cache
def labels() -> st.SearchStrategy[Labels]:
    """Labels of a series, from plain to hostile, some longer than an LMDB key."""
    names = st.one_of(
        st.just(METRIC_NAME), st.sampled_from(("host", "zone", "a", "b")), label_texts()
    )
    long = st.sampled_from((480, 511, 512, 600, 2_000)).map("x".__mul__)
    values = st.one_of(label_texts(), label_texts(), label_texts(), long)
    return st.dictionaries(names, values, min_size=1, max_size=3).map(Labels)


def label_sets(*, size_max: int = 4) -> st.SearchStrategy[list[Labels]]:
    """A few distinct series; neighbours often share all but one label."""
    near = st.builds(
        lambda host, zone: Labels("cpu", host=host, **({"zone": zone} if zone else {})),
        st.sampled_from(EASY_TEXTS),
        st.sampled_from(("", "eu", "us")),
    )
    return st.lists(st.one_of(near, labels()), min_size=1, max_size=size_max, unique=True)


# Time


@functools.cache
def timestamps(*, earliest: int = 1) -> st.SearchStrategy[int]:
    """Timestamps that collide, touch, and reach the limits."""
    near = st.integers(0, 12).map(lambda step: TIME_BASE + step)
    spread = st.integers(-20, 20).map(lambda step: TIME_BASE + step * 1_000_000_000)
    limits = (earliest, earliest + 1, 2**31, 2**53, 2**53 + 1, INT64_MAX - 1, INT64_MAX)
    return st.one_of(near, near, near, spread, st.sampled_from(limits)).filter(
        lambda moment: moment >= earliest
    )


@functools.cache
def ranges(*, earliest: int = 1) -> st.SearchStrategy[tuple[int | None, int | None]]:
    """Ranges with a start not after their end: unbounded, empty, of one nanosecond, to 2^63."""
    bounds = st.one_of(
        timestamps(earliest=earliest), st.sampled_from((INT64_MIN, 0, INT64_MAX, RANGE_END_MAX))
    )
    both = st.tuples(bounds, bounds).map(lambda pair: (min(pair), max(pair)))
    return st.one_of(
        st.just((None, None)),
        both,
        both,
        timestamps(earliest=earliest).map(lambda moment: (moment, moment + 1)),
        bounds.map(lambda moment: (moment, None)),
        bounds.map(lambda moment: (None, moment)),
    )


FUNCTIONS: Final = (
    "count",
    "sum",
    "mean",
    "min",
    "max",
    "range",
    "first",
    "last",
    "stddev",
    "variance",
    "median",
    "quantile(0.95)",
    "delta",
    "increase",
    "rate",
)
"""Every function of aggregation."""

NUMERIC_FUNCTIONS: Final = tuple(
    name for name in FUNCTIONS if name not in ("count", "first", "last")
)
"""Those that are for numbers alone."""


@functools.cache
def aggregations() -> st.SearchStrategy[dict[str, Any]]:
    """What may be asked of an aggregation, `every` and `origin` in nanoseconds.

    Lengths of windows are such that `timestamps` are either in few of them or in more than may
    be filled, which is refused: the model takes its time for what lies between.
    """
    some = st.lists(st.sampled_from(FUNCTIONS), min_size=1, max_size=4, unique=True)
    functions = st.one_of(some, some, st.just(FUNCTIONS), st.sampled_from((("count",), ("last",))))
    common: dict[str, st.SearchStrategy[Any]] = {
        "functions": functions,
        "group_by": st.sampled_from((None, None, (), ("zone",), ("host", "absent"))),
    }
    windows = {
        "every": st.sampled_from((1, 3, 7, 10**8, 2**58, INT64_MAX)),
        "origin": st.sampled_from((0, 0, 1, -5, TIME_BASE + 2, INT64_MIN, INT64_MAX)),
        "fill": st.sampled_from(("none", "none", "null", "previous", "linear", 0, 2.5)),
    }
    return st.one_of(st.fixed_dictionaries(common), st.fixed_dictionaries({**common, **windows}))


# Values


@functools.cache
def floats() -> st.SearchStrategy[float]:
    """Any float64, specials often; NaN with any payload."""
    any_bits = st.integers(0, 2**64 - 1).map(
        lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0]
    )
    return st.one_of(
        st.sampled_from(SPECIAL_FLOATS),
        st.integers(-3, 3).map(float),
        st.floats(-1e6, 1e6),
        any_bits,
    )


@functools.cache
def integers() -> st.SearchStrategy[int]:
    """Any int64, limits often."""
    return st.one_of(
        st.integers(-3, 3), st.sampled_from(SPECIAL_INTEGERS), st.integers(INT64_MIN, INT64_MAX)
    )


@functools.cache
def objects() -> st.SearchStrategy[object]:
    """Object values as they come back: nothing here changes by normalising."""
    leaves = st.one_of(
        st.booleans(),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        st.sampled_from(HOSTILE_TEXTS),
        st.binary(max_size=5),
    )
    inner = st.one_of(leaves, st.none(), floats(), integers(), st.just(2**64 - 1))
    nested = st.recursive(
        inner,
        lambda item: st.one_of(
            st.lists(item, max_size=3),
            st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), item),
        ),
        max_leaves=6,
    )
    return st.one_of(
        leaves, st.lists(nested, max_size=3), st.dictionaries(st.text("ab", max_size=2), nested)
    )


@functools.cache
def values(kind: ValueKind) -> st.SearchStrategy[object]:
    """Values that open a series of a kind, or fit one of it, in a store of `integers="int"`."""
    if kind is ValueKind.FLOAT:
        return floats()
    return integers() if kind is ValueKind.INT else objects()


@functools.cache
def bad_values() -> st.SearchStrategy[object]:
    """What no kind carries."""
    return st.sampled_from(
        (None, {1: "x"}, {"a": {2: 3}}, 2**64 + 1, -(2**1100), object, 1j, {1, 2})
    )


# Writes


def points(
    series: Sequence[tuple[Labels, ValueKind]], *, earliest: int = 1, count_max: int = 5
) -> st.SearchStrategy[list[Point]]:
    """Valid points over series of known kinds, in any order, duplicates often."""
    moments = timestamps(earliest=earliest)
    one = [st.tuples(st.just(labels), moments, values(kind)) for labels, kind in series]
    return st.lists(st.one_of(one), max_size=count_max)


def columns(
    series: Sequence[tuple[Labels, ValueKind]], *, earliest: int = 1, count_max: int = 5
) -> st.SearchStrategy[list[Column]]:
    """Columns of distinct series of one kind, in any order of time, some without rows."""
    moments = timestamps(earliest=earliest)

    def of_one(labels: Labels, kind: ValueKind) -> st.SearchStrategy[Column]:
        opens = None if kind is ValueKind.OBJECT else kind
        rows = st.lists(st.tuples(moments, values(kind)), max_size=count_max)
        return rows.map(
            lambda given: Column(
                labels, [row[0] for row in given], [row[1] for row in given], opens
            )
        )

    def of_kind(wanted: ValueKind) -> st.SearchStrategy[list[Column]]:
        each = [of_one(labels, kind) for labels, kind in series if kind is wanted]
        return st.lists(
            st.one_of(each), min_size=1, max_size=3, unique_by=lambda column: column.labels
        )

    return st.one_of([of_kind(kind) for kind in sorted({kind for _, kind in series})])


def array_of(column: Column) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    """Give the values of a column as the array that its `opens` says."""
    kind = ValueKind.OBJECT if column.opens is None else column.opens
    array = np.empty(len(column.values), dtype=kind.dtype)
    for index, value in enumerate(column.values):
        array[index] = value
    return array


# Selectors


@dataclass(frozen=True, slots=True)
class Selected:
    """One selection, said to the model and to an engine.

    Attributes:
        model: for the reference model.
        engine: for an engine: text, a mapping, matchers, Labels or None.
    """

    model: Selection
    engine: SelectorLike

    def __repr__(self) -> str:
        return f"<{self.engine!r}>"


def selectors(series: Sequence[Labels]) -> st.SearchStrategy[Selected]:
    """Selections that hit some of these series, or none, in every form a caller may use."""
    exact = [Selected(labels, labels) for labels in series]
    by_id = [
        Selected([(name, "=", value) for name, value in labels.items()], labels.id)
        for labels in series
    ]
    pairs = sorted({pair for labels in series for pair in labels.items()}) or [("a", "b")]
    equal = st.lists(st.sampled_from(pairs), max_size=2).map(dict)
    return st.one_of(
        st.just(Selected(None, None)),
        st.just(Selected([], "{}")),
        st.sampled_from(exact + by_id) if exact else st.just(Selected(None, None)),
        equal.map(lambda given: Selected(given, dict(given))),
        st.builds(_said, st.lists(_conditions(pairs), min_size=1, max_size=3), st.booleans()),
    )


def _conditions(pairs: Sequence[tuple[str, str]]) -> st.SearchStrategy[Condition]:
    names = st.sampled_from([name for name, _ in pairs] + ["absent"])
    texts = st.sampled_from([value for _, value in pairs] + ["", "nothing"])
    regexes = st.one_of(
        st.lists(texts, min_size=1, max_size=3).map(lambda parts: "|".join(map(_escaped, parts))),
        st.sampled_from((".*", ".+", "", "[a-z]+", "w.b-[0-9]", "(a|b)*", "a?b?")),
        texts.map(lambda text: f"{_escaped(text[:1])}.*"),
    )
    return st.one_of(
        st.tuples(names, st.sampled_from(("=", "!=")), texts),
        st.tuples(names, st.sampled_from(("=~", "!~")), regexes),
    )


def _escaped(text: str) -> str:
    """Quote for Python's `re` and RE2 alike: every ASCII character but letters and digits."""
    return "".join(
        f"\\x{ord(letter):02x}" if letter.isascii() and not letter.isalnum() else letter
        for letter in text
    )


def _said(conditions: list[Condition], as_text: bool) -> Selected:
    if not as_text:
        matchers = [Matcher(name, MatchOperator(sign), value) for name, sign, value in conditions]
        return Selected(conditions, matchers)
    said = ", ".join(f"{_quoted(name)} {sign} {_quoted(value)}" for name, sign, value in conditions)
    return Selected(conditions, f"{{{said}}}")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
