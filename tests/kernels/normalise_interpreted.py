"""`normalise` under Triton's interpreter, against torch in float64; run by test_under_interpreter.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparface.kernels import dispatch, normalise_triton
from sparface.kernels.common import Figures
from sparface.kernels.normalise import gradient_sums, input_gradient, moments, normalise

few = settings(max_examples=12, deadline=None, derandomize=True)
EPS = 1e-3


def close(got: Tensor, expected: Tensor, unit: Tensor) -> None:
    """Within float32's rounding over thousands of values of size `unit`, and that of the result's type."""
    scale = max(1.0, float(unit.abs().max()), float(expected.abs().max()))
    bound = (2e-5 + torch.finfo(got.dtype).eps) * scale
    assert got.isfinite().all()
    torch.testing.assert_close(got.double(), expected, atol=bound, rtol=torch.finfo(got.dtype).eps)


def reference(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    """Each part through a BatchNorm that trains."""
    normed = torch.cat(
        [
            F.batch_norm(part, None, None, w, b, True, 0.0, EPS)
            for part, w, b in zip(x.chunk(len(weight)), weight, bias, strict=True)
        ]
    )
    return F.relu(normed) if relu else normed


@few
@given(
    parts=st.integers(1, 3),
    batch=st.integers(2, 3),
    channels=st.sampled_from([1, 3, 80, 130, 257]),
    size=st.sampled_from([(), (1, 1), (5, 7), (33, 31)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    layout=st.sampled_from(["channels_last", "contiguous", "cut"]),
    relu=st.booleans(),
    programs=st.sampled_from([normalise_triton.PROGRAMS, 3]),
    seed=st.integers(0, 99),
)
def test_batchnorm_forward_and_backward(
    parts: int,
    batch: int,
    channels: int,
    size: tuple[int, ...],
    dtype: torch.dtype,
    layout: str,
    relu: bool,
    programs: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x = (torch.randn(parts * batch, channels, *size) * 2 + 3).to(dtype)
    upstream = torch.randn(x.shape).to(dtype)
    if layout == "cut":
        x, upstream = (torch.cat([t, t], 1)[:, :channels] for t in (x, upstream))
    elif layout == "channels_last" and size:
        x, upstream = (t.contiguous(memory_format=torch.channels_last) for t in (x, upstream))
    weight, bias = torch.rand(parts, channels) + 0.5, torch.randn(parts, channels)
    exact, *parameters = (t.double().requires_grad_() for t in (x, weight, bias))
    expected = reference(exact, *parameters, relu=relu)
    # no gradient where rounding decides whether ReLU passes it
    upstream[reference(exact, *parameters, relu=False).detach().abs() < 1e-4] = 0
    expected.backward(upstream.double())

    columns = exact.detach().view(parts, batch, channels, -1)
    mean, variance = columns.mean((1, 3)).float(), columns.var((1, 3), correction=0).float()
    by, count = Figures(mean, variance, weight, bias, EPS), columns[0, :, 0].numel()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normalise_triton, "PROGRAMS", programs)
        dispatch.use("triton")
        got = normalise(x, by, relu)
        own = moments(x, parts)
        sums = gradient_sums(upstream, x, by, relu)
        d_x = input_gradient(upstream, x, by, sums / count, relu)
    assert got.dtype == d_x.dtype == dtype and sums.dtype == torch.float32
    # values are off by rounding times the largest before the subtraction of the mean
    unit = exact.detach().abs().max() * (variance.min() + EPS).rsqrt()
    close(got, expected.detach(), unit)
    close(own[0], columns.mean((1, 3)), exact.detach().abs().max())
    close(own[1], columns.var((1, 3), correction=0), exact.detach().abs().max() ** 2)
    assert exact.grad is not None
    close(d_x, exact.grad, unit * unit)
    of_weight, of_bias = (p.grad for p in parameters)
    assert of_weight is not None and of_bias is not None
    close(sums[:, 0], of_weight, unit * upstream.abs().sum() / channels)
    close(sums[:, 1], of_bias, upstream.abs().sum() / channels)


def test_what_is_not_a_number_stays() -> None:
    dispatch.use("triton")
    by = Figures(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1, 2), EPS)
    assert normalise(torch.tensor([[float("nan"), -1.0]]), by, relu=True).isnan().tolist() == [[True, False]]
