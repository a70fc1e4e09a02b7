"""Running the parts here: order, number at once, failures. Short scripts stand for the parts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from study_files import small_study, started, write_study

from sparface.study.folder import StudyFolder
from sparface.study.local import Runner, run_here
from sparface.study.plan import Part

SCRIPT = """
import json, pathlib, sys, time
folder, name, out, words = sys.argv[1:5]
log = open(folder + "/order", "a")
log.write(f"start {name}\\n"); log.flush()
time.sleep(0.2)
if name in sys.argv[5:]:
    sys.exit("sparface: error: no luck")
pathlib.Path(out).parent.mkdir(parents=True, exist_ok=True)
pathlib.Path(out).write_text("{}")
record = pathlib.Path(folder, "parts", name + ".json")
record.parent.mkdir(exist_ok=True)
attempt = {"started": time.time(), "seconds": 0, "cpu_seconds": 1, "code": 0, "processes": 1}
record.write_text(json.dumps({"words": json.loads(words), "attempts": [attempt]}))
log.write(f"end {name}\\n")
"""


class Scripts:
    """Starts a script in place of each part; those in `failing` fail."""

    def __init__(self, folder: StudyFolder) -> None:
        self.folder, self.failing = folder, list[str]()

    def __call__(self, runner: Runner, part: Part) -> subprocess.Popen[bytes]:
        words = json.dumps(self.folder.portable(part))
        arguments = [str(self.folder.path), part.name, str(part.out), words, *self.failing]
        self.folder.log(part).parent.mkdir(exist_ok=True)
        with self.folder.log(part).open("ab") as output:
            return subprocess.Popen([sys.executable, "-S", "-c", SCRIPT, *arguments], stderr=output)

    @property
    def order(self) -> list[list[str]]:
        return [line.split() for line in (self.folder.path / "order").read_text().splitlines()]


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripts:
    file = write_study(tmp_path / "few.yaml", small_study())
    folder = started(file, tmp_path / "out", "faces=f", "others=o")
    found = Scripts(folder)
    monkeypatch.setattr(Runner, "_process", lambda runner, part: found(runner, part))
    return found


def most_at_once(order: list[list[str]]) -> int:
    running = [sum(1 if what == "start" else -1 for what, _ in order[: i + 1]) for i in range(len(order))]
    return max(running)


def test_parts_run_side_by_side_after_what_they_need(scripts: Scripts) -> None:
    assert run_here(scripts.folder, 2)
    order = scripts.order
    assert len(order) == 16 and most_at_once(order) == 2
    for part in scripts.folder.plan.parts.values():
        for need in part.needs:
            assert order.index(["end", need]) < order.index(["start", part.name])
    assert run_here(scripts.folder, 2) and scripts.order == order, "nothing runs again"


def test_a_failed_part_is_reported_and_the_others_go_on(
    scripts: Scripts, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts.failing = ["train.S.plain.16.s0"]
    assert not run_here(scripts.folder, 2)
    said = capsys.readouterr().out
    assert "failed    train.S.plain.16.s0: sparface: error: no luck" in said
    assert "left out  evaluate.S.plain.16.s0.others: needs train.S.plain.16.s0" in said
    assert said.count("finished") == 6
    scripts.failing = []
    assert run_here(scripts.folder, 1), "a second call runs what failed"
    assert "6 of 8 parts are finished already" in capsys.readouterr().out


def test_an_interrupted_study_ends_its_parts(scripts: Scripts, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def endless(runner: Runner, part: Part) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]))
        return started[-1]

    def interrupt(runner: Runner) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "_process", endless)
    monkeypatch.setattr(Runner, "collect", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_here(scripts.folder, 2)
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def test_jobs_of_a_kind_are_submitted_together(scripts: Scripts) -> None:
    from sparface.study.queue import together

    parts: Any = scripts.folder.plan.parts
    groups = together(list(parts.values()))
    assert [len(group) for group in groups] == [4, 1, 1, 1, 1], (
        "trainings together; each evaluation waits for its run"
    )
