from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from facenet_pytorch import InceptionResnetV1

from sparface.errors import UserError
from sparface.kernels.whiten import whiten
from sparface.models.batchnorm import parts, split_batchnorm
from sparface.models.recognizer import IdentityHead, Recognizer, RecognizerConfig, build_recognizer


@pytest.fixture(scope="module")
def facenet() -> Recognizer:
    torch.manual_seed(0)
    return build_recognizer(RecognizerConfig()).eval()


def resnet(**settings: Any) -> RecognizerConfig:
    return RecognizerConfig(backbone="timm:resnet10t", embedding=16, **settings)


def test_whitened_faces_have_no_mean_and_unit_variance() -> None:
    x = torch.rand(4, 3, 20, 20, dtype=torch.float64) * 0.1 + 0.4
    y = whiten(x)
    for face, white in zip(x, y, strict=True):
        mean = face.sum() / face.numel()
        variance = ((face - mean) ** 2).sum() / face.numel()
        torch.testing.assert_close(white, (face - mean) / variance.sqrt())
    assert whiten(x.to(torch.bfloat16)).dtype == torch.float32


def test_a_constant_face_whitens_to_zero_with_a_finite_gradient() -> None:
    x = torch.full((2, 3, 8, 8), 0.5, requires_grad=True)
    y = whiten(x)
    (y * torch.rand_like(y)).sum().backward()
    assert (y == 0).all()
    assert x.grad is not None and x.grad.isfinite().all()


def test_embeddings_are_of_length_one_and_blind_to_light(facenet: Recognizer) -> None:
    x = torch.rand(2, 3, 96, 96) * 0.4 + 0.3
    with torch.no_grad():
        e, darker = facenet(x), facenet(x * 0.6 + 0.1)
    assert e.shape == (2, 512)
    torch.testing.assert_close(e.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(e, darker, atol=1e-4, rtol=0)


def test_facenet_is_facenet_pytorchs_and_draws_nothing(facenet: Recognizer) -> None:
    plain = InceptionResnetV1(pretrained=None).eval()
    plain.load_state_dict(facenet.plain_state())
    x = torch.rand(2, 3, 80, 80)
    with torch.no_grad():
        torch.testing.assert_close(facenet(x), plain(whiten(x)))
    assert facenet.backbone.dropout.p == 0  # type: ignore[union-attr]
    assert sum(p.numel() for p in facenet.parameters()) == 23_482_624


def test_split_recognizers_export_to_the_plain_layout(facenet: Recognizer) -> None:
    split = build_recognizer(RecognizerConfig())
    split.load_state_dict(facenet.state_dict())
    split_batchnorm(split)
    InceptionResnetV1(pretrained=None).load_state_dict(split.plain_state())
    assert split.plain_state().keys() == facenet.plain_state().keys()


def test_timm_backbones_embed_without_dropout() -> None:
    recognizer = build_recognizer(RecognizerConfig(backbone="timm:efficientnet_b0", embedding=24))
    dropping = [m.p for m in recognizer.modules() if isinstance(m, torch.nn.Dropout)]
    assert not any(dropping)
    assert recognizer(torch.rand(2, 3, 32, 32)).shape == (2, 24)


@pytest.mark.parametrize("split", [False, True])
def test_fixed_statistics_are_used_and_kept(split: bool) -> None:
    """In training, a recognizer then embeds as it does in evaluation; its weights still learn."""
    settings = RecognizerConfig("timm:test_resnet", 16, fixed_statistics=True)
    recognizer = build_recognizer(settings)
    for key, buffer in recognizer.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 2)
    if split:
        split_batchnorm(recognizer)
    kept = {key: buffer.clone() for key, buffer in recognizer.named_buffers()}
    x = torch.rand(4, 3, 32, 32)
    with parts(recognizer, 2):
        training = recognizer.train()(x)
    torch.testing.assert_close(training, recognizer.eval()(x))
    training.square()[:, 0].sum().backward()
    assert all(torch.equal(buffer, kept[key]) for key, buffer in recognizer.named_buffers())
    learned = [
        weight.grad is not None for key, weight in recognizer.named_parameters() if "auxiliary" not in key
    ]
    assert all(learned)
    if not split:
        usual = build_recognizer(replace(settings, fixed_statistics=False))
        usual.load_state_dict(recognizer.state_dict())
        assert not torch.allclose(usual(x), training, atol=1e-3)


def test_head_gives_cosines_in_float32() -> None:
    head = IdentityHead(16, 5)
    e = torch.nn.functional.normalize(torch.randn(3, 16), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cosines = head(e)
    expected = torch.nn.functional.cosine_similarity(e[:, None], head.weight[None], dim=2)
    assert cosines.dtype == torch.float32
    torch.testing.assert_close(cosines, expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RecognizerConfig(embedding=128), "recognizer.embedding: 128.*must be 512"),
        (RecognizerConfig(backbone="resnet"), "recognizer.backbone: resnet is not allowed"),
        (
            RecognizerConfig(backbone="timm:resnet10x"),
            r"no model resnet10x \(did you mean timm:resnet10t\?\)",
        ),
    ],
)
def test_wrong_settings_are_explained(config: RecognizerConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_recognizer(config)


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install timm"):
        build_recognizer(resnet())
