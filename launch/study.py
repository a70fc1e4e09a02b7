"""Run a study as dependent SLURM jobs: align → train (recipes × seeds) → evaluate → compare.

    python launch/study.py --study launch/demo.yaml --out studies/demo

Run it again at any time: finished parts are skipped, queued and running jobs are kept, and only missing parts
are submitted. Every option of a study can also be given on the command line.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import ActionConfigFile, ArgumentParser

from sparface.cli import job_command
from sparface.cluster import Resources, progress_of, slurm, submit
from sparface.errors import UserError
from sparface.files import write_whole
from sparface.text import printable, without_login

ACTIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED", "PREEMPTED")
"""States of an unfinished job."""


@dataclass
class Study:
    """The settings of a study: data, recipes, seeds, evaluation and resources."""

    out: Path
    """Folder for all results of the study."""
    config: str
    """A config file, or the name of a packaged config."""
    photos: Path | None = None
    """Training photos, with one folder per identity. Give this or `shards`."""
    shards: Path | None = None
    """Shard set of aligned training faces. Give this or `photos`."""
    align: str = ""
    """Further options of `sparface align`, such as "--size 112 --already-cropped"."""
    recipes: list[str] = field(default_factory=lambda: ["recognizer", "sparring"])
    seeds: int = 3
    """Number of seeds; each recipe is trained with the seeds 0 to seeds - 1."""
    train: str = ""
    """Further options of `sparface train`, the same for all runs."""
    evaluate: str = ""
    """Verification data, as options of `sparface evaluate verification`, such as
    "--pairs pairs.txt --photos lfw" or "--shards shards/others"."""
    train_on: Resources = field(default_factory=Resources)
    """Resources of each training job."""
    small: Resources = field(default_factory=Resources)
    """Resources of the alignment, evaluation and comparison jobs."""
    retries: int = 3
    """Number of consecutive retries without progress before a job gives up."""


@dataclass(frozen=True)
class Part:
    """One job, with a test of whether it is done and the parts that it depends on."""

    name: str
    command: tuple[str, ...]
    resources: Resources
    done: Callable[[], bool]
    needs: tuple[str, ...] = ()


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", action=ActionConfigFile, help="YAML with any of the options below")
    parser.add_class_arguments(Study)
    parsed = parser.parse_args()
    parsed.pop("study", None)
    try:
        study = Study(**parser.instantiate(parsed))
        require_typed_commands(study, sys.argv)
        launch(study)
    except UserError as error:
        print(f"study: error: {printable(without_login(str(error)))}", file=sys.stderr)
        return 2
    return 0


def require_typed_commands(study: Study, arguments: Sequence[str]) -> None:
    """Raise `UserError` if an option contains a command (`pipe:`) that is not on the command line."""
    for option in ("align", "train", "evaluate"):
        text: str = getattr(study, option)
        if "pipe:" in text and not any(text in word for word in arguments):
            raise UserError(
                f"{option}: a study file cannot name a command to run; give --{option} on the command line"
            )


def launch(study: Study) -> None:
    """Submit the missing parts of a study, and print the state of each part."""
    parts = parts_of(study)
    ledger = Ledger(study.out / "jobs.json")
    jobs = {name: job for name, job in ledger.jobs.items() if ledger.state(job) in ACTIVE}
    missing = []
    for part in parts:
        if part.done():
            print(f"{part.name:<24} finished")
        elif part.name in jobs:
            print(f"{part.name:<24} job {jobs[part.name]} {ledger.state(jobs[part.name]).lower()}")
        else:
            missing.append(part)
    for group in together(missing):
        after = sorted({jobs[need] for part in group for need in part.needs if need in jobs})
        submission = submit(
            [job_command(part.command) for part in group],
            group[0].resources,
            name=group[0].name.split("-")[0],
            logs=study.out / "jobs",
            after=after,
            retries=study.retries,
        )
        for part, job in zip(group, submission.ids, strict=True):
            jobs[part.name] = job
            print(f"{part.name:<24} job {job} submitted")
        ledger.add(dict(zip((part.name for part in group), submission.ids, strict=True)))
    print(f"watch   sparface jobs {study.out / 'jobs'}\nreport  {study.out / 'report.html'}")


def parts_of(study: Study) -> list[Part]:
    """List all parts in order of dependency. Raises `UserError` if faces or verification data are missing."""
    if (study.photos is None) == (study.shards is None):
        raise UserError("--photos, --shards: exactly one is required; give one of them")
    if not study.evaluate:
        raise UserError('--evaluate: is empty; give the verification data, such as "--shards shards/others"')
    shards = study.shards or study.out / "shards"
    aligning = []
    if study.photos:
        command = ("align", str(study.photos), str(shards), *shlex.split(study.align))
        aligning = [Part("align", command, study.small, (shards / "manifest.json").is_file)]
    runs = {f"{recipe}-{seed}": (recipe, seed) for recipe in study.recipes for seed in range(study.seeds)}
    trainings, evaluations = [], []
    for name, (recipe, seed) in runs.items():
        run, figures = study.out / "runs" / name, study.out / "figures" / f"{name}.json"
        command = ("train", "--config", study.config, f"--recipe={recipe}", f"--training.seed={seed}")
        command += (f"--data.shards={shards}", *shlex.split(study.train), "--out", str(run))
        needs = tuple(part.name for part in aligning)
        trainings.append(Part(f"train-{name}", command, study.train_on, finished(run), needs))
        command = ("evaluate", "verification", "--checkpoint", str(run), *shlex.split(study.evaluate))
        command += ("--json", str(figures))
        done = measured(run, figures)
        evaluations.append(Part(f"evaluate-{name}", command, study.small, done, (f"train-{name}",)))
    folders = [str(study.out / "runs" / name) for name in runs]
    report = study.out / "report.html"
    command = ("compare", *folders, "--out", str(report))
    newer = compared(report, [study.out / "figures" / f"{name}.json" for name in runs])
    comparing = Part("compare", command, study.small, newer, tuple(part.name for part in evaluations))
    return [*aligning, *trainings, *evaluations, comparing]


def finished(run: Path) -> Callable[[], bool]:
    """A test of whether a run has its last checkpoint."""

    def done() -> bool:
        progress = progress_of(run)
        return progress.total is not None and progress.checkpoint == progress.total

    return done


def measured(run: Path, figures: Path) -> Callable[[], bool]:
    """A test of whether the figures are those of the finished run's last checkpoint."""

    def done() -> bool:
        if not (finished(run)() and figures.is_file()):
            return False
        return bool(json.loads(figures.read_text())["provenance"]["images_seen"] == progress_of(run).total)

    return done


def compared(report: Path, figures: Sequence[Path]) -> Callable[[], bool]:
    """A test of whether the report is newer than all figures."""

    def done() -> bool:
        if not (report.is_file() and all(file.is_file() for file in figures)):
            return False
        return report.stat().st_mtime >= max(file.stat().st_mtime for file in figures)

    return done


def together(parts: Sequence[Part]) -> list[list[Part]]:
    """Group parts with the same verb and dependencies into array jobs."""
    groups: dict[tuple[str, ...], list[Part]] = {}
    for part in parts:
        groups.setdefault((part.command[0], *part.needs), []).append(part)
    return list(groups.values())


class Ledger:
    """A file that records the latest job of each part."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.jobs: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}
        self.states = slurm.states(self.jobs.values())

    def state(self, job: str) -> str:
        return self.states.get(job, "").split(" ")[0]

    def add(self, jobs: dict[str, str]) -> None:
        self.jobs |= jobs
        write_whole(self.file, json.dumps(self.jobs, indent=1).encode())


if __name__ == "__main__":
    sys.exit(main())
