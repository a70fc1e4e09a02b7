"""What JSON that somebody else wrote must look like before its fields are used."""

from __future__ import annotations

from types import UnionType
from typing import Any

NUMBER = int | float
LARGEST = 1 << 63


def fits(value: Any, form: type | UnionType | list[Any] | dict[str, Any]) -> bool:
    """Whether JSON has a form.

    A form is a type (`int`, `str`, `NUMBER`, …), a list with the form of all its items, or a dictionary with
    the form of each field that is asked for; other fields may hold anything. `true` is no number, and
    neither is one that 64 bits cannot hold.
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
