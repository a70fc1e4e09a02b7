"""A sparring run and the set that one process makes with it, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from made_sets import make, write_run
from sparface.config import Config
from sparface.shards import ShardSet


@pytest.fixture(scope="session")
def sparring_run(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny("--recipe=sparring")
    return write_run(tmp_path_factory.mktemp("runs") / "sparring", config)


@pytest.fixture(scope="session")
def made(sparring_run: Path, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """What every other way of making it is compared with."""
    found = make(sparring_run, faces, tmp_path_factory.mktemp("reference") / "set")
    assert found is not None
    return found
