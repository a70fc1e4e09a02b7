"""A study on the testbed: aligned, trained, evaluated and compared, though a node fails on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster_testbed import Testbed, queue, wait_until
from PIL import Image

from sparface.faces.drawn import draw, person, scene
from tiny_config import TINY

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[2]
SEEDS = 2
RUNS = [f"recognizer-{seed}" for seed in range(SEEDS)]


def launch(out: Path, photos: Path) -> str:
    """Run the launcher; what it says."""
    train = " ".join(f"--{key}={value}" for key, value in TINY.items() if key != "recipe")
    command = [sys.executable, str(ROOT / "launch" / "study.py"), f"--study={ROOT}/launch/demo.yaml"]
    command += [
        f"--out={out}",
        "--shards=null",
        f"--photos={photos}",
        "--align=--size 32 --already-cropped --workers 1",
    ]
    command += ["--recipes=[recognizer]", f"--seeds={SEEDS}", f"--train={train}"]
    command += [f"--evaluate=--shards {out}/shards", "--train_on.tasks_per_node=1", "--train_on.time=20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_photos(folder: Path) -> Path:
    for identity in range(12):
        (folder / f"person-{identity:02d}").mkdir(parents=True)
        for number in range(6):
            face = draw(person(0, identity), scene(0, identity, number), 32)
            Image.fromarray(face).save(folder / f"person-{identity:02d}" / f"{number}.png")
    return folder


def test_a_study_ends_with_its_report_though_a_node_fails(testbed: Testbed, tmp_path: Path) -> None:
    photos, out = write_photos(tmp_path / "photos"), tmp_path / "study"
    said = launch(out, photos)
    assert said.count("submitted") == 1 + SEEDS + SEEDS + 1
    wait_until("a checkpoint", lambda: any(out.glob("runs/*/checkpoints/step-*")), 120)
    testbed.verb("kill-node", "node1")
    time.sleep(5)
    assert "submitted" not in launch(out, photos), "what is queued or running is not submitted again"
    testbed.verb("restore-node", "node1")
    wait_until("the report", (out / "report.html").is_file, 240)
    page = (out / "report.html").read_text()
    assert all(f">{run}<" in page for run in RUNS) and "Over seeds" in page
    for run in RUNS:
        figures = json.loads((out / "figures" / f"{run}.json").read_text())
        assert figures["provenance"]["images_seen"] == TINY["schedule.images"]
    wait_until("all jobs to end", lambda: not queue(), 60)
    said = launch(out, photos)
    assert "submitted" not in said and said.count("finished") == 1 + SEEDS + SEEDS + 1
