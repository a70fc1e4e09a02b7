"""MLflow for the tests that talk to it, and folders of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_server import Server
from sparface.runs.checkpoint import CheckpointStore


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for the module, down at first."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with no server, made once: making it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('database')}/mlflow.db"


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """One without checkpoints."""
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that has just begun."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("recipe: recognizer\n")
    return folder
