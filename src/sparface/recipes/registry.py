"""Find recipes: built-in ones, those of installed packages, and those that the user trusts.

A recipe is looked up by name or as `module:Class`. A `module:Class` read from a file is never imported
unless the user also gave it on the command line (`trust`) or in `SPARFACE_RECIPES`, a comma-separated list.
Installed packages register recipes as entry points of the group `sparface.recipes`.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from functools import cache
from importlib.metadata import entry_points

from sparface.errors import UserError
from sparface.recipes.base import Recipe
from sparface.text import printable

GROUP = "sparface.recipes"
VARIABLE = "SPARFACE_RECIPES"
OURS = {
    "noise_gan": "sparface.recipes.noise_gan:NoiseGanRecipe",
    "recognizer": "sparface.recipes.recognizer:RecognizerRecipe",
    "expression": "sparface.recipes.expression:ExpressionRecipe",
    "purifier": "sparface.recipes.purifier:PurifierRecipe",
    "sparring": "sparface.recipes.sparring:SparringRecipe",
}
_trusted: set[str] = set()


def trust(name: str) -> None:
    """Allow this process to import a `module:Class` that the user gave on the command line."""
    _trusted.add(name)


def find(name: str) -> type[Recipe]:
    """Return the recipe with this name. Raises `UserError` if it is unknown, not trusted or not a recipe."""
    if (place := known().get(name)) is not None:
        return _import(place, name)
    if ":" in name:
        shown = printable(name)
        raise UserError(
            f"recipe: {shown} from a file is not imported; if you trust this code, set {VARIABLE}={shown}"
        )
    close = difflib.get_close_matches(name, known(), n=1, cutoff=0.4)
    hint = f" (did you mean {close[0]}?)" if close else ""
    available = ", ".join(sorted(known()))
    raise UserError(f"recipe: {printable(name)} is unknown{hint}; available recipes: {available}")


def known() -> dict[str, str]:
    """Return name → `module:Class` for every available recipe."""
    named = [*filter(None, os.environ.get(VARIABLE, "").split(",")), *sorted(_trusted)]
    return _installed() | OURS | {name: name for name in named if ":" in name}


@cache
def _installed() -> dict[str, str]:
    """Recipes of installed packages. Reading the metadata of all packages takes some 20 ms."""
    return {entry.name: entry.value for entry in entry_points(group=GROUP)}


def blocks() -> dict[str, type]:
    """Return name → settings dataclass for the blocks of all known recipes.

    One configuration file may be used with several recipes, so the blocks of all are read, whichever recipe
    is trained. Raises `UserError` if two recipes define different blocks with the same name.
    """
    found: dict[str, type] = {}
    for name in known():
        for block, kind in find(name).blocks.items():
            if found.setdefault(block, kind) is not kind:
                raise UserError(
                    f"recipe: {name} defines a block {block} that another recipe also defines; rename one"
                )
    return found


def _import(place: str, name: str) -> type[Recipe]:
    module, _, attribute = place.partition(":")
    if name == place and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the user's script in the current folder
    try:
        recipe = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing third-party code can raise anything
        raise UserError(f"recipe: {name} cannot be imported ({type(error).__name__}: {error})") from error
    if not (isinstance(recipe, type) and issubclass(recipe, Recipe)):
        raise UserError(f"recipe: {name} is not a subclass of sparface.recipes.Recipe; derive it from Recipe")
    return recipe
