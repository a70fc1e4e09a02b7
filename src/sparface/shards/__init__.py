"""Write, verify and stream faces in tar shards. `docs/shard-format.md` specifies the format."""

from sparface.shards.format import Face
from sparface.shards.loading import Loader
from sparface.shards.manifest import Manifest
from sparface.shards.mix import MixedStream
from sparface.shards.set import ShardSet
from sparface.shards.stream import Batch, FaceStream
from sparface.shards.subset import split, write_subset
from sparface.shards.verify import damaged, describe, verify
from sparface.shards.writer import ShardSetWriter

__all__ = [
    "Batch",
    "Face",
    "FaceStream",
    "Loader",
    "Manifest",
    "MixedStream",
    "ShardSet",
    "ShardSetWriter",
    "damaged",
    "describe",
    "split",
    "verify",
    "write_subset",
]
