"""Trained recognizers from run folders, and the faces that pairs name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_runs import small_config, write_checkpoint
from torch import nn

from sparface.errors import UserError
from sparface.evaluation.embed import (
    PairFaces,
    embed,
    locate,
)
from sparface.models.batchnorm import SplitBatchNorm
from sparface.runs.trained import open_run
from sparface.shards.format import Face
from sparface.shards.set import ShardSet
from sparface.shards.writer import ShardSetWriter


@pytest.mark.parametrize("average", [0, 500])
def test_the_newest_weights_are_loaded_averaged_where_kept(
    tmp_path: Path, faces: ShardSet, average: int
) -> None:
    config = small_config(faces.folder, average)
    write_checkpoint(tmp_path, config, 320)
    networks = write_checkpoint(tmp_path, config, 640)
    trained = open_run(tmp_path)
    assert (trained.images_seen, trained.averaged) == (640, average > 0)
    recognizer = trained.network("recognizer")
    assert not any(isinstance(module, SplitBatchNorm) for module in recognizer.modules())
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(recognizer(x), networks["recognizer"].eval()(x))


def test_what_is_no_run_or_has_no_checkpoint(tmp_path: Path, faces: ShardSet) -> None:
    with pytest.raises(UserError, match=r"not a run \(no config.yaml\)"):
        open_run(tmp_path)
    run = tmp_path / "run"
    write_checkpoint(run, small_config(faces.folder), 320)
    state = run / "checkpoints" / "step-000000320" / "state.json"
    state.write_text(state.read_text()[:-9])
    with pytest.raises(UserError, match=r"no good checkpoint: .*truncated or was altered"):
        open_run(run)
    state.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no checkpoint yet"):
        open_run(run)


def test_a_config_that_does_not_fit_the_checkpoint(tmp_path: Path, faces: ShardSet) -> None:
    config = small_config(faces.folder)
    write_checkpoint(tmp_path, config, 320)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("embedding: 64", "embedding: 32"))
    with pytest.raises(UserError, match=r"its recognizer is .*64\], not .*32\]") as error:
        open_run(tmp_path).network("recognizer")
    assert "\n" not in str(error.value)


class MeanColour(nn.Module):
    """Faces → their mean colour; says in which mode it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Identity().eval()
        self.batches: list[tuple[int, bool]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.batches.append((len(x), self.training))
        return self.scale * x.mean((2, 3))


def test_embedding_goes_in_batches_in_eval_mode_and_leaves_the_modes_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    network = MeanColour()
    found = embed(network, ((f"face {i}", image) for i, image in enumerate(images)), batch_size=3)
    assert network.batches == [(3, False), (3, False), (1, False)]
    assert network.training and not network.frozen.training
    for i, image in enumerate(images):
        np.testing.assert_allclose(found[f"face {i}"], image.mean((0, 1)) / 255, rtol=1e-5)


def test_faces_are_found_by_place_source_and_key(faces: ShardSet) -> None:
    wanted = list(faces.faces())[17]
    names = ["#17", wanted.source, wanted.key]
    assert locate(faces, names) == dict.fromkeys(names, 17)
    stream = PairFaces(faces, [*names, "#3"])
    found = dict(stream)
    assert len(stream) == 2 and sorted(found) == [3, 17]
    np.testing.assert_array_equal(found[17], wanted.image)
    assert stream.methods == {"drawn": 2}
    assert set(stream.embed(MeanColour())) == {*names, "#3"}


def test_missing_faces_are_counted_and_named(faces: ShardSet) -> None:
    wanted = ["#0", "Ann/Ann_0001", "Bob/Bob_0001", "#9999", "Cid/Cid_0001"]
    with pytest.raises(UserError, match=r"4 of the 5 faces .* missing: Ann/Ann_0001, Bob/Bob_0001, #9999, …"):
        locate(faces, wanted)


def test_one_name_for_two_faces_is_refused(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with ShardSetWriter(tmp_path / "set", name="set", size=(8, 8)) as writer:
        for suffix in ("jpg", "png"):
            writer.add(Face(f"ann-{suffix}", image, "Ann", f"Ann/Ann_0001.{suffix}", {}))
    with pytest.raises(UserError, match="Ann/Ann_0001 is ambiguous"):
        locate(ShardSet.open(tmp_path / "set"), ["Ann/Ann_0001"])
    assert locate(ShardSet.open(tmp_path / "set"), ["ann-png"]) == {"ann-png": 1}


def test_a_generator_of_another_form_is_refused(tmp_path: Path) -> None:
    """Its weights would fit, but what it makes would be other faces."""
    write_checkpoint(tmp_path / "new", small_config(tmp_path), 100)
    open_run(tmp_path / "new").network("generator")
    write_checkpoint(tmp_path / "old", small_config(tmp_path), 100, form="clamp")
    with pytest.raises(UserError, match=r"step-000000100: its generator is \['clamp'"):
        open_run(tmp_path / "old").network("generator")
