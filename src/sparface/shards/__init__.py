"""Faces ⇄ tar shards: write, verify, stream. The format is specified in `shards/README.md`."""

from sparface.shards.format import Face, Manifest
from sparface.shards.mix import MixedStream
from sparface.shards.set import ShardSet
from sparface.shards.stream import Batch, FaceStream, loader
from sparface.shards.verify import damaged, describe, verify
from sparface.shards.writer import ShardSetWriter

__all__ = [
    "Batch",
    "Face",
    "FaceStream",
    "Manifest",
    "MixedStream",
    "ShardSet",
    "ShardSetWriter",
    "damaged",
    "describe",
    "loader",
    "verify",
]
