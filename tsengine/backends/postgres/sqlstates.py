"""SQLSTATE: what an error of a PostgreSQL server is, and what it calls for.

Every error of the driver leaves this backend as one of `tsengine.errors`, made by `translate`;
`tsengine.retry.classify` then knows its class by its type, so that buffers, copies and
`bulk_upsert` decide alike. The table below is the whole of that decision:

    TRANSIENT    connections (08, 57P), contention (40, 55P03, 55006), time (57014, 25P03),
                 a full disk (53100), too many clients (53300), what the system does (58, XX000)
    TOO_LARGE    limits of a statement (54), of memory (53200) and of temporary files (53400)
    PERMANENT    data (22), constraints (23, 44), a trigger's own word (P0001)
    FATAL        access (28, 42501), names, types and syntax (3D, 3F, 42), damage (XX001), and
                 all that is not listed
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import psycopg

from tsengine.errors import (
    AccessDeniedError,
    BatchTooLargeError,
    ContentionError,
    CorruptionError,
    DataRefusedError,
    ReadOnlyError,
    SchemaError,
    ServerConnectionError,
    ServerTimeoutError,
    StorageError,
    StorageFullError,
    TsEngineError,
    UnsupportedError,
)

UNKNOWN: Final = SchemaError
"""What a SQLSTATE means that the table does not have: nothing that would be better next time."""

_MEANINGS: Final[Mapping[str, type[TsEngineError]]] = {
    "08": ServerConnectionError,
    "0A": UnsupportedError,  # a feature that this server does not have
    "22": DataRefusedError,
    "23": DataRefusedError,
    "25006": ReadOnlyError,  # a standby, or a database set to read only
    "25P03": ServerConnectionError,  # idle in a transaction too long: the server hung up
    "25P04": ServerTimeoutError,  # transaction_timeout, from 17 on
    "28": AccessDeniedError,
    "3D": SchemaError,
    "3F": SchemaError,
    "40": ContentionError,
    "42": SchemaError,
    "42501": AccessDeniedError,
    "44": DataRefusedError,  # WITH CHECK OPTION of a view
    "53": StorageError,
    "53100": StorageFullError,
    "53200": BatchTooLargeError,  # out of memory: fewer rows take less
    "53300": ServerConnectionError,  # too many clients
    "53400": BatchTooLargeError,  # temp_file_limit, mostly
    "54": BatchTooLargeError,
    "55006": ContentionError,
    "55P03": ContentionError,  # lock_timeout
    "57014": ServerTimeoutError,  # statement_timeout; or somebody cancelled it
    "57P01": ServerConnectionError,  # an administrator ended the session
    "57P02": ServerConnectionError,  # another session crashed
    "57P03": ServerConnectionError,  # starting up or shutting down
    "57P04": SchemaError,  # the database was dropped
    "57P05": ServerConnectionError,  # idle_session_timeout
    "58": StorageError,
    "P0001": DataRefusedError,  # RAISE in a trigger
    "XX000": StorageError,  # such as "tuple concurrently updated"
    "XX001": CorruptionError,
    "XX002": CorruptionError,
}
"""By SQLSTATE, or by its first two characters where that is not listed."""

_AT_CONNECTING: Final = (
    ("password authentication failed", "28P01"),
    ("authentication failed", "28000"),
    ("no password supplied", "28P01"),
    ("no pg_hba.conf entry", "28000"),
    ("is not permitted to log in", "28000"),
    ("permission denied for database", "42501"),
    ("does not exist", "3D000"),
    ("is not currently accepting connections", "55000"),
)
"""libpq tells no SQLSTATE of a connection that failed, only the server's words. Where those are
not English the error is taken for one of the connection, and retried as often as those are."""

_URL_SECRET: Final = re.compile(r"(postgres(?:ql)?://[^\s:/@]*):[^\s@]*@", re.IGNORECASE)
_PARAMETER_SECRET: Final = re.compile(
    r"\b((?:ssl)?password|oauth_client_secret|scram_\w+_key)(\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)",
    re.IGNORECASE,
)


def meaning(sqlstate: str | None) -> type[TsEngineError]:
    """Give the type of error that a SQLSTATE means; None is a connection that broke."""
    if sqlstate is None:
        return ServerConnectionError
    return _MEANINGS.get(sqlstate) or _MEANINGS.get(sqlstate[:2]) or UNKNOWN


def translate(
    error: psycopg.Error, doing: str, *, connecting: bool = False, committing: bool = False
) -> TsEngineError:
    """Make an error of tsengine from one of the driver; raise it `from` that.

    Args:
        error: the driver's.
        doing: what failed, such as "writing points to localhost:5432/metrics"; no secret.
        connecting: whether there was no connection yet.
        committing: whether the COMMIT was on its way, so that its outcome is unknown where the
            connection broke.

    Returns:
        The error. Its message holds the server's own words and SQLSTATE, no secret of a DSN.
    """
    sqlstate = error.sqlstate
    if sqlstate is None and connecting:
        text = str(error)
        sqlstate = next((state for words, state in _AT_CONNECTING if words in text), None)
        if sqlstate is None and getattr(error.pgconn, "needs_password", False):
            sqlstate = "28P01"
    if sqlstate is None and not isinstance(error, psycopg.OperationalError):
        kind: type[TsEngineError] = UNKNOWN  # of the driver itself: it was called wrongly
    else:
        kind = meaning(sqlstate)
    message = f"{doing} failed: {_words(error)}" + (f" (SQLSTATE {sqlstate})" if sqlstate else "")
    if issubclass(kind, ServerConnectionError):
        return kind(message, commit_unknown=committing)
    return kind(message)


def is_misplaced(error: BaseException | None) -> bool:
    """Whether a row fits no partition: one may have been made for it while it waited for another.

    The server names the table then, and no constraint; a trigger that raises names neither.
    """
    return (
        isinstance(error, psycopg.errors.CheckViolation)
        and error.diag.table_name is not None
        and error.diag.constraint_name is None
    )


def without_secrets(text: str) -> str:
    """Give a text with the passwords of URLs and DSNs in it replaced by `***`."""
    return _PARAMETER_SECRET.sub(r"\1\2***", _URL_SECRET.sub(r"\1:***@", text))


def _words(error: psycopg.Error) -> str:
    primary, detail = error.diag.message_primary, error.diag.message_detail
    text = primary or str(error).strip() or type(error).__name__
    if detail:
        text += f": {detail}"
    return without_secrets(" ".join(text.split()))
