"""Topics that fail, for the tests of `torture`: its seed chooses how."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

PASSES: Final = 0
BREAKS: Final = 1
DIES: Final = 2
LEAVES_A_CHILD: Final = 3


def torture(seed: int, seconds: float, folder: Path) -> dict[str, object]:
    """Do what the seed says."""
    assert seed != BREAKS, f"seed {seed}: a promise is broken"
    if seed == DIES:
        os.kill(os.getpid(), signal.SIGBUS)
    if seed == LEAVES_A_CHILD:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        return {"child": child.pid}
    return {"seconds": seconds, "folder": folder.is_dir()}
