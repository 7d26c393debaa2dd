"""README.md says what is so: its code runs, and its tables are those of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.duplicates import DuplicatePolicy
from tsengine.engine import Capability
from tsengine.options import STORE_OPTIONS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    """Give the text of a section, up to the next of its level."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """Give the cells of a section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def first_words(title: str) -> list[str]:
    """Give what stands in backquotes at the beginning of each row."""
    found = [re.match(r"`(\w+)`", row[0]) for row in rows(title)]
    return [match[1] for match in found if match]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of Python runs by itself, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    code = compile(BLOCKS[number], f"README.md, block {number}", "exec")
    exec(code, {"__name__": "readme"})


def test_there_is_code() -> None:
    """The blocks are found: a changed fence must not take them out of the tests."""
    assert len(BLOCKS) == README.count("```python") >= 3


def test_the_example_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first example prints the five seconds it asks for."""
    monkeypatch.chdir(tmp_path)
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.count("web-1") == 5
    assert "2026-01-01 00:00:04+00:00" in printed


def test_capabilities_are_those_declared() -> None:
    """The table of backends says yes where a backend declares a capability, else no."""
    said = {row[0].split("`")[1]: row[1:3] for row in rows("Backends") if row[0].startswith("`")}
    declared = {
        capability.value: [
            "yes" if capability in engine.capabilities else "no"
            for engine in (MemoryEngine, LmdbEngine)
        ]
        for capability in Capability
    }
    assert said == declared


def test_options_are_all_there() -> None:
    """The table of options names every option of every engine, and whose it is."""
    said = {row[0].strip("`"): row[1] for row in rows("Options")}
    own = {
        "memory": MemoryEngine.option_converters.keys() - STORE_OPTIONS.keys(),
        "lmdb": LmdbEngine.option_converters.keys() - STORE_OPTIONS.keys(),
        "store": STORE_OPTIONS.keys() - {"read_only"},
        "every engine": {"read_only"},
    }
    for whose, names in own.items():
        assert {name for name, of in said.items() if of == whose} == names


def test_policies_are_all_there() -> None:
    """The table of duplicate policies has each policy, in the order of the package."""
    assert first_words("Duplicate policies") == [policy.value for policy in DuplicatePolicy]


def test_promises_name_tests_that_exist() -> None:
    """Each row of the promises names tests, and each of them is defined somewhere."""
    sources = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("tests", "tsengine/testing")
        for path in sorted((ROOT / folder).rglob("*.py"))
    )
    promises = rows("What is promised")
    assert promises
    for row in promises:
        named = re.findall(r"`(test_\w+)`", row[2])
        assert named, row
        for name in named:
            assert f"def {name}(" in sources, name


def test_links_lead_somewhere() -> None:
    """Every relative link of the README is a file or folder of the project."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
