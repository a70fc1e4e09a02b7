"""Which JSON has a form."""

from __future__ import annotations

import re
from typing import Any

import pytest

from sparface.forms import COUNT, LARGEST, NUMBER, fits, parsed

HEX = re.compile("[0-9a-f]+")


@pytest.mark.parametrize(
    ("form", "sound", "wrong"),
    [
        (int, [0, -1], [True, 1.5, "1", None, LARGEST]),
        (NUMBER, [0, 1.5], [True, "1", None, LARGEST]),
        (bool, [True], [0, None]),
        (COUNT, [0, LARGEST - 1], [-1, LARGEST, 1.0, True, None, "1"]),
        (HEX, ["0a"], ["0a\n", "x", "", None, 10]),
        ((None, HEX), [None, "0a"], ["x", 0, False]),
        ([int], [[], [1, 2]], [[1, "2"], {}, None]),
        ({"a": int}, [{"a": 1, "b": "any"}], [{}, {"a": "1"}, [], None]),
        ({"a": (None, int)}, [{}, {"a": None}, {"a": 1}], [{"a": "1"}]),
        ({str: {"n": COUNT}}, [{}, {"x": {"n": 1}, "y": {"n": 2}}], [{"x": {"n": 1}, "y": {}}, {"x": 1}, []]),
    ],
)
def test_what_fits_and_what_does_not(form: Any, sound: list[Any], wrong: list[Any]) -> None:
    assert [value for value in sound if not fits(value, form)] == []
    assert [value for value in wrong if fits(value, form)] == []


@pytest.mark.parametrize("text", ["", "{", "\ufffd", "[" * 100_000, b'"\xff"', b"9" * 10_000])
def test_what_is_no_json_is_none(text: str | bytes) -> None:
    assert parsed(text) is None
    assert parsed('{"a": [1.5, null]}') == {"a": [1.5, None]}
