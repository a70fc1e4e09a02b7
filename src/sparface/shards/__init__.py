"""Faces ⇄ tar shards: write, verify, read back. The format is specified in `shards/README.md`."""

from sparface.shards.format import Face, Manifest
from sparface.shards.set import ShardSet
from sparface.shards.writer import ShardSetWriter

__all__ = ["Face", "Manifest", "ShardSet", "ShardSetWriter"]
