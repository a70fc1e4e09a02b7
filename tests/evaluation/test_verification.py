"""Verification of a run, on a shard set, on photos, and while training."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_runs import small_config, write_checkpoint
from PIL import Image
from torch import nn

from portraits import portrait
from sparface.errors import UserError
from sparface.evaluation.pairs import read_pairs, references
from sparface.evaluation.recognizers import open_recognizer
from sparface.evaluation.verification import Validator, align_pairs, evaluate_verification, summary
from sparface.faces.drawn import draw_set
from sparface.runs.record import read_metrics
from sparface.shards.set import ShardSet


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sparface" / "aligned"


class ByIdentity(nn.Module):
    """A recognizer that knows drawn faces by heart: the direction of an identity, plus noise."""

    def __init__(self, shard_set: ShardSet, noise: float) -> None:
        super().__init__()
        self.noise = nn.Parameter(torch.tensor(noise))
        directions = torch.randn(len(shard_set.identities), 32, generator=torch.Generator().manual_seed(0))
        self.known = {
            face.image.tobytes(): directions[shard_set.identities.index(face.identity)]
            for face in shard_set.faces()
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = (x * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        clean = torch.stack([self.known[image.tobytes()] for image in pixels])
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(len(x)))
        return nn.functional.normalize(clean + self.noise * noise, dim=1)


def test_validator_measures_how_well_identities_are_told_apart(faces: ShardSet) -> None:
    validator = Validator(faces, 100)
    assert len(validator.pairs) == 100
    perfect, fair, blind = (validator(ByIdentity(faces, noise)) for noise in (0.0, 1.0, 100.0))
    assert perfect["accuracy"] == 1.0 and perfect["auc"] == 1.0 and perfect["eer"] == 0.0
    assert perfect["accuracy"] > fair["accuracy"] > blind["accuracy"]
    assert abs(blind["auc"] - 0.5) < 0.15
    assert validator(ByIdentity(faces, 1.0)) == fair == Validator(faces, 100)(ByIdentity(faces, 1.0))


def test_validator_of_a_diverged_recognizer_gives_nan(faces: ShardSet) -> None:
    figures = Validator(faces, 100)(ByIdentity(faces, float("nan")))
    assert np.isnan(list(figures.values())).all() and "accuracy" in figures


def test_a_run_on_a_shard_set(run: Path, faces: ShardSet, tmp_path: Path) -> None:
    document = evaluate_verification(run, shards=faces.folder, json_out=tmp_path / "new" / "figures.json")
    stored = run / "evaluations" / "drawn-000000640.json"
    assert (
        json.loads(stored.read_text())
        == json.loads((tmp_path / "new" / "figures.json").read_text())
        == document
    )
    assert 0 <= document["figures"]["accuracy"] <= 1
    assert document["cosine"]["accuracy"] == pytest.approx(document["figures"]["accuracy"], abs=0.02)
    told = document["provenance"]
    assert told["images_seen"] == 640 and told["checkpoint"] == "step-000000640" and told["centred"] == 0
    assert told["shards_digest"] == faces.digest and len(told["checkpoint_digest"]) == 64
    assert document["pairs"]["same"] == document["pairs"]["different"] > 50
    assert "accuracy" in summary(document) and "no false accept" in summary(document)
    record = read_metrics(run)[-1]
    assert record["images"] == 640
    assert record["evaluation/drawn/accuracy"] == document["figures"]["accuracy"]


def write_photos(folder: Path) -> Path:
    """Drawn people as photos of 160 pixels in LFW's layout, and pairs of them; one photo has no face."""
    for identity, name in enumerate(("Ann", "Bob")):
        (folder / name).mkdir(parents=True)
        for number in (1, 2, 3):
            photo = Image.fromarray(portrait(identity, number))
            photo.save(folder / name / f"{name}_{number:04d}.png")
    Image.new("RGB", (160, 160), (40, 90, 160)).save(folder / "Bob" / "Bob_0003.png")
    pairs = folder.parent / "few.txt"
    pairs.write_text("2\nAnn\t1\t2\nBob\t2\t3\nAnn\t1\tBob\t2\nAnn\t2\tBob\t3\n")
    return pairs


