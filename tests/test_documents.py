"""The pages of docs/ say what is so: their code runs, and their reference is complete."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

import tsengine
import tsengine.aio
import tsengine.backends.lmdb
import tsengine.backends.memory
import tsengine.backends.postgres
import tsengine.formats
import tsengine.testing
from tests.documents import Session, blocks
from tests.postgres.shared import shared_cluster
from tests.postgres.stores import admin

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [
    page.relative_to(DOCS)
    for page in sorted(DOCS.rglob("*.md"))
    if page.relative_to(DOCS).parts[0] not in ("_build", "design")  # those say why, not how
]
RUN = [
    page for page in PAGES if any(b.language in ("python", "console") for b in blocks(DOCS / page))
]
PUBLIC = {
    f"{module.__name__}.{name}"
    for module in (
        tsengine,
        tsengine.aio,
        tsengine.formats,
        tsengine.testing,
        tsengine.backends.lmdb,
        tsengine.backends.memory,
        tsengine.backends.postgres,
    )
    for name in module.__all__
}


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let libpq find a server with a database `metrics` and roles `app` and `viewer`."""
    cluster = shared_cluster()
    monkeypatch.setenv("PGHOST", str(cluster.folder))
    monkeypatch.setenv("PGPORT", str(cluster.port))
    monkeypatch.setenv("PGUSER", cluster.user)
    admin().execute("CREATE ROLE app LOGIN; CREATE ROLE viewer LOGIN")
    admin().execute("CREATE DATABASE metrics")
    yield
    admin().execute("DROP DATABASE metrics WITH (FORCE)")
    admin().execute("DROP ROLE app; DROP ROLE viewer")


@pytest.mark.parametrize("page", RUN, ids=str)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The blocks of a page run one after the other in an empty folder, and print what it says."""
    if "<!-- needs: postgresql -->" in (DOCS / page).read_text(encoding="utf-8"):
        request.getfixturevalue("database")
    monkeypatch.chdir(tmp_path)
    session = Session()
    for block in blocks(DOCS / page):
        session.run(block)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_fence_is_found(page: Path) -> None:
    """No block escapes the tests by its fence: each is the beginning of a line, or none of code."""
    text = (DOCS / page).read_text(encoding="utf-8")
    fences = re.findall(r"^\s*`{3,}(?:python|console)\b", text, re.MULTILINE)
    assert len(fences) == sum(
        block.language in ("python", "console") and not block.code.isspace()
        for block in blocks(DOCS / page)
        if not block.hidden
    )


@pytest.mark.timeout(300)  # ten seconds, and a minute where others have the machine
def test_the_documentation_builds_whole(tmp_path: Path) -> None:
    """Sphinx warns of nothing, every public name can be looked up, no page asks another host."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    inventory = InventoryFile.loads((tmp_path / "objects.inv").read_bytes(), uri="")
    found = {name for kind, names in inventory.data.items() if kind[:3] == "py:" for name in names}
    assert sorted(PUBLIC - found) == []
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|link)\b[^>]*\b(?:src|href)=\"([^\"]*)\"", text)
        assert not [where for where in loaded if re.match(r"(?:\w+:)?//", where)], page.name


SAID = "```python\nprint(1)\nprint('…')\n```\n\n```text\n{}\n```\n"


@pytest.mark.parametrize(
    ("text", "is_so"),
    [
        (SAID.format("1\n…"), True),
        (SAID.format("1\n..."), True),
        (SAID.format("2\n…"), False),
        (SAID.format("1"), False),
        ("```python\nx = 1\n```\n\nThen:\n\n```python\nprint(x)\n```\n\n```text\n1\n```\n", True),
        ("<!-- run\nx = 2\n-->\n\n```python\nassert x == 2\n```\n", True),
        ("<!-- raises: KeyError -->\n```python\n{}[1]\n```\n", True),
        ("<!-- raises: KeyError -->\n```python\n[][1]\n```\n", False),
        ("<!-- raises: KeyError -->\n```python\n{}\n```\n", False),
        ("<!-- not run: it would raise -->\n```python\n{}[1]\n```\n", True),
        ("<!-- not run: stands alone -->\n\nText.\n", False),
        (
            "<!-- file: a.py -->\n```python\nprint(3)\n```\n```console\n$ python a.py\n3\n```\n",
            True,
        ),
        ("```console\n$ echo 1\n1\n$ echo 2\n3\n```\n", False),
        ("```console\n$ false\n```\n", False),
        ("```console\n$ false  # exits with 1\n```\n", True),
        ("```sh\nfalse\n```\n", True),
    ],
)
def test_a_page_passes_where_it_says_what_is_so(
    text: str, is_so: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The means of these tests: what a page says wrongly of its code makes it fail."""
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")

    def run() -> None:
        session = Session()
        for block in blocks(page):
            session.run(block)

    if is_so:
        run()
    else:
        with pytest.raises((AssertionError, IndexError)):
            run()
