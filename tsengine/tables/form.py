"""The form of a table: which column holds the time, which are labels, which are values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from tsengine.errors import BatchShapeError, InvalidDataError, LabelsError, SelectorError
from tsengine.model import Labels, check_label_text
from tsengine.selectors import MatchOperator, to_selector

POINTS_MAX: Final = 1 << 24
"""Points of a wide table that one commit takes: 128 MiB of values, and twice that on the way."""

LONG_ROWS_MAX: Final = 1 << 19
"""The same of a long one, whose rows have to be brought to their series first."""

TIME: Final = "timestamp"
VALUE: Final = "value"
NAME: Final = "__name__"

LabelColumns: TypeAlias = "Sequence[str] | Mapping[str, str]"
"""Columns of labels, or the label that each of some columns holds."""

ValueColumns: TypeAlias = "str | Sequence[str] | Mapping[str, str | Labels | Mapping[str, str]]"
"""The column of values of a long table, those of a wide one, or what series each of them makes."""


@dataclass(frozen=True, slots=True)
class ValueColumn:
    """A column of values, and the labels that its series have by it."""

    name: str
    labels: Labels

    def series(self, shared: Mapping[str, str]) -> Labels:
        """Give the series of the column where rows have no labels of their own."""
        return Labels({**shared, **self.labels}) if shared else self.labels


@dataclass(frozen=True, slots=True)
class Form:
    """What the columns of a table are.

    Attributes:
        time: the column of times.
        labels: the label that each column of labels holds.
        values: the columns of values, at least one.
        shared: labels of all series.
        is_long: whether a null is no value, rather than no row.
        skip_nan: whether a NaN is no row.
    """

    time: str
    labels: Mapping[str, str]
    values: Sequence[ValueColumn]
    shared: Mapping[str, str]
    is_long: bool
    skip_nan: bool = False

    @property
    def columns(self) -> list[str]:
        """The names of the columns of values."""
        return [column.name for column in self.values]

    def part_rows(self, points_max: int) -> int:
        """How many rows to take at a time."""
        if self.is_long:
            return min(points_max, LONG_ROWS_MAX)
        return max(points_max // max(len(self.values), 1), 1)


def form_of(
    columns: Sequence[str],
    *,
    index: str | None = None,
    time: str | None = None,
    labels: LabelColumns | None = None,
    values: ValueColumns | None = None,
    shared_labels: Mapping[str, str] | None = None,
    skip_nan: bool = False,
) -> Form:
    """Resolve what `Engine.write_table` was told of a table.

    Args:
        columns: the names of its columns.
        index: the name by which an unnamed index of times is given, where there is one.
        time: this and what follows as for `Engine.write_table`.
        labels: likewise.
        values: likewise.
        shared_labels: likewise.
        skip_nan: likewise.

    Raises:
        BatchShapeError: columns are missing, stand there twice or serve two ends, or two of
            them make one series.
        LabelsError: labels are none.
    """
    if time is None:
        time = index if TIME not in columns and index is not None else TIME
    _check_name(time, "time")
    if values is None:
        values = VALUE if VALUE in columns else None
    if labels is None:
        taken = {time, values} if isinstance(values, str) else None
        own = [] if taken is None else [name for name in columns if name not in taken]
        labels = {name: _undone(name) for name in own}
    elif not isinstance(labels, Mapping):
        labels = {name: _undone(name) for name in _texts(labels, "labels")}
    if values is None:
        values = [name for name in columns if name != time and name not in labels]
    if not isinstance(shared_labels, Mapping | None):
        raise LabelsError(f"shared_labels is a mapping of text, not {shared_labels!r}")
    shared = dict(shared_labels or {})
    for name, text in shared.items():
        check_label_text(name, "name")
        check_label_text(text, "value")
    is_named = NAME in shared or NAME in labels.values()
    form = Form(
        time,
        labels,
        _value_columns(values, is_named=is_named),
        shared,
        is_long=isinstance(values, str),
        skip_nan=skip_nan,
    )
    _check(form, columns if index is None else [*columns, index])
    return form


def _undone(column: str) -> str:
    """The label of a column, as `QueryResult` names columns of labels."""
    name = column
    while name.startswith("label_"):
        name = name.removeprefix("label_")
    return column.removeprefix("label_") if name in (TIME, VALUE) else column


def _texts(given: object, what: str) -> list[str]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise BatchShapeError(f"{what} is a sequence of columns or a mapping, not {given!r}")
    for name in given:
        _check_name(name, what)
    return list(given)


def _check_name(name: object, what: str) -> None:
    if not isinstance(name, str):
        raise BatchShapeError(f"{what}: columns of a table are named by text, not by {name!r}")


def _value_columns(values: ValueColumns, *, is_named: bool) -> list[ValueColumn]:
    if isinstance(values, str):
        # The value of a long table: its column says the metric, unless a label does.
        is_plain = is_named or values == VALUE
        return [ValueColumn(values, Labels() if is_plain else _labels_of(values))]
    if isinstance(values, Mapping):
        return [ValueColumn(name, _labels_of(given)) for name, given in values.items()]
    if is_named:
        raise BatchShapeError(
            f"columns {list(values)} name their series, and so does the label {NAME!r}; give "
            "values as a mapping of columns to labels"
        )
    return [ValueColumn(name, _labels_of(name)) for name in _texts(values, "values")]


def _labels_of(given: str | Labels | Mapping[str, str]) -> Labels:
    """Give the labels that a text, a series ID or a metric name, or a mapping stands for."""
    if not isinstance(given, str):
        return Labels(given)
    if "{" in given:
        try:
            matchers = to_selector(given).matchers
        except SelectorError:
            matchers = ()
        if all(matcher.operator is MatchOperator.EQUAL for matcher in matchers):
            try:
                labels = Labels({matcher.name: matcher.value for matcher in matchers})
            except InvalidDataError:
                labels = Labels()
            if labels and len(labels) == len(matchers):
                return labels
    return Labels(given)


def _check(form: Form, columns: Sequence[str]) -> None:
    if not form.values and (form.labels or len(columns) > 1):
        raise BatchShapeError(f"a table has columns of values; this one has {list(columns)}")
    used = Counter([form.time, *form.labels, *form.columns])
    there = Counter(columns)
    for name, uses in used.items():
        if there[name] != 1:
            what = "no column" if name not in there else "two columns"
            raise BatchShapeError(
                f"the table has {what} {name!r}, and one is to be read; it has {list(columns)}"
            )
        if uses > 1:
            raise BatchShapeError(f"column {name!r} is asked for as two of time, labels, values")
    named = [*form.labels.values(), *form.shared]
    if len(set(named)) < len(named):
        raise BatchShapeError(f"two columns of a table hold the same label: {named}")
    series: set[Labels] = set()
    for column in form.values:
        if both := set(column.labels) & set(named):
            raise BatchShapeError(
                f"column {column.name!r} gives its series the label {min(both)!r}, and so do others"
            )
        series.add(column.labels)
    if len(series) < len(form.values):
        raise BatchShapeError(f"two of the columns {form.columns} make the same series")
