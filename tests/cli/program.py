"""The program `tsengine` in a process of its own, and in this one where that adds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from click.testing import CliRunner, Result

import tsengine
from tsengine.cli.app import app

PROGRAM: Final = (sys.executable, "-W", "error", "-m", "tsengine.cli")
"""What is tested, the sources or the installed package, in a process of its own."""

PACKAGES: Final = str(Path(tsengine.__file__).parents[1])
"""Where the package under test lies, found there in whatever folder the program is run."""


def environment(**more: str) -> dict[str, str]:
    """Give the variables of a process that runs the program."""
    return {**os.environ, "PYTHONPATH": PACKAGES, **more}


def run(
    *arguments: str | Path,
    folder: Path | None = None,
    stdin: str | None = None,
    more: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the program; neither of its outputs is a terminal.

    Args:
        arguments: of the program.
        folder: where it is run.
        stdin: what it reads.
        more: variables of its environment.
    """
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        cwd=folder,
        env=environment(**(more or {})),
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def invoke(*arguments: str | Path, stdin: str | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
