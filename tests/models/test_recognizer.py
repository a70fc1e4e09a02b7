from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from facenet_pytorch import InceptionResnetV1
from safetensors.torch import save_file

from sparface.errors import UserError
from sparface.kernels.whiten import whiten
from sparface.models.batchnorm import split_batchnorm
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
        (RecognizerConfig(pretrained="vgface2"), "vgface2: no such file; give vggface2, casia-webface"),
        (resnet(pretrained="vggface2"), "vggface2 is for inception_resnet_v1"),
    ],
)
def test_wrong_settings_are_explained(config: RecognizerConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_recognizer(config)


def test_timm_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install timm"):
        build_recognizer(resnet())


def test_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"could not be downloaded .*no network.*give the path of") as caught:
        build_recognizer(RecognizerConfig(pretrained="vggface2"))
    assert "\n" not in str(caught.value)


def test_published_weights_come_from_facenet_pytorchs_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, facenet: Recognizer
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    classifier = {"logits.weight": torch.zeros(8631, 512), "logits.bias": torch.zeros(8631)}
    torch.save(facenet.plain_state() | classifier, tmp_path / "checkpoints" / "20180402-114759-vggface2.pt")
    loaded = build_recognizer(RecognizerConfig(pretrained="vggface2"))
    assert torch.equal(loaded.backbone.last_linear.weight, facenet.backbone.last_linear.weight)  # type: ignore


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_files(tmp_path: Path, suffix: str) -> None:
    source = build_recognizer(resnet()).plain_state()
    file = tmp_path / f"weights{suffix}"
    save_file(source, file) if suffix == ".safetensors" else torch.save(source, file)
    loaded = build_recognizer(resnet(pretrained=str(file))).plain_state()
    assert all(torch.equal(loaded[k], v) for k, v in source.items())
    with pytest.raises(UserError, match=r"does not match recognizer.backbone: .* is \(16,.*not \(8,"):
        build_recognizer(RecognizerConfig(backbone="timm:resnet10t", embedding=8, pretrained=str(file)))


class Trap:
    """What a pickle could do."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.file,)


def test_weights_files_are_never_unpickled(tmp_path: Path) -> None:
    file, sprung = tmp_path / "trap.pt", tmp_path / "sprung"
    torch.save({"weight": Trap(sprung)}, file)
    with pytest.raises(UserError, match="not a file of plain weights"):
        build_recognizer(resnet(pretrained=str(file)))
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80\x02garbage", b"PK\x03\x04" + bytes(100)])
def test_broken_weights_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="not a file of plain weights"):
        build_recognizer(resnet(pretrained=str(tmp_path / name)))


def test_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="is not a state dict"):
        build_recognizer(resnet(pretrained=str(tmp_path / "list.pt")))
