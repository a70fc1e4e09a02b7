"""The torch references of the kernels over faces, and which implementation is used."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from sparface.errors import UserError
from sparface.kernels import dispatch
from sparface.kernels.synthesize import synthesize, synthesize_whitened
from sparface.kernels.whiten import input_dtype, whiten


def test_figures_by_formula() -> None:
    perturbation = torch.rand(2, 3, 4, 5, dtype=torch.float64) * 2 - 1
    mask = torch.rand(2, 1, 4, 5, dtype=torch.float64)
    x = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    made = synthesize_whitened(x, perturbation, mask, 0.1, torch.float64)
    for i in range(2):
        places = [(c, y, z) for c in range(3) for y in range(4) for z in range(5)]
        changes = [0.1 * float(perturbation[i, c, y, z] * mask[i, 0, y, z]) for c, y, z in places]
        assert float(made.norm[i]) == pytest.approx(math.sqrt(sum(change**2 for change in changes)))
        assert float(made.area[i]) == pytest.approx(sum(mask[i].flatten().tolist()) / 20)
        assert float(made.applied[i]) == pytest.approx(sum(map(abs, changes)) / 60)
    torch.testing.assert_close(made.whitened[:2], whiten(x))
    torch.testing.assert_close(made.whitened[2:], whiten(synthesize(x, perturbation, mask, 0.1)))


def test_nothing_has_a_finite_gradient() -> None:
    x, zero = torch.full((2, 3, 4, 4), 0.5), torch.zeros(2, 3, 4, 4, requires_grad=True)
    made = synthesize_whitened(x, zero, torch.ones(2, 1, 4, 4), 0.1, torch.float32)
    (made.norm.sum() + made.whitened.sum()).backward()
    assert zero.grad is not None and zero.grad.isfinite().all()


def test_bytes_are_whitened_as_the_faces_that_they_stand_for() -> None:
    pixels = torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)
    torch.testing.assert_close(whiten(pixels), whiten(pixels / 255))
    assert whiten(pixels, torch.bfloat16).dtype == torch.bfloat16


def test_networks_see_bf16_only_under_its_autocast() -> None:
    x = torch.rand(1, 3, 2, 2)
    assert input_dtype(x) == torch.float32
    for dtype, expected in {torch.bfloat16: torch.bfloat16, torch.float16: torch.float32}.items():
        with torch.autocast("cpu", dtype=dtype):
            assert input_dtype(x) == expected


def test_the_cpu_needs_no_triton() -> None:
    code = (
        "import sys, torch\n"
        "from sparface.kernels import dispatch, synthesize, triplet, whiten\n"
        "x = torch.rand(4, 3, 8, 8)\n"
        "whiten.whiten(x); synthesize.synthesize_whitened(x, x, x[:, :1], 0.1, x.dtype)\n"
        "triplet.triplet(x.flatten(1), torch.tensor([0, 0, 1, 1]))\n"
        "assert 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(1, 3, 2, 2)
    monkeypatch.setattr(dispatch, "_choice", "auto")
    assert not dispatch.fused(x)
    monkeypatch.setattr(dispatch, "_installed", lambda: True)
    dispatch.use("triton")
    assert dispatch.fused(x) and not dispatch.fused(x.double()) and not dispatch.fused(x[:0])
    monkeypatch.setattr(dispatch, "_installed", lambda: False)
    dispatch.use("auto")
    with pytest.raises(UserError, match=r"training.kernels: triton is not installed"):
        dispatch.use("triton")
