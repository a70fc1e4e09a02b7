"""`align` with shards of a few faces, so that a kill finds some finished; as a script, to be killed."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from unittest.mock import patch

from sparface.shards import ShardSetWriter


def align_small(photos: Path, out: Path, workers: int) -> None:
    """Align at 64 pixels, 6 faces a shard."""
    small = functools.partial(ShardSetWriter, shard_samples=6)
    module = importlib.import_module("sparface.faces.align")
    with patch.object(module, "ShardSetWriter", small):
        module.align(photos, out, size=64, workers=workers)


if __name__ == "__main__":
    align_small(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
