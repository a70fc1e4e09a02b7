"""A study from its file to its report: parts with dependencies, restarts, failures, tables and verdicts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from study_files import small_study, started, write_study

from sparface import cli
from sparface.errors import UserError
from sparface.study.folder import StudyFolder
from sparface.study.page import write_report


@pytest.fixture(scope="module")
def finished(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A study whose parts were run in this process, as the process of a part does."""
    folder = tmp_path_factory.mktemp("studies")
    file = write_study(folder / "small.yaml", small_study())
    study = started(file, folder / "out", f"faces={faces}", f"others={faces}")
    study.require_sound(cli.checked)
    for name in study.plan.parts:
        assert study.run(name, cli.main, cli.checked) == 0
    write_report(study)
    return study


@pytest.fixture
def moved(finished: StudyFolder, tmp_path: Path) -> Path:
    """The folder of the finished study, moved."""
    return Path(shutil.copytree(finished.path, tmp_path / "moved"))


def missing(folder: Path) -> set[str]:
    study = StudyFolder.open(folder)
    return study.plan.parts.keys() - study.done().keys()


def test_the_parts_are_trainings_and_their_evaluations(finished: StudyFolder) -> None:
    parts = finished.plan.parts
    assert len(parts) == 8
    train, evaluate = parts["train.S.varied.16.s1"], parts["evaluate.S.varied.16.s1.others"]
    assert evaluate.needs == (train.name,) and not train.needs
    assert {"--training.seed=1", "--data.variation=classic", "--schedule.images=16"} <= set(train.words)
    assert not missing(finished.path)
    assert all((record := finished.record(part)) and record.cpu_seconds > 0 for part in parts.values())


def test_the_tables_hold_what_was_measured(finished: StudyFolder) -> None:
    accuracy: dict[str, list[float]] = {"plain": [], "varied": []}
    for file in sorted((finished.path / "figures").iterdir()):
        accuracy[file.name.split(".")[1]].append(json.loads(file.read_text())["figures"]["accuracy"])
    page = (finished.path / "report.html").read_text()
    text = (finished.path / "evidence.md").read_text()
    for values in accuracy.values():
        mean = f"{100 * np.mean(values):.1f} % ± {100 * np.std(values, ddof=1):.1f}"
        assert len(values) == 2 and mean in page and mean in text
    gain = json.loads((finished.path / "evidence.json").read_text())["S"]["gain_over_recognizer"]
    assert np.isclose(gain["mean"], np.subtract(accuracy["varied"], accuracy["plain"]).mean())
    assert ">varied<" in (finished.path / "runs.html").read_text().replace("S.varied.16.s0", "varied")


