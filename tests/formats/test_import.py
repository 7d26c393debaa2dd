"""Importing: files that are bad as a whole or by rows, rejects, resuming."""

from __future__ import annotations

import gzip
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

import tsengine
from tests.formats.reading import Pieces, Rows, exact, file, stored
from tsengine import (
    CopyCancelledError,
    CopyError,
    Engine,
    FileAccessError,
    FormatError,
    GroupedBatch,
    Labels,
    MissingDependencyError,
    TooManyRejectsError,
    UnknownOptionError,
)
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.formats import Choices, Import, ImportOptions, ImportReport, ValueForm, export
from tsengine.formats.blocks import LINE_MAX, blocks
from tsengine.formats.intake import Intake
from tsengine.formats.times import TimeForm

HEAD = "__name__,host,timestamp_ns,value\n"
ROW = "cpu,a,1,1.5\n"
ONE: Rows = {'cpu{host="a"}': [(1, exact(1.5))]}


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Give an empty store."""
    with MemoryEngine() as opened:
        yield opened


def run(engine: Engine, path: str, options: ImportOptions | None = None) -> ImportReport:
    """Import a file."""
    with Import(path, options) as source:
        return source.run(engine)


# Files that are not what they should be.


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("points.csv", b"", "empty"),
        ("points.jsonl", b"", "empty"),
        ("points.csv", b"\n\n", "names of columns"),
        ("points.csv", b"a,b\n1,2\n", "none of the columns a, b is called like a time"),
        ("points.csv", b"time,a\n1,x\n", "holds numbers alone"),
        ("points.csv", b"time,a,a\n1,2,3\n", "'a' is there twice"),
        ("points.csv", b"time,,a\n1,x,2\n", "no name"),
        ("points.csv", b'"time,a\n1,2\n', "quote"),
        ("points.csv", b"\xff,a\n", "UTF-8"),
        ("points.csv", b"\xff\xfet\0i\0m\0e\0", "UTF-16"),
        ("points.csv", gzip.compress(b"time,a\n", mtime=0), "but gzip"),
        ("points.csv", b"PAR1....PAR1", "but parquet"),
        ("points.csv.gz", b"time,a\n1,2\n", "holds no gzip"),
        ("points.csv.zst", gzip.compress(b"time,a\n", mtime=0), "holds no zstd"),
        ("points.jsonl", b"[1]\n", "a JSON object"),
        ("points.jsonl", b"time,value\n1,2\n", "a JSON object"),
        ("points.parquet", b"time,value\n1,2\n", "holds no parquet"),
        ("points.parquet", b"PAR1" + bytes(100) + b"PAR1", "no Parquet"),
        ("points.parquet.gz", gzip.compress(b"PAR1", mtime=0), "compressed by itself"),
        ("points.txt", b"time,value\n", "does not tell the format"),
        ("points.csv", b"a" * 9_000_000, "line without an end"),
    ],
)
def test_a_file_that_is_no_such_file_is_refused(
    tmp_path: Path, name: str, data: bytes, says: str
) -> None:
    """What cannot be understood at all is a FormatError before any store is opened."""
    with pytest.raises(FormatError, match=says):
        Import(file(tmp_path, name, data))


def test_without_pyarrow_what_needs_it_says_so_and_json_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: Engine
) -> None:
    """Where pyarrow is missing that is told before a store is opened, and JSON lines are read."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name, data in (("p.csv", HEAD + ROW), ("p.lp", "cpu v=1 1\n"), ("p.parquet", "PAR1")):
        with pytest.raises(MissingDependencyError, match=r"pip install 'tsengine\[arrow\]'"):
            Import(file(tmp_path, name, data.encode()))
    line = b'{"__name__": "cpu", "host": "a", "timestamp_ns": 1, "value": 1.5}\n'
    run(engine, file(tmp_path, "p.jsonl", line))
    assert stored(engine) == ONE


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    """A file that is not there, or a folder, is a FileAccessError."""
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(FileAccessError, match="cannot open"):
            Import(str(path), ImportOptions(file_format="csv"))
    (tmp_path / "folder.csv").mkdir()
    for path in (tmp_path / "none" / "points.csv", tmp_path / "folder.csv"):
        with MemoryEngine() as opened, pytest.raises(FileAccessError, match="cannot write"):
            export(opened, str(path))
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


