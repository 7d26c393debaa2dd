"""Value kinds, and what fits them.

A series holds one kind, fixed at its first commit: float64, int64, or objects as
MessagePack carries them. Scalars and arrays are judged here, in one place, so that every
backend and the buffer come to the same verdict.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgpack
import numpy as np
import numpy.typing as npt

from tsengine.errors import BatchShapeError, CorruptionError, ValueKindError
from tsengine.model.absent import absent_rows
from tsengine.model.time import INT64_MAX, INT64_MIN

OBJECT_BYTES_MAX: Final = 65_536
"""Most bytes of one object value in MessagePack: a record, not a file."""

OBJECT_DEPTH_MAX: Final = 32
"""Deepest nesting of lists and maps in one object value."""

_FLOAT_EXACT: Final = 2**53

Value: TypeAlias = "float | int | bool | str | bytes | list[object] | dict[str, object]"
"""What a point may hold: a number, or what MessagePack carries but for None."""

ValueArray: TypeAlias = "npt.NDArray[np.float64] | npt.NDArray[np.int64] | npt.NDArray[np.object_]"
"""Values as a column, `[n]`: float64, int64 or objects, by the kind of the series."""


class ValueKind(enum.IntEnum):
    """What a series holds. The numbers are stored, so they never change; none is falsy."""

    FLOAT = 1
    INT = 2
    OBJECT = 3

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numpy dtype of its columns: float64, int64 or object."""
        return _DTYPES[self]


_DTYPES: Final[dict[ValueKind, np.dtype[np.generic]]] = {
    ValueKind.FLOAT: np.dtype(np.float64),
    ValueKind.INT: np.dtype(np.int64),
    ValueKind.OBJECT: np.dtype(object),
}


def fit_value(
    value: object, known: ValueKind | None = None, *, integers: ValueKind = ValueKind.FLOAT
) -> tuple[ValueKind, Value]:
    """Judge one value and give it as it will be stored.

    Args:
        value: a float, an integer, or what MessagePack carries.
        known: the kind of the series, None where it has none yet.
        integers: the kind that an integer scalar opens: FLOAT or INT.

    Returns:
        The kind, and the value as exactly `float`, `int` or a normalised object (tuples
        as lists, bytes-like as bytes).

    Raises:
        ValueKindError: the value fits no kind, another kind than `known`, or fits it
            only by losing precision.
    """
    kind: ValueKind
    stored: Value
    if isinstance(value, (float, np.floating)):
        kind = ValueKind.FLOAT
        stored = float(value)
        if isinstance(value, np.longdouble) and not (value == stored or np.isnan(value)):
            raise ValueKindError(f"{value!r} loses precision as float64; round it first")
    elif isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        kind = integers if known is None or known is ValueKind.OBJECT else known
        stored = _fit_integer(int(value), kind)
    else:
        kind = ValueKind.OBJECT
        stored = unpack_object(pack_object(value))
    if known is not None and kind is not known:
        raise ValueKindError(
            f"value {_short(value)} is of kind {kind.name.lower()}, its series holds "
            f"{known.name.lower()}"
        )
    return kind, stored


def kind_of_array(values: object) -> tuple[ValueKind | None, npt.NDArray[np.generic]]:
    """Judge an array or sequence of values by its dtype.

    Args:
        values: a one-dimensional array, or a sequence of values.

    Returns:
        The kind that it opens, None where only its elements can tell (a sequence, or an
        array of objects), and the values as an array. An integer array gives INT; it
        still fits a float series where exact.

    Raises:
        BatchShapeError: not one-dimensional, or of a dtype no kind has.
    """
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
        raise BatchShapeError(f"values must be a one-dimensional array or sequence, not {values!r}")
    if isinstance(values, (list, tuple)):
        return _kind_of_sequence(values)
    absent = [] if type(values) is np.ndarray else absent_rows(values)
    if absent:
        raise ValueKindError(
            f"values[{absent[0]}] is masked or null; leave the point out", indices=absent
        )
    array = np.asarray(values)
    if array.ndim != 1:
        raise BatchShapeError(f"values must have one dimension, not shape {array.shape}")
    if array.dtype.kind == "f":
        return ValueKind.FLOAT, array
    if array.dtype.kind in "iu":
        return ValueKind.INT, array
    if array.dtype.kind in "bUO":
        return None, array.astype(object)
    raise BatchShapeError(
        f"values of dtype {array.dtype} are of no kind; give float, integer or object arrays"
    )


def fit_array(
    values: object, known: ValueKind | None = None, *, integers: ValueKind = ValueKind.FLOAT
) -> tuple[ValueKind, ValueArray]:
    """Judge a column of values and give it as it will be stored.

    Args:
        values: a one-dimensional array or a sequence of values.
        known: the kind of the series, None where it has none yet.
        integers: the kind that integer scalars in a sequence open.

    Returns:
        The kind and the column: float64[n], int64[n] or object[n], contiguous; the input
        itself where it is that already and holds no objects.

    Raises:
        BatchShapeError: not one-dimensional, or a dtype of no kind.
        ValueKindError: elements fit no kind, another kind than `known`, or lose
            precision; `indices` names each.
    """
    opens, array = kind_of_array(values)
    if opens is None or not array.size:
        return _fit_elements(array, known, integers)
    kind = opens if known is None else known
    if kind is ValueKind.OBJECT or (kind is ValueKind.INT and opens is ValueKind.FLOAT):
        raise ValueKindError(
            f"values of dtype {array.dtype} do not fit a series that holds {kind.name.lower()}",
            indices=range(array.size),
        )
    if array.dtype == kind.dtype:
        return kind, np.ascontiguousarray(array)
    column = _cast(array, kind)
    return kind, column


