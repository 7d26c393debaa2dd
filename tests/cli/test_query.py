"""`tsengine query` prints the rows of `Engine.query`, each such that it reads back the same."""

from __future__ import annotations

import base64
import csv
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import tsengine
from tests.cli.program import PROGRAM, environment, invoke, run
from tsengine import Labels, ValueKind
from tsengine.model import RANGE_END_MAX
from tsengine.testing import strategies
from tsengine.testing.reference import agrees

CPU = Labels("cpu_usage", host="web-1")


def from_json(value: Any) -> object:
    """Undo what the help of `query` says of values in JSON."""
    if isinstance(value, dict):
        if value.keys() == {"$float"}:
            return float(value["$float"])
        if value.keys() == {"$bytes"}:
            return base64.b64decode(value["$bytes"])
        if value.keys() == {"$map"}:
            value = value["$map"]
        return {key: from_json(item) for key, item in value.items()}
    return [from_json(item) for item in value] if isinstance(value, list) else value


def from_csv(text: str) -> object:
    """Read a value in CSV: a float, an integer, or JSON."""
    if text in ("nan", "inf", "-inf"):
        return float(text)
    return from_json(json.loads(text))


def parse(form: str, output: str) -> list[tuple[str, int, object]]:
    """Read what was printed as users would."""
    if form == "csv":
        head, *rows = csv.reader(io.StringIO(output, newline=""))
        assert head == ["series", "timestamp", "value"]
        return [(name, tsengine.timestamp(time), from_csv(value)) for name, time, value in rows]
    found = json.loads(output) if form == "json" else map(json.loads, io.StringIO(output))
    return [
        (row["series"], tsengine.timestamp(row["timestamp"]), from_json(row["value"]))
        for row in found
    ]


@st.composite
def stored(draw: st.DrawFn) -> tuple[list[strategies.Point], str | None, str | None]:
    """Points of several kinds, and a range."""
    series = draw(strategies.label_sets())
    kinds = [(labels, draw(st.sampled_from(ValueKind))) for labels in series]
    points = draw(strategies.points(kinds))
    start, end = draw(strategies.ranges())
    last = None if end is None or end == RANGE_END_MAX else str(end)
    return points, None if start is None else str(start), last


@settings(max_examples=60)
@given(case=stored(), form=st.sampled_from(["csv", "json", "jsonl"]))
def test_what_is_printed_reads_back_exactly(
    case: tuple[list[strategies.Point], str | None, str | None], form: str
) -> None:
    """Output of every machine-readable format parses to the rows of `Engine.query`."""
    points, start, end = case
    bounds = [*(["--start", start] if start else []), *(["--end", end] if end else [])]
    with tempfile.TemporaryDirectory() as folder:
        url = f"lmdb://{folder}?integers=int"
        with tsengine.open(url) as engine:
            engine.write(points)
            first, last = (None if bound is None else int(bound) for bound in (start, end))
            expected = [
                (batch.labels.id, time, plain(value))
                for batch in engine.query(None, first, last)
                for _, time, value in batch.points()
            ]
        ended = invoke("query", url, *bounds, "-f", form)
    assert ended.exit_code == 0, ended.output
    found = parse(form, ended.stdout_bytes.decode())
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[:2] == theirs[:2]
        assert agrees(theirs[2], plain(ours[2]))


def plain(value: object) -> object:
    """Give the one NaN for any NaN: its payload is not printed."""
    if isinstance(value, float):
        return float("nan") if value != value else value
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def test_a_reader_that_goes_is_no_failure(tmp_path: Path) -> None:
    """`tsengine query … | head` ends at once, silently, and with success."""
    with tsengine.open(f"lmdb://{tmp_path}/store") as engine:
        engine.write_series(CPU, range(1, 200_001), [0.5] * 200_000)
    with subprocess.Popen(
        [*PROGRAM, "query", f"lmdb://{tmp_path}/store"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"series,timestamp,value\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """A wrong path is said with a hint and exit code 3; nothing appears there."""
    ended = run("query", f"lmdb://{tmp_path}/none")
    assert ended.returncode == 3
    assert ended.stdout == ""
    assert f"there is no store at {tmp_path}/none\nhint: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_bad_selector_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    """It is answered by its message and exit code 2, without a traceback."""
    tsengine.open(f"lmdb://{tmp_path}/store").close()
    ended = run("query", f"lmdb://{tmp_path}/store", "cpu{")
    assert ended.returncode == 2
    assert ended.stderr.startswith("tsengine: ")
    assert "Traceback" not in ended.stderr


MEASURE = """
import resource, sys
from tsengine.cli.app import run
run()
sys.stderr.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


def test_output_is_bounded_in_memory(tmp_path: Path) -> None:
    """Ten times the rows, the last of them 40 MB of output, take next to no more memory."""
    peaks = []
    for count in (40_000, 400_000):
        url = f"lmdb://{tmp_path}/{count}"
        with tsengine.open(url) as engine:
            for host in range(4):
                labels = Labels("cpu_usage", host=f"web-{host}")
                values = [number / 7 for number in range(count // 4)]
                engine.write_series(labels, range(1, count // 4 + 1), values)
        ended = subprocess.run(
            [sys.executable, "-c", MEASURE, "query", url, "--format", "jsonl"],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=100,
            check=True,
        )
        peaks.append(int(ended.stderr))  # kilobytes
    assert peaks[1] < peaks[0] + 64 * 1024
