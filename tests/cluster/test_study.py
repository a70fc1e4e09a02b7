"""A study on the testbed: aligned, trained, evaluated and reported, though a node fails on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cluster_testbed import Testbed, queue, wait_until
from PIL import Image

from sparface.faces.drawn import draw, person, scene
from tiny_config import TINY

pytestmark = pytest.mark.timeout(900)
SEEDS = 2
RUNS = [f"S.recognizer.{TINY['schedule.images']}.s{seed}" for seed in range(SEEDS)]
PARTS = 1 + 2 * SEEDS


def write_study(file: Path) -> Path:
    train = {key: value for key, value in TINY.items() if key != "schedule.images"}
    experiment = {
        "config": "smoke",
        "train": {**train, "data.shards": "{people}", "tracking.enabled": False},
        "seeds": SEEDS,
        "images": TINY["schedule.images"],
        "arms": {"recognizer": {}},
        "evaluate": {"people": "verification --shards {people}"},
    }
    tree = {
        "data": {"photos": "a folder per person"},
        "prepare": {"people": "align {photos} {out} --size 32 --already-cropped --workers 1"},
        "experiments": {"S": experiment},
    }
    file.write_text(yaml.safe_dump(tree))
    return file


def study(file: Path, out: Path, *options: str) -> str:
    """Queue what is missing; what the command says."""
    command = [sys.executable, "-m", "sparface", "study", str(file), "--out", str(out), "--slurm", *options]
    command += ["--tasks-per-node=1", "--time=20"]
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
    file = write_study(tmp_path / "study.yaml")
    said = study(file, out, f"--data=photos={photos}")
    assert said.count("submitted") == PARTS + 1
    wait_until("a checkpoint", lambda: any(out.glob("runs/*/checkpoints/step-*")), 120)
    testbed.verb("kill-node", "node1")
    time.sleep(5)
    assert "submitted" not in study(file, out), "what is queued or running is not submitted again"
    testbed.verb("restore-node", "node1")
    wait_until("the report", (out / "report.html").is_file, 240)
    page = (out / "report.html").read_text()
    assert f"{PARTS} of {PARTS} parts finished" in page and ">recognizer<" in page
    for run in RUNS:
        figures = json.loads((out / "figures" / f"{run}.people.json").read_text())
        assert figures["provenance"]["images_seen"] == TINY["schedule.images"]
    wait_until("all jobs to end", lambda: not queue(), 60)
    said = study(file, out)
    assert "submitted" not in said and said.count("finished") == PARTS
