"""Every setting of `data` reaches the stream that a run trains on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_sets import take, write_set

from sparface.config import Config, DataConfig, TrainingConfig
from sparface.shards import FaceStream, ShardSet
from sparface.training.data import TrainingData

PLAIN = {"identities_per_batch": 4, "images_per_identity": 2, "window": 3, "lanes": 1, "seed": 0}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings") / "toy"
    write_set(folder, size=(16, 16))
    return folder


def trained_on(toy: Path, images_seen: int = 0, **settings: Any) -> list[list[str]]:
    """The keys of a run's batches."""
    settings = PLAIN | settings
    seed = settings.pop("seed")
    data = DataConfig(shards=str(toy), **settings)
    config = Config(size=16, data=data, training=TrainingConfig(seed=seed))
    return [batch.keys for batch in take(iter(TrainingData(config).stream(images_seen)), 12)]


@pytest.mark.parametrize(
    "settings",
    [
        {"identities_per_batch": 2},
        {"images_per_identity": 3},
        {"window": 1},
        {"lanes": 2},
        {"seed": 5},
        {"identities_per_batch": 6, "images_per_identity": 1, "window": 2, "lanes": 3, "seed": 9},
    ],
    ids=str,
)
def test_each_setting_decides_which_faces_come_when(toy: Path, settings: dict[str, Any]) -> None:
    expected = FaceStream(ShardSet.open(toy), **(PLAIN | settings))
    found = trained_on(toy, **settings)
    assert found == [batch.keys for batch in take(iter(expected), 12)]
    assert found != trained_on(toy)
    groups, images = (PLAIN | settings)["identities_per_batch"], (PLAIN | settings)["images_per_identity"]
    assert {len(keys) for keys in found} == {groups * images}


def test_a_run_goes_on_where_it_was(toy: Path) -> None:
    assert trained_on(toy, images_seen=40)[:7] == trained_on(toy)[5:]


def test_what_to_do_with_broken_faces(toy: Path) -> None:
    for on_bad_sample, share in (("skip", 0.25), ("fail", 0.5)):
        data = replace(
            DataConfig(shards=str(toy)),
            on_bad_sample=on_bad_sample,  # type: ignore[arg-type]
            max_bad_share=share,
        )
        stream = TrainingData(Config(size=16, data=data)).stream()
        assert isinstance(stream, FaceStream)
        assert (stream.on_bad_sample, stream.max_bad_share) == (on_bad_sample, share)
