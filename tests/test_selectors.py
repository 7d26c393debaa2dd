from __future__ import annotations

import copy
import pickle
import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsengine.errors import SelectorError
from tsengine.model import METRIC_NAME, Labels
from tsengine.selectors import (
    REGEX_BYTES_MAX,
    TEXT_LENGTH_MAX,
    Matcher,
    MatchOperator,
    Selector,
    SelectorLike,
    to_selector,
)

EQUAL, NOT_EQUAL = MatchOperator.EQUAL, MatchOperator.NOT_EQUAL
MATCHES, NOT_MATCHES = MatchOperator.MATCHES, MatchOperator.NOT_MATCHES

WEB = Labels("cpu", host="web-1", region="eu")

# ------------------------------------------------------------------------- strategies

GRAMMAR = "{}\"'`\\=~!,#:_ \n\t\r()|[*+?.^$aux01é😀"
"""Characters that mean something somewhere in the grammar, so that random text gets far."""


def text_of(alphabet: str | None = None, *, min_size: int = 1) -> st.SearchStrategy[str]:
    """Text that labels may hold."""
    characters = (
        st.sampled_from(alphabet)
        if alphabet
        else st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    )
    return st.text(characters, min_size=min_size, max_size=8)


texts = text_of() | text_of(GRAMMAR)
names = st.sampled_from(["a", "b", METRIC_NAME]) | texts
labels = st.dictionaries(names, texts, min_size=1, max_size=4).map(Labels)

regexes = st.recursive(
    st.sampled_from(["a", "b", "ab", "-", ".", "[ab]", "[^a]", ""]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda pair: f"(?:{pair[0]}|{pair[1]})"),
        st.tuples(inner, st.sampled_from("*+?")).map(lambda pair: f"(?:{pair[0]}){pair[1]}"),
    ),
    max_leaves=5,
)
"""Patterns that mean the same to RE2 and to `re`."""

regex_inputs = st.text("ab-\né", max_size=6)


@st.composite
def matchers(draw: st.DrawFn) -> Matcher:
    """Any matcher, as a backend may meet it."""
    operator = draw(st.sampled_from(MatchOperator))
    value = draw(text_of(min_size=0) if operator in (EQUAL, NOT_EQUAL) else regexes)
    return Matcher(draw(names), operator, value)


