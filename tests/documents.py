"""Documents: the code blocks of Markdown pages, run as a reader would run them.

A page is a session: its blocks run one after the other, in one namespace and one empty folder.

- A block of `python` is run. A block of `text` right below it is what it prints.
- A block of `console` is run line by line where a line begins with `$ `, by bash, with the
  `tsengine` of this environment; what stands below such a line is what it prints, and may be left
  out. A command that fails has its exit code as a comment: `$ tsengine check x  # exits with 1`.
- Any other block is only shown.

Expected output may have `...` for what differs from run to run. A comment of HTML directly above a
block says what is special about it; pages show none of them:

    <!-- not run: reason -->        it is only shown
    <!-- file: sensor.py -->        it is written to that file, whatever its language
    <!-- raises: SelectorError -->  it ends with that error

`<!-- needs: postgresql -->` anywhere on a page lets libpq find a server with an empty database
`metrics` and roles `app` and `viewer`.

And a comment that begins with `run` is code of Python that is run and not shown, for what a page
needs and a reader has:

    <!-- run
    import os
    os.mkdir("data")
    -->
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

COMMAND_SECONDS_MAX: Final = 60

_PART: Final = re.compile(
    r"^<!-- (?P<mark>not run|file|raises): (?P<about>[^\n]+?) -->\n"
    r"|^<!-- run\n(?P<hidden>.*?)^-->\n"
    r"|^(?P<fence>`{3,})(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=fence)$\n?",
    re.DOTALL | re.MULTILINE,
)
_EXIT_CODE: Final = re.compile(r"  # exits with (\d+)$")


@dataclass(frozen=True)
class Block:
    """One block of a page.

    Attributes:
        place: page and line, for messages.
        language: what stands behind its fence.
        code: its lines.
        mark: `not run`, `file`, `raises`, or empty.
        about: what its mark says.
        expected: the text block right below it; None where there is none.
        hidden: whether no reader sees it.
    """

    place: str
    language: str
    code: str
    mark: str = ""
    about: str = ""
    expected: str | None = None
    hidden: bool = False


def blocks(page: Path) -> Iterator[Block]:
    """Give the blocks of a page, those that are hidden as well."""
    text = page.read_text(encoding="utf-8")
    parts = list(_PART.finditer(text))
    mark = about = ""
    for number, part in enumerate(parts):
        line = text.count("\n", 0, part.start())
        place = f"{page.name}, line {line + 1}"
        if part["mark"]:
            mark, about = part["mark"], part["about"]
            assert text.startswith("```", part.end()), f"{place}: no block below the comment"
            continue
        if part["hidden"] is not None:
            yield Block(place, "python", "\n" * (line + 1) + part["hidden"], hidden=True)
            continue
        language, code = part["language"].strip(), part["code"]
        expected = None
        if language == "python" and not mark:
            below = parts[number + 1] if number + 1 < len(parts) else part
            if below["language"] == "text" and not text[part.end() : below.start()].strip():
                expected = below["code"]
            code = "\n" * (line + 1) + code  # so that a traceback names the line of the page
        yield Block(place, language, code, mark, about, expected)
        mark = about = ""


class Session:
    """What runs the blocks of one page, in the folder that is current."""

    def __init__(self) -> None:
        self.names: dict[str, object] = {"__name__": "__main__"}

    def run(self, block: Block) -> str:
        """Run a block, and hold what it prints against what the page says; gives the former."""
        if block.mark == "not run":
            return ""
        if block.mark == "file":
            Path(block.about).write_text(block.code, encoding="utf-8")
            return ""
        if block.language == "console":
            return "".join(map(self._run_command, _commands(block)))
        if block.language != "python":
            return ""
        return self._run_python(block)

    def _run_python(self, block: Block) -> str:
        printed = io.StringIO()
        raised = ""
        with contextlib.redirect_stdout(printed):
            try:
                exec(compile(block.code, block.place, "exec"), self.names)
            except Exception as error:
                if block.mark != "raises":
                    raise
                raised = type(error).__name__
        if block.mark == "raises":
            assert raised == block.about, f"{block.place} raised {raised or 'nothing'}"
        if block.expected is not None:
            _compare(block.place, block.expected, printed.getvalue())
        return printed.getvalue()

    def _run_command(self, command: Command) -> str:
        here = str(Path(sys.executable).parent)
        done = subprocess.run(
            ["bash", "-c", command.line],
            check=False,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            env={**os.environ, "PATH": here + os.pathsep + os.environ["PATH"], "COLUMNS": "100"},
        )
        output = done.stdout + done.stderr
        assert done.returncode == command.exit_code, f"{command.place}: {done.returncode}: {output}"
        if command.expected:
            _compare(command.place, command.expected, output)
        return output


@dataclass(frozen=True)
class Command:
    """One command of a console block, what it prints and its exit code."""

    place: str
    line: str
    expected: str
    exit_code: int


def _commands(block: Block) -> Iterator[Command]:
    for part in re.split(r"^\$ ", block.code, flags=re.MULTILINE)[1:]:
        line, _, expected = part.partition("\n")
        while line.endswith("\\"):  # it goes on in the next line
            more, _, expected = expected.partition("\n")
            line = f"{line}\n{more}"
        exits = _EXIT_CODE.search(line)
        code = int(exits[1]) if exits else 0
        yield Command(f"{block.place}: {line}", line, expected, code)


def _compare(place: str, expected: str, printed: str) -> None:
    checker = doctest.OutputChecker()
    flags = doctest.ELLIPSIS
    wanted, got = (
        "".join(f"{line.rstrip()}\n" for line in text.rstrip("\n").split("\n"))
        for text in (expected, printed)
    )
    if not checker.check_output(wanted, got, flags):
        example = doctest.Example("", wanted)
        raise AssertionError(f"{place}: {checker.output_difference(example, got, flags)}")
