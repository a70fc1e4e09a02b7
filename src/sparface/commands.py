"""The verbs of the command line: their options and the calls that they make.

Imports are inside the functions, to keep `--help` fast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from sparface.config import ENCODINGS
from sparface.errors import STOPPED_EARLY

if TYPE_CHECKING:
    from sparface.generate.run import Job

_ENCODINGS_HELP = "png and npy are lossless; npy is larger and needs no decoding"
RECOGNIZER = "run, export, ONNX file, or weights file of a recognizer"


@dataclass(frozen=True)
class Verb:
    """A verb: the function that it runs, whose docstring is the help text, and its options."""

    run: Callable[[Namespace], int]
    options: Callable[[ArgumentParser], None] = lambda parser: None


@dataclass(frozen=True)
class Group:
    help: str
    verbs: dict[str, Verb]


def align_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "photos",
        type=Path,
        help="folder with one folder per identity, or CSV with columns path,identity and any labels",
    )
    parser.add_argument("out", type=Path, help="folder of the shard set to write")
    parser.add_argument("--size", type=int, default=128, help="face height and width in pixels")
    parser.add_argument(
        "--template", choices=["arcface", "box"], default="arcface", help="target landmark positions"
    )
    parser.add_argument("--already-cropped", action="store_true", help="photos are tight crops of one face")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    parser.add_argument("--encoding", choices=ENCODINGS, default="png", help=_ENCODINGS_HELP)
    parser.add_argument("--overwrite", action="store_true", help="replace a finished set")
    parser.add_argument(
        "--follow-links", action="store_true", help="follow links that leave the photo folder"
    )


def align(a: Namespace) -> int:
    """Detect, align and crop the face in every photo, and write a shard set. Run it again to resume."""
    from sparface.faces import align as run

    report = run(
        a.photos,
        a.out,
        size=a.size,
        template=a.template,
        already_cropped=a.already_cropped,
        workers=a.workers,
        encoding=a.encoding,
        overwrite=a.overwrite,
        follow_links=a.follow_links,
    )
    print(report)
    return 0


def draw_options(parser: ArgumentParser) -> None:
    parser.add_argument("out", type=Path, help="folder of the shard set to write")
    parser.add_argument("--people", type=int, required=True, metavar="N", help="number of people")
    parser.add_argument("--photos", type=int, required=True, metavar="K", help="photos of each person")
    parser.add_argument("--size", type=int, default=128, help="face height and width in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other people")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    parser.add_argument("--encoding", choices=ENCODINGS, default="png", help=_ENCODINGS_HELP)
    parser.add_argument("--overwrite", action="store_true", help="replace a finished set")


def draw(a: Namespace) -> int:
    """Draw labelled faces of people who do not exist, and write a shard set. Run it again to resume."""
    from sparface.faces import draw_set

    drawn = draw_set(
        a.out,
        a.people,
        a.photos,
        size=a.size,
        seed=a.seed,
        workers=a.workers,
        encoding=a.encoding,
        overwrite=a.overwrite,
    )
    print(f"{len(drawn)} faces of {len(drawn.identities)} drawn people in {a.out}")
    return 0


def train_options(parser: ArgumentParser) -> None:
    from sparface import settings

    settings.add_to(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an existing run resumes")


def train(a: Namespace) -> int:
    """Train a recipe. Any config key can be given as an option: `--optimizer.learning_rate 1e-3`."""
    from sparface import settings
    from sparface.training.loop import train as run

    config = settings.from_namespace(a)
    return 0 if run(config, a.out) else STOPPED_EARLY


def config_options(parser: ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file, or the name of a packaged config")
    parser.add_argument("--recipe", default="", help="recipe to use instead of the config's")


def config_show(a: Namespace) -> int:
    """Print a config with the description and value of every setting."""
    from sparface import settings

    print(settings.describe(settings.load(a.config, [f"--recipe={a.recipe}"] if a.recipe else [])))
    return 0


def generate_options(parser: ArgumentParser) -> None:
    from sparface.generate.settings import GenerateConfig
    from sparface.settings import add_fields

    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a sparring run")
    parser.add_argument("--shards", type=Path, required=True, help="folder of the source shard set")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its name is the set's name")
    add_fields(parser, GenerateConfig)
    parser.add_argument("--judge", type=Path, help=f"{RECOGNIZER}, to filter faces; default: the run")
    part_options(parser)


def part_options(parser: ArgumentParser) -> None:
    """Options of verbs that make a set in parts."""
    parser.add_argument("--part", default="0/1", help="I/N: make part I (from 0) of N")
    parser.add_argument("--workers", type=int, default=0, help="encoding threads; 0: one per core")
    parser.add_argument("--finish", action="store_true", help="only write the manifest")
    parser.add_argument(
        "--verify", type=float, help="make this fraction of the shards again and compare bits"
    )


def generate(a: Namespace) -> int:
    """Generate many sparring faces from each face of a shard set. Run it again to resume, or in parts."""
    from sparface.generate.settings import GenerateConfig
    from sparface.settings import filled

    settings = filled(GenerateConfig(), a)
    from sparface.generate import run

    return made_set(a, run.open_job(a.checkpoint, a.shards, a.out, settings, judge=a.judge, part=a.part))


def made_set(a: Namespace, job: Job) -> int:
    """Do what the options of `part_options` say."""
    from sparface.generate import run

    if a.finish:
        run.finish(job)
    elif a.verify is not None:
        print(f"{a.out}: {run.verify(job, a.verify)} shards made again, all bits equal")
    elif not run.generate(job, workers=a.workers):
        return STOPPED_EARLY
    return 0


def attack_options(parser: ArgumentParser) -> None:
    from sparface.attacks.settings import AttackConfig
    from sparface.generate.settings import StorageConfig
    from sparface.settings import add_fields

    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help=f"what is attacked: the run of a classifier, or {RECOGNIZER}",
    )
    parser.add_argument("--shards", type=Path, required=True, help="folder of the source shard set")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; its name is the set's name")
    add_fields(parser, AttackConfig)
    parser.add_argument("--generator", type=Path, help="folder of a sparring run, for --attack trained")
    add_fields(parser, StorageConfig)
    part_options(parser)


def attack(a: Namespace) -> int:
    """Attack every face of a shard set, and write the results as a set. Run it again to resume, or in
    parts."""
    from sparface.attacks.settings import AttackConfig
    from sparface.generate import run
    from sparface.generate.settings import StorageConfig
    from sparface.settings import filled

    settings, storage = filled(AttackConfig(), a), filled(StorageConfig(), a)
    return made_set(
        a,
        run.open_attack_job(
            a.checkpoint, a.shards, a.out, settings, storage, generator=a.generator, part=a.part
        ),
    )


def purify_options(parser: ArgumentParser) -> None:
    from sparface.generate.settings import PurifyConfig
    from sparface.settings import add_fields

    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="RUN",
        help="run of a purifier, or jpeg:QUALITY, blur:PIXELS, tv:WEIGHT",
    )
    parser.add_argument("faces", type=Path, help="a photo, or the folder of a shard set")
    parser.add_argument("out", type=Path, help="PNG to write, or folder of the set to write")
    parser.add_argument(
        "--already-cropped", action="store_true", help="the photo is a tight crop of one face"
    )
    add_fields(parser, PurifyConfig)
    part_options(parser)


def purify(a: Namespace) -> int:
    """Remove attacks from the face on a photo, or from every face of a shard set."""
    from sparface.generate.settings import PurifyConfig
    from sparface.settings import filled

    settings = filled(PurifyConfig(), a)
    if a.faces.is_dir():
        from sparface.generate import run

        return made_set(a, run.open_purify_job(a.checkpoint, a.faces, a.out, settings, part=a.part))
    from sparface.generate.purified import purify_photo

    purify_photo(a.checkpoint, a.faces, a.out, already_cropped=a.already_cropped, seed=a.seed)
    print(a.out)
    return 0


def compare_options(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="report to write (.html)")


def compare(a: Namespace) -> int:
    """Write one HTML report with the curves, images and results of several runs."""
    from sparface.report.compare import compare as run

    run(a.runs, a.out)
    print(a.out)
    return 0


def export_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument(
        "--register", default="", metavar="NAME", help="registered model in MLflow to add a version to"
    )


def export(a: Namespace) -> int:
    """Write a run's networks as safetensors, and the recognizer as ONNX."""
    from sparface.export import export as run

    exported = run(a.run, a.out, register=a.register)
    for path in exported.files:
        print(path)
    if exported.model:
        print(exported.model)
    return 0


def sync_options(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")


def sync(a: Namespace) -> int:
    """Send records to MLflow that are missing there, for example because the server was down."""
    from sparface.runs.tracking import replay

    for run in a.runs:
        print(f"{run}: {replay(run)} records sent")
    return 0


def jobs_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "logs", type=Path, nargs="?", default=Path("jobs"), help="folder of the jobs' log folders"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def jobs(a: Namespace) -> int:
    """List submitted jobs: state, attempts, last checkpoint, speed and progress."""
    from sparface.cluster import list_jobs

    print(list_jobs(a.logs, as_json=a.json))
    return 0


def doctor(a: Namespace) -> int:
    """Print the devices, back ends and tools of this machine, and what missing ones are needed for."""
    from sparface.doctor import examine

    print(examine())
    return 0
