"""Which recipes there are: our own, those of installed packages, and those that the user names himself.

A recipe is looked up by its name, or as `module:Class`. A name that stands in a file is never imported: a
`module:Class` counts only when it was typed on the command line (`trust`) or stands in `SPARFACE_RECIPES`,
several separated by commas. Installed packages announce theirs as entry points of the group
`sparface.recipes`.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from importlib.metadata import entry_points

from sparface.errors import UserError
from sparface.recipes.base import Recipe
from sparface.text import printable

GROUP = "sparface.recipes"
VARIABLE = "SPARFACE_RECIPES"
OURS = {
    "recognizer": "sparface.recipes.recognizer:RecognizerRecipe",
    "sparring": "sparface.recipes.sparring:SparringRecipe",
}
_trusted: set[str] = set()


def trust(name: str) -> None:
    """Let a `module:Class` that the user has typed be imported by this process."""
    _trusted.add(name)


def find(name: str) -> type[Recipe]:
    """The recipe of a name. Raises `UserError` for one that is unknown, not trusted or not a recipe."""
    if (place := known().get(name)) is not None:
        return _import(place, name)
    if ":" in name:
        shown = printable(name)
        raise UserError(f"recipe: {shown} is code that a file names; if you trust it, set {VARIABLE}={shown}")
    close = difflib.get_close_matches(name, known(), n=1, cutoff=0.4)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise UserError(f"recipe: {printable(name)} is not known{hint}; there is {', '.join(sorted(known()))}")


def known() -> dict[str, str]:
    """Name → `module:Class` of every recipe that may be used."""
    installed = {entry.name: entry.value for entry in entry_points(group=GROUP)}
    named = [*filter(None, os.environ.get(VARIABLE, "").split(",")), *sorted(_trusted)]
    return installed | OURS | {name: name for name in named if ":" in name}


def blocks() -> dict[str, type]:
    """Name → dataclass of the settings of every known recipe. One configuration file may serve several of
    them, so the blocks of all are read, whichever is trained.

    Raises `UserError` where two recipes have different settings of one name.
    """
    found: dict[str, type] = {}
    for name in known():
        for block, kind in find(name).blocks.items():
            if found.setdefault(block, kind) is not kind:
                raise UserError(
                    f"recipe: {name} has a block {block}, as another recipe has; rename one of them"
                )
    return found


def _import(place: str, name: str) -> type[Recipe]:
    module, _, attribute = place.partition(":")
    if name == place and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a script of the user's own, where he stands
    try:
        recipe = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the import of somebody's module raises
        raise UserError(f"recipe: {name} cannot be imported ({type(error).__name__}: {error})") from error
    if not (isinstance(recipe, type) and issubclass(recipe, Recipe)):
        raise UserError(f"recipe: {name} is not a subclass of sparface.recipes.Recipe")
    return recipe
