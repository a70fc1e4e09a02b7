"""The `sparface` command: run the verb of a command line and report errors on one line with an exit code."""

from __future__ import annotations

import atexit
import dataclasses
import gc
import os
import sys
from argparse import REMAINDER
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from sparface import __version__, commands, evaluate_commands, shards_commands
from sparface.commands import Group, Verb
from sparface.errors import UserError, explain_os_error
from sparface.text import printable, without_login

if TYPE_CHECKING:
    from sparface.cluster import Command, Resources
    from sparface.study.folder import StudyFolder

MOST_OF_DEMO = 4
"""Parts of the demo to run at once: each takes almost 1 GB of memory."""
INTERRUPTED, NO_READER = 130, 141
"""The exit codes that a shell reports after SIGINT and SIGPIPE."""
JOBS = ("align", "draw", "train", "generate", "attack", "purify", "evaluate", "compare")
"""Verbs that can be submitted as jobs."""
SPREAD = ("train", "generate", "attack", "purify")
"""Verbs whose tasks share one piece of work."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0: done. 1: a machine failure (a full disk, a lost connection) or a bug. 2: a user error.
    75: stopped early, run it again. 130: Ctrl-C. 141: the reader of the output closed the pipe.
    """
    atexit.register(gc.freeze)  # otherwise Python spends a second at exit collecting what torch imported
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise the last flush fails too
        return NO_READER
    except OSError as error:
        explained = explain_os_error(error, [word.rpartition("=")[2] for word in arguments])
        return fail(explained, explained.exit_code)
    except MemoryError:
        return fail("out of memory; allocate more, or use smaller batches or fewer workers", 1)


def fail(reason: object, code: int) -> int:
    """Print the reason on one line and return the exit code."""
    print(f"sparface: error: {printable(without_login(str(reason)))}", file=sys.stderr)
    return code


def parse(argv: Sequence[str]) -> tuple[Verb, Namespace]:
    """Parse a command line into a verb and its options. Raises `UserError` if it is invalid."""
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
        from sparface.settings import require_typed_sources

        require_typed_sources(node, argv)
    return verbs[" ".join(path)], node


