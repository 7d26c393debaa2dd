"""The figures the package is held to, measured beside the peers on one core, as a table.

    python -m benchmarks.report                      all, some minutes
    python -m benchmarks.report --figures 1,4        some of them
    python -m benchmarks.report --quick              small sizes: does it run?
    python -m benchmarks.report --json figures.json  every round, for comparing programs

What the columns mean and how far to trust them stands in `benchmarks/README.md`.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.comparison import Line, say, table
from benchmarks.figures_aggregation import (
    figure_13,
    figure_14,
    figure_15,
    figure_16,
    figure_17,
)
from benchmarks.figures_aio import figure_11
from benchmarks.figures_buffering import figure_9, figure_10
from benchmarks.figures_bulk_upsert import figure_24
from benchmarks.figures_files import figure_19
from benchmarks.figures_pipeline import figure_12
from benchmarks.figures_postgres import figure_20, figure_21, figure_22, figure_23
from benchmarks.figures_stored import figure_4, figure_5, figure_6
from benchmarks.figures_tables import figure_18
from benchmarks.figures_upkeep import figure_7, figure_8
from benchmarks.figures_writing import figure_1, figure_2, figure_3
from benchmarks.machine import Facts, UnfitFolderError, disk_folder, facts, pin
from benchmarks.peers import single_thread
from benchmarks.setting import Setting, Sizes

FIGURES: Mapping[int, Callable[[Setting], list[Line]]] = {
    1: figure_1,
    2: figure_2,
    3: figure_3,
    4: figure_4,
    5: figure_5,
    6: figure_6,
    7: figure_7,
    8: figure_8,
    9: figure_9,
    10: figure_10,
    11: figure_11,
    12: figure_12,
    13: figure_13,
    14: figure_14,
    15: figure_15,
    16: figure_16,
    17: figure_17,
    18: figure_18,
    19: figure_19,
    20: figure_20,
    21: figure_21,
    22: figure_22,
    23: figure_23,
    24: figure_24,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the arguments ask for and print the table."""
    chosen = _parser().parse_args(arguments)
    sizes = Sizes().quick() if chosen.quick else Sizes()
    rounds = chosen.rounds or (1 if chosen.quick else 5)
    pinned = pin(chosen.core)
    single_thread()
    lines: list[Line] = []
    try:
        with disk_folder(chosen.folder) as folder:
            ground = facts(folder, pinned)
            setting = Setting(folder, sizes, rounds)
            for number in chosen.figures:
                say(f"figure {number}")
                lines += FIGURES[number](setting)
                gc.unfreeze()
    except UnfitFolderError as error:
        raise SystemExit(str(error)) from None
    print(_heading(ground, rounds, quick=chosen.quick))
    print(table(lines))
    if chosen.json:
        chosen.json.write_text(_as_json(ground, lines, quick=chosen.quick), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--figures", type=_numbers, default=list(FIGURES), metavar="1,2,…")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round")
    parser.add_argument("--rounds", type=_positive, help="rounds that are counted (5)")
    parser.add_argument("--folder", type=Path, help="a folder on a disk, for the stores")
    parser.add_argument("--core", type=int, help="the core everything is kept to (the last)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there")
    return parser


def _numbers(text: str) -> list[int]:
    numbers = sorted({int(part) for part in text.split(",")})
    if unknown := [number for number in numbers if number not in FIGURES]:
        known = ", ".join(map(str, FIGURES))
        raise argparse.ArgumentTypeError(f"no figure {unknown[0]}; there are {known}")
    return numbers


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a number of rounds")
    return number


def _heading(ground: Facts, rounds: int, *, quick: bool) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in ground.packages.items())
    where = "not pinned" if ground.pinned is None else f"pinned to core {ground.pinned}"
    lines = [
        f"{ground.python} on one of {ground.cores} cores ({where})",
        f"stores on {ground.file_system}: 4 KiB append and sync {ground.sync_ms:.2f} ms",
        f"loop step {ground.loop_ns:.0f} ns",
        packages,
        f"medians of {rounds} rounds in turn; ratio is ours by theirs, median of the rounds",
    ]
    if ground.load > 0.5:
        lines.append(
            f"load {ground.load:.1f} before the run: others are at work; run when it is quiet"
        )
    if quick:
        lines.append("--quick: small sizes, on which no bar stands")
    return "\n".join([*lines, ""])


def _as_json(ground: Facts, lines: Sequence[Line], *, quick: bool) -> str:
    return json.dumps(
        {
            "machine": asdict(ground),
            "quick": quick,
            "lines": [{**asdict(line), "judged": line.judged, "met": line.met} for line in lines],
        },
        indent=2,
    )


if __name__ == "__main__":
    main()
