"""Where the program begins: `tsengine`, or `python -m tsengine.cli`."""

from __future__ import annotations

import sys
from typing import Final, NoReturn

EXTRA: Final = frozenset({"click", "plotext", "rich"})
"""What the extra `cli` brings."""


def main() -> NoReturn:
    """Run the command line and exit; without the extra `cli`, say how to get it."""
    try:
        from tsengine.cli.app import run  # noqa: PLC0415  # needs click, which may be missing
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        sys.exit(_refuse(error.name))
    sys.exit(run())


def _refuse(module: str) -> int:
    sys.stderr.write(
        f"tsengine: the command line needs the module {module!r}: pip install 'tsengine[cli]'\n"
    )
    return 2


if __name__ == "__main__":
    main()
