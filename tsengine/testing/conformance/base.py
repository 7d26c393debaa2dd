"""How the suite runs: where engines come from, what is deselected, and without pytest."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

import pytest

from tsengine.engine import Capability, Engine
from tsengine.errors import (
    ForkedError,
    UnknownOptionError,
    UnsavedPointsError,
    UnsupportedError,
)
from tsengine.model import Labels

_Function = TypeVar("_Function", bound=Callable[..., object])

A = Labels("cpu", host="a")
B = Labels("cpu", host="b")
C = Labels("memory", host="a", zone="eu")
"""Three series that tests write to."""


def requires(*capabilities: Capability) -> Callable[[_Function], _Function]:
    """Mark a test that makes sense only where a backend declares all of these."""

    def mark(function: _Function) -> _Function:
        function.__dict__["requires"] = frozenset(capabilities)
        return function

    return mark


class ConformanceBase:
    """What every part of the suite stands on.

    A backend's own test class names its engine, and overrides `make_engine` where that is
    made in another way:

        class TestMyEngine(EngineConformance):
            engine_type = MyEngine

    Tests of what the backend does not declare are taken out of that class;
    `test_what_is_not_declared_is_refused` stands for them, its ids say which and how many.
    """

    engine_type: ClassVar[type[Engine]]
    not_declared: ClassVar[Mapping[Capability, tuple[str, ...]]] = {}
    """The tests that were taken out, by the capability they would need."""

    path: Path
    """A folder of this test's own."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        engine_type: type[Engine] | None = getattr(cls, "engine_type", None)
        if engine_type is None:
            return
        out: dict[Capability, tuple[str, ...]] = {}
        for name, function in inspect.getmembers(cls, inspect.isfunction):
            lacking = function.__dict__.get("requires", frozenset()) - engine_type.capabilities
            for capability in lacking:
                out[capability] = (*out.get(capability, ()), name)
            if lacking:
                setattr(cls, name, None)
        cls.not_declared = out
        runs = [
            f"{capability.value}: {len(names)} tests deselected"
            for capability, names in sorted(out.items())
        ]

        @pytest.mark.parametrize("lacking", runs)
        def refused(
            self: ConformanceBase, lacking: str, record_property: Callable[[str, object], None]
        ) -> None:
            """What a backend does not declare it refuses in a typed error, not half does it."""
            record_property("not declared", f"{type(self).__name__} lacks {lacking}")
            self.refuses(Capability(lacking.partition(":")[0]))

        cls.test_what_is_not_declared_is_refused = refused if runs else None

    test_what_is_not_declared_is_refused: ClassVar[Callable[..., None] | None]

    def refuses(self, capability: Capability) -> None:
        """Check that what a capability would allow raises a typed error."""
        if capability is Capability.RETENTION:
            with pytest.raises(UnsupportedError):
                self.make_engine(self.path / "store", retention="1h")
        elif capability is Capability.CAP:
            for option in ("max_points", "max_points_per_series"):
                with pytest.raises(UnknownOptionError):
                    self.make_engine(self.path / "store", **{option: 5})
        elif capability is Capability.SNAPSHOT_FILES:
            with pytest.raises(UnsupportedError):
                self.open().snapshot(str(self.path / "copy"))
        elif capability is Capability.PRODUCER_MARKS:
            with pytest.raises(UnsupportedError):
                self.open().high_water("producer")

    def make_engine(self, path: Path, **options: object) -> Engine:
        """Make an engine, unopened, over the store at `path`.

        Args:
            path: in a folder that exists; nothing is there, or a store that an engine of
                this kind left.
            options: of the engine, `clock_ns` among them.
        """
        return self.engine_type(str(path), **options)  # type: ignore[arg-type]  # clock_ns is among the options

    def open_snapshot(self, path: Path) -> Engine:
        """Make an engine, unopened, over what `Engine.snapshot(path)` wrote."""
        return self.make_engine(path)

    # Life of a test.

    @pytest.fixture(autouse=True)
    def _life(self, tmp_path: Path) -> Iterator[None]:
        self.begin(tmp_path)
        yield
        self.end()

    def begin(self, path: Path) -> None:
        """Prepare for one test, in an empty folder."""
        self.path = path
        self._engines: list[Engine] = []

    def end(self) -> None:
        """Check what is still open, then close it."""
        for engine in self._engines:
            if is_open(engine):
                engine.check()
            try:
                engine.close()
            except (UnsavedPointsError, ForkedError):
                pass

    def open(self, name: str = "store", /, **options: object) -> Engine:
        """Open the store of a name, which the end of the test closes."""
        engine = self.make_engine(self.path / name, **options)
        self._engines.append(engine)
        return engine.open()


def is_open(engine: Engine) -> bool:
    """Whether an engine can be asked."""
    try:
        engine.stats()
    except Exception:  # noqa: BLE001  # whatever the reason, it cannot
        return False
    return True


def run_suite(
    suite: type[ConformanceBase], path: Path, *, pattern: str = ""
) -> dict[str, BaseException]:
    """Run a suite without pytest, as to show that it catches a planted bug.

    Args:
        suite: a class as pytest would collect it.
        path: an empty folder.
        pattern: run only tests whose name contains this.

    Returns:
        What each failing test raised, by its name.
    """
    failures: dict[str, BaseException] = {}
    for name, function in inspect.getmembers(suite, inspect.isfunction):
        if not name.startswith("test_") or pattern not in name:
            continue
        for number, arguments in enumerate(_parameters(function)):
            if "record_property" in inspect.signature(function).parameters:
                arguments["record_property"] = lambda _name, _value: None
            test = suite()
            place = path / f"{name}-{number}"
            place.mkdir(parents=True)
            test.begin(place)
            try:
                function(test, **arguments)
                test.end()
            except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  # as asked for
                failures[name] = error
                _give_up(test)
    return failures


def _give_up(test: ConformanceBase) -> None:
    for engine in test._engines:
        try:
            engine.close()
        except Exception:  # noqa: BLE001, S112  # the test has failed already
            continue


def _parameters(function: Callable[..., object]) -> Iterator[dict[str, object]]:
    """Give the keyword arguments of each run that `parametrize` marks ask for."""
    choices: list[list[dict[str, object]]] = []
    for mark in getattr(function, "pytestmark", []):
        names = mark.args[0]
        split = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
        runs = []
        for given in mark.args[1]:
            values = getattr(given, "values", given)  # of a pytest.param
            if len(split) == 1 and values is given:
                values = (given,)
            runs.append(dict(zip(split, values, strict=True)))
        choices.append(runs)
    for combination in itertools.product(*choices):
        yield {name: value for run in combination for name, value in run.items()}


_REPORTED = pytest.StashKey[bool]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell what was deselected: a hook that a conftest imports, to have it in the summary."""
    if terminalreporter.config.stash.get(_REPORTED, False):
        return  # several of them imported it
    terminalreporter.config.stash[_REPORTED] = True
    lines = {
        str(value)
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "not declared"
    }
    if lines:
        terminalreporter.section("deselected, since the backend does not declare it")
        for line in sorted(lines):
            terminalreporter.write_line(line)
