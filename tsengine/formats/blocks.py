"""Blocks: a stream of text cut into pieces that end with whole lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from tsengine.errors import FileAccessError, FormatError

BLOCK_BYTES: Final = 1 << 22
"""Bytes that are looked at together: 4 MB, some 50,000 rows, and within the processor's caches."""

LINE_MAX: Final = 1 << 20
"""Longest line, and longest row of several lines: 1 MB, sixteen times the largest value."""

SLOW_BYTES: Final = 1 << 13
"""How much is read row by row at once where a block has something that needs it: some 200 rows, so
that one bad row in a thousand does not slow down the others."""


class Readable(Protocol):
    """What blocks are read from.

    Attributes:
        failure: why there is no more, where that is not the end.
    """

    failure: FormatError | FileAccessError | None

    def read(self, size: int) -> bytes:
        """Give so many bytes, fewer only at the end."""


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines.

    Attributes:
        data: the bytes; the last line of a file may have no line feed.
        line: number of the first line, from 1.
        is_whole: false for the beginning of a line that is too long, whose rest is left out.
    """

    data: bytes
    line: int
    is_whole: bool = True

    def halves(self) -> list[Block]:
        """Cut it at a line near the middle; itself where there is none."""
        end = self.data.find(b"\n", len(self.data) // 2) + 1
        if end in (0, len(self.data)):
            return [self]
        first = self.data[:end]
        return [Block(first, self.line), Block(self.data[end:], self.line + first.count(b"\n"))]


def blocks(
    source: Readable,
    *,
    size: int = BLOCK_BYTES,
    cut: Callable[[bytes], int] | None = None,
) -> Iterator[Block]:
    """Cut what is read into blocks; where, depends on the bytes alone.

    Args:
        source: what is read.
        size: bytes of a block, about; a longer line is given as its beginning, and not whole.
        cut: gives where the last whole row ends, 0 for nowhere; by default the last line does.

    Raises:
        FormatError, FileAccessError: the failure of the source, behind the whole rows before it:
            half a number must not be taken for one.
    """
    rest, line = b"", 1
    while True:
        data = source.read(size)
        is_last = len(data) < size
        data = rest + data if rest else data
        if is_last and source.failure is not None:
            whole = data[: (cut or _last_line)(data)]
            if whole:
                yield Block(whole, line)
            raise source.failure
        if is_last:
            if data:
                yield Block(data, line)
            return
        end = (cut or _last_line)(data)
        if not end:
            end = _last_line(data)
        if end:
            rest = data[end:]
            yield Block(data[:end], line)
            line += int(np.count_nonzero(np.frombuffer(data, np.uint8, end) == ord("\n")))
            continue
        yield Block(data[:LINE_MAX], line, is_whole=False)
        rest, is_last = _skip_line(source, size)
        line += 1
        if is_last:
            if source.failure is not None:
                raise source.failure
            if rest:
                yield Block(rest, line)
            return


def _last_line(data: bytes) -> int:
    return data.rfind(b"\n") + 1


def _skip_line(source: Readable, size: int) -> tuple[bytes, bool]:
    """Leave out the rest of a line; give what was read behind it, and whether that is all."""
    while True:
        data = source.read(size)
        end = data.find(b"\n") + 1
        if end or len(data) < size:
            return (data[end:] if end else b""), len(data) < size
