from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tsengine
from tsengine import registry
from tsengine.duplicates import DuplicatePolicy
from tsengine.errors import (
    ConfigurationError,
    MissingDependencyError,
    NotOpenError,
    TsEngineError,
    UnknownBackendError,
    UnknownOptionError,
)
from tsengine.model import Labels

CPU = Labels("cpu", host="a")

Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution with one module and entry points, as pip leaves it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def install(name: str, entry_points: str, code: str) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[tsengine.backends]\n{entry_points}\n")
        (tmp_path / f"{name}.py").write_text(code)
        modules.append(name)
        importlib.invalidate_caches()

    yield install
    for name in modules:
        sys.modules.pop(name, None)
    registry._backends.cache_clear()
    registry._load.cache_clear()


TOY = """
from tsengine.backends.memory import MemoryEngine
from tsengine.options import choice

class Toy(MemoryEngine):
    option_converters = {**MemoryEngine.option_converters, "colour": choice("red", "blue")}

    def _restore(self):
        self._store = self._new_store()
"""


def test_a_memory_url_gives_an_open_store() -> None:
    """`memory://` opens an empty store, each call another."""
    with tsengine.open("memory://") as engine, tsengine.open("memory://") as other:
        engine.write([(CPU, 1, 1.0)])
        assert (engine.count(), other.count()) == (1, 0)
        assert type(engine).__name__ == "MemoryEngine"


def test_a_memory_url_with_a_path_opens_a_snapshot(tmp_path: Path) -> None:
    """`memory:///path` begins with what a snapshot wrote there."""
    path = tmp_path / "a snapshot?"
    with tsengine.open("memory://") as engine:
        engine.write([(CPU, 1, 1.0)])
        engine.snapshot(str(path))
    with tsengine.open(f"memory://{tmp_path}/a%20snapshot%3F") as engine:
        assert engine.count() == 1


@pytest.mark.parametrize("form", ["absolute", "relative"])
def test_an_lmdb_url_names_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """`lmdb:///path` is absolute, `lmdb://path` relative to the working directory."""
    monkeypatch.chdir(tmp_path)
    url = f"lmdb://{tmp_path}/a/store" if form == "absolute" else "lmdb://a/store"
    (tmp_path / "a").mkdir()
    with tsengine.open(url) as engine:
        engine.write([(CPU, 1, 1.0)])
    assert (tmp_path / "a" / "store").exists()
    with tsengine.open(url, read_only=True) as engine:
        assert engine.count() == 1


def test_options_stand_in_the_query_string_or_are_keywords() -> None:
    """Options in the URL are converted as those given as keywords; both may be used."""
    with tsengine.open(
        "memory://?duplicate_policy=sum&min_timestamp=2024-01-01T00:00:00%2B01:00",
        retention="5m",
        clock_ns=lambda: 7,
    ) as engine:
        assert engine.options.duplicate_policy is DuplicatePolicy.SUM
        assert engine.options.retention == 300 * 10**9
        assert engine.options.min_timestamp == tsengine.timestamp("2023-12-31T23:00:00Z")
    with tsengine.open("memory://?min_timestamp=2024-01-01T00:00:00+01:00") as engine:
        assert engine.options.min_timestamp == tsengine.timestamp("2023-12-31T23:00:00Z")


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("memory://?colour=red", {}, "'colour'.*duplicate_policy"),
        ("memory://", {"colour": "red"}, "'colour'.*duplicate_policy"),
        ("memory://?duplicate_policy=worst", {}, "duplicate_policy.*'worst'.*last"),
        ("memory://?integers=int&integers=int", {}, "'integers'.*twice"),
        ("memory://?integers=int", {"integers": "int"}, "'integers'.*twice"),
        ("memory://?integers", {}, "'integers'.*no value"),
        ("memory://?integers=int&", {}, "no value"),
        ("memory://?integers=%ff", {}, "UTF-8"),
        ("memory://?clock_ns=5", {}, "'clock_ns'"),
        ("memory://?location=x", {}, "'location'"),
        ("memory://", {"location": "x"}, "location"),
    ],
)
def test_an_option_that_is_wrong_is_named(
    url: str, options: dict[str, object], message: str
) -> None:
    """An option that is unknown, repeated or makes no sense raises, saying what would do."""
    with pytest.raises(UnknownOptionError, match=message):
        tsengine.open(url, **options)  # type: ignore[arg-type]  # `timeout` is not among them


