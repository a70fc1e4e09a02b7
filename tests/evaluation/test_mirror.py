"""Mirror at test time: the same embedding in validations, in `sparface evaluate` and for any recognizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_runs import small_config, write_checkpoint
from torch import nn

from sparface.evaluation.embed import Mirrored, embed
from sparface.evaluation.verification import Validator, evaluate_verification
from sparface.export import export_onnx
from sparface.models.onnx import OnnxRecognizer
from sparface.models.recognizer import RecognizerConfig, build_recognizer
from sparface.runs.trained import open_run
from sparface.shards.set import ShardSet


@pytest.mark.parametrize("kind", ["torch", "onnx"])
def test_an_embedding_is_the_normalised_sum_of_both_sides(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    recognizer: nn.Module = build_recognizer(RecognizerConfig("small", 16)).eval()
    if kind == "onnx":
        export_onnx(recognizer, 32, tmp_path / "small.onnx")
        recognizer = OnnxRecognizer(tmp_path / "small.onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    sides = [embed(recognizer, enumerate(faces)) for faces in (images, images[:, :, ::-1].copy())]
    found = embed(Mirrored(recognizer), enumerate(images))
    of_mirrored = embed(Mirrored(recognizer), enumerate(images[:, :, ::-1]))
    for i, row in found.items():
        total = sides[0][i] + sides[1][i]
        np.testing.assert_allclose(row, total / np.linalg.norm(total), atol=1e-5)
        np.testing.assert_allclose(row, of_mirrored[i], atol=1e-5)
        assert np.abs(row - sides[0][i]).max() > 0.01


def test_validation_and_evaluation_agree(tmp_path: Path, faces: ShardSet) -> None:
    """The run's config says which embedding it is, and so does the evaluation."""
    figures = {}
    torch.manual_seed(0)
    config = small_config(faces.folder)
    write_checkpoint(tmp_path, config, 320)
    for mirror in (False, True):
        validation = replace(config.validation, mirror=mirror)
        text = (tmp_path / "config.yaml").read_text()
        (tmp_path / "config.yaml").write_text(text.replace("mirror: false", f"mirror: {str(mirror).lower()}"))
        trained = open_run(tmp_path)
        document = evaluate_verification(tmp_path, shards=faces.folder)
        assert document["provenance"]["mirror"] == mirror
        pairs = document["pairs"]["same"] + document["pairs"]["different"]
        figures[mirror] = document["figures"]
        validator = Validator(faces, pairs, validation.mirror)
        assert validator(trained.network("recognizer")) == pytest.approx(document["figures"])
    assert figures[False] != figures[True]
