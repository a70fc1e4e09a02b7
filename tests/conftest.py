"""Parts that tests of several rooms share: drawn faces, a small config, real data where it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sparface import settings
from sparface.config import Config
from sparface.faces import write_demo_set
from sparface.recipes import registry
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
    write_demo_set(folder, 12, 6, size=32, seed=0)
    return folder


@pytest.fixture(scope="session")
def tiny(faces: Path) -> Callable[..., Config]:
    """The smallest config that trains for real; takes further overrides."""

    def make(*overrides: str) -> Config:
        options = [f"--{key}={value}" for key, value in TINY.items()]
        return settings.load("smoke", [*options, f"--data.shards={faces}", *overrides])

    return make


@pytest.fixture(scope="session")
def data() -> Path:
    """The real faces for development; tests that need them skip where they are missing."""
    folder = Path(os.environ.get("SPARFACE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real faces: {folder} is missing (set SPARFACE_DATA)")
    return folder
