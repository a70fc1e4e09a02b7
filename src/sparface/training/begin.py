"""The recipe of a run: new, or as it was when a run that resumes began."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sparface.config import Config
from sparface.evaluation.recognizers import Opened
from sparface.recipes import Recipe, build_recipe
from sparface.runs import start
from sparface.runs.onnx_copy import buildable
from sparface.training.data import TrainingData
from sparface.training.given import give_recognizer
from sparface.training.passes import Passes
from sparface.training.strategies.base import Strategy


class Begun(NamedTuple):
    recipe: Recipe
    recognizer: Opened | None
    """What the recipe uses, if it uses one."""
    started: dict[str, str]
    """Source and digest of what a new run starts from (see `start.begin`)."""


def begin(config: Config, data: TrainingData, strategy: Strategy, run: Path | None) -> Begun:
    """Build the recipe, with all that it needs before its first step (collective). `run` is the folder of a
    run that resumes; None for a new one. Raises `UserError`."""
    recipe = build_recipe(buildable(config, run), len(data.classes))
    recognizer = give_recognizer(recipe, run)
    if run is not None:
        return Begun(recipe, recognizer, {})
    started = start.begin(recipe, config, data.digest)
    recipe.learn(Passes(data.sets[0], strategy))
    return Begun(recipe, recognizer, started)
