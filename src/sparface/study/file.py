"""Read a study from a YAML file.

The file may come from somebody else: it is bounded plain YAML. It may only name verbs of `sparface`, and
neither shell commands (`pipe:`) nor code to import (`module:Class`). Paths of data are given on the command
line, so the same file can be used everywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparface import config_file
from sparface.errors import UserError
from sparface.study.table import MOST, Table, require_plain
from sparface.text import printable

MOST_COMBINATIONS = 20_000
"""Maximum number of combinations of an arm, a training set and a seed in an experiment."""
PREPARING = ("align", "draw", "generate", "attack", "purify", "shards")
"""Verbs that prepare something for the arms."""
OF_EXPERIMENT = (
    *("title", "about", "texts", "config", "train", "sets", "seeds", "images"),
    *("arms", "evaluate", "choose", "claims", "gains"),
)
OF_PART = ("out", "run", "set", "seed")
"""What stands for something of the part that is run."""
OF_ARM = ("about", "config", "sets", "images", "checkpoint")
"""Keys of an arm that are not settings of its training."""


@dataclass(frozen=True)
class Claim:
    """A statement that the study puts to the test."""

    says: str
    metric: str = ""
    """EVALUATION.METRIC; empty for a claim that cannot be tested."""
    arm: str = ""
    than: str = ""
    """The arm that it is compared with; empty to compare with `by` itself."""
    than_metric: str = ""
    """The metric of that arm."""
    by: float = 0.0
    on: str = ""
    images: int | None = None
    """Budget to compare at; None for each arm's best."""
    why_not: str = ""
    """Why the claim cannot be tested."""


@dataclass(frozen=True)
class Gains:
    """The comparisons that a program reads from evidence.json: `arm` against others in one metric."""

    arm: str
    metric: str
    over: Mapping[str, tuple[str, str]]
    """Name → arm and its metric."""


@dataclass(frozen=True)
class Arm:
    """A way to train, or a finished recognizer to measure."""

    name: str
    about: str
    config: str
    settings: Mapping[str, Any]
    """Dotted config key → value."""
    on: tuple[str, ...]
    """Training sets; ("",) if the settings name the shards."""
    images: tuple[int, ...]
    """Budgets."""
    checkpoint: str = ""
    """A finished recognizer, which is not trained."""


@dataclass(frozen=True)
class Evaluation:
    """A measurement of every run, or of those of some arms."""

    name: str
    words: tuple[str, ...]
    """Arguments of `sparface evaluate`."""
    arms: frozenset[str]
    show: tuple[str, ...] = ()
    """Metrics that the report shows; empty: the first ones."""


@dataclass(frozen=True)
class Experiment:
    """Arms that are compared with each other."""

    name: str
    title: str
    about: str
    on: Mapping[str, str]
    """Training sets: name → folder; {"": ""} if the settings name it."""
    seeds: tuple[int, ...]
    arms: Mapping[str, Arm]
    evaluations: Mapping[str, Evaluation]
    choose: str
    """The metric that decides an arm's best budget; empty for the metric that is compared."""
    claims: tuple[Claim, ...]
    gains: Gains | None


@dataclass(frozen=True)
class Study:
    """What a study file says, for one size."""

    title: str
    about: str
    size: str
    data: Mapping[str, str]
    """Data that the command line must give: name → description."""
    prepare: Mapping[str, tuple[str, ...]]
    """Name → words of a command; `{out}` is the folder to make."""
    experiments: Mapping[str, Experiment] = field(default_factory=dict)


def find(path: Path) -> Path:
    """Return the study file at a path, or with the name of a packaged study (`demo`)."""
    packaged = Path(__file__).with_name(f"{path.stem}.yaml")
    return packaged if path.parent == Path() and not path.exists() and packaged.is_file() else path


def read(path: Path, size: str = "", images: int = 0) -> Study:
    """Read a study file for one of its sizes (by default the first).

    `images` replaces all budgets, to try a study quickly; 0: as in the file. Raises `UserError` naming the
    file and the key.
    """
    tree = config_file.read(path)
    require_plain(tree, str(path))
    top = Table(tree, str(path))
    top.allow("title", "about", "data", "sizes", "prepare", "experiments")
    sizes = top.names("sizes")
    if size and size not in sizes:
        raise UserError(f"{path}: has no size {printable(size)!r}; known: {', '.join(sizes) or 'none'}")
    size = size or (sizes[0] if sizes else "")
    prepare = top.table("prepare")
    experiments = top.table("experiments", required=True)
    data = {name: top.table("data").text(name) for name in top.table("data").entries()}
    reserved = {*data, *prepare.values, *OF_PART}
    tables: dict[str, Table] = {}
    for name in experiments.entries():
        tables[name] = _inherited(experiments.table(name), tables)
    found = [_experiment(name, one, size, images, reserved) for name, one in tables.items()]
    return Study(
        title=top.text("title", path.stem),
        about=top.text("about"),
        size=size,
        data=data,
        prepare={name: prepare.command(name, PREPARING) for name in prepare.entries()},
        experiments={one.name: one for one in found if one is not None},
    )


def _inherited(table: Table, above: Mapping[str, Table]) -> Table:
    """Return the table of an experiment with what it leaves out from the one `above` that it is `like`."""
    table.allow(*OF_EXPERIMENT, "like", "sizes", "at")
    other = table.text("like")
    if other and other not in above:
        raise UserError(
            f"{table.where('like')}: must name an experiment above; known: {', '.join(above) or 'none'}"
        )
    return table.over(above[other]) if other else table