def pack_object(value: object) -> bytes:
    """Give the MessagePack form of an object value.

    Raises:
        ValueKindError: None, not carried by MessagePack, keys that are not text, too deep
            or too large.
    """
    if value is None:
        raise ValueKindError("None is no value; leave the point out")
    if isinstance(value, np.bool_):
        value = bool(value)
    _check_object(value, 0)
    try:
        packed: bytes = msgpack.packb(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueKindError(f"value {_short(value)} cannot be stored: {error}") from None
    if len(packed) > OBJECT_BYTES_MAX:
        raise ValueKindError(
            f"value of {len(packed)} bytes is too large, at most {OBJECT_BYTES_MAX}"
        )
    return packed


def unpack_object(packed: bytes) -> Value:
    """Give the object value of its MessagePack form.

    Raises:
        CorruptionError: it is none that `pack_object` gives; a hostile one takes a few
            megabytes at most before that is seen.
    """
    if len(packed) > OBJECT_BYTES_MAX:
        raise CorruptionError(f"a value of {len(packed)} bytes is stored, larger than any can be")
    try:
        value: Value = msgpack.unpackb(packed, max_ext_len=0)
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptionError(f"a stored value is no MessagePack: {error}") from error
    return value


def unpack_bounded(packed: bytes, *, containers: int, items: int) -> Any:
    """Undo MessagePack of a known shape, in bounded memory whatever it says.

    Ten megabytes of empty maps would else become 734 MB before anybody can look at them.

    Args:
        packed: MessagePack that may come from anybody.
        containers: most lists and maps that it may have.
        items: most items that all of them may have.

    Raises:
        ValueError: it has more, or is no MessagePack.
    """

    def counted(container: Any) -> Any:
        nonlocal containers, items
        containers -= 1
        items -= len(container)
        if containers < 0 or items < 0:
            raise ValueError("it has more parts than it may have")
        return container

    return msgpack.unpackb(
        packed,
        list_hook=counted,
        object_hook=counted,
        max_array_len=items,
        max_map_len=items,
        max_ext_len=0,
    )


def _fit_integer(value: int, kind: ValueKind) -> Value:
    if kind is ValueKind.INT:
        if not INT64_MIN <= value <= INT64_MAX:
            raise ValueKindError(f"{value} does not fit int64")
        return value
    if -_FLOAT_EXACT <= value <= _FLOAT_EXACT:
        return float(value)
    try:
        stored = float(value)
    except OverflowError:
        raise ValueKindError(f"an integer of {value.bit_length()} bits is beyond float64") from None
    if int(stored) != value:
        raise ValueKindError(f"{value} loses precision as float64; use a store with integers='int'")
    return stored


def _kind_of_sequence(values: Sequence[object]) -> tuple[ValueKind | None, npt.NDArray[np.generic]]:
    if set(map(type, values)) <= {float}:
        return ValueKind.FLOAT, np.array(values, dtype=np.float64)
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):  # one by one, or numpy would look into lists
        array[index] = value
    return None, array


def _fit_elements(
    array: npt.NDArray[np.generic], known: ValueKind | None, integers: ValueKind
) -> tuple[ValueKind, ValueArray]:
    fitted: list[Value] = []
    wrong: list[int] = []
    reason = ""
    for index, value in enumerate(array):
        try:
            known, stored = fit_value(value, known, integers=integers)
        except ValueKindError as error:
            reason = reason or str(error)
            wrong.append(index)
        else:
            fitted.append(stored)
    if wrong:
        raise ValueKindError(f"values[{wrong[0]}]: {reason}", indices=wrong)
    if known is None:  # no elements at all
        known = ValueKind.FLOAT
    column = np.empty(len(fitted), dtype=known.dtype)
    for index, stored in enumerate(fitted):
        column[index] = stored
    return known, column


def _cast(array: npt.NDArray[np.generic], kind: ValueKind) -> ValueArray:
    """Cast numbers to float64 or int64 where that loses nothing."""
    if array.dtype.kind == "u" and kind is ValueKind.INT:
        wrong = np.flatnonzero(array > np.uint64(INT64_MAX))
    elif array.dtype.kind in "iu" and kind is ValueKind.FLOAT and array.dtype.itemsize == 8:
        # Narrower integers are always exact. As float(2**63) is out of int64, where casting
        # back is undefined, compare by magnitude first.
        exact = array.astype(np.float64)
        inside = (exact >= -(2.0**63)) & (exact < (2.0**63 if array.dtype.kind == "i" else 2.0**64))
        back = np.where(inside, exact, 0.0).astype(array.dtype)
        wrong = np.flatnonzero(~inside | (back != array))
    elif array.dtype.itemsize > 8:  # long double
        with np.errstate(over="ignore"):
            narrow = array.astype(np.float64)
        wrong = np.flatnonzero((narrow != array) & ~np.isnan(narrow))
    else:
        wrong = np.empty(0, np.int64)
    if wrong.size:
        raise ValueKindError(
            f"values[{wrong[0]}]: {array[wrong[0]]} loses precision as {kind.dtype}",
            indices=wrong.tolist(),
        )
    cast: ValueArray = array.astype(kind.dtype)
    return cast


def _check_object(value: object, depth: int) -> None:
    if depth > OBJECT_DEPTH_MAX:
        raise ValueKindError(f"value is nested deeper than {OBJECT_DEPTH_MAX}")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueKindError(f"keys of an object value must be text, not {key!r}")
            _check_object(item, depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_object(item, depth + 1)
    elif isinstance(value, (msgpack.ExtType, msgpack.Timestamp)):
        raise ValueKindError(f"MessagePack extension types are not stored: {value!r}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"  # a line of a message
