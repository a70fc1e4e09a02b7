"""SLURM arrays make sets and attack them: the same bytes as one process alone, though a node dies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_testbed import Testbed, command, queue, wait_until

import made_sets
from sparface import cli
from sparface.cli import job_command
from sparface.cluster import Resources, repeated, submit
from sparface.cluster.jobs import read
from sparface.config import Config

pytestmark = pytest.mark.timeout(600)
FACTOR = 40


def test_an_array_makes_the_same_bytes_though_a_node_dies(
    testbed: Testbed, faces: Path, tiny: Callable[..., Config]
) -> None:
    run = made_sets.write_run(testbed.folder / "run", tiny("--recipe=sparring"))
    out = testbed.folder / "array" / "set"
    words = made_sets.command(run, faces, out, f"--factor={FACTOR}", "--workers=1", "--part={task}/{tasks}")
    asked = Resources(nodes="1", cpus_per_task=3, time="20")  # too many for two tasks on one node
    submit([job_command(each) for each in repeated(words[3:], 2)], asked, logs=testbed.folder / "jobs")
    wait_until("the first shards", lambda: len(list(out.glob("*.tar"))) > 5, 120, every=0.05)
    testbed.verb("kill-node", "node2")
    wait_until("the loss", lambda: "node2" not in command("squeue", "-h", "-o", "%N").stdout, 90)
    assert not (out / "manifest.json").exists()
    testbed.verb("restore-node", "node2")
    wait_until("the end", lambda: not queue(), 300)
    rows = list(read(testbed.folder / "jobs"))
    assert [row.state for row in rows] == ["COMPLETED"] * 2 and sorted(row.starts for row in rows) == [1, 2]
    alone = made_sets.make(run, faces, testbed.folder / "alone" / "set", factor=FACTOR)
    assert alone is not None and made_sets.digests(out) == made_sets.digests(alone.folder)


def test_an_array_attacks_a_set(testbed: Testbed, faces: Path, tiny: Callable[..., Config]) -> None:
    run = made_sets.write_run(testbed.folder / "attacked-run", tiny())
    words = ["attack", "--checkpoint", str(run), "--shards", str(faces), "--attack", "pgd", "--steps", "3"]
    words += ["--shard_samples", "20", "--batch_size", "8"]
    out, alone = (testbed.folder / name / "attacked" for name in ("array", "alone"))
    parts = repeated([*words, "--out", str(out), "--part={task}/{tasks}"], 2)
    asked = Resources(nodes="1", cpus_per_task=1, time="20")
    submit([job_command(part) for part in parts], asked, logs=testbed.folder / "attack-jobs")
    wait_until("the end", lambda: not queue(), 300)
    assert [row.state for row in read(testbed.folder / "attack-jobs")] == ["COMPLETED"] * 2
    assert cli.main([*words, "--out", str(alone)]) == 0
    assert made_sets.digests(out) == made_sets.digests(alone)
