"""Optimizer settings: those of the configuration hold, also in a run that began with others."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from strategy_chain import forget_numbers
from torch import nn

from processes import free_port, in_processes
from sparface.config import Config, OptimizerConfig
from sparface.runs.checkpoint import CheckpointStore, read_weights
from sparface.runs.checkpoint_files import INDEX_FILE
from sparface.training.loop import train
from sparface.training.optimizers import build_optimizer, fresh_state
from sparface.training.strategies.base import Strategy, optimizer_state

Tiny = Callable[..., Config]
NEW = ("--schedule.images=80", "--optimizer.weight_decay=0.1", "--optimizer.beta2=0.9")
COMMON = ("--optimizer.name=adamw", "--optimizer.learning_rate=1e-3", "--schedule.warmup_images=0")


def changes(run: Path) -> list[str]:
    records = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [record["message"] for record in records if record["kind"] == "optimizer"]


def newest(run: Path) -> Path:
    found = CheckpointStore(run / "checkpoints").newest()
    assert found is not None
    return found


def test_new_settings_take_effect_and_are_said(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One AdamW update after the resume, against its formula with the new weight decay and beta2."""
    run = tmp_path / "run"
    train(tiny(*COMMON, "--schedule.images=40"), run)
    before = read_weights(newest(run), "networks.head")["weight"].double()
    state = read_weights(newest(run), "optimizers.head.state")
    gradients: dict[str, torch.Tensor] = {}
    honest = Strategy.apply

    def recording(strategy: Strategy, optimizer: torch.optim.Optimizer, *args: Any) -> None:
        if optimizer is strategy.optimizers["head"]:
            (weight,) = optimizer.param_groups[0]["params"]
            gradients["head"] = weight.grad.double().clone()
        honest(strategy, optimizer, *args)

    monkeypatch.setattr(Strategy, "apply", recording)
    capsys.readouterr()
    train(tiny(*COMMON, *NEW[1:], "--schedule.images=48"), run)
    said = ["betas was [0.9, 0.999], is [0.9, 0.9]", "weight_decay was 0.0, is 0.1"]
    assert changes(run) == said
    out = capsys.readouterr().out
    assert all(line in out for line in said)

    g, rate, step = gradients["head"], 1e-3, 6
    mean = 0.9 * state["weight.exp_avg"].double() + 0.1 * g
    square = 0.9 * state["weight.exp_avg_sq"].double() + 0.1 * g * g
    decayed = before * (1 - rate * 0.1)
    update = (mean / (1 - 0.9**step)) / ((square / (1 - 0.9**step)).sqrt() + 1e-8)
    after = read_weights(newest(run), "networks.head")["weight"].double()
    torch.testing.assert_close(after, decayed - rate * update, rtol=0, atol=1e-7)
    train(tiny(*COMMON, *NEW[1:], "--schedule.images=56"), run)
    assert changes(run) == said  # nothing new


def train_with_deepspeed(rank: int, port: int, configs: list[Config], run: Path) -> None:
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for number, config in enumerate(configs):
        os.environ["MASTER_PORT"] = str(port + number)
        forget_numbers()
        assert train(config, run)


def test_under_deepspeed_too(tiny: Tiny, tmp_path: Path) -> None:
    zero = ("--training.strategy=deepspeed", "--training.deepspeed=zero1")
    before, after = tiny(*COMMON, *zero, "--schedule.images=40"), tiny(*COMMON, *zero, *NEW)
    run = tmp_path / "run"
    in_processes(1, train_with_deepspeed, free_port(), [before, after], run)
    assert changes(run) == ["betas was [0.9, 0.999], is [0.9, 0.9]", "weight_decay was 0.0, is 0.1"]
    values = json.loads((newest(run) / INDEX_FILE).read_text())["values"]
    assert {v for k, v in values.items() if k.endswith(".weight_decay")} == {0.1}


@pytest.fixture
def unwritten_memory_is_nan() -> Any:
    """torch fills memory that nobody has written while deterministic algorithms are asked for."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("unwritten_memory_is_nan")
def test_sgd_with_its_first_update_dropped_is_plain_sgd_from_the_second(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("--recipe=recognizer", "--optimizer.name=sgd", "--optimizer.weight_decay=0.01")
    strategy = Strategy(tiny(*settings), torch.device("cpu"))
    network = nn.Linear(3, 2)
    strategy.recipe = type("Recipe", (), {"networks": {"recognizer": network}})()
    (optimizer,) = strategy.build_optimizers().values()
    plain = nn.Linear(3, 2)
    plain.load_state_dict(network.state_dict())
    groups: list[dict[str, Any]] = [
        {"params": [plain.weight], "weight_decay": 0.01},
        {"params": [plain.bias]},
    ]
    reference = torch.optim.SGD(groups, 0.1, momentum=0.9, foreach=False)
    for broken in (1.0, 0.0, 0.0):
        x = torch.randn(4, 3)
        network(x).square().sum().backward()
        strategy.apply(optimizer, 0.1, torch.tensor(broken))
        if not broken:
            plain(x).square().sum().backward()
            reference.step()
        reference.zero_grad()
    torch.testing.assert_close(network.weight, plain.weight)
    torch.testing.assert_close(network.bias, plain.bias)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_looking_at_an_optimizer_before_its_first_update_changes_nothing(name: str) -> None:
    """A run that is stopped before its first step saves an optimizer that has done nothing."""
    network = nn.Linear(3, 2)
    config = OptimizerConfig(name=name, weight_decay=0.1)  # type: ignore[arg-type]
    optimizer = build_optimizer(config, {"network": network.parameters()})
    for parameter in network.parameters():
        optimizer.state[parameter] = fresh_state(optimizer, parameter)
    state = optimizer_state(network, optimizer)["state"]
    assert state.keys() == {"weight", "bias"}
    assert all(not tensor.any() for of_one in state.values() for tensor in of_one.values())


def test_sgd_without_momentum_is_saved_and_resumed(tiny: Tiny, tmp_path: Path) -> None:
    settings = ("--optimizer.name=sgd", "--optimizer.beta1=0")
    assert train(tiny(*settings, "--schedule.images=40"), tmp_path / "run")
    assert train(tiny(*settings, "--schedule.images=80"), tmp_path / "run")
