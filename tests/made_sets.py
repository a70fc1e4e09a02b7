"""Runs with small untrained networks, and made sets, for the tests of this folder."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from sparface import settings
from sparface.config import Config
from sparface.generate import run
from sparface.generate.settings import FilterConfig, GenerateConfig
from sparface.models.sae import SAE
from sparface.recipes import build_recipe
from sparface.runs.checkpoint import CheckpointStore
from sparface.shards import ShardSet

FACTOR = 5
SMALL: dict[str, Any] = {"factor": FACTOR, "shard_samples": 30, "batch_size": 16, "noise": 1.0}
"""72 faces in 3 blocks of 24, one variant number a shard: 15 shards of 24 faces."""


def write_run(folder: Path, config: Config) -> Path:
    """A run folder whose one checkpoint holds untrained networks, the same every time."""
    folder.mkdir(parents=True)
    settings.save(config, folder / "config.yaml")
    torch.manual_seed(0)
    recipe = build_recipe(config, 12)
    networks = recipe.networks
    if isinstance(networks.get("generator"), SAE):  # as if it were trained: it perturbs up to the bound
        last = networks["generator"].perturbation[-1]
        torch.nn.init.normal_(last.weight, std=0.5)
    tensors = {"networks": {name: network.state_dict() for name, network in networks.items()}}
    tensors["averages"] = tensors["networks"]
    store = CheckpointStore(folder / "checkpoints")
    store.save(8, tensors, {}, identity=json.dumps(recipe.identity(config)))
    store.finish()
    return folder


def make(checkpoint: Path, shards: Path, out: Path, *, part: str = "0/1", **settings: Any) -> ShardSet | None:
    """Make a part in this process; the set if it is finished then."""
    filters = FilterConfig(**settings.pop("filter", {}))
    config = GenerateConfig(**(SMALL | settings), filter=filters)
    judge = settings.pop("judge", None)
    assert run.generate(run.open_job(checkpoint, shards, out, config, judge=judge, part=part), workers=2)
    return ShardSet.open(out) if (out / "manifest.json").exists() else None


def command(checkpoint: Path, shards: Path, out: Path, *options: str) -> list[str]:
    """The command line that makes the same set as `make`."""
    paths = ["--checkpoint", str(checkpoint), "--shards", str(shards), "--out", str(out)]
    small = [f"--{name}={value}" for name, value in SMALL.items()]
    return [sys.executable, "-m", "sparface", "generate", *paths, *small, *options]


def start(*arguments: Any, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every shard and of the manifest, which names the set: compare folders of one name."""
    files = [*folder.glob("*.tar"), *folder.glob("manifest.json")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}
