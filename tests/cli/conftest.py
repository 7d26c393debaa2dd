"""A store to be asked, and a folder to run the program in."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

import tsengine
from tsengine import Labels
from tsengine.formats import export

HOUR = 3_600 * 10**9


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stores, alike, and files that examples name, never changed."""
    folder = tmp_path_factory.mktemp("stores")
    start, now = tsengine.timestamp("2026-01-01T00:00:00Z"), time.time_ns()
    for name in ("metrics", "archive"):
        with tsengine.open(f"lmdb://{folder}/{name}") as engine:
            for number, host in enumerate(("web-1", "web-2", "db-1")):
                region = "us" if host == "db-1" else "eu"
                cpu = Labels("cpu_usage", host=host, region=region)
                times = [*range(start, start + 24 * HOUR, HOUR // 4), now - HOUR // 2, now - 10**9]
                engine.write_series(cpu, times, [number + step / 7 for step in range(len(times))])
                requests = Labels("requests_total", host=host)
                engine.write_series(requests, times, list(map(float, range(len(times)))))
            engine.write([(Labels("door", room="lab"), start, {"open": True, "by": "\x1b[31m"})])
    with tsengine.open(f"lmdb://{folder}/metrics", read_only=True) as engine:
        for name in ("points.csv.gz", "big.parquet"):
            export(engine, str(folder / name), "cpu_usage")
    (folder / "rooms.csv").write_text("at,room,celsius\n2026-01-01 12:00:00,lab,20.5\n")
    (folder / "influx.lp").write_text("cpu,host=web-1 usage=0.5 1767268800000\n")
    return folder


@pytest.fixture
def folder(stores: Path, tmp_path: Path) -> Path:
    """A copy of these stores that a test may change."""
    shutil.copytree(stores, tmp_path, dirs_exist_ok=True)
    return tmp_path
