"""Labels: the identity of a series."""

from __future__ import annotations

import functools
import re
import threading
import weakref
from collections.abc import ItemsView, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final, NoReturn, final

from tsengine.errors import LabelsError

METRIC_NAME: Final = "__name__"
"""The label that holds the metric name, as in Prometheus."""

LABELS_BYTES_MAX: Final = 8_192
"""Most UTF-8 bytes of a series ID. Room for 128 labels of 64 bytes; keeps a catalogue row
within a few pages and a hostile label from filling memory."""

_BARE_METRIC: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_BARE_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")
_ESCAPED: Final = re.compile(r'[\\"\n]')
_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@final
class Labels(Mapping[str, str]):
    """Immutable mapping of label name to label value: what tells series apart.

        Labels("cpu_usage", host="web-1", region="eu")
        Labels({"__name__": "cpu_usage", "host": "web-1"})

    Equal labels are one object for as long as anybody holds it (weak interning), so hash
    and equality are those of the object and cost what a pointer costs. Pickling and
    copying give that same object back. A `Labels` equals no plain mapping.

    Names and values are non-empty text without NUL or lone surrogates; the series ID is
    at most `LABELS_BYTES_MAX` bytes of UTF-8. `Labels()` exists for results of grouping
    only and no store takes it.

    Attributes:
        id: the series ID, canonical text such as `cpu_usage{host="web-1",region="eu"}`:
            the metric name, then labels by name. Names that are no bare words are quoted
            as in Prometheus 3. It parses as a selector matching at least this series.
        texts: name, value, name, value, … sorted by name: what a backend stores.

    Thread-safety: any number of threads.
    """

    # The ID is made when it is asked for, in a microsecond: kept, it would be a sixth of the
    # memory that a series takes while it is written to.
    __slots__ = ("__weakref__", "texts")

    texts: tuple[str, ...]

    def __new__(cls, first: str | Mapping[str, str] | None = None, /, **labels: str) -> Labels:
        """Give the one object with these labels.

        Args:
            first: the metric name, or a mapping of label name to value.
            labels: further labels.

        Raises:
            LabelsError: a name or value is empty, not text, holds a NUL or a lone
                surrogate, is given twice, or the whole is too long.
        """
        if first is None:
            named: Mapping[str, str] = labels
        elif isinstance(first, str):
            if METRIC_NAME in labels:
                raise LabelsError(
                    f"metric name given twice, as {first!r} and as "
                    f"{METRIC_NAME}={labels[METRIC_NAME]!r}; give it once"
                )
            labels[METRIC_NAME] = first
            named = labels
        elif isinstance(first, Mapping):
            named = {**first, **labels}
            if len(named) != len(first) + len(labels):
                raise LabelsError(f"label given twice: {first!r} and {labels!r}; give it once")
        else:
            raise LabelsError(
                f"labels are a metric name (text) or a mapping of text, not {first!r} "
                f"of type {type(first).__name__}"
            )
        if not _are_plain(named):
            for name, value in named.items():
                check_label_text(name, "name", named)
                check_label_text(value, f"value of {name!r}", named)
        # `str.__str__` makes plain text of subclasses, numpy's among them.
        return cls.of_sorted(tuple(map(str.__str__, chain.from_iterable(sorted(named.items())))))

    @classmethod
    def of_sorted(cls, flat: tuple[str, ...]) -> Labels:
        """Give the object of these `texts`, for backends: they are valid and sorted by name.

        Raises:
            LabelsError: the whole is too long.
        """
        reference = _references.get(flat)
        known = None if reference is None else reference()
        if known is not None:
            return known
        length = sum(map(len, flat))
        if length > _SHORT:
            size = len(_series_id(flat).encode())
            if size > LABELS_BYTES_MAX:
                raise LabelsError(
                    f"labels of {size} bytes are too long, at most {LABELS_BYTES_MAX}: "
                    f"{_series_id(flat)[:80]!r}…"
                )
        else:
            if len(_texts) > TEXTS_MAX:
                _texts.clear()
            flat = tuple(map(_texts.setdefault, flat, flat))
        with _intern_lock:
            reference = _references.get(flat)
            known = None if reference is None else reference()
            if known is None:
                known = object.__new__(cls)
                object.__setattr__(known, "texts", flat)
                _interned[flat] = known
            return known

    @property
    def id(self) -> str:
        """The series ID: see above."""
        return _series_id(self.texts)

    # Identity is equality, because equal labels are one object: the C functions of `object`.
    __hash__ = object.__hash__
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __getitem__(self, name: str) -> str:
        """Give the value of a label; KeyError where it is absent."""
        flat = self.texts
        for position in range(0, len(flat), 2):
            if flat[position] == name:
                return flat[position + 1]
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the label names, sorted."""
        return iter(self.texts[::2])

    def items(self) -> ItemsView[str, str]:
        """Give the pairs, sorted by name; at C speed, where `Mapping` would look each up."""
        return dict(zip(self.texts[::2], self.texts[1::2], strict=True)).items()

    def __len__(self) -> int:
        """Count the labels."""
        return len(self.texts) // 2

    @property
    def name(self) -> str | None:
        """The metric name, or None."""
        return self.get(METRIC_NAME)

    def __repr__(self) -> str:
        return f"Labels({self.id!r})"

    def __str__(self) -> str:
        return self.id

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"Labels are immutable; cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Labels are immutable; cannot delete {name!r}")

    def __copy__(self) -> Labels:
        return self

    def __deepcopy__(self, memo: object) -> Labels:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by content; loading interns."""
        return Labels, (dict(self.items()),)


