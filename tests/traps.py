"""What a pickle could do, for files that must never be unpickled."""

from __future__ import annotations

from pathlib import Path


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)
