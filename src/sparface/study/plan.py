"""The parts of a study: commands with their results and dependencies.

In the texts of a study file, `{name}` stands for the path of data, of something prepared, or of a run:

- `{celeba}`: data that the command line gives with `--data celeba=PATH`
- `{people}`: what the entry `people` of `prepare` makes, once for each combination of training set and seed
  that its own command names, directly or through what it uses
- `{run}`: the run itself, in an evaluation and in what is prepared for one
- `{run:ARM}`: the run of an arm on the same training set with the same seed, at the arm's largest budget
- `{set}`, `{seed}`: the training set and the seed; `{out}`: the folder that a command of `prepare` writes
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sparface.errors import UserError
from sparface.study.file import Experiment, Study
from sparface.text import printable

VARIABLE = re.compile(r"\{([A-Za-z0-9_+:-]+)\}")
SCOPES = {
    "seed": {"seed"},
    "set": {"experiment", "on"},
    "run:": {"experiment", "on", "seed"},
    "run": {"experiment", "arm", "on", "images", "seed"},
}
"""Fields of a cell on which a variable depends."""
REPORT = "report"
"""What `--part` calls the report, which is no part: it is made of what is there."""
MOST_PARTS, DEEPEST = 20_000, 50
MOST_CHARACTERS = 1 << 26
"""Maximum number of characters of all commands: a short text with many variables can become a long one."""


@dataclass(frozen=True, order=True)
class Cell:
    """One training: an arm on a training set, with a budget in images seen and a seed."""

    experiment: str
    arm: str = ""
    on: str = ""
    images: int = 0
    """0 for a finished recognizer, which is not trained."""
    seed: int = 0

    @property
    def name(self) -> str:
        budget = [f"{self.images}", f"s{self.seed}"] if self.images else []
        return ".".join(filter(None, [self.experiment, self.arm, self.on, *budget]))


@dataclass(frozen=True)
class Part:
    """A command of the study."""

    name: str
    words: tuple[str, ...]
    """Arguments of `sparface`."""
    out: Path
    """The folder or file that it writes."""
    needs: tuple[str, ...]
    """Names of the parts that must be finished before."""
    cell: Cell | None = None
    evaluation: str = ""

    @property
    def like(self) -> tuple[str, ...]:
        """What its command has in common with those of other seeds, budgets and training sets."""
        cell = self.cell
        return (cell.experiment, cell.arm, self.evaluation) if cell else (self.name.split(".")[1],)


class Plan:
    """All parts of a study in a folder, in an order that respects their dependencies."""

    def __init__(self, study: Study, folder: Path, data: Mapping[str, str]) -> None:
        """Raises `UserError` if a text of the study names something unknown, or itself."""
        self.study, self.folder, self.data = study, folder, data
        self.parts: dict[str, Part] = {}
        self._open: list[str] = []
        self._characters = 0
        self._bases: dict[str, frozenset[str]] = {}
        if next(islice(self.cells(), MOST_PARTS, None), None):  # found before any is made
            raise too_many_parts()
        for cell in self.cells():
            if cell.images:
                self.train(cell)
            for evaluation in self._experiment(cell).evaluations.values():
                if cell.arm in evaluation.arms:
                    self._evaluate(cell, evaluation.name, evaluation.words)

    def cells(self) -> Iterator[Cell]:
        """Yield the cells of all experiments."""
        for experiment in self.study.experiments.values():
            yield from cells_of(experiment)

    def spend(self, text: str) -> str:
        """Return a text of a command. Raises `UserError` if all of them together are too long."""
        self._characters += len(text)
        if self._characters > MOST_CHARACTERS:
            raise UserError("the study has commands that are too long; split it")
        return text

    def run(self, cell: Cell) -> Path:
        """Return the folder of a training."""
        return self.folder / "runs" / cell.name

    def figures(self, cell: Cell, evaluation: str) -> Path:
        """Return the file of an evaluation's results."""
        return self.folder / "figures" / f"{cell.name}.{evaluation}.json"

    def _experiment(self, cell: Cell) -> Experiment:
        return self.study.experiments[cell.experiment]

    def _add(self, part: Part) -> str:
        if len(self.parts) >= MOST_PARTS:
            raise too_many_parts()
        if any("pipe:" in word or (word.startswith("--recipe") and ":" in word) for word in part.words):
            raise UserError(f"{part.name}: a study cannot name code or a command to run (pipe:)")
        self.parts.setdefault(part.name, part)
        return part.name

    def train(self, cell: Cell) -> str:
        """Add the training of a cell, if it is new; returns its name."""
        arm, name = self._experiment(cell).arms[cell.arm], f"train.{cell.name}"
        if name in self.parts:
            return name
        with_needs = Filling(self, cell, f"experiments.{cell.experiment}.arms.{cell.arm}")
        with self.entered(name):
            words = ["train", *(["--config", with_needs(arm.config)] if arm.config else [])]
            words += [option(key, with_needs.tree(value)) for key, value in arm.settings.items()]
            if cell.on:
                words.append(f"--data.shards={with_needs.on()}")
        words += [f"--schedule.images={cell.images}", f"--training.seed={cell.seed}"]
        words += [f"--tracking.experiment={self.study.title}", f"--tracking.run_name={cell.name}"]
        words += ["--out", str(self.run(cell))]
        return self._add(Part(name, tuple(words), self.run(cell), with_needs.needs, cell))

    def _evaluate(self, cell: Cell, evaluation: str, template: tuple[str, ...]) -> None:
        where = f"experiments.{cell.experiment}.evaluate.{evaluation}"
        with_needs = Filling(self, cell, where)
        arm, out = self._experiment(cell).arms[cell.arm], self.figures(cell, evaluation)
        words = ["evaluate", *map(with_needs, template), "--json", str(out)]
        if "--checkpoint" not in words:  # else it names a judge
            words += ["--checkpoint", with_needs(arm.checkpoint or "{run}")]
        name = f"evaluate.{cell.name}.{evaluation}"
        self._add(Part(name, tuple(words), out, with_needs.needs, cell, evaluation))

    def prepared(self, name: str, cell: Cell) -> Part:
        """Return the part that prepares something for a cell, which is added if it is new."""
        scope = self._scope(" ".join(self.study.prepare[name]), cell)
        own = {"experiment": cell.experiment, "arm": cell.arm, "on": cell.on}
        own |= {"images": str(cell.images), "seed": f"s{cell.seed}"}
        suffix = ".".join(filter(None, [name, *(own[key] for key in own if key in scope)]))
        part_name, out = f"prepare.{suffix}", self.folder / "prepared" / suffix
        if part_name not in self.parts:
            with_needs = Filling(self, cell, f"prepare.{name}", out)
            with self.entered(part_name):
                words = tuple(map(with_needs, self.study.prepare[name]))
            self._add(Part(part_name, words, out, with_needs.needs))
        return self.parts[part_name]

    def _scope(self, text: str, cell: Cell) -> set[str]:
        """Return what a text depends on, directly and through what it names, as names of a cell's fields."""
        bases = self._named(text)
        if "set" in bases:
            bases |= self._named(self._experiment(cell).on.get(cell.on, ""))
        return set().union(*(SCOPES[base] for base in bases))

    def _named(self, text: str) -> frozenset[str]:
        """Return the keys of `SCOPES` that a text names, directly and through what is prepared."""
        if text not in self._bases:
            seen: set[str] = set()
            waiting = VARIABLE.findall(text)
            while waiting:
                name = waiting.pop()
                if name not in seen:
                    seen.add(name)
                    waiting += VARIABLE.findall(" ".join(self.study.prepare.get(name, ())))
            kinds = (name.partition(":")[0] + ":" * (":" in name) for name in seen)
            self._bases[text] = frozenset(SCOPES.keys() & kinds)
        return self._bases[text]

    def trained(self, arm: str, cell: Cell, where: str) -> Part:
        """Return the training of another arm that a cell starts from or takes its faces from."""
        arms = self._experiment(cell).arms
        if arm not in arms or not arms[arm].images:
            known = ", ".join(name for name in arms if arms[name].images)
            raise UserError(f"{where}: {{run:{printable(arm)}}} is no arm that is trained; known: {known}")
        on = cell.on if cell.on in arms[arm].on else arms[arm].on[0]
        return self.parts[self.train(Cell(cell.experiment, arm, on, max(arms[arm].images), cell.seed))]

    @contextmanager
    def entered(self, name: str) -> Iterator[None]:
        """Find the dependencies of a part. Raises `UserError` if it needs itself."""
        if name in self._open:
            raise UserError(f"{' needs '.join([*self._open, name])}; remove the circle")
        if len(self._open) == DEEPEST:
            raise UserError(f"{self._open[0]}: needs more than {DEEPEST} parts one after another; shorten it")
        self._open.append(name)
        yield
        self._open.pop()


