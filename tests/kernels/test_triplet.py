"""The torch triplet loss against loops in float64, whatever its table's size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparface.kernels import triplet as kernel
from sparface.kernels.common import Mining
from sparface.kernels.triplet import Others, triplet


def unit(rows: int, size: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, size, dtype=torch.float64, generator=generator), dim=1)


def distance(a: Tensor, b: Tensor) -> float:
    return float(sum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)))


def triplet_by_loops(
    e: Tensor, labels: list[int], margin: float, mining: str, against: Tensor | None
) -> float:
    others = e if against is None else against
    losses = []
    for i in range(len(e)):
        d = [distance(e[i], o) for o in others]
        positives = [
            d[j] for j in range(len(d)) if labels[j] == labels[i] and (against is not None or j != i)
        ]
        negatives = [d[j] for j in range(len(d)) if labels[j] != labels[i]]
        if not positives or not negatives:
            continue
        if mining == "batch_hard":
            losses.append(max(0.0, max(positives) - min(negatives) + margin))
            continue
        for p in positives:
            further = [n for n in negatives if n > p]
            losses.append(max(0.0, p - (min(further) if further else max(negatives)) + margin))
    return sum(losses) / len(losses) if losses else 0.0


MINING = st.sampled_from(["batch_hard", "semi_hard"])


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=10),
    seed=st.integers(0, 1000),
    margin=st.sampled_from([0.0, 0.2, 1.5]),
    mining=MINING,
    other=st.booleans(),
)
def test_triplet_is_what_loops_find(
    labels: list[int], seed: int, margin: float, mining: Mining, other: bool
) -> None:
    e, known = unit(len(labels), seed=seed), torch.tensor(labels)
    against = unit(len(labels), seed=seed + 5000) if other else None
    loss = triplet(e, known, margin, mining, None if against is None else Others(against, known))
    assert float(loss) == pytest.approx(triplet_by_loops(e, labels, margin, mining, against), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=12).filter(lambda given: len(given) != 11),
    seed=st.integers(0, 1000),
    mining=MINING,
    other=st.booleans(),
    shuffled=st.booleans(),
)
def test_the_mean_over_parts_is_the_loss_of_all_anchors(
    labels: list[int], seed: int, mining: Mining, other: bool, shuffled: bool
) -> None:
    """As on several processes: each part of the anchors, wherever its faces are among the others."""
    count, known = len(labels), torch.tensor(labels)
    parts = next(n for n in (5, 3, 2, 7, 1) if count % n == 0)
    e = [unit(count, seed=seed).requires_grad_(), unit(count, seed=seed + 5000).requires_grad_()][: 1 + other]
    whole = triplet(e[0], known, 0.4, mining, Others(e[1], known) if other else None)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    order = order if shuffled else torch.arange(count)
    losses = [
        triplet(
            e[0][rows], known[rows], 0.4, mining,
            Others(e[-1][order], known[order], None if other else order.argsort()[rows]),
        )
        for rows in torch.arange(count).chunk(parts)
    ]  # fmt: skip
    mean = torch.stack(losses).mean()
    torch.testing.assert_close(mean, whole, atol=1e-12, rtol=0)
    for mine, true in zip(*(torch.autograd.grad(loss, e) for loss in (mean, whole)), strict=True):
        torch.testing.assert_close(mine, true, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mining", ["batch_hard", "semi_hard"])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 0, 0], [0, 1, 2], [0]])
def test_triplet_gradient(mining: str, labels: list[int]) -> None:
    """Finite differences; zero and finite where there are no positives or no negatives."""
    e = unit(len(labels)).requires_grad_()
    loss = triplet(e, torch.tensor(labels), 0.5, mining)  # type: ignore[arg-type]
    loss.backward()
    assert e.grad is not None and e.grad.isfinite().all()
    if len(set(labels)) in (1, len(labels)):
        assert loss == 0 and (e.grad == 0).all()
    else:
        assert torch.autograd.gradcheck(
            lambda x: triplet(x, torch.tensor(labels), 0.5, mining),  # type: ignore[arg-type]
            e.detach().requires_grad_(),
        )


@pytest.mark.parametrize("mining", ["batch_hard", "semi_hard"])
def test_triplet_of_collapsed_embeddings_is_the_margin(mining: str) -> None:
    e = unit(1).expand(8, -1)
    loss = triplet(e, torch.arange(8) // 2, 0.2, mining)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(0.2)


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=150),
    seed=st.integers(0, 1000),
    mining=MINING,
    other=st.booleans(),
    table=st.sampled_from([1, 64, 1000]),
)
def test_loss_and_gradient_do_not_depend_on_the_tables_size(
    labels: list[int], seed: int, mining: Mining, other: bool, table: int
) -> None:
    results = []
    for size in (1 << 20, table):
        e = unit(len(labels), seed=seed).requires_grad_()
        against = unit(len(labels), seed=seed + 5000).requires_grad_() if other else None
        known = torch.tensor(labels)
        others = None if against is None else Others(against, known)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kernel, "TABLE", size)
            patch.setattr(kernel, "TABLE_MOST", 2 * size)
            loss = triplet(e, known, 0.3, mining, others)
            (loss * 3).backward()
        results.append([loss.detach(), e.grad, *([against.grad] if against is not None else [])])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(whole, chunked, atol=1e-12, rtol=0)


def table_of(e: Tensor, labels: list[int]) -> kernel.Table:
    known = torch.tensor(labels)
    return kernel.Table(e, e, kernel.identities(known, Others(e, known, torch.arange(len(e)))))


@pytest.mark.parametrize("mining", ["batch_hard", "semi_hard"])
def test_of_equally_far_faces_the_first_is_taken(mining: str) -> None:
    """Two equal negatives (and, for batch_hard, two equal positives) of anchor 0."""
    e = torch.tensor([[1.0, 0], [0.8, 0.6], [0.8, 0.6], [0, 1], [0, 1]])
    table = table_of(e, [0, 0, 0, 1, 2])
    mine = {"batch_hard": kernel.batch_hard, "semi_hard": kernel.semi_hard}[mining]
    found = mine(table, 0)[0][0]
    of_first = found.anchor == 0
    assert found.positive[of_first].tolist() == ([1] if mining == "batch_hard" else [1, 2])
    assert found.negative[of_first].unique().tolist() == [3]


def test_the_last_of_the_furthest_negatives() -> None:
    e = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, 1]])
    table = table_of(e, [0, 0, 1, 2])
    found = kernel.semi_hard(table, 0)[0][0]
    assert found.negative[0] == 3


def test_half_precision_embeddings_are_computed_in_float32() -> None:
    e = unit(12).to(torch.bfloat16).requires_grad_()
    loss = triplet(e, torch.arange(12) // 2)
    loss.backward()
    assert loss.dtype == torch.float32 and e.grad is not None and e.grad.dtype == torch.bfloat16
    assert float(loss) == pytest.approx(float(triplet(e.detach().double(), torch.arange(12) // 2)), abs=1e-6)
