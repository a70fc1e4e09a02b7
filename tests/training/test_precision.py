"""What the precisions promise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from sparface.config import Config
from sparface.recipes import build_recipe
from sparface.shards import Batch
from sparface.training.strategies.base import Strategy

Tiny = Callable[..., Config]


@pytest.mark.parametrize("update", ["shared", "alternating"])
def test_fp16_finds_a_scale_at_which_no_gradient_overflows(tiny: Tiny, update: str) -> None:
    """Also that of the attack, which `shared` hands over: with a large weight few scales will do."""
    config = tiny(
        *("--recipe=sparring", "--training.precision=fp16", f"--sparring.update={update}"),
        *("--sparring.attack=targeted", "--sparring.attack_weight=1000"),
    )
    torch.manual_seed(0)
    recipe, strategy = build_recipe(config, 4), Strategy(config, torch.device("cpu"))
    strategy.prepare(recipe)
    skipped = []
    for number in range(14):
        images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
        batch = Batch(images, torch.arange(8) // 2, [""] * 8, torch.arange(8) + 8 * number)
        skipped.append(float(strategy.update([batch], 1.0)["skipped"]))
    assert skipped[-3:] == [0, 0, 0], skipped


def test_fp32_is_what_the_configuration_says(tiny: Tiny) -> None:
    """Convolutions in TF32 where the GPU has it, matrix products not: torch's defaults, which may change."""
    assert torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_cudnn_chooses_by_trial_on_a_gpu_only(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    Strategy(tiny(), torch.device("cuda"))
    assert torch.backends.cudnn.benchmark
    Strategy(tiny(), torch.device("cpu"))
    assert not torch.backends.cudnn.benchmark