def _experiment(
    name: str, table: Table, size: str, images: int, reserved: Collection[str]
) -> Experiment | None:
    """Read an experiment; None if it is not part of the size."""
    if size not in (table.names("sizes") or [size]):
        return None
    for other in table.table("at").entries():
        table.table("at").table(other).allow(*OF_EXPERIMENT)
    table = table.at(size).filled(reserved)
    on = {key: table.table("sets").text(key) for key in table.table("sets").entries()} or {"": ""}
    arms = table.table("arms", required=True)
    read = {key: _arm(key, arms.table(key), table, list(on), images) for key in arms.entries()}
    if not read:
        raise UserError(f"{arms.where()}: is empty; name an arm")
    evaluate = table.table("evaluate")
    claims = table.tables("claims")
    gains = table.table("gains") if "gains" in table.values else None
    experiment = Experiment(
        name=name,
        title=table.text("title", name),
        about=table.text("about"),
        on=on,
        seeds=tuple(range(table.count("seeds", 1, MOST))),
        arms=read,
        evaluations={key: _evaluation(key, evaluate, list(read)) for key in evaluate.entries()},
        choose=table.text("choose"),
        claims=tuple(_claim(claim) for claim in claims),
        gains=_gains(gains) if gains else None,
    )
    if len(read) * len(on) * len(experiment.seeds) > MOST_COMBINATIONS:
        raise UserError(f"{table.where()}: has more than {MOST_COMBINATIONS:,} combinations; split the study")
    _require_known(experiment, table)
    return experiment


def _arm(name: str, arm: Table, experiment: Table, on: list[str], images: int) -> Arm:
    shared = experiment.settings("train")
    own = {key: value for key, value in arm.values.items() if key not in OF_ARM}
    checkpoint = arm.text("checkpoint")
    budgets = [images] if images else arm.counts("images") or experiment.counts("images")
    if not checkpoint and 0 in (budgets or [0]):
        raise UserError(f"{experiment.where('images')}: is missing; give a list of images to train on")
    settings = Table(own, arm.file, arm.key).settings()
    chosen = arm.names("sets") or ([""] if "data.shards" in settings else on[:1])
    if unknown := set(chosen) - {*on, ""}:
        raise UserError(f"{arm.where('sets')}: {min(unknown)} is not a training set; known: {', '.join(on)}")
    return Arm(
        name=name,
        about=arm.text("about"),
        config=arm.text("config") or experiment.text("config"),
        settings=shared | settings,
        on=tuple(chosen),
        images=() if checkpoint else tuple(dict.fromkeys(budgets)),
        checkpoint=checkpoint,
    )


def _evaluation(name: str, table: Table, arms: list[str]) -> Evaluation:
    if isinstance(table.values[name], dict):
        own = table.table(name)
        own.allow("run", "arms", "show")
        show = tuple(own.texts("show"))
        return Evaluation(name, own.command("run", ()), frozenset(own.names("arms") or arms), show)
    return Evaluation(name, table.command(name, ()), frozenset(arms))


def _claim(table: Table) -> Claim:
    table.allow("says", "in", "arm", "beats", "beats_in", "by", "reaches", "set", "images", "not_testable")
    why_not = table.text("not_testable")
    if why_not:
        return Claim(table.text("says", required=True), why_not=why_not)
    if ("beats" in table.values) == ("reaches" in table.values):
        raise UserError(f"{table.where('beats')}: give either `beats: ARM` or `reaches: NUMBER`")
    metric = table.text("in", required=True)
    return Claim(
        says=table.text("says", required=True),
        metric=metric,
        arm=table.text("arm", required=True),
        than=table.text("beats"),
        than_metric=table.text("beats_in", metric),
        by=table.number("by" if "beats" in table.values else "reaches"),
        on=table.text("set"),
        images=table.count("images", 0) or None,
    )


def _gains(table: Table) -> Gains:
    table.allow("arm", "in", "over")
    metric, over = table.text("in", required=True), table.table("over", required=True)
    others = {name: _other(name, over, metric) for name in over.entries()}
    return Gains(table.text("arm", required=True), metric, others)


def _other(name: str, over: Table, metric: str) -> tuple[str, str]:
    """Read an arm to compare with, and its metric if that is another one."""
    if not isinstance(over.values[name], dict):
        return over.text(name, required=True), metric
    own = over.table(name)
    own.allow("arm", "in")
    return own.text("arm", required=True), own.text("in", metric)


def _require_known(experiment: Experiment, table: Table) -> None:
    """Raise `UserError` if an arm, training set or evaluation is named that does not exist."""
    gains = experiment.gains
    arms = {claim.arm for claim in experiment.claims} | {claim.than for claim in experiment.claims}
    arms |= {arm for one in experiment.evaluations.values() for arm in one.arms}
    metrics = [metric for claim in experiment.claims for metric in (claim.metric, claim.than_metric)]
    metrics.append(experiment.choose)
    if gains:
        arms |= {gains.arm, *(arm for arm, _ in gains.over.values())}
        metrics += [gains.metric, *(metric for _, metric in gains.over.values())]
    used = {
        "arm": (arms, experiment.arms),
        "training set": ({claim.on for claim in experiment.claims}, experiment.on),
        "evaluation": ({metric.partition(".")[0] for metric in metrics}, experiment.evaluations),
    }
    for what, (names, known) in used.items():
        for name in sorted(names - {""} - set(known)):
            listed = ", ".join(known) or "none"
            raise UserError(f"{table.where()}: names the {what} {printable(name)!r}; known: {listed}")
