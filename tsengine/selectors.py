r"""Selectors: which series a call is about.

Text is that of Prometheus:

    cpu_usage
    cpu_usage{host="web-1", zone!="eu-1", job=~"api|worker", env!~"test.*"}
    {"odd name", "odd label"="x"}
    {host=`C:\temp`}            # raw string; comments run to the end of the line
    {}

Regular expressions are RE2's, match the whole value and take time linear in it; an absent
label equals the empty text. Two things are wider than in Prometheus: `{}` and other
selectors without a non-empty condition are allowed, and no metric name is reserved.

`to_selector` turns every form a caller may give into one `Selector`. Backends read
`Selector.exact` first, then `Selector.matchers`; `Matcher.matches_empty` and
`Matcher.literals` tell them what an index can answer.
"""

from __future__ import annotations

import enum
import functools
import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias, final

import re2

from tsengine.errors import SelectorError
from tsengine.model import METRIC_NAME, Labels

TEXT_LENGTH_MAX: Final = 65_536
"""Most characters of a selector text: eight times the longest series ID, and a bound on
what a text from outside can cost."""

REGEX_BYTES_MAX: Final = 1 << 20
"""Most bytes RE2 may use for one compiled expression. About 3,000 alternatives like `.*web1.*`
fit; the worst expression that fits takes about a second on the longest label value, where
RE2's default of 8 MiB allows eight."""

# Programs repeat a few selectors: parsing costs 5 to 50 µs, a hit 0.2. Texts that are longer
# are parsed each time, which bounds what the entries can hold.
_CACHED_TEXTS: Final = 512
_CACHED_TEXT_LENGTH_MAX: Final = 4_096


class MatchOperator(enum.StrEnum):
    """How a matcher compares; the values are Prometheus' symbols."""

    EQUAL = "="
    NOT_EQUAL = "!="
    MATCHES = "=~"
    NOT_MATCHES = "!~"


@final
@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on one label.

    Attributes:
        name: the label; `__name__` is the metric name.
        operator: how `value` is compared.
        value: text, or a regular expression in RE2 syntax for MATCHES and NOT_MATCHES.
        literals: where the condition only lists values (EQUAL, NOT_EQUAL, or an
            expression such as `a|b`), those values: the matcher holds for them, or for all
            others where it negates. None where only the expression can tell.

    Raises:
        SelectorError: the name is empty, name or value are no text or hold a NUL or a
            lone surrogate, or the expression is malformed or too large.

    Thread-safety: any number of threads.
    """

    name: str
    operator: MatchOperator
    value: str
    literals: frozenset[str] | None = field(init=False, repr=False, compare=False)
    _stands_for: Callable[[str], bool] = field(init=False, repr=False, compare=False)
    _negates: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_text(self.name, "name of a matcher")
        if not self.name:
            raise SelectorError("name of a matcher is empty; give the name of a label")
        if not isinstance(self.operator, MatchOperator):
            raise _rejected(self.operator, "operator of a matcher", "give a MatchOperator")
        _check_text(self.value, f"value of the matcher for {self.name!r}")
        listed = _listed_values(self.operator, self.value)
        negates = self.operator in (MatchOperator.NOT_EQUAL, MatchOperator.NOT_MATCHES)
        object.__setattr__(self, "literals", listed)
        stands_for = _full_match(self.value) if listed is None else listed.__contains__
        object.__setattr__(self, "_stands_for", stands_for)
        object.__setattr__(self, "_negates", negates)

    def matches(self, text: str) -> bool:
        """Tell whether a label value satisfies this; give "" for an absent label."""
        return self._stands_for(text) is not self._negates

    @property
    def matches_empty(self) -> bool:
        """Whether series without the label satisfy this.

        Where False, an index of label values finds every series that can match; where
        True, series without the label have to be considered too.
        """
        return self.matches("")

    def __str__(self) -> str:
        """Give the condition as it stands inside braces, `host=~"web-.*"`."""
        name = self.name if _LABEL.fullmatch(self.name) else _quote(self.name)
        return f"{name}{self.operator}{_quote(self.value)}"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle what was given; loading compiles again."""
        return Matcher, (self.name, self.operator, self.value)


