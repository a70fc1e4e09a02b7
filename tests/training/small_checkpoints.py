"""Small checkpoints that can be recognised, and processes that share them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from processes import SERVER
from sparface.runs.checkpoint import CheckpointStore


def numbered(images_seen: int, size: int = 8) -> dict[str, Any]:
    """A state that can be recognised: everything in it follows from the images seen."""
    values = torch.arange(size, dtype=torch.float32) + images_seen
    return {"networks": {"recognizer": {"weight": values, "count": torch.tensor(images_seen)}}}


def save_now(store: CheckpointStore, images_seen: int, tensors: dict[str, Any] | None = None) -> Path:
    store.save(images_seen, tensors or numbered(images_seen), {"images": images_seen}, identity="model")
    store.finish()
    return store.folder / f"step-{images_seen:09d}"


def in_processes(count: int, work: Callable[..., None], *args: Any) -> None:
    """Run `work(rank, *args)` in `count` processes joined by gloo."""
    rendezvous = f"{args[0]}.rendezvous{count}"
    processes = [
        SERVER.Process(target=_joined, args=(rank, count, rendezvous, work, args)) for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    Path(rendezvous).unlink(missing_ok=True)
    assert [process.exitcode for process in processes] == [0] * count


def _joined(rank: int, count: int, rendezvous: str, work: Callable[..., None], args: Any) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=50)
    dist.init_process_group("gloo", f"file://{rendezvous}", timeout, count, rank)
    try:
        work(rank, *args)
    finally:
        dist.destroy_process_group()


class Training:
    """A small network with its optimizer, as the loop would save it."""

    def __init__(self, seed: int = 0, channels: int = 4) -> None:
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-2)
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.network(torch.randn(2, 3, 8, 8)).square().sum().backward()
        self.optimizer.step()

    def tensors(self) -> dict[str, Any]:
        weights = self.network.state_dict()
        return {
            "networks": {"recognizer": weights},
            "optimizers": {"recognizer": self.optimizer.state_dict()},
            "averages": {},
            "scaler": {"scale": 1.5, "name": "none", "pair": (1, None)},
        }


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in leaves(item, f"{name}.{key}").items()}
    if isinstance(value, list | tuple):  # JSON has no tuples
        return leaves(dict(enumerate(value)), name)
    return {name: value.clone() if isinstance(value, Tensor) else value}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        same = torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key]
        assert same, key


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)
