"""Configs: complete, loadable, and errors that name the key."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from sparface import config as configs
from sparface.config import Config
from sparface.errors import UserError

NAMES = sorted(path.stem for path in configs.configs_folder().glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_packaged_config_is_complete_and_loads(name: str) -> None:
    written = yaml.safe_load(configs.find(name).read_text())
    keys = {f"{k}.{s}" for k, v in written.items() if isinstance(v, dict) for s in v}
    keys |= {k for k, v in written.items() if not isinstance(v, dict)}
    assert keys == set(configs.flatten(Config()))
    configs.load(name)


def test_overrides_win_over_the_file() -> None:
    config = configs.load("smoke", ["--optimizer.learning_rate", "0.5", "--data.shards=elsewhere"])
    assert config.optimizer.learning_rate == 0.5
    assert config.data.shards == "elsewhere"


def test_a_saved_config_loads_as_the_same(tmp_path: Path) -> None:
    config = configs.load(
        "paper", ["--objective.margin", "0.3", "--optimizer.generator_learning_rate", "1e-5"]
    )
    configs.save(config, tmp_path / "config.yaml")
    assert configs.load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (["--data.wokers", "3"], "unknown config key data.wokers (did you mean data.workers?)"),
        (["--data.workers", "many"], "data.workers: many is not allowed; expected int"),
        (
            ["--data.augment", "strong"],
            "data.augment: strong is not allowed; expected Literal['none', 'classic']",
        ),
        (["--size", "0"], "size: 0 is not allowed; must be greater than 0"),
        (["--generator.epsilon", "1.5"], "generator.epsilon: 1.5 is not allowed; must be between 0 and 1"),
        (["--data.workers", "-1"], "data.workers: -1 is not allowed; must not be negative"),
        (
            ["--optimizer.learning_rate", ".nan"],
            "optimizer.learning_rate: nan is not allowed; give a finite number",
        ),
        (["--data.lanes", "3"], "data.lanes: 3 does not divide data.identities_per_batch (8)"),
        (["--schedule.images", "0"], "schedule.images: 0, and schedule.epochs too; give one of them"),
        (["--data.shards", ""], "data.shards: empty; give the folder of a shard set (see `sparface align`)"),
    ],
)
def test_a_bad_value_is_named_with_its_key(override: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        configs.load("smoke", override)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipee: sparring", "unknown config key recipee (did you mean recipe?)"),
        ("data:\n  wokers: 3", "unknown config key data.wokers (did you mean data.workers?)"),
        ("data: [1", "is not YAML"),
        ("size: big", "size: big is not allowed; expected int"),
    ],
)
def test_a_bad_file_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        configs.load(tmp_path / "mine.yaml")
    assert str(error.value).startswith(str(tmp_path / "mine.yaml"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_config_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean smoke"):
        configs.load("smok")


def test_every_field_says_what_it_means() -> None:
    """The YAML files carry a comment for nearly every key; the dataclasses hold them in one place."""
    text = configs.find("paper").read_text()
    assert text.count("#") >= len(dataclasses.fields(Config)) * 3
