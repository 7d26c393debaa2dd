"""`tsengine series` and `tsengine labels`: what there is in a store."""

from __future__ import annotations

from collections.abc import Iterator

import click

from tsengine.cli.arguments import examples, format_option, selector_argument, store_argument
from tsengine.cli.output import Format, JsonCell, Row, write_rows
from tsengine.cli.stores import open_for_reading
from tsengine.cli.texts import timestamp_text, value_text
from tsengine.engine import Engine


@click.command(
    epilog=examples(
        "tsengine series lmdb://metrics",
        "tsengine series lmdb://metrics 'cpu_usage{region=~\"eu|us\"}' --long",
        "tsengine series lmdb://metrics --format csv | wc -l",
    )
)
@store_argument
@selector_argument
@click.option("-l", "--long", "is_long", is_flag=True, help="With rows, first and last time.")
@format_option
def series(store: str, selector: str | None, is_long: bool, form: Format | None) -> None:
    """List series by their IDs.

    Each is a selector of itself.     Series without rows are listed, too: their rows were deleted,
    or are older than the retention.
    """
    with open_for_reading(store) as engine:
        if is_long:
            columns = ("series", "rows", "first", "last", "last_value")
            write_rows(columns, _long_rows(engine, selector), form)
        else:
            write_rows(("series",), ([labels.id] for labels in engine.series(selector)), form)


def _long_rows(engine: Engine, selector: str | None) -> Iterator[Row]:
    counts = {
        batch.labels: int(batch.values[0])
        for batch in engine.aggregate(selector, functions=["count"])
    }
    first = {point.labels: point.timestamp for point in engine.earliest(selector)}
    last = {point.labels: point for point in engine.latest(selector)}
    for labels in engine.series(selector):
        newest = last.get(labels)
        if newest is None or labels not in first:
            yield labels.id, 0, None, None, None
            continue
        yield (
            labels.id,
            counts.get(labels, 0),
            timestamp_text(first[labels]),
            timestamp_text(newest.timestamp),
            value_cell(newest.value),
        )


def value_cell(value: object) -> JsonCell:
    """Give the cell of one value."""
    return JsonCell(value, value_text(value))


@click.command(
    epilog=examples(
        "tsengine labels lmdb://metrics",
        "tsengine labels lmdb://metrics host",
        "tsengine labels lmdb://metrics region --format json",
    )
)
@store_argument
@click.argument("name", required=False, metavar="[NAME]")
@format_option
def labels(store: str, name: str | None, form: Format | None) -> None:
    """List the names of labels, or the values of one.

    With each name stands how many values it has.     The name of a metric is the label __name__.
    """
    with open_for_reading(store) as engine:
        if name is not None:
            write_rows(("value",), ([value] for value in engine.label_values(name)), form)
            return
        rows: Iterator[Row] = (
            (each, len(engine.label_values(each))) for each in engine.label_names()
        )
        write_rows(("name", "values"), rows, form)
