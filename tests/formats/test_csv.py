"""CSV: both ways to read it agree, and agree with a parser of its own kind."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.formats.reading import Rows, exact, intake, quickly, rows_of, slowly
from tsengine import FormatError, Labels, ValueKind
from tsengine.formats.blocks import Block
from tsengine.formats.csv_reading import CsvDialect, CsvReader, cut_rows, head_of
from tsengine.formats.mapping import Choices, ColumnMapping, resolve
from tsengine.formats.rejects import Rejects

COLUMNS = ["__name__", "host", "time", "value", "value_int", "value_object"]


def mapping(choices: Choices | None = None, columns: Sequence[str] = COLUMNS) -> ColumnMapping:
    """Give the mapping of the columns of these tests."""
    return resolve(columns, [], choices or Choices(time="time", time_form="ns"))


def reader(
    rejects: Rejects,
    choices: Choices | None = None,
    *,
    columns: Sequence[str] = COLUMNS,
    integers: ValueKind = ValueKind.FLOAT,
) -> CsvReader:
    """Give a reader for an empty store."""
    dialect = CsvDialect(",", list(columns))
    return CsvReader(intake(rejects, integers=integers), mapping(choices, columns), dialect)


# Rows: mostly plain, so that the fast way takes many of them.

TEXTS = st.one_of(
    st.text("abé_ \U0001f600", min_size=1, max_size=3),
    st.sampled_from(["", "a,b", 'a"b', "a\nb", "a\r\nb", '"', "\r"]),
)
FLOATS = st.one_of(
    st.floats(width=64).map(repr),
    st.sampled_from(
        ["1", "-0", " 1.5 ", "+1", ".5", "5.", "1e5", "NaN", "-nan", "Inf", "-infinity"]
    ),
)
ODD_FLOATS = st.sampled_from(
    [
        "",
        "nan(0x1)",
        "0x10",
        "1_0",
        "1e400",
        "x",
        "9007199254740993",
        "1 2",
        "-nan(0x123)",
        "1e",
        "\x0b1",
    ]
)
INTS = st.one_of(st.integers(-(2**63), 2**63 - 1).map(str), st.sampled_from(["007", " 7", "-0"]))
ODD_INTS = st.sampled_from(["", "0x10", "+1", "1.0", "9223372036854775808", "x"])
JSONS = st.sampled_from(
    ['"x"', "[1,2]", '{"a":null}', "true", '""', "nul", "[", "1", "null", "NaN"]
)


def cell(text: str, *, is_quoted: bool) -> str:
    """Write a cell."""
    if is_quoted or any(char in text for char in ',"\r\n'):
        return '"' + text.replace('"', '""') + '"'
    return text


@st.composite
def rows(draw: st.DrawFn, odd: int = 8) -> str:
    """Draw a row, of which one part in so many is odd."""

    def choose(plain: st.SearchStrategy[str], other: st.SearchStrategy[str]) -> str:
        return draw(other if draw(st.integers(0, odd)) == 0 else plain)

    if draw(st.integers(0, 4 * odd)) == 0:
        return draw(
            st.sampled_from(["", "a", "a,b", ",,,,,", 'a"b,c,1,1,,', '"a"b,c,1,1,,', '"', "\x00"])
        )
    column = draw(st.integers(0, 11))
    cells = [
        draw(TEXTS),
        draw(TEXTS),
        choose(INTS, ODD_INTS),
        choose(FLOATS, ODD_FLOATS) if column < 8 else "",
        choose(INTS, ODD_INTS) if column in (8, 9) else "",
        draw(JSONS) if column > 9 else "",
    ]
    is_quoted = draw(st.integers(0, 9)) == 0
    return ",".join(cell(text, is_quoted=is_quoted) for text in cells)


@given(
    st.lists(rows(odd=60), min_size=1, max_size=6), st.sampled_from(["\n", "\r\n"]), st.booleans()
)
@example(["a,b,1,1,,", "a,b,2,,2,"], "\n", True)
@example(["a,b,1,,1,", "a,b,2,2,,"], "\n", True)
@example(["a,b,1,nan(0x1),,"], "\n", True)
@example(["a,b,0x1,1,,"], "\n", True)
@example(["a,b,1,9007199254740993,,"], "\n", True)
@example(['"a""b","c\nd",1,1,,'], "\n", True)
@example(["a,b,1,1e400,,"], "\n", True)
def test_the_fast_way_reads_what_the_slow_one_reads(
    given_rows: list[str], end: str, is_ended: bool
) -> None:
    """Where the fast way reads a block at all, the slow one gives the same and rejects nothing."""
    data = (end.join(given_rows) + (end if is_ended else "")).encode()
    for integers in (ValueKind.FLOAT, ValueKind.INT):
        quick = quickly(reader(Rejects(), integers=integers), data)
        if quick is None:
            continue
        rejects = Rejects()
        assert slowly(reader(rejects, integers=integers), data) == quick
        assert rejects.count == 0


@given(st.binary(max_size=40), st.integers(0, 3))
def test_any_bytes_are_read_alike(junk: bytes, place: int) -> None:
    """Bytes of any kind in a file give what the slow way gives, or go to it."""
    lines = [b"a,b,1,1.5,,\n", b"a,c,2,2.5,,\n", b'"d",c,3,2.5,,\n']
    data = b"".join([*lines[:place], junk, *lines[place:]])
    quick = quickly(reader(Rejects()), data)
    assume(quick is not None)
    rejects = Rejects()
    assert slowly(reader(rejects), data) == quick
    assert rejects.count == 0


def by_oracle(text: str) -> Rows:
    """Read rows whose values are floats, character by character as RFC 4180 has it."""
    found: Rows = {}
    cells, current, is_quoted, at = [], "", False, 0
    while at <= len(text):
        char = text[at : at + 1]
        if is_quoted:
            if char == '"' and text[at + 1 : at + 2] == '"':
                current += '"'
                at += 1
            elif char == '"':
                is_quoted = False
            else:
                current += char
        elif char == '"':
            is_quoted = True
        elif char in (",", "\n", ""):
            cells.append(current)
            current = ""
            if char != ",":
                if cells != [""]:
                    name, host, moment, value, *_ = cells
                    named = {"__name__": name, "host": host}
                    labels = Labels({key: label for key, label in named.items() if label})
                    found.setdefault(labels.id, []).append((int(moment), exact(float(value))))
                cells = []
        else:
            current += char
        at += 1
    return found


@given(
    st.lists(
        st.tuples(TEXTS.filter(bool), TEXTS, st.integers(-(2**63), 2**63 - 1), st.floats()),
        max_size=5,
    ),
    st.booleans(),
)
def test_rows_are_read_as_an_oracle_does(
    given_rows: list[tuple[str, str, int, float]], is_quoted: bool
) -> None:
    """Quotes, separators and line ends in cells are read as another parser reads them."""
    text = "".join(
        ",".join(cell(str(part), is_quoted=is_quoted) for part in (*row, "", "")) + "\n"
        for row in given_rows
    )
    rejects = Rejects()
    blocks = [Block(text.encode(), 1)]
    assert rows_of(reader(rejects).read(blocks)) == by_oracle(text)
    assert slowly(reader(rejects), text.encode()) == by_oracle(text)
    assert rejects.count == 0


@given(st.lists(rows(odd=6), max_size=8), st.integers(1, 40))
def test_any_cut_of_a_file_reads_the_same(given_rows: list[str], size: int) -> None:
    """Blocks end with whole rows, and however they are cut points and rejects are the same."""
    data = "\n".join(given_rows).encode() + b"\n"
    assume(data.count(b'"') % 2 == 0)
    blocks: list[Block] = []
    rest, line = data, 1
    while rest:
        end = cut_rows(rest[:size]) or cut_rows(rest) or len(rest)
        blocks.append(Block(rest[:end], line))
        line += rest.count(b"\n", 0, end)
        rest = rest[end:]
    assume('a"b' not in given_rows and '"' not in given_rows)  # spoil more than their own line
    expected, found = Rejects(), Rejects()
    whole = slowly(reader(expected), data)
    assert rows_of(reader(found).read(blocks)) == whole
    assert found.count == expected.count


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"a,b,1", "3 cells, where 6 columns are"),
        (b"a,b,1,2,,,,", "8 cells"),
        (b"a,b,x,2,,", "no time since 1970"),
        (b"a,b,,2,,", "no time in column time"),
        (b"a,b,1,,,", "no value"),
        (b"a,b,1,x,,", "column value: 'x' is no number"),
        (b"a,b,1,,1.5,", "no integer"),
        (b"a,b,1,,,nope", "no JSON"),
        (b"a,\xff,1,2,,", "not UTF-8"),
        (b"a,b\0,1,2,,", "NUL"),
        (b",,1,2,,", "no label"),
        (b'a,"b,1,2,,', "quote"),
        (b'a,"b"c,1,2,,', "no row of CSV"),
        (b"__name__,host,time,value,value_int,value_object", "names of the columns once more"),
        (b"a,b,9223372036854775808,1,,", "int64"),
        (b"x,y,5,,,true", "kind"),
        (b"a,b,1,9007199254740993,,", "loses precision"),
        (b"a" * 9_000 + b",b,1,1,,", "too long"),
    ],
)
def test_a_bad_row_is_rejected_with_a_reason(row: bytes, reason: str) -> None:
    """A row that cannot be stored is told by its number, and those around it are read."""
    rejects = Rejects()
    data = b"x,y,1,1.5,,\n" + row + b"\nx,y,2,2.5,,\n"
    found = rows_of(reader(rejects).read([Block(data, 7)]))
    assert found == {'x{host="y"}': [(1, exact(1.5)), (2, exact(2.5))]}
    (reject,) = rejects.first
    assert reject.line == 8
    assert reason in reject.reason
    assert reject.row.startswith(row[:2].decode())


@pytest.mark.parametrize("first", ['5" pipe', '"open'])
@pytest.mark.parametrize("second", ['5" pipe', '"open', '"whole\nin two"'])
def test_a_stray_quote_spoils_no_row_but_its_own(first: str, second: str) -> None:
    """Whatever quotes there are in two rows, all rows between them are read."""
    hosts = ["a"] * 50
    hosts[10], hosts[40] = first, second
    data = "".join(f"m,{host},{place},1.5,,\n" for place, host in enumerate(hosts, 1)).encode()
    rejects = Rejects()
    found = rows_of(reader(rejects).read([Block(data, 1)]))
    assert len(found['m{host="a"}']) == 48
    bad = sum(host == '"open' for host in (first, second))
    assert rejects.count == bad
    assert sum(map(len, found.values())) == 50 - bad


def test_wide_rows_give_a_metric_for_each_column() -> None:
    """Several columns of values are metrics of their names; empty cells are no points."""
    columns = ["room", "time", "celsius", "humidity"]
    data = b"lab,1,20.5,40\nlab,2,,41\n,3,21.5,\n"
    for read in (slowly, quickly):
        rejects = Rejects()
        choices = Choices(time="time", time_form="s", values=["celsius", "humidity"])
        found = read(reader(rejects, choices, columns=columns), data)
        assert found == {
            'celsius{room="lab"}': [(10**9, exact(20.5))],
            "celsius": [(3 * 10**9, exact(21.5))],
            'humidity{room="lab"}': [(10**9, exact(40.0)), (2 * 10**9, exact(41.0))],
        }


@pytest.mark.parametrize(
    ("form", "zone", "text", "moment"),
    [
        ("iso", None, "1970-01-01T00:00:01Z", 10**9),
        ("iso", None, "1970-01-01 01:00:01.000000001+01:00", 10**9 + 1),
        ("iso", "UTC", "1970-01-01 00:00:01.5", 1_500_000_000),
        ("iso", "UTC", "1970-01-02", 86_400 * 10**9),
        ("iso", "Europe/Berlin", "1970-01-01T01:00:01", 10**9),
        ("iso", "Europe/Berlin", "1970-01-01T00:00:01Z", 10**9),
        ("s", None, "1.5", 1_500_000_000),
        ("ms", None, "-1", -1_000_000),
        ("us", None, "1e3", 1_000_000),
        ("%d.%m.%Y %H:%M:%S", "UTC", "02.01.1970 00:00:00", 86_400 * 10**9),
    ],
)
def test_times_are_read_in_the_form_that_is_said(
    form: str, zone: str | None, text: str, moment: int
) -> None:
    """Units, ISO 8601, patterns and zones, by whichever way."""
    choices = Choices(time="time", time_form=form, zone=zone, constants={"a": "b"})
    data = f"{text},1.5\n".encode()
    expected = {'value{a="b"}': [(moment, exact(1.5))]}
    columns = ["time", "value"]
    assert slowly(reader(Rejects(), choices, columns=columns), data) == expected
    assert quickly(reader(Rejects(), choices, columns=columns), data) in (expected, None)


def test_naive_times_are_rejected_without_a_zone() -> None:
    """A time that names no zone is no moment unless the caller says in which it is."""
    choices = Choices(time="time", time_form="iso", constants={"a": "b"})
    rejects = Rejects()
    data = b"2024-01-01 00:00:00,1\n"
    found = rows_of(reader(rejects, choices, columns=["time", "value"]).read([Block(data, 1)]))
    assert not found
    assert "naive" in rejects.first[0].reason


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_names_is_refused(data: bytes) -> None:
    """Without a row of names there is no CSV."""
    with pytest.raises(FormatError, match="names of columns"):
        head_of(Block(data, 1), ",", None)


def test_a_byte_order_mark_belongs_to_no_name() -> None:
    """A byte order mark before the names is left out, and lines are counted on."""
    names, rest = head_of(Block(b'\xef\xbb\xbf\n"a\nb",c\n1,2\n', 1), ",", None)
    assert names == ["a\nb", "c"]
    assert rest == Block(b"1,2\n", 4)
