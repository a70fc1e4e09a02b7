"""Settings of an attack on a trained network. Imports nothing heavy: the command line reads the fields."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sparface.errors import UserError

AttackName = Literal["fgsm", "pgd", "apgd", "pixel", "square", "trained"]
USES: dict[AttackName, tuple[str, ...]] = {
    "fgsm": ("epsilon", "norm", "loss"),
    "pgd": ("epsilon", "norm", "loss", "steps", "step_size", "momentum", "restarts"),
    "apgd": ("epsilon", "norm", "loss", "steps", "restarts"),
    "pixel": ("pixels", "search", "steps", "population"),
    "square": ("epsilon", "queries"),
    "trained": ("epsilon",),
}
"""The settings that each attack uses, besides `attack` and `seed`."""
STEPS: dict[AttackName, int] = {"pgd": 20, "apgd": 50, "pixel": 10}
RANGES: dict[str, tuple[float, float]] = {
    "epsilon": (0, 1),
    "steps": (1, 10_000),
    "step_size": (0, 10),
    "momentum": (0, 10),
    "restarts": (1, 1_000),
    "pixels": (1, 10_000),
    "population": (4, 10_000),
    "queries": (1, 1_000_000),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True)
class AttackConfig:
    """An attack and its budget. ε is in units of faces in [0, 1]."""

    attack: AttackName = "apgd"
    """`fgsm`: one step along the sign of the gradient. `pgd`: projected gradient ascent. `apgd`: that with a
    step size that adapts (as AutoAttack). `pixel`, `square`: change a few pixels, or random squares, without
    gradients. `trained`: the generator of a sparring run."""
    epsilon: float = 0.03
    """Bound on the change: of each value with `linf`, of a face's Euclidean norm with `l2`."""
    norm: Literal["linf", "l2"] = "linf"
    loss: Literal["cross_entropy", "margin"] | None = None
    """What `fgsm`, `pgd` and `apgd` ascend; null: margin for apgd, cross_entropy for the others."""
    steps: int | None = None
    """Steps of `pgd` (null: 20) and `apgd` (null: 50); generations of `pixel` (null: 10)."""
    step_size: float | None = None
    """Step size of `pgd`; null: 2.5 · epsilon / steps."""
    momentum: float = 0.0
    """Decay of the accumulated gradient of `pgd`; 0: no momentum."""
    restarts: int = 1
    """Runs of `pgd` and `apgd` from other random starts, of which the best is kept."""
    pixels: int = 1
    """Number of pixels that `pixel` may change."""
    search: Literal["evolution", "random"] = "evolution"
    """How `pixel` searches."""
    population: int = 10
    """Candidates of a generation of `pixel`."""
    queries: int = 1000
    """Faces that `square` may try for each face."""
    seed: int = 0
    """Seed of all randomness, together with the position of each face."""

    def resolved(self) -> AttackConfig:
        """Replace nulls and validate. Raises `UserError` for a setting that is not allowed or not used."""
        if self.attack not in get_args(AttackName):
            raise UserError(f"--attack: {self.attack} is unknown; use {', '.join(get_args(AttackName))}")
        for f in dataclasses.fields(self):
            if f.name not in ("attack", "seed", *USES[self.attack]) and getattr(self, f.name) != f.default:
                raise UserError(f"--{f.name}: is not used by --attack {self.attack}; remove it")
        steps = STEPS.get(self.attack, 1) if self.steps is None else self.steps
        found = dataclasses.replace(
            self,
            loss=self.loss or ("margin" if self.attack == "apgd" else "cross_entropy"),
            steps=steps,
            step_size=2.5 * self.epsilon / max(1, steps) if self.step_size is None else self.step_size,
        )
        _check_ranges(dataclasses.asdict(found))
        return found

    def used(self) -> dict[str, Any]:
        """The settings that determine the attack's result, for provenance."""
        return {name: getattr(self, name) for name in ("attack", *USES[self.attack], "seed")}


def _check_ranges(values: dict[str, Any]) -> None:
    for name, (least, most) in RANGES.items():
        if not math.isfinite(values[name]) or not least <= values[name] <= most:
            raise UserError(
                f"--{name}: {values[name]} is not allowed; must be between {least:,} and {most:,}"
            )
