"""MLflow for the tests that talk to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mlflow_server import Server


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
