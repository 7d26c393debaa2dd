"""Hostile labels and selectors: the same answer or the same typed error on every backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsengine.engine import Capability, Engine
from tsengine.errors import InvalidDataError, LabelsError, SelectorError
from tsengine.model import LABELS_BYTES_MAX, PRODUCER_LENGTH_MAX, Labels, ProducerMark
from tsengine.selectors import to_selector
from tsengine.testing.compare import assert_rows, rows_of
from tsengine.testing.conformance.base import A, ConformanceBase, requires
from tsengine.testing.strategies import HOSTILE_TEXTS, label_texts
from tsengine.testing.strategies import labels as any_labels

LOOKALIKES: Final = (
    "é",
    "e\u0301",  # decomposed
    "ﬁ",
    "fi",
    "K",
    "\u212a",  # the Kelvin sign, which lower() makes a k
    "ß",
    "ss",
    "İ",
    "i\u0307",
    "a\u200b",  # a space of no width
    "a",
    "\u202ea",  # written from right to left from here on
    "a\u202c",
    "a ",
    " a",
    "A",
    "\ufeffa",  # byte order mark
    "a\r",
    "a\n",
)
"""Texts that normalising, trimming, folding of case or a collation would make one."""

NOT_LABEL_TEXTS: Final[tuple[Any, ...]] = (
    "",
    "\0",
    "a\0b",
    "\0a",
    "\ud800",
    "a\udfffb",
    "\ud83d",  # half of an emoji
    5,
    None,
    b"a",
    ("a",),
)

EXPLOSIVE: Final = (
    "(a+)+$",
    "(a|a)*b",
    "(.*)*x",
    ".*" * 200,
    "(a|b|ab)*c",
    "(" * 200 + "a" + ")*" * 200,
    "a{0,1000}",
    "(a{0,30}){0,30}",
    "[^x]" * 300,
    "|".join("a" * length for length in range(1, 80)),
    r"(?i)(a.*){20}",
    r"\pL*\PN*" * 20,
)
"""Expressions on which engines that backtrack take seconds to years."""

TOO_LARGE: Final = ("a{1000}{1000}", "a{1001}", "((a{100}){100}){100}", "x{65536}", "(?P<a")
"""Expressions that are refused before they take memory, or that never end."""

READS: Final[Mapping[str, Callable[[Engine, Any], object]]] = {
    "query": lambda engine, selector: [batch.labels for batch in engine.query(selector)],
    "scan": lambda engine, selector: [batch.labels for batch in engine.scan(selector)],
    "series": lambda engine, selector: list(engine.series(selector)),
    "latest": lambda engine, selector: [point.labels for point in engine.latest(selector)],
    "earliest": lambda engine, selector: [point.labels for point in engine.earliest(selector)],
}

CALLS: Final[Mapping[str, Callable[[Engine, Any], object]]] = {
    **READS,
    "count": lambda engine, selector: engine.count(selector),
    "delete": lambda engine, selector: engine.delete(selector),
}


def selector_texts() -> st.SearchStrategy[str]:
    """Text that is a selector, nearly one, or nothing of the kind."""
    pieces = st.one_of(
        st.sampled_from(
            (
                "{",
                "}",
                '"',
                "'",
                "`",
                ",",
                "=",
                "!=",
                "=~",
                "!~",
                "\\",
                "\n",
                "#",
                " ",
                "cpu",
                "n",
                "__name__",
                "\\x",
                "\\u00e9",
                "\\400",
                "(",
                ")",
                "*",
                "[",
                "]",
                "\0",
                "\ud800",
            )
        ),
        st.sampled_from(("cpu{", 'n="', 'n=~"', '"}', '",', 'n!~".*"', "{}", '""')),
        label_texts(),
    )
    return st.lists(pieces, max_size=8).map("".join)


class HostileConformance(ConformanceBase):
    """Labels, selectors and names that try to break quoting, escaping and matching."""

    def test_any_labels_round_trip(self) -> None:
        """Whatever labels hold, they are stored, listed, found by ID, and told from others."""
        engine = self.open()

        @settings(deadline=None)  # a store syncs when it likes
        @given(st.lists(any_labels(), min_size=1, max_size=5, unique=True))
        def check(series: list[Labels]) -> None:
            engine.write([(labels, 1 + index, 1.0) for index, labels in enumerate(series)])
            assert list(engine.series()) == sorted(series, key=lambda labels: labels.id)
            for index, labels in enumerate(series):
                assert_rows(rows_of(engine.query(labels)), {labels: [(1 + index, 1.0)]})
                assert labels in list(engine.series(labels.id))
                for name, value in labels.items():
                    assert value in engine.label_values(name)
                    assert labels in list(engine.series({name: value}))
            assert engine.label_names() == sorted({name for labels in series for name in labels})
            engine.delete(series[0])
            assert set(engine.series()) == set(series[1:])
            engine.delete()
            assert engine.label_names() == []

        check()

    def test_texts_that_look_alike_are_two(self) -> None:
        """Nothing is normalised, trimmed or folded: other code points are another series."""
        engine = self.open()
        series = [Labels("m", n=text) for text in LOOKALIKES]
        series += [Labels({text: "v"}) for text in LOOKALIKES]
        engine.write([(labels, 1, float(index)) for index, labels in enumerate(series)])
        assert list(engine.series()) == sorted(series, key=lambda labels: labels.id)
        assert engine.label_values("n") == sorted(LOOKALIKES)
        for index, labels in enumerate(series):
            assert_rows(rows_of(engine.query(labels.id)), {labels: [(1, float(index))]})
        engine.delete(Labels("m", n="é"))
        assert list(engine.series({"n": "e\u0301"})) == [Labels("m", n="e\u0301")]

    def test_the_longest_labels_are_stored(self) -> None:
        """Labels up to the stated size are stored, in one text or in many; longer ones are none."""
        engine = self.open()
        room = LABELS_BYTES_MAX - len('{n=""}')
        series = [
            Labels(n="x" * room),
            Labels(n="x" * (room - 1)),
            Labels({"x" * (room - len('"v"=""') + 2): "v"}),
            Labels(n="€" * (room // 3)),
            Labels({f"name{number}": "v" for number in range(500)}),
        ]
        engine.write([(labels, 1, 1.0) for labels in series])
        assert list(engine.series()) == sorted(series, key=lambda labels: labels.id)
        for labels in series:
            assert_rows(rows_of(engine.query(labels)), {labels: [(1, 1.0)]})
            assert list(engine.series(labels.id)) == [labels]
        for text in ("x" * (room + 1), "€" * (room // 3 + 1)):
            with pytest.raises(LabelsError, match="too long"):
                Labels(n=text)

    @pytest.mark.parametrize("text", NOT_LABEL_TEXTS, ids=ascii)
    def test_what_no_label_holds_is_refused(self, text: Any) -> None:
        """What is no label text is refused as a name, as a value and as a question."""
        engine = self.open()
        engine.write([(A, 1, 1.0)])
        for made in ({"n": text}, {text: "v"}):
            with pytest.raises(LabelsError):
                Labels(made)
        with pytest.raises(LabelsError):
            engine.label_values(text)
        assert list(engine.series()) == [A]

    def test_questions_for_unknown_names_are_answered(self) -> None:
        """A label that no series has, however it is called, has no values and selects nothing."""
        engine = self.open()
        engine.write([(A, 1, 1.0)])
        for text in {*HOSTILE_TEXTS, *LOOKALIKES} - set(A):
            assert engine.label_values(text) == []
            assert list(engine.series({text: "v"})) == []
            assert engine.count(Labels({text: "v"})) == 0
            assert engine.delete({text: "v"}) == 0

    def test_any_text_is_a_selector_or_refused(self) -> None:
        """A text selects alike in each call what it means, or is SelectorError in each of them."""
        engine = self.open()
        series = [Labels("cpu", n=text) for text in HOSTILE_TEXTS] + [Labels(n="cpu"), A]
        engine.write([(labels, 1, 1.0) for labels in series])
        listed = sorted(series, key=lambda labels: labels.id)

        @settings(deadline=None)  # a store syncs when it likes
        @given(selector_texts())
        def check(text: str) -> None:
            try:
                selector = to_selector(text)
            except SelectorError:
                for call in CALLS.values():
                    with pytest.raises(SelectorError):
                        call(engine, text)
                return
            expected = [labels for labels in listed if selector.matches(labels)]
            for call in READS.values():
                assert call(engine, text) == expected

        check()
        assert list(engine.series()) == listed

    @pytest.mark.parametrize("pattern", EXPLOSIVE, ids=lambda pattern: ascii(pattern[:20]))
    def test_explosive_expressions_are_answered(self, pattern: str) -> None:
        """An expression on which others take for ever is answered, in each operator and call."""
        engine = self.open()
        series = [Labels("m", n="a" * length + "!") for length in (1, 30, 2_000)] + [
            Labels("m", n="a" * 40)
        ]
        engine.write([(labels, 1, 1.0) for labels in series])
        quoted = pattern.replace("\\", "\\\\").replace('"', '\\"')
        for sign in ("=~", "!~"):
            text = f'm{{n{sign}"{quoted}"}}'
            selector = to_selector(text)
            expected = sorted(
                (labels for labels in series if selector.matches(labels)),
                key=lambda labels: labels.id,
            )
            for call in READS.values():
                assert call(engine, text) == expected

    @pytest.mark.parametrize("pattern", TOO_LARGE)
    def test_expressions_that_would_fill_memory_are_refused(self, pattern: str) -> None:
        """An expression too large to be compiled is SelectorError everywhere, and names itself."""
        engine = self.open()
        engine.write([(A, 1, 1.0)])
        for call in CALLS.values():
            with pytest.raises(SelectorError, match="regular expression"):
                call(engine, f'{{n=~"{pattern}"}}')
        assert list(engine.series()) == [A]

    @requires(Capability.PRODUCER_MARKS)
    def test_any_name_numbers_batches(self) -> None:
        """A producer may have any name of text, and no two names share a mark."""
        engine = self.open()
        names = sorted({*HOSTILE_TEXTS, *LOOKALIKES, "x" * PRODUCER_LENGTH_MAX})
        for number, name in enumerate(names, start=1):
            engine.write_to_buffer((A, 1, 1.0))
            engine.flush_buffer(ProducerMark(name, number))
        for number, name in enumerate(names, start=1):
            assert engine.high_water(name) == ProducerMark(name, number)
            engine.forget_producer(name)
            assert engine.high_water(name) is None

    @requires(Capability.PRODUCER_MARKS)
    @pytest.mark.parametrize(
        "producer",
        [*NOT_LABEL_TEXTS, "x" * (PRODUCER_LENGTH_MAX + 1)],
        ids=lambda text: ascii(text)[:20],
    )
    def test_what_is_no_name_numbers_nothing(self, producer: Any) -> None:
        """What is no name of a producer is refused in each call, and nothing is stored."""
        engine = self.open()
        engine.write_to_buffer((A, 1, 1.0))
        with pytest.raises(InvalidDataError, match="producer"):
            engine.flush_buffer(ProducerMark(producer, 1))
        with pytest.raises(InvalidDataError, match="producer"):
            engine.high_water(producer)
        with pytest.raises(InvalidDataError, match="producer"):
            engine.forget_producer(producer)
        assert engine.count() == 0
