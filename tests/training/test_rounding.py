"""Autocast's convolutions on a CPU without bf16 instructions, against torch's own in bf16."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparface.training.strategies.rounding import convolve_in_float32

CONVOLUTIONS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[object, ...]]] = {
    "3×3": (F.conv2d, (8, 6, 3, 3), (1, 1)),
    "stride, dilation, groups": (F.conv2d, (8, 3, 3, 3), (2, 1, 2, 2)),
    "transposed": (F.conv_transpose2d, (6, 8, 3, 3), (2, 1, 1)),
}


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_results_and_gradients_are_bf16s(name: str, biased: bool) -> None:
    convolve_in_float32()
    convolution, shape, settings = CONVOLUTIONS[name]
    torch.manual_seed(0)
    tensors = [torch.randn(3, 6, 9, 11), torch.randn(shape) / 7, torch.randn(8) if biased else None]
    mine, theirs = ([None if t is None else t.clone().requires_grad_() for t in tensors] for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = convolution(*mine, *settings)
    expected = convolution(*(None if t is None else t.to(torch.bfloat16) for t in theirs), *settings)
    assert found.dtype == torch.bfloat16
    upstream = torch.randn(found.shape).to(torch.bfloat16)
    found.backward(upstream)
    expected.backward(upstream)
    close(found, expected)
    for a, b in zip(mine, theirs, strict=True):
        if a is not None and b is not None:
            assert a.grad is not None and b.grad is not None and a.grad.dtype == torch.float32
            close(a.grad, b.grad)


def close(found: Tensor, expected: Tensor) -> None:
    """Within two roundings to bf16 of the largest: torch adds some of its sums in bf16."""
    bound = 2 * torch.finfo(torch.bfloat16).eps * float(expected.detach().abs().max())
    torch.testing.assert_close(found.float(), expected.float(), atol=bound, rtol=0)
