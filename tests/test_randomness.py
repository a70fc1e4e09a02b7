from __future__ import annotations

import math

import torch

from sparface.randomness import normal, uniform


def test_uniform_is_uniform() -> None:
    u = uniform(3, torch.arange(4000), 64).double()
    assert u.min() >= 0 and u.max() < 1
    counts = torch.histc(u, 100, 0, 1)
    chi_square = ((counts - u.numel() / 100) ** 2 / (u.numel() / 100)).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom
    for pair in (u[:-1, 0] * u[1:, 0], u[:, 0] * u[:, 1]):  # neighbours in position and in column
        assert abs(pair.mean() - 0.25) < 5 * (7 / 144 / len(pair)) ** 0.5


def test_normal_has_normal_moments() -> None:
    z = normal(1, torch.arange(2000), (4, 5, 5)).double().flatten()
    error = 5 / math.sqrt(len(z))
    assert abs(z.mean()) < error
    assert abs(z.var() - 1) < error * 2**0.5
    assert abs((z**4).mean() - 3) < error * 96**0.5
    assert abs((z.abs() < 1).double().mean() - 0.6827) < error


def test_depends_on_position_only() -> None:
    positions = torch.randint(0, 1 << 40, (64,), generator=torch.Generator().manual_seed(0))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    whole = uniform(7, positions, 5)
    assert torch.equal(uniform(7, positions[order], 5), whole[order])
    assert torch.equal(torch.cat([uniform(7, part, 5) for part in positions.split(9)]), whole)
    assert torch.equal(uniform(7, positions, 3), whole[:, :3])
    shape = (3, 3, 3)  # an odd number of values
    assert torch.equal(normal(7, positions, shape)[5:9], normal(7, positions[5:9], shape))


def test_seeds_streams_and_positions_differ() -> None:
    positions = torch.arange(1000)
    draws = [uniform(s, positions, 8, stream) for s in (0, 1, -1, 2**63) for stream in (0, 1)]
    flat = torch.stack([d.flatten() for d in draws])
    correlation = torch.corrcoef(flat) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.06
    assert len(uniform(0, positions, 1).unique()) > 990


def test_is_splitmix64_in_plain_integers() -> None:
    """A resumed run must draw what the interrupted one would have drawn, on any release and device."""
    all_bits, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x &= all_bits
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & all_bits
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & all_bits
        return x ^ x >> 31

    base = mix(mix(42) + golden * 2)
    for position in (0, 1, 10**12):
        bits = [mix(mix(position * golden + base) + column * golden) >> 40 for column in (1, 2, 3)]
        assert uniform(42, torch.tensor([position]), 3, stream=1).tolist() == [[b / 2**24 for b in bits]]
    assert uniform(42, torch.tensor([0]), 1, stream=1).item() == 0.05179852247238159
