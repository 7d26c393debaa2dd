"""Schema: the tables of a store, how they come to be, and how they are told from others.

Statements name tables without their schema: each transaction sets its `search_path`. So their
text is constant, and the name of the schema is quoted in one place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tsengine.backends.postgres.session import Session
from tsengine.backends.postgres.tables import quoted
from tsengine.errors import (
    AccessDeniedError,
    CorruptionError,
    FormatVersionError,
    StorePathError,
    UnknownOptionError,
    UnsupportedError,
)
from tsengine.options import StoreOptions

LOCK_SPACE: Final = 0x7473656E
"""First key of our advisory locks, the letters `tsen`; the second is the OID of the schema."""

_COMMENT: Final = "tsengine:"
"""What the comment on the table `store` begins with, which tells a store from other tables."""

WHICH_TABLE: Final = "SELECT 'store'::regclass::oid::bigint"
"""Tells a store from one that was dropped: numbers of series that are remembered are not its."""

_CREATION_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('tsengine:' || %s, 0))"

_VERSION_1: Final = """
CREATE TABLE store (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL,
    options jsonb NOT NULL,
    partition_width bigint NOT NULL,
    removals bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE store IS 'tsengine: version and options of the store in this schema, one row';
COMMENT ON COLUMN store.removals IS 'goes up when series are removed: writers look series up anew';

CREATE TABLE series (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest bytea NOT NULL UNIQUE,
    series text COLLATE "C" NOT NULL,
    labels jsonb NOT NULL,
    kind smallint NOT NULL CHECK (kind IN (1, 2, 3))
);
COMMENT ON TABLE series IS 'one row a series; an id is never used again';
COMMENT ON COLUMN series.digest IS 'SHA-256 of series: an index entry ends at 2,704 bytes';
COMMENT ON COLUMN series.kind IS '1 float (points.value), 2 int (points.integer), 3 object';
CREATE INDEX series_labels ON series USING gin (labels jsonb_path_ops);

CREATE TABLE points (
    series bigint NOT NULL,
    time bigint NOT NULL,
    value double precision,
    integer bigint,
    object bytea,
    PRIMARY KEY (series, time)
) PARTITION BY RANGE (time);
COMMENT ON TABLE points IS 'one row a point';
COMMENT ON COLUMN points.time IS 'nanoseconds since 1970-01-01, UTC';
COMMENT ON COLUMN points.object IS 'MessagePack';
CREATE TABLE points_rest PARTITION OF points DEFAULT;
CREATE INDEX points_rest_time ON points_rest USING brin (time);
COMMENT ON TABLE points_rest IS 'points in whose time no partition was made';

CREATE TABLE producers (
    digest bytea PRIMARY KEY,
    producer text NOT NULL,
    sequence numeric NOT NULL,
    piece numeric NOT NULL,
    receipt bytea NOT NULL
);
COMMENT ON TABLE producers IS 'how far each producer has got, committed with its points';
COMMENT ON COLUMN producers.receipt IS 'of its last commit, MessagePack';

CREATE TABLE writes (
    slot smallint PRIMARY KEY,
    last_write bigint NOT NULL
) WITH (fillfactor = 25);
COMMENT ON TABLE writes IS 'when points were last committed, in slots, so that writers do not wait';

CREATE VIEW readings AS
SELECT
    s.series,
    s.labels,
    timestamptz 'epoch' + (p.time / 1000) * interval '1 microsecond' AS time,
    p.time AS time_ns,
    p.value,
    p.integer,
    p.object
FROM points p JOIN series s ON s.id = p.series;
COMMENT ON VIEW readings IS 'points with their labels, for people; time is rounded to microseconds';

CREATE FUNCTION make_partitions(numbers bigint[]) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    width numeric := (SELECT partition_width FROM store);
    made integer := 0;
    number bigint;
    name text;
    first numeric;
    last numeric;
BEGIN
    IF cardinality(numbers) > 1000 THEN
        RAISE EXCEPTION 'more than 1000 partitions at once' USING ERRCODE = '54000';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('tsengine:partitions:' || current_schema(), 0));
    FOREACH number IN ARRAY numbers LOOP
        name := 'points_' || replace(number::text, '-', 'm');
        CONTINUE WHEN to_regclass(format('%I.%I', current_schema(), name)) IS NOT NULL;
        first := greatest(number * width, -9223372036854775808);
        last := least((number + 1) * width, 9223372036854775807);
        CONTINUE WHEN first >= last OR EXISTS (
            SELECT FROM points_rest WHERE time >= first::bigint AND time < last::bigint
        );
        -- Made beside the table and then attached: reads and writes of the others go on.
        EXECUTE format('CREATE TABLE %I (LIKE points INCLUDING ALL)', name);
        EXECUTE format(
            'ALTER TABLE points ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, first, last
        );
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;

