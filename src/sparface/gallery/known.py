"""Where this user's recognizers are: digest → path.

A gallery may come from somebody else, so it does not say which file to open. `enrol` notes the recognizer's
path in the user's cache folder instead, and `identify` looks it up there.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from sparface.files import write_whole
from sparface.forms import fits, read_json

MAX_BYTES = 1 << 20


def known_file() -> Path:
    """`$XDG_CACHE_HOME/sparface/recognizers.json`, by default in ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "sparface" / "recognizers.json"


def note(digest: str, path: Path) -> None:
    """Remember where a recognizer is; without it, `identify` only needs --checkpoint."""
    with contextlib.suppress(OSError):
        write_whole(known_file(), json.dumps({**_read(), digest: str(path.resolve())}, indent=1).encode())


def find(digest: str) -> Path | None:
    """Where the recognizer with this digest was when it was noted."""
    path = _read().get(digest)
    return Path(path) if path else None


def _read() -> dict[str, str]:
    file = known_file()
    found = read_json(file.parent, file.name, MAX_BYTES)
    return dict(found) if fits(found, {str: str}) else {}
