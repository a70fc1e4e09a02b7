"""Several sets in one stream: each its share of every batch, one label per person, exact as a single one."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from toy_sets import SIZE, face, take, write_set, writer

from sparface.config import Config, DataConfig, ScheduleConfig
from sparface.errors import UserError
from sparface.shards import Batch, Loader
from sparface.training.data import TrainingData

P, K = 6, 2


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """12 real identities; a made set of some of them, in another order, and one person more."""
    folder = tmp_path_factory.mktemp("mix")
    size = (16, 16)
    write_set(folder / "real", size=size)
    with writer(folder / "made", name="made", size=size) as shards:
        for number, identity in enumerate([40, 5, 3, 0]):
            for variant in range(5):
                one = face(500 + 5 * number + variant, identity, size)
                shards.add(
                    dataclasses.replace(one, key=f"m{number}v{variant}"), progress=5 * number + variant
                )
    data = DataConfig(str(folder / "real"), {str(folder / "made"): 2}, P, K, window=3)
    return Config(size=16, data=data, schedule=ScheduleConfig(images=1000))


def batches(
    config: Config, count: int, images_seen: int = 0, world: int = 1, workers: int = 0
) -> list[Batch]:
    """The ranks' batches of each step, rank after rank."""
    data = TrainingData(config)
    ranks = [
        take(iter(Loader(data.stream(images_seen, rank, world), workers=workers)), count)
        for rank in range(world)
    ]
    return [batch for step in zip(*ranks, strict=True) for batch in step]


def test_every_batch_has_each_sets_share_and_one_label_per_person(config: Config) -> None:
    identities = TrainingData(config).classes
    for batch in batches(config, 30):
        made = [key.startswith("m") for key in batch.keys]
        assert made == [False] * 4 * K + [True] * 2 * K
        # a toy face tells its person in its green channel
        people = [f"person {int(image[1, 0, 0])}" for image in batch.images]
        assert batch.labels.tolist() == [identities[name] for name in people]
        groups = batch.labels.view(P, K)
        assert bool((groups == groups[:, :1]).all())
    assert len(identities) == 13


def test_positions_are_counted_through(config: Config) -> None:
    positions = torch.cat([batch.positions for batch in batches(config, 20)])
    assert positions.tolist() == list(range(20 * P * K))


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_and_shared_out_it_is_the_same(config: Config, workers: int) -> None:
    """From the middle, by two ranks, by workers: every face with its place and label, once."""

    def faces(found: list[Batch]) -> Counter[tuple[int, str, int]]:
        return Counter(
            (place, key, label)
            for batch in found
            for place, key, label in zip(
                batch.positions.tolist(), batch.keys, batch.labels.tolist(), strict=True
            )
        )

    whole = batches(config, 20)
    rest = batches(config, 12, images_seen=8 * P * K, world=2, workers=workers)
    assert faces(whole[8:]) == faces(rest)
    assert max(faces(rest).values()) == 1


def test_a_pass_over_the_first_set_is_an_epoch(config: Config) -> None:
    alone = dataclasses.replace(config, data=dataclasses.replace(config.data, mix={}))
    groups = TrainingData(alone).stream().epoch_images
    assert TrainingData(config).stream().epoch_images == groups * P // 4


def test_faces_of_another_size_are_refused(config: Config, tmp_path: Path) -> None:
    write_set(tmp_path / "small", size=SIZE)
    data = dataclasses.replace(config.data, mix={str(tmp_path / "small"): 1})
    with pytest.raises(UserError, match="but size is 16"):
        TrainingData(dataclasses.replace(config, data=data))


def test_each_shard_of_all_sets_is_checked_by_one_rank(config: Config, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("real", "made")]
    for folder, source in zip(folders, (config.data.shards, *config.data.mix), strict=True):
        shutil.copytree(source, folder)
        tars = sorted(folder.glob("*.tar"))
        tars[0].write_bytes(tars[0].read_bytes()[:-1] + b"x")
        tars[-1].unlink()
    data = dataclasses.replace(config.data, shards=str(folders[0]), mix={str(folders[1]): 2})
    training = TrainingData(dataclasses.replace(config, data=data))
    for world_size in (1, 3):
        ranks = [training.damaged(rank, world_size) for rank in range(world_size)]
        named = sorted(problem.split(":")[0] for problems in ranks for problem in problems)
        expected = [sorted(Path(s).glob("*.tar")) for s in (config.data.shards, *config.data.mix)]
        assert named == sorted(
            str(folder / tars[at].name)
            for folder, tars in zip(folders, expected, strict=True)
            for at in (0, -1)
        )
