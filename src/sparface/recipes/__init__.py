"""What is trained and how one step goes: one system of the field, one file.

The names in `__all__` are all that a recipe of your own needs.
"""

from __future__ import annotations

from sparface.config import Config, Policy, number
from sparface.kernels import dispatch
from sparface.recipes import registry
from sparface.recipes.base import (
    FaceBatch,
    Finished,
    Metrics,
    Phase,
    Recipe,
    Role,
    Rule,
    bare,
    faces,
    require_identities,
)

__all__ = [
    "Config",
    "FaceBatch",
    "Finished",
    "Metrics",
    "Phase",
    "Policy",
    "Recipe",
    "Role",
    "Rule",
    "bare",
    "build_recipe",
    "faces",
    "number",
]


def build_recipe(config: Config, identities: int) -> Recipe:
    """The recipe of a config for a training set of so many identities.

    Raises `UserError` for settings that cannot work together, a set that has too few, and kernels that this
    machine cannot run.
    """
    dispatch.use(config.training.kernels)
    recipe = registry.find(config.recipe)
    recipe.check(config)
    require_identities(recipe, config.recipe, identities)
    return recipe(config, identities)