@final
class Selector:
    """Which series: those that satisfy every matcher, or exactly one; immutable.

    Equal sets of matchers make equal selectors. `str` gives the canonical text, which
    parses to an equal selector unless `exact` is set.

    Thread-safety: any number of threads.
    """

    # By hand and not a frozen dataclass, whose construction takes 0.6 µs where this takes
    # 0.2: every query by Labels makes one.
    __slots__ = ("_exact", "_matchers")

    def __init__(self, matchers: Collection[Matcher] = (), *, exact: Labels | None = None) -> None:
        """Select what satisfies every matcher, all series where there are none, or one series.

        Args:
            matchers: the conditions, in any order.
            exact: the only series to select, instead of conditions.

        Raises:
            SelectorError: both are given, or `exact` is empty, which no series is.
        """
        self._exact = exact
        if exact is None:
            self._matchers = tuple(matchers) if len(matchers) < 2 else _canonical(matchers)
            return
        if matchers or exact is _NO_LABELS:
            raise _rejected(exact, "exact", "give the labels of one series and no matchers")
        # Left empty, because building them would cost several times the whole call.
        self._matchers = ()

    @property
    def exact(self) -> Labels | None:
        """The only series selected; None where `matchers` decide."""
        return self._exact

    @property
    def matchers(self) -> tuple[Matcher, ...]:
        """What every selected series satisfies, in canonical order: metric name, then by name.

        Where `exact` is set these are necessary but not sufficient: other series may have
        the same labels and more.
        """
        exact = self._exact
        if exact is None:
            return self._matchers
        equal = MatchOperator.EQUAL
        return _canonical([Matcher(name, equal, value) for name, value in exact.items()])

    def matches(self, labels: Labels) -> bool:
        """Tell whether a series is selected."""
        if self._exact is not None:
            return labels == self._exact
        # A plain loop: all() over a generator costs 0.3 µs more.
        for matcher in self._matchers:  # noqa: SIM110
            if not matcher.matches(labels.get(matcher.name, "")):
                return False
        return True

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Selector):
            return NotImplemented
        return self._exact == other._exact and self._matchers == other._matchers

    def __hash__(self) -> int:
        return hash((self._exact, self._matchers))

    def __reduce__(self) -> tuple[object, ...]:
        return to_selector, (self._matchers if self._exact is None else self._exact,)

    def __str__(self) -> str:
        """Give the canonical text, such as `cpu_usage{host="web-1",job=~"a|b"}`."""
        if self._exact is not None:
            return self._exact.id
        head = ""
        parts = [str(matcher) for matcher in self._matchers]
        names = [matcher for matcher in self._matchers if matcher.name == METRIC_NAME]
        if len(names) == 1 and names[0].operator is MatchOperator.EQUAL and names[0].value:
            # It stands first, being the first in canonical order.
            if _METRIC.fullmatch(names[0].value):
                head = names[0].value
                del parts[0]
            else:
                parts[0] = _quote(names[0].value)
        if head and not parts:
            return head
        return head + "{" + ",".join(parts) + "}"

    def __repr__(self) -> str:
        given = str(self) if self._exact is None else self._exact
        return f"to_selector({given!r})"


SelectorLike: TypeAlias = (
    "str | Labels | Mapping[str, str] | Matcher | Iterable[Matcher] | Selector | None"
)
"""What a caller may give where a selector is wanted; see `to_selector`."""


def to_selector(selector: SelectorLike) -> Selector:
    """Make a Selector of whatever a caller may give for one.

    Args:
        selector: text, parsed; `Labels`, exactly that series; another mapping, label
            values that must be equal ("" for an absent label), other labels free; a
            matcher or several, all of which must hold; a Selector, itself; None, every
            series. No conditions at all (`{}`, an empty mapping, no matchers) select
            every series.

    Raises:
        SelectorError: the text does not parse, or is longer than `TEXT_LENGTH_MAX`;
            a name or value is no text; or it is none of the above.
    """
    if isinstance(selector, str):
        if len(selector) <= _CACHED_TEXT_LENGTH_MAX:
            return _parse_cached(selector)
        return _parse(selector)
    if selector is None:
        return _EVERYTHING
    if type(selector) is Labels:  # isinstance, of an ABC, takes 0.2 µs for other types
        return Selector(exact=selector)
    if isinstance(selector, Selector):
        return selector
    if isinstance(selector, Matcher):
        return Selector((selector,))
    if isinstance(selector, Mapping):
        equal = MatchOperator.EQUAL
        return Selector([Matcher(name, equal, value) for name, value in selector.items()])
    return Selector(_each_matcher(selector))


def _each_matcher(given: object) -> tuple[Matcher, ...]:
    if not isinstance(given, Iterable) or isinstance(given, (bytes, bytearray)):
        raise _rejected(given, "selector", "give text, Labels, a mapping of text, matchers or None")
    matchers = tuple(given)
    for index, matcher in enumerate(matchers):
        if not isinstance(matcher, Matcher):
            raise _rejected(matcher, f"selector[{index}]", "give matchers only")
    return matchers


def _canonical(matchers: Iterable[Matcher]) -> tuple[Matcher, ...]:
    return tuple(dict.fromkeys(sorted(matchers, key=_canonical_order)))


def _canonical_order(matcher: Matcher) -> tuple[bool, str, str, str]:
    return matcher.name != METRIC_NAME, matcher.name, matcher.operator, matcher.value