@pytest.mark.parametrize(
    "url", ["redis://host", "", "MEMORY://", "memory:", "/var/lib/store", "://"]
)
def test_an_unknown_scheme_lists_the_known(url: str) -> None:
    """A URL that no backend answers raises, listing those that are there."""
    with pytest.raises(UnknownBackendError, match=r"lmdb://, memory://"):
        tsengine.open(url)


def test_a_url_is_text() -> None:
    """Something else than text raises the same error."""
    with pytest.raises(UnknownBackendError):
        tsengine.open(Path("/var/lib/store"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:hunter2@host/db",
        "user:hunter2@host/db",
        "hunter2@host",
        "redis://user:hunter2\u2100@host/db",
        "redis://user:pass#hunter2@[host/db",
        "toy://user:hunter2@host/db?colour=green",
        "toy://user:hunter2@host/db?unknown=1",
        "toy://user:hunter2@host/db?colour=red&colour=red",
        "toy://user:hunter2@host/db?colour",
        "toy://user:hunter2%ff@host/db",
    ],
)
def test_a_password_never_gets_into_a_message(install: Install, url: str) -> None:
    """Whatever is wrong with a URL, no message repeats its location."""
    install("toy_backend", "toy = toy_backend:Toy", TOY)
    with pytest.raises(TsEngineError) as caught:
        tsengine.open(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__


def test_backends_of_others_are_found(install: Install) -> None:
    """A distribution installed even after the first look answers its scheme, with its options."""
    with pytest.raises(UnknownBackendError):
        tsengine.open("toy://")
    install("toy_backend", "toy = toy_backend:Toy", TOY)
    with tsengine.open("toy://a%20place/b?colour=red") as engine:
        assert (engine.location, engine.backend_options) == ("a place/b", {"colour": "red"})
    engine.close()
    with pytest.raises(NotOpenError):
        engine.count()


def test_a_backend_is_imported_when_it_is_asked_for(install: Install) -> None:
    """Another backend that cannot be imported is in nobody's way."""
    install("broken_backend", "broken = broken_backend:Broken", "import no_such_driver")
    tsengine.open("memory://").close()
    with pytest.raises(
        MissingDependencyError, match=r"no_such_driver.*pip install 'broken_backend\[broken\]'"
    ):
        tsengine.open("broken://")


def test_what_is_no_engine_is_no_backend(install: Install) -> None:
    """An entry point that gives something else than an Engine class is named."""
    install("odd_backend", "odd = odd_backend:make", "def make(*_, **__): return 1")
    with pytest.raises(UnknownBackendError, match="odd_backend:make"):
        tsengine.open("odd://")


def test_two_backends_of_one_scheme_are_an_error(install: Install) -> None:
    """Which of two backends answers a scheme is not left to chance; twice the same is no two."""
    install("toy_backend", "toy = toy_backend:Toy\nrival = toy_backend:Toy", TOY)
    install("toy_again", "toy = toy_backend:Toy", "")
    install("toy_rival", "rival = toy_rival:Toy", TOY)
    registry._backends.cache_clear()
    tsengine.open("toy://").close()
    with pytest.raises(ConfigurationError, match="toy_rival:Toy"):
        tsengine.open("rival://")


def test_nobody_takes_over_a_scheme_of_ours(install: Install) -> None:
    """A backend of another package under one of our schemes is not opened by it."""
    install("toy_backend", "memory = toy_backend:Toy", TOY)
    registry._backends.cache_clear()
    with tsengine.open("memory://") as engine:
        assert type(engine).__name__ == "MemoryEngine"


@pytest.mark.parametrize("url", ["memory://me:a?s3cr3t@host/db", "memory://me:a?s3cr3t=1@host/db"])
def test_what_may_be_a_password_with_a_question_mark_is_not_repeated(url: str) -> None:
    """An @ behind a ? tells of a password that was not encoded, and is not repeated."""
    with pytest.raises(UnknownOptionError, match="%40") as caught:
        tsengine.open(url)
    assert "s3cr3t" not in str(caught.value)


def test_an_engine_is_made_without_being_opened(tmp_path: Path) -> None:
    """`unopened` touches nothing, and opens as `open` would have."""
    engine = registry.unopened(f"lmdb://{tmp_path}/store?retention=1d")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NotOpenError):
        engine.count()
    with engine.open():
        assert engine.options.retention == 86_400 * 10**9
    with pytest.raises(UnknownOptionError):
        registry.unopened("lmdb://store?colour=red")