LETTER_ESCAPES = {"\a": "a", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t", "\v": "v"}


def escaped(draw: st.DrawFn, character: str, quote: str) -> str:
    """Write one character in one of the ways that Go's string syntax has for it."""
    code = ord(character)
    octets = character.encode()
    forms = [
        f"\\U{code:08x}",
        "".join(f"\\x{octet:02X}" for octet in octets),
        "".join(f"\\{octet:03o}" for octet in octets),
    ]
    if code < 0x10000:
        forms.append(f"\\u{code:04X}")
    if character in LETTER_ESCAPES:
        forms.append("\\" + LETTER_ESCAPES[character])
    if character in ("\\", quote):
        forms.append("\\" + character)
    elif character != "\n":
        forms.append(character)
    return draw(st.sampled_from(forms))


def written(draw: st.DrawFn, text: str) -> str:
    """Write a string in any of the three kinds of quotes."""
    quote = draw(st.sampled_from("\"'`" if "`" not in text else "\"'"))
    if quote == "`":
        return f"`{text}`"
    return quote + "".join(escaped(draw, character, quote) for character in text) + quote


@st.composite
def selector_texts(draw: st.DrawFn) -> tuple[str, list[Matcher]]:
    """A selector text in some layout, and the conditions it was written from."""

    def space() -> str:
        return draw(st.sampled_from(["", "", " ", "\n\t\r ", ' # } " comment\n']))

    conditions = draw(st.lists(matchers(), max_size=4))
    head = ""
    if not any(condition.name == METRIC_NAME for condition in conditions):
        head = draw(st.sampled_from(["", "cpu", ":a:b_0", "on", "NaN"]))
    items = []
    for matcher in conditions:
        bare = re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", matcher.name)
        name = matcher.name if bare and draw(st.booleans()) else written(draw, matcher.name)
        symbol, value = matcher.operator.value, written(draw, matcher.value)
        is_name = matcher.name == METRIC_NAME and matcher.operator is EQUAL and matcher.value != ""
        short = is_name and draw(st.booleans())
        items.append(value if short else f"{name}{space()}{symbol}{space()}{value}")
    inside = ",".join(f"{space()}{item}{space()}" for item in items)
    comma = draw(st.sampled_from(["", ","])) if items else ""
    text = f"{space()}{head}{space()}{{{inside}{comma}{space()}}}{space()}"
    named = [Matcher(METRIC_NAME, EQUAL, head)] if head else []
    return text, named + conditions


# ----------------------------------------------------------------------------- meaning


@given(labels)
def test_a_series_id_selects_its_series(series: Labels) -> None:
    """The ID of any labels parses to a selector that matches them."""
    assert to_selector(series.id).matches(series)


@given(labels, labels)
def test_a_series_id_means_its_labels(series: Labels, other: Labels) -> None:
    """The selector of an ID matches the series that have all its labels, and no other."""
    assert to_selector(series.id).matches(other) is (series.items() <= other.items())


@given(selector_texts())
def test_text_means_the_conditions_it_was_written_from(case: tuple[str, list[Matcher]]) -> None:
    """Quotes, escapes, space, comments and trailing commas change nothing."""
    text, conditions = case
    assert to_selector(text) == Selector(conditions)


@given(st.lists(matchers(), max_size=4))
def test_canonical_text_parses_to_the_same_selector(conditions: list[Matcher]) -> None:
    """`str` of a selector is a selector text for an equal selector."""
    selector = Selector(conditions)
    assert to_selector(str(selector)) == selector
    assert str(to_selector(str(selector))) == str(selector)


@given(st.lists(matchers(), max_size=4), st.randoms())
def test_order_and_repetition_of_matchers_mean_nothing(
    conditions: list[Matcher], shuffler: random.Random
) -> None:
    """Selectors of the same set of matchers are equal, hash alike and have one text."""
    shuffled = conditions + conditions[:1]
    shuffler.shuffle(shuffled)
    assert Selector(conditions) == Selector(shuffled)
    assert hash(Selector(conditions)) == hash(Selector(shuffled))
    assert str(Selector(conditions)) == str(Selector(shuffled))


@given(regexes, regex_inputs)
def test_regular_expressions_agree_with_re(pattern: str, text: str) -> None:
    """An expression matches whole values, and a dot any character, as in `re.fullmatch`."""
    expected = re.fullmatch(pattern, text, re.DOTALL) is not None
    assert Matcher("a", MATCHES, pattern).matches(text) is expected
    assert Matcher("a", NOT_MATCHES, pattern).matches(text) is not expected


@given(text_of(min_size=0), text_of(min_size=0))
def test_equality_is_that_of_text(value: str, text: str) -> None:
    """EQUAL and NOT_EQUAL compare like Python."""
    for candidate in (text, value):
        assert Matcher("a", EQUAL, value).matches(candidate) is (candidate == value)
        assert Matcher("a", NOT_EQUAL, value).matches(candidate) is (candidate != value)


@given(st.lists(matchers(), max_size=4), labels)
def test_a_selector_is_the_conjunction_of_its_matchers(
    conditions: list[Matcher], series: Labels
) -> None:
    """A series is selected when each matcher holds for its label, "" where that is absent."""
    plain = dict(series)
    expected = all(condition.matches(plain.get(condition.name, "")) for condition in conditions)
    assert Selector(conditions).matches(series) is expected


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("cpu", True),
        ("{}", True),
        ('cpu{host="web-1"}', True),
        ('{__name__="cpu"}', True),
        ('{"cpu"}', True),
        ("{'cpu', region=~`e.`,}", True),
        ('cpu{rack=""}', True),
        ('cpu{rack!="r1"}', True),
        ('cpu{rack!~"r.*|s"}', True),
        ('cpu{rack=~"r?"}', True),
        ('cpu{region!=""}', True),
        ('cpu{host=~"web-1|web-2"}', True),
        ("cp", False),
        ('cpu{host="web"}', False),
        ('cpu{host=~"web"}', False),
        ('cpu{host=~"eb-1"}', False),
        ('cpu{host!~"web-[0-9]"}', False),
        ('cpu{rack=~".+"}', False),
        ('cpu{region=""}', False),
        ('cpu{host="web-1",host="web-2"}', False),
        ('{"cpu","mem"}', False),
    ],
)
def test_selectors_mean_what_they_mean_to_prometheus(text: str, selected: bool) -> None:
    """Expressions match whole values, and an absent label is the empty text."""
    assert to_selector(text).matches(WEB) is selected


# ------------------------------------------------------------------- forms other than text


