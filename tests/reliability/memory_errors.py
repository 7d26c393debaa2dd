"""Memory that runs out: every allocation of every operation fails once.

`_testcapi.set_nomemory` makes Python's allocators refuse the k-th allocation from a moment on,
or twenty from the k-th on. The victim does one call with that, gets memory back, and then sees
to it that the call has happened as a whole or not at all, that what it raised is not taken, that
the next calls work, that `check()` finds nothing, that no reader is counted and nothing pinned,
and that the store can be closed and opened.

What the allocators of others do with the failure is theirs: CPython tells some as TypeError or
SystemError, RE2 crashes while it compiles. It is counted by name. The memory of numpy's arrays
and of LMDB comes from elsewhere and does not fail here.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

OPERATIONS: Final = (
    "write",
    "write_series",
    "flush_staged",
    "buffer_write",
    "buffer_write_new",
    "buffer_write_filling",
    "buffer_write_many",
    "buffer_write_series",
    "flush",
    "query",
    "query_many",
    "scan",
    "look",
    "stats",
    "delete_rows",
    "delete_series",
    "compact",
    "snapshot",
    "check",
    "close_buffer",
    "close",
    "open_again",
)
WAYS: Final = ("one", "twenty")
SECONDS_MAX: Final = 600
VICTIM: Final = Path(__file__).with_name("memory_errors_victim.py")


def run(
    scheme: str,
    folder: Path,
    ks: Sequence[int],
    *,
    operations: Sequence[str] = OPERATIONS,
    ways: Sequence[str] = WAYS,
    fault: str = "",
) -> Counter[str]:
    """Do operations with each k; give how often what was raised.

    Args:
        scheme: of which backend.
        folder: an empty one.
        ks: numbers of the allocations that fail.
        operations: which.
        ways: how they fail.
        fault: one that the victim plants.

    Raises:
        AssertionError: a promise was broken, or the victim crashed or hangs.
    """
    asked = {
        "scheme": scheme,
        "folder": str(folder),
        "operations": list(operations),
        "ways": list(ways),
        "ks": list(ks),
        "fault": fault,
    }
    done = subprocess.run(
        [sys.executable, str(VICTIM), json.dumps(asked)],
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    outcomes: Counter[str] = Counter()
    cases = 0
    for line in done.stdout.splitlines():
        operation, way, k, outcome = line.split(" ", 3)
        assert not outcome.startswith(("broken", "hang")), (
            f"{scheme}: {operation} with allocation {k} failing ({way}): {outcome}"
        )
        outcomes[outcome] += 1
        cases += 1
    expected = len(operations) * len(ways) * len(ks)
    assert cases == expected, (
        f"{scheme}: {cases} of {expected} cases were done, the last {done.stdout[-80:]!r}: "
        f"{done.stderr[-2_000:]}"
    )
    return outcomes


def torture(seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Do random operations with random allocations failing; give how often what was raised."""
    chance = random.Random(seed)
    outcomes: dict[str, Counter[str]] = {"lmdb": Counter(), "memory": Counter()}
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        scheme = chance.choice(["lmdb", "memory"])
        here = folder / f"memory-{number}"
        here.mkdir()
        ks = sorted(chance.sample(range(1, 1_500), 40))
        operation = chance.choice(OPERATIONS)
        try:
            outcomes[scheme] += run(scheme, here, ks, operations=[operation])
        except AssertionError as error:
            raise AssertionError(f"torture seed {seed}: {error}") from error
        number += 1
    return {scheme: dict(counted) for scheme, counted in outcomes.items()}
