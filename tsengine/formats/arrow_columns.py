"""Arrow columns as numpy arrays, and the other way, without a copy.

By their buffers: what pyarrow has for it imports pandas where that is installed, half a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tsengine.errors import MissingDependencyError
from tsengine.model import Int64Array

if TYPE_CHECKING:
    import pyarrow as pa


def require_pyarrow(what: str) -> None:
    """See that pyarrow is there, before a file is read or a store is made.

    Args:
        what: needs it, for the message.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import pyarrow  # noqa: F401  # an optional package, imported when used
    except ImportError:
        raise MissingDependencyError(
            f"{what} through pyarrow: pip install 'tsengine[arrow]'"
        ) from None


def int64s(column: pa.Array) -> Int64Array:
    """Give a column of int64 or of timestamps without nulls as int64[n], read-only."""
    return np.frombuffer(column.buffers()[1] or b"", np.int64, len(column), 8 * column.offset)


def float64s(column: pa.Array) -> npt.NDArray[np.float64]:
    """Give a column of float64 without nulls as float64[n], read-only."""
    return np.frombuffer(column.buffers()[1] or b"", np.float64, len(column), 8 * column.offset)


def codes(column: pa.Array) -> Int64Array:
    """Give the indices of a dictionary-encoded column without nulls as int64[n]."""
    indices = column.indices
    dtype = np.dtype(
        f"{'i' if str(indices.type).startswith('int') else 'u'}{indices.type.byte_width}"
    )
    raw = np.frombuffer(
        indices.buffers()[1] or b"", dtype, len(indices), dtype.itemsize * indices.offset
    )
    return raw.astype(np.int64)


def validity(column: pa.Array) -> npt.NDArray[np.bool_]:
    """Tell of each row whether it is no null: bool[n]."""
    bits = column.buffers()[0]
    if bits is None or not column.null_count:
        return np.ones(len(column), bool)
    end = column.offset + len(column)
    flags = np.unpackbits(np.frombuffer(bits, np.uint8), count=end, bitorder="little")
    return flags[column.offset :].astype(bool)


def arrow_int64s(numbers: Int64Array) -> pa.Array:
    """Give int64[n] as a column."""
    import pyarrow as pa  # an optional package, imported when used

    buffers = [None, pa.py_buffer(np.ascontiguousarray(numbers))]
    return pa.Array.from_buffers(pa.int64(), len(numbers), buffers)
