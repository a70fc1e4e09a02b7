"""Eigenfaces against scikit-learn, with one process and with several."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA

from processes import free_port, in_processes
from sparface.config import Config, TrainingConfig
from sparface.errors import UserError
from sparface.models.eigenfaces import Eigenfaces
from sparface.models.purifier import Purifier, Selector, drawn
from sparface.shards import ShardSet
from sparface.training.passes import Passes
from sparface.training.strategies import open_strategy

COMPONENTS = 12


def fitted(faces: Path, colour: bool, *, components: int = COMPONENTS) -> Eigenfaces:
    """By as many processes as there are."""
    config = Config(size=32, training=TrainingConfig(device="cpu", threads=1))
    found = Eigenfaces(components, 32, colour)
    with open_strategy(config) as strategy:
        every = Passes(ShardSet.open(faces), strategy)
        found.fit(every.count, every.total, 0)
    return found


def in_one_of(rank: int, count: int, port: int, faces: str, out: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.save(fitted(Path(faces), True).state_dict(), f"{out}/{count}-{rank}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "grey"])
def test_the_components_are_those_of_scikit_learn(faces: Path, colour: bool, one_thread: None) -> None:
    found = fitted(faces, colour)
    images = np.stack([face.image for face in ShardSet.open(faces).faces()]) / 255
    pixels = images.transpose(0, 3, 1, 2) if colour else images @ np.array([0.299, 0.587, 0.114])
    reference = PCA(COMPONENTS, svd_solver="full").fit(pixels.reshape(len(pixels), -1))
    assert subspace_angles(reference.components_.T, found.basis.double().numpy().T).max() < 1e-3
    assert np.allclose(reference.mean_, found.mean.numpy(), atol=1e-6)
    assert np.allclose(reference.explained_variance_, found.variance.numpy(), rtol=1e-4)
    signs = (found.basis * torch.from_numpy(reference.components_)).sum(1).abs()
    assert signs.min() > 0.999, "each component, not only their span"
    largest = found.basis.gather(1, found.basis.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_the_basis_is_the_same_for_one_two_and_four_processes(faces: Path, tmp_path: Path) -> None:
    for count in (1, 2, 4):
        in_processes(count, in_one_of, count, free_port(), str(faces), str(tmp_path))
    first = torch.load(tmp_path / "1-0.pt")
    for path in tmp_path.glob("*.pt"):
        state = torch.load(path)
        assert all(torch.equal(first[name], state[name]) for name in first), path.name


def test_more_components_than_faces_or_pixels(faces: Path) -> None:
    with pytest.raises(UserError, match=r"components: 72 is not allowed; the set has 72 faces"):
        fitted(faces, True, components=72)
    with pytest.raises(UserError, match=r"components: 1025 is not allowed; faces have 1,024 values"):
        Eigenfaces(1025, 32, False)


def refused_in_one_of(rank: int, count: int, port: int, faces: str, out: str) -> None:
    try:
        in_one_of(rank, count, port, faces, out)
    except UserError as error:
        Path(out, f"{rank}.txt").write_text(str(error))


def test_a_broken_face_is_named_on_every_process(faces: Path, tmp_path: Path) -> None:
    """Not only on the one that reads it, which would leave the others waiting."""
    broken = shutil.copytree(faces, tmp_path / "broken")
    (shard,) = broken.glob("*.tar")
    with ShardSet.open(faces).shard(0) as known:
        picture = bytes(known.image(70))
    data = shard.read_bytes()
    shard.write_bytes(data.replace(picture, bytes(len(picture))))
    in_processes(2, refused_in_one_of, 2, free_port(), str(broken), str(tmp_path))
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    assert first == second and shard.name in first and "\n" not in first


def naive(x: torch.Tensor, space: Eigenfaces, mask: torch.Tensor) -> torch.Tensor:
    """The projection as it is written: a matrix for each face."""
    found = []
    for face, keep in zip(space.flat(x).double(), mask.double(), strict=True):
        matrix = space.basis.double().T @ torch.diag(keep) @ space.basis.double()
        found.append(matrix @ (face - space.mean.double()) + space.mean.double())
    return torch.stack(found).clamp(0, 1)


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "grey"])
def test_the_factored_projection_is_the_naive_one(faces: Path, colour: bool, one_thread: None) -> None:
    space = fitted(faces, colour)
    torch.manual_seed(0)
    purifier = Purifier(Selector(COMPONENTS, 0.9), space).eval()
    x = torch.from_numpy(np.stack([face.image for face in ShardSet.open(faces).faces()][:5]))
    x = x.permute(0, 3, 1, 2).float() / 255
    noise = purifier.noise(3, torch.arange(5))
    with torch.no_grad():
        mask = drawn(purifier.selector(space.seen(x))[0].sigmoid(), noise)
        found = purifier(x, noise)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    expected = naive(x, space, mask).view(5, *space.shape).expand(-1, 3, -1, -1)
    assert torch.allclose(found.double(), expected, atol=1e-5)
    if not colour:
        assert torch.equal(found[:, 0], found[:, 1]) and torch.equal(found[:, 0], found[:, 2])
