"""Runs that are trained in processes of their own and write down what they train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from processes import Job
from sparface.config import Config
from sparface.runs.checkpoint import CheckpointStore, read_weights
from sparface.shards import Batch
from sparface.training import loop


def start(config: Config, run: Path, keys: Path, processes: int = 1) -> Job:
    """Train as `sparface train` does; the keys of each batch go to `keys`."""
    return Job(_train, (config, run, keys), run.with_suffix(".log"), processes)


def _train(config: Config, run: Path, keys: Path) -> int:
    class Recorded(loop.Trainer):
        def update(self, batches: list[Batch]) -> int:
            size = self.config.data.identities_per_batch * self.config.data.images_per_identity
            with keys.open("a") as file:
                for batch in batches:
                    first = int(batch.positions[0])
                    record: dict[str, Any] = {"batch": first // size, "first": first, "keys": batch.keys}
                    file.write(json.dumps(record) + "\n")
            return super().update(batches)

    loop.Trainer = Recorded  # type: ignore[misc]
    return 0 if loop.train(config, run) else 75


def seen(keys: Path) -> list[list[str]]:
    """The keys of every update that counted, in order: the last writer of a batch wins."""
    batches: dict[int, dict[int, list[str]]] = {}
    for line in keys.read_text().splitlines():
        record = json.loads(line)
        batches.setdefault(record["batch"], {})[record["first"]] = record["keys"]
    return [[key for _, part in sorted(b.items()) for key in part] for _, b in sorted(batches.items())]


def losses(run: Path) -> list[dict[str, Any]]:
    """The logged values that do not depend on the clock."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in r.items() if not k.startswith(("time", "images_per_second", "system/"))}
        for r in records
    ]


def weights(run: Path, recipe: str = "sparring") -> dict[str, torch.Tensor]:
    newest = CheckpointStore(run / "checkpoints").newest()
    assert newest is not None
    names = ("recognizer", "head", "generator") if recipe == "sparring" else ("recognizer", "head")
    return {f"{n}.{k}": t for n in names for k, t in read_weights(newest, f"networks.{n}").items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
