"""Every example in the help of a command runs as it stands, and every command has some."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from tests.cli.program import PROGRAM, environment, invoke
from tsengine.cli.app import COMMANDS, app

EXAMPLES = [
    line.strip()
    for command in COMMANDS
    for line in (command.epilog or "").splitlines()
    if line.startswith("  tsengine ")
]


def commands_of(line: str) -> list[str]:
    """Give the commands that a line runs."""
    return re.findall(r"\btsengine (\w+)", line)


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_runs(line: str, folder: Path) -> None:
    """It ends with 0, in a shell that looks at each part of a pipe, and tells of no bug."""
    program = folder / "bin" / "tsengine"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.join(PROGRAM)} "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{environment()['PATH']}"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        env=environment(PATH=path, TMPDIR=str(folder)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "bug" not in ended.stderr
    assert ended.stdout or ended.stderr or "--quiet" in line


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command.name))
def test_every_command_has_help_with_examples(command: click.Command) -> None:
    """Its help says what it does, explains each option, and shows examples of it."""
    ended = invoke(str(command.name), "--help")
    assert ended.exit_code == 0
    assert "Examples:\n    tsengine" in ended.stdout
    assert any(str(command.name) in commands_of(line) for line in EXAMPLES)
    assert all(option.help for option in command.params if isinstance(option, click.Option)), (
        "an option without help"
    )


def test_the_help_lists_commands_and_exit_codes() -> None:
    """`tsengine --help` names every command with a line about it, and what exit codes mean."""
    told = invoke("--help").stdout
    for command in app.commands.values():
        assert re.search(rf"^  {command.name} +\w", told, re.MULTILINE), command.name
    assert "..." not in told.partition("Commands:")[2], "a line that is cut"
    assert re.findall(r"^ +(\d+) +\w", told, re.MULTILINE) == ["0", "1", "2", "3", "70", "130"]
