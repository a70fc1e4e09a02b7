"""How recipes are found by name, and which of other people's code is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sparface.errors import UserError
from sparface.models.noise_gan import NoiseGanConfig
from sparface.models.sae import GeneratorConfig
from sparface.recipes import Recipe, registry
from sparface.recipes.expression import ExpressionRecipe
from sparface.recipes.generator_watch import GeneratorWatchConfig
from sparface.recipes.noise_gan_watch import NoiseGanWatchConfig
from sparface.recipes.purifier import PurifierConfig
from sparface.recipes.recognizer import RecognizerRecipe
from sparface.recipes.sparring import SparringRecipe
from sparface.recipes.sparring_config import SparringConfig

SCRIPT = """
from dataclasses import dataclass
from sparface.recipes import Recipe

@dataclass
class Width:
    width: int = 1

class Mine(Recipe):
    blocks = {"mine": Width}
    def phases(self): return []

class Rival(Mine):
    blocks = {"sparring": Width}

number = 3
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's recipes in the current folder."""
    (tmp_path / "own_recipes.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARFACE_RECIPES", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("own_recipes", None)


def refused(name: str) -> str:
    with pytest.raises(UserError) as caught:
        registry.find(name)
    return str(caught.value)


def test_built_in_recipes_have_names() -> None:
    assert registry.find("recognizer") is RecognizerRecipe
    assert registry.find("sparring") is SparringRecipe


def test_an_unknown_name_suggests_the_nearest() -> None:
    recipes = "available recipes: expression, noise_gan, purifier, recognizer, sparring"
    assert refused("sparing") == f"recipe: sparing is unknown (did you mean sparring?); {recipes}"
    assert refused("zzz") == f"recipe: zzz is unknown; {recipes}"


def test_a_class_is_imported_only_when_the_user_trusts_it(script: Path) -> None:
    assert refused("own_recipes:Mine") == (
        "recipe: own_recipes:Mine from a file is not imported; "
        "if you trust this code, set SPARFACE_RECIPES=own_recipes:Mine"
    )
    assert "own_recipes" not in sys.modules
    registry.trust("own_recipes:Mine")
    mine = registry.find("own_recipes:Mine")
    assert issubclass(mine, Recipe) and mine.__name__ == "Mine"
    assert sys.path.count(str(script)) == 1
    assert refused("own_recipes:Rival").endswith("SPARFACE_RECIPES=own_recipes:Rival")


def test_the_environment_names_several(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARFACE_RECIPES", "own_recipes:Mine,,own_recipes:number,absent:Recipe,zzz")
    assert registry.find("own_recipes:Mine").__name__ == "Mine"
    assert refused("own_recipes:number") == (
        "recipe: own_recipes:number is not a subclass of sparface.recipes.Recipe; derive it from Recipe"
    )
    assert refused("absent:Recipe") == (
        "recipe: absent:Recipe cannot be imported (ModuleNotFoundError: No module named 'absent')"
    )
    assert refused("zzz").startswith(
        "recipe: zzz is unknown; available recipes: absent:Recipe, expression, n"
    )


def test_installed_packages_register_recipes(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [EntryPoint("theirs", "own_recipes:Mine", registry.GROUP)]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries if group == registry.GROUP else [])
    registry._installed.cache_clear()
    monkeypatch.syspath_prepend(script)
    try:
        assert registry.find("theirs").__name__ == "Mine"
        assert registry.find("recognizer") is RecognizerRecipe
    finally:
        registry._installed.cache_clear()


def test_blocks_of_all_recipes_are_read(script: Path) -> None:
    ours = {
        **RecognizerRecipe.blocks,
        "generator": GeneratorConfig,
        "sparring": SparringConfig,
        "generator_watch": GeneratorWatchConfig,
        **ExpressionRecipe.blocks,
        "noise_gan": NoiseGanConfig,
        "noise_gan_watch": NoiseGanWatchConfig,
        "purifier": PurifierConfig,
    }
    assert registry.blocks() == ours
    registry.trust("own_recipes:Mine")
    assert registry.blocks().keys() == {*ours, "mine"}
    registry.trust("own_recipes:Rival")
    with pytest.raises(UserError) as caught:
        registry.blocks()
    assert str(caught.value) == (
        "recipe: own_recipes:Rival defines a block sparring that another recipe also defines; rename one"
    )