@given(labels, labels)
def test_labels_select_exactly_their_series(series: Labels, other: Labels) -> None:
    """A selector of Labels matches that series alone, not those with further labels."""
    selector = to_selector(series)
    assert selector.exact is series
    assert selector.matches(series)
    assert selector.matches(other) is (other == series)
    assert (selector == to_selector(other)) is (other == series)
    assert not selector.matches(Labels({**series, "one more": "x"}))


@given(labels)
def test_an_exact_selector_has_necessary_matchers(series: Labels) -> None:
    """Its matchers and its text are those of the ID, so who ignores `exact` finds it too."""
    selector = to_selector(series)
    assert selector.matchers == to_selector(series.id).matchers
    assert str(selector) == series.id
    assert selector != to_selector(series.id)


def test_an_exact_selector_takes_no_conditions() -> None:
    """Conditions beside `exact` are refused, since nobody would look at them."""
    with pytest.raises(SelectorError, match="no matchers"):
        Selector([Matcher("a", EQUAL, "b")], exact=WEB)


def test_a_mapping_leaves_other_labels_free() -> None:
    """A mapping asks for equal values of its labels, "" for absence, and nothing else."""
    assert to_selector({"host": "web-1", "rack": ""}).matches(WEB)
    assert not to_selector({"host": "web-1", "region": ""}).matches(WEB)
    assert to_selector({METRIC_NAME: "cpu", "host": "a"}) == to_selector('cpu{host="a"}')


def test_matchers_are_taken_alone_and_together() -> None:
    """One matcher, a sequence and an iterator of matchers all select their conjunction."""
    host, region = Matcher("host", EQUAL, "web-1"), Matcher("region", NOT_MATCHES, "u.*")
    both = to_selector('{host="web-1",region!~"u.*"}')
    assert to_selector(host) == to_selector('{host="web-1"}')
    assert to_selector([host, region]) == both
    assert to_selector(iter((region, host))) == both
    assert to_selector(both) is both


@pytest.mark.parametrize("everything", [None, "{}", " { } ", {}, []])
def test_no_condition_selects_everything(everything: SelectorLike) -> None:
    """None, empty braces, an empty mapping and no matchers select every series."""
    selector = to_selector(everything)
    assert selector == to_selector(None)
    assert selector.matchers == ()
    assert selector.exact is None
    assert selector.matches(WEB)
    assert str(selector) == "{}"


@pytest.mark.parametrize(
    ("bad", "shown"),
    [
        (5, "5 of type int"),
        (b"cpu", "b'cpu' of type bytes"),
        (b"", "b'' of type bytes"),
        (["cpu"], "selector[0] is 'cpu' of type str"),
        ([WEB], "selector[0] is "),
        ({"host": 5}, "'host' is 5 of type int"),
        ({"host": None}, "'host' is None of type NoneType"),
        ({5: "x"}, "name of a matcher is 5 of type int"),
        ({"": "x"}, "name of a matcher is empty"),
        (Labels(), "exact is Labels('{}')"),
    ],
)
def test_what_is_no_selector_is_named(bad: SelectorLike, shown: str) -> None:
    """A selector of a wrong type is refused with its value and type in the message."""
    with pytest.raises(SelectorError, match=re.escape(shown)) as raised:
        to_selector(bad)
    assert 0 <= raised.value.position <= len(raised.value.text)


@pytest.mark.parametrize(
    ("make", "text", "position"),
    [
        (lambda: Matcher("a\0b", EQUAL, "x"), "a\0b", 1),
        (lambda: Matcher("a", EQUAL, "xy\ud800"), "xy\ud800", 2),
        (lambda: Matcher("a", MATCHES, "("), "(", 0),
        (lambda: Matcher("a", "=", "x"), "'='", 0),  # type: ignore[arg-type]  # not an operator
    ],
)
def test_bad_matchers_are_refused_when_made(
    make: Callable[[], Matcher], text: str, position: int
) -> None:
    """A matcher that exists works: whatever is wrong with it is found at construction."""
    with pytest.raises(SelectorError) as raised:
        make()
    assert (raised.value.text, raised.value.position) == (text, position)


