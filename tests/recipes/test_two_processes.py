"""Two processes under DDP give the gradients of one process on the same batch.

All cases run in one pair of processes, in float64.
"""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small import batch, buffers_of, config, difference, recipe, step
from torch import Tensor, nn

from processes import in_processes
from sparface.config import Config
from sparface.models.batchnorm import join_batchnorm
from sparface.models.synced import SyncedBatchNorm
from sparface.training.strategies.base import Strategy
from sparface.training.strategies.distributed import DDP, gather

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
    **{
        f"purifier-{selection}": config("purifier", selection=selection, clones=3)
        for selection in ("reinforce", "straight_through")
    },
    # the penalty has the last word on the discriminator's gradients
    **{f"noise-gan-{r1}": config("noise_gan", r1=r1) for r1 in (0.0, 10.0)},
    "noise-gan-minimax": config("noise_gan", loss="minimax", conditional=False),
}


def grouped(settings: Config) -> Config:
    """16 faces, whose BatchNorm normalises groups of 4."""
    data = replace(settings.data, identities_per_batch=8)
    training = replace(settings.training, batchnorm="ghost", batchnorm_group=4)
    return replace(settings, data=data, training=training)


CASES |= {
    f"ghost, {name}": grouped(CASES[name])
    for name in (
        *("recognizer-dropout", "untargeted-alternating", "targeted-shared", "occlusion", "occlusion, worst"),
        *("perturbation, random", "expression-on_the_fly", "purifier-reinforce", "noise-gan-10.0"),
    )
}


def work(rank: int, folder: str) -> None:
    """One process: all cases, and the comparison with one process on rank 0."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    found = {f"norm-{k}": v for k, v in synced_norms(rank).items()} | {"gathered": gathered(rank)}
    torch.set_default_dtype(torch.float64)
    alone = {}
    for name, settings in CASES.items():
        found[name], alone[name] = compare(rank, settings)
    kinds = config(), grouped(config()), grouped(config("recognizer"))
    found["exchanges"] = [exchanges(settings) for settings in kinds]
    if rank == 0:
        found["facenet"] = [difference(alone["facenet-shared"], alone["facenet-alternating"])]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def compare(rank: int, settings: Config) -> tuple[list[float], dict[str, Tensor]]:
    """Differences of gradients, losses and buffers, and the gradients of one process."""
    data = settings.data
    whole = batch(settings.size, data.identities_per_batch * data.images_per_identity)
    made, strategy = recipe(settings), DDP(settings, torch.device("cpu"))
    strategy.prepare(made)
    gradients, metrics, _ = step(made, whole.mixed_part(rank, WORLD_SIZE), strategy)
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


def exchanges(settings: Config) -> int:
    """How often processes exchange something in a step, counted by torch's profiler."""
    data = settings.data
    made, strategy = recipe(settings), DDP(settings, torch.device("cpu"))
    strategy.prepare(made)
    own = batch(settings.size, data.identities_per_batch * data.images_per_identity)
    part = own.mixed_part(strategy.rank, WORLD_SIZE)
    for _ in range(2):  # DDP broadcasts the order of its buckets after the first step
        strategy.update([part], 1.0)
    with torch.profiler.profile() as profile:
        strategy.update([part], 1.0)
    return sum(event.count for event in profile.key_averages() if event.key.startswith("gloo:"))


def gathered(rank: int) -> list[float]:
    """How many values differ after tensors of several types, some of an odd size, were gathered together."""
    numbers = torch.arange(12).view(4, 3)
    whole = (numbers / 7).to(torch.bfloat16), numbers[:, 0], numbers[:, :2] % 2 > 0
    found = gather(*(tensor[2 * rank :][:2] for tensor in whole))
    assert [f.dtype for f in found] == [w.dtype for w in whole]
    return [float((f != w).sum()) for f, w in zip(found, whole, strict=True)]


def synced_norms(rank: int) -> dict[str, list[float]]:
    """Parts of one batch, far from zero, in float32, through BatchNorm1d and 2d."""
    found = {}
    generator = torch.Generator().manual_seed(0)
    for name, plain, shape in (("2d", nn.BatchNorm2d(5), (8, 5, 4, 4)), ("1d", nn.BatchNorm1d(5), (8, 5))):
        x = torch.randn(shape, generator=generator) + 1000
        upstream = torch.randn(shape, generator=generator)
        nn.init.uniform_(plain.weight, generator=generator)
        synced = join_batchnorm(copy.deepcopy(plain), SyncedBatchNorm)
        assert isinstance(synced, SyncedBatchNorm) and synced.state_dict().keys() == plain.state_dict().keys()
        part = slice(4 * rank, 4 * rank + 4)
        mine = results(synced, x[part], upstream[part])
        whole = results(plain.double(), x.double(), upstream.double())
        for key in ("weight", "bias"):
            dist.all_reduce(mine[key])
        expected = whole | {k: whole[k][part] for k in ("output", "gradient")}
        found[name] = [float((mine[k] - expected[k]).abs().max()) for k in expected]
        found[f"{name}-eval"] = [float((synced.eval()(x) - plain.eval()(x.double())).abs().max())]
    return found


def results(norm: nn.Module, x: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    output = norm(x)
    (output * upstream).sum().backward()
    assert x.grad is not None
    gradients = {k: p.grad.clone() for k, p in norm.named_parameters() if p.grad is not None}
    statistics = {"mean": norm.running_mean / 1000, "variance": norm.running_var}
    return {"output": output.detach(), "gradient": x.grad, **gradients, **statistics}


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


def test_tensors_are_gathered_as_they_are(found: list[dict[str, list[float]]]) -> None:
    assert [rank["gathered"] for rank in found] == [[0, 0, 0]] * WORLD_SIZE


def test_shared_and_alternating_are_the_same_step_with_facenet(found: list[dict[str, list[float]]]) -> None:
    assert found[0]["facenet"][0] < 1e-9


@pytest.mark.parametrize("name", ["1d", "2d", "1d-eval", "2d-eval"])
def test_synced_norm_is_one_norm_over_the_whole_batch(name: str, found: list[dict[str, list[float]]]) -> None:
    # float32 at 1000 ± 1 resolves 6e-5
    assert all(max(rank[f"norm-{name}"]) < 1e-3 for rank in found)


def test_without_synced_statistics_few_exchanges_are_left(found: list[dict[str, list[float]]]) -> None:
    """Embeddings with labels and positions, their gradients, and two buckets of the weights' gradients."""
    synced, sparring, recognizer = found[0]["exchanges"]
    assert sparring == recognizer == 4 and synced > 40
