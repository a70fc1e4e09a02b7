"""The simple rivals of a purifier against other libraries and a solution in closed form."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from sparface.faces import drawn_faces
from sparface.models.rivals import Blur, Jpeg, TotalVariation


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    faces = np.stack([face.image for face in drawn_faces(2, 1, size=32, seed=0)])
    return torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 255


def test_jpeg_is_what_another_library_reads(x: torch.Tensor) -> None:
    found = Jpeg(75)(x)
    assert 0.002 < (found - x).abs().mean() < 0.05
    file = io.BytesIO()
    Image.fromarray((x[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(
        file, "JPEG", quality=75, subsampling=0
    )
    theirs = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    assert (found[0] - theirs).abs().mean() < (found[0] - x[0]).abs().mean()
    moved = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad((Jpeg(10)(moved) * x).sum(), moved)
    assert torch.equal(slope, x), "as if it were the identity"


def test_blur_is_that_of_scipy(x: torch.Tensor) -> None:
    expected = gaussian_filter(x.double().numpy(), (0, 0, 1.0, 1.0), mode="mirror", truncate=3.0)
    assert np.allclose(Blur(1.0)(x).numpy(), expected, atol=1e-5)
    assert Blur(50.0)(x).shape == x.shape, "a wide one is cut to the face"


def test_total_variation_moves_the_sides_of_a_step_together() -> None:
    """With w columns at each side, ½ ‖u − x‖² + weight · |jump| of each row moves each by weight / w."""
    step = torch.cat([torch.full((1, 3, 16, 8), 0.2), torch.full((1, 3, 16, 8), 0.8)], 3)
    found = TotalVariation(0.16)(step)
    expected = torch.cat([torch.full((1, 3, 16, 8), 0.22), torch.full((1, 3, 16, 8), 0.78)], 3)
    assert torch.allclose(found, expected, atol=2e-3)
    flat = TotalVariation(10.0)(step)
    assert torch.allclose(flat, torch.full_like(flat, 0.5), atol=0.05), "much of it leaves nothing"


def test_total_variation_has_a_gradient(x: torch.Tensor) -> None:
    moved = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(TotalVariation(0.1)(moved)[:, :, 10, 10].sum(), moved)
    assert slope.isfinite().all() and (slope != 0).flatten(1).any(1).all()
