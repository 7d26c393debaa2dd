"""What `aggregate`, `series`, `labels`, `stats` and `plot` print is what the engine answers."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import tsengine
from tests.cli.program import invoke, run
from tsengine.aggregation.asking import NEEDS
from tsengine.cli.output import TABLE_ROWS_AHEAD, Format

FUNCTIONS = [*(name for name in NEEDS if name != "quantile"), "quantile(0.95)"]
DAY = ("--start", "2026-01-01", "--end", "2026-01-02")


def table(*arguments: str | Path) -> list[list[str]]:
    """Give the rows of the CSV that a command prints."""
    ended = invoke(*arguments, "--format", "csv")
    assert ended.exit_code == 0, ended.output
    return list(csv.reader(io.StringIO(ended.stdout, newline="")))


def records(*arguments: str | Path) -> list[dict[str, Any]]:
    """Give the objects of the JSON that a command prints."""
    ended = invoke(*arguments, "--format", "json")
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ([], {}),
        (["--every", "1h"], {"every": "1h"}),
        (["--every", "2h", "--by", "region"], {"every": "2h", "group_by": ["region"]}),
        (["--merge", "--every", "5h"], {"group_by": [], "every": "5h"}),
        (
            ["--every", "7m", "--origin", "2026-01-01T00:01:00Z", "--fill", "linear"],
            {"every": "7m", "origin": "2026-01-01T00:01:00Z", "fill": "linear"},
        ),
        (["--every", "5m", "--fill", "-1.5"], {"every": "5m", "fill": -1.5}),
        (["--every", "5m", "--fill", "null"], {"every": "5m", "fill": "null"}),
    ],
)
def test_aggregate_prints_what_the_engine_answers(
    stores: Path, options: list[str], asked: dict[str, str]
) -> None:
    """Every function, with windows, groups, origin and fill: one row a series and window."""
    url = f"lmdb://{stores}/metrics"
    given = [part for name in FUNCTIONS for part in ("-F", name)]
    head, *rows = table("aggregate", url, "cpu_usage", *given, *options, *DAY)
    assert head == ["series", "timestamp", *FUNCTIONS]
    assert rows
    with tsengine.open(url, read_only=True) as engine:
        for place, name in enumerate(FUNCTIONS, 2):
            answer = engine.aggregate(
                "cpu_usage",
                "2026-01-01T00:00:00Z",
                "2026-01-02T00:00:00Z",
                functions=[name],
                **asked,  # type: ignore[arg-type]  # by parameter
            )
            expected = [
                (batch.labels.id, time, value)
                for batch in answer
                for _, time, value in batch.points()
            ]
            parse = int if isinstance(expected[0][2], int) else float
            found = [(row[0], tsengine.timestamp(row[1]), parse(row[place])) for row in rows]
            assert [row[:2] for row in found] == [row[:2] for row in expected]
            ours, theirs = (np.array([row[2] for row in some]) for some in (found, expected))
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_all_formats_have_the_same_columns(stores: Path) -> None:
    """Table, CSV, JSON and JSON lines name the same columns, in one order."""
    url = f"lmdb://{stores}/metrics"
    for arguments in (
        ["query", url, "cpu_usage"],
        ["aggregate", url, "cpu_usage", "-F", "mean", "-F", "max"],
        ["series", url, "--long"],
        ["labels", url],
        ["stats", url],
    ):
        (head, *_), first = table(*arguments), records(*arguments)[0]
        assert list(first) == head
        line = invoke(*arguments, "--format", Format.JSONL).stdout.splitlines()[0]
        assert list(json.loads(line)) == head
        shown = invoke(*arguments, "--format", "table").stdout
        if arguments[0] == "stats":
            assert [line.split()[0] for line in shown.splitlines()] == head
        else:
            assert shown.splitlines()[0].split() == head


def test_series_are_listed_with_what_they_hold(stores: Path) -> None:
    """`series` gives the IDs; `--long` the rows, first and last time, and last value of each."""
    url = f"lmdb://{stores}/metrics"
    with tsengine.open(url, read_only=True) as engine:
        assert [row["series"] for row in records("series", url)] == [
            labels.id for labels in engine.series()
        ]
        for row, newest in zip(records("series", url, "--long"), engine.latest(), strict=True):
            assert row["series"] == newest.labels.id
            assert row["rows"] == engine.count(newest.labels)
            assert tsengine.timestamp(str(row["last"])) == newest.timestamp
            assert row["last_value"] == newest.value


def test_a_series_without_rows_is_listed(folder: Path) -> None:
    """Its rows were deleted: it has none, no first and no last."""
    with tsengine.open(f"lmdb://{folder}/metrics") as engine:
        engine.delete("door", 0)
    row = records("series", f"lmdb://{folder}/metrics", "door", "--long")
    assert row == [
        {"series": 'door{room="lab"}', "rows": 0, "first": None, "last": None, "last_value": None}
    ]


def test_labels_are_listed(stores: Path) -> None:
    """`labels` gives names and how many values each has; with a name, the values."""
    url = f"lmdb://{stores}/metrics"
    assert {row["name"]: row["values"] for row in records("labels", url)} == {
        "__name__": 3,
        "host": 3,
        "region": 2,
        "room": 1,
    }
    assert table("labels", url, "host") == [["value"], ["db-1"], ["web-1"], ["web-2"]]


def test_stats_are_those_of_the_engine(stores: Path) -> None:
    """They have all that the engine tells, bytes a point, and the merges that are owed."""
    url = f"lmdb://{stores}/metrics"
    (row,) = records("stats", url)
    with tsengine.open(url, read_only=True) as engine:
        stats = engine.stats()
    assert row["points"] == stats.points
    assert row["bytes_per_point"] == stats.bytes / stats.points
    assert set(stats.details) < set(row)
    assert row["merges_owed"] == 0
    shown = invoke("stats", url, "--format", "table").stdout
    assert " KiB" in shown


def test_a_long_table_is_streamed_and_whole(tmp_path: Path) -> None:
    """Rows behind those that the widths were taken from are there, wider than these or not."""
    url = f"lmdb://{tmp_path}/store"
    count, wide = TABLE_ROWS_AHEAD + 10, "-1.2345678901234568e-300"
    with tsengine.open(url) as engine:
        values = [1.0] * (count - 1) + [float(wide)]
        engine.write_series(tsengine.Labels("m"), range(1, count + 1), values)
    lines = invoke("query", url, "--format", "table").stdout.splitlines()
    assert len(lines) == count + 1
    assert lines[-1].split()[-1] == wide


def test_a_table_cannot_steer_the_terminal(stores: Path) -> None:
    """What a label or a value holds is escaped where people look, and exact for programs."""
    url = f"lmdb://{stores}/metrics"
    assert "\x1b" not in invoke("query", url, "door", "--format", "table").stdout
    (row,) = records("query", url, "door")
    assert row["value"] == {"open": True, "by": "\x1b[31m"}


def test_a_plot_shows_each_series(stores: Path) -> None:
    """On the terminal: lines, a legend with each series, the range; no colour in a pipe."""
    url = f"lmdb://{stores}/metrics"
    ended = run("plot", url, "cpu_usage", *DAY, "--width", "60", "--height", "8")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("│") == 16
    for host in ("web-1", "web-2", "db-1"):
        assert f'host="{host}"' in ended.stdout
    assert "mean, 2026-01-01T00:00:00" in ended.stdout
    assert "\x1b" not in ended.stdout


def test_a_plot_says_what_it_leaves_out(stores: Path) -> None:
    """More series than lines: the number of the others; none at all: that there are none."""
    url = f"lmdb://{stores}/metrics"
    assert "2 more series are left out" in invoke("plot", url, "cpu_usage", "--lines", "1").stderr
    assert "no numbers to plot" in invoke("plot", url, "nothing").stderr
    assert "no numbers to plot" in invoke("plot", url, "cpu_usage", "--start", "2200-01-01").stderr


def test_a_plot_in_a_file_is_an_image(stores: Path, tmp_path: Path) -> None:
    """PNG and SVG by the name of the file; another name is refused."""
    url = f"lmdb://{stores}/metrics"
    for name in ("cpu.png", "cpu.svg"):
        assert invoke("plot", url, "cpu_usage", "-o", tmp_path / name).exit_code == 0
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    root = ElementTree.fromstring((tmp_path / "cpu.svg").read_text())
    assert root.tag.endswith("svg")
    refused = invoke("plot", url, "cpu_usage", "-o", tmp_path / "cpu.doc")
    assert refused.exit_code == 2
    assert "neither .png nor .svg" in refused.stderr
