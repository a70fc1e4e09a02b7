"""Trains as `sparface train` does, and appends the keys of every batch it consumes to a file.

Usage: record_keys.py CONFIG RUN KEYS
"""

import json
import sys
from pathlib import Path
from typing import Any

from sparface import settings
from sparface.shards import Batch
from sparface.training import loop


class Recorded(loop.Trainer):
    """A trainer that writes down what it trains on."""

    def update(self, batches: list[Batch]) -> int:
        size = self.config.data.identities_per_batch * self.config.data.images_per_identity
        with Path(sys.argv[3]).open("a") as file:
            for batch in batches:
                first = int(batch.positions[0])
                record: dict[str, Any] = {"batch": first // size, "first": first, "keys": batch.keys}
                file.write(json.dumps(record) + "\n")
        return super().update(batches)


if __name__ == "__main__":
    loop.Trainer = Recorded  # type: ignore[misc]
    sys.exit(0 if loop.train(settings.load(sys.argv[1]), Path(sys.argv[2])) else 75)