@pytest.mark.parametrize(
    ("ending", "damage"),
    [(ending, "cut") for ending in ("gz", "bz2", "xz", "zst")]
    + [(ending, "flipped") for ending in ("gz", "bz2", "xz")],  # zstd has no checksum here
)
def test_a_damaged_file_stores_what_comes_before(
    tmp_path: Path, engine: Engine, ending: str, damage: str
) -> None:
    """A compressed file that is cut short or damaged is told, and its beginning is stored."""
    path = tmp_path / f"points.lp.{ending}"
    with MemoryEngine() as source:
        series = Labels("cpu", host="a")
        source.write([(series, moment, moment / 7) for moment in range(1, 100_000)])
        export(source, str(path))
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-len(data) // 4 :]
    else:
        data[len(data) * 3 // 4] ^= 0x55
    path.write_bytes(data)
    with Import(str(path)) as reading, pytest.raises(CopyError) as caught:
        reading.run(engine)
    assert isinstance(caught.value.__cause__, FormatError)
    assert caught.value.side == "source"
    found = [value for rows in stored(engine).values() for _, value in rows]
    if damage == "cut":
        assert found == [exact(moment / 7) for moment in range(1, len(found) + 1)]
        assert len(found) > 50_000


@pytest.mark.parametrize(
    ("data", "rejects"),
    [
        (HEAD + ROW, []),
        ("\ufeff" + HEAD + ROW, []),
        ((HEAD + ROW).replace("\n", "\r\n"), []),
        (HEAD + "\n" + ROW + "\n\n", []),
        (HEAD + ROW.rstrip("\n"), []),
        (HEAD + HEAD + ROW, [2]),
        (HEAD + "\x00\n" + ROW + "cpu,a,2\n", [2, 4]),
        (HEAD + 'cpu,"a,1,1\n' + ROW, [2]),
        (HEAD + ROW + 'cpu,"a,1,1', [3]),
        (HEAD + "cpu,a,0,1\n" + ROW, [2]),
        (HEAD + "c" * 5_000_000 + "\n" + ROW, [2]),
        (HEAD + "c" * 1_100_000 + ",a,1,1\n" + ROW, [2]),
        (HEAD + ROW + '"' + ("cpu " * 100 + "\n") * 20_000, None),  # two blocks, few rejects
    ],
)
def test_bad_rows_are_counted_and_the_others_stored(
    tmp_path: Path, engine: Engine, data: str, rejects: list[int] | None
) -> None:
    """Whatever stands between good rows, these are stored, and it is told by its line."""
    path = file(tmp_path, "points.csv", data)
    aside = tmp_path / "rejects.jsonl"
    with Import(path) as source:
        report = source.run(engine, rejects_path=str(aside))
    assert stored(engine) == ONE
    told = [json.loads(line) for line in aside.read_text().splitlines()]
    assert len(told) == report.rejects
    assert all(len(one["row"]) <= 4_096 and one["reason"] for one in told)
    if rejects is not None:
        assert [one["line"] for one in told] == rejects


@pytest.mark.parametrize("ending", ["", "\na b=2 2\n"])
def test_a_string_that_is_open_before_a_long_line_is_told(
    tmp_path: Path, engine: Engine, ending: str
) -> None:
    """A row that goes on in a line that is too long is a reject of its own, at its own place."""
    path = file(tmp_path, "points.lp", 'a b=1 1\na b="open\n' + "x" * 9_000_000 + ending)
    report = run(engine, path)
    assert [reject.line for reject in report.first_rejects] == [2, 3]
    assert report.rejects == 2
    assert len(stored(engine)["a_b"]) == (2 if ending else 1)


def test_conflicts_with_what_is_stored_are_rejects(tmp_path: Path, engine: Engine) -> None:
    """A value of another kind than its stored series is a reject of its line, and no crash."""
    engine.write([(Labels("a_b"), 1, "text"), (Labels("c_d"), 1, 1.5)])
    path = file(tmp_path, "points.lp", 'a b=1 2\na b="x" 3\nc d=t 2\nc d=2i 3\nc d=2.5 4\n')
    report = run(engine, path)
    assert [reject.line for reject in report.first_rejects] == [1, 3]
    assert stored(engine) == {
        "a_b": [(1, exact("text")), (3, exact("x"))],
        "c_d": [(1, exact(1.5)), (3, exact(2.0)), (4, exact(2.5))],
    }


def test_more_rejects_than_allowed_stop_the_import(tmp_path: Path, engine: Engine) -> None:
    """With a limit, the reject beyond it stops; what came before is stored."""
    path = file(tmp_path, "points.csv", HEAD + ROW + "bad\n" * 3)
    with Import(path) as source, pytest.raises(CopyError) as caught:
        source.run(engine, rejects_max=2)
    assert isinstance(caught.value.__cause__, TooManyRejectsError)
    with MemoryEngine() as other, Import(path) as source:
        assert source.run(other, rejects_max=3).rejects == 3
        assert stored(other) == ONE


def test_policy_errors_are_rejects_with_their_point(tmp_path: Path) -> None:
    """What only the store can refuse is told by the point, and the others are stored."""
    path = file(tmp_path, "points.csv", HEAD + ROW + "cpu,a,2,2.5\n")
    with MemoryEngine(duplicate_policy="error") as engine:
        engine.write([(Labels("cpu", host="a"), 1, 0.5)])
        report = run(engine, path)
    assert report.copied.accepted == 1
    (reject,) = report.first_rejects
    assert reject.line is None
    assert reject.row == 'cpu{host="a"} 1 1.5'


# Columns.


@pytest.mark.parametrize(
    ("data", "choices", "name", "moment"),
    [
        ("time,host,value\n5,a,1\n", Choices(), 'value{host="a"}', 5 * 10**9),
        ("time,host,load\n5,a,1\n", Choices(), 'load{host="a"}', 5 * 10**9),
        ("ts,host,load\n1700000000000,a,1\n", Choices(), 'load{host="a"}', 1_700_000_000 * 10**9),
        ("Time_us,load\n5,1\n", Choices(), "load", 5_000),
        ("date,load\n1970-01-01T00:00:05Z,1\n", Choices(), "load", 5 * 10**9),
        ("time,a,b\n5,x,1\n", Choices(metric="m"), 'm{a="x"}', 5 * 10**9),
        ("time,a,b\n5,7,1\n", Choices(values=["b"]), 'b{a="7"}', 5 * 10**9),
        ("time,a,b\n5,x,1\n", Choices(labels=[]), "b", 5 * 10**9),
        ("x,y,z\n5,q,1\n", Choices(time="x", labels=["y"], values=["z"]), 'z{y="q"}', 5 * 10**9),
        ("time,v\n5,1\n", Choices(constants={"dc": "x"}), 'v{dc="x"}', 5 * 10**9),
        ("time,v\n5,1\n", Choices(constants={"__name__": "m"}), "m", 5 * 10**9),
        ("time,label_time,v\n5,q,1\n", Choices(), 'v{label_time="q"}', 5 * 10**9),
        ("time_ns,label_value,v\n5,q,1\n", Choices(), 'v{value="q"}', 5),
    ],
)
def test_columns_are_found_by_names_looks_and_choices(
    tmp_path: Path, engine: Engine, data: str, choices: Choices, name: str, moment: int
) -> None:
    """Times, values, labels and metrics are what the caller says, else what they look like."""
    report = run(engine, file(tmp_path, "points.csv", data), ImportOptions(choices=choices))
    assert report.rejects == 0
    assert stored(engine) == {name: [(moment, exact(1.0))]}


@pytest.mark.parametrize("bad", ["time,host,load\n", "x,a,1\n", "now,,\n"])
def test_a_bad_row_among_the_first_does_not_change_what_columns_are(
    tmp_path: Path, engine: Engine, bad: str
) -> None:
    """A head that is there twice, or a bad time, is one reject, and times are what most are."""
    path = file(tmp_path, "points.csv", f"time,host,load\n1,a,1\n{bad}2,a,1\n")
    report = run(engine, path)
    assert [reject.line for reject in report.first_rejects] == [3]
    assert stored(engine) == {'load{host="a"}': [(moment * 10**9, exact(1.0)) for moment in (1, 2)]}


def test_several_columns_of_values_are_several_metrics(tmp_path: Path, engine: Engine) -> None:
    """A wide file gives a metric for each column, behind the metric of the caller."""
    path = file(tmp_path, "rooms.csv", "time,room,celsius,humidity\n1,lab,20.5,40\n")
    run(engine, path, ImportOptions(choices=Choices(metric="air")))
    assert sorted(stored(engine)) == ['air_celsius{room="lab"}', 'air_humidity{room="lab"}']


@pytest.mark.parametrize(
    "choices",
    [
        Choices(time="nope"),
        Choices(values=["nope"]),
        Choices(labels=["nope"]),
        Choices(constants={"host": "x"}),
        Choices(metric="m", constants={"__name__": "m"}),
    ],
)
def test_choices_that_do_not_fit_are_refused(tmp_path: Path, choices: Choices) -> None:
    """Columns that are not there, and labels given twice, are a FormatError."""
    path = file(tmp_path, "points.csv", "time,host,load\n1,a,1\n")
    with pytest.raises(FormatError):
        Import(path, ImportOptions(choices=choices))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ImportOptions(separator="ab"),
        lambda: ImportOptions(separator='"'),
        lambda: ImportOptions(precision="h"),
        lambda: TimeForm("iso", "No/Where"),
        lambda: TimeForm("fortnights"),
    ],
)
def test_options_without_a_meaning_are_refused(make: Callable[[], object]) -> None:
    """A separator, unit, zone or form that there is not is an UnknownOptionError."""
    with pytest.raises(UnknownOptionError):
        make()


