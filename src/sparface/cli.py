"""The `sparface` command: one verb per job, no logic.

Verbs import what they run when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from argparse import REMAINDER
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from sparface import __version__
from sparface.errors import UserError, explain_os_error
from sparface.text import printable, without_login

STOPPED_EARLY = 75
"""Exit code of a training that was asked to stop before its end (EX_TEMPFAIL: start it again)."""
INTERRUPTED, NO_READER = 130, 141
"""Exit codes as a shell gives them to what SIGINT and SIGPIPE have ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: the machine failed (a full disk, a lost connection), or a bug. 2: the user's mistake.
    75: stopped early, run it again. 130: Ctrl-C. 141: whoever read the output has gone.
    """
    atexit.register(gc.freeze)  # or Python's last act is a second's walk through all that torch imported
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        verb, options = parse(arguments)
        code = verb.run(options)
        sys.stdout.flush()
        return code
    except UserError as error:
        return fail(error, error.exit_code)
    except KeyboardInterrupt:
        return fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the last flush fails, too
        return NO_READER
    except OSError as error:
        explained = explain_os_error(error, [word.rpartition("=")[2] for word in arguments])
        return fail(explained, explained.exit_code)
    except MemoryError:
        return fail("out of memory; give this process more, or use smaller batches or fewer workers", 1)


def fail(reason: object, code: int) -> int:
    """Print the reason on one line, and return the exit code."""
    print(f"sparface: error: {printable(without_login(str(reason)))}", file=sys.stderr)
    return code


def parse(argv: Sequence[str]) -> tuple[Verb, Namespace]:
    """The verb of a command line and its options. Raises `UserError` for one that can't be read."""
    argv = list(argv)
    trust_typed_recipe(argv)
    parser, verbs = build_parser(argv)
    try:
        node = parser.parse_args(named_config(argv) or ["--help"])
    except ArgumentError as error:
        from sparface.settings import explain

        raise UserError(explain(str(error))) from None
    path = []
    while (name := node.get("verb")) is not None:
        path.append(name)
        node = node[name]
    if path == ["train"]:
        from sparface.settings import require_typed_commands

        require_typed_commands(node, argv)
    return verbs[" ".join(path)], node


