from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from tsengine.backends.postgres.location import Location, libpq_options, parse_url
from tsengine.errors import UnknownOptionError

KNOWN = libpq_options()
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(TEXTS, TEXTS, TEXTS, st.integers(1, 65535), TEXTS)
@example("u", ":/?#[]@%&= '\\", "h", 1, "d/@")
def test_every_part_reaches_libpq_as_it_was_meant(
    user: str, password: str, database: str, port: int, name: str
) -> None:
    """Whatever characters a part has, encoded in a URL it comes out at libpq unchanged."""
    encoded = [quote(part, safe="") for part in (user, password, database, name)]
    url = "postgresql://{}:{}@host:{}/{}?application_name={}".format(
        *encoded[:2], port, *encoded[2:]
    )
    told = conninfo_to_dict(parse_url(url, KNOWN).conninfo())
    assert told["user"] == user
    assert told["password"] == password
    assert told["dbname"] == database
    assert str(told["port"]) == str(port)
    assert told["host"] == "host"
    assert told["application_name"] == name


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("", {}),
        ("/db", {"dbname": "db"}),
        ("host", {"host": "host"}),
        ("[::1]:5433/db", {"host": "::1", "port": "5433", "dbname": "db"}),
        ("a:1,b:2", {"host": "a,b", "port": "1,2"}),
        ("a,b:2", {"host": "a,b", "port": ",2"}),
        ("me@", {"user": "me"}),
        ("%2Ftmp%2Fsocket/db", {"host": "/tmp/socket", "dbname": "db"}),
    ],
)
def test_locations_are_read_as_libpq_reads_them(location: str, expected: dict[str, str]) -> None:
    """Parts may be missing; there may be several hosts, IPv6, a socket's folder."""
    defaults = Location.parse("", {}).parameters
    assert Location.parse(location, {}).parameters == {**defaults, **expected}


def test_parameters_go_before_the_location_and_the_defaults() -> None:
    """What stands behind the ? wins; TLS and timeouts pass through."""
    url = "postgresql://a/db?host=b&sslmode=verify-full&connect_timeout=3&keepalives_idle=99"
    parameters = parse_url(url, KNOWN).parameters
    assert parameters["host"] == "b"
    assert parameters["sslmode"] == "verify-full"
    assert parameters["keepalives_idle"] == "99"
    assert parse_url(url, KNOWN).timeout == 3


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://me:{SECRET}@host/db",
        f"postgresql://me:a/{SECRET}@host/db",
        f"postgresql://me:a@{SECRET}@host/db",
        f"postgresql://me:a:{SECRET}@host/db",
        f"postgresql://me:a?{SECRET}@host/db",
        f"postgresql://me:a?{SECRET}=1@host/db",
        f"postgresql://host:{SECRET}/db",
        f"postgresql://host/db?pass word={SECRET}",
        f"postgresql://host/db?password={SECRET}&password={SECRET}",
        f"postgresql://host/db?client_encoding={SECRET}",
        f"postgresql://host/db?nonsense={SECRET}",
        f"postgresql://me:%ff{SECRET}@host/db",
        f"postgresql://me:%00{SECRET}@host/db",
        f"postgresql://[::1{SECRET}/db",
    ],
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: str) -> None:
    """The error of a URL says what is wrong, and nothing that may be a piece of a password."""
    with pytest.raises(UnknownOptionError) as caught:
        parse_url(url, KNOWN)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or SECRET not in str(caught.value.__context__)


def test_a_location_shows_no_secret() -> None:
    """Its text and its repr name the server and the database, not who connects with what."""
    location = parse_url(f"postgresql://me:{SECRET}@host:1/db?sslpassword={SECRET}", KNOWN)
    assert str(location) == "host:1/db"
    assert SECRET not in repr(location)