def test_a_separator_of_an_export_is_judged(tmp_path: Path, engine: Engine) -> None:
    """What could not be read back is not written: UnknownOptionError, and no file."""
    with pytest.raises(UnknownOptionError):
        export(engine, str(tmp_path / "points.csv"), separator='"')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "text", "value"),
    [
        (ValueForm.TEXT, "on", "on"),
        (ValueForm.JSON, "true", True),
        (ValueForm.INT, "12", 12),
        (ValueForm.FLOAT, "12", 12.0),
        (ValueForm.AUTO, "12", 12.0),
    ],
)
def test_values_are_meant_as_is_said(
    tmp_path: Path, engine: Engine, form: ValueForm, text: str, value: object
) -> None:
    """The form of values decides their kind."""
    path = file(tmp_path, "points.csv", f"time,v\n1,{text}\n")
    run(engine, path, ImportOptions(choices=Choices(values=["v"], value_form=form)))
    assert stored(engine) == {"v": [(10**9, exact(value))]}


def test_json_keys_that_come_later_are_labels(tmp_path: Path, engine: Engine) -> None:
    """A key of text that the first rows lack is a label; one of numbers is rejected."""
    rows = [{"time": 1, "v": 1.5}] * 150 + [
        {"time": 2, "v": 2.5, "host": "a"},
        {"time": 3, "v": 2.5, "w": 7},
        {"time": 4, "v": [1]},
        {"time": None, "v": 1},
    ]
    path = file(tmp_path, "points.jsonl", "\n".join(map(json.dumps, rows)))
    report = run(engine, path)
    assert [reject.line for reject in report.first_rejects] == [152, 153, 154]
    assert stored(engine) == {"v": [(10**9, exact(1.5))], 'v{host="a"}': [(2 * 10**9, exact(2.5))]}


