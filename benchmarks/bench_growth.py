"""The growing store, once at tiny sizes: that it runs, measures and draws."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.growth import Sizes, lines_of, measure, report_of
from benchmarks.growth_chart import draw, load


def test_a_store_grows_and_is_measured(tmp_path: Path) -> None:
    """Each size gives its figures, they survive JSON, and the chart is drawn from that."""
    sizes = Sizes().quick()
    measured = measure(tmp_path, sizes)
    assert [stage.points for stage, _ in measured] == list(sizes.stages)
    for number, (stage, fresh) in enumerate(measured, 1):
        assert len(lines_of(number, stage, fresh)) == len(lines_of(1, *measured[0]))
        assert stage.live <= stage.file
    assert measured[-1][0].series > sizes.series, "no series was replaced"
    report, chart = tmp_path / "growth.json", tmp_path / "growth.svg"
    report.write_text(json.dumps(report_of(measured)), encoding="utf-8")
    assert load(report) == measured
    draw(load(report), chart)
    assert "<svg" in chart.read_text(encoding="utf-8")
