"""Mapping: which columns of a file are the time, which are labels, which are values.

What is not said is found by names and by a look at the first rows, and is told:

    timestamp_ns, …_us, …_ms, …_s   time in that unit
    timestamp, time, ts, datetime, date, _time   time, its form by its looks
    value, value_int, value_object  values: numbers, int64, objects as JSON; as `export` writes
    else: columns of numbers alone  values, each a metric of that name
    all others                      labels of that name

A label that is called like one of these has `label_` before its name in a file.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tsengine.errors import FormatError, ValueKindError
from tsengine.formats.times import UNITS, TimeForm, guess_form
from tsengine.formats.values import ValueForm, read_number
from tsengine.model import METRIC_NAME, check_label_text

TIME_COLUMN: Final = "timestamp_ns"
TIME_COLUMN_TYPED: Final = "timestamp"
"""Where the format itself has a type for time."""

VALUE_COLUMNS: Final = {
    "value": ValueForm.AUTO,
    "value_int": ValueForm.INT,
    "value_object": ValueForm.JSON,
}
RESERVED: Final = frozenset({TIME_COLUMN, TIME_COLUMN_TYPED, *VALUE_COLUMNS})

_PREFIX: Final = "label_"
_TIME_NAMES: Final = ("timestamp", "time", "ts", "datetime", "date", "_time")


@dataclass(frozen=True, slots=True)
class Choices:
    """What a caller says of the columns; what is left out is guessed.

    Attributes:
        time: the column of times.
        time_form: how they are written, as in `TimeForm`.
        zone: the zone of times without one.
        values: columns of values.
        value_form: how all values are meant.
        labels: columns of labels; others are left out then.
        metric: the metric name, or what stands before the column's where there are several.
        constants: labels that every series gets.
        separator: stands between metric and column, measurement and field.
    """

    time: str | None = None
    time_form: str | None = None
    zone: str | None = None
    values: Sequence[str] = ()
    value_form: ValueForm | None = None
    labels: Sequence[str] | None = None
    metric: str | None = None
    constants: MappingOf[str, str] = field(default_factory=dict)
    separator: str = "_"

    def __post_init__(self) -> None:
        for name, value in self.constants.items():
            check_label_text(name, "name")
            check_label_text(value, f"value of {name!r}")
        if self.metric is not None:
            check_label_text(self.metric, "metric name")


@dataclass(frozen=True, slots=True)
class ValueColumn:
    """A column of values.

    Attributes:
        column: its name.
        form: how its texts are meant.
        metric: the metric name that it gives its series; None where a label column does.
    """

    column: str
    form: ValueForm
    metric: str | None


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """What each column is.

    Attributes:
        time: the column of times.
        time_form: how they are written.
        labels: label name of each column of labels.
        values: the columns of values.
        constants: labels that every series gets.
    """

    time: str
    time_form: TimeForm
    labels: MappingOf[str, str]
    values: Sequence[ValueColumn]
    constants: MappingOf[str, str]

    def __str__(self) -> str:
        zone = f" in {self.time_form.zone}" if self.time_form.zone else ""
        values = ", ".join(
            f"{value.column} ({value.form}{f', metric {value.metric}' if value.metric else ''})"
            for value in self.values
        )
        labels = ", ".join(
            column if column == name else f"{column} (as {name})"
            for column, name in self.labels.items()
        )
        more = ", ".join(f"{name}={value}" for name, value in self.constants.items())
        return (
            f"time: {self.time} ({self.time_form.form}{zone}); values: {values}; "
            f"labels: {labels or 'none'}{f'; constant: {more}' if more else ''}"
        )


def label_column(name: str) -> str:
    """Give the column in which a label stands."""
    return _PREFIX + name if name in RESERVED or name.startswith(_PREFIX) else name


def label_of_column(column: str) -> str:
    """Give the label that stands in a column."""
    rest = column.removeprefix(_PREFIX)
    is_prefixed = rest != column and (rest in RESERVED or rest.startswith(_PREFIX))
    return rest if is_prefixed else column


def resolve(
    columns: Sequence[str],
    sample: Sequence[MappingOf[str, str]],
    choices: Choices,
    *,
    typed_time: bool = False,
    numeric: frozenset[str] | None = None,
) -> ColumnMapping:
    """Find out what each column is.

    Args:
        columns: names, in order.
        sample: the first rows, as text by column.
        choices: what the caller says.
        typed_time: whether the column of times has a type of its own.
        numeric: the columns of numbers, where types tell.

    Raises:
        FormatError: columns are missing, or there twice, or nothing is a time or a value.
    """
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise FormatError(f"column {twice[0]!r} is there twice; name the columns anew")
    asked = [choices.time, *choices.values, *(choices.labels or ())]
    for column in asked:
        if column is not None and column not in columns:
            raise FormatError(f"there is no column {column!r}; there are {', '.join(columns)}")
    time = choices.time or _time_column(columns)
    rest = [column for column in columns if column != time]
    named = choices.labels or ()
    if choices.values:
        values = list(choices.values)
    else:
        values = [column for column in rest if column in VALUE_COLUMNS and column not in named]
        if not values:
            values = [
                column
                for column in rest
                if column not in named
                and (_is_numeric(column, sample) if numeric is None else column in numeric)
            ]
    if not values:
        raise FormatError(
            f"none of the columns {', '.join(columns)} holds numbers alone; say which hold values"
        )
    chosen = [column for column in rest if column not in values]
    labels = {column: label_of_column(column) for column in (choices.labels or chosen)}
    if choices.labels is not None and not choices.labels:
        labels = {}
    _check_labels(labels, choices)
    form = choices.time_form
    if form is None:
        texts = [row[time].strip() for row in sample if row.get(time, "").strip()]
        form = "ns" if typed_time else guess_form(time, texts)
    is_named = METRIC_NAME in labels.values() or METRIC_NAME in choices.constants
    return ColumnMapping(
        time,
        TimeForm(form, choices.zone),
        labels,
        [_value_column(column, values, choices, is_named=is_named) for column in values],
        choices.constants,
    )


def _check_labels(labels: MappingOf[str, str], choices: Choices) -> None:
    names = [*labels.values(), *choices.constants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise FormatError(f"label {twice[0]!r} would be given twice; leave one of them out")
    for column, name in labels.items():
        if not name:
            raise FormatError(
                f"a column has no name; say which are labels ({column!r} cannot be one)"
            )


def _time_column(columns: Sequence[str]) -> str:
    lowered = {column.lower(): column for column in reversed(columns)}
    for name in _TIME_NAMES:
        for candidate in (name, *(f"{name}_{unit}" for unit in UNITS)):
            if candidate in lowered:
                return lowered[candidate]
    raise FormatError(
        f"none of the columns {', '.join(columns)} is called like a time "
        f"({', '.join(_TIME_NAMES)}); say which it is"
    )


def _is_numeric(column: str, sample: Sequence[MappingOf[str, str]]) -> bool:
    texts = [row[column] for row in sample if row.get(column, "").strip()]
    try:
        for text in texts:
            read_number(text)
    except ValueKindError:
        return False
    return bool(texts)


def _value_column(
    column: str, values: Sequence[str], choices: Choices, *, is_named: bool
) -> ValueColumn:
    form = choices.value_form or VALUE_COLUMNS.get(column, ValueForm.AUTO)
    if column in VALUE_COLUMNS:
        metric = choices.metric or (None if is_named else "value")
    elif choices.metric is not None:
        one = len(values) == 1
        metric = choices.metric if one else f"{choices.metric}{choices.separator}{column}"
    else:
        metric = None if is_named else column
    if is_named and metric is not None:
        raise FormatError(
            f"column {METRIC_NAME} names the metric already; leave it out of the labels, or the "
            "metric"
        )
    return ValueColumn(column, form, metric)
