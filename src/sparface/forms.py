"""What JSON that somebody else wrote must look like before its fields are used."""

from __future__ import annotations

import re
from types import NoneType, UnionType
from typing import Any

NUMBER = int | float
LARGEST = 1 << 63
COUNT = range(LARGEST)


def fits(value: Any, form: Any) -> bool:
    """Whether JSON has a form.

    A form is

    - a type (`int`, `str`, `NUMBER`, …); `true` is no number, and neither is one that 64 bits cannot hold
    - a range of whole numbers (`COUNT`: from 0 on), or a pattern that a text matches from end to end
    - a tuple of forms, one of which fits, where `None` is the form of `null`
    - a list with the form of all its items
    - a dictionary with the form of each field that is asked for (others may hold anything), or with the
      form of all values under `str`
    """
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            all(fits(one, own) for one in value.values()) if name is str else fits(value.get(name), own)
            for name, own in form.items()
        )
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(item, form[0]) for item in value)
    if isinstance(form, tuple):
        return any(fits(value, one) for one in form)
    if isinstance(form, re.Pattern):
        return isinstance(value, str) and form.fullmatch(value) is not None
    if isinstance(value, bool):
        return form is bool
    if isinstance(value, int) and abs(value) >= LARGEST:
        return False
    if isinstance(form, range):
        return isinstance(value, int) and value in form
    assert form is None or isinstance(form, type | UnionType)
    return isinstance(value, form or NoneType)