def test_photos_are_aligned_once_and_a_photo_without_a_face_is_counted(
    run: Path, tmp_path: Path, own_cache: Path
) -> None:
    pairs = write_photos(tmp_path / "photos")
    first = evaluate_verification(run, pairs=pairs, photos=tmp_path / "photos")
    told = first["provenance"]
    assert first["name"] == "few" and told["faces"] == 4 and told["centred"] >= 1
    assert "assumed" in told["template"]
    (cached,) = own_cache.iterdir()
    sources = [face.source for face in ShardSet.open(cached).faces()]
    assert sources == ["Ann/Ann_0001.png", "Ann/Ann_0002.png", "Bob/Bob_0002.png", "Bob/Bob_0003.png"]
    before = (cached / "manifest.json").stat().st_mtime_ns
    assert evaluate_verification(run, pairs=pairs, photos=tmp_path / "photos")["figures"] == first["figures"]
    assert (cached / "manifest.json").stat().st_mtime_ns == before
    with (tmp_path / "photos" / "Ann" / "Ann_0001.png").open("ab") as photo:
        photo.write(b"\0")
    evaluate_verification(run, pairs=pairs, photos=tmp_path / "photos")
    assert len(list(own_cache.iterdir())) == 2


def test_evaluations_that_start_at_once_share_one_alignment(
    run: Path, tmp_path: Path, own_cache: Path
) -> None:
    pairs, photos = write_photos(tmp_path / "photos"), tmp_path / "photos"
    opened, wanted = open_recognizer(run), references(read_pairs(pairs))
    with ThreadPoolExecutor() as threads:
        sets = list(threads.map(lambda _: align_pairs(photos, wanted, opened), range(3)))
    assert [each.folder for each in sets] == list(own_cache.iterdir()) * 3


def test_missing_and_broken_photos_are_named(run: Path, tmp_path: Path) -> None:
    pairs = write_photos(tmp_path / "photos")
    (tmp_path / "photos" / "Bob" / "Bob_0002.png").write_bytes(b"not a photo")
    with pytest.raises(UserError, match=r"Bob_0002.png: .*as the pairs need it"):
        evaluate_verification(run, pairs=pairs, photos=tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos" / "Bob")
    with pytest.raises(UserError, match=r"2 of the 4 photos .* are missing: Bob/Bob_0002, Bob/Bob_0003"):
        evaluate_verification(run, pairs=pairs, photos=tmp_path / "photos")


def test_arguments_that_do_not_fit(run: Path, faces: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="either --photos or --shards"):
        evaluate_verification(run)
    with pytest.raises(UserError, match="--photos needs --pairs"):
        evaluate_verification(run, photos=tmp_path)
    other = draw_set(tmp_path / "other", 3, 2, size=32, seed=0)
    with pytest.raises(UserError, match="faces of 32×32 pixels, but size is 64"):
        evaluate_verification(run, shards=other.folder)


def test_a_diverged_checkpoint_is_refused(tmp_path: Path, faces: ShardSet) -> None:
    write_checkpoint(tmp_path, small_config(faces.folder), 320, diverged=True)
    with pytest.raises(UserError, match=r"its embedding is not finite, like those of 60 of 60 faces"):
        evaluate_verification(tmp_path, shards=faces.folder)


def test_lfw_photos(run: Path, tmp_path: Path) -> None:
    data = Path(os.environ.get("SPARFACE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (data / "lfw" / "images").is_dir():
        pytest.skip(f"{data}/lfw is missing (set SPARFACE_DATA)")
    lines = (data / "lfw" / "pairsDevTest.txt").read_text().splitlines()
    pairs = tmp_path / "some.txt"
    pairs.write_text("\n".join(["2", *lines[1:3], *lines[501:503]]) + "\n")
    document = evaluate_verification(run, pairs=pairs, photos=data / "lfw" / "images")
    assert document["pairs"] == {"same": 2, "different": 2, "folds": 2}
    assert document["provenance"]["centred"] == 0