_SHORT: Final = LABELS_BYTES_MAX // 7
"""Characters of names and values up to which the ID cannot be too long: quoted and encoded
they are at most four times as many bytes, and each pair adds six characters at most."""

TEXTS_MAX: Final = 1 << 14
"""Names and values that are kept to be shared: those of many series are the same, and yet
come as new objects out of a format string or a file."""

_texts: dict[str, str] = {}
_interned: weakref.WeakValueDictionary[tuple[str, ...], Labels] = weakref.WeakValueDictionary()
_references: dict[tuple[str, ...], weakref.ref[Labels]] = _interned.data  # type: ignore[attr-defined]  # not in its stub
"""Its plain dict: to look there takes a fifth of the time, and most are looked up in vain."""

_intern_lock = threading.Lock()
"""Guards the step from "not interned" to "interned", so that two threads get one object."""


def check_label_text(text: object, what: str, named: Mapping[str, str] | None = None) -> None:
    """Check what is to be a label name or value.

    Args:
        text: the name or value.
        what: how a message calls it.
        named: the labels it belongs to, for a message.

    Raises:
        LabelsError: it is not text, empty, or holds a NUL or a lone surrogate.
    """
    if not isinstance(text, str):
        raise LabelsError(f"label {what} must be text, not {text!r} of type {type(text).__name__}")
    if not text:
        where = "" if named is None else f" in {dict(named)!r}; leave the label out"
        raise LabelsError(f"label {what} is empty{where}")
    if "\0" in text:
        raise LabelsError(f"label {what} holds a NUL character: {text[:80]!r}")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise LabelsError(
                f"label {what} holds a lone surrogate at {error.start}: {text[:80]!r}"
            ) from None


def _quote(text: str) -> str:
    return '"' + text.translate(_ESCAPES) + '"'


def _are_plain(named: Mapping[str, str]) -> bool:
    """Whether names and values are valid at first sight, as nearly all are."""
    try:
        texts = "".join(named) + "".join(named.values())
    except TypeError:
        return False
    return texts.isascii() and "\0" not in texts and "" not in named and all(named.values())


def _series_id(flat: tuple[str, ...]) -> str:
    """Give the ID of labels: by a form that their names have in common, where that does."""
    values = flat[1::2]
    form, place = _form(flat[::2])
    if form is None or _ESCAPED.search("".join(values)):
        return _quoted_id(flat)
    if place is not None:
        if not _is_bare_metric(values[place]):
            return _quoted_id(flat)
        if place:
            values = (values[place], *values[:place], *values[place + 1 :])
    return form % values


def ids_of(many: Sequence[Labels]) -> list[str]:
    """Give the IDs of many labels, by columns where all have the same names."""
    texts = [labels.texts for labels in many]
    names = {flat[::2] for flat in texts}
    if len(names) != 1:
        return [labels.id for labels in many]
    return series_ids(names.pop(), list(zip(*texts, strict=True))[1::2])


def series_ids(names: tuple[str, ...], columns: Sequence[tuple[str, ...]]) -> list[str]:
    """Give the IDs of many labels that have the same names: in a third of the time of each `id`.

    Args:
        names: sorted.
        columns: for each name the values, as many as there are labels.
    """
    form, place = _form(names)
    metrics = () if place is None else set(columns[place])
    if (
        form is None
        or not all(map(_is_bare_metric, metrics))
        or any(map(_ESCAPED.search, map("".join, columns)))
    ):
        return [
            _series_id(tuple(chain.from_iterable(zip(names, values, strict=True))))
            for values in zip(*columns, strict=True)
        ]
    if place:
        columns = [columns[place], *columns[:place], *columns[place + 1 :]]
    return [form % values for values in zip(*columns, strict=True)]


@functools.lru_cache(maxsize=1_024)
def _form(names: tuple[str, ...]) -> tuple[str | None, int | None]:
    """Give what the IDs of labels with these names are like, and which of them is the metric.

    Returns:
        A format for the values, that of the metric first; None where names need quotes.
    """
    place = names.index(METRIC_NAME) if METRIC_NAME in names else None
    others = [name for name in names if name != METRIC_NAME]
    if not all(map(_BARE_LABEL.match, others)):
        return None, place
    head = "" if place is None else "%s"
    if head and not others:
        return head, place
    return head + "{" + ",".join(f'{name}="%s"' for name in others) + "}", place


@functools.lru_cache(maxsize=1_024)
def _is_bare_metric(value: str) -> bool:
    return _BARE_METRIC.match(value) is not None


def _quoted_id(flat: tuple[str, ...]) -> str:
    head = ""
    parts: list[str] = []
    for position in range(0, len(flat), 2):
        name, value = flat[position], flat[position + 1]
        if name == METRIC_NAME:
            if _BARE_METRIC.match(value):
                head = value
            else:
                parts.insert(0, _quote(value))
        elif _BARE_LABEL.match(name):
            parts.append(f"{name}={_quote(value)}")
        else:
            parts.append(f"{_quote(name)}={_quote(value)}")
    if head and not parts:
        return head
    return head + "{" + ",".join(parts) + "}"
