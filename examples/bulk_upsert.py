"""Two tables as services have them, kept up to date by `bulk_upsert`.

    python examples/bulk_upsert.py postgresql://user:password@host/database
    python examples/bulk_upsert.py postgresql://… --rows 100000

It works in a schema of its own, `tsengine_example`, which it makes and, at the end, drops. There
are

* `sessions`: thirteen columns, five of them JSON, and a column `updated_at` that says when a row
  last changed. A migration brings all rows and keeps their own `updated_at`; a normal run brings
  what came since, and sets it where, and only where, something changed.
* `words`: a dictionary. A word that is there keeps its number; only new ones get one.

Each step says what became of its rows. The last word is `consistent`, or the exit status is 1.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import uuid
from collections.abc import Iterator
from typing import Final

import psycopg

from tsengine.backends.postgres import bulk_upsert
from tsengine.metrics import BulkUpsertReport

SCHEMA: Final = "tsengine_example"

TABLES: Final = f"""
    DROP SCHEMA IF EXISTS {SCHEMA} CASCADE;
    CREATE SCHEMA {SCHEMA};
    CREATE TABLE {SCHEMA}.sessions (
        session_id uuid PRIMARY KEY,
        user_id bigint NOT NULL,
        started_at timestamptz NOT NULL,
        ended_at timestamptz,
        status text NOT NULL,
        score double precision,
        device jsonb NOT NULL,
        location jsonb,
        events jsonb NOT NULL,
        settings jsonb NOT NULL,
        tags jsonb NOT NULL,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL
    );
    CREATE TABLE {SCHEMA}.words (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        word text NOT NULL UNIQUE
    );
"""

BEGINNING: Final = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)


def main(arguments: list[str] | None = None) -> int:
    """Run the example; 0 where the tables hold what they should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", help="a database in which a schema may be made")
    parser.add_argument("--rows", type=int, default=10_000, help="sessions (10000)")
    chosen = parser.parse_args(arguments)
    with psycopg.connect(chosen.url, autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute(TABLES)
        try:
            is_right = keep_sessions(chosen.url, connection, chosen.rows)
            is_right = keep_words(chosen.url, connection, chosen.rows) and is_right
        finally:
            connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
    print("consistent" if is_right else "NOT consistent")
    return 0 if is_right else 1


def sessions(count: int, *, ended: int = 0) -> Iterator[dict[str, object]]:
    """Give sessions as an application has them; the first ones may have ended meanwhile."""
    for number in range(count):
        started = BEGINNING + datetime.timedelta(seconds=number)
        has_ended = number < ended
        yield {
            "session_id": uuid.uuid5(uuid.NAMESPACE_OID, str(number)),
            "user_id": number % 1_000,
            "started_at": started,
            "ended_at": started + datetime.timedelta(hours=1) if has_ended else None,
            "status": "ended" if has_ended else "open",
            "score": number / 7,
            "device": {"kind": "phone", "version": [17, number % 10]},
            "location": None if number % 3 else {"latitude": 48.1, "longitude": 11.5},
            "events": [{"name": "opened", "after": 0.5}, {"name": "read", "after": number / 10}],
            "settings": {"language": "de", "theme": None},
            "tags": ["new"] if number % 2 else [],
            "created_at": started,
            "updated_at": started,
        }


def keep_sessions(url: str, connection: psycopg.Connection[tuple[object, ...]], rows: int) -> bool:
    """Migrate sessions, then bring changes; whether the table holds just these."""
    table = (SCHEMA, "sessions")
    migration = bulk_upsert(url, table, sessions(rows), key=["session_id"])
    say("migration", migration)

    def run(ended: int) -> BulkUpsertReport:
        return bulk_upsert(
            url,
            table,
            sessions(rows, ended=ended),
            key=["session_id"],
            preserve=["created_at"],
            touch=["updated_at"],
            progress=lambda report: print(f"    {report.submitted:,} rows so far"),
        )

    again, changed = run(0), run(rows // 10)
    say("the same again", again)
    say("a tenth has ended", changed)
    found = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE updated_at = started_at), "
        f"count(*) FILTER (WHERE ended_at IS NOT NULL) FROM {SCHEMA}.sessions"
    ).fetchone()
    kept = rows - rows // 10
    return (
        migration.inserted == rows
        and again.unchanged == rows
        and changed.updated == rows // 10
        and found == (rows, kept, rows // 10)
    )


def keep_words(url: str, connection: psycopg.Connection[tuple[object, ...]], rows: int) -> bool:
    """Add words to a dictionary, half of them known; whether the known kept their numbers."""
    words = [{"word": f"word {number}"} for number in range(rows)]

    def add(given: list[dict[str, str]]) -> BulkUpsertReport:
        return bulk_upsert(url, (SCHEMA, "words"), given, key=["word"], on_conflict="ignore")

    def numbered() -> set[tuple[object, ...]]:
        return set(connection.execute(f"SELECT id, word FROM {SCHEMA}.words").fetchall())

    first = add(words[::2])
    say("words", first)
    known = numbered()
    second = add(words)
    say("more words", second)
    return (
        second.inserted == rows - first.inserted
        and second.unchanged == first.inserted
        and len(numbered()) == rows
        and known <= numbered()
    )


def say(what: str, report: BulkUpsertReport) -> None:
    """Say what became of the rows of a step."""
    print(
        f"{what:<18} {report.submitted:>9,} rows: {report.inserted:,} inserted, "
        f"{report.updated:,} updated, {report.unchanged:,} unchanged"
    )


if __name__ == "__main__":
    sys.exit(main())
