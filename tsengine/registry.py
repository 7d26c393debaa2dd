"""Registry: from a URL to an open engine.

Backends are found through the entry-point group `tsengine.backends`, our own among them, and
imported when a URL asks for them: a driver that is not used is not needed.
"""

from __future__ import annotations

import functools
import threading
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from typing import Final
from urllib.parse import unquote

from tsengine.engine import Engine
from tsengine.errors import (
    ConfigurationError,
    MissingDependencyError,
    UnknownBackendError,
    UnknownOptionError,
)

GROUP: Final = "tsengine.backends"
"""The entry-point group. A name is the scheme of a URL; what it loads is a subclass of `Engine`
whose constructor takes the location first and options as keywords."""


def open(
    url: str,
    *,
    timeout: float | None = 0.0,
    cancel: threading.Event | None = None,
    **options: object,
) -> Engine:
    """Open a store.

    A URL is a scheme, a location and options: `scheme://location?name=value&name=value`.
    Each part may be percent-encoded; `?`, `&`, `=` and `%` that mean themselves must be.
    What stands in a URL never gets into a message, but for the scheme and the options: a
    location may hold a password.

    Args:
        url: `memory://`, `memory:///path/of/a/snapshot`, `lmdb:///absolute/path`,
            `lmdb://relative/path`, or one of an installed backend.
        timeout: seconds to wait while another process has the store open for writing; 0 for
            not at all, None for as long as it takes.
        cancel: gives up waiting when it is set.
        options: options of the backend, as Python values.

    Returns:
        The open engine; close it, or use it with `with`.

    Raises:
        UnknownBackendError: no backend has this scheme; lists those that are known.
        UnknownOptionError: an option is unknown, given twice, or makes no sense.
        MissingDependencyError: the backend needs a package that is not installed.
        StorageError: the store cannot be opened; StoreInUseError where another process has it.
        StoreInUseTimeoutError: it still had it after `timeout`.
        CancelledError: `cancel` was set.
    """
    return unopened(url, **options).open(timeout=timeout, cancel=cancel)


def unopened(url: str, **options: object) -> Engine:
    """Make the engine of a URL without opening it, as for a check of files that are not trusted.

    Raises:
        ConfigurationError: as in `open`.
    """
    scheme, location, given = _parse(url)
    backend = _load(_find(scheme))
    unknown = sorted(given.keys() - backend.option_converters.keys())
    if unknown:
        # A keyword may be more, such as a clock; what a URL says has to be an option.
        raise UnknownOptionError(
            f"unknown option {unknown[0]!r} in a {scheme}:// URL; known are "
            f"{', '.join(sorted(backend.option_converters))}"
        )
    twice = sorted(given.keys() & options.keys())
    if twice:
        raise UnknownOptionError(
            f"option {twice[0]!r} is given twice, in the URL and as a keyword; give it once"
        )
    if "location" in options:
        raise UnknownOptionError("the location of a store stands in its URL; it is no option")
    if not backend.takes_encoded_location:
        location = _decode(location)
    return backend(location, **options, **given)  # type: ignore[arg-type]  # clock_ns may be one


def _parse(url: object) -> tuple[str, str, dict[str, str]]:
    """Take a URL apart into scheme, location and options."""
    # By hand: urlsplit drops line breaks and puts what it does not like into its messages,
    # and parse_qsl takes the + of a time zone for a space.
    scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    if not separator:
        raise UnknownBackendError(
            "a store is told by a URL such as 'lmdb:///path'; known are " + _known_schemes()
        )
    location, _, query = rest.partition("?")
    options: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        name, separator, value = pair.partition("=")
        name = _decode(name)
        if "@" in query:  # it is a password with a ? in it, as likely as an option
            raise UnknownOptionError(
                "a URL has @ behind its ?; where these mean themselves, write %40 and %3F"
            )
        if not separator:
            raise UnknownOptionError(f"option {name!r} in a URL has no value; write {name}=value")
        if name in options:
            raise UnknownOptionError(f"option {name!r} is given twice in a URL; give it once")
        options[name] = _decode(value)
    return scheme, location, options


def _decode(text: str) -> str:
    # Not errors="strict": its exception would carry the text.
    decoded = unquote(text, errors="surrogateescape")
    if any("\ud800" <= character <= "\udfff" for character in decoded):
        raise UnknownOptionError("a URL holds percent-encoded bytes that are no UTF-8")
    return decoded


@functools.cache
def _backends() -> dict[str, list[EntryPoint]]:
    """The entry points by scheme; a distribution that is found twice counts once."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=GROUP):
        same = found.setdefault(entry.name, [])
        if entry.value not in [other.value for other in same]:
            same.append(entry)
    return found


@functools.cache
def _own_backends() -> dict[str, EntryPoint]:
    """The entry points of tsengine itself: to read those of all distributions takes 50 ms."""
    try:
        own = distribution("tsengine").entry_points
    except PackageNotFoundError:  # an unusual installation, which the long way may still find
        return {}
    return {entry.name: entry for entry in own.select(group=GROUP)}


def _find(scheme: str) -> EntryPoint:
    """Find the backend of a scheme; our own schemes are nobody else's."""
    own = _own_backends().get(scheme)
    if own is not None:
        return own
    if scheme not in _backends():
        _backends.cache_clear()  # it may have been installed since
    entries = _backends().get(scheme, [])
    if not entries:
        raise UnknownBackendError(f"no backend answers {scheme}://; known are {_known_schemes()}")
    if len(entries) > 1:
        rivals = " and ".join(entry.value for entry in entries)
        raise ConfigurationError(f"more than one backend answers {scheme}://: {rivals}")
    return entries[0]


def _known_schemes() -> str:
    return ", ".join(f"{scheme}://" for scheme in sorted(_backends())) or "none"


@functools.cache
def _load(entry: EntryPoint) -> type[Engine]:
    try:
        backend: object = entry.load()
    except ModuleNotFoundError as error:
        package = entry.dist.name if entry.dist is not None else "tsengine"
        raise MissingDependencyError(
            f"the backend {entry.name}:// needs the module {error.name!r}: "
            f"pip install '{package}[{entry.name}]'"
        ) from error
    if not (isinstance(backend, type) and issubclass(backend, Engine)):
        raise UnknownBackendError(
            f"what answers {entry.name}://, {entry.value}, is no subclass of tsengine.Engine"
        )
    return backend
