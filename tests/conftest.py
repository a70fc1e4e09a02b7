"""Parts that tests of several rooms share: drawn faces, a small config, real data where it is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from sparface import settings
from sparface.config import Config
from sparface.faces import draw_set
from sparface.recipes import build_recipe, registry
from sparface.runs.checkpoint import CheckpointStore
from sparface.shards import Face, ShardSetWriter
from tiny_config import TINY

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def untrusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test trusts a recipe that another one has typed."""
    monkeypatch.setattr(registry, "_trusted", set())


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of 12 drawn identities × 6 faces."""
    folder = tmp_path_factory.mktemp("sets") / "faces"
    draw_set(folder, 12, 6, size=32, seed=0)
    return folder


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard set of 12 identities × 6 faces with an expression that shows in their colour."""
    folder, rng = tmp_path_factory.mktemp("sets") / "labelled", np.random.default_rng(0)
    with ShardSetWriter(folder, name="labelled", size=(32, 32), columns=["expression"]) as writer:
        for number in range(72):
            image = rng.integers(0, 128, (32, 32, 3), np.uint8)
            image[:, :, number % 3] += 100
            meta = {"expression": ("calm", "glad", "sad")[number % 3]}
            writer.add(Face(f"f{number:03d}", image, f"p{number // 6:02d}", f"{number}.png", meta))
    return folder


@pytest.fixture(scope="session")
def tiny(faces: Path) -> Callable[..., Config]:
    """The smallest config that trains for real; takes further overrides."""

    def make(*overrides: str) -> Config:
        options = [f"--{key}={value}" for key, value in TINY.items()]
        return settings.load("smoke", [*options, f"--data.shards={faces}", *overrides])

    return make


@pytest.fixture(scope="session")
def classifier(tiny: Callable[..., Config], labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an untrained classifier of the three expressions of `labelled`, and of one more."""
    config = tiny("--recipe=expression", "--classifier.backbone=test_resnet", f"--data.shards={labelled}")
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    settings.save(config, folder / "config.yaml")
    torch.manual_seed(0)
    recipe = build_recipe(config, 4)
    facts = {"classes": ["calm", "dull", "glad", "sad"]}
    identity = json.dumps(recipe.identity(config) | {"identities": 4})
    store = CheckpointStore(folder / "checkpoints")
    tensors = {"networks": {name: network.state_dict() for name, network in recipe.networks.items()}}
    store.save(640, tensors | {"averages": tensors["networks"]}, facts, identity=identity)
    store.finish()
    return folder


@pytest.fixture(scope="session")
def data() -> Path:
    """The real faces for development; tests that need them skip where they are missing."""
    folder = Path(os.environ.get("SPARFACE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real faces: {folder} is missing (set SPARFACE_DATA)")
    return folder


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch's threads wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a size (`600k`, `6m`) and returns its folder; skips where it may not mount."""
    folder = tmp_path / "disk"

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        folder.mkdir()
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("needs the right to mount a tmpfs")
        mounted.callback(subprocess.run, ["umount", str(folder)], check=True)
        return folder

    with ExitStack() as mounted:
        yield mount
