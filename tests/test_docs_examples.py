"""The examples of the documentation run as they stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from mktestdocs import check_md_file
from PIL import Image

from portraits import portrait
from sparface import Config, train
from sparface.cli import main
from sparface.faces import draw_set

DOCS = Path(__file__).parents[1] / "docs"
Tiny = Callable[..., Config]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """A folder with what the examples name: photos, a shard set and a sparring run."""
    folder = tmp_path_factory.mktemp("examples")
    draw_set(folder / "shards/people", 12, 6, size=64, seed=0)
    (folder / "people/Ada").mkdir(parents=True)
    for number, name in enumerate(("garden", "portrait")):
        Image.fromarray(portrait(0, number)).save(folder / f"people/Ada/{name}.jpg")
    settings = ("--recipe=sparring", "--size=64", "--generator.noise=0.5", "--schedule.images=16")
    train(tiny(*settings, f"--data.shards={folder}/shards/people"), folder / "runs/people")
    return folder


def test_the_python_api(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    check_md_file(DOCS / "api.md", memory=True)


def test_intervals() -> None:
    check_md_file(DOCS / "evaluation.md", memory=True)


def test_a_recipe_of_ones_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    page = (DOCS / "recipes.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (place / "named.py").write_text(code)
    (command,) = re.findall(r"^sparface (train .*)$", page, re.MULTILINE)
    assert main([*command.replace("20000", "64").split(), "--tracking.enabled=false"]) == 0
    monkeypatch.setenv("SPARFACE_RECIPES", "named:Named")
    assert main(["evaluate", "verification", "--checkpoint", "runs/named", "--shards", "shards/people"]) == 0
