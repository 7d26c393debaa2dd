"""Location: which server and database a URL means, and how to connect to it.

    postgresql://user:password@host:port/database?name=value

as libpq reads it: several hosts behind commas, IPv6 in brackets, every part optional, `PG…`
variables and the password file for what is missing. Names that libpq knows pass through, TLS
(`sslmode`, `sslrootcert` …) among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote

from psycopg import pq
from psycopg.conninfo import make_conninfo

from tsengine.errors import UnknownOptionError
from tsengine.options import Converter

_OURS_ALONE: Final = frozenset({"client_encoding", "fallback_application_name", "replication"})
"""What libpq knows and nobody may set: binary blocks hold UTF-8, and we speak SQL."""

_DEFAULTS: Final[Mapping[str, str]] = {
    "connect_timeout": "10",
    "fallback_application_name": "tsengine",
    "client_encoding": "UTF8",
    # A connection whose other side is gone is found out within half a minute where nothing is
    # on its way, and sooner by the deadline of a statement where something is.
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}

_ENCODE: Final = (
    "in a URL the characters : / ? # [ ] @ % in a user name, a password or the name of a "
    "database must be percent-encoded, such as @ as %40"
)


def _text(value: object) -> str:
    # No value in the message: it may be a secret.
    if isinstance(value, bool) or not isinstance(value, (str, int)) or "\0" in str(value):
        raise UnknownOptionError("a connection parameter is a text or an integer, without NUL")
    return str(value)


def libpq_options() -> dict[str, Converter]:
    """Give the parameters that libpq knows, as options of an engine."""
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    return dict.fromkeys(sorted(known - _OURS_ALONE), _text)


@dataclass(frozen=True, slots=True)
class Location:
    """A server and a database.

    Attributes:
        parameters: what libpq is told, by its keywords; holds secrets.
    """

    parameters: Mapping[str, str] = field(repr=False)

    @classmethod
    def parse(cls, location: str, parameters: Mapping[str, str]) -> Location:
        """Parse what stands behind `postgresql://`, still percent-encoded.

        Args:
            location: `user:password@host:port/database`.
            parameters: further ones, decoded; they go before those of the location.

        Raises:
            UnknownOptionError: it cannot be read. The message holds none of it.
        """
        told, _, database = location.partition("/")
        who, at, hosts = told.rpartition("@")
        if "@" in database or "/" in database or "@" in who:
            raise UnknownOptionError(f"the location of a database cannot be read: {_ENCODE}")
        user, _, password = who.partition(":")
        if ":" in password:
            raise UnknownOptionError(f"the location of a database cannot be read: {_ENCODE}")
        names, ports = _hosts(hosts if at else told)
        found = {
            "user": user,
            "password": password,
            "host": names,
            "port": ports,
            "dbname": database,
        }
        decoded = {name: _decode(value) for name, value in found.items() if value}
        return cls({**_DEFAULTS, **decoded, **parameters})

    def conninfo(self) -> str:
        """Give the connection string for libpq; holds secrets.

        Raises:
            UnknownOptionError: a parameter makes no sense.
        """
        return make_conninfo("", **self.parameters)

    @property
    def timeout(self) -> float:
        """Seconds that connecting may take, all hosts together; 0 and less mean no bound."""
        try:
            seconds = float(self.parameters["connect_timeout"])
        except ValueError:
            raise UnknownOptionError("connect_timeout is no number of seconds") from None
        return seconds if seconds > 0 else float("inf")

    def __str__(self) -> str:
        """Give host, port and database, which are no secrets."""
        host = self.parameters.get("host") or self.parameters.get("hostaddr") or "localhost"
        port = self.parameters.get("port", "5432")
        return f"{host}:{port}/{self.parameters.get('dbname', '')}"


def parse_url(url: str, known: Mapping[str, Callable[[object], object]]) -> Location:
    """Parse a whole URL, for callers that have no engine.

    Args:
        url: `postgresql://…` or `postgres://…`.
        known: the parameters that it may have.

    Raises:
        UnknownOptionError: it cannot be read; the message holds no value of it.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgresql", "postgres"):
        raise UnknownOptionError("the URL of a database begins with postgresql://")
    location, _, query = rest.partition("?")
    if "@" in query:  # a password with a ? in it, as likely as a parameter
        raise UnknownOptionError(f"the URL of a database has @ behind its ?: {_ENCODE}")
    parameters: dict[str, str] = {}
    for pair in query.split("&") if query else ():
        name, separator, value = pair.partition("=")
        if not separator or name not in known or name in parameters:
            shown = repr(name) if name.isidentifier() and len(name) < 64 and separator else "one"
            raise UnknownOptionError(
                f"the parameters of a URL are name=value, each once, of those that libpq knows; "
                f"{shown} is not: {_ENCODE}"
            )
        parameters[name] = _text(_decode(value))
    return Location.parse(location, parameters)


def _hosts(hosts: str) -> tuple[str, str]:
    """Take `host:port,host:port` apart; the ports are empty where none is given."""
    names, ports = [], []
    for host in hosts.split(","):
        if host.startswith("["):
            name, bracket, port = host[1:].partition("]")
            if not bracket or (port and not port.startswith(":")):
                raise UnknownOptionError(f"the host of a database cannot be read: {_ENCODE}")
            port = port[1:]
        else:
            name, _, port = host.partition(":")
        if port and not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
            raise UnknownOptionError(f"the port of a database is no port: {_ENCODE}")
        names.append(name)
        ports.append(port)
    return ",".join(names), ",".join(ports) if any(ports) else ""


def _decode(text: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        decoded = "\0"
    if "\0" in decoded:
        # The exception would carry the text.
        raise UnknownOptionError("a URL holds percent-encoded bytes that are no text") from None
    return decoded
