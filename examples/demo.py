"""Real sensor data, point by point into an LMDB store, and back exactly.

    python examples/demo.py             # makes a folder below the temporary one, and names it
    python examples/demo.py ./readings  # a folder of yours, new or empty

The data are two files of the package `bokeh-sampledata`: a continuous glucose monitor
(readings about every five minutes, with gaps and repeated times) and the sea surface at
buoy B01 off Maine (every half hour). What the store gives back is compared with what
pandas reads from the same files by itself. The last word is `identical`, or the exit
status is 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import numpy as np
import pandas as pd

import tsengine
from tsengine import DataPoint, Labels
from tsengine.cli.readings import (
    CGM_FILE,
    CURRENT,
    GLUCOSE,
    NO_READING,
    SEA,
    SEA_FILE,
    file_text,
    path_of,
    read_glucose_monitor,
    read_sea,
)

DELETED: Final = ("2016-07-01T00:00:00Z", "2016-07-02T00:00:00Z")
"""The day that is deleted from the sea temperatures; like every range without its end."""

Place = tuple[Labels, int]
"""A series and a timestamp, where there is one value or several claim to be it."""

Columns = Mapping[Labels, tuple["np.ndarray", "np.ndarray"]]
"""By series, timestamps int64[n] in nanoseconds, increasing, and values float64[n]."""


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 where the store and pandas agree."""
    folder = _folder(arguments)
    url = f"lmdb://{quote(str(folder))}"
    points = [*read_glucose_monitor(), *read_sea()]
    counts = Counter(point.labels.name for point in points)
    say("data", ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    say("", "times of the glucose monitor name no zone: taken as UTC")
    say("store", str(folder))

    write(url, points)
    compact(url)
    with tsengine.open(url) as engine:
        was_exact = query(engine, points)
        latest(engine)
        policies(points)
        delete(engine)
        return compare(engine) if was_exact else 1


# What the store does with it.


def write(url: str, points: Iterable[DataPoint]) -> None:
    """Write each point by itself; the buffer makes few commits of many."""
    with tsengine.open(url) as engine:
        begin = time.perf_counter()
        with tsengine.WriteBuffer(engine) as buffer:
            for point in points:
                buffer.write(point)
        elapsed = time.perf_counter() - begin  # leaving the buffer has committed the rest
        written = buffer.committed.accepted
        say("written", f"{written:,} points one by one in {elapsed:.2f} s, synced to disk")
        say("", f"{written / elapsed:,.0f} points per second")


def compact(url: str) -> None:
    """Merge everything, give space back, and say what a point takes on disk."""
    csv_bytes = sum(len(file_text(name)) for name in (CGM_FILE, SEA_FILE))
    with tsengine.open(url) as engine:
        report = engine.compact()
        count = engine.count()
        before, after = report.bytes_before, report.bytes_after
        say("compacted", f"{before:,} bytes to {after:,}: {after / count:.2f} bytes per point")
        say("", f"({csv_bytes / count:.2f} in the CSV files) {report.reason}".rstrip())


def query(engine: tsengine.Engine, points: Iterable[DataPoint]) -> bool:
    """Query the store, which was closed since, and compare with the points written."""
    result = engine.query()
    stands: dict[Labels, dict[int, float]] = defaultdict(dict)
    for labels, timestamp, value in points:
        stands[labels][timestamp] = float(value)  # type: ignore[arg-type]  # all are floats
    expected = {
        labels: (np.array(sorted(rows)), np.array([rows[moment] for moment in sorted(rows)]))
        for labels, rows in stands.items()
    }
    exact = _differences(_columns(result), expected) == []
    say("reopened", f"{result.rows:,} points, {'exactly' if exact else 'NOT'} those written")
    hour = engine.query('glucose{device="cgm"}', "2010-03-24T09:50:00Z", "2010-03-24T10:10:00Z")
    for line in hour.to_pandas().to_string(index=False).splitlines():
        say("", line)
    return exact


def latest(engine: tsengine.Engine) -> None:
    """Show the newest point of each series."""
    for number, point in enumerate(engine.latest()):
        moment = pd.Timestamp(point.timestamp, tz="UTC").isoformat()
        say("" if number else "latest", f"{point.labels.id:<33}{moment}{point.value!s:>9}")


def policies(points: Iterable[DataPoint]) -> None:
    """Write the repeated times under each policy, and show what becomes of them."""
    given: dict[Place, list[DataPoint]] = defaultdict(list)
    for point in points:
        given[point.labels, point.timestamp].append(point)
    repeated = {place: several for place, several in given.items() if len(several) > 1}

    rows = {place: [_cell(point.value for point in repeated[place])] for place in repeated}
    heads = ["written"]
    refusals = []
    for policy in tsengine.DuplicatePolicy:
        with tsengine.open("memory://", duplicate_policy=policy.value) as engine:
            try:
                engine.write(point for several in repeated.values() for point in several)
            except tsengine.DuplicatePointError as error:
                named = ", ".join(map(str, error.indices))
                refusals.append(
                    f"{policy.value}: refuses the batch, names points {named}, keeps "
                    f"{engine.count()}"
                )
                continue
            heads.append(policy.value)
            for batch in engine.query():
                for point in batch.points():
                    rows[point.labels, point.timestamp].append(_cell([point.value]))

    say("repeated", f"{'what each duplicate policy keeps':<33}" + _table_row(heads))
    for (labels, timestamp), cells in rows.items():
        place = f"  {labels.name:<15} {pd.Timestamp(timestamp):%m-%d %H:%M}"
        say("", f"{place:<33}" + _table_row(cells))
    for refusal in refusals:
        say("", refusal)


def _cell(values: Iterable[object]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _table_row(cells: list[str]) -> str:
    return f"{cells[0]:>13}" + "".join(f"{cell:>7}" for cell in cells[1:])


def delete(engine: tsengine.Engine) -> None:
    """Delete a day of one series."""
    before = engine.count(SEA)
    engine.delete(SEA, *DELETED)
    after = engine.count(SEA)
    say("deleted", f"{DELETED[0][:10]} of {SEA.name}: {before:,} points before, {after:,} after")


# The same files read by pandas, which knows nothing of the above.


def compare(engine: tsengine.Engine) -> int:
    """Compare timestamps and values, bit for bit; 0 where all are equal."""
    differences = _differences(_columns(engine.query()), read_by_pandas())
    say("pandas", f"reads {CGM_FILE} and {SEA_FILE}, keeps the last of repeated times,")
    say("", "drops the deleted day; timestamps and values compared bit for bit:")
    for difference in differences:
        say("", difference)
    say("", "different" if differences else "identical")
    return 1 if differences else 0


def read_by_pandas() -> Columns:
    """Read the columns that the store should hold by now."""
    # As text first: older pandas read floats from CSV an ulp off, and convert text exactly.
    monitor = pd.read_csv(path_of(CGM_FILE), na_values=[NO_READING], dtype=str)
    sea = pd.read_csv(path_of(SEA_FILE), dtype=str)
    sea.columns = pd.Index(["datetime", "celsius"])
    readings = {
        GLUCOSE: monitor.set_index("datetime")["glucose"],
        CURRENT: monitor.set_index("datetime")["isig"].dropna(),
        SEA: sea.set_index("datetime")["celsius"],
    }
    columns = {}
    for labels, column in readings.items():
        frame = pd.DataFrame(
            {
                "timestamp": pd.to_datetime(column.index, utc=True).as_unit("ns"),
                "value": column.astype(np.float64).to_numpy(),
            }
        ).drop_duplicates("timestamp", keep="last")
        if labels is SEA:
            start, end = map(pd.Timestamp, DELETED)
            frame = frame[(frame.timestamp < start) | (frame.timestamp >= end)]
        frame = frame.sort_values("timestamp")
        columns[labels] = frame.timestamp.astype(np.int64).to_numpy(), frame.value.to_numpy()
    return columns


def _columns(result: tsengine.QueryResult) -> Columns:
    return {batch.labels: (batch.timestamps, batch.values) for batch in result}


def _differences(ours: Columns, theirs: Columns) -> list[str]:
    """Say where columns differ; bytes are compared, so −0.0 is not 0.0 and NaN is itself."""
    found = [f"only on one side: {labels.id}" for labels in ours.keys() ^ theirs.keys()]
    for labels in ours.keys() & theirs.keys():
        for name, mine, other in zip(
            ("timestamps", "values"), ours[labels], theirs[labels], strict=True
        ):
            if mine.dtype != other.dtype or mine.tobytes() != other.tobytes():
                found.append(f"{name} of {labels.id} differ")
    return found


# The frame.


def say(topic: str, text: str) -> None:
    """Print a line, its topic in a column of its own."""
    print(f"{topic:<11}{text}", flush=True)


def _folder(arguments: list[str] | None) -> Path:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, help="new or empty; never cleared")
    folder: Path | None = parser.parse_args(arguments).folder
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="tsengine-demo-"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        parser.error(f"{folder} holds something already, which the demo leaves alone")
    return folder.absolute()


if __name__ == "__main__":
    sys.exit(main())
