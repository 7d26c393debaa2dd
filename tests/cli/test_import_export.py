"""`tsengine import` and `tsengine export`, the real program on real files and pipes."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
import pytest

import tsengine
from tests.cli.program import PROGRAM, environment, run
from tsengine.cli.failures import ExitCode

HEAD = "__name__,host,timestamp_ns,value\n"


def rows(first: int, count: int, *, bad_every: int = 1_000) -> str:
    """Give rows of CSV, of which one in so many is bad."""
    return "".join(
        f"cpu,h{row % 10},{row if row % bad_every else 'never'},{row / 7!r}\n"
        for row in range(first, first + count)
    )


@pytest.mark.parametrize("name", ["points.csv.gz", "points.jsonl.zst", "points.parquet", "p.lp.xz"])
def test_what_is_exported_is_imported(tmp_path: Path, name: str) -> None:
    """Out of one store and into another, the rows are the same; both say what they did."""
    with tsengine.open(f"lmdb://{tmp_path / 'a'}") as engine:
        for host in "ab":
            labels = tsengine.Labels("cpu", host=host)
            engine.write([(labels, moment, moment / 7) for moment in range(1, 1_000)])
    path = tmp_path / name
    ended = run("export", f"lmdb://{tmp_path / 'a'}", path)
    assert (ended.returncode, ended.stdout) == (ExitCode.DONE, "")
    assert ended.stderr.startswith("exported 1,998 points of 2 series, in ")
    ended = run("import", f"lmdb://{tmp_path / 'b'}", path)
    assert (ended.returncode, ended.stdout) == (ExitCode.DONE, "")
    assert "imported 1,998 points of 2 series, in " in ended.stderr
    ended = run("verify", f"lmdb://{tmp_path / 'a'}", f"lmdb://{tmp_path / 'b'}")
    assert ended.returncode == ExitCode.DONE


@pytest.mark.parametrize("form", ["csv", "jsonl", "line", "parquet"])
def test_standard_output_and_input(tmp_path: Path, form: str) -> None:
    """Every format goes through pipes, with nothing but the rows in them."""
    with tsengine.open(f"lmdb://{tmp_path / 'a'}") as engine:
        engine.write([(tsengine.Labels("cpu", host="x"), moment, 0.5) for moment in (1, 2, 3)])
    with subprocess.Popen(
        [*PROGRAM, "export", f"lmdb://{tmp_path / 'a'}", "-", "--format", form, "--quiet"],
        env=environment(),
        stdout=subprocess.PIPE,
    ) as exporting:
        ended = subprocess.run(
            [*PROGRAM, "import", f"lmdb://{tmp_path / 'b'}", "--format", form, "--quiet"],
            env=environment(),
            stdin=exporting.stdout,
            capture_output=True,
            timeout=60,
            check=True,
        )
    assert ended.stderr == b""
    with tsengine.open(f"lmdb://{tmp_path / 'b'}", read_only=True) as engine:
        assert engine.count('cpu{host="x"}') == 3


def test_rejects_are_told_and_written(tmp_path: Path) -> None:
    """Bad rows end with 1, the first are shown, all are written, and good ones are stored."""
    aside = tmp_path / "bad.jsonl"
    ended = run(
        "import",
        f"lmdb://{tmp_path / 'a'}",
        *("--format", "csv", "--rejects", aside),
        stdin=HEAD + rows(1, 2_000),
    )
    assert ended.returncode == ExitCode.NO
    assert "labels: __name__, host" in ended.stderr
    assert "imported 1,998 points of 10 series" in ended.stderr
    assert "rejected 2 rows" in ended.stderr
    assert "line 1001: 'never' is no time since 1970" in ended.stderr
    assert [json.loads(line)["line"] for line in aside.read_text().splitlines()] == [1_001, 2_001]


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "says"),
    [
        (["nowhere.csv"], None, ExitCode.FAILED, "cannot open 'nowhere.csv'"),
        (["--format", "csv"], "", ExitCode.USAGE, "empty"),
        ([], "a", ExitCode.USAGE, "does not tell the format"),
        (["--format", "csv"], "a,b\n1,2\n", ExitCode.USAGE, "say which it is"),
        (["--format", "csv", "--time", "x"], "a,b\n1,2\n", ExitCode.USAGE, "no column 'x'"),
        (["--format", "csv", "--constant", "x"], "time,b\n1,2\n", ExitCode.USAGE, "NAME=VALUE"),
        (["--format", "csv", "--resume"], "time,b\n1,2\n", ExitCode.USAGE, "--producer"),
        (
            ["--format", "csv", "--max-rejects", "0"],
            "time,b\n1,2\nx,2\n",
            ExitCode.FAILED,
            "more than",
        ),
        (["--format", "line", "--metric", "x"], "a b=1 1", ExitCode.USAGE, "line protocol says"),
    ],
)
def test_mistakes_are_told_in_a_line(
    tmp_path: Path, arguments: list[str], stdin: str | None, code: ExitCode, says: str
) -> None:
    """A mistake gives its exit code and a message without a traceback, and makes no store."""
    ended = run("import", "lmdb://store", *arguments, folder=tmp_path, stdin=stdin)
    assert ended.returncode == code
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    if code is ExitCode.USAGE and "--resume" not in arguments:
        assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "closed", "code", "says"),
    [
        (["import", "lmdb://a", "--format", "line"], "<&-", ExitCode.FAILED, "it is closed"),
        (["export", "lmdb://store", "p.lp"], ">&-", ExitCode.DONE, "exported 1 points"),
        (["query", "lmdb://store"], ">&- 2>&-", ExitCode.DONE, ""),
        (["query", "lmdb://none"], "2>&-", ExitCode.FAILED, ""),
    ],
)
def test_a_stream_that_is_closed_is_no_bug(
    tmp_path: Path, arguments: list[str], closed: str, code: ExitCode, says: str
) -> None:
    """Standard streams that a shell has closed are told of, or written to by nobody."""
    with tsengine.open(f"lmdb://{tmp_path / 'store'}") as engine:
        engine.write([(tsengine.Labels("cpu"), 1, 0.5)])
    command = shlex.join([*PROGRAM, *arguments])
    ended = subprocess.run(
        f"exec {command} {closed}",
        shell=True,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr
    assert says in ended.stderr


def test_a_store_that_is_deleted_meanwhile_is_told_in_lines(tmp_path: Path) -> None:
    """An import whose store is removed ends with 3 and says so, without a traceback of any log."""
    store, aside = tmp_path / "a", tmp_path / "bad.jsonl"
    lines = b"cpu v=1 1\n" * 500_000  # more than a block
    with subprocess.Popen(
        [*PROGRAM, "import", f"lmdb://{store}", "--format", "line", "--rejects", aside],
        env=environment(),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as importing:
        assert importing.stdin is not None
        assert importing.stderr is not None
        importing.stdin.write(lines)
        while not aside.exists():  # until the store is open
            assert importing.poll() is None
            threading.Event().wait(0.01)
        shutil.rmtree(store)
        importing.stdin.close()
        told = importing.stderr.read().decode()
        assert importing.wait(60) == ExitCode.FAILED
    assert "removed" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("name", ["p.csv", "p.csv.gz", "p.lp.zst", "p.jsonl.xz", "p.parquet"])
def test_an_export_that_does_not_fit_leaves_nothing(tmp_path: Path, name: str) -> None:
    """Where there is no room, one line says so, and no half of a file stays."""
    values = np.random.default_rng(7).random(20_000)
    with tsengine.open(f"lmdb://{tmp_path / 'store'}") as engine:
        engine.write([(tsengine.Labels("cpu"), n, x) for n, x in enumerate(values.tolist(), 1)])
    (tmp_path / "out").mkdir()
    command = shlex.join([*PROGRAM, "export", "lmdb://store", f"out/{name}"])
    ended = subprocess.run(
        f"ulimit -f 64; exec {command}",  # files of 64 blocks, 32 or 64 kB
        shell=True,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == ExitCode.FAILED
    assert ended.stderr == f"tsengine: cannot write 'out/{name}': File too large\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_wide_file_with_options(tmp_path: Path) -> None:
    """Columns, times, zones, constants and joins are as the options say."""
    ended = run(
        "import",
        f"lmdb://{tmp_path / 'a'}?integers=int",
        *("--format", "csv", "--delimiter", ";", "--columns", "at;room;c;state".replace(";", ",")),
        *("--time", "at", "--time-format", "%d.%m.%Y %H:%M", "--timezone", "Europe/Berlin"),
        *("--value", "c", "--metric", "room", "--label", "room", "--constant", "house=here"),
        stdin="01.01.1970 01:00;kitchen;21;on\n01.01.1970 01:01;kitchen;22;off\n",
    )
    assert ended.returncode == ExitCode.NO  # the epoch itself is before min_timestamp
    with tsengine.open(f"lmdb://{tmp_path / 'a'}", read_only=True) as engine:
        (point,) = engine.latest()
    expected = tsengine.Labels("room", room="kitchen", house="here"), 60 * 10**9, 22
    assert tuple(point) == expected
    assert type(point.value) is int


def test_an_import_that_is_killed_goes_on(tmp_path: Path) -> None:
    """Killed and run again, every row is stored once, and every reject is written once."""
    text = HEAD + rows(1, 400_000, bad_every=50_000)
    path, aside = tmp_path / "points.csv", tmp_path / "bad.jsonl"
    path.write_text(text)
    url = f"lmdb://{tmp_path / 'a'}?duplicate_policy=sum"
    command = ["import", url, "--producer", "one", "--rejects", str(aside), "--format", "csv"]
    with subprocess.Popen(
        [*PROGRAM, *command], env=environment(), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as importing:
        assert importing.stdin is not None
        importing.stdin.write(text[: len(text) * 5 // 6].encode())
        importing.stdin.flush()
        landed = 0
        for _ in range(600):
            if (tmp_path / "a").exists():
                try:
                    with tsengine.open(f"lmdb://{tmp_path / 'a'}", read_only=True) as engine:
                        landed = engine.count()
                except tsengine.StorageError:
                    landed = 0  # it is being made
            if landed:
                break
            threading.Event().wait(0.1)
        importing.send_signal(signal.SIGKILL)
        importing.wait(60)
    assert 0 < landed < 399_992
    ended = run(*command, path)
    assert ended.returncode == ExitCode.NO
    skipped = re.search(r"([\d,]+) imported before", ended.stderr)
    assert skipped is not None
    assert int(skipped[1].replace(",", "")) >= landed
    run("import", f"lmdb://{tmp_path / 'b'}?duplicate_policy=sum", path)
    ended = run("verify", f"lmdb://{tmp_path / 'a'}", f"lmdb://{tmp_path / 'b'}")
    assert ended.returncode == ExitCode.DONE, ended.stderr
    told = [json.loads(line)["line"] for line in aside.read_text().splitlines()]
    assert told == list(range(50_001, 400_002, 50_000))


@pytest.mark.parametrize(
    ("head", "more"),
    [
        ("time,v\n1,1\n", "bad,row,x\n" * 150_000),
        ("time,v\n1,1\n", "\0" * 4_000_000),
        ("time,v\n" + "1,1\n" * 1_200_000, ""),  # more than a block
    ],
    ids=["rejects alone", "a line without an end", "a pipe that gives nothing"],
)
def test_an_import_stops_when_it_is_asked_to(tmp_path: Path, head: str, more: str) -> None:
    """SIGTERM ends an import whose input goes on, whatever comes of it, and what landed is told."""
    aside = tmp_path / "bad.jsonl"
    with subprocess.Popen(
        [*PROGRAM, "import", f"lmdb://{tmp_path / 'a'}", "--format", "csv", "--rejects", aside],
        env=environment(),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as importing:
        assert importing.stdin is not None
        assert importing.stderr is not None
        importing.stdin.write(head.encode())
        importing.stdin.flush()
        is_fed = threading.Event()
        feeding = threading.Thread(target=feed, args=(importing.stdin, more.encode(), is_fed))
        if more:
            feeding.start()
            assert is_fed.wait(30)
        while not aside.exists():  # until it is about to read on
            assert importing.poll() is None
            threading.Event().wait(0.01)
        importing.send_signal(signal.SIGTERM)
        try:
            assert importing.wait(30) == ExitCode.INTERRUPTED
        finally:
            importing.kill()
        assert b"the copy was cancelled" in importing.stderr.read()
        if more:
            feeding.join()


def feed(pipe: IO[bytes], piece: bytes, is_fed: threading.Event) -> None:
    """Write the same without an end, until nobody reads it; tell when the first are read."""
    with contextlib.suppress(BrokenPipeError):
        for _ in range(3):
            pipe.write(piece)
        is_fed.set()
        while True:
            pipe.write(piece)


def peak_megabytes(folder: Path, form: str, pieces: Iterable[bytes]) -> int:
    """Import from a pipe; give the most anonymous memory that the program was seen with."""
    peak = 0
    with subprocess.Popen(
        [*PROGRAM, "import", f"lmdb://{folder}", "--format", form, "--quiet"],
        env=environment(),
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as importing:
        assert importing.stdin is not None
        status = Path(f"/proc/{importing.pid}/status")
        for piece in pieces:
            importing.stdin.write(piece)
            found = re.search(r"^RssAnon:\s+(\d+) kB", status.read_text(), re.MULTILINE)
            peak = max(peak, int(found[1]) if found else 0)
        importing.stdin.close()
        assert importing.wait(60) in (ExitCode.DONE, ExitCode.NO)
    return peak // 1024


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Forty megabytes on standard input take the memory of a few blocks and commits."""
    many = [rows(first, 20_000).encode() for first in range(1, 1_400_000, 20_000)]
    peak = peak_megabytes(tmp_path / "a", "csv", [HEAD.encode(), *many])
    assert 0 < peak < 300


@pytest.mark.parametrize(
    ("form", "head", "piece"),
    [
        ("csv", b"time,v\n1,1\n", b"x" * (1 << 20)),
        ("csv", b'time,v\n1,1\n1,"', b"x" * (1 << 20)),
        ("line", b'a b=1 1\na b="', b"x" * (1 << 20)),
        ("jsonl", b'{"time":1,"v":1}\n', b"[" * (1 << 20)),
        ("csv", b"time,v\n1,1\n", b"\0" * (1 << 20)),
    ],
)
def test_a_line_without_an_end_takes_bounded_memory(
    tmp_path: Path, form: str, head: bytes, piece: bytes
) -> None:
    """What never ends is one reject, and takes no more memory the longer it is."""
    assert 0 < peak_megabytes(tmp_path / "a", form, [head, *[piece] * 60]) < 200
    with tsengine.open(f"lmdb://{tmp_path / 'a'}", read_only=True) as engine:
        assert engine.count() == 1