def trust_typed_recipe(arguments: list[str]) -> None:
    """Let a recipe of the user's own (`--recipe module:Class`) be imported: he has typed its name."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--recipe" or word.startswith("--recipe="):
            from sparface.recipes import registry

            registry.trust(following if word == "--recipe" else word.removeprefix("--recipe="))


def named_config(arguments: list[str]) -> list[str]:
    """Replace the name of a packaged config by its file."""
    if not any(word.partition("=")[0] == "--config" for word in arguments):
        return arguments
    from sparface.settings import find

    found = list(arguments)
    for i, word in enumerate(arguments):
        if word == "--config" and i + 1 < len(arguments):
            found[i + 1] = str(find(arguments[i + 1]))
        elif word.startswith("--config="):
            found[i] = f"--config={find(word.removeprefix('--config='))}"
    return found


@dataclass(frozen=True)
class Verb:
    """One job: what it runs (its docstring is its help) and its options. Groups have verbs instead."""

    run: Callable[[Namespace], int]
    options: Callable[[ArgumentParser], None] = lambda parser: None


@dataclass(frozen=True)
class Group:
    help: str
    verbs: dict[str, Verb]


def build_parser(argv: Sequence[str]) -> tuple[ArgumentParser, dict[str, Verb]]:
    """The parser of all verbs, and the verbs by path ("shards show"). Only the verb that `argv` names gets
    its options: those of `train` alone take a third of a second."""
    parser = command("Train face recognizers by sparring with a saliency-guided adversarial generator.")
    parser.add_argument("--version", action="version", version=f"sparface {__version__}")
    return parser, dict(add_verbs(parser, VERBS, "", argv))


def add_verbs(
    parser: ArgumentParser, verbs: Mapping[str, Verb | Group], path: str, argv: Sequence[str]
) -> Iterator[tuple[str, Verb]]:
    """Add subcommands to `parser`, level by level; yields (path, verb)."""
    subcommands = parser.add_subcommands(dest="verb", metavar="VERB", title="verbs")
    for name, verb in verbs.items():
        text = verb.help if isinstance(verb, Group) else verb.run.__doc__
        own = command(text)
        if isinstance(verb, Verb):
            if argv[:1] == [name]:
                verb.options(own)
            yield path + name, verb
        subcommands.add_subcommand(name, own, help=text)
        if isinstance(verb, Group):
            yield from add_verbs(own, verb.verbs, f"{path}{name} ", argv[1:])


def command(description: str | None) -> ArgumentParser:
    return ArgumentParser(prog="sparface", description=description, exit_on_error=False)


def align_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "photos", type=Path, help="a folder per identity, or a CSV with columns path,identity"
    )
    parser.add_argument("out", type=Path, help="folder of the shard set to write")
    parser.add_argument("--size", type=int, default=128, help="height and width of a face, pixels")
    parser.add_argument(
        "--template", choices=["arcface", "box"], default="arcface", help="where landmarks go"
    )
    parser.add_argument("--already-cropped", action="store_true", help="photos are tight crops of one face")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one per core")
    parser.add_argument("--encoding", choices=["png", "jpg", "webp"], default="png")
    parser.add_argument("--overwrite", action="store_true", help="replace a finished set")
    parser.add_argument("--follow-links", action="store_true", help="take photos that are links elsewhere")


def align(a: Namespace) -> int:
    """Find, align and crop the face of every photo; write them as a shard set. Resumes by itself."""
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


def set_options(parser: ArgumentParser) -> None:
    parser.add_argument("set", type=Path, help="folder of a shard set")


def sheet_options(parser: ArgumentParser) -> None:
    parser.add_argument("sets", type=Path, nargs="+", help="folders of shard sets")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (.png)")


def shards_show(a: Namespace) -> int:
    """Print what a shard set holds."""
    from sparface.shards import describe

    print(describe(a.set))
    return 0


def shards_verify(a: Namespace) -> int:
    """Check digests, counts, names and every picture of a shard set."""
    from sparface.shards import verify

    problems = verify(a.set)
    for problem in problems:
        print(printable(problem), file=sys.stderr)
    if problems:
        raise UserError(f"{a.set}: {len(problems)} problems; make the set again or restore the named shards")
    print(f"{a.set}: sound")
    return 0


def shards_sheet(a: Namespace) -> int:
    """Draw faces of several sets side by side, to compare their alignment."""
    from sparface.faces import contact_sheet

    contact_sheet(a.sets, a.out)
    print(a.out)
    return 0


def train_options(parser: ArgumentParser) -> None:
    from sparface import settings

    settings.add_to(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; goes on if it holds one")


def train(a: Namespace) -> int:
    """Train a recipe. Any config key can be given as an option: `--optimizer.learning_rate 1e-3`."""
    from sparface import settings
    from sparface.training.loop import train as run

    config = settings.from_namespace(a)

    return 0 if run(config, a.out) else STOPPED_EARLY


def config_options(parser: ArgumentParser) -> None:
    parser.add_argument("config", help="a YAML file, or the name of a packaged config")
    parser.add_argument("--recipe", default="", help="another recipe than the config's")


def config_show(a: Namespace) -> int:
    """Print a config with every setting, what it means and its value."""
    from sparface import settings

    print(settings.describe(settings.load(a.config, [f"--recipe={a.recipe}"] if a.recipe else [])))
    return 0


def generate_options(parser: ArgumentParser) -> None:
    from sparface.generate.settings import GenerateConfig
    from sparface.settings import add_fields

    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a sparring run")
    parser.add_argument("--shards", type=Path, required=True, help="folder of the source faces' shard set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the set to make; names the set")
    add_fields(parser, GenerateConfig)
    parser.add_argument("--judge", type=Path, help="run or ONNX file that filters and reports; default: RUN")
    parser.add_argument("--part", default="0/1", help="I/N: make the I-th of N parts, from 0")
    parser.add_argument("--workers", type=int, default=0, help="encoding threads; 0: one per core")
    parser.add_argument("--finish", action="store_true", help="make nothing, only write the manifest")
    parser.add_argument("--verify", type=float, help="make this share of the shards again and compare bits")


def generate(a: Namespace) -> int:
    """Make many sparring faces of every face of a shard set. Run it again, or in parts, to go on."""
    from sparface.generate.settings import GenerateConfig
    from sparface.settings import filled

    settings = filled(GenerateConfig, a)
    from sparface.generate import run

    if a.finish or a.verify is not None:
        job = run.open_job(a.checkpoint, a.shards, a.out, settings, judge=a.judge)
        if a.finish:
            run.finish(job)
        else:
            print(f"{a.out}: {run.verify(job, a.verify)} shards made again, all bits equal")
        return 0
    done = run.generate(
        a.checkpoint, a.shards, a.out, settings, judge=a.judge, part=a.part, workers=a.workers
    )
    return 0 if done else STOPPED_EARLY


def verification_options(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a run")
    parser.add_argument("--pairs", type=Path, help="pairs in LFW's file format (View 1 or View 2)")
    parser.add_argument("--photos", type=Path, help="folder of the pairs' photos; aligned as needed, cached")
    parser.add_argument(
        "--shards", type=Path, help="set of the pairs' faces; without --pairs, pairs are drawn"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")


def evaluate_verification(a: Namespace) -> int:
    """Same person or not: accuracy, AUC, EER and TAR on pairs of faces."""
    from sparface.evaluation import evaluate_verification as run
    from sparface.evaluation import summary

    print(summary(run(a.checkpoint, pairs=a.pairs, photos=a.photos, shards=a.shards, json_out=a.json)))
    return 0


def compare_options(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, help="report to write (.html)")


def compare(a: Namespace) -> int:
    """Write one HTML report with the curves, pictures and figures of several runs."""
    from sparface.report.compare import compare as run

    run(a.runs, a.out)
    print(a.out)
    return 0


def export_options(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("out", type=Path, help="folder to write to")


def export(a: Namespace) -> int:
    """Write a run's networks as safetensors, and the recognizer as ONNX."""
    from sparface.export import export as run

    for path in run(a.run, a.out):
        print(path)
    return 0


