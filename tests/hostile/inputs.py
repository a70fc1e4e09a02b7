"""The table of hostile inputs: what is broken, how, and the command that meets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from breaking import Breaking, Rows
from command_inputs import command_lines, configurations
from gallery_inputs import conditions, galleries, lists
from harness import Case
from onnx_inputs import networks
from photo_inputs import pairs, photos, tables
from role_inputs import gans, purifiers, recognizers
from run_inputs import checkpoints, jobs, judges, ledgers, run_configs, weights
from shard_inputs import manifests, shards


def cases(address: str) -> Iterator[Case]:
    """All of them; `address` is a listener's that must hear nothing."""
    for room, table in TABLES.items():
        for name, breaking, arguments in table(address):
            full = f"{room} {name}"
            yield Case(full, made(breaking, arguments), code=0 if full in HARMLESS else 2)


def made(breaking: Breaking, arguments: list[str]) -> Callable[[Path], list[str]]:
    def make(work: Path) -> list[str]:
        breaking(work)
        return arguments

    return make


TABLES: dict[str, Callable[[str], Rows]] = {
    "manifest": manifests,
    "shard": shards,
    "photo": photos,
    "CSV": tables,
    "pairs": pairs,
    "config": configurations,
    "command": command_lines,
    "checkpoint": checkpoints,
    "weights": weights,
    "tracking": ledgers,
    "job": jobs,
    "run's config": run_configs,
    "ONNX": judges,
    "gallery": galleries,
    "conditions": conditions,
    "list": lists,
    "network": networks,
    "purifier": purifiers,
    "GAN": gans,
    "recognizer": recognizers,
}
HARMLESS = {
    "job record is a dangling link",  # there is no such job
    "job record is a link in a circle",
    "job record has a number as submitted",  # long ago
}
