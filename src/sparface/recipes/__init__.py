"""Recipes: which networks are trained, and how one training step works. Each recipe is one file.

The names in `__all__` are all that you need to write your own recipe.
"""

from __future__ import annotations

from sparface.config import Config, Policy, number
from sparface.errors import UserError
from sparface.kernels import dispatch
from sparface.recipes import registry
from sparface.recipes.base import (
    AllFaces,
    FaceBatch,
    Finished,
    Metrics,
    Phase,
    Recipe,
    Role,
    Rule,
    faces,
    require_classes,
)

__all__ = [
    "AllFaces",
    "Config",
    "FaceBatch",
    "Finished",
    "Metrics",
    "Phase",
    "Policy",
    "Recipe",
    "Role",
    "Rule",
    "build_recipe",
    "faces",
    "number",
]


def build_recipe(config: Config, classes: int) -> Recipe:
    """Build the config's recipe for a training set with so many identities, or other classes that it learns.

    Raises `UserError` for incompatible settings, too few classes, or kernels that this machine cannot run.
    """
    dispatch.use(config.training.kernels)
    recipe = registry.find(config.recipe)
    recipe.check(config)
    require_classes(recipe, config.recipe, classes)
    made = recipe(config, classes)
    if all(phase.every > 1 for phase in made.phases()):
        raise UserError(f"recipe: {config.recipe} has steps without a phase; let one phase have every=1")
    return made
