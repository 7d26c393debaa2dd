"""Reading text: blocks at the speed of arrays, and row by row where something needs a look.

A reader has two ways to read a block. The fast one takes all of it or says that it cannot; then
the block is halved, until what is left is small and read row by row, with a reason for each row
that is bad. Both give the same points of the same bytes: tests hold them to it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

from tsengine.errors import TsEngineError
from tsengine.formats.blocks import LINE_MAX, SLOW_BYTES, Block
from tsengine.formats.intake import NOTHING, Intake, Judged, batches_of
from tsengine.model import GroupedBatch


class TextReader(ABC):
    """Reads blocks of text.

    Args:
        intake: judges the points, and takes what is bad.
    """

    def __init__(self, intake: Intake) -> None:
        self.intake = intake

    @abstractmethod
    def fast(self, block: Block) -> list[GroupedBatch] | None:
        """Give all points of a block, or None where it needs a look at each row."""

    @abstractmethod
    def slow(self, block: Block, *, is_last: bool) -> tuple[list[Judged], int]:
        """Give the points of a block row by row; rejects what is bad.

        Returns:
            The points, and how many bytes at the end may be the beginning of a row that goes on
            in the next block: none where it is the last.
        """

    def split(self, block: Block) -> list[Block]:
        """Cut a block in two between rows; itself where that cannot be done."""
        return block.halves()

    def read(self, blocks: Iterable[Block]) -> Iterator[GroupedBatch]:
        """Give the points of blocks, in their order.

        An empty batch comes of rows that are all rejected, so that whoever takes it can stop.
        """
        carried = b""
        carried_line = 0
        for block, is_last in _with_last(blocks):
            todo = [block]
            while todo:
                part = todo.pop()
                if not part.is_whole:
                    if carried:  # and never goes on
                        points, _ = self.slow(Block(carried, carried_line), is_last=True)
                        yield from batches_of(points)
                        carried = b""
                    self.intake.rejects.add(
                        part.line, f"a line longer than {LINE_MAX} bytes", part.data
                    )
                    yield NOTHING
                    continue
                if carried:
                    # Inside of a row, so that there is nothing to be split or read fast; and a
                    # part that is split would be carried, and split, without end.
                    if len(part.data) > SLOW_BYTES:
                        halves = self.split(part)
                        todo += reversed(halves[1:])
                        part = halves[0]
                    part = Block(carried + part.data, carried_line)
                    carried = b""
                else:
                    found = self.fast(part)
                    if found is not None:
                        yield from found
                        continue
                    halves = self.split(part) if len(part.data) > SLOW_BYTES else [part]
                    if len(halves) > 1:
                        todo += reversed(halves)
                        continue
                points, left = self.slow(part, is_last=is_last and not todo)
                yield from batches_of(points)
                if left:
                    carried = part.data[-left:]
                    carried_line = part.line + part.data.count(b"\n", 0, -left)


def _with_last(blocks: Iterable[Block]) -> Iterator[tuple[Block, bool]]:
    """Say of each block whether it is the last; a failure comes behind the block before it."""
    iterator = iter(blocks)
    block = next(iterator, None)
    while block is not None:
        following: Block | None = None
        failure: TsEngineError | None = None
        try:
            following = next(iterator, None)
        except TsEngineError as error:
            failure = error
        yield block, following is None
        if failure is not None:
            raise failure
        block = following
