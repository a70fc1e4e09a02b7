"""Quality of made faces, against the definitions and on sets whose faces are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.linalg import sqrtm
from scipy.spatial import KDTree

from sparface import cli
from sparface.errors import UserError
from sparface.evaluation.manifold import precision_and_recall
from sparface.evaluation.quality import alike, evaluate_quality, frechet, summary
from sparface.shards.format import Face
from sparface.shards.set import ShardSet
from sparface.shards.writer import ShardSetWriter


def ssim(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Of one channel [H, W] in 0 … 255, over windows of 11×11 (Gaussian, σ 1.5), with mirrored borders."""
    along = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(along, along) / along.sum() ** 2
    one, other = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    wide = [np.pad(z, 5, mode="reflect") for z in (x, y)]
    found = []
    for top in range(x.shape[0]):
        for left in range(x.shape[1]):
            a, b = (z[top : top + 11, left : left + 11] for z in wide)
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            spread_a, spread_b = (window * a * a).sum() - mean_a**2, (window * b * b).sum() - mean_b**2
            both = (window * a * b).sum() - mean_a * mean_b
            found.append(
                (2 * mean_a * mean_b + one) * (2 * both + other)
                / ((mean_a**2 + mean_b**2 + one) * (spread_a + spread_b + other))
            )  # fmt: skip
    return float(np.mean(found))


def test_pictures_are_compared_as_defined() -> None:
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 256, (2, 24, 20, 3), dtype=np.uint8)
    others = np.clip(faces + rng.integers(-40, 40, faces.shape), 0, 255).astype(np.uint8)
    others[1] = faces[1]
    found = alike(faces, others)
    x, y = faces[0].astype(np.float64), others[0].astype(np.float64)
    expected = np.mean([ssim(x[..., channel], y[..., channel]) for channel in range(3)])
    assert found["ssim"] == pytest.approx([expected, 1.0], abs=1e-5)
    assert found["psnr"][0] == pytest.approx(10 * np.log10(255**2 / np.mean((x - y) ** 2)))
    assert found["psnr"][1] == pytest.approx(10 * np.log10(255**2 * faces[0].size)), "equal, yet finite"


def test_the_frechet_distance_agrees_with_scipy() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 60, 5)) @ rng.normal(size=(5, 5)) + np.array([[[0.0]], [[0.4]]])
    weights = rng.integers(0, 3, 60).astype(np.float64)
    copies = [np.repeat(sample, weights.astype(int), axis=0) for sample in (first, second)]
    one, other = (np.cov(sample.T) for sample in copies)
    means = copies[0].mean(0) - copies[1].mean(0)
    expected = (means**2).sum() + np.trace(one + other - 2 * np.real(sqrtm(one @ other)))
    assert frechet(first, second, weights) == pytest.approx(expected)
    assert frechet(first, first, weights) == pytest.approx(0, abs=1e-9)
    flat = np.zeros((4, 3)), np.ones((4, 3))
    assert frechet(*flat, np.ones(4)) == pytest.approx(3.0), "no spread at all"
    assert np.isnan(frechet(first, second, np.zeros(60)))


def test_precision_and_recall_agree_with_a_search_tree() -> None:
    """More than one block of rows, in which some made faces stray and some real ones have no counterpart."""
    rng = np.random.default_rng(2)
    real = rng.normal(size=(700, 4))
    made = np.concatenate([real[:500] + rng.normal(scale=0.3, size=(500, 4)), rng.normal(5, 1, (150, 4))])
    found = []
    for inside, of in ((made, real), (real, made)):
        reach = KDTree(of).query(of, k=4)[0][:, 3]
        around = KDTree(inside).query_ball_point(of, reach)
        found.append(np.isin(np.arange(len(inside)), np.concatenate(around).astype(int)))
    precise, recalled = precision_and_recall(real, made)
    assert (precise == found[0]).all() and (recalled == found[1]).all()
    assert 0.6 < precise.mean() < 0.8 and 0.6 < recalled.mean() < 1


def test_precision_and_recall_of_what_is_easily_seen() -> None:
    line = np.arange(20.0)[:, None]
    assert all(one.all() for one in precision_and_recall(line, line + 0.5))
    precise, recalled = precision_and_recall(line, np.full((20, 1), 7.5))
    assert precise.all() and not recalled.any(), "made faces that are all one face, which could be real"
    precise, recalled = precision_and_recall(line, line * 100)
    assert precise.mean() == 1 / 20 and recalled.all(), (
        "they reach over all real ones, and nearly all are none"
    )


def write_made(folder: Path, faces: ShardSet, noise: int, *, parents: bool = True, sources: str = "") -> Path:
    """Two variants of every face, `noise` grey levels off, and the face itself as variant 0."""
    rng = np.random.default_rng(0)
    provenance = {"sources": sources or faces.digest}
    with ShardSetWriter(folder, name="made", size=faces.manifest.size, provenance=provenance) as writer:
        for face in faces.faces():
            for number in range(3):
                change = rng.integers(-noise, noise + 1, face.image.shape) if number else 0
                image = np.clip(face.image + change, 0, 255).astype(np.uint8)
                meta = {"variant": number, "synthetic": number > 0} | (
                    {"parent": face.key} if parents else {}
                )
                writer.add(Face(f"{face.key}-v{number}", image, face.identity, face.source, meta))
    return folder


def test_more_noise_is_less_alike(run: Path, faces: ShardSet, tmp_path: Path) -> None:
    documents = [
        evaluate_quality(run, write_made(tmp_path / str(noise), faces, noise), faces.folder, json_out=out)
        for noise, out in ((0, tmp_path / "q.json"), (3, None), (60, None))
    ]
    assert json.loads((tmp_path / "q.json").read_text()) == documents[0]
    same, little, much = (document["figures"] for document in documents)
    assert same["ssim"] == pytest.approx(1, abs=1e-4) and same["cosine_to_source"] == pytest.approx(1)
    assert same["frechet"] == pytest.approx(0, abs=1e-6) and same["identity_kept"] == 1.0
    assert same["precision"] == same["recall"] == 1 and much["precision"] < 1
    for name in ("ssim", "psnr", "cosine_to_source"):
        assert same[name] > little[name] > much[name]
    for name in ("ssim", "psnr", "cosine_to_source", "frechet"):
        low, high = documents[2]["intervals"][name]
        assert low < much[name] < high
    assert much["frechet"] > little["frechet"] > 0 and much["identity_kept"] <= little["identity_kept"]
    assert documents[1]["provenance"]["faces"] == 2 * len(faces), "the sources themselves are left out"
    assert "identity kept" in summary(documents[1]) and documents[1]["independent"]


def test_sets_that_do_not_belong_together(
    run: Path, faces: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "quality", "--checkpoint", str(run), "--sources", str(faces.folder), "--shards"]
    other = write_made(tmp_path / "other", faces, 3, sources="ab" * 32)
    nameless = write_made(tmp_path / "nameless", faces, 3, parents=False)
    for folder, message in ((other, "was made from another set"), (nameless, "does not name its source")):
        assert cli.main([*words, str(folder)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="--faces: 1 is not allowed"):
        evaluate_quality(run, nameless, faces.folder, faces=1)
