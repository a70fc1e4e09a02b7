"""Two processes under DDP give the gradients of one process on the same batch.

BatchNorm normalises groups of 4 of the 16 faces. All cases run in one pair of processes, in float64.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small import batch, buffers_of, config, difference, recipe, step
from torch import Tensor

from processes import in_processes
from sparface.config import Config
from sparface.training.strategies.base import Strategy
from sparface.training.strategies.distributed import DDP

WORLD_SIZE = 2
UPDATES = ["shared", "alternating"]
NORMS = {"untargeted": "split", "targeted": "shared", "zero_sum": "shared"}

REPLACED: dict[str, dict[str, Any]] = {
    "occlusion": {"form": "occlusion", "attack": "zero_sum", "band_low": 0.9},
    "occlusion, worst": {"form": "occlusion", "choice": "worst", "candidates": 2},
    "disguise": {"form": "disguise"},
    "perturbation": {"form": "perturbation", "warmup_images": 104},
    "perturbation, random": {"form": "perturbation", "choice": "random", "batchnorm": "shared"},
}
MEANS = ("loss", "generator_loss", "mask_mean", "shift", "fooled", "distance", "unrecognized", "strength")
CASES: dict[str, Config] = {
    "recognizer": config("recognizer"),
    "recognizer-batch-hard": config("recognizer", mining="batch_hard"),
    "recognizer-dropout": config("recognizer", dropout=0.5),
    "sparring-dropout": config(dropout=0.5),
    **{f"facenet-{update}": config(facenet=True, update=update) for update in UPDATES},
    **{
        f"{attack}-{update}": config(attack=attack, update=update, batchnorm=norm)
        for (attack, norm), update in itertools.product(NORMS.items(), UPDATES)
    },
    **{name: config(**{"slots": "replace", **settings}) for name, settings in REPLACED.items()},
    **{f"expression-{kind}": config("expression", training=kind) for kind in ("none", "on_the_fly", "free")},
}


def work(rank: int, folder: str) -> None:
    """One process: all cases, and the comparison with one process on rank 0."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    found = {}
    torch.set_default_dtype(torch.float64)
    alone = {}
    for name, settings in CASES.items():
        found[name], alone[name] = compare(rank, settings)
    if rank == 0:
        found["facenet"] = [difference(alone["facenet-shared"], alone["facenet-alternating"])]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def compare(rank: int, settings: Config) -> tuple[list[float], dict[str, Tensor]]:
    """Differences of gradients, losses and buffers, and the gradients of one process."""
    settings = grouped(settings)
    whole, made = batch(settings.size, 16), recipe(settings)
    strategy = DDP(settings, torch.device("cpu"))
    strategy.prepare(made)
    gradients, metrics, _ = step(made, whole.mixed_part(rank, WORLD_SIZE))
    strategy.meet()
    buffers = buffers_of(made)
    losses = {k: v for k, v in metrics.items() if k in MEANS}
    for value in losses.values():
        dist.all_reduce(value)
        value /= WORLD_SIZE
    if rank:
        return [], {}
    single = recipe(settings)
    Strategy(settings, torch.device("cpu")).prepare(single)
    alone, expected, state = step(single, whole)
    of_losses = difference({k: expected[k] for k in losses}, losses)
    return [difference(alone, gradients), of_losses, difference(state, buffers)], alone


def grouped(settings: Config) -> Config:
    data = replace(settings.data, identities_per_batch=8)
    return replace(settings, data=data, training=replace(settings.training, batchnorm_group=4))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[float]]]:
    folder = tmp_path_factory.mktemp("processes")
    in_processes(WORLD_SIZE, work, str(folder))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("name", CASES)
def test_same_gradients_losses_and_buffers(name: str, found: list[dict[str, list[float]]]) -> None:
    gradients, losses, buffers = found[0][name]
    assert gradients < 1e-8
    assert losses < 1e-10
    assert buffers < 1e-10


def test_shared_and_alternating_are_the_same_step_with_facenet(found: list[dict[str, list[float]]]) -> None:
    assert found[0]["facenet"][0] < 1e-9
