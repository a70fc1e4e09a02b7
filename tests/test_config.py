"""Configs: complete, loadable, and errors that name the key."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparface import settings
from sparface.config import Config, configs_folder, flatten
from sparface.errors import UserError
from sparface.models.recognizer import RecognizerConfig
from sparface.recipes import registry
from sparface.recipes.sparring_config import SparringConfig

RECIPES = {"expression": "expression", "noise-gan": "noise_gan", "purifier": "purifier"}
"""Configs whose settings are not for recognizers."""
NAMES = sorted(path.stem for path in configs_folder().glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_config_says_only_what_differs(name: str) -> None:
    written = dict(yaml_keys(settings.find(name)))
    defaults = flatten(Config(blocks={name: kind() for name, kind in registry.blocks().items()}))
    assert [key for key, value in written.items() if defaults[key] == value] == []
    loaded = flatten(settings.load(name, ["--recipe", RECIPES.get(name, "sparring")]))
    assert {key: loaded[key] for key in written if key != "recipe"} == {
        key: value for key, value in written.items() if key != "recipe"
    }
    assert settings.find(name).read_text().count("\n") <= 40


def yaml_keys(file: Path) -> Iterator[tuple[str, Any]]:
    for name, value in yaml.safe_load(file.read_text()).items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", setting) for key, setting in value.items())
        else:
            yield name, value


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_config_is_shown_and_loads_again(name: str, tmp_path: Path) -> None:
    config = settings.load(name, ["--recipe", RECIPES.get(name, "sparring")])
    shown = settings.describe(config)
    (tmp_path / "whole.yaml").write_text(shown)
    assert settings.load(tmp_path / "whole.yaml") == config
    if name not in RECIPES:
        assert "  # Maximum change of a pixel, in face units [0, 1].\n  epsilon: 0.1" in shown


def test_overrides_win_over_the_file() -> None:
    config = settings.load("smoke", ["--optimizer.learning_rate", "0.5", "--data.shards=elsewhere"])
    assert config.optimizer.learning_rate == 0.5
    assert config.data.shards == "elsewhere"


def test_a_saved_config_loads_as_the_same(tmp_path: Path) -> None:
    config = settings.load(
        "paper", ["--objective.margin", "0.3", "--sparring.generator_learning_rate", "1e-5"]
    )
    settings.save(config, tmp_path / "config.yaml")
    assert settings.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--data.wokers", "3"], "unknown config key data.wokers (did you mean data.workers?)"),
        (["--data.workers", "many"], "data.workers: many is not allowed; expected int"),
        (
            ["--data.variation", "wild"],
            "data.variation: wild is not allowed; expected Literal['none', 'mirror', 'classic', 'strong', "
            "'covered']",
        ),
        (["--size", "0"], "size: 0 is not allowed; must be greater than 0"),
        (["--generator.epsilon", "1.5"], "generator.epsilon: 1.5 is not allowed; must be between 0 and 1"),
        (["--data.workers", "-1"], "data.workers: -1 is not allowed; must not be negative"),
        (
            ["--optimizer.learning_rate", ".nan"],
            "optimizer.learning_rate: nan is not allowed; give a finite number",
        ),
        (
            ["--data.lanes", "3"],
            "data.lanes: 3 is not allowed; must divide data.identities_per_batch (8)",
        ),
        (["--schedule.images", "0"], "schedule.images: is 0, and so is schedule.epochs; set one of them"),
        (
            ["--data.shards", ""],
            "data.shards: is empty; give the folder of a shard set (see `sparface align`)",
        ),
    ],
)
def test_a_bad_value_is_named_with_its_key(override: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        settings.load("smoke", override)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipee: sparring", "unknown config key recipee (did you mean recipe?)"),
        ("data:\n  wokers: 3", "unknown config key data.wokers (did you mean data.workers?)"),
        ("data: [1", "is not valid YAML"),
        ("size: big", "size: big is not allowed; expected int"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        settings.load(tmp_path / "mine.yaml")
    assert str(error.value).startswith(str(tmp_path / "mine.yaml"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_config_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean smoke"):
        settings.load("smok")


def test_recipes_of_others_are_imported_only_when_the_user_names_them(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("recipe: antigravity:Recipe")
    with pytest.raises(UserError, match=r"from a file is not imported; .* set SPARFACE_RECIPES="):
        settings.load(tmp_path / "mine.yaml")
    assert "antigravity" not in sys.modules


def test_a_block_that_the_recipe_does_not_declare_is_the_programmers_mistake() -> None:
    config = settings.load("smoke", ["--recipe=recognizer"])
    assert config.block(RecognizerConfig) is config.blocks["recognizer"]
    with pytest.raises(LookupError, match="no block of type SparringConfig; declare it in the recipe's"):
        config.block(SparringConfig)
