"""README.md says what is so: its code runs, and its tables are those of the package."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import Session, blocks
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.backends.postgres import PostgresEngine
from tsengine.backends.postgres.location import libpq_options
from tsengine.duplicates import DuplicatePolicy
from tsengine.engine import Capability
from tsengine.options import STORE_OPTIONS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [block for block in blocks(ROOT / "README.md") if block.language == "python"]


def section(title: str, text: str = README) -> str:
    """Give the text of a section, up to the next of its level."""
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str, text: str = README) -> list[list[str]]:
    """Give the cells of a section's table, without its head."""
    lines = [line for line in section(title, text).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def first_words(title: str) -> list[str]:
    """Give what stands in backquotes at the beginning of each row."""
    found = [re.match(r"`(\w+)`", row[0]) for row in rows(title)]
    return [match[1] for match in found if match]


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of Python runs by itself, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    Session().run(BLOCKS[number])


def test_code_runs_in_one_folder(tmp_path: Path) -> None:
    """All blocks run one after the other in one folder, where a reader tries them in turn."""
    program = tmp_path / "all.py"
    program.write_text("\n".join(block.code for block in BLOCKS), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "all.py"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr


def test_there_is_code() -> None:
    """The blocks are found: a changed fence must not take them out of the tests."""
    assert len(BLOCKS) == README.count("```python") >= 3


def test_the_example_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first example prints the five seconds it asks for."""
    monkeypatch.chdir(tmp_path)
    printed = Session().run(BLOCKS[0])
    assert printed.count("web-1") == 5
    assert "2026-01-01 00:00:04+00:00" in printed


def test_capabilities_are_those_declared() -> None:
    """The table of backends says yes where a backend declares a capability, else no."""
    said = {row[0].split("`")[1]: row[1:4] for row in rows("Backends") if row[0].startswith("`")}
    declared = {
        capability.value: [
            "yes" if capability in engine.capabilities else "no"
            for engine in (MemoryEngine, LmdbEngine, PostgresEngine)
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
        "postgresql": PostgresEngine.option_converters.keys()
        - STORE_OPTIONS.keys()
        - libpq_options().keys(),
        "store": STORE_OPTIONS.keys() - {"read_only"},
        "every engine": {"read_only"},
    }
    for whose, names in own.items():
        assert {name for name, of in said.items() if of == whose} == names


def test_policies_are_all_there() -> None:
    """The table of duplicate policies has each policy, in the order of the package."""
    assert first_words("Duplicate policies") == [policy.value for policy in DuplicatePolicy]


def defined_tests(how: str = r"def (test_\w+)\(") -> set[str]:
    """Give the names of all tests, ours and the kit's."""
    return {
        name
        for folder in ("tests", "tsengine/testing")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for name in re.findall(how, path.read_text(encoding="utf-8"))
    }


PROMISES = {
    "Durability, in plain words": README,
    "What is promised": f"\n#{(ROOT / 'docs' / 'promises.md').read_text(encoding='utf-8')}",
}


@pytest.mark.parametrize("title", PROMISES)
def test_promises_name_tests_that_exist(title: str) -> None:
    """Each row of the promises names tests, and each of them is defined somewhere."""
    defined = defined_tests()
    promises = rows(title, PROMISES[title])
    assert promises
    for row in promises:
        named = re.findall(r"`(test_\w+)`", row[2])
        assert named, row
        assert not set(named) - defined, row


def test_design_pages_name_tests_that_exist() -> None:
    """Each test and each file of tests that a design page names is there."""
    defined = defined_tests(r"\b(test_\w+)")  # the kit makes some by their names
    for page in sorted((ROOT / "docs" / "design").glob("*.md")):
        for name in re.findall(r"`(tests/[\w/]+\.py|test_\w+)`", page.read_text(encoding="utf-8")):
            assert name in defined or (ROOT / name).is_file(), f"{page.name} names {name}"


def test_links_lead_somewhere() -> None:
    """Every relative link of the README is a file or folder of the project."""
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