# ------------------------------------------------------------------------------- bad text


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        # structure
        ("", 0, "the end of the text"),
        ("  ", 2, "the end of the text"),
        ("# only a comment", 16, "the end of the text"),
        ("}", 0, "'}'"),
        ('"cpu"', 0, "'\"'"),
        ("5xx", 0, "'5'"),
        ("cpu usage", 4, "'u'"),
        ("cpu[5m]", 3, "times are given as start and end"),
        ("cpu{}{}", 5, "'{'"),
        ("cpu{", 4, "the end of the text"),
        ("cpu{,}", 4, "','"),
        ('cpu{a="b",,}', 10, "','"),
        ('cpu{a="b"', 9, '"," or "}"'),
        ('cpu{a="b";', 9, "';'"),
        ('cpu{a="b" c="d"}', 10, "'c'"),
        # names
        ("cpu{host}", 8, "one of = != =~ !~"),
        ("cpu{a:b='x'}", 5, "':'"),
        ("cpu{é='x'}", 4, "'é'"),
        ('cpu{""="x"}', 4, "an empty name"),
        ('{""}', 1, "an empty name"),
        ('cpu{ __name__="mem"}', 5, "a second metric name"),
        ('cpu{a="b", "mem"}', 11, "a second metric name"),
        ('cpu{"__name__"!~"mem"}', 4, "a second metric name"),
        # operators and values
        ("cpu{a==`b`}", 6, "'='"),
        ("cpu{a!`b`}", 5, "'!'"),
        ("cpu{a~`b`}", 5, "'~'"),
        ("cpu{a=b}", 6, "a string in quotes or backticks"),
        ("cpu{a=5}", 6, "'5'"),
        ("cpu{a=", 6, "the end of the text"),
        # strings
        ('cpu{a="b}', 6, "a string that does not end"),
        ("cpu{a='b\"}", 6, "a closing '"),
        ("cpu{a=`b}", 6, "a closing backtick"),
        ('cpu{a="b\\', 8, "the escape '\\\\'"),
        ('cpu{a="b\n"}', 8, "a line break in quotes"),
        ('cpu{a="b\\q"}', 8, "the escape '\\\\q'"),
        ('cpu{a="b\\\'"}', 8, "the escape"),
        ("cpu{a='b\\\"'}", 8, "the escape"),
        ('cpu{a="\\d+"}', 7, "the escape"),
        ('cpu{a="\\x4"}', 7, "the escape '\\\\x'"),
        ('cpu{a="\\u00e"}', 7, "the escape '\\\\u'"),
        ('cpu{a="\\12"}', 7, "the escape '\\\\1'"),
        ('cpu{a="\\400"}', 7, r"\400"),
        ('cpu{a="ok\\x41\\xff"}', 13, r"\xff, no valid UTF-8"),
        ('cpu{a="\\303\\251\\303"}', 15, r"\303, no valid UTF-8"),
        ('cpu{a="\\xed\\xa0\\x80"}', 7, "no valid UTF-8"),
        ('cpu{a="\\ud800"}', 7, r"\ud800"),
        ('cpu{a="\\uDFFF"}', 7, r"\uDFFF"),
        ('cpu{a="\\U00110000"}', 7, r"\U00110000"),
        # characters that labels never hold
        ('cpu{a="\\x00"}', 7, r"\x00"),
        ('cpu{a="b\\000"}', 8, r"\000"),
        ('cpu{a="\\u0000"}', 7, r"\u0000"),
        ("cpu{a=`\0`}", 7, "'\\x00'"),
        ("cpu{a=`\udc80`}", 7, "'\\udc80'"),
        # regular expressions
        ('cpu{a="ok", b=~"(x"}', 15, "missing )"),
        ("cpu{a !~ '*'}", 9, "no regular expression"),
        ('cpu{a=~"(?=x)"}', 7, "no look-around"),
        ('cpu{a=~"x{2000}"}', 7, "no regular expression"),
        ("cpu{a=~`\\pL{900}`}", 7, "pattern too large"),
    ],
)
def test_bad_text_is_located(text: str, position: int, said: str) -> None:
    """Each malformed text is refused at the very character, which the message says too."""
    with pytest.raises(SelectorError) as raised:
        to_selector(text)
    assert (raised.value.text, raised.value.position) == (text, position)
    assert said in str(raised.value)
    assert f"position {position}" in str(raised.value)


def refusal(text: str) -> SelectorError | None:
    """Parse a text and give the error; other exceptions pass, and fail the test."""
    try:
        to_selector(text)
    except SelectorError as error:
        return error
    return None


def in_bounds(error: SelectorError | None, text: str) -> bool:
    """Tell whether an error, if any, names the text and a place in it."""
    return error is None or (error.text == text and 0 <= error.position <= len(text))


