"""A tiny trained run and drawn faces, made once for all tests of the room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluation_runs import SIZE, small_config, write_checkpoint

from sparface.faces.drawn import draw_set
from sparface.shards.set import ShardSet


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Twelve drawn people, five faces each."""
    return draw_set(tmp_path_factory.mktemp("sets") / "drawn", 12, 5, size=SIZE, seed=0)


@pytest.fixture(autouse=True, scope="module")
def few_threads(one_thread: None) -> None:
    """In all tests of this folder."""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, faces: ShardSet) -> Path:
    """An untrained sparring run at 640 images, without averages."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    torch.manual_seed(0)
    write_checkpoint(folder, small_config(faces.folder), 640)
    return folder
