"""The command line: help, exit codes, one-line errors, and the way from photos to a report."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from sparface.cli import main
from sparface.faces import drawn_faces
from sparface.runs.record import read_metrics
from tiny_config import TINY

OPTIONS = [f"--{key}={value}" for key, value in TINY.items()]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must end with exit code 2; its one line of error."""
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("sparface: error: ")
    return lines[-1]


def test_help_reads_like_a_table_of_contents(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for verb in ("align", "shards", "train", "evaluate", "compare", "export", "demo", "doctor"):
        assert f"\n    {verb} " in text


def test_help_and_mistakes_are_answered_before_torch_is_imported() -> None:
    code = "import sys; from sparface.cli import parse; parse(['jobs']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_reader_that_leaves_ends_the_command_without_a_word(tmp_path: Path) -> None:
    """As in `sparface jobs | head`."""
    command = [sys.executable, "-m", "sparface", "jobs", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (141, "")


def test_ctrl_c_in_align_is_one_line(tmp_path: Path) -> None:
    """A terminal sends it to the workers, too, here while they start."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), np.uint8)
    (tmp_path / "photos/a").mkdir(parents=True)
    for number, photo in enumerate(noise):
        Image.fromarray(photo).save(tmp_path / f"photos/a/{number}.png")
    arguments = ["align", str(tmp_path / "photos"), str(tmp_path / "out"), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sparface", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # a shell has what it runs in the background ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while workers_of(process.pid) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    lines = [line for line in errors.splitlines() if line.strip() and "photos/s" not in line]
    assert lines == ["sparface: error: interrupted"]


def workers_of(pid: int) -> int:
    return sum("spawn_main" in " ".join(p.cmdline()) for p in psutil.Process(pid).children())


def test_doctor_names_what_is_missing_for_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "ok  torch" in text and "mlflow target" in text
    assert all(line[:2] in ("ok", "--") for line in text.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "invalid choice: 'trian'"),
        (["train", "--data.wokers", "3"], "did you mean data.workers?"),
        (["train", "--config", "smoek", "--out", "x"], "did you mean smoke?"),
        (["train", "--config", "smoke", "--data.variation", "wild", "--out", "x"], "data.variation: wild"),
        (["align", "/nowhere", "out"], "/nowhere"),
        (["shards", "verify", "/nowhere"], "/nowhere"),
        (["shards", "show", "/nowhere"], "/nowhere"),
        (["evaluate", "verification", "--checkpoint", "/nowhere", "--shards", "/nowhere"], "/nowhere"),
        (["compare", "/nowhere", "--out", "report.html"], "/nowhere"),
        (["export", "/nowhere", "out"], "/nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--data.shards=/nowhere", "/nowhere"),
        ("--size=64", "but size is 64"),
        ("--recognizer.backbone=timm:resnet5000", "timm has no model resnet5000"),
        ("--training.start_from=/nowhere.pt", "/nowhere.pt: no such file"),
        ("--training.device=cuda", "training.device: cuda"),
        ("--data.lanes=2", "data.lanes: 2 is not allowed"),
        ("--training.strategy=ddp", "torchrun"),
    ],
)
def test_a_training_that_cannot_work_leaves_no_run(
    override: str, message: str, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = [*OPTIONS, f"--data.shards={faces}", override]
    assert message in fails(capsys, "train", "--config", "smoke", *options, "--out", run)
    assert not run.exists()


@pytest.fixture
def damaged(faces: Path, tmp_path: Path) -> Path:
    """A shard set with one flipped byte inside a picture."""
    shutil.copytree(faces, tmp_path / "damaged")
    tar = next((tmp_path / "damaged").glob("*.tar"))
    tar.chmod(0o644)
    data = bytearray(tar.read_bytes())
    data[700] ^= 0xFF
    tar.write_bytes(data)
    return tmp_path / "damaged"


def test_a_flipped_byte_is_found(damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tar = next(damaged.glob("*.tar")).name
    assert main(["shards", "verify", str(damaged)]) == 2
    assert tar in capsys.readouterr().err
    options = [*OPTIONS, f"--data.shards={damaged}", f"--out={tmp_path / 'run'}"]
    assert tar in fails(capsys, "train", "--config", "smoke", *options)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_from_photos_to_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """align → shards → train both recipes → evaluate → compare → export, by the command line alone."""
    photos = tmp_path / "photos"
    for face in drawn_faces(20, 4, size=64, seed=3):
        file = photos / face.identity / f"{face.key}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.pad(face.image, ((20, 20), (20, 20), (0, 0)), mode="edge")).save(file)
    faces = tmp_path / "shards" / "faces"
    size = ["--size", "32", "--already-cropped", "--workers", "1"]
    assert main(["align", str(photos), str(faces), *size]) == 0
    assert main(["shards", "show", str(faces)]) == 0
    assert main(["shards", "verify", str(faces)]) == 0
    assert main(["shards", "sheet", str(faces), "--out", str(tmp_path / "sheet.png")]) == 0
    runs = [tmp_path / "runs" / recipe for recipe in ("recognizer", "sparring")]
    for run in runs:
        data = [f"--recipe={run.name}", f"--data.shards={faces}", f"--validation.shards={faces}"]
        more = ["--schedule.images=32", "--tracking.enabled=true", "--validation.every=32"]
        assert main(["train", "--config", "smoke", *OPTIONS, *data, *more, "--out", str(run)]) == 0
        figures = tmp_path / f"{run.name}.json"
        where = ["--checkpoint", str(run), "--shards", str(faces), "--json", str(figures)]
        assert main(["evaluate", "verification", *where]) == 0
        assert 0 <= json.loads(figures.read_text())["figures"]["accuracy"] <= 1
        assert "validation/accuracy" in read_metrics(run)[-2]
        assert "evaluation/faces/accuracy" in read_metrics(run)[-1]
    report = tmp_path / "report.html"
    assert main(["compare", *map(str, runs), "--out", str(report)]) == 0
    assert "sparring" in report.read_text()
    assert (tmp_path / "runs" / "mlflow.db").is_file()
    assert main(["export", str(runs[1]), str(tmp_path / "weights")]) == 0
    assert (tmp_path / "weights" / "recognizer.safetensors").is_file()
    capsys.readouterr()
    assert main(["train", "--config", "smoke", *OPTIONS, *data, *more, "--out", str(run)]) == 0
    assert "nothing to do" in capsys.readouterr().out
