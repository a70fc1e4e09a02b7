from __future__ import annotations

import torch

from sparface.randomness import uniform
from sparface.variation import covered, vary
from sparface.variation.occluders import coverage, draw_occluders

POSITIONS = torch.arange(1000, 1400)


def test_outside_of_its_patch_a_face_has_another_gamma_and_perhaps_no_colour() -> None:
    faces = torch.rand(len(POSITIONS), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = vary(faces, "covered", 3, POSITIONS)
    cover = coverage(draw_occluders(faces, 3, POSITIONS, covered.COVERED), (16, 16))
    draws = uniform(3, POSITIONS, 2, 1)
    for face, found, open_, (gamma, grey) in zip(faces, changed, cover == 0, draws.tolist(), strict=True):
        expected = face ** (2.718281828 ** (0.8 * gamma - 0.4))
        if grey < 0.5:
            expected = (expected.sum(0) / 3).expand(3, 16, 16)
        torch.testing.assert_close(found[:, open_[0]], expected[:, open_[0]], atol=1e-5, rtol=0)
    share = float(cover.flatten(1).any(1).float().mean())
    assert 0.6 < share < 0.8
    assert 0.05 < float(cover[cover.flatten(1).any(1)].mean()) < 0.3
    assert bool(((changed >= 0) & (changed <= 1)).all())


def test_it_depends_on_seed_and_position_alone() -> None:
    faces = torch.rand(8, 3, 16, 16)
    whole = vary(faces, "covered", 3, POSITIONS[:8])
    parts = [vary(faces[part], "covered", 3, POSITIONS[:8][part]) for part in (slice(0, 3), slice(3, 8))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(vary(faces, "covered", 4, POSITIONS[:8]), whole)
