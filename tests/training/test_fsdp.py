"""FSDP's units: several to a network, whatever the network, and the same step as DDP's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from processes import in_processes
from sparface.config import Config
from sparface.models.recognizer import RecognizerConfig, build_recognizer
from sparface.models.sae import SAE
from sparface.recipes import build_recipe
from sparface.settings import load
from sparface.shards import Batch
from sparface.training.strategies import fsdp
from sparface.training.strategies.distributed import DDP
from tiny_config import TINY

COMMON = ("--recipe=sparring", "--sparring.attack=targeted", "--generator.noise=0.1")
CASES = {
    "shared": (*COMMON, "--sparring.update=shared"),
    "alternating": (*COMMON, "--sparring.update=alternating"),
    "occlusion": (*COMMON, "--sparring.form=occlusion"),
    "wide": (*COMMON, "--generator.width=64", "--generator.blocks=2"),
}
UNIT = 2_000
"""Parameters of a unit here, so that the tests' small network has several."""


def units(network: nn.Module) -> list[str]:
    names = {module: name for name, module in network.named_modules()}
    return [names[block] for block in fsdp.blocks(network)]


def test_facenet_has_several_units_of_its_own_blocks() -> None:
    found = units(build_recognizer(RecognizerConfig()))
    assert len(found) > 5
    assert {"backbone.repeat_2", "backbone.mixed_7a", "backbone.repeat_3.0"} <= set(found)


def test_a_unit_is_what_is_called_and_holds_its_own_weights() -> None:
    """No lists, no single layers, nothing inside a parametrization; no parameter in two of the inner ones."""

    class Reaching(nn.Module):
        """Uses a layer's weight without calling it, as attention does."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(1200, 1200) for _ in range(3))

    wide = SAE(128, 4)
    for network in (Reaching(), wide):
        for block in fsdp.blocks(network):
            assert type(block).forward is not nn.Module.forward
            assert list(block.children())
    assert fsdp.blocks(Reaching()) == []
    inside = {id(p) for block in fsdp.blocks(wide) for p in block.parameters()}
    assert not inside & {id(p) for p in wide.spectral.parameters()}


def settings(name: str) -> Config:
    options = [f"--{key}={value}" for key, value in TINY.items()]
    return load("smoke", [*options, *CASES[name], "--optimizer.learning_rate=1e-3"])


def batch(rank: int) -> Batch:
    images = torch.randint(
        0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    whole = Batch(images, torch.arange(8) // 2, [str(i) for i in range(8)], torch.arange(8))
    part = slice(4 * rank, 4 * rank + 4)
    return Batch(whole.images[part], whole.labels[part], whole.keys[part], whole.positions[part])


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    fsdp.LEAST = UNIT
    found = {}
    for name in CASES:
        config = settings(name)
        states: list[dict[str, Tensor]] = []
        norms: list[dict[str, float]] = []
        counts: dict[str, int] = {}
        for kind in (DDP, fsdp.FSDP):
            torch.manual_seed(0)
            recipe = build_recipe(config, 4)
            strategy = kind(config, torch.device("cpu"))
            strategy.prepare(recipe)
            metrics = strategy.update([batch(rank)], 1.0)
            norms.append({k: float(v) for k, v in metrics.items() if k.endswith("gradient_norm")})
            gathered = {
                f"{n}.{k}": (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone()
                for n, network in strategy.recipe.networks.items()
                for k, t in network.state_dict().items()
            }
            states.append(gathered)
            if kind is fsdp.FSDP:
                counts = {
                    n: sum(isinstance(m, FSDPModule) for m in network.modules())
                    for n, network in strategy.recipe.networks.items()
                }
        ddp, sharded = states
        assert ddp.keys() == sharded.keys()
        largest = max(
            float((ddp[k].double() - sharded[k].double()).abs().max()) for k in ddp if ddp[k].numel()
        )
        found[name] = {"difference": largest, "norms": norms, "units": counts}
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:  # type: ignore[type-arg]
    folder = tmp_path_factory.mktemp("fsdp")
    in_processes(2, work, str(folder))
    return json.loads((folder / "found.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CASES)
def test_many_units_take_ddps_step(name: str, found: dict[str, dict]) -> None:  # type: ignore[type-arg]
    """Adam's first step is the gradient's sign: where that is zero but for rounding, two steps may differ."""
    assert found[name]["units"]["recognizer"] > 2
    assert found[name]["units"]["generator"] > 1
    for key, norm in found[name]["norms"][0].items():
        assert found[name]["norms"][1][key] == pytest.approx(norm, rel=1e-4), key
    assert found[name]["difference"] <= 2.1e-3
