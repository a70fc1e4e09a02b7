"""Lanes without a word about them in the config: each process opens its own part of the shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from toy_sets import write_set

from sparface import settings
from sparface.config import Config, configs_folder
from sparface.errors import UserError
from sparface.shards import ShardSet
from sparface.shards.order import fitting_lanes
from sparface.training.data import TrainingData
from sparface.training.loop import train


@pytest.mark.parametrize(
    ("groups", "shards", "window", "expected"),
    [
        (8, 1, 4, 1),  # a small set has one
        (8, 7, 4, 1),
        (8, 8, 4, 2),  # a window's worth of shards each
        (8, 31, 4, 4),
        (8, 1000, 4, 8),  # no more than groups
        (12, 20, 4, 4),  # 5 would fit, but does not divide 12
        (7, 20, 4, 1),
        (8192, 10_000, 4, 2048),
    ],
)
def test_as_many_lanes_as_fit(groups: int, shards: int, window: int, expected: int) -> None:
    assert fitting_lanes(groups, shards, window) == expected


def test_no_config_that_comes_with_the_package_says_otherwise() -> None:
    packaged = [settings.load(path) for path in configs_folder().glob("*.yaml")]
    assert {config.data.lanes for config in [Config(), *packaged]} == {0}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """12 shards of 6 faces."""
    return write_set(tmp_path_factory.mktemp("sets") / "toy", (6,) * 12, size=(32, 32))


def test_ranks_open_different_shards_and_the_order_is_that_of_one(
    toy: ShardSet, tiny: Callable[..., Config]
) -> None:
    data = TrainingData(tiny(f"--data.shards={toy.folder}", "--data.window=3"))
    shards = dict(zip((face.key for face in toy.faces()), (n // 6 for n in range(72)), strict=True))

    def keys(rank: int, world_size: int) -> list[list[str]]:
        batches = iter(data.stream(0, rank, world_size))
        return [next(batches).keys for _ in range(24)]

    first, second = keys(0, 2), keys(1, 2)
    opened = [{shards[key] for batch in part for key in batch} for part in (first, second)]
    assert not opened[0] & opened[1] and len(opened[0] | opened[1]) == 12
    assert [a + b for a, b in zip(first, second, strict=True)] == keys(0, 1)


def test_a_run_goes_on_with_the_lanes_that_it_began_with(
    toy: ShardSet, tiny: Callable[..., Config], tmp_path: Path
) -> None:
    """They decide the order of the faces: the same number may be said in words, another one not."""
    options = [f"--data.shards={toy.folder}", "--data.window=3"]
    train(tiny(*options, "--schedule.images=16"), tmp_path / "run")
    with pytest.raises(UserError, match=r"order is \[3, 4\] in the checkpoint and \[3, 1\] here"):
        train(tiny(*options, "--schedule.images=32", "--data.lanes=1"), tmp_path / "run")
    assert train(tiny(*options, "--schedule.images=32", "--data.lanes=4"), tmp_path / "run")
