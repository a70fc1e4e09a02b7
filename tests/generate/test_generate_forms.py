"""Made sets of every form of sparring, with a trained generator and at random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from made_sets import SMALL, make, write_run
from sparface.config import Config
from sparface.errors import UserError
from sparface.generate import run
from sparface.generate.settings import GenerateConfig
from sparface.shards import ShardSet, verify
from sparface.variation import WIDE

Tiny = Callable[..., Config]
RUNS = {
    "learned occlusion": ("--recipe=sparring", "--sparring.form=occlusion"),
    "learned disguise": ("--recipe=sparring", "--sparring.form=disguise"),
    "random occlusion": ("--recipe=sparring", "--sparring.form=occlusion", "--sparring.choice=random"),
    "recognizer alone": ("--recipe=recognizer",),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_set_of_every_form(name: str, tiny: Tiny, faces: Path, tmp_path: Path) -> None:
    trained = write_run(tmp_path / "run", tiny(*RUNS[name]))
    form = {"form": "disguise"} if name == "recognizer alone" else {}
    made = make(trained, faces, tmp_path / "set", factor=2, **form)
    assert made is not None and verify(made.folder) == []
    assert (made.folder / "sheet.png").is_file()
    about = made.manifest.provenance["maker"]
    assert about.startswith("random ") == (not name.startswith("learned"))
    sources = {face.key: face.image for face in ShardSet.open(faces).faces()}
    for face in made.faces():
        assert 0.5 <= face.meta["strength"] <= 1
        changed = (face.image != sources[face.meta["parent"]]).any(2)
        if "occlusion" in name:
            scale, edge = face.meta["strength"] ** 0.5, 3 / 32
            assert 0 < changed.mean() <= (scale * WIDE.width[1] + edge) * (scale * WIDE.height[1] + edge)
        else:
            assert changed.mean() > 0.5
    config = GenerateConfig(**(SMALL | {"factor": 2} | form))
    assert run.verify(run.open_job(trained, faces, made.folder, config), 0.2) > 0


def test_strength_of_a_random_perturbation_is_its_bound(
    sparring_run: Path, faces: Path, tmp_path: Path
) -> None:
    made = make(
        sparring_run,
        faces,
        tmp_path / "set",
        factor=1,
        form="perturbation",
        strength_low=0.2,
        strength_high=0.2,
    )
    assert made is not None
    sources = {face.key: face.image for face in ShardSet.open(faces).faces()}
    largest = 0
    for face in made.faces():
        difference = np.abs(face.image.astype(int) - sources[face.meta["parent"]])
        largest = max(largest, int(difference.max()))
    assert 35 < largest <= 51  # 0.2 of 255


@pytest.mark.parametrize("option", ["targeted", "saliency_floor"])
def test_options_of_a_trained_perturbation(
    option: str, sparring_run: Path, faces: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"--{option}: needs a run with a trained perturbation"):
        make(sparring_run, faces, tmp_path / "set", form="occlusion", **{option: 0.5})  # type: ignore[arg-type]
