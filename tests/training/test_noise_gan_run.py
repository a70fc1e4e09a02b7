"""Whole runs of the recipe `noise_gan`: exact resume, two processes, made sets of it, exports, collapse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from strategy_chain import Job, Segment, train_all

from made_sets import digests, start
from sparface import cli, settings
from sparface.config import Config
from sparface.errors import UserError
from sparface.evaluation.classification import evaluate_classification
from sparface.export import export
from sparface.generate import run as generation
from sparface.generate.settings import FilterConfig, GenerateConfig
from sparface.models.noise_gan import NoiseGanConfig, NoiseGenerator
from sparface.recipes import noise_gan
from sparface.runs.trained import open_generator, open_run
from sparface.shards import ShardSet, split
from sparface.training.loop import train

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("one_thread")]
SHORT = (
    *("--recipe=noise_gan", "--noise_gan.width=4", "--noise_gan.latent=8", "--noise_gan.embedding=4"),
    *("--data.workers=0", "--data.variation=mirror", "--noise_gan.r1_every=2", "--schedule.images=64"),
    *("--training.checkpoint_every=32", "--training.preview_every=64"),
    *("--noise_gan.discriminator_learning_rate=2e-5", "--training.average_half_life=64"),
)
WAYS = {
    "whole": [Segment("single", 1, 64)],
    "resumed": [Segment("single", 1, 32), Segment("single", 1, 64)],
    "two": [Segment("ddp", 2, 64)],
    "grown": [Segment("single", 1, 32), Segment("ddp", 2, 64)],
    "sharded": [Segment("fsdp", 2, 64)],
}


@pytest.fixture(scope="module")
def configs(tiny: Callable[..., Config]) -> Callable[..., Config]:
    return lambda *options: tiny(*SHORT, *options)


@pytest.fixture(scope="module")
def runs(configs: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train_all([Job(configs(), folder / way, segments) for way, segments in WAYS.items()])
    return folder


def metrics(run: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        found |= json.loads(line)
    return found


@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_an_interrupted_run_ends_the_same(runs: Path, network: str) -> None:
    whole, resumed = (open_run(runs / way).named(network) for way in ("whole", "resumed"))
    assert whole and all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("way", ["two", "grown", "sharded"])
def test_two_processes_end_where_one_does(runs: Path, way: str) -> None:
    for network in ("generator", "discriminator"):
        one, two = (open_run(runs / name).named(network) for name in ("whole", way))
        for name, value in one.items():
            assert torch.allclose(value.double(), two[name].double(), rtol=1e-2, atol=2e-4), name
    first, second = metrics(runs / "whole"), metrics(runs / way)
    for name in ("loss", "generator_loss", "r1", "diversity", "variety", "right_level", "accuracy"):
        assert first[name] == pytest.approx(second[name], rel=1e-2), name
