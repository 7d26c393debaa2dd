"""On a terminal the program asks, draws bars and colours; elsewhere it does none of it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import tsengine
from tests.cli.program import PROGRAM, environment, run
from tsengine import Labels


class Terminal:
    """The program on a terminal of 100 columns, for which somebody reads and types."""

    def __init__(self, *arguments: str, **more: str) -> None:
        self._master, slave = pty.openpty()
        self._process = subprocess.Popen(
            [*PROGRAM, *arguments],
            env=environment(COLUMNS="100", LINES="30", TERM="xterm-256color", **more),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            close_fds=True,
        )
        os.close(slave)
        self.shown = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def read_until(self, wanted: Callable[[str], bool]) -> None:
        """Read until that is seen, or the program ends."""
        while not wanted(self.shown):
            try:
                read = os.read(self._master, 1 << 16)
            except OSError:  # EIO: nobody has the terminal open any more
                return
            if not read:
                return
            self.shown += read.decode("utf-8", "replace")

    def type(self, text: str) -> None:
        """Type."""
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        """Send what Ctrl-C sends, once the program sleeps, waiting to be answered.

        Python that is about to read, and has looked for signals, would read first.
        """
        stat = Path(f"/proc/{self._process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "S":
            os.sched_yield()
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Read to the end; give the exit code."""
        self.read_until(lambda _: False)
        return self._process.wait(60)


def count(folder: Path) -> int:
    """Count the rows that tests delete."""
    with tsengine.open(f"lmdb://{folder}/metrics", read_only=True) as engine:
        return engine.count("cpu_usage")


def test_delete_asks_and_heeds_the_answer(folder: Path) -> None:
    """It says how many rows of how many series: no, and Enter alone, keep them; yes deletes."""
    before = count(folder)
    for answer, code, left in (("n\n", 1, before), ("\n", 1, before), ("y\n", 0, 0)):
        with Terminal("delete", f"lmdb://{folder}/metrics", "cpu_usage") as terminal:
            terminal.read_until(lambda shown: shown.endswith("? [y/N]: "))
            assert f"Delete 3 series with all their {before:,} rows?" in terminal.shown
            assert count(folder) == before
            terminal.type(answer)
            assert terminal.end() == code
        assert count(folder) == left


def test_ctrl_c_at_the_question_keeps_everything(folder: Path) -> None:
    """130, and no traceback."""
    before = count(folder)
    with Terminal("delete", f"lmdb://{folder}/metrics", "cpu_usage") as terminal:
        terminal.read_until(lambda shown: shown.endswith("? [y/N]: "))
        terminal.interrupt()
        assert terminal.end() == 130
        assert terminal.shown.endswith("tsengine: interrupted\r\n")
    assert count(folder) == before


def test_progress_is_for_terminals(tmp_path: Path) -> None:
    """A copy on a terminal shows a bar and how many points; with --quiet, or in a pipe, none."""
    source = f"lmdb://{tmp_path}/source"
    with tsengine.open(source) as engine:
        engine.write_series(Labels("m"), range(1, 2_001), [0.5] * 2_000)
    with Terminal("copy", source, f"lmdb://{tmp_path}/first") as terminal:
        assert terminal.end() == 0
    assert "2,000 points" in terminal.shown
    assert "━" in terminal.shown
    with Terminal("copy", source, f"lmdb://{tmp_path}/second", "--quiet") as terminal:
        assert terminal.end() == 0
    assert terminal.shown == ""
    assert "━" not in run("copy", source, f"lmdb://{tmp_path}/third").stderr
    with Terminal("verify", source, f"lmdb://{tmp_path}/third") as terminal:
        assert terminal.end() == 0
    assert "1 series" in terminal.shown


def test_rows_are_a_table_on_a_terminal_and_csv_elsewhere(folder: Path) -> None:
    """The format that suits who reads it; --format has the last word."""
    arguments = ("labels", f"lmdb://{folder}/metrics", "region")
    assert run(*arguments).stdout == "value\neu\nus\n"
    with Terminal("labels", f"lmdb://{folder}/metrics") as terminal:
        assert terminal.end() == 0
    assert "name      values" in terminal.shown
    with Terminal("labels", f"lmdb://{folder}/metrics", "--format", "csv") as terminal:
        assert terminal.end() == 0
    assert "name,values" in terminal.shown


def test_colours_are_for_terminals_that_want_them(folder: Path) -> None:
    """A plot is coloured on a terminal, and not with NO_COLOR."""
    arguments = ("plot", f"lmdb://{folder}/metrics", "cpu_usage")
    with Terminal(*arguments) as terminal:
        assert terminal.end() == 0
    assert "\x1b[" in terminal.shown
    with Terminal(*arguments, NO_COLOR="1") as terminal:
        assert terminal.end() == 0
    assert "\x1b[" not in terminal.shown
