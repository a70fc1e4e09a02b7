from __future__ import annotations

import math

import pytest
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


def top_bits(seed: int, position: int, stream: int, columns: int) -> list[int]:
    """24 bits a column by splitmix64 (Steele, Lea & Flood 2014) in plain integers."""
    all_bits, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(x: int) -> int:
        x &= all_bits
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & all_bits
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & all_bits
        return x ^ x >> 31

    base = mix(mix(seed) + golden * (stream + 1))
    return [mix(mix(position * golden + base) + column * golden) >> 40 for column in range(1, columns + 1)]


@pytest.mark.parametrize("seed", [0, 42, -1, 2**63 - 1])
@pytest.mark.parametrize("stream", [0, 1, 7])
@pytest.mark.parametrize("position", [0, 1, 10**12, 2**62])
def test_is_splitmix64_in_plain_integers(seed: int, stream: int, position: int) -> None:
    """A resumed run must draw what the interrupted one would have drawn, on any release and device."""
    expected = [bits / 2**24 for bits in top_bits(seed, position, stream, 5)]
    assert uniform(seed, torch.tensor([position]), 5, stream).tolist() == [expected]


def test_known_draws() -> None:
    assert uniform(42, torch.tensor([0]), 1, stream=1).item() == 0.05179852247238159
    assert uniform(42, torch.tensor([0]), 1).item() == top_bits(42, 0, 0, 1)[0] / 2**24


@pytest.mark.parametrize("shape", [(4,), (2, 3), (5,), (1, 1, 3)])
def test_normal_is_box_and_mullers(shape: tuple[int, ...]) -> None:
    count = math.prod(shape)
    pairs = math.ceil(count / 2)
    bits = top_bits(9, 123, 2, 2 * pairs)
    radii = [math.sqrt(-2 * math.log((b + 1) / 2**24)) for b in bits[:pairs]]
    angles = [2 * math.pi * b / 2**24 for b in bits[pairs:]]
    values = [r * math.cos(a) for r, a in zip(radii, angles, strict=True)]
    values += [r * math.sin(a) for r, a in zip(radii, angles, strict=True)]
    drawn = normal(9, torch.tensor([123]), shape, stream=2)
    assert drawn.shape == (1, *shape) and drawn.dtype == torch.float32
    assert drawn.flatten().tolist() == pytest.approx(values[:count], abs=1e-5)
    assert torch.equal(normal(9, torch.tensor([5]), shape), normal(9, torch.tensor([5]), shape, stream=0))


@pytest.mark.parametrize(("position", "bits"), [(14803955, 0), (10207771, 1), (10289463, 3)])
def test_the_rarest_draws_are_finite(position: int, bits: int) -> None:
    """Where the radius is largest: √(−2 log of (bits + 1) / 2²⁴)."""
    assert top_bits(0, position, 0, 1) == [bits]
    radius = math.sqrt(-2 * math.log((bits + 1) / 2**24))
    angle = 2 * math.pi * top_bits(0, position, 0, 2)[1] / 2**24
    expected = [radius * math.cos(angle), radius * math.sin(angle)]
    assert normal(0, torch.tensor([position]), (2,))[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_draws_do_not_depend_on_types() -> None:
    positions = torch.arange(100)
    expected = uniform(3, positions, 4), normal(3, positions, (3,))
    assert torch.equal(uniform(3, positions.int(), 4), expected[0])
    torch.set_default_dtype(torch.float64)
    try:
        found = uniform(3, positions, 4), normal(3, positions, (3,))
    finally:
        torch.set_default_dtype(torch.float32)
    assert [values.dtype for values in found] == [torch.float32] * 2
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


def test_draws_are_made_where_the_positions_are() -> None:
    positions = torch.arange(4, device="meta")
    assert uniform(0, positions, 3).device.type == "meta"
    assert normal(0, positions, (3,)).device.type == "meta"
