"""What other programs import from `sparface`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from facenet_pytorch import InceptionResnetV1

import sparface
from portraits import portrait
from sparface.kernels.whiten import whiten

Tiny = Callable[..., sparface.Config]


@pytest.fixture(scope="module")
def run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api") / "run"
    settings = ("--recipe=sparring", "--schedule.images=16", "--generator.noise=0.5")
    assert sparface.train(tiny(*settings), folder)
    return folder


@pytest.fixture(scope="module")
def batch(faces: Path) -> torch.Tensor:
    """Drawn faces, uint8 [8,3,32,32]."""
    shards = sparface.open_shards(faces)
    stacked = np.stack([face.image for face in islice(shards.faces(), 8)])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2)


def test_all_names_are_there_and_importing_the_package_waits_for_no_torch() -> None:
    for name in sparface.__all__:
        assert getattr(sparface, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        sparface.nothing  # noqa: B018
    code = "import sparface, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_stream_has_groups_of_one_person_and_goes_on_anywhere(faces: Path) -> None:
    shards = sparface.open_shards(faces)
    known = {face.image.tobytes(): face.identity for face in shards.faces()}
    names = list(shards.identities)
    sizes: dict[str, Any] = {"identities_per_batch": 4, "images_per_identity": 2, "workers": 0}
    first, second = islice(sparface.stream(shards, **sizes), 2)
    for image, label in zip(first.images, first.labels.tolist(), strict=True):
        assert known[image.permute(1, 2, 0).numpy().tobytes()] == names[label]
    assert [len(set(group)) for group in first.labels.view(4, 2).tolist()] == [1] * 4
    later = next(sparface.stream(shards, **sizes, images_seen=8))
    assert torch.equal(later.images, second.images) and torch.equal(later.positions, second.positions)


def test_a_recognizer_from_a_run_an_export_and_onnx_embeds_the_same(run: Path, batch: torch.Tensor) -> None:
    from sparface.export import export

    export(run, run.parent / "exported")
    sources = [run, run.parent / "exported", run.parent / "exported/recognizer.onnx"]
    sources.append(run.parent / "exported/recognizer.safetensors")
    embeddings = [sparface.embed(sparface.load_recognizer(source), batch) for source in sources]
    assert embeddings[0].shape == (8, 32) and embeddings[0].dtype == torch.float32
    torch.testing.assert_close(embeddings[0].norm(dim=1), torch.ones(8))
    for other in embeddings[1:]:
        torch.testing.assert_close(other, embeddings[0], atol=2e-5, rtol=0)
    floats = sparface.embed(sparface.load_recognizer(run), batch.float() / 255, batch_size=3)
    torch.testing.assert_close(floats, embeddings[0], atol=2e-5, rtol=0)


def test_weights_of_facenet_pytorch(tmp_path: Path) -> None:
    published = InceptionResnetV1(pretrained=None).eval()
    torch.save(published.state_dict(), tmp_path / "facenet.pt")
    x = torch.rand(2, 3, 80, 80)
    with torch.no_grad():
        expected = published(whiten(x))
    found = sparface.embed(sparface.load_recognizer(tmp_path / "facenet.pt"), x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_sparring_faces_stay_within_epsilon_and_follow_the_seed(run: Path, batch: torch.Tensor) -> None:
    generator = sparface.load_generator(run)
    made = sparface.synthesize(generator, batch, seed=1)
    change = (made - batch.float() / 255).abs()
    assert made.shape == batch.shape and float(made.min()) >= 0 and float(made.max()) <= 1
    assert 1e-4 < float(change.max()) <= generator.epsilon + 1e-6
    assert torch.equal(made, sparface.synthesize(generator, batch, seed=1))
    assert not torch.equal(made, sparface.synthesize(generator, batch, seed=2))
    torch.testing.assert_close(made, sparface.synthesize(generator, batch, seed=1, batch_size=3))


def test_photos_become_faces_or_are_named(tmp_path: Path) -> None:
    photo = portrait(0, 0)
    assert sparface.align_photos([photo], size=64, already_cropped=True).shape == (1, 3, 64, 64)
    blank = np.full((120, 120, 3), 128, np.uint8)
    with pytest.raises(sparface.UserError, match=r"^photo 0: no face found"):
        sparface.align_photos([blank])
    with pytest.raises(sparface.UserError, match=r"none\.jpg: missing"):
        sparface.align_photos([tmp_path / "none.jpg"])
