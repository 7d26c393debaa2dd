"""InfluxDB line protocol: both ways to read it agree, and agree with a parser of its own kind."""

from __future__ import annotations

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.formats.reading import Rows, exact, intake, quickly, rows_of, slowly
from tsengine import Labels
from tsengine.formats.blocks import Block
from tsengine.formats.line_protocol import LineRules
from tsengine.formats.line_reading import LineReader
from tsengine.formats.rejects import Rejects

# An oracle: reads character by character, as the documentation of the protocol tells it.


class Oracle:
    """Reads one line; raises ValueError where it is none."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.at = 0

    def peek(self) -> str:
        """Give the next character, empty at the end."""
        return self.line[self.at : self.at + 1]

    def word(self, special: str, ends: str) -> str:
        """Read up to one of `ends`, undoing the escapes of `special`."""
        text = ""
        while self.peek() and self.peek() not in ends:
            char = self.peek()
            self.at += 1
            if char == "\\":
                following = self.peek()
                if not following or following == "\n":
                    raise ValueError("a backslash at the end")
                self.at += 1
                text += following if following in special else char + following
            else:
                text += char
        if not text:
            raise ValueError("nothing there")
        return text

    def expect(self, char: str) -> None:
        """Read one character."""
        if self.peek() != char:
            raise ValueError(f"no {char!r}")
        self.at += 1

    def value(self) -> object:
        """Read the value of a field."""
        if self.peek() == '"':
            return self.string()
        text = ""
        while self.peek() and self.peek() not in ', \n"':
            text += self.peek()
            self.at += 1
        if text in ("t", "T", "true", "True", "TRUE"):
            return True
        if text in ("f", "F", "false", "False", "FALSE"):
            return False
        if text[-1:] in ("i", "u"):
            digits = text[:-1]
            if not digits.lstrip("-").isdecimal() or digits.count("-") > digits.startswith("-"):
                raise ValueError("no integer")
            if not digits.isascii() or (text[-1] == "u" and digits.startswith("-")):
                raise ValueError("no integer")
            if not -(2**63) <= int(digits) < 2**63:
                raise ValueError("beyond int64")
            return int(digits)
        if set(text) - set("0123456789+-.eE"):
            raise ValueError("no number")
        number = float(text)
        if math.isinf(number):
            raise ValueError("beyond float64")
        return number

    def string(self) -> str:
        """Read a string in quotes."""
        self.expect('"')
        text = ""
        while (char := self.peek()) != '"':
            if not char:
                raise ValueError("no end")
            self.at += 1
            if char == "\\" and self.peek() in ('"', "\\") and self.peek():
                char = self.peek()
                self.at += 1
            elif char == "\\":
                char += self.peek()
                self.at += 1
            text += char
        self.expect('"')
        return text

    def points(self) -> list[tuple[str, int, object]]:
        """Read the line."""
        while self.peek() == " ":
            self.at += 1
        named = {"": self.word(", \\", ", \n")}
        while self.peek() == ",":
            self.at += 1
            tag = self.word(",= \\", ",= \n")
            self.expect("=")
            if tag in named or tag == "__name__":
                raise ValueError("twice")
            named[tag] = self.word(",= \\", ",= \n")
        self.expect(" ")
        while self.peek() == " ":
            self.at += 1
        fields = []
        while True:
            key = self.word(",= \\", ",= \n")
            self.expect("=")
            fields.append((key, self.value()))
            if self.peek() != ",":
                break
            self.at += 1
        self.expect(" ")
        moment = self.line[self.at :].strip(" ")
        if not moment.isascii() or not moment.removeprefix("-").isdigit():
            raise ValueError("no time")
        if not -(2**63) <= int(moment) < 2**63:
            raise ValueError("beyond int64")
        metric = named.pop("")
        return [
            (
                Labels(named | {"__name__": metric if key == "value" else f"{metric}_{key}"}).id,
                int(moment),
                value,
            )
            for key, value in fields
        ]


def by_oracle(lines: list[str]) -> tuple[Rows, int]:
    """Read lines by the oracle; give also how many are rejected."""
    rows: Rows = {}
    kinds: dict[str, str] = {}
    rejected = 0
    for line in lines:
        if not line.strip(" \t") or line.lstrip(" \t").startswith("#"):
            continue
        try:
            points = Oracle(line).points()
            opened: dict[str, str] = {}
            fitted = []
            for name, moment, value in points:
                kind = "float" if isinstance(value, float) else "object"
                kind = "int" if type(value) is int else kind
                known = opened.get(name) or kinds.get(name)
                if known == "float" and kind == "int" and int(float(str(value))) == value:
                    value, kind = float(str(value)), "float"
                if known not in (None, kind):
                    raise ValueError("another kind")
                opened[name] = kind
                fitted.append((name, moment, value))
        except ValueError:
            rejected += 1
            continue
        kinds |= opened
        for name, moment, value in fitted:
            rows.setdefault(name, []).append((moment, exact(value)))
    return rows, rejected


# Lines: mostly plain, so that the fast way takes many of them, and never for long.

NAMES = st.text("abµ_-./=x0#\U0001f600", min_size=1, max_size=3)
ESCAPED = st.lists(
    st.sampled_from(
        ["a", "b", "\\,", "\\ ", "\\=", "\\\\", "\\a", "\\", "=", "\t", '"', "\r", "é"]
    ),
    min_size=1,
    max_size=4,
).map("".join)
KEYS = NAMES.filter(lambda name: "=" not in name)
PLAIN_VALUES = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(2**63), 2**63 - 1).map(lambda number: f"{number}i"),
    st.sampled_from(
        ["1", "-0", "0.5", "5.", ".5", "+1", "1e5", "1E+05", "-0i", "007i", "t", "False"]
    ),
)
ODD_VALUES = st.sampled_from(
    [
        "nan",
        "inf",
        "1e400",
        "0x10",
        "0x10i",
        "-0x1i",
        "1_0",
        "9223372036854775808i",
        "5u",
        "-5u",
        "-0u",
        "i",
        "-",
        "e5",
        "5e",
        "",
        '"a"',
        '"a b"',
        '"\\""',
        '"\\\\"',
        '"',
        '"a\\"',
        "tr",
        "1i1",
        "1.5i",
        '"a\\b"',
        "+5i",
        "\N{ARABIC-INDIC DIGIT ONE}i",
        "5f",
        "18446744073709551615u",
        "00000000000000000000000012i",
    ]
)
TIMES = st.one_of(
    st.integers(-(2**63), 2**63 - 1).map(str), st.sampled_from(["1", "2", "-0", "0012"])
)
ODD_TIMES = st.sampled_from(["", "1.5", "0x1", "9223372036854775808", "now", "1e3", "+1", "1 2"])


@st.composite
def lines(draw: st.DrawFn, odd: int = 8) -> str:
    """Draw a line, of which one part in so many is odd."""

    def choose(plain: st.SearchStrategy[str], other: st.SearchStrategy[str]) -> str:
        return draw(other if odd and draw(st.integers(0, odd)) == 0 else plain)

    if odd and draw(st.integers(0, 4 * odd)) == 0:
        return draw(
            st.sampled_from(["", "# a comment", " ", "a", "a b", "a b=", ",a=b c=1 2", "\t#"])
        )
    series = choose(NAMES, ESCAPED)
    for _ in range(draw(st.integers(0, 2))):
        series += f",{choose(KEYS, ESCAPED)}={choose(KEYS, ESCAPED)}"
    fields = ",".join(
        f"{choose(KEYS, ESCAPED)}={choose(PLAIN_VALUES, ODD_VALUES)}"
        for _ in range(draw(st.integers(1, 3)))
    )
    space = choose(st.just(" "), st.sampled_from(["  ", "\t", ""]))
    return f"{series} {fields}{space}{choose(TIMES, ODD_TIMES)}"


def reader(rejects: Rejects, rules: LineRules | None = None) -> LineReader:
    """Give a reader for an empty store."""
    return LineReader(intake(rejects), LineRules() if rules is None else rules)


@given(
    st.lists(lines(odd=60), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans()
)
@example(["a b=1i 1", "a b=2 2"], "\n", False)
@example(["a b=1 1", "a b=2i 2"], "\n", False)
@example(["a,b=1,c=2 b=1 1", "a,c=2,b=1 b=2 2"], "\n", True)
@example(["a b=0x10i 1"], "\n", True)
@example(["#a b=1 1", "#b c=1 2"], "\n", True)
@example(["a b=1 -0x1"], "\n", True)
def test_the_fast_way_reads_what_the_slow_one_reads(
    given_lines: list[str], end: str, is_ended: bool
) -> None:
    """Where the fast way reads a block at all, the slow one gives the same and rejects nothing."""
    data = (end.join(given_lines) + (end if is_ended else "")).encode()
    quick = quickly(reader(Rejects()), data)
    assume(quick is not None)
    rejects = Rejects()
    assert slowly(reader(rejects), data) == quick
    assert rejects.count == 0


def test_plain_lines_are_read_by_the_fast_way() -> None:
    """Numbers, booleans, several fields, any order of tags and carriage returns are plain."""
    data = (
        b"cpu,host=a,region=eu user=1.5,idle=3i,up=t 1700000000000000000\r\n"
        b"cpu,region=eu,host=a user=-2e5,idle=-4i,up=false 1700000000000000001\r\n"
    )
    assert quickly(reader(Rejects()), data) == {
        'cpu_user{host="a",region="eu"}': [
            (1700000000000000000, exact(1.5)),
            (1700000000000000001, exact(-2e5)),
        ],
        'cpu_idle{host="a",region="eu"}': [
            (1700000000000000000, exact(3)),
            (1700000000000000001, exact(-4)),
        ],
        'cpu_up{host="a",region="eu"}': [
            (1700000000000000000, exact(True)),
            (1700000000000000001, exact(False)),
        ],
    }


@given(st.lists(lines(odd=5), min_size=1, max_size=5))
@example(['a b="x 1', 'c d="y" 2'])
@example(['a b="\\" 1'])
def test_the_slow_way_reads_as_an_oracle_does(given_lines: list[str]) -> None:
    """Any lines whose strings end on them give the points and rejects of another parser."""
    assume(all(line.count('"') % 2 == 0 and "\r" not in line for line in given_lines))
    rows, rejected = by_oracle(given_lines)
    rejects = Rejects()
    assert slowly(reader(rejects), "\n".join(given_lines).encode()) == rows
    assert rejects.count == rejected


@given(st.lists(lines(odd=5), max_size=6), st.binary(max_size=8))
def test_any_cut_of_a_file_reads_the_same(given_lines: list[str], junk: bytes) -> None:
    """However a text is cut into blocks at lines, the points and the rejects are the same."""
    data = "\n".join(given_lines).encode() + b"\n" + junk
    expected = Rejects()
    whole = rows_of(reader(expected).read([Block(data, 1)]))
    pieces = data.splitlines(keepends=True) if b"\r" not in data else [data]
    blocks = [Block(piece, number) for number, piece in enumerate(pieces, 1)]
    found = Rejects()
    assert rows_of(reader(found).read(blocks)) == whole
    assert (found.count, found.first) == (expected.count, expected.first)


def test_a_string_may_hold_line_feeds_across_blocks() -> None:
    """A string goes on in the next block; what never ends spoils its own line alone."""
    data = b'a b="one\ntwo" 1\na b="three\nc d=1 2\nc d=2 3\n'
    blocks = [Block(line, number) for number, line in enumerate(data.splitlines(keepends=True), 1)]
    rejects = Rejects()
    assert rows_of(reader(rejects).read(blocks)) == {
        "a_b": [(1, exact("one\ntwo"))],
        "c_d": [(2, exact(1.0)), (3, exact(2.0))],
    }
    assert [(reject.line, reject.row) for reject in rejects.first] == [(3, 'a b="three')]


@pytest.mark.parametrize(
    ("rules", "line", "points"),
    [
        (LineRules(unit=10**6), "a b=1 5", {"a_b": [(5 * 10**6, 1.0)]}),
        (LineRules(separator="."), "a b=1 5", {'{"a.b"}': [(5, 1.0)]}),
        (LineRules(constants={"dc": "x"}), "a b=1 5", {'a_b{dc="x"}': [(5, 1.0)]}),
        (LineRules(missing_time=9), "a b=1", {"a_b": [(9, 1.0)]}),
        (LineRules(), "a value=1 5", {"a": [(5, 1.0)]}),
    ],
)
def test_rules_say_what_lines_mean(
    rules: LineRules, line: str, points: dict[str, list[tuple[int, float]]]
) -> None:
    """Precision, separator, constant labels, the time of lines without one, the field `value`."""
    expected = {
        name: [(moment, exact(value)) for moment, value in rows] for name, rows in points.items()
    }
    assert slowly(reader(Rejects(), rules), line.encode()) == expected
    assert quickly(reader(Rejects(), rules), line.encode()) in (expected, None)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"a b=1", "no timestamp"),
        (b"a b=nan 1", "no number"),
        (b"a,b=1,b=2 c=1 1", "twice"),
        (b"a b=\xff 1", "not UTF-8"),
        (b'a b="x 1', "a string without its end"),
        (b"a b=9223372036854775808i 1", "int64"),
        (b"a b=1 9223372036854775808", "int64"),
        (b"a\0 b=1 1", "NUL"),
        (b"just text", "no line"),
    ],
)
def test_a_bad_line_is_rejected_with_a_reason(line: bytes, reason: str) -> None:
    """A line that cannot be stored is told by its number, and those around it are read."""
    rejects = Rejects()
    data = b"x y=1 1\n" + line + b"\nx y=2 2\n"
    assert slowly(reader(rejects), data) == {"x_y": [(1, exact(1.0)), (2, exact(2.0))]}
    (reject,) = rejects.first
    assert reject.line == 2
    assert reason in reject.reason
