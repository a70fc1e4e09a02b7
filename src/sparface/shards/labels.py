"""Labels of faces besides the identity, such as an expression: columns of a set, each with its classes.

A label is a field of a face's JSON. The manifest lists the classes of each column with their numbers of
faces, so they are known without reading every face.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparface.errors import UserError
from sparface.shards.format import is_identity
from sparface.text import printable

IDENTITY = "identity"
"""The label that every face has."""
MAX_COLUMNS = 16
MAX_CLASSES = 1000
"""Maximum number of classes of a column that a manifest lists."""
RESERVED = {
    *("identity", "label", "source", "path", "box", "landmarks", "score", "method", "found", "wears"),
    *("synthetic", "parent", "variant", "maker", "seed", "strength", "target", "attempt"),
}
"""Fields of a face's JSON that have another meaning."""
_COLUMN = re.compile(r"[A-Za-z0-9_-]{1,64}")

Classes = dict[str, dict[str, int]]
"""Column → class → number of faces."""


def is_column(text: str) -> bool:
    """Whether a string can be the name of a column."""
    return _COLUMN.fullmatch(text) is not None and text not in RESERVED


def is_class(text: Any) -> bool:
    """Whether something can be the name of a class: 1 to 200 printable characters."""
    return isinstance(text, str) and is_identity(text)


def labels_of(meta: Mapping[str, Any], columns: Iterable[str]) -> dict[str, Any]:
    """The labels of a face: those entries of its `meta` that are in `columns`."""
    return {column: meta[column] for column in columns if column in meta}


def count(faces: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> Classes:
    """Count the classes of each column in the `meta` of some faces; leaves out columns that none has."""
    counters: dict[str, Counter[str]] = {column: Counter() for column in columns}
    for meta in faces:
        for column, name in labels_of(meta, counters).items():
            if is_class(name):
                counters[column][name] += 1
    return {column: dict(counter) for column, counter in counters.items() if counter}


def total(parts: Iterable[Classes]) -> Classes:
    """Add the counts of several shards, as they are listed in a manifest: sorted by name, and without the
    columns that no face has or that have more than `MAX_CLASSES` classes."""
    counters: dict[str, Counter[str]] = {}
    for part in parts:
        for column, classes in part.items():
            counters.setdefault(column, Counter()).update(classes)
    return {
        column: dict(sorted(counters[column].items()))
        for column in sorted(counters)
        if 0 < len(counters[column]) <= MAX_CLASSES
    }


def are_classes(value: Any, samples: int) -> bool:
    """Whether something is a valid list of columns and classes for a manifest of so many samples."""
    return _are_counts(value, samples) and all(len(classes) <= MAX_CLASSES for classes in value.values())


def checked(value: Any, samples: int) -> Classes:
    """Return the counts of some shards. Raises ValueError if they are not valid for so many samples."""
    if not _are_counts(value, samples):
        raise ValueError("has invalid classes")
    return dict(value)


def require_columns(columns: Sequence[str], where: str) -> None:
    """Raise `UserError` naming `where` if columns cannot be labels."""
    if wrong := [column for column in columns if not is_column(column)]:
        form = "is not 1 to 64 letters, digits, '_' or '-'"
        problem = "has another meaning" if wrong[0] in RESERVED else form
        raise UserError(f"{where}: the name of the column {printable(wrong[0])[:80]} {problem}; rename it")
    if len(columns) > MAX_COLUMNS:
        raise UserError(f"{where}: has {len(columns)} columns of labels; remove all but {MAX_COLUMNS}")


def _are_counts(value: Any, samples: int) -> bool:
    if not isinstance(value, dict) or len(value) > MAX_COLUMNS or not all(map(is_column, value)):
        return False
    return all(
        isinstance(classes, dict)
        and len(classes) > 0
        and all(is_class(name) and type(number) is int and number > 0 for name, number in classes.items())
        and sum(classes.values()) <= samples
        for classes in value.values()
    )
