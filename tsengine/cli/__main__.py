"""Where the program begins: `tsengine`, or `python -m tsengine.cli`."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Final, NoReturn

EXTRA: Final = ("click", "rich", "uniplot")
"""What the extra `cli` brings."""


def main() -> NoReturn:
    """Run the command line and exit; without the extra `cli`, say how to get it."""
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"tsengine: the command line needs {', '.join(missing)}: pip install 'tsengine[cli]'\n"
        )
        sys.exit(2)
    from tsengine.cli.app import run  # noqa: PLC0415  # needs what may be missing

    sys.exit(run())


if __name__ == "__main__":
    main()
