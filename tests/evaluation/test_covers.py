"""Gallery faces that are enrolled with covers, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparface import cli
from sparface.evaluation.covers import embed_covered, templates
from sparface.evaluation.embed import Sample
from sparface.evaluation.identify import Protocol, identify
from sparface.evaluation.settings import IdentifySettings
from sparface.shards.set import ShardSet
from sparface.variation import draw_occluders, occlude
from sparface.variation.wear import wear


class Cells(nn.Module):
    """Embeds a face as the colours of 4 × 4 cells, around their mean."""

    def forward(self, faces: Tensor) -> Tensor:
        cells = nn.functional.adaptive_avg_pool2d(faces, 4).flatten(1)
        return nn.functional.normalize(cells - 0.5, dim=1)


def test_faces_are_embedded_with_the_mean_of_eight_covers(faces: ShardSet) -> None:
    images = [face.image for _, face in faces.faces_at(range(5))]
    found = embed_covered(Cells(), images, ("random", "scarf"), seed=7).swapaxes(0, 1)
    x, positions = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255, torch.arange(5)
    rectangles = [occlude(x, draw_occluders(x, 7, 8 * positions + k)) for k in range(8)]
    scarves = [wear(x, "scarf", 7, 8 * positions + k) for k in range(8)]
    for rows, drawn in zip(found, ([x], rectangles, scarves), strict=True):
        expected = np.mean([Cells()(one).double().numpy() for one in drawn], axis=0)
        np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_what_all_faces_have_in_common_with_a_cover_is_taken_out() -> None:
    rng = np.random.default_rng(0)
    plain, shift = rng.normal(size=(6, 4)), rng.normal(size=(2, 4))
    # covers that tell nothing about anybody
    covered = np.concatenate([plain[:, None], plain[:, None] + shift], 1)
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    for number in range(3):
        np.testing.assert_allclose(templates(covered)[:, number], plain / lengths)
    np.testing.assert_allclose(templates(rng.normal(size=(1, 3, 4)))[0].std(0), 0, atol=1e-9)


def test_a_probe_is_named_by_the_gallery_face_with_its_cover() -> None:
    # three people; with a cover, all probes are nearest to the first one's uncovered face
    eye = np.eye(6)
    uncovered, with_cover = eye[:3], eye[3:]
    probes = 0.5 * eye[0] + with_cover
    sample = Sample(np.arange(6), list("abcdef"), np.array([0, 1, 2, 0, 1, 2]), ["x", "y", "z"],
                    np.concatenate([uncovered, probes]))  # fmt: skip
    protocol = Protocol(np.arange(3), {"covered": np.arange(3, 6)})
    settings = IdentifySettings(draws=1)
    without = identify(sample, protocol, settings)["figures"]
    covered = identify(sample, protocol, settings, np.stack([uncovered, with_cover], 1))["figures"]
    assert without["rank_1"] == pytest.approx(1 / 3) and covered["rank_1"] == 1


def test_a_run_is_evaluated_with_covers(
    run: Path, faces: ShardSet, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluate", "identify", "--checkpoint", str(run), "--shards", str(faces.folder), "--draws", "2"]
    assert cli.main([*asked, "--covers", "sunglasses,scarf,random"]) == 0
    assert "rank 1" in capsys.readouterr().out
    for more, message in (
        (
            ["--covers", "sunglasses,mask"],
            "--covers: mask is unknown or repeated; known: sunglasses, scarf, ",
        ),
        (["--covers", "random,random"], "--covers: random is unknown or repeated"),
        (["--covers", "random", "--template", "mean"], "--covers: are compared one by one"),
    ):
        assert cli.main([*asked, *more]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