def sync_options(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", help="folders of runs")


def sync(a: Namespace) -> int:
    """Send to MLflow what it has not got of runs: the server was down, or could not be reached."""
    from sparface.runs.tracking import replay

    for run in a.runs:
        print(f"{run}: {replay(run)} records sent")
    return 0


def demo_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for everything it makes")
    parser.add_argument(
        "--images", type=int, default=0, help="images to train each recipe on; 0: the config's"
    )


def demo(a: Namespace) -> int:
    """Draw faces, train both recipes on them, verify on identities not trained on, write the report."""
    from sparface.demo import run

    run(a.out, images=a.images)
    return 0


def submit_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--cluster", choices=["slurm", "local", "debug"], default="slurm", help="debug: in this process")
    add("--nodes", default="1", metavar="N|MIN-MAX", help="nodes; a range lets a requeued job shrink")
    add("--gpus-per-node", type=int, default=0, help="GPUs of each node; one task per GPU")
    add("--tasks-per-node", type=int, default=0, help="processes on each node, where there are no GPUs")
    add("--cpus-per-task", type=int, default=0, help="CPU cores of each task")
    add("--mem", type=float, default=0, metavar="GB", help="memory of each node")
    add("--partition", default="", help="where to queue")
    add("--account", default="", help="who pays")
    add("--time", default="", help="limit of one attempt: minutes, H:MM:SS or D-HH:MM:SS")
    add("--array", type=int, default=1, metavar="N", help="N jobs; {task} in ARGS is 0 to N-1, {tasks} is N")
    add("--after", default="", metavar="ID,…", help="jobs that must have ended well before")
    add("--retries", type=int, default=3, help="attempts after a failure without progress")
    add("--name", default="", help="of the job; default: the verb")
    add("--logs", type=Path, default=Path("jobs"), help="folder of the log folders")
    add("command", nargs=REMAINDER, metavar="VERB ARGS…", help="what to run, as without submit")


def submit(a: Namespace) -> int:
    """Run a verb as a job: queued, watched over, and started again after a preemption or a failure."""
    from sparface.cluster import Resources, describe, repeated
    from sparface.cluster import submit as run

    asked = (
        "nodes",
        "gpus_per_node",
        "tasks_per_node",
        "cpus_per_task",
        "mem",
        "partition",
        "account",
        "time",
    )
    submission = run(
        repeated(a.command, a.array),
        Resources(**{name: a[name] for name in asked}),
        cluster=a.cluster,
        name=a.name,
        logs=a.logs,
        after=a.after.split(",") if a.after else [],
        retries=a.retries,
    )
    if a.cluster != "debug":  # which has run by now
        print(describe(submission, a.cluster))
    return 0


def jobs_options(parser: ArgumentParser) -> None:
    parser.add_argument("logs", type=Path, nargs="?", default=Path("jobs"), help="folder of the log folders")
    parser.add_argument("--json", action="store_true", help="for programs")


def jobs(a: Namespace) -> int:
    """List submitted jobs: state, attempts, last checkpoint, speed, and how far each is."""
    from sparface.cluster import list_jobs

    print(list_jobs(a.logs, as_json=a.json))
    return 0


def doctor(a: Namespace) -> int:
    """Print what this machine has (devices, back ends, tools) and what is missing for what."""
    from sparface.doctor import examine

    print(examine())
    return 0


VERBS: dict[str, Verb | Group] = {
    "align": Verb(align, align_options),
    "shards": Group(
        "Look at a shard set, or check it.",
        {
            "show": Verb(shards_show, set_options),
            "verify": Verb(shards_verify, set_options),
            "sheet": Verb(shards_sheet, sheet_options),
        },
    ),
    "config": Group("Look at a configuration.", {"show": Verb(config_show, config_options)}),
    "train": Verb(train, train_options),
    "generate": Verb(generate, generate_options),
    "evaluate": Group(
        "Measure a trained recognizer.", {"verification": Verb(evaluate_verification, verification_options)}
    ),
    "compare": Verb(compare, compare_options),
    "export": Verb(export, export_options),
    "sync": Verb(sync, sync_options),
    "submit": Verb(submit, submit_options),
    "jobs": Verb(jobs, jobs_options),
    "demo": Verb(demo, demo_options),
    "doctor": Verb(doctor),
}
