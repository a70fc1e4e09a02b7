"""The small recognizer: its size and arithmetic, and what it composes with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sparface.export import export_onnx
from sparface.models.batchnorm import SplitBatchNorm, parts, split_batchnorm
from sparface.models.onnx import OnnxRecognizer
from sparface.models.recognizer import Recognizer, RecognizerConfig, build_recognizer
from sparface.models.small import SmallResNet


def small(embedding: int = 256) -> Recognizer:
    torch.manual_seed(0)
    return build_recognizer(RecognizerConfig("small", embedding))


def test_parameters_and_multiplications_are_those_of_its_description() -> None:
    network = SmallResNet(256).eval()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.2e6, rel=0.03)
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 64, 64))
    assert counter.get_total_flops() / 2 == pytest.approx(26e6, rel=0.03)


@pytest.mark.parametrize("size", [32, 33, 50, 64, 112])
def test_faces_of_any_size_are_embedded(size: int) -> None:
    recognizer = small(32)
    for training in (True, False):
        embeddings = recognizer.train(training)(torch.rand(6, 3, size, size))
        assert embeddings.shape == (6, 32)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(6))


def test_in_onnx_too_where_the_last_map_is_no_multiple_of_the_grid(tmp_path: Path) -> None:
    size, recognizer = 50, small(32)
    x = torch.rand(6, 3, size, size)
    recognizer(x)  # statistics that are not those of the start
    with torch.no_grad():
        embeddings = recognizer.eval()(x)
    export_onnx(recognizer, size, tmp_path / "small.onnx")
    torch.testing.assert_close(OnnxRecognizer(tmp_path / "small.onnx")(x), embeddings, atol=1e-5, rtol=1e-4)


def test_the_memory_format_does_not_matter() -> None:
    recognizer, x = small().double(), torch.rand(4, 3, 64, 64, dtype=torch.float64)
    planes = recognizer(x)
    recognizer = recognizer.to(memory_format=torch.channels_last)
    torch.testing.assert_close(recognizer(x.contiguous(memory_format=torch.channels_last)), planes)


def test_every_batchnorm_can_be_split() -> None:
    plain, split = small(), small()
    split_batchnorm(split)
    norms = [module for module in split.modules() if isinstance(module, SplitBatchNorm)]
    assert len(norms) == 18
    x = torch.rand(8, 3, 32, 32)
    with parts(split, 4):
        halves = split(x).chunk(2)
    for half, faces in zip(halves, x.chunk(2), strict=True):
        torch.testing.assert_close(half, plain(faces))
    assert split.plain_state().keys() == plain.plain_state().keys()