# Parquet.


def test_parquet_has_rejects_too(tmp_path: Path, engine: Engine) -> None:
    """Rows with nulls, times out of bounds and values that do not fit are told by their number."""
    table = pa.table(
        {
            "host": pa.array(["a", "b", None, "a", "a", "a", ""]),
            "at": pa.array([1, None, 3, 4, 5, -6, 7], pa.timestamp("us", "Europe/Berlin")),
            "load": pa.array([1.5, 2.5, 3.5, None, 5.5, 6.5, float("nan")]),
            "state": pa.array([None, None, None, None, "on", None, None]),
        }
    )
    parquet.write_table(table, tmp_path / "points.parquet")
    choices = Choices(values=["load", "state"])
    report = run(engine, str(tmp_path / "points.parquet"), ImportOptions(choices=choices))
    assert [reject.line for reject in report.first_rejects] == [2, 4, 6]
    assert stored(engine) == {
        'load{host="a"}': [(1_000, exact(1.5)), (5_000, exact(5.5))],
        "load": [(3_000, exact(3.5)), (7_000, exact(float("nan")))],
        'state{host="a"}': [(5_000, exact("on"))],
    }


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([[1]]), "is no label"),
        (pa.array([{"a": 1}]), "is no label"),
        (pa.array([b"a"]), "is no label"),
    ],
)
def test_parquet_of_other_types_is_refused(tmp_path: Path, column: pa.Array, says: str) -> None:
    """Nested and binary columns are no labels, and that is told before anything is stored."""
    table = pa.table({"x": column, "time": pa.array([1]), "v": pa.array([1.5])})
    parquet.write_table(table, tmp_path / "points.parquet")
    with pytest.raises(FormatError, match=says):
        Import(str(tmp_path / "points.parquet"))
    with MemoryEngine() as engine:
        choices = Choices(values=["x"], labels=[])
        options = ImportOptions(choices=Choices(values=["x", "v"], metric="m"))
        report = run(engine, str(tmp_path / "points.parquet"), options)
        assert (report.rejects, report.copied.accepted) == (0, 2), choices


