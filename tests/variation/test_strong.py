"""The strong variation: each change and the whole against scipy, numpy and torch's own resampling."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates
from torch import Tensor

from sparface.kernels.whiten import whiten
from sparface.shards.set import ShardSet
from sparface.variation import PARAMETERS, Variation, apply, bounded, draw, vary
from sparface.variation.changes import DARKEST
from sparface.variation.strong import BOUNDS

Array = np.ndarray
SIZES = [(24, 24), (20, 31)]


def noise(size: tuple[int, int], count: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, *size, dtype=torch.float64, generator=generator)


def field(points: Tensor, size: tuple[int, int], mode: str) -> Array:
    return F.interpolate(points[None], size=size, mode=mode, align_corners=True)[0].numpy()


def places(size: tuple[int, int]) -> tuple[Array, Array]:
    y, x = np.meshgrid(*((np.arange(n) + 0.5) / n * 2 - 1 for n in size), indexing="ij")
    return x, y


def moved(face: Array, v: Variation, i: int) -> Array:
    """A face [3,H,W] resampled where a homography and the warp say, by scipy."""
    size = (face.shape[1], face.shape[2])
    x, y = places(size)
    turn, zoom = float(v.rotation[i]), math.exp(v.scale[i])
    mirror = 1.0 if v.mirror is None else float(v.mirror[i])
    c, s = zoom * math.cos(turn), zoom * math.sin(turn)
    homography = np.array([[mirror * c, -s, 0], [mirror * s, c, 0], [*v.perspective[i].tolist(), 1]])
    from_x, from_y, depth = np.einsum("ij,jhw->ihw", homography, np.stack([x, y, np.ones_like(x)]))
    warp, (right, down) = field(v.warp[i], size, "bicubic"), v.shift[i].tolist()
    from_x, from_y = from_x / depth + 2 * right + warp[0], from_y / depth + 2 * down + warp[1]
    at = [((from_y + 1) * size[0] - 1) / 2, ((from_x + 1) * size[1] - 1) / 2]
    return np.stack([map_coordinates(channel, at, order=1, mode="reflect") for channel in face])


def relit(face: Array, v: Variation, i: int) -> Array:
    face = np.maximum(face, DARKEST) ** math.exp(v.gamma[i])
    t, k = 2 * face - 1, math.exp(v.contrast[i])
    face = (k * t / (1 + (k - 1) * np.abs(t)) + 1) / 2
    grey = (face[0] + face[1] + face[2]) / 3
    kept = math.exp(v.saturation[i]) * (1 if v.grey is None else 1 - float(v.grey[i]))
    face = grey + kept * (face - grey)
    face = face * np.exp(v.tint[i].numpy())[:, None, None]
    return np.clip(face * np.exp(field(v.light[i], face.shape[1:], "bilinear")), 0, 1)


def coarse(face: Array, v: Variation, i: int) -> Array:
    size = face.shape[1:]
    small = [max(1, round(float(v.resolution[i]) * n)) for n in size]
    down = F.interpolate(torch.from_numpy(face)[None], size=small, mode="bilinear", antialias=True)
    return F.interpolate(down, size=size, mode="bilinear")[0].numpy()


def patched(face: Array, v: Variation, i: int) -> Array:
    """Each pixel is mixed by its covered area."""
    patch, covered = v.patch, []
    for axis, n in ((1, face.shape[1]), (0, face.shape[2])):
        middle, half = float(patch.centre[i, axis]), float(patch.size[i, axis])
        edges = np.arange(n + 1) * 2 / n - 1
        low, high = np.maximum(edges[:-1], middle - half), np.minimum(edges[1:], middle + half)
        covered.append(np.clip(high - low, 0, None) * n / 2)
    cover = float(patch.opacity[i]) * np.outer(*covered)
    return face + cover * (patch.texture[i].numpy() - face)


@pytest.mark.parametrize("size", SIZES)
def test_each_stage_and_the_whole(size: tuple[int, int]) -> None:
    faces = noise(size)
    v = draw(5, torch.arange(1000, 1024), dtype=torch.float64)
    done = faces.numpy()
    for change in (moved, relit, coarse, patched):
        done = np.stack([change(face, v, i) for i, face in enumerate(done)])
    np.testing.assert_allclose(apply(faces, v).numpy(), done, atol=1e-9)
    np.testing.assert_allclose(vary(faces, "strong", 5, torch.arange(1000, 1024)).numpy(), done, atol=1e-9)


def only(name: str, value: float, count: int = 1) -> Variation:
    """A variation of one kind; a field has its largest value with alternating signs."""
    neutral = bounded(torch.zeros(count, PARAMETERS, dtype=torch.float64))
    there = getattr(neutral, name)
    signs = torch.ones(there[0].numel(), dtype=there.dtype)
    signs[1::2] = -1
    changed: dict[str, Any] = {name: value * signs.view_as(there[:1]).expand_as(there)}
    return replace(neutral, **changed)


@pytest.mark.parametrize("size", SIZES)
def test_no_change(size: tuple[int, int]) -> None:
    faces = noise(size).clamp(min=DARKEST)
    unchanged = apply(faces, bounded(torch.zeros(len(faces), PARAMETERS, dtype=torch.float64)))
    torch.testing.assert_close(unchanged, faces, atol=1e-9, rtol=0)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", BOUNDS)
def test_every_kind_survives_whitening(faces: Path, name: str, sign: int) -> None:
    """The whitened face changes by 6 % of a standard deviation or more. A gain and an offset do nothing."""
    images = [torch.from_numpy(face.image.copy()) for face in ShardSet.open(faces).faces()][:24]
    people = torch.stack(images).permute(0, 3, 1, 2).double() / 255
    change = sign * BOUNDS[name][1]
    changed = apply(people, only(name, change, len(people)))
    distance = (whiten(changed) - whiten(people)).square().mean((1, 2, 3)).sqrt()
    assert distance.median() > 0.06
    assert (whiten(people * 0.6 + 0.2) - whiten(people)).abs().max() < 1e-3


def test_what_a_person_would_see() -> None:
    """A bright spot moves, a mid-grey keeps, colours go."""
    x, y = places((81, 81))
    spot = torch.from_numpy(np.exp(-((x - 0.5) ** 2 + y**2) / 0.01)).expand(1, 3, 81, 81)

    def found(v: Variation) -> tuple[float, float]:
        seen = (apply(spot, v)[0, 0].numpy() - 1e-2).clip(min=0)
        return float((seen * x).sum() / seen.sum()), float((seen * y).sum() / seen.sum())

    turned = (0.5 * math.cos(0.2), -0.5 * math.sin(0.2))
    assert found(only("rotation", 0.2)) == pytest.approx(turned, abs=5e-3)
    assert found(only("scale", 0.18)) == pytest.approx((0.5 / math.exp(0.18), 0), abs=5e-3)
    assert found(only("shift", 0.08)) == pytest.approx((0.5 - 0.16, 0.16), abs=5e-3)
    near = only("perspective", 0.15)
    near.perspective[:, 1] = 0
    assert found(near)[0] == pytest.approx(0.5 / (1 - 0.15 * 0.5), abs=6e-3)
    mirrored = replace(only("gamma", 0), mirror=torch.tensor([-1.0]))
    torch.testing.assert_close(apply(spot, mirrored), spot.flip(3).clamp(min=DARKEST), atol=1e-9, rtol=0)
    flat = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)[None, :, None, None].expand(1, 3, 6, 6)
    curved = apply(flat, only("contrast", 0.4))
    torch.testing.assert_close(curved, flat.clamp(min=1e-3), atol=1e-3, rtol=0)
    grey = apply(flat, replace(only("gamma", 0), grey=torch.ones(1)))
    torch.testing.assert_close(grey, torch.full_like(grey, 0.5), atol=1e-3, rtol=0)


def test_is_the_same_under_autocast() -> None:
    faces, v = noise((24, 24)).float(), draw(3, torch.arange(24))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        changed = apply(faces, v)
    assert torch.equal(changed, apply(faces, v))
    by_a_network = bounded(torch.zeros(24, PARAMETERS, dtype=torch.bfloat16))
    assert apply(faces, by_a_network).dtype == torch.float32
