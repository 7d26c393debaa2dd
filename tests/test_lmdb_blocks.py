"""Blocks: rows come back from their bytes, and damage never does."""

from __future__ import annotations

import struct
import zlib
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsengine.backends.lmdb.blocks import (
    HEADER_BYTES,
    PROBE_EVERY,
    RAW_BLOCK_BYTES,
    NumberPacker,
    decode,
    decode_range,
    encode,
    read_header,
    split_raw,
    verify,
)
from tsengine.backends.lmdb.columns import Columns
from tsengine.backends.lmdb.layout import KIND_SHIFT
from tsengine.errors import CorruptionError
from tsengine.model import INT64_MAX, INT64_MIN, Int64Array, ValueArray, ValueKind

_INT64 = st.integers(INT64_MIN, INT64_MAX)


@st.composite
def kinds_and_columns(draw: st.DrawFn) -> tuple[ValueKind, Columns]:
    """Draw rows of one kind, regular in time or not, of one series or several."""
    kind = draw(st.sampled_from(ValueKind))
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=24))
    numbers = sorted(
        draw(st.sets(st.integers(1, 1000), min_size=len(counts), max_size=len(counts)))
    )
    pieces = []
    for count in counts:
        if draw(st.booleans()):
            start = draw(st.integers(-(2**40), 2**40))
            pieces.append(start + 10 * np.arange(count))
        else:
            moments = draw(st.sets(_INT64, min_size=count, max_size=count))
            pieces.append(np.array(sorted(moments), np.int64))
    rows = sum(counts)
    values: ValueArray
    if kind is ValueKind.FLOAT:
        bits = draw(st.lists(_INT64, min_size=rows, max_size=rows))
        values = np.array(bits, np.int64).view(np.float64)
    elif kind is ValueKind.INT:
        values = np.array(draw(st.lists(_INT64, min_size=rows, max_size=rows)), np.int64)
    else:
        values = np.empty(rows, dtype=object)
        values[:] = draw(st.lists(st.binary(max_size=20), min_size=rows, max_size=rows))
    series = np.array(numbers, np.int64) + (kind << KIND_SHIFT)
    offsets = np.cumsum([0, *counts])
    return kind, Columns(series, offsets, np.concatenate(pieces), values)


def assert_same(actual: Columns, expected: Columns) -> None:
    """Columns are equal bit for bit."""
    assert actual.series.tolist() == expected.series.tolist()
    assert actual.offsets.tolist() == expected.offsets.tolist()
    assert actual.timestamps.tolist() == expected.timestamps.tolist()
    assert actual.values.dtype == expected.values.dtype
    if expected.values.dtype == object:
        assert actual.values.tolist() == expected.values.tolist()
    else:
        assert actual.values.tobytes() == expected.values.tobytes()


@given(kinds_and_columns(), st.booleans())
def test_rows_come_back(given_columns: tuple[ValueKind, Columns], compress: bool) -> None:
    """What is encoded decodes to the same rows, bit for bit, raw and packed."""
    kind, columns = given_columns
    key, block = encode(7, kind, columns, place=0, packer=NumberPacker() if compress else None)
    header = read_header(key, block)
    verify(key, block, header)
    assert_same(decode(key, block, header), columns)
    assert header.rows == len(columns)
    assert (header.t_min, header.t_max) == (columns.timestamps.min(), columns.timestamps.max())
    assert header.last_series == columns.series[-1]
    assert header.last_timestamp == columns.timestamps[-1]


@given(kinds_and_columns(), st.booleans(), st.data())
def test_a_range_is_what_lies_in_it(
    given_columns: tuple[ValueKind, Columns], compress: bool, data: st.DataObject
) -> None:
    """Decoding a range of a block of one series gives those of all its rows that lie in it."""
    kind, columns = given_columns
    columns = columns.rows(0, int(columns.offsets[1]))
    packer = NumberPacker() if compress else None
    key, block = encode(1, kind, columns, place=3, packer=packer)
    moments = columns.timestamps.tolist()
    bounds = st.sampled_from([*moments, *(moment + 1 for moment in moments), INT64_MIN, 2**63])
    start, end = sorted([data.draw(bounds), data.draw(bounds)])
    found = decode_range(key, block, read_header(key, block), min(start, INT64_MAX), end)
    places = [place for place, moment in enumerate(moments) if start <= moment < end]
    if not places:
        assert found is None
    else:
        assert found is not None
        expected = columns.rows(places[0], places[-1] + 1)
        assert_same(Columns(expected.series, expected.offsets, *found), expected)


@given(kinds_and_columns(), st.booleans(), st.data())
def test_no_flipped_bit_passes(
    given_columns: tuple[ValueKind, Columns], compress: bool, data: st.DataObject
) -> None:
    """Any single flipped bit of a block or its key is refused."""
    kind, columns = given_columns
    key, block = encode(7, kind, columns, place=0, packer=NumberPacker() if compress else None)
    whole = bytearray(key + block)
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptionError, match="run"):
        _verify_all(bytes(whole[:24]), bytes(whole[24:]))


