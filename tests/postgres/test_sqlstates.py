from __future__ import annotations

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsengine import errors
from tsengine.backends.postgres.sqlstates import meaning, translate, without_secrets
from tsengine.retry import ErrorClass, classify

SQLSTATES = sorted(
    {
        error.sqlstate
        for error in vars(psycopg.errors).values()
        if isinstance(error, type) and issubclass(error, psycopg.Error) and error.sqlstate
    }
)

CLASSES = {
    ErrorClass.TRANSIENT: "08006 08001 40001 40P01 53100 53300 55P03 57014 57P01 57P02 57P03 58030",
    ErrorClass.TOO_LARGE: "53200 54000 54001 54023",
    ErrorClass.PERMANENT: "22001 22003 22P02 22021 23502 23503 23505 23514 23P01 P0001",
    ErrorClass.FATAL: "0A000 25006 28000 28P01 3D000 3F000 42501 42601 42703 42P01 42P10 XX001",
}


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [(state, kind) for kind, states in CLASSES.items() for state in states.split()],
)
def test_a_sqlstate_has_a_class(sqlstate: str, expected: ErrorClass) -> None:
    """What time heals is transient, limits ask for less, data is permanent, the rest fatal."""
    assert classify(meaning(sqlstate)("told by its type")) is expected


def test_a_connection_that_broke_is_transient() -> None:
    """An error without a SQLSTATE, of the connection, is tried again."""
    error = translate(psycopg.OperationalError("server closed the connection"), "writing")
    assert type(error) is errors.ServerConnectionError
    assert classify(error) is ErrorClass.TRANSIENT


@pytest.mark.parametrize("sqlstate", SQLSTATES)
def test_every_sqlstate_of_the_driver_is_translated(sqlstate: str) -> None:
    """Each SQLSTATE that the driver knows becomes an error of tsengine that says what failed."""
    raised = psycopg.errors.lookup(sqlstate)("words of the server")
    error = translate(raised, "writing points")
    assert type(error) is meaning(sqlstate)
    assert str(error) == f"writing points failed: words of the server (SQLSTATE {sqlstate})"


@given(st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=5, max_size=5))
def test_any_sqlstate_has_a_meaning(sqlstate: str) -> None:
    """A SQLSTATE that nobody has heard of is no reason to try again."""
    if meaning(sqlstate) is meaning("ZZZZZ"):
        assert classify(meaning(sqlstate)("told by its type")) is ErrorClass.FATAL


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ('FATAL:  password authentication failed for user "x"', errors.AccessDeniedError),
        ("fe_sendauth: no password supplied", errors.AccessDeniedError),
        ('no pg_hba.conf entry for host "1.2.3.4"', errors.AccessDeniedError),
        ('FATAL:  permission denied for database "x"', errors.AccessDeniedError),
        ('FATAL:  database "x" does not exist', errors.SchemaError),
        ("FATAL:  sorry, too many clients already", errors.ServerConnectionError),
        ("Connection refused", errors.ServerConnectionError),
    ],
)
def test_a_failed_connection_is_known_by_its_words(words: str, kind: type[Exception]) -> None:
    """What libpq tells has no SQLSTATE, and is told apart all the same."""
    assert type(translate(psycopg.OperationalError(words), "connecting", connecting=True)) is kind


@given(st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=8, max_size=20))
def test_no_password_gets_into_a_message(word: str) -> None:
    """The password of a URL or DSN that an error repeats is not repeated further."""
    secret = f"pw{word}"
    for text in (
        f"cannot parse postgresql://me:{secret}@host/db",
        f"cannot parse POSTGRES://me:{secret}@host",
        f"host=x password={secret} user=y",
        f"host=x password = '{secret} \\'x' user=y",
        f"sslpassword={secret}",
    ):
        assert secret not in without_secrets(text)
        error = translate(psycopg.OperationalError(text), "connecting", connecting=True)
        assert secret not in str(error)
        assert secret not in repr(error)