def trust_typed_recipe(arguments: list[str]) -> None:
    """Allow the import of a custom recipe (`--recipe module:Class`) that the user has typed."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--recipe" or word.startswith("--recipe="):
            from sparface.recipes import registry

            registry.trust(following if word == "--recipe" else word.removeprefix("--recipe="))


def named_config(arguments: list[str]) -> list[str]:
    """Replace the name of a packaged config with its file."""
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


def build_parser(argv: Sequence[str]) -> tuple[ArgumentParser, dict[str, Verb]]:
    """Build the parser, and map paths ("shards show") to verbs.

    Only the verb that `argv` names gets its options: those of `train` alone take a third of a second.
    """
    parser = command("Train face recognizers by sparring with a saliency-guided adversarial generator.")
    parser.add_argument("--version", action="version", version=f"sparface {__version__}")
    return parser, dict(add_verbs(parser, VERBS, "", argv))


def add_verbs(
    parser: ArgumentParser, verbs: Mapping[str, Verb | Group], path: str, argv: Sequence[str]
) -> Iterator[tuple[str, Verb]]:
    """Add subcommands to `parser` recursively and yield (path, verb)."""
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


def resource_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--nodes", default="1", metavar="N|MIN-MAX", help="nodes; a range lets a requeued job shrink")
    add("--gpus-per-node", type=int, default=0, help="GPUs per node, with one task per GPU")
    add("--tasks-per-node", type=int, default=0, help="processes per node, for jobs without GPUs")
    add("--cpus-per-task", type=int, default=0, help="CPU cores per task")
    add("--mem", type=float, default=0, metavar="GB", help="memory per node")
    add("--partition", default="", help="partition to queue in")
    add("--account", default="", help="account to charge")
    add("--time", default="", help="time limit per attempt: minutes, H:MM:SS or D-HH:MM:SS")
    add("--retries", type=int, default=3, help="attempts after a failure without progress")


def resources(a: Namespace) -> Resources:
    from sparface.cluster import Resources

    return Resources(**{field.name: a[field.name] for field in dataclasses.fields(Resources)})


def submit_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--cluster", choices=["slurm", "local", "debug"], default="slurm", help="debug: run in this process")
    resource_options(parser)
    add("--array", type=int, default=1, metavar="N", help="N jobs; {task} in ARGS is 0 to N-1, {tasks} is N")
    add("--after", default="", metavar="ID,…", help="jobs that must succeed first")
    add("--name", default="", help="job name; default: the verb")
    add("--logs", type=Path, default=Path("jobs"), help="folder for the jobs' log folders")
    add("command", nargs=REMAINDER, metavar="VERB ARGS…", help="what to run, as without submit")


def submit(a: Namespace) -> int:
    """Run a verb as a job: queued, supervised, and restarted after a preemption or a failure."""
    from sparface.cluster import describe, repeated
    from sparface.cluster import submit as run

    asked = resources(a)  # a mistake in them is named before one in the command
    submission = run(
        [job_command(words, asked.processes) for words in repeated(a.command, a.array)],
        asked,
        cluster=a.cluster,
        name=a.name,
        logs=a.logs,
        after=a.after.split(",") if a.after else [],
        retries=a.retries,
    )
    if a.cluster != "debug":  # a debug job has already run
        print(describe(submission, a.cluster))
    return 0


def job_command(words: Sequence[str], processes: Sequence[int] = (1,)) -> Command:
    """Convert a verb and its arguments to the form that `cluster.submit` takes.

    Raises `UserError` for a verb that cannot be a job, and for arguments that the verb would reject on any of
    these numbers of processes.
    """
    from sparface.cluster import Command

    if not words or words[0] not in JOBS:
        problem = f"{words[0]} cannot be run as a job" if words else "no verb given"
        raise UserError(f"submit: {problem}; use one of {', '.join(JOBS)}")
    out = checked(words, processes).get("out")
    folder = Path(out) if out is not None and Path(out).suffix != ".html" else None
    return Command(tuple(words), folder, spreads=words[0] in SPREAD)


def checked(words: Sequence[str], processes: Sequence[int] = (1,)) -> Namespace:
    """Parse a verb's arguments as it would. Raises `UserError` for those that it would reject on any of these
    numbers of processes."""
    _, options = parse(words)
    if words[0] == "train":
        from sparface.groups import require_whole_groups
        from sparface.settings import from_namespace

        config = from_namespace(options)
        if config.training.batchnorm == "ghost":
            require_whole_groups(config, processes)
    return options


def study_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("study", type=Path, help="a study file (YAML), or the folder of a study to write its report again")
    add("--out", type=Path, help="folder of the study; an existing study continues")
    add("--data", action="append", default=[], metavar="NAME=PATH", help="data that the study file names")
    add("--size", default="", help="one of the sizes that the study file names; default: the first")
    add(
        "--images", type=int, default=0, help="images to train each arm on, to try a study; 0: as in its file"
    )
    add("--processes", type=int, default=1, metavar="N", help="parts to run at once on this machine")
    add("--slurm", action="store_true", help="queue the parts as jobs, with the resources below")
    resource_options(parser)
    add("--part", default="", help="run one part of the study in this folder, or `report`, as jobs do")


def study(a: Namespace) -> int:
    """Train and compare the arms of a study, with intervals and verdicts. Run it again to resume."""
    from sparface.study import file as study_file
    from sparface.study.folder import StudyFolder
    from sparface.study.plan import REPORT

    if a.part or a.study.is_dir():
        folder = StudyFolder.open(a.study)
        if a.part not in ("", REPORT):
            return folder.run(a.part, main, checked)
        return report(folder, send=bool(a.part))
    if a.out is None:
        raise UserError("--out: is missing; name the folder of the study")
    if a.processes < 1:
        raise UserError(f"--processes: {a.processes} is not allowed; must be 1 or more")
    file = study_file.find(a.study)
    folder = StudyFolder.start(file, a.out, a.data, size=a.size, images=a.images)
    folder.require_sound(partial(checked, processes=resources(a).processes) if a.slurm else checked)
    with folder.held(file):
        if a.slurm:
            from sparface.study.queue import queue

            queue(folder, resources(a), a.retries)
            return 0
        from sparface.study.local import run_here

        done = run_here(folder, a.processes)
    return report(folder, send=True) or int(not done)


def report(folder: StudyFolder, *, send: bool = False) -> int:
    """Write the report of a study from what is finished, and send it to MLflow if asked to."""
    from sparface.study import page, tracking
    from sparface.study.summary import summary

    results = page.write_report(folder)
    if send:
        tracking.send(folder, results)
    print(summary(folder, results))
    return 0


def demo_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for all results")
    parser.add_argument("--images", type=int, default=0, help="images of each training; 0: as in the study")


def demo(a: Namespace) -> int:
    """Train on drawn people in three ways, verify on others, and say what helped. Run it again to resume."""
    from sparface.machine import usable_cores

    processes = min(usable_cores(), MOST_OF_DEMO)
    code = main(["study", "demo", f"--out={a.out}", f"--images={a.images}", f"--processes={processes}"])
    if code == 0:
        print("next    sparface align PHOTOS shards/people --size 64, with a folder of photos per person")
    return code


VERBS: dict[str, Verb | Group] = {
    "align": Verb(commands.align, commands.align_options),
    "draw": Verb(commands.draw, commands.draw_options),
    "shards": Group(
        "Inspect a shard set, take a part of it, or split it.",
        {
            "show": Verb(shards_commands.show, shards_commands.set_options),
            "verify": Verb(shards_commands.verify, shards_commands.set_options),
            "subset": Verb(shards_commands.subset, shards_commands.subset_options),
            "split": Verb(shards_commands.split, shards_commands.split_options),
            "sheet": Verb(shards_commands.sheet, shards_commands.sheet_options),
        },
    ),
    "config": Group(
        "Inspect a configuration.", {"show": Verb(commands.config_show, commands.config_options)}
    ),
    "train": Verb(commands.train, commands.train_options),
    "generate": Verb(commands.generate, commands.generate_options),
    "attack": Verb(commands.attack, commands.attack_options),
    "purify": Verb(commands.purify, commands.purify_options),
    "evaluate": Group(
        "Evaluate a trained recognizer or classifier.",
        {
            "verification": Verb(
                evaluate_commands.evaluate_verification, evaluate_commands.verification_options
            ),
            "identify": Verb(evaluate_commands.evaluate_identification, evaluate_commands.identify_options),
            "robustness": Verb(evaluate_commands.evaluate_robustness, evaluate_commands.robustness_options),
            "detection": Verb(evaluate_commands.evaluate_detection, evaluate_commands.detection_options),
            "quality": Verb(evaluate_commands.evaluate_quality, evaluate_commands.quality_options),
            "memorisation": Verb(
                evaluate_commands.evaluate_memorisation, evaluate_commands.memorisation_options
            ),
            "membership": Verb(evaluate_commands.evaluate_membership, evaluate_commands.membership_options),
            "classification": Verb(
                evaluate_commands.evaluate_classification, evaluate_commands.classification_options
            ),
        },
    ),
    "enrol": Verb(evaluate_commands.enrol, evaluate_commands.enrol_options),
    "identify": Verb(evaluate_commands.identify, evaluate_commands.gallery_options),
    "compare": Verb(commands.compare, commands.compare_options),
    "export": Verb(commands.export, commands.export_options),
    "sync": Verb(commands.sync, commands.sync_options),
    "study": Verb(study, study_options),
    "submit": Verb(submit, submit_options),
    "jobs": Verb(commands.jobs, commands.jobs_options),
    "demo": Verb(demo, demo_options),
    "doctor": Verb(commands.doctor),
}
