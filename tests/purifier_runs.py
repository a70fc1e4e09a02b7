"""A run of a purifier that has seen faces but not learned, for tests of several rooms."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from sparface import settings
from sparface.config import Config, TrainingConfig
from sparface.recipes import build_recipe
from sparface.recipes.purifier import PurifierConfig
from sparface.runs.checkpoint import CheckpointStore
from sparface.shards import ShardSet
from sparface.training.passes import Passes
from sparface.training.strategies.base import Strategy

COMPONENTS = 20


def write_purifier(folder: Path, shards: Path, *, keep: float = 0.0, template: str = "box") -> Path:
    """`keep`: logit of the probability to keep a component, which here is nearly the same for all faces."""
    faces = ShardSet.open(shards)
    size = faces.manifest.size[0]
    blocks = {"purifier": PurifierConfig(recognizer="gone", components=COMPONENTS)}
    config = Config(recipe="purifier", size=size, training=TrainingConfig(device="cpu"), blocks=blocks)
    config.data.shards, config.schedule.images = str(shards), 100
    folder.mkdir(parents=True)
    settings.save(config, folder / "config.yaml")
    torch.manual_seed(0)
    recipe = build_recipe(config, 12)
    torch.nn.init.constant_(recipe.networks["purifier"].head.bias, keep)  # type: ignore[arg-type]
    recipe.learn(Passes(faces, Strategy(config, torch.device("cpu"))))
    tensors = {
        kind: {name: module.state_dict() for name, module in modules.items()}
        for kind, modules in (("networks", recipe.networks), ("frozen", recipe.frozen))
    }
    store = CheckpointStore(folder / "checkpoints")
    store.save(64, tensors, {"template": template}, identity=json.dumps(recipe.identity(config)))
    store.finish()
    return folder
