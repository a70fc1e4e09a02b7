"""Weights files: what is read, what is refused, and how they fit a network."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sparface.errors import UserError
from sparface.models.batchnorm import split_batchnorm
from sparface.models.recognizer import RecognizerConfig, build_recognizer
from sparface.models.weights import load_into, read_weights_file
from sparface.recipes.recognizer import FINISHED_RECOGNIZER
from traps import Trap


def network(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))


def test_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"could not be downloaded .*no network.*give the path of") as caught:
        read_weights_file("vggface2")
    assert "\n" not in str(caught.value)


def test_published_weights_come_from_facenet_pytorchs_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They have a classifier, which no recognizer needs."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(0)
    published = build_recognizer(RecognizerConfig()).plain_state()
    classifier = {"logits.weight": torch.zeros(8631, 512), "logits.bias": torch.zeros(8631)}
    torch.save(published | classifier, tmp_path / "checkpoints" / "20180402-114759-vggface2.pt")
    loaded = build_recognizer(RecognizerConfig())
    load_into(loaded, FINISHED_RECOGNIZER.imported(read_weights_file("vggface2")), "vggface2")
    assert all(torch.equal(loaded.plain_state()[key], value) for key, value in published.items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_files(tmp_path: Path, suffix: str) -> None:
    source, file = network(), tmp_path / f"weights{suffix}"
    state = source.state_dict()
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    loaded = network()
    load_into(loaded, read_weights_file(str(file)), str(file))
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in state.items())
    with pytest.raises(
        UserError, match=r"does not match .*: 0.weight is \(4, 3, 3, 3\), not \(8, 3, 3, 3\) \(6 t"
    ):
        load_into(network(8), read_weights_file(str(file)), str(file))


def test_missing_and_unknown_weights() -> None:
    state = network().state_dict()
    del state["1.num_batches_tracked"]  # older files have none
    load_into(network(), state, "file")
    with pytest.raises(UserError, match=r"file: does not match .*: 2.weight is \(1,\), not missing"):
        load_into(network(), {**state, "2.weight": torch.zeros(1)}, "file")
    del state["0.bias"]
    with pytest.raises(UserError, match=r"file: does not match .*: 0.bias is missing, not \(4,\)"):
        load_into(network(), state, "file")


def test_both_norms_of_a_split_network_start_from_the_plain_one() -> None:
    source, split = network(), split_batchnorm(network())
    nn.init.normal_(source[1].weight)
    load_into(split, source.state_dict(), "file")
    for norm in (split[1].main, split[1].auxiliary):
        assert torch.equal(norm.weight, source[1].weight)
    assert torch.equal(split[0].weight, source[0].weight)


def test_weights_files_are_never_unpickled(tmp_path: Path) -> None:
    file, sprung = tmp_path / "trap.pt", tmp_path / "sprung"
    torch.save({"weight": Trap(sprung)}, file)
    with pytest.raises(UserError, match="not a file of plain weights"):
        read_weights_file(str(file))
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x80\x02garbage", b"PK\x03\x04" + bytes(100)])
def test_broken_weights_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="not a file of plain weights"):
        read_weights_file(str(tmp_path / name))


def test_a_file_of_something_else(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match="is not a state dict"):
        read_weights_file(str(tmp_path / "list.pt"))
    with pytest.raises(UserError, match=r"none.pt: no such file; give a run folder"):
        read_weights_file("none.pt")
