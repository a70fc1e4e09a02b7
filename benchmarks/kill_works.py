"""The work that `kills.py` kills: `train`, `align`, `generate` and a checkpoint writer, on drawn faces.

It also defines which results of each are compared.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from forked import TINY, logged_values
from PIL import Image

from sparface import cli
from sparface.faces import draw_set
from sparface.faces.drawn import drawn_faces
from sparface.runs.checkpoint import CheckpointStore
from sparface.runs.checkpoint_files import checkpoint_problem
from sparface.shards import ShardSetWriter

SAVES = 150
"""Checkpoints of the checkpoint writer."""


@dataclass(frozen=True)
class Work:
    """One kind of work on an output folder."""

    share: int
    """Share of the kills, relative to the other kinds."""
    start: Callable[[Path], int]
    """Start or resume the work, in a separate process; returns the exit code."""
    watched: tuple[str, ...]
    """Patterns of files that appear in the folder during the work."""
    found: Callable[[Path], dict[str, str]]
    """The results that must be the same at the end: name → digest."""


def works(inputs: Path) -> dict[str, Work]:
    """All kinds of work. `inputs` holds the faces and photos; the trained run is beside it."""
    faces, trained = str(inputs / "faces"), str(inputs.parent / "undisturbed" / "train" / "out")
    settings = TINY | {
        "data.shards": faces,
        "recipe": "sparring",
        "schedule.images": 1600,
        "training.average_half_life": 200,
        "training.checkpoint_every": 80,
        "training.preview_every": 400,
    }
    train = ["train", "--config=smoke", *(f"--{key}={value}" for key, value in settings.items())]
    generate = ["generate", f"--checkpoint={trained}", f"--shards={faces}", "--factor=30"]
    generate += ["--shard_samples=24", "--batch_size=12", "--originals=0.5", "--workers=1"]
    align = ["align", str(inputs / "photos"), "--size=64", "--already-cropped", "--workers=1"]
    return {
        "train": Work(3, command(train), ("metrics.jsonl", "checkpoints/*"), found_in_run),
        "align": Work(2, functools.partial(align_small, align), ("*",), found_in_set),
        "generate": Work(2, command(generate), ("*", "units/*"), found_in_set),
        "checkpoint": Work(2, write_checkpoints, ("*",), found_in_set),
    }


def prepare(inputs: Path) -> None:
    """Draw the faces and the photos; some of the photo files are not images."""
    if (inputs / "ready").exists():
        return
    draw_set(inputs / "faces", 12, 6, size=32, seed=0)
    for number, face in enumerate(drawn_faces(30, 8, size=96, seed=1)):
        path = inputs / "photos" / face.identity / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(face.image).save(path)
        if number % 20 == 7:
            path.write_bytes(b"no picture")
    (inputs / "ready").touch()


def command(words: list[str]) -> Callable[[Path], int]:
    return lambda out: cli.main([*words, f"--out={out}"])


def align_small(words: list[str], out: Path) -> int:
    """Run `sparface align` with few faces per shard, so a small set has many shards."""
    small = functools.partial(ShardSetWriter, shard_samples=6)
    with patch.object(importlib.import_module("sparface.faces.align"), "ShardSetWriter", small):
        return cli.main([*words[:2], str(out), *words[2:]])


def write_checkpoints(folder: Path) -> int:
    """Change and save some tensors repeatedly, resuming from the newest checkpoint."""
    store = CheckpointStore(folder, keep=3)
    state: dict[str, Any] = {"done": 0}
    state |= {f"tensor {n}": torch.arange(2**17, dtype=torch.float64) * n for n in range(1, 9)}
    if newest := store.newest():
        facts = store.load(newest, state, identity="kills")
        assert facts == {"done": state["done"]}, "facts and tensors are from different checkpoints"
        if state["done"] == SAVES:
            store.tidy(SAVES)
    for number in range(state["done"] + 1, SAVES + 1):
        store.copied()
        state["done"] = number
        for tensor in state.values():
            if isinstance(tensor, torch.Tensor):
                tensor.mul_(1 - 1 / (number + 1)).add_(number)
        for _ in range(1 + (number % 5 == 0)):  # every fifth checkpoint is replaced by another save
            store.save(number, state, {"done": number}, identity="kills")
    store.finish()
    return 0


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def found_in_set(out: Path) -> dict[str, str]:
    """Digests of all files of a shard set or of checkpoints."""
    return {str(path.relative_to(out)): digest(path.read_bytes()) for path in files(out)}


def found_in_run(out: Path) -> dict[str, str]:
    """Digests of all files of a run, with logged values without clocks, and without events of restarts."""
    found = found_in_set(out)
    logged = logged_values(out)
    found |= {f"metrics at {line['images']} images": digest(json.dumps(line).encode()) for line in logged}
    found["lines of metrics"] = str(len(logged))
    return {name: value for name, value in found.items() if name not in ("metrics.jsonl", "events.jsonl")}


def files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def damaged(out: Path) -> list[str]:
    """Problems of the checkpoints that have their final names."""
    return [p for path in out.rglob("step-*") if path.is_dir() and (p := checkpoint_problem(path))]