CREATE FUNCTION drop_expired(horizon bigint) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    width numeric := (SELECT partition_width FROM store);
    dropped integer := 0;
    name text;
    number numeric;
BEGIN
    IF (SELECT options ->> 'retention' IS NULL FROM store) THEN
        RAISE EXCEPTION 'this store has no retention' USING ERRCODE = '42501';
    END IF;
    DELETE FROM points_rest WHERE time < horizon;
    FOR name IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'points'::regclass AND c.relname <> 'points_rest'
        ORDER BY c.relname
    LOOP
        number := replace(substr(name, 8), 'm', '-')::numeric;
        CONTINUE WHEN (number + 1) * width > horizon;
        EXECUTE format('DROP TABLE %I', name);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;
"""

MIGRATIONS: Final[Sequence[str]] = (_VERSION_1,)
"""What brings a store from each version to the next, from nothing to 1 first."""

TABLES: Final = frozenset({"store", "series", "points", "producers", "writes"})

_FUNCTIONS: Final = ("make_partitions(bigint[])", "drop_expired(bigint)")


@dataclass(frozen=True, slots=True)
class Found:
    """A store that is there.

    Attributes:
        oid: of its schema.
        table: OID of its table `store`, as `WHICH_TABLE` tells it.
        version: of its tables.
        options: as it was created.
        partition_width: nanoseconds of a partition.
    """

    oid: int
    table: int
    version: int
    options: StoreOptions
    partition_width: int

    @property
    def is_present(self) -> bool:
        """Whether it is of the version that is written here; else `create` brings it there."""
        return self.version == len(MIGRATIONS)


def schema_name(value: object) -> str:
    """Convert the option `schema`.

    Raises:
        UnknownOptionError: no schema of ours can have that name.
    """
    try:
        quoted(value)
    except UnknownOptionError as error:
        raise UnknownOptionError(f"schema: {error}") from None
    assert isinstance(value, str)  # which has a name as SQL takes it
    if value.startswith("pg_") or value == "information_schema":
        raise UnknownOptionError(f"{value!r} is a schema of PostgreSQL's own; give another name")
    return value


def find(session: Session, schema: str) -> Found | None:
    """Look for a store, in a transaction; None where the schema is not there, or empty.

    Raises:
        StorePathError: the schema holds something else.
        FormatVersionError: the store is of a newer version.
        AccessDeniedError: this user may not use the schema.
        UnsupportedError: the database does not hold UTF-8.
    """
    _check_encoding(session)
    rows = session.execute(
        "SELECT n.oid::bigint, c.relname, obj_description(c.oid, 'pg_class'),"
        " has_schema_privilege(n.oid, 'USAGE') FROM pg_namespace n"
        " LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
        " WHERE n.nspname = %s",
        (schema,),
    ).fetchall()
    comments = {name: comment for _, name, comment, _ in rows if name is not None}
    if not comments:
        return None
    if not rows[0][3]:
        raise AccessDeniedError(f"the schema {schema!r} may not be used by this user: GRANT USAGE")
    if not str(comments.get("store")).startswith(_COMMENT):
        raise StorePathError(
            f"the schema {schema!r} holds no store of tsengine but other tables, such as "
            f"{min(comments)!r}; give one that is empty or not there"
        )
    session.execute(open_read(schema).encode())
    # By its full name: where a right is missing, that is said, and not that there is no table.
    row = session.execute(
        f"SELECT version, tableoid::bigint FROM {quoted(schema)}.store"
    ).fetchone()
    if row is None:
        raise CorruptionError(f"the schema {schema!r} holds a store without its options")
    version, table = row
    if version > len(MIGRATIONS):
        raise FormatVersionError(
            f"the store in schema {schema!r} is of version {version}; this tsengine reads up to "
            f"{len(MIGRATIONS)}"
        )
    missing = TABLES - comments.keys()
    if missing:
        raise CorruptionError(f"the store in schema {schema!r} lacks its table {min(missing)!r}")
    row = session.execute("SELECT options, partition_width FROM store").fetchone()
    assert row is not None
    options, partition_width = row
    return Found(rows[0][0], table, version, _options(schema, options), partition_width)


def create(session: Session, schema: str, options: StoreOptions, partition_width: int) -> Found:
    """Create the store, or bring it to the present version, in a transaction.

    Others who do the same wait for its end, and find it done.

    Raises:
        StorePathError, FormatVersionError, UnsupportedError: as `find`.
    """
    session.execute(_CREATION_LOCK, (schema,))
    found = find(session, schema)
    if found is None:
        there = session.execute("SELECT FROM pg_namespace WHERE nspname = %s", (schema,))
        if not there.rowcount:  # IF NOT EXISTS asks for the right to create one all the same
            session.execute(f"CREATE SCHEMA {quoted(schema)}".encode())
        session.execute(open_read(schema).encode())
    if found is not None and found.is_present:
        return found
    for migration in MIGRATIONS[0 if found is None else found.version :]:
        session.execute(migration.encode())
    _secure(session, schema)
    if found is None:
        session.execute(
            "INSERT INTO store (version, options, partition_width) VALUES (%s, %s, %s)",
            (len(MIGRATIONS), json.dumps(options.to_dict()), partition_width),
        )
    else:
        session.execute("UPDATE store SET version = %s", (len(MIGRATIONS),))
    made = find(session, schema)
    assert made is not None
    return made


def open_read(schema: str) -> str:
    """Give what opens a transaction that reads, or makes partitions."""
    # The server would compile what it takes for expensive, longer than most of it runs.
    return f"SET LOCAL search_path = {quoted(schema)}, pg_temp; SET LOCAL jit = off"


def open_write(schema: str, oid: int, *, alone: bool = False) -> str:
    """Give what opens a transaction that writes: it answers how often series were removed.

    Behind that stands the answer of `WHICH_TABLE`.
    The lock is shared by all who write points; who deletes has it alone. It is taken by a
    statement of its own, so that the next one sees what was committed before.
    """
    lock = "pg_advisory_xact_lock" if alone else "pg_advisory_xact_lock_shared"
    second = oid - 2**32 if oid >= 2**31 else oid  # an OID is unsigned, the key of a lock is not
    take = f"SELECT {lock}({LOCK_SPACE}, {second})"
    return f"{open_read(schema)}; {take}; SELECT removals, tableoid::bigint FROM store"


def _secure(session: Session, schema: str) -> None:
    """Tie the privileged functions to the schema, and take them from everybody."""
    for function in _FUNCTIONS:
        session.execute(
            f"ALTER FUNCTION {function} SET search_path = {quoted(schema)}, pg_temp; "
            f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC".encode()
        )


def _check_encoding(session: Session) -> None:
    encoding = session.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise UnsupportedError(
            f"the database is encoded in {encoding}; labels are any text, which takes UTF8"
        )


def _options(schema: str, plain: object) -> StoreOptions:
    try:
        assert isinstance(plain, Mapping)
        return StoreOptions.from_dict(plain)
    except (AssertionError, KeyError, ValueError, TypeError) as error:
        raise CorruptionError(
            f"the options of the store in schema {schema!r} are damaged: {plain!r}"
        ) from error
