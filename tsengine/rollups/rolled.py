"""Rolled: what the results of a rollup are called, and which rows they are worked out from.

The mean of `cpu{host="a"}` in windows of five minutes is
`cpu:5m{__function__="mean",host="a"}`. The length of windows stands in the metric name, as in the
rules of Prometheus: a selector of the metric then never mixes raw points with results. The
function stands in the label by which `Engine.aggregate` tells functions apart, so that
`query("cpu:5m")` answers as `aggregate` does.

Of series that are merged by region it is `cpu:5m_by_region{…}`, and `cpu:5m_all{…}` of all merged:
no rollup of other groups, or of single series, has results of that name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from tsengine.aggregation import FUNCTION_LABEL
from tsengine.errors import AggregationError
from tsengine.model import METRIC_NAME, Labels, duration_text
from tsengine.selectors import Matcher, MatchOperator, Selector

COMPOSED: Final = {
    "count": "sum",
    "sum": "sum",
    "min": "min",
    "max": "max",
    "first": "first",
    "last": "last",
}
"""Functions that can be worked out from results of their own, and by which function."""

_REGULAR: Final = (MatchOperator.MATCHES, MatchOperator.NOT_MATCHES)


class Pass(NamedTuple):
    """What one aggregation answers.

    Attributes:
        selector: the series that are read.
        functions: asked of `aggregate`.
        names: what each is called in its result.
    """

    selector: Selector
    functions: tuple[str, ...]
    names: tuple[str, ...]


class Rolled:
    """The series of one rollup.

    Args:
        selector: of raw series.
        functions: names, valid.
        every: length of a window, nanoseconds.
        origin: a moment at which windows begin, nanoseconds.
        group_by: as in `Engine.aggregate`.
        name: metric name of grouped results; None keeps that of the group.
        of: length of the windows of the rollup that is read, of single series; None reads raw
            points.

    Raises:
        AggregationError: these do not go together.

    Attributes:
        passes: what is to be aggregated.
        group_by: as given.
    """

    def __init__(
        self,
        selector: Selector,
        functions: Sequence[str],
        every: int,
        *,
        origin: int,
        group_by: Sequence[str] | None,
        name: str | None,
        of: int | None,
    ) -> None:
        _check_grouping(selector, group_by, name)
        self.group_by = None if group_by is None else tuple(group_by)
        self._selector = selector
        self._functions = tuple(functions)
        self._name = name
        self._suffix = suffix(every, origin) + _grouping(group_by)
        self._suffix_read = ""
        self._known: dict[tuple[Labels, str], Labels] = {}  # as many as there are results
        if of is None:
            self.passes = [Pass(_raw(selector), self._functions, self._functions)]
            return
        _check_composition(functions, every, of)
        self._suffix_read = suffix(of, origin)
        self.passes = [
            Pass(self._read(function), (COMPOSED[function],), (function,))
            for function in self._functions
        ]

    def labels(self, group: Labels, function: str) -> Labels:
        """Give the labels of a result.

        Args:
            group: labels of the group, or of the series, that was aggregated.
            function: what the result is called.

        Raises:
            LabelsError: they are too long.
        """
        known = self._known.get((group, function))
        if known is None:
            texts = dict(group.items())
            name = texts.get(METRIC_NAME, "") if self._name is None else self._name
            texts[METRIC_NAME] = name.removesuffix(self._suffix_read) + self._suffix
            texts[FUNCTION_LABEL] = function
            known = self._known[group, function] = Labels(texts)
        return known

    @property
    def stored(self) -> Selector:
        """Selects the results in the target; where `owns` says so of one, it is ours."""
        matchers = _renamed(self._matchers(), self._suffix)
        if self._name is not None:
            matchers.append(Matcher(METRIC_NAME, MatchOperator.EQUAL, self._name + self._suffix))
        functions = "|".join(map(re.escape, self._functions))
        matchers.append(Matcher(FUNCTION_LABEL, MatchOperator.MATCHES, functions))
        return Selector(matchers)

    def owns(self, labels: Labels) -> bool:
        """Whether a series that `stored` selects is of this rollup."""
        exact = self._selector.exact
        if self.group_by is not None:
            return labels.keys() <= {*self.group_by, METRIC_NAME, FUNCTION_LABEL}
        return exact is None or labels is self.labels(exact, labels[FUNCTION_LABEL])

    def _matchers(self) -> list[Matcher]:
        """Give the conditions that a result must satisfy."""
        matchers = self._selector.matchers
        if self.group_by is None:
            return list(matchers)
        names = set(self.group_by) - ({METRIC_NAME} if self._name is not None else set())
        return [matcher for matcher in matchers if matcher.name in names]

    def _read(self, function: str) -> Selector:
        """Select the results of another rollup."""
        suffix = self._suffix_read
        exact = self._selector.exact
        if exact is not None:
            texts = dict(exact.items())
            texts[METRIC_NAME] = texts.get(METRIC_NAME, "") + suffix
            return Selector(exact=Labels({**texts, FUNCTION_LABEL: function}))
        matchers = _renamed(self._selector.matchers, suffix)
        return Selector([*matchers, Matcher(FUNCTION_LABEL, MatchOperator.EQUAL, function)])


def suffix(every: int, origin: int) -> str:
    """Give what is added to a metric name: `:5m`, or `:1d_6h` where windows begin elsewhere."""
    phase = origin % every
    return f":{duration_text(every)}" + (f"_{duration_text(phase)}" if phase else "")


def _grouping(group_by: Sequence[str] | None) -> str:
    """Give what is added further: nothing, `_all`, or `_by_region_zone`."""
    if group_by is None:
        return ""
    names = sorted(set(group_by) - {METRIC_NAME})
    return "_".join(["_by", *names]) if names else "_all"


def _raw(selector: Selector) -> Selector:
    """Select what is no result, as a store may have both."""
    if selector.exact is not None:
        return selector
    return Selector([*selector.matchers, Matcher(FUNCTION_LABEL, MatchOperator.EQUAL, "")])


def _renamed(matchers: Sequence[Matcher], suffix: str) -> list[Matcher]:
    """Give conditions of raw series as those of their results."""
    ending = re.escape(suffix)
    renamed = [Matcher(METRIC_NAME, MatchOperator.MATCHES, f"(?s:.*){ending}")]
    for matcher in matchers:
        if matcher.name == METRIC_NAME:
            value = matcher.value + suffix
            if matcher.operator in _REGULAR:
                value = f"(?:{matcher.value}){ending}"
            elif matcher.operator is MatchOperator.EQUAL:
                renamed[0] = Matcher(METRIC_NAME, MatchOperator.EQUAL, value)
                continue
            matcher = Matcher(METRIC_NAME, matcher.operator, value)
        renamed.append(matcher)
    return renamed


def _check_grouping(selector: Selector, group_by: Sequence[str] | None, name: str | None) -> None:
    exact = selector.exact
    names = [matcher.name for matcher in selector.matchers] if exact is None else list(exact)
    if FUNCTION_LABEL in names:
        raise AggregationError(
            f"the selector {selector} is about {FUNCTION_LABEL}, which only results have; "
            "functions= says which are made, of='5m' that they are made of those of another rollup"
        )
    if group_by is None:
        if name is not None:
            raise AggregationError(
                f"name={name!r}: series keep their own name; give group_by as well to merge them"
            )
        return
    if FUNCTION_LABEL in group_by:
        raise AggregationError(f"group_by: {FUNCTION_LABEL} is the label of results")
    if name is None and METRIC_NAME not in group_by:
        raise AggregationError(
            f"group_by={list(group_by)!r} leaves results without a metric name; give name='…', "
            f"or {METRIC_NAME!r} in group_by"
        )


def _check_composition(functions: Sequence[str], every: int, of: int) -> None:
    for function in functions:
        if function not in COMPOSED:
            raise AggregationError(
                f"{function} cannot be worked out from results of {function}; "
                f"{', '.join(COMPOSED)} can. A mean is sum by count"
            )
    if every <= of or every % of:
        raise AggregationError(
            f"windows of {duration_text(every)} are not made of whole ones of {duration_text(of)}"
        )