def _rejected(found: object, what: str, remedy: str) -> SelectorError:
    shown = reprlib.repr(found)
    return SelectorError(
        f"{what} is {shown} of type {type(found).__name__}; {remedy}", text=shown, position=0
    )


# Matchers

# Without these characters, and split at "|", an expression means just what it says.
_LISTED: Final = re.compile(r"[^\\.+*?()\[\]{}^$]*")
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")
_QUOTE_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def _regex_options() -> object:
    options = re2.Options()
    options.dot_nl = True  # as Prometheus, which compiles ^(?s:…)$
    options.never_capture = True  # groups would keep RE2 from its fastest engine
    options.log_errors = False  # they are raised, not written to stderr
    options.max_mem = REGEX_BYTES_MAX
    return options


_REGEX_OPTIONS: Final = _regex_options()


def _full_match(pattern: str) -> Callable[[str], bool]:
    """Compile a pattern to a test of whole texts, which a matcher keeps."""
    try:
        # As bytes, since for str the binding computes character offsets nobody asks for,
        # which doubles the time of a match (8.5 to 3.8 µs).
        regex = re2.compile(pattern.encode(), _REGEX_OPTIONS)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace")
        raise SelectorError(
            f"{reprlib.repr(pattern)} is no regular expression ({reason}); write it in RE2 "
            "syntax, which has no look-around and no back-references",
            text=pattern,
            position=0,
        ) from None

    def stands_for(text: str) -> bool:
        return regex.fullmatch(text.encode()) is not None

    return stands_for


def _listed_values(operator: MatchOperator, value: str) -> frozenset[str] | None:
    if operator in (MatchOperator.EQUAL, MatchOperator.NOT_EQUAL):
        return frozenset((value,))
    if _LISTED.fullmatch(value):
        return frozenset(value.split("|"))
    return None


def _check_text(text: str, what: str) -> None:
    if not isinstance(text, str):
        raise _rejected(text, what, "give text")
    if text.isascii() and "\0" not in text:
        return  # nearly all texts, at a fifth of the time
    bad = _NO_TEXT.search(text)
    if bad:
        raise SelectorError(
            f"{what} holds {bad.group()!r} at position {bad.start()}; give text without NUL "
            "and lone surrogates",
            text=text,
            position=bad.start(),
        )


def _quote(text: str) -> str:
    return '"' + text.translate(_QUOTE_ESCAPES) + '"'


# Text

_METRIC: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_OPERATOR: Final = re.compile(r"=~|!=|!~|=")
_QUOTED: Final = re.compile("[\"'`]")
_SPACE: Final = re.compile(r"(?:[ \t\r\n]+|#[^\r\n]*)*")
_UNESCAPED: Final = {
    '"': re.compile(r'[^"\\\n]*'),
    "'": re.compile(r"[^'\\\n]*"),
}
_ESCAPED: Final = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\\": "\\",
}
_BYTE_ESCAPES: Final = re.compile(r"(?:\\x[0-9a-fA-F]{2}|\\[0-7]{3})+")
_BYTE_ESCAPE_LENGTH: Final = 4
_CODE_POINT_ESCAPE: Final = re.compile(r"\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})")


