"""Checkpoints of one process: exact, counted in images, and of the right model."""

from __future__ import annotations

import json

import pytest
import torch
from small_checkpoints import Training, assert_same, leaves, numbered, save_now

from sparface.errors import UserError
from sparface.runs.checkpoint import CheckpointStore, read_weights

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def test_loads_the_exact_state_of_the_moment_of_the_call(store: CheckpointStore) -> None:
    training = Training()
    before = leaves(training.tensors())
    facts = {"schedule": {"images": 7}, "loss": 0.1 + 0.2, "run": None}
    store.save(64, training.tensors(), facts, identity="model")
    facts["loss"] = 0.0
    store.copied()
    for _ in range(5):
        training.step()
    store.finish()
    other = Training(seed=1)
    tensors = other.tensors()
    path = store.newest()
    assert path is not None
    loaded = store.load(path, tensors, identity="model")
    assert loaded == {"schedule": {"images": 7}, "loss": 0.1 + 0.2, "run": None}
    assert_same(leaves(tensors), before)
    weights = {key: value for key, value in before.items() if key.startswith(".networks.recognizer.")}
    assert_same(leaves(other.network.state_dict(), ".networks.recognizer"), weights)


def test_tensors_of_any_form_are_saved(store: CheckpointStore) -> None:
    whole = torch.arange(210.0).reshape(5, 6, 7)
    tensors = {
        "part": whole[1:, ::2],
        "turned": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "empty": torch.empty(0, 3),
        "number": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "half": torch.rand(3).bfloat16(),
    }
    path = save_now(store, 100, {"all": tensors})
    assert_same(read_weights(path, "all"), tensors)
    path = save_now(store, 200, {"all": {"part": whole[:2, ::3]}})  # of another form than the copy before
    assert_same(read_weights(path, "all"), {"part": whole[:2, ::3]})


def test_keeps_the_newest_and_counts_images(store: CheckpointStore) -> None:
    for images in (100, 200, 1_000_000_000, 300):
        save_now(store, images)
    # 300 was saved after a billion, so the billion is not of this history and does not count.
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "step-000000200",
        "step-000000300",
        "step-1000000000",
    ]


def test_the_same_step_can_be_saved_again(store: CheckpointStore) -> None:
    save_now(store, 100)
    path = save_now(store, 100, numbered(7))
    assert torch.equal(read_weights(path, "networks.recognizer")["count"], torch.tensor(7))
    assert [entry.name for entry in store.folder.iterdir()] == ["step-000000100"]


def test_an_empty_or_missing_folder_has_no_checkpoint(store: CheckpointStore) -> None:
    assert store.newest() is None
    store.folder.mkdir()
    assert store.newest() is None
    assert store.skipped == []


def test_another_model_is_refused_and_nothing_is_loaded(store: CheckpointStore) -> None:
    path = save_now(store, 100, Training().tensors())
    other = Training(channels=5)
    before, tensors = leaves(other.tensors()), other.tensors()
    with pytest.raises(UserError, match=r"another model \(networks.recognizer.0.weight is \[4, 3, 3, 3\]"):
        store.load(path, tensors, identity="model")
    with pytest.raises(UserError, match="identity is model in the checkpoint and other here"):
        store.load(path, Training().tensors(), identity="other")
    fewer = Training().tensors()
    del fewer["optimizers"]
    with pytest.raises(UserError, match=r"optimizers.* is only in the checkpoint"):
        store.load(path, fewer, identity="model")
    assert_same(leaves(tensors), before)


def test_the_setting_that_differs_is_named(store: CheckpointStore) -> None:
    store.save(100, numbered(100), {}, identity=json.dumps({"recipe": "sparring", "size": 112, "seed": 0}))
    store.finish()
    with pytest.raises(UserError, match=r"\(size is 112 in the checkpoint and 128 here\)"):
        here = json.dumps({"recipe": "sparring", "size": 128, "seed": 0})
        store.load(store.folder / "step-000000100", numbered(0), identity=here)


def test_a_setting_that_is_null_is_as_one_that_is_absent(store: CheckpointStore) -> None:
    """A checkpoint may name what its recipe does not have; its tensors must be the same all the same."""
    store.save(100, Training().tensors(), {}, identity=json.dumps({"size": 112, "generator": None}))
    store.finish()
    path, here = store.folder / "step-000000100", json.dumps({"size": 112})
    store.load(path, Training().tensors(), identity=here)
    with pytest.raises(UserError, match=r"another model \(networks.recognizer.0.weight is"):
        store.load(path, Training(channels=5).tensors(), identity=here)


def test_reads_one_network_without_building_anything(store: CheckpointStore) -> None:
    training = Training()
    path = save_now(store, 100, training.tensors())
    assert_same(read_weights(path, "networks.recognizer"), dict(training.network.state_dict()))
    with pytest.raises(UserError, match=r"has no averages\.recognizer; it contains networks\.recognizer"):
        read_weights(path, "averages.recognizer")
    with pytest.raises(UserError, match="cannot be read"):
        read_weights(path.parent / "step-000000999", "networks.recognizer")


def test_the_one_before_another_and_one_discarded(store: CheckpointStore) -> None:
    first, second = save_now(store, 100), save_now(store, 200)
    assert store.newest(before=second) == first
    assert store.newest(before=first) is None
    store.discard(second)
    assert store.newest() == first
