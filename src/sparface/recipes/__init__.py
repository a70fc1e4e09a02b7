"""What is trained and how one step goes: one system of the field, one file."""

from __future__ import annotations

from sparface.config import Config
from sparface.errors import UserError
from sparface.kernels import dispatch
from sparface.models.recognizer import FACENET
from sparface.recipes.base import FaceBatch, Metrics, Phase, Recipe
from sparface.recipes.recognizer import RecognizerRecipe
from sparface.recipes.sparring import SparringRecipe

__all__ = ["FaceBatch", "Metrics", "Phase", "Recipe", "build_recipe"]


def build_recipe(config: Config, identities: int) -> Recipe:
    """The recipe of a config for a shard set of so many identities.

    Raises `UserError` for settings that cannot work together.
    """
    dispatch.use(config.training.kernels)
    if config.recognizer.backbone == FACENET and config.size < 75:
        raise UserError(f"size: {config.size} is too small for {FACENET}; use 75 or more")
    if identities < 2:
        raise UserError(f"data.shards: the set has {identities} identity; a recognizer needs at least 2")
    if config.recipe == "recognizer":
        return RecognizerRecipe(config, identities)
    objective = config.objective
    if objective.attack == "untargeted" and config.data.identities_per_batch < 2:
        raise UserError(
            "objective.attack: untargeted needs another identity in the batch; "
            "set data.identities_per_batch to 2 or more"
        )
    if objective.attack == "targeted" and objective.cross_entropy == objective.arcface == 0:
        raise UserError(
            "objective.attack: targeted needs an identity head; "
            "set objective.cross_entropy or objective.arcface above 0"
        )
    return SparringRecipe(config, identities)