class _Parser:
    """Reads one text from left to right and never goes back, so its time is linear."""

    __slots__ = ("position", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def selector(self) -> Selector:
        self.skip_space()
        name = self.take(_METRIC)
        self.skip_space()
        matchers = [Matcher(METRIC_NAME, MatchOperator.EQUAL, name)] if name else []
        if self.accept("{"):
            self.braces(matchers, named=bool(name))
            self.skip_space()
        elif not name:
            raise self.unexpected('a metric name or "{"')
        if self.position < len(self.text):
            raise self.unexpected("nothing after the selector (times are given as start and end)")
        return Selector(matchers)

    def braces(self, matchers: list[Matcher], *, named: bool) -> None:
        """Read up to the closing brace and append what stands there."""
        while True:
            self.skip_space()
            if self.accept("}"):
                return
            start = self.position
            matcher = self.matcher()
            if named and matcher.name == METRIC_NAME:
                raise self.error(start, "a second metric name", "one, before the braces or inside")
            matchers.append(matcher)
            self.skip_space()
            if not self.accept(","):
                if self.accept("}"):
                    return
                raise self.unexpected('"," or "}"')

    def matcher(self) -> Matcher:
        start = self.position
        quoted = self.at_string()
        name = self.string() if quoted else self.take(_LABEL)
        if not name:
            if quoted:
                raise self.error(start, "an empty name", "the name of a label or a metric")
            raise self.unexpected('a label name, a quoted metric name or "}"')
        self.skip_space()
        symbol = self.take(_OPERATOR)
        if not symbol:
            if quoted:
                return Matcher(METRIC_NAME, MatchOperator.EQUAL, name)
            raise self.unexpected("one of = != =~ !~")
        self.skip_space()
        if not self.at_string():
            raise self.unexpected("a string in quotes or backticks")
        start = self.position
        value = self.string()
        try:
            return Matcher(name, MatchOperator(symbol), value)
        except SelectorError as error:  # of all that can be wrong, only the expression is left
            raise SelectorError(
                f"selector at position {start}: {error}", text=self.text, position=start
            ) from None

    def string(self) -> str:
        """Read a string whose opening quote is next."""
        text, start = self.text, self.position
        quote = text[start]
        if quote == "`":
            end = text.find(quote, start + 1)
            if end < 0:
                raise self.error(start, "a string that does not end", "a closing backtick")
            self.position = end + 1
            return text[start + 1 : end]
        parts = []
        self.position = start + 1
        while True:
            parts.append(self.take(_UNESCAPED[quote]))
            if self.accept(quote):
                return "".join(parts)
            if self.position == len(text):
                raise self.error(start, "a string that does not end", f"a closing {quote}")
            if text[self.position] == "\n":
                raise self.error(
                    self.position, "a line break in quotes", r"\n, or a string in backticks"
                )
            parts.append(self.escape(quote))

    def escape(self, quote: str) -> str:
        """Read an escape of Go's string syntax, or a run of those that stand for bytes."""
        start = self.position
        escaped_bytes = self.take(_BYTE_ESCAPES)
        if escaped_bytes:
            return self.decode(start, escaped_bytes)
        match = _CODE_POINT_ESCAPE.match(self.text, start)
        if match:
            self.position = match.end()
            code = int(match[1] or match[2], 16)
            if not code or 0xD800 <= code < 0xE000 or code > 0x10FFFF:
                raise self.error(start, match.group(), "the escape of a character other than NUL")
            return chr(code)
        letter = self.text[start + 1 : start + 2]
        self.position = start + 2
        if letter == quote:
            return quote
        if letter not in _ESCAPED:
            raise self.error(
                start,
                f"the escape {self.text[start : self.position]!r}",
                rf"one of \a \b \f \n \r \t \v \\ \{quote} \000 \x00 \u0000 \U00000000",
            )
        return _ESCAPED[letter]

    def decode(self, start: int, escapes: str) -> str:
        r"""Decode a run of `\xNN` and `\NNN`: as in Go they stand for bytes, together UTF-8.

        A run is whole characters, since what stands around it is characters already.
        """
        width = _BYTE_ESCAPE_LENGTH
        codes = []
        for offset in range(0, len(escapes), width):
            escape = escapes[offset : offset + width]
            digits, base = (escape[2:], 16) if escape[1] == "x" else (escape[1:], 8)
            code = int(digits, base)
            if not 0 < code < 256:
                raise self.error(start + offset, escape, r"a byte from \x01 to \xff")
            codes.append(code)
        try:
            return bytes(codes).decode()
        except UnicodeDecodeError as error:
            at = error.start * width
            raise self.error(
                start + at, f"{escapes[at : at + width]}, no valid UTF-8", "bytes of UTF-8"
            ) from None

    def skip_space(self) -> None:
        self.take(_SPACE)

    def at_string(self) -> bool:
        return _QUOTED.match(self.text, self.position) is not None

    def accept(self, symbol: str) -> bool:
        """Go past `symbol` if it is next."""
        found = self.text.startswith(symbol, self.position)
        if found:
            self.position += len(symbol)
        return found

    def take(self, pattern: re.Pattern[str]) -> str:
        """Go past what matches here and give it; the empty text if nothing does."""
        match = pattern.match(self.text, self.position)
        if match is None:
            return ""
        self.position = match.end()
        return match.group()

    def unexpected(self, expected: str) -> SelectorError:
        """Say that what is next should have been something else."""
        if self.position == len(self.text):
            return self.error(self.position, "the end of the text", expected)
        return self.error(self.position, repr(self.text[self.position]), expected)

    def error(self, position: int, found: str, expected: str) -> SelectorError:
        near = self.text[max(position - 20, 0) : position + 20]
        return SelectorError(
            f"selector has {found} at position {position}, near {near!r}; expected {expected}",
            text=self.text,
            position=position,
        )


def _parse(text: str) -> Selector:
    if len(text) > TEXT_LENGTH_MAX:
        raise SelectorError(
            f"selector text has {len(text)} characters; at most {TEXT_LENGTH_MAX} are read, "
            f"so nothing may stand at position {TEXT_LENGTH_MAX}",
            text=text,
            position=TEXT_LENGTH_MAX,
        )
    _check_text(text, "selector text")
    return _Parser(text).selector()


_parse_cached = functools.lru_cache(maxsize=_CACHED_TEXTS)(_parse)

_EVERYTHING: Final = Selector()
_NO_LABELS: Final = Labels()
