from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparface.kernels.synthesize import synthesize
from sparface.models.sae import SAE, GeneratorConfig, build_generator


def test_layers_are_those_of_the_design() -> None:
    convolutions = [
        (type(m).__name__, m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0])
        for m in SAE().modules()
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)
    ]
    names = [(n.replace("Parametrized", ""), *rest) for n, *rest in convolutions]
    encoder = [("Conv2d", 3, 16, 9, 1), ("Conv2d", 16, 32, 3, 2), ("Conv2d", 32, 64, 3, 2)]
    trunk = [("Conv2d", 64, 64, 3, 1)] * 9
    up = [("ConvTranspose2d", 64, 32, 3, 2), ("ConvTranspose2d", 32, 16, 3, 2)]
    assert names == [*encoder, *trunk, *up, ("Conv2d", 16, 3, 3, 1), *up, ("Conv2d", 16, 1, 3, 1)]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in SAE().modules()) == 6 + 2 * 2


def test_parameter_count_as_documented() -> None:
    encoder = (81 * 3 * 16 + 16) + (9 * 16 * 32 + 32) + (9 * 32 * 64 + 64)
    trunk = 3 * (9 * 64 * 64 + 64) + 6 * (9 * 64 * 64 + 2 * 64)
    decoders = 2 * (9 * 64 * 32 + 2 * 32 + 9 * 32 * 16 + 2 * 16) + (9 * 16 * 4 + 4)
    assert sum(p.numel() for p in SAE().parameters()) == encoder + trunk + decoders
    assert f"{encoder + trunk + decoders:,}" in (SAE.__doc__ or "")


@pytest.mark.parametrize("size", [(128, 128), (121, 121), (112, 112), (97, 130), (5, 7)])
def test_any_size(size: tuple[int, int]) -> None:
    perturbation, mask = SAE(width=4, blocks=1)(torch.rand(2, 3, *size))
    assert perturbation.shape == (2, 3, *size) and mask.shape == (2, 1, *size)
    assert perturbation.abs().max() <= 1
    assert mask.min() >= 0 and mask.max() <= 1


def test_full_size_at_121() -> None:
    perturbation, mask = SAE()(torch.rand(2, 3, 121, 121))
    assert perturbation.shape[-2:] == mask.shape[-2:] == (121, 121)


def test_width_blocks_and_noise_come_from_the_config() -> None:
    sae = build_generator(GeneratorConfig(width=8, blocks=2, noise=0.5))
    assert len(sae.blocks) == 2 and sae.noise_shape == (32, 1, 1)
    x, noise = torch.rand(2, 3, 30, 30), torch.randn(2, *sae.noise_shape)
    sae.eval()
    assert not torch.equal(sae(x)[0], sae(x, noise)[0])
    assert torch.equal(sae(x)[0], sae(x, torch.zeros_like(noise))[0])


def spectral_norms(sae: SAE) -> list[float]:
    return [float(torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2)) for conv in sae.spectral]


def test_spectral_norm_holds_and_is_frozen_in_evaluation() -> None:
    sae = SAE(width=4, blocks=1)
    for conv in sae.spectral:
        conv.parametrizations.weight.original.data.mul_(50)
    for _ in range(30):
        sae(torch.rand(2, 3, 16, 16))
    sae.eval()
    before = {k: v.clone() for k, v in sae.state_dict().items()}
    first, second = (sae(torch.ones(2, 3, 16, 16) / 2)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(v, before[k]) for k, v in sae.state_dict().items())
    assert spectral_norms(sae) == pytest.approx([1.0] * 3, abs=0.02)


def test_training_forward_is_a_function_of_the_state() -> None:
    sae, x = SAE(width=4, blocks=1), torch.rand(2, 3, 16, 16)
    state = {k: v.clone() for k, v in sae.state_dict().items()}
    first = sae(x)[0]
    assert any(not torch.equal(v, state[k]) for k, v in sae.state_dict().items() if k.endswith("_u"))
    sae.load_state_dict(state)
    assert torch.equal(sae(x)[0], first)


def test_spectral_norm_keeps_full_precision_under_autocast() -> None:
    sae, x = SAE(width=4, blocks=1), torch.rand(2, 3, 16, 16)
    state = {k: v.clone() for k, v in sae.state_dict().items()}
    sae(x)
    exact = [conv.parametrizations.weight[0]._u.clone() for conv in sae.spectral]
    sae.load_state_dict(state)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        perturbation, _ = sae(x)
        perturbation.float().sum().backward()
    assert all(
        torch.equal(u, c.parametrizations.weight[0]._u) for u, c in zip(exact, sae.spectral, strict=True)
    )
    assert all(p.grad is not None for n, p in sae.named_parameters() if not n.startswith("mask"))


def test_noise_is_not_averaged_away() -> None:
    """One number a channel moves a face's perturbation as a whole; white noise of the same σ hardly does."""
    torch.manual_seed(0)
    sae, x = SAE(noise=1.0), torch.rand(1, 3, 64, 64).expand(8, -1, -1, -1)
    sae.encode(x)  # spectral norm needs a look at its weights
    sae.eval()

    def spread(*size: int) -> float:
        perturbation, _ = sae(x, torch.randn(8, 64, *size))
        return float(F.avg_pool2d(perturbation, 32).std(0).mean())

    with torch.no_grad():
        assert spread(1, 1) > 3 * spread(16, 16)


def test_perturbation_starts_where_it_can_grow_and_shrink() -> None:
    """Inside the bound, and where tanh still has a slope."""
    torch.manual_seed(0)
    perturbation, _ = SAE()(torch.rand(4, 3, 64, 64))
    assert 0.05 < perturbation.abs().mean() < 0.7
    assert (perturbation.abs() < 0.9).double().mean() > 0.95


def test_synthesize_by_formula() -> None:
    x, perturbation = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4) * 2 - 1
    mask, epsilon = torch.rand(2, 1, 4, 4), torch.tensor([0.1, 0.4]).view(2, 1, 1, 1)

    def formula(i: int, c: int, y: int, z: int) -> float:
        delta = (0.1, 0.4)[i] * float(perturbation[i, c, y, z])
        return min(max(float(x[i, c, y, z]) + delta * float(mask[i, 0, y, z]), 0.0), 1.0)

    expected: Tensor = torch.tensor(
        [[[[formula(i, c, y, z) for z in range(4)] for y in range(4)] for c in range(3)] for i in range(2)]
    )
    torch.testing.assert_close(synthesize(x, perturbation, mask, epsilon), expected)
    torch.testing.assert_close(synthesize(x, perturbation, mask, 0.1)[:1], expected[:1])
    assert (expected[0] - x[0]).abs().max() <= 0.1 + 1e-6


def test_every_pixel_of_the_perturbation_has_a_gradient() -> None:
    """Also at its largest: nothing is clamped but the face itself."""
    x, raw = torch.full((1, 3, 8, 8), 0.5), (torch.randn(1, 3, 8, 8) * 2).requires_grad_()
    synthesize(x, torch.tanh(raw), torch.ones(1, 1, 8, 8), 0.1).sum().backward()
    assert raw.grad is not None and (raw.grad > 0).all()
