from __future__ import annotations

import importlib.metadata
import inspect
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import tsengine
import tsengine.errors

MODULES = {module.name for module in pkgutil.iter_modules(tsengine.__path__)}
ERRORS = {
    name: error
    for name, error in vars(tsengine.errors).items()
    if inspect.isclass(error) and issubclass(error, Exception)
}


def test_the_public_names_are_those_of_all() -> None:
    """`__all__` names all there is in `tsengine`, but for its modules."""
    there = {name for name in vars(tsengine) if not name.startswith("_")} - MODULES
    assert there | {"__version__", "errors"} == set(tsengine.__all__)
    assert len(tsengine.__all__) == len(set(tsengine.__all__))
    assert not any(
        isinstance(getattr(tsengine, name), ModuleType)
        for name in tsengine.__all__
        if name != "errors"
    )


def test_every_error_is_public() -> None:
    """What tsengine raises can be caught by a name of `tsengine`."""
    for name, error in ERRORS.items():
        assert getattr(tsengine, name) is error


def test_the_tree_of_errors_is_drawn_as_it_is() -> None:
    """The drawing in `tsengine.errors` has each error under its parent, and no other."""
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (tsengine.errors.__doc__ or "").splitlines():
        if "Error" not in line or not line.lstrip(" │├└─")[:1].isupper() or not line[:4].isspace():
            continue
        depth = (len(line) - len(line.lstrip(" │├└─")) - 4) // 4
        name = line.lstrip(" │├└─").split()[0]
        drawn[name] = path[depth - 1] if depth else ""
        path[depth:] = [name]
    parents = {
        name: next((base.__name__ for base in error.__bases__ if base.__name__ in ERRORS), "")
        for name, error in ERRORS.items()
    }
    assert drawn == parents


def test_the_version_is_that_of_the_package() -> None:
    """`__version__` is the version that is installed."""
    assert tsengine.__version__ == importlib.metadata.version("tsengine")


@pytest.mark.parametrize(
    "module",
    ["lmdb", "pcodec", "pandas", "prometheus_client", "pyarrow", "hypothesis", "pytest"],
)
def test_an_import_brings_no_driver(module: str) -> None:
    """`import tsengine` imports no backend's driver, no optional package and no test tool."""
    script = f"import sys, tsengine; sys.exit({module!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
