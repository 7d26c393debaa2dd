"""Copies one store into another in a process of its own, whose memory somebody watches.

    python -m benchmarks.copying SOURCE_URL TARGET_URL

Prints the number of points as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import tsengine
from benchmarks.ours import open_engine


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy between the two URLs of the arguments."""
    source_url, target_url = sys.argv[1:] if arguments is None else arguments
    with (
        tsengine.open(source_url, read_only=True) as source,
        open_engine(target_url) as target,
    ):
        print(json.dumps(tsengine.copy(source, target).accepted))


if __name__ == "__main__":
    main()
