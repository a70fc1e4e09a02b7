"""A preview costs one process a few faces, whatever the size of the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparface.config import Config
from sparface.recipes.recognizer import RecognizerRecipe
from sparface.shards import Batch
from sparface.training.loop import Trainer, train

Tiny = Callable[..., Config]


def test_a_preview_shows_the_first_faces_of_a_large_batch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Batch] = []
    trained: list[Batch] = []
    preview, update = RecognizerRecipe.preview, Trainer.update

    def watching(recipe: RecognizerRecipe, batch: Any) -> dict[str, torch.Tensor]:
        shown.append(batch)
        return preview(recipe, batch)

    def recording(trainer: Trainer, batches: list[Batch]) -> int:
        trained.extend(batches)
        return update(trainer, batches)

    monkeypatch.setattr(RecognizerRecipe, "preview", watching)
    monkeypatch.setattr(Trainer, "update", recording)
    config = tiny(
        *("--data.identities_per_batch=12", "--data.images_per_identity=6", "--schedule.images=144"),
        *("--training.preview_every=72", "--training.checkpoint_every=1000"),
    )
    assert train(config, tmp_path / "run")
    assert [len(batch.images) for batch in shown] == [32, 32, 32]
    assert torch.equal(shown[0].images, trained[1].images[:32])  # of the batch that comes next
    assert shown[0].keys == trained[1].keys[:32]
