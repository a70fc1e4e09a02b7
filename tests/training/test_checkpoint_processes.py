"""Checkpoints of several processes: loaded by another number of them, and agreed on by all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_checkpoints import Training, assert_same, flip, in_processes, leaves, numbered, save_now
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from sparface.errors import UserError
from sparface.runs.checkpoint import CheckpointStore, read_weights

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def sharded(images_seen: int) -> dict[str, Any]:
    """A replicated and a sharded tensor; the sharded one does not divide by two."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole = torch.arange(35.0).reshape(7, 5) + images_seen
    tensors = Training(seed=images_seen).tensors()
    tensors["networks"]["head"] = {"weight": distribute_tensor(whole, mesh, [Shard(0)])}
    return tensors


def save_together(rank: int, folder: Path, images_seen: int) -> None:
    store = CheckpointStore(folder)
    tensors = sharded(images_seen)
    store.save(images_seen, tensors, {"images": images_seen}, identity="model")
    # Collectives of the training go on in the meantime, and so does the training.
    for _ in range(20):
        dist.all_reduce(torch.ones(1000))
    store.copied()
    tensors["networks"]["head"]["weight"].zero_()
    store.finish()
    assert store.newest() == folder / f"step-{images_seen:09d}"


def load_together(rank: int, folder: Path, images_seen: int) -> None:
    store = CheckpointStore(folder)
    path = store.newest()
    assert path is not None
    tensors = sharded(0)
    assert store.load(path, tensors, identity="model") == {"images": images_seen}
    expected = sharded(images_seen)
    for tree in (tensors, expected):
        tree["networks"]["head"]["weight"] = tree["networks"]["head"]["weight"].full_tensor()
    assert_same(leaves(tensors), leaves(expected))
    with pytest.raises(UserError, match="another model"):
        store.load(path, tensors, identity="other")


@pytest.mark.parametrize(("saving", "loading"), [(2, 1), (1, 2)])
def test_loads_on_another_number_of_processes(tmp_path: Path, saving: int, loading: int) -> None:
    folder = tmp_path / "checkpoints"
    in_processes(saving, save_together, folder, 9)
    in_processes(loading, load_together, folder, 9)
    head = read_weights(folder / "step-000000009", "networks.head")
    assert torch.equal(head["weight"], torch.arange(35.0).reshape(7, 5) + 9)


def agree_on_damage(rank: int, folder: Path, answers: Path) -> None:
    store = CheckpointStore(folder)
    found = store.newest()
    with pytest.raises(UserError) as caught:
        store.load(folder / "step-000000200", numbered(0), identity="model")
    answer = {"found": str(found), "skipped": store.skipped, "error": str(caught.value)}
    (answers / f"{rank}.json").write_text(json.dumps(answer))


def test_all_ranks_agree_on_what_is_damaged(store: CheckpointStore, tmp_path: Path) -> None:
    good, bad = save_now(store, 100), save_now(store, 200)
    flip(bad / "__0_0.distcp", 20)
    in_processes(2, agree_on_damage, store.folder, tmp_path)
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert answers[0] == answers[1]
    assert answers[0]["found"] == str(good)
    assert "was altered" in answers[0]["error"]


def fail_together(rank: int, folder: Path) -> None:
    store = CheckpointStore(folder)
    save_now(store, 100)
    if rank == 1:
        os.fsync = _refuse
    store.save(200, sharded(200), {}, identity="model")  # its own part is each rank's to write
    with pytest.raises(UserError, match="step-000000100 is kept"):
        store.finish()
    dist.barrier()
    assert [path.name for path in folder.iterdir()] == ["step-000000100"]


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_failure_on_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    in_processes(2, fail_together, tmp_path / "checkpoints")


def outlive(rank: int, folder: Path) -> None:
    store = CheckpointStore(folder, timeout=20)
    save_now(store, 100)
    if rank == 1:
        os._exit(0)
    store.save(200, numbered(200), {}, identity="model")
    with pytest.raises(RuntimeError, match="step-000000100 is kept"):
        store.finish()
    os._exit(0)


def test_a_lost_process_is_no_mistake_of_the_users(tmp_path: Path) -> None:
    """A `UserError` would tell a supervisor not to start the run again."""
    in_processes(2, outlive, tmp_path / "checkpoints")
