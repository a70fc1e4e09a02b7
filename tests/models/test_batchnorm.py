"""Split and frozen BatchNorm; the synced one is in tests/recipes/test_two_processes.py."""

from __future__ import annotations

import copy

import torch
from facenet_pytorch.models.inception_resnet_v1 import BasicConv2d
from torch import Tensor, nn

from sparface.models.batchnorm import (
    SplitBatchNorm,
    SyncedBatchNorm,
    frozen_statistics,
    parts,
    plain_state,
    split_batchnorm,
    sync_batchnorm,
)
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


def test_synced_norms_take_over_the_relus_of_facenets_blocks() -> None:
    block = sync_batchnorm(BasicConv2d(3, 4, kernel_size=1, stride=1))
    assert isinstance(block.bn, SyncedBatchNorm) and isinstance(block.bn.act, nn.ReLU)
    assert isinstance(block.relu, nn.Identity)