@given(st.text() | st.text(GRAMMAR) | st.text(st.sampled_from(GRAMMAR + "\0\ud800")))
def test_garbage_parses_or_is_refused(text: str) -> None:
    """Any text gives a selector or a SelectorError whose position lies in it, nothing else."""
    error = refusal(text)
    assert in_bounds(error, text)
    if error is None:
        assert to_selector(str(to_selector(text))) == to_selector(text)


@given(selector_texts(), st.data())
def test_a_damaged_text_parses_or_is_refused(
    case: tuple[str, list[Matcher]], data: st.DataObject
) -> None:
    """One character put in, or a piece cut out, leads to a selector or a SelectorError."""
    text, _ = case
    cut = data.draw(st.integers(0, len(text)))
    resume = data.draw(st.integers(cut, len(text)))
    damaged = text[:cut] + data.draw(st.sampled_from(["", *GRAMMAR])) + text[resume:]
    assert in_bounds(refusal(damaged), damaged)


def test_long_texts_are_refused_by_length() -> None:
    """A text of TEXT_LENGTH_MAX characters parses; one character more is refused there."""
    longest = "cpu{a='" + "x" * (TEXT_LENGTH_MAX - 9) + "'}"
    assert len(longest) == TEXT_LENGTH_MAX
    assert to_selector(longest).matches(Labels("cpu", a="x")) is False
    with pytest.raises(SelectorError, match="at most 65536") as raised:
        to_selector(longest + " ")
    assert raised.value.position == TEXT_LENGTH_MAX


@pytest.mark.parametrize(
    "piece", ["{", "(", "\\", '"', "'", "`", "#\n", " ", "=~", "a=~'(',", "a='\\x41',", "[[:", "a{"]
)
def test_hostile_repetition_ends(piece: str) -> None:
    """The longest text of one repeated piece ends in a selector or a SelectorError."""
    repeated = (piece * TEXT_LENGTH_MAX)[: TEXT_LENGTH_MAX - 20]
    for text in (repeated, "{" + repeated, "{a=~'" + repeated + "'}", '{a="' + repeated):
        assert in_bounds(refusal(text), text)


@pytest.mark.parametrize(
    ("written_as", "text"),
    [
        (r'"\u0001\ud7ff\ue000\U0010ffff"', "\x01\ud7ff\ue000\U0010ffff"),
        (r'"\x41\101\xc3\xa9\303\251"', "AAéé"),
        (r"'\a\b\f\n\r\t\v\\\'" + "\"'", "\a\b\f\n\r\t\v\\'\""),
        (r"`\n\'" + '\n"`', "\\n\\'\n\""),
        ('""', ""),
    ],
)
def test_strings_are_those_of_go(written_as: str, text: str) -> None:
    """The ends of each range of escapes, bytes in both spellings, and raw strings."""
    assert to_selector(f"{{a={written_as}}}").matchers == (Matcher("a", EQUAL, text),)


# --------------------------------------------------------------------- regular expressions


@pytest.mark.parametrize(
    ("pattern", "text", "matched"),
    [
        ("(a+)+$", "a" * 100_000 + "b", False),
        ("(a+)+$", "a" * 100_000, True),
        ("(a|aa)*b", "a" * 100_000, False),
        ("(.*)(.*)(.*)(.*)(.*)[^x]", "x" * 100_000, False),
        ("(a?){500}a{500}", "a" * 500, True),
    ],
)
def test_expressions_that_explode_elsewhere_are_answered(
    pattern: str,
    text: str,
    matched: bool,
) -> None:
    """Patterns exponential for a backtracking engine give their answer on long text."""
    assert Matcher("a", MATCHES, pattern).matches(text) is matched


