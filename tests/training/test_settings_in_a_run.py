"""Settings that only a whole run shows: rates, moments, what is kept, and what the seed decides."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparface.config import Config
from sparface.errors import UserError
from sparface.evaluation.verification import Validator
from sparface.shards import Batch
from sparface.training import loop
from sparface.training.loop import train
from sparface.training.watch import Anomaly, Watch

Tiny = Callable[..., Config]
# 8 images an update
SHORT = (
    "--schedule.images=96",
    "--schedule.warmup_images=0",
    "--data.workers=0",
    "--training.log_every=8",
    "--training.preview_every=1000",
)


def records(run: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / file).read_text().splitlines()]


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def test_the_rate_of_every_update(tiny: Tiny, tmp_path: Path) -> None:
    """Warm-up to 24 images, then a cosine to 1 % of the rate; an update has the rate of its first image."""
    config = tiny(
        *SHORT, "--schedule.warmup_images=24", "--schedule.decay=cosine", "--optimizer.learning_rate=4e-5"
    )
    train(config, tmp_path / "run")
    for record in records(tmp_path / "run"):
        first = record["images"] - 8
        fallen = 0.01 + 0.99 * (1 + math.cos(math.pi * (first - 24) / 72)) / 2
        factor = (first + 1) / 25 if first < 24 else fallen
        assert record["learning_rate"] == pytest.approx(4e-5 * factor, rel=1e-9)


def test_moments_and_what_is_kept(tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    moments = ("--training.log_every=24", "--training.preview_every=40", "--training.checkpoint_every=16")
    assert train(tiny(*SHORT, *moments, "--training.keep_checkpoints=3"), run)
    assert [record["images"] for record in records(run)] == [24, 48, 72, 96]
    shown = {int(path.stem.split("-")[0]) for path in (run / "previews").glob("*.png")}
    assert shown == {40, 80, 96}
    assert checkpoints(run) == [64, 80, 96]


def test_an_update_has_accumulated_batches(tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(*SHORT, "--training.accumulate=3"), tmp_path / "run")
    assert [record["images"] for record in records(tmp_path / "run")] == [24, 48, 72, 96]


def test_validation_at_its_moments(
    tiny: Tiny, tmp_path: Path, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validators: list[Validator] = []

    def build(*arguments: Any) -> Validator:
        validators.append(Validator(*arguments))
        return validators[0]

    monkeypatch.setattr("sparface.training.data.Validator", build)
    validation = (f"--validation.shards={faces}", "--validation.every=40", "--validation.pairs=60")
    train(tiny(*SHORT, *validation), tmp_path / "run")
    validated = [r for r in records(tmp_path / "run") if any(name.startswith("validation/") for name in r)]
    assert [record["images"] for record in validated] == [40, 80, 96]
    assert [len(validator.pairs) for validator in validators] == [60]


def test_the_average_of_a_run(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights after every update, weighed by their age in half-lives."""
    half_life, key = 2, "backbone.fc.weight"
    seen: list[torch.Tensor] = []
    trainers: list[loop.Trainer] = []
    original = loop.Trainer.update

    def update(self: loop.Trainer, batches: list[Batch]) -> int:
        if not seen:
            seen.append(self.strategy.recipe.networks["recognizer"].state_dict()[key].double())
        images = original(self, batches)
        seen.append(self.strategy.recipe.networks["recognizer"].state_dict()[key].double())
        trainers.append(self)
        return images

    monkeypatch.setattr(loop.Trainer, "update", update)
    config = tiny(*SHORT, f"--training.average_half_life={half_life}", "--optimizer.learning_rate=1e-3")
    train(config, tmp_path / "run")
    expected = seen[0]
    for step, weights in enumerate(seen[1:], 1):
        expected = expected + (1 - 0.5 ** (8 / min(half_life, 0.05 * 8 * step))) * (weights - expected)
    average = trainers[-1].average
    assert average is not None
    torch.testing.assert_close(average.tensors["recognizer"][key].double(), expected, rtol=1e-5, atol=1e-7)
    assert (expected - seen[-1]).abs().max() > 1e-5


class Anxious(Watch):
    """Wants a rollback after every interval but the first, as long as there is something to return to."""

    def inspect(self, *arguments: Any, **named: Any) -> list[Anomaly]:
        first = not self.counts.get("seen")
        self.counts["seen"] = 1
        return [] if first else [Anomaly("test", "rollback", "a test", 0.0)]


@pytest.mark.parametrize(("factor", "most"), [(0.5, 3), (0.1, 2), (1.0, 1)])
def test_a_rollback_lowers_the_rate(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, most: int
) -> None:
    rates: list[float] = []
    original = loop.Trainer.update

    def update(self: loop.Trainer, batches: list[Batch]) -> int:
        images = original(self, batches)
        rates.append(self.rate)
        return images

    monkeypatch.setattr(loop.Trainer, "update", update)
    monkeypatch.setattr(loop, "Watch", Anxious)
    settings = (f"--watch.rollback_rate={factor}", f"--watch.max_rollbacks={most}")
    with pytest.raises(UserError, match=f"diverged at 16 images after {most} rollbacks"):
        train(tiny(*SHORT, "--training.checkpoint_every=8", *settings), tmp_path / "run")
    assert rates == pytest.approx([1.0, *(factor**n for n in range(most + 1))])


def test_the_seed_decides_weights_and_order(tiny: Tiny, tmp_path: Path) -> None:
    losses = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        train(tiny(*SHORT, "--schedule.images=16", f"--training.seed={seed}"), tmp_path / name)
        losses[name] = [record["loss"] for record in records(tmp_path / name)]
    assert losses["one"] == losses["same"] != losses["other"]


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(tiny: Tiny, tmp_path: Path, threads: int) -> None:
    before = torch.get_num_threads()
    try:
        train(tiny(*SHORT, "--schedule.images=8", f"--training.threads={threads}"), tmp_path / "run")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
