"""The triplet kernels under Triton's interpreter, against float64; run by test_under_interpreter.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparface.kernels import dispatch
from sparface.kernels.common import Mining
from sparface.kernels.triplet import Others, triplet

dispatch.use("triton")


def unit(rows: int, size: int, dtype: torch.dtype, strided: bool) -> Tensor:
    e = F.normalize(torch.randn(rows, size), dim=1).to(dtype)
    return (e.T.contiguous().T if strided else e).requires_grad_()


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    labels=st.one_of(
        st.lists(st.integers(0, 9), min_size=1, max_size=80),
        st.lists(st.integers(0, 2), min_size=1, max_size=40),
        st.just([7, 7, 7]),
        st.just([0, 1, 2]),
    ),
    size=st.sampled_from([1, 6, 33, 70]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    mining=st.sampled_from(["batch_hard", "semi_hard"]),
    part=st.sampled_from(["all", "some", "other"]),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_triplet(
    labels: list[int], size: int, dtype: torch.dtype, mining: Mining, part: str, strided: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    faces = [unit(len(labels), size, dtype, strided) for _ in range(1 + (part == "other"))]
    exact = [face.detach().double().requires_grad_() for face in faces]
    losses = [loss_of(e, torch.tensor(labels), mining, part) * 2 for e in (faces, exact)]
    accuracy = 1e-5 if part == "some" else 2e-6  # of the sum of some triplets over the mean number of all
    torch.testing.assert_close(losses[0].double(), losses[1], atol=accuracy, rtol=1e-6)
    for loss in losses:
        loss.backward()
    if size > 1:  # on a line, rounding decides between equally far faces
        for mine, true in zip(faces, exact, strict=True):
            assert mine.grad is not None and true.grad is not None and mine.grad.dtype == dtype
            # the gradients of anchors and others are rounded before they are added, and may cancel
            rounding = torch.finfo(dtype).eps
            most = 1e-5 + (rounding * float(true.grad.abs().max()) if part == "some" else 0)
            torch.testing.assert_close(mine.grad.double(), true.grad, atol=most, rtol=rounding)


def loss_of(e: list[Tensor], labels: Tensor, mining: Mining, part: str) -> Tensor:
    """Of all faces against each other, of some against all, or of some against other faces."""
    if part == "all":
        return triplet(e[0], labels, 0.4, mining)
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[: 1 + len(labels) // 3]
    others = Others(e[-1], labels, rows if part == "some" else None)
    return triplet(e[0][rows], labels[rows], 0.4, mining, others)


@pytest.mark.parametrize("mining", ["batch_hard", "semi_hard"])
def test_no_gradient_is_made_where_none_is_wanted(mining: Mining) -> None:
    e = unit(9, 5, torch.float32, False).detach()
    labels = torch.arange(9) // 3
    loss = triplet(e, labels, 0.2, mining)
    assert not loss.requires_grad
    torch.testing.assert_close(loss.double(), triplet(e.double(), labels, 0.2, mining), atol=1e-6, rtol=0)


def test_equally_far_faces_are_taken_as_by_torch() -> None:
    e = torch.tensor([[1.0, 0], [0.8, 0.6], [0.8, 0.6], [0, 1], [0, 1], [-1, 0], [-1, 0]])
    labels = torch.tensor([0, 0, 0, 1, 2, 3, 4])
    for mining in ("batch_hard", "semi_hard"):
        gradients = []
        for given_ in (e.clone(), e.double()):
            given_.requires_grad_()
            triplet(given_, labels, 5.0, mining).backward()  # type: ignore[arg-type]
            gradients.append(given_.grad)
        torch.testing.assert_close(gradients[0].double(), gradients[1], atol=1e-6, rtol=0)  # type: ignore[union-attr]