def test_running_out_of_states_changes_no_answer() -> None:
    """Where RE2's automaton outgrows its memory, it goes on without and stays right."""
    matcher = Matcher("a", MATCHES, "[ab]*a[ab]{900}")
    text = "".join("ab"[(index * index // 7) % 2] for index in range(REGEX_BYTES_MAX // 100))
    assert matcher.matches(text) is (text[-901] == "a")
    assert matcher.matches(text[:-1]) is (text[-902] == "a")


def test_an_expression_has_bounded_memory() -> None:
    """Alternatives fit by the thousand, ten thousand are refused: the bound is ours."""
    alternatives = [f".*a{index:05d}.*" for index in range(10_000)]
    assert Matcher("a", MATCHES, "|".join(alternatives[:2_000])).matches("xa01999x")
    with pytest.raises(SelectorError, match="pattern too large"):
        Matcher("a", MATCHES, "|".join(alternatives))


@pytest.mark.parametrize(
    ("matcher", "literals", "matches_empty"),
    [
        (Matcher("a", EQUAL, "x|y"), {"x|y"}, False),
        (Matcher("a", EQUAL, ""), {""}, True),
        (Matcher("a", NOT_EQUAL, "x"), {"x"}, True),
        (Matcher("a", NOT_EQUAL, ""), {""}, False),
        (Matcher("a", MATCHES, "web-1|web 2|é_"), {"web-1", "web 2", "é_"}, False),
        (Matcher("a", MATCHES, "x||y"), {"x", "", "y"}, True),
        (Matcher("a", MATCHES, ""), {""}, True),
        (Matcher("a", NOT_MATCHES, "x|y"), {"x", "y"}, True),
        (Matcher("a", MATCHES, "x.y"), None, False),
        (Matcher("a", MATCHES, ".*"), None, True),
        (Matcher("a", NOT_MATCHES, ".*"), None, False),
        (Matcher("a", MATCHES, "(x|y)"), None, False),
        (Matcher("a", MATCHES, r"web\.1"), None, False),
        (Matcher("a", MATCHES, "x$"), None, False),
        (Matcher("a", MATCHES, "(?i)x"), None, False),
    ],
)
def test_matchers_tell_what_an_index_can_answer(
    matcher: Matcher,
    literals: set[str] | None,
    matches_empty: bool,
) -> None:
    """`literals` are the listed values, `matches_empty` is the verdict on an absent label."""
    assert matcher.literals == literals
    assert matcher.matches_empty is matches_empty


@given(st.text("ab|é&~-, \n", max_size=8), st.text("ab|é&~-, \n", max_size=4))
def test_listed_values_mean_what_the_expression_means(pattern: str, text: str) -> None:
    """Looking `literals` up decides like the expression: with a group, RE2 has to decide."""
    listed, compiled = Matcher("a", MATCHES, pattern), Matcher("a", MATCHES, f"(?:{pattern})")
    assert listed.literals is not None
    assert compiled.literals is None
    for candidate in (text, *listed.literals):
        assert listed.matches(candidate) is (candidate in listed.literals)
        assert listed.matches(candidate) is compiled.matches(candidate)


# ------------------------------------------------------------------------------ as values


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("cpu{}", "cpu"),
        (' cpu { zone != "z" , host = "h" , } ', 'cpu{host="h",zone!="z"}'),
        ('{__name__="cpu",a="b"}', 'cpu{a="b"}'),
        ('{__name__="odd name",a="b"}', '{"odd name",a="b"}'),
        ('{__name__=~"c.*",A="b"}', '{__name__=~"c.*",A="b"}'),
        ('{__name__=""}', '{__name__=""}'),
        ('{"b","a"}', '{__name__="a",__name__="b"}'),
        (r"""{"odd \"label\"" = '\\\n\t"'}""", '{"odd \\"label\\""="\\\\\\n\t\\""}'),
    ],
)
def test_canonical_text_is_that_of_series_ids(text: str, canonical: str) -> None:
    """The metric name stands first, labels follow by name, odd names are quoted."""
    assert str(to_selector(text)) == canonical


@pytest.mark.parametrize("given_as", ['cpu{host=~"web-.*",zone!="z"}', WEB, None])
def test_copies_are_equal_and_work(given_as: SelectorLike) -> None:
    """Pickle and copy give equal selectors that match alike; compiled parts are remade."""
    selector = to_selector(given_as)
    for twin in (pickle.loads(pickle.dumps(selector)), copy.deepcopy(selector)):
        assert twin == selector
        assert hash(twin) == hash(selector)
        assert twin.matches(WEB) is selector.matches(WEB) is True


def test_selectors_and_matchers_do_not_change() -> None:
    """Selectors and matchers are immutable, so a cached one is safe to hand out."""
    selector = to_selector('cpu{host="a"}')
    with pytest.raises(AttributeError):
        selector.exact = WEB  # type: ignore[misc]
    with pytest.raises(AttributeError):
        selector.matchers[0].value = "x"  # type: ignore[misc]
    assert to_selector('cpu{host="a"}') is selector


def test_repr_shows_the_selector() -> None:
    """`repr` tells a selector by text from an exact one."""
    assert repr(to_selector("cpu")) == "to_selector('cpu')"
    assert repr(to_selector(WEB)) == f"to_selector({WEB!r})"
