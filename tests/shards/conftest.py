"""The toy set and its first batches, for the tests of streams."""

from __future__ import annotations

import pytest
from toy_sets import take, write_set
from toy_streams import stream

from sparface.shards import Batch, ShardSet


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_set(tmp_path_factory.mktemp("shards") / "toy")


@pytest.fixture(scope="module")
def reference(toy: ShardSet) -> list[Batch]:
    return take(iter(stream(toy)), 24)