@settings(max_examples=300)
@given(kinds_and_columns(), st.booleans(), st.data())
def test_damage_behind_a_right_checksum_is_typed(
    given_columns: tuple[ValueKind, Columns], compress: bool, data: st.DataObject
) -> None:
    """Bytes that do not decode raise CorruptionError and nothing else, whatever they say."""
    kind, columns = given_columns
    key, block = encode(7, kind, columns, place=0, packer=NumberPacker() if compress else None)
    damaged = bytearray(block)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    damaged[:4] = zlib.crc32(damaged[4:HEADER_BYTES], zlib.crc32(key)).to_bytes(4, "little")
    try:
        decoded = decode(key, bytes(damaged), read_header(key, bytes(damaged)))
    except CorruptionError:
        return
    assert len(decoded.timestamps) == len(decoded.values)


@given(st.lists(_INT64, min_size=1, max_size=200))
def test_integer_sums_in_headers_are_exact(values: list[int]) -> None:
    """The sum of an int block is exact to 128 bits."""
    columns = _one_series(ValueKind.INT, np.array(values, np.int64))
    key, block = encode(1, ValueKind.INT, columns, place=0, packer=NumberPacker())
    header = read_header(key, block)
    assert int.from_bytes(header.sum, "little", signed=True) == sum(values)
    assert struct.unpack("<q", header.min)[0] == min(values)
    assert struct.unpack("<q", header.max)[0] == max(values)


def test_statistics_leave_nan_out() -> None:
    """Min, max and sum of a float block are those of its numbers."""
    columns = _one_series(ValueKind.FLOAT, np.array([np.nan, 2.0, -1.0, np.nan]))
    key, block = encode(1, ValueKind.FLOAT, columns, place=0, packer=NumberPacker())
    header = read_header(key, block)
    assert header.nan_count == 2
    assert struct.unpack("<d", header.min) == (-1.0,)
    assert struct.unpack("<d", header.max) == (2.0,)
    assert struct.unpack("<dd", header.sum) == (1.0, 0.0)


def test_regular_timestamps_cost_nothing() -> None:
    """A series at a fixed step takes a few bytes for its times, whatever its length."""
    columns = _one_series(ValueKind.FLOAT, np.zeros(10_000))
    _, block = encode(1, ValueKind.FLOAT, columns, place=0, packer=NumberPacker())
    assert len(block) < HEADER_BYTES + 100


@given(kinds_and_columns(), st.integers(1, 50))
def test_raw_pieces_fit_and_lose_nothing(
    given_columns: tuple[ValueKind, Columns], block_points: int
) -> None:
    """Cutting for raw blocks keeps every row, in order, within the bounds."""
    kind, columns = given_columns
    pieces = split_raw(kind, columns, block_points)
    assert all(0 < len(piece) <= block_points for piece in pieces)
    assert np.concatenate([piece.timestamps for piece in pieces]).tolist() == (
        columns.timestamps.tolist()
    )
    rows = [piece.row_series() for piece in pieces]
    assert np.concatenate(rows).tolist() == columns.row_series().tolist()


@pytest.mark.parametrize("rows_per_series", [1, 3, 65, 65_536])
def test_raw_blocks_stay_small(rows_per_series: int) -> None:
    """No raw block of numbers exceeds the stated size, however many series share it."""
    counts = np.full(65_536 // rows_per_series, rows_per_series)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    rows = int(offsets[-1])
    columns = Columns(
        np.arange(len(counts)) + (1 << KIND_SHIFT), offsets, np.arange(rows), np.zeros(rows)
    )
    for piece in split_raw(ValueKind.FLOAT, columns, 16_384):
        _, block = encode(1, ValueKind.FLOAT, piece, place=0, packer=None)
        assert len(block) <= RAW_BLOCK_BYTES


def test_packing_follows_the_data() -> None:
    """A packer loses little on data that changes its nature, and takes it up again."""
    generator = np.random.default_rng(1)
    walk = generator.normal(size=5_000).cumsum()
    noise = generator.normal(size=5_000)
    packer = NumberPacker()
    for column in (walk, noise, walk):
        best = len(NumberPacker().pack(column))
        sizes = [len(packer.pack(column)) for _ in range(PROBE_EVERY + 1)]
        assert max(sizes) < 1.1 * best
        assert sizes[-1] == best


def test_a_bomb_is_refused_by_what_it_declares() -> None:
    """Objects that would inflate beyond the cap are refused before they are inflated."""
    values = np.empty(100, dtype=object)
    values[:] = [b"\xc0" * 50] * 100
    columns = _one_series(ValueKind.OBJECT, cast("ValueArray", values))
    key, block = encode(1, ValueKind.OBJECT, columns, place=0, packer=NumberPacker())
    header = read_header(key, block)
    at = HEADER_BYTES + header.segment_bytes + header.time_bytes
    bomb = block[:at] + struct.pack("<Q", 1 << 40) + block[at + 8 :]
    with pytest.raises(CorruptionError, match="too many"):
        decode(key, bomb, header)


def _verify_all(key: bytes, block: bytes) -> None:
    verify(key, block, read_header(key, block))


def _one_series(kind: ValueKind, values: ValueArray) -> Columns:
    times: Int64Array = 1_000 + 10 * np.arange(len(values))
    return Columns(np.array([5 + (kind << KIND_SHIFT)]), np.array([0, len(values)]), times, values)
