"""The memory backend: everything in numpy columns of this process.

    ranges.py           vectorised work on many short ranges of rows
    ring.py             the columns of all series of one kind
    catalogue.py        which series there are, by ID and by label
    total_cap.py        which rows are the oldest of all
    store.py            all of these, and looking at them
    commit.py           one commit: judged as a whole, then applied as a whole
    snapshot_file.py    a store as one MessagePack file: its format, and writing it
    snapshot_reader.py  reading it back
    engine.py           MemoryEngine

The design page is docs/design/memory_backend.md.
"""

from tsengine.backends.memory.engine import MemoryEngine

__all__ = ["MemoryEngine"]
