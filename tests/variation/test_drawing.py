"""What is drawn: ranges, shares, independence; the same for any split, on any device, without waiting."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sparface.variation import WIDE, Family, Variation, apply, draw, draw_occluders, occlude, vary
from sparface.variation.strong import BOUNDS

COUNT = 4000
POSITIONS = torch.arange(COUNT) + 10**6


def noise(count: int = 16, size: int = 24) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def drawn() -> Variation:
    return draw(7, POSITIONS, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("rotation", math.radians(15)),
        *(("scale", 0.18), ("shift", 0.08), ("perspective", 0.15), ("warp", 0.04)),
        *(("gamma", 0.3), ("contrast", 0.4), ("light", 0.4), ("saturation", 0.4), ("tint", 0.1)),
    ],
)
def test_bounded_kinds_are_uniform_within_their_bounds(drawn: Variation, name: str, largest: float) -> None:
    values = getattr(drawn, name).reshape(COUNT, -1) / largest
    assert values.abs().max() <= 1
    assert (values.amax(0) > 0.99).all() and (values.amin(0) < -0.99).all()
    assert (values.mean(0).abs() < 0.04).all()  # 4 standard errors
    torch.testing.assert_close(values.var(0), torch.full_like(values[0], 1 / 3), atol=0.02, rtol=0)


def test_shares_and_ranges_of_the_others(drawn: Variation) -> None:
    assert drawn.mirror is not None and drawn.grey is not None and drawn.resolution is not None
    assert drawn.mirror.unique().tolist() == [-1, 1]
    assert abs(float(drawn.mirror.mean())) < 0.06
    assert drawn.grey.unique().tolist() == [0, 1]
    assert float(drawn.grey.mean()) == pytest.approx(0.25, abs=0.03)
    coarse = drawn.resolution[drawn.resolution < 1]
    assert len(coarse) / COUNT == pytest.approx(0.25, abs=0.03)
    assert 0.25 <= coarse.min() < 0.26 and 0.79 < coarse.max() <= 0.8
    patch = drawn.patch
    assert patch is not None
    assert float(patch.opacity.mean()) == pytest.approx(0.4, abs=0.03)
    assert 0.15 <= patch.size.min() < 0.16 and 0.44 < patch.size.max() <= 0.45
    assert patch.centre.abs().max() > 0.98 and not patch.angle.any()
    assert patch.texture.min() < 0.01 and patch.texture.max() > 0.99


def test_the_same_faces_are_mirrored_as_alone(drawn: Variation) -> None:
    bar = torch.zeros(COUNT, 3, 1, 2)
    bar[..., 1] = 1
    mirrored = vary(bar, "mirror", 7, POSITIONS)[:, 0, 0, 0] == 1
    torch.testing.assert_close(drawn.mirror, torch.where(mirrored, -1.0, 1.0).double())


def columns(values: Any) -> list[Tensor]:
    """All tensors of a dataclass as [b, …]."""
    found = []
    for f in fields(values):
        value = getattr(values, f.name)
        found += [value.reshape(len(value), -1)] if isinstance(value, Tensor) else columns(value)
    return found


def test_no_draw_follows_from_another(drawn: Variation) -> None:
    everything = torch.cat(columns(drawn), 1)
    everything = everything[:, everything.std(0) > 0]
    assert everything.shape[1] == 53 + 3 + 6
    correlation = torch.corrcoef(everything.T).fill_diagonal_(0)
    assert correlation.abs().max() < 0.08  # 5 standard errors; 1,891 pairs


@pytest.mark.parametrize("kind", ["strong", "occluders"])
def test_any_part_of_a_batch_is_changed_as_in_the_whole(kind: str) -> None:
    def change(faces: Tensor, positions: Tensor, seed: int = 5) -> Tensor:
        if kind == "strong":
            return vary(faces, "strong", seed, positions)
        return occlude(faces, draw_occluders(faces, seed, positions))

    faces, positions = noise(), torch.arange(100, 116)
    whole = change(faces, positions)
    assert whole.shape == faces.shape and whole.min() >= 0 and whole.max() <= 1
    for part in (slice(4, 9), slice(0, 1), slice(8, 16)):
        assert torch.equal(change(faces[part], positions[part]), whole[part])
    assert ((whole - faces).abs().mean((1, 2, 3)) > 0).all()
    assert not torch.equal(change(faces, positions, seed=6), whole)


def test_another_stream_draws_anew() -> None:
    positions = torch.arange(8)
    assert not torch.equal(draw(1, positions).warp, draw(1, positions, stream=9).warp)
    one, other = (draw_occluders(noise(8), 1, positions, stream=s) for s in (6, 7))
    assert not torch.equal(one.centre, other.centre) and not torch.equal(one.texture, other.texture)


def test_strength_scales_magnitudes_and_no_probabilities() -> None:
    whole, half = draw(1, POSITIONS), draw(1, POSITIONS, 0.5)
    for name in (*BOUNDS, "grey"):
        torch.testing.assert_close(getattr(half, name), getattr(whole, name) / 2)
    torch.testing.assert_close(half.mirror, whole.mirror)
    assert whole.resolution is not None
    torch.testing.assert_close(half.resolution, whole.resolution**0.5)
    torch.testing.assert_close(half.patch.size, whole.patch.size / 2)
    assert torch.equal(half.patch.opacity, whole.patch.opacity)


def test_the_ends_of_the_strength() -> None:
    faces, positions = noise().clamp(min=0.01), torch.arange(16)
    none = draw(1, positions, 0.0)
    mirrored = torch.where(none.mirror.view(-1, 1, 1, 1) < 0, faces.flip(3), faces)
    torch.testing.assert_close(apply(faces, none), mirrored, atol=1e-5, rtol=0)
    twice = draw(1, POSITIONS, 2.0)
    assert (1 - twice.perspective.abs().sum(1)).min() > 0.3  # no point of the face is at infinity
    changed = vary(faces, "strong", 1, positions, 2.0)
    assert changed.isfinite().all() and changed.min() >= 0 and changed.max() <= 1


def test_random_occluders_are_in_their_family() -> None:
    positions = POSITIONS[:1500]
    faces = torch.full((len(positions), 3, 4, 4), 0.5)
    found = draw_occluders(faces, 1, positions)
    for values, (low, high) in (
        *((found.size[:, 0], (0.2, 0.9)), (found.size[:, 1], (0.12, 0.45))),
        *((found.centre, (-0.9, 0.9)), (found.angle, (-math.radians(20), math.radians(20)))),
    ):
        assert low <= values.min() < low + 0.02 and high - 0.02 < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.05)
    assert (found.opacity == 1).all()
    bar = Family(width=(0.7, 0.7), height=(0.2, 0.2), reach=0.0, tilt=0.0, share=0.25)
    some = draw_occluders(faces, 1, positions, bar)
    assert some.opacity.mean() == pytest.approx(0.25, abs=0.04)
    torch.testing.assert_close(some.size, torch.tensor([[0.7, 0.2]]).expand_as(some.size))
    assert not some.centre.any() and not some.angle.any()


def test_textures_are_of_three_kinds() -> None:
    """One colour, noise, and the face itself turned by 180°, in the stated shares."""
    positions = POSITIONS[:1500]
    faces = noise(1, 8).expand(len(positions), 3, 8, 8)
    textures = draw_occluders(faces, 1, positions).texture
    assert textures.min() >= 0 and textures.max() <= 1
    plain = textures.std((2, 3)).amax(1) < 1e-6
    turned = (textures == torch.rot90(faces, 2, (2, 3))).flatten(1).all(1)
    shares = [float(kind.double().mean()) for kind in (plain, ~plain & ~turned, turned)]
    assert shares == pytest.approx([0.4, 0.3, 0.3], abs=0.04)
    assert textures[plain].mean((1, 2, 3)).median() < 0.35  # mostly dark
    grey = (textures - textures[:, :1]).abs().amax((1, 2, 3)) < 1e-6
    assert float(grey[~turned].double().mean()) == pytest.approx(0.5, abs=0.05)


class Watched(TorchDispatchMode):
    """Refuses operations that make the process wait for the device, or copy to it from the host."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(name in str(func) for name in self.REFUSED), func
        return func(*args, **kwargs or {})


def test_nothing_waits_for_the_device() -> None:
    faces, positions = noise(4), torch.arange(4)
    with Watched():
        changed = vary(faces, "strong", 1, positions)
        occlude(changed, draw_occluders(changed, 1, positions, replace(WIDE, share=0.5)))
    with pytest.raises(AssertionError), Watched():
        bool(faces.sum() > 0)
