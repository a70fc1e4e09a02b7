"""The samples of a shard: faces, their JSON files, and the rules for names.

`docs/shard-format.md` specifies the format; `manifest.py` implements the rest of it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparface.errors import UserError

MAX_SIDE = 4096
"""Maximum face height and width in pixels; bounds what a hostile shard can make us allocate."""
MAX_SAMPLES = 100_000
"""Maximum number of faces in a shard; bounds what a hostile manifest can make us allocate."""
MAX_KEY = 90
"""Maximum length of a key; with its extension, a key must fit into the 100 bytes of a tar header."""

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
    """Origin, for example the path of the photo relative to the photo folder (POSIX)."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Further information: box, landmarks, score, method; for generated faces parent, maker, seed, …"""


def is_key(text: str) -> bool:
    """Whether a string is a valid sample key."""
    return _KEY.fullmatch(text) is not None


def is_set_name(text: str) -> bool:
    """Whether a string is a valid name of a shard set."""
    return _NAME.fullmatch(text) is not None


def set_name(out: Path) -> str:
    """Derive the name of a shard set from its folder: at most 64 of the characters allowed in keys."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", out.resolve().name)[:64] or "faces"


def is_identity(text: str) -> bool:
    """Whether a string is a valid identity: 1 to 200 printable characters."""
    return 0 < len(text) <= 200 and text.isprintable()


def shard_file(name: str, number: int) -> str:
    """The file name of a shard."""
    return f"{name}-{number:06d}.tar"


def is_shard_file(text: str) -> bool:
    """Whether a string is a valid file name of a shard."""
    return _SHARD_FILE.fullmatch(text) is not None


def is_shard_of(name: str, text: str) -> bool:
    """Whether a string is the file name of a shard of the set `name`."""
    found = _SHARD_FILE.fullmatch(text)
    return found is not None and text == shard_file(name, int(found[1]))


def dump_json(value: Any, *, sort: bool = True) -> bytes:
    """Compact, deterministic JSON. NumPy values become plain ones."""
    text = json.dumps(
        value, sort_keys=sort, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain
    )
    return text.encode()


def sidecar(face: Face, label: int) -> bytes:
    """The content of a face's JSON file.

    Raises `UserError` if `meta` repeats a fixed field or contains something that JSON cannot represent, such
    as a non-finite number or a path that is not Unicode.
    """
    for name in _SIDECAR_FIELDS:
        if name in face.meta:
            raise UserError(f"face {face.key}: meta must not contain '{name}'; rename that entry")
    try:
        return dump_json({"identity": face.identity, "label": label, "source": face.source, **face.meta})
    except (TypeError, ValueError) as error:
        raise UserError(f"face {face.key}: source or meta cannot be written as JSON ({error})") from None


def parse_sidecar(data: bytes) -> tuple[str, int, str, dict[str, Any]]:
    """The identity, label, source and meta of a JSON file. Raises `ValueError` if it is not valid."""
    try:
        document = json.loads(data)
    except RecursionError:
        raise ValueError("has JSON that is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"has invalid JSON ({error})") from None
    if not isinstance(document, dict):
        raise ValueError("has JSON that is not an object")
    identity, label, source = (document.pop(name, None) for name in _SIDECAR_FIELDS)
    if not isinstance(identity, str) or type(label) is not int or not isinstance(source, str):
        raise ValueError("has JSON without identity, label and source")
    return identity, label, source, document


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
