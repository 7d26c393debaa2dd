"""`copy`, `verify`, `check`, `compact`, `snapshot`, `delete` and `demo` do what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tsengine
from tests.cli.program import PROGRAM, environment, invoke, run
from tsengine import Labels
from tsengine.pipeline.copying import POINTS_MAX

STOPPED = """
import os, signal, sys
from tsengine.backends.lmdb import LmdbEngine
from tsengine.cli.app import run

commit = LmdbEngine._commit

def stopped(engine, batches, mark):
    receipt = commit(engine, batches, mark)
    os.kill(os.getpid(), signal.SIGINT)
    return receipt

if sys.argv.pop(1) == "stop":
    LmdbEngine._commit = stopped
sys.exit(run())
"""
"""The program, with Ctrl-C after each commit."""


def stopped(how: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program with Ctrl-C after a commit."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", STOPPED, how, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_copy_is_the_same(folder: Path) -> None:
    """A copy verifies equal to its source, and its report stands on stderr alone."""
    source, target = f"lmdb://{folder}/metrics", f"lmdb://{folder}/new"
    ended = run("copy", source, target)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr.startswith("copied 589 points of 7 series")
    assert run("copy", source, f"lmdb://{folder}/quiet", "--quiet").stderr == ""
    for copied in (target, f"lmdb://{folder}/quiet"):
        assert run("verify", source, copied).returncode == 0


def test_ctrl_c_says_what_landed_and_the_copy_goes_on(tmp_path: Path) -> None:
    """130, how much landed, and a hint; the same command then stores the rest, nothing twice."""
    source, target = f"lmdb://{tmp_path}/source", f"lmdb://{tmp_path}/target?duplicate_policy=sum"
    count = 2 * POINTS_MAX + 1
    with tsengine.open(source) as engine:
        engine.write_series(Labels("m"), range(1, count + 1), [1.0] * count)
    first = stopped("stop", "copy", source, target, "--producer", "p")
    assert first.returncode == 130
    assert "the copy was cancelled" in first.stderr
    assert f"{POINTS_MAX} points had landed" in first.stderr
    assert "hint: with --producer" in first.stderr
    assert "Traceback" not in first.stderr
    second = stopped("go", "copy", source, target, "--producer", "p")
    assert second.returncode == 0
    assert f"{POINTS_MAX:,} copied before" in second.stderr
    assert run("verify", source, target).returncode == 0


def test_points_that_cannot_be_stored_are_set_aside(tmp_path: Path) -> None:
    """Without --rejects the copy stops, 3; with it each is there with its reason, and it is 1."""
    source, target = f"lmdb://{tmp_path}/source", f"lmdb://{tmp_path}/target?min_timestamp=3"
    with tsengine.open(source) as engine:
        engine.write_series(Labels("m"), [1, 2, 3, 4], [1.0, float("nan"), 3.0, 4.0])
    stopped_at = run("copy", source, target)
    assert stopped_at.returncode == 3
    assert "Traceback" not in stopped_at.stderr
    file = tmp_path / "rejects.jsonl"
    ended = run("copy", source, target, "--rejects", file)
    assert ended.returncode == 1
    assert "rejected 2 points" in ended.stderr
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [tsengine.timestamp(row["timestamp"]) for row in rows] == [1, 2]
    assert [row["value"] for row in rows] == [1.0, {"$float": "nan"}]
    assert all("min_timestamp" in row["reason"] or "earli" in row["reason"] for row in rows)
    with tsengine.open(target, read_only=True) as engine:
        assert engine.count() == 2


def test_a_difference_is_exit_code_1(folder: Path) -> None:
    """`verify` names the first difference, and says so to scripts."""
    with tsengine.open(f"lmdb://{folder}/archive") as engine:
        engine.write([(Labels("requests_total", host="web-1"), 1, 0.5)])
    ended = run("verify", f"lmdb://{folder}/metrics", f"lmdb://{folder}/archive")
    assert ended.returncode == 1
    assert 'requests_total{host="web-1"}' in ended.stderr
    assert "(1970-01-01T00:00:00.000000001Z)" in ended.stderr
    same = run("verify", f"lmdb://{folder}/metrics", f"lmdb://{folder}/archive", "cpu_usage")
    assert same.returncode == 0


@pytest.mark.parametrize("is_written", [False, True])
def test_damage_is_exit_code_1(folder: Path, is_written: bool) -> None:
    """`check` passes a sound store, beside its writer too, and names the place of a damage."""
    url = f"lmdb://{folder}/metrics"
    writer = tsengine.open(url) if is_written else None
    assert run("check", url).returncode == 0
    if writer is not None:
        writer.close()
    data = folder / "metrics" / "data.mdb"
    data.write_bytes(data.read_bytes().replace(b"cpu_usage", b"cpu_usagf"))
    ended = run("check", url)
    assert ended.returncode == 1
    assert ended.stderr.startswith("tsengine: ")
    assert "Traceback" not in ended.stderr


def test_reads_work_beside_a_writer_and_writes_say_who_it_is(folder: Path) -> None:
    """With the store open for writing elsewhere: query answers, compact is refused with a hint."""
    url = f"lmdb://{folder}/metrics"
    with tsengine.open(url):
        assert run("query", url, "cpu_usage").returncode == 0
        ended = run("compact", url)
    assert ended.returncode == 3
    assert "hint: commands that only read work beside a writer" in ended.stderr


def test_compact_and_snapshot_report(folder: Path) -> None:
    """`compact` tells sizes; a snapshot opens as a store, and does not overwrite."""
    url = f"lmdb://{folder}/metrics"
    assert run("compact", url).stderr.startswith("compacted: ")
    assert run("snapshot", url, folder / "copy").returncode == 0
    assert run("verify", url, f"lmdb://{folder}/copy").returncode == 0
    again = run("snapshot", url, folder / "copy")
    assert again.returncode == 3
    assert "exist" in again.stderr


def test_delete_says_and_deletes_what_was_asked(folder: Path) -> None:
    """A dry run changes nothing; a range leaves the series; without one they go."""
    url = f"lmdb://{folder}/metrics"
    ended = run("delete", url, "cpu_usage", "--end", "2026-01-01T12:00:00Z", "--dry-run")
    told = "144 rows of 3 series, from the beginning to 2026-01-01T12:00:00.000000000Z"
    assert ended.stdout == f"would delete {told}\n"
    with tsengine.open(url, read_only=True) as engine:
        assert engine.count("cpu_usage") == 294
    ended = run("delete", url, "cpu_usage", "--end", "2026-01-01T12:00:00Z", "--yes")
    assert (ended.returncode, ended.stderr) == (0, f"deleted {told}\n")
    ended = run("delete", url, "requests_total", "--yes")
    assert ended.stderr == "deleted 3 series with all their 294 rows\n"
    with tsengine.open(url, read_only=True) as engine:
        assert engine.count("cpu_usage") == 150
        assert list(engine.series("requests_total")) == []


def test_delete_does_nothing_where_nobody_answers(folder: Path) -> None:
    """Without a terminal and --yes it is refused; so is neither a selector nor --all, or both."""
    url = f"lmdb://{folder}/metrics"
    for arguments in (["cpu_usage"], ["--yes"], ["cpu_usage", "--all", "--yes"]):
        ended = run("delete", url, *arguments, stdin="y\n")
        assert ended.returncode == 2
    with tsengine.open(url, read_only=True) as engine:
        assert engine.count("cpu_usage") == 294
    assert run("delete", url, "--all", "--yes").returncode == 0
    with tsengine.open(url, read_only=True) as engine:
        assert list(engine.series()) == []


@pytest.mark.parametrize("has_readings", [True, False])
def test_the_demo_comes_back_exactly(tmp_path: Path, has_readings: bool) -> None:
    """With real readings and without their extra, what was written is read, and the store stays."""
    without = "" if has_readings else "import sys; sys.modules['bokeh_sampledata'] = None; "
    ended = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-c"),
            f"{without}from tsengine.cli.__main__ import main; main()",
            *("demo", str(tmp_path / "store")),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "exactly those written" in ended.stdout
    assert ("generated" in ended.stdout) is not has_readings
    with tsengine.open(f"lmdb://{tmp_path}/store", read_only=True) as engine:
        assert engine.count() > 30_000
    assert invoke("demo", tmp_path / "store").exit_code == 2


def test_the_demo_leaves_what_is_there(tmp_path: Path) -> None:
    """A folder that holds something is refused and stays as it was."""
    (tmp_path / "letter.txt").write_text("mine")
    ended = invoke("demo", tmp_path)
    assert ended.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_the_program_is_what_is_tested() -> None:
    """`python -m tsengine.cli` is the console script that is installed."""
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="tsengine")
    assert script.value == "tsengine.cli.__main__:main"
    assert PROGRAM[-1] == "tsengine.cli"
