"""`draw_set` with shards of a few faces, so that a kill finds some finished; as a script, to be killed."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from unittest.mock import patch

from sparface.faces.drawn import set as drawn_set
from sparface.shards import ShardSetWriter


def draw_small(out: Path, workers: int, people: int = 60) -> None:
    """Draw `people` people × 5 photos at 32 pixels, 10 faces a shard."""
    small = functools.partial(ShardSetWriter, shard_samples=10)
    with patch.object(drawn_set, "ShardSetWriter", small):
        drawn_set.draw_set(out, people, 5, size=32, seed=1, workers=workers)


if __name__ == "__main__":
    draw_small(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
