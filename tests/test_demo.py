"""The demo runs, on the installed package, in a folder of the test's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"


def run_demo(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the demo as `make demo` does, with warnings as errors and a folder of ours."""
    return subprocess.run(
        [sys.executable, "-W", "error", str(DEMO), str(folder)],
        capture_output=True,
        text=True,
        timeout=100,  # below the hang timeout of a test, so that its output is shown
        check=False,
    )


def test_the_demo_ends_identical(tmp_path: Path) -> None:
    """The demo's store equals what pandas reads from the same files, and its last word says so."""
    store = tmp_path / "store"
    ended = run_demo(store)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[-1] == "identical"
    assert ended.stderr == ""
    assert str(store) in ended.stdout
    assert (store / "data.mdb").exists()


def test_the_demo_leaves_what_it_did_not_make(tmp_path: Path) -> None:
    """A folder that holds something is refused by name and stays as it was."""
    (tmp_path / "letter.txt").write_text("mine")
    ended = run_demo(tmp_path)
    assert ended.returncode == 2
    assert str(tmp_path) in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    assert (tmp_path / "letter.txt").read_text() == "mine"
