"""Study files: what is wrong is named with file and key, and nothing in one can run code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from study_files import small_study, write_study

from sparface.errors import UserError
from sparface.study import file as study_file

Change = Callable[[dict[str, Any]], Any]


def of_s(key: str, value: Any) -> Change:
    return lambda tree: tree["experiments"]["S"].update({key: value})


def of_arm(key: str, value: Any) -> Change:
    return lambda tree: tree["experiments"]["S"]["arms"]["plain"].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(seed=3), r"seed: is unknown; known keys: title, about, data"),
        (lambda tree: tree.update(experiments=[1]), r"experiments: must be a table of settings"),
        (lambda tree: tree.update(experiments={"a/b": {}}), r"experiments\.a/b: is no name"),
        (
            lambda tree: tree.update(prepare={"x": "rm -rf /"}),
            r"prepare\.x: must start with one of align, draw",
        ),
        (lambda tree: tree.update(prepare={"x": 'align "a'}), r"prepare\.x: No closing quotation"),
        (of_s("at", {"gpu": {"seed": 2}}), r"experiments\.S\.at\.gpu\.seed: is unknown"),
        (of_s("at", {"gpu": {"like": "S"}}), r"experiments\.S\.at\.gpu\.like: is unknown"),
        (of_s("like", "S"), r"experiments\.S\.like: must name an experiment above; known: none"),
        (of_s("texts", {"faces": "x"}), r"experiments\.S\.texts\.faces: is the name of something else"),
        (of_s("texts", {"run": "x"}), r"experiments\.S\.texts\.run: is the name of something else"),
        (
            lambda tree: tree["experiments"]["S"].update(texts={"a": "x" * 9_999}, title="{a} {a}"),
            r"experiments\.S\.title: has more than 10,000 characters",
        ),
        (
            lambda tree: tree["experiments"]["S"].update(
                texts={"a": "pipe:id"}, arms={"x": {"data.mix": "{a}"}}
            ),
            r"arms\.x\.data\.mix: a study file cannot name code",
        ),
        (of_s("arms", 3), r"experiments\.S\.arms: must be a table"),
        (of_s("images", None), r"experiments\.S\.images"),
        (of_s("images", "many"), r"experiments\.S\.images: must be a whole number"),
        (of_s("seeds", -1), r"experiments\.S\.seeds: must be a whole number from 0 to 1,000"),
        (of_s("seeds", 10**9), r"experiments\.S\.seeds: must be a whole number from 0 to 1,000"),
        (
            of_s("claims", [{"says": "x", "in": "others.auc", "arm": "plain"}]),
            r"claims\[0\]\.beats: give either",
        ),
        (
            of_s("claims", [{"says": "x", "in": "others.auc", "arm": "best", "beats": "plain"}]),
            r"experiments\.S: names the arm 'best'; known: plain, varied",
        ),
        (
            of_s("claims", [{"says": "x", "in": "lfw.auc", "arm": "plain", "reaches": 0.5}]),
            r"names the evaluation 'lfw'; known: others",
        ),
        (of_s("evaluate", {"others": "verification --shards pipe:id"}), r"evaluate\.others: .*pipe:"),
        (of_arm("data.shards", "pipe:id"), r"arms\.plain\.data\.shards: a study file cannot name code"),
        (of_arm("data", {"mix": {"pipe:id": 2}}), r"arms\.plain\.data\.mix: a study file cannot name code"),
        (of_arm("recipe", "module:Class"), r"arms\.plain\.recipe: a study file cannot name code"),
        (of_arm("--out", "/"), r"arms\.plain\.--out: is not a config key"),
        (of_arm("sets", "elsewhere"), r"arms\.plain\.sets: elsewhere is not a training set"),
    ],
)
def test_a_wrong_entry_is_named(change: Change, message: str, tmp_path: Path) -> None:
    tree = small_study()
    change(tree)
    with pytest.raises(UserError, match=message) as error:
        study_file.read(write_study(tmp_path / "few.yaml", tree))
    assert str(error.value).startswith(str(tmp_path / "few.yaml")) and "\n" not in str(error.value)


def test_an_experiment_is_like_another_one_but_for_what_it_says(tmp_path: Path) -> None:
    """As if all of it had been written out."""
    tree = small_study(texts={"test": "{others}", "what": "Others"}, title="{what}")
    tree["experiments"]["S"]["evaluate"] = {"others": "verification --shards {test}"}
    own: dict[str, Any] = {"texts": {"test": "{faces}"}, "seeds": 3, "train": {"size": 64}}
    own["arms"] = {"varied": {"data.variation": "strong"}, "both": {"data.variation": "mirror"}}
    tree["experiments"]["T"] = {"like": "S", **own}
    found = study_file.read(write_study(tmp_path / "few.yaml", tree)).experiments["T"]
    spelled = small_study(title="Others", seeds=3)
    train, arms = spelled["experiments"]["S"]["train"], spelled["experiments"]["S"]["arms"]
    spelled["experiments"]["S"]["train"] = train | {"size": 64}
    spelled["experiments"]["S"]["arms"] = arms | own["arms"]
    spelled["experiments"]["S"]["evaluate"] = {"others": "verification --shards {faces}"}
    expected = study_file.read(write_study(tmp_path / "spelled.yaml", spelled)).experiments["S"]
    assert replace(found, name="S") == expected


def test_sizes_choose_seeds_budgets_and_experiments(tmp_path: Path) -> None:
    changes = {"seeds": 5, "images": [16, 32], "train": {"size": 64}, "texts": {"word": "large"}}
    tree = small_study(at={"gpu": changes}, texts={"word": "small"}, about="a {word} study")
    tree["sizes"] = ["small", "gpu"]
    tree["experiments"]["F"] = small_study(sizes=["gpu"])["experiments"]["S"]
    file = write_study(tmp_path / "few.yaml", tree)
    small, gpu = study_file.read(file), study_file.read(file, "gpu")
    assert list(small.experiments) == ["S"] and list(gpu.experiments) == ["S", "F"]
    assert [study.experiments["S"].about for study in (small, gpu)] == ["a small study", "a large study"]
    assert small.experiments["S"].seeds == (0, 1) and len(gpu.experiments["S"].seeds) == 5
    plain = gpu.experiments["S"].arms["plain"]
    assert plain.images == (16, 32) and plain.settings["size"] == 64 and plain.settings["data.workers"] == 0
    assert small.experiments["S"].arms["plain"].settings["size"] == 32
    with pytest.raises(UserError, match=r"has no size 'large'; known: small, gpu"):
        study_file.read(file, "large")


def test_an_arm_overrides_what_all_arms_share(tmp_path: Path) -> None:
    tree = small_study()
    tree["experiments"]["S"]["arms"]["plain"] |= {"training": {"seed": 7}, "images": [64], "config": "ar"}
    arms = study_file.read(write_study(tmp_path / "few.yaml", tree)).experiments["S"].arms
    plain = arms["plain"]
    assert plain.settings["training.seed"] == 7 and plain.images == (64,) and plain.config == "ar"
    assert arms["varied"].settings["size"] == plain.settings["size"] == 32
