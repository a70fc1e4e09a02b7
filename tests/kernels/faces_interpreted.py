"""Kernels over faces under Triton's interpreter, against float64; run by test_under_interpreter.py."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparface.kernels import dispatch, synthesize, whiten

dispatch.use("triton")
few = settings(max_examples=8, deadline=None, derandomize=True)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
layouts = st.sampled_from(["contiguous", "channels_last", "flipped", "cut"])
shapes = st.tuples(st.integers(1, 3), st.sampled_from([(1, 1), (5, 7), (33, 31), (50, 47), (3, 700)]))


def arranged(x: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "flipped":
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "cut":
        wide = torch.full((len(x), x.shape[1] + 1, x.shape[2] + 2, x.shape[3] + 3), 9.0, dtype=torch.float32)
        wide = wide.to(x.dtype)
        wide[:, 1:, 1:-1, 2:-1] = x
        return wide[:, 1:, 1:-1, 2:-1]
    return x


def close(got: Tensor, expected: Tensor) -> None:
    """Within float32's rounding over thousands of values, and the rounding of the result's type."""
    scale = max(1.0, float(expected.abs().max()))
    bound = (2e-5 + torch.finfo(got.dtype).eps) * scale
    assert got.isfinite().all()
    torch.testing.assert_close(got.double(), expected.double(), atol=bound, rtol=torch.finfo(got.dtype).eps)


def off_the_kinks(x: Tensor, delta: Tensor, mask: Tensor, epsilon: float) -> Tensor:
    """The mask, 0 where rounding decides whether the clip passes a gradient."""
    made = x.double() + epsilon * delta.detach().double() * mask.double()
    near = torch.minimum(made.abs(), (made - 1).abs()) < 1e-5
    return mask * ~near.any(1, keepdim=True)


@few
@given(
    shape=shapes,
    dtype=st.one_of(dtypes, st.just(torch.uint8)),
    out=dtypes,
    layout=layouts,
    seed=st.integers(0, 99),
)
def test_whiten(
    shape: tuple[int, tuple[int, int]], dtype: torch.dtype, out: torch.dtype, layout: str, seed: int
) -> None:
    torch.manual_seed(seed)
    batch, size = shape
    pixels = torch.rand(batch, 3, *size)
    x = arranged((pixels * 255).to(dtype) if dtype == torch.uint8 else pixels.to(dtype), layout)
    exact = (x.double() / 255 if dtype == torch.uint8 else x.double()).requires_grad_()
    if dtype != torch.uint8:
        x = x.detach().requires_grad_()
    got, expected = whiten.whiten(x, out), whiten.reference(exact)
    assert got.dtype == out and got.is_contiguous(memory_format=torch.channels_last)
    close(got.detach(), expected.detach())
    if dtype != torch.uint8:
        weight = torch.randn_like(expected).to(out)
        got.backward(weight)
        expected.backward(weight.double())
        assert x.grad is not None and exact.grad is not None and x.grad.dtype == dtype
        close(x.grad, exact.grad)


@few
@given(
    shape=shapes, face_dtype=dtypes, dtype=dtypes, out=dtypes, layout=layouts, layout_of_mask=layouts,
    epsilon=st.sampled_from([0.0, 0.1, 0.6]), seed=st.integers(0, 99),
)  # fmt: skip
def test_synthesize(
    shape: tuple[int, tuple[int, int]],
    face_dtype: torch.dtype,
    dtype: torch.dtype,
    out: torch.dtype,
    layout: str,
    layout_of_mask: str,
    epsilon: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    batch, size = shape
    x = arranged(torch.rand(batch, 3, *size).to(face_dtype), layout)
    delta = arranged((torch.rand(batch, 3, *size) * 2 - 1).to(dtype), layout).requires_grad_()
    mask = off_the_kinks(x, delta, torch.rand(batch, 1, *size).to(dtype), epsilon)
    mask = arranged(mask, layout_of_mask).requires_grad_()
    exact_delta, exact_mask = (
        delta.detach().double().requires_grad_(),
        mask.detach().double().requires_grad_(),
    )
    got = synthesize.synthesize_whitened(x, delta, mask, epsilon, out)
    expected = synthesize.reference(x.double(), exact_delta, exact_mask, epsilon, torch.float64)
    assert got.whitened.is_contiguous(memory_format=torch.channels_last) and not got.applied.requires_grad
    for mine, true in zip(got, expected, strict=True):
        close(mine.detach(), true.detach())
    weights = [
        torch.randn_like(true).to(mine.dtype) for mine, true in zip(got[:3], expected[:3], strict=True)
    ]
    torch.autograd.backward(got[:3], weights)
    torch.autograd.backward(expected[:3], [w.double() for w in weights])
    close(delta.grad, exact_delta.grad)  # type: ignore[arg-type]
    close(mask.grad, exact_mask.grad)  # type: ignore[arg-type]


def test_constant_faces_become_zeros_with_finite_gradients() -> None:
    x = torch.full((2, 3, 40, 40), 0.3, requires_grad=True)
    y = whiten.whiten(x)
    (y * torch.rand_like(y)).sum().backward()
    assert (y == 0).all() and x.grad is not None and x.grad.isfinite().all()
    delta, mask = torch.zeros(2, 3, 40, 40, requires_grad=True), torch.ones(2, 1, 40, 40, requires_grad=True)
    made = synthesize.synthesize_whitened(x.detach(), delta, mask, 0.1, torch.float32)
    (made.whitened.square().sum() + made.norm.sum()).backward()
    assert (made.whitened == 0).all() and (made.norm == 0).all()
    assert delta.grad is not None and delta.grad.isfinite().all()
