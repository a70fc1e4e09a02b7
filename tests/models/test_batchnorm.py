"""Split and frozen BatchNorm, and ghost batches against BatchNorm on each group alone."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from facenet_pytorch.models.inception_resnet_v1 import BasicConv2d
from torch import Tensor, nn

from sparface.models.batchnorm import (
    SplitBatchNorm,
    frozen_statistics,
    join_batchnorm,
    parts,
    plain_state,
    split_batchnorm,
)
from sparface.models.ghost import GhostBatchNorm, statistics
from sparface.models.sae import SAE


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(4),
    )


def ghost_batchnorm(module: nn.Module, groups: int) -> nn.Module:
    return join_batchnorm(module, partial(GhostBatchNorm, groups=groups))


def run(norms: nn.Module, x: Tensor) -> Tensor:
    with parts(norms, len(x) // 2):
        return norms(x)  # type: ignore[no-any-return]


def test_each_half_has_its_own_statistics() -> None:
    plain = network()
    one, other = copy.deepcopy(plain), copy.deepcopy(plain)
    split = split_batchnorm(copy.deepcopy(plain))
    real, sparring = torch.randn(6, 3, 8, 8), torch.randn(6, 3, 8, 8) * 3 + 1
    made = run(split, torch.cat([real, sparring]))
    torch.testing.assert_close(made, torch.cat([one(real), other(sparring)]))
    for index in (1, 5):
        norm = split[index]  # type: ignore[index]
        assert isinstance(norm, SplitBatchNorm)
        torch.testing.assert_close(norm.main.running_var, one[index].running_var)
        torch.testing.assert_close(norm.auxiliary.running_mean, other[index].running_mean)


def test_evaluation_and_single_parts_use_the_main_statistics() -> None:
    split = split_batchnorm(network())
    run(split, torch.randn(8, 3, 8, 8))
    untouched = split[1].auxiliary.running_mean.clone()  # type: ignore[index]
    split(torch.randn(4, 3, 8, 8))
    assert torch.equal(split[1].auxiliary.running_mean, untouched)  # type: ignore[index]
    plain = network()
    plain.load_state_dict(plain_state(split.state_dict()))
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(split.eval()(x), plain.eval()(x))
    assert torch.equal(run(split, x), plain(x))


def test_plain_networks_keep_their_state() -> None:
    state = network().state_dict()
    assert plain_state(state).keys() == state.keys()


def test_frozen_statistics_change_no_buffer_and_no_output() -> None:
    x = torch.randn(8, 3, 16, 16)
    for module in (network(), split_batchnorm(network()), SAE(width=4, blocks=1)):
        module(x)  # past the start
        before = {k: v.clone() for k, v in module.state_dict().items()}
        with frozen_statistics(module):
            frozen = module(x)
        assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
        module(x)
        assert any(not torch.equal(v, before[k]) for k, v in module.state_dict().items())
        if not isinstance(module, SAE):  # the SAE's spectral norm moves between the two forwards
            module.load_state_dict(before)
            assert torch.equal(frozen, module(x))


def test_frozen_statistics_end_with_an_exception() -> None:
    module = SAE(width=4, blocks=1)
    try:
        with frozen_statistics(module):
            raise KeyError
    except KeyError:
        pass
    assert all(m.training for m in module.modules())
    assert all(m.track_running_stats for m in module.modules() if isinstance(m, nn.BatchNorm2d))


def test_norms_take_over_the_relus_of_facenets_blocks() -> None:
    block = ghost_batchnorm(BasicConv2d(3, 4, kernel_size=1, stride=1), 2)
    assert isinstance(block.bn, GhostBatchNorm) and isinstance(block.bn.act, nn.ReLU)
    assert isinstance(block.relu, nn.Identity)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 5), (12, 5, 4, 3)])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_ghost_batchnorm_is_batchnorm_on_each_group(
    groups: int, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Output, gradients and running statistics, those as if each group's were tracked and averaged."""
    torch.manual_seed(0)
    kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    plain = kind(5)
    nn.init.uniform_(plain.weight)
    nn.init.normal_(plain.bias)
    ghost = ghost_batchnorm(copy.deepcopy(plain), groups)
    assert isinstance(ghost, GhostBatchNorm) and ghost.state_dict().keys() == plain.state_dict().keys()
    x, upstream = (torch.randn(shape).add(3).to(dtype) for _ in range(2))
    found = results(ghost, [x], [upstream])
    alone = [copy.deepcopy(plain).double() for _ in range(groups)]
    each = [
        results(norm, [part.double()], [g.double()])
        for norm, part, g in zip(alone, x.chunk(groups), upstream.chunk(groups), strict=True)
    ]
    rtol, atol = (0.02, 0.02) if dtype == torch.bfloat16 else (1e-4, 1e-5)
    for name, value in found.items():
        parts = [one[name] for one in each]
        whole = torch.cat(parts) if name in ("output", "d_x") else torch.stack(parts).sum(0)
        torch.testing.assert_close(value.double(), whole, rtol=rtol, atol=atol)
    for name in ("running_mean", "running_var"):
        expected = torch.stack([getattr(norm, name) for norm in alone]).mean(0)
        torch.testing.assert_close(getattr(ghost, name).double(), expected, rtol=rtol, atol=atol)
    assert int(ghost.num_batches_tracked or 0) == 1
    assert torch.equal(ghost.eval()(x.float()), load_plain(plain, ghost)(x.float()))


def results(norm: nn.Module, xs: list[Tensor], upstream: list[Tensor]) -> dict[str, Tensor]:
    x = torch.cat(xs).requires_grad_()
    output = norm(x)
    output.backward(torch.cat(upstream))
    assert x.grad is not None
    gradients = {name: p.grad for name, p in norm.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "d_x": x.grad, **gradients}


def load_plain(plain: nn.Module, ghost: nn.Module) -> nn.Module:
    plain.load_state_dict(ghost.state_dict())
    return plain.eval()


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("real", [8, 4])
def test_groups_hold_one_kind_of_faces(real: int, split: bool) -> None:
    """A group of real faces and one of sparring faces are normalised apart, whatever their numbers."""
    torch.manual_seed(0)
    x = torch.randn(16, 3, 9, 9)
    plain = network()
    ghost = ghost_batchnorm(split_batchnorm(copy.deepcopy(plain)) if split else copy.deepcopy(plain), 2)
    with parts(ghost, real):
        made = ghost(x)
    pieces = [*x[:real].chunk(2), *x[real:].chunk(2)]
    torch.testing.assert_close(made, torch.cat([copy.deepcopy(plain)(piece) for piece in pieces]))


def test_processes_with_half_of_the_groups_track_the_statistics_of_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 16, 3, 9, 9)
    plain = network()
    whole = ghost_batchnorm(copy.deepcopy(plain), 4)
    halves = [ghost_batchnorm(copy.deepcopy(plain), 2) for _ in range(2)]
    for batch in x:
        together = torch.cat([half(part) for half, part in zip(halves, batch.chunk(2), strict=True)])
        torch.testing.assert_close(whole(batch), together)
    met = zip(*map(statistics, halves), strict=True)
    for expected, both in zip(statistics(whole), met, strict=True):
        torch.testing.assert_close(torch.stack(both).mean(0), expected)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 6 cannot be divided into 4 groups"):
        ghost_batchnorm(network(), 4)(torch.randn(6, 3, 8, 8))
