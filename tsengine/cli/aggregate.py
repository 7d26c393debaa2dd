"""`tsengine aggregate`: rows reduced in windows of time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import click

import tsengine
from tsengine.aggregation import Fill
from tsengine.aggregation.asking import FUNCTION_LABEL
from tsengine.cli.arguments import (
    examples,
    format_option,
    range_options,
    selector_argument,
    store_argument,
)
from tsengine.cli.moments import MOMENT
from tsengine.cli.output import Format, JsonCell, Row, write_rows
from tsengine.cli.stores import open_for_reading
from tsengine.cli.texts import timestamp_texts, value_texts
from tsengine.model import Labels, SeriesBatch


class FillType(click.ParamType[Fill]):
    """A word of `Fill`, or a number; what is neither is judged by the engine."""

    name = "fill"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Fill:
        """Give an integer or a float where the text is one."""
        text = str(value)
        for number in (int, float):
            try:
                return number(text)
            except ValueError:
                pass
        return text  # type: ignore[return-value]  # another word is refused by name, with those known


@click.command(
    epilog=examples(
        "tsengine aggregate lmdb://metrics cpu_usage -F mean -F max --every 5m --by region",
        "tsengine aggregate lmdb://metrics cpu_usage -F 'quantile(0.99)' --merge --format json",
        "tsengine aggregate lmdb://metrics requests_total -F rate --every 1m --fill 0 --start -6h",
    )
)
@store_argument
@selector_argument
@click.option(
    "-F",
    "--function",
    "functions",
    multiple=True,
    required=True,
    metavar="NAME",
    help="count, sum, mean, min, max, range, first, last, stddev, variance, median, "
    "'quantile(0.95)', delta, increase or rate; give it again for more, in one pass.",
)
@click.option(
    "--every", metavar="DURATION", help="Length of the windows, such as 5m; else the whole range."
)
@click.option(
    "--by", multiple=True, metavar="LABEL", help="Merge series that are equal in these labels."
)
@click.option("--merge", is_flag=True, help="Merge all series into one.")
@click.option("--origin", type=MOMENT, help="A time at which a window begins; else 1970.")
@click.option(
    "--fill",
    type=FillType(),
    default="none",
    metavar="WORD|NUMBER",
    help="What stands in empty windows: none, null, previous, linear, or a number.",
)
@range_options
@format_option
def aggregate(
    store: str,
    selector: str | None,
    functions: tuple[str, ...],
    every: str | None,
    by: tuple[str, ...],
    merge: bool,
    origin: int | None,
    fill: Fill,
    start: int | None,
    end: int | None,
    form: Format | None,
) -> None:
    """Reduce rows in windows of time, series by series or merged.

    One row a series and window, a column for each function. Times are those at which windows begin;
    without --every that is --start, or else the time of the first row. Memory goes by windows, not
    by points.
    """
    if merge and by:
        raise click.UsageError("--merge makes one group of all; it does not go with --by")
    with open_for_reading(store) as engine:
        answer = engine.aggregate(
            selector,
            start,
            end,
            functions=list(functions),
            every=every,
            group_by=list(by) if by else [] if merge else None,
            origin=origin,
            fill=fill,
        )
    write_rows(("series", "timestamp", *functions), rows_of(answer, functions), form)


def rows_of(answer: Iterable[SeriesBatch], functions: Sequence[str]) -> Iterator[Row]:
    """Iterate over the windows of an answer: series ID, time, what each function gives."""
    for labels, columns in by_series(answer, functions).items():
        times = timestamp_texts(columns[0].timestamps)
        cells = [
            map(JsonCell, column.values.tolist(), value_texts(column.values)) for column in columns
        ]
        for moment, *values in zip(times, *cells, strict=True):
            yield labels.id, moment, *values


def by_series(
    answer: Iterable[SeriesBatch], functions: Sequence[str]
) -> dict[Labels, list[SeriesBatch]]:
    """Give the batches of each series, or group of series, in the order of the functions.

    All of one series have the same windows.
    """
    if len(functions) == 1:
        return {batch.labels: [batch] for batch in answer}
    found: dict[Labels, dict[str, SeriesBatch]] = {}
    for batch in answer:
        texts = dict(batch.labels.items())
        function = texts.pop(FUNCTION_LABEL)
        found.setdefault(tsengine.Labels(texts), {})[function] = batch
    return {
        labels: [found[labels][function] for function in functions]
        for labels in sorted(found, key=lambda labels: labels.id)
    }
