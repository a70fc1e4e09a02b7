"""Membership inference, on recognizers that are known to have memorised their faces or not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from sparface import cli
from sparface.errors import UserError
from sparface.evaluation import membership
from sparface.evaluation.membership import (
    contains,
    evaluate_membership,
    gather,
    likelihood_ratios,
)
from sparface.report.compare import compare
from sparface.shards import split, write_subset
from sparface.shards.set import ShardSet


@pytest.fixture(scope="module")
def halves(faces: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardSet, ShardSet]:
    """People whom a recognizer was trained on, and others."""
    folder = tmp_path_factory.mktemp("halves")
    one, other = (split(faces.folder, folder / n, share=0.5, rest=n == "rest") for n in ("seen", "rest"))
    return one, other


class Memory(nn.Module):
    """A recognizer that embeds all faces of a set alike, and others by their pixels."""

    def __init__(self, known: ShardSet) -> None:
        super().__init__()
        self.known = {face.image.tobytes(): face.identity for face in known.faces()}

    def forward(self, x: Tensor) -> Tensor:
        rows = []
        for face in x:
            image = (face * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
            name = self.known.get(image.tobytes())
            noise = torch.randn(16, generator=torch.Generator().manual_seed(int(image.sum())))
            own = torch.zeros(16)
            if name is not None:
                own[sorted(set(self.known.values())).index(name)] = 3.0
            rows.append(own + noise)
        return nn.functional.normalize(torch.stack(rows), dim=1)


def test_a_recognizer_that_remembers_gives_its_faces_away(halves: tuple[ShardSet, ShardSet]) -> None:
    seen, unseen = halves
    candidates = gather(seen, unseen)
    own = membership.scores(Memory(seen), candidates)
    pairs = membership.roc(own, candidates)
    auc = float(pairs.auc(np.ones((1, len(candidates.people))))[0])
    assert auc == pytest.approx(roc_auc_score(candidates.member, own)) and auc > 0.95
    assert roc_auc_score(candidates.member, membership.scores(Memory(unseen), candidates)) < 0.05


def test_scores_are_the_mean_cosine_to_the_others_of_the_person(halves: tuple[ShardSet, ShardSet]) -> None:
    candidates, network = gather(*halves), Memory(halves[0])
    found = membership.scores(network, candidates)
    images = torch.from_numpy(np.stack(list(candidates.images()))).permute(0, 3, 1, 2).float() / 255
    embeddings = network(images).double().numpy()
    for face in (0, 7, len(found) - 1):
        others = candidates.owner == candidates.owner[face]
        others[face] = False
        assert np.tanh(found[face]) == pytest.approx((embeddings[others] @ embeddings[face]).mean(), abs=1e-5)


def test_likelihood_ratios_are_those_of_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    inside = rng.random((40, 300)) < 0.5
    inside[:, 0], inside[:, 1] = True, False
    hardness = rng.normal(size=300)
    shadows = hardness + np.where(inside, 1.0, 0.0) + rng.normal(scale=0.5, size=inside.shape)
    member = rng.random(300) < 0.5
    own = hardness + member + rng.normal(scale=0.5, size=300)
    found = likelihood_ratios(own, shadows, inside)
    assert np.isnan(found[:2]).all() and np.isfinite(found[2:]).all()
    ideal = norm.logpdf(own, hardness + 1, 0.5) - norm.logpdf(own, hardness, 0.5)
    assert np.corrcoef(found[2:], ideal[2:])[0, 1] > 0.95
    assert roc_auc_score(member[2:], found[2:]) > roc_auc_score(member, own) + 0.1, "better than the score"
    for parts in (np.ones((2, 5), bool), np.zeros((2, 5), bool)):
        with pytest.raises(UserError, match="each face is in all of them or in none"):
            likelihood_ratios(np.zeros(5), np.zeros((2, 5)), parts)


def test_a_shadow_set_is_found_by_its_pixels(
    faces: ShardSet, halves: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    candidates = gather(*halves)
    assert (contains(halves[0], candidates) == candidates.member).all()
    part = split(faces.folder, tmp_path / "part", share=0.5, by="photos", seed=3)
    keys = {face.image.tobytes() for face in part.faces()}
    expected: npt.NDArray[np.bool_] = np.array([image.tobytes() in keys for image in candidates.images()])
    assert (contains(part, candidates) == expected).all() and 0 < expected.mean() < 1


def test_the_verb_and_its_curve_in_the_report(
    run: Path, faces: ShardSet, halves: tuple[ShardSet, ShardSet], tmp_path: Path
) -> None:
    parts = [split(faces.folder, tmp_path / str(n), share=0.5, seed=n).folder for n in range(2)]
    words = ["evaluate", "membership", f"--checkpoint={run}", f"--members={halves[0].folder}"]
    words += [f"--others={halves[1].folder}", "--shadows", *[str(run)] * 2, "--shadow_sets", *map(str, parts)]
    assert cli.main([*words, "--json", str(tmp_path / "m.json")]) == 0
    document = json.loads((tmp_path / "m.json").read_text())
    names = {f"{attack}/{figure}" for attack in ("score", "lira") for figure in ("auc", "tpr_at_fpr_0.01")}
    assert document["figures"].keys() == names and document["kind"] == "membership"
    low, high = document["intervals"]["score/auc"]
    assert low < document["figures"]["score/auc"] < high, "an untrained network knows nobody"
    compare([run], tmp_path / "report.html")
    assert "Guessing who was in the training set" in (tmp_path / "report.html").read_text()


def test_what_cannot_be_attacked(run: Path, halves: tuple[ShardSet, ShardSet], tmp_path: Path) -> None:
    seen, unseen = (half.folder for half in halves)
    lonely = write_subset(unseen, tmp_path / "lonely", 4, 1).folder
    for others, shadows, message in (
        (seen, [], "of its faces are in"),
        (lonely, [], "has nobody with two or more faces"),
        (unseen, [run], "1 recognizers, but 0 --shadow_sets"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_membership(run, seen, others, shadows=shadows)
