"""Figure 24: `bulk_upsert` into two tables as services have them."""

from __future__ import annotations

import datetime
import random
import time
import uuid

from benchmarks.comparison import Line, say
from benchmarks.machine import freeze, fresh_folder
from benchmarks.postgres_server import Server
from benchmarks.setting import Setting
from tsengine.backends.postgres import bulk_upsert
from tsengine.backends.postgres.upserting import OnConflict

KEYS: dict[str, tuple[str, OnConflict]] = {
    "sessions": ("session_id", "update"),
    "words": ("word", "ignore"),
}
SESSIONS = """
    CREATE TABLE sessions (
        session_id uuid PRIMARY KEY, user_id bigint, started_at timestamptz, ended_at timestamptz,
        status text, score float8, device jsonb, location jsonb, events jsonb, settings jsonb,
        tags jsonb, created_at timestamptz, updated_at timestamptz
    )
"""
WORDS = """
    CREATE TABLE words (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, word text NOT NULL UNIQUE
    )
"""


def figure_24(setting: Setting) -> list[Line]:
    """`bulk_upsert` of sessions, new, unchanged and changed, and of a dictionary half known."""
    sizes = setting.sizes
    now = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    sessions = [session(number, now) for number in range(sizes.upserted_sessions)]
    changed = [row | {"status": "ended"} for row in sessions]
    words: list[dict[str, object]] = [
        {"word": f"word {number:08}"} for number in range(sizes.upserted_words)
    ]
    random.Random(3).shuffle(words)
    freeze()
    with fresh_folder(setting.folder) as folder, Server(folder) as server:
        url = server.cluster.local_url()
        with server.connect() as connection:

            def timed(rows: list[dict[str, object]], table: str) -> float:
                server.settle()
                key, conflict = KEYS[table]
                started = time.perf_counter()
                report = bulk_upsert(url, table, rows, key=[key], on_conflict=conflict)
                seconds = time.perf_counter() - started
                if report.submitted != len(rows):
                    raise RuntimeError(f"{report} is not of {len(rows)} rows")
                return len(rows) / seconds

            def fresh() -> float:
                connection.execute("DROP TABLE IF EXISTS sessions")
                connection.execute(SESSIONS)
                return timed(sessions, "sessions")

            def again() -> float:
                return timed(sessions, "sessions")

            def overwritten() -> float:
                return timed(changed, "sessions")

            def half_known() -> float:
                connection.execute("DROP TABLE IF EXISTS words")
                connection.execute(WORDS)
                bulk_upsert(url, "words", words[::2], key=["word"], on_conflict="ignore")
                return timed(words, "words")

            rates: dict[str, list[float]] = {}
            for turn in range(setting.rounds):
                for name, contest in (
                    ("new", fresh),
                    ("unchanged", again),
                    ("changed", overwritten),
                    ("words", half_known),
                ):
                    rates.setdefault(name, []).append(contest())
                    say(f"  round {turn + 1}: {name}: {rates[name][-1]:,.0f}")
    number = f"{len(sessions):,}"
    what = f"{len(words):,} words, half known, ignored"
    return [
        Line(24, f"{number} sessions, all new", "rows/s", rates["new"], bar=15_000),
        Line(24, f"{number} sessions, none changed", "rows/s", rates["unchanged"]),
        Line(24, f"{number} sessions, all changed", "rows/s", rates["changed"]),
        Line(24, what, "rows/s", rates["words"], bar=200_000),
    ]


def session(number: int, now: datetime.datetime) -> dict[str, object]:
    """Make a row of thirteen columns, five of them JSON, some 600 bytes."""
    return {
        "session_id": uuid.uuid5(uuid.NAMESPACE_OID, str(number)),
        "user_id": number % 1_000,
        "started_at": now + datetime.timedelta(seconds=number),
        "ended_at": None,
        "status": "open",
        "score": number / 7,
        "device": {"kind": "phone", "version": [17, number % 10]},
        "location": {"latitude": 48.1 + number / 1e6, "longitude": 11.5},
        "events": [{"name": "opened", "after": 0.5}, {"name": "read", "after": number / 10}],
        "settings": {"language": "de", "theme": None, "volume": 11},
        "tags": ["new", "trial"],
        "created_at": now,
        "updated_at": now,
    }
