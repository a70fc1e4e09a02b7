"""`evaluate identify` on a drawn set: CSVs, drawn galleries, files written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sparface import cli
from sparface.errors import UserError
from sparface.evaluation.embed import Sample, embed_faces, require_finite
from sparface.evaluation.identify import (
    Protocol,
    evaluate_identification,
    identify,
    read_protocol,
    summary,
)
from sparface.evaluation.settings import IdentifySettings
from sparface.runs.record import read_metrics
from sparface.shards.set import ShardSet


def table(path: Path, faces: ShardSet) -> Path:
    """The first face of everybody enrolled, but of the last two people; the others in two conditions."""
    lines = ["face,condition"]
    seen: dict[str, int] = {}
    for face in faces.faces():
        number = seen[face.identity] = seen.get(face.identity, 0) + 1
        stranger = faces.identities.index(face.identity) >= 10
        condition = ("dark" if number % 2 else "plain light") if number > 1 or stranger else "gallery"
        lines.append(f"{face.key},{condition}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_conditions_from_a_csv(run: Path, faces: ShardSet, tmp_path: Path) -> None:
    conditions = table(tmp_path / "light.csv", faces)
    document = evaluate_identification(
        run, faces.folder, conditions=conditions, json_out=tmp_path / "figures.json"
    )
    stored = run / "evaluations" / "identify-on-light-on-drawn-000000640.json"
    assert json.loads(stored.read_text()) == json.loads((tmp_path / "figures.json").read_text())
    counts = document["conditions"]
    assert list(counts) == ["", "plain light", "dark"] or list(counts) == ["", "dark", "plain light"]
    assert (counts[""]["probes"], counts[""]["enrolled_probes"], counts[""]["gallery"]) == (50, 40, 10)
    names = {"rank_1", "rank_5", "tar_at_far_0.001", "tpir_at_fpir_0.01", "tpir_at_fpir_0.1"}
    assert set(document["figures"]) == names | {f"{c}/{n}" for c in ("dark", "plain light") for n in names}
    dark, light = (document["figures"][f"{name}/rank_1"] for name in ("dark", "plain light"))
    assert document["figures"]["rank_1"] == pytest.approx((dark + light) / 2)
    low, high = document["intervals"]["rank_1"]
    assert low <= document["figures"]["rank_1"] <= high
    assert len(document["bootstrap"]["replicates"]["dark/rank_1"]) == document["bootstrap"]["count"] == 1000
    assert document["det"]["fpir"][-1] == 1.0 and document["images"][0]["images"] == 1
    assert document["provenance"]["shards_digest"] == faces.digest
    text = summary(document)
    assert "plain light" in text and "TPIR at FPIR 0.01" in text and "gallery images" not in text
    record = read_metrics(run)[-1]
    assert record["evaluation/identify-on-light-on-drawn/dark/rank_1"] == dark


def perfect(people: int, each: int, noise: float = 0.0) -> Sample:
    """Faces of people whose embeddings are directions of their own, with noise."""
    rng = np.random.default_rng(0)
    identity = np.repeat(np.arange(people), each)
    embeddings = np.eye(people)[identity] + noise * rng.normal(size=(len(identity), people))
    places = np.arange(len(identity))
    return Sample(places, [f"f{p}" for p in places], identity, [f"p{i}" for i in range(people)], embeddings)


def test_more_gallery_images_help_and_the_required_number_is_found() -> None:
    sample = perfect(20, 12, noise=0.25)
    everything = Protocol(sample.places, {})
    settings = IdentifySettings(images=6, draws=3, target=0.9, template="mean")
    found = identify(sample, everything, settings)
    curve = [row["rank_1"] for row in found["images"]]
    assert [row["images"] for row in found["images"]] == [1, 2, 3, 4, 5, 6]
    assert curve[0] < curve[2] < curve[5] == found["figures"]["rank_1"]
    assert found["required"] == next(n for n, value in enumerate(curve, 1) if value >= 0.9)
    assert found == identify(sample, everything, settings), "a pure function of the seed"
    assert identify(sample, everything, IdentifySettings(images=1, target=1.0))["required"] is None


def test_people_left_out_of_the_gallery_are_strangers() -> None:
    sample = perfect(20, 3, noise=0.1)
    found = identify(sample, Protocol(sample.places, {}), IdentifySettings(unenrolled=0.25, draws=2))
    assert found["conditions"][""]["gallery"] == 15 and found["conditions"][""]["probes"] == 15 * 2 + 5 * 3
    assert found["figures"]["tpir_at_fpir_0.1"] > 0.9 and found["det"] is not None
    with pytest.raises(UserError, match="nobody is left to enrol"):
        identify(sample, Protocol(sample.places, {}), IdentifySettings(unenrolled=1.0))
    with pytest.raises(UserError, match="nobody is left to enrol or to probe"):
        identify(perfect(5, 1), Protocol(np.arange(5), {}), IdentifySettings())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("face\n#1\n", "no column condition"),
        ("face,condition\n#1,gallery\n#2,\n", "line 3: face or condition is empty"),
        ("face,condition\n#1,gallery\n#1,dark\n", "line 3: #1 is listed twice"),
        ("face,condition\n#1,gallery\n", "has no probe"),
        ("face,condition\n#1,dark\n", "has no face of the condition 'gallery'"),
        ("face,condition\n#1,gallery\nnobody,dark\n", "1 of the 2 faces named are missing: nobody"),
        ("face,condition\n#1,gallery\n#2,a\x1b[2Jb\n", "not printable"),
    ],
)
def test_tables_that_cannot_be_used(text: str, message: str, faces: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_protocol(tmp_path / "bad.csv", faces)


def test_a_face_by_two_names_is_refused(faces: ShardSet, tmp_path: Path) -> None:
    key = next(iter(faces.faces())).key
    (tmp_path / "bad.csv").write_text(f"face,condition\n{key},gallery\n#0,dark\n")
    with pytest.raises(UserError, match="a face by two names"):
        read_protocol(tmp_path / "bad.csv", faces)


def test_an_embedding_that_is_not_finite_is_named(faces: ShardSet) -> None:
    class Blind(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = x.mean((2, 3))
            found[1] = torch.nan
            return found

    key = list(faces.faces())[4].key
    with pytest.raises(UserError, match=f"{key}: its embedding is not finite, like those of 1 of 3 faces"):
        embed_faces(Blind(), faces, [3, 4, 7])
    require_finite({"a": np.zeros(3, np.float32)})


def test_the_command_line(
    run: Path, faces: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "identify", "--checkpoint", str(run), "--shards", str(faces.folder)]
    assert cli.main([*words, "--images", "3", "--draws", "2", "--template", "mean"]) == 0
    shown = capsys.readouterr().out
    assert "all probes" in shown and "rank 1 with  3 gallery images" in shown
    for option, value, message in (
        ("--images", "-1", "--images: -1 is not allowed; must be 0 to 1,000"),
        ("--template", "best", "best is not allowed"),
        ("--unenrolled", "2", "--unenrolled: 2.0 is not allowed"),
    ):
        assert cli.main([*words, option, value]) == 2
        assert message in capsys.readouterr().err
