"""Check the structure of untrusted JSON before its fields are used."""

from __future__ import annotations

from types import UnionType
from typing import Any

NUMBER = int | float
LARGEST = 1 << 63


def fits(value: Any, form: type | UnionType | list[Any] | dict[str, Any]) -> bool:
    """Whether a JSON value matches a form.

    A form is a type (`int`, `str`, `NUMBER`, …), a list holding the form of every item, or a dictionary
    holding the form of each required field; other fields may hold anything. A boolean is not a number, and
    neither is an integer that does not fit in 64 bits.
    """
    if isinstance(form, dict):
        return isinstance(value, dict) and all(fits(value.get(name), own) for name, own in form.items())
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(item, form[0]) for item in value)
    if isinstance(value, bool):
        return form is bool
    if isinstance(value, int) and abs(value) >= LARGEST:
        return False
    return isinstance(value, form)
