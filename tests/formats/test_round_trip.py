"""What is exported is imported as the same, bit for bit, or it is an error to export it."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.formats.reading import exact
from tsengine import Engine, FormatError, Labels, verify
from tsengine.backends.lmdb import LmdbEngine
from tsengine.backends.memory import MemoryEngine
from tsengine.formats import Import, ImportOptions, export

Store: TypeAlias = list[tuple[dict[str, str], str, list[tuple[int, object]]]]

FORMATS = ["csv", "jsonl", "parquet", "line"]
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.one_of(
    st.floats(allow_nan=False),
    st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack("<d", struct.pack("<Q", bits))[0]),
)
TEXT = st.text(
    st.one_of(
        st.sampled_from('ab,"\\= \n\r\t#é\U0001f600|{}'),
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    ),
    min_size=1,
    max_size=5,
)
NAMES = st.one_of(
    st.sampled_from(
        [
            "__name__",
            "host",
            "value",
            "timestamp",
            "timestamp_ns",
            "label_value",
            "label_x",
            "time",
            "value_int",
            "value_object",
            "label_label_value",
            " host",
            "é",
        ]
    ),
    TEXT,
)
OBJECTS = st.one_of(
    st.booleans(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.floats(), INT64, st.text(max_size=3)),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3)
        ),
        max_leaves=5,
    ).filter(lambda value: isinstance(value, (list, dict))),
)
KINDS = {"float": FLOATS, "int": INT64, "object": OBJECTS}


@st.composite
def stores(draw: st.DrawFn) -> Store:
    """Draw series with their rows."""
    found: Store = []
    for labels in draw(
        st.lists(
            st.dictionaries(NAMES, TEXT, min_size=1, max_size=3),
            max_size=4,
            unique_by=lambda named: tuple(sorted(named.items())),
        )
    ):
        kind = draw(st.sampled_from(["float", "float", "int", "object"]))
        rows = st.lists(
            st.tuples(INT64, KINDS[kind]), min_size=1, max_size=4, unique_by=lambda row: row[0]
        )
        found.append((labels, kind, draw(rows)))
    return found


def fill(engine: Engine, store: Store) -> None:
    """Write a store."""
    for labels, kind, rows in store:
        values = [value for _, value in rows]
        if kind == "int":
            engine.write_series(Labels(labels), [moment for moment, _ in rows], np.array(values))
        else:
            engine.write([(Labels(labels), moment, value) for moment, value in rows])


def is_carried(file_format: str, store: Store) -> bool:
    """Say whether a format carries all of a store, as its documentation does."""
    return all(
        carries(file_format, labels, value) for labels, _, rows in store for _, value in rows
    )


def carries(file_format: str, labels: dict[str, str], value: object) -> bool:
    """Say whether a format carries a point."""
    if file_format == "parquet":
        return True
    if file_format == "line":
        if "__name__" not in labels or labels["__name__"].lstrip(" \t").startswith("#"):
            return False
        if any("\n" in text for pair in labels.items() for text in pair):
            return False
        if isinstance(value, float):
            return math.isfinite(value)
        return isinstance(value, (bool, int, str))
    return isinstance(value, float) or is_json(value)


def is_json(value: object) -> bool:
    """Say whether JSON carries a value."""
    if isinstance(value, bytes):
        return False
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(map(is_json, value))
    if isinstance(value, dict):
        return all(map(is_json, value.values()))
    return True


@pytest.mark.parametrize("file_format", FORMATS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(store=stores(), integers=st.sampled_from(["float", "int"]))
@example(store=[({"__name__": "a"}, "float", [(1, -math.nan), (2, math.inf)])], integers="int")
@example(store=[({"host": "a"}, "float", [(1, 1.0)])], integers="float")
@example(store=[({"__name__": "a"}, "object", [(1, "")])], integers="float")
@example(store=[({"__name__": "a\\", "b\\": "\\"}, "int", [(1, -1)])], integers="float")
@example(store=[], integers="float")
def test_an_export_is_imported_as_the_same(
    tmp_path: Path, file_format: str, store: Store, integers: str
) -> None:
    """Any store is the same after export and import, or a FormatError leaves no file behind."""
    path = tmp_path / "points"
    path.unlink(missing_ok=True)
    with (
        MemoryEngine(min_timestamp=-(2**63), integers=integers) as source,
        MemoryEngine(min_timestamp=-(2**63), integers=integers) as target,
    ):
        fill(source, store)
        try:
            report = export(source, str(path), file_format=file_format)
        except FormatError:
            assert not is_carried(file_format, store)
            assert not list(tmp_path.iterdir())
            return
        assert is_carried(file_format, store)
        assert report.points == sum(len(rows) for _, _, rows in store)
        if not store and file_format in ("line", "jsonl"):
            return  # an empty file, of which nobody knows what it is
        with Import(str(path), ImportOptions(file_format=file_format)) as reading:
            imported = reading.run(target)
        assert imported.rejects == 0, imported.first_rejects
        verify(source, target)
        assert bits(source) == bits(target)


def bits(engine: Engine) -> list[object]:
    """Give all rows, values to the bit."""
    return [
        (batch.labels, batch.values.dtype, moment, repr(exact(value)))
        for batch in engine.scan()
        for _, moment, value in batch.points()
    ]


@pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("name", ["points.csv", "points.tsv", "points.jsonl", "points.lp"])
def test_files_are_compressed_by_their_names(tmp_path: Path, name: str, ending: str) -> None:
    """Every compression carries every format of text."""
    path = str(tmp_path / (name + ending))
    with LmdbEngine(str(tmp_path / "store")) as source, MemoryEngine() as target:
        for host in "abc":
            rows = [(Labels("cpu", host=host), moment, moment / 7) for moment in range(1, 3_000)]
            source.write(rows)
        export(source, path)
        plain = Path(path).read_bytes()[:4]
        assert plain.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"(\xb5/\xfd")) == bool(ending)
        with Import(path) as reading:
            assert reading.run(target).copied.accepted == source.count()
        verify(source, target)


def test_a_selection_is_exported(tmp_path: Path) -> None:
    """Selector and range choose the rows, and columns are those of the chosen series."""
    path = tmp_path / "points.csv"
    with MemoryEngine() as source:
        for moment in (1, 2, 3):
            source.write(
                [(Labels("cpu", host="a"), moment, 1.5), (Labels("up", dc="x"), moment, True)]
            )
        report = export(source, str(path), "cpu", 2, 3)
    assert (report.points, report.series) == (1, 1)
    assert path.read_text() == "__name__,host,timestamp_ns,value\ncpu,a,2,1.5\n"