def test_the_terminal_says_what_the_page_says(
    finished: StudyFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", str(finished.path)]) == 0
    said, page = capsys.readouterr().out, (finished.path / "evidence.md").read_text()
    for arm in ("plain", "varied"):
        (line,) = [line for line in said.splitlines() if line.split()[:1] == [arm]]
        figure = line.partition("16  ")[2]
        assert "±" in figure and figure in page.replace("\\", "")
    (outcome,) = [line.partition(":")[0] for line in said.splitlines() if line.endswith(": it helps")]
    assert f"| it helps | {outcome} |" in page
    assert ("chance may explain" in said) == (outcome == "undecided")
    assert str(finished.path / "report.html") in said and "mlflow ui" not in said, "nothing was tracked"


def test_a_study_can_be_moved(moved: Path) -> None:
    assert not missing(moved)


def test_the_last_job_of_a_study_writes_its_report(moved: Path) -> None:
    pages = ("report.html", "runs.html", "evidence.md", "evidence.json")
    for name in pages:
        (moved / name).unlink()
    assert cli.main(["study", str(moved), "--part", "report"]) == 0
    assert all((moved / name).is_file() for name in pages)


@pytest.mark.parametrize("damage", ["deleted", "failed", "not JSON"])
def test_a_part_without_a_whole_result_runs_again_and_so_does_what_needs_it(moved: Path, damage: str) -> None:
    train, record = moved / "runs/S.plain.16.s0", moved / "parts/train.S.plain.16.s0.json"
    if damage == "deleted":
        shutil.rmtree(train)
    elif damage == "failed":
        content = json.loads(record.read_text())
        content["attempts"].append(content["attempts"][0] | {"code": 1})
        record.write_text(json.dumps(content))
    else:
        record.write_text(record.read_text()[:40])
    assert missing(moved) == {"train.S.plain.16.s0", "evaluate.S.plain.16.s0.others"}


def test_an_evaluation_older_than_its_run_is_made_again(moved: Path) -> None:
    record = moved / "parts/train.S.plain.16.s0.json"
    content = json.loads(record.read_text())
    content["attempts"].append(content["attempts"][0] | {"started": time.time()})
    record.write_text(json.dumps(content))
    assert missing(moved) == {"evaluate.S.plain.16.s0.others"}


def test_changed_settings_are_refused(finished: StudyFolder, moved: Path, tmp_path: Path) -> None:
    study = small_study()
    study["experiments"]["S"]["arms"]["plain"]["optimizer.learning_rate"] = 0.5
    changed = StudyFolder.start(write_study(tmp_path / "small.yaml", study), moved)
    with pytest.raises(UserError, match=r"S\.plain\.16\.s0: settings changed .*learning_rate=0.5"):
        changed.require_sound(cli.checked)


@pytest.mark.parametrize(
    "wrong", [{"optimizer.learnin_rate": 0.5}, {"recognizer.backbone": "facenet"}], ids=str
)
def test_a_wrong_setting_is_named_before_anything_starts(
    wrong: dict[str, object], faces: Path, tmp_path: Path
) -> None:
    study = small_study()
    study["experiments"]["S"]["arms"]["plain"] |= wrong
    file = write_study(tmp_path / "wrong.yaml", study)
    code = cli.main(
        [
            "study",
            str(file),
            "--out",
            str(tmp_path / "out"),
            f"--data=faces={faces}",
            f"--data=others={faces}",
        ]
    )
    assert code == 2 and not (tmp_path / "out").exists()


def test_a_set_that_was_written_but_not_recorded_is_taken(faces: Path, tmp_path: Path) -> None:
    tree = small_study(seeds=1)
    tree["prepare"] = {"few": "shards subset {faces} {out} --people 4 --photos 3"}
    tree["experiments"]["S"]["arms"]["plain"]["data.shards"] = "{few}"
    file = write_study(tmp_path / "small.yaml", tree)
    study = started(file, tmp_path / "out", f"faces={faces}", f"others={faces}")
    for _ in range(2):
        assert study.run("prepare.few", cli.main, cli.checked) == 0
        (study.path / "parts/prepare.few.json").unlink()


def test_a_killed_study_goes_on_where_it_was(faces: Path, tmp_path: Path) -> None:
    tree, out = small_study(seeds=1, images=320, claims=[]), tmp_path / "out"
    del tree["experiments"]["S"]["arms"]["varied"], tree["experiments"]["S"]["gains"]
    file = write_study(tmp_path / "small.yaml", tree)
    words = ["study", str(file), "--out", str(out), f"--data=faces={faces}", f"--data=others={faces}"]
    with (tmp_path / "log").open("wb") as log:
        study = subprocess.Popen([sys.executable, "-m", "sparface", *words], stdout=log, stderr=log)
    checkpoints = out / "runs/S.plain.320.s0/checkpoints"
    wait_until(lambda: any(checkpoints.glob("step-*")), study)
    study.kill()
    wait_until(lambda: not [one for one in psutil.process_iter(["cmdline"]) if str(out) in str(one.info)])
    assert not (out / "parts/train.S.plain.320.s0.json").exists() and cli.main(words) == 0
    assert "resuming at" in (out / "logs/train.S.plain.320.s0.log").read_text()
    assert not missing(out) and "2 of 2 parts finished" in (out / "report.html").read_text()


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.1)
