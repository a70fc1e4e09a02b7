"""What a shard holds: a face, its JSON file, and the rules for names.

`docs/shard-format.md` is the specification in words; `manifest.py` has the rest of it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sparface.errors import UserError

MAX_SIDE = 4096
"""Largest face height or width, pixels: bounds what a hostile shard can make us allocate."""
MAX_SAMPLES = 100_000
"""Most faces of a shard: bounds what a hostile manifest can make us allocate."""
MAX_KEY = 90
"""Longest key; with its extension it must fit the 100 bytes of a tar header."""

Encoding = Literal["png", "jpg", "webp"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)

_KEY = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY}}}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SHARD_FILE = re.compile(r"[A-Za-z0-9_-]{1,64}-([0-9]{6,9})\.tar")
_SIDECAR_FIELDS = ("identity", "label", "source")


@dataclass(frozen=True)
class Face:
    """One sample of a shard set."""

    key: str
    """Unique in the set; letters, digits, `_` and `-` only."""
    image: NDArray[np.uint8]
    """[H, W, 3] RGB."""
    identity: str
    source: str
    """Where it came from, for example the photo's path relative to the photo folder (posix)."""
    meta: dict[str, Any] = field(default_factory=dict)
    """What else is known: box, landmarks, score, method; for made faces parent, maker, seed, ..."""


def is_key(text: str) -> bool:
    """Whether a text may be a sample's key."""
    return _KEY.fullmatch(text) is not None


def is_set_name(text: str) -> bool:
    """Whether a text may name a shard set."""
    return _NAME.fullmatch(text) is not None


def is_identity(text: str) -> bool:
    """Whether a text may name an identity: 1 to 200 printable characters."""
    return 0 < len(text) <= 200 and text.isprintable()


def shard_file(name: str, number: int) -> str:
    """File name of a set's shard."""
    return f"{name}-{number:06d}.tar"


def is_shard_file(text: str) -> bool:
    """Whether a text may be the file name of a shard."""
    return _SHARD_FILE.fullmatch(text) is not None


def is_shard_of(name: str, text: str) -> bool:
    """Whether a text is what `shard_file` makes of a set's name and some number."""
    found = _SHARD_FILE.fullmatch(text)
    return found is not None and text == shard_file(name, int(found[1]))


def dump_json(value: Any, *, sort: bool = True) -> bytes:
    """Compact JSON, the same bytes for the same value; numpy values become plain ones."""
    text = json.dumps(
        value, sort_keys=sort, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
    )
    return text.encode()


def sidecar(face: Face, label: int) -> bytes:
    """Content of a face's JSON file.

    Raises `UserError` when its meta repeats a fixed field, or something in it cannot be JSON: a number
    that is not finite, or a path that is not Unicode.
    """
    for name in _SIDECAR_FIELDS:
        if name in face.meta:
            raise UserError(f"face {face.key}: meta must not hold '{name}'; rename that entry")
    try:
        return dump_json({"identity": face.identity, "label": label, "source": face.source, **face.meta})
    except (TypeError, ValueError) as error:
        raise UserError(f"face {face.key}: source or meta cannot be written as JSON ({error})") from None


def parse_sidecar(data: bytes) -> tuple[str, int, str, dict[str, Any]]:
    """identity, label, source and meta of a JSON file. Raises ValueError when it breaks the format."""
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    identity, label, source = (document.pop(name, None) for name in _SIDECAR_FIELDS)
    if not isinstance(identity, str) or type(label) is not int or not isinstance(source, str):
        raise ValueError("without identity, label and source")
    return identity, label, source, document


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
