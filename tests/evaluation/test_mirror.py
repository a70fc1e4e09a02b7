"""Mirror at test time: the same embedding in validations, in evaluations and from exported files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluation_runs import small_config, write_checkpoint

from sparface.evaluation.recognizers import open_recognizer
from sparface.evaluation.verification import Validator, evaluate_verification
from sparface.export import export
from sparface.models.recognizer import RecognizerConfig
from sparface.shards.set import ShardSet


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, faces: ShardSet) -> dict[bool, Path]:
    """Runs of the same weights, without and with `validation.mirror`."""
    found = {mirror: tmp_path_factory.mktemp(f"mirror-{mirror}") / "run" for mirror in (False, True)}
    for mirror, run in found.items():
        torch.manual_seed(0)
        config = small_config(faces.folder)
        config.blocks["recognizer"] = RecognizerConfig("small", 16)
        config.validation.mirror = mirror
        write_checkpoint(run, config, 320)
    return found


def test_an_embedding_is_the_normalised_sum_of_both_sides(runs: dict[bool, Path]) -> None:
    plain, mirrored = (open_recognizer(runs[mirror]) for mirror in (False, True))
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        total = plain.network(x) + plain.network(x.flip(3))
        found = mirrored.network(x)
        torch.testing.assert_close(found, total / total.norm(dim=1, keepdim=True))
        torch.testing.assert_close(found, mirrored.network(x.flip(3)))
        assert (found - plain.network(x)).abs().max() > 0.01
    assert plain.digest != mirrored.digest, "a gallery of one is none of the other"


def test_validation_and_evaluation_agree(runs: dict[bool, Path], faces: ShardSet) -> None:
    figures = {}
    for mirror, run in runs.items():
        document = evaluate_verification(run, shards=faces.folder)
        assert document["provenance"]["mirror"] == mirror
        pairs = document["pairs"]["same"] + document["pairs"]["different"]
        trained = open_recognizer(run).trained
        assert trained is not None
        validated = Validator(faces, pairs, mirror)(trained.network("recognizer"))
        figures[mirror] = document["figures"]
        assert validated == pytest.approx(figures[mirror])
    assert figures[False] != figures[True]


def test_exported_files_embed_like_the_run(runs: dict[bool, Path], tmp_path: Path) -> None:
    export(runs[True], tmp_path / "out")
    opened = open_recognizer(runs[True])
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        expected = opened.network(x)
        for file in ("recognizer.safetensors", "recognizer.onnx"):
            found = open_recognizer(tmp_path / "out" / file)
            torch.testing.assert_close(found.network(x), expected, atol=1e-5, rtol=1e-4)
    assert open_recognizer(tmp_path / "out").digest == opened.digest