def test_a_damaged_parquet_file_is_told(tmp_path: Path, engine: Engine) -> None:
    """A page that does not decode stops the import with a FormatError."""
    table = pa.table(
        {"time": pa.array(range(1, 5_000)), "v": pa.array([1.5 * n for n in range(4_999)])}
    )
    path = tmp_path / "points.parquet"
    parquet.write_table(table, path)
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    with pytest.raises((CopyError, FormatError)) as caught:
        run(engine, str(path))
    error = caught.value
    assert isinstance(error.__cause__ if isinstance(error, CopyError) else error, FormatError)


# Blocks.


@given(st.lists(st.binary(max_size=12), max_size=12), st.integers(1, 16))
def test_blocks_are_the_file(pieces: list[bytes], size: int) -> None:
    """Blocks joined are the file, and each begins at the line that it says."""
    data = b"\n".join(pieces)
    found = [block for block in blocks(Pieces(data), size=size) if block.is_whole]
    lines = data.split(b"\n")
    for block in found:
        first = block.data.split(b"\n")[0]
        assert lines[block.line - 1] == first
    if all(len(line) < size for line in lines):
        assert b"".join(block.data for block in found) == data


def test_a_long_line_is_left_out_in_bounded_memory() -> None:
    """Of a line without an end only its beginning is given, and what follows is read."""
    source = Pieces(b"a\n" + b"x" * 100 + b"\nb\n")
    found = [(block.data[:5], block.line, block.is_whole) for block in blocks(source, size=16)]
    assert (b"xxxxx", 2, False) in found
    assert found[-1][0].endswith(b"b\n")
    assert LINE_MAX >= 1 << 20


# Resuming.


@pytest.mark.parametrize("name", ["points.csv", "points.jsonl", "points.lp", "points.parquet"])
def test_an_import_that_was_stopped_goes_on(tmp_path: Path, name: str) -> None:
    """Stopped anywhere and run again by its name, an import stores every point once."""
    path = str(tmp_path / name)
    with MemoryEngine() as source:
        for host in "abcdef":
            series = Labels("cpu", host=host)
            source.write([(series, moment, float(moment)) for moment in range(1, 4_000)])
        export(source, path)
    url = f"lmdb://{tmp_path / 'store'}?duplicate_policy=sum"
    for points in (5_000, 17_000):
        with tsengine.open(url) as engine, _Stopping(path, points) as reading:
            with pytest.raises(CopyError) as caught:
                reading.run(engine, producer="one")
            assert isinstance(caught.value.__cause__, KeyError)
    with tsengine.open(url) as engine, MemoryEngine() as whole:
        with Import(path) as last:
            assert last.run(engine, producer="one").copied.skipped > 0
        run(whole, path)
        assert stored(engine) == stored(whole)


class _Stopping(Import):
    """A file that fails behind so many points."""

    def __init__(self, path: str, points: int) -> None:
        super().__init__(path)
        self._points = points

    def _read(self, intake: Intake) -> Iterator[GroupedBatch]:
        for batch in super()._read(intake):
            yield batch
            self._points -= len(batch)
            if self._points < 0:
                raise KeyError("stopped")


