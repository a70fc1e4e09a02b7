"""Broken and hostile inputs, hundreds of kinds: one line each, within bounds, and nothing else happens."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import role_inputs
import run_files
import study_inputs
import torch
import tracked_inputs
from command_inputs import SOUND_CONFIG
from gallery_inputs import IDENTIFY, NAME, write_gallery
from harness import Case, problems, run
from inputs import cases
from PIL import Image

from listening import listening
from sparface import settings
from sparface.faces import draw_set
from sparface.recipes import build_recipe
from sparface.runs.checkpoint import CheckpointStore

KINDS = 300


@pytest.fixture(scope="module")
def listener() -> Iterator[tuple[str, list[bytes]]]:
    with listening() as (address, received):
        yield address, received


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything, none of it broken."""
    torch.set_num_threads(1)
    work = tmp_path_factory.mktemp("sound") / "work"
    draw_set(work / "faces", 12, 6, size=32, seed=0)
    (work / "photos/a").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(work / "photos/a/1.jpg")
    (work / "photos/list.csv").write_text("path,identity\na/1.jpg,a\n")
    (work / "pairs.txt").write_text("1\n")
    (work / "given.yaml").write_text(SOUND_CONFIG)
    config = settings.load(
        work / "given.yaml", ["--recipe=sparring", "--generator.width=4", "--generator.blocks=1"]
    )
    recipe = build_recipe(config, 12)
    networks = recipe.networks
    (work / "run").mkdir()
    settings.save(config, work / "run/config.yaml")
    store = CheckpointStore(work / "run/checkpoints")
    states = {name: network.state_dict() for name, network in networks.items()}
    identity = json.dumps(recipe.identity(config))
    store.save(100, {"networks": states}, {"template": "arcface"}, identity=identity)
    store.finish()
    backbone = networks["recognizer"].plain_state()
    torch.save(backbone, work / "weights.pt")
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous() for key, tensor in backbone.items()}, work / "weights.safetensors")
    (work / "jobs/a").mkdir(parents=True)
    tracked_inputs.write_tracked(work)
    write_gallery(work)
    study_inputs.write_study(work)
    role_inputs.write_sound(work)
    return work


def preload() -> None:
    """Import what the verbs would, once, before the forks."""
    import mlflow  # noqa: F401
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401

    import sparface.cluster
    import sparface.evaluation.identify
    import sparface.export
    import sparface.faces.align
    import sparface.gallery.identify
    import sparface.generate.run
    import sparface.report.compare
    import sparface.study.page
    import sparface.study.tracking
    import sparface.training.loop

    sparface.report.charts.over_training([sparface.report.charts.Line("x", 0, [0, 1], [0, 1])])  # fonts, too


def chosen(table: list[Case]) -> list[Case]:
    """`KINDS` that must be refused and a tenth of the harmless ones, always the same, or all of them where
    the environment says `SPARFACE_HOSTILE=all` (`make hostile`), which takes some minutes."""
    if os.environ.get("SPARFACE_HOSTILE") == "all":
        return table
    draw, broken = random.Random(0), [case for case in table if case.code]
    harmless = [case for case in table if not case.code]
    return draw.sample(broken, KINDS) + draw.sample(harmless, len(harmless) // 10)


@pytest.mark.timeout(3600 if os.environ.get("SPARFACE_HOSTILE") == "all" else 1200)
def test_hostile_inputs(sound: Path, tmp_path: Path, listener: tuple[str, list[bytes]]) -> None:
    preload()
    address, received = listener
    every = chain(cases(address), run_files.cases(), tracked_inputs.cases(), study_inputs.cases(address))
    table = chosen(list({case.name: case for case in every}.values()))
    broken = [case for case in table if case.code]
    failed = []
    for number, case in enumerate(table):
        outcome = run(case, sound, tmp_path / str(number))
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)  # all together would fill a disk
        found = problems(case, outcome)
        if received:
            found.append(f"somebody was called: {received}")
            received.clear()
        if found:
            failed.append(f"{case.name}: {'; '.join(found)}")
    print(f"{len(broken)} kinds of hostile inputs, and {len(table) - len(broken)} that are harmless")
    assert not failed, f"{len(failed)} of {len(table)}:\n" + "\n".join(failed)


CONTROLS = {
    "look": study_inputs.LOOK,
    "go on": study_inputs.GO_ON,
    "identify": NAME,
    "conditions": IDENTIFY,
    "show": ["shards", "show", "faces"],
    "evaluate": ["evaluate", "verification", "--checkpoint", "run", "--shards", "faces"],
    "align": ["align", "photos", "out", "--already-cropped", "--size", "32", "--workers", "1"],
    "train": ["train", "--config", "given.yaml", "--training.start_from=weights.pt", "--out", "out"],
    "purify": role_inputs.CLEAN,
    "purified": [*role_inputs.JUDGE, role_inputs.FILE],
    "embed": role_inputs.EMBED,
    "make": role_inputs.MAKE,
    "generate": ["generate", "--checkpoint", "run", "--shards", "faces", "--out", "out", "--factor", "1"],
}


@pytest.mark.parametrize("name", CONTROLS)
def test_the_sound_inputs_are_sound(name: str, sound: Path, tmp_path: Path) -> None:
    """Else the hostile ones would be refused for another reason."""
    preload()
    case = Case(name, lambda work: CONTROLS[name], code=0)
    outcome = run(case, sound, tmp_path / "root")
    assert outcome.code == 0, outcome.err