class Filling:
    """Replaces the variables in a text and remembers which parts it needs."""

    def __init__(self, plan: Plan, cell: Cell, where: str, out: Path | None = None) -> None:
        self._plan, self._cell, self._where, self._out = plan, cell, where, out
        self._needs: dict[str, None] = {}

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(self._needs)

    def __call__(self, text: str) -> str:
        return self._plan.spend(VARIABLE.sub(lambda found: self._value(found[1]), text))

    def tree(self, value: Any) -> Any:
        """Fill all texts of a config value."""
        if isinstance(value, dict):
            return {self(str(key)): self.tree(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.tree(one) for one in value]
        return self(value) if isinstance(value, str) else value

    def on(self) -> str:
        """Return the folder of the cell's training set."""
        text = self._plan.study.experiments[self._cell.experiment].on[self._cell.on]
        with self._plan.entered(f"set {self._cell.on}"):
            return self(text)

    def _value(self, name: str) -> str:
        plan = self._plan
        if name in plan.data:
            return plan.data[name]
        if name in plan.study.prepare:
            return self._of(plan.prepared(name, self._cell))
        if name == "run" and self._cell.images:
            return self._of(plan.parts[plan.train(self._cell)])
        if name.startswith("run:"):
            return self._of(plan.trained(name.removeprefix("run:"), self._cell, self._where))
        if name == "seed":
            return str(self._cell.seed)
        if name == "set" and self._cell.on:
            return self.on()
        if name == "out" and self._out:
            return str(self._out)
        known = ", ".join([*plan.data, *plan.study.prepare, "run", "run:ARM", "set", "seed"])
        raise UserError(f"{self._where}: {{{name}}} is unknown; known: {known}")

    def _of(self, part: Part) -> str:
        self._needs[part.name] = None
        return str(part.out)


def too_many_parts() -> UserError:
    return UserError(f"the study has more than {MOST_PARTS:,} parts; split it")


def cells_of(experiment: Experiment) -> Iterator[Cell]:
    """Yield an experiment's trainings, and a cell without images for each finished recognizer."""
    for arm in experiment.arms.values():
        if arm.checkpoint:
            yield Cell(experiment.name, arm.name)
        for on in arm.on if arm.images else ():
            for images in arm.images:
                for seed in experiment.seeds:
                    yield Cell(experiment.name, arm.name, on, images, seed)


def option(key: str, value: Any) -> str:
    """Write a setting as a command-line option, with JSON for anything but text."""
    return f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