def test_rejects_of_a_resumed_import_are_written_once(tmp_path: Path) -> None:
    """The file of rejects goes on behind its last whole line, and has every row once."""
    path = file(tmp_path, "points.csv", HEAD + "bad,1\n" + ROW + "bad,2\nbad,3\n")
    aside = tmp_path / "rejects.jsonl"
    with LmdbEngine(str(tmp_path / "store")) as engine:
        with Import(path) as source:
            source.run(engine, producer="one", rejects_path=str(aside))
        whole = aside.read_text()
        lines = whole.splitlines(keepends=True)
        aside.write_text(lines[0] + lines[1][:10])  # as a kill leaves it
        with Import(path) as source:
            report = source.run(engine, producer="one", rejects_path=str(aside))
        assert (report.rejects, report.copied.skipped, report.copied.accepted) == (3, 1, 0)
        assert aside.read_text() == whole


def test_imports_with_names_share_a_file_of_rejects(tmp_path: Path, engine: Engine) -> None:
    """Rejects of another file are no reason to leave those of this one out."""
    aside = tmp_path / "rejects.jsonl"
    for name in ("a", "b", "a"):
        path = file(tmp_path, f"{name}.csv", HEAD + f"{name},1\n" + ROW)
        with Import(path) as source:
            source.run(engine, producer=name, rejects_path=str(aside))
    told = [json.loads(line) for line in aside.read_text().splitlines()]
    assert [(one["import"], one["line"], one["row"]) for one in told] == [
        ("a", 2, "a,1"),
        ("b", 2, "b,1"),
    ]


@pytest.mark.parametrize("producer", [None, "one"])
def test_rejects_are_not_written_over_what_is_read(
    tmp_path: Path, engine: Engine, producer: str | None
) -> None:
    """A file that is imported cannot be the one of its rejects, by whatever name."""
    path = file(tmp_path, "points.csv", HEAD + ROW + "bad,1\n")
    (tmp_path / "link").symlink_to(path)
    for name in (path, str(tmp_path / "link")):
        with Import(path) as source, pytest.raises(UnknownOptionError, match="it is read"):
            source.run(engine, producer=producer, rejects_path=name)
    assert Path(path).read_text() == HEAD + ROW + "bad,1\n"
    assert stored(engine) == {}


def test_a_cancelled_import_says_what_landed(tmp_path: Path, engine: Engine) -> None:
    """An import is cancelled as a copy is."""
    cancel = threading.Event()
    cancel.set()
    with Import(file(tmp_path, "points.csv", HEAD + ROW)) as source:
        with pytest.raises(CopyCancelledError):
            source.run(engine, cancel=cancel)
        with pytest.raises(UnknownOptionError, match="once"):
            source.run(engine)


# Writing.


def test_an_export_that_fails_leaves_what_was_there(tmp_path: Path, engine: Engine) -> None:
    """A file is replaced when the new one is whole, and not by half of it."""
    path = tmp_path / "points.lp"
    path.write_text("as it was")
    engine.write([(Labels("a"), 1, 1.5), (Labels("b"), 1, float("nan"))])
    with pytest.raises(FormatError, match="NaN"):
        export(engine, str(path))
    assert path.read_text() == "as it was"
    assert os.listdir(tmp_path) == ["points.lp"]  # noqa: PTH208  # names are all that is asked
    export(engine, str(path), "a")
    assert path.read_text() == "a value=1.5 1\n"


def test_what_is_no_plain_file_is_written_to_as_it_is(tmp_path: Path, engine: Engine) -> None:
    """A pipe stays a pipe, a link a link, and a file that is replaced keeps its permissions."""
    engine.write([(Labels("a"), 1, 1.5)])
    pipe, target, link = tmp_path / "pipe", tmp_path / "target.lp", tmp_path / "link.lp"
    os.mkfifo(pipe)
    read = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        export(engine, str(pipe), file_format="line")
        assert os.read(read, 1_000) == b"a value=1.5 1\n"
    finally:
        os.close(read)
    assert pipe.is_fifo()
    target.write_text("as it was")
    target.chmod(0o600)
    link.symlink_to(target)
    export(engine, str(link))
    assert link.is_symlink()
    assert target.read_text() == "a value=1.5 1\n"
    assert target.stat().st_mode & 0o777 == 0o600
