"""Parse untrusted JSON, and check its structure before its fields are used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from sparface.errors import UserError
from sparface.files import inside, read_bounded

NUMBER = int | float
LARGEST = 1 << 63
COUNT = range(LARGEST)


def parsed(text: str | bytes) -> Any:
    """Parse JSON; returns None for anything else, including JSON nested so deeply that Python gives up."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_json(folder: Path, name: str, limit: int) -> Any:
    """Parse a file of a folder; None if it is missing, leads out of the folder, has more than `limit` bytes
    or is no JSON."""
    try:
        return parsed(read_bounded(inside(folder, name), limit))
    except (OSError, UserError):
        return None


def fits(value: Any, form: Any) -> bool:
    """Whether a JSON value matches a form.

    A form is

    - a type (`int`, `str`, `NUMBER`, …); a boolean is not a number, nor is an integer beyond 64 bits
    - a range of integers (`COUNT`: 0 and up), or a pattern that must match the whole string
    - a tuple of forms, one of which must match; `None` is the form of `null`
    - a list holding the form of every item
    - a dictionary holding the form of each required field (other fields may hold anything), or, under the
      key `str`, the form of every value
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
